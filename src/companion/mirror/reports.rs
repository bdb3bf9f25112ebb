//! What the workers tell of their work, for whoever carries it on to others.
//!
//! Only the last of everything is kept. `kagami serve` has nobody to tell.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use crate::domain::{image::Class, presence::Counts, time::Timestamp};

/// The end of a complete sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepEnd {
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub counts: Counts,
    /// The time between the starts of two sweeps that keeps proofs fresh.
    pub period: Duration,
    /// The setting that says how long they last.
    pub bound: &'static str,
    /// Whether tags of a pull-through mirror wait longer to be resolved anew than they should.
    pub tags_wait: bool,
}

/// What the workers of one mirror told last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// When the prober last ended a round.
    pub probed_at: Option<Instant>,
    /// Whether the mirror takes the credentials it is asked with; none before the first answer.
    pub credentials_accepted: Option<bool>,
    /// Whether nodes get its images; none before there was a Pod to tell by.
    pub nodes_can_pull: Option<bool>,
    pub tags: Option<SweepEnd>,
    pub digests: Option<SweepEnd>,
}

impl Report {
    /// Returns the end of the last complete sweep of a class.
    pub const fn sweep(&self, class: Class) -> Option<SweepEnd> {
        match class {
            Class::Tag => self.tags,
            Class::Digest => self.digests,
        }
    }
}

/// The reports of all mirrors. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Reports(Arc<watch::Sender<BTreeMap<String, Report>>>);

impl Reports {
    /// Returns the last report of a mirror's workers.
    pub fn of(&self, mirror: &str) -> Report {
        self.0.borrow().get(mirror).copied().unwrap_or_default()
    }

    /// Returns what changes when there is more to tell than another round of a prober.
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<String, Report>> {
        self.0.subscribe()
    }

    pub(super) fn probed(&self, mirror: &str) {
        self.tell(mirror, |report| {
            report.probed_at = Some(Instant::now());
            false
        });
    }

    pub(super) fn credentials(&self, mirror: &str, accepted: bool) {
        self.tell(mirror, |report| {
            report.credentials_accepted.replace(accepted) != Some(accepted)
        });
    }

    pub(in crate::companion) fn nodes(&self, mirror: &str, can_pull: bool) {
        self.tell(mirror, |report| {
            report.nodes_can_pull.replace(can_pull) != Some(can_pull)
        });
    }

    pub(super) fn swept(&self, mirror: &str, class: Class, end: SweepEnd) {
        self.tell(mirror, |report| {
            match class {
                Class::Tag => report.tags = Some(end),
                Class::Digest => report.digests = Some(end),
            }
            true
        });
    }

    pub(super) fn forget(&self, mirror: &str) {
        self.0
            .send_if_modified(|reports| reports.remove(mirror).is_some());
    }

    /// Changes a report and wakes listeners where the change is worth it.
    fn tell(&self, mirror: &str, change: impl FnOnce(&mut Report) -> bool) {
        self.0.send_if_modified(|reports| {
            if !reports.contains_key(mirror) {
                reports.insert(mirror.to_owned(), Report::default());
            }
            reports.get_mut(mirror).is_some_and(change)
        });
    }
}
