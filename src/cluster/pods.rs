//! What is read of a Pod: its images, how its containers stand with them, and what decides whether it is helped.
//!
//! What was rewritten counts as its original, where the mapping proves it; an image that names a
//! mirror without such a proof is nobody's.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, de::IgnoredAny};

use super::watch::Versioned;
use crate::{
    api::DECISIONS_ANNOTATION,
    domain::{
        image::ImageKey,
        names::{ORIGINAL_IMAGE_PREFIX, ORIGINAL_VOLUME_PREFIX, PULL_SECRET, STATIC_POD_ANNOTATION},
        original::{Original, RecordedDecisions, key_of},
        owners,
        platform::{Label, Landing},
        pod::{self, PlaceKind, PlaceLabel},
        pulls::{Failure, Pull, Pulled},
        rescue::{self, message::cause},
        routing::{MirrorId, Routing},
        time::Timestamp,
    },
};

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

impl Pod {
    /// Returns what counts of a Pod whose owner may be one that fights rewrites; none of one that nobody owns, or a
    /// controller that never compares images, and of an owner that cannot be.
    pub fn as_owned(&self, routing: &Routing) -> Option<owners::Pod<'_>> {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        let owner = metadata.owner_references.iter().find(|owner| owner.controller)?;
        let owner = owners::Owner {
            api_version: &owner.api_version,
            kind: &owner.kind,
            name: &owner.name,
            uid: &owner.uid,
        };
        let kind = owners::Kind::of(owner.api_version, owner.kind);
        // A Deployment's ReplicaSet: there are many of them, and nobody need ask whose each is.
        let of_deployment = kind == Some(owners::Kind::ReplicaSet) && metadata.labels.template.is_some();
        if of_deployment || kind.is_none() && !owners::is_custom(owner.api_version) || !owner.can_be() {
            return None;
        }
        let deleted = metadata.deletion_timestamp.as_ref().map(|time| {
            // It is the time until which the Pod may take to end.
            let grace = metadata.deletion_grace_period_seconds.unwrap_or(0);
            timestamp(time).before(Duration::from_secs(grace))
        });
        let mut conditions = status.conditions.iter();
        let is_disrupted =
            conditions.any(|known| known.type_ == "DisruptionTarget" && known.status == "True");
        let ready = status.conditions.iter().find(|known| known.type_ == "Ready");
        let ready = ready.and_then(|ready| {
            let since = timestamp(ready.last_transition_time.as_ref()?);
            Some((ready.status == "True", since))
        });
        let (is_rewritten, revision) = self.wanted(routing);
        Some(owners::Pod {
            uid: &metadata.uid,
            namespace: &metadata.namespace,
            name: &metadata.name,
            owner,
            created: metadata.creation_timestamp.as_ref().map(timestamp),
            deleted,
            is_rewritten,
            revision,
            is_disrupted,
            ready,
            node: &spec.node_name,
        })
    }

    /// Returns whether some image was rewritten, and a number that is the same where the same was wanted: of images as
    /// their users wrote them, and of templates.
    fn wanted(&self, routing: &Routing) -> (bool, u64) {
        let labels = &self.metadata.labels;
        let mut hasher = DefaultHasher::new();
        (&labels.template, &labels.revision, &labels.rollout).hash(&mut hasher);
        let record = Record::of(self);
        let mut is_rewritten = false;
        let lists = [
            (PlaceKind::InitContainer, &self.spec.init_containers),
            (PlaceKind::Container, &self.spec.containers),
        ];
        for (kind, containers) in lists {
            for container in containers {
                let place = PlaceLabel::new(kind, &container.name);
                let found = record.key_of(place, &container.image, routing);
                is_rewritten |= found.as_ref().is_some_and(|(_, mirror)| mirror.is_some());
                let key = found
                    .as_ref()
                    .map_or(container.image.as_str(), |(key, _)| key.as_str());
                (container.name.as_str(), key).hash(&mut hasher);
            }
        }
        (is_rewritten, hasher.finish())
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

/// Returns the keys of what a Pod pulls, as its user wrote it.
pub fn images(pod: &Pod, routing: &Routing) -> Vec<ImageKey> {
    let record = Record::of(pod);
    let keys = places(pod)
        .filter(|(place, image)| !place.holds_placeholder(image))
        .filter_map(|(place, image)| record.key_of(place, image, routing));
    keys.map(|(key, _)| key).collect()
}

/// Returns the images of a Pod that name a mirror and what it records as their originals, where the mapping turns these
/// into those.
pub fn originals<'p>(pod: &'p Pod, routing: &Routing) -> Vec<(&'p str, &'p str)> {
    let annotations = &pod.metadata.annotations;
    let has_any = annotations.keys().any(|key| {
        let prefixes = [ORIGINAL_IMAGE_PREFIX, ORIGINAL_VOLUME_PREFIX];
        prefixes.iter().any(|prefix| key.starts_with(prefix))
    });
    if !has_any {
        return Vec::new();
    }
    let originals = places(pod).filter_map(|(place, image)| {
        let recorded = annotations.get(&place.original_annotation())?;
        Original::prove(routing, image, recorded, || None)?;
        Some((image, recorded.as_str()))
    });
    originals.collect()
}

/// Returns how a Pod's containers stand with the images that they were sent to a mirror for.
pub fn pulled(pod: &Pod, routing: &Routing) -> Vec<Pulled> {
    let Images {
        containers,
        init_containers,
        ephemeral_containers,
        ..
    } = &pod.spec;
    let places = [
        (PlaceKind::Container, containers, &pod.status.containers),
        (
            PlaceKind::InitContainer,
            init_containers,
            &pod.status.init_containers,
        ),
        (
            PlaceKind::EphemeralContainer,
            ephemeral_containers,
            &pod.status.ephemeral_containers,
        ),
    ];
    let record = Record::of(pod);
    let mut pulled = Vec::new();
    for (kind, containers, statuses) in places {
        let images = containers
            .iter()
            .map(|container| (&container.name, &container.image));
        let images: HashMap<_, _> = images.collect();
        pulled.extend(statuses.iter().filter_map(|status| {
            let place = PlaceLabel::new(kind, &status.name);
            let image = images.get(&status.name)?;
            let pull = pull(&status.state, image)?;
            let (key, mirror) = record.key_of(place, image, routing)?;
            let mirror = Box::from(routing.mirror(mirror?).name.as_str());
            Some(Pulled { mirror, key, pull })
        }));
    }
    pulled
}

/// What a Pod says of its images' origin.
struct Record<'p> {
    annotations: &'p BTreeMap<String, String>,
    decisions: RecordedDecisions<'p>,
}

impl<'p> Record<'p> {
    fn of(pod: &'p Pod) -> Self {
        let annotations = &pod.metadata.annotations;
        let decisions = annotations.get(DECISIONS_ANNOTATION).map(String::as_str);
        Self {
            annotations,
            decisions: RecordedDecisions::new(decisions),
        }
    }

    /// Returns the key of what the user wrote at a place, and the mirror that it was sent to.
    fn key_of(
        &self,
        place: PlaceLabel<'_>,
        image: &str,
        routing: &Routing,
    ) -> Option<(ImageKey, Option<MirrorId>)> {
        let recorded = self.annotations.get(&place.original_annotation());
        key_of(routing, image, recorded.map(String::as_str), || {
            self.decisions.mirror(place)
        })
    }
}

/// The reasons for which a container waits whose image could not be pulled just now, and that of one that waits since.
const FAILED: [&str; 3] = ["ErrImagePull", "RegistryUnavailable", "SignatureValidationFailed"];
const WAITING: &str = "ImagePullBackOff";

/// Returns how a container stands with its image, as far as its state tells.
fn pull(state: &ContainerState, image: &str) -> Option<Pull> {
    let begun = state
        .running
        .as_ref()
        .or_else(|| state.terminated.as_ref().map(|ended| &ended.begun));
    if let Some(begun) = begun {
        let started = begun.started_at.as_ref().map(timestamp);
        return Some(Pull::Done(started.unwrap_or_default()));
    }
    let Waiting { reason, message } = state.waiting.as_ref()?;
    // It may speak of another image, or of the node alone.
    if rescue::failure(image, message) != rescue::Failure::Image {
        return None;
    }
    let cause = cause(message);
    if let Some(code) = FAILED.iter().find(|known| *known == reason) {
        return Some(Pull::Failed(Failure { cause, code }));
    }
    let waits = Failure { cause, code: WAITING };
    (reason == WAITING).then_some(Pull::Waiting(waits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::pulls::Cause, state::file};

    fn routing() -> Routing {
        let text = "apiVersion: kagami.dev/v1alpha1\nkind: ImageMirror\nmetadata: {name: main}\nspec:\n  \
                    registry: mirror.test\n  kind: Hosted\n  sources: [{prefix: docker.io}]\n";
        let configuration = file::load(text, "test").unwrap();
        Routing::compile(
            configuration
                .mirrors
                .into_iter()
                .map(|(mirror, _)| mirror)
                .collect(),
        )
    }

    /// The decision alone tells which of two mirrors with one registry and one template it was.
    #[test]
    fn of_two_mirrors_in_one_registry_the_recorded_one_is_told() {
        let mut mirrors: Vec<_> = routing().mirrors().map(|(_, mirror)| mirror.clone()).collect();
        mirrors.extend(mirrors.clone());
        mirrors[1].name = "second".to_owned();
        let routing = Routing::compile(mirrors);
        let pulled_from = |decided: &str| {
            let decisions = format!(r#"{{"containers.app":{{"mirror":"{decided}"}}}}"#);
            let pod: Pod = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "web", "namespace": "a", "annotations": {
                    format!("{}app", ORIGINAL_IMAGE_PREFIX): "nginx:1.29",
                    DECISIONS_ANNOTATION: decisions,
                }},
                "spec": {"containers": [{"name": "app", "image": "mirror.test/docker.io/library/nginx:1.29"}]},
                "status": {"containerStatuses": [{"name": "app", "state": {"waiting": {
                    "reason": "ErrImagePull",
                    "message": "failed to pull and unpack image \"mirror.test/docker.io/library/nginx:1.29\": x",
                }}}]},
            }))
            .unwrap();
            pulled(&pod, &routing)[0].mirror.clone()
        };
        for name in ["main", "second"] {
            assert_eq!(&*pulled_from(name), name);
        }
    }

    #[test]
    fn what_a_pod_records_counts_where_the_mapping_makes_it_into_what_stands_there() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "a", "annotations": {
                format!("{ORIGINAL_IMAGE_PREFIX}app"): "nginx:1.29",
                format!("{ORIGINAL_IMAGE_PREFIX}forged"): "docker.io/evil/nginx:1.29",
                format!("{ORIGINAL_IMAGE_PREFIX}back"): "nginx:1.29",
                format!("{ORIGINAL_VOLUME_PREFIX}model"): "docker.io/shop/model:3",
                // A volume's name, and no container's.
                format!("{ORIGINAL_IMAGE_PREFIX}model"): "docker.io/evil/model:3",
            }},
            "spec": {
                "containers": [
                    {"name": "app", "image": "mirror.test/docker.io/library/nginx:1.29"},
                    {"name": "forged", "image": "mirror.test/docker.io/library/nginx:1.29"},
                    {"name": "back", "image": "nginx:1.29"},
                    {"name": "unrecorded", "image": "mirror.test/docker.io/library/redis:8"},
                ],
                "volumes": [{"name": "model", "image": {"reference": "mirror.test/docker.io/shop/model:3"}}],
            },
        }))
        .unwrap();
        let expected = [
            ("mirror.test/docker.io/library/nginx:1.29", "nginx:1.29"),
            ("mirror.test/docker.io/shop/model:3", "docker.io/shop/model:3"),
        ];
        assert_eq!(originals(&pod, &routing()), expected);
        assert_eq!(originals(&Pod::default(), &routing()), []);
    }

    /// In a roll-out the new ReplicaSet has nothing that serves, and the Deployment has.
    #[test]
    fn the_replica_sets_of_a_deployment_serve_together() {
        let owner = |kind: &str, name: &str| {
            let pod: Pod = serde_json::from_value(serde_json::json!({
                "metadata": {
                    "name": "web-1", "namespace": "a", "labels": {"pod-template-hash": "5d9c"},
                    "ownerReferences": [
                        {"uid": "other", "kind": kind, "name": name},
                        {"uid": "u", "kind": kind, "name": name, "controller": true},
                    ],
                },
            }))
            .unwrap();
            pod.as_patient().owner.map(str::to_owned)
        };
        assert_eq!(owner("ReplicaSet", "web-5d9c").as_deref(), Some("web"));
        for (kind, name) in [
            ("ReplicaSet", "web-6e0d"),
            ("ReplicaSet", "5d9c"),
            ("ReplicaSet", "-5d9c"),
            ("StatefulSet", "web-5d9c"),
        ] {
            assert_eq!(owner(kind, name).as_deref(), Some("u"), "{kind} {name}");
        }
    }

    /// Where nobody injects, Pods keep it, and nobody can pull it.
    #[test]
    fn a_placeholder_is_no_image_in_use() {
        let in_use = |container: &str| {
            let pod: Pod = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "web", "namespace": "a"},
                "spec": {"containers": [{"name": container, "image": "auto"}]},
            }))
            .unwrap();
            images(&pod, &routing()).len()
        };
        assert_eq!((in_use("istio-proxy"), in_use("app")), (0, 1));
    }

    #[test]
    fn pulls_from_a_mirror_are_told_by_the_containers_states() {
        let pod = |image: &str, state: serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "web", "namespace": "a", "annotations": {
                    format!("{}app", ORIGINAL_IMAGE_PREFIX): "nginx:1.29",
                }},
                "spec": {"containers": [{"name": "app", "image": image}]},
                "status": {"containerStatuses": [{"name": "app", "state": state}]},
            }))
            .unwrap()
        };
        let mirrored = "mirror.test/docker.io/library/nginx:1.29";
        let found = |image: &str, state| {
            let pulled = pulled(&pod(image, state), &routing());
            pulled.first().map(|pulled| {
                assert_eq!(
                    (&*pulled.mirror, pulled.key.as_str()),
                    ("main", "docker.io/library/nginx:1.29")
                );
                pulled.pull
            })
        };
        let says = |reason: &str, message: &str| serde_json::json!({"waiting": {"reason": reason, "message": message}});
        let of = |image: &str| format!("failed to pull and unpack image \"{image}\": x");
        let waiting = |reason: &str| says(reason, &of(mirrored));
        let running = serde_json::json!({"running": {"startedAt": "2030-01-01T00:00:00Z"}});
        let ended = serde_json::json!({"terminated": {"exitCode": 1, "startedAt": "2030-01-01T00:00:00Z"}});
        let failure = |code| Failure {
            cause: Cause::Other,
            code,
        };
        for code in ["ErrImagePull", "RegistryUnavailable", "SignatureValidationFailed"] {
            assert_eq!(found(mirrored, waiting(code)), Some(Pull::Failed(failure(code))));
        }
        assert_eq!(
            found(mirrored, waiting("ImagePullBackOff")),
            Some(Pull::Waiting(failure("ImagePullBackOff")))
        );
        assert_eq!(found(mirrored, waiting("ContainerCreating")), None);
        // It speaks of the image before, of the node's own limit, or of nothing.
        for message in [of("nginx:1.29"), "pull QPS exceeded".to_owned(), String::new()] {
            assert_eq!(found(mirrored, says("ErrImagePull", &message)), None, "{message}");
        }
        let started = Timestamp::from_millis(1_893_456_000_000);
        for state in [running.clone(), ended] {
            assert_eq!(found(mirrored, state), Some(Pull::Done(started)));
        }
        assert_eq!(found("nginx:1.29", running), None);
    }

    #[test]
    fn what_tells_of_owners_that_fight_is_read_of_a_pod() {
        let mirrored = "mirror.test/docker.io/library/nginx:1.29";
        let pod = |change: &dyn Fn(&mut serde_json::Value)| -> Pod {
            let mut pod = serde_json::json!({
                "metadata": {
                    "name": "web-0", "namespace": "a", "uid": "p-1",
                    "annotations": {format!("{}app", ORIGINAL_IMAGE_PREFIX): "nginx:1.29"},
                    "creationTimestamp": "2030-01-01T00:00:00Z",
                    "deletionTimestamp": "2030-01-01T00:02:00Z", "deletionGracePeriodSeconds": 60,
                    "ownerReferences": [
                        {"apiVersion": "example.com/v1", "kind": "Other", "name": "other", "uid": "o-1"},
                        {"apiVersion": "example.com/v1", "kind": "Web", "name": "web", "uid": "w-1", "controller": true},
                    ],
                },
                "spec": {"nodeName": "node-1", "containers": [{"name": "app", "image": mirrored}]},
                "status": {"conditions": [
                    {"type": "Ready", "status": "False", "lastTransitionTime": "2030-01-01T00:00:30Z"},
                ]},
            });
            change(&mut pod);
            serde_json::from_value(pod).unwrap()
        };
        let routing = routing();
        let known = pod(&|_| ());
        let owned = known.as_owned(&routing).unwrap();
        let created = owned.created.unwrap();
        assert_eq!(
            (owned.owner.kind, owned.owner.uid, owned.node),
            ("Web", "w-1", "node-1")
        );
        assert_eq!(owned.deleted, Some(created.after(Duration::from_mins(1))));
        assert_eq!(owned.ready, Some((false, created.after(Duration::from_secs(30)))));
        assert!(owned.is_rewritten && !owned.is_disrupted);

        // The same is wanted of a Pod that is not rewritten, and another thing where a revision is another.
        let revision = |change: &dyn Fn(&mut serde_json::Value)| {
            let pod = pod(change);
            let owned = pod.as_owned(&routing).unwrap();
            (
                owned.is_rewritten,
                owned.revision == known.as_owned(&routing).unwrap().revision,
            )
        };
        let image = |pod: &mut serde_json::Value| pod["spec"]["containers"][0]["image"] = "nginx:1.29".into();
        assert_eq!(revision(&image), (false, true));
        let other = |pod: &mut serde_json::Value| pod["spec"]["containers"][0]["image"] = "nginx:1.30".into();
        assert_eq!(revision(&other), (false, false));
        for label in [
            "controller-revision-hash",
            "rollouts-pod-template-hash",
            "pod-template-hash",
        ] {
            let label =
                |pod: &mut serde_json::Value| pod["metadata"]["labels"] = serde_json::json!({label: "x"});
            assert_eq!(revision(&label), (true, false));
        }
        let disrupted = pod(&|pod| {
            pod["status"]["conditions"] = serde_json::json!([{"type": "DisruptionTarget", "status": "True"}]);
        });
        assert!(disrupted.as_owned(&routing).unwrap().is_disrupted);

        // Whose owners never compare images.
        let owned_by = |api_version: &str, kind: &str, template: bool| {
            let pod = pod(&|pod| {
                let owner = &mut pod["metadata"]["ownerReferences"][1];
                (owner["apiVersion"], owner["kind"]) = (api_version.into(), kind.into());
                if template {
                    pod["metadata"]["labels"] = serde_json::json!({"pod-template-hash": "x"});
                }
            });
            pod.as_owned(&routing).is_some()
        };
        assert!(owned_by("apps/v1", "StatefulSet", true) && owned_by("apps/v1", "ReplicaSet", false));
        assert!(!owned_by("apps/v1", "ReplicaSet", true) && !owned_by("v1", "ReplicationController", false));
        // What cannot be is nobody's: the API server takes any text.
        let odd = |field: &str, text: &str| {
            let pod = pod(&|pod| pod["metadata"]["ownerReferences"][1][field] = text.into());
            pod.as_owned(&routing).is_none()
        };
        for name in [
            "a b",
            "a/b",
            "?a",
            "..",
            "a.",
            "-a",
            "A",
            "\u{1}",
            &"a".repeat(254),
        ] {
            assert!(odd("name", name), "{name}");
        }
        assert!(!odd("name", "a-1.b") && !odd("name", &"a".repeat(253)));
        assert!(odd("uid", &"a".repeat(65)) && odd("uid", "\"") && !odd("uid", &"a".repeat(64)));
        assert!(odd("kind", &"a".repeat(64)) && odd("kind", "\u{202e}"));
        assert!(odd("apiVersion", "a.b\n/v1") && odd("apiVersion", &format!("a.b/{}", "v".repeat(314))));
        let nobodys = pod(&|pod| pod["metadata"]["ownerReferences"] = serde_json::json!([]));
        assert!(nobodys.as_owned(&routing).is_none());
    }

    #[test]
    fn every_place_of_a_pod_is_read() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "a", "annotations": {
                format!("{}model", ORIGINAL_VOLUME_PREFIX): "docker.io/acme/model:1",
            }},
            "spec": {
                "containers": [{"name": "app", "image": "nginx:1", "command": ["x"]}],
                "initContainers": [{"name": "init", "image": "busybox:1"}],
                "ephemeralContainers": [{"name": "debug", "image": "debug:1"}],
                "volumes": [
                    {"name": "model", "image": {"reference": "mirror.test/docker.io/acme/model:1"}},
                    {"name": "empty", "emptyDir": {}},
                ],
            },
        }))
        .unwrap();
        let keys = images(&pod, &routing());
        let expected = [
            "library/nginx:1",
            "library/busybox:1",
            "library/debug:1",
            "acme/model:1",
        ];
        let keys: Vec<_> = keys.iter().map(ImageKey::as_str).collect();
        assert_eq!(keys, expected.map(|name| format!("docker.io/{name}")));
    }
}
