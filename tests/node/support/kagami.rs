//! Kagami with a mirror for one test, however it is installed.

use std::fmt::Debug;

use serde_json::{Value, json};

use super::{chart::Use, node::Node, registry::Registry};
use crate::shared::{
    self,
    cluster::Namespace,
    companion::MIRRORS,
    kagami::{Kagami, Registration},
};

/// A way to have Kagami for one namespace with one mirror: `by_chart` or `as_a_process`. What it returns is kept
/// as long as Kagami is needed; it fails the test if the API server saw Kagami fail.
pub(crate) type Install = for<'a> fn(&'a Node, &Namespace<'a>, &Value) -> Box<dyn Debug + 'a>;

/// A mirror of the run's installation.
#[derive(Debug)]
pub(crate) struct Mirrored<'a> {
    node: &'a Node,
    path: String,
}

/// `kagami serve` beside the API server.
pub(crate) fn as_a_process<'a>(
    node: &'a Node,
    namespace: &Namespace<'a>,
    image_mirror: &Value,
) -> Box<dyn Debug + 'a> {
    let name = format!("kagami-{}", namespace.name);
    let kagami = Kagami::start_with(&node.cluster, &name, image_mirror);
    // Dropped in this order: Kagami must be there until the API server no longer calls it.
    Box::new((Registration::new(namespace, &[], &kagami), kagami))
}

/// The installation of the run, with one more mirror.
pub(crate) fn by_chart<'a>(
    node: &'a Node,
    _namespace: &Namespace<'a>,
    image_mirror: &Value,
) -> Box<dyn Debug + 'a> {
    let shared = Use::shared(node);
    Box::new((Mirrored::new(node, image_mirror), shared))
}

impl<'a> Mirrored<'a> {
    /// Creates an ImageMirror, for whoever has the installation already.
    pub(crate) fn new(node: &'a Node, image_mirror: &Value) -> Self {
        node.cluster.create(MIRRORS, image_mirror).success();
        let name = image_mirror["metadata"]["name"].as_str().unwrap();
        Self {
            node,
            path: format!("{MIRRORS}/{name}"),
        }
    }
}

impl Drop for Mirrored<'_> {
    fn drop(&mut self) {
        self.node.cluster.delete(&self.path);
    }
}

/// An ImageMirror with the defaults of its health, named as the mirror is.
pub(crate) fn image_mirror(node: &Node, mirror: &Registry, upstreams: &[&str]) -> Value {
    let endpoint = if mirror.url.starts_with("https:") {
        json!({"caBundle": node.cluster.authority.pem()})
    } else {
        json!({})
    };
    let (name, host) = (&mirror.name, mirror.host());
    shared::mirror::image_mirror(
        name,
        &host,
        upstreams,
        &mirror.url,
        &json!({"endpoint": endpoint}),
    )
}
