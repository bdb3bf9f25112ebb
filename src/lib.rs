//! Kagami rewrites the images of Kubernetes Pods to a mirror registry, but only on fresh proof.
//!
//! Modules bottom up; ARCHITECTURE.md tells who may use whom, `tests/it/layers.rs` holds it.

// What Kagami decides, as plain data and functions.
pub mod domain;

// The custom resources, and every name in a cluster.
pub mod api;

// An authority and a serving pair.
pub mod certificates;
// The wall clock.
pub mod clock;
// Speaking to an API server.
pub mod cluster;
// From Secrets to credentials.
pub mod credentials;
// Every metric.
pub mod metrics;
// Looking at registries.
pub mod registry;
// Listeners, connections, TLS, drain.
pub mod server;
// The shared health-state of one process, and what feeds it.
pub mod state;
// The tasks of a process and its end.
pub mod tasks;
// The log.
pub mod telemetry;

// Keeps the state true.
pub mod companion;
// Answers reviews.
pub mod webhook;

// The command line.
pub mod cli;
