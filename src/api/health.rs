//! Between the status of an ImageMirror and what the core knows of a mirror's health.

use super::v1alpha1::{HealthState, HealthStatus, ImageMirrorStatus, micro_time, timestamp};
use crate::domain::health::{Fault, Health, State};

/// Returns the health that a status tells; none if it tells of none, or not since when proofs count.
pub fn health(status: &ImageMirrorStatus) -> Option<Health> {
    let told = status.health.as_ref()?;
    Some(Health {
        state: match told.state {
            HealthState::Unknown => State::Unknown,
            HealthState::Healthy => State::Healthy,
            HealthState::Unhealthy => State::Unhealthy,
        },
        fault: Fault::from_name(&told.reason),
        cause: told.message.as_deref().map(Into::into),
        since: told.since.as_ref().map(timestamp).unwrap_or_default(),
        // A status does not tell.
        refused_since: None,
        proven_since: timestamp(told.proven_since.as_ref()?),
    })
}

/// Returns what a status tells of a health, with its reason in one word.
pub fn status(health: &Health, reason: &str) -> HealthStatus {
    HealthStatus {
        state: match health.state {
            State::Unknown => HealthState::Unknown,
            State::Healthy => HealthState::Healthy,
            State::Unhealthy => HealthState::Unhealthy,
        },
        reason: reason.to_owned(),
        message: health.cause.as_deref().map(ToOwned::to_owned),
        since: Some(micro_time(health.since)),
        proven_since: Some(micro_time(health.proven_since)),
    }
}
