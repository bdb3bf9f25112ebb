//! The Pods with a mirror's image whose node may be pulling: while there is none, nobody has to know by the second how new
//! what is told of Pods is.

use std::collections::HashMap;

use super::{Container, Pod, REASONS, original::mirrors_named_by};
use crate::domain::routing::Routing;

/// How many are kept in mind; of more it need not be known which they are.
const LIMIT: usize = 10_000;

/// Pods that are on a node and have not begun all that they are to.
#[derive(Debug, Default)]
pub struct Starting {
    /// By namespace and name, with the list that last named each.
    pods: HashMap<(Box<str>, Box<str>), u32>,
    /// The number of the last list of all Pods.
    listing: u32,
}

impl Starting {
    /// Begins a list of all Pods: those not taken in before [`Starting::end_listing`] are gone.
    pub const fn begin_listing(&mut self) {
        self.listing = self.listing.wrapping_add(1);
    }

    /// Ends it.
    pub fn end_listing(&mut self) {
        self.pods.retain(|_, listing| *listing == self.listing);
    }

    /// Takes in a Pod. Returns whether it is the first one.
    pub fn take(&mut self, pod: &Pod<'_>, routing: &Routing) -> bool {
        if !starts(pod, routing) {
            self.remove(pod);
            return false;
        }
        let is_first = self.pods.is_empty();
        let id = (pod.namespace.into(), pod.name.into());
        if self.pods.len() < LIMIT || self.pods.contains_key(&id) {
            self.pods.insert(id, self.listing);
        }
        is_first
    }

    /// Forgets a Pod that is gone, or has begun.
    pub fn remove(&mut self, pod: &Pod<'_>) {
        if !self.pods.is_empty() {
            self.pods.remove(&(pod.namespace.into(), pod.name.into()));
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }
}

/// Whether a node may be pulling, or about to pull, an image of a mirror for a Pod.
fn starts(pod: &Pod<'_>, routing: &Routing) -> bool {
    if pod.node.is_empty() || pod.is_static || pod.is_deleted || pod.is_done {
        return false;
    }
    let mut containers = pod.init_containers.iter().chain(&pod.containers);
    containers.any(|container| may_pull(container) && !mirrors_named_by(routing, container.image).is_empty())
}

/// Whether kubelet may be pulling for a container: it waits for its image, or for what comes before. One that waits
/// because it ended again and again has had it.
fn may_pull(container: &Container<'_>) -> bool {
    let begins = |reason: &str| {
        ["", "ContainerCreating", "PodInitializing"].contains(&reason) || REASONS.contains(&reason)
    };
    match container.waiting {
        Some((reason, _)) => begins(reason),
        None => {
            !container.is_running && !container.has_succeeded && !container.has_begun
                || container.will_run_again
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::examples::mirror;

    const MIRRORED: &str = "a.example.com/docker.io/library/nginx:1";

    fn pod<'a>(name: &'a str, container: Container<'a>) -> Pod<'a> {
        Pod {
            namespace: "team",
            name,
            node: "node-1",
            containers: vec![container],
            ..Pod::default()
        }
    }

    #[test]
    fn a_pod_starts_from_its_node_on_until_it_has_its_images() {
        let routing = Routing::compile(vec![mirror("a", &["docker.io"])]);
        let new = Container {
            image: MIRRORED,
            ..Container::default()
        };
        let waits = |reason| Container {
            waiting: Some((reason, "")),
            ..new
        };
        for (container, expected) in [
            (new, true),
            (waits("ContainerCreating"), true),
            (waits("PodInitializing"), true),
            (waits("ErrImagePull"), true),
            (waits("ImagePullBackOff"), true),
            (waits("CrashLoopBackOff"), false),
            (waits("CreateContainerConfigError"), false),
            (
                Container {
                    is_running: true,
                    has_begun: true,
                    ..new
                },
                false,
            ),
            (
                Container {
                    has_succeeded: true,
                    has_begun: true,
                    ..new
                },
                false,
            ),
            (
                Container {
                    has_begun: true,
                    will_run_again: true,
                    ..new
                },
                true,
            ),
            (
                Container {
                    image: "nginx:1",
                    ..new
                },
                false,
            ),
        ] {
            assert_eq!(
                starts(&pod("web", container), &routing),
                expected,
                "{container:?}"
            );
        }
        for change in [
            |pod: &mut Pod<'_>| pod.node = "",
            |pod: &mut Pod<'_>| pod.is_static = true,
            |pod: &mut Pod<'_>| pod.is_deleted = true,
            |pod: &mut Pod<'_>| pod.is_done = true,
        ] {
            let mut pod = pod("web", new);
            change(&mut pod);
            assert!(!starts(&pod, &routing));
        }
    }

    #[test]
    fn the_first_is_told_and_a_list_forgets_who_is_gone() {
        let routing = Routing::compile(vec![mirror("a", &["docker.io"])]);
        let mut starting = Starting::default();
        let new = Container {
            image: MIRRORED,
            ..Container::default()
        };
        assert!(starting.take(&pod("one", new), &routing));
        assert!(!starting.take(&pod("two", new), &routing));
        starting.begin_listing();
        assert!(!starting.take(&pod("two", new), &routing));
        starting.end_listing();
        assert_eq!(starting.pods.len(), 1);
        let runs = Container {
            is_running: true,
            ..new
        };
        assert!(!starting.take(&pod("two", runs), &routing));
        assert!(starting.is_empty());
        assert!(starting.take(&pod("two", new), &routing));
        starting.remove(&pod("two", new));
        assert!(starting.is_empty());
        for number in 0..=LIMIT {
            starting.take(&pod(&number.to_string(), new), &routing);
        }
        assert_eq!(starting.pods.len(), LIMIT);
    }
}
