//! Reviews asked of an admission in this process, which reaches no network.

use std::time::Duration;

use kagami::{
    domain::{decision::Probing, mirror::Mode},
    metrics::Metrics,
    state::Store,
    webhook::{Admission, Limits, Probes},
};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::shared::reviews::response;

/// Returns an admission that decides from `store`. A mirror without a client in the store is never
/// asked anything.
pub fn admission(store: Store) -> Admission {
    healing(store, true)
}

/// The same, which heals earlier rewrites or not.
pub fn healing(store: Store, heal: bool) -> Admission {
    let (metrics, _) = Metrics::new();
    let (demand, _) = mpsc::channel(1);
    let probes = Probes::new(store.clone(), metrics.clone(), TaskTracker::new());
    let limits = Limits {
        budget: Duration::from_millis(300),
        probing: Probing::Hosted,
        heal,
        recent: 50,
    };
    Admission::new(store, probes, metrics, Some(demand), limits)
}

/// Asks and returns the answer's `response`, its patch decoded.
pub async fn ask(admission: &Admission, mode: Mode, review: &Value) -> Value {
    let answer = admission
        .review(mode, review.to_string().as_bytes(), None)
        .await
        .unwrap();
    response(&answer, review)
}
