//! Which tags upstream is asked about now: what a tag in use means there may have changed.
//!
//! Each image has its own time within `tags.refresh`, which its name gives: so the questions are spread evenly, nothing is
//! kept for each image, and whoever leads next goes on where the last one ended. What several mirrors have is asked for
//! once, as often as the most eager of them wants.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use crate::domain::{
    image::{Class, ImageKey, KeyRef},
    mirror::Mirror,
    presence::{Index, Presence},
    time::Timestamp,
};

/// How long ago a Pod used an image at the most that upstream is asked about.
pub const IN_USE: Duration = Duration::from_hours(24);

/// A stretch of time, from `after` on, which is no part of it, up to `until`.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub after: Timestamp,
    pub until: Timestamp,
}

impl Window {
    /// Whether the time of an image falls into it, where each has one in every period.
    fn has(&self, key: KeyRef<'_>, period: Duration) -> bool {
        let period = u64::try_from(period.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let phase = hasher.finish() % period;
        let round = |at: Timestamp| at.as_millis().saturating_add(phase) / period;
        round(self.after) < round(self.until)
    }
}

/// Returns the tags whose time falls into a stretch of time: those in use that some of these mirrors have. Walks all
/// that is known of them.
pub fn due(index: &Index, mirrors: &[&Mirror], window: Window) -> BTreeSet<ImageKey> {
    let mut due = BTreeSet::new();
    for mirror in mirrors {
        let period = mirror.tags.refresh;
        let eager = mirrors.iter().filter(|other| other.tags.refresh < period);
        let eager: Vec<_> = eager.collect();
        let times = index.entries(&mirror.name).filter(|(key, entry)| {
            key.class() == Class::Tag
                && matches!(entry.presence, Presence::Present(_))
                && window.until.since(entry.last_used()) <= IN_USE
                && window.has(*key, period)
                && !eager.iter().any(|other| is_there(index, other, *key))
        });
        due.extend(times.map(|(key, _)| ImageKey::from(key)));
    }
    due
}

/// Whether a mirror has an image, as far as is known.
pub fn is_there(index: &Index, mirror: &Mirror, key: KeyRef<'_>) -> bool {
    let entry = index.get(&mirror.name, key);
    entry.is_some_and(|entry| matches!(entry.presence, Presence::Present(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        examples::{NOW, key, mirror, proof},
        mirror::Tags,
    };

    const HOUR: Duration = Duration::from_hours(1);

    fn refreshing(name: &str, refresh: Duration) -> Mirror {
        Mirror {
            tags: Tags {
                refresh,
                ..Tags::default()
            },
            ..mirror(name, &["docker.io"])
        }
    }

    fn image(number: usize) -> ImageKey {
        format!("docker.io/library/image:{number}").parse().unwrap()
    }

    /// An index in which each of these mirrors has so many images.
    fn index(mirrors: &[&str], images: usize) -> Index {
        let mut index = Index::default();
        for mirror in mirrors {
            for number in 0..images {
                let present = Presence::Present(proof('a'));
                index.write(mirror, image(number).by_ref(), present, NOW, NOW);
            }
        }
        index
    }

    /// Returns how many are due in each of the stretches of a quarter of an hour from now on.
    fn quarters(index: &Index, mirrors: &[&Mirror], count: u32) -> Vec<usize> {
        let quarter = HOUR / 4;
        let times = (0..count).map(|number| {
            let after = NOW.after(quarter * number);
            let until = after.after(quarter);
            due(index, mirrors, Window { after, until }).len()
        });
        times.collect()
    }

    #[test]
    fn each_tag_is_asked_for_once_in_a_period_and_all_are_spread_evenly() {
        let main = refreshing("main", HOUR);
        let index = index(&["main"], 1000);
        let counts = quarters(&index, &[&main], 8);
        assert_eq!(counts[..4].iter().sum::<usize>(), 1000);
        assert_eq!(counts[..4], counts[4..]);
        assert!(
            counts.iter().all(|count| (200..300).contains(count)),
            "{counts:?}"
        );
        let nothing = Window {
            after: NOW,
            until: NOW,
        };
        assert!(due(&index, &[&main], nothing).is_empty());
        // However long nobody looked, each is asked for once.
        let day = Window {
            after: NOW,
            until: NOW.after(HOUR * 20),
        };
        assert_eq!(due(&index, &[&main], day).len(), 1000);
    }

    #[test]
    fn what_several_mirrors_have_is_asked_for_as_the_most_eager_wants() {
        let (main, slow) = (refreshing("main", HOUR), refreshing("slow", HOUR * 7 / 4));
        let both = index(&["main", "slow"], 100);
        let counts = quarters(&both, &[&main, &slow], 28);
        assert_eq!(counts.iter().sum::<usize>(), 700);
        // What the other one alone has keeps its own time.
        let alone = index(&["slow"], 100);
        let counts = quarters(&alone, &[&main, &slow], 28);
        assert_eq!(counts.iter().sum::<usize>(), 400);
    }

    #[test]
    fn nobody_asks_for_digests_for_what_is_not_there_and_for_what_is_not_used() {
        let main = refreshing("main", HOUR);
        let mut index = Index::default();
        let digest = format!("docker.io/library/nginx@sha256:{}", "a".repeat(64));
        let there = || Presence::Present(proof('a'));
        index.write("main", key(&digest), there(), NOW, NOW);
        index.write("main", image(1).by_ref(), Presence::Missing, NOW, NOW);
        let used = NOW.before(IN_USE * 2);
        index.write("main", image(2).by_ref(), there(), NOW, used);
        index.write("main", image(3).by_ref(), there(), NOW, NOW);
        let hour = Window {
            after: NOW,
            until: NOW.after(HOUR),
        };
        assert_eq!(due(&index, &[&main], hour), BTreeSet::from([image(3)]));
    }
}
