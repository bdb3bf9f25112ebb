//! ValidatingAdmissionPolicies and MutatingAdmissionPolicies, which are the API server's own.

use serde_json::json;

use super::{Beside, OURS, Sightings, assert_denied, create, created, tried};
use crate::support::{
    admission::{image, pod},
    chart::stdout,
    cluster::Cluster,
    eventually,
    policy::{AdmissionPolicy, failed_create},
};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

pub(crate) fn admission_policies(cluster: &Cluster) {
    let mut seen = Sightings::of("Kubernetes", "k8s.io/kubernetes");
    let beside = Beside::new(cluster);
    let Beside {
        labelled, unlabelled, ..
    } = &beside;
    let allow = |prefixes: &[&str]| {
        let starts = prefixes
            .iter()
            .map(|prefix| format!("c.image.startsWith('{prefix}')"));
        let starts = starts.collect::<Vec<_>>().join(" || ");
        json!({"expression": format!("object.spec.containers.all(c, {starts})"), "message": "not from acme"})
    };
    let ours = "ghcr.io/acme/";

    let policy = AdmissionPolicy::new(cluster, "allow-acme", &beside.names(), "Deny", &allow(&[ours]));
    policy.until(unlabelled, &pod("other", "nginx:1.29"), |answer| {
        answer.status == 422
    });
    tried(unlabelled, OURS).success();
    assert_denied(&tried(labelled, OURS), "not from acme");
    stdout(&labelled.kubectl(&["create", "deployment", "web", "--image", OURS]));
    let told = failed_create(labelled);
    assert!(told.contains("not from acme"), "{told}");
    seen.add(
        "ValidatingAdmissionPolicy, bound with Deny: images come from `ghcr.io/acme/` only",
        "denies the rewritten Pod, admits the same one where Kagami is not asked; of a Deployment only an Event \
         `FailedCreate` of its ReplicaSet tells",
    );
    // The label goes, and the policy admits what stays as it is.
    stdout(&labelled.kubectl(&[
        "label",
        "--overwrite",
        "namespace",
        &labelled.name,
        "kagami.dev/mode=audit",
    ]));
    eventually("nothing is rewritten", || {
        (tried(labelled, OURS).status == 201).then_some(())
    });
    seen.add(
        "the same, namespace on `audit`",
        "admits, as nothing is rewritten: audit mode does not show it beforehand",
    );
    stdout(&labelled.kubectl(&[
        "label",
        "--overwrite",
        "namespace",
        &labelled.name,
        "kagami.dev/mode=enforce",
    ]));
    drop(policy);

    let policy = AdmissionPolicy::new(cluster, "warn-acme", &beside.names(), "Warn", &allow(&[ours]));
    policy.until(unlabelled, &pod("other", "nginx:1.29"), |answer| {
        answer
            .warnings()
            .iter()
            .any(|warning| warning.contains("not from acme"))
    });
    assert_eq!(tried(unlabelled, OURS).warnings(), [""; 0]);
    let answer = eventually("it is rewritten again", || {
        let answer = tried(labelled, OURS);
        (image(&answer.success(), "app") == beside.mirrored(OURS)).then_some(answer)
    });
    let warnings = answer.warnings().join(" ");
    assert!(warnings.contains("not from acme"), "{warnings}");
    seen.add(
        "the same, bound with Warn",
        "admits the rewritten Pod and warns: so it is tried out",
    );
    drop(policy);

    let both = allow(&[ours, &beside.mirrored(ours)]);
    let policy = AdmissionPolicy::new(cluster, "allow-both", &beside.names(), "Deny", &both);
    policy.until(unlabelled, &pod("other", "nginx:1.29"), |answer| {
        answer.status == 422
    });
    assert_eq!(created(labelled, "both", OURS), beside.mirrored(OURS));
    assert_eq!(created(unlabelled, "both", OURS), OURS);
    assert_denied(&tried(labelled, "nginx:1.29"), "not from acme");
    seen.add(
        "the same, Deny, with both names",
        "admits both, denies the images of others in both",
    );
    drop(policy);

    a_static_mirror(cluster, &beside, &mut seen);
    seen.write();
}

fn a_static_mirror(cluster: &Cluster, beside: &Beside<'_>, seen: &mut Sightings) {
    let policy = json!({
        "metadata": {"name": "static"},
        "spec": {
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"],
            }]},
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression":
                "[JSONPatch{op: 'replace', path: '/spec/containers/0/image', \
                 value: 'static.test/' + object.spec.containers[0].image}]"
            }}],
        },
    });
    create(cluster, &format!("{GROUP}/mutatingadmissionpolicies"), &policy);
    let binding = json!({
        "metadata": {"name": "static"},
        "spec": {"policyName": "static", "matchResources": {"namespaceSelector": {"matchExpressions": [
            {"key": "kubernetes.io/metadata.name", "operator": "In", "values": beside.names()},
        ]}}},
    });
    create(
        cluster,
        &format!("{GROUP}/mutatingadmissionpolicybindings"),
        &binding,
    );
    eventually("the policy is in force", || {
        let answer = tried(&beside.unlabelled, OURS).success();
        (image(&answer, "app") == format!("static.test/{OURS}")).then_some(())
    });
    assert_eq!(
        created(&beside.labelled, "static", OURS),
        format!("static.test/{OURS}")
    );
    let event = beside.labelled.audit_event("static");
    let prefix = format!("{}/", beside.registration.webhook("enforce"));
    let annotations = event["annotations"].as_object().unwrap().iter();
    let told: Vec<_> = annotations
        .filter(|(key, _)| key.starts_with(&prefix))
        .map(|(_, value)| value.as_str().unwrap())
        .collect();
    assert!(told.len() == 1 && told[0].starts_with("Kept NoMirror"), "{event}");
    for kind in ["mutatingadmissionpolicybindings", "mutatingadmissionpolicies"] {
        cluster.delete(&format!("{GROUP}/{kind}/static")).success();
    }
    seen.add(
        "MutatingAdmissionPolicy that writes another mirror's name",
        "comes first and hides upstream's: Kagami keeps the image, `NoMirror`",
    );
}
