//! What a leader has in hand while it leads.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kube::Client;
use tokio::sync::watch;

use super::mirrors::{ClusterView, MirrorResource};
use crate::{
    cluster::{
        events::Events,
        watch::Pulses,
        writer::{NotWritten, Writer},
    },
    companion::mirror::reports::Reports,
    domain::rescue::forward::is_listed,
    metrics::Metrics,
    registry::pace::Pace,
    state::Store,
    telemetry::{Reminder, chain},
};

/// Of how many Pods Events are read in a second.
const LOOKS: u32 = 2;

/// What every part of a leader works with. Clones share it.
#[derive(Clone)]
pub(super) struct Leader {
    /// Kagami's own namespace.
    pub(super) namespace: Arc<str>,
    /// This process, as leases and Events name it.
    pub(super) identity: Arc<str>,
    pub(super) client: Client,
    pub(super) store: Store,
    pub(super) writer: Writer,
    pub(super) events: Events,
    /// When the Events of one Pod may be read.
    pub(super) looks: Arc<Pace>,
    pub(super) reports: Reports,
    pub(super) metrics: Metrics,
    /// How its watches fare.
    pub(super) pulses: Pulses,
    /// What the cluster says; none until all of it is known.
    pub(super) cluster: watch::Receiver<Option<Arc<ClusterView>>>,
    /// The registries that stuck Pods may be turned forward to; none where stuck Pods are left to themselves.
    pub(super) registries: Option<Arc<[String]>>,
}

/// The first pause after notes could not be kept; each is twice the one before.
const PAUSE: Duration = Duration::from_secs(2);

/// Returns the pause after so many failures in a row to keep notes in a ConfigMap: where nobody made it, or a Role is
/// older than this program, it stays so.
pub(super) fn pause_after(failed: u32, longest: Duration) -> Duration {
    (PAUSE * 2_u32.saturating_pow(failed.saturating_sub(1).min(16))).min(longest)
}

/// How it goes to keep notes in a ConfigMap.
#[derive(Debug)]
pub(super) struct Keeping {
    config_map: &'static str,
    failures: Reminder,
    failed: u32,
}

impl Keeping {
    /// Returns it for the ConfigMap of a name, of which nothing is known yet.
    pub(super) fn of(config_map: &'static str) -> Self {
        Self {
            config_map,
            failures: Reminder::default(),
            failed: 0,
        }
    }

    /// Takes in that the notes were kept.
    pub(super) fn went_well(&mut self) {
        self.failures.ended();
        self.failed = 0;
    }

    /// Takes in that they were not, and warns of what that means unless it was said lately. Returns how long to wait
    /// before the next try.
    pub(super) fn failed(&mut self, error: &NotWritten, meaning: &str, longest: Duration) -> Duration {
        self.failed += 1;
        let (config_map, error) = (self.config_map, chain(error));
        if self.failures.failed(&error, Instant::now()) {
            tracing::warn!(config_map, error, "cannot note {meaning}; trying again");
        }
        pause_after(self.failed, longest)
    }

    /// Whether the last try failed.
    pub(super) const fn has_failed(&self) -> bool {
        self.failed > 0
    }
}

impl Leader {
    /// Returns what spaces out the looks at Pods' Events.
    pub(super) fn looks() -> Arc<Pace> {
        Arc::new(Pace::new(Some(LOOKS)))
    }

    /// Whether stuck Pods may be turned forward to a mirror, or its registry, which is not listed for that; none where
    /// they are left to themselves, or the mirror has no good form.
    pub(super) fn forward_allowed(&self, resource: &MirrorResource) -> Option<Result<(), String>> {
        let (mirror, _) = resource.document.form.as_ref()?;
        let registry = mirror.mapping.registry.to_string();
        let listed = is_listed(self.registries.as_ref()?, &registry);
        Some(if listed { Ok(()) } else { Err(registry) })
    }
}
