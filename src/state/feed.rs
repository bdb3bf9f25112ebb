//! From a configuration to the store: compiled routing, clients, namespaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::{Configured, Store, configuration::Configuration};
use crate::{
    api::mirror::Connection,
    credentials::{Credentials, Fault, Held, Secret},
    domain::{
        mapping::Mapping,
        mirror::{Kind, Mirror, Trust},
        routing::Routing,
        time::Timestamp,
    },
    registry::{self, Client, Endpoint},
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
    #[error(transparent)]
    Secret(#[from] Fault),
}

/// Mirrors whose Secret gives no credentials, and why.
pub type SecretFaults = BTreeMap<String, Fault>;

/// Whose images stay known, beside those of the mirrors that are put to use.
#[derive(Clone, Copy, Debug)]
pub enum Keep<'a> {
    /// Everybody's: images may be known before their mirror is, and a mirror may be out of force for
    /// a while.
    All,
    /// Those of these mirrors.
    Of(&'a BTreeSet<String>),
}

/// Puts configurations into a store. The client of a mirror that stays the same stays too, with its
/// open connections and tokens; that is also how others tell that a mirror is now another one.
#[derive(Debug)]
pub struct Feed {
    store: Store,
    left_alone: BTreeSet<String>,
    mirrors: Mutex<BTreeMap<String, Fed>>,
}

/// What makes a mirror the one that it is: proofs of another one are worth nothing. The credentials
/// with which it is asked are no part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    endpoint: String,
    ca_bundle: Option<Vec<u8>>,
    trust: Trust,
    kind: Kind,
    mapping: Mapping,
}

impl Identity {
    pub(super) fn of(mirror: &Mirror, connection: &Connection) -> Self {
        Self {
            endpoint: connection.endpoint.clone(),
            ca_bundle: connection.ca_bundle.clone(),
            trust: connection.trust,
            kind: mirror.kind,
            mapping: mirror.mapping.clone(),
        }
    }
}

/// A mirror that is in use.
#[derive(Clone, Debug)]
struct Fed {
    identity: Identity,
    client: Client,
    /// The Secret that it is asked with.
    secret: Option<String>,
    held: Held,
}

impl Feed {
    /// Returns a feed of `store`; Pods of the namespaces `left_alone` are never touched.
    pub fn new(store: Store, left_alone: BTreeSet<String>) -> Self {
        Self {
            store,
            left_alone,
            mirrors: Mutex::default(),
        }
    }

    /// Puts a whole configuration to use, or returns everything that hinders it; then nothing
    /// changes. A Secret hinders nothing: those with a fault are returned.
    pub fn apply(
        &self,
        configuration: Configuration,
        keep: Keep<'_>,
        now: Timestamp,
    ) -> Result<SecretFaults, Vec<Unusable>> {
        let Configuration {
            mirrors,
            standings,
            namespaces,
            secrets,
        } = configuration;
        let mut before = self.mirrors();
        let mut next = BTreeMap::new();
        let mut hindrances = Vec::new();
        let mut routed = Vec::new();
        for (mirror, connection) in mirrors {
            match Fed::next(before.get(&mirror.name), &mirror, connection) {
                Ok(fed) => {
                    next.insert(mirror.name.clone(), fed);
                }
                Err(unusable) => hindrances.push(unusable),
            }
            routed.push(mirror);
        }
        if !hindrances.is_empty() {
            return Err(hindrances);
        }
        *before = next;
        let faults = take_secrets(&mut before, &secrets);
        let clients = before
            .iter()
            .map(|(name, fed)| (name.clone(), fed.client.clone()))
            .collect();
        self.store.configure(
            Configured {
                routing: Routing::compile(routed),
                standings,
                clients,
                namespaces,
                left_alone: self.left_alone.clone(),
            },
            now,
        );
        if let Keep::Of(others) = keep {
            self.store
                .index_mut()
                .retain_mirrors(|mirror| before.contains_key(mirror) || others.contains(mirror));
        }
        Ok(faults)
    }

    /// Takes in all Secrets as they are now, without anything else of a configuration.
    pub fn renew(&self, secrets: &BTreeMap<String, Secret>) -> SecretFaults {
        take_secrets(&mut self.mirrors(), secrets)
    }

    /// Returns why a mirror cannot be used, if it cannot. One that is reached as it was `before`, when it was
    /// in force, needs no look.
    pub fn check(before: Option<&(Mirror, Connection)>, form: &(Mirror, Connection)) -> Result<(), Unusable> {
        let identity = |(mirror, connection): &(Mirror, Connection)| Identity::of(mirror, connection);
        if before.is_some_and(|before| identity(before) == identity(form)) {
            return Ok(());
        }
        client(&form.0, &form.1).map(drop)
    }

    /// Returns everything that is wrong with a configuration whose Secrets come with it, so that one
    /// with a fault is a fault of the whole.
    pub fn check_whole(configuration: &Configuration) -> Vec<Unusable> {
        let Configuration { mirrors, secrets, .. } = configuration;
        let fault = |form: &(Mirror, Connection)| {
            let (mirror, connection) = form;
            Self::check(None, form).err().or_else(|| {
                let identity = Identity::of(mirror, connection);
                let source = found(&identity, connection.probe_secret.as_deref(), secrets).err()?;
                Some(Unusable {
                    mirror: mirror.name.clone(),
                    source: source.into(),
                })
            })
        };
        mirrors.iter().filter_map(fault).collect()
    }

    /// Returns what a mirror is asked with, of all that a Secret holds.
    pub fn credentials(
        mirror: &Mirror,
        connection: &Connection,
        secret: &Secret,
    ) -> Result<Credentials, Fault> {
        let name = connection.probe_secret.as_deref().unwrap_or_default();
        credentials(&Identity::of(mirror, connection), name, secret)
    }

    fn mirrors(&self) -> MutexGuard<'_, BTreeMap<String, Fed>> {
        self.mirrors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fed {
    /// Returns what becomes of a mirror: the same, or a new one.
    fn next(before: Option<&Self>, mirror: &Mirror, connection: Connection) -> Result<Self, Unusable> {
        let identity = Identity::of(mirror, &connection);
        let mut next = match before.filter(|before| before.identity == identity) {
            Some(same) => same.clone(),
            None => Self {
                client: client(mirror, &connection)?,
                identity,
                secret: None,
                held: Held::default(),
            },
        };
        if next.secret != connection.probe_secret {
            // What another Secret had is nothing to fall back on.
            next.held = Held::default();
            next.secret = connection.probe_secret;
        }
        Ok(next)
    }
}

/// Gives clients the credentials that Secrets have now.
fn take_secrets(mirrors: &mut BTreeMap<String, Fed>, secrets: &BTreeMap<String, Secret>) -> SecretFaults {
    let now = Instant::now();
    let mut faults = SecretFaults::new();
    for (name, fed) in mirrors {
        let found = found(&fed.identity, fed.secret.as_deref(), secrets);
        fed.held = fed.held.next(&found, now);
        fed.client
            .set_credentials(fed.held.credentials(), fed.held.until());
        if let Err(fault) = found {
            faults.insert(name.clone(), fault);
        }
    }
    faults
}

fn client(mirror: &Mirror, connection: &Connection) -> Result<Client, Unusable> {
    let endpoint = Endpoint {
        url: connection.endpoint.clone(),
        ca_bundle: connection.ca_bundle.clone(),
        trust: connection.trust,
        credentials: None,
    };
    Client::new(&endpoint).map_err(|error| Unusable {
        mirror: mirror.name.clone(),
        source: error.into(),
    })
}

/// Returns the credentials for a mirror that Secrets have now, none without its Secret.
fn found(
    mirror: &Identity,
    name: Option<&str>,
    secrets: &BTreeMap<String, Secret>,
) -> Result<Option<Credentials>, Fault> {
    let named = name.and_then(|name| Some((name, secrets.get(name)?)));
    named
        .map(|(name, secret)| credentials(mirror, name, secret))
        .transpose()
}

/// Returns a Secret's credentials for a mirror: by the name that stands in Pods, or by the name under
/// which Kagami reaches it.
fn credentials(mirror: &Identity, name: &str, secret: &Secret) -> Result<Credentials, Fault> {
    let registry = mirror.mapping.registry.to_string();
    let host = mirror.endpoint.rsplit("//").next().unwrap_or_default();
    secret.credentials(name, [&registry, host])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{examples::key, presence::Presence},
        state::file,
    };

    /// A form that no client could be made for tells whether one was tried.
    #[test]
    fn what_is_reached_as_before_is_not_tried_again() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let text = "{apiVersion: kagami.dev/v1alpha1, kind: ImageMirror, metadata: {name: a}, \
                    spec: {registry: mirror.test, kind: Hosted, sources: [{prefix: docker.io}]}}";
        let (mirror, mut connection) = file::load(text, "mirrors.yaml").unwrap().mirrors.remove(0);
        connection.ca_bundle = Some(b"no certificate".to_vec());
        let before = (mirror, connection);
        assert!(Feed::check(None, &before).is_err());
        let mut now = before.clone();
        now.0.priority += 1;
        now.1.probe_secret = Some("read".to_owned());
        assert!(Feed::check(Some(&before), &now).is_ok());
        now.1.endpoint = "https://other.test".to_owned();
        assert!(Feed::check(Some(&before), &now).is_err());
    }

    #[test]
    fn images_are_forgotten_only_of_mirrors_that_nobody_has() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let text = "{apiVersion: kagami.dev/v1alpha1, kind: ImageMirror, metadata: {name: a}, \
                    spec: {registry: mirror.test, kind: Hosted, sources: [{prefix: docker.io}]}}";
        let configuration = file::load(text, "mirrors.yaml").unwrap();
        let (nginx, now) = (key("docker.io/library/nginx:1"), Timestamp::from_millis(1));
        let others = BTreeSet::from(["b".to_owned()]);
        for (keep, expected) in [
            (Keep::All, "abc"),
            (Keep::Of(&others), "ab"),
            (Keep::Of(&BTreeSet::new()), "a"),
        ] {
            let store = Store::default();
            for mirror in ["a", "b", "c"] {
                let mut index = store.index_mut();
                index.write(mirror, nginx, Presence::Missing, now, now);
            }
            let feed = Feed::new(store.clone(), BTreeSet::new());
            feed.apply(configuration.clone(), keep, now).unwrap();
            let known = |mirror: &&str| store.index().get(mirror, nginx).is_some();
            let left: String = ["a", "b", "c"].into_iter().filter(known).collect();
            assert_eq!(left, expected, "{keep:?}");
        }
    }
}
