//! The Events of one Pod, as they are read: nobody watches all of a cluster's.

use k8s_openapi::api::core::v1::Event;
use kube::{Api, api::ListParams};

use super::leader::Leader;
use crate::{
    cluster::request::bounded,
    domain::{
        rescue::{PodId, hang::PodEvent},
        time::Timestamp,
    },
};

/// How many Events of one Pod are read. Kubelet writes a few, and counts what happens again.
const EVENTS: u32 = 200;

/// Reads the Events of a Pod, and returns what is made of them.
pub(super) async fn look<T>(
    leader: &Leader,
    pod: &PodId,
    make: impl FnOnce(&[PodEvent<'_>]) -> T,
) -> kube::Result<T> {
    let events = Api::<Event>::namespaced(leader.client.clone(), &pod.namespace);
    let parameters = ListParams::default()
        .fields(&format!("involvedObject.uid={}", pod.uid))
        .limit(EVENTS);
    let events = bounded(events.list(&parameters)).await?;
    let events: Vec<_> = events.items.iter().map(pod_event).collect();
    Ok(make(&events))
}

fn pod_event(event: &Event) -> PodEvent<'_> {
    // Kubelet's have the one, newer reporters' the other.
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let at = last.or_else(|| event.event_time.as_ref().map(|time| time.0));
    let millis = at.map(|at| u64::try_from(at.as_millisecond()).unwrap_or(0));
    PodEvent {
        reason: event.reason.as_deref().unwrap_or_default(),
        message: event.message.as_deref().unwrap_or_default(),
        field_path: event.involved_object.field_path.as_deref().unwrap_or_default(),
        at: Timestamp::from_millis(millis.unwrap_or(0)),
    }
}
