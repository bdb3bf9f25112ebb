//! Images that are known to be there, by which a mirror shows that it is the one it was.

use tokio::time::Instant;

use crate::{
    domain::{
        answer::Answer,
        digest::Digest,
        image::ImageKey,
        mirror::{Kind, Mirror},
        presence::{Index, Presence, Proof},
    },
    registry::Client,
};

/// How many of them a mirror shows that was away for a moment.
pub const ON_RETURN: usize = 3;

/// An image known to be there.
#[derive(Clone, Debug)]
pub struct Canary {
    pub key: ImageKey,
    pub digest: Digest,
}

/// Returns some images that are known to be there, each another one by its digest or its class: one image under
/// several tags is one image, and one damage; by tag and by digest the mirror may answer differently.
pub fn choose(index: &Index, mirror: &str, at_most: usize) -> Vec<Canary> {
    let mut canaries: Vec<Canary> = Vec::new();
    for (key, entry) in index.entries(mirror) {
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

/// Looks whether all of them are where they were, all at once. Returns none if that cannot be told now: some answer
/// says nothing of its image.
pub async fn are_there(
    client: &Client,
    settings: &Mirror,
    canaries: &[Canary],
    deadline: Instant,
) -> Option<bool> {
    let looks = canaries.iter().map(async |Canary { key, digest }| {
        let reference = key.by_ref().reference();
        let repository = settings.mapping.repository_path(&reference).ok()?;
        let asked = match settings.kind {
            Kind::Hosted => reference.manifest_reference(),
            // By tag it would ask upstream.
            Kind::PullThrough => &digest.to_string(),
        };
        match client.head(&repository, asked, deadline).await {
            Answer::Exists(manifest) => Some(manifest.digest == *digest),
            Answer::Missing => Some(false),
            // It lives, and lets nobody look.
            Answer::Unauthorized | Answer::RateLimited { .. } => Some(true),
            Answer::ServerError(..) | Answer::Unreachable(..) | Answer::Ambiguous(_) => None,
        }
    });
    let seen = futures_util::future::join_all(looks).await;
    if seen.contains(&Some(false)) {
        return Some(false);
    }
    seen.iter().all(Option::is_some).then_some(true)
}
