//! The chart: what helm makes of values, and what an installation, an upgrade and a removal do.

use std::{collections::BTreeSet, fs, process::Command};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    admission::{Calls, pod},
    chart::{CHART, Chart, apply, stdout},
    cluster::{Cluster, User},
    eventually,
    process::reserve_port,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Values that users may choose, by the name of a release.
const VALUES: &[(&str, &str)] = &[
    ("kagami", "{}"),
    ("default-mode", "{defaultMode: audit, leftAlone: [longhorn-system, ingress]}"),
    ("cert-manager", "certManager: {enabled: true}"),
    (
        "own-issuer",
        "certManager: {enabled: true, issuerRef: {kind: ClusterIssuer, name: corporate}}",
    ),
    (
        "monitoring",
        "
serviceMonitor: {enabled: true, labels: {release: prometheus}}
prometheusRule: {enabled: true, labels: {release: prometheus}}
dashboard: {enabled: true}
",
    ),
    (
        "mirrors",
        r#"
mirrors:
  hosted:
    registry: mirror.example.com
    kind: Hosted
    mode: "Off"
    sources: [{prefix: docker.io}]
  cache:
    registry: cache.example.com:5000
    kind: PullThrough
    sources: [{prefix: ghcr.io, exclude: ["ghcr.io/example/**"]}]
"#,
    ),
    (
        "everything-else",
        "
fullnameOverride: images
image: {repository: registry.example.com/kagami, tag: v1, digest: 'sha256:4a5f4f5b1b0d8d8c7b7f2f6f9e9e4d3c2b1a09f8e7d6c5b4a3928170605f4e3d', pullSecrets: [own]}
webhook: {replicas: 5, port: 10250, adminPort: 9090, budget: 500ms, drainSeconds: 120, clientCA: {configMap: api-server-ca}}
companion: {replicas: 1, adminPort: 9091}
webhookConfiguration: {name: yy, labels: {team: platform}, annotations: {admissions.enforcer/disabled: 'true'}}
heal: false
rescue: {enabled: true, perSecond: 50, registries: ['mirror.example.com', 'mirror.example.com:5000/team'], deletePods: true}
pullSecrets: {enabled: true}
paused: true
bindAddress: '[::]'
priorityClassName: ''
nodeSelector: {}
userAndGroup: cluster
podSecurityContext: {fsGroupChangePolicy: OnRootMismatch}
securityContext: {privileged: false}
dnsPolicy: None
dnsConfig: {nameservers: [10.0.0.10], options: [{name: ndots, value: '2'}]}
hostAliases: [{ip: 10.1.2.3, hostnames: [mirror.example.com]}]
tolerations: [{operator: Exists}]
podLabels: {team: platform}
podAnnotations: {example.com/note: 'yes'}
networkPolicy:
  admissionFrom: [{ipBlock: {cidr: 10.0.0.0/8}}]
  metricsFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
",
    ),
    ("no-network-policy", "networkPolicy: {enabled: false}"),
    (
        "quota",
        "{priorityQuota: {pods: 50}, certManager: {enabled: true}, webhookConfiguration: {annotations: {a: b}}}",
    ),
    // As a release has them that keeps its former values: without what came later.
    (
        "former",
        "
heal: null
rescue: null
pullSecrets: null
paused: null
webhook: {adminPort: null}
companion: {adminPort: null}
webhookConfiguration: null
priorityQuota: null
userAndGroup: null
podSecurityContext: null
securityContext: null
hostNetwork: null
dnsPolicy: null
dnsConfig: null
hostAliases: null
prometheusRule: null
",
    ),
];

pub(crate) fn every_set_of_values_is_valid(cluster: &Cluster) {
    let definitions = cluster.tools.path("definitions");
    apply(
        cluster,
        &[&format!("{CHART}/crds"), definitions.to_str().unwrap()],
    );
    // A workload that Pod Security would not let run is told of by a warning.
    let namespace = cluster.namespace(None);
    let label = "pod-security.kubernetes.io/warn=restricted";
    stdout(&namespace.kubectl(&["label", "namespace", &namespace.name, label]));
    for (release, values) in VALUES {
        let chart = Chart::new(cluster, release, &namespace.name, values);
        let file = cluster.folder().join(format!("{release}.rendered.yaml"));
        fs::write(&file, chart.manifests()).unwrap();
        let applied = cluster.kubectl(&[
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "--output=json",
            "--filename",
            file.to_str().unwrap(),
        ]);
        assert_eq!(String::from_utf8_lossy(&applied.stderr), "", "{release}");
        let list: Value = serde_json::from_str(&stdout(&applied)).unwrap();
        let items = list["items"].as_array().unwrap();
        assert!(items.len() > 15, "{release}: {list}");
        let names = items
            .iter()
            .map(|item| item["metadata"]["name"].as_str().unwrap());
        let fullname = match *release {
            "kagami" => "kagami".to_owned(),
            "everything-else" => "images".to_owned(),
            other => format!("{other}-kagami"),
        };
        assert!(
            names.clone().any(|name| name == format!("{fullname}-webhook")),
            "{release}"
        );

        let linted = chart.lint();
        assert!(linted.status.success(), "{release}: {linted:?}");
    }
}

/// Every block of YAML there is one of values.
pub(crate) fn the_values_of_the_install_pages_are_valid(cluster: &Cluster) {
    let mut seen = 0;
    for page in ["gke", "openshift", "aks", "eks"] {
        let text = fs::read_to_string(format!("{ROOT}/docs/install-{page}.md")).unwrap();
        for block in text.split("```yaml\n").skip(1) {
            let values = block.split("```").next().unwrap();
            let release = format!("page-{seen}");
            Chart::new(cluster, &release, "kagami-system", values).manifests();
            seen += 1;
        }
    }
    assert!(seen > 4, "{seen}");
}

pub(crate) fn the_programs_take_the_arguments_of_every_set_of_values(cluster: &Cluster) {
    let mut seen = BTreeSet::new();
    for (release, values) in VALUES {
        let chart = Chart::new(cluster, &format!("arguments-{release}"), "default", values);
        for deployment in chart.of_kind("Deployment") {
            let arguments = &deployment["spec"]["template"]["spec"]["containers"][0]["args"];
            let arguments: Vec<_> = arguments
                .as_array()
                .unwrap()
                .iter()
                .map(|argument| argument.as_str().unwrap().to_owned())
                .collect();
            let taken = kagami::cli::check(arguments.iter().map(String::as_str));
            assert_eq!(taken, Ok(()), "{release}: {arguments:?}");
            seen.extend(
                arguments
                    .iter()
                    .map(|argument| argument.split('=').next().unwrap().to_owned()),
            );
        }
    }
    // Every flag that stands in a template was looked at, whatever its condition.
    for template in ["webhook", "companion"] {
        let text = fs::read_to_string(format!("{CHART}/templates/{template}.yaml")).unwrap();
        let flags = text.lines().filter_map(|line| line.trim().strip_prefix("- --"));
        for flag in flags {
            let flag = format!("--{}", flag.split('=').next().unwrap());
            assert!(seen.contains(&flag), "no set of values brings {flag}");
        }
    }
}

pub(crate) fn wrong_values_are_refused_with_their_place(cluster: &Cluster) {
    let mirror = "registry: a.example, kind: Hosted, sources: [{prefix: docker.io}]";
    for (values, expected) in [
        ("defaultmode: audit", "'defaultmode' not allowed"),
        ("defaultMode: enforced", "at '/defaultMode'"),
        ("webhook: {replicas: 0}", "at '/webhook/replicas'"),
        ("webhook: {budget: 300}", "at '/webhook/budget'"),
        // What YAML makes of a bare Off.
        (
            &format!("mirrors: {{m: {{mode: Off, {mirror}}}}}"),
            "at '/mirrors/m/mode'",
        ),
        (
            "mirrors: {m: {registry: a.example, kind: Hosted}}",
            "missing property 'sources'",
        ),
    ] {
        let output = Chart::new(cluster, "wrong", "default", values).helm("template", &[]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && told.contains(expected),
            "{values}: {told}"
        );
    }
}

pub(crate) fn plain_manifests_are_what_the_chart_makes(cluster: &Cluster) {
    let helm = cluster.tools.path("helm");
    let checked = Command::new(format!("{ROOT}/scripts/manifests"))
        .arg("--check")
        .env("KAGAMI_TOOLS", helm.parent().unwrap())
        .output()
        .unwrap();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stdout)
    );
}

pub(crate) fn a_default_mode_takes_in_unlabelled_namespaces_only(cluster: &Cluster) {
    let own = cluster.namespace(Some("enforce"));
    let storage = cluster.namespace(Some("enforce"));
    let labelled = ["enforce", "warn", "audit", "off"].map(|mode| cluster.namespace(Some(mode)));
    let unlabelled = cluster.namespace(None);
    let all: Vec<_> = [&own, &storage, &unlabelled]
        .into_iter()
        .chain(&labelled)
        .collect();
    let names: Vec<_> = all.iter().map(|namespace| namespace.name.as_str()).collect();

    // Nothing listens there: the API server counts the call and goes on.
    let url = format!("https://127.0.0.1:{}", reserve_port());
    let values = format!("{{defaultMode: warn, leftAlone: [{}]}}", storage.name);
    let chart = Chart::new(cluster, "selectors", &own.name, &values);
    let mut configuration = chart.of_kind("MutatingWebhookConfiguration").remove(0);
    let mut webhooks = Vec::new();
    for webhook in configuration["webhooks"].as_array_mut().unwrap() {
        let (name, _) = webhook["name"].as_str().unwrap().split_once('.').unwrap();
        let metric = format!("{name}.selectors.kagami.dev");
        webhooks.push((name.to_owned(), metric.clone()));
        let path = webhook["clientConfig"]["service"]["path"].as_str().unwrap();
        webhook["clientConfig"] = json!({"url": format!("{url}{path}")});
        webhook["name"] = metric.into();
        let here = json!({"key": "kubernetes.io/metadata.name", "operator": "In", "values": names});
        let selector = &mut webhook["namespaceSelector"]["matchExpressions"];
        selector.as_array_mut().unwrap().push(here);
    }
    let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    cluster.create(path, &configuration).success();

    let counts = || {
        let metrics = cluster.metrics();
        let counts = webhooks
            .iter()
            .map(|(_, metric)| Calls::read(&metrics, metric).failed_open);
        counts.collect::<Vec<_>>()
    };
    let create = |namespace: &str| {
        let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
        cluster.create(&path, &pod("web", "nginx")).success();
    };
    eventually("the API server calls the webhook", || {
        create(&labelled[0].name);
        counts().iter().any(|count| *count > 0).then_some(())
    });
    let mut called = Vec::new();
    for namespace in &all {
        let before = counts();
        create(&namespace.name);
        let after = counts();
        let calls = webhooks.iter().zip(before.iter().zip(&after));
        let of = calls
            .filter(|(_, (before, after))| after > before)
            .map(|((name, _), _)| name.as_str());
        called.push(of.collect::<Vec<_>>().join(" "));
    }
    cluster.delete(&format!(
        "{path}/{}",
        configuration["metadata"]["name"].as_str().unwrap()
    ));
    // Own, storage, unlabelled, then by label.
    assert_eq!(called, ["", "", "unlabelled", "enforce", "warn", "audit", ""]);
}

/// The companion is told the same registries as the policy that holds it: those of the chart's mirrors, and more.
pub(crate) fn pods_may_go_forward_to_the_mirrors_that_the_chart_makes(cluster: &Cluster) {
    let listed = |values: &str| {
        let chart = Chart::new(cluster, "listed", "kagami-system", values);
        let deployments = chart.of_kind("Deployment");
        let mut arguments = deployments.iter().flat_map(|deployment| {
            let container = &deployment["spec"]["template"]["spec"]["containers"][0];
            container["args"].as_array().unwrap()
        });
        let flag = arguments.find_map(|text| text.as_str()?.strip_prefix("--rescue-registries="));
        let policies = chart.of_kind("ValidatingAdmissionPolicy");
        let mut variables = policies.iter().flat_map(|policy| {
            let variables = policy["spec"]["variables"].as_array();
            variables.into_iter().flatten()
        });
        let variable = variables.find(|variable| variable["name"] == "registries");
        let held: Vec<String> =
            serde_json::from_str(variable.unwrap()["expression"].as_str().unwrap()).unwrap();
        assert_eq!(flag.unwrap_or_default(), held.join(","), "{values}");
        held
    };
    assert!(listed("{}").is_empty());
    let mirror = |registry: &str| {
        format!("{{registry: '{registry}', kind: Hosted, sources: [{{prefix: docker.io}}]}}")
    };
    let [a, b, c] = ["Mirror.test", "m.test:5000/team", "mirror.test"].map(mirror);
    let mirrors = format!("a: {a}, b: {b}, c: {c}");
    assert_eq!(
        listed(&format!("{{mirrors: {{{mirrors}}}}}")),
        ["Mirror.test", "m.test:5000/team", "mirror.test"],
        "as they are written: so images name them"
    );
    assert_eq!(
        listed(&format!(
            "{{mirrors: {{{mirrors}}}, rescue: {{registries: [b.test, Mirror.test]}}}}"
        )),
        ["Mirror.test", "b.test", "m.test:5000/team", "mirror.test"]
    );
}

/// A cluster of its own: the webhooks of an installation would be called for the other tests' namespaces.
pub(crate) fn install_upgrade_and_removal(shared: &Cluster) {
    let cluster = Cluster::start(shared.tools.clone());
    let chart = Chart::new(&cluster, "kagami", "kagami-system", "{}");
    let namespace = json!({"metadata": {"name": "kagami-system", "labels": {
        "pod-security.kubernetes.io/enforce": "restricted",
    }}});
    cluster.create("/api/v1/namespaces", &namespace).success();
    let notes = stdout(&chart.helm("install", &[]));
    assert!(notes.contains("kubectl label namespace"), "{notes}");
    // Pod Security lets them in, and the priority class exists.
    assert_pods(&cluster, 3);

    write_bundles(&cluster);
    // What the companion notes there is its own.
    let map = "/api/v1/namespaces/kagami-system/configmaps/kagami-mirrors";
    let mut noted = cluster.get(map).success();
    noted["data"] = json!({"mirrors": "noted"});
    cluster
        .request(User::Admin, Method::PUT, map, Some(&noted))
        .success();
    for (replicas, options) in [(4, &[] as &[&str]), (5, &["--server-side=false"])] {
        // Something of each webhook changes as well.
        let left_alone = format!("leftAlone={{storage-{replicas}}}");
        let replicas_value = format!("webhook.replicas={replicas}");
        let set = ["--set", &left_alone, "--set", &replicas_value];
        stdout(&chart.helm("upgrade", &[&set[..], options].concat()));
        let configuration = configuration(&cluster).to_string();
        assert!(
            configuration.contains(&format!("storage-{replicas}")),
            "{configuration}"
        );
        assert_bundles(&cluster);
        assert_eq!(cluster.get(map).success()["data"], noted["data"]);
        assert_pods(&cluster, replicas);
    }

    // As versions had it that named it like all else.
    stdout(&chart.helm("upgrade", &["--set", "webhookConfiguration.name=kagami"]));
    assert_eq!(configurations(&cluster), ["kagami"]);
    stdout(&chart.helm("upgrade", &["--reset-values"]));
    assert_eq!(configurations(&cluster), ["zz-kagami"]);
    write_bundles(&cluster);

    stdout(&cluster.helm(&["uninstall", "kagami", "--namespace", "kagami-system"]));
    let rest = stdout(&cluster.kubectl(&[
        "get",
        "mutatingwebhookconfigurations,validatingadmissionpolicies,clusterroles,clusterrolebindings,deployments,roles,\
         resourcequotas",
        "--all-namespaces",
        "--selector=app.kubernetes.io/name=kagami",
    ]));
    assert_eq!(rest, "");

    // The same without Helm, in the words of webhook-config/namespace.yaml.
    let manifests = format!("{ROOT}/webhook-config");
    let apply_all = || apply(&cluster, &[&format!("{manifests}/namespace.yaml"), &manifests]);
    apply_all();
    assert_pods(&cluster, 3);
    write_bundles(&cluster);
    apply_all();
    assert_bundles(&cluster);
}

/// The names of all webhook configurations.
fn configurations(cluster: &Cluster) -> Vec<String> {
    let all = cluster
        .get("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations")
        .success();
    let name = |item: &Value| item["metadata"]["name"].as_str().unwrap().to_owned();
    all["items"].as_array().unwrap().iter().map(name).collect()
}

/// Waits until so many Pods of the webhook, and two of the companion, were let in.
fn assert_pods(cluster: &Cluster, webhooks: usize) {
    for (component, expected) in [("webhook", webhooks), ("companion", 2)] {
        let path = format!(
            "/api/v1/namespaces/kagami-system/pods?labelSelector=app.kubernetes.io/component={component}"
        );
        eventually(&format!("{expected} Pods of the {component}"), || {
            let pods = cluster.get(&path).success();
            let pods = pods["items"].as_array().unwrap();
            let wanted = pods
                .iter()
                .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
            (wanted.count() >= expected).then_some(())
        });
    }
}

const CONFIGURATION: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/zz-kagami";

/// Writes `caBundle` of every webhook, with the companion's rights.
pub(crate) fn write_bundles(cluster: &Cluster) {
    let patch: Vec<_> = (0..3)
        .map(|index| {
            let path = format!("/webhooks/{index}/clientConfig/caBundle");
            json!({"op": "add", "path": path, "value": cluster.authority.bundle()})
        })
        .collect();
    let companion = "kagami-system:kagami-companion";
    cluster
        .request_by(companion, Method::PATCH, CONFIGURATION, Some(&patch.into()))
        .success();
    assert_bundles(cluster);
}

#[track_caller]
pub(crate) fn assert_bundles(cluster: &Cluster) {
    let configuration = configuration(cluster);
    let webhooks = configuration["webhooks"].as_array().unwrap();
    let kept = webhooks
        .iter()
        .filter(|webhook| webhook["clientConfig"]["caBundle"] == cluster.authority.bundle());
    assert_eq!(kept.count(), 3, "{configuration}");
}

pub(crate) fn configuration(cluster: &Cluster) -> Value {
    cluster.get(CONFIGURATION).success()
}
