//! The one way to write to the API server: at a bounded rate, and only while leading.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::{Instant, sleep};

use super::{elector::Held, request::bounded};
use crate::{domain::bucket::Bucket, metrics::Metrics};

/// Writes a second over a longer time, but for those that have a pace of their own: Leases and images.
const RATE: u32 = 10;

/// Writes at once after a pause.
const BURST: u32 = 50;

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
pub enum NotWritten {
    /// The lease was not renewed in time.
    #[error("not leading any more")]
    NotLeading,
    /// Somebody else wrote in between, or it is there already.
    #[error("it changed in between")]
    Conflict,
    /// It is gone.
    #[error("it does not exist")]
    Gone,
    /// The API server refused it, and will again.
    #[error("refused")]
    Refused(#[source] kube::Error),
    /// No answer, or one that may be another later.
    #[error("no success")]
    Failed(#[source] kube::Error),
}

/// Writes for the leader. Clones share the rate.
#[derive(Clone, Debug)]
pub struct Writer {
    held: Held,
    bucket: Arc<Mutex<Bucket>>,
    started: Instant,
    metrics: Metrics,
}

impl Writer {
    pub fn new(held: Held, metrics: Metrics) -> Self {
        Self {
            held,
            bucket: Arc::new(Mutex::new(Bucket::new(RATE, BURST))),
            started: Instant::now(),
            metrics,
        }
    }

    /// Waits for this write's turn and sends it. `request` must not have been sent before it is
    /// polled, which holds for those of `kube::Api`.
    pub async fn write<T>(
        &self,
        kind: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, NotWritten> {
        loop {
            let taken = self
                .bucket
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(self.started.elapsed());
            match taken {
                Ok(()) => break,
                Err(wait) => sleep(wait).await,
            }
        }
        self.write_at_once(kind, request).await
    }

    /// Sends a write that has a pace of its own, such as the renewal of a Lease.
    pub async fn write_at_once<T>(
        &self,
        kind: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, NotWritten> {
        // Right before the request: whatever came before may have taken long, even a pause of the
        // whole process.
        let result = if self.held.may_write() {
            // One that takes longer may still arrive; whoever tries again finds another version then.
            bounded(request).await.map_err(NotWritten::from)
        } else {
            Err(NotWritten::NotLeading)
        };
        let label = match &result {
            Ok(_) => "ok",
            Err(NotWritten::NotLeading) => "not_leading",
            Err(NotWritten::Conflict) => "conflict",
            Err(NotWritten::Gone) => "gone",
            Err(NotWritten::Refused(_)) => "refused",
            Err(NotWritten::Failed(_)) => "error",
        };
        self.metrics.wrote(kind, label);
        result
    }
}

impl From<kube::Error> for NotWritten {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) => match status.code {
                409 => Self::Conflict,
                404 => Self::Gone,
                // Credentials and permissions come back.
                401 | 403 | 429 => Self::Failed(error),
                400..=499 => Self::Refused(error),
                _ => Self::Failed(error),
            },
            _ => Self::Failed(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;
    use crate::telemetry::chain;

    #[test]
    fn what_may_not_be_written_now_may_be_written_later() {
        let answer = |code| {
            let status = Status::failure("no", "No").with_code(code);
            NotWritten::from(kube::Error::Api(Box::new(status)))
        };
        for code in [401, 403, 429, 500, 503] {
            assert!(matches!(answer(code), NotWritten::Failed(_)), "{code}");
        }
        for code in [400, 405, 413, 422] {
            assert!(matches!(answer(code), NotWritten::Refused(_)), "{code}");
        }
        assert!(matches!(answer(404), NotWritten::Gone));
        assert!(matches!(answer(409), NotWritten::Conflict));
    }

    #[test]
    fn what_the_api_server_says_is_said_once() {
        let status = Status::failure("create not allowed", "Forbidden").with_code(403);
        let told = NotWritten::from(kube::Error::Api(Box::new(status)));
        assert_eq!(chain(&told), "no success: create not allowed (403)");
    }
}
