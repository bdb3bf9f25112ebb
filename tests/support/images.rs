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
    of_blobs(
        media_type,
        (config_type, config.into_bytes()),
        (layer_type, layer.into_bytes()),
    )
}

/// Returns a manifest of what is no image: a Helm chart.
pub(crate) fn chart(seed: &str) -> Image {
    of_blobs(
        MediaType::OciManifest,
        (
            "application/vnd.cncf.helm.config.v1+json",
            json!({"name": seed}).to_string().into_bytes(),
        ),
        (
            "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
            format!("chart of {seed}").repeat(50).into_bytes(),
        ),
    )
}

/// Returns an image of one layer, a tar archive where somebody runs it; `config` is completed by what a runtime
/// needs to know of the layer.
pub(crate) fn of_layer(layer: Vec<u8>, config: &Value) -> Image {
    let mut config = config.clone();
    config["rootfs"] = json!({"type": "layers", "diff_ids": [digest(&layer).to_string()]});
    of_blobs(
        MediaType::OciManifest,
        (
            "application/vnd.oci.image.config.v1+json",
            config.to_string().into_bytes(),
        ),
        ("application/vnd.oci.image.layer.v1.tar", layer),
    )
}

/// Returns an image of a configuration and a layer, each with its media type.
fn of_blobs(media_type: MediaType, config: (&str, Vec<u8>), layer: (&str, Vec<u8>)) -> Image {
    let descriptor = |(media_type, blob): &(&str, Vec<u8>)| json!({"mediaType": media_type, "digest": digest(blob).to_string(), "size": blob.len()});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type.as_str(),
        "config": descriptor(&config),
        "layers": [descriptor(&layer)],
    });
    Image::new(media_type, &manifest, vec![config.1, layer.1], Vec::new())
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
    let platform = |child: &Image| {
        let config: Value = serde_json::from_slice(&child.blobs[0]).unwrap();
        json!({"architecture": config["architecture"], "os": config["os"]})
    };
    let platforms = children.iter().map(platform).collect();
    of_children(MediaType::OciIndex, children, platforms)
}

/// Returns an index with an image per architecture.
pub(crate) fn index(media_type: MediaType, architectures: &[&str], seed: &str) -> Image {
    let of_child = match media_type {
        MediaType::DockerList => MediaType::DockerManifest,
        _ => MediaType::OciManifest,
    };
    let children = architectures
        .iter()
        .map(|architecture| single(of_child, &format!("{seed} for {architecture}")));
    let platforms = architectures
        .iter()
        .map(|architecture| json!({"architecture": architecture, "os": "linux"}));
    of_children(media_type, children.collect(), platforms.collect())
}

/// Returns an index with an entry per image, for the platform that is given with it; with null it names none.
pub(crate) fn listing(entries: Vec<(Image, Value)>) -> Image {
    let (children, platforms) = entries.into_iter().unzip();
    of_children(MediaType::OciIndex, children, platforms)
}

fn of_children(media_type: MediaType, children: Vec<Image>, platforms: Vec<Value>) -> Image {
    let entry = |(child, platform): (&Image, Value)| {
        let mut entry = json!({
            "mediaType": child.media_type.as_str(),
            "digest": child.digest.to_string(),
            "size": child.manifest.len(),
        });
        if !platform.is_null() {
            entry["platform"] = platform;
        }
        entry
    };
    let entries: Vec<Value> = children.iter().zip(platforms).map(entry).collect();
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
    let image = named(&format!("{repository}:{tag}"));
    http.wait(Target::of(http, registry).push(repository, tag, &image));
    image.digest.to_string()
}

impl Target {
    /// A registry for everybody.
    pub(crate) fn of(http: &Http, registry: &str) -> Self {
        Self {
            http: http.client.clone(),
            url: registry.to_owned(),
            authorization: None,
        }
    }

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
        check(response, StatusCode::CREATED).await;
    }

    async fn push_blob(&self, repository: &str, blob: &[u8]) {
        let url = format!("{}/v2/{repository}/blobs/uploads/", self.url);
        let response = self.request(Method::POST, &url).send().await.unwrap();
        let location = response.headers().get(header::LOCATION);
        let location = location.map(|location| response.url().join(location.to_str().unwrap()).unwrap());
        check(response, StatusCode::ACCEPTED).await;
        let mut location = location.unwrap();
        location
            .query_pairs_mut()
            .append_pair("digest", &digest(blob).to_string());
        let request = self.request(Method::PUT, location.as_str());
        let response = request.body(blob.to_vec()).send().await.unwrap();
        check(response, StatusCode::CREATED).await;
    }

    /// Deletes a manifest.
    pub(crate) async fn delete(&self, repository: &str, digest: &Digest) {
        let url = format!("{}/v2/{repository}/manifests/{digest}", self.url);
        let response = self.request(Method::DELETE, &url).send().await.unwrap();
        check(response, StatusCode::ACCEPTED).await;
    }

    pub(crate) fn request(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, url);
        match &self.authorization {
            Some(authorization) => request.header(header::AUTHORIZATION, authorization),
            None => request,
        }
    }
}

async fn check(response: reqwest::Response, expected: StatusCode) {
    assert_eq!(response.status(), expected, "{}", response.text().await.unwrap());
}
