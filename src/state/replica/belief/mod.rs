//! What this replica believes, made of everything that the watches and its own eyes tell.
//!
//! Everything here is told with the time and happens at once; nothing waits. A bad or newer
//! ImageMirror leaves the last good one of its name in force. The shared state counts as fresh only
//! after a sign of life from the companion *and*, if it was stale before, a list of the ImageMirrors
//! that began after that sign: the watches are independent, and the Lease's may be ahead.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::status;
use crate::{
    api::{mirror::Connection, v1alpha1::timestamp},
    cluster::objects::{Object, Outline, Reader, SharedStatus},
    credentials::Secret,
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
        Store,
        configuration::Configuration,
        feed::{Feed, Identity, Keep, SecretFaults, Unusable},
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
    /// Why some of them are not in use.
    credential_faults: SecretFaults,
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
    told: SharedStatus,
    witness: Witness,
    /// What is wrong with the resource as it is now.
    faults: Vec<String>,
    /// What this program does not know of it, and what it does about that.
    unknown: Vec<String>,
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
pub struct SharedMirror {
    pub health: Health,
    /// The last complete sweeps.
    pub tags: Option<Swept>,
    pub digests: Option<Swept>,
}

/// A mirror that this replica should ping itself.
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
            reader: Reader::default(),
            mirrors: BTreeMap::new(),
            listing: BTreeSet::new(),
            credentials: BTreeMap::new(),
            credential_faults: SecretFaults::new(),
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
        let unknown: Vec<_> = read.unknown.iter().map(ToString::to_string).collect();
        let told = SharedStatus::from(self.reader.status(object));
        let known = self.mirrors.entry(name.to_owned()).or_insert_with(|| Known {
            good: None,
            told: told.clone(),
            witness: Witness::new(HealthSettings::default(), now),
            faults: Vec::new(),
            unknown: Vec::new(),
        });
        known.told = told;
        let before = known.good.clone();
        let faults = match read.taken {
            Ok(mut good) => {
                // Credentials come from a file of the mirror's name, whatever the Secret is called.
                if let Some(secret) = &mut good.1.probe_secret {
                    name.clone_into(secret);
                }
                match known.check(&good) {
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
        if known.unknown != unknown {
            for what in &unknown {
                tracing::warn!(
                    mirror = name,
                    what,
                    "an ImageMirror is of a newer definition than this program"
                );
            }
            known.unknown = unknown;
        }
        known.witness.told(known.told.health, now);
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
    /// namespaces.
    pub(super) fn configuration(&self) -> Configuration {
        let good = self.mirrors.values().filter_map(|known| known.good.clone());
        Configuration {
            mirrors: good.collect(),
            secrets: self.credentials.clone(),
            standings: self
                .mirrors
                .iter()
                .map(|(name, known)| (name.clone(), Arc::clone(&known.told.standing)))
                .collect(),
            namespaces: self.namespaces.believed(),
        }
    }

    /// Puts the mirrors to use as they are known now.
    fn put(&mut self, now: Timestamp) {
        // Images are followed apart, and may be known before their mirror is.
        let applied = self.feed.apply(self.configuration(), Keep::All, now);
        self.metrics.configured(applied.is_ok());
        match applied {
            Ok(faults) => self.tell_credential_faults(faults),
            Err(hindrances) => {
                for hindrance in hindrances {
                    // Each mirror was checked; only the system can be short of something now.
                    tracing::error!(
                        error = chain(&hindrance),
                        "cannot use the ImageMirrors; the former ones stay in force"
                    );
                }
            }
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
        self.store.set_standing(name, &known.told.standing);
        let view = known.witness.view();
        if self.store.set_view(name, view) {
            self.metrics.set_health(name, view.health.state);
            self.metrics.set_stale(name, view.stale);
        }
    }

    /// Takes in the read credentials, by mirror.
    pub(super) fn set_credentials(&mut self, credentials: BTreeMap<String, Secret>) {
        if credentials != self.credentials {
            self.credentials = credentials;
            let faults = self.feed.renew(&self.credentials);
            self.tell_credential_faults(faults);
        }
    }

    fn tell_credential_faults(&mut self, faults: SecretFaults) {
        for (mirror, fault) in &faults {
            if self.credential_faults.get(mirror) != Some(fault) {
                tracing::warn!(
                    mirror,
                    error = chain(fault),
                    "credentials have a fault; the last good ones stay in use for an hour at most"
                );
            }
        }
        self.credential_faults = faults;
    }

    /// Returns what is wrong with credentials, by mirror.
    pub(super) const fn credential_faults(&self) -> &SecretFaults {
        &self.credential_faults
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
        // It may go while they are listed.
        self.namespaces.listing.remove(name);
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

    /// Takes in that a live look on a mirror failed.
    pub(super) fn doubt(&mut self, mirror: &str) {
        if let Some(known) = self.mirrors.get_mut(mirror) {
            known.witness.doubt();
        }
    }

    /// Takes in what a ping of this replica tells of a mirror.
    pub(super) fn pinged(&mut self, mirror: &str, observation: Observation, now: Timestamp) {
        let Some(known) = self.mirrors.get_mut(mirror) else {
            return;
        };
        if known.witness.pinged(observation, now).changed {
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

    /// Returns the mirrors that this replica should ping itself.
    pub(super) fn wanted(&self) -> Vec<Wanted> {
        let wanted = self
            .mirrors
            .iter()
            .filter(|(_, known)| known.witness.wants_pings());
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
    pub(super) fn shared(&self, mirror: &str) -> Option<SharedMirror> {
        let SharedStatus {
            health,
            tags,
            digests,
            ..
        } = self.mirrors.get(mirror)?.told;
        Some(SharedMirror {
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
    pub(super) fn status(&self, at: Instant) -> (status::Heartbeat, BTreeMap<String, status::Mirror>) {
        let heartbeat = status::Heartbeat {
            seen_seconds_ago: self.heartbeat_age(at).map(|age| age.as_secs()),
            renew_time: self.heartbeat.renewed.clone(),
        };
        let mirror = |(name, known): (&String, &Known)| {
            let fault = self.credential_faults.get(name);
            let mirror = status::Mirror {
                stale: known.witness.view().stale,
                shared: status::Shared {
                    state: known.told.health.state.as_str(),
                    proven_since: known.told.health.proven_since.to_string(),
                },
                faults: known.faults.clone(),
                unknown: known.unknown.clone(),
                credentials_fault: fault.map(|fault| chain(fault)),
            };
            (name.clone(), mirror)
        };
        (heartbeat, self.mirrors.iter().map(mirror).collect())
    }
}

impl Known {
    /// Returns why a mirror cannot be used; what was in use before needs no check.
    fn check(&self, (mirror, connection): &(Mirror, Connection)) -> Result<(), Unusable> {
        if self
            .identity()
            .is_some_and(|before| before == Identity::of(mirror, connection))
        {
            return Ok(());
        }
        Feed::check(mirror, connection)
    }

    /// Returns which mirror the last good resource is about.
    fn identity(&self) -> Option<Identity> {
        self.good
            .as_ref()
            .map(|(mirror, connection)| Identity::of(mirror, connection))
    }

    /// Takes in a good resource.
    fn good_is(&mut self, good: (Mirror, Connection), now: Timestamp) {
        if self
            .identity()
            .is_some_and(|before| before != Identity::of(&good.0, &good.1))
        {
            self.witness.moved(now);
        }
        self.witness.configure(good.0.health);
        self.good = Some(good);
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
mod tests;
