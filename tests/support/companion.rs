//! `kagami companion` with exactly the rights that the chart gives it.

use std::{
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    chart::Chart,
    cluster::{Cluster, Namespace, RBAC, User},
    eventually,
    kagami::{self, ADMIN_LISTEN, Kagami, Listeners},
    mirror::{REGISTRY, image_mirror},
    process::Process,
};

/// Companions share the cluster's mirrors, so only one test at a time has some.
static ALONE: Mutex<()> = Mutex::new(());

/// Keeps others from starting companions, which may touch what is Kagami's anywhere in the cluster.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

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
    /// The policies that hold companions in `served`.
    guards: Vec<String>,
    _alone: Option<MutexGuard<'static, ()>>,
}

/// A running `kagami companion`.
pub(crate) struct Companion {
    pub(crate) process: Process,
    pub(crate) listeners: Listeners,
    /// Who it is for the API server.
    pub(crate) user: &'static str,
}

impl<'a> Place<'a> {
    /// Sets everything up for a mirror at `url`.
    pub(crate) fn new(cluster: &'a Cluster, url: &str) -> Self {
        Self::begin(cluster, url, Some(alone()))
    }

    /// The same on a cluster that no other test has.
    pub(crate) fn apart(cluster: &'a Cluster, url: &str) -> Self {
        Self::begin(cluster, url, None)
    }

    fn begin(cluster: &'a Cluster, url: &str, alone: Option<MutexGuard<'static, ()>>) -> Self {
        install_definitions(cluster);
        let own = cluster.namespace(None);
        let served = cluster.namespace(Some("audit"));
        let name = format!("mirror-{}", own.name);
        let place = Self {
            cluster,
            own,
            served,
            name,
            guards: Vec::new(),
            _alone: alone,
        };
        place.grant();
        for name in ["kagami-mirrors", "kagami-originals", "kagami-owners"] {
            let map = json!({"metadata": {"name": name}});
            cluster.create(&place.own.path("configmaps"), &map).success();
        }
        place.create_mirror(url);
        place
    }

    /// The same as [`Place::new`] where the chart's policies about Pods hold every companion in the served namespace,
    /// which may send Pods to the mirror's registry.
    pub(crate) fn guarded(cluster: &'a Cluster, url: &str) -> Self {
        let mut place = Self::new(cluster, url);
        let release = format!("guards-{}", place.own.name);
        let values = format!("{{rescue: {{enabled: true, deletePods: true, registries: [{REGISTRY}]}}}}");
        let chart = Chart::new(cluster, &release, &place.own.name, &values);
        let account = format!(
            "== 'system:serviceaccount:{}:{release}-kagami-companion'",
            place.own.name
        );
        for (kind, path) in [
            ("ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
            (
                "ValidatingAdmissionPolicyBinding",
                "validatingadmissionpolicybindings",
            ),
        ] {
            for mut policy in chart.of_kind(kind) {
                let name = policy["metadata"]["name"].as_str().unwrap().to_owned();
                if !["-pods", "-evictions"].iter().any(|end| name.ends_with(end)) {
                    continue;
                }
                // Here they are users of a group, and other tests have other namespaces.
                let text = policy.to_string();
                let text = text.replace(
                    &format!("request.userInfo.username {account}"),
                    "'companions' in request.userInfo.groups",
                );
                policy = serde_json::from_str(&text).unwrap();
                if kind.ends_with("Binding") {
                    policy["spec"]["matchResources"] = json!({"namespaceSelector": {
                        "matchLabels": {"kubernetes.io/metadata.name": place.served.name},
                    }});
                } else {
                    assert!(text.contains("'companions' in"), "{text}");
                }
                let path = format!("/apis/admissionregistration.k8s.io/v1/{path}");
                cluster.create(&path, &policy).success();
                place.guards.push(format!("{path}/{name}"));
            }
        }
        place.until_guarded();
        place
    }

    /// Waits until the policies are in force.
    fn until_guarded(&self) {
        let probe = json!({
            "metadata": {"name": "guarded", "annotations": {"original-image.kagami.dev/app": "x:1"}},
            "spec": {"containers": [{"name": "app", "image": "x:2"}]},
        });
        self.served.create_pod(&probe).success();
        let path = self.served.path("pods/guarded");
        let patch = |patch: Value| {
            let http = &self.cluster.http;
            let request = http
                .client
                .patch(format!("{}{path}?dryRun=All", self.cluster.url))
                // Not as one of them: their own requests are counted.
                .bearer_auth(User::Admin.token())
                .header("impersonate-user", "nobody-in-particular")
                .header("impersonate-group", "companions")
                .header("content-type", "application/merge-patch+json")
                .body(patch.to_string());
            http.send(request).unwrap().body
        };
        eventually("the policy about Pods is in force", || {
            let label = patch(json!({"metadata": {"labels": {"a": "b"}}}));
            label.contains("no labels").then_some(())
        });
        self.cluster.delete(&path).success();
    }

    /// Creates its mirror, at `url`.
    pub(crate) fn create_mirror(&self, url: &str) {
        let settings = json!({
            // Other tests have Pods too.
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.served.name}},
            "health": {"interval": "1s", "timeout": "1s"},
            "freshness": {"tag": "4s", "digest": "1h", "missing": "1s"},
        });
        let mirror = image_mirror(&self.name, REGISTRY, &["docker.io"], url, &settings);
        self.cluster.create(MIRRORS, &mirror).success();
    }

    /// Changes the mirror by a merge patch.
    pub(crate) fn patch_mirror(&self, patch: &Value) {
        let patch = patch.to_string();
        let arguments = [
            "patch",
            "imagemirror",
            &self.name,
            "--type=merge",
            "--patch",
            &patch,
        ];
        let patched = self.cluster.kubectl(&arguments);
        assert!(patched.status.success(), "{patched:?}");
    }

    /// The ImageMirror as it stands.
    pub(crate) fn mirror(&self) -> Value {
        self.cluster.get(&format!("{MIRRORS}/{}", self.name)).success()
    }

    /// Waits until the status says this of the mirror's health.
    pub(crate) fn wait_for_health(&self, state: &str) -> Value {
        wait_for_health(self.cluster, &self.name, state)
    }

    /// Waits until there is a MirroredImage that says this of an image.
    pub(crate) fn wait_for_image(&self, image: &str, presence: &str) -> Value {
        wait_for_image(self.cluster, &self.name, image, presence)
    }

    /// Starts a companion and waits until it is ready.
    pub(crate) fn start(&self, user: &'static str, more: &[&str]) -> Companion {
        self.start_as(user, more, |_| ())
    }

    /// The same with something done to the command.
    pub(crate) fn start_as(
        &self,
        user: &'static str,
        more: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Companion {
        let folder = self.cluster.folder();
        let mut command = kagami::command("companion");
        command
            .env("KUBECONFIG", folder.join(format!("{user}.kubeconfig")))
            .args(["--namespace", &self.own.name, "--log", "info,kagami=debug"])
            .args(ADMIN_LISTEN)
            .args(more);
        prepare(&mut command);
        let name = format!("{user}-{}", self.own.name);
        let Kagami { process, listeners } = Kagami::launch(&name, &command, folder).until_ready();
        Companion {
            process,
            listeners,
            user,
        }
    }

    /// Gives the group of companions the rights that the chart gives, and no others.
    fn grant(&self) {
        let watch = ["get", "list", "watch"];
        let cluster_wide = json!([
            {"apiGroups": [""], "resources": ["pods", "namespaces", "nodes"], "verbs": watch},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]},
            {"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]},
            {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["kagami-pull"],
             "verbs": ["list", "watch", "patch", "delete"]},
            {"apiGroups": ["apps"], "resources": ["daemonsets", "replicasets", "statefulsets"], "verbs": ["get"]},
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"]},
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
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
             "resourceNames": ["kagami-health"], "verbs": ["list", "watch"]},
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch", "create"]},
            {"apiGroups": [""], "resources": ["secrets"],
             "resourceNames": ["kagami-webhook-tls", "kagami-probe", "kagami-authority"], "verbs": ["update"]},
            {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["kagami-mirrors", "kagami-originals", "kagami-owners"],
             "verbs": ["get", "update"]},
        ]);
        let companions =
            json!({"kind": "Group", "name": "companions", "apiGroup": "rbac.authorization.k8s.io"});
        self.own.grant(&companions, &self.name, &cluster_wide, &own);
    }
}

impl Companion {
    /// Waits until it leads.
    pub(crate) fn wait_for_lead(&self) {
        eventually("the companion leads", || self.leads().then_some(()));
    }

    /// Waits until it does not lead any more.
    pub(crate) fn wait_for_end_of_lead(&self) {
        eventually("the companion steps down", || (!self.leads()).then_some(()));
    }

    fn leads(&self) -> bool {
        let (_, metrics) = self.listeners.get("/metrics").unwrap();
        let mut values = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("kagami_leading "));
        match values.next() {
            Some("1") => true,
            Some("0") => false,
            other => panic!("kagami_leading is {other:?}"),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        for path in self.guards.iter().rev() {
            self.cluster.delete(path);
        }
        self.cluster.delete(&format!("{MIRRORS}/{}", self.name));
        self.cluster.delete(IMAGES);
        self.cluster
            .delete(&format!("{RBAC}/clusterrolebindings/{}", self.name));
        self.cluster.delete(&format!("{RBAC}/clusterroles/{}", self.name));
    }
}

/// Installs the definitions that `kagami crds` prints, unless they are there.
pub(crate) fn install_definitions(cluster: &Cluster) {
    for definition in ::kagami::api::crds() {
        let answer = cluster.create(DEFINITIONS, &serde_json::to_value(&definition).unwrap());
        assert!([201, 409].contains(&answer.status), "{}", answer.body);
    }
    for path in [MIRRORS, IMAGES] {
        eventually("the resources are served", || {
            (cluster.request(User::Admin, Method::GET, path, None).status == 200).then_some(())
        });
    }
}

/// Waits until a mirror's status says this of its health.
pub(crate) fn wait_for_health(cluster: &Cluster, mirror: &str, state: &str) -> Value {
    eventually(&format!("the mirror is {state}"), || {
        let mirror = cluster.get(&format!("{MIRRORS}/{mirror}")).success();
        (mirror["status"]["health"]["state"] == state).then_some(mirror)
    })
}

/// Waits until there is a MirroredImage that says this of an image, as users write it.
pub(crate) fn wait_for_image(cluster: &Cluster, mirror: &str, image: &str, presence: &str) -> Value {
    eventually(&format!("{image} is {presence}"), || {
        let images = cluster.get(IMAGES).success();
        let mut items = images["items"].as_array()?.clone().into_iter();
        items.find(|item| {
            let spec = &item["spec"];
            spec["mirror"] == mirror && spec["image"] == image && spec["presence"] == presence
        })
    })
}
