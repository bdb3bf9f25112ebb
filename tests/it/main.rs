//! In-process tests: real sockets on loopback, no cluster.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_in_result,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "tests may panic, spawn, and read where tools are; clippy's own exceptions leave out helpers"
)]

mod admission;
mod chart;
mod copying;
mod failures;
mod foreign;
mod generated;
mod image;
mod layers;
mod patch_property;
mod registries;
mod registry;
mod resolve;
mod review;
mod server;
#[allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each ring uses a part of it"
)]
#[path = "../support/mod.rs"]
mod shared;
mod support;
mod tools;
mod versions;
mod watch;
