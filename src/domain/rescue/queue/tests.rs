use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::json;

use super::*;
use crate::domain::{
    examples::{NOW, key, mirror, proof, snapshot},
    health::State,
    mirror::Mirror,
    names::{ORIGINAL_IMAGE_PREFIX, RESCUED_ANNOTATION},
    presence::Presence,
    rescue::Container,
    routing::Routing,
    selector::Labels,
};

use super::{
    attempts::FRESH,
    nodes::TELLING,
    upstreams::{ALONE, SILENT, TELLING as BELIEVED},
};

const MIRRORED: &str = "a.example.com/docker.io/library/nginx:1.29";

/// A queue, and what Pods are judged by.
struct Hospital {
    queue: Queue,
    routing: Routing,
    /// What is seen of mirrors: nothing.
    snapshot: Snapshot,
    index: Index,
    /// Where Pods may go forward to.
    registries: Vec<String>,
    now: Timestamp,
}

/// What a test says of a Pod.
#[derive(Clone, Copy)]
struct Case<'a> {
    namespace: &'a str,
    name: &'a str,
    owner: Option<&'a str>,
    version: &'a str,
    image: &'a str,
    reason: &'a str,
    /// What kubelet says of why.
    why: &'a str,
    node: &'a str,
    /// Seconds since the beginning.
    created: u64,
    is_ready: bool,
    is_listed: bool,
}

const CASE: Case<'_> = Case {
    namespace: "team",
    name: "web",
    owner: None,
    version: "1",
    image: MIRRORED,
    reason: "ErrImagePull",
    why: "",
    node: "node",
    created: 0,
    is_ready: false,
    is_listed: false,
};

impl Hospital {
    fn new() -> Self {
        Self::with(mirror("a", &["docker.io"]))
    }

    fn with(mirror: Mirror) -> Self {
        let mut queue = Queue::default();
        queue.begin_listing();
        queue.end_listing();
        Self {
            queue,
            routing: Routing::compile(vec![mirror]),
            snapshot: Snapshot::default(),
            index: Index::default(),
            registries: Vec::new(),
            now: NOW,
        }
    }

    fn take(&mut self, case: Case<'_>) -> bool {
        let annotations = [(format!("{ORIGINAL_IMAGE_PREFIX}app"), "nginx:1.29".to_owned())].into();
        self.take_with(case, &annotations)
    }

    /// Takes in a Pod that Kagami did not rewrite.
    fn take_unrecorded(&mut self, case: Case<'_>) -> bool {
        self.take_with(case, &BTreeMap::new())
    }

    fn take_with(&mut self, case: Case<'_>, annotations: &BTreeMap<String, String>) -> bool {
        let message = format!("Back-off pulling image \"{}\"{}", case.image, case.why);
        let container = Container {
            name: "app",
            image: case.image,
            waiting: (!case.is_ready).then_some((case.reason, message.as_str())),
            is_running: case.is_ready,
            ..Container::default()
        };
        let uid = format!("{}/{}", case.namespace, case.name);
        let pod = Pod {
            uid: &uid,
            namespace: case.namespace,
            name: case.name,
            resource_version: case.version,
            created: Some(NOW.after(Duration::from_secs(case.created))),
            node: case.node,
            owner: case.owner,
            is_ready: case.is_ready,
            annotations: Some(annotations),
            containers: vec![container],
            ..Pod::default()
        };
        let left_alone = BTreeSet::new();
        let known = Known {
            routing: &self.routing,
            former: &[],
            left_alone: &left_alone,
        };
        let seen = if case.is_listed {
            Seen::Listed
        } else {
            Seen::Told {
                after: Some(self.now),
            }
        };
        self.queue.take(&pod, &known, seen, self.now)
    }

    /// Takes in that a Pod which is stuck was tried again, and failed.
    fn fail_again(&mut self, case: Case<'_>) {
        for (reason, version) in [("ImagePullBackOff", "between"), ("ErrImagePull", case.version)] {
            self.take(Case {
                reason,
                version,
                is_listed: false,
                ..case
            });
        }
    }

    fn remove(&mut self, case: Case<'_>) {
        let uid = format!("{}/{}", case.namespace, case.name);
        self.queue.remove(&Pod {
            uid: &uid,
            namespace: case.namespace,
            name: case.name,
            ..Pod::default()
        });
    }

    fn next(&mut self) -> Next {
        let by = Sight {
            snapshot: &self.snapshot,
            index: &self.index,
            registries: &self.registries,
        };
        self.queue.next(&by, self.now)
    }

    fn order(&mut self) -> Option<Order> {
        match self.next() {
            Next::Order(order) => Some(*order),
            Next::In(_) | Next::Nothing => None,
        }
    }

    /// Returns the Pods in the order in which they are turned.
    fn all(&mut self) -> Vec<String> {
        let names = std::iter::from_fn(|| {
            let PodId { namespace, name, .. } = self.order()?.pod;
            Some(format!("{namespace}/{name}"))
        });
        names.collect()
    }

    fn later(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
    }
}

#[test]
fn each_version_is_turned_once() {
    let mut hospital = Hospital::new();
    assert!(hospital.take(CASE));
    let order = hospital.order().unwrap();
    assert_eq!((order.turned.len(), &*order.turned[0].to), (1, "nginx:1.29"));
    assert_eq!(hospital.order(), None);
    hospital.take(CASE);
    assert_eq!(hospital.order(), None, "the same version again, as by a list");
    hospital.queue.end(&order.pod, Ending::Changed, hospital.now);
    assert_eq!(hospital.order(), None, "its next version will tell");
    hospital.take(Case { version: "2", ..CASE });
    assert!(hospital.order().is_some());
}

/// A status is as old as kubelet's last round: its node may be inside a pull by now, and what it shows as waiting may run.
#[test]
fn a_pod_is_turned_just_after_a_failure_and_else_after_the_next() {
    let check = |case: Case<'_>, seconds: u64, at_once: bool| {
        let mut hospital = Hospital::new();
        hospital.take(case);
        hospital.later(seconds);
        // Whatever changes of it says nothing new.
        hospital.take(Case { version: "2", ..case });
        assert_eq!(hospital.queue.waiting(), 1);
        assert_eq!(hospital.order().is_some(), at_once, "after {seconds} s");
        if !at_once {
            assert_eq!(hospital.next(), Next::Nothing);
            hospital.later(100);
            hospital.fail_again(Case { version: "3", ..case });
            assert_eq!(hospital.all(), ["team/web"]);
        }
        assert_eq!(hospital.queue.waiting(), 0);
        assert!(hospital.queue.fresh.is_empty());
    };
    check(CASE, 0, true);
    check(CASE, FRESH.as_secs() - 1, true);
    check(CASE, FRESH.as_secs(), false);
    let with = |reason| Case { reason, ..CASE };
    check(with("RegistryUnavailable"), 0, true);
    // Between two attempts, or where a node cannot even look, nobody knows when the next one is.
    check(with("ImagePullBackOff"), 0, false);
    check(with("ImageInspectError"), 0, false);
    let listed = Case {
        is_listed: true,
        ..CASE
    };
    check(listed, 0, false);
}

/// One that is due and waits for its turn meanwhile is due no more.
#[test]
fn who_waits_for_too_long_for_a_turn_waits_for_the_next_failure() {
    let mut hospital = Hospital::new();
    for name in ["one", "two"] {
        hospital.take(Case { name, ..CASE });
    }
    assert!(hospital.order().is_some());
    hospital.later(FRESH.as_secs());
    assert_eq!(hospital.next(), Next::Nothing);
    assert_eq!(hospital.queue.waiting(), 1);
    for name in ["one", "two"] {
        hospital.fail_again(Case {
            name,
            version: "2",
            ..CASE
        });
    }
    assert_eq!(hospital.all().len(), 2);
}

/// While one is tried in vain, another one of the same Pod may be inside a pull.
#[test]
fn of_a_pods_containers_those_are_turned_that_failed_just_now() {
    let mut hospital = Hospital::new();
    let annotations: BTreeMap<_, _> = ["a", "b"]
        .map(|name| (format!("{ORIGINAL_IMAGE_PREFIX}{name}"), "nginx:1.29".to_owned()))
        .into();
    let message = format!("Back-off pulling image \"{MIRRORED}\"");
    let turned = |hospital: &mut Hospital, version: &str, reasons: [&'static str; 2]| -> Vec<String> {
        let containers = ["a", "b"]
            .into_iter()
            .zip(reasons)
            .map(|(name, reason)| Container {
                name,
                image: MIRRORED,
                waiting: Some((reason, &message)),
                ..Container::default()
            });
        let pod = Pod {
            uid: "u",
            namespace: "team",
            name: "web",
            resource_version: version,
            created: Some(NOW),
            annotations: Some(&annotations),
            containers: containers.collect(),
            ..Pod::default()
        };
        let left_alone = BTreeSet::new();
        let known = Known {
            routing: &hospital.routing,
            former: &[],
            left_alone: &left_alone,
        };
        let seen = Seen::Told {
            after: Some(hospital.now),
        };
        hospital.queue.take(&pod, &known, seen, hospital.now);
        let turned = hospital.order().map(|order| order.turned);
        hospital.later(1);
        let names = turned
            .iter()
            .flatten()
            .map(|turning| turning.container.to_string());
        names.collect()
    };
    let (fails, waits) = ("ErrImagePull", "ImagePullBackOff");
    assert_eq!(turned(&mut hospital, "1", [fails, waits]), ["a"]);
    assert_eq!(turned(&mut hospital, "2", [waits, fails]), ["a", "b"]);
    hospital.later(10);
    let nothing: [&str; 0] = [];
    assert_eq!(turned(&mut hospital, "3", [waits, waits]), nothing);
    assert_eq!(turned(&mut hospital, "4", [waits, fails]), ["b"]);
}

/// Kubelet shows what it has started as waiting until it has pulled what the others need: of several containers one may
/// run, where the mirror is not as dead as it seems.
#[test]
fn of_several_containers_none_is_turned_at_any_time() {
    let annotations = BTreeMap::from(["a", "b"].map(|name| {
        let record = format!("{ORIGINAL_IMAGE_PREFIX}{name}");
        (record, "nginx:1.29".to_owned())
    }));
    let message = format!("Back-off pulling image \"{MIRRORED}\"");
    let container = |name, is_running: bool| Container {
        name,
        image: MIRRORED,
        waiting: (!is_running).then_some(("ErrImagePull", message.as_str())),
        is_running,
        ..Container::default()
    };
    for (b_runs, expected) in [(false, false), (true, true)] {
        let mut hospital = Hospital::new();
        hospital
            .queue
            .set_dead(Dead::from([("a".into(), NOW)]), hospital.now);
        let left_alone = BTreeSet::new();
        let known = Known {
            routing: &hospital.routing,
            former: &[],
            left_alone: &left_alone,
        };
        let pod = Pod {
            uid: "u",
            namespace: "team",
            name: "web",
            resource_version: "1",
            node: "node",
            annotations: Some(&annotations),
            containers: vec![container("a", false), container("b", b_runs)],
            ..Pod::default()
        };
        let seen = Seen::Told { after: Some(NOW) };
        hospital.queue.take(&pod, &known, seen, NOW);
        hospital.later(FRESH.as_secs());
        assert_eq!(hospital.order().is_some(), expected);
    }
}

/// While a mirror is dead, whatever its Pods try is in vain: one that failed since then is turned at any time, also where
/// the failure may have been told late.
#[test]
fn what_fails_while_its_mirror_is_dead_is_turned_at_any_time() {
    let dead = |seconds| Dead::from([("a".into(), NOW.after(Duration::from_secs(seconds)))]);
    let check = |since: Option<u64>, mirror: &str, until: Option<u64>, expected: bool| {
        let mut hospital = Hospital::new();
        let dead = |seconds| Dead::from([(mirror.into(), NOW.after(Duration::from_secs(seconds)))]);
        if let Some(since) = since {
            hospital.queue.set_dead(dead(since), hospital.now);
        }
        hospital.later(10);
        hospital.take(CASE);
        hospital.later(100);
        if until.is_some() {
            hospital.queue.set_dead(Dead::default(), hospital.now);
        }
        assert_eq!(hospital.queue.waiting(), 1);
        assert_eq!(
            hospital.order().is_some(),
            expected,
            "{since:?} {mirror} {until:?}"
        );
    };
    check(Some(10), "a", None, true);
    check(Some(0), "a", None, true);
    // What was tried before that may have gone well.
    check(Some(11), "a", None, false);
    check(Some(0), "another", None, false);
    check(Some(0), "a", Some(100), false);
    check(None, "a", None, false);

    // It is told at once where it had not waited for that.
    let mut hospital = Hospital::new();
    hospital.later(10);
    hospital.take(CASE);
    hospital.later(FRESH.as_secs());
    assert_eq!(hospital.order(), None);
    hospital.queue.set_dead(dead(5), hospital.now);
    assert!(hospital.order().is_some());
    // Of one that was listed nobody knows when it failed.
    hospital.take(Case {
        name: "listed",
        is_listed: true,
        ..CASE
    });
    assert_eq!(hospital.order(), None);
}

/// It would seem fresh once more.
#[test]
fn once_the_clock_was_set_back_nothing_is_fresh() {
    let mut hospital = Hospital::new();
    hospital.later(60);
    hospital.take(CASE);
    hospital.now = NOW.after(Duration::from_secs(30));
    hospital.queue.forget_times(hospital.now);
    assert_eq!(hospital.order(), None);
    hospital.later(31);
    assert_eq!(hospital.order(), None);
    hospital.fail_again(Case { version: "2", ..CASE });
    assert!(hospital.order().is_some());
}

/// Pods that fail again and again as kubelet writes it.
struct Ward {
    hospital: Hospital,
    /// What comes next of a Pod: when, and which.
    events: BTreeSet<(u64, usize)>,
    pods: Vec<Patient>,
}

#[derive(Clone, Copy, Default)]
struct Patient {
    attempts: u32,
    attempted_at: Option<u64>,
    fails: bool,
    version: u64,
}

impl Ward {
    /// Returns Pods of which each is tried when `begins` says, in milliseconds: for the first time, or after so many
    /// attempts as one that was listed.
    fn new(count: usize, attempts: u32, begins: impl Fn(u64) -> u64) -> Self {
        let patient = Patient {
            attempts,
            ..Patient::default()
        };
        let mut ward = Self {
            hospital: Hospital::new(),
            events: BTreeSet::new(),
            pods: vec![patient; count],
        };
        for number in 0..count {
            if attempts > 0 {
                ward.tell(number, "ImagePullBackOff", true);
            }
            ward.events.insert((begins(number as u64), number));
        }
        ward
    }

    fn tell(&mut self, number: usize, reason: &str, is_listed: bool) {
        self.pods[number].version += 1;
        self.hospital.take(Case {
            name: &number.to_string(),
            version: &self.pods[number].version.to_string(),
            reason,
            is_listed,
            ..CASE
        });
    }

    /// Kubelet looks at a Pod.
    fn look(&mut self, at: u64, number: usize) {
        // Ten to fifteen seconds, as it has it.
        let pause = 10_000 + (number as u64 * 7919 + at) % 5_000;
        let pod = &mut self.pods[number];
        let back_off = (10_000_u64 << pod.attempts.saturating_sub(1).min(5)).min(300_000);
        let is_first = pod.attempts == 0;
        let fails = std::mem::take(&mut pod.fails);
        if pod.attempted_at.is_none_or(|before| at >= before + back_off) {
            pod.attempts += 1;
            (pod.attempted_at, pod.fails) = (Some(at), true);
        }
        if !is_first {
            self.tell(
                number,
                if fails { "ErrImagePull" } else { "ImagePullBackOff" },
                false,
            );
        }
        // The Pod's sandbox has just been made.
        let pause = if is_first { 1_000 } else { pause };
        self.events.insert((at + pause, number));
    }

    /// Returns how many seconds it takes to turn all of them, ten a second.
    fn takes(mut self) -> u64 {
        let mut left = self.pods.len();
        for tick in 1.. {
            let at = tick * 100;
            self.hospital.now = NOW.after(Duration::from_millis(at));
            while let Some((due, number)) = self.events.first().copied().filter(|(due, _)| *due <= at) {
                self.events.remove(&(due, number));
                self.look(due, number);
            }
            if let Some(order) = self.hospital.order() {
                self.hospital.take(Case {
                    name: &order.pod.name,
                    image: OWN,
                    is_ready: true,
                    ..CASE
                });
                let number: usize = order.pod.name.parse().unwrap();
                self.events.retain(|(_, known)| *known != number);
                left -= 1;
                if left == 0 {
                    return at / 1000;
                }
            }
        }
        unreachable!()
    }
}

/// As in an outage. Those that a new leader finds wait for their next failure, five minutes later at the latest.
#[test]
fn all_are_turned_in_about_the_time_that_the_rate_allows() {
    let takes = |mut ward: Ward| {
        let dead = Dead::from([("a".into(), NOW)]);
        ward.hospital.queue.set_dead(dead, NOW);
        ward.takes()
    };
    let begin_at_once = takes(Ward::new(3000, 0, |number| number));
    assert!((300..=320).contains(&begin_at_once), "{begin_at_once} s");
    let listed = takes(Ward::new(4000, 8, |number| number * 75));
    assert!((400..=450).contains(&listed), "{listed} s");
}

/// Where the mirror is well, each waits for a failure of just now, and those that fail at once for one another.
#[test]
fn all_are_turned_in_the_end_where_the_mirror_is_well() {
    let takes = Ward::new(1000, 0, |number| number).takes();
    assert!((100..=1_500).contains(&takes), "{takes} s");
}

#[test]
fn what_failed_is_tried_again_less_and_less_often() {
    let mut hospital = Hospital::new();
    hospital.take(CASE);
    let mut pauses = Vec::new();
    for _ in 0..3 {
        let order = hospital.order().unwrap();
        hospital.queue.end(&order.pod, Ending::Failed, hospital.now);
        let Next::In(pause) = hospital.next() else {
            panic!("it is tried again")
        };
        pauses.push(pause.as_secs());
        hospital.later(pause.as_secs());
    }
    assert_eq!(pauses, [1, 2, 4]);
    // Its failure is not of just now any more.
    assert_eq!(hospital.next(), Next::Nothing);
    hospital.fail_again(Case { version: "2", ..CASE });
    assert!(hospital.order().is_some());
}

#[test]
fn owners_without_a_ready_pod_come_first_then_namespaces_in_turn_then_the_newest() {
    let mut hospital = Hospital::new();
    let pod = |namespace, name, owner, created| Case {
        namespace,
        name,
        owner: Some(owner),
        created,
        ..CASE
    };
    hospital.take(Case {
        is_ready: true,
        ..pod("a", "runs", "many", 0)
    });
    for case in [
        pod("a", "old", "many", 1),
        pod("a", "new", "many", 3),
        pod("a", "newer", "many", 4),
        pod("b", "any", "elsewhere", 0),
        pod("b", "more", "elsewhere", 1),
        pod("a", "only", "none", 0),
        pod("a", "second", "none", 2),
    ] {
        hospital.take(case);
    }
    // One of each owner that serves nothing; its others are no more urgent than those of the owner that does.
    let expected = [
        "a/second", "b/more", "a/newer", "b/any", "a/new", "a/old", "a/only",
    ];
    assert_eq!(hospital.all(), expected);
}

#[test]
fn who_is_ready_is_known_through_lists_and_deletions() {
    let mut hospital = Hospital::new();
    let ready = |name| Case {
        name,
        owner: Some("o"),
        is_ready: true,
        ..CASE
    };
    let serves = |hospital: &Hospital| {
        let pod = Pod {
            namespace: "team",
            owner: Some("o"),
            ..Pod::default()
        };
        hospital.queue.ready.serves(owner(&pod).unwrap())
    };
    hospital.take(ready("one"));
    hospital.take(ready("one"));
    hospital.take(ready("two"));
    hospital.remove(ready("one"));
    assert!(serves(&hospital));
    hospital.take(Case {
        is_ready: false,
        ..ready("two")
    });
    assert!(!serves(&hospital));
    hospital.take(ready("two"));
    hospital.queue.begin_listing();
    hospital.take(Case {
        is_listed: true,
        ..ready("three")
    });
    assert!(serves(&hospital));
    hospital.queue.end_listing();
    hospital.remove(ready("two"));
    assert!(serves(&hospital));
    hospital.remove(ready("three"));
    assert!(!serves(&hospital));
    assert_eq!(hospital.queue.ready.len(), 0);
    // Under another controller it serves for that one.
    hospital.take(ready("four"));
    hospital.take(Case {
        owner: Some("another"),
        ..ready("four")
    });
    assert!(!serves(&hospital));
    hospital.take(ready("four"));
    assert!(serves(&hospital));
}

#[test]
fn a_list_forgets_who_is_gone() {
    let mut hospital = Hospital::new();
    hospital.take(CASE);
    hospital.take(Case {
        name: "other",
        ..CASE
    });
    hospital.queue.begin_listing();
    hospital.take(CASE);
    hospital.queue.end_listing();
    assert_eq!(hospital.all(), ["team/web"]);
    hospital.take(Case {
        is_ready: true,
        ..CASE
    });
    assert!(hospital.queue.stuck.is_empty());
}

#[test]
fn a_pod_made_again_under_its_name_is_another_one() {
    let mut hospital = Hospital::new();
    hospital.take(CASE);
    let order = hospital.order().unwrap();
    let other = PodId {
        uid: "another".into(),
        ..order.pod
    };
    hospital.queue.end(&other, Ending::Failed, hospital.now);
    assert_eq!(hospital.next(), Next::Nothing);
}

/// Pods of two namespaces that fail to pull from two registries, on the node of [`CASE`].
const UPSTREAM: [Case<'_>; 2] = [
    Case {
        namespace: "one",
        name: "upstream",
        image: "ghcr.io/a/b:1",
        ..CASE
    },
    Case {
        namespace: "other",
        name: "upstream",
        image: "redis:8",
        ..CASE
    },
];

#[test]
fn a_node_that_pulls_nothing_at_all_is_waited_for_but_not_for_ever() {
    let cut_off = || {
        let mut hospital = Hospital::new();
        for case in UPSTREAM {
            hospital.take_unrecorded(case);
        }
        hospital.take(CASE);
        hospital
    };
    let mut hospital = cut_off();
    hospital.take(Case {
        name: "elsewhere",
        node: "another",
        ..CASE
    });
    assert_eq!(hospital.all(), ["team/elsewhere"]);
    assert_eq!(hospital.next(), Next::In(PATIENCE));
    assert_eq!(hospital.queue.waiting(), 1);
    let pulled = Case {
        is_ready: true,
        ..UPSTREAM[0]
    };
    assert!(hospital.take_unrecorded(pulled), "the node pulls again");
    assert_eq!(hospital.all(), ["team/web"]);

    let mut hospital = cut_off();
    hospital.later(PATIENCE.as_secs() - 1);
    hospital.fail_again(Case { version: "2", ..CASE });
    assert_eq!(hospital.next(), Next::In(Duration::from_secs(1)));
    hospital.later(1);
    assert_eq!(hospital.all(), ["team/web"]);

    // What it pulled well speaks against those that failed before, and not against those that fail after.
    let mut hospital = cut_off();
    hospital.take(Case { name: "more", ..CASE });
    hospital.later(1);
    hospital.take(Case {
        is_ready: true,
        name: "more",
        ..CASE
    });
    assert_eq!(hospital.all(), ["team/web"]);
    hospital.later(1);
    for (name, case) in ["a", "b"].into_iter().zip(UPSTREAM) {
        hospital.take_unrecorded(Case { name, ..case });
    }
    hospital.take(Case {
        name: "later",
        ..CASE
    });
    assert_eq!(hospital.all(), [""; 0]);
}

/// Two namespaces and two registries: else one tenant holds up everybody, or one registry's limit does.
#[test]
fn two_images_of_one_namespace_or_one_registry_cut_no_node_off() {
    let [one, other] = UPSTREAM;
    let held_up = |cases: &[Case<'_>]| {
        let mut hospital = Hospital::new();
        for case in cases {
            hospital.take_unrecorded(*case);
        }
        hospital.take(CASE);
        hospital.all().is_empty()
    };
    let of_one = Case {
        name: "second",
        namespace: one.namespace,
        ..other
    };
    let of_its_registry = Case {
        name: "third",
        namespace: other.namespace,
        ..one
    };
    assert!(held_up(&[one, other]));
    assert!(!held_up(&[one, of_one]), "one namespace");
    assert!(!held_up(&[one, of_its_registry]), "one registry");
    assert!(held_up(&[one, of_one, of_its_registry]));
    assert!(held_up(&[of_one, of_its_registry]));
    let elsewhere = Case {
        node: "another",
        ..other
    };
    assert!(!held_up(&[one, elsewhere]));
}

/// Names that do not exist fail for ever, and would keep their node from being helped.
#[test]
fn a_name_that_does_not_exist_says_nothing_of_its_node() {
    let mut hospital = Hospital::new();
    for case in UPSTREAM {
        hospital.take_unrecorded(case);
    }
    hospital.later(TELLING.as_secs());
    for case in UPSTREAM {
        // Its status speaks of something else in between.
        hospital.take_unrecorded(Case {
            version: "2",
            image: MIRRORED,
            ..case
        });
        hospital.take_unrecorded(Case { version: "3", ..case });
    }
    hospital.take(CASE);
    assert_eq!(hospital.all(), ["team/web"], "for long");

    let mut hospital = Hospital::new();
    hospital.later(TELLING.as_secs());
    for case in UPSTREAM {
        hospital.take_unrecorded(Case {
            is_listed: true,
            ..case
        });
    }
    hospital.take(CASE);
    assert_eq!(hospital.all(), ["team/web"], "a new leader goes by their age");
    for case in UPSTREAM {
        hospital.remove(case);
    }
    hospital.remove(CASE);
    assert_eq!(hospital.queue.nodes.len(), 0);
}

/// Its record tells that the image was a mirror's: of one that was deleted, or before it went back.
#[test]
fn an_image_with_a_record_says_nothing_of_its_node() {
    let mut hospital = Hospital::new();
    for case in UPSTREAM {
        hospital.take(case);
    }
    hospital.take(CASE);
    assert_eq!(hospital.all(), ["team/web"]);
}

/// What was turned shows the mirror's failure for a while. That is no failure of upstream's.
#[test]
fn a_pod_that_was_turned_does_not_count_against_its_node() {
    let mirrored = format!("Back-off pulling image \"{MIRRORED}\"");
    for message in [mirrored.as_str(), "pull QPS exceeded", "?"] {
        let mut hospital = Hospital::new();
        let annotations = BTreeMap::new();
        let left_alone = BTreeSet::new();
        for image in ["ghcr.io/a/b:1", "redis:8"] {
            let container = Container {
                name: "app",
                image,
                waiting: Some(("ErrImagePull", message)),
                ..Container::default()
            };
            let pod = Pod {
                uid: image,
                namespace: image,
                name: image,
                node: "node",
                annotations: Some(&annotations),
                containers: vec![container],
                ..Pod::default()
            };
            let known = Known {
                routing: &hospital.routing,
                former: &[],
                left_alone: &left_alone,
            };
            hospital.queue.take(&pod, &known, Seen::Listed, NOW);
        }
        hospital.take(CASE);
        assert_eq!(hospital.all(), ["team/web"], "{message}");
    }
}

#[test]
fn where_it_is_only_told_it_is_told_once() {
    let mut hospital = Hospital::with(Mirror {
        rescue: RescuePolicy::Audit,
        ..mirror("a", &["docker.io"])
    });
    hospital.take(CASE);
    let order = hospital.order().unwrap();
    assert_eq!((order.turned.len(), order.told.len()), (0, 1));
    hospital.queue.end(&order.pod, Ending::Done, hospital.now);
    hospital.take(CASE);
    assert_eq!(hospital.order(), None);

    // Where the policy becomes another one, it is turned without another word of the Pod.
    hospital.routing = Routing::compile(vec![mirror("a", &["docker.io"])]);
    let left_alone = BTreeSet::new();
    let known = Known {
        routing: &hospital.routing,
        former: &[],
        left_alone: &left_alone,
    };
    hospital.queue.judge(&known, hospital.now);
    let order = hospital.order().unwrap();
    assert_eq!((order.turned.len(), order.told.len()), (1, 0));
}

/// What a policy forbids is forbidden whatever else the Pod tells; what changed in between is not.
#[test]
fn what_is_refused_again_waits_though_the_pod_tells_something_new() {
    let mut hospital = Hospital::new();
    let version = |number: u64| Case {
        version: &*number.to_string().leak(),
        ..CASE
    };
    hospital.take(version(0));
    let order = hospital.order().unwrap();
    hospital.queue.end(&order.pod, Ending::Refused, hospital.now);
    assert_eq!(hospital.next(), Next::In(PAUSE), "it may change its mind");
    hospital.fail_again(version(1));
    let mut pauses = Vec::new();
    for number in 2..9 {
        let order = hospital.order().unwrap();
        hospital.queue.end(&order.pod, Ending::Refused, hospital.now);
        hospital.fail_again(version(number));
        let Next::In(pause) = hospital.next() else {
            panic!("it is tried again")
        };
        pauses.push(pause.as_secs());
        hospital.later(pause.as_secs());
        hospital.fail_again(version(100 + number));
    }
    assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
    // Once it was done, nothing is held against the Pod.
    let order = hospital.order().unwrap();
    hospital.queue.end(&order.pod, Ending::Done, hospital.now);
    hospital.fail_again(version(9));
    assert!(hospital.order().is_some());
}

/// Before, nobody knows which owners serve.
#[test]
fn there_is_no_order_before_the_first_list_ended() {
    let mut hospital = Hospital::new();
    hospital.queue = Queue::default();
    hospital.queue.begin_listing();
    let pod = |name, owner| Case {
        name,
        owner: Some(owner),
        is_listed: true,
        ..CASE
    };
    hospital.take(Case {
        created: 1,
        ..pod("stuck", "serves")
    });
    hospital.take(pod("none", "alone"));
    assert_eq!(hospital.next(), Next::Nothing);
    hospital.take(Case {
        is_ready: true,
        ..pod("runs", "serves")
    });
    hospital.fail_again(Case {
        created: 1,
        ..pod("stuck", "serves")
    });
    hospital.fail_again(pod("none", "alone"));
    assert_eq!(hospital.next(), Next::Nothing);
    hospital.queue.end_listing();
    assert_eq!(hospital.all(), ["team/none", "team/stuck"]);
    // A later one holds up nobody.
    hospital.queue.begin_listing();
    hospital.take(Case { name: "new", ..CASE });
    assert_eq!(hospital.all(), ["team/new"]);
}

/// Returns a Pod of an owner.
fn owned<'a>(namespace: &'a str, name: &'a str, owner: &'a str) -> Case<'a> {
    Case {
        namespace,
        name,
        owner: Some(owner),
        ..CASE
    }
}

/// One Pod whose patch fails for ever keeps nothing in mind but itself.
#[test]
fn whose_turn_it_was_is_forgotten_with_the_pods_that_wait() {
    let mut hospital = Hospital::new();
    hospital.take(owned("a", "fails", "odd"));
    let order = hospital.order().unwrap();
    hospital.queue.end(&order.pod, Ending::Failed, hospital.now);
    for number in 0..100_u32 {
        let name = number.to_string();
        for namespace in ["a", name.as_str()] {
            let case = owned(namespace, &name, &name);
            hospital.take(case);
            assert!(hospital.order().is_some());
            hospital.take(Case {
                is_ready: true,
                ..case
            });
        }
    }
    assert_eq!(hospital.queue.turns.known(), (1, 1));
    // While others of its owner wait, one that had its turn stays so, whatever its Pods tell.
    for (name, owner, created) in [("one", "o", 9), ("two", "o", 8), ("bare", "p", 7)] {
        hospital.take(Case {
            created,
            ..owned("b", name, owner)
        });
    }
    assert_eq!(hospital.order().unwrap().pod.name, "one".into());
    hospital.take(Case {
        created: 8,
        version: "2",
        ..owned("b", "two", "o")
    });
    assert_eq!(hospital.order().unwrap().pod.name, "bare".into());
    // And an owner of which nothing serves any more is urgent.
    hospital.take(Case {
        is_ready: true,
        ..owned("c", "runs", "q")
    });
    hospital.take(Case {
        created: 1,
        ..owned("c", "stuck", "q")
    });
    hospital.take(Case {
        created: 0,
        ..owned("c", "other", "r")
    });
    hospital.remove(owned("c", "runs", "q"));
    let names: Vec<_> = hospital.all();
    assert_eq!(names, ["b/two", "c/stuck", "c/other"]);
}

/// Else who lets one Pod after the other get stuck, each in a namespace of its own, takes every turn.
#[test]
fn a_namespace_that_comes_back_waits_for_those_that_waited() {
    let mut hospital = Hospital::new();
    for number in 0..9 {
        let name = number.to_string();
        hospital.take(owned("many", &name, "o"));
    }
    let mut of_many = 0;
    for number in 0..9 {
        let namespace = format!("a-{number}");
        hospital.take(owned(&namespace, "web", "o"));
        let PodId { namespace, name, .. } = hospital.order().unwrap().pod;
        of_many += usize::from(*namespace == *"many");
        hospital.take(Case {
            is_ready: true,
            ..owned(&namespace, &name, "o")
        });
    }
    assert!(of_many >= 3, "{of_many}");
}

/// Who fills it with images that are no mirror's shuts out nobody.
#[test]
fn there_is_room_for_those_that_can_be_helped() {
    let long = format!("ghcr.io/{}:1", "a".repeat(900));
    let mut hospital = Hospital::new();
    let mut number = 0_u32;
    while hospital.queue.size + 4096 < LIMIT {
        number += 1;
        hospital.take_unrecorded(Case {
            name: &number.to_string(),
            image: &long,
            ..CASE
        });
    }
    for number in 0..100 {
        let name = format!("web-{number}");
        assert!(hospital.take(Case { name: &name, ..CASE }));
    }
    assert!(hospital.queue.size <= LIMIT && !hospital.queue.is_full());
    // Some of them may be those that were forgotten, and have failed for long.
    assert!(hospital.all().len() < 100);
    for number in 0..100 {
        let name = format!("web-{number}");
        hospital.fail_again(Case {
            name: &name,
            version: "2",
            ..CASE
        });
    }
    assert_eq!((hospital.queue.waiting(), hospital.all().len()), (100, 100));
    let before = hospital.queue.stuck.len();
    hospital.queue.begin_listing();
    hospital.queue.end_listing();
    assert_eq!(
        (hospital.queue.stuck.len(), hospital.queue.size),
        (0, 0),
        "of {before}"
    );
}

#[test]
fn where_there_is_no_room_it_is_told() {
    let mut hospital = Hospital::new();
    hospital.queue.size = LIMIT;
    hospital.take(CASE);
    assert!(hospital.queue.is_full());
    assert_eq!(hospital.order(), None);
    hospital.queue.size = 0;
    hospital.take(CASE);
    assert!(!hospital.queue.is_full());
    assert_eq!(hospital.order(), None, "it may have failed for long");
    hospital.fail_again(Case { version: "2", ..CASE });
    assert!(hospital.order().is_some());
}

/// All that is done for one order is to look at that Pod, whatever the number of others.
#[test]
fn fifty_thousand_stuck_pods_are_turned_in_an_order_that_costs_little() {
    const PODS: usize = 50_000;
    let mut hospital = Hospital::new();
    for number in 0..PODS {
        let name = number.to_string();
        let namespace = format!("team-{}", number % 100);
        hospital.take(Case {
            namespace: &namespace,
            name: &name,
            owner: (number % 3 == 0).then_some("one"),
            ..CASE
        });
    }
    assert_eq!(hospital.queue.waiting(), PODS);
    let first: BTreeSet<_> = (0..100)
        .map(|_| hospital.order().unwrap().pod.namespace)
        .collect();
    assert_eq!(first.len(), 100, "each namespace has its turn");
    assert_eq!(hospital.queue.looks, 100);
    let mut turned = 100;
    while let Some(order) = hospital.order() {
        turned += 1;
        // Some fail, and come later.
        if turned % 10 == 0 {
            hospital.queue.end(&order.pod, Ending::Failed, hospital.now);
        }
    }
    assert_eq!((turned, hospital.queue.looks), (PODS, PODS));
    assert_eq!(hospital.queue.waiting(), PODS / 10 - 10);
    hospital.later(RETRY.as_secs());
    assert_eq!(hospital.all().len(), PODS / 10 - 10);
    assert_eq!(hospital.queue.looks, PODS + 2 * (PODS / 10 - 10));
}

const OWN: &str = "nginx:1.29";

/// A queue with a mirror that gives the image, as far as Kagami sees.
fn giving() -> Hospital {
    let mut hospital = Hospital::new();
    hospital.snapshot = snapshot(vec![mirror("a", &["docker.io"])]);
    let presence = Presence::Present(proof('a'));
    let key = key("docker.io/library/nginx:1.29");
    hospital.index.write("a", key, presence, NOW, NOW);
    hospital
}

/// A Pod of a namespace with another version for each time that it is taken in.
fn pod_of<'a>(namespace: &'a str, name: &'a str) -> Case<'a> {
    Case {
        namespace,
        name,
        ..CASE
    }
}

/// Lets Pods fail to pull from the mirror, and returns which are turned at once.
fn turned(hospital: &mut Hospital, namespace: &str, names: std::ops::Range<u64>) -> Vec<Order> {
    for name in names {
        hospital.take(pod_of(namespace, &name.to_string()));
    }
    std::iter::from_fn(|| hospital.order()).collect()
}

/// Takes in that the image that a Pod went back to cannot be pulled either, or has been.
fn become_of(hospital: &mut Hospital, order: &Order, pulled: bool) {
    tell_after(
        hospital,
        order,
        Case {
            is_ready: pulled,
            ..CASE
        },
    );
}

/// Takes in what is told of a Pod that went back to its own image.
fn tell_after(hospital: &mut Hospital, order: &Order, told: Case<'_>) {
    hospital.queue.end(&order.pod, Ending::Done, hospital.now);
    hospital.take(Case {
        namespace: &order.pod.namespace,
        name: &order.pod.name,
        image: OWN,
        version: "after",
        ..told
    });
}

#[test]
fn a_few_go_alone_to_a_registry_of_which_nothing_is_known_while_the_mirror_gives_the_image() {
    let mut hospital = giving();
    let orders = turned(&mut hospital, "team", 0..10);
    assert_eq!(orders.len(), ALONE);
    assert_eq!(hospital.queue.waiting(), 10 - ALONE);
    hospital.later(1);
    assert_eq!(hospital.all().len(), 0);
    // One has its image: all go, those that failed just now at once.
    become_of(&mut hospital, &orders[0], true);
    hospital.later(1);
    assert_eq!(hospital.all().len(), 10 - ALONE);
    // That is believed for some minutes.
    hospital.later(BELIEVED.as_secs() - 2);
    assert_eq!(turned(&mut hospital, "other", 10..20).len(), 10);
    hospital.later(SILENT.as_secs());
    assert_eq!(turned(&mut hospital, "other", 20..30).len(), ALONE);
}

#[test]
fn where_what_went_back_fails_no_more_goes_until_one_has_its_image_or_for_some_minutes() {
    let mut hospital = giving();
    let orders = turned(&mut hospital, "team", 0..10);
    become_of(&mut hospital, &orders[0], false);
    hospital.later(SILENT.as_secs());
    // Of that namespace none does, of others a few.
    assert_eq!(turned(&mut hospital, "team", 10..20).len(), 0);
    let others = turned(&mut hospital, "other", 10..20);
    assert_eq!(others.len(), ALONE);
    become_of(&mut hospital, &others[0], false);
    hospital.later(SILENT.as_secs());
    assert_eq!(turned(&mut hospital, "third", 20..30).len(), 0);
    // What fails on and on says nothing new.
    hospital.later(BELIEVED.as_secs());
    become_of(&mut hospital, &others[0], false);
    assert_eq!(turned(&mut hospital, "third", 30..40).len(), 1, "one goes alone");
    // One that went long ago has its image after all.
    become_of(&mut hospital, &others[1], true);
    assert_eq!(turned(&mut hospital, "team", 40..50).len(), 10);
}

/// Once the registry is back, those that failed there are the first to tell: all that went may be among them.
#[test]
fn one_that_failed_and_has_its_image_after_all_lets_the_others_go() {
    let mut hospital = giving();
    let orders = turned(&mut hospital, "team", 0..10);
    assert_eq!(orders.len(), ALONE);
    for order in &orders {
        become_of(&mut hospital, order, false);
    }
    hospital.later(SILENT.as_secs());
    assert_eq!(turned(&mut hospital, "team", 10..20).len(), 0);
    become_of(&mut hospital, &orders[0], true);
    hospital.later(1);
    assert_eq!(hospital.all().len(), 10, "those that failed just now");
}

#[test]
fn from_a_mirror_that_does_not_give_the_image_all_go_back() {
    let check = |change: fn(&mut Hospital), expected: usize| {
        let mut hospital = giving();
        change(&mut hospital);
        assert_eq!(turned(&mut hospital, "team", 0..10).len(), expected);
    };
    check(|_| (), ALONE);
    check(
        |hospital| hospital.snapshot.health[0].state = State::Unhealthy,
        10,
    );
    check(
        |hospital| hospital.snapshot.suspected = hospital.routing.find("a").into_iter().collect(),
        10,
    );
    check(|hospital| hospital.index = Index::default(), 10);
    check(
        |hospital| {
            let key = key("docker.io/library/nginx:1.29");
            hospital.index.write("a", key, Presence::Missing, NOW, NOW);
        },
        10,
    );
    check(
        |hospital| {
            let mut off = mirror("a", &["docker.io"]);
            off.mode = Mode::Off;
            hospital.snapshot = snapshot(vec![off]);
        },
        10,
    );
    // Nodes have ways of their own: that Kagami itself does not reach the registry keeps nobody.
    check(
        |hospital| hospital.snapshot.failing_upstreams = Arc::new(["docker.io".to_owned()].into()),
        ALONE,
    );
}

/// Where Pods may come forward again, not much is lost by going: until one fails some go each second, and soon after some
/// do once more.
#[test]
fn where_there_is_a_way_forward_more_go_until_one_fails() {
    let mut hospital = giving();
    let labels = [("kagami.dev/mode".to_owned(), "enforce".to_owned())];
    hospital.snapshot.namespaces = Arc::new([("team".to_owned(), labels.into())].into());
    hospital.registries = vec!["a.example.com".to_owned()];
    let first = turned(&mut hospital, "team", 0..15);
    assert_eq!(first.len(), ALONE);
    for _ in 0..3 {
        hospital.later(1);
        assert_eq!(hospital.all().len(), ALONE);
    }
    become_of(&mut hospital, &first[0], false);
    hospital.later(1);
    assert_eq!(hospital.all().len(), 0);
    hospital.later(SILENT.as_secs() - 1);
    assert_eq!(turned(&mut hospital, "team", 20..30).len(), 1, "one alone");
    // Without the label there is no such way.
    let mut hospital = giving();
    hospital.registries = vec!["a.example.com".to_owned()];
    assert_eq!(turned(&mut hospital, "team", 0..15).len(), ALONE);
    hospital.later(1);
    assert_eq!(hospital.all().len(), 0);
}

/// From a dead mirror all go, but where they would stay for good: there none does once one was seen to fail.
#[test]
fn from_a_dead_mirror_none_goes_where_it_would_stay_for_good() {
    let check = |registries: &[&str], expected: usize| {
        let mut hospital = giving();
        let labels = [("kagami.dev/mode".to_owned(), "enforce".to_owned())];
        hospital.snapshot.namespaces = Arc::new([("team".to_owned(), labels.into())].into());
        hospital.registries = registries.iter().map(|registry| (*registry).to_owned()).collect();
        hospital.snapshot.health[0].state = State::Unhealthy;
        hospital
            .queue
            .set_dead(Dead::from([("a".into(), NOW)]), hospital.now);
        let first = turned(&mut hospital, "team", 0..10);
        assert_eq!(first.len(), 10);
        become_of(&mut hospital, &first[0], false);
        assert_eq!(turned(&mut hospital, "team", 10..20).len(), expected);
        // One has its image after all.
        become_of(&mut hospital, &first[1], true);
        hospital.later(1);
        assert_eq!(hospital.all().len(), 10 - expected);
    };
    check(&["a.example.com"], 10);
    check(&["b.example.com"], 0);
    // After some minutes one goes alone, and the next as long after that, whether or not anything is told of it.
    let mut hospital = giving();
    hospital.snapshot.health[0].state = State::Unhealthy;
    hospital
        .queue
        .set_dead(Dead::from([("a".into(), NOW)]), hospital.now);
    let first = turned(&mut hospital, "team", 0..2);
    become_of(&mut hospital, &first[0], false);
    assert_eq!(turned(&mut hospital, "team", 10..20).len(), 0);
    for _ in 0..3 {
        hospital.later(BELIEVED.as_secs() - 1);
        assert_eq!(hospital.all().len(), 0);
        hospital.later(1);
        assert_eq!(hospital.all().len(), 1);
    }
    // What the mirror lacks it will not give either once it is well.
    let mut hospital = giving();
    let first = turned(&mut hospital, "team", 0..1);
    become_of(&mut hospital, &first[0], false);
    let key = key("docker.io/library/nginx:1.29");
    hospital.index.write("a", key, Presence::Missing, NOW, NOW);
    assert_eq!(turned(&mut hospital, "team", 10..20).len(), 10);
}

/// As fast as Pods are turned by default, and as late as kubelet tells: those that went are still known by then.
#[test]
fn what_is_told_late_keeps_the_others() {
    let mut hospital = giving();
    hospital.snapshot.health[0].state = State::Unhealthy;
    hospital.queue.set_dead(Dead::from([("a".into(), NOW)]), NOW);
    for name in 0..400 {
        hospital.take(pod_of("team", &name.to_string()));
    }
    let mut went = VecDeque::new();
    let mut count = 0;
    for _ in 0..400 {
        if let Some(order) = hospital.order() {
            count += 1;
            went.push_back((hospital.now.after(Duration::from_secs(12)), order));
        }
        hospital.now = hospital.now.after(Duration::from_millis(100));
        while went.front().is_some_and(|(at, _)| *at <= hospital.now) {
            let (_, order) = went.pop_front().unwrap();
            become_of(&mut hospital, &order, false);
        }
    }
    assert!((110..=130).contains(&count), "{count}");
}

/// Nobody's Pods keep those of others where they are: each namespace may send one, and what never asked counts for nothing.
#[test]
fn no_namespace_holds_all_places() {
    let mut hospital = giving();
    assert_eq!(turned(&mut hospital, "team", 0..10).len(), ALONE);
    assert_eq!(turned(&mut hospital, "other", 10..20).len(), 1);
    assert_eq!(turned(&mut hospital, "third", 20..30).len(), 1);
    // What the mirror lacks goes without asking, where there is a way forward.
    let mut hospital = giving();
    let labels = Labels::from([("kagami.dev/mode".to_owned(), "enforce".to_owned())]);
    let labels = ["team", "other"].map(|namespace| (namespace.to_owned(), labels.clone()));
    hospital.snapshot.namespaces = Arc::new(labels.into());
    hospital.registries = vec!["a.example.com".to_owned()];
    let key = key("docker.io/library/nginx:1.29");
    hospital.index.write("a", key, Presence::Missing, NOW, NOW);
    let orders = turned(&mut hospital, "team", 0..10);
    assert_eq!(orders.len(), 10);
    become_of(&mut hospital, &orders[0], false);
    let presence = Presence::Present(proof('a'));
    hospital.index.write("a", key, presence, NOW, NOW);
    assert_eq!(turned(&mut hospital, "team", 10..20).len(), ALONE);
}

/// A registry that answers serves nodes: what it lacks, or gives to others alone, is its own image's matter.
#[test]
fn what_a_registry_refuses_or_lacks_keeps_only_those_that_want_that_very_image() {
    const OTHER: &str = "a.example.com/docker.io/library/redis:8";
    let of = |why: &'static str| {
        let mut hospital = giving();
        let key = key("docker.io/library/redis:8");
        let presence = Presence::Present(proof('a'));
        hospital.index.write("a", key, presence, NOW, NOW);
        let orders = turned(&mut hospital, "team", 0..10);
        tell_after(&mut hospital, &orders[0], Case { why, ..CASE });
        hospital.later(1);
        let same = hospital.all().len();
        let annotations = [(format!("{ORIGINAL_IMAGE_PREFIX}app"), "redis:8".to_owned())].into();
        hospital.take_with(
            Case {
                name: "redis",
                image: OTHER,
                ..CASE
            },
            &annotations,
        );
        let other = hospital.all().len();
        // To another namespace it may answer otherwise.
        let another_namespace = turned(&mut hospital, "other", 10..11).len();
        (hospital, [same, other, another_namespace])
    };
    let says = |code: &str, what: &str| {
        let text = format!(
            ": ErrImagePull: rpc error: code = {code} desc = failed to pull and unpack image \"nginx:1.29\": {what}"
        );
        &*text.leak()
    };
    let not_found = says(
        "NotFound",
        "failed to resolve reference \"nginx:1.29\": nginx:1.29: not found",
    );
    let refused = says("Unknown", "failed to resolve image: pull access denied");
    for why in [not_found, refused] {
        let (mut hospital, went) = of(why);
        assert_eq!(went, [0, 1, 1], "{why}");
        // After some minutes one goes alone, and the others once it has its image.
        hospital.later(BELIEVED.as_secs());
        let orders = turned(&mut hospital, "team", 20..30);
        assert_eq!(orders.len(), 1);
        become_of(&mut hospital, &orders[0], true);
        hospital.later(1);
        assert_eq!(hospital.all().len(), 9);
    }
    // So it is from a mirror that is away.
    let mut hospital = giving();
    hospital.snapshot.health[0].state = State::Unhealthy;
    let orders = turned(&mut hospital, "team", 0..1);
    tell_after(&mut hospital, &orders[0], Case { why: refused, ..CASE });
    assert_eq!(turned(&mut hospital, "team", 10..20).len(), 0);
    assert_eq!(turned(&mut hospital, "other", 10..20).len(), 10);
    // It has it for others.
    let platform = says("NotFound", "no match for platform in manifest: not found");
    assert_eq!(of(platform).1, [1, 0, 1]);
    let fails = says("Unavailable", "EOF");
    assert_eq!(of(fails).1, [0, 0, 1]);
}

/// A broken node is no broken registry.
#[test]
fn what_fails_on_one_node_keeps_nobody_on_another() {
    let went = |failed: &[(&'static str, &'static str)], node: &'static str, namespace: &'static str| {
        let mut hospital = giving();
        for (number, (namespace, node)) in failed.iter().enumerate() {
            let name = number.to_string();
            let case = Case {
                namespace,
                node,
                name: &name,
                ..CASE
            };
            hospital.take(case);
            let order = hospital.order().unwrap();
            tell_after(&mut hospital, &order, Case { node, ..CASE });
        }
        hospital.take(Case {
            namespace,
            node,
            name: "asks",
            ..CASE
        });
        hospital.order().is_some()
    };
    // A namespace of which one fails: there, and on all nodes once it fails on two.
    assert!(!went(&[("team", "node")], "node", "team"));
    assert!(went(&[("team", "node")], "another", "team"));
    assert!(!went(&[("team", "node"), ("team", "second")], "third", "team"));
    assert!(went(&[("team", "node"), ("team", "second")], "third", "other"));
    // Two namespaces: there, and on all nodes once they fail on two.
    let two = [("team", "node"), ("other", "node")];
    assert!(!went(&two, "node", "third") && went(&two, "another", "third"));
    assert!(!went(&[("team", "node"), ("other", "second")], "third", "third"));
}

/// A container of which nobody could have been kept tells nothing of the registry: anybody can write such a Pod.
#[test]
fn what_could_not_have_been_kept_tells_nothing() {
    let mut hospital = giving();
    let wanted = key("docker.io/library/nginx:1.29");
    hospital.index.write("a", wanted, Presence::Missing, NOW, NOW);
    for namespace in ["evil", "evil-2"] {
        let orders = turned(&mut hospital, namespace, 0..1);
        become_of(&mut hospital, &orders[0], false);
    }
    let presence = Presence::Present(proof('a'));
    hospital.index.write("a", wanted, presence, NOW, NOW);
    assert_eq!(turned(&mut hospital, "team", 0..10).len(), ALONE);
}

/// Its own registry did not serve it just before, and both turns would be used.
#[test]
fn what_came_forward_stays_while_its_own_registry_is_not_seen_to_serve() {
    let turn = |seconds: u64| {
        let at = NOW.before(Duration::from_secs(seconds));
        let turn = json!({"containers.app/forward": {"from": OWN, "to": MIRRORED, "at": at.to_string()}});
        BTreeMap::from([
            (format!("{ORIGINAL_IMAGE_PREFIX}app"), OWN.to_owned()),
            (RESCUED_ANNOTATION.to_owned(), turn.to_string()),
        ])
    };
    let dead = || {
        let mut hospital = giving();
        hospital.snapshot.health[0].state = State::Unhealthy;
        let labels = [("kagami.dev/mode".to_owned(), "enforce".to_owned())];
        hospital.snapshot.namespaces = Arc::new([("team".to_owned(), labels.into())].into());
        hospital.registries = vec!["a.example.com".to_owned()];
        hospital.queue.set_dead(Dead::from([("a".into(), NOW)]), NOW);
        hospital
    };
    let mut hospital = dead();
    hospital.take_with(Case { name: "came", ..CASE }, &turn(60));
    assert_eq!(hospital.all(), [""; 0]);
    // Another one was served there since.
    let orders = turned(&mut hospital, "other", 0..1);
    become_of(&mut hospital, &orders[0], true);
    hospital.later(1);
    assert_eq!(hospital.all(), ["team/came"]);
    // What came long ago goes.
    let mut hospital = dead();
    hospital.take_with(Case { name: "came", ..CASE }, &turn(700));
    let order = hospital.order().unwrap();
    // What becomes of it is told to the others, which would not come forward again either.
    become_of(&mut hospital, &order, false);
    hospital.take_with(
        Case {
            name: "second",
            ..CASE
        },
        &turn(700),
    );
    assert_eq!(hospital.all(), [""; 0]);
    // What the mirror lacks it will not give later either.
    let mut hospital = dead();
    let wanted = key("docker.io/library/nginx:1.29");
    hospital.index.write("a", wanted, Presence::Missing, NOW, NOW);
    hospital.take_with(Case { name: "came", ..CASE }, &turn(60));
    assert_eq!(hospital.all(), ["team/came"]);
}

/// A container that waits for something else by now has its image.
#[test]
fn what_waits_for_more_than_its_image_has_it() {
    for (reason, expected) in [
        ("CreateContainerConfigError", 7),
        ("CrashLoopBackOff", 7),
        ("ContainerCreating", 0),
    ] {
        let mut hospital = giving();
        let orders = turned(&mut hospital, "team", 0..10);
        tell_after(&mut hospital, &orders[0], Case { reason, ..CASE });
        hospital.later(1);
        assert_eq!(hospital.all().len(), expected, "{reason}");
    }
}

/// Kagami sees that the mirror refuses connections, and nodes have images from it: it is dead for nobody.
#[test]
fn a_mirror_that_nodes_pull_from_is_not_dead() {
    let mut hospital = Hospital::new();
    hospital
        .queue
        .set_dead(Dead::from([("a".into(), NOW)]), hospital.now);
    for name in ["1", "2"] {
        hospital.take(Case { name, ..CASE });
    }
    assert_eq!(hospital.order().unwrap().pod.name.len(), 1);
    hospital.later(FRESH.as_secs());
    let late = hospital.queue.waiting();
    assert_eq!(late, 1);
    for name in ["3", "4"] {
        hospital.take(Case {
            name,
            is_listed: true,
            ..CASE
        });
    }
    // One of those that wait has its image from there.
    hospital.take(Case {
        name: "3",
        version: "2",
        is_ready: true,
        ..CASE
    });
    assert_eq!(hospital.all(), [""; 0]);
    hospital.later(1);
    hospital.take(Case { name: "5", ..CASE });
    assert_eq!(
        hospital.all(),
        ["team/5"],
        "just after its failure it goes all the same"
    );
}

/// Only what was done counts, and only for the very Pod.
#[test]
fn a_turn_that_was_not_done_or_a_pod_that_is_gone_counts_for_nothing() {
    for ending in [Ending::Changed, Ending::Refused, Ending::Failed] {
        let mut hospital = giving();
        let orders = turned(&mut hospital, "team", 0..10);
        assert_eq!(orders.len(), ALONE);
        for order in orders {
            hospital.queue.end(&order.pod, ending, hospital.now);
        }
        hospital.later(1);
        assert_eq!(hospital.all().len(), ALONE, "others instead");
    }
    let mut hospital = giving();
    let orders = turned(&mut hospital, "team", 0..10);
    for order in &orders {
        hospital.remove(pod_of("team", &order.pod.name));
    }
    hospital.later(1);
    assert_eq!(hospital.all().len(), ALONE);
    // Another Pod of that name, which somebody wrote so.
    let mut hospital = giving();
    let orders = turned(&mut hospital, "team", 0..10);
    let PodId { name, .. } = &orders[0].pod;
    hospital.queue.upstreams.take(
        &Id::new(("team".into(), name.clone())),
        &Pod {
            uid: "another",
            ..Pod::default()
        },
        None,
        NOW,
    );
    hospital.later(1);
    assert_eq!(hospital.all().len(), 1, "it is gone");
}

#[test]
fn what_is_known_of_registries_is_bounded() {
    let mut upstreams = Upstreams::default();
    for number in 0..1000_u64 {
        let (id, order) = going(&format!("r{}.test/a:1", number % 200), number);
        upstreams.go(&id, &order, |_| true, NOW.after(Duration::from_millis(number)));
    }
    let (registries, pods) = upstreams.len();
    assert_eq!(registries, 64);
    for number in 1000..2000 {
        let (id, order) = going("r199.test/a:1", number);
        upstreams.go(&id, &order, |_| true, NOW.after(Duration::from_millis(number)));
    }
    assert!(upstreams.len().1 <= pods + 512);
}

/// A Pod that goes back to an image.
fn going(image: &str, number: u64) -> (Id, Order) {
    let name = number.to_string();
    let order = Order {
        pod: PodId {
            uid: name.as_str().into(),
            namespace: "team".into(),
            name: name.as_str().into(),
            resource_version: "1".into(),
        },
        turned: vec![Turning {
            way: Way::Back,
            kind: crate::domain::pod::PlaceKind::Container,
            index: 0,
            container: "app".into(),
            from: MIRRORED.into(),
            to: image.into(),
            mirror: "a".into(),
        }],
        told: Vec::new(),
        until: None,
        turns_before: BTreeMap::new(),
        has_annotations: true,
    };
    (Id::new(("team".into(), name.as_str().into())), order)
}

/// From a dead mirror it has no end; else it is as long as kubelet surely waits, whenever it is begun.
#[test]
fn an_order_says_until_when_it_has_to_be_done() {
    let mut hospital = Hospital::new();
    hospital.take(CASE);
    hospital.later(2);
    let order = hospital.order().unwrap();
    assert_eq!(order.until, Some(NOW.after(Duration::from_secs(8))));
    // There was no time left: the next failure is told of.
    hospital.queue.end(&order.pod, Ending::Changed, hospital.now);
    hospital.later(10);
    assert_eq!(hospital.order(), None);
    hospital.fail_again(Case { version: "2", ..CASE });
    let with_end = hospital.order().unwrap();
    assert!(with_end.until.is_some());
    let mut hospital = Hospital::new();
    hospital.queue.set_dead(Dead::from([("a".into(), NOW)]), NOW);
    hospital.take(CASE);
    let order = hospital.order().unwrap();
    assert_eq!(order.until, None);
    // It is off once the mirror is back; what is sure for a while is so all the same.
    assert!(hospital.queue.may_still(&order));
    hospital.queue.set_dead(Dead::new(), NOW);
    assert!(!hospital.queue.may_still(&order) && hospital.queue.may_still(&with_end));
}
