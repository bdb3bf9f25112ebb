//! Carries what changed in the store to the API server, one write after the other.
//!
//! - Statuses go first, then changes of images that the API server has, then new images, then the
//!   times of use, which trickle.
//! - The end of a sweep is told only after every change that it found was written, because readers
//!   believe what they have up to the version that it names.
//! - What was written is known by version; nothing is ever overwritten unseen.

mod images;
mod statuses;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kube::{Api, api::ApiResource, core::DynamicObject};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Leader,
    definitions::Lacking,
    inherit::{AllWritten, Written, fingerprint},
    mirrors::ClusterView,
    status,
};
use crate::{
    api::{
        self,
        v1alpha1::{ImageMirror, ImageMirrorStatus, MirroredImage, MirroredImageSpec},
    },
    cluster::writer::NotWritten,
    companion::mirror::reports::SweepEnd,
    domain::{health::Health, image::Class, presence::Presence, time::Timestamp},
    telemetry::chain,
};

/// How often the store is asked for changed images; health and sweeps announce themselves.
const LOOK: Duration = Duration::from_millis(250);

/// The pause after a write without success.
const PAUSE: Duration = Duration::from_secs(1);

/// How often the time of one image's use is written, at most.
const TRICKLE: Duration = Duration::from_secs(10);

/// How often images are looked through for a time of use to write.
const LOOK_AT_USE: Duration = Duration::from_hours(1);

/// How old a written time of use gets while the image is used.
const USE_AGE: Duration = Duration::from_hours(24);

/// The longest image that a MirroredImage can name.
const LONGEST_IMAGE: usize = 1024;

type Key = (Box<str>, Box<str>);

pub(super) struct Publisher {
    pub(super) leader: Leader,
    pub(super) cluster: watch::Receiver<Option<Arc<ClusterView>>>,
    pub(super) definitions: watch::Receiver<Lacking>,
    /// The health of mirrors as the API server has it.
    pub(super) published: watch::Sender<BTreeMap<String, Health>>,
    pub(super) written: AllWritten,
    /// The highest version of a MirroredImage written.
    pub(super) through: u64,
    pub(super) work: Work,
}

/// What is still to be written.
#[derive(Default)]
pub(super) struct Work {
    updates: BTreeSet<Key>,
    creates: BTreeSet<Key>,
    uses: Vec<Key>,
    use_due: Option<Instant>,
    trickle_due: Option<Instant>,
    /// Ends of sweeps not told yet.
    sweeps: BTreeMap<String, [Option<SweepEnd>; 2]>,
    /// Starts of the sweeps taken in last.
    taken: BTreeMap<String, [Option<Timestamp>; 2]>,
    /// What this process wrote, where the watch has not brought it yet.
    ours: BTreeMap<String, (u64, ImageMirrorStatus)>,
    /// Statuses that were sent, and what the API server made of them: an older definition knows less.
    answered: BTreeMap<String, (ImageMirrorStatus, ImageMirrorStatus)>,
    in_force: BTreeSet<String>,
    not_before: BTreeMap<String, Instant>,
}

/// What the API server should have of an image.
enum Wanted {
    This(Box<MirroredImageSpec>),
    Nothing,
    /// Nobody can tell now.
    Open,
}

struct Apis {
    images: Api<MirroredImage>,
    mirrors: Api<DynamicObject>,
}

impl Publisher {
    /// Publishes until this process may not write any more.
    pub(super) async fn run(mut self) {
        let client = &self.leader.client;
        let apis = Apis {
            images: Api::all(client.clone()),
            mirrors: Api::all_with(client.clone(), &ApiResource::erase::<ImageMirror>(&())),
        };
        let mut snapshots = self.leader.store.subscribe();
        let mut reports = self.leader.reports.subscribe();
        loop {
            snapshots.mark_unchanged();
            reports.mark_unchanged();
            self.cluster.mark_unchanged();
            self.collect();
            match self.step(&apis).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(NotWritten::NotLeading) => {
                    tracing::warn!("not leading any more: nothing is written");
                    return;
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "cannot write; trying again");
                    sleep(PAUSE).await;
                    continue;
                }
            }
            let next_look = Instant::now() + LOOK;
            tokio::select! {
                Ok(()) = snapshots.changed() => {}
                Ok(()) = reports.changed() => {}
                Ok(()) = self.cluster.changed() => {}
                () = sleep_until(next_look) => {}
            }
        }
    }

    /// Takes in what changed.
    fn collect(&mut self) {
        let Some(cluster) = self.cluster.borrow().clone() else {
            return;
        };
        self.collect_mirrors(&cluster);
        // Sweeps first: whatever they wrote to the index is among the changes taken after.
        for name in cluster.mirrors.keys() {
            let report = self.leader.reports.of(name);
            for (position, class) in Class::ALL.into_iter().enumerate() {
                let Some(end) = report.sweep(class) else { continue };
                let taken = self.work.taken.entry(name.clone()).or_default();
                if taken[position].replace(end.started_at) != Some(end.started_at) {
                    self.work.sweeps.entry(name.clone()).or_default()[position] = Some(end);
                    self.reconcile(name);
                }
            }
        }
        let changes = self.leader.store.index_mut().take_changes();
        for key in changes {
            self.sort_in(key);
        }
        self.collect_uses();
    }

    fn collect_mirrors(&mut self, cluster: &ClusterView) {
        let snapshot = self.leader.store.snapshot();
        let in_force: BTreeSet<String> = snapshot
            .routing
            .mirrors()
            .map(|(_, mirror)| mirror.name.clone())
            .collect();
        let added: Vec<String> = in_force.difference(&self.work.in_force).cloned().collect();
        self.work.in_force = in_force;
        for name in added {
            self.reconcile(&name);
        }
        let gone: Vec<Box<str>> = self
            .written
            .iter()
            .filter(|(name, images)| !images.is_empty() && !cluster.mirrors.contains_key(&***name))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.reconcile(&name);
        }
        self.work.ours.retain(|name, (version, _)| {
            cluster
                .mirrors
                .get(name)
                .is_some_and(|resource| resource.version < *version)
        });
        let sweeps = &mut self.work.sweeps;
        sweeps.retain(|name, _| cluster.mirrors.contains_key(name));
        self.work
            .taken
            .retain(|name, _| cluster.mirrors.contains_key(name));
        self.work
            .answered
            .retain(|name, _| cluster.mirrors.contains_key(name));
        self.published.send_if_modified(|published| {
            let told: BTreeMap<String, Health> = cluster
                .mirrors
                .iter()
                .filter_map(|(name, resource)| {
                    let ours = self.work.ours.get(name).map(|(_, status)| status);
                    Some((name.clone(), status::health(ours.unwrap_or(&resource.status))?))
                })
                .collect();
            let differs = *published != told;
            *published = told;
            differs
        });
    }

    /// Looks through all images that the API server has of a mirror for what is not as it should be.
    fn reconcile(&mut self, mirror: &str) {
        let keys: Vec<Box<str>> = self
            .written
            .get(mirror)
            .into_iter()
            .flat_map(|images| images.keys())
            .cloned()
            .collect();
        for key in keys {
            self.sort_in((mirror.into(), key));
        }
    }

    /// Puts an image where its kind of change belongs; nowhere if it is as it should be.
    fn sort_in(&mut self, (mirror, key): Key) {
        let written = self
            .written
            .get(&mirror)
            .and_then(|images| images.get(&key))
            .copied();
        match (self.wanted(&mirror, &key), written) {
            (Wanted::This(spec), Some(written)) if fingerprint(&spec) == written.fingerprint => {}
            (Wanted::This(_) | Wanted::Nothing, Some(_)) => {
                self.work.updates.insert((mirror, key));
            }
            (Wanted::This(_), None) => {
                self.work.creates.insert((mirror, key));
            }
            (Wanted::Nothing, None) | (Wanted::Open, _) => {}
        }
    }

    fn wanted(&self, mirror: &str, key: &str) -> Wanted {
        let exists = self
            .cluster
            .borrow()
            .as_ref()
            .is_some_and(|cluster| cluster.mirrors.contains_key(mirror));
        if !exists {
            return Wanted::Nothing;
        }
        if !self.work.in_force.contains(mirror) {
            return Wanted::Open;
        }
        let known = self
            .written
            .get(mirror)
            .is_some_and(|images| images.contains_key(key));
        let index = self.leader.store.index();
        let Some(entry) = index.get(mirror, key) else {
            return Wanted::Nothing;
        };
        // What was only noted, and not looked at yet, is worth no object.
        if key.len() > LONGEST_IMAGE || (!known && entry.presence == Presence::Unknown(None)) {
            return Wanted::Nothing;
        }
        let verified_at = index.verified_at(mirror, key).unwrap_or_default();
        let mut spec = api::image::spec(mirror, key, &entry.presence, verified_at);
        spec.last_used = Some(status::time(entry.last_used()));
        Wanted::This(Box::new(spec))
    }

    /// Looks now and then for images that are used and whose written time of use is old.
    fn collect_uses(&mut self) {
        let now = Instant::now();
        if self.work.use_due.is_some_and(|due| due > now) {
            return;
        }
        self.work.use_due = Some(now + LOOK_AT_USE);
        let index = self.leader.store.index();
        let old = |(mirror, key, written): (&str, &str, &Written)| {
            let used = index.get(mirror, key)?.last_used();
            (used.since(written.last_used) >= USE_AGE).then(|| (mirror.into(), key.into()))
        };
        self.work.uses = self
            .written
            .iter()
            .flat_map(|(mirror, images)| {
                images
                    .iter()
                    .map(move |(key, written)| (&**mirror, &**key, written))
            })
            .filter_map(old)
            .collect();
    }

    /// Writes the next thing. Returns whether there was one.
    async fn step(&mut self, apis: &Apis) -> Result<bool, NotWritten> {
        if self.step_status(apis).await? {
            return Ok(true);
        }
        if let Some(key) = self.work.updates.first().cloned() {
            self.write_image(apis, &key).await?;
            self.work.updates.remove(&key);
            return Ok(true);
        }
        if let Some(key) = self.work.creates.first().cloned() {
            self.write_image(apis, &key).await?;
            self.work.creates.remove(&key);
            return Ok(true);
        }
        let now = Instant::now();
        if self.work.trickle_due.is_none_or(|due| due <= now)
            && let Some(key) = self.work.uses.pop()
        {
            self.work.trickle_due = Some(now + TRICKLE);
            self.write_image(apis, &key).await?;
            return Ok(true);
        }
        Ok(false)
    }
}
