//! Where the webhook's certificates come from while that changes: cert-manager before, an earlier version
//! before, or nobody who may write them.

use std::{
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use kagami::{
    certificates::{Authority, Name},
    clock,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    clouds::enforced,
    companion::assert_only_allowed,
    support::{
        chart::stdout,
        cluster::{Cluster, User},
        companion::Place,
        eventually, within,
    },
};

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

const YEAR: Duration = Duration::from_hours(365 * 24);

/// After `certManager.enabled: false`: cert-manager leaves its Secrets behind, and one of them has the name that
/// the companion's authority once had.
pub(crate) fn what_cert_manager_left_behind_is_replaced_in_steps(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    let theirs = Authority::new(clock::now(), 10 * YEAR).unwrap();
    let names = [Name::Dns(format!("kagami-webhook.{}.svc", place.own.name))];
    let pair = theirs.issue(&names, clock::now(), YEAR).unwrap();
    let left = tls_secret(
        &place,
        "kagami-ca",
        theirs.certificate(),
        &theirs.key(),
        theirs.certificate(),
    );
    tls_secret(
        &place,
        "kagami-webhook-tls",
        &pair.certificate,
        &pair.key,
        theirs.certificate(),
    );
    configure(&place, Some(theirs.certificate()));
    // As an enforcer of others' would have it (AKS).
    let selector = enforced(&stored(&place)["webhooks"][0])["namespaceSelector"].clone();
    let patch = json!([{"op": "replace", "path": "/webhooks/0/namespaceSelector", "value": selector}]);
    stdout(&cluster.kubectl(&[
        "patch",
        "mutatingwebhookconfiguration",
        &place.name,
        "--type=json",
        &format!("--patch={patch}"),
    ]));
    let generation = |stored: Value| stored["metadata"]["generation"].as_u64().unwrap();
    let before = generation(stored(&place));
    let look = || {
        // The Secret first: whatever it has must be trusted by the bundle read after.
        let (authority, bundle) = (served_by(&place), bundle(&place));
        assert!(
            bundle.contains(&authority),
            "a certificate is served that nobody trusts"
        );
        (
            bundle.matches("BEGIN CERTIFICATE").count(),
            authority == theirs.certificate(),
        )
    };
    // Before it begins, as it may take the first step before it is seen to run.
    let mut seen = vec![look()];
    let companion = start(&place, "companion-a");

    let deadline = Instant::now() + Duration::from_secs(50);
    while seen.last() != Some(&(1, false)) {
        let state = look();
        if seen.last() != Some(&state) {
            seen.push(state);
        }
        assert!(Instant::now() < deadline, "no renewal: {seen:?}");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(seen, [(1, true), (2, true), (2, false), (1, false)]);
    // Nothing but the bundle is ours, written when it changed.
    let after = stored(&place);
    assert_eq!(after["webhooks"][0]["namespaceSelector"], selector);
    assert_eq!(generation(after), before + 2);
    let ours = secret(&place, "kagami-authority").unwrap();
    assert_eq!(ours["type"], "Opaque");
    // It is not ours to change or to delete.
    assert_eq!(secret(&place, "kagami-ca").unwrap(), left);
    assert_only_allowed(&place, &companion);
    cluster.delete(&format!("{CONFIGURATIONS}/{}", place.name));
}

/// The authority is the same under its new name, so an upgrade changes nothing of what is trusted or served, and
/// neither does going back.
pub(crate) fn the_authority_of_an_earlier_version_stays_in_use(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    configure(&place, None);
    let first = start(&place, "companion-a");
    let made = eventually("all is in place", || {
        let serving = secret(&place, "kagami-webhook-tls")?;
        (bundle(&place) == served_by(&place)).then_some(serving)
    });
    let authority = secret(&place, "kagami-authority").unwrap();
    first.process.terminate();
    // As an earlier version would have it.
    let mut former = authority.clone();
    former["metadata"] = json!({
        "name": "kagami-ca",
        "annotations": authority["metadata"]["annotations"],
    });
    cluster.create(&place.own.path("secrets"), &former).success();
    cluster.delete(&place.own.path("secrets/kagami-authority"));
    let trusted = bundle(&place);

    let second = start(&place, "companion-b");
    let taken = eventually("the authority is taken over", || {
        secret(&place, "kagami-authority")
    });
    assert!(taken["data"] == authority["data"], "it is another one");
    assert_eq!(
        taken["metadata"]["annotations"],
        authority["metadata"]["annotations"]
    );
    // Long enough for several looks.
    let (_, before) = second.listeners.get("/metrics").unwrap();
    assert!(
        !before.contains("kagami_writes_total{kind=\"MutatingWebhookConfiguration\""),
        "{before}"
    );
    assert_eq!(secret(&place, "kagami-webhook-tls").unwrap(), made);
    assert_eq!(bundle(&place), trusted);
    assert_only_allowed(&place, &second);
    cluster.delete(&format!("{CONFIGURATIONS}/{}", place.name));
}

pub(crate) fn a_certificate_that_nobody_can_renew_is_told(cluster: &Cluster) {
    let place = Place::new(cluster, &cluster.mirror.url);
    configure(&place, None);
    // Of a type that no authority can be put into.
    tls_secret(&place, "kagami-authority", "", "", "");
    let companion = start(&place, "companion-a");
    let event = within(Duration::from_mins(2), "an Event tells of it", || {
        let events = cluster
            .get("/apis/events.k8s.io/v1/namespaces/default/events")
            .success();
        let mut events = events["items"].as_array().unwrap().clone().into_iter();
        events.find(|event| {
            event["reason"] == "CertificateNotRenewed" && event["regarding"]["name"] == place.name
        })
    });
    assert_eq!(event["type"], "Warning");
    let note = event["note"].as_str().unwrap();
    assert!(
        note.contains("there is none") && note.contains("kagami-authority"),
        "{note}"
    );
    let log = companion.process.log_tail();
    let lines = log.matches("cannot keep the webhook's certificates").count();
    assert!(lines <= 1, "one fault, {lines} lines:\n{log}");
    cluster.delete(&format!("{CONFIGURATIONS}/{}", place.name));
}

fn start(place: &Place<'_>, user: &'static str) -> crate::support::companion::Companion {
    let arguments = ["--webhook-configuration", &place.name, "--certificate-step", "3s"];
    place.start(user, &arguments)
}

/// Makes a webhook configuration that nobody is ever called by.
pub(crate) fn configure(place: &Place<'_>, bundle: Option<&str>) {
    let mut client = json!({
        "service": {"name": "kagami-webhook", "namespace": place.own.name, "path": "/"},
    });
    if let Some(bundle) = bundle {
        client["caBundle"] = BASE64.encode(bundle).into();
    }
    let configuration = json!({
        "metadata": {"name": place.name},
        "webhooks": [{
            "name": format!("enforce.{}.kagami.dev", place.own.name),
            "clientConfig": client,
            "namespaceSelector": {"matchLabels": {"no": "such"}},
            "failurePolicy": "Ignore",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        }],
    });
    place.cluster.create(CONFIGURATIONS, &configuration).success();
}

fn tls_secret(place: &Place<'_>, name: &str, certificate: &str, key: &str, authority: &str) -> Value {
    let secret = json!({
        "metadata": {"name": name},
        "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": certificate, "tls.key": key, "ca.crt": authority},
    });
    place
        .cluster
        .create(&place.own.path("secrets"), &secret)
        .success()
}

pub(crate) fn secret(place: &Place<'_>, name: &str) -> Option<Value> {
    let path = place.own.path(&format!("secrets/{name}"));
    let answer = place.cluster.request(User::Admin, Method::GET, &path, None);
    (answer.status == 200).then(|| answer.success())
}

/// The authority of what is served.
fn served_by(place: &Place<'_>) -> String {
    let serving = secret(place, "kagami-webhook-tls").unwrap_or_default();
    decode(&serving["data"]["ca.crt"])
}

/// The authorities that are trusted.
pub(crate) fn bundle(place: &Place<'_>) -> String {
    decode(&stored(place)["webhooks"][0]["clientConfig"]["caBundle"])
}

/// The webhook configuration.
fn stored(place: &Place<'_>) -> Value {
    let path = format!("{CONFIGURATIONS}/{}", place.name);
    place.cluster.get(&path).success()
}

pub(crate) fn decode(value: &Value) -> String {
    let bytes = BASE64.decode(value.as_str().unwrap_or_default()).unwrap();
    String::from_utf8(bytes).unwrap()
}
