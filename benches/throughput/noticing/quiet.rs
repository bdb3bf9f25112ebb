//! What looking after a mirror costs it: requests a second from each process.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};

use super::{
    super::{bench::Bench, e2e::tools::Tools, report::Bars, roles::Companion},
    callers::Callers,
    load::{self, Lane},
    mirrors::{Mirror, runtime},
    scene::{Scene, with_scene},
};

/// How many replicas there are, at first and in the end.
const REPLICAS: [usize; 2] = [3, 10];

/// Reviews a second for the mirror that one replica rewrites to.
const RATE: u32 = 100;

/// The mirrors: nobody rewrites to the first.
const QUIET: usize = 0;
const USED: usize = 1;

/// How long it takes until what was asked to see that all is well is over.
const CALMS_DOWN: Duration = Duration::from_secs(10);

/// Requests a second at most: from a replica and the companions while nobody rewrites, and from a replica that does.
const OF_REPLICA: f64 = 0.5;
const OF_LEADER: f64 = 1.2;
const OF_STANDBY: f64 = 0.1;
const OF_USER: f64 = 3.0;

impl Bench {
    /// Requests to a mirror that nobody uses, and to one that is used.
    pub fn quiet(&self, tools: &Tools, bars: &mut Bars) -> Result<()> {
        println!(
            "\nRequests a second to a mirror that is well, within {} s",
            self.plan.noticing.quiet.as_secs()
        );
        let runtime = runtime()?;
        let callers = [Callers::default(), Callers::default()];
        let mut mirrors = Vec::new();
        for (name, callers) in ["quiet", "used"].into_iter().zip(&callers) {
            let mirror = Mirror::start(&runtime, name)?;
            let (address, callers) = (mirror.address, callers.clone());
            mirrors.push(mirror.observed(&runtime, move |peer| callers.note(address, peer))?);
        }
        with_scene(self, tools, &self.own, (runtime, mirrors), |scene| {
            for replicas in REPLICAS {
                while scene.replicas.len() < replicas {
                    scene.add_replica();
                }
                self.quiet_with(scene, &callers, bars)?;
            }
            Ok(())
        })
    }

    fn quiet_with(&self, scene: &Scene<'_>, callers: &[Callers; 2], bars: &mut Bars) -> Result<()> {
        let replicas: Vec<u32> = scene
            .replicas
            .iter()
            .map(|replica| replica.process.id())
            .collect();
        let companions = scene.companions.iter();
        let companions: Vec<u32> = companions
            .map(|companion: &Companion| companion.process.id())
            .collect();
        for callers in callers {
            callers.know([replicas.as_slice(), &companions].concat());
        }
        scene.settle()?;
        let leader = scene.leading()?;
        let lane = Lane {
            target: scene.target(0, USED)?,
            first: Duration::ZERO,
            every: Duration::from_secs(1) / RATE,
        };
        let length = self.plan.noticing.quiet;
        let counts = thread::scope(|scope| {
            let start = Instant::now();
            let load = scope.spawn(move || load::send(&[lane], start, CALMS_DOWN + length));
            thread::sleep(CALMS_DOWN);
            for callers in callers {
                drop(callers.take());
            }
            thread::sleep(length);
            let counts = [callers[QUIET].take(), callers[USED].take()];
            load.join().map_err(|_| anyhow!("the load panicked"))??;
            anyhow::Ok(counts)
        })?;
        ensure!(scene.leading()? == leader, "another companion leads meanwhile");
        let unknown = counts.iter().filter_map(|counts| counts.get(&None)).sum::<u32>();
        ensure!(unknown == 0, "{unknown} requests are nobody's");
        let rate = |counts: &BTreeMap<Option<u32>, u32>, process: u32| {
            let count = counts.get(&Some(process)).copied().unwrap_or_default();
            f64::from(count) / length.as_secs_f64()
        };
        let most = replicas.iter().map(|replica| rate(&counts[QUIET], *replica));
        let most = most.fold(0.0, f64::max);
        let of_leader = rate(&counts[QUIET], companions[leader]);
        let others = companions.iter().enumerate();
        let others = others.filter(|(position, _)| *position != leader);
        let of_standby = others
            .map(|(_, process)| rate(&counts[QUIET], *process))
            .fold(0.0, f64::max);
        let of_user = rate(&counts[USED], replicas[0]);
        let all: u32 = counts[QUIET].values().sum();
        let number = replicas.len();
        println!(
            "  {number:>2} replicas: {most:.2} from the replica that asks most, {of_leader:.2} from the leader, \
             {of_standby:.2} from the other companion, {:.2} from all; {of_user:.2} from a replica that rewrites \
             {RATE} Pods a second",
            f64::from(all) / length.as_secs_f64()
        );
        let held = [
            ("each replica", most, OF_REPLICA),
            ("the leader", of_leader, OF_LEADER),
            ("the other companion", of_standby, OF_STANDBY),
        ];
        for (who, figure, limit) in held {
            let name = format!("quiet, {number} replicas: requests from {who}");
            bars.at_most(name, figure, limit, "/s");
        }
        let name = format!("{number} replicas: requests from one that rewrites");
        bars.at_most(name, of_user, OF_USER, "/s");
        Ok(())
    }
}
