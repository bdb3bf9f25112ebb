//! A whole look at one image: its manifest and, for an index, the manifests it lists.

use tokio::time::Instant;

use super::Client;
use crate::domain::{
    answer::{Answer, Child},
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
        let named = |child: &&Child| child.architecture.is_some();
        let heads = manifest
            .children
            .iter()
            .filter(named)
            .take(CHILDREN_LIMIT)
            .map(async |child| {
                (
                    child,
                    self.head(repository, &child.digest.to_string(), deadline).await,
                )
            });
        let mut there = Architectures::NONE;
        for (child, head) in futures_util::future::join_all(heads).await {
            match head {
                Answer::Exists(_) => {
                    there = there.or(child
                        .architecture
                        .as_deref()
                        .map_or(Architectures::NONE, Architectures::of));
                }
                Answer::Missing => {}
                inconclusive => return (inconclusive, Architectures::NONE),
            }
        }
        (answer, there.known())
    }
}
