//! Images of every kind, and their way into a registry.

use kagami::domain::{
    answer::MediaType,
    digest::{Algorithm, Digest},
};
use reqwest::{Client, Method, StatusCode, header};
use serde_json::{Value, json};
use sha2::Digest as _;

use super::http::Http;

/// A manifest with all that it names.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) media_type: MediaType,
    pub(crate) manifest: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) blobs: Vec<Vec<u8>>,
    pub(crate) children: Vec<Self>,
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_hash(Algorithm::Sha256, &sha2::Sha256::digest(bytes)).unwrap()
}

/// Returns a single image; another seed makes another digest. Its smallest blob is the configuration.
pub(crate) fn single(media_type: MediaType, seed: &str) -> Image {
    let (config_type, layer_type) = match media_type {
        MediaType::DockerManifest => (
            "application/vnd.docker.container.image.v1+json",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
        _ => (
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.oci.image.layer.v1.tar+gzip",
        ),
    };
    let config = json!({"architecture": "amd64", "os": "linux", "author": seed}).to_string();
    let layer = format!("layer of {seed}").repeat(50);
    let descriptor = |media_type: &str, blob: &str| json!({"mediaType": media_type, "digest": digest(blob.as_bytes()).to_string(), "size": blob.len()});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type.as_str(),
        "config": descriptor(config_type, &config),
        "layers": [descriptor(layer_type, &layer)],
    });
    Image::new(
        media_type,
        &manifest,
        vec![config.into_bytes(), layer.into_bytes()],
        Vec::new(),
    )
}

/// Returns an image of one layer, a tar archive where somebody runs it; `config` is completed by what a runtime
/// needs to know of the layer.
pub(crate) fn of_layer(layer: Vec<u8>, config: &Value) -> Image {
    let mut config = config.clone();
    config["rootfs"] = json!({"type": "layers", "diff_ids": [digest(&layer).to_string()]});
    let config = config.to_string().into_bytes();
    let descriptor = |media_type: &str, blob: &[u8]| json!({"mediaType": media_type, "digest": digest(blob).to_string(), "size": blob.len()});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OciManifest.as_str(),
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    Image::new(MediaType::OciManifest, &manifest, vec![config, layer], Vec::new())
}

/// Returns an image that nobody runs; the same text makes the same digest.
pub(crate) fn named(text: &str) -> Image {
    of_layer(
        text.as_bytes().to_vec(),
        &json!({"architecture": "amd64", "os": "linux"}),
    )
}

/// Returns an index of images, each for the platform that its configuration names.
pub(crate) fn index_of(children: Vec<Image>) -> Image {
    let entry = |child: &Image| {
        let config: Value = serde_json::from_slice(&child.blobs[0]).unwrap();
        json!({
            "mediaType": child.media_type.as_str(),
            "digest": child.digest.to_string(),
            "size": child.manifest.len(),
            "platform": {"architecture": config["architecture"], "os": config["os"]},
        })
    };
    let entries: Vec<Value> = children.iter().map(entry).collect();
    let media_type = MediaType::OciIndex;
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type.as_str(), "manifests": entries});
    Image::new(media_type, &manifest, Vec::new(), children)
}

/// Returns an index with an image per architecture.
pub(crate) fn index(media_type: MediaType, architectures: &[&str], seed: &str) -> Image {
    let of_child = match media_type {
        MediaType::DockerList => MediaType::DockerManifest,
        _ => MediaType::OciManifest,
    };
    let children: Vec<Image> = architectures
        .iter()
        .map(|architecture| single(of_child, &format!("{seed} for {architecture}")))
        .collect();
    let entries: Vec<Value> = children
        .iter()
        .zip(architectures)
        .map(|(child, architecture)| {
            json!({
                "mediaType": of_child.as_str(),
                "digest": child.digest.to_string(),
                "size": child.manifest.len(),
                "platform": {"architecture": architecture, "os": "linux"},
            })
        })
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type.as_str(), "manifests": entries});
    Image::new(media_type, &manifest, Vec::new(), children)
}

impl Image {
    fn new(media_type: MediaType, manifest: &Value, blobs: Vec<Vec<u8>>, children: Vec<Self>) -> Self {
        let manifest = manifest.to_string().into_bytes();
        Self {
            media_type,
            digest: digest(&manifest),
            manifest,
            blobs,
            children,
        }
    }
}

/// Where images are pushed to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) http: Client,
    pub(crate) url: String,
    /// The value of `Authorization`.
    pub(crate) authorization: Option<String>,
}

/// Pushes an image that nobody runs, named after where it goes, and returns its digest.
pub(crate) fn push(http: &Http, registry: &str, repository: &str, tag: &str) -> String {
    let target = Target {
        http: http.client.clone(),
        url: registry.to_owned(),
        authorization: None,
    };
    let image = named(&format!("{repository}:{tag}"));
    http.wait(target.push(repository, tag, &image));
    image.digest.to_string()
}

impl Target {
    /// Pushes an image under a tag, what it names first.
    pub(crate) async fn push(&self, repository: &str, tag: &str, image: &Image) {
        for child in &image.children {
            Box::pin(self.push(repository, &child.digest.to_string(), child)).await;
        }
        for blob in &image.blobs {
            self.push_blob(repository, blob).await;
        }
        let url = format!("{}/v2/{repository}/manifests/{tag}", self.url);
        let request = self.request(Method::PUT, &url);
        let response = request
            .header(header::CONTENT_TYPE, image.media_type.as_str())
            .body(image.manifest.clone())
            .send()
            .await
            .unwrap();
        assert_eq!(
            response.status(),
            StatusCode::CREATED,
            "{}",
            response.text().await.unwrap()
        );
    }

    async fn push_blob(&self, repository: &str, blob: &[u8]) {
        let url = format!("{}/v2/{repository}/blobs/uploads/", self.url);
        let response = self.request(Method::POST, &url).send().await.unwrap();
        assert_eq!(
            response.status(),
            StatusCode::ACCEPTED,
            "{}",
            response.text().await.unwrap()
        );
        let location = response.headers()[header::LOCATION].to_str().unwrap();
        let mut location = response.url().join(location).unwrap();
        location
            .query_pairs_mut()
            .append_pair("digest", &digest(blob).to_string());
        let request = self.request(Method::PUT, location.as_str());
        let response = request.body(blob.to_vec()).send().await.unwrap();
        assert_eq!(
            response.status(),
            StatusCode::CREATED,
            "{}",
            response.text().await.unwrap()
        );
    }

    /// Deletes a manifest.
    pub(crate) async fn delete(&self, repository: &str, digest: &Digest) {
        let url = format!("{}/v2/{repository}/manifests/{digest}", self.url);
        let response = self.request(Method::DELETE, &url).send().await.unwrap();
        assert_eq!(
            response.status(),
            StatusCode::ACCEPTED,
            "{}",
            response.text().await.unwrap()
        );
    }

    fn request(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, url);
        match &self.authorization {
            Some(authorization) => request.header(header::AUTHORIZATION, authorization),
            None => request,
        }
    }
}
