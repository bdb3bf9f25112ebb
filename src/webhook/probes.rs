//! Probes of mirrors within a review: shared, bounded, and never longer than the review's budget.
//!
//! Everybody who asks for one image at the same time waits for one probe. A probe outlives the
//! review that started it, so the next review knows, but not the mirror's own timeout.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

use crate::{
    clock,
    domain::{
        answer::Answer,
        decision::{Finding, Probe},
        health::Observation,
        presence::Presence,
        reason::Reason,
        snapshot::Snapshot,
        time::Timestamp,
    },
    metrics::Metrics,
    state::{Observed, Store},
};

/// How many probes of one mirror this replica makes at once.
const IN_FLIGHT: usize = 64;

/// Makes probes. Clones share those in flight.
#[derive(Clone, Debug)]
pub struct Probes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    metrics: Metrics,
    observations: mpsc::Sender<Observed>,
    tasks: TaskTracker,
    flights: Mutex<Flights>,
}

type FlightKey = (String, String);

/// What a probe brought, and when it asked.
type Landed = (Timestamp, Finding);

#[derive(Debug, Default)]
struct Flights {
    under_way: HashMap<FlightKey, watch::Receiver<Option<Landed>>>,
    slots: HashMap<String, Arc<Semaphore>>,
}

impl Probes {
    /// Returns probes that tell what they see of health to `observations` and run under `tasks`.
    pub fn new(
        store: Store,
        metrics: Metrics,
        observations: mpsc::Sender<Observed>,
        tasks: TaskTracker,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            metrics,
            observations,
            tasks,
            flights: Mutex::default(),
        }))
    }

    /// Makes all probes at once and returns what each brought by the deadline.
    pub async fn make(
        &self,
        snapshot: &Snapshot,
        probes: &[Probe],
        deadline: Instant,
    ) -> Vec<Option<Finding>> {
        let flights: Vec<_> = probes
            .iter()
            .map(|probe| self.0.join_or_start(snapshot, probe))
            .collect();
        let mut findings = Vec::with_capacity(flights.len());
        for (probe, flight) in probes.iter().zip(flights) {
            let Some(mut flight) = flight else {
                findings.push(None);
                continue;
            };
            let landed = timeout_at(deadline, flight.wait_for(Option::is_some)).await;
            let landed = landed.ok().and_then(Result::ok).and_then(|landed| landed.clone());
            // Somebody may have asked before the mirror's last outage.
            let proven_since = snapshot.health_of(probe.mirror).proven_since;
            let landed = landed.filter(|(asked_at, _)| *asked_at >= proven_since);
            findings.push(landed.map(|(_, finding)| finding));
        }
        findings
    }
}

impl Inner {
    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the probe under way for this image, or starts one. None if too many are under way.
    fn join_or_start(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        probe: &Probe,
    ) -> Option<watch::Receiver<Option<Landed>>> {
        let mirror = snapshot.routing.mirror(probe.mirror);
        let key = (mirror.name.clone(), probe.key.clone());
        let mut flights = self.flights();
        if let Some(flight) = flights.under_way.get(&key) {
            return Some(flight.clone());
        }
        let slots = flights
            .slots
            .entry(mirror.name.clone())
            .or_insert_with(|| Arc::new(Semaphore::new(IN_FLIGHT)));
        let Ok(slot) = Arc::clone(slots).try_acquire_owned() else {
            self.metrics.probed(&mirror.name, "not_started");
            return None;
        };
        let (landed, flight) = watch::channel(None);
        flights.under_way.insert(key.clone(), flight.clone());
        drop(flights);
        let probe = probe.clone();
        let timeout = mirror.health.timeout;
        let landing = Landing {
            inner: Arc::clone(self),
            key,
            slot,
        };
        drop(self.tasks.spawn(async move {
            // What is seen is as old as the question: the mirror may have gone and come in between.
            let asked_at = clock::now();
            let finding = landing
                .inner
                .probe(&landing.key, &probe, asked_at, Instant::now() + timeout)
                .await;
            landed.send_replace(Some((asked_at, finding)));
            drop(landing);
        }));
        Some(flight)
    }

    async fn probe(
        &self,
        (mirror, key): &FlightKey,
        probe: &Probe,
        asked_at: Timestamp,
        deadline: Instant,
    ) -> Finding {
        let Some(client) = self.store.client(mirror) else {
            return Finding::Not(Reason::Internal);
        };
        let (answer, architectures) = client.look(&probe.repository, &probe.reference, deadline).await;
        let finding = Finding::of(&answer, architectures);
        match (&finding, &answer) {
            (Finding::Present(proof), _) => {
                self.store
                    .index_mut()
                    .see(mirror, key, Presence::Present(proof.clone()), asked_at);
            }
            (_, Answer::Missing) => self
                .store
                .index_mut()
                .see(mirror, key, Presence::Missing, asked_at),
            _ => {}
        }
        // What is well is no news; only the companion's own looks heal a mirror.
        if let Some(observation @ Observation::Bad(_)) = Observation::of(&answer) {
            // A full queue means that plenty was seen of this mirror already.
            let told = Observed {
                mirror: mirror.clone(),
                observation,
            };
            drop(self.observations.try_send(told));
        }
        let result = match &finding {
            Finding::Present(_) => "present",
            Finding::Not(reason) => reason.as_str(),
        };
        self.metrics.probed(mirror, result);
        finding
    }
}

/// Ends a flight however its task ends, so that a panic does not leave an image without probes.
struct Landing {
    inner: Arc<Inner>,
    key: FlightKey,
    #[expect(dead_code, reason = "held until the probe ends")]
    slot: OwnedSemaphorePermit,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.inner.flights().under_way.remove(&self.key);
    }
}
