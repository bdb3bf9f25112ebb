//! Mirrors that break while Pods are sent to them: how long that goes on, and how many Pods it meets.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use futures_util::future::join_all;
use tokio::time::sleep_until;

use super::{
    super::{
        bench::{Bench, median},
        e2e::tools::Tools,
        report::Bars,
        roles::Build,
    },
    dice::Dice,
    load::{self, Answered, Lane},
    mirrors::{Fault, Mirror, runtime},
    scene::{Scene, with_scene},
};

/// Mirrors with each fault at each rate, so that one round is as many trials.
const COPIES: usize = 2;

/// Reviews a second where Pods come all the time, where they come now and then, and where they are counted.
const OFTEN: u32 = 300;
const SELDOM: u32 = 1;
const COUNTED: u32 = 50;

/// Mirrors whose data does not come: one trial each.
const WITHOUT_DATA: usize = 10;

/// How long reviews last in one round: until the first mirror may break, within which time each does, and from then on.
#[derive(Clone, Copy, Debug)]
struct Times {
    before: Duration,
    within: Duration,
    after: Duration,
    /// How long the round waits at most before it begins. What Kagami does every half minute it also counts from a
    /// recovery, and rounds as long as that would meet all of it or none.
    pause: Duration,
}

/// The usual round, and that of a build that takes longer to notice.
const USUAL: Times = Times {
    before: Duration::from_secs(2),
    within: Duration::from_secs(2),
    after: Duration::from_secs(4),
    pause: Duration::ZERO,
};
const PATIENT: Times = Times {
    after: Duration::from_secs(12),
    ..USUAL
};

/// One whose mirrors break in the second in which the leader is killed.
const LEADERLESS: Times = Times {
    within: Duration::from_secs(1),
    pause: Duration::from_secs(10),
    ..USUAL
};

/// One of a thousand reviews.
const THOUSAND: Times = Times {
    before: Duration::from_secs(9),
    within: Duration::from_secs(2),
    after: Duration::from_secs(9),
    pause: Duration::from_secs(10),
};

/// One whose fault only data shows: who looks for it does so once in a while, so it begins at any time of that.
const DATA: Times = Times {
    before: Duration::from_secs(2),
    within: Duration::from_secs(30),
    after: Duration::from_secs(45),
    pause: Duration::ZERO,
};

/// How soon a fault must be noticed, in seconds: median, worst, and the median against the other build's.
struct Limits {
    median: f64,
    worst: f64,
    against: f64,
}

const fn limits(fault: Fault) -> Limits {
    match fault {
        Fault::Killed => Limits {
            median: 0.1,
            worst: 0.4,
            against: 1.0 / 8.0,
        },
        _ => Limits {
            median: 0.7,
            worst: 1.0,
            against: 1.0 / 4.0,
        },
    }
}

/// The same where Pods come once a second, and where only data shows the fault.
const LIMITS_SELDOM: (f64, f64) = (1.5, 2.5);
const LIMITS_DATA: (f64, f64) = (5.0, 8.0);

/// Pods sent after a fault against the other build's.
const LIMIT_SENT: f64 = 1.0 / 4.0;

/// One mirror's part in a round.
#[derive(Clone, Copy, Debug)]
struct Trial {
    mirror: usize,
    fault: Fault,
    rate: u32,
}

/// What became of one.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    trial: Trial,
    /// From the fault to the last Pod that was sent to the mirror.
    last: Duration,
    /// How many were, from the fault on.
    sent: usize,
}

/// The outcomes of all rounds with one build.
#[derive(Debug, Default)]
struct Outcomes {
    usual: Vec<Outcome>,
    leaderless: Vec<Outcome>,
    thousands: Vec<Outcome>,
}

impl Bench {
    /// Mirrors that break, with the other build and with this one in turn.
    pub fn breaking(&self, tools: &Tools, bars: &mut Bars) -> Result<()> {
        let other = self.other.as_ref().context("there is no other build")?;
        println!(
            "\nMirrors that break, from the fault to the last review that was answered with a rewrite; seed {}",
            self.seed
        );
        let dice = &mut Dice::new(self.seed);
        let [of_other, of_own] = [other, &self.own].map(|build| self.break_mirrors(build, tools, dice));
        let (of_other, of_own) = (of_other?, of_own?);
        for fault in Fault::WHOLE {
            let limits = limits(fault);
            let figures = Figures::of(&of_own.usual, fault, OFTEN);
            figures.hold(fault.name(), "300/s", (limits.median, limits.worst), bars);
            bars.at_most(
                format!("{}, 300/s: median against {}'s", fault.name(), other.name),
                figures.median / Figures::of(&of_other.usual, fault, OFTEN).median,
                limits.against,
                "×",
            );
        }
        for fault in Fault::WHOLE {
            let figures = Figures::of(&of_own.usual, fault, SELDOM);
            figures.hold(fault.name(), "1/s", LIMITS_SELDOM, bars);
        }
        for fault in Fault::WHOLE {
            let limits = limits(fault);
            let figures = Figures::of(&of_own.leaderless, fault, OFTEN);
            figures.hold(
                fault.name(),
                "300/s, the leader killed",
                (limits.median, limits.worst),
                bars,
            );
        }
        for fault in Fault::WHOLE {
            let [own, other_sent] =
                [&of_own, &of_other].map(|outcomes| Figures::of(&outcomes.thousands, fault, COUNTED).sent);
            bars.at_most(
                format!("{}: Pods sent, of 1,000, against {}'s", fault.name(), other.name),
                own / other_sent,
                LIMIT_SENT,
                "×",
            );
        }
        Ok(())
    }

    /// Mirrors that answer everything and send no data, with this build alone.
    pub fn data(&self, tools: &Tools, bars: &mut Bars) -> Result<()> {
        println!("\nMirrors that send no data any more; seed {}", self.seed);
        let dice = &mut Dice::new(self.seed);
        let trials: Vec<Trial> = (0..WITHOUT_DATA)
            .map(|mirror| Trial {
                mirror,
                fault: Fault::NoData,
                rate: COUNTED,
            })
            .collect();
        let runtime = runtime()?;
        let mirrors: Result<_> = (0..trials.len())
            .map(|number| Mirror::start(&runtime, &format!("m{number}")))
            .collect();
        let outcomes = with_scene(self, tools, &self.own, (runtime, mirrors?), |scene| {
            round(scene, &trials, DATA, dice)
        })?;
        print(&self.own.name, "", &outcomes);
        let figures = Figures::of(&outcomes, Fault::NoData, COUNTED);
        figures.hold(Fault::NoData.name(), "50/s", LIMITS_DATA, bars);
        Ok(())
    }

    /// All rounds with one build. The other one is only measured where it is compared with.
    fn break_mirrors(&self, build: &Build, tools: &Tools, dice: &mut Dice) -> Result<Outcomes> {
        let is_own = build.name == self.own.name;
        let mut trials = Vec::new();
        for rate in if is_own { &[OFTEN, SELDOM][..] } else { &[OFTEN] } {
            for fault in Fault::WHOLE.repeat(COPIES) {
                let mirror = trials.len();
                trials.push(Trial {
                    mirror,
                    fault,
                    rate: *rate,
                });
            }
        }
        let runtime = runtime()?;
        let mirrors: Result<_> = (0..trials.len())
            .map(|number| Mirror::start(&runtime, &format!("m{number}")))
            .collect();
        let often = trials.iter().filter(|trial| trial.rate == OFTEN);
        let often: Vec<Trial> = often.copied().collect();
        let each = often.iter().take(Fault::WHOLE.len());
        let counted: Vec<Trial> = each
            .map(|trial| Trial {
                rate: COUNTED,
                ..*trial
            })
            .collect();
        with_scene(self, tools, build, (runtime, mirrors?), |scene| {
            let sizes = &self.plan.noticing;
            let mut outcomes = Outcomes::default();
            let times = if is_own { USUAL } else { PATIENT };
            for _ in 0..sizes.rounds {
                outcomes.usual.extend(round(scene, &trials, times, dice)?);
            }
            print(&build.name, "", &outcomes.usual);
            for _ in 0..sizes.thousands {
                outcomes.thousands.extend(round(scene, &counted, THOUSAND, dice)?);
            }
            print(&build.name, ", of 1,000", &outcomes.thousands);
            if is_own {
                for _ in 0..sizes.leaderless {
                    outcomes.leaderless.extend(without_leader(scene, &often, dice)?);
                }
                print(&build.name, ", the leader killed", &outcomes.leaderless);
            }
            Ok(outcomes)
        })
    }
}

/// One round in which all mirrors break at times of their own, and after which all is well again.
fn round(scene: &mut Scene<'_>, trials: &[Trial], times: Times, dice: &mut Dice) -> Result<Vec<Outcome>> {
    let outcomes = break_once(scene, trials, times, dice, false)?;
    scene.settle()?;
    Ok(outcomes)
}

/// The same, and the companion that leads is killed when the first may break.
fn without_leader(scene: &mut Scene<'_>, trials: &[Trial], dice: &mut Dice) -> Result<Vec<Outcome>> {
    let outcomes = break_once(scene, trials, LEADERLESS, dice, true)?;
    scene.add_companion();
    scene.settle()?;
    Ok(outcomes)
}

fn break_once(
    scene: &mut Scene<'_>,
    trials: &[Trial],
    times: Times,
    dice: &mut Dice,
    with_leader: bool,
) -> Result<Vec<Outcome>> {
    thread::sleep(dice.within(times.pause));
    let lanes: Vec<Lane> = trials
        .iter()
        .map(|trial| {
            let every = Duration::from_secs(1) / trial.rate;
            anyhow::Ok(Lane {
                target: scene.target(0, trial.mirror)?,
                first: dice.within(every),
                every,
            })
        })
        .collect::<Result<_>>()?;
    let leader = with_leader.then(|| scene.leading()).transpose()?;
    let leader = leader.map(|position| scene.companions.swap_remove(position));
    // By then all connections stand.
    let start = Instant::now() + Duration::from_secs(1);
    let length = times.before + times.within + times.after;
    let at: Vec<Instant> = trials
        .iter()
        .map(|_| start + times.before + dice.within(times.within))
        .collect();
    let (runtime, mirrors) = (&scene.runtime, &mut scene.mirrors);
    let (answered, began) = thread::scope(|scope| {
        let load = scope.spawn(|| load::send(&lanes, start, length));
        let began = runtime.block_on(async {
            let breaking = mirrors.iter_mut().enumerate().filter_map(|(number, mirror)| {
                let position = trials.iter().position(|trial| trial.mirror == number)?;
                let (fault, at) = (trials[position].fault, at[position]);
                Some(async move {
                    sleep_until(at.into()).await;
                    let began = Instant::now();
                    mirror.fail(fault).await;
                    (position, began)
                })
            });
            let killing = async {
                sleep_until((start + times.before).into()).await;
                drop(leader);
            };
            tokio::join!(join_all(breaking), killing).0
        });
        let answered = load.join().map_err(|_| anyhow!("the load panicked"))?;
        anyhow::Ok((answered?, began))
    })?;
    runtime.block_on(join_all(mirrors.iter_mut().map(Mirror::recover)));
    let mut outcomes = Vec::new();
    for (position, began) in began {
        let trial = trials[position];
        match outcome(trial, began, &answered[position]) {
            Some(outcome) => outcomes.push(outcome),
            None => println!(
                "  {}, {}/s: Pods were kept upstream before the fault; the trial does not count",
                trial.fault.name(),
                trial.rate
            ),
        }
    }
    ensure!(
        outcomes.len() * 4 >= trials.len() * 3,
        "too few trials began as they should"
    );
    Ok(outcomes)
}

/// Returns what became of a trial; none if the mirror was not in use when it broke.
fn outcome(trial: Trial, began: Instant, answered: &[Answered]) -> Option<Outcome> {
    let faulty = answered.partition_point(|answered| answered.at < began);
    let (before, after) = answered.split_at(faulty);
    if !before.last()?.rewritten {
        return None;
    }
    let sent = after.iter().filter(|answered| answered.rewritten);
    let last = sent.clone().map(|answered| answered.at - began).max();
    Some(Outcome {
        trial,
        last: last.unwrap_or_default(),
        sent: sent.count(),
    })
}

/// What the trials with one fault at one rate show.
#[derive(Clone, Copy, Debug)]
struct Figures {
    trials: usize,
    median: f64,
    worst: f64,
    /// Of one trial.
    sent: f64,
}

impl Figures {
    fn of(outcomes: &[Outcome], fault: Fault, rate: u32) -> Self {
        let of = |outcome: &&Outcome| outcome.trial.fault == fault && outcome.trial.rate == rate;
        let outcomes: Vec<&Outcome> = outcomes.iter().filter(of).collect();
        let seconds = outcomes.iter().map(|outcome| outcome.last.as_secs_f64());
        let (trials, sent) = (
            outcomes.len(),
            outcomes.iter().map(|outcome| outcome.sent).sum::<usize>(),
        );
        let [sent, number] = [sent, trials].map(|count| u32::try_from(count).map_or(f64::NAN, f64::from));
        Self {
            trials,
            median: median(seconds.clone()),
            worst: seconds.fold(f64::NAN, f64::max),
            sent: sent / number,
        }
    }

    /// Holds the time to the last Pod.
    fn hold(self, fault: &str, how: &str, limits: (f64, f64), bars: &mut Bars) {
        bars.at_most(format!("{fault}, {how}: median"), self.median, limits.0, "s");
        let name = format!("{fault}, {how}: worst of {}", self.trials);
        bars.at_most(name, self.worst, limits.1, "s");
    }
}

/// Prints what the outcomes show, by fault and rate.
fn print(build: &str, how: &str, outcomes: &[Outcome]) {
    let mut seen: Vec<(Fault, u32)> = Vec::new();
    for Outcome { trial, .. } in outcomes {
        if !seen.contains(&(trial.fault, trial.rate)) {
            seen.push((trial.fault, trial.rate));
        }
    }
    for (fault, rate) in seen {
        let Figures {
            trials,
            median,
            worst,
            sent,
        } = Figures::of(outcomes, fault, rate);
        println!(
            "  {build:<8} {:<20} {:<26} median {median:>6.3} s  worst {worst:>6.3} s  of {trials:>2}; \
             {sent:>6.1} Pods sent",
            fault.name(),
            format!("{rate}/s{how}"),
        );
    }
}
