//! What a review costs in this process, without network: criterion's view, for comparing changes.
//! The bars are held by the other bench.

#![expect(missing_docs, reason = "criterion's macros make a function")]
#![expect(dead_code, unreachable_pub, reason = "modules of the other bench, of which not all is needed here")]

#[path = "throughput/payload.rs"]
mod payload;
#[path = "throughput/registry.rs"]
mod registry;
#[path = "throughput/world.rs"]
mod world;
