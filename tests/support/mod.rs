//! What the rings of tests and the benches share: the real programs, and small helpers of the test's own.

pub(crate) mod admission;
pub(crate) mod certificates;
pub(crate) mod chart;
pub(crate) mod cluster;
pub(crate) mod command;
pub(crate) mod companion;
pub(crate) mod dns;
pub(crate) mod http;
pub(crate) mod images;
pub(crate) mod injector;
pub(crate) mod kagami;
pub(crate) mod mirror;
pub(crate) mod policy;
pub(crate) mod process;
pub(crate) mod reader;
pub(crate) mod registry;
pub(crate) mod reviews;
pub(crate) mod runner;
pub(crate) mod scene;
pub(crate) mod tls_client;
pub(crate) mod tools;

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long anything may take that is expected to happen soon. Generous, because a loaded machine with two
/// cores must pass too; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Asks until there is an answer, for things that announce themselves in no other way.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, ask)
}

/// The same with a patience of its own, for what others do at their own pace.
#[track_caller]
pub(crate) fn within<T>(patience: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        thread::sleep(Duration::from_millis(50));
    }
}
