//! Carries what changed in the store to the API server.
//!
//! What is to be written, and in which order, is planned by `queues`, with the `images` and the `statuses`
//! of each mirror; this collects what they plan by, sends what they say, and tells them what came of it.
//!
//! - The end of a sweep is told only after every change that it found was written, because readers
//!   believe what they have up to the version that it names.
//! - What was written is known by version; nothing is ever overwritten unseen.

mod images;
mod queues;
mod send;
mod statuses;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use self::{
    images::{Found, Outcome},
    queues::Queues,
    send::{Sender, Sent},
    statuses::StatusOutcome,
};
use super::{Leader, definitions::Lacking, mirrors::ClusterView, status::Seen};
use crate::{
    clock,
    cluster::{
        objects::Object,
        sources,
        watch::{Event, Pulse, follow},
    },
    domain::{
        health::Health, image::Class, mirror::Prefer, presence::Version, rate::AdaptiveRate,
        routing::MirrorId, snapshot::Snapshot, time::Timestamp,
    },
};

/// How often the store is asked for changed images; health and sweeps announce themselves.
const LOOK: Duration = Duration::from_millis(250);

/// How many images are written at once.
const AT_ONCE: usize = 8;

/// How many images are written a second: at worst, at first and at best.
const RATES: [u32; 3] = [2, 20, 100];

/// What is to be written, with what the watch of MirroredImages tells of it. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Images {
    queues: Arc<Mutex<Queues>>,
    /// How far the watch has come; none before everything was listed once.
    reached: watch::Sender<Option<Version>>,
}

impl Images {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows MirroredImages until it is dropped. What is listed first goes into the store.
    pub(super) async fn follow(self, leader: Leader) {
        let (_never, relists) = watch::channel(0);
        let source = sources::images();
        let never = follow(
            leader.client.clone(),
            source,
            Pulse::default(),
            relists,
            |event| {
                self.take(&leader, event);
            },
        );
        match never.await {}
    }

    fn take(&self, leader: &Leader, event: Event<Object>) {
        let event = event.map(|object| Found::of(&object));
        let mut queues = self.queues();
        queues.take(event, &mut leader.store.index_mut(), clock::now());
        let reached = queues.reached();
        drop(queues);
        self.reached.send_if_modified(|before| {
            let differs = *before != reached;
            *before = reached;
            differs
        });
    }

    /// Waits until everything was listed once. Returns the number of images, and the latest time that
    /// any of them tells.
    pub(super) async fn listed(&self) -> (usize, Timestamp) {
        let mut reached = self.reached.subscribe();
        // This holds the other end.
        drop(reached.wait_for(Option::is_some).await);
        let queues = self.queues();
        (queues.len(), queues.newest())
    }
}

/// Returns who publishes, until this process may not write any more. `published` becomes the health of
/// mirrors as the API server has it.
pub(super) async fn run(
    leader: Leader,
    images: Images,
    definitions: watch::Receiver<Lacking>,
    published: watch::Sender<BTreeMap<String, Health>>,
) {
    let publisher = Publisher {
        sender: Sender::new(&leader),
        cluster: leader.cluster.clone(),
        leader,
        images,
        definitions,
        published,
        rate: {
            let [slowest, first, fastest] = RATES;
            AdaptiveRate::new(slowest, first, fastest)
        },
        started: Instant::now(),
        sending: JoinSet::new(),
        images_under_way: 0,
    };
    publisher.run().await;
}

struct Publisher {
    leader: Leader,
    images: Images,
    cluster: watch::Receiver<Option<Arc<ClusterView>>>,
    definitions: watch::Receiver<Lacking>,
    published: watch::Sender<BTreeMap<String, Health>>,
    sender: Sender,
    rate: AdaptiveRate,
    started: Instant,
    sending: JoinSet<Sent>,
    images_under_way: usize,
}

impl Publisher {
    async fn run(mut self) {
        let mut snapshots = self.leader.store.subscribe();
        let mut reports = self.leader.reports.subscribe();
        let mut reached = self.images.reached.subscribe();
        loop {
            snapshots.mark_unchanged();
            reports.mark_unchanged();
            reached.mark_unchanged();
            self.cluster.mark_unchanged();
            self.collect();
            let wait = self.send();
            tokio::select! {
                Some(sent) = self.sending.join_next() => {
                    let mut next = Some(sent);
                    while let Some(sent) = next {
                        match sent {
                            Ok(sent) if sent.may_write => self.took(sent),
                            Ok(_) => {
                                tracing::warn!("not leading any more: nothing is written");
                                return;
                            }
                            // Whoever owns this task tells of it.
                            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                            Err(_) => return,
                        }
                        next = self.sending.try_join_next();
                    }
                }
                Ok(()) = snapshots.changed() => {}
                Ok(()) = reports.changed() => {}
                Ok(()) = reached.changed() => {}
                Ok(()) = self.cluster.changed() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Takes in what changed.
    fn collect(&self) {
        let Some(cluster) = self.cluster.borrow().clone() else {
            return;
        };
        let Leader { store, reports, .. } = &self.leader;
        let snapshot = store.snapshot();
        let in_force = snapshot.routing.mirrors();
        let in_force: BTreeSet<&str> = in_force.map(|(_, mirror)| mirror.name.as_str()).collect();
        let mut queues = self.images.queues();
        let others = queues.stand(&cluster, &in_force, &store.index());
        for name in others {
            // Whatever is left of the mirror that had its name before is no proof.
            let newest = queues.get(&name).map(|mirror| mirror.images.newest());
            let earliest = newest.unwrap_or_default().after(Duration::from_millis(1));
            let id = snapshot.routing.find(&name);
            if id.is_some_and(|id| snapshot.health_of(id).proven_since < earliest) {
                store.set_health(&name, Health::unknown(earliest.max(clock::now())));
            }
        }
        // Sweeps first: whatever they wrote to the index is among the changes taken after.
        let reports: Vec<_> = cluster.mirrors.keys().map(|name| reports.of(name)).collect();
        let changes = store.index_mut().take_changes();
        let index = store.index();
        queues.changed(&changes, &index);
        for (name, report) in cluster.mirrors.keys().zip(reports) {
            let Some(mirror) = queues.get_mut(name) else {
                continue;
            };
            for class in Class::ALL {
                if let Some(end) = report.sweep(class)
                    && mirror.status.swept(class, end)
                {
                    mirror.images.swept(class, &index);
                }
            }
            for class in mirror.status.waiting() {
                mirror.images.hurry(class);
            }
        }
        drop(index);
        let published: BTreeMap<String, Health> = cluster
            .mirrors
            .iter()
            .filter_map(|(name, resource)| Some((name.clone(), queues.get(name)?.status.health(resource)?)))
            .collect();
        self.published.send_if_modified(|before| {
            let differs = *before != published;
            *before = published;
            differs
        });
    }

    /// Sends what may be sent now. Returns how long to wait at most before the next round.
    fn send(&mut self) -> Duration {
        self.send_statuses();
        let mut queues = self.images.queues();
        let index = self.leader.store.index();
        while self.images_under_way < AT_ONCE {
            let now = Instant::now();
            let since_start = now.duration_since(self.started);
            let wait = self.rate.wait(since_start);
            if !wait.is_zero() {
                return wait.min(LOOK);
            }
            let Some(write) = queues.next(&index, now) else {
                break;
            };
            self.rate.take(since_start);
            self.images_under_way += 1;
            self.sending.spawn(self.sender.clone().image(write));
        }
        LOOK
    }

    fn send_statuses(&mut self) {
        let Some(cluster) = self.cluster.borrow().clone() else {
            return;
        };
        let snapshot = self.leader.store.snapshot();
        let by_name = snapshot.routing.by_name();
        let lacking = self.definitions.borrow().clone();
        let mut queues = self.images.queues();
        let reached = queues.reached().unwrap_or_default();
        for (name, resource) in &cluster.mirrors {
            let Some(mirror) = queues.get_mut(name) else {
                continue;
            };
            let report = self.leader.reports.of(name);
            let id = by_name.get(name.as_str()).copied();
            let seen = Seen {
                generation: resource.generation,
                faults: &resource.faults,
                unknown: &resource.unknown,
                pull_secret: resource.pull_secret,
                health: id.map(|id| snapshot.health_of(id)),
                failing_upstreams: id.map(|id| failing_upstreams(&snapshot, id)).unwrap_or_default(),
                missing_secret: resource.missing_secret.as_deref(),
                secret_fault: resource.secret_fault.as_deref(),
                credentials_accepted: report.credentials_accepted,
                nodes_can_pull: report.nodes_can_pull,
                sweeps: [None; 2],
                platforms: &cluster.platforms,
                lacking: lacking.as_deref(),
            };
            let now = (Instant::now(), clock::now());
            let write = mirror.status.next(resource, seen, &mirror.images, reached, now);
            if let Some(write) = write {
                let sender = self.sender.clone();
                self.sending.spawn(sender.status(name.clone(), write));
            }
        }
    }

    /// Takes in what became of a write.
    fn took(&mut self, sent: Sent) {
        let now = Instant::now();
        match sent.what {
            send::What::Image {
                mirror,
                key,
                outcome,
                took,
            } => {
                self.images_under_way -= 1;
                let is_well = !matches!(outcome, Outcome::Failed);
                self.rate
                    .answered(took, is_well, now.duration_since(self.started));
                let mut queues = self.images.queues();
                let mut index = self.leader.store.index_mut();
                queues.done(&mirror, &key, outcome, &mut index, (now, clock::now()));
            }
            send::What::Status {
                mirror,
                write,
                outcome,
            } => {
                if let StatusOutcome::Stored(..) = outcome {
                    self.tell(&mirror, &write);
                }
                if let Some(mirror) = self.images.queues().get_mut(&mirror) {
                    mirror.status.done(*write, outcome, now);
                }
            }
            send::What::Event => {}
        }
    }

    /// Writes an Event if a mirror's health changed.
    fn tell(&mut self, mirror: &str, write: &statuses::StatusWrite) {
        let cluster = self.cluster.borrow().clone();
        let uid = cluster.and_then(|cluster| Some(cluster.mirrors.get(mirror)?.uid.clone()));
        if let Some(message) = send::message(&write.current, &write.next)
            && let Some(uid) = uid
        {
            let sender = self.sender.clone();
            self.sending.spawn(sender.event(mirror.to_owned(), uid, message));
        }
    }
}

/// Returns the upstreams that fail, of a mirror that is used only then.
fn failing_upstreams(snapshot: &Snapshot, mirror: MirrorId) -> Vec<String> {
    let settings = snapshot.routing.mirror(mirror);
    if settings.prefer == Prefer::Mirror {
        return Vec::new();
    }
    let fails = |host: &&str| snapshot.failing_upstreams.contains(*host);
    let failing: BTreeSet<&str> = settings.upstreams().filter(fails).collect();
    failing.into_iter().map(ToOwned::to_owned).collect()
}
