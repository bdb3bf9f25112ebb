//! What is told of Pods and their nodes: whether these can pull, and which Pods are left as they are.

use super::super::placed::{Placed, Told};
use super::{
    Seen,
    conditions::{ConditionStatus, ConditionType, Conditions},
};
use crate::{
    api::MODE_LABEL,
    companion::mirror::reports::Nodes,
    domain::{foreign::visible, reason::Reason, time::Timestamp},
};

/// How many owners that are left alone are listed, and how many of them a message names.
pub(super) const LOOPING: usize = 100;
const LOOPING_NAMED: usize = 5;

/// How many bytes of an owner are told: more than any has that can be.
const OWNER: usize = 640;

/// Tells whether nodes get images from the mirror.
pub(super) fn nodes(conditions: &mut Conditions<'_>, seen: &Seen<'_>) {
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

/// Tells whether Pods may be turned forward to the mirror; nothing was ever told where no Pods are turned.
pub(super) fn forward(conditions: &mut Conditions<'_>, allowed: Option<&Result<(), String>>) {
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
                "Pods that cannot be pulled from upstream stay there, also those that went back: neither the chart's \
                 value mirrors names {registry}, nor does rescue.registries list it. Add it to rescue.registries."
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
pub(super) fn left_alone((owner, until): &(String, Timestamp)) -> String {
    let owner = visible(owner);
    format!("{} until {until}", &owner[..owner.floor_char_boundary(OWNER)])
}

/// Tells of owners that fight rewrites; nothing was ever told where none did.
pub(super) fn owners(conditions: &mut Conditions<'_>, looping: Option<&[(String, Timestamp)]>) {
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

/// Tells of Pods that are stuck without a record of what their users wrote; nothing was ever told where none was.
pub(super) fn originals(conditions: &mut Conditions<'_>, unrecorded: Option<&str>) {
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

/// Tells how it is with pull secrets; nothing was ever told where the mirror asked for none.
pub(super) fn pull_secrets(conditions: &mut Conditions<'_>, placed: Option<&Placed>) {
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
