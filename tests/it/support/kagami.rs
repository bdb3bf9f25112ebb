//! The program itself, asked as the API server asks it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::tls_client::{self, Client, get};

/// How long a review may wait for probes: `--budget`'s default.
pub const BUDGET: Duration = Duration::from_millis(300);

/// What is allowed above the budget: 20 ms by the design, the rest for a busy machine.
pub const SLACK: Duration = Duration::from_millis(20 + 250);

/// The pause between two looks at something that is awaited.
const PAUSE: Duration = Duration::from_millis(20);

/// A running `kagami serve`. It is killed when dropped.
pub struct Kagami {
    child: Child,
    admission: SocketAddr,
    admin: SocketAddr,
    client: tls_client::Settings,
    log: Arc<Mutex<String>>,
    config: PathBuf,
    _files: TempDir,
}

/// How Kagami is started, where that is not the usual way.
#[derive(Default)]
pub struct Setup<'a> {
    /// A program and its first arguments, which starts Kagami in its place.
    pub through: Vec<String>,
    /// Certificate, key and their authority in PEM; without them Kagami makes its own.
    pub pair: Option<(&'a Path, &'a Path, &'a str)>,
    pub arguments: Vec<String>,
}

/// A connection to Kagami, on which one review follows the other.
pub struct Caller {
    client: Client,
    path: String,
    budget: Duration,
    slack: Duration,
}

/// A decoded answer.
#[derive(Debug)]
pub struct Answer {
    /// For each container, in their order: `Mirrored`, or why its image was kept.
    pub reasons: Vec<String>,
    /// For each container the image after the patch.
    pub images: Vec<String>,
}

/// Returns a configuration with one mirror at `endpoint`: the usual one of these tests, with `spec`
/// merged into its spec.
pub fn mirror(endpoint: &str, spec: &Value) -> Value {
    let mut resource = json!({
        "apiVersion": "kagami.dev/v1alpha1",
        "kind": "ImageMirror",
        "metadata": {"name": "main"},
        "spec": {
            "registry": "mirror.test",
            "kind": "Hosted",
            "sources": [{"prefix": "docker.io"}],
            "endpoint": {"url": endpoint},
            // Longer than a review's budget, as the defaults are: a mirror that is silent is one
            // that the review did not wait for.
            "health": {"interval": "200ms", "timeout": "500ms"},
        },
    });
    json_patch::merge(&mut resource["spec"], spec);
    resource
}

/// Returns the text of a configuration file.
pub fn text(documents: &[Value]) -> String {
    let mut text = String::new();
    for document in documents {
        text.push_str("---\n");
        text.push_str(&document.to_string());
        text.push('\n');
    }
    text
}

/// Returns the review of a new Pod with a container for each image.
pub fn review(images: &[impl AsRef<str>]) -> Value {
    let containers: Vec<Value> = images
        .iter()
        .enumerate()
        .map(|(index, image)| json!({"name": format!("c{index}"), "image": image.as_ref()}))
        .collect();
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "0b4c8ab6-1c3f-4b6e-9d0e-6f2f3a6f8a11",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "default",
            "operation": "CREATE",
            "userInfo": {},
            "dryRun": false,
            "object": {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "web", "namespace": "default"},
                "spec": {"containers": containers},
            },
        },
    })
}

/// Looks again and again until something is there; fails with `what` when it takes too long.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if Instant::now() > deadline => panic!("not within {within:?}: {what}; last: {seen}"),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

impl Kagami {
    /// Starts it with a configuration and waits until it listens.
    pub async fn start(documents: &[Value]) -> Self {
        Self::start_with(documents, Setup::default()).await
    }

    pub async fn start_with(documents: &[Value], setup: Setup<'_>) -> Self {
        super::install_crypto();
        let files = tempfile::tempdir().unwrap();
        let (config, authority) = (files.path().join("mirrors.yaml"), files.path().join("ca.crt"));
        fs::write(&config, text(documents)).unwrap();
        let program = env!("CARGO_BIN_EXE_kagami").to_owned();
        let mut words = setup.through;
        words.push(program);
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
            ])
            .arg("--config")
            .arg(&config)
            .args(&setup.arguments);
        match setup.pair {
            Some((certificate, key, _)) => command
                .arg("--tls-cert")
                .arg(certificate)
                .arg("--tls-key")
                .arg(key),
            None => command.arg("--ca-out").arg(&authority),
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = follow_log(&mut child);
        let stdout = child.stdout.take().unwrap();
        let addresses = tokio::task::spawn_blocking(move || two_addresses(stdout))
            .await
            .unwrap();
        let Some((admission, admin)) = addresses else {
            child.wait().unwrap();
            panic!(
                "kagami did not start: {}",
                log.lock().unwrap_or_else(PoisonError::into_inner)
            );
        };
        let authority = match setup.pair {
            Some((_, _, authority)) => authority.to_owned(),
            None => fs::read_to_string(&authority).unwrap(),
        };
        Self {
            child,
            admission,
            admin,
            client: tls_client::Settings::trusting(&authority),
            log,
            config,
            _files: files,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it SIGTERM.
    pub fn terminate(&self) {
        let killed = Command::new("kill").arg(self.pid().to_string()).status().unwrap();
        assert!(killed.success());
    }

    /// Returns the exit status if it has ended.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Replaces the configuration file, as editors do: whole.
    pub fn configure(&self, text: &str) {
        let new = self.config.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &self.config).unwrap();
    }

    /// Returns what it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what `/status` shows.
    pub async fn status(&self) -> Value {
        let (reply, _) = get(self.admin, "/status").await;
        serde_json::from_str(&reply.body).unwrap()
    }

    /// Returns the value of a metric, given with its labels; 0 if it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        let (reply, _) = get(self.admin, "/metrics").await;
        let line = reply
            .body
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until `/status` has a value at a JSON pointer.
    pub async fn until_status(&self, pointer: &str, expected: &Value, within: Duration) {
        eventually(&format!("{pointer} is {expected}"), within, async || {
            let status = self.status().await;
            if status.pointer(pointer) == Some(expected) {
                Ok(())
            } else {
                Err(format!("{status:#}\n{}", self.log()))
            }
        })
        .await;
    }

    pub fn client_settings(&self) -> &tls_client::Settings {
        &self.client
    }

    pub fn address(&self) -> SocketAddr {
        self.admission
    }

    pub async fn connect(&self) -> Caller {
        Caller {
            client: Client::connect(self.admission, &self.client).await.unwrap(),
            path: "/mutate/enforce?timeout=2s".to_owned(),
            budget: BUDGET,
            slack: SLACK,
        }
    }

    /// Asks once about a Pod with these images.
    pub async fn ask(&self, images: &[&str]) -> Answer {
        self.connect().await.ask(images).await
    }

    /// Asks about a Pod until the answer gives these reasons. Returns the reasons given before.
    pub async fn until(&self, images: &[&str], expected: &[&str], within: Duration) -> Vec<Vec<String>> {
        let mut caller = self.connect().await;
        let mut before = Vec::new();
        eventually(&format!("{images:?} are {expected:?}"), within, async || {
            let answer = caller.ask(images).await;
            if answer.reasons == expected {
                return Ok(());
            }
            let seen = format!("{:?}\n{}", answer.reasons, self.log());
            before.push(answer.reasons);
            Err(seen)
        })
        .await;
        before
    }

    /// Waits until an image is rewritten and known to the companion, not to one replica alone.
    pub async fn until_known(&self, image: &str, present: u64) {
        let long = Duration::from_secs(10);
        self.until(&[image], &["Mirrored"], long).await;
        self.until_status("/mirrors/main/images/present", &present.into(), long)
            .await;
    }

    /// Returns the most memory in bytes that it ever had at once.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes: u64 = line.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
        kibibytes * 1024
    }

    /// Returns how many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Kagami {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Caller {
    /// Asks with another `timeout`, and with the budget that follows from it.
    #[must_use]
    pub fn with_timeout(mut self, timeout: &str, budget: Duration) -> Self {
        self.path = format!("/mutate/enforce?timeout={timeout}");
        self.budget = budget;
        self
    }

    /// Asks about Pods with thousands of images: what is built for tests, on a machine that does other
    /// things too, works on each for some time.
    #[must_use]
    pub fn about_giants(mut self) -> Self {
        self.slack = Duration::from_secs(1);
        self
    }

    /// Posts any body and returns status and answer.
    pub async fn post(&mut self, body: impl AsRef<[u8]>) -> tls_client::Reply {
        self.client.post(&self.path, body).await.unwrap()
    }

    /// Asks about a new Pod with these images and checks what every answer promises: it comes within
    /// the budget, the Pod is admitted, and an image is changed if and only if the answer says so.
    pub async fn ask(&mut self, images: &[impl AsRef<str>]) -> Answer {
        let review = review(images);
        let body = review.to_string();
        let (reply, latency, stall) = timed(self.post(&body)).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert!(
            latency < self.budget + self.slack + 2 * stall,
            "the answer took {latency:?}, this machine stood still for {stall:?}",
        );
        let answer: Value = serde_json::from_str(&reply.body).unwrap();
        let response = &answer["response"];
        assert_eq!(response["allowed"], true);
        assert_eq!(response["uid"], review["request"]["uid"]);
        let mut pod = review["request"]["object"].clone();
        if let Some(patch) = response["patch"].as_str() {
            assert_eq!(response["patchType"], "JSONPatch");
            let patch = BASE64_STANDARD.decode(patch).unwrap();
            let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
            json_patch::patch(&mut pod, &patch).unwrap();
        }
        let mut decoded = Answer {
            reasons: Vec::new(),
            images: Vec::new(),
        };
        for (index, image) in images.iter().enumerate() {
            let now = pod["spec"]["containers"][index]["image"].as_str().unwrap();
            let said = response["auditAnnotations"][format!("containers.c{index}")]
                .as_str()
                .unwrap_or_else(|| panic!("nothing about container {index}: {answer}"));
            let mut words = said.split(' ');
            let (outcome, reason) = (words.next().unwrap(), words.next().unwrap());
            let named = words.next_back().unwrap();
            match outcome {
                "Rewritten" => assert!(
                    now != image.as_ref() && named == format!("image={now}"),
                    "{said}, and the image is {now}"
                ),
                _ => assert_eq!(now, image.as_ref(), "{said}"),
            }
            decoded.reasons.push(reason.to_owned());
            decoded.images.push(now.to_owned());
        }
        decoded
    }
}

/// Returns what a call brings, how long it took, and the longest time for which this machine did not get
/// round to a task that was due meanwhile: what is slow then is not the program under test.
async fn timed<T>(call: impl Future<Output = T>) -> (T, Duration, Duration) {
    const TICK: Duration = Duration::from_millis(5);
    let started = Instant::now();
    let mut stall = Duration::ZERO;
    tokio::pin!(call);
    loop {
        let due = Instant::now() + TICK;
        tokio::select! {
            biased;
            output = &mut call => return (output, started.elapsed(), stall),
            () = sleep(TICK) => stall = stall.max(due.elapsed()),
        }
    }
}

/// Reads the log as it comes, so that the pipe never fills up.
fn follow_log(child: &mut Child) -> Arc<Mutex<String>> {
    let log = Arc::<Mutex<String>>::default();
    let (mut stderr, written) = (child.stderr.take().unwrap(), Arc::clone(&log));
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stderr.read(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..count]);
            written
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push_str(&text);
        }
    });
    log
}

/// Reads the addresses of admission and admin; none if the program ends before.
fn two_addresses(stdout: impl std::io::Read + Send + 'static) -> Option<(SocketAddr, SocketAddr)> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            drop(sender.send(line));
        }
    });
    let address = |prefix: &str| {
        let line = lines.recv_timeout(Duration::from_secs(20)).ok()?;
        line.strip_prefix(prefix)?.parse().ok()
    };
    Some((address("admission https://")?, address("admin http://")?))
}
