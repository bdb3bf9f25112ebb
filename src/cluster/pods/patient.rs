//! What of a Pod decides whether it is helped, where its containers do not get their images.

use std::collections::HashMap;

use super::{Condition, Container, ContainerStatus, Images, Pod, Terminated, timestamp};
use crate::domain::{
    names::{PULL_SECRET, STATIC_POD_ANNOTATION},
    pod, rescue,
};

impl Pod {
    /// Returns what decides whether it is helped.
    pub fn as_patient(&self) -> rescue::Pod<'_> {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        let is_true = |condition: &str| {
            let mut conditions = status.conditions.iter();
            conditions.any(|known| known.type_ == condition && known.status == "True")
        };
        let since = |condition: &str| {
            let mut conditions = status.conditions.iter();
            let is_it = |known: &&Condition| known.type_ == condition && known.status == "True";
            let condition = conditions.find(is_it)?;
            condition.last_transition_time.as_ref().map(timestamp)
        };
        let owner = metadata.owner_references.iter().find(|owner| owner.controller);
        let owners = metadata.owner_references.iter().map(|owner| pod::Owner {
            api_version: owner.api_version.as_str().into(),
            kind: owner.kind.as_str().into(),
            uid: owner.uid.as_str().into(),
        });
        let labelled = metadata.labels.owner().map(|(api_version, kind)| pod::Owner {
            api_version: api_version.into(),
            kind: kind.into(),
            uid: "".into(),
        });
        let mut pull_secrets = spec.image_pull_secrets.iter();
        let lists = [
            &status.containers,
            &status.init_containers,
            &status.ephemeral_containers,
        ];
        let image_volumes = spec.volumes.iter().filter_map(|volume| {
            let image = volume.image.as_ref()?;
            Some((volume.name.as_str(), image.reference.as_str()))
        });
        let mut volumes = spec.volumes.iter();
        rescue::Pod {
            uid: &metadata.uid,
            namespace: &metadata.namespace,
            name: &metadata.name,
            resource_version: &metadata.resource_version,
            created: metadata.creation_timestamp.as_ref().map(timestamp),
            bound: since("PodScheduled"),
            started: since("PodReadyToStartContainers"),
            node: &spec.node_name,
            owner: owner.map(|owner| owner.of_those_together(&metadata.labels)),
            controller: owner.map(|owner| (owner.api_version.as_str(), owner.kind.as_str())),
            owners: owners.chain(labelled).collect(),
            lists_pull_secret: pull_secrets.any(|secret| secret.name == PULL_SECRET),
            landing: spec.landing(),
            mode_label: metadata.labels.mode.as_deref(),
            is_static: metadata.annotations.contains_key(STATIC_POD_ANNOTATION),
            is_deleted: metadata.deletion_timestamp.is_some(),
            is_done: ["Succeeded", "Failed"].contains(&status.phase.as_str()),
            is_ready: is_true("Ready"),
            has_begun: lists.into_iter().flatten().any(ContainerStatus::has_begun),
            has_claim: volumes.any(|volume| volume.claim.is_some() || volume.ephemeral.is_some()),
            image_volumes: image_volumes.collect(),
            annotations: Some(&metadata.annotations),
            init_containers: containers(spec, &spec.init_containers, &status.init_containers),
            containers: containers(spec, &spec.containers, &status.containers),
            // An older kubelet tells none.
            is_unheard: (1..metadata.generation).contains(&status.observed_generation),
        }
    }
}

/// Returns containers with their statuses, which have an order of their own and may not be there yet.
fn containers<'p>(
    spec: &Images,
    containers: &'p [Container],
    statuses: &'p [ContainerStatus],
) -> Vec<rescue::Container<'p>> {
    let states = statuses.iter().map(|status| (status.name.as_str(), status));
    let states: HashMap<_, _> = states.collect();
    let container = |container: &'p Container| {
        let status = states.get(container.name.as_str());
        let state = status.map(|status| &status.state);
        let waiting = state.and_then(|state| state.waiting.as_ref());
        let terminated = state.and_then(|state| state.terminated.as_ref());
        let policy = container.restart_policy.as_ref().unwrap_or(&spec.restart_policy);
        let runs_again = |ended: &Terminated| match policy.as_str() {
            "Never" => false,
            "OnFailure" => ended.exit_code != 0,
            _ => true,
        };
        rescue::Container {
            name: &container.name,
            image: &container.image,
            is_sidecar: container.restart_policy.as_deref() == Some("Always"),
            waiting: waiting.map(|waiting| (waiting.reason.as_str(), waiting.message.as_str())),
            is_running: state.is_some_and(|state| state.running.is_some()),
            has_succeeded: terminated.is_some_and(|terminated| terminated.exit_code == 0),
            will_run_again: terminated.is_some_and(runs_again),
            has_begun: status.is_some_and(|status| status.has_begun()),
        }
    };
    containers.iter().map(container).collect()
}
