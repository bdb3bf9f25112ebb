//! What a review costs in this process, without network: criterion's view, for comparing changes.
//! The bars are held by the other bench.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "modules of the other bench, of which not all is needed here"
)]

#[path = "throughput/image.rs"]
mod image;
#[path = "throughput/payload.rs"]
mod payload;
#[path = "throughput/world.rs"]
mod world;

use std::{cell::LazyCell, hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::FutureExt as _;
use kagami::domain::{image::Reference, mirror::Mode};

use payload::{Images, Payload};
use world::World;

const KNOWN: [usize; 3] = [1, 100, 100_000];

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("Reference::parse");
    for text in ["nginx", "acme/payments-000001:v1.27.3", "quay.io:443/a/b/c:v1"] {
        group.bench_function(text, |bencher| {
            bencher.iter(|| Reference::parse(black_box(text)).is_ok());
        });
    }
}

/// Decide, settle and patch for a Pod of five images.
fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide, 5 images");
    for known in KNOWN {
        let world = LazyCell::new(|| World::new(known).expect("the state is valid"));
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(known), |bencher| {
            bencher.iter_batched_ref(
                || {
                    // An order that no cache can guess.
                    let numbers = std::array::from_fn::<_, 5, _>(|place| (next + place) * 61_803 % known);
                    next += 5;
                    numbers.map(payload::image)
                },
                |images| world.decide(&World::request(images)),
                criterion::BatchSize::SmallInput,
            );
        });
    }
}

/// The whole path from a review's bytes to the answer's.
fn review(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("Admission::review");
    for (init_containers, containers) in [(0, 1), (2, 3)] {
        for known in KNOWN {
            let mut payload = Payload::new("/", init_containers, containers).expect("the review is JSON");
            let admission = LazyCell::new(|| world::admission(known).expect("the state is valid"));
            let size = payload.body().len();
            group.throughput(Throughput::Bytes(u64::try_from(size).expect("a few KB")));
            let mut number = 0;
            group.bench_function(BenchmarkId::new(format!("{size} bytes"), known), |bencher| {
                bencher.iter(|| {
                    number += 1;
                    payload.number(
                        number,
                        Images {
                            first: 0,
                            count: known,
                        },
                    );
                    let timeout = Some(Duration::from_secs(3));
                    // Known images cost no network, so there is nothing to wait for.
                    let answer = admission
                        .review(Mode::Enforce, payload.body(), timeout)
                        .now_or_never();
                    answer.expect("the images are known").expect("it is a review")
                });
            });
        }
    }
}

criterion_group!(benches, parse, decide, review);
criterion_main!(benches);
