//! The admission webhook: answers reviews from the state in memory and writes nothing.

mod admit;
mod probes;
mod respond;
mod review;
pub mod routes;
mod scan;

pub use admit::{Admission, Limits, NoReview, RecentDecision};
pub use probes::Probes;
pub use review::read_pod;
