//! A client of the OCI distribution API that only looks: ping, manifests, blobs.
//!
//! It makes sure that `Exists` is said of nothing but a manifest that is there under the digest asked
//! for; everything else is told apart for those who keep watch over health. Every call ends at the
//! deadline that its caller gives, and leaves neither task nor connection attempt behind. No secret
//! stands in any `Debug`, error or log line. The process installs rustls' crypto provider first.

mod auth;
pub mod blob;
mod look;
mod manifest;
pub mod pace;
pub mod pool;
mod wire;

use std::{fmt, sync::Arc};

use reqwest::{
    Certificate, Method, StatusCode, Url,
    header::{self, HeaderValue},
};
use tokio::time::{Instant, timeout_at};

use self::{
    auth::{Authority, Right},
    wire::{Call, REDIRECTS, Reply, Wire},
};
pub use crate::credentials::Credentials;
use crate::domain::{
    answer::{Ambiguity, Answer, Failure, Manifest, MediaType, Unreachable},
    digest::Digest,
};

/// The longest manifest that is read: what containerd reads. A node could not pull a longer one.
pub const MANIFEST_BYTES: usize = 4 * 1048 * 1048;

/// The longest error body that is read.
const ERROR_BYTES: usize = 64 * 1024;

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
    /// The only certificates to trust, in PEM; those of the system if absent.
    pub ca_bundle: Option<Vec<u8>>,
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
    CaBundle(#[source] reqwest::Error),
    #[error("cannot set up TLS")]
    Tls(#[source] reqwest::Error),
}

/// A client of one endpoint. Clones share its connections, credentials, tokens, and the waits asked of it.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    base: Url,
    wire: Wire,
    authority: Authority,
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
        let certificates = match &endpoint.ca_bundle {
            None => None,
            Some(pem) => match Certificate::from_pem_bundle(pem).map_err(Error::CaBundle)? {
                certificates if certificates.is_empty() => return Err(Error::NoCertificate),
                certificates => Some(certificates),
            },
        };
        Ok(Self(Arc::new(Inner {
            wire: Wire::new(certificates, base.scheme() == "https").map_err(Error::Tls)?,
            authority: Authority::new(base.clone(), endpoint.credentials.as_ref()),
            base,
        })))
    }

    /// Whether the other one is a clone of this client, and so talks to the same endpoint in the same way.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Asks with these credentials from now on, or with none; from `until` on, if there is such a time, with
    /// none. Tokens that others were given are dropped.
    pub fn set_credentials(&self, credentials: Option<&Credentials>, until: Option<Instant>) {
        self.0.authority.set_credentials(credentials, until);
    }

    /// Asks whether a registry is there, with authentication if there are credentials.
    ///
    /// `Unauthorized` means alive: there is a registry, which wants credentials or other ones. `Missing`
    /// is never returned: whoever has no `/v2/` is no registry.
    pub async fn ping(&self, deadline: Instant) -> Result<(), Failure> {
        within(deadline, self.0.ping(deadline)).await
    }

    /// Looks for a manifest by tag or digest, by its headers where they suffice.
    pub async fn head(&self, repository: &str, reference: &str, deadline: Instant) -> Answer {
        within(deadline, self.0.head(repository, reference, deadline))
            .await
            .into()
    }

    /// Reads a manifest by tag or digest, with the entries of an index or the smallest blob of a single
    /// manifest.
    pub async fn get(&self, repository: &str, reference: &str, deadline: Instant) -> Answer {
        within(deadline, self.0.get(repository, reference, deadline))
            .await
            .into()
    }
}

async fn within<T>(deadline: Instant, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout_at(deadline, call)
        .await
        .unwrap_or(Err(Failure::Unreachable(Unreachable::Timeout)))
}

impl Inner {
    async fn ping(&self, deadline: Instant) -> Result<(), Failure> {
        let call = self.authority.ping_call();
        // Without authentication first: that is how a change of the challenge is noticed.
        let mut reply = self.wire.send(&call, None).await?;
        if reply.status() == StatusCode::UNAUTHORIZED {
            let met = self.authority.challenged(&reply);
            let is_registry = reply.header("docker-distribution-api-version").is_some()
                || reply.header(header::WWW_AUTHENTICATE).is_some();
            if !is_registry {
                return Err(Failure::Ambiguous(Ambiguity::Status(401)));
            }
            if !met || !self.authority.has_credentials() {
                return Err(Failure::Unauthorized);
            }
            reply = Box::pin(self.authority.send(&self.wire, &call, Right::NONE, deadline)).await?;
            if reply.status() == StatusCode::FORBIDDEN {
                return Err(Failure::Unauthorized);
            }
        } else if reply.status() == StatusCode::FORBIDDEN {
            // No registry forbids `/v2/` without asking for credentials: something in between does.
            return Err(Failure::Ambiguous(Ambiguity::Status(403)));
        }
        if reply.status() != StatusCode::OK {
            return Err(reply.failure());
        }
        // Not every login page says that it is HTML.
        let html = reply.is_html();
        let body = reply.body(ERROR_BYTES).await?;
        if html || body.trim_ascii_start().starts_with(b"<") {
            return Err(Failure::Ambiguous(Ambiguity::Html));
        }
        self.authority.opened();
        Ok(())
    }

    async fn head(&self, repository: &str, reference: &str, deadline: Instant) -> Result<Manifest, Failure> {
        let reply = self
            .manifest(Method::HEAD, repository, reference, deadline)
            .await?;
        match reply.status() {
            StatusCode::OK => {}
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                return Box::pin(self.get(repository, reference, deadline)).await;
            }
            // A HEAD has no body, so its type must speak: registries answer in JSON, proxies in text.
            StatusCode::NOT_FOUND if reply.content_type().is_none_or(is_json) => {
                return Err(Failure::Missing);
            }
            _ => return Err(reply.failure()),
        }
        let media_type = media_type(&reply)?;
        let asked: Option<Digest> = reference.parse().ok();
        let digest = match (told(&reply)?, asked) {
            (Some(told), None) => told,
            (Some(told), Some(asked)) if told == asked => told,
            (Some(told), Some(asked)) if told.algorithm() == asked.algorithm() => {
                return Err(Failure::Ambiguous(Ambiguity::DigestMismatch));
            }
            // No digest, or one that only the body can be compared with.
            _ => return Box::pin(self.get(repository, reference, deadline)).await,
        };
        Ok(Manifest {
            digest,
            media_type,
            size: reply
                .header(header::CONTENT_LENGTH)
                .and_then(|length| length.parse().ok()),
            children: Vec::new(),
            blob: None,
        })
    }

    async fn get(&self, repository: &str, reference: &str, deadline: Instant) -> Result<Manifest, Failure> {
        let reply = self
            .manifest(Method::GET, repository, reference, deadline)
            .await?;
        match reply.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(not_found(reply).await),
            _ => return Err(reply.failure()),
        }
        let media_type = media_type(&reply)?;
        let told = told(&reply)?;
        let asked: Option<Digest> = reference.parse().ok();
        let body = reply.body(MANIFEST_BYTES).await?;
        manifest::read(media_type, &body, asked.as_ref(), told.as_ref()).map_err(Failure::Ambiguous)
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
            of_image: true,
        })
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
                Ambiguity::Html
            } else {
                Ambiguity::NotAManifest
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

/// Returns what a 404 to a GET means: a registry says it with its own error body or with none.
async fn not_found(reply: Reply) -> Failure {
    if reply.is_html() {
        return reply.failure();
    }
    let other = reply.failure();
    match reply.body(ERROR_BYTES).await {
        Ok(body) if body.trim_ascii().is_empty() || is_error_body(&body) => Failure::Missing,
        Ok(_) | Err(Failure::Ambiguous(_)) => other,
        Err(failure) => failure,
    }
}

fn is_error_body(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct ErrorBody {
        #[serde(rename = "errors")]
        _errors: Vec<serde::de::IgnoredAny>,
    }
    serde_json::from_slice::<ErrorBody>(body).is_ok()
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
