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
mod payload;
mod process;
mod registry;
mod report;
mod reviews;
mod roles;
mod sweep;
mod world;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use bench::{Bench, FULL, QUICK};
use report::Bars;

const USAGE: &str = "usage: throughput [--quick] [--registry PROGRAM] [PART...]
parts: decision, reviews, faults, sweep, cluster (or of it: replica, creates, companion)";

/// What can be measured, in the order in which it is.
const PARTS: [&str; 7] = [
    "decision",
    "reviews",
    "faults",
    "sweep",
    "replica",
    "creates",
    "companion",
];

/// The parts that need a cluster.
const CLUSTER: [&str; 3] = ["replica", "creates", "companion"];

fn main() -> Result<ExitCode> {
    let provider = rustls::crypto::ring::default_provider();
    provider
        .install_default()
        .map_err(|_| anyhow::anyhow!("there is a crypto provider already"))?;
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
            "cluster" => parts.extend(CLUSTER),
            part if PARTS.contains(&part) => parts.push(part),
            _ => bail!(USAGE),
        }
    }
    if parts.is_empty() {
        parts.extend(PARTS);
    }
    // Before anything is measured, because that takes minutes.
    let needs_cluster = parts.iter().any(|part| CLUSTER.contains(part));
    let tools = needs_cluster.then(cluster::tools).transpose()?;
    let start = Instant::now();
    let bench = Bench::new(plan)?;
    let mut bars = Bars::default();
    for part in PARTS.into_iter().filter(|part| parts.contains(part)) {
        match (part, &tools) {
            ("decision", _) => bench.decision(&mut bars)?,
            ("reviews", _) => bench.reviews(&mut bars)?,
            ("faults", _) => bench.faults(&mut bars)?,
            ("sweep", _) => bench.sweep(program.as_deref(), &mut bars)?,
            ("replica", Some(tools)) => bench.replica(tools, &mut bars)?,
            ("creates", Some(tools)) => bench.creates(tools, &mut bars)?,
            ("companion", Some(tools)) => bench.companion(tools, &mut bars)?,
            _ => {}
        }
    }
    println!("\nBars ({} s)\n{bars}", start.elapsed().as_secs());
    Ok(if bars.hold() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
