//! Kyverno: policies about signatures and about names of images.

use std::{fs, process::Command, time::Duration};

use rcgen::KeyPair;
use serde_json::{Value, json};

use super::{
    Beside, OURS, Sightings, assert_denied, brought, cluster_with, create, created, signature::sign, tried,
};
use crate::support::{
    admission::original,
    chart::{apply, stdout},
    cluster::Cluster,
    eventually,
    images::{Target, named},
    mirror::Mirror,
    policy::failed_create,
    process::{Process, reserve_port},
    within,
};

const POLICIES: &str = "/apis/kyverno.io/v1/clusterpolicies";
const IMAGE_POLICIES: &str = "/apis/policies.kyverno.io/v1beta1/imagevalidatingpolicies";

/// What both registries of the test have: of nobody, and of somebody whose key the policy has.
const UNSIGNED: &str = "docker.io/library/nginx";
const SIGNED: &str = "docker.io/library/redis";

pub(crate) fn kyverno(shared: &Cluster) {
    let cluster = &cluster_with(shared, &["kyverno", "neighbours"]);
    let mut seen = Sightings::of("Kyverno", "github.com/kyverno/kyverno");
    let upstream = Mirror::start(&cluster.tools, &cluster.http, cluster.folder(), "upstream");
    let host = upstream.url.strip_prefix("http://").unwrap();
    for (repository, tag) in [(UNSIGNED, "1.29"), (SIGNED, "8")] {
        let image = named(&format!("{repository}:{tag}"));
        let place = format!("{}/{repository}", host.replace(':', "_"));
        let mirror = Target::of(&cluster.http, &cluster.mirror.url);
        cluster.http.wait(mirror.push(&place, tag, &image));
    }
    // Kyverno is to find the mirror by the name that Pods have.
    let registry = cluster.mirror.url.strip_prefix("http://").unwrap();
    let usual = Beside::with(cluster, "zz-kagami", registry, &[host]);
    let early = Beside::with(cluster, "kagami", registry, &[host]);
    let mut kyverno = start(cluster);
    signatures(cluster, &mut kyverno, host, [&usual, &early], &mut seen);
    allow_lists(cluster, &usual, &mut seen);
    seen.write();
}

fn signatures(
    cluster: &Cluster,
    kyverno: &mut Process,
    host: &str,
    [usual, early]: [&Beside<'_>; 2],
    seen: &mut Sightings,
) {
    let key = KeyPair::generate().unwrap();
    let digest = named(&format!("{SIGNED}:8")).digest.to_string();
    let (tag, signature) = sign(&key, &format!("{host}/{SIGNED}"), &digest);
    for (registry, repository) in [
        (&*format!("http://{host}"), SIGNED.to_owned()),
        (
            &cluster.mirror.url,
            format!("{}/{SIGNED}", host.replace(':', "_")),
        ),
    ] {
        let registry = Target::of(&cluster.http, registry);
        cluster.http.wait(registry.push(&repository, &tag, &signature));
    }
    let names = [usual.names(), early.names()].concat();
    let keys = json!({
        "publicKeys": key.public_key_pem(), "rekor": {"ignoreTlog": true}, "ctlog": {"ignoreSCT": true},
    });
    let rule = |images: &[String]| {
        json!({
            "name": "signed",
            "match": {"any": [{"resources": {"kinds": ["Pod"], "namespaces": names}}]},
            "verifyImages": [{
                "imageReferences": images,
                "failureAction": "Enforce",
                "attestors": [{"entries": [{"keys": keys}]}],
            }],
        })
    };
    let both = [format!("{host}/*"), format!("{}/*", usual.registry)];
    in_force(cluster, kyverno, "signed", &rule(&both[..1]));
    let unsigned = format!("{host}/{UNSIGNED}:1.29");
    eventually("the policy denies", || {
        let answer = tried(&usual.unlabelled, &unsigned);
        answer.body.contains("no signatures found").then_some(())
    });
    assert_denied(&tried(&usual.labelled, &unsigned), "no signatures found");
    seen.add(
        "`verifyImages` for upstream's names; Kagami's configuration is called `zz-kagami…`",
        "denies an unsigned image with and without Kagami",
    );
    assert_eq!(
        created(&early.labelled, "unsigned", &unsigned),
        early.mirrored(&unsigned)
    );
    assert_denied(&tried(&early.unlabelled, &unsigned), "no signatures found");
    seen.add(
        "the same; Kagami's configuration is called `kagami…`, before `kyverno…`",
        "is silently not applied: the unsigned image is admitted",
    );
    let signed = format!("{host}/{SIGNED}:8");
    let pinned = format!("{signed}@{digest}");
    assert_eq!(created(&usual.unlabelled, "signed", &signed), pinned);
    assert_eq!(
        created(&usual.labelled, "signed", &signed),
        usual.mirrored(&pinned)
    );
    assert_eq!(original(&usual.labelled.pod("signed"), "app"), Some(&*pinned));
    seen.add(
        "the same, `zz-kagami…`, a signed image",
        "verifies and pins upstream's name; Kagami then rewrites it and keeps the digest",
    );
    cluster.delete(&format!("{POLICIES}/signed")).success();
    eventually("the policy is gone", || {
        (tried(&usual.unlabelled, &unsigned).status == 201).then_some(())
    });

    in_force(cluster, kyverno, "signed-both", &rule(&both));
    for namespace in [&usual.unlabelled, &usual.labelled, &early.labelled] {
        eventually("the policy denies", || {
            let answer = tried(namespace, &unsigned);
            answer.body.contains("no signatures found").then_some(())
        });
    }
    assert_eq!(created(&usual.labelled, "both", &signed), usual.mirrored(&pinned));
    assert_eq!(created(&early.labelled, "both", &signed), early.mirrored(&pinned));
    seen.add(
        "`verifyImages` for upstream's names and the mirror's, the signature copied to the mirror, whatever Kagami's \
         configuration is called",
        "denies an unsigned image, admits and pins a signed one",
    );
    cluster.delete(&format!("{POLICIES}/signed-both")).success();
    eventually("the policy is gone", || {
        (tried(&usual.unlabelled, &unsigned).status == 201).then_some(())
    });
    image_validating_policy(cluster, host, &key, [usual, early], seen);
}

/// The newer kind of policy. It judges in its validating webhook, which comes after all that mutate.
fn image_validating_policy(
    cluster: &Cluster,
    host: &str,
    key: &KeyPair,
    [usual, early]: [&Beside<'_>; 2],
    seen: &mut Sightings,
) {
    let names = [usual.names(), early.names()].concat();
    let upstream = format!("{host}/*");
    let both = [upstream, format!("{}/*", usual.registry)];
    let unsigned = format!("{host}/{UNSIGNED}:1.29");
    let signed = format!("{host}/{SIGNED}:8");
    let denied = "not signed by acme";

    let policy = image_policy("upstream", key, &names, &both[..1]);
    create(cluster, IMAGE_POLICIES, &policy);
    eventually("the policy denies", || {
        tried(&usual.unlabelled, &unsigned)
            .body
            .contains(denied)
            .then_some(())
    });
    assert_denied(&tried(&early.unlabelled, &unsigned), denied);
    for (beside, name) in [(usual, "zz-kagami"), (early, "kagami")] {
        let stored = created(&beside.labelled, name, &unsigned);
        assert!(stored.starts_with(&beside.mirrored(&unsigned)), "{stored}");
    }
    seen.add(
        "ImageValidatingPolicy for upstream's names, whatever Kagami's configuration is called",
        "judges in its validating webhook, after Kagami: is silently not applied to the rewritten Pod, and the \
         unsigned image is admitted",
    );
    remove_image_policy(cluster, usual, "upstream", &unsigned);

    let policy = image_policy("both", key, &names, &both);
    create(cluster, IMAGE_POLICIES, &policy);
    for namespace in [&usual.unlabelled, &usual.labelled, &early.labelled] {
        eventually("the policy denies", || {
            tried(namespace, &unsigned).body.contains(denied).then_some(())
        });
    }
    let stored = created(&usual.unlabelled, "judged", &signed);
    assert!(stored.starts_with(&signed), "{stored}");
    let stored = created(&usual.labelled, "judged", &signed);
    assert!(stored.starts_with(&usual.mirrored(&signed)), "{stored}");
    seen.add(
        "the same for upstream's names and the mirror's, the signature copied to the mirror",
        "denies an unsigned image and admits a signed one, with and without Kagami",
    );
    remove_image_policy(cluster, usual, "both", &unsigned);
}

fn image_policy(name: &str, key: &KeyPair, namespaces: &[&str], images: &[String]) -> Value {
    let globs: Vec<_> = images.iter().map(|glob| json!({"glob": glob})).collect();
    json!({
        "apiVersion": "policies.kyverno.io/v1beta1",
        "kind": "ImageValidatingPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "validationActions": ["Deny"],
            "webhookConfiguration": {"timeoutSeconds": 15},
            "matchConstraints": {
                "namespaceSelector": {"matchExpressions": [
                    {"key": "kubernetes.io/metadata.name", "operator": "In", "values": namespaces},
                ]},
                "resourceRules": [{
                    "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"],
                }],
            },
            "matchImageReferences": globs,
            "credentials": {"allowInsecureRegistry": true},
            "attestors": [{"name": "acme", "cosign": {
                "key": {"data": key.public_key_pem()},
                "ctlog": {"insecureIgnoreTlog": true, "insecureIgnoreSCT": true},
            }}],
            "validations": [{
                "expression": "images.containers.map(image, verifyImageSignatures(image, [attestors.acme]))\
                               .all(count, count > 0)",
                "message": "not signed by acme",
            }],
        },
    })
}

fn remove_image_policy(cluster: &Cluster, beside: &Beside<'_>, name: &str, denied: &str) {
    cluster.delete(&format!("{IMAGE_POLICIES}/{name}")).success();
    eventually("the policy is gone", || {
        (tried(&beside.unlabelled, denied).status == 201).then_some(())
    });
}

fn allow_lists(cluster: &Cluster, beside: &Beside<'_>, seen: &mut Sightings) {
    let Beside {
        labelled, unlabelled, ..
    } = beside;
    let rule = |images: &str| {
        json!({
            "name": "registries",
            "match": {"any": [{"resources": {"kinds": ["Pod"], "namespaces": beside.names()}}]},
            "validate": {
                "failureAction": "Enforce",
                "message": "not from acme",
                "pattern": {"spec": {"containers": [{"image": images}]}},
            },
        })
    };
    let ours = "ghcr.io/acme/*";
    create(cluster, POLICIES, &policy("allow-acme", &rule(ours)));
    eventually("the policy denies", || {
        (tried(unlabelled, "nginx:1.29").status != 201).then_some(())
    });
    tried(unlabelled, OURS).success();
    assert_denied(&tried(labelled, OURS), "not from acme");
    stdout(&labelled.kubectl(&["create", "deployment", "web", "--image", OURS]));
    let told = failed_create(labelled);
    assert!(told.contains("not from acme"), "{told}");
    seen.add(
        "`validate`: images come from `ghcr.io/acme/*` only",
        "denies the rewritten Pod, admits the same one where Kagami is not asked; the Deployment is admitted, and \
         only an Event `FailedCreate` of its ReplicaSet tells",
    );
    cluster.delete(&format!("{POLICIES}/allow-acme")).success();

    let both = format!("{ours} | {}", beside.mirrored(ours));
    create(cluster, POLICIES, &policy("allow-both", &rule(&both)));
    eventually("the policy denies", || {
        (tried(unlabelled, "nginx:1.29").status != 201).then_some(())
    });
    eventually("the other one is gone", || {
        (tried(labelled, OURS).status == 201).then_some(())
    });
    assert_eq!(created(unlabelled, "listed", OURS), OURS);
    assert_eq!(created(labelled, "listed", OURS), beside.mirrored(OURS));
    assert_denied(&tried(labelled, "nginx:1.29"), "not from acme");
    seen.add(
        "the same with both names",
        "admits both, denies the images of others in both",
    );
    cluster.delete(&format!("{POLICIES}/allow-both")).success();
}

fn policy(name: &str, rule: &Value) -> Value {
    json!({
        "apiVersion": "kyverno.io/v1",
        "kind": "ClusterPolicy",
        "metadata": {"name": name},
        "spec": {
            "background": false,
            "webhookConfiguration": {"failurePolicy": "Fail", "timeoutSeconds": 15},
            "rules": [rule],
        },
    })
}

/// Creates a policy and waits until Kyverno calls it ready.
fn in_force(cluster: &Cluster, kyverno: &mut Process, name: &str, rule: &Value) {
    create(cluster, POLICIES, &policy(name, rule));
    within(Duration::from_mins(3), "the policy is ready", || {
        kyverno.assert_alive();
        let stored = cluster.get(&format!("{POLICIES}/{name}")).success();
        let mut conditions = stored["status"]["conditions"].as_array()?.iter();
        conditions
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
            .then_some(())
    });
}

/// Starts Kyverno's admission controller outside the cluster, as its developers do.
fn start(cluster: &Cluster) -> Process {
    apply(cluster, &[&brought(cluster, "kyverno")]);
    let namespace = json!({"metadata": {"name": "kyverno"}});
    cluster.create("/api/v1/namespaces", &namespace).success();
    for (name, data) in [
        (
            "kyverno",
            json!({"enableDefaultRegistryMutation": "true", "defaultRegistry": "docker.io"}),
        ),
        ("kyverno-metrics", json!({})),
    ] {
        let map = json!({"metadata": {"name": name}, "data": data});
        cluster
            .create("/api/v1/namespaces/kyverno/configmaps", &map)
            .success();
    }
    let port = reserve_port();
    let home = cluster.folder().join("kyverno");
    fs::create_dir_all(&home).unwrap();
    let mut command = Command::new(cluster.tools.path("kyverno"));
    command
        .arg(format!(
            "--kubeconfig={}",
            cluster.folder().join("admin.kubeconfig").display()
        ))
        .arg(format!("--serverIP=127.0.0.1:{port}"))
        .arg(format!("--webhookServerPort={port}"))
        .args([
            "--webhookServerHost=127.0.0.1",
            "--controllerRuntimeMetricsAddress=0",
            "--disableMetrics=true",
            "--autoMemLimitEnabled=false",
            "--admissionReports=false",
            "--allowInsecureRegistry=true",
            "--caSecretName=kyverno-svc.kyverno.svc.kyverno-tls-ca",
            "--tlsSecretName=kyverno-svc.kyverno.svc.kyverno-tls-pair",
            "--backgroundServiceAccountName=system:serviceaccount:kyverno:kyverno-background-controller",
            "--reportsServiceAccountName=system:serviceaccount:kyverno:kyverno-reports-controller",
        ])
        .envs([
            ("KYVERNO_NAMESPACE", "kyverno"),
            ("KYVERNO_POD_NAME", "kyverno-0"),
            ("KYVERNO_DEPLOYMENT", "kyverno-admission-controller"),
            ("KYVERNO_SVC", "kyverno-svc"),
            ("KYVERNO_SERVICEACCOUNT_NAME", "kyverno-admission-controller"),
            ("KYVERNO_ROLE_NAME", "kyverno:admission-controller"),
            ("INIT_CONFIG", "kyverno"),
            ("METRICS_CONFIG", "kyverno-metrics"),
        ])
        .env("HOME", &home);
    Process::start("kyverno", &command, cluster.folder())
}
