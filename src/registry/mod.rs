//! A client of the OCI distribution API that looks: ping, manifests, blobs. What copies stands apart, in [`copy`] and
//! what it uses.
//!
//! It makes sure that `Exists` is said of nothing but a manifest that is there under the digest asked
//! for; everything else is told apart for those who keep watch over health. Every call ends at the
//! deadline that its caller gives, and leaves neither task nor connection attempt behind. No secret
//! stands in any `Debug`, error or log line. The process installs rustls' crypto provider first.

mod auth;
pub mod blob;
mod certificate;
pub mod copy;
pub mod exchange;
mod heads;
mod held;
pub mod look;
mod manifest;
pub mod pace;
pub mod pool;
pub mod push;
mod resolver;
pub mod source;
mod trust;
mod waits;
mod wire;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::{
    Method, StatusCode, Url,
    header::{self, HeaderValue},
};
use rustls::pki_types::{
    CertificateDer,
    pem::{self, PemObject as _},
};
use tokio::time::{Instant, timeout_at};

pub use self::held::Held;
use self::{
    auth::{Authority, Right},
    heads::Heads,
    held::Door,
    waits::Matter,
    wire::{Call, ErrorBody, REDIRECTS, Reply, Wire},
};
pub use crate::credentials::Credentials;
use crate::domain::{
    answer::{Ambiguity, Answer, Failure, Manifest, MediaType, Particulars, Unreachable},
    digest::Digest,
    mirror::Trust,
};

/// The longest manifest that is read: what containerd reads. A node could not pull a longer one.
pub const MANIFEST_BYTES: usize = 4 * 1048 * 1048;

/// How much of a blob tells whether data comes, and fast enough.
pub const SAMPLE_BYTES: u64 = 64 * 1024;

/// How requests name this program.
const USER_AGENT: &str = concat!("kagami/", env!("CARGO_PKG_VERSION"));

/// The header by which registries make themselves known.
const API_VERSION: &str = "docker-distribution-api-version";

/// How long it is known whether a registry answers.
const KNOWN_FOR: Duration = Duration::from_mins(1);

/// The codes by which a registry says that nothing can be there under such a name (distribution-spec, error
/// codes).
const NO_SUCH_NAME: [&str; 4] = ["NAME_INVALID", "NAME_UNKNOWN", "TAG_INVALID", "DIGEST_INVALID"];

/// All four types, always: without them distribution 2.8 answers 404 for what it holds, or with
/// another manifest.
const ACCEPT: HeaderValue = HeaderValue::from_static(
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json",
);

/// Where a registry is and what it takes to talk to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `https://host[:port]`, or `http://host[:port]` for plain HTTP.
    pub url: String,
    /// The certificates to trust, in PEM; those of the system if absent.
    pub ca_bundle: Option<Vec<u8>>,
    /// Whether they alone are trusted at the endpoint itself. At other hosts that it names the system's
    /// are trusted too.
    pub trust: Trust,
    /// What it is asked with at first.
    pub credentials: Option<Credentials>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nobody has checked yet that the URL holds no password.
        let url = if self.url.contains('@') { "…" } else { &self.url };
        f.debug_struct("Endpoint")
            .field("url", &url)
            .finish_non_exhaustive()
    }
}

/// Why an endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the endpoint is no URL of the form https://host[:port]")]
    Url,
    #[error("the endpoint's URL holds credentials, which belong into a Secret")]
    UrlWithCredentials,
    #[error("the endpoint's CA bundle holds no certificate")]
    NoCertificate,
    #[error("cannot read the endpoint's CA bundle")]
    CaBundle(#[source] pem::Error),
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    #[error("cannot set up HTTP")]
    Http(#[source] reqwest::Error),
}

/// A client of one endpoint. Clones share its connections, credentials, tokens, and the waits asked of it.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    base: Url,
    wire: Wire,
    door: Door,
    authority: Authority,
    heads: Heads,
    /// Whether a registry answered `/v2/`, and when it was asked.
    registry: Mutex<Option<(bool, Instant)>>,
    /// Held while that is being asked for the sake of something else, so that one asks for all.
    asking: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoint", &self.0.base.as_str())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Returns a client; connects to nothing yet.
    pub fn new(endpoint: &Endpoint) -> Result<Self, Error> {
        let base = Url::parse(&endpoint.url).map_err(|_| Error::Url)?;
        if !base.username().is_empty() || base.password().is_some() {
            return Err(Error::UrlWithCredentials);
        }
        let plain = base.path() == "/" && base.query().is_none() && base.fragment().is_none();
        if !matches!(base.scheme(), "https" | "http") || !plain {
            return Err(Error::Url);
        }
        let bundle = match &endpoint.ca_bundle {
            None => Vec::new(),
            Some(pem) => {
                let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
                match certificates.map_err(Error::CaBundle)? {
                    certificates if certificates.is_empty() => return Err(Error::NoCertificate),
                    certificates => certificates,
                }
            }
        };
        let tls = trust::config(&base, bundle, endpoint.trust).map_err(Error::Tls)?;
        Ok(Self(Arc::new(Inner {
            wire: Wire::new(tls.clone()).map_err(Error::Http)?,
            door: Door::new(base.clone(), tls),
            authority: Authority::new(base.clone(), endpoint.credentials.as_ref()),
            heads: Heads::default(),
            registry: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            base,
        })))
    }

    /// Whether the other one is a clone of this client, and so talks to the same endpoint in the same way.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns the host that is asked, with its port.
    pub fn host(&self) -> &str {
        let base = self.0.base.as_str();
        base.split_once("://")
            .map_or(base, |(_, host)| host.trim_end_matches('/'))
    }

    /// Asks with these credentials from now on, or with none; from `until` on, if there is such a time, with
    /// none. Tokens that others were given are dropped, and so are limits of their tokens.
    pub fn set_credentials(&self, credentials: Option<&Credentials>, until: Option<Instant>) {
        if self.0.authority.set_credentials(credentials, until) {
            self.0.wire.forget_limits_of_tokens();
        }
    }

    /// Whether there are credentials to ask with now.
    pub fn has_credentials(&self) -> bool {
        self.0.authority.has_credentials()
    }

    /// Asks whether a registry is there, with authentication if there are credentials.
    ///
    /// `Unauthorized` means alive: there is a registry, which wants credentials or other ones. `Missing`
    /// is never returned: whoever has no `/v2/` is no registry.
    pub async fn ping(&self, deadline: Instant) -> Result<(), Failure> {
        within(deadline, self.0.ping(false, deadline)).await
    }

    /// Asks likewise, over a connection of its own, as nodes do: one that is kept goes on where no new one
    /// would be opened, as with a certificate that has ended since.
    pub async fn ping_anew(&self, deadline: Instant) -> Result<(), Failure> {
        within(deadline, self.0.ping(true, deadline)).await
    }

    /// Opens a connection that is held, so that its end is noticed; none if there is none to be had by the
    /// deadline, or if the endpoint keeps no connections open.
    pub async fn hold(&self, deadline: Instant) -> Option<Held> {
        self.0.door.hold(deadline).await
    }

    /// Looks for a manifest by tag or digest, by its headers where they suffice.
    pub async fn head(&self, repository: &str, reference: &str, deadline: Instant) -> Answer {
        within(deadline, self.0.head(repository, reference, deadline))
            .await
            .into()
    }

    /// Reads a manifest by tag or digest, with the entries of an index or a blob of a single manifest.
    pub async fn get(&self, repository: &str, reference: &str, deadline: Instant) -> Answer {
        within(deadline, self.0.get(repository, reference, deadline))
            .await
            .into()
    }
}

async fn within<T>(deadline: Instant, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout_at(deadline, call)
        .await
        .unwrap_or_else(|_| Err(Failure::Unreachable(Unreachable::Timeout, Particulars::default())))
}

impl Inner {
    async fn ping(&self, anew: bool, deadline: Instant) -> Result<(), Failure> {
        let call = Call {
            anew,
            ..self.authority.ping_call()
        };
        let (mut reply, is_registry) = self.knock(&call).await?;
        if reply.status() == StatusCode::UNAUTHORIZED {
            let met = self.authority.challenged(&reply);
            if !is_registry {
                return Err(Failure::Ambiguous(Ambiguity::Status(401, reply.particulars())));
            }
            met?;
            if !self.authority.has_credentials() {
                return Err(Failure::Unauthorized);
            }
            reply = Box::pin(self.authority.send(&self.wire, &call, Right::NONE, deadline)).await?;
            if reply.status() == StatusCode::FORBIDDEN {
                return Err(Failure::Unauthorized);
            }
        } else if reply.status() == StatusCode::FORBIDDEN {
            // No registry forbids `/v2/` without asking for credentials: something in between does.
            return Err(Failure::Ambiguous(Ambiguity::Status(403, reply.particulars())));
        }
        if reply.status() != StatusCode::OK {
            return Err(reply.failure());
        }
        let (html, particulars) = (reply.is_html(), reply.particulars());
        let body = reply.body(wire::ERROR_BYTES).await?;
        if html || is_page(&body) {
            return Err(Failure::Ambiguous(Ambiguity::Html(particulars)));
        }
        self.authority.opened();
        Ok(())
    }

    /// Asks `/v2/` without authentication, which is how a change of the challenge is noticed. Returns whether
    /// it is a registry that answers.
    async fn knock(&self, call: &Call) -> Result<(Reply, bool), Failure> {
        let asked_at = Instant::now();
        let reply = self.wire.send(call, None).await?;
        let shows = match reply.status() {
            StatusCode::UNAUTHORIZED => reply.header(header::WWW_AUTHENTICATE).is_some(),
            StatusCode::OK => reply.content_type().is_some_and(is_json),
            _ => false,
        };
        let is_registry = shows
            || matches!(reply.status(), StatusCode::UNAUTHORIZED | StatusCode::OK)
                && reply.header(API_VERSION).is_some();
        *self.registry.lock().unwrap_or_else(PoisonError::into_inner) = Some((is_registry, asked_at));
        Ok((reply, is_registry))
    }

    /// Whether it is a registry that answers at this endpoint: as it was lately, or as `/v2/` says now.
    async fn is_registry(&self) -> bool {
        let _asking = self.asking.lock().await;
        let known = *self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((is_registry, asked_at)) = known
            && asked_at.elapsed() < KNOWN_FOR
        {
            return is_registry;
        }
        let knocked = self.knock(&self.authority.ping_call()).await;
        knocked.is_ok_and(|(_, is_registry)| is_registry)
    }

    async fn head(&self, repository: &str, reference: &str, deadline: Instant) -> Result<Manifest, Failure> {
        let by_get = || Box::pin(self.get(repository, reference, deadline));
        if !self.heads.may_ask() {
            return by_get().await;
        }
        let reply = self
            .manifest(Method::HEAD, repository, reference, deadline)
            .await?;
        match Headers::read(&reply, reference)? {
            Headers::Manifest(manifest) => {
                self.heads.answered();
                Ok(manifest)
            }
            Headers::Insufficient => by_get().await,
            Headers::Refused => {
                let found = by_get().await;
                if found.is_ok() {
                    self.heads.refused();
                }
                found
            }
        }
    }

    async fn get(&self, repository: &str, reference: &str, deadline: Instant) -> Result<Manifest, Failure> {
        let reply = self
            .manifest(Method::GET, repository, reference, deadline)
            .await?;
        match reply.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(self.not_found(reply).await),
            StatusCode::BAD_REQUEST if reply.direct => return Err(refused_name(reply).await),
            _ => return Err(reply.failure_with_code().await),
        }
        let media_type = media_type(&reply)?;
        let told = told(&reply)?;
        let asked: Option<Digest> = reference.parse().ok();
        let body = reply.body(MANIFEST_BYTES).await?;
        manifest::read(media_type, &body, asked.as_ref(), told.as_ref()).map_err(Failure::Ambiguous)
    }

    /// Returns what a 404 to a GET means. A registry says it with its own error body or with none; other
    /// texts are a registry's only where one answers `/v2/`, and pages are those of logins and proxies.
    /// Storage that a redirect led to has empty answers and texts of its own.
    async fn not_found(&self, reply: Reply) -> Failure {
        let other = reply.failure();
        if reply.is_html() {
            return other;
        }
        let (direct, is_xml) = (reply.direct, reply.content_type().is_some_and(is_xml));
        let shows = reply.header(API_VERSION).is_some();
        let particulars = reply.particulars();
        match reply.body(wire::ERROR_BYTES).await {
            Ok(body) if ErrorBody::read(&body).is_some() => Failure::Missing,
            Ok(_) if !direct => other,
            Ok(body) if body.trim_ascii().is_empty() => Failure::Missing,
            Ok(body) if is_page(&body) && !is_xml => Failure::Ambiguous(Ambiguity::Html(particulars)),
            Ok(_) if shows || self.is_registry().await => Failure::Missing,
            Ok(_) | Err(Failure::Ambiguous(_)) => other,
            Err(failure) => failure,
        }
    }

    async fn manifest(
        &self,
        method: Method,
        repository: &str,
        reference: &str,
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        let call = self.call(method, repository, "manifests", reference, ACCEPT)?;
        let right = Right::pull(repository);
        self.authority.send(&self.wire, &call, right, deadline).await
    }

    fn call(
        &self,
        method: Method,
        repository: &str,
        kind: &str,
        reference: &str,
        accept: HeaderValue,
    ) -> Result<Call, Failure> {
        let valid = repository.split('/').chain([reference]).all(is_path_segment) && !reference.contains('/');
        let url = valid
            .then(|| format!("{}v2/{repository}/{kind}/{reference}", self.base))
            .and_then(|url| Url::parse(&url).ok())
            .ok_or(Failure::Ambiguous(Ambiguity::InvalidName))?;
        Ok(Call {
            method,
            url,
            accept,
            redirects: REDIRECTS,
            matter: Matter::Repository(repository.into()),
            anew: false,
            beginning: None,
            from: 0,
            content: None,
        })
    }
}

/// What the answer to a HEAD tells.
enum Headers {
    Manifest(Manifest),
    /// Only the body can tell.
    Insufficient,
    /// HEADs are not answered here, which says nothing of what is there.
    Refused,
}

impl Headers {
    fn read(reply: &Reply, reference: &str) -> Result<Self, Failure> {
        match reply.status().as_u16() {
            200 => {}
            // Most registries answer in JSON, and proxies in text; but so do some registries. Which names
            // are refused, the body tells.
            404 if reply.direct && reply.content_type().is_some_and(is_json) => return Err(Failure::Missing),
            404 => return Ok(Self::Insufficient),
            400 if reply.direct => return Ok(Self::Insufficient),
            405 | 501 => return Ok(Self::Refused),
            // An address that was signed for GET is good for GET alone.
            400..=499 if !reply.direct => return Ok(Self::Refused),
            _ => return Err(reply.failure()),
        }
        if reply.content_type().is_none() {
            return Ok(Self::Insufficient);
        }
        let media_type = media_type(reply)?;
        let asked: Option<Digest> = reference.parse().ok();
        let digest = match (told(reply)?, asked) {
            (Some(told), None) => told,
            (Some(told), Some(asked)) if told == asked => told,
            (Some(told), Some(asked)) if told.algorithm() == asked.algorithm() => {
                return Err(Failure::Ambiguous(Ambiguity::DigestMismatch));
            }
            // No digest, or one that only the body can be compared with.
            _ => return Ok(Self::Insufficient),
        };
        Ok(Self::Manifest(Manifest {
            digest,
            media_type,
            size: reply
                .header(header::CONTENT_LENGTH)
                .and_then(|length| length.parse().ok()),
            children: Vec::new(),
            blob: None,
            config: None,
        }))
    }
}

/// Whether a text stands in a URL's path as what it is: the grammar of names and references is checked
/// elsewhere, but nothing may lead a request to another path.
fn is_path_segment(segment: &str) -> bool {
    let harmless =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':' | b'+');
    !matches!(segment, "" | "." | "..") && segment.bytes().all(harmless)
}

fn media_type(reply: &Reply) -> Result<MediaType, Failure> {
    reply
        .content_type()
        .and_then(MediaType::from_content_type)
        .ok_or_else(|| {
            Failure::Ambiguous(if reply.is_html() {
                Ambiguity::Html(reply.particulars())
            } else {
                Ambiguity::NotAManifest(reply.particulars())
            })
        })
}

/// Returns the digest that the headers tell.
fn told(reply: &Reply) -> Result<Option<Digest>, Failure> {
    reply
        .header("docker-content-digest")
        .map(|digest| digest.trim().parse())
        .transpose()
        .map_err(|_| Failure::Ambiguous(Ambiguity::Malformed))
}

fn is_json(media_type: &str) -> bool {
    let media_type = media_type.to_ascii_lowercase();
    media_type == "application/json" || media_type.ends_with("+json")
}

fn is_xml(media_type: &str) -> bool {
    let media_type = media_type.to_ascii_lowercase();
    media_type.ends_with("/xml") || media_type.ends_with("+xml")
}

/// Whether a body is a page: not every login page says that it is HTML.
fn is_page(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"<")
}

/// Returns what a 400 to a GET means: some registries answer so to names that they cannot have.
async fn refused_name(reply: Reply) -> Failure {
    let failure = reply.failure_with_code().await;
    match &failure {
        Failure::Ambiguous(Ambiguity::Status(_, Particulars { code: Some(code), .. }))
            if NO_SUCH_NAME.contains(&&**code) =>
        {
            Failure::Missing
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_names_all_four_types() {
        let all = MediaType::ALL.map(MediaType::as_str).join(", ");
        assert_eq!(ACCEPT.to_str().unwrap(), all);
    }

    #[test]
    fn nothing_leads_to_another_path() {
        for segment in ["nginx", "1.25.3-alpine", "sha256:0a", "a__b", "..."] {
            assert!(is_path_segment(segment), "{segment}");
        }
        for segment in [
            "", ".", "..", "a/b", "a?b", "a#b", "%2e%2e", "a b", "ä", "a\\b", "a@b",
        ] {
            assert!(!is_path_segment(segment), "{segment}");
        }
    }
}
