//! Images that are known to be there, by which a mirror shows that it is the one it was.

use tokio::time::Instant;

use super::Store;
use crate::{
    domain::{
        answer::Answer,
        digest::Digest,
        image::{ImageKey, KeyRef},
        mirror::{Kind, Mirror},
        presence::{Entry, Index, Judgement, Presence, Proof, Rules},
        time::Timestamp,
    },
    registry::Client,
};

/// How many of them a mirror shows that may have been away for a moment.
const ON_RETURN: usize = 3;

/// Of how many those are chosen, each time others: one may be damaged.
const CHOICE: usize = 16;

/// How many entries are looked through for them.
const SEARCHED: usize = 1000;

/// An image known to be there.
#[derive(Clone, Debug)]
pub struct Canary {
    pub key: ImageKey,
    pub digest: Digest,
}

impl Canary {
    /// Returns the repository in the mirror and the reference by which the image is asked for; none if the mirror has
    /// no place for it any more.
    pub fn address(&self, settings: &Mirror) -> Option<(String, String)> {
        let reference = self.key.by_ref().reference();
        let repository = settings.mapping.repository_path(&reference).ok()?;
        let asked = match settings.kind {
            Kind::Hosted => reference.manifest_reference().to_owned(),
            // By tag it would ask upstream, each time.
            Kind::PullThrough => self.digest.to_string(),
        };
        Some((repository, asked))
    }
}

/// Returns some images that are known to be there, each another one by its digest or its class: one image under
/// several tags is one image, and one damage; by tag and by digest the mirror may answer differently.
pub fn choose(index: &Index, mirror: &str, at_most: usize) -> Vec<Canary> {
    pick(index.entries(mirror), at_most)
}

fn pick<'a>(entries: impl Iterator<Item = (KeyRef<'a>, &'a Entry)>, at_most: usize) -> Vec<Canary> {
    let mut canaries: Vec<Canary> = Vec::new();
    for (key, entry) in entries {
        if canaries.len() == at_most {
            break;
        }
        let is_another = |canary: &Canary, proof: &Proof| {
            canary.digest != proof.digest || canary.key.by_ref().class() != key.class()
        };
        if let Presence::Present(proof) = &entry.presence
            && !proof.platforms.is_empty()
            && canaries.iter().all(|canary| is_another(canary, proof))
        {
            canaries.push(Canary {
                key: key.into(),
                digest: proof.digest.clone(),
            });
        }
    }
    canaries
}

/// Looks whether a mirror still has what is proven of it, at some images, of which `turn` chooses. Returns none if that
/// cannot be told now, as no answer says anything of its image.
pub async fn are_there(store: &Store, mirror: &str, turn: usize, now: Timestamp) -> Option<bool> {
    let (snapshot, client) = (store.snapshot(), store.client(mirror)?);
    let id = snapshot.routing.find(mirror)?;
    let settings = snapshot.routing.mirror(id);
    let rules = Rules::of(settings, snapshot.health_of(id).proven_since);
    let mut canaries = {
        let index = store.index();
        let proven = |key| matches!(index.judge(mirror, key, &rules, now), Judgement::Proven(..));
        let entries = index.entries(mirror).take(SEARCHED);
        pick(entries.filter(|(key, _)| proven(*key)), CHOICE)
    };
    if canaries.is_empty() {
        // There is nothing to be void.
        return Some(true);
    }
    let first = turn.wrapping_mul(ON_RETURN) % canaries.len();
    canaries.rotate_left(first);
    canaries.truncate(ON_RETURN);
    let deadline = Instant::now() + settings.health.timeout;
    let looks = canaries
        .iter()
        .map(|canary| look(&client, settings, canary, deadline));
    let seen = futures_util::future::join_all(looks).await;
    match (seen.contains(&Some(false)), seen.contains(&Some(true))) {
        (true, _) => Some(false),
        (false, true) => Some(true),
        (false, false) => None,
    }
}

/// Looks whether one of them is where it was; none if the answer does not tell.
async fn look(client: &Client, settings: &Mirror, canary: &Canary, deadline: Instant) -> Option<bool> {
    let (repository, asked) = canary.address(settings)?;
    match client.head(&repository, &asked, deadline).await {
        Answer::Exists(manifest) => Some(manifest.digest == canary.digest),
        Answer::Missing => Some(false),
        // It lives, and lets nobody look.
        Answer::Unauthorized | Answer::RateLimited { .. } => Some(true),
        Answer::ServerError(..) | Answer::Unreachable(..) | Answer::Ambiguous(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::examples::{key, proof};

    const IMAGES: [&str; 3] = [
        "docker.io/library/a:1",
        "docker.io/library/b:1",
        "docker.io/library/b:2",
    ];

    #[test]
    fn one_image_under_two_tags_is_one() {
        let mut index = Index::default();
        for (image, seed) in IMAGES.into_iter().zip(['a', 'b', 'b']) {
            let now = Timestamp::from_millis(1);
            index.write("main", key(image), Presence::Present(proof(seed)), now, now);
        }
        assert_eq!(choose(&index, "main", 9).len(), 2);
        assert_eq!(choose(&index, "main", 1).len(), 1);
        assert!(choose(&index, "other", 9).is_empty());
    }
}
