//! Reviews of known images, this build's beside another's, round by round.

use anyhow::{Context as _, Result};

use super::{
    super::{
        bench::{Bench, LASTING, PATH},
        client::{Expected, Load, closed_loop},
        payload::{Images, Payload},
        registry::Registry,
        report::Bars,
        roles::Kagami,
    },
    ratios, spread,
};

/// Connections of the load: a busy API server.
const CONNECTIONS: usize = 16;

const SHAPES: [(&str, usize, usize); 2] = [("3 KB", 0, 1), ("9 KB", 2, 3)];

impl Bench {
    /// Reviews a second and CPU time a review of both builds.
    pub fn builds(&self, bars: &mut Bars) -> Result<()> {
        let builds = self.builds_in_turn()?;
        let known = self.plan.scale.known;
        println!(
            "\nReviews of {known} known images in turn, closed loop over {CONNECTIONS} connections, {} and this build",
            builds[0].name
        );
        let registry = Registry::start()?;
        let mut kagamis = Vec::new();
        for build in builds {
            let kagami = Kagami::start(build, self.folder.path(), "builds", registry.address, LASTING)?;
            self.warm(&kagami, known)?;
            kagamis.push(kagami);
        }
        for (size, init_containers, containers) in SHAPES {
            let payload = Payload::new(PATH, init_containers, containers)?;
            let images = Images {
                first: 0,
                count: known,
            };
            let mut loads: [Vec<Load>; 2] = Default::default();
            for round in 0..self.plan.scale.rounds {
                for position in 0..builds.len() {
                    // There and back, so that neither is always the first.
                    let turn = if round.is_multiple_of(2) {
                        position
                    } else {
                        1 - position
                    };
                    let target = self.target(&kagamis[turn], &payload, images, Expected::Rewritten);
                    let load = closed_loop(&target, CONNECTIONS, self.plan.scale.round);
                    loads[turn].push(load.with_context(|| builds[turn].name.clone())?);
                }
            }
            let [other, own] = loads;
            let compare = |what: &str, figure: fn(&Load) -> f64| {
                let [own, other] = [&own, &other].map(|loads| loads.iter().map(figure).collect::<Vec<_>>());
                let ratios = ratios(&own, &other);
                println!("  {size}, {what}, own to the other's: {}", spread(&ratios));
                super::median(ratios)
            };
            let cpu = compare("CPU time a review", Load::cpu_per_review);
            let rate = compare("reviews a second", Load::per_second);
            let beside = &builds[0].name;
            bars.at_most(
                format!("{size}: CPU time a review against {beside}'s"),
                cpu,
                1.03,
                "×",
            );
            bars.at_least(format!("{size}: reviews/s against {beside}'s"), rate, 0.95, "×");
        }
        Ok(())
    }
}
