//! What is read of a Pod: its images, how its containers stand with them, and what decides whether it is helped.
//!
//! What was rewritten counts as its original, where the mapping proves it; an image that names a
//! mirror without such a proof is nobody's.

mod owned;
mod patient;
#[cfg(test)]
mod tests;
mod used;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, de::IgnoredAny};

use super::watch::Versioned;
use crate::domain::{
    owners,
    platform::{Label, Landing},
    pod::{PlaceKind, PlaceLabel},
    time::Timestamp,
};

pub use self::used::{images, originals, pulled};

/// The part of a Pod that is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    metadata: Metadata,
    spec: Images,
    status: Statuses,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    uid: String,
    namespace: String,
    name: String,
    resource_version: String,
    generation: i64,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    deletion_grace_period_seconds: Option<u64>,
    labels: Labels,
    annotations: BTreeMap<String, String>,
    owner_references: Vec<Owner>,
}

/// The labels that are read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Labels {
    #[serde(rename = "kagami.dev/mode")]
    mode: Option<String>,
    /// A Deployment's, whose controller appends it to its name for that of a ReplicaSet.
    #[serde(rename = "pod-template-hash")]
    template: Option<String>,
    /// A StatefulSet's or a DaemonSet's.
    #[serde(rename = "controller-revision-hash")]
    revision: Option<String>,
    #[serde(rename = "rollouts-pod-template-hash")]
    rollout: Option<String>,
    /// What [`owners::owner_by_label`] looks at.
    application: Option<String>,
}

impl Labels {
    /// Returns the kind of owner that they tell of.
    fn owner(&self) -> Option<(&'static str, &'static str)> {
        owners::owner_by_label("application", self.application.as_deref()?)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Owner {
    api_version: String,
    kind: String,
    name: String,
    uid: String,
    controller: bool,
}

impl Owner {
    /// Returns what stands for all that serve together: of a Deployment all ReplicaSets do, so that one which rolls
    /// out counts as one that serves.
    fn of_those_together(&self, labels: &Labels) -> &str {
        let template = labels.template.as_deref().filter(|_| self.kind == "ReplicaSet");
        let name = template.and_then(|template| self.name.strip_suffix(template)?.strip_suffix('-'));
        name.filter(|name| !name.is_empty()).unwrap_or(&self.uid)
    }
}

impl Pod {
    /// Returns the node that it is on; empty where it is on none yet.
    pub fn node(&self) -> &str {
        &self.spec.node_name
    }

    /// Returns namespace and name.
    pub fn id(&self) -> (&str, &str) {
        (&self.metadata.namespace, &self.metadata.name)
    }
}

impl Versioned for Pod {
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Images {
    node_name: String,
    restart_policy: String,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    ephemeral_containers: Vec<Container>,
    volumes: Vec<Volume>,
    image_pull_secrets: Vec<PullSecret>,
    node_selector: NodeSelector,
    os: Os,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PullSecret {
    name: String,
}

/// The labels that tell of a node's platform, by their present and their deprecated names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeSelector {
    #[serde(rename = "kubernetes.io/os")]
    os: Option<String>,
    #[serde(rename = "beta.kubernetes.io/os")]
    beta_os: Option<String>,
    #[serde(rename = "kubernetes.io/arch")]
    architecture: Option<String>,
    #[serde(rename = "beta.kubernetes.io/arch")]
    beta_architecture: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Os {
    name: Option<String>,
}

impl Images {
    /// Returns where the Pod may land. Its affinity is not read, so it may seem to land where it does not.
    fn landing(&self) -> Landing {
        let NodeSelector {
            os,
            beta_os,
            architecture,
            beta_architecture,
        } = &self.node_selector;
        let asked = [
            (Label::Os, &self.os.name),
            (Label::Os, os),
            (Label::Os, beta_os),
            (Label::Architecture, architecture),
            (Label::Architecture, beta_architecture),
        ];
        let asked = asked
            .into_iter()
            .filter_map(|(label, value)| Some((label, value.as_deref()?)));
        asked.fold(Landing::ANYWHERE, |landing, (label, value)| {
            landing.and(Landing::of(label, [value]))
        })
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    name: String,
    image: String,
    restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Volume {
    name: String,
    image: Option<ImageVolume>,
    #[serde(rename = "persistentVolumeClaim")]
    claim: Option<IgnoredAny>,
    ephemeral: Option<IgnoredAny>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ImageVolume {
    reference: String,
}

/// The part of a Pod's status that is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Statuses {
    phase: String,
    #[serde(rename = "observedGeneration")]
    observed_generation: i64,
    conditions: Vec<Condition>,
    #[serde(rename = "containerStatuses")]
    containers: Vec<ContainerStatus>,
    #[serde(rename = "initContainerStatuses")]
    init_containers: Vec<ContainerStatus>,
    #[serde(rename = "ephemeralContainerStatuses")]
    ephemeral_containers: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    #[serde(rename = "lastTransitionTime")]
    last_transition_time: Option<Time>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    state: ContainerState,
    last_state: ContainerState,
    restart_count: u32,
}

impl ContainerStatus {
    /// Whether the container has begun, now or before.
    const fn has_begun(&self) -> bool {
        let Self {
            state, last_state, ..
        } = self;
        self.restart_count > 0
            || state.running.is_some()
            || state.terminated.is_some()
            || last_state.running.is_some()
            || last_state.terminated.is_some()
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    waiting: Option<Waiting>,
    running: Option<Begun>,
    terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Waiting {
    reason: String,
    message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Begun {
    started_at: Option<Time>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Terminated {
    exit_code: i32,
    #[serde(flatten)]
    begun: Begun,
}

fn timestamp(time: &Time) -> Timestamp {
    Timestamp::from_millis(u64::try_from(time.0.as_millisecond()).unwrap_or(0))
}

/// Returns the places of a Pod that name images, with the images.
fn places(pod: &Pod) -> impl Iterator<Item = (PlaceLabel<'_>, &str)> {
    let Images {
        containers,
        init_containers,
        ephemeral_containers,
        volumes,
        ..
    } = &pod.spec;
    let lists = [
        (PlaceKind::Container, containers),
        (PlaceKind::InitContainer, init_containers),
        (PlaceKind::EphemeralContainer, ephemeral_containers),
    ];
    let containers = lists.into_iter().flat_map(|(kind, containers)| {
        containers
            .iter()
            .map(move |container| (PlaceLabel::new(kind, &container.name), &*container.image))
    });
    let volumes = volumes.iter().filter_map(|volume| {
        let image = volume.image.as_ref()?;
        Some((
            PlaceLabel::new(PlaceKind::Volume, &volume.name),
            &*image.reference,
        ))
    });
    containers.chain(volumes)
}
