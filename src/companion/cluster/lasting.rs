//! Tells of Pods that stay stuck, though they went back or though nothing hinders them any more: what people have to see
//! to, since a patch would help none of them.

use std::time::Duration;

use tokio::time::sleep;

use super::{
    leader::Leader,
    pod_events,
    rescuer::{Ward, container_of},
};
use crate::{
    clock,
    cluster::{events::Message, writer::NotWritten},
    domain::rescue::{
        hang::PodEvent,
        lasting::{Due, Lasts, Missed, gives},
    },
};

/// The time between two looks.
const PACE: Duration = Duration::from_millis(500);

/// Looks at Pods that stay stuck until this process may not write any more.
pub(super) async fn run(leader: Leader, ward: Ward) {
    let mut events = pod_events::Reader::new(&leader, "stays stuck");
    loop {
        sleep(PACE).await;
        let next = {
            // The index comes before the ward, as everywhere: else two that read may wait for one another and a writer.
            let (snapshot, index) = (leader.store.snapshot(), leader.store.index());
            let now = clock::now();
            let is_given = |missed: &Missed| gives(&snapshot, &index, missed, now);
            ward.lasting(|lasting| lasting.next(is_given, now))
        };
        let lasts = match next {
            None => continue,
            Some(Due::Tell(lasts)) => lasts,
            Some(Due::Look(pod)) => {
                let judge = |events: &[PodEvent<'_>]| {
                    let (snapshot, index) = (leader.store.snapshot(), leader.store.index());
                    let now = clock::now();
                    let is_given = |missed: &Missed| gives(&snapshot, &index, missed, now);
                    ward.lasting(|lasting| lasting.judge(&pod, events, is_given, now))
                };
                let Some(lasts) = events.look(&pod, judge).await.flatten() else {
                    continue;
                };
                lasts
            }
        };
        if let Err(NotWritten::NotLeading) = tell(&leader, &lasts).await {
            return;
        }
    }
}

async fn tell(leader: &Leader, lasts: &Lasts) -> Result<(), NotWritten> {
    let reason = lasts.reason();
    tracing::warn!(
        pod.namespace = &*lasts.pod.namespace,
        pod.name = &*lasts.pod.name,
        container = &*lasts.container,
        image = &*lasts.image,
        node = &*lasts.node,
        since = %lasts.since,
        reason,
        "a Pod stays stuck"
    );
    let message = Message {
        action: "Rescue",
        reason,
        note: lasts.describe(),
        is_warning: true,
    };
    let container = container_of(&lasts.pod, lasts.kind, &lasts.container);
    leader.events.tell(container, message).await
}
