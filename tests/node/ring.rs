//! The ring itself: Pods really pull, wait and run, and reach what they must.

use serde_json::json;

use crate::{
    shared::{cluster::Namespace, eventually},
    support::{
        images::{self, FOREVER},
        node::Node,
        pods::{failed_pulls, job, pod, until, until_pull_fails, until_running, until_succeeded, waiting},
        registry::{ALICE, Registry},
    },
};

pub(crate) fn a_pod_of_a_missing_image_waits(node: &Node) {
    let registry = Registry::start(node, "missing.test");
    registry.push(&node.cluster, "team/app", "1", &images::shell("missing", FOREVER));
    let namespace = node.cluster.namespace(None);

    create(&namespace, "absent", "missing.test/team/app:2");
    create(&namespace, "present", "missing.test/team/app:1");
    until_running(&namespace, "present");
    until_pull_fails(&namespace, "absent");
    assert_ne!(registry.pulls("team/app").len(), 0);
}

pub(crate) fn a_pod_waits_until_its_registry_is_back(node: &Node) {
    let mut registry = Registry::start(node, "mortal.test");
    registry.push(&node.cluster, "team/app", "1", &images::shell("mortal", FOREVER));
    let namespace = node.cluster.namespace(None);

    registry.kill();
    create(&namespace, "web", "mortal.test/team/app:1");
    let waiting = until_pull_fails(&namespace, "web");
    let message = waiting["status"]["containerStatuses"][0]["state"]["waiting"]["message"].to_string();
    assert!(message.contains("connection refused"), "{message}");
    registry.bring_back();
    until_running(&namespace, "web");
}

pub(crate) fn a_pod_waits_until_the_black_hole_is_gone(node: &Node) {
    let registry = Registry::start(node, "silent.test");
    registry.push(&node.cluster, "team/app", "1", &images::shell("silent", FOREVER));
    let namespace = node.cluster.namespace(None);

    let black_hole = registry.black_hole();
    create(&namespace, "web", "silent.test/team/app:1");
    // Containerd hangs, which kubelet does not call a failed pull.
    eventually("containerd calls twice", || {
        (black_hole.attempts() >= 2).then_some(())
    });
    until(&namespace, "web", "it waits", |pod| {
        waiting(pod) == "ContainerCreating"
    });
    assert_eq!(failed_pulls(&namespace), [""; 0]);
    drop(black_hole);
    until_running(&namespace, "web");
}

pub(crate) fn a_pod_needs_the_registrys_password(node: &Node) {
    let registry = Registry::start_for(node, "private.test", ALICE);
    registry.push(&node.cluster, "team/app", "1", &images::shell("private", FOREVER));
    let namespace = node.cluster.namespace(None);
    registry.place_pull_secret(&namespace);

    create(&namespace, "stranger", "private.test/team/app:1");
    let stranger = until_pull_fails(&namespace, "stranger");
    assert!(
        stranger.to_string().contains("authorization failed"),
        "{stranger}"
    );
    let mut known = pod("known", "private.test/team/app:1");
    known["spec"]["imagePullSecrets"] = json!([{"name": "private.test"}]);
    namespace.create_pod(&known).success();
    until_running(&namespace, "known");
}

pub(crate) fn a_pod_reaches_the_api_server(node: &Node) {
    let registry = Registry::start(node, "caller.test");
    let kubectl = images::program("kubectl", &node.cluster.tools.path("kubectl"));
    registry.push(&node.cluster, "kubectl", "1", &kubectl);
    let namespace = node.cluster.namespace(None);

    // It finds address, authority and token where every Pod does.
    let arguments = ["auth", "whoami", "--output=jsonpath={.status.userInfo.username}"];
    namespace
        .create_pod(&job("caller", "caller.test/kubectl:1", &arguments))
        .success();
    assert_eq!(
        until_succeeded(&namespace, "caller"),
        format!("system:serviceaccount:{}:default", namespace.name)
    );
}

/// The way on which the API server calls a webhook that runs as a Pod.
pub(crate) fn a_service_leads_to_its_pod(node: &Node) {
    let registry = Registry::start(node, "service.test");
    let cluster = &node.cluster;
    registry.push(
        cluster,
        "team/server",
        "1",
        &images::shell("it is me", "exec httpd -f -p 8080 -h /etc"),
    );
    registry.push(
        cluster,
        "team/caller",
        "1",
        &images::shell("caller", "exec wget -q -O - http://$WEB_SERVICE_HOST/message"),
    );
    let namespace = cluster.namespace(None);
    let service = json!({
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    let service = cluster.create(&namespace.path("services"), &service).success();
    let mut server = pod("web", "service.test/team/server:1");
    server["metadata"]["labels"] = json!({"app": "web"});
    namespace.create_pod(&server).success();
    until_running(&namespace, "web");

    let url = format!(
        "http://{}/message",
        service["spec"]["clusterIP"].as_str().unwrap()
    );
    let answer = eventually("the Service leads to the Pod", || {
        cluster.http.send(cluster.http.client.get(&url)).ok()
    });
    assert_eq!(answer.body, "it is me");
    namespace
        .create_pod(&job("caller", "service.test/team/caller:1", &[]))
        .success();
    assert_eq!(until_succeeded(&namespace, "caller"), "it is me");
}

pub(crate) fn pods_know_registries_by_name(node: &Node) {
    let registry = Registry::start(node, "named.test");
    let script = "exec nslookup named.test";
    registry.push(&node.cluster, "team/app", "1", &images::shell("named", script));
    let namespace = node.cluster.namespace(None);
    namespace
        .create_pod(&job("caller", "named.test/team/app:1", &[]))
        .success();
    let said = until_succeeded(&namespace, "caller");
    let address = registry.address.unwrap();
    assert!(said.contains(&format!("Address: {address}\n")), "{said}");
}

pub(crate) fn our_own_image_runs(node: &Node) {
    let registry = Registry::start(node, "own.test");
    registry.push(&node.cluster, "kagami", "1", &images::kagami().image());
    let namespace = node.cluster.namespace(None);
    let mut wanted = job("kagami", "own.test/kagami:1", &["--version"]);
    // As strict as Pod Security allows.
    wanted["spec"]["containers"][0]["securityContext"] = json!({
        "runAsNonRoot": true,
        "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    namespace.create_pod(&wanted).success();
    let said = until_succeeded(&namespace, "kagami");
    assert_eq!(said.trim(), concat!("kagami ", env!("CARGO_PKG_VERSION")));
    let pod = until(&namespace, "kagami", "it ran", |_| true);
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
}

fn create(namespace: &Namespace<'_>, name: &str, image: &str) {
    namespace.create_pod(&pod(name, image)).success();
}
