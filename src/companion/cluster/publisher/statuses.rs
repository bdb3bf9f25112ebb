//! The status of one mirror: what the API server has of it, and what it should say. A plan; nothing here
//! speaks to anybody.
//!
//! The end of a sweep is told only once nothing is left that the API server has and that is known not to be
//! true, and once the watch of images has reached the version up to which readers will believe it.

use tokio::time::Instant;

use crate::{
    api::v1alpha1::ImageMirrorStatus,
    companion::{
        cluster::{
            mirrors::MirrorResource,
            status::{self, Seen},
        },
        mirror::reports::SweepEnd,
    },
    domain::{health::Health, image::Class, presence::Version, time::Timestamp},
};

use super::images::Images;

/// The pause before a status that the API server refused is tried again.
const REFUSED: std::time::Duration = std::time::Duration::from_mins(1);

/// The same where there was no answer, or no such mirror: the watch will tell.
const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// How long the end of a sweep waits for what cannot be written before that is told.
const HELD: std::time::Duration = std::time::Duration::from_mins(1);

/// How often another cause of the same health is told: two may take turns.
const CAUSE: std::time::Duration = std::time::Duration::from_mins(1);

/// The ends of sweeps over tags and digests.
type Ends = [Option<SweepEnd>; 2];

/// A status to send.
#[derive(Clone, Debug)]
pub(super) struct StatusWrite {
    /// The version that it was computed from.
    pub(super) version: u64,
    pub(super) current: ImageMirrorStatus,
    pub(super) next: ImageMirrorStatus,
    /// The ends of sweeps that it tells.
    ends: Ends,
    uid: String,
}

/// What became of it.
#[derive(Debug)]
pub(super) enum StatusOutcome {
    /// The API server has this, of that version.
    Stored(Box<ImageMirrorStatus>, u64),
    /// Somebody else was faster, and the API server has this.
    Changed(Box<ImageMirrorStatus>, u64),
    /// The API server will not have it.
    Refused,
    /// No answer, one that says to try again later, or no such mirror.
    Failed,
}

/// The status of one mirror.
#[derive(Debug, Default)]
pub(super) struct Status {
    uid: String,
    /// What this process wrote, where the watch has not brought it yet.
    ours: Option<(u64, ImageMirrorStatus)>,
    /// What was sent last, and what the API server made of it: an older definition knows less.
    answered: Option<(ImageMirrorStatus, ImageMirrorStatus)>,
    /// Ends of sweeps not told yet.
    waiting: Ends,
    /// Starts of the sweeps taken in last.
    taken: [Option<Timestamp>; 2],
    /// The version through which the waiting ends hold; none until everything before was written.
    through: Option<Version>,
    /// Since when some end waits.
    held_since: Option<Instant>,
    not_before: Option<Instant>,
    /// When a health was told last.
    health_told_at: Option<Instant>,
    is_busy: bool,
}

impl Status {
    /// Takes in the resource as the watch has it. Returns whether it is another one than the one before of
    /// its name.
    pub(super) fn watched(&mut self, resource: &MirrorResource) -> bool {
        let is_another = self.uid != resource.document.uid;
        let is_first = self.uid.is_empty();
        if is_another {
            *self = Self {
                uid: resource.document.uid.clone(),
                taken: self.taken,
                is_busy: self.is_busy,
                ..Self::default()
            };
        }
        self.ours.take_if(|(version, _)| resource.version() >= *version);
        is_another && !is_first
    }

    /// Takes in that the API server may have an older status than was written.
    pub(super) fn forget(&mut self) {
        self.ours = None;
        self.answered = None;
    }

    /// Takes in the end of a sweep. Returns whether it is a new one.
    pub(super) fn swept(&mut self, class: Class, end: SweepEnd) -> bool {
        let at = position(class);
        let is_new = self.taken[at].replace(end.started_at) != Some(end.started_at);
        if is_new {
            self.waiting[at] = Some(end);
            self.through = None;
        }
        is_new
    }

    /// Returns the classes of the sweeps whose ends are not told yet.
    pub(super) fn waiting(&self) -> impl Iterator<Item = Class> {
        let waiting = self.waiting.map(|end| end.is_some());
        Class::ALL
            .into_iter()
            .filter(move |class| waiting[position(*class)])
    }

    /// Returns the health that the API server has.
    pub(super) fn health(&self, resource: &MirrorResource) -> Option<Health> {
        status::health(self.current(resource).1)
    }

    /// Returns what the conditions say that the API server has.
    pub(super) fn conditions(&self, resource: &MirrorResource) -> Vec<status::Holds> {
        status::holds(self.current(resource).1)
    }

    fn current<'a>(&'a self, resource: &'a MirrorResource) -> (u64, &'a ImageMirrorStatus) {
        match &self.ours {
            Some((version, status)) => (*version, status),
            None => (resource.version(), &resource.document.status),
        }
    }

    /// Returns what to send if the status is not as it should be, and notes that it is under way. `reached`
    /// is how far the watch of images has come.
    pub(super) fn next(
        &mut self,
        resource: &MirrorResource,
        seen: Seen<'_>,
        images: &Images,
        reached: Version,
        (instant, now): (Instant, Timestamp),
    ) -> Option<StatusWrite> {
        if self.is_busy || self.not_before.is_some_and(|until| until > instant) {
            return None;
        }
        // The watch may have told something since what waits for a look was hurried.
        self.through = if images.is_settled(self.waiting()) {
            Some(self.through.unwrap_or_else(|| images.through()))
        } else {
            None
        };
        let through = self.through.filter(|through| *through <= reached);
        let ends = match through {
            Some(_) => self.waiting,
            None => Ends::default(),
        };
        self.held_since = if through.is_none() && self.waiting().next().is_some() {
            self.held_since.or(Some(instant))
        } else {
            None
        };
        let held = self.held_since.map(|since| instant.duration_since(since));
        let is_held = held.is_some_and(|held| held >= HELD);
        let seen = Seen {
            sweeps: ends.map(|end| Some((end?, through?.0))),
            not_written: is_held.then(|| images.hindrance()).flatten(),
            cause_is_due: self
                .health_told_at
                .is_none_or(|at| instant.duration_since(at) >= CAUSE),
            ..seen
        };
        let (version, current) = self.current(resource);
        let next = status::plan(current, &seen, now);
        let answered = self.answered.as_ref();
        let is_known = answered.is_some_and(|(sent, stored)| *sent == next && stored == current);
        let write = (next != *current && !is_known).then(|| StatusWrite {
            version,
            current: current.clone(),
            next,
            ends,
            uid: self.uid.clone(),
        });
        if through.is_some() {
            self.waiting = Ends::default();
            self.through = None;
        }
        self.is_busy = write.is_some();
        write
    }

    /// Takes in what became of a write.
    pub(super) fn done(&mut self, write: StatusWrite, outcome: StatusOutcome, now: Instant) {
        self.is_busy = false;
        match outcome {
            StatusOutcome::Stored(stored, version) => {
                if write.next.health != write.current.health {
                    self.health_told_at = Some(now);
                }
                self.answered = Some((write.next, (*stored).clone()));
                self.ours = Some((version, *stored));
                return;
            }
            StatusOutcome::Changed(stored, version) => self.ours = Some((version, *stored)),
            StatusOutcome::Refused => self.not_before = Some(now + REFUSED),
            StatusOutcome::Failed => self.not_before = Some(now + PAUSE),
        }
        if write.uid != self.uid {
            return;
        }
        for (waiting, end) in self.waiting.iter_mut().zip(write.ends) {
            *waiting = waiting.or(end);
        }
    }
}

const fn position(class: Class) -> usize {
    match class {
        Class::Tag => 0,
        Class::Digest => 1,
    }
}
