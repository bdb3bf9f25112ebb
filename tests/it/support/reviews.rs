//! Reviews of Pods, asked of an admission that reaches no network, and their answers taken apart.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kagami::{
    domain::{decision::Probing, mirror::Mode},
    metrics::Metrics,
    state::Store,
    webhook::{Admission, Limits, Probes},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

/// Returns an admission that decides from `store`. A mirror without a client in the store is never
/// asked anything.
pub fn admission(store: Store) -> Admission {
    healing(store, true)
}

/// The same, which heals earlier rewrites or not.
pub fn healing(store: Store, heal: bool) -> Admission {
    let (metrics, _) = Metrics::new();
    let (doubts, _) = mpsc::channel(1);
    let (demand, _) = mpsc::channel(1);
    let probes = Probes::new(store.clone(), metrics.clone(), doubts, TaskTracker::new());
    let limits = Limits {
        budget: Duration::from_millis(300),
        probing: Probing::Hosted,
        heal,
        recent: 50,
    };
    Admission::new(store, probes, metrics, Some(demand), limits)
}

/// Returns the review of a Pod that is created, or of new ephemeral containers where an old Pod is
/// given.
pub fn review_of(pod: &Value, old: Option<&Value>) -> Value {
    let operation = if old.is_some() { "UPDATE" } else { "CREATE" };
    let mut request = json!({
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "team",
        "operation": operation,
        "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
        "object": pod,
        "oldObject": old,
        "dryRun": false,
    });
    if old.is_some() {
        request["subResource"] = "ephemeralcontainers".into();
    }
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
}

/// Asks and returns the answer's `response`, its patch decoded.
pub async fn ask(admission: &Admission, mode: Mode, review: &Value) -> Value {
    let answer = admission
        .review(mode, review.to_string().as_bytes(), None)
        .await
        .unwrap();
    response(&answer, review)
}

/// Checks what holds for every answer, and returns its `response`, its patch decoded.
#[track_caller]
pub fn response(answer: &[u8], review: &Value) -> Value {
    let mut answer: Value = serde_json::from_slice(answer).unwrap();
    assert_eq!(
        (&answer["kind"], &answer["apiVersion"]),
        (&review["kind"], &review["apiVersion"])
    );
    let mut response = answer["response"].take();
    assert_eq!(
        (&response["uid"], &response["allowed"]),
        (&review["request"]["uid"], &Value::Bool(true))
    );
    let patch_type = response.as_object_mut().unwrap().shift_remove("patchType");
    assert_eq!(patch_type, response.get("patch").map(|_| "JSONPatch".into()));
    if let Some(patch) = response.get_mut("patch") {
        *patch = serde_json::from_slice(&BASE64_STANDARD.decode(patch.as_str().unwrap()).unwrap()).unwrap();
    }
    response
}

/// Returns a Pod with a response's patch applied to it.
#[track_caller]
pub fn patched(pod: &Value, response: &Value) -> Value {
    let mut pod = pod.clone();
    if let Some(patch) = response.get("patch") {
        let patch: json_patch::Patch = serde_json::from_value(patch.clone()).unwrap();
        json_patch::patch(&mut pod, &patch).unwrap_or_else(|error| panic!("{error}: {patch} on {pod}"));
    }
    pod
}
