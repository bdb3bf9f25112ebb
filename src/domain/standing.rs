//! What the status of a mirror tells of the cluster, as decisions ask for it.

use std::collections::BTreeSet;

use super::platform::Platforms;

/// What one mirror's status tells. All of it is observed, so it comes and goes without its settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// `status.platforms`: the platforms of the cluster's nodes; none if not known.
    pub platforms: Platforms,
    /// `status.pullSecretNamespaces`: where the pull secret is in place.
    pub pull_secret_namespaces: BTreeSet<String>,
    /// Condition `ForwardAllowed`: Pods that are stuck upstream may be turned to it.
    pub forward_allowed: bool,
}

impl Standing {
    /// Nothing is told.
    pub const NONE: Self = Self {
        platforms: Platforms::NONE,
        pull_secret_namespaces: BTreeSet::new(),
        forward_allowed: false,
    };
}
