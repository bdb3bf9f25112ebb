//! From a configuration to the store: compiled routing, clients, namespaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use super::{
    Configured, Store,
    file::{Configuration, Secret},
};
use crate::{
    api::mirror::Connection,
    domain::{
        mapping::Mapping,
        mirror::{Kind, Mirror},
        routing::Routing,
        time::Timestamp,
    },
    registry::{self, Client, Credentials, Endpoint, Keyring, ParseKeyringError},
};

/// Why a configuration cannot be put to use.
#[derive(Debug, thiserror::Error)]
#[error("ImageMirror {mirror}")]
pub struct Unusable {
    pub mirror: String,
    #[source]
    source: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Endpoint(#[from] registry::Error),
    #[error("cannot read Secret {name}")]
    Secret {
        name: String,
        #[source]
        source: ParseKeyringError,
    },
    #[error("Secret {name} has no credentials for {registry}")]
    NoCredentials { name: String, registry: String },
}

/// Puts configurations into a store. The client of a mirror that stays the same stays too, with its
/// open connections and tokens; that is also how others tell that a mirror is now another one.
#[derive(Debug)]
pub struct Feed {
    store: Store,
    left_alone: BTreeSet<String>,
    clients: Mutex<BTreeMap<String, (Identity, Client)>>,
}

/// What makes a mirror the one that it is: proofs of another one are worth nothing.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    connection: Connection,
    secret: Option<Secret>,
    kind: Kind,
    mapping: Mapping,
}

impl Feed {
    /// Returns a feed of `store`; Pods of the namespaces `left_alone` are never touched.
    pub fn new(store: Store, left_alone: BTreeSet<String>) -> Self {
        Self {
            store,
            left_alone,
            clients: Mutex::default(),
        }
    }

    /// Puts a whole configuration to use, or returns everything that hinders it; then nothing
    /// changes. What is known of images on other mirrors is forgotten.
    pub fn apply(&self, configuration: Configuration, now: Timestamp) -> Result<(), Vec<Unusable>> {
        self.put(configuration, now)?;
        let snapshot = self.store.snapshot();
        let mirrors = snapshot.routing.by_name();
        self.store
            .index_mut()
            .retain_mirrors(|mirror| mirrors.contains_key(mirror));
        Ok(())
    }

    /// Returns why a mirror cannot be used, if it cannot.
    pub fn check(mirror: &Mirror, connection: &Connection, secret: Option<&Secret>) -> Result<(), Unusable> {
        let unusable = |source| Unusable {
            mirror: mirror.name.clone(),
            source,
        };
        client(mirror, connection, secret).map(drop).map_err(unusable)
    }

    /// Returns what a mirror is asked with, of all that a Secret holds; nothing if that is nothing.
    pub fn credentials(mirror: &Mirror, connection: &Connection, secret: &Secret) -> Option<Credentials> {
        let name = connection.probe_secret.as_deref()?;
        credentials(mirror, connection, name, secret).ok()
    }

    /// The same as [`Feed::apply`] without forgetting anything: images may be known before their
    /// mirror is.
    pub fn put(&self, configuration: Configuration, now: Timestamp) -> Result<(), Vec<Unusable>> {
        let Configuration {
            mirrors,
            namespaces,
            secrets,
            pull_secret_namespaces,
        } = configuration;
        let mut known = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = BTreeMap::new();
        let mut faults = Vec::new();
        let mut routed = Vec::new();
        for (mut mirror, connection) in mirrors {
            let secret = connection
                .probe_secret
                .as_ref()
                .and_then(|name| secrets.get(name))
                .cloned();
            let identity = Identity {
                connection,
                secret,
                kind: mirror.kind,
                mapping: mirror.mapping.clone(),
            };
            let client = match known.get(&mirror.name) {
                Some((same, client)) if *same == identity => Ok(client.clone()),
                _ => client(&mirror, &identity.connection, identity.secret.as_ref()),
            };
            match client {
                Ok(client) => {
                    next.insert(mirror.name.clone(), (identity, client));
                }
                Err(source) => faults.push(Unusable {
                    mirror: mirror.name.clone(),
                    source,
                }),
            }
            mirror
                .pull_secret_namespaces
                .extend(pull_secret_namespaces.iter().cloned());
            routed.push(mirror);
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        *known = next;
        let clients = known
            .iter()
            .map(|(name, (_, client))| (name.clone(), client.clone()))
            .collect();
        let routing = Routing::compile(routed);
        let left_alone = self.left_alone.clone();
        self.store.configure(
            Configured {
                routing,
                clients,
                namespaces,
                left_alone,
            },
            now,
        );
        Ok(())
    }
}

fn client(mirror: &Mirror, connection: &Connection, secret: Option<&Secret>) -> Result<Client, Cause> {
    let credentials = match (&connection.probe_secret, secret) {
        (Some(name), Some(secret)) => Some(credentials(mirror, connection, name, secret)?),
        _ => None,
    };
    let endpoint = Endpoint {
        url: connection.endpoint.clone(),
        ca_bundle: connection.ca_bundle.clone(),
        credentials,
    };
    Ok(Client::new(&endpoint)?)
}

/// Returns the Secret's credentials for the mirror: by the name that stands in Pods, or by the name
/// under which Kagami reaches it.
fn credentials(
    mirror: &Mirror,
    connection: &Connection,
    name: &str,
    secret: &Secret,
) -> Result<Credentials, Cause> {
    let unreadable = |source| Cause::Secret {
        name: name.to_owned(),
        source,
    };
    let data = |key: &str| secret.data.get(key).map(Vec::as_slice);
    let keyring = match (data(".dockerconfigjson"), data(".dockercfg")) {
        (Some(json), _) => Keyring::from_docker_config_json(json).map_err(unreadable)?,
        (None, Some(cfg)) => Keyring::from_dockercfg(cfg).map_err(unreadable)?,
        (None, None) => Keyring::from_docker_config_json(b"{}").map_err(unreadable)?,
    };
    let registry = mirror.mapping.registry.to_string();
    let host = connection.endpoint.rsplit("//").next().unwrap_or_default();
    let found = keyring
        .for_registry(&registry)
        .or_else(|| keyring.for_registry(host))
        .cloned();
    found.ok_or_else(|| Cause::NoCredentials {
        name: name.to_owned(),
        registry,
    })
}
