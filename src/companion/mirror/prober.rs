//! The health of one mirror: a ping, an image known to be there, now and then a blob.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{context::Context, look::locate, reports::Refusal};
use crate::{
    clock,
    domain::{
        answer::{Ambiguity, Answer, Blob, Failure, Limit, Manifest, Particulars, Unreachable},
        health::{Fault, Health, Machine, Observation, State},
        image::{ImageKey, KeyRef},
        mirror::{HealthSettings, Kind, Mirror},
        platform::Platforms,
        presence::{Entry, Presence, Proof, reason_of},
        reason::Reason,
        snapshot::Snapshot,
        time::Timestamp,
    },
    registry::SAMPLE_BYTES,
    state::{
        canaries::{self, Canary},
        pinger::Pinger,
    },
    telemetry::Reminder,
};

/// Every so many rounds data of an image is read: a mirror that hangs while sending data is worse than a dead
/// one, because nodes wait for it.
const DATA_EVERY: u32 = 2;

/// Every so many rounds an image is looked at as a whole, from its manifest to its data. In between it is known where
/// data is to be found, which costs no more requests than a look without any.
const WHOLE_EVERY: u32 = 15;

/// How many pieces of data are known and read in turn.
const SAMPLES: usize = 8;

/// How many images of an index are tried for one that is there.
const CHILDREN: usize = 4;

/// How many known images take turns as canary, each another one by its digest or its class.
const CANARIES: usize = 16;

/// How many images are looked at beside one that shows a fault, before that counts as the mirror's.
const OTHERS: usize = 7;

/// How many different images must show a fault for it to be the mirror's.
const SEVERAL: usize = 3;

/// The shortest time between two looks for an image that was refused.
const ASK_REFUSED: Duration = Duration::from_secs(30);

/// Watches the mirror until the task is dropped.
pub(super) async fn run(context: Context) {
    let mut snapshots = context.store.subscribe();
    let health = context.present().map_or_else(
        || Health::unknown(clock::now()),
        |present| present.health().clone(),
    );
    let Some(pinger) = Pinger::new(&context.store, &context.mirror) else {
        return;
    };
    let mut prober = Prober {
        machine: Machine::resume(HealthSettings::default(), health),
        pinger,
        canaries: Vec::new(),
        samples: VecDeque::new(),
        wholes: 0,
        rounds: 0,
        looked_at: None,
        returning: false,
        met: 0,
        data_in_doubt: false,
        asked_refused: None,
        said: Reminder::default(),
        context,
    };
    while let Some(present) = prober.context.present() {
        let settings = present.settings();
        prober.resume();
        prober.machine.configure(settings.health);
        let (observation, asked_at) = prober.round(settings).await;
        let seen_well = (observation == Observation::Good).then_some(asked_at);
        let Context { reports, mirror, .. } = &prober.context;
        reports.probed(mirror, seen_well);
        if prober.resume() && observation == Observation::Good {
            // Somebody else had to say something, because this look took too long: what it saw first
            // is older than that.
            continue;
        }
        prober.observe(observation, asked_at);
        prober.wait(&mut snapshots).await;
    }
}

struct Prober {
    context: Context,
    machine: Machine,
    pinger: Pinger,
    /// Images that were there when they were last looked up.
    canaries: Vec<Canary>,
    /// How many times images were looked at, and when they were last.
    rounds: u32,
    looked_at: Option<Instant>,
    /// The mirror did not answer and does again, and it is not known whether its images are where they were.
    returning: bool,
    /// How many times that was looked at.
    met: usize,
    /// Data of different images, which came when it was last read.
    samples: VecDeque<Sample>,
    /// How many images were looked at as a whole.
    wholes: usize,
    /// The last data that was asked for did not come.
    data_in_doubt: bool,
    /// When one of the images that were all refused was asked for.
    asked_refused: Option<Instant>,
    /// What was said of why the mirror fails.
    said: Reminder,
}

/// Data of an image in the mirror.
#[derive(Clone, Debug)]
struct Sample {
    canary: Canary,
    repository: String,
    blob: Blob,
}

/// What a look at a canary shows.
enum Sight {
    /// It is there, and so is its data where that was asked for.
    Sound,
    /// Its data is there, which says nothing of its manifest.
    Data,
    /// It is not to be had, which says nothing of the mirror's health.
    Gone(Answer),
    /// None of the images that an index names and that were there are there any more; these were tried.
    Childless(Platforms),
    /// The answer is one that every image would get if the mirror failed. It may be this image's alone.
    Faulty(Fault, Answer),
    /// Nothing can be told now.
    Unclear,
}

/// Returns what to write of an image that is not to be had.
fn presence_after(answer: &Answer) -> Presence {
    match answer {
        Answer::Missing => Presence::Missing,
        other => Presence::Unknown(reason_of(other)),
    }
}

impl Prober {
    /// Waits for the next round.
    async fn wait(&mut self, snapshots: &mut watch::Receiver<Arc<Snapshot>>) {
        while let Some(present) = self.context.present() {
            tokio::select! {
                () = self.pinger.due(present.settings().health.interval) => return,
                // The interval may be another one now.
                Ok(()) = snapshots.changed() => {}
            }
        }
    }

    /// Goes on from what the store has, if that is not what this task put there. Returns whether.
    fn resume(&mut self) -> bool {
        let Some(present) = self.context.present() else {
            return false;
        };
        let differs = self.machine.health() != present.health();
        if differs {
            self.machine = Machine::resume(present.settings().health, present.health().clone());
        }
        differs
    }

    /// Takes in what was seen by a question of that time, and publishes what changed.
    fn observe(&mut self, observation: Observation, asked_at: Timestamp) {
        self.resume();
        let before = self.machine.health().clone();
        let changed = self.machine.observe(observation, asked_at, clock::now());
        let health = self.machine.health();
        let what = |health: &Health| (health.fault, health.cause.clone(), health.refused_since);
        let differs = what(health) != what(&before);
        if changed || differs {
            self.publish(before.state, changed);
        }
    }

    /// Publishes the health: another state, or another cause of the same.
    fn publish(&mut self, before: State, changed: bool) {
        let health = self.machine.health();
        let mirror = self.context.mirror.as_str();
        self.context.store.set_health(mirror, health.clone());
        self.context.metrics.set_health(mirror, health.state);
        let (from, to) = (before.as_str(), health.state.as_str());
        let Some(fault) = health.fault else {
            self.said.ended();
            tracing::info!(mirror, from, to, "mirror health changed");
            return;
        };
        let (fault, cause) = (fault.as_str(), health.cause.as_deref());
        let is_due = self
            .said
            .failed(cause.unwrap_or(fault), Instant::now().into_std());
        if changed {
            tracing::warn!(mirror, from, to, fault, cause, "mirror health changed");
        } else if is_due {
            tracing::warn!(mirror, fault, cause, "the mirror fails otherwise than before");
        }
    }

    /// Looks at the mirror once: at `/v2/`, and in its turn at a known image. One that shows a fault is compared with
    /// others before that says anything of the mirror. Returns what was seen, and when it was asked for.
    async fn round(&mut self, settings: &Mirror) -> (Observation, Timestamp) {
        let started = Instant::now();
        // What its images showed is not undone by a ping alone.
        let in_turn = self.machine.fails()
            || self
                .looked_at
                .is_none_or(|looked| started.duration_since(looked) >= settings.health.interval);
        self.returning |= self.pinger.fails();
        // Whether Pods may be rewritten to it is settled once its images are seen, too.
        let settled = !self.returning && !self.machine.fails();
        let Context { store, mirror, .. } = &self.context;
        let suspect = |suspected: bool| store.set_suspected(mirror, suspected || !settled);
        let pinged = self.pinger.ping(settings.health, |_| true, suspect).await;
        let asked_at = pinged.asked_at;
        if let Some(failure) = self.opened(pinged.answer) {
            return (Observation::of_ping(&Err(failure)), asked_at);
        }
        if self.returning || pinged.tripped {
            self.meet_again().await;
        }
        let mut observation = Observation::Good;
        if in_turn {
            self.looked_at = Some(started);
            self.rounds = self.rounds.wrapping_add(1);
            observation = self.look_at_images(settings).await;
            if matches!(observation, Observation::Bad(Fault::DataPath, _)) {
                // Data of other images was asked for after the first one's did not come, so it was asked twice. A ping
                // would never tell, and nodes wait for data for as long as it takes.
                self.observe(observation.clone(), asked_at);
            }
        }
        let suspected = self.returning || observation != Observation::Good;
        self.context.store.set_suspected(&self.context.mirror, suspected);
        (observation, asked_at)
    }

    /// Takes in the answer to a ping. Returns the failure, where it says that the mirror is not well.
    fn opened(&self, answer: Result<(), Failure>) -> Option<Failure> {
        match answer {
            // Unauthorized means alive; images will be answered the same and tell.
            Ok(()) => self.context.note_credentials(Refusal::Registry, true),
            Err(Failure::Unauthorized) => {
                // Some ask for a token everywhere and give one to everybody, which images show.
                let Context {
                    client,
                    reports,
                    mirror,
                    ..
                } = &self.context;
                let opens = !client.has_credentials() && reports.of(mirror).gives_images();
                self.context.note_credentials(Refusal::Registry, opens);
            }
            Err(Failure::Ambiguous(Ambiguity::Challenge(Particulars { words, .. }))) => {
                let why = words.unwrap_or_default();
                self.context.note_credentials(Refusal::Challenge(why), false);
            }
            // Nobody can tell now whether it takes the credentials, and it lives.
            Err(Failure::RateLimited { of: Limit::Token, .. }) => {}
            Err(failure) => return Some(failure),
        }
        None
    }

    /// Looks whether a mirror that may have been away for a moment is the one that it was: where an image is missing or
    /// another one, all proofs are void.
    async fn meet_again(&mut self) {
        // After an outage that was told of they are void anyhow.
        if self.machine.health().state == State::Healthy {
            self.met = self.met.wrapping_add(1);
            let Context { store, mirror, .. } = &self.context;
            match canaries::are_there(store, mirror, self.met, clock::now()).await {
                Some(true) => {}
                Some(false) => {
                    tracing::warn!(
                        mirror,
                        "the mirror was away and came back without known images; all proofs are void"
                    );
                    self.void();
                }
                None => return,
            }
        }
        self.returning = false;
    }

    /// Lets proofs begin anew.
    fn void(&mut self) {
        self.resume();
        self.machine.void(clock::now());
        self.context
            .store
            .set_health(&self.context.mirror, self.machine.health().clone());
    }

    /// Looks at a known image, where there is one: at its manifest, at its data, or as a whole.
    async fn look_at_images(&mut self, settings: &Mirror) -> Observation {
        self.choose_canaries();
        let Some(canary) = self.canary(self.rounds as usize) else {
            self.ask_for_refused(settings).await;
            return Observation::Good;
        };
        let asked_at = clock::now();
        // Once data did not come, a look without any proves nothing until some comes again.
        let in_turn = self.rounds.is_multiple_of(DATA_EVERY);
        // Of a pull-through mirror it may be a download, which is spread out.
        let few = settings.kind == Kind::Hosted && self.samples.len() < SEVERAL.min(self.canaries.len());
        let whole = self.data_in_doubt || self.rounds.is_multiple_of(WHOLE_EVERY) || (in_turn && few);
        let sample = (in_turn && !whole).then(|| self.samples.pop_front()).flatten();
        let with_data = whole || sample.is_some();
        let sight = if whole {
            // Counted apart, as else the same ones might be looked at so each time.
            self.wholes = self.wholes.wrapping_add(1);
            let canary = self.canary(self.wholes).unwrap_or(canary);
            let (sight, sample) = self.look_at_whole(&canary, settings).await;
            if let (Sight::Sound, Some(sample)) = (&sight, sample) {
                self.keep(sample);
            }
            (canary, sight)
        } else if let Some(sample) = sample {
            let sight = self.look_at_data(&sample, settings.health.timeout).await;
            if matches!(sight, Sight::Data) {
                self.keep(sample.clone());
            }
            (sample.canary, sight)
        } else {
            let sight = self.look_at_manifest(&canary, settings).await;
            (canary, sight)
        };
        let mut sights = vec![sight];
        if let [(canary, Sight::Faulty(..))] = &sights[..] {
            let others = self.look_at_others(canary, settings, with_data).await;
            sights.extend(others);
        }
        self.take_in(sights, with_data, asked_at)
    }

    /// Keeps data that came, as the last to be read again. Of one image there is one.
    fn keep(&mut self, sample: Sample) {
        self.samples.retain(|known| known.canary.key != sample.canary.key);
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// Takes in what canaries showed. A fault is the mirror's where several of them show it and none is
    /// sound; else it is that of the images.
    fn take_in(&mut self, sights: Vec<(Canary, Sight)>, with_data: bool, asked_at: Timestamp) -> Observation {
        let one_is_sound = sights.iter().any(|(_, sight)| matches!(sight, Sight::Sound));
        let faults = sights.iter().filter_map(|(canary, sight)| match sight {
            Sight::Faulty(fault, answer) => Some((&canary.digest, (*fault, answer))),
            _ => None,
        });
        let fault = faults
            .clone()
            .next()
            .map(|(_, (fault, answer))| Observation::images(fault, answer));
        let several = faults.map(|(digest, _)| digest).collect::<HashSet<_>>().len() >= SEVERAL;
        if with_data {
            // One that lost its children may not be the only one, and no look without data would tell.
            let childless = |(_, sight): &(Canary, Sight)| matches!(sight, Sight::Childless(_));
            self.data_in_doubt = (fault.is_some() && !one_is_sound) || sights.iter().any(childless);
        }
        let fault = fault.filter(|_| several && !one_is_sound);
        for (canary, sight) in sights {
            match sight {
                Sight::Sound => {
                    self.machine.canary(canary.key.by_ref(), true, clock::now());
                }
                Sight::Gone(answer) => {
                    self.gone(canary.key.by_ref(), presence_after(&answer), &answer, asked_at);
                }
                Sight::Childless(tried) => {
                    if let Some(presence) = self.without(canary.key.by_ref(), tried) {
                        self.gone(canary.key.by_ref(), presence, &Answer::Missing, asked_at);
                    }
                }
                Sight::Faulty(_, answer) if fault.is_none() => {
                    self.damaged(canary.key.by_ref(), &answer, asked_at);
                }
                Sight::Faulty(..) | Sight::Data | Sight::Unclear => {}
            }
        }
        fault.unwrap_or(Observation::Good)
    }

    /// Looks whether an image that is known to be there still is.
    async fn look_at_manifest(&self, canary: &Canary, settings: &Mirror) -> Sight {
        let Some((repository, asked)) = canary.address(settings) else {
            return Sight::Unclear;
        };
        let deadline = Instant::now() + settings.health.timeout;
        let answer = self.context.client.head(&repository, &asked, deadline).await;
        self.sight(answer).0
    }

    /// Looks at an image that is known to be there as a whole: at its manifest, and at data. Returns where that is.
    async fn look_at_whole(&self, canary: &Canary, settings: &Mirror) -> (Sight, Option<Sample>) {
        let Some((repository, asked)) = canary.address(settings) else {
            return (Sight::Unclear, None);
        };
        let timeout = settings.health.timeout;
        let deadline = Instant::now() + timeout;
        let answer = self.context.client.get(&repository, &asked, deadline).await;
        let manifest = match self.sight(answer) {
            (_, Some(manifest)) => manifest,
            (sight, None) => return (sight, None),
        };
        let known = self.platforms(canary.key.by_ref(), settings.kind);
        match self.find_data(&repository, manifest, known, timeout).await {
            Err(sight) => (sight, None),
            Ok(None) => (Sight::Sound, None),
            Ok(Some(blob)) => {
                let canary = canary.clone();
                let sample = Sample {
                    canary,
                    repository,
                    blob,
                };
                match self.look_at_data(&sample, timeout).await {
                    Sight::Data => (Sight::Sound, Some(sample)),
                    // The image may be broken, which says nothing of others.
                    Sight::Unclear => (Sight::Sound, None),
                    sight => (sight, None),
                }
            }
        }
    }

    /// Returns what an answer shows, and the manifest if it is one.
    fn sight(&self, answer: Answer) -> (Sight, Option<Manifest>) {
        let observation = Observation::of(&answer);
        match (answer, observation) {
            (Answer::Exists(manifest), _) => {
                self.context.note_credentials(Refusal::Images, true);
                (Sight::Sound, Some(manifest))
            }
            (answer, Some(Observation::Bad(fault, _))) => (Sight::Faulty(fault, answer), None),
            // The mirror asked to wait; the image may be there.
            (Answer::RateLimited { .. }, _) => (Sight::Unclear, None),
            (answer, _) => (Sight::Gone(answer), None),
        }
    }

    /// Looks at some images beside one that shows a fault, all at once.
    async fn look_at_others(
        &self,
        beside: &Canary,
        settings: &Mirror,
        with_data: bool,
    ) -> Vec<(Canary, Sight)> {
        let position = self.canaries.iter().position(|canary| canary.key == beside.key);
        let others = self
            .canaries
            .iter()
            .cycle()
            .skip(position.unwrap_or_default() + 1);
        let others = others.take(self.canaries.len().saturating_sub(1).min(OTHERS));
        // As long as the one before had, with its manifest, a child and data.
        let deadline = Instant::now() + 3 * settings.health.timeout;
        let looks = others.map(async |canary| {
            let look = async {
                if with_data {
                    self.look_at_whole(canary, settings).await.0
                } else {
                    self.look_at_manifest(canary, settings).await
                }
            };
            let looked = timeout_at(deadline, look).await;
            let timeout = Answer::Unreachable(Unreachable::Timeout, Particulars::default());
            let silent = || Sight::Faulty(Fault::Timeout, timeout);
            (canary.clone(), looked.unwrap_or_else(|_| silent()))
        });
        futures_util::future::join_all(looks).await
    }

    /// Asks now and then for one of the images that were refused, where all were: other credentials are noticed
    /// by that. Says nothing of health.
    async fn ask_for_refused(&mut self, settings: &Mirror) {
        let Context { mirror, reports, .. } = &self.context;
        let is_due = self
            .asked_refused
            .is_none_or(|asked| asked.elapsed() >= ASK_REFUSED);
        // For a pull-through mirror it may be a download, which sweeps space out.
        if !is_due
            || settings.kind != Kind::Hosted
            || reports.of(mirror).credentials() != Some(Err(Refusal::Images))
        {
            return;
        }
        let refused = {
            let index = self.context.store.index();
            let is_refused = |entry: &Entry| entry.presence == Presence::Unknown(Some(Reason::Unauthorized));
            let mut refused = index.entries(mirror).filter(|(_, entry)| is_refused(entry));
            refused.next().map(|(key, _)| ImageKey::from(key))
        };
        let Some(refused) = refused else { return };
        let Some(located) = locate(settings, refused.by_ref()) else {
            return;
        };
        self.asked_refused = Some(Instant::now());
        let reference = located.reference.manifest_reference();
        let deadline = Instant::now() + settings.health.timeout;
        let answer = self
            .context
            .client
            .head(&located.repository, reference, deadline)
            .await;
        if matches!(answer, Answer::Exists(_) | Answer::Missing) {
            self.context.note_credentials(Refusal::Images, true);
        }
    }

    /// Returns the platforms for which a canary was there; all where nobody looked.
    fn platforms(&self, key: KeyRef<'_>, kind: Kind) -> Platforms {
        let index = self.context.store.index();
        match index.get(&self.context.mirror, key).map(|entry| &entry.presence) {
            Some(Presence::Present(proof)) if kind == Kind::Hosted => proof.platforms,
            _ => Platforms::ALL,
        }
    }

    /// Returns what is left of a canary's proof without some platforms.
    fn without(&self, key: KeyRef<'_>, gone: Platforms) -> Option<Presence> {
        let index = self.context.store.index();
        match &index.get(&self.context.mirror, key)?.presence {
            Presence::Present(proof) => Some(Presence::Present(Proof {
                platforms: proof.platforms.without(gone),
                ..proof.clone()
            })),
            _ => None,
        }
    }

    /// Returns where data of an image is; of an index, of the first of its images that is there of those that were.
    async fn find_data(
        &self,
        repository: &str,
        manifest: Manifest,
        known: Platforms,
        timeout: Duration,
    ) -> Result<Option<Blob>, Sight> {
        let client = &self.context.client;
        let mut blob = manifest.blob;
        let mut gone = Platforms::NONE;
        let children = manifest.children.iter();
        let named = children.filter(|child| !child.takers.and(known).is_empty());
        // One for all: a round that takes too long would pass for one that stalls.
        let deadline = Instant::now() + timeout;
        for child in named.take(CHILDREN) {
            match client.get(repository, &child.digest.to_string(), deadline).await {
                Answer::Exists(manifest) => {
                    gone = Platforms::NONE;
                    blob = manifest.blob;
                    break;
                }
                Answer::Missing => gone = gone.or(child.takers),
                other => {
                    return match Observation::of(&other) {
                        Some(Observation::Bad(fault, _)) => Err(Sight::Faulty(fault, other)),
                        _ => Ok(None),
                    };
                }
            }
        }
        // Where nobody looked before, there is nothing that could be gone.
        if !gone.is_empty() && known != Platforms::ALL {
            return Err(Sight::Childless(gone));
        }
        Ok(blob)
    }

    /// Reads the beginning of a blob.
    async fn look_at_data(&self, sample: &Sample, timeout: Duration) -> Sight {
        let deadline = Instant::now() + timeout;
        let client = &self.context.client;
        match client
            .beginning(&sample.repository, &sample.blob, SAMPLE_BYTES, deadline)
            .await
        {
            Ok(_) => Sight::Data,
            Err(
                Failure::Missing
                | Failure::RateLimited { .. }
                | Failure::Ambiguous(Ambiguity::DigestMismatch),
            ) => Sight::Unclear,
            Err(failure) => Sight::Faulty(Fault::DataPath, failure.into()),
        }
    }

    /// Notes that an image shows a fault that is not the mirror's: others take its place as canary. What the
    /// mirror answers for it is that image's own reason; silence is for the sweeps to judge, and data that does not come is
    /// nobody's.
    fn damaged(&mut self, key: KeyRef<'_>, answer: &Answer, asked_at: Timestamp) {
        self.canaries.retain(|known| known.key.by_ref() != key);
        self.samples.retain(|known| known.canary.key.by_ref() != key);
        if answer.proves_nothing() {
            self.context.tell(key, answer);
            let mirror = self.context.mirror.as_str();
            let presence = Presence::Unknown(reason_of(answer));
            let mut index = self.context.store.index_mut();
            index.write(mirror, key, presence, asked_at, clock::now());
        }
    }

    /// Notes that an image that was there is not to be had. Says nothing of health; but when it is
    /// one after the other, the mirror was emptied, or gives nothing to Kagami any more, and every
    /// proof is void.
    fn gone(&mut self, key: KeyRef<'_>, presence: Presence, answer: &Answer, asked_at: Timestamp) {
        self.resume();
        self.canaries.retain(|known| known.key.by_ref() != key);
        self.samples.retain(|known| known.canary.key.by_ref() != key);
        let now = clock::now();
        self.context
            .store
            .index_mut()
            .write(&self.context.mirror, key, presence, asked_at, now);
        if self.machine.canary(key, false, now) {
            tracing::warn!(
                mirror = self.context.mirror,
                answer = %answer,
                "known images are not to be had from the mirror; all proofs are void"
            );
            self.context
                .store
                .set_health(&self.context.mirror, self.machine.health().clone());
        }
    }

    /// Chooses images known to be there now and then, and when there are none.
    fn choose_canaries(&mut self) {
        if self.canaries.is_empty() || self.rounds.is_multiple_of(2 * WHOLE_EVERY) {
            let index = self.context.store.index();
            self.canaries = canaries::choose(&index, &self.context.mirror, CANARIES);
        }
    }

    /// Returns one of the images known to be there, each turn another one.
    fn canary(&self, turn: usize) -> Option<Canary> {
        let position = turn % self.canaries.len().max(1);
        self.canaries.get(position).cloned()
    }
}
