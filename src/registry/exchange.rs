//! What copying says to registries and hears from them, beyond what a look needs: manifests as the bytes that they
//! are, and refusals with all that they tell.

use std::{fmt, sync::Arc, time::Duration};

use reqwest::{
    Method, StatusCode,
    header::{self, HeaderValue},
};
use serde_json::Value;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout},
};

use super::{
    ACCEPT, Client, Inner,
    auth::Right,
    is_page, manifest,
    wire::{self, Call, Reply, asked_wait},
    within,
};
use crate::domain::{
    answer::{Ambiguity, Failure},
    copying::{
        Refusal,
        manifest::{MANIFEST_BYTES, OCI_INDEX},
    },
    digest::{Algorithm, Digest},
    foreign::visible,
};

/// How much stands in a reason of what a registry says.
const WORDS: usize = 200;

/// How many codes and digests of one error body are read.
const NAMED: usize = 256;

/// How long the body of a refusal is waited for.
const WORDS_PATIENCE: Duration = Duration::from_secs(2);

/// Why something did not come to pass.
#[derive(Clone, Debug)]
pub enum Fault {
    /// No HTTP answer, a wait that is not over, or nothing to authenticate with.
    Failure(Failure),
    /// An answer that is not the one wanted, and the digests that it names.
    Refused(Refusal, Vec<Digest>),
    /// Nothing moved for so long.
    Stalled(Duration),
    /// Something came that is not what it should be.
    Wrong(String),
    /// An upload is not what it should be by now.
    Lost(String),
    /// What was being sent could not be read to its end.
    Source(Box<Self>),
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failure(failure) => failure.fmt(f),
            Self::Refused(refusal, _) => {
                write!(f, "{}", refusal.status)?;
                for code in refusal.codes.iter().take(3) {
                    write!(f, " {code}")?;
                }
                if !refusal.words.is_empty() {
                    write!(f, ": {}", refusal.words)?;
                }
                Ok(())
            }
            Self::Stalled(limit) => write!(f, "nothing moved for {limit:?}"),
            Self::Wrong(words) | Self::Lost(words) => f.write_str(words),
            Self::Source(fault) => fault.fmt(f),
        }
    }
}

/// A manifest as it was sent. Its digest is that of its bytes.
#[derive(Clone, Debug)]
pub struct Raw {
    /// As the header says.
    pub media_type: Option<String>,
    pub bytes: Arc<[u8]>,
    pub digest: Digest,
}

/// What is known of a manifest before it is read, by the index that lists it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wish<'w> {
    pub(super) media_type: Option<&'w str>,
    /// How many bytes it has.
    pub(super) size: Option<u64>,
}

/// Bounds how many bytes of manifests one copy reads at once, however many it asks for: those of one that is as long as
/// any may be.
#[derive(Debug)]
pub(super) struct Room(Semaphore);

impl Room {
    /// What room is given in.
    const UNIT: usize = 1024;

    pub(super) fn new() -> Self {
        Self(Semaphore::new(MANIFEST_BYTES / Self::UNIT))
    }

    /// Waits for room for a body, of the length that it is told to have; none only where the room was closed, which nobody does.
    async fn take(&self, told: Option<u64>, at_most: usize) -> Option<SemaphorePermit<'_>> {
        let at_most = at_most.min(MANIFEST_BYTES);
        let bytes = told.map_or(at_most, |told| {
            at_most.min(usize::try_from(told).unwrap_or(at_most))
        });
        let units = bytes.div_ceil(Self::UNIT).max(1);
        self.0.acquire_many(u32::try_from(units).ok()?).await.ok()
    }
}

/// Returns what a refusal says.
pub(super) async fn refused(reply: Reply) -> Fault {
    let status = reply.status().as_u16();
    let (is_elsewhere, is_html) = (!reply.direct, reply.is_html());
    let retry_after = asked_wait(reply.response.headers());
    let url = reply.response.url();
    let asked = format!("{}?{}", url.path(), url.query().unwrap_or_default()).into();
    let body = timeout(WORDS_PATIENCE, reply.body(wire::ERROR_BYTES)).await;
    let body = body.ok().and_then(Result::ok).unwrap_or_default();
    let (mut codes, mut words, mut named) = (Vec::new(), Vec::new(), Vec::new());
    let errors = serde_json::from_slice::<Value>(&body).ok();
    for error in errors
        .iter()
        .filter_map(|body| body.get("errors")?.as_array())
        .flatten()
        .take(NAMED)
    {
        let text = |key: &str| error.get(key).and_then(Value::as_str);
        codes.extend(text("code").map(wire::for_people));
        words.extend(text("message").map(str::to_owned));
        if let Some(detail) = error.get("detail") {
            // Some say there what they mean, and some what they miss.
            words.extend(detail.as_str().map(str::to_owned));
            digests(detail, &mut named);
        }
    }
    if codes.is_empty() && words.is_empty() && !is_html && !is_page(&body) {
        words.push(String::from_utf8_lossy(&body).trim().to_owned());
    }
    let words = if is_html || is_page(&body) {
        "a page in HTML".to_owned()
    } else {
        words.join("; ")
    };
    let refusal = Refusal {
        status,
        codes,
        words: visible(&words).chars().take(WORDS).collect::<String>().into(),
        asked,
        retry_after,
        is_elsewhere,
    };
    Fault::Refused(refusal, named)
}

/// Collects the digests in what an error says in detail, whatever form that has.
fn digests(detail: &Value, found: &mut Vec<Digest>) {
    match detail {
        Value::String(text) if found.len() < NAMED => found.extend(text.parse::<Digest>().ok()),
        Value::Array(values) => values.iter().for_each(|value| digests(value, found)),
        Value::Object(values) => values.values().for_each(|value| digests(value, found)),
        _ => {}
    }
}

/// Returns the digest of bytes.
pub(super) fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut hasher = manifest::hasher(algorithm);
    hasher.update(bytes);
    manifest::finish(algorithm, hasher)
}

/// Returns what is accepted: all known types, and the one that an index names.
fn accept(media_type: Option<&str>) -> HeaderValue {
    let accepted = ACCEPT;
    let known = accepted.to_str().unwrap_or_default();
    let artifact = "application/vnd.oci.artifact.manifest.v1+json";
    let named = media_type.filter(|media_type| !known.contains(media_type) && *media_type != artifact);
    let all = match named {
        Some(named) => format!("{named}, {known}, {artifact}"),
        None => format!("{known}, {artifact}"),
    };
    HeaderValue::try_from(all).unwrap_or(ACCEPT)
}

impl Client {
    /// Reads a manifest by tag or digest; none if it is not there. One of another size than was wished for is wrong, and
    /// is not read any further.
    pub(super) async fn raw(
        &self,
        right: Right<'_>,
        repository: &str,
        reference: &str,
        wish: Wish<'_>,
        room: &Room,
        deadline: Instant,
    ) -> Result<Option<Raw>, Fault> {
        let inner = &self.0;
        let read = async {
            let call = inner.call(
                Method::GET,
                repository,
                "manifests",
                reference,
                accept(wish.media_type),
            )?;
            let reply = inner.authority.send(&inner.wire, &call, right, deadline).await?;
            let Some(reply) = found(inner, reply).await? else {
                return Ok(None);
            };
            let sent_as = reply.content_type().map(str::to_owned);
            let told: Option<Digest> = reply
                .header("docker-content-digest")
                .and_then(|told| told.trim().parse().ok());
            let other_size = || Fault::Wrong(format!("a manifest came that has not the size of {reference}"));
            let told_size = reply.response.content_length();
            if let (Some(size), Some(told)) = (wish.size, told_size)
                && size != told
            {
                return Err(other_size());
            }
            let size = wish.size.and_then(|size| usize::try_from(size).ok());
            let at_most = size.unwrap_or(MANIFEST_BYTES).min(MANIFEST_BYTES);
            let _room = room.take(told_size, at_most).await;
            let bytes = match reply.body(at_most).await {
                Err(Failure::Ambiguous(Ambiguity::Oversized)) if at_most < MANIFEST_BYTES => {
                    return Err(other_size());
                }
                read => read?,
            };
            if size.is_some_and(|size| size != bytes.len()) {
                return Err(other_size());
            }
            let asked: Option<Digest> = reference.parse().ok();
            let algorithm = asked
                .as_ref()
                .or(told.as_ref())
                .map_or(Algorithm::Sha256, Digest::algorithm);
            let digest = digest_of(algorithm, &bytes);
            if let Some(promised) = asked.or(told)
                && promised != digest
            {
                return Err(Fault::Wrong(format!(
                    "a manifest came that has not the digest {promised}"
                )));
            }
            Ok(Some(Raw {
                media_type: sent_as,
                bytes: bytes.as_ref().into(),
                digest,
            }))
        };
        faulty_within(deadline, read).await
    }

    /// Asks for the digest of a manifest by tag or digest; none if it is not there.
    pub(super) async fn digest(
        &self,
        right: Right<'_>,
        repository: &str,
        reference: &str,
        room: &Room,
        deadline: Instant,
    ) -> Result<Option<Digest>, Fault> {
        let inner = &self.0;
        let by_get = || async {
            let raw = self
                .raw(right, repository, reference, Wish::default(), room, deadline)
                .await?;
            Ok(raw.map(|raw| raw.digest))
        };
        if !inner.heads.may_ask() {
            return by_get().await;
        }
        let asked = faulty_within(deadline, async {
            let call = inner.call(Method::HEAD, repository, "manifests", reference, accept(None))?;
            Ok(inner.authority.send(&inner.wire, &call, right, deadline).await?)
        });
        let reply = asked.await?;
        match reply.status() {
            StatusCode::OK => {
                let told = reply
                    .header("docker-content-digest")
                    .and_then(|told| told.trim().parse().ok());
                match told {
                    Some(digest) if !reply.is_html() => Ok(Some(digest)),
                    _ => by_get().await,
                }
            }
            StatusCode::NOT_FOUND if reply.direct => Ok(None),
            // What cannot be asked so may be asked otherwise; what else is wrong is told in a body.
            _ => by_get().await,
        }
    }

    /// Reads a list of what refers to a manifest, a page of it; none if this registry has no such lists.
    pub(super) async fn referrers(
        &self,
        right: Right<'_>,
        repository: &str,
        digest: &Digest,
        page: Option<&str>,
        room: &Room,
        deadline: Instant,
    ) -> Result<Option<(Vec<u8>, Option<String>)>, Fault> {
        let inner = &self.0;
        let read = async {
            let accept = HeaderValue::from_static(OCI_INDEX);
            let mut call = inner.call(Method::GET, repository, "referrers", &digest.to_string(), accept)?;
            if let Some(page) = page {
                let next = call
                    .url
                    .join(page)
                    .ok()
                    .filter(|next| next.origin() == call.url.origin());
                call.url = next.ok_or_else(|| Fault::Wrong("the next page is on another host".to_owned()))?;
            }
            let reply = inner.authority.send(&inner.wire, &call, right, deadline).await?;
            if reply.status() != StatusCode::OK {
                return match reply.status().as_u16() {
                    400 | 404 | 405 | 406 | 501 => Ok(None),
                    _ => Err(refused(reply).await),
                };
            }
            if reply.content_type() != Some(OCI_INDEX) {
                return Ok(None);
            }
            let next = reply.header(header::LINK).and_then(next_page).map(str::to_owned);
            let _room = room.take(reply.response.content_length(), MANIFEST_BYTES).await;
            Ok(Some((reply.body(MANIFEST_BYTES).await?.to_vec(), next)))
        };
        faulty_within(deadline, read).await
    }
}

/// Returns where the next page is (RFC 8288), by a header `<address>; rel="next"`.
fn next_page(link: &str) -> Option<&str> {
    link.split(',').find_map(|link| {
        let (address, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = |parameter: &str| {
            let parameter = parameter.trim();
            parameter.eq_ignore_ascii_case("rel=next") || parameter.eq_ignore_ascii_case("rel=\"next\"")
        };
        parameters.split(';').any(is_next).then_some(address)
    })
}

/// Returns an answer that has something; none where nothing is there.
pub(super) async fn found(inner: &Inner, reply: Reply) -> Result<Option<Reply>, Fault> {
    match reply.status() {
        StatusCode::OK if reply.is_html() => Err(refused(reply).await),
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(Some(reply)),
        StatusCode::NOT_FOUND => match inner.not_found(reply).await {
            Failure::Missing => Ok(None),
            other => Err(other.into()),
        },
        _ => Err(refused(reply).await),
    }
}

/// Ends a call at a deadline.
pub(super) async fn faulty_within<T>(
    deadline: Instant,
    call: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    within(deadline, async { Ok(call.await) }).await?
}

impl Inner {
    /// Returns a call about uploads of a repository.
    pub(super) fn uploads(&self, repository: &str) -> Result<Call, Failure> {
        let anything = HeaderValue::from_static("*/*");
        let mut call = self.call(Method::POST, repository, "blobs", "uploads", anything)?;
        // Proxies that take the last slash away break uploads, so it must be there.
        call.url.set_path(&format!("{}/", call.url.path()));
        call.content = Some(wire::Content {
            media_type: None,
            bytes: bytes::Bytes::new(),
            cookie: None,
        });
        Ok(call)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn no_more_is_read_at_once_than_one_manifest_may_have() {
        let room = Room::new();
        let take = |told, at_most| room.take(told, at_most).now_or_never().map(Option::unwrap);
        let half = MANIFEST_BYTES as u64 / 2;
        let first = take(Some(half), MANIFEST_BYTES).unwrap();
        // What tells no length may have any.
        assert!(take(None, MANIFEST_BYTES).is_none());
        let second = take(None, MANIFEST_BYTES / 2).unwrap();
        assert!(take(Some(0), 1).is_none());
        drop((first, second));
        // More than is read at all takes no more than there is.
        assert!(take(Some(u64::MAX), usize::MAX).is_some());
    }

    #[test]
    fn the_next_page_is_where_the_link_says() {
        for (link, expected) in [
            (
                "</v2/a/referrers/x?n=1>; rel=\"next\"",
                Some("/v2/a/referrers/x?n=1"),
            ),
            ("<https://a/x>;rel=next", Some("https://a/x")),
            ("<a>; rel=\"prev\", <b>; title=x; rel=next", Some("b")),
            ("<a>; rel=prev", None),
            ("a; rel=next", None),
        ] {
            assert_eq!(next_page(link), expected, "{link}");
        }
    }
}
