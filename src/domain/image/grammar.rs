//! The grammar of image references, one check per part.
//!
//! The rules are those of distribution/reference v0.6.0 (`regexp.go`), written out as loops over
//! bytes: no regular expression, no allocation. [`check_host`] is narrower, for what is to be pulled.

use core::net::Ipv6Addr;

use super::{ParseReferenceError, split_once};
use crate::domain::digest::{Digest, ParseDigestError};

/// The longest path of a repository, `library/` included and the host not (v0.6.0, `Parse`).
pub(in crate::domain) const PATH_LIMIT: usize = 255;

/// A host taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::domain) enum Host<'a> {
    /// A DNS name or an IPv4 address, with its port.
    Name(&'a str, Option<&'a str>),
    /// An IPv6 address, which stands in brackets, with its port.
    Ipv6(Ipv6Addr, Option<&'a str>),
}

impl<'a> Host<'a> {
    /// Takes a host apart whose form is right ([`check_host_form`]); absent where no IPv6 address stands
    /// in the brackets.
    pub(in crate::domain) fn split(host: &'a str) -> Option<Self> {
        let Some(bracketed) = host.strip_prefix('[') else {
            return Some(match split_once(host, b':') {
                Some((name, port)) => Self::Name(name, Some(port)),
                None => Self::Name(host, None),
            });
        };
        let (address, rest) = split_once(bracketed, b']')?;
        let port = match rest {
            "" => None,
            _ => Some(rest.strip_prefix(':')?),
        };
        Some(Self::Ipv6(address.parse().ok()?, port))
    }
}

/// Whether the first component of a written reference is a host rather than part of the path.
///
/// A capital letter makes a host too, since a path cannot have one (v0.6.0, `splitDockerDomain`).
pub(in crate::domain) fn names_host(component: &str) -> bool {
    component == "localhost"
        || component
            .bytes()
            .any(|b| matches!(b, b'.' | b':') || b.is_ascii_uppercase())
}

/// Checks the form of `host[:port]` (v0.6.0, `DomainRegexp`): a port of any number of digits, and any
/// hex digits and colons in brackets.
pub(super) fn check_host_form(host: &str) -> Result<(), ParseReferenceError> {
    let port = if let Some(bracketed) = host.strip_prefix('[') {
        let (address, rest) = split_once(bracketed, b']').ok_or(ParseReferenceError::InvalidHost)?;
        // Zones and dotted quads are legal in RFC 3986 and not in references.
        if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
            return Err(ParseReferenceError::InvalidHost);
        }
        match rest {
            "" => None,
            _ => Some(rest.strip_prefix(':').ok_or(ParseReferenceError::InvalidHost)?),
        }
    } else {
        let (name, port) = match split_once(host, b':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        };
        check_host_name(name)?;
        port
    };
    match port {
        Some(port) if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) => {
            Err(ParseReferenceError::InvalidPort)
        }
        _ => Ok(()),
    }
}

/// Checks `host[:port]`, of which something can be pulled.
///
/// Narrower than its form, so that hosts can be mapped to path components without two of them
/// meeting: a port is at most 65535 and of at most 5 digits, and what stands in brackets is an IPv6
/// address indeed.
pub(in crate::domain) fn check_host(host: &str) -> Result<(), ParseReferenceError> {
    check_host_form(host)?;
    let port = match Host::split(host).ok_or(ParseReferenceError::InvalidHost)? {
        Host::Name(_, port) | Host::Ipv6(_, port) => port,
    };
    match port {
        Some(port) if port.len() > 5 || port.parse::<u16>().is_err() => Err(ParseReferenceError::InvalidPort),
        _ => Ok(()),
    }
}

fn check_host_name(name: &str) -> Result<(), ParseReferenceError> {
    let mut previous = b'.';
    for byte in name.bytes() {
        let fits = match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => true,
            b'-' => previous != b'.',
            b'.' => previous != b'.' && previous != b'-',
            _ => false,
        };
        if !fits {
            return Err(ParseReferenceError::InvalidHost);
        }
        previous = byte;
    }
    if matches!(previous, b'.' | b'-') {
        return Err(ParseReferenceError::InvalidHost);
    }
    Ok(())
}

/// Checks a repository's path, its length excepted: components of lower-case letters and digits,
/// parted by one `.`, one or two `_`, or any number of `-`.
pub(in crate::domain) fn check_path(path: &str) -> Result<(), ParseReferenceError> {
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Last {
        Slash,
        Alphanumeric,
        Dot,
        Underscore,
        TwoUnderscores,
        Dash,
    }

    let mut last = Last::Slash;
    for byte in path.bytes() {
        last = match (byte, last) {
            (b'a'..=b'z' | b'0'..=b'9', _) => Last::Alphanumeric,
            (b'/', Last::Alphanumeric) => Last::Slash,
            (b'.', Last::Alphanumeric) => Last::Dot,
            (b'_', Last::Alphanumeric) => Last::Underscore,
            (b'_', Last::Underscore) => Last::TwoUnderscores,
            (b'-', Last::Alphanumeric | Last::Dash) => Last::Dash,
            (b'A'..=b'Z', _) => return Err(ParseReferenceError::UppercasePath),
            _ => return Err(ParseReferenceError::InvalidPath),
        };
    }
    if last == Last::Alphanumeric {
        Ok(())
    } else {
        Err(ParseReferenceError::InvalidPath)
    }
}

/// Checks a tag: 1 to 128 letters, digits, `_`, `.` and `-`, the first neither `.` nor `-`.
pub(super) fn check_tag(tag: &str) -> Result<(), ParseReferenceError> {
    let first_fits = !tag.starts_with(['.', '-']);
    let rest_fits = tag
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if first_fits && rest_fits && (1..=128).contains(&tag.len()) {
        Ok(())
    } else {
        Err(ParseReferenceError::InvalidTag)
    }
}

/// Checks a digest by the rules of [`Digest`].
pub(super) fn check_digest(digest: &str) -> Result<(), ParseReferenceError> {
    Digest::validate(digest).map_err(|error| match error {
        ParseDigestError::Malformed(_) => ParseReferenceError::InvalidDigest,
        ParseDigestError::UnsupportedAlgorithm(_) => ParseReferenceError::UnsupportedDigestAlgorithm,
    })
}
