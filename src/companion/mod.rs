//! The companion: keeps the shared state true.
//!
//! `mirror` has a worker for each mirror, which looks at its health and its images; `kagami serve`
//! needs no more. `cluster` is what one leader does for a whole cluster: it feeds the same workers from
//! watches and carries what they found to the API server.

pub mod cluster;
pub mod mirror;
