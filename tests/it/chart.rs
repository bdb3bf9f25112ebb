//! The chart's side of what the code promises. What helm and an API server think of it is tested in tests/e2e.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use serde_json::{Value, json};

use kagami::{
    api,
    domain::{
        health::State,
        mirror::Mode,
        presence::Counts,
        reason::{Outcome, Reason},
    },
    metrics::{Metrics, ReviewAnswer},
    state::file::decode_documents,
    webhook::routes::PATHS,
};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn json(path: &str) -> Value {
    serde_json::from_str(&read(path)).unwrap()
}

#[test]
fn webhooks_are_registered_as_the_code_answers() {
    let manifest = decode_documents(&read("webhook-config/mutatingwebhookconfiguration.yaml")).unwrap();
    let [configuration] = &manifest[..] else {
        panic!("not one document")
    };
    let expected: Vec<_> = PATHS
        .iter()
        .map(|(mode, path)| {
            let mode = mode.as_label();
            json!({
                "name": format!("{mode}.{}", api::GROUP),
                "clientConfig": {"service": {
                    "namespace": "kagami-system", "name": "kagami-webhook", "port": 443, "path": path,
                }},
                "namespaceSelector": {"matchExpressions": [
                    {"key": api::MODE_LABEL, "operator": "In", "values": [mode]},
                    {
                        "key": "kubernetes.io/metadata.name",
                        "operator": "NotIn",
                        "values": ["kube-system", "kagami-system"],
                    },
                ]},
                "rules": [
                    {
                        "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"],
                        "operations": ["CREATE"], "scope": "Namespaced",
                    },
                    {
                        "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/ephemeralcontainers"],
                        "operations": ["UPDATE"], "scope": "Namespaced",
                    },
                ],
                "matchConditions": [{
                    "name": "not-created-by-a-node",
                    "expression": "!('system:nodes' in request.userInfo.groups)",
                }],
                "failurePolicy": "Ignore",
                "timeoutSeconds": 2,
                "reinvocationPolicy": "IfNeeded",
                "matchPolicy": "Equivalent",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            })
        })
        .collect();
    assert_eq!(configuration["webhooks"], Value::from(expected));
}

/// What helm makes of other values is looked at in tests/e2e.
#[test]
fn the_programs_take_the_arguments_of_the_manifests() {
    let table = kagami::cli::settings_table();
    for name in ["webhook", "companion"] {
        let mut documents = decode_documents(&read(&format!("webhook-config/{name}.yaml"))).unwrap();
        documents.retain(|document| document["kind"] == "Deployment");
        let container = &documents[0]["spec"]["template"]["spec"]["containers"][0];
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let arguments: Vec<_> = container["args"].as_array().unwrap().iter().map(text).collect();
        assert_eq!(arguments[0], name);
        kagami::cli::check(arguments.iter().map(String::as_str)).unwrap();
        let variables = container["env"].as_array().unwrap().iter();
        for variable in variables.map(|variable| text(&variable["name"])) {
            assert!(
                !variable.starts_with("KAGAMI_") || table.contains(&format!("`{variable}`")),
                "{variable}"
            );
        }
    }
}

#[test]
fn names_in_the_chart_are_those_of_the_code() {
    let word = |text: &str, word: &str| {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && !"-.".contains(c));
        words.filter(|found| *found == word).count()
    };
    let webhook = read("webhook-config/webhook.yaml");
    assert_eq!(word(&webhook, api::PROBE_SECRET), 1);
    let rights = read("webhook-config/rbac.yaml");
    assert_eq!(word(&rights, api::PROBE_SECRET), 1);
    assert_eq!(
        word(&rights, api::HEALTH_LEASE),
        3,
        "one right each: webhook, companion, viewers"
    );
    let policies = read("webhook-config/policies.yaml");
    let modes = ["enforce", "warn", "audit", "off"];
    assert!(modes.iter().all(|mode| Mode::from_label(mode).is_some()));
    let list = modes.map(|mode| format!("'{mode}'")).join(", ");
    assert!(
        policies.contains(&format!("variables.mode in [{list}]")),
        "{policies}"
    );
    assert!(policies.contains(api::MODE_LABEL));
}

#[test]
fn pods_are_locked_down_and_have_time_to_drain() {
    for process in ["webhook", "companion"] {
        let documents = decode_documents(&read(&format!("webhook-config/{process}.yaml"))).unwrap();
        let deployment = documents
            .iter()
            .find(|document| document["kind"] == "Deployment")
            .unwrap();
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        // What Pod Security's restricted profile asks for besides is tested in an API server.
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(pod["securityContext"]["runAsUser"], 65532);
        for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            assert_eq!(
                container[probe]["httpGet"],
                json!({"path": path, "port": "admin"})
            );
        }
        let arguments: Vec<_> = container["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| a.as_str().unwrap())
            .collect();
        assert_eq!(arguments[0], process);
        if process == "webhook" {
            // The API server keeps idle connections for 90 seconds; 30 more for what is in flight then.
            assert!(arguments.contains(&"--drain-delay=95s"), "{arguments:?}");
            assert_eq!(pod["terminationGracePeriodSeconds"], 130);
        }
    }
}

#[test]
fn every_value_is_described_and_has_a_default() {
    let schema = json("chart/values.schema.json");
    let [values] = &decode_documents(&read("chart/values.yaml")).unwrap()[..] else {
        panic!("not one document")
    };
    let mut faults = Vec::new();
    check(&schema, values, "", &mut faults);
    assert!(faults.is_empty(), "{faults:#?}");
}

/// Notes which values of `schema` lack a description, and which are not in `values` or not in the schema.
fn check(schema: &Value, values: &Value, path: &str, faults: &mut Vec<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    for (name, property) in properties {
        let path = format!("{path}.{name}");
        if property["description"].as_str().is_none_or(str::is_empty) {
            faults.push(format!("{path} has no description"));
        }
        // Helm itself puts `global` there.
        match values.get(name) {
            Some(value) => check(property, value, &path, faults),
            None if path == ".global" => {}
            None => faults.push(format!("{path} is not in values.yaml")),
        }
    }
    for name in values.as_object().unwrap().keys() {
        if !properties.contains_key(name) {
            faults.push(format!("{path}.{name} is not in values.schema.json"));
        }
    }
}

#[test]
fn the_dashboard_shows_metrics_that_there_are() {
    let (metrics, registry) = Metrics::new();
    metrics.decided(Mode::Enforce, Outcome::Kept, Reason::NoMirror, 1);
    metrics.reviewed(Mode::Enforce, ReviewAnswer::Unchanged, Duration::ZERO);
    metrics.probed("main", "exists");
    metrics.set_health("main", State::Healthy);
    metrics.set_images("main", Counts::default());
    metrics.swept("main", "tag", true);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let known: BTreeSet<_> = text.lines().filter(|line| !line.starts_with('#')).collect();

    let dashboard = json("chart/dashboards/kagami.json");
    let panels = dashboard["panels"].as_array().unwrap();
    let mut shown = 0;
    for target in panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
    {
        let expression = target["expr"].as_str().unwrap();
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in words.filter(|word| word.starts_with("kagami_")) {
            let found = known
                .iter()
                .any(|line| line.split(['{', ' ']).next() == Some(name));
            assert!(found, "{name} of {expression} is not in\n{text}");
            shown += 1;
        }
    }
    assert!(shown > 5, "{shown}");
}
