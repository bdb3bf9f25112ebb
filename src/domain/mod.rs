//! What Kagami decides, as plain data and functions.
//!
//! Nothing here awaits, reads a clock, draws a random number or logs: `now` is an argument and
//! what happened is a value that the caller logs and counts. Nothing here uses another module of
//! this crate.

pub mod answer;
pub mod bucket;
pub mod copying;
pub mod decision;
pub mod demand;
pub mod digest;
pub mod foreign;
pub mod health;
pub mod image;
pub mod json;
pub mod lease;
pub mod lent;
pub mod mapping;
pub mod mirror;
pub mod names;
pub mod original;
pub mod owners;
pub mod patch;
pub mod pinging;
pub mod platform;
pub mod pod;
pub mod presence;
pub mod pull_secret;
pub mod pulls;
pub mod rate;
pub mod reason;
pub mod rescue;
pub mod rotation;
pub mod routing;
pub mod selector;
pub mod snapshot;
pub mod source;
pub mod standing;
pub mod sweep;
pub mod time;
pub mod usage;
pub mod witness;

#[cfg(test)]
pub(crate) mod examples;
