//! Speaking to an API server: the one room that does.
//!
//! `watch` follows a resource for ever, over the paths that `sources` names, and tells its objects as
//! `objects` reads them: webhook and companion alike; `pods` reads Pods. `collection` keeps objects by name, `mirrors` the
//! ImageMirrors, each in its last good form. `elector` holds the leader's lease, and every other write goes
//! through `writer`, which sends nothing without it: `events` too.

pub mod collection;
pub mod elector;
pub mod events;
mod items;
pub mod mirrors;
pub mod objects;
pub mod pods;
pub mod request;
pub mod sources;
pub mod watch;
pub mod writer;
