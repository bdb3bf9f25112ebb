//! The message of a container that waits because its image could not be pulled: which image that was.
//!
//! A status may show one image and speak of another: of the one that stood there before, for as long as the new
//! one was not tried, or of a volume's. Only the reference that the message begins with tells which one failed. It
//! is kubelet's word or the container runtime's. What follows it may be a registry's, and is not read.

/// The longest part of a message that is looked at: what is looked for stands at its beginning.
const LONGEST: usize = 2048;

/// What stands before a quoted reference in the messages of kubelet (1.36, `pkg/kubelet/images/image_manager.go`)
/// and containerd (2.4, `internal/cri/server/images/image_pull.go`).
const QUOTING: [&str; 6] = [
    "Back-off pulling image ",
    "Failed to pull image ",
    "failed to pull image ",
    "failed to pull and unpack image ",
    "failed to resolve reference ",
    "Failed to inspect image ",
];

/// What stands before and after one that is not quoted: kubelet's, and CRI-O's of a registry that does not answer
/// or does not have the image.
const NAMING: [(&str, &str); 2] = [
    ("image pull failed for ", " because "),
    ("initializing source docker://", ": "),
];

/// What may stand before all that.
const WRAPPING: [&str; 7] = [
    "ErrImagePull: ",
    "ImageInspectError: ",
    "Error: ",
    "Error ",
    "unable to pull image or OCI artifact: ",
    "pull image err: ",
    "copying system image from manifest list: ",
];

/// Kubelet's own limit of pulls, which speaks of no registry.
const LIMIT: &str = "pull QPS exceeded";

/// Kubelet's and CRI-O's word for an image whose signature the node does not accept. It stands before the registry's
/// words, but for them nobody is led anywhere by finding it: an image stays where it is.
pub(super) const SIGNATURE: &str = "SignatureValidationFailed";

/// Whether a message tells of a signature that the node does not accept.
pub(super) fn names_signature(message: &str) -> bool {
    message[..message.floor_char_boundary(LONGEST)].contains(SIGNATURE)
}

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// This reference could not be pulled.
    Failed(&'a str),
    /// The node pulls too much at once, and will try again.
    Limit,
    /// Nothing that tells which reference it was.
    Nothing,
}

/// How containerd and CRI-O begin what they say of credentials that are refused, right behind the reference.
const REFUSED: [&str; 6] = [
    "pull access denied",
    "authorization failed",
    "no basic auth credentials",
    "unauthorized",
    "denied",
    "authentication required",
];

/// How CRI-O begins what it says of an image that is not there.
const NOT_FOUND: [&str; 2] = ["manifest unknown", "name unknown"];

/// What containerd says it was about (2.4, `core/transfer/local/pull.go`), or of a token that it did not get, before it
/// says why.
const STEPS: [&str; 4] = [
    "failed to resolve image: ",
    "failed to authorize: ",
    "failed to fetch oauth token: ",
    "failed to fetch anonymous token: ",
];

/// Why a pull failed, as far as the node's own words tell: the code of its runtime's error, and what stands at a fixed
/// place behind the reference. A registry can decide which of these it is, as it does by its answer, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// There is no such image.
    NotFound,
    /// The credentials that were tried may not have it.
    Refused,
    /// It is there, and not for the node's platform.
    OtherPlatform,
    /// Anything else.
    Other,
}

/// Returns why a pull failed.
pub fn cause(message: &str) -> Cause {
    let mut rest = &message[..message.floor_char_boundary(LONGEST)];
    let mut code = None;
    loop {
        if let Some(inner) = WRAPPING
            .iter()
            .chain(&STEPS)
            .find_map(|before| rest.strip_prefix(before))
        {
            rest = inner;
        } else if let Some(inner) = without_code(rest) {
            let named = rest.strip_prefix("rpc error: code = ");
            code = code.or_else(|| named?.split(' ').next());
            rest = inner;
        } else if let Some((_, inner)) = QUOTING
            .iter()
            .find_map(|before| quoted(rest.strip_prefix(before)?))
        {
            rest = inner.strip_prefix(": ").unwrap_or_default();
        } else if let Some((_, inner)) = rest
            .strip_prefix("initializing source docker://")
            .and_then(|rest| rest.split_once(": "))
        {
            rest = inner;
        } else if let Some((_, inner)) = rest
            .strip_prefix("reading manifest ")
            .and_then(|rest| rest.split_once(": "))
        {
            rest = inner;
        } else {
            break;
        }
    }
    let begins = |phrases: &[&str]| phrases.iter().any(|phrase| rest.starts_with(phrase));
    if begins(&REFUSED)
        || ["Unauthenticated", "PermissionDenied"].map(Some).contains(&code)
        || is_refusal(rest)
    {
        return Cause::Refused;
    }
    // What follows a name is containerd's: a name has no blanks.
    let is_absent = rest
        .split_once(": ")
        .is_some_and(|(name, what)| what == "not found" && !name.contains(' '));
    if rest.starts_with("no match for platform") {
        return Cause::OtherPlatform;
    }
    if code == Some("NotFound") || is_absent || begins(&NOT_FOUND) {
        return Cause::NotFound;
    }
    Cause::Other
}

/// Whether containerd tells that a registry answered 401 or 403.
fn is_refusal(text: &str) -> bool {
    let status = text
        .strip_prefix("unexpected status from ")
        .and_then(|text| text.split_once(" request to "))
        .filter(|(method, _)| !method.contains(' '))
        .and_then(|(_, text)| text.split_once(": "))
        .filter(|(url, _)| !url.contains(' '));
    status.is_some_and(|(_, status)| ["401", "403"].iter().any(|refused| status.starts_with(refused)))
}

/// Returns what a message says.
pub fn said(message: &str) -> Said<'_> {
    let message = &message[..message.floor_char_boundary(LONGEST)];
    let message = unwrap(message);
    if message.starts_with(LIMIT) {
        return Said::Limit;
    }
    for phrase in QUOTING {
        if let Some(rest) = message.strip_prefix(phrase) {
            let Some((reference, rest)) = quoted(rest) else {
                return Said::Nothing;
            };
            // A back-off tells what it is for.
            let cause = rest.strip_prefix(": ").map(unwrap);
            return match cause {
                Some(cause) if cause.starts_with(LIMIT) => Said::Limit,
                // Kubelet does not always name what it could not inspect.
                Some(cause) if reference.is_empty() => said(cause),
                None if reference.is_empty() => Said::Nothing,
                _ => Said::Failed(reference),
            };
        }
    }
    for (before, after) in NAMING {
        if let Some(rest) = message.strip_prefix(before) {
            let end = rest.find(after);
            return end.map_or(Said::Nothing, |end| Said::Failed(&rest[..end]));
        }
    }
    Said::Nothing
}

/// Returns a message without what it is wrapped in.
fn unwrap(mut message: &str) -> &str {
    loop {
        let bare = WRAPPING.iter().find_map(|before| message.strip_prefix(before));
        let Some(rest) = bare.or_else(|| without_code(message)) else {
            return message;
        };
        message = rest;
    }
}

/// Returns what follows the code of a gRPC error.
fn without_code(message: &str) -> Option<&str> {
    let (code, rest) = message
        .strip_prefix("rpc error: code = ")?
        .split_once(" desc = ")?;
    code.bytes()
        .all(|byte| byte.is_ascii_alphanumeric())
        .then_some(rest)
}

/// Returns what stands in quotes, which may be escaped as in a text within a text, and what follows it. No
/// reference has a quote or a backslash.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start_matches('\\').strip_prefix('"')?;
    let end = text.find(['"', '\\'])?;
    let rest = text[end..].trim_start_matches('\\').strip_prefix('"')?;
    Some((&text[..end], rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IMAGE: &str = "mirror.test/docker.io/library/nginx:1.29";

    /// Messages as they were seen, or as the sources write them.
    #[test]
    fn the_reference_that_could_not_be_pulled_is_read() {
        for message in [
            r#"Back-off pulling image "X""#,
            r#"Back-off pulling image "X": ErrImagePull: rpc error: code = NotFound desc = failed to pull and unpack image "X": failed to resolve reference "X": X: not found"#,
            r#"Back-off pulling image "X": ErrImagePull: failed to pull and unpack image "X": failed to do request: Head "https://mirror.test/v2/": dial tcp 10.0.0.1:443: connect: connection refused"#,
            r#"failed to pull and unpack image "X": failed to resolve reference "X": X: not found"#,
            r#"rpc error: code = NotFound desc = failed to pull and unpack image "X": failed to resolve reference "X": X: not found"#,
            r#"rpc error: code = Unknown desc = failed to resolve reference "X": unexpected status from HEAD request: 500"#,
            r#"failed to pull and unpack image "X": failed to copy: short read: expected 262501 bytes but got 0: unexpected EOF"#,
            r#"failed to pull and unpack image "X": failed to resolve reference "X": pull access denied, repository does not exist or may require authorization"#,
            r#"Failed to pull image "X": rpc error: code = Canceled desc = context canceled"#,
            r#"Failed to inspect image "X": rpc error: code = Unavailable desc = connection refused"#,
            r#"Failed to pull image \"X\": rpc error"#,
            r#"Back-off pulling image \\\"X\\\""#,
            "image pull failed for X because the registry is unavailable",
            "image pull failed for X because the registry is unavailable: dial tcp: i/o timeout",
            "image pull failed for X because the signature validation failed: Source image rejected",
            "initializing source docker://X: pinging container registry mirror.test: Get \"https://mirror.test/v2/\": EOF",
            "rpc error: code = Unknown desc = Error initializing source docker://X: reading manifest 1.29 in mirror.test/docker.io/library/nginx: manifest unknown",
            "unable to pull image or OCI artifact: pull image err: initializing source docker://X: reading manifest 1.29 in mirror.test: manifest unknown; artifact err: get manifest",
            r#"Back-off pulling image "X": RegistryUnavailable: image pull failed for X because the registry is unavailable"#,
        ] {
            let message = message.replace('X', IMAGE);
            assert_eq!(said(&message), Said::Failed(IMAGE), "{message}");
        }
    }

    #[test]
    fn the_nodes_own_limit_is_no_registrys() {
        for message in [
            "pull QPS exceeded",
            r#"Back-off pulling image "X": ErrImagePull: pull QPS exceeded"#,
            "ErrImagePull: pull QPS exceeded",
        ] {
            assert_eq!(said(message), Said::Limit, "{message}");
        }
    }

    #[test]
    fn why_it_failed_is_read_of_the_nodes_own_words() {
        for (message, expected) in [
            (
                r#"Back-off pulling image "X": ErrImagePull: rpc error: code = NotFound desc = failed to pull and unpack image "X": failed to resolve reference "X": X: not found"#,
                Cause::NotFound,
            ),
            (
                r#"failed to pull and unpack image "X": failed to resolve reference "X": X: not found"#,
                Cause::NotFound,
            ),
            (
                r#"rpc error: code = NotFound desc = failed to pull and unpack image "X": no match for platform in manifest: not found"#,
                Cause::OtherPlatform,
            ),
            (
                r"rpc error: code = Unknown desc = Error initializing source docker://X: reading manifest 1 in mirror.test/a: manifest unknown",
                Cause::NotFound,
            ),
            (
                r#"failed to pull and unpack image "X": failed to resolve reference "X": pull access denied, repository does not exist or may require authorization: authorization failed: no basic auth credentials"#,
                Cause::Refused,
            ),
            (
                r#"rpc error: code = NotFound desc = failed to pull and unpack image "X": failed to resolve reference "X": pull access denied"#,
                Cause::Refused,
            ),
            (
                r#"rpc error: code = Unauthenticated desc = failed to pull and unpack image "X": x"#,
                Cause::Refused,
            ),
            (
                r#"failed to pull and unpack image "X": failed to resolve reference "X": unexpected status from HEAD request to https://mirror.test/v2/a/manifests/1: 403 Forbidden"#,
                Cause::Refused,
            ),
            (
                r#"failed to pull and unpack image "X": failed to resolve reference "X": failed to authorize: failed to fetch oauth token: unexpected status from POST request to https://auth.test/token: 401 Unauthorized"#,
                Cause::Refused,
            ),
            (
                r#"failed to pull and unpack image "X": failed to resolve reference "X": failed to authorize: failed to fetch anonymous token: unexpected status from GET request to https://auth.test/token: 500"#,
                Cause::Other,
            ),
            (
                r#"failed to pull and unpack image "X": failed to resolve reference "X": unexpected status from HEAD request to https://mirror.test/v2/a/manifests/1: 500 x"#,
                Cause::Other,
            ),
            (
                r#"failed to pull and unpack image "X": failed to resolve reference "X": failed to do request: Head "https://mirror.test/": dial tcp 10.0.0.1:443: connect: connection refused"#,
                Cause::Other,
            ),
            // A registry's words, wherever they say that.
            (
                r#"failed to pull and unpack image "X": failed to resolve reference "X": unexpected status from HEAD request to https://mirror.test/: 500 x: not found"#,
                Cause::Other,
            ),
            (
                r#"failed to pull and unpack image "X": failed to do request: pull access denied"#,
                Cause::Other,
            ),
            (
                "image pull failed for X because the registry is unavailable",
                Cause::Other,
            ),
            ("", Cause::Other),
        ] {
            let message = message.replace('X', IMAGE);
            assert_eq!(cause(&message), expected, "{message}");
        }
    }

    /// What a registry says stands behind the reference.
    #[test]
    fn nothing_is_read_of_a_registrys_words() {
        for message in [
            "",
            "X",
            "rpc error: code = Canceled desc = context canceled",
            r#"rpc error: code = (x) desc = Back-off pulling image "X""#,
            r#"reading manifest 1 in mirror.test: Back-off pulling image "X""#,
            r#"manifest unknown: failed to pull and unpack image "X""#,
            r#"Failed to inspect image "": rpc error: code = Unavailable"#,
            r#"Failed to inspect image "": Failed to inspect image "": x"#,
            r#"Failed to inspect image """#,
            r#"Back-off pulling image "X"#,
            "Back-off pulling image X",
            "image pull failed for X",
            "initializing source docker://X",
            r#"Container image "X" is not present with pull policy of Never"#,
        ] {
            assert_eq!(said(message), Said::Nothing, "{message}");
        }
        let words = r#"failed to pull and unpack image "X": Back-off pulling image "Y": pull QPS exceeded"#;
        assert_eq!(said(words), Said::Failed("X"));
        let inspected = r#"Failed to inspect image "": rpc error: code = Unknown desc = failed to resolve reference "X": x"#;
        assert_eq!(said(inspected), Said::Failed("X"));
        let long = format!("{}Back-off pulling image \"X\"", "Error: ".repeat(LONGEST));
        assert_eq!(said(&long), Said::Nothing);
        assert_eq!(said(&"é".repeat(LONGEST)), Said::Nothing);
    }

    proptest! {
        #[test]
        fn any_message_can_be_read(
            before in "(Back-off pulling image |Failed to inspect image |ErrImagePull: |rpc error: code = A desc = )*",
            words in any::<String>(),
        ) {
            let message = format!("{before}\"{words}");
            if let Said::Failed(reference) = said(&message) {
                prop_assert!(!reference.is_empty() && message.contains(reference));
            }
        }
    }
}
