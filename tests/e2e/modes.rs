//! What each mode does and leaves undone.

use serde_json::{Value, json};

use crate::support::{
    admission::{annotation, image, pod},
    cluster::Cluster,
    scene::Scene,
};

pub(crate) fn warn_mode_warns_and_changes_nothing(cluster: &Cluster) {
    let scene = Scene::new(cluster, "warn");
    let answer = scene.namespace.create_pod(&pod("web", "nginx:1.29"));
    let [warning] = answer.warnings()[..] else {
        panic!("not one warning: {answer:?}")
    };
    assert!(
        warning.contains("mirror.test/docker.io/library/nginx:1.29"),
        "{warning}"
    );
    assert_untouched(&answer.success(), "nginx:1.29");

    let output = scene.namespace.kubectl(&["run", "second", "--image=nginx:1.29"]);
    let shown = String::from_utf8(output.stderr).unwrap();
    assert!(shown.starts_with("Warning: "), "{shown}");
}

pub(crate) fn audit_mode_only_writes_the_audit_log(cluster: &Cluster) {
    let scene = Scene::new(cluster, "audit");
    let answer = scene.namespace.create_pod(&pod("web", "nginx:1.29"));
    assert_eq!(answer.warnings(), [""; 0]);
    assert_untouched(&answer.success(), "nginx:1.29");

    let event = scene.namespace.audit_event("web");
    let ours: Vec<_> = ours(&event, &scene.registration.webhook("audit"));
    let [(place, decision)] = &ours[..] else {
        panic!("not one annotation: {event}")
    };
    assert!(place.contains("app"), "{ours:?}");
    assert!(
        decision.contains("WouldRewrite") && decision.contains("Mirrored"),
        "{ours:?}"
    );
}

pub(crate) fn a_pods_label_weakens_its_namespace(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    for value in ["off", "no-such-mode"] {
        let created = scene.namespace.create_pod(&labelled(value, value)).success();
        assert_eq!(image(&created, "app"), "nginx:1.29", "{value}");
        assert_eq!(
            annotation(&created, "original-image.kagami.dev/app"),
            None,
            "{value}"
        );
    }
    let answer = scene.namespace.create_pod(&labelled("warn", "warn"));
    assert_eq!(answer.warnings().len(), 1, "{answer:?}");
    assert_untouched(&answer.success(), "nginx:1.29");
}

pub(crate) fn a_pods_label_never_strengthens_its_namespace(cluster: &Cluster) {
    let scene = Scene::new(cluster, "audit");
    let answer = scene.namespace.create_pod(&labelled("web", "enforce"));
    assert_eq!(answer.warnings(), [""; 0]);
    assert_untouched(&answer.success(), "nginx:1.29");
}

fn labelled(name: &str, mode: &str) -> Value {
    let mut pod = pod(name, "nginx:1.29");
    pod["metadata"]["labels"] = json!({"kagami.dev/mode": mode});
    pod
}

#[track_caller]
fn assert_untouched(pod: &Value, expected: &str) {
    assert_eq!(image(pod, "app"), expected);
    assert_eq!(pod["metadata"]["annotations"], Value::Null);
    assert_eq!(pod["spec"]["imagePullSecrets"], Value::Null);
}

/// The audit annotations of one webhook, without its name.
fn ours(event: &Value, webhook: &str) -> Vec<(String, String)> {
    let annotations = event["annotations"].as_object().unwrap();
    annotations
        .iter()
        .filter_map(|(key, value)| {
            let key = key.strip_prefix(webhook)?.strip_prefix('/')?;
            Some((key.to_owned(), value.as_str()?.to_owned()))
        })
        .collect()
}
