//! Turns the images of Pods that are stuck back to what their users wrote, or forward to a mirror that has proof:
//! `domain::rescue` plans it, this carries it out, at a bounded rate, one patch for each Pod that applies only to the
//! very Pod that was judged.
//!
//! A turn is begun within six seconds after a failure was told, and done within seven: the API server is told how long it
//! may take, whatever it waits for, and nothing is sent for which less than a second is left.
//!
//! How long ago a failure was told is known from asking which version is the newest. While a Pod waits to start from a
//! mirror, that is each second, so a failure seems up to a second and the way of the event older than it is, and five of
//! the six seconds are left to turn it. While none does it is each five seconds, so of a failure that nothing announced, as
//! of a container that ran and whose image is pulled anew, hardly a second may be left: then the Pod is turned after its
//! next failure. A Pod that comes to a node is asked for at once, long before it can fail.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::ObjectReference;
use serde::de::IgnoredAny;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, timeout},
};

use super::leader::Leader;
use crate::{
    clock,
    cluster::{
        events::Message,
        request::{PATIENCE, json_patch},
        watch::{Failure, newest, version},
        writer::NotWritten,
    },
    domain::{
        bucket::Bucket,
        pod::PlaceKind,
        presence::Version,
        rescue::{
            Dead, Ending, Former, Id, Known, Marks, Next, Order, Pod, PodId, Queue, Seen, Sight, Starting,
            Turning, Way,
            forward::{Ahead, Unseen},
            hang::{Hangs, field_path},
            lasting::Lasting,
            unrecorded::Unrecorded,
            volumes::Volumes,
        },
        snapshot::Snapshot,
        time::Timestamp,
    },
    state::{Demand, Why},
    telemetry::{Reminder, chain},
};

/// How often it is asked which version is the newest: what is written after that is known to be no older.
const MARK: Duration = Duration::from_secs(1);

/// The same while no Pod waits to start from a mirror.
const MARK_AT_REST: Duration = Duration::from_secs(5);

/// How long before kubelet may pull again a patch has to be done at the latest, and what it is given at least.
const MARGIN: Duration = Duration::from_secs(1);
const LEAST: Duration = Duration::from_secs(1);

/// How long a patch may take that is only made because its mirror is dead.
const UNSURE: Duration = Duration::from_secs(2);

/// How many requests are waited for at once: a slow API server costs no turns, and a dead one gets no more.
const AT_ONCE: usize = 8;

/// How often it is shown how many Pods wait, at least.
const SHOW: Duration = Duration::from_secs(5);

/// How many Events wait to be written: beyond that they are not, and the log and the Pods' annotations tell of it alone.
const EVENTS: usize = 10_000;

/// How many containers of a Pod an Event names.
const NAMED: usize = 3;

/// The pause between two looks at who goes forward: at least so long, and so many times as long as the look took.
const LOOK_AHEAD: (Duration, u32) = (Duration::from_secs(1), 20);

/// How many images a mirror is asked for after a look at who goes forward, and the pause before the same one is again.
const ASKED: usize = 20;
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// How many Pods are looked at with nothing else done meanwhile: some milliseconds.
const PORTION: usize = 100;

/// What is done for stuck Pods.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many of them are turned in a second.
    pub per_second: NonZeroU32,
    /// The registries that they may be turned forward to: `host[:port][/path]`.
    pub registries: Vec<String>,
}

/// The cluster's stuck Pods. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Ward {
    inside: Arc<Mutex<Inside>>,
    /// Something may be due.
    due: Arc<Notify>,
    /// A Pod waits to start from a mirror, and none did.
    starts: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inside {
    queue: Queue,
    /// How old what is told of Pods is at the most.
    marks: Marks,
    starting: Starting,
    /// Mirrors that are gone.
    former: Vec<Former>,
    hangs: Hangs,
    lasting: Lasting,
    unrecorded: Unrecorded,
    volumes: Volumes,
}

impl Ward {
    pub(super) fn begin_listing(&self) {
        let inside = &mut *self.lock();
        inside.queue.begin_listing();
        inside.starting.begin_listing();
        inside.hangs.begin_listing();
        inside.lasting.begin_listing();
        inside.unrecorded.begin_listing();
        inside.volumes.begin_listing();
    }

    pub(super) fn end_listing(&self) {
        let inside = &mut *self.lock();
        inside.queue.end_listing();
        inside.starting.end_listing();
        inside.hangs.end_listing();
        inside.lasting.end_listing();
        inside.unrecorded.end_listing();
        inside.volumes.end_listing();
        self.due.notify_one();
    }

    pub(super) fn take(&self, pod: &Pod<'_>, is_listed: bool, snapshot: &Snapshot, now: Timestamp) {
        let inside = &mut *self.lock();
        let known = known(snapshot, &inside.former);
        if inside.starting.take(pod, &snapshot.routing) {
            self.starts.notify_one();
        }
        inside.hangs.take(pod, &snapshot.routing, now);
        inside.lasting.take(pod, &known, now);
        inside.unrecorded.take(pod, &known);
        inside.volumes.take(pod, &snapshot.routing);
        let seen = if is_listed {
            Seen::Listed
        } else {
            let version = version(pod.resource_version);
            Seen::Told {
                after: version.and_then(|version| inside.marks.written_after(version)),
            }
        };
        if inside.queue.take(pod, &known, seen, now) {
            self.due.notify_one();
        }
    }

    pub(super) fn remove(&self, pod: &Pod<'_>) {
        let inside = &mut *self.lock();
        inside.queue.remove(pod);
        inside.starting.remove(pod);
        inside.hangs.remove(pod);
        inside.lasting.remove(pod);
        inside.unrecorded.remove(pod);
        inside.volumes.remove(pod);
    }

    /// Takes in which mirrors are gone.
    pub(super) fn set_former(&self, former: Vec<Former>, snapshot: &Snapshot) {
        if self.lock().former != former {
            self.lock().former = former;
            self.judge(snapshot);
        }
    }

    /// Looks at the pulls that may last.
    pub(super) fn hangs<T>(&self, look: impl FnOnce(&mut Hangs) -> T) -> T {
        look(&mut self.lock().hangs)
    }

    /// Looks at the Pods that stay stuck.
    pub(super) fn lasting<T>(&self, look: impl FnOnce(&mut Lasting) -> T) -> T {
        look(&mut self.lock().lasting)
    }

    /// Looks at the Pods of whose images nothing is recorded.
    pub(super) fn unrecorded<T>(&self, look: impl FnOnce(&mut Unrecorded) -> T) -> T {
        look(&mut self.lock().unrecorded)
    }

    /// Looks at the Pods that are stuck on image volumes.
    pub(super) fn volumes<T>(&self, look: impl FnOnce(&mut Volumes) -> T) -> T {
        look(&mut self.lock().volumes)
    }

    /// Looks which of some Pods go forward, by what is proven now, and adds what a mirror has to be looked at for.
    fn look_ahead(&self, pods: &[Id], by: &Ahead<'_>, unseen: &mut BTreeSet<Unseen>) {
        if self.lock().queue.look_ahead(pods, by, unseen) {
            self.due.notify_one();
        }
    }

    /// Whether no Pod waits to start from a mirror, and none to be turned.
    fn rests(&self) -> bool {
        let inside = self.lock();
        inside.starting.is_empty() && inside.queue.waiting() == 0
    }

    /// Judges everything anew.
    fn judge(&self, snapshot: &Snapshot) {
        let Inside {
            queue, former, hangs, ..
        } = &mut *self.lock();
        queue.judge(&known(snapshot, former), clock::now());
        hangs.judge_anew(&snapshot.routing);
        self.due.notify_one();
    }

    /// Takes in which mirrors are dead.
    fn set_dead(&self, snapshot: &Snapshot) {
        self.lock().queue.set_dead(dead(snapshot), clock::now());
        self.due.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns which mirrors are dead, and since when.
fn dead(snapshot: &Snapshot) -> Dead {
    let mirrors = snapshot.routing.mirrors();
    let dead = mirrors.filter_map(|(id, mirror)| {
        let since = snapshot.health_of(id).dead_since()?;
        Some((mirror.name.as_str().into(), since))
    });
    dead.collect()
}

/// Returns what stuck Pods are judged by.
fn known<'a>(snapshot: &'a Snapshot, former: &'a [Former]) -> Known<'a> {
    Known {
        routing: &snapshot.routing,
        former,
        left_alone: &snapshot.left_alone,
    }
}

/// Turns Pods until this process may not write any more, once it is known whether the brake is on. What mirrors are to be
/// looked at for goes to `demand`.
pub(super) async fn run(
    leader: Leader,
    ward: Ward,
    settings: Settings,
    mut braked: watch::Receiver<bool>,
    demand: mpsc::Sender<Demand>,
) {
    if braked.wait_for(|seen| *seen).await.is_err() {
        // The task that tells has ended, and so does the leader.
        return;
    }
    let (events, written) = mpsc::channel(EVENTS);
    let marks = mark(&leader, &ward);
    let judges = judge_anew(&leader, &ward);
    let looks = look_ahead(&leader, &ward, &settings.registries, &demand);
    let turns = turn(&leader, &ward, &settings, &events);
    tokio::select! {
        never = marks => match never {},
        never = judges => match never {},
        never = looks => match never {},
        () = turns => {}
        () = write(&leader, written) => {}
    }
}

/// An Event that is to be written.
type Word = (ObjectReference, Message);

/// Writes one Event after the other, as slowly as that goes, while Pods are turned at their own rate. Returns once
/// nothing may be written any more.
async fn write(leader: &Leader, mut events: mpsc::Receiver<Word>) {
    while let Some((about, message)) = events.recv().await {
        if leader.events.tell(about, message).await.is_err() {
            return;
        }
    }
}

/// Asks again and again which version of all Pods is the newest, for what is told of them carries no time that could be
/// trusted. Other answers would not do: a bookmark says how far a watch has come, and not how new that is, and Leases may
/// be kept in another store, which counts for itself.
async fn mark(leader: &Leader, ward: &Ward) -> Infallible {
    // Few are there, and the number is that of all.
    let path = format!("/api/v1/namespaces/{}/pods", leader.namespace);
    mark_by(ward, || newest(&leader.client, &path)).await
}

/// The same by whatever asks.
async fn mark_by<F>(ward: &Ward, ask: impl Fn() -> F) -> Infallible
where
    F: Future<Output = Result<Version, Failure>>,
{
    let mut failures = Reminder::default();
    loop {
        let asked_at = clock::now();
        match ask().await {
            Ok(version) => {
                failures.ended();
                let inside = &mut *ward.lock();
                if !inside.marks.set(version, asked_at) {
                    inside.queue.forget_times(asked_at);
                }
            }
            Err(error) => {
                if failures.failed(&error.to_string(), std::time::Instant::now()) {
                    tracing::warn!(
                        error = error.to_string(),
                        "cannot ask how new what is told of Pods is, and until then none is turned; trying again"
                    );
                }
            }
        }
        sleep(MARK).await;
        if ward.rests() {
            // One that has just come is asked for at once.
            drop(timeout(MARK_AT_REST.saturating_sub(MARK), ward.starts.notified()).await);
        }
    }
}

/// Judges everything anew whenever mirrors or namespaces change.
async fn judge_anew(leader: &Leader, ward: &Ward) -> Infallible {
    let mut snapshots = leader.store.subscribe();
    let mut judged_by = Arc::clone(&snapshots.borrow_and_update());
    // Pods were taken in since this leader began, by what was known then.
    ward.judge(&judged_by);
    ward.set_dead(&judged_by);
    loop {
        // The leader holds the store.
        if snapshots.changed().await.is_err() {
            return std::future::pending().await;
        }
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let same = judged_by.paused == snapshot.paused
            && Arc::ptr_eq(&judged_by.routing, &snapshot.routing)
            && Arc::ptr_eq(&judged_by.left_alone, &snapshot.left_alone);
        if !same {
            ward.judge(&snapshot);
        }
        ward.set_dead(&snapshot);
        judged_by = snapshot;
    }
}

/// Looks again and again who goes forward: proof comes and goes without a word of the Pods.
async fn look_ahead(
    leader: &Leader,
    ward: &Ward,
    registries: &[String],
    demand: &mpsc::Sender<Demand>,
) -> Infallible {
    if registries.is_empty() {
        return std::future::pending().await;
    }
    let mut asked = HashMap::new();
    loop {
        let started = Instant::now();
        let mut unseen = BTreeSet::new();
        let upstream = ward.lock().queue.upstream();
        for pods in upstream.chunks(PORTION) {
            {
                let snapshot = leader.store.snapshot();
                let index = leader.store.index();
                let by = Ahead {
                    snapshot: &snapshot,
                    index: &index,
                    registries,
                    now: clock::now(),
                };
                ward.look_ahead(pods, &by, &mut unseen);
            }
            // Whoever writes the index or tells of Pods has its turn.
            tokio::task::yield_now().await;
        }
        ask(unseen, &mut asked, demand, started);
        let (least, times) = LOOK_AHEAD;
        sleep((started.elapsed() * times).max(least)).await;
    }
}

/// Asks for looks at images that a mirror was not seen to have since Pods went back from it, some at a time; what is known
/// of them is believed until then. What finds no room is asked for once more.
fn ask(
    unseen: BTreeSet<Unseen>,
    asked: &mut HashMap<Unseen, Instant>,
    demand: &mpsc::Sender<Demand>,
    now: Instant,
) {
    asked.retain(|_, at| now.duration_since(*at) < ASK_AGAIN);
    let unseen = unseen.into_iter().filter(|image| !asked.contains_key(image));
    for image in unseen.take(ASKED).collect::<Vec<_>>() {
        let look = Demand {
            mirror: image.0.to_string(),
            key: image.1.clone(),
            why: Why::PullFailed { is_believed: true },
        };
        if demand.try_send(look).is_ok() {
            asked.insert(image, now);
        }
    }
}

/// Tells of registries where Pods that went back begin to fail, and do no more.
fn tell_registries(before: &BTreeSet<Box<str>>, now: &BTreeSet<Box<str>>) {
    for registry in now.difference(before) {
        tracing::warn!(
            registry = &**registry,
            "a Pod that went back to this registry is not served there; others may stay where they are until one is"
        );
    }
    for registry in before.difference(now) {
        tracing::info!(
            registry = &**registry,
            "Pods may go back to this registry again: one was served there, or none was seen to fail for half an hour"
        );
    }
}

/// Carries out one order after the other. Returns once nothing may be written any more.
async fn turn(leader: &Leader, ward: &Ward, settings: &Settings, events: &mpsc::Sender<Word>) {
    let started = Instant::now();
    let per_second = settings.per_second.get();
    let mut bucket = Bucket::new(per_second, per_second);
    let mut may_turn = false;
    let mut running = FuturesUnordered::new();
    let mut failures = Reminder::default();
    let mut fullness = Reminder::default();
    let mut failing = BTreeSet::new();
    loop {
        let mut pause = SHOW;
        let (waiting, is_full, fail_now) = {
            let queue = &ward.lock().queue;
            (
                queue.waiting(),
                queue.is_full(),
                queue.failing_registries(clock::now()),
            )
        };
        leader.metrics.set_stuck(waiting);
        tell_registries(&failing, &fail_now);
        failing = fail_now;
        if !is_full {
            fullness.ended();
        } else if fullness.failed("full", std::time::Instant::now()) {
            tracing::warn!(
                waiting,
                "more Pods are stuck than are kept in mind; the others are taken in once there is room and their nodes \
                 tell something new of them"
            );
        }
        // Nothing is waited for between a look at the queue and the beginning of the request.
        if running.len() < AT_ONCE && !leader.store.snapshot().paused {
            if !may_turn {
                match bucket.take(started.elapsed()) {
                    Ok(()) => may_turn = true,
                    Err(wait) => pause = wait,
                }
            }
            if may_turn {
                let next = {
                    let snapshot = leader.store.snapshot();
                    let index = leader.store.index();
                    let by = Sight {
                        snapshot: &snapshot,
                        index: &index,
                        registries: &settings.registries,
                    };
                    ward.lock().queue.next(&by, clock::now())
                };
                match next {
                    Next::Order(order) => {
                        may_turn = false;
                        running.push(carry_out(leader, ward, order, events));
                        continue;
                    }
                    Next::In(wait) => pause = pause.min(wait),
                    Next::Nothing => {}
                }
            }
        }
        tokio::select! {
            () = ward.due.notified() => {}
            () = sleep(pause) => {}
            Some((order, result)) = running.next() => match ended(leader, ward, &order, result) {
                Ok(()) => {
                    failures.ended();
                }
                Err(NotWritten::NotLeading) => return,
                Err(error) => {
                    let error = chain(&error);
                    if failures.failed(&error, std::time::Instant::now()) {
                        let (namespace, pod) = (&*order.pod.namespace, &*order.pod.name);
                        tracing::warn!(
                            pod.namespace = namespace,
                            pod.name = pod,
                            error,
                            "cannot turn a stuck Pod; trying again"
                        );
                    }
                }
            },
        }
    }
}

/// Sends what an order asks for, and tells of it.
async fn carry_out(
    leader: &Leader,
    ward: &Ward,
    order: Box<Order>,
    events: &mpsc::Sender<Word>,
) -> (Box<Order>, Result<bool, NotWritten>) {
    let result = send(leader, ward, &order).await;
    if matches!(result, Ok(true)) {
        for (turnings, turned) in [(&order.turned, true), (&order.told, false)] {
            tell(leader, &order.pod, turnings, turned, events);
        }
    }
    (order, result)
}

/// Patches the Pod, if there is something to turn. Returns whether there was still time for it.
async fn send(leader: &Leader, ward: &Ward, order: &Order) -> Result<bool, NotWritten> {
    if order.turned.is_empty() {
        return Ok(true);
    }
    if time_left(order, clock::now()).is_none() {
        return Ok(false);
    }
    let path = format!("/api/v1/namespaces/{}/pods", order.pod.namespace);
    let request = async {
        // Right before it is sent, as whether this process may.
        let now = clock::now();
        let left = time_left(order, now).filter(|_| ward.lock().queue.may_still(order));
        let Some(left) = left else {
            return Err(kube::Error::Service(Box::new(TooLate)));
        };
        let request = json_patch(&path, &order.pod.name, &order.patch(now), left)?;
        // What is not sent by then, as where no connection comes about, is not any more.
        let answer = timeout(left, leader.client.request::<IgnoredAny>(request)).await;
        answer.unwrap_or_else(|elapsed| Err(kube::Error::Service(Box::new(elapsed))))
    };
    leader.writer.write_at_once("Pod", request).await?;
    Ok(true)
}

/// A patch was not sent.
#[derive(Debug, thiserror::Error)]
#[error("too late: kubelet may pull again")]
struct TooLate;

/// Returns how long a patch may take, in whole milliseconds; none where that is too little.
fn time_left(order: &Order, now: Timestamp) -> Option<Duration> {
    // While nothing is sure but that the mirror is dead, it may come back.
    let Some(until) = order.until else {
        return Some(UNSURE);
    };
    let left = until.since(now).saturating_sub(MARGIN);
    (left >= LEAST).then(|| left.min(PATIENCE))
}

/// Tells of containers of one Pod that they were turned, or would be: in the log and by a metric at once, and by one
/// Event, which waits for its turn.
fn tell(leader: &Leader, pod: &PodId, turnings: &[Turning], turned: bool, events: &mpsc::Sender<Word>) {
    let (outcome, reason) = if turned {
        ("done", "Rescued")
    } else {
        ("told", "WouldRescue")
    };
    for turning in turnings {
        let Turning {
            way,
            container,
            from,
            to,
            mirror,
            ..
        } = turning;
        tracing::info!(
            pod.namespace = &*pod.namespace,
            pod.name = &*pod.name,
            container = &**container,
            mirror = &**mirror,
            image.from = &**from,
            image.to = &**to,
            "{} {}",
            if turned {
                "turned a stuck Pod"
            } else {
                "a stuck Pod would be turned"
            },
            way.as_str()
        );
        leader.metrics.rescued(mirror, way.as_str(), outcome);
    }
    let message = Message {
        action: "Rescue",
        reason,
        note: note(turnings, turned),
        is_warning: !turned,
    };
    let about = match turnings {
        [] => return,
        [Turning { kind, container, .. }] => container_of(pod, *kind, container),
        [..] => reference(pod),
    };
    // Whoever has no room for it is told by the log.
    drop(events.try_send((about, message)));
}

/// Returns what an Event says of the containers of one Pod.
fn note(turnings: &[Turning], turned: bool) -> String {
    let (named, more) = turnings.split_at(turnings.len().min(NAMED));
    let sentence = |turning: &Turning| {
        let Turning {
            way,
            container,
            from,
            to,
            mirror,
            ..
        } = turning;
        let goes = if turned {
            format!("so container {container} goes")
        } else {
            format!(
                "and the mirror's policy or the Pod's label lets Kagami only tell: container {container} would go"
            )
        };
        match way {
            Way::Back => format!("The node cannot pull {from} from mirror {mirror}, {goes} back to {to}"),
            Way::Forward => {
                format!("The node cannot pull {from}, and mirror {mirror} has it, {goes} to {to}")
            }
        }
    };
    let more = Some(more.len()).filter(|more| *more > 0);
    let more = more.map(|more| format!("So with {more} more containers"));
    named
        .iter()
        .map(sentence)
        .chain(more)
        .collect::<Vec<_>>()
        .join(". ")
}

/// Returns a container of a Pod, as Events name it.
pub(super) fn container_of(pod: &PodId, kind: PlaceKind, container: &str) -> ObjectReference {
    ObjectReference {
        field_path: Some(field_path(kind, container)),
        ..reference(pod)
    }
}

/// Returns a Pod, as Events name it.
pub(super) fn reference(pod: &PodId) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.to_string()),
        name: Some(pod.name.to_string()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}

/// Takes in how an order ended. Returns what is said about it.
fn ended(
    leader: &Leader,
    ward: &Ward,
    order: &Order,
    result: Result<bool, NotWritten>,
) -> Result<(), NotWritten> {
    let (ending, outcome) = match &result {
        Ok(true) => (Ending::Done, None),
        Ok(false) => (Ending::Changed, None),
        Err(NotWritten::NotLeading) => return Err(NotWritten::NotLeading),
        Err(NotWritten::Conflict | NotWritten::Gone) => (Ending::Changed, Some("changed")),
        // A test of the patch that does not hold is refused; so is what a policy forbids. The next version will tell.
        Err(NotWritten::Refused(error)) => {
            let (namespace, pod, error) = (&*order.pod.namespace, &*order.pod.name, chain(error));
            tracing::info!(
                pod.namespace = namespace,
                pod.name = pod,
                error,
                "the API server refuses to turn a Pod: it is another one by now, or a policy forbids it"
            );
            (Ending::Refused, Some("refused"))
        }
        // A right that lacks, or a policy that says so in these words, comes back no sooner because a Pod tells something.
        Err(NotWritten::Failed(kube::Error::Api(status))) if status.code == 403 => {
            (Ending::Refused, Some("error"))
        }
        Err(NotWritten::Failed(_)) => (Ending::Failed, Some("error")),
    };
    ward.lock().queue.end(&order.pod, ending, clock::now());
    if let Some(outcome) = outcome {
        for turning in &order.turned {
            let way = turning.way.as_str();
            leader.metrics.rescued(&turning.mirror, way, outcome);
        }
    }
    match result {
        Err(NotWritten::Failed(error)) => Err(NotWritten::Failed(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        collections::{BTreeMap, BTreeSet},
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        cluster::{elector::Held, events::Events, watch::Pulses, writer::Writer},
        companion::mirror::reports::Reports,
        domain::{
            examples::{NOW, mirror},
            names::ORIGINAL_IMAGE_PREFIX,
            rescue::Container,
            routing::Routing,
        },
        metrics::Metrics,
        state::Store,
    };

    const MIRRORED: &str = "a.example.com/docker.io/library/nginx:1";

    /// A leader before an API server at that port.
    fn leader(port: u16) -> Leader {
        drop(rustls::crypto::ring::default_provider().install_default());
        let uri = format!("http://127.0.0.1:{port}").parse().unwrap();
        let client = kube::Client::try_from(kube::Config::new(uri)).unwrap();
        let (_, renewed) = watch::channel(Some(Instant::now()));
        let metrics = Metrics::new().0;
        let writer = Writer::new(Held::of(renewed), metrics.clone());
        Leader {
            namespace: "kagami-system".into(),
            identity: "companion-a".into(),
            client: client.clone(),
            store: Store::default(),
            events: Events::new(client, writer.clone(), "companion-a"),
            writer,
            looks: Leader::looks(),
            reports: Reports::default(),
            metrics,
            pulses: Pulses::default(),
            cluster: watch::channel(None).1,
            registries: None,
        }
    }

    /// A Pod that waits for a mirror's image on its node.
    fn stuck(annotations: &BTreeMap<String, String>) -> Pod<'_> {
        Pod {
            uid: "u",
            namespace: "team",
            name: "web",
            resource_version: "7",
            node: "node-1",
            annotations: Some(annotations),
            containers: vec![Container {
                name: "app",
                image: MIRRORED,
                waiting: Some((
                    "ErrImagePull",
                    "Back-off pulling image \"a.example.com/docker.io/library/nginx:1\"",
                )),
                ..Container::default()
            }],
            ..Pod::default()
        }
    }

    /// The order that turns it, to be done until that time.
    fn order(until: Option<Timestamp>) -> Order {
        let annotations = [(format!("{ORIGINAL_IMAGE_PREFIX}app"), "nginx:1".to_owned())].into();
        let snapshot = Snapshot {
            routing: Arc::new(Routing::compile(vec![mirror("a", &["docker.io"])])),
            ..Snapshot::default()
        };
        let mut queue = Queue::default();
        queue.begin_listing();
        queue.end_listing();
        let left_alone = BTreeSet::new();
        let known = Known {
            routing: &snapshot.routing,
            former: &[],
            left_alone: &left_alone,
        };
        let seen = Seen::Told { after: Some(NOW) };
        queue.take(&stuck(&annotations), &known, seen, NOW);
        let by = Sight {
            snapshot: &Snapshot::default(),
            index: &crate::domain::presence::Index::default(),
            registries: &[],
        };
        let Next::Order(order) = queue.next(&by, NOW) else {
            panic!("it is due")
        };
        let mut order = *order;
        order.until = until;
        order
    }

    /// A Pod fails to pull from the mirror, which is dead.
    fn fail_from_a_dead_mirror(queue: &mut Queue) {
        let annotations = [(format!("{ORIGINAL_IMAGE_PREFIX}app"), "nginx:1".to_owned())].into();
        let routing = Routing::compile(vec![mirror("a", &["docker.io"])]);
        let left_alone = BTreeSet::new();
        let known = Known {
            routing: &routing,
            former: &[],
            left_alone: &left_alone,
        };
        let seen = Seen::Told { after: Some(NOW) };
        queue.set_dead(BTreeMap::from([("a".into(), NOW)]), NOW);
        queue.take(&stuck(&annotations), &known, seen, NOW);
    }

    fn in_millis(millis: u64) -> Timestamp {
        clock::now().after(Duration::from_millis(millis))
    }

    /// The API server holds the patch, as while somebody's webhook is slow: it is told until when it counts, and nobody
    /// waits for longer.
    #[tokio::test]
    async fn a_patch_is_given_up_before_kubelet_may_pull_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let leader = leader(listener.local_addr().unwrap().port());
        let started = Instant::now();
        let order = order(Some(in_millis(2600)));
        let held = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            // Until the other side hangs up.
            while stream.read(&mut [0; 1024]).await.is_ok_and(|length| length > 0) {}
            request
        };
        let ward = Ward::default();
        let (sent, request) = tokio::join!(send(&leader, &ward, &order), held);
        assert!(matches!(sent, Err(NotWritten::Failed(_))), "{sent:?}");
        let took = started.elapsed();
        assert!(took >= LEAST && took < Duration::from_millis(2600), "{took:?}");
        let (_, rest) = request.split_once("?timeout=").unwrap();
        let millis: u64 = rest.split_once("ms ").unwrap().0.parse().unwrap();
        assert!((1000..=1600).contains(&millis), "{request}");
    }

    #[tokio::test]
    async fn nothing_is_sent_that_would_be_too_late() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let leader = leader(listener.local_addr().unwrap().port());
        let ward = Ward::default();
        assert!(!send(&leader, &ward, &order(Some(in_millis(1900)))).await.unwrap());
        let answers = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request).into_owned()
        };
        // A dead mirror's has no end, and is off once that is back.
        let last = order(None);
        let sent = send(&leader, &ward, &last).await;
        assert!(matches!(sent, Err(NotWritten::Failed(_))), "{sent:?}");
        fail_from_a_dead_mirror(&mut ward.lock().queue);
        // It is the first request that came.
        let (sent, request) = tokio::join!(send(&leader, &ward, &last), answers);
        assert!(sent.unwrap());
        assert!(request.contains("?timeout=2000ms "), "{request}");
    }

    /// Twelve requests in a minute while nothing of a mirror waits, one a second while something does, and one at once when
    /// the first comes.
    #[tokio::test(start_paused = true)]
    async fn at_rest_the_newest_version_is_rarely_asked_for() {
        let ward = Ward::default();
        let asked = Cell::new(0_u64);
        let ask = || {
            asked.set(asked.get() + 1);
            std::future::ready(Ok(Version(asked.get())))
        };
        let marks = mark_by(&ward, ask);
        tokio::pin!(marks);
        let count = |before: u64| asked.get() - before;
        drop(timeout(Duration::from_mins(1), &mut marks).await);
        assert!((12..=13).contains(&count(0)), "{}", count(0));
        let snapshot = Snapshot {
            routing: Arc::new(Routing::compile(vec![mirror("a", &["docker.io"])])),
            ..Snapshot::default()
        };
        // Just after the last one, so that the next is seconds away.
        drop(timeout(MARK + Duration::from_millis(500), &mut marks).await);
        let annotations = BTreeMap::new();
        let before = asked.get();
        ward.take(&stuck(&annotations), false, &snapshot, clock::now());
        drop(timeout(Duration::from_millis(100), &mut marks).await);
        assert_eq!(count(before), 1, "at once");
        let before = asked.get();
        drop(timeout(Duration::from_mins(1), &mut marks).await);
        assert!((59..=60).contains(&count(before)), "{}", count(before));
        ward.remove(&stuck(&annotations));
        let before = asked.get();
        drop(timeout(Duration::from_mins(1), &mut marks).await);
        assert!((11..=13).contains(&count(before)), "{}", count(before));
    }

    #[test]
    fn looks_are_asked_for_some_at_a_time_and_not_twice_at_once() {
        let (demand, mut wanted) = mpsc::channel(100);
        let unseen: BTreeSet<Unseen> = (0..2 * ASKED)
            .map(|number| {
                let key = crate::domain::image::KeyRef::parse(&format!("docker.io/a/b:{number}"))
                    .unwrap()
                    .into();
                ("a".into(), key)
            })
            .collect();
        let mut asked = HashMap::new();
        let now = Instant::now();
        let mut count = |at| {
            ask(unseen.clone(), &mut asked, &demand, at);
            std::iter::from_fn(|| wanted.try_recv().ok()).count()
        };
        assert_eq!((count(now), count(now), count(now)), (ASKED, ASKED, 0));
        assert_eq!(count(now + ASK_AGAIN), ASKED);
    }

    #[test]
    fn an_event_names_some_containers_and_counts_the_others() {
        let turning = |number: usize| Turning {
            way: Way::Back,
            kind: PlaceKind::Container,
            index: number,
            container: format!("c{number}").into(),
            from: format!("mirror.test/{number}").into(),
            to: format!("docker.io/{number}").into(),
            mirror: "main".into(),
        };
        let turnings: Vec<_> = (0..NAMED + 2).map(turning).collect();
        assert_eq!(
            note(&turnings[..1], true),
            "The node cannot pull mirror.test/0 from mirror main, so container c0 goes back to docker.io/0"
        );
        let told = note(&turnings, false);
        assert!(
            told.contains("container c2 would go back to docker.io/2"),
            "{told}"
        );
        assert!(told.ends_with(". So with 2 more containers"), "{told}");
    }
}
