//! The registries that people's own images come from, by what became of the Pods that went back there: while a mirror
//! gives an image as far as Kagami sees, its node most likely gets it with one of the next tries, and a registry that does
//! not serve the nodes (a firewall, a limit that is used up) would keep what goes back.
//!
//! So it is with them as with a circuit breaker. To a registry of which nothing is known a few Pods go alone, one of each
//! namespace among them; once one of them has its image, all go. Where one of a namespace fails no more of that namespace
//! go, and where Pods of two namespaces fail none does, so that nobody's own image keeps others where they are, until one
//! has its image after all, or for a while: then one goes alone again. What counts is only what the queue itself turned
//! after it had asked here: anybody can write a Pod that fails, and an annotation that says it went back.
//!
//! What may come forward again loses little where its registry fails, so more of it go, and sooner once more; of what
//! nothing leads to the mirror again none goes that need not.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use super::turns::Id;
use crate::domain::{
    image::Reference,
    rescue::{Container, Failure, Order, Pod, PodId, REASONS, StuckPod, Turning, Way},
    time::Timestamp,
};

/// How many Pods go alone.
pub(super) const ALONE: usize = 3;

/// After so long without a word of one that went alone, another one may: a runtime gives up a connection that nobody
/// takes after thirty seconds, and kubelet tells of it within fifteen more.
pub(super) const SILENT: Duration = Duration::from_secs(45);

const A_SECOND: Duration = Duration::from_secs(1);

/// For how long it is believed what became of Pods.
pub(super) const TELLING: Duration = Duration::from_mins(5);

/// After so long nobody waits any more for what becomes of a Pod, and what failed is forgotten.
const LONGEST_PULL: Duration = Duration::from_mins(30);

/// How many registries are kept in mind, and how many Pods and namespaces of each: beyond that the oldest are forgotten.
const REGISTRIES: usize = 64;
const PODS: usize = 64;
const NAMESPACES: usize = 64;

/// The registries of which something is known, by their hosts.
#[derive(Debug, Default)]
pub(super) struct Upstreams(HashMap<Box<str>, Upstream>);

#[derive(Debug, Default)]
struct Upstream {
    /// The Pods that went there and are not known to have their image.
    gone: BTreeMap<Id, Gone>,
    /// The namespaces of those that failed there, and since when one does.
    failed: BTreeMap<Box<str>, Timestamp>,
    /// When one was last seen to have its image.
    pulled_at: Option<Timestamp>,
}

/// A Pod that went back.
#[derive(Debug)]
struct Gone {
    uid: Box<str>,
    at: Timestamp,
    /// It was seen to fail, and may have its image after all, once the registry is back.
    has_failed: bool,
    /// Its containers and their images.
    containers: Vec<(Box<str>, Box<str>)>,
}

/// What became of one.
enum Became {
    Pulled,
    Failed,
    /// It is gone, has another image, or failed in a way that says nothing of the registry.
    Nothing,
}

/// Whether a container is past its pull, whatever else is the matter with it: it runs, has ended well, or waits because
/// of what comes after.
fn has_image(container: &Container<'_>) -> bool {
    let waits_for_more = container.waiting.is_some_and(|(reason, _)| {
        !REASONS.contains(&reason) && !["", "ContainerCreating", "PodInitializing"].contains(&reason)
    });
    container.is_running || container.has_succeeded || waits_for_more
}

/// Returns the host of an image's registry.
pub(super) fn host(image: &str) -> Option<Box<str>> {
    Some(Reference::parse(image).ok()?.host().into())
}

impl Upstreams {
    /// Whether no Pod is known of which it is not known what became of it.
    pub(super) fn is_idle(&self) -> bool {
        self.0.values().all(|upstream| upstream.gone.is_empty())
    }

    /// Whether one more Pod of a namespace may go back to a registry, which may come forward again or not.
    pub(super) fn allows(&self, host: &str, namespace: &str, has_way_forward: bool, now: Timestamp) -> bool {
        self.0
            .get(host)
            .is_none_or(|upstream| upstream.allows(namespace, has_way_forward, now))
    }

    /// Whether Pods of a namespace are seen to fail there, or those of others.
    pub(super) fn is_shut(&self, host: &str, namespace: &str, has_way_forward: bool, now: Timestamp) -> bool {
        self.0
            .get(host)
            .is_some_and(|upstream| upstream.is_shut(namespace, has_way_forward, now))
    }

    /// Takes in that what an order says is about to be done, as far as it asked.
    pub(super) fn go(&mut self, id: &Id, order: &Order, asked: impl Fn(&Turning) -> bool, now: Timestamp) {
        let back = order.turned.iter().filter(|turning| turning.way == Way::Back);
        for turning in back.filter(|turning| asked(turning)) {
            let Some(host) = host(&turning.to) else { continue };
            if !self.0.contains_key(&host) && self.0.len() >= REGISTRIES {
                let oldest = self.0.iter().min_by_key(|(_, upstream)| upstream.last());
                let Some(oldest) = oldest.map(|(host, _)| host.clone()) else {
                    continue;
                };
                self.0.remove(&oldest);
            }
            let gone = &mut self.0.entry(host).or_default().gone;
            // Who says nothing for so long does not count any more.
            gone.retain(|_, gone| now.since(gone.at) < LONGEST_PULL);
            if !gone.contains_key(id) && gone.len() >= PODS {
                let oldest = gone.iter().min_by_key(|(_, gone)| gone.at);
                let Some(oldest) = oldest.map(|(id, _)| Arc::clone(id)) else {
                    continue;
                };
                gone.remove(&oldest);
            }
            let gone = gone.entry(Arc::clone(id)).or_insert_with(|| Gone {
                uid: order.pod.uid.clone(),
                at: now,
                has_failed: false,
                containers: Vec::new(),
            });
            if gone.uid != order.pod.uid {
                (gone.uid, gone.containers) = (order.pod.uid.clone(), Vec::new());
            }
            (gone.at, gone.has_failed) = (now, false);
            gone.containers
                .push((turning.container.clone(), turning.to.clone()));
        }
    }

    /// Takes in that it was not done.
    pub(super) fn stayed(&mut self, id: &Id, pod: &PodId) {
        for upstream in self.0.values_mut() {
            if upstream.gone.get(id).is_some_and(|gone| gone.uid == pod.uid) {
                upstream.gone.remove(id);
            }
        }
    }

    /// Takes in a Pod, and what of it is stuck.
    pub(super) fn take(&mut self, id: &Id, pod: &Pod<'_>, stuck: Option<&StuckPod>, now: Timestamp) {
        for upstream in self.0.values_mut() {
            let Some(gone) = upstream.gone.get_mut(id) else { continue };
            let Some(became) = gone.became(pod, stuck) else {
                continue;
            };
            match became {
                Became::Failed => {
                    if !std::mem::replace(&mut gone.has_failed, true) {
                        upstream.fail(&id.0, now);
                    }
                    continue;
                }
                Became::Pulled => upstream.pulled_at = Some(now),
                Became::Nothing => {}
            }
            upstream.gone.remove(id);
        }
    }

    /// Returns how many registries are kept in mind, and how many Pods in all.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        let pods = self.0.values().map(|upstream| upstream.gone.len());
        (self.0.len(), pods.sum())
    }

    /// Forgets a Pod that is gone.
    pub(super) fn forget(&mut self, id: &Id) {
        for upstream in self.0.values_mut() {
            upstream.gone.remove(id);
        }
    }
}

impl Upstream {
    fn allows(&self, namespace: &str, has_way_forward: bool, now: Timestamp) -> bool {
        if self.is_shut(namespace, has_way_forward, now) {
            return false;
        }
        if self.pulled_at.is_some_and(|at| now.since(at) < TELLING) {
            return true;
        }
        let under_way = || self.under_way(now);
        if under_way().all(|(of, _)| of != namespace) {
            return true;
        }
        // Whoever may come forward again need not wait for what becomes of the first ones, until one fails.
        let is_open = has_way_forward && self.failing(now).next().is_none();
        let count = under_way()
            .filter(|(_, at)| !is_open || now.since(*at) < A_SECOND)
            .count();
        count < ALONE
    }

    fn is_shut(&self, namespace: &str, has_way_forward: bool, now: Timestamp) -> bool {
        let pause = if has_way_forward { SILENT } else { TELLING };
        let is_seen_to_fail =
            self.failing(now).any(|(of, _)| of == namespace) || self.failing(now).nth(1).is_some();
        // After a while one goes alone again, and the next one as long after that as if it had failed.
        is_seen_to_fail && self.last().is_some_and(|last| now.since(last) < pause)
    }

    /// Returns the namespaces of those that failed and when, of which none was seen to have its image since.
    fn failing(&self, now: Timestamp) -> impl Iterator<Item = (&str, Timestamp)> {
        let failed = self.failed.iter().map(|(of, at)| (&**of, *at));
        failed.filter(move |(_, at)| {
            let has_pulled_since = self.pulled_at.is_some_and(|pulled_at| pulled_at >= *at);
            !has_pulled_since && now.since(*at) < LONGEST_PULL
        })
    }

    /// Returns the namespaces of those that went, and when, of which something is still to be told.
    fn under_way(&self, now: Timestamp) -> impl Iterator<Item = (&str, Timestamp)> {
        let gone = self.gone.iter().filter(|(_, gone)| !gone.has_failed);
        let gone = gone.map(|(id, gone)| (&*id.0, gone.at));
        gone.filter(move |(_, at)| now.since(*at) < SILENT)
    }

    /// Takes in that a Pod of a namespace failed. The first failure of each Pod counts alone: what fails for ever is its
    /// own fault.
    fn fail(&mut self, namespace: &str, now: Timestamp) {
        if self.failed.len() >= NAMESPACES {
            self.failed.retain(|_, at| now.since(*at) < LONGEST_PULL);
        }
        if self.failed.len() < NAMESPACES || self.failed.contains_key(namespace) {
            self.failed.insert(namespace.into(), now);
        }
    }

    /// When something was last learned of it.
    fn last(&self) -> Option<Timestamp> {
        let gone = self.gone.values().map(|gone| gone.at);
        gone.chain(self.failed.values().copied())
            .chain(self.pulled_at)
            .max()
    }
}

impl Gone {
    /// Returns what became of the Pod; none while nobody knows.
    fn became(&self, pod: &Pod<'_>, stuck: Option<&StuckPod>) -> Option<Became> {
        if *self.uid != *pod.uid || pod.is_deleted {
            return Some(Became::Nothing);
        }
        let is_one = |name: &str, image: &str| {
            let mut containers = self.containers.iter();
            containers.any(|(known, to)| **known == *name && **to == *image)
        };
        let mut now = pod.init_containers.iter().chain(&pod.containers);
        let mut its = now.by_ref().filter(|now| is_one(now.name, now.image)).peekable();
        if its.peek().is_none() {
            return Some(Became::Nothing);
        }
        if its.any(has_image) {
            return Some(Became::Pulled);
        }
        let stuck = stuck.iter().flat_map(|stuck| &stuck.containers);
        let mut failed =
            stuck.filter(|stuck| stuck.failure == Failure::Image && is_one(&stuck.name, &stuck.image));
        // A registry that has no such image, or does not give it to these, serves nodes all the same.
        failed.next().map(|stuck| {
            if stuck.is_answered {
                Became::Nothing
            } else {
                Became::Failed
            }
        })
    }
}
