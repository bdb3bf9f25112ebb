//! Pods that are stuck on an image volume, which nobody can change: `domain::rescue::volumes` says which of them are
//! evicted, this asks for it, and tells of all the others. At most one a second: a new Pod costs more than a patch.

use std::time::Duration;

use serde::de::IgnoredAny;
use tokio::{sync::watch, time::sleep};

use super::{
    leader::Leader,
    pod_events,
    rescuer::{Ward, reference},
};
use crate::{
    clock,
    cluster::{events::Message, request, writer::NotWritten},
    domain::rescue::{forward::Ahead, volumes::Help},
    telemetry::{Reminder, chain},
};

/// The time between two Pods.
const PACE: Duration = Duration::from_secs(1);

/// What metrics call it.
const DIRECTION: &str = "evicted";

/// Evicts and tells until this process may not write any more, once it is known whether the brake is on.
pub(super) async fn run(leader: Leader, ward: Ward, mut braked: watch::Receiver<bool>) {
    if braked.wait_for(|seen| *seen).await.is_err() {
        // The task that tells has ended, and so does the leader.
        return;
    }
    let mut failures = Reminder::default();
    loop {
        sleep(PACE).await;
        let next = {
            let snapshot = leader.store.snapshot();
            let index = leader.store.index();
            ward.volumes(|volumes| {
                volumes.next(&Ahead {
                    snapshot: &snapshot,
                    index: &index,
                    registries: &[],
                    now: clock::now(),
                })
            })
        };
        let Some(help) = next else { continue };
        match carry_out(&leader, &ward, &help).await {
            Ok(()) => {
                failures.ended();
            }
            Err(NotWritten::NotLeading) => return,
            // It is another one by now, or gone: the next event tells.
            Err(NotWritten::Conflict | NotWritten::Gone) => {}
            Err(error) => {
                let error = chain(&error);
                leader.metrics.rescued(&help.mirror, DIRECTION, "error");
                if failures.failed(&error, std::time::Instant::now()) {
                    let (namespace, pod) = (&*help.stuck.pod.namespace, &*help.stuck.pod.name);
                    tracing::warn!(
                        pod.namespace = namespace,
                        pod.name = pod,
                        error,
                        "cannot evict a Pod that is stuck on an image volume; trying again"
                    );
                }
            }
        }
    }
}

async fn carry_out(leader: &Leader, ward: &Ward, help: &Help) -> Result<(), NotWritten> {
    let pod = &help.stuck.pod;
    let (volume, image) = (&help.stuck.volume, &help.stuck.image);
    let what = format!("The node cannot pull {image} of image volume {volume}, which nobody can change");
    if let Some(hindrance) = help.hindrance {
        leader.metrics.rescued(&help.mirror, DIRECTION, "told");
        let message = Message {
            action: "Rescue",
            reason: "VolumeStuck",
            note: format!("{what}: {}", hindrance.help()),
            is_warning: true,
        };
        return leader.events.tell(reference(pod), message).await;
    }
    // The status of a Pod whose node is inside a pull is as old as that.
    let result = pod_events::look(leader, pod, |events| {
        events.iter().any(|event| event.reason == "Started")
    });
    match result.await {
        Ok(false) => {}
        Ok(true) => {
            ward.volumes(|volumes| volumes.not_evicted(pod, true, clock::now()));
            return Ok(());
        }
        Err(error) => {
            ward.volumes(|volumes| volumes.not_evicted(pod, false, clock::now()));
            return Err(error.into());
        }
    }
    let evict = async {
        let request = request::evict(&pod.namespace, &pod.name, &pod.uid, &pod.resource_version)?;
        leader.client.request::<IgnoredAny>(request).await
    };
    if let Err(error) = leader.writer.write("Eviction", evict).await {
        ward.volumes(|volumes| volumes.not_evicted(pod, false, clock::now()));
        if !lacks_right(&error) {
            return Err(error);
        }
        // Without the chart's value there is none: the Pods are told of instead.
        ward.volumes(|volumes| volumes.has_no_right(clock::now()));
        return Ok(());
    }
    leader.metrics.rescued(&help.mirror, DIRECTION, "done");
    tracing::info!(
        pod.namespace = &*pod.namespace,
        pod.name = &*pod.name,
        mirror = &*help.mirror,
        volume = &**volume,
        image.from = &**image,
        "evicted a Pod that was stuck on an image volume"
    );
    let original = help.stuck.original();
    let original = original.map_or_else(String::new, |original| original.written().to_owned());
    let message = Message {
        action: "Rescue",
        reason: "Evicted",
        note: format!("{what}: the Pod is evicted, and its owner makes another one, with {original}"),
        is_warning: false,
    };
    leader.events.tell(reference(pod), message).await
}

/// Whether the API server says that this process has no right to evict anybody, whatever the Pod; in words that are those
/// of its authorizers alone.
fn lacks_right(error: &NotWritten) -> bool {
    let NotWritten::Failed(kube::Error::Api(status)) = error else {
        return false;
    };
    status.code == 403
        && status
            .message
            .contains("cannot create resource \"pods/eviction\"")
}
