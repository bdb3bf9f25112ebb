//! The private machine, its cluster, registries and images.

pub(crate) mod chart;
pub(crate) mod front;
pub(crate) mod images;
pub(crate) mod kagami;
pub(crate) mod machine;
pub(crate) mod node;
pub(crate) mod object_store;
pub(crate) mod packets;
pub(crate) mod pods;
pub(crate) mod registry;
pub(crate) mod scene;
