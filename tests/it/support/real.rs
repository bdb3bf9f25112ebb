//! Real registries: CNCF distribution, and the old one that Debian packages.
//!
//! Apart from those of the node ring, which have names and addresses of a machine of their own and are asked by
//! containerd. What runs is the same program under the same harness.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use kagami::{
    domain::digest::Digest,
    registry::{Client, Credentials, Endpoint},
};
use tempfile::TempDir;

use kagami::domain::mirror::Trust;

use super::{
    certificates::Authority,
    images::Target,
    tokens::{ISSUER, SERVICE, TokenService},
};
pub(crate) use crate::shared::registry::ALICE;
use crate::shared::{process::reserve_port, registry, tools::Tools};

pub const USERNAME: &str = ALICE.user;
pub const PASSWORD: &str = ALICE.password;

/// How a registry is set up; the default is plain HTTP for everybody.
#[derive(Default)]
pub struct Setup<'a> {
    /// Serve HTTPS with a certificate of this authority for 127.0.0.1.
    pub tls: Option<&'a Authority>,
    /// Ask for `USERNAME` and `PASSWORD`.
    pub htpasswd: bool,
    /// Ask for this service's tokens.
    pub tokens: Option<&'a TokenService>,
    /// Be a pull-through cache of a registry. It must be there already.
    pub upstream: Option<&'a str>,
    /// Show it `USERNAME` and `PASSWORD`.
    pub known_upstream: bool,
    /// Hold the images in files, so that its garbage can be collected.
    pub in_files: bool,
    /// Hold the images in what distribution calls this.
    pub storage: Option<&'a serde_json::Value>,
}

/// A running registry, which holds its images in memory or in files of its own. It ends when dropped.
pub struct Registry {
    _program: registry::Registry,
    url: String,
    ca_bundle: Option<Vec<u8>>,
    program: PathBuf,
    files: TempDir,
}

impl Registry {
    /// Starts distribution v3; returns none, and says so, if it is not built.
    pub fn start(setup: &Setup<'_>) -> Option<Self> {
        match Tools::find_some(&["registry"]) {
            Ok(tools) => Some(Self::run(&tools.path("registry"), setup)),
            Err(why) => skip(&why),
        }
    }

    /// Starts Debian's registry 2.8; returns none, and says so, if it is not installed.
    pub fn start_old(setup: &Setup<'_>) -> Option<Self> {
        let program = std::env::var_os("KAGAMI_OLD_REGISTRY")
            .map_or_else(|| PathBuf::from("/usr/bin/docker-registry"), PathBuf::from);
        if program.exists() {
            return Some(Self::run(&program, setup));
        }
        skip(&format!(
            "{} is not there; get it with `apt-get install docker-registry`",
            program.display()
        ))
    }

    fn run(program: &Path, setup: &Setup<'_>) -> Self {
        super::install_crypto();
        let files = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], reserve_port()));
        let mut registry = registry::Registry::new("registry", program, files.path(), address);
        registry.start(&configuration(setup, &registry, files.path(), address));
        let scheme = if setup.tls.is_some() { "https" } else { "http" };
        Self {
            _program: registry,
            url: format!("{scheme}://{address}"),
            ca_bundle: setup.tls.map(|authority| authority.pem().into_bytes()),
            program: program.to_owned(),
            files,
        }
    }

    /// Removes every manifest that no tag names, as its keepers do to make room. Version 2.8 does not see
    /// that an index names some of them.
    pub fn collect_garbage(&self) {
        let output = Command::new(&self.program)
            .args(["garbage-collect", "--delete-untagged"])
            .arg(self.files.path().join("registry.json"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Empties the file of a manifest, as a full disk leaves it. The images must be in files.
    pub fn damage(&self, digest: &Digest) {
        let hex = digest.to_string().replace("sha256:", "");
        let blobs = self.files.path().join("images/docker/registry/v2/blobs/sha256");
        let data = blobs.join(&hex[..2]).join(&hex).join("data");
        assert!(fs::metadata(&data).unwrap().len() > 0);
        fs::write(data, "").unwrap();
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the client under test.
    pub fn client(&self, credentials: Option<Credentials>) -> Client {
        Client::new(&Endpoint {
            url: self.url.clone(),
            ca_bundle: self.ca_bundle.clone(),
            trust: Trust::default(),
            credentials,
        })
        .unwrap()
    }

    /// Returns where to push images.
    pub fn target(&self, authorization: Option<String>) -> Target {
        let mut http = reqwest::Client::builder().no_proxy();
        if let Some(pem) = &self.ca_bundle {
            http = http.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem).unwrap());
        }
        Target {
            http: http.build().unwrap(),
            url: self.url.clone(),
            authorization,
        }
    }
}

/// Returns the credentials that `htpasswd` takes.
pub fn credentials() -> Credentials {
    Credentials {
        username: USERNAME.to_owned(),
        password: PASSWORD.to_owned(),
    }
}

/// Says why a registry is not started, which is a failure in CI.
fn skip(why: &str) -> Option<Registry> {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    // Not by `eprintln!`, which is shown for failed tests only.
    let line = format!("skipped: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    None
}

fn configuration(
    setup: &Setup<'_>,
    registry: &registry::Registry,
    files: &Path,
    address: SocketAddr,
) -> serde_json::Value {
    let mut config = serde_json::json!({
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": true}},
        "storage": {"inmemory": {}, "delete": {"enabled": true}},
        "http": {"addr": address.to_string(), "secret": "of these tests"},
    });
    if setup.in_files {
        config["storage"] = serde_json::json!({
            "filesystem": {"rootdirectory": files.join("images")},
            "delete": {"enabled": true},
        });
    }
    if let Some(storage) = setup.storage {
        config["storage"] = storage.clone();
        config["storage"]["delete"] = serde_json::json!({"enabled": true});
    }
    if let Some(authority) = setup.tls {
        let (certificate, key) = authority.issue().write(files, "serving");
        config["http"]["tls"] = serde_json::json!({"certificate": certificate, "key": key});
    }
    if setup.htpasswd {
        config["auth"] = registry.htpasswd(ALICE);
    }
    if let Some(tokens) = setup.tokens {
        let keys = files.join("keys.json");
        fs::write(&keys, tokens.key_set().to_string()).unwrap();
        config["auth"] = serde_json::json!({"token": {
            "realm": tokens.realm(),
            "service": SERVICE,
            "issuer": ISSUER,
            "jwks": keys,
            "signingalgorithms": ["EdDSA"],
        }});
    }
    if let Some(upstream) = setup.upstream {
        config["proxy"] = serde_json::json!({"remoteurl": upstream});
        if setup.known_upstream {
            config["proxy"]["username"] = USERNAME.into();
            config["proxy"]["password"] = PASSWORD.into();
        }
    }
    config
}
