//! Kagami as users get it: the image that `scripts/image` makes, installed by helm, running as Pods.
//!
//! One installation serves all tests of a run, each with a mirror of its own.

use std::{
    fs,
    net::SocketAddr,
    process::Command,
    sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use super::{images, node::Node, registry::Registry};
use crate::shared::{
    admission::{Calls, pod},
    chart::{Chart, stdout},
    cluster::Outage,
    eventually,
    kagami::ask,
    reviews::review,
    tls_client::Settings,
};

/// Kagami's own namespace.
pub(crate) const OWN: &str = "kagami-system";

/// A namespace that this installation never touches, for tests with another Kagami.
pub(crate) const LEFT_ALONE: &str = "of-another-kagami";

/// The Secret with the serving pair, and the one with the authority.
pub(crate) const SERVING: &str = "kagami-webhook-tls";
pub(crate) const AUTHORITY: &str = "kagami-authority";

/// What a replica decides of an image that is on the mirror.
pub(crate) const REWRITTEN: &str = "Rewritten Mirrored";

/// The registries that Pods may be turned forward to, of one test each.
pub(crate) const FORWARD: &str = "mirror.forward.test";
pub(crate) const MOMENT: &str = "mirror.moment.test";

const WEBHOOK: &str = "kagami-webhook";
const MODES: [&str; 3] = ["enforce", "warn", "audit"];

/// The installation of this run.
#[derive(Debug)]
pub(crate) struct Release {
    _registry: Registry,
    /// Tests that disturb it have it alone.
    calm: RwLock<()>,
    works: OnceLock<()>,
}

/// The right to use the installation; whoever gives it back sees to it that no review failed.
#[derive(Debug)]
pub(crate) struct Use<'a> {
    pub(crate) node: &'a Node,
    guard: Option<Guard<'a>>,
    /// How many reviews had failed before.
    failed: u64,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held for their drop")]
enum Guard<'a> {
    Shared(RwLockReadGuard<'a, ()>),
    Alone(RwLockWriteGuard<'a, ()>),
}

/// A Pod of Kagami's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replica {
    pub(crate) name: String,
    uid: String,
    pub(crate) address: std::net::Ipv4Addr,
    /// Where its admin listener is.
    admin: u16,
}

impl Release {
    /// Builds and pushes the image and installs the chart. Nobody waits for the Pods yet.
    pub(crate) fn install(node: &Node) -> Self {
        let cluster = &node.cluster;
        let registry = Registry::start(node, "kagami.test");
        registry.push(cluster, "kagami", "1", &images::kagami().image());
        let namespace = json!({"metadata": {"name": OWN, "labels": {
            "pod-security.kubernetes.io/enforce": "restricted",
        }}});
        cluster.create("/api/v1/namespaces", &namespace).success();
        stdout(&chart(node, "1").helm("install", &[]));
        Self {
            _registry: registry,
            calm: RwLock::default(),
            works: OnceLock::new(),
        }
    }
}

impl<'a> Use<'a> {
    /// Waits until the installation works and no test disturbs it.
    pub(crate) fn shared(node: &'a Node) -> Self {
        let calm = &node.release().calm;
        Self::new(
            node,
            Guard::Shared(calm.read().unwrap_or_else(PoisonError::into_inner)),
        )
    }

    /// Waits until the installation works and no other test uses it.
    pub(crate) fn alone(node: &'a Node) -> Self {
        let calm = &node.release().calm;
        Self::new(
            node,
            Guard::Alone(calm.write().unwrap_or_else(PoisonError::into_inner)),
        )
    }

    fn new(node: &'a Node, guard: Guard<'a>) -> Self {
        node.release().works.get_or_init(|| until_it_works(node));
        Self {
            node,
            guard: Some(guard),
            failed: failed(node),
        }
    }

    /// Takes the control plane away, whose API server counts failed reviews anew when it is back.
    pub(crate) fn without_control_plane(&mut self) -> Outage<'a> {
        self.assert_none_failed();
        self.failed = 0;
        self.node.cluster.without_control_plane()
    }

    #[track_caller]
    fn assert_none_failed(&self) {
        assert_eq!(failed(self.node), self.failed, "reviews failed");
    }

    /// Lets others use it, and disturb it, as they like.
    pub(crate) fn give_back(&mut self) {
        self.guard = None;
    }
}

/// The chart as this run installs it. No value but the image and what keeps others out: the defaults are what
/// is tested, but for a renewal's steps, which take a test's time, and the registries of mirrors that tests make.
pub(crate) fn chart<'a>(node: &'a Node, note: &str) -> Chart<'a> {
    let values = json!({
        "image": {"repository": "kagami.test/kagami", "tag": "1"},
        "leftAlone": [LEFT_ALONE],
        "certificates": {"step": "20s"},
        "rescue": {"registries": [FORWARD, MOMENT]},
        "podAnnotations": {"kagami.test/note": note},
    });
    // JSON is YAML.
    Chart::new(&node.cluster, "kagami", OWN, &values.to_string())
}

/// Waits until every Pod runs and the API server calls them. Before, it calls in vain.
fn until_it_works(node: &Node) {
    until_rolled_out(node, "webhook", 3);
    until_rolled_out(node, "companion", 2);
    let namespace = node.cluster.namespace(Some("enforce"));
    let path = format!("{}?dryRun=All", namespace.path("pods"));
    eventually("the API server calls Kagami", || {
        node.cluster.create(&path, &pod("probe", "nginx:1.29")).success();
        (calls(node, "enforce").answered > 0).then_some(())
    });
}

/// Waits until a Deployment has so many Pods, all of its latest form, all ready.
#[track_caller]
pub(crate) fn until_rolled_out(node: &Node, component: &str, replicas: usize) {
    let path = format!("/apis/apps/v1/namespaces/{OWN}/deployments/kagami-{component}");
    eventually(&format!("{replicas} Pods of the {component} are ready"), || {
        let deployment = node.cluster.get(&path).success();
        let status = &deployment["status"];
        let all = [
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
        ];
        let seen = status["observedGeneration"] == deployment["metadata"]["generation"];
        // Absent where it is none.
        let is_all = |name: &&str| status[*name].as_u64().unwrap_or_default() == replicas as u64;
        (seen && all.iter().all(is_all)).then_some(())
    });
}

/// Runs `kubectl` in Kagami's own namespace.
#[track_caller]
pub(crate) fn kubectl(node: &Node, arguments: &[&str]) -> String {
    let output = node.cluster.kubectl(&[&["--namespace", OWN], arguments].concat());
    stdout(&output)
}

/// The Pods of one of the two processes that run and are to stay.
pub(crate) fn replicas(node: &Node, component: &str) -> Vec<Replica> {
    let pods = pods(node, component);
    let staying = pods
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let admin = if component == "webhook" { 8080 } else { 8081 };
    staying
        .map(|pod| Replica {
            name: text(&pod["metadata"]["name"]),
            uid: text(&pod["metadata"]["uid"]),
            address: text(&pod["status"]["podIP"]).parse().unwrap(),
            admin,
        })
        .collect()
}

/// Every Pod of one of the two processes, those that are on their way out too.
pub(crate) fn pods(node: &Node, component: &str) -> Vec<Value> {
    let path = format!("/api/v1/namespaces/{OWN}/pods?labelSelector=app.kubernetes.io/component={component}");
    let pods = node.cluster.get(&path).success();
    pods["items"].as_array().unwrap().clone()
}

/// The companion that leads, and its identity, which is another one for each process.
#[track_caller]
pub(crate) fn leader(node: &Node) -> (Replica, String) {
    eventually("a companion leads", || {
        replicas(node, "companion").into_iter().find_map(|companion| {
            let status = companion.status(node)?;
            let identity = status["identity"].as_str()?.to_owned();
            (status["leading"] == true).then_some((companion, identity))
        })
    })
}

/// What the API server counted so far for the webhook of a mode.
fn calls(node: &Node, mode: &str) -> Calls {
    Calls::read(&node.cluster.metrics(), &format!("{mode}.kagami.dev"))
}

/// How many calls failed so far, and how many requests were denied or went on without Kagami.
fn failed(node: &Node) -> u64 {
    let metrics = node.cluster.metrics();
    let calls = MODES.map(|mode| Calls::read(&metrics, &format!("{mode}.kagami.dev")));
    calls
        .iter()
        .map(|calls| calls.failed + calls.failed_open + calls.rejected)
        .sum()
}

/// A Secret's data.
pub(crate) fn secret(node: &Node, name: &str) -> Option<Value> {
    let answer = node
        .cluster
        .get(&format!("/api/v1/namespaces/{OWN}/secrets/{name}"));
    (answer.status == 200).then(|| answer.success()["data"].clone())
}

/// One value of a Secret's data.
pub(crate) fn text_of(data: &Value, name: &str) -> String {
    String::from_utf8(BASE64.decode(data[name].as_str().unwrap()).unwrap()).unwrap()
}

/// What the API server trusts when it calls a replica, as it is now.
pub(crate) fn trust(node: &Node) -> Settings {
    Settings {
        name: Some(format!("{WEBHOOK}.{OWN}.svc")),
        ..Settings::trusting(&text_of(&secret(node, SERVING).unwrap(), "ca.crt"))
    }
}

impl Replica {
    /// What its admin listener shows, if it answers.
    pub(crate) fn status(&self, node: &Node) -> Option<Value> {
        let http = &node.cluster.http;
        let url = format!("http://{}:{}/status", self.address, self.admin);
        let answer = http.send(http.client.get(url)).ok()?;
        (answer.status == 200).then(|| answer.success())
    }

    /// What it decides of an image: outcome and reason. Asked as the API server asks, on a new connection.
    #[track_caller]
    pub(crate) fn decide(&self, trust: &Settings, image: &str) -> String {
        let address = SocketAddr::from((self.address, 8443));
        ask(address, trust, &review(&[image]))
    }

    /// Waits until it decides this of an image.
    #[track_caller]
    pub(crate) fn decides(&self, trust: &Settings, image: &str, expected: &str) {
        eventually(&format!("{} decides: {expected}", self.name), || {
            (self.decide(trust, image) == expected).then_some(())
        });
    }

    /// Whether it believes nothing of what is shared about a mirror, because the heartbeat is too old.
    pub(crate) fn is_stale(&self, node: &Node, mirror: &str) -> bool {
        let status = self.status(node).unwrap();
        status["mirrors"][mirror]["health"]["stale"].as_bool().unwrap()
    }

    /// Ends its process at once; kubelet starts another one in the same Pod.
    pub(crate) fn kill(&self, component: &str) {
        self.signal(component, "KILL");
    }

    /// Stops its process where it is; it then answers nobody. Kubelet ends it after a minute.
    pub(crate) fn freeze(&self, component: &str) {
        self.signal(component, "STOP");
    }

    /// Lets a stopped process go on.
    pub(crate) fn thaw(&self, component: &str) {
        self.signal(component, "CONT");
    }

    fn signal(&self, component: &str, signal: &str) {
        let process = self.process(component);
        let signal = format!("-{signal}");
        let status = Command::new("kill").args([&signal, &process]).status().unwrap();
        assert!(status.success());
    }

    /// The number of its process. A Pod's cgroup has its UID in its name.
    fn process(&self, component: &str) -> String {
        let command = format!("/kagami\0{component}\0");
        let processes = fs::read_dir("/proc").unwrap();
        let found = processes.filter_map(Result::ok).find(|process| {
            let read = |file: &str| fs::read_to_string(process.path().join(file)).unwrap_or_default();
            read("cmdline").starts_with(&command) && read("cgroup").contains(&self.uid)
        });
        found.unwrap().file_name().into_string().unwrap()
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            for arguments in [
                &["get", "pods", "--output=wide"][..],
                &[
                    "logs",
                    "--selector=app.kubernetes.io/name=kagami",
                    "--tail=40",
                    "--prefix",
                ],
            ] {
                let arguments = [&["--namespace", OWN], arguments].concat();
                let output = self.node.cluster.kubectl(&arguments);
                eprintln!("{}", String::from_utf8_lossy(&output.stdout));
            }
            return;
        }
        self.assert_none_failed();
    }
}
