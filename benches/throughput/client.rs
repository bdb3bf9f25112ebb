//! The load: pre-rendered requests over TLS connections that are kept open, as an API server does
//! it, and the least parsing of answers that still tells right from wrong.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Barrier, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::Value;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::Semaphore, task::JoinSet};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    answers::Answers,
    e2e::process::cpu_time,
    payload::{Images, Payload},
    roles::REGISTRY,
};

/// Every so many answers one is checked whole.
const CHECKED: usize = 251;

/// Threads of the load; as the server's, for its cost must not be what is measured.
const THREADS: usize = 2;

/// How long an open loop may take for what is left at its end.
const BACKLOG: Duration = Duration::from_secs(5);

/// What the answers to reviews must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// 200, whatever the body: the echo.
    Anything,
    /// Every image is rewritten.
    Rewritten,
    /// No image is rewritten.
    Kept,
    /// Whatever happens to images.
    Allowed,
    /// The API server answers with the Pod that it would store.
    Created { rewritten: bool },
}

impl Expected {
    const fn status(self) -> u16 {
        match self {
            Self::Created { .. } => 201,
            Self::Anything | Self::Rewritten | Self::Kept | Self::Allowed => 200,
        }
    }
}

/// Who is asked what.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    pub process: u32,
    pub tls: Arc<ClientConfig>,
    pub payload: Payload,
    pub images: Images,
    pub expected: Expected,
}

/// What a load brought.
#[derive(Clone, Debug, Default)]
pub struct Load {
    pub reviews: usize,
    pub elapsed: Duration,
    /// CPU time of the server.
    pub cpu: Duration,
    /// Sorted, in nanoseconds.
    latencies: Vec<u64>,
}

impl Load {
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn per_second(&self) -> f64 {
        self.reviews as f64 / self.elapsed.as_secs_f64()
    }

    /// Returns the CPU time of one review in microseconds.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn cpu_per_review(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.reviews as f64
    }

    /// Returns a percentile of the latencies in milliseconds.
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a short run")]
    pub fn percentile(&self, percent: usize) -> f64 {
        let position = (self.latencies.len() * percent / 100).min(self.latencies.len().saturating_sub(1));
        self.latencies
            .get(position)
            .map_or(f64::NAN, |nanos| *nanos as f64 / 1e6)
    }
}

/// Sends reviews over so many connections, each as soon as the one before is answered.
pub fn closed_loop(target: &Target, connections: usize, duration: Duration) -> Result<Load> {
    drive(target, connections, None, duration)
}

/// Sends reviews at a fixed rate. Latencies count from the time at which a review was to be sent,
/// so that one slow answer also counts for those that had to wait behind it.
pub fn open_loop(target: &Target, connections: usize, rate: u32, duration: Duration) -> Result<Load> {
    drive(target, connections, Some(rate), duration)
}

/// What the threads of a load share.
struct Shared {
    target: Target,
    connections: usize,
    /// For an open loop: one permit for each review whose time has come.
    due: Semaphore,
    interval: Option<Duration>,
    next: AtomicUsize,
    start: OnceLock<Instant>,
    ended: AtomicBool,
}

impl Shared {
    /// Returns when the load began: at the first call.
    fn start(&self) -> Instant {
        *self.start.get_or_init(Instant::now)
    }
}

fn drive(target: &Target, connections: usize, rate: Option<u32>, duration: Duration) -> Result<Load> {
    let threads = THREADS.min(connections);
    let shared = Arc::new(Shared {
        target: target.clone(),
        connections,
        due: Semaphore::new(0),
        interval: rate.map(|rate| Duration::from_secs(1) / rate),
        next: AtomicUsize::new(0),
        start: OnceLock::new(),
        ended: AtomicBool::new(false),
    });
    // Reached by each thread when its connections stand, and by the pacemaker.
    let ready = Arc::new(Barrier::new(threads + 1));
    let workers: Vec<_> = (0..threads)
        .map(|thread| {
            let (shared, ready) = (Arc::clone(&shared), Arc::clone(&ready));
            thread::spawn(move || worker(&shared, thread, threads, &ready))
        })
        .collect();
    ready.wait();
    let cpu = cpu_time(target.process);
    let start = shared.start();
    match shared.interval {
        None => {
            thread::sleep(duration);
            shared.ended.store(true, Ordering::Relaxed);
        }
        Some(interval) => {
            for number in 1.. {
                shared.due.add_permits(1);
                let next = interval * number;
                if next >= duration {
                    break;
                }
                thread::sleep((start + next).saturating_duration_since(Instant::now()));
            }
            // What was due is sent, however late: leaving it out would hide the worst.
            while shared.due.available_permits() > 0 && start.elapsed() < duration + BACKLOG {
                thread::sleep(Duration::from_millis(1));
            }
            ensure!(
                shared.due.available_permits() == 0,
                "the server does not keep up with the rate"
            );
            shared.due.close();
        }
    }
    let mut load = Load {
        elapsed: start.elapsed(),
        ..Load::default()
    };
    load.cpu = cpu_time(target.process).saturating_sub(cpu);
    for worker in workers {
        let latencies = worker
            .join()
            .map_err(|_| anyhow!("a thread of the load panicked"))??;
        load.latencies.extend(latencies);
    }
    load.reviews = load.latencies.len();
    load.latencies.sort_unstable();
    ensure!(load.reviews > 0, "no review was answered");
    Ok(load)
}

/// Drives every `threads`th connection and returns the latencies.
fn worker(shared: &Arc<Shared>, thread: usize, threads: usize, ready: &Barrier) -> Result<Vec<u64>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut connections = Vec::new();
        let mut failed = None;
        for number in (thread..shared.connections).step_by(threads) {
            match Connection::open(&shared.target).await {
                Ok(connection) => connections.push((number, connection)),
                Err(error) => failed = Some(error),
            }
        }
        ready.wait();
        if let Some(error) = failed {
            return Err(error.context("cannot connect"));
        }
        let mut tasks = JoinSet::new();
        for (number, connection) in connections {
            tasks.spawn(send(Arc::clone(shared), connection, number));
        }
        let mut all = Vec::new();
        while let Some(latencies) = tasks.join_next().await {
            all.extend(latencies??);
        }
        Ok(all)
    })
}

/// Sends reviews over one connection until the load ends.
async fn send(shared: Arc<Shared>, mut connection: Connection, mut number: usize) -> Result<Vec<u64>> {
    let mut latencies = Vec::with_capacity(1 << 16);
    let start = shared.start();
    loop {
        let began = match shared.interval {
            None => Instant::now(),
            Some(interval) => {
                let Ok(permit) = shared.due.acquire().await else {
                    return Ok(latencies);
                };
                permit.forget();
                number = shared.next.fetch_add(1, Ordering::Relaxed);
                start + interval * u32::try_from(number)?
            }
        };
        connection
            .review(number, latencies.is_empty() || number.is_multiple_of(CHECKED))
            .await?;
        if shared.ended.load(Ordering::Relaxed) {
            // Answered after the end: not counted, as it was not the whole time within.
            return Ok(latencies);
        }
        latencies.push(u64::try_from(began.elapsed().as_nanos())?);
        number += shared.connections;
    }
}

/// One connection over which reviews are sent.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    answers: Answers,
    payload: Payload,
    images: Images,
    expected: Expected,
}

impl Connection {
    pub async fn open(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(target.address.ip());
        let stream = TlsConnector::from(Arc::clone(&target.tls))
            .connect(name, stream)
            .await?;
        let (payload, images, expected) = (target.payload.clone(), target.images, target.expected);
        Ok(Self {
            stream,
            answers: Answers::default(),
            payload,
            images,
            expected,
        })
    }

    /// Sends the review of this number and reads its answer; checks it whole if asked to. Returns
    /// the length of the answer's body.
    pub async fn review(&mut self, number: usize, check: bool) -> Result<usize> {
        Ok(self.answer(number, check).await?.len())
    }

    /// The same, returning the answer's body.
    pub async fn answer(&mut self, number: usize, check: bool) -> Result<&[u8]> {
        self.payload.number(number, self.images);
        self.stream.write_all(self.payload.request()).await?;
        self.stream.flush().await?;
        let answer = self.answers.next(&mut self.stream, false).await?;
        ensure!(
            answer.status == self.expected.status(),
            "status {}: {}",
            answer.status,
            answer.text()
        );
        if check && self.expected != Expected::Anything {
            let width = self.payload.width();
            let checked = match self.expected {
                Expected::Created { rewritten } => check_pod(answer.body, rewritten, width),
                expected => check_answer(number, answer.body, expected, width),
            };
            checked.with_context(|| format!("review {number}: wrong answer {}", answer.text()))?;
        }
        Ok(answer.body)
    }
}

/// Checks an answer of Kagami whole, for a Pod of `width` images.
fn check_answer(number: usize, body: &[u8], expected: Expected, width: usize) -> Result<()> {
    let answer: Value = serde_json::from_slice(body)?;
    let response = &answer["response"];
    ensure!(response["uid"] == Payload::uid(number), "another UID");
    ensure!(response["allowed"] == true, "not allowed");
    let patch = match response["patch"].as_str() {
        Some(patch) => serde_json::from_slice(&STANDARD.decode(patch)?)?,
        None => Value::Null,
    };
    let operations = patch.as_array().into_iter().flatten();
    let replaced = operations
        .filter(|operation| operation["op"] == "replace")
        .count();
    let right = match expected {
        Expected::Rewritten => replaced == width,
        Expected::Kept => replaced == 0,
        Expected::Anything | Expected::Allowed | Expected::Created { .. } => true,
    };
    ensure!(right, "{replaced} images are rewritten in {patch}");
    Ok(())
}

/// Checks that a Pod has `width` images, all of them rewritten or none.
fn check_pod(body: &[u8], rewritten: bool, width: usize) -> Result<()> {
    let pod: Value = serde_json::from_slice(body)?;
    let lists = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array());
    let images = lists.into_iter().flatten().flatten();
    let of_mirror = |container: &Value| {
        container["image"]
            .as_str()
            .is_some_and(|image| image.starts_with(REGISTRY))
    };
    let right = images
        .filter(|container| of_mirror(container) == rewritten)
        .count();
    ensure!(right == width, "{right} images are as they should be");
    Ok(())
}
