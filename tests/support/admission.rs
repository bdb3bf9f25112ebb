//! Reading what admission left on a Pod, and what the API server measured.

use serde_json::{Value, json};

/// A Pod with one container `app` of this image.
pub(crate) fn pod(name: &str, image: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "app", "image": image}]},
    })
}

/// The image of a container of any kind.
#[track_caller]
pub(crate) fn image<'a>(pod: &'a Value, container: &str) -> &'a str {
    ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .filter_map(|kind| pod["spec"][kind].as_array())
        .flatten()
        .find(|entry| entry["name"] == container)
        .and_then(|entry| entry["image"].as_str())
        .unwrap_or_else(|| panic!("no container {container} in {pod}"))
}

pub(crate) fn annotation<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod["metadata"]["annotations"][name].as_str()
}

/// The reference that the user wrote, as Kagami recorded it.
pub(crate) fn original<'a>(pod: &'a Value, container: &str) -> Option<&'a str> {
    annotation(pod, &format!("original-image.kagami.dev/{container}"))
}

/// The entry of `kagami.dev/decisions` for a container or volume.
#[track_caller]
pub(crate) fn decision(pod: &Value, name: &str) -> Value {
    let text = annotation(pod, "kagami.dev/decisions").unwrap_or_else(|| panic!("no decisions on {pod}"));
    let decisions: Value = serde_json::from_str(text).unwrap();
    let mut entries = decisions.as_object().unwrap().iter();
    let entry = entries.find(|(place, _)| place.rsplit(['/', '.']).next() == Some(name));
    entry
        .unwrap_or_else(|| panic!("nothing about {name} in {text}"))
        .1
        .clone()
}

/// What the API server counted for one webhook.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    /// Calls that were answered, as they should be.
    pub(crate) answered: u64,
    /// Calls that were not, by any code but 200.
    pub(crate) failed: u64,
    /// Requests that went on without this webhook.
    pub(crate) failed_open: u64,
    /// Requests that were denied because of this webhook.
    pub(crate) rejected: u64,
}

impl Calls {
    /// Reads the API server's metrics for the webhook called `name`.
    pub(crate) fn read(metrics: &str, name: &str) -> Self {
        let label = format!("name=\"{name}\"");
        let mut calls = Self::default();
        for line in metrics.lines().filter(|line| line.contains(&label)) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (metric, labels) = series.split_once('{').unwrap();
            let counter = match metric {
                "apiserver_admission_webhook_request_total" if labels.contains("code=\"200\"") => {
                    &mut calls.answered
                }
                "apiserver_admission_webhook_request_total" => &mut calls.failed,
                "apiserver_admission_webhook_fail_open_count" => &mut calls.failed_open,
                "apiserver_admission_webhook_rejection_count" => &mut calls.rejected,
                _ => continue,
            };
            *counter += value.parse::<u64>().unwrap();
        }
        calls
    }
}
