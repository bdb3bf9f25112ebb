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
    images::Outcome,
    queues::Queues,
    send::{PROBE, Sender, Sent},
    statuses::StatusOutcome,
};
use super::{
    definitions::Lacking,
    leader::Leader,
    mirrors::{ClusterView, MirrorResource},
    placed::Placing,
    status::{Holds, Seen},
};
use crate::{
    clock,
    cluster::{
        events::Message,
        objects::{self, Object},
        sources,
        watch::{Event, follow},
    },
    companion::mirror::reports::Refusal,
    domain::{
        health::Health, image::Class, mirror::Prefer, presence::Version, rate::AdaptiveRate,
        routing::MirrorId, snapshot::Snapshot, time::Timestamp,
    },
};

/// How often the store is asked for changed images; health and sweeps announce themselves.
const LOOK: Duration = Duration::from_millis(250);

/// How many images are written at once.
const AT_ONCE: usize = 8;

/// How often an Event of one reason is written of a mirror, but for those of its health.
const TOLD: Duration = Duration::from_mins(1);

/// The pause of all images where the API server has none: their definition is away.
const PAUSE: Duration = Duration::from_secs(2);

/// How many images are written a second: at worst, at first and at best.
const RATES: [u32; 3] = [2, 20, 100];

/// How many mirrors are named that one is not separated from.
const NOT_SEPARATED: usize = 3;

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
        let pulse = leader.pulses.of(&source);
        let never = follow(leader.client.clone(), source, pulse, relists, |event| {
            self.take(&leader, event);
        });
        match never.await {}
    }

    fn take(&self, leader: &Leader, event: Event<Object>) {
        let event = event.map(|object| objects::entry(&object));
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
    (definitions, placed): (watch::Receiver<Lacking>, watch::Receiver<Placing>),
    published: watch::Sender<BTreeMap<String, Health>>,
) {
    let publisher = Publisher {
        sender: Sender::new(&leader),
        cluster: leader.cluster.clone(),
        leader,
        images,
        definitions,
        placed,
        published,
        rate: {
            let [slowest, first, fastest] = RATES;
            AdaptiveRate::new(slowest, first, fastest)
        },
        started: Instant::now(),
        sending: JoinSet::new(),
        images_under_way: 0,
        shown: BTreeMap::new(),
        told: Told::default(),
        paused_until: None,
    };
    publisher.run().await;
}

struct Publisher {
    leader: Leader,
    images: Images,
    cluster: watch::Receiver<Option<Arc<ClusterView>>>,
    definitions: watch::Receiver<Lacking>,
    placed: watch::Receiver<Placing>,
    published: watch::Sender<BTreeMap<String, Health>>,
    sender: Sender,
    rate: AdaptiveRate,
    started: Instant,
    sending: JoinSet<Sent>,
    images_under_way: usize,
    /// The conditions of all mirrors, as the metrics have them.
    shown: BTreeMap<String, Vec<Holds>>,
    told: Told,
    paused_until: Option<Instant>,
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
            self.placed.mark_unchanged();
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
                Ok(()) = self.placed.changed() => {}
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
        if self.paused_until.is_some_and(|until| until > Instant::now()) {
            return LOOK;
        }
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
        let placed = self.placed.borrow().clone();
        let mut queues = self.images.queues();
        let reached = queues.reached().unwrap_or_default();
        let looping = looping(&snapshot);
        let mut conditions = BTreeMap::new();
        for (name, resource) in &cluster.mirrors {
            let Some(mirror) = queues.get_mut(name) else {
                continue;
            };
            let report = self.leader.reports.of(name);
            let id = by_name.get(name.as_str()).copied();
            let seen = Seen {
                generation: resource.document.generation,
                faults: &resource.document.faults,
                unknown: &resource.document.unknown,
                paused: snapshot.paused,
                overlaps: id.map(|id| snapshot.routing.overlaps(id)).unwrap_or_default(),
                not_separated: id.map(|id| not_separated(&snapshot, id)).unwrap_or_default(),
                pull_secrets: placed.of(name, resource.pull_secret()),
                health: id.map(|id| snapshot.health_of(id).clone()),
                cause_is_due: false,
                failing_upstreams: id.map(|id| failing_upstreams(&snapshot, id)).unwrap_or_default(),
                missing_secret: resource.missing_secret.as_deref(),
                secret_fault: resource.secret_fault.as_deref(),
                credentials: report
                    .credentials()
                    .map(|refused| refused.map_err(|refusal| (refusal.reason(), told(resource, &refusal)))),
                nodes: report.nodes,
                pull_lasts: report.pull_lasts,
                unrecorded: report.unrecorded,
                forward_allowed: self.leader.forward_allowed(resource),
                images_readable: report.images_readable,
                is_filled: resource.is_filled(),
                copy_logins: resource.copy_logins.clone(),
                is_idle: report.copies.as_ref().is_some_and(|copies| copies.is_idle),
                writing: report.copies.and_then(|copies| copies.writing),
                sweeps: [None; 2],
                not_written: None,
                platforms: &cluster.platforms,
                looping: looping.clone(),
                lacking: lacking.as_deref(),
            };
            conditions.insert(name.clone(), mirror.status.conditions(resource));
            let now = (Instant::now(), clock::now());
            let write = mirror.status.next(resource, seen, &mirror.images, reached, now);
            if let Some(write) = write {
                let sender = self.sender.clone();
                self.sending.spawn(sender.status(name.clone(), write));
            }
        }
        drop(queues);
        self.show(conditions);
    }

    /// Shows in the metrics what the conditions say.
    fn show(&mut self, conditions: BTreeMap<String, Vec<Holds>>) {
        if self.shown == conditions {
            return;
        }
        let metrics = &self.leader.metrics;
        let has = |mirror: &String, type_: &str| {
            let now = conditions.get(mirror);
            now.is_some_and(|now| now.iter().any(|(other, _)| *other == type_))
        };
        let is_gone =
            |(mirror, before): (&String, &Vec<Holds>)| before.iter().any(|(type_, _)| !has(mirror, type_));
        if self.shown.iter().any(is_gone) {
            metrics.forget_conditions();
        }
        for (mirror, conditions) in &conditions {
            for (condition, holds) in conditions {
                metrics.set_condition(mirror, condition, *holds);
            }
        }
        self.shown = conditions;
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
                if let Outcome::NotInstalled = outcome {
                    self.paused_until = Some(now + PAUSE);
                }
                let is_well = !matches!(outcome, Outcome::Failed(_));
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

    /// Writes Events of what changed in a mirror's health and with its credentials.
    fn tell(&mut self, mirror: &str, write: &statuses::StatusWrite) {
        let Some(cluster) = self.cluster.borrow().clone() else {
            return;
        };
        let Some(resource) = cluster.mirrors.get(mirror) else {
            return;
        };
        let uid = &resource.document.uid;
        self.told
            .0
            .retain(|(mirror, _), _| cluster.mirrors.contains_key(mirror));
        for message in send::messages(&write.current, &write.next) {
            if !self.told.is_due(mirror, &message, Instant::now()) {
                continue;
            }
            let sender = self.sender.clone();
            self.sending
                .spawn(sender.event(mirror.to_owned(), uid.clone(), message));
        }
    }
}

/// When an Event of a reason was written last, of each mirror.
#[derive(Default)]
struct Told(BTreeMap<(String, &'static str), Instant>);

impl Told {
    /// Whether to write an Event. What is seen of health has its thresholds; of credentials each answer tells,
    /// and two servers behind one address may tell otherwise in turn.
    fn is_due(&mut self, mirror: &str, message: &Message, now: Instant) -> bool {
        let key = (mirror.to_owned(), message.reason);
        let last = self.0.get(&key);
        let is_due = message.action == PROBE || last.is_none_or(|last| now.duration_since(*last) >= TOLD);
        if is_due {
            self.0.insert(key, now);
        }
        is_due
    }
}

/// Returns what to tell of a refusal.
fn told(resource: &MirrorResource, refusal: &Refusal) -> String {
    let form = resource.document.form.as_ref();
    let (host, secret) = form.map_or(("the mirror", None), |(mirror, connection)| {
        let host = connection.endpoint.rsplit("//").next().unwrap_or_default();
        (host, mirror.read_secret.as_deref())
    });
    refusal.tell(host, secret)
}

/// Returns the owners that are left alone because they fight rewrites, as people know them; none while nobody knows.
fn looping(snapshot: &Snapshot) -> Option<Vec<(String, Timestamp)>> {
    let looping = snapshot.owners.looping(clock::now()).into_iter();
    let looping = looping.map(|noted| (noted.owner.describe(), noted.until));
    snapshot.owners.is_known().then(|| looping.collect())
}

/// Returns the first few mirrors that one is not separated from, and how many more there are.
fn not_separated(snapshot: &Snapshot, id: MirrorId) -> (Vec<&str>, usize) {
    let mut others = snapshot.routing.not_separated_from(id);
    let named = others.by_ref().take(NOT_SEPARATED).collect();
    (named, others.count())
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
