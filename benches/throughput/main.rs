//! Measures what Kagami promises of speed (design: section 8), against a bare echo of the same stack
//! in the same run, and fails if a bar is missed. `scripts/bench` runs it.
//!
//! The echo, each Kagami and the bare HEADs are processes of their own; the load and the stub
//! registry live in this one. All share the machine, so the rounds of the echo and of Kagami
//! alternate and medians are compared: only ratios of one run mean something.

#![expect(clippy::print_stdout, reason = "the table is what this program is for")]
#![expect(unreachable_pub, reason = "modules of a program")]

mod client;
mod decision;
mod echo;
mod image;
mod payload;
mod process;
mod registry;
mod report;
mod sweep;
mod world;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use kagami::{certificates, clock};
use rustls::ClientConfig;
use tempfile::TempDir;

use client::{Connection, Expected, Load, Target, closed_loop, open_loop};
use payload::{Images, Payload};
use process::{CERTIFICATE, KEY, Kagami, Process};
use registry::{Heads, Registry};
use report::Bars;

const PATH: &str = "/mutate/enforce?timeout=3s";

/// Connections of the load: one caller, a busy API server, all that an API server keeps (facts:
/// section 1.2).
const CONNECTIONS: [usize; 3] = [1, 16, 25];

/// Connections where their number is not what is measured.
const ALL: usize = 25;

/// Numbers of known images.
const KNOWN: [usize; 3] = [1, 1_000, 100_000];

/// The first number of images that no mirror was ever asked for.
const UNKNOWN: usize = 500_000;

/// Kagami's default budget for probes, in milliseconds.
const BUDGET: f64 = 300.0;

/// Proofs that last for the whole run, so that no sweep falls into a measurement.
const LASTING: &str = "freshness: {tag: 24h, digest: 24h}";

/// How long each part takes.
struct Plan {
    rounds: usize,
    round: Duration,
    open: Duration,
    black_hole: Duration,
    swept: usize,
    sweeps: usize,
}

const FULL: Plan = Plan {
    rounds: 5,
    round: Duration::from_millis(1500),
    open: Duration::from_secs(10),
    black_hole: Duration::from_mins(1),
    swept: 10_000,
    sweeps: 5,
};

const QUICK: Plan = Plan {
    rounds: 3,
    round: Duration::from_millis(500),
    open: Duration::from_secs(4),
    black_hole: Duration::from_secs(10),
    swept: 10_000,
    sweeps: 3,
};

const USAGE: &str =
    "usage: throughput [--quick] [--registry PROGRAM] [PART...]\nparts: reviews, faults, sweep, decision";

fn main() -> Result<ExitCode> {
    let provider = rustls::crypto::ring::default_provider();
    provider
        .install_default()
        .map_err(|_| anyhow::anyhow!("there is a crypto provider already"))?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["echo", folder, lengths @ ..] => {
            let folder = Path::new(folder);
            let lengths: Vec<usize> = lengths
                .iter()
                .map(|length| length.parse())
                .collect::<Result<_, _>>()?;
            echo::run(&folder.join(CERTIFICATE), &folder.join(KEY), &lengths)?;
        }
        ["heads", registry, images] => sweep::heads(registry.parse()?, images.parse()?)?,
        words => return run(words),
    }
    Ok(ExitCode::SUCCESS)
}

fn run(words: &[&str]) -> Result<ExitCode> {
    let (mut plan, mut program, mut parts) = (FULL, None, Vec::new());
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        match word {
            // `cargo bench` says this to every bench.
            "--bench" => {}
            "--quick" => plan = QUICK,
            "--registry" => program = Some(PathBuf::from(words.next().context(USAGE)?)),
            "reviews" | "faults" | "sweep" | "decision" => parts.push(word),
            _ => bail!(USAGE),
        }
    }
    let wanted = |part| parts.is_empty() || parts.contains(&part);
    let start = Instant::now();
    let bench = Bench::new(plan)?;
    let mut bars = Bars::default();
    if wanted("decision") {
        bench.decision(&mut bars)?;
    }
    if wanted("reviews") {
        bench.reviews(&mut bars)?;
    }
    if wanted("faults") {
        bench.faults(&mut bars)?;
    }
    if wanted("sweep") {
        bench.sweep(program.as_deref(), &mut bars)?;
    }
    println!("\nBars ({} s)\n{bars}", start.elapsed().as_secs());
    Ok(if bars.hold() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

struct Bench {
    plan: Plan,
    folder: TempDir,
    tls: Arc<ClientConfig>,
}

/// A server in a comparison.
struct Rival {
    name: String,
    target: Target,
}

impl Bench {
    fn new(plan: Plan) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let names = ["127.0.0.1".into()];
        let issued = certificates::issue(&names, clock::now(), Duration::from_hours(24))?;
        let authority = folder.path().join("ca.crt");
        fs::write(&authority, issued.authority)?;
        fs::write(folder.path().join(CERTIFICATE), issued.pair.certificate)?;
        fs::write(folder.path().join(KEY), issued.pair.key)?;
        Ok(Self {
            plan,
            tls: client::trust(&authority)?,
            folder,
        })
    }

    fn kagami(&self, name: &str, mirror: SocketAddr, settings: &str) -> Result<Kagami> {
        Kagami::start(self.folder.path(), name, mirror, settings)
    }

    fn target(&self, kagami: &Kagami, payload: &Payload, images: Images, expected: Expected) -> Target {
        let (payload, tls) = (payload.clone(), Arc::clone(&self.tls));
        Target {
            address: kagami.admission,
            process: kagami.process.id(),
            tls,
            payload,
            images,
            expected,
        }
    }

    /// Lets Kagami get to know the images, as it always does: by reviews that name them.
    fn warm(&self, kagami: &Kagami, known: usize) -> Result<()> {
        let width = 50.min(known);
        let payload = Payload::new(PATH, 0, width)?;
        let images = Images {
            first: 0,
            count: known,
        };
        let mut target = self.target(kagami, &payload, images, Expected::Anything);
        for _ in 0..50 {
            send_in_turn(&target, known.div_ceil(width))?;
            let wanted = u64::try_from(known)?;
            // The last ones are still being looked at.
            for _ in 0..10 {
                if kagami.present()? >= wanted {
                    target.expected = Expected::Rewritten;
                    send_in_turn(&target, 1)?;
                    return Ok(());
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        bail!("only {} of {known} images are known", kagami.present()?)
    }

    /// Starts the echo; returns it with its targets, one for each payload and length of answer.
    fn echo(&self, payloads: &[(usize, usize, usize)]) -> Result<(Process, Vec<Target>)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("echo").arg(self.folder.path());
        command.args(payloads.iter().map(|(_, _, length)| length.to_string()));
        let mut process = Process::start(&mut command, &self.folder.path().join("echo.log"))?;
        let address = process.address("admission")?;
        let targets = payloads.iter().map(|(init_containers, containers, length)| {
            let payload = Payload::new(&echo::path(*length), *init_containers, *containers)?;
            let (tls, images) = (Arc::clone(&self.tls), Images { first: 0, count: 1 });
            let (process, expected) = (process.id(), Expected::Anything);
            Ok(Target {
                address,
                process,
                tls,
                payload,
                images,
                expected,
            })
        });
        let targets = targets.collect::<Result<_>>()?;
        Ok((process, targets))
    }

    /// Decision time: few against many images.
    fn decision(&self, bars: &mut Bars) -> Result<()> {
        let known = [100, 100_000];
        let times = decision::times(known, 2 * self.plan.rounds)?;
        println!("\nOne review without network, CPU µs");
        println!("  {:<40} {:>8} {:>8}", "known images", known[0], known[1]);
        let rows = [
            ("3 KB, bytes to bytes", times.small),
            ("9 KB, bytes to bytes", times.typical),
            ("9 KB, decide, settle and patch alone", times.decision),
        ];
        for (name, [few, many]) in rows {
            println!("  {name:<40} {few:>8.2} {many:>8.2}  ratio {:.2}", many / few);
        }
        let [few, many] = times.typical;
        bars.at_most("9 KB: decision time, 100 → 100,000 images", many / few, 1.2, "×");
        let [few, many] = times.small;
        bars.at_most("3 KB: decision time, 100 → 100,000 images", many / few, 1.2, "×");
        Ok(())
    }

    /// Reviews of known images, in closed and open loop; memory.
    fn reviews(&self, bars: &mut Bars) -> Result<()> {
        let registry = Registry::start()?;
        let mut kagamis = Vec::new();
        for known in KNOWN {
            let kagami = self.kagami(&format!("known-{known}"), registry.address, LASTING)?;
            let start = Instant::now();
            self.warm(&kagami, known)?;
            println!(
                "{known} images known after {:.1} s",
                start.elapsed().as_secs_f64()
            );
            kagamis.push(kagami);
        }
        let shapes = [("3 KB", 0, 1, 0.65), ("9 KB", 2, 3, 0.5)];
        let mut lengths = Vec::new();
        for (_, init_containers, containers, _) in shapes {
            let payload = Payload::new(PATH, init_containers, containers)?;
            let images = Images { first: 0, count: 1 };
            let target = self.target(&kagamis[0], &payload, images, Expected::Rewritten);
            lengths.push((init_containers, containers, send_in_turn(&target, 2)?));
        }
        let (_echo, echoes) = self.echo(&lengths)?;
        for ((size, init_containers, containers, bar), echo) in shapes.into_iter().zip(&echoes) {
            let payload = Payload::new(PATH, init_containers, containers)?;
            let mut rivals = vec![Rival {
                name: "echo".to_owned(),
                target: echo.clone(),
            }];
            for (kagami, known) in kagamis.iter().zip(KNOWN) {
                let images = Images {
                    first: 0,
                    count: known,
                };
                let target = self.target(kagami, &payload, images, Expected::Rewritten);
                rivals.push(Rival {
                    name: format!("Kagami, {known} images"),
                    target,
                });
            }
            println!(
                "\n{size} reviews ({} bytes of body), closed loop",
                payload.body().len()
            );
            self.closed(size, &rivals, bar, bars)?;
            println!("{size} reviews, open loop, 2,000/s over {ALL} connections");
            let (echo, kagami) = self.open(&rivals[0], &rivals[3], 2_000)?;
            let bar = f64::max(1.0, echo + 1.0);
            bars.at_most(format!("{size}: open loop 2,000/s, p99"), kagami, bar, "ms");
        }
        let [one, _, many] = [0, 1, 2].map(|index| kagamis[index].process.memory("VmHWM"));
        let (one, many) = (one?, many?);
        println!("\nPeak memory with 1 image {one:.1} MiB, with 100,000 images {many:.1} MiB");
        bars.at_most(
            "memory of 100,000 images above that of 1",
            many - one,
            64.0,
            "MiB",
        );
        Ok(())
    }

    /// Compares rivals with the first of them, round by round.
    fn closed(&self, size: &str, rivals: &[Rival], bar: f64, bars: &mut Bars) -> Result<()> {
        println!(
            "  {:>4} {:<24} {:>10} {:>6} {:>9} {:>9} {:>9} {:>6}",
            "conn", "server", "reviews/s", "ratio", "p50 ms", "p99 ms", "CPU µs", "ratio"
        );
        let (mut lowest, mut highest) = (f64::INFINITY, 0.0_f64);
        for connections in CONNECTIONS {
            let mut loads: Vec<Vec<Load>> = rivals.iter().map(|_| Vec::new()).collect();
            for _ in 0..self.plan.rounds {
                for (rival, loads) in rivals.iter().zip(&mut loads) {
                    let load = closed_loop(&rival.target, connections, self.plan.round);
                    loads.push(load.with_context(|| rival.name.clone())?);
                }
            }
            let of_echo = loads[0].clone();
            for (rival, loads) in rivals.iter().zip(&loads) {
                // Each round against the echo's beside it: what disturbs one mostly disturbs both.
                let against = |figure: fn(&Load) -> f64| {
                    median(
                        loads
                            .iter()
                            .zip(&of_echo)
                            .map(|(own, echo)| figure(own) / figure(echo)),
                    )
                };
                let (ratio, cpu) = (against(Load::per_second), against(Load::cpu_per_review));
                let of = |figure: &dyn Fn(&Load) -> f64| median(loads.iter().map(figure));
                println!(
                    "  {connections:>4} {:<24} {:>10.0} {ratio:>6.2} {:>9.3} {:>9.3} {:>9.1} {cpu:>6.2}",
                    rival.name,
                    of(&Load::per_second),
                    of(&|load| load.percentile(50)),
                    of(&|load| load.percentile(99)),
                    of(&Load::cpu_per_review),
                );
                lowest = lowest.min(ratio);
                highest = highest.max(cpu);
            }
        }
        bars.at_least(
            format!("{size}: reviews/s against the echo's, lowest of all"),
            lowest,
            bar,
            "",
        );
        bars.at_most(
            format!("{size}: CPU time a review against the echo's, highest of all"),
            highest,
            2.0,
            "×",
        );
        Ok(())
    }

    /// Sends at a fixed rate to the echo and to Kagami in turn; returns the median p99 of both.
    fn open(&self, echo: &Rival, kagami: &Rival, rate: u32) -> Result<(f64, f64)> {
        let mut p99 = [Vec::new(), Vec::new()];
        let duration = self.plan.open / u32::try_from(self.plan.rounds)?;
        let mut p50 = [Vec::new(), Vec::new()];
        for _ in 0..self.plan.rounds {
            for ((rival, p99), p50) in [echo, kagami].into_iter().zip(&mut p99).zip(&mut p50) {
                let load =
                    open_loop(&rival.target, ALL, rate, duration).with_context(|| rival.name.clone())?;
                p99.push(load.percentile(99));
                p50.push(load.percentile(50));
            }
        }
        for (rival, (p50, p99)) in [echo, kagami].into_iter().zip(p50.iter().zip(&p99)) {
            let (p50, p99) = (median(p50.iter().copied()), median(p99.iter().copied()));
            println!("  {:<24} p50 {p50:.3} ms  p99 {p99:.3} ms", rival.name);
        }
        let [echo, kagami] = p99.map(median);
        Ok((echo, kagami))
    }

    /// A mirror that turns into a black hole.
    fn faults(&self, bars: &mut Bars) -> Result<()> {
        println!("\nBlack hole: a listener on loopback with a full backlog, so that the kernel drops what");
        println!("opens connections; connections that stand are answered no more");
        self.first_reviews(bars)?;
        self.known_black_hole(bars)?;
        self.leaks(bars)
    }

    /// The first review of an unknown image, before the state knows of the black hole.
    fn first_reviews(&self, bars: &mut Bars) -> Result<()> {
        let registry = Registry::start()?;
        let kagami = self.kagami("first", registry.address, LASTING)?;
        self.warm(&kagami, 100)?;
        let mut first = UNKNOWN;
        for containers in [1, 5, 50] {
            let payload = Payload::new(PATH, 0, containers)?;
            let mut worst = 0.0_f64;
            for _ in 0..self.plan.rounds {
                let images = Images {
                    first,
                    count: containers,
                };
                first += containers;
                let target = self.target(&kagami, &payload, images, Expected::Kept);
                kagami.wait("the mirror to be healthy", |mirror| {
                    mirror["health"]["state"] == "Healthy"
                })?;
                registry.freeze()?;
                let took = time_one(&target)?;
                registry.thaw();
                worst = worst.max(took.as_secs_f64() * 1e3);
            }
            let name = format!("black hole, not yet known: first review, {containers} images, worst");
            bars.at_most(name, worst, BUDGET + 20.0, "ms");
        }
        Ok(())
    }

    /// Reviews while the state knows of the black hole.
    fn known_black_hole(&self, bars: &mut Bars) -> Result<()> {
        let registry = Registry::start()?;
        let kagami = self.kagami("known", registry.address, LASTING)?;
        self.warm(&kagami, 1_000)?;
        registry.freeze()?;
        kagami.wait("the mirror to be unhealthy", |mirror| {
            mirror["health"]["state"] == "Unhealthy"
        })?;
        let payload = Payload::new(PATH, 2, 3)?;
        let images = Images {
            first: 0,
            count: 1_000,
        };
        let target = self.target(&kagami, &payload, images, Expected::Kept);
        let length = send_in_turn(&target, 2)?;
        let (_echo, mut echoes) = self.echo(&[(2, 3, length)])?;
        let echo = Rival {
            name: "echo".to_owned(),
            target: echoes.pop().context("one payload")?,
        };
        let rival = Rival {
            name: "Kagami, black hole known".to_owned(),
            target,
        };
        println!("9 KB reviews, open loop, 500/s over {ALL} connections");
        let (of_echo, of_kagami) = self.open(&echo, &rival, 500)?;
        bars.at_most(
            "black hole, known: open loop 500/s, p99",
            of_kagami,
            f64::max(5.0, of_echo + 1.0),
            "ms",
        );
        Ok(())
    }

    /// Images that nobody knows, for a minute, while the state never gets to know: whatever is begun
    /// for them must end.
    fn leaks(&self, bars: &mut Bars) -> Result<()> {
        let registry = Registry::start()?;
        let settings = format!("{LASTING}\nhealth: {{failureThreshold: 1000000}}");
        let kagami = self.kagami("leaks", registry.address, &settings)?;
        self.warm(&kagami, 1_000)?;
        let payload = Payload::new(PATH, 2, 3)?;
        let images = Images {
            first: 0,
            count: 1_000,
        };
        let known = self.target(&kagami, &payload, images, Expected::Rewritten);
        closed_loop(&known, ALL, Duration::from_secs(1))?;
        thread::sleep(Duration::from_millis(500));
        let look = || anyhow::Ok((kagami.process.descriptors()?, kagami.process.memory("VmRSS")?));
        let (descriptors, memory) = look()?;
        registry.freeze()?;
        let images = Images {
            first: UNKNOWN,
            count: 1_000,
        };
        let load = closed_loop(
            &self.target(&kagami, &payload, images, Expected::Kept),
            ALL,
            self.plan.black_hole,
        )?;
        let (most_descriptors, most_memory) = look()?;
        println!(
            "1,000 unknown images against a black hole for {} s, which the state never gets to know",
            self.plan.black_hole.as_secs()
        );
        println!(
            "  {:.0} reviews/s, p50 {:.0} ms, p99 {:.0} ms",
            load.per_second(),
            load.percentile(50),
            load.percentile(99)
        );
        bars.at_most(
            "black hole, not known: reviews, p99",
            load.percentile(99),
            BUDGET + 20.0,
            "ms",
        );
        // What was begun may last as long as its own timeout.
        let start = Instant::now();
        let mut now = look()?;
        while (now.0 > descriptors || now.1 > memory + 8.0) && start.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(200));
            now = look()?;
        }
        println!(
            "  descriptors {descriptors}, {most_descriptors} at the end, {} after {:.1} s",
            now.0,
            start.elapsed().as_secs_f64()
        );
        println!(
            "  memory {memory:.1} MiB, {most_memory:.1} MiB at the end, {:.1} MiB then",
            now.1
        );
        let more = |now: usize, before: usize| {
            f64::from(u32::try_from(now.saturating_sub(before)).unwrap_or(u32::MAX))
        };
        bars.at_most(
            "black hole, afterwards: descriptors more than before",
            more(now.0, descriptors),
            0.0,
            "",
        );
        bars.at_most(
            "black hole, afterwards: memory more than before",
            now.1 - memory,
            8.0,
            "MiB",
        );
        Ok(())
    }

    /// Known images verified again, against bare HEADs.
    fn sweep(&self, program: Option<&Path>, bars: &mut Bars) -> Result<()> {
        println!(
            "\n{} images verified again, HEADs/s over {} connections",
            self.plan.swept,
            sweep::CONNECTIONS
        );
        let stub = Registry::start()?;
        let ratio = self.sweeps("stub registry", stub.address, stub.heads())?;
        match program {
            Some(program) => {
                let real = sweep::Distribution::start(program, self.folder.path())?;
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
        let mut rates = [Vec::new(), Vec::new()];
        let count = f64::from(u32::try_from(images)?);
        wait_for_heads(heads, images)?;
        for _ in 0..self.plan.sweeps {
            heads.take(images);
            let mut command = Command::new(std::env::current_exe()?);
            let status = command
                .arg("heads")
                .arg(address.to_string())
                .arg(images.to_string())
                .status()?;
            anyhow::ensure!(status.success(), "the bare HEADs failed");
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
        anyhow::ensure!(
            start.elapsed() < Duration::from_mins(1),
            "{now} HEADs came in a minute"
        );
        before = now;
    }
}

/// Sends reviews one after the other on one connection and returns the length of the last answer.
fn send_in_turn(target: &Target, reviews: usize) -> Result<usize> {
    one_connection(target, async |connection| {
        let mut length = 0;
        for number in 0..reviews {
            length = connection.review(number, true).await?;
        }
        Ok(length)
    })
}

/// Returns the time of one review over a connection that stands.
fn time_one(target: &Target) -> Result<Duration> {
    one_connection(target, async |connection| {
        let start = Instant::now();
        connection.review(0, true).await?;
        Ok(start.elapsed())
    })
}

fn one_connection<T>(target: &Target, work: impl AsyncFnOnce(&mut Connection) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async { work(&mut Connection::open(target).await?).await })
}

fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
