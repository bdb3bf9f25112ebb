//! Blobs, read piece by piece.

use std::fmt;

use bytes::Bytes;
use reqwest::{Method, StatusCode, header::HeaderValue};
use sha2::digest::DynDigest;
use tokio::time::Instant;

use super::{Client, Inner, auth::Right, manifest, wire::Chunks, within};
use crate::domain::{
    answer::{Ambiguity, Blob, Failure},
    digest::Digest,
};

/// A blob that is being read. Only its end says that all of it was what its digest promises.
pub struct Stream {
    chunks: Chunks,
    digest: Digest,
    /// None once the end was reached.
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
        within(deadline, self.0.blob(repository, digest, deadline)).await
    }

    /// Reads a blob to its end, or until more than `at_most` bytes came. Returns how many came. The digest
    /// is checked only where the end was reached.
    pub async fn beginning(
        &self,
        repository: &str,
        digest: &Digest,
        at_most: u64,
        deadline: Instant,
    ) -> Result<u64, Failure> {
        let read = async {
            let mut blob = self.blob(repository, digest, deadline).await?;
            let mut count = 0;
            while let Some(chunk) = blob.next().await? {
                count += chunk.len() as u64;
                if count > at_most {
                    break;
                }
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
    async fn blob(&self, repository: &str, digest: &Digest, deadline: Instant) -> Result<Stream, Failure> {
        let anything = HeaderValue::from_static("*/*");
        let call = self.call(Method::GET, repository, "blobs", &digest.to_string(), anything)?;
        let right = Right::pull(repository);
        let reply = self.authority.send(&self.wire, &call, right, deadline).await?;
        match reply.status() {
            StatusCode::OK if reply.is_html() => {
                Err(Failure::Ambiguous(Ambiguity::Html(reply.particulars())))
            }
            StatusCode::OK => Ok(Stream {
                chunks: reply.into_chunks(),
                digest: digest.clone(),
                hasher: Some(manifest::hasher(digest.algorithm())),
            }),
            StatusCode::NOT_FOUND => Err(self.not_found(reply).await),
            _ => Err(reply.failure()),
        }
    }
}
