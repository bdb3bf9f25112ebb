//! What the cluster says of the mirrors: ImageMirrors, Namespaces, Nodes and Kagami's own Secrets,
//! watched and put to use.
//!
//! A change costs what it changes: one of a Node or a Namespace compiles no routing, and what is told
//! again changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::Client;
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use super::probe_entry;
use crate::{
    api::MODE_LABEL,
    clock,
    cluster::{
        collection::Collection,
        mirrors::{Document, Form, Mirrors},
        objects::{self, Metadata, Object, Outline},
        sources,
        watch::{self as cluster_watch, Event, Pulses, Source, Versioned},
    },
    companion::mirror::wants::Cluster,
    credentials::Secret,
    domain::{mirror::Mode, platform::Platforms, selector::Labels},
    state::{
        Store,
        configuration::Configuration,
        feed::{Feed, Keep, SecretFaults},
        logins::{Logins, PullLogins},
    },
    telemetry::chain,
};

/// How long changes are gathered before they are put to use together.
const GATHER: Duration = Duration::from_millis(50);

/// The Namespace that every cluster has, so that its UID is that of the cluster.
const OF_CLUSTER: &str = "kube-system";

/// Node labels with the operating system and the architecture.
const OS_LABEL: &str = "kubernetes.io/os";
const ARCHITECTURE_LABEL: &str = "kubernetes.io/arch";

/// One ImageMirror as it stands in the cluster, and what came of the Secret that it names.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct MirrorResource {
    pub(super) document: Arc<Document>,
    /// The Secret of the endpoint's credentials, if there is none of that name.
    pub(super) missing_secret: Option<String>,
    /// Why that Secret gives no credentials, if it is there and does not.
    pub(super) secret_fault: Option<String>,
    /// Whether the Secrets with which it is filled give logins, or what is wrong; none where it is not filled.
    pub(super) copy_logins: Option<Result<(), String>>,
}

/// What the cluster says that goes into statuses.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ClusterView {
    pub(super) mirrors: BTreeMap<String, MirrorResource>,
    pub(super) platforms: Vec<String>,
    /// The read credentials of mirrors, by mirror, as `dockerconfigjson`.
    pub(super) probe_credentials: BTreeMap<String, Vec<u8>>,
}

impl MirrorResource {
    pub(super) fn version(&self) -> u64 {
        self.document.version.unwrap_or_default().0
    }

    /// Whether the mirror is filled with images that it lacks.
    pub(super) fn is_filled(&self) -> bool {
        let form = self.document.form.as_ref();
        form.is_some_and(|(mirror, _)| mirror.copying.is_some())
    }

    /// Whether Pods need a pull secret for this mirror.
    pub(super) fn pull_secret(&self) -> bool {
        let form = self.document.form.as_ref();
        form.is_some_and(|(mirror, _)| mirror.pull_secret)
    }
}

impl ClusterView {
    /// Returns the upstreams of a mirror that fail, as its status has it.
    pub(super) fn failing_upstreams(&self, mirror: &str) -> &[String] {
        let resource = self.mirrors.get(mirror);
        resource.map_or(&[], |resource| &resource.document.status.failing_upstreams)
    }
}

/// Follows the cluster and puts it to use, until it is dropped.
pub(super) struct Follower {
    mirrors: Mirrors,
    namespaces: Collection<Labels>,
    platforms: Collection<Option<String>>,
    secrets: Collection<Secret>,
    store: Store,
    feed: Feed,
    published: watch::Sender<Option<Arc<ClusterView>>>,
    /// Whether the store has the mirrors and the Namespaces.
    configured: watch::Sender<bool>,
    due: Due,
    /// What is wrong with the Secrets of mirrors that are in force.
    secret_faults: SecretFaults,
    cluster: Cluster,
}

/// What is to be done because of what changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Due {
    /// Routing and clients are other ones.
    configuration: bool,
    secrets: bool,
    namespaces: bool,
    view: bool,
}

impl Follower {
    pub(super) fn new(
        store: &Store,
        left_alone: BTreeSet<String>,
        published: watch::Sender<Option<Arc<ClusterView>>>,
        configured: watch::Sender<bool>,
    ) -> Self {
        Self {
            configured,
            mirrors: Mirrors::default(),
            namespaces: Collection::default(),
            platforms: Collection::default(),
            secrets: Collection::default(),
            store: store.clone(),
            feed: Feed::new(store.clone(), left_alone),
            published,
            due: Due::default(),
            secret_faults: SecretFaults::new(),
            cluster: Cluster::default(),
        }
    }

    /// Returns the logins with which mirrors are filled.
    pub(super) fn logins(&self) -> Logins {
        self.feed.logins()
    }

    /// Returns which cluster it is, which is known as soon as the Namespaces are.
    pub(super) fn cluster(&self) -> Cluster {
        self.cluster.clone()
    }

    /// Returns the logins with which Pods may pull from mirrors.
    pub(super) fn pull_logins(&self) -> PullLogins {
        self.feed.pull_logins()
    }

    pub(super) async fn run(self, client: Client, namespace: String, pulses: Pulses) {
        let follower = Mutex::new(self);
        let changed = Notify::new();
        let (_never, relists) = watch::channel(0);
        let mirrors = follow(&client, sources::mirrors(), &pulses, &relists, |event| {
            note(&follower, &changed, |follower| follower.take_mirror(event));
        });
        let namespaces = follow(&client, sources::namespaces(), &pulses, &relists, |event| {
            note(&follower, &changed, |follower| follower.take_namespace(event));
        });
        let nodes = follow(&client, sources::nodes(), &pulses, &relists, |event| {
            note(&follower, &changed, |follower| follower.take_node(event));
        });
        let secrets = follow(
            &client,
            sources::secrets(&namespace),
            &pulses,
            &relists,
            |event| {
                note(&follower, &changed, |follower| follower.take_secret(event));
            },
        );
        let apply = async {
            loop {
                changed.notified().await;
                sleep(GATHER).await;
                lock(&follower).apply();
            }
        };
        tokio::join!(mirrors, namespaces, nodes, secrets, apply);
    }

    fn take_mirror(&mut self, event: Event<Object>) {
        let change = self.mirrors.take(event, |before, form| {
            Feed::check(before, form).map_err(|why| chain(&why))
        });
        self.due.configuration |= change.forms;
        self.due.view |= change.documents;
    }

    fn take_namespace(&mut self, event: Event<Outline>) {
        self.due.namespaces |= self.namespaces.take(event.map(|namespace| {
            let Metadata { name, uid, .. } = &namespace.metadata;
            if name == OF_CLUSTER && !uid.is_empty() {
                self.cluster.is(uid);
            }
            namespace_labels(namespace)
        }));
    }

    fn take_node(&mut self, event: Event<Outline>) {
        self.due.view |= self.platforms.take(event.map(|object| {
            let Metadata { name, labels, .. } = object.metadata;
            (name, platform(&labels.unwrap_or_default()))
        }));
    }

    fn take_secret(&mut self, event: Event<objects::Secret>) {
        self.due.secrets |= self.secrets.take(event.map(named_secret));
    }

    /// Whether there is something to put to use: nothing is before all mirrors and Namespaces were told once. By
    /// these alone stuck Pods are judged, whatever becomes of the rest.
    fn is_due(&self) -> bool {
        self.due != Due::default() && self.mirrors.is_complete() && self.namespaces.is_complete()
    }

    /// Whether everything was told once: before, nothing is told of the cluster, and so nobody looks at a mirror.
    fn is_complete(&self) -> bool {
        self.mirrors.is_complete()
            && self.namespaces.is_complete()
            && self.platforms.is_complete()
            && self.secrets.is_complete()
    }

    /// Puts to use what is known now, and tells it.
    fn apply(&mut self) {
        let due = std::mem::take(&mut self.due);
        if due.configuration {
            self.configure();
        } else {
            if due.namespaces {
                self.store.set_namespaces(self.namespaces.all());
            }
            if due.secrets {
                self.secret_faults = self.feed.renew(&self.secrets.all());
            }
        }
        self.configured.send_replace(true);
        let tells = due.configuration || due.secrets || due.view;
        if tells && self.is_complete() {
            self.publish();
        }
        // What is to be told is told once the rest is known.
        self.due.view = tells && !self.is_complete();
    }

    /// Puts every mirror to use in its last good form.
    fn configure(&mut self) {
        let configuration = Configuration {
            mirrors: self.mirrors.forms().cloned().collect(),
            closed: self.mirrors.closed().cloned().collect(),
            namespaces: self.namespaces.all(),
            secrets: self.secrets.all(),
            // What statuses tell is for decisions, of which there are none here.
            standings: BTreeMap::new(),
        };
        // Images stay known while their mirror is out of force: it is still the cluster's.
        let names = self.mirrors.iter().map(|(name, _)| name.clone()).collect();
        match self.feed.apply(configuration, Keep::Of(&names), clock::now()) {
            Ok(faults) => self.secret_faults = faults,
            Err(unusable) => {
                for why in &unusable {
                    // Each was checked; only the system can be short of something now.
                    tracing::error!(
                        error = chain(why),
                        "cannot use the ImageMirrors; the former ones stay in force"
                    );
                }
            }
        }
    }

    fn publish(&self) {
        let logins = self.feed.logins();
        let mirrors = self.mirrors.iter().map(|(name, document)| {
            let form = document.form.as_ref();
            let probe_secret = form.and_then(|(_, connection)| connection.probe_secret.as_ref());
            let missing_secret = probe_secret.filter(|name| self.secrets.get(name).is_none());
            let resource = MirrorResource {
                document: Arc::clone(document),
                missing_secret: missing_secret.cloned(),
                secret_fault: self.secret_faults.get(name).map(|fault| chain(fault)),
                copy_logins: logins.of(name).map(|logins| logins.troubles()),
            };
            (name.clone(), resource)
        });
        let mirrors: BTreeMap<_, _> = mirrors.collect();
        let platforms: BTreeSet<&String> = self
            .platforms
            .iter()
            .filter_map(|(_, platform)| platform.as_ref())
            .collect();
        let credentials = |(mirror, connection): &Form| {
            let secret = self.secrets.get(connection.probe_secret.as_ref()?)?;
            Some((
                mirror.name.clone(),
                probe_entry::entry(mirror, connection, secret),
            ))
        };
        let cluster = ClusterView {
            probe_credentials: self.mirrors.forms().filter_map(credentials).collect(),
            mirrors,
            platforms: platforms.into_iter().cloned().collect(),
        };
        self.published.send_if_modified(|current| {
            let differs = current.as_deref() != Some(&cluster);
            *current = Some(Arc::new(cluster));
            differs
        });
    }
}

/// Returns the name and labels of a Namespace. One that is being deleted counts as switched off, for as long as that
/// takes: the API server lets nothing be made there any more.
fn namespace_labels(namespace: Outline) -> (String, Labels) {
    let is_going = namespace.metadata.deletion_timestamp.is_some();
    let (name, mut labels) = namespace.into_labels();
    if is_going {
        labels.insert(MODE_LABEL.to_owned(), Mode::Off.as_label().to_owned());
    }
    (name, labels)
}

fn lock(follower: &Mutex<Follower>) -> MutexGuard<'_, Follower> {
    follower.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes something in, and says so where there is something to do then.
fn note(follower: &Mutex<Follower>, changed: &Notify, take: impl FnOnce(&mut Follower)) {
    let mut follower = lock(follower);
    take(&mut follower);
    if follower.is_due() {
        changed.notify_one();
    }
}

async fn follow<K: Clone + DeserializeOwned + Versioned>(
    client: &Client,
    source: Source,
    pulses: &Pulses,
    relists: &watch::Receiver<u64>,
    handle: impl FnMut(Event<K>),
) -> Infallible {
    let pulse = pulses.of(&source);
    cluster_watch::follow(client.clone(), source, pulse, relists.clone(), handle).await
}

/// Returns the platform of a node; none if its kubelet has not told yet.
fn platform(labels: &Labels) -> Option<String> {
    let (os, architecture) = (labels.get(OS_LABEL)?, labels.get(ARCHITECTURE_LABEL)?);
    // As images are named: a node's label tells no variant, so `arm` is the v7 that Kubernetes is built for.
    let mut known = Platforms::of(os, architecture, "").names();
    let name = known.next().map(str::to_owned);
    name.or_else(|| Some(format!("{os}/{architecture}")))
}

/// Returns a Secret's name, and what of it may be asked for; of the rest there are the keys alone, to tell
/// people what they gave instead.
fn named_secret(object: objects::Secret) -> (String, Secret) {
    let data = object.data.unwrap_or_default().into_iter();
    let type_ = &object.type_;
    let data = data.map(|(key, value)| {
        let content = if Secret::has_credentials_under(type_, &key) {
            value.0
        } else {
            Vec::new()
        };
        (key, content)
    });
    let data = data.collect();
    let secret = Secret {
        namespace: None,
        type_: object.type_,
        data,
    };
    (object.metadata.name, secret)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::{image::Reference, routing::Keeper};

    /// A follower, and those who hear of what it does.
    struct Scene {
        follower: Follower,
        snapshots: watch::Receiver<Arc<crate::domain::snapshot::Snapshot>>,
        published: watch::Receiver<Option<Arc<ClusterView>>>,
    }

    fn of<K: DeserializeOwned>(object: Value) -> K {
        serde_json::from_value(object).unwrap()
    }

    fn mirror(version: u32, spec: &Value) -> Object {
        let mut document = json!({
            "metadata": {"name": "main", "uid": "u", "resourceVersion": version.to_string()},
            "spec": {"registry": "mirror.test", "kind": "Hosted", "sources": [{"prefix": "docker.io"}]},
        });
        for (field, value) in spec.as_object().unwrap() {
            document["spec"][field] = value.clone();
        }
        of(document)
    }

    fn node(version: u32, architecture: &str) -> Outline {
        of(json!({"metadata": {
            "name": "node-1",
            "resourceVersion": version.to_string(),
            "labels": {OS_LABEL: "linux", ARCHITECTURE_LABEL: architecture},
        }}))
    }

    fn namespace(version: u32, mode: &str) -> Outline {
        of(json!({"metadata": {
            "name": "blue",
            "resourceVersion": version.to_string(),
            "labels": {"kagami.dev/mode": mode},
        }}))
    }

    fn docker_secret(version: u32, password: &str) -> objects::Secret {
        let config = json!({"auths": {"mirror.test": {"username": "a", "password": password}}});
        of(json!({
            "metadata": {"name": "login", "resourceVersion": version.to_string()},
            "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": ByteString(config.to_string().into_bytes())},
        }))
    }

    impl Scene {
        /// Everything is listed.
        fn new() -> Self {
            drop(rustls::crypto::ring::default_provider().install_default());
            let store = Store::default();
            let (published, view) = watch::channel(None);
            let (configured, is_configured) = watch::channel(false);
            let mut follower = Follower::new(&store, BTreeSet::new(), published, configured);
            follower.take_mirror(Event::Listing);
            follower.take_mirror(Event::Listed(mirror(1, &json!({}))));
            follower.take_mirror(Event::ListedAll { round: 0 });
            follower.take_namespace(Event::Listed(namespace(1, "audit")));
            assert!(!follower.is_due(), "Pods are judged by the Namespaces too");
            follower.take_namespace(Event::ListedAll { round: 0 });
            assert!(follower.is_due());
            follower.apply();
            assert!(*is_configured.borrow());
            assert_eq!(store.snapshot().routing.len(), 1, "stuck Pods are judged by it");
            follower.take_secret(Event::Listed(docker_secret(1, "x")));
            follower.take_secret(Event::ListedAll { round: 0 });
            follower.take_node(Event::Listed(node(1, "amd64")));
            follower.apply();
            assert!(view.borrow().is_none(), "not before all of it is known");
            follower.take_node(Event::ListedAll { round: 0 });
            let mut scene = Self {
                snapshots: store.subscribe(),
                published: view,
                follower,
            };
            assert_eq!(scene.heard(), (false, true));
            scene
        }

        /// Puts to use what changed. Returns whether readers of the store and of the view hear of it.
        fn heard(&mut self) -> (bool, bool) {
            if self.follower.is_due() {
                self.follower.apply();
            }
            let heard = (
                self.snapshots.has_changed().unwrap(),
                self.published.has_changed().unwrap(),
            );
            self.snapshots.mark_unchanged();
            self.published.mark_unchanged();
            heard
        }

        fn view(&self) -> Arc<ClusterView> {
            self.published.borrow().clone().unwrap()
        }
    }

    #[test]
    fn a_heartbeat_of_a_node_wakes_nobody() {
        let mut scene = Scene::new();
        for version in 2..100 {
            scene.follower.take_node(Event::Changed(node(version, "amd64")));
            assert!(!scene.follower.is_due());
            assert_eq!(scene.heard(), (false, false));
        }
        scene.follower.take_node(Event::Changed(node(100, "arm64")));
        assert_eq!(scene.heard(), (false, true));
        assert_eq!(scene.view().platforms, ["linux/arm64"]);
    }

    #[test]
    fn a_platform_is_operating_system_and_architecture() {
        let mut scene = Scene::new();
        let node = |name: &str, labels: Value| -> Outline {
            of(json!({"metadata": {"name": name, "resourceVersion": "5", "labels": labels}}))
        };
        let take = |scene: &mut Scene, name: &str, labels: Value| {
            scene.follower.take_node(Event::Changed(node(name, labels)));
        };
        take(
            &mut scene,
            "win",
            json!({OS_LABEL: "windows", ARCHITECTURE_LABEL: "amd64"}),
        );
        take(
            &mut scene,
            "pi",
            json!({OS_LABEL: "linux", ARCHITECTURE_LABEL: "arm"}),
        );
        take(
            &mut scene,
            "rare",
            json!({OS_LABEL: "linux", ARCHITECTURE_LABEL: "z80"}),
        );
        take(&mut scene, "new", Value::Null);
        assert_eq!(scene.heard(), (false, true));
        assert_eq!(
            scene.view().platforms,
            ["linux/amd64", "linux/arm/v7", "linux/z80", "windows/amd64"]
        );
    }

    #[test]
    fn what_is_listed_again_wakes_nobody() {
        let mut scene = Scene::new();
        scene.follower.take_mirror(Event::Listing);
        scene.follower.take_mirror(Event::Listed(mirror(1, &json!({}))));
        scene.follower.take_mirror(Event::ListedAll { round: 1 });
        scene.follower.take_namespace(Event::Listing);
        scene
            .follower
            .take_namespace(Event::Listed(namespace(2, "audit")));
        scene.follower.take_namespace(Event::ListedAll { round: 1 });
        scene.follower.take_secret(Event::Changed(docker_secret(2, "x")));
        assert_eq!(scene.heard(), (false, false));
        // A configuration that is put to use once more is the same configuration.
        scene.follower.due.configuration = true;
        assert_eq!(scene.heard(), (false, false));
    }

    #[test]
    fn a_change_is_heard_by_those_whom_it_concerns() {
        let mut scene = Scene::new();
        let routing = scene.follower.store.snapshot().routing.clone();
        scene
            .follower
            .take_namespace(Event::Changed(namespace(2, "enforce")));
        assert_eq!(scene.heard(), (true, false));
        let now = scene.follower.store.snapshot();
        assert!(Arc::ptr_eq(&now.routing, &routing), "no routing was compiled");
        assert_eq!(now.namespaces["blue"]["kagami.dev/mode"], "enforce");
        // Nothing can be made any more in one that is being deleted.
        let going = json!({"metadata": {
            "name": "blue", "resourceVersion": "3", "deletionTimestamp": "2026-01-01T00:00:00Z",
            "labels": {MODE_LABEL: "enforce", "team": "blue"},
        }});
        scene.follower.take_namespace(Event::Changed(of(going)));
        assert_eq!(scene.heard(), (true, false));
        let now = scene.follower.store.snapshot();
        let labels: Vec<_> = now.namespaces["blue"].iter().collect();
        let expected =
            [(MODE_LABEL, "off"), ("team", "blue")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(
            labels,
            expected
                .iter()
                .map(|(key, value)| (key, value))
                .collect::<Vec<_>>()
        );
        // A status alone is for the view.
        scene.follower.take_mirror(Event::Changed(mirror(2, &json!({}))));
        assert_eq!(scene.heard(), (false, true));
        scene
            .follower
            .take_mirror(Event::Changed(mirror(3, &json!({"priority": 7}))));
        assert_eq!(scene.heard(), (true, true));
        let faulty = mirror(4, &json!({"mode": "Sometimes"}));
        scene.follower.take_mirror(Event::Changed(faulty));
        assert_eq!(scene.heard(), (false, true));
        assert_eq!(scene.view().mirrors["main"].document.faults.len(), 1);
        // What never was good has no form to stay in force, and closes what it may hold.
        let mut private = mirror(5, &json!({"mode": "Sometimes"}));
        private.metadata.name = "private".to_owned();
        private.spec["sources"][0]["access"] = "Private".into();
        scene.follower.take_mirror(Event::Changed(private));
        assert_eq!(scene.heard(), (true, true));
        let now = scene.follower.store.snapshot();
        let nginx = Reference::parse("nginx").unwrap();
        let candidates = now.routing.candidates(nginx.key().by_ref().name());
        let access = now.routing.access(&candidates.ordered[0], &nginx);
        let keeper = access
            .closed
            .map(|closed| now.routing.keeper(Keeper::Closed(closed)));
        assert_eq!(keeper, Some("private"));
        let priorities: Vec<_> = now.routing.mirrors().map(|(_, mirror)| mirror.priority).collect();
        assert_eq!(priorities, [7]);
    }

    #[test]
    fn a_renewed_secret_is_for_the_view_alone() {
        let mut scene = Scene::new();
        let credentials = json!({"endpoint": {"credentials": {"secretRef": {"name": "login"}}}});
        scene
            .follower
            .take_mirror(Event::Changed(mirror(2, &credentials)));
        assert!(scene.heard().1);
        let before = scene.view().probe_credentials["main"].clone();
        scene
            .follower
            .take_secret(Event::Changed(docker_secret(2, "renewed")));
        assert_eq!(scene.heard(), (false, true));
        assert_ne!(scene.view().probe_credentials["main"], before);
        scene
            .follower
            .take_secret(Event::Deleted(docker_secret(2, "renewed")));
        assert_eq!(scene.heard(), (false, true));
        let missing = scene.view().mirrors["main"].missing_secret.clone();
        assert_eq!(missing.as_deref(), Some("login"));
    }
}
