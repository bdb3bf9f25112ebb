//! The heartbeat: tells readers that what statuses say of health is what is true now.
//!
//! So it beats only while every prober works and every mirror's health stands in its status. A
//! prober that stalls makes its mirror Unknown; the heartbeat goes on once that is written.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, api::PostParams};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{leader::Leader, status::same};
use crate::{
    api::{HEALTH_LEASE, PAUSED, PAUSED_BY_SETTINGS, SEEN_WELL, v1alpha1::micro_time},
    clock,
    cluster::{request::bounded, writer::NotWritten},
    domain::{
        health::{Health, State},
        mirror::HealthSettings,
        snapshot::Snapshot,
    },
    telemetry::{Reminder, chain},
};

/// How often it beats.
const EVERY: Duration = Duration::from_secs(5);

/// How soon it is tried again where somebody else wrote in between.
const SOON: Duration = Duration::from_secs(1);

/// How often it is looked at whether it may beat, where it may not.
const LOOK: Duration = Duration::from_millis(100);

/// Beats until this process may not write any more. `published` is the health of mirrors as the API
/// server has it.
/// Where `paused`, this process's settings ask for the brake.
pub(super) async fn run(leader: Leader, paused: bool, published: watch::Receiver<BTreeMap<String, Health>>) {
    let leases = Api::<Lease>::namespaced(leader.client.clone(), &leader.namespace);
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lease = None;
    let mut failures = Reminder::default();
    loop {
        ticks.tick().await;
        loop {
            note_stalls(&leader);
            if may_beat(&leader.store.snapshot(), &published.borrow()) {
                break;
            }
            sleep(LOOK).await;
        }
        match beat(&leader, paused, &leases, lease.take()).await {
            Ok(written) => {
                failures.ended();
                lease = Some(written);
            }
            Err(NotWritten::NotLeading) => return,
            // Somebody else wrote to it, as who pulls the brake.
            Err(NotWritten::Conflict) => ticks.reset_after(SOON),
            Err(error) => {
                let error = chain(&error);
                if failures.failed(&error, std::time::Instant::now()) {
                    tracing::warn!(error, "cannot renew Lease {HEALTH_LEASE}; trying again");
                }
            }
        }
    }
}

/// Makes mirrors Unknown whose probers have not reported for too long.
fn note_stalls(leader: &Leader) {
    let snapshot = leader.store.snapshot();
    for (id, mirror) in snapshot.routing.mirrors() {
        let Some(probed_at) = leader.reports.of(&mirror.name).probed_at else {
            continue;
        };
        let stalled = probed_at.elapsed() > patience(mirror.health);
        if stalled && snapshot.health_of(id).state != State::Unknown {
            tracing::error!(mirror = mirror.name, "the mirror's prober stalls");
            leader
                .store
                .set_health(&mirror.name, Health::unknown(clock::now()));
            leader.metrics.set_health(&mirror.name, State::Unknown);
        }
    }
}

async fn beat(
    leader: &Leader,
    paused: bool,
    leases: &Api<Lease>,
    last: Option<Lease>,
) -> Result<Lease, NotWritten> {
    let last = match last {
        Some(lease) => Some(lease),
        None => bounded(leases.get_opt(HEALTH_LEASE)).await?,
    };
    let spec = LeaseSpec {
        holder_identity: Some(leader.identity.to_string()),
        renew_time: Some(micro_time(clock::now())),
        ..LeaseSpec::default()
    };
    let seen_well = seen_well(leader);
    let parameters = PostParams::default();
    if let Some(mut lease) = last {
        lease.spec = Some(spec);
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(SEEN_WELL.to_owned(), seen_well);
        brake(annotations, paused);
        let request = leases.replace(HEALTH_LEASE, &parameters, &lease);
        return leader.writer.write_at_once("Lease", request).await;
    }
    let mut annotations = [(SEEN_WELL.to_owned(), seen_well)].into();
    brake(&mut annotations, paused);
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(HEALTH_LEASE.to_owned()),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
    };
    let request = leases.create(&parameters, &lease);
    leader.writer.write_at_once("Lease", request).await
}

/// Puts the brake on where the settings ask for it, and takes back what they asked for earlier. What people wrote stays.
fn brake(annotations: &mut BTreeMap<String, String>, paused: bool) {
    let written = annotations.get(PAUSED).map(String::as_str);
    match (paused, written) {
        (true, None | Some("" | "false")) => {
            annotations.insert(PAUSED.to_owned(), PAUSED_BY_SETTINGS.to_owned());
        }
        (false, Some(PAUSED_BY_SETTINGS)) => {
            annotations.remove(PAUSED);
        }
        _ => {}
    }
}

/// Returns when each mirror was last seen well, as it is written: replicas that see one fail tell by it whether it is
/// the mirror or their way there.
fn seen_well(leader: &Leader) -> String {
    let snapshot = leader.store.snapshot();
    let mirrors = snapshot.routing.mirrors();
    let times = mirrors.filter_map(|(_, mirror)| {
        let seen_well = leader.reports.of(&mirror.name).seen_well?;
        Some((mirror.name.as_str(), seen_well.as_millis()))
    });
    serde_json::json!(times.collect::<BTreeMap<_, _>>()).to_string()
}

/// Returns how long a prober may take between two reports: its interval and seven looks (ping; manifest,
/// an index's image and blob of one image, and of others beside it), with room for a machine that is busy.
fn patience(settings: HealthSettings) -> Duration {
    settings.interval + 7 * settings.timeout + Duration::from_secs(5)
}

/// Whether statuses say of every mirror's health what is true.
fn may_beat(snapshot: &Snapshot, published: &BTreeMap<String, Health>) -> bool {
    let by_name = snapshot.routing.by_name();
    let told = by_name.iter().all(|(name, id)| {
        published
            .get(*name)
            .is_some_and(|told| same(told, snapshot.health_of(*id)))
    });
    let not_in_force = published
        .iter()
        .filter(|(name, _)| !by_name.contains_key(name.as_str()));
    told && not_in_force
        .into_iter()
        .all(|(_, health)| health.state == State::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_take_back_their_own_brake_and_nobody_elses() {
        let check = |written: Option<&str>, paused, expected: Option<&str>| {
            let written = written.map(|written| (PAUSED.to_owned(), written.to_owned()));
            let mut annotations = written.into_iter().collect();
            brake(&mut annotations, paused);
            assert_eq!(annotations.get(PAUSED).map(String::as_str), expected);
        };
        check(None, true, Some(PAUSED_BY_SETTINGS));
        check(Some("false"), true, Some(PAUSED_BY_SETTINGS));
        check(Some("true"), true, Some("true"));
        check(Some(PAUSED_BY_SETTINGS), false, None);
        check(Some("true"), false, Some("true"));
        check(Some("false"), false, Some("false"));
        check(None, false, None);
    }
}
