//! Tells of Pods that are stuck on a mirror's name while nothing proves what their user wrote.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::sleep;

use super::{
    leader::Leader,
    rescuer::{Ward, container_of},
};
use crate::{
    cluster::{events::Message, writer::NotWritten},
    domain::rescue::{
        PodId,
        unrecorded::{Nameless, Unrecorded},
    },
};

/// The time between two Events, and two looks at what is to be said of mirrors.
const PACE: Duration = Duration::from_secs(1);

/// Tells of them until this process may not write any more.
pub(super) async fn run(leader: Leader, ward: Ward) {
    let mut told: BTreeSet<Box<str>> = BTreeSet::new();
    loop {
        sleep(PACE).await;
        if let Some((pod, container)) = ward.unrecorded(Unrecorded::news)
            && let Err(NotWritten::NotLeading) = tell(&leader, &pod, &container).await
        {
            return;
        }
        let by_mirror = ward.unrecorded(|unrecorded| unrecorded.by_mirror());
        for mirror in told.iter().filter(|mirror| !by_mirror.contains_key(*mirror)) {
            leader.reports.unrecorded(mirror, None);
        }
        told = by_mirror.keys().cloned().collect();
        for (mirror, what) in by_mirror {
            leader.reports.unrecorded(&mirror, Some(what.into()));
        }
    }
}

async fn tell(leader: &Leader, pod: &PodId, container: &Nameless) -> Result<(), NotWritten> {
    tracing::warn!(
        pod.namespace = &*pod.namespace,
        pod.name = &*pod.name,
        container = &*container.name,
        image = &*container.image,
        mirror = &*container.mirror,
        candidate = container.candidate.as_deref(),
        "a Pod is stuck on a mirror's name, and nothing tells what its user wrote"
    );
    let message = Message {
        action: "Rescue",
        reason: "NoRecord",
        note: container.describe(),
        is_warning: true,
    };
    let place = container_of(pod, container.kind, &container.name);
    leader.events.tell(place, message).await
}
