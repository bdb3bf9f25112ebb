//! A cluster whose Pods run: the API server of the end-to-end tests, a scheduler, and one node with containerd,
//! kubelet and kube-proxy.
//!
//! There is no cluster DNS: Pods find Services by their environment (`KUBERNETES_SERVICE_HOST` and its like).
//! Registries have names, for Pods too.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

use serde_json::json;

use super::{chart::Release, images, machine};
use crate::shared::{
    cluster::Cluster,
    dns::Names,
    eventually,
    images::Target,
    process::{Process, reserve_port},
    tools::Tools,
};

/// Programs of `scripts/tools` that a node needs besides those of an API server.
pub(crate) const PROGRAMS: &[&str] = &[
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "bridge",
    "loopback",
    "host-local",
];

/// The node's own address, set by `enter.sh`.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);

/// The image that holds a Pod's namespaces.
const PAUSE: (&str, &str) = ("node/pause", "1");

/// The cluster of this run. The private machine ends what it started.
#[derive(Debug)]
pub(crate) struct Node {
    // Dropped in this order: who depends on another goes first.
    kubelet: Mutex<Option<Process>>,
    _proxy: Process,
    _containerd: Process,
    _scheduler: Process,
    pub(crate) cluster: Cluster,
    names: Names,
    addresses: AtomicU8,
    release: OnceLock<Release>,
    cgroup: String,
}

/// How a kubelet pulls the images of several Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pulls {
    /// One after the other, as it does by default.
    Serial,
    /// All at once, as in clusters that are well kept: one that hangs must not hold up the others.
    Parallel,
}

/// Pulls are serial as long as this lives. The kubelet then belongs to the thread that ended this.
#[derive(Debug)]
#[must_use]
pub(crate) struct SerialPulls<'a>(&'a Node);

impl Node {
    /// Starts everything and waits until the node takes Pods.
    pub(crate) fn start(tools: Tools, cgroup: &str) -> Self {
        let names = Names::serve(ADDRESS);
        let cluster = Cluster::start_at(tools, ADDRESS);
        let target = Target::of(&cluster.http, &cluster.mirror.url);
        let pause = images::shell("pause", "sleep infinity");
        cluster.http.wait(target.push(PAUSE.0, PAUSE.1, &pause));
        let pause = format!(
            "{}/{}:{}",
            &cluster.mirror.url["http://".len()..],
            PAUSE.0,
            PAUSE.1
        );

        let files = Files::new(&cluster);
        let scheduler = start_scheduler(&files);
        let containerd = start_containerd(&files, &pause);
        let proxy = start_proxy(&files);
        // Kubelet does not wait for containerd.
        eventually("containerd answers", || {
            let status = Command::new(cluster.tools.path("ctr"))
                .arg("version")
                .output()
                .unwrap()
                .status;
            status.success().then_some(())
        });
        let mut kubelet = start_kubelet(&files, cgroup, Pulls::Parallel);
        eventually("the node is ready", || {
            kubelet.assert_alive();
            let node = cluster.get("/api/v1/nodes/node1");
            if node.status != 200 {
                return None;
            }
            let conditions = node.success()["status"]["conditions"].as_array()?.clone();
            let ready =
                |condition: &serde_json::Value| condition["type"] == "Ready" && condition["status"] == "True";
            conditions.iter().any(ready).then_some(())
        });
        Self {
            kubelet: Mutex::new(Some(kubelet)),
            _proxy: proxy,
            _containerd: containerd,
            _scheduler: scheduler,
            cluster,
            names,
            addresses: AtomicU8::new(10),
            release: OnceLock::new(),
            cgroup: cgroup.to_owned(),
        }
    }

    /// Lets kubelet pull one image after the other. Its Pods run on while it is started again.
    pub(crate) fn pull_one_by_one(&self) -> SerialPulls<'_> {
        self.restart_kubelet(Pulls::Serial);
        SerialPulls(self)
    }

    fn restart_kubelet(&self, pulls: Pulls) {
        let mut kubelet = self.kubelet.lock().unwrap();
        drop(kubelet.take());
        *kubelet = Some(start_kubelet(&Files::new(&self.cluster), &self.cgroup, pulls));
    }

    /// Installs Kagami by its chart, on the thread on which everything is started.
    pub(crate) fn install_kagami(&self) {
        self.release.set(Release::install(self)).unwrap();
    }

    /// The port of the API server at the node's address.
    pub(crate) fn api_server_port(&self) -> u16 {
        let (_, port) = self.cluster.url.rsplit_once(':').unwrap();
        port.parse().unwrap()
    }

    /// The installation of this run.
    pub(crate) fn release(&self) -> &Release {
        self.release.get().unwrap()
    }

    /// Gives the machine one more address, at which Pods reach it too, with a name.
    pub(crate) fn new_address(&self, name: &str) -> Ipv4Addr {
        let [a, b, c, _] = ADDRESS.octets();
        let address = Ipv4Addr::new(a, b, c, self.addresses.fetch_add(1, Ordering::Relaxed));
        run(
            "ip",
            &["address", "add", &format!("{address}/24"), "dev", "node0"],
        );
        self.names.add(name, address);
        address
    }
}

impl Drop for SerialPulls<'_> {
    fn drop(&mut self) {
        self.0.restart_kubelet(Pulls::Parallel);
    }
}

/// Runs a program of the system to its successful end.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let path = machine::find(program).unwrap();
    let output = Command::new(path)
        .args(arguments)
        .env("PATH", machine::SEARCH_PATH)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The run's folder and programs.
struct Files<'a> {
    cluster: &'a Cluster,
    folder: &'a Path,
}

impl<'a> Files<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Self {
            cluster,
            folder: cluster.folder(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Starts a program of ours that finds the system's programs, trusting the run's authority.
    fn start(&self, name: &str, arguments: &[String]) -> Process {
        let tools = &self.cluster.tools;
        let search_path = format!("{}:{}", tools.path("").display(), machine::SEARCH_PATH);
        let mut command = Command::new(tools.path(name));
        command
            .env("PATH", search_path)
            .env("SSL_CERT_FILE", self.path("ca.crt"))
            .args(arguments);
        Process::start(name, &command, self.folder)
    }
}

fn start_scheduler(files: &Files<'_>) -> Process {
    let kubeconfig = files.path("admin.kubeconfig").display().to_string();
    let arguments = [
        format!("--kubeconfig={kubeconfig}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={}", reserve_port()),
        format!("--cert-dir={}", files.path("scheduler").display()),
        "--leader-elect=false".to_owned(),
        "--authentication-skip-lookup".to_owned(),
    ];
    files.start("kube-scheduler", &arguments)
}

fn start_containerd(files: &Files<'_>, pause: &str) -> Process {
    let network = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge",
            "bridge": "pods0",
            "isDefaultGateway": true,
            "ipMasq": false,
            "hairpinMode": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.201.0.0/24"}]]},
        }],
    });
    files.write("cni/10-bridge.conflist", network.to_string());
    let configuration = format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[plugins.'io.containerd.cri.v1.images']
  # Five minutes by default, which tests would wait for.
  image_pull_progress_timeout = "10s"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{pause}"
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "{certificates}"
[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE, as in many containers, runc may not lower it and fails with an empty message.
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{tools}"]
    conf_dir = "{networks}"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      SystemdCgroup = false
[plugins.'io.containerd.grpc.v1.cri']
  stream_server_address = "127.0.0.1"
"#,
        certificates = files.path("registries").display(),
        tools = files.cluster.tools.path("").display(),
        networks = files.path("cni").display(),
    );
    let configuration = files.write("containerd.toml", configuration);
    files.start("containerd", &["--config".to_owned(), configuration])
}

fn start_kubelet(files: &Files<'_>, cgroup: &str, pulls: Pulls) -> Process {
    let (certificate, key) = files
        .cluster
        .authority
        .issue_for(&["node1", &ADDRESS.to_string()])
        .write(files.folder, "kubelet");
    let configuration = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": {"enabled": false},
            "x509": {"clientCAFile": files.path("ca.crt")},
        },
        "tlsCertFile": certificate,
        "tlsPrivateKeyFile": key,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "volumePluginDir": files.path("volume-plugins"),
        "podLogsDir": "/var/log/pods",
        "clusterDNS": [ADDRESS],
        "resolvConf": "",
        // Everything below one folder of our own, in version 1 of cgroups as well.
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "serializeImagePulls": pulls == Pulls::Serial,
        // Some tests have many.
        "maxPods": 200,
        "nodeStatusUpdateFrequency": "2s",
        // How often the files of Secrets are renewed; by default once a minute.
        "syncFrequency": "10s",
        "imageMinimumGCAge": "24h",
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi"},
    });
    let configuration = files.write("kubelet.yaml", configuration.to_string());
    let arguments = [
        format!("--config={configuration}"),
        format!("--kubeconfig={}", files.path("node.kubeconfig").display()),
        "--root-dir=/var/lib/kubelet".to_owned(),
        "--hostname-override=node1".to_owned(),
        format!("--node-ip={ADDRESS}"),
    ];
    files.start("kubelet", &arguments)
}

fn start_proxy(files: &Files<'_>) -> Process {
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddress": "127.0.0.1",
        "clientConnection": {"kubeconfig": files.path("admin.kubeconfig")},
        "hostnameOverride": "node1",
        "mode": "iptables",
        // Pods share a bridge, past which an answer would go straight to the caller.
        "iptables": {"masqueradeAll": true},
        // The machine's own settings stay as they are.
        "conntrack": {
            "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
        },
    });
    let configuration = files.write("kube-proxy.yaml", configuration.to_string());
    files.start("kube-proxy", &[format!("--config={configuration}")])
}
