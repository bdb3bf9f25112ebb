//! The images that are copied, and their way into the first registry.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};
use futures_util::stream;
use reqwest::{Client, header};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::super::image::MANIFEST;

/// What this bench calls itself to registries, so that its own requests are not counted.
pub const AGENT: &str = "bench";

/// Images that share their first layers.
const TOGETHER: usize = 10;

/// Bytes of a blob that come at once.
const PIECE: usize = 256 * 1024;

/// What is in an image.
#[derive(Clone, Copy, Debug)]
pub enum Size {
    /// A configuration and six layers of 16 KiB to 1 MiB, of which ten images share two.
    Seven,
    /// A configuration and a layer of some bytes.
    Small,
    /// A configuration and a layer of so many bytes.
    Large(usize),
}

/// Content that follows from a number.
#[derive(Clone, Debug)]
pub struct Blob {
    pub digest: String,
    pub size: usize,
    seed: u64,
}

/// An image under the tag `v1` of a repository of its own.
#[derive(Clone, Debug)]
pub struct Image {
    pub name: String,
    pub digest: String,
    pub blobs: Vec<Blob>,
    manifest: String,
}

/// Numbers that look like chance (splitmix64, Vigna, public domain).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

impl Blob {
    fn new(seed: u64, size: usize) -> Self {
        let mut hash = Sha256::new();
        for piece in Self::pieces(seed, size) {
            hash.update(piece);
        }
        Self {
            digest: hex(&hash.finalize()),
            size,
            seed,
        }
    }

    /// Returns the content, piece by piece: nothing compresses it.
    fn pieces(seed: u64, size: usize) -> impl Iterator<Item = Vec<u8>> + Send + 'static {
        let mut state = seed;
        (0..size).step_by(PIECE).map(move |start| {
            let length = PIECE.min(size - start);
            let mut piece = Vec::with_capacity(length + 8);
            while piece.len() < length {
                piece.extend_from_slice(&next(&mut state).to_le_bytes());
            }
            piece.truncate(length);
            piece
        })
    }
}

/// Returns so many images; the same seed makes the same.
pub fn of(seed: u64, count: usize, size: Size) -> Vec<Image> {
    let mut state = seed;
    let mut shared = Vec::new();
    (0..count)
        .map(|number| {
            let mut blobs = vec![Blob::new(next(&mut state), 2_000)];
            match size {
                Size::Seven => {
                    let mut layer = || {
                        let seed = next(&mut state);
                        let size = 16 * 1024 + usize::try_from(next(&mut state) % (1 << 20)).unwrap_or(0);
                        Blob::new(seed, size)
                    };
                    if number % TOGETHER == 0 {
                        shared = vec![layer(), layer()];
                    }
                    blobs.extend(shared.iter().cloned());
                    blobs.extend((0..4).map(|_| layer()));
                }
                Size::Small => blobs.push(Blob::new(next(&mut state), 500)),
                Size::Large(bytes) => blobs.push(Blob::new(next(&mut state), bytes)),
            }
            image(seed, number, blobs)
        })
        .collect()
}

fn image(seed: u64, number: usize, blobs: Vec<Blob>) -> Image {
    let descriptor = |media_type: &str, blob: &Blob| json!({"mediaType": media_type, "digest": blob.digest, "size": blob.size});
    let layers = blobs[1..]
        .iter()
        .map(|blob| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", blob));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &blobs[0]),
        "layers": layers.collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string();
    Image {
        name: format!("image-{seed:x}-{number:04}"),
        digest: hex(&Sha256::digest(&manifest)),
        blobs,
        manifest,
    }
}

/// Returns each blob with its size once.
pub fn blobs(images: &[Image]) -> BTreeMap<&str, usize> {
    let blobs = images.iter().flat_map(|image| &image.blobs);
    blobs.map(|blob| (blob.digest.as_str(), blob.size)).collect()
}

fn client() -> Result<Client> {
    // The client wants one even where nothing is encrypted; another may have been first.
    drop(rustls::crypto::ring::default_provider().install_default());
    Ok(Client::builder().no_proxy().user_agent(AGENT).build()?)
}

/// Pushes the images into a registry.
pub fn push(registry: SocketAddr, images: &[Image]) -> Result<()> {
    each(images, async move |client, image| {
        for blob in &image.blobs {
            push_blob(&client, registry, &image.name, blob).await?;
        }
        let url = format!("http://{registry}/v2/{}/manifests/v1", image.name);
        let request = client.put(url).header(header::CONTENT_TYPE, MANIFEST);
        request.body(image.manifest).send().await?.error_for_status()?;
        Ok(())
    })
}

async fn push_blob(client: &Client, registry: SocketAddr, name: &str, blob: &Blob) -> Result<()> {
    let url = format!("http://{registry}/v2/{name}/blobs/uploads/");
    let begun = client.post(url).send().await?.error_for_status()?;
    let location = begun.headers().get(header::LOCATION).context("no location")?;
    let url = format!("{}&digest={}", location.to_str()?, blob.digest);
    let pieces = Blob::pieces(blob.seed, blob.size).map(std::io::Result::Ok);
    let request = client.put(url).header(header::CONTENT_LENGTH, blob.size);
    let body = reqwest::Body::wrap_stream(stream::iter(pieces));
    request.body(body).send().await?.error_for_status()?;
    Ok(())
}

/// Fails unless a registry has every one of the images.
pub fn check(registry: SocketAddr, images: &[Image]) -> Result<()> {
    each(images, async move |client, image| {
        let url = format!("http://{registry}/v2/{}/manifests/v1", image.name);
        let request = client.get(url).header(header::ACCEPT, MANIFEST);
        let found = request.send().await?.error_for_status()?.bytes().await?;
        ensure!(
            hex(&Sha256::digest(&found)) == image.digest,
            "{} is another: {:.500}",
            image.name,
            String::from_utf8_lossy(&found)
        );
        for blob in &image.blobs {
            let url = format!("http://{registry}/v2/{}/blobs/{}", image.name, blob.digest);
            client.head(url).send().await?.error_for_status()?;
        }
        Ok(())
    })
}

/// Does something with each image, some at once.
fn each(images: &[Image], work: impl AsyncFn(Client, Image) -> Result<()> + Clone + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (client, next) = (client()?, Arc::new(AtomicUsize::new(0)));
    let images: Arc<[Image]> = images.into();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let lanes = (0..8).map(|_| {
            let (client, next, images, work) = (
                client.clone(),
                Arc::clone(&next),
                Arc::clone(&images),
                work.clone(),
            );
            tokio::task::spawn_local(async move {
                while let Some(image) = images.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(client.clone(), image.clone()).await?;
                }
                anyhow::Ok(())
            })
        });
        for lane in lanes.collect::<Vec<_>>() {
            lane.await??;
        }
        Ok(())
    })
}
