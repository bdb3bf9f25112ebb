//! Tells of Pods that are stuck on a mirror's name while nothing proves what their user wrote.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, sleep};

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

/// The time between two Events.
const PACE: Duration = Duration::from_secs(1);

/// How long what is said of a mirror stays as it is at least: Pods come and go, and every webhook reads it.
const STAYS: Duration = Duration::from_mins(15);

/// Tells of them until this process may not write any more.
pub(super) async fn run(leader: Leader, ward: Ward) {
    let mut told: BTreeMap<Box<str>, (String, Instant)> = BTreeMap::new();
    loop {
        sleep(PACE).await;
        if let Some((pod, container)) = ward.unrecorded(Unrecorded::news)
            && let Err(NotWritten::NotLeading) = tell(&leader, &pod, &container).await
        {
            return;
        }
        let by_mirror = ward.unrecorded(|unrecorded| unrecorded.by_mirror());
        let stays = |(_, at): &(String, Instant)| at.elapsed() < STAYS;
        told.retain(|mirror, said| {
            let remains = stays(said) || by_mirror.contains_key(mirror);
            if !remains {
                leader.reports.unrecorded(mirror, None);
            }
            remains
        });
        for (mirror, what) in by_mirror {
            if told.get(&mirror).is_some_and(stays) {
                continue;
            }
            leader.reports.unrecorded(&mirror, Some(what.as_str().into()));
            told.insert(mirror, (what, Instant::now()));
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
        candidate = &*container.candidate,
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
