//! Kagami under test, in each of its roles.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::e2e::{
    kagami::{self, ADMIN_LISTEN, LISTEN, Listeners},
    process::Process,
};

/// How long Kagami may take to start, or to learn what it is shown.
const PATIENCE: Duration = Duration::from_secs(90);

/// How often it is looked at, usually.
const LOOK: Duration = Duration::from_millis(5);

/// The same where looking must cost nothing: `/status` goes through every image.
const RARE_LOOK: Duration = Duration::from_millis(100);

/// Where the manifest of the webhooks is in a checkout.
const WEBHOOK_CONFIGURATION: &str = "webhook-config/mutatingwebhookconfiguration.yaml";

/// The serving pair in the bench's folder.
pub const CERTIFICATE: &str = "tls.crt";
pub const KEY: &str = "tls.key";

/// The name of the only ImageMirror.
pub const MIRROR: &str = "bench";

/// What Pods get instead of the images' own registry.
pub const REGISTRY: &str = "mirror.example.com";

/// One build of Kagami.
#[derive(Clone, Debug)]
pub struct Build {
    /// For people, and for the names of files.
    pub name: String,
    program: PathBuf,
    checkout: PathBuf,
}

impl Build {
    /// This one.
    pub fn own() -> Self {
        Self {
            name: "own".to_owned(),
            program: env!("CARGO_BIN_EXE_kagami").into(),
            checkout: env!("CARGO_MANIFEST_DIR").into(),
        }
    }

    /// Another one, given as `name=program`, which stands somewhere in its checkout.
    pub fn of(text: &str) -> Option<Self> {
        let (name, program) = text.split_once('=')?;
        let mut folders = Path::new(program).ancestors();
        Some(Self {
            name: name.to_owned(),
            program: program.into(),
            checkout: folders
                .find(|folder| folder.join("Cargo.toml").exists())?
                .to_owned(),
        })
    }

    pub fn command(&self) -> Command {
        Command::new(&self.program)
    }

    /// Returns the definitions of its resources.
    pub fn definitions(&self) -> Result<Vec<Value>> {
        let output = self.command().env_clear().arg("crds").output()?;
        ensure!(
            output.status.success(),
            "{} cannot tell its definitions",
            self.name
        );
        let documents = String::from_utf8(output.stdout)?;
        let documents = documents
            .split("---\n")
            .filter(|document| !document.trim().is_empty());
        documents
            .map(|document| Ok(serde_saphyr::from_str(document)?))
            .collect()
    }

    /// Returns the manifest of its webhooks, as users apply it: nothing is to be changed in it but addresses, names and
    /// namespaces.
    pub fn webhook_configuration(&self) -> Result<String> {
        let path = self.checkout.join(WEBHOOK_CONFIGURATION);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Returns the command of a role that needs an API server.
    fn in_cluster(&self, role: &str, kubeconfig: &Path, namespace: &str) -> Command {
        let mut command = self.command();
        command.env("KUBECONFIG", kubeconfig);
        command.args([role, "--namespace", namespace]);
        command
    }
}

/// `kagami serve` or `kagami webhook`.
#[derive(Debug)]
pub struct Kagami {
    pub process: Process,
    pub admission: SocketAddr,
    pub admin: Admin,
}

/// `kagami companion`.
#[derive(Debug)]
pub struct Companion {
    pub process: Process,
    pub admin: Admin,
}

/// A Kagami's admin listener.
#[derive(Clone, Copy, Debug)]
pub struct Admin(Listeners);

impl Kagami {
    /// Starts `kagami serve` in front of one mirror, with more settings in its spec, and waits until
    /// the mirror is healthy.
    pub fn start(
        build: &Build,
        folder: &Path,
        name: &str,
        mirror: SocketAddr,
        settings: &str,
    ) -> Result<Self> {
        let name = format!("{name}-{}", build.name);
        let configuration = folder.join(format!("{name}.yaml"));
        let settings = settings.replace('\n', "\n  ");
        fs::write(
            &configuration,
            format!(
                "apiVersion: kagami.dev/v1alpha1\nkind: ImageMirror\nmetadata: {{name: {MIRROR}}}\nspec:\n  \
                 registry: {REGISTRY}\n  kind: Hosted\n  sources: [{{prefix: docker.io}}]\n  \
                 endpoint: {{url: \"http://{mirror}\"}}\n  {settings}\n"
            ),
        )?;
        let mut command = build.command();
        command.arg("serve").arg("--config").arg(configuration);
        let kagami = Self::listen(command, folder, &name);
        kagami.wait("the mirror to be healthy", |mirror| {
            mirror["health"]["state"] == "Healthy"
        })?;
        Ok(kagami)
    }

    /// Starts `kagami webhook`, which may not be ready yet.
    pub fn replica(build: &Build, folder: &Path, kubeconfig: &Path, namespace: &str) -> Self {
        Self::replica_called("replica", build, folder, kubeconfig, namespace)
    }

    /// The same for one of several, whose logs are apart.
    pub fn replica_called(
        name: &str,
        build: &Build,
        folder: &Path,
        kubeconfig: &Path,
        namespace: &str,
    ) -> Self {
        let command = build.in_cluster("webhook", kubeconfig, namespace);
        Self::listen(command, folder, &format!("{name}-{}", build.name))
    }

    fn listen(mut command: Command, folder: &Path, name: &str) -> Self {
        command
            .args(LISTEN)
            .args(ADMIN_LISTEN)
            .arg("--tls-cert")
            .arg(folder.join(CERTIFICATE))
            .arg("--tls-key")
            .arg(folder.join(KEY));
        let kagami::Kagami { process, listeners } = kagami::Kagami::launch(name, &command, folder);
        Self {
            process,
            admission: listeners.admission(),
            admin: Admin(listeners),
        }
    }

    /// Waits until what `/status` says of the mirror is as wished.
    pub fn wait(&self, what: &str, wished: impl Fn(&Value) -> bool) -> Result<()> {
        self.admin.wait(what, |status| wished(&status["mirrors"][MIRROR]))
    }
}

impl Companion {
    /// Starts it, with more arguments; it may not lead yet.
    pub fn start(build: &Build, folder: &Path, kubeconfig: &Path, namespace: &str, more: &[&str]) -> Self {
        let mut command = build.in_cluster("companion", kubeconfig, namespace);
        command.args(ADMIN_LISTEN).args(more);
        let name = format!("companion-{}", build.name);
        let kagami::Kagami { process, listeners } = kagami::Kagami::launch(&name, &command, folder);
        Self {
            process,
            admin: Admin(listeners),
        }
    }
}

impl Admin {
    /// Returns what `/status` says.
    pub fn status(self) -> Result<Value> {
        Ok(serde_json::from_str(&self.0.get("/status")?.1)?)
    }

    /// Returns a metric without labels; zero where it is not shown yet.
    pub fn metric(self, name: &str) -> Result<f64> {
        let (_, metrics) = self.0.get("/metrics")?;
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.map_or(Ok(0.0), str::parse)?)
    }

    /// Waits until `/status` is as wished.
    pub fn wait(self, what: &str, wished: impl Fn(&Value) -> bool) -> Result<()> {
        self.wait_for("/status", what, (LOOK, PATIENCE), |_, status| {
            serde_json::from_str(status).is_ok_and(|status| wished(&status))
        })
    }

    /// The same for what may take longer, and is looked at so rarely that the looks cost nothing.
    pub fn wait_long(self, what: &str, patience: Duration, wished: impl Fn(&Value) -> bool) -> Result<()> {
        self.wait_for("/status", what, (RARE_LOOK, patience), |_, status| {
            serde_json::from_str(status).is_ok_and(|status| wished(&status))
        })
    }

    /// Waits until `/readyz`, which costs Kagami next to nothing, answers with such a code and text.
    pub fn wait_for_readiness(self, what: &str, wished: impl Fn(u16, &str) -> bool) -> Result<()> {
        self.wait_for("/readyz", what, (LOOK, PATIENCE), wished)
    }

    fn wait_for(
        self,
        path: &str,
        what: &str,
        (pause, patience): (Duration, Duration),
        wished: impl Fn(u16, &str) -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            let (code, text) = self.0.get(path)?;
            if wished(code, &text) {
                return Ok(());
            }
            if start.elapsed() > patience {
                bail!("waited in vain for {what}: {text:.2000}");
            }
            thread::sleep(pause);
        }
    }
}
