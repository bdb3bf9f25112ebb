//! `kagami companion` with exactly the rights that the chart gives it.

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    cluster::{Cluster, Namespace, User},
    eventually,
    process::Process,
};

/// Companions share the cluster's mirrors, so only one test at a time has some.
static ALONE: Mutex<()> = Mutex::new(());

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

pub(crate) const MIRRORS: &str = "/apis/kagami.dev/v1alpha1/imagemirrors";
pub(crate) const IMAGES: &str = "/apis/kagami.dev/v1alpha1/mirroredimages";
pub(crate) const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A namespace in which companions work, and one mirror.
pub(crate) struct Place<'a> {
    pub(crate) cluster: &'a Cluster,
    /// Kagami's own namespace.
    pub(crate) own: Namespace<'a>,
    /// Where Pods are, opted in.
    pub(crate) served: Namespace<'a>,
    /// The name of the ImageMirror, and of everything else that is cluster-wide.
    pub(crate) name: String,
    _alone: MutexGuard<'static, ()>,
}

/// A running `kagami companion`.
pub(crate) struct Companion {
    pub(crate) process: Process,
    pub(crate) admin: String,
    /// Who it is for the API server.
    pub(crate) user: &'static str,
}

impl<'a> Place<'a> {
    /// Sets everything up for a mirror at `url`.
    pub(crate) fn new(cluster: &'a Cluster, url: &str) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        install_definitions(cluster);
        let own = cluster.namespace(None);
        let served = cluster.namespace(Some("audit"));
        let name = format!("mirror-{}", own.name);
        let place = Self {
            cluster,
            own,
            served,
            name,
            _alone: alone,
        };
        place.grant();
        place.create_mirror(url);
        place
    }

    fn create_mirror(&self, url: &str) {
        let mirror = json!({
            "apiVersion": "kagami.dev/v1alpha1",
            "kind": "ImageMirror",
            "metadata": {"name": self.name},
            "spec": {
                "registry": super::mirror::REGISTRY,
                "kind": "Hosted",
                "sources": [{"prefix": "docker.io"}],
                // Other tests have Pods too.
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.served.name}},
                "endpoint": {"url": url},
                "health": {"interval": "1s", "timeout": "1s"},
                "freshness": {"tag": "4s", "digest": "1h", "missing": "1s"},
            },
        });
        self.cluster.create(MIRRORS, &mirror).success();
    }

    /// The ImageMirror as it stands.
    pub(crate) fn mirror(&self) -> Value {
        self.cluster.get(&format!("{MIRRORS}/{}", self.name)).success()
    }

    /// Waits until the status says this of the mirror's health.
    pub(crate) fn wait_for_health(&self, state: &str) -> Value {
        eventually(&format!("the mirror is {state}"), || {
            let mirror = self.mirror();
            (mirror["status"]["health"]["state"] == state).then_some(mirror)
        })
    }

    /// Waits until there is a MirroredImage that says this of an image.
    pub(crate) fn wait_for_image(&self, image: &str, presence: &str) -> Value {
        eventually(&format!("{image} is {presence}"), || {
            let images = self.cluster.get(IMAGES).success();
            let mut items = images["items"].as_array()?.clone().into_iter();
            items.find(|item| {
                let spec = &item["spec"];
                spec["mirror"] == self.name && spec["image"] == image && spec["presence"] == presence
            })
        })
    }

    /// Starts a companion and waits until it is ready.
    pub(crate) fn start(&self, user: &'static str, more: &[&str]) -> Companion {
        let folder = self.cluster.folder();
        let kubeconfig = folder.join(format!("{user}.kubeconfig"));
        let mut arguments = vec![format!("KUBECONFIG={}", kubeconfig.display())];
        let fixed = [
            env!("CARGO_BIN_EXE_kagami"),
            "companion",
            "--namespace",
            &self.own.name,
            "--admin-listen",
            "127.0.0.1:0",
            "--log",
            "info,kagami=debug",
        ];
        arguments.extend(fixed.iter().chain(more).map(|&argument| argument.to_owned()));
        let name = format!("{user}-{}", self.own.name);
        let (process, lines) = Process::start_and_read(&name, Path::new("env"), &arguments, folder, 1);
        let admin = lines[0].strip_prefix("admin ").unwrap().to_owned();
        let mut companion = Companion { process, admin, user };
        eventually("the companion is ready", || {
            companion.process.assert_alive();
            (self.ask(&companion, "readyz").0 == 200).then_some(())
        });
        companion
    }

    /// Asks a companion's admin listener.
    pub(crate) fn ask(&self, companion: &Companion, path: &str) -> (u16, String) {
        let http = &self.cluster.http;
        let answer = http
            .send(http.client.get(format!("{}/{path}", companion.admin)))
            .unwrap();
        (answer.status, answer.body)
    }

    /// Waits until a companion leads.
    pub(crate) fn wait_for_lead(&self, companion: &Companion) {
        eventually("the companion leads", || self.leads(companion).then_some(()));
    }

    /// Waits until a companion does not lead any more.
    pub(crate) fn wait_for_end_of_lead(&self, companion: &Companion) {
        eventually("the companion steps down", || {
            (!self.leads(companion)).then_some(())
        });
    }

    fn leads(&self, companion: &Companion) -> bool {
        let (_, metrics) = self.ask(companion, "metrics");
        let mut values = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("kagami_leading "));
        match values.next() {
            Some("1") => true,
            Some("0") => false,
            other => panic!("kagami_leading is {other:?}"),
        }
    }

    /// Gives the group of companions the rights that the chart gives, and no others.
    fn grant(&self) {
        let watch = ["get", "list", "watch"];
        let cluster_wide = json!([
            {"apiGroups": [""], "resources": ["pods", "namespaces", "nodes"], "verbs": watch},
            {"apiGroups": ["kagami.dev"], "resources": ["imagemirrors"], "verbs": watch},
            {"apiGroups": ["kagami.dev"], "resources": ["imagemirrors/status"], "verbs": ["patch"]},
            {"apiGroups": ["kagami.dev"], "resources": ["mirroredimages"],
             "verbs": ["get", "list", "watch", "create", "update", "delete"]},
            {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
            {"apiGroups": ["admissionregistration.k8s.io"], "resources": ["mutatingwebhookconfigurations"],
             "resourceNames": [self.name], "verbs": ["get", "patch"]},
            {"apiGroups": ["apiextensions.k8s.io"], "resources": ["customresourcedefinitions"],
             "resourceNames": ["imagemirrors.kagami.dev", "mirroredimages.kagami.dev"], "verbs": ["get"]},
        ]);
        let own = json!([
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
             "resourceNames": ["kagami-companion", "kagami-health"], "verbs": ["get", "update"]},
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch", "create"]},
            {"apiGroups": [""], "resources": ["secrets"],
             "resourceNames": ["kagami-webhook-tls", "kagami-probe", "kagami-authority"], "verbs": ["update"]},
        ]);
        let subjects =
            json!([{"kind": "Group", "name": "companions", "apiGroup": "rbac.authorization.k8s.io"}]);
        let role = json!({"metadata": {"name": self.name}, "rules": cluster_wide});
        self.cluster
            .create(&format!("{RBAC}/clusterroles"), &role)
            .success();
        let binding = json!({
            "metadata": {"name": self.name},
            "subjects": subjects,
            "roleRef": {"kind": "ClusterRole", "name": self.name, "apiGroup": "rbac.authorization.k8s.io"},
        });
        self.cluster
            .create(&format!("{RBAC}/clusterrolebindings"), &binding)
            .success();
        let folder = format!("{RBAC}/namespaces/{}", self.own.name);
        let role = json!({"metadata": {"name": "companion"}, "rules": own});
        self.cluster.create(&format!("{folder}/roles"), &role).success();
        let binding = json!({
            "metadata": {"name": "companion"},
            "subjects": subjects,
            "roleRef": {"kind": "Role", "name": "companion", "apiGroup": "rbac.authorization.k8s.io"},
        });
        self.cluster
            .create(&format!("{folder}/rolebindings"), &binding)
            .success();
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.cluster.delete(&format!("{MIRRORS}/{}", self.name));
        self.cluster.delete(IMAGES);
        self.cluster
            .delete(&format!("{RBAC}/clusterrolebindings/{}", self.name));
        self.cluster.delete(&format!("{RBAC}/clusterroles/{}", self.name));
    }
}

/// Installs the definitions that `kagami crds` prints, unless they are there.
pub(crate) fn install_definitions(cluster: &Cluster) {
    for definition in kagami::api::crds() {
        let answer = cluster.create(DEFINITIONS, &serde_json::to_value(&definition).unwrap());
        assert!([201, 409].contains(&answer.status), "{}", answer.body);
    }
    for path in [MIRRORS, IMAGES] {
        eventually("the resources are served", || {
            (cluster.request(User::Admin, Method::GET, path, None).status == 200).then_some(())
        });
    }
}
