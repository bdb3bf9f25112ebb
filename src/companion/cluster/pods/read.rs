//! What is read of a Pod: its images, and how its containers stand with them.
//!
//! What was rewritten counts as its original, where the mapping proves it; an image that names a
//! mirror without such a proof is nobody's.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use crate::{
    api::DECISIONS_ANNOTATION,
    cluster::watch::Versioned,
    domain::{
        image::ImageKey,
        original::{RecordedDecisions, key_of},
        pod::{PlaceKind, PlaceLabel},
        pulls::{Pull, Pulled},
        routing::{MirrorId, Routing},
    },
};

/// The part of a Pod that is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    metadata: Metadata,
    spec: Images,
    status: Statuses,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    namespace: String,
    name: String,
    resource_version: String,
    annotations: BTreeMap<String, String>,
}

impl Pod {
    /// Returns namespace and name.
    pub(super) fn id(&self) -> (&str, &str) {
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
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    ephemeral_containers: Vec<Container>,
    volumes: Vec<Volume>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    name: String,
    image: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Volume {
    name: String,
    image: Option<ImageVolume>,
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
    #[serde(rename = "containerStatuses")]
    containers: Vec<ContainerStatus>,
    #[serde(rename = "initContainerStatuses")]
    init_containers: Vec<ContainerStatus>,
    #[serde(rename = "ephemeralContainerStatuses")]
    ephemeral_containers: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    name: String,
    state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    waiting: Option<Waiting>,
    running: Option<Begun>,
    terminated: Option<Begun>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Waiting {
    reason: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Begun {}

/// Returns the keys of what a Pod pulls, as its user wrote it.
pub(super) fn images(pod: &Pod, routing: &Routing) -> Vec<ImageKey> {
    let Images {
        containers,
        init_containers,
        ephemeral_containers,
        volumes,
    } = &pod.spec;
    let lists = [
        (PlaceKind::Container, containers),
        (PlaceKind::InitContainer, init_containers),
        (PlaceKind::EphemeralContainer, ephemeral_containers),
    ];
    let containers = lists.into_iter().flat_map(|(kind, containers)| {
        containers
            .iter()
            .map(move |container| (PlaceLabel::new(kind, &container.name), &container.image))
    });
    let volumes = volumes.iter().filter_map(|volume| {
        let image = volume.image.as_ref()?;
        Some((PlaceLabel::new(PlaceKind::Volume, &volume.name), &image.reference))
    });
    let record = Record::of(pod);
    let keys = containers
        .chain(volumes)
        .filter(|(place, image)| !place.holds_placeholder(image))
        .filter_map(|(place, image)| record.key_of(place, image, routing));
    keys.map(|(key, _)| key).collect()
}

/// Returns how a Pod's containers stand with the images that they were sent to a mirror for.
pub(super) fn pulled(pod: &Pod, routing: &Routing) -> Vec<Pulled> {
    let Images {
        containers,
        init_containers,
        ephemeral_containers,
        volumes: _,
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
            let pull = pull(&status.state)?;
            let place = PlaceLabel::new(kind, &status.name);
            let (key, mirror) = record.key_of(place, images.get(&status.name)?, routing)?;
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

/// Returns how a container stands with its image, as far as its state tells.
fn pull(state: &ContainerState) -> Option<Pull> {
    if state.running.is_some() || state.terminated.is_some() {
        return Some(Pull::Done);
    }
    match state.waiting.as_ref()?.reason.as_str() {
        "ErrImagePull" => Some(Pull::Failed),
        "ImagePullBackOff" => Some(Pull::Waiting),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{ORIGINAL_IMAGE_PREFIX, ORIGINAL_VOLUME_PREFIX},
        state::file,
    };

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
                "status": {"containerStatuses": [{"name": "app", "state": {"waiting": {"reason": "ErrImagePull"}}}]},
            }))
            .unwrap();
            pulled(&pod, &routing)[0].mirror.clone()
        };
        for name in ["main", "second"] {
            assert_eq!(&*pulled_from(name), name);
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
        let waiting = |reason| serde_json::json!({"waiting": {"reason": reason}});
        let running = serde_json::json!({"running": {"startedAt": "2030-01-01T00:00:00Z"}});
        assert_eq!(found(mirrored, waiting("ErrImagePull")), Some(Pull::Failed));
        assert_eq!(found(mirrored, waiting("ImagePullBackOff")), Some(Pull::Waiting));
        assert_eq!(found(mirrored, waiting("ContainerCreating")), None);
        assert_eq!(found(mirrored, running.clone()), Some(Pull::Done));
        assert_eq!(found("nginx:1.29", running), None);
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
