//! Kagami rewrites the images of Kubernetes Pods to a mirror registry, but only on fresh proof.
//!
//! Modules bottom up; ARCHITECTURE.md tells who may use whom, `tests/it/layers.rs` holds it.

pub mod certificates;
pub mod clock;
pub mod domain;
pub mod server;
pub mod tasks;
pub mod telemetry;
