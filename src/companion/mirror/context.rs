//! What the tasks of one mirror share, and the mirror as it is at one moment.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    reports::{Refusal, Reports},
    wants::Means,
};
use crate::{
    domain::{
        answer::Answer,
        health::Health,
        image::KeyRef,
        mirror::Mirror,
        presence::{Rules, reason_of},
        reason::Reason,
        routing::MirrorId,
        snapshot::Snapshot,
        sweep::Tenure,
        time::Timestamp,
    },
    metrics::Metrics,
    registry::{Client, pace::Pace, pool::Pool},
    state::Store,
    telemetry::Throttle,
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
    pub(super) means: Means,
    /// The turns of whoever asks a pull-through mirror for what may be a download.
    pub(super) downloads: Arc<Pace>,
    pub(super) began: (Timestamp, Instant),
    /// How often it may be told what the mirror answers for images.
    pub(super) faults: Arc<Throttle<Reason>>,
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

    /// Returns whether the mirror is to be brought an image: it is known to lack it, or to have an older one under a tag
    /// that it follows.
    pub(super) fn needs_copy(&self, key: KeyRef<'_>) -> bool {
        let present = self.present();
        present.is_some_and(|present| self.store.index().needs_copy(present.settings(), key))
    }

    /// Tells what the mirror answered for an image where a registry's answer should have come. Of many such
    /// answers some are told.
    pub(super) fn tell(&self, image: KeyRef<'_>, answer: &Answer) {
        if !answer.proves_nothing() {
            return;
        }
        self.reports.unproven(&self.mirror, image, answer);
        if let Some(reason) = reason_of(answer)
            && let Some(suppressed) = self.faults.admit(reason, Instant::now().into_std())
        {
            let mirror = self.mirror.as_str();
            tracing::warn!(mirror, %image, %reason, %answer, suppressed, "a look for an image proved nothing");
        }
    }

    /// Takes in whether the mirror opens to the credentials that it is asked with, and says so where that is
    /// news: somebody must act on it.
    pub(super) fn note_credentials(&self, what: Refusal, opens: bool) {
        let Some(news) = self.reports.credentials(&self.mirror, what, opens) else {
            return;
        };
        let present = self.present();
        let secret = present
            .as_ref()
            .and_then(|present| present.settings().read_secret.as_deref());
        let (mirror, host) = (self.mirror.as_str(), self.client.host());
        match news {
            Ok(()) => tracing::info!(mirror, host, secret, "the mirror opens to its credentials"),
            Err(refusal) => tracing::warn!(
                mirror,
                host,
                secret,
                refusal = refusal.as_str(),
                "{}",
                refusal.tell_of(&self.client, secret)
            ),
        }
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

    pub(super) fn health(&self) -> &Health {
        self.snapshot.health_of(self.id)
    }

    pub(super) fn rules(&self) -> Rules {
        Rules::of(self.settings(), self.health().proven_since)
    }
}
