//! The one image that stands behind all names.

use sha2::{Digest as _, Sha256};

/// The manifest of every image: a valid one, its config and only layer the empty JSON object.
pub fn manifest() -> String {
    let blob = digest(BLOB);
    let descriptor = |media_type: &str| {
        format!(
            r#"{{"mediaType":"{media_type}","digest":"{blob}","size":{}}}"#,
            BLOB.len()
        )
    };
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[{}]}}"#,
        descriptor("application/vnd.oci.image.config.v1+json"),
        descriptor("application/vnd.oci.image.layer.v1.tar"),
    )
}

/// The media type of [`manifest`].
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Config and layer of every image.
pub const BLOB: &[u8] = b"{}";

/// Returns the digest of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter()
        .fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}
