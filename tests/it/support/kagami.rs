//! The program itself, asked as the API server asks it.
//!
//! Apart from the harness of the other rings, on which it stands, because its peers are tasks of the test: all waiting
//! here is theirs too.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::shared::{
    kagami::{ADMIN_LISTEN, LISTEN, Listeners},
    mirror::image_mirror,
    process::Process,
    reviews::{patched, response, review},
    tls_client::{self, Client, get},
};

/// How long a review may wait for probes: `--budget`'s default.
pub const BUDGET: Duration = Duration::from_millis(300);

/// What is allowed above the budget: 20 ms by the design, the rest for a busy machine.
pub const SLACK: Duration = Duration::from_millis(20 + 250);

/// The pause between two looks at something that is awaited.
const PAUSE: Duration = Duration::from_millis(20);

/// A running `kagami serve`. It is killed when dropped.
pub struct Kagami {
    pub process: Process,
    listeners: Listeners,
    client: tls_client::Settings,
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
    /// That of the Pods; by default that of all reviews.
    namespace: Option<&'static str>,
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
    // Longer than a review's budget, as the defaults are: a mirror that is silent is one that the review did
    // not wait for.
    let mut settings = json!({"health": {"interval": "200ms", "timeout": "500ms"}});
    json_patch::merge(&mut settings, spec);
    image_mirror("main", "mirror.test", &["docker.io"], endpoint, &settings)
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
        let mut words = setup.through;
        words.push(env!("CARGO_BIN_EXE_kagami").to_owned());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg("serve")
            .args(LISTEN)
            .args(ADMIN_LISTEN)
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
        let (process, output) = Process::start_and_read("kagami", &command, files.path());
        // Peers that run on this thread go on meanwhile.
        let listeners = tokio::task::spawn_blocking(move || Listeners::read(&output));
        let listeners = listeners.await.unwrap();
        let authority = match setup.pair {
            Some((_, _, authority)) => authority.to_owned(),
            None => fs::read_to_string(&authority).unwrap(),
        };
        Self {
            process,
            listeners,
            client: tls_client::Settings::trusting(&authority),
            config,
            _files: files,
        }
    }

    /// Replaces the configuration file, as editors do: whole.
    pub fn configure(&self, text: &str) {
        let new = self.config.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &self.config).unwrap();
    }

    /// Returns what it has logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Returns what `/status` shows.
    pub async fn status(&self) -> Value {
        let (reply, _) = get(self.listeners.admin, "/status").await;
        serde_json::from_str(&reply.body).unwrap()
    }

    /// Returns the value of a metric, given with its labels; 0 if it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        let (reply, _) = get(self.listeners.admin, "/metrics").await;
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
        self.listeners.admission()
    }

    pub async fn connect(&self) -> Caller {
        Caller {
            client: Client::connect(self.address(), &self.client).await.unwrap(),
            path: "/mutate/enforce?timeout=2s".to_owned(),
            namespace: None,
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
        self.until_by(&mut self.connect().await, images, expected, within)
            .await
    }

    /// The same on a connection of the caller's.
    pub async fn until_by(
        &self,
        caller: &mut Caller,
        images: &[&str],
        expected: &[&str],
        within: Duration,
    ) -> Vec<Vec<String>> {
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
}

impl Caller {
    /// Asks with another `timeout`, and with the budget that follows from it.
    #[must_use]
    pub fn with_timeout(mut self, timeout: &str, budget: Duration) -> Self {
        self.path = format!("/mutate/enforce?timeout={timeout}");
        self.budget = budget;
        self
    }

    /// Asks while what is built for tests hashes whole images beside, which takes it a hundred times as long.
    #[must_use]
    pub fn in_no_hurry(mut self) -> Self {
        self.slack = Duration::from_mins(1);
        self
    }

    /// Asks as for a namespace in another mode than enforce.
    #[must_use]
    pub fn in_mode(mut self, mode: &str) -> Self {
        self.path = self.path.replace("/enforce", &format!("/{mode}"));
        self
    }

    /// Asks about Pods of another namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &'static str) -> Self {
        self.namespace = Some(namespace);
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
        let mut review = review(images);
        if let Some(namespace) = self.namespace {
            review["request"]["namespace"] = namespace.into();
        }
        let body = review.to_string();
        let (reply, latency, stall) = timed(self.post(&body)).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert!(
            latency < self.budget + self.slack + 2 * stall,
            "the answer took {latency:?}, this machine stood still for {stall:?}",
        );
        let response = response(reply.body.as_bytes(), &review);
        let pod = patched(&review["request"]["object"], &response);
        let mut decoded = Answer {
            reasons: Vec::new(),
            images: Vec::new(),
        };
        for (index, image) in images.iter().enumerate() {
            let now = pod["spec"]["containers"][index]["image"].as_str().unwrap();
            let said = response["auditAnnotations"][format!("containers.c{index}")]
                .as_str()
                .unwrap_or_else(|| panic!("nothing about container {index}: {response}"));
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
