//! What nodes make of a mirror: whether Pods that were sent there get their images.
//!
//! A pull that fails is a question, of one image: Kagami looks at it again, and until then believes what it knew. One
//! namespace's Pods can say no more than that, on however many nodes they are, for their pull secrets, their names and
//! the nodes that they ask for are theirs. Where Pods of two namespaces fail, or a node was told that there is no such
//! image, what is known counts for nothing until the look has answered. Credentials that are refused speak of a Pod's
//! secret, never of an image.
//!
//! Where an image is there and nodes fail to pull it all the same, while the mirror is healthy, nodes do not get
//! what Kagami sees: they lack a way, a password or trust. That ends once some node has got an image since.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

pub use super::rescue::message::Cause;
use super::{
    image::{ImageKey, KeyRef},
    time::Timestamp,
};

/// How long after a failure another one counts as another one: when a mirror dies, many fail at once.
const APART: Duration = Duration::from_secs(5);

/// For how long a failure tells of its mirror.
pub const TELLING: Duration = Duration::from_mins(15);

/// For how long failures count together, and the looks that a namespace asks for.
const TOGETHER: Duration = Duration::from_mins(1);

/// The time between two looks at one image.
const APART_LOOKS: Duration = Duration::from_secs(10);

/// How many looks one namespace's Pods may ask for within a minute.
const LOOKS: u32 = 20;

/// How long after it made an image unknown a namespace cannot do so again by what its nodes do not find.
const RESPECT: Duration = Duration::from_mins(5);

/// How many images are kept in mind, and of each how many places where it failed. Past it, those that failed longest ago
/// are forgotten.
const IMAGES: usize = 1000;
const PLACES: usize = 16;

/// How many namespaces are kept in mind that ask for looks.
const NAMESPACES: usize = 10_000;

/// How one container stands with its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    /// The node has it, and started the container then.
    Done(Timestamp),
    /// The node just tried in vain.
    Failed(Failure),
    /// The node tried in vain and waits before it tries again.
    Waiting(Failure),
}

/// Why a pull failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub cause: Cause,
    /// Kubelet's own word for it.
    pub code: &'static str,
}

/// An image of a Pod that comes from a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    pub mirror: Box<str>,
    /// The key of what the user wrote.
    pub key: ImageKey,
    pub pull: Pull,
}

/// An image that is to be looked at, because a node could not pull it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    pub mirror: Box<str>,
    pub key: ImageKey,
    /// Whether what is known of it is believed until then.
    pub is_believed: bool,
}

/// An image that nodes cannot pull, though it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InVain {
    pub key: ImageKey,
    /// The node that failed last.
    pub node: Box<str>,
    pub failure: Failure,
}

/// The pulls of a cluster's Pods. Of Pods that run nothing is kept.
#[derive(Debug)]
pub struct Pulls {
    /// By namespace and name.
    failing: HashMap<(Box<str>, Box<str>), Failing>,
    /// By mirror and key, for a quarter of an hour.
    failed: HashMap<(Box<str>, ImageKey), Failed>,
    /// The looks that each namespace's Pods asked for: since when, and how many.
    asked: HashMap<Box<str>, (Timestamp, u32)>,
    /// The mirrors from which some Pod got an image, and when one did last.
    done: BTreeMap<Box<str>, Timestamp>,
    /// Since when what Pods got counts.
    since: Timestamp,
    /// The mirrors from which nodes were seen to pull in vain, and what was told of that.
    told: BTreeMap<Box<str>, Told>,
    /// The number of the last list of all Pods.
    listing: u32,
}

/// What is told of a mirror from which nodes pull in vain.
#[derive(Debug)]
struct Told {
    in_vain: InVain,
    since: Timestamp,
    /// When a node failed last, as far as that was seen.
    failed_at: Timestamp,
}

/// A Pod that does not get all of its images.
#[derive(Debug)]
struct Failing {
    /// By mirror and key: whether the last attempt is what the Pod still tells of.
    images: BTreeMap<(Box<str>, ImageKey), bool>,
    /// The list that last named the Pod.
    listing: u32,
}

/// An image that could not be pulled lately.
#[derive(Debug, Default)]
struct Failed {
    places: Vec<Place>,
    /// When a look was asked for.
    asked_at: Option<Timestamp>,
    /// What is to be asked for as soon as it may be: whether the image is believed until then.
    waiting: Option<bool>,
}

/// Where an image could not be pulled.
#[derive(Debug)]
struct Place {
    namespace: Box<str>,
    node: Box<str>,
    before: Option<Timestamp>,
    last: Timestamp,
    failure: Failure,
    /// When it made the image unknown by itself.
    unknown_at: Option<Timestamp>,
}

impl Pulls {
    /// Returns what knows nothing yet. Who got images before `since` tells nothing of whether nodes can pull: others
    /// may have seen them fail after that.
    pub fn new(since: Timestamp) -> Self {
        Self {
            failing: HashMap::new(),
            failed: HashMap::new(),
            asked: HashMap::new(),
            done: BTreeMap::new(),
            since,
            told: BTreeMap::new(),
            listing: 0,
        }
    }

    /// Begins a list of all Pods: those not taken in before [`Pulls::end_listing`] are gone.
    pub const fn begin_listing(&mut self) {
        self.listing = self.listing.wrapping_add(1);
    }

    /// Ends it.
    pub fn end_listing(&mut self) {
        self.failing.retain(|_, pod| pod.listing == self.listing);
    }

    /// Takes in how a Pod stands now, on its node. Returns what is to be looked at because of it.
    pub fn set(
        &mut self,
        (namespace, pod): (&str, &str),
        node: &str,
        seen: &[Pulled],
        now: Timestamp,
    ) -> Vec<Doubt> {
        // Two containers may have one image: it is pulled once for both.
        let mut failed: BTreeMap<(&str, &ImageKey), (bool, Failure)> = BTreeMap::new();
        for Pulled { mirror, key, pull } in seen {
            let (just, failure) = match *pull {
                Pull::Done(started) => {
                    self.note_done(mirror, key, started);
                    continue;
                }
                Pull::Failed(failure) => (true, failure),
                Pull::Waiting(failure) => (false, failure),
            };
            let known = failed.entry((mirror, key)).or_insert((just, failure));
            if just && !known.0 {
                *known = (just, failure);
            }
        }
        let id = (Box::from(namespace), Box::from(pod));
        let before = self.failing.remove(&id);
        if failed.is_empty() {
            return Vec::new();
        }
        let before = before.map(|pod| pod.images).unwrap_or_default();
        let mut doubts = Vec::new();
        let mut images = BTreeMap::new();
        for ((mirror, key), (just, failure)) in failed {
            let image = (Box::from(mirror), key.clone());
            let is_new = match before.get(&image) {
                Some(told) => just && !told,
                None => true,
            };
            if is_new {
                doubts.extend(self.fail(&image, (namespace, node), failure, now));
            }
            images.insert(image, just);
        }
        let pod = Failing {
            images,
            listing: self.listing,
        };
        self.failing.insert(id, pod);
        doubts
    }

    /// Takes in that a container was started with an image then: its node has got it.
    fn note_done(&mut self, mirror: &str, key: &ImageKey, started: Timestamp) {
        if !self.failed.is_empty()
            && let Some(failed) = self.failed.get_mut(&(Box::from(mirror), key.clone()))
        {
            failed.places.retain(|place| place.last > started);
        }
        match self.done.get_mut(mirror) {
            Some(last) => *last = started.max(*last),
            None => {
                self.done.insert(mirror.into(), started);
            }
        }
    }

    /// Takes in that an image could not be pulled. Returns it if it is to be looked at now.
    fn fail(
        &mut self,
        image: &(Box<str>, ImageKey),
        (namespace, node): (&str, &str),
        failure: Failure,
        now: Timestamp,
    ) -> Option<Doubt> {
        if !self.failed.contains_key(image) {
            if self.failed.len() >= IMAGES {
                let oldest = self.failed.iter().min_by_key(|(_, failed)| failed.last());
                let oldest = oldest.map(|(image, _)| image.clone())?;
                self.failed.remove(&oldest);
            }
            self.failed.insert(image.clone(), Failed::default());
        }
        let failed = self.failed.get_mut(image)?;
        failed.add(namespace, node, failure, now);
        if failure.cause == Cause::Refused || !may_ask(&mut self.asked, namespace, now) {
            return None;
        }
        let is_believed = failed.is_believed(namespace, failure, now);
        let waiting = failed.waiting.unwrap_or(true);
        failed.waiting = Some(is_believed && waiting);
        failed.ask(image, now)
    }

    /// Returns what was to be looked at and had been a moment before, and forgets what is long past.
    pub fn due(&mut self, now: Timestamp) -> Vec<Doubt> {
        self.failed
            .retain(|_, failed| failed.last().is_some_and(|last| now.since(last) < TELLING));
        self.asked.retain(|_, (since, _)| now.since(*since) < TOGETHER);
        let failed = self.failed.iter_mut();
        failed
            .filter_map(|(image, failed)| failed.ask(image, now))
            .collect()
    }

    /// Forgets a Pod.
    pub fn remove(&mut self, namespace: &str, pod: &str) {
        self.failing.remove(&(Box::from(namespace), Box::from(pod)));
    }

    /// Returns whether nodes get the images of a mirror that is healthy since then, and if not, one that they do not
    /// get; none if there is nothing to tell by. What is told stays the same for a quarter of an hour while that image
    /// is not got, whatever else fails. `is_there` is whether Kagami sees an image on the mirror.
    pub fn verdict(
        &mut self,
        mirror: &str,
        healthy_since: Timestamp,
        now: Timestamp,
        is_there: impl Fn(KeyRef<'_>) -> bool,
    ) -> Option<Result<(), InVain>> {
        let before = self.told.get(mirror);
        let of_mirror = self.failed.iter().filter(|((of, _), _)| &**of == mirror);
        let in_vain = of_mirror.filter_map(|((_, key), failed)| {
            let place = failed.in_vain(healthy_since, now)?;
            is_there(key.by_ref()).then_some((key, place))
        });
        let in_vain: Vec<_> = in_vain.collect();
        if let Some((key, place)) = in_vain.iter().max_by_key(|(key, place)| (place.last, *key)) {
            let still = before.filter(|told| {
                let mut keys = in_vain.iter().map(|(key, _)| *key);
                now.since(told.since) < TELLING && keys.any(|key| *key == told.in_vain.key)
            });
            let (since, in_vain) = if let Some(told) = still {
                (told.since, told.in_vain.clone())
            } else {
                let in_vain = InVain {
                    key: (*key).clone(),
                    node: place.node.clone(),
                    failure: place.failure,
                };
                (now, in_vain)
            };
            let told = Told {
                in_vain: in_vain.clone(),
                since,
                failed_at: place.last,
            };
            self.told.insert(mirror.into(), told);
            return Some(Err(in_vain));
        }
        let failed_at = before.map_or(self.since, |told| told.failed_at);
        let done_at = self.done.get(mirror)?;
        (*done_at > failed_at).then_some(Ok(()))
    }

    /// Forgets what it knows of mirrors that are none any more.
    pub fn keep_mirrors(&mut self, is_there: impl Fn(&str) -> bool) {
        self.done.retain(|mirror, _| is_there(mirror));
        self.told.retain(|mirror, _| is_there(mirror));
    }
}

impl Failed {
    fn last(&self) -> Option<Timestamp> {
        self.places.iter().map(|place| place.last).max()
    }

    fn add(&mut self, namespace: &str, node: &str, failure: Failure, now: Timestamp) {
        let mut places = self.places.iter_mut();
        if let Some(place) = places.find(|place| &*place.namespace == namespace && &*place.node == node) {
            if now.since(place.last) >= APART {
                place.before = Some(place.last);
            }
            place.last = now;
            place.failure = failure;
            return;
        }
        if self.places.len() >= PLACES
            && let Some(oldest) = (0..self.places.len()).min_by_key(|at| self.places[*at].last)
        {
            self.places.swap_remove(oldest);
        }
        self.places.push(Place {
            namespace: namespace.into(),
            node: node.into(),
            before: None,
            last: now,
            failure,
            unknown_at: None,
        });
    }

    /// Whether what is known of the image is believed until it was looked at, after a failure of that namespace's.
    fn is_believed(&mut self, namespace: &str, failure: Failure, now: Timestamp) -> bool {
        let counts =
            |place: &Place| place.failure.cause != Cause::Refused && now.since(place.last) < TOGETHER;
        let elsewhere = |place: &Place| &*place.namespace != namespace;
        if self.places.iter().any(|place| counts(place) && elsewhere(place)) {
            return false;
        }
        if failure.cause != Cause::NotFound {
            return true;
        }
        let own = |place: &&mut Place| &*place.namespace == namespace;
        let mut own: Vec<_> = self.places.iter_mut().filter(own).collect();
        let said_so = |place: &&mut Place| place.unknown_at.is_some_and(|at| now.since(at) < RESPECT);
        if own.iter().any(said_so) {
            return true;
        }
        for place in &mut own {
            place.unknown_at = Some(now);
        }
        false
    }

    /// Returns what waits to be asked for, if it may be now.
    fn ask(&mut self, (mirror, key): &(Box<str>, ImageKey), now: Timestamp) -> Option<Doubt> {
        if self.asked_at.is_some_and(|at| now.since(at) < APART_LOOKS) {
            return None;
        }
        let is_believed = self.waiting.take()?;
        self.asked_at = Some(now);
        Some(Doubt {
            mirror: mirror.clone(),
            key: key.clone(),
            is_believed,
        })
    }

    /// Returns the place that failed last, where two of them say that nodes cannot pull the image.
    fn in_vain(&self, healthy_since: Timestamp, now: Timestamp) -> Option<&Place> {
        let counts = |at: &Timestamp| *at >= healthy_since && now.since(*at) < TELLING;
        let last = self.places.iter().max_by_key(|place| place.last)?;
        if !counts(&last.last) {
            return None;
        }
        let others = self.places.iter().filter(|place| {
            let refused = [place, last].map(|place| place.failure.cause == Cause::Refused);
            // A secret is its namespace's on every node.
            place.namespace != last.namespace || place.node != last.node && refused == [false; 2]
        });
        let mut times = others
            .flat_map(|place| [place.before, Some(place.last)])
            .flatten();
        times
            .any(|at| counts(&at) && last.last.since(at) >= APART)
            .then_some(last)
    }
}

/// Whether a namespace's Pods may ask for one more look, and takes note of it.
fn may_ask(asked: &mut HashMap<Box<str>, (Timestamp, u32)>, namespace: &str, now: Timestamp) -> bool {
    if !asked.contains_key(namespace) {
        if asked.len() >= NAMESPACES {
            return false;
        }
        asked.insert(namespace.into(), (now, 0));
    }
    let Some((since, looks)) = asked.get_mut(namespace) else {
        return false;
    };
    if now.since(*since) >= TOGETHER {
        (*since, *looks) = (now, 0);
    }
    *looks += 1;
    *looks <= LOOKS
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_FOUND: Failure = Failure {
        cause: Cause::NotFound,
        code: "ErrImagePull",
    };
    const REFUSED: Failure = Failure {
        cause: Cause::Refused,
        code: "ErrImagePull",
    };
    const OTHER: Failure = Failure {
        cause: Cause::Other,
        code: "ErrImagePull",
    };

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + seconds * 1000)
    }

    fn web(pull: Pull) -> [Pulled; 1] {
        [Pulled {
            mirror: "main".into(),
            key: "docker.io/library/web:1".parse().unwrap(),
            pull,
        }]
    }

    struct Scene {
        pulls: Pulls,
        pods: usize,
    }

    impl Scene {
        fn new() -> Self {
            Self {
                pulls: Pulls::new(at(0)),
                pods: 0,
            }
        }

        /// A Pod of that namespace on that node fails once, and goes back to upstream's image. Returns whether the image
        /// is believed until it was looked at; none if nobody is to look.
        fn fails(&mut self, place: &str, failure: Failure, second: u64) -> Option<bool> {
            let (namespace, node) = place.split_once('/')?;
            self.pods += 1;
            let pod = self.pods.to_string();
            let id = (namespace, pod.as_str());
            let doubts = self.pulls.set(id, node, &web(Pull::Failed(failure)), at(second));
            self.pulls.set(id, node, &[], at(second));
            assert!(doubts.len() <= 1);
            doubts.first().map(|doubt| doubt.is_believed)
        }

        fn runs(&mut self, started: u64) {
            let runs = web(Pull::Done(at(started)));
            self.pulls.set(("any", "runs"), "node", &runs, at(started));
        }

        /// Whether nodes can pull, of a mirror that has been healthy since then.
        fn verdict(&mut self, healthy_since: u64, now: u64) -> Option<bool> {
            let verdict = self.pulls.verdict("main", at(healthy_since), at(now), |_| true);
            verdict.map(|verdict| verdict.is_ok())
        }
    }

    #[test]
    fn two_namespaces_or_two_nodes_tell_that_nodes_cannot_pull() {
        let check = |one: &str, other: &str, failure, expected| {
            let mut scene = Scene::new();
            scene.fails(one, failure, 10);
            assert_eq!(scene.verdict(0, 10), None, "{one}");
            scene.fails(other, failure, 20);
            assert_eq!(scene.verdict(0, 20), expected, "{one} {other} {failure:?}");
            // Nobody sees the image there.
            assert_eq!(scene.pulls.verdict("main", at(0), at(20), |_| false), None);
            assert_eq!(scene.pulls.verdict("other", at(0), at(20), |_| true), None);
        };
        for failure in [NOT_FOUND, OTHER] {
            check("a/one", "a/one", failure, None);
            check("a/one", "a/two", failure, Some(false));
            check("a/one", "b/one", failure, Some(false));
        }
        // A secret is the same on every node.
        check("a/one", "a/two", REFUSED, None);
        check("a/one", "b/one", REFUSED, Some(false));
    }

    #[test]
    fn what_is_told_names_the_last_node_the_image_and_kubelets_word() {
        let mut scene = Scene::new();
        scene.fails("a/one", OTHER, 10);
        scene.fails("b/two", NOT_FOUND, 20);
        let verdict = scene.pulls.verdict("main", at(0), at(20), |_| true);
        let expected = InVain {
            key: "docker.io/library/web:1".parse().unwrap(),
            node: "two".into(),
            failure: NOT_FOUND,
        };
        assert_eq!(verdict, Some(Err(expected)));
    }

    #[test]
    fn failures_tell_while_they_are_new_and_of_a_mirror_that_has_been_healthy_all_the_time() {
        let mut scene = Scene::new();
        scene.fails("a/one", OTHER, 10);
        scene.fails("b/two", OTHER, 11);
        assert_eq!(scene.verdict(0, 11), None, "they began together");
        scene.fails("b/two", OTHER, 20);
        assert_eq!(scene.verdict(0, 20), Some(false));
        assert_eq!(scene.verdict(10, 20), Some(false));
        assert_eq!(scene.verdict(11, 20), None, "the first was while it was down");
        assert_eq!(scene.verdict(0, 10 + 899), Some(false));
        assert_eq!(scene.verdict(0, 20 + 900), None);
        assert_eq!(scene.pulls.due(at(20 + 900)), []);
        assert!(scene.pulls.failed.is_empty() && scene.pulls.asked.is_empty());
    }

    #[test]
    fn who_gets_the_image_afterwards_tells_that_nodes_can_pull() {
        let mut scene = Scene::new();
        scene.runs(5);
        assert_eq!(scene.verdict(0, 5), Some(true));
        scene.fails("a/one", OTHER, 10);
        scene.fails("b/two", OTHER, 20);
        // It has run since before.
        scene.runs(5);
        assert_eq!(scene.verdict(0, 20), Some(false));
        scene.runs(30);
        assert_eq!(scene.verdict(0, 30), Some(true));
    }

    #[test]
    fn who_got_an_image_before_nodes_failed_or_anybody_looked_tells_nothing_of_now() {
        let mut scene = Scene::new();
        scene.pulls = Pulls::new(at(100));
        scene.runs(99);
        assert_eq!(
            scene.verdict(0, 100),
            None,
            "the leader before may have told otherwise"
        );
        scene.runs(105);
        assert_eq!(scene.verdict(0, 105), Some(true));
        scene.fails("a/one", OTHER, 110);
        scene.fails("b/two", OTHER, 120);
        assert_eq!(scene.verdict(0, 120), Some(false));
        // Those that failed are given up, and for a quarter of an hour and more nobody pulls anything.
        let later = 120 + TELLING.as_secs();
        assert_eq!(scene.verdict(0, later), None);
        scene.pulls.due(at(later));
        scene.runs(105);
        assert_eq!(scene.verdict(0, 2 * later), None);
        scene.runs(2 * later + 1);
        assert_eq!(scene.verdict(0, 2 * later + 1), Some(true));
        // Of a mirror that is gone nothing is kept.
        scene.pulls.keep_mirrors(|mirror| mirror != "main");
        assert!(scene.pulls.done.is_empty() && scene.pulls.told.is_empty());
    }

    #[test]
    fn what_is_told_stays_for_as_long_as_it_is_true() {
        let mut scene = Scene::new();
        let told = |scene: &mut Scene, second: u64| {
            let verdict = scene.pulls.verdict("main", at(0), at(second), |_| true);
            verdict.unwrap().unwrap_err().node.to_string()
        };
        scene.fails("a/one", OTHER, 10);
        scene.fails("b/two", OTHER, 20);
        assert_eq!(told(&mut scene, 20), "two");
        for second in 21..40 {
            scene.fails(&format!("b/other-{second}"), NOT_FOUND, second);
            assert_eq!(told(&mut scene, second), "two");
        }
        // So does another image's failure, which names no other.
        let [mut other] = web(Pull::Failed(OTHER));
        other.key = "docker.io/library/other:1".parse().unwrap();
        for (second, namespace) in [(50, "c"), (60, "d")] {
            scene
                .pulls
                .set((namespace, "x"), "three", &[other.clone()], at(second));
        }
        assert_eq!(told(&mut scene, 60), "two");
        // Somebody got it meanwhile.
        scene.runs(40);
        assert_eq!(told(&mut scene, 61), "three");
        // While many fail for long, one that may be gone is not named for ever.
        let [mut other] = web(Pull::Failed(OTHER));
        other.key = "docker.io/library/other:1".parse().unwrap();
        for second in (100..1000).step_by(20) {
            let namespace = format!("n-{second}");
            scene
                .pulls
                .set((&namespace, "x"), "four", &[other.clone()], at(second));
            assert_eq!(
                told(&mut scene, second),
                if second < 961 { "three" } else { "four" }
            );
        }
    }

    #[test]
    fn an_attempt_counts_once_however_often_it_is_told() {
        let mut pulls = Pulls::new(at(0));
        let mut asked = |pull, second| {
            let [one] = web(pull);
            // Two containers have the image: the node just tried for one, and the other waits.
            let seen = [
                one.clone(),
                Pulled {
                    pull: Pull::Waiting(OTHER),
                    ..one
                },
            ];
            pulls.set(("a", "web"), "node", &seen, at(second)).len()
        };
        assert_eq!(asked(Pull::Failed(OTHER), 0), 1);
        assert_eq!(asked(Pull::Failed(OTHER), 20), 0);
        assert_eq!(asked(Pull::Waiting(OTHER), 40), 0);
        assert_eq!(asked(Pull::Failed(OTHER), 60), 1);
        assert_eq!(asked(Pull::Waiting(OTHER), 80), 0);
        // Of whom it is told first that it waits has just failed, for all that is known.
        let first = pulls.set(("a", "other"), "node", &web(Pull::Waiting(OTHER)), at(100));
        assert_eq!(first.len(), 1);
    }

    #[test]
    fn an_image_is_looked_at_once_in_ten_seconds() {
        let mut scene = Scene::new();
        assert_eq!(scene.fails("a/one", OTHER, 10), Some(true));
        for second in 11..20 {
            assert_eq!(scene.fails("a/one", OTHER, second), None);
            assert_eq!(scene.pulls.due(at(second)), []);
        }
        // What failed meanwhile is asked for then, whether anybody says anything or not.
        let due = scene.pulls.due(at(20));
        assert_eq!(
            due.iter().map(|doubt| doubt.is_believed).collect::<Vec<_>>(),
            [true]
        );
        assert_eq!(scene.pulls.due(at(60)), []);
    }

    #[test]
    fn one_namespace_makes_no_image_unknown_on_however_many_nodes() {
        let mut scene = Scene::new();
        for round in 0..20 {
            let node = if round % 2 == 0 { "a/one" } else { "a/two" };
            assert_eq!(scene.fails(node, OTHER, 15 * round), Some(true));
        }
        // Another namespace, on the same node or not.
        assert_eq!(scene.fails("b/two", OTHER, 300), Some(false));
        // Long after all others it is alone again; and what waits for its turn is not believed either.
        assert_eq!(scene.fails("a/one", OTHER, 400), Some(true));
        assert_eq!(scene.fails("b/one", OTHER, 401), None);
        assert_eq!(scene.fails("b/one", OTHER, 402), None);
        let due = scene.pulls.due(at(410));
        assert_eq!(
            due.iter().map(|doubt| doubt.is_believed).collect::<Vec<_>>(),
            [false]
        );
    }

    #[test]
    fn what_a_node_does_not_find_is_unknown_at_once_but_not_again_and_again() {
        let mut scene = Scene::new();
        assert_eq!(scene.fails("a/one", NOT_FOUND, 0), Some(false));
        for second in (90..300).step_by(90) {
            assert_eq!(scene.fails("a/one", NOT_FOUND, second), Some(true));
        }
        assert_eq!(scene.fails("a/one", NOT_FOUND, 301), Some(false));
        // Another namespace's word counts by itself.
        assert_eq!(scene.fails("b/one", NOT_FOUND, 400), Some(false));
    }

    #[test]
    fn refused_credentials_speak_of_no_image() {
        let mut scene = Scene::new();
        for (second, place) in [(0, "a/one"), (20, "b/two"), (40, "c/three")] {
            assert_eq!(scene.fails(place, REFUSED, second), None);
        }
        // And do not count beside another failure.
        assert_eq!(scene.fails("d/four", OTHER, 50), Some(true));
        assert_eq!(scene.pulls.due(at(100)), []);
    }

    #[test]
    fn a_namespace_asks_for_so_many_looks_and_others_for_theirs() {
        let mut pulls = Pulls::new(at(0));
        let mut ask = |namespace: &str, image: usize, second| {
            let [mut pulled] = web(Pull::Failed(NOT_FOUND));
            pulled.key = format!("docker.io/library/web:{image}").parse().unwrap();
            let pod = image.to_string();
            pulls.set((namespace, &pod), "node", &[pulled], at(second)).len()
        };
        let all: usize = (0..100).map(|image| ask("a", image, 0)).sum();
        assert_eq!(all, LOOKS as usize);
        assert_eq!(ask("b", 100, 0), 1);
        assert_eq!(ask("a", 101, 59), 0);
        assert_eq!(ask("a", 102, 60), 1);
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let mut pulls = Pulls::new(at(0));
        for number in 0..3 * IMAGES {
            let [mut pulled] = web(Pull::Failed(OTHER));
            pulled.key = format!("docker.io/library/web:{number}").parse().unwrap();
            let text = number.to_string();
            pulls.set((&text, "web"), &text, &[pulled], at(number as u64 / 100));
            pulls.set(
                (&text, "other"),
                &text,
                &web(Pull::Failed(OTHER)),
                at(number as u64 / 100),
            );
        }
        assert!(pulls.failed.len() <= IMAGES);
        assert!(pulls.failed.values().all(|failed| failed.places.len() <= PLACES));
        let last = format!("docker.io/library/web:{}", 3 * IMAGES - 1)
            .parse()
            .unwrap();
        assert!(pulls.failed.contains_key(&("main".into(), last)));
    }

    #[test]
    fn a_list_forgets_the_pods_that_it_does_not_name() {
        let mut pulls = Pulls::new(at(0));
        pulls.set(("a", "web"), "node", &web(Pull::Waiting(OTHER)), at(1));
        pulls.begin_listing();
        pulls.set(("a", "web"), "node", &web(Pull::Waiting(OTHER)), at(30));
        pulls.end_listing();
        assert_eq!(pulls.failing.len(), 1);
        pulls.begin_listing();
        pulls.end_listing();
        assert!(pulls.failing.is_empty());
        pulls.set(("a", "web"), "node", &web(Pull::Waiting(OTHER)), at(60));
        pulls.remove("a", "web");
        assert!(pulls.failing.is_empty());
    }
}
