//! What is read of a Pod: its images, and how its containers stand with them.
//!
//! What was rewritten counts as its original, where the mapping proves it; an image that names a
//! mirror without such a proof is nobody's.

use kube::{ResourceExt as _, core::Object};
use serde::{Deserialize, Serialize};

use crate::{
    api::{ORIGINAL_IMAGE_PREFIX, ORIGINAL_VOLUME_PREFIX},
    domain::{
        image::Reference,
        pulls::{Pull, Pulled},
        routing::{MirrorId, Routing},
    },
};

/// The part of a Pod that is read.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Images {
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    ephemeral_containers: Vec<Container>,
    volumes: Vec<Volume>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Container {
    name: String,
    image: String,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Volume {
    name: String,
    image: Option<ImageVolume>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct ImageVolume {
    reference: String,
}

/// The part of a Pod's status that is read.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Statuses {
    #[serde(rename = "containerStatuses")]
    containers: Vec<ContainerStatus>,
    #[serde(rename = "initContainerStatuses")]
    init_containers: Vec<ContainerStatus>,
    #[serde(rename = "ephemeralContainerStatuses")]
    ephemeral_containers: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct ContainerStatus {
    name: String,
    state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct ContainerState {
    waiting: Option<Waiting>,
    running: Option<Begun>,
    terminated: Option<Begun>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Waiting {
    reason: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Begun {}

pub(super) type Pod = Object<Images, Statuses>;

/// Returns the name of a key's image, without tag and digest.
pub(super) fn name_of(key: &str) -> Option<&str> {
    match key.split_once('@') {
        Some((name, _)) => Some(name),
        None => key.rsplit_once(':').map(|(name, _)| name),
    }
}

/// Returns the keys of what a Pod pulls, as its user wrote it.
pub(super) fn images(pod: &Pod, routing: &Routing) -> Vec<Box<str>> {
    let Images {
        containers,
        init_containers,
        ephemeral_containers,
        volumes,
    } = &pod.spec;
    let containers = containers
        .iter()
        .chain(init_containers)
        .chain(ephemeral_containers);
    let containers = containers.map(|container| (ORIGINAL_IMAGE_PREFIX, &container.name, &container.image));
    let volumes = volumes.iter().filter_map(|volume| {
        let image = volume.image.as_ref()?;
        Some((ORIGINAL_VOLUME_PREFIX, &volume.name, &image.reference))
    });
    let mut keys = Vec::new();
    for (prefix, name, image) in containers.chain(volumes) {
        let recorded = pod.annotations().get(&format!("{prefix}{name}"));
        if let Some((key, _)) = key_of(image, recorded.map(String::as_str), routing) {
            keys.push(key);
        }
    }
    keys
}

/// Returns how a Pod's containers stand with the images that they were sent to a mirror for.
pub(super) fn pulled(pod: &Pod, routing: &Routing) -> Vec<Pulled> {
    let Some(statuses) = &pod.status else {
        return Vec::new();
    };
    let Images {
        containers,
        init_containers,
        ephemeral_containers,
        volumes: _,
    } = &pod.spec;
    let places = [
        (containers, &statuses.containers),
        (init_containers, &statuses.init_containers),
        (ephemeral_containers, &statuses.ephemeral_containers),
    ];
    let places = places
        .into_iter()
        .flat_map(|(containers, statuses)| statuses.iter().map(move |status| (containers, status)));
    places
        .filter_map(|(containers, status)| {
            let pull = pull(&status.state)?;
            let container = containers.iter().find(|entry| entry.name == status.name)?;
            let recorded = pod
                .annotations()
                .get(&format!("{ORIGINAL_IMAGE_PREFIX}{}", container.name))?;
            let (key, mirror) = key_of(&container.image, Some(recorded), routing)?;
            let mirror = Box::from(routing.mirror(mirror?).name.as_str());
            Some(Pulled { mirror, key, pull })
        })
        .collect()
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

/// Returns the key of what the user wrote, and the mirror that it was sent to.
fn key_of(image: &str, recorded: Option<&str>, routing: &Routing) -> Option<(Box<str>, Option<MirrorId>)> {
    let mut key = String::new();
    Reference::parse(image).ok()?.write_key(&mut key);
    let mirrors: Vec<_> = routing.mirrors_named_by(name_of(&key)?).collect();
    if mirrors.is_empty() {
        return Some((key.into(), None));
    }
    let original = Reference::parse(recorded?).ok()?;
    let proven = mirrors
        .into_iter()
        .find(|mirror| routing.mirror(*mirror).maps_to(&original, image))?;
    original.write_key(&mut key);
    Some((key.into(), Some(proven)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::file;

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

    #[track_caller]
    fn check(image: &str, recorded: Option<&str>, expected: Option<&str>) {
        let found = key_of(image, recorded, &routing());
        assert_eq!(found.map(|(key, _)| key).as_deref(), expected);
    }

    #[test]
    fn what_was_rewritten_counts_as_its_original_where_the_mapping_proves_it() {
        let nginx = "docker.io/library/nginx:1.29";
        check("nginx:1.29", None, Some(nginx));
        // Somebody else's annotation on an image that is no mirror's means nothing.
        check("nginx:1.29", Some("redis:8"), Some(nginx));
        let mirrored = "mirror.test/docker.io/library/nginx:1.29";
        check(mirrored, Some("nginx:1.29"), Some(nginx));
        check(mirrored, Some("redis:8"), None);
        check(mirrored, None, None);
        check("not an image", None, None);
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
                    (&*pulled.mirror, &*pulled.key),
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
        let keys: Vec<_> = keys.iter().map(|key| &**key).collect();
        assert_eq!(keys, expected.map(|name| format!("docker.io/{name}")));
    }
}
