//! Real registries (CNCF distribution), under names of their own, that die, come back and fall silent.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
};

use serde_json::{Value, json};

pub(crate) use crate::shared::registry::{ALICE, BOB};

use super::{
    node::{self, Node},
    object_store::ObjectStore,
    packets::{BlackHole, Loss},
};
use crate::shared::{
    cluster::{Cluster, Namespace},
    images::{self, Image, Target},
    process::reserve_port,
    registry::{self, Login},
};

/// How the requests of a node end in an access log (combined format).
const CONTAINERD: &str = "\"containerd/";

/// A registry with a folder and an access log of its own.
#[derive(Debug)]
pub(crate) struct Registry {
    program: registry::Registry,
    pub(crate) name: String,
    /// Where it is reached, a URL without path.
    pub(crate) url: String,
    /// Where it listens: every address of the machine, or one.
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) port: u16,
    login: Option<Login>,
}

impl Registry {
    /// A registry behind HTTPS at the port of HTTPS, called `host`, for everybody.
    pub(crate) fn start(node: &Node, host: &str) -> Self {
        Self::start_https(node, host, None)
    }

    /// The same for one user alone.
    pub(crate) fn start_for(node: &Node, host: &str, login: Login) -> Self {
        Self::start_https(node, host, Some(login))
    }

    fn start_https(node: &Node, host: &str, login: Option<Login>) -> Self {
        let (cluster, address) = (&node.cluster, node.new_address(host));
        let (folder, at) = (cluster.folder(), SocketAddr::from((address, 443)));
        let registry = Self {
            program: registry::Registry::new(host, &cluster.tools.path("registry"), folder, at),
            name: host.to_owned(),
            url: format!("https://{host}"),
            address: Some(address),
            port: 443,
            login,
        };
        let pair = cluster.authority.issue_for(&[host, &address.to_string()]);
        let (certificate, key) = pair.write(folder, host);
        let storage = json!({"filesystem": {"rootdirectory": registry.program.file("data")}});
        let http = json!({
            "addr": format!("{address}:443"),
            "tls": {"certificate": certificate, "key": key},
        });
        registry.configured(storage, &http)
    }

    /// The same as [`Self::start`] behind plain HTTP, which containerd is told.
    pub(crate) fn start_plain(node: &Node, host: &str) -> Self {
        let (cluster, address) = (&node.cluster, node.new_address(host));
        let (folder, port) = (cluster.folder(), 80);
        let url = format!("http://{host}");
        let told = folder.join("registries").join(host);
        fs::create_dir_all(&told).unwrap();
        fs::write(told.join("hosts.toml"), format!("server = \"{url}\"\n")).unwrap();
        let at = SocketAddr::from((address, port));
        let registry = Self {
            program: registry::Registry::new(host, &cluster.tools.path("registry"), folder, at),
            name: host.to_owned(),
            url,
            address: Some(address),
            port,
            login: None,
        };
        let storage = json!({"filesystem": {"rootdirectory": registry.program.file("data")}});
        registry.configured(storage, &json!({"addr": at.to_string()}))
    }

    /// A registry behind plain HTTP at a port of every address of the node, for everybody. Nodes reach it as
    /// 127.0.0.1, others by the node's address. Who wants data is sent on to the object store.
    pub(crate) fn start_on_every_address(node: &Node, name: &str, store: &ObjectStore) -> Self {
        let port = reserve_port();
        let (cluster, at) = (&node.cluster, SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let registry = Self {
            program: registry::Registry::new(name, &cluster.tools.path("registry"), cluster.folder(), at),
            name: name.to_owned(),
            url: format!("http://{}:{port}", node::ADDRESS),
            address: None,
            port,
            login: None,
        };
        let http = json!({"addr": format!("0.0.0.0:{port}")});
        registry.configured(store.settings(), &http)
    }

    fn configured(mut self, mut storage: Value, http: &Value) -> Self {
        storage["delete"] = json!({"enabled": true});
        let auth = self.login.map(|login| self.program.htpasswd(login));
        let configuration = json!({
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": false}},
            "storage": storage,
            "http": http,
            "auth": auth,
        });
        self.program.start(&configuration);
        self
    }

    /// What images in it begin with, for containerd on the node.
    pub(crate) fn host(&self) -> String {
        match self.address {
            Some(_) => self.name.clone(),
            None => format!("127.0.0.1:{}", self.port),
        }
    }

    /// Places a Secret of the registry's name in a namespace, with which its Pods may pull.
    pub(crate) fn place_pull_secret(&self, namespace: &Namespace<'_>) {
        self.place_credentials(namespace.cluster, &namespace.name);
    }

    /// The same by the namespace's name.
    pub(crate) fn place_credentials(&self, cluster: &Cluster, namespace: &str) {
        let login = self.login.unwrap();
        let auths = json!({"auths": {
            self.host(): {"username": login.user, "password": login.password},
        }});
        let secret = json!({
            "metadata": {"name": self.name},
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": auths.to_string()},
        });
        let path = format!("/api/v1/namespaces/{namespace}/secrets");
        cluster.create(&path, &secret).success();
    }

    /// Pushes an image under a tag and returns its digest.
    pub(crate) fn push(&self, cluster: &Cluster, repository: &str, tag: &str, image: &Image) -> String {
        cluster
            .http
            .wait(self.target(cluster).push(repository, tag, image));
        image.digest.to_string()
    }

    /// Pushes an index of images under a tag and returns its digest.
    pub(crate) fn push_index(
        &self,
        cluster: &Cluster,
        repository: &str,
        tag: &str,
        images: &[Image],
    ) -> String {
        self.push(cluster, repository, tag, &images::index_of(images.to_vec()))
    }

    /// Deletes a manifest, and with it every tag that names it.
    pub(crate) fn delete(&self, cluster: &Cluster, repository: &str, digest: &str) {
        let digest = digest.parse().unwrap();
        cluster
            .http
            .wait(self.target(cluster).delete(repository, &digest));
    }

    /// Answers with these bytes for a digest that it has, as if its disk had lost others.
    pub(crate) fn answer_with(&self, digest: &str, bytes: &[u8]) {
        let (algorithm, hash) = digest.split_once(':').unwrap();
        let blobs = self.program.file("data").join("docker/registry/v2/blobs");
        let file = blobs.join(algorithm).join(&hash[..2]).join(hash).join("data");
        assert!(file.exists(), "{}", file.display());
        fs::write(file, bytes).unwrap();
    }

    /// The registry as a place to push to.
    fn target(&self, cluster: &Cluster) -> Target {
        Target {
            authorization: self.login.map(Login::basic),
            ..Target::of(&cluster.http, &self.url)
        }
    }

    /// Kills it; its port then refuses connections, its data stays.
    pub(crate) fn kill(&mut self) {
        self.program.kill();
    }

    /// Loses all its data while it is dead.
    pub(crate) fn lose_everything(&self) {
        assert!(!self.program.is_started());
        fs::remove_dir_all(self.program.file("data")).unwrap();
    }

    /// Starts it again with the same data.
    pub(crate) fn bring_back(&mut self) {
        self.program.bring_back();
    }

    /// Loses every packet to it from now on.
    pub(crate) fn black_hole(&self) -> BlackHole {
        BlackHole::open(self.address, self.port)
    }

    /// Loses some packets to it and from it, so many of all each way.
    pub(crate) fn loss(&self, share: f64) -> Loss {
        Loss::begin(self.address, self.port, share)
    }

    /// The requests that containerd made for a repository, oldest first.
    pub(crate) fn pulls(&self, repository: &str) -> Vec<String> {
        let path = format!(" /v2/{repository}/");
        let log = self.program.log();
        log.lines()
            .filter(|line| line.contains(&path) && line.contains(CONTAINERD))
            .map(str::to_owned)
            .collect()
    }
}
