//! This replica's own pings of mirrors: nobody tells sooner that one has died than who sends Pods there.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use tokio::{select, task::JoinSet, time::sleep};

use super::{AFTER_PANIC, Shared};
use crate::{
    clock,
    domain::{
        health::{Observation, Ping},
        witness::Outcome,
    },
    registry::Client,
    state::{canaries, pinger::Pinger},
    tasks::{first_end, panic_message},
};

/// How often a mirror is pinged that nobody uses and of which nothing bad is known.
const AT_REST: Duration = Duration::from_secs(5);

/// The pings of one mirror; dropping it ends them.
struct Pings {
    client: Client,
    task: JoinSet<()>,
}

/// Pings every mirror, each as often as it is needed.
pub(super) async fn run(shared: Shared) -> Infallible {
    let mut clients = shared.0.store.subscribe_clients();
    let mut pings: BTreeMap<String, Pings> = BTreeMap::new();
    loop {
        let known = clients.borrow_and_update().clone();
        pings.retain(|mirror, pings| known.get(mirror).is_some_and(|client| client.is(&pings.client)));
        for (mirror, client) in known.iter() {
            pings.entry(mirror.clone()).or_insert_with(|| {
                let mut task = JoinSet::new();
                task.spawn(watch(shared.clone(), mirror.clone()));
                let client = client.clone();
                Pings { client, task }
            });
        }
        select! {
            // The sender lives as long as the store, which this function holds.
            _ = clients.changed() => {}
            // One that ends otherwise has no client to ask with any more.
            (mirror, Err(error)) = first_end(&mut pings, |pings| &mut pings.task) => {
                let error = panic_message(error);
                tracing::error!(mirror, error, "the pings of a mirror panicked; starting them anew");
                pings.remove(&mirror);
                sleep(AFTER_PANIC).await;
            }
        }
    }
}

/// Pings one mirror until its client is no more.
async fn watch(shared: Shared, mirror: String) {
    let store = &shared.0.store;
    let Some(mut pinger) = Pinger::new(store, &mirror) else {
        return;
    };
    let mut snapshots = store.subscribe();
    let mut looks: usize = 0;
    loop {
        // Whether it is needed may change while it is waited for.
        loop {
            let Some(need) = shared.belief().need(&mirror) else {
                // It is not in force now; when its client goes, so does this task.
                if snapshots.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let every = if need.alone {
                need.settings.interval
            } else {
                AT_REST.max(need.settings.interval)
            };
            select! {
                () = pinger.due(every) => break,
                Ok(()) = snapshots.changed() => {}
            }
        }
        let Some(need) = shared.belief().need(&mirror) else {
            continue;
        };
        // What the answer means is taken in whole, below.
        let suspect = |suspected| {
            if suspected {
                shared.belief().suspect(&mirror);
            }
        };
        let pinged = pinger.ping(need.settings, |ping| ping.speaks, suspect).await;
        let (ping, tripped) = (Ping::of(&pinged.answer), pinged.tripped);
        let is_good = ping.observation == Observation::Good;
        let asked_at = pinged.asked_at;
        let outcome = shared.belief().pinged(&mirror, ping, asked_at, clock::now());
        if outcome == Outcome::Returned || (tripped && is_good) {
            looks = looks.wrapping_add(1);
            let now = clock::now();
            if let Some(all_there) = canaries::are_there(store, &mirror, looks, now).await {
                shared.belief().returned(&mirror, all_there, clock::now());
            }
        }
    }
}
