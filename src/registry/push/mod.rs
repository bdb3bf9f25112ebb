//! Writing to a registry: uploads, mounts and manifests. Who copies uses it, and nobody else; the webhook cannot.
//!
//! An upload is one `POST` and one `PUT` with the length known: no registry refuses that, while some take no
//! pieces at all and some lose the second one in silence. Pieces are for who answers 413 to the whole. What was sent
//! in part is never sent on: an upload that broke is left to the registry, and another one is begun.

pub mod feed;

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::{
    Method, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};
use tokio::time::{Instant, sleep_until};

use self::feed::{Feed, Moving};
use super::{
    Client,
    auth::Right,
    exchange::{Fault, Raw, Room, Wish, faulty_within, refused},
    resolver::Resolver,
    waits::Matter,
    wire::{Content, Reply, Streamed},
};
use crate::domain::{
    answer::Failure,
    copying::Part,
    digest::{Algorithm, Digest},
    foreign::visible,
};

/// How long somebody may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the first line of an answer.
    pub answer: Duration,
    /// Between two pieces of a body.
    pub stall: Duration,
    /// For the answer once a body was sent: storage that moves what it was given takes minutes.
    pub commit: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_mins(1),
            stall: Duration::from_mins(1),
            commit: Duration::from_mins(15),
        }
    }
}

/// One repository to write to.
#[derive(Clone, Debug)]
pub struct Target {
    client: Client,
    repository: String,
    patience: Patience,
    /// For the manifests of one copy, at both sides.
    room: Arc<Room>,
}

/// What became of the wish to upload.
#[derive(Debug)]
pub enum Opened {
    /// It is there without one.
    There,
    Upload(Session),
    /// A mount was refused in a form that leaves no upload behind.
    NoMount,
}

/// An upload that was begun. `Debug` shows nothing: who knows its address may write to it.
pub struct Session {
    url: Url,
    /// What keeps it at one replica, where a load balancer told one.
    cookie: Option<HeaderValue>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// A manifest that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Whether the registry says that it knows what this refers to, which proves nothing.
    pub knows_subject: bool,
}

impl Target {
    /// Returns a repository of a registry; asks nothing yet.
    pub fn new(client: Client, repository: String, patience: Patience) -> Self {
        Self {
            client,
            repository,
            patience,
            room: Arc::new(Room::new()),
        }
    }

    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    /// Returns the repository's name.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the registry's client.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    fn right(&self) -> Right<'_> {
        Right::push(&self.repository)
    }

    fn soon(&self) -> Instant {
        Instant::now() + self.patience.answer
    }

    /// Reads a manifest by tag or digest; none if it is not there, or is not what it says it is: then it has to be
    /// brought anew. Its size is told where an index does.
    pub async fn raw(&self, reference: &str, size: Option<u64>) -> Result<Option<Raw>, Fault> {
        let deadline = self.soon();
        let wish = Wish {
            media_type: None,
            size,
        };
        let raw = self.client.raw(
            self.right(),
            &self.repository,
            reference,
            wish,
            &self.room,
            deadline,
        );
        match raw.await {
            Err(Fault::Wrong(_)) => Ok(None),
            read => read,
        }
    }

    /// Asks for the digest of a manifest by tag or digest; none if it is not there.
    pub async fn digest(&self, reference: &str) -> Result<Option<Digest>, Fault> {
        let deadline = self.soon();
        self.client
            .digest(self.right(), &self.repository, reference, &self.room, deadline)
            .await
    }

    /// Whether the registry says that it has a blob. It may be wrong: some remember what they have lost.
    pub async fn has(&self, blob: &Part) -> Result<bool, Fault> {
        let (inner, deadline) = (&self.client.0, self.soon());
        let ask = async {
            let anything = HeaderValue::from_static("*/*");
            let call = inner.call(
                Method::HEAD,
                &self.repository,
                "blobs",
                &blob.digest.to_string(),
                anything,
            )?;
            let reply = inner
                .authority
                .send(&inner.wire, &call, self.right(), deadline)
                .await?;
            let length: Option<u64> = reply
                .header(header::CONTENT_LENGTH)
                .and_then(|text| text.parse().ok());
            match reply.status().as_u16() {
                200 => Ok(!reply.is_html() && length.is_none_or(|length| length == blob.size)),
                // Whoever cannot tell is sent it.
                400 | 404 | 405 | 501 => Ok(false),
                400..=499 if !reply.direct => Ok(false),
                _ => Err(refused(reply).await),
            }
        };
        faulty_within(deadline, ask).await
    }

    /// Begins an upload, or takes the blob over from a repository of the same registry that may have it.
    pub async fn begin(&self, digest: &Digest, mount_from: Option<&str>) -> Result<Opened, Fault> {
        let (inner, deadline) = (&self.client.0, self.soon());
        let right = match mount_from {
            Some(from) if from != self.repository => Right::mount(&self.repository, from),
            _ => self.right(),
        };
        let ask = async {
            let mut call = inner.uploads(&self.repository)?;
            if let Some(from) = mount_from {
                let mut query = call.url.query_pairs_mut();
                query.append_pair("mount", &digest.to_string());
                query.append_pair("from", from);
            } else if digest.algorithm() != Algorithm::Sha256 {
                // By the newest specification; others do not look at it.
                call.url
                    .query_pairs_mut()
                    .append_pair("digest-algorithm", "sha512");
            }
            let reply = inner.authority.send(&inner.wire, &call, right, deadline).await;
            let reply = match (reply, mount_from) {
                // No token for two repositories, for example. A limit holds for an upload as well.
                (Err(failure), Some(_)) if !matches!(failure, Failure::RateLimited { .. }) => {
                    tracing::debug!(%failure, "no mount");
                    return Ok(Opened::NoMount);
                }
                (reply, _) => reply?,
            };
            match reply.status() {
                StatusCode::CREATED if mount_from.is_some() => Ok(Opened::There),
                StatusCode::ACCEPTED => {
                    let cookie = cookie(&reply);
                    let url = self.location(&reply, reply.response.url()).await?;
                    Ok(Opened::Upload(Session { url, cookie }))
                }
                _ if mount_from.is_some() => Ok(Opened::NoMount),
                _ => Err(refused(reply).await),
            }
        };
        faulty_within(deadline, ask).await
    }

    /// Uploads a blob whole. On success the registry took it under this digest.
    pub async fn upload(&self, session: Session, blob: &Part, feed: Feed) -> Result<(), Fault> {
        let url = with_digest(session.url, &blob.digest);
        let cookie = session.cookie;
        if blob.size == 0 {
            return self.finish(url, cookie).await;
        }
        let reply = self.send(Method::PUT, url, cookie, feed, blob.size, None).await?;
        match reply.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(()),
            _ => Err(refused(reply).await),
        }
    }

    /// Uploads a blob in pieces of so many bytes. On success the registry took it under this digest.
    pub async fn upload_in_pieces(
        &self,
        session: Session,
        blob: &Part,
        feed: Feed,
        piece: u64,
    ) -> Result<(), Fault> {
        let Session { mut url, mut cookie } = session;
        let mut offset = 0;
        while offset < blob.size {
            let length = piece.min(blob.size - offset);
            let range = format!("{offset}-{}", offset + length - 1);
            let sent = self.send(
                Method::PATCH,
                url.clone(),
                cookie.clone(),
                feed.clone(),
                length,
                Some(&range),
            );
            let reply = sent.await?;
            if !matches!(reply.status().as_u16(), 200 | 201 | 202 | 204) {
                return Err(refused(reply).await);
            }
            offset += length;
            // Some take a second piece with a smile and drop it.
            let kept = reply.header(header::RANGE).map(str::to_owned);
            if kept
                .as_deref()
                .is_some_and(|kept| end_of_range(kept) != Some(offset - 1))
            {
                let kept = visible(kept.as_deref().unwrap_or_default()).into_owned();
                return Err(Fault::Lost(format!(
                    "the registry was sent {offset} bytes in pieces and says that it has {kept}"
                )));
            }
            cookie = self::cookie(&reply).or(cookie);
            if reply.header(header::LOCATION).is_some() {
                url = self.location(&reply, &url).await?;
            }
        }
        self.finish(with_digest(url, &blob.digest), cookie).await
    }

    /// Ends an upload of which everything was sent.
    async fn finish(&self, url: Url, cookie: Option<HeaderValue>) -> Result<(), Fault> {
        let (inner, deadline) = (&self.client.0, Instant::now() + self.patience.commit);
        let is_own = url.origin() == inner.base.origin();
        let end = async {
            let mut call = inner.uploads(&self.repository)?;
            call.method = Method::PUT;
            call.url = url;
            call.redirects = 0;
            call.content = Some(Content {
                media_type: Some(HeaderValue::from_static("application/octet-stream")),
                bytes: Bytes::new(),
                cookie: cookie.filter(|_| is_own),
            });
            let reply = if is_own {
                inner
                    .authority
                    .send(&inner.wire, &call, self.right(), deadline)
                    .await?
            } else {
                inner.wire.send(&call, None).await?
            };
            match reply.status() {
                StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(()),
                _ => Err(refused(reply).await),
            }
        };
        faulty_within(deadline, end).await
    }

    /// Sends so many bytes of a feed, and watches that they move. An answer that comes before all are sent counts.
    async fn send(
        &self,
        method: Method,
        url: Url,
        cookie: Option<HeaderValue>,
        feed: Feed,
        length: u64,
        range: Option<&str>,
    ) -> Result<Reply, Fault> {
        let inner = &self.client.0;
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        headers.insert(header::CONTENT_LENGTH, length.into());
        if let Some(range) = range {
            headers.extend(HeaderValue::try_from(range).map(|range| (header::CONTENT_RANGE, range)));
        }
        // Whoever else the registry sends uploads to has been given a signed address, and no business with logins.
        let is_own = url.origin() == inner.base.origin();
        if is_own {
            let pass = faulty_within(self.soon(), async {
                Ok(inner
                    .authority
                    .pass(&inner.wire, self.right(), self.soon())
                    .await?)
            });
            headers.extend(pass.await?.map(|pass| (header::AUTHORIZATION, pass)));
            headers.extend(cookie.map(|cookie| (header::COOKIE, cookie)));
        }
        let moving = feed.moving();
        let broken = feed.broken();
        let sent = inner.wire.stream(Streamed {
            method,
            url,
            headers,
            body: feed.body(length),
            matter: Matter::Repository(self.repository.as_str().into()),
        });
        let reply = self.watched(sent, &moving).await;
        // What the source did is the cause of what the target says then.
        if let Some(fault) = broken.take() {
            return Err(Fault::Source(Box::new(fault)));
        }
        let reply = reply?;
        if is_own && reply.status() == StatusCode::UNAUTHORIZED {
            inner.authority.drop_token(self.right());
        }
        Ok(reply)
    }

    async fn watched(
        &self,
        sent: impl Future<Output = Result<Reply, Failure>>,
        moving: &Moving,
    ) -> Result<Reply, Fault> {
        tokio::pin!(sent);
        loop {
            let (since, limit) = match moving.target_since() {
                (since, true) => (since, self.patience.commit),
                (since, false) => (since, self.patience.stall),
            };
            tokio::select! {
                biased;
                reply = &mut sent => return Ok(reply?),
                () = sleep_until(since.unwrap_or_else(Instant::now) + limit) => {
                    if since.is_some() && moving.target_since().0 == since {
                        return Err(Fault::Stalled(limit));
                    }
                }
            }
        }
    }

    /// Pushes a manifest under a tag or its digest.
    pub async fn put(
        &self,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
        digest: &Digest,
    ) -> Result<Taken, Fault> {
        let inner = &self.client.0;
        let deadline = Instant::now() + self.patience.commit;
        let put = async {
            let anything = HeaderValue::from_static("*/*");
            let mut call = inner.call(Method::PUT, &self.repository, "manifests", reference, anything)?;
            call.redirects = 0;
            call.content = Some(Content {
                media_type: HeaderValue::try_from(media_type).ok(),
                bytes: Bytes::copy_from_slice(bytes),
                cookie: None,
            });
            let reply = inner
                .authority
                .send(&inner.wire, &call, self.right(), deadline)
                .await?;
            // Web servers say 200 to anything.
            if !matches!(reply.status(), StatusCode::CREATED | StatusCode::ACCEPTED) {
                return Err(refused(reply).await);
            }
            let told: Option<Digest> = reply
                .header("docker-content-digest")
                .and_then(|told| told.trim().parse().ok());
            if let Some(told) = told.filter(|told| told.algorithm() == digest.algorithm() && told != digest) {
                return Err(Fault::Wrong(format!(
                    "the registry made {told} of the manifest {digest}"
                )));
            }
            Ok(Taken {
                knows_subject: reply.header("oci-subject").is_some(),
            })
        };
        faulty_within(deadline, put).await
    }

    /// Returns where an upload goes on: by the newest answer alone, with its query as it is.
    async fn location(&self, reply: &Reply, asked: &Url) -> Result<Url, Fault> {
        let wrong = |words: &str| Fault::Wrong(format!("the registry's upload leads nowhere: {words}"));
        let location = reply
            .header(header::LOCATION)
            .ok_or_else(|| wrong("no address"))?;
        let next = asked.join(location).map_err(|_| wrong("no address"))?;
        let base = &self.client.0.base;
        if !matches!(next.scheme(), "https" | "http") || next.scheme() == "http" && base.scheme() == "https" {
            return Err(wrong("from https to plain http"));
        }
        if next.host() != base.host() && is_inside(&next).await && !is_inside(base).await {
            return Err(wrong(
                "to an address inside a network that the registry is not in",
            ));
        }
        Ok(next)
    }
}

/// Whether a URL's host has an address that only those inside a network reach.
async fn is_inside(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return true };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = host.parse::<IpAddr>() {
        return is_private(ip);
    }
    let addresses = Resolver::default().look_up(host).await.unwrap_or_default();
    addresses.iter().any(|address| is_private(address.ip()))
}

fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified()
                // Shared by carriers and clouds (RFC 6598).
                || ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64
        }
        IpAddr::V6(ip) => {
            ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local()
        }
    }
}

/// Returns an address with the digest at the end of its query, which stays as it is.
fn with_digest(mut url: Url, digest: &Digest) -> Url {
    let digest = digest.to_string().replace(':', "%3A");
    let query = match url.query().filter(|query| !query.is_empty()) {
        Some(query) => format!("{query}&digest={digest}"),
        None => format!("digest={digest}"),
    };
    url.set_query(Some(&query));
    url
}

/// Returns the last position in a `Range` such as `0-99`, which some write with `bytes=`.
fn end_of_range(range: &str) -> Option<u64> {
    let range = range.trim();
    let range = range
        .strip_prefix("bytes=")
        .or_else(|| range.strip_prefix("bytes "))
        .unwrap_or(range);
    range.split('/').next()?.split_once('-')?.1.parse().ok()
}

/// Returns the cookies of an answer, as they are shown to who set them.
fn cookie(reply: &Reply) -> Option<HeaderValue> {
    let pairs = reply.response.headers().get_all(header::SET_COOKIE);
    let pairs = pairs
        .iter()
        .filter_map(|value| value.to_str().ok()?.split(';').next());
    let all = pairs.collect::<Vec<_>>().join("; ");
    let mut value = HeaderValue::try_from(all)
        .ok()
        .filter(|value| !value.is_empty() && value.len() < 4096)?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_comes_last_and_the_query_stays() {
        let digest: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        let of = |url: &str| with_digest(Url::parse(url).unwrap(), &digest).to_string();
        let hex = "0".repeat(64);
        assert_eq!(of("http://a/u"), format!("http://a/u?digest=sha256%3A{hex}"));
        assert_eq!(
            of("http://a/u?_state=a%2Bb%3D%3D&x"),
            format!("http://a/u?_state=a%2Bb%3D%3D&x&digest=sha256%3A{hex}")
        );
    }

    #[test]
    fn ranges_are_read_in_every_form() {
        for (range, end) in [
            ("0-99", Some(99)),
            ("bytes=0-99", Some(99)),
            ("0-99/100", Some(99)),
            ("0", None),
        ] {
            assert_eq!(end_of_range(range), end, "{range}");
        }
    }

    #[test]
    fn addresses_inside_are_known() {
        for (ip, expected) in [
            ("127.0.0.1", true),
            ("10.1.2.3", true),
            ("169.254.169.254", true),
            ("100.64.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("fd00::1", true),
            ("8.8.8.8", false),
            ("100.128.0.1", false),
            ("2600::1", false),
        ] {
            assert_eq!(is_private(ip.parse().unwrap()), expected, "{ip}");
        }
    }
}
