//! Copying images, beside what others use for it, and beside the least requests that do it.
//!
//! Everybody copies between the same two registries, of which the target is a fresh one each time; rounds alternate,
//! and only ratios of one round mean something, for the registries and their CPU time are everybody's. Referrers are
//! left out where others do not bring them.

mod images;
mod relay;
pub mod replay;
mod rivals;

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use self::{
    images::{Image, Size},
    relay::Relay,
    rivals::{Copier, Work},
};
use super::{
    bench::{Bench, median},
    e2e::{
        process::{Process, cpu_time, reserve_port},
        registry,
    },
    report::Bars,
};

/// One way of a packet to registries that are far away.
const DELAY: Duration = Duration::from_millis(30);

/// How much there is to copy.
#[derive(Debug)]
pub struct Sizes {
    /// Images of seven blobs, and how often each copier brings them.
    pub images: usize,
    pub rounds: usize,
    /// Those of them that are copied from far away, and how often.
    pub far: usize,
    pub far_rounds: usize,
    /// Small images that are there already.
    pub unchanged: usize,
    /// Bytes of a layer of which four are copied at once.
    pub large: usize,
}

pub const FULL: Sizes = Sizes {
    images: 100,
    rounds: 5,
    far: 25,
    far_rounds: 3,
    unchanged: 1_000,
    large: 1 << 30,
};

pub const QUICK: Sizes = Sizes {
    images: 20,
    rounds: 2,
    far: 5,
    far_rounds: 1,
    unchanged: 50,
    large: 64 << 20,
};

/// A registry of its own, with its images in a folder.
#[derive(Debug)]
struct Shelf {
    registry: registry::Registry,
    address: SocketAddr,
    folder: std::path::PathBuf,
}

impl Shelf {
    fn start(program: &Path, folder: &Path, name: &str) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], reserve_port()));
        let images = folder.join(format!("{name}-images"));
        fs::create_dir_all(&images)?;
        let mut registry = registry::Registry::new(name, program, folder, address);
        registry.start(&json!({
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": images}, "maintenance": {"uploadpurging": {"enabled": false}}},
            "http": {"addr": address.to_string()},
        }));
        Ok(Self {
            registry,
            address,
            folder: images,
        })
    }

    /// Returns how many requests it answered so far, but for those of this bench.
    fn requests(&self) -> usize {
        let log = self.registry.log();
        log.lines()
            .filter(|line| line.contains(" /v2/") && !line.contains(images::AGENT))
            .count()
    }

    /// Returns the time it ran on a CPU.
    fn cpu(&self) -> Duration {
        self.registry.id().map_or(Duration::ZERO, cpu_time)
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.registry.kill();
        // The folder of the bench is deleted in the end anyway; until then it would fill the disk.
        drop(fs::remove_dir_all(&self.folder));
        drop(fs::remove_file(self.registry.file("log")));
    }
}

/// What a run of a copier took.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    seconds: f64,
    /// Seconds on a CPU, of the copier and of both registries.
    cpu: f64,
    registries: f64,
    /// Requests to where images come from, and to where they go.
    asked: usize,
    written: usize,
}

impl Bench {
    /// Speed, requests and memory of copying.
    pub fn copies(&self, registry: Option<&Path>, bars: &mut Bars) -> Result<()> {
        let registry = registry.context("this needs a real registry: scripts/tools registry")?;
        let tools = registry.parent().context("the registry is in no folder")?;
        let (copiers, absent) = Copier::all(tools);
        for name in absent {
            println!(
                "  {name} is not there, and not measured: scripts/tools crane regctl regsync; Debian's skopeo"
            );
        }
        ensure!(
            copiers.contains(&Copier::Crane),
            "without crane there is nothing to measure beside"
        );
        let sizes = &self.plan.copies;
        let around = Around {
            bench: self,
            registry,
            tools,
        };
        let source = Shelf::start(registry, self.folder.path(), "upstream")?;
        let all = images::of(self.seed, sizes.images, Size::Seven);
        images::push(source.address, &all)?;
        self.near(&around, &source, &copiers, &all, bars)?;
        self.far(&around, &source, &copiers, &all[..sizes.far], bars)?;
        around.requests(&source, bars)?;
        around.unchanged(&source, &copiers, sizes.unchanged, bars)?;
        drop(source);
        around.memory(sizes.large, bars)
    }

    fn near(
        &self,
        around: &Around<'_>,
        source: &Shelf,
        copiers: &[Copier],
        images: &[Image],
        bars: &mut Bars,
    ) -> Result<()> {
        let blobs = images::blobs(images);
        println!(
            "\n{} images of {} blobs ({} MiB) from one registry to another, a fresh one each time",
            images.len(),
            blobs.len(),
            blobs.values().sum::<usize>() >> 20
        );
        for (parallel, times) in [(1, 1.5), (4, 1.2)] {
            let runs = around.rounds(source, None, copiers, images, parallel, self.plan.copies.rounds)?;
            let table = Table::of(&runs);
            table.print(parallel);
            let (fastest, bare) = (table.fastest_rival(), table.against(Copier::Bare));
            println!(
                "  Kagami: {fastest:.2} times as fast as {}, {bare:.2} of the least requests",
                table.fastest
            );
            bars.at_least(
                format!("{parallel} at once: {times} of the fastest rival, or 0.9 of the least"),
                (fastest / times).max(bare / 0.9),
                1.0,
                "",
            );
            if parallel == 1 {
                let cpu =
                    table.figure(Copier::Kagami, |run| run.cpu) / table.figure(Copier::Crane, |run| run.cpu);
                bars.at_most("CPU time against crane's, one at a time", cpu, 0.7, "×");
            }
        }
        Ok(())
    }

    fn far(
        &self,
        around: &Around<'_>,
        source: &Shelf,
        copiers: &[Copier],
        images: &[Image],
        bars: &mut Bars,
    ) -> Result<()> {
        println!(
            "\n{} of them with {DELAY:?} each way to both registries",
            images.len()
        );
        for parallel in [1, 4] {
            let rounds = self.plan.copies.far_rounds;
            let runs = around.rounds(source, Some(DELAY), copiers, images, parallel, rounds)?;
            let table = Table::of(&runs);
            table.print(parallel);
            bars.at_least(
                format!("{parallel} at once, far away: against {}", table.fastest),
                table.fastest_rival(),
                2.0,
                "×",
            );
        }
        Ok(())
    }
}

/// What all measurements have at hand.
struct Around<'b> {
    bench: &'b Bench,
    registry: &'b Path,
    tools: &'b Path,
}

impl Around<'_> {
    /// Lets each copier bring the images once a round, and returns what that took.
    fn rounds(
        &self,
        source: &Shelf,
        delay: Option<Duration>,
        copiers: &[Copier],
        images: &[Image],
        parallel: usize,
        rounds: usize,
    ) -> Result<BTreeMap<Copier, Vec<Run>>> {
        let mut runs: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for round in 0..rounds {
            for turn in 0..copiers.len() {
                // Another one begins each round.
                let copier = copiers[(turn + round) % copiers.len()];
                let target = Shelf::start(self.registry, self.bench.folder.path(), "mirror")?;
                let run = self.run(copier, source, &target, delay, images, parallel)?;
                images::check(target.address, images).with_context(|| copier.name())?;
                runs.entry(copier).or_default().push(run);
            }
        }
        Ok(runs)
    }

    /// Lets a copier bring images from one registry to the other.
    fn run(
        &self,
        copier: Copier,
        source: &Shelf,
        target: &Shelf,
        delay: Option<Duration>,
        images: &[Image],
        parallel: usize,
    ) -> Result<Run> {
        let relays = delay
            .map(|delay| {
                anyhow::Ok((
                    Relay::start(source.address, delay)?,
                    Relay::start(target.address, delay)?,
                ))
            })
            .transpose()?;
        let (from, to) = relays
            .as_ref()
            .map_or((source.address, target.address), |(from, to)| {
                (from.address, to.address)
            });
        let work = Work {
            folder: self.bench.folder.path(),
            tools: self.tools,
            kagami: &self.bench.own,
            from,
            to,
            images,
            parallel,
        };
        let mut command = copier.command(&work)?;
        let log = self.bench.folder.path().join("copier.log");
        let file = fs::File::create(&log)?;
        command.stdout(file.try_clone()?).stderr(file);
        let before = (source.cpu() + target.cpu(), source.requests(), target.requests());
        let (cpu, start) = (of_children()?, Instant::now());
        let status = command.status().with_context(|| format!("{copier:?}"))?;
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), of_children()?.saturating_sub(cpu));
        ensure!(
            status.success(),
            "{copier:?} failed: {:.2000}",
            fs::read_to_string(&log)?
        );
        Ok(Run {
            seconds,
            cpu: cpu.as_secs_f64(),
            registries: (source.cpu() + target.cpu())
                .saturating_sub(before.0)
                .as_secs_f64(),
            asked: source.requests() - before.1,
            written: target.requests() - before.2,
        })
    }

    /// How many requests an image takes that is new.
    fn requests(&self, source: &Shelf, bars: &mut Bars) -> Result<()> {
        println!("\nRequests for a new image of seven blobs");
        let image = images::of(self.bench.seed.wrapping_add(1), 1, Size::Seven);
        images::push(source.address, &image)?;
        for (copier, bar) in [
            (Copier::Kagami, Some(25)),
            (Copier::KagamiReferrers, Some(30)),
            (Copier::Crane, None),
        ] {
            let target = Shelf::start(self.registry, self.bench.folder.path(), "mirror")?;
            let run = self.run(copier, source, &target, None, &image, 1)?;
            println!(
                "  {:<24} {:>3} upstream, {:>3} at the mirror",
                copier.name(),
                run.asked,
                run.written
            );
            if let Some(bar) = bar {
                let all = of_count(run.asked + run.written);
                bars.at_most(
                    format!("requests for a new image, {}", copier.name()),
                    all,
                    f64::from(bar),
                    "",
                );
            }
        }
        Ok(())
    }

    /// What it takes to find that all is there.
    fn unchanged(&self, source: &Shelf, copiers: &[Copier], count: usize, bars: &mut Bars) -> Result<()> {
        println!("\n{count} images that are there already, four at once");
        let images = images::of(self.bench.seed.wrapping_add(2), count, Size::Small);
        images::push(source.address, &images)?;
        let target = Shelf::start(self.registry, self.bench.folder.path(), "mirror")?;
        self.run(Copier::Kagami, source, &target, None, &images, 4)?;
        let mut runs = BTreeMap::new();
        for copier in copiers.iter().copied().filter(|copier| *copier != Copier::Bare) {
            let run = self.run(copier, source, &target, None, &images, 4)?;
            println!(
                "  {:<24} {:>7.2} s, CPU {:>6.2} s, {:>5} requests upstream, {:>5} at the mirror",
                copier.name(),
                run.seconds,
                run.cpu,
                run.asked,
                run.written
            );
            runs.insert(copier, run);
        }
        let own = runs.get(&Copier::Kagami).context("Kagami was not measured")?;
        let each = of_count(own.asked) / of_count(count);
        bars.at_most("an unchanged image: requests upstream", each, 1.0, "");
        let each = of_count(own.written) / of_count(count);
        bars.at_most("an unchanged image: requests at the mirror", each, 1.0, "");
        Ok(())
    }

    /// How much memory large layers take on their way.
    fn memory(&self, bytes: usize, bars: &mut Bars) -> Result<()> {
        println!("\nFour layers of {} MiB at once", bytes >> 20);
        let source = Shelf::start(self.registry, self.bench.folder.path(), "upstream")?;
        let target = Shelf::start(self.registry, self.bench.folder.path(), "mirror")?;
        let mut peaks = Vec::new();
        for (seed, size) in [(3, Size::Small), (4, Size::Large(bytes))] {
            let images = images::of(self.bench.seed.wrapping_add(seed), 4, size);
            images::push(source.address, &images)?;
            let work = Work {
                folder: self.bench.folder.path(),
                tools: self.tools,
                kagami: &self.bench.own,
                from: source.address,
                to: target.address,
                images: &images,
                parallel: 4,
            };
            let command = Copier::Kagami.command(&work)?;
            peaks.push(peak_of(&command, self.bench.folder.path())?);
            images::check(target.address, &images)?;
        }
        let [small, large] = peaks[..] else {
            anyhow::bail!("not measured twice")
        };
        println!("  peak {large:.1} MiB, with small ones {small:.1} MiB");
        bars.at_most(
            "four large layers: memory above small ones",
            large - small,
            64.0,
            "MiB",
        );
        Ok(())
    }
}

/// Runs a program and returns the most memory that it had, in MiB.
fn peak_of(command: &Command, folder: &Path) -> Result<f64> {
    let mut process = Process::start("copying", command, folder);
    let mut peak = 0.0_f64;
    loop {
        // What has ended has no memory any more to be read.
        let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        peak = peak.max(kib.unwrap_or(0.0) / 1024.0);
        if let Some(status) = process.ended() {
            ensure!(status.success(), "it failed: {}", process.log_tail());
            return Ok(peak);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the time that programs ran on a CPU which this one started and waited for, and theirs (proc(5), 16 and 17).
fn of_children() -> io::Result<Duration> {
    const TICKS_PER_SECOND: u32 = 100;
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let times = fields.split(' ').skip(13).take(2);
    let ticks: u32 = times.filter_map(|field| field.parse::<u32>().ok()).sum();
    Ok(Duration::from_secs(1) * ticks / TICKS_PER_SECOND)
}

fn of_count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

/// What all copiers took.
struct Table<'r> {
    runs: &'r BTreeMap<Copier, Vec<Run>>,
    fastest: &'static str,
}

impl<'r> Table<'r> {
    fn of(runs: &'r BTreeMap<Copier, Vec<Run>>) -> Self {
        let mut table = Self { runs, fastest: "" };
        let rivals = runs.keys().filter(|copier| copier.is_rival());
        let fastest = rivals.min_by(|one, other| {
            let seconds = |copier: &&Copier| table.figure(**copier, |run| run.seconds);
            seconds(one).total_cmp(&seconds(other))
        });
        table.fastest = fastest.map_or("nobody", |copier| copier.name());
        table
    }

    fn figure(&self, copier: Copier, figure: fn(&Run) -> f64) -> f64 {
        median(self.runs.get(&copier).into_iter().flatten().map(figure))
    }

    /// Returns how many times as fast as another one Kagami is, by the rounds beside each other.
    fn against(&self, other: Copier) -> f64 {
        let of = |copier| self.runs.get(&copier).into_iter().flatten();
        median(
            of(Copier::Kagami)
                .zip(of(other))
                .map(|(own, other)| other.seconds / own.seconds),
        )
    }

    fn fastest_rival(&self) -> f64 {
        let rivals = self.runs.keys().filter(|copier| copier.is_rival());
        rivals
            .map(|copier| self.against(*copier))
            .fold(f64::INFINITY, f64::min)
    }

    fn print(&self, parallel: usize) {
        println!(
            "  {parallel} at once {:<14} {:>9} {:>9} {:>12} {:>9} {:>9}",
            "", "s", "CPU s", "registries'", "asked", "written"
        );
        for copier in self.runs.keys() {
            let of = |figure| self.figure(*copier, figure);
            println!(
                "  {:<24} {:>9.2} {:>9.2} {:>12.2} {:>9.0} {:>9.0}",
                copier.name(),
                of(|run| run.seconds),
                of(|run| run.cpu),
                of(|run| run.registries),
                of(|run| of_count(run.asked)),
                of(|run| of_count(run.written)),
            );
        }
    }
}
