//! Owners of Pods that fight rewrites: their controllers compare the images of Pods with what they asked for, and
//! recreate those that differ, without end.
//!
//! Some are known by their kind ([`super::mirror::OwnerPattern`]). Others are seen to do so: [`Watch`] counts how often
//! their rewritten Pods are replaced. Built-in controllers never compare images, so it is the custom resource that
//! counts, be it the Pod's own owner or that of the controller which made the Pod. A review sees no more than the Pod's
//! own owner; what [`LeftAlone`] notes of controllers is how it knows the rest.

mod asked;
mod watch;

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

pub use self::{
    asked::{Asked, Controller, Kind},
    watch::{Fate, Found, Owner, Pod, Question, Suspect, Watch},
};
use super::time::Timestamp;

/// How many owners and controllers are noted.
const KEPT: usize = 10_000;

/// How many bytes the notes may have: a ConfigMap holds 1 MiB.
const BYTES: usize = 1_000_000;

/// For how long an owner is left alone when it is seen to loop for the first time; each next time it is
/// [`GROWTH`] times as long, up to [`LONGEST`].
const FIRST: Duration = Duration::from_hours(1);
const GROWTH: u32 = 4;
const LONGEST: Duration = Duration::from_hours(7 * 24);

/// For how long it is remembered afterwards that an owner looped, at least.
const REMEMBERED: Duration = Duration::from_hours(24);

/// A custom resource that owns Pods, or a controller that makes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub namespace: Box<str>,
    pub api_version: Box<str>,
    pub kind: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
}

/// How long a name may be, an `apiVersion` (a group, a slash and a version), a kind and a UID. The API server bounds
/// the names and kinds of objects so (DNS subdomains and labels), but nothing of an owner reference.
const NAME: usize = 253;
const API_VERSION: usize = 253 + 1 + 63;
const KIND: usize = 63;
const UID: usize = 64;

/// A resource as it is written.
type Written = [Box<str>; 5];

/// A namespace and a UID. Owner references never lead out of a namespace, and whoever writes one may write any UID: so
/// nobody speaks of what is another namespace's. What owns Pods of several namespaces counts for each.
type Key = Box<str>;

/// Returns the key of what has this UID in a namespace, in whose name there is no slash.
fn key(namespace: &str, uid: &str) -> Key {
    format!("{namespace}/{uid}").into()
}

impl Resource {
    fn key(&self) -> Key {
        key(&self.namespace, &self.uid)
    }

    /// Returns what people know it by: kind, API group, namespace and name.
    pub fn describe(&self) -> String {
        let group = group_of(&self.api_version);
        format!("{}.{group} {}/{}", self.kind, self.namespace, self.name)
    }

    fn written(&self) -> [&str; 5] {
        [
            &self.uid,
            &self.namespace,
            &self.api_version,
            &self.kind,
            &self.name,
        ]
    }

    /// Returns how many bytes it takes in notes at most.
    fn size(&self) -> usize {
        self.written().map(size_of).iter().sum()
    }
}

impl From<Written> for Resource {
    fn from([uid, namespace, api_version, kind, name]: Written) -> Self {
        Self {
            namespace,
            api_version,
            kind,
            name,
            uid,
        }
    }
}

/// Returns how many bytes a text takes at most as one of a list in JSON.
fn size_of(text: &str) -> usize {
    let of = |byte: u8| match byte {
        // As \u0000 at most.
        ..0x20 => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    };
    // Two quotes and a comma.
    text.bytes().map(of).sum::<usize>() + 3
}

/// Whether something can have this name, as far as its owners and Pods are looked at: it is a DNS subdomain. It
/// becomes a part of a URL as it is.
fn is_name(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_label = |label: &str| {
        let ends = label.bytes().next().zip(label.bytes().last());
        ends.is_some_and(|(first, last)| is_letter(first) && is_letter(last))
            && label.bytes().all(|byte| is_letter(byte) || byte == b'-')
    };
    name.len() <= NAME && name.split('.').all(is_label)
}

/// Returns the API group of an `apiVersion`; nothing for the core group.
pub(super) fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// Whether resources of this `apiVersion` are defined by somebody. No group of a built-in owner of Pods has a dot, and
/// each that is defined has one (apiextensions' validation of definitions).
pub fn is_custom(api_version: &str) -> bool {
    group_of(api_version).contains('.')
}

/// Labels by which a Pod tells that a resource wants it, although no owner reference does: key, value, `apiVersion`
/// and kind. Zalando's operator owns its StatefulSets only where it is told to (`enable_owner_references`), and labels
/// their Pods (`cluster_labels`, of which this is the default).
const LABELS: [(&str, &str, &str, &str); 1] = [("application", "spilo", "acid.zalan.do/v1", "postgresql")];

/// Whether a label of this key may tell of an owner.
pub fn is_telling(key: &str) -> bool {
    LABELS.iter().any(|(known, ..)| *known == key)
}

/// Returns `apiVersion` and kind of the owner that a Pod's label tells of.
pub fn owner_by_label(key: &str, value: &str) -> Option<(&'static str, &'static str)> {
    let mut labels = LABELS.iter();
    let (.., api_version, kind) = labels.find(|(known, wanted, ..)| (*known, *wanted) == (key, value))?;
    Some((api_version, kind))
}

/// An owner that kept recreating rewritten Pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop {
    pub owner: Resource,
    /// How many times it was left alone, this one included.
    pub times: u32,
    pub since: Timestamp,
    /// Until when its Pods are left alone.
    pub until: Timestamp,
}

impl Loop {
    /// Returns how many bytes it takes in notes at most: beside the owner three numbers.
    fn size(&self) -> usize {
        self.owner.size() + 64
    }

    /// Whether its Pods are left alone now.
    pub fn is_on(&self, now: Timestamp) -> bool {
        now < self.until && !self.is_of_a_wrong_clock(now)
    }

    /// Whether it ends later than any does.
    fn is_of_a_wrong_clock(&self, now: Timestamp) -> bool {
        self.until > now.after(LONGEST)
    }

    fn is_forgotten(&self, now: Timestamp) -> bool {
        let length = self.until.since(self.since);
        now.since(self.until) > length.max(REMEMBERED) || self.is_of_a_wrong_clock(now)
    }
}

/// A built-in controller of a resource whose Pods are left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    controller: Controller,
    /// The resource that owns the controller.
    owner: Resource,
}

impl Held {
    /// Returns how many bytes it takes in notes at most: beside texts a few brackets.
    fn size(&self) -> usize {
        let Controller { kind, name, uid, .. } = &self.controller;
        let texts = [uid, kind.as_str(), name].map(size_of);
        self.owner.size() + texts.iter().sum::<usize>() + 8
    }
}

/// What is known of owners that fight rewrites, as it is noted for everybody who decides about Pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftAlone {
    loops: BTreeMap<Key, Loop>,
    controllers: BTreeMap<Key, Held>,
    is_known: bool,
}

impl LeftAlone {
    /// Reads what was written. What cannot be read of it is passed over.
    pub fn read(loops: &str, controllers: &str) -> Self {
        let loops = loops.lines().take(KEPT).filter_map(|line| {
            let (owner, times, since, until): (Written, _, _, _) = serde_json::from_str(line).ok()?;
            let noted = Loop {
                owner: owner.into(),
                times,
                since: Timestamp::from_millis(since),
                until: Timestamp::from_millis(until),
            };
            Some((noted.owner.key(), noted))
        });
        let controllers = controllers.lines().take(KEPT).filter_map(|line| {
            let ([uid, kind, name], owner): ([Box<str>; 3], Written) = serde_json::from_str(line).ok()?;
            let owner = Resource::from(owner);
            let controller = Controller {
                namespace: owner.namespace.clone(),
                kind: Kind::from_name(&kind)?,
                name,
                uid,
            };
            Some((controller.key(), Held { controller, owner }))
        });
        Self {
            loops: loops.collect(),
            controllers: controllers.collect(),
            is_known: true,
        }
    }

    /// Returns what is to be written of loops and of controllers, a line of JSON each.
    pub fn write(&self) -> [String; 2] {
        let line = |value: serde_json::Value| format!("{value}\n");
        let loops = self.loops.values().map(|noted| {
            let (since, until) = (noted.since.as_millis(), noted.until.as_millis());
            line(serde_json::json!([
                noted.owner.written(),
                noted.times,
                since,
                until
            ]))
        });
        let controllers = self.controllers.values().map(|held| {
            let Controller { kind, name, uid, .. } = &held.controller;
            line(serde_json::json!([
                [&**uid, kind.as_str(), &**name],
                held.owner.written()
            ]))
        });
        [loops.collect(), controllers.collect()]
    }

    /// Whether an owner is noted: one that kept recreating Pods, be that over or not. It is named as by
    /// [`LeftAlone::owners`].
    pub fn knows(&self, owner: &str) -> bool {
        self.loops.contains_key(owner)
    }

    /// Returns the owners that are noted, without the controllers: of each its namespace, a slash and its UID.
    pub fn owners(&self) -> impl Iterator<Item = &str> {
        self.loops.keys().map(|owner| &**owner)
    }

    /// Whether it was read at all.
    pub const fn is_known(&self) -> bool {
        self.is_known
    }

    /// Returns the resource whose Pods a controller of this UID makes in a namespace, if it is noted.
    pub fn owner_of(&self, namespace: &str, controller: &str) -> Option<&Resource> {
        if self.controllers.is_empty() {
            return None;
        }
        Some(&self.controllers.get(&key(namespace, controller))?.owner)
    }

    /// Whether an owner's Pods of this namespace are left alone now because it kept recreating them; the owner may be
    /// the resource of this UID or a controller of its.
    pub fn is_looping(&self, namespace: &str, owner: &str, now: Timestamp) -> bool {
        if self.loops.is_empty() {
            return false;
        }
        let resource = self.owner_of(namespace, owner);
        let owner = resource.map_or_else(|| key(namespace, owner), Resource::key);
        self.loops.get(&owner).is_some_and(|noted| noted.is_on(now))
    }

    /// Returns the owners that are left alone now because they kept recreating Pods: those of last first.
    pub fn looping(&self, now: Timestamp) -> Vec<&Loop> {
        let mut looping: Vec<_> = self.loops.values().filter(|noted| noted.is_on(now)).collect();
        looping.sort_by(|one, other| (other.since, &one.owner.uid).cmp(&(one.since, &other.owner.uid)));
        looping
    }

    /// Leaves an owner alone, for longer each time.
    fn leave_alone(&mut self, owner: Resource, now: Timestamp) -> Loop {
        let before = self.loops.get(&owner.key()).map_or(0, |noted| noted.times);
        let length = FIRST.saturating_mul(GROWTH.saturating_pow(before)).min(LONGEST);
        let noted = Loop {
            owner,
            times: before.saturating_add(1),
            since: now,
            until: now.after(length),
        };
        self.loops.insert(noted.owner.key(), noted.clone());
        self.fit();
        noted
    }

    /// Drops what is over the bounds: each time from the namespace that has most, so nobody drives out another's.
    fn fit(&mut self) {
        let mut count = self.loops.len() + self.controllers.len();
        let mut bytes: usize = self.loops.values().map(Loop::size).sum();
        bytes += self.controllers.values().map(Held::size).sum::<usize>();
        while count > KEPT || bytes > BYTES {
            let mut namespaces: HashMap<&str, usize> = HashMap::new();
            let owners = self.loops.values().map(|noted| &noted.owner);
            for owner in owners.chain(self.controllers.values().map(|held| &held.owner)) {
                *namespaces.entry(&owner.namespace).or_default() += 1;
            }
            let fullest = namespaces.into_iter().max_by_key(|(name, count)| (*count, *name));
            let Some(fullest) = fullest.map(|(name, _)| Box::<str>::from(name)) else {
                return;
            };
            // A controller is noted again with the next event of its Pods.
            let controller = self
                .controllers
                .iter()
                .find(|(_, held)| held.owner.namespace == fullest);
            let dropped = if let Some(controller) = controller.map(|(key, _)| key.clone()) {
                self.controllers.remove(&controller).map(|held| held.size())
            } else {
                let of_it = self
                    .loops
                    .values()
                    .filter(|noted| noted.owner.namespace == fullest);
                let soonest = of_it
                    .min_by_key(|noted| noted.until)
                    .map(|noted| noted.owner.key());
                let soonest = soonest.and_then(|owner| self.loops.remove(&owner));
                soonest.map(|noted| noted.size())
            };
            let Some(dropped) = dropped else { return };
            count -= 1;
            bytes = bytes.saturating_sub(dropped);
        }
    }
}

#[cfg(test)]
mod tests;
