//! What a mirror's sources name: prefixes of images, and globs for what is left out.
//!
//! Both are on normalised names, host and path without tag and digest, as [`Reference::write_key`]
//! writes them. Finding the prefix of an image is not done here.

use super::image::{
    DOCKER_HUB, ParseReferenceError, Reference, check_host, check_path, is_docker_hub, names_host,
};

/// Why a text is no prefix of images.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParsePrefixError {
    /// A URL instead of a host.
    #[error("cannot use prefix {0:?}: leave out the scheme")]
    Scheme(String),
    /// A name without a host, or a host that runtimes would take for a repository on Docker Hub.
    #[error(
        "cannot use prefix {text:?}: it must begin with a registry's host: {}, for example",
        on_docker_hub(text)
    )]
    HostMissing { text: String },
    /// The host or its port is malformed.
    #[error("cannot use prefix {text:?}")]
    InvalidHost {
        text: String,
        source: ParseReferenceError,
    },
    /// A slash at the end.
    #[error("cannot use prefix {0:?}: leave out the \"/\" at the end")]
    TrailingSlash(String),
    /// A tag or a digest.
    #[error("cannot use prefix {0:?}: it must have neither tag nor digest")]
    TagOrDigest(String),
    /// The path after the host is malformed.
    #[error("cannot use prefix {text:?}")]
    InvalidPath {
        text: String,
        source: ParseReferenceError,
    },
}

/// Returns a prefix as normalised names begin: the host in lower case, Docker Hub under one name.
pub fn normalise_prefix(text: &str) -> Result<String, ParsePrefixError> {
    use ParsePrefixError as E;
    let owned = || text.to_owned();
    if text.contains("://") {
        return Err(E::Scheme(owned()));
    }
    let (host, path) = split(text);
    if !names_host(host) {
        return Err(E::HostMissing { text: owned() });
    }
    let mut prefix = normalise_host(host).map_err(|source| E::InvalidHost {
        text: owned(),
        source,
    })?;
    let Some(path) = path else { return Ok(prefix) };
    if path.is_empty() || path.ends_with('/') {
        return Err(E::TrailingSlash(owned()));
    }
    if path.contains([':', '@']) {
        return Err(E::TagOrDigest(owned()));
    }
    check_path(path).map_err(|source| E::InvalidPath {
        text: owned(),
        source,
    })?;
    prefix.push('/');
    prefix.push_str(path);
    Ok(prefix)
}

/// Returns a host as [`Reference::write_key`] writes it.
pub(super) fn normalise_host(host: &str) -> Result<String, ParseReferenceError> {
    if is_docker_hub(host) {
        return Ok(DOCKER_HUB.to_owned());
    }
    check_host(host)?;
    let name = format!("{host}/any");
    let mut key = String::new();
    Reference::parse(&name)?.write_key(&mut key);
    let length = key.find('/').unwrap_or(key.len());
    key.truncate(length);
    Ok(key)
}

/// Whether this is `host[:port]`, though not one that a reference may begin with: `mirror:5000` and
/// `mirror` both are.
pub fn is_host(text: &str) -> bool {
    check_host(text).is_ok()
}

/// Why a text is no glob on normalised names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseGlobError {
    /// It begins like a path, and so matches nothing.
    #[error(
        "cannot use glob {text:?}: it must begin with a registry's host or with *: {}, for example",
        on_docker_hub(text)
    )]
    HostMissing { text: String },
    /// A slash at an end, or two in a row.
    #[error("cannot use glob {0:?}: it must not begin or end with \"/\" or have two in a row")]
    EmptyComponent(String),
    /// A tag or a digest.
    #[error("cannot use glob {0:?}: it must have neither tag nor digest")]
    TagOrDigest(String),
    /// Something that no normalised name has.
    #[error("cannot use glob {text:?}: {character:?} is in no name")]
    InvalidCharacter { text: String, character: char },
    /// More than two `*` in a row.
    #[error("cannot use glob {0:?}: it has more than two * in a row")]
    TooManyStars(String),
}

/// Checks a glob on normalised names: `*` stays within a component, `**` crosses their boundaries.
pub fn check_glob(text: &str) -> Result<(), ParseGlobError> {
    use ParseGlobError as E;
    let owned = || text.to_owned();
    if text.split('/').any(str::is_empty) {
        return Err(E::EmptyComponent(owned()));
    }
    let (host, path) = split(text);
    if path.is_some_and(|path| path.contains([':', '@'])) {
        return Err(E::TagOrDigest(owned()));
    }
    let fits = |character: char| matches!(character, 'a'..='z' | '0'..='9' | '.' | '_' | '-' | '/' | ':' | '[' | ']' | '*');
    if let Some(character) = text.chars().find(|character| !fits(*character)) {
        return Err(E::InvalidCharacter {
            text: owned(),
            character,
        });
    }
    if text.contains("***") {
        return Err(E::TooManyStars(owned()));
    }
    if !host.contains('*') && !names_host(host) {
        return Err(E::HostMissing { text: owned() });
    }
    Ok(())
}

/// Splits off the first component.
fn split(text: &str) -> (&str, Option<&str>) {
    text.split_once('/')
        .map_or((text, None), |(host, path)| (host, Some(path)))
}

/// Returns what a name without a host means to most people.
fn on_docker_hub(name: &str) -> String {
    let official = if name.contains('/') { "" } else { "library/" };
    format!("{DOCKER_HUB}/{official}{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_normalised_as_names_are() {
        for (written, expected) in [
            ("docker.io", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("Docker.IO/bitnami", "docker.io/bitnami"),
            ("docker.io/library", "docker.io/library"),
            ("docker.io/library/nginx", "docker.io/library/nginx"),
            ("GHCR.io/kubewarden", "ghcr.io/kubewarden"),
            ("localhost", "localhost"),
            ("Registry.example.com:5000/a/b", "registry.example.com:5000/a/b"),
            ("[2001:DB8:0::1]:5000", "[2001:db8::1]:5000"),
        ] {
            assert_eq!(normalise_prefix(written).as_deref(), Ok(expected), "{written}");
        }
    }

    #[test]
    fn prefixes_that_no_name_can_have_are_refused() {
        use ParsePrefixError as E;
        let check = |text: &str, expected: fn(&E) -> bool| {
            let error = normalise_prefix(text).expect_err(text);
            assert!(expected(&error), "{text}: {error:?}");
        };
        check("", |error| matches!(error, E::HostMissing { .. }));
        check("library/nginx", |error| matches!(error, E::HostMissing { .. }));
        check("https://ghcr.io", |error| matches!(error, E::Scheme(_)));
        check("ghcr.io:", |error| matches!(error, E::InvalidHost { .. }));
        check("ghcr..io", |error| matches!(error, E::InvalidHost { .. }));
        check("ghcr.io@a", |error| matches!(error, E::InvalidHost { .. }));
        check("ghcr.io/", |error| matches!(error, E::TrailingSlash(_)));
        check("ghcr.io/a/", |error| matches!(error, E::TrailingSlash(_)));
        check("ghcr.io//a", |error| matches!(error, E::InvalidPath { .. }));
        check("ghcr.io/Team", |error| matches!(error, E::InvalidPath { .. }));
        check("ghcr.io/team:1", |error| matches!(error, E::TagOrDigest(_)));
        check("ghcr.io/*", |error| matches!(error, E::InvalidPath { .. }));
    }

    #[test]
    fn globs_can_match_something() {
        for glob in [
            "docker.io/bitnami/**",
            "**",
            "*/library/*",
            "*.example.com:5000/a",
            "**/postgres",
            "[::1]/a",
        ] {
            assert_eq!(check_glob(glob), Ok(()), "{glob}");
        }
    }

    #[test]
    fn globs_that_match_nothing_are_refused() {
        use ParseGlobError as E;
        let check = |text: &str, expected: fn(&E) -> bool| {
            let error = check_glob(text).expect_err(text);
            assert!(expected(&error), "{text}: {error:?}");
        };
        check("nginx", |error| matches!(error, E::HostMissing { .. }));
        check("library/*", |error| matches!(error, E::HostMissing { .. }));
        check("", |error| matches!(error, E::EmptyComponent(_)));
        check("docker.io//a", |error| matches!(error, E::EmptyComponent(_)));
        check("docker.io/nginx:1", |error| matches!(error, E::TagOrDigest(_)));
        check("docker.io/{a,b}", |error| {
            matches!(error, E::InvalidCharacter { .. })
        });
        check("docker.io/***", |error| matches!(error, E::TooManyStars(_)));
    }
}
