//! All stuck Pods of a cluster, and whose turn is next.
//!
//! Of Pods that are not stuck nothing is kept but, for those that are ready, two numbers: that tells which owners
//! have nothing that serves. The namespace that has waited longest comes first, in it the Pods of such owners, then the
//! newest. A version of a Pod is turned once: whatever came of it, the next event tells.
//!
//! A status is as old as the beginning of kubelet's last round, and while a node pulls again, a container that it has
//! started is shown as waiting. Only after an attempt that has just failed nothing is begun for a while ([`Attempts`]). So
//! a container is turned soon after a failure, or else after the next one, which comes at the latest after kubelet's
//! longest back-off of five minutes. Kubelet's Events would not tell: of one Pod it writes 25, and then one in five
//! minutes (client-go's `EventSourceObjectSpamFilter`). While a mirror is dead, and was when it was told that the container
//! waits, every attempt since was in vain, so what waits for its images is turned at any time.
//!
//! While a mirror gives an image as far as Kagami sees, and where nothing leads to it again, what goes back goes only where
//! its own registry serves nodes, as far as that is known ([`Upstreams`]).
//!
//! An event and an order cost the logarithm of the number of Pods.

mod attempts;
mod dead;
mod nodes;
mod ready;
mod turns;
mod upstreams;

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

pub use self::dead::Dead;
pub use self::turns::Id;
use self::{
    attempts::Attempts,
    dead::Mirrors,
    nodes::Nodes,
    ready::{Ready, owner},
    turns::{Lane, Merit, Turns},
    upstreams::{Question, Upstreams, host},
};
use super::{
    Failure, Judgement, Known, Left, Order, Pod, PodId, StuckPod, Turning, Way,
    forward::{Ahead, Stays, Unseen, enforces, is_listed},
    lasting::{Missed, gives},
};
use crate::domain::{
    image::Reference,
    mirror::{Mode, RescuePolicy},
    presence::Index,
    snapshot::Snapshot,
    time::Timestamp,
};

/// How much text is kept of stuck Pods, with what each costs beside: some fifty thousand, of which none is large.
/// Beyond it Pods that nothing is to be done for are forgotten first, and others are taken in once there is room and
/// they tell something new.
const LIMIT: usize = 64 * 1024 * 1024;

/// What a stuck Pod costs beside its text, roughly.
const COST: usize = 512;

/// How long it is taken for granted that a dead mirror stays so, unless somebody tells.
const IN_VAIN: Duration = Duration::from_hours(1);

/// How long after a Pod was kept from going back it is looked whether it may by now.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long what came forward stays, because its own registry did not serve it just before, unless that is seen to serve.
const RECENTLY: Duration = Duration::from_mins(10);

/// How long a Pod waits for its node to pull anything at all, before it is turned all the same.
const PATIENCE: Duration = Duration::from_secs(20);

/// The pause after a request that failed, while the failure that it is for is fresh, and after one that was refused.
const RETRY: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_secs(5);

/// How long a pause may become.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// The stuck Pods of a cluster.
#[derive(Debug, Default)]
pub struct Queue {
    stuck: HashMap<Id, Entry>,
    /// Those that nothing is to be done for.
    idle: BTreeSet<Id>,
    /// Those that are due.
    turns: Turns,
    /// Those that may be later.
    later: BTreeSet<(Timestamp, Id)>,
    /// Those that are due because they failed just now, by how long they are.
    fresh: BTreeSet<(Timestamp, Id)>,
    nodes: Nodes,
    upstreams: Upstreams,
    ready: Ready,
    mirrors: Mirrors,
    /// What all of them cost.
    size: usize,
    /// How many wait to be turned.
    waiting: usize,
    /// There was no room for one that waits.
    is_full: bool,
    /// A stuck Pod was left out or forgotten for want of room since the last list began: one that is new here may have
    /// been stuck for long.
    is_partial: bool,
    /// The number of the last list of all Pods, and whether one was whole.
    listing: u32,
    is_complete: bool,
    /// How many entries were looked at for orders.
    #[cfg(test)]
    looks: usize,
}

/// What tells whether a mirror gives an image, and whether its own registry does.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    pub snapshot: &'a Snapshot,
    pub index: &'a Index,
    /// The registries that Pods may be turned forward to.
    pub registries: &'a [String],
}

impl Sight<'_> {
    /// Whether a mirror that images are rewritten to gives one of them, which a Pod would go back to.
    pub fn gives(&self, mirror: &str, original: &str, now: Timestamp) -> bool {
        let missed = || Missed {
            mirror: mirror.into(),
            original: original.into(),
        };
        self.is_in_use(mirror) && gives(self.snapshot, self.index, &missed(), now)
    }

    /// Whether a mirror that images are rewritten to may give one of them once it is well: it is not known to lack it.
    fn may_give(&self, mirror: &str, original: &str) -> bool {
        let Ok(original) = Reference::parse(original) else {
            return false;
        };
        self.is_in_use(mirror) && !self.index.lacks(mirror, original.key().by_ref())
    }

    fn is_in_use(&self, mirror: &str) -> bool {
        let id = self.snapshot.routing.find(mirror);
        id.is_some_and(|id| self.snapshot.routing.mirror(id).mode == Mode::Enforce)
    }

    /// Whether a container that went back from a mirror might come forward to it again.
    fn has_way_forward(&self, mirror: &str, namespace: &str) -> bool {
        let routing = &self.snapshot.routing;
        let registry = routing
            .find(mirror)
            .map(|id| &routing.mirror(id).mapping.registry);
        registry.is_some_and(|registry| is_listed(self.registries, &registry.to_string()))
            && enforces(self.snapshot, namespace)
    }

    /// Whether a turn back asked whether it may go, so that what becomes of it tells others: it might have been kept.
    fn asks(&self, turning: &Turning, pod: &StuckPod, now: Timestamp) -> bool {
        let Turning { mirror, to, .. } = turning;
        self.gives(mirror, to, now) || (!self.may_come_forward(turning, pod) && self.may_give(mirror, to))
    }

    /// Whether a container that goes back might come forward again: it has not yet.
    fn may_come_forward(&self, turning: &Turning, pod: &StuckPod) -> bool {
        let came_forward = pod.came_forward(turning.kind, &turning.container);
        came_forward.is_none() && self.has_way_forward(&turning.mirror, &pod.id.namespace)
    }
}

/// One stuck Pod.
#[derive(Debug)]
struct Entry {
    pod: StuckPod,
    owner: Option<u64>,
    since: Timestamp,
    /// Of each container of the Pod.
    attempts: Vec<Attempts>,
    plan: Plan,
    /// Since when an image that is no mirror's cannot be pulled, and from which registry.
    upstream_since: Option<(Box<str>, Timestamp)>,
    rest: Rest,
    /// Those that it was told of that they would be turned.
    told: Vec<Turning>,
    /// The list that last named the Pod.
    listing: u32,
    place: Place,
}

/// Where a Pod stands in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing is to be done for it.
    Idle,
    /// Something is, and was tried with this version.
    Tried,
    /// The same, once it fails again.
    Late,
    /// With how long it is, where that has an end.
    Due(Merit, Option<Timestamp>),
    /// It may be due from then on.
    Later(Timestamp),
    /// The same, or once its node pulls again.
    Held(Timestamp),
}

/// What is to be done with a Pod.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    turned: Vec<Turning>,
    told: Vec<Turning>,
    /// An image that is no mirror's cannot be pulled.
    fails_upstream: bool,
    /// The registry of such an image that says something of its node.
    elsewhere: Option<Box<str>>,
}

/// Why a Pod is not asked about again.
#[derive(Debug, Default)]
struct Rest {
    /// This version was turned, or was not the last one.
    version: Option<Box<str>>,
    /// The request failed.
    until: Option<Timestamp>,
    failures: u32,
    /// What failed last was refused, and the next version may be too.
    is_refused: bool,
}

/// How a Pod was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It was so for nobody knows how long.
    Listed,
    /// This version of it was told, each version before was too, and it was written after that time; none where nobody
    /// knows.
    Told { after: Option<Timestamp> },
}

/// What is next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Order(Box<Order>),
    /// Something may be due after that time, if nothing happens before.
    In(Duration),
    /// Nothing, until something happens.
    Nothing,
}

/// What came of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was carried out.
    Done,
    /// The Pod is another one by now, or there was no time left for it: its next version tells.
    Changed,
    /// The API server refuses it: the Pod is another one by now, or a policy forbids it.
    Refused,
    /// It may be tried again.
    Failed,
}

impl Queue {
    /// Begins a list of all Pods: those not taken in before [`Queue::end_listing`] are gone.
    pub fn begin_listing(&mut self) {
        self.listing = self.listing.wrapping_add(1);
        self.is_partial = false;
        self.ready.begin_listing();
    }

    /// Ends it. There are no orders before the first one ended: until then nobody knows which owners serve.
    pub fn end_listing(&mut self) {
        let listing = self.listing;
        let gone = self.stuck.iter().filter(|(_, entry)| entry.listing != listing);
        for id in gone.map(|(id, _)| Arc::clone(id)).collect::<Vec<_>>() {
            self.forget(&id);
        }
        self.ready.end_listing();
        self.turns.set_all_ready(|owner| self.ready.serves(owner));
        self.is_complete = true;
    }

    /// Takes in a Pod. Returns whether something may be due.
    pub fn take(&mut self, pod: &Pod<'_>, known: &Known<'_>, seen: Seen, now: Timestamp) -> bool {
        for owner in self.ready.set(pod).into_iter().flatten() {
            self.turns
                .set_ready(pod.namespace, owner, self.ready.serves(owner));
        }
        let stuck = StuckPod::of(pod);
        if stuck.is_none() && self.stuck.is_empty() && self.upstreams.is_idle() {
            return false;
        }
        let id = Id::new((pod.namespace.into(), pod.name.into()));
        let before = self.detach(&id);
        let waited = before.as_ref().filter(|before| !before.plan.is_empty());
        let waited = waited.map(|before| before.owner);
        self.upstreams.take(&id, pod, stuck.as_ref(), now);
        let before = before.filter(|before| &*before.pod.id.uid == pod.uid);
        let mut is_other = false;
        if let Some(before) = before.as_ref().filter(|before| before.has_pulled(pod)) {
            self.nodes.pulled(pod.node, now);
            for turning in before.have_after_all(pod) {
                is_other |= self.mirrors.pulled(&turning.mirror, now);
            }
        }
        let may_be_due = stuck.is_some_and(|stuck| {
            let owner = owner(pod);
            let mut entry = match before {
                Some(before) => before.next(stuck, owner, seen),
                None => Entry::new(stuck, owner, seen, self.is_partial, now),
            };
            entry.listing = self.listing;
            let since = if seen == Seen::Listed { entry.since } else { now };
            entry.judge(known, since);
            let may_be_due = !entry.plan.is_empty();
            if let Seen::Told { after: Some(after) } = seen {
                for turning in entry.have_failed(after) {
                    is_other |= self.mirrors.failed(&turning.mirror, after);
                }
            }
            self.put_in(&id, entry, now);
            may_be_due
        });
        if is_other {
            self.place_all(now);
        }
        // Only now: nobody forgets whose turn it was because the one Pod that waits tells something.
        if let Some(owner) = waited {
            self.turns.leave(&id.0, owner);
        }
        self.release(pod.node, now) || may_be_due || is_other
    }

    /// Forgets a Pod that is gone.
    pub fn remove(&mut self, pod: &Pod<'_>) {
        if let Some(owner) = self.ready.remove(pod.uid) {
            self.turns
                .set_ready(pod.namespace, owner, self.ready.serves(owner));
        }
        if !self.stuck.is_empty() || !self.upstreams.is_idle() {
            let id = Id::new((pod.namespace.into(), pod.name.into()));
            self.upstreams.forget(&id);
            self.forget(&id);
        }
    }

    /// Judges all anew, by what is known now.
    pub fn judge(&mut self, known: &Known<'_>, now: Timestamp) {
        for id in self.stuck.keys().cloned().collect::<Vec<_>>() {
            let Some(mut entry) = self.detach(&id) else {
                continue;
            };
            let waited = !entry.plan.is_empty();
            let owner = entry.owner;
            entry.judge(known, now);
            self.put_in(&id, entry, now);
            if waited {
                self.turns.leave(&id.0, owner);
            }
        }
    }

    /// Forgets when what failed was told: the clock was set back, and it would seem fresh once more.
    pub fn forget_times(&mut self, now: Timestamp) {
        for entry in self.stuck.values_mut() {
            entry.attempts.iter_mut().for_each(Attempts::forget_times);
        }
        self.upstreams = Upstreams::default();
        self.mirrors.forget_times();
        self.place_all(now);
    }

    /// Takes in which mirrors are dead as Kagami sees them.
    pub fn set_dead(&mut self, dead: Dead, now: Timestamp) {
        if self.mirrors.set(dead) {
            self.place_all(now);
        }
    }

    /// Returns the Pods that may go forward: those that fail upstream.
    pub fn upstream(&self) -> Vec<Id> {
        let upstream = self.stuck.iter().filter(|(_, entry)| entry.plan.fails_upstream);
        upstream.map(|(id, _)| Arc::clone(id)).collect()
    }

    /// Looks which of some Pods go forward, by what is proven now. Returns whether something may be due, and adds what a
    /// mirror has to be looked at for.
    pub fn look_ahead(&mut self, pods: &[Id], by: &Ahead<'_>, unseen: &mut BTreeSet<Unseen>) -> bool {
        let mut any = false;
        for id in pods {
            let Some(mut entry) = self.detach(id) else {
                continue;
            };
            let waited = !entry.plan.is_empty();
            let owner = entry.owner;
            any |= entry.look_ahead(by, unseen);
            self.put_in(id, entry, by.now);
            if waited {
                self.turns.leave(&id.0, owner);
            }
        }
        any
    }

    /// Returns how many Pods wait for their turn.
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns the registries where Pods that went back are seen to fail, so that others may stay where they are.
    pub fn failing_registries(&self, now: Timestamp) -> BTreeSet<Box<str>> {
        self.upstreams.failing(now).map(Into::into).collect()
    }

    /// Whether there was no room for one that waits.
    pub const fn is_full(&self) -> bool {
        self.is_full
    }

    /// Takes the next order out, by what is seen of mirrors now.
    pub fn next(&mut self, by: &Sight<'_>, now: Timestamp) -> Next {
        if !self.is_complete {
            return Next::Nothing;
        }
        while let Some((_, id)) = self.later.first().filter(|(at, _)| *at <= now) {
            let id = Arc::clone(id);
            self.look();
            self.place(&id, now);
        }
        while let Some((_, id)) = self.fresh.first().filter(|(until, _)| *until <= now) {
            let id = Arc::clone(id);
            self.look();
            self.place(&id, now);
        }
        while let Some(id) = self.turns.first().cloned() {
            self.look();
            let Some(entry) = self.stuck.get(&id) else { break };
            let until = entry.since.after(PATIENCE);
            // Where it is upstream that fails, no more is to be expected of waiting.
            if until > now && entry.goes_back() && self.nodes.is_cut_off(&entry.pod.node, now) {
                self.nodes.hold(&entry.pod.node, &id);
                self.set_place(&id, Place::Held(until));
                continue;
            }
            if entry.is_kept(self.mirrors.dead(), &self.upstreams, by, now) {
                self.set_place(&id, Place::Later(now.after(LOOK_AGAIN)));
                continue;
            }
            let Some(mut entry) = self.detach(&id) else { break };
            let owner = entry.owner;
            let order = entry.order(self.mirrors.dead(), &self.upstreams, by, now);
            let asks = |turning: &Turning| by.asks(turning, &entry.pod, now);
            self.upstreams.go(&id, &order, asks, now);
            self.put_in(&id, entry, now);
            self.turns.had(&id.0, owner);
            self.turns.leave(&id.0, owner);
            return Next::Order(Box::new(order));
        }
        let next = self.later.first();
        next.map_or(Next::Nothing, |(at, _)| Next::In(at.since(now)))
    }

    /// Whether an order may still be carried out: one that has no end only while its mirrors are dead.
    pub fn may_still(&self, order: &Order) -> bool {
        let is_dead = |turning: &Turning| self.mirrors.dead().contains_key(&turning.mirror);
        order.until.is_some() || order.turned.iter().all(is_dead)
    }

    /// Takes in what came of an order.
    pub fn end(&mut self, pod: &PodId, ending: Ending, now: Timestamp) {
        let id = Id::new((pod.namespace.clone(), pod.name.clone()));
        let entry = self.stuck.get_mut(&id);
        if let Some(entry) = entry.filter(|entry| entry.pod.id.uid == pod.uid) {
            entry.rest.end(ending, now);
            self.place(&id, now);
        }
        if ending != Ending::Done {
            self.upstreams.stayed(&id, pod);
        }
    }

    /// Puts a Pod in its place, where there is room for it.
    fn put_in(&mut self, id: &Id, entry: Entry, now: Timestamp) {
        let (size, is_idle) = (entry.size(), entry.plan.is_empty());
        while !is_idle && self.size + size > LIMIT {
            let Some(idle) = self.idle.first().cloned() else {
                break;
            };
            self.is_partial = true;
            self.forget(&idle);
        }
        if self.size + size > LIMIT {
            self.is_partial = true;
            self.is_full |= !is_idle;
            return;
        }
        self.is_full &= is_idle;
        self.size += size;
        if !is_idle {
            let is_ready = entry.owner.is_some_and(|owner| self.ready.serves(owner));
            self.turns.join(&id.0, entry.owner, is_ready);
        }
        if let Some((host, since)) = entry.upstream_since.as_ref().filter(|_| entry.fails_elsewhere()) {
            self.nodes.fails(&entry.pod.node, id, host, *since);
        }
        self.stuck.insert(Arc::clone(id), entry);
        self.idle.insert(Arc::clone(id));
        self.place(id, now);
    }

    /// Takes a Pod out of everything but the number of those that wait in its namespace.
    fn detach(&mut self, id: &Id) -> Option<Entry> {
        self.set_place(id, Place::Idle);
        let entry = self.stuck.remove(id)?;
        self.idle.remove(id);
        self.size -= entry.size().min(self.size);
        self.nodes.forget(&entry.pod.node, id);
        Some(entry)
    }

    fn forget(&mut self, id: &Id) {
        let entry = self.detach(id);
        if let Some(entry) = entry.filter(|entry| !entry.plan.is_empty()) {
            self.turns.leave(&id.0, entry.owner);
        }
    }

    /// Puts those in their place that wait for a node without need. Returns whether there are any.
    fn release(&mut self, node: &str, now: Timestamp) -> bool {
        let released = self.nodes.released(node, now);
        for id in &released {
            self.place(id, now);
        }
        !released.is_empty()
    }

    /// Puts a Pod where it belongs now.
    fn place(&mut self, id: &Id, now: Timestamp) {
        if let Some(entry) = self.stuck.get(id) {
            self.set_place(id, entry.place_at(self.mirrors.dead(), now));
        }
    }

    /// Puts every Pod where it belongs now.
    fn place_all(&mut self, now: Timestamp) {
        for id in self.stuck.keys().cloned().collect::<Vec<_>>() {
            self.place(&id, now);
        }
    }

    fn set_place(&mut self, id: &Id, place: Place) {
        let Some(entry) = self.stuck.get_mut(id) else {
            return;
        };
        let before = std::mem::replace(&mut entry.place, place);
        let owner = entry.owner;
        let is_waiting = |place: Place| usize::from(entry.waits_in(place));
        self.waiting = self.waiting + is_waiting(place) - is_waiting(before);
        match before {
            Place::Idle => {
                self.idle.remove(id);
            }
            Place::Tried | Place::Late => {}
            Place::Due(merit, until) => {
                self.turns.remove(merit, id, owner);
                if let Some(until) = until {
                    self.fresh.remove(&(until, Arc::clone(id)));
                }
            }
            Place::Later(at) | Place::Held(at) => {
                self.later.remove(&(at, Arc::clone(id)));
            }
        }
        match place {
            Place::Idle => {
                self.idle.insert(Arc::clone(id));
            }
            Place::Tried | Place::Late => {}
            Place::Due(merit, until) => {
                self.turns.add(merit, id, owner);
                if let Some(until) = until {
                    self.fresh.insert((until, Arc::clone(id)));
                }
            }
            Place::Later(at) | Place::Held(at) => {
                self.later.insert((at, Arc::clone(id)));
            }
        }
    }

    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "tests count"))]
    const fn look(&mut self) {
        #[cfg(test)]
        {
            self.looks += 1;
        }
    }
}

impl Entry {
    /// Returns it as one that nothing was known of. Where not all that are stuck are known, it may be so for long.
    fn new(pod: StuckPod, owner: Option<u64>, seen: Seen, is_partial: bool, now: Timestamp) -> Self {
        let since = pod.created.filter(|_| seen == Seen::Listed).unwrap_or(now);
        let seen = if is_partial { Seen::Listed } else { seen };
        let attempts = pod.containers.iter();
        let attempts = attempts.map(|container| Attempts::default().next(None, container, pod.bound, seen));
        Self {
            owner,
            since: since.min(now),
            attempts: attempts.collect(),
            pod,
            plan: Plan::default(),
            upstream_since: None,
            rest: Rest::default(),
            told: Vec::new(),
            listing: 0,
            place: Place::Idle,
        }
    }

    /// Returns what becomes of it with the Pod's next version, or the same again.
    fn next(mut self, pod: StuckPod, owner: Option<u64>, seen: Seen) -> Self {
        if self.pod.id.resource_version != pod.id.resource_version {
            self.rest.renew();
            let attempts = pod.containers.iter().map(|container| {
                let mut before = self.pod.containers.iter().zip(&self.attempts);
                match before.find(|(before, _)| before.name == container.name) {
                    Some((before, attempts)) => attempts.next(Some(before), container, pod.bound, seen),
                    None => Attempts::default().next(None, container, pod.bound, seen),
                }
            });
            self.attempts = attempts.collect();
        }
        (self.pod, self.owner) = (pod, owner);
        self
    }

    /// Judges the Pod. What fails from now on does so `since` then.
    fn judge(&mut self, known: &Known<'_>, since: Timestamp) {
        self.plan = Plan::of(&self.pod, known);
        self.plan.told.retain(|turning| !self.told.contains(turning));
        // It fails for as long though its status speaks of something else in between.
        let before = self.upstream_since.take();
        self.upstream_since = match (before, &self.plan.elsewhere) {
            (Some(before), None) => Some(before),
            (Some(before), Some(host)) if before.0 == *host => Some(before),
            (_, host) => host.clone().map(|host| (host, since)),
        };
    }

    /// Looks anew which containers go forward: proof comes and goes. Returns whether some do.
    fn look_ahead(&mut self, by: &Ahead<'_>, unseen: &mut BTreeSet<Unseen>) -> bool {
        let Plan {
            turned,
            told,
            fails_upstream,
            ..
        } = &mut self.plan;
        turned.retain(|turning| turning.way == Way::Back);
        told.retain(|turning| turning.way == Way::Back);
        // Nothing that fails is upstream's, as nearly always.
        if !*fails_upstream {
            return false;
        }
        let mut any = false;
        for container in &self.pod.containers {
            let (turning, policy) = match self.pod.forward(container, by) {
                Ok(forward) => forward,
                Err(Stays::NotSince(since)) => {
                    unseen.insert(since);
                    continue;
                }
                Err(_) => continue,
            };
            match policy {
                RescuePolicy::Enforce => turned.push(turning),
                RescuePolicy::Audit if !self.told.contains(&turning) => told.push(turning),
                RescuePolicy::Audit | RescuePolicy::Off => continue,
            }
            any = true;
        }
        any
    }

    const fn fails_elsewhere(&self) -> bool {
        self.plan.elsewhere.is_some()
    }

    /// Whether a container that was stuck has its image by now.
    fn has_pulled(&self, pod: &Pod<'_>) -> bool {
        if pod.is_deleted {
            return false;
        }
        let mut now = pod.init_containers.iter().chain(&pod.containers);
        now.any(|now| {
            let mut stuck = self.pod.containers.iter();
            (now.is_running || now.has_succeeded) && stuck.any(|stuck| &*stuck.name == now.name)
        })
    }

    /// Returns what would have turned containers back that have the mirror's image after all.
    fn have_after_all<'a>(&'a self, pod: &'a Pod<'_>) -> impl Iterator<Item = &'a Turning> {
        let back = self.plan.turned.iter().filter(|turning| turning.way == Way::Back);
        back.filter(|turning| {
            let mut now = pod.init_containers.iter().chain(&pod.containers);
            now.any(|now| {
                *turning.container == *now.name
                    && *turning.from == *now.image
                    && (now.is_running || now.has_succeeded)
            })
        })
    }

    /// Returns what turns containers back whose last failure was told after that very time.
    fn have_failed(&self, after: Timestamp) -> impl Iterator<Item = &Turning> {
        let back = self.plan.turned.iter().filter(|turning| turning.way == Way::Back);
        back.filter(move |turning| {
            self.attempts_of(turning)
                .is_some_and(|attempts| attempts.failed_after() == Some(after))
        })
    }

    /// Returns where it belongs.
    fn place_at(&self, dead: &Dead, now: Timestamp) -> Place {
        if self.plan.is_empty() {
            return Place::Idle;
        }
        if self.rest.version.as_ref() == Some(&self.pod.id.resource_version) {
            return Place::Tried;
        }
        if let Some(until) = self.rest.until.filter(|until| *until > now) {
            return Place::Later(until);
        }
        let merit = |lane| Merit {
            lane,
            created: Reverse(self.pod.created),
        };
        if self.plan.turned.is_empty() {
            return Place::Due(merit(Lane::Tell), None);
        }
        let waits = self.plan.turned.iter();
        let until = waits
            .filter_map(|turning| self.waits_until(turning, dead, now))
            .min();
        until.map_or(Place::Late, |until| Place::Due(merit(Lane::Turn), Some(until)))
    }

    /// Whether one of its containers goes back, or would.
    fn goes_back(&self) -> bool {
        let mut turnings = self.plan.turned.iter().chain(&self.plan.told);
        turnings.any(|turning| turning.way == Way::Back)
    }

    /// Returns until when a container that is to be turned may be: kubelet surely starts nothing for it. None where it may
    /// already.
    fn waits_until(&self, turning: &Turning, dead: &Dead, now: Timestamp) -> Option<Timestamp> {
        let attempts = self.attempts_of(turning)?;
        if self.is_in_vain(attempts, turning, dead) {
            return Some(now.after(IN_VAIN));
        }
        let until = attempts.waits_until()?;
        Some(until).filter(|until| *until > now)
    }

    /// Returns until when a turn that was begun in time has to be done; none where that has no end.
    fn sure_until(&self, turning: &Turning, dead: &Dead) -> Option<Timestamp> {
        let attempts = self.attempts_of(turning)?;
        let is_in_vain = self.is_in_vain(attempts, turning, dead);
        attempts.sure_until().filter(|_| !is_in_vain)
    }

    /// Whether what was tried for a container lately was in vain, and is: the mirror that it goes back from is dead. One that
    /// it goes forward to is another than it fails to pull from. Of several containers that start in one round one may run
    /// by now, where the mirror is not as dead as it seems.
    fn is_in_vain(&self, attempts: Attempts, turning: &Turning, dead: &Dead) -> bool {
        let since = dead.get(&turning.mirror).filter(|_| turning.way == Way::Back);
        !self.pod.starts_several && since.is_some_and(|since| attempts.waited_after(*since))
    }

    fn attempts_of(&self, turning: &Turning) -> Option<Attempts> {
        let mut containers = self.pod.containers.iter().zip(&self.attempts);
        let (_, attempts) = containers.find(|(container, _)| container.name == turning.container)?;
        Some(*attempts)
    }

    /// Whether a container stays for now where it would go back from: its own registry does not serve nodes, as far as is
    /// known, and either the mirror gives its image, or there would be no way to the mirror again.
    fn keeps(&self, turning: &Turning, upstreams: &Upstreams, by: &Sight<'_>, now: Timestamp) -> bool {
        if turning.way != Way::Back {
            return false;
        }
        let namespace = &*self.pod.id.namespace;
        let Some(host) = host(&turning.to) else {
            return false;
        };
        let gives = by.gives(&turning.mirror, &turning.to, now);
        let came_forward = self.pod.came_forward(turning.kind, &turning.container);
        let has_way_forward = by.may_come_forward(turning, &self.pod);
        let is_last = !has_way_forward && by.may_give(&turning.mirror, &turning.to);
        if !gives && !is_last {
            return false;
        }
        // Its registry did not serve it then.
        if came_forward.is_some_and(|turn| {
            turn.compared_to(now.before(RECENTLY)).is_gt() && !upstreams.serves_since(&host, turn)
        }) {
            return true;
        }
        let question = Question {
            namespace,
            node: &self.pod.node,
            image: &turning.to,
            has_way_forward,
        };
        // What gets nothing where it is does not wait for what becomes of the first ones.
        if gives {
            !upstreams.allows(&host, &question, now)
        } else {
            upstreams.refuses(&host, &question, now)
        }
    }

    /// Whether all of its containers that are due stay for now.
    fn is_kept(&self, dead: &Dead, upstreams: &Upstreams, by: &Sight<'_>, now: Timestamp) -> bool {
        let turned = self.plan.turned.iter();
        let mut due = turned.filter(|turning| self.waits_until(turning, dead, now).is_some());
        !self.plan.turned.is_empty() && due.all(|turning| self.keeps(turning, upstreams, by, now))
    }

    /// Whether it waits to be turned where it stands there.
    const fn waits_in(&self, place: Place) -> bool {
        !self.plan.turned.is_empty() && !matches!(place, Place::Idle | Place::Tried)
    }

    /// Takes the order out: of those that failed just now. Its next one is for another version, or after a failure.
    fn order(&mut self, dead: &Dead, upstreams: &Upstreams, by: &Sight<'_>, now: Timestamp) -> Order {
        let turned = self.plan.turned.iter();
        let turned: Vec<_> = turned
            .filter(|turning| self.waits_until(turning, dead, now).is_some())
            .filter(|turning| !self.keeps(turning, upstreams, by, now))
            .cloned()
            .collect();
        let until = turned.iter().filter_map(|turning| self.sure_until(turning, dead));
        let until = until.min();
        // What is only told may yet be turned, where the policy becomes another one.
        if !turned.is_empty() {
            self.rest.version = Some(self.pod.id.resource_version.clone());
        }
        let told = std::mem::take(&mut self.plan.told);
        self.told.extend(told.iter().cloned());
        Order {
            pod: self.pod.id.clone(),
            turned,
            told,
            until,
            turns_before: self.pod.turns.clone().unwrap_or_default(),
            has_annotations: self.pod.has_annotations,
        }
    }

    fn size(&self) -> usize {
        let turnings = self.plan.turned.iter().chain(&self.plan.told).chain(&self.told);
        let turnings = turnings.map(|turning| {
            let Turning {
                container,
                from,
                to,
                mirror,
                ..
            } = turning;
            COST / 4 + container.len() + from.len() + to.len() + mirror.len()
        });
        let attempts = self.attempts.len() * size_of::<Attempts>();
        COST + self.pod.size() + attempts + turnings.sum::<usize>()
    }
}

impl Rest {
    /// Takes in that there is another version. What failed before was not this one; but what was refused more than once
    /// is by somebody's policy, as it seems, and waits.
    fn renew(&mut self) {
        self.version = None;
        if !self.is_refused {
            *self = Self::default();
        } else if self.failures < 2 {
            self.until = None;
        }
    }

    fn end(&mut self, ending: Ending, now: Timestamp) {
        self.is_refused = ending == Ending::Refused;
        match ending {
            Ending::Done => self.failures = 0,
            Ending::Changed => {}
            Ending::Refused | Ending::Failed => {
                self.version = None;
                let first = if self.is_refused { PAUSE } else { RETRY };
                let pause = first * 2_u32.saturating_pow(self.failures.min(16));
                self.until = Some(now.after(pause.min(LONGEST_PAUSE)));
                self.failures += 1;
            }
        }
    }
}

impl Plan {
    fn of(pod: &StuckPod, known: &Known<'_>) -> Self {
        let mut plan = Self::default();
        for container in &pod.containers {
            match pod.judge(container, known) {
                Judgement::Back { mirror, to, policy } => {
                    let turning = Turning {
                        way: Way::Back,
                        kind: container.kind,
                        index: container.index,
                        container: container.name.clone(),
                        from: container.image.clone(),
                        to: to.into(),
                        mirror: mirror.into(),
                    };
                    match policy {
                        RescuePolicy::Enforce => plan.turned.push(turning),
                        RescuePolicy::Audit => plan.told.push(turning),
                        RescuePolicy::Off => {}
                    }
                }
                Judgement::Left(Left::Upstream) if container.failure == Failure::Image => {
                    plan.fails_upstream = true;
                    // With a record it went back, or was a mirror's that is gone: it says nothing of other registries.
                    let host = Reference::parse(&container.image).ok();
                    let host = host.filter(|_| container.recorded.is_none());
                    plan.elsewhere = plan
                        .elsewhere
                        .or_else(|| host.map(|reference| reference.host().into()));
                }
                Judgement::Left(_) => {}
            }
        }
        plan
    }

    const fn is_empty(&self) -> bool {
        self.turned.is_empty() && self.told.is_empty()
    }
}

#[cfg(test)]
mod tests;
