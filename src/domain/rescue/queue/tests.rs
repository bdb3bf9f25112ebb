use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::domain::{
    examples::{NOW, mirror},
    mirror::Mirror,
    names::ORIGINAL_IMAGE_PREFIX,
    rescue::Container,
    routing::Routing,
};

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
        Self {
            queue: Queue::default(),
            routing: Routing::compile(vec![mirror]),
            now: NOW,
        }
    }

    fn take(&mut self, case: Case<'_>) -> bool {
        let annotations = [(format!("{ORIGINAL_IMAGE_PREFIX}app"), "nginx:1.29".to_owned())].into();
        let message = format!("Back-off pulling image \"{}\"", case.image);
        let container = Container {
            name: "app",
            image: case.image,
            waiting: (!case.is_ready).then_some(("ImagePullBackOff", message.as_str())),
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
            annotations: Some(&annotations),
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
    let serves = |hospital: &Hospital| hospital.queue.ready.serves(hash("o"));
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
    assert!(hospital.queue.ready.pods.is_empty());
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

#[test]
fn a_node_that_pulls_nothing_at_all_is_waited_for_but_not_for_ever() {
    let upstream = Case {
        namespace: "other",
        name: "upstream",
        image: "ghcr.io/a/b:1",
        ..CASE
    };
    let second = Case {
        name: "second",
        image: "redis:8",
        ..upstream
    };
    let mut hospital = Hospital::new();
    hospital.take(upstream);
    hospital.take(second);
    hospital.take(CASE);
    hospital.take(Case {
        name: "elsewhere",
        node: "another",
        ..CASE
    });
    assert_eq!(hospital.all(), ["team/elsewhere"]);
    assert_eq!(hospital.queue.next(hospital.now), Next::In(PATIENCE));
    hospital.take(Case {
        is_ready: true,
        ..upstream
    });
    assert_eq!(hospital.all(), ["team/web"], "the node pulls again");

    let mut hospital = Hospital::new();
    hospital.take(upstream);
    hospital.take(second);
    hospital.take(CASE);
    hospital.later(PATIENCE.as_secs());
    assert_eq!(hospital.all(), ["team/web"]);
}

/// Names that do not exist fail for ever, and would keep their node from being helped.
#[test]
fn a_name_that_does_not_exist_says_nothing_of_its_node() {
    let typo = Case {
        namespace: "other",
        image: "ghcr.io/a/typo:1",
        ..CASE
    };
    let another = Case {
        name: "another",
        image: "ghcr.io/a/another-typo:1",
        ..typo
    };
    let mut hospital = Hospital::new();
    hospital.take(typo);
    hospital.take(Case {
        name: "its-replica",
        ..typo
    });
    hospital.take(CASE);
    assert_eq!(hospital.all(), ["team/web"], "it is one name");

    let mut hospital = Hospital::new();
    hospital.take(typo);
    hospital.take(another);
    hospital.later(TELLING.as_secs());
    hospital.take(Case { version: "2", ..typo });
    hospital.take(CASE);
    assert_eq!(hospital.all(), ["team/web"], "for long");

    let mut hospital = Hospital::new();
    hospital.later(TELLING.as_secs());
    hospital.take(Case {
        is_listed: true,
        ..typo
    });
    hospital.take(Case {
        is_listed: true,
        ..another
    });
    hospital.take(CASE);
    assert_eq!(hospital.all(), ["team/web"], "a new leader goes by their age");
}

/// What was turned shows the mirror's failure for a while. That is no failure of upstream's.
#[test]
fn a_pod_that_was_turned_does_not_count_against_its_node() {
    let mirrored = format!("Back-off pulling image \"{MIRRORED}\"");
    for message in [mirrored.as_str(), "pull QPS exceeded", "?"] {
        let mut hospital = Hospital::new();
        let annotations = BTreeMap::new();
        let left_alone = BTreeSet::new();
        for image in ["nginx:1.29", "redis:8"] {
            let container = Container {
                name: "app",
                image,
                waiting: Some(("ImagePullBackOff", message)),
                ..Container::default()
            };
            let pod = Pod {
                uid: image,
                namespace: "other",
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

#[test]
fn ten_thousand_stuck_pods_are_turned_in_an_order_that_costs_little() {
    let mut hospital = Hospital::new();
    for number in 0..10_000 {
        let name = number.to_string();
        let namespace = format!("team-{}", number % 100);
        hospital.take(Case {
            namespace: &namespace,
            name: &name,
            ..CASE
        });
    }
    assert_eq!(hospital.queue.waiting(), 10_000);
    let first: HashSet<_> = (0..100)
        .map(|_| hospital.order().unwrap().pod.namespace)
        .collect();
    assert_eq!(first.len(), 100, "each namespace has its turn");
}
