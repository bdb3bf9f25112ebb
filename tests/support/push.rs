//! Pushes small images to a registry with plain requests.

use bytes::Bytes;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::http::Http;

/// The media type of an image's manifest.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image of one layer.
#[derive(Debug)]
pub(crate) struct Image {
    /// A tar archive, where somebody runs the image.
    pub(crate) layer: Bytes,
    /// The image's configuration; `rootfs` is filled in.
    pub(crate) config: Value,
}

/// A registry, and who pushes to it: user name and password.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) http: &'a Http,
    pub(crate) url: &'a str,
    pub(crate) credentials: Option<(&'a str, &'a str)>,
}

/// Pushes an image that nobody runs under a tag and returns its digest; the same name gives the same digest.
pub(crate) fn push(http: &Http, registry: &str, repository: &str, tag: &str) -> String {
    let image = Image {
        layer: format!("{repository}:{tag}").into(),
        config: json!({"architecture": "amd64", "os": "linux"}),
    };
    let target = Target {
        http,
        url: registry,
        credentials: None,
    };
    target.push(repository, tag, &image)
}

impl Target<'_> {
    /// Pushes an image under a tag and returns its digest.
    pub(crate) fn push(&self, repository: &str, tag: &str, image: &Image) -> String {
        let manifest = self.push_parts(repository, image);
        self.push_manifest(repository, tag, MANIFEST, manifest)
    }

    /// Pushes configuration and layer, and returns the manifest.
    pub(crate) fn push_parts(&self, repository: &str, image: &Image) -> String {
        let mut config = image.config.clone();
        config["rootfs"] = json!({"type": "layers", "diff_ids": [digest(&image.layer)]});
        let blob = |data: Bytes, media_type: &str| {
            let size = data.len();
            json!({"mediaType": media_type, "digest": self.push_blob(repository, data), "size": size})
        };
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blob(config.to_string().into(), CONFIG),
            "layers": [blob(image.layer.clone(), LAYER)],
        })
        .to_string()
    }

    /// Pushes a manifest of any kind under a tag or its digest, and returns its digest.
    pub(crate) fn push_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        manifest: String,
    ) -> String {
        let digest = digest(manifest.as_bytes());
        let request = self
            .request(
                Method::PUT,
                &format!("{}/v2/{repository}/manifests/{reference}", self.url),
            )
            .header("content-type", media_type);
        let answer = self.http.send(request.body(manifest)).unwrap();
        assert_eq!(answer.status, 201, "{}", answer.body);
        digest
    }

    /// Pushes data and returns its digest.
    pub(crate) fn push_blob(&self, repository: &str, data: Bytes) -> String {
        let digest = digest(&data);
        let upload = self.request(
            Method::POST,
            &format!("{}/v2/{repository}/blobs/uploads/", self.url),
        );
        let upload = self.http.send(upload).unwrap();
        assert_eq!(upload.status, 202, "{}", upload.body);
        // The registry hands out an address with its own query, to which the digest is added.
        let location = upload.headers["location"].to_str().unwrap();
        let request = self.request(Method::PUT, &format!("{location}&digest={digest}"));
        let answer = self.http.send(request.body(data)).unwrap();
        assert_eq!(answer.status, 201, "{}", answer.body);
        digest
    }

    fn request(&self, method: Method, url: &str) -> RequestBuilder {
        let request = self.http.client.request(method, url);
        match self.credentials {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }
}

/// How the protocol names these bytes.
pub(crate) fn digest(data: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(data))
}
