//! The answers of a good registry, from memory: what a scripted peer says while it works.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use kagami::domain::digest::Digest;

use super::{
    faulty::{Action, Behaviour, Reply, Request},
    images::{self, Image},
};

/// Images by repository and reference. Clones share them.
#[derive(Clone, Default)]
pub struct Shelf(Arc<Mutex<Content>>);

#[derive(Default)]
struct Content {
    manifests: HashMap<(String, String), Image>,
    blobs: HashMap<String, Vec<u8>>,
}

impl Shelf {
    /// Puts an image there by tag and by digest, with all that it names.
    pub fn put(&self, repository: &str, tag: &str, image: &Image) {
        for child in &image.children {
            self.put(repository, &child.digest.to_string(), child);
        }
        let mut content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for reference in [tag, &image.digest.to_string()] {
            let key = (repository.to_owned(), reference.to_owned());
            content.manifests.insert(key, image.clone());
        }
        for blob in &image.blobs {
            let digest = images::digest(blob).to_string();
            content.blobs.insert(digest, blob.clone());
        }
    }

    /// Takes a manifest away.
    pub fn remove(&self, repository: &str, digest: &Digest) {
        let mut content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (repository.to_owned(), digest.to_string());
        drop(content.manifests.remove(&key));
    }

    /// Takes everything away.
    pub fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Content::default();
    }

    /// Returns what a registry that holds this answers.
    pub fn answer(&self, request: &Request) -> Reply {
        if request.target == "/v2/" {
            return Reply::json(200, &serde_json::json!({}));
        }
        let content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let path = request.target.trim_start_matches("/v2/");
        if let Some((repository, reference)) = path.split_once("/manifests/") {
            let key = (repository.to_owned(), reference.to_owned());
            return match content.manifests.get(&key) {
                Some(image) => Reply::new(200)
                    .content_type(image.media_type.as_str())
                    .header("Docker-Content-Digest", &image.digest.to_string())
                    .body(image.manifest.clone()),
                None => Reply::error(404, "MANIFEST_UNKNOWN"),
            };
        }
        let blob = path
            .split_once("/blobs/")
            .and_then(|(_, digest)| content.blobs.get(digest));
        match blob {
            Some(blob) => Reply::new(200)
                .content_type("application/octet-stream")
                .body(blob.clone()),
            None => Reply::error(404, "BLOB_UNKNOWN"),
        }
    }

    /// Returns the behaviour of such a registry.
    pub fn behaviour(&self) -> Behaviour {
        let shelf = self.clone();
        Behaviour::answer(move |request| Action::Reply(shelf.answer(request)))
    }
}
