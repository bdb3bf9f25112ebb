//! The bytes of a blob on their way from where they are read to where they are written, as a request's body.
//!
//! One piece at a time is in hand, and the next one is read when the connection has taken it: whoever is slower sets
//! the pace, and no disk is touched.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::stream;
use tokio::time::Instant;

use super::super::{exchange::Fault, source::Reader};

/// What is read piece by piece. Clones are the same feed.
#[derive(Clone)]
pub struct Feed {
    inner: Arc<tokio::sync::Mutex<Inner>>,
    moving: Moving,
    broken: Broken,
    given: Arc<AtomicU64>,
    /// Of all feeds.
    meter: Arc<AtomicU64>,
}

struct Inner {
    reader: Reader,
    /// What was read and not yet asked for.
    rest: Bytes,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").finish_non_exhaustive()
    }
}

/// Whom a body waits for.
#[derive(Clone, Debug)]
pub(super) struct Moving(Arc<Mutex<Waiting>>);

#[derive(Clone, Copy, Debug)]
enum Waiting {
    /// For the source, which has limits of its own.
    Source,
    Target(Instant),
    /// All was sent.
    Answer(Instant),
}

impl Moving {
    fn set(&self, waiting: Waiting) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
    }

    /// Returns since when the target is waited for, if it is, and whether all was sent.
    pub(super) fn target_since(&self) -> (Option<Instant>, bool) {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Waiting::Source => (None, false),
            Waiting::Target(since) => (Some(since), false),
            Waiting::Answer(since) => (Some(since), true),
        }
    }
}

/// Why the source gave no more.
#[derive(Clone, Debug, Default)]
pub(super) struct Broken(Arc<Mutex<Option<Fault>>>);

impl Broken {
    pub(super) fn take(&self) -> Option<Fault> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Feed {
    /// Returns a feed of what a reader reads, which counts what is taken from it.
    pub fn new(reader: Reader, meter: Arc<AtomicU64>) -> Self {
        Self {
            inner: Arc::new(tokio::sync::Mutex::new(Inner {
                reader,
                rest: Bytes::new(),
            })),
            moving: Moving(Arc::new(Mutex::new(Waiting::Target(Instant::now())))),
            broken: Broken::default(),
            given: Arc::default(),
            meter,
        }
    }

    /// Returns how many bytes were taken from it.
    pub fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    pub(super) fn moving(&self) -> Moving {
        self.moving.clone()
    }

    pub(super) fn broken(&self) -> Broken {
        self.broken.clone()
    }

    /// Returns a body of the next so many bytes. One that breaks off ends its connection, so that nobody takes a part
    /// for the whole.
    pub(super) fn body(self, length: u64) -> reqwest::Body {
        self.moving.set(Waiting::Target(Instant::now()));
        let pieces = stream::unfold((self, length), |(feed, left)| async move {
            if left == 0 {
                return None;
            }
            feed.moving.set(Waiting::Source);
            let next = feed.inner.lock().await.next(left).await;
            let now = Instant::now();
            match next {
                Ok(bytes) => {
                    let left = left - bytes.len() as u64;
                    feed.given.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    feed.meter.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    feed.moving.set(if left == 0 {
                        Waiting::Answer(now)
                    } else {
                        Waiting::Target(now)
                    });
                    Some((Ok(bytes), (feed, left)))
                }
                Err(fault) => {
                    feed.moving.set(Waiting::Target(now));
                    *feed.broken.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
                    Some((Err(io::Error::other("the source broke")), (feed, 0)))
                }
            }
        });
        reqwest::Body::wrap_stream(pieces)
    }
}

impl Inner {
    /// Returns the next bytes, at least one and at most so many.
    async fn next(&mut self, at_most: u64) -> Result<Bytes, Fault> {
        while self.rest.is_empty() {
            self.rest = match self.reader.next().await? {
                Some(bytes) => bytes,
                None => return Err(Fault::Wrong("the source ended too early".to_owned())),
            };
        }
        let length = usize::try_from(at_most)
            .unwrap_or(usize::MAX)
            .min(self.rest.len());
        Ok(self.rest.split_to(length))
    }
}
