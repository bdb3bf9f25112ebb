//! What the API server holds the companion to where it changes Pods, tried as that account with more rights than the
//! chart gives it: one request for each clause.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    rights::RBAC,
    support::{
        chart::{Chart, stdout},
        cluster::{Cluster, Namespace, User},
        eventually,
        http::Answer,
    },
};

const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";

/// The ways to change a Pod.
const WAYS: [&str; 5] = [
    "pods",
    "pods/binding",
    "pods/ephemeralcontainers",
    "pods/eviction",
    "pods/status",
];

/// One of the chart's policies about Pods, alone in force: where two refuse, the API server tells one.
struct Guard<'a> {
    home: Namespace<'a>,
    account: String,
}

/// Puts the chart's policy in force whose name ends like that.
fn guard<'a>(cluster: &'a Cluster, release: &str, end: &str) -> Guard<'a> {
    let home = cluster.namespace(None);
    let values = "{rescue: {enabled: true, deletePods: true, registries: [mirror.test, 'm.test:5000/team']}}";
    let chart = Chart::new(cluster, release, &home.name, values);
    chart.apply(&RBAC);
    let roles = chart.of_kind("ClusterRole");
    assert!(
        json!(roles).to_string().contains("pods/eviction"),
        "the value gives the right"
    );
    for (kind, path) in [
        ("ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
        (
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
        ),
    ] {
        let mut documents = chart.of_kind(kind);
        documents.retain(|document| document["metadata"]["name"].as_str().unwrap().ends_with(end));
        let [document] = &documents[..] else {
            panic!("{documents:?}")
        };
        cluster.create(&format!("{ADMISSION}/{path}"), document).success();
    }
    let account = format!("{release}-kagami-companion");
    // Whoever has it stolen may have got more.
    let everything = json!([{"apiGroups": [""], "resources": WAYS, "verbs": ["*"]}]);
    let subject = json!({"kind": "ServiceAccount", "name": account, "namespace": home.name});
    home.grant(&subject, &format!("{release}-more"), &everything, &json!([]));
    Guard {
        account: format!("{}:{account}", home.name),
        home,
    }
}

impl Guard<'_> {
    /// Sends a request as the companion that changes nothing even where it is let through.
    fn send(&self, method: Method, path: &str, body: &Value) -> Answer {
        let cluster = self.home.cluster;
        cluster.request_by(&self.account, method, &format!("{path}?dryRun=All"), Some(body))
    }

    fn patch(&self, place: &Namespace<'_>, pod: &str, operations: &[Value]) -> Answer {
        let path = place.path(&format!("pods/{pod}"));
        self.send(Method::PATCH, &path, &json!(operations))
    }

    #[track_caller]
    fn allows(&self, place: &Namespace<'_>, pod: &str, operations: &[Value]) {
        let answer = self.patch(place, pod, operations);
        assert_eq!(answer.status, 200, "{operations:?}: {}", answer.body);
    }

    #[track_caller]
    fn refuses(&self, place: &Namespace<'_>, pod: &str, operations: &[Value], told: &str) {
        refused(&self.patch(place, pod, operations), told);
    }

    /// Waits until one request is refused by the policy, and another is let through.
    fn until_in_force(&self, place: &Namespace<'_>, pod: &str, refused: &[Value], allowed: &[Value]) {
        eventually("roles and policy are in force", || {
            let refused = self.patch(place, pod, refused);
            let allowed = self.patch(place, pod, allowed);
            (refused.body.contains("denied request") && allowed.status == 200).then_some(())
        });
    }
}

/// A policy refused it, in these words.
#[track_caller]
pub(crate) fn refused(answer: &Answer, told: &str) {
    let by_policy = answer.status == 422 && answer.body.contains("denied request");
    assert!(
        by_policy && answer.body.contains(told),
        "{told}: {} {}",
        answer.status,
        answer.body
    );
}

fn mirrored(container: &str) -> String {
    format!("mirror.test/docker.io/library/{container}:1")
}

fn replace(at: &str, value: &str) -> Value {
    json!({"op": "replace", "path": at, "value": value})
}

fn add(at: &str, value: impl Into<Value>) -> Value {
    let value = value.into();
    json!({"op": "add", "path": at, "value": value})
}

/// The annotation that records what stood in a container.
fn record(container: &str, value: &str) -> Value {
    let at = format!("/metadata/annotations/original-image.kagami.dev~1{container}");
    add(&at, value)
}

fn rescued() -> Value {
    add("/metadata/annotations/kagami.dev~1rescued", "{}")
}

/// Writes a Pod's status: its waiting containers, each with its reason.
fn report(place: &Namespace<'_>, name: &str, waiting: &[(&str, &str)]) {
    let mut pod = place.pod(name);
    let of = |list: &str| -> Value {
        let containers = pod["spec"][list].as_array().cloned().unwrap_or_default();
        let status = containers.iter().map(|container| {
            let name = container["name"].as_str().unwrap();
            let reason = waiting.iter().find(|(waiting, _)| *waiting == name);
            let state = match reason {
                Some((_, reason)) => json!({"waiting": {"reason": reason, "message": "x"}}),
                None => json!({"running": {"startedAt": "2030-01-01T00:00:00Z"}}),
            };
            json!({"name": name, "image": "x", "imageID": "x", "ready": false, "restartCount": 0, "state": state})
        });
        status.collect()
    };
    pod["status"] = json!({
        "phase": "Pending",
        "initContainerStatuses": of("initContainers"),
        "containerStatuses": of("containers"),
    });
    let path = place.path(&format!("pods/{name}/status"));
    let cluster = place.cluster;
    cluster
        .request(User::Admin, Method::PUT, &path, Some(&pod))
        .success();
}

/// Creates a Pod of which some containers wait for their image. Nothing is recorded of `fresh` and `other`.
fn create_stuck(place: &Namespace<'_>, name: &str, more: &Value) {
    let container = |name: &str| json!({"name": name, "image": mirrored(name)});
    let original = |name: &str| format!("original-image.kagami.dev/{name}");
    let mut pod = json!({
        "metadata": {
            "name": name,
            "labels": {"app": "stuck"},
            "annotations": {original("waits"): "waits:1", original("runs"): "runs:1", original("init"): "init:1"},
        },
        "spec": {
            "initContainers": [container("init")],
            "containers": [
                container("waits"), container("runs"), container("other"), {"name": "fresh", "image": "acme/fresh:1"},
            ],
        },
    });
    json_patch::merge(&mut pod, more);
    place.create_pod(&pod).success();
    let waiting = ["init", "waits", "other", "fresh"].map(|name| {
        (
            name,
            if name == "fresh" {
                "ErrImagePull"
            } else {
                "ImagePullBackOff"
            },
        )
    });
    report(place, name, &waiting);
}

const WAITS: &str = "/spec/containers/0/image";
const RUNS: &str = "/spec/containers/1/image";
const OTHER: &str = "/spec/containers/2/image";
const FRESH: &str = "/spec/containers/3/image";

pub(crate) fn the_companion_is_held_to_recorded_originals(cluster: &Cluster) {
    let guard = guard(cluster, "guards-pods", "-companion-pods");
    let place = cluster.namespace(Some("enforce"));
    create_stuck(&place, "stuck", &json!({}));
    let back = [replace(WAITS, "waits:1"), rescued()];
    guard.until_in_force(&place, "stuck", &[replace(WAITS, "evil.test/waits:1")], &back);
    guard.allows(
        &place,
        "stuck",
        &[replace("/spec/initContainers/0/image", "init:1"), rescued()],
    );
    let forward = [
        replace(FRESH, "mirror.test/docker.io/acme/fresh:1"),
        record("fresh", "acme/fresh:1"),
        rescued(),
    ];
    guard.allows(&place, "stuck", &forward);

    for (operation, told) in refusals() {
        guard.refuses(&place, "stuck", &[operation, rescued()], told);
    }
    // In two steps: first the record, then back to it; and both at once.
    let forged = [
        record("waits", "evil.test/waits:1"),
        replace(WAITS, "evil.test/waits:1"),
    ];
    guard.refuses(&place, "stuck", &forged[..1], "no annotation");
    guard.refuses(&place, "stuck", &forged, "no annotation");
    let forged = [
        record("fresh", "evil.test/fresh:1"),
        replace(FRESH, "evil.test/fresh:1"),
    ];
    guard.refuses(&place, "stuck", &forged[..1], "no annotation");
    guard.refuses(&place, "stuck", &forged, "no annotation");
    // Forward from what was recorded as something else, with the record changed to fit.
    let moved = [
        replace(WAITS, "mirror.test/x/waits:1"),
        record("waits", &mirrored("waits")),
    ];
    guard.refuses(&place, "stuck", &moved, "no annotation");
    let runs = [replace(RUNS, "mirror.test/x/runs:1"), rescued()];
    guard.refuses(&place, "stuck", &runs, "only where the container waits");

    other_waits(&guard, &place, &back);
    other_pods(&guard, &place, &back);
    every_other_way(cluster, &guard, &place, &back);
    // Others are not meant.
    let path = format!("{}?dryRun=All", place.path("pods/stuck"));
    let patch = json!([replace(WAITS, "waits:2")]);
    let patched = cluster.patch(User::Admin, "application/json-patch+json", &path, &patch);
    assert_eq!(patched.status, 200);
}

/// Single operations, each with what is told.
fn refusals() -> Vec<(Value, &'static str)> {
    vec![
        (replace(WAITS, "waits:2"), "only to the recorded original"),
        (replace(WAITS, "runs:1"), "only to the recorded original"),
        (replace(RUNS, "runs:1"), "only where the container waits"),
        (replace(OTHER, "other:1"), "only to the recorded original"),
        (
            replace(FRESH, "mirror.test/acme/fresh:1"),
            "forward with what stood there recorded",
        ),
        (
            add("/spec/tolerations/-", json!({"operator": "Exists"})),
            "nothing of a Pod's spec but images",
        ),
        (
            add("/spec/activeDeadlineSeconds", 1),
            "nothing of a Pod's spec but images",
        ),
        (add("/metadata/labels/app", "x"), "no labels"),
        (json!({"op": "remove", "path": "/metadata/labels"}), "no labels"),
        (
            add("/metadata/finalizers", json!(["example.com/x"])),
            "no labels, finalizers",
        ),
        (
            add(
                "/metadata/ownerReferences",
                json!([{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"}]),
            ),
            "finalizers and owners",
        ),
        (add("/metadata/annotations/a", "b"), "no annotation"),
        (
            json!({"op": "remove", "path": "/metadata/annotations/original-image.kagami.dev~1runs"}),
            "no annotation",
        ),
        (record("waits", "evil.test/waits:1"), "no annotation"),
        // New ones, where nothing changes; of no container; of a volume.
        (record("other", &mirrored("other")), "no annotation"),
        (record("other", "evil.test/x:1"), "no annotation"),
        (record("nobody", "x"), "no annotation"),
        (
            add(
                "/metadata/annotations/original-volume.kagami.dev~1fresh",
                "acme/fresh:1",
            ),
            "no annotation",
        ),
    ]
}

/// A container that waits for its image, in each of kubelet's words; one that waits for anything else; and one of which
/// kubelet has said nothing yet.
fn other_waits(guard: &Guard<'_>, place: &Namespace<'_>, back: &[Value]) {
    let pod = |name: &str| {
        let annotations = json!({"original-image.kagami.dev/waits": "waits:1"});
        let containers = json!([{"name": "waits", "image": mirrored("waits")}]);
        let metadata = json!({"name": name, "annotations": annotations});
        place
            .create_pod(&json!({"metadata": metadata, "spec": {"containers": containers}}))
            .success();
    };
    let only_where = "only where the container waits for it";
    pod("unheard");
    guard.refuses(place, "unheard", back, only_where);
    pod("waiting");
    for (reason, is_allowed) in [
        ("ErrImagePull", true),
        ("ContainerCreating", false),
        ("ImagePullBackOff", true),
        ("PodInitializing", false),
        ("RegistryUnavailable", true),
        ("CrashLoopBackOff", false),
        ("SignatureValidationFailed", true),
        ("CreateContainerConfigError", false),
        ("ImageInspectError", true),
        ("ErrImageNeverPull", false),
        ("InvalidImageName", false),
    ] {
        report(place, "waiting", &[("waits", reason)]);
        if is_allowed {
            guard.allows(place, "waiting", back);
        } else {
            guard.refuses(place, "waiting", back, only_where);
        }
    }
}

/// Pods of which more may change, and of more containers.
fn other_pods(guard: &Guard<'_>, place: &Namespace<'_>, back: &[Value]) {
    // What may be changed of a Pod that is not scheduled yet.
    let gates = json!({"spec": {"schedulingGates": [{"name": "example.com/wait"}]}});
    create_stuck(place, "gated", &gates);
    guard.allows(place, "gated", back);
    let expression = json!({"key": "a", "operator": "Exists"});
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [expression]}],
    }}});
    for operation in [
        json!({"op": "remove", "path": "/spec/schedulingGates"}),
        add("/spec/nodeSelector", json!({"a": "b"})),
        add("/spec/affinity", affinity),
    ] {
        guard.refuses(place, "gated", &[operation], "nothing of a Pod's spec but images");
    }

    // 64 containers may be looked at, 65 not.
    for (number, allowed) in [(64, true), (65, false)] {
        let name = format!("with-{number}");
        let container = |number: usize| json!({"name": format!("c{number}"), "image": mirrored("c")});
        let pod = json!({
            "metadata": {"name": name, "annotations": {"original-image.kagami.dev/c0": "c:1"}},
            "spec": {"containers": (0..number).map(container).collect::<Vec<_>>()},
        });
        place.create_pod(&pod).success();
        report(place, &name, &[("c0", "ErrImagePull")]);
        let back = [replace(WAITS, "c:1"), rescued()];
        if allowed {
            guard.allows(place, &name, &back);
        } else {
            guard.refuses(place, &name, &back, "more than 64 containers");
        }
    }
}

/// Other operations, subresources and namespaces.
fn every_other_way(cluster: &Cluster, guard: &Guard<'_>, place: &Namespace<'_>, back: &[Value]) {
    let other_way = "in no other way than by an update";
    let path = place.path("pods/stuck");
    let delete = cluster.request_by(
        &guard.account,
        Method::DELETE,
        &format!("{path}?dryRun=All"),
        None,
    );
    refused(&delete, other_way);
    let own = json!({"metadata": {"name": "own"}, "spec": {"containers": [{"name": "a", "image": "a"}]}});
    refused(&guard.send(Method::POST, &place.path("pods"), &own), other_way);
    let binding = json!({"metadata": {"name": "stuck"}, "target": {"kind": "Node", "name": "x"}});
    refused(
        &guard.send(Method::POST, &format!("{path}/binding"), &binding),
        other_way,
    );
    let debug = json!([add(
        "/spec/ephemeralContainers",
        json!([{"name": "d", "image": "evil.test/d"}])
    )]);
    let ephemeral = format!("{path}/ephemeralcontainers");
    refused(&guard.send(Method::PATCH, &ephemeral, &debug), other_way);
    let status = json!([add("/status/message", "x")]);
    refused(
        &guard.send(Method::PATCH, &format!("{path}/status"), &status),
        other_way,
    );
    // Its own namespace, and kube-system.
    create_stuck(&guard.home, "stuck", &json!({}));
    guard.refuses(
        &guard.home,
        "stuck",
        back,
        "leaves the Pods of this namespace alone",
    );
    let system = cluster.create(
        "/api/v1/namespaces/kube-system/pods",
        &json!({"metadata": {"name": "guarded"}, "spec": {"containers": [{"name": "a", "image": "a"}]}}),
    );
    system.success();
    let path = "/api/v1/namespaces/kube-system/pods/guarded";
    let touched = guard.send(
        Method::PATCH,
        path,
        &json!([add("/metadata/annotations", json!({}))]),
    );
    refused(&touched, "leaves the Pods of this namespace alone");
    cluster.delete(path).success();
}

pub(crate) fn the_companion_sends_pods_to_listed_registries_alone(cluster: &Cluster) {
    let guard = guard(cluster, "guards-forward", "-companion-pods");
    let place = cluster.namespace(Some("enforce"));
    let pod = json!({
        "metadata": {"name": "web", "annotations": {"original-image.kagami.dev/back": "ghcr.io/acme/back:1"}},
        "spec": {"containers": [
            {"name": "app", "image": "ghcr.io/acme/app:1"},
            {"name": "short", "image": "nginx:1"},
            {"name": "runs", "image": "runs:1"},
            {"name": "signed", "image": "signed:1"},
            {"name": "back", "image": mirrored("back")},
        ]},
    });
    let waiting = [
        ("app", "ErrImagePull"),
        ("short", "ImagePullBackOff"),
        ("signed", "SignatureValidationFailed"),
        ("back", "ErrImagePull"),
    ];
    let create = |place: &Namespace<'_>| {
        place.create_pod(&pod).success();
        report(place, "web", &waiting);
    };
    create(&place);
    let at = |index: usize| format!("/spec/containers/{index}/image");
    let forward = |index: usize, container: &str, to: &str, original: &str| {
        [replace(&at(index), to), record(container, original), rescued()]
    };
    let app = |to: &str| forward(0, "app", to, "ghcr.io/acme/app:1");
    let short = |to: &str| forward(1, "short", to, "nginx:1");
    guard.until_in_force(
        &place,
        "web",
        &app("evil.test/ghcr.io/acme/app:1"),
        &app("mirror.test/ghcr.io/acme/app:1"),
    );
    guard.allows(&place, "web", &app("m.test:5000/team/acme/app:1"));
    guard.allows(&place, "web", &short("mirror.test/docker.io/library/nginx:1"));
    let not_listed = "only to registries of the values mirrors and rescue.registries";
    for to in [
        "evil.test/ghcr.io/acme/app:1",
        "mirror.test.evil.test/acme/app:1",
        "m.test:5000/acme/app:1",
        "m.test:5000/team-b/acme/app:1",
        "acme/app:1",
    ] {
        guard.refuses(&place, "web", &app(to), not_listed);
    }
    let other_end = "ends with the path and the tag or digest";
    for to in [
        "mirror.test/ghcr.io/acme/app:2",
        "mirror.test/ghcr.io/acme/other:1",
        "mirror.test/ghcr.io/evil-acme/app:1",
        "mirror.test/acme/app",
        &format!("mirror.test/acme/app:1@sha256:{}", "a".repeat(64)),
    ] {
        guard.refuses(&place, "web", &app(to), other_end);
    }
    guard.refuses(&place, "web", &short("mirror.test/x/evil-nginx:1"), other_end);
    let good = "mirror.test/ghcr.io/acme/app:1";
    let records = "forward with what stood there recorded";
    guard.refuses(&place, "web", &[replace(&at(0), good), rescued()], records);
    guard.refuses(
        &place,
        "web",
        &forward(0, "app", good, "evil.test/acme/app:1"),
        "no annotation",
    );
    guard.refuses(
        &place,
        "web",
        &forward(2, "runs", "mirror.test/x/runs:1", "runs:1"),
        "only where the container waits",
    );
    guard.refuses(
        &place,
        "web",
        &forward(3, "signed", "mirror.test/x/signed:1", "signed:1"),
        "whose image the node refuses",
    );
    let back = [replace(&at(4), "ghcr.io/acme/back:1"), rescued()];
    guard.allows(&place, "web", &back);

    for mode in [Some("warn"), Some("audit"), Some("off"), None] {
        let other = cluster.namespace(mode);
        create(&other);
        guard.refuses(&other, "web", &app(good), "only in namespaces labelled enforce");
        guard.allows(&other, "web", &back);
    }
    let home = &guard.home;
    stdout(&home.kubectl(&["label", "namespace", &home.name, "kagami.dev/mode=enforce"]));
    create(home);
    guard.refuses(home, "web", &app(good), "leaves the Pods of this namespace alone");

    // A list of a tenant's own means nothing, whatever it is called.
    let map = json!({"metadata": {"name": "kagami-registries"}, "data": {"registries": "evil.test"}});
    for namespace in [&place, home] {
        cluster.create(&namespace.path("configmaps"), &map).success();
    }
    guard.refuses(&place, "web", &app("evil.test/ghcr.io/acme/app:1"), not_listed);
    // The companion may not write the true one.
    let own = format!("{ADMISSION}/validatingadmissionpolicies/guards-forward-kagami-companion-pods");
    let patch = json!([replace("/spec/variables/0/expression", "true")]);
    assert_eq!(guard.send(Method::PATCH, &own, &patch).status, 403);
    // Nobody else is held up, whatever becomes of the rest of the chart.
    stdout(&place.kubectl(&["label", "pod", "web", "a=b"]));
}

/// The API server bounds what a policy may cost, and by `failurePolicy: Fail` what costs more is refused.
pub(crate) fn a_policy_that_costs_too_much_refuses(cluster: &Cluster) {
    let guard = guard(cluster, "guards-cost", "-companion-pods");
    let place = cluster.namespace(None);
    let back = [replace(WAITS, "waits:1"), rescued()];
    create_stuck(&place, "stuck", &json!({}));
    guard.until_in_force(&place, "stuck", &[replace(WAITS, "evil.test/waits:1")], &back);
    // Ten thousand annotations, and as many forged statuses beside 64 containers that all go back, are within the bound.
    let annotations: serde_json::Map<_, _> = (0..10_000)
        .map(|number| (format!("a{number}"), json!("")))
        .collect();
    create_stuck(
        &place,
        "annotated",
        &json!({"metadata": {"annotations": annotations}}),
    );
    guard.allows(&place, "annotated", &back);
    let container = |number: usize| json!({"name": format!("c{number}"), "image": mirrored("c")});
    let containers: Vec<_> = (0..64).map(container).collect();
    let originals = (0..64).map(|number| (format!("original-image.kagami.dev/c{number}"), json!("c:1")));
    let originals: serde_json::Map<_, _> = originals.collect();
    let pod =
        json!({"metadata": {"name": "forged", "annotations": originals}, "spec": {"containers": containers}});
    place.create_pod(&pod).success();
    let mut forged = place.pod("forged");
    let status = |name: String| {
        json!({
            "name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImagePull"}},
        })
    };
    let names = (0..10_000).map(|number| format!("x{number}"));
    let names = names.chain((0..64).map(|number| format!("c{number}")));
    forged["status"]["containerStatuses"] = names.map(status).collect();
    let path = place.path("pods/forged/status");
    cluster
        .request(User::Admin, Method::PUT, &path, Some(&forged))
        .success();
    let all: Vec<_> = (0..64)
        .map(|number| replace(&format!("/spec/containers/{number}/image"), "c:1"))
        .chain([rescued()])
        .collect();
    assert_eq!(guard.patch(&place, "forged", &all).status, 200);
    // So no Pod reaches the limit. Where a clause did, the companion would be refused.
    let few: serde_json::Map<_, _> = annotations.into_iter().take(2_000).collect();
    create_stuck(&place, "few", &json!({"metadata": {"annotations": few}}));
    guard.allows(&place, "few", &back);
    let path = format!("{ADMISSION}/validatingadmissionpolicies/guards-cost-kagami-companion-pods");
    let costly = json!({
        "expression": "variables.annotations.all(a, variables.annotations.all(b, a != b + 'x'))", "message": "x",
    });
    let mut policy = cluster.get(&path).success();
    policy["spec"]["validations"].as_array_mut().unwrap().push(costly);
    cluster
        .request(User::Admin, Method::PUT, &path, Some(&policy))
        .success();
    eventually("a clause costs too much, and that is refused", || {
        let answer = guard.patch(&place, "few", &back);
        let is_told =
            answer.body.contains("cost limit exceeded") || answer.body.contains("cost budget exceeded");
        (answer.status != 200 && is_told).then_some(())
    });
    // What it may do else costs little, and goes on.
    guard.allows(&place, "stuck", &back);
}

pub(crate) fn the_companion_evicts_by_the_rules_alone(cluster: &Cluster) {
    let guard = guard(cluster, "guards-evictions", "-companion-evictions");
    let place = cluster.namespace(Some("enforce"));
    let pod = json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "a", "image": "a"}]}});
    let evict = |place: &Namespace<'_>, options: &Value| {
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "web", "namespace": place.name},
            "deleteOptions": options,
        });
        guard.send(Method::POST, &place.path("pods/web/eviction"), &eviction)
    };
    let options = |place: &Namespace<'_>| {
        let metadata = &place.pod("web")["metadata"];
        json!({"dryRun": ["All"], "preconditions": {
            "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
        }})
    };
    place.create_pod(&pod).success();
    let good = options(&place);
    eventually("roles and policy are in force", || {
        let refused = evict(&place, &json!({"dryRun": ["All"]}));
        let allowed = evict(&place, &good);
        (refused.body.contains("denied request") && allowed.status == 201).then_some(())
    });
    let with = |key: &str, value: Value| {
        let mut options = good.clone();
        options[key] = value;
        options
    };
    let very_pod = "only the very Pod that it looked at";
    for preconditions in [
        json!({"uid": good["preconditions"]["uid"]}),
        json!({"resourceVersion": good["preconditions"]["resourceVersion"]}),
    ] {
        refused(&evict(&place, &with("preconditions", preconditions)), very_pod);
    }
    for seconds in [0, 30] {
        let options = with("gracePeriodSeconds", seconds.into());
        refused(&evict(&place, &options), "shortens no grace period");
    }
    let other = cluster.namespace(Some("audit"));
    other.create_pod(&pod).success();
    refused(
        &evict(&other, &options(&other)),
        "only in namespaces labelled enforce",
    );
    guard.home.create_pod(&pod).success();
    refused(
        &evict(&guard.home, &options(&guard.home)),
        "leaves the Pods of this namespace alone",
    );
}
