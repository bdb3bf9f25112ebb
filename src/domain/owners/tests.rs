use std::time::Duration;

use super::*;
use crate::domain::examples::NOW;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// A cluster whose Pods a watch is told, at a time of its own.
struct Scene {
    watch: Watch,
    now: Timestamp,
    made: usize,
    is_excused: bool,
    /// Of the only controller.
    generation: i64,
    /// The owner of the only controller, as the API server tells it.
    found: Found,
    asked: usize,
}

/// One Pod of it.
#[derive(Clone)]
struct Example {
    uid: String,
    name: String,
    owner: [&'static str; 4],
    created: Timestamp,
    revision: u64,
    is_rewritten: bool,
    node: &'static str,
    ready: Option<(bool, Timestamp)>,
    is_disrupted: bool,
}

const WEB: [&str; 4] = ["example.com/v1", "Web", "web", "w-1"];
const SET: [&str; 4] = ["apps/v1", "StatefulSet", "web", "s-1"];

fn resource(uid: &str) -> Resource {
    Resource {
        namespace: "team".into(),
        api_version: "example.com/v1".into(),
        kind: "Web".into(),
        name: "web".into(),
        uid: uid.into(),
    }
}

fn question(watch: &mut Watch) -> Option<Question> {
    Some(watch.next_question()?.question)
}

fn nothing(_: &str, _: &str) -> bool {
    false
}

impl Scene {
    fn new() -> Self {
        Self {
            watch: Watch::default(),
            now: NOW,
            made: 0,
            is_excused: false,
            generation: 1,
            found: Found::Owner(Some(resource("w-1"))),
            asked: 0,
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.watch.tidy(self.now);
    }

    /// Makes a Pod, which is rewritten unless its owner is left alone.
    fn create(&mut self, name: &str, owner: [&'static str; 4]) -> Example {
        self.create_of(name, owner, 1)
    }

    fn create_of(&mut self, name: &str, owner: [&'static str; 4], revision: u64) -> Example {
        self.made += 1;
        let pod = Example {
            uid: format!("p-{}", self.made),
            name: name.to_owned(),
            owner,
            created: self.now,
            revision,
            is_rewritten: !self.watch.left_alone().0.is_looping("team", owner[3], self.now),
            node: "node-1",
            ready: None,
            is_disrupted: false,
        };
        self.tell(&pod);
        pod
    }

    fn with<T>(
        &mut self,
        pod: &Example,
        deleted: Option<Timestamp>,
        act: impl FnOnce(&mut Watch, &Pod<'_>) -> T,
    ) -> T {
        let [api_version, kind, name, uid] = pod.owner;
        let pod = Pod {
            uid: &pod.uid,
            namespace: "team",
            name: &pod.name,
            owner: Owner {
                api_version,
                kind,
                name,
                uid,
            },
            created: Some(pod.created),
            deleted,
            is_rewritten: pod.is_rewritten,
            revision: pod.revision,
            is_disrupted: pod.is_disrupted,
            ready: pod.ready,
            node: pod.node,
        };
        act(&mut self.watch, &pod)
    }

    fn tell(&mut self, pod: &Example) {
        let now = self.now;
        self.with(pod, None, |watch, pod| watch.take(pod, nothing, now));
        self.look();
    }

    /// Deletes a Pod, which takes a second to end.
    fn delete(&mut self, pod: &Example) {
        let now = self.now;
        self.with(pod, Some(now), |watch, pod| watch.take(pod, nothing, now));
        self.pass(Duration::from_secs(1));
        let later = self.now;
        self.with(pod, Some(now), |watch, pod| watch.remove(pod, later));
        self.look();
    }

    /// A Pod is told to be gone, and nothing else.
    fn gone(&mut self, pod: &Example) {
        let now = self.now;
        self.with(pod, None, |watch, pod| watch.remove(pod, now));
    }

    fn look(&mut self) {
        while let Some(asked) = self.watch.next_question() {
            self.asked += 1;
            match asked.question {
                Question::Owner(controller) => {
                    self.watch
                        .answer(&controller, self.found.clone(), nothing, self.now);
                }
                Question::Fate(suspect) => {
                    let generation = suspect.controller.as_ref().map(|_| self.generation);
                    let fate = if self.is_excused {
                        Fate::Excused
                    } else {
                        Fate::Deleted(generation)
                    };
                    self.watch.judge(&suspect, fate, self.now);
                }
            }
        }
    }

    fn is_left_alone(&self, uid: &str) -> bool {
        self.watch.left_alone().0.is_looping("team", uid, self.now)
    }

    /// An operator that insists on its image: it deletes whatever was rewritten once it has lived for so long, and makes
    /// it anew. Returns after how many re-creations there was nothing to delete any more, if that came to be.
    fn insist(
        &mut self,
        owner: [&'static str; 4],
        lives: Duration,
        names: impl Fn(usize) -> String,
    ) -> Option<usize> {
        let mut pod = self.create(&names(0), owner);
        for round in 0..50 {
            self.pass(lives);
            if !pod.is_rewritten {
                return Some(round);
            }
            self.delete(&pod);
            pod = self.create(&names(round + 1), owner);
        }
        None
    }
}

fn same(_: usize) -> String {
    "web-0".to_owned()
}

fn generated(number: usize) -> String {
    format!("web-{number}")
}

#[test]
fn an_operator_that_insists_is_left_alone_after_few_re_creations() {
    let second = Duration::from_secs(1);
    for owner in [WEB, SET] {
        for names in [same as fn(usize) -> String, generated] {
            let mut scene = Scene::new();
            // The fourth is made when the third was counted.
            assert_eq!(scene.insist(owner, second, names), Some(4), "{owner:?}");
            assert!(scene.is_left_alone("w-1") && scene.is_left_alone(owner[3]));
            let found = scene.watch.found();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].owner, resource("w-1"));
            // At each sync of the operator.
            let mut scene = Scene::new();
            assert_eq!(scene.insist(owner, 20 * MINUTE, names), Some(6), "{owner:?}");
            // Neither quickly nor slowly is it seen where no one is replaced within a day often enough.
            let mut scene = Scene::new();
            assert_eq!(scene.insist(owner, 6 * HOUR, names), None, "{owner:?}");
        }
    }
}

/// A slow API server costs no count.
#[test]
fn what_became_of_a_pod_may_be_known_a_minute_later() {
    let mut scene = Scene::new();
    for _ in 0..2 {
        let pod = scene.create("web-0", WEB);
        let now = scene.now;
        scene.with(&pod, Some(now), |watch, pod| watch.take(pod, nothing, now));
        scene.made += 1;
        let next = Example {
            uid: format!("p-{}", scene.made),
            created: scene.now,
            ..pod
        };
        scene.with(&next, None, |watch, pod| watch.take(pod, nothing, now));
        scene.pass(MINUTE);
        scene.look();
        scene.delete(&next);
    }
    assert!(scene.is_left_alone("w-1"));
}

#[test]
fn a_controller_of_its_that_is_new_is_known_by_its_first_pod() {
    let mut scene = Scene::new();
    scene.insist(SET, Duration::from_secs(1), same);
    let other = ["apps/v1", "StatefulSet", "web", "s-2"];
    assert!(!scene.is_left_alone("s-2"));
    scene.create("web-0", other);
    assert!(scene.is_left_alone("s-2"));
}

/// So is one of a listed kind, whatever becomes of its Pods.
#[test]
fn a_controller_of_a_listed_owner_is_known_by_its_first_pod() {
    let mut scene = Scene::new();
    let pod = scene.create("web-0", SET);
    assert_eq!(scene.watch.left_alone().0.owner_of("team", "s-1"), None);
    let listed = |_: &str, kind: &str| kind == "Web";
    let now = scene.now;
    // By its next event where the list of kinds changed,
    scene.with(&pod, None, |watch, pod| watch.take(pod, listed, now));
    assert_eq!(
        scene.watch.left_alone().0.owner_of("team", "s-1"),
        Some(&resource("w-1"))
    );
    // and as soon as it is known whose it is where it did not.
    let mut scene = Scene::new();
    scene.with(&pod, None, |watch, pod| watch.take(pod, listed, now));
    let Some(Question::Owner(controller)) = question(&mut scene.watch) else {
        panic!("nobody asks");
    };
    scene.watch.answer(&controller, scene.found.clone(), listed, now);
    let (left, version) = scene.watch.left_alone();
    assert_eq!(left.owner_of("team", "s-1"), Some(&resource("w-1")));
    assert!(!left.is_looping("team", "s-1", now));
    assert_ne!(version, 0);
    // A day without a word of it, it is asked for again; and forgotten where it is gone.
    scene.pass(25 * HOUR);
    let Some(Question::Owner(controller)) = question(&mut scene.watch) else {
        panic!("nobody asks again");
    };
    scene.watch.answer(&controller, Found::Gone, listed, scene.now);
    assert_eq!(scene.watch.left_alone().0.owner_of("team", "s-1"), None);
}

#[test]
fn it_is_left_alone_for_longer_each_time() {
    let mut scene = Scene::new();
    let second = Duration::from_secs(1);
    let mut lengths = Vec::new();
    for round in 0..6 {
        // Who looped before is believed sooner.
        let expected = if round == 0 { 4 } else { 3 };
        assert_eq!(scene.insist(WEB, second, same), Some(expected), "{round}");
        let noted = scene.watch.found().remove(0);
        assert_eq!(noted.times, round + 1);
        lengths.push(noted.until.since(noted.since).as_secs() / 3600);
        let left = noted.until.since(scene.now);
        scene.pass(left.saturating_sub(Duration::from_millis(1)));
        assert!(scene.is_left_alone("w-1"));
        scene.pass(Duration::from_millis(1));
        assert!(!scene.is_left_alone("w-1"));
    }
    assert_eq!(lengths, [1, 4, 16, 64, 168, 168]);
    // Nothing is forgotten as long as it may matter, and then everything.
    scene.pass(168 * HOUR);
    assert!(scene.watch.left_alone().0.knows("team/w-1"));
    scene.pass(Duration::from_secs(1));
    assert!(!scene.watch.left_alone().0.knows("team/w-1"));
}

#[test]
fn the_next_leader_knows_it() {
    let mut scene = Scene::new();
    scene.insist(SET, Duration::from_secs(1), same);
    let [loops, controllers] = scene.watch.left_alone().0.write();
    let mut next = Scene::new();
    next.now = scene.now;
    next.watch
        .inherit(LeftAlone::read(&loops, &controllers), next.now);
    assert!(next.is_left_alone("w-1") && next.is_left_alone("s-1"));
    assert_eq!(next.watch.left_alone().0.write(), [loops, controllers]);
    // What cannot be read is passed over.
    let odd = LeftAlone::read(
        "x\n[[\"a\"],1,2,3]\n\n",
        "[]\n[[\"u\",\"Pod\",\"n\"],[\"a\",\"b\",\"c\",\"d\",\"e\"]]",
    );
    assert_eq!(odd, LeftAlone::read("", ""));
    // People take it out, and it is as any other.
    next.watch.release("team/w-1");
    assert!(!next.is_left_alone("s-1"));
    assert_eq!(next.insist(WEB, Duration::from_secs(1), same), Some(4));
}

#[test]
fn a_roll_out_is_no_loop() {
    // Its Pods are replaced once each, by others of which another thing is wanted or not; and again and again.
    for revisions in [false, true] {
        let mut scene = Scene::new();
        let mut pods: Vec<_> = (0..20)
            .map(|number| scene.create(&generated(number), WEB))
            .collect();
        for round in 0..if revisions { 10 } else { 1_usize } {
            for (number, pod) in pods.iter_mut().enumerate() {
                scene.delete(pod);
                let revision = if revisions { round as u64 + 2 } else { 1 };
                *pod = scene.create_of(&generated(100 * round + number), WEB, revision);
            }
        }
        assert!(!scene.is_left_alone("w-1"), "{revisions}");
    }
    // Those of a Deployment never count: nobody that compares images owns its ReplicaSet.
    let mut scene = Scene::new();
    scene.found = Found::Owner(Some(Resource {
        api_version: "apps/v1".into(),
        kind: "Deployment".into(),
        ..resource("d-1")
    }));
    let set = ["apps/v1", "ReplicaSet", "web-5d", "r-1"];
    assert_eq!(scene.insist(set, Duration::from_secs(1), generated), None);
    // It was asked for once.
    assert_eq!(scene.asked, 1);
}

#[test]
fn a_cron_job_is_no_loop() {
    // A CronJob's, and a workflow's: their Pods end, and nobody tells of them that they were deleted.
    let mut scene = Scene::new();
    scene.found = Found::Owner(Some(Resource {
        api_version: "batch/v1".into(),
        kind: "CronJob".into(),
        ..resource("c-1")
    }));
    let job = ["batch/v1", "Job", "web-1", "j-1"];
    for owner in [job, WEB] {
        for round in 0..20 {
            let pod = scene.create(&generated(round), owner);
            scene.pass(Duration::from_secs(10));
            scene.gone(&pod);
        }
        assert!(!scene.is_left_alone("w-1") && !scene.is_left_alone("j-1"));
    }
    // Not even when what became of them would have to be asked for.
    assert_eq!(scene.asked, 1);
    // One that has no node is deleted at once: there is nobody to wait for.
    for round in 0..5 {
        let mut pod = scene.create(&generated(round), WEB);
        pod.node = "";
        scene.pass(Duration::from_secs(10));
        scene.gone(&pod);
    }
    assert!(scene.is_left_alone("w-1"));
}

/// A kubelet fails a Pod, and its controller deletes it and makes it anew: it is gone when somebody could look.
#[test]
fn a_pod_that_failed_does_not_count_and_changes_no_count() {
    let mut scene = Scene::new();
    let second = Duration::from_secs(1);
    for _ in 0..20 {
        let pod = scene.create("web-0", SET);
        scene.pass(second);
        scene.gone(&pod);
    }
    assert!(!scene.is_left_alone("w-1"));
    // Of those that were deleted before and after every one counts.
    for _ in 0..2 {
        let pod = scene.create("web-0", SET);
        scene.pass(second);
        scene.delete(&pod);
    }
    let failed = scene.create("web-0", SET);
    scene.pass(second);
    scene.gone(&failed);
    let pod = scene.create("web-0", SET);
    assert!(!scene.is_left_alone("w-1"));
    scene.delete(&pod);
    scene.create("web-0", SET);
    assert!(scene.is_left_alone("w-1"));
}

/// Scales something down and up again within that time, many times a day. Returns whether its owner was left alone.
fn scaled(owner: [&'static str; 4], node: &'static str, pause: Duration, generations: i64) -> bool {
    let mut scene = Scene::new();
    for _ in 0..50 {
        let mut pods: Vec<_> = (0..5)
            .map(|number| scene.create(&generated(number), owner))
            .collect();
        scene.pass(5 * MINUTE);
        scene.generation += generations;
        for pod in &mut pods {
            pod.node = node;
            scene.delete(pod);
        }
        scene.pass(pause);
        scene.generation += generations;
    }
    scene.is_left_alone("w-1")
}

#[test]
fn an_autoscaler_makes_no_loop() {
    for node in ["node-1", ""] {
        assert!(!scaled(SET, node, MINUTE, 1), "{node}");
        // Nobody wanted another number of Pods.
        assert!(scaled(SET, node, MINUTE, 0), "{node}");
        // Of a resource that makes Pods itself nobody knows how many it wants, but load comes back some minutes later.
        assert!(!scaled(WEB, node, 3 * MINUTE, 1), "{node}");
    }
}

/// What is scaled now and then is no less a loop.
#[test]
fn a_loop_is_found_though_its_controller_is_scaled() {
    let mut scene = Scene::new();
    let mut pod = scene.create("web-0", SET);
    let mut rounds = 0;
    while pod.is_rewritten {
        rounds += 1;
        assert!(rounds < 10);
        scene.generation += i64::from(rounds == 2);
        scene.pass(Duration::from_secs(1));
        scene.delete(&pod);
        pod = scene.create("web-0", SET);
    }
    assert_eq!(rounds, 5, "one more than without");
    // One that is made anew is none that was scaled.
    let mut scene = Scene::new();
    for number in 0..4 {
        let uid = ["s-1", "s-2", "s-3", "s-4"][number];
        let pod = scene.create("web-0", ["apps/v1", "StatefulSet", "web", uid]);
        // By now it is known whose that one is.
        scene.tell(&pod);
        scene.generation += 1;
        scene.pass(Duration::from_secs(1));
        scene.delete(&pod);
    }
    let pod = scene.create("web-0", ["apps/v1", "StatefulSet", "web", "s-5"]);
    scene.tell(&pod);
    assert!(scene.is_left_alone("w-1"));
}

#[test]
fn a_drain_makes_no_loop() {
    let disrupted = |pod: &mut Example| pod.is_disrupted = true;
    let unknown = |_: &mut Example| ();
    for (change, is_excused) in [(disrupted as fn(&mut Example), false), (unknown, true)] {
        for owner in [WEB, SET] {
            let mut scene = Scene::new();
            scene.is_excused = is_excused;
            for _ in 0..20 {
                let mut pod = scene.create("web-0", owner);
                change(&mut pod);
                scene.pass(Duration::from_secs(20));
                scene.delete(&pod);
            }
            assert!(!scene.is_left_alone("w-1"));
        }
    }
}

#[test]
fn what_was_ready_for_long_makes_no_loop() {
    let check = |ready: fn(Timestamp, Timestamp) -> (bool, Timestamp), lives: Duration, expected: bool| {
        let mut scene = Scene::new();
        for _ in 0..20 {
            let mut pod = scene.create("web-0", WEB);
            scene.pass(lives);
            pod.ready = Some(ready(pod.created, scene.now));
            scene.delete(&pod);
        }
        // It may have been let go since.
        assert_eq!(scene.watch.left_alone().0.knows("team/w-1"), expected);
    };
    check(|created, _| (true, created), HOUR, false);
    check(|created, _| (true, created), 59 * MINUTE, true);
    // Not ready any more, but it may have been until just now.
    check(|_, now| (false, now), HOUR, false);
    // It never was.
    check(|created, _| (false, created), 2 * HOUR, true);
}

#[test]
fn what_is_not_rewritten_never_counts() {
    let mut scene = Scene::new();
    for _ in 0..20 {
        let mut pod = scene.create("web-0", WEB);
        pod.is_rewritten = false;
        scene.delete(&pod);
    }
    assert!(!scene.is_left_alone("w-1"));
}

/// One that takes long to end is replaced before it is gone, and once.
#[test]
fn a_pod_that_ends_slowly_is_replaced_once() {
    let mut scene = Scene::new();
    let mut ending = Vec::new();
    for _ in 0..2 {
        let pod = scene.create("web-0", WEB);
        let now = scene.now;
        scene.with(&pod, Some(now), |watch, pod| watch.take(pod, nothing, now));
        ending.push((pod, now));
        scene.pass(10 * SECOND);
        scene.create("web-0", WEB);
        scene.pass(5 * MINUTE);
        scene.create("web-1", WEB);
    }
    assert_eq!(scene.asked, 2, "each was replaced");
    for (pod, deleted) in ending {
        for _ in 0..10 {
            let now = scene.now;
            scene.with(&pod, Some(deleted), |watch, pod| watch.take(pod, nothing, now));
            scene.create(&generated(scene.made), WEB);
        }
    }
    assert_eq!(scene.asked, 2, "and no one twice");
    assert!(!scene.is_left_alone("w-1"));
}

#[test]
fn notes_have_a_bound_and_nobody_drives_out_others() {
    let mut left = LeftAlone::default();
    let owner = |namespace: &str, number: usize| Resource {
        namespace: namespace.into(),
        ..resource(&format!("{namespace}-{number:08}-0000-0000-0000-000000000000"))
    };
    left.leave_alone(owner("quiet", 0), NOW);
    for number in 0..KEPT + 10 {
        let noted = Loop {
            owner: owner("loud", number),
            times: 1,
            since: NOW,
            until: NOW.after(Duration::from_millis(number as u64)),
        };
        left.loops.insert(noted.owner.key(), noted);
    }
    left.leave_alone(owner("other", 0), NOW);
    let written = left.write();
    let bytes = written.iter().map(String::len).sum::<usize>();
    assert!(bytes <= BYTES, "{bytes}");
    assert!(left.owners().count() > 5000 && left.owners().count() <= KEPT);
    for namespace in ["quiet", "other"] {
        assert!(left.knows(&format!(
            "{namespace}/{namespace}-00000000-0000-0000-0000-000000000000"
        )));
    }
    // Who is let go soonest goes first.
    assert!(!left.knows("loud/loud-00000000-0000-0000-0000-000000000000"));
}

/// As they are written: a text may take six times as many bytes.
#[test]
fn notes_have_a_bound_of_what_is_written() {
    for text in ["\u{1}", "\"\\", "\n", "é", "a"] {
        let mut left = LeftAlone::default();
        for number in 0..40 {
            let mut owner = resource(&format!("{number}-{}", text.repeat(50)));
            owner.name = text.repeat(10_000).into();
            let held = Held {
                controller: Controller {
                    namespace: "team".into(),
                    kind: Kind::StatefulSet,
                    name: text.repeat(10_000).into(),
                    uid: owner.uid.clone(),
                },
                owner: owner.clone(),
            };
            let noted = Loop {
                owner,
                times: u32::MAX,
                since: Timestamp::from_millis(u64::MAX),
                until: Timestamp::from_millis(u64::MAX),
            };
            let size = noted.size() + held.size();
            let mut one = LeftAlone::default();
            one.loops.insert(noted.owner.key(), noted.clone());
            one.controllers.insert(held.controller.key(), held.clone());
            assert!(one.write().concat().len() <= size, "{text:?}");
            left.loops.insert(noted.owner.key(), noted);
            left.controllers.insert(held.controller.key(), held);
            left.fit();
            assert!(left.write().concat().len() <= BYTES, "{text:?}");
        }
        assert!(left.owners().count() > 0);
    }
}

#[test]
fn owners_that_are_watched_have_a_bound_and_nobody_drives_out_others() {
    let mut scene = Scene::new();
    let pod = scene.create("web-0", WEB);
    scene.delete(&pod);
    let pod = scene.create("web-0", WEB);
    let mut other = pod.clone();
    // It is the one that was heard of the longest time ago.
    scene.pass(SECOND);
    for number in 0..12_000 {
        let uid = format!("o-{number}");
        other.uid.clone_from(&uid);
        let now = scene.now;
        scene.with(&other, Some(now), |watch, pod| {
            let owner = Owner {
                uid: &uid,
                ..pod.owner
            };
            let pod = Pod {
                namespace: "loud",
                owner,
                ..*pod
            };
            watch.take(&pod, nothing, now);
        });
    }
    let watched = scene.watch.watched_owners();
    assert!((5_000..=10_000).contains(&watched), "{watched}");
    scene.delete(&pod);
    let pod = scene.create("web-0", WEB);
    scene.delete(&pod);
    scene.create("web-0", WEB);
    assert!(scene.is_left_alone("w-1"));
}

#[test]
fn questions_take_turns_and_have_a_bound() {
    let mut watch = Watch::default();
    let ask = |watch: &mut Watch, namespace: &str, number: usize, created: Timestamp| {
        let uid = format!("{namespace}-{number}");
        let pod = Pod {
            uid: "p",
            namespace,
            name: "p",
            owner: Owner {
                api_version: "batch/v1",
                kind: "Job",
                name: &uid,
                uid: &uid,
            },
            created: Some(created),
            deleted: None,
            is_rewritten: true,
            revision: 0,
            is_disrupted: false,
            ready: None,
            node: "",
        };
        watch.take(&pod, nothing, NOW);
    };
    let old = NOW.before(HOUR);
    ask(&mut watch, "old", 0, old);
    for number in 0..3000 {
        ask(&mut watch, "loud", number, NOW);
    }
    ask(&mut watch, "quiet", 0, NOW);
    let mut next = || match question(&mut watch) {
        Some(Question::Owner(controller)) => Some(controller.uid.to_string()),
        Some(Question::Fate(_)) | None => None,
    };
    let first: Vec<_> = (0..3).filter_map(|_| next()).collect();
    assert_eq!(first, ["loud-2999", "quiet-0", "loud-2998"]);
    let rest: Vec<_> = std::iter::from_fn(next).collect();
    assert_eq!(rest.len(), 1000 - 2 + 1);
    // What is older than its owner may be comes when nothing else is to be done.
    assert_eq!(rest.last().unwrap(), "old-0");
}

/// Whoever may create Pods of one namespace writes any UID into their owner references.
#[test]
fn nobody_speaks_of_another_namespaces_owners() {
    let listed = |_: &str, kind: &str| kind == "Web";
    let controller = |namespace: &str, name: &str| Controller {
        namespace: namespace.into(),
        kind: Kind::StatefulSet,
        name: name.into(),
        uid: "s-1".into(),
    };
    let mut scene = Scene::new();
    let now = scene.now;
    let found = scene.found.clone();
    scene.watch.answer(&controller("team", "web"), found, listed, now);
    let is_known = |scene: &Scene| scene.watch.left_alone().0.owner_of("team", "s-1").is_some();
    // There is none of that UID elsewhere, nor of that name,
    for (namespace, name) in [("other", "web"), ("other", "nothing"), ("team", "nothing")] {
        scene
            .watch
            .answer(&controller(namespace, name), Found::Gone, listed, now);
        assert!(is_known(&scene), "{namespace}/{name}");
    }
    assert_eq!(scene.watch.left_alone().0.owner_of("other", "s-1"), None);
    // so its Pods still count,
    assert_eq!(scene.insist(SET, Duration::from_secs(1), same), Some(4));
    // without another question of whose it is than what became of three Pods,
    assert_eq!(scene.asked, 3);
    // and not for others.
    let (left, _) = scene.watch.left_alone();
    assert!(left.is_looping("team", "w-1", scene.now) && left.is_looping("team", "s-1", scene.now));
    assert!(!left.is_looping("other", "w-1", scene.now) && !left.is_looping("other", "s-1", scene.now));
    let [loops, controllers] = left.write();
    assert_eq!(
        LeftAlone::read(&loops, &controllers).write(),
        [loops, controllers]
    );
    scene
        .watch
        .answer(&controller("team", "web"), Found::Gone, listed, now);
    assert!(!is_known(&scene));
}

#[test]
fn a_question_that_cannot_be_answered_comes_a_few_times() {
    for owner in [SET, WEB] {
        let mut scene = Scene::new();
        let now = scene.now;
        let mut pod = scene.create("web-0", WEB);
        pod.owner = owner;
        if owner == WEB {
            scene.delete(&pod);
            pod.uid = "p-2".to_owned();
            pod.created = scene.now;
        }
        let tell = |scene: &mut Scene| scene.with(&pod, None, |watch, pod| watch.take(pod, nothing, now));
        tell(&mut scene);
        // Whoever answers is at fault: for as long as that takes.
        for _ in 0..20 {
            let asked = scene.watch.next_question().unwrap();
            scene.watch.again(asked, false);
        }
        for _ in 0..3 {
            let asked = scene.watch.next_question().unwrap();
            scene.watch.again(asked, true);
        }
        assert_eq!(scene.watch.next_question(), None, "{owner:?}");
    }
}

/// Whoever recreates Pods without end keeps nobody else waiting.
#[test]
fn pods_that_are_looked_after_take_turns_and_have_a_bound() {
    let mut watch = Watch::default();
    let tell = |watch: &mut Watch, namespace: &str, number: usize| {
        let uids = [0, 1].map(|place| format!("{namespace}-{number}-{place}"));
        let [api_version, kind, name, _] = WEB;
        let owner = Owner {
            api_version,
            kind,
            name,
            uid: &uids[0],
        };
        let pod = |uid, deleted| Pod {
            uid,
            namespace,
            name: "p",
            owner,
            created: Some(NOW),
            deleted,
            is_rewritten: true,
            revision: 0,
            is_disrupted: false,
            ready: None,
            node: "node-1",
        };
        watch.take(&pod(&uids[0], Some(NOW)), nothing, NOW);
        watch.take(&pod(&uids[1], None), nothing, NOW);
    };
    for number in 0..3000 {
        tell(&mut watch, "loud", number);
    }
    tell(&mut watch, "quiet", 0);
    let set = Owner {
        api_version: SET[0],
        kind: SET[1],
        name: SET[2],
        uid: SET[3],
    };
    let of_set = Pod {
        uid: "p",
        namespace: "quiet",
        name: "p",
        owner: set,
        created: Some(NOW),
        deleted: None,
        is_rewritten: true,
        revision: 0,
        is_disrupted: false,
        ready: None,
        node: "",
    };
    watch.take(&of_set, nothing, NOW);
    let mut next = || match question(&mut watch)? {
        Question::Owner(controller) => Some(controller.uid.to_string()),
        Question::Fate(suspect) => Some(suspect.namespace.to_string()),
    };
    let first: Vec<_> = (0..3).filter_map(|_| next()).collect();
    assert_eq!(first, ["loud", "s-1", "quiet"]);
    assert_eq!(std::iter::from_fn(next).count(), 999);
}

#[test]
fn custom_resources_are_told_from_what_is_built_in() {
    for (api_version, expected) in [
        ("v1", false),
        ("apps/v1", false),
        ("batch/v1", false),
        ("postgresql.cnpg.io/v1", true),
        ("apps.kruise.io/v1alpha1", true),
    ] {
        assert_eq!(is_custom(api_version), expected, "{api_version}");
    }
    assert_eq!(Kind::of("apps/v1", "StatefulSet"), Some(Kind::StatefulSet));
    assert_eq!(Kind::of("apps.kruise.io/v1", "StatefulSet"), None);
    assert_eq!(Kind::of("apps/v1", "Deployment"), None);
    assert_eq!(
        owner_by_label("application", "spilo"),
        Some(("acid.zalan.do/v1", "postgresql"))
    );
    assert_eq!(owner_by_label("application", "web"), None);
}
