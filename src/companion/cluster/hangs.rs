//! Tells of pulls that last, which nobody can help: it asks for the Events of Pods that do not begin, of one at a time.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::sleep;

use super::{
    leader::Leader,
    pod_events,
    rescuer::{Ward, container_of},
};
use crate::{
    clock,
    cluster::{events::Message, writer::NotWritten},
    domain::rescue::hang::{Hang, PodEvent},
};

/// The time between two requests.
const PACE: Duration = Duration::from_millis(500);

/// Looks at Pods that do not begin until this process may not write any more.
pub(super) async fn run(leader: Leader, ward: Ward) {
    let mut told = BTreeSet::new();
    let mut events = pod_events::Reader::new(&leader, "does not begin");
    loop {
        sleep(PACE).await;
        if let Some(pod) = ward.hangs(|hangs| hangs.next(clock::now())) {
            let judge = |events: &[PodEvent<'_>]| ward.hangs(|hangs| hangs.judge(&pod, events));
            events.look(&pod, judge).await;
        }
        for hang in ward.hangs(|hangs| hangs.news(clock::now())) {
            if let Err(NotWritten::NotLeading) = tell(&leader, &hang).await {
                return;
            }
        }
        let longest = ward.hangs(|hangs| {
            let longest = hangs.longest().into_iter();
            let longest = longest.map(|(mirror, hang)| (mirror.to_owned(), hang.describe_to_all()));
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

async fn tell(leader: &Leader, hang: &Hang) -> Result<(), NotWritten> {
    tracing::warn!(
        pod.namespace = &*hang.pod.namespace,
        pod.name = &*hang.pod.name,
        container = &*hang.container,
        node = &*hang.node,
        mirror = &*hang.mirror,
        image = &*hang.image,
        since = %hang.since,
        waits = hang.waits,
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
