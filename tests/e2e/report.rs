//! `kagami report` against a cluster; the test is the companion.

use std::time::Duration;

use kagami::clock;
use serde_json::{Value, json};

use crate::support::{
    admission::{image, original, pod},
    chart::stdout,
    cluster::Cluster,
    command::{assert_fails, kagami},
    kagami::Registration,
    mirror::REGISTRY,
    reader::{Heart, Reader},
};

/// A state that is fresh, with a healthy mirror that has one image.
fn fresh(cluster: &Cluster) -> (Reader<'_>, Heart, String) {
    let mut reader = Reader::start(cluster, "Hosted", |_| ());
    let heart = Heart::start(&reader);
    let known = reader.image("known:1");
    reader.wait_until_fresh();
    reader.share_healthy(clock::now().before(Duration::from_mins(1)));
    reader.know(&known, clock::now());
    (reader, heart, known)
}

pub(crate) fn audit_log_and_report_tell_the_same(cluster: &Cluster) {
    let (reader, _heart, known) = fresh(cluster);
    let other = reader.image("other:1");
    let audited = cluster.namespace(Some("audit"));
    let registration = Registration::of(&audited, &[], &reader.admission());
    let mut switched_off = pod("off", &known);
    switched_off["metadata"]["labels"] = json!({"kagami.dev/mode": "off"});
    // No Pod strengthens its namespace.
    let mut stronger = pod("stronger", &known);
    stronger["metadata"]["labels"] = json!({"kagami.dev/mode": "enforce"});
    let pods = [pod("known", &known), pod("other", &other), switched_off, stronger];
    for wanted in &pods {
        let name = wanted["metadata"]["name"].as_str().unwrap();
        let answer = audited.create_pod(wanted);
        assert_eq!(answer.warnings(), [""; 0], "{name}");
        let stored = answer.success();
        assert_eq!(image(&stored, "app"), image(wanted, "app"), "{name}");
        assert_eq!(stored["metadata"]["annotations"], Value::Null, "{name}");
        assert_eq!(stored["spec"]["imagePullSecrets"], Value::Null, "{name}");
        assert_eq!(audited.pod(name)["spec"], stored["spec"], "{name}");
    }

    let report = report(&reader, &["--namespace", &audited.name]);
    let prefix = format!("{}/", registration.webhook("audit"));
    for (name, expected) in [
        ("known", "WouldRewrite Mirrored"),
        ("off", "Kept ModeOff"),
        // Whoever is asked about it looks; the report asks nobody.
        ("other", "Kept ImageMissing"),
        ("stronger", "WouldRewrite Mirrored"),
    ] {
        let event = audited.audit_event(name);
        let annotations = event["annotations"].as_object().unwrap();
        let logged: Vec<_> = annotations
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix))
            .map(|(_, value)| value.as_str().unwrap())
            .collect();
        assert_eq!(logged.len(), 1, "{event}");
        assert!(logged[0].starts_with(expected), "{name}: {logged:?}");
        let told = expected.replace("ImageMissing", "ImageUnknown");
        assert_eq!(decision(&report, name), told, "{report}");
    }
    let counts = json!({
        "namespace": audited.name, "mode": "audit", "pods": 4, "images": 4,
        "onMirror": 0, "wouldUseMirror": 2, "kept": {"ImageUnknown": 1, "ModeOff": 1},
    });
    assert_eq!(report["namespaces"], json!([counts]));
}

pub(crate) fn every_namespace_is_told_by_its_mode(cluster: &Cluster) {
    let (reader, _heart, known) = fresh(cluster);
    let enforced = cluster.namespace(Some("enforce"));
    let registration = Registration::of(&enforced, &[], &reader.admission());
    let created = enforced.create_pod(&pod("web", &known)).success();
    assert_eq!(image(&created, "app"), format!("{REGISTRY}/{known}"));
    assert_eq!(original(&created, "app"), Some(&*known));
    drop(registration);
    // This one ran before the namespace was opted in, and this one has ended.
    enforced.create_pod(&pod("older", &known)).success();
    enforced.create_pod(&pod("ended", &known)).success();
    let ended = json!({"status": {"phase": "Succeeded"}}).to_string();
    stdout(&enforced.kubectl(&["patch", "pod", "ended", "--subresource=status", "--patch", &ended]));
    let unlabelled = cluster.namespace(None);
    unlabelled.create_pod(&pod("nobodys", &known)).success();
    let left_alone = cluster.namespace(Some("enforce"));
    left_alone.create_pod(&pod("storage", &known)).success();

    let told = report(&reader, &["--left-alone", &left_alone.name]);
    assert_eq!(decision(&told, "web"), "Rewritten Mirrored");
    assert_eq!(decision(&told, "older"), "Rewritten Mirrored");
    assert_eq!(decision(&told, "nobodys"), "Kept ModeOff");
    assert_eq!(decision(&told, "storage"), "Kept NamespaceNotServed");
    let web = find(&told, "web")["images"][0].clone();
    assert_eq!(web["image"], known.as_str());
    assert_eq!(web["now"], format!("{REGISTRY}/{known}"));
    assert_eq!(web["onMirror"], reader.name.as_str());
    assert_eq!(find(&told, "older")["images"][0]["onMirror"], Value::Null);
    let counts = |namespace: &str| {
        let namespaces = told["namespaces"].as_array().unwrap().iter();
        let mut found = namespaces.filter(|entry| entry["namespace"] == namespace);
        found.next().unwrap().clone()
    };
    let of_enforced = counts(&enforced.name);
    assert_eq!(
        (
            &of_enforced["pods"],
            &of_enforced["onMirror"],
            &of_enforced["wouldUseMirror"]
        ),
        (&json!(2), &json!(1), &json!(2)),
        "the Pod that ended pulls nothing: {of_enforced}"
    );
    assert_eq!(counts(&left_alone.name)["mode"], "off");

    let table = stdout(&kagami(&reader, &["report", "--left-alone", &left_alone.name]));
    for expected in ["web", "older", "WOULD BE", "Only counted: "] {
        assert!(table.contains(expected), "no {expected} in\n{table}");
    }
    assert!(
        !table.contains("nobodys") && !table.contains("storage"),
        "{table}"
    );
    let told = report(
        &reader,
        &["--namespace", &unlabelled.name, "--default-mode", "audit"],
    );
    assert_eq!(decision(&told, "nobodys"), "WouldRewrite Mirrored");

    // Before Kagami goes: nothing would use a mirror, and what still does is told.
    reader.change_mirror(|mirror| mirror["spec"]["mode"] = "Off".into());
    let told = report(&reader, &["--namespace", &enforced.name]);
    assert_eq!(told["namespaces"][0]["wouldUseMirror"], 0, "{told}");
    assert_eq!(told["namespaces"][0]["onMirror"], 1, "{told}");
}

pub(crate) fn who_may_not_list_pods_is_told(cluster: &Cluster) {
    let (reader, _heart, _) = fresh(cluster);
    let as_webhook = cluster
        .folder()
        .join(format!("{}.kubeconfig", reader.namespace.name));
    let output = kagami(&reader, &["report", "--kubeconfig", as_webhook.to_str().unwrap()]);
    assert_fails(&output, 1, "cannot read pods: pods is forbidden");
}

fn report(reader: &Reader<'_>, arguments: &[&str]) -> Value {
    let output = kagami(reader, &[&["report", "--output", "json"], arguments].concat());
    serde_json::from_str(&stdout(&output)).unwrap()
}

#[track_caller]
fn find<'a>(report: &'a Value, pod: &str) -> &'a Value {
    let mut pods = report["pods"].as_array().unwrap().iter();
    pods.find(|entry| entry["pod"] == pod)
        .unwrap_or_else(|| panic!("no Pod {pod} in {report}"))
}

/// Outcome and reason of a Pod's only image.
#[track_caller]
fn decision(report: &Value, pod: &str) -> String {
    let image = &find(report, pod)["images"][0];
    format!(
        "{} {}",
        image["outcome"].as_str().unwrap(),
        image["reason"].as_str().unwrap()
    )
}
