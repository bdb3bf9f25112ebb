//! Gatekeeper, whose mutations act on updates too.

use std::{fs, process::Command, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Beside, OURS, Sightings, brought, cluster_with, create, created, tried};
use crate::support::{
    admission::image,
    chart::{apply, stdout},
    cluster::{Cluster, Namespace, User},
    eventually,
    process::{Process, reserve_port},
    within,
};

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const CONFIGURATION: &str = "gatekeeper-mutating-webhook-configuration";

/// `OURS` as somebody writes it who leaves the host to Gatekeeper.
const SHORT: &str = "acme/models/small:v1";

pub(crate) fn gatekeeper(shared: &Cluster) {
    let cluster = &cluster_with(shared, &["gatekeeper", "neighbours"]);
    let mut seen = Sightings::of("Gatekeeper", "github.com/open-policy-agent/gatekeeper/v3");
    let beside = Beside::new(cluster);
    let Beside {
        labelled, unlabelled, ..
    } = &beside;
    let mut gatekeeper = start(cluster);
    let mutator = json!({
        "apiVersion": "mutations.gatekeeper.sh/v1alpha1",
        "kind": "AssignImage",
        "metadata": {"name": "host"},
        "spec": {
            "applyTo": [{"groups": [""], "kinds": ["Pod"], "versions": ["v1"]}],
            "location": "spec.containers[name:*].image",
            "parameters": {"assignDomain": "ghcr.io"},
            "match": {
                "scope": "Namespaced",
                "kinds": [{"apiGroups": ["*"], "kinds": ["Pod"]}],
                "namespaces": beside.names(),
            },
        },
    });
    create(
        cluster,
        "/apis/mutations.gatekeeper.sh/v1alpha1/assignimage",
        &mutator,
    );
    within(Duration::from_mins(3), "Gatekeeper writes the host", || {
        gatekeeper.assert_alive();
        let answer = tried(unlabelled, SHORT).success();
        (image(&answer, "app") == OURS).then_some(())
    });
    assert_eq!(created(labelled, "web", SHORT), beside.mirrored(OURS));
    assert_eq!(created(unlabelled, "web", SHORT), OURS);
    seen.add(
        "`AssignImage` with `assignDomain`, a Pod is created",
        "writes upstream's host; Kagami comes after it and rewrites",
    );
    assert_eq!(labelled_anew(unlabelled, "web"), OURS);
    assert_eq!(labelled_anew(labelled, "web"), format!("ghcr.io/{OURS}"));
    seen.add(
        "the same, a label of the running Pod changes",
        "writes its host over the mirror's: the image becomes `ghcr.io/ghcr.io/…`, which nobody has",
    );

    let path = format!("{CONFIGURATIONS}/{CONFIGURATION}");
    let mut stored = cluster.get(&path).success();
    stored["webhooks"][0]["rules"][0]["operations"] = json!(["CREATE"]);
    cluster
        .request(User::Admin, Method::PUT, &path, Some(&stored))
        .success();
    // Known by a Pod of the other namespace, which an update leaves as it was written.
    eventually("updates pass by", || {
        let bare = json!([{"op": "replace", "path": "/spec/containers/0/image", "value": SHORT}]).to_string();
        let patch = ["patch", "pod", "web", "--type=json", "--patch", &bare];
        stdout(&unlabelled.kubectl(&patch));
        (image(&unlabelled.pod("web"), "app") == SHORT).then_some(())
    });
    assert_eq!(created(labelled, "other", SHORT), beside.mirrored(OURS));
    assert_eq!(labelled_anew(labelled, "other"), beside.mirrored(OURS));
    seen.add(
        "the same, its webhook restricted to CREATE",
        "leaves the running Pod alone",
    );
    seen.write();
}

/// Changes a label of a Pod, and returns the image that it has then.
fn labelled_anew(namespace: &Namespace<'_>, name: &str) -> String {
    stdout(&namespace.kubectl(&["label", "pod", name, "changed=yes"]));
    image(&namespace.pod(name), "app").to_owned()
}

/// Starts Gatekeeper's mutations outside the cluster, with the configuration of its own manifest.
fn start(cluster: &Cluster) -> Process {
    apply(cluster, &[&brought(cluster, "gatekeeper/crds")]);
    let namespace = json!({"metadata": {"name": "gatekeeper-system"}});
    cluster.create("/api/v1/namespaces", &namespace).success();
    let certificates = cluster.folder().join("gatekeeper");
    fs::create_dir_all(&certificates).unwrap();
    cluster.authority.issue().write(&certificates, "tls");
    let [port, health, metrics] = [(); 3].map(|()| reserve_port());
    let mut command = Command::new(cluster.tools.path("gatekeeper"));
    command
        .arg(format!("--port={port}"))
        .arg(format!("--cert-dir={}", certificates.display()))
        .arg(format!("--health-addr=127.0.0.1:{health}"))
        .arg(format!("--prometheus-port={metrics}"))
        .args([
            "--host=127.0.0.1",
            "--disable-cert-rotation",
            "--debug-use-fake-pod",
            "--operation=mutation-webhook",
            "--operation=mutation-controller",
        ])
        .env("KUBECONFIG", cluster.folder().join("admin.kubeconfig"))
        .env("POD_NAMESPACE", "gatekeeper-system");
    let process = Process::start("gatekeeper", &command, cluster.folder());

    let text = fs::read_to_string(brought(cluster, "gatekeeper/gatekeeper.yaml")).unwrap();
    let documents = kagami::state::file::decode_documents(&text).unwrap();
    let mut configurations = documents
        .into_iter()
        .filter(|document| document["metadata"]["name"] == CONFIGURATION);
    let mut configuration: Value = configurations.next().unwrap();
    let webhook = &mut configuration["webhooks"][0];
    let served = webhook["clientConfig"]["service"]["path"].as_str().unwrap();
    webhook["clientConfig"] = json!({
        "url": format!("https://127.0.0.1:{port}{served}"),
        "caBundle": BASE64.encode(cluster.authority.pem()),
    });
    // Its second would be too short on a busy machine, and a mutation that is late is left out.
    webhook["timeoutSeconds"] = 20.into();
    cluster.create(CONFIGURATIONS, &configuration).success();
    process
}
