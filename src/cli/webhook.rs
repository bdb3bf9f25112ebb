//! `kagami webhook`: answers reviews from the state that the API server has. It writes nothing.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{
    arguments::{PairArguments, WebhookArguments},
    cluster,
    serving::{self, Listening, Served, until_stopping},
};
use crate::{
    domain::decision::Probing,
    metrics::Metrics,
    server::{admin::Readiness, tls},
    state::{
        Store,
        replica::{Replica, Settings},
    },
    tasks::{Signals, Tasks, shutdown},
    webhook::{Admission, Limits, Probes},
};

/// After this time without the whole state, reviews are answered without it: left alone, and told
/// why. That is better than no answer.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn run(arguments: WebhookArguments) -> anyhow::Result<()> {
    let WebhookArguments {
        own,
        left_alone,
        listen,
        pair: PairArguments { tls_cert, tls_key },
        probe_credentials,
    } = arguments;
    let namespace = own.namespace;
    let (client, _) = cluster::client().await?;
    let pair = tls::Source::Files {
        certificate: tls_cert,
        key: tls_key,
    };
    let listening = Listening::open(&listen, pair).await?;

    let (metrics, registry) = Metrics::new();
    let store = Store::default();
    let settings = Settings {
        left_alone: left_alone
            .left_alone
            .into_iter()
            .chain([namespace.clone()])
            .collect(),
        namespace,
        probe_credentials,
    };
    let cluster = Replica::new(client, store.clone(), settings, metrics.clone());
    let (trigger, shutdown) = shutdown();
    let looks = TaskTracker::new();
    let probes = Probes::new(store.clone(), metrics.clone(), looks.clone());
    let limits = Limits {
        budget: listen.budget,
        probing: Probing::Hosted,
        heal: listen.heal.heal,
        recent: serving::recent(&listen),
    };
    // Nobody takes new images here: the companion learns of them from the Pods.
    let admission = Admission::new(store.clone(), probes, metrics.clone(), None, limits);

    let (asked, started) = (cluster.clone(), Instant::now());
    let readiness = Readiness::new(shutdown.clone()).with("state", move || {
        let missing = asked.missing();
        if missing.is_empty() || started.elapsed() >= PATIENCE {
            return Ok(());
        }
        Err(format!("waiting for {}", missing.join(", ")))
    });
    let shown = cluster.clone();
    let served = Served {
        store,
        reports: None,
        admission,
        metrics,
        registry,
        readiness,
        show_decisions: listen.show_decisions,
        origin: Box::new(move || ("cluster", serde_json::json!(shown.status()))),
    };
    let mut signals = Signals::new().context("cannot take over signals")?;
    let mut tasks = Tasks::default();
    tasks.spawn("cluster", until_stopping(shutdown.clone(), cluster.run()));
    tasks.spawn("looks", serving::finish_looks(shutdown.clone(), looks));
    let drain = serving::drain(&listen);
    listening.serve(served, &mut tasks, &shutdown)?;
    tasks.run(&trigger, drain, async || signals.next().await).await?;
    Ok(())
}
