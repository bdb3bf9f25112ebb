//! Pushes small images to a registry with plain requests. Nobody runs them, so their layer is only a text.

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::http::Http;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Pushes an image under a tag and returns its digest; the same name gives the same digest.
pub(crate) fn push(http: &Http, registry: &str, repository: &str, tag: &str) -> String {
    let layer = format!("{repository}:{tag}");
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    })
    .to_string();
    let blob = |text: &str, media_type: &str| {
        push_blob(http, registry, repository, text);
        json!({"mediaType": media_type, "digest": digest(text), "size": text.len()})
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob(&config, CONFIG),
        "layers": [blob(&layer, LAYER)],
    })
    .to_string();
    let request = http
        .client
        .put(format!("{registry}/v2/{repository}/manifests/{tag}"));
    let answer = http
        .send(request.header("content-type", MANIFEST).body(manifest.clone()))
        .unwrap();
    assert_eq!(answer.status, 201, "{}", answer.body);
    digest(&manifest)
}

fn push_blob(http: &Http, registry: &str, repository: &str, text: &str) {
    let upload = http
        .client
        .post(format!("{registry}/v2/{repository}/blobs/uploads/"));
    let upload = http.send(upload).unwrap();
    assert_eq!(upload.status, 202, "{}", upload.body);
    // The registry hands out an address with its own query, to which the digest is added.
    let location = upload.headers["location"].to_str().unwrap();
    let request = http.client.put(format!("{location}&digest={}", digest(text)));
    let answer = http.send(request.body(text.to_owned())).unwrap();
    assert_eq!(answer.status, 201, "{}", answer.body);
}

fn digest(text: &str) -> String {
    format!("sha256:{:x}", Sha256::digest(text))
}
