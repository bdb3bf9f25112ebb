//! Whom the API server does not ask Kagami about at all.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    admission::{image, pod},
    cluster::{Cluster, User},
    kagami::{Kagami, Registration},
    scene::Scene,
};

pub(crate) fn an_unlabelled_namespace_is_never_asked_about(cluster: &Cluster) {
    let (labelled, unlabelled) = (cluster.namespace(Some("enforce")), cluster.namespace(None));
    let kagami = Kagami::start(cluster, &format!("kagami-{}", labelled.name), &cluster.mirror.url);
    let registration = Registration::new(&labelled, &[&unlabelled.name], &kagami);

    let before = registration.calls("enforce");
    let created = unlabelled.create_pod(&pod("web", "nginx:1.29")).success();
    assert_untouched(&created);
    assert_eq!(registration.calls("enforce"), before);
    // The same registration, the same Pod, the label.
    let created = labelled.create_pod(&pod("web", "nginx:1.29")).success();
    assert_ne!(image(&created, "app"), "nginx:1.29");
}

pub(crate) fn system_namespaces_are_never_asked_about(cluster: &Cluster) {
    let labelled = cluster.namespace(Some("enforce"));
    let kagami = Kagami::start(cluster, &format!("kagami-{}", labelled.name), &cluster.mirror.url);
    let own = cluster.namespace_named("kagami-system", Some("enforce"));
    let label = labelled.kubectl(&["label", "namespace", "kube-system", "kagami.dev/mode=enforce"]);
    assert!(label.status.success(), "{label:?}");
    let registration = Registration::new(&labelled, &[&own.name, "kube-system"], &kagami);

    let before = registration.calls("enforce");
    for namespace in [&own.name, "kube-system"] {
        let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
        assert_untouched(&cluster.create(&path, &pod("web", "nginx:1.29")).success());
    }
    assert_eq!(registration.calls("enforce"), before);
}

pub(crate) fn mirror_pods_of_nodes_are_left_alone(cluster: &Cluster) {
    let scene = Scene::new(cluster, "enforce");
    let mut wanted = pod("static-node1", "nginx:1.29");
    wanted["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "0123456789"});
    wanted["spec"]["nodeName"] = "node1".into();
    let before = scene.registration.calls("enforce");
    let created = cluster
        .request(
            User::Node,
            Method::POST,
            &scene.namespace.path("pods"),
            Some(&wanted),
        )
        .success();
    assert_eq!(image(&created, "app"), "nginx:1.29");
    assert_eq!(
        created["metadata"]["annotations"],
        wanted["metadata"]["annotations"]
    );
    // Kagami tells by itself that it is one; the API server asks it once for each.
    let asked = scene.registration.calls("enforce");
    assert_eq!(asked.answered, before.answered + 1);
}

#[track_caller]
fn assert_untouched(created: &Value) {
    assert_eq!(image(created, "app"), "nginx:1.29");
    assert_eq!(created["metadata"]["annotations"], Value::Null);
}
