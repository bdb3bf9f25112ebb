//! The heartbeat: tells readers that what statuses say of health is what is true now.
//!
//! So it beats only while every prober works and every mirror's health stands in its status. A
//! prober that stalls makes its mirror Unknown; the heartbeat goes on once that is written.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};

use super::status::same;
use crate::{
    api::{HEALTH_LEASE, v1alpha1::micro_time},
    clock,
    cluster::writer::{NotWritten, Writer},
    companion::mirror::reports::Reports,
    domain::{
        health::{Health, State},
        mirror::HealthSettings,
        snapshot::Snapshot,
    },
    metrics::Metrics,
    state::Store,
    telemetry::chain,
};

/// How often it beats.
const EVERY: Duration = Duration::from_secs(5);

/// How often it is looked at whether it may beat, where it may not.
const LOOK: Duration = Duration::from_millis(100);

pub(super) struct Heartbeat {
    pub(super) store: Store,
    pub(super) reports: Reports,
    pub(super) metrics: Metrics,
    pub(super) writer: Writer,
    pub(super) identity: String,
    /// The health of mirrors as the API server has it.
    pub(super) published: watch::Receiver<BTreeMap<String, Health>>,
}

impl Heartbeat {
    pub(super) async fn run(self, client: Client, namespace: String) {
        let leases = Api::<Lease>::namespaced(client, &namespace);
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lease = None;
        loop {
            ticks.tick().await;
            loop {
                self.note_stalls();
                if may_beat(&self.store.snapshot(), &self.published.borrow()) {
                    break;
                }
                sleep(LOOK).await;
            }
            match self.beat(&leases, lease.take()).await {
                Ok(written) => lease = Some(written),
                Err(NotWritten::NotLeading) => return,
                Err(error) => tracing::warn!(error = chain(&error), "cannot renew the heartbeat"),
            }
        }
    }

    /// Makes mirrors Unknown whose probers have not reported for too long.
    fn note_stalls(&self) {
        let snapshot = self.store.snapshot();
        for (id, mirror) in snapshot.routing.mirrors() {
            let Some(probed_at) = self.reports.of(&mirror.name).probed_at else {
                continue;
            };
            let stalled = probed_at.elapsed() > patience(mirror.health);
            if stalled && snapshot.health_of(id).state != State::Unknown {
                tracing::error!(mirror = mirror.name, "the mirror's prober stalls");
                self.store.set_health(&mirror.name, Health::unknown(clock::now()));
                self.metrics.set_health(&mirror.name, State::Unknown);
            }
        }
    }

    async fn beat(&self, leases: &Api<Lease>, last: Option<Lease>) -> Result<Lease, NotWritten> {
        let last = match last {
            Some(lease) => Some(lease),
            None => leases.get_opt(HEALTH_LEASE).await?,
        };
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            renew_time: Some(micro_time(clock::now())),
            ..LeaseSpec::default()
        };
        let parameters = PostParams::default();
        if let Some(mut lease) = last {
            lease.spec = Some(spec);
            let request = leases.replace(HEALTH_LEASE, &parameters, &lease);
            return self.writer.write_at_once("Lease", request).await;
        }
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(HEALTH_LEASE.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
        };
        let request = leases.create(&parameters, &lease);
        self.writer.write_at_once("Lease", request).await
    }
}

/// Returns how long a prober may take between two reports: its interval and four looks (ping, manifest,
/// an index's image, blob), with room for a machine that is busy.
fn patience(settings: HealthSettings) -> Duration {
    settings.interval + 4 * settings.timeout + Duration::from_secs(5)
}

/// Whether statuses say of every mirror's health what is true.
fn may_beat(snapshot: &Snapshot, published: &BTreeMap<String, Health>) -> bool {
    let by_name = snapshot.routing.by_name();
    let told = by_name.iter().all(|(name, id)| {
        published
            .get(*name)
            .is_some_and(|told| same(*told, snapshot.health_of(*id)))
    });
    let not_in_force = published
        .iter()
        .filter(|(name, _)| !by_name.contains_key(name.as_str()));
    told && not_in_force
        .into_iter()
        .all(|(_, health)| health.state == State::Unknown)
}
