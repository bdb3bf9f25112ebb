//! The health of one mirror: a ping, an image known to be there, now and then a blob.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::Context;
use crate::{
    clock,
    domain::{
        answer::{Answer, Failure},
        health::{Fault, Health, Machine, Observation, State},
        image::Reference,
        mirror::{HealthSettings, Mirror},
        presence::Presence,
    },
    state::Observed,
};

/// Every so many rounds a blob is read: a mirror that hangs while sending data is worse than a dead
/// one, because nodes wait for it.
const BLOB_EVERY: u32 = 15;

/// How much of a blob is read.
const BLOB_BYTES: u64 = 64 * 1024;

/// How many known images take turns as canary.
const CANARIES: usize = 16;

/// The shortest pause between two rounds that something bad calls for.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// Watches the mirror until the task is dropped. `observed` is what others saw of it.
pub(super) async fn run(context: Context, mut observed: mpsc::Receiver<Observed>) {
    let health = context
        .present()
        .map_or_else(|| Health::unknown(clock::now()), |present| present.health());
    let mut prober = Prober {
        machine: Machine::resume(HealthSettings::default(), health),
        canaries: Vec::new(),
        rounds: 0,
        context,
    };
    while let Some(present) = prober.context.present() {
        let settings = present.settings();
        if prober.machine.health() != present.health() {
            // Somebody else had to say something, because this task did not for too long.
            prober.machine = Machine::resume(settings.health, present.health());
        }
        prober.machine.configure(settings.health);
        let started = Instant::now();
        let observation = prober.round(settings).await;
        prober.context.reports.probed(&prober.context.mirror);
        let confirm_now = prober.observe(observation);
        if confirm_now {
            continue;
        }
        prober
            .wait(&mut observed, started, settings.health.interval)
            .await;
    }
}

struct Prober {
    context: Context,
    machine: Machine,
    /// Keys of images that were there when they were last looked up.
    canaries: Vec<String>,
    rounds: u32,
}

impl Prober {
    /// Waits for the next round, which something bad that others see brings forward.
    async fn wait(&mut self, observed: &mut mpsc::Receiver<Observed>, started: Instant, interval: Duration) {
        let next = started + interval;
        loop {
            tokio::select! {
                () = sleep_until(next) => return,
                Some(Observed { observation, .. }) = observed.recv() => {
                    self.observe(observation);
                    if matches!(observation, Observation::Bad(_)) && self.machine.health().state != State::Unhealthy {
                        // Many probes of one hiccup speak with one voice: it takes a look of our
                        // own to confirm it.
                        while observed.try_recv().is_ok() {}
                        sleep_until(next.min(started + SHORTEST_PAUSE)).await;
                        return;
                    }
                }
            }
        }
    }

    /// Takes in an observation and publishes what changed. Returns whether to look again at once.
    fn observe(&mut self, observation: Observation) -> bool {
        let before = self.machine.health();
        let observed = self.machine.observe(observation, clock::now());
        if observed.changed {
            self.publish(before.state);
        } else if before != self.machine.health() {
            self.context
                .store
                .set_health(&self.context.mirror, self.machine.health());
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
            Err(failure) => return Observation::Bad(fault_of_ping(failure)),
        }
        let Some(canary) = self.next_canary() else {
            return Observation::Good;
        };
        let Ok(reference) = Reference::parse(&canary) else {
            return Observation::Good;
        };
        let Ok(repository) = settings.mapping.repository_path(&reference) else {
            return Observation::Good;
        };
        let asked = reference.manifest_reference();
        let deadline = Instant::now() + timeout;
        let with_blob = self.rounds.is_multiple_of(BLOB_EVERY);
        let answer = if with_blob {
            self.context.client.get(&repository, asked, deadline).await
        } else {
            self.context.client.head(&repository, asked, deadline).await
        };
        match &answer {
            Answer::Exists(manifest) => {
                self.machine.canary(&canary, true, clock::now());
                match &manifest.blob {
                    Some(blob) if with_blob => {
                        let deadline = Instant::now() + timeout;
                        let read = self
                            .context
                            .client
                            .blob(&repository, &blob.digest, BLOB_BYTES, deadline)
                            .await;
                        if read.is_err() {
                            Observation::Bad(Fault::DataPath)
                        } else {
                            Observation::Good
                        }
                    }
                    _ => Observation::Good,
                }
            }
            Answer::Missing => {
                self.missing(&canary);
                Observation::Good
            }
            other => Observation::of(other).unwrap_or(Observation::Good),
        }
    }

    /// Notes that an image that was there is not. Says nothing of health; but when it is one after
    /// the other, the mirror was emptied, and every proof is void.
    fn missing(&mut self, canary: &str) {
        let now = clock::now();
        self.canaries.retain(|known| known != canary);
        self.context
            .store
            .index_mut()
            .write(&self.context.mirror, canary, Presence::Missing, now, now);
        if self.machine.canary(canary, false, now) {
            tracing::warn!(
                mirror = self.context.mirror,
                "images vanished from the mirror; all proofs are void"
            );
            self.context
                .store
                .set_health(&self.context.mirror, self.machine.health());
        }
    }

    /// Returns an image known to be there, each time another one.
    fn next_canary(&mut self) -> Option<String> {
        if self.canaries.is_empty() || self.rounds.is_multiple_of(2 * BLOB_EVERY) {
            let index = self.context.store.index();
            self.canaries = index
                .entries(&self.context.mirror)
                .filter(|(_, entry)| matches!(entry.presence, Presence::Present(_)))
                .take(CANARIES)
                .map(|(key, _)| key.to_owned())
                .collect();
        }
        let position = usize::try_from(self.rounds).unwrap_or_default() % self.canaries.len().max(1);
        self.canaries.get(position).cloned()
    }
}

/// Returns what is wrong with a mirror whose ping failed.
pub(super) fn fault_of_ping(failure: Failure) -> Fault {
    match failure {
        Failure::Unreachable(why) => why.into(),
        Failure::ServerError(_) => Fault::ServerError,
        Failure::RateLimited { .. } => Fault::RateLimited,
        Failure::Missing | Failure::Unauthorized | Failure::Ambiguous(_) => Fault::NotARegistry,
    }
}
