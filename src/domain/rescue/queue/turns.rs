//! Whose turn is next, of the Pods that are due: to help goes before to tell, then the namespace that has waited
//! longest, in it owners that serve nothing, then the newest Pods.
//!
//! Every change costs the logarithm of the number of Pods, also one that moves all Pods of an owner or a namespace.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::domain::time::Timestamp;

/// Namespace and name of a Pod.
pub type Id = Arc<(Box<str>, Box<str>)>;

/// What is done for a Pod: the first comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// It is turned.
    Turn,
    /// It is told what would be.
    Tell,
}

/// What a Pod is ranked by among those of its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Merit {
    pub(super) lane: Lane,
    /// The newest come first.
    pub(super) created: Reverse<Option<Timestamp>>,
}

/// A Pod among those of its owner.
type Rank = (Merit, Id);

/// An owner among those of its namespace: to help goes before to tell, then those of which nothing serves come first,
/// then the owner of the first Pod.
type GroupRank = (Lane, bool, Merit, Id, Option<u64>);

/// The Pods that are due.
#[derive(Debug, Default)]
pub(super) struct Turns {
    namespaces: HashMap<Box<str>, Namespace>,
    /// Those of which a Pod is due.
    order: BTreeSet<(Lane, u64, Box<str>)>,
    /// How many turns there were.
    count: u64,
}

/// A namespace with Pods that wait; it is forgotten with the last of them. One that comes, or comes back, has waited for
/// less long than all that are there.
#[derive(Debug, Default)]
struct Namespace {
    /// The number of its last turn, or of the last one before it came.
    served: u64,
    /// By owner.
    groups: HashMap<Option<u64>, Group>,
    /// Those of which a Pod is due.
    order: BTreeSet<GroupRank>,
}

/// The Pods of one owner that wait, or those without one. It is forgotten with the last of them.
#[derive(Debug, Default)]
struct Group {
    /// How many wait, due or not.
    waiting: usize,
    /// A Pod of it serves.
    is_ready: bool,
    /// One of them had its turn.
    had_turn: bool,
    due: BTreeSet<Rank>,
}

impl Turns {
    /// Takes in that a Pod waits.
    pub(super) fn join(&mut self, namespace: &str, owner: Option<u64>, is_ready: bool) {
        self.change(namespace, owner, |group| {
            group.waiting += 1;
            group.is_ready = is_ready;
        });
    }

    /// Takes in that one that waited does not any more.
    pub(super) fn leave(&mut self, namespace: &str, owner: Option<u64>) {
        self.change(namespace, owner, |group| {
            group.waiting = group.waiting.saturating_sub(1);
        });
    }

    /// Takes in that one that waits is due.
    pub(super) fn add(&mut self, merit: Merit, id: &Id, owner: Option<u64>) {
        self.change(&id.0, owner, |group| {
            group.due.insert((merit, Arc::clone(id)));
        });
    }

    /// Takes in that it is not any more.
    pub(super) fn remove(&mut self, merit: Merit, id: &Id, owner: Option<u64>) {
        self.change(&id.0, owner, |group| {
            group.due.remove(&(merit, Arc::clone(id)));
        });
    }

    /// Takes in whether a Pod of an owner serves.
    pub(super) fn set_ready(&mut self, namespace: &str, owner: u64, is_ready: bool) {
        let known = self.namespaces.get(namespace);
        let group = known.and_then(|known| known.groups.get(&Some(owner)));
        if group.is_some_and(|group| group.is_ready != is_ready) {
            self.change(namespace, Some(owner), |group| group.is_ready = is_ready);
        }
    }

    /// The same of all owners.
    pub(super) fn set_all_ready(&mut self, is_ready: impl Fn(u64) -> bool) {
        let all = self.namespaces.iter().flat_map(|(name, namespace)| {
            let owners = namespace.groups.keys().filter_map(|owner| *owner);
            owners.map(|owner| (name.clone(), owner))
        });
        for (namespace, owner) in all.collect::<Vec<_>>() {
            self.set_ready(&namespace, owner, is_ready(owner));
        }
    }

    /// Returns the Pod whose turn it is.
    pub(super) fn first(&self) -> Option<&Id> {
        let (_, _, name) = self.order.first()?;
        let (.., id, _) = self.namespaces.get(name)?.order.first()?;
        Some(id)
    }

    /// Takes in that a Pod had its turn.
    pub(super) fn had(&mut self, namespace: &str, owner: Option<u64>) {
        self.count += 1;
        let count = self.count;
        self.change_namespace(namespace, |namespace| namespace.served = count);
        self.change(namespace, owner, |group| group.had_turn = true);
    }

    fn change(&mut self, namespace: &str, owner: Option<u64>, change: impl FnOnce(&mut Group)) {
        self.change_namespace(namespace, |namespace| {
            let group = namespace.groups.entry(owner).or_default();
            if let Some(rank) = group.rank(owner) {
                namespace.order.remove(&rank);
            }
            change(group);
            if let Some(rank) = group.rank(owner) {
                namespace.order.insert(rank);
            }
            if group.waiting == 0 && group.due.is_empty() {
                namespace.groups.remove(&owner);
            }
        });
    }

    fn change_namespace(&mut self, name: &str, change: impl FnOnce(&mut Namespace)) {
        let known = self.namespaces.remove(name);
        let mut namespace = known.unwrap_or_else(|| Namespace {
            served: self.count,
            ..Namespace::default()
        });
        if let Some(rank) = namespace.rank(name) {
            self.order.remove(&rank);
        }
        change(&mut namespace);
        if let Some(rank) = namespace.rank(name) {
            self.order.insert(rank);
        }
        if !namespace.groups.is_empty() {
            self.namespaces.insert(name.into(), namespace);
        }
    }

    /// How many namespaces and owners are kept in mind.
    #[cfg(test)]
    pub(super) fn known(&self) -> (usize, usize) {
        let groups = self.namespaces.values().map(|namespace| namespace.groups.len());
        (self.namespaces.len(), groups.sum())
    }
}

impl Namespace {
    fn rank(&self, name: &str) -> Option<(Lane, u64, Box<str>)> {
        let (lane, ..) = self.order.first()?;
        Some((*lane, self.served, name.into()))
    }
}

impl Group {
    fn rank(&self, owner: Option<u64>) -> Option<GroupRank> {
        let (merit, id) = self.due.first()?;
        // One Pod of each owner that has nothing which serves. Pods without an owner stand for themselves.
        let serves = owner.is_some() && (self.is_ready || self.had_turn);
        Some((merit.lane, serves, *merit, Arc::clone(id), owner))
    }
}
