//! A signature of an image as cosign stores it: a manifest under a tag made of the image's digest.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use kagami::domain::{answer::MediaType, digest::Digest};
use rcgen::{KeyPair, SigningKey as _};
use serde_json::json;

use crate::support::images::{Image, digest};

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// Returns the tag of an image's signatures, and one by this key.
pub(super) fn sign(key: &KeyPair, repository: &str, signed: &str) -> (String, Image) {
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": repository},
            "image": {"docker-manifest-digest": signed},
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string();
    let signature = BASE64.encode(key.sign(payload.as_bytes()).unwrap());
    let config = json!({
        "architecture": "", "os": "", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(payload.as_bytes()).to_string()]},
    })
    .to_string();
    let described = |media_type: &str, blob: &str| json!({"mediaType": media_type, "size": blob.len(), "digest": digest(blob.as_bytes()).to_string()});
    let mut layer = described(SIMPLE_SIGNING, &payload);
    layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OciManifest.as_str(),
        "config": described("application/vnd.oci.image.config.v1+json", &config),
        "layers": [layer],
    })
    .to_string()
    .into_bytes();
    let named: Digest = digest(&manifest);
    let image = Image {
        media_type: MediaType::OciManifest,
        manifest,
        digest: named,
        blobs: vec![config.into_bytes(), payload.into_bytes()],
        children: Vec::new(),
    };
    (format!("{}.sig", signed.replace(':', "-")), image)
}
