//! What is told of the mirror itself, as probes, looks, copies and sweeps find it.

use super::{
    Seen,
    conditions::{ConditionStatus, ConditionType, Conditions},
};
use crate::{
    api::v1alpha1::{ImageMirrorStatus, SweepStatus, micro_time},
    domain::{
        health::{Fault, Health, State},
        reason::Reason,
        time::Timestamp,
    },
};

/// The reason of the health of a mirror that nobody looks at.
pub(super) const NOT_IN_FORCE: &str = "NotInForce";

/// Sets the condition of a mirror's health and returns its reason.
pub(super) fn healthy(conditions: &mut Conditions<'_>, health: &Health) -> &'static str {
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
    conditions.set(ConditionType::Healthy, status, reason, &message);
    reason
}

/// Sets the condition of the health of a mirror that nobody looks at, and returns its reason.
pub(super) fn not_in_force(conditions: &mut Conditions<'_>) -> &'static str {
    let message = "Nobody looks at the mirror: condition Ready tells why.";
    conditions.set(
        ConditionType::Healthy,
        ConditionStatus::Unknown,
        NOT_IN_FORCE,
        message,
    );
    NOT_IN_FORCE
}

/// Tells whether the credentials that the mirror is asked with are of use.
pub(super) fn credentials(conditions: &mut Conditions<'_>, seen: &Seen<'_>) {
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

/// Tells of images that nobody can make anything of; nothing was ever told where there are none.
pub(super) fn images(conditions: &mut Conditions<'_>, readable: Option<&Result<(), Box<str>>>) {
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
pub(super) fn writable(conditions: &mut Conditions<'_>, seen: &Seen<'_>) {
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
        None if seen.is_filled && seen.is_idle && conditions.is_false(type_) => {
            let message =
                "Nothing was wanted for a while, so nobody tried whether the mirror takes copies by now.";
            conditions.set(type_, ConditionStatus::Unknown, "NothingToCopy", message);
        }
        _ if !seen.is_filled && conditions.has(type_) => {
            let message = "Nothing is copied to the mirror: spec.copy.policy is Off.";
            conditions.set(type_, ConditionStatus::Unknown, "NotFilled", message);
        }
        _ => {}
    }
}

/// Tells whether the Secrets that copies need give logins; nothing was ever told where they all do.
pub(super) fn copy_logins(conditions: &mut Conditions<'_>, logins: Option<&Result<(), String>>) {
    let type_ = ConditionType::CopyCredentialsValid;
    let (status, reason, message) = match logins {
        Some(Err(troubles)) => (
            ConditionStatus::False,
            "SecretFaulty",
            format!(
                "Nothing is copied where a Secret that is named gives no login; the last good one, if any, stays in use \
                 for an hour at most: {troubles}."
            ),
        ),
        Some(Ok(())) if conditions.has(type_) => (
            ConditionStatus::True,
            "Given",
            "Every Secret that copies need gives a login.".to_owned(),
        ),
        None if conditions.has(type_) => (
            ConditionStatus::Unknown,
            "NotFilled",
            "Nothing is copied to the mirror: spec.copy.policy is Off.".to_owned(),
        ),
        Some(Ok(())) | None => return,
    };
    conditions.set(type_, status, reason, &message);
}

/// Tells of the ends of sweeps, and whether they come often enough.
pub(super) fn sweeps(next: &mut ImageMirrorStatus, seen: &Seen<'_>, now: Timestamp) {
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
