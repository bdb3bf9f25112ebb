//! The brake: one annotation of the heartbeat Lease by which people stop whatever Kagami does to Pods, in the whole
//! cluster and within seconds. Webhooks see it with the heartbeat, this leader by a watch of its own.

use std::convert::Infallible;

use tokio::sync::watch;

use super::leader::Leader;
use crate::cluster::{
    objects::{Object, is_paused},
    sources,
    watch::{Event, follow},
};

/// Follows the Lease until it is dropped. `seen` becomes true once it is known whether the brake is on: nothing is
/// done to Pods before. Where `by_settings`, it is on whatever the Lease says, which may not tell yet.
pub(super) async fn run(leader: Leader, by_settings: bool, seen: watch::Sender<bool>) {
    let (_never, relists) = watch::channel(0);
    let source = sources::lease(&leader.namespace);
    let pulse = leader.pulses.of(&source);
    let handle = |event: Event<Object>| match event {
        Event::Listed(lease) | Event::Changed(lease) => {
            let paused = by_settings || is_paused(&lease);
            if leader.store.set_paused(paused) {
                tracing::warn!(paused, "the brake was pulled or released");
            }
        }
        Event::ListedAll { .. } => {
            seen.send_replace(true);
        }
        // One that is made anew tells.
        Event::Listing | Event::Deleted(_) | Event::Reached(_) => {}
    };
    let never: Infallible = follow(leader.client.clone(), source, pulse, relists, handle).await;
    match never {}
}
