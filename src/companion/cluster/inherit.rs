//! What a new leader takes over from the last one: health that is still to be believed, and how early the
//! proofs of the other mirrors may begin.

use std::collections::BTreeMap;

use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::Api;

use super::{leader::Leader, mirrors::ClusterView, status};
use crate::{
    api::{
        HEALTH_LEASE,
        v1alpha1::{ImageMirrorStatus, timestamp},
    },
    clock,
    cluster::request::bounded,
    domain::{health::Health, presence::FUTURE, snapshot::Snapshot, time::Timestamp},
};

/// The finest difference of times.
const TICK: std::time::Duration = std::time::Duration::from_millis(1);

/// Returns the health of mirrors that is still to be believed.
pub(super) async fn health(
    leader: &Leader,
    cluster: &ClusterView,
    snapshot: &Snapshot,
) -> kube::Result<BTreeMap<String, Health>> {
    let leases = Api::<Lease>::namespaced(leader.client.clone(), &leader.namespace);
    let lease = bounded(leases.get_opt(HEALTH_LEASE)).await?;
    let beaten_at = lease
        .and_then(|lease| lease.spec)
        .and_then(|spec| spec.renew_time)
        .map(|time| timestamp(&time));
    Ok(believable(beaten_at, cluster, snapshot, clock::now()))
}

fn believable(
    beaten_at: Option<Timestamp>,
    cluster: &ClusterView,
    snapshot: &Snapshot,
    now: Timestamp,
) -> BTreeMap<String, Health> {
    let Some(beaten_at) = beaten_at else {
        return BTreeMap::new();
    };
    let believable = |name: &str| {
        let resource = &cluster.mirrors.get(name)?.document;
        let settings = snapshot.routing.mirror(*snapshot.routing.by_name().get(name)?);
        // An endpoint that changed since then makes it another mirror.
        let same = status::generation_of_health(&resource.status) == Some(resource.generation);
        let fresh = now.since(beaten_at) < settings.health.stale_after && beaten_at <= now;
        let told_apart = resource.status.platforms.iter().all(|name| tells_os(name));
        let health = status::health(&resource.status);
        health.filter(|health| same && fresh && told_apart && health.proven_since <= now)
    };
    snapshot
        .routing
        .mirrors()
        .filter_map(|(_, mirror)| Some((mirror.name.clone(), believable(&mirror.name)?)))
        .collect()
}

/// Whether the platform of a node is told with its operating system. A companion that left that out did so for
/// images too, so what it proved may hold for another platform only.
fn tells_os(platform: &str) -> bool {
    platform.contains('/')
}

/// Returns the time from which proofs of a mirror count whose health is not believed: not before `now`,
/// and later than everything that was found written, by whatever clock; `newest` is that of images.
/// What lies further in the future than clocks differ is not believed by anybody.
pub(super) fn earliest(newest: Timestamp, cluster: &ClusterView, now: Timestamp) -> Timestamp {
    let limit = now.after(FUTURE);
    let statuses = cluster.mirrors.values();
    statuses
        .flat_map(|resource| times(&resource.document.status))
        .map(timestamp)
        .chain([newest])
        .map(|time| time.after(TICK))
        .filter(|time| *time <= limit)
        .fold(now, Timestamp::max)
}

/// Returns the times that a status tells.
fn times(status: &ImageMirrorStatus) -> impl Iterator<Item = &MicroTime> {
    let health = status.health.iter();
    let health = health.flat_map(|health| [&health.since, &health.proven_since]);
    let sweeps = [&status.sweeps.tag, &status.sweeps.digest].into_iter().flatten();
    let sweeps = sweeps.flat_map(|sweep| [&sweep.started_at, &sweep.finished_at]);
    health.flatten().chain(sweeps)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        api::v1alpha1::{SweepStatus, micro_time},
        cluster::mirrors::Document,
        companion::cluster::mirrors::MirrorResource,
        domain::examples::{mirror, snapshot},
    };

    const fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn cluster(health: Timestamp, sweep: Timestamp) -> ClusterView {
        let mut status = ImageMirrorStatus {
            health: Some(crate::api::health::status(
                &Health::unknown(health),
                "NotObserved",
            )),
            ..ImageMirrorStatus::default()
        };
        status.sweeps.tag = Some(SweepStatus {
            started_at: micro_time(sweep),
            finished_at: micro_time(sweep),
            through_resource_version: "7".to_owned(),
            present: 0,
            missing: 0,
            unknown: 0,
        });
        let document = Document {
            status,
            ..Document::default()
        };
        let resource = MirrorResource {
            document: document.into(),
            ..MirrorResource::default()
        };
        let mirrors = BTreeMap::from([("main".to_owned(), resource)]);
        ClusterView {
            mirrors,
            ..ClusterView::default()
        }
    }

    #[test]
    fn proofs_begin_later_than_everything_found_written() {
        let now = at(1000);
        let tick = |seconds| at(seconds).after(TICK);
        let check = |image, health, sweep, expected| {
            let found = earliest(at(image), &cluster(at(health), at(sweep)), now);
            assert_eq!(found, expected, "{image} {health} {sweep}");
        };
        check(990, 980, 970, now);
        // The clock of the last leader was ahead of this one.
        check(1003, 980, 970, tick(1003));
        check(990, 1004, 970, tick(1004));
        check(990, 980, 1002, tick(1002));
        // Nobody's clock is as far ahead as that.
        check(1003, 5000, 9000, tick(1003));
        check(0, 1005, 0, now);
    }

    #[test]
    fn what_a_companion_proved_that_told_no_operating_systems_apart_is_no_proof() {
        let now = at(1000);
        let snapshot = snapshot(vec![mirror("main", &["docker.io"])]);
        let inherited = |platforms: &[&str]| {
            let mut cluster = cluster(at(900), at(950));
            let resource = cluster.mirrors.get_mut("main").unwrap();
            let mut document = Document::clone(&resource.document);
            document.generation = 3;
            document.status.platforms = platforms.iter().map(|&name| name.to_owned()).collect();
            document.status.conditions = vec![
                serde_json::from_value(json!({
                    "type": "Healthy", "status": "True", "reason": "Healthy", "message": "",
                    "observedGeneration": 3, "lastTransitionTime": "2026-01-02T03:04:05Z",
                }))
                .unwrap(),
            ];
            resource.document = document.into();
            believable(Some(at(999)), &cluster, &snapshot, now).len()
        };
        assert_eq!(inherited(&["linux/amd64", "windows/amd64"]), 1);
        assert_eq!(inherited(&[]), 1);
        assert_eq!(inherited(&["amd64"]), 0);
    }
}
