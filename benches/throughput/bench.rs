//! What the parts of the bench share: Kagami, the echo, and the comparison of rivals.

use std::{
    net::SocketAddr,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustls::ClientConfig;
use tempfile::TempDir;

use super::{
    client::{Connection, Expected, Load, Target, closed_loop, open_loop},
    copies,
    e2e::{certificates::Authority, process::Process},
    echo, noticing,
    payload::{Images, Payload},
    report::Bars,
    roles::{Build, Kagami},
    sizes,
};

/// Where the API server sends reviews.
pub const PATH: &str = "/mutate/enforce?timeout=2s";

/// Connections where their number is not what is measured.
pub const ALL: usize = 25;

/// Images that Kagami gets to know at once.
pub const AT_ONCE: usize = 1_000;

/// Proofs that last for the whole run, so that no sweep falls into a measurement.
pub const LASTING: &str = "freshness: {tag: 24h, digest: 24h}";

/// How long each part takes.
#[derive(Debug)]
pub struct Plan {
    /// Many short rounds: what disturbs a virtual machine from outside lasts for seconds, so that a
    /// round and the echo's beside it meet the same of it.
    pub rounds: usize,
    pub round: Duration,
    pub open: Duration,
    /// How often a black hole begins.
    pub black_holes: usize,
    /// How long the one that is known lasts.
    pub black_hole: Duration,
    pub swept: usize,
    pub sweeps: usize,
    /// Images that a replica of the webhook knows from an API server.
    pub images: usize,
    pub quiet: Duration,
    pub outage: Duration,
    pub scale: sizes::Sizes,
    pub noticing: noticing::Sizes,
    pub copies: copies::Sizes,
}

pub const FULL: Plan = Plan {
    rounds: 21,
    round: Duration::from_millis(400),
    open: Duration::from_secs(10),
    black_holes: 5,
    black_hole: Duration::from_mins(1),
    swept: 10_000,
    sweeps: 5,
    images: 100_000,
    quiet: Duration::from_mins(1),
    outage: Duration::from_mins(1),
    scale: sizes::FULL,
    noticing: noticing::FULL,
    copies: copies::FULL,
};

pub const QUICK: Plan = Plan {
    rounds: 9,
    round: Duration::from_millis(200),
    open: Duration::from_secs(4),
    black_holes: 3,
    black_hole: Duration::from_secs(10),
    swept: 10_000,
    sweeps: 3,
    images: 100_000,
    quiet: Duration::from_secs(30),
    outage: Duration::from_secs(20),
    scale: sizes::QUICK,
    noticing: noticing::QUICK,
    copies: copies::QUICK,
};

#[derive(Debug)]
pub struct Bench {
    pub plan: Plan,
    /// The build that is measured.
    pub own: Build,
    /// The one beside which some of it is.
    pub other: Option<Build>,
    /// What chance follows from.
    pub seed: u64,
    pub folder: TempDir,
    pub authority: Authority,
    pub tls: Arc<ClientConfig>,
}

/// A server in a comparison.
#[derive(Debug)]
pub struct Rival {
    pub name: String,
    pub target: Target,
}

impl Bench {
    pub fn new(plan: Plan, other: Option<Build>, seed: u64) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = Authority::new();
        authority.issue().write(folder.path(), "tls");
        Ok(Self {
            plan,
            own: Build::own(),
            other,
            seed,
            tls: authority.client(),
            authority,
            folder,
        })
    }

    pub fn kagami(&self, name: &str, mirror: SocketAddr, settings: &str) -> Result<Kagami> {
        Kagami::start(&self.own, self.folder.path(), name, mirror, settings)
    }

    pub fn target(&self, kagami: &Kagami, payload: &Payload, images: Images, expected: Expected) -> Target {
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
    pub fn warm(&self, kagami: &Kagami, known: usize) -> Result<()> {
        // Not more at once than wait for the companion: an image that it was not told of is proven to
        // the webhook all the same, by its own probe, and is not told of again for a while.
        for first in (0..known).step_by(AT_ONCE) {
            let count = AT_ONCE.min(known - first);
            let payload = Payload::new(PATH, 0, 50.min(count))?;
            let reviews = count.div_ceil(payload.width());
            let mut target = self.target(kagami, &payload, Images { first, count }, Expected::Anything);
            send_in_turn(&target, reviews)?;
            let known = u64::try_from(first + count)?;
            kagami.wait("all images to be known", |mirror| {
                mirror["images"]["present"].as_u64() >= Some(known)
            })?;
            target.expected = Expected::Rewritten;
            send_in_turn(&target, 1)?;
        }
        Ok(())
    }

    /// Starts the echo; returns it with its targets, one for each payload and length of answer.
    pub fn echo(&self, payloads: &[(usize, usize, usize)]) -> Result<(Process, Vec<Target>)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("echo").arg(self.folder.path());
        command.args(payloads.iter().map(|(_, _, length)| length.to_string()));
        let (process, output) = Process::start_and_read("echo", &command, self.folder.path());
        let line = output.line();
        let address: SocketAddr = line.split("://").nth(1).context("no address")?.parse()?;
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

    /// Compares rivals with the first of them, round by round.
    pub fn closed(
        &self,
        size: &str,
        rivals: &[Rival],
        connections: &[usize],
        bar: f64,
        bars: &mut Bars,
    ) -> Result<()> {
        println!(
            "  {:>4} {:<24} {:>10} {:>6} {:>9} {:>9} {:>9} {:>6}",
            "conn", "server", "reviews/s", "ratio", "p50 ms", "p99 ms", "CPU µs", "ratio"
        );
        let (mut lowest, mut highest) = (f64::INFINITY, 0.0_f64);
        for &connections in connections {
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
    pub fn open(&self, echo: &Rival, kagami: &Rival, rate: u32) -> Result<(f64, f64)> {
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
}

/// Sends reviews one after the other on one connection and returns the length of the last answer.
pub fn send_in_turn(target: &Target, reviews: usize) -> Result<usize> {
    one_connection(target, async |connection| {
        let mut length = 0;
        for number in 0..reviews {
            length = connection.review(number, true).await?;
        }
        Ok(length)
    })
}

/// Returns the time of one review over a connection that stands.
pub fn time_one(target: &Target) -> Result<Duration> {
    one_connection(target, async |connection| {
        let start = Instant::now();
        connection.review(0, true).await?;
        Ok(start.elapsed())
    })
}

pub fn one_connection<T>(target: &Target, work: impl AsyncFnOnce(&mut Connection) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async { work(&mut Connection::open(target).await?).await })
}

/// Returns the middle of some figures, which is none of none.
pub fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
