//! Demand: the images of the cluster's Pods, handed to the mirrors that serve them.
//!
//! Of a Pod nothing is kept but the keys of its images. What was rewritten counts as its original,
//! where the mapping proves it; an image that names a mirror without such a proof is nobody's.

use std::{collections::BTreeSet, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1 as core;
use kube::{
    Api, Client, ResourceExt as _,
    api::ApiResource,
    core::{NotUsed, Object},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::mirrors::endless;
use crate::{
    api::{MODE_LABEL, ORIGINAL_IMAGE_PREFIX, ORIGINAL_VOLUME_PREFIX},
    clock,
    domain::{demand::Used, image::Reference, mirror::Mode, routing::Routing, snapshot::Snapshot},
    state::{Demand, Store},
};

/// Pods a page of the initial list.
const PAGE: u32 = 500;

/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(100);

/// How often everything is gone through: new images that found no room, times of use.
const GO_THROUGH: Duration = Duration::from_secs(10);

/// How many new images are handed on at once; the rest comes with the next round.
const AT_ONCE: usize = 500;

/// The part of a Pod that is read.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Images {
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

type Pod = Object<Images, NotUsed>;

/// What decides about demand.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The mode of namespaces without the label, as the webhook configuration has it.
    pub default_mode: Mode,
    /// An image that no Pod has used for so long is forgotten.
    pub forget_after: Duration,
}

pub(super) struct Pods {
    pub(super) store: Store,
    pub(super) settings: Settings,
    pub(super) demand: mpsc::Sender<Demand>,
}

impl Pods {
    pub(super) async fn run(self, client: Client) {
        let resource = ApiResource::erase::<core::Pod>(&());
        let api = Api::<Pod>::all_with(client, &resource);
        let config = watcher::Config::default().page_size(PAGE);
        let mut pods = endless("pods", watcher(api, config).default_backoff());
        let mut snapshots = self.store.subscribe();
        let mut ticks = interval(GO_THROUGH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut used, mut listing) = (Used::default(), Used::default());
        let mut complete = false;
        let mut due: Option<Instant> = None;
        loop {
            tokio::select! {
                Some(event) = pods.next() => match event {
                    Event::Init => listing = Used::default(),
                    Event::InitApply(pod) => self.take(&mut listing, &pod),
                    Event::InitDone => {
                        used = std::mem::take(&mut listing);
                        complete = true;
                    }
                    Event::Apply(pod) => self.take(&mut used, &pod),
                    Event::Delete(pod) => {
                        used.remove(&pod.namespace().unwrap_or_default(), &pod.name_any());
                        continue;
                    }
                },
                Ok(()) = snapshots.changed() => {}
                _ = ticks.tick() => {
                    if complete {
                        self.forget(&used);
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    due = None;
                    self.hand_on(&used);
                    continue;
                }
            }
            if complete {
                due.get_or_insert_with(|| Instant::now() + GATHER);
            }
        }
    }

    fn take(&self, used: &mut Used, pod: &Pod) {
        let snapshot = self.store.snapshot();
        let images = images(pod, &snapshot.routing);
        used.set(&pod.namespace().unwrap_or_default(), &pod.name_any(), images);
    }

    /// Hands new images on and notes the use of known ones.
    fn hand_on(&self, used: &Used) {
        let snapshot = self.store.snapshot();
        let now = clock::now();
        let mut handed_on = 0;
        for (mirror, key) in self.wanted(&snapshot, used) {
            let known = {
                let index = self.store.index();
                index.touch(mirror, key, now);
                index.contains(mirror, key)
            };
            if known || handed_on >= AT_ONCE {
                continue;
            }
            let demand = Demand {
                mirror: mirror.to_owned(),
                key: key.to_owned(),
            };
            if self.demand.try_send(demand).is_err() {
                break;
            }
            handed_on += 1;
        }
    }

    /// Returns mirror and key of every image that a mirror should hold for the Pods it serves.
    fn wanted<'a>(&self, snapshot: &'a Snapshot, used: &'a Used) -> BTreeSet<(&'a str, &'a str)> {
        let mut wanted = BTreeSet::new();
        for (namespace, key) in used.images() {
            if !self.is_on(snapshot, namespace) {
                continue;
            }
            let Some(name) = name_of(key) else { continue };
            for candidate in snapshot.routing.candidates(name).ordered {
                let mirror = snapshot.routing.mirror(candidate.mirror);
                if mirror.mode != Mode::Off && snapshot.serves(candidate.mirror, namespace) {
                    wanted.insert((mirror.name.as_str(), key));
                }
            }
        }
        wanted
    }

    fn is_on(&self, snapshot: &Snapshot, namespace: &str) -> bool {
        if snapshot.left_alone.contains(namespace) {
            return false;
        }
        let labels = snapshot.namespaces.get(namespace);
        let label = labels.and_then(|labels| labels.get(MODE_LABEL));
        Mode::of_namespace(label.map(String::as_str), self.settings.default_mode) != Mode::Off
    }

    /// Forgets images that no Pod has used for long.
    fn forget(&self, used: &Used) {
        let snapshot = self.store.snapshot();
        let wanted = self.wanted(&snapshot, used);
        let now = clock::now();
        for (_, mirror) in snapshot.routing.mirrors() {
            let unused: Vec<Box<str>> = {
                let index = self.store.index();
                for (key, _) in index.entries(&mirror.name) {
                    if wanted.contains(&(mirror.name.as_str(), key)) {
                        index.touch(&mirror.name, key, now);
                    }
                }
                index
                    .entries(&mirror.name)
                    .filter(|(_, entry)| now.since(entry.last_used()) > self.settings.forget_after)
                    .map(|(key, _)| Box::from(key))
                    .collect()
            };
            let mut index = self.store.index_mut();
            for key in unused {
                index.remove(&mirror.name, &key);
            }
        }
    }
}

/// Returns the name of a key's image, without tag and digest.
fn name_of(key: &str) -> Option<&str> {
    match key.split_once('@') {
        Some((name, _)) => Some(name),
        None => key.rsplit_once(':').map(|(name, _)| name),
    }
}

/// Returns the keys of what a Pod pulls, as its user wrote it.
fn images(pod: &Pod, routing: &Routing) -> Vec<Box<str>> {
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
        if let Some(key) = key_of(image, recorded.map(String::as_str), routing) {
            keys.push(key);
        }
    }
    keys
}

fn key_of(image: &str, recorded: Option<&str>, routing: &Routing) -> Option<Box<str>> {
    let mut key = String::new();
    Reference::parse(image).ok()?.write_key(&mut key);
    let mirrors: Vec<_> = routing.mirrors_named_by(name_of(&key)?).collect();
    if mirrors.is_empty() {
        return Some(key.into());
    }
    let original = Reference::parse(recorded?).ok()?;
    let proven = mirrors
        .into_iter()
        .any(|mirror| routing.mirror(mirror).maps_to(&original, image));
    original.write_key(&mut key);
    proven.then(|| key.into())
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
        assert_eq!(key_of(image, recorded, &routing()).as_deref(), expected);
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
