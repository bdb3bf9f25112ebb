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
    telemetry::{Reminder, chain},
};

/// How many Events of one Pod are read at once, and how often more of them are. Kubelet writes a few, and counts what
/// happens again; but whoever may create Events may write in its name.
const EVENTS: u32 = 200;
const PAGES: usize = 5;

/// Who tells of pulls.
const KUBELET: &str = "kubelet";

/// Looks at the Events of one Pod after the other, and says where they cannot be read.
pub(super) struct Reader {
    leader: Leader,
    /// What the Pods do, after "a Pod that".
    that: &'static str,
    failures: Reminder,
}

impl Reader {
    pub(super) fn new(leader: &Leader, that: &'static str) -> Self {
        Self {
            leader: leader.clone(),
            that,
            failures: Reminder::default(),
        }
    }

    /// Reads the Events of a Pod that a kubelet wrote, and returns what is made of them; nothing where they cannot be read,
    /// which is told. Whoever asks comes again.
    pub(super) async fn look<T>(
        &mut self,
        pod: &PodId,
        make: impl FnOnce(&[PodEvent<'_>]) -> T,
    ) -> Option<T> {
        match look(&self.leader, pod, make).await {
            Ok(made) => {
                self.failures.ended();
                Some(made)
            }
            Err(error) => {
                let (error, that) = (chain(&error), self.that);
                if self.failures.failed(&error, std::time::Instant::now()) {
                    tracing::warn!(error, "cannot read the Events of a Pod that {that}; trying again");
                }
                None
            }
        }
    }
}

/// Reads the Events of a Pod that a kubelet wrote, and returns what is made of them.
pub(super) async fn look<T>(
    leader: &Leader,
    pod: &PodId,
    make: impl FnOnce(&[PodEvent<'_>]) -> T,
) -> kube::Result<T> {
    let api = Api::<Event>::namespaced(leader.client.clone(), &pod.namespace);
    let mut parameters = ListParams::default()
        .fields(&format!("involvedObject.uid={},source={KUBELET}", pod.uid))
        .limit(EVENTS);
    let mut events = Vec::new();
    for _ in 0..PAGES {
        // An API server reads all Events of the namespace for one Pod's, so whoever asks waits for a turn, for each page.
        leader.looks.turn().await;
        let page = bounded(api.list(&parameters)).await?;
        events.extend(page.items);
        parameters.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if parameters.continue_token.is_none() {
            break;
        }
    }
    let events: Vec<_> = events.iter().map(pod_event).collect();
    Ok(make(&events))
}

fn pod_event(event: &Event) -> PodEvent<'_> {
    // Kubelet's have the one, newer reporters' the other.
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let at = last.or_else(|| event.event_time.as_ref().map(|time| time.0));
    let millis = at.map(|at| u64::try_from(at.as_millisecond()).unwrap_or(0));
    let source = event.source.as_ref();
    let host = source.and_then(|source| source.host.as_deref());
    PodEvent {
        reason: event.reason.as_deref().unwrap_or_default(),
        message: event.message.as_deref().unwrap_or_default(),
        field_path: event.involved_object.field_path.as_deref().unwrap_or_default(),
        host: host.or(event.reporting_instance.as_deref()).unwrap_or_default(),
        at: Timestamp::from_millis(millis.unwrap_or(0)),
    }
}
