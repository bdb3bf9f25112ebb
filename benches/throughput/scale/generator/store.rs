//! Objects in memory, as an API server keeps them: each change has a version, and what changed lately can be
//! told again.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use axum::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

/// How many changes of one resource are kept for watches that begin anew.
const KEPT: usize = 20_000;

/// Namespace, empty for what is cluster-wide, and name.
pub type Name = (Box<str>, Box<str>);

/// An object at one version.
#[derive(Debug)]
pub struct Object {
    pub name: Name,
    pub version: u64,
    /// `status.phase`, by which Pods are selected.
    pub phase: Box<str>,
    pub created_at: Instant,
    pub json: Bytes,
}

impl Object {
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or_default()
    }
}

/// One change: what was before, and what is now unless it was deleted; `last` is what a deletion tells.
#[derive(Clone, Debug)]
pub struct Change {
    pub before: Option<Arc<Object>>,
    pub last: Arc<Object>,
    pub deleted: bool,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotFound,
    Exists,
    /// It names another version than the present one.
    Conflict,
    Invalid(&'static str),
}

/// What to do with an object.
#[derive(Debug)]
pub enum Wish {
    Put(Value),
    Delete,
}

#[derive(Debug, Default)]
struct Collection {
    objects: BTreeMap<Name, Arc<Object>>,
    changes: VecDeque<Change>,
    /// Up to this version changes are forgotten.
    forgotten: u64,
    /// How often all watches were told to begin anew.
    expired: u64,
    /// How often everything was listed to its end.
    listed: u64,
    watches: usize,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    collections: HashMap<String, Collection>,
}

/// All objects. Clones share them. Resources are named by their paths: `api/v1/pods`.
#[derive(Clone, Debug)]
pub struct Store {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            changed: watch::Sender::new(0),
        }
    }
}

/// A part of a list.
#[derive(Debug)]
pub struct Page {
    pub objects: Vec<Arc<Object>>,
    /// The version of everything when it was read.
    pub version: u64,
    pub more: bool,
}

/// What a watch has to tell.
#[derive(Debug)]
pub enum News {
    /// The changes since, and up to which version these are all.
    Changes(Vec<Change>, u64),
    /// They are forgotten.
    Expired,
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what hears of every change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn get(&self, resource: &str, name: &Name) -> Option<Arc<Object>> {
        self.state().collections.get(resource)?.objects.get(name).cloned()
    }

    pub fn count(&self, resource: &str) -> usize {
        let state = self.state();
        state.collections.get(resource).map_or(0, |all| all.objects.len())
    }

    /// Puts an object there, whatever was there before.
    pub fn put(&self, resource: &str, name: Name, object: Value) {
        // Nothing is asked of what was before.
        drop(self.change(resource, name, |_| Ok(Wish::Put(object))));
    }

    /// Deletes an object, if it is there.
    pub fn delete(&self, resource: &str, name: Name) {
        drop(self.change(resource, name, |_| Ok(Wish::Delete)));
    }

    /// Changes one object as `wish` says, which sees the present one; returns it as it is then.
    pub fn change(
        &self,
        resource: &str,
        name: Name,
        wish: impl FnOnce(Option<&Object>) -> Result<Wish, Refusal>,
    ) -> Result<Arc<Object>, Refusal> {
        let mut state = self.state();
        let version = state.version + 1;
        let all = state.collections.entry(resource.to_owned()).or_default();
        let before = all.objects.get(&name).cloned();
        let (value, deleted) = match wish(before.as_deref())? {
            Wish::Put(value) => (value, false),
            Wish::Delete => (before.as_ref().ok_or(Refusal::NotFound)?.value(), true),
        };
        let last = Arc::new(object(name.clone(), value, before.as_deref(), version));
        if deleted {
            all.objects.remove(&name);
        } else {
            all.objects.insert(name, Arc::clone(&last));
        }
        let change = Change {
            before,
            last: Arc::clone(&last),
            deleted,
        };
        all.changes.push_back(change);
        if all.changes.len() > KEPT
            && let Some(oldest) = all.changes.pop_front()
        {
            all.forgotten = oldest.last.version;
        }
        state.version = version;
        drop(state);
        self.changed.send_replace(version);
        Ok(last)
    }

    /// Returns the objects of a resource in the order of their names, so many after this one.
    pub fn page(&self, resource: &str, after: Option<&Name>, limit: usize) -> Page {
        use std::ops::Bound::{Excluded, Unbounded};
        let state = self.state();
        let version = state.version;
        let from = after.map_or(Unbounded, Excluded);
        let rest = state.collections.get(resource);
        let rest = rest
            .into_iter()
            .flat_map(|all| all.objects.range::<Name, _>((from, Unbounded)));
        let mut objects: Vec<_> = rest
            .take(limit.saturating_add(1))
            .map(|(_, object)| Arc::clone(object))
            .collect();
        let more = objects.len() > limit;
        objects.truncate(limit);
        Page {
            objects,
            version,
            more,
        }
    }

    /// Returns what a watch is told that knows everything up to a version, and that began when watches had been
    /// told to begin anew so often.
    pub fn news(&self, resource: &str, since: u64, expired: u64) -> News {
        let state = self.state();
        let Some(all) = state.collections.get(resource) else {
            return News::Changes(Vec::new(), state.version);
        };
        if since < all.forgotten || expired != all.expired {
            return News::Expired;
        }
        let first = all.changes.partition_point(|change| change.last.version <= since);
        News::Changes(all.changes.range(first..).cloned().collect(), state.version)
    }

    /// Notes that everything was listed.
    pub fn note_listed(&self, resource: &str) {
        self.state()
            .collections
            .entry(resource.to_owned())
            .or_default()
            .listed += 1;
    }

    /// Notes that a watch begins; returns how often watches were told to begin anew.
    pub fn note_watch(&self, resource: &str) -> u64 {
        let mut state = self.state();
        let all = state.collections.entry(resource.to_owned()).or_default();
        all.watches += 1;
        all.expired
    }

    /// Notes that one ended.
    pub fn note_end_of_watch(&self, resource: &str) {
        let mut state = self.state();
        state.collections.entry(resource.to_owned()).or_default().watches -= 1;
    }

    /// Returns how often a resource was listed to its end, and how many watches follow it.
    pub fn followers(&self, resource: &str) -> (u64, usize) {
        let state = self.state();
        let all = state.collections.get(resource);
        all.map_or((0, 0), |all| (all.listed, all.watches))
    }

    /// Forgets all changes, as an API server that was away does: every watch is told 410 and has to list anew.
    pub fn expire(&self) {
        let mut state = self.state();
        let version = state.version;
        for all in state.collections.values_mut() {
            all.changes.clear();
            all.forgotten = version;
            all.expired += 1;
        }
        drop(state);
        self.changed.send_replace(version);
    }
}

/// Makes an object of what was sent, with the metadata that an API server adds.
fn object(name: Name, mut value: Value, before: Option<&Object>, version: u64) -> Object {
    let old = before.map(Object::value).unwrap_or_default();
    let generation = old["metadata"]["generation"].as_u64().unwrap_or(0);
    let changed = old["spec"] != value["spec"];
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    let metadata = &mut value["metadata"];
    metadata["name"] = (*name.1).into();
    if !name.0.is_empty() {
        metadata["namespace"] = (*name.0).into();
    }
    metadata["resourceVersion"] = version.to_string().into();
    metadata["generation"] = (generation + u64::from(changed)).into();
    let kept = [
        ("uid", format!("5d3c1f0e-7a94-4b62-8e15-{version:012x}")),
        ("creationTimestamp", "2026-11-03T09:12:44Z".to_owned()),
    ];
    for (key, new) in kept {
        let known = old["metadata"][key].as_str();
        metadata[key] = known.unwrap_or(&new).into();
    }
    Object {
        phase: value["status"]["phase"].as_str().unwrap_or_default().into(),
        version,
        created_at: before.map_or_else(Instant::now, |before| before.created_at),
        json: value.to_string().into(),
        name,
    }
}
