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
    time::{Instant, sleep, sleep_until},
};

use super::{
    context::{Context, CurrentMirror},
    reports::{Refusal, SweepEnd},
    verifier::{Asking, Verified, Verifier, asking},
};
use crate::{
    clock,
    domain::{
        health::State,
        image::{Class, ImageKey},
        mirror::Kind,
        presence::{Entry, Index, Presence, Rules},
        reason::Reason,
        sweep::{Retries, Sweep},
        time::Timestamp,
    },
    registry::pace::Pace,
};

/// How many images are asked for at once.
const AT_ONCE: usize = 32;

/// The shortest time between two beginnings of all sweeps because the mirror opened to its credentials again.
const ANEW: Duration = Duration::from_secs(30);

/// How often it is counted at least what is known.
const COUNT: Duration = Duration::from_mins(1);

/// Sweeps until the task is dropped.
pub(super) async fn run(context: Context) {
    let mut snapshots = context.store.subscribe();
    // When the last sweep of each class began; none if one is due now.
    let mut started: [Option<Instant>; 2] = [None; 2];
    let mut retries = Retries::default();
    let mut proven_since = None;
    let mut reports = context.reports.subscribe();
    let mut refused = false;
    // When all are swept because the mirror opened again, next and last.
    let (mut anew, mut last_anew): (Option<Instant>, Option<Instant>) = (None, None);
    loop {
        let Some(present) = context.present() else { return };
        let health = present.health();
        let healthy = health.state == State::Healthy;
        if healthy && proven_since != Some(health.proven_since) {
            // Every proof just became void: there is no time to lose.
            proven_since = Some(health.proven_since);
            started = [None; 2];
            retries.clear();
        }
        let is_refused = matches!(context.reports.of(&context.mirror).credentials(), Some(Err(_)));
        let now = Instant::now();
        if std::mem::replace(&mut refused, is_refused) && !is_refused {
            // What was refused was not looked at.
            anew = Some(last_anew.map_or(now, |last| now.max(last + ANEW)));
        }
        if healthy && anew.is_some_and(|at| at <= now) {
            last_anew = anew.take();
            started = [None; 2];
            retries.clear();
        }
        // The period is that of the settings now: it may have become shorter.
        let due = |class, started: Option<Instant>| {
            started.map_or(now, |started| started + period(&present.rules(), class))
        };
        let dues = Class::ALL.into_iter().zip(started);
        let next = dues
            .map(|(class, started)| due(class, started))
            .chain(anew)
            .min()
            .unwrap_or(now);
        if healthy && next <= now {
            for (class, started) in Class::ALL.into_iter().zip(&mut started) {
                if due(class, *started) <= now {
                    *started = Some(Instant::now());
                    run_one(&context, &present, class, &mut retries).await;
                }
            }
            publish_counts(&context);
            continue;
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            Ok(()) = reports.changed() => {}
            () = sleep_until(next), if healthy => {}
            () = sleep(COUNT) => publish_counts(&context),
        }
    }
}

/// Returns whether the mirror gives images to the credentials that it is asked with: not if it refused some
/// and answered for none. One alone may be refused for its own sake.
fn opens<'e>(known: impl Iterator<Item = &'e Presence>) -> Option<bool> {
    let mut refused = false;
    for presence in known {
        match presence {
            Presence::Present(_) | Presence::Missing => return Some(true),
            Presence::Unknown(reason) => refused |= *reason == Some(Reason::Unauthorized),
        }
    }
    refused.then_some(false)
}

/// Returns the time between the starts of two sweeps: half of what a proof lasts.
fn period(rules: &Rules, class: Class) -> Duration {
    rules.bound(class) / 2
}

/// Returns the setting that says how long a proof lasts.
const fn bound(kind: Kind, class: Class) -> &'static str {
    match (kind, class) {
        (_, Class::Digest) => "spec.freshness.digest",
        (Kind::Hosted, Class::Tag) => "spec.freshness.tag",
        (Kind::PullThrough, Class::Tag) => "spec.tags.refresh",
    }
}

fn publish_counts(context: &Context) {
    let counts = context.store.index().counts().remove(&context.mirror);
    context
        .metrics
        .set_images(&context.mirror, counts.unwrap_or_default());
}

/// Sweeps one class. It counts as complete unless the mirror failed in between.
async fn run_one(context: &Context, present: &CurrentMirror, class: Class, retries: &mut Retries) {
    let (settings, rules) = (present.settings(), present.rules());
    let asking = asking(settings.kind, class);
    let sweep = plan(context, class, asking, retries);
    let run = Arc::new(Run {
        verifier: Verifier {
            context: context.clone(),
            pace: Arc::new(Pace::new(settings.sweep_rate)),
            asking,
            proven_since: rules.proven_since,
            period: period(&rules, class),
        },
        next: AtomicUsize::new(0),
        aborted: AtomicBool::new(false),
        sweep,
    });
    let mut lanes = JoinSet::new();
    for _ in 0..AT_ONCE.min(run.sweep.images().len()) {
        lanes.spawn(Arc::clone(&run).lane());
    }
    while let Some(ended) = lanes.join_next().await {
        let Ok(in_vain) = ended else {
            run.aborted.store(true, Ordering::Relaxed);
            continue;
        };
        for key in in_vain {
            retries.in_vain(&key, period(&rules, class), run.sweep.started_at);
        }
    }
    // The settings may be others by now.
    let now = run.verifier.present();
    let complete = !run.aborted.load(Ordering::Relaxed) && now.is_some();
    if complete && let Some(present) = now {
        context
            .store
            .index_mut()
            .swept(&context.mirror, class, run.sweep.complete());
        let opens = opens(
            context
                .store
                .index()
                .entries(&context.mirror)
                .map(|(_, entry)| &entry.presence),
        );
        if let Some(opens) = opens {
            context.note_credentials(Refusal::Images, opens);
        }
        let end = end(context, &present, class, run.sweep.started_at);
        let unreadable = unreadable(&context.store.index(), &context.mirror);
        context.reports.swept(&context.mirror, class, end, unreadable);
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

/// Plans a sweep, and forgets before what need not be looked at any more.
fn plan(context: &Context, class: Class, asking: Asking, retries: &mut Retries) -> Sweep {
    let now = clock::now();
    let mut index = context.store.index_mut();
    for key in context.tenure().to_forget(&index, &context.mirror, class, now) {
        index.remove(&context.mirror, key.by_ref());
    }
    retries.tidy(&index, &context.mirror);
    Sweep::plan(&index, &context.mirror, class, now, |key, entry: &Entry| {
        match asking {
            // What has no digest yet is the resolver's.
            Asking::AsKnown => matches!(entry.presence, Presence::Present(_)),
            Asking::AsWritten | Asking::Anew => retries.is_due(key, entry, now),
        }
    })
}

/// Returns for how many images the mirror's answer proves nothing, and how many are known.
fn unreadable(index: &Index, mirror: &str) -> (usize, usize) {
    let proves_nothing = |entry: &Entry| entry.presence == Presence::Unknown(Some(Reason::RegistryError));
    let entries = index.entries(mirror);
    entries.fold((0, 0), |(unreadable, known), (_, entry)| {
        (unreadable + usize::from(proves_nothing(entry)), known + 1)
    })
}

/// Returns what to tell of a sweep that is complete now.
fn end(context: &Context, present: &CurrentMirror, class: Class, started_at: Timestamp) -> SweepEnd {
    let rules = present.rules();
    let now = clock::now();
    let index = context.store.index();
    SweepEnd {
        started_at,
        finished_at: now,
        counts: index.counts_of(&context.mirror, class),
        period: period(&rules, class),
        bound: bound(rules.kind, class),
        tags_wait: context.tenure().tags_wait(&index, &context.mirror, &rules, now),
    }
}

struct Run {
    verifier: Verifier,
    sweep: Sweep,
    /// Position of the next image.
    next: AtomicUsize,
    aborted: AtomicBool,
}

impl Run {
    /// Looks at one image after the other. Returns those that are not there.
    async fn lane(self: Arc<Self>) -> Vec<ImageKey> {
        let mut in_vain = Vec::new();
        while let Some(key) = self.sweep.images().get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.aborted.load(Ordering::Relaxed) {
                break;
            }
            match self.verifier.verify(key.by_ref()).await {
                Verified::Known => {}
                Verified::InVain => in_vain.push(key.clone()),
                Verified::MirrorFails => self.aborted.store(true, Ordering::Relaxed),
            }
        }
        in_vain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::examples::proof;

    #[test]
    fn who_answers_for_one_image_opens_to_the_credentials() {
        let (there, refused) = (
            Presence::Present(proof('a')),
            Presence::Unknown(Some(Reason::Unauthorized)),
        );
        let unknown = Presence::Unknown(None);
        for (known, expected) in [
            (vec![], None),
            (vec![&unknown], None),
            (vec![&refused, &unknown], Some(false)),
            // Whatever its class: else each look at the one and each sweep of the other would be news.
            (vec![&refused, &there], Some(true)),
            (vec![&Presence::Missing, &refused], Some(true)),
        ] {
            assert_eq!(opens(known.clone().into_iter()), expected, "{known:?}");
        }
    }
}
