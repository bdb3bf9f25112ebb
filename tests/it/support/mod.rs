//! What several test modules use.

pub mod tls_client;
