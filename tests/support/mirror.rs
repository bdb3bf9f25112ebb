//! A real registry (CNCF distribution) as the mirror.

use std::{net::SocketAddr, path::Path};

use serde_json::{Value, json};

use super::{http::Http, images::push, process::reserve_port, registry::Registry, tools::Tools};

/// What the tests' ImageMirror writes into Pods.
pub(crate) const REGISTRY: &str = "mirror.test";

/// Images that every mirror of the tests holds, by repository and tag.
const IMAGES: [(&str, &str); 4] = [
    ("docker.io/library/nginx", "1.29"),
    ("docker.io/library/busybox", "1.37"),
    ("docker.io/library/redis", "8"),
    ("ghcr.io/acme/models/small", "v1"),
];

/// Returns an ImageMirror of the images below these prefixes, with `more` merged into its spec.
pub(crate) fn image_mirror(
    name: &str,
    registry: &str,
    prefixes: &[&str],
    endpoint: &str,
    more: &Value,
) -> Value {
    let sources: Vec<_> = prefixes.iter().map(|prefix| json!({"prefix": prefix})).collect();
    let mut object = json!({
        "apiVersion": "kagami.dev/v1alpha1",
        "kind": "ImageMirror",
        "metadata": {"name": name},
        "spec": {
            "registry": registry,
            "kind": "Hosted",
            "sources": sources,
            "endpoint": {"url": endpoint},
        },
    });
    json_patch::merge(&mut object["spec"], more);
    object
}

/// A registry that holds a few images.
#[derive(Debug)]
pub(crate) struct Mirror {
    registry: Registry,
    pub(crate) url: String,
    /// The digest of `docker.io/library/nginx:1.29`.
    pub(crate) nginx: String,
}

impl Mirror {
    /// Starts a registry and fills it.
    pub(crate) fn start(tools: &Tools, http: &Http, folder: &Path, name: &str) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], reserve_port()));
        let configuration = json!({
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": folder.join(format!("{name}-data"))}},
            "http": {"addr": address.to_string(), "relativeurls": false},
        });
        let mut registry = Registry::new(name, &tools.path("registry"), folder, address);
        registry.start(&configuration);
        let url = format!("http://{address}");
        let [nginx, ..] = IMAGES.map(|(repository, tag)| push(http, &url, repository, tag));
        Self { registry, url, nginx }
    }

    /// Kills the registry; its port then refuses connections, its data stays.
    pub(crate) fn kill(&mut self) {
        self.registry.kill();
    }

    /// Starts the registry again on the same port, with the same data.
    pub(crate) fn bring_back(&mut self) {
        self.registry.bring_back();
    }

    /// How many requests with this text the access log has.
    pub(crate) fn requests(&self, text: &str) -> usize {
        let log = self.registry.log();
        log.lines()
            .filter(|line| line.contains(text) && !line.contains("\"PUT "))
            .count()
    }
}
