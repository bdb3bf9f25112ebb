//! Creating Pods that end at once when deleted, and waiting for what becomes of them.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::shared::{
    admission::{self, decision, image},
    cluster::Namespace,
    eventually,
};

/// How often in a row something must be seen until every replica is taken to know it. They learn of it one by
/// one, each within moments.
const IN_A_ROW: u32 = 5;

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

/// What the API server would store of a Pod with this image.
#[track_caller]
pub(crate) fn dry_run(namespace: &Namespace<'_>, image: &str) -> Value {
    let path = format!("{}?dryRun=All", namespace.path("pods"));
    namespace.cluster.create(&path, &pod("probe", image)).success()
}

/// Creates a Pod with each image, checks what is stored, and waits until all run.
#[track_caller]
pub(crate) fn run(
    namespace: &Namespace<'_>,
    name: &str,
    written: &[String],
    stored: &[String],
) -> Vec<Value> {
    let names: Vec<_> = (0..written.len()).map(|n| format!("{name}-{n}")).collect();
    for ((name, written), stored) in names.iter().zip(written).zip(stored) {
        let mut wanted = pod(name, written);
        let (host, _) = written.split_once('/').unwrap_or_default();
        wanted["spec"]["imagePullSecrets"] = json!([{"name": host}]);
        let created = namespace.create_pod(&wanted).success();
        assert_eq!(image(&created, "app"), stored, "{created}");
    }
    names.iter().map(|name| until_running(namespace, name)).collect()
}

/// Waits until Pods with these images would be sent to the mirror.
#[track_caller]
pub(crate) fn until_rewritten(namespace: &Namespace<'_>, written: &[String], mirrored: &[String]) {
    for (written, mirrored) in written.iter().zip(mirrored) {
        until_stored(namespace, written, &format!("{written} is rewritten"), |pod| {
            image(pod, "app") == mirrored
        });
    }
}

/// Waits until a Pod with this image would be kept as it is, for this reason.
#[track_caller]
pub(crate) fn until_kept(namespace: &Namespace<'_>, written: &str, reason: &str) {
    until_stored(
        namespace,
        written,
        &format!("{written} is kept: {reason}"),
        |pod| image(pod, "app") == written && decision(pod, "app")["reason"] == reason,
    );
}

#[track_caller]
fn until_stored(namespace: &Namespace<'_>, written: &str, what: &str, is_true: impl Fn(&Value) -> bool) {
    let mut in_a_row = 0;
    eventually(what, || {
        in_a_row = if is_true(&dry_run(namespace, written)) {
            in_a_row + 1
        } else {
            0
        };
        (in_a_row == IN_A_ROW).then_some(())
    });
}

/// Creates Pods one after another for a time, and returns when the last was sent to the mirror, from now.
#[track_caller]
pub(crate) fn last_rewritten(namespace: &Namespace<'_>, written: &str, watched: Duration) -> Duration {
    let begin = Instant::now();
    let mut last = Duration::ZERO;
    while begin.elapsed() < watched {
        // A Pod counts by when it was asked for.
        let asked = begin.elapsed();
        if image(&dry_run(namespace, written), "app") != written {
            last = asked;
        }
        thread::sleep(Duration::from_millis(50));
    }
    last
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
        if thread::panicking() {
            let output = self.namespace.kubectl(&["describe", "pod", self.name]);
            eprintln!("{}", String::from_utf8_lossy(&output.stdout));
        }
    }
}
