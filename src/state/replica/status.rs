//! What `/status` shows of the state that a replica follows.

use std::collections::BTreeMap;

use serde::Serialize;

/// The watches, the heartbeat, and what was made of each ImageMirror.
#[derive(Debug, Serialize)]
pub struct Status {
    pub(super) watches: BTreeMap<&'static str, Watch>,
    pub(super) heartbeat: Heartbeat,
    pub(super) mirrors: BTreeMap<String, Mirror>,
}

/// How one watch fares.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Watch {
    /// Everything was listed at least once.
    pub(super) listed: bool,
    /// Since the API server last answered; none if it never did.
    pub(super) silent_seconds: Option<u64>,
    pub(super) failures: u64,
    /// Why it does not get on now.
    pub(super) failure: Option<String>,
    /// What that means where it matters little.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) note: Option<&'static str>,
}

/// The companion's sign of life.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Heartbeat {
    pub(super) seen_seconds_ago: Option<u64>,
    /// What it carried last, by the companion's clock.
    pub(super) renew_time: Option<String>,
}

/// What was made of one ImageMirror.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mirror {
    /// What is shared is too old to be believed.
    pub(super) stale: bool,
    pub(super) shared: Shared,
    /// What is wrong with the resource as it is now.
    pub(super) faults: Vec<String>,
    /// What this program does not know of it.
    pub(super) unknown: Vec<String>,
    /// Why the mirror's credentials are not in use as they are now.
    pub(super) credentials_fault: Option<String>,
}

/// The health that the companion tells.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shared {
    pub(super) state: &'static str,
    /// What else is known of why it is so, in words.
    pub(super) cause: Option<String>,
    pub(super) proven_since: String,
}
