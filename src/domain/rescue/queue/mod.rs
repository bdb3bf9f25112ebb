//! All stuck Pods of a cluster, and whose turn is next.
//!
//! Of Pods that are not stuck nothing is kept but, for those that are ready, two numbers: that tells which owners
//! have nothing that serves. The namespace that has waited longest comes first, in it the Pods of such owners, then the
//! newest. A version of a Pod is turned once: whatever came of it, the next event tells.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    hash::BuildHasher as _,
    time::Duration,
};

use foldhash::quality::FixedState;

use super::{Failure, Judgement, Known, Left, Order, Pod, PodId, StuckPod, Turning, Way, forward::Ahead};
use crate::domain::{mirror::RescuePolicy, time::Timestamp};

/// How many stuck Pods are kept in mind. More are taken in once there is room and they tell something new.
const LIMIT: usize = 20_000;

/// How long a Pod waits for its node to pull anything at all, before it is turned all the same.
const PATIENCE: Duration = Duration::from_mins(2);

/// For how long a failed pull from elsewhere says something of its node: what fails for longer, as a name that does
/// not exist, is its own fault.
const TELLING: Duration = Duration::from_mins(5);

/// How long after a Pod was first seen to fail its node surely waits before it pulls again: kubelet's first back-off
/// takes ten seconds, and its status some of them.
const FRESH: Duration = Duration::from_secs(6);

/// The pause after a failed request, and how long it may become.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(5));

/// The stuck Pods of a cluster.
#[derive(Debug, Default)]
pub struct Queue {
    /// By namespace and name.
    stuck: HashMap<(Box<str>, Box<str>), Entry>,
    ready: Ready,
    /// When each namespace had its last turn, as long as Pods wait.
    namespaces: HashMap<Box<str>, u64>,
    /// The owners that had one.
    owners: HashSet<u64>,
    turns: u64,
    /// The number of the last list of all Pods.
    listing: u32,
}

/// One stuck Pod.
#[derive(Debug)]
struct Entry {
    pod: StuckPod,
    since: Timestamp,
    /// When it was seen to begin to fail; none where it was listed as one that fails.
    seen_at: Option<Timestamp>,
    plan: Plan,
    /// Since when an image that is no mirror's cannot be pulled.
    upstream_since: Option<Timestamp>,
    rest: Rest,
    /// Those that it was told of that they would be turned.
    told: Vec<Turning>,
    /// The list that last named the Pod.
    listing: u32,
}

/// What is to be done with a Pod.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    turned: Vec<Turning>,
    told: Vec<Turning>,
    /// An image that is no mirror's and cannot be pulled.
    fails_upstream: Option<Box<str>>,
}

/// Why a Pod is not asked about again.
#[derive(Debug, Default)]
struct Rest {
    /// This version was turned, or was not the last one.
    version: Option<Box<str>>,
    /// The request failed.
    until: Option<Timestamp>,
    failures: u32,
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
    /// The Pod is another one by now.
    Changed,
    /// It may be tried again.
    Failed,
}

impl Queue {
    /// Begins a list of all Pods: those not taken in before [`Queue::end_listing`] are gone.
    pub fn begin_listing(&mut self) {
        self.listing = self.listing.wrapping_add(1);
        self.ready.begin_listing();
    }

    /// Ends it.
    pub fn end_listing(&mut self) {
        self.stuck.retain(|_, entry| entry.listing == self.listing);
        self.ready.end_listing();
    }

    /// Takes in a Pod. One that is `listed` was so for nobody knows how long. Returns whether something may be due.
    pub fn take(&mut self, pod: &Pod<'_>, known: &Known<'_>, listed: bool, now: Timestamp) -> bool {
        self.ready.set(pod);
        let Some(stuck) = StuckPod::of(pod) else {
            self.forget(pod.namespace, pod.name);
            return false;
        };
        let id = (stuck.id.namespace.clone(), stuck.id.name.clone());
        let before = self
            .stuck
            .remove(&id)
            .filter(|entry| entry.pod.id.uid == stuck.id.uid);
        if before.is_none() && self.stuck.len() >= LIMIT {
            return false;
        }
        let mut entry = before.unwrap_or_else(|| {
            let since = stuck.created.filter(|_| listed).unwrap_or(now);
            Entry {
                seen_at: (!listed).then_some(now),
                ..Entry::new(stuck.clone(), since.min(now))
            }
        });
        // What failed before was another version.
        if entry.pod.id.resource_version != stuck.id.resource_version {
            entry.rest = Rest::default();
        }
        entry.listing = self.listing;
        entry.pod = stuck;
        let since = if listed { entry.since } else { now };
        entry.judge(known, since);
        let may_be_due = !entry.plan.is_empty();
        self.stuck.insert(id, entry);
        may_be_due
    }

    /// Forgets a Pod that is gone.
    pub fn remove(&mut self, pod: &Pod<'_>) {
        self.ready.remove(pod.uid);
        self.forget(pod.namespace, pod.name);
    }

    /// Judges all anew, by what is known now.
    pub fn judge(&mut self, known: &Known<'_>, now: Timestamp) {
        for entry in self.stuck.values_mut() {
            entry.judge(known, now);
        }
    }

    /// Looks which Pods go forward, by what is proven now. Returns whether something may be due.
    pub fn look_ahead(&mut self, by: &Ahead<'_>) -> bool {
        let mut any = false;
        for entry in self.stuck.values_mut() {
            any |= entry.look_ahead(by);
        }
        any
    }

    /// Returns how many Pods wait for their turn.
    pub fn waiting(&self) -> usize {
        self.stuck
            .values()
            .filter(|entry| !entry.plan.turned.is_empty())
            .count()
    }

    /// Takes the next order out.
    pub fn next(&mut self, now: Timestamp) -> Next {
        let cut_off = self.cut_off(now);
        let mut soonest: Option<Duration> = None;
        let mut next: Option<(_, &(Box<str>, Box<str>))> = None;
        for (id, entry) in &self.stuck {
            if !entry.may_be_due() {
                continue;
            }
            let wait = entry.wait(&cut_off, now);
            if wait > Duration::ZERO {
                soonest = Some(soonest.map_or(wait, |soonest| soonest.min(wait)));
                continue;
            }
            let owner = entry.pod.owner.as_deref().map(hash);
            // One Pod of each owner that has nothing which serves.
            let serves = owner.is_some_and(|owner| self.ready.serves(owner) || self.owners.contains(&owner));
            let served = self.namespaces.get(&id.0).copied().unwrap_or_default();
            // To help goes before to tell, and no namespace, whatever its Pods say of their owners, before another.
            let only_tells = entry.plan.turned.is_empty();
            let order = (only_tells, served, serves, Reverse(entry.pod.created), id);
            if next.as_ref().is_none_or(|(first, _)| order < *first) {
                next = Some((order, id));
            }
        }
        let Some(id) = next.map(|(_, id)| id.clone()) else {
            if soonest.is_none() {
                self.forget_turns();
            }
            return soonest.map_or(Next::Nothing, Next::In);
        };
        self.turns += 1;
        self.namespaces.insert(id.0.clone(), self.turns);
        let Some(entry) = self.stuck.get_mut(&id) else {
            return Next::Nothing;
        };
        self.owners.extend(entry.pod.owner.as_deref().map(hash));
        Next::Order(Box::new(entry.order(now)))
    }

    /// Takes in what came of an order.
    pub fn end(&mut self, pod: &PodId, ending: Ending, now: Timestamp) {
        let id = (pod.namespace.clone(), pod.name.clone());
        let Some(entry) = self
            .stuck
            .get_mut(&id)
            .filter(|entry| entry.pod.id.uid == pod.uid)
        else {
            return;
        };
        if ending == Ending::Failed {
            entry.rest.version = None;
            let pause = PAUSE.0 * 2_u32.saturating_pow(entry.rest.failures.min(16));
            entry.rest.until = Some(now.after(pause.min(PAUSE.1)));
            entry.rest.failures += 1;
        }
    }

    /// The nodes on which images that are no mirror's cannot be pulled either, as it seems: two of them, since one may
    /// be a name that does not exist.
    fn cut_off(&self, now: Timestamp) -> HashSet<&str> {
        let mut failing: HashMap<&str, &str> = HashMap::new();
        let mut cut_off = HashSet::new();
        for entry in self.stuck.values() {
            let (Some(since), Some(image)) = (entry.upstream_since, &entry.plan.fails_upstream) else {
                continue;
            };
            let node = &*entry.pod.node;
            if now.since(since) < TELLING
                && !node.is_empty()
                && *failing.entry(node).or_insert(image) != &**image
            {
                cut_off.insert(node);
            }
        }
        cut_off
    }

    /// Forgets a Pod that is not stuck.
    fn forget(&mut self, namespace: &str, name: &str) {
        if !self.stuck.is_empty() {
            self.stuck.remove(&(Box::from(namespace), Box::from(name)));
        }
    }

    /// Forgets whose turn it was, where nobody waits for one.
    fn forget_turns(&mut self) {
        self.namespaces.clear();
        self.owners.clear();
    }
}

impl Entry {
    fn new(pod: StuckPod, since: Timestamp) -> Self {
        Self {
            pod,
            since,
            seen_at: None,
            plan: Plan::default(),
            upstream_since: None,
            rest: Rest::default(),
            told: Vec::new(),
            listing: 0,
        }
    }

    /// Judges the Pod. What fails from now on does so `since` then.
    fn judge(&mut self, known: &Known<'_>, since: Timestamp) {
        self.plan = Plan::of(&self.pod, known);
        self.plan.told.retain(|turning| !self.told.contains(turning));
        let fails = self.plan.fails_upstream.is_some();
        self.upstream_since = fails.then(|| self.upstream_since.unwrap_or(since));
    }

    /// Looks anew which containers go forward: proof comes and goes. Returns whether some do.
    fn look_ahead(&mut self, by: &Ahead<'_>) -> bool {
        let Plan {
            turned,
            told,
            fails_upstream,
        } = &mut self.plan;
        turned.retain(|turning| turning.way == Way::Back);
        told.retain(|turning| turning.way == Way::Back);
        // Nothing that fails is upstream's, as nearly always.
        if fails_upstream.is_none() {
            return false;
        }
        let mut any = false;
        for container in &self.pod.containers {
            let Ok((turning, policy)) = self.pod.forward(container, by) else {
                continue;
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

    /// Whether there is something to do that was not tried with this version.
    fn may_be_due(&self) -> bool {
        !self.plan.is_empty() && self.rest.version.as_ref() != Some(&self.pod.id.resource_version)
    }

    /// Returns how long to wait before it is done.
    fn wait(&self, cut_off: &HashSet<&str>, now: Timestamp) -> Duration {
        let rest = self.rest.until.map_or(Duration::ZERO, |until| until.since(now));
        // Where it is upstream that fails, no more is to be expected of waiting.
        let Plan { turned, told, .. } = &self.plan;
        let goes_back = turned.iter().chain(told).any(|turning| turning.way == Way::Back);
        if goes_back && cut_off.contains(&*self.pod.node) {
            return rest.max(self.since.after(PATIENCE).since(now));
        }
        rest
    }

    /// Takes the order out. Its next one is for another version, or after a failure.
    fn order(&mut self, now: Timestamp) -> Order {
        // What is only told may yet be turned, where the policy becomes another one.
        if !self.plan.turned.is_empty() {
            self.rest.version = Some(self.pod.id.resource_version.clone());
        }
        let told = std::mem::take(&mut self.plan.told);
        self.told.extend(told.iter().cloned());
        Order {
            pod: self.pod.id.clone(),
            turned: self.plan.turned.clone(),
            told,
            is_late: self.seen_at.is_none_or(|at| now.since(at) >= FRESH),
            turns_before: self.pod.turns.clone().unwrap_or_default(),
            has_annotations: self.pod.has_annotations,
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
                    plan.fails_upstream.get_or_insert_with(|| container.image.clone());
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

/// The Pods that are ready, and how many each owner has of them. A Pod costs two numbers.
#[derive(Debug, Default)]
struct Ready {
    /// Owner by Pod.
    pods: HashMap<u64, u64>,
    owners: HashMap<u64, u32>,
    /// Those that the list told so far which is in progress.
    listed: Option<HashMap<u64, u64>>,
}

impl Ready {
    fn begin_listing(&mut self) {
        self.listed = Some(HashMap::new());
    }

    fn end_listing(&mut self) {
        let Some(listed) = self.listed.take() else { return };
        let mut owners = HashMap::new();
        for owner in listed.values() {
            *owners.entry(*owner).or_default() += 1;
        }
        (self.pods, self.owners) = (listed, owners);
    }

    fn set(&mut self, pod: &Pod<'_>) {
        let owner = pod.owner.filter(|_| pod.is_ready && !pod.is_deleted).map(hash);
        let Some(owner) = owner else {
            return self.remove(pod.uid);
        };
        let pod = hash(pod.uid);
        if let Some(listed) = &mut self.listed {
            listed.insert(pod, owner);
        }
        if self.pods.insert(pod, owner).is_none() {
            *self.owners.entry(owner).or_default() += 1;
        }
    }

    fn remove(&mut self, uid: &str) {
        let pod = hash(uid);
        if let Some(listed) = &mut self.listed {
            listed.remove(&pod);
        }
        let Some(owner) = self.pods.remove(&pod) else {
            return;
        };
        if let Some(pods) = self.owners.get_mut(&owner) {
            *pods -= 1;
            if *pods == 0 {
                self.owners.remove(&owner);
            }
        }
    }

    fn serves(&self, owner: u64) -> bool {
        self.owners.contains_key(&owner)
    }
}

/// Returns the number that stands for a UID, which the API server gives and nobody chooses.
fn hash(uid: &str) -> u64 {
    FixedState::default().hash_one(uid)
}

#[cfg(test)]
mod tests;
