//! Mirrors that are well and look as if they were not: slow now and then, forgetful of connections, behind a network
//! that loses packets. Pods go to each of them all the time.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};

use super::{
    super::{bench::Bench, e2e::tools::Tools, report::Bars, roles::Admin},
    dice::Dice,
    load::{self, Answered, Lane},
    lossy::Lossy,
    mirrors::{Mirror, runtime},
    scene::{Scene, with_scene},
};

/// Reviews a second for each mirror.
const RATE: u32 = 50;

/// How often it is looked at what is said of the mirrors.
const LOOK: Duration = Duration::from_millis(200);

/// The mirrors, with how many false alarms and what share of Pods kept upstream are too much; none where nothing is.
const SLOW: &str = "slow";
const ROWS: [(&str, &str, Option<f64>, Option<f64>); 5] = [
    (
        SLOW,
        "400 ms or more for one answer of a hundred",
        Some(0.0),
        Some(1.0),
    ),
    ("pausing", "0.5 s without answers out of ten", None, Some(7.0)),
    (
        "forgetful",
        "closes connections that idle for 1 s",
        Some(0.0),
        None,
    ),
    ("lossy-2", "loses 2 % of packets", Some(0.0), None),
    ("lossy-5", "loses 5 % of packets", Some(1.0), None),
];

/// What one process says of one mirror over time.
#[derive(Clone, Debug, Default)]
struct Said {
    state: String,
    proven_since: String,
    /// Transitions to another state than Healthy.
    alarms: u32,
    /// How often the time moved from which proofs count.
    voids: u32,
}

/// What one process says of the mirrors, by name.
type Told = BTreeMap<String, Said>;

impl Bench {
    /// False alarms, and Pods kept upstream for nothing.
    pub fn patience(&self, tools: &Tools, bars: &mut Bars) -> Result<()> {
        let length = self.plan.noticing.patience;
        println!(
            "\nMirrors that are well, {RATE} reviews a second for each, all at once for {} min; seed {}, but which \
             packets are lost is the kernel's choice",
            length.as_secs() / 60,
            self.seed
        );
        let runtime = runtime()?;
        let (mut mirrors, mut networks) = (Vec::new(), Vec::new());
        for (name, ..) in ROWS {
            let mirror = match name {
                SLOW => Mirror::slow(&runtime, name, Dice::new(self.seed))?,
                "pausing" => Mirror::pausing(&runtime, name)?,
                "forgetful" => Mirror::closing_idle(&runtime, name)?,
                _ => {
                    let percent = if name == "lossy-2" { 2 } else { 5 };
                    match Lossy::start(self.folder.path(), name, percent) {
                        Ok(network) => {
                            let mirror = Mirror::elsewhere(name, network.address);
                            networks.push((name, network));
                            mirror
                        }
                        Err(error) => {
                            println!("  {name}: could not be measured: {error:#}");
                            continue;
                        }
                    }
                }
            };
            mirrors.push(mirror);
        }
        let (answered, said) = with_scene(self, tools, &self.own, (runtime, mirrors), |scene| {
            let (answered, said) = watch(scene, length)?;
            let names = scene.mirrors.iter().map(|mirror| mirror.name.clone());
            let answered: BTreeMap<String, Vec<Answered>> = names.zip(answered).collect();
            Ok((answered, said))
        })?;
        for (name, network) in &networks {
            let lost = network.lost()?;
            println!("  {name}: {lost} packets lost");
            ensure!(lost > 0, "{name} was to lose packets");
        }
        drop(networks);
        for (name, what, alarms_limit, kept_limit) in ROWS {
            let share_of = |so: fn(&Answered) -> bool| {
                let answered = answered.get(name);
                answered.map_or(f64::NAN, |answered| share(answered, so))
            };
            let kept = share_of(|answered| !answered.rewritten);
            let suspected = share_of(|answered| answered.suspected);
            let of_all = said.iter().filter_map(|said| said.get(name));
            // What ends an alarm moves that time, so both tell of one.
            let alarms = of_all.map(|said| f64::from(said.alarms.max(said.voids)));
            let alarms = alarms.fold(f64::NAN, f64::max);
            println!(
                "  {what:<44} {alarms:>3} false alarms, {kept:>6.3} % of Pods kept upstream, \
                 {suspected:>6.3} % by suspicion"
            );
            if let Some(limit) = kept_limit {
                bars.at_most(
                    format!("{name}: Pods kept upstream for nothing"),
                    kept,
                    limit,
                    "%",
                );
            }
            if let Some(limit) = alarms_limit {
                let minutes = length.as_secs() / 60;
                bars.at_most(
                    format!("{name}: false alarms in {minutes} min"),
                    alarms,
                    limit,
                    "",
                );
            }
        }
        Ok(())
    }
}

/// Sends reviews for all mirrors, and listens to what the leader and the replica say meanwhile.
fn watch(scene: &Scene<'_>, length: Duration) -> Result<(Vec<Vec<Answered>>, [Told; 2])> {
    let every = Duration::from_secs(1) / RATE;
    let lanes: Vec<Lane> = (0..scene.mirrors.len())
        .map(|mirror| {
            anyhow::Ok(Lane {
                target: scene.target(0, mirror)?,
                first: Duration::ZERO,
                every,
            })
        })
        .collect::<Result<_>>()?;
    let who = [scene.leader()?, scene.replicas[0].admin];
    let start = Instant::now() + Duration::from_secs(1);
    thread::scope(|scope| {
        let load = scope.spawn(|| load::send(&lanes, start, length));
        let mut said: [Told; 2] = Default::default();
        while start.elapsed() < length && !load.is_finished() {
            for (who, said) in who.into_iter().zip(&mut said) {
                listen(who, said)?;
            }
            thread::sleep(LOOK);
        }
        let answered = load.join().map_err(|_| anyhow!("the load panicked"))??;
        Ok((answered, said))
    })
}

fn listen(admin: Admin, said: &mut Told) -> Result<()> {
    let status = admin.status()?;
    let of = |health: &serde_json::Value, what: &str| health[what].as_str().unwrap_or_default().to_owned();
    for (name, mirror) in status["mirrors"].as_object().into_iter().flatten() {
        let (state, proven_since) = (
            of(&mirror["health"], "state"),
            of(&mirror["health"], "provenSince"),
        );
        let before = said.entry(name.clone()).or_insert_with(|| Said {
            state: state.clone(),
            proven_since: proven_since.clone(),
            ..Said::default()
        });
        before.alarms += u32::from(before.state == "Healthy" && state != "Healthy");
        before.voids += u32::from(before.proven_since != proven_since);
        (before.state, before.proven_since) = (state, proven_since);
    }
    Ok(())
}

/// Returns what percentage of reviews was answered so.
fn share(answered: &[Answered], so: fn(&Answered) -> bool) -> f64 {
    let part = answered.iter().filter(|answered| so(answered)).count();
    let [part, all] = [part, answered.len()].map(|count| u32::try_from(count).map_or(f64::NAN, f64::from));
    100.0 * part / all
}
