//! Text from outside, as commands show it: nobody takes it for something else, and nothing of it acts on a
//! terminal.

use serde_json::{Value, json};

use crate::{
    shared::mirror::image_mirror,
    support::{
        commands::{Told, everything, run, run_with},
        faulty::{Behaviour, Faulty},
    },
};

async fn kagami(arguments: &[&str], input: &str) -> Told {
    let registry = Faulty::start(Behaviour::answer(everything)).await;
    run(
        &registry.url(),
        &[arguments, &["--budget", "20s"]].concat(),
        input.as_bytes(),
    )
    .await
}

/// Whether nothing in a text acts on a terminal, but for the ends of lines.
#[track_caller]
fn assert_inert(text: &str) {
    let inert = |character: char| character == '\n' || !character.is_control();
    assert!(text.chars().all(inert), "{text:?}");
}

#[tokio::test]
async fn images_with_spaces_are_seen_and_stay_word_for_word() {
    let text = "\
# spaces.yaml
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}, annotations: null}
    spec:
      containers:
      - {name: a, image: \" \"}
      - {name: b, image: \"quay.io/centos/centos:8 \"}
      - {name: c, image: \"nginx:1.27\\n\"}
      - {name: d, image: \"\"}
      - {name: e}
      - {name: f, image: \"nginx:1.27\"}
      initContainers: null
";
    let told = kagami(&["review", "input"], text).await;
    assert_eq!(told.code, 0, "{}", told.complaints);
    for (line, expected) in text.lines().zip(told.out.lines()) {
        if line.contains("annotations: null") {
            assert!(
                expected.contains("annotations: {\"original-image.kagami.dev/f\": \"nginx:1.27\""),
                "{expected}"
            );
        } else if line.contains("name: f") {
            assert_eq!(
                expected,
                "      - {name: f, image: \"mirror.test/docker.io/library/nginx:1.27\"}"
            );
        } else {
            assert_eq!(line, expected);
        }
    }
    assert_inert(&told.complaints);
    for expected in [
        "containers.a  Kept       InvalidReference  -       \" \"",
        "InvalidReference  -       \"quay.io/centos/centos:8 \"",
        "InvalidReference  -       \"nginx:1.27\\n\"",
        "web containers.a: \" \": it is blank",
        "web containers.b: \"quay.io/centos/centos:8 \": white space or a control character stands in the reference",
        "web containers.c: \"nginx:1.27\\n\": white space or a control character stands in the reference",
    ] {
        assert!(
            told.complaints.contains(expected),
            "no {expected} in\n{}",
            told.complaints
        );
    }
}

#[tokio::test]
async fn no_image_forges_a_row_or_acts_on_a_terminal() {
    let image = "x\nteam  web  containers.a  Rewritten  Mirrored\u{1b}[2K\u{202e}";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a\rb", "namespace": "\u{1b}]0;x\u{7}"},
        "spec": {"containers": [{"name": "c\nd", "image": image}, {"name": "e", "image": "redis"}]},
    });
    let told = kagami(&["review", "input"], &pod.to_string()).await;
    assert_eq!(told.code, 0, "{}", told.complaints);
    assert_inert(&told.complaints);
    // A heading, a row for each image, and what is wrong with one.
    assert_eq!(told.complaints.lines().count(), 4, "{}", told.complaints);
    assert!(!told.complaints.contains('\u{202e}'), "{}", told.complaints);
    let explained = kagami(&["explain", image], "").await;
    assert_inert(&explained.out);
    let beginnings: Vec<&str> = explained
        .out
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(
        beginnings,
        ["image", "but", "namespace", "decision", "pull"],
        "{}",
        explained.out
    );
    // Not even where it is no text of an image.
    let bad = kagami(&["review", "no\u{1b}[2K\nsuch"], "").await;
    assert_eq!(bad.code, 2);
    assert_inert(&bad.complaints);
    assert_eq!(bad.complaints.lines().count(), 1, "{}", bad.complaints);
}

#[tokio::test]
async fn resolve_says_why_it_gave_back_what_it_got() {
    for (image, why) in [
        (
            "nginx:1.27 ",
            "\"nginx:1.27 \": Kept InvalidReference: The image is no valid reference, or one that cannot be proven. Namely: white space or a control character stands in the reference.",
        ),
        ("nginx:1.27\r", "\"nginx:1.27\\r\": Kept InvalidReference: "),
        (
            "",
            "\"\": Kept InvalidReference: The image is no valid reference, or one that cannot be proven. Namely: the reference names no repository.",
        ),
        ("Nginx", "Namely: the repository must be in lower case."),
        (
            "quay.io/a/b",
            "quay.io/a/b: Kept NoMirror: No mirror has a source for this image.",
        ),
        (
            "missing:1",
            "missing:1: Kept ImageMissing (main): The mirror does not hold this image.",
        ),
    ] {
        let told = kagami(&["resolve", "nginx:1", image], "").await;
        assert_eq!(
            (told.code, told.out),
            (0, format!("mirror.test/docker.io/library/nginx:1\n{image}\n"))
        );
        assert!(told.complaints.contains(why), "no {why} in {}", told.complaints);
        // Of what is on the mirror there is nothing to say.
        assert_eq!(told.complaints.lines().count(), 1, "{}", told.complaints);
    }
    let told = kagami(&["resolve", "--verbose", "nginx:1"], "").await;
    assert!(
        told.complaints.contains("nginx:1: Rewritten Mirrored (main)"),
        "{}",
        told.complaints
    );
}

#[tokio::test]
async fn explain_names_what_is_pulled() {
    let digest = format!("redis:8@sha256:{}", "a".repeat(64));
    for (image, pulled) in [
        ("nginx", "docker.io/library/nginx:latest".to_owned()),
        ("ghcr.io/a/b", "ghcr.io/a/b:latest".to_owned()),
        ("index.docker.io/a/b:1", "docker.io/a/b:1".to_owned()),
        (&digest, format!("docker.io/library/{digest}")),
    ] {
        let told = kagami(&["explain", image, "--output", "json"], "").await;
        let explanation: Value = serde_json::from_str(&told.out).unwrap();
        assert_eq!(explanation["normalized"], pulled, "{}", told.out);
        let told = kagami(&["explain", image], "").await;
        assert!(
            told.out.contains(&format!("\nmeans       {pulled}\n")),
            "{}",
            told.out
        );
    }
    let told = kagami(&["explain", " "], "").await;
    assert!(
        told.out.starts_with("image       \" \"\nbut         it is blank"),
        "{}",
        told.out
    );
}

#[tokio::test]
async fn explain_names_the_mirror_that_keeps_an_image_for_others() {
    let registry = Faulty::start(Behaviour::answer(everything)).await;
    let mirror =
        |name: &str, more: &Value| image_mirror(name, "mirror.test", &["docker.io"], &registry.url(), more);
    let acme = json!({
        "namespaceSelector": {"matchLabels": {"team": "acme"}},
        "sources": [{"prefix": "docker.io/acme", "access": "Private"}],
        "priority": 1,
    });
    let mirrors = [mirror("main", &json!({})), mirror("acme", &acme)];
    let told = run_with(&mirrors, &["explain", "acme/secret:1"]).await;
    let closed = "\n  closed by acme, which keeps what lies at this place for the namespaces that it serves\n  verdict   \
                  Kept NamespaceNotServed\n";
    assert_eq!(told.out.matches(closed).count(), 1, "{}", told.out);
    let arguments = ["explain", "acme/secret:1", "--output", "json"];
    let told = run_with(&mirrors, &arguments).await;
    let told: Value = serde_json::from_str(&told.out).unwrap();
    let closed_by: Vec<_> = told["mirrors"].as_array().unwrap().iter().collect();
    let closed_by = closed_by
        .iter()
        .map(|mirror| (&mirror["name"], &mirror["closedBy"]));
    assert_eq!(
        closed_by.collect::<Vec<_>>(),
        [(&json!("main"), &json!("acme")), (&json!("acme"), &Value::Null)]
    );
}
