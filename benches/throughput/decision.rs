//! The review without network, in this process: reading, deciding and answering, with few and with
//! many images known. CPU time counts, for what else runs on the machine must not.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::FutureExt as _;
use kagami::domain::mirror::Mode;
use rustix::time::{ClockId, clock_gettime};

use super::{
    bench::{Bench, median},
    payload::{self, Images, Payload},
    report::Bars,
    scale::spread,
    world::{self, World},
};

/// Reviews of one round. With five images each they walk over all images that are known, in an order
/// that no cache can guess.
const REVIEWS: usize = 20_000;

/// Reviews after which another number of known images has its turn: what disturbs from outside lasts longer, and so
/// disturbs all of them alike.
const IN_A_ROW: usize = 1_000;

/// Images of a Pod whose decision alone is measured.
const WIDTH: usize = 5;

/// CPU times of one review in microseconds: of each round, for each number of known images.
#[derive(Debug, Default)]
pub struct Times<const N: usize> {
    /// From the bytes of a 3 KB review to those of its answer.
    pub small: Vec<[f64; N]>,
    /// The same of a 9 KB review.
    pub typical: Vec<[f64; N]>,
    /// Of a typical review: decide, settle and patch alone.
    pub decision: Vec<[f64; N]>,
}

/// Measures `rounds` of which each has every number of known images in turn, many times.
pub fn times<const N: usize>(known: [usize; N], rounds: usize) -> Result<Times<N>> {
    let mut states = Vec::with_capacity(N);
    for count in known {
        states.push((World::new(count)?, world::admission(count)?, count));
    }
    let mut times = Times::default();
    let pods = known.map(|count| {
        let images =
            |pod| std::array::from_fn(|place| payload::image((shuffled(pod) * WIDTH + place) % count));
        (0..REVIEWS).map(images).collect::<Vec<[String; WIDTH]>>()
    });
    let mut asked = Vec::with_capacity(N);
    for ((world, ..), pods) in states.iter().zip(&pods) {
        asked.push((
            world,
            pods.iter()
                .map(|images| World::request(images))
                .collect::<Vec<_>>(),
        ));
    }
    for _ in 0..rounds {
        for (series, init_containers, containers) in [(&mut times.small, 0, 1), (&mut times.typical, 2, 3)] {
            let mut payload = Payload::new("/", init_containers, containers)?;
            series.push(in_turn(&states, |(_, admission, count), number| {
                let images = Images {
                    first: 0,
                    count: *count,
                };
                payload.number(shuffled(number), images);
                let timeout = Some(Duration::from_secs(3));
                // Known images cost no network, so there is nothing to wait for.
                let answer = admission
                    .review(Mode::Enforce, payload.body(), timeout)
                    .now_or_never();
                answer.context("it waits")?.context("it is refused")
            })?);
        }
        let decided = in_turn(&asked, |(world, requests), number| {
            world.decide(&requests[number]).context("nothing is rewritten")
        })?;
        times.decision.push(decided);
    }
    Ok(times)
}

/// Returns the CPU time of one call in microseconds, for each state.
fn in_turn<S, T, const N: usize>(
    states: &[S],
    mut work: impl FnMut(&S, usize) -> Result<T>,
) -> Result<[f64; N]> {
    let mut took = [Duration::ZERO; N];
    for first in (0..REVIEWS).step_by(IN_A_ROW) {
        for (state, took) in states.iter().zip(&mut took) {
            let before = thread_cpu_time();
            for number in first..first + IN_A_ROW {
                std::hint::black_box(work(state, number)?);
            }
            *took += thread_cpu_time().saturating_sub(before);
        }
    }
    let reviews = u32::try_from(REVIEWS)?;
    Ok(took.map(|took| (took / reviews).as_secs_f64() * 1e6))
}

/// Returns the time that this thread has run on a CPU, to the nanosecond. What `/proc` tells of it grows by ticks of
/// the scheduler, some milliseconds each.
fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Returns numbers below 20,011 (a prime) in an order without pattern, each once.
const fn shuffled(number: usize) -> usize {
    number * 6_180 % 20_011
}

impl Bench {
    /// Decision time: few against many images.
    pub fn decision(&self, bars: &mut Bars) -> Result<()> {
        let known = [100, 100_000];
        let times = times(known, self.plan.rounds)?;
        println!(
            "\nOne review without network, CPU µs (the least of {} rounds)",
            self.plan.rounds
        );
        println!("  {:<40} {:>8} {:>8}", "known images", known[0], known[1]);
        let rows = [
            ("3 KB, bytes to bytes", &times.small),
            ("9 KB, bytes to bytes", &times.typical),
            ("9 KB, decide, settle and patch alone", &times.decision),
        ];
        for (name, rounds) in rows {
            let [few, many] =
                [0, 1].map(|of| rounds.iter().map(|round| round[of]).fold(f64::INFINITY, f64::min));
            println!(
                "  {name:<40} {few:>8.2} {many:>8.2}  ratio {}",
                spread(&ratios(rounds))
            );
        }
        for (name, rounds) in [("9 KB", &times.typical), ("3 KB", &times.small)] {
            let name = format!("{name}: decision time, 100 → 100,000 images");
            bars.at_most(name, median(ratios(rounds)), 1.15, "×");
        }
        Ok(())
    }
}

/// Returns by how much more many images cost than few, in each round.
fn ratios(rounds: &[[f64; 2]]) -> Vec<f64> {
    rounds.iter().map(|[few, many]| many / few).collect()
}
