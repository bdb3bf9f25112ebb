use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::domain::{
    examples::{NOW, mirror},
    mirror::Mirror,
    names::ORIGINAL_IMAGE_PREFIX,
    rescue::Container,
    routing::Routing,
};

use super::nodes::TELLING;

const MIRRORED: &str = "a.example.com/docker.io/library/nginx:1.29";

/// A queue, and what Pods are judged by.
struct Hospital {
    queue: Queue,
    routing: Routing,
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
    reason: "ImagePullBackOff",
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
        let message = format!("Back-off pulling image \"{}\"", case.image);
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
        self.queue.take(&pod, &known, case.is_listed, self.now)
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

    fn order(&mut self) -> Option<Order> {
        match self.queue.next(self.now) {
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

/// A status is as old as the end of kubelet's last round: its node may be inside a pull by now.
#[test]
fn an_order_says_whether_its_failure_is_of_just_now() {
    let late = |is_listed, seconds| {
        let mut hospital = Hospital::new();
        hospital.take(Case { is_listed, ..CASE });
        hospital.later(seconds);
        hospital.take(Case { version: "2", ..CASE });
        hospital.order().unwrap().is_late
    };
    assert!(!late(false, 0));
    assert!(!late(false, FRESH.as_secs() - 1));
    assert!(late(false, FRESH.as_secs()));
    assert!(late(true, 0));
}

/// Of these nobody needs to ask whether their nodes pull again, which costs the more the more Pods are stuck.
#[test]
fn those_that_failed_just_now_go_before_the_others_of_their_owner() {
    let mut hospital = Hospital::new();
    let fails = |name, version| Case {
        name,
        version,
        reason: "ErrImagePull",
        ..CASE
    };
    for (name, created) in [("older", 1), ("newer", 2), ("newest", 3)] {
        hospital.take(Case {
            name,
            created,
            is_listed: true,
            ..CASE
        });
    }
    hospital.later(60);
    hospital.take(fails("older", "2"));
    hospital.take(Case {
        created: 2,
        ..fails("newer", "2")
    });
    // Not by whatever else changes of one that failed once.
    hospital.later(FRESH.as_secs());
    hospital.take(Case {
        created: 2,
        ..fails("newer", "3")
    });
    hospital.take(Case {
        version: "3",
        ..fails("older", "3")
    });
    hospital.take(Case {
        created: 1,
        version: "4",
        name: "older",
        ..CASE
    });
    hospital.take(Case {
        created: 1,
        ..fails("older", "5")
    });
    let orders: Vec<_> = std::iter::from_fn(|| hospital.order())
        .map(|order| (order.pod.name, order.is_late))
        .collect();
    let expected = [("older", false), ("newest", true), ("newer", true)];
    assert_eq!(orders, expected.map(|(name, is_late)| (name.into(), is_late)));
    assert!(hospital.queue.fresh.is_empty());
}

#[test]
fn what_failed_is_tried_again_less_and_less_often() {
    let mut hospital = Hospital::new();
    hospital.take(CASE);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let order = hospital.order().unwrap();
        hospital.queue.end(&order.pod, Ending::Failed, hospital.now);
        let Next::In(pause) = hospital.queue.next(hospital.now) else {
            panic!("it is tried again")
        };
        pauses.push(pause.as_secs());
        hospital.later(pause.as_secs());
    }
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
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
    assert_eq!(hospital.queue.next(hospital.now), Next::Nothing);
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
    assert_eq!(hospital.queue.next(hospital.now), Next::In(PATIENCE));
    assert_eq!(hospital.queue.waiting(), 1);
    let pulled = Case {
        is_ready: true,
        ..UPSTREAM[0]
    };
    assert!(hospital.take_unrecorded(pulled), "the node pulls again");
    assert_eq!(hospital.all(), ["team/web"]);

    let mut hospital = cut_off();
    hospital.later(PATIENCE.as_secs());
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
                waiting: Some(("ImagePullBackOff", message)),
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
            hospital.queue.take(&pod, &known, false, NOW);
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
    assert_eq!(
        hospital.queue.next(hospital.now),
        Next::In(PAUSE.0),
        "it may change its mind"
    );
    hospital.take(version(1));
    let mut pauses = Vec::new();
    for number in 2..9 {
        let order = hospital.order().unwrap();
        hospital.queue.end(&order.pod, Ending::Refused, hospital.now);
        hospital.take(version(number));
        let Next::In(pause) = hospital.queue.next(hospital.now) else {
            panic!("it is tried again")
        };
        pauses.push(pause.as_secs());
        hospital.later(pause.as_secs());
    }
    assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
    // Once it was done, nothing is held against the Pod.
    let order = hospital.order().unwrap();
    hospital.queue.end(&order.pod, Ending::Done, hospital.now);
    hospital.take(version(9));
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
    assert_eq!(hospital.queue.next(hospital.now), Next::Nothing);
    hospital.take(Case {
        is_ready: true,
        ..pod("runs", "serves")
    });
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
    assert_eq!(names, ["c/stuck", "b/two", "c/other"]);
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
    hospital.later(PAUSE.0.as_secs());
    assert_eq!(hospital.all().len(), PODS / 10 - 10);
    assert_eq!(hospital.queue.looks, PODS + 2 * (PODS / 10 - 10));
}
