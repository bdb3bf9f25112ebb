//! Pods that are stuck, as their statuses say, which these tests write in a kubelet's place.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, TcpListener},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use kagami::{clock, domain::time::Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    clocks::library,
    companion::assert_only_allowed,
    support::{
        PATIENCE,
        admission::{annotation, image, pod},
        chart::stdout,
        cluster::{Cluster, Namespace, RBAC, User},
        companion::{Companion, DEFINITIONS, IMAGES, MIRRORS, Place},
        eventually,
        http::Answer,
        runner::skipped,
        within,
    },
};

/// Without it stuck Pods are left to themselves.
pub(crate) const RESCUES: &[&str] = &["--rescue-per-second", "10"];

/// The first status that counts, and how long nothing else happens after it.
pub(crate) const MOMENT: Duration = Duration::from_millis(500);

/// The name of an image, as users write it.
pub(crate) fn written(name: &str) -> String {
    format!("docker.io/library/{name}:1")
}

/// The same as Kagami writes it.
pub(crate) fn mirrored(name: &str) -> String {
    format!("mirror.test/{}", written(name))
}

/// A Pod as Kagami leaves it: containers by their names, which are those of their images too.
pub(crate) fn rewritten(name: &str, init: &[&str], containers: &[&str]) -> Value {
    let mut pod = pod(name, "x");
    let list = |names: &[&str]| -> Value {
        let container = |name: &&str| json!({"name": name, "image": mirrored(name)});
        names.iter().map(container).collect()
    };
    pod["spec"] = json!({"initContainers": list(init), "containers": list(containers)});
    let annotations: serde_json::Map<_, _> = [init, containers]
        .concat()
        .iter()
        .map(|name| (format!("original-image.kagami.dev/{name}"), json!(written(name))))
        .collect();
    pod["metadata"]["annotations"] = annotations.into();
    pod
}

/// What kubelet says just after it failed to pull an image.
pub(crate) fn failed(image: &str) -> Value {
    let message =
        format!("failed to pull and unpack image \"{image}\": failed to resolve reference \"{image}\": EOF");
    waiting("ErrImagePull", &message)
}

/// The same between two attempts.
pub(crate) fn back_off(image: &str) -> Value {
    waiting("ImagePullBackOff", &format!("Back-off pulling image \"{image}\""))
}

/// Writes that a Pod's containers which cannot be pulled were tried again, and failed.
pub(crate) fn fail_again(namespace: &Namespace<'_>, name: &str) {
    for reason in ["ImagePullBackOff", "ErrImagePull"] {
        let mut pod = namespace.pod(name);
        for list in ["initContainerStatuses", "containerStatuses"] {
            let statuses = pod["status"][list].as_array_mut().into_iter().flatten();
            for waiting in statuses.map(|status| &mut status["state"]["waiting"]) {
                let before = waiting["reason"].as_str().unwrap_or_default();
                if ["ImagePullBackOff", "ErrImagePull"].contains(&before) {
                    waiting["reason"] = reason.into();
                }
            }
        }
        let path = namespace.path(&format!("pods/{name}/status"));
        let written = namespace
            .cluster
            .request(User::Admin, Method::PUT, &path, Some(&pod));
        // It may be turned in between.
        assert!([200, 409].contains(&written.status), "{written:?}");
    }
}

/// Waits until a Pod is as it shall be, while a kubelet tries again and again what it waits for.
pub(crate) fn until(
    what: &str,
    namespace: &Namespace<'_>,
    name: &str,
    is_it: impl Fn(&Value) -> bool,
) -> Value {
    let mut tried = Instant::now();
    eventually(what, || {
        let pod = namespace.pod(name);
        if is_it(&pod) {
            return Some(pod);
        }
        if tried.elapsed() >= 3 * MOMENT {
            fail_again(namespace, name);
            tried = Instant::now();
        }
        None
    })
}

/// Does something while kubelets try again and again what Pods wait for that do not have the image which their users
/// wrote.
fn while_they_fail<T>(namespace: &Namespace<'_>, names: &[String], work: impl FnOnce() -> T) -> T {
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let stuck = names
                    .iter()
                    .filter(|name| image(&namespace.pod(name), "app") != written("app"));
                for name in stuck.take_while(|_| !is_over.load(Ordering::Relaxed)) {
                    fail_again(namespace, name);
                }
                thread::sleep(MOMENT);
            }
        });
        let _end = End(&is_over);
        work()
    })
}

pub(crate) fn waiting(reason: &str, message: &str) -> Value {
    json!({"waiting": {"reason": reason, "message": message}})
}

pub(crate) fn running() -> Value {
    json!({"running": {"startedAt": "2030-01-01T00:00:00Z"}})
}

fn succeeded() -> Value {
    json!({"terminated": {"exitCode": 0}})
}

/// Writes a Pod's status: the states of its containers, by their names.
pub(crate) fn report(namespace: &Namespace<'_>, name: &str, states: &[(&str, Value)]) -> Answer {
    let pod = namespace.pod(name);
    let of = |list: &str| -> Value {
        let names = pod["spec"][list].as_array().into_iter().flatten();
        let names = names.map(|container| container["name"].as_str().unwrap().to_owned());
        let status = |name: String| {
            let state = states.iter().find(|(known, _)| *known == name);
            let state = state.map_or_else(|| waiting("PodInitializing", ""), |(_, state)| state.clone());
            json!({
                "name": name, "image": mirrored(&name), "imageID": "", "ready": false, "restartCount": 0,
                "state": state,
            })
        };
        names.map(status).collect()
    };
    let status = json!({
        "phase": "Pending",
        "initContainerStatuses": of("initContainers"),
        "containerStatuses": of("containers"),
    });
    let path = namespace.path(&format!("pods/{name}/status"));
    // As kubelet writes it, who minds nothing that was written in between, and takes nothing of it away.
    namespace.cluster.patch(
        User::Admin,
        "application/merge-patch+json",
        &path,
        &json!({"status": status}),
    )
}

/// Creates a Pod with one container `app` that is stuck on the mirror.
fn stuck(namespace: &Namespace<'_>, name: &str) {
    namespace.create_pod(&rewritten(name, &[], &["app"])).success();
    report(namespace, name, &[("app", failed(&mirrored("app")))]).success();
}

/// Waits until a container has the image that its user wrote.
fn until_back(namespace: &Namespace<'_>, name: &str, container: &str) -> Value {
    let what = format!("{container} of {name} goes back");
    until(&what, namespace, name, |pod| {
        image(pod, container) == written(container)
    })
}

/// Waits until whatever there was to do before is done: two Pods, one after the other, go back.
fn until_all_is_done(namespace: &Namespace<'_>) {
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    for _ in 0..2 {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("last-{number}");
        stuck(namespace, &name);
        until_back(namespace, &name, "app");
    }
}

/// The patches of a Pod that a companion had accepted, oldest first.
pub(crate) fn patches(
    place: &Place<'_>,
    companion: &Companion,
    namespace: &Namespace<'_>,
    name: &str,
) -> Vec<Value> {
    let mut patches = requests(place, companion, namespace, name);
    patches.retain(|write| write["responseStatus"]["code"] == 200);
    patches
}

/// Those that it sent, whatever came of them: what a policy refuses was asked for all the same.
pub(crate) fn requests(
    place: &Place<'_>,
    companion: &Companion,
    namespace: &Namespace<'_>,
    name: &str,
) -> Vec<Value> {
    let mut writes = place.cluster.writes_of(|user| user["username"] == companion.user);
    writes.retain(|write| {
        let object = &write["objectRef"];
        object["resource"] == "pods"
            && object["namespace"] == namespace.name.as_str()
            && object["name"] == name
    });
    writes
}

/// Waits for an Event of a Pod with that reason, and returns its note.
pub(crate) fn until_told(namespace: &Namespace<'_>, name: &str, reason: &str) -> String {
    eventually(&format!("Event {reason} of {name}"), || {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", namespace.name);
        let events = namespace.cluster.get(&path).success();
        let mut events = events["items"].as_array()?.iter();
        let event = events.find(|event| event["regarding"]["name"] == name && event["reason"] == reason)?;
        Some(event["note"].as_str().unwrap().to_owned())
    })
}

pub(crate) fn metric(companion: &Companion, name: &str) -> Option<String> {
    let (_, metrics) = companion.listeners.get("/metrics").unwrap();
    let mut lines = metrics.lines();
    lines.find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
}

pub(crate) fn a_stuck_pod_goes_back_at_once_and_once_only(cluster: &Cluster) {
    let place = Place::guarded(cluster, &cluster.mirror.url);
    let companion = place.start("companion-a", RESCUES);
    let namespace = &place.served;
    namespace
        .create_pod(&rewritten("web", &["init", "side"], &["app", "more"]))
        .success();
    let pulls = waiting(
        "ErrImagePull",
        &format!(
            "rpc error: code = NotFound desc = failed to pull and unpack image \"{0}\": failed to resolve reference \
             \"{0}\": {0}: not found",
            mirrored("app")
        ),
    );
    let states = [
        ("init", succeeded()),
        ("side", succeeded()),
        ("app", pulls),
        ("more", running()),
    ];
    let asked = Instant::now();
    report(namespace, "web", &states).success();
    let pod = until_back(namespace, "web", "app");
    let took = asked.elapsed();
    // A busy machine; alone it takes some milliseconds.
    assert!(took < Duration::from_secs(5), "{took:?}");
    for other in ["init", "side", "more"] {
        assert_eq!(image(&pod, other), mirrored(other));
    }
    let record: Value = serde_json::from_str(annotation(&pod, "kagami.dev/rescued").unwrap()).unwrap();
    let turn = &record["containers.app"];
    assert_eq!(
        (turn["from"].as_str(), turn["to"].as_str()),
        (Some(mirrored("app").as_str()), Some(written("app").as_str()))
    );
    let note = until_told(namespace, "web", "Rescued");
    assert!(
        note.contains(&mirrored("app")) && note.contains(&written("app")),
        "{note}"
    );
    let labels = format!(
        "kagami_rescues_total{{mirror=\"{}\",direction=\"back\",outcome=\"done\"}}",
        place.name
    );
    assert_eq!(metric(&companion, &labels).as_deref(), Some("1"));

    // Kubelet shows the new image with the old one's message for a while; that is no failure of the new one.
    let fails = || {
        for state in [back_off(&mirrored("app")), failed(&mirrored("app"))] {
            report(namespace, "web", &[("app", state), ("more", running())]).success();
        }
    };
    fails();
    // And whoever wants the mirror back has it.
    let patch = json!({"spec": {"containers": [{"name": "app", "image": mirrored("app")}]}}).to_string();
    stdout(&namespace.kubectl(&["patch", "pod", "web", "--patch", &patch]));
    fails();
    until_all_is_done(namespace);
    assert_eq!(image(&namespace.pod("web"), "app"), mirrored("app"));
    assert_eq!(patches(&place, &companion, namespace, "web").len(), 1);
    assert_only_allowed(&place, &companion);
}

pub(crate) fn init_containers_and_sidecars_go_back_by_their_rules(cluster: &Cluster) {
    let place = Place::guarded(cluster, &cluster.mirror.url);
    let companion = place.start("companion-a", RESCUES);
    let namespace = &place.served;
    let mut pod = rewritten("web", &["one", "two"], &["app"]);
    pod["spec"]["initContainers"][1]["restartPolicy"] = "Always".into();
    namespace.create_pod(&pod).success();
    report(
        namespace,
        "web",
        &[
            ("one", failed(&mirrored("one"))),
            ("two", failed(&mirrored("two"))),
        ],
    )
    .success();
    let pod = until_back(namespace, "web", "one");
    assert_eq!(image(&pod, "two"), mirrored("two"), "it was not its turn");
    report(
        namespace,
        "web",
        &[("one", succeeded()), ("two", failed(&mirrored("two")))],
    )
    .success();
    let pod = until_back(namespace, "web", "two");
    assert_eq!(image(&pod, "app"), mirrored("app"));
    report(
        namespace,
        "web",
        &[
            ("one", succeeded()),
            ("two", running()),
            ("app", failed(&mirrored("app"))),
        ],
    )
    .success();
    until_back(namespace, "web", "app");
    let pod = namespace.pod("web");
    let record: Value = serde_json::from_str(annotation(&pod, "kagami.dev/rescued").unwrap()).unwrap();
    let turned: Vec<_> = record.as_object().unwrap().keys().collect();
    assert_eq!(
        turned,
        ["containers.app", "initContainers.one", "initContainers.two"]
    );
    assert_eq!(patches(&place, &companion, namespace, "web").len(), 3);
    assert_only_allowed(&place, &companion);
}

/// A Pod that stays as it is: its name, what is different about it, and the state of its container.
struct Case(&'static str, fn(&mut Value), Value);

/// Pods that differ in one thing from one that goes back.
fn left_alone() -> Vec<Case> {
    let own = mirrored("app");
    let limit = "pull QPS exceeded";
    vec![
        Case("other-reference", |_| (), failed(&mirrored("volume"))),
        Case("after-a-patch", |_| (), failed(&written("app"))),
        Case("limit", |_| (), waiting("ErrImagePull", limit)),
        Case(
            "unnamed",
            |_| (),
            waiting(
                "ErrImagePull",
                "rpc error: code = Canceled desc = context canceled",
            ),
        ),
        Case("creating", |_| (), waiting("ContainerCreating", "")),
        Case(
            "never",
            |_| (),
            waiting(
                "ErrImageNeverPull",
                &format!("Container image \"{own}\" is not present"),
            ),
        ),
        Case("runs", |_| (), running()),
        Case("ended", |_| (), succeeded()),
        Case(
            "off",
            |pod| pod["metadata"]["labels"] = json!({"kagami.dev/mode": "off"}),
            failed(&own),
        ),
        Case(
            "odd-mode",
            |pod| pod["metadata"]["labels"] = json!({"kagami.dev/mode": "never"}),
            failed(&own),
        ),
        Case(
            "static",
            |pod| {
                pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "x".into();
                // Else it may be none.
                pod["spec"]["nodeName"] = "no-such-node".into();
            },
            failed(&own),
        ),
        Case(
            "goes",
            |pod| pod["metadata"]["finalizers"] = json!(["example.com/wait"]),
            failed(&own),
        ),
        Case(
            "unrecorded",
            |pod| pod["metadata"]["annotations"] = json!({}),
            failed(&own),
        ),
        Case(
            "forged",
            |pod| pod["metadata"]["annotations"]["original-image.kagami.dev/app"] = "evil.test/app:1".into(),
            failed(&own),
        ),
        Case(
            "forged-tag",
            |pod| pod["metadata"]["annotations"]["original-image.kagami.dev/app"] = "app:2".into(),
            failed(&own),
        ),
        // Of so many that the rest of a Pod's annotations has room for no more: none is this container's.
        Case(
            "forged-many",
            |pod| {
                let forged =
                    (0..4_000).map(|number| (format!("original-image.kagami.dev/x{number}"), json!("app:1")));
                pod["metadata"]["annotations"] = forged.collect::<serde_json::Map<_, _>>().into();
            },
            failed(&own),
        ),
        Case(
            "turned",
            |pod| {
                let turn = r#"{"containers.app": {"from": "a", "to": "b", "at": "c"}}"#;
                pod["metadata"]["annotations"]["kagami.dev/rescued"] = turn.into();
            },
            failed(&own),
        ),
        Case(
            "turns-unreadable",
            |pod| pod["metadata"]["annotations"]["kagami.dev/rescued"] = "{".into(),
            failed(&own),
        ),
    ]
}

/// Who wrote the mirror's name knows what it was made of; Kagami only says what the mapping would.
fn told_of_those_without_a_record(place: &Place<'_>) {
    let made_of = "would make it of docker.io/library/app:1";
    let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", place.served.name);
    let told = eventually("those without a record are told", || {
        let events = place.cluster.get(&path).success();
        let events = events["items"].as_array()?.clone().into_iter();
        let events = events.filter(|event| event["reason"] == "NoRecord");
        let events: Vec<_> = events
            .filter(|event| event["note"].as_str().unwrap().contains(made_of))
            .map(|event| event["regarding"]["name"].as_str().unwrap().to_owned())
            .collect();
        (events.len() >= 4).then_some(events)
    });
    let told: BTreeSet<_> = told.iter().map(String::as_str).collect();
    assert_eq!(told, ["forged", "forged-many", "forged-tag", "unrecorded"].into());
    eventually("condition OriginalsRecorded tells of them", || {
        let mirror = place.mirror();
        let mut conditions = mirror["status"]["conditions"].as_array()?.iter();
        let condition = conditions.find(|condition| condition["type"] == "OriginalsRecorded")?;
        let message = condition["message"].as_str()?;
        assert!(
            !message.contains(&place.served.name),
            "everybody may read it: {message}"
        );
        (condition["reason"] == "NoRecord" && message.contains(made_of)).then_some(())
    });
}

pub(crate) fn what_is_not_stuck_on_a_mirror_of_ours_is_left_alone(cluster: &Cluster) {
    let place = Place::guarded(cluster, &cluster.mirror.url);
    let companion = place.start("companion-a", RESCUES);
    let namespace = &place.served;
    let (own, cases) = (mirrored("app"), left_alone());
    for Case(name, change, state) in &cases {
        let mut pod = rewritten(name, &[], &["app"]);
        change(&mut pod);
        namespace.create_pod(&pod).success();
        if *name == "goes" {
            stdout(&namespace.kubectl(&["delete", "pod", name, "--wait=false"]));
        }
        report(namespace, name, &[("app", state.clone())]).success();
    }
    until_all_is_done(namespace);
    // Now it surely would be heard.
    for Case(name, ..) in &cases {
        fail_again(namespace, name);
    }
    until_all_is_done(namespace);
    thread::sleep(MOMENT);
    for Case(name, ..) in &cases {
        let pod = namespace.pod(name);
        assert_eq!(image(&pod, "app"), own, "{name}");
        assert!(patches(&place, &companion, namespace, name).is_empty(), "{name}");
    }
    told_of_those_without_a_record(&place);
    stdout(&namespace.kubectl(&["delete", "pod", "static", "--force", "--grace-period=0"]));
    let finish = [
        "patch",
        "pod",
        "goes",
        "--type=merge",
        "--patch",
        r#"{"metadata": {"finalizers": null}}"#,
    ];
    stdout(&namespace.kubectl(&finish));
    assert_only_allowed(&place, &companion);
}

/// What it was about to do was decided of a Pod that is another one by now.
pub(crate) fn a_pod_that_somebody_changed_in_between_is_left_alone(cluster: &Cluster) {
    let place = Place::guarded(cluster, &cluster.mirror.url);
    let companion = place.start("companion-a", RESCUES);
    let namespace = &place.served;
    until_all_is_done(namespace);
    namespace
        .create_pod(&rewritten("web", &[], &["app", "more"]))
        .success();
    companion.process.freeze();
    let states = [
        ("app", failed(&mirrored("app"))),
        ("more", failed(&mirrored("more"))),
    ];
    report(namespace, "web", &states).success();
    let patch = json!({"spec": {"containers": [{"name": "app", "image": "theirs:1"}]}}).to_string();
    stdout(&namespace.kubectl(&["patch", "pod", "web", "--patch", &patch]));
    companion.process.thaw();
    // The other container is still stuck, and goes back by itself.
    let pod = until_back(namespace, "web", "more");
    assert_eq!(image(&pod, "app"), "theirs:1");
    until_all_is_done(namespace);
    assert_eq!(image(&namespace.pod("web"), "app"), "theirs:1");
    assert_eq!(patches(&place, &companion, namespace, "web").len(), 1);
    assert_only_allowed(&place, &companion);
}

pub(crate) fn by_its_policy_a_mirror_is_told_of_or_left_alone(cluster: &Cluster) {
    let place = Place::guarded(cluster, &cluster.mirror.url);
    place.patch_mirror(&json!({"spec": {"rescue": {"policy": "Audit"}}}));
    let companion = place.start("companion-a", RESCUES);
    let namespace = &place.served;
    stuck(namespace, "web");
    let note = until_told(namespace, "web", "WouldRescue");
    assert!(
        note.contains(&mirrored("app")) && note.contains(&written("app")),
        "{note}"
    );
    report(namespace, "web", &[("app", waiting("ErrImagePull", "x"))]).success();
    report(namespace, "web", &[("app", failed(&mirrored("app")))]).success();

    // A second mirror in the same registry, which says nothing of its own: the weaker policy holds.
    place.patch_mirror(&json!({"spec": {"rescue": {"policy": "Off"}}}));
    let second = format!("second-{}", place.name);
    let mut mirror = place.mirror();
    mirror["metadata"] = json!({"name": second});
    mirror["spec"]["rescue"] = json!({"policy": "Enforce"});
    drop(mirror.as_object_mut().unwrap().remove("status"));
    cluster.create(MIRRORS, &mirror).success();
    stuck(namespace, "off");
    thread::sleep(4 * MOMENT);
    for name in ["web", "off"] {
        assert_eq!(image(&namespace.pod(name), "app"), mirrored("app"));
    }
    // With the word that it may, those that are stuck go back, though no Pod says anything new.
    place.patch_mirror(&json!({"spec": {"rescue": {"policy": "Enforce"}}}));
    until_back(namespace, "web", "app");
    until_back(namespace, "off", "app");
    let told = cluster.writes_of(|user| user["username"] == companion.user);
    let told = told.iter().filter(|write| {
        let event = &write["requestObject"];
        event["reason"] == "WouldRescue"
            && event["regarding"]["name"] == "web"
            && write["objectRef"]["namespace"] == namespace.name.as_str()
    });
    assert_eq!(told.count(), 1);
    cluster.delete(&format!("{MIRRORS}/{second}")).success();
    assert_only_allowed(&place, &companion);
}

pub(crate) fn a_mirror_that_is_off_or_deselected_lets_its_pods_go(cluster: &Cluster) {
    // Nobody listens there, too.
    let place = Place::guarded(cluster, "https://127.0.0.1:1");
    let companion = place.start("companion-a", RESCUES);
    let namespace = &place.served;
    let nobody = json!({"matchLabels": {"nobody": "has-it"}});
    place.patch_mirror(&json!({"spec": {"mode": "Off", "namespaceSelector": nobody}}));
    let names: Vec<_> = (0..20).map(|number| format!("web-{number}")).collect();
    for name in &names {
        stuck(namespace, name);
    }
    while_they_fail(namespace, &names, || {
        within(2 * PATIENCE, "all are back", || {
            let mut pods = names.iter().map(|name| namespace.pod(name));
            pods.all(|pod| image(&pod, "app") == written("app")).then_some(())
        });
    });
    assert_only_allowed(&place, &companion);
}

/// A new leader needs mirrors, Namespaces and Pods for it, and waits for nothing else: here it never gets to know the
/// images, nodes and Secrets, and so never what the last leader left.
pub(crate) fn without_images_nodes_and_secrets_a_stuck_pod_goes_back(shared: &Cluster) {
    let cluster = Cluster::start(shared.tools.clone());
    let place = Place::apart(&cluster, &cluster.mirror.url);
    let definition = format!("{DEFINITIONS}/mirroredimages.kagami.dev");
    cluster.delete(&definition).success();
    eventually("the definition is gone", || {
        (cluster.request(User::Admin, Method::GET, IMAGES, None).status == 404).then_some(())
    });
    let without = |path: &str, resource: &str| {
        let mut role = cluster.get(path).success();
        for rule in role["rules"].as_array_mut().unwrap() {
            let resources = rule["resources"].as_array_mut().unwrap();
            resources.retain(|known| known != resource);
            if resources.is_empty() {
                *resources = vec![json!("nobody-has-these")];
            }
        }
        cluster
            .request(User::Admin, Method::PUT, path, Some(&role))
            .success();
    };
    without(&format!("{RBAC}/clusterroles/{}", place.name), "nodes");
    without(
        &format!("{RBAC}/namespaces/{}/roles/kagami", place.own.name),
        "secrets",
    );
    stuck(&place.served, "before");
    let _companion = place.start("companion-a", RESCUES);
    until_back(&place.served, "before", "app");
    stuck(&place.served, "after");
    until_back(&place.served, "after", "app");
}

/// One that went back in vain, and one whose kubelet does not try though the mirror gives the image: under a clock that
/// is set, for both are waited for for minutes.
pub(crate) fn pods_that_stay_stuck_are_told_of(shared: &Cluster) {
    let Some(library) = library() else {
        assert!(
            !skipped(
                "of Pods that stay stuck",
                "libfaketime is not there: install Debian's package"
            ),
            "libfaketime is not there"
        );
        return;
    };
    let cluster = Cluster::start(shared.tools.clone());
    let place = Place::apart(&cluster, &cluster.mirror.url);
    // Proofs last whatever the clock does.
    place.patch_mirror(&json!({"spec": {"freshness": {"tag": "12h"}}}));
    let namespace = &place.served;
    let file = cluster.folder().join("clock");
    let set = |seconds: u64| {
        let new = cluster.folder().join("clock.new");
        fs::write(&new, format!("+{seconds}s\n")).unwrap();
        fs::rename(new, &file).unwrap();
    };
    set(0);
    let companion = place.start_as("companion-a", RESCUES, |command| {
        command
            .env("LD_PRELOAD", &library)
            .env("FAKETIME_TIMESTAMP_FILE", &file)
            .env("FAKETIME_NO_CACHE", "1")
            // Only what is measured goes on as it does.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    });
    let given = "docker.io/library/nginx:1.29";
    namespace.create_pod(&pod("known", given)).success();
    place.wait_for_image(given, "Present");
    stuck(namespace, "back");
    until_back(namespace, "back", "app");
    report(namespace, "back", &[("app", failed(&written("app")))]).success();
    let image = format!("mirror.test/{given}");
    let mut idle = pod("idle", &image);
    idle["spec"]["containers"][0]["name"] = "app".into();
    namespace.create_pod(&idle).success();
    report(namespace, "idle", &[("app", failed(&image))]).success();
    until_all_is_done(namespace);
    let told = |name: &str| {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", namespace.name);
        let events = cluster.get(&path).success();
        let events = events["items"].as_array().unwrap().iter();
        let of = |event: &&Value| event["regarding"]["name"] == name;
        // They are told that too, at once.
        let others = ["Rescued", "NoRecord"];
        let events = events.filter(|event| !others.iter().any(|other| event["reason"] == *other));
        let reasons = events.filter(of).map(|event| event["reason"].to_string());
        reasons.collect::<Vec<_>>()
    };
    set(290);
    thread::sleep(4 * MOMENT);
    assert_eq!((told("back").len(), told("idle").len()), (0, 0));
    set(310);
    let note = until_told(namespace, "back", "DidNotHelp");
    assert!(note.contains(&written("app")), "{note}");
    // It is looked at once a minute.
    let mut away = 400;
    let note = eventually("that kubelet is idle is told", || {
        away += 70;
        set(away);
        thread::sleep(4 * MOMENT);
        (!told("idle").is_empty()).then(|| until_told(namespace, "idle", "KubeletIdle"))
    });
    for part in [&image, &place.name] {
        assert!(note.contains(part), "{note}");
    }
    assert_eq!((told("back").len(), told("idle").len()), (1, 1));
    assert_only_allowed(&place, &companion);
}

/// Events that nobody answers to hold up no turn; each Pod has one, though two of its containers went back.
pub(crate) fn events_hold_up_no_turn(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let namespace = &place.served;
    let names: Vec<_> = (0..30).map(|number| format!("web-{number}")).collect();
    for name in &names {
        namespace
            .create_pod(&rewritten(name, &[], &["app", "more"]))
            .success();
        let states = ["app", "more"].map(|container| (container, failed(&mirrored(container))));
        report(namespace, name, &states).success();
    }
    // Whoever connects is never spoken to.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/", silent.local_addr().unwrap());
    let webhooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    let webhook = json!({
        "metadata": {"name": place.name},
        "webhooks": [{
            "name": "events.example.com", "clientConfig": {"url": url}, "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "timeoutSeconds": 10, "failurePolicy": "Ignore",
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
            "rules": [{
                "apiGroups": ["", "events.k8s.io"], "apiVersions": ["*"], "operations": ["CREATE"],
                "resources": ["events"],
            }],
        }],
    });
    cluster.create(webhooks, &webhook).success();
    let companion = place.start("companion-a", RESCUES);
    companion.wait_for_lead();
    until_back(namespace, &names[0], "app");
    let asked = Instant::now();
    for name in &names[1..] {
        fail_again(namespace, name);
    }
    for name in &names {
        until_back(namespace, name, "more");
    }
    let took = asked.elapsed();
    cluster.delete(&format!("{webhooks}/{}", place.name)).success();
    // The rate allows 10 at once and 10 a second. Each Event takes five seconds until the companion gives it up.
    assert!(took < Duration::from_secs(12), "{took:?}");
    // The webhook stood in the way of some; of the others there is one each.
    stuck(namespace, "alone");
    until_told(namespace, "alone", "Rescued");
    let told = cluster.writes_of(|user| user["username"] == companion.user);
    let mut told: Vec<_> = told
        .iter()
        .filter(|write| {
            write["objectRef"]["resource"] == "events"
                && write["objectRef"]["namespace"] == namespace.name.as_str()
        })
        .map(|write| write["requestObject"]["regarding"]["name"].to_string())
        .collect();
    let all = told.len();
    told.sort_unstable();
    told.dedup();
    assert_eq!(told.len(), all);
}

/// A policy of somebody else forbids it: that is told, and tried ever less often, though the Pod tells something new.
pub(crate) fn what_a_policy_refuses_is_told_and_not_tried_again_and_again(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let namespace = &place.served;
    let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let policy = json!({
        "metadata": {"name": place.name},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
                "resourceRules": [{
                    "apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["pods"],
                }],
            },
            "validations": [{
                "expression": "object.spec.containers.all(c, c.image.startsWith('mirror.test/'))",
                "message": "mirror names only",
            }],
        },
    });
    cluster.create(policies, &policy).success();
    let bindings = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
    let binding = json!({
        "metadata": {"name": place.name},
        "spec": {"policyName": place.name, "validationActions": ["Deny"]},
    });
    cluster.create(bindings, &binding).success();
    namespace.create_pod(&rewritten("probe", &[], &["app"])).success();
    eventually("the policy is in force", || {
        let patch = json!({"spec": {"containers": [{"name": "app", "image": "theirs:1"}]}}).to_string();
        let patched = namespace.kubectl(&["patch", "pod", "probe", "--dry-run=server", "--patch", &patch]);
        (!patched.status.success()).then_some(())
    });
    let companion = place.start("companion-a", RESCUES);
    stuck(namespace, "web");
    let refused = format!(
        "kagami_rescues_total{{mirror=\"{}\",direction=\"back\",outcome=\"refused\"}}",
        place.name
    );
    let count = || metric(&companion, &refused).map_or(0, |count| count.parse::<u32>().unwrap());
    eventually("the metric tells", || {
        if count() > 0 {
            return Some(());
        }
        fail_again(namespace, "web");
        thread::sleep(MOMENT);
        None
    });
    assert!(companion.process.log().contains("mirror names only"));
    for number in 0..20 {
        let message = format!("Back-off pulling image \"{}\": {number}", mirrored("app"));
        let state = waiting("ErrImagePull", &message);
        report(namespace, "web", &[("app", state)]).success();
        thread::sleep(MOMENT / 5);
    }
    // The first refusal may be of a Pod that changed; after the second it waits for ten seconds.
    assert!(count() <= 2, "{}", count());
    assert_eq!(image(&namespace.pod("web"), "app"), mirrored("app"));
    cluster.delete(&format!("{bindings}/{}", place.name)).success();
    cluster.delete(&format!("{policies}/{}", place.name)).success();
    until_back(namespace, "web", "app");
}

/// While a node pulls nothing else tells of it.
pub(crate) fn a_pull_that_lasts_is_told_and_nothing_is_done(cluster: &Cluster) {
    let place = Place::guarded(cluster, &cluster.mirror.url);
    place.patch_mirror(&json!({"spec": {"rescue": {"hangAfter": "10s"}}}));
    let companion = place.start("companion-a", RESCUES);
    let namespace = &place.served;
    let long_ago = clock::now().before(Duration::from_mins(1));
    let second = |time: Timestamp| format!("{:.19}Z", time.to_string());
    let hosts = [
        ("hangs", "kubelet", "no-such-node"),
        ("pulled", "kubelet", "no-such-node"),
        // Who may create Events may write of anything.
        ("forged", "somebody", "no-such-node"),
        ("elsewhere", "kubelet", "another-node"),
    ];
    for (name, component, host) in hosts {
        let mut pod = rewritten(name, &[], &["app"]);
        pod["spec"]["nodeName"] = "no-such-node".into();
        let pod = namespace.create_pod(&pod).success();
        let mut status = namespace.pod(name);
        status["status"] = json!({
            "phase": "Pending",
            "conditions": [{
                "type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": second(long_ago),
            }],
            "containerStatuses": [{
                "name": "app", "image": mirrored("app"), "imageID": "", "ready": false, "restartCount": 0,
                "state": waiting("ContainerCreating", ""),
            }],
        });
        let path = namespace.path(&format!("pods/{name}/status"));
        cluster
            .request(User::Admin, Method::PUT, &path, Some(&status))
            .success();
        let event = |reason: &str, message: &str, at: Timestamp| {
            let event = json!({
                "metadata": {"name": format!("{name}.{}", reason.to_lowercase())},
                "involvedObject": {
                    "apiVersion": "v1", "kind": "Pod", "namespace": namespace.name, "name": name,
                    "uid": pod["metadata"]["uid"], "fieldPath": "spec.containers{app}",
                },
                "reason": reason, "message": message, "type": "Normal", "count": 1,
                "firstTimestamp": second(at), "lastTimestamp": second(at),
                "source": {"component": component, "host": host},
            });
            cluster.create(&namespace.path("events"), &event).success();
        };
        event(
            "Pulling",
            &format!("Pulling image \"{}\"", mirrored("app")),
            long_ago,
        );
        if name == "pulled" {
            event(
                "Pulled",
                "Successfully pulled",
                long_ago.after(Duration::from_secs(5)),
            );
        }
    }
    let note = until_told(namespace, "hangs", "PullLasts");
    for part in [&mirrored("app"), "no-such-node", &place.name] {
        assert!(note.contains(part), "{note}");
    }
    // What comes after depends on what other tests' Pods say of the same registry.
    let lasts = |expected: bool| {
        eventually(
            &format!("NodesCanPull says that a pull lasts: {expected}"),
            || {
                let mirror = place.mirror();
                let mut conditions = mirror["status"]["conditions"].as_array()?.iter();
                let condition = conditions.find(|condition| condition["type"] == "NodesCanPull")?;
                let lasts = condition["reason"] == "PullLasts";
                (lasts == expected).then(|| condition["message"].as_str().unwrap().to_owned())
            },
        )
    };
    let message = lasts(true);
    assert!(
        message.contains(&mirrored("app")) && message.contains("no-such-node"),
        "{message}"
    );
    assert!(!message.contains("hangs"), "everybody may read it: {message}");
    // It ends with an error, and is turned back as any other.
    report(namespace, "hangs", &[("app", failed(&mirrored("app")))]).success();
    until_back(namespace, "hangs", "app");
    lasts(false);
    for (name, ..) in &hosts[1..] {
        assert_eq!(image(&namespace.pod(name), "app"), mirrored("app"));
    }
    for (name, ..) in hosts {
        // No kubelet says that it is gone.
        stdout(&namespace.kubectl(&["delete", "pod", name, "--force", "--grace-period=0"]));
    }
    let told = cluster.writes_of(|user| user["username"] == companion.user);
    let told = told.iter().filter(|write| {
        write["requestObject"]["reason"] == "PullLasts"
            && write["objectRef"]["namespace"] == namespace.name.as_str()
    });
    assert_eq!(told.count(), 1);
    assert_only_allowed(&place, &companion);
}

/// A status is as old as kubelet's last round: while it pulls again, a container that it has started is shown as waiting.
/// So what a new leader finds waits for the next failure, and so does what comes to hear late, though a watch tells it.
pub(crate) fn a_pod_is_turned_just_after_a_failure_alone(cluster: &Cluster) {
    let place = Place::guarded(cluster, &cluster.mirror.url);
    let namespace = &place.served;
    let stays = |name: &str, why: &str| {
        until_all_is_done(namespace);
        thread::sleep(4 * MOMENT);
        assert_eq!(image(&namespace.pod(name), "app"), mirrored("app"), "{why}");
    };
    stuck(namespace, "found");
    let companion = place.start("companion-a", RESCUES);
    stays("found", "nobody knows how long ago it failed");
    // Whatever else changes tells nothing of kubelet.
    stdout(&namespace.kubectl(&["label", "pod", "found", "anything=else"]));
    stays("found", "a label");
    namespace.create_pod(&rewritten("waits", &[], &["app"])).success();
    report(namespace, "waits", &[("app", back_off(&mirrored("app")))]).success();
    stays("waits", "it may be tried at any moment");

    namespace.create_pod(&rewritten("late", &[], &["app"])).success();
    companion.process.freeze();
    report(namespace, "late", &[("app", failed(&mirrored("app")))]).success();
    // Nothing can be waited for: this is how long kubelet surely does nothing.
    thread::sleep(Duration::from_secs(7));
    companion.process.thaw();
    stays("late", "it failed a while ago");
    for name in ["found", "waits", "late"] {
        fail_again(namespace, name);
        until_back(namespace, name, "app");
    }
    assert_only_allowed(&place, &companion);
}

pub(crate) fn the_brake_holds_every_pod_as_it_is(cluster: &Cluster) {
    let place = Place::guarded(cluster, &cluster.mirror.url);
    let companion = place.start("companion-a", RESCUES);
    let namespace = &place.served;
    until_all_is_done(namespace);
    let ready = |reason: &str| {
        eventually(&format!("Ready says {reason}"), || {
            let mirror = place.mirror();
            let mut conditions = mirror["status"]["conditions"].as_array()?.iter();
            let ready = conditions.find(|condition| condition["type"] == "Ready")?;
            (ready["reason"] == reason).then_some(())
        });
    };
    let brake = |word: &str| {
        let arguments = ["annotate", "--overwrite", "lease", "kagami-health", word];
        eventually("the Lease is annotated", || {
            place.own.kubectl(&arguments).status.success().then_some(())
        });
    };
    brake("kagami.dev/paused=true");
    ready("Paused");
    stuck(namespace, "web");
    thread::sleep(4 * MOMENT);
    assert_eq!(image(&namespace.pod("web"), "app"), mirrored("app"));
    // The next leader holds it too, though it has never seen the Lease before.
    companion.process.terminate();
    let second = place.start("companion-b", RESCUES);
    second.wait_for_lead();
    stuck(namespace, "more");
    thread::sleep(6 * MOMENT);
    for name in ["web", "more"] {
        assert_eq!(image(&namespace.pod(name), "app"), mirrored("app"));
    }
    brake("kagami.dev/paused-");
    for name in ["web", "more"] {
        until_back(namespace, name, "app");
    }
    ready("InForce");
    // By its settings, as the chart's value has it, and back.
    second.process.terminate();
    let third = place.start("companion-a", &[RESCUES, &["--paused"]].concat());
    ready("Paused");
    third.process.terminate();
    let _fourth = place.start("companion-b", RESCUES);
    ready("InForce");
}

/// Deleted while it has a leader, and while nobody leads at all.
pub(crate) fn a_mirror_that_was_deleted_lets_its_pods_go_whoever_leads(cluster: &Cluster) {
    let place = Place::guarded(cluster, &cluster.mirror.url);
    let namespace = &place.served;
    let create = |name: &str| {
        let mut mirror = place.mirror();
        mirror["metadata"] = json!({"name": format!("{name}-{}", place.name)});
        mirror["spec"]["registry"] = format!("{name}.test").into();
        drop(mirror.as_object_mut().unwrap().remove("status"));
        cluster.create(MIRRORS, &mirror).success();
    };
    let delete = |name: &str| {
        let path = format!("{MIRRORS}/{name}-{}", place.name);
        cluster.delete(&path).success();
    };
    let stuck_on = |mirror: &str, name: &str| {
        let image = format!("{mirror}.test/{}", written("app"));
        let mut pod = rewritten(name, &[], &["app"]);
        pod["spec"]["containers"][0]["image"] = json!(image);
        namespace.create_pod(&pod).success();
        report(namespace, name, &[("app", failed(&image))]).success();
    };
    let noted = |name: &str| {
        eventually("the mirror is noted", || {
            let map = cluster
                .get(&place.own.path("configmaps/kagami-mirrors"))
                .success();
            map["data"]["mirrors"].as_str()?.contains(name).then_some(())
        });
    };
    create("one");
    create("two");
    let first = place.start("companion-a", RESCUES);
    noted("two.test");
    delete("one");
    eventually("it is noted that it went", || {
        let map = cluster
            .get(&place.own.path("configmaps/kagami-mirrors"))
            .success();
        let mut lines = map["data"]["mirrors"].as_str()?.lines();
        lines
            .any(|line| line.contains("one.test") && line.contains("goneAt"))
            .then_some(())
    });
    stuck_on("one", "with-its-leader");
    until_back(namespace, "with-its-leader", "app");
    first.process.terminate();

    delete("two");
    let second = place.start("companion-b", RESCUES);
    for name in ["one", "two"] {
        let pod = format!("after-{name}");
        stuck_on(name, &pod);
        until_back(namespace, &pod, "app");
    }
    // Of one that nobody ever saw nothing is known.
    stuck_on("three", "nobodys");
    until_all_is_done(namespace);
    let pod = namespace.pod("nobodys");
    assert_eq!(image(&pod, "app"), format!("three.test/{}", written("app")));
    assert_only_allowed(&place, &second);
}

pub(crate) fn each_of_a_hundred_pods_is_turned_once_though_the_leader_dies(cluster: &Cluster) {
    let place = Place::guarded(cluster, &cluster.mirror.url);
    let namespace = &place.served;
    let names: Vec<_> = (0..100).map(|number| format!("web-{number}")).collect();
    for name in &names {
        stuck(namespace, name);
    }
    let first = place.start("companion-a", &["--rescue-per-second", "5"]);
    let back = |name: &String| image(&namespace.pod(name), "app") == written("app");
    let second = while_they_fail(namespace, &names, || {
        within(2 * PATIENCE, "some are back", || {
            (names.iter().filter(|name| back(name)).count() >= 10).then_some(())
        });
        let second = place.start("companion-b", &["--rescue-per-second", "20"]);
        drop(first);
        let turned = names.iter().filter(|name| back(name)).count();
        assert!(turned < names.len(), "it died too late");
        within(2 * PATIENCE, "all are back", || {
            names.iter().all(back).then_some(())
        });
        second
    });
    let mut writes = cluster.writes_of(|user| user["groups"].to_string().contains("companions"));
    writes.retain(|write| {
        write["objectRef"]["resource"] == "pods"
            && write["objectRef"]["namespace"] == namespace.name.as_str()
            && write["responseStatus"]["code"] == 200
    });
    let mut patched: Vec<_> = writes
        .iter()
        .map(|write| write["objectRef"]["name"].to_string())
        .collect();
    patched.sort_unstable();
    let all = patched.len();
    patched.dedup();
    assert_eq!((all, patched.len()), (names.len(), names.len()));
    assert_only_allowed(&place, &second);
}

/// What bounds a turn's patch: the API server waits for nobody's webhook for longer than the request says, though that
/// webhook would be passed over later, and changes nothing then.
pub(crate) fn the_api_server_gives_up_a_patch_whose_time_is_over(cluster: &Cluster) {
    // It takes every call and answers none.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    thread::spawn(move || {
        let callers: Vec<_> = listener.incoming().collect();
        drop(callers);
    });
    let namespace = cluster.namespace(None);
    namespace.create_pod(&pod("web", &written("app"))).success();
    let configurations = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    let name = format!("slow-{}", namespace.name);
    let webhook = json!({
        "metadata": {"name": name},
        "webhooks": [{
            "name": "slow.kagami.test",
            "clientConfig": {"url": url},
            "failurePolicy": "Ignore",
            "timeoutSeconds": 10,
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["UPDATE"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
        }],
    });
    cluster.create(configurations, &webhook).success();
    let mut number = 0;
    let (took, label) = eventually("the webhook is called", || {
        number += 1;
        let label = format!("v{number}");
        let change = json!({"metadata": {"labels": {"changed": label}}});
        let path = namespace.path("pods/web?timeout=1500ms");
        let request = cluster.http.client.patch(format!("{}{path}", cluster.url));
        let request = request
            .bearer_auth(User::Admin.token())
            .header("content-type", "application/merge-patch+json");
        let started = Instant::now();
        // It says so, or closes the connection.
        let answer = cluster.http.send(request.body(change.to_string()));
        let has_given_up = answer.map_or(true, |answer| answer.status >= 500);
        has_given_up.then(|| (started.elapsed(), label))
    });
    assert!(
        took >= Duration::from_millis(1400) && took < Duration::from_secs(5),
        "{took:?}"
    );
    // Until the webhook would have been passed over.
    thread::sleep(Duration::from_secs(10));
    assert_ne!(
        namespace.pod("web")["metadata"]["labels"]["changed"],
        label.as_str()
    );
    cluster.delete(&format!("{configurations}/{name}"));
}
