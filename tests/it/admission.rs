//! Whole reviews through the real routes: every folder of `tests/fixtures/admission` is a case
//! (its README tells how they are made). What comes back from one must need nothing more, nor tell the
//! audit log otherwise: the API server refuses another value for a key, with a warning for each Pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use kagami::{
    clock,
    domain::{
        answer::MediaType,
        health::{Health, State},
        image::KeyRef,
        lent::Lent,
        mirror::Mirror,
        platform::Platforms,
        presence::{Presence, Proof},
        routing::Routing,
        standing::Standing,
        time::Timestamp,
    },
    state::{Configured, Store, file},
    webhook::{
        Admission,
        routes::{BODY_LIMIT, service},
    },
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    shared::reviews::{patched, response},
    support::reviews::{admission, healing},
};

const FILES: [&str; 4] = ["expected.json", "mirrors.yaml", "review.json", "state.json"];

/// `state.json`: what the companion would have found out, and which webhook is called.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Told {
    #[serde(default = "enforce")]
    mode: String,
    #[serde(default = "heal")]
    heal: bool,
    /// Namespaces that are never touched.
    #[serde(default)]
    left_alone: BTreeSet<String>,
    /// Hosts of upstream registries that fail.
    #[serde(default)]
    failing_upstreams: Vec<String>,
    /// What Pods record as the original of an image, by namespace and image.
    #[serde(default)]
    originals: BTreeMap<String, BTreeMap<String, String>>,
    mirrors: BTreeMap<String, ToldMirror>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ToldMirror {
    health: String,
    #[serde(default)]
    platforms: Vec<String>,
    #[serde(default)]
    pull_secret_namespaces: BTreeSet<String>,
    /// By key: `docker.io/library/nginx:1.27`, or with `@sha256:…`.
    images: BTreeMap<String, ToldImage>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ToldImage {
    Absent(Absent),
    Present(ToldPresent),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Absent {
    Missing,
    Unknown,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToldPresent {
    digest: String,
    /// Absent for a single manifest.
    platforms: Option<Vec<String>>,
    /// The operating system of a single manifest; absent where nobody knows.
    os: Option<String>,
    /// Whether everybody gets it upstream.
    public: Option<bool>,
}

fn enforce() -> String {
    "enforce".to_owned()
}

fn heal() -> bool {
    true
}

impl ToldImage {
    fn presence(&self) -> Presence {
        let ToldPresent {
            digest,
            platforms,
            os,
            public,
        } = match self {
            Self::Absent(Absent::Missing) => return Presence::Missing,
            Self::Absent(Absent::Unknown) => return Presence::Unknown(None),
            Self::Present(present) => present,
        };
        let of_single = os.as_deref().map_or(Platforms::ASSUMED, Platforms::of_os);
        Presence::Present(Proof {
            digest: digest.parse().unwrap(),
            media_type: platforms
                .as_ref()
                .map_or(MediaType::OciManifest, |_| MediaType::OciIndex),
            platforms: platforms.as_deref().map_or(of_single, set),
            size: None,
            public: *public,
        })
    }
}

fn set(names: &[String]) -> Platforms {
    names
        .iter()
        .map(|name| Platforms::parse(name).unwrap_or_else(|| panic!("{name} is no platform")))
        .fold(Platforms::NONE, Platforms::or)
}

fn store(mirrors: &str, told: &Told) -> Store {
    let configuration = file::load(mirrors, "mirrors.yaml").unwrap_or_else(|faults| panic!("{faults:?}"));
    let standing = |(mirror, _): &(Mirror, _)| {
        let told = told
            .mirrors
            .get(&mirror.name)
            .expect("state.json tells of every mirror");
        let standing = Standing {
            platforms: set(&told.platforms),
            pull_secret_namespaces: told.pull_secret_namespaces.clone(),
            ..Standing::NONE
        };
        (mirror.name.clone(), Arc::new(standing))
    };
    let standings = configuration.mirrors.iter().map(standing).collect();
    let mirrors = configuration.mirrors.into_iter().map(|(mirror, _)| mirror);
    let store = Store::default();
    let configured = Configured {
        routing: Routing::compile(mirrors.collect()),
        standings,
        namespaces: configuration.namespaces,
        left_alone: told.left_alone.clone(),
        ..Configured::default()
    };
    let now = clock::now();
    store.configure(configured, now);
    for (name, mirror) in &told.mirrors {
        let state = State::ALL
            .into_iter()
            .find(|state| state.as_str() == mirror.health)
            .expect("health is a state");
        let long_ago = Timestamp::from_millis(1);
        assert!(store.set_health(
            name,
            Health {
                state,
                fault: None,
                cause: None,
                since: long_ago,
                refused_since: None,
                proven_since: long_ago
            }
        ));
        for (key, image) in &mirror.images {
            let key = KeyRef::parse(key).expect("images are told by their keys");
            store.index_mut().write(name, key, image.presence(), now, now);
        }
    }
    let originals = told.originals.iter().flat_map(|(namespace, images)| {
        let line = move |(image, original)| format!("{}\n", json!([namespace, image, original]));
        images.iter().map(line)
    });
    store.set_lent(Arc::new(Lent::read(&originals.collect::<String>())));
    for host in &told.failing_upstreams {
        store.set_upstream(host, State::Unhealthy);
    }
    store
}

/// Posts a body as the API server does and returns the answer's bytes.
async fn post(admission: &Admission, mode: &str, body: impl Into<Body>) -> (StatusCode, Vec<u8>) {
    let request = Request::post(format!("/mutate/{mode}?timeout=2s"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.into())
        .unwrap();
    let answer = service(admission.clone()).call(request).await.unwrap();
    let (parts, body) = answer.into_parts();
    (parts.status, body.collect().await.unwrap().to_bytes().to_vec())
}

/// Returns the names within a folder, in order.
fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut entries: Vec<_> = entries.collect();
    entries.sort_unstable();
    entries
}

#[tokio::test]
async fn every_case_is_answered_as_expected() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/admission");
    let cases: Vec<_> = entries(&root)
        .into_iter()
        .filter(|name| name != "README.md")
        .collect();
    assert!(
        cases.len() >= 20,
        "only {} cases in {}",
        cases.len(),
        root.display()
    );
    let mut faults = Vec::new();
    for case in cases {
        let folder = root.join(&case);
        assert_eq!(entries(&folder), FILES, "the files of {case}");
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
        let told: Told =
            serde_json::from_str(&read("state.json")).unwrap_or_else(|error| panic!("{case}: {error}"));
        let admission = healing(store(&read("mirrors.yaml"), &told), told.heal);
        let body = read("review.json");
        let (status, answer) = post(&admission, &told.mode, body.clone()).await;
        assert_eq!(status, StatusCode::OK, "{case}");
        // A broken review has its UID all the same; the answer's form is checked against a whole one.
        let uid = json!({"uid": "e911857d-c318-11e8-bbad-025000000001"});
        let broken = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": uid});
        let review = serde_json::from_str(&body).unwrap_or(broken);
        let response = response(&answer, &review);
        let expected: Value =
            serde_json::from_str(&read("expected.json")).unwrap_or_else(|error| panic!("{case}: {error}"));
        if response != expected {
            faults.push(format!("{case}: answered {response:#}"));
            continue;
        }
        let mut review: Value = review;
        let object = review["request"]["object"].take();
        review["request"]["object"] = patched(&object, &response);
        let (_, again) = post(&admission, &told.mode, review.to_string()).await;
        let again = crate::shared::reviews::response(&again, &review);
        if again.get("patch").is_some() {
            faults.push(format!("{case}: not final, its own output is answered {again:#}"));
        }
        let keys = |response: &Value| {
            response["auditAnnotations"]
                .as_object()
                .cloned()
                .unwrap_or_default()
        };
        let first = keys(&response);
        for (key, value) in keys(&again) {
            if first.get(&key).is_some_and(|first| *first != value) {
                faults.push(format!(
                    "{case}: the audit log would be told {key} again: {value}"
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test]
async fn what_is_no_review_is_refused() {
    let admission = admission(Store::default());
    for body in [
        "",
        "{}",
        "null",
        "[",
        "{\"request\":{}}",
        "{\"request\":{\"uid\":\"\"}}",
        "\u{0}",
    ] {
        let (status, answer) = post(&admission, "enforce", body).await;
        assert_eq!(
            status,
            StatusCode::BAD_REQUEST,
            "{body}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
}

#[tokio::test]
async fn bytes_that_are_no_text_end_the_review_but_not_the_answer() {
    let body = b"{\"apiVersion\":\"admission.k8s.io/v1\",\"kind\":\"AdmissionReview\",\"request\":{\"uid\":\"u-1\",\"name\":\"\xff\"}}";
    let (status, answer) = post(&admission(Store::default()), "enforce", body.to_vec()).await;
    assert_eq!(status, StatusCode::OK);
    let review =
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {"uid": "u-1"}});
    let response = response(&answer, &review);
    assert_eq!(
        response["auditAnnotations"],
        json!({"review": "Kept Internal invalid UTF-8"})
    );
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let admission = admission(Store::default());
    for (method, path, expected) in [
        ("POST", "/mutate", StatusCode::NOT_FOUND),
        ("POST", "/mutate/enforce/", StatusCode::NOT_FOUND),
        ("POST", "/mutate/off?timeout=2s", StatusCode::NOT_FOUND),
        ("GET", "/mutate/enforce", StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Body::empty())
            .unwrap();
        let answer = service(admission.clone()).call(request).await.unwrap();
        assert_eq!(answer.status(), expected, "{method} {path}");
    }
}

#[tokio::test]
async fn a_body_past_the_limit_is_not_read() {
    let (status, _) = post(
        &admission(Store::default()),
        "enforce",
        vec![b' '; BODY_LIMIT + 1],
    )
    .await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}
