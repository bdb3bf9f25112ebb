//! Sweeps: looking again at all known images before their proofs age out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Context, CurrentMirror,
    look::{Located, locate},
    reports::SweepEnd,
};
use crate::{
    clock,
    domain::{
        answer::Answer,
        health::State,
        image::Class,
        mirror::{Kind, Mirror},
        presence::{Entry, Presence, Rules},
        reason::Reason,
        sweep::{Step, Sweep, step},
        time::Timestamp,
    },
    registry::pace::Pace,
};

/// How many images are asked for at once.
const AT_ONCE: usize = 32;

/// How often one image is asked for before its state counts as unknown.
const TRIES: u32 = 3;

/// The longest wait that a mirror may ask for.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// How many images a second a pull-through mirror is asked for by tag: each may be a download.
const PULL_THROUGH_RATE: u32 = 1;

/// Sweeps until the task is dropped.
pub(super) async fn run(context: Context) {
    let mut snapshots = context.store.subscribe();
    // When the last sweep of each class began; none if one is due now.
    let mut started: [Option<Instant>; 2] = [None; 2];
    let mut proven_since = None;
    loop {
        let Some(present) = context.present() else { return };
        let health = present.health();
        let healthy = health.state == State::Healthy;
        if healthy && proven_since != Some(health.proven_since) {
            // Every proof just became void: there is no time to lose.
            proven_since = Some(health.proven_since);
            started = [None; 2];
        }
        // The period is that of the settings now: it may have become shorter.
        let now = Instant::now();
        let due = |class, started: Option<Instant>| {
            started.map_or(now, |started| started + period(present.settings(), class))
        };
        let dues = Class::ALL.into_iter().zip(started);
        let next = dues
            .map(|(class, started)| due(class, started))
            .min()
            .unwrap_or(now);
        if healthy && next <= now {
            for (class, started) in Class::ALL.into_iter().zip(&mut started) {
                if due(class, *started) <= now {
                    *started = Some(Instant::now());
                    run_one(&context, &present, class).await;
                }
            }
            publish_counts(&context);
            continue;
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = sleep_until(next), if healthy => {}
        }
    }
}

/// Returns the time between the starts of two sweeps: half of what a proof lasts.
fn period(settings: &Mirror, class: Class) -> Duration {
    let freshness = match class {
        Class::Tag => settings.freshness.tag,
        Class::Digest => settings.freshness.digest,
    };
    freshness / 2
}

fn publish_counts(context: &Context) {
    let counts = context
        .store
        .index()
        .counts()
        .remove(&context.mirror)
        .unwrap_or_default();
    context
        .metrics
        .set_images(&context.mirror, "present", counts.present);
    context
        .metrics
        .set_images(&context.mirror, "missing", counts.missing);
    context
        .metrics
        .set_images(&context.mirror, "unknown", counts.unknown);
}

/// Sweeps one class. It counts as complete unless the mirror failed in between.
async fn run_one(context: &Context, present: &CurrentMirror, class: Class) {
    let sweep = Sweep::plan(&context.store.index(), &context.mirror, class, clock::now());
    let run = Arc::new(Run {
        context: context.clone(),
        present: present.clone(),
        pace: Pace::new(present.settings().sweep_rate),
        pull_through: Pace::new(Some(PULL_THROUGH_RATE)),
        next: AtomicUsize::new(0),
        aborted: AtomicBool::new(false),
        sweep,
    });
    let mut lanes = JoinSet::new();
    for _ in 0..AT_ONCE.min(run.sweep.images().len()) {
        lanes.spawn(Arc::clone(&run).lane());
    }
    while let Some(ended) = lanes.join_next().await {
        if ended.is_err() {
            run.aborted.store(true, Ordering::Relaxed);
        }
    }
    let complete = !run.aborted.load(Ordering::Relaxed) && run.still_healthy();
    if complete {
        context
            .store
            .index_mut()
            .swept(&context.mirror, class, run.sweep.complete());
        let end = SweepEnd {
            started_at: run.sweep.started_at,
            finished_at: clock::now(),
            counts: context.store.index().counts_of(&context.mirror, class),
            period: period(present.settings(), class),
        };
        context.reports.swept(&context.mirror, class, end);
        context
            .metrics
            .sweep_finished(&context.mirror, class.as_str(), end.finished_at);
    }
    if !run.sweep.images().is_empty() {
        context.metrics.swept(&context.mirror, class.as_str(), complete);
        let images = run.sweep.images().len();
        tracing::debug!(
            mirror = context.mirror,
            class = class.as_str(),
            images,
            complete,
            "swept"
        );
    }
}

struct Run {
    context: Context,
    present: CurrentMirror,
    pace: Pace,
    pull_through: Pace,
    sweep: Sweep,
    /// Position of the next image.
    next: AtomicUsize,
    aborted: AtomicBool,
}

impl Run {
    /// Whether the mirror has been healthy all the time.
    fn still_healthy(&self) -> bool {
        self.context.present().is_some_and(|present| {
            let (then, now) = (self.present.health(), present.health());
            now.state == State::Healthy && now.proven_since == then.proven_since
        })
    }

    async fn lane(self: Arc<Self>) {
        while let Some(key) = self.sweep.images().get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.aborted.load(Ordering::Relaxed) {
                return;
            }
            if !self.still_healthy() {
                self.aborted.store(true, Ordering::Relaxed);
                return;
            }
            self.verify(key).await;
        }
    }

    async fn verify(&self, key: &str) {
        let Some(located) = locate(self.present.settings(), key) else {
            return self.write(key, Presence::Unknown(Some(Reason::NameTooLong)), clock::now());
        };
        let mut last = Reason::Internal;
        for _ in 0..TRIES {
            self.pace.turn().await;
            let asked_at = clock::now();
            let (answer, reference) = self
                .ask(key, &located.repository, located.reference.manifest_reference())
                .await;
            let step = {
                let index = self.context.store.index();
                // An entry that went meanwhile needs no verification.
                let Some(entry) = index.get(&self.context.mirror, key) else {
                    return;
                };
                match step(entry, &answer) {
                    Step::Confirmed if self.upstream_is_due(entry, &located) => Step::Inspect,
                    step => step,
                }
            };
            match step {
                Step::Confirmed => {
                    if reference == By::Tag {
                        // Resolving a pull-through mirror's tag is an event of its own.
                        self.renew(key, asked_at);
                    }
                    return;
                }
                Step::Write(presence) => return self.write(key, presence, asked_at),
                Step::Inspect => match self.context.inspect(&self.present, &located).await {
                    Ok(presence) => return self.write(key, presence, asked_at),
                    Err((Answer::Unauthorized | Answer::Ambiguous(_), presence)) => {
                        return self.write(key, presence, asked_at);
                    }
                    Err((answer, presence)) => {
                        if let Presence::Unknown(Some(reason)) = presence {
                            last = reason;
                        }
                        self.wait_for_mirror(&answer);
                    }
                },
                Step::Again(reason) => {
                    last = reason;
                    self.wait_for_mirror(&answer);
                }
            }
            if !self.still_healthy() {
                // The mirror is failing, not the image: nothing is written.
                self.aborted.store(true, Ordering::Relaxed);
                return;
            }
        }
        self.write(key, Presence::Unknown(Some(last)), clock::now());
    }

    /// Whether upstream is to be asked anew who gets an image. Its owner may have closed it, or upstream
    /// could not tell the last time.
    fn upstream_is_due(&self, entry: &Entry, located: &Located<'_>) -> bool {
        let Presence::Present(proof) = &entry.presence else {
            return false;
        };
        let due = proof.public.is_none()
            || clock::now().since(entry.verified_at) > self.present.settings().tags.refresh;
        due && self.present.asks_upstream(located)
    }

    /// Asks for an image: by headers; a pull-through mirror by the digest obtained earlier, and by
    /// tag only when it is time to resolve the tag anew, because that asks upstream.
    async fn ask(&self, key: &str, repository: &str, reference: &str) -> (Answer, By) {
        let settings = self.present.settings();
        if settings.kind == Kind::PullThrough && self.sweep.class == Class::Tag {
            let digest = {
                let index = self.context.store.index();
                let rules = Rules::of(settings, self.present.health().proven_since);
                let fresh = |verified_at| clock::now().since(verified_at) < rules.refresh / 2;
                match index
                    .get(&self.context.mirror, key)
                    .map(|entry| (&entry.presence, entry.verified_at))
                {
                    Some((Presence::Present(proof), verified_at)) if fresh(verified_at) => {
                        Some(proof.digest.clone())
                    }
                    _ => None,
                }
            };
            if let Some(digest) = digest {
                return (
                    self.context.head(repository, &digest.to_string()).await,
                    By::Digest,
                );
            }
            self.pull_through.turn().await;
            return (self.context.head(repository, reference).await, By::Tag);
        }
        (self.context.head(repository, reference).await, By::Digest)
    }

    /// Lets the whole sweep wait as long as the mirror asked to.
    fn wait_for_mirror(&self, answer: &Answer) {
        if let Answer::RateLimited { retry_after } = answer {
            let wait = retry_after.unwrap_or(Duration::from_secs(1)).min(LONGEST_WAIT);
            self.pace.pause(Instant::now() + wait);
        }
    }

    fn write(&self, key: &str, presence: Presence, verified_at: Timestamp) {
        self.context
            .store
            .index_mut()
            .write(&self.context.mirror, key, presence, verified_at, clock::now());
    }

    fn renew(&self, key: &str, verified_at: Timestamp) {
        let mut index = self.context.store.index_mut();
        if let Some(presence) = index
            .get(&self.context.mirror, key)
            .map(|entry| entry.presence.clone())
        {
            index.write(&self.context.mirror, key, presence, verified_at, clock::now());
        }
    }
}

/// By what a manifest was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// A pull-through mirror's tag, resolved anew.
    Tag,
    /// Anything that an answer speaks of at once.
    Digest,
}
