//! A blob read from where it comes from, to its end, whatever breaks on the way.
//!
//! A body that breaks off goes on where it stopped: the registry is asked again, because an address that it redirects
//! to is good for a while only. The hash goes on as well. The last piece is given out only when size and digest are
//! right, so that who passes it on has nothing whole in hand that is wrong.

use std::{fmt, time::Duration};

use bytes::Bytes;
use reqwest::{
    Method, StatusCode,
    header::{self, HeaderValue},
};
use sha2::digest::DynDigest;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Client,
    auth::Right,
    exchange::{Fault, faulty_within, found},
    manifest,
    wire::{Call, Chunks, Reply},
};
use crate::domain::{
    copying::{Part, Step, Verdict},
    digest::Digest,
};

/// How often a body may break before this much more of it came.
const BREAKS: u32 = 10;
const PROGRESS: u64 = 16 * 1024 * 1024;

/// The longest pause before going on, and the first one; each further one is twice as long.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// One repository to read from.
#[derive(Clone, Debug)]
pub struct Source {
    pub client: Client,
    pub repository: String,
    /// For the first line of an answer.
    pub answer: Duration,
    /// Between two pieces of a body.
    pub stall: Duration,
    /// The first pause before going on.
    pub pause: Duration,
}

/// A blob that is being read.
pub struct Reader {
    source: Source,
    digest: Digest,
    size: u64,
    /// How much was given out or is in hand.
    offset: u64,
    hasher: Option<Box<dyn DynDigest + Send>>,
    body: Option<Chunks>,
    /// What comes again although it was not asked for.
    skip: u64,
    breaks: u32,
    /// Where the first of these breaks was.
    broke_at: u64,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("digest", &self.digest)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

impl Source {
    pub(super) fn right(&self) -> Right<'_> {
        Right::pull(&self.repository)
    }

    /// Begins to read a blob; none if it is not there.
    pub async fn open(&self, blob: &Part) -> Result<Option<Reader>, Fault> {
        let mut reader = Reader {
            source: self.clone(),
            digest: blob.digest.clone(),
            size: blob.size,
            offset: 0,
            hasher: Some(manifest::hasher(blob.digest.algorithm())),
            body: None,
            skip: 0,
            breaks: 0,
            broke_at: 0,
        };
        let Some(reply) = reader.ask().await? else {
            return Ok(None);
        };
        reader.begin(reply)?;
        Ok(Some(reader))
    }
}

impl Reader {
    /// Returns the next piece, never an empty one, none at the end. The last one is given out when the whole is what
    /// was promised.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        while self.offset < self.size {
            let Some(body) = &mut self.body else {
                self.go_on().await?;
                continue;
            };
            let fault = match timeout(self.source.stall, body.next()).await {
                Ok(Ok(Some(mut piece))) => {
                    let again = self.skip.min(piece.len() as u64);
                    self.skip -= again;
                    drop(piece.split_to(usize::try_from(again).unwrap_or(usize::MAX)));
                    if piece.is_empty() {
                        continue;
                    }
                    return self.take(piece).await.map(Some);
                }
                Ok(Ok(None)) => Fault::Wrong("the body ended too early".to_owned()),
                Ok(Err(failure)) => failure.into(),
                Err(_) => Fault::Stalled(self.source.stall),
            };
            self.broke(fault)?;
        }
        Ok(None)
    }

    async fn take(&mut self, piece: Bytes) -> Result<Bytes, Fault> {
        self.offset += piece.len() as u64;
        if self.offset > self.size {
            return Err(self.wrong("it is longer"));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&piece);
        }
        if self.offset == self.size {
            let hasher = self.hasher.take();
            let found = hasher.map(|hasher| manifest::finish(self.digest.algorithm(), hasher));
            if found.as_ref() != Some(&self.digest) {
                return Err(self.wrong("it has another digest"));
            }
            // That it was the end, the end tells; that it comes, nobody has to wait for long.
            if let Some(body) = &mut self.body
                && let Ok(Ok(Some(more))) = timeout(self.source.stall, body.next()).await
                && !more.is_empty()
            {
                return Err(self.wrong("it is longer"));
            }
            self.body = None;
        }
        Ok(piece)
    }

    fn wrong(&self, what: &str) -> Fault {
        Fault::Wrong(format!(
            "what came from {} for {} is something else than that: {what}",
            self.source.client.host(),
            self.digest
        ))
    }

    /// Takes in that the body broke off. Fails when it did so too often.
    fn broke(&mut self, fault: Fault) -> Result<(), Fault> {
        self.body = None;
        if self.offset - self.broke_at >= PROGRESS {
            self.breaks = 0;
        }
        if self.breaks == 0 {
            self.broke_at = self.offset;
        }
        self.breaks += 1;
        if self.breaks > BREAKS {
            return Err(fault);
        }
        tracing::debug!(digest = %self.digest, offset = self.offset, %fault, "a blob broke off");
        Ok(())
    }

    /// Asks for the rest, after a pause.
    async fn go_on(&mut self) -> Result<(), Fault> {
        let pause = self
            .source
            .pause
            .saturating_mul(1 << (self.breaks.saturating_sub(1)).min(10));
        sleep(pause.min(LONGEST_PAUSE)).await;
        let begun = match self.ask().await {
            Ok(Some(reply)) => self.begin(reply),
            Ok(None) => Err(Fault::Wrong("it is gone".to_owned())),
            Err(fault) => Err(fault),
        };
        let Err(fault) = begun else { return Ok(()) };
        match verdict(&fault, Step::Read) {
            Verdict::Wait(wait) => {
                sleep(wait.unwrap_or(LONGEST_PAUSE).min(Duration::from_mins(5))).await;
                self.broke(fault)
            }
            Verdict::Again(_) => self.broke(fault),
            _ => Err(fault),
        }
    }

    async fn ask(&mut self) -> Result<Option<Reply>, Fault> {
        let Source {
            client,
            repository,
            answer,
            ..
        } = &self.source;
        let (inner, deadline) = (&client.0, Instant::now() + *answer);
        let ask = async {
            let anything = HeaderValue::from_static("*/*");
            let call = Call {
                from: self.offset,
                ..inner.call(
                    Method::GET,
                    repository,
                    "blobs",
                    &self.digest.to_string(),
                    anything,
                )?
            };
            let reply = inner
                .authority
                .send(&inner.wire, &call, self.source.right(), deadline)
                .await?;
            found(inner, reply).await
        };
        faulty_within(deadline, ask).await
    }

    /// Takes a body whose headers are there.
    fn begin(&mut self, reply: Reply) -> Result<(), Fault> {
        let from = match reply.status() {
            StatusCode::PARTIAL_CONTENT => reply.header(header::CONTENT_RANGE).and_then(start_of_range),
            _ => Some(0),
        };
        // Who ignores what was asked for begins at the beginning; who answers for another part is no help.
        let Some(from) = from.filter(|from| *from <= self.offset) else {
            return Err(Fault::Wrong(
                "another part came than the one asked for".to_owned(),
            ));
        };
        self.skip = self.offset - from;
        self.body = Some(reply.into_chunks());
        Ok(())
    }
}

/// Returns the first position in `bytes 10-99/100`, whose total may be unknown.
fn start_of_range(range: &str) -> Option<u64> {
    range
        .trim()
        .strip_prefix("bytes ")?
        .split_once('-')?
        .0
        .trim()
        .parse()
        .ok()
}

/// Returns what to make of a fault.
pub(super) fn verdict(fault: &Fault, step: Step) -> Verdict {
    use crate::domain::{
        answer::{Failure, Unreachable},
        copying::Reason,
    };
    match fault {
        Fault::Source(fault) => verdict(fault, Step::Read),
        Fault::Refused(refusal, _) => refusal.verdict(step),
        Fault::Stalled(_) if matches!(step, Step::Read | Step::Look) => Verdict::Again(Reason::Unreachable),
        Fault::Stalled(_) => Verdict::Again(Reason::MirrorNotWritable),
        Fault::Lost(_) => Verdict::UploadGone,
        Fault::Wrong(_) => Verdict::Never(Reason::DigestMismatch),
        Fault::Failure(failure) => match failure {
            Failure::Missing => Verdict::Missing,
            Failure::Unauthorized if step == Step::Read => Verdict::Never(Reason::SourceUnauthorized),
            Failure::Unauthorized => Verdict::Never(Reason::Unauthorized),
            Failure::RateLimited { retry_after, .. } => Verdict::Wait(*retry_after),
            Failure::ServerError(..) => Verdict::Again(Reason::RegistryError),
            Failure::Unreachable(Unreachable::Tls, _) => Verdict::Never(Reason::Unreachable),
            Failure::Unreachable(..) => Verdict::Again(Reason::Unreachable),
            Failure::Ambiguous(_) => Verdict::Never(Reason::RegistryError),
        },
    }
}
