//! The decision alone, in this process: decide, settle and patch for Pods of five images each, with
//! few and with many images known.

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{payload, world::World};

/// Pods that are decided in turn. With the images of a Pod they walk over 100,000 images, in an order
/// that no cache can guess.
const PODS: usize = 20_000;

/// Images of one Pod.
const WIDTH: usize = 5;

/// Returns the shortest time of one decision in nanoseconds, for each number of known images: the
/// best of `rounds` that alternate, because all else is noise from outside.
pub fn times<const N: usize>(known: [usize; N], rounds: usize) -> Result<[f64; N]> {
    let worlds = known.map(World::new);
    let mut pods = Vec::with_capacity(N);
    for count in known {
        let of_one: Vec<[String; WIDTH]> = (0..PODS)
            .map(|pod| std::array::from_fn(|place| payload::image(shuffled(pod * WIDTH + place) % count)))
            .collect();
        pods.push(of_one);
    }
    let mut best = [f64::INFINITY; N];
    for _ in 0..rounds {
        for ((world, pods), best) in worlds.iter().zip(&pods).zip(&mut best) {
            let world = world.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
            let requests: Vec<_> = pods.iter().map(|images| World::request(images)).collect();
            let start = Instant::now();
            for request in &requests {
                let patch = world.decide(request).context("nothing was rewritten")?;
                std::hint::black_box(patch);
            }
            let count = u32::try_from(PODS)?;
            *best = best.min((start.elapsed() / count).as_secs_f64() * 1e9);
        }
    }
    Ok(best)
}

/// Returns numbers in an order without pattern, each once in 100,003 (a prime).
const fn shuffled(number: usize) -> usize {
    number * 61_803 % 100_003 % 100_000
}
