//! Blobs on their way to a mirror: looked for, taken over, or uploaded.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::stream::{self, StreamExt as _};
use tokio::time::Instant;

use super::{
    super::{
        exchange::Fault,
        push::{Opened, Session, feed::Feed},
        source::verdict,
    },
    Again, Copying, Side, Trouble,
};
use crate::domain::{
    answer::{Failure, Unreachable},
    copying::{Part, Reason, Step, Verdict, plan::Manifest},
    digest::Digest,
};

/// How many blobs a mirror is remembered to have, and for how long.
const REMEMBERED: usize = 10_000;
const REMEMBERED_FOR: Duration = Duration::from_mins(5);

/// How long mounts from a repository are left alone once one was refused.
const NO_MOUNT_FOR: Duration = Duration::from_hours(1);

/// How many repositories are remembered from which nothing can be taken over.
const NO_MOUNTS: usize = 1024;

/// How often an upload is begun anew that its registry lost.
const LOST: u32 = 3;

/// What was learned of a mirror's registry.
#[derive(Debug, Default)]
pub struct Learned {
    /// Where blobs are that were brought, and since when.
    blobs: BTreeMap<Digest, (String, Instant)>,
    order: VecDeque<Digest>,
    /// Repositories from which nothing can be taken over, and until when.
    no_mounts: BTreeMap<String, Instant>,
    /// The size of pieces, where no whole is taken.
    piece: Option<u64>,
}

impl Learned {
    fn put(&mut self, digest: &Digest, repository: &str) {
        let at = (repository.to_owned(), Instant::now());
        if self.blobs.insert(digest.clone(), at).is_none() {
            self.order.push_back(digest.clone());
        }
        while self.blobs.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.blobs.remove(&oldest);
        }
    }

    /// Returns in which repository a blob was seen a short time ago.
    fn repository_of(&self, digest: &Digest) -> Option<&str> {
        let (repository, at) = self.blobs.get(digest)?;
        (at.elapsed() < REMEMBERED_FOR).then_some(repository.as_str())
    }

    /// Forgets all that a repository was seen to have: it has shown that it does not.
    pub(super) fn forget(&mut self, repository: &str) {
        self.blobs.retain(|_, (of, _)| of != repository);
        let blobs = &self.blobs;
        self.order.retain(|digest| blobs.contains_key(digest));
    }

    fn may_mount(&self, from: &str) -> bool {
        self.no_mounts
            .get(from)
            .is_none_or(|until| *until <= Instant::now())
    }

    fn no_mount(&mut self, from: &str) {
        if self.no_mounts.len() >= NO_MOUNTS {
            self.no_mounts.clear();
        }
        self.no_mounts
            .insert(from.to_owned(), Instant::now() + NO_MOUNT_FOR);
    }
}

impl Copying<'_> {
    /// Brings every blob of a manifest. Where the mirror told wrongly what it has, it is sent all without being asked.
    pub(super) async fn bring_blobs(&self, manifest: &Manifest, unasked: bool) -> Result<(), Trouble> {
        // Made as they are begun: one manifest may name very many.
        let mut calls = stream::iter(0..manifest.blobs.len())
            .map(|position| self.bring_blob(&manifest.blobs[position], unasked))
            .buffer_unordered(self.settings.blobs);
        while let Some(done) = calls.next().await {
            done?;
        }
        Ok(())
    }

    /// Takes in that a blob is where it should be.
    pub(super) fn blob_done(&self, part: &Part) {
        if self.state().there.insert(part.digest.clone()) {
            self.meter.blobs_done.fetch_add(1, Ordering::Relaxed);
            self.meter.bytes_done.fetch_add(part.size, Ordering::Relaxed);
        }
    }

    async fn bring_blob(&self, part: &Part, unasked: bool) -> Result<(), Trouble> {
        let mirror = &self.job.mirror;
        let flight = mirror.flight(part.digest.to_string());
        let _alone = flight.lock().await;
        if self.state().there.contains(&part.digest) {
            return Ok(());
        }
        let unasked = unasked || self.state().lied_about.contains(&part.digest);
        if !unasked {
            let known = mirror.learned().repository_of(&part.digest) == Some(self.target.repository());
            if known && !self.job.verify || self.is_there(part).await? {
                self.blob_done(part);
                mirror.learned().put(&part.digest, self.target.repository());
                return Ok(());
            }
        }
        let _reading = self.job.upstream.blobs.enter().await;
        let _writing = mirror.blobs.enter().await;
        if Box::pin(self.send(part, unasked)).await? {
            self.blob_done(part);
            mirror.learned().put(&part.digest, self.target.repository());
        }
        Ok(())
    }

    /// Whether a blob is there, where it costs less to ask than to find out by an upload.
    async fn is_there(&self, part: &Part) -> Result<bool, Trouble> {
        if part.size < self.settings.look_from {
            return Ok(false);
        }
        let what = part.digest.to_string();
        self.until(Side::Mirror, Step::Look, &what, || self.target.has(part))
            .await
    }

    /// Sends a blob, or has it taken over. Returns whether it is there then: what may be kept elsewhere need not be.
    async fn send(&self, part: &Part, unasked: bool) -> Result<bool, Trouble> {
        let what = part.digest.to_string();
        let (mut again, mut lost, mut cuts) = (Again::default(), 0, 0);
        let mut may_be_there = false;
        loop {
            if may_be_there {
                // An answer that got lost may have been a good one.
                may_be_there = false;
                let has = self
                    .until(Side::Mirror, Step::Look, &what, || self.target.has(part))
                    .await?;
                if has {
                    self.state().uploaded += 1;
                    return Ok(true);
                }
            }
            // Where it is most likely not there, both registries are asked at once.
            let (begun, opened) = if unasked || self.is_news(part) {
                let (begun, opened) = tokio::join!(self.begin(part, unasked), self.open(part));
                (begun, Some(opened))
            } else {
                (self.begin(part, unasked).await, None)
            };
            let session = match begun {
                Ok(Some(session)) => session,
                Ok(None) => {
                    // More may be there than was thought.
                    self.state().is_new = false;
                    return Ok(true);
                }
                Err(fault) => {
                    self.once_more(&mut again, Side::Mirror, Step::Begin, &what, &fault)
                        .await?;
                    continue;
                }
            };
            let piece = self.job.mirror.learned().piece;
            let opened = match opened {
                Some(opened) => opened,
                None => self.open(part).await,
            };
            let Some(feed) = opened? else {
                return if part.is_foreign {
                    Ok(false)
                } else {
                    Err(self.vanished(&part.digest))
                };
            };
            let given = feed.clone();
            let piece = piece.filter(|piece| *piece < part.size);
            let sent = match piece {
                Some(piece) => self.target.upload_in_pieces(session, part, feed, piece).await,
                None => self.target.upload(session, part, feed).await,
            };
            let Err(fault) = sent else {
                let mut state = self.state();
                state.uploaded += 1;
                state.bytes += part.size;
                return Ok(true);
            };
            if let Fault::Source(fault) = &fault {
                self.once_more(&mut again, Side::Source, Step::Read, &what, fault)
                    .await?;
                continue;
            }
            match verdict(&fault, Step::Upload) {
                Verdict::UploadGone if lost < LOST => {
                    lost += 1;
                    may_be_there = true;
                }
                Verdict::UploadGone => {
                    // Pieces may be what it does not take.
                    self.job.mirror.learned().piece = None;
                    return Err(Trouble {
                        is_passing: true,
                        ..self.trouble(Side::Mirror, Reason::UploadLost, &what, &fault)
                    });
                }
                Verdict::TooLarge => {
                    if !self.smaller_pieces(part, piece) {
                        return Err(self.trouble(Side::Mirror, Reason::BodyTooLarge, &what, &fault));
                    }
                }
                // A token may end while a body is sent.
                Verdict::Never(Reason::Unauthorized) if lost == 0 => {
                    lost += 1;
                    may_be_there = true;
                }
                _ => {
                    self.once_more(&mut again, Side::Mirror, Step::Upload, &what, &fault)
                        .await?;
                    // Whoever cuts connections in the middle, again and again, may not like how much comes, and has said
                    // so before it was heard.
                    let is_cut = matches!(
                        &fault,
                        Fault::Failure(Failure::Unreachable(Unreachable::Reset, _))
                    );
                    cuts += u32::from(is_cut && given.given() > 0);
                    if is_cut && cuts >= 2 {
                        self.smaller_pieces(part, piece);
                    }
                    may_be_there = true;
                }
            }
        }
    }

    /// Whether nothing speaks for it that the mirror has a blob, in this repository or in another one.
    fn is_news(&self, part: &Part) -> bool {
        let is_known = self.job.mirror.learned().repository_of(&part.digest).is_some();
        !is_known && !self.is_same_registry() && self.state().is_new
    }

    /// Begins an upload; none if the blob was taken over from where it is.
    async fn begin(&self, part: &Part, unasked: bool) -> Result<Option<Session>, Fault> {
        let mirror = &self.job.mirror;
        let own = self.target.repository();
        let from = if unasked {
            None
        } else {
            let learned = mirror.learned();
            let known = learned.repository_of(&part.digest);
            // The very repository counts as well: who has the blob says so, and who has not begins an upload, in one
            // request.
            let from = known.or_else(|| self.is_same_registry().then_some(self.source.repository.as_str()));
            let from = from.unwrap_or(own).to_owned();
            Some(from).filter(|from| learned.may_mount(from))
        };
        if let Some(from) = &from {
            match self.target.begin(&part.digest, Some(from)).await? {
                Opened::There => {
                    self.state().mounted += 1;
                    return Ok(None);
                }
                Opened::Upload(session) => return Ok(Some(session)),
                Opened::NoMount => mirror.learned().no_mount(from),
            }
        }
        match self.target.begin(&part.digest, None).await? {
            Opened::Upload(session) => Ok(Some(session)),
            Opened::There | Opened::NoMount => Ok(None),
        }
    }

    /// Whether image and mirror are in one registry.
    fn is_same_registry(&self) -> bool {
        self.source.client.host() == self.target.client().host()
    }

    /// Opens a blob at the source; none if it is not there.
    async fn open(&self, part: &Part) -> Result<Option<Feed>, Trouble> {
        let what = part.digest.to_string();
        let mut again = Again::default();
        loop {
            match self.source.open(part).await {
                Ok(reader) => {
                    let meter = &self.meter.bytes_sent;
                    return Ok(reader.map(|reader| Feed::new(reader, Arc::clone(meter))));
                }
                Err(fault) => {
                    self.once_more(&mut again, Side::Source, Step::Read, &what, &fault)
                        .await?;
                }
            }
        }
    }

    /// Takes in that a body was too long, as a whole or in pieces of this size. Returns whether smaller pieces are left
    /// to be tried.
    fn smaller_pieces(&self, part: &Part, tried: Option<u64>) -> bool {
        let (first, least) = self.settings.pieces;
        let next = match tried {
            Some(piece) => piece / 2,
            None => first.min(part.size / 2),
        };
        if next < least {
            return false;
        }
        let mut learned = self.job.mirror.learned();
        learned.piece = Some(learned.piece.map_or(next, |piece| piece.min(next)));
        true
    }
}
