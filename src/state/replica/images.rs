//! MirroredImages on their way into the presence index.
//!
//! Reviews wait for the index while it is written, so nothing is decoded meanwhile, and a list is written
//! in pieces.

use crate::{
    cluster::{
        objects::{self, Entry, Object},
        watch::Event,
    },
    state::Store,
};

/// How many listed images are written at once.
const PIECE: usize = 64;

/// Writes what a watch of MirroredImages tells.
#[derive(Debug)]
pub(super) struct ImageWriter {
    store: Store,
    /// Listed and not written yet.
    listed: Vec<Entry>,
}

impl ImageWriter {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            listed: Vec::new(),
        }
    }

    pub(super) fn take(&mut self, event: Event<Object>) {
        match event {
            Event::Listing => {
                self.listed.clear();
                self.store.index_mut().begin_listing();
            }
            Event::Listed(object) => {
                self.listed.extend(objects::entry(&object));
                if self.listed.len() >= PIECE {
                    self.write_listed();
                }
            }
            Event::ListedAll { .. } => {
                self.write_listed();
                self.store.index_mut().end_listing();
            }
            Event::Changed(object) => {
                self.listed.extend(objects::entry(&object));
                self.write_listed();
            }
            Event::Deleted(object) => {
                self.write_listed();
                if let Some(entry) = objects::entry(&object) {
                    self.store.index_mut().remove(&entry.mirror, entry.key.by_ref());
                }
            }
            Event::Reached(version) => {
                self.write_listed();
                self.store.index_mut().reached(version);
            }
        }
    }

    /// Writes what was listed and is not written yet.
    pub(super) fn write_listed(&mut self) {
        if self.listed.is_empty() {
            return;
        }
        let mut index = self.store.index_mut();
        for entry in self.listed.drain(..) {
            let Entry {
                mirror,
                key,
                presence,
                verified_at,
                version,
                spec,
                ..
            } = entry;
            index.write_at(&mirror, key.by_ref(), presence, verified_at, version, verified_at);
            let not_copied = spec.as_ref().and_then(|spec| spec.not_copied.as_deref());
            index.learn_not_copied(&mirror, key.by_ref(), not_copied);
            let upstream = spec.as_ref().and_then(|spec| spec.upstream_digest.as_deref());
            index.learn_upstream(&mirror, key.by_ref(), upstream);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use serde_json::json;

    use super::*;
    use crate::api::v1alpha1::MirroredImage;

    fn image(number: usize) -> Object {
        let (mirror, key) = ("main", format!("docker.io/library/nginx:{number}"));
        let object = json!({
            "metadata": {"name": MirroredImage::object_name(mirror, &key), "resourceVersion": "7"},
            "spec": {
                "mirror": mirror, "image": key, "presence": "Missing",
                "verifiedAt": "2026-01-02T03:04:05.678000Z",
            },
        });
        serde_json::from_value(object).unwrap()
    }

    fn known(store: &Store) -> usize {
        store
            .index()
            .counts()
            .get("main")
            .map_or(0, |counts| counts.missing)
    }

    /// A review that reads, or waits for another writer, holds up no decoding.
    #[test]
    fn listed_images_are_decoded_without_the_index() {
        let store = Store::default();
        let mut images = ImageWriter::new(store.clone());
        images.take(Event::Listing);
        let review = store.index();
        let (decoded, until_decoded) = mpsc::channel();
        let reader = thread::spawn(move || {
            for number in 1..PIECE {
                images.take(Event::Listed(image(number)));
            }
            decoded.send(()).unwrap();
            images.take(Event::Listed(image(PIECE)));
            images
        });
        until_decoded.recv_timeout(Duration::from_secs(20)).unwrap();
        drop(review);
        let mut images = reader.join().unwrap();
        assert_eq!(known(&store), PIECE);
        // What is left is written with the end of the list, and before anything later.
        images.take(Event::Listed(image(PIECE + 1)));
        assert_eq!(known(&store), PIECE);
        images.take(Event::ListedAll { round: 0 });
        assert_eq!(known(&store), PIECE + 1);
        images.take(Event::Listed(image(PIECE + 2)));
        images.take(Event::Deleted(image(PIECE + 2)));
        assert_eq!(known(&store), PIECE + 1);
        // A list that was cut off says nothing.
        images.take(Event::Listed(image(PIECE + 3)));
        images.take(Event::Listing);
        images.take(Event::ListedAll { round: 0 });
        assert_eq!(known(&store), 0);
    }
}
