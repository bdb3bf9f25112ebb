//! How much there is of everything, in full and to try it out.

use std::time::Duration;

/// How much there is of everything.
#[derive(Debug)]
pub struct Sizes {
    /// Pods, their namespaces and their different images, all on three mirrors.
    pub pods: usize,
    pub namespaces: usize,
    pub images: usize,
    /// How long events come.
    pub events: Duration,
    /// Images of a new cluster.
    pub new: usize,
    /// Images of a mirror that is deleted.
    pub deleted: usize,
    /// Pods that are done.
    pub finished: usize,
    /// Pods that are stuck.
    pub stuck: usize,
    /// Images that a replica knows.
    pub known: usize,
    /// Starts of a replica of each build.
    pub starts: usize,
    /// Rounds of reviews of each build, and how long one lasts.
    pub rounds: usize,
    pub round: Duration,
}

pub const FULL: Sizes = Sizes {
    pods: 150_000,
    namespaces: 2_000,
    images: 100_000,
    events: Duration::from_mins(2),
    new: 5_000,
    deleted: 10_000,
    finished: 10_000,
    stuck: 10_000,
    known: 100_000,
    starts: 5,
    rounds: 25,
    round: Duration::from_millis(800),
};

/// A twentieth of everything but the large reviews, to see that it works.
pub const QUICK: Sizes = Sizes {
    pods: 7_500,
    namespaces: 100,
    images: 5_000,
    events: Duration::from_secs(20),
    new: 250,
    deleted: 500,
    finished: 500,
    stuck: 1_000,
    known: 5_000,
    starts: 3,
    rounds: 21,
    round: Duration::from_millis(200),
};
