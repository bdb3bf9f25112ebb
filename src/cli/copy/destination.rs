//! Where images go to, and where they come from.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;

use super::super::{BadSettings, input, output};
use crate::{
    api::mirror::Connection,
    cluster::{objects, sources, watch::get},
    credentials::{Credentials, Keyring, Secret},
    domain::{
        copying::{Own, Place, Reason, place},
        image::Reference,
        mapping::{Form, MapError},
        mirror::{Access, Kind, Mirror, Trust},
        platform::Platforms,
        routing::{Candidate, Routing},
    },
    registry::{
        Client, Endpoint,
        copy::{self, Job, Settings, Trouble, Upstream},
        pool,
    },
    state::feed::{self, Feed},
    telemetry::chain,
};

/// A mirror that images are copied into.
pub(in crate::cli) struct Destination {
    routing: Arc<Routing>,
    pub(in crate::cli) mirror: Mirror,
    /// The logins of private sources, or why there is none, by prefix.
    sources: BTreeMap<String, Result<Credentials, String>>,
    client: Arc<copy::Mirror>,
}

/// Who asks upstream for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Whose {
    /// The person or job, with what logins they have: they name the image.
    Persons,
    /// Whoever the companion asks as: who names the image is anybody that may make Pods. That is nobody in particular
    /// where everybody gets it then, and of a private source its own login, which reads no more than it is to.
    Sources,
}

/// Where the Secrets are that mirrors name.
pub(in crate::cli) enum Secrets<'a> {
    File(BTreeMap<String, Secret>),
    Cluster {
        client: &'a kube::Client,
        /// Kagami's own.
        namespace: &'a str,
    },
}

/// Returns the mirror of this name, which takes copies.
pub(in crate::cli) fn find<'m>(
    mirrors: &'m [(Mirror, Connection)],
    name: &str,
) -> Result<&'m (Mirror, Connection), BadSettings> {
    let Some(found) = mirrors.iter().find(|(mirror, _)| mirror.name == name) else {
        let names: BTreeSet<&str> = mirrors.iter().map(|(mirror, _)| mirror.name.as_str()).collect();
        let there = if names.is_empty() {
            "none".to_owned()
        } else {
            names.into_iter().collect::<Vec<_>>().join(", ")
        };
        return Err(BadSettings::one(format!(
            "there is no mirror {name}; there is: {there}"
        )));
    };
    if found.0.kind != Kind::Hosted {
        return Err(BadSettings::one(format!(
            "mirror {} is of kind {}, which fetches by itself: only mirrors of kind Hosted take copies",
            found.0.name,
            found.0.kind.as_str()
        )));
    }
    Ok(found)
}

impl Secrets<'_> {
    async fn get(&self, name: &str) -> anyhow::Result<Option<Secret>> {
        match self {
            Self::File(secrets) => Ok(secrets.get(name).cloned()),
            Self::Cluster { client, namespace } => {
                let read = get::<objects::Secret>(client, &sources::secrets(namespace), name).await;
                let read = read.with_context(|| format!("cannot read Secret {name} in {namespace}"))?;
                Ok(read.map(of_cluster))
            }
        }
    }

    /// Returns the login of a source, or why there is none.
    async fn of_source(&self, prefix: &str, name: &str) -> Result<Credentials, String> {
        let secret = self.get(name).await.map_err(|error| format!("{error:#}"))?;
        let secret = secret.ok_or_else(|| format!("there is no Secret {name} in Kagami's namespace"))?;
        let found = secret.credentials(name, feed::of_source(prefix));
        found.map_err(|fault| chain(&fault))
    }
}

fn of_cluster(object: objects::Secret) -> Secret {
    let data = object.data.unwrap_or_default();
    Secret {
        namespace: None,
        type_: object.type_,
        data: data.into_iter().map(|(key, value)| (key, value.0)).collect(),
    }
}

impl Destination {
    /// Returns a mirror with what it takes to push to it: a login of the person or job, else what the mirror's own Secret
    /// says.
    pub(in crate::cli) async fn new(
        routing: Arc<Routing>,
        (mirror, connection): (Mirror, Connection),
        secrets: &Secrets<'_>,
        keyring: &Keyring,
        settings: &Settings,
    ) -> anyhow::Result<Self> {
        let mut of_mirror = None;
        // By the name that people gave it: of a cluster, the connection has it under another one.
        if let Some(name) = connection.copy_secret.as_ref().or(mirror.read_secret.as_ref()) {
            // Whoever has a login of their own needs none of these.
            match secrets.get(name).await {
                Err(error) => output::complain(&format!("{error:#}; the mirror is asked without")),
                Ok(None) => {}
                Ok(Some(secret)) => match Feed::credentials(&mirror, &connection, name, &secret) {
                    Err(fault) => output::complain(&chain(&fault)),
                    Ok(found) => of_mirror = Some(found),
                },
            }
        }
        let registry = &mirror.mapping.registry;
        let name = match registry.path() {
            "" => registry.host().to_owned(),
            path => format!("{}/{path}", registry.host()),
        };
        let endpoint = &connection.endpoint;
        let reached = endpoint
            .split_once("://")
            .map_or(endpoint.as_str(), |(_, host)| host);
        let own = keyring
            .for_registry(&name)
            .or_else(|| keyring.for_registry(reached));
        let client = Client::new(&Endpoint {
            url: endpoint.clone(),
            ca_bundle: connection.ca_bundle.clone(),
            trust: connection.trust,
            credentials: own.cloned().or(of_mirror),
        })
        .with_context(|| format!("cannot use the endpoint of mirror {}", mirror.name))?;
        Ok(Self {
            routing,
            mirror,
            sources: BTreeMap::new(),
            client: Arc::new(copy::Mirror::new(client, settings)),
        })
    }

    /// Reads the logins with which its private sources are read, by the prefix of each.
    pub(in crate::cli) async fn read_sources(
        &mut self,
        names: &BTreeMap<String, String>,
        secrets: &Secrets<'_>,
    ) {
        for source in &self.mirror.sources {
            if source.access == Access::Private
                && let Some(name) = names.get(&source.prefix)
            {
                let login = secrets.of_source(&source.prefix, name).await;
                self.sources.insert(source.prefix.clone(), login);
            }
        }
    }

    /// Returns the login of a source with which images are read that others name.
    fn login_of(&self, source: usize) -> Result<Option<Credentials>, Trouble> {
        let source = self.mirror.sources.get(source);
        match source.and_then(|source| self.sources.get(&source.prefix)) {
            None => Ok(None),
            Some(Ok(login)) => Ok(Some(login.clone())),
            Some(Err(words)) => Err(Trouble::new(Reason::SourceUnauthorized, words.clone())),
        }
    }

    /// Returns how an image is copied whole, and its name in the mirror.
    pub(super) fn job(
        &self,
        image: &str,
        upstreams: &mut Upstreams,
        settings: &Settings,
        whose: Whose,
    ) -> Result<(Job, String), Trouble> {
        let trouble = |reason: Reason, words: String| Trouble::new(reason, words);
        let reference =
            Reference::parse(image).map_err(|error| trouble(Reason::InvalidReference, error.to_string()))?;
        let key = reference.key();
        let key = key.by_ref();
        let candidates = self.routing.candidates(key.name());
        let serves = |candidate: &&Candidate| self.routing.mirror(candidate.mirror).name == self.mirror.name;
        let Some(candidate) = candidates.ordered.iter().find(serves) else {
            let reason = if candidates.excluded {
                Reason::Excluded
            } else {
                Reason::NoMirror
            };
            return Err(trouble(
                reason,
                reason.explanation().trim_end_matches('.').to_owned(),
            ));
        };
        let mapping = &self.mirror.mapping;
        let too_long = |error: MapError| trouble(Reason::NameTooLong, error.to_string());
        let mapped = mapping.map(&reference, Form::Written).map_err(too_long)?;
        let Place {
            repository,
            reference,
            into,
            tag,
        } = place(mapping, key, &Own::default()).map_err(too_long)?;
        let login = match whose {
            Whose::Persons => upstreams.login_for(key.host(), &repository),
            Whose::Sources => self.login_of(candidate.source)?,
        };
        Ok((
            Job {
                upstream: upstreams.of(key.host(), settings, login)?,
                repository,
                tag,
                reference,
                mirror: Arc::clone(&self.client),
                into,
                platforms: Platforms::ALL,
                referrers: true,
                verify: false,
                max_size: None,
                max_referrers: None,
                keeps_tag: false,
                own: None,
            },
            mapped,
        ))
    }
}

/// The registries that images come from, each with its login.
pub(super) struct Upstreams {
    keyring: Keyring,
    known: Vec<(String, Option<Credentials>, Arc<Upstream>)>,
}

impl Upstreams {
    pub(super) const fn new(keyring: Keyring) -> Self {
        let known = Vec::new();
        Self { keyring, known }
    }

    pub(super) const fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Returns the login that the person or job has for a repository.
    fn login_for(&self, host: &str, repository: &str) -> Option<Credentials> {
        self.keyring
            .for_registry(&format!("{host}/{repository}"))
            .cloned()
    }

    fn of(
        &mut self,
        host: &str,
        settings: &Settings,
        credentials: Option<Credentials>,
    ) -> Result<Arc<Upstream>, Trouble> {
        let same = |(of, with, _): &&(String, Option<Credentials>, _)| of == host && *with == credentials;
        if let Some((_, _, known)) = self.known.iter().find(same) {
            return Ok(Arc::clone(known));
        }
        let client = Client::new(&Endpoint {
            url: pool::url(host),
            ca_bundle: None,
            trust: Trust::default(),
            credentials: credentials.clone(),
        });
        let client = client
            .map_err(|error| Trouble::new(Reason::Unreachable, format!("{host}: {}", chain(&error))))?;
        let upstream = Arc::new(Upstream::new(client, settings));
        self.known
            .push((host.to_owned(), credentials, Arc::clone(&upstream)));
        Ok(upstream)
    }
}

/// Reads the logins of a person or a job.
#[expect(clippy::disallowed_methods, reason = "settings enter in `cli`")]
pub(super) fn keyring(file: Option<&Path>) -> anyhow::Result<Keyring> {
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let usual = || {
        let home = || folder("HOME").map(|home| home.join(".docker"));
        let file = folder("DOCKER_CONFIG").or_else(home)?.join("config.json");
        file.exists().then_some(file)
    };
    let Some(file) = file.map(Path::to_owned).or_else(usual) else {
        return Ok(Keyring::default());
    };
    let text = input::read_file(&file)?;
    let read = Keyring::from_docker_config_json(text.as_bytes());
    Ok(read.map_err(|error| BadSettings::one(format!("{}: {error}", file.display())))?)
}
