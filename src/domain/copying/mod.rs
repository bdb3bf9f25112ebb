//! What it takes to copy an image from one registry to another, without doing any of it.
//!
//! [`manifest`] reads what a manifest names, [`plan`] finds the way from one manifest to all that belongs to
//! it and the order in which a registry takes it: blobs before the manifest that names them, children before
//! their index, the tag last. [`refusal`] tells what a registry means by an answer, and [`reason`] is the closed
//! list of why an image was not copied.
//!
//! [`mod@place`] tells where an image goes, [`queue`] which comes next, [`writing`] whether the mirror takes any, and [`refresh`]
//! which tags upstream is asked about, for they may mean another image by now.
//!
//! A manifest is never changed and never made anew: what is pushed are the bytes that were read, so that digests
//! stay what they are and signatures good. Nothing here looks into a layer or minds its media type.

pub mod manifest;
pub mod place;
pub mod plan;
pub mod queue;
pub mod reason;
pub mod referrers;
pub mod refresh;
pub mod refusal;
pub mod writing;

pub use self::{
    manifest::{Contents, Entry, Part},
    place::{Own, Place, place},
    plan::{Plan, Wanted},
    reason::Reason,
    refusal::{Refusal, Step, Verdict},
    writing::{Wait, Writing},
};
