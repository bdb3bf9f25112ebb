//! The state of a cluster read once, for commands that answer once and end.
//!
//! It is read by lists and believed by the same rules as by watches, with one difference: whoever
//! cannot wait to see the heartbeat believes its date. A part that may not be read, as by a person
//! with few rights, is done without and told; without the mirrors there is nothing to tell.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{Replica, SharedMirror, belief::Contacts};
use crate::{
    api::{HEALTH_LEASE, ORIGINALS_CONFIG_MAP, OWNERS_CONFIG_MAP, PROBE_SECRET, v1alpha1::MirroredImage},
    clock,
    cluster::{
        objects::{self, ConfigMap, Object, Outline},
        sources,
        watch::{Event, Failure, Pulse, Source, get, list, named, version},
    },
    credentials::{Fault, Secret},
    domain::{health::Ping, image::Reference},
    state::configuration::Configuration,
    telemetry::chain,
};

/// Which images are read.
#[derive(Clone, Debug)]
pub enum Images {
    All,
    /// Those of these references, on whatever mirror may serve them.
    These(Vec<String>),
}

/// Which namespaces are read.
#[derive(Clone, Debug)]
pub enum Namespaces {
    All,
    One(String),
}

/// How much is read.
#[derive(Clone, Debug)]
pub struct Scope {
    pub images: Images,
    pub namespaces: Namespaces,
}

/// The state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("the cluster has no {0}: the definitions of `kagami crds` are not installed")]
    NotInstalled(&'static str),
    #[error("cannot read {what}: {why}")]
    Failed { what: &'static str, why: String },
}

impl Unreadable {
    fn new(source: &Source, failure: &Failure) -> Self {
        match failure {
            Failure::Refused { code: 404, .. } => Self::NotInstalled(source.name),
            failure => Self::Failed {
                what: source.name,
                why: failure.to_string(),
            },
        }
    }
}

impl Replica {
    /// Reads the state once. Returns what could not be read, a sentence for each.
    pub async fn read_once(&self, scope: &Scope) -> Result<Vec<String>, Unreadable> {
        let mut notes = Vec::new();
        // Before the images: a sweep that a status tells of is then covered by their list.
        self.list(sources::mirrors(), |event| self.0.take_mirror(event))
            .await?;
        let (images, namespaces, lease, credentials, owners, originals) = tokio::join!(
            self.read_images(&scope.images),
            self.read_namespaces(&scope.namespaces),
            self.read_lease(),
            self.read_credentials(),
            self.read_owners(),
            self.read_originals(),
        );
        images?;
        notes.extend(
            [namespaces, lease, credentials, owners, originals]
                .into_iter()
                .filter_map(Result::err),
        );
        let now = Instant::now();
        let contacts = Contacts {
            mirrors: Some(now),
            namespaces: Some(now),
        };
        let mut belief = self.0.belief();
        belief.tick(contacts, now, clock::now());
        let fault = |(mirror, fault): (&str, &str)| {
            format!("ImageMirror {mirror} is left out here, it has a fault: {fault}")
        };
        notes.extend(belief.faults().map(fault));
        Ok(notes)
    }

    async fn list<K>(&self, source: Source, mut handle: impl FnMut(Event<K>)) -> Result<(), Unreadable>
    where
        K: serde::de::DeserializeOwned,
    {
        handle(Event::Listing);
        let listed = list(&self.0.0.client.0, &source, &Pulse::default(), &mut handle).await;
        let reached = listed.map_err(|failure| Unreadable::new(&source, &failure))?;
        handle(Event::ListedAll { round: 0 });
        if let Some(version) = version(&reached) {
            handle(Event::Reached(version));
        }
        Ok(())
    }

    async fn read_images(&self, images: &Images) -> Result<(), Unreadable> {
        let mut index = super::images::ImageWriter::new(self.0.0.store.clone());
        let references = match images {
            Images::All => return self.list(sources::images(), |event| index.take(event)).await,
            Images::These(references) => references,
        };
        for name in self.object_names(references) {
            let source = Source {
                fields: Some(named(&name)),
                ..sources::images()
            };
            // Each is a listing of its own, which does not end what another one brought.
            let take = |event| match event {
                Event::Listing => {}
                Event::ListedAll { .. } => index.write_listed(),
                event => index.take(event),
            };
            self.list(source, take).await?;
        }
        Ok(())
    }

    /// Returns the names of all MirroredImages that tell of these references.
    fn object_names(&self, references: &[String]) -> Vec<String> {
        let routing = self.0.0.store.snapshot().routing.clone();
        let mut names = Vec::new();
        for reference in references.iter().filter_map(|text| Reference::parse(text).ok()) {
            let key = reference.key();
            for candidate in routing.candidates(key.by_ref().name()).ordered {
                let mirror = &routing.mirror(candidate.mirror).name;
                names.push(MirroredImage::object_name(mirror, key.as_str()));
            }
        }
        names
    }

    async fn read_namespaces(&self, namespaces: &Namespaces) -> Result<(), String> {
        let source = sources::namespaces();
        match namespaces {
            Namespaces::All => self
                .list(source, |event| self.0.take_namespace(event))
                .await
                .map_err(|error| {
                    format!("{error}; mirrors that select namespaces count as not serving them")
                }),
            Namespaces::One(name) => {
                let found = get::<Outline>(&self.0.0.client.0, &source, name).await;
                let found = found.map_err(|failure| {
                    format!("cannot read namespace {name}: {failure}; its labels count as absent")
                })?;
                let Some(namespace) = found else {
                    return Err(format!("there is no namespace {name}"));
                };
                // Of all others there is nothing to decide.
                self.0.take_namespace(Event::Listed(namespace));
                self.0.take_namespace(Event::ListedAll { round: 0 });
                Ok(())
            }
        }
    }

    async fn read_lease(&self) -> Result<(), String> {
        let namespace = &self.0.0.settings.namespace;
        let found = get::<Object>(&self.0.0.client.0, &sources::lease(namespace), HEALTH_LEASE).await;
        let without = "so the shared state counts as too old";
        match found {
            Ok(Some(lease)) => match self.0.belief().lease_dated(&lease, Instant::now(), clock::now()) {
                Some(_) => Ok(()),
                None => Err(format!(
                    "the heartbeat in {namespace} has no date to believe, {without}"
                )),
            },
            Ok(None) => Err(format!(
                "there is no heartbeat of a companion in namespace {namespace}, {without}"
            )),
            Err(failure) => Err(format!(
                "cannot read the heartbeat in {namespace}: {failure}; {without}"
            )),
        }
    }

    /// Reads which owners are left alone because they fight rewrites.
    async fn read_owners(&self) -> Result<(), String> {
        let namespace = &self.0.0.settings.namespace;
        match get::<ConfigMap>(&self.0.0.client.0, &sources::owners(namespace), OWNERS_CONFIG_MAP).await {
            Ok(Some(map)) => {
                self.0.take_owners(Event::Listed(map));
                Ok(())
            }
            // A companion of before has none.
            Ok(None) => Ok(()),
            Err(failure) => Err(format!(
                "cannot read ConfigMap {OWNERS_CONFIG_MAP} in {namespace}: {failure}; owners that fight rewrites are \
                 known by their kinds alone"
            )),
        }
    }

    /// Reads the originals that Pods record, for others of their namespace.
    async fn read_originals(&self) -> Result<(), String> {
        let namespace = &self.0.0.settings.namespace;
        let source = sources::originals(namespace);
        match get::<ConfigMap>(&self.0.0.client.0, &source, ORIGINALS_CONFIG_MAP).await {
            Ok(Some(map)) => {
                self.0.take_originals(Event::Listed(map), &mut false);
                Ok(())
            }
            // A companion of before has none.
            Ok(None) => Ok(()),
            Err(failure) => Err(format!(
                "cannot read ConfigMap {ORIGINALS_CONFIG_MAP} in {namespace}: {failure}; what has a mirror's name and no \
                 record counts as written so"
            )),
        }
    }

    /// Reads the credentials that a webhook probes mirrors with, where some mirror asks for any.
    async fn read_credentials(&self) -> Result<(), String> {
        let configuration = self.0.belief().configuration();
        let mut mirrors = configuration.mirrors.iter();
        if mirrors.all(|(_, connection)| connection.probe_secret.is_none()) {
            return Ok(());
        }
        let source = sources::credentials(&self.0.0.settings.namespace);
        match get::<objects::Secret>(&self.0.0.client.0, &source, PROBE_SECRET).await {
            Ok(found) => {
                let data = found.and_then(|secret| secret.data).unwrap_or_default();
                let secrets = data
                    .into_iter()
                    .map(|(mirror, config)| (mirror, Secret::docker_config(config.0)));
                let mut belief = self.0.belief();
                belief.set_credentials(secrets.collect());
                let mut faults = Vec::new();
                for (mirror, fault) in belief.credential_faults() {
                    let why = match fault {
                        // The companion put none there.
                        Fault::NoEntry { .. } => "condition CredentialsValid tells why".to_owned(),
                        other => chain(other),
                    };
                    faults.push(format!("{mirror} is asked without credentials: {why}"));
                }
                if faults.is_empty() {
                    Ok(())
                } else {
                    Err(faults.join("; "))
                }
            }
            Err(failure) => Err(format!(
                "cannot read the credentials of mirrors: {failure}; they are asked without"
            )),
        }
    }

    /// Pings the mirrors whose shared state is too old, once each, as a replica would.
    pub async fn ping_stale(&self, deadline: Instant) {
        let stale = self.0.belief().stale();
        let pings = stale.into_iter().filter_map(|mirror| {
            let client = self.0.0.store.client(&mirror)?;
            Some(async move { (mirror, client.ping(deadline).await) })
        });
        let asked_at = clock::now();
        let answers = join_all(pings).await;
        let mut belief = self.0.belief();
        for (mirror, answer) in answers {
            belief.pinged(&mirror, Ping::of(&answer), asked_at, clock::now());
        }
    }

    /// Returns the mirrors as they are in force, to be looked at by whoever is not bound by the
    /// shared state.
    pub fn configuration(&self) -> Configuration {
        self.0.belief().configuration()
    }

    /// Returns what is shared of a mirror, whether it is believed or not.
    pub fn shared(&self, mirror: &str) -> Option<SharedMirror> {
        self.0.belief().shared(mirror)
    }

    /// Returns how long ago the companion gave a sign of life.
    pub fn heartbeat_age(&self) -> Option<Duration> {
        self.0.belief().heartbeat_age(Instant::now())
    }
}
