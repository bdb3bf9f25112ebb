//! Keeping the state of mirrors up to date, one by one.
//!
//! For each mirror there is a worker with five tasks: the prober (health), the sweeper (known
//! images), the resolver (a pull-through mirror's tags), the demand (new images) and the copier (those
//! that a hosted mirror lacks). The refresher asks upstream for all of them what tags mean by now. They talk
//! through the store and what is wanted alone. The webhook never waits for any of them.

mod context;
mod copier;
mod demand;
mod look;
mod prober;
mod refresher;
pub mod reports;
mod resolver;
mod sweeper;
mod upstream;
mod verifier;
pub mod wants;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    clock,
    domain::{
        health::{Health, Observation, State},
        mirror::Prefer,
        snapshot::Snapshot,
    },
    metrics::Metrics,
    registry::{Client, pace::Pace, pool::Pool},
    state::{Demand, Store},
    tasks::{first_end, panic_message},
    telemetry::Throttle,
};

use self::{context::Context, refresher::Refresher, reports::Reports, wants::Means};

/// How many new images may wait for each mirror. More is dropped: the next
/// review tells again.
const QUEUE: usize = 1024;

/// How many images a second a pull-through mirror is asked for by tag: each may be a download.
const PULL_THROUGH_RATE: u32 = 1;

/// How long the companion stops after a panic, so that one that comes again at once does no harm.
const PAUSE_AFTER_PANIC: Duration = Duration::from_secs(1);

/// The tasks of one mirror; dropping it ends them.
#[derive(Debug)]
struct Worker {
    /// First, because fields are dropped in their order: no task is to see its queue end.
    tasks: JoinSet<()>,
    client: Client,
    demand: mpsc::Sender<Demand>,
}

/// Keeps the state up to date for every mirror that the store's configuration has. Never ends by
/// itself; a worker that panics is started anew. The mirrors in `inherited` begin with the health
/// that the store has, others at Unknown.
pub async fn run(
    store: Store,
    metrics: Metrics,
    reports: Reports,
    means: Means,
    mut inherited: BTreeSet<String>,
    mut demand: mpsc::Receiver<Demand>,
) -> std::convert::Infallible {
    let mut snapshots = store.subscribe();
    let mut workers: BTreeMap<String, Worker> = BTreeMap::new();
    let mut upstreams: BTreeMap<String, JoinSet<()>> = BTreeMap::new();
    let pool = Pool::default();
    let refresher = Refresher::new(&store, &metrics, &means, &pool);
    let mut refreshing = JoinSet::new();
    loop {
        if refreshing.is_empty() {
            refreshing.spawn(refresher.clone().run());
        }
        let snapshot = store.snapshot();
        workers.retain(|mirror, worker| {
            let stays = store
                .client(mirror)
                .is_some_and(|client| client.is(&worker.client));
            if !stays {
                metrics.forget_mirror(mirror);
                reports.forget(mirror);
                means.wants.forget(mirror);
            }
            stays
        });
        for (_, mirror) in snapshot.routing.mirrors() {
            if !workers.contains_key(&mirror.name)
                && let Some(client) = store.client(&mirror.name)
            {
                let context = Context {
                    mirror: mirror.name.clone(),
                    client,
                    store: store.clone(),
                    metrics: metrics.clone(),
                    upstreams: pool.clone(),
                    reports: reports.clone(),
                    means: means.clone(),
                    downloads: Arc::new(Pace::new(Some(PULL_THROUGH_RATE))),
                    began: (clock::now(), Instant::now()),
                    faults: Arc::new(Throttle::each_minute()),
                };
                // Once only: what starts anew later does so because its mirror is another one.
                let inherits = inherited.remove(&mirror.name);
                let known = context.present().map(|present| present.health().clone());
                let health = known
                    .filter(|health| inherits || health.state == State::Unknown)
                    .unwrap_or_else(|| Health::unknown(clock::now()));
                workers.insert(mirror.name.clone(), Worker::start(context, health));
            }
        }
        watch_upstreams(&mut upstreams, &snapshot, &pool, &store);
        loop {
            tokio::select! {
                changed = snapshots.changed() => {
                    // The sender lives as long as the store, which this function holds.
                    debug_assert!(changed.is_ok(), "the store was dropped");
                    break;
                }
                (mirror, ended) = first_end(&mut workers, |worker| &mut worker.tasks) => {
                    workers.remove(&mirror);
                    metrics.forget_mirror(&mirror);
                    if let Err(error) = ended {
                        // What nobody watches over is not known to be healthy.
                        store.set_health(&mirror, Health::unknown(clock::now()));
                        let error = panic_message(error);
                        tracing::error!(mirror, error, "a task of a mirror's worker panicked; starting it anew");
                        sleep(PAUSE_AFTER_PANIC).await;
                    }
                    break;
                }
                (host, ended) = first_end(&mut upstreams, |tasks| tasks) => {
                    upstreams.remove(&host);
                    store.set_upstream(&host, State::Unknown);
                    if let Err(error) = ended {
                        let error = panic_message(error);
                        tracing::error!(host, error, "the watch of an upstream panicked; starting it anew");
                        sleep(PAUSE_AFTER_PANIC).await;
                    }
                    break;
                }
                Some(ended) = refreshing.join_next() => {
                    if let Err(error) = ended {
                        let error = panic_message(error);
                        tracing::error!(error, "what refreshes tags panicked; starting it anew");
                        sleep(PAUSE_AFTER_PANIC).await;
                    }
                    break;
                }
                Some(wanted) = demand.recv() => {
                    if let Some(worker) = workers.get(&wanted.mirror)
                        && worker.demand.try_send(wanted).is_err()
                    {
                        metrics.demand_was_dropped();
                    }
                }
            }
        }
    }
}

/// Looks at every mirror once and publishes what was seen: one good ping is enough here. For
/// commands that answer once; who serves uses [`run`].
pub async fn look_once(store: &Store, deadline: Instant) {
    let snapshot = store.snapshot();
    let looks = snapshot.routing.mirrors().map(async |(_, mirror)| {
        let Some(client) = store.client(&mirror.name) else {
            return;
        };
        let asked_at = clock::now();
        let (state, fault, cause) = match Observation::of_ping(&client.ping(deadline).await) {
            Observation::Good => (State::Healthy, None, None),
            Observation::Bad(fault, cause) => (State::Unhealthy, Some(fault), cause),
        };
        store.set_health(
            &mirror.name,
            Health {
                state,
                fault,
                cause,
                since: asked_at,
                refused_since: None,
                proven_since: asked_at,
            },
        );
    });
    futures_util::future::join_all(looks).await;
    for host in upstreams_to_watch(&snapshot) {
        store.set_upstream(host, upstream::look_once(host, deadline).await);
    }
}

impl Worker {
    fn start(context: Context, health: Health) -> Self {
        let (demand, wanted) = mpsc::channel(QUEUE);
        let client = context.client.clone();
        context.metrics.set_health(&context.mirror, health.state);
        context.store.set_health(&context.mirror, health);
        context.reports.probed(&context.mirror, None);
        let mut tasks = JoinSet::new();
        tasks.spawn(prober::run(context.clone()));
        tasks.spawn(sweeper::run(context.clone()));
        tasks.spawn(resolver::run(context.clone()));
        tasks.spawn(copier::run(context.clone()));
        tasks.spawn(demand::run(context, wanted));
        Self {
            tasks,
            client,
            demand,
        }
    }
}

/// Returns the hosts of registries whose health decides about a mirror's use.
fn upstreams_to_watch(snapshot: &Snapshot) -> BTreeSet<&str> {
    let used_while_upstream_fails = snapshot
        .routing
        .mirrors()
        .filter(|(_, mirror)| mirror.prefer == Prefer::Upstream);
    used_while_upstream_fails
        .flat_map(|(_, mirror)| mirror.upstreams())
        .collect()
}

/// Watches the upstream registries of mirrors that are used only while upstream fails.
fn watch_upstreams(
    watched: &mut BTreeMap<String, JoinSet<()>>,
    snapshot: &Snapshot,
    pool: &Pool,
    store: &Store,
) {
    let wanted = upstreams_to_watch(snapshot);
    watched.retain(|host, _| {
        let stays = wanted.contains(host.as_str());
        if !stays {
            store.set_upstream(host, State::Unknown);
        }
        stays
    });
    for host in wanted {
        if !watched.contains_key(host) {
            let mut task = JoinSet::new();
            task.spawn(upstream::watch(host.to_owned(), pool.clone(), store.clone()));
            watched.insert(host.to_owned(), task);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::mirror::Trust, registry::Endpoint};

    #[tokio::test]
    async fn a_task_that_panics_is_noticed_without_any_other_event() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let worker = |task: JoinSet<()>| Worker {
            tasks: task,
            client: Client::new(&Endpoint {
                url: "http://127.0.0.1:1".to_owned(),
                ca_bundle: None,
                trust: Trust::default(),
                credentials: None,
            })
            .unwrap(),
            demand: mpsc::channel(1).0,
        };
        let (mut good, mut bad) = (JoinSet::new(), JoinSet::new());
        good.spawn(std::future::pending());
        bad.spawn(async { panic!("as asked by the test") });
        let workers = [("good", good), ("bad", bad)];
        let mut workers = workers
            .map(|(name, tasks)| (name.to_owned(), worker(tasks)))
            .into();
        let (mirror, ended) = first_end(&mut workers, |worker| &mut worker.tasks).await;
        assert_eq!(mirror, "bad");
        assert_eq!(panic_message(ended.unwrap_err()), "as asked by the test");
    }
}
