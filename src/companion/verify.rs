//! Looking at one image for the shared state: what the sweeper and the demand have in common.

use std::{sync::Mutex, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{Context, Present};
use crate::domain::{
    answer::Answer,
    decision::Finding,
    image::Reference,
    mirror::{Access, Kind, Mirror},
    platform::Architectures,
    presence::{Presence, Proof, reason_of},
};

/// How long one answer may take where nobody waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where an image stands on the mirror.
#[derive(Debug)]
pub(super) struct Located<'a> {
    pub(super) reference: Reference<'a>,
    pub(super) repository: String,
    /// The image's key in the presence index: its name, and tag or digest.
    key: String,
}

impl Located<'_> {
    /// Returns the image's name as mirrors' sources have it: without tag and digest.
    fn name(&self) -> &str {
        self.reference.name_in(&self.key)
    }
}

/// Returns where the image of a key stands on a mirror.
pub(super) fn locate<'a>(settings: &Mirror, key: &'a str) -> Option<Located<'a>> {
    let reference = Reference::parse(key).ok()?;
    let repository = settings.mapping.repository_path(&reference).ok()?;
    let mut key = String::new();
    reference.write_key(&mut key);
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

    /// Looks at an image whole and returns what to write of it, or the answer if it says nothing.
    pub(super) async fn inspect(
        &self,
        present: &Present,
        located: &Located<'_>,
    ) -> Result<Presence, (Answer, Presence)> {
        let deadline = Instant::now() + PATIENCE;
        let asked = located.reference.manifest_reference();
        let (answer, architectures) = match present.settings().kind {
            Kind::Hosted => self.client.look(&located.repository, asked, deadline).await,
            // It fetches what it lacks, so what an index names is there; looking would be a download.
            Kind::PullThrough => {
                let answer = self.client.get(&located.repository, asked, deadline).await;
                let architectures = match &answer {
                    Answer::Exists(manifest) => Finding::named_by(manifest),
                    _ => Architectures::NONE,
                };
                (answer, architectures)
            }
        };
        match answer {
            Answer::Exists(manifest) => {
                let mut proof = Proof::new(&manifest, architectures);
                proof.public = self.is_public(present, located, &proof).await;
                Ok(Presence::Present(proof))
            }
            Answer::Missing => Ok(Presence::Missing),
            other => {
                let presence = Presence::Unknown(reason_of(&other));
                Err((other, presence))
            }
        }
    }

    /// Returns whether everybody gets this image upstream, asking only where that matters. While
    /// upstream cannot tell, what it told before holds: mirrors are for just that time.
    async fn is_public(&self, present: &Present, located: &Located<'_>, proof: &Proof) -> Option<bool> {
        if !present.asks_upstream(located) {
            return None;
        }
        let deadline = Instant::now() + PATIENCE;
        let upstreams = &self.upstreams;
        let told = upstreams
            .give_to_everybody(&located.reference, located.name(), deadline)
            .await;
        told.or_else(|| {
            let index = self.store.index();
            match &index.get(&self.mirror, &located.key)?.presence {
                Presence::Present(known) if known.digest == proof.digest => known.public,
                _ => None,
            }
        })
    }
}

impl Present {
    /// Whether upstream decides who gets this image: it is from a public source that has credentials.
    pub(super) fn asks_upstream(&self, located: &Located<'_>) -> bool {
        let candidates = self.snapshot.routing.candidates(located.name());
        let mut candidates = candidates.ordered.iter();
        candidates
            .find(|candidate| candidate.mirror == self.id)
            .and_then(|candidate| self.settings().sources.get(candidate.source))
            .is_some_and(|source| source.access == Access::Public && source.with_credentials)
    }
}

/// Spaces requests out: at most `rate` a second, none bunched together.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// Returns a pace of that many requests a second; none is unbounded.
    pub(super) fn new(rate: Option<u32>) -> Self {
        Self {
            interval: rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.max(1)),
            next: Mutex::default(),
        }
    }

    /// Waits for this request's turn.
    pub(super) async fn turn(&self) {
        self.turn_within(Duration::MAX).await;
    }

    /// Waits for this request's turn if it comes within `longest`. Returns whether it came; if not,
    /// nobody waited.
    pub(super) async fn turn_within(&self, longest: Duration) -> bool {
        let now = Instant::now();
        let mine = {
            let mut next = self
                .next
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let mine = next.unwrap_or(now).max(now);
            if mine - now > longest {
                return false;
            }
            *next = Some(mine + self.interval);
            mine
        };
        if mine > now {
            sleep_until(mine).await;
        }
        true
    }

    /// Lets nobody go on before `until`: the mirror asked to wait.
    pub(super) fn pause(&self, until: Instant) {
        let mut next = self
            .next
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *next = Some(next.map_or(until, |next| next.max(until)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pace_spaces_requests_out_and_refuses_turns_that_are_too_far() {
        let pace = Pace::new(Some(2));
        let started = Instant::now();
        assert!(pace.turn_within(Duration::ZERO).await);
        assert!(!pace.turn_within(Duration::from_millis(499)).await);
        assert!(pace.turn_within(Duration::from_millis(500)).await);
        assert_eq!(started.elapsed(), Duration::from_millis(500));
        pace.turn().await;
        assert_eq!(started.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_holds_everybody() {
        let pace = Pace::new(None);
        let started = Instant::now();
        pace.pause(started + Duration::from_secs(7));
        pace.turn().await;
        assert_eq!(started.elapsed(), Duration::from_secs(7));
    }
}
