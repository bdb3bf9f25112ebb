//! Upstream registries: whether they work, and whether they give an image to everybody.
//!
//! They are asked without credentials, seldom, and only where a mirror's settings make the answer
//! matter.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{
    clock,
    domain::{
        answer::{Answer, Failure},
        health::{Machine, Observation, State},
        image::Reference,
        mirror::HealthSettings,
    },
    registry::{
        Client,
        pool::{Pool, Upstream},
    },
    state::Store,
};

/// How long a question may wait for its turn before it is not put: nobody waits for the answer, and
/// without one what was known before holds.
const LONGEST_TURN: Duration = Duration::from_mins(1);

/// Watches one registry until the task is dropped.
pub(super) async fn watch(host: String, pool: Pool, store: Store) {
    let settings = HealthSettings::default();
    let mut machine = Machine::new(settings, clock::now());
    let Some(Upstream { client, .. }) = pool.upstream(&host) else {
        return std::future::pending().await;
    };
    loop {
        let asked_at = clock::now();
        let observation = observe(&client, Instant::now() + settings.timeout).await;
        if machine.observe(observation, asked_at, clock::now()) {
            let state = machine.health().state;
            tracing::info!(host, state = state.as_str(), "upstream health changed");
            store.set_upstream(&host, state);
        }
        sleep(settings.interval).await;
    }
}

/// Returns the state of a registry after one look at it.
pub(super) async fn look_once(host: &str, deadline: Instant) -> State {
    let Some(Upstream { client, .. }) = Pool::default().upstream(host) else {
        return State::Unknown;
    };
    match observe(&client, deadline).await {
        Observation::Good => State::Healthy,
        Observation::Bad(..) => State::Unhealthy,
    }
}

async fn observe(client: &Client, deadline: Instant) -> Observation {
    match client.ping(deadline).await {
        // Docker Hub limits whoever asks too often; that is no outage of its own making.
        Err(Failure::RateLimited { .. }) => Observation::Good,
        answer => Observation::of_ping(&answer),
    }
}

/// Returns whether an anonymous client gets an image; none if nobody can tell now, or if too much was
/// asked of its registry lately.
pub(super) async fn gives_to_everybody(
    pool: &Pool,
    reference: &Reference<'_>,
    name: &str,
    patience: Duration,
) -> Option<bool> {
    let (host, repository) = name.split_once('/')?;
    let Upstream { client, pace } = pool.upstream(host)?;
    if !pace.turn_within(LONGEST_TURN).await {
        return None;
    }
    let asked = reference.manifest_reference();
    match client.head(repository, asked, Instant::now() + patience).await {
        Answer::Exists(_) => Some(true),
        Answer::Missing | Answer::Unauthorized => Some(false),
        _ => None,
    }
}
