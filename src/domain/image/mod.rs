//! Image references: what a user wrote, taken apart and normalised.
//!
//! A [`Reference`] borrows from the text and allocates nothing; parsing one is on the path of every
//! admission. Names are completed as Docker and containerd do it (distribution/reference v0.6.0,
//! `ParseNormalizedNamed`): `nginx` is `docker.io/library/nginx`. All its test vectors pass
//! (`vectors.rs`).
//!
//! There is a parser of our own because that of the crate oci-spec 0.10 fails 33 of the 329 vectors
//! (IPv6 hosts, hosts known by a capital letter, bare 64 hex digits) and allocates.
//!
//! Deliberately absent: unqualified-search registries. A runtime that completes short names otherwise
//! (CRI-O can be told to) must not be served with short names.

mod grammar;
mod key;

use std::fmt;

use memchr::memchr;

pub(in crate::domain) use grammar::{Host, PATH_LIMIT, check_host, check_path, names_host};
pub(in crate::domain) use key::BoxedKey;
pub use key::{ImageKey, KeyRef, KeySpan, Keys, ParseKeyError};

/// The host that short names belong to.
pub const DOCKER_HUB: &str = "docker.io";
/// An older name of [`DOCKER_HUB`], replaced by it.
const DOCKER_HUB_INDEX: &str = "index.docker.io";
/// What a path of one component on [`DOCKER_HUB`] is completed with.
const LIBRARY: &str = "library/";
/// The tag that an image without tag and digest has.
pub const DEFAULT_TAG: &str = "latest";

/// An image reference: host, path, and a tag, a digest, both or neither.
///
/// Not comparable, since two texts may name one image: compare the keys ([`Self::key`]).
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a> {
    written: &'a str,
    host: &'a str,
    /// `library/` for every path on Docker Hub that starts so, written or not; else empty.
    library: &'static str,
    path: &'a str,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
}

/// How an image is pinned, and so how long a proof about it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// By a tag, which may move.
    Tag,
    /// By a digest, with or without a tag, which nobody looks at then.
    Digest,
}

impl Class {
    /// Both classes.
    pub const ALL: [Self; 2] = [Self::Tag, Self::Digest];

    /// Returns the class's name, as it stands in metrics and in the status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tag => "tag",
            Self::Digest => "digest",
        }
    }
}

/// Why a text is no [`Reference`].
///
/// The text is not repeated: it may be long, comes from anybody, and the caller has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    /// Nothing where the repository's name should be.
    #[error("the reference names no repository")]
    NoRepository,
    /// White space or a control character, wherever it stands.
    #[error("white space or a control character stands in the reference")]
    WhiteSpace,
    /// 64 hex digits or a digest and nothing else: runtimes look for a local image then.
    #[error("this is the identifier of a local image, not a repository")]
    Identifier,
    /// The host is neither a DNS name, nor IPv4, nor IPv6 in brackets.
    #[error("the host is neither a DNS name nor an IP address")]
    InvalidHost,
    /// The port is not a number up to 65535 of at most 5 digits.
    #[error("the port is not a number from 0 to 65535")]
    InvalidPort,
    /// Docker Hub's name in other than lower case, which runtimes do not take for Docker Hub.
    #[error("docker.io is written in lower case")]
    MiscasedDockerHub,
    /// A capital letter in the path.
    #[error("the repository must be in lower case")]
    UppercasePath,
    /// The path breaks another rule.
    #[error(
        "the repository must be components of letters and digits, parted by \".\", \"_\", \"__\" or dashes"
    )]
    InvalidPath,
    /// The path, `library/` included, is longer than 255 bytes.
    #[error("the repository is longer than 255 characters")]
    PathTooLong,
    /// The tag is empty, over 128 bytes, or has other characters than it may.
    #[error("the tag must be 1 to 128 letters, digits, \"_\", \".\" or \"-\", the first no \".\" or \"-\"")]
    InvalidTag,
    /// The digest has not the form or the length of its algorithm.
    #[error("the digest must be sha256:<64 hex digits> or sha512:<128 hex digits>")]
    InvalidDigest,
    /// A digest that Kagami could not check.
    #[error("the digest's algorithm is neither sha256 nor sha512")]
    UnsupportedDigestAlgorithm,
}

impl<'a> Reference<'a> {
    /// Takes a written reference apart, completing its name, if it names something to pull.
    ///
    /// Of what [`Self::parse_normalized`] accepts, this refuses what no runtime can pull, and what would
    /// be taken for something else: identifiers of local images, ports above 65535, hosts in brackets that
    /// are no IPv6 address, and miscased names of Docker Hub.
    pub fn parse(written: &'a str) -> Result<Self, ParseReferenceError> {
        let reference = Self::parse_normalized(written).map_err(|error| {
            let is_odd = |character: char| character.is_whitespace() || character.is_control();
            if written.contains(is_odd) {
                ParseReferenceError::WhiteSpace
            } else {
                error
            }
        })?;
        if is_local_image(written) {
            return Err(ParseReferenceError::Identifier);
        }
        if reference.host != DOCKER_HUB {
            // Runtimes complete names only after comparing with the lower-case form. Taken as a host of
            // its own, `Docker.io/nginx` would have a key that parses to another image, `library/nginx`.
            if is_docker_hub(reference.host) {
                return Err(ParseReferenceError::MiscasedDockerHub);
            }
            check_host(reference.host)?;
        }
        Ok(reference)
    }

    /// Takes a written reference apart and completes its name exactly as distribution/reference does
    /// (v0.6.0, `ParseNormalizedNamed`), whether it can be pulled or not.
    pub fn parse_normalized(written: &'a str) -> Result<Self, ParseReferenceError> {
        if is_identifier(written) {
            return Err(ParseReferenceError::Identifier);
        }
        let (named, digest) = split_off(written, b'@');
        let (host, rest) = match split_once(named, b'/') {
            Some((first, rest)) if names_host(first) => (known_host(first)?, rest),
            _ => (DOCKER_HUB, named),
        };
        let (path, tag) = split_off(rest, b':');
        if path.is_empty() {
            return Err(ParseReferenceError::NoRepository);
        }
        check_path(path)?;
        let (library, path) = if host == DOCKER_HUB {
            complete(path)
        } else {
            ("", path)
        };
        if library.len() + path.len() > PATH_LIMIT {
            return Err(ParseReferenceError::PathTooLong);
        }
        tag.map_or(Ok(()), grammar::check_tag)?;
        digest.map_or(Ok(()), grammar::check_digest)?;
        Ok(Self {
            written,
            host,
            library,
            path,
            tag,
            digest,
        })
    }

    /// Returns the text as the user wrote it.
    pub fn written(&self) -> &'a str {
        self.written
    }

    /// Returns `host[:port]`, completed to `docker.io`, its case as written.
    pub fn host(&self) -> &'a str {
        self.host
    }

    /// Returns the path of the repository in two parts to be joined: `library/` or nothing, and the
    /// rest.
    ///
    /// The first is `library/` for every repository of Docker Hub beneath it, written or completed.
    pub fn path_parts(&self) -> [&'a str; 2] {
        [self.library, self.path]
    }

    /// Returns the tag, if one was written.
    pub fn tag(&self) -> Option<&'a str> {
        self.tag
    }

    /// Returns the digest, if one was written; it is one that [`super::digest::Digest`] accepts.
    pub fn digest(&self) -> Option<&'a str> {
        self.digest
    }

    /// Returns how the image is pinned.
    pub fn class(&self) -> Class {
        if self.digest.is_some() {
            Class::Digest
        } else {
            Class::Tag
        }
    }

    /// Returns what a registry is asked for: the digest, else the tag, else `latest`.
    ///
    /// Runtimes do not look at the tag beside a digest (containerd, `ParseDockerRef`).
    pub fn manifest_reference(&self) -> &'a str {
        self.digest.or(self.tag).unwrap_or(DEFAULT_TAG)
    }

    /// Returns the completed reference as a runtime pulls it: with `latest` where neither tag nor digest is
    /// written.
    pub fn pulled(&self) -> String {
        match (self.tag, self.digest) {
            (None, None) => format!("{self}:{DEFAULT_TAG}"),
            _ => self.to_string(),
        }
    }
}

/// Writes the completed reference, with the tag and the digest that were written.
impl fmt::Display for Reference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.host, self.library, self.path)?;
        if let Some(tag) = self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Splits at the first `separator`, an ASCII character that belongs to neither part: `str::split_once`,
/// but quicker.
pub(in crate::domain) fn split_once(text: &str, separator: u8) -> Option<(&str, &str)> {
    let end = memchr(separator, text.as_bytes())?;
    Some((&text[..end], &text[end + 1..]))
}

/// The same for what may stand at the end.
fn split_off(text: &str, separator: u8) -> (&str, Option<&str>) {
    match split_once(text, separator) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

/// Whether a text is an identifier, which is no name (v0.6.0, `anchoredIdentifierRegexp`).
fn is_identifier(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether runtimes take a text for a digest, the identifier of a local image (v0.6.0,
/// `ParseAnyReference`), although it reads as a name with a tag.
fn is_local_image(text: &str) -> bool {
    (text.starts_with("sha256:") || text.starts_with("sha512:")) && grammar::check_digest(text).is_ok()
}

/// Checks the form of a written host and returns the one that it stands for.
fn known_host(host: &str) -> Result<&str, ParseReferenceError> {
    if host == DOCKER_HUB || host == DOCKER_HUB_INDEX {
        return Ok(DOCKER_HUB);
    }
    grammar::check_host_form(host)?;
    Ok(host)
}

/// Whether a host is Docker Hub's, in any case.
pub(in crate::domain) fn is_docker_hub(host: &str) -> bool {
    host.eq_ignore_ascii_case(DOCKER_HUB) || host.eq_ignore_ascii_case(DOCKER_HUB_INDEX)
}

/// Splits a path on Docker Hub into `library/` and the rest, which completes it if it is short.
fn complete(path: &str) -> (&'static str, &str) {
    match path.strip_prefix(LIBRARY) {
        Some(rest) => (LIBRARY, rest),
        None if memchr(b'/', path.as_bytes()).is_some() => ("", path),
        None => (LIBRARY, path),
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
