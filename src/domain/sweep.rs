//! One sweep: looking again at every known image of one class on one mirror.
//!
//! A sweep that ends complete renews every proof it covered without a write per image: only what
//! changed is written. So it may count as complete only if each image was answered conclusively,
//! or was written `Unknown` first.

use super::{
    answer::Answer,
    image::Class,
    presence::{Entry, Index, Presence, Swept, Version, class_of, reason_of},
    reason::Reason,
    time::Timestamp,
};

/// A sweep in progress.
#[derive(Debug)]
pub struct Sweep {
    pub class: Class,
    pub started_at: Timestamp,
    through: Version,
    /// Most used first.
    queue: Vec<Box<str>>,
}

/// What a sweep does with one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// As known: nothing to write, the sweep's end renews the proof.
    Confirmed,
    /// The manifest is there with another digest, or is new: look at it whole, then write.
    Inspect,
    /// Write this.
    Write(Presence),
    /// The mirror asked to wait, or no answer came: ask again, or write `Unknown` if out of tries.
    Again(Reason),
}

impl Sweep {
    /// Plans a sweep over all entries of a class.
    pub fn plan(index: &Index, mirror: &str, class: Class, now: Timestamp) -> Self {
        let mut queue: Vec<_> = index
            .entries(mirror)
            .filter(|(key, _)| class_of(key) == class)
            .map(|(key, entry)| (std::cmp::Reverse(entry.last_used()), Box::<str>::from(key)))
            .collect();
        queue.sort_unstable();
        Self {
            class,
            started_at: now,
            through: index.version(),
            queue: queue.into_iter().map(|(_, key)| key).collect(),
        }
    }

    /// Returns the images to look at, most used first.
    pub fn images(&self) -> &[Box<str>] {
        &self.queue
    }

    /// Returns what the complete sweep proves.
    pub const fn complete(&self) -> Swept {
        Swept {
            started_at: self.started_at,
            through: self.through,
        }
    }
}

/// Returns what an answer to a look at a known image asks for.
pub fn step(entry: &Entry, answer: &Answer) -> Step {
    match (answer, &entry.presence) {
        (Answer::Exists(manifest), Presence::Present(proof)) if manifest.digest == proof.digest => {
            Step::Confirmed
        }
        (Answer::Exists(_), _) => Step::Inspect,
        (Answer::Missing, Presence::Missing) => Step::Confirmed,
        (Answer::Missing, _) => Step::Write(Presence::Missing),
        (Answer::Unauthorized | Answer::Ambiguous(_), _) => Step::Write(Presence::Unknown(reason_of(answer))),
        (Answer::RateLimited { .. } | Answer::ServerError(_) | Answer::Unreachable(_), _) => {
            Step::Again(reason_of(answer).unwrap_or(Reason::Internal))
        }
    }
}
