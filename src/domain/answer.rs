//! What a registry said, classified.
//!
//! Only [`Answer::Exists`] permits a rewrite, and only [`Answer::Missing`] from a hosted mirror is
//! remembered as absence. Everything that is not clearly one of the others is `Ambiguous`.

use std::{fmt, time::Duration};

use super::{digest::Digest, platform::Platforms};

/// The classified answer to looking for one manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The manifest is there; its digest was seen or computed, and is the one asked for, if any.
    Exists(Manifest),
    /// 404 with a registry's error body or an empty one, or with any other text from something known to be
    /// a registry; or a registry's word that there can be no such name.
    Missing,
    /// 401 or 403 of the registry itself (or a token service that refuses), also after one try with a new
    /// token.
    Unauthorized,
    /// 429, or the wait after an earlier 429 is not over.
    RateLimited {
        of: Limit,
        /// What `Retry-After` asked for, or an own wait where it asked for none.
        retry_after: Option<Duration>,
    },
    /// Any 5xx, with its status code.
    ServerError(u16, Particulars),
    /// No HTTP answer at all.
    Unreachable(Unreachable, Particulars),
    /// An HTTP answer that proves nothing.
    Ambiguous(Ambiguity),
}

impl Answer {
    /// Whether this is an HTTP answer where a registry's should have come: somebody has to look after it.
    pub const fn proves_nothing(&self) -> bool {
        matches!(self, Self::ServerError(..) | Self::Ambiguous(_))
    }
}

/// An [`Answer`] that is not `Exists`: also what a ping or the read of a blob ends with.
///
/// After a ping, `Unauthorized` means alive: a registry that asks for credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    Missing,
    Unauthorized,
    RateLimited {
        of: Limit,
        /// What `Retry-After` asked for, or an own wait where it asked for none, less the time since.
        retry_after: Option<Duration>,
    },
    ServerError(u16, Particulars),
    Unreachable(Unreachable, Particulars),
    Ambiguous(Ambiguity),
}

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Missing => Self::Missing,
            Failure::Unauthorized => Self::Unauthorized,
            Failure::RateLimited { of, retry_after } => Self::RateLimited { of, retry_after },
            Failure::ServerError(status, particulars) => Self::ServerError(status, particulars),
            Failure::Unreachable(why, particulars) => Self::Unreachable(why, particulars),
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

/// What a limit of requests holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// The whole registry, or every image of it.
    Registry,
    /// One repository, as far as is known.
    Repository,
    /// Tokens for one repository: the registry itself limits nothing.
    Token,
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

/// What is known of an answer that proves nothing, or of why none came: for people, who look for the one to
/// mend it. Texts from outside stand here as they may be shown, and with a bound.
///
/// Answers that differ in nothing else are the same answer.
#[derive(Clone, Debug, Default)]
pub struct Particulars {
    /// Who gave it or should have, where that is not the registry itself.
    pub party: Option<Party>,
    pub content_type: Option<Box<str>>,
    /// The code in a registry's error body.
    pub code: Option<Box<str>>,
    /// What is wrong, in words: with a certificate, with the address of a token service.
    pub words: Option<Box<str>>,
}

/// Somebody whom a registry sends its clients to: host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// Who a redirect leads to: storage.
    Redirect(Box<str>),
    TokenService(Box<str>),
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redirect(host) => write!(f, "{host}, where the registry redirects to"),
            Self::TokenService(host) => write!(f, "{host}, the registry's token service"),
        }
    }
}

impl PartialEq for Particulars {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Particulars {}

impl fmt::Display for Particulars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        if let Some(party) = &self.party {
            write!(f, " from {party}")?;
        }
        if let Some(content_type) = &self.content_type {
            write!(f, ", of type {content_type}")?;
        }
        match &self.words {
            Some(words) => write!(f, ": {words}"),
            None => Ok(()),
        }
    }
}

/// Why an HTTP answer proves nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ambiguity {
    /// HTML, as login pages and proxies send it: not a registry's answer.
    Html(Particulars),
    /// 200 with another media type than a manifest's, or none.
    NotAManifest(Particulars),
    /// The body's media type or form is not what the headers said.
    Malformed,
    /// The digest seen is not the digest asked for, or not that of the body.
    DigestMismatch,
    /// More bytes than a manifest may have.
    Oversized,
    /// Too many redirects, a loop, one without a target, or one from HTTPS to plain HTTP.
    Redirect(Particulars),
    /// A challenge that cannot be met: no token service, or one that is not asked because it is reached over
    /// plain HTTP only.
    Challenge(Particulars),
    /// The token service's answer holds no token.
    NoToken(Particulars),
    /// Not asked: the repository or reference cannot stand in a URL.
    InvalidName,
    /// Another status code; also 401 and 403 of who a redirect led to, which say nothing of credentials.
    Status(u16, Particulars),
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
    /// The blob of a single manifest by which the data path is looked at; none where only headers were seen.
    pub blob: Option<Blob>,
    /// The configuration of a single manifest; none where only headers were seen.
    pub config: Option<Blob>,
}

/// An entry of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    pub digest: Digest,
    /// The nodes that take this one of all entries: none for attestations and what else is no image.
    pub takers: Platforms,
    /// Whether all of them are served if it is there. Of one that names no platform, or is an index itself,
    /// only what it holds can tell.
    pub is_whole: bool,
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
            Self::Html(particulars) => write!(f, "the answer is HTML{particulars}"),
            Self::NotAManifest(particulars) => write!(f, "the answer is no manifest{particulars}"),
            Self::Malformed => f.write_str("malformed manifest"),
            Self::DigestMismatch => f.write_str("another digest than asked for"),
            Self::Oversized => f.write_str("oversized manifest"),
            Self::Redirect(particulars) => write!(f, "redirects that lead nowhere{particulars}"),
            Self::Challenge(particulars) => {
                write!(f, "an authentication challenge that cannot be met{particulars}")
            }
            Self::NoToken(particulars) => write!(f, "no token in the answer{particulars}"),
            Self::InvalidName => f.write_str("invalid repository or reference"),
            Self::Status(status, particulars) => write!(f, "unexpected status {status}{particulars}"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Answer::from(self.clone()).fmt(f)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(manifest) => write!(f, "exists as {}", manifest.digest),
            Self::Missing => f.write_str("missing"),
            Self::Unauthorized => f.write_str("unauthorized"),
            Self::RateLimited { of, retry_after } => {
                let by = match of {
                    Limit::Registry | Limit::Repository => "",
                    Limit::Token => " by the token service",
                };
                write!(f, "rate limited{by}")?;
                match retry_after {
                    Some(wait) => write!(f, " for {} s", wait.as_secs()),
                    None => Ok(()),
                }
            }
            Self::ServerError(status, particulars) => write!(f, "server error {status}{particulars}"),
            Self::Unreachable(why, Particulars { party, words, .. }) => {
                why.fmt(f)?;
                if let Some(party) = party {
                    write!(f, " at {party}")?;
                }
                match words {
                    Some(words) => write!(f, ": {words}"),
                    None => Ok(()),
                }
            }
            Self::Ambiguous(why) => why.fmt(f),
        }
    }
}
