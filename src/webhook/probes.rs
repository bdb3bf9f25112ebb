//! Probes of mirrors within a review: shared, bounded, and never longer than the review's budget.
//!
//! Everybody who asks for one image at the same time waits for one probe. A probe outlives the
//! review that started it, so the next review knows, but not the mirror's own timeout. One that told
//! nothing of whether the image is there answers for some seconds more, so that a broken image is not
//! probed by each of its Pods.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

use crate::{
    clock,
    domain::{
        answer::Answer,
        decision::{Finding, Probe},
        health::Observation,
        image::ImageKey,
        presence::Presence,
        reason::Reason,
        snapshot::Snapshot,
        time::Timestamp,
    },
    metrics::Metrics,
    registry::look::{Extent, Manner},
    state::Store,
    telemetry::Throttle,
};

/// How many probes of one mirror this replica makes at once.
const IN_FLIGHT: usize = 64;

/// How long an answer that tells nothing is remembered.
const INCONCLUSIVE: Duration = Duration::from_secs(3);

/// How many answers of one kind that tell nothing are logged in a second.
const FAULTS_PER_SECOND: u32 = 1;

/// How many of those are remembered.
const INCONCLUSIVE_LIMIT: usize = 1000;

/// Makes probes. Clones share those in flight.
#[derive(Clone, Debug)]
pub struct Probes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    metrics: Metrics,
    tasks: TaskTracker,
    flights: Mutex<Flights>,
    faults: Throttle<Reason>,
}

type FlightKey = (String, ImageKey);

/// A probe under way, or one that has landed and is remembered.
#[derive(Clone, Debug)]
struct Flight {
    /// The mirror's `proven_since` when it asked. That is what tells whether it asked before the last
    /// outage: when it did is the time of this machine's clock, `proven_since` may be of another's.
    proven_since: Timestamp,
    finding: watch::Receiver<Option<Finding>>,
}

#[derive(Debug, Default)]
struct Flights {
    known: HashMap<FlightKey, Flight>,
    /// Those that have landed, and until when they are remembered.
    inconclusive: VecDeque<(Instant, FlightKey)>,
    slots: HashMap<String, Arc<Semaphore>>,
}

impl Flights {
    /// Notes that a flight has landed.
    fn land(&mut self, key: FlightKey, conclusive: bool, now: Instant) {
        if conclusive {
            self.known.remove(&key);
        } else {
            self.inconclusive.push_back((now + INCONCLUSIVE, key));
        }
        self.forget(now);
    }

    /// Forgets what was remembered for long enough, and what is too much.
    fn forget(&mut self, now: Instant) {
        while self.inconclusive.len() > INCONCLUSIVE_LIMIT
            || self.inconclusive.front().is_some_and(|(until, _)| *until <= now)
        {
            let Some((_, key)) = self.inconclusive.pop_front() else {
                return;
            };
            // It may be a later one, which is under way.
            if self.known.get(&key).is_some_and(Flight::has_landed) {
                self.known.remove(&key);
            }
        }
    }
}

impl Flight {
    fn has_landed(&self) -> bool {
        self.finding.borrow().is_some()
    }
}

impl Probes {
    /// Returns probes that run under `tasks`.
    pub fn new(store: Store, metrics: Metrics, tasks: TaskTracker) -> Self {
        Self(Arc::new(Inner {
            store,
            metrics,
            tasks,
            flights: Mutex::default(),
            faults: Throttle::new(FAULTS_PER_SECOND),
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
        for flight in flights {
            let Some(mut flight) = flight else {
                findings.push(None);
                continue;
            };
            let landed = timeout_at(deadline, flight.wait_for(Option::is_some)).await;
            findings.push(landed.ok().and_then(Result::ok).and_then(|landed| landed.clone()));
        }
        findings
    }
}

impl Inner {
    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the probe of this image that is under way or remembered, or starts one. None if too many
    /// are under way. One that asked before the mirror's last outage does not count.
    fn join_or_start(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        probe: &Probe,
    ) -> Option<watch::Receiver<Option<Finding>>> {
        let mirror = snapshot.routing.mirror(probe.mirror);
        let proven_since = snapshot.health_of(probe.mirror).proven_since;
        let key = (mirror.name.clone(), probe.key.clone());
        let mut flights = self.flights();
        flights.forget(Instant::now());
        if let Some(flight) = flights.known.get(&key)
            && flight.proven_since >= proven_since
        {
            return Some(flight.finding.clone());
        }
        let slots = flights
            .slots
            .entry(mirror.name.clone())
            .or_insert_with(|| Arc::new(Semaphore::new(IN_FLIGHT)));
        let Ok(slot) = Arc::clone(slots).try_acquire_owned() else {
            self.metrics.probed(&mirror.name, "not_started");
            return None;
        };
        let (landed, finding) = watch::channel(None);
        let flight = Flight {
            proven_since,
            finding: finding.clone(),
        };
        flights.known.insert(key.clone(), flight);
        drop(flights);
        let probe = probe.clone();
        let timeout = mirror.health.timeout;
        let mut landing = Landing {
            inner: Arc::clone(self),
            key,
            proven_since,
            conclusive: true,
            slot,
        };
        drop(self.tasks.spawn(async move {
            let (finding, conclusive) = landing
                .inner
                .probe(&landing.key, &probe, proven_since, Instant::now() + timeout)
                .await;
            landing.conclusive = conclusive;
            landed.send_replace(Some(finding));
            drop(landing);
        }));
        Some(finding)
    }

    /// Returns what was found, and whether that tells if the image is there.
    async fn probe(
        &self,
        (mirror, key): &FlightKey,
        probe: &Probe,
        proven_since: Timestamp,
        deadline: Instant,
    ) -> (Finding, bool) {
        let Some(client) = self.store.client(mirror) else {
            return (Finding::Not(Reason::Internal), true);
        };
        // What is seen is as old as the question: the mirror may have gone and come in between.
        let asked_at = clock::now();
        let manner = Manner::AtOnce(deadline);
        let (answer, platforms) = client
            .look(&probe.repository, &probe.reference, manner, Extent::Manifests)
            .await;
        let mut finding = Finding::of(&answer, platforms);
        if let Finding::Present(proof) = &mut finding {
            self.store.index().complete(mirror, key.by_ref(), proof);
        }
        let seen = match (&finding, &answer) {
            (Finding::Present(proof), _) => Some(Presence::Present(proof.clone())),
            (_, Answer::Missing) => Some(Presence::Missing),
            _ => None,
        };
        let conclusive = seen.is_some();
        if let Some(seen) = seen {
            self.store.see(mirror, key.by_ref(), seen, asked_at, proven_since);
        }
        // What is well is no news; only pings heal a mirror.
        if let Some(Observation::Bad(..)) = Observation::of(&answer) {
            self.store.doubted(mirror);
        }
        let result = match &finding {
            Finding::Present(_) => "present",
            Finding::Not(reason) | Finding::Failed(reason, _) => reason.as_str(),
        };
        self.metrics.probed(mirror, result);
        if let Finding::Failed(reason, words) = &finding
            && answer.proves_nothing()
            && let Some(suppressed) = self.faults.admit(*reason, Instant::now().into_std())
        {
            tracing::warn!(mirror, image = %key, %reason, answer = %words, suppressed, "a look for an image proved nothing");
        }
        (finding, conclusive)
    }
}

/// Ends a flight however its task ends, so that a panic does not leave an image without probes.
struct Landing {
    inner: Arc<Inner>,
    key: FlightKey,
    proven_since: Timestamp,
    conclusive: bool,
    #[expect(dead_code, reason = "held until the probe ends")]
    slot: OwnedSemaphorePermit,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let key = self.key.clone();
        let mut flights = self.inner.flights();
        // Another one may have taken its place, because this one asked before an outage.
        if flights
            .known
            .get(&key)
            .is_some_and(|flight| flight.proven_since == self.proven_since)
        {
            flights.land(key, self.conclusive, Instant::now());
        }
    }
}
