//! Measures what Kagami promises of speed, against a bare echo of the same stack
//! in the same run, and fails if a bar is missed. `scripts/bench` runs it.
//!
//! The echo, each Kagami, the bare HEADs and the programs of a cluster are processes of their own; the
//! load and the stub registry live in this one. All share the machine, so the rounds of the echo and of
//! Kagami alternate and medians are compared: only ratios of one run mean something.

#![expect(clippy::print_stdout, reason = "the table is what this program is for")]
#![expect(unreachable_pub, reason = "modules of a program")]

mod answers;
mod bench;
mod client;
mod cluster;
mod copies;
mod decision;
#[allow(
    dead_code,
    unused_imports,
    unused_macros,
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "shared with the tests against an API server, where what goes wrong ends the test"
)]
#[path = "../../tests/support/mod.rs"]
mod e2e;
mod echo;
mod faults;
mod image;
mod noticing;
mod payload;
mod registry;
mod report;
mod rescue;
mod reviews;
mod roles;
mod scale;
mod sizes;
mod sweep;
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, bail};

use bench::{Bench, FULL, QUICK};
use report::Bars;
use roles::Build;

const USAGE: &str =
    "usage: throughput [--quick] [--registry PROGRAM] [--against NAME=PROGRAM] [--seed NUMBER] [PART...]
parts: decision, reviews, faults, sweep, cluster (or of it: replica, creates, companion),
       scale (or of it: bodies, builds, believed, fresh, deletion, finished, large),
       noticing (or of it: breaking, data, quiet, patience), rescue, copies";

/// What a part is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    /// As `kagami serve` does it, in a process by itself.
    Alone,
    /// Over a real API server.
    Cluster,
    /// With very much of everything, beside another build.
    Scale,
    /// How soon a mirror's fault is noticed, beside another build.
    Noticing,
    /// Very many Pods that are stuck.
    Rescue,
    /// Images from one registry to another, beside other programs.
    Copies,
}

/// What can be measured, in the order in which it is.
const PARTS: [(&str, Group); 20] = [
    ("decision", Group::Alone),
    ("reviews", Group::Alone),
    ("faults", Group::Alone),
    ("sweep", Group::Alone),
    ("replica", Group::Cluster),
    ("creates", Group::Cluster),
    ("companion", Group::Cluster),
    ("bodies", Group::Scale),
    ("builds", Group::Scale),
    ("believed", Group::Scale),
    ("fresh", Group::Scale),
    ("deletion", Group::Scale),
    ("finished", Group::Scale),
    ("large", Group::Scale),
    ("breaking", Group::Noticing),
    ("data", Group::Noticing),
    ("quiet", Group::Noticing),
    ("patience", Group::Noticing),
    ("rescue", Group::Rescue),
    ("copies", Group::Copies),
];

/// The parts that need the programs of a cluster.
const IN_CLUSTERS: [&str; 12] = [
    "replica",
    "creates",
    "companion",
    "believed",
    "fresh",
    "deletion",
    "finished",
    "breaking",
    "data",
    "quiet",
    "patience",
    "rescue",
];

fn main() -> Result<ExitCode> {
    let provider = rustls::crypto::ring::default_provider();
    provider
        .install_default()
        .map_err(|_| anyhow!("there is a crypto provider already"))?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["echo", folder, lengths @ ..] => {
            let lengths: Vec<usize> = lengths
                .iter()
                .map(|length| length.parse())
                .collect::<Result<_, _>>()?;
            echo::run(Path::new(folder), &lengths)?;
        }
        [noticing::lossy::ROLE, name] => noticing::lossy::serve(name)?,
        [copies::replay::ROLE, from, to, parallel, names] => {
            copies::replay::run(from.parse()?, to.parse()?, parallel.parse()?, names)?;
        }
        ["heads", registry, images] => sweep::heads(registry.parse()?, images.parse()?)?,
        words => return run(words),
    }
    Ok(ExitCode::SUCCESS)
}

fn run(words: &[&str]) -> Result<ExitCode> {
    let (mut plan, mut program, mut other, mut named) = (FULL, None, None, Vec::new());
    let mut seed = None;
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        match word {
            // `cargo bench` says this to every bench.
            "--bench" => {}
            "--quick" => plan = QUICK,
            "--registry" => program = Some(PathBuf::from(words.next().context(USAGE)?)),
            "--against" => other = Some(words.next().and_then(Build::of).context(USAGE)?),
            "--seed" => seed = Some(words.next().context(USAGE)?.parse()?),
            "cluster" => named.extend(parts_of(Group::Cluster)),
            "scale" => named.extend(parts_of(Group::Scale)),
            "noticing" => named.extend(parts_of(Group::Noticing)),
            part => {
                let known = PARTS.into_iter().find(|(name, _)| *name == part);
                named.push(known.context(USAGE)?.0);
            }
        }
    }
    if named.is_empty() {
        named.extend([Group::Alone, Group::Cluster].into_iter().flat_map(parts_of));
    }
    let parts = PARTS.into_iter().filter(|(name, _)| named.contains(name));
    // Before anything is measured, because that takes minutes.
    let beside_another = |name: &str, group| group == Group::Scale || name == "breaking";
    if other.is_none() && parts.clone().any(|(name, group)| beside_another(name, group)) {
        bail!("this is measured beside another build: scripts/bench builds one, or name it with --against");
    }
    let needs_cluster = parts.clone().any(|(name, _)| IN_CLUSTERS.contains(&name));
    let tools = needs_cluster.then(cluster::tools).transpose()?;
    let start = Instant::now();
    // Another one each time, unless a run is to be repeated.
    let seed = seed.unwrap_or_else(|| kagami::clock::now().as_millis());
    let bench = Bench::new(plan, other, seed)?;
    let mut bars = Bars::default();
    for (part, _) in parts {
        let began = Instant::now();
        let measure = || match (part, &tools) {
            ("decision", _) => bench.decision(&mut bars),
            ("reviews", _) => bench.reviews(&mut bars),
            ("faults", _) => bench.faults(&mut bars),
            ("sweep", _) => bench.sweep(program.as_deref(), &mut bars),
            ("replica", Some(tools)) => bench.replica(tools, &mut bars),
            ("creates", Some(tools)) => bench.creates(tools, &mut bars),
            ("companion", Some(tools)) => bench.companion(tools, &mut bars),
            ("bodies", _) => bench.bodies(&mut bars),
            ("builds", _) => bench.builds(&mut bars),
            ("believed", Some(tools)) => bench.believed(tools, &mut bars),
            ("fresh", Some(tools)) => bench.fresh(tools, &mut bars),
            ("deletion", Some(tools)) => bench.deletion(tools, &mut bars),
            ("finished", Some(tools)) => bench.finished(tools, &mut bars),
            ("large", _) => bench.large(&mut bars),
            ("breaking", Some(tools)) => bench.breaking(tools, &mut bars),
            ("data", Some(tools)) => bench.data(tools, &mut bars),
            ("quiet", Some(tools)) => bench.quiet(tools, &mut bars),
            ("patience", Some(tools)) => bench.patience(tools, &mut bars),
            ("rescue", Some(tools)) => bench.rescue(tools, &mut bars),
            ("copies", _) => bench.copies(program.as_deref(), &mut bars),
            _ => Ok(()),
        };
        // What is shared with the tests panics where something is wrong.
        let measured = catch_unwind(AssertUnwindSafe(measure));
        // The others are worth measuring all the same.
        if let Err(error) = measured.unwrap_or_else(|_| Err(anyhow!("it panicked"))) {
            println!("  {part} did not come to its end: {error:#}");
            bars.unfinished(part);
        }
        println!("({part}: {} s)", began.elapsed().as_secs());
    }
    println!("\nBars ({} s)\n{bars}", start.elapsed().as_secs());
    Ok(if bars.hold() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn parts_of(group: Group) -> impl Iterator<Item = &'static str> {
    let parts = PARTS.into_iter().filter(move |(_, of)| *of == group);
    parts.map(|(name, _)| name)
}
