//! One API server for all tests of a run: etcd, kube-apiserver and kube-controller-manager.
//!
//! Without scheduler and node, which the node ring adds: Pods are created, admitted and stored, and never run.
//! Tests share it, each in namespaces of its own.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    certificates::Authority,
    eventually,
    http::{Answer, Http},
    mirror::Mirror,
    process::{Process, reserve_port},
    tools::Tools,
};

/// Where roles and their bindings are.
pub(crate) const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// Who makes a request; static tokens of the API server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum User {
    /// May do everything.
    Admin,
    /// A kubelet.
    Node,
}

/// The API server of this run. Everything ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) http: Http,
    pub(crate) authority: Authority,
    /// A healthy mirror that tests share; one that breaks it starts its own.
    pub(crate) mirror: Mirror,
    // Dropped in this order: who depends on another goes first, the files last.
    control_plane: Mutex<Option<ControlPlane>>,
    _etcd: Process,
    etcd_url: String,
    address: Ipv4Addr,
    pub(crate) url: String,
    namespaces: AtomicUsize,
    pub(crate) tools: Tools,
    folder: TempDir,
}

/// A namespace of one test, deleted with it.
#[derive(Debug)]
pub(crate) struct Namespace<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) name: String,
}

#[derive(Debug)]
struct ControlPlane {
    // Dropped in this order.
    _controller_manager: Process,
    api_server: Process,
}

/// The control plane is away as long as this lives. It then belongs to the thread that ended this.
#[derive(Debug)]
#[must_use]
pub(crate) struct Outage<'a>(&'a Cluster);

impl Cluster {
    /// Starts everything on 127.0.0.1; takes about five seconds.
    pub(crate) fn start(tools: Tools) -> Self {
        Self::start_at(tools, Ipv4Addr::LOCALHOST)
    }

    /// The same with the API server at an address of the machine. At one that Pods can reach, it also does what
    /// running Pods need.
    pub(crate) fn start_at(tools: Tools, address: Ipv4Addr) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("e2e-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap();
        let authority = Authority::new();
        let http = Http::new(&authority);
        let mirror = Mirror::start(&tools, &http, folder.path(), "mirror");

        let etcd_url = format!("http://127.0.0.1:{}", reserve_port());
        let mut etcd = start_etcd(&tools, folder.path(), &etcd_url);
        let url = format!("https://{address}:{}", reserve_port());
        write_api_server_files(folder.path(), &authority, &url);
        eventually("etcd is healthy", || {
            etcd.assert_alive();
            http.send(http.client.get(format!("{etcd_url}/health")))
                .ok()
                .filter(|answer| answer.status == 200)
        });
        let cluster = Self {
            http,
            authority,
            mirror,
            control_plane: Mutex::default(),
            _etcd: etcd,
            etcd_url,
            address,
            url,
            namespaces: AtomicUsize::new(0),
            tools,
            folder,
        };
        cluster.start_control_plane();
        cluster
    }

    /// Ends the API server at once; its port then refuses connections, its data stays. The controller manager goes
    /// with it, because left behind it would look for the API server once a minute only.
    pub(crate) fn without_control_plane(&self) -> Outage<'_> {
        self.control_plane.lock().unwrap().take();
        Outage(self)
    }

    fn start_control_plane(&self) {
        let (tools, folder) = (&self.tools, self.folder());
        let api_server = start_api_server(tools, &self.http, folder, &self.etcd_url, self.address, &self.url);
        *self.control_plane.lock().unwrap() = Some(ControlPlane {
            _controller_manager: start_controller_manager(tools, folder, self.address),
            api_server,
        });
    }

    /// The process of the API server.
    pub(crate) fn api_server(&self) -> u32 {
        let control_plane = self.control_plane.lock().unwrap();
        control_plane.as_ref().unwrap().api_server.id()
    }

    /// A folder for the files of this run.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Creates a namespace, labelled with a mode of Kagami or not at all, in which Pods can be created.
    pub(crate) fn namespace(&self, mode: Option<&str>) -> Namespace<'_> {
        self.namespace_named(
            &format!("test-{}", self.namespaces.fetch_add(1, Ordering::Relaxed)),
            mode,
        )
    }

    /// The same with a given name.
    pub(crate) fn namespace_named(&self, name: &str, mode: Option<&str>) -> Namespace<'_> {
        let labels = mode.map(|mode| json!({"kagami.dev/mode": mode}));
        self.create(
            "/api/v1/namespaces",
            &json!({"metadata": {"name": name, "labels": labels}}),
        )
        .success();
        // Pods are refused until the controller manager has made the service account that they run as.
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        eventually("the namespace has its service account", || {
            (self.request(User::Admin, Method::GET, &account, None).status == 200).then_some(())
        });
        Namespace {
            cluster: self,
            name: name.to_owned(),
        }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request(User::Admin, Method::GET, path, None)
    }

    pub(crate) fn create(&self, path: &str, object: &Value) -> Answer {
        self.request(User::Admin, Method::POST, path, Some(object))
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.request(User::Admin, Method::DELETE, path, None)
    }

    /// Sends a request to the API server.
    pub(crate) fn request(&self, user: User, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let url = format!("{}{path}", self.url);
        let request = self.http.client.request(method, url).bearer_auth(user.token());
        self.send(request, "application/json", body)
    }

    /// Sends a patch in this format, a media type.
    pub(crate) fn patch(&self, user: User, format: &str, path: &str, patch: &Value) -> Answer {
        let request = self.http.client.patch(format!("{}{path}", self.url));
        self.send(request.bearer_auth(user.token()), format, Some(patch))
    }

    /// Sends a request of a service account, written `namespace:name`. The body of a PATCH is a JSON patch.
    pub(crate) fn request_by(
        &self,
        account: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Answer {
        let content = match method {
            Method::PATCH => "application/json-patch+json",
            _ => "application/json",
        };
        let request = self.http.client.request(method, format!("{}{path}", self.url));
        let request = request
            .bearer_auth(User::Admin.token())
            .header("impersonate-user", format!("system:serviceaccount:{account}"));
        self.send(request, content, body)
    }

    fn send(&self, mut request: RequestBuilder, content: &str, body: Option<&Value>) -> Answer {
        if let Some(body) = body {
            request = request.header("content-type", content).body(body.to_string());
        }
        self.http.send(request).unwrap()
    }

    /// Runs `kubectl` as a user would, without a namespace.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Output {
        self.tool("kubectl", arguments)
    }

    /// Runs `helm` as a user would.
    pub(crate) fn helm(&self, arguments: &[&str]) -> Output {
        self.tool("helm", arguments)
    }

    fn tool(&self, name: &str, arguments: &[&str]) -> Output {
        Command::new(self.tools.path(name))
            .args(arguments)
            .env_clear()
            // Both keep what they learn in the home folder.
            .env("HOME", self.folder())
            .env("KUBECONFIG", self.folder().join("admin.kubeconfig"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The API server's own measurements, in Prometheus' text form.
    pub(crate) fn metrics(&self) -> String {
        self.get("/metrics").body
    }

    /// The audit log's events about Pods of a namespace so far, oldest first.
    pub(crate) fn audit_events(&self, namespace: &str) -> Vec<Value> {
        let mut events = self.audit_log();
        events.retain(|event| {
            let object = &event["objectRef"];
            object["namespace"] == namespace && object["resource"] != "events"
        });
        events
    }

    /// Every write of a user, as audit events show one, that the API server answered so far, oldest first.
    pub(crate) fn writes_of(&self, is_it: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut events = self.audit_log();
        events.retain(|event| is_it(&event["user"]));
        events
    }

    /// Every Event that kubelets wrote so far, oldest first, those of Pods that are gone too.
    pub(crate) fn events_of_nodes(&self) -> Vec<Value> {
        let log = self.audit_log().into_iter();
        log.filter(|event| event["objectRef"]["resource"] == "events")
            .filter(|event| event["user"]["username"] == "system:node:node1")
            .map(|mut event| event["requestObject"].take())
            .collect()
    }

    fn audit_log(&self) -> Vec<Value> {
        let log = fs::read_to_string(self.folder().join("audit.log")).unwrap_or_default();
        log.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }
}

impl Drop for Outage<'_> {
    fn drop(&mut self) {
        self.0.start_control_plane();
    }
}

/// When the API server received the request of an audit event; text that sorts by time.
pub(crate) fn received_at(event: &Value) -> String {
    event["requestReceivedTimestamp"].as_str().unwrap().to_owned()
}

impl Namespace<'_> {
    /// Runs `kubectl` in this namespace, as a user would.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Output {
        self.cluster
            .kubectl(&[&["--namespace", self.name.as_str()], arguments].concat())
    }

    /// Creates a Pod and returns the API server's whole answer.
    pub(crate) fn create_pod(&self, pod: &Value) -> Answer {
        self.cluster.create(&self.path("pods"), pod)
    }

    /// The stored Pod.
    pub(crate) fn pod(&self, name: &str) -> Value {
        self.cluster.get(&self.path(&format!("pods/{name}"))).success()
    }

    /// Waits for the audit event of creating the Pod `name`.
    pub(crate) fn audit_event(&self, name: &str) -> Value {
        eventually("the audit event is written", || {
            let mut events = self.cluster.audit_events(&self.name).into_iter();
            events.find(|event| event["verb"] == "create" && event["objectRef"]["name"] == name)
        })
    }

    /// Makes a token for a service account of this namespace, and returns the path of its kubeconfig.
    pub(crate) fn kubeconfig_of(&self, account: &str) -> PathBuf {
        let cluster = self.cluster;
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let path = self.path(&format!("serviceaccounts/{account}/token"));
        let answer = cluster.create(&path, &request).success();
        let token = answer["status"]["token"].as_str().unwrap();
        let user = format!("{}-{account}", self.name);
        write_kubeconfig(cluster.folder(), &cluster.url, &cluster.authority, &user, token)
    }

    /// Gives a subject these rights and no others: some in the whole cluster, where `name` is their role's, and some
    /// in this namespace.
    pub(crate) fn grant(&self, subject: &Value, name: &str, everywhere: &Value, here: &Value) {
        let namespace = format!("{RBAC}/namespaces/{}", self.name);
        for (path, kind, roles, name, rules) in [
            (RBAC, "ClusterRole", "clusterroles", name, everywhere),
            (&namespace, "Role", "roles", "kagami", here),
        ] {
            let role = json!({"metadata": {"name": name}, "rules": rules});
            self.cluster.create(&format!("{path}/{roles}"), &role).success();
            let binding = json!({
                "metadata": {"name": name},
                "subjects": [subject],
                "roleRef": {"kind": kind, "name": name, "apiGroup": "rbac.authorization.k8s.io"},
            });
            let path = format!("{path}/{}bindings", &roles[..roles.len() - 1]);
            self.cluster.create(&path, &binding).success();
        }
    }

    /// The path of a resource of the core group in this namespace.
    pub(crate) fn path(&self, resource: &str) -> String {
        format!("/api/v1/namespaces/{}/{resource}", self.name)
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        self.cluster.delete(&format!("/api/v1/namespaces/{}", self.name));
    }
}

impl User {
    pub(crate) fn token(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Node => "node",
        }
    }
}

fn start_etcd(tools: &Tools, folder: &Path, url: &str) -> Process {
    let peer = format!("http://127.0.0.1:{}", reserve_port());
    let arguments = [
        format!("--data-dir={}", folder.join("etcd").display()),
        "--unsafe-no-fsync".to_owned(),
        "--log-level=error".to_owned(),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
    ];
    Process::start("etcd", Command::new(tools.path("etcd")).args(arguments), folder)
}

fn write_api_server_files(folder: &Path, authority: &Authority, url: &str) {
    let (host, _) = url["https://".len()..].split_once(':').unwrap();
    // Pods call it by the first address of the range of Services.
    authority
        .issue_for(&["localhost", "kubernetes.default.svc", "10.0.0.1", host])
        .write(folder, "api-server");
    authority
        .issue_client("kube-apiserver", "system:masters")
        .write(folder, "api-server-client");
    let write = |name: &str, text: String| fs::write(folder.join(name), text).unwrap();
    write("ca.crt", authority.pem());
    let service_account = rcgen::KeyPair::generate().unwrap();
    write("service-account.key", service_account.serialize_pem());
    write("service-account.pub", service_account.public_key_pem());
    write(
        "tokens.csv",
        [
            format!("{},admin,1,system:masters", User::Admin.token()),
            format!("{},system:node:node1,2,system:nodes", User::Node.token()),
            "companion-a,companion-a,3,companions".to_owned(),
            "companion-b,companion-b,4,companions".to_owned(),
        ]
        .join("\n"),
    );
    write(
        "audit-policy.yaml",
        json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [
                {
                    "level": "Request",
                    "verbs": ["create", "update", "patch"],
                    "resources": [{"group": "", "resources": ["pods", "pods/ephemeralcontainers"]}],
                },
                {
                    "level": "Request",
                    "verbs": ["create", "update", "patch", "delete"],
                    // Those of the tests, and where a chart is installed as its notes say.
                    "userGroups": ["companions", "system:serviceaccounts:kagami-system"],
                },
                {
                    "level": "Request",
                    "verbs": ["create"],
                    "resources": [{"group": "", "resources": ["events"]}],
                    // What kubelets did, also to Pods that are gone.
                    "userGroups": ["system:nodes"],
                },
                {"level": "None"},
            ],
        })
        .to_string(),
    );
    // As managed clusters have it: these classes only where a quota speaks of them.
    let classes = ["system-node-critical", "system-cluster-critical"];
    write(
        "admission.yaml",
        json!({
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "AdmissionConfiguration",
            "plugins": [{"name": "ResourceQuota", "configuration": {
                "apiVersion": "apiserver.config.k8s.io/v1",
                "kind": "ResourceQuotaConfiguration",
                "limitedResources": [{"resource": "pods", "matchScopes": [
                    {"scopeName": "PriorityClass", "operator": "In", "values": classes},
                ]}],
            }}],
        })
        .to_string(),
    );
    let users = [
        ("admin", User::Admin.token()),
        ("node", User::Node.token()),
        ("companion-a", "companion-a"),
        ("companion-b", "companion-b"),
    ];
    for (user, token) in users {
        write_kubeconfig(folder, url, authority, user, token);
    }
}

/// Writes how a user reaches the API server, and returns the file's path.
pub(crate) fn write_kubeconfig(
    folder: &Path,
    url: &str,
    authority: &Authority,
    user: &str,
    token: &str,
) -> PathBuf {
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "e2e", "cluster": {
            "server": url, "certificate-authority-data": authority.bundle(),
        }}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": user}}],
        "current-context": "e2e",
    });
    let path = folder.join(format!("{user}.kubeconfig"));
    fs::write(&path, kubeconfig.to_string()).unwrap();
    path
}

/// Starts it and waits until it is ready.
fn start_api_server(
    tools: &Tools,
    http: &Http,
    folder: &Path,
    etcd_url: &str,
    address: Ipv4Addr,
    url: &str,
) -> Process {
    let file = |name: &str| folder.join(name).display().to_string();
    let (_, port) = url.rsplit_once(':').unwrap();
    // Service `kubernetes` may not have a loopback address as its endpoint; without Pods nobody uses it.
    let reconciler = if address.is_loopback() { "none" } else { "lease" };
    let arguments = [
        format!("--bind-address={address}"),
        format!("--advertise-address={address}"),
        format!("--endpoint-reconciler-type={reconciler}"),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--kubelet-certificate-authority={}", file("ca.crt")),
        format!("--kubelet-client-certificate={}", file("api-server-client.crt")),
        format!("--kubelet-client-key={}", file("api-server-client.key")),
        format!("--secure-port={port}"),
        format!("--etcd-servers={etcd_url}"),
        "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
        // Without it, an API server before 1.35 drops a volume's image.
        "--feature-gates=ImageVolume=true".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        format!("--token-auth-file={}", file("tokens.csv")),
        format!("--tls-cert-file={}", file("api-server.crt")),
        format!("--tls-private-key-file={}", file("api-server.key")),
        format!("--service-account-key-file={}", file("service-account.pub")),
        format!(
            "--service-account-signing-key-file={}",
            file("service-account.key")
        ),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--admission-control-config-file={}", file("admission.yaml")),
        format!("--audit-policy-file={}", file("audit-policy.yaml")),
        format!("--audit-log-path={}", file("audit.log")),
    ];
    let mut command = Command::new(tools.path("kube-apiserver"));
    let mut process = Process::start("kube-apiserver", command.args(arguments), folder);
    eventually("kube-apiserver is ready", || {
        process.assert_alive();
        let request = http
            .client
            .get(format!("{url}/readyz"))
            .bearer_auth(User::Admin.token());
        http.send(request).ok().filter(|answer| answer.status == 200)
    });
    process
}

const CONTROLLERS: [&str; 6] = [
    "clusterrole-aggregation-controller",
    "deployment-controller",
    "namespace-controller",
    "replicaset-controller",
    "resourcequota-controller",
    "serviceaccount-controller",
];

fn start_controller_manager(tools: &Tools, folder: &Path, address: Ipv4Addr) -> Process {
    let file = |name: &str| folder.join(name).display().to_string();
    let controllers = if address.is_loopback() {
        CONTROLLERS.join(",")
    } else {
        "*".to_owned()
    };
    let arguments = [
        format!("--kubeconfig={}", file("admin.kubeconfig")),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={}", reserve_port()),
        format!("--cert-dir={}", file("controller-manager")),
        "--authentication-skip-lookup".to_owned(),
        "--leader-elect=false".to_owned(),
        format!("--controllers={controllers}"),
        // Its default is a folder of the machine's, which it makes.
        format!("--flex-volume-plugin-dir={}", file("volume-plugins")),
        // What Pods trust when they call the API server.
        format!("--root-ca-file={}", file("ca.crt")),
    ];
    let mut command = Command::new(tools.path("kube-controller-manager"));
    Process::start("kube-controller-manager", command.args(arguments), folder)
}
