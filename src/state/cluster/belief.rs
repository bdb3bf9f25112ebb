//! What this replica believes, made of everything that the watches and its own eyes tell.
//!
//! Everything here is told with the time and happens at once; nothing waits. A bad or newer
//! ImageMirror leaves the last good one of its name in force. The shared state counts as fresh only
//! after a sign of life from the companion *and*, if it was stale before, a list of the ImageMirrors
//! that began after that sign: the watches are independent, and the Lease's may be ahead.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::{sync::watch, time::Instant};

use super::objects::{Object, Outline, Reader, Told};
use crate::{
    api::{mirror::Connection, v1alpha1::timestamp},
    domain::{
        health::{Health, Observation},
        image::Class,
        mirror::{HealthSettings, Mirror},
        presence::{FUTURE, Swept},
        selector::Labels,
        time::Timestamp,
        witness::{self, View, Witness},
    },
    metrics::Metrics,
    registry::Client,
    state::{
        Observed, Store,
        feed::Feed,
        file::{Configuration, Secret},
    },
    telemetry::chain,
};

/// The age past which the watch of namespaces is not believed: twice its renewal, and some.
const NAMESPACES_BOUND: Duration = Duration::from_secs(150);

/// The shortest age past which the watch of ImageMirrors is not believed: twice its renewal.
const MIRRORS_BOUND: Duration = Duration::from_secs(30);

/// Everything that is believed.
#[derive(Debug)]
pub(super) struct Belief {
    store: Store,
    feed: Feed,
    metrics: Metrics,
    reader: Reader,
    mirrors: BTreeMap<String, Known>,
    /// Names that the list in progress has told.
    listing: BTreeSet<String>,
    credentials: BTreeMap<String, Secret>,
    namespaces: Namespaces,
    heartbeat: Heartbeat,
    /// Asks for a list of the ImageMirrors.
    relist: watch::Sender<u64>,
}

/// What is known of one ImageMirror.
#[derive(Debug)]
struct Known {
    /// The last good one.
    good: Option<(Mirror, Connection)>,
    told: Told,
    witness: Witness,
    /// What is wrong with the resource as it is now.
    faults: Vec<String>,
}

#[derive(Debug, Default)]
struct Namespaces {
    known: BTreeMap<String, Labels>,
    listing: BTreeMap<String, Labels>,
    stale: bool,
}

/// The signs of life of who keeps the shared state.
#[derive(Debug, Default)]
struct Heartbeat {
    /// The `renewTime` last seen, whatever clock it is of.
    renewed: Option<String>,
    /// When this replica saw it change.
    seen: Option<Instant>,
    /// Seen after a pause: counts once that list of ImageMirrors has arrived.
    awaits: Option<(u64, Instant)>,
}

/// When the watches last heard from the API server.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Contacts {
    pub(super) mirrors: Option<Instant>,
    pub(super) namespaces: Option<Instant>,
}

/// What is shared of a mirror: the companion's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    pub health: Health,
    /// The last complete sweeps.
    pub tags: Option<Swept>,
    pub digests: Option<Swept>,
}

/// A mirror that this replica should probe itself.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) mirror: String,
    pub(super) client: Client,
    pub(super) settings: HealthSettings,
}

impl Belief {
    pub(super) fn new(store: Store, left_alone: BTreeSet<String>, metrics: Metrics) -> Self {
        Self {
            feed: Feed::new(store.clone(), left_alone),
            store,
            metrics,
            reader: Reader::new(),
            mirrors: BTreeMap::new(),
            listing: BTreeSet::new(),
            credentials: BTreeMap::new(),
            namespaces: Namespaces::default(),
            heartbeat: Heartbeat::default(),
            relist: watch::Sender::new(0),
        }
    }

    /// Returns the number of the last list of ImageMirrors that is wanted.
    pub(super) fn relists(&self) -> watch::Receiver<u64> {
        self.relist.subscribe()
    }

    pub(super) fn mirrors_listing(&mut self) {
        self.listing.clear();
    }

    pub(super) fn mirror_listed(&mut self, object: &Object, now: Timestamp) {
        self.listing.insert(object.metadata.name.clone());
        self.mirror_changed(object, now);
    }

    pub(super) fn mirrors_listed(&mut self, round: u64, now: Timestamp) {
        let listed = std::mem::take(&mut self.listing);
        let before = self.mirrors.len();
        let metrics = &self.metrics;
        self.mirrors.retain(|name, _| {
            let stays = listed.contains(name);
            if !stays {
                metrics.forget_mirror(name);
            }
            stays
        });
        if self.mirrors.len() != before {
            self.put(now);
        }
        if let Some((_, seen)) = self.heartbeat.awaits.take_if(|(awaited, _)| *awaited <= round) {
            self.heartbeat.seen = Some(seen);
        }
    }

    pub(super) fn mirror_deleted(&mut self, name: &str, now: Timestamp) {
        if self.mirrors.remove(name).is_some() {
            self.metrics.forget_mirror(name);
            self.put(now);
        }
    }

    pub(super) fn mirror_changed(&mut self, object: &Object, now: Timestamp) {
        let name = object.metadata.name.as_str();
        let read = self.reader.mirror(object);
        let told = self.reader.status(object);
        let known = self.mirrors.entry(name.to_owned()).or_insert_with(|| Known {
            good: None,
            told: told.clone(),
            witness: Witness::new(HealthSettings::default(), now),
            faults: Vec::new(),
        });
        known.told = told;
        let before = known.good.clone();
        let faults = match read {
            Ok(mut good) => {
                // Credentials come from a file of the mirror's name, whatever the Secret is called.
                if let Some(secret) = &mut good.1.probe_secret {
                    name.clone_into(secret);
                }
                match Feed::check(&good.0, &good.1, None) {
                    Ok(()) => {
                        known.good_is(good, now);
                        Vec::new()
                    }
                    Err(error) => vec![chain(&error)],
                }
            }
            Err(faults) => faults.iter().map(ToString::to_string).collect(),
        };
        if known.faults != faults {
            for fault in &faults {
                tracing::warn!(
                    mirror = name,
                    fault,
                    "an ImageMirror has a fault; the last good one stays in force"
                );
            }
            known.faults = faults;
        }
        known.witness.told(known.told.health, now);
        known.complete();
        if known.good != before {
            self.put(now);
        }
        let told = &self.mirrors[name].told;
        let mut index = self.store.index_mut();
        for (class, swept) in [(Class::Tag, told.tags), (Class::Digest, told.digests)] {
            if let Some(swept) = swept {
                index.swept(name, class, swept);
            }
        }
        drop(index);
        self.publish(name);
        self.publish_upstreams();
    }

    /// Publishes which upstreams fail. What is not shared, or too old, is no failure: a mirror that
    /// stands in for them is then not used.
    fn publish_upstreams(&self) {
        let fresh = self.mirrors.values().filter(|known| !known.witness.view().stale);
        let failing = fresh.flat_map(|known| known.told.failing_upstreams.iter().cloned());
        self.store.set_failing_upstreams(failing.collect());
    }

    /// Returns what is put to use: every mirror in its last good form, and what may be believed of
    /// namespaces and credentials.
    pub(super) fn configuration(&self) -> Configuration {
        let good = self.mirrors.values().filter_map(|known| known.good.clone());
        let secrets = |mirror: &(Mirror, Connection)| {
            let (mirror, connection) = mirror;
            let secret = self.credentials.get(&mirror.name)?;
            match Feed::check(mirror, connection, Some(secret)) {
                Ok(()) => Some((mirror.name.clone(), secret.clone())),
                Err(error) => {
                    tracing::warn!(
                        mirror = mirror.name,
                        error = chain(&error),
                        "probing without credentials"
                    );
                    None
                }
            }
        };
        let mirrors: Vec<_> = good.collect();
        Configuration {
            secrets: mirrors.iter().filter_map(secrets).collect(),
            mirrors,
            namespaces: self.namespaces.believed(),
            pull_secret_namespaces: BTreeSet::new(),
        }
    }

    /// Puts the mirrors to use as they are known now.
    fn put(&self, now: Timestamp) {
        let put = self.feed.put(self.configuration(), now);
        self.metrics.configured(put.is_ok());
        for fault in put.err().into_iter().flatten() {
            // Each mirror was checked; only the system can be short of something now.
            tracing::error!(
                error = chain(&fault),
                "cannot use the ImageMirrors; the former ones stay in force"
            );
        }
        for name in self.mirrors.keys() {
            self.publish(name);
        }
        self.publish_upstreams();
    }

    fn publish(&self, name: &str) {
        let Some(known) = self.mirrors.get(name) else {
            return;
        };
        let view = known.witness.view();
        if self.store.set_view(name, view) {
            self.metrics.set_health(name, view.health.state);
            self.metrics.set_stale(name, view.stale);
        }
    }

    /// Takes in the read credentials, by mirror.
    pub(super) fn set_credentials(&mut self, credentials: BTreeMap<String, Secret>, now: Timestamp) {
        if credentials != self.credentials {
            self.credentials = credentials;
            self.put(now);
        }
    }

    pub(super) fn namespaces_listing(&mut self) {
        self.namespaces.listing.clear();
    }

    pub(super) fn namespace_listed(&mut self, namespace: Outline) {
        let labels = namespace.metadata.labels.unwrap_or_default();
        self.namespaces.listing.insert(namespace.metadata.name, labels);
    }

    pub(super) fn namespaces_listed(&mut self) {
        self.namespaces.known = std::mem::take(&mut self.namespaces.listing);
        self.store.set_namespaces(self.namespaces.believed());
    }

    pub(super) fn namespace_changed(&mut self, namespace: Outline) {
        let labels = namespace.metadata.labels.unwrap_or_default();
        if self.namespaces.known.get(&namespace.metadata.name) != Some(&labels) {
            self.namespaces.known.insert(namespace.metadata.name, labels);
            self.store.set_namespaces(self.namespaces.believed());
        }
    }

    pub(super) fn namespace_deleted(&mut self, name: &str) {
        self.namespaces.known.remove(name);
        self.store.set_namespaces(self.namespaces.believed());
    }

    /// Takes in the Lease as it was found. That it is there is no sign of life.
    pub(super) fn lease_listed(&mut self, lease: &Object) {
        self.heartbeat.renewed = renewed(lease);
    }

    /// Takes in a change of the Lease.
    pub(super) fn lease_changed(&mut self, lease: &Object, at: Instant) {
        let renewed = renewed(lease);
        if renewed.is_none() || renewed == self.heartbeat.renewed {
            return;
        }
        self.heartbeat.renewed = renewed;
        let shortest = self.bounds().min().unwrap_or(MIRRORS_BOUND);
        let seen_ago = self.heartbeat.seen.map(|seen| at.duration_since(seen));
        if !witness::is_stale(seen_ago, shortest) {
            self.heartbeat.seen = Some(at);
        } else if let Some((_, seen)) = &mut self.heartbeat.awaits {
            *seen = at;
        } else {
            let mut round = 0;
            self.relist.send_modify(|wanted| {
                *wanted += 1;
                round = *wanted;
            });
            self.heartbeat.awaits = Some((round, at));
        }
    }

    /// Takes in the Lease by its date, for a command that cannot wait to see it change; whoever takes
    /// over the lead believes it in the same way. Returns how old it is.
    pub(super) fn lease_dated(&mut self, lease: &Object, at: Instant, now: Timestamp) -> Option<Duration> {
        self.heartbeat.renewed = renewed(lease);
        let renewed_at = serde_json::from_value(lease.spec["renewTime"].clone()).ok()?;
        let renewed_at = timestamp(&renewed_at);
        if renewed_at > now.after(FUTURE) {
            return None;
        }
        let age = now.since(renewed_at);
        self.heartbeat.seen = at.checked_sub(age);
        Some(age)
    }

    fn bounds(&self) -> impl Iterator<Item = Duration> {
        let good = self.mirrors.values().filter_map(|known| known.good.as_ref());
        good.map(|(mirror, _)| mirror.health.stale_after)
    }

    /// Takes in what this replica saw of a mirror itself.
    pub(super) fn observe(&mut self, observed: &Observed, now: Timestamp) {
        let Observed { mirror, observation } = observed;
        let Some(known) = self.mirrors.get_mut(mirror) else {
            return;
        };
        if known.witness.observe(*observation, now).changed {
            let View { health, stale } = known.witness.view();
            tracing::info!(
                mirror,
                state = health.state.as_str(),
                bad = matches!(observation, Observation::Bad(_)),
                stale,
                "this replica sees a mirror otherwise than before"
            );
        }
        self.publish(mirror);
    }

    /// Lets time pass: what was not heard of for too long is not believed any more.
    pub(super) fn tick(&mut self, contacts: Contacts, at: Instant, now: Timestamp) {
        let ago = |seen: Option<Instant>| seen.map(|seen| at.duration_since(seen));
        let (heartbeat, mirrors) = (ago(self.heartbeat.seen), ago(contacts.mirrors));
        let mut changed = Vec::new();
        for (name, known) in &mut self.mirrors {
            let bound = known.stale_after();
            let stale =
                witness::is_stale(heartbeat, bound) || witness::is_stale(mirrors, bound.max(MIRRORS_BOUND));
            if known.witness.view().stale != stale {
                known.witness.set_stale(stale, now);
                changed.push(name.clone());
            }
        }
        for name in &changed {
            let stale = self.mirrors[name].witness.view().stale;
            if stale {
                tracing::warn!(mirror = name, "the shared state is too old; probing by myself");
            } else {
                tracing::info!(mirror = name, "the shared state is believed");
            }
            self.publish(name);
        }
        if !changed.is_empty() {
            self.publish_upstreams();
        }
        let stale = witness::is_stale(ago(contacts.namespaces), NAMESPACES_BOUND);
        if stale != self.namespaces.stale {
            self.namespaces.stale = stale;
            self.store.set_namespaces(self.namespaces.believed());
        }
    }

    /// Returns how long ago a sign of life was seen.
    pub(super) fn heartbeat_age(&self, at: Instant) -> Option<Duration> {
        self.heartbeat.seen.map(|seen| at.duration_since(seen))
    }

    /// Whether a sign of life was seen, and what the shared state says is believed.
    pub(super) fn heard(&self) -> bool {
        self.heartbeat.seen.is_some()
    }

    /// Returns the mirrors that this replica should probe itself.
    pub(super) fn wanted(&self) -> Vec<Wanted> {
        let wanted = self
            .mirrors
            .iter()
            .filter(|(_, known)| known.witness.wants_probes());
        wanted
            .filter_map(|(name, known)| {
                Some(Wanted {
                    mirror: name.clone(),
                    client: self.store.client(name)?,
                    settings: known.good.as_ref()?.0.health,
                })
            })
            .collect()
    }

    /// Returns what is shared of a mirror, whether it is believed or not.
    pub(super) fn shared(&self, mirror: &str) -> Option<Shared> {
        let Told {
            health,
            tags,
            digests,
            ..
        } = self.mirrors.get(mirror)?.told;
        Some(Shared {
            health,
            tags,
            digests,
        })
    }

    /// Returns what is wrong with ImageMirrors as they are now, by name.
    pub(super) fn faults(&self) -> impl Iterator<Item = (&str, &str)> {
        self.mirrors.iter().flat_map(|(name, known)| {
            known
                .faults
                .iter()
                .map(move |fault| (name.as_str(), fault.as_str()))
        })
    }

    /// Returns what `/status` shows of the heartbeat and of mirrors.
    pub(super) fn status(&self, at: Instant) -> (Value, Value) {
        let seen = self.heartbeat_age(at).map(|age| age.as_secs());
        let heartbeat = json!({"seenSecondsAgo": seen, "renewTime": self.heartbeat.renewed});
        let mirror = |(name, known): (&String, &Known)| {
            let shared = known.told.health;
            let value = json!({
                "stale": known.witness.view().stale,
                "shared": {
                    "state": shared.state.as_str(),
                    "provenSince": shared.proven_since.to_string(),
                },
                "faults": known.faults,
            });
            (name.clone(), value)
        };
        let mirrors: Map<String, Value> = self.mirrors.iter().map(mirror).collect();
        (heartbeat, mirrors.into())
    }
}

impl Known {
    /// Takes in a good resource.
    fn good_is(&mut self, good: (Mirror, Connection), now: Timestamp) {
        let way = |connection: &Connection| (connection.endpoint.clone(), connection.ca_bundle.clone());
        if let Some((_, before)) = &self.good
            && way(before) != way(&good.1)
        {
            self.witness.moved(now);
        }
        self.witness.configure(good.0.health);
        self.good = Some(good);
    }

    /// Completes the last good resource by what the status tells now.
    fn complete(&mut self) {
        if let Some((mirror, _)) = &mut self.good {
            mirror
                .pull_secret_namespaces
                .clone_from(&self.told.pull_secret_namespaces);
            mirror.platforms.clone_from(&self.told.platforms);
            mirror.owners_left_alone.clone_from(&self.told.owners_left_alone);
        }
    }

    fn stale_after(&self) -> Duration {
        let default = HealthSettings::default().stale_after;
        self.good
            .as_ref()
            .map_or(default, |(mirror, _)| mirror.health.stale_after)
    }
}

impl Namespaces {
    /// Returns what decisions may use: nothing while the watch is too old.
    fn believed(&self) -> BTreeMap<String, Labels> {
        if self.stale {
            BTreeMap::new()
        } else {
            self.known.clone()
        }
    }
}

fn renewed(lease: &Object) -> Option<String> {
    lease.spec["renewTime"].as_str().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::health::{Fault, State};

    const MIRROR: &str = "main";

    /// A belief, and a clock that tests move on by hand.
    struct Scene {
        belief: Belief,
        store: Store,
        started: Instant,
    }

    fn object(value: Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    fn mirror(state: &str, stale_after: &str) -> Object {
        object(json!({
            "metadata": {"name": MIRROR},
            "spec": {
                "registry": "mirror.test", "kind": "Hosted", "sources": [{"prefix": "docker.io"}],
                "endpoint": {"url": "http://127.0.0.1:1", "credentials": {"secretRef": {"name": "read"}}},
                "health": {"staleAfter": stale_after},
                "namespaceSelector": {"matchLabels": {"team": "blue"}},
            },
            "status": {"health": {"state": state, "provenSince": "2026-01-02T03:04:05.000000Z"}},
        }))
    }

    fn lease(number: u32) -> Object {
        object(json!({"spec": {"renewTime": format!("2026-01-02T03:04:{number:02}.000000Z")}}))
    }

    fn now() -> Timestamp {
        Timestamp::from_millis(2_000_000_000_000)
    }

    impl Scene {
        /// One healthy mirror was listed, and the Lease found.
        fn new(stale_after: &str) -> Self {
            // In the process the command line does it.
            drop(rustls::crypto::ring::default_provider().install_default());
            let store = Store::default();
            let mut belief = Belief::new(store.clone(), BTreeSet::new(), Metrics::new().0);
            belief.mirror_listed(&mirror("Healthy", stale_after), now());
            belief.mirrors_listed(0, now());
            belief.lease_listed(&lease(0));
            Self {
                belief,
                store,
                started: Instant::now(),
            }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.started + Duration::from_secs(seconds)
        }

        fn beat(&mut self, number: u32, seconds: u64) {
            let at = self.at(seconds);
            self.belief.lease_changed(&lease(number), at);
        }

        /// Lets time pass while all watches are in contact, and returns state and staleness.
        fn tick(&mut self, seconds: u64) -> (State, bool) {
            let at = self.at(seconds);
            let contacts = Contacts {
                mirrors: Some(at),
                namespaces: Some(at),
            };
            self.belief.tick(contacts, at, now());
            self.view()
        }

        fn view(&self) -> (State, bool) {
            let snapshot = self.store.snapshot();
            let (id, _) = snapshot.routing.mirrors().next().unwrap();
            (snapshot.health_of(id).state, snapshot.is_stale(id))
        }

        /// Answers the list that is wanted, with a state.
        fn relist(&mut self, state: &str) {
            let round = *self.belief.relists().borrow();
            self.belief.mirrors_listing();
            self.belief.mirror_listed(&mirror(state, "10s"), now());
            self.belief.mirrors_listed(round, now());
        }
    }

    const STALE: (State, bool) = (State::Unknown, true);
    const FRESH: (State, bool) = (State::Healthy, false);

    #[test]
    fn a_lease_that_is_only_there_is_no_sign_of_life() {
        let mut scene = Scene::new("10s");
        assert_eq!(scene.tick(0), STALE);
        scene.beat(0, 1);
        scene.relist("Healthy");
        assert_eq!(scene.tick(1), STALE);
        assert!(!scene.belief.heard());
    }

    #[test]
    fn after_a_pause_the_mirrors_are_listed_before_anything_is_believed() {
        let mut scene = Scene::new("10s");
        // The list that was under way before the sign of life says nothing.
        scene.beat(1, 1);
        scene.belief.mirrors_listing();
        scene.belief.mirror_listed(&mirror("Healthy", "10s"), now());
        scene.belief.mirrors_listed(0, now());
        assert_eq!(scene.tick(1), STALE);
        scene.relist("Healthy");
        assert_eq!(scene.tick(1), FRESH);
        // While it goes on, no list is needed.
        scene.beat(2, 6);
        assert_eq!(scene.tick(16), FRESH);
        assert_eq!(scene.tick(17), STALE);
        scene.beat(3, 20);
        assert_eq!(scene.tick(20), STALE);
        scene.relist("Unhealthy");
        assert_eq!(scene.tick(20), (State::Unhealthy, false));
    }

    #[test]
    fn each_mirror_has_its_own_bound() {
        let mut scene = Scene::new("10s");
        let mut other = mirror("Healthy", "1m");
        "other".clone_into(&mut other.metadata.name);
        scene.beat(1, 0);
        let round = *scene.belief.relists().borrow();
        scene.belief.mirrors_listing();
        scene.belief.mirror_listed(&mirror("Healthy", "10s"), now());
        scene.belief.mirror_listed(&other, now());
        scene.belief.mirrors_listed(round, now());
        scene.tick(30);
        let snapshot = scene.store.snapshot();
        let by_name = snapshot.routing.by_name();
        assert!(snapshot.is_stale(by_name[MIRROR]));
        assert!(!snapshot.is_stale(by_name["other"]));
    }

    #[test]
    fn a_silent_watch_of_mirrors_is_not_believed_whatever_the_heartbeat_says() {
        let mut scene = Scene::new("10s");
        scene.beat(1, 0);
        scene.relist("Healthy");
        for second in (5..=40).step_by(5) {
            scene.beat(u32::try_from(second).unwrap(), second);
        }
        assert_eq!(scene.tick(40), FRESH);
        let at = scene.at(40);
        let contacts = Contacts {
            mirrors: Some(scene.at(9)),
            namespaces: Some(at),
        };
        scene.belief.tick(contacts, at, now());
        assert_eq!(scene.view(), STALE);
    }

    #[test]
    fn a_silent_watch_of_namespaces_leaves_none_known() {
        let mut scene = Scene::new("10s");
        let namespace = |labels: Value| {
            serde_json::from_value::<Outline>(json!({"metadata": {"name": "shop", "labels": labels}}))
                .unwrap()
        };
        scene.tick(0);
        scene.belief.namespaces_listing();
        scene.belief.namespace_listed(namespace(json!({"team": "blue"})));
        let serves = |scene: &Scene| {
            let snapshot = scene.store.snapshot();
            let (id, _) = snapshot.routing.mirrors().next().unwrap();
            snapshot.serves(id, "shop")
        };
        assert!(!serves(&scene));
        scene.belief.namespaces_listed();
        assert!(serves(&scene));
        let at = scene.at(200);
        let contacts = |namespaces| Contacts {
            mirrors: Some(at),
            namespaces: Some(namespaces),
        };
        scene.belief.tick(contacts(scene.at(49)), at, now());
        assert!(!serves(&scene));
        // A mirror that changes meanwhile does not bring them back.
        scene.belief.mirror_changed(&mirror("Healthy", "1m"), now());
        assert!(!serves(&scene));
        scene.belief.tick(contacts(at), at, now());
        assert!(serves(&scene));
        scene.belief.namespace_deleted("shop");
        assert!(!serves(&scene));
    }

    #[test]
    fn mirrors_come_and_go_with_lists_and_deletions() {
        let mut scene = Scene::new("10s");
        let mirrors = |scene: &Scene| scene.store.snapshot().routing.len();
        assert_eq!(mirrors(&scene), 1);
        scene.belief.mirrors_listing();
        scene.belief.mirrors_listed(0, now());
        assert_eq!(mirrors(&scene), 0);
        scene.belief.mirror_changed(&mirror("Healthy", "10s"), now());
        assert_eq!(mirrors(&scene), 1);
        scene.belief.mirror_deleted(MIRROR, now());
        assert_eq!(mirrors(&scene), 0);
    }

    #[test]
    fn credentials_that_change_make_a_new_client_and_void_nothing() {
        let mut scene = Scene::new("10s");
        scene.beat(1, 0);
        scene.relist("Healthy");
        scene.tick(0);
        let secret = |content: &str| {
            let data = BTreeMap::from([(".dockerconfigjson".to_owned(), content.as_bytes().to_vec())]);
            let secret = Secret {
                namespace: None,
                type_: String::new(),
                data,
            };
            BTreeMap::from([(MIRROR.to_owned(), secret)])
        };
        let client = |scene: &Scene| scene.store.client(MIRROR).unwrap();
        let health = |scene: &Scene| scene.store.snapshot().health.clone();
        let (first, before) = (client(&scene), health(&scene));
        let good = r#"{"auths": {"mirror.test": {"username": "u", "password": "p"}}}"#;
        scene.belief.set_credentials(secret(good), now());
        let second = client(&scene);
        assert!(!second.is(&first));
        scene.belief.set_credentials(secret(good), now());
        assert!(client(&scene).is(&second));
        // Broken ones: without, and the mirror stays.
        scene.belief.set_credentials(secret("{"), now());
        assert!(!client(&scene).is(&second));
        assert_eq!(health(&scene), before);
    }

    #[test]
    fn another_endpoint_voids_what_was_proven() {
        let mut scene = Scene::new("10s");
        scene.beat(1, 0);
        scene.relist("Healthy");
        assert_eq!(scene.tick(0), FRESH);
        let mut moved = mirror("Healthy", "10s");
        moved.spec["endpoint"]["url"] = "http://127.0.0.1:2".into();
        scene.belief.mirror_changed(&moved, now());
        let health = scene.store.snapshot().health[0];
        assert_eq!((health.state, health.proven_since), (State::Healthy, now()));
    }

    #[test]
    fn own_probes_are_wanted_only_while_nobody_else_counts() {
        let mut scene = Scene::new("10s");
        scene.tick(0);
        assert_eq!(scene.belief.wanted().len(), 1);
        scene.beat(1, 0);
        scene.relist("Healthy");
        scene.tick(0);
        assert!(scene.belief.wanted().is_empty());
        let bad = Observed {
            mirror: MIRROR.to_owned(),
            observation: Observation::Bad(Fault::Timeout),
        };
        scene.belief.observe(&bad, now());
        scene.belief.observe(&bad, now());
        assert_eq!(scene.view(), (State::Unhealthy, false));
        assert_eq!(scene.belief.wanted().len(), 1);
    }
}
