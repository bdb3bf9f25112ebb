//! What a mirror's sources name: prefixes of images, and globs for what is left out.
//!
//! Both are on normalised names, host and path without tag and digest, as keys have them. Finding the prefix
//! of an image is not done here.

use super::image::{
    DOCKER_HUB, ParseReferenceError, Reference, check_host, check_path, is_docker_hub, names_host,
};

/// What people take for the host of Docker Hub's images, beside its names in references: the address of its
/// registry, and those of its pages.
const OTHER_HUB_HOSTS: [&str; 4] = [
    "registry-1.docker.io",
    "registry.hub.docker.com",
    HUB_PAGES,
    "docker.com",
];

/// Where Docker Hub has a page for each image.
const HUB_PAGES: &str = "hub.docker.com";

/// The paths of a registry's own API.
const API: [&str; 2] = ["v1", "v2"];

/// Why a text is no prefix of images.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParsePrefixError {
    /// A URL instead of a host.
    #[error("cannot use prefix {:?}: leave out the scheme: write {}", .0, without_scheme(.0))]
    Scheme(String),
    /// A glob.
    #[error("cannot use prefix {:?}: a prefix has no wildcards{}", .0, without_wildcards(.0))]
    Wildcard(String),
    /// The address of one of Docker Hub's pages, other than its first.
    #[error("cannot use prefix {text:?}: it is the address of a page: write {DOCKER_HUB}/{path}")]
    Page { text: String, path: String },
    /// A dot after the host.
    #[error("cannot use prefix {:?}: leave out the \".\" at the end of the host: write {}", .0, without_dot(.0))]
    TrailingDot(String),
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
    #[error("cannot use prefix {:?}: leave out the \"/\" at the end: write {}", .0, .0.trim_end_matches('/'))]
    TrailingSlash(String),
    /// A tag or a digest.
    #[error("cannot use prefix {:?}: it must have neither tag nor digest: write {}", .0, without_tag(.0))]
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
    if text.contains('*') {
        return Err(E::Wildcard(owned()));
    }
    let (host, path) = split(text);
    if !names_host(host) {
        return Err(E::HostMissing { text: owned() });
    }
    if host.ends_with('.') {
        return Err(E::TrailingDot(owned()));
    }
    if let Some(path) = path
        .filter(|_| host.eq_ignore_ascii_case(HUB_PAGES))
        .and_then(page)
    {
        return Err(E::Page { text: owned(), path });
    }
    let mut prefix = if is_hub_for_people(host) {
        DOCKER_HUB.to_owned()
    } else {
        normalise_host(host).map_err(|source| E::InvalidHost {
            text: owned(),
            source,
        })?
    };
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

/// Returns the other prefix that a prefix stands for: `docker.io/nginx` is an organisation, and what people
/// call the official image `docker.io/library/nginx`.
pub fn also_meant(prefix: &str) -> Option<String> {
    match split(prefix) {
        (DOCKER_HUB, Some(name)) if !name.contains('/') && name != "library" => Some(on_docker_hub(name)),
        _ => None,
    }
}

/// Whether people mean Docker Hub by a host, in any case.
pub fn is_hub_for_people(host: &str) -> bool {
    is_docker_hub(host)
        || OTHER_HUB_HOSTS
            .iter()
            .any(|other| host.eq_ignore_ascii_case(other))
}

/// Returns a host as keys have it.
pub(super) fn normalise_host(host: &str) -> Result<String, ParseReferenceError> {
    if is_docker_hub(host) {
        return Ok(DOCKER_HUB.to_owned());
    }
    check_host(host)?;
    let name = format!("{host}/any");
    let key = Reference::parse(&name)?.key();
    Ok(key.by_ref().host().to_owned())
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
    /// A host of Docker Hub's that no normalised name begins with.
    #[error("cannot use glob {text:?}: in full names Docker Hub is {DOCKER_HUB}: write {DOCKER_HUB}{rest}")]
    OtherHubHost { text: String, rest: String },
    /// A name on Docker Hub without the part that completes it.
    #[error("cannot use glob {:?}: no full name is like this: write {}", .0, in_full(.0))]
    Short(String),
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
    if host != DOCKER_HUB && is_hub_for_people(host) {
        let rest = text[host.len()..].to_owned();
        return Err(E::OtherHubHost { text: owned(), rest });
    }
    let is_short = path.is_none_or(|path| !path.contains('/') && !path.contains("**"));
    if host == DOCKER_HUB && is_short {
        return Err(E::Short(owned()));
    }
    Ok(())
}

/// Whether a glob may match a name at or below a prefix. Only what stands before the first `*` is compared.
pub fn may_match_below(glob: &str, prefix: &str) -> bool {
    let literal = glob.find('*').map_or(glob, |star| &glob[..star]);
    let is_whole = literal.len() == glob.len();
    match literal.strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || rest.starts_with('/'),
        None => !is_whole && prefix.starts_with(literal),
    }
}

/// Splits off the first component.
fn split(text: &str) -> (&str, Option<&str>) {
    text.split_once('/')
        .map_or((text, None), |(host, path)| (host, Some(path)))
}

/// Returns what follows the scheme, without what an address of a registry's API has more.
pub(super) fn without_scheme(text: &str) -> String {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let rest = rest.trim_end_matches('/');
    match split(rest) {
        (host, Some(path)) if API.contains(&path) => host.to_owned(),
        _ => rest.to_owned(),
    }
}

pub(super) fn without_dot(text: &str) -> String {
    let (host, path) = split(text);
    let host = host.trim_end_matches('.');
    path.map_or_else(|| host.to_owned(), |path| format!("{host}/{path}"))
}

/// Returns a name without tag and digest.
fn without_tag(text: &str) -> &str {
    let name = text.split('@').next().unwrap_or(text);
    let path = name.find('/').unwrap_or(0);
    name[path..].find(':').map_or(name, |colon| &name[..path + colon])
}

/// Returns what to write instead of wildcards, as the end of a sentence.
fn without_wildcards(text: &str) -> String {
    match text.trim_end_matches(['*', '/']) {
        "" => format!(": name each registry by its host, as in {DOCKER_HUB}"),
        head if head.contains('*') || !text[head.len()..].starts_with('/') => {
            format!(": name each registry by its host, as in {DOCKER_HUB}")
        }
        head => format!(", and covers all that lies below it: write {head}"),
    }
}

/// Returns the path of the images that a path among Docker Hub's pages is about, if it is such a one.
fn page(path: &str) -> Option<String> {
    let path = path.trim_end_matches('/');
    if let Some(official) = path.strip_prefix("_/") {
        return Some(format!("library/{official}"));
    }
    let named = ["r/", "u/", "repository/docker/"]
        .iter()
        .find_map(|kind| path.strip_prefix(kind));
    named.map(str::to_owned)
}

/// Returns what a glob on Docker Hub should be in full.
fn in_full(glob: &str) -> String {
    match split(glob).1 {
        None | Some("*") => format!("{DOCKER_HUB}/**"),
        Some(name) => {
            format!(
                "{}, or {DOCKER_HUB}/{name}/** for an organisation",
                on_docker_hub(name)
            )
        }
    }
}

/// Returns what a name without a host means to most people.
fn on_docker_hub(name: &str) -> String {
    let official = if name.contains('/') || matches!(name, "" | "library") {
        ""
    } else {
        "library/"
    };
    format!("{DOCKER_HUB}/{official}{name}")
        .trim_end_matches('/')
        .to_owned()
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
        check("ghcr.io/*", |error| matches!(error, E::Wildcard(_)));
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
