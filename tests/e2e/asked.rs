//! `kagami explain`, `resolve` and `review` as a person runs them against a cluster; the test is the
//! companion.

use std::{fs, time::Duration};

use kagami::clock;
use serde_json::{Value, json};

use crate::support::{
    chart::stdout,
    cluster::Cluster,
    command::{assert_fails, kagami, run},
    images::push,
    reader::{Heart, Reader},
};

pub(crate) fn explain_tells_what_is_shared_and_what_is_seen_from_here(cluster: &Cluster) {
    let mut reader = Reader::start(cluster, "Hosted", |_| ());
    let _heart = Heart::start(&reader);
    let image = reader.image("known:1");
    reader.wait_until_fresh();
    reader.share_healthy(clock::now().before(Duration::from_mins(1)));
    reader.know(&image, clock::now().before(Duration::from_secs(30)));
    let served = cluster.namespace(Some("enforce"));

    let told = explain(&reader, &["-n", &served.name, &image]);
    let mirrored = format!("{}/{image}", crate::support::mirror::REGISTRY);
    let decision = &told["decision"];
    assert_eq!(
        (&decision["outcome"], &decision["reason"], &decision["image"]),
        (&json!("Rewritten"), &json!("Mirrored"), &json!(mirrored)),
        "{told}"
    );
    assert!(
        told["cluster"]["heartbeatAgeSeconds"].as_f64().unwrap() < 10.0,
        "{told}"
    );
    let mirror = &told["mirrors"][0];
    assert_eq!(mirror["presence"], "Present");
    assert_eq!(mirror["digest"], format!("sha256:{}", "a".repeat(64)));
    let age = mirror["proofAgeSeconds"].as_f64().unwrap();
    assert!((30.0..60.0).contains(&age), "{age}");
    assert_eq!(mirror["shared"]["health"], "Healthy");
    assert_eq!(mirror["shared"]["stale"], false);
    // The test told of an image that the mirror does not have: the two are told apart.
    assert_eq!(mirror["fromHere"]["health"], "Healthy");
    assert_eq!(mirror["fromHere"]["presence"], "Missing", "{told}");

    // The same for people.
    let text = stdout(&kagami(&reader, &["explain", "-n", &served.name, &image]));
    for expected in ["mode enforce", "Present as sha256:aaaa", "Rewritten Mirrored"] {
        assert!(text.contains(expected), "no {expected} in\n{text}");
    }

    let audited = cluster.namespace(Some("audit"));
    let told = explain(&reader, &["-n", &audited.name, &image]);
    assert_eq!(told["decision"]["outcome"], "WouldRewrite");
    assert_eq!(told["decision"]["image"], image.as_str());
    assert_eq!(told["decision"]["wouldBe"], mirrored);
    let unlabelled = cluster.namespace(None);
    let told = explain(&reader, &["-n", &unlabelled.name, &image]);
    assert_eq!(told["mode"], "off");
    assert_eq!(told["decision"]["image"], image.as_str());
    assert!(
        told["notes"].to_string().contains("is not asked about Pods"),
        "{told}"
    );
    let told = explain(
        &reader,
        &["-n", &unlabelled.name, "--default-mode", "enforce", &image],
    );
    assert_eq!(told["decision"]["image"], mirrored);
    let told = explain(
        &reader,
        &["-n", &served.name, "--left-alone", &served.name, &image],
    );
    assert_eq!(told["decision"]["reason"], "NamespaceNotServed");
}

pub(crate) fn explain_looks_itself_while_the_state_is_stale(cluster: &Cluster) {
    let reader = Reader::start(cluster, "Hosted", |_| ());
    let image = reader.image("known:1");
    let served = cluster.namespace(Some("enforce"));
    reader.share_healthy(clock::now().before(Duration::from_mins(1)));
    reader.know(&image, clock::now());
    let told = explain(&reader, &["-n", &served.name, &image]);
    assert_eq!(told["mirrors"][0]["shared"]["stale"], true, "{told}");
    assert_eq!(told["decision"]["reason"], "ImageMissing", "{told}");
    assert!(told["notes"].to_string().contains("no heartbeat"), "{told}");
    push(&cluster.http, &reader.mirror.url, &reader.image("known"), "1");
    let told = explain(&reader, &["-n", &served.name, &image]);
    assert_eq!(told["decision"]["reason"], "Mirrored", "{told}");
}

pub(crate) fn few_rights_are_enough_for_an_explanation(cluster: &Cluster) {
    let mut reader = Reader::start(cluster, "Hosted", |mirror| {
        mirror["spec"]["endpoint"]["credentials"] = json!({"secretRef": {"name": "read"}});
    });
    let _heart = Heart::start(&reader);
    let image = reader.image("known:1");
    reader.wait_until_fresh();
    reader.share_healthy(clock::now().before(Duration::from_mins(1)));
    reader.know(&image, clock::now());
    let served = cluster.namespace(Some("enforce"));
    let as_webhook = reader.kubeconfig.to_str().unwrap();
    let told = explain(&reader, &["--kubeconfig", as_webhook, "-n", &served.name, &image]);
    assert_eq!(told["decision"]["outcome"], "Rewritten", "{told}");
    let notes = told["notes"].to_string();
    assert!(
        notes.contains("cannot read the credentials of mirrors"),
        "{notes}"
    );

    // Somebody without any rights.
    let nobody = cluster.folder().join("companion-b.kubeconfig");
    let output = kagami(
        &reader,
        &["explain", "--kubeconfig", nobody.to_str().unwrap(), &image],
    );
    assert_fails(
        &output,
        1,
        "cannot read imagemirrors: imagemirrors.kagami.dev is forbidden",
    );
}

pub(crate) fn resolve_answers_whatever_the_cluster_does(cluster: &Cluster) {
    let (reader, _heart, known) = Reader::fresh(cluster);
    let other = reader.image("other:1");
    let text = stdout(&kagami(&reader, &["resolve", &known, &other, "nginx"]));
    let registry = crate::support::mirror::REGISTRY;
    assert_eq!(text, format!("{registry}/{known}\n{other}\nnginx\n"));

    // Nothing listens there.
    let away = fs::read_to_string(cluster.folder().join("admin.kubeconfig")).unwrap();
    let away = away.replace(&cluster.url, "https://127.0.0.1:9");
    let file = cluster.folder().join("away.kubeconfig");
    fs::write(&file, away).unwrap();
    let output = kagami(
        &reader,
        &["resolve", "--kubeconfig", file.to_str().unwrap(), &known],
    );
    assert_fails(&output, 1, "cannot read imagemirrors");
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{known}\n"));
}

pub(crate) fn review_answers_as_the_namespaces_labels_say(cluster: &Cluster) {
    let (reader, _heart, image) = Reader::fresh(cluster);
    let modes = ["enforce", "audit"].map(|mode| cluster.namespace(Some(mode)));
    let unlabelled = cluster.namespace(None);
    let documents = modes.iter().chain([&unlabelled]).map(|namespace| {
        let mut pod = crate::support::admission::pod("web", &image);
        pod["kind"] = "Pod".into();
        pod["metadata"]["namespace"] = namespace.name.as_str().into();
        pod.to_string()
    });
    let file = cluster.folder().join(format!("{}.yaml", reader.namespace.name));
    fs::write(&file, documents.collect::<Vec<_>>().join("\n---\n")).unwrap();
    let output = kagami(&reader, &["review", file.to_str().unwrap()]);
    stdout(&output);
    let told = String::from_utf8(output.stderr).unwrap();
    let decided: Vec<Vec<&str>> = told
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect())
        .collect();
    let decided: Vec<_> = decided.iter().map(|line| (line[0], line[3], line[4])).collect();
    let [enforce, audit] = &modes;
    let expected = [
        (enforce.name.as_str(), "Rewritten", "Mirrored"),
        (&audit.name, "WouldRewrite", "Mirrored"),
        (&unlabelled.name, "Kept", "ModeOff"),
    ];
    assert_eq!(decided, expected, "{told}");
}

pub(crate) fn without_a_cluster_one_line_says_so(cluster: &Cluster) {
    let absent = cluster.folder().join("no-such.kubeconfig");
    let run = |arguments: &[&str]| run(&absent, cluster.folder(), arguments);
    assert_fails(&run(&["explain", "nginx"]), 2, "no cluster: ");
    let resolved = run(&["resolve", "nginx"]);
    assert_fails(&resolved, 2, "no cluster: ");
    assert_eq!(String::from_utf8_lossy(&resolved.stdout), "nginx\n");
    let admin = cluster.folder().join("admin.kubeconfig");
    let output = run(&[
        "explain",
        "nginx",
        "--kubeconfig",
        admin.to_str().unwrap(),
        "--context",
        "other",
    ]);
    assert_fails(&output, 2, "other");
}

/// What `kagami explain` says to a program.
fn explain(reader: &Reader<'_>, arguments: &[&str]) -> Value {
    let output = kagami(reader, &[&["explain", "--output", "json"], arguments].concat());
    serde_json::from_str(&stdout(&output)).unwrap()
}

/// Manifests that other readers of YAML take for something else than Kubernetes does; IMAGE stands for one
/// that the mirror has.
const ODD: [&str; 3] = [
    "\
# A head, and a byte order mark before it.
---
apiVersion: v1
kind: Pod
metadata:
  name: modes   # a name
  annotations: {a: \"0644\", b: \"1_000\", c: \"on\", d: \"12e3\", e: \"0x1F\", f: \"22:22\", g: \"~\"}
spec:
  # one
  containers:
  - name: app
    image: IMAGE  # ours
    env: [{name: \"N\", value: \"007\"}, {name: \"Y\", value: \"y\"}]
    ports: [{containerPort: 0x1F90}]
    stdin: on
  - image: 'IMAGE'
    name: second
    command:
    - sh
    - -c
    - |
      # no comment
      image: IMAGE
    tty: no
  volumes:
  - {name: s, secret: {secretName: s, defaultMode: 0400}}
  - {name: c, configMap: {name: c, defaultMode: 0644, items: [{key: k, path: p, mode: 0755}]}}
---
# Nothing to rewrite.
apiVersion: v1
kind: ConfigMap
metadata: {name: odd}
data: {on: \"off\", 0400: \"0400\"}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: often}
spec:
  schedule: '* * * * *'
  startingDeadlineSeconds: 1_000
  suspend: yes
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          initContainers: [{name: i, image: \"IMAGE\"}]
          containers:
            - name: c
              image: >-
                IMAGE

              workingDir: /x
...
",
    "\
{
\t\"apiVersion\": \"v1\", \"kind\": \"List\",
\t\"items\": [
\t\t{
\t\t\t\"apiVersion\": \"apps/v1\", \"kind\": \"DaemonSet\", \"metadata\": {\"name\": \"tabs\", \"annotations\": {\"a\": \"\\ud83d\\ude00\"}},
\t\t\t\"spec\": {
\t\t\t\t\"selector\": {\"matchLabels\": {\"a\": \"b\"}},
\t\t\t\t\"template\": {
\t\t\t\t\t\"metadata\": {\"labels\": {\"a\": \"b\"}},
\t\t\t\t\t\"spec\": {\"containers\": [{\"name\": \"a\", \"image\": \"IMAGE\"}], \"terminationGracePeriodSeconds\": 1e2}
\t\t\t\t}
\t\t\t}
\t\t}
\t]
}
",
    // What no edit can change alone.
    "\
apiVersion: v1
kind: Pod
metadata: {name: anchors}
spec:
  containers:
  - &app
    name: app
    image: IMAGE
    env: [{name: \"N\", value: \"0400\"}, {name: O, value: \"on\"}]
  initContainers:
  - <<: *app
    name: init
  volumes:
  - {name: s, secret: {secretName: \"1_000\", defaultMode: 0400}}
",
];

pub(crate) fn what_review_writes_is_read_as_what_it_read(cluster: &Cluster) {
    let (reader, _heart, image) = Reader::fresh(cluster);
    // No webhook is asked there.
    let namespace = cluster.namespace(None);
    for (index, text) in ODD.into_iter().enumerate() {
        let mark = if index == 0 { "\u{feff}" } else { "" };
        let text = format!("{mark}{}", text.replace("IMAGE", &image));
        let [before, after] = ["before", "after"].map(|when| {
            let name = format!("{}-{index}-{when}.yaml", namespace.name);
            cluster.folder().join(name)
        });
        fs::write(&before, &text).unwrap();
        let arguments = ["review", before.to_str().unwrap(), "--mode", "enforce"];
        let output = kagami(&reader, &[&arguments[..], &["-n", &namespace.name]].concat());
        fs::write(&after, stdout(&output)).unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("Rewritten"), "{told}");
        let [before, after] = [before, after].map(|file| {
            let arguments = ["create", "--dry-run=server", "--output", "json", "--filename"];
            let output = namespace.kubectl(&[&arguments[..], &[file.to_str().unwrap()]].concat());
            let objects = serde_json::Deserializer::from_slice(stdout(&output).as_bytes())
                .into_iter::<Value>()
                .map(|object| object.map(comparable))
                .collect::<Result<Vec<_>, _>>();
            objects.unwrap()
        });
        let mirrored = format!("{}/{image}", crate::support::mirror::REGISTRY);
        let images = |objects: &[Value], image: &str| {
            let text = serde_json::to_string(objects).unwrap();
            text.matches(&format!("\"image\":\"{image}\"")).count()
        };
        let expected = images(&before, &image);
        assert!(expected > 0 && images(&after, &image) == 0, "{after:#?}");
        assert_eq!(images(&after, &mirrored), expected);
        let back = serde_json::to_string(&after).unwrap();
        let back = back.replace(
            &format!("\"image\":\"{mirrored}\""),
            &format!("\"image\":\"{image}\""),
        );
        let back: Vec<Value> = serde_json::from_str(&back).unwrap();
        assert_eq!(back, before);
    }
}

/// Returns an object without what differs from one creation to the next, and without Kagami's annotations.
pub(crate) fn comparable(mut object: Value) -> Value {
    match &mut object {
        Value::Object(fields) => {
            let given = [
                "uid",
                "creationTimestamp",
                "managedFields",
                "clusterIP",
                "clusterIPs",
                "nodePort",
                "controller-uid",
                "batch.kubernetes.io/controller-uid",
            ];
            fields.retain(|name, _| !given.contains(&name.as_str()));
            for (name, field) in fields.iter_mut() {
                if let ("annotations", Some(annotations)) = (name.as_str(), field.as_object_mut()) {
                    annotations.retain(|name, _| !name.contains("kagami.dev/"));
                }
                *field = comparable(field.take());
            }
            // One that was made for them alone.
            fields.retain(|name, field| name != "annotations" || field != &json!({}));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = comparable(item.take())),
        // The API server draws the rest of it.
        Value::String(text) if text.starts_with("kube-api-access-") => {
            text.truncate("kube-api-access-".len());
        }
        _ => {}
    }
    object
}
