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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::{
        answer::{Ambiguity, Unreachable},
        examples::{NOW, digest, manifest, mirror, proof},
        presence::{Judgement, Rules},
    };

    const TAGGED: &str = "docker.io/library/nginx:1";

    fn exists(hex: char) -> Answer {
        Answer::Exists(manifest(hex))
    }

    fn index(presence: Presence) -> Index {
        let mut index = Index::default();
        index.write("a", TAGGED, presence, NOW, NOW);
        index
    }

    #[track_caller]
    fn check(known: &Presence, answer: &Answer, expected: &Step) {
        let index = index(known.clone());
        assert_eq!(
            step(index.get("a", TAGGED).unwrap(), answer),
            *expected,
            "{known:?} {answer:?}"
        );
    }

    #[test]
    fn only_what_changed_is_written() {
        let present = Presence::Present(proof('a'));
        let unknown = Presence::Unknown(None);
        check(&present, &exists('a'), &Step::Confirmed);
        check(&present, &exists('b'), &Step::Inspect);
        check(&Presence::Missing, &exists('a'), &Step::Inspect);
        check(&unknown, &exists('a'), &Step::Inspect);
        check(&present, &Answer::Missing, &Step::Write(Presence::Missing));
        check(&Presence::Missing, &Answer::Missing, &Step::Confirmed);
        check(&unknown, &Answer::Missing, &Step::Write(Presence::Missing));
        let unauthorized = Presence::Unknown(Some(Reason::Unauthorized));
        check(&present, &Answer::Unauthorized, &Step::Write(unauthorized));
        let ambiguous = Presence::Unknown(Some(Reason::RegistryError));
        check(
            &present,
            &Answer::Ambiguous(Ambiguity::Html),
            &Step::Write(ambiguous),
        );
        check(
            &present,
            &Answer::RateLimited { retry_after: None },
            &Step::Again(Reason::RateLimited),
        );
        check(
            &present,
            &Answer::ServerError(500),
            &Step::Again(Reason::RegistryError),
        );
        check(
            &present,
            &Answer::Unreachable(Unreachable::Timeout),
            &Step::Again(Reason::MirrorUnhealthy),
        );
    }

    #[test]
    fn a_sweep_walks_the_images_of_its_class_most_used_first() {
        let mut index = Index::default();
        let mut used = |mirror: &str, key: &str, ago: u64| {
            index.write(
                mirror,
                key,
                Presence::Missing,
                NOW,
                NOW.before(Duration::from_secs(ago)),
            );
        };
        used("a", "docker.io/library/old:1", 100);
        used("a", "docker.io/library/new:1", 1);
        used("a", "docker.io/library/between:1", 10);
        let pinned = format!("docker.io/library/pinned@{}", digest('a'));
        used("a", &pinned, 0);
        used("b", "docker.io/library/other:1", 0);
        let images = |class| Sweep::plan(&index, "a", class, NOW).images().to_vec();
        let tags = [
            "docker.io/library/new:1",
            "docker.io/library/between:1",
            "docker.io/library/old:1",
        ];
        assert_eq!(images(Class::Tag), tags.map(Box::from));
        assert_eq!(images(Class::Digest), [Box::from(pinned)]);
    }

    #[test]
    fn a_complete_sweep_proves_what_it_covered_from_its_start_on() {
        let later = NOW.after(Duration::from_hours(1));
        let rules = Rules::of(&mirror("a", &["docker.io"]), NOW);
        let proven = |index: &Index, key: &str| matches!(index.judge("a", key, &rules, later), Judgement::Proven(_, at) if at == later);
        let mut index = index(Presence::Present(proof('a')));
        let sweep = Sweep::plan(&index, "a", Class::Tag, later);
        // Written while the sweep ran, so it cannot say that it saw it.
        index.write(
            "a",
            "docker.io/library/late:1",
            Presence::Present(proof('a')),
            NOW,
            NOW,
        );
        assert!(!proven(&index, TAGGED));
        index.swept("a", Class::Tag, sweep.complete());
        assert!(proven(&index, TAGGED));
        assert!(!proven(&index, "docker.io/library/late:1"));
    }
}
