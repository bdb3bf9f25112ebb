//! Upstream registries: whether they work, and whether they give an image to everybody.
//!
//! They are asked without credentials, seldom, and only where a mirror's settings make the answer
//! matter.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{
    clock,
    domain::{
        answer::{Answer, Failure},
        health::{Machine, Observation, State},
        image::{DOCKER_HUB, Reference},
        mirror::HealthSettings,
    },
    registry::{Client, Endpoint, pace::Pace},
    state::Store,
};

/// How many images a second one registry is asked for: Docker Hub limits whoever asks more.
const RATE: u32 = 5;

/// How long a question may wait for its turn before it is not put.
const LONGEST_TURN: Duration = Duration::from_secs(1);

/// Watches one registry until the task is dropped.
pub(super) async fn watch(host: String, store: Store) {
    let settings = HealthSettings::default();
    let mut machine = Machine::new(settings, clock::now());
    let Some(client) = client(&host) else {
        return std::future::pending().await;
    };
    loop {
        let observation = observe(&client, Instant::now() + settings.timeout).await;
        if machine.observe(observation, clock::now()).changed {
            let state = machine.health().state;
            tracing::info!(host, state = state.as_str(), "upstream health changed");
            store.set_upstream(&host, state);
        }
        sleep(settings.interval).await;
    }
}

/// Returns the state of a registry after one look at it.
pub(super) async fn look_once(host: &str, deadline: Instant) -> State {
    let Some(client) = client(host) else {
        return State::Unknown;
    };
    match observe(&client, deadline).await {
        Observation::Good => State::Healthy,
        Observation::Bad(_) => State::Unhealthy,
    }
}

async fn observe(client: &Client, deadline: Instant) -> Observation {
    match client.ping(deadline).await {
        // Docker Hub limits whoever asks too often; that is no outage of its own making.
        Err(Failure::RateLimited { .. }) => Observation::Good,
        answer => Observation::of_ping(answer),
    }
}

/// Anonymous clients of upstream registries, one for each, so that connections are kept and waits
/// that a registry asked for are obeyed. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Registries(Arc<Mutex<BTreeMap<String, Registry>>>);

#[derive(Clone, Debug)]
struct Registry {
    client: Client,
    pace: Arc<Pace>,
}

impl Registries {
    /// Returns whether an anonymous client gets an image; none if nobody can tell now, or if too much
    /// was asked of its registry lately.
    pub(super) async fn give_to_everybody(
        &self,
        reference: &Reference<'_>,
        name: &str,
        deadline: Instant,
    ) -> Option<bool> {
        let (host, repository) = name.split_once('/')?;
        let Registry { client, pace } = self.registry(host)?;
        if !pace.turn_within(LONGEST_TURN).await {
            return None;
        }
        match client
            .head(repository, reference.manifest_reference(), deadline)
            .await
        {
            Answer::Exists(_) => Some(true),
            Answer::Missing | Answer::Unauthorized => Some(false),
            _ => None,
        }
    }

    fn registry(&self, host: &str) -> Option<Registry> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(registry) = known.get(host) {
            return Some(registry.clone());
        }
        let registry = Registry {
            client: client(host)?,
            pace: Arc::new(Pace::new(Some(RATE))),
        };
        known.insert(host.to_owned(), registry.clone());
        Some(registry)
    }
}

/// Returns an anonymous client of the registry behind a host as it stands in image names.
fn client(host: &str) -> Option<Client> {
    let url = match host {
        // The name in references is not the name of the registry's API.
        DOCKER_HUB => "https://registry-1.docker.io".to_owned(),
        // Docker and containerd speak plain HTTP with registries on loopback, and so must who
        // wants to know what they get.
        host if is_loopback(host) => format!("http://{host}"),
        host => format!("https://{host}"),
    };
    Client::new(&Endpoint {
        url,
        ca_bundle: None,
        credentials: None,
    })
    .ok()
}

fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost"
        || name == "[::1]"
        || name
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|ip| ip.is_loopback())
}
