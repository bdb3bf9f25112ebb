//! Nodes that are cut off, as it seems: they fail to pull images that are no mirror's too, so going back to such an
//! image would help nobody there for now.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::turns::Id;
use crate::domain::time::Timestamp;

/// For how long a failed pull from elsewhere says something of its node: what fails for longer, as a name that does
/// not exist, is its own fault.
pub(super) const TELLING: Duration = Duration::from_mins(5);

/// How many Pods of one node are kept in mind that fail to pull from elsewhere.
const FAILING: usize = 64;

/// The nodes of which something is known.
#[derive(Debug, Default)]
pub(super) struct Nodes(HashMap<Box<str>, Node>);

#[derive(Debug, Default)]
struct Node {
    /// The Pods that fail to pull from elsewhere: the registry's host, and since when.
    failing: BTreeMap<Id, (Box<str>, Timestamp)>,
    /// When a pull was last seen to end well.
    pulled_at: Option<Timestamp>,
    /// The Pods that wait for the node.
    held: BTreeSet<Id>,
}

impl Nodes {
    /// Takes in that a Pod fails to pull from a registry that is no mirror.
    pub(super) fn fails(&mut self, node: &str, id: &Id, host: &str, since: Timestamp) {
        if node.is_empty() {
            return;
        }
        let known = self.0.entry(node.into()).or_default();
        if known.failing.len() < FAILING {
            known.failing.insert(Id::clone(id), (host.into(), since));
        }
    }

    /// Takes in that a pull of a node ended well.
    pub(super) fn pulled(&mut self, node: &str, now: Timestamp) {
        if let Some(node) = self.0.get_mut(node) {
            node.pulled_at = Some(now);
        }
    }

    /// Forgets a Pod.
    pub(super) fn forget(&mut self, node: &str, id: &Id) {
        let Some(known) = self.0.get_mut(node) else { return };
        known.failing.remove(id);
        known.held.remove(id);
        if known.failing.is_empty() && known.held.is_empty() {
            self.0.remove(node);
        }
    }

    /// Takes in that a Pod waits for its node.
    pub(super) fn hold(&mut self, node: &str, id: &Id) {
        if let Some(node) = self.0.get_mut(node) {
            node.held.insert(Id::clone(id));
        }
    }

    /// Returns the Pods that wait for a node without need.
    pub(super) fn released(&self, node: &str, now: Timestamp) -> Vec<Id> {
        let known = self.0.get(node).filter(|known| !known.held.is_empty());
        known
            .filter(|_| !self.is_cut_off(node, now))
            .map(|known| known.held.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// Whether a node is cut off, as it seems: two images that are no mirror's fail there, of two registries, since one
    /// may be down or limit what it gives, and of two namespaces, so that none of them holds up the others. Nothing was
    /// pulled well since they began to fail.
    pub(super) fn is_cut_off(&self, node: &str, now: Timestamp) -> bool {
        let Some(node) = self.0.get(node) else {
            return false;
        };
        let mut telling = node.failing.iter().filter_map(|(id, (host, since))| {
            let tells = now.since(*since) < TELLING && node.pulled_at.is_none_or(|at| at < *since);
            tells.then_some((&id.0, host))
        });
        let Some(first) = telling.next() else { return false };
        // Two that differ from one another in both, or from the first in both.
        let (mut another_host, mut another_namespace) = (false, false);
        telling.any(|(namespace, host)| {
            another_host |= namespace == first.0 && host != first.1;
            another_namespace |= namespace != first.0 && host == first.1;
            namespace != first.0 && host != first.1 || another_host && another_namespace
        })
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
