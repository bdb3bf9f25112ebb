//! `kagami copy`: images into a mirror, now; and what `kagami sync` shares with it.
//!
//! What is printed on standard output is a line for each image as it ends; how far the copies are, and in the end what
//! became of all, stands on standard error.

mod destination;
mod progress;

use std::{collections::BTreeSet, fmt::Write as _, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures_util::stream::{self, StreamExt as _};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

pub(super) use self::destination::{Destination, Secrets, Whose, find};
use self::{
    destination::{Upstreams, keyring},
    progress::{Progress, size},
};
use super::{
    BadSettings,
    arguments::{CopyArguments, HowToCopy, LeftAloneArguments},
    input, oneshot, output,
};
use crate::{
    api::mirror::Connection,
    domain::{foreign::Foreign, mirror::Mirror, platform::Platforms, routing::Routing},
    registry::copy::{self, Job, Meter, Settings, Trouble},
    state::replica::{Images, Namespaces, Scope},
};

/// How long the cluster may take to say what mirrors there are.
pub(super) const CLUSTER: Duration = Duration::from_secs(30);

/// Images to be copied, and how.
pub(super) struct Copies {
    settings: Settings,
    upstreams: Upstreams,
    platforms: Option<Platforms>,
    how: HowToCopy,
    work: Vec<Work>,
}

struct Work {
    image: String,
    /// How, and its name in the mirror.
    job: Result<(Job, String), Trouble>,
}

/// What became of an image, or would.
struct Done {
    words: String,
    /// Whether anything was brought.
    is_new: bool,
    blobs: u64,
    bytes: u64,
    /// What is missing of it all the same.
    incomplete: Vec<Trouble>,
}

pub(super) async fn run(arguments: CopyArguments) -> anyhow::Result<()> {
    let images = images(&arguments.images)?;
    let mut copies = Copies::new(arguments.how)?;
    let into = if let Some(file) = &arguments.config {
        let store = oneshot::feed(file, &nobody())?.0;
        let configuration = oneshot::read(file)?;
        let found = find(&configuration.mirrors, &arguments.to)?.clone();
        let routing = Arc::clone(&store.snapshot().routing);
        let secrets = Secrets::File(configuration.secrets);
        copies.destination(routing, found, &secrets).await?
    } else {
        // Of images and namespaces nothing is asked here.
        let scope = |namespace| Scope {
            images: Images::These(Vec::new()),
            namespaces: Namespaces::One(namespace),
        };
        let left_alone = nobody();
        let read = oneshot::read_cluster(&arguments.cluster, &left_alone, scope);
        let read = timeout(CLUSTER, read).await;
        let read = read.with_context(|| format!("the cluster did not answer within {CLUSTER:?}"))??;
        let found = find(&read.cluster.configuration().mirrors, &arguments.to)?.clone();
        let routing = Arc::clone(&read.store.snapshot().routing);
        let namespace = &arguments.cluster.kagami_namespace;
        let secrets = Secrets::Cluster {
            client: &read.client,
            namespace,
        };
        copies.destination(routing, found, &secrets).await?
    };
    for image in &images {
        copies.add(image, &into, Whose::Persons, |_| {});
    }
    copies.carry_out().await
}

fn nobody() -> LeftAloneArguments {
    LeftAloneArguments {
        left_alone: Vec::new(),
    }
}

impl Copies {
    /// Returns none yet.
    pub(super) fn new(how: HowToCopy) -> anyhow::Result<Self> {
        Ok(Self {
            settings: Settings {
                images: how.parallel.into(),
                ..Settings::default()
            },
            upstreams: Upstreams::new(keyring(how.docker_config.as_deref())?),
            platforms: platforms(&how.platforms)?,
            how,
            work: Vec::new(),
        })
    }

    /// Returns a mirror to copy into.
    pub(super) async fn destination(
        &self,
        routing: Arc<Routing>,
        found: (Mirror, Connection),
        secrets: &Secrets<'_>,
    ) -> anyhow::Result<Destination> {
        Destination::new(routing, found, secrets, self.upstreams.keyring(), &self.settings).await
    }

    /// Adds an image. What the command line says of how goes before what `change` does.
    pub(super) fn add(
        &mut self,
        image: &str,
        into: &Destination,
        whose: Whose,
        change: impl FnOnce(&mut Job),
    ) {
        let mut job = into.job(image, &mut self.upstreams, &self.settings, whose);
        if let Ok((job, _)) = &mut job {
            change(job);
            job.platforms = self.platforms.unwrap_or(job.platforms);
            job.referrers &= !self.how.no_referrers;
            job.verify = self.how.verify;
        }
        let image = image.to_owned();
        self.work.push(Work { image, job });
    }

    /// Copies all, or says what would be copied; an error if not every image is whole in the mirror then.
    pub(super) async fn carry_out(self) -> anyhow::Result<()> {
        let Self {
            settings, how, work, ..
        } = self;
        let all = work.len();
        let meter = Meter::default();
        let progress = Progress::new(all);
        let calls = work.into_iter().map(|Work { image, job }| {
            let (settings, meter) = (&settings, &meter);
            async move {
                let since = Instant::now();
                let (job, mapped) = match job {
                    Ok(found) => found,
                    Err(trouble) => return (image, String::new(), Err(trouble)),
                };
                let done = if how.dry_run {
                    copy::foresee(&job, settings)
                        .await
                        .map(|foreseen| would(&foreseen))
                } else {
                    copy::copy(&job, settings, meter)
                        .await
                        .map(|copied| did(&copied, since.elapsed()))
                };
                (image, mapped, done)
            }
        });
        let calls: Vec<_> = calls.collect();
        // As many again get ready meanwhile.
        let mut calls = stream::iter(calls).buffer_unordered(2 * usize::from(how.parallel));
        let mut ticks = interval(progress.pause());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut sum = Sum::default();
        loop {
            tokio::select! {
                biased;
                done = calls.next() => {
                    let Some((image, mapped, done)) = done else { break };
                    progress.clear();
                    sum.add(&done);
                    match done {
                        Ok(Done { words, incomplete, .. }) => {
                            output::print(&format!("{} -> {}: {words}\n", Foreign(&image), Foreign(&mapped)))?;
                            for trouble in &incomplete {
                                output::complain(&format!("{}: SignaturesIncomplete: {trouble}", Foreign(&image)));
                            }
                        }
                        Err(trouble) => {
                            let advice = trouble.reason.advice();
                            output::complain(&format!("{}: {trouble}. {advice}", Foreign(&image)));
                        }
                    }
                }
                _ = ticks.tick() => progress.show(sum.ended(), &meter),
            }
        }
        progress.clear();
        if all > 1 {
            output::complain(&sum.words(how.dry_run, progress.elapsed()));
        }
        if sum.failed > 0 {
            let what = if how.dry_run {
                "can be copied"
            } else {
                "is whole in the mirror"
            };
            anyhow::bail!("not every image {what}: {} of {all} failed", sum.failed);
        }
        Ok(())
    }
}

/// What became of all images so far.
#[derive(Debug, Default)]
struct Sum {
    new: usize,
    there: usize,
    /// Those that are not whole.
    failed: usize,
    blobs: u64,
    bytes: u64,
}

impl Sum {
    fn add(&mut self, done: &Result<Done, Trouble>) {
        match done {
            Ok(done) => {
                self.blobs += done.blobs;
                self.bytes += done.bytes;
                if !done.incomplete.is_empty() {
                    self.failed += 1;
                } else if done.is_new {
                    self.new += 1;
                } else {
                    self.there += 1;
                }
            }
            Err(_) => self.failed += 1,
        }
    }

    const fn ended(&self) -> usize {
        self.new + self.there + self.failed
    }

    fn words(&self, dry_run: bool, took: Duration) -> String {
        let (verb, at_most, took) = if dry_run {
            ("would be copied", " at most", String::new())
        } else {
            ("copied", "", format!(" in {:.1} s", took.as_secs_f64()))
        };
        let what = if self.blobs == 0 {
            String::new()
        } else {
            format!(" ({}, {}{at_most})", count(self.blobs, "blob"), size(self.bytes))
        };
        format!(
            "{}: {} {verb}{what}, {} there already, {} failed{took}",
            count(self.ended() as u64, "image"),
            self.new,
            self.there,
            self.failed
        )
    }
}

/// Returns what became of an image.
fn did(copied: &copy::Copied, took: Duration) -> Done {
    let mut words = if copied.manifests == 0 {
        format!("{} is there", copied.digest)
    } else {
        let (manifests, blobs) = (copied.manifests, copied.uploaded);
        format!(
            "{} copied, {} and {} ({}) in {:.1} s",
            copied.digest,
            count(manifests, "manifest"),
            count(blobs, "blob"),
            size(copied.bytes),
            took.as_secs_f64()
        )
    };
    // Writing to a String cannot fail.
    if copied.mounted > 0 {
        let _ = write!(words, ", {} there or taken over", count(copied.mounted, "blob"));
    }
    if copied.referrers > 0 {
        let _ = write!(words, ", with {}", count(copied.referrers, "referrer"));
    }
    if copied.is_sparse {
        words.push_str(", some platforms left out");
    }
    Done {
        words,
        is_new: copied.manifests > 0,
        blobs: copied.uploaded,
        bytes: copied.bytes,
        incomplete: copied.incomplete.clone(),
    }
}

fn would(foreseen: &copy::Foreseen) -> Done {
    let words = if foreseen.is_there {
        format!("{} is there", foreseen.digest)
    } else {
        format!(
            "{} would be copied, {} and {} ({}) at most",
            foreseen.digest,
            count(foreseen.manifests, "manifest"),
            count(foreseen.blobs, "blob"),
            size(foreseen.bytes)
        )
    };
    let (blobs, bytes) = if foreseen.is_there {
        (0, 0)
    } else {
        (foreseen.blobs, foreseen.bytes)
    };
    Done {
        words,
        is_new: !foreseen.is_there,
        blobs,
        bytes,
        incomplete: Vec::new(),
    }
}

fn count(number: u64, what: &str) -> String {
    let many = if number == 1 { "" } else { "s" };
    format!("{number} {what}{many}")
}

/// Returns the images that are meant, each once.
fn images(written: &[String]) -> anyhow::Result<Vec<String>> {
    let mut images = Vec::new();
    for image in written {
        if image != "-" {
            images.push(image.clone());
            continue;
        }
        let text = input::read(Path::new("-"))?;
        let lines = text.lines().map(str::trim);
        images.extend(
            lines
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned),
        );
    }
    let mut seen = BTreeSet::new();
    images.retain(|image| seen.insert(image.clone()));
    Ok(images)
}

/// Returns the platforms that are named, if any are.
fn platforms(written: &[String]) -> Result<Option<Platforms>, BadSettings> {
    let mut platforms: Option<Platforms> = None;
    for name in written {
        let platform = Platforms::written(name);
        let platform = platform.map_err(|fault| BadSettings::one(format!("--platform {fault}")))?;
        platforms = Some(platforms.map_or(platform, |known| known.or(platform)));
    }
    Ok(platforms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_those_that_kagami_knows() {
        let of = |names: &[&str]| platforms(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[]).unwrap(), None);
        let two = of(&["linux/amd64", "linux/arm64"]).unwrap().unwrap();
        assert_eq!(two.names().collect::<Vec<_>>(), ["linux/amd64", "linux/arm64"]);
        assert!(of(&["amd64"]).is_err() && of(&["linux/pdp11"]).is_err());
    }
}
