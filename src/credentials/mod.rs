//! What Secrets hold, the credentials for a registry in it, and what is in use while they change.
//!
//! The one place that reads Docker configurations. `Debug` and errors say where something stands, never what.

mod keyring;

use std::{collections::BTreeMap, fmt, time::Duration};

use serde_json::{Map, Value, json};
use tokio::time::Instant;

pub use self::keyring::{Keyring, ParseKeyringError};

/// The type of a Secret with a Docker configuration.
pub const DOCKER_CONFIG_JSON: &str = "kubernetes.io/dockerconfigjson";

/// The type of a Secret with a user's name and password, for whatever it is named for.
pub const BASIC_AUTH: &str = "kubernetes.io/basic-auth";

/// Where such a Secret has them.
const USER_KEYS: [&str; 2] = ["username", "password"];

/// The type of a Secret with a Docker configuration of the older form.
pub const DOCKER_CFG: &str = "kubernetes.io/dockercfg";

/// Where a Secret has its Docker configuration.
pub const CONFIG_JSON_KEY: &str = ".dockerconfigjson";

/// The same of the older form.
const CFG_KEY: &str = ".dockercfg";

/// How long the last good credentials stay in use once their Secret has a fault.
const GRACE: Duration = Duration::from_hours(1);

/// How many registries are named that a Secret has credentials for.
const SHOWN: usize = 3;

/// A user's name and password. `Debug` shows neither: some registries take a token as the name.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// A Secret, of a file or a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    pub namespace: Option<String>,
    /// `kubernetes.io/dockerconfigjson`, for example.
    pub type_: String,
    pub data: BTreeMap<String, Vec<u8>>,
}

/// Names the keys only.
impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Secret")
            .field("namespace", &self.namespace)
            .field("type", &self.type_)
            .field("keys", &self.data.keys())
            .finish_non_exhaustive()
    }
}

/// Why a Secret gives no credentials for a registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("cannot read Secret {secret}")]
    Unreadable {
        secret: String,
        #[source]
        source: ParseKeyringError,
    },
    #[error("Secret {secret} has no credentials for {registry}, {}", but(others))]
    NoEntry {
        secret: String,
        registry: String,
        /// What it has some for.
        others: Vec<String>,
    },
    /// It is another kind of Secret.
    #[error(
        "Secret {secret} has no Docker configuration, {}: kubectl create secret docker-registry makes one",
        instead(keys)
    )]
    NotOfDocker {
        secret: String,
        /// What it has, if anything.
        keys: Vec<String>,
    },
    /// No registry takes these (RFC 7617, section 2), and nobody sees why.
    #[error(
        "{what} for {registry} in Secret {secret} {}: write it anew, by printf instead of echo, for example",
        if *.at_end { "ends with a line feed" } else { "has a control character in it" }
    )]
    Control {
        secret: String,
        registry: String,
        /// The password or the user's name.
        what: &'static str,
        /// Whether it is but a line feed at the end.
        at_end: bool,
    },
}

/// Returns what keys a Secret has instead of those of a Docker configuration.
fn instead(keys: &[String]) -> String {
    some(keys).map_or_else(|| "as nothing is in it".to_owned(), |keys| format!("only {keys}"))
}

/// Returns what a Secret has credentials for instead of what was looked for, as the end of a sentence.
fn but(others: &[String]) -> String {
    some(others).map_or_else(
        || "or for any other registry".to_owned(),
        |others| format!("only for {others}"),
    )
}

/// Returns the first of some names, and how many there are besides; none if there is none.
fn some(names: &[String]) -> Option<String> {
    let (shown, more) = names.split_at(names.len().min(SHOWN));
    match (shown, more.len()) {
        ([], _) => None,
        (shown, 0) => Some(shown.join(", ")),
        (shown, more) => Some(format!("{} and {more} more", shown.join(", "))),
    }
}

/// The credentials that are in use for one registry, as its Secret changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    credentials: Option<Credentials>,
    until: Option<Instant>,
}

impl Held {
    /// Returns what is in use once the Secret was found to be so: good credentials at once, none at once
    /// where there is no Secret any more, and the last good ones for a while where it has a fault.
    #[must_use]
    pub fn next(&self, found: &Result<Option<Credentials>, Fault>, at: Instant) -> Self {
        match found {
            Ok(credentials) => Self {
                credentials: credentials.clone(),
                until: None,
            },
            Err(_) => Self {
                credentials: self.credentials.clone(),
                until: self.until.or(Some(at + GRACE)),
            },
        }
    }

    /// Returns what is in use.
    pub const fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// Returns until when, if their end is known.
    pub const fn until(&self) -> Option<Instant> {
        self.until
    }
}

/// Returns a Docker configuration with these logins, by key.
pub fn docker_config<'a>(logins: impl IntoIterator<Item = (&'a str, &'a Credentials)>) -> Vec<u8> {
    let user = |login: &Credentials| json!({"username": login.username, "password": login.password});
    let auths: Map<String, Value> = logins
        .into_iter()
        .map(|(key, login)| (key.to_owned(), user(login)))
        .collect();
    json!({"auths": auths}).to_string().into_bytes()
}

/// Returns the logins of such a configuration, by key; none where it has another form than [`docker_config`] writes.
pub fn logins(config: &[u8]) -> BTreeMap<String, Credentials> {
    let config = serde_json::from_slice::<Value>(config).unwrap_or_default();
    let auths = config.get("auths").and_then(Value::as_object);
    let login = |(key, user): (&String, &Value)| {
        let text = |of: &str| Some(user.get(of)?.as_str()?.to_owned());
        let [username, password] = USER_KEYS.map(text);
        let (username, password) = (username?, password?);
        Some((key.clone(), Credentials { username, password }))
    };
    auths.into_iter().flatten().filter_map(login).collect()
}

impl Secret {
    /// Returns a Secret with a Docker configuration.
    pub fn docker_config(content: Vec<u8>) -> Self {
        Self {
            namespace: None,
            type_: DOCKER_CONFIG_JSON.to_owned(),
            data: BTreeMap::from([(CONFIG_JSON_KEY.to_owned(), content)]),
        }
    }

    /// Whether a key is one that a Docker configuration stands under.
    pub fn is_of_docker(key: &str) -> bool {
        matches!(key, CONFIG_JSON_KEY | CFG_KEY)
    }

    /// Whether a key of a Secret of this type is one that credentials stand under.
    pub fn has_credentials_under(type_: &str, key: &str) -> bool {
        Self::is_of_docker(key) || (type_ == BASIC_AUTH && USER_KEYS.contains(&key))
    }

    /// Returns the user of a Secret that has but one.
    fn user(&self) -> Option<Credentials> {
        let text = |key| String::from_utf8(self.data.get(key)?.clone()).ok();
        let [username, password] = USER_KEYS.map(text);
        (self.type_ == BASIC_AUTH).then_some(Credentials {
            username: username?,
            password: password?,
        })
    }

    /// Returns the credentials for a registry, which this Secret is named `secret` for, by the first of
    /// its `names` that is found.
    pub fn credentials(&self, secret: &str, names: [&str; 2]) -> Result<Credentials, Fault> {
        if let Some(user) = self.user() {
            return usable(user, secret, names[0]);
        }
        let data = |key: &str| self.data.get(key).map(Vec::as_slice);
        let keyring = match (data(CONFIG_JSON_KEY), data(CFG_KEY)) {
            (Some(json), _) => Keyring::from_docker_config_json(json),
            (None, Some(cfg)) => Keyring::from_dockercfg(cfg),
            (None, None) => {
                return Err(Fault::NotOfDocker {
                    secret: secret.to_owned(),
                    keys: self.data.keys().cloned().collect(),
                });
            }
        };
        let keyring = keyring.map_err(|source| Fault::Unreadable {
            secret: secret.to_owned(),
            source,
        })?;
        let found = names.iter().find_map(|name| keyring.for_registry(name));
        let found = found.cloned().ok_or_else(|| Fault::NoEntry {
            secret: secret.to_owned(),
            registry: names[0].to_owned(),
            others: keyring.registries().map(str::to_owned).collect(),
        })?;
        usable(found, secret, names[0])
    }

    /// Returns the key of this Secret that is not of the form that its type asks for, and what is wrong
    /// there; the entries themselves are read by [`Secret::credentials`].
    pub fn malformed(&self) -> Option<(&'static str, String)> {
        let key = match &*self.type_ {
            DOCKER_CONFIG_JSON => CONFIG_JSON_KEY,
            DOCKER_CFG => CFG_KEY,
            _ => return None,
        };
        let Some(bytes) = self.data.get(key) else {
            return Some((key, format!("is required in a Secret of type {}", self.type_)));
        };
        let message = match serde_json::from_slice::<Map<String, Value>>(bytes) {
            Err(error) if error.is_data() => "must be a JSON object".to_owned(),
            Err(error) => format!(
                "is not JSON: line {}, column {} of it",
                error.line(),
                error.column()
            ),
            Ok(config) if key == CONFIG_JSON_KEY && !config.get("auths").is_some_and(Value::is_object) => {
                "must be a JSON object with an object \"auths\"".to_owned()
            }
            Ok(_) => return None,
        };
        Some((key, message))
    }
}

/// Returns credentials that a registry may take.
fn usable(found: Credentials, secret: &str, registry: &str) -> Result<Credentials, Fault> {
    let is_control = |character: char| character.is_ascii_control();
    for (what, text) in [
        ("the password", &found.password),
        ("the user's name", &found.username),
    ] {
        if text.contains(is_control) {
            return Err(Fault::Control {
                secret: secret.to_owned(),
                registry: registry.to_owned(),
                what,
                at_end: !text.trim_end_matches(['\r', '\n']).contains(is_control),
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> Credentials {
        Credentials {
            username: name.to_owned(),
            password: String::new(),
        }
    }

    #[test]
    fn logins_are_read_as_they_were_written() {
        let user = |name: &str| Credentials {
            username: name.to_owned(),
            password: format!("{name}'s \"word\""),
        };
        let (a, b) = (user("a"), user("b"));
        let written = docker_config([("a.test/x/", &a), ("b.test", &b)]);
        let read = logins(&written);
        assert_eq!(
            read,
            [("a.test/x/".to_owned(), a), ("b.test".to_owned(), b)].into()
        );
        for other in [
            r#"{"auths":{"a.test":{"auth":"YTpi"}}}"#,
            r#"{"auths":[]}"#,
            "{}",
            "no",
        ] {
            assert!(logins(other.as_bytes()).is_empty(), "{other}");
        }
    }

    #[test]
    fn a_fault_leaves_the_last_good_credentials_for_a_while() {
        let started = Instant::now();
        let at = |minutes| started + Duration::from_mins(minutes);
        let fault = || {
            Err(Fault::NoEntry {
                secret: "read".to_owned(),
                registry: "mirror.test".to_owned(),
                others: Vec::new(),
            })
        };
        let good = |name| Ok(Some(user(name)));
        let mut held = Held::default();
        let mut check = |found: Result<Option<Credentials>, Fault>,
                         minute,
                         expected: Option<&str>,
                         until: Option<u64>| {
            held = held.next(&found, at(minute));
            assert_eq!(held.credentials(), expected.map(user).as_ref(), "minute {minute}");
            assert_eq!(held.until(), until.map(at), "minute {minute}");
        };
        check(good("a"), 0, Some("a"), None);
        check(fault(), 10, Some("a"), Some(70));
        // However often it changes, an hour after the first fault they are over.
        check(fault(), 69, Some("a"), Some(70));
        check(good("b"), 71, Some("b"), None);
        check(fault(), 80, Some("b"), Some(140));
        // Deleted means out of use, and nothing is left to fall back on.
        check(Ok(None), 90, None, None);
        check(fault(), 91, None, Some(151));
        check(good("b"), 92, Some("b"), None);
    }

    #[test]
    fn a_registry_is_found_by_either_of_its_names() {
        let check = |content: &str, expected: Result<&str, &str>| {
            let secret = Secret::docker_config(content.as_bytes().to_vec());
            let found = secret.credentials("read", ["mirror.test/cache", "mirror.svc:5000"]);
            let found = found
                .map(|found| found.username)
                .map_err(|fault| fault.to_string());
            assert_eq!(
                found,
                expected.map(str::to_owned).map_err(str::to_owned),
                "{content}"
            );
        };
        let inner = r#""mirror.svc:5000": {"username": "inner", "password": "p"}"#;
        let outer = r#""mirror.test": {"username": "outer", "password": "p"}"#;
        check(&format!(r#"{{"auths": {{{inner}}}}}"#), Ok("inner"));
        check(&format!(r#"{{"auths": {{{inner}, {outer}}}}}"#), Ok("outer"));
        check(
            r#"{"auths": {"mirror.svc": {"username": "inner", "password": "p"}}}"#,
            Err("Secret read has no credentials for mirror.test/cache, only for mirror.svc"),
        );
        let user = |host: &str| format!(r#""{host}": {{"username": "u", "password": "p"}}"#);
        let many = ["a.test", "b.test", "c.test", "d.test"].map(user).join(", ");
        check(
            &format!(r#"{{"auths": {{{many}}}}}"#),
            Err(
                "Secret read has no credentials for mirror.test/cache, only for a.test, b.test, c.test and 1 more",
            ),
        );
        for none in ["{}", r#"{"auths": {}}"#] {
            check(
                none,
                Err("Secret read has no credentials for mirror.test/cache, or for any other registry"),
            );
        }
        check("{", Err("cannot read Secret read"));
    }

    #[test]
    fn another_kind_of_secret_is_told_by_its_keys() {
        let check = |keys: &[&str], expected: &str| {
            let data = keys.iter().map(|key| ((*key).to_owned(), b"geheim".to_vec()));
            let secret = Secret {
                namespace: None,
                type_: "kubernetes.io/tls".to_owned(),
                data: data.collect(),
            };
            let fault = secret.credentials("read", ["mirror.test"; 2]).unwrap_err();
            let makes = "kubectl create secret docker-registry makes one";
            assert_eq!(
                fault.to_string(),
                format!("Secret read has no Docker configuration, {expected}: {makes}")
            );
        };
        check(&["password", "username"], "only password, username");
        check(&["a", "b", "c", "d", "e"], "only a, b, c and 2 more");
        check(&[], "as nothing is in it");
    }

    #[test]
    fn a_secret_of_one_user_is_for_whatever_it_is_named_for() {
        let check = |type_: &str, data: &[(&str, &str)], expected: Result<&str, &str>| {
            let data = data.iter();
            let secret = Secret {
                namespace: None,
                type_: type_.to_owned(),
                data: data
                    .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
                    .collect(),
            };
            let found = secret.credentials("read", ["docker.io", "docker.io"]);
            let found = found.map(|found| format!("{}:{}", found.username, found.password));
            assert_eq!(
                found.map_err(|fault| fault.to_string()),
                expected.map(str::to_owned).map_err(str::to_owned)
            );
        };
        let both = [("username", "a"), ("password", "b")];
        check(BASIC_AUTH, &both, Ok("a:b"));
        let makes = "kubectl create secret docker-registry makes one";
        let told = format!("Secret read has no Docker configuration, only password, username: {makes}");
        check("Opaque", &both, Err(&told));
        let told = format!("Secret read has no Docker configuration, only username: {makes}");
        check(BASIC_AUTH, &both[..1], Err(&told));
        let anew = "write it anew, by printf instead of echo, for example";
        let told = format!("the password for docker.io in Secret read ends with a line feed: {anew}");
        check(BASIC_AUTH, &[both[0], ("password", "b\n")], Err(&told));
    }

    #[test]
    fn what_no_registry_takes_is_a_fault() {
        let check = |username: &str, password: &str, expected: Result<(), &str>| {
            let entry = serde_json::json!({"username": username, "password": password});
            let content =
                serde_json::json!({"auths": {"mirror.test": entry, "other.test": {"username": "a\n"}}});
            let secret = Secret::docker_config(content.to_string().into_bytes());
            let found = secret
                .credentials("read", ["mirror.test", "mirror.svc"])
                .map(drop);
            assert_eq!(
                found.map_err(|fault| fault.to_string()),
                expected.map_err(str::to_owned)
            );
        };
        check("reader", "geheim", Ok(()));
        check("reader", " gehéim ", Ok(()));
        let anew = "write it anew, by printf instead of echo, for example";
        for password in ["geheim\n", "geheim\r\n"] {
            let told = format!("the password for mirror.test in Secret read ends with a line feed: {anew}");
            check("reader", password, Err(&told));
        }
        let told =
            format!("the password for mirror.test in Secret read has a control character in it: {anew}");
        check("reader", "ge\theim\n", Err(&told));
        let told = format!("the user's name for mirror.test in Secret read ends with a line feed: {anew}");
        check("reader\n", "geheim", Err(&told));
    }
}
