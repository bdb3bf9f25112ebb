//! A whole look at one image: its manifest and, for an index, the manifests it lists.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{Client, manifest::platform_of, pace::Pace};
use crate::domain::{
    answer::{Ambiguity, Answer, Blob, Child, Failure, Manifest},
    platform::Platforms,
};

/// How many entries of an index are looked for. Real ones have about ten; nobody gets to make a
/// mirror answer more requests for one image.
const CHILDREN_LIMIT: usize = 32;

/// How many entries are looked for of an index that another one lists. What such a one lists is an index no
/// more: nobody builds that.
const NESTED_LIMIT: usize = 8;

/// How many entries of an index are read because they do not tell by themselves whom they are for.
const READ_LIMIT: usize = 4;

/// The longest configuration that is read; real ones have some kilobytes.
const CONFIG_BYTES: usize = 256 * 1024;

/// How long the configuration of a single manifest may take: without it nearly as much is known.
const CONFIG_PATIENCE: Duration = Duration::from_secs(2);

/// How requests of one look follow each other.
#[derive(Clone, Copy, Debug)]
pub enum Manner<'a> {
    /// All that can be made at once, until the deadline.
    AtOnce(Instant),
    /// One after the other, each in its turn, and each answer may take this long: for those who look at many.
    InTurn(&'a Pace, Duration),
}

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What a node needs at least: the manifest, and that those are there which an index lists. A single
    /// manifest is assumed to be for Linux.
    Manifests,
    /// Also the configuration of a single manifest, for its operating system.
    Configurations,
    /// As that, but what an index names is not asked for: a mirror that fetches what it lacks has it.
    Named,
}

struct Looker<'a> {
    client: &'a Client,
    repository: &'a str,
    manner: Manner<'a>,
    extent: Extent,
}

impl Client {
    /// Looks for an image and returns the answer with the platforms of the nodes that could pull it: one
    /// manifest GET, and for an index HEADs of the manifests that it lists. Where an entry is an index itself
    /// or names no platform it is read, and one configuration with it.
    ///
    /// Whoever takes an entry that is missing cannot pull (copies for some platforms only are usual); any other
    /// answer about an entry is the answer about the image.
    pub async fn look(
        &self,
        repository: &str,
        reference: &str,
        manner: Manner<'_>,
        extent: Extent,
    ) -> (Answer, Platforms) {
        let looker = Looker {
            client: self,
            repository,
            manner,
            extent,
        };
        let answer = looker.get(reference).await;
        let Answer::Exists(manifest) = &answer else {
            return (answer, Platforms::NONE);
        };
        if !manifest.media_type.is_index() {
            let platforms = looker.single(manifest).await;
            return (answer, platforms);
        }
        // Large, as it holds looks at many children.
        match Box::pin(looker.index(manifest, CHILDREN_LIMIT, Some(NESTED_LIMIT))).await {
            Ok(platforms) => (answer, platforms),
            Err(inconclusive) => (inconclusive, Platforms::NONE),
        }
    }
}

impl Looker<'_> {
    /// Waits for a request's turn and returns until when its answer must come.
    async fn deadline(&self) -> Instant {
        match self.manner {
            Manner::AtOnce(deadline) => deadline,
            Manner::InTurn(pace, patience) => {
                pace.turn().await;
                Instant::now() + patience
            }
        }
    }

    async fn get(&self, reference: &str) -> Answer {
        let deadline = self.deadline().await;
        self.client.get(self.repository, reference, deadline).await
    }

    /// Returns for which nodes a single manifest counts.
    async fn single(&self, manifest: &Manifest) -> Platforms {
        let config = manifest.config.as_ref();
        let Some(config) = config.filter(|_| self.extent != Extent::Manifests) else {
            return Platforms::ASSUMED;
        };
        let read = self.platform(config, CONFIG_PATIENCE).await;
        let systems = [Platforms::LINUX, Platforms::WINDOWS];
        match read {
            Ok(Some(of)) => systems
                .into_iter()
                .filter(|system| !system.and(of).is_empty())
                .fold(Platforms::NONE, Platforms::or),
            // An artifact's configuration tells no platform, and who knows what it is for.
            Ok(None) | Err(_) => Platforms::ASSUMED,
        }
    }

    /// Returns which nodes could pull an index. `nested` is how many entries are looked for of those that are
    /// indexes themselves, if those are looked at.
    async fn index(
        &self,
        manifest: &Manifest,
        limit: usize,
        nested: Option<usize>,
    ) -> Result<Platforms, Answer> {
        let mut read = 0;
        let within_bounds = |child: &&Child| {
            read += usize::from(!child.is_whole);
            child.is_whole || read <= READ_LIMIT
        };
        let takers = manifest.children.iter().filter(|child| !child.takers.is_empty());
        let looks = takers
            .clone()
            .filter(within_bounds)
            .take(limit)
            .map(async |child| {
                let served = self.child(child, nested).await?;
                Ok::<_, Answer>((child, served))
            });
        let looks = match self.manner {
            Manner::AtOnce(_) => join_all(looks).await.into_iter().collect::<Result<Vec<_>, _>>()?,
            Manner::InTurn(..) => {
                let mut seen = Vec::new();
                for look in looks {
                    seen.push(look.await?);
                }
                seen
            }
        };
        let mut pullable = takers
            .map(|child| child.takers)
            .fold(Platforms::NONE, Platforms::or);
        for child in &manifest.children {
            let looked = looks.iter().find(|(looked, _)| std::ptr::eq(*looked, child));
            let served = looked.map_or(Platforms::NONE, |(_, served)| *served);
            pullable = pullable.without(child.takers.without(served));
        }
        Ok(pullable)
    }

    /// Returns for which nodes there is something to pull in an entry.
    async fn child(&self, child: &Child, nested: Option<usize>) -> Result<Platforms, Answer> {
        let digest = child.digest.to_string();
        if child.is_whole {
            if self.extent == Extent::Named {
                return Ok(Platforms::ALL);
            }
            let deadline = self.deadline().await;
            return match self.client.head(self.repository, &digest, deadline).await {
                Answer::Exists(_) => Ok(Platforms::ALL),
                Answer::Missing => Ok(Platforms::NONE),
                other => Err(other),
            };
        }
        let manifest = match self.get(&digest).await {
            Answer::Exists(manifest) => manifest,
            Answer::Missing => return Ok(Platforms::NONE),
            other => return Err(other),
        };
        match (manifest.media_type.is_index(), nested, &manifest.config) {
            (true, Some(limit), _) => Box::pin(self.index(&manifest, limit, None)).await,
            (false, _, Some(config)) => match self.platform(config, Duration::MAX).await {
                Ok(platform) => Ok(platform.map_or(Platforms::NONE, Platforms::takers)),
                Err(Failure::Missing | Failure::Ambiguous(_)) => Ok(Platforms::NONE),
                Err(other) => Err(other.into()),
            },
            (true, None, _) | (false, _, None) => Ok(Platforms::NONE),
        }
    }

    /// Reads the platform that a configuration tells.
    async fn platform(&self, config: &Blob, patience: Duration) -> Result<Option<Platforms>, Failure> {
        if config.size > CONFIG_BYTES as u64 {
            return Err(Failure::Ambiguous(Ambiguity::Oversized));
        }
        let mut deadline = self.deadline().await;
        if let Some(sooner) = Instant::now().checked_add(patience) {
            deadline = deadline.min(sooner);
        }
        let bytes = self.client.small(self.repository, config, CONFIG_BYTES, deadline);
        Ok(platform_of(&bytes.await?))
    }
}
