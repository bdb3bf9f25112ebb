//! The health of one mirror: a ping, an image known to be there, now and then a blob.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{Context, look::locate};
use crate::{
    clock,
    domain::{
        answer::{Ambiguity, Answer, Failure, Manifest},
        digest::Digest,
        health::{Fault, Health, Machine, Observation, State},
        mirror::{HealthSettings, Kind, Mirror},
        platform::Architectures,
        presence::{Presence, Proof, reason_of},
        snapshot::Snapshot,
        time::Timestamp,
    },
    state::Doubt,
};

/// Every so many rounds a blob is read: a mirror that hangs while sending data is worse than a dead
/// one, because nodes wait for it.
const BLOB_EVERY: u32 = 15;

/// How much of a blob is read.
const BLOB_BYTES: u64 = 64 * 1024;

/// How many images of an index are tried for one that is there.
const CHILDREN: usize = 4;

/// How many known images take turns as canary.
const CANARIES: usize = 16;

/// The shortest pause between two rounds that a doubt calls for.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// Watches the mirror until the task is dropped. `doubts` come from looks for single images, which
/// count for nothing here but bring the next look forward.
pub(super) async fn run(context: Context, mut doubts: mpsc::Receiver<Doubt>) {
    let mut snapshots = context.store.subscribe();
    let health = context
        .present()
        .map_or_else(|| Health::unknown(clock::now()), |present| present.health());
    let mut prober = Prober {
        machine: Machine::resume(HealthSettings::default(), health),
        canaries: Vec::new(),
        rounds: 0,
        data_in_doubt: false,
        doubted: false,
        context,
    };
    while let Some(present) = prober.context.present() {
        let settings = present.settings();
        prober.resume();
        prober.machine.configure(settings.health);
        let started = Instant::now();
        let observation = prober.round(settings).await;
        prober.context.reports.probed(&prober.context.mirror);
        if prober.resume() && observation == Observation::Good {
            // Somebody else had to say something, because this look took too long: what it saw first
            // is older than that.
            continue;
        }
        let confirm_now = prober.observe(observation);
        // A doubt that the look confirms calls for another one, until it is known.
        prober.doubted &=
            observation != Observation::Good && prober.machine.health().state != State::Unhealthy;
        if confirm_now {
            continue;
        }
        prober.wait(&mut doubts, &mut snapshots, started).await;
    }
}

struct Prober {
    context: Context,
    machine: Machine,
    /// Images that were there when they were last looked up.
    canaries: Vec<Canary>,
    rounds: u32,
    /// The last data that was asked for did not come.
    data_in_doubt: bool,
    /// Somebody looked for an image in vain, and no look has shown since that the mirror is well.
    doubted: bool,
}

/// An image known to be there.
#[derive(Clone)]
struct Canary {
    key: String,
    digest: Digest,
}

/// What came of reading an image's data.
enum Data {
    Observed(Observation),
    /// None of the images that an index names and that were there are there any more; these were tried.
    NoChild(Architectures),
}

impl Prober {
    /// Waits for the next round, which a doubt brings forward.
    async fn wait(
        &mut self,
        doubts: &mut mpsc::Receiver<Doubt>,
        snapshots: &mut watch::Receiver<Arc<Snapshot>>,
        started: Instant,
    ) {
        while let Some(present) = self.context.present() {
            let mut next = started + present.settings().health.interval;
            if self.doubted {
                next = next.min(started + SHORTEST_PAUSE);
            }
            tokio::select! {
                () = sleep_until(next) => break,
                // The interval may be another one now.
                Ok(()) = snapshots.changed() => {}
                // What is known to be bad is looked at in its turn.
                Some(_) = doubts.recv() => self.doubted = self.machine.health().state != State::Unhealthy,
            }
        }
        // Many looks at one hiccup speak with one voice.
        while doubts.try_recv().is_ok() {}
    }

    /// Goes on from what the store has, if that is not what this task put there. Returns whether.
    fn resume(&mut self) -> bool {
        let Some(present) = self.context.present() else {
            return false;
        };
        let differs = self.machine.health() != present.health();
        if differs {
            self.machine = Machine::resume(present.settings().health, present.health());
        }
        differs
    }

    /// Takes in an observation and publishes what changed. Returns whether to look again at once.
    fn observe(&mut self, observation: Observation) -> bool {
        self.resume();
        let before = self.machine.health();
        let observed = self.machine.observe(observation, clock::now());
        let health = self.machine.health();
        if observed.changed {
            self.publish(before.state);
        } else if health.fault != before.fault {
            // Another cause of the same state.
            self.context.store.set_health(&self.context.mirror, health);
        }
        observed.confirm_now
    }

    fn publish(&self, before: State) {
        let health = self.machine.health();
        let mirror = self.context.mirror.as_str();
        self.context.store.set_health(mirror, health);
        self.context.metrics.set_health(mirror, health.state);
        let (from, to) = (before.as_str(), health.state.as_str());
        if let Some(fault) = health.fault {
            tracing::warn!(mirror, from, to, fault = fault.as_str(), "mirror health changed");
        } else {
            tracing::info!(mirror, from, to, "mirror health changed");
        }
    }

    /// Looks at the mirror once; the first thing that is bad counts.
    async fn round(&mut self, settings: &Mirror) -> Observation {
        self.rounds = self.rounds.wrapping_add(1);
        let timeout = settings.health.timeout;
        match self.context.client.ping(Instant::now() + timeout).await {
            // Unauthorized means alive; images will be answered the same and tell.
            Ok(()) => self.context.reports.credentials(&self.context.mirror, true),
            Err(Failure::Unauthorized) => self.context.reports.credentials(&self.context.mirror, false),
            failed => return Observation::of_ping(failed),
        }
        let Some(canary) = self.next_canary() else {
            return Observation::Good;
        };
        let Some(located) = locate(settings, &canary.key) else {
            return Observation::Good;
        };
        let asked = match settings.kind {
            Kind::Hosted => located.reference.manifest_reference(),
            // By tag it would ask upstream, each time.
            Kind::PullThrough => &canary.digest.to_string(),
        };
        // Once data did not come, a look without any proves nothing until some comes again.
        let with_data = self.rounds.is_multiple_of(BLOB_EVERY) || self.data_in_doubt;
        let deadline = Instant::now() + timeout;
        let asked_at = clock::now();
        let answer = if with_data {
            self.context
                .client
                .get(&located.repository, asked, deadline)
                .await
        } else {
            self.context
                .client
                .head(&located.repository, asked, deadline)
                .await
        };
        let mut lost_children = false;
        let observation = match &answer {
            Answer::Exists(manifest) => {
                let data = if with_data {
                    let known = self.architectures(&canary.key, settings.kind);
                    self.read_data(&located.repository, manifest, known, timeout)
                        .await
                } else {
                    Data::Observed(Observation::Good)
                };
                match data {
                    Data::Observed(observation) => {
                        self.machine.canary(&canary.key, true, clock::now());
                        observation
                    }
                    Data::NoChild(tried) => {
                        lost_children = true;
                        let presence = self.without(&canary.key, tried);
                        self.gone(&canary.key, presence, &Answer::Missing, asked_at);
                        Observation::Good
                    }
                }
            }
            other => {
                if let Some(observation) = Observation::of(other) {
                    observation
                } else {
                    let presence = match other {
                        Answer::Missing => Some(Presence::Missing),
                        // The mirror asked to wait; the image may be there.
                        Answer::RateLimited { .. } => None,
                        other => Some(Presence::Unknown(reason_of(other))),
                    };
                    self.gone(&canary.key, presence, other, asked_at);
                    Observation::Good
                }
            }
        };
        if with_data {
            // One that lost its children may not be the only one, and no look without data would tell.
            self.data_in_doubt = observation != Observation::Good || lost_children;
        }
        observation
    }

    /// Returns the architectures for which a canary was there; all where nobody looked.
    fn architectures(&self, key: &str, kind: Kind) -> Architectures {
        let index = self.context.store.index();
        match index.get(&self.context.mirror, key).map(|entry| &entry.presence) {
            Some(Presence::Present(proof)) if kind == Kind::Hosted => proof.architectures,
            _ => Architectures::ALL,
        }
    }

    /// Returns what is left of a canary's proof without some architectures.
    fn without(&self, key: &str, gone: Architectures) -> Option<Presence> {
        let index = self.context.store.index();
        match &index.get(&self.context.mirror, key)?.presence {
            Presence::Present(proof) => Some(Presence::Present(Proof {
                architectures: proof.architectures.without(gone),
                ..proof.clone()
            })),
            _ => None,
        }
    }

    /// Reads a bit of a blob of an image; of an index, from the first of its images that is there of those
    /// that were.
    async fn read_data(
        &self,
        repository: &str,
        manifest: &Manifest,
        known: Architectures,
        timeout: Duration,
    ) -> Data {
        let client = &self.context.client;
        let mut blob = manifest.blob.clone();
        let mut gone = Architectures::NONE;
        let named = manifest
            .children
            .iter()
            .filter_map(|child| Some((child, Architectures::of(child.architecture.as_deref()?))))
            .filter(|(_, architecture)| known.contains(*architecture));
        // One for all: a round that takes too long would pass for one that stalls.
        let deadline = Instant::now() + timeout;
        for (child, architecture) in named.take(CHILDREN) {
            match client.get(repository, &child.digest.to_string(), deadline).await {
                Answer::Exists(manifest) => {
                    gone = Architectures::NONE;
                    blob = manifest.blob;
                    break;
                }
                Answer::Missing => gone = gone.or(architecture),
                other => {
                    return Data::Observed(Observation::of(&other).unwrap_or(Observation::Good));
                }
            }
        }
        // Where nobody looked before, there is nothing that could be gone.
        if !gone.is_empty() && known != Architectures::ALL {
            return Data::NoChild(gone);
        }
        let Some(blob) = blob else {
            return Data::Observed(Observation::Good);
        };
        let deadline = Instant::now() + timeout;
        Data::Observed(
            match client
                .beginning(repository, &blob.digest, BLOB_BYTES, deadline)
                .await
            {
                // The image may be broken, which says nothing of others.
                Ok(_)
                | Err(
                    Failure::Missing
                    | Failure::RateLimited { .. }
                    | Failure::Ambiguous(Ambiguity::DigestMismatch),
                ) => Observation::Good,
                Err(_) => Observation::Bad(Fault::DataPath),
            },
        )
    }

    /// Notes that an image that was there is not to be had. Says nothing of health; but when it is
    /// one after the other, the mirror was emptied, or gives nothing to Kagami any more, and every
    /// proof is void.
    fn gone(&mut self, key: &str, presence: Option<Presence>, answer: &Answer, asked_at: Timestamp) {
        let Some(presence) = presence else { return };
        self.resume();
        self.canaries.retain(|known| known.key != key);
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
                .set_health(&self.context.mirror, self.machine.health());
        }
    }

    /// Returns an image known to be there, each time another one.
    fn next_canary(&mut self) -> Option<Canary> {
        if self.canaries.is_empty() || self.rounds.is_multiple_of(2 * BLOB_EVERY) {
            let index = self.context.store.index();
            self.canaries = index
                .entries(&self.context.mirror)
                .filter_map(|(key, entry)| match &entry.presence {
                    Presence::Present(proof) if !proof.architectures.is_empty() => Some(Canary {
                        key: key.to_owned(),
                        digest: proof.digest.clone(),
                    }),
                    _ => None,
                })
                .take(CANARIES)
                .collect();
        }
        let position = usize::try_from(self.rounds).unwrap_or_default() % self.canaries.len().max(1);
        self.canaries.get(position).cloned()
    }
}
