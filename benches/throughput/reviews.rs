//! Reviews of known images: how many a second, how late, with how much memory.

use std::time::Instant;

use anyhow::Result;

use super::{
    bench::{ALL, Bench, LASTING, PATH, Rival, send_in_turn},
    client::Expected,
    payload::{Images, Payload},
    registry::Registry,
    report::Bars,
};

/// Connections of the load: one caller, a busy API server, all that an API server keeps (25 idle
/// connections a host, k8s.io/client-go's transport/cache.go).
const CONNECTIONS: [usize; 3] = [1, 16, 25];

/// Numbers of known images.
const KNOWN: [usize; 3] = [1, 1_000, 100_000];

impl Bench {
    /// Reviews of known images, in closed and open loop; memory.
    pub fn reviews(&self, bars: &mut Bars) -> Result<()> {
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
            self.closed(size, &rivals, &CONNECTIONS, bar, bars)?;
            println!("{size} reviews, open loop, 2,000/s over {ALL} connections");
            let (echo, kagami) = self.open(&rivals[0], &rivals[3], 2_000)?;
            let bar = f64::max(1.0, echo + 1.0);
            bars.at_most(format!("{size}: open loop 2,000/s, p99"), kagami, bar, "ms");
        }
        let [one, _, many] = [0, 1, 2].map(|index| kagamis[index].process.memory("VmHWM"));
        println!("\nPeak memory with 1 image {one:.1} MiB, with 100,000 images {many:.1} MiB");
        bars.at_most(
            "memory of 100,000 images above that of 1",
            many - one,
            64.0,
            "MiB",
        );
        Ok(())
    }
}
