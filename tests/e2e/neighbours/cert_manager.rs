//! cert-manager, as the chart uses it.

use std::{process::Command, thread, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use reqwest::Method;
use serde_json::Value;

use super::{Sightings, brought, cluster_with};
use crate::support::{
    chart::{Chart, apply, stdout},
    cluster::{Cluster, Namespace, User},
    process::Process,
    within,
};

const CONFIGURATION: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/zz-kagami";

/// How long something may take that waits for several controllers in a row.
const PATIENCE: Duration = Duration::from_mins(3);

/// Longer than cert-manager takes to notice a change.
const A_WHILE: Duration = Duration::from_secs(10);

pub(crate) fn cert_manager(shared: &Cluster) {
    let cluster = &cluster_with(shared, &["cert-manager", "neighbours"]);
    let mut seen = Sightings::of("cert-manager", "github.com/cert-manager/cert-manager");
    apply(cluster, &[&brought(cluster, "cert-manager")]);
    let own = cluster.namespace_named("kagami-system", None);
    let chart = Chart::new(cluster, "kagami", &own.name, "certManager: {enabled: true}");
    let mut command = Command::new(cluster.tools.path("cert-manager"));
    command.env("KUBECONFIG", cluster.folder().join("admin.kubeconfig"));
    let mut manager = Process::start("cert-manager", &command, cluster.folder());
    chart.apply(&["Issuer", "Certificate", "MutatingWebhookConfiguration"]);

    let first = within(PATIENCE, "what is served is trusted", || {
        manager.assert_alive();
        let authority = served_by(&own)?;
        bundles(cluster)
            .iter()
            .all(|bundle| *bundle == authority)
            .then_some(authority)
    });
    seen.add(
        "the chart with `certManager.enabled`",
        "issues the certificate and writes its authority into every webhook",
    );

    // Another authority: its Secret is made anew, and so is what it signs.
    stdout(&own.kubectl(&["delete", "secret", "kagami-ca", "kagami-webhook-tls"]));
    let second = within(PATIENCE, "another authority", || {
        let authority = served_by(&own).filter(|authority| *authority != first);
        for bundle in bundles(cluster) {
            assert!(bundle.contains(&first), "the first authority is gone: {bundle}");
        }
        let authority = authority?;
        bundles(cluster)
            .iter()
            .all(|bundle| bundle.contains(&authority))
            .then_some(authority)
    });
    let both = |bundle: &String| bundle.contains(&first) && bundle.contains(&second);
    assert!(bundles(cluster).iter().all(both));
    seen.add(
        "another authority takes over",
        "merges it into `caBundle`; the one before stays trusted all the while",
    );
    stdout(&own.kubectl(&["annotate", "certificate", "kagami-webhook", "touched=yes"]));
    thread::sleep(A_WHILE);
    assert!(bundles(cluster).iter().all(both));
    seen.add("the same, later", "never takes the one before out");

    let mut stored = cluster.get(CONFIGURATION).success();
    for webhook in stored["webhooks"].as_array_mut().unwrap() {
        webhook["clientConfig"]["caBundle"] = BASE64.encode(&second).into();
    }
    cluster
        .request(User::Admin, Method::PUT, CONFIGURATION, Some(&stored))
        .success();
    thread::sleep(A_WHILE);
    assert!(bundles(cluster).iter().all(|bundle| *bundle == second));
    seen.add(
        "`caBundle` set by hand to `ca.crt` of Secret `kagami-webhook-tls`",
        "leaves it so: the one before is out for good",
    );
    manager.assert_alive();
    seen.write();
}

/// The authority of what is served.
fn served_by(own: &Namespace<'_>) -> Option<String> {
    let path = own.path("secrets/kagami-webhook-tls");
    let answer = own.cluster.request(User::Admin, Method::GET, &path, None);
    let secret: Value = serde_json::from_str(&answer.body).ok()?;
    Some(decode(&secret["data"]["ca.crt"])).filter(|authority| !authority.is_empty())
}

/// What is trusted of each webhook.
fn bundles(cluster: &Cluster) -> Vec<String> {
    let stored = cluster.get(CONFIGURATION).success();
    let webhooks = stored["webhooks"].as_array().unwrap();
    webhooks
        .iter()
        .map(|webhook| decode(&webhook["clientConfig"]["caBundle"]))
        .collect()
}

fn decode(value: &Value) -> String {
    let bytes = BASE64.decode(value.as_str().unwrap_or_default()).unwrap();
    String::from_utf8(bytes).unwrap()
}
