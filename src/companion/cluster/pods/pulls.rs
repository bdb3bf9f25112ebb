//! Whether the Pods that were sent to a mirror get their images.

use crate::{
    cluster::pods::{Pod, pulled},
    companion::mirror::reports::Reports,
    domain::{
        health::State, image::KeyRef, presence::Presence, pulls::Pulls, snapshot::Snapshot, time::Timestamp,
    },
    state::Store,
};

/// Learns from Pods what nodes make of the mirrors.
#[derive(Default)]
pub(super) struct PullsReader {
    pub(super) pulls: Pulls,
}

impl PullsReader {
    pub(super) fn take(&mut self, pod: &Pod, snapshot: &Snapshot, now: Timestamp) {
        let (namespace, name) = pod.id();
        let pulled = pulled(pod, &snapshot.routing);
        self.pulls.set(namespace, name, &pulled, now);
    }

    /// Tells of each healthy mirror whether nodes get its images.
    pub(super) fn judge(&self, store: &Store, reports: &Reports) {
        let snapshot = store.snapshot();
        for (id, mirror) in snapshot.routing.mirrors() {
            let health = snapshot.health_of(id);
            if health.state != State::Healthy {
                continue;
            }
            let is_there = |key: KeyRef<'_>| {
                let index = store.index();
                let entry = index.get(&mirror.name, key);
                entry.is_some_and(|entry| matches!(entry.presence, Presence::Present(_)))
            };
            if let Some(can_pull) = self.pulls.verdict(&mirror.name, health.since, is_there) {
                reports.nodes(&mirror.name, can_pull);
            }
        }
    }
}
