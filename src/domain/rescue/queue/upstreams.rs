//! The registries that people's own images come from, by what became of the Pods that went back there: while a mirror
//! gives an image as far as Kagami sees, its node most likely gets it with one of the next tries, and a registry that does
//! not serve the nodes (a firewall, a limit that is used up) would keep what goes back.
//!
//! So it is with them as with a circuit breaker. To a registry of which nothing is known a few Pods go alone, one of each
//! namespace among them; once one of them has its image, all go. Where one of a namespace fails no more of that namespace
//! go from its node, and where Pods of two namespaces fail, or on two nodes of one, none of any or of that namespace does: so
//! nobody's own image and no broken node keeps others where they are. That holds until one has its image after all, or for a
//! while: then one goes alone again. What counts is only what the queue itself turned after it had asked here: anybody can
//! write a Pod that fails, and an annotation that says it went back.
//!
//! A registry that answers serves nodes: what it lacks or refuses is kept in mind for that image and namespace alone.
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
    rescue::{Container, Failure, Order, Pod, PodId, REASONS, StuckPod, Turn, Turning, Way, message::Cause},
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

/// How many registries are kept in mind, and how many Pods, failures and images of each: beyond that the oldest are
/// forgotten, but of Pods only those that nobody waits for. What becomes of one is told within a quarter of a minute, so
/// that is enough for some twenty a second.
const REGISTRIES: usize = 64;
const PODS: usize = 512;
const FAILURES: usize = 64;
const IMAGES: usize = 256;

/// The registries of which something is known, by their hosts.
#[derive(Debug, Default)]
pub(super) struct Upstreams(HashMap<Box<str>, Upstream>);

#[derive(Debug, Default)]
struct Upstream {
    /// The Pods that went there and are not known to have their image.
    gone: BTreeMap<Id, Gone>,
    /// The namespaces and nodes of those that failed there, and when one was last seen to.
    failed: BTreeMap<(Box<str>, Box<str>), Timestamp>,
    /// The images that it answered not to have or not to give, by the namespaces that asked, and when it last did.
    answered: BTreeMap<(Box<str>, Box<str>), Timestamp>,
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

/// One more that would go back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    pub(super) namespace: &'a str,
    pub(super) node: &'a str,
    pub(super) image: &'a str,
    /// It may come forward again.
    pub(super) has_way_forward: bool,
}

/// What became of one.
enum Became {
    Pulled,
    Failed,
    /// The registry answered that it has no such image or does not give it.
    Answered(Box<str>),
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

    /// Whether one more may go back to a registry.
    pub(super) fn allows(&self, host: &str, question: &Question<'_>, now: Timestamp) -> bool {
        self.0
            .get(host)
            .is_none_or(|upstream| upstream.allows(question, now))
    }

    /// Returns the registries where Pods that went back are seen to fail.
    pub(super) fn failing(&self, now: Timestamp) -> impl Iterator<Item = &str> {
        let failing = self.0.iter();
        let failing = failing.filter(move |(_, upstream)| upstream.failing(now).next().is_some());
        failing.map(|(host, _)| &**host)
    }

    /// Whether one more would not be served there, as far as is known.
    pub(super) fn refuses(&self, host: &str, question: &Question<'_>, now: Timestamp) -> bool {
        self.0
            .get(host)
            .is_some_and(|upstream| upstream.refuses(question, now))
    }

    /// Whether a Pod was seen to have its image from a registry since a turn.
    pub(super) fn serves_since(&self, host: &str, turn: &Turn) -> bool {
        let pulled_at = self.0.get(host).and_then(|upstream| upstream.pulled_at);
        pulled_at.is_some_and(|at| turn.compared_to(at).is_lt())
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
                let told = gone.iter().filter(|(_, gone)| !gone.is_under_way(now));
                let oldest = told.min_by_key(|(_, gone)| gone.at);
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
            let Some(gone) = upstream.gone.get_mut(id) else {
                continue;
            };
            let Some(became) = gone.became(pod, stuck) else {
                continue;
            };
            match became {
                // The first failure of each counts alone: what fails for ever is its own fault.
                Became::Failed => {
                    if !std::mem::replace(&mut gone.has_failed, true) {
                        put(
                            &mut upstream.failed,
                            (id.0.clone(), pod.node.into()),
                            FAILURES,
                            now,
                        );
                    }
                    continue;
                }
                Became::Answered(image) => {
                    put(&mut upstream.answered, (id.0.clone(), image), IMAGES, now);
                }
                Became::Pulled => {
                    upstream.pulled_at = Some(now);
                    for (_, image) in &gone.containers {
                        upstream.answered.remove(&(id.0.clone(), image.clone()));
                    }
                }
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

/// Notes when something was last seen; beyond a bound the oldest is forgotten.
fn put(
    times: &mut BTreeMap<(Box<str>, Box<str>), Timestamp>,
    what: (Box<str>, Box<str>),
    limit: usize,
    now: Timestamp,
) {
    if !times.contains_key(&what) && times.len() >= limit {
        let oldest = times.iter().min_by_key(|(_, at)| **at);
        if let Some(oldest) = oldest.map(|(what, _)| what.clone()) {
            times.remove(&oldest);
        }
    }
    times.insert(what, now);
}

impl Upstream {
    fn allows(&self, question: &Question<'_>, now: Timestamp) -> bool {
        let Question {
            namespace,
            has_way_forward,
            ..
        } = *question;
        if self.refuses(question, now) {
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

    fn refuses(&self, question: &Question<'_>, now: Timestamp) -> bool {
        self.is_shut(question, now) || self.has_answered(question, now)
    }

    /// Whether Pods are seen to fail there in such a way that this one would, too.
    fn is_shut(&self, question: &Question<'_>, now: Timestamp) -> bool {
        let pause = if question.has_way_forward { SILENT } else { TELLING };
        // After a while one goes alone again, and the next one as long after that as if it had failed.
        self.is_seen_to_fail(question, now) && self.last().is_some_and(|last| now.since(last) < pause)
    }

    fn is_seen_to_fail(&self, question: &Question<'_>, now: Timestamp) -> bool {
        let Question { namespace, node, .. } = *question;
        let (mut first, mut of_own) = (None, None);
        let (mut two_namespaces, mut two_nodes) = (false, false);
        for (of, on) in self.failing(now) {
            if of == namespace && (on == node || of_own.is_some_and(|own| own != on)) {
                return true;
            }
            if of == namespace {
                of_own = Some(on);
            }
            let (first_of, first_on) = *first.get_or_insert((of, on));
            two_namespaces |= first_of != of;
            two_nodes |= first_on != on;
        }
        // On one node alone it may be the node's fault, which is then this one's, too.
        let on_its_own = first.is_some_and(|(_, on)| on == node);
        two_namespaces && (two_nodes || on_its_own)
    }

    /// Whether it answered lately that it has no such image, or does not give it to that namespace. After a while one goes
    /// alone again.
    fn has_answered(&self, question: &Question<'_>, now: Timestamp) -> bool {
        let Question { namespace, image, .. } = *question;
        let Some(at) = self.answered.get(&(namespace.into(), image.into())) else {
            return false;
        };
        let is_it = |(of, gone): (&Id, &Gone)| {
            *of.0 == *namespace
                && now.since(gone.at) < SILENT
                && gone.containers.iter().any(|(_, to)| **to == *image)
        };
        now.since(*at) < TELLING || (now.since(*at) < LONGEST_PULL && self.gone.iter().any(is_it))
    }

    /// Returns the namespaces and nodes of those that failed, of which none was seen to have its image since.
    fn failing(&self, now: Timestamp) -> impl Iterator<Item = (&str, &str)> {
        let failed = self.failed.iter();
        let failed = failed.filter(move |(_, at)| {
            let has_pulled_since = self.pulled_at.is_some_and(|pulled_at| pulled_at >= **at);
            !has_pulled_since && now.since(**at) < LONGEST_PULL
        });
        failed.map(|((of, on), _)| (&**of, &**on))
    }

    /// Returns the namespaces of those that went, and when, of which something is still to be told.
    fn under_way(&self, now: Timestamp) -> impl Iterator<Item = (&str, Timestamp)> {
        let gone = self.gone.iter().filter(move |(_, gone)| gone.is_under_way(now));
        gone.map(|(id, gone)| (&*id.0, gone.at))
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
    /// Whether something is still to be told of it.
    fn is_under_way(&self, now: Timestamp) -> bool {
        !self.has_failed && now.since(self.at) < SILENT
    }

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
        let stuck = stuck.iter().flat_map(|stuck| &stuck.containers);
        let mut failed =
            stuck.filter(|stuck| stuck.failure == Failure::Image && is_one(&stuck.name, &stuck.image));
        // One image may be on the node already: what fails tells more than what is there.
        match failed.next() {
            Some(stuck) => Some(match stuck.cause {
                Cause::NotFound | Cause::Refused => Became::Answered(stuck.image.clone()),
                Cause::OtherPlatform => Became::Nothing,
                Cause::Other => Became::Failed,
            }),
            None => its.all(has_image).then_some(Became::Pulled),
        }
    }
}
