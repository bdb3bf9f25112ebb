//! `kagami serve`: webhook and companion in one process, state in memory, configuration from a file.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::task::TaskTracker;

use super::{BadSettings, arguments::ServeArguments, certs, once, output};
use crate::{
    certificates, clock, companion,
    domain::{decision::Probing, health::Fault, mirror::Mirror, routing::MirrorId, time::Timestamp},
    metrics::Metrics,
    server::{
        Limits as ServerLimits, Server,
        admin::{self, Admin, Readiness},
        tls,
    },
    state::{Store, feed::Feed},
    tasks::{Drain, Shutdown, Signals, Stage, Tasks, shutdown},
    webhook::{Admission, Limits, Probes, routes},
};

/// How often files are looked at for a change.
const LOOK_AT_FILES: Duration = Duration::from_secs(1);

/// How many new images and observations may wait for the companion.
const QUEUE: usize = 4096;

/// How many decisions `/status` shows.
const RECENT: usize = 50;

/// How long a certificate made here is valid. It is made anew at every start.
const VALIDITY: Duration = Duration::from_hours(24 * 365);

/// The longest that requests in flight may hold up the end.
const FINISH: Duration = Duration::from_secs(10);

pub(super) async fn run(arguments: ServeArguments) -> anyhow::Result<()> {
    let ServeArguments {
        config,
        listen,
        admin_listen,
        tls_cert,
        tls_key,
        ca_out,
        tls_name,
        client_ca,
        budget,
        drain_delay,
    } = arguments;
    let (store, feed) = once::feed(&config)?;
    let pair = match (tls_cert, tls_key) {
        (Some(certificate), Some(key)) => tls::Source::Files { certificate, key },
        _ => tls::Source::Memory(make_pair(listen, &tls_name, ca_out.as_deref())?),
    };
    let settings = tls::Settings {
        pair,
        client_authorities: client_ca,
    };
    let (tls, reloader) = tls::load(settings, clock::now())
        .await
        .map_err(|error| BadSettings::one(crate::telemetry::chain(&error)))?;

    let admission_listener = bind(listen).await?;
    let admin_listener = bind(admin_listen).await?;
    let (admission_address, admin_address) = (admission_listener.local_addr()?, admin_listener.local_addr()?);

    let (metrics, registry) = Metrics::new();
    metrics.configured(true);
    let (trigger, shutdown) = shutdown();
    let (observe, observations) = mpsc::channel(QUEUE);
    let (want, demand) = mpsc::channel(QUEUE);
    let in_flight = TaskTracker::new();
    let probes = Probes::new(store.clone(), metrics.clone(), observe, in_flight);
    let limits = Limits {
        budget,
        probing: Probing::Hosted,
        recent: RECENT,
    };
    let admission = Admission::new(store.clone(), probes, metrics.clone(), want, limits);
    let loaded = Arc::new(Mutex::new(Loaded {
        at: clock::now(),
        faults: Vec::new(),
    }));

    let view = View {
        store: store.clone(),
        admission: admission.clone(),
        loaded: Arc::clone(&loaded),
        file: config.config.display().to_string(),
        tls: tls.clone(),
    };
    let mut signals = Signals::new().context("cannot take over signals")?;

    let mut tasks = Tasks::default();
    let server = Server {
        name: "admission",
        listener: admission_listener,
        tls: Some(tls.clone()),
        service: routes::service(admission),
        limits: ServerLimits::default(),
        counts: metrics.admission_server(),
    };
    tasks.spawn("admission", server.run(shutdown.clone()));
    let server = Server {
        name: "admin",
        listener: admin_listener,
        tls: None,
        service: view.router(registry, shutdown.clone()),
        limits: ServerLimits::default(),
        counts: metrics.admin_server(),
    };
    tasks.spawn("admin", server.run(shutdown.clone()));
    let certificate = follow_certificate(tls, metrics.clone());
    tasks.spawn(
        "certificate metrics",
        until_stopping(shutdown.clone(), certificate),
    );
    let reload = reloader.run(LOOK_AT_FILES, clock::now, shutdown.clone());
    tasks.spawn("certificates", async {
        reload.await;
        Ok::<(), Infallible>(())
    });
    let configuration = follow_configuration(config.config, feed, loaded, metrics.clone());
    tasks.spawn("configuration", until_stopping(shutdown.clone(), configuration));
    let companion = companion::run(store, metrics, observations, demand);
    tasks.spawn("companion", until_stopping(shutdown.clone(), companion));

    output::print(&format!(
        "admission https://{admission_address}\nadmin http://{admin_address}\n"
    ))?;
    let drain = Drain {
        delay: drain_delay,
        limit: FINISH,
    };
    tasks.run(&trigger, drain, async || signals.next().await).await?;
    Ok(())
}

/// Runs what never ends by itself until the process stops.
async fn until_stopping(
    shutdown: Shutdown,
    endless: impl Future<Output = Infallible>,
) -> Result<(), Infallible> {
    shutdown.until(Stage::Stopping, endless).await;
    Ok(())
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| BadSettings::one(format!("cannot listen on {address}: {error}")).into())
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
        let result = once::read(&path).and_then(|configuration| once::apply(&feed, configuration, &path));
        metrics.configured(result.is_ok());
        let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => {
                *loaded = Loaded {
                    at: clock::now(),
                    faults: Vec::new(),
                };
                tracing::info!(file = %path.display(), "configuration changed");
            }
            Err(error) => {
                let faults = match error.downcast::<BadSettings>() {
                    Ok(BadSettings(faults)) => faults,
                    Err(error) => vec![format!("{error:#}")],
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

/// Shows the state of the serving certificate in the metrics.
async fn follow_certificate(tls: tls::Tls, metrics: Metrics) -> Infallible {
    let mut certificate = tls.certificate();
    loop {
        let now = certificate.borrow_and_update().clone();
        metrics.set_certificate(now.not_after, now.replacements, now.faults);
        if certificate.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// What the admin listener shows.
struct View {
    store: Store,
    admission: Admission,
    loaded: Arc<Mutex<Loaded>>,
    file: String,
    tls: tls::Tls,
}

impl View {
    fn router(self, metrics: Registry, shutdown: Shutdown) -> axum::Router {
        let certificate = self.tls.certificate();
        let readiness = Readiness::new(shutdown).with("certificate", move || {
            let valid = certificate.borrow().not_after > clock::now();
            valid
                .then_some(())
                .ok_or_else(|| "the serving certificate has expired".to_owned())
        });
        let metrics = move || {
            let mut text = String::new();
            // Writing to a String cannot fail.
            let _ = prometheus_client::encoding::text::encode(&mut text, &metrics);
            text
        };
        admin::router(Admin {
            readiness,
            metrics: Box::new(metrics),
            status: Box::new(move || self.status()),
        })
    }

    /// Returns what `/status` shows.
    fn status(&self) -> Value {
        let snapshot = self.store.snapshot();
        let counts = self.store.index().counts();
        let mirror = |(id, mirror): (MirrorId, &Mirror)| {
            let health = snapshot.health_of(id);
            let images = counts.get(&mirror.name).copied().unwrap_or_default();
            let value = json!({
                "mode": mirror.mode.as_label(),
                "registry": mirror.mapping.registry.to_string(),
                "kind": mirror.kind.as_str(),
                "health": {
                    "state": health.state.as_str(),
                    "reason": health.fault.map(Fault::as_str),
                    "since": health.since.to_string(),
                    "provenSince": health.proven_since.to_string(),
                },
                "images": {"present": images.present, "missing": images.missing, "unknown": images.unknown},
            });
            (mirror.name.clone(), value)
        };
        let mirrors: Map<String, Value> = snapshot.routing.mirrors().map(mirror).collect();
        let certificate = self.tls.certificate().borrow().clone();
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "configuration": {"file": self.file, "since": loaded.at.to_string(), "faults": loaded.faults},
            "certificate": {"notAfter": certificate.not_after.to_string(), "fault": certificate.fault},
            "mirrors": mirrors,
            "decisions": self.admission.recent(),
        })
    }
}
