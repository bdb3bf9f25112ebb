//! What the tasks of one mirror share, and the mirror as it is at one moment.

use std::sync::Arc;

use tokio::time::Instant;

use super::reports::Reports;
use crate::{
    domain::{
        health::Health, mirror::Mirror, presence::Rules, routing::MirrorId, snapshot::Snapshot,
        sweep::Tenure, time::Timestamp,
    },
    metrics::Metrics,
    registry::{Client, pace::Pace, pool::Pool},
    state::Store,
};

/// What the tasks of one mirror share.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) mirror: String,
    pub(super) client: Client,
    pub(super) store: Store,
    pub(super) metrics: Metrics,
    pub(super) upstreams: Pool,
    pub(super) reports: Reports,
    /// The turns of whoever asks a pull-through mirror for what may be a download.
    pub(super) downloads: Arc<Pace>,
    pub(super) began: (Timestamp, Instant),
}

/// A mirror as the configuration and its health have it at one moment.
#[derive(Clone, Debug)]
pub(super) struct CurrentMirror {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) id: MirrorId,
}

impl Context {
    /// Returns the mirror as it is now; none if it is configured no more.
    pub(super) fn present(&self) -> Option<CurrentMirror> {
        let snapshot = self.store.snapshot();
        let id = snapshot.routing.find(&self.mirror)?;
        Some(CurrentMirror { snapshot, id })
    }

    /// Returns for how long this worker has kept the mirror's state.
    pub(super) fn tenure(&self) -> Tenure {
        let (since, began) = self.began;
        Tenure {
            since,
            lasted: began.elapsed(),
        }
    }
}

impl CurrentMirror {
    pub(super) fn settings(&self) -> &Mirror {
        self.snapshot.routing.mirror(self.id)
    }

    pub(super) fn health(&self) -> Health {
        self.snapshot.health_of(self.id)
    }

    pub(super) fn rules(&self) -> Rules {
        Rules::of(self.settings(), self.health().proven_since)
    }
}
