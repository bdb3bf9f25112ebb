//! A whole look at one image: its manifest and, for an index, the manifests it lists.

use std::time::Duration;

use tokio::time::Instant;

use super::{Client, pace::Pace};
use crate::domain::{
    answer::{Answer, Child, Manifest},
    platform::Architectures,
};

/// How many entries of an index are looked for. Real ones have about ten; nobody gets to make a
/// mirror answer more requests for one image.
const CHILDREN_LIMIT: usize = 32;

impl Client {
    /// Looks for an image and returns the answer with the architectures that are there: one manifest
    /// GET, and for an index HEADs of the manifests that it lists, all at once.
    ///
    /// Entries that are missing are left out of the architectures (copies for some platforms only
    /// are usual); any other answer about an entry is the answer about the image.
    pub async fn look(
        &self,
        repository: &str,
        reference: &str,
        deadline: Instant,
    ) -> (Answer, Architectures) {
        let answer = self.get(repository, reference, deadline).await;
        let Answer::Exists(manifest) = &answer else {
            return (answer, Architectures::NONE);
        };
        if !manifest.media_type.is_index() {
            return (answer, Architectures::ALL);
        }
        let heads = children(manifest).map(async |(child, architecture)| {
            let head = self.head(repository, &child.digest.to_string(), deadline).await;
            there(&head, architecture).ok_or(head)
        });
        let heads = futures_util::future::join_all(heads).await;
        match heads.into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(there) => (answer, all(there)),
            Err(inconclusive) => (inconclusive, Architectures::NONE),
        }
    }

    /// Looks for an image as [`Self::look`] does, but with one request after the other, each in its turn:
    /// for those who look at many. Each answer may take `patience`.
    pub async fn look_slowly(
        &self,
        repository: &str,
        reference: &str,
        pace: &Pace,
        patience: Duration,
    ) -> (Answer, Architectures) {
        pace.turn().await;
        let answer = self.get(repository, reference, Instant::now() + patience).await;
        let Answer::Exists(manifest) = &answer else {
            return (answer, Architectures::NONE);
        };
        if !manifest.media_type.is_index() {
            return (answer, Architectures::ALL);
        }
        let mut seen = Vec::new();
        for (child, architecture) in children(manifest) {
            pace.turn().await;
            let deadline = Instant::now() + patience;
            let head = self.head(repository, &child.digest.to_string(), deadline).await;
            match there(&head, architecture) {
                Some(there) => seen.push(there),
                None => return (head, Architectures::NONE),
            }
        }
        (answer, all(seen))
    }
}

/// Returns the entries of an index that are looked for, with their architectures.
fn children(manifest: &Manifest) -> impl Iterator<Item = (&Child, Architectures)> {
    let named = manifest.children.iter().filter_map(|child| {
        let architecture = child.architecture.as_deref()?;
        Some((child, Architectures::of(architecture)))
    });
    named.take(CHILDREN_LIMIT)
}

/// Returns what an entry adds to the architectures that are there; none if nobody can tell.
const fn there(head: &Answer, architecture: Architectures) -> Option<Architectures> {
    match head {
        Answer::Exists(_) => Some(architecture),
        Answer::Missing => Some(Architectures::NONE),
        _ => None,
    }
}

fn all(there: Vec<Architectures>) -> Architectures {
    there
        .into_iter()
        .fold(Architectures::NONE, Architectures::or)
        .known()
}
