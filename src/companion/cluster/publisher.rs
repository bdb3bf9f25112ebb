//! Carries what changed in the store to the API server, one write after the other.
//!
//! - Statuses go first, then changes of images that the API server has, then new images, then the
//!   times of use, which trickle.
//! - The end of a sweep is told only after every change that it found was written, because readers
//!   believe what they have up to the version that it names.
//! - What was written is known by version; nothing is ever overwritten unseen.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{api::core::v1::ObjectReference, api::events::v1::Event};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
    core::DynamicObject,
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    definitions::Lacking,
    inherit::{AllWritten, Written, fingerprint},
    mirrors::{Cluster, Resourced, status_of, version},
    status::{self, Seen},
    writer::{NotWritten, Writer},
};
use crate::{
    api::{
        self,
        v1alpha1::{ImageMirror, ImageMirrorStatus, MirroredImage, MirroredImageSpec, micro_time},
    },
    clock,
    companion::reports::{Reports, SweepEnd},
    domain::{
        health::{Health, State},
        image::Class,
        mirror::Prefer,
        presence::Presence,
        routing::MirrorId,
        snapshot::Snapshot,
        time::Timestamp,
    },
    state::Store,
    telemetry::chain,
};

/// How often the store is asked for changed images; health and sweeps announce themselves.
const LOOK: Duration = Duration::from_millis(250);

/// The pause after a write without success.
const PAUSE: Duration = Duration::from_secs(1);

/// The pause before a status that the API server refused is tried again.
const REFUSED: Duration = Duration::from_mins(1);

/// How often the time of one image's use is written, at most.
const TRICKLE: Duration = Duration::from_secs(10);

/// How often images are looked through for a time of use to write.
const LOOK_AT_USE: Duration = Duration::from_hours(1);

/// How old a written time of use gets while the image is used.
const USE_AGE: Duration = Duration::from_hours(24);

/// The longest image that a MirroredImage can name.
const LONGEST_IMAGE: usize = 1024;

/// Event reporter.
const REPORTER: &str = "kagami.dev/companion";

/// Namespace of Events about objects without one (apimachinery's event validation asks for it).
const EVENTS_NAMESPACE: &str = "default";

type Key = (Box<str>, Box<str>);

pub(super) struct Publisher {
    pub(super) store: Store,
    pub(super) writer: Writer,
    pub(super) reports: Reports,
    pub(super) cluster: watch::Receiver<Option<Arc<Cluster>>>,
    pub(super) definitions: watch::Receiver<Lacking>,
    pub(super) identity: String,
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
    events: Api<Event>,
}

impl Publisher {
    /// Publishes until this process may not write any more.
    pub(super) async fn run(mut self, client: Client) {
        let apis = Apis {
            images: Api::all(client.clone()),
            mirrors: Api::all_with(client.clone(), &ApiResource::erase::<ImageMirror>(&())),
            events: Api::namespaced(client, EVENTS_NAMESPACE),
        };
        let mut snapshots = self.store.subscribe();
        let mut reports = self.reports.subscribe();
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
            let report = self.reports.of(name);
            for (position, class) in Class::ALL.into_iter().enumerate() {
                let Some(end) = report.sweep(class) else { continue };
                let taken = self.work.taken.entry(name.clone()).or_default();
                if taken[position].replace(end.started_at) != Some(end.started_at) {
                    self.work.sweeps.entry(name.clone()).or_default()[position] = Some(end);
                    self.reconcile(name);
                }
            }
        }
        let changes = self.store.index_mut().take_changes();
        for key in changes {
            self.sort_in(key);
        }
        self.collect_uses();
    }

    fn collect_mirrors(&mut self, cluster: &Cluster) {
        let snapshot = self.store.snapshot();
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
        let index = self.store.index();
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
        let index = self.store.index();
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

    async fn step_status(&mut self, apis: &Apis) -> Result<bool, NotWritten> {
        let Some(cluster) = self.cluster.borrow().clone() else {
            return Ok(false);
        };
        let snapshot = self.store.snapshot();
        let by_name = snapshot.routing.by_name();
        let now = clock::now();
        let lacking = self.definitions.borrow().clone();
        for (name, resource) in &cluster.mirrors {
            if self
                .work
                .not_before
                .get(name)
                .is_some_and(|until| *until > Instant::now())
            {
                continue;
            }
            let (version, current) = self
                .work
                .ours
                .get(name)
                .map_or((resource.version, &resource.status), |(version, status)| {
                    (*version, status)
                });
            let report = self.reports.of(name);
            let settled = !self.has_updates(name);
            let waiting = self.work.sweeps.get(name).copied().unwrap_or_default();
            let id = by_name.get(name.as_str()).copied();
            let seen = Seen {
                generation: resource.generation,
                faults: &resource.faults,
                health: id.map(|id| snapshot.health_of(id)),
                failing_upstreams: id.map(|id| failing_upstreams(&snapshot, id)).unwrap_or_default(),
                missing_secret: resource.missing_secret.as_deref(),
                credentials_accepted: report.credentials_accepted,
                nodes_can_pull: report.nodes_can_pull,
                sweeps: waiting.map(|end| end.filter(|_| settled).map(|end| (end, self.through))),
                platforms: &cluster.platforms,
                lacking: lacking.as_deref(),
            };
            let next = status::plan(current, &seen, now);
            if settled {
                self.work.sweeps.remove(name);
            }
            let answered = self.work.answered.get(name);
            if next == *current || answered.is_some_and(|(sent, stored)| *sent == next && stored == current) {
                continue;
            }
            let current = current.clone();
            let written = self.write_status(apis, name, version, &next).await;
            if written.is_err() && settled {
                self.work.sweeps.insert(name.clone(), waiting);
            }
            match written {
                Ok(()) => {}
                Err(NotWritten::Refused(error)) => {
                    let error = chain(&error);
                    tracing::error!(mirror = name, error, "the API server refuses the status");
                    self.work
                        .not_before
                        .insert(name.clone(), Instant::now() + REFUSED);
                    continue;
                }
                Err(NotWritten::Conflict) => {
                    self.refresh(apis, name).await?;
                    return Ok(true);
                }
                // The watch will tell that it is gone.
                Err(NotWritten::Gone) => {
                    self.work.not_before.insert(name.clone(), Instant::now() + PAUSE);
                    continue;
                }
                Err(error) => return Err(error),
            }
            self.tell(apis, name, resource, &current, &next).await?;
            return Ok(true);
        }
        Ok(false)
    }

    fn has_updates(&self, mirror: &str) -> bool {
        let first = (Box::from(mirror), Box::from(""));
        self.work
            .updates
            .range(first..)
            .next()
            .is_some_and(|(first, _)| &**first == mirror)
    }

    async fn write_status(
        &mut self,
        apis: &Apis,
        name: &str,
        version: u64,
        next: &ImageMirrorStatus,
    ) -> Result<(), NotWritten> {
        // A merge patch that names its version: what newer versions have in the status stays, and
        // nothing is overwritten unseen.
        let patch = json!({
            "metadata": {"resourceVersion": version.to_string()},
            "status": {
                "conditions": next.conditions,
                "health": next.health,
                "sweeps": next.sweeps,
                "images": next.images,
                "platforms": next.platforms,
                "failingUpstreams": next.failing_upstreams,
            },
        });
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let request = apis.mirrors.patch_status(name, &parameters, &patch);
        let answer = self.writer.write("ImageMirror", request).await?;
        let stored = self.took(name, &answer);
        self.work.answered.insert(name.to_owned(), (next.clone(), stored));
        Ok(())
    }

    /// Takes in a mirror as the API server has it, and returns its status.
    fn took(&mut self, name: &str, answer: &DynamicObject) -> ImageMirrorStatus {
        let status = status_of(answer);
        let version = version(answer.metadata.resource_version.as_deref());
        if let Some(health) = status::health(&status) {
            self.published.send_modify(|published| {
                published.insert(name.to_owned(), health);
            });
        }
        self.work.ours.insert(name.to_owned(), (version, status.clone()));
        status
    }

    /// Reads a mirror whose version is not the one expected.
    async fn refresh(&mut self, apis: &Apis, name: &str) -> Result<(), NotWritten> {
        let Some(object) = apis.mirrors.get_opt(name).await? else {
            return Ok(());
        };
        self.took(name, &object);
        Ok(())
    }

    /// Writes an Event if a mirror's health changed.
    async fn tell(
        &self,
        apis: &Apis,
        name: &str,
        resource: &Resourced,
        before: &ImageMirrorStatus,
        after: &ImageMirrorStatus,
    ) -> Result<(), NotWritten> {
        let state = |status: &ImageMirrorStatus| status::health(status).map(|health| health.state);
        let (before, Some(now)) = (state(before), state(after)) else {
            return Ok(());
        };
        if before.unwrap_or(State::Unknown) == now {
            return Ok(());
        }
        let reason = after.health.as_ref().map(|health| health.reason.clone());
        let from = before.unwrap_or(State::Unknown).as_str();
        let event = Event {
            metadata: ObjectMeta {
                // Unlike the mirror's, an Event's name may be cut.
                name: Some(format!("{name:.200}.{:x}", clock::now().as_millis())),
                ..ObjectMeta::default()
            },
            action: Some("Probe".to_owned()),
            event_time: Some(micro_time(clock::now())),
            note: Some(format!(
                "The mirror went from {from} to {}: {}",
                now.as_str(),
                reason.unwrap_or_default()
            )),
            reason: Some(now.as_str().to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some("kagami.dev/v1alpha1".to_owned()),
                kind: Some("ImageMirror".to_owned()),
                name: Some(name.to_owned()),
                uid: Some(resource.uid.clone()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(REPORTER.to_owned()),
            reporting_instance: Some(self.identity.chars().take(128).collect()),
            type_: Some(
                if now == State::Unhealthy {
                    "Warning"
                } else {
                    "Normal"
                }
                .to_owned(),
            ),
            ..Event::default()
        };
        let parameters = PostParams::default();
        let request = apis.events.create(&parameters, &event);
        match self.writer.write("Event", request).await {
            Err(NotWritten::NotLeading) => Err(NotWritten::NotLeading),
            Err(error) => {
                // The status says the same and is what counts.
                tracing::debug!(error = chain(&error), "cannot write an Event");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// Makes the API server have of an image what it should.
    async fn write_image(&mut self, apis: &Apis, (mirror, key): &Key) -> Result<(), NotWritten> {
        let name = MirroredImage::object_name(mirror, key);
        let written = self
            .written
            .get(mirror)
            .and_then(|images| images.get(key))
            .copied();
        let result = match (self.wanted(mirror, key), written) {
            (Wanted::This(spec), None) => self.create(apis, &name, *spec).await,
            (Wanted::This(spec), Some(written)) => self.replace(apis, &name, *spec, written.version).await,
            (Wanted::Nothing, Some(written)) => self.delete(apis, &name, (mirror, key), written).await,
            (Wanted::Nothing, None) | (Wanted::Open, _) => Ok(()),
        };
        match result {
            Err(NotWritten::Conflict | NotWritten::Gone) => {
                // Look again, and let the next round decide anew.
                let object = apis.images.get_opt(&name).await?;
                let images = self.written.entry(mirror.clone()).or_default();
                match object {
                    Some(object) => {
                        let version = object.metadata.resource_version.as_deref();
                        images.insert(key.clone(), Written::of(&object.spec, version));
                    }
                    None => {
                        images.remove(key);
                    }
                }
                Err(NotWritten::Conflict)
            }
            Err(NotWritten::Refused(error)) => {
                let error = chain(&error);
                tracing::warn!(
                    mirror,
                    image = key,
                    error,
                    "the API server refuses a MirroredImage"
                );
                match written {
                    // What is there is not true any more.
                    Some(written) => {
                        let written = Written {
                            present: false,
                            ..written
                        };
                        self.delete(apis, &name, (mirror, key), written).await
                    }
                    None => Ok(()),
                }
            }
            other => other,
        }
    }

    async fn create(&mut self, apis: &Apis, name: &str, spec: MirroredImageSpec) -> Result<(), NotWritten> {
        let object = MirroredImage::new(name, spec);
        let parameters = PostParams::default();
        let request = apis.images.create(&parameters, &object);
        let answer = self.writer.write("MirroredImage", request).await?;
        self.wrote(object.spec, &answer);
        Ok(())
    }

    async fn replace(
        &mut self,
        apis: &Apis,
        name: &str,
        spec: MirroredImageSpec,
        version: u64,
    ) -> Result<(), NotWritten> {
        let mut object = MirroredImage::new(name, spec);
        object.metadata.resource_version = Some(version.to_string());
        let parameters = PostParams::default();
        let request = apis.images.replace(name, &parameters, &object);
        let answer = self.writer.write("MirroredImage", request).await?;
        self.wrote(object.spec, &answer);
        Ok(())
    }

    async fn delete(
        &mut self,
        apis: &Apis,
        name: &str,
        (mirror, key): (&str, &str),
        written: Written,
    ) -> Result<(), NotWritten> {
        let mut version = written.version;
        if written.present {
            // A deletion has no version that a sweep could name. So readers first hear that
            // nothing is known, and a later sweep cannot renew what they still have.
            let spec = api::image::spec(mirror, key, &Presence::Unknown(None), clock::now());
            self.replace(apis, name, spec, version).await?;
            let now = self.written.get(mirror).and_then(|images| images.get(key));
            version = now.map_or(version, |written| written.version);
        }
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                resource_version: Some(version.to_string()),
                uid: None,
            }),
            ..DeleteParams::default()
        };
        let request = apis.images.delete(name, &parameters);
        match self.writer.write("MirroredImage", request).await {
            Ok(_) | Err(NotWritten::Gone) => {
                if let Some(images) = self.written.get_mut(mirror) {
                    images.remove(key);
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Notes what was written: as it was sent, because what an older definition drops would look like a
    /// change that is still to be written.
    fn wrote(&mut self, sent: MirroredImageSpec, answer: &MirroredImage) {
        let written = Written::of(&sent, answer.metadata.resource_version.as_deref());
        self.through = self.through.max(written.version);
        self.written
            .entry(sent.mirror.into())
            .or_default()
            .insert(sent.image.into(), written);
    }
}

/// Returns the upstreams that fail, of a mirror that is used only then.
fn failing_upstreams(snapshot: &Snapshot, mirror: MirrorId) -> Vec<String> {
    let settings = snapshot.routing.mirror(mirror);
    if settings.prefer == Prefer::Mirror {
        return Vec::new();
    }
    let fails = |host: &&str| snapshot.failing_upstreams.contains(*host);
    let failing: BTreeSet<&str> = settings.upstreams().filter(fails).collect();
    failing.into_iter().map(ToOwned::to_owned).collect()
}
