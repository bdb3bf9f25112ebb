//! What Kagami's service accounts may do, and what the API server holds them and people to.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    chart::{CHART, Chart, apply, stdout},
    cluster::{Cluster, Namespace},
    eventually,
};

pub(crate) const RBAC: [&str; 5] = [
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
];

const WEBHOOK: &[&str] = &[
    "get list watch imagemirrors.kagami.dev",
    "get list watch mirroredimages.kagami.dev",
    "get list watch namespaces",
];

const WEBHOOK_AT_HOME: &[&str] = &[
    "get list watch leases.coordination.k8s.io/kagami-health",
    "get list watch configmaps/kagami-originals",
    "get list watch configmaps/kagami-owners",
];

const COMPANION: &[&str] = &[
    "get list watch pods",
    "get list watch namespaces",
    "get list watch nodes",
    "get daemonsets.apps",
    "get replicasets.apps",
    "get statefulsets.apps",
    "get jobs.batch",
    "create events.events.k8s.io",
    "get list watch imagemirrors.kagami.dev",
    "patch imagemirrors/status.kagami.dev",
    "create delete get list update watch mirroredimages.kagami.dev",
    "get customresourcedefinitions.apiextensions.k8s.io/imagemirrors.kagami.dev",
    "get customresourcedefinitions.apiextensions.k8s.io/mirroredimages.kagami.dev",
];

const COMPANION_NOTES_MIRRORS: &[&str] = &["get update configmaps/kagami-mirrors"];

const COMPANION_RESCUES: &[&str] = &["patch pods", "list events"];

/// Of tenants' Secrets; a list and a watch are held to the name as well.
const COMPANION_PLACES_LOGINS: &[&str] = &["create secrets", "delete list patch watch secrets/kagami-pull"];

const COMPANION_WRITES_BUNDLES: &[&str] =
    &["get patch mutatingwebhookconfigurations.admissionregistration.k8s.io/zz-rights-kagami"];

const COMPANION_AT_HOME: &[&str] = &[
    "create leases.coordination.k8s.io",
    "get update leases.coordination.k8s.io/kagami-companion",
    "get list watch update leases.coordination.k8s.io/kagami-health",
    "get list watch create secrets",
    "update secrets/kagami-probe",
    "get update configmaps/kagami-originals",
    "get update configmaps/kagami-owners",
];

const COMPANION_MAKES_CERTIFICATES: &[&str] = &[
    "update secrets/kagami-authority",
    "update secrets/kagami-webhook-tls",
];

const COMPANION_AT_DEFAULT: &[&str] = &["create events.events.k8s.io"];

pub(crate) fn each_account_has_its_rights_and_no_other(cluster: &Cluster) {
    let home = cluster.namespace(None);
    // kubectl asks about nothing that is not there.
    apply(cluster, &[&format!("{CHART}/crds")]);
    let chart = Chart::new(cluster, "rights", &home.name, "{rescue: {enabled: true}}");
    chart.apply(&RBAC);
    let webhook = format!("{}:rights-kagami-webhook", home.name);
    let companion = format!("{}:rights-kagami-companion", home.name);
    // Roles reach the authorizer a moment after they are stored; the binding in `default` comes last.
    eventually("the roles are in force", || {
        let there = |account: &str, namespace: &str| !rights(cluster, account, namespace).is_empty();
        let events = rights(cluster, &companion, "default");
        let all = there(&webhook, &home.name) && events.contains("create events.events.k8s.io");
        all.then_some(())
    });
    for (account, namespace, expected) in [
        (
            &webhook,
            home.name.as_str(),
            &[WEBHOOK, WEBHOOK_AT_HOME] as &[&[&str]],
        ),
        (&webhook, "default", &[WEBHOOK]),
        (&webhook, "kube-system", &[WEBHOOK]),
        (
            &companion,
            &home.name,
            &[
                COMPANION,
                COMPANION_RESCUES,
                COMPANION_NOTES_MIRRORS,
                COMPANION_WRITES_BUNDLES,
                COMPANION_AT_HOME,
                COMPANION_MAKES_CERTIFICATES,
            ],
        ),
        (
            &companion,
            "default",
            &[
                COMPANION,
                COMPANION_RESCUES,
                COMPANION_WRITES_BUNDLES,
                COMPANION_AT_DEFAULT,
            ],
        ),
        (
            &companion,
            "kube-system",
            &[COMPANION, COMPANION_RESCUES, COMPANION_WRITES_BUNDLES],
        ),
    ] {
        let expected: BTreeSet<_> = expected.concat().into_iter().flat_map(spread).collect();
        assert_eq!(
            rights(cluster, account, namespace),
            expected,
            "{account} in {namespace}"
        );
    }

    // The same in the words that people ask it with.
    for (account, question, expected) in [
        (&webhook, "get secrets", "no"),
        (&webhook, "get secrets/kagami-webhook-tls", "no"),
        (&webhook, "list pods", "no"),
        (&webhook, "update leases.coordination.k8s.io/kagami-health", "no"),
        (
            &webhook,
            "patch imagemirrors.kagami.dev/main --subresource=status",
            "no",
        ),
        (&webhook, "list imagemirrors.kagami.dev", "yes"),
        (&companion, "update secrets/kagami-probe", "yes"),
        (&companion, "update secrets/other", "no"),
        (&companion, "delete secrets/kagami-probe", "no"),
        (&companion, "get secrets --namespace=kube-system", "no"),
        (
            &companion,
            "patch mutatingwebhookconfigurations/zz-rights-kagami",
            "yes",
        ),
        (&companion, "patch mutatingwebhookconfigurations/other", "no"),
        (&companion, "patch pods", "yes"),
        (&companion, "update pods", "no"),
        (&companion, "delete pods", "no"),
        (&companion, "create pods --subresource=eviction", "no"),
        (&companion, "create serviceaccounts --subresource=token", "no"),
    ] {
        let account = format!("--as=system:serviceaccount:{account}");
        let words: Vec<_> = ["auth", "can-i", &account]
            .into_iter()
            .chain(question.split(' '))
            .collect();
        let answer = home.kubectl(&words);
        assert_eq!(
            String::from_utf8_lossy(&answer.stdout).trim(),
            expected,
            "{account} {question}"
        );
    }
}

pub(crate) fn without_their_values_the_companion_writes_no_certificates_and_no_pods(cluster: &Cluster) {
    let home = cluster.namespace(None);
    let values = "{certManager: {enabled: true}, rescue: {enabled: false}}";
    Chart::new(cluster, "managed", &home.name, values).apply(&RBAC);
    let companion = format!("{}:managed-kagami-companion", home.name);
    eventually("the roles are in force", || {
        let events = rights(cluster, &companion, "default");
        events.contains("create events.events.k8s.io").then_some(())
    });
    let expected: BTreeSet<_> = [COMPANION, COMPANION_AT_HOME]
        .concat()
        .into_iter()
        .flat_map(spread)
        .collect();
    assert_eq!(rights(cluster, &companion, &home.name), expected);
}

pub(crate) fn pull_secrets_need_a_right_of_their_own(cluster: &Cluster) {
    let home = cluster.namespace(None);
    apply(cluster, &[&format!("{CHART}/crds")]);
    Chart::new(
        cluster,
        "placing",
        &home.name,
        "{pullSecrets: {enabled: true}, rescue: {enabled: false}}",
    )
    .apply(&RBAC);
    let companion = format!("{}:placing-kagami-companion", home.name);
    eventually("the roles are in force", || {
        let events = rights(cluster, &companion, "default");
        events.contains("create events.events.k8s.io").then_some(())
    });
    let expected: BTreeSet<_> = [COMPANION, COMPANION_PLACES_LOGINS]
        .concat()
        .into_iter()
        .flat_map(spread)
        .chain(["get", "patch"].map(|verb| {
            let resource = "mutatingwebhookconfigurations.admissionregistration.k8s.io";
            format!("{verb} {resource}/zz-placing-kagami")
        }))
        .collect();
    assert_eq!(rights(cluster, &companion, "kube-system"), expected);

    // The right to list one name is a right to that list alone, over all namespaces.
    let tenant = cluster.namespace(Some("enforce"));
    for name in ["kagami-pull", "tls"] {
        let secret = json!({"metadata": {"name": name}, "stringData": {"a": "b"}});
        cluster.create(&tenant.path("secrets"), &secret).success();
    }
    let list = |path: &str, selector: &str| {
        let answer = cluster.request_by(&companion, Method::GET, &format!("{path}{selector}"), None);
        (answer.status, answer.body)
    };
    for path in ["/api/v1/secrets".to_owned(), tenant.path("secrets")] {
        let (status, body) = list(&path, "?fieldSelector=metadata.name%3Dkagami-pull");
        assert!(status == 200 && body.contains("kagami-pull"), "{status} {body}");
        assert!(!body.contains("\"tls\""), "{body}");
        for selector in [
            "",
            "?fieldSelector=metadata.name%3Dtls",
            "?fieldSelector=metadata.name%21%3Dtls",
            "?labelSelector=kagami.dev%2Fpull-secret",
        ] {
            assert_eq!(list(&path, selector).0, 403, "{path}{selector}");
        }
    }
    let get = |name: &str| {
        let path = tenant.path(&format!("secrets/{name}"));
        cluster.request_by(&companion, Method::GET, &path, None).status
    };
    assert_eq!(get("tls"), 403);
}

pub(crate) fn viewers_of_a_namespace_read_what_kagami_knows(cluster: &Cluster) {
    let home = cluster.namespace(None);
    apply(cluster, &[&format!("{CHART}/crds")]);
    Chart::new(cluster, "viewers", &home.name, "{}").apply(&["ClusterRole"]);
    stdout(&home.kubectl(&[
        "create",
        "clusterrolebinding",
        "a-viewer",
        "--clusterrole=view",
        "--user=viewer",
    ]));
    for question in [
        "list imagemirrors.kagami.dev",
        "watch mirroredimages.kagami.dev",
        "get leases.coordination.k8s.io/kagami-health",
        // What `kagami report` asks for besides.
        "list pods",
        "list events",
        "list namespaces",
    ] {
        let words: Vec<_> = ["auth", "can-i", "--as=viewer"]
            .into_iter()
            .chain(question.split(' '))
            .collect();
        eventually(question, || home.kubectl(&words).status.success().then_some(()));
    }
    for question in ["get leases.coordination.k8s.io/other", "get secrets/kagami-probe"] {
        let words: Vec<_> = ["auth", "can-i", "--as=viewer"]
            .into_iter()
            .chain(question.split(' '))
            .collect();
        let answer = home.kubectl(&words);
        assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "no", "{question}");
    }
    let write = home.kubectl(&["auth", "can-i", "--as=viewer", "patch", "imagemirrors.kagami.dev"]);
    assert_eq!(String::from_utf8_lossy(&write.stdout).trim(), "no");
}

pub(crate) fn an_unknown_mode_is_refused_on_a_namespace(cluster: &Cluster) {
    let home = cluster.namespace(None);
    let label = |value: &str| {
        let label = format!("kagami.dev/mode={value}");
        let output = home.kubectl(&[
            "label",
            "--overwrite",
            "namespace",
            &home.name,
            &label,
            "--dry-run=server",
        ]);
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    // One that was there before the policy.
    let older = cluster.namespace(Some("enforced"));
    policies(&home, "modes");
    let refusal = eventually("the policy is in force", || {
        let (accepted, told) = label("enforced");
        (!accepted).then_some(told)
    });
    assert!(
        refusal.contains("label kagami.dev/mode must be enforce, warn, audit or off, not 'enforced'"),
        "{refusal}"
    );
    for value in ["", "Enforce", "true"] {
        assert!(!label(value).0, "{value}");
    }
    for value in ["enforce", "warn", "audit", "off"] {
        assert_eq!(label(value), (true, String::new()), "{value}");
    }
    let create = |labels: Value| {
        let namespace = json!({"metadata": {"name": "modes-created", "labels": labels}});
        cluster.create("/api/v1/namespaces?dryRun=All", &namespace).status
    };
    assert_eq!(create(json!({"kagami.dev/mode": "no-such-mode"})), 422);
    assert_eq!(create(json!({"kagami.dev/mode": "audit"})), 201);
    assert_eq!(create(Value::Null), 201);

    // Whatever else changes on the older one is none of the policy's business, and it may be put right.
    stdout(&older.kubectl(&["label", "namespace", &older.name, "team=platform"]));
    stdout(&older.kubectl(&["annotate", "namespace", &older.name, "note=other"]));
    let mode = [
        "label",
        "--overwrite",
        "namespace",
        &older.name,
        "kagami.dev/mode=nonsense",
    ];
    assert!(!older.kubectl(&mode).status.success());
    stdout(&older.kubectl(&["label", "namespace", &older.name, "kagami.dev/mode-"]));
}

pub(crate) fn the_companion_is_held_to_its_secrets(cluster: &Cluster) {
    let home = cluster.namespace(None);
    let chart = policies(&home, "secrets");
    chart.apply(&RBAC);
    let companion = format!("{}:secrets-kagami-companion", home.name);
    let create = |name: &str, kind: &str| {
        let data = match kind {
            "kubernetes.io/tls" => json!({"tls.crt": "", "tls.key": ""}),
            _ => Value::Null,
        };
        let account = json!({"kubernetes.io/service-account.name": "default"});
        let secret = json!({
            "metadata": {"name": name, "annotations": account}, "type": kind, "data": data,
        });
        let path = format!("{}?dryRun=All", home.path("secrets"));
        let answer = cluster.request_by(&companion, Method::POST, &path, Some(&secret));
        (answer.status, answer.body)
    };
    let told = eventually("the policy is in force", || {
        let (status, body) = create("other", "Opaque");
        // Until its role is, the answer is another one.
        (status == 422 || body.contains("the companion keeps only")).then_some(body)
    });
    assert!(told.contains("the companion keeps only"), "{told}");
    for (name, kind, expected) in [
        ("kagami-webhook-tls", "kubernetes.io/tls", true),
        ("kagami-authority", "Opaque", true),
        ("kagami-ca", "Opaque", false),
        ("kagami-probe", "Opaque", true),
        ("kagami-webhook-tls", "Opaque", false),
        ("kagami-probe", "kubernetes.io/service-account-token", false),
        ("kagami-token", "kubernetes.io/service-account-token", false),
        ("kagami-pull", "Opaque", false),
    ] {
        let (status, body) = create(name, kind);
        assert_eq!(status == 201, expected, "{name} {kind}: {body}");
    }
    // Others are not meant.
    let secret = json!({"metadata": {"name": "other"}});
    cluster.create(&home.path("secrets"), &secret).success();
}

/// Puts the chart's policies, and nothing else of it, in force.
fn policies<'a>(home: &Namespace<'a>, release: &str) -> Chart<'a> {
    let chart = Chart::new(home.cluster, release, &home.name, "{rescue: {enabled: true}}");
    chart.apply(&["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"]);
    chart
}

/// All that a service account may do in a namespace, beside what every account may.
fn rights(cluster: &Cluster, account: &str, namespace: &str) -> BTreeSet<String> {
    let of = |account: &str| {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
        let answer = cluster
            .request_by(account, Method::POST, path, Some(&review))
            .success();
        let rules = answer["status"]["resourceRules"].as_array().unwrap().clone();
        rules.iter().flat_map(flatten).collect::<BTreeSet<_>>()
    };
    &of(account) - &of("default:nobody-in-particular")
}

/// One line for each verb, resource and name of a rule.
fn flatten(rule: &Value) -> Vec<String> {
    let strings = |key: &str| -> Vec<String> {
        let list = rule[key].as_array().cloned().unwrap_or_default();
        list.iter()
            .map(|value| value.as_str().unwrap().to_owned())
            .collect()
    };
    let names = match &strings("resourceNames")[..] {
        [] => vec![String::new()],
        names => names.iter().map(|name| format!("/{name}")).collect(),
    };
    let mut lines = Vec::new();
    for verb in strings("verbs") {
        for group in strings("apiGroups") {
            let group = if group.is_empty() {
                group
            } else {
                format!(".{group}")
            };
            for resource in strings("resources") {
                lines.extend(names.iter().map(|name| format!("{verb} {resource}{group}{name}")));
            }
        }
    }
    lines
}

/// The lines of `verb verb … resource`.
fn spread(rights: &str) -> Vec<String> {
    let words: Vec<_> = rights.split(' ').collect();
    let (resource, verbs) = words.split_last().unwrap();
    verbs.iter().map(|verb| format!("{verb} {resource}")).collect()
}
