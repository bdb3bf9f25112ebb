//! How credentials are found in a Docker configuration.
//!
//! Looking up follows the kubelet's keyring (kubernetes v1.36 `pkg/credentialprovider`), so that Kagami
//! reads with what a node would pull with. Deliberately absent: `credHelpers`, `credsStore`, identity
//! tokens (the kubelet ignores them in Secrets too), and trying several credentials in turn.

use std::collections::BTreeMap;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use serde::Deserialize;

use super::Credentials;
use crate::domain::source::is_hub_for_people;

/// The credentials of one Docker configuration, the most specific first.
#[derive(Clone, Debug, Default)]
pub struct Keyring(Vec<Entry>);

#[derive(Clone, Debug)]
struct Entry {
    /// `host[:port][/path]`; labels of the host may hold `*`.
    key: String,
    credentials: Credentials,
}

/// Why a Docker configuration cannot be read. Says where, never what stands there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyringError {
    /// Not JSON, or not of the form of a Docker configuration.
    #[error("invalid Docker configuration at line {line}, column {column}")]
    Json { line: usize, column: usize },
    /// An `auth` that is not `base64(username:password)`.
    #[error("invalid Docker configuration: `auth` of {0:?} is not base64 of username:password")]
    Auth(String),
}

impl From<serde_json::Error> for ParseKeyringError {
    fn from(error: serde_json::Error) -> Self {
        // The error's own text may quote the value that it stumbled over.
        Self::Json {
            line: error.line(),
            column: error.column(),
        }
    }
}

#[derive(Deserialize)]
struct ConfigJson {
    auths: Option<BTreeMap<String, Option<User>>>,
}

#[derive(Default, Deserialize)]
struct User {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
}

impl Keyring {
    /// Reads a `.dockerconfigjson` (Secret type `kubernetes.io/dockerconfigjson`). As with the kubelet
    /// one malformed entry makes the whole malformed.
    pub fn from_docker_config_json(bytes: &[u8]) -> Result<Self, ParseKeyringError> {
        Self::new(
            serde_json::from_slice::<ConfigJson>(bytes)?
                .auths
                .unwrap_or_default(),
        )
    }

    /// Reads a `.dockercfg` (Secret type `kubernetes.io/dockercfg`).
    pub fn from_dockercfg(bytes: &[u8]) -> Result<Self, ParseKeyringError> {
        Self::new(serde_json::from_slice(bytes)?)
    }

    fn new(auths: BTreeMap<String, Option<User>>) -> Result<Self, ParseKeyringError> {
        let mut entries = Vec::with_capacity(auths.len());
        for (location, auth) in auths {
            let credentials = auth
                .unwrap_or_default()
                .credentials()
                .ok_or_else(|| ParseKeyringError::Auth(location.clone()))?;
            // Entries without a user are left behind by credential stores; they mean "anonymous".
            if !credentials.username.is_empty() || !credentials.password.is_empty() {
                entries.push(Entry {
                    key: key(&location),
                    credentials,
                });
            }
        }
        // Reverse order puts `host/path` before `host`. The sort is stable: of two spellings of one key
        // the first one counts.
        entries.sort_by(|a, b| b.key.cmp(&a.key));
        Ok(Self(entries))
    }

    /// Returns the credentials for a registry, written `host[:port][/path]`: those of the most specific key
    /// that matches, where the kubelet would try all that match in this order. Unlike an image, one without
    /// a host is not Docker Hub's, whose credentials are for nobody else.
    ///
    /// Beyond the kubelet's rules the port of TLS may be written or left out, and Docker Hub has all the names
    /// by which people know it.
    pub fn for_registry(&self, registry: &str) -> Option<&Credentials> {
        let registry = lower_host(registry);
        let find = |fits: &dyn Fn(&str) -> bool| self.0.iter().find(|entry| fits(&entry.key));
        let is_hub = is_hub_for_people(split_path(&registry).0);
        find(&|key| matches(key, &registry))
            .or_else(|| find(&|key| matches(&without_default_port(key), &without_default_port(&registry))))
            .or_else(|| find(&|key| is_hub && is_hub_for_people(key)))
            .map(|entry| &entry.credentials)
    }

    /// Returns what registries there are credentials for.
    pub fn registries(&self) -> impl Iterator<Item = &str> {
        self.0.iter().rev().map(|entry| entry.key.as_str())
    }
}

impl User {
    fn credentials(self) -> Option<Credentials> {
        let Some(auth) = self.auth.filter(|auth| !auth.is_empty()) else {
            return Some(Credentials {
                username: self.username.unwrap_or_default(),
                password: self.password.unwrap_or_default(),
            });
        };
        let auth: String = auth.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let decoded = if auth.ends_with('=') {
            STANDARD.decode(auth)
        } else {
            STANDARD_NO_PAD.decode(auth)
        };
        let decoded = String::from_utf8(decoded.ok()?).ok()?;
        let (username, password) = decoded.split_once(':')?;
        Some(Credentials {
            username: username.to_owned(),
            password: password.to_owned(),
        })
    }
}

/// Returns an entry's name without the scheme, without the version that begins the path of a registry's own
/// API, and with its host in lower case.
fn key(location: &str) -> String {
    let rest = location
        .strip_prefix("https://")
        .or_else(|| location.strip_prefix("http://"))
        .unwrap_or(location);
    let (host, path) = split_path(rest);
    let path = match path.get(..4) {
        Some("/v1/" | "/v2/") => &path[3..],
        _ if matches!(path, "/v1" | "/v2") => "",
        _ => path,
    };
    let path = path.trim_end_matches('/');
    lower_host(&format!("{host}{path}"))
}

/// Returns a name with its host in lower case, and without a dot at its end.
fn lower_host(name: &str) -> String {
    let (host, path) = split_path(name);
    let (host, port) = split_port(host);
    let colon = if port.is_empty() { "" } else { ":" };
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    format!("{host}{colon}{port}{path}")
}

/// Returns a name without the port that TLS has where none is written.
fn without_default_port(name: &str) -> String {
    let (host, path) = split_path(name);
    format!("{}{path}", host.strip_suffix(":443").unwrap_or(host))
}

fn matches(key: &str, image: &str) -> bool {
    let (key_host, key_path) = split_path(key);
    let (image_host, image_path) = split_path(image);
    let (key_name, key_port) = split_port(key_host);
    let (image_name, image_port) = split_port(image_host);
    key_port == image_port
        && image_path.starts_with(key_path)
        && key_name.split('.').count() == image_name.split('.').count()
        && key_name
            .split('.')
            .zip(image_name.split('.'))
            .all(|(glob, label)| label_matches(glob, label))
}

fn split_path(name: &str) -> (&str, &str) {
    name.find('/').map_or((name, ""), |slash| name.split_at(slash))
}

fn split_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        // The colons of a bare IPv6 address stand inside brackets.
        Some((name, port)) if !port.ends_with(']') => (name, port),
        _ => (host, ""),
    }
}

/// Whether a label has the form of a glob with `*` for any characters, none included.
fn label_matches(glob: &str, label: &str) -> bool {
    let Some((head, rest)) = glob.split_once('*') else {
        return glob == label;
    };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut label) = label
        .strip_prefix(head)
        .and_then(|label| label.strip_suffix(tail))
    else {
        return false;
    };
    // Taking each part where it first occurs leaves the most for those that follow.
    middle.split('*').all(|part| match label.find(part) {
        Some(at) => {
            label = &label[at + part.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    //! The tables are those of kubernetes v1.36 `pkg/credentialprovider/keyring_test.go`
    //! (Apache-2.0), named after its tests.

    use super::*;
    use crate::domain::{examples, image::Reference, mapping::Form, pull_secret};

    fn keyring(entries: &[(&str, &str)]) -> Keyring {
        let auths: BTreeMap<_, _> = entries
            .iter()
            .map(|(location, user)| {
                let auth = STANDARD.encode(format!("{user}:password of {user}"));
                (
                    *location,
                    serde_json::json!({ "auth": auth, "email": "a@example.com" }),
                )
            })
            .collect();
        let config = serde_json::json!({ "auths": auths }).to_string();
        Keyring::from_docker_config_json(config.as_bytes()).unwrap()
    }

    #[track_caller]
    fn check(entries: &[(&str, &str)], registry: &str, expected: Option<&str>) {
        let keyring = keyring(entries);
        let found = keyring.for_registry(registry);
        assert_eq!(
            found.map(|c| c.username.as_str()),
            expected,
            "{entries:?} for {registry}"
        );
        assert_eq!(
            found.map(|c| c.password.clone()),
            expected.map(|user| format!("password of {user}"))
        );
    }

    /// Prints how many of the cases of one of kubelet's tests stand here.
    fn passed_by(test: &str, cases: usize) {
        eprintln!("{cases} cases of {test}");
    }

    #[test]
    fn urls_match() {
        let table = [
            ("*.kubernetes.io", "prefix.kubernetes.io", true),
            ("prefix.*.io", "prefix.kubernetes.io", true),
            ("prefix.kubernetes.*", "prefix.kubernetes.io", true),
            ("*-good.kubernetes.io", "prefix-good.kubernetes.io", true),
            ("*.kubernetes.io/blah", "prefix.kubernetes.io/blah", true),
            ("prefix.*.io/foo", "prefix.kubernetes.io/foo/bar", true),
            (
                "*.kubernetes.io:1111/blah",
                "prefix.kubernetes.io:1111/blah",
                true,
            ),
            ("prefix.*.io:1111/foo", "prefix.kubernetes.io:1111/foo/bar", true),
            ("*.kubernetes.io", "kubernetes.io", false),
            ("*.*.kubernetes.io", "prefix.kubernetes.io", false),
            ("*.*.kubernetes.io", "kubernetes.io", false),
            ("*kubernetes.io", "a.kubernetes.io", false),
            ("*kubernetes.io", "kubernetes.io", true),
            ("*.*.*.kubernetes.io", "a.b.c.kubernetes.io", true),
            ("kubernetes.io", "kubernetes.com", false),
            ("k*.io", "quay.io", false),
            (
                "*.kubernetes.io:1234/blah",
                "prefix.kubernetes.io:1111/blah",
                false,
            ),
            ("prefix.*.io/foo", "prefix.kubernetes.io:1111/foo/bar", false),
            // Ours.
            ("a*b*c.io", "a1b2b3c.io", true),
            ("a*b*c.io", "a1b2b3.io", false),
            ("[::1]:5000", "[::1]:5000/foo", true),
            ("[::1]", "[::1]:5000/foo", false),
            ("[::1]", "[::1]/foo", true),
        ];
        passed_by("TestURLsMatch", table.len() - 5);
        for (glob, target, expected) in table {
            assert_eq!(matches(glob, target), expected, "{glob} for {target}");
        }
    }

    #[test]
    fn docker_keyring_for_glob() {
        let table = [
            ("https://hello.kubernetes.io", "hello.kubernetes.io"),
            ("https://*.docker.io", "prefix.docker.io"),
            ("https://prefix.*.io", "prefix.docker.io"),
            ("https://prefix.docker.*", "prefix.docker.io"),
            ("https://*.docker.io/path", "prefix.docker.io/path"),
            ("https://prefix.*.io/path", "prefix.docker.io/path/subpath"),
            ("https://prefix.docker.*/path", "prefix.docker.io/path"),
            ("https://*.docker.io:8888", "prefix.docker.io:8888"),
            ("https://prefix.*.io:8888", "prefix.docker.io:8888"),
            ("https://prefix.docker.*:8888", "prefix.docker.io:8888"),
            ("https://*.docker.io/path:1111", "prefix.docker.io/path:1111"),
            ("https://*.docker.io/v1/", "prefix.docker.io/path:1111"),
            ("https://*.docker.io/v2/", "prefix.docker.io/path:1111"),
            ("https://prefix.docker.*/path:1111", "prefix.docker.io/path:1111"),
            ("prefix.docker.io:1111", "prefix.docker.io:1111/path"),
            ("*.docker.io:1111", "prefix.docker.io:1111/path"),
        ];
        passed_by("TestDockerKeyringForGlob", table.len());
        for (glob, target) in table {
            check(&[(glob, "foo")], &format!("{target}/foo/bar"), Some("foo"));
        }
    }

    #[test]
    fn keyring_miss() {
        let table = [
            ("https://hello.kubernetes.io", "world.mesos.org/foo/bar"),
            ("https://*.docker.com", "prefix.docker.io"),
            ("https://suffix.*.io", "prefix.docker.io"),
            ("https://prefix.docker.c*", "prefix.docker.io"),
            (
                "https://prefix.*.io/path:1111",
                "prefix.docker.io/path/subpath:1111",
            ),
            ("suffix.*.io", "prefix.docker.io"),
            ("https://index.docker.io/v1/", "world.mesos.org"),
        ];
        passed_by("TestKeyringMiss", table.len());
        for (glob, target) in table {
            check(&[(glob, "foo")], &format!("{target}/foo/bar"), None);
        }
    }

    #[test]
    fn keyring_hit_with_docker_hub() {
        for registry in [
            "index.docker.io/v1/google/docker-registry",
            "docker.io/library/nginx",
        ] {
            check(&[("https://index.docker.io/v1/", "foo")], registry, Some("foo"));
        }
        // What matches by name goes before the default.
        let both = [("index.docker.io", "old"), ("docker.io", "new")];
        check(&both, "docker.io/library/nginx", Some("new"));
    }

    #[test]
    fn docker_keyring_lookup() {
        let entries = [("bar.example.com/pong", "grace"), ("bar.example.com", "ada")];
        let table = [
            ("bar.example.com", Some("ada")),
            ("bar.example.com/pong", Some("grace")),
            ("bar.example.com/ping", Some("ada")),
            ("bar.example.com/pongz", Some("grace")),
            ("bar.example.com/pong/pang", Some("grace")),
            ("example.com", None),
            ("foo.example.com", None),
        ];
        passed_by("TestDockerKeyringLookup", table.len());
        for (image, expected) in table {
            check(&entries, image, expected);
        }
    }

    /// Returns the keys of a Secret whose login kubelet offers for an image, in its order (`keyring.go`, `Add` and
    /// `Lookup`): unlike here, slashes at a key's end stay, and all that match are tried.
    fn offered<'k>(keys: &[&'k str], image: &str) -> Vec<&'k str> {
        let mut index: Vec<(String, &str)> = keys
            .iter()
            .map(|location| {
                let (host, path) = split_path(location);
                let path = match path.get(..4) {
                    Some("/v1/" | "/v2/") => &path[3..],
                    _ => path,
                };
                (
                    format!("{host}{}", if path == "/" { "" } else { path }),
                    *location,
                )
            })
            .collect();
        index.sort_by(|a, b| b.cmp(a));
        index.retain(|(key, _)| matches(key, image));
        index.into_iter().map(|(_, location)| location).collect()
    }

    #[test]
    fn the_login_of_a_pull_secret_is_offered_for_its_mirrors_images_alone() {
        let mirror = |registry: &str, template: &str| {
            let mut mirror = examples::mirror("main", &["docker.io", "registry.k8s.io/team"]);
            mirror.mapping.registry = registry.parse().unwrap();
            mirror.mapping.template = template.parse().unwrap();
            mirror
        };
        let all = "{registry}/{repository}";
        for (registry, template, image, others) in [
            (
                "mirror.test",
                all,
                "nginx",
                vec![
                    "mirror.test/docker.io2/x",
                    "mirror.test/private/x",
                    "mirror.test:5000/docker.io/x",
                ],
            ),
            (
                "mirror.test:5000/team",
                all,
                "nginx",
                vec!["mirror.test:5000/team2/docker.io/x"],
            ),
            (
                "mirror.test/team",
                "{repository}",
                "a/b",
                vec!["mirror.test/team2/x", "mirror.test/team"],
            ),
            (
                "mirror.test/v2/x",
                "{repository}",
                "a/b",
                vec!["mirror.test/x/a/b", "mirror.test/v2/x2/a"],
            ),
            (
                "mirror.test/v1",
                "{repository}",
                "a/b",
                vec!["mirror.test/a/b", "mirror.test/v12/a"],
            ),
            (
                "mirror.test",
                "all/of-{repository}",
                "a/b",
                vec!["mirror.test/all2/of-a/b"],
            ),
            ("[fd00::1]:5000", all, "nginx", vec!["[fd00::2]:5000/docker.io/x"]),
        ] {
            let mirror = mirror(registry, template);
            let keys = pull_secret::keys(&mirror).unwrap();
            let keys: Vec<_> = keys.iter().map(String::as_str).collect();
            let image = Reference::parse(image).unwrap();
            let own = mirror.mapping.map(&image, Form::Written).unwrap();
            assert_eq!(offered(&keys, &own).len(), 1, "{keys:?} for {own}");
            for other in others {
                assert_eq!(offered(&keys, other), [] as [&str; 0], "{keys:?} for {other}");
            }
        }
        // Two mirrors of one host, each with its own login: each image is offered its own.
        let [first, second] = ["mirror.test", "mirror.test/b"]
            .map(|registry| pull_secret::keys(&mirror(registry, all)).unwrap());
        let keys: Vec<_> = first.iter().chain(&second).map(String::as_str).collect();
        assert_eq!(
            offered(&keys, "mirror.test/docker.io/x"),
            ["mirror.test/docker.io/"]
        );
        assert_eq!(
            offered(&keys, "mirror.test/b/docker.io/x"),
            ["mirror.test/b/docker.io/"]
        );
        // What a shorter key would do.
        assert_eq!(offered(&["mirror.test/team"], "mirror.test/team2/x").len(), 1);
        assert_eq!(offered(&["mirror.test/v2/x/"], "mirror.test/v2/x/a").len(), 0);
    }

    #[test]
    fn credentials_of_docker_hub_are_for_nobody_else() {
        let keyring = keyring(&[("https://index.docker.io/v1/", "hub"), ("mirror.test", "reader")]);
        let user = |registry| {
            keyring
                .for_registry(registry)
                .map(|found| found.username.as_str())
        };
        assert_eq!(user("mirror.test"), Some("reader"));
        assert_eq!(user("mirror.test/cache"), Some("reader"));
        for other in [
            "other.test",
            "other.test:5000/cache",
            "localhost",
            "localhost/cache",
            "[::1]:5000",
            "registry:5000/foo",
            "myhostdocker.io/foo/bar",
        ] {
            assert_eq!(user(other), None, "{other}");
        }
        assert_eq!(user("docker.io"), Some("hub"));
        assert_eq!(user("index.docker.io/library"), Some("hub"));
    }

    #[test]
    fn keys_as_people_write_them() {
        for (key, registry) in [
            ("mirror.example.com", "mirror.example.com:443"),
            ("mirror.example.com:443", "mirror.example.com"),
            ("https://mirror.example.com:443/v2/", "mirror.example.com/cache"),
            ("https://mirror.example.com/v2/", "mirror.example.com:443"),
            ("https://mirror.example.com/v1", "mirror.example.com:443"),
            ("https://mirror.example.com/v2", "mirror.example.com"),
            ("https://mirror.example.com/", "mirror.example.com/cache"),
            ("mirror.example.com/cache/", "mirror.example.com/cache"),
            ("MIRROR.example.com", "mirror.example.com"),
            ("mirror.example.com", "Mirror.example.com/cache"),
            ("mirror.example.com.", "mirror.example.com"),
            ("*.example.com:443", "mirror.example.com"),
            ("[::1]:443", "[::1]"),
            ("https://registry-1.docker.io/v2/", "docker.io"),
            ("hub.docker.com", "docker.io/bitnami"),
            ("docker.io", "index.docker.io"),
        ] {
            check(&[(key, "a")], registry, Some("a"));
        }
        for (key, registry) in [
            ("mirror.example.com:5000", "mirror.example.com"),
            ("mirror.example.com:80", "mirror.example.com"),
            ("mirror.example.com", "mirror.example.com:5000"),
            ("mirror.example.com/v1", "mirror.example.com:4430"),
        ] {
            check(&[(key, "a")], registry, None);
        }
        // What is written alike goes before what means the same.
        let both = [
            ("mirror.example.com:443", "with"),
            ("mirror.example.com", "without"),
        ];
        check(&both, "mirror.example.com", Some("without"));
        check(&both, "mirror.example.com:443", Some("with"));
    }

    #[test]
    fn issue_3797() {
        let table = ["quay.io", "quay.io/foo", "quay.io/foo/bar"];
        passed_by("TestIssue3797", table.len());
        for image in table {
            check(&[("https://quay.io/v1/", "rex")], image, Some("rex"));
        }
    }

    #[test]
    fn both_secret_types_and_both_paddings_are_read() {
        let user = |bytes: &[u8]| {
            let keyring = Keyring::from_dockercfg(bytes).unwrap();
            keyring.for_registry("a.io/x").map(|found| found.username.clone())
        };
        assert_eq!(
            user(br#"{"a.io":{"auth":"dXNlcjpwYXNz"}}"#).as_deref(),
            Some("user")
        );
        assert_eq!(
            user(br#"{"a.io":{"auth":"dXNlcjpwdw=="}}"#).as_deref(),
            Some("user")
        );
        assert_eq!(
            user(br#"{"a.io":{"auth":"dXNlcjpwdw"}}"#).as_deref(),
            Some("user")
        );
        assert_eq!(
            user(br#"{"a.io":{"username":"u","password":"p"}}"#).as_deref(),
            Some("u")
        );
        assert_eq!(user(br#"{"a.io":{}}"#), None);
        assert_eq!(user(br#"{"a.io":null}"#), None);
    }

    #[test]
    fn no_error_quotes_a_secret() {
        for config in [
            r#"{"auths":{"a.io":"hunter2"}}"#,
            r#"{"auths":{"a.io":{"auth":"hunter2 is no base64!"}}}"#,
            r#"{"auths":{"a.io":{"auth":"aHVudGVyMg=="}}}"#,
            r#"{"auths":"hunter2"}"#,
            "hunter2",
        ] {
            let error = Keyring::from_docker_config_json(config.as_bytes()).unwrap_err();
            let text = format!("{error:?} {error}");
            assert!(
                !text.contains("hunter2") && !text.contains("aHVudGVyMg"),
                "{text}"
            );
        }
    }
}
