//! Which owners have Pods that serve. A Pod costs two numbers.

use std::collections::HashMap;

use foldhash::quality::FixedState;

use crate::domain::rescue::Pod;
use std::hash::BuildHasher as _;

/// The Pods that are ready, and how many each owner has of them.
#[derive(Debug, Default)]
pub(super) struct Ready {
    /// Owner by Pod.
    pods: HashMap<u64, u64>,
    owners: HashMap<u64, u32>,
    /// Those that the list told so far which is in progress.
    listed: Option<HashMap<u64, u64>>,
}

impl Ready {
    pub(super) fn begin_listing(&mut self) {
        self.listed = Some(HashMap::new());
    }

    pub(super) fn end_listing(&mut self) {
        let Some(listed) = self.listed.take() else { return };
        let mut owners = HashMap::new();
        for owner in listed.values() {
            *owners.entry(*owner).or_default() += 1;
        }
        (self.pods, self.owners) = (listed, owners);
    }

    /// Takes in a Pod. Returns the owner that it had, and the one that it has, as far as it serves.
    pub(super) fn set(&mut self, pod: &Pod<'_>) -> [Option<u64>; 2] {
        let owner = owner(pod).filter(|_| pod.is_ready && !pod.is_deleted);
        let key = hash(pod.uid);
        if owner.is_some() && self.pods.get(&key).copied() == owner {
            if let (Some(listed), Some(owner)) = (&mut self.listed, owner) {
                listed.insert(key, owner);
            }
            return [None; 2];
        }
        let before = self.remove(pod.uid);
        if let Some(owner) = owner {
            if let Some(listed) = &mut self.listed {
                listed.insert(key, owner);
            }
            self.pods.insert(key, owner);
            *self.owners.entry(owner).or_default() += 1;
        }
        [before, owner]
    }

    /// Forgets a Pod. Returns the owner that it had, if it served.
    pub(super) fn remove(&mut self, uid: &str) -> Option<u64> {
        let pod = hash(uid);
        if let Some(listed) = &mut self.listed {
            listed.remove(&pod);
        }
        let owner = self.pods.remove(&pod)?;
        if let Some(pods) = self.owners.get_mut(&owner) {
            *pods -= 1;
            if *pods == 0 {
                self.owners.remove(&owner);
            }
        }
        Some(owner)
    }

    pub(super) fn serves(&self, owner: u64) -> bool {
        self.owners.contains_key(&owner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.pods.len()
    }
}

/// Returns the number that stands for the owner of a Pod, in its namespace.
pub(super) fn owner(pod: &Pod<'_>) -> Option<u64> {
    let owner = pod.owner?;
    Some(FixedState::default().hash_one((pod.namespace, owner)))
}

/// Returns the number that stands for a UID, which the API server gives and nobody chooses.
fn hash(uid: &str) -> u64 {
    FixedState::default().hash_one(uid)
}
