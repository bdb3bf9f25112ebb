//! Kagami rewrites the images of Kubernetes Pods to a mirror registry, but only on fresh proof.
//!
//! Modules bottom up; ARCHITECTURE.md tells who may use whom, `tests/it/layers.rs` holds it.

pub mod domain;

pub mod api;

pub mod certificates;
pub mod clock;
pub mod cluster;
pub mod credentials;
pub mod metrics;
pub mod registry;
pub mod server;
pub mod state;
pub mod tasks;
pub mod telemetry;

pub mod companion;
pub mod webhook;

pub mod cli;
