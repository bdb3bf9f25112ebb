//! The registry client against registries that work, and against peers that do not.

mod auth;
mod faults;
mod names;
mod platforms;
mod real;
mod renewal;
mod trust;

use kagami::{
    domain::{
        answer::{Answer, Blob, Child, Manifest},
        mirror::Trust,
        platform::Platforms,
    },
    registry::{Client, Credentials, Endpoint},
};

use crate::support::{
    faulty::{Action, Behaviour, Faulty, Reply, Request},
    images::{self, Image},
    install_crypto,
};

const REPOSITORY: &str = "docker.io/library/nginx";

fn client(url: &str) -> Client {
    client_with(url, None, None)
}

fn client_with(url: &str, ca_bundle: Option<String>, credentials: Option<Credentials>) -> Client {
    install_crypto();
    Client::new(&Endpoint {
        url: url.to_owned(),
        ca_bundle: ca_bundle.map(String::into_bytes),
        trust: Trust::default(),
        credentials,
    })
    .unwrap()
}

/// The answer of a good registry to any request: an image's manifest, and `/v2/`.
fn serve(image: &Image, request: &Request) -> Reply {
    if request.target == "/v2/" {
        return Reply::json(200, &serde_json::json!({}));
    }
    Reply::new(200)
        .content_type(image.media_type.as_str())
        .header("Docker-Content-Digest", &image.digest.to_string())
        .body(image.manifest.clone())
}

/// A peer that serves an image to everybody.
async fn good(image: &Image) -> Faulty {
    let image = image.clone();
    Faulty::start(Behaviour::answer(move |request| {
        Action::Reply(serve(&image, request))
    }))
    .await
}

/// What a HEAD of an image says.
fn seen(image: &Image) -> Answer {
    Answer::Exists(Manifest {
        digest: image.digest.clone(),
        media_type: image.media_type,
        size: Some(image.manifest.len() as u64),
        children: Vec::new(),
        blob: None,
        config: None,
    })
}

fn of_blob(blob: &[u8]) -> Blob {
    Blob {
        digest: images::digest(blob),
        size: blob.len() as u64,
    }
}

/// What a GET of an image says. Architectures are those of the children, and of the nodes that take them.
fn read(image: &Image, architectures: &[&str]) -> Answer {
    let children = image.children.iter().zip(architectures);
    Answer::Exists(Manifest {
        digest: image.digest.clone(),
        media_type: image.media_type,
        size: Some(image.manifest.len() as u64),
        children: children
            .map(|(child, architecture)| Child {
                digest: child.digest.clone(),
                takers: Platforms::of("linux", architecture, ""),
                is_whole: true,
            })
            .collect(),
        // All are small, and the largest tells most.
        blob: image
            .blobs
            .iter()
            .max_by_key(|blob| blob.len())
            .map(|blob| of_blob(blob)),
        config: image.blobs.first().map(|blob| of_blob(blob)),
    })
}
