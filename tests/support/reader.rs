//! `kagami webhook` with the rights that it has in a cluster, and the test in the companion's place.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::Duration,
};

use kagami::{api::v1alpha1::MirroredImage, clock, domain::time::Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    admission::pod,
    cluster::{Cluster, Namespace, User},
    connection::Connection,
    eventually,
    http::Http,
    mirror::Mirror,
    process::Process,
};

const MIRRORS: &str = "/apis/kagami.dev/v1alpha1/imagemirrors";
const IMAGES: &str = "/apis/kagami.dev/v1alpha1/mirroredimages";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// A running `kagami webhook` and all that it reads: a namespace of its own for the Lease, and a
/// mirror of its own, which serves the images below a host of its own. Tests share the API server.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    process: Process,
    address: SocketAddr,
    admin: String,
    pub(crate) mirror: Mirror,
    pub(crate) namespace: Namespace<'a>,
    /// Name of the ImageMirror and host of its images.
    pub(crate) name: String,
}

/// The definitions of the custom resources. That of ImageMirror has a field that this Kagami does not
/// know, as one from the future would, where it may restrict.
pub(crate) fn install(cluster: &Cluster) {
    for mut crd in kagami::api::crds() {
        let name = crd.metadata.name.clone().unwrap();
        if name.starts_with("imagemirrors") {
            let schema = crd.spec.versions[0].schema.as_mut().unwrap();
            let schema = schema.open_api_v3_schema.as_mut().unwrap();
            let spec = schema.properties.as_mut().unwrap().get_mut("spec").unwrap();
            let future = serde_json::from_value(json!({"type": "integer"})).unwrap();
            let endpoint = spec.properties.as_mut().unwrap().get_mut("endpoint").unwrap();
            endpoint
                .properties
                .as_mut()
                .unwrap()
                .insert("futureField".to_owned(), future);
        }
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        cluster
            .create(path, &serde_json::to_value(&crd).unwrap())
            .success();
        let plural = name.split('.').next().unwrap().to_owned();
        eventually("the resource is served", || {
            let list = cluster.get(&format!("/apis/kagami.dev/v1alpha1/{plural}"));
            (list.status == 200).then_some(())
        });
    }
}

/// A time as the API server reads it: with microseconds.
pub(crate) fn time(at: Timestamp) -> String {
    at.to_string().replace('Z', "000Z")
}

impl<'a> Reader<'a> {
    /// Starts it with a mirror of a kind. `change` may change the ImageMirror before it is created.
    pub(crate) fn start(cluster: &'a Cluster, kind: &str, change: impl FnOnce(&mut Value)) -> Self {
        let namespace = cluster.namespace(None);
        let name = format!("{}.test", namespace.name);
        let mirror = Mirror::start(&cluster.tools, &cluster.http, cluster.folder(), &name);
        let mut object = json!({
            "apiVersion": "kagami.dev/v1alpha1",
            "kind": "ImageMirror",
            "metadata": {"name": name},
            "spec": {
                "registry": super::mirror::REGISTRY,
                "kind": kind,
                "sources": [{"prefix": name}],
                "endpoint": {"url": mirror.url},
                "health": {"interval": "500ms", "staleAfter": "10s"},
                "freshness": {"missing": "1s"},
            },
        });
        change(&mut object);
        cluster.create(MIRRORS, &object).success();

        let kubeconfig = grant(cluster, &namespace);
        let (certificate, key) = cluster.authority.issue().write(cluster.folder(), &name);
        let arguments = [
            &format!("KUBECONFIG={kubeconfig}"),
            env!("CARGO_BIN_EXE_kagami"),
            "webhook",
            "--namespace",
            &namespace.name,
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
            "--tls-cert",
            &certificate,
            "--tls-key",
            &key,
        ]
        .map(ToOwned::to_owned);
        let program = Path::new("/usr/bin/env");
        let process_name = format!("webhook-{name}");
        let (process, lines) =
            Process::start_and_read(&process_name, program, &arguments, cluster.folder(), 2);
        let address = |line: &str, scheme: &str| line.split(scheme).nth(1).unwrap().to_owned();
        Self {
            process,
            address: address(&lines[0], "https://").parse().unwrap(),
            admin: format!("http://{}", address(&lines[1], "http://")),
            mirror,
            namespace,
            name,
        }
    }

    /// Where the API server may call it.
    pub(crate) fn admission(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Waits until it believes what the companion shares, which the heartbeat must tell.
    pub(crate) fn wait_until_fresh(&mut self) {
        eventually("the shared state is believed", || {
            self.process.assert_alive();
            let stale = &self.status()["cluster"]["mirrors"][&self.name]["stale"];
            (*stale == false && self.ready().0 == 200).then_some(())
        });
    }

    /// The code and text of `/readyz`.
    pub(crate) fn ready(&self) -> (u16, String) {
        let answer = self.ask("/readyz");
        (answer.status, answer.body)
    }

    pub(crate) fn status(&self) -> Value {
        self.ask("/status").success()
    }

    fn ask(&self, path: &str) -> super::http::Answer {
        let http = &self.cluster().http;
        http.send(http.client.get(format!("{}{path}", self.admin)))
            .unwrap()
    }

    pub(crate) fn cluster(&self) -> &'a Cluster {
        self.namespace.cluster
    }

    /// The name of an image that the mirror may serve.
    pub(crate) fn image(&self, repository: &str) -> String {
        format!("{}/{repository}", self.name)
    }

    /// What is decided of an image in a Pod of a namespace: outcome and reason.
    pub(crate) fn decide(&self, namespace: &str, image: &str) -> String {
        let mut review: Value = serde_json::from_str(&super::kagami::review(image)).unwrap();
        review["request"]["namespace"] = namespace.into();
        review["request"]["object"]["spec"] = pod("probe", image)["spec"].clone();
        let mut connection = Connection::open(&self.cluster().authority, self.address);
        let (_, body) = connection
            .post("/mutate/enforce?timeout=2s", &review.to_string())
            .unwrap();
        super::kagami::decided(&body)
    }

    /// Waits until a decision is this one.
    pub(crate) fn decides(&self, image: &str, expected: &str) {
        eventually(&format!("{image}: {expected}"), || {
            (self.decide("probe", image) == expected).then_some(())
        });
    }

    /// How often the mirror was asked for an image.
    pub(crate) fn requests(&self, image: &str) -> usize {
        let repository = image.split(':').next().unwrap();
        self.mirror.requests(&format!("/v2/{repository}/manifests/"))
    }

    /// Changes the ImageMirror and returns what was stored.
    pub(crate) fn change_mirror(&self, change: impl FnOnce(&mut Value)) -> Value {
        self.put_mirror("", change)
    }

    /// Writes the status as the companion would, and waits until it has arrived.
    pub(crate) fn share(&self, status: &Value) {
        self.put_mirror("/status", |mirror| mirror["status"] = status.clone());
        let Some(proven_since) = status["health"]["provenSince"].as_str() else {
            return;
        };
        let expected = proven_since.replace("000Z", "Z");
        eventually("the status has arrived", || {
            let shared = &self.status()["cluster"]["mirrors"][&self.name]["shared"];
            (shared["provenSince"] == expected.as_str()).then_some(())
        });
    }

    /// Shares that the mirror is healthy, proofs counting since then.
    pub(crate) fn share_healthy(&self, proven_since: Timestamp) {
        let at = time(proven_since);
        self.share(&json!({"health": {"state": "Healthy", "reason": "", "since": at, "provenSince": at}}));
    }

    fn put_mirror(&self, subresource: &str, change: impl FnOnce(&mut Value)) -> Value {
        let path = format!("{MIRRORS}/{}", self.name);
        let mut mirror = self.cluster().get(&path).success();
        change(&mut mirror);
        let path = format!("{path}{subresource}");
        self.cluster()
            .request(User::Admin, Method::PUT, &path, Some(&mirror))
            .success()
    }

    /// Writes a MirroredImage that says that an image is there, and returns its version.
    pub(crate) fn know(&self, image: &str, verified_at: Timestamp) -> String {
        let object = json!({
            "apiVersion": "kagami.dev/v1alpha1",
            "kind": "MirroredImage",
            "metadata": {"name": MirroredImage::object_name(&self.name, image)},
            "spec": {
                "mirror": self.name,
                "image": image,
                "presence": "Present",
                "digest": format!("sha256:{}", "a".repeat(64)),
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "verifiedAt": time(verified_at),
            },
        });
        let stored = self.cluster().create(IMAGES, &object).success();
        stored["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    }

    /// Deletes the MirroredImage.
    pub(crate) fn forget(&self, image: &str) {
        let name = MirroredImage::object_name(&self.name, image);
        self.cluster().delete(&format!("{IMAGES}/{name}")).success();
    }
}

/// Grants a ServiceAccount what `kagami webhook` needs and nothing else, and returns the path of its
/// kubeconfig.
fn grant(cluster: &Cluster, namespace: &Namespace<'_>) -> String {
    let own = namespace.name.as_str();
    cluster
        .create(
            &namespace.path("serviceaccounts"),
            &json!({"metadata": {"name": "kagami-webhook"}}),
        )
        .success();
    let read = ["get", "list", "watch"];
    let role = |kind: &str, name: &str, rules: Value| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "rules": rules});
    let binding = |kind: &str, role: &str, name: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": format!("{kind}Binding"),
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "kagami-webhook", "namespace": own}],
        })
    };
    let wide = json!([
        {"apiGroups": ["kagami.dev"], "resources": ["imagemirrors", "mirroredimages"], "verbs": read},
        {"apiGroups": [""], "resources": ["namespaces"], "verbs": read},
    ]);
    let narrow = json!([{
        "apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
        "resourceNames": ["kagami-health"], "verbs": read,
    }]);
    let (wide_role, narrow_role) = (format!("webhook-{own}"), "webhook");
    let roles = format!("{RBAC}/namespaces/{own}");
    for (path, object) in [
        (
            format!("{RBAC}/clusterroles"),
            role("ClusterRole", &wide_role, wide),
        ),
        (
            format!("{RBAC}/clusterrolebindings"),
            binding("ClusterRole", &wide_role, &wide_role),
        ),
        (format!("{roles}/roles"), role("Role", narrow_role, narrow)),
        (
            format!("{roles}/rolebindings"),
            binding("Role", narrow_role, narrow_role),
        ),
    ] {
        cluster.create(&path, &object).success();
    }
    let token = cluster
        .create(
            &namespace.path("serviceaccounts/kagami-webhook/token"),
            &json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}),
        )
        .success();
    let path = cluster.folder().join(format!("{own}.kubeconfig"));
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "e2e", "cluster": {
            "server": cluster.url, "certificate-authority-data": cluster.authority.bundle(),
        }}],
        "users": [{"name": "webhook", "user": {"token": token["status"]["token"]}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "webhook"}}],
        "current-context": "e2e",
    });
    fs::write(&path, kubeconfig.to_string()).unwrap();
    path.display().to_string()
}

/// Renews the Lease `kagami-health` of a namespace every second until it is dropped.
#[derive(Debug)]
pub(crate) struct Heart {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heart {
    pub(crate) fn start(reader: &Reader<'_>) -> Self {
        Self::beat(reader.cluster(), &reader.namespace.name)
    }

    /// The same in any namespace.
    pub(crate) fn beat(cluster: &Cluster, namespace: &str) -> Self {
        let (http, url) = (Http::new(&cluster.authority), cluster.url.clone());
        let namespace = namespace.to_owned();
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let leases = format!("{url}/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
            while stopped.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"name": "kagami-health"},
                    "spec": {"holderIdentity": "test", "renewTime": time(clock::now())},
                });
                let send = |method, url: &str, content: &str| {
                    let request = http.client.request(method, url).bearer_auth("admin");
                    http.send(request.header("content-type", content).body(lease.to_string()))
                };
                // A patch, because an update has to name the version that it changes. The API server may be
                // away, as some tests want it.
                let patch = "application/merge-patch+json";
                let beat = send(Method::PATCH, &format!("{leases}/kagami-health"), patch);
                if beat.is_ok_and(|answer| answer.status == 404) {
                    drop(send(Method::POST, &leases, "application/json"));
                }
            }
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
