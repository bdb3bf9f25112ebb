//! How soon Pods go nowhere near a mirror that broke, what looking for that costs mirrors, and how often it is a
//! mistake.
//!
//! Over a real API server, with companions and replicas as they run in a cluster. Each mirror is a stand-in that
//! speaks TCP and HTTP as registries do, with a host of its own whose images it has, so that many break side by side in
//! one cluster. What broke before is measured in the same run with another build.

mod callers;
mod dice;
mod faults;
mod load;
pub mod lossy;
mod mirrors;
mod patience;
mod peers;
mod quiet;
mod scene;

use std::time::Duration;

/// How much there is of everything.
#[derive(Debug)]
pub struct Sizes {
    /// Rounds of mirrors that break, with two mirrors for each fault.
    rounds: u32,
    /// Rounds in which the leader is killed too.
    leaderless: u32,
    /// Rounds of a thousand reviews.
    thousands: u32,
    /// How long requests are counted.
    quiet: Duration,
    /// How long mirrors are watched that are well.
    patience: Duration,
}

pub const FULL: Sizes = Sizes {
    rounds: 10,
    leaderless: 10,
    thousands: 2,
    quiet: Duration::from_secs(100),
    patience: Duration::from_mins(30),
};

/// A few of everything, to see that it works.
pub const QUICK: Sizes = Sizes {
    rounds: 2,
    leaderless: 1,
    thousands: 1,
    quiet: Duration::from_secs(30),
    patience: Duration::from_mins(1),
};
