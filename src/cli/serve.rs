//! `kagami serve`: webhook and companion in one process, state in memory, configuration from a file.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::{
    BadSettings,
    arguments::{PairArguments, ServeArguments},
    certs, oneshot,
    serving::{self, LOOK_AT_FILES, Listening, QUEUE, Served, until_stopping},
};
use crate::{
    certificates, clock,
    companion::mirror::{
        self,
        reports::Reports,
        wants::{Means, Wants},
    },
    domain::{decision::Probing, time::Timestamp},
    metrics::Metrics,
    server::{admin::Readiness, tls},
    state::{Store, feed::Feed},
    tasks::{Signals, Tasks, shutdown},
    telemetry::chain,
    webhook::{Admission, Limits, Probes},
};

/// How long a certificate made here is valid. It is made anew at every start.
const VALIDITY: Duration = Duration::from_hours(24 * 365);

pub(super) async fn run(arguments: ServeArguments) -> anyhow::Result<()> {
    let ServeArguments {
        config,
        left_alone,
        listen,
        pair,
        ca_out,
        tls_name,
    } = arguments;
    let (store, feed) = oneshot::feed(&config, &left_alone)?;
    let means = Means {
        wants: Wants::default(),
        logins: feed.logins(),
        lease: None,
        ..Means::default()
    };
    let pair = match pair {
        Some(PairArguments { tls_cert, tls_key }) => tls::Source::Files {
            certificate: tls_cert,
            key: tls_key,
        },
        None => tls::Source::Memory(make_pair(listen.listen, &tls_name, ca_out.as_deref())?),
    };
    tell_overlaps(&store);
    let listening = Listening::open(&listen, pair).await?;

    let (metrics, registry) = Metrics::new();
    metrics.configured(true);
    let (trigger, shutdown) = shutdown();
    let (want, demand) = mpsc::channel(QUEUE);
    let looks = TaskTracker::new();
    let probes = Probes::new(store.clone(), metrics.clone(), looks.clone());
    let limits = Limits {
        budget: listen.budget,
        probing: Probing::Hosted,
        heal: listen.heal.heal,
        recent: serving::recent(&listen),
    };
    let admission = Admission::new(store.clone(), probes, metrics.clone(), Some(want), limits);
    let loaded = Arc::new(Mutex::new(Loaded {
        at: clock::now(),
        faults: Vec::new(),
    }));

    let (file, shown) = (config.display().to_string(), Arc::clone(&loaded));
    let reports = Reports::default();
    let served = Served {
        store: store.clone(),
        reports: Some(reports.clone()),
        admission,
        metrics: metrics.clone(),
        registry,
        readiness: Readiness::new(shutdown.clone()),
        show_decisions: listen.show_decisions,
        origin: Box::new(move || {
            let loaded = shown.lock().unwrap_or_else(PoisonError::into_inner);
            let origin = json!({"file": file, "since": loaded.at.to_string(), "faults": loaded.faults});
            ("configuration", origin)
        }),
    };
    let mut signals = Signals::new().context("cannot take over signals")?;
    let mut tasks = Tasks::default();
    let configuration = follow_configuration(config, store.clone(), feed, loaded, metrics.clone());
    tasks.spawn("configuration", until_stopping(shutdown.clone(), configuration));
    let companion = mirror::run(store, metrics, reports, means, BTreeSet::new(), demand);
    tasks.spawn("companion", until_stopping(shutdown.clone(), companion));
    tasks.spawn("looks", serving::finish_looks(shutdown.clone(), looks));
    let drain = serving::drain(&listen);
    listening.serve(served, &mut tasks, &shutdown)?;
    tasks.run(&trigger, drain, async || signals.next().await).await?;
    Ok(())
}

/// Makes a serving pair that lasts as long as the process, and writes its authority.
fn make_pair(
    listen: SocketAddr,
    names: &[String],
    ca_out: Option<&Path>,
) -> anyhow::Result<certificates::Pair> {
    let always = [
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
        listen.ip().to_string(),
    ];
    let names: Vec<_> = always.iter().chain(names).map(|name| certs::name(name)).collect();
    let issued = certificates::issue(&names, clock::now(), VALIDITY)?;
    if let Some(path) = ca_out {
        certs::write(path, &issued.authority, false)?;
    } else {
        tracing::warn!(
            "nobody can verify the certificate made here: give --ca-out, or --tls-cert and --tls-key"
        );
    }
    Ok(issued.pair)
}

/// Says where mirrors stand in each other's way, and which serve different namespaces from one registry, as the conditions
/// `MirrorsOverlap` and `AccessNotSeparated` do in a cluster.
fn tell_overlaps(store: &Store) {
    let routing = &store.snapshot().routing;
    for (id, mirror) in routing.mirrors() {
        for overlap in routing.overlaps(id) {
            tracing::warn!(mirror = mirror.name, reason = overlap.as_str(), "{overlap}");
        }
        if let Some(other) = routing.not_separated_from(id).next() {
            tracing::warn!(
                mirror = mirror.name,
                other,
                reason = "AccessNotSeparated",
                "the registries of two mirrors overlap, and they serve by different selectors: images of private sources \
                 are served to namespaces of their own mirror only"
            );
        }
    }
}

/// What became of the configuration file.
#[derive(Debug)]
struct Loaded {
    at: Timestamp,
    /// Why what the file says now is not in force; empty if it is.
    faults: Vec<String>,
}

/// Reads the configuration again whenever its file changes. A bad edit keeps the last good one.
async fn follow_configuration(
    path: PathBuf,
    store: Store,
    feed: Feed,
    loaded: Arc<Mutex<Loaded>>,
    metrics: Metrics,
) -> Infallible {
    let mut seen = tokio::fs::read(&path).await.ok();
    let mut ticks = tokio::time::interval(LOOK_AT_FILES);
    loop {
        ticks.tick().await;
        let now = tokio::fs::read(&path).await.ok();
        if now == seen {
            continue;
        }
        seen = now;
        // Reading it again once it is read: what counts is what is applied.
        let result =
            oneshot::read(&path).and_then(|configuration| oneshot::apply(&feed, configuration, &path));
        metrics.configured(result.is_ok());
        let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => {
                *loaded = Loaded {
                    at: clock::now(),
                    faults: Vec::new(),
                };
                tracing::info!(file = %path.display(), "configuration changed");
                tell_overlaps(&store);
            }
            Err(error) => {
                let faults = match error.downcast::<BadSettings>() {
                    Ok(BadSettings(faults)) => faults,
                    Err(error) => vec![chain(&*error)],
                };
                for fault in &faults {
                    tracing::warn!(
                        fault,
                        "the configuration has a fault; the last good one stays in force"
                    );
                }
                loaded.faults = faults;
            }
        }
    }
}
