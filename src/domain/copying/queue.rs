//! Which image is copied next: namespaces in turns, in each of them what most Pods use first, and none before its time.
//!
//! Times are those of a monotonic clock. A pick looks at what one namespace waits for, and further only where none of
//! that is due; all of it is bounded.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    time::Duration,
};

use super::{Reason, writing::Wait};
use crate::domain::image::ImageKey;

/// How many images may wait for one mirror, each counted for every namespace that wants it.
pub const IMAGES: usize = 20_000;

/// How many images of one namespace may wait, where it says one by one what it wants.
pub const OF_NAMESPACE: usize = 500;

/// How long the name of a namespace may be (RFC 1123, as the API server has it). Whoever reaches `kagami serve` may name
/// anything.
const NAMESPACE: usize = 63;

/// What an image that was not copied is left alone for at least and at most, by what came of it.
const PASSING: (Duration, Duration) = (Duration::from_secs(15), Duration::from_mins(30));
const REFUSED: (Duration, Duration) = (Duration::from_mins(10), Duration::from_hours(6));
const LASTING: (Duration, Duration) = (Duration::from_hours(1), Duration::from_hours(24));

/// How long whoever asks to be asked less is left alone, where it does not say for how long, and at most.
const LIMITED: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(6));

/// The images that one mirror is to be brought.
#[derive(Debug, Default)]
pub struct Queue {
    /// What each namespace wants, and how many of its Pods use it.
    wanted: BTreeMap<Box<str>, HashMap<ImageKey, u32>>,
    /// How many Pods use each image that is wanted, of all namespaces together.
    uses: HashMap<ImageKey, u32>,
    failures: HashMap<ImageKey, Failure>,
    under_way: BTreeSet<ImageKey>,
    /// Registries that asked to be asked less, and until when.
    limited: BTreeMap<Box<str>, Duration>,
    /// The namespace whose turn was the last.
    turn: Option<Box<str>>,
}

#[derive(Clone, Copy, Debug)]
struct Failure {
    reason: Reason,
    times: u32,
    not_before: Duration,
}

/// What one namespace wants: an image, and how many Pods use it.
pub type Wanted = (Box<str>, Vec<(ImageKey, u32)>);

impl Queue {
    /// Takes in everything that is wanted now, in the place of what was before. Past the bound each namespace keeps
    /// its share, of what most Pods use.
    pub fn replace(&mut self, wanted: Vec<Wanted>, now: Duration) {
        let all: usize = wanted.iter().map(|(_, images)| images.len()).sum();
        let share = if all > IMAGES {
            (IMAGES / wanted.len().max(1)).max(1)
        } else {
            IMAGES
        };
        self.wanted = wanted
            .into_iter()
            .take(IMAGES)
            .filter(|(_, images)| !images.is_empty())
            .map(|(namespace, mut images)| {
                if images.len() > share {
                    images.sort_unstable_by(|(a, a_uses), (b, b_uses)| b_uses.cmp(a_uses).then(a.cmp(b)));
                    images.truncate(share);
                }
                (namespace, images.into_iter().collect())
            })
            .collect();
        self.uses.clear();
        for (key, times) in self.wanted.values().flatten() {
            let all = self.uses.entry(key.clone()).or_default();
            *all = all.saturating_add(*times);
        }
        self.tidy(now);
    }

    /// Takes in that a namespace wants an image. Where it wants too many already, the one goes that would have waited
    /// longest for a further try; while none does, the new one is not taken.
    pub fn add(&mut self, namespace: &str, key: &ImageKey, now: Duration) {
        if namespace.len() > NAMESPACE {
            return;
        }
        let all: usize = self.wanted.values().map(HashMap::len).sum();
        let of_namespace = self.wanted.get(namespace);
        if of_namespace.is_some_and(|images| images.contains_key(key)) {
            return;
        }
        if all >= IMAGES || of_namespace.is_some_and(|images| images.len() >= OF_NAMESPACE) {
            let failing = of_namespace.into_iter().flatten().filter_map(|(key, _)| {
                let failure = self.failures.get(key)?;
                (failure.not_before > now).then_some((failure.not_before, key.clone()))
            });
            let Some((_, goes)) = failing.max() else { return };
            let went = self
                .wanted
                .get_mut(namespace)
                .and_then(|images| images.remove(&goes));
            if let Some(all) = self.uses.get_mut(&goes) {
                *all = all.saturating_sub(went.unwrap_or_default());
                if *all == 0 {
                    self.uses.remove(&goes);
                }
            }
        }
        self.wanted
            .entry(namespace.into())
            .or_default()
            .insert(key.clone(), 1);
        let all = self.uses.entry(key.clone()).or_default();
        *all = all.saturating_add(1);
        self.tidy(now);
    }

    /// Forgets what nobody wants any more and whose time has come: before, who comes and goes would be served anew.
    fn tidy(&mut self, now: Duration) {
        if self.failures.len() > IMAGES {
            let wanted = &self.uses;
            self.failures
                .retain(|key, failure| failure.not_before > now && wanted.contains_key(key));
        }
        self.limited.retain(|_, until| *until > now);
    }

    /// Returns the next image that is due, and notes that it is under way.
    pub fn next(&mut self, now: Duration) -> Option<ImageKey> {
        let uses = |key: &ImageKey| self.uses.get(key).copied();
        let after = match &self.turn {
            Some(turn) => Bound::Excluded(&**turn),
            None => Bound::Unbounded,
        };
        let later = self.wanted.range::<str, _>((after, Bound::Unbounded));
        let (namespace, key) = later.chain(&self.wanted).find_map(|(namespace, images)| {
            let due = images
                .keys()
                .filter(|key| self.due_at(key).is_some_and(|due| due <= now));
            let most = due.max_by(|a, b| uses(a).cmp(&uses(b)).then(b.cmp(a)))?;
            Some((namespace.clone(), most.clone()))
        })?;
        self.turn = Some(namespace);
        self.under_way.insert(key.clone());
        Some(key)
    }

    /// Returns when an image may be copied; none while it is.
    fn due_at(&self, key: &ImageKey) -> Option<Duration> {
        if self.under_way.contains(key) {
            return None;
        }
        let failed = self.failures.get(key).map(|failure| failure.not_before);
        let limited = self.limited.get(key.by_ref().host()).copied();
        Some(failed.max(limited).unwrap_or_default())
    }

    /// Returns when the next image is due, if one waits.
    pub fn next_due(&self) -> Option<Duration> {
        self.uses.keys().filter_map(|key| self.due_at(key)).min()
    }

    /// Returns how many images wait, each counted once, those under way and those that failed left out.
    pub fn waiting(&self, now: Duration) -> usize {
        let images = self.uses.keys();
        images
            .filter(|key| self.due_at(key).is_some_and(|due| due <= now))
            .count()
    }

    /// Takes in that an image needs no copy, as it is there or nobody may have it.
    pub fn settled(&mut self, key: &ImageKey) {
        self.under_way.remove(key);
        self.failures.remove(key);
        if self.uses.remove(key).is_none() {
            return;
        }
        self.wanted.retain(|_, images| {
            images.remove(key);
            !images.is_empty()
        });
    }

    /// Takes in that a copy was broken off, by nobody's fault.
    pub fn broken_off(&mut self, key: &ImageKey) {
        self.under_way.remove(key);
    }

    /// Takes in that an image was not copied, and for how long somebody asked to be left alone. Returns after which
    /// time it is tried again.
    pub fn failed(
        &mut self,
        key: &ImageKey,
        reason: Reason,
        is_passing: bool,
        wait: Option<Wait>,
        now: Duration,
    ) -> Duration {
        self.under_way.remove(key);
        let times = self.failures.get(key).map_or(0, |failure| failure.times);
        let pause = if reason == Reason::RateLimited {
            let asked = wait.map(|wait| wait.time);
            let pause = asked
                .unwrap_or(LIMITED.0)
                .clamp(Duration::from_secs(1), LIMITED.1);
            if wait.is_none_or(|wait| !wait.of_mirror) {
                // Whatever else would come from there waits as well.
                let host = key.by_ref().host().into();
                let until = self.limited.entry(host).or_default();
                *until = (*until).max(now + pause);
            }
            pause
        } else {
            pause(reason, is_passing, times)
        };
        self.failures.insert(
            key.clone(),
            Failure {
                reason,
                times: times.saturating_add(1),
                not_before: now + pause,
            },
        );
        pause
    }

    /// Forgets why copies failed: something else is asked for.
    pub fn forgive(&mut self) {
        self.failures.clear();
        self.limited.clear();
    }

    /// Forgets the failures that another login may mend. Tokens are renewed all the time, so the others wait on.
    pub fn forgive_logins(&mut self) {
        self.failures.retain(|_, failure| !is_of_login(failure.reason));
        self.limited.clear();
    }

    /// Takes in that nothing is under way any more: whoever was at work has gone.
    pub fn begin_anew(&mut self) {
        self.under_way.clear();
    }
}

/// Whether another login may be answered otherwise. Some registries say of what needs one that it is not there.
const fn is_of_login(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::SourceUnauthorized
            | Reason::Unauthorized
            | Reason::PushForbidden
            | Reason::RepositoryMissing
            | Reason::ImageMissing
            | Reason::RateLimited
    )
}

/// Returns how long an image is left alone that was not copied for this reason, having failed so many times before.
fn pause(reason: Reason, is_passing: bool, times: u32) -> Duration {
    let (least, most) = if is_passing {
        PASSING
    } else {
        match reason {
            // What the image is, or where it stands.
            Reason::InvalidReference
            | Reason::Excluded
            | Reason::NoMirror
            | Reason::NameTooLong
            | Reason::NameNotAllowed
            | Reason::UnsupportedManifest
            | Reason::PlatformMissing
            | Reason::ImageTooLarge
            | Reason::DigestMismatch
            | Reason::DigestAlgorithmRefused
            | Reason::MediaTypeRefused
            | Reason::SparseIndexRefused
            | Reason::ForeignLayersRefused => LASTING,
            Reason::ImageVanished
            | Reason::MirrorNotWritable
            | Reason::UploadLost
            | Reason::NotReadBack
            | Reason::Unreachable => PASSING,
            _ => REFUSED,
        }
    };
    least.saturating_mul(1 << times.min(12)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(image: &str) -> ImageKey {
        format!("docker.io/library/{image}").parse().unwrap()
    }

    fn wanted(namespace: &str, images: &[(&str, u32)]) -> Wanted {
        let images = images.iter().map(|(image, uses)| (key(image), *uses)).collect();
        (namespace.into(), images)
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn tag(key: &ImageKey) -> String {
        key.to_string().rsplit('/').next().unwrap().to_owned()
    }

    fn all(queue: &mut Queue, now: Duration) -> Vec<String> {
        std::iter::from_fn(|| queue.next(now))
            .map(|key| tag(&key))
            .collect()
    }

    #[test]
    fn namespaces_take_turns_and_in_each_what_most_pods_use_comes_first() {
        let mut queue = Queue::default();
        let many: Vec<String> = (0..20).map(|number| format!("many:{number:02}")).collect();
        let mut of_many: Vec<(&str, u32)> = many.iter().map(|image| (image.as_str(), 5)).collect();
        of_many[7].1 = 6;
        let of_few = [("few:1", 1), ("few:2", 2), ("many:03", 3)];
        queue.replace(vec![wanted("many", &of_many), wanted("few", &of_few)], at(0));
        // `many:03` is used most, by both together.
        assert_eq!(
            all(&mut queue, at(0))[..6],
            ["many:03", "many:07", "few:2", "many:00", "few:1", "many:01"]
        );
    }

    #[test]
    fn an_image_is_under_way_once_and_gone_when_it_is_there() {
        let mut queue = Queue::default();
        queue.add("a", &key("x:1"), at(0));
        queue.add("b", &key("x:1"), at(0));
        assert_eq!(queue.waiting(at(0)), 1);
        assert_eq!(queue.next(at(0)), Some(key("x:1")));
        assert_eq!(
            (queue.next(at(0)), queue.waiting(at(0)), queue.next_due()),
            (None, 0, None)
        );
        queue.broken_off(&key("x:1"));
        assert_eq!(queue.next(at(0)), Some(key("x:1")));
        queue.settled(&key("x:1"));
        assert_eq!((queue.next(at(0)), queue.next_due()), (None, None));
        // Nobody wants it any more while it is under way.
        queue.add("a", &key("y:1"), at(0));
        queue.next(at(0));
        queue.replace(Vec::new(), at(0));
        queue.broken_off(&key("y:1"));
        assert_eq!(queue.next(at(0)), None);
    }

    #[test]
    fn what_failed_waits_by_its_reason_and_longer_each_time() {
        let check = |reason, is_passing, expected: &[Duration]| {
            let mut queue = Queue::default();
            queue.add("a", &key("x:1"), at(0));
            let mut now = at(0);
            for expected in expected {
                assert_eq!(queue.next(now), Some(key("x:1")), "{reason}");
                let pause = queue.failed(&key("x:1"), reason, is_passing, None, now);
                assert_eq!(pause, *expected, "{reason}");
                now += pause;
                let before = now.saturating_sub(at(1));
                assert_eq!(queue.next(before), None, "{reason}");
                assert_eq!(queue.next_due(), Some(now));
            }
        };
        let minutes = Duration::from_mins;
        check(Reason::Unreachable, true, &[at(15), at(30), at(60)]);
        check(Reason::RegistryError, true, &[at(15), at(30), at(60)]);
        check(Reason::RegistryError, false, &[minutes(10), minutes(20)]);
        check(
            Reason::ImageMissing,
            false,
            &[minutes(10), minutes(20), minutes(40)],
        );
        check(Reason::MediaTypeRefused, false, &[minutes(60), minutes(120)]);
        assert_eq!(pause(Reason::ImageMissing, false, 40), REFUSED.1);
        // It is forgotten once something else is asked for.
        let mut queue = Queue::default();
        queue.add("a", &key("x:1"), at(0));
        queue.next(at(0));
        queue.failed(&key("x:1"), Reason::MediaTypeRefused, false, None, at(0));
        queue.forgive();
        assert_eq!(queue.next(at(0)), Some(key("x:1")));
    }

    #[test]
    fn another_login_mends_what_a_login_may_mend() {
        for (reason, expected) in [
            (Reason::SourceUnauthorized, true),
            (Reason::ImageMissing, true),
            (Reason::RateLimited, true),
            (Reason::MediaTypeRefused, false),
            (Reason::ImageTooLarge, false),
        ] {
            let mut queue = Queue::default();
            queue.add("a", &key("x:1"), at(0));
            queue.next(at(0));
            queue.failed(&key("x:1"), reason, false, None, at(0));
            queue.forgive_logins();
            assert_eq!(queue.next(at(0)).is_some(), expected, "{reason}");
        }
    }

    #[test]
    fn a_registry_that_asks_to_be_asked_less_is_left_alone_with_all_its_images() {
        let mut queue = Queue::default();
        let other: ImageKey = "quay.io/a/b:1".parse().unwrap();
        for key in [&key("x:1"), &key("y:1"), &other] {
            queue.add("a", key, at(0));
        }
        assert_eq!(queue.next(at(0)), Some(key("x:1")));
        let wait = Wait {
            of_mirror: false,
            time: at(90),
        };
        queue.failed(&key("x:1"), Reason::RateLimited, true, Some(wait), at(0));
        assert_eq!(queue.next(at(1)), Some(other.clone()));
        assert_eq!(queue.next(at(89)), None);
        assert_eq!(queue.next(at(90)), Some(key("x:1")));
        // The mirror's own limit is no other registry's.
        let wait = Wait {
            of_mirror: true,
            ..wait
        };
        queue.failed(&key("x:1"), Reason::RateLimited, true, Some(wait), at(90));
        assert_eq!(queue.next(at(91)), Some(key("y:1")));
    }

    #[test]
    fn what_is_no_name_of_a_namespace_wants_nothing() {
        let mut queue = Queue::default();
        queue.add(&"a".repeat(NAMESPACE + 1), &key("x:1"), at(0));
        assert_eq!(queue.next(at(0)), None);
        queue.add(&"a".repeat(NAMESPACE), &key("x:1"), at(0));
        assert_eq!(queue.next(at(0)), Some(key("x:1")));
    }

    #[test]
    fn nobody_fills_the_queue() {
        let mut queue = Queue::default();
        let many: Vec<String> = (0..IMAGES).map(|number| format!("many:{number}")).collect();
        let many: Vec<(&str, u32)> = many.iter().map(|image| (image.as_str(), 2)).collect();
        queue.replace(vec![wanted("few", &[("few:1", 1)]), wanted("many", &many)], at(0));
        assert_eq!(queue.waiting(at(0)), IMAGES / 2 + 1);

        let mut queue = Queue::default();
        for number in 0..OF_NAMESPACE {
            queue.add("a", &key(&format!("x:{number}")), at(0));
        }
        queue.add("a", &key("more:1"), at(0));
        assert_eq!(queue.waiting(at(0)), OF_NAMESPACE);
        assert!(!all(&mut queue, at(0)).contains(&"more:1".to_owned()));
        // What fails makes room for what was not tried yet.
        queue.failed(&key("x:0"), Reason::ImageMissing, false, None, at(0));
        queue.add("a", &key("more:1"), at(0));
        assert_eq!(queue.next(at(0)), Some(key("more:1")));
    }
}
