//! Small images, and their way into a registry.

use kagami::domain::{
    answer::MediaType,
    digest::{Algorithm, Digest},
};
use reqwest::{Client, Method, StatusCode, header};
use serde_json::{Value, json};
use sha2::Digest as _;

/// A manifest with all that it names.
#[derive(Clone)]
pub struct Image {
    pub media_type: MediaType,
    pub manifest: Vec<u8>,
    pub digest: Digest,
    pub blobs: Vec<Vec<u8>>,
    pub children: Vec<Self>,
}

pub fn digest(bytes: &[u8]) -> Digest {
    Digest::from_hash(Algorithm::Sha256, &sha2::Sha256::digest(bytes)).unwrap()
}

/// Returns a single image; another seed makes another digest. Its smallest blob is the configuration.
pub fn single(media_type: MediaType, seed: &str) -> Image {
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

/// Returns an index with an image per architecture.
pub fn index(media_type: MediaType, architectures: &[&str], seed: &str) -> Image {
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
pub struct Target {
    pub http: Client,
    pub url: String,
    /// The value of `Authorization`.
    pub authorization: Option<String>,
}

impl Target {
    /// Pushes an image under a tag, what it names first.
    pub async fn push(&self, repository: &str, tag: &str, image: &Image) {
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
    pub async fn delete(&self, repository: &str, digest: &Digest) {
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
