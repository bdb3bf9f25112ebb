//! What is kept of some of a cluster's Pods, by namespace and name. A list of all Pods forgets those that it does not name.

use std::collections::BTreeMap;

use super::{Pod, PodId};

/// Namespace and name of a Pod.
pub(super) type Key = (Box<str>, Box<str>);

/// What is kept of some Pods. How many there are is bounded by whoever keeps it.
#[derive(Debug)]
pub(super) struct ByPod<T> {
    pods: BTreeMap<Key, Listed<T>>,
    /// The number of the last list of all Pods.
    listing: u32,
}

#[derive(Debug)]
struct Listed<T> {
    kept: T,
    /// The list that last named the Pod.
    listing: u32,
}

impl<T> Default for ByPod<T> {
    fn default() -> Self {
        Self {
            pods: BTreeMap::new(),
            listing: 0,
        }
    }
}

impl<T> ByPod<T> {
    /// Begins a list of all Pods: those not put in before [`ByPod::end_listing`] are gone.
    pub(super) const fn begin_listing(&mut self) {
        self.listing = self.listing.wrapping_add(1);
    }

    /// Ends it.
    pub(super) fn end_listing(&mut self) {
        self.pods.retain(|_, listed| listed.listing == self.listing);
    }

    pub(super) fn len(&self) -> usize {
        self.pods.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// Takes out what is kept of a Pod of that name.
    pub(super) fn take_out(&mut self, pod: &Pod<'_>) -> Option<T> {
        // Mostly there are none, and each event of a Pod comes by here.
        if self.is_empty() {
            return None;
        }
        let key = (pod.namespace.into(), pod.name.into());
        Some(self.pods.remove(&key)?.kept)
    }

    /// Puts in what is to be kept of a Pod that was told just now.
    pub(super) fn put_in(&mut self, pod: &Pod<'_>, kept: T) {
        let key = (pod.namespace.into(), pod.name.into());
        let listing = self.listing;
        self.pods.insert(key, Listed { kept, listing });
    }

    /// Returns what is kept of a Pod of that name, which may be another one by now.
    pub(super) fn get_mut(&mut self, pod: &PodId) -> Option<&mut T> {
        self.by_key_mut(&(pod.namespace.clone(), pod.name.clone()))
    }

    pub(super) fn by_key(&self, key: &Key) -> Option<&T> {
        self.pods.get(key).map(|listed| &listed.kept)
    }

    pub(super) fn by_key_mut(&mut self, key: &Key) -> Option<&mut T> {
        self.pods.get_mut(key).map(|listed| &mut listed.kept)
    }

    /// Returns what is kept, by namespace and name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &T)> {
        self.pods.iter().map(|(key, listed)| (key, &listed.kept))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.pods.values().map(|listed| &listed.kept)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.pods.values_mut().map(|listed| &mut listed.kept)
    }
}
