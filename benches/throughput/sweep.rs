//! The sweeper's yardstick: bare HEADs over as many connections as the sweeper has, from a process
//! of their own, as the sweeper's come from one; and a real registry to ask.

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};

use super::{
    answers::Answers,
    bench::{Bench, median},
    e2e::{
        eventually,
        process::{Process, reserve_port},
    },
    image::{BLOB, MANIFEST, digest, manifest},
    payload,
    registry::{Heads, Registry},
    report::Bars,
};

/// Connections at once: the sweeper's.
pub const CONNECTIONS: usize = 32;

/// Returns the repository and the tag under which the mirror holds an image.
fn place_of(number: usize) -> Result<(String, String)> {
    let image = payload::image(number);
    let (name, tag) = image.split_once(':').context("images have tags")?;
    Ok((format!("docker.io/{name}"), tag.to_owned()))
}

/// Asks a registry for every image once, with the HTTP client that the sweeper has and nothing of
/// Kagami around it, as the echo is Kagami's server without Kagami.
pub fn heads(registry: SocketAddr, images: usize) -> Result<()> {
    // The client wants one even where nothing is encrypted; another may have been first.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(CONNECTIONS)
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let next = Arc::new(AtomicUsize::new(0));
        let mut lanes = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (client, next) = (client.clone(), Arc::clone(&next));
            lanes.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= images {
                        return anyhow::Ok(());
                    }
                    let (repository, tag) = place_of(number)?;
                    let url = format!("http://{registry}/v2/{repository}/manifests/{tag}");
                    let answer = client.head(url).header("Accept", MANIFEST).send().await?;
                    ensure!(answer.status().is_success(), "status {}", answer.status());
                }
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane??;
        }
        Ok(())
    })
}

/// Sends what `requests` returns for each image, one after the other on one connection.
fn each(
    images: usize,
    registry: SocketAddr,
    requests: fn(usize, SocketAddr) -> Result<Vec<String>>,
) -> Result<()> {
    // As the sweeper's: all cores, tasks of one runtime.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let next = Arc::new(AtomicUsize::new(0));
        let mut lanes = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let next = Arc::clone(&next);
            lanes.spawn(async move {
                let mut stream = TcpStream::connect(registry).await?;
                stream.set_nodelay(true)?;
                let mut answers = Answers::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= images {
                        return anyhow::Ok(());
                    }
                    let mut location = String::new();
                    for request in requests(number, registry)? {
                        let request = request.replace(LOCATION, &location);
                        stream.write_all(request.as_bytes()).await?;
                        let answer = answers.next(&mut stream, request.starts_with("HEAD ")).await?;
                        ensure!(answer.status < 300, "status {} for {request}", answer.status);
                        if let Some(path) = answer.header("location") {
                            location = path
                                .split_once("/v2/")
                                .map(|(_, path)| path.to_owned())
                                .unwrap_or_default();
                        }
                    }
                }
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane??;
        }
        Ok(())
    })
}

/// Stands for the path (below `/v2/`) that an upload was sent to.
const LOCATION: &str = "{location}";

/// CNCF distribution, with its images in memory. It ends when dropped.
#[derive(Debug)]
pub struct Distribution {
    _process: Process,
    pub address: SocketAddr,
    pub heads: Heads,
}

impl Distribution {
    /// Starts the registry that `scripts/tools registry` built.
    pub fn start(program: &Path, folder: &Path) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], reserve_port()));
        let configuration = folder.join("distribution.yaml");
        std::fs::write(
            &configuration,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{inmemory: {{}}}}\nhttp: {{addr: \"{address}\"}}\n"
            ),
        )?;
        let mut command = Command::new(program);
        command.arg("serve").arg(configuration);
        let (mut process, output) = Process::start_and_read("distribution", &command, folder);
        let heads = Heads::default();
        let noted = heads.clone();
        // The access log tells each request when it is answered.
        thread::spawn(move || {
            for line in output.lines() {
                if line.contains("\"HEAD /v2/") {
                    noted.note();
                }
            }
        });
        eventually("distribution listens", || {
            process.assert_alive();
            std::net::TcpStream::connect(address).ok()
        });
        Ok(Self {
            _process: process,
            address,
            heads,
        })
    }

    /// Pushes the images of these numbers.
    pub fn push(&self, images: usize) -> Result<()> {
        each(images, self.address, |number, registry| {
            let (repository, tag) = place_of(number)?;
            let (blob, manifest) = (String::from_utf8_lossy(BLOB), manifest());
            let common = format!("HTTP/1.1\r\nHost: {registry}\r\n");
            Ok(vec![
                format!("POST /v2/{repository}/blobs/uploads/ {common}Content-Length: 0\r\n\r\n"),
                format!(
                    "PUT /v2/{LOCATION}&digest={} {common}Content-Length: {}\r\n\r\n{blob}",
                    digest(BLOB),
                    blob.len()
                ),
                format!(
                    "PUT /v2/{repository}/manifests/{tag} {common}Content-Type: {MANIFEST}\r\n\
                     Content-Length: {}\r\n\r\n{manifest}",
                    manifest.len()
                ),
            ])
        })
    }
}

impl Bench {
    /// Known images verified again, against bare HEADs.
    pub fn sweep(&self, program: Option<&Path>, bars: &mut Bars) -> Result<()> {
        println!(
            "\n{} images verified again, HEADs/s over {} connections",
            self.plan.swept, CONNECTIONS
        );
        let stub = Registry::start()?;
        let ratio = self.sweeps("stub registry", stub.address, stub.heads())?;
        match program {
            Some(program) => {
                let real = Distribution::start(program, self.folder.path())?;
                real.push(self.plan.swept)?;
                let ratio = self.sweeps("distribution", real.address, &real.heads)?;
                bars.at_least("sweep against bare HEADs, a real registry", ratio, 0.9, "");
            }
            None => bars.at_least("sweep against bare HEADs, the stub", ratio, 0.9, ""),
        }
        Ok(())
    }

    fn sweeps(&self, name: &str, address: SocketAddr, heads: &Heads) -> Result<f64> {
        // A sweep starts every half of the freshness; between two there is room for the bare HEADs.
        let settings = "freshness: {tag: 12s, digest: 24h}\nsweep: {requestsPerSecond: 0}";
        let kagami = self.kagami(name, address, settings)?;
        let images = self.plan.swept;
        self.warm(&kagami, images)?;
        compare(name, address, heads, images, self.plan.sweeps)
    }
}

/// Sends bare HEADs between the sweeps of a Kagami that begins one every few seconds, `rounds` times;
/// prints both and returns the ratio of the sweeps to the bare HEADs.
pub fn compare(name: &str, address: SocketAddr, heads: &Heads, images: usize, rounds: usize) -> Result<f64> {
    let mut rates = [Vec::new(), Vec::new()];
    let count = f64::from(u32::try_from(images)?);
    wait_for_heads(heads, images)?;
    for _ in 0..rounds {
        heads.take(images);
        let mut command = Command::new(std::env::current_exe()?);
        let status = command
            .arg("heads")
            .arg(address.to_string())
            .arg(images.to_string())
            .status()?;
        ensure!(status.success(), "the bare HEADs failed");
        wait_for_heads(heads, images)?;
        let bare = heads.take(images).context("too few HEADs")?;
        wait_for_heads(heads, images)?;
        let swept = heads.take(images).context("too few HEADs")?;
        for (rates, took) in rates.iter_mut().zip([bare, swept]) {
            rates.push(count / took.as_secs_f64());
        }
    }
    let ratio = median(rates[1].iter().zip(&rates[0]).map(|(swept, bare)| swept / bare));
    let [bare, swept] = rates.map(median);
    println!("  {name:<24} bare {bare:>8.0}  Kagami {swept:>8.0}  ratio {ratio:.2}");
    Ok(ratio)
}

/// Waits until so many HEADs came and no more follow.
fn wait_for_heads(heads: &Heads, count: usize) -> Result<()> {
    let start = Instant::now();
    let mut before = 0;
    loop {
        thread::sleep(Duration::from_millis(200));
        let now = heads.count();
        // Canaries of the health probe still come now and then.
        if now >= count && now - before < 10 {
            return Ok(());
        }
        ensure!(
            start.elapsed() < Duration::from_mins(1),
            "{now} HEADs came in a minute"
        );
        before = now;
    }
}
