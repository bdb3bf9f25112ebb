//! Blobs, read piece by piece.

use std::fmt;

use bytes::Bytes;
use reqwest::{Method, StatusCode, header::HeaderValue};
use sha2::digest::DynDigest;
use tokio::time::Instant;

use super::{
    Client, Inner,
    auth::Right,
    manifest,
    wire::{Call, Chunks},
    within,
};
use crate::domain::{
    answer::{Ambiguity, Blob, Failure},
    digest::Digest,
};

/// A blob that is being read. Only its end says that all of it was what its digest promises.
pub struct Stream {
    chunks: Chunks,
    digest: Digest,
    /// None once the end was reached, and where only a part comes.
    hasher: Option<Box<dyn DynDigest + Send>>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// Returns the next piece, none at the end. The caller says how long it may take.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if let Some(chunk) = self.chunks.next().await? {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&chunk);
            }
            return Ok(Some(chunk));
        }
        let read = self.hasher.take();
        match read.map(|hasher| manifest::finish(self.digest.algorithm(), hasher)) {
            Some(read) if read != self.digest => Err(Failure::Ambiguous(Ambiguity::DigestMismatch)),
            _ => Ok(None),
        }
    }
}

impl Client {
    /// Begins to read a blob. The deadline is that of the first answer.
    pub async fn blob(
        &self,
        repository: &str,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Stream, Failure> {
        within(deadline, self.0.blob(repository, digest, None, deadline)).await
    }

    /// Reads the first bytes of a blob, or all if there are not that many. Returns how many came, which may be more
    /// where not everybody on the way sends less than all. The digest is checked only where the end was reached.
    pub async fn beginning(
        &self,
        repository: &str,
        blob: &Blob,
        at_most: u64,
        deadline: Instant,
    ) -> Result<u64, Failure> {
        let read = async {
            let part = (blob.size > at_most).then_some(at_most);
            let stream = self.0.blob(repository, &blob.digest, part, deadline);
            let mut stream = stream.await?;
            let mut count = 0;
            while count < at_most
                && let Some(chunk) = stream.next().await?
            {
                count += chunk.len() as u64;
            }
            Ok(count)
        };
        within(deadline, read).await
    }

    /// Reads a small blob whole.
    pub(super) async fn small(
        &self,
        repository: &str,
        blob: &Blob,
        at_most: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, Failure> {
        let read = async {
            let mut stream = self.blob(repository, &blob.digest, deadline).await?;
            let mut bytes = Vec::new();
            while let Some(chunk) = stream.next().await? {
                if bytes.len() + chunk.len() > at_most {
                    return Err(Failure::Ambiguous(Ambiguity::Oversized));
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(bytes)
        };
        within(deadline, read).await
    }
}

impl Inner {
    /// Begins to read a blob, or so many bytes of its beginning.
    async fn blob(
        &self,
        repository: &str,
        digest: &Digest,
        beginning: Option<u64>,
        deadline: Instant,
    ) -> Result<Stream, Failure> {
        let anything = HeaderValue::from_static("*/*");
        let call = Call {
            beginning,
            ..self.call(Method::GET, repository, "blobs", &digest.to_string(), anything)?
        };
        let right = Right::pull(repository);
        let reply = self.authority.send(&self.wire, &call, right, deadline).await?;
        match reply.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT if reply.is_html() => {
                Err(Failure::Ambiguous(Ambiguity::Html(reply.particulars())))
            }
            StatusCode::OK => Ok(Stream {
                chunks: reply.into_chunks(),
                digest: digest.clone(),
                hasher: Some(manifest::hasher(digest.algorithm())),
            }),
            // No digest is that of a part.
            StatusCode::PARTIAL_CONTENT if beginning.is_some() => Ok(Stream {
                chunks: reply.into_chunks(),
                digest: digest.clone(),
                hasher: None,
            }),
            StatusCode::NOT_FOUND => Err(self.not_found(reply).await),
            _ => Err(reply.failure()),
        }
    }
}
