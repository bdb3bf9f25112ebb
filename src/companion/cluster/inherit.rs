//! What a new leader takes over from the last one.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{ApiResource, ListParams},
    core::DynamicObject,
};

use super::{
    Leader,
    mirrors::{ClusterView, version},
    status,
};
use crate::{
    api::{
        self, HEALTH_LEASE,
        v1alpha1::{MirroredImage, MirroredImageSpec, Presence, timestamp},
    },
    clock,
    domain::{health::Health, snapshot::Snapshot, time::Timestamp},
};

/// Pages of the list of images.
const PAGE: u32 = 1000;

/// What the API server has of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) version: u64,
    /// Of everything but the times.
    pub(super) fingerprint: u64,
    pub(super) present: bool,
    /// When a Pod last used it, as written.
    pub(super) last_used: Timestamp,
}

/// What the API server has, by mirror and key.
pub(super) type AllWritten = BTreeMap<Box<str>, HashMap<Box<str>, Written>>;

impl Written {
    pub(super) fn of(spec: &MirroredImageSpec, resource_version: Option<&str>) -> Self {
        let millis = |time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| {
            Timestamp::from_millis(u64::try_from(time.0.as_millisecond()).unwrap_or_default())
        };
        Self {
            version: version(resource_version),
            fingerprint: fingerprint(spec),
            present: spec.presence == Presence::Present,
            last_used: spec.last_used.as_ref().map(millis).unwrap_or_default(),
        }
    }
}

/// Returns a number that differs where anything but the times differs.
pub(super) fn fingerprint(spec: &MirroredImageSpec) -> u64 {
    let mut hasher = DefaultHasher::new();
    let MirroredImageSpec {
        mirror,
        image,
        presence,
        reason,
        digest,
        media_type,
        platforms,
        size,
        access,
        verified_at: _,
        last_used: _,
    } = spec;
    (mirror, image, reason, digest, media_type, platforms, size).hash(&mut hasher);
    (*presence as u8, access.map(|access| access as u8)).hash(&mut hasher);
    hasher.finish()
}

/// Loads every MirroredImage into the store. Returns what the API server has and its highest
/// version. Objects that cannot be read are left alone.
pub(super) async fn images(leader: &Leader) -> kube::Result<(AllWritten, u64)> {
    let resource = ApiResource::erase::<MirroredImage>(&());
    let api = Api::<DynamicObject>::all_with(leader.client.clone(), &resource);
    let mut written = AllWritten::new();
    let mut through = 0;
    let mut unread = 0_usize;
    let mut parameters = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&parameters).await?;
        let mut index = leader.store.index_mut();
        for object in page.items {
            let resource_version = object.metadata.resource_version.clone();
            through = through.max(version(resource_version.as_deref()));
            let name = object.metadata.name.clone();
            let Ok(image) = object.try_parse::<MirroredImage>() else {
                unread += 1;
                continue;
            };
            let spec = image.spec;
            if name.as_deref() != Some(&MirroredImage::object_name(&spec.mirror, &spec.image)) {
                unread += 1;
                continue;
            }
            let entry = Written::of(&spec, resource_version.as_deref());
            let (presence, verified_at) = (api::image::presence(&spec), api::image::verified_at(&spec));
            let used = entry.last_used.max(verified_at);
            index.write(&spec.mirror, &spec.image, presence, verified_at, used);
            written
                .entry(spec.mirror.into())
                .or_default()
                .insert(spec.image.into(), entry);
        }
        drop(index);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => break,
        }
    }
    if unread > 0 {
        tracing::warn!(
            unread,
            "MirroredImages that this version cannot read are left alone"
        );
    }
    Ok((written, through))
}

/// Returns the health of mirrors that is still to be believed.
pub(super) async fn health(
    leader: &Leader,
    cluster: &ClusterView,
    snapshot: &Snapshot,
) -> kube::Result<BTreeMap<String, Health>> {
    let lease = Api::<Lease>::namespaced(leader.client.clone(), &leader.settings.namespace)
        .get_opt(HEALTH_LEASE)
        .await?;
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
        let resource = cluster.mirrors.get(name)?;
        let settings = snapshot.routing.mirror(*snapshot.routing.by_name().get(name)?);
        // An endpoint that changed since then makes it another mirror.
        let same = status::generation_of_health(&resource.status) == Some(resource.generation);
        let fresh = now.since(beaten_at) < settings.health.stale_after && beaten_at <= now;
        status::health(&resource.status).filter(|health| same && fresh && health.proven_since <= now)
    };
    snapshot
        .routing
        .mirrors()
        .filter_map(|(_, mirror)| Some((mirror.name.clone(), believable(&mirror.name)?)))
        .collect()
}
