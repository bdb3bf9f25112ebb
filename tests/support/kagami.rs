//! The program under test, and its registration with the API server.

use std::{
    cell::Cell,
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    thread,
};

use serde_json::{Value, json};
use tokio::{runtime::Builder, time::timeout};

use super::{
    PATIENCE,
    admission::{Calls, pod},
    cluster::{Cluster, Namespace},
    eventually,
    mirror::{REGISTRY, image_mirror},
    process::{Output, Process},
    reviews::{decided, review},
    tls_client::{Client, Settings},
};

/// The manifest that users apply; the tests change nothing in it but addresses, names and namespaces.
const MANIFEST: &str = include_str!("../../webhook-config/mutatingwebhookconfiguration.yaml");

const MODES: [&str; 3] = ["enforce", "warn", "audit"];

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// Where the API server sends reviews.
pub(crate) const PATH: &str = "/mutate/enforce?timeout=2s";

/// Where Kagami listens: at ports that the kernel chooses.
pub(crate) const LISTEN: [&str; 2] = ["--listen", "127.0.0.1:0"];
pub(crate) const ADMIN_LISTEN: [&str; 2] = ["--admin-listen", "127.0.0.1:0"];

/// A running `kagami serve`, `kagami webhook` or `kagami companion`.
#[derive(Debug)]
pub(crate) struct Kagami {
    pub(crate) process: Process,
    pub(crate) listeners: Listeners,
}

/// Where a running Kagami can be reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listeners {
    /// Companions admit nothing.
    admission: Option<SocketAddr>,
    pub(crate) admin: SocketAddr,
}

/// Kagami's webhooks, registered for one namespace.
///
/// When dropped it fails the test if the API server saw Kagami fail, unless the test announced it.
#[derive(Debug)]
pub(crate) struct Registration<'a> {
    cluster: &'a Cluster,
    /// Of the configuration; the API server calls webhooks in the order of these.
    name: String,
    namespace: String,
    announced: Cell<bool>,
}

/// Asks for a review as the API server does, on a new connection; returns the outcome and the reason of its first
/// image.
#[track_caller]
pub(crate) fn ask(address: SocketAddr, settings: &Settings, review: &Value) -> String {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let asked = async {
        let mut client = Client::connect(address, settings).await?;
        client.post(PATH, review.to_string()).await
    };
    let reply = runtime.block_on(async { timeout(PATIENCE, asked).await });
    decided(&reply.unwrap().unwrap().body)
}

/// A command of this build.
pub(crate) fn command(role: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kagami"));
    command.arg(role);
    command
}

impl Listeners {
    /// Reads them from what the program prints once it listens.
    pub(crate) fn read(output: &Output) -> Self {
        let mut admission = None;
        loop {
            let line = output.line();
            let address = line.split("://").nth(1).and_then(|address| address.parse().ok());
            match (line.split(' ').next(), address) {
                (Some("admission"), Some(_)) => admission = address,
                (Some("admin"), Some(admin)) => return Self { admission, admin },
                _ => panic!("no address in {line:?}"),
            }
        }
    }

    /// Where reviews are taken.
    pub(crate) fn admission(self) -> SocketAddr {
        self.admission.unwrap()
    }

    /// Asks the admin listener; returns code and body of the answer.
    pub(crate) fn get(self, path: &str) -> io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin)?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let code = head[9..12].parse().map_err(io::Error::other)?;
        Ok((code, body.to_owned()))
    }

    /// What `/status` shows.
    pub(crate) fn status(self) -> Value {
        let (code, body) = self.get("/status").unwrap();
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

impl Kagami {
    /// Starts a command that runs Kagami in some role, and waits until it listens.
    pub(crate) fn launch(name: &str, command: &Command, folder: &Path) -> Self {
        let (process, output) = Process::start_and_read(name, command, folder);
        Self {
            process,
            listeners: Listeners::read(&output),
        }
    }

    /// Waits until it is ready.
    pub(crate) fn until_ready(mut self) -> Self {
        eventually("Kagami is ready", || {
            self.process.assert_alive();
            (self.listeners.get("/readyz").ok()?.0 == 200).then_some(())
        });
        self
    }

    /// Starts `kagami serve` with one mirror at `mirror` and waits until it rewrites
    /// `docker.io/library/nginx:1.29`.
    pub(crate) fn start(cluster: &Cluster, name: &str, mirror: &str) -> Self {
        let settings = json!({
            "health": {"interval": "1s", "timeout": "1s"},
            "freshness": {"missing": "1s"},
        });
        let mirror = image_mirror("main", REGISTRY, &["docker.io", "ghcr.io"], mirror, &settings);
        let mut kagami = Self::start_with(cluster, name, &mirror);
        let trust = Settings::trusting(&cluster.authority.pem());
        eventually("Kagami rewrites", || {
            kagami.process.assert_alive();
            let decided = ask(kagami.listeners.admission(), &trust, &review(&["nginx:1.29"]));
            decided.starts_with("Rewritten ").then_some(())
        });
        kagami
    }

    /// Starts `kagami serve` with an ImageMirror and waits until it is ready.
    pub(crate) fn start_with(cluster: &Cluster, name: &str, image_mirror: &Value) -> Self {
        let configuration = cluster.folder().join(format!("{name}.yaml"));
        // JSON is YAML.
        fs::write(&configuration, image_mirror.to_string()).unwrap();
        let mut command = command("serve");
        command.arg("--config").arg(configuration);
        Self::admitting(cluster, name, &mut command).until_ready()
    }

    /// Starts a command that takes reviews, with a certificate of the run's authority.
    pub(crate) fn admitting(cluster: &Cluster, name: &str, command: &mut Command) -> Self {
        let (certificate, key) = cluster.authority.issue().write(cluster.folder(), name);
        command.args(LISTEN).args(ADMIN_LISTEN);
        command.args(["--tls-cert", &certificate, "--tls-key", &key]);
        Self::launch(name, command, cluster.folder())
    }

    /// Where the API server calls it.
    pub(crate) fn admission(&self) -> String {
        format!("https://{}", self.listeners.admission())
    }
}

impl<'a> Registration<'a> {
    /// Applies the manifest for a namespace, and `others` whatever their labels, and waits until the API server
    /// calls Kagami for the first.
    pub(crate) fn new(namespace: &Namespace<'a>, others: &[&str], kagami: &Kagami) -> Self {
        // Its place among others' names is that of the manifest's.
        Self::called(
            &format!("zz-kagami-{}", namespace.name),
            namespace,
            others,
            kagami,
        )
    }

    /// The same with a name of its own for the configuration.
    pub(crate) fn called(name: &str, namespace: &Namespace<'a>, others: &[&str], kagami: &Kagami) -> Self {
        let cluster = namespace.cluster;
        let registration = Self {
            cluster,
            name: name.to_owned(),
            namespace: namespace.name.clone(),
            announced: Cell::new(false),
        };
        registration.apply(others, &kagami.admission());
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
        manifest["metadata"]["name"] = self.name.as_str().into();
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
        self.cluster.delete(&format!("{CONFIGURATIONS}/{}", self.name));
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
