//! A replica of the webhook that starts: until it knows and believes all images.

use std::{thread, time::Duration};

use anyhow::Result;
use kagami::domain::time::Timestamp;

use super::{
    super::{
        bench::{Bench, median},
        cluster::{
            objects::create_images,
            place::{Place, with_healthy_mirror},
        },
        e2e::process::cpu_time,
        e2e::{reader::Heart, tools::Tools},
        report::Bars,
        roles::Build,
    },
    NO_WORSE, ratios, spread,
};

/// Hearts beside the usual one. Each beats once a second; begun apart, they tell a replica at any time that the
/// state is fresh, so that what is measured does not depend on when the next beat comes.
const HEARTS: u32 = 3;

/// How long an API server is left alone with what a replica leaves behind.
const PAUSE: Duration = Duration::from_secs(2);

impl Bench {
    /// How long a replica takes, and what it costs the API server.
    pub fn believed(&self, tools: &Tools, bars: &mut Bars) -> Result<()> {
        println!("\nReplicas of the webhook that start, in turn, each over an API server of its build");
        let [other, own] = self.builds_in_turn()?;
        with_healthy_mirror(tools, other, |place_of_other, at_other| {
            with_healthy_mirror(tools, own, |place, now| {
                self.believed_in([(other, place_of_other, at_other), (own, place, now)], bars)
            })
        })
    }

    fn believed_in(&self, places: [(&Build, &Place<'_>, Timestamp); 2], bars: &mut Bars) -> Result<()> {
        let known = self.plan.scale.known;
        let mut hearts = Vec::new();
        for (build, place, now) in places {
            let took = create_images(place.cluster, 0..known, now, now)?;
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
            bars.at_most(name, median(ratios), NO_WORSE, "×");
        }
        Ok(())
    }
}
