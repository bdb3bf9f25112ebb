//! Kagami rewrites the images of Kubernetes Pods to a mirror registry, but only on fresh proof.
//!
//! Modules bottom up; ARCHITECTURE.md tells who may use whom, `tests/it/layers.rs` holds it.

pub mod api;
pub mod clock;
pub mod companion;
pub mod domain;
pub mod metrics;
pub mod registry;
pub mod state;
pub mod telemetry;
pub mod webhook;
