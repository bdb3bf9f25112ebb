//! A mirror that turns into a black hole.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    bench::{ALL, Bench, LASTING, PATH, Rival, send_in_turn, time_one},
    client::{Expected, closed_loop, open_loop},
    payload::{Images, Payload},
    registry::Registry,
    report::Bars,
};

/// The first number of images that no mirror was ever asked for.
const UNKNOWN: usize = 500_000;

/// How long Kagami gets to let go of what it began against a black hole.
const SETTLES: Duration = Duration::from_secs(20);

/// Kagami's default budget for probes, in milliseconds.
const BUDGET: f64 = 300.0;

impl Bench {
    /// A mirror that turns into a black hole.
    pub fn faults(&self, bars: &mut Bars) -> Result<()> {
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
            for _ in 0..self.plan.black_holes {
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

    /// Images that nobody knows, for a minute: first while the state takes the mirror for healthy, for
    /// longer than it would by its defaults, then while it knows. Whatever is begun must end.
    fn leaks(&self, bars: &mut Bars) -> Result<()> {
        let registry = Registry::start()?;
        let settings = format!("{LASTING}\nhealth: {{timeout: 10s, failureThreshold: 100}}");
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
        let look = || (kagami.process.descriptors(), kagami.process.memory("VmRSS"));
        let before = look();
        registry.freeze()?;
        let images = Images {
            first: UNKNOWN,
            count: 1_000,
        };
        let target = self.target(&kagami, &payload, images, Expected::Kept);
        let load = open_loop(&target, ALL, 50, self.plan.black_hole)?;
        let (p50, p99) = (load.percentile(50), load.percentile(99));
        let at_the_end = look();
        println!(
            "1,000 unknown images against a black hole, 50/s for {} s",
            self.plan.black_hole.as_secs()
        );
        println!("  p50 {p50:.3} ms  p99 {p99:.3} ms");
        bars.at_most("black hole, 1,000 unknown images: p99", p99, BUDGET + 20.0, "ms");
        // What was begun may last as long as its own timeout, and so may connections that idle.
        let start = Instant::now();
        let mut now = look();
        while (now.0 > before.0 || now.1 > before.1 + 8.0) && start.elapsed() < SETTLES {
            thread::sleep(Duration::from_millis(200));
            now = look();
        }
        println!(
            "  descriptors {}, {} at the end, {} after {:.1} s",
            before.0,
            at_the_end.0,
            now.0,
            start.elapsed().as_secs_f64()
        );
        println!(
            "  memory {:.1} MiB, {:.1} MiB at the end, {:.1} MiB then",
            before.1, at_the_end.1, now.1
        );
        let more = u32::try_from(now.0.saturating_sub(before.0))?;
        bars.at_most(
            "black hole, afterwards: descriptors more than before",
            more.into(),
            0.0,
            "",
        );
        bars.at_most(
            "black hole, afterwards: memory more than before",
            now.1 - before.1,
            8.0,
            "MiB",
        );
        Ok(())
    }
}
