//! What `serve` and `webhook` share: the two listeners, the serving certificate, what the admin
//! listener shows of admission.

use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, time::Duration};

use prometheus_client::registry::Registry;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use super::{BadSettings, arguments::ListenArguments, output};
use crate::{
    clock,
    companion::mirror::reports::{Refusal, Report, Reports},
    domain::{health::Fault, mirror::Mirror, routing::MirrorId},
    metrics::Metrics,
    server::{
        Limits as ServerLimits, Server,
        admin::{self, Admin, AdminService, Readiness},
        tls::{self, Tls},
    },
    state::Store,
    tasks::{Drain, Shutdown, Stage, Tasks},
    telemetry::chain,
    webhook::{Admission, routes},
};

/// How often files are looked at for a change.
pub(super) const LOOK_AT_FILES: Duration = Duration::from_secs(1);

/// How many new images may wait for whoever takes them.
pub(super) const QUEUE: usize = 4096;

/// How many decisions `/status` shows.
const RECENT: usize = 50;

/// Returns how many decisions are kept for `/status`. What Pods are called and run is for their namespaces
/// to know, and everybody may ask the admin listener: none, unless told otherwise.
pub(super) fn recent(arguments: &ListenArguments) -> usize {
    if arguments.show_decisions { RECENT } else { 0 }
}

/// The longest that requests in flight may hold up the end.
pub(super) const FINISH: Duration = Duration::from_secs(10);

/// The listeners and the certificate: everything that can be refused before anything is served.
pub(super) struct Listening {
    admission: TcpListener,
    admin: TcpListener,
    tls: Tls,
    reloader: tls::Reloader,
}

/// What is served.
pub(super) struct Served {
    pub(super) store: Store,
    /// What looks at mirrors tell, where this process makes them.
    pub(super) reports: Option<Reports>,
    pub(super) admission: Admission,
    pub(super) metrics: Metrics,
    pub(super) registry: Registry,
    pub(super) readiness: Readiness,
    pub(super) show_decisions: bool,
    /// Returns the name and the value of what `/status` shows of where the state comes from.
    pub(super) origin: Box<dyn Fn() -> (&'static str, Value) + Send + Sync>,
}

impl Listening {
    /// Loads the certificate and opens both listeners.
    pub(super) async fn open(arguments: &ListenArguments, pair: tls::Source) -> anyhow::Result<Self> {
        let settings = tls::Settings {
            pair,
            client_authorities: arguments.client_ca.clone(),
        };
        let (tls, reloader) = tls::load(settings, clock::now())
            .await
            .map_err(|error| BadSettings::one(chain(&error)))?;
        Ok(Self {
            admission: bind(arguments.listen).await?,
            admin: bind(arguments.admin.admin_listen).await?,
            tls,
            reloader,
        })
    }

    /// Serves on both listeners from now on, and says where.
    pub(super) fn serve(self, served: Served, tasks: &mut Tasks, shutdown: &Shutdown) -> anyhow::Result<()> {
        let Self {
            admission: admission_listener,
            admin: admin_listener,
            tls,
            reloader,
        } = self;
        let (admission_address, admin_address) =
            (admission_listener.local_addr()?, admin_listener.local_addr()?);
        let metrics = served.metrics.clone();
        let server = Server {
            name: "admission",
            listener: admission_listener,
            tls: Some(tls.clone()),
            service: routes::service(served.admission.clone()),
            limits: ServerLimits::default(),
            counts: metrics.admission_server(),
        };
        tasks.spawn("admission", server.run(shutdown.clone()));
        let server = Server {
            name: "admin",
            listener: admin_listener,
            tls: None,
            service: served.admin(tls.clone()),
            limits: ServerLimits::default(),
            counts: metrics.admin_server(),
        };
        tasks.spawn("admin", server.run(shutdown.clone()));
        let certificate = follow_certificate(tls, metrics);
        tasks.spawn(
            "certificate metrics",
            until_stopping(shutdown.clone(), certificate),
        );
        let reload = reloader.run(LOOK_AT_FILES, clock::now, shutdown.clone());
        tasks.spawn("certificates", async {
            reload.await;
            Ok::<(), Infallible>(())
        });
        output::print(&format!(
            "admission https://{admission_address}\nadmin http://{admin_address}\n"
        ))
    }
}

/// Returns how the process ends.
pub(super) fn drain(arguments: &ListenArguments) -> Drain {
    Drain {
        delay: arguments.drain_delay,
        limit: FINISH,
    }
}

/// Runs what never ends by itself until the process stops.
pub(super) async fn until_stopping(
    shutdown: Shutdown,
    endless: impl Future<Output = Infallible>,
) -> Result<(), Infallible> {
    shutdown.until_stopping(endless).await;
    Ok(())
}

/// Waits, once the process stops, for the looks at mirrors that outlived their reviews; each of them has an end
/// of its own.
pub(super) async fn finish_looks(mut shutdown: Shutdown, looks: TaskTracker) -> Result<(), Infallible> {
    shutdown.reached(Stage::Stopping).await;
    looks.close();
    looks.wait().await;
    Ok(())
}

pub(super) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| BadSettings::one(format!("cannot listen on {address}: {error}")).into())
}

/// Shows the state of the serving certificate in the metrics.
async fn follow_certificate(tls: Tls, metrics: Metrics) -> Infallible {
    let mut certificate = tls.certificate();
    loop {
        let now = certificate.borrow_and_update().clone();
        metrics.set_certificate(now.not_after, now.replacements, now.faults);
        if certificate.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

impl Served {
    fn admin(self, tls: Tls) -> AdminService {
        let Self {
            store,
            reports,
            admission,
            metrics: _,
            registry,
            readiness,
            show_decisions,
            origin,
        } = self;
        let certificate = tls.certificate();
        let readiness = readiness.with("certificate", move || {
            let valid = certificate.borrow().not_after > clock::now();
            valid
                .then_some(())
                .ok_or_else(|| "the serving certificate has expired".to_owned())
        });
        let metrics = move || {
            let mut text = String::new();
            // Writing to a String cannot fail.
            let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
            text
        };
        let status = move || {
            let certificate = tls.certificate().borrow().clone();
            let (name, origin) = origin();
            json!({
                "version": env!("CARGO_PKG_VERSION"),
                name: origin,
                "certificate": {"notAfter": certificate.not_after.to_string(), "fault": certificate.fault},
                "mirrors": mirrors(&store, reports.as_ref(), show_decisions),
                // None where they are not to be shown.
                "decisions": show_decisions.then(|| admission.recent()),
            })
        };
        admin::service(Admin {
            readiness,
            metrics: Box::new(metrics),
            status: Box::new(status),
        })
    }
}

/// Returns what `/status` shows of the mirrors, as decisions see them, and of what looks at them told.
/// With `show_images` the last image that could not be read is named, as whoever may ask may know of it.
pub(super) fn mirrors(store: &Store, reports: Option<&Reports>, show_images: bool) -> Map<String, Value> {
    let snapshot = store.snapshot();
    let counts = store.index().counts();
    let mirror = |(id, mirror): (MirrorId, &Mirror)| {
        let health = snapshot.health_of(id);
        let images = counts.get(&mirror.name).copied().unwrap_or_default();
        let report = reports.map(|reports| reports.of(&mirror.name));
        let credentials = report.as_ref().and_then(Report::credentials).map(|taken| {
            let client = store.client(&mirror.name);
            let secret = mirror.read_secret.as_deref();
            let refusal = taken.err();
            json!({
                "valid": refusal.is_none(),
                "reason": refusal.as_ref().map(Refusal::reason),
                "cause": refusal.as_ref().map(|refusal| match &client {
                    Some(client) => refusal.tell_of(client, secret),
                    None => refusal.tell("the mirror", secret),
                }),
            })
        });
        let value = json!({
            "mode": mirror.mode.as_label(),
            "registry": mirror.mapping.registry.to_string(),
            "kind": mirror.kind.as_str(),
            "health": {
                "state": health.state.as_str(),
                "reason": health.fault.map(Fault::as_str),
                "cause": health.cause.as_deref(),
                "since": health.since.to_string(),
                "provenSince": health.proven_since.to_string(),
                "stale": snapshot.is_stale(id),
                "suspected": snapshot.is_suspected(id),
            },
            "credentials": credentials,
            "unproven": report
                .as_ref()
                .filter(|_| show_images)
                .and_then(|report| report.unproven.as_deref()),
            "images": BTreeMap::from(images.by_name()),
            // None where nothing is copied to it.
            "copies": report.as_ref().and_then(|report| report.copies.as_ref()).map(|copies| json!({
                "underWay": copies.under_way,
                "waiting": copies.waiting,
                "writable": copies.writing.as_ref().map(Result::is_ok),
                "reason": copies.writing.as_ref().and_then(|writing| Some(writing.as_ref().err()?.0.as_str())),
                "cause": copies.writing.as_ref().and_then(|writing| Some(&*writing.as_ref().err()?.1)),
            })),
        });
        (mirror.name.clone(), value)
    };
    snapshot.routing.mirrors().map(mirror).collect()
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::tasks::{Signal, shutdown};

    /// Reviews leave looks behind that the next one is to know the outcome of.
    #[tokio::test(start_paused = true)]
    async fn looks_under_way_are_waited_for_at_the_end() {
        let (trigger, shutdown) = shutdown();
        let mut tasks = Tasks::default();
        let looks = TaskTracker::new();
        looks.spawn(sleep(Duration::from_secs(3)));
        tasks.spawn("looks", finish_looks(shutdown, looks.clone()));
        let started = Instant::now();
        let drain = Drain {
            delay: Duration::ZERO,
            limit: Duration::from_secs(10),
        };
        let mut signals = vec![Signal::Interrupt];
        let ended = tasks.run(&trigger, drain, async || match signals.pop() {
            Some(signal) => signal,
            None => std::future::pending().await,
        });
        ended.await.unwrap();
        assert_eq!(started.elapsed(), Duration::from_secs(3));
        assert!(looks.is_empty());
    }
}
