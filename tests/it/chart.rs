//! The chart's side of what the code promises. What helm and an API server think of it is tested in tests/e2e.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Value, json};

use kagami::{
    api,
    domain::{mirror::Mode, reason::Reason},
    state::file::decode_documents,
    webhook::routes::PATHS,
};

use crate::support::metrics::{all_metrics, samples};

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
    // Webhooks are called in the order of these names. Those of others, as their charts give them:
    for earlier in [
        "cert-manager-webhook",
        "gatekeeper-mutating-webhook-configuration",
        "istio-sidecar-injector",
        "kyverno-resource-mutating-webhook-cfg",
        "linkerd-proxy-injector-webhook-config",
        "policy.sigstore.dev",
        "vault-agent-injector-cfg",
        "webhook.pipeline.tekton.dev",
    ] {
        assert!(
            configuration["metadata"]["name"].as_str().unwrap() > earlier,
            "{earlier}"
        );
    }
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
    // Only with the rescue.
    for template in ["rbac", "companion"] {
        let template = read(&format!("chart/templates/{template}.yaml"));
        assert_eq!(word(&template, api::MIRRORS_CONFIG_MAP), 1);
    }
    for name in [api::OWNERS_CONFIG_MAP, api::ORIGINALS_CONFIG_MAP] {
        assert_eq!(word(&rights, name), 2, "one right each: webhook, companion");
    }
    assert_eq!(
        word(&rights, api::HEALTH_LEASE),
        4,
        "one right each: webhook, viewers; two: companion"
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
    let text = all_metrics();
    let known = samples(&text);
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
            assert!(
                known.contains_key(name),
                "{name} of {expression} is not in\n{text}"
            );
            shown += 1;
        }
    }
    assert!(shown > 5, "{shown}");
}

/// Returns what stands between pairs of quotes after `key` in an expression, and the operators before it.
fn matched<'e>(expression: &'e str, key: &str) -> Vec<&'e str> {
    let key = format!("{key}=");
    let parts = expression.split(&*key).skip(1);
    let values = parts.filter_map(|rest| rest.trim_start_matches('~').strip_prefix('"')?.split('"').next());
    values.flat_map(|values| values.split('|')).collect()
}

#[test]
fn alerts_watch_metrics_that_there_are_and_have_their_place_in_troubleshooting() {
    let page = read("docs/troubleshooting.md");
    let (_, section) = page.split_once("\n## Alerts\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut told: BTreeSet<_> = section
        .lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
        .collect();

    let text = all_metrics();
    let known = samples(&text);
    let documents = decode_documents(&read("chart/alerts/kagami.yaml")).unwrap();
    let rules = documents[0]["groups"][0]["rules"].as_array().unwrap();
    for rule in rules {
        let alert = rule["alert"].as_str().unwrap();
        assert!(told.remove(alert), "{alert} is not told in {told:?}");
        let annotations = &rule["annotations"];
        let runbook = format!("docs/troubleshooting.md#{}", alert.to_lowercase());
        assert_eq!(annotations["runbook"], runbook.as_str(), "{alert}");
        assert!(annotations["summary"].as_str().unwrap().ends_with('.'), "{alert}");
        assert!(rule["for"].is_string(), "{alert}");
        let severity = &rule["labels"]["severity"];
        assert!(severity == "critical" || severity == "warning", "{alert}");

        let expression = rule["expr"].as_str().unwrap();
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names: Vec<_> = words.filter(|word| word.starts_with("kagami_")).collect();
        assert!(!names.is_empty() || expression.contains("up{"), "{alert}");
        for name in &names {
            assert!(known.contains_key(*name), "{name} of {alert} is not in\n{text}");
        }
        // What it matches and groups by are labels, and values, that there are.
        let labels: BTreeSet<&str> = names
            .iter()
            .flat_map(|name| known[*name].iter().copied())
            .collect();
        let parts = expression
            .split('{')
            .skip(1)
            .filter_map(|rest| rest.split('}').next());
        let matchers = parts
            .flat_map(|part| part.split(','))
            .filter_map(|matcher| matcher.split('=').next());
        let groups = expression
            .split(" by (")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for label in matchers.chain(groups.flat_map(|group| group.split(", "))) {
            // The scrape gives these, and histograms the last.
            let is_known = ["job", "pod", "le"].contains(&label) || labels.contains(label);
            assert!(is_known, "{label} of {alert} is not among {labels:?}");
        }
        for reason in matched(expression, "reason") {
            assert!(
                Reason::ALL.iter().any(|known| known.as_str() == reason),
                "{reason} of {alert}"
            );
        }
        for condition in matched(expression, "condition") {
            assert!(
                page.contains(&format!("### `{condition}`\n")),
                "{condition} of {alert}"
            );
        }
        for (key, value) in [("answer", "fault|refused|no_room"), ("state", "Healthy")] {
            for matched in matched(expression, key) {
                assert!(
                    value.split('|').any(|known| known == matched),
                    "{matched} of {alert}"
                );
            }
        }
    }
    assert!(told.is_empty(), "no alerts: {told:?}");
    assert!(rules.len() > 10, "{rules:?}");
}

#[test]
fn the_page_of_sizes_has_the_charts_defaults() {
    let values = decode_documents(&read("chart/values.yaml")).unwrap();
    let page = read("docs/sizing.md");
    let row = page.lines().find(|line| line.contains("(the defaults)")).unwrap();
    let cells: Vec<_> = row.split('|').map(str::trim).collect();
    for (process, cell) in [("webhook", cells[2]), ("companion", cells[3])] {
        let Value::Object(settings) = &values[0][process] else {
            panic!("{process}")
        };
        let resources = &settings["resources"];
        let text = |path: &str| resources.pointer(path).and_then(Value::as_str).unwrap();
        let expected = format!(
            "{} replicas; requests {}, {}; limit {}",
            settings["replicas"],
            text("/requests/cpu"),
            text("/requests/memory"),
            text("/limits/memory"),
        );
        assert_eq!(cell, expected, "{process}");
    }
}

#[test]
fn chart_program_and_changelog_have_one_version() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = decode_documents(&read("chart/Chart.yaml")).unwrap();
    assert_eq!(chart[0]["version"], version);
    assert_eq!(chart[0]["appVersion"], version);
    // What is not released has its place, and is to be this version, or the newest below it is.
    let changelog = read("CHANGELOG.md");
    let mut sections = changelog.split("\n## ").skip(1);
    let unreleased = sections.next().unwrap_or_default();
    assert!(unreleased.starts_with("[Unreleased]\n"), "{unreleased}");
    let newest = sections.next().unwrap_or_default();
    let is_told = newest.starts_with(&format!("[{version}] - "))
        || unreleased.contains(&format!("\nTo be version {version}"));
    assert!(is_told, "{version} is neither released nor to be");
}
