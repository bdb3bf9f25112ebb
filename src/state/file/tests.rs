use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use insta::assert_snapshot;

use super::*;
use crate::{
    api::{mirror::Connection, v1alpha1},
    domain::{
        mapping::Mapping,
        mirror::{
            Access, Copying, Drift, Freshness, HANG_AFTER, HealthSettings, Kind, Mirror, OwnerPattern, Pin,
            Prefer, RescuePolicy, Source, Tags, Trust,
        },
        platform::Platforms,
        selector::{Labels, Operator, Requirement, Selector},
    },
};

const MINIMAL: &str = r"
apiVersion: kagami.dev/v1alpha1
kind: ImageMirror
metadata: {name: main}
spec:
  registry: mirror.example.com
  kind: Hosted
  sources:
  - prefix: docker.io
";

const COMPLETE: &str = include_str!("complete.yaml");

/// Returns the faults of a file, a line each.
#[track_caller]
fn faults(text: &str) -> String {
    let faults = load(text, "mirrors.yaml").expect_err("the file should have faults");
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Returns the faults of the minimal mirror with more fields in its spec.
#[track_caller]
fn faults_with(fields: &str) -> String {
    let fields = fields.trim_end().replace('\n', "\n  ");
    faults(&format!("{}  {fields}\n", MINIMAL.trim_start()))
}

fn mapping(registry: &str, template: &str) -> Mapping {
    Mapping {
        registry: registry.parse().unwrap(),
        template: template.parse().unwrap(),
    }
}

#[test]
fn a_minimal_mirror_has_the_defaults() {
    let configuration = load(MINIMAL, "mirrors.yaml").unwrap();
    let expected = Mirror {
        name: "main".to_owned(),
        mode: Mode::Enforce,
        mapping: mapping("mirror.example.com", "{registry}/{repository}"),
        kind: Kind::Hosted,
        priority: 100,
        prefer: Prefer::Mirror,
        namespaces: Selector::default(),
        sources: vec![Source {
            prefix: "docker.io".to_owned(),
            exclude: vec![],
            access: Access::Public,
            with_credentials: false,
        }],
        health: HealthSettings::default(),
        freshness: Freshness::default(),
        sweep_rate: Some(100),
        tags: Tags::default(),
        copying: None,
        read_secret: None,
        pull_secret: false,
        exclude_owners: OwnerPattern::built_in(),
        rescue: RescuePolicy::Enforce,
        hang_after: HANG_AFTER,
        delete_pods: false,
        runs_in: vec![],
    };
    let connection = Connection {
        endpoint: "https://mirror.example.com".to_owned(),
        ca_bundle: None,
        trust: Trust::default(),
        probe_secret: None,
        copy_secret: None,
        pull_secret: None,
        source_secrets: BTreeMap::new(),
    };
    assert_eq!(configuration.mirrors, [(expected, connection)]);
}

#[test]
fn the_rest_of_a_mapping_has_the_defaults() {
    let fields = "  excludeOwners: [{group: example.com}]\n  health: {interval: 5s}\n";
    let configuration = load(&format!("{MINIMAL}{fields}"), "mirrors.yaml").unwrap();
    let (mirror, _) = &configuration.mirrors[0];
    let health = HealthSettings {
        interval: Duration::from_secs(5),
        ..HealthSettings::default()
    };
    let owner = OwnerPattern {
        group: "example.com".to_owned(),
        kind: "*".to_owned(),
    };
    assert_eq!((mirror.health, &mirror.exclude_owners), (health, &vec![owner]));
}

/// The defaults are written down twice, in the schema and in serde's attributes.
#[test]
fn the_schema_and_the_types_have_the_same_defaults() {
    let document = decode_documents(MINIMAL).unwrap().remove(0);
    let plain: ImageMirror = serde_json::from_value(document.clone()).unwrap();
    let mut completed = document;
    schema::complete(&schema::image_mirror(), &mut completed);
    let completed: ImageMirror = serde_json::from_value(completed).unwrap();
    assert_eq!(plain, completed);
    // What the schema fills in is all that the types would write.
    let mut document = decode_documents(MINIMAL).unwrap().remove(0);
    schema::complete(&schema::image_mirror(), &mut document);
    assert_eq!(document["spec"], serde_json::to_value(&plain.spec).unwrap());
}

#[test]
fn every_field_is_accepted() {
    let configuration = load(COMPLETE, "complete.yaml").unwrap();
    let (mirror, connection) = &configuration.mirrors[0];
    let expected = Mirror {
        name: "main".to_owned(),
        mode: Mode::Off,
        mapping: mapping("mirror.example.com:5000/cache", "all/{registry}/{repository}"),
        kind: Kind::PullThrough,
        priority: -5,
        prefer: Prefer::Upstream,
        namespaces: Selector {
            requirements: vec![
                Requirement {
                    key: "team".to_owned(),
                    operator: Operator::In(vec!["blue".to_owned()]),
                },
                Requirement {
                    key: "stage".to_owned(),
                    operator: Operator::NotIn(vec!["lab".to_owned()]),
                },
            ],
        },
        sources: vec![
            Source {
                prefix: "docker.io".to_owned(),
                exclude: vec![
                    "docker.io/bitnami/**".to_owned(),
                    "*/library/postgres*".to_owned(),
                ],
                access: Access::Private,
                with_credentials: true,
            },
            Source {
                prefix: "registry.example.com:8443/team".to_owned(),
                exclude: vec![],
                access: Access::Public,
                with_credentials: true,
            },
        ],
        health: HealthSettings {
            interval: Duration::from_secs(5),
            timeout: Duration::from_millis(1_500),
            failure_threshold: 3,
            success_threshold: 4,
            stale_after: Duration::from_mins(1),
        },
        freshness: Freshness {
            tag: Duration::from_mins(5),
            digest: Duration::from_mins(90),
            missing: Duration::from_secs(20),
        },
        sweep_rate: None,
        tags: Tags {
            pin: Pin::Digest,
            refresh: Duration::from_hours(2),
            drift: Drift::Warn,
        },
        copying: None,
        read_secret: Some("hub".to_owned()),
        pull_secret: true,
        exclude_owners: vec![OwnerPattern {
            group: "example.com".to_owned(),
            kind: "*".to_owned(),
        }],
        rescue: RescuePolicy::Audit,
        hang_after: Duration::from_mins(5),
        delete_pods: true,
        runs_in: vec!["kagami".to_owned()],
    };
    assert_eq!(*mirror, expected);
    assert_eq!(connection.endpoint, "http://mirror.kagami.svc:5000");
    assert!(
        connection
            .ca_bundle
            .as_ref()
            .unwrap()
            .starts_with(b"-----BEGIN CERTIFICATE-----\n")
    );
    assert_eq!(connection.trust, Trust::BundleAndSystem);
    assert_eq!(connection.probe_secret.as_deref(), Some("hub"));
    assert_eq!(connection.copy_secret.as_deref(), Some("hub"));
    let secret = |prefix: &str| (prefix.to_owned(), "hub".to_owned());
    assert_eq!(
        connection.source_secrets,
        ["docker.io", "registry.example.com:8443/team"].map(secret).into()
    );
    assert_eq!(
        configuration.namespaces["blue"],
        Labels::from(
            [
                ("kagami.dev/mode", "off"),
                ("kubernetes.io/metadata.name", "blue")
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
        )
    );
    let secret = &configuration.secrets["hub"];
    assert_eq!(secret.type_, DOCKER_CONFIG_JSON);
    assert_eq!(secret.data[".dockerconfigjson"], br#"{"auths":{}}"#);
    assert_eq!(secret.data["note"], b"as text");
}

/// The complete example is complete: no property of the schema is missing from it.
#[test]
fn the_example_has_every_field_of_the_schema() {
    fn missing(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            let path = schema::join(path, name);
            match value.get(name) {
                Some(value) => missing(schema, value, &path, found),
                None => found.push(path),
            }
        }
        if let Some(item) = value.get(0) {
            missing(&schema["items"], item, &format!("{path}[0]"), found);
        }
    }
    let documents = decode_documents(COMPLETE).unwrap();
    let schema = schema::image_mirror();
    let mut found = Vec::new();
    missing(
        &schema["properties"]["spec"],
        &documents[0]["spec"],
        "spec",
        &mut found,
    );
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn an_empty_file_is_an_empty_configuration() {
    for text in ["", "# nothing\n", "---\n---\n"] {
        assert_eq!(
            load(text, "mirrors.yaml"),
            Ok(Configuration::default()),
            "{text:?}"
        );
    }
}

#[test]
fn nulls_are_as_if_absent() {
    let text = format!("{MINIMAL}    exclude:\n  mode:\n  endpoint:\n  health: {{interval: null}}\n");
    assert_eq!(load(&text, "mirrors.yaml"), load(MINIMAL, "mirrors.yaml"));
    assert_snapshot!(faults(&MINIMAL.replace("mirror.example.com", "")), @"mirrors.yaml:6: document 1 (ImageMirror main): spec.registry: is required");
}

#[test]
fn what_clusters_add_is_accepted() {
    let text = r#"
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata:
    name: shop
    uid: 2c3f7ab0-4d2c-4b43-9e8a-5ad7a5ac4e0b
    creationTimestamp: "2026-01-01T00:00:00Z"
    managedFields: [{manager: kubectl, operation: Update, fieldsV1: {"f:metadata": {}}}]
  spec: {finalizers: [kubernetes]}
  status: {phase: Active}
- apiVersion: kagami.dev/v1alpha1
  kind: ImageMirror
  metadata: {name: main, generation: 3}
  spec: {registry: mirror.example.com, kind: Hosted, sources: [{prefix: ghcr.io}]}
  status: {pullSecretNamespaces: [shop], newerField: 1}
"#;
    let configuration = load(text, "mirrors.yaml").unwrap();
    assert!(configuration.namespaces.contains_key("shop"));
    assert_eq!(*configuration.standings["main"], Standing::NONE);
}

#[test]
fn all_faults_are_told_at_once() {
    assert_snapshot!(faults(
        r#"apiVersion: kagami.dev/v1alpha1
kind: ImageMirror
metadata: {name: Main}
spec:
  mode: enforce
  registry: {registry}
  repository: "{registry}"
  priority: "7"
  endpoints: {url: http://mirror}
  colour: red
  health: {interval: 2, timeout: 5 s, failureThreshold: 0, staleAfter: 1s}
  namespaceSelector:
    matchExpressions:
    - {key: team, operator: in, values: [blue]}
    - {key: team, operator: In}
    - {key: team, operator: Exists, values: [blue]}
  sources:
  - prefix: library/nginx
  - prefix: docker.io
    credentials: {secretRef: {name: hub}}
    exclude: [nginx, docker.io/library/nginx:1.10, docker.io/***]
  - prefix: index.docker.io
    access: public
  - exclude: 1.10
  retention: {unusedFor: 5d}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
---
apiVersion: kagami.dev/v1
kind: ImageMirror
---
kind: Namespace
apiVersion: v1
metadata: {name: shop, labels: {kagami.dev/mode: enforced, number: 1}}
"#
    ), @r#"
    mirrors.yaml:3: document 1 (ImageMirror Main): metadata.name: "Main" is not a name: lower case letters, digits, - and . between them, at most 253
    mirrors.yaml:4: document 1 (ImageMirror Main): spec.kind: is required
    mirrors.yaml:5: document 1 (ImageMirror Main): spec.mode: "enforce" is not one of Enforce, Warn, Audit, Off
    mirrors.yaml:6: document 1 (ImageMirror Main): spec.registry: must be text, not a mapping: a value that begins with { or [ must be put in quotes
    mirrors.yaml:7: document 1 (ImageMirror Main): spec.repository: cannot use repository template "{registry}": {repository} is missing
    mirrors.yaml:8: document 1 (ImageMirror Main): spec.priority: must be a whole number, not text: remove the quotes
    mirrors.yaml:9: document 1 (ImageMirror Main): spec.endpoints: unknown field: did you mean endpoint?
    mirrors.yaml:10: document 1 (ImageMirror Main): spec.colour: unknown field: the fields here are copy, endpoint, excludeOwners, freshness, health, kind, mode, namespaceSelector, prefer, priority, pullSecret, registry, repository, rescue, sources, sweep, tags
    mirrors.yaml:11: document 1 (ImageMirror Main): spec.health.interval: must be text, not a number: put it in quotes
    mirrors.yaml:11: document 1 (ImageMirror Main): spec.health.failureThreshold: must be at least 1, not 0
    mirrors.yaml:11: document 1 (ImageMirror Main): spec.health.timeout: "5 s" is not a duration: write 90s, 10m or 1h30m
    mirrors.yaml:11: document 1 (ImageMirror Main): spec.health.staleAfter: must be between 10s and 10m
    mirrors.yaml:14: document 1 (ImageMirror Main): spec.namespaceSelector.matchExpressions[0].operator: "in" is not one of In, NotIn, Exists, DoesNotExist
    mirrors.yaml:15: document 1 (ImageMirror Main): spec.namespaceSelector.matchExpressions[1].values: In needs at least one value
    mirrors.yaml:16: document 1 (ImageMirror Main): spec.namespaceSelector.matchExpressions[2].values: Exists takes no values
    mirrors.yaml:18: document 1 (ImageMirror Main): spec.sources[0].prefix: cannot use prefix "library/nginx": it must begin with a registry's host: docker.io/library/nginx, for example
    mirrors.yaml:20: document 1 (ImageMirror Main): spec.sources[1].credentials.secretRef.name: there is no Secret hub in the file
    mirrors.yaml:21: document 1 (ImageMirror Main): spec.sources[1].exclude[0]: cannot use glob "nginx": it must begin with a registry's host or with *: docker.io/library/nginx, for example
    mirrors.yaml:21: document 1 (ImageMirror Main): spec.sources[1].exclude[1]: cannot use glob "docker.io/library/nginx:1.10": it must have neither tag nor digest
    mirrors.yaml:21: document 1 (ImageMirror Main): spec.sources[1].exclude[2]: cannot use glob "docker.io/***": it has more than two * in a row
    mirrors.yaml:22: document 1 (ImageMirror Main): spec.sources[2].prefix: docker.io is there already, as sources[1]
    mirrors.yaml:23: document 1 (ImageMirror Main): spec.sources[2].access: "public" is not one of Private, Public
    mirrors.yaml:24: document 1 (ImageMirror Main): spec.sources[3].exclude: must be a list, not a number
    mirrors.yaml:24: document 1 (ImageMirror Main): spec.sources[3].prefix: is required
    mirrors.yaml:25: document 1 (ImageMirror Main): spec.retention: unknown field: the fields here are copy, endpoint, excludeOwners, freshness, health, kind, mode, namespaceSelector, prefer, priority, pullSecret, registry, repository, rescue, sources, sweep, tags
    mirrors.yaml:28: document 2 (Deployment web): kind: Deployment is not read from files: only ImageMirror (kagami.dev/v1alpha1), Namespace (v1), Secret (v1)
    mirrors.yaml:31: document 3 (ImageMirror): apiVersion: must be kagami.dev/v1alpha1 for this kind, not "kagami.dev/v1"
    mirrors.yaml:36: document 4 (Namespace shop): metadata.labels.number: must be text, not a number: put it in quotes
    mirrors.yaml:36: document 4 (Namespace shop): metadata.labels["kagami.dev/mode"]: "enforced" is not one of enforce, warn, audit, off
    "#);
}

#[test]
fn values_of_fields() {
    assert_snapshot!(faults_with("endpoint: {url: mirror.example.com}"), @"mirrors.yaml:9: document 1 (ImageMirror main): spec.endpoint.url: must begin with https:// or http://, as in https://mirror.kagami.svc:5000");
    assert_snapshot!(faults_with("endpoint: {url: \"https://user@mirror/path\"}"), @"mirrors.yaml:9: document 1 (ImageMirror main): spec.endpoint.url: must hold no user and no password: put them into a Secret, and name it in spec.endpoint.credentials.secretRef");
    assert_snapshot!(faults_with("endpoint: {caBundle: LS0tLS1CRUdJTg==}"), @"mirrors.yaml:9: document 1 (ImageMirror main): spec.endpoint.caBundle: must hold certificates in PEM: -----BEGIN CERTIFICATE-----");
    assert_snapshot!(faults_with("endpoint: {trust: BundleAndSystem}"), @"mirrors.yaml:9: document 1 (ImageMirror main): spec.endpoint: trust has no effect without caBundle: the system's authorities are trusted then");
    assert_snapshot!(faults_with("- prefix: ghcr.io\nrepository: \"cache/{repository}\""), @"mirrors.yaml:10: document 1 (ImageMirror main): spec.repository: must contain {registry} when there is more than one source: else images of different registries get one name");
    assert_snapshot!(faults_with("- {prefix: ghcr.io, access: Private}"), @"mirrors.yaml:4: document 1 (ImageMirror main): spec.namespaceSelector: must select namespaces when a source is Private (the default of a source with credentials): an empty selector would give private images to everybody");
    assert_snapshot!(faults_with("- prefix: ghcr.io\n  credentials: {secretRef: {name: hub}}"), @r"
    mirrors.yaml:4: document 1 (ImageMirror main): spec.namespaceSelector: must select namespaces when a source is Private (the default of a source with credentials): an empty selector would give private images to everybody
    mirrors.yaml:10: document 1 (ImageMirror main): spec.sources[1].credentials.secretRef.name: there is no Secret hub in the file
    ");
    assert_snapshot!(faults_with("- prefix: https://ghcr.io"), @r#"mirrors.yaml:9: document 1 (ImageMirror main): spec.sources[1].prefix: cannot use prefix "https://ghcr.io": leave out the scheme: write ghcr.io"#);
    assert_snapshot!(faults_with("- prefix: ghcr.io/\n- prefix: ghcr.io/Team\n- prefix: ghcr.io/team:1"), @r#"
    mirrors.yaml:9: document 1 (ImageMirror main): spec.sources[1].prefix: cannot use prefix "ghcr.io/": leave out the "/" at the end: write ghcr.io
    mirrors.yaml:10: document 1 (ImageMirror main): spec.sources[2].prefix: cannot use prefix "ghcr.io/Team": the repository must be in lower case
    mirrors.yaml:11: document 1 (ImageMirror main): spec.sources[3].prefix: cannot use prefix "ghcr.io/team:1": it must have neither tag nor digest: write ghcr.io/team
    "#);
    assert_snapshot!(faults_with("- prefix: ghcr.io:99999\n- prefix: -.io"), @r#"
    mirrors.yaml:9: document 1 (ImageMirror main): spec.sources[1].prefix: cannot use prefix "ghcr.io:99999": the port is not a number from 0 to 65535
    mirrors.yaml:10: document 1 (ImageMirror main): spec.sources[2].prefix: cannot use prefix "-.io": the host is neither a DNS name nor an IP address
    "#);
    assert_snapshot!(faults_with("excludeOwners: [{kind: Cluster}]\nsweep: {requestsPerSecond: 1.5}"), @r"
    mirrors.yaml:9: document 1 (ImageMirror main): spec.excludeOwners[0].group: is required
    mirrors.yaml:10: document 1 (ImageMirror main): spec.sweep.requestsPerSecond: must be a whole number, not a fraction
    ");
}

#[test]
fn unquoted_values() {
    assert_snapshot!(faults_with("repository: {registry}/{repository}"), @"mirrors.yaml:9: document 1: while parsing a block mapping, did not find expected key: a value that begins with { must be put in quotes");
    assert_snapshot!(faults_with("repository: {repository}"), @"mirrors.yaml:9: document 1 (ImageMirror main): spec.repository: must be text, not a mapping: a value that begins with { or [ must be put in quotes");
    assert_snapshot!(faults_with("- prefix: ghcr.io\n  exclude: [**/postgres]"), @"mirrors.yaml:10: document 1: alias references unknown anchor: a value that begins with * must be put in quotes");
    assert_snapshot!(faults_with("registry: again"), @"mirrors.yaml:9: document 1: the field registry is there twice");
}

#[test]
fn faults_across_documents() {
    assert_snapshot!(faults(&format!(
        "{MINIMAL}  pullSecret: {{secretRef: {{name: pull}}}}\n---{MINIMAL}  endpoint: {{credentials: {{secretRef: {{name: other}}}}}}\n---
apiVersion: v1
kind: Secret
metadata: {{name: other}}
"
    )), @r"
    mirrors.yaml:10: document 1 (ImageMirror main): spec.pullSecret.secretRef.name: there is no Secret pull in the file
    mirrors.yaml:14: document 2 (ImageMirror main): metadata.name: there is another ImageMirror of this name in the file
    mirrors.yaml:20: document 2 (ImageMirror main): spec.endpoint.credentials.secretRef.name: Secret other is of type Opaque, not kubernetes.io/dockerconfigjson or kubernetes.io/basic-auth
    ");
}

#[test]
fn secrets_that_cannot_be_used() {
    assert_snapshot!(faults(
        r#"
{"apiVersion": "v1", "kind": "List", "items": [
  {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "type": "kubernetes.io/dockerconfigjson"},
  {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "b"}, "type": "kubernetes.io/dockerconfigjson",
   "stringData": {".dockerconfigjson": "{\"auth\": {\"x\": \"geheim\"}}"}},
  {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "c"}, "type": "kubernetes.io/dockerconfigjson",
   "stringData": {".dockerconfigjson": "geheim"}},
  {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "d"}, "data": {"key": "geheim"}},
  {"apiVersion": "v1", "kind": "Secret", "metadata": {}}
]}
"#
    ), @r#"
    mirrors.yaml:3: document 1, item 1 (Secret a): data[".dockerconfigjson"]: is required in a Secret of type kubernetes.io/dockerconfigjson
    mirrors.yaml:4: document 1, item 2 (Secret b): data[".dockerconfigjson"]: must be a JSON object with an object "auths"
    mirrors.yaml:6: document 1, item 3 (Secret c): data[".dockerconfigjson"]: is not JSON: line 1, column 1 of it
    mirrors.yaml:8: document 1, item 4 (Secret d): data.key: is not base64: put plain text under stringData
    mirrors.yaml:9: document 1, item 5 (Secret): metadata.name: is required
    "#);
}

#[test]
fn the_debug_form_of_a_secret_has_no_values() {
    let text = "{apiVersion: v1, kind: Secret, metadata: {name: a}, stringData: {key: geheim}}";
    let configuration = load(text, "mirrors.yaml").unwrap();
    assert_snapshot!(format!("{:?}", configuration.secrets["a"]), @r#"Secret { namespace: None, type: "Opaque", keys: ["key"], .. }"#);
}

#[test]
fn broken_syntax() {
    assert_snapshot!(faults(&format!("kind: Pod\nkind: Pod\n---{MINIMAL}---\nkind: Pod\n---\na: [\n")), @r"
    mirrors.yaml:2: document 1: the field kind is there twice
    mirrors.yaml:13: document 3 (Pod): kind: Pod is not read from files: only ImageMirror (kagami.dev/v1alpha1), Namespace (v1), Secret (v1)
    mirrors.yaml:15: document 4: unclosed bracket '['
    ");
    assert_snapshot!(faults("just text\n"), @"mirrors.yaml:1: document 1: kind: is required: one of ImageMirror (kagami.dev/v1alpha1), Namespace (v1), Secret (v1)");
    assert_snapshot!(faults("apiVersion: v1\n"), @"mirrors.yaml:1: document 1: kind: is required: one of ImageMirror (kagami.dev/v1alpha1), Namespace (v1), Secret (v1)");
    let mut bomb = "a0: &a0 [x]\n".to_owned();
    for level in 1..9 {
        let aliases = vec![format!("*a{}", level - 1); 9].join(",");
        writeln!(bomb, "a{level}: &a{level} [{aliases}]").unwrap();
    }
    assert_snapshot!(faults(&bomb), @"mirrors.yaml:6: document 1: its aliases repeat too much");
    let deep = "[".repeat(200);
    assert_snapshot!(faults(&deep), @"mirrors.yaml:1: document 1: unclosed bracket '['");
}

#[test]
fn documents_keep_the_order_of_keys() {
    let text = "b: 1\na: {d: [x], c: Off}\n";
    let documents = decode_documents(text).unwrap();
    assert_snapshot!(encode_document(&documents[0]), @r#"
    b: 1
    a:
      d:
      - x
      c: "Off"
    "#);
    assert_eq!(
        decode_documents(&encode_document(&documents[0])).unwrap(),
        documents
    );
}

#[test]
fn the_name_of_an_object_is_made_from_mirror_and_image() {
    // printf 'main\ndocker.io/library/nginx:1.27' | sha256sum
    let name = v1alpha1::MirroredImage::object_name("main", "docker.io/library/nginx:1.27");
    assert_eq!(name, "6b0e5f697a15377363fdfb20b6f8eee7c724cec1");
}

/// Returns what becomes of the minimal mirror once a text in it stands for another, the place left out.
#[track_caller]
fn told(text: &str, replacement: &str) -> Result<(Mirror, Connection), String> {
    let document = MINIMAL.replace(text, replacement);
    assert_ne!(document, MINIMAL);
    match load(&document, "mirrors.yaml") {
        Ok(mut configuration) => Ok(configuration.mirrors.remove(0)),
        Err(faults) => Err(faults
            .iter()
            .map(|fault| fault.fault.to_string())
            .collect::<Vec<_>>()
            .join("\n")),
    }
}

#[test]
fn prefixes_as_people_write_them() {
    let check = |written: &str, expected: Result<&[&str], &str>| {
        let found = told("docker.io", &format!("{written:?}"));
        let prefixes = |(mirror, _): (Mirror, Connection)| -> Vec<String> {
            mirror.sources.into_iter().map(|source| source.prefix).collect()
        };
        let expected = expected
            .map(|prefixes| prefixes.iter().map(ToString::to_string).collect::<Vec<_>>())
            .map_err(|why| format!("spec.sources[0].prefix: cannot use prefix {written:?}: {why}"));
        assert_eq!(found.map(prefixes), expected, "{written}");
    };
    for hub in [
        "docker.io",
        "Docker.IO",
        "index.docker.io",
        "registry-1.docker.io",
        "registry.hub.docker.com",
        "hub.docker.com",
        "docker.com",
    ] {
        check(hub, Ok(&["docker.io"]));
    }
    check(
        "registry-1.docker.io/bitnami/redis",
        Ok(&["docker.io/bitnami/redis"]),
    );
    // An organisation, and what people call the official image of that name.
    check(
        "docker.io/nginx",
        Ok(&["docker.io/nginx", "docker.io/library/nginx"]),
    );
    check("docker.io/library", Ok(&["docker.io/library"]));
    check("ghcr.io/nginx", Ok(&["ghcr.io/nginx"]));
    check("https://docker.io", Err("leave out the scheme: write docker.io"));
    check(
        "http://ghcr.io/team/",
        Err("leave out the scheme: write ghcr.io/team"),
    );
    check(
        "https://index.docker.io/v1/",
        Err("leave out the scheme: write index.docker.io"),
    );
    check("https://ghcr.io/v2/", Err("leave out the scheme: write ghcr.io"));
    check(
        "docker.io/",
        Err("leave out the \"/\" at the end: write docker.io"),
    );
    check(
        "ghcr.io/team//",
        Err("leave out the \"/\" at the end: write ghcr.io/team"),
    );
    check(
        "docker.io.",
        Err("leave out the \".\" at the end of the host: write docker.io"),
    );
    check(
        "ghcr.io./team",
        Err("leave out the \".\" at the end of the host: write ghcr.io/team"),
    );
    check(
        "hub.docker.com/r/bitnami/redis",
        Err("it is the address of a page: write docker.io/bitnami/redis"),
    );
    check(
        "hub.docker.com/_/nginx",
        Err("it is the address of a page: write docker.io/library/nginx"),
    );
    check(
        "hub.docker.com/u/bitnami",
        Err("it is the address of a page: write docker.io/bitnami"),
    );
    check(
        "library",
        Err("it must begin with a registry's host: docker.io/library, for example"),
    );
    check(
        "nginx",
        Err("it must begin with a registry's host: docker.io/library/nginx, for example"),
    );
    check(
        "bitnami/redis",
        Err("it must begin with a registry's host: docker.io/bitnami/redis, for example"),
    );
    let by_host = "a prefix has no wildcards: name each registry by its host, as in docker.io";
    for wildcard in ["*", "**", "*.example.com", "ghcr.*/a", "*/library"] {
        check(wildcard, Err(by_host));
    }
    check(
        "ghcr.io/*",
        Err("a prefix has no wildcards, and covers all that lies below it: write ghcr.io"),
    );
    check(
        "ghcr.io/team/**",
        Err("a prefix has no wildcards, and covers all that lies below it: write ghcr.io/team"),
    );
    check(
        "docker.io/library/nginx:1.27",
        Err("it must have neither tag nor digest: write docker.io/library/nginx"),
    );
    check("ghcr.io/Team", Err("the repository must be in lower case"));
}

#[test]
fn registries_as_people_write_them() {
    let check = |written: &str, expected: Result<&str, &str>| {
        let found = told("mirror.example.com", &format!("{written:?}"));
        let endpoint = |(_, connection): (Mirror, Connection)| connection.endpoint;
        let expected = expected
            .map(str::to_owned)
            .map_err(|why| format!("spec.registry: cannot use registry {written:?}: {why}"));
        assert_eq!(found.map(endpoint), expected, "{written}");
    };
    check("MIRROR.example.com", Ok("https://mirror.example.com"));
    check("mirror.example.com:443", Ok("https://mirror.example.com:443"));
    let scheme = "leave out the scheme, it belongs to endpoint.url: write mirror.example.com";
    check("https://mirror.example.com", Err(scheme));
    check("https://mirror.example.com/v2/", Err(scheme));
    check(
        "mirror.example.com/",
        Err("leave out the \"/\" at the end: write mirror.example.com"),
    );
    check(
        "mirror.example.com./x",
        Err("leave out the \".\" at the end of the host: write mirror.example.com/x"),
    );
    check(
        "mirror.example.com/Cache",
        Err("the repository must be in lower case"),
    );
    check(
        "mirror",
        Err(
            "its first part must have a \".\" or a \":port\" or be \"localhost\", else it is taken for a \
             repository on Docker Hub",
        ),
    );
    for hub in ["docker.io", "hub.docker.com", "registry-1.docker.io/team"] {
        check(
            hub,
            Err("Docker Hub cannot be a mirror, name a registry of your own"),
        );
    }
}

#[test]
fn a_setting_that_never_acts_is_a_fault() {
    let check = |source: &str, expected: Result<(), &str>| {
        let found = told("prefix: docker.io", source).map(drop);
        assert_eq!(found, expected.map_err(str::to_owned), "{source}");
    };
    let own = |prefix: &str| {
        format!(
            "spec.sources[0].prefix: {prefix} is in the mirror itself, whose images stay as they are: name the \
             registry that it mirrors"
        )
    };
    for prefix in [
        "mirror.example.com",
        "Mirror.example.com:443",
        "mirror.example.com/team",
    ] {
        check(
            &format!("prefix: {prefix}"),
            Err(&own(&prefix.to_ascii_lowercase())),
        );
    }
    check("prefix: mirror.example.com:5000", Ok(()));
    let excluding = |glob: &str| format!("prefix: docker.io\n    exclude: [{glob:?}]");
    let told = |glob: &str, why: &str| format!("spec.sources[0].exclude[0]: cannot use glob {glob:?}: {why}");
    for glob in [
        "docker.io/library/nginx",
        "docker.io/**",
        "**/nginx",
        "*/library/*",
        "docker.*/a/b",
    ] {
        check(&excluding(glob), Ok(()));
    }
    for (glob, why) in [
        (
            "docker.io/nginx",
            "no full name is like this: write docker.io/library/nginx, or docker.io/nginx/** for an organisation",
        ),
        ("docker.io/*", "no full name is like this: write docker.io/**"),
        ("docker.io", "no full name is like this: write docker.io/**"),
        (
            "registry-1.docker.io/bitnami/**",
            "in full names Docker Hub is docker.io: write docker.io/bitnami/**",
        ),
        (
            "hub.docker.com/library/*",
            "in full names Docker Hub is docker.io: write docker.io/library/*",
        ),
    ] {
        check(&excluding(glob), Err(&told(glob, why)));
    }
    check(
        &excluding("ghcr.io/**"),
        Err(
            "spec.sources[0].exclude[0]: ghcr.io/** excludes nothing, since nothing like it lies below docker.io",
        ),
    );
    // One list for all sources, and two names of one registry, which were two to earlier versions.
    let shared = "exclude: [docker.io/library/redis, \"quay.io/foo/**\"]";
    check(
        &format!("prefix: docker.io\n    {shared}\n  - prefix: quay.io\n    {shared}"),
        Ok(()),
    );
    check("prefix: docker.io\n  - prefix: registry-1.docker.io", Ok(()));
    check(
        "prefix: docker.io\n  - prefix: index.docker.io\n    access: Public",
        Err("spec.sources[1].prefix: docker.io is there already, as sources[0]"),
    );
    // Counted as they are written.
    check(
        "prefix: docker.io\n  - prefix: registry-1.docker.io\n  - prefix: quay.io\n  - prefix: quay.io",
        Err("spec.sources[3].prefix: quay.io is there already, as sources[2]"),
    );
    check(
        "prefix: docker.io/bitnami\n    exclude: [docker.io/library/bitnami]",
        Ok(()),
    );
    check(
        "prefix: docker.io/library/nginx\n    exclude: [docker.io/library/nginx-old]",
        Err(
            "spec.sources[0].exclude[0]: docker.io/library/nginx-old excludes nothing, since nothing like it lies \
             below docker.io/library/nginx",
        ),
    );
}

/// A source for an organisation must not take the official image of its name out of another's `exclude`.
#[test]
fn what_a_prefix_may_mean_too_is_left_to_a_source_that_covers_it() {
    let excluding = "prefix: docker.io\n    exclude: [docker.io/library/redis]\n  - prefix: docker.io/redis";
    let (mirror, _) = told("prefix: docker.io", excluding).unwrap();
    let prefixes: Vec<_> = mirror.sources.iter().map(|source| &*source.prefix).collect();
    assert_eq!(prefixes, ["docker.io", "docker.io/redis"]);
}

#[test]
fn endpoints_as_people_write_them() {
    let check = |url: &str, expected: Result<&str, &str>| {
        let found = told(
            "kind: Hosted",
            &format!("kind: Hosted\n  endpoint: {{url: {url:?}}}"),
        );
        let endpoint = |(_, connection): (Mirror, Connection)| connection.endpoint;
        let expected = expected
            .map(str::to_owned)
            .map_err(|why| format!("spec.endpoint.url: {why}"));
        assert_eq!(found.map(endpoint), expected, "{url}");
    };
    check(
        "https://mirror.example.com:5000/",
        Ok("https://mirror.example.com:5000"),
    );
    check("http://[::1]:5000", Ok("http://[::1]:5000"));
    check("https://mirror", Ok("https://mirror"));
    let scheme = "must begin with https:// or http://, as in https://mirror.kagami.svc:5000";
    for url in [
        "mirror.example.com:5000",
        "ftp://mirror",
        "//mirror",
        "HTTPS://mirror",
    ] {
        check(url, Err(scheme));
    }
    let user = "must hold no user and no password: put them into a Secret, and name it in \
                spec.endpoint.credentials.secretRef";
    for url in [
        "https://user@mirror/path",
        "https://user:geheim@mirror.test?x",
        "http://a:b@c/",
    ] {
        check(url, Err(user));
    }
    let query = "must have no query and no fragment: nothing after the port";
    for url in [
        "https://mirror.test?ns=docker.io",
        "https://mirror.test/v2/#a",
        "https://mirror.test/?",
    ] {
        check(url, Err(query));
    }
    let path = "must have no path: that of spec.registry is used, and the registry's /v2/ comes by itself";
    for url in [
        "https://mirror.test/v2/",
        "https://mirror.test/v2",
        "https://mirror.test//",
        "https://mirror.test/cache@a",
    ] {
        check(url, Err(path));
    }
    let dot =
        "must not end its host with a dot; leave it away, a name with a dot inside is looked up as it is";
    for url in ["https://mirror.test.", "https://mirror.test.:5000/"] {
        check(url, Err(dot));
    }
    let host = "must have a host after the scheme, and at most a port up to 65535 after it";
    for url in [
        "https://",
        "https:///",
        "http://mirror:port",
        "https://mirror:65536",
        "https://mirror:",
        "https://mir ror",
        "https://-a",
        "https://[x]",
        "https://::1",
    ] {
        check(url, Err(host));
    }
}

#[test]
fn a_bundle_holds_certificates_and_no_key() {
    let check = |pem: &str, expected: &str| {
        let found = told(
            "kind: Hosted",
            &format!("kind: Hosted\n  endpoint: {{caBundle: {pem:?}}}"),
        );
        assert_eq!(
            found.map(drop),
            Err(format!("spec.endpoint.caBundle: {expected}")),
            "{pem}"
        );
    };
    let certificate = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
    let key = "must hold no private key, which everybody who reads this resource would have: make another key, \
               and leave this one out";
    for name in ["PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY"] {
        let pem = format!("{certificate}-----BEGIN {name}-----\nAA==\n-----END {name}-----\n");
        check(&pem, key);
        check(&pem.replace(certificate, ""), key);
    }
    let certificates = "must hold certificates in PEM: -----BEGIN CERTIFICATE-----";
    check("LS0tLS1CRUdJTg==", certificates);
    check("-----BEGIN CERTIFICATE REQUEST-----", certificates);
}

#[test]
fn how_a_mirror_is_filled_is_read_whole_or_told_what_is_wrong() {
    let read = |copy: &str| {
        let loaded = load(&format!("{MINIMAL}  copy: {copy}\n"), "mirrors.yaml");
        loaded
            .map(|configuration| configuration.mirrors[0].0.copying.clone())
            .map_err(|faults| format!("{faults:?}"))
    };
    let all = Copying {
        platforms: Platforms::ALL,
        referrers: true,
        max_size: None,
        max_per_day: None,
    };
    assert_eq!(read("{policy: OnDemand}"), Ok(Some(all)));
    assert_eq!(read("{}"), Ok(None));
    assert_eq!(read("{policy: 'Off', referrers: false}"), Ok(None));
    let some = Copying {
        platforms: Platforms::parse("linux/arm64").unwrap(),
        referrers: false,
        max_size: Some(20 << 30),
        max_per_day: Some(100 << 30),
    };
    let text = "{policy: OnDemand, platforms: [linux/arm64], referrers: false, maxImageSize: 20Gi, maxBytesPerDay: 100Gi}";
    assert_eq!(read(text), Ok(Some(some)));
    for (text, expected) in [
        (
            "{policy: OnDemand, platforms: [arm64]}",
            "write it as linux/amd64",
        ),
        ("{policy: OnDemand, maxImageSize: 20GB}", "spec.copy.maxImageSize"),
        (
            "{policy: OnDemand, maxBytesPerDay: lots}",
            "spec.copy.maxBytesPerDay",
        ),
        ("{policy: Always}", "spec.copy.policy"),
        (
            "{policy: OnDemand, credentials: {secretRef: {name: none}}}",
            "none",
        ),
    ] {
        let told = read(text).unwrap_err();
        assert!(told.contains(expected), "{text}: {told}");
    }
    let cache = MINIMAL.replace("Hosted", "PullThrough");
    let told = load(&format!("{cache}  copy: {{policy: OnDemand}}\n"), "mirrors.yaml").unwrap_err();
    let told = format!("{told:?}");
    assert!(told.contains("a PullThrough mirror fetches by itself"), "{told}");
}
