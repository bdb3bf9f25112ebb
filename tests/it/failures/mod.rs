//! The failure table: the real program, real sockets, one fault at a time.
//!
//! In every row the Pod is admitted within the budget, and after the fault has ended images are
//! rewritten again by themselves. Two images are asked for: one that is *known*, with a fresh proof,
//! and one that is *new*. Before the state knows of the fault, the known one is still rewritten on
//! its proof (`Mirrored`); the other reasons are:
//!
//! | fault | new, before the state knows | both, once it knows |
//! | --- | --- | --- |
//! | refuses connections | `MirrorUnhealthy` | `MirrorUnhealthy` |
//! | black hole, silence, hangs in the body | `BudgetExhausted` | `MirrorUnhealthy` |
//! | 500 | `RegistryError` | `MirrorUnhealthy` |
//! | 429 with `Retry-After` | `RateLimited` | `MirrorUnhealthy` |
//! | 401 with a challenge: a registry that refuses | `Unauthorized` | `Unauthorized` |
//! | 401 without one, 403: somebody in between | `Unauthorized` | `MirrorUnhealthy` |
//! | 404 for everything, `/v2/` too | `ImageMissing` | `MirrorUnhealthy` |
//! | HTML for everything | `RegistryError` | `MirrorUnhealthy` |
//! | HTML for manifests alone | `RegistryError` | `RegistryError` |
//! | another digest than asked for | `DigestMismatch` | `DigestMismatch` |
//! | blobs hang for every image, all else works | `Mirrored` | `MirrorUnhealthy` |
//! | 500 for every manifest alone | `RegistryError` | `MirrorUnhealthy` |
//! | 500 for some manifests alone | `RegistryError` | `RegistryError` for those |
//! | the token service limits | `RateLimited` | `RateLimited` for images without a token |
//! | redirects to storage that takes GET alone | `Mirrored` | `Mirrored` |
//! | redirects to storage that names other types | `RegistryError` | `RegistryError` |
//! | 404 in text for what is not there | `ImageMissing` | `ImageMissing` |
//! | TLS expired, other name, unknown authority | `MirrorUnhealthy` | `MirrorUnhealthy` |
//! | redirect loop | `RegistryError` | `MirrorUnhealthy` |
//! | name gone | `MirrorUnhealthy` | `MirrorUnhealthy` |
//! | emptied while down | | `MirrorUnhealthy`, then `ImageMissing` |
//!
//! A probe that the review did not wait for is `BudgetExhausted`, whatever the fault: mirrors get
//! more time than reviews. The row of the jumping clock needs no sockets: `domain::health` and
//! `domain::presence` test it. Rows with a cluster's parts are in `tests/e2e`.

mod access;
mod children;
mod companion;
mod configuration;
mod load;
mod mirrors;
mod noticing;
mod platforms;
mod reviews;
mod sweeps;

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    faulty::Faulty,
    images::{self, Image},
    kagami::{self, Kagami, eventually},
    shelf::Shelf,
};

use ::kagami::domain::answer::MediaType;

const REPOSITORY: &str = "docker.io/library/nginx";

/// How soon the state knows of a fault, or of its end: some intervals of 200 ms, timeouts of 500 ms,
/// and what a busy machine adds.
const SOON: Duration = Duration::from_secs(8);

fn image(seed: &str) -> Image {
    images::single(MediaType::OciManifest, seed)
}

/// A mirror that holds `nginx:1` and `nginx:2`, and what it holds.
async fn stocked() -> (Faulty, Shelf) {
    let shelf = stock();
    (Faulty::start(shelf.behaviour()).await, shelf)
}

fn stock() -> Shelf {
    let shelf = Shelf::default();
    shelf.put(REPOSITORY, "1", &image("one"));
    shelf.put(
        REPOSITORY,
        "2",
        &images::index(MediaType::OciIndex, &["amd64", "arm64"], "two"),
    );
    shelf
}

/// Starts Kagami before a mirror, and makes `nginx:1` known.
async fn knowing(endpoint: &str, spec: &Value) -> Kagami {
    let kagami = Kagami::start(&[kagami::mirror(endpoint, spec)]).await;
    kagami.until_known("nginx:1", 1).await;
    kagami
}

/// Starts Kagami so that it does not look at the mirror's health by itself while a test lasts.
async fn unaware(endpoint: &str, spec: &Value) -> Kagami {
    let mut spec = spec.clone();
    json_patch::merge(&mut spec, &json!({"health": {"interval": "10m"}}));
    knowing(endpoint, &spec).await
}

/// Puts three images into a mirror, enough to tell a mirror's fault from theirs, and makes them known.
async fn know_more(kagami: &Kagami, shelf: &Shelf, make: impl Fn(&str) -> Image) {
    let tags = ["a", "b", "c"];
    for tag in tags {
        shelf.put(REPOSITORY, tag, &make(tag));
    }
    kagami
        .until(&["nginx:a", "nginx:b", "nginx:c"], &["Mirrored"; 3], SOON)
        .await;
    // Some others may be known already.
    eventually("all three are known to the companion", SOON, async || {
        let status = kagami.status().await;
        let present = status.pointer("/mirrors/main/images/present").cloned();
        if present.and_then(|present| present.as_u64()) >= Some(4) {
            Ok(())
        } else {
            Err(format!("{status:#}"))
        }
    })
    .await;
}
