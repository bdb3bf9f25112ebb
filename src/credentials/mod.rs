//! What Secrets hold, and the credentials for a registry in it.
//!
//! The one place that reads Docker configurations. `Debug` and errors say where something stands, never what.

mod keyring;

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};

pub use self::keyring::{Keyring, ParseKeyringError};

/// The type of a Secret with a Docker configuration.
pub const DOCKER_CONFIG_JSON: &str = "kubernetes.io/dockerconfigjson";

/// The type of a Secret with a Docker configuration of the older form.
pub const DOCKER_CFG: &str = "kubernetes.io/dockercfg";

/// Where a Secret has its Docker configuration.
const CONFIG_JSON_KEY: &str = ".dockerconfigjson";

/// The same of the older form.
const CFG_KEY: &str = ".dockercfg";

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
    #[error("Secret {secret} has no credentials for {registry}")]
    NoEntry { secret: String, registry: String },
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

    /// Returns the credentials for a registry, which this Secret is named `secret` for, by the first of
    /// its `names` that is found.
    pub fn credentials(&self, secret: &str, names: [&str; 2]) -> Result<Credentials, Fault> {
        let data = |key: &str| self.data.get(key).map(Vec::as_slice);
        let keyring = match (data(CONFIG_JSON_KEY), data(CFG_KEY)) {
            (Some(json), _) => Keyring::from_docker_config_json(json),
            (None, Some(cfg)) => Keyring::from_dockercfg(cfg),
            (None, None) => Ok(Keyring::default()),
        };
        let keyring = keyring.map_err(|source| Fault::Unreadable {
            secret: secret.to_owned(),
            source,
        })?;
        let found = names.iter().find_map(|name| keyring.lookup(name));
        found.cloned().ok_or_else(|| Fault::NoEntry {
            secret: secret.to_owned(),
            registry: names[0].to_owned(),
        })
    }

    /// Returns the Docker configuration in the newer of its two forms.
    pub fn docker_config_json(&self) -> Option<Vec<u8>> {
        if let Some(config) = self.data.get(CONFIG_JSON_KEY) {
            return Some(config.clone());
        }
        let old: Value = serde_json::from_slice(self.data.get(CFG_KEY)?).ok()?;
        Some(serde_json::json!({"auths": old}).to_string().into_bytes())
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
