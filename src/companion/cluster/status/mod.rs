//! What an ImageMirror's status is to say: a plan, from what it says and what is known.
//!
//! It changes with transitions and ends of sweeps only: computed again from the same, it is the
//! same, to the letter.

mod conditions;
mod mirror;
mod pods;
mod settings;
#[cfg(test)]
mod tests;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Map, Value, json};

use crate::{
    api::{self, newer::Unknown, v1alpha1::ImageMirrorStatus},
    companion::mirror::reports::{Nodes, SweepEnd},
    domain::{copying, health::Health, routing::Overlap, time::Timestamp},
};

use super::placed::Placed;
use conditions::Conditions;

pub(super) use crate::api::health::health;
pub(super) use conditions::{ConditionType, time};

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
    /// The mirrors that it is not separated from: the first few, and how many more.
    pub(super) not_separated: (Vec<&'a str>, usize),
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
    /// Whether nothing was wanted for a while, so that nobody tries.
    pub(super) is_idle: bool,
    /// Whether the Secrets of `copy` and of sources give logins, or what is wrong with them; none where the mirror is not
    /// filled.
    pub(super) copy_logins: Option<Result<(), String>>,
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
    settings::ready(&mut conditions, seen);
    settings::unknown_fields(&mut conditions, seen.unknown);
    settings::overlaps(&mut conditions, &seen.overlaps);
    settings::separation(&mut conditions, &seen.not_separated);
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
            let reason = mirror::healthy(&mut conditions, health);
            next.health = Some(api::health::status(health, reason));
        }
        Some(_) => conditions.observed(ConditionType::Healthy),
        None if current
            .health
            .as_ref()
            .is_some_and(|health| health.reason == mirror::NOT_IN_FORCE) => {}
        None => {
            let unknown = Health::unknown(now);
            let reason = mirror::not_in_force(&mut conditions);
            next.health = Some(api::health::status(&unknown, reason));
        }
    }
    let mut conditions = Conditions {
        list: &mut next.conditions,
        generation: seen.generation,
        now,
    };
    mirror::credentials(&mut conditions, seen);
    settings::schema(&mut conditions, seen.lacking);
    pods::nodes(&mut conditions, seen);
    mirror::images(&mut conditions, seen.images_readable.as_ref());
    mirror::copy_logins(&mut conditions, seen.copy_logins.as_ref());
    mirror::writable(&mut conditions, seen);
    pods::forward(&mut conditions, seen.forward_allowed.as_ref());
    pods::owners(&mut conditions, seen.looping.as_deref());
    pods::originals(&mut conditions, seen.unrecorded.as_deref());
    pods::pull_secrets(&mut conditions, seen.pull_secrets.as_ref());
    mirror::sweeps(&mut next, seen, now);
    if let Some(placed) = &seen.pull_secrets {
        next.pull_secret_namespaces = placed.in_place.to_vec();
    }
    if let Some(looping) = &seen.looping {
        let looping = looping.iter().take(pods::LOOPING);
        next.owners_left_alone = looping.map(pods::left_alone).collect();
    }
    next.failing_upstreams.clone_from(&seen.failing_upstreams);
    if !seen.platforms.is_empty() {
        next.platforms = seen.platforms.to_vec();
    }
    next
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
