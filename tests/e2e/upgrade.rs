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
    let mirror = json!({
        "apiVersion": "kagami.dev/v1alpha1", "kind": "ImageMirror", "metadata": {"name": "main"},
        "spec": {
            "registry": crate::support::mirror::REGISTRY, "kind": "Hosted",
            "sources": [{"prefix": "docker.io"}], "endpoint": {"url": cluster.mirror.url},
        },
    });
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
        self.started += 1;
        let (certificate, key) = (secrets.join("tls.crt"), secrets.join("tls.key"));
        let arguments = [
            "webhook",
            "--namespace",
            &self.own.name,
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--tls-cert",
            certificate.to_str().unwrap(),
            "--tls-key",
            key.to_str().unwrap(),
            "--drain-delay=5s",
        ];
        let name = format!("webhook-{}-{}", version.name, self.started);
        let (next, lines) = self.start(version, &name, "kagami-webhook", &arguments, 2);
        self.await_ready(&lines[1]);
        let address = lines[0].split("https://").nth(1).unwrap().parse().unwrap();
        *self.front.target.lock().unwrap() = Some(address);
        if let Some(last) = self.webhook.replace(next) {
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
        self.started += 1;
        let name = format!("companion-{}-{}", version.name, self.started);
        let arguments = [
            "companion",
            "--namespace",
            &self.own.name,
            "--admin-listen=127.0.0.1:0",
            "--identity",
            &name,
            "--webhook-configuration=kagami",
            "--certificate-step=5s",
        ];
        let (process, lines) = self.start(version, &name, "kagami-companion", &arguments, 1);
        self.await_ready(&lines[0]);
        (name, process)
    }

    fn start(
        &self,
        version: &Version,
        name: &str,
        account: &str,
        arguments: &[&str],
        lines: usize,
    ) -> (Process, Vec<String>) {
        let kubeconfig = kubeconfig(self.own, account);
        let words = [
            &*format!("KUBECONFIG={}", kubeconfig.display()),
            version.program.to_str().unwrap(),
        ];
        let words: Vec<_> = words
            .iter()
            .chain(arguments)
            .map(|&word| word.to_owned())
            .collect();
        Process::start_and_read(name, Path::new("env"), &words, self.own.cluster.folder(), lines)
    }

    fn await_ready(&self, admin: &str) {
        let http = &self.own.cluster.http;
        let url = format!("http://{}/readyz", admin.split("http://").nth(1).unwrap());
        eventually("it is ready", || {
            let answer = http.send(http.client.get(&url)).ok()?;
            (answer.status == 200).then_some(())
        });
    }

    /// Applies the version's objects, with the Service leading to the test.
    fn apply(&self, version: &Version) {
        let cluster = self.own.cluster;
        let chart = version.chart.to_str().unwrap();
        let rendered = stdout(&cluster.helm(&["template", "kagami", chart, "--namespace", &self.own.name]));
        let mut items = kagami::state::file::decode_documents(&rendered).unwrap();
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

fn install_definitions(cluster: &Cluster, version: &Version) {
    apply(cluster, &[version.chart.join("crds").to_str().unwrap()]);
    eventually("the resources are served", || {
        (cluster.get(MIRRORS).status == 200).then_some(())
    });
}

fn kubeconfig(own: &Namespace<'_>, account: &str) -> PathBuf {
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let path = own.path(&format!("serviceaccounts/{account}/token"));
    let token = own.cluster.create(&path, &request).success();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "e2e",
        "clusters": [{"name": "e2e", "cluster": {
            "server": own.cluster.url, "certificate-authority-data": own.cluster.authority.bundle(),
        }}],
        "users": [{"name": "account", "user": {"token": token["status"]["token"]}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "account"}}],
    });
    let file = own.cluster.folder().join(format!("{account}.kubeconfig"));
    fs::write(&file, config.to_string()).unwrap();
    file
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
