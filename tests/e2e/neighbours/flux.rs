//! Flux, as its kustomize-controller applies what stands in a repository.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::{Beside, OURS, Sightings, tools_with};
use crate::support::{
    admission::{image, pod},
    cluster::{Cluster, Namespace},
};

pub(crate) fn flux(cluster: &Cluster) {
    tools_with(cluster, &["flux"]);
    let mut seen = Sightings::of("Flux (`pkg/ssa`)", "github.com/fluxcd/pkg/ssa");
    let beside = Beside::new(cluster);
    let labelled = &beside.labelled;
    let mut object = pod("bare", OURS);
    object["apiVersion"] = "v1".into();
    object["kind"] = "Pod".into();
    object["metadata"]["namespace"] = labelled.name.as_str().into();
    assert_eq!(
        applied(labelled, &object),
        ["created".to_owned(), beside.mirrored(OURS)]
    );
    assert_eq!(applied(labelled, &object), ["configured", OURS]);
    assert_eq!(applied(labelled, &object), ["unchanged", OURS]);
    seen.add(
        "a bare Pod, reconciled a second time",
        "puts the original image back, once: the kubelet restarts the container with it",
    );
    object["metadata"]["name"] = "left".into();
    object["metadata"]["annotations"] = json!({"kustomize.toolkit.fluxcd.io/ssa": "IfNotPresent"});
    assert_eq!(
        applied(labelled, &object),
        ["created".to_owned(), beside.mirrored(OURS)]
    );
    let [what, stays] = applied(labelled, &object);
    assert_eq!((&*what, stays), ("skipped", beside.mirrored(OURS)));
    seen.add(
        "the same with `kustomize.toolkit.fluxcd.io/ssa: IfNotPresent`",
        "leaves it alone",
    );
    let workload = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": labelled.name},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "app", "image": OURS}]},
            },
        },
    });
    assert_eq!(action(labelled, &workload), "created");
    assert_eq!(action(labelled, &workload), "unchanged");
    seen.add("a Deployment, reconciled a second time", "sees no difference");
    seen.write();
}

/// What Flux did with a Pod, and the image that it has then.
fn applied(namespace: &Namespace<'_>, object: &Value) -> [String; 2] {
    let action = action(namespace, object);
    let stored = namespace.pod(object["metadata"]["name"].as_str().unwrap());
    [action, image(&stored, "app").to_owned()]
}

fn action(namespace: &Namespace<'_>, object: &Value) -> String {
    let cluster = namespace.cluster;
    let mut child = Command::new(cluster.tools.path("flux"))
        .env_clear()
        .env("HOME", cluster.folder())
        .env("KUBECONFIG", cluster.folder().join("admin.kubeconfig"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(object.to_string().as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // KIND/NAMESPACE/NAME ACTION
    let told = String::from_utf8(output.stdout).unwrap();
    told.trim_end().rsplit(' ').next().unwrap().to_owned()
}
