//! Keeps the login of mirrors in one Secret of each namespace that they serve, for its nodes to pull with.
//!
//! `domain::pull_secret` says what each namespace is to hold and what there is to do; this does it, one write after the
//! other, and tells where the logins of now are in place. What stands there is known by one watch of all Secrets of that
//! one name: the right to it opens no other Secret.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ObjectReference, Secret},
};
use kube::{
    Api,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};

use super::{
    leader::Leader,
    placed::{LISTED, Placed, Placing, Told},
};
use crate::{
    api::{PULL_SECRET, PULL_SECRET_LABEL},
    cluster::{
        collection::Collection,
        events::Message,
        objects::PullSecret,
        sources,
        watch::{Event, follow},
        writer::NotWritten,
    },
    credentials::{self, CONFIG_JSON_KEY, Credentials, DOCKER_CONFIG_JSON},
    domain::{
        mirror::Mode,
        pull_secret::{self, Step, Verdict, judge, wanted},
        reason::Reason,
        routing::MirrorId,
        snapshot::Snapshot,
        standing::Standing,
    },
    registry::pace::Pace,
    state::logins::{Login, PullLogins},
    telemetry::{Reminder, chain},
};

/// Writes a second: 2,000 namespaces have another login within two minutes.
const RATE: u32 = 20;

/// How long steps are carried out before all is looked at again. A look costs what there is, not what changed.
const ROUND: Duration = Duration::from_secs(2);

/// How long changes are gathered before they are looked at.
const GATHER: Duration = Duration::from_millis(200);

/// How often all is looked at where nothing seems to change: the last good login of a faulty Secret ends by itself.
const LOOK: Duration = Duration::from_mins(1);

/// How long it may take until the watch tells what was written.
const ECHO: Duration = Duration::from_secs(5);

/// How often it is told how far this is while it goes on. What is lost is told at once.
const TELLS: Duration = Duration::from_secs(10);

/// The first and the longest pause after a namespace's Secret could not be written.
const PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(5));

/// How long what an earlier leader told is believed while nobody knows what stands in namespaces.
const BELIEVED: Duration = Duration::from_mins(1);

/// Of how many Secrets that are somebody else's it is told at once, before logins are placed again.
const EVENTS: usize = 5;

/// How often it is told of one namespace at most.
const TOLD: Duration = Duration::from_mins(1);

/// How often somebody may take Kagami's Secret of a namespace away, as by its label, before it does not count there for
/// a while; the shortest and the longest such while; and after how long without it that is forgotten.
const BORNE: u32 = 3;
const OUT: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(1));
const FORGIVEN: Duration = Duration::from_hours(2);

/// After so many failures in a row a condition tells.
const TOLD_AFTER: u32 = 3;

/// The longest content that is kept. A Secret of a tenant may be large, and many are; Kagami's are small.
const KEPT: usize = 64 << 10;

/// What tells one content from another.
type Fingerprint = [u8; 32];
type Found = pull_secret::Found<Stored>;

/// What a Secret holds. `Debug` does not show it.
#[derive(Clone, Default)]
struct Stored {
    fingerprint: Fingerprint,
    /// Where it is Kagami's: the logins of which nobody knows any more what they were stand here alone.
    config: Option<Arc<[u8]>>,
}

impl PartialEq for Stored {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored").finish_non_exhaustive()
    }
}

/// What there is, by namespace.
type Present = Mutex<Collection<Found>>;

/// Keeps the Secrets until this process may not write any more; where none are to be placed it only says so.
pub(super) async fn run(
    leader: Leader,
    is_enabled: bool,
    logins: PullLogins,
    placing: watch::Sender<Placing>,
) {
    if !is_enabled {
        placing.send_replace(Placing::Off);
        // The task of a leader never ends by itself.
        return std::future::pending().await;
    }
    // Before all Secrets are known, every login seems to be missing.
    let mut cluster = leader.cluster.clone();
    if cluster.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let present = Present::default();
    let changed = Notify::new();
    tokio::select! {
        never = watch_all(&leader, &present, &changed) => match never {},
        () = keep(&leader, &logins, &placing, &present, &changed) => {}
    }
}

async fn watch_all(leader: &Leader, present: &Present, changed: &Notify) -> Infallible {
    let source = sources::pull_secrets();
    let pulse = leader.pulses.of(&source);
    let (_never, relists) = watch::channel(0);
    follow(
        leader.client.clone(),
        source,
        pulse,
        relists,
        |event: Event<PullSecret>| {
            if lock(present).take(event.map(found)) {
                changed.notify_one();
            }
        },
    )
    .await
}

/// Returns the namespace of a Secret, and what of it matters.
fn found(secret: PullSecret) -> (String, Found) {
    let metadata = secret.metadata;
    let labels = metadata.labels.unwrap_or_default();
    let has_label = labels.get(PULL_SECRET_LABEL).is_some_and(|value| value == "true");
    let content = secret.data.and_then(|data| data.config).unwrap_or_default().0;
    let is_ours = has_label && secret.type_ == DOCKER_CONFIG_JSON;
    let found = Found {
        uid: metadata.uid,
        version: metadata.resource_version,
        is_ours,
        is_immutable: secret.immutable == Some(true),
        is_going: metadata.deletion_timestamp.is_some(),
        content: Stored {
            fingerprint: fingerprint(&content),
            config: (is_ours && content.len() <= KEPT).then(|| content.into()),
        },
    };
    (metadata.namespace, found)
}

fn fingerprint(content: &[u8]) -> Fingerprint {
    Sha256::digest(content).into()
}

fn lock(present: &Present) -> MutexGuard<'_, Collection<Found>> {
    present.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one namespace's Secret is to hold; none where it is to hold nothing.
struct Content {
    config: Vec<u8>,
    stored: Stored,
    /// The mirrors whose login it has.
    mirrors: BTreeSet<MirrorId>,
}

/// A step in a namespace.
struct Due {
    step: Step,
    namespace: String,
    content: Option<Arc<Content>>,
    found: Option<Found>,
}

/// What is to be done, and what is known.
#[derive(Default)]
struct Plan {
    due: Vec<Due>,
    /// Namespaces where somebody else's Secret has the name, with its UID.
    foreign: BTreeMap<String, String>,
    mirrors: BTreeMap<String, Placed>,
    /// Whether the watch has still to tell of a write.
    waits: bool,
    /// When a step comes due again that was tried.
    next: Option<Instant>,
    wanted: usize,
    in_place: usize,
}

/// What became of the last step in a namespace.
#[derive(Clone, Copy)]
struct Tried {
    /// How often it failed in a row.
    failed: u32,
    /// When it may be tried again.
    until: Instant,
}

/// How a namespace stood that had what it was to hold.
#[derive(Clone, Copy)]
struct Held {
    /// What that was.
    content: Fingerprint,
    is_in_place: bool,
    /// How often somebody took it away, and when that was last.
    lost: u32,
    lost_at: Instant,
    /// Until when the namespace does not count.
    out_until: Option<Instant>,
}

/// What is kept of earlier rounds, of namespaces that concern somebody still.
#[derive(Default)]
struct Memory {
    tried: BTreeMap<String, Tried>,
    /// By namespace.
    held: BTreeMap<String, Held>,
    /// Where it was told of somebody else's Secret, of which one, and when.
    told: BTreeMap<String, (String, Instant)>,
    reminder: Reminder,
}

async fn keep(
    leader: &Leader,
    logins: &PullLogins,
    placing: &watch::Sender<Placing>,
    present: &Present,
    changed: &Notify,
) {
    let pace = Pace::new(Some(RATE));
    let mut memory = Memory::default();
    let mut logins = logins.subscribe();
    let mut snapshots = leader.store.subscribe();
    let started = Instant::now();
    // Since when something was to be done, or since that was told last.
    let mut busy: Option<Instant> = None;
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let plan = {
            let logins = Arc::clone(&logins.borrow_and_update());
            let present = lock(present);
            present
                .is_complete()
                .then(|| plan(&snapshot, &logins, &present, &mut memory, Instant::now()))
        };
        let mut pause = LOOK;
        if let Some(plan) = plan {
            leader
                .metrics
                .set_pull_secrets(plan.wanted, plan.in_place, plan.foreign.len());
            let is_idle = plan.due.is_empty() && !plan.waits;
            let since = *busy.get_or_insert_with(Instant::now);
            if is_idle || since.elapsed() >= TELLS || loses(&placing.borrow(), &plan.mirrors) {
                busy = None;
                publish(leader, placing, &plan.mirrors);
            }
            memory
                .told
                .retain(|namespace, _| snapshot.namespaces.contains_key(namespace));
            let untold = memory.untold(plan.foreign, Instant::now());
            let more = untold.len() > EVENTS;
            for (namespace, uid) in untold.into_iter().take(EVENTS) {
                if tell(leader, &namespace, &uid).await.is_err() {
                    return;
                }
                memory.told.insert(namespace, (uid, Instant::now()));
            }
            if !plan.due.is_empty() {
                let begun = Instant::now();
                let is_current = || {
                    let now = leader.store.snapshot();
                    is_same_for_all(&snapshot, &now) && !logins.has_changed().unwrap_or(true)
                };
                for due in plan.due {
                    pace.turn().await;
                    // What was planned may be another login's by now, or nobody's.
                    if begun.elapsed() >= ROUND || !is_current() {
                        break;
                    }
                    if !carry_out(leader, due, &mut memory).await {
                        return;
                    }
                }
                continue;
            }
            pause = plan.next.map_or(LOOK, |next| (next - Instant::now()).min(LOOK));
            if more {
                pause = GATHER;
            }
        } else if started.elapsed() >= BELIEVED {
            // As where the right is missing. What is in place may not be any more.
            publish(leader, placing, &nowhere(&snapshot));
        }
        let another = async {
            while snapshots.changed().await.is_ok() {
                if !is_same_for_all(&snapshot, &snapshots.borrow_and_update()) {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = another => {}
            Ok(()) = logins.changed() => {}
            () = changed.notified() => {}
            () = sleep(pause) => {}
        }
        sleep(GATHER).await;
    }
}

/// Whether two snapshots are the same in all that concerns pull secrets.
fn is_same_for_all(a: &Snapshot, b: &Snapshot) -> bool {
    Arc::ptr_eq(&a.routing, &b.routing) && Arc::ptr_eq(&a.namespaces, &b.namespaces)
}

/// Whether something was told to be in place that is not any more. What an earlier leader told may be anything.
fn loses(before: &Placing, now: &BTreeMap<String, Placed>) -> bool {
    let Placing::On(before) = before else { return true };
    before.iter().any(|(mirror, before)| {
        let now = now.get(mirror).map_or(&[] as &[String], |now| &now.in_place);
        // Both by name.
        let is_there = |namespace: &String| now.binary_search(namespace).is_ok();
        !before.in_place.iter().all(is_there)
    })
}

fn publish(leader: &Leader, placing: &watch::Sender<Placing>, mirrors: &BTreeMap<String, Placed>) {
    for (mirror, placed) in mirrors {
        // For stuck Pods that may go to the mirror: they are decided about as at admission.
        let standing = Standing {
            pull_secret_namespaces: placed.in_place.iter().cloned().collect(),
            ..Standing::NONE
        };
        leader.store.set_standing(mirror, &Arc::new(standing));
    }
    let next = Placing::On(mirrors.clone());
    placing.send_if_modified(|before| {
        let differs = *before != next;
        *before = next;
        differs
    });
}

/// A mirror's login, as it is in use.
struct Usable<'a> {
    keys: BTreeSet<String>,
    /// None where its Secret has had a fault for as long as this process knows it: what the last leader placed by a good
    /// one stays in use, wherever it is.
    credentials: Option<&'a Credentials>,
}

/// Returns the login of a mirror, or why there is none.
fn usable<'a>(
    snapshot: &Snapshot,
    id: MirrorId,
    not_separated: &BTreeSet<&str>,
    login: Option<&'a Login>,
    now: Instant,
) -> Result<Usable<'a>, Told> {
    let mirror = snapshot.routing.mirror(id);
    if mirror.mode != Mode::Enforce {
        return Err(Told::ModeTooWeak);
    }
    if not_separated.contains(mirror.name.as_str()) {
        return Err(Told::NotSeparated);
    }
    let keys = pull_secret::keys(mirror).ok_or(Told::NoKey)?;
    let login = login.ok_or(Told::Placing)?;
    let until = login.held.until();
    let is_over = until.is_some_and(|until| until <= now);
    let credentials = login.held.credentials().filter(|_| !is_over);
    if credentials.is_none() && (is_over || until.is_none()) {
        return Err(trouble(login).unwrap_or(Told::Placing));
    }
    Ok(Usable { keys, credentials })
}

/// Returns what is wrong with a login, if something is.
fn trouble(login: &Login) -> Option<Told> {
    let missing = login.missing.clone().map(Told::SecretNotFound);
    missing.or_else(|| Some(Told::SecretFaulty(chain(&**login.fault.as_ref()?))))
}

/// Looks at everything once.
fn plan(
    snapshot: &Snapshot,
    logins: &BTreeMap<String, Login>,
    present: &Collection<Found>,
    memory: &mut Memory,
    now: Instant,
) -> Plan {
    let not_separated: BTreeSet<&str> = snapshot.routing.not_separated().collect();
    let asking = snapshot
        .routing
        .mirrors()
        .filter(|(_, mirror)| mirror.pull_secret);
    let logins: Logins<'_> = asking
        .map(|(id, mirror)| {
            (
                id,
                usable(snapshot, id, &not_separated, logins.get(&mirror.name), now),
            )
        })
        .map(|(id, usable)| (id, (usable, logins.get(&snapshot.routing.mirror(id).name))))
        .collect();
    let wanted = wanted(snapshot, |id, _| {
        logins.get(&id).is_some_and(|(usable, _)| usable.is_ok())
    });
    memory
        .held
        .retain(|namespace, _| wanted.contains_key(namespace.as_str()));
    memory.tried.retain(|namespace, tried| {
        (tried.failed > 0 || tried.until > now)
            && (wanted.contains_key(namespace.as_str())
                || present.get(namespace).is_some_and(|found| found.is_ours))
    });
    let mut plan = Plan {
        wanted: wanted.len(),
        ..Plan::default()
    };
    let mut contents: BTreeMap<&Vec<MirrorId>, Arc<Content>> = BTreeMap::new();
    let is_unknown = |id: &MirrorId| {
        let usable = logins.get(id).and_then(|(usable, _)| usable.as_ref().ok());
        usable.is_some_and(|usable| usable.credentials.is_none())
    };
    let mut in_place: BTreeMap<MirrorId, Vec<String>> = BTreeMap::new();
    let mut hindered: BTreeMap<MirrorId, BTreeSet<Hindrance>> = BTreeMap::new();
    for (namespace, mirrors) in &wanted {
        let found = present.get(namespace);
        let (content, to_hold) = if mirrors.iter().any(is_unknown) {
            // That follows what stands there, so any change is somebody else's.
            (Arc::new(content(mirrors, &logins, found)), Fingerprint::default())
        } else {
            let of_all = contents.entry(mirrors);
            let content = of_all.or_insert_with(|| Arc::new(content(mirrors, &logins, None)));
            (Arc::clone(content), content.stored.fingerprint)
        };
        let is_something = !content.mirrors.is_empty();
        let verdict = judge(is_something.then_some(&content.stored), found);
        let is_in_place = is_something && verdict == Verdict::Done;
        let out_until = memory.contested(namespace, to_hold, is_in_place, now);
        plan.note(namespace, verdict, Some(&content), found, memory, now);
        plan.next = plan.next.into_iter().chain(out_until).min();
        let is_in_place = is_in_place && out_until.is_none();
        plan.in_place += usize::from(is_in_place);
        for id in mirrors {
            if !content.mirrors.contains(id) {
                hindered.entry(*id).or_default().insert(Hindrance::AnotherLogin);
            } else if is_in_place {
                in_place.entry(*id).or_default().push((*namespace).to_owned());
            } else {
                let has_failed = memory
                    .tried
                    .get(*namespace)
                    .is_some_and(|tried| tried.failed >= TOLD_AFTER);
                let hindrance = match verdict {
                    _ if out_until.is_some() => Hindrance::Contested,
                    Verdict::Foreign => Hindrance::Foreign,
                    _ if has_failed => Hindrance::NotWritten,
                    _ => Hindrance::Placing,
                };
                hindered.entry(*id).or_default().insert(hindrance);
            }
        }
    }
    for (namespace, found) in present
        .iter()
        .filter(|(name, _)| !wanted.contains_key(name.as_str()))
    {
        let verdict = judge(None, Some(found));
        plan.note(namespace, verdict, None, Some(found), memory, now);
    }
    plan.due.sort_by_key(|due| due.step);
    for (id, (usable, login)) in &logins {
        let mut namespaces = in_place.remove(id).unwrap_or_default();
        let worst = hindered.get(id).and_then(BTreeSet::first);
        let told = match (usable, login.and_then(trouble), worst) {
            (Err(told), ..) => told.clone(),
            (Ok(_), Some(trouble), _) => trouble,
            (Ok(_), None, Some(worst)) => worst.told(),
            (Ok(_), None, None) if namespaces.len() > LISTED => Told::TooMany,
            (Ok(_), None, None) => Told::InPlace,
        };
        namespaces.truncate(LISTED);
        let in_place = namespaces.into();
        let name = snapshot.routing.mirror(*id).name.clone();
        plan.mirrors.insert(name, Placed { in_place, told });
    }
    plan
}

/// What keeps a login from a namespace; the one to be told of first comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hindrance {
    AnotherLogin,
    Contested,
    Foreign,
    NotWritten,
    Placing,
}

impl Hindrance {
    const fn told(self) -> Told {
        match self {
            Self::AnotherLogin => Told::AnotherLogin,
            Self::Contested => Told::Contested,
            Self::Foreign => Told::Foreign,
            Self::NotWritten => Told::NotWritten,
            Self::Placing => Told::Placing,
        }
    }
}

impl Plan {
    /// Notes how a namespace stands.
    fn note(
        &mut self,
        namespace: &str,
        verdict: Verdict,
        content: Option<&Arc<Content>>,
        found: Option<&Found>,
        memory: &Memory,
        now: Instant,
    ) {
        match verdict {
            Verdict::Done | Verdict::Going => {}
            Verdict::Foreign => {
                let uid = found.map(|found| found.uid.clone()).unwrap_or_default();
                self.foreign.insert(namespace.to_owned(), uid);
            }
            Verdict::Due(step) => match memory.tried.get(namespace) {
                Some(tried) if tried.until > now => {
                    self.waits |= tried.failed == 0;
                    self.next = Some(self.next.map_or(tried.until, |next| next.min(tried.until)));
                }
                _ => self.due.push(Due {
                    step,
                    namespace: namespace.to_owned(),
                    content: content.cloned(),
                    found: found.cloned(),
                }),
            },
        }
    }
}

/// The logins of all mirrors that ask for pull secrets, as they are in use, and as their Secrets give them.
type Logins<'a> = BTreeMap<MirrorId, (Result<Usable<'a>, Told>, Option<&'a Login>)>;

/// Returns what a namespace is to hold that these mirrors serve, where this was found: logins of which nobody knows what
/// they were are taken from there.
fn content(mirrors: &[MirrorId], logins: &Logins<'_>, found: Option<&Found>) -> Content {
    let config = found.and_then(|found| found.content.config.as_deref());
    let before = config.map(credentials::logins).unwrap_or_default();
    let usable = |id: &MirrorId| logins.get(id)?.0.as_ref().ok();
    let serving = mirrors.iter().enumerate().filter_map(|(asked, id)| {
        let of_now = usable(id)?;
        // A mirror has one login under all of its keys, but for those of a mirror that is asked before.
        let is_taken = |key: &&String| {
            let mut earlier = mirrors[..asked].iter().filter_map(usable);
            earlier.any(|earlier| earlier.keys.contains(*key))
        };
        let of_before = || {
            let mut own = of_now.keys.iter().filter(|key| !is_taken(key));
            own.find_map(|key| before.get(key))
        };
        Some((*id, &of_now.keys, of_now.credentials.or_else(of_before)?))
    });
    let entries = pull_secret::entries(serving);
    let config = credentials::docker_config(entries.by_key);
    Content {
        stored: Stored {
            fingerprint: fingerprint(&config),
            config: None,
        },
        config,
        mirrors: entries.complete,
    }
}

impl Memory {
    /// Takes in whether a namespace holds what it is to hold. Returns until when that counts for nothing, where somebody
    /// takes it away again and again: each time costs a status of every mirror that serves it.
    fn contested(
        &mut self,
        namespace: &str,
        content: Fingerprint,
        is_in_place: bool,
        now: Instant,
    ) -> Option<Instant> {
        let Some(held) = self
            .held
            .get_mut(namespace)
            .filter(|held| held.content == content)
        else {
            let held = Held {
                content,
                is_in_place,
                lost: 0,
                lost_at: now,
                out_until: None,
            };
            // What it is to hold is Kagami's own doing.
            self.held.insert(namespace.to_owned(), held);
            return None;
        };
        if held.is_in_place && !is_in_place {
            if now.duration_since(held.lost_at) >= FORGIVEN {
                held.lost = 0;
            }
            held.lost = held.lost.saturating_add(1);
            held.lost_at = now;
            if let Some(more) = held.lost.checked_sub(BORNE) {
                let out = (OUT.0 * 2_u32.saturating_pow(more.min(16))).min(OUT.1);
                held.out_until = Some(now + out);
            }
        }
        held.is_in_place = is_in_place;
        held.out_until.filter(|until| *until > now)
    }

    /// Returns the namespaces that are to be told of somebody else's Secret, with its UID: of each Secret once, and not
    /// too often where somebody makes one after the other.
    fn untold(&self, foreign: BTreeMap<String, String>, now: Instant) -> Vec<(String, String)> {
        let is_due = |(namespace, uid): &(String, String)| {
            let told = self.told.get(namespace);
            told.is_none_or(|(told, at)| told != uid && now.duration_since(*at) >= TOLD)
        };
        foreign.into_iter().filter(is_due).collect()
    }
}

/// Returns what is told of the mirrors while nobody knows what stands in namespaces.
fn nowhere(snapshot: &Snapshot) -> BTreeMap<String, Placed> {
    let asking = snapshot
        .routing
        .mirrors()
        .filter(|(_, mirror)| mirror.pull_secret);
    let placed = Placed {
        in_place: Arc::default(),
        told: Told::NotWritten,
    };
    asking
        .map(|(_, mirror)| (mirror.name.clone(), placed.clone()))
        .collect()
}

/// Tells that a Secret is somebody else's.
async fn tell(leader: &Leader, namespace: &str, uid: &str) -> Result<(), NotWritten> {
    tracing::warn!(
        namespace,
        "the Secret kagami-pull is somebody else's: no login of a mirror is placed"
    );
    let regarding = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Secret".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(PULL_SECRET.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    };
    let message = Message {
        action: "PlacePullSecret",
        reason: Reason::PullSecretNotReady.as_str(),
        note: format!(
            "This Secret has no label {PULL_SECRET_LABEL}, or another type than pull secrets, so it is not Kagami's and \
             stays as it is. Kagami needs the name for the logins of mirrors: as long as it is taken, images of mirrors \
             that need a login stay upstream in this namespace. Give it another name, or delete it."
        ),
        is_warning: true,
    };
    leader.events.tell(regarding, message).await
}

/// Carries out one step. Returns whether this process may write still.
async fn carry_out(leader: &Leader, due: Due, memory: &mut Memory) -> bool {
    let (step, namespace) = (due.step, due.namespace.as_str());
    let secrets = Api::<Secret>::namespaced(leader.client.clone(), namespace);
    let written = write(leader, &secrets, &due).await;
    let before = memory.tried.get(namespace).map_or(0, |tried| tried.failed);
    let (failed, pause) = match written {
        // What is there by now is told by the watch alone: an answer may come later than what happened after it.
        Ok(()) => (0, ECHO),
        Err(NotWritten::NotLeading) => return false,
        Err(_) => (
            before + 1,
            (PAUSE.0 * 2_u32.saturating_pow(before.min(16))).min(PAUSE.1),
        ),
    };
    let until = Instant::now() + pause;
    memory
        .tried
        .insert(due.namespace.clone(), Tried { failed, until });
    match written {
        Ok(()) => tracing::debug!(namespace, ?step, "wrote the pull secret"),
        // The watch tells what is there instead.
        Err(NotWritten::Conflict | NotWritten::Gone) => {}
        Err(error) => {
            let error = chain(&error);
            if memory.reminder.failed(&error, std::time::Instant::now()) {
                tracing::warn!(
                    namespace,
                    ?step,
                    error,
                    "cannot write a pull secret; trying again"
                );
            }
        }
    }
    true
}

/// Sends the one request of a step.
async fn write(leader: &Leader, secrets: &Api<Secret>, due: &Due) -> Result<(), NotWritten> {
    let writer = &leader.writer;
    match (due.step, &due.content, &due.found) {
        (Step::Remove, _, Some(found)) => {
            let parameters = DeleteParams {
                preconditions: Some(Preconditions {
                    resource_version: Some(found.version.clone()),
                    uid: Some(found.uid.clone()),
                }),
                ..DeleteParams::default()
            };
            let request = secrets.delete(PULL_SECRET, &parameters);
            writer.write_at_once("Secret", request).await.map(drop)
        }
        (Step::Create, Some(content), _) => {
            let secret = Secret {
                metadata: ObjectMeta {
                    name: Some(PULL_SECRET.to_owned()),
                    labels: Some([(PULL_SECRET_LABEL.to_owned(), "true".to_owned())].into()),
                    ..ObjectMeta::default()
                },
                type_: Some(DOCKER_CONFIG_JSON.to_owned()),
                data: Some([(CONFIG_JSON_KEY.to_owned(), ByteString(content.config.clone()))].into()),
                ..Secret::default()
            };
            let parameters = PostParams::default();
            let request = secrets.create(&parameters, &secret);
            writer.write_at_once("Secret", request).await.map(drop)
        }
        (Step::Change, Some(content), Some(found)) => {
            // What else people wrote on it stays; UID and version see to it that it is the very object.
            let patch = json!({
                "metadata": {"uid": found.uid, "resourceVersion": found.version},
                "data": {CONFIG_JSON_KEY: ByteString(content.config.clone())},
            });
            let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
            let request = secrets.patch(PULL_SECRET, &parameters, &patch);
            writer.write_at_once("Secret", request).await.map(drop)
        }
        // Every step has what it needs.
        (Step::Remove | Step::Create | Step::Change, ..) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock,
        domain::selector::Labels,
        state::{
            Store,
            feed::{Feed, Keep},
            file,
        },
    };

    /// The life of a token of ECR: 12 hours; another one is got at half of it.
    const RENEWED: Duration = Duration::from_hours(6);

    const MIRRORS: &str = "
apiVersion: kagami.dev/v1alpha1
kind: ImageMirror
metadata: {name: main}
spec:
  registry: mirror.test
  kind: Hosted
  sources: [{prefix: docker.io}]
  pullSecret: {secretRef: {name: nodes}}
---
apiVersion: v1
kind: Secret
metadata: {name: nodes}
type: kubernetes.io/basic-auth
stringData: {username: node, password: PASSWORD}
";

    /// Returns what a Secret of Kagami's with this content holds.
    fn stored(config: &[u8]) -> Stored {
        Stored {
            fingerprint: fingerprint(config),
            config: Some(config.into()),
        }
    }

    /// Returns a Secret of Kagami's as it was found.
    fn ours(content: Stored) -> Found {
        Found {
            uid: "u".to_owned(),
            version: "1".to_owned(),
            is_ours: true,
            is_immutable: false,
            is_going: false,
            content,
        }
    }

    /// A store with a mirror and many namespaces, and the login of now.
    struct Scene {
        mirrors: &'static str,
        store: Store,
        feed: Feed,
        present: Collection<Found>,
        memory: Memory,
    }

    impl Scene {
        fn new(namespaces: usize) -> Self {
            Self::beginning(namespaces, MIRRORS, "first")
        }

        /// Returns a scene with these mirrors, where the Secret has this password when the process begins.
        fn beginning(namespaces: usize, mirrors: &'static str, password: &str) -> Self {
            drop(rustls::crypto::ring::default_provider().install_default());
            let store = Store::default();
            let feed = Feed::new(store.clone(), BTreeSet::new());
            let mut present = Collection::default();
            present.take(Event::ListedAll { round: 0 });
            let scene = Self {
                mirrors,
                store,
                feed,
                present,
                memory: Memory::default(),
            };
            scene.log_in(password);
            let labels: Labels = [("kagami.dev/mode".to_owned(), "enforce".to_owned())].into();
            let names = (0..namespaces).map(|number| (format!("team-{number}"), labels.clone()));
            scene.store.set_namespaces(names.collect());
            scene
        }

        fn log_in(&self, password: &str) {
            let configuration =
                file::load(&self.mirrors.replace("PASSWORD", password), "mirrors.yaml").unwrap();
            let namespaces = self.store.snapshot().namespaces.as_ref().clone();
            self.feed.apply(configuration, Keep::All, clock::now()).unwrap();
            self.store.set_namespaces(namespaces);
        }

        fn plan(&mut self) -> Plan {
            self.plan_after(Duration::ZERO)
        }

        fn plan_after(&mut self, time: Duration) -> Plan {
            let logins = self.feed.pull_logins().subscribe().borrow().clone();
            plan(
                &self.store.snapshot(),
                &logins,
                &self.present,
                &mut self.memory,
                Instant::now() + time,
            )
        }

        /// Does what a plan says, as the API server would.
        fn carry_out(&mut self, plan: Plan) {
            for due in plan.due {
                let found = ours(
                    due.content
                        .map(|content| stored(&content.config))
                        .unwrap_or_default(),
                );
                self.present.take(match due.step {
                    Step::Create | Step::Change => Event::Changed((due.namespace, found)),
                    Step::Remove => Event::Deleted((due.namespace, found)),
                });
            }
        }

        fn told(plan: &Plan) -> (usize, &Told) {
            let placed = &plan.mirrors["main"];
            (placed.in_place.len(), &placed.told)
        }
    }

    #[tokio::test]
    async fn two_thousand_namespaces_are_renewed_long_before_a_token_ends() {
        let mut scene = Scene::new(2000);
        let plan = scene.plan();
        assert_eq!((plan.due.len(), Scene::told(&plan)), (2000, (0, &Told::Placing)));
        scene.carry_out(plan);
        let plan = scene.plan();
        assert_eq!((plan.due.len(), Scene::told(&plan)), (0, (2000, &Told::InPlace)));
        // None of them counts with the former login.
        scene.log_in("second");
        let plan = scene.plan();
        assert_eq!((plan.due.len(), Scene::told(&plan)), (2000, (0, &Told::Placing)));
        assert!(plan.due.iter().all(|due| due.step == Step::Change));
        let takes = Duration::from_secs(1) / RATE * 2000;
        eprintln!("2,000 namespaces: {takes:?} at {RATE} writes a second");
        assert!(takes * 10 < RENEWED, "{takes:?}");
        scene.carry_out(plan);
        assert_eq!(Scene::told(&scene.plan()).0, 2000);
    }

    #[tokio::test]
    async fn the_last_good_login_of_a_faulty_secret_ends_by_itself() {
        let mut scene = Scene::new(1);
        let plan = scene.plan();
        scene.carry_out(plan);
        scene.log_in(FAULTY);
        for (minutes, due, in_place) in [(0, 0, 1), (59, 0, 1), (61, 1, 0)] {
            let plan = scene.plan_after(Duration::from_mins(minutes));
            let (found, told) = Scene::told(&plan);
            assert!(matches!(told, Told::SecretFaulty(_)), "{told:?}");
            assert_eq!((plan.due.len(), found), (due, in_place), "{minutes} minutes");
        }
    }

    /// A second mirror with a login of its own, which is good.
    const TWO: &str = "
apiVersion: kagami.dev/v1alpha1
kind: ImageMirror
metadata: {name: other}
spec:
  registry: other.test
  kind: Hosted
  sources: [{prefix: docker.io}]
  pullSecret: {secretRef: {name: others}}
---
apiVersion: v1
kind: Secret
metadata: {name: others}
type: kubernetes.io/basic-auth
stringData: {username: node, password: other}
---
apiVersion: kagami.dev/v1alpha1
kind: ImageMirror
metadata: {name: main}
spec:
  registry: mirror.test
  kind: Hosted
  sources: [{prefix: docker.io}, {prefix: quay.io}]
  pullSecret: {secretRef: {name: nodes}}
---
apiVersion: v1
kind: Secret
metadata: {name: nodes}
type: kubernetes.io/basic-auth
stringData: {username: node, password: PASSWORD}
";

    const FAULTY: &str = r#""line\nfeed""#;

    #[tokio::test]
    async fn a_leader_that_finds_a_faulty_secret_takes_no_login_away_for_an_hour() {
        let user = |password: &str| Credentials {
            username: "node".to_owned(),
            password: password.to_owned(),
        };
        let (first, other, old) = (user("first"), user("other"), user("old"));
        let all = |others| {
            credentials::docker_config([
                ("mirror.test/docker.io/", &first),
                ("mirror.test/quay.io/", &first),
                ("other.test/docker.io/", others),
            ])
        };
        let mut scene = Scene::beginning(4, TWO, FAULTY);
        let mut put = |namespace: &str, config: &[u8]| {
            let found = ours(stored(config));
            scene.present.take(Event::Changed((namespace.to_owned(), found)));
        };
        // As the last leader left it; with another login of the other mirror; and with nothing of this one.
        put("team-0", &all(&other));
        put("team-1", &all(&old));
        put(
            "team-2",
            &credentials::docker_config([("other.test/docker.io/", &other)]),
        );
        let plan = scene.plan();
        let steps: Vec<_> = plan
            .due
            .iter()
            .map(|due| (due.step, due.namespace.as_str()))
            .collect();
        assert_eq!(steps, [(Step::Create, "team-3"), (Step::Change, "team-1")]);
        let changed = &plan.due[1].content.as_ref().unwrap().config;
        assert_eq!(credentials::logins(changed), credentials::logins(&all(&other)));
        let placed = &plan.mirrors["main"];
        assert_eq!(*placed.in_place, ["team-0"]);
        assert!(matches!(placed.told, Told::SecretFaulty(_)), "{:?}", placed.told);
        assert_eq!(*plan.mirrors["other"].in_place, ["team-0", "team-2"]);
        scene.carry_out(plan);
        let plan = scene.plan();
        assert_eq!((plan.due.len(), Scene::told(&plan).0), (0, 2));
        // After that it goes, as it does where the same process knew the login.
        let plan = scene.plan_after(Duration::from_mins(61));
        assert!(plan.due.iter().all(|due| due.step == Step::Change));
        assert_eq!((plan.due.len(), Scene::told(&plan).0), (2, 0));
    }

    #[tokio::test]
    async fn where_nothing_of_a_login_is_left_none_is_made_up() {
        let mut scene = Scene::beginning(1, MIRRORS, FAULTY);
        assert_eq!(scene.plan().due.len(), 0, "nothing is written without a login");
        let found = |content: &[u8]| ours(stored(content));
        let old = Credentials {
            username: "a".to_owned(),
            password: "b".to_owned(),
        };
        let of = |key| credentials::docker_config([(key, &old)]);
        for (content, due) in [
            (of("mirror.test/docker.io/"), 0),
            (of("theirs.test"), 1),
            (b"no configuration".to_vec(), 1),
        ] {
            let found = found(&content);
            scene.present.take(Event::Changed(("team-0".to_owned(), found)));
            let plan = scene.plan();
            let removed = plan.due.iter().filter(|due| due.step == Step::Remove).count();
            assert_eq!((plan.due.len(), removed), (due, due), "{content:?}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_written_waits_and_is_told() {
        let mut scene = Scene::new(2);
        let plan = scene.plan();
        scene.carry_out(Plan {
            due: plan.due.into_iter().take(1).collect(),
            ..Plan::default()
        });
        let tried = |failed| Tried {
            failed,
            until: Instant::now() + ECHO,
        };
        // The watch has not told of what was written.
        scene.memory.tried.insert("team-1".to_owned(), tried(0));
        let plan = scene.plan();
        assert_eq!(
            (plan.due.len(), plan.waits, Scene::told(&plan)),
            (0, true, (1, &Told::Placing))
        );
        scene.memory.tried.insert("team-1".to_owned(), tried(TOLD_AFTER));
        let plan = scene.plan();
        assert_eq!(
            (plan.due.len(), plan.waits, Scene::told(&plan)),
            (0, false, (1, &Told::NotWritten))
        );
        assert!(plan.next.is_some());
        // Nobody's memory of a namespace that is gone is kept.
        scene.store.set_namespaces(BTreeMap::new());
        let plan = scene.plan();
        let steps: Vec<_> = plan
            .due
            .iter()
            .map(|due| (due.step, due.namespace.as_str()))
            .collect();
        assert_eq!(steps, [(Step::Remove, "team-0")]);
        assert!(scene.memory.tried.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn of_somebody_elses_secret_it_is_told_once() {
        let mut memory = Memory::default();
        let mut untold = |uid: &str| {
            let foreign = BTreeMap::from([("team".to_owned(), uid.to_owned())]);
            let untold = memory.untold(foreign, Instant::now());
            for (namespace, uid) in &untold {
                memory
                    .told
                    .insert(namespace.clone(), (uid.clone(), Instant::now()));
            }
            untold.len()
        };
        assert_eq!([untold("a"), untold("a"), untold("b")], [1, 0, 0]);
        tokio::time::advance(TOLD).await;
        assert_eq!([untold("a"), untold("b"), untold("b")], [0, 1, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_secret_away_again_and_again_is_told_of_once_in_a_while() {
        let mut scene = Scene::new(2);
        let plan = scene.plan();
        scene.carry_out(plan);
        let ours = scene.present.get("team-0").unwrap().clone();
        let theirs = Found {
            is_ours: false,
            ..ours.clone()
        };
        let mut take = |is_ours: bool, seconds: u64| {
            let found = if is_ours { &ours } else { &theirs };
            let event = Event::Changed(("team-0".to_owned(), found.clone()));
            scene.present.take(event);
            let mut plan = scene.plan_after(Duration::from_secs(seconds));
            let next = plan.next.is_some();
            let placed = plan.mirrors.remove("main").unwrap();
            (placed.in_place.len(), placed.told, next)
        };
        let in_place = || (2, Told::InPlace, false);
        let foreign = || (1, Told::Foreign, false);
        let out = || (1, Told::Contested, true);
        assert_eq!(take(true, 0), in_place());
        for seconds in [1, 2] {
            assert_eq!(
                (take(false, seconds), take(true, seconds)),
                (foreign(), in_place())
            );
        }
        // Whatever becomes of it, the same is told, until he leaves it alone for a while.
        assert_eq!(
            (take(false, 3), take(true, 4), take(true, 62)),
            (out(), out(), out())
        );
        assert_eq!(take(true, 64), in_place());
        assert_eq!((take(false, 65), take(true, 184)), (out(), out()));
        assert_eq!(take(true, 186), in_place());
        for seconds in 200..220 {
            assert_eq!((take(false, seconds), take(true, seconds)), (out(), out()));
        }
        let hour = 60 * 60;
        assert_eq!(
            (take(true, 218 + hour), take(true, 220 + hour)),
            (out(), in_place())
        );
        // That is forgotten in the end.
        assert_eq!(take(false, 220 + 3 * hour), foreign());
        assert_eq!(take(true, 221 + 3 * hour), in_place());
        // Another login is nobody's doing but Kagami's, and is written at once.
        for password in ["second", "third", "fourth", "fifth"] {
            scene.log_in(password);
            let plan = scene.plan_after(Duration::from_secs(222 + 3 * hour));
            assert_eq!((plan.due.len(), Scene::told(&plan)), (2, (0, &Told::Placing)));
            scene.carry_out(plan);
            let plan = scene.plan_after(Duration::from_secs(223 + 3 * hour));
            assert_eq!(Scene::told(&plan), (2, &Told::InPlace));
        }
    }

    #[tokio::test]
    async fn while_nobody_knows_what_is_there_nothing_is_in_place() {
        let scene = Scene::new(1);
        let told = nowhere(&scene.store.snapshot());
        let Placed { in_place, told } = &told["main"];
        assert_eq!((in_place.len(), told), (0, &Told::NotWritten));
    }

    #[test]
    fn only_a_loss_is_told_at_once() {
        let placing = |names: &[&str]| {
            let in_place: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            BTreeMap::from([(
                "main".to_owned(),
                Placed {
                    in_place: in_place.into(),
                    told: Told::InPlace,
                },
            )])
        };
        let before = Placing::On(placing(&["a", "b"]));
        assert!(!loses(&before, &placing(&["a", "aa", "b"])));
        assert!(loses(&before, &placing(&["a", "c"])));
        assert!(loses(&before, &BTreeMap::new()));
        assert!(loses(&Placing::Unknown, &placing(&[])));
    }
}
