//! Pods that are stuck on an image volume of a mirror. Nobody can change the image of a volume, so no patch helps: the
//! Pod must be made anew, by its owner after an eviction, or by people.
//!
//! A Pod is evicted only where the mirror's settings ask for it, where nothing of it has begun and nothing is lost with
//! it, where its owner surely makes another one, and where that one would surely get upstream's image: else it would be
//! evicted again and again. In every other case it is told what keeps it and what to do, once.

use std::borrow::Cow;

use super::{
    LONGEST_NAME, LONGEST_REFERENCE, Pod, PodId,
    by_pod::ByPod,
    forward::{Ahead, Newcomer},
    message::{Said, said},
    original::{Original, RecordedDecisions, mirrors_named_by},
    same_image, tried,
};
use crate::domain::{
    decision::Operation,
    image::Reference,
    mirror::{Mode, RescuePolicy},
    names::DECISIONS_ANNOTATION,
    pod::{Place, PlaceKind, PlaceLabel},
    reason::{Outcome, Reason},
    routing::Routing,
    time::Timestamp,
};

/// How many Pods are kept in mind.
const LIMIT: usize = 2_000;

/// How long nothing is done with a Pod after a request of it failed, as where a disruption budget is used up.
const PAUSE: std::time::Duration = std::time::Duration::from_mins(1);

/// How long nobody is evicted after the API server said that the companion has no right to.
const NO_RIGHT: std::time::Duration = std::time::Duration::from_mins(10);

/// The owners that make a Pod anew without counting it as a failure: API version and kind.
const OWNERS: [(&str, &str); 3] = [
    ("apps/v1", "ReplicaSet"),
    ("apps/v1", "DaemonSet"),
    ("v1", "ReplicationController"),
];

/// The Pods of a cluster that are stuck on image volumes of mirrors.
#[derive(Debug, Default)]
pub struct Volumes {
    pods: ByPod<Entry>,
    /// Until when the companion surely may evict nobody.
    no_right_until: Option<Timestamp>,
}

#[derive(Debug)]
struct Entry {
    stuck: StuckVolume,
    /// What it was told.
    told: Option<Hindrance>,
    /// The version that was evicted, or is not to be.
    rests: Option<Box<str>>,
    until: Option<Timestamp>,
}

/// A Pod that is stuck on an image volume which names a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckVolume {
    pub pod: PodId,
    pub volume: Box<str>,
    /// As it stands in the Pod.
    pub image: Box<str>,
    recorded: Option<Box<str>>,
    decided: Option<Box<str>>,
    /// What its own label leaves.
    mode: Mode,
    /// What keeps it whatever is known of the mirror.
    hindrance: Option<Hindrance>,
    newcomer: Option<Newcomer>,
}

/// Why a Pod that is stuck on an image volume is not evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// Nothing proves that Kagami wrote the image.
    NoRecord,
    /// The mirror's settings do not ask for it, or the companion has no right to.
    NotAsked,
    /// The mirror's policy, or the Pod's label, lets Kagami only tell.
    TellOnly,
    /// The namespace is not labelled enforce.
    NotEnforced,
    /// A container of it has begun.
    Begun,
    /// It has a claim.
    Claim,
    /// Nobody is known to make it anew without loss.
    Owner,
    /// Another Pod would get the same.
    InVain,
}

impl Hindrance {
    /// Returns what it means, and what would help.
    pub const fn help(self) -> &'static str {
        match self {
            Self::NoRecord => {
                "nothing tells what its user wrote: write upstream's name where the Pod is made, and make it anew"
            }
            Self::NotAsked => {
                "delete the Pod once the mirror is out of use for it, or set spec.rescue.deletePods of the ImageMirror \
                 and the chart's value rescue.deletePods to let it be evicted"
            }
            Self::TellOnly => {
                "spec.rescue.policy of the mirror or the Pod's label lets Kagami only tell: delete the Pod once the \
                 mirror is out of use for it"
            }
            Self::NotEnforced => {
                "Pods are evicted only in namespaces labelled kagami.dev/mode: enforce: delete the Pod once the mirror \
                 is out of use for it"
            }
            Self::Begun => {
                "a container of it has begun, so it is not evicted: delete the Pod when it may be interrupted"
            }
            Self::Claim => "it has a claim, so it is not evicted: delete the Pod when its data may be let go",
            Self::Owner => {
                "it is evicted only where a ReplicaSet, DaemonSet or ReplicationController makes it anew: delete the Pod, \
                 or make it anew"
            }
            Self::InVain => {
                "a new Pod would get the same image, for the mirror has proof of it, so it is not evicted: see why its \
                 node cannot pull, or set the mirror's spec.mode to \"Off\" meanwhile"
            }
        }
    }
}

/// What is to be done with a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Help {
    pub stuck: StuckVolume,
    /// The mirror whose image it is; empty where nothing proves that it is one.
    pub mirror: Box<str>,
    /// Why it is only told; none where it is to be evicted, if its Events tell of no container that has begun.
    pub hindrance: Option<Hindrance>,
}

impl Volumes {
    /// Begins a list of all Pods: those not taken in before [`Volumes::end_listing`] are gone.
    pub const fn begin_listing(&mut self) {
        self.pods.begin_listing();
    }

    /// Ends it.
    pub fn end_listing(&mut self) {
        self.pods.end_listing();
    }

    /// Takes in a Pod.
    pub fn take(&mut self, pod: &Pod<'_>, routing: &Routing) {
        let Some(stuck) = StuckVolume::of(pod, routing) else {
            return self.remove(pod);
        };
        let before = self.pods.take_out(pod);
        let before = before.filter(|entry| entry.stuck.pod.uid == stuck.pod.uid);
        if before.is_none() && self.pods.len() >= LIMIT {
            return;
        }
        let mut entry = before.unwrap_or_else(|| Entry {
            stuck: stuck.clone(),
            told: None,
            rests: None,
            until: None,
        });
        entry.stuck = stuck;
        self.pods.put_in(pod, entry);
    }

    /// Forgets a Pod that is gone, or not stuck.
    pub fn remove(&mut self, pod: &Pod<'_>) {
        self.pods.take_out(pod);
    }

    /// Takes out what is to be done next, by what is known now.
    pub fn next(&mut self, by: &Ahead<'_>) -> Option<Help> {
        let has_right = self.no_right_until.is_none_or(|until| until <= by.now);
        for entry in self.pods.values_mut() {
            let version = &entry.stuck.pod.resource_version;
            let rests =
                entry.rests.as_ref() == Some(version) || entry.until.is_some_and(|until| until > by.now);
            let Some((mirror, help)) = entry.stuck.judge(by) else {
                continue;
            };
            let help = help.or(if has_right {
                None
            } else {
                Some(Hindrance::NotAsked)
            });
            match help {
                Some(hindrance) if entry.told == Some(hindrance) => continue,
                Some(hindrance) => entry.told = Some(hindrance),
                None if rests => continue,
                None => entry.rests = Some(version.clone()),
            }
            return Some(Help {
                stuck: entry.stuck.clone(),
                mirror: mirror.into(),
                hindrance: help,
            });
        }
        None
    }

    /// Takes in that the companion has no right to evict: the chart's value does not give it.
    pub fn has_no_right(&mut self, now: Timestamp) {
        self.no_right_until = Some(now.after(NO_RIGHT));
    }

    /// Takes in that a Pod was not evicted: a container of it has begun, or the request failed.
    pub fn not_evicted(&mut self, pod: &PodId, has_begun: bool, now: Timestamp) {
        let entry = self.pods.get_mut(pod);
        let Some(entry) = entry.filter(|entry| entry.stuck.pod.uid == pod.uid) else {
            return;
        };
        if has_begun {
            entry.stuck.hindrance = Some(Hindrance::Begun);
        } else {
            entry.rests = None;
            entry.until = Some(now.after(PAUSE));
        }
    }
}

impl StuckVolume {
    /// Returns a Pod if it is stuck on an image volume that names a mirror.
    pub fn of(pod: &Pod<'_>, routing: &Routing) -> Option<Self> {
        if pod.is_static || pod.is_deleted || pod.is_done || pod.image_volumes.is_empty() {
            return None;
        }
        let (volume, image) = tried(pod).find_map(|(_, _, container)| {
            let (_, message) = container.failed_pull()?;
            let Said::Failed(failed) = said(message) else {
                return None;
            };
            if same_image(failed, container.image) {
                return None;
            }
            let mut volumes = pod.image_volumes.iter();
            volumes.find(|(_, image)| image.len() <= LONGEST_REFERENCE && same_image(failed, image))
        })?;
        if mirrors_named_by(routing, image).is_empty() {
            return None;
        }
        let label = PlaceLabel::new(PlaceKind::Volume, volume);
        let annotation = |key: &str| Some(pod.annotations?.get(key)?.as_str());
        let decisions = RecordedDecisions::new(annotation(DECISIONS_ANNOTATION));
        let recorded = annotation(&label.original_annotation());
        let decided = decisions.mirror(label);
        let mode = pod.mode_label.map(Mode::from_label);
        Some(Self {
            pod: pod.id(),
            volume: (*volume).into(),
            image: (*image).into(),
            recorded: recorded
                .filter(|recorded| recorded.len() <= LONGEST_REFERENCE)
                .map(Into::into),
            decided: decided.filter(|name| name.len() <= LONGEST_NAME).map(Into::into),
            mode: mode.map_or(Mode::Enforce, |mode| mode.unwrap_or(Mode::Off)),
            hindrance: hindrance(pod),
            newcomer: Newcomer::of(pod),
        })
    }

    /// Returns the mirror whose image the volume is, and why the Pod is only told; none where nothing is done, at least
    /// for the moment.
    fn judge<'a>(&'a self, by: &Ahead<'a>) -> Option<(&'a str, Option<Hindrance>)> {
        let namespace = &*self.pod.namespace;
        let snapshot = by.snapshot;
        if snapshot.paused || self.mode == Mode::Off || snapshot.left_alone.contains(namespace) {
            return None;
        }
        let routing = &snapshot.routing;
        let named = mirrors_named_by(routing, &self.image);
        let settings = named.iter().map(|mirror| routing.mirror(*mirror));
        let policy = settings.clone().map(|mirror| mirror.rescue).min()?;
        if policy == RescuePolicy::Off {
            return None;
        }
        let recorded = self.recorded.as_deref();
        let decided = || self.decided.as_deref();
        let original = recorded.and_then(|recorded| Original::prove(routing, &self.image, recorded, decided));
        let Some(original) = original else {
            return Some(("", Some(Hindrance::NoRecord)));
        };
        let mirror = routing.mirror(original.mirror).name.as_str();
        let told = |hindrance| Some((mirror, Some(hindrance)));
        if policy == RescuePolicy::Audit || self.mode != Mode::Enforce {
            return told(Hindrance::TellOnly);
        }
        // Nobody can tell which of the mirrors in one registry it was, so all must ask for it.
        if !settings.clone().all(|mirror| mirror.delete_pods) {
            return told(Hindrance::NotAsked);
        }
        if !by.enforces(namespace) {
            return told(Hindrance::NotEnforced);
        }
        if let Some(hindrance) = self.hindrance {
            return told(hindrance);
        }
        let Some(newcomer) = &self.newcomer else {
            return told(Hindrance::Owner);
        };
        let place = Place {
            kind: PlaceKind::Volume,
            index: 0,
            name: Cow::Borrowed(&self.volume),
            image: Cow::Borrowed(original.reference.written()),
            never: false,
        };
        match newcomer.admit(Operation::Create, place, namespace, self.mode, by) {
            Ok((admitted, Outcome::Rewritten))
                if routing.mirror(admitted).mapping.registry
                    == routing.mirror(original.mirror).mapping.registry =>
            {
                told(Hindrance::InVain)
            }
            // What is not known now may be known in a moment, and then a new Pod gets the same image again.
            Err(
                Reason::BudgetExhausted
                | Reason::MirrorSuspected
                | Reason::MirrorUnknown
                | Reason::StateStale
                | Reason::ImageUnknown
                | Reason::RateLimited
                | Reason::RegistryError
                | Reason::Internal,
            ) => None,
            Ok(_) | Err(_) => Some((mirror, None)),
        }
    }

    /// Returns what its user wrote.
    pub fn original(&self) -> Option<Reference<'_>> {
        Reference::parse(self.recorded.as_deref()?).ok()
    }
}

/// Returns what keeps a Pod from being evicted, whatever is known of the mirror.
fn hindrance(pod: &Pod<'_>) -> Option<Hindrance> {
    let makes_anew = pod
        .controller
        .is_some_and(|controller| OWNERS.contains(&controller));
    if pod.has_begun {
        Some(Hindrance::Begun)
    } else if pod.has_claim {
        Some(Hindrance::Claim)
    } else if !makes_anew {
        Some(Hindrance::Owner)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
