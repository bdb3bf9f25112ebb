//! `kagami report` against a cluster; the test is the companion.

use std::time::Duration;

use ::kagami::clock;
use serde_json::{Value, json};

use crate::support::{
    admission::{image, original, pod},
    chart::stdout,
    cluster::{Cluster, RBAC},
    command::{assert_fails, kagami},
    eventually,
    kagami::Registration,
    mirror::REGISTRY,
    policy::{AdmissionPolicy, failed_create},
    reader::Reader,
};

pub(crate) fn audit_log_and_report_tell_the_same(cluster: &Cluster) {
    let (reader, _heart, known) = Reader::fresh(cluster);
    let other = reader.image("other:1");
    let audited = cluster.namespace(Some("audit"));
    let registration = Registration::new(&audited, &[], &reader.kagami);
    let mut switched_off = pod("off", &known);
    switched_off["metadata"]["labels"] = json!({"kagami.dev/mode": "off"});
    // No Pod strengthens its namespace.
    let mut stronger = pod("stronger", &known);
    stronger["metadata"]["labels"] = json!({"kagami.dev/mode": "enforce"});
    let mut passing_on = pod("known", &known);
    passing_on["spec"]["containers"][0]["env"] = json!([{"name": "SELF", "value": known}]);
    let pods = [passing_on, pod("other", &other), switched_off, stronger];
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
    let passed_on = json!([{"place": "containers.app", "by": "SELF", "image": known}]);
    assert_eq!(find(&report, "known")["passedOn"], passed_on);
    assert_eq!(find(&report, "other")["passedOn"], Value::Null);
    let counts = json!({
        "namespace": audited.name, "mode": "audit", "pods": 4, "images": 4,
        "onMirror": 0, "wouldUseMirror": 2, "kept": {"ImageUnknown": 1, "ModeOff": 1},
    });
    assert_eq!(report["namespaces"], json!([counts]));
}

pub(crate) fn stuck_pods_are_told_with_what_would_help(cluster: &Cluster) {
    let (reader, _heart, known) = Reader::fresh(cluster);
    let namespace = cluster.namespace(None);
    let mirrored = format!("{REGISTRY}/{known}");
    for (name, recorded) in [("recorded", known.as_str()), ("forged", "other:1")] {
        let mut wanted = pod(name, &mirrored);
        wanted["metadata"]["annotations"] = json!({"original-image.kagami.dev/app": recorded});
        namespace.create_pod(&wanted).success();
        let waiting = json!({
            "reason": "ImagePullBackOff", "message": format!("Back-off pulling image \"{mirrored}\""),
        });
        let status = json!({"status": {"containerStatuses": [{
            "name": "app", "image": mirrored, "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": waiting},
        }]}});
        let patch = status.to_string();
        stdout(&namespace.kubectl(&["patch", "pod", name, "--subresource=status", "--patch", &patch]));
    }
    namespace.create_pod(&pod("well", &known)).success();
    // Its node is inside a pull, or so it seems: it has said nothing since it could have begun.
    let mut hangs = pod("hangs", &mirrored);
    hangs["spec"]["nodeName"] = "no-such-node".into();
    namespace.create_pod(&hangs).success();
    let long_ago = clock::now().before(Duration::from_mins(10)).to_string();
    let status = json!({"status": {
        "conditions": [{
            "type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": format!("{:.19}Z", long_ago),
        }],
        "containerStatuses": [{
            "name": "app", "image": mirrored, "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ContainerCreating"}},
        }],
    }})
    .to_string();
    stdout(&namespace.kubectl(&[
        "patch",
        "pod",
        "hangs",
        "--subresource=status",
        "--patch",
        &status,
    ]));
    let told = report(&reader, &["--namespace", &namespace.name]);
    let stuck: Vec<_> = told["stuck"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stuck| {
            let text = |key: &str| stuck[key].as_str().unwrap_or("-");
            [text("pod"), text("place"), text("why"), text("goesBackTo")].join(" ")
        })
        .collect();
    let back = format!("recorded containers.app GoesBack {known}");
    assert_eq!(
        stuck,
        [
            "forged containers.app RecordDiffers -",
            "hangs containers.app PullLasts? -",
            back.as_str()
        ],
        "{told}"
    );
    let table = stdout(&kagami(&reader, &["report", "--namespace", &namespace.name]));
    assert!(
        table.contains("STUCK POD") && table.contains("\nGoesBack: ") && table.contains("\nPullLasts?: "),
        "{table}"
    );
    // No kubelet says that it is gone.
    stdout(&namespace.kubectl(&["delete", "pod", "hangs", "--force", "--grace-period=0"]));
}

pub(crate) fn every_namespace_is_told_by_its_mode(cluster: &Cluster) {
    let (reader, _heart, known) = Reader::fresh(cluster);
    let enforced = cluster.namespace(Some("enforce"));
    let registration = Registration::new(&enforced, &[], &reader.kagami);
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
    let (reader, _heart, _) = Reader::fresh(cluster);
    let as_webhook = reader.kubeconfig.to_str().unwrap();
    let output = kagami(&reader, &["report", "--kubeconfig", as_webhook]);
    assert_fails(&output, 1, "cannot read pods: pods is forbidden");
}

pub(crate) fn a_silent_companion_is_told(cluster: &Cluster) {
    let reader = Reader::start(cluster, "Hosted", |_| ());
    let notes = report(&reader, &["--namespace", &reader.namespace.name])["notes"].to_string();
    assert!(notes.contains("no sign of life of a companion"), "{notes}");
    // Of many, as others' tests have some here, only the first are named.
    let is_named = notes.contains(&format!("what it knows of {}", reader.name))
        || notes.contains(&format!(", {}", reader.name))
        || notes.contains(" more is too old");
    assert!(is_named, "{notes}");
    let (fresh, _heart, _) = Reader::fresh(cluster);
    let notes = report(&fresh, &["--namespace", &fresh.namespace.name])["notes"].to_string();
    assert!(!notes.contains("sign of life"), "{notes}");
}

pub(crate) fn what_policies_refuse_is_told(cluster: &Cluster) {
    let (reader, _heart, known) = Reader::fresh(cluster);
    let enforced = cluster.namespace(Some("enforce"));
    let audited = cluster.namespace(Some("audit"));
    let _registration = Registration::new(&enforced, &[&audited.name], &reader.kagami);
    let names = [&enforced, &audited].map(|namespace| namespace.name.as_str());
    // Whoever may not read the mirror's name denies what was rewritten, and there even what was not.
    let policy = AdmissionPolicy::new(
        cluster,
        &format!("upstream-only-{}", enforced.name),
        &names,
        "Deny",
        &json!({
            "expression": format!(
                "namespaceObject.metadata.name == '{}' ? false : \
                 object.spec.containers.all(c, !c.image.startsWith('{REGISTRY}/'))",
                audited.name
            ),
            "messageExpression": "'no images but upstream\\'s: ' + object.spec.containers[0].image",
        }),
    );
    policy.until(&enforced, &pod("probe", &format!("{REGISTRY}/probe")), |answer| {
        answer.status == 422
    });
    policy.until(&audited, &pod("probe", "probe"), |answer| answer.status == 422);
    // What a quota refuses is no policy's word.
    let limited = cluster.namespace(Some("enforce"));
    let quota = json!({"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}});
    cluster.create(&limited.path("resourcequotas"), &quota).success();
    eventually("the quota is in force", || {
        (limited.create_pod(&pod("probe", "probe")).status == 403).then_some(())
    });
    for namespace in [&enforced, &audited, &limited] {
        stdout(&namespace.kubectl(&["create", "deployment", "web", "--image", &known]));
    }
    for namespace in [&enforced, &audited, &limited] {
        failed_create(namespace);
    }

    let told = report(&reader, &[]);
    let refusals: Vec<_> = told["refusals"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|refusal| {
            names.contains(&refusal["namespace"].as_str().unwrap()) || refusal["namespace"] == limited.name
        })
        .collect();
    assert_eq!(refusals.len(), 1, "{told}");
    let refusal = refusals[0];
    assert_eq!(refusal["namespace"], enforced.name);
    assert_eq!(refusal["kind"], "ReplicaSet");
    assert!(refusal["name"].as_str().unwrap().starts_with("web-"), "{refusal}");
    assert_eq!(
        refusal["policy"],
        format!("ValidatingAdmissionPolicy {}", policy.name)
    );
    assert_eq!(refusal["namesMirror"], true);
    assert!(refusal["count"].as_u64() > Some(0), "{refusal}");

    let output = kagami(&reader, &["report", "--namespace", &enforced.name]);
    stdout(&output);
    let note = String::from_utf8(output.stderr).unwrap();
    for expected in [
        &*format!(
            "ValidatingAdmissionPolicy {} refuses the Pods of ReplicaSet web-",
            policy.name
        ),
        &format!("no images but upstream's: {REGISTRY}/{known}"),
        "let it match both names",
    ] {
        assert!(note.contains(expected), "no {expected} in {note}");
    }
    let told = report(&reader, &["--namespace", &audited.name]);
    assert_eq!(told["refusals"], Value::Null, "{told}");
}

pub(crate) fn who_may_not_read_events_is_told(cluster: &Cluster) {
    let (reader, _heart, _) = Reader::fresh(cluster);
    let home = &reader.namespace;
    let pods = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]);
    let name = format!("pods-{}", home.name);
    cluster
        .create(
            &format!("{RBAC}/clusterroles"),
            &json!({"metadata": {"name": name}, "rules": pods}),
        )
        .success();
    let binding = json!({
        "metadata": {"name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "kagami-webhook", "namespace": home.name}],
        "roleRef": {"kind": "ClusterRole", "name": name, "apiGroup": "rbac.authorization.k8s.io"},
    });
    cluster
        .create(&format!("{RBAC}/clusterrolebindings"), &binding)
        .success();
    let as_webhook = reader.kubeconfig.to_str().unwrap();
    let output = eventually("Pods may be listed", || {
        let output = kagami(&reader, &["report", "--kubeconfig", as_webhook]);
        output.status.success().then_some(output)
    });
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("cannot read events: events is forbidden") && told.contains("whether a policy refuses"),
        "{told}"
    );
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
