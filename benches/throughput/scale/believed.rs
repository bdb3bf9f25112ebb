//! A replica of the webhook that starts: until it knows and believes all images.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use kagami::domain::time::Timestamp;

use super::{
    super::{
        bench::{Bench, PATH, median},
        client::{Expected, open_loop},
        cluster::{
            objects::{create_images, write_images_again},
            place::{Place, with_healthy_mirror},
            replica::start_up,
        },
        e2e::process::cpu_time,
        e2e::{reader::Heart, tools::Tools},
        payload::{Images, Payload},
        registry::Registry,
        report::Bars,
        roles::Build,
    },
    ratios, spread,
};

/// Hearts beside the usual one. Each beats once a second; begun apart, they tell a replica at any time that the
/// state is fresh, so that what is measured does not depend on when the next beat comes.
const HEARTS: u32 = 3;

/// What a replica may take of the older build's time, and of its API server's.
const SOONER: f64 = 0.5;

/// Reviews a second that a replica gets while it starts, over so many connections, in runs of that length.
const REVIEWS: u32 = 300;
const CONNECTIONS: usize = 4;
const RUN: Duration = Duration::from_millis(500);

/// Images of one run, each in one review.
const A_RUN: usize = 150;

/// How long an API server is left alone with what a replica leaves behind.
const PAUSE: Duration = Duration::from_secs(2);

impl Bench {
    /// How long a replica takes, and what it costs the API server.
    pub fn believed(&self, tools: &Tools, bars: &mut Bars) -> Result<()> {
        println!("\nReplicas of the webhook that start, in turn, each over an API server of its build");
        let [other, own] = self.builds_in_turn()?;
        with_healthy_mirror(tools, other, |place_of_other, mirror_of_other, at_other| {
            with_healthy_mirror(tools, own, |place, mirror, now| {
                let places = [(other, place_of_other, at_other), (own, place, now)];
                self.believed_in(places, bars)?;
                let places = [(other, place_of_other, mirror_of_other), (own, place, mirror)];
                self.probes_of_starts(places, bars)
            })
        })
    }

    /// How many manifests replicas ask a mirror for while they start under load, though all are known.
    fn probes_of_starts(&self, places: [(&Build, &Place<'_>, &Registry); 2], bars: &mut Bars) -> Result<()> {
        let known = self.plan.scale.known;
        let mut asked = [0_u32; 2];
        for _ in 0..self.plan.scale.starts.div_ceil(2) {
            for ((build, place, mirror), asked) in places.into_iter().zip(&mut asked) {
                let before = mirror.gets();
                let start = Instant::now();
                let kagami = self.begin_replica(build, place);
                let payload = Payload::new(PATH, 0, 1)?;
                let is_known = AtomicBool::new(false);
                thread::scope(|scope| {
                    let load = scope.spawn(|| -> Result<()> {
                        // Other images in each run: one that was asked for is known from then on, however long the
                        // rest takes.
                        for first in (0..known).step_by(A_RUN) {
                            if is_known.load(Ordering::Relaxed) {
                                break;
                            }
                            let count = A_RUN.min(known - first);
                            let images = Images { first, count };
                            let target = self.target(&kagami, &payload, images, Expected::Allowed);
                            open_loop(&target, CONNECTIONS, REVIEWS, RUN)?;
                        }
                        Ok(())
                    });
                    let started = start_up(&kagami, start, known);
                    is_known.store(true, Ordering::Relaxed);
                    load.join().map_err(|_| anyhow!("the load panicked"))??;
                    started
                })?;
                *asked += u32::try_from(mirror.gets() - before)?;
            }
        }
        let [other, own] = asked;
        let beside = &places[0].0.name;
        println!(
            "  manifests asked for while starting at {REVIEWS} reviews a second: {own}, {beside} {other}"
        );
        bars.at_most(
            format!("replica with {known} images: manifests asked for while starting, and {beside}'s"),
            own.into(),
            other.into(),
            "",
        );
        Ok(())
    }

    fn believed_in(&self, places: [(&Build, &Place<'_>, Timestamp); 2], bars: &mut Bars) -> Result<()> {
        let known = self.plan.scale.known;
        let mut hearts = Vec::new();
        for (build, place, now) in places {
            let mut took = create_images(place.cluster, 0..known, now, now)?;
            if build.name == self.own.name {
                // A build before this one leaves them as they were created.
                let a_second_later = now.after(Duration::from_secs(1));
                took += write_images_again(place.cluster, 0..known, a_second_later)?;
            }
            println!(
                "  {}: {known} MirroredImages written after {:.1} s",
                build.name,
                took.as_secs_f64()
            );
            for _ in 0..HEARTS {
                thread::sleep(Duration::from_secs(1) / (HEARTS + 1));
                hearts.push(Heart::beat(place.cluster, &place.own.name));
            }
        }
        let [mut times, mut costs]: [[Vec<f64>; 2]; 2] = Default::default();
        for round in 0..self.plan.scale.starts {
            for position in 0..places.len() {
                let turn = if round.is_multiple_of(2) {
                    position
                } else {
                    1 - position
                };
                let (build, place, _) = places[turn];
                let api_server = place.cluster.api_server();
                thread::sleep(PAUSE);
                let before = cpu_time(api_server);
                let (_kagami, start_up) = self.replica_of_build(build, place, known)?;
                let cost = cpu_time(api_server).saturating_sub(before);
                times[turn].push(start_up.believed.as_secs_f64());
                costs[turn].push(cost.as_secs_f64());
            }
        }
        for ((build, ..), (times, costs)) in places.iter().zip(times.iter().zip(&costs)) {
            println!(
                "  {}: all known and believed after {:.2} s, for {:.2} s of the API server's CPU (medians)",
                build.name,
                median(times.iter().copied()),
                median(costs.iter().copied())
            );
        }
        let ([other_times, own_times], [other_costs, own_costs]) = (times, costs);
        let beside = &places[0].0.name;
        let compared = [
            ("time until believed", ratios(&own_times, &other_times)),
            ("the API server's CPU", ratios(&own_costs, &other_costs)),
        ];
        for (what, ratios) in compared {
            println!("  {what}, own to the other's: {}", spread(&ratios));
            let name = format!("replica with {known} images: {what} against {beside}'s");
            bars.at_most(name, median(ratios), SOONER, "×");
        }
        Ok(())
    }
}
