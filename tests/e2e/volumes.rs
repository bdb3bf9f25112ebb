//! Pods that are stuck on an image volume, as their statuses say, which these tests write in a kubelet's place.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    companion::assert_only_allowed,
    rescue::{MOMENT, RESCUES, failed, report, until_told},
    support::{
        chart::stdout,
        cluster::{Cluster, Namespace, RBAC, User},
        companion::Place,
        eventually,
    },
};

const UPSTREAM: &str = "docker.io/acme/model:1";
const MIRRORED: &str = "mirror.test/docker.io/acme/model:1";

/// Creates a ReplicaSet whose one Pod has an image volume of the mirror, and returns the Pod's name.
fn create(namespace: &Namespace<'_>, name: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut template = json!({
        "metadata": {
            "labels": {"app": name},
            "annotations": {"original-volume.kagami.dev/model": UPSTREAM},
        },
        "spec": {
            "containers": [{
                "name": "app", "image": "app:1", "volumeMounts": [{"name": "model", "mountPath": "/model"}],
            }],
            "volumes": [{"name": "model", "image": {"reference": MIRRORED}}],
        },
    });
    change(&mut template);
    let set = json!({
        "metadata": {"name": name},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template},
    });
    let path = format!("/apis/apps/v1/namespaces/{}/replicasets", namespace.name);
    namespace.cluster.create(&path, &set).success();
    eventually("the set makes its Pod", || only_pod(namespace, name))
}

fn only_pod(namespace: &Namespace<'_>, app: &str) -> Option<String> {
    let path = format!("{}?labelSelector=app%3D{app}", namespace.path("pods"));
    let pods = namespace.cluster.get(&path).success();
    let [pod] = &pods["items"].as_array()?[..] else {
        return None;
    };
    pod["metadata"]["name"].as_str().map(ToOwned::to_owned)
}

/// Labels the namespace itself, which a default mode does not.
fn enforce(namespace: &Namespace<'_>) {
    let label = [
        "label",
        "--overwrite",
        "namespace",
        &namespace.name,
        "kagami.dev/mode=enforce",
    ];
    stdout(&namespace.cluster.kubectl(&label));
}

fn fails(namespace: &Namespace<'_>, pod: &str) {
    report(namespace, pod, &[("app", failed(MIRRORED))]).success();
}

pub(crate) fn a_pod_stuck_on_a_volume_is_evicted_where_nothing_is_lost(cluster: &Cluster) {
    // Nobody listens there.
    let place = Place::guarded(cluster, "https://127.0.0.1:1");
    place.patch_mirror(&json!({"spec": {"rescue": {"deletePods": true}}}));
    let namespace = &place.served;
    enforce(namespace);
    let companion = place.start("companion-a", RESCUES);
    place.wait_for_health("Unhealthy");

    let with_claim = create(namespace, "claim", |template| {
        let volumes = template["spec"]["volumes"].as_array_mut().unwrap();
        volumes.push(json!({"name": "data", "persistentVolumeClaim": {"claimName": "data"}}));
    });
    let begun = create(namespace, "begun", |template| {
        let containers = template["spec"]["containers"].as_array_mut().unwrap();
        containers.push(json!({"name": "other", "image": "other:1"}));
    });
    let started = create(namespace, "started", |_| ());
    let event = json!({
        "metadata": {"name": "started.1"},
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": namespace.name, "name": started,
            "uid": namespace.pod(&started)["metadata"]["uid"], "fieldPath": "spec.containers{other}",
        },
        "reason": "Started", "message": "x", "type": "Normal", "count": 1,
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z",
        "source": {"component": "kubelet"},
    });
    cluster.create(&namespace.path("events"), &event).success();
    let mut bare = namespace.pod(&with_claim);
    bare["metadata"] = json!({
        "name": "bare", "annotations": {"original-volume.kagami.dev/model": UPSTREAM},
    });
    bare["spec"]["volumes"]
        .as_array_mut()
        .unwrap()
        .retain(|volume| volume["name"] == "model");
    bare["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "model", "mountPath": "/model"}]);
    namespace.create_pod(&bare).success();
    bare["metadata"] = json!({
        "name": "forged", "annotations": {"original-volume.kagami.dev/model": "evil.test/acme/model:1"},
    });
    namespace.create_pod(&bare).success();
    for pod in [with_claim.as_str(), &started, "bare", "forged"] {
        fails(namespace, pod);
    }
    let running = json!({"running": {"startedAt": "2030-01-01T00:00:00Z"}});
    report(
        namespace,
        &begun,
        &[("app", failed(MIRRORED)), ("other", running)],
    )
    .success();
    let stuck = create(namespace, "web", |_| ());
    fails(namespace, &stuck);

    // Its set makes another one. Without a scheduler it never pulls, and so is left alone.
    let note = until_told(namespace, &stuck, "Evicted");
    assert!(note.contains(MIRRORED) && note.contains(UPSTREAM), "{note}");
    eventually("another Pod is there", || {
        only_pod(namespace, "web").filter(|pod| *pod != stuck)
    });
    for (pod, words) in [
        (with_claim.as_str(), "it has a claim"),
        (&begun, "has begun"),
        (&started, "has begun"),
        ("bare", "makes it anew"),
        ("forged", "nothing tells what its user wrote"),
    ] {
        let note = until_told(namespace, pod, "VolumeStuck");
        assert!(
            note.contains(words) && note.contains("which nobody can change"),
            "{note}"
        );
        assert!(
            namespace.pod(pod)["metadata"]["deletionTimestamp"].is_null(),
            "{pod}"
        );
    }
    std::thread::sleep(4 * MOMENT);
    let mut writes = cluster.writes_of(|user| user["username"] == companion.user);
    writes.retain(|write| {
        let object = &write["objectRef"];
        object["namespace"] == namespace.name.as_str() && object["subresource"] == "eviction"
    });
    let [eviction] = &writes[..] else {
        panic!("{writes:#?}")
    };
    assert_eq!(eviction["objectRef"]["name"], stuck.as_str());
    let options = &eviction["requestObject"]["deleteOptions"];
    assert!(options["gracePeriodSeconds"].is_null(), "{options}");
    assert!(options["preconditions"]["uid"].is_string(), "{options}");
    assert_only_allowed(&place, &companion);
    clear(namespace);
}

/// Deletes the Pods: the next test's companion would tell of them too while their namespace goes.
fn clear(namespace: &Namespace<'_>) {
    stdout(&namespace.kubectl(&[
        "delete",
        "replicasets,pods",
        "--all",
        "--force",
        "--grace-period=0",
    ]));
}

/// The mirror's settings ask for it, and the chart's value does not give the right to: it is tried once, and told.
pub(crate) fn without_the_right_it_is_told_and_not_tried_again_and_again(cluster: &Cluster) {
    let place = Place::guarded(cluster, "https://127.0.0.1:1");
    place.patch_mirror(&json!({"spec": {"rescue": {"deletePods": true}}}));
    let role = format!("{RBAC}/clusterroles/{}", place.name);
    let mut without = cluster.get(&role).success();
    let rules = without["rules"].as_array_mut().unwrap();
    let before = rules.len();
    rules.retain(|rule| rule["resources"] != json!(["pods/eviction"]));
    assert_eq!(rules.len(), before - 1);
    cluster
        .request(User::Admin, Method::PUT, &role, Some(&without))
        .success();
    let namespace = &place.served;
    enforce(namespace);
    let companion = place.start("companion-a", RESCUES);
    place.wait_for_health("Unhealthy");
    let pods = ["one", "two"].map(|name| create(namespace, name, |_| ()));
    for pod in &pods {
        fails(namespace, pod);
    }
    for pod in &pods {
        let note = until_told(namespace, pod, "VolumeStuck");
        assert!(note.contains("the chart's value rescue.deletePods"), "{note}");
    }
    std::thread::sleep(6 * MOMENT);
    let mut writes = cluster.writes_of(|user| user["username"] == companion.user);
    writes.retain(|write| {
        let object = &write["objectRef"];
        object["namespace"] == namespace.name.as_str() && object["subresource"] == "eviction"
    });
    assert_eq!(writes.len(), 1, "{writes:#?}");
    clear(namespace);
}

/// The mirror's settings do not ask for it, as they do not by default.
pub(crate) fn without_leave_a_pod_stuck_on_a_volume_is_only_told(cluster: &Cluster) {
    let place = Place::guarded(cluster, "https://127.0.0.1:1");
    let namespace = &place.served;
    enforce(namespace);
    let companion = place.start("companion-a", RESCUES);
    place.wait_for_health("Unhealthy");
    let pod = create(namespace, "web", |_| ());
    fails(namespace, &pod);
    let note = until_told(namespace, &pod, "VolumeStuck");
    for part in [
        MIRRORED,
        "model",
        "nobody can change",
        "delete the Pod",
        "spec.rescue.deletePods",
    ] {
        assert!(note.contains(part), "{note}");
    }
    std::thread::sleep(4 * MOMENT);
    assert_eq!(only_pod(namespace, "web"), Some(pod));
    assert_only_allowed(&place, &companion);
    clear(namespace);
}
