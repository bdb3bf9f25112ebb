//! Tells of pulls that last, which nobody can help: it asks for the Events of Pods that do not begin, of one at a time.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::core::v1::Event;
use kube::{Api, api::ListParams};
use tokio::time::sleep;

use super::{
    leader::Leader,
    rescuer::{Ward, container_of},
};
use crate::{
    clock,
    cluster::{events::Message, request::bounded, writer::NotWritten},
    domain::{
        rescue::{
            PodId,
            hang::{Hang, PodEvent},
        },
        time::Timestamp,
    },
    telemetry::{Reminder, chain},
};

/// The time between two requests.
const PACE: Duration = Duration::from_millis(500);

/// How many Events of one Pod are read. Kubelet writes a few, and counts what happens again.
const EVENTS: u32 = 200;

/// Looks at Pods that do not begin until this process may not write any more.
pub(super) async fn run(leader: Leader, ward: Ward) {
    let mut told = BTreeSet::new();
    let mut failures = Reminder::default();
    loop {
        sleep(PACE).await;
        if let Some(pod) = ward.hangs(|hangs| hangs.next(clock::now())) {
            match look(&leader, &ward, &pod).await {
                Ok(Some(hang)) => {
                    if let Err(NotWritten::NotLeading) = tell(&leader, &hang).await {
                        return;
                    }
                    failures.ended();
                }
                Ok(None) => {
                    failures.ended();
                }
                Err(error) => {
                    let error = chain(&error);
                    if failures.failed(&error, std::time::Instant::now()) {
                        tracing::warn!(
                            error,
                            "cannot read the Events of a Pod that does not begin; trying again"
                        );
                    }
                }
            }
        }
        let longest = ward.hangs(|hangs| {
            let longest = hangs.longest().into_iter();
            let longest = longest.map(|(mirror, hang)| (mirror.to_owned(), hang.describe()));
            longest.collect::<std::collections::BTreeMap<_, _>>()
        });
        told.retain(|mirror: &String| {
            let lasts = longest.contains_key(mirror);
            if !lasts {
                leader.reports.pull_lasts(mirror, None);
            }
            lasts
        });
        for (mirror, what) in longest {
            leader.reports.pull_lasts(&mirror, Some(what.into()));
            told.insert(mirror);
        }
    }
}

/// Reads the Events of a Pod. Returns its pull that lasts, where that is news.
async fn look(leader: &Leader, ward: &Ward, pod: &PodId) -> kube::Result<Option<Hang>> {
    let events = Api::<Event>::namespaced(leader.client.clone(), &pod.namespace);
    let parameters = ListParams::default()
        .fields(&format!("involvedObject.uid={}", pod.uid))
        .limit(EVENTS);
    let events = bounded(events.list(&parameters)).await?;
    let events: Vec<_> = events.items.iter().map(pod_event).collect();
    Ok(ward.hangs(|hangs| hangs.judge(pod, &events, clock::now())))
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

async fn tell(leader: &Leader, hang: &Hang) -> Result<(), NotWritten> {
    tracing::warn!(
        pod.namespace = &*hang.pod.namespace,
        pod.name = &*hang.pod.name,
        container = &*hang.container,
        node = &*hang.node,
        mirror = &*hang.mirror,
        image = &*hang.image,
        since = %hang.since,
        "a node is inside a pull that lasts"
    );
    let message = Message {
        action: "Rescue",
        reason: "PullLasts",
        note: hang.describe(),
        is_warning: true,
    };
    let container = container_of(&hang.pod, hang.kind, &hang.container);
    leader.events.tell(container, message).await
}
