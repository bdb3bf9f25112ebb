//! The scripted peer of the process ring's tests, here in the place of mirrors: its own work is not what is measured,
//! and its faults are those that the tests know.

#[allow(
    dead_code,
    clippy::disallowed_methods,
    clippy::unwrap_in_result,
    clippy::unwrap_used,
    missing_debug_implementations,
    reason = "shared with the tests, where what goes wrong ends the test"
)]
#[path = "../../../../tests/it/support/faulty.rs"]
pub mod faulty;
#[allow(
    dead_code,
    missing_debug_implementations,
    reason = "shared with the tests, which use more of it"
)]
#[path = "../../../../tests/it/support/shelf.rs"]
pub mod shelf;

// Where both look for them.
use super::super::e2e::{certificates, images};

/// Does nothing: the bench has its provider from the beginning.
const fn install_crypto() {}
