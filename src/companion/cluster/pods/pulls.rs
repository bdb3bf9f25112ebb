//! Whether the Pods that were sent to a mirror get their images, and which images are to be looked at because some do
//! not.

use std::collections::BTreeSet;

use tokio::sync::mpsc;

use crate::{
    cluster::pods::{Pod, pulled},
    companion::mirror::reports::{Nodes, Reports},
    domain::{
        health::State,
        image::KeyRef,
        presence::Presence,
        pulls::{Cause, Doubt, InVain, Pulls, TELLING},
        snapshot::Snapshot,
        time::Timestamp,
    },
    state::{Demand, Store, Why},
};

/// Learns from Pods what nodes make of the mirrors.
pub(super) struct PullsReader {
    pub(super) pulls: Pulls,
    /// Since when it learns.
    since: Timestamp,
    demand: mpsc::Sender<Demand>,
    /// The mirrors of which it was told that nodes cannot pull from them.
    failing: BTreeSet<String>,
}

impl PullsReader {
    pub(super) fn new(since: Timestamp, demand: mpsc::Sender<Demand>) -> Self {
        Self {
            pulls: Pulls::new(since),
            since,
            demand,
            failing: BTreeSet::new(),
        }
    }

    /// Takes in a Pod, and asks for looks at images that its node could not pull.
    pub(super) fn take(&mut self, pod: &Pod, store: &Store, snapshot: &Snapshot, now: Timestamp) {
        let pulled = pulled(pod, &snapshot.routing);
        for doubt in self.pulls.set(pod.id(), pod.node(), &pulled, now) {
            self.ask(doubt, store);
        }
    }

    /// Asks for a look at an image that is known to be there: others no Pod is sent to the mirror for. Where there is
    /// no room nobody looks, and what is known is believed.
    fn ask(&self, doubt: Doubt, store: &Store) {
        let Doubt {
            mirror,
            key,
            is_believed,
        } = doubt;
        if is_there(store, &mirror, key.by_ref()) {
            let demand = Demand {
                mirror: mirror.into(),
                key,
                why: Why::PullFailed { is_believed },
            };
            drop(self.demand.try_send(demand));
        }
    }

    /// Tells of each healthy mirror whether nodes get its images.
    pub(super) fn judge(&mut self, store: &Store, reports: &Reports, now: Timestamp) {
        for doubt in self.pulls.due(now) {
            self.ask(doubt, store);
        }
        let snapshot = store.snapshot();
        for (id, mirror) in snapshot.routing.mirrors() {
            let health = snapshot.health_of(id);
            if health.state != State::Healthy {
                continue;
            }
            let name = mirror.name.as_str();
            let is_there = |key: KeyRef<'_>| is_there(store, name, key);
            match self.pulls.verdict(name, health.since, now, is_there) {
                Some(Ok(())) => {
                    self.failing.remove(name);
                    reports.nodes(name, Nodes::CanPull);
                }
                Some(Err(in_vain)) => {
                    self.failing.insert(name.to_owned());
                    reports.nodes(name, Nodes::CannotPull(describe(&in_vain).into()));
                }
                // What a leader before this one told may still be true for a while.
                None if now.since(self.since) >= TELLING || self.failing.remove(name) => {
                    reports.nodes(name, Nodes::Silent);
                }
                None => {}
            }
        }
        let is_there = |mirror: &str| snapshot.routing.find(mirror).is_some();
        self.failing.retain(|mirror| is_there(mirror));
        self.pulls.keep_mirrors(is_there);
    }
}

fn is_there(store: &Store, mirror: &str, key: KeyRef<'_>) -> bool {
    let index = store.index();
    let entry = index.get(mirror, key);
    entry.is_some_and(|entry| matches!(entry.presence, Presence::Present(_)))
}

/// Returns what is said of an image that nodes cannot pull: names and kubelet's own word, nothing that a registry said.
fn describe(in_vain: &InVain) -> String {
    let InVain { key, node, failure } = in_vain;
    let cause = match failure.cause {
        Cause::NotFound => ", not found",
        Cause::Refused => ", credentials refused",
        Cause::OtherPlatform => ", not for the node's platform",
        Cause::Other => "",
    };
    format!(
        "Nodes fail to pull images that Kagami sees on the mirror, such as {key} on node {node} ({}{cause}). \
         The Pods' events tell more.",
        failure.code
    )
}
