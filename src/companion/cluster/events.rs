//! Events, for people: what the companion tells beside statuses.

use k8s_openapi::api::{core::v1::ObjectReference, events::v1::Event};
use kube::api::ObjectMeta;

use crate::{api::v1alpha1::micro_time, domain::time::Timestamp};

/// Namespace of Events about objects without one (apimachinery's event validation asks for it).
pub(super) const NAMESPACE: &str = "default";

/// Event reporter.
const REPORTER: &str = "kagami.dev/companion";

/// What an Event tells of an object without a namespace.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) regarding: ObjectReference,
    pub(super) action: &'static str,
    pub(super) reason: &'static str,
    pub(super) note: String,
    pub(super) is_warning: bool,
}

/// Returns the Event that tells this, by whom.
pub(super) fn event(told: Told, identity: &str, now: Timestamp) -> Event {
    let name = told.regarding.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            // Unlike the object's, an Event's name may be cut.
            name: Some(format!("{name:.200}.{:x}", now.as_millis())),
            ..ObjectMeta::default()
        },
        action: Some(told.action.to_owned()),
        event_time: Some(micro_time(now)),
        // Longer ones are refused.
        note: Some(told.note.chars().take(1000).collect()),
        reason: Some(told.reason.to_owned()),
        regarding: Some(told.regarding),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(identity.chars().take(128).collect()),
        type_: Some(if told.is_warning { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    }
}
