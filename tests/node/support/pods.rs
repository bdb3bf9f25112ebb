//! Creating Pods that end at once when deleted, and waiting for what becomes of them.

use serde_json::{Value, json};

use crate::e2e::{admission, cluster::Namespace, eventually};

/// A Pod with one container `app` of this image.
pub(crate) fn pod(name: &str, image: &str) -> Value {
    let mut pod = admission::pod(name, image);
    pod["spec"]["terminationGracePeriodSeconds"] = 0.into();
    pod
}

/// A Pod that runs to its end, with arguments for its entrypoint, and is not started twice.
pub(crate) fn job(name: &str, image: &str, arguments: &[&str]) -> Value {
    let mut pod = pod(name, image);
    pod["spec"]["restartPolicy"] = "Never".into();
    pod["spec"]["containers"][0]["args"] = json!(arguments);
    pod
}

/// Waits until the Pod's container runs.
#[track_caller]
pub(crate) fn until_running(namespace: &Namespace<'_>, name: &str) -> Value {
    until(namespace, name, "it runs", |pod| {
        status(pod)["state"]["running"].is_object()
    })
}

/// Waits until the Pod's container cannot start because its image cannot be pulled.
#[track_caller]
pub(crate) fn until_pull_fails(namespace: &Namespace<'_>, name: &str) -> Value {
    until(namespace, name, "its pull fails", |pod| {
        ["ErrImagePull", "ImagePullBackOff"].contains(&waiting(pod))
    })
}

/// Waits until the Pod has ended by itself, successfully, and returns what it said.
#[track_caller]
pub(crate) fn until_succeeded(namespace: &Namespace<'_>, name: &str) -> String {
    let pod = until(namespace, name, "it ends", |pod| {
        ["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or_default())
    });
    let output = namespace.kubectl(&["logs", name]);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(pod["status"]["phase"], "Succeeded", "{said}");
    said
}

/// Waits until something is true of a Pod.
#[track_caller]
pub(crate) fn until(
    namespace: &Namespace<'_>,
    name: &str,
    what: &str,
    is_true: impl Fn(&Value) -> bool,
) -> Value {
    let mut last = Value::Null;
    // The last state says more than the wait that ran out.
    let report = Report { namespace, name };
    let pod = eventually(&format!("Pod {name}: {what}"), || {
        last = namespace.pod(name);
        is_true(&last).then(|| last.clone())
    });
    drop(report);
    pod
}

/// Why the Pod's container waits, or nothing if it does not.
pub(crate) fn waiting(pod: &Value) -> &str {
    status(pod)["state"]["waiting"]["reason"]
        .as_str()
        .unwrap_or_default()
}

/// The messages of events about a namespace's Pods that failed to pull.
pub(crate) fn failed_pulls(namespace: &Namespace<'_>) -> Vec<String> {
    let events = namespace.cluster.get(&namespace.path("events")).success();
    events["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["reason"] == "Failed" || event["reason"] == "BackOff")
        .map(|event| event["message"].to_string())
        .collect()
}

fn status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// Prints a Pod's state and events if the test fails while it lives.
struct Report<'a> {
    namespace: &'a Namespace<'a>,
    name: &'a str,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let output = self.namespace.kubectl(&["describe", "pod", self.name]);
            eprintln!("{}", String::from_utf8_lossy(&output.stdout));
        }
    }
}
