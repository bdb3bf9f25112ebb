//! `kagami copy`: images into a mirror, now.
//!
//! What is printed on standard output is a line for each image as it ends; how far the copies are stands on standard
//! error, in one line that is written anew on a terminal, and now and then in a line of its own elsewhere.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use futures_util::stream::{self, StreamExt as _};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::{
    BadSettings,
    arguments::{CopyArguments, LeftAloneArguments},
    input, oneshot, output,
};
use crate::{
    api::mirror::Connection,
    cluster::{objects, sources, watch::get},
    credentials::{Credentials, Keyring, Secret},
    domain::{
        copying::{Place, Reason, place},
        foreign::Foreign,
        image::Reference,
        mapping::Form,
        mirror::{Kind, Mirror},
        platform::Platforms,
        routing::Routing,
    },
    registry::{
        Client, Endpoint,
        copy::{self, Job, Meter, Settings, Trouble, Upstream},
        pool,
    },
    state::{
        feed::Feed,
        replica::{Images, Namespaces, Scope},
    },
    telemetry::chain,
};

/// How long the cluster may take to say what mirrors there are.
const CLUSTER: Duration = Duration::from_secs(30);

/// The pause between two looks at how far copies are, on a terminal and elsewhere.
const REFRESH: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Where images go to.
struct Destination {
    routing: Arc<Routing>,
    mirror: Mirror,
    connection: Connection,
    /// What the mirror's own Secret says, if there is one.
    credentials: Option<Credentials>,
}

pub(super) async fn run(arguments: CopyArguments) -> anyhow::Result<()> {
    let images = images(&arguments.images)?;
    let platforms = platforms(&arguments.platforms)?;
    let keyring = keyring(arguments.docker_config.as_deref())?;
    let into = destination(&arguments).await?;
    let settings = Settings {
        images: arguments.parallel.into(),
        ..Settings::default()
    };
    let client = into.client(&keyring)?;
    let mirror = Arc::new(copy::Mirror::new(client, &settings));
    let mut upstreams = Upstreams::default();
    let mut work = Vec::new();
    for image in &images {
        let job = into.job(image, &mut upstreams, &keyring, &settings, &mirror);
        work.push((
            image,
            job.map(|(job, mapped)| {
                let job = Job {
                    platforms,
                    referrers: !arguments.no_referrers,
                    verify: arguments.verify,
                    ..job
                };
                (job, mapped)
            }),
        ));
    }

    let meter = Meter::default();
    let progress = Progress::new(images.len());
    let calls = work.into_iter().map(|(image, job)| {
        let (settings, meter) = (&settings, &meter);
        async move {
            let since = Instant::now();
            let (job, mapped) = match job {
                Ok(found) => found,
                Err(trouble) => return (image, String::new(), Err(trouble)),
            };
            let done = if arguments.dry_run {
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
    let mut calls = stream::iter(calls).buffer_unordered(2 * usize::from(arguments.parallel));
    let mut ticks = interval(progress.pause());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut failed = 0;
    let mut ended = 0;
    loop {
        tokio::select! {
            biased;
            done = calls.next() => {
                let Some((image, mapped, done)) = done else { break };
                ended += 1;
                progress.clear();
                match done {
                    Ok((words, incomplete)) => {
                        output::print(&format!("{} -> {}: {words}\n", Foreign(image), Foreign(&mapped)))?;
                        for trouble in &incomplete {
                            output::complain(&format!("{}: SignaturesIncomplete: {trouble}", Foreign(image)));
                        }
                        failed += usize::from(!incomplete.is_empty());
                    }
                    Err(trouble) => {
                        failed += 1;
                        let advice = trouble.reason.advice();
                        output::complain(&format!("{}: {trouble}. {advice}", Foreign(image)));
                    }
                }
            }
            _ = ticks.tick() => progress.show(ended, &meter),
        }
    }
    progress.clear();
    if failed > 0 {
        let (all, what) = (
            images.len(),
            if arguments.dry_run {
                "can be copied"
            } else {
                "is whole in the mirror"
            },
        );
        anyhow::bail!("not every image {what}: {failed} of {all} failed");
    }
    Ok(())
}

/// Returns what became of an image in words, and what is missing of it.
fn did(copied: &copy::Copied, took: Duration) -> (String, Vec<Trouble>) {
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
    (words, copied.incomplete.clone())
}

fn would(foreseen: &copy::Foreseen) -> (String, Vec<Trouble>) {
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
    (words, Vec::new())
}

fn count(number: u64, what: &str) -> String {
    let many = if number == 1 { "" } else { "s" };
    format!("{number} {what}{many}")
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
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

fn platforms(written: &[String]) -> Result<Platforms, BadSettings> {
    if written.is_empty() {
        return Ok(Platforms::ALL);
    }
    let mut platforms = Platforms::NONE;
    for name in written {
        let platform = Platforms::written(name);
        let platform = platform.map_err(|fault| BadSettings::one(format!("--platform {fault}")))?;
        platforms = platforms.or(platform);
    }
    Ok(platforms)
}

/// Reads the logins of a person or a job.
#[expect(clippy::disallowed_methods, reason = "settings enter in `cli`")]
fn keyring(file: Option<&Path>) -> anyhow::Result<Keyring> {
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let usual = || {
        let home = || folder("HOME").map(|home| home.join(".docker"));
        let file = folder("DOCKER_CONFIG").or_else(home)?.join("config.json");
        file.exists().then_some(file)
    };
    let Some(file) = file.map(Path::to_owned).or_else(usual) else {
        return Ok(Keyring::default());
    };
    let text = input::read_file(&file)?;
    let read = Keyring::from_docker_config_json(text.as_bytes());
    Ok(read.map_err(|error| BadSettings::one(format!("{}: {error}", file.display())))?)
}

/// Finds the mirror in a file or a cluster.
async fn destination(arguments: &CopyArguments) -> anyhow::Result<Destination> {
    let (store, configuration, client) = if let Some(file) = &arguments.config {
        let store = oneshot::feed(file, &nobody())?.0;
        (store, oneshot::read(file)?, None)
    } else {
        // Of images and namespaces nothing is asked here.
        let scope = |namespace| Scope {
            images: Images::These(Vec::new()),
            namespaces: Namespaces::One(namespace),
        };
        let left_alone = nobody();
        let read = timeout(
            CLUSTER,
            oneshot::read_cluster(&arguments.cluster, &left_alone, scope),
        )
        .await;
        let read = read.with_context(|| format!("the cluster did not answer within {CLUSTER:?}"))??;
        (read.store, read.cluster.configuration(), Some(read.client))
    };
    let name = &arguments.to;
    let names: Vec<String> = configuration
        .mirrors
        .iter()
        .map(|(mirror, _)| mirror.name.clone())
        .collect();
    let found = configuration
        .mirrors
        .into_iter()
        .find(|(mirror, _)| mirror.name == *name);
    let Some((mirror, connection)) = found else {
        let there = if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        };
        return Err(BadSettings::one(format!("there is no mirror {name}; there is: {there}")).into());
    };
    if mirror.kind != Kind::Hosted {
        return Err(BadSettings::one(format!(
            "mirror {} is of kind {}, which fetches by itself: only mirrors of kind Hosted take copies",
            mirror.name,
            mirror.kind.as_str()
        ))
        .into());
    }
    let secret = match (&connection.probe_secret, &client) {
        (None, _) => None,
        (Some(secret), None) => configuration.secrets.get(secret).cloned(),
        (Some(secret), Some(client)) => {
            let namespace = &arguments.cluster.kagami_namespace;
            let read = get::<objects::Secret>(client, &sources::secrets(namespace), secret).await;
            let read = read.with_context(|| format!("cannot read Secret {secret} in {namespace}"));
            // Whoever has a login of their own needs none of these.
            match read {
                Ok(read) => read.map(of_cluster),
                Err(error) => {
                    output::complain(&format!("{error:#}; the mirror is asked without"));
                    None
                }
            }
        }
    };
    let credentials = match &secret {
        None => None,
        Some(secret) => {
            let found = Feed::credentials(&mirror, &connection, secret);
            found.map_err(|fault| output::complain(&chain(&fault))).ok()
        }
    };
    Ok(Destination {
        routing: Arc::clone(&store.snapshot().routing),
        mirror,
        connection,
        credentials,
    })
}

fn nobody() -> LeftAloneArguments {
    LeftAloneArguments {
        left_alone: Vec::new(),
    }
}

fn of_cluster(object: objects::Secret) -> Secret {
    let data = object.data.unwrap_or_default();
    Secret {
        namespace: None,
        type_: object.type_,
        data: data.into_iter().map(|(key, value)| (key, value.0)).collect(),
    }
}

impl Destination {
    fn client(&self, keyring: &Keyring) -> anyhow::Result<Client> {
        let registry = &self.mirror.mapping.registry;
        let name = match registry.path() {
            "" => registry.host().to_owned(),
            path => format!("{}/{path}", registry.host()),
        };
        let endpoint = &self.connection.endpoint;
        let reached = endpoint
            .split_once("://")
            .map_or(endpoint.as_str(), |(_, host)| host);
        let own = keyring
            .for_registry(&name)
            .or_else(|| keyring.for_registry(reached));
        Client::new(&Endpoint {
            url: endpoint.clone(),
            ca_bundle: self.connection.ca_bundle.clone(),
            trust: self.connection.trust,
            credentials: own.or(self.credentials.as_ref()).cloned(),
        })
        .with_context(|| format!("cannot use the endpoint of mirror {}", self.mirror.name))
    }

    /// Returns how an image is copied, and its name there.
    fn job(
        &self,
        image: &str,
        upstreams: &mut Upstreams,
        keyring: &Keyring,
        settings: &Settings,
        mirror: &Arc<copy::Mirror>,
    ) -> Result<(Job, String), Trouble> {
        let trouble = |reason: Reason, words: String| Trouble::new(reason, words);
        let reference =
            Reference::parse(image).map_err(|error| trouble(Reason::InvalidReference, error.to_string()))?;
        let key = reference.key();
        let key = key.by_ref();
        let candidates = self.routing.candidates(key.name());
        let serves = |candidate: &_| self.routing.mirror(*candidate).name == self.mirror.name;
        if !candidates
            .ordered
            .iter()
            .any(|candidate| serves(&candidate.mirror))
        {
            let reason = if candidates.excluded {
                Reason::Excluded
            } else {
                Reason::NoMirror
            };
            return Err(trouble(
                reason,
                reason.explanation().trim_end_matches('.').to_owned(),
            ));
        }
        let mapping = &self.mirror.mapping;
        let too_long =
            |error: crate::domain::mapping::MapError| trouble(Reason::NameTooLong, error.to_string());
        let mapped = mapping.map(&reference, Form::Written).map_err(too_long)?;
        let Place {
            repository,
            reference,
            into,
            tag,
        } = place(mapping, key).map_err(too_long)?;
        Ok((
            Job {
                upstream: upstreams.of(key.host(), &repository, keyring, settings)?,
                repository,
                tag,
                reference,
                mirror: Arc::clone(mirror),
                into,
                platforms: Platforms::ALL,
                referrers: true,
                verify: false,
                max_size: None,
                max_referrers: None,
                keeps_tag: false,
            },
            mapped,
        ))
    }
}

/// The registries that images come from, each with its login.
#[derive(Default)]
struct Upstreams(Vec<(String, Option<Credentials>, Arc<Upstream>)>);

impl Upstreams {
    fn of(
        &mut self,
        host: &str,
        repository: &str,
        keyring: &Keyring,
        settings: &Settings,
    ) -> Result<Arc<Upstream>, Trouble> {
        let credentials = keyring.for_registry(&format!("{host}/{repository}")).cloned();
        let same = |(of, with, _): &&(String, Option<Credentials>, _)| of == host && *with == credentials;
        if let Some((_, _, known)) = self.0.iter().find(same) {
            return Ok(Arc::clone(known));
        }
        let client = Client::new(&Endpoint {
            url: pool::url(host),
            ca_bundle: None,
            trust: crate::domain::mirror::Trust::default(),
            credentials: credentials.clone(),
        });
        let client = client
            .map_err(|error| Trouble::new(Reason::Unreachable, format!("{host}: {}", chain(&error))))?;
        let upstream = Arc::new(Upstream::new(client, settings));
        self.0.push((host.to_owned(), credentials, Arc::clone(&upstream)));
        Ok(upstream)
    }
}

/// How far copies are, for people.
struct Progress {
    images: usize,
    since: Instant,
    is_terminal: bool,
}

impl Progress {
    fn new(images: usize) -> Self {
        Self {
            images,
            since: Instant::now(),
            is_terminal: io::stderr().is_terminal(),
        }
    }

    const fn pause(&self) -> Duration {
        if self.is_terminal { REFRESH } else { LINE_EVERY }
    }

    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn show(&self, ended: usize, meter: &Meter) {
        let of = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let sent = of(&meter.bytes_sent);
        let rate = sent as f64 / self.since.elapsed().as_secs_f64().max(0.001);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "for people"
        )]
        let rate = size(rate as u64);
        let line = format!(
            "{ended} of {} images, {} of {} blobs, {} of {}, {rate}/s",
            self.images,
            of(&meter.blobs_done),
            of(&meter.blobs),
            size(of(&meter.bytes_done)),
            size(of(&meter.bytes)),
        );
        if self.is_terminal {
            drop(write!(io::stderr(), "\r\x1b[K{line}"));
            drop(io::stderr().flush());
        } else {
            output::complain(&line);
        }
    }

    /// Makes room for a line of its own.
    fn clear(&self) {
        if self.is_terminal {
            drop(write!(io::stderr(), "\r\x1b[K"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        for (bytes, expected) in [
            (0, "0.0 KiB"),
            (1536, "1.5 KiB"),
            (3 << 20, "3.0 MiB"),
            (5 << 30, "5.00 GiB"),
        ] {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn platforms_are_those_that_kagami_knows() {
        let of = |names: &[&str]| platforms(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[]).unwrap(), Platforms::ALL);
        let two = of(&["linux/amd64", "linux/arm64"]).unwrap();
        assert_eq!(two.names().collect::<Vec<_>>(), ["linux/amd64", "linux/arm64"]);
        assert!(of(&["amd64"]).is_err() && of(&["linux/pdp11"]).is_err());
    }
}
