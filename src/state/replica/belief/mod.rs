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
    api::v1alpha1::timestamp,
    cluster::{
        collection::Collection,
        mirrors::{Document, Form, Mirrors},
        objects::{Object, Outline, SharedStatus, is_paused},
        watch::Event,
    },
    credentials::Secret,
    domain::{
        health::{Health, Observation, Ping},
        image::Class,
        mirror::HealthSettings,
        presence::{FUTURE, Swept},
        selector::Labels,
        time::Timestamp,
        witness::{self, Outcome, View, Witness},
    },
    metrics::Metrics,
    state::{
        Store,
        configuration::Configuration,
        feed::{Feed, Identity, Keep, SecretFaults},
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
    mirrors: Mirrors,
    /// What is known of each of them beside what it says.
    known: BTreeMap<String, Known>,
    credentials: BTreeMap<String, Secret>,
    /// Why some of them are not in use.
    credential_faults: SecretFaults,
    namespaces: Collection<Labels>,
    /// Whether the namespaces are too old to be believed.
    namespaces_stale: bool,
    heartbeat: Heartbeat,
    /// Asks for a list of the ImageMirrors.
    relist: watch::Sender<u64>,
}

/// What is known of one mirror beside what its ImageMirror says.
#[derive(Debug)]
struct Known {
    told: SharedStatus,
    witness: Witness,
    /// Whether this replica has pinged it.
    pinged: bool,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedMirror {
    pub health: Health,
    /// The last complete sweeps.
    pub tags: Option<Swept>,
    pub digests: Option<Swept>,
}

/// What the pings of a mirror are made by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    /// They are all that is known, or speak against what is shared.
    pub(super) alone: bool,
    pub(super) settings: HealthSettings,
}

impl Belief {
    pub(super) fn new(store: Store, left_alone: BTreeSet<String>, metrics: Metrics) -> Self {
        Self {
            feed: Feed::new(store.clone(), left_alone),
            store,
            metrics,
            mirrors: Mirrors::default(),
            known: BTreeMap::new(),
            credentials: BTreeMap::new(),
            credential_faults: SecretFaults::new(),
            namespaces: Collection::default(),
            namespaces_stale: false,
            heartbeat: Heartbeat::default(),
            relist: watch::Sender::new(0),
        }
    }

    /// Returns the number of the last list of ImageMirrors that is wanted.
    pub(super) fn relists(&self) -> watch::Receiver<u64> {
        self.relist.subscribe()
    }

    /// Takes in what the watch of ImageMirrors tells.
    pub(super) fn take_mirror(&mut self, event: Event<Object>, now: Timestamp) {
        let name = match &event {
            Event::Listed(object) | Event::Changed(object) => Some(object.metadata.name.clone()),
            _ => None,
        };
        let listed = match &event {
            Event::ListedAll { round } => Some(*round),
            _ => None,
        };
        let before = name.as_deref().and_then(|name| self.mirrors.get(name)).cloned();
        let change = self.mirrors.take(event, |before, form| {
            Feed::check(before, form).map_err(|why| chain(&why))
        });
        self.forget_gone();
        if let Some(name) = &name {
            self.witness(name, before.as_deref(), now);
        }
        if change.forms {
            self.put(now);
        }
        if let Some(name) = &name {
            self.share(name);
        }
        if let Some(round) = listed
            && let Some((_, seen)) = self.heartbeat.awaits.take_if(|(awaited, _)| *awaited <= round)
        {
            self.heartbeat.seen = Some(seen);
        }
    }

    /// Forgets the mirrors that there are no more.
    fn forget_gone(&mut self) {
        let (mirrors, metrics) = (&self.mirrors, &self.metrics);
        self.known.retain(|name, _| {
            let stays = mirrors.get(name).is_some();
            if !stays {
                metrics.forget_mirror(name);
            }
            stays
        });
    }

    /// Takes in what an ImageMirror says now.
    fn witness(&mut self, name: &str, before: Option<&Document>, now: Timestamp) {
        let Some(document) = self.mirrors.get(name) else {
            return;
        };
        tell(name, before, document);
        let told = SharedStatus::from(document.status.clone());
        let known = self.known.entry(name.to_owned()).or_insert_with(|| Known {
            told: told.clone(),
            witness: Witness::new(HealthSettings::default(), now),
            pinged: false,
        });
        known.told = told;
        if let Some(form) = &document.form {
            let identity = |(mirror, connection): &Form| Identity::of(mirror, connection);
            let before = before.and_then(|before| before.form.as_ref());
            if before.is_some_and(|before| identity(before) != identity(form)) {
                known.witness.moved(now);
            }
            known.witness.configure(form.0.health);
        }
        known.witness.told(known.told.health.clone(), now);
    }

    /// Hands on what is shared of a mirror.
    fn share(&self, name: &str) {
        let Some(Known { told, .. }) = self.known.get(name) else {
            return;
        };
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
        let fresh = self.known.values().filter(|known| !known.witness.view().stale);
        let failing = fresh.flat_map(|known| known.told.failing_upstreams.iter().cloned());
        self.store.set_failing_upstreams(failing.collect());
    }

    /// Returns what is put to use: every mirror in its last good form, and what may be believed of
    /// namespaces.
    pub(super) fn configuration(&self) -> Configuration {
        let forms = self.mirrors.forms().cloned().map(|(mirror, mut connection)| {
            // Credentials come from a file of the mirror's name, whatever the Secret is called.
            if let Some(secret) = &mut connection.probe_secret {
                secret.clone_from(&mirror.name);
            }
            (mirror, connection)
        });
        Configuration {
            mirrors: forms.collect(),
            closed: self.mirrors.closed().cloned().collect(),
            secrets: self.credentials.clone(),
            standings: self
                .known
                .iter()
                .map(|(name, known)| (name.clone(), Arc::clone(&known.told.standing)))
                .collect(),
            namespaces: self.believed_namespaces(),
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
        for name in self.known.keys() {
            self.publish(name);
        }
        self.publish_upstreams();
    }

    fn publish(&self, name: &str) {
        let Some(known) = self.known.get(name) else {
            return;
        };
        self.store.set_standing(name, &known.told.standing);
        let view = known.witness.view();
        let (state, stale) = (view.health.state, view.stale);
        if self.store.set_view(name, view) {
            self.metrics.set_health(name, state);
            self.metrics.set_stale(name, stale);
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

    /// Takes in what the watch of Namespaces tells.
    pub(super) fn take_namespace(&mut self, event: Event<Outline>) {
        if self.namespaces.take(event.map(Outline::into_labels)) && self.namespaces.is_complete() {
            self.store.set_namespaces(self.believed_namespaces());
        }
    }

    /// Returns the namespaces that decisions may use: none before all are known, or while the watch is too old.
    fn believed_namespaces(&self) -> BTreeMap<String, Labels> {
        if self.namespaces_stale || !self.namespaces.is_complete() {
            return BTreeMap::new();
        }
        self.namespaces.all()
    }

    /// Takes in the Lease as it was found. That it is there is no sign of life.
    pub(super) fn lease_listed(&mut self, lease: &Object) {
        self.brake(lease);
        self.heartbeat.renewed = renewed(lease);
    }

    /// Takes in whether the Lease says that the brake is on. That needs no sign of life.
    fn brake(&self, lease: &Object) {
        let paused = is_paused(lease);
        if self.store.set_paused(paused) {
            tracing::warn!(paused, "the brake was pulled or released");
        }
    }

    /// Takes in a change of the Lease.
    pub(super) fn lease_changed(&mut self, lease: &Object, at: Instant, now: Timestamp) {
        self.brake(lease);
        let renewed = renewed(lease);
        if renewed.is_none() || renewed == self.heartbeat.renewed {
            return;
        }
        self.heartbeat.renewed = renewed;
        self.well_seen(lease, now);
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

    /// Takes in when who keeps the shared state has last seen mirrors well.
    fn well_seen(&mut self, lease: &Object, now: Timestamp) {
        let Some(sign) = renewed_at(lease) else { return };
        for (mirror, asked_at) in seen_well(lease) {
            let Some(known) = self.known.get_mut(&mirror) else {
                continue;
            };
            if known.witness.well_seen(asked_at, sign, now) {
                tracing::warn!(
                    mirror,
                    "the companion sees the mirror well and this replica does not: its own way there is broken, and it goes by \
                     what is shared alone"
                );
                self.publish(&mirror);
            }
        }
    }

    /// Takes in the Lease by its date, for a command that cannot wait to see it change; whoever takes
    /// over the lead believes it in the same way. Returns how old it is.
    pub(super) fn lease_dated(&mut self, lease: &Object, at: Instant, now: Timestamp) -> Option<Duration> {
        self.brake(lease);
        self.heartbeat.renewed = renewed(lease);
        let renewed_at = renewed_at(lease)?;
        if renewed_at > now.after(FUTURE) {
            return None;
        }
        let age = now.since(renewed_at);
        self.heartbeat.seen = at.checked_sub(age);
        Some(age)
    }

    fn bounds(&self) -> impl Iterator<Item = Duration> {
        self.mirrors.forms().map(|(mirror, _)| mirror.health.stale_after)
    }

    /// Takes in that a mirror takes longer to answer than it usually does, or failed.
    pub(super) fn suspect(&mut self, mirror: &str) {
        if let Some(known) = self.known.get_mut(mirror) {
            known.witness.suspect();
            self.publish(mirror);
        }
    }

    /// Takes in what a ping of this replica tells of a mirror, which was sent at `asked_at`.
    pub(super) fn pinged(
        &mut self,
        mirror: &str,
        ping: Ping,
        asked_at: Timestamp,
        now: Timestamp,
    ) -> Outcome {
        let Some(known) = self.known.get_mut(mirror) else {
            return Outcome::Same;
        };
        let (had_voice, is_first) = (known.witness.has_voice(), !known.pinged);
        known.pinged = true;
        let words = match &ping.observation {
            Observation::Bad(fault, cause) => Some(cause.clone().unwrap_or_else(|| fault.as_str().into())),
            Observation::Good => None,
        };
        let outcome = known.witness.pinged(ping, asked_at, now);
        let has_voice = known.witness.has_voice();
        if has_voice && !had_voice {
            tracing::info!(mirror, "this replica sees the mirror itself");
        } else if is_first && !has_voice {
            let cause = words.as_deref();
            tracing::warn!(
                mirror,
                cause,
                "this replica cannot see the mirror itself, and goes by what is shared alone"
            );
        }
        if outcome == Outcome::Changed {
            let View { health, stale, .. } = known.witness.view();
            let (state, cause) = (health.state.as_str(), health.cause.as_deref());
            tracing::info!(
                mirror,
                state,
                cause,
                stale,
                "this replica sees a mirror otherwise than before"
            );
        }
        self.publish(mirror);
        outcome
    }

    /// Takes in whether known images of a mirror that may have been away are where they were.
    pub(super) fn returned(&mut self, mirror: &str, all_there: bool, now: Timestamp) {
        if let Some(known) = self.known.get_mut(mirror) {
            let is_back = known.witness.returned(all_there, now);
            if !all_there {
                tracing::warn!(
                    mirror,
                    "the mirror was away and came back without known images; all proofs are void"
                );
            } else if is_back {
                tracing::info!(mirror, "the mirror answers again, with its images");
            }
            self.publish(mirror);
        }
    }

    /// Lets time pass: what was not heard of for too long is not believed any more.
    pub(super) fn tick(&mut self, contacts: Contacts, at: Instant, now: Timestamp) {
        let ago = |seen: Option<Instant>| seen.map(|seen| at.duration_since(seen));
        let (heartbeat, mirrors) = (ago(self.heartbeat.seen), ago(contacts.mirrors));
        let mut changed = Vec::new();
        for (name, known) in &mut self.known {
            let form = self.mirrors.get(name).and_then(|document| document.form.as_ref());
            let settings = form.map(|(mirror, _)| mirror.health).unwrap_or_default();
            let bound = settings.stale_after;
            let stale =
                witness::is_stale(heartbeat, bound) || witness::is_stale(mirrors, bound.max(MIRRORS_BOUND));
            if known.witness.view().stale != stale {
                known.witness.set_stale(stale, now);
                changed.push(name.clone());
            }
        }
        for name in &changed {
            let stale = self.known[name].witness.view().stale;
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
        if stale != self.namespaces_stale {
            self.namespaces_stale = stale;
            self.store.set_namespaces(self.believed_namespaces());
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

    /// Returns what the pings of a mirror are made by; none if it is not in force.
    pub(super) fn need(&self, mirror: &str) -> Option<Need> {
        Some(Need {
            alone: self.known.get(mirror)?.witness.is_alone(),
            settings: self.mirrors.get(mirror)?.form.as_ref()?.0.health,
        })
    }

    /// Returns the mirrors of which the shared state is too old.
    pub(super) fn stale(&self) -> Vec<String> {
        let stale = self.known.iter().filter(|(_, known)| known.witness.view().stale);
        stale.map(|(mirror, _)| mirror.clone()).collect()
    }

    /// Returns what is shared of a mirror, whether it is believed or not.
    pub(super) fn shared(&self, mirror: &str) -> Option<SharedMirror> {
        let SharedStatus {
            health,
            tags,
            digests,
            ..
        } = &self.known.get(mirror)?.told;
        Some(SharedMirror {
            health: health.clone(),
            tags: *tags,
            digests: *digests,
        })
    }

    /// Returns what is wrong with ImageMirrors as they are now, by name.
    pub(super) fn faults(&self) -> impl Iterator<Item = (&str, &str)> {
        self.mirrors.iter().flat_map(|(name, document)| {
            document
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
        let mirror = |(name, document): (&String, &Arc<Document>)| {
            let Known { told, witness, .. } = self.known.get(name)?;
            let fault = self.credential_faults.get(name);
            let mirror = status::Mirror {
                stale: witness.view().stale,
                shared: status::Shared {
                    state: told.health.state.as_str(),
                    cause: told.health.cause.as_deref().map(ToOwned::to_owned),
                    proven_since: told.health.proven_since.to_string(),
                },
                faults: document.faults.clone(),
                unknown: document.unknown.iter().map(ToString::to_string).collect(),
                credentials_fault: fault.map(|fault| chain(fault)),
            };
            Some((name.clone(), mirror))
        };
        (heartbeat, self.mirrors.iter().filter_map(mirror).collect())
    }
}

/// Logs what is new of an ImageMirror that is not as it should be.
fn tell(mirror: &str, before: Option<&Document>, document: &Document) {
    let Document { faults, unknown, .. } = document;
    if before.is_none_or(|before| before.faults != *faults) {
        for fault in faults {
            tracing::warn!(
                mirror,
                fault,
                "an ImageMirror has a fault; the last good one stays in force"
            );
        }
    }
    if before.is_none_or(|before| before.unknown != *unknown) {
        for what in unknown {
            tracing::warn!(
                mirror,
                what = what.to_string(),
                "an ImageMirror is of a newer definition than this program"
            );
        }
    }
}

/// Returns when who renews the Lease asked each mirror last that was well.
fn seen_well(lease: &Object) -> BTreeMap<String, Timestamp> {
    let annotations = lease.metadata.annotations.as_ref();
    let written = annotations.and_then(|annotations| annotations.seen_well.as_deref());
    let times: BTreeMap<String, u64> = written
        .and_then(|written| serde_json::from_str(written).ok())
        .unwrap_or_default();
    times
        .into_iter()
        .map(|(mirror, millis)| (mirror, Timestamp::from_millis(millis)))
        .collect()
}

fn renewed_at(lease: &Object) -> Option<Timestamp> {
    let written = serde_json::from_value(lease.spec["renewTime"].clone()).ok()?;
    Some(timestamp(&written))
}

fn renewed(lease: &Object) -> Option<String> {
    lease.spec["renewTime"].as_str().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests;
