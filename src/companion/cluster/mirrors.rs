//! What the cluster says of the mirrors: ImageMirrors, Namespaces, Nodes and Kagami's own Secrets,
//! watched and put to use.
//!
//! A resource that cannot be used, or not even be read, is told with its faults; the last good one
//! of its name stays in force. No object stops a watch.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::BoxStream};
use k8s_openapi::api::core::v1::{Namespace, Node, Secret as ApiSecret};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::ApiResource,
    core::{DynamicObject, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::probe_secret;
use crate::{
    api::{
        self,
        mirror::{Connection, secret_references},
        newer::{self, Reading, Unknown},
        v1alpha1::{ImageMirror, ImageMirrorStatus},
    },
    clock,
    credentials::Secret,
    domain::{mirror::Mirror, selector::Labels},
    state::{
        Store,
        feed::{Feed, Keep, SecretFaults},
        file::Configuration,
    },
    telemetry::chain,
};

/// How long changes are gathered before they are put to use together.
const GATHER: Duration = Duration::from_millis(50);

/// Pages of initial lists.
const PAGE: u32 = 500;

/// Node label with the architecture.
const ARCHITECTURE_LABEL: &str = "kubernetes.io/arch";

/// One ImageMirror as it stands in the cluster.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct MirrorResource {
    pub(super) uid: String,
    pub(super) version: u64,
    pub(super) generation: i64,
    pub(super) status: ImageMirrorStatus,
    /// Why the resource is not in force as it stands; empty if it is.
    pub(super) faults: Vec<String>,
    /// What this program does not know of the resource.
    pub(super) unknown: Vec<Unknown>,
    /// Whether Pods need a pull secret for this mirror.
    pub(super) pull_secret: bool,
    /// The Secret of the endpoint's credentials, if there is none of that name.
    pub(super) missing_secret: Option<String>,
    /// Why that Secret gives no credentials, if it is there and does not.
    pub(super) secret_fault: Option<String>,
}

/// What the cluster says that goes into statuses.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ClusterView {
    pub(super) mirrors: BTreeMap<String, MirrorResource>,
    pub(super) platforms: Vec<String>,
    /// The read credentials of mirrors, by mirror, as `dockerconfigjson`.
    pub(super) probe_credentials: BTreeMap<String, Vec<u8>>,
}

impl ClusterView {
    /// Returns the upstreams of a mirror that fail, as its status has it.
    pub(super) fn failing_upstreams(&self, mirror: &str) -> &[String] {
        let resource = self.mirrors.get(mirror);
        resource.map_or(&[], |resource| &resource.status.failing_upstreams)
    }
}

/// A set of objects as a watch tells it.
#[derive(Debug)]
struct Watched<V> {
    now: BTreeMap<String, V>,
    listing: BTreeMap<String, V>,
    complete: bool,
}

impl<V> Default for Watched<V> {
    fn default() -> Self {
        Self {
            now: BTreeMap::new(),
            listing: BTreeMap::new(),
            complete: false,
        }
    }
}

impl<V> Watched<V> {
    /// Takes in one event.
    fn take<K: Resource>(&mut self, event: Event<K>, value: impl Fn(K) -> V) {
        let name = |object: &K| object.meta().name.clone().unwrap_or_default();
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(object) => {
                self.listing.insert(name(&object), value(object));
            }
            Event::InitDone => {
                self.now = std::mem::take(&mut self.listing);
                self.complete = true;
            }
            Event::Apply(object) => {
                self.now.insert(name(&object), value(object));
            }
            Event::Delete(object) => {
                self.now.remove(&name(&object));
            }
        }
    }
}

type Good = BTreeMap<String, (Mirror, Connection)>;

/// An ImageMirror as it was read.
#[derive(Debug)]
struct Read {
    resource: Result<ImageMirror, (Box<DynamicObject>, Vec<String>)>,
    unknown: Vec<Unknown>,
}

/// Follows the cluster and puts it to use, until it is dropped.
pub(super) struct Follower {
    mirrors: Watched<Read>,
    namespaces: Watched<Labels>,
    architectures: Watched<Option<String>>,
    secrets: Watched<Secret>,
    /// The last good of each mirror.
    good: Good,
    feed: Feed,
    published: watch::Sender<Option<Arc<ClusterView>>>,
}

impl Follower {
    pub(super) fn new(
        store: &Store,
        left_alone: BTreeSet<String>,
        published: watch::Sender<Option<Arc<ClusterView>>>,
    ) -> Self {
        Self {
            mirrors: Watched::default(),
            namespaces: Watched::default(),
            architectures: Watched::default(),
            secrets: Watched::default(),
            good: Good::new(),
            feed: Feed::new(store.clone(), left_alone),
            published,
        }
    }

    pub(super) async fn run(mut self, client: Client, namespace: String) {
        let config = || watcher::Config::default().page_size(PAGE);
        let resource = ApiResource::erase::<ImageMirror>(&());
        let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
        let mut mirrors = endless("imagemirrors", watcher(api, config()).default_backoff());
        let api = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
        let mut namespaces = endless("namespaces", watcher(api, config()).default_backoff());
        let api = Api::<PartialObjectMeta<Node>>::all(client.clone());
        let mut nodes = endless("nodes", watcher(api, config()).default_backoff());
        let api = Api::<ApiSecret>::namespaced(client, &namespace);
        let mut secrets = endless("secrets", watcher(api, config()).default_backoff());
        let schema = api::schema::image_mirror();
        let mut due: Option<Instant> = None;
        loop {
            tokio::select! {
                Some(event) = mirrors.next() => self.mirrors.take(event, |object| read(&schema, object)),
                Some(event) = namespaces.next() => {
                    self.namespaces.take(event, |object| object.metadata.labels.unwrap_or_default());
                }
                Some(event) = nodes.next() => self.architectures.take(event, |object| {
                    object.metadata.labels.and_then(|mut labels| labels.remove(ARCHITECTURE_LABEL))
                }),
                Some(event) = secrets.next() => self.secrets.take(event, secret),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    due = None;
                    self.apply();
                    continue;
                }
            }
            let complete = self.mirrors.complete
                && self.namespaces.complete
                && self.architectures.complete
                && self.secrets.complete;
            if complete {
                due.get_or_insert_with(|| Instant::now() + GATHER);
            }
        }
    }

    /// Puts to use what is known now, and tells it.
    fn apply(&mut self) {
        let mut faults: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut next = Good::new();
        for (name, read) in &self.mirrors.now {
            let parsed = match &read.resource {
                Ok(resource) => api::mirror::mirror(resource)
                    .map_err(|faults| faults.iter().map(ToString::to_string).collect()),
                Err((_, faults)) => Err(faults.clone()),
            };
            match parsed {
                Ok(good) => {
                    next.insert(name.clone(), good);
                }
                Err(why) => {
                    faults.insert(name.clone(), why);
                    if let Some(last) = self.good.get(name) {
                        next.insert(name.clone(), last.clone());
                    }
                }
            }
        }
        let names = self.mirrors.now.keys().cloned().collect();
        // Each time at least one mirror goes back to its last good form, or goes.
        let secret_faults = loop {
            // Images stay known while their mirror is out of force: it is still the cluster's.
            let keep = Keep::Of(&names);
            let unusable = match self.feed.apply(self.configuration(&next), keep, clock::now()) {
                Ok(secret_faults) => break secret_faults,
                Err(unusable) => unusable,
            };
            for why in &unusable {
                let fault = chain(why);
                let last = self
                    .good
                    .get(&why.mirror)
                    .filter(|last| next.get(&why.mirror) != Some(last) && !faults.contains_key(&why.mirror));
                match last {
                    Some(last) => next.insert(why.mirror.clone(), last.clone()),
                    None => next.remove(&why.mirror),
                };
                faults.entry(why.mirror.clone()).or_default().push(fault);
            }
        };
        self.good = next;
        self.publish(&faults, &secret_faults);
    }

    fn configuration(&self, mirrors: &Good) -> Configuration {
        Configuration {
            mirrors: mirrors.values().cloned().collect(),
            namespaces: self.namespaces.now.clone(),
            secrets: self.secrets.now.clone(),
            pull_secret_namespaces: BTreeSet::new(),
        }
    }

    fn publish(&self, faults: &BTreeMap<String, Vec<String>>, secret_faults: &SecretFaults) {
        let mirrors = self.mirrors.now.iter().map(|(name, read)| {
            let resource = read.resource.as_ref();
            let (metadata, status, probe_secret) = match &read.resource {
                Ok(resource) => (
                    &resource.metadata,
                    resource.status.clone().unwrap_or_default(),
                    secret_references(&resource.spec)
                        .into_iter()
                        .find(|(field, _)| field.starts_with("spec.endpoint."))
                        .map(|(_, name)| name.to_owned()),
                ),
                Err((object, _)) => (&object.metadata, status_of(object), None),
            };
            let resourced = MirrorResource {
                uid: metadata.uid.clone().unwrap_or_default(),
                version: version(metadata.resource_version.as_deref()),
                generation: metadata.generation.unwrap_or_default(),
                status,
                faults: faults.get(name).cloned().unwrap_or_default(),
                unknown: read.unknown.clone(),
                pull_secret: resource.is_ok_and(|resource| resource.spec.pull_secret.is_some()),
                missing_secret: probe_secret.filter(|name| !self.secrets.now.contains_key(name)),
                secret_fault: secret_faults.get(name).map(|fault| chain(fault)),
            };
            (name.clone(), resourced)
        });
        let mirrors: BTreeMap<_, _> = mirrors.collect();
        let platforms: BTreeSet<String> = self.architectures.now.values().flatten().cloned().collect();
        let credentials = |(name, (mirror, connection)): (&String, &(Mirror, Connection))| {
            let secret = self.secrets.now.get(connection.probe_secret.as_ref()?)?;
            Some((name.clone(), probe_secret::entry(mirror, connection, secret)))
        };
        let cluster = ClusterView {
            probe_credentials: self.good.iter().filter_map(credentials).collect(),
            mirrors,
            platforms: platforms.into_iter().collect(),
        };
        self.published.send_if_modified(|current| {
            let differs = current.as_deref() != Some(&cluster);
            *current = Some(Arc::new(cluster));
            differs
        });
    }
}

/// Returns the events of a watch, its faults told and left out; watches go on by themselves.
pub(super) fn endless<K: Send + 'static>(
    what: &'static str,
    events: impl futures_util::Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
) -> BoxStream<'static, Event<K>> {
    events
        .filter_map(move |event| {
            std::future::ready(match event {
                Ok(event) => Some(event),
                Err(error) => {
                    tracing::warn!(what, error = chain(&error), "a watch failed; trying again");
                    None
                }
            })
        })
        .boxed()
}

/// Returns a version as a number. API servers promise that they compare as such (KEP-5504); any
/// other is zero, and so older than every number.
pub(super) fn version(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn read(schema: &Value, object: DynamicObject) -> Read {
    // A newer status is no reason to do without the settings.
    let Reading { taken, unknown } = newer::read(schema, &object.name_any(), &object.data["spec"]);
    let resource = match taken {
        Ok(mut resource) => {
            resource.status = Some(status_of(&object));
            resource.metadata = object.metadata;
            resource.metadata.managed_fields = None;
            Ok(resource)
        }
        Err(faults) => Err((Box::new(object), faults.iter().map(ToString::to_string).collect())),
    };
    Read { resource, unknown }
}

pub(super) fn status_of(object: &DynamicObject) -> ImageMirrorStatus {
    object
        .data
        .get("status")
        .and_then(|status| serde_json::from_value(status.clone()).ok())
        .unwrap_or_default()
}

fn secret(object: ApiSecret) -> Secret {
    Secret {
        namespace: object.namespace(),
        type_: object.type_.unwrap_or_default(),
        data: object
            .data
            .unwrap_or_default()
            .into_iter()
            .filter(|(key, _)| Secret::is_of_docker(key))
            .map(|(key, value)| (key, value.0))
            .collect(),
    }
}
