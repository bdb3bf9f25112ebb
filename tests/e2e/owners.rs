//! Owners that insist on their images: each test is an operator that deletes and recreates what Kagami rewrote.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    companion::assert_only_allowed,
    support::{
        admission::{annotation, decision, image, pod},
        chart::stdout,
        cluster::{Cluster, Namespace},
        companion::Place,
        eventually,
        kagami::{self, Kagami, Registration},
    },
};

const NGINX: &str = "docker.io/library/nginx:1.29";

/// Within so many re-creations an operator has what it wants: three are counted, and the notes take a moment.
const ROUNDS: usize = 12;

/// A custom resource that owns Pods. Nobody need have it: the API server does not look.
fn owner(kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": "example.com/v1", "kind": kind, "name": name, "uid": format!("{kind}-{name}-uid"),
        "controller": true,
    })
}

/// Starts `kagami webhook` beside the companion of a place, and has it called for Pods of the served namespace.
pub(crate) fn start_webhook<'a>(place: &Place<'a>) -> (Kagami, Registration<'a>) {
    let label = json!({"metadata": {"labels": {"kagami.dev/mode": "enforce"}}}).to_string();
    stdout(
        &place
            .cluster
            .kubectl(&["patch", "namespace", &place.served.name, "--patch", &label]),
    );
    let mut command = kagami::command("webhook");
    command
        .env("KUBECONFIG", place.cluster.folder().join("admin.kubeconfig"))
        .args(["--namespace", &place.own.name]);
    let kagami = Kagami::admitting(
        place.cluster,
        &format!("webhook-{}", place.own.name),
        &mut command,
    )
    .until_ready();
    let registration = Registration::new(&place.served, &[], &kagami);
    (kagami, registration)
}

fn rewritten(pod: &Value) -> bool {
    image(pod, "app") != NGINX
}

/// Creates the operator's Pod with an owner, and returns it as it was stored.
fn create(namespace: &Namespace<'_>, name: &str, owner: &Value) -> Value {
    let mut pod = pod(name, NGINX);
    pod["metadata"]["ownerReferences"] = json!([owner]);
    namespace.create_pod(&pod).success()
}

/// Lets an operator work until the image of its Pod is the one that it wants. Returns how often it made the Pod anew.
fn insist(namespace: &Namespace<'_>, name: &str, owner: &Value) -> usize {
    for round in 0..ROUNDS {
        if !rewritten(&create(namespace, name, owner)) {
            return round;
        }
        namespace
            .cluster
            .delete(&namespace.path(&format!("pods/{name}")))
            .success();
        // Its sync period: each second.
        thread::sleep(Duration::from_secs(1));
    }
    panic!("{name} has not the image that its operator wants after {ROUNDS} re-creations");
}

/// Waits until Pods are rewritten, by one that nobody owns.
pub(crate) fn until_rewritten(place: &Place<'_>) {
    eventually("Pods are rewritten", || {
        let probe = format!("{}?dryRun=All", place.served.path("pods"));
        let pod = place.cluster.create(&probe, &pod("probe", NGINX)).success();
        rewritten(&pod).then_some(())
    });
}

fn reason(pod: &Value) -> String {
    decision(pod, "app")["reason"].as_str().unwrap().to_owned()
}

fn stateful_set(namespace: &Namespace<'_>, name: &str, owner: &Value) -> Value {
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": name, "ownerReferences": [owner]},
        "spec": {
            "serviceName": name, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod("x", NGINX)["spec"]},
        },
    });
    let path = format!("/apis/apps/v1/namespaces/{}/statefulsets", namespace.name);
    let stored = namespace.cluster.create(&path, &set).success();
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "name": name, "uid": stored["metadata"]["uid"],
        "controller": true,
    })
}

fn notes(place: &Place<'_>) -> Value {
    place
        .cluster
        .get(&place.own.path("configmaps/kagami-owners"))
        .success()["data"]
        .clone()
}

/// Scales an operator's controller down and up again, whose Pods are rewritten all the same.
fn scale_again_and_again(namespace: &Namespace<'_>) {
    let scaled = stateful_set(namespace, "scaled", &owner("Web", "scaled"));
    let scale = |replicas: &str| stdout(&namespace.kubectl(&["scale", "statefulset", "scaled", replicas]));
    for round in 0..ROUNDS {
        assert!(rewritten(&create(namespace, "scaled-0", &scaled)), "{round}");
        scale("--replicas=0");
        namespace
            .cluster
            .delete(&namespace.path("pods/scaled-0"))
            .success();
        scale("--replicas=1");
        thread::sleep(Duration::from_secs(1));
    }
}

/// Quick operators: of a Pod of their own, and through a StatefulSet. Their owners are left alone from then on, whoever
/// leads, and others are not.
pub(crate) fn operators_that_insist_are_left_alone_whoever_leads(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let first = place.start("companion-a", &[]);
    let (_webhook, _registration) = start_webhook(&place);
    until_rewritten(&place);
    let namespace = &place.served;

    let bare = owner("Web", "bare");
    let rounds = insist(namespace, "bare-0", &bare);
    assert!(rounds >= 3, "{rounds}");
    let pod = namespace.pod("bare-0");
    assert_eq!(reason(&pod), "OwnerLoop");

    let through = owner("Web", "set");
    let set = stateful_set(namespace, "set", &through);
    insist(namespace, "set-0", &set);
    assert_eq!(reason(&namespace.pod("set-0")), "OwnerLoop");
    // Another one of that owner is known by its first Pod.
    let other = stateful_set(namespace, "set-of-later", &through);
    create(namespace, "later-0", &other);
    let started = Instant::now();
    eventually("its second Pod is left alone", || {
        let probe = format!("{}?dryRun=All", namespace.path("pods"));
        let mut pod = pod_of(&other);
        pod["metadata"]["name"] = "later-1".into();
        let pod = cluster.create(&probe, &pod).success();
        (!rewritten(&pod)).then_some(())
    });
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );

    // Whoever deletes Pods of what is built in alone changes nothing.
    let orphan = stateful_set(
        namespace,
        "orphan",
        &json!({
            "apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x", "controller": true,
        }),
    );
    for _ in 0..6 {
        assert!(rewritten(&create(namespace, "orphan-0", &orphan)));
        cluster.delete(&namespace.path("pods/orphan-0")).success();
    }

    scale_again_and_again(namespace);

    // People are told: by an Event, in the status and by the report.
    let events = eventually("Events tell of both", || {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", namespace.name);
        let events = cluster.get(&path).success();
        let events = events["items"].as_array()?.clone().into_iter();
        let events: Vec<_> = events.filter(|event| event["reason"] == "OwnerLoop").collect();
        (events.len() == 2).then_some(events)
    });
    assert_eq!(events[0]["regarding"]["kind"], "Web");
    assert!(
        events[0]["note"]
            .as_str()
            .unwrap()
            .contains("kagami.dev/mode: \"off\"")
    );
    let mirror = eventually("the status tells of both", || {
        let mirror = place.mirror();
        let told = mirror["status"]["ownersLeftAlone"].as_array().map(Vec::len);
        (told == Some(2)).then_some(mirror)
    });
    let conditions = mirror["status"]["conditions"].as_array().unwrap().iter();
    let condition: Vec<_> = conditions
        .filter(|condition| condition["type"] == "OwnersLeftAlone")
        .map(|condition| {
            (
                condition["status"].as_str().unwrap(),
                condition["reason"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(condition, [("True", "OwnerLoop")]);
    let mut report = kagami::command("report");
    report
        .env("KUBECONFIG", cluster.folder().join("admin.kubeconfig"))
        .args([
            "--kagami-namespace",
            &place.own.name,
            "--namespace",
            &namespace.name,
            "--output",
            "json",
        ]);
    let report: Value = serde_json::from_slice(&report.output().unwrap().stdout).unwrap();
    assert_eq!(report["ownersLeftAlone"].as_array().unwrap().len(), 2, "{report}");

    // The next leader keeps it, and what it notes is the same.
    let before = notes(&place);
    first.process.signal("KILL");
    let second = place.start("companion-b", &[]);
    second.wait_for_lead();
    until_kept(&place, &before);
    for (name, owner) in [("bare-1", &bare), ("set-1", &set)] {
        assert!(!rewritten(&create(namespace, name, owner)));
    }
    assert_only_allowed(&place, &second);
}

/// Waits until the new leader has its own status written, and looks whether the notes are as they were.
fn until_kept(place: &Place<'_>, before: &Value) {
    place.wait_for_health("Healthy");
    assert_eq!(&notes(place), before);
}

fn pod_of(owner: &Value) -> Value {
    let mut pod = pod("x", NGINX);
    pod["metadata"]["ownerReferences"] = json!([owner]);
    pod
}

/// Listed owners: at once where the Pod itself tells, and from the second Pod on through a controller.
pub(crate) fn listed_owners_are_left_alone_at_once(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let _companion = place.start("companion-a", &[]);
    let (_webhook, _registration) = start_webhook(&place);
    until_rewritten(&place);
    let namespace = &place.served;

    let mut listed = owner("Cluster", "pg");
    listed["apiVersion"] = "postgresql.cnpg.io/v1".into();
    let stored = create(namespace, "pg-1", &listed);
    assert!(!rewritten(&stored));
    assert_eq!(reason(&stored), "OwnerExcluded");
    let mut spilo = pod("spilo-0", NGINX);
    spilo["metadata"]["labels"] = json!({"application": "spilo"});
    let stored = namespace.create_pod(&spilo).success();
    assert!(!rewritten(&stored));
    assert_eq!(reason(&stored), "OwnerExcluded");

    let mut listed = owner("AerospikeCluster", "as");
    listed["apiVersion"] = "asdb.aerospike.com/v1".into();
    let made = Instant::now();
    let set = stateful_set(namespace, "as", &listed);
    assert!(rewritten(&create(namespace, "as-0", &set)));
    let stored = eventually("its second Pod is left alone", || {
        let probe = format!("{}?dryRun=All", namespace.path("pods"));
        let mut pod = pod_of(&set);
        pod["metadata"]["name"] = "as-1".into();
        let pod = cluster.create(&probe, &pod).success();
        (!rewritten(&pod)).then_some(pod)
    });
    assert!(made.elapsed() < Duration::from_secs(10), "{:?}", made.elapsed());
    assert_eq!(reason(&stored), "OwnerExcluded");
    // What was rewritten before stays as it is, also when it is changed.
    let label = json!({"metadata": {"labels": {"x": "y"}}}).to_string();
    stdout(&namespace.kubectl(&["patch", "pod", "as-0", "--patch", &label]));
    assert!(rewritten(&namespace.pod("as-0")));
    assert!(annotation(&namespace.pod("as-0"), "original-image.kagami.dev/app").is_some());

    // Of another list it is as any other.
    place.patch_mirror(&json!({"spec": {"excludeOwners": []}}));
    eventually("the Pods of all owners are rewritten", || {
        let probe = format!("{}?dryRun=All", namespace.path("pods"));
        let mut pod = pod_of(&set);
        pod["metadata"]["name"] = "as-1".into();
        rewritten(&cluster.create(&probe, &pod).success()).then_some(())
    });
}
