//! Whole reviews: nothing panics, every answer is JSON that allows, and a patch applies to the
//! Pod it answers and leaves nothing to do.

#![no_main]

use std::{cell::OnceCell, collections::BTreeMap, sync::Arc};

use kagami::{
    clock,
    domain::{
        answer::MediaType,
        health::{Health, State},
        image::KeyRef,
        mirror::Mode,
        platform::Platforms,
        presence::{Presence, Proof},
        routing::Routing,
        standing::Standing,
        time::Timestamp,
    },
    state::{Configured, Store, file},
    webhook::Admission,
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use reviews::admission;
use shared::reviews::{patched, response};

#[path = "../../tests/it/support/reviews.rs"]
#[expect(dead_code, reason = "tests make reviews, here they are the input")]
mod reviews;
#[path = "../../tests/support/reviews.rs"]
#[expect(dead_code, reason = "tests make reviews, here they are the input")]
mod shared_reviews;

/// What the tests' rings share, under the name that they have for it.
mod shared {
    pub(crate) use super::shared_reviews as reviews;
}

/// Two mirrors for one upstream, one of them with everything that a mirror may ask for.
const MIRRORS: &str = r#"
apiVersion: kagami.dev/v1alpha1
kind: ImageMirror
metadata: {name: main}
spec:
  registry: m.example.com
  kind: Hosted
  tags: {pin: Digest}
  pullSecret: {secretRef: {name: nodes}}
  sources: [{prefix: docker.io, exclude: ["**/redis"]}, {prefix: "[fd00::2]:5000"}]
---
apiVersion: kagami.dev/v1alpha1
kind: ImageMirror
metadata: {name: other}
spec:
  registry: "[FD00:0::1]:5000/cache"
  kind: PullThrough
  priority: 50
  sources: [{prefix: docker.io}]
---
apiVersion: v1
kind: Secret
metadata: {name: nodes}
type: kubernetes.io/dockerconfigjson
stringData: {.dockerconfigjson: '{"auths":{}}'}
"#;

const IMAGES: [&str; 3] = [
    "docker.io/library/nginx:1",
    "docker.io/library/redis:latest",
    "[fd00::2]:5000/a:latest",
];

thread_local! {
    static KAGAMI: OnceCell<(Runtime, Admission)> = const { OnceCell::new() };
}

fuzz_target!(|body: &[u8]| KAGAMI.with(|kagami| {
    let (runtime, admission) = kagami.get_or_init(start);
    check(runtime, admission, body);
}));

fn start() -> (Runtime, Admission) {
    let configuration = file::load(MIRRORS, "mirrors.yaml").expect("the mirrors are valid");
    let mut standings = BTreeMap::new();
    let mirrors = configuration.mirrors.into_iter().map(|(mut mirror, _)| {
        let standing = Standing {
            pull_secret_namespaces: ["team".to_owned()].into(),
            ..Standing::NONE
        };
        standings.insert(mirror.name.clone(), Arc::new(standing));
        // A run may take longer than a proof lasts.
        mirror.freshness.tag = std::time::Duration::from_hours(1000);
        mirror.tags.refresh = mirror.freshness.tag;
        mirror
    });
    let routing = Routing::compile(mirrors.collect());
    let store = Store::default();
    let now = clock::now();
    store.configure(
        Configured {
            routing,
            standings,
            ..Configured::default()
        },
        now,
    );
    let long_ago = Timestamp::from_millis(1);
    let proof = Proof {
        digest: format!("sha256:{}", "a".repeat(64))
            .parse()
            .expect("this is a digest"),
        media_type: MediaType::OciManifest,
        platforms: Platforms::ALL,
        size: None,
        public: None,
    };
    for mirror in ["main", "other"] {
        store.set_health(
            mirror,
            Health {
                state: State::Healthy,
                fault: None,
                cause: None,
                since: long_ago,
                refused_since: None,
                proven_since: long_ago,
            },
        );
        for image in IMAGES {
            let image = KeyRef::parse(image).expect("it is a key");
            store
                .index_mut()
                .write(mirror, image, Presence::Present(proof.clone()), now, now);
        }
    }
    let runtime = Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime starts");
    (runtime, admission(store))
}

fn check(runtime: &Runtime, admission: &Admission, body: &[u8]) {
    let ask = |body: &[u8]| runtime.block_on(admission.review(Mode::Enforce, body, None));
    let Ok(answer) = ask(body) else { return };
    let raw: Value = serde_json::from_slice(&answer).expect("an answer is JSON");
    assert_eq!(raw["response"]["allowed"], true);
    // Refused, such as for a key that stands there twice: of two UIDs serde keeps the last, Kagami the
    // first.
    if raw["response"]["auditAnnotations"].get("review").is_some() {
        assert_eq!(raw["response"].get("patch"), None);
        return;
    }
    // What is passed over is not checked in full, so serde may refuse what Kagami has read.
    let Ok(mut review) = serde_json::from_slice::<Value>(body) else {
        return;
    };
    if review["kind"] != "AdmissionReview" || review["apiVersion"] != "admission.k8s.io/v1" {
        return;
    }
    let response = response(&answer, &review);
    let object = review["request"]["object"].take();
    review["request"]["object"] = patched(&object, &response);
    let again = ask(review.to_string().as_bytes()).expect("a review stays one");
    let again: Value = serde_json::from_slice(&again).expect("an answer is JSON");
    if has_own_names(&object) {
        assert_eq!(
            again["response"].get("patch"),
            None,
            "the first answer was {response}"
        );
    }
}

/// Whether no two containers and no two volumes share a name, which the API server sees to after
/// admission. The originals of such a Pod have one annotation for two images.
fn has_own_names(object: &Value) -> bool {
    let names = |list: &str| {
        let entries = object["spec"][list].as_array().cloned().unwrap_or_default();
        entries
            .into_iter()
            .map(|mut entry| entry["name"].take().to_string())
            .collect::<Vec<_>>()
    };
    let distinct = |mut names: Vec<String>| {
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        names.len() == count
    };
    let containers = ["containers", "initContainers", "ephemeralContainers"]
        .map(names)
        .concat();
    distinct(containers) && distinct(names("volumes"))
}
