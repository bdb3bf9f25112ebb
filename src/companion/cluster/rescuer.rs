//! Turns the images of Pods that are stuck back to what their users wrote: `domain::rescue` plans it, this carries
//! it out, at a bounded rate, one patch for each Pod that applies only to the very Pod that was judged.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::ObjectReference;
use serde::de::IgnoredAny;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};

use super::{leader::Leader, pod_events};
use crate::{
    clock,
    cluster::{events::Message, request::json_patch, writer::NotWritten},
    domain::{
        bucket::Bucket,
        pod::PlaceKind,
        rescue::{
            Ending, Former, Known, Next, Order, Pod, PodId, Queue, Turning,
            hang::{Hangs, field_path, is_pulling},
        },
        snapshot::Snapshot,
        time::Timestamp,
    },
    telemetry::{Reminder, chain},
};

/// How many requests are waited for at once: a slow API server costs no turns, and a dead one gets no more.
const AT_ONCE: usize = 8;

/// How often it is shown how many Pods wait, at least.
const SHOW: Duration = Duration::from_secs(5);

/// The one way in which images are turned, as metrics have it.
const DIRECTION: &str = "back";

/// The cluster's stuck Pods. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Ward {
    inside: Arc<Mutex<Inside>>,
    /// Something may be due.
    due: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inside {
    queue: Queue,
    /// Mirrors that are gone.
    former: Vec<Former>,
    hangs: Hangs,
}

impl Ward {
    pub(super) fn begin_listing(&self) {
        let Inside { queue, hangs, .. } = &mut *self.lock();
        queue.begin_listing();
        hangs.begin_listing();
    }

    pub(super) fn end_listing(&self) {
        let Inside { queue, hangs, .. } = &mut *self.lock();
        queue.end_listing();
        hangs.end_listing();
    }

    pub(super) fn take(&self, pod: &Pod<'_>, is_listed: bool, snapshot: &Snapshot, now: Timestamp) {
        let Inside { queue, former, hangs } = &mut *self.lock();
        hangs.take(pod, &snapshot.routing, now);
        if queue.take(pod, &known(snapshot, former), is_listed, now) {
            self.due.notify_one();
        }
    }

    pub(super) fn remove(&self, pod: &Pod<'_>) {
        let Inside { queue, hangs, .. } = &mut *self.lock();
        queue.remove(pod);
        hangs.remove(pod);
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

    /// Judges everything anew.
    fn judge(&self, snapshot: &Snapshot) {
        let Inside { queue, former, hangs } = &mut *self.lock();
        queue.judge(&known(snapshot, former), clock::now());
        hangs.judge_anew(&snapshot.routing);
        self.due.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what stuck Pods are judged by.
fn known<'a>(snapshot: &'a Snapshot, former: &'a [Former]) -> Known<'a> {
    Known {
        routing: &snapshot.routing,
        former,
        left_alone: &snapshot.left_alone,
    }
}

/// Turns Pods until this process may not write any more, once it is known whether the brake is on.
pub(super) async fn run(leader: Leader, ward: Ward, per_second: u32, mut braked: watch::Receiver<bool>) {
    if braked.wait_for(|seen| *seen).await.is_err() {
        // The task that tells has ended, and so does the leader.
        return;
    }
    let judges = judge_anew(&leader, &ward);
    let turns = turn(&leader, &ward, per_second);
    tokio::select! {
        never = judges => match never {},
        () = turns => {}
    }
}

/// Judges everything anew whenever mirrors or namespaces change.
async fn judge_anew(leader: &Leader, ward: &Ward) -> Infallible {
    let mut snapshots = leader.store.subscribe();
    let mut judged_by = Arc::clone(&snapshots.borrow_and_update());
    // Pods were taken in since this leader began, by what was known then.
    ward.judge(&judged_by);
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
        judged_by = snapshot;
    }
}

/// Carries out one order after the other. Returns once nothing may be written any more.
async fn turn(leader: &Leader, ward: &Ward, per_second: u32) {
    let started = Instant::now();
    let mut bucket = Bucket::new(per_second, per_second);
    let mut may_turn = false;
    let mut running = FuturesUnordered::new();
    let mut failures = Reminder::default();
    loop {
        let mut pause = SHOW;
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
                    let queue = &mut ward.lock().queue;
                    leader.metrics.set_stuck(queue.waiting());
                    queue.next(clock::now())
                };
                match next {
                    Next::Order(order) => {
                        may_turn = false;
                        running.push(carry_out(leader, order));
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
                            "cannot turn a stuck Pod to its own images; trying again"
                        );
                    }
                }
            },
        }
    }
}

/// Sends what an order asks for, and tells of it.
async fn carry_out(leader: &Leader, order: Box<Order>) -> (Box<Order>, Result<Sent, NotWritten>) {
    let result = send(leader, &order).await;
    (order, result)
}

/// What became of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Done,
    /// Its node is inside a pull, and may be starting what its status calls waiting.
    Pulls,
}

/// Patches the Pod, if there is something to turn, and tells of everything.
async fn send(leader: &Leader, order: &Order) -> Result<Sent, NotWritten> {
    if !order.turned.is_empty() {
        if order.is_late && pod_events::look(leader, &order.pod, is_pulling).await? {
            return Ok(Sent::Pulls);
        }
        let path = format!("/api/v1/namespaces/{}/pods", order.pod.namespace);
        let request = async {
            let request = json_patch(&path, &order.pod.name, &order.patch(clock::now()))?;
            leader.client.request::<IgnoredAny>(request).await
        };
        leader.writer.write_at_once("Pod", request).await?;
    }
    for turning in &order.turned {
        tell(leader, order, turning, true).await?;
    }
    for turning in &order.told {
        tell(leader, order, turning, false).await?;
    }
    Ok(Sent::Done)
}

/// Tells of one container that it was turned, or would be.
async fn tell(leader: &Leader, order: &Order, turning: &Turning, turned: bool) -> Result<(), NotWritten> {
    let Turning {
        kind,
        container,
        from,
        to,
        mirror,
        ..
    } = turning;
    tracing::info!(
        pod.namespace = &*order.pod.namespace,
        pod.name = &*order.pod.name,
        container = &**container,
        mirror = &**mirror,
        image.from = &**from,
        image.to = &**to,
        "{}",
        if turned {
            "turned a stuck Pod back"
        } else {
            "a stuck Pod would be turned back"
        }
    );
    let (outcome, reason) = if turned {
        ("done", "Rescued")
    } else {
        ("told", "WouldRescue")
    };
    leader.metrics.rescued(mirror, DIRECTION, outcome);
    let back = if turned {
        "so it goes back to"
    } else {
        "and its policy or the Pod's label lets Kagami only tell: it would go back to"
    };
    let message = Message {
        action: "Rescue",
        reason,
        note: format!("The node cannot pull {from} from mirror {mirror}, {back} {to}"),
        is_warning: !turned,
    };
    leader
        .events
        .tell_at_once(container_of(&order.pod, *kind, container), message)
        .await
}

/// Returns a container of a Pod, as Events name it.
pub(super) fn container_of(pod: &PodId, kind: PlaceKind, container: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.to_string()),
        name: Some(pod.name.to_string()),
        uid: Some(pod.uid.to_string()),
        field_path: Some(field_path(kind, container)),
        ..ObjectReference::default()
    }
}

/// Takes in how an order ended. Returns what is said about it.
fn ended(
    leader: &Leader,
    ward: &Ward,
    order: &Order,
    result: Result<Sent, NotWritten>,
) -> Result<(), NotWritten> {
    let (ending, outcome) = match &result {
        Ok(Sent::Done) => (Ending::Done, None),
        Ok(Sent::Pulls) => (Ending::Failed, None),
        Err(NotWritten::NotLeading) => return result.map(drop),
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
            (Ending::Changed, Some("refused"))
        }
        Err(NotWritten::Failed(_)) => (Ending::Failed, Some("error")),
    };
    ward.lock().queue.end(&order.pod, ending, clock::now());
    if let Some(outcome) = outcome {
        for turning in &order.turned {
            leader.metrics.rescued(&turning.mirror, DIRECTION, outcome);
        }
    }
    if ending == Ending::Failed {
        result.map(drop)
    } else {
        Ok(())
    }
}
