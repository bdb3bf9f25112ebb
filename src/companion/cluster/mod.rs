//! The companion of a cluster: the same store and the same workers as `kagami serve` has, fed by
//! watches, with a publisher that carries what changed to the API server.
//!
//! One of several replicas leads; only it works, and only it writes. Whoever loses the lead drops
//! everything at once and waits for its turn with nothing in memory.

mod brake;
mod certificates;
mod definitions;
mod evictor;
mod hangs;
mod heartbeat;
mod inherit;
mod lasting;
mod leader;
mod mirrors;
mod originals;
mod owners;
mod placed;
mod pod_events;
mod pods;
mod probe_entry;
mod probe_secret;
mod publisher;
mod pull_secrets;
mod register;
mod rescuer;
mod status;
mod unrecorded;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use kube::Client;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep},
};

use self::{
    certificates::Keeper,
    leader::Leader,
    mirrors::{ClusterView, Follower},
    originals::Originals,
    owners::Owners,
    placed::Placing,
    pods::Pods,
    rescuer::Ward,
};
pub use self::{
    certificates::Settings as CertificateSettings, pods::Settings as DemandSettings,
    rescuer::Settings as RescueSettings,
};
use super::mirror::{
    self,
    reports::Reports,
    wants::{Means, Wants},
};
use crate::{
    clock,
    cluster::{
        elector::{Elector, Held},
        events::Events,
        watch::Pulses,
        writer::Writer,
    },
    domain::{
        health::{Health, State},
        time::Timestamp,
    },
    metrics::Metrics,
    state::{Demand, Store},
    tasks::{Shutdown, panic_message},
};

/// How many new images and observations may wait for the workers.
const QUEUE: usize = 4096;

/// How often it is shown how the watches fare.
const SHOW: Duration = Duration::from_secs(1);

/// How long after its last answer the API server counts as reachable.
const REACHABLE: Duration = Duration::from_secs(30);

/// What a companion needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the API server is, for people.
    pub server: String,
    /// Kagami's own namespace.
    pub namespace: String,
    /// Another one for each process.
    pub identity: String,
    /// Namespaces whose Pods are never touched.
    pub left_alone: BTreeSet<String>,
    pub demand: DemandSettings,
    /// The brake is put on.
    pub paused: bool,
    /// None where stuck Pods are left to themselves.
    pub rescue: Option<RescueSettings>,
    /// Whether the logins of mirrors are placed in the namespaces that they serve.
    pub pull_secrets: bool,
    /// None where somebody else keeps the webhook's certificates.
    pub certificates: Option<CertificateSettings>,
}

/// Why a leader ended other than by losing the lead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task of the leader ended early, which none does by itself.
    #[error("a task of the leader ended early: {0}")]
    Ended(String),
}

/// What others see of a companion. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct View {
    led: watch::Sender<Option<(Store, Reports)>>,
    reached: watch::Sender<Option<Instant>>,
}

impl View {
    /// Returns the store, and what looks at mirrors tell, while this companion leads.
    pub fn led(&self) -> Option<(Store, Reports)> {
        self.led.borrow().clone()
    }

    /// Whether the API server answered not long ago.
    pub fn reaches_api_server(&self) -> bool {
        self.reached
            .borrow()
            .is_some_and(|reached| reached.elapsed() < REACHABLE)
    }
}

/// Waits for the lead and leads, again and again, until the process stops; then it gives the lease
/// back.
///
/// `client` must not try anything again by itself: whether a write may be sent is decided right
/// before it is sent.
pub async fn run(
    settings: Settings,
    client: Client,
    metrics: Metrics,
    view: View,
    shutdown: Shutdown,
) -> Result<(), Error> {
    let mut elector = Elector::new(
        client.clone(),
        settings.server.clone(),
        &settings.namespace,
        settings.identity.clone(),
        view.reached.clone(),
    );
    let outcome = shutdown
        .until_stopping(follow(&settings, &client, &metrics, &view, &mut elector))
        .await;
    view.led.send_replace(None);
    metrics.set_leading(false);
    elector.release().await;
    match outcome {
        Some(Err(error)) => Err(error),
        Some(Ok(never)) => match never {},
        None => Ok(()),
    }
}

async fn follow(
    settings: &Settings,
    client: &Client,
    metrics: &Metrics,
    view: &View,
    elector: &mut Elector,
) -> Result<Infallible, Error> {
    let pulses = Pulses::default();
    loop {
        elector.acquire().await;
        metrics.set_leading(true);
        let store = Store::default();
        let reports = Reports::default();
        view.led.send_replace(Some((store.clone(), reports.clone())));
        let lease = elector.held();
        let writer = Writer::new(lease.clone(), metrics.clone());
        let (published, cluster) = watch::channel(None);
        let leader = Leader {
            namespace: settings.namespace.as_str().into(),
            identity: settings.identity.as_str().into(),
            client: client.clone(),
            store: store.clone(),
            events: Events::new(client.clone(), writer.clone(), &settings.identity),
            writer,
            looks: Leader::looks(),
            reports,
            metrics: metrics.clone(),
            pulses: pulses.clone(),
            cluster,
            registries: settings
                .rescue
                .as_ref()
                .map(|rescue| rescue.registries.as_slice().into()),
        };
        let ended = tokio::select! {
            () = elector.hold() => None,
            // A large future.
            error = Box::pin(leader.lead(settings, lease, published)) => Some(error),
            never = show(&pulses, metrics) => match never {},
        };
        view.led.send_replace(None);
        metrics.set_leading(false);
        metrics.forget_watches();
        metrics.forget_conditions();
        metrics.set_stuck(0);
        metrics.set_pull_secrets(0, 0, 0);
        for (_, mirror) in store.snapshot().routing.mirrors() {
            metrics.forget_mirror(&mirror.name);
        }
        if let Some(error) = ended {
            return Err(error);
        }
    }
}

/// Shows how the watches fare, for ever.
async fn show(pulses: &Pulses, metrics: &Metrics) -> Infallible {
    loop {
        pulses.show(metrics);
        sleep(SHOW).await;
    }
}

impl Leader {
    /// Does all the work of a leader; returns only if a task ends early. Dropping it ends them all.
    async fn lead(
        self,
        settings: &Settings,
        lease: Held,
        published_cluster: watch::Sender<Option<Arc<ClusterView>>>,
    ) -> Error {
        let mut tasks = JoinSet::new();
        // First of all: webhooks cannot start without.
        if let Some(certificates) = settings.certificates.clone() {
            tasks.spawn(Keeper::new(certificates, &self).run());
        }
        tasks.spawn(probe_secret::run(self.clone()));
        let left_alone = settings.left_alone.clone();
        let (published_configured, mut configured) = watch::channel(false);
        let follower = Follower::new(&self.store, left_alone, published_cluster, published_configured);
        let means = Means {
            wants: Wants::default(),
            logins: follower.logins(),
            lease: Some(lease),
            cluster: follower.cluster(),
            ..Means::default()
        };
        let placed = self.place_pull_secrets(settings, &follower, &mut tasks);
        tasks.spawn(follower.run(
            self.client.clone(),
            self.namespace.to_string(),
            self.pulses.clone(),
        ));
        let (published_definitions, definitions) = watch::channel(None);
        tasks.spawn(definitions::run(self.clone(), published_definitions));
        let (seen, braked) = watch::channel(false);
        self.store.set_paused(settings.paused);
        tasks.spawn(brake::run(self.clone(), settings.paused, seen));
        // The way back of stuck Pods needs the mirrors, the Namespaces and the brake, and waits for nothing else: not
        // for nodes, Secrets and images, which may be away for as long as a definition is, nor for what the last
        // leader left.
        tokio::select! {
            // The follower holds the other end for as long as this future is polled.
            _ = configured.wait_for(|configured| *configured) => {}
            error = early_end(&mut tasks) => return error,
        }
        let (demand, wanted) = mpsc::channel(QUEUE);
        let ward = self.rescue(settings, braked, &demand, &mut tasks);
        let owners = Owners::default();
        let originals = Originals::default();
        let (has_taken_over, taken_over) = watch::channel(false);
        let pods = Pods {
            store: self.store.clone(),
            settings: settings.demand.clone(),
            reports: self.reports.clone(),
            wants: means.wants.clone(),
            demand,
            ward,
            owners: owners.clone(),
            originals: originals.clone(),
            since: clock::now(),
            taken_over,
        };
        tasks.spawn(pods.run(self.client.clone(), self.pulses.clone()));
        let images = publisher::Images::default();
        let mut known = self.cluster.clone();
        tokio::select! {
            // So it does here.
            _ = known.wait_for(Option::is_some) => {}
            error = early_end(&mut tasks) => return error,
        }
        tasks.spawn(images.clone().follow(self.clone()));
        let inherited = tokio::select! {
            inherited = self.take_over(&images) => inherited,
            error = early_end(&mut tasks) => return error,
        };
        has_taken_over.send_replace(true);
        tasks.spawn(owners::run(self.clone(), owners));
        tasks.spawn(originals::run(
            self.clone(),
            originals,
            settings.demand.default_mode,
        ));
        let published = watch::Sender::new(BTreeMap::new());
        tasks.spawn(heartbeat::run(
            self.clone(),
            settings.paused,
            published.subscribe(),
        ));
        let told = (definitions, placed);
        tasks.spawn(publisher::run(self.clone(), images, told, published));
        let workers = mirror::run(
            self.store.clone(),
            self.metrics.clone(),
            self.reports.clone(),
            means,
            inherited,
            wanted,
        );
        tokio::select! {
            error = early_end(&mut tasks) => error,
            never = workers => match never {},
        }
    }

    /// Spawns what helps stuck Pods, where that is asked for. Returns where it is told of them.
    fn rescue(
        &self,
        settings: &Settings,
        braked: watch::Receiver<bool>,
        demand: &mpsc::Sender<Demand>,
        tasks: &mut JoinSet<()>,
    ) -> Option<Ward> {
        let settings = settings.rescue.clone()?;
        let ward = Ward::default();
        tasks.spawn(rescuer::run(
            self.clone(),
            ward.clone(),
            settings,
            braked.clone(),
            demand.clone(),
        ));
        tasks.spawn(register::run(self.clone(), ward.clone()));
        tasks.spawn(hangs::run(self.clone(), ward.clone()));
        tasks.spawn(lasting::run(self.clone(), ward.clone()));
        tasks.spawn(unrecorded::run(self.clone(), ward.clone()));
        tasks.spawn(evictor::run(self.clone(), ward.clone(), braked));
        Some(ward)
    }

    /// Places the logins of nodes, or says that nobody does. Returns what is told of them.
    fn place_pull_secrets(
        &self,
        settings: &Settings,
        follower: &Follower,
        tasks: &mut JoinSet<()>,
    ) -> watch::Receiver<Placing> {
        let (placing, placed) = watch::channel(Placing::default());
        let logins = follower.pull_logins();
        tasks.spawn(pull_secrets::run(
            self.clone(),
            settings.pull_secrets,
            logins,
            placing,
        ));
        placed
    }

    /// Takes over what the last leader left, once the cluster's mirrors are known: their images, which are
    /// followed from now on, and the health that is still to be believed. Returns the mirrors with such a
    /// health.
    async fn take_over(&self, images: &publisher::Images) -> BTreeSet<String> {
        let mut cluster = self.cluster.clone();
        let (images, newest) = images.listed().await;
        loop {
            // The follower holds the other end for as long as this future is polled.
            let Ok(known) = cluster.wait_for(Option::is_some).await.map(|known| known.clone()) else {
                return std::future::pending().await;
            };
            let known = known.unwrap_or_default();
            let snapshot = self.store.snapshot();
            let names = known.mirrors.keys();
            let clients: BTreeMap<_, _> = names
                .filter_map(|name| Some((name.clone(), self.store.client(name)?)))
                .collect();
            match inherit::health(self, &known, &snapshot).await {
                Ok(mut inherited) => {
                    tracing::info!(images, inherited = inherited.len(), "took over");
                    let earliest = inherit::earliest(newest, &known, clock::now());
                    // A few seconds at most, where clocks differ: what is looked at before would be no proof.
                    sleep(earliest.since(clock::now())).await;
                    // What is reached otherwise by now is another mirror, of which nobody told anything.
                    inherited.retain(|name, _| {
                        let (before, now) = (clients.get(name), self.store.client(name));
                        before.zip(now).is_some_and(|(before, now)| before.is(&now))
                    });
                    self.begin_with(&inherited, &known, earliest);
                    return inherited.into_keys().collect();
                }
                Err(error) => {
                    tracing::warn!(
                        error = crate::telemetry::chain(&error),
                        "cannot take over; trying again"
                    );
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Puts into the store what the workers begin with.
    fn begin_with(&self, inherited: &BTreeMap<String, Health>, known: &ClusterView, earliest: Timestamp) {
        for (_, mirror) in self.store.snapshot().routing.mirrors() {
            let health = inherited.get(&mirror.name).cloned();
            let health = health.unwrap_or_else(|| Health::unknown(earliest));
            self.store.set_health(&mirror.name, health);
        }
        for mirror in inherited.keys() {
            // Until they are looked at, they are believed to fail still.
            for host in known.failing_upstreams(mirror) {
                self.store.set_upstream(host, State::Unhealthy);
            }
        }
        self.store.index_mut().track_changes();
    }
}

/// Waits for a task to end, which none does by itself while this process leads. One that ends
/// because it may not write any more gives the elector time to notice.
async fn early_end(tasks: &mut JoinSet<()>) -> Error {
    match tasks.join_next().await {
        Some(Ok(())) => {
            sleep(Duration::from_secs(30)).await;
            Error::Ended("it returned".to_owned())
        }
        Some(Err(error)) => Error::Ended(panic_message(error)),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::mirror::Mode,
        tasks::{Drain, Signal, Tasks, shutdown},
    };

    /// Without an API server: it never leads, so nothing keeps it from ending too early.
    #[tokio::test(start_paused = true)]
    async fn one_that_waits_for_the_lead_ends_as_asked() {
        let client = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let settings = Settings {
            server: "https://127.0.0.1:1".to_owned(),
            namespace: "kagami-system".to_owned(),
            identity: "companion-a".to_owned(),
            left_alone: BTreeSet::new(),
            demand: DemandSettings {
                default_mode: Mode::Off,
                forget_after: Duration::from_hours(1),
            },
            paused: false,
            rescue: None,
            pull_secrets: false,
            certificates: None,
        };
        let (metrics, _) = Metrics::new();
        let (trigger, shutdown) = shutdown();
        let mut tasks = Tasks::default();
        tasks.spawn(
            "companion",
            run(settings, client, metrics, View::default(), shutdown),
        );
        let drain = Drain {
            delay: Duration::from_secs(5),
            limit: Duration::from_secs(10),
        };
        let mut signals = vec![Signal::Terminate];
        let ended = tasks.run(&trigger, drain, async || match signals.pop() {
            Some(signal) => signal,
            None => std::future::pending().await,
        });
        ended.await.unwrap();
    }
}
