//! The review without network, in this process: reading, deciding and answering, with few and with
//! many images known. CPU time counts, for what else runs on the machine must not.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use futures_util::FutureExt as _;
use kagami::domain::mirror::Mode;

use super::{
    bench::Bench,
    payload::{self, Images, Payload},
    report::Bars,
    world::{self, World},
};

/// Reviews of one round. With five images each they walk over all images that are known, in an order
/// that no cache can guess.
const REVIEWS: usize = 20_000;

/// Images of a Pod whose decision alone is measured.
const WIDTH: usize = 5;

/// The shortest CPU time of one review in microseconds, for each number of known images.
#[derive(Debug)]
pub struct Times<const N: usize> {
    /// From the bytes of a 3 KB review to those of its answer.
    pub small: [f64; N],
    /// The same of a 9 KB review.
    pub typical: [f64; N],
    /// Of a typical review: decide, settle and patch alone.
    pub decision: [f64; N],
}

/// Returns the best of `rounds` that alternate, because all else is noise from outside.
pub fn times<const N: usize>(known: [usize; N], rounds: usize) -> Result<Times<N>> {
    let [small, typical, decision] = [[f64::INFINITY; N]; 3];
    let mut times = Times {
        small,
        typical,
        decision,
    };
    let mut states = Vec::with_capacity(N);
    for count in known {
        states.push((World::new(count)?, world::admission(count)?, count));
    }
    for _ in 0..rounds {
        for (index, (world, admission, count)) in states.iter().enumerate() {
            for (best, init_containers, containers) in [(&mut times.small, 0, 1), (&mut times.typical, 2, 3)]
            {
                let mut payload = Payload::new("/", init_containers, containers)?;
                let took = cpu_time_of(|number| {
                    payload.number(
                        shuffled(number),
                        Images {
                            first: 0,
                            count: *count,
                        },
                    );
                    let timeout = Some(Duration::from_secs(3));
                    // Known images cost no network, so there is nothing to wait for.
                    let answer = admission
                        .review(Mode::Enforce, payload.body(), timeout)
                        .now_or_never();
                    answer.context("it waits")?.context("it is refused")
                })?;
                best[index] = best[index].min(took);
            }
            let pods: Vec<[String; WIDTH]> = (0..REVIEWS)
                .map(|pod| {
                    std::array::from_fn(|place| payload::image((shuffled(pod) * WIDTH + place) % count))
                })
                .collect();
            let requests: Vec<_> = pods.iter().map(|images| World::request(images)).collect();
            let took = cpu_time_of(|number| world.decide(&requests[number]).context("nothing is rewritten"))?;
            times.decision[index] = times.decision[index].min(took);
        }
    }
    Ok(times)
}

/// Returns the CPU time of one call in microseconds.
fn cpu_time_of<T>(mut work: impl FnMut(usize) -> Result<T>) -> Result<f64> {
    let before = thread_cpu_time()?;
    for number in 0..REVIEWS {
        std::hint::black_box(work(number)?);
    }
    let took = thread_cpu_time()?.saturating_sub(before);
    Ok((took / u32::try_from(REVIEWS)?).as_secs_f64() * 1e6)
}

/// Returns the time that this thread has run on a CPU.
fn thread_cpu_time() -> Result<Duration> {
    let statistics = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = statistics
        .split(' ')
        .next()
        .context("no time in schedstat")?
        .parse()?;
    Ok(Duration::from_nanos(nanos))
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
}
