//! What is told of the settings: the resource, the other mirrors', and the definitions that hold both.

use super::{
    Seen,
    conditions::{ConditionStatus, ConditionType, Conditions},
};
use crate::{
    api::{HEALTH_LEASE, PAUSED, newer::Unknown},
    domain::routing::Overlap,
};

/// How many lacking fields are named.
const LACKING: usize = 5;

/// Tells whether the resource is in force as it stands.
pub(super) fn ready(conditions: &mut Conditions<'_>, seen: &Seen<'_>) {
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
}

/// Tells what a newer definition has; nothing was ever told where there is nothing to tell.
pub(super) fn unknown_fields(conditions: &mut Conditions<'_>, unknown: &[Unknown]) {
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
pub(super) fn overlaps(conditions: &mut Conditions<'_>, overlaps: &[Overlap]) {
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

/// Tells of mirrors whose registries overlap and that serve others, likewise.
pub(super) fn separation(conditions: &mut Conditions<'_>, (others, more): &(Vec<&str>, usize)) {
    let type_ = ConditionType::AccessNotSeparated;
    if !others.is_empty() {
        let more = if *more == 0 {
            String::new()
        } else {
            format!(" and {more} more")
        };
        let message = format!(
            "The registry overlaps with that of ImageMirror {}{more}, which serves namespaces by another selector. No pull \
             secret is placed for these mirrors, as it would read what lies in both (only one that is Off, and has neither \
             pull secret nor private source, hinders no other); images of private sources are served \
             to namespaces of their own mirror only. Give the mirrors one namespaceSelector, or registries or paths apart.",
            others.join(", ")
        );
        conditions.set(type_, ConditionStatus::True, "SelectorsDiffer", &message);
    } else if conditions.has(type_) {
        let message = "No other mirror with another selector has a part in the registry.";
        conditions.set(type_, ConditionStatus::False, "Separated", message);
    }
}

/// Tells whether the installed definitions know all that this program does.
pub(super) fn schema(conditions: &mut Conditions<'_>, lacking: Option<&[String]>) {
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
