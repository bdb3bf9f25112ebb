//! What a registry said, classified.
//!
//! Only [`Answer::Exists`] permits a rewrite, and only [`Answer::Missing`] from a hosted mirror is
//! remembered as absence. Everything that is not clearly one of the others is `Ambiguous`.

use std::{fmt, time::Duration};

use super::digest::Digest;

/// The classified answer to looking for one manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The manifest is there; its digest was seen or computed, and is the one asked for, if any.
    Exists(Manifest),
    /// 404 with a registry's error body or an empty one.
    Missing,
    /// 401 or 403 (or a token service that refuses), also after one try with a new token.
    Unauthorized,
    /// 429, or a wait that an earlier 429 asked for is not over.
    RateLimited {
        /// What `Retry-After` asked for.
        retry_after: Option<Duration>,
    },
    /// Any 5xx, with its status code.
    ServerError(u16),
    /// No HTTP answer at all.
    Unreachable(Unreachable),
    /// An HTTP answer that proves nothing.
    Ambiguous(Ambiguity),
}

/// An [`Answer`] that is not `Exists`: also what a ping or the read of a blob ends with.
///
/// After a ping, `Unauthorized` means alive: a registry that asks for credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    Missing,
    Unauthorized,
    RateLimited {
        /// What `Retry-After` asked for, less the time since.
        retry_after: Option<Duration>,
    },
    ServerError(u16),
    Unreachable(Unreachable),
    Ambiguous(Ambiguity),
}

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Missing => Self::Missing,
            Failure::Unauthorized => Self::Unauthorized,
            Failure::RateLimited { retry_after } => Self::RateLimited { retry_after },
            Failure::ServerError(status) => Self::ServerError(status),
            Failure::Unreachable(why) => Self::Unreachable(why),
            Failure::Ambiguous(why) => Self::Ambiguous(why),
        }
    }
}

impl From<Result<Manifest, Failure>> for Answer {
    fn from(result: Result<Manifest, Failure>) -> Self {
        match result {
            Ok(manifest) => Self::Exists(manifest),
            Err(failure) => failure.into(),
        }
    }
}

/// Why no HTTP answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unreachable {
    /// The connection was refused, or there is no route: nobody listens.
    Refused,
    /// The deadline passed: packets dropped, a silent peer, or a body that never ended.
    Timeout,
    /// The name did not resolve.
    Dns,
    /// The TLS handshake failed: expired, wrong name, unknown issuer.
    Tls,
    /// The connection broke, or what came over it was not HTTP.
    Reset,
}

/// Why an HTTP answer proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ambiguity {
    /// HTML, as login pages and proxies send it: not a registry's answer.
    Html,
    /// 200 with another media type than a manifest's, or none.
    NotAManifest,
    /// The body's media type or form is not what the headers said.
    Malformed,
    /// The digest seen is not the digest asked for, or not that of the body.
    DigestMismatch,
    /// More bytes than a manifest may have.
    Oversized,
    /// Too many redirects, a loop, one without a target, or one from HTTPS to plain HTTP.
    Redirect,
    /// A challenge that cannot be met: no token service, one reached over plain HTTP only, or one
    /// whose answer holds no token.
    Challenge,
    /// Not asked: the repository or reference cannot stand in a URL.
    InvalidName,
    /// Another status code.
    Status(u16),
}

/// A manifest that was seen in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub digest: Digest,
    pub media_type: MediaType,
    /// Size of the manifest itself in bytes, where the registry told.
    pub size: Option<u64>,
    /// The entries of an index; empty for a single manifest and where only headers were seen.
    pub children: Vec<Child>,
    /// A blob of a single manifest (the smallest one), for looking at the data path; none where only
    /// headers were seen.
    pub blob: Option<Blob>,
}

/// An entry of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    pub digest: Digest,
    /// `architecture` of `platform`; absent for what names none (attestations say `unknown`).
    pub architecture: Option<String>,
}

/// A blob that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    pub size: u64,
}

/// The media types of manifests that are asked for and understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MediaType {
    OciIndex,
    OciManifest,
    DockerList,
    DockerManifest,
}

impl MediaType {
    /// All four, in the order in which `Accept` names them.
    pub const ALL: [Self; 4] = [
        Self::OciIndex,
        Self::OciManifest,
        Self::DockerList,
        Self::DockerManifest,
    ];

    /// Returns the media type as it stands in `Content-Type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OciIndex => "application/vnd.oci.image.index.v1+json",
            Self::OciManifest => "application/vnd.oci.image.manifest.v1+json",
            Self::DockerList => "application/vnd.docker.distribution.manifest.list.v2+json",
            Self::DockerManifest => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    /// Returns the media type that a `Content-Type` value names, its parameters ignored.
    pub fn from_content_type(value: &str) -> Option<Self> {
        let essence = value.split(';').next().unwrap_or_default().trim();
        Self::ALL
            .into_iter()
            .find(|known| essence.eq_ignore_ascii_case(known.as_str()))
    }

    /// Whether manifests of this type list others.
    pub const fn is_index(self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "connection refused",
            Self::Timeout => "timed out",
            Self::Dns => "name not found",
            Self::Tls => "TLS handshake failed",
            Self::Reset => "connection broke",
        })
    }
}

impl fmt::Display for Ambiguity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Html => f.write_str("the answer is HTML"),
            Self::NotAManifest => f.write_str("the answer is no manifest"),
            Self::Malformed => f.write_str("malformed manifest"),
            Self::DigestMismatch => f.write_str("another digest than asked for"),
            Self::Oversized => f.write_str("oversized manifest"),
            Self::Redirect => f.write_str("redirects that lead nowhere"),
            Self::Challenge => f.write_str("an authentication challenge that cannot be met"),
            Self::InvalidName => f.write_str("invalid repository or reference"),
            Self::Status(status) => write!(f, "unexpected status {status}"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Answer::from(*self).fmt(f)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(manifest) => write!(f, "exists as {}", manifest.digest),
            Self::Missing => f.write_str("missing"),
            Self::Unauthorized => f.write_str("unauthorized"),
            Self::RateLimited {
                retry_after: Some(wait),
            } => write!(f, "rate limited for {} s", wait.as_secs()),
            Self::RateLimited { retry_after: None } => f.write_str("rate limited"),
            Self::ServerError(status) => write!(f, "server error {status}"),
            Self::Unreachable(why) => why.fmt(f),
            Self::Ambiguous(why) => why.fmt(f),
        }
    }
}
