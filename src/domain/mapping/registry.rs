//! `spec.registry` of an ImageMirror: what is written into Pods before the repository.

use std::{fmt, str::FromStr};

use crate::domain::{
    image::{ParseReferenceError, check_host, check_path},
    source::{is_hub_for_people, without_dot, without_scheme},
};

/// A mirror's registry, `host[:port][/path]`, as it was written.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct MirrorRegistry {
    host: Box<str>,
    /// Without a slash at either end; empty if none was written.
    path: Box<str>,
}

/// Why a text is no [`MirrorRegistry`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseMirrorRegistryError {
    /// A URL instead of a host.
    #[error(
        "cannot use registry {:?}: leave out the scheme, it belongs to endpoint.url: write {}", .0, without_scheme(.0)
    )]
    Scheme(String),
    /// A host that runtimes would take for a repository on Docker Hub.
    #[error(
        "cannot use registry {0:?}: its first part must have a \".\" or a \":port\" or be \"localhost\", else it is taken for a repository on Docker Hub"
    )]
    NotAHost(String),
    /// The host or its port is malformed.
    #[error("cannot use registry {text:?}")]
    InvalidHost {
        text: String,
        source: ParseReferenceError,
    },
    /// A dot after the host.
    #[error("cannot use registry {:?}: leave out the \".\" at the end of the host: write {}", .0, without_dot(.0))]
    TrailingDot(String),
    /// Docker Hub, whose repositories have two components only and which completes short ones.
    #[error("cannot use registry {0:?}: Docker Hub cannot be a mirror, name a registry of your own")]
    DockerHub(String),
    /// A slash at the end.
    #[error("cannot use registry {:?}: leave out the \"/\" at the end: write {}", .0, .0.trim_end_matches('/'))]
    TrailingSlash(String),
    /// A tag or a digest.
    #[error("cannot use registry {0:?}: it must have neither tag nor digest")]
    TagOrDigest(String),
    /// The path after the host is malformed.
    #[error("cannot use registry {text:?}")]
    InvalidPath {
        text: String,
        source: ParseReferenceError,
    },
}

impl MirrorRegistry {
    /// Returns `host[:port]`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the path beneath which the mirror's repositories lie; empty if there is none.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether images of a prefix lie in this registry, written with the port of TLS or without.
    pub fn holds(&self, prefix: &str) -> bool {
        let (host, path) = prefix.split_once('/').unwrap_or((prefix, ""));
        let plain = |host: &str| host.strip_suffix(":443").unwrap_or(host).to_ascii_lowercase();
        plain(host) == plain(&self.host)
            && path
                .strip_prefix(&*self.path)
                .is_some_and(|rest| self.path.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for MirrorRegistry {
    type Err = ParseMirrorRegistryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        use ParseMirrorRegistryError as E;
        let owned = || text.to_owned();
        if text.contains("://") {
            return Err(E::Scheme(owned()));
        }
        let (host, path) = match text.split_once('/') {
            Some((host, path)) => (host, Some(path)),
            None => (text, None),
        };
        if host.contains('@') {
            return Err(E::TagOrDigest(owned()));
        }
        // Not every runtime knows a host by its capital letters (container-libs, `splitDockerDomain`).
        if host != "localhost" && !host.contains(['.', ':']) {
            return Err(E::NotAHost(owned()));
        }
        if host.ends_with('.') {
            return Err(E::TrailingDot(owned()));
        }
        check_host(host).map_err(|source| E::InvalidHost {
            text: owned(),
            source,
        })?;
        if is_hub_for_people(host) {
            return Err(E::DockerHub(owned()));
        }
        if let Some(path) = path {
            if path.ends_with('/') || path.is_empty() {
                return Err(E::TrailingSlash(owned()));
            }
            if path.contains([':', '@']) {
                return Err(E::TagOrDigest(owned()));
            }
            check_path(path).map_err(|source| E::InvalidPath {
                text: owned(),
                source,
            })?;
        }
        Ok(Self {
            host: host.into(),
            path: path.unwrap_or_default().into(),
        })
    }
}

impl fmt::Display for MirrorRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if !self.path.is_empty() {
            write!(f, "/{}", self.path)?;
        }
        Ok(())
    }
}

impl fmt::Debug for MirrorRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
