//! Reviews of Pods as an API server sends them, and their answers taken apart.
//!
//! The benches render theirs once, with every field that makes a real one long.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

/// Returns the review of a new Pod with a container `c0`, `c1` and so on for each image.
pub(crate) fn review(images: &[impl AsRef<str>]) -> Value {
    let containers: Vec<Value> = images
        .iter()
        .enumerate()
        .map(|(index, image)| json!({"name": format!("c{index}"), "image": image.as_ref()}))
        .collect();
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web"},
        "spec": {"containers": containers},
    });
    review_of(&pod, None)
}

/// Returns the review of a Pod that is created, or of new ephemeral containers where an old Pod is
/// given.
pub(crate) fn review_of(pod: &Value, old: Option<&Value>) -> Value {
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

/// Checks what holds for every answer, and returns its `response`, its patch decoded.
#[track_caller]
pub(crate) fn response(answer: &[u8], review: &Value) -> Value {
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
pub(crate) fn patched(pod: &Value, response: &Value) -> Value {
    let mut pod = pod.clone();
    if let Some(patch) = response.get("patch") {
        let patch: json_patch::Patch = serde_json::from_value(patch.clone()).unwrap();
        json_patch::patch(&mut pod, &patch).unwrap_or_else(|error| panic!("{error}: {patch} on {pod}"));
    }
    pod
}

/// The outcome and the reason in the answer to a review of one image.
pub(crate) fn decided(answer: &str) -> String {
    let answer: Value = serde_json::from_str(answer).unwrap();
    let audit = answer["response"]["auditAnnotations"].as_object().unwrap();
    let (_, decision) = audit.iter().next().unwrap();
    let mut words = decision.as_str().unwrap().split(' ');
    format!("{} {}", words.next().unwrap(), words.next().unwrap())
}
