//! In-process tests.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    unreachable_pub,
    reason = "a test fails by panicking, clippy sees helper functions as no tests, and `pub` marks what \
              a support module offers"
)]

mod server;
mod support;
