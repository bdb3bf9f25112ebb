//! What a leader has in hand while it leads.

use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;

use super::mirrors::ClusterView;
use crate::{
    cluster::{events::Events, watch::Pulses, writer::Writer},
    companion::mirror::reports::Reports,
    metrics::Metrics,
    state::Store,
};

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
    pub(super) reports: Reports,
    pub(super) metrics: Metrics,
    /// How its watches fare.
    pub(super) pulses: Pulses,
    /// What the cluster says; none until all of it is known.
    pub(super) cluster: watch::Receiver<Option<Arc<ClusterView>>>,
}
