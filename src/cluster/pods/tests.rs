use std::time::Duration;

use super::*;
use crate::{
    api::DECISIONS_ANNOTATION,
    domain::{
        image::ImageKey,
        names::{ORIGINAL_IMAGE_PREFIX, ORIGINAL_VOLUME_PREFIX},
        pulls::{Cause, Failure, Pull},
        routing::Routing,
    },
    state::file,
};

fn routing() -> Routing {
    let text = "apiVersion: kagami.dev/v1alpha1\nkind: ImageMirror\nmetadata: {name: main}\nspec:\n  \
                registry: mirror.test\n  kind: Hosted\n  sources: [{prefix: docker.io}]\n";
    let configuration = file::load(text, "test").unwrap();
    Routing::compile(
        configuration
            .mirrors
            .into_iter()
            .map(|(mirror, _)| mirror)
            .collect(),
    )
}

/// The decision alone tells which of two mirrors with one registry and one template it was.
#[test]
fn of_two_mirrors_in_one_registry_the_recorded_one_is_told() {
    let mut mirrors: Vec<_> = routing().mirrors().map(|(_, mirror)| mirror.clone()).collect();
    mirrors.extend(mirrors.clone());
    mirrors[1].name = "second".to_owned();
    let routing = Routing::compile(mirrors);
    let pulled_from = |decided: &str| {
        let decisions = format!(r#"{{"containers.app":{{"mirror":"{decided}"}}}}"#);
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "a", "annotations": {
                format!("{}app", ORIGINAL_IMAGE_PREFIX): "nginx:1.29",
                DECISIONS_ANNOTATION: decisions,
            }},
            "spec": {"containers": [{"name": "app", "image": "mirror.test/docker.io/library/nginx:1.29"}]},
            "status": {"containerStatuses": [{"name": "app", "state": {"waiting": {
                "reason": "ErrImagePull",
                "message": "failed to pull and unpack image \"mirror.test/docker.io/library/nginx:1.29\": x",
            }}}]},
        }))
        .unwrap();
        pulled(&pod, &routing)[0].mirror.clone()
    };
    for name in ["main", "second"] {
        assert_eq!(&*pulled_from(name), name);
    }
}

#[test]
fn what_a_pod_records_counts_where_the_mapping_makes_it_into_what_stands_there() {
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web", "namespace": "a", "annotations": {
            format!("{ORIGINAL_IMAGE_PREFIX}app"): "nginx:1.29",
            format!("{ORIGINAL_IMAGE_PREFIX}forged"): "docker.io/evil/nginx:1.29",
            format!("{ORIGINAL_IMAGE_PREFIX}back"): "nginx:1.29",
            format!("{ORIGINAL_VOLUME_PREFIX}model"): "docker.io/shop/model:3",
            // A volume's name, and no container's.
            format!("{ORIGINAL_IMAGE_PREFIX}model"): "docker.io/evil/model:3",
        }},
        "spec": {
            "containers": [
                {"name": "app", "image": "mirror.test/docker.io/library/nginx:1.29"},
                {"name": "forged", "image": "mirror.test/docker.io/library/nginx:1.29"},
                {"name": "back", "image": "nginx:1.29"},
                {"name": "unrecorded", "image": "mirror.test/docker.io/library/redis:8"},
            ],
            "volumes": [{"name": "model", "image": {"reference": "mirror.test/docker.io/shop/model:3"}}],
        },
    }))
    .unwrap();
    let expected = [
        ("mirror.test/docker.io/library/nginx:1.29", "nginx:1.29"),
        ("mirror.test/docker.io/shop/model:3", "docker.io/shop/model:3"),
    ];
    assert_eq!(originals(&pod, &routing()), expected);
    assert_eq!(originals(&Pod::default(), &routing()), []);
}

/// In a roll-out the new ReplicaSet has nothing that serves, and the Deployment has.
#[test]
fn the_replica_sets_of_a_deployment_serve_together() {
    let owner = |kind: &str, name: &str| {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": "web-1", "namespace": "a", "labels": {"pod-template-hash": "5d9c"},
                "ownerReferences": [
                    {"uid": "other", "kind": kind, "name": name},
                    {"uid": "u", "kind": kind, "name": name, "controller": true},
                ],
            },
        }))
        .unwrap();
        pod.as_patient().owner.map(str::to_owned)
    };
    assert_eq!(owner("ReplicaSet", "web-5d9c").as_deref(), Some("web"));
    for (kind, name) in [
        ("ReplicaSet", "web-6e0d"),
        ("ReplicaSet", "5d9c"),
        ("ReplicaSet", "-5d9c"),
        ("StatefulSet", "web-5d9c"),
    ] {
        assert_eq!(owner(kind, name).as_deref(), Some("u"), "{kind} {name}");
    }
}

/// Where nobody injects, Pods keep it, and nobody can pull it.
#[test]
fn a_placeholder_is_no_image_in_use() {
    let in_use = |container: &str| {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "a"},
            "spec": {"containers": [{"name": container, "image": "auto"}]},
        }))
        .unwrap();
        images(&pod, &routing()).len()
    };
    assert_eq!((in_use("istio-proxy"), in_use("app")), (0, 1));
}

#[test]
fn pulls_from_a_mirror_are_told_by_the_containers_states() {
    let pod = |image: &str, state: serde_json::Value| -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "a", "annotations": {
                format!("{}app", ORIGINAL_IMAGE_PREFIX): "nginx:1.29",
            }},
            "spec": {"containers": [{"name": "app", "image": image}]},
            "status": {"containerStatuses": [{"name": "app", "state": state}]},
        }))
        .unwrap()
    };
    let mirrored = "mirror.test/docker.io/library/nginx:1.29";
    let found = |image: &str, state| {
        let pulled = pulled(&pod(image, state), &routing());
        pulled.first().map(|pulled| {
            assert_eq!(
                (&*pulled.mirror, pulled.key.as_str()),
                ("main", "docker.io/library/nginx:1.29")
            );
            pulled.pull
        })
    };
    let says =
        |reason: &str, message: &str| serde_json::json!({"waiting": {"reason": reason, "message": message}});
    let of = |image: &str| format!("failed to pull and unpack image \"{image}\": x");
    let waiting = |reason: &str| says(reason, &of(mirrored));
    let running = serde_json::json!({"running": {"startedAt": "2030-01-01T00:00:00Z"}});
    let ended = serde_json::json!({"terminated": {"exitCode": 1, "startedAt": "2030-01-01T00:00:00Z"}});
    let failure = |code| Failure {
        cause: Cause::Other,
        code,
    };
    for code in ["ErrImagePull", "RegistryUnavailable", "SignatureValidationFailed"] {
        assert_eq!(found(mirrored, waiting(code)), Some(Pull::Failed(failure(code))));
    }
    assert_eq!(
        found(mirrored, waiting("ImagePullBackOff")),
        Some(Pull::Waiting(failure("ImagePullBackOff")))
    );
    assert_eq!(found(mirrored, waiting("ContainerCreating")), None);
    // It speaks of the image before, of the node's own limit, or of nothing.
    for message in [of("nginx:1.29"), "pull QPS exceeded".to_owned(), String::new()] {
        assert_eq!(found(mirrored, says("ErrImagePull", &message)), None, "{message}");
    }
    let started = Timestamp::from_millis(1_893_456_000_000);
    for state in [running.clone(), ended] {
        assert_eq!(found(mirrored, state), Some(Pull::Done(started)));
    }
    assert_eq!(found("nginx:1.29", running), None);
}

#[test]
fn what_tells_of_owners_that_fight_is_read_of_a_pod() {
    let mirrored = "mirror.test/docker.io/library/nginx:1.29";
    let pod = |change: &dyn Fn(&mut serde_json::Value)| -> Pod {
        let mut pod = serde_json::json!({
            "metadata": {
                "name": "web-0", "namespace": "a", "uid": "p-1",
                "annotations": {format!("{}app", ORIGINAL_IMAGE_PREFIX): "nginx:1.29"},
                "creationTimestamp": "2030-01-01T00:00:00Z",
                "deletionTimestamp": "2030-01-01T00:02:00Z", "deletionGracePeriodSeconds": 60,
                "ownerReferences": [
                    {"apiVersion": "example.com/v1", "kind": "Other", "name": "other", "uid": "o-1"},
                    {"apiVersion": "example.com/v1", "kind": "Web", "name": "web", "uid": "w-1", "controller": true},
                ],
            },
            "spec": {"nodeName": "node-1", "containers": [{"name": "app", "image": mirrored}]},
            "status": {"conditions": [
                {"type": "Ready", "status": "False", "lastTransitionTime": "2030-01-01T00:00:30Z"},
            ]},
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    };
    let routing = routing();
    let known = pod(&|_| ());
    let owned = known.as_owned(&routing).unwrap();
    let created = owned.created.unwrap();
    assert_eq!(
        (owned.owner.kind, owned.owner.uid, owned.node),
        ("Web", "w-1", "node-1")
    );
    assert_eq!(owned.deleted, Some(created.after(Duration::from_mins(1))));
    assert_eq!(owned.ready, Some((false, created.after(Duration::from_secs(30)))));
    assert!(owned.is_rewritten && !owned.is_disrupted);

    // The same is wanted of a Pod that is not rewritten, and another thing where a revision is another.
    let revision = |change: &dyn Fn(&mut serde_json::Value)| {
        let pod = pod(change);
        let owned = pod.as_owned(&routing).unwrap();
        (
            owned.is_rewritten,
            owned.revision == known.as_owned(&routing).unwrap().revision,
        )
    };
    let image = |pod: &mut serde_json::Value| pod["spec"]["containers"][0]["image"] = "nginx:1.29".into();
    assert_eq!(revision(&image), (false, true));
    let other = |pod: &mut serde_json::Value| pod["spec"]["containers"][0]["image"] = "nginx:1.30".into();
    assert_eq!(revision(&other), (false, false));
    for label in [
        "controller-revision-hash",
        "rollouts-pod-template-hash",
        "pod-template-hash",
    ] {
        let label = |pod: &mut serde_json::Value| pod["metadata"]["labels"] = serde_json::json!({label: "x"});
        assert_eq!(revision(&label), (true, false));
    }
    let disrupted = pod(&|pod| {
        pod["status"]["conditions"] = serde_json::json!([{"type": "DisruptionTarget", "status": "True"}]);
    });
    assert!(disrupted.as_owned(&routing).unwrap().is_disrupted);

    // Whose owners never compare images.
    let owned_by = |api_version: &str, kind: &str, template: bool| {
        let pod = pod(&|pod| {
            let owner = &mut pod["metadata"]["ownerReferences"][1];
            (owner["apiVersion"], owner["kind"]) = (api_version.into(), kind.into());
            if template {
                pod["metadata"]["labels"] = serde_json::json!({"pod-template-hash": "x"});
            }
        });
        pod.as_owned(&routing).is_some()
    };
    assert!(owned_by("apps/v1", "StatefulSet", true) && owned_by("apps/v1", "ReplicaSet", false));
    assert!(!owned_by("apps/v1", "ReplicaSet", true) && !owned_by("v1", "ReplicationController", false));
    // What cannot be is nobody's: the API server takes any text.
    let odd = |field: &str, text: &str| {
        let pod = pod(&|pod| pod["metadata"]["ownerReferences"][1][field] = text.into());
        pod.as_owned(&routing).is_none()
    };
    for name in [
        "a b",
        "a/b",
        "?a",
        "..",
        "a.",
        "-a",
        "A",
        "\u{1}",
        &"a".repeat(254),
    ] {
        assert!(odd("name", name), "{name}");
    }
    assert!(!odd("name", "a-1.b") && !odd("name", &"a".repeat(253)));
    assert!(odd("uid", &"a".repeat(65)) && odd("uid", "\"") && !odd("uid", &"a".repeat(64)));
    assert!(odd("kind", &"a".repeat(64)) && odd("kind", "\u{202e}"));
    assert!(odd("apiVersion", "a.b\n/v1") && odd("apiVersion", &format!("a.b/{}", "v".repeat(314))));
    let nobodys = pod(&|pod| pod["metadata"]["ownerReferences"] = serde_json::json!([]));
    assert!(nobodys.as_owned(&routing).is_none());
}

#[test]
fn every_place_of_a_pod_is_read() {
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web", "namespace": "a", "annotations": {
            format!("{}model", ORIGINAL_VOLUME_PREFIX): "docker.io/acme/model:1",
        }},
        "spec": {
            "containers": [{"name": "app", "image": "nginx:1", "command": ["x"]}],
            "initContainers": [{"name": "init", "image": "busybox:1"}],
            "ephemeralContainers": [{"name": "debug", "image": "debug:1"}],
            "volumes": [
                {"name": "model", "image": {"reference": "mirror.test/docker.io/acme/model:1"}},
                {"name": "empty", "emptyDir": {}},
            ],
        },
    }))
    .unwrap();
    let keys = images(&pod, &routing());
    let expected = [
        "library/nginx:1",
        "library/busybox:1",
        "library/debug:1",
        "acme/model:1",
    ];
    let keys: Vec<_> = keys.iter().map(ImageKey::as_str).collect();
    assert_eq!(keys, expected.map(|name| format!("docker.io/{name}")));
}
