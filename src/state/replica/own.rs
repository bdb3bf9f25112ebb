//! This replica's own pings of mirrors, while nobody else's count, or something here speaks against them.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, interval},
};

use super::{Shared, belief::Wanted};
use crate::{clock, domain::health::Observation};

/// How often it is looked who is due.
const TICK: Duration = Duration::from_millis(100);

/// Pings mirrors as long as the belief wants it, each at its own interval.
pub(super) async fn run(shared: Shared) -> Infallible {
    let mut due: BTreeMap<String, Instant> = BTreeMap::new();
    let mut pings: JoinSet<(String, Observation)> = JoinSet::new();
    let mut ticks = interval(TICK);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Some(ended) = pings.join_next() => {
                if let Ok((mirror, observation)) = ended {
                    shared.belief().pinged(&mirror, observation, clock::now());
                }
                continue;
            }
        }
        let now = Instant::now();
        let wanted = shared.belief().wanted();
        due.retain(|mirror, _| wanted.iter().any(|wanted| wanted.mirror == *mirror));
        for wanted in wanted {
            if due.get(&wanted.mirror).is_some_and(|due| *due > now) {
                continue;
            }
            // The next one only after this one has had its time: at most one ping of a mirror.
            let settings = wanted.settings;
            due.insert(
                wanted.mirror.clone(),
                now + settings.interval.max(settings.timeout),
            );
            pings.spawn(wanted.ping(now + settings.timeout));
        }
    }
}

impl Wanted {
    /// Pings the mirror. Returns its name and what that tells.
    pub(super) async fn ping(self, deadline: Instant) -> (String, Observation) {
        let answer = self.client.ping(deadline).await;
        (self.mirror, Observation::of_ping(&answer))
    }
}
