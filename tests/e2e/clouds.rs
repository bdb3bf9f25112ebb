//! The chart under the rules of managed clusters. Each has a stand-in here that refuses what they refuse.

use serde_json::{Value, json};

use crate::{
    chart::{assert_bundles, configuration, write_bundles},
    support::{
        admission::pod,
        chart::{Chart, apply, stdout},
        cluster::{Cluster, Namespace},
        companion::DEFINITIONS,
        eventually,
    },
};

/// What makes Pods.
const WORKLOADS: [&str; 2] = ["ServiceAccount", "Deployment"];

/// Every API server of this ring has the rule: Pods of the system's classes only where a quota speaks of them.
pub(crate) fn gke_admits_pods_of_the_systems_priority_by_the_charts_quota(cluster: &Cluster) {
    let without = cluster.namespace(None);
    let values = "priorityQuota: {enabled: false}";
    Chart::new(cluster, "without-quota", &without.name, values).apply(&WORKLOADS);
    let told = refusal(&without);
    assert!(
        told.contains("insufficient quota to match these scopes"),
        "{told}"
    );
    assert_eq!(pods(&without).len(), 0);

    let own = cluster.namespace(None);
    let values = "webhook: {replicas: 5}";
    let chart = Chart::new(cluster, "with-quota", &own.name, values);
    chart.apply(&["ResourceQuota"]);
    chart.apply(&WORKLOADS);
    eventually("all Pods are let in", || (pods(&own).len() == 7).then_some(()));
    // Nobody else is counted, and so nobody else is stopped.
    own.create_pod(&pod("other", "nginx:1.29")).success();
    let quota = eventually("the quota counts", || {
        let quotas = cluster.get(&own.path("resourcequotas")).success();
        let status = quotas["items"][0]["status"].clone();
        (status["used"]["pods"] == "7").then_some(status)
    });
    // While all are replaced, those that drain are still there: twice, in two upgrades after one another.
    assert_eq!(quota["hard"]["pods"], "28");
}

/// `restricted-v2`: users and groups are those of the namespace's range, or none is asked for.
pub(crate) fn openshift_chooses_users_and_groups(cluster: &Cluster) {
    let (fixed, own) = (cluster.namespace(None), cluster.namespace(None));
    range_of_users(&[&fixed, &own]);
    let chart = |namespace: &Namespace<'_>, values: &str| {
        let chart = Chart::new(
            cluster,
            &format!("users-{}", namespace.name),
            &namespace.name,
            values,
        );
        chart.apply(&["ResourceQuota"]);
        chart.apply(&WORKLOADS);
    };
    chart(&fixed, "userAndGroup: fixed");
    let told = refusal(&fixed);
    assert!(told.contains("not in the range"), "{told}");
    chart(&own, "userAndGroup: cluster");
    eventually("all Pods are let in", || (pods(&own).len() == 5).then_some(()));
    for pod in pods(&own) {
        let context = &pod["spec"]["securityContext"];
        assert_eq!(context["runAsNonRoot"], true);
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
        // Without a group that volumes belong to, everybody in the container may read them.
        for volume in pod["spec"]["volumes"].as_array().unwrap() {
            let mode = volume["secret"]["defaultMode"].as_u64();
            assert!(mode.is_none_or(|mode| mode == 0o444), "{volume}");
        }
    }

    // By default it is seen by the API that OpenShift has.
    let rendered = |name: &str| {
        let chart = Chart::new(cluster, name, &own.name, "{}");
        stdout(&chart.helm("install", &["--dry-run=server"]))
    };
    assert!(rendered("elsewhere").contains("runAsUser: 65532"));
    let definition = json!({
        "metadata": {"name": "securitycontextconstraints.security.openshift.io"},
        "spec": {
            "group": "security.openshift.io", "scope": "Cluster",
            "names": {"plural": "securitycontextconstraints", "kind": "SecurityContextConstraints"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}},
            }],
        },
    });
    cluster.create(DEFINITIONS, &definition).success();
    eventually("the API is served", || {
        let path = "/apis/security.openshift.io/v1";
        (cluster.get(path).status == 200).then_some(())
    });
    let on_openshift = rendered("on-openshift");
    for number in ["runAsUser", "runAsGroup", "fsGroup"] {
        assert!(!on_openshift.contains(number), "{on_openshift}");
    }
    cluster.delete(&format!(
        "{DEFINITIONS}/securitycontextconstraints.security.openshift.io"
    ));
}

/// Stands in for the security context constraints of these namespaces.
fn range_of_users(namespaces: &[&Namespace<'_>]) {
    let cluster = namespaces[0].cluster;
    let names: Vec<_> = namespaces.iter().map(|namespace| &namespace.name).collect();
    let in_range = |field: &str| format!("{field}.orValue(1000600000) in variables.range");
    let of_pod =
        ["runAsUser", "fsGroup"].map(|name| in_range(&format!("object.spec.?securityContext.?{name}")));
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "range-of-users"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]},
            ]},
            "variables": [{"name": "range", "expression": "[1000600000, 1000600001]"}],
            "validations": [
                {"expression": of_pod.join(" && "), "message": "user or group is not in the range"},
                {
                    "expression": format!(
                        "object.spec.containers.all(c, {})", in_range("c.?securityContext.?runAsUser"),
                    ),
                    "message": "user of a container is not in the range",
                },
            ],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "range-of-users"},
        "spec": {
            "policyName": "range-of-users", "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "In", "values": names},
            ]}},
        },
    });
    let file = cluster.folder().join("range-of-users.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [policy, binding]});
    std::fs::write(&file, list.to_string()).unwrap();
    apply(cluster, &[file.to_str().unwrap()]);
    let mut refused = pod("refused", "nginx:1.29");
    refused["spec"]["securityContext"] = json!({"runAsUser": 65532});
    for namespace in namespaces {
        let path = format!("{}?dryRun=All", namespace.path("pods"));
        eventually("the policy is in force", || {
            (cluster.create(&path, &refused).status == 422).then_some(())
        });
        cluster.create(&path, &pod("admitted", "nginx:1.29")).success();
    }
}

/// Its enforcer adds expressions to the selector of every webhook configuration that is not told otherwise. A
/// cluster of its own: the webhooks of an installation would be called for the other tests' namespaces.
pub(crate) fn aks_is_told_to_leave_the_selectors_alone(shared: &Cluster) {
    let cluster = Cluster::start(shared.tools.clone());
    let chart = Chart::new(&cluster, "kagami", "kagami-system", "{}");
    stdout(&chart.helm("install", &["--create-namespace"]));
    write_bundles(&cluster);
    let selectors = selectors(&cluster);
    enforce_selectors(&cluster);
    assert_ne!(self::selectors(&cluster), selectors);
    assert_bundles(&cluster);

    // Whatever else changes.
    let refused = chart.helm("upgrade", &["--set", "webhook.replicas=4"]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && told.contains("conflicts with \"admissionsenforcer\""),
        "{told}"
    );
    // In the words of docs/install-aks.md.
    let annotation = "webhookConfiguration.annotations.admissions\\.enforcer/disabled=true";
    let told_away = ["--set-string", annotation];
    stdout(&chart.helm("upgrade", &[&told_away[..], &["--force-conflicts"]].concat()));
    let stored = configuration(&cluster);
    assert_eq!(
        stored["metadata"]["annotations"]["admissions.enforcer/disabled"],
        "true"
    );
    assert_eq!(self::selectors(&cluster), selectors);
    assert_bundles(&cluster);
    // From then on without force.
    let more = [&told_away[..], &["--set", "leftAlone={storage}"]].concat();
    stdout(&chart.helm("upgrade", &more));
    assert!(self::selectors(&cluster)[0].to_string().contains("storage"));
    assert_bundles(&cluster);
}

fn selectors(cluster: &Cluster) -> Vec<Value> {
    let configuration = configuration(cluster);
    let webhooks = configuration["webhooks"].as_array().unwrap().iter();
    webhooks
        .map(|webhook| webhook["namespaceSelector"].clone())
        .collect()
}

/// Does what AKS's enforcer does, as it does it: a forced server-side apply.
fn enforce_selectors(cluster: &Cluster) {
    let stored = configuration(cluster);
    let webhooks: Vec<_> = stored["webhooks"]
        .as_array()
        .unwrap()
        .iter()
        .map(enforced)
        .collect();
    let applied = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": stored["metadata"]["name"]}, "webhooks": webhooks,
    });
    let file = cluster.folder().join("enforced.json");
    std::fs::write(&file, applied.to_string()).unwrap();
    let arguments = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--field-manager=admissionsenforcer",
        "--filename",
    ];
    stdout(&cluster.kubectl(&[&arguments[..], &[file.to_str().unwrap()]].concat()));
}

/// The selector of a webhook as the enforcer wants it.
pub(crate) fn enforced(webhook: &Value) -> Value {
    let mut selector = webhook["namespaceSelector"].clone();
    let expressions = selector.as_object_mut().unwrap().entry("matchExpressions");
    expressions
        .or_insert_with(|| json!([]))
        .as_array_mut()
        .unwrap()
        .extend([
            json!({"key": "control-plane", "operator": "NotIn", "values": ["true"]}),
            json!({"key": "kubernetes.azure.com/managedby", "operator": "NotIn", "values": ["aks"]}),
        ]);
    json!({
        "name": webhook["name"],
        "clientConfig": {"service": webhook["clientConfig"]["service"]},
        "sideEffects": webhook["sideEffects"],
        "admissionReviewVersions": webhook["admissionReviewVersions"],
        "namespaceSelector": selector,
    })
}

/// For API servers that reach no network but the nodes'. No two Pods of a node may want one port, and a new one
/// cannot wait for an old one to go that waits for it.
pub(crate) fn on_the_network_of_nodes_no_two_pods_want_one_port(cluster: &Cluster) {
    let own = cluster.namespace(None);
    let chart = Chart::new(cluster, "host-network", &own.name, "{hostNetwork: true}");
    chart.apply(&["ResourceQuota"]);
    chart.apply(&WORKLOADS);
    let mut ports = Vec::new();
    for deployment in chart.of_kind("Deployment") {
        let strategy = &deployment["spec"]["strategy"]["rollingUpdate"];
        assert_eq!(*strategy, json!({"maxSurge": 0, "maxUnavailable": 1}));
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["hostNetwork"], true);
        // Else the mirror's Service would have no name.
        assert_eq!(pod["dnsPolicy"], "ClusterFirstWithHostNet");
        let container = &pod["containers"][0];
        let declared = container["ports"].as_array().unwrap().iter();
        for port in declared.map(|port| port["containerPort"].as_u64().unwrap()) {
            assert!(!ports.contains(&port), "{port}");
            // It is listened on indeed.
            let arguments = container["args"].to_string();
            assert!(arguments.contains(&format!(":{port}\"")), "{arguments}");
            ports.push(port);
        }
    }
    assert_eq!(ports.len(), 3);
    eventually("all Pods are let in", || (pods(&own).len() == 5).then_some(()));
}

/// Whatever else nodes are chosen by: the image is one of Linux.
pub(crate) fn windows_nodes_get_no_pod(cluster: &Cluster) {
    let chart = Chart::new(cluster, "windows", "default", "nodeSelector: {pool: system}");
    for deployment in chart.of_kind("Deployment") {
        let selector = &deployment["spec"]["template"]["spec"]["nodeSelector"];
        assert_eq!(*selector, json!({"kubernetes.io/os": "linux", "pool": "system"}));
    }
}

fn pods(namespace: &Namespace<'_>) -> Vec<Value> {
    let path = format!(
        "{}?labelSelector=app.kubernetes.io/name=kagami",
        namespace.path("pods")
    );
    let pods = namespace.cluster.get(&path).success();
    pods["items"].as_array().unwrap().clone()
}

/// Waits until a ReplicaSet is refused a Pod, and returns why.
fn refusal(namespace: &Namespace<'_>) -> String {
    eventually("a ReplicaSet is refused a Pod", || {
        let events = namespace.cluster.get(&namespace.path("events")).success();
        let mut events = events["items"].as_array().unwrap().clone().into_iter();
        let refused = events.find(|event| event["reason"] == "FailedCreate")?;
        Some(refused["message"].as_str().unwrap().to_owned())
    })
}
