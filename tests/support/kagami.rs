//! The program under test, and its registration with the API server.

use std::{cell::Cell, fs, net::SocketAddr, path::Path, thread};

use serde_json::{Value, json};

use super::{
    admission::{Calls, pod},
    cluster::{Cluster, Namespace},
    connection::Connection,
    eventually,
    process::Process,
};

/// The manifest that users apply; the tests change nothing in it but addresses, names and namespaces.
const MANIFEST: &str = include_str!("../../webhook-config/mutatingwebhookconfiguration.yaml");

const MODES: [&str; 3] = ["enforce", "warn", "audit"];

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// A running `kagami serve`.
#[derive(Debug)]
pub(crate) struct Kagami {
    process: Process,
    /// Where the API server calls it, an `https://` address.
    pub(crate) admission: String,
}

/// Kagami's webhooks, registered for one namespace.
///
/// When dropped it fails the test if the API server saw Kagami fail, unless the test announced it.
#[derive(Debug)]
pub(crate) struct Registration<'a> {
    cluster: &'a Cluster,
    namespace: String,
    announced: Cell<bool>,
}

impl Kagami {
    /// Starts Kagami with one mirror at `mirror` and waits until it rewrites `docker.io/library/nginx:1.29`.
    pub(crate) fn start(cluster: &Cluster, name: &str, mirror: &str) -> Self {
        let mut kagami = Self::start_with(cluster, name, &image_mirror(mirror));
        let mut connection = Connection::open(&cluster.authority, kagami.address());
        eventually("Kagami rewrites", || {
            kagami.process.assert_alive();
            let (_, body) = connection
                .post("/mutate/enforce?timeout=2s", &review("nginx:1.29"))
                .unwrap();
            let answer: Value = serde_json::from_str(&body).unwrap();
            answer["response"]["patch"].is_string().then_some(())
        });
        kagami
    }

    /// Starts Kagami with a configuration and waits until it is ready.
    pub(crate) fn start_with(cluster: &Cluster, name: &str, configuration_text: &str) -> Self {
        let configuration = cluster.folder().join(format!("{name}.yaml"));
        fs::write(&configuration, configuration_text).unwrap();
        let (certificate, key) = cluster.authority.issue().write(cluster.folder(), name);
        let arguments = [
            "serve",
            "--config",
            configuration.to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
            "--tls-cert",
            &certificate,
            "--tls-key",
            &key,
        ]
        .map(str::to_owned);
        let program = Path::new(env!("CARGO_BIN_EXE_kagami"));
        let (process, lines) = Process::start_and_read(name, program, &arguments, cluster.folder(), 2);
        let address = |name: &str| {
            let line = lines
                .iter()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no address of {name} in {lines:?}"))
                .to_owned()
        };
        let mut kagami = Self {
            process,
            admission: address("admission"),
        };
        let ready = format!("{}/readyz", address("admin"));
        eventually("Kagami is ready", || {
            kagami.process.assert_alive();
            cluster
                .http
                .send(cluster.http.client.get(&ready))
                .ok()
                .filter(|answer| answer.status == 200)
        });
        kagami
    }

    /// The address of its admission endpoint.
    pub(crate) fn address(&self) -> SocketAddr {
        self.admission.strip_prefix("https://").unwrap().parse().unwrap()
    }

    /// Makes it hang: connections are accepted, nothing is answered.
    pub(crate) fn freeze(&self) {
        self.process.freeze();
    }

    /// Ends it at once and without a word.
    pub(crate) fn kill(self) {
        drop(self);
    }
}

impl<'a> Registration<'a> {
    /// Applies the manifest for a namespace, and `others` whatever their labels, and waits until the API server
    /// calls Kagami for the first.
    pub(crate) fn new(namespace: &Namespace<'a>, others: &[&str], kagami: &Kagami) -> Self {
        Self::of(namespace, others, &kagami.admission)
    }

    /// The same for whoever answers at an address.
    pub(crate) fn of(namespace: &Namespace<'a>, others: &[&str], admission: &str) -> Self {
        let cluster = namespace.cluster;
        let registration = Self {
            cluster,
            namespace: namespace.name.clone(),
            announced: Cell::new(false),
        };
        registration.apply(others, admission);
        // A new configuration reaches the API server's admission a moment after it is stored.
        eventually("the API server calls the webhook", || {
            let probe = format!("{}?dryRun=All", namespace.path("pods"));
            cluster.create(&probe, &pod("probe", "nginx:1.29")).success();
            let calls: u64 = MODES.map(|mode| registration.calls(mode).answered).iter().sum();
            (calls > 0).then_some(())
        });
        registration
    }

    fn apply(&self, others: &[&str], admission: &str) {
        let namespaces: Vec<_> = [self.namespace.as_str()]
            .into_iter()
            .chain(others.iter().copied())
            .collect();
        let mut manifest: Value = serde_saphyr::from_str(MANIFEST).unwrap();
        manifest["metadata"]["name"] = format!("kagami-{}", self.namespace).into();
        for webhook in manifest["webhooks"].as_array_mut().unwrap() {
            let mode = webhook["name"]
                .as_str()
                .unwrap()
                .strip_suffix(".kagami.dev")
                .unwrap()
                .to_owned();
            let path = webhook["clientConfig"]["service"]["path"].as_str().unwrap();
            webhook["clientConfig"] =
                json!({"url": format!("{admission}{path}"), "caBundle": self.cluster.authority.bundle()});
            // The API server's metrics carry the webhook's name only.
            webhook["name"] = self.webhook(&mode).into();
            webhook["namespaceSelector"]["matchExpressions"]
                .as_array_mut()
                .unwrap()
                .push(json!({
                    "key": "kubernetes.io/metadata.name", "operator": "In", "values": namespaces,
                }));
        }
        self.cluster.create(CONFIGURATIONS, &manifest).success();
    }

    /// The name of the webhook for a mode.
    pub(crate) fn webhook(&self, mode: &str) -> String {
        format!("{mode}.{}.kagami.dev", self.namespace)
    }

    /// What the API server counted so far for the webhook of a mode.
    pub(crate) fn calls(&self, mode: &str) -> Calls {
        Calls::read(&self.cluster.metrics(), &self.webhook(mode))
    }

    /// Says that Kagami will be away, and that the test itself looks at what the API server counted.
    pub(crate) fn announce_failures(&self) {
        self.announced.set(true);
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.cluster
            .delete(&format!("{CONFIGURATIONS}/kagami-{}", self.namespace));
        if thread::panicking() || self.announced.get() {
            return;
        }
        for mode in MODES {
            let calls = self.calls(mode);
            assert_eq!(
                calls,
                Calls {
                    answered: calls.answered,
                    ..Calls::default()
                },
                "{}",
                self.webhook(mode)
            );
        }
    }
}

/// A review of creating a Pod with one container of this image.
pub(crate) fn review(image: &str) -> String {
    let mut object = pod("probe", image);
    object["apiVersion"] = "v1".into();
    object["kind"] = "Pod".into();
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "probe",
            "operation": "CREATE",
            "userInfo": {"username": "probe", "groups": ["system:authenticated"]},
            "object": object,
            "oldObject": null,
            "dryRun": false,
        },
    })
    .to_string()
}

/// The outcome and the reason in the answer to a review of one image.
pub(crate) fn decided(answer: &str) -> String {
    let answer: Value = serde_json::from_str(answer).unwrap();
    let audit = answer["response"]["auditAnnotations"].as_object().unwrap();
    let (_, decision) = audit.iter().next().unwrap();
    let mut words = decision.as_str().unwrap().split(' ');
    format!("{} {}", words.next().unwrap(), words.next().unwrap())
}

fn image_mirror(url: &str) -> String {
    format!(
        "apiVersion: kagami.dev/v1alpha1
kind: ImageMirror
metadata: {{name: main}}
spec:
  registry: {registry}
  kind: Hosted
  sources:
  - prefix: docker.io
  - prefix: ghcr.io
  endpoint: {{url: {url}}}
  health: {{interval: 1s, timeout: 1s}}
  freshness: {{missing: 1s}}
",
        registry = super::mirror::REGISTRY,
    )
}
