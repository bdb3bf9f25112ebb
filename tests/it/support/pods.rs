//! Random Pods as JSON: what users, other webhooks and forgers may send. Also used by the tests
//! within the library, so this knows nothing of Kagami but the names that are its interface.

use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Map, Value, json};

/// Digests that images are pinned to.
pub const DIGESTS: [&str; 2] = [
    "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
];

/// Repositories that Pods name, in forms that users write.
pub const NAMES: [&str; 9] = [
    "nginx",
    "docker.io/library/nginx",
    "index.docker.io/library/redis",
    "bitnami/redis",
    "quay.io/team/app",
    "Quay.IO/team/app",
    "registry.example.com:5000/a/b/c",
    "[FD00:0::2]:5000/app",
    "localhost/app",
];

/// What stands before a mirror's repositories.
pub const REGISTRIES: [&str; 4] = [
    "m0.example.com",
    "m1.example.com:5000/cache",
    "[FD00:0::1]:5000",
    "Shared.example.com/all",
];

/// Returns a reference that users write, from `NAMES`, with tag, digest, both or neither.
pub fn upstream() -> impl Strategy<Value = String> {
    let tag = select(vec!["", ":1", ":latest", ":v1.2.3-rc.1_x"]);
    let digest = prop_oneof![6 => Just(""), 1 => Just(DIGESTS[0]), 1 => Just(DIGESTS[1])];
    (select(NAMES.to_vec()), tag, digest).prop_map(|(name, tag, digest)| {
        let at = if digest.is_empty() { "" } else { "@" };
        format!("{name}{tag}{at}{digest}")
    })
}

/// Returns a reference in a mirror's registry, one that Kagami may have written or not.
pub fn mirrored() -> impl Strategy<Value = String> {
    let path = select(vec![
        "docker.io/library/nginx",
        "docker.io/library/nginx:1",
        "docker.io/bitnami/redis:latest",
        "quay.io/team/app:1",
        "anything",
    ]);
    let pin = prop_oneof![3 => Just(String::new()), 1 => Just(format!("@{}", DIGESTS[0]))];
    (select(REGISTRIES.to_vec()), path, pin)
        .prop_map(|(registry, path, pin)| format!("{registry}/{path}{pin}"))
}

/// Returns anything that may stand in an `image`.
pub fn image() -> impl Strategy<Value = String> {
    let odd = vec![
        "",
        "nginx:",
        "UPPER/Case",
        "Upper",
        "a//b",
        "nginx@md5:00",
        "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "docker.io/nginx@sha256:short",
    ];
    prop_oneof![
        12 => upstream(),
        3 => mirrored(),
        1 => select(odd).prop_map(str::to_owned),
        1 => any::<String>(),
        1 => (240..256_usize).prop_map(|length| format!("docker.io/a/{}", "x".repeat(length))),
    ]
}

fn kinds_of_names() -> impl Strategy<Value = &'static str> {
    prop_oneof![8 => Just("c"), 1 => Just("~"), 1 => Just("a/b"), 1 => Just("é\"\\\u{1}鏡")]
}

/// Absent, null, or a value.
fn perhaps(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![2 => Just(None), 1 => Just(Some(Value::Null)), 5 => value.prop_map(Some)]
}

fn object(fields: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Value {
    let fields = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(fields.collect())
}

fn policy() -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        6 => Just(Some(json!("IfNotPresent"))),
        1 => Just(Some(json!("Never"))),
        1 => Just(None),
    ]
}

fn containers(at_most: usize) -> impl Strategy<Value = Option<Value>> {
    let container = (
        kinds_of_names(),
        option::weighted(0.95, image()),
        policy(),
        any::<bool>(),
    )
        .prop_map(|(name, image, policy, sidecar)| {
            object([
                ("name", Some(json!(name))),
                ("image", image.map(Value::from)),
                ("env", Some(json!([{"name": "image", "value": "nginx"}]))),
                ("imagePullPolicy", policy),
                ("restartPolicy", sidecar.then(|| json!("Always"))),
            ])
        });
    perhaps(vec(container, 0..=at_most).prop_map(Value::from))
}

fn volumes() -> impl Strategy<Value = Option<Value>> {
    let image = (option::weighted(0.9, image()), policy())
        .prop_map(|(image, policy)| object([("reference", image.map(Value::from)), ("pullPolicy", policy)]));
    let volume = (kinds_of_names(), perhaps(image)).prop_map(|(name, image)| {
        object([
            ("emptyDir", image.is_none().then(|| json!({}))),
            ("name", Some(json!(name))),
            ("image", image),
        ])
    });
    perhaps(vec(volume, 0..3).prop_map(Value::from))
}

fn pull_secrets() -> impl Strategy<Value = Option<Value>> {
    let secret = select(vec!["mine", "kagami-pull", "other"]).prop_map(|name| json!({"name": name}));
    perhaps(vec(secret, 0..3).prop_map(Value::from))
}

fn architecture() -> impl Strategy<Value = &'static str> {
    select(vec!["amd64", "amd64", "amd64", "arm64", "z80"])
}

fn os() -> impl Strategy<Value = &'static str> {
    select(vec!["linux", "linux", "linux", "windows", "plan9"])
}

/// A label of nodes that tells of their platform, and a value of it.
fn platform_label() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop_oneof![
        (
            select(vec!["kubernetes.io/arch", "beta.kubernetes.io/arch"]),
            architecture()
        ),
        (select(vec!["kubernetes.io/os", "beta.kubernetes.io/os"]), os()),
    ]
}

fn affinity() -> impl Strategy<Value = Option<Value>> {
    let expression = (
        prop_oneof![platform_label(), Just(("zone", "a"))],
        select(vec!["In", "NotIn"]),
        vec(prop_oneof![architecture(), os()], 0..2),
    )
        .prop_map(|((key, value), operator, mut values)| {
            values.push(value);
            json!({"key": key, "operator": operator, "values": values})
        });
    let term = perhaps(vec(expression, 0..3).prop_map(Value::from))
        .prop_map(|expressions| object([("matchExpressions", expressions)]));
    perhaps(vec(term, 0..3).prop_map(|terms| {
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}})
    }))
}

/// The decisions that a forger, or another version, may have written.
fn decisions() -> impl Strategy<Value = String> {
    let entry = (select(vec!["Rewritten", "Kept"]), select(vec!["m0", "m1", "m2", "no"]))
        .prop_map(|(outcome, mirror)| json!({"outcome": outcome, "reason": "Mirrored", "mirror": mirror, "x": [1e3]}));
    let told = vec(
        (
            select(vec!["containers.c0", "initContainers.c10", "volumes.c0", "x"]),
            entry,
        ),
        0..4,
    );
    let told = told.prop_map(|entries| {
        let entries: Map<String, Value> = entries
            .into_iter()
            .map(|(place, entry)| (place.to_owned(), entry))
            .collect();
        Value::Object(entries).to_string()
    });
    prop_oneof![3 => told, 1 => any::<String>(), 1 => Just("{\"containers.c0\":null}".to_owned())]
}

fn annotations() -> impl Strategy<Value = Option<Value>> {
    let ours = vec(
        (
            select(vec!["image", "volume"]),
            select(vec!["c0", "c1", "c10", "~0", "a/b0", "gone"]),
            image(),
        ),
        0..4,
    );
    let foreign = vec(
        (
            select(vec!["a~b", "x/y", "~1/~0", "plain", "é\"\n"]),
            any::<String>(),
        ),
        0..3,
    );
    let tuple = (
        ours,
        foreign,
        option::weighted(0.3, decisions()),
        prop::bool::weighted(0.03),
    );
    perhaps(tuple.prop_map(|(ours, foreign, decisions, static_pod)| {
        let ours = ours
            .into_iter()
            .map(|(kind, name, image)| (format!("original-{kind}.kagami.dev/{name}"), image));
        let foreign = foreign.into_iter().map(|(key, value)| (key.to_owned(), value));
        let decisions = decisions.map(|text| ("kagami.dev/decisions".to_owned(), text));
        let static_pod = static_pod.then(|| ("kubernetes.io/config.mirror".to_owned(), "1".to_owned()));
        ours.chain(foreign)
            .chain(decisions)
            .chain(static_pod)
            .map(|(key, value)| (key, Value::from(value)))
            .collect::<Map<_, _>>()
            .into()
    }))
}

fn labels() -> impl Strategy<Value = Option<Value>> {
    let mode = prop_oneof![12 => Just(None), 2 => Just(Some("enforce")), 1 => Just(Some("warn")), 1 => Just(Some("no"))];
    perhaps(mode.prop_map(|mode| {
        object([
            ("app", Some(json!("kagami.dev/mode"))),
            ("kagami.dev/mode", mode.map(Value::from)),
        ])
    }))
}

fn owners() -> impl Strategy<Value = Option<Value>> {
    let owner = select(vec![
        ("apps/v1", "ReplicaSet"),
        ("v1", "Node"),
        ("postgresql.cnpg.io/v1", "Cluster"),
    ]);
    let owner = owner
        .prop_map(|(version, kind)| json!({"apiVersion": version, "kind": kind, "name": "o", "uid": kind}));
    perhaps(vec(owner, 0..2).prop_map(Value::from))
}

/// Gives every container and every volume a name of its own, as the API server demands.
fn make_names_unique(spec: &mut Value) {
    for (list, start) in [
        ("containers", 0),
        ("initContainers", 10),
        ("ephemeralContainers", 20),
        ("volumes", 0),
    ] {
        for (number, entry) in (start..).zip(spec[list].as_array_mut().into_iter().flatten()) {
            let name = entry["name"].as_str().unwrap_or_default();
            entry["name"] = format!("{name}{number}").into();
        }
    }
}

/// Returns a Pod whose names are unique, with any annotations, forged ones among them.
pub fn pod() -> impl Strategy<Value = Value> {
    let metadata = (annotations(), labels(), owners(), option::of(Just("pod"))).prop_map(
        |(annotations, labels, owners, name)| {
            object([
                ("generateName", Some(json!("pod-"))),
                ("name", name.map(Value::from)),
                ("labels", labels),
                ("annotations", annotations),
                ("ownerReferences", owners),
                (
                    "managedFields",
                    Some(json!([{"fieldsV1": {"f:spec": {"k:{\"name\":\"c0\"}": {"f:image": {}}}}}])),
                ),
            ])
        },
    );
    let selector = perhaps(vec(platform_label(), 0..3).prop_map(|labels| {
        let labels = labels.into_iter().chain([("zone", "a")]);
        labels
            .map(|(key, value)| (key.to_owned(), json!(value)))
            .collect()
    }));
    let os = perhaps(os().prop_map(|name| json!({"name": name})));
    let spec = (
        containers(4),
        containers(2),
        containers(2),
        volumes(),
        pull_secrets(),
        selector,
        affinity(),
        os,
    );
    let spec = spec.prop_map(
        |(containers, init, ephemeral, volumes, secrets, selector, affinity, os)| {
            let mut spec = object([
                ("volumes", volumes),
                ("initContainers", init),
                ("containers", containers),
                ("ephemeralContainers", ephemeral),
                ("imagePullSecrets", secrets),
                ("nodeSelector", selector),
                ("affinity", affinity),
                ("os", os),
                ("image", Some(json!("nginx"))),
            ]);
            make_names_unique(&mut spec);
            spec
        },
    );
    (metadata, spec).prop_map(|(metadata, spec)| {
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": {"image": "nginx"}})
    })
}
