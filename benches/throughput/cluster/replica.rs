//! A replica of the webhook that knows many images from the API server.

use std::time::{Duration, Instant};

use anyhow::Result;
use kagami::domain::time::Timestamp;

use super::{
    super::{
        bench::{Bench, PATH, Rival, send_in_turn},
        client::{Expected, closed_loop},
        e2e::tools::Tools,
        payload::{Images, Payload},
        report::Bars,
        roles::{Build, Kagami, MIRROR},
    },
    objects::create_images,
    place::{Place, with_healthy_mirror},
};

/// Connections of the load: a busy API server, all that an API server keeps.
const CONNECTIONS: [usize; 2] = [16, 25];

/// Init containers and containers of the Pods, and the bar of reviews against the echo's.
const SHAPES: [(&str, usize, usize, f64); 2] = [("cluster, 3 KB", 0, 1, 0.65), ("cluster, 9 KB", 2, 3, 0.5)];

/// How long a replica may take until it believes what it loaded.
const PATIENCE: Duration = Duration::from_mins(2);

/// How long after its start a replica was so far.
#[derive(Clone, Copy, Debug)]
pub struct StartUp {
    pub loaded: Duration,
    pub ready: Duration,
    pub believed: Duration,
}

impl Bench {
    /// Memory, readiness and reviews of a replica.
    pub fn replica(&self, tools: &Tools, bars: &mut Bars) -> Result<()> {
        println!("\nA replica of the webhook over an API server");
        with_healthy_mirror(tools, &self.own, |place, _, now| {
            self.replica_in(place, now, bars)
        })
    }

    fn replica_in(&self, place: &Place<'_>, now: Timestamp, bars: &mut Bars) -> Result<()> {
        let known = self.plan.images;
        create_images(place.cluster, 0..1, now, now)?;
        let one = self.replica_of(place, 1)?;
        let mut lengths = Vec::new();
        for (_, init_containers, containers, _) in SHAPES {
            // The load that the other replica gets too, because it takes memory as well.
            let payload = Payload::new(PATH, init_containers, containers)?;
            let target = self.target(&one, &payload, Images { first: 0, count: 1 }, Expected::Rewritten);
            lengths.push((init_containers, containers, send_in_turn(&target, 2)?));
            for connections in CONNECTIONS {
                closed_loop(&target, connections, self.plan.round)?;
            }
        }
        let memory_of_one = one.process.memory("VmHWM");
        drop(one);

        let took = create_images(place.cluster, 1..known, now, now)?;
        println!(
            "  {known} MirroredImages written after {:.1} s",
            took.as_secs_f64()
        );
        let kagami = self.replica_of(place, known)?;
        let (_echo, echoes) = self.echo(&lengths)?;
        for ((size, init_containers, containers, bar), echo) in SHAPES.into_iter().zip(&echoes) {
            let payload = Payload::new(PATH, init_containers, containers)?;
            let images = Images {
                first: 0,
                count: known,
            };
            let target = self.target(&kagami, &payload, images, Expected::Rewritten);
            println!(
                "\n{size} reviews ({} bytes of body), closed loop",
                payload.body().len()
            );
            let rivals = [
                Rival {
                    name: "echo".to_owned(),
                    target: echo.clone(),
                },
                Rival {
                    name: format!("webhook, {known} images"),
                    target,
                },
            ];
            self.closed(size, &rivals, &CONNECTIONS, bar, bars)?;
        }
        let memory = kagami.process.memory("VmHWM");
        println!("\nPeak memory with 1 image {memory_of_one:.1} MiB, with {known} images {memory:.1} MiB");
        bars.at_most(
            format!("cluster: memory of {known} images above that of 1"),
            memory - memory_of_one,
            64.0,
            "MiB",
        );
        Ok(())
    }

    /// Starts a replica that knows so many images and waits until it is ready.
    pub fn replica_of(&self, place: &Place<'_>, known: usize) -> Result<Kagami> {
        let (kagami, times) = self.replica_of_build(&self.own, place, known)?;
        println!(
            "  {known} images loaded after {:.2} s, ready after {:.2} s, believed after {:.2} s \
             (the heart beats each second)",
            times.loaded.as_secs_f64(),
            times.ready.as_secs_f64(),
            times.believed.as_secs_f64()
        );
        Ok(kagami)
    }

    /// The same of a build.
    pub fn replica_of_build(
        &self,
        build: &Build,
        place: &Place<'_>,
        known: usize,
    ) -> Result<(Kagami, StartUp)> {
        let start = Instant::now();
        let kagami = self.begin_replica(build, place);
        let times = start_up(&kagami, start, known)?;
        Ok((kagami, times))
    }

    /// Starts a replica of a build and waits for nothing but its addresses.
    pub fn begin_replica(&self, build: &Build, place: &Place<'_>) -> Kagami {
        Kagami::replica(
            build,
            self.folder.path(),
            &place.kubeconfig("admin"),
            &place.own.name,
        )
    }
}

/// Waits until a replica that was begun at `start` believes so many images.
pub fn start_up(kagami: &Kagami, start: Instant, known: usize) -> Result<StartUp> {
    let admin = kagami.admin;
    admin.wait_for_readiness("all images to be loaded", |_, text| {
        !text.contains("mirroredimages")
    })?;
    let loaded = start.elapsed();
    admin.wait_for_readiness("the replica to be ready", |code, _| code == 200)?;
    let ready = start.elapsed();
    let count = u64::try_from(known)?;
    admin.wait_long("all images to be known and believed", PATIENCE, |status| {
        let stale = &status["cluster"]["mirrors"][MIRROR]["stale"];
        status["mirrors"][MIRROR]["images"]["present"] == count && *stale == false
    })?;
    Ok(StartUp {
        loaded,
        ready,
        believed: start.elapsed(),
    })
}
