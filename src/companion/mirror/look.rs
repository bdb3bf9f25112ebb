//! Looking at one image for the shared state: what the sweeper and the demand have in common.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    context::{Context, CurrentMirror},
    reports::Refusal,
    upstream,
};
use crate::{
    clock,
    domain::{
        answer::Answer,
        health::State,
        image::{KeyRef, Reference},
        mirror::{Kind, Mirror},
        presence::{Presence, Proof, reason_of},
        reason::Reason,
    },
    registry::{
        look::{Extent, Manner},
        pace::Pace,
    },
};

/// How long one answer may take where nobody waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where an image stands on the mirror.
#[derive(Debug)]
pub(super) struct Located<'a> {
    pub(super) reference: Reference<'a>,
    pub(super) repository: String,
    key: KeyRef<'a>,
}

/// Returns where the image of a key stands on a mirror.
pub(super) fn locate<'a>(settings: &Mirror, key: KeyRef<'a>) -> Option<Located<'a>> {
    let reference = key.reference();
    let repository = settings.mapping.repository_path(&reference).ok()?;
    Some(Located {
        reference,
        repository,
        key,
    })
}

impl Context {
    /// Asks the mirror for an image's manifest by its headers, under `reference`.
    pub(super) async fn head(&self, repository: &str, reference: &str) -> Answer {
        self.client
            .head(repository, reference, Instant::now() + PATIENCE)
            .await
    }

    /// Looks at an image for whoever is to know of it soon, and writes what was seen.
    pub(super) async fn first_look(&self, key: KeyRef<'_>) {
        let Some(present) = self.present() else { return };
        if present.health().state != State::Healthy {
            // It is noted; the sweep after the mirror's recovery looks at it.
            return;
        }
        let Some(located) = locate(present.settings(), key) else {
            let now = clock::now();
            let presence = Presence::Unknown(Some(Reason::NameTooLong));
            self.store
                .index_mut()
                .write(&self.mirror, key, presence, now, now);
            return;
        };
        // What is seen is as old as the question: the mirror may have gone and come in between.
        let asked_at = clock::now();
        let (Ok(presence) | Err((_, presence))) = self.inspect(&present, &located, None).await;
        self.store
            .index_mut()
            .write(&self.mirror, key, presence, asked_at, clock::now());
    }

    /// Looks at an image whole and returns what to write of it, or the answer if it says nothing. With a
    /// pace, nobody waits for it.
    pub(super) async fn inspect(
        &self,
        present: &CurrentMirror,
        located: &Located<'_>,
        pace: Option<&Pace>,
    ) -> Result<Presence, (Answer, Presence)> {
        let (client, repository) = (&self.client, &located.repository);
        let asked = located.reference.manifest_reference();
        let (manner, extent) = match (present.settings().kind, pace) {
            (Kind::Hosted, Some(pace)) => (Manner::InTurn(pace, PATIENCE), Extent::Configurations),
            (Kind::Hosted, None) => (Manner::AtOnce(Instant::now() + PATIENCE), Extent::Configurations),
            // It fetches what it lacks, so what an index names is there; looking would be a download.
            (Kind::PullThrough, _) => (Manner::InTurn(&self.downloads, PATIENCE), Extent::Named),
        };
        // Large, as it holds looks at many children; where it is called mostly a HEAD is all.
        let look = Box::pin(client.look(repository, asked, manner, extent));
        let (answer, platforms) = look.await;
        match answer {
            Answer::Exists(manifest) => {
                self.note_credentials(Refusal::Images, true);
                let mut proof = Proof::new(&manifest, platforms);
                proof.public = self.is_public(present, located, &proof).await;
                Ok(Presence::Present(proof))
            }
            Answer::Missing => Ok(Presence::Missing),
            other => {
                self.tell(located.key, &other);
                let presence = Presence::Unknown(reason_of(&other));
                Err((other, presence))
            }
        }
    }

    /// Returns whether everybody gets this image upstream, asking only where that matters. While
    /// upstream cannot tell, what it told before holds: mirrors are for just that time.
    async fn is_public(&self, present: &CurrentMirror, located: &Located<'_>, proof: &Proof) -> Option<bool> {
        if !present.asks_upstream(located) {
            return None;
        }
        let (reference, name) = (&located.reference, located.key.name());
        let told = upstream::gives_to_everybody(&self.upstreams, reference, name, PATIENCE).await;
        told.or_else(|| {
            let index = self.store.index();
            match &index.get(&self.mirror, located.key)?.presence {
                Presence::Present(known) if known.digest == proof.digest => known.public,
                _ => None,
            }
        })
    }
}

impl CurrentMirror {
    /// Whether upstream decides who gets this image: it is from a public source that has credentials, or lies where
    /// another mirror brings such images.
    pub(super) fn asks_upstream(&self, located: &Located<'_>) -> bool {
        let routing = &self.snapshot.routing;
        let candidates = routing.candidates(located.key.name());
        let mut candidates = candidates.ordered.iter();
        candidates
            .find(|candidate| candidate.mirror == self.id)
            .is_some_and(|candidate| routing.access(candidate, &located.reference).asks_upstream)
    }
}
