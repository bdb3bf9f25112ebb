//! The least requests that bring images from one registry to another, by somebody who knows beforehand that nothing is
//! there, who asks for no proof and checks nothing.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result, bail};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use reqwest::{Client, StatusCode, header};
use serde_json::Value;
use tokio::sync::Mutex;

use super::super::image::MANIFEST;

/// Blobs of one image that are under way at once, as with Kagami.
const BLOBS: usize = 6;

/// What the bench is called with to do this.
pub const ROLE: &str = "replay";

/// In which repository each blob is, once it is there.
type Places = Arc<Mutex<BTreeMap<String, Arc<Mutex<Option<String>>>>>>;

/// Copies the images of these names, some at once.
pub fn run(from: SocketAddr, to: SocketAddr, parallel: usize, names: &str) -> Result<()> {
    // The client wants one even where nothing is encrypted; another may have been first.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = Client::builder().no_proxy().build()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let places = Places::default();
    let names = std::fs::read_to_string(names)?;
    let names: Vec<&str> = names.lines().collect();
    runtime.block_on(
        stream::iter(names)
            .map(|name| copy(&client, from, to, name, &places))
            .buffer_unordered(parallel)
            .try_collect(),
    )
}

async fn copy(client: &Client, from: SocketAddr, to: SocketAddr, name: &str, places: &Places) -> Result<()> {
    let url = format!("http://{from}/v2/{name}/manifests/v1");
    let request = client.get(url).header(header::ACCEPT, MANIFEST);
    let manifest = request.send().await?.error_for_status()?.bytes().await?;
    let parsed: Value = serde_json::from_slice(&manifest)?;
    let layers = parsed["layers"].as_array().context("no layers")?;
    let digests: Vec<&str> = std::iter::once(&parsed["config"])
        .chain(layers)
        .filter_map(|part| part["digest"].as_str())
        .collect();
    stream::iter(digests)
        .map(|digest| async move {
            let place = Arc::clone(places.lock().await.entry(digest.to_owned()).or_default());
            // Who comes second takes it over.
            let mut there = place.lock().await;
            bring(client, from, to, name, digest, there.as_deref()).await?;
            *there = Some(name.to_owned());
            anyhow::Ok(())
        })
        .buffer_unordered(BLOBS)
        .try_collect::<()>()
        .await?;
    let url = format!("http://{to}/v2/{name}/manifests/v1");
    let request = client.put(url).header(header::CONTENT_TYPE, MANIFEST);
    request.body(manifest).send().await?.error_for_status()?;
    Ok(())
}

async fn bring(
    client: &Client,
    from: SocketAddr,
    to: SocketAddr,
    name: &str,
    digest: &str,
    there: Option<&str>,
) -> Result<()> {
    let url = format!("http://{to}/v2/{name}/blobs/uploads/");
    if let Some(repository) = there {
        let taken = client
            .post(format!("{url}?mount={digest}&from={repository}"))
            .send()
            .await?;
        if taken.status() != StatusCode::CREATED {
            bail!("{digest} was not taken over: {}", taken.status());
        }
        return Ok(());
    }
    let begun = client.post(url).send().await?.error_for_status()?;
    let location = begun.headers().get(header::LOCATION).context("no location")?;
    let url = format!("{}&digest={digest}", location.to_str()?);
    let blob = client
        .get(format!("http://{from}/v2/{name}/blobs/{digest}"))
        .send()
        .await?;
    let blob = blob.error_for_status()?;
    let length = blob.content_length().context("no length")?;
    let request = client.put(url).header(header::CONTENT_LENGTH, length);
    let body = reqwest::Body::wrap_stream(blob.bytes_stream());
    request.body(body).send().await?.error_for_status()?;
    Ok(())
}
