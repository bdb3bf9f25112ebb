//! Which image is copied next: namespaces in turns, in each of them what most Pods use first, and none before its time.
//!
//! Times are those of a monotonic clock. A pick looks at what one namespace waits for, and further only where none of
//! that is due; all of it is bounded.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    time::Duration,
};

use super::{Reason, writing::Wait};
use crate::domain::{image::ImageKey, names::NAMESPACE_LIMIT};

/// How many images may wait for one mirror, each counted for every namespace that wants it.
pub const IMAGES: usize = 20_000;

/// How many images of one namespace may wait, where it says one by one what it wants.
pub const OF_NAMESPACE: usize = 500;

/// How long it is known that a namespace wants an image that it does not name again.
const NAMED_FOR: Duration = Duration::from_hours(24);

/// The time within which what is sent for a namespace has a bound.
const DAY: Duration = Duration::from_hours(24);

/// What an image that was not copied is left alone for at least and at most, by what came of it.
const PASSING: (Duration, Duration) = (Duration::from_secs(15), Duration::from_mins(30));
const REFUSED: (Duration, Duration) = (Duration::from_mins(10), Duration::from_hours(6));
const LASTING: (Duration, Duration) = (Duration::from_hours(1), Duration::from_hours(24));

/// How long whoever asks to be asked less is left alone, where it does not say for how long, and at most.
const LIMITED: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(6));

/// The images that one mirror is to be brought.
#[derive(Debug, Default)]
pub struct Queue {
    wanted: BTreeMap<Box<str>, HashMap<ImageKey, Want>>,
    /// How many there are of all namespaces together.
    count: usize,
    /// How many Pods use each image that is wanted, of all namespaces together.
    uses: HashMap<ImageKey, u32>,
    failures: HashMap<ImageKey, Failure>,
    /// With the namespaces whose turn it was.
    under_way: BTreeMap<ImageKey, Box<str>>,
    /// Registries that asked to be asked less, and until when.
    limited: BTreeMap<Box<str>, Duration>,
    /// What was sent for namespaces within a day.
    spent: BTreeMap<Box<str>, Spent>,
    /// The namespace whose turn was the last.
    turn: Option<Box<str>>,
    /// When what nobody named for long was forgotten last.
    tidied: Duration,
}

/// What one namespace may have.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// How many of the images that are under way.
    pub at_once: usize,
    /// How many bytes within a day; none is unbounded.
    pub per_day: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Spent {
    since: Duration,
    bytes: u64,
}

impl Spent {
    /// Returns when a namespace may have more, if that is to come.
    fn ends(&self, per_day: Option<u64>, now: Duration) -> Option<Duration> {
        let end = self.since + DAY;
        (per_day.is_some_and(|most| self.bytes >= most) && end > now).then_some(end)
    }
}

/// That a namespace wants an image.
#[derive(Clone, Copy, Debug)]
struct Want {
    /// How many of its Pods use it.
    uses: u32,
    /// When that was told last.
    named: Duration,
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
                let named = |(key, uses)| (key, Want { uses, named: now });
                (namespace, images.into_iter().map(named).collect())
            })
            .collect();
        self.uses.clear();
        self.count = 0;
        for (key, want) in self.wanted.values().flatten() {
            let all = self.uses.entry(key.clone()).or_default();
            *all = all.saturating_add(want.uses);
            self.count += 1;
        }
        self.tidy(now);
    }

    /// Takes in that a namespace wants an image. Where it wants too many already, the one goes that would have waited
    /// longest for a further try; while none does, the new one is not taken. Where all together want too many, the
    /// namespace that wants most makes room for one that wants fewer. Returns whether that was news.
    pub fn add(&mut self, namespace: &str, key: &ImageKey, now: Duration) -> bool {
        if namespace.len() > NAMESPACE_LIMIT {
            return false;
        }
        if now >= self.tidied + NAMED_FOR / 24 {
            self.forget_unnamed(now);
        }
        let of_namespace = self.wanted.get_mut(namespace);
        let count = of_namespace.as_ref().map_or(0, |images| images.len());
        if let Some(want) = of_namespace.and_then(|images| images.get_mut(key)) {
            want.named = now;
            return false;
        }
        if count >= OF_NAMESPACE && !self.make_room(namespace, false, now) {
            return false;
        }
        if self.count >= IMAGES {
            let largest = self.wanted.iter().max_by_key(|(_, images)| images.len());
            let Some((largest, most)) = largest.map(|(name, images)| (name.clone(), images.len())) else {
                return false;
            };
            // One that is among the largest itself takes nothing from others.
            if !self.make_room(&largest, count + 1 < most, now) {
                return false;
            }
        }
        let want = Want { uses: 1, named: now };
        let images = self.wanted.entry(namespace.into()).or_default();
        images.insert(key.clone(), want);
        self.count += 1;
        let all = self.uses.entry(key.clone()).or_default();
        *all = all.saturating_add(1);
        self.tidy(now);
        true
    }

    /// Forgets one image of a namespace: that which waits longest for a further try, or else, if need be, that which was
    /// named longest ago. Returns whether there was one.
    fn make_room(&mut self, namespace: &str, at_any_cost: bool, now: Duration) -> bool {
        let Some(images) = self.wanted.get(namespace) else {
            return false;
        };
        let failing = images.keys().filter_map(|key| {
            let failure = self.failures.get(key)?;
            (failure.not_before > now).then_some((failure.not_before, key))
        });
        let unnamed = || {
            let waiting = images
                .iter()
                .filter(|(key, _)| !self.under_way.contains_key(*key));
            waiting
                .map(|(key, want)| (want.named, key))
                .min()
                .filter(|_| at_any_cost)
        };
        let Some(goes) = failing.max().or_else(unnamed).map(|(_, key)| key.clone()) else {
            return false;
        };
        self.forget(namespace, &goes);
        true
    }

    /// Forgets that a namespace wants an image.
    fn forget(&mut self, namespace: &str, key: &ImageKey) {
        let Some(images) = self.wanted.get_mut(namespace) else {
            return;
        };
        let Some(want) = images.remove(key) else { return };
        if images.is_empty() {
            self.wanted.remove(namespace);
        }
        self.count -= 1;
        if let Some(all) = self.uses.get_mut(key) {
            *all = all.saturating_sub(want.uses);
            if *all == 0 {
                self.uses.remove(key);
            }
        }
    }

    /// Forgets what nobody named for long: where images are named one by one nobody tells that they are not used any
    /// more.
    fn forget_unnamed(&mut self, now: Duration) {
        self.tidied = now;
        let mut old: Vec<(Box<str>, ImageKey)> = Vec::new();
        for (namespace, images) in &self.wanted {
            let unnamed = images.iter().filter(|(_, want)| want.named + NAMED_FOR <= now);
            old.extend(unnamed.map(|(key, _)| (namespace.clone(), key.clone())));
        }
        for (namespace, key) in old {
            self.forget(&namespace, &key);
        }
    }

    /// Forgets what nobody wants any more and whose time has come: before, who comes and goes would be served anew.
    fn tidy(&mut self, now: Duration) {
        // Of those that are wanted there are no more than half as many: each time they are gone through, as many go as came
        // since the last time.
        if self.failures.len() > 2 * IMAGES {
            let wanted = &self.uses;
            self.failures
                .retain(|key, failure| failure.not_before > now && wanted.contains_key(key));
        }
        self.limited.retain(|_, until| *until > now);
    }

    /// Returns the next image that is due, and notes that it is under way; none of a namespace that has its share already,
    /// so that nobody ever waits for all that another one wants.
    pub fn next(&mut self, share: Share, now: Duration) -> Option<ImageKey> {
        let mut under_way: BTreeMap<&str, usize> = BTreeMap::new();
        for namespace in self.under_way.values() {
            *under_way.entry(namespace).or_default() += 1;
        }
        let has_turn = |namespace: &str| {
            let is_free = under_way
                .get(namespace)
                .is_none_or(|count| *count < share.at_once);
            is_free && self.exhausted_until(namespace, share, now).is_none()
        };
        // What failed comes after all that may go well at once.
        let rank = |key: &ImageKey| {
            // That a registry asks to be asked less says nothing of the image.
            let failed = self.failures.get(key);
            let failed = failed.filter(|failure| failure.reason != Reason::RateLimited);
            let failed = failed.map_or(0, |failure| failure.times);
            (Reverse(failed), self.uses.get(key).copied())
        };
        let after = match &self.turn {
            Some(turn) => Bound::Excluded(&**turn),
            None => Bound::Unbounded,
        };
        let later = self.wanted.range::<str, _>((after, Bound::Unbounded));
        let mut all = later
            .chain(&self.wanted)
            .filter(|(namespace, _)| has_turn(namespace));
        let (namespace, key) = all.find_map(|(namespace, images)| {
            let due = images
                .keys()
                .filter(|key| self.due_at(key).is_some_and(|due| due <= now));
            let most = due.max_by(|a, b| rank(a).cmp(&rank(b)).then(b.cmp(a)))?;
            Some((namespace.clone(), most.clone()))
        })?;
        self.turn = Some(namespace.clone());
        self.under_way.insert(key.clone(), namespace);
        Some(key)
    }

    /// Returns when an image may be copied; none while it is.
    fn due_at(&self, key: &ImageKey) -> Option<Duration> {
        if self.under_way.contains_key(key) {
            return None;
        }
        let failed = self.failures.get(key).map(|failure| failure.not_before);
        let limited = self.limited.get(key.by_ref().host()).copied();
        Some(failed.max(limited).unwrap_or_default())
    }

    /// Returns when the next image is due, of those that wait for their time, or for that of a namespace that had its
    /// share of a day, and not for other copies.
    pub fn next_due(&self, share: Share, now: Duration) -> Option<Duration> {
        let due = self.uses.keys().filter_map(|key| self.due_at(key));
        let wanting = self.wanted.keys();
        let exhausted = wanting.filter_map(|namespace| self.exhausted_until(namespace, share, now));
        due.filter(|due| *due > now).chain(exhausted).min()
    }

    /// Returns until when a namespace gets nothing more, as it had its share of a day.
    fn exhausted_until(&self, namespace: &str, share: Share, now: Duration) -> Option<Duration> {
        self.spent.get(namespace)?.ends(share.per_day, now)
    }

    /// Takes in how many bytes were sent for an image that is under way, for the namespace whose turn it was.
    pub fn spend(&mut self, key: &ImageKey, bytes: u64, now: Duration) {
        let Some(namespace) = self.under_way.get(key).filter(|_| bytes > 0) else {
            return;
        };
        if self.spent.len() >= IMAGES {
            self.spent.retain(|_, spent| spent.since + DAY > now);
            if self.spent.len() >= IMAGES && !self.spent.contains_key(namespace) {
                return;
            }
        }
        let fresh = Spent { since: now, bytes: 0 };
        let spent = self.spent.entry(namespace.clone()).or_insert(fresh);
        if spent.since + DAY <= now {
            *spent = fresh;
        }
        spent.bytes = spent.bytes.saturating_add(bytes);
    }

    /// Returns the images that would be due, did not every namespace that wants them have its share of a day already.
    pub fn exhausted(&self, share: Share, now: Duration) -> Vec<ImageKey> {
        if share.per_day.is_none() {
            return Vec::new();
        }
        let (mut over, mut others): (BTreeSet<&ImageKey>, BTreeSet<&ImageKey>) = Default::default();
        for (namespace, images) in &self.wanted {
            let is_over = self.exhausted_until(namespace, share, now).is_some();
            let keys = if is_over { &mut over } else { &mut others };
            keys.extend(images.keys());
        }
        let is_due = |key: &ImageKey| self.due_at(key).is_some_and(|due| due <= now);
        let waiting = over.difference(&others).filter(|key| is_due(key));
        waiting.map(|key| (*key).clone()).collect()
    }

    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.uses.is_empty()
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
        let mut count = 0;
        self.wanted.retain(|_, images| {
            images.remove(key);
            count += images.len();
            !images.is_empty()
        });
        self.count = count;
    }

    /// Whether an image is the only one that is under way of the namespace whose turn it was.
    pub fn is_only_one(&self, key: &ImageKey) -> bool {
        let Some(namespace) = self.under_way.get(key) else {
            return false;
        };
        let of_namespace = self.under_way.values().filter(|other| *other == namespace);
        of_namespace.count() == 1
    }

    /// Returns the namespace whose turn it was when an image that is under way was picked.
    pub fn turn_of(&self, key: &ImageKey) -> Option<&str> {
        self.under_way.get(key).map(|namespace| &**namespace)
    }

    /// Takes in that the namespace whose turn it was is not to have an image. Others that want it wait for it still.
    pub fn declined(&mut self, key: &ImageKey) {
        if let Some(namespace) = self.under_way.remove(key) {
            self.forget(&namespace, key);
        }
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

    /// Forgets the failures that were the mirror's, as it takes copies again. What a quota has no room for waits on: it may
    /// be that of its own project.
    pub fn forgive_mirror(&mut self) {
        self.failures.retain(|_, failure| {
            !matches!(failure.reason, Reason::MirrorNotWritable | Reason::MirrorReadOnly)
        });
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
            | Reason::MirrorReadOnly
            | Reason::QuotaExceeded
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

    const ALL: Share = Share {
        at_once: IMAGES,
        per_day: None,
    };
    const THREE: Share = Share { at_once: 3, ..ALL };

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
        std::iter::from_fn(|| queue.next(ALL, now))
            .map(|key| tag(&key))
            .collect()
    }

    #[test]
    fn what_one_namespace_may_not_have_waits_for_the_others_that_want_it() {
        let mut queue = Queue::default();
        for namespace in ["blue", "red"] {
            assert!(queue.add(namespace, &key("a:1"), at(0)));
        }
        assert_eq!(queue.turn_of(&key("a:1")), None);
        assert_eq!(queue.next(ALL, at(0)), Some(key("a:1")));
        assert_eq!(queue.turn_of(&key("a:1")), Some("blue"));
        queue.declined(&key("a:1"));
        assert_eq!(queue.next(ALL, at(0)), Some(key("a:1")));
        assert_eq!(queue.turn_of(&key("a:1")), Some("red"));
        queue.declined(&key("a:1"));
        assert_eq!(queue.next(ALL, at(0)), None);
        assert!(queue.is_empty());
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
        assert_eq!(queue.next(ALL, at(0)), Some(key("x:1")));
        assert_eq!(
            (
                queue.next(ALL, at(0)),
                queue.waiting(at(0)),
                queue.next_due(ALL, at(0))
            ),
            (None, 0, None)
        );
        queue.broken_off(&key("x:1"));
        assert_eq!(queue.next(ALL, at(0)), Some(key("x:1")));
        queue.settled(&key("x:1"));
        assert_eq!((queue.next(ALL, at(0)), queue.next_due(ALL, at(0))), (None, None));
        // Nobody wants it any more while it is under way.
        queue.add("a", &key("y:1"), at(0));
        queue.next(ALL, at(0));
        queue.replace(Vec::new(), at(0));
        queue.broken_off(&key("y:1"));
        assert_eq!(queue.next(ALL, at(0)), None);
    }

    #[test]
    fn what_failed_waits_by_its_reason_and_longer_each_time() {
        let check = |reason, is_passing, expected: &[Duration]| {
            let mut queue = Queue::default();
            queue.add("a", &key("x:1"), at(0));
            let mut now = at(0);
            for expected in expected {
                assert_eq!(queue.next(ALL, now), Some(key("x:1")), "{reason}");
                let pause = queue.failed(&key("x:1"), reason, is_passing, None, now);
                assert_eq!(pause, *expected, "{reason}");
                now += pause;
                let before = now.saturating_sub(at(1));
                assert_eq!(queue.next(ALL, before), None, "{reason}");
                assert_eq!(queue.next_due(ALL, before), Some(now));
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
        queue.next(ALL, at(0));
        queue.failed(&key("x:1"), Reason::MediaTypeRefused, false, None, at(0));
        queue.forgive();
        assert_eq!(queue.next(ALL, at(0)), Some(key("x:1")));
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
            queue.next(ALL, at(0));
            queue.failed(&key("x:1"), reason, false, None, at(0));
            queue.forgive_logins();
            assert_eq!(queue.next(ALL, at(0)).is_some(), expected, "{reason}");
        }
    }

    #[test]
    fn a_registry_that_asks_to_be_asked_less_is_left_alone_with_all_its_images() {
        let mut queue = Queue::default();
        let other: ImageKey = "quay.io/a/b:1".parse().unwrap();
        for key in [&key("x:1"), &key("y:1"), &other] {
            queue.add("a", key, at(0));
        }
        assert_eq!(queue.next(ALL, at(0)), Some(key("x:1")));
        let wait = Wait {
            of_mirror: false,
            time: at(90),
        };
        queue.failed(&key("x:1"), Reason::RateLimited, true, Some(wait), at(0));
        assert_eq!(queue.next(ALL, at(1)), Some(other.clone()));
        assert_eq!(queue.next(ALL, at(89)), None);
        assert_eq!(queue.next(ALL, at(90)), Some(key("x:1")));
        // The mirror's own limit is no other registry's.
        let wait = Wait {
            of_mirror: true,
            ..wait
        };
        queue.failed(&key("x:1"), Reason::RateLimited, true, Some(wait), at(90));
        assert_eq!(queue.next(ALL, at(91)), Some(key("y:1")));
    }

    #[test]
    fn one_namespace_never_holds_all_slots() {
        let mut queue = Queue::default();
        for image in ["a:1", "a:2", "a:3", "a:4"] {
            queue.add("a", &key(image), at(0));
        }
        for _ in 0..3 {
            assert!(queue.next(THREE, at(0)).is_some());
        }
        assert_eq!(queue.next(THREE, at(0)), None);
        // Its own end is waited for, and no time.
        assert_eq!(queue.next_due(ALL, at(0)), None);
        queue.add("b", &key("b:1"), at(0));
        assert_eq!(queue.next(THREE, at(0)), Some(key("b:1")));
        queue.settled(&key("a:1"));
        assert_eq!(queue.next(THREE, at(0)), Some(key("a:4")));
        // Where there is room for newcomers alone.
        let one = Share { at_once: 1, ..ALL };
        queue.add("a", &key("a:5"), at(0));
        queue.add("b", &key("b:2"), at(0));
        assert_eq!(queue.next(one, at(0)), None);
        queue.add("c", &key("c:1"), at(0));
        queue.add("c", &key("c:2"), at(0));
        assert_eq!(queue.next(one, at(0)), Some(key("c:1")));
        assert!(queue.is_only_one(&key("c:1")) && !queue.is_only_one(&key("a:4")));
        assert_eq!(queue.next(one, at(0)), None);
    }

    #[test]
    fn what_is_sent_for_a_namespace_within_a_day_has_a_bound() {
        let mut queue = Queue::default();
        let share = Share {
            per_day: Some(100),
            ..ALL
        };
        for image in ["x:1", "x:2", "x:3"] {
            queue.add("a", &key(image), at(0));
        }
        // What broke is counted too, and what was begun is brought to its end.
        assert_eq!(queue.next(share, at(10)), Some(key("x:1")));
        queue.spend(&key("x:1"), 99, at(10));
        queue.settled(&key("x:1"));
        assert_eq!(queue.exhausted(share, at(10)), []);
        assert_eq!(queue.next(share, at(20)), Some(key("x:2")));
        queue.spend(&key("x:2"), 500, at(20));
        queue.broken_off(&key("x:2"));
        assert_eq!(queue.next(share, at(20)), None);
        let (before, day) = (DAY + at(9), DAY + at(10));
        assert_eq!(queue.next_due(share, at(20)), Some(day));
        assert_eq!(queue.exhausted(share, at(20)), [key("x:2"), key("x:3")]);
        // Others have shares of their own, also of the same image.
        queue.add("b", &key("x:3"), at(30));
        assert_eq!(queue.exhausted(share, at(30)), [key("x:2")]);
        assert_eq!(queue.next(share, at(30)), Some(key("x:3")));
        queue.settled(&key("x:3"));
        assert_eq!(queue.next(share, before), None);
        queue.add("a", &key("x:2"), before);
        assert_eq!(queue.next(share, day), Some(key("x:2")));
        queue.spend(&key("x:2"), 99, day);
        queue.broken_off(&key("x:2"));
        assert_eq!(queue.next(share, day), Some(key("x:2")));
        // Without a bound nothing is counted against anybody.
        queue.spend(&key("x:2"), 500, day);
        queue.broken_off(&key("x:2"));
        assert_eq!(queue.next(ALL, day), Some(key("x:2")));
    }

    #[test]
    fn what_failed_comes_after_all_that_may_go_well() {
        let mut queue = Queue::default();
        queue.replace(vec![wanted("a", &[("large:1", 9), ("small:1", 1)])], at(0));
        assert_eq!(queue.next(ALL, at(0)), Some(key("large:1")));
        let pause = queue.failed(&key("large:1"), Reason::QuotaExceeded, false, None, at(0));
        assert_eq!(pause, at(15));
        assert_eq!(queue.next(ALL, at(20)), Some(key("small:1")));
        assert_eq!(queue.next(ALL, at(20)), Some(key("large:1")));
        // The mirror takes copies again, which tells nothing of a quota.
        for (reason, expected) in [
            (Reason::MirrorNotWritable, true),
            (Reason::MirrorReadOnly, true),
            (Reason::QuotaExceeded, false),
            (Reason::ImageMissing, false),
        ] {
            queue.failed(&key("large:1"), reason, true, None, at(20));
            queue.forgive_mirror();
            assert_eq!(queue.next(ALL, at(20)).is_some(), expected, "{reason}");
        }
    }

    #[test]
    fn what_is_no_name_of_a_namespace_wants_nothing() {
        let mut queue = Queue::default();
        queue.add(&"a".repeat(NAMESPACE_LIMIT + 1), &key("x:1"), at(0));
        assert_eq!(queue.next(ALL, at(0)), None);
        queue.add(&"a".repeat(NAMESPACE_LIMIT), &key("x:1"), at(0));
        assert_eq!(queue.next(ALL, at(0)), Some(key("x:1")));
    }

    #[test]
    fn what_nobody_names_for_a_day_is_forgotten() {
        let mut queue = Queue::default();
        let hours = Duration::from_hours;
        assert!(queue.add("a", &key("x:1"), at(0)));
        assert!(queue.add("a", &key("y:1"), at(0)));
        assert!(!queue.add("a", &key("x:1"), hours(20)), "no news");
        assert!(queue.add("b", &key("z:1"), hours(25)));
        assert_eq!(all(&mut queue, hours(25)), ["x:1", "z:1"]);
    }

    #[test]
    fn many_namespaces_make_room_for_one_that_wants_less() {
        let mut queue = Queue::default();
        for namespace in 0..IMAGES / OF_NAMESPACE {
            for image in 0..OF_NAMESPACE {
                queue.add(&format!("n{namespace}"), &key(&format!("x:{image}")), at(0));
            }
        }
        assert!(queue.add("few", &key("few:1"), at(1)));
        let of = |queue: &Queue| queue.wanted.values().map(HashMap::len).sum::<usize>();
        assert_eq!((of(&queue), queue.count), (IMAGES, IMAGES));
        assert_eq!(queue.wanted["few"].len(), 1);
        let mut sizes: Vec<usize> = queue.wanted.values().map(HashMap::len).collect();
        sizes.sort_unstable();
        assert_eq!(sizes[..2], [1, OF_NAMESPACE - 1]);
        // The largest take nothing from each other.
        assert!(!queue.add("n0", &key("more:1"), at(1)));
        for namespace in ["n1", "n2"] {
            queue.settled(&key(&format!("{namespace}:1")));
        }
    }

    #[test]
    fn failures_are_gone_through_once_for_many_that_came() {
        let mut queue = Queue::default();
        let fail = |queue: &mut Queue, name: &str, from: usize, to: usize| {
            for number in from..to {
                let key = key(&format!("{name}:{number}"));
                queue.failed(&key, Reason::ImageMissing, false, None, at(0));
            }
        };
        queue.add("a", &key("wanted:0"), at(0));
        fail(&mut queue, "wanted", 0, 1);
        fail(&mut queue, "gone", 0, 2 * IMAGES - 1);
        queue.add("a", &key("x:1"), at(0));
        assert_eq!(queue.failures.len(), 2 * IMAGES);
        fail(&mut queue, "gone", 2 * IMAGES - 1, 2 * IMAGES);
        queue.add("a", &key("x:2"), at(0));
        assert_eq!(queue.failures.len(), 1, "those that somebody wants stay");
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
        assert_eq!(queue.next(ALL, at(0)), Some(key("more:1")));
    }
}
