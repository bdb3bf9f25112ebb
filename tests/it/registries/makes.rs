//! The registries themselves, each with a second one, or a part of itself, that asks for a password.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use reqwest::{Method, header};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{
    shared::{
        eventually,
        process::{Process, reserve_port},
        tools::Tools,
    },
    support::{
        images::Target,
        install_crypto, kagami,
        real::{ALICE, PASSWORD, Registry, Setup, USERNAME},
        tokens::TokenService,
    },
};

/// A column of the table.
pub struct Make {
    pub name: &'static str,
    base: Base,
    /// Whether a pull-through distribution stands before it.
    is_behind: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Base {
    Distribution,
    Old,
    OverS3,
    Olareg,
    Gitea,
}

pub const MAKES: [Make; 8] = [
    Make::new("distribution 3.1", Base::Distribution, false),
    Make::new("distribution 2.8", Base::Old, false),
    Make::new("distribution 3.1 over S3", Base::OverS3, false),
    Make::new("olareg 0.2", Base::Olareg, false),
    Make::new("Gitea 1.26", Base::Gitea, false),
    Make::new("pull-through before olareg", Base::Olareg, true),
    Make::new("pull-through before 2.8", Base::Old, true),
    Make::new("pull-through before Gitea", Base::Gitea, true),
];

/// First parts of the names of images that are put somewhere. In Gitea each is an organisation.
const OWNERS: [&str; 5] = [
    "docker.io",
    "quay.io",
    "ghcr.io",
    "registry.k8s.io",
    "localhost_5000",
];

/// How long a registry is given to collect its garbage by itself.
const COLLECTING: Duration = Duration::from_secs(45);

/// A running make.
pub struct Place {
    /// Where Kagami and nodes ask: the mirror for everybody.
    pub open: String,
    /// The one that asks for a password.
    pub locked: String,
    pub http: reqwest::Client,
    /// Where images are put. None once it is dead.
    base: Option<Program>,
    base_url: String,
    tokens: Option<TokenService>,
    /// What else runs.
    _beside: Vec<Program>,
    _store: Option<ObjectStore>,
}

enum Program {
    Distribution(Registry),
    Olareg(Olareg),
    Gitea(Gitea),
}

struct Olareg {
    process: Option<Process>,
    program: PathBuf,
    address: SocketAddr,
    files: TempDir,
}

struct Gitea {
    _process: Process,
    url: String,
    _files: TempDir,
}

/// An object store that speaks S3 (SeaweedFS).
struct ObjectStore {
    _process: Process,
    storage: Value,
    _files: TempDir,
}

impl Make {
    const fn new(name: &'static str, base: Base, is_behind: bool) -> Self {
        Self {
            name,
            base,
            is_behind,
        }
    }

    /// What such a mirror is to Kagami.
    pub const fn kind(&self) -> &'static str {
        if self.is_behind { "PullThrough" } else { "Hosted" }
    }
}

impl Place {
    pub async fn start(make: &Make) -> Self {
        install_crypto();
        let http = reqwest::Client::builder()
            .no_proxy()
            // While one program starts, the others are not listened to.
            .timeout(Duration::from_mins(3))
            // One that was restarted knows nothing of connections from before.
            .pool_max_idle_per_host(0)
            .build()
            .unwrap();
        let (mut tokens, mut store) = (None, None);
        let (base, locked) = match make.base {
            Base::Distribution => {
                let service = TokenService::start(USERNAME, PASSWORD).await;
                let locked = Setup {
                    tokens: Some(&service),
                    ..Setup::default()
                };
                let locked = distribution(&locked);
                tokens = Some(service);
                (distribution(&in_files()), Some(locked))
            }
            Base::Old => (old(&in_files()), Some(old(&with_password()))),
            Base::OverS3 => {
                let started = ObjectStore::start(&http).await;
                let over_s3 = Setup {
                    storage: Some(&started.storage),
                    ..Setup::default()
                };
                let base = distribution(&over_s3);
                store = Some(started);
                (base, Some(distribution(&with_password())))
            }
            Base::Olareg => (
                Program::Olareg(Olareg::start(false)),
                Some(Program::Olareg(Olareg::start(true))),
            ),
            // Behind a cache all is public: there the cache asks for the password.
            Base::Gitea => (Program::Gitea(Gitea::start(&http, !make.is_behind).await), None),
        };
        let base_url = base.url();
        let mut open = base_url.clone();
        let mut beside: Vec<_> = locked.into_iter().collect();
        let mut locked = beside.first().map_or_else(|| base_url.clone(), Program::url);
        if make.is_behind {
            let setup = Setup {
                upstream: Some(&base_url),
                // It fails where passwords are taken beside tokens and it has none, though all is public.
                known_upstream: make.base == Base::Gitea,
                ..Setup::default()
            };
            let for_everybody = distribution(&setup);
            let with_password = distribution(&Setup {
                htpasswd: true,
                ..setup
            });
            (open, locked) = (for_everybody.url(), with_password.url());
            beside = vec![for_everybody, with_password];
        }
        Self {
            open,
            locked,
            http,
            base: Some(base),
            base_url,
            tokens,
            _beside: beside,
            _store: store,
        }
    }

    /// Returns the mirror of a repository, and the password with which it is asked.
    pub fn mirror_of(&self, repository: &str) -> (&str, Option<&'static str>) {
        match repository.split('/').next() {
            Some("quay.io") => (&self.locked, Some(PASSWORD)),
            Some("ghcr.io") => (&self.locked, None),
            Some("registry.k8s.io") => (&self.locked, Some("looking-glass")),
            _ => (&self.open, None),
        }
    }

    /// Returns where images of a repository are put.
    pub fn target(&self, repository: &str) -> Target {
        let is_cache = self.open != self.base_url;
        let url = if is_cache {
            &self.base_url
        } else {
            self.mirror_of(repository).0
        };
        let authorization = match &self.tokens {
            Some(tokens) => format!("Bearer {}", tokens.push_token(repository)),
            None => ALICE.basic(),
        };
        Target {
            http: self.http.clone(),
            url: url.to_owned(),
            authorization: Some(authorization),
        }
    }

    /// Lets the registry tidy up by the means that it brings; some look only where somebody has asked of late.
    pub async fn collect_garbage(&mut self, repositories: impl Iterator<Item = &str>) {
        match self.base.as_mut().unwrap() {
            Program::Distribution(registry) => registry.collect_garbage(),
            Program::Olareg(olareg) => {
                olareg.restart(&[
                    "--gc-untagged",
                    // Once only what it has been asked for since it started; after that, what has changed.
                    "--gc-frequency",
                    "40s",
                    // None; zero would be an hour.
                    "--gc-grace-period=-1s",
                ]);
                for repository in repositories {
                    let tags = format!("{}/v2/{repository}/tags/list", self.base_url);
                    self.http.get(tags).send().await.unwrap();
                }
                sleep(COLLECTING).await;
            }
            Program::Gitea(gitea) => {
                let task = format!("{}/api/v1/admin/cron/cleanup_packages", gitea.url);
                let asked = self.http.post(task).header(header::AUTHORIZATION, ALICE.basic());
                let answer = asked.send().await.unwrap();
                assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
                sleep(COLLECTING).await;
            }
        }
    }

    /// Ends what holds the images.
    pub fn kill(&mut self) {
        self.base = None;
    }
}

impl Program {
    fn url(&self) -> String {
        match self {
            Self::Distribution(registry) => registry.url().to_owned(),
            Self::Olareg(olareg) => format!("http://{}", olareg.address),
            Self::Gitea(gitea) => gitea.url.clone(),
        }
    }
}

fn distribution(setup: &Setup<'_>) -> Program {
    Program::Distribution(Registry::start(setup).expect("scripts/tools builds it"))
}

fn old(setup: &Setup<'_>) -> Program {
    Program::Distribution(Registry::start_old(setup).expect("it is a package of Debian's"))
}

fn in_files() -> Setup<'static> {
    Setup {
        in_files: true,
        ..Setup::default()
    }
}

fn with_password() -> Setup<'static> {
    Setup {
        htpasswd: true,
        ..Setup::default()
    }
}

/// Starts a program and waits until it listens.
fn listening(name: &str, command: &Command, folder: &Path, address: SocketAddr) -> Process {
    let mut process = Process::start(name, command, folder);
    eventually(&format!("{name} listens"), || {
        process.assert_alive();
        TcpStream::connect(address).ok()
    });
    process
}

fn new_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], reserve_port()))
}

impl Olareg {
    fn start(locked: bool) -> Self {
        let mut olareg = Self {
            process: None,
            program: Tools::find_some(&["olareg"]).unwrap().path("olareg"),
            address: new_address(),
            files: tempfile::tempdir().unwrap(),
        };
        if !locked {
            olareg.restart(&[]);
            return olareg;
        }
        let users = olareg.files.path().join("users.json");
        let everything = |repository| json!({"repo": repository, "members": [USERNAME], "access": ["*"]});
        let access = json!({
            "users": {USERNAME: {"cred": ALICE.hash}},
            "acls": [everything("*"), everything("")],
        });
        fs::write(&users, access.to_string()).unwrap();
        olareg.restart(&["--auth-basic", users.to_str().unwrap()]);
        olareg
    }

    fn restart(&mut self, more: &[&str]) {
        self.process = None;
        let images = self.files.path().join("images");
        fs::create_dir_all(&images).unwrap();
        let mut command = Command::new(&self.program);
        command
            .args(["serve", "--addr", "127.0.0.1", "--port"])
            .arg(self.address.port().to_string())
            .arg("--dir")
            .arg(images)
            .args(["--api-delete", "--api-blob-delete"])
            .args(more);
        self.process = Some(listening("olareg", &command, self.files.path(), self.address));
    }
}

impl Gitea {
    /// Starts it with a user who owns an organisation for each registry; all but Docker Hub's may be private.
    async fn start(http: &reqwest::Client, some_private: bool) -> Self {
        let tools = Tools::find_some(&["gitea", "gitea-files"]).unwrap();
        let files = tempfile::tempdir().unwrap();
        let (address, folder) = (new_address(), files.path());
        let url = format!("http://{address}");
        let settings = folder.join("app.ini");
        fs::write(
            &settings,
            GITEA
                .replace("@folder@", &folder.display().to_string())
                .replace("@assets@", &tools.path("gitea-files").display().to_string())
                .replace("@port@", &address.port().to_string()),
        )
        .unwrap();
        let command = |arguments: &[&str]| {
            let mut command = Command::new(tools.path("gitea"));
            command
                .args(arguments)
                .arg("--config")
                .arg(&settings)
                .env("HOME", folder)
                .env("USER", "root");
            command
        };
        for arguments in [
            &["migrate"][..],
            &[
                "admin",
                "user",
                "create",
                "--admin",
                "--must-change-password=false",
                "--username",
                USERNAME,
                "--password",
                PASSWORD,
                "--email",
                "alice@example.com",
            ],
        ] {
            let output = command(arguments).output().unwrap();
            assert!(
                output.status.success(),
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let process = listening("gitea", &command(&["web"]), folder, address);
        for owner in OWNERS {
            let visibility = if some_private && owner != "docker.io" {
                "private"
            } else {
                "public"
            };
            let request = http
                .request(Method::POST, format!("{url}/api/v1/orgs"))
                .header(header::AUTHORIZATION, ALICE.basic())
                .header(header::CONTENT_TYPE, "application/json")
                .body(json!({"username": owner, "visibility": visibility}).to_string());
            let answer = request.send().await.unwrap();
            assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
        }
        Self {
            _process: process,
            url,
            _files: files,
        }
    }
}

/// Gitea with nothing but what a registry needs. Root is a matter of who runs tests here.
const GITEA: &str = "
I_AM_BEING_UNSAFE_RUNNING_AS_ROOT = true
RUN_MODE = prod
WORK_PATH = @folder@
[server]
HTTP_ADDR = 127.0.0.1
HTTP_PORT = @port@
ROOT_URL = http://127.0.0.1:@port@/
STATIC_ROOT_PATH = @assets@
OFFLINE_MODE = true
DISABLE_SSH = true
[database]
DB_TYPE = sqlite3
PATH = @folder@/gitea.db
[security]
INSTALL_LOCK = true
SECRET_KEY = of-these-tests
PASSWORD_HASH_ALGO = pbkdf2
[service]
DISABLE_REGISTRATION = true
[indexer]
ISSUE_INDEXER_TYPE = db
[log]
MODE = console
LEVEL = warn
[cron.cleanup_packages]
OLDER_THAN = 0s
[cron.update_checker]
ENABLED = false
";

impl ObjectStore {
    async fn start(http: &reqwest::Client) -> Self {
        let program = Tools::find_some(&["weed"]).unwrap().path("weed");
        let files = tempfile::tempdir().unwrap();
        let (key, secret) = ("registry", "through-the-looking-glass");
        let identities = json!({"identities": [{
            "name": "registry",
            "credentials": [{"accessKey": key, "secretKey": secret}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }]});
        let path = |name: &str| files.path().join(name).display().to_string();
        fs::write(files.path().join("identities.json"), identities.to_string()).unwrap();
        let mut command = Command::new(program);
        command.args([
            "server".to_owned(),
            format!("-dir={}", files.path().display()),
            "-ip=127.0.0.1".to_owned(),
            "-master.telemetry=false".to_owned(),
            "-master.volumeSizeLimitMB=64".to_owned(),
            "-volume.preStopSeconds=0".to_owned(),
            format!("-filer.localSocket={}", path("filer.sock")),
            "-s3".to_owned(),
            format!("-s3.config={}", path("identities.json")),
            format!("-s3.localSocket={}", path("s3.sock")),
            "-s3.port.iceberg=0".to_owned(),
            "-s3.port.lance=0".to_owned(),
        ]);
        // Its usual ports may be somebody else's.
        let [_, _, filer, s3] = ["master", "volume", "filer", "s3"].map(|part| {
            let (port, grpc) = (reserve_port(), reserve_port());
            command.arg(format!("-{part}.port={port}"));
            command.arg(format!("-{part}.port.grpc={grpc}"));
            port
        });
        let process = listening("weed", &command, files.path(), ([127, 0, 0, 1], filer).into());
        let url = format!("http://127.0.0.1:{s3}");
        // Buckets are folders of the file server below.
        let bucket = format!("http://127.0.0.1:{filer}/buckets/registry/");
        let within = Duration::from_mins(1);
        for (request, expected) in [
            (http.post(&bucket), 201),
            (http.get(format!("{url}/registry/")), 403),
        ] {
            kagami::eventually(
                "the object store has its bucket and speaks S3",
                within,
                async || {
                    let answer = request.try_clone().unwrap().send().await;
                    let status = answer.map(|answer| answer.status().as_u16());
                    match status {
                        Ok(status) if status == expected => Ok(()),
                        other => Err(format!("{other:?}")),
                    }
                },
            )
            .await;
        }
        Self {
            _process: process,
            storage: json!({"s3": {
                "region": "us-east-1",
                "regionendpoint": url,
                "bucket": "registry",
                "accesskey": key,
                "secretkey": secret,
                "secure": false,
                "forcepathstyle": true,
            }}),
            _files: files,
        }
    }
}
