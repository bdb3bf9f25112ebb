//! What a file or a cluster says of mirrors, all of it, to be put to use by the feed.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    api::mirror::Connection,
    credentials::Secret,
    domain::{mirror::Mirror, routing::Closed, selector::Labels, standing::Standing},
};

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configuration {
    pub mirrors: Vec<(Mirror, Connection)>,
    /// Mirrors of which no good form is known.
    pub closed: Vec<Closed>,
    /// What is told of mirrors besides their settings, by name; nothing is of those that are absent.
    pub standings: BTreeMap<String, Arc<Standing>>,
    /// Namespaces by name, with the label `kubernetes.io/metadata.name` that API servers add.
    pub namespaces: BTreeMap<String, Labels>,
    /// Secrets by name: a file has one place for Secrets, as a cluster has Kagami's own namespace.
    pub secrets: BTreeMap<String, Secret>,
}
