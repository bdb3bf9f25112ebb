//! `kagami webhook` with the rights that it has in a cluster, and the test in the companion's place.

use std::{
    path::PathBuf,
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::Duration,
};

use ::kagami::{api::v1alpha1::MirroredImage, clock, domain::time::Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    cluster::{Cluster, Namespace, User},
    companion::{DEFINITIONS, IMAGES, MIRRORS, install_definitions},
    eventually,
    http::Http,
    kagami::{self, Kagami},
    mirror::{Mirror, REGISTRY, image_mirror},
    reviews::review,
    tls_client::Settings,
};

/// A running `kagami webhook` and all that it reads: a namespace of its own for the Lease, and a
/// mirror of its own, which serves the images below a host of its own. Tests share the API server.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) kagami: Kagami,
    /// Who it is for the API server.
    pub(crate) kubeconfig: PathBuf,
    pub(crate) mirror: Mirror,
    pub(crate) namespace: Namespace<'a>,
    /// Name of the ImageMirror and host of its images.
    pub(crate) name: String,
}

/// Installs the definitions of the custom resources. That of ImageMirror has a field that this Kagami does not
/// know, as one from the future would, where it may restrict.
pub(crate) fn install(cluster: &Cluster) {
    const ENDPOINT: &str =
        "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/endpoint/properties";
    for definition in ::kagami::api::crds() {
        let mut definition = serde_json::to_value(&definition).unwrap();
        if let Some(fields) = definition.pointer_mut(ENDPOINT) {
            fields["futureField"] = json!({"type": "integer"});
        }
        cluster.create(DEFINITIONS, &definition).success();
    }
    // They are there, and this waits until they are served.
    install_definitions(cluster);
}

/// A time as the API server reads it: with microseconds.
pub(crate) fn time(at: Timestamp) -> String {
    at.to_string().replace('Z', "000Z")
}

impl<'a> Reader<'a> {
    /// Starts it with a state that is fresh, and a healthy mirror that has one image.
    pub(crate) fn fresh(cluster: &'a Cluster) -> (Self, Heart, String) {
        let mut reader = Self::start(cluster, "Hosted", |_| ());
        let heart = Heart::start(&reader);
        let known = reader.image("known:1");
        reader.wait_until_fresh();
        reader.share_healthy(clock::now().before(Duration::from_mins(1)));
        reader.know(&known, clock::now());
        (reader, heart, known)
    }

    /// Starts it with a mirror of a kind. `change` may change the ImageMirror before it is created.
    pub(crate) fn start(cluster: &'a Cluster, kind: &str, change: impl FnOnce(&mut Value)) -> Self {
        let namespace = cluster.namespace(None);
        let name = format!("{}.test", namespace.name);
        let mirror = Mirror::start(&cluster.tools, &cluster.http, cluster.folder(), &name);
        let settings = json!({
            "kind": kind,
            "health": {"interval": "500ms", "staleAfter": "10s"},
            "freshness": {"missing": "1s"},
        });
        let mut object = image_mirror(&name, REGISTRY, &[&name], &mirror.url, &settings);
        change(&mut object);
        cluster.create(MIRRORS, &object).success();

        let kubeconfig = grant(&namespace);
        let mut command = kagami::command("webhook");
        command
            .env("KUBECONFIG", &kubeconfig)
            .args(["--namespace", &namespace.name]);
        Self {
            kagami: Kagami::admitting(cluster, &format!("webhook-{name}"), &mut command),
            kubeconfig,
            mirror,
            namespace,
            name,
        }
    }

    /// Waits until it believes what the companion shares, which the heartbeat must tell.
    pub(crate) fn wait_until_fresh(&mut self) {
        eventually("the shared state is believed", || {
            self.kagami.process.assert_alive();
            let stale = &self.status()["cluster"]["mirrors"][&self.name]["stale"];
            (*stale == false && self.ready().0 == 200).then_some(())
        });
    }

    /// The code and text of `/readyz`.
    pub(crate) fn ready(&self) -> (u16, String) {
        self.kagami.listeners.get("/readyz").unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        self.kagami.listeners.status()
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
        let mut review = review(&[image]);
        review["request"]["namespace"] = namespace.into();
        let trust = Settings::trusting(&self.cluster().authority.pem());
        kagami::ask(self.kagami.listeners.admission(), &trust, &review)
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

    /// Writes a MirroredImage that says that an image is there, waits until it has arrived, and returns its version.
    /// Whoever decides about it before looks himself, and finds that the mirror lacks it.
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
        let known = || self.status()["mirrors"][&self.name]["images"]["present"].as_u64();
        let before = known();
        let stored = self.cluster().create(IMAGES, &object).success();
        eventually("the image has arrived", || (known() > before).then_some(()));
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
fn grant(namespace: &Namespace<'_>) -> PathBuf {
    let account = json!({"metadata": {"name": "kagami-webhook"}});
    let accounts = namespace.path("serviceaccounts");
    namespace.cluster.create(&accounts, &account).success();
    let read = ["get", "list", "watch"];
    let wide = json!([
        {"apiGroups": ["kagami.dev"], "resources": ["imagemirrors", "mirroredimages"], "verbs": read},
        {"apiGroups": [""], "resources": ["namespaces"], "verbs": read},
    ]);
    let narrow = json!([{
        "apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
        "resourceNames": ["kagami-health"], "verbs": read,
    }, {
        "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["kagami-originals", "kagami-owners"],
        "verbs": read,
    }]);
    let webhook = json!({"kind": "ServiceAccount", "name": "kagami-webhook", "namespace": namespace.name});
    namespace.grant(&webhook, &format!("webhook-{}", namespace.name), &wide, &narrow);
    namespace.kubeconfig_of("kagami-webhook")
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
