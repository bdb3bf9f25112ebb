//! A cluster with Kagami's resources and one mirror, or room for more.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Result;
use kagami::{clock, domain::time::Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

use super::super::{
    e2e::{
        cluster::{Cluster, Namespace, User},
        companion::{DEFINITIONS, MIRRORS, install_definitions},
        mirror::image_mirror,
        reader::{Heart, time},
        tools::Tools,
    },
    registry::Registry,
    roles::{Build, MIRROR, REGISTRY},
};

/// Who the companion is for the API server, whose audit log tells what that user writes.
pub const COMPANION: &str = "companion-a";

/// A cluster with Kagami's resources, mostly with one ImageMirror.
#[derive(Debug)]
pub struct Place<'a> {
    pub cluster: &'a Cluster,
    /// Kagami's own namespace.
    pub own: Namespace<'a>,
}

/// Proofs that last for the whole run, so that no sweep falls into a measurement.
pub fn lasting() -> Value {
    json!({"freshness": {"tag": "24h", "digest": "24h"}})
}

/// Measures something in a cluster whose mirror has every image and is said to be healthy since a moment, which
/// `measure` is told: of whatever was seen then, proofs last.
pub fn with_healthy_mirror(
    tools: &Tools,
    build: &Build,
    measure: impl FnOnce(&Place<'_>, &Registry, Timestamp) -> Result<()>,
) -> Result<()> {
    let mirror = Registry::start()?;
    let cluster = Cluster::start(tools.clone());
    let place = Place::new(&cluster, build, mirror.address, &lasting())?;
    let now = clock::now();
    let _heart = place.share_healthy(now);
    measure(&place, &mirror, now)
}

impl<'a> Place<'a> {
    /// Creates an ImageMirror of a mirror at this address, with more settings.
    pub fn new(cluster: &'a Cluster, build: &Build, mirror: SocketAddr, settings: &Value) -> Result<Self> {
        let place = Self::without_mirrors(cluster, build)?;
        let endpoint = format!("http://{mirror}");
        let object = image_mirror(MIRROR, REGISTRY, &["docker.io"], &endpoint, settings);
        cluster.create(MIRRORS, &object).success();
        Ok(place)
    }

    /// Makes everything ready for ImageMirrors. The definitions are those of the build that works there: another may
    /// refuse what it does not know.
    pub fn without_mirrors(cluster: &'a Cluster, build: &Build) -> Result<Self> {
        for definition in build.definitions()? {
            cluster.create(DEFINITIONS, &definition).success();
        }
        // They are there, and this waits until they are served.
        install_definitions(cluster);
        let own = cluster.namespace_named("kagami-system", None);
        // Rights are not what is measured.
        let binding = json!({
            "metadata": {"name": "companions"},
            "subjects": [{"kind": "Group", "name": "companions", "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": "rbac.authorization.k8s.io"},
        });
        let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
        cluster.create(bindings, &binding).success();
        Ok(Self { cluster, own })
    }

    /// Returns the path of a user's kubeconfig.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.cluster.folder().join(format!("{user}.kubeconfig"))
    }

    /// The ImageMirror as it stands.
    pub fn mirror(&self) -> Value {
        self.cluster.get(&format!("{MIRRORS}/{MIRROR}")).success()
    }

    /// Changes settings of the mirror.
    pub fn set(&self, settings: &Value) {
        let mut mirror = self.mirror();
        json_patch::merge(&mut mirror["spec"], settings);
        self.put("", &mirror);
    }

    /// Plays the companion: says that the mirror has been healthy since then, and begins to beat.
    pub fn share_healthy(&self, since: Timestamp) -> Heart {
        let mut mirror = self.mirror();
        let since = time(since);
        mirror["status"] =
            json!({"health": {"state": "Healthy", "reason": "", "since": since, "provenSince": since}});
        self.put("/status", &mirror);
        Heart::beat(self.cluster, &self.own.name)
    }

    fn put(&self, subresource: &str, mirror: &Value) {
        let path = format!("{MIRRORS}/{MIRROR}{subresource}");
        let answer = self
            .cluster
            .request(User::Admin, Method::PUT, &path, Some(mirror));
        answer.success();
    }
}
