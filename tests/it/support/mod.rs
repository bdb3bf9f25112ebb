//! Peers for tests: registries that work, and one that fails in every way.

pub mod commands;
pub mod faulty;
pub mod kagami;
pub mod metrics;
pub mod pods;
pub mod real;
pub mod reviews;
pub mod shelf;
pub mod tokens;

pub(crate) use crate::shared::{certificates, images, tls_client};

use std::time::Duration;

use tokio::time::Instant;

/// Installs the TLS provider, as `main` does.
pub fn install_crypto() {
    // Another test of this process may have been first.
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// Returns a deadline that no passing test reaches.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}
