//! Kagami on the private machine, registered with its API server.

use serde_json::{Value, json};

use super::{node::Node, registry::Registry};
use crate::e2e::{
    cluster::Namespace,
    kagami::{Kagami, Registration},
};

/// A way to install Kagami for one namespace with one mirror: `as_a_process`, or later its chart.
pub(crate) type Install = for<'a> fn(&'a Node, &Namespace<'a>, &Value) -> Installation<'a>;

/// Kagami, called for one namespace. It fails the test if the API server saw Kagami fail.
#[derive(Debug)]
pub(crate) struct Installation<'a> {
    // Dropped in this order: Kagami must be there until the API server no longer calls it.
    _registration: Registration<'a>,
    _kagami: Kagami,
}

/// `kagami serve` beside the API server.
pub(crate) fn as_a_process<'a>(
    node: &'a Node,
    namespace: &Namespace<'a>,
    image_mirror: &Value,
) -> Installation<'a> {
    let name = format!("kagami-{}", namespace.name);
    // JSON is YAML.
    let kagami = Kagami::start_with(&node.cluster, &name, &image_mirror.to_string());
    Installation {
        _registration: Registration::new(namespace, &[], &kagami),
        _kagami: kagami,
    }
}

/// An ImageMirror with the defaults of its health.
pub(crate) fn image_mirror(node: &Node, mirror: &Registry, upstreams: &[&str]) -> Value {
    let authority = mirror
        .url
        .starts_with("https:")
        .then(|| node.cluster.authority.pem());
    let sources: Vec<_> = upstreams
        .iter()
        .map(|upstream| json!({"prefix": upstream}))
        .collect();
    let mut object = json!({
        "apiVersion": "kagami.dev/v1alpha1",
        "kind": "ImageMirror",
        "metadata": {"name": "main"},
        "spec": {
            "registry": mirror.host(),
            "kind": "Hosted",
            "sources": sources,
            "endpoint": {"url": mirror.url},
        },
    });
    if let Some(authority) = authority {
        object["spec"]["endpoint"]["caBundle"] = authority.into();
    }
    object
}
