//! What an ImageMirror's status is to say: a plan, from what it says and what is known.
//!
//! It changes with transitions and ends of sweeps only: computed again from the same, it is the
//! same, to the letter.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff,
};
use serde_json::{Map, Value, json};

use crate::{
    api::{
        self, FORWARD_ALLOWED, HEALTH_LEASE, MODE_LABEL, PAUSED,
        newer::Unknown,
        v1alpha1::{ImageMirrorStatus, SweepStatus, micro_time},
    },
    companion::mirror::reports::{Nodes, SweepEnd},
    domain::{
        copying,
        foreign::visible,
        health::{Fault, Health, State},
        reason::Reason,
        routing::Overlap,
        time::Timestamp,
    },
};

use super::placed::{Placed, Told};
pub(super) use crate::api::health::health;

/// How long a condition's message may be (Kubernetes allows 32,768 bytes).
const MESSAGE: usize = 4096;

/// The reason of the health of a mirror that nobody looks at.
const NOT_IN_FORCE: &str = "NotInForce";

/// How many lacking fields are named.
const LACKING: usize = 5;

/// How many owners that are left alone are listed, and how many of them a message names.
const LOOPING: usize = 100;
const LOOPING_NAMED: usize = 5;

/// How many bytes of an owner are told: more than any has that can be.
const OWNER: usize = 640;

/// What a condition of an ImageMirror speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConditionType {
    Ready,
    UnknownFields,
    MirrorsOverlap,
    Healthy,
    CredentialsValid,
    SchemaCurrent,
    NodesCanPull,
    ImagesReadable,
    SweepInTime,
    Writable,
    ForwardAllowed,
    OwnersLeftAlone,
    OriginalsRecorded,
    PullSecretsInPlace,
}

impl ConditionType {
    /// Every type.
    const ALL: [Self; 14] = [
        Self::Ready,
        Self::UnknownFields,
        Self::MirrorsOverlap,
        Self::Healthy,
        Self::CredentialsValid,
        Self::SchemaCurrent,
        Self::NodesCanPull,
        Self::ImagesReadable,
        Self::SweepInTime,
        Self::Writable,
        Self::ForwardAllowed,
        Self::OwnersLeftAlone,
        Self::OriginalsRecorded,
        Self::PullSecretsInPlace,
    ];

    /// Returns its name as users see it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::UnknownFields => "UnknownFields",
            Self::MirrorsOverlap => "MirrorsOverlap",
            Self::Healthy => "Healthy",
            Self::CredentialsValid => "CredentialsValid",
            Self::SchemaCurrent => "SchemaCurrent",
            Self::NodesCanPull => "NodesCanPull",
            Self::ImagesReadable => "ImagesReadable",
            Self::SweepInTime => "SweepInTime",
            Self::Writable => "Writable",
            Self::ForwardAllowed => FORWARD_ALLOWED,
            Self::OwnersLeftAlone => "OwnersLeftAlone",
            Self::OriginalsRecorded => "OriginalsRecorded",
            Self::PullSecretsInPlace => "PullSecretsInPlace",
        }
    }
}

/// Whether what a condition speaks of holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConditionStatus {
    True,
    False,
    Unknown,
}

impl ConditionStatus {
    /// Returns its name as Kubernetes has it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// What is known of one mirror.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen<'a> {
    pub(super) generation: i64,
    /// Why the resource is not in force as it stands.
    pub(super) faults: &'a [String],
    /// What this program does not know of the resource.
    pub(super) unknown: &'a [Unknown],
    /// The brake is on.
    pub(super) paused: bool,
    /// Where other mirrors stand in this one's way.
    pub(super) overlaps: Vec<Overlap>,
    /// What is known of its pull secrets; none while nobody knows.
    pub(super) pull_secrets: Option<Placed>,
    /// None if no good form of the resource is in force.
    pub(super) health: Option<Health>,
    /// Whether another cause of the same health may be told.
    pub(super) cause_is_due: bool,
    pub(super) missing_secret: Option<&'a str>,
    pub(super) secret_fault: Option<&'a str>,
    /// Whether the mirror opens to the credentials that it is asked with, or the condition's reason and who
    /// refuses what; none before the first answer.
    pub(super) credentials: Option<Result<(), (&'static str, String)>>,
    pub(super) nodes: Option<Nodes>,
    /// A pull that lasts, in words.
    pub(super) pull_lasts: Option<Box<str>>,
    /// Pods that are stuck without a record of what their users wrote, in words.
    pub(super) unrecorded: Option<Box<str>>,
    /// Whether Pods may be turned forward to the mirror, or the registry that is not listed for that; none where stuck
    /// Pods are left to themselves.
    pub(super) forward_allowed: Option<Result<(), String>>,
    /// Whether what the mirror answers for images tells something, or what to say of those for which it does
    /// not; none while nobody knows.
    pub(super) images_readable: Option<Result<(), Box<str>>>,
    /// Whether images are copied to the mirror.
    pub(super) is_filled: bool,
    /// Whether it takes copies, or why it does not, in words; none while nobody knows.
    pub(super) writing: Option<Result<(), (copying::Reason, Box<str>)>>,
    /// The ends of sweeps to tell, tags and digests, with the version that covers their writes.
    pub(super) sweeps: [Option<(SweepEnd, u64)>; 2],
    /// The object that cannot be written, and why, where ends of sweeps have waited for it for long.
    pub(super) not_written: Option<String>,
    pub(super) platforms: &'a [String],
    /// Those that fail of the upstreams that this mirror stands in for.
    pub(super) failing_upstreams: Vec<String>,
    /// The owners that kept recreating rewritten Pods, and until when each is left alone; none while nobody knows.
    pub(super) looping: Option<Vec<(String, Timestamp)>>,
    /// What the installed definitions lack; none while nobody can tell.
    pub(super) lacking: Option<&'a [String]>,
}

/// Whether two healths mean the same for decisions: what goes wrong with a mirror that is down
/// anyway can wait.
pub(super) fn same(a: &Health, b: &Health) -> bool {
    (a.state, a.proven_since) == (b.state, b.proven_since)
}

/// Returns the condition of this type that a status has.
pub(super) fn condition_of(status: &ImageMirrorStatus, type_: ConditionType) -> Option<&Condition> {
    let mut conditions = status.conditions.iter();
    conditions.find(|condition| condition.type_ == type_.as_str())
}

/// A condition's type, and whether what it speaks of holds; none where that is not known.
pub(super) type Holds = (&'static str, Option<bool>);

/// Returns what the conditions of a status say, of the types that this program knows.
pub(super) fn holds(status: &ImageMirrorStatus) -> Vec<Holds> {
    let known = ConditionType::ALL.into_iter().filter_map(|type_| {
        let holds = match condition_of(status, type_)?.status.as_str() {
            "True" => Some(true),
            "False" => Some(false),
            _ => None,
        };
        Some((type_.as_str(), holds))
    });
    known.collect()
}

/// Returns the generation of the resource that a status speaks of with its health.
pub(super) fn generation_of_health(status: &ImageMirrorStatus) -> Option<i64> {
    condition_of(status, ConditionType::Healthy)?.observed_generation
}

/// Returns the status to write; the same as `current` if there is nothing to write.
pub(super) fn plan(current: &ImageMirrorStatus, seen: &Seen<'_>, now: Timestamp) -> ImageMirrorStatus {
    let mut next = current.clone();
    let mut conditions = Conditions {
        list: &mut next.conditions,
        generation: seen.generation,
        now,
    };
    if seen.paused && seen.faults.is_empty() {
        let message = format!(
            "The brake is on: no image is rewritten and no stuck Pod is turned, until annotation {PAUSED} of Lease \
             {HEALTH_LEASE} is removed."
        );
        conditions.set(ConditionType::Ready, ConditionStatus::False, "Paused", &message);
    } else if seen.faults.is_empty() {
        let mut message = "The resource is in force as it stands".to_owned();
        if !seen.unknown.is_empty() {
            message.push_str(", but for what condition UnknownFields names");
        }
        message.push('.');
        conditions.set(ConditionType::Ready, ConditionStatus::True, "InForce", &message);
    } else {
        let what = if seen.health.is_some() {
            "The last good form stays in force"
        } else {
            "Nothing is in force"
        };
        let message = format!("{what}: {}", seen.faults.join("; "));
        conditions.set(ConditionType::Ready, ConditionStatus::False, "Faulty", &message);
    }
    unknown_fields(&mut conditions, seen.unknown);
    overlaps(&mut conditions, &seen.overlaps);
    // Health is that of the form in force: whoever can read what is faulty here must not take it for the other's.
    let in_force = if seen.faults.is_empty() {
        seen.generation
    } else {
        generation_of_health(current).unwrap_or_default()
    };
    let mut conditions = Conditions {
        list: &mut next.conditions,
        generation: in_force,
        now,
    };
    let told = health(current);
    let is_told = |health: &Health| {
        let told = told.as_ref().filter(|told| same(told, health));
        told.is_some_and(|told| {
            !seen.cause_is_due || (told.fault, &told.cause) == (health.fault, &health.cause)
        })
    };
    match &seen.health {
        Some(health) if !is_told(health) => {
            let reason = conditions.healthy(health);
            next.health = Some(api::health::status(health, reason));
        }
        Some(_) => conditions.observed(ConditionType::Healthy),
        None if current
            .health
            .as_ref()
            .is_some_and(|health| health.reason == NOT_IN_FORCE) => {}
        None => {
            let unknown = Health::unknown(now);
            let reason = conditions.not_in_force();
            next.health = Some(api::health::status(&unknown, reason));
        }
    }
    let mut conditions = Conditions {
        list: &mut next.conditions,
        generation: seen.generation,
        now,
    };
    credentials(&mut conditions, seen);
    schema(&mut conditions, seen.lacking);
    nodes(&mut conditions, seen);
    images(&mut conditions, seen.images_readable.as_ref());
    writable(&mut conditions, seen);
    forward(&mut conditions, seen.forward_allowed.as_ref());
    owners(&mut conditions, seen.looping.as_deref());
    originals(&mut conditions, seen.unrecorded.as_deref());
    pull_secrets(&mut conditions, seen.pull_secrets.as_ref());
    sweeps(&mut next, seen, now);
    if let Some(placed) = &seen.pull_secrets {
        next.pull_secret_namespaces = placed.in_place.to_vec();
    }
    if let Some(looping) = &seen.looping {
        let looping = looping.iter().take(LOOPING);
        next.owners_left_alone = looping.map(left_alone).collect();
    }
    next.failing_upstreams.clone_from(&seen.failing_upstreams);
    if !seen.platforms.is_empty() {
        next.platforms = seen.platforms.to_vec();
    }
    next
}

fn credentials(conditions: &mut Conditions<'_>, seen: &Seen<'_>) {
    match (seen.missing_secret, seen.secret_fault, &seen.credentials) {
        (Some(name), _, _) => {
            let message = format!("There is no Secret {name} in Kagami's namespace.");
            conditions.set(
                ConditionType::CredentialsValid,
                ConditionStatus::False,
                "SecretNotFound",
                &message,
            );
        }
        (None, Some(fault), _) => {
            let message =
                format!("The last good credentials, if any, stay in use for an hour at most: {fault}");
            conditions.set(
                ConditionType::CredentialsValid,
                ConditionStatus::False,
                "SecretFaulty",
                &message,
            );
        }
        (None, None, Some(Err((reason, refusal)))) => conditions.set(
            ConditionType::CredentialsValid,
            ConditionStatus::False,
            reason,
            &format!("{refusal}."),
        ),
        (None, None, Some(Ok(()))) => {
            conditions.set(
                ConditionType::CredentialsValid,
                ConditionStatus::True,
                "Accepted",
                "The mirror answers.",
            );
        }
        (None, None, None) => {}
    }
}

/// Returns the change from one status to the next: a merge patch that names the version that it was
/// computed from, so that nothing is overwritten unseen. It has only what differs; so what newer versions
/// have in the status stays.
pub(super) fn patch(current: &ImageMirrorStatus, next: &ImageMirrorStatus, version: u64) -> Value {
    let fields = |status| match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let changed = change(fields(current), fields(next));
    json!({"metadata": {"resourceVersion": version.to_string()}, "status": changed})
}

/// Returns what of an object's fields differs: what goes is null at whatever depth, as a merge patch leaves
/// what it does not name (RFC 7396).
fn change(before: Map<String, Value>, mut after: Map<String, Value>) -> Map<String, Value> {
    for (field, value) in before {
        match (value, after.remove(&field)) {
            (value, Some(same)) if value == same => {}
            (Value::Object(before), Some(Value::Object(next))) => {
                after.insert(field, Value::Object(change(before, next)));
            }
            (_, next) => drop(after.insert(field, next.unwrap_or_default())),
        }
    }
    after
}

/// Tells what a newer definition has; nothing was ever told where there is nothing to tell.
fn unknown_fields(conditions: &mut Conditions<'_>, unknown: &[Unknown]) {
    match unknown.iter().map(|unknown| unknown.consequence).max() {
        Some(worst) => {
            let told: Vec<_> = unknown.iter().map(ToString::to_string).collect();
            let message = format!(
                "The resource has what this version of Kagami does not know: {}.",
                told.join("; ")
            );
            conditions.set(
                ConditionType::UnknownFields,
                ConditionStatus::True,
                worst.as_str(),
                &message,
            );
        }
        None if conditions.has(ConditionType::UnknownFields) => {
            conditions.set(
                ConditionType::UnknownFields,
                ConditionStatus::False,
                "AllKnown",
                "Every field of the resource is known.",
            );
        }
        None => {}
    }
}

/// Tells where other mirrors stand in the way, likewise.
fn overlaps(conditions: &mut Conditions<'_>, overlaps: &[Overlap]) {
    if let Some(first) = overlaps.first() {
        let told: Vec<_> = overlaps.iter().map(ToString::to_string).collect();
        let message = format!("{}.", told.join("; "));
        conditions.set(
            ConditionType::MirrorsOverlap,
            ConditionStatus::True,
            first.as_str(),
            &message,
        );
    } else if conditions.has(ConditionType::MirrorsOverlap) {
        conditions.set(
            ConditionType::MirrorsOverlap,
            ConditionStatus::False,
            "Apart",
            "No other mirror stands in the way.",
        );
    }
}

fn schema(conditions: &mut Conditions<'_>, lacking: Option<&[String]>) {
    match lacking {
        None => {}
        Some([]) => conditions.set(
            ConditionType::SchemaCurrent,
            ConditionStatus::True,
            "Current",
            "The installed definitions know all that this version of Kagami does.",
        ),
        Some(lacking) => {
            let (shown, more) = lacking.split_at(lacking.len().min(LACKING));
            let more = if more.is_empty() {
                String::new()
            } else {
                format!(" and {} more", more.len())
            };
            let message = format!(
                "The installed definitions are older than this version of Kagami, so the API server drops or \
                 refuses {}{more}. Helm never upgrades them; this does: kagami crds | kubectl apply \
                 --server-side --force-conflicts -f -",
                shown.join(", ")
            );
            conditions.set(
                ConditionType::SchemaCurrent,
                ConditionStatus::False,
                "OlderSchema",
                &message,
            );
        }
    }
}

/// Tells of images that nobody can make anything of; nothing was ever told where there are none.
fn images(conditions: &mut Conditions<'_>, readable: Option<&Result<(), Box<str>>>) {
    match readable {
        Some(Err(message)) => conditions.set(
            ConditionType::ImagesReadable,
            ConditionStatus::False,
            Reason::RegistryError.as_str(),
            message,
        ),
        Some(Ok(())) if conditions.has(ConditionType::ImagesReadable) => conditions.set(
            ConditionType::ImagesReadable,
            ConditionStatus::True,
            "Readable",
            "What the mirror answers for known images tells whether they are there.",
        ),
        Some(Ok(())) | None => {}
    }
}

/// Tells whether the mirror takes copies; nothing was ever told where none was tried.
fn writable(conditions: &mut Conditions<'_>, seen: &Seen<'_>) {
    let type_ = ConditionType::Writable;
    match &seen.writing {
        Some(Err((reason, words))) if seen.is_filled => {
            let message = format!(
                "Nothing is copied to the mirror but one image now and then, to see whether it takes it; what it has is \
                 served. {words}. {}.",
                reason.advice()
            );
            conditions.set(type_, ConditionStatus::False, reason.as_str(), &message);
        }
        Some(Ok(())) if seen.is_filled => {
            conditions.set(
                type_,
                ConditionStatus::True,
                "Writable",
                "The mirror takes copies.",
            );
        }
        _ if !seen.is_filled && conditions.has(type_) => {
            let message = "Nothing is copied to the mirror: spec.copy.policy is Off.";
            conditions.set(type_, ConditionStatus::Unknown, "NotFilled", message);
        }
        _ => {}
    }
}

/// Tells whether Pods may be turned forward to the mirror; nothing was ever told where no Pods are turned.
fn forward(conditions: &mut Conditions<'_>, allowed: Option<&Result<(), String>>) {
    let (status, reason, message) = match allowed {
        Some(Ok(())) => (
            ConditionStatus::True,
            "RegistryListed",
            "Pods that cannot be pulled from upstream are turned to this mirror where it has proof and their namespace \
             is labelled enforce."
                .to_owned(),
        ),
        Some(Err(registry)) => (
            ConditionStatus::False,
            "RegistryNotListed",
            format!(
                "Pods that cannot be pulled from upstream stay there: the chart's value rescue.registries does not list \
                 {registry}."
            ),
        ),
        None if conditions.has(ConditionType::ForwardAllowed) => (
            ConditionStatus::False,
            "RescueOff",
            "No stuck Pod is turned: the chart's value rescue.enabled is false.".to_owned(),
        ),
        None => return,
    };
    conditions.set(ConditionType::ForwardAllowed, status, reason, &message);
}

/// Tells of an owner that is left alone, as people may safely see it.
fn left_alone((owner, until): &(String, Timestamp)) -> String {
    let owner = visible(owner);
    format!("{} until {until}", &owner[..owner.floor_char_boundary(OWNER)])
}

/// Tells of owners that fight rewrites; nothing was ever told where none did.
fn owners(conditions: &mut Conditions<'_>, looping: Option<&[(String, Timestamp)]>) {
    match looping {
        Some([]) if conditions.has(ConditionType::OwnersLeftAlone) => conditions.set(
            ConditionType::OwnersLeftAlone,
            ConditionStatus::False,
            "NoneFights",
            "No owner is left alone for recreating Pods whose images were rewritten.",
        ),
        Some([]) | None => {}
        Some(looping) => {
            let (named, more) = looping.split_at(looping.len().min(LOOPING_NAMED));
            let named: Vec<_> = named.iter().map(left_alone).collect();
            let more = if more.is_empty() {
                String::new()
            } else {
                format!(", and {} more", more.len())
            };
            let message = format!(
                "Owners recreated Pods whose images were rewritten again and again, so their Pods are left alone: \
                 {}{more}. The label {MODE_LABEL}: \"off\" on their Pods makes that permanent.",
                named.join(", ")
            );
            conditions.set(
                ConditionType::OwnersLeftAlone,
                ConditionStatus::True,
                Reason::OwnerLoop.as_str(),
                &message,
            );
        }
    }
}

/// Tells how it is with pull secrets; nothing was ever told where the mirror asked for none.
fn pull_secrets(conditions: &mut Conditions<'_>, placed: Option<&Placed>) {
    let type_ = ConditionType::PullSecretsInPlace;
    let Some(Placed { told, .. }) = placed else { return };
    if *told == Told::NotAsked && !conditions.has(type_) {
        return;
    }
    let status = match told.holds() {
        Some(true) => ConditionStatus::True,
        Some(false) => ConditionStatus::False,
        None => ConditionStatus::Unknown,
    };
    conditions.set(type_, status, told.reason(), &told.message());
}

fn sweeps(next: &mut ImageMirrorStatus, seen: &Seen<'_>, now: Timestamp) {
    if let Some(object) = &seen.not_written {
        let mut conditions = Conditions {
            list: &mut next.conditions,
            generation: seen.generation,
            now,
        };
        let message = format!(
            "Images are looked at, but that cannot be told while the API server has what is not true any more, \
             so proofs age out. It cannot be written: {object}"
        );
        conditions.set(
            ConditionType::SweepInTime,
            ConditionStatus::False,
            "NotWritten",
            &message,
        );
    }
    let mut late = Vec::new();
    let (mut any, mut tags_wait) = (false, false);
    let slots = [&mut next.sweeps.tag, &mut next.sweeps.digest];
    for ((slot, sweep), class) in slots.into_iter().zip(&seen.sweeps).zip(["tags", "digests"]) {
        let Some((end, through)) = sweep else { continue };
        any = true;
        tags_wait |= end.tags_wait;
        let took = end.finished_at.since(end.started_at);
        if took > end.period {
            tracing::debug!(class, ?took, period = ?end.period, "a sweep is late");
            late.push(end.bound);
        }
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let counts = end.counts;
        if slot.is_none() && counts.present + counts.missing + counts.unknown == 0 {
            continue;
        }
        *slot = Some(SweepStatus {
            started_at: micro_time(end.started_at),
            finished_at: micro_time(end.finished_at),
            through_resource_version: through.to_string(),
            present: count(counts.present),
            missing: count(counts.missing),
            unknown: count(counts.unknown),
        });
    }
    if !any {
        return;
    }
    let present = |sweep: &Option<SweepStatus>| sweep.as_ref().map_or(0, |sweep| sweep.present);
    next.images = Some(present(&next.sweeps.tag) + present(&next.sweeps.digest));
    let mut conditions = Conditions {
        list: &mut next.conditions,
        generation: seen.generation,
        now,
    };
    if !late.is_empty() {
        // Without the seconds: they differ each time.
        let message = format!(
            "Images are not looked at often enough, so proofs may age out: raise \
             spec.sweep.requestsPerSecond or {}.",
            late.join(" and ")
        );
        conditions.set(
            ConditionType::SweepInTime,
            ConditionStatus::False,
            "TooSlow",
            &message,
        );
    } else if tags_wait {
        let message = "A pull-through mirror is asked for one tag a second, and there are more than can be \
                       resolved anew within spec.tags.refresh: raise it.";
        conditions.set(
            ConditionType::SweepInTime,
            ConditionStatus::False,
            "TooSlow",
            message,
        );
    } else {
        conditions.set(
            ConditionType::SweepInTime,
            ConditionStatus::True,
            "InTime",
            "Proofs are renewed before they age out.",
        );
    }
}

struct Conditions<'a> {
    list: &'a mut Vec<Condition>,
    generation: i64,
    now: Timestamp,
}

impl Conditions<'_> {
    /// Whether a condition has that reason now.
    fn says(&self, type_: ConditionType, reason: &str) -> bool {
        let mut conditions = self.list.iter();
        conditions.any(|condition| condition.type_ == type_.as_str() && condition.reason == reason)
    }

    /// Sets the condition of a mirror's health and returns its reason.
    fn healthy(&mut self, health: &Health) -> &'static str {
        let (status, reason, message) = match (health.state, health.fault) {
            (State::Healthy, _) => (
                ConditionStatus::True,
                "Healthy",
                "The mirror answers and serves images.".to_owned(),
            ),
            (State::Unhealthy, fault) => (
                ConditionStatus::False,
                fault.map_or("Unhealthy", Fault::as_str),
                match &health.cause {
                    Some(cause) => format!("The mirror failed its probes, and images stay upstream: {cause}"),
                    None => "The mirror failed its probes; images stay upstream.".to_owned(),
                },
            ),
            (State::Unknown, _) => (
                ConditionStatus::Unknown,
                "NotObserved",
                "Nobody has looked at the mirror yet.".to_owned(),
            ),
        };
        self.set(ConditionType::Healthy, status, reason, &message);
        reason
    }

    /// Sets the condition of the health of a mirror that nobody looks at, and returns its reason.
    fn not_in_force(&mut self) -> &'static str {
        let message = "Nobody looks at the mirror: condition Ready tells why.";
        self.set(
            ConditionType::Healthy,
            ConditionStatus::Unknown,
            NOT_IN_FORCE,
            message,
        );
        NOT_IN_FORCE
    }

    /// Notes that a condition holds for the present generation too.
    fn observed(&mut self, type_: ConditionType) {
        let generation = self.generation;
        let mut of_type = self
            .list
            .iter_mut()
            .filter(|condition| condition.type_ == type_.as_str());
        if let Some(condition) = of_type.next() {
            condition.observed_generation = Some(generation);
        }
    }

    fn has(&self, type_: ConditionType) -> bool {
        self.list
            .iter()
            .any(|condition| condition.type_ == type_.as_str())
    }

    fn set(&mut self, type_: ConditionType, status: ConditionStatus, reason: &str, message: &str) {
        let (type_, status) = (type_.as_str(), status.as_str());
        let at = self.list.iter().position(|condition| condition.type_ == type_);
        let since = at
            .and_then(|at| self.list.get(at))
            .filter(|condition| condition.status == status)
            .map_or_else(
                || time(self.now),
                |condition| condition.last_transition_time.clone(),
            );
        let mut message = visible(message).into_owned();
        message.truncate(message.floor_char_boundary(MESSAGE));
        let condition = Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: since,
            observed_generation: Some(self.generation),
        };
        match at.and_then(|at| self.list.get_mut(at)) {
            Some(slot) => *slot = condition,
            None => self.list.push(condition),
        }
    }
}

/// Returns a time to the second, as conditions have it.
pub(super) fn time(at: Timestamp) -> Time {
    let seconds = i64::try_from(at.as_millis() / 1000).unwrap_or(i64::MAX);
    Time(jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX))
}

/// Tells of Pods that are stuck without a record of what their users wrote; nothing was ever told where none was.
fn originals(conditions: &mut Conditions<'_>, unrecorded: Option<&str>) {
    let (status, reason, message) = match unrecorded {
        Some(what) => (ConditionStatus::False, "NoRecord", what),
        None if conditions.has(ConditionType::OriginalsRecorded) => (
            ConditionStatus::True,
            "Recorded",
            "No Pod is stuck on a name of this mirror of which nothing tells what its user wrote.",
        ),
        None => return,
    };
    conditions.set(ConditionType::OriginalsRecorded, status, reason, message);
}

/// Tells whether nodes get images from the mirror.
fn nodes(conditions: &mut Conditions<'_>, seen: &Seen<'_>) {
    let says = |reason| conditions.says(ConditionType::NodesCanPull, reason);
    let (status, reason, message) = match (&seen.pull_lasts, &seen.nodes) {
        // One that is slow and one that hangs cannot be told apart.
        (Some(what), _) => (ConditionStatus::Unknown, "PullLasts", &**what),
        (None, Some(Nodes::CanPull)) => (
            ConditionStatus::True,
            "Pulled",
            "Pods run images that they were sent to the mirror for.",
        ),
        (None, Some(Nodes::CannotPull(what))) => (ConditionStatus::False, "PullsFail", &**what),
        // Of what was told nothing is known any more.
        (None, Some(Nodes::Silent)) if says("PullsFail") => (
            ConditionStatus::Unknown,
            "PullEnded",
            "No pull has failed lately, and none has come to a good end.",
        ),
        (None, Some(Nodes::Silent) | None) if says("PullLasts") => (
            ConditionStatus::Unknown,
            "PullEnded",
            "No pull is known to last any more.",
        ),
        (None, Some(Nodes::Silent) | None) => return,
    };
    conditions.set(ConditionType::NodesCanPull, status, reason, message);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{api::newer::Consequence, companion::mirror::reports::Refusal, domain::presence::Counts};

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn healthy(since: u64) -> Health {
        Health {
            state: State::Healthy,
            fault: None,
            cause: None,
            since: at(since),
            asked_since: at(since),
            proven_since: at(since),
        }
    }

    fn seen() -> Seen<'static> {
        Seen {
            generation: 1,
            health: Some(healthy(10)),
            credentials: Some(Ok(())),
            ..Seen::default()
        }
    }

    fn condition<'a>(status: &'a ImageMirrorStatus, type_: &str) -> &'a Condition {
        status
            .conditions
            .iter()
            .find(|condition| condition.type_ == type_)
            .unwrap()
    }

    #[test]
    fn every_condition_has_its_place_in_the_page_for_troubles() {
        let page = include_str!("../../../docs/troubleshooting.md");
        let (_, conditions) = page.split_once("\n## Conditions of an ImageMirror\n").unwrap();
        let (conditions, _) = conditions.split_once("\n## ").unwrap();
        for type_ in ConditionType::ALL {
            let heading = format!("\n### `{}`\n", type_.as_str());
            assert!(conditions.contains(&heading), "{heading}");
        }
        // All that this file sets, but for the variables: those are names of other lists.
        let own = include_str!("status.rs")
            .split("#[cfg(test)]\nmod tests")
            .next()
            .unwrap();
        let faults = Fault::ALL.map(Fault::as_str);
        let consequences = [
            Consequence::Ignored,
            Consequence::CapabilityOff,
            Consequence::NotTaken,
        ];
        let reasons = own.split('"').skip(1).step_by(2).filter(|text| {
            let is_word = text.chars().all(char::is_alphanumeric) && text.starts_with(char::is_uppercase);
            let is_status = matches!(*text, "True" | "False");
            is_word && !is_status && text.len() > 1
        });
        for reason in reasons
            .chain(faults)
            .chain(consequences.map(Consequence::as_str))
            .chain(["SameRegistry", "SourceIsMirror"])
        {
            assert!(conditions.contains(&format!("`{reason}`")), "{reason}");
        }
    }

    #[test]
    fn whether_a_mirror_takes_copies_is_told_where_some_are_tried() {
        let with = |is_filled, writing| Seen {
            is_filled,
            writing,
            ..seen()
        };
        let full = || Some(Err((copying::Reason::QuotaExceeded, "mirror.test: full".into())));
        let has = |status: &ImageMirrorStatus| {
            let told = condition_of(status, ConditionType::Writable)?;
            Some((told.status.clone(), told.reason.clone()))
        };
        let told = |status: &str, reason: &str| Some((status.to_owned(), reason.to_owned()));
        let first = plan(&ImageMirrorStatus::default(), &with(true, None), at(20));
        assert_eq!(has(&first), None, "nobody knows");
        let bad = plan(&first, &with(true, full()), at(21));
        assert_eq!(has(&bad), told("False", "QuotaExceeded"));
        let message = &condition(&bad, "Writable").message;
        assert!(
            message.contains("mirror.test: full. raise the quota"),
            "{message}"
        );
        // Serving goes on.
        assert_eq!(condition(&bad, "Healthy").status, "True");
        assert_eq!(plan(&bad, &with(true, full()), at(30)), bad);
        // A new leader does not know yet.
        assert_eq!(plan(&bad, &with(true, None), at(30)), bad);
        let good = plan(&bad, &with(true, Some(Ok(()))), at(31));
        assert_eq!(has(&good), told("True", "Writable"));
        let off = plan(&good, &with(false, None), at(32));
        assert_eq!(has(&off), told("Unknown", "NotFilled"));
        assert_eq!(has(&plan(&first, &with(false, None), at(32))), None);
    }

    #[test]
    fn what_other_mirrors_stand_in_the_way_of_is_told() {
        let paused = Seen {
            paused: true,
            ..seen()
        };
        let told = plan(&ImageMirrorStatus::default(), &paused, at(20));
        let ready = condition(&told, "Ready");
        assert_eq!(
            (ready.status.as_str(), ready.reason.as_str()),
            ("False", "Paused")
        );
        let faults = ["spec.x: wrong".to_owned()];
        let faulty = Seen {
            faults: &faults,
            ..paused
        };
        let told = plan(&ImageMirrorStatus::default(), &faulty, at(20));
        assert_eq!(
            condition(&told, "Ready").reason,
            "Faulty",
            "that stays when it is released"
        );

        let overlapping = Seen {
            overlaps: vec![Overlap::SamePlace {
                other: "b".to_owned(),
            }],
            ..seen()
        };
        let before = plan(&ImageMirrorStatus::default(), &seen(), at(20));
        let of = |status: &ImageMirrorStatus| {
            let mut conditions = status.conditions.iter();
            conditions
                .find(|condition| condition.type_ == "MirrorsOverlap")
                .map(|condition| (condition.reason.clone(), condition.message.clone()))
        };
        assert_eq!(of(&before), None);
        let status = plan(&before, &overlapping, at(30));
        let (reason, message) = of(&status).unwrap();
        assert_eq!(reason, "SameRegistry");
        assert!(
            message.starts_with("ImageMirror b has the same registry"),
            "{message}"
        );
        assert_eq!(of(&plan(&status, &seen(), at(40))).unwrap().0, "Apart");
    }

    #[test]
    fn where_pods_may_not_go_forward_the_value_to_set_is_told() {
        let of = |before: &ImageMirrorStatus, allowed: Option<Result<(), String>>| {
            let seen = Seen {
                forward_allowed: allowed,
                ..seen()
            };
            plan(before, &seen, at(20))
        };
        let none = of(&ImageMirrorStatus::default(), None);
        assert!(condition_of(&none, ConditionType::ForwardAllowed).is_none());
        let not_listed = of(&none, Some(Err("m.test:5000/team".to_owned())));
        let told = condition(&not_listed, "ForwardAllowed");
        assert_eq!(
            (told.status.as_str(), told.reason.as_str()),
            ("False", "RegistryNotListed")
        );
        for part in ["rescue.registries", "m.test:5000/team"] {
            assert!(told.message.contains(part), "{}", told.message);
        }
        let listed = of(&not_listed, Some(Ok(())));
        assert_eq!(condition(&listed, "ForwardAllowed").status, "True");
        let off = of(&listed, None);
        let told = condition(&off, "ForwardAllowed");
        assert_eq!(
            (told.status.as_str(), told.reason.as_str()),
            ("False", "RescueOff")
        );
    }

    #[test]
    fn what_is_not_in_force_is_told_by_its_reason() {
        let good = plan(&ImageMirrorStatus::default(), &seen(), at(20));
        let bad = Seen {
            health: None,
            ..seen()
        };
        let status = plan(&good, &bad, at(30));
        assert_eq!(status.health.unwrap().reason, "NotInForce");
    }

    #[test]
    fn a_refusal_is_told_with_host_and_secret() {
        let refusals = [
            (
                Refusal::Registry,
                "mirror.test refuses the credentials of Secret read.",
            ),
            (
                Refusal::Challenge("the realm is nowhere".into()),
                "mirror.test answers, but no image can be asked for: the realm is nowhere.",
            ),
            (
                Refusal::Images,
                "mirror.test answers, but refuses every image that it was asked for with the credentials of \
                 Secret read.",
            ),
        ];
        for (refusal, expected) in refusals {
            let refused = Seen {
                credentials: Some(Err((refusal.reason(), refusal.tell("mirror.test", Some("read"))))),
                ..seen()
            };
            let status = plan(&ImageMirrorStatus::default(), &refused, at(20));
            let told = condition(&status, "CredentialsValid");
            let reason = match refusal {
                Refusal::Challenge(_) => "ChallengeNotMet",
                Refusal::Registry | Refusal::Images => "Unauthorized",
            };
            assert_eq!((&*told.status, &*told.reason), ("False", reason));
            assert_eq!(told.message, expected);
        }
    }

    #[test]
    fn the_same_again_is_nothing_to_write() {
        let status = plan(&ImageMirrorStatus::default(), &seen(), at(20));
        assert_eq!(plan(&status, &seen(), at(30)), status);
        assert_eq!(health(&status), Some(healthy(10)));
        assert_eq!(condition(&status, "Healthy").status, "True");
    }

    #[test]
    fn health_is_told_of_the_form_in_force_and_of_no_faulty_one() {
        let good = plan(&ImageMirrorStatus::default(), &seen(), at(20));
        let faults = ["spec.sources: unknown".to_owned()];
        let faulty = |health| Seen {
            generation: 2,
            faults: &faults,
            health: Some(health),
            ..seen()
        };
        for health in [healthy(10), healthy(25)] {
            let status = plan(&good, &faulty(health), at(30));
            assert_eq!(generation_of_health(&status), Some(1));
            assert_eq!(condition(&status, "Ready").observed_generation, Some(2));
        }
    }

    #[test]
    fn a_patch_says_what_changed_and_nothing_else() {
        let before = plan(&ImageMirrorStatus::default(), &seen(), at(20));
        let mut after = before.clone();
        after.platforms = vec!["amd64".to_owned()];
        after.health = None;
        assert_eq!(
            patch(&before, &after, 7),
            json!({
                "metadata": {"resourceVersion": "7"},
                "status": {"platforms": ["amd64"], "health": null},
            })
        );
        // What goes from within a field goes from the stored status too.
        let mut told = before.clone();
        told.health.as_mut().unwrap().message = Some("refused".to_owned());
        assert_eq!(
            patch(&told, &before, 7)["status"],
            json!({"health": {"message": null}})
        );
        let whole = patch(&ImageMirrorStatus::default(), &before, 7);
        let fields: Vec<_> = whole["status"].as_object().unwrap().keys().collect();
        assert_eq!(fields, ["conditions", "health"]);
    }

    #[test]
    fn upstreams_are_told_while_they_fail() {
        let failing = Seen {
            failing_upstreams: vec!["docker.io".to_owned()],
            ..seen()
        };
        let status = plan(&ImageMirrorStatus::default(), &failing, at(20));
        assert_eq!(status.failing_upstreams, ["docker.io"]);
        assert!(plan(&status, &seen(), at(30)).failing_upstreams.is_empty());
    }

    #[test]
    fn an_older_definition_is_told_with_the_remedy() {
        let told = |lacking: Option<&[String]>| {
            let seen = Seen { lacking, ..seen() };
            plan(&ImageMirrorStatus::default(), &seen, at(20))
        };
        let unknown = told(None).conditions.into_iter();
        assert_eq!(
            unknown
                .filter(|condition| condition.type_ == "SchemaCurrent")
                .count(),
            0
        );
        assert_eq!(condition(&told(Some(&[])), "SchemaCurrent").status, "True");
        let fields: Vec<String> = (0..7).map(|number| format!("spec.field{number}")).collect();
        let older = told(Some(&fields));
        let older = condition(&older, "SchemaCurrent");
        assert_eq!((&*older.status, &*older.reason), ("False", "OlderSchema"));
        for expected in [
            "spec.field0, spec.field1",
            "spec.field4 and 2 more",
            "kagami crds | kubectl apply",
        ] {
            assert!(older.message.contains(expected), "{}", older.message);
        }
    }

    #[test]
    fn another_fault_of_a_mirror_that_is_down_is_nothing_to_write() {
        let down = |fault| Seen {
            health: Some(Health {
                state: State::Unhealthy,
                fault: Some(fault),
                cause: None,
                since: at(12),
                asked_since: at(12),
                proven_since: at(10),
            }),
            ..seen()
        };
        let status = plan(&ImageMirrorStatus::default(), &down(Fault::Refused), at(20));
        assert_eq!(condition(&status, "Healthy").reason, "ConnectionRefused");
        assert_eq!(status.health.as_ref().unwrap().reason, "ConnectionRefused");
        assert_eq!(plan(&status, &down(Fault::Timeout), at(30)), status);
    }

    #[test]
    fn the_cause_of_a_failure_is_told_and_another_one_when_it_is_due() {
        let down = |cause: &str, cause_is_due| Seen {
            health: Some(Health {
                state: State::Unhealthy,
                fault: Some(Fault::Tls),
                cause: Some(cause.into()),
                since: at(12),
                asked_since: at(12),
                proven_since: at(10),
            }),
            cause_is_due,
            ..seen()
        };
        let status = plan(
            &ImageMirrorStatus::default(),
            &down("it has ended\n", false),
            at(20),
        );
        let told = condition(&status, "Healthy");
        assert_eq!(told.reason, "TLSHandshakeFailed");
        assert_eq!(
            told.message,
            r"The mirror failed its probes, and images stay upstream: it has ended\n"
        );
        assert_eq!(health(&status).unwrap().cause.as_deref(), Some("it has ended\n"));
        assert_eq!(plan(&status, &down("it has ended\n", true), at(30)), status);
        assert_eq!(plan(&status, &down("another name", false), at(30)), status);
        let later = plan(&status, &down("another name", true), at(90));
        let told_later = condition(&later, "Healthy");
        assert!(
            told_later.message.ends_with(": another name"),
            "{}",
            told_later.message
        );
        assert_eq!(told_later.last_transition_time, told.last_transition_time);
        // However long it is, the condition has a bound.
        let long = plan(&status, &down(&"é".repeat(10_000), true), at(90));
        assert!(condition(&long, "Healthy").message.len() <= MESSAGE);
    }

    #[test]
    fn images_that_nobody_can_read_are_told_until_there_are_none() {
        let readable = |told: Result<(), &str>| Seen {
            images_readable: Some(told.map_err(Into::into)),
            ..seen()
        };
        let of = |status: &ImageMirrorStatus| {
            let condition = condition_of(status, ConditionType::ImagesReadable);
            condition.map(|condition| (condition.status.clone(), condition.message.clone()))
        };
        let status = plan(&ImageMirrorStatus::default(), &readable(Ok(())), at(20));
        assert_eq!(of(&status), None);
        let status = plan(&status, &readable(Err("1 of 2")), at(30));
        assert_eq!(of(&status), Some(("False".to_owned(), "1 of 2".to_owned())));
        // Whoever has not looked yet leaves it as it is.
        assert_eq!(of(&plan(&status, &seen(), at(40))), of(&status));
        let status = plan(&status, &readable(Ok(())), at(50));
        assert_eq!(of(&status).unwrap().0, "True");
    }

    #[test]
    fn a_bad_resource_is_told_and_its_last_good_form_stays() {
        let faults = ["spec.kind: no".to_owned()];
        let bad = Seen {
            generation: 2,
            faults: &faults,
            ..seen()
        };
        let good = plan(&ImageMirrorStatus::default(), &seen(), at(20));
        let status = plan(&good, &bad, at(30));
        let ready = condition(&status, "Ready");
        assert_eq!((&*ready.status, &*ready.reason), ("False", "Faulty"));
        assert_eq!(ready.message, "The last good form stays in force: spec.kind: no");
        assert_eq!(ready.last_transition_time, time(at(30)));
        assert_eq!(health(&status), Some(healthy(10)));
        assert_eq!(generation_of_health(&status), Some(1));
    }

    #[test]
    fn a_faulty_secret_is_told_by_its_own_condition() {
        let told = |seen: Seen<'_>| {
            let status = plan(&ImageMirrorStatus::default(), &seen, at(20));
            assert_eq!(condition(&status, "Ready").status, "True");
            assert_eq!(health(&status), Some(healthy(10)));
            let told = condition(&status, "CredentialsValid");
            (told.status.clone(), told.reason.clone(), told.message.clone())
        };
        let (status, reason, message) = told(Seen {
            secret_fault: Some("cannot read Secret read: no"),
            ..seen()
        });
        assert_eq!((&*status, &*reason), ("False", "SecretFaulty"));
        assert!(
            message.ends_with("for an hour at most: cannot read Secret read: no"),
            "{message}"
        );
        let (status, reason, message) = told(Seen {
            missing_secret: Some("read"),
            ..seen()
        });
        assert_eq!((&*status, &*reason), ("False", "SecretNotFound"));
        assert!(message.contains("no Secret read"), "{message}");
        assert_eq!(told(seen()).1, "Accepted");
    }

    #[test]
    fn what_is_not_known_is_told_by_its_worst_consequence() {
        let told = |current: &ImageMirrorStatus, unknown: &[Unknown]| {
            plan(current, &Seen { unknown, ..seen() }, at(20))
        };
        let before = told(&ImageMirrorStatus::default(), &[]);
        assert!(
            !before
                .conditions
                .iter()
                .any(|condition| condition.type_ == "UnknownFields")
        );
        let unknown = [
            ("spec.tags.drift", Consequence::CapabilityOff),
            ("spec.colour", Consequence::Ignored),
        ];
        let unknown = unknown.map(|(field, consequence)| Unknown {
            field: field.to_owned(),
            consequence,
        });
        let status = told(&before, &unknown);
        let told_now = condition(&status, "UnknownFields");
        assert_eq!((&*told_now.status, &*told_now.reason), ("True", "CapabilityOff"));
        assert!(
            told_now
                .message
                .ends_with("spec.tags is off because of spec.tags.drift; spec.colour is ignored."),
            "{}",
            told_now.message
        );
        assert!(condition(&status, "Ready").message.contains("UnknownFields"));
        let status = told(&status, &[]);
        assert_eq!(condition(&status, "UnknownFields").status, "False");
        assert_eq!(condition(&status, "Ready"), condition(&before, "Ready"));
    }

    #[test]
    fn where_a_pull_secret_is_in_place_is_told_once_that_is_known() {
        let told = |before: &ImageMirrorStatus, placed: Option<Placed>| {
            let seen = Seen {
                pull_secrets: placed,
                ..seen()
            };
            plan(before, &seen, at(20))
        };
        let placed = |namespaces: &[&str], told| {
            let names: Vec<_> = namespaces.iter().map(|name| (*name).to_owned()).collect();
            Some(Placed {
                in_place: names.into(),
                told,
            })
        };
        let never = told(&ImageMirrorStatus::default(), placed(&[], Told::NotAsked));
        assert!(condition_of(&never, ConditionType::PullSecretsInPlace).is_none());
        let status = told(&never, placed(&["blue", "red"], Told::InPlace));
        assert_eq!(status.pull_secret_namespaces, ["blue", "red"]);
        assert_eq!(condition(&status, "PullSecretsInPlace").status, "True");
        // A new leader that has not looked yet.
        assert_eq!(told(&status, None), status);
        let status = told(&status, placed(&["red"], Told::Foreign));
        assert_eq!(status.pull_secret_namespaces, ["red"]);
        let foreign = condition(&status, "PullSecretsInPlace");
        assert_eq!((&*foreign.status, &*foreign.reason), ("False", "SecretOfAnother"));
        assert!(
            foreign.message.contains("PullSecretNotReady"),
            "{}",
            foreign.message
        );
        let status = told(&status, placed(&[], Told::NotAsked));
        assert_eq!(status.pull_secret_namespaces, [] as [&str; 0]);
        assert_eq!(condition(&status, "PullSecretsInPlace").reason, "NotAsked");
    }

    #[test]
    fn what_nodes_say_of_pulling_stays_until_they_say_otherwise() {
        let told = |nodes| Seen { nodes, ..seen() };
        let cannot = || Some(Nodes::CannotPull("node-1 cannot".into()));
        let status = plan(&ImageMirrorStatus::default(), &told(cannot()), at(20));
        assert_eq!(condition(&status, "NodesCanPull").message, "node-1 cannot");
        let condition_of = |status| {
            let condition = condition(status, "NodesCanPull");
            (condition.status.clone(), condition.reason.clone())
        };
        assert_eq!(
            condition_of(&status),
            ("False".to_owned(), "PullsFail".to_owned())
        );
        assert_eq!(plan(&status, &told(None), at(30)), status);
        let silent = plan(&status, &told(Some(Nodes::Silent)), at(35));
        assert_eq!(
            condition_of(&silent),
            ("Unknown".to_owned(), "PullEnded".to_owned())
        );
        assert_eq!(plan(&silent, &told(Some(Nodes::Silent)), at(36)), silent);
        let status = plan(&status, &told(Some(Nodes::CanPull)), at(40));
        assert_eq!(plan(&status, &told(Some(Nodes::Silent)), at(45)), status);
        assert_eq!(condition_of(&status), ("True".to_owned(), "Pulled".to_owned()));
        let lasts = |what: Option<&str>| Seen {
            pull_lasts: what.map(Into::into),
            ..seen()
        };
        let status = plan(&status, &lasts(Some("node-1 pulls")), at(50));
        assert_eq!(
            condition_of(&status),
            ("Unknown".to_owned(), "PullLasts".to_owned())
        );
        assert_eq!(condition(&status, "NodesCanPull").message, "node-1 pulls");
        let status = plan(&status, &lasts(None), at(60));
        assert_eq!(
            condition_of(&status),
            ("Unknown".to_owned(), "PullEnded".to_owned())
        );
        assert_eq!(plan(&status, &lasts(None), at(70)), status);
    }

    #[test]
    fn pods_without_a_record_are_told_while_they_are_stuck() {
        let told = |what: Option<&str>| Seen {
            unrecorded: what.map(Into::into),
            ..seen()
        };
        let none = plan(&ImageMirrorStatus::default(), &told(None), at(20));
        assert!(condition_of(&none, ConditionType::OriginalsRecorded).is_none());
        let said = |status: &ImageMirrorStatus| {
            let condition = condition(status, "OriginalsRecorded");
            [&condition.status, &condition.reason].map(String::clone)
        };
        let status = plan(&none, &told(Some("Pod team/web")), at(30));
        assert_eq!(said(&status), ["False", "NoRecord"]);
        assert_eq!(condition(&status, "OriginalsRecorded").message, "Pod team/web");
        let status = plan(&status, &told(None), at(40));
        assert_eq!(said(&status), ["True", "Recorded"]);
    }

    #[test]
    fn owners_that_fight_are_told_while_they_are_left_alone() {
        let left_alone = |count: u64| Seen {
            looping: Some(
                (0..count)
                    .map(|number| (format!("Web.example.com team/{number}"), at(90)))
                    .collect(),
            ),
            ..seen()
        };
        let none = plan(&ImageMirrorStatus::default(), &left_alone(0), at(20));
        assert!(condition_of(&none, ConditionType::OwnersLeftAlone).is_none());
        let status = plan(&none, &left_alone(120), at(30));
        let told = condition(&status, "OwnersLeftAlone");
        assert_eq!(
            (told.status.as_str(), told.reason.as_str()),
            ("True", "OwnerLoop")
        );
        assert!(
            told.message
                .contains("Web.example.com team/4 until 1970-01-01T00:01:30.000Z, and 115 more."),
            "{told:?}"
        );
        assert_eq!(status.owners_left_alone.len(), LOOPING);
        // Whatever a name is, little of it is told, and nothing that hides.
        let odd = Seen {
            looping: Some(vec![("\u{202e}é".repeat(100_000), at(90))]),
            ..seen()
        };
        let odd = plan(&none, &odd, at(30)).owners_left_alone.remove(0);
        assert!(odd.starts_with("\\u{202e}é") && odd.len() < 700, "{odd}");
        // A new leader does not know at first.
        let unknown = Seen {
            looping: None,
            ..seen()
        };
        assert_eq!(plan(&status, &unknown, at(40)), status);
        let status = plan(&status, &left_alone(0), at(50));
        let told = condition(&status, "OwnersLeftAlone");
        assert_eq!(
            (told.status.as_str(), told.reason.as_str()),
            ("False", "NoneFights")
        );
        assert!(status.owners_left_alone.is_empty());
    }

    #[test]
    fn nothing_in_force_is_never_healthy() {
        let good = plan(&ImageMirrorStatus::default(), &seen(), at(20));
        let bad = Seen {
            health: None,
            ..seen()
        };
        let status = plan(&good, &bad, at(30));
        assert_eq!(health(&status).unwrap().state, State::Unknown);
        assert_eq!(plan(&status, &bad, at(40)), status);
    }

    #[test]
    fn sweeps_are_told_with_their_version_unless_there_is_nothing_to_tell() {
        let end = |present, seconds: u64| SweepEnd {
            started_at: at(20),
            finished_at: at(20 + seconds),
            counts: Counts {
                present,
                ..Counts::default()
            },
            period: Duration::from_secs(10),
            bound: "spec.tags.refresh",
            tags_wait: false,
        };
        let swept = |tags| Seen {
            sweeps: [Some((tags, 77)), Some((end(0, 1), 77))],
            ..seen()
        };
        let status = plan(&ImageMirrorStatus::default(), &swept(end(3, 1)), at(21));
        assert_eq!(status.sweeps.digest, None);
        let tag = status.sweeps.tag.as_ref().unwrap();
        assert_eq!((tag.present, &*tag.through_resource_version), (3, "77"));
        assert_eq!(status.images, Some(3));
        assert_eq!(condition(&status, "SweepInTime").status, "True");
        let late = plan(&status, &swept(end(3, 11)), at(40));
        let in_time = condition(&late, "SweepInTime");
        assert_eq!(in_time.reason, "TooSlow");
        assert!(
            in_time
                .message
                .ends_with("requestsPerSecond or spec.tags.refresh."),
            "{}",
            in_time.message
        );
        // The sweep was in time, but what pull-through mirrors' tags stand for was not asked.
        let waiting = SweepEnd {
            tags_wait: true,
            ..end(3, 1)
        };
        let late = plan(&status, &swept(waiting), at(40));
        let in_time = condition(&late, "SweepInTime");
        assert_eq!(in_time.status, "False");
        assert!(
            in_time.message.contains("spec.tags.refresh: raise it"),
            "{}",
            in_time.message
        );
        assert!(
            !in_time.message.contains("requestsPerSecond"),
            "{}",
            in_time.message
        );
    }
}
