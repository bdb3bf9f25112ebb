//! From a configuration to the store: compiled routing, clients, namespaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::{
    Configured, Store,
    configuration::Configuration,
    logins::{Login, Logins, OfMirror, PullLogins},
};
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
    logins: Logins,
    pull_logins: PullLogins,
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

    /// Returns the name under which Kagami reaches it.
    fn host(&self) -> &str {
        self.endpoint.rsplit("//").next().unwrap_or_default()
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint {
            url: self.endpoint.clone(),
            ca_bundle: self.ca_bundle.clone(),
            trust: self.trust,
            credentials: None,
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
    /// How it is filled; none where it is not.
    filling: Option<Filling>,
    /// What Pods pull from it with; none where they need nothing.
    pull: Option<Named>,
}

/// The logins with which a mirror is filled, as their Secrets change.
#[derive(Clone, Debug, Default)]
struct Filling {
    push: Named,
    sources: BTreeMap<String, Named>,
}

/// A login and the Secret that it comes from.
#[derive(Clone, Debug, Default)]
struct Named {
    secret: Option<String>,
    login: Login,
}

impl Named {
    /// Returns what stays of it where a Secret is named.
    fn next(before: Option<&Self>, secret: Option<&String>) -> Self {
        match before.filter(|before| before.secret.as_ref() == secret) {
            Some(same) => same.clone(),
            // What another Secret had is nothing to fall back on.
            None => Self {
                secret: secret.cloned(),
                login: Login::default(),
            },
        }
    }

    /// Takes in what the Secret has now for a registry, by either of these names.
    fn take(&mut self, names: [&str; 2], secrets: &BTreeMap<String, Secret>, now: Instant) {
        let Some(name) = self.secret.as_deref() else {
            return;
        };
        let secret = secrets.get(name);
        let found = secret.map(|secret| secret.credentials(name, names)).transpose();
        self.login = Login {
            held: self.login.held.next(&found, now),
            fault: found.err().map(Arc::new),
            missing: secret.is_none().then(|| name.into()),
        };
    }
}

impl Filling {
    /// Returns how a mirror is filled from now on, if it is.
    fn next(before: Option<&Self>, mirror: &Mirror, connection: &Connection) -> Option<Self> {
        mirror.copying.as_ref()?;
        let push = connection
            .copy_secret
            .as_ref()
            .or(connection.probe_secret.as_ref());
        let sources = connection.source_secrets.iter().map(|(prefix, secret)| {
            let before = before.and_then(|before| before.sources.get(prefix));
            (prefix.clone(), Named::next(before, Some(secret)))
        });
        Some(Self {
            push: Named::next(before.map(|before| &before.push), push),
            sources: sources.collect(),
        })
    }

    fn take(&mut self, mirror: &Identity, secrets: &BTreeMap<String, Secret>, now: Instant) {
        let registry = mirror.mapping.registry.to_string();
        self.push.take([&registry, mirror.host()], secrets, now);
        for (prefix, source) in &mut self.sources {
            source.take(of_source(prefix), secrets, now);
        }
    }
}

/// Returns the names by which a Secret may have a login for a source: what it mirrors, and the host of that.
pub fn of_source(prefix: &str) -> [&str; 2] {
    [prefix, prefix.split('/').next().unwrap_or(prefix)]
}

impl Feed {
    /// Returns a feed of `store`; Pods of the namespaces `left_alone` are never touched.
    pub fn new(store: Store, left_alone: BTreeSet<String>) -> Self {
        Self {
            store,
            left_alone,
            mirrors: Mutex::default(),
            logins: Logins::default(),
            pull_logins: PullLogins::default(),
        }
    }

    /// Returns the logins with which mirrors are filled, as they are now and will be.
    pub fn logins(&self) -> Logins {
        self.logins.clone()
    }

    /// Returns the logins with which Pods may pull from mirrors, as they are now and will be.
    pub fn pull_logins(&self) -> PullLogins {
        self.pull_logins.clone()
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
            closed,
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
        let faults = self.take_secrets(&mut before, &secrets);
        let clients = before
            .iter()
            .map(|(name, fed)| (name.clone(), fed.client.clone()))
            .collect();
        self.store.configure(
            Configured {
                routing: Routing::compile_with(routed, &closed),
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
        self.take_secrets(&mut self.mirrors(), secrets)
    }

    /// Gives clients the credentials that Secrets have now, and whoever fills mirrors theirs.
    fn take_secrets(
        &self,
        mirrors: &mut BTreeMap<String, Fed>,
        secrets: &BTreeMap<String, Secret>,
    ) -> SecretFaults {
        let now = Instant::now();
        let mut faults = SecretFaults::new();
        let mut logins = BTreeMap::new();
        let mut pull_logins = BTreeMap::new();
        for (name, fed) in mirrors {
            let found = found(&fed.identity, fed.secret.as_deref(), secrets);
            fed.held = fed.held.next(&found, now);
            fed.client
                .set_credentials(fed.held.credentials(), fed.held.until());
            if let Err(fault) = found {
                faults.insert(name.clone(), fault);
            }
            if let Some(pull) = &mut fed.pull {
                let registry = fed.identity.mapping.registry.to_string();
                pull.take([&registry, fed.identity.host()], secrets, now);
                pull_logins.insert(name.clone(), pull.login.clone());
            }
            let Some(filling) = &mut fed.filling else { continue };
            filling.take(&fed.identity, secrets, now);
            let sources = filling.sources.iter();
            logins.insert(
                name.clone(),
                OfMirror {
                    endpoint: fed.identity.endpoint(),
                    push: filling.push.login.clone(),
                    sources: sources
                        .map(|(prefix, named)| (prefix.clone(), named.login.clone()))
                        .collect(),
                },
            );
        }
        self.logins.publish(logins);
        self.pull_logins.publish(pull_logins);
        faults
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
                let source = found(&identity, connection.probe_secret.as_deref(), secrets)
                    .err()
                    .or_else(|| {
                        mirror.copying.as_ref()?;
                        fault_in_filling(&identity, connection, secrets)
                    })?;
                Some(Unusable {
                    mirror: mirror.name.clone(),
                    source: source.into(),
                })
            })
        };
        mirrors.iter().filter_map(fault).collect()
    }

    /// Returns what a mirror is asked with, of all that a Secret of this name holds.
    pub fn credentials(
        mirror: &Mirror,
        connection: &Connection,
        name: &str,
        secret: &Secret,
    ) -> Result<Credentials, Fault> {
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
                filling: None,
                pull: None,
            },
        };
        let pull = connection.pull_secret.as_ref();
        next.pull = pull.map(|secret| Named::next(next.pull.as_ref(), Some(secret)));
        next.filling = Filling::next(next.filling.as_ref(), mirror, &connection);
        if next.secret != connection.probe_secret {
            // What another Secret had is nothing to fall back on.
            next.held = Held::default();
            next.secret = connection.probe_secret;
        }
        Ok(next)
    }
}

/// Returns what is wrong with a Secret that a mirror is filled with, if something is.
fn fault_in_filling(
    mirror: &Identity,
    connection: &Connection,
    secrets: &BTreeMap<String, Secret>,
) -> Option<Fault> {
    let registry = mirror.mapping.registry.to_string();
    let push = connection.copy_secret.iter();
    let push = push.map(|secret| (secret, [registry.as_str(), mirror.host()]));
    let sources = connection.source_secrets.iter();
    let sources = sources.map(|(prefix, secret)| (secret, of_source(prefix)));
    let mut all = push.chain(sources);
    all.find_map(|(name, names)| secrets.get(name)?.credentials(name, names).err())
}

fn client(mirror: &Mirror, connection: &Connection) -> Result<Client, Unusable> {
    Client::new(&Identity::of(mirror, connection).endpoint()).map_err(|error| Unusable {
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
    secret.credentials(name, [&registry, mirror.host()])
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

    /// Checks who writes to the mirror and who reads upstream, with the Secrets that there are.
    #[test]
    fn logins_for_copies_are_live_and_each_for_its_own() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let config = |host: &str, user: &str| {
            let auths = serde_json::json!({"auths": {host: {"username": user, "password": "p"}}});
            Secret::docker_config(auths.to_string().into_bytes())
        };
        let text = |copy: &str| {
            format!(
                "{{apiVersion: kagami.dev/v1alpha1, kind: ImageMirror, metadata: {{name: a}}, spec: {{\
                 registry: mirror.test, kind: Hosted, namespaceSelector: {{matchLabels: {{a: b}}}}, \
                 endpoint: {{credentials: {{secretRef: {{name: read}}}}}}, copy: {copy}, sources: [\
                 {{prefix: docker.io, credentials: {{secretRef: {{name: hub}}}}}}, {{prefix: quay.io}}]}}}}"
            )
        };
        let secrets = |hub: Secret| {
            BTreeMap::from([
                ("read".to_owned(), config("mirror.test", "reader")),
                ("push".to_owned(), config("mirror.test", "pusher")),
                ("hub".to_owned(), hub),
            ])
        };
        let told = |logins: &Logins| {
            let of = logins.of("a")?;
            let user = |login: &Login| login.held.credentials().map(|user| user.username.clone());
            let hub = &of.sources["docker.io"];
            assert_eq!(of.sources.len(), 1, "the other source has no Secret");
            Some((user(&of.push), user(hub), hub.trouble()))
        };
        let user = |name: &str| Some(name.to_owned());
        let feed = Feed::new(Store::default(), BTreeSet::new());
        let apply = |copy: &str| {
            // A file has all Secrets that it names.
            let all = ["read", "push", "hub"].map(|name| {
                format!(
                    "\n---\n{{apiVersion: v1, kind: Secret, metadata: {{name: {name}}}, \
                     type: kubernetes.io/basic-auth, stringData: {{username: x, password: x}}}}"
                )
            });
            let text = format!("{}{}", text(copy), all.concat());
            let configuration = Configuration {
                secrets: secrets(config("https://index.docker.io/v1/", "hub")),
                ..file::load(&text, "mirrors.yaml").unwrap()
            };
            feed.apply(configuration, Keep::All, Timestamp::from_millis(1))
                .unwrap();
            told(&feed.logins())
        };
        assert_eq!(apply("{policy: \"Off\"}"), None, "nobody needs them");
        assert_eq!(
            apply("{policy: OnDemand}"),
            Some((user("reader"), user("hub"), None))
        );
        let copy = "{policy: OnDemand, credentials: {secretRef: {name: push}}}";
        assert_eq!(apply(copy), Some((user("pusher"), user("hub"), None)));
        // A faulty Secret leaves the last good login, and a deleted one leaves none.
        feed.renew(&secrets(config("ghcr.io", "other")));
        let fault = "Secret hub has no credentials for docker.io, only for ghcr.io";
        assert_eq!(
            told(&feed.logins()),
            Some((user("pusher"), user("hub"), Some(fault.to_owned())))
        );
        let mut deleted = secrets(config("ghcr.io", "other"));
        deleted.remove("hub");
        feed.renew(&deleted);
        let missing = "there is no Secret hub in Kagami's namespace".to_owned();
        assert_eq!(told(&feed.logins()), Some((user("pusher"), None, Some(missing))));
        feed.renew(&secrets(config("docker.io", "renewed")));
        assert_eq!(
            told(&feed.logins()),
            Some((user("pusher"), user("renewed"), None))
        );
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
