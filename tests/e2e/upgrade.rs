//! From an earlier version to this one, back, and here again, with Pods being created all the while.
//! `scripts/upgrade` builds the earlier version and runs this; no other run does.
//!
//! The charts' objects are applied as they are rendered, but nobody runs the Deployments' Pods: the
//! test starts the programs, brings them their Secret as a kubelet would, and stands in for the
//! Service.

use std::{
    collections::BTreeMap,
    env, fs, io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use crate::support::{
    admission::{Calls, pod},
    chart::{apply, stdout},
    cluster::{Cluster, Namespace},
    companion::MIRRORS,
    eventually,
    kagami::{ADMIN_LISTEN, Kagami, LISTEN},
    mirror::{REGISTRY, image_mirror},
    process::Process,
};

/// Folder with `kagami` and `chart` of the earlier version.
pub(crate) const FORMER: &str = "KAGAMI_FORMER";

const KINDS: [&str; 9] = [
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "Service",
    "MutatingWebhookConfiguration",
];

const HERE: &str = "nginx:1.29";
const NOT_HERE: &str = "nginx:no-such-tag";

struct Version {
    name: &'static str,
    program: PathBuf,
    chart: PathBuf,
}

/// Everything that is installed and runs.
struct Installation<'a> {
    own: &'a Namespace<'a>,
    front: Front,
    started: usize,
    webhook: Option<Process>,
    /// By their identities.
    companions: Vec<(String, Process)>,
    /// The webhook configuration's name, which the present version is told to keep: a new one has no authority
    /// until the next companion leads, and meanwhile calls fail.
    configuration: String,
}

pub(crate) fn there_and_back_and_here_again(cluster: &Cluster) {
    let folder = PathBuf::from(env::var_os(FORMER).unwrap());
    let former = Version {
        name: "former",
        program: folder.join("kagami"),
        chart: folder.join("chart"),
    };
    let present = Version {
        name: "present",
        program: env!("CARGO_BIN_EXE_kagami").into(),
        chart: crate::support::chart::CHART.into(),
    };
    let bytes = |version: &Version| fs::read(&version.program).unwrap();
    assert!(bytes(&former) != bytes(&present), "there is nothing to upgrade");
    // Whose accounts' writes are audited.
    let own = cluster.namespace_named("kagami-system", None);
    let served = cluster.namespace(Some("enforce"));
    install_definitions(cluster, &former);
    let url = &cluster.mirror.url;
    let mirror = image_mirror("main", REGISTRY, &["docker.io"], url, &json!({}));
    cluster.create(MIRRORS, &mirror).success();
    for (name, image) in [("here", HERE), ("not-here", NOT_HERE)] {
        served.create_pod(&pod(name, image)).success();
    }
    let mut installation = Installation {
        own: &own,
        front: Front::open(),
        started: 0,
        webhook: None,
        companions: Vec::new(),
        configuration: configuration(cluster, &former),
    };
    let secrets = cluster.folder().join("serving");
    fs::create_dir_all(&secrets).unwrap();
    let load = Load::default();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        // Also where an assertion fails.
        let _end = End(&ended);
        scope.spawn(|| bring_secret(&own, &secrets, &ended));
        installation.change_to(&former, &secrets);
        rewrites(&served);
        eventually("both images are written", || {
            (writes(&own).len() == 2).then_some(())
        });

        scope.spawn(|| load.run(&served, &ended));
        let before = Calls::read(&cluster.metrics(), "enforce.kagami.dev");
        let stage = |name: &str,
                     installation: &mut Installation<'_>,
                     step: &dyn Fn(&mut Installation<'_>)| {
            let (created, written) = (load.created.load(Ordering::Relaxed), writes(&own));
            step(installation);
            rewrites(&served);
            eventually("Pods are created", || {
                (load.created.load(Ordering::Relaxed) > created + 20).then_some(())
            });
            let calls = Calls::read(&cluster.metrics(), "enforce.kagami.dev");
            let most = more(&writes(&own), &written);
            eprintln!(
                "{name}: {} Pods, {} reviews failed, {} rewritten without proof, at most {most} writes of an image",
                load.created.load(Ordering::Relaxed) - created,
                calls.failed_open - before.failed_open,
                load.unproven.load(Ordering::Relaxed),
            );
            assert_eq!(
                (calls.failed, calls.failed_open, calls.rejected),
                (before.failed, before.failed_open, before.rejected),
                "{name}: a review failed"
            );
            assert_eq!(load.unproven.load(Ordering::Relaxed), 0, "{name}");
            assert!(most <= 1, "{name}: {most} writes of one image");
        };
        stage("upgrade", &mut installation, &|installation| {
            install_definitions(cluster, &present);
            installation.change_to(&present, &secrets);
        });
        stage("leader change", &mut installation, &|installation| {
            installation.change_leader(&present);
        });
        // Definitions stay, as Helm leaves them.
        stage("rollback", &mut installation, &|installation| {
            installation.change_to(&former, &secrets);
        });
        stage("upgrade again", &mut installation, &|installation| {
            installation.change_to(&present, &secrets);
        });
    });
}

/// Says that it is over, however that came.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Installation<'_> {
    /// Installs a version, as helm would, and replaces one process after the other.
    fn change_to(&mut self, version: &Version, secrets: &Path) {
        self.apply(version);
        for _ in 0..2 {
            let next = self.start_companion(version);
            if self.companions.len() == 2 {
                self.companions.remove(0).1.terminate();
            }
            self.companions.push(next);
        }
        eventually("there is a certificate", || {
            secrets.join("tls.key").exists().then_some(())
        });
        let (certificate, key) = (secrets.join("tls.crt"), secrets.join("tls.key"));
        let mut command = Command::new(&version.program);
        command
            .args(["webhook", "--namespace", &self.own.name, "--drain-delay=5s"])
            .args(LISTEN)
            .arg("--tls-cert")
            .arg(certificate)
            .arg("--tls-key")
            .arg(key);
        let next = self.start(version, "webhook", &mut command);
        *self.front.target.lock().unwrap() = Some(next.listeners.admission());
        if let Some(last) = self.webhook.replace(next.process) {
            last.terminate();
        }
    }

    fn change_leader(&mut self, version: &Version) {
        let leader = self.leader();
        let at = self.companions.iter().position(|(name, _)| *name == leader);
        self.companions.remove(at.unwrap()).1.terminate();
        let next = self.start_companion(version);
        self.companions.push(next);
        eventually("another one leads", || {
            (![leader.as_str(), ""].contains(&&*self.leader())).then_some(())
        });
    }

    fn leader(&self) -> String {
        let path = format!(
            "/apis/coordination.k8s.io/v1/namespaces/{}/leases/kagami-companion",
            self.own.name
        );
        let lease = self.own.cluster.get(&path).success();
        lease["spec"]["holderIdentity"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    fn start_companion(&mut self, version: &Version) -> (String, Process) {
        // The next one to be started.
        let name = format!("companion-{}-{}", version.name, self.started + 1);
        let mut command = Command::new(&version.program);
        command.args([
            "companion",
            "--namespace",
            &self.own.name,
            "--identity",
            &name,
            &format!("--webhook-configuration={}", self.configuration),
            "--certificate-step=5s",
        ]);
        let companion = self.start(version, "companion", &mut command);
        (name, companion.process)
    }

    /// Starts a process of a version, called after both, and waits until it is ready.
    fn start(&mut self, version: &Version, component: &str, command: &mut Command) -> Kagami {
        self.started += 1;
        let name = format!("{component}-{}-{}", version.name, self.started);
        let account = format!("kagami-{component}");
        command
            .env("KUBECONFIG", self.own.kubeconfig_of(&account))
            .args(ADMIN_LISTEN);
        Kagami::launch(&name, command, self.own.cluster.folder()).until_ready()
    }

    /// Applies the version's objects, with the Service leading to the test.
    fn apply(&self, version: &Version) {
        let cluster = self.own.cluster;
        let chart = version.chart.to_str().unwrap();
        let mut template = vec!["template", "kagami", chart, "--namespace", &self.own.name];
        let name = format!("webhookConfiguration.name={}", self.configuration);
        if configuration(cluster, version) != self.configuration {
            template.extend(["--set", &name]);
        }
        let rendered = stdout(&cluster.helm(&template));
        let mut items = ::kagami::state::file::decode_documents(&rendered).unwrap();
        items.retain(|item| KINDS.contains(&item["kind"].as_str().unwrap()));
        let port = self.front.address.port();
        for item in &mut items {
            if item["kind"] == "Service" {
                item["spec"] = json!({"type": "ExternalName", "externalName": "localhost"});
            }
            for webhook in item
                .get_mut("webhooks")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                webhook["clientConfig"]["service"]["port"] = port.into();
            }
        }
        let file = cluster.folder().join(format!("{}.json", version.name));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        fs::write(&file, list.to_string()).unwrap();
        apply(cluster, &[file.to_str().unwrap()]);
    }
}

/// The name that a version's chart gives to its webhook configuration.
fn configuration(cluster: &Cluster, version: &Version) -> String {
    let rendered = stdout(&cluster.helm(&["template", "kagami", version.chart.to_str().unwrap()]));
    let items = ::kagami::state::file::decode_documents(&rendered).unwrap();
    let mut items = items.into_iter();
    let found = items.find(|item| item["kind"] == "MutatingWebhookConfiguration");
    found.unwrap()["metadata"]["name"].as_str().unwrap().to_owned()
}

fn install_definitions(cluster: &Cluster, version: &Version) {
    apply(cluster, &[version.chart.join("crds").to_str().unwrap()]);
    eventually("the resources are served", || {
        (cluster.get(MIRRORS).status == 200).then_some(())
    });
}

/// Keeps the serving pair in files, a moment late, as a kubelet does.
fn bring_secret(own: &Namespace<'_>, folder: &Path, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        let answer = own.cluster.get(&own.path("secrets/kagami-webhook-tls"));
        if answer.status == 200 {
            let secret = answer.success();
            for name in ["tls.crt", "tls.key"] {
                let content = BASE64.decode(secret["data"][name].as_str().unwrap()).unwrap();
                if fs::read(folder.join(name)).ok().as_ref() != Some(&content) {
                    let file = folder.join(format!("{name}.new"));
                    fs::write(&file, content).unwrap();
                    fs::rename(file, folder.join(name)).unwrap();
                }
            }
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// Stands in for the Service: hands each new connection to the replica that is to have it.
struct Front {
    address: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
}

impl Front {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let target = Arc::new(Mutex::new(None));
        let leads_to = Arc::clone(&target);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let target: Option<SocketAddr> = *leads_to.lock().unwrap();
                if let Some(replica) = target.and_then(|target| TcpStream::connect(target).ok()) {
                    pass_on(&client, &replica);
                    pass_on(&replica, &client);
                }
            }
        });
        Self { address, target }
    }
}

fn pass_on(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || {
        drop(io::copy(&mut from, &mut to));
        drop(to.shutdown(Shutdown::Write));
    });
}

#[derive(Default)]
struct Load {
    created: AtomicU64,
    /// Pods that were sent to the mirror for what it does not have.
    unproven: AtomicU64,
}

impl Load {
    fn run(&self, served: &Namespace<'_>, ended: &AtomicBool) {
        while !ended.load(Ordering::Relaxed) {
            created_image(served, HERE);
            let image = created_image(served, NOT_HERE);
            self.created.fetch_add(2, Ordering::Relaxed);
            self.unproven
                .fetch_add(u64::from(image != NOT_HERE), Ordering::Relaxed);
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Returns the image that a new Pod would get.
fn created_image(served: &Namespace<'_>, image: &str) -> String {
    let path = format!("{}?dryRun=All", served.path("pods"));
    let created = served.cluster.create(&path, &pod("load", image)).success();
    crate::support::admission::image(&created, "app").to_owned()
}

fn rewrites(served: &Namespace<'_>) {
    eventually("a Pod is rewritten", || {
        (created_image(served, HERE) != HERE).then_some(())
    });
}

/// How often each MirroredImage was written so far.
fn writes(own: &Namespace<'_>) -> BTreeMap<String, usize> {
    let account = format!("system:serviceaccount:{}:kagami-companion", own.name);
    let mut writes = BTreeMap::new();
    for write in own.cluster.writes_of(|user| user["username"] == account) {
        let object = &write["objectRef"];
        if object["resource"] == "mirroredimages" {
            // A creation names its object in its body only.
            let name = object["name"]
                .as_str()
                .or_else(|| write["requestObject"]["metadata"]["name"].as_str());
            *writes.entry(name.unwrap().to_owned()).or_default() += 1;
        }
    }
    writes
}

/// Returns by how much the number grew that grew the most.
fn more(now: &BTreeMap<String, usize>, before: &BTreeMap<String, usize>) -> usize {
    let grown = now
        .iter()
        .map(|(name, count)| count - before.get(name).unwrap_or(&0));
    grown.max().unwrap_or_default()
}
