//! The usual set-up of a test: a namespace in a mode, a mirror, Kagami, registered.

use super::{
    cluster::{Cluster, Namespace},
    kagami::{Kagami, Registration},
};

/// One test's own Kagami with the shared mirror, called for one namespace of its own.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    // Dropped in this order: Kagami must be there until the API server no longer calls it.
    pub(crate) registration: Registration<'a>,
    pub(crate) namespace: Namespace<'a>,
    pub(crate) kagami: Kagami,
}

impl<'a> Scene<'a> {
    /// Sets it up, for a namespace labelled with `mode`.
    pub(crate) fn new(cluster: &'a Cluster, mode: &str) -> Self {
        Self::with_mirror(cluster, mode, &cluster.mirror.url)
    }

    /// The same with a mirror of the test's own.
    pub(crate) fn with_mirror(cluster: &'a Cluster, mode: &str, mirror: &str) -> Self {
        let namespace = cluster.namespace(Some(mode));
        let kagami = Kagami::start(cluster, &format!("kagami-{}", namespace.name), mirror);
        let registration = Registration::new(&namespace, &[], &kagami);
        Self {
            registration,
            namespace,
            kagami,
        }
    }
}
