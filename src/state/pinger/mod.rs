//! Pings one mirror when it is due, and says so while an answer takes too long.
//!
//! The same for who keeps the shared state and for a replica that looks for itself; what they make of it is
//! their own.

mod tripwire;

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use self::tripwire::Tripwire;
use super::{Store, interest::Interest};
use crate::{
    clock,
    domain::{
        answer::Failure,
        health::{Observation, Ping},
        mirror::HealthSettings,
        pinging::{Pinging, Wish},
        time::Timestamp,
    },
    registry::Client,
};

/// Every so many intervals a ping opens a connection of its own, as nodes do: one that is kept goes on where no new
/// one would be opened, as with a certificate that has ended since.
const ANEW_EVERY: u32 = 15;

/// How much longer a ping may take that opens a connection of its own: a handshake goes to and fro some more times.
const HANDSHAKE: u32 = 3;

/// How late a timer may be. Where it is later this machine is busy, which says nothing of the mirror: its answer may be
/// here already.
const LATE: Duration = Duration::from_millis(20);

/// The pings of one mirror.
#[derive(Debug)]
pub struct Pinger {
    client: Client,
    interest: Arc<Interest>,
    pinging: Pinging,
    /// The beginning of its time.
    began: Instant,
    tripwire: Tripwire,
    tripped: bool,
    /// When a ping last opened a connection of its own, and whether that served it: if not, one that is kept proves
    /// nothing.
    anew: Option<(Instant, bool)>,
}

/// A ping that was made.
#[derive(Debug)]
pub struct Pinged {
    pub answer: Result<(), Failure>,
    /// When it was sent.
    pub asked_at: Timestamp,
    /// The connection that was held had ended: the mirror may be another one.
    pub tripped: bool,
}

impl Pinger {
    /// Returns who pings a mirror that the store has; none if it has none of this name.
    pub fn new(store: &Store, mirror: &str) -> Option<Self> {
        let client = store.client(mirror)?;
        Some(Self {
            tripwire: Tripwire::new(client.clone()),
            interest: store.interest(mirror)?,
            client,
            pinging: Pinging::default(),
            began: Instant::now(),
            tripped: false,
            anew: None,
        })
    }

    /// Waits until a ping is due: after so long, or earlier where somebody wants to know. Whoever gives up waiting
    /// may wait again.
    pub async fn due(&mut self, every: Duration) {
        loop {
            let wish = Wish {
                tripped: self.tripped,
                ..self.interest.wishes()
            };
            let due = self.began + self.pinging.due(every, wish, self.began.elapsed());
            tokio::select! {
                () = sleep_until(due) => return,
                () = self.interest.risen() => {}
                () = self.tripwire.tripped() => self.tripped = true,
            }
        }
    }

    /// Pings the mirror; now and then, and where a verdict needs it, over a connection of its own. `suspect` is told
    /// whether the answer takes longer than usual, and that it came. `counts` tells which answers say something of
    /// the mirror's health.
    pub async fn ping(
        &mut self,
        settings: HealthSettings,
        counts: impl FnOnce(&Ping) -> bool,
        mut suspect: impl FnMut(bool),
    ) -> Pinged {
        let asked_at = clock::now();
        let started = Instant::now();
        let now = started.duration_since(self.began);
        let confirms = self.pinging.may_decide(settings.timeout, now);
        let in_turn = |(last, served): (Instant, bool)| {
            !served || started.duration_since(last) >= ANEW_EVERY * settings.interval
        };
        let anew = in_turn(*self.anew.get_or_insert((started, true)));
        let tripped = std::mem::take(&mut self.tripped);
        self.interest.satisfy();
        self.pinging.sent(now);
        let (mut longest, mut patience) = (settings.timeout, self.pinging.patience(settings.timeout));
        let anew = anew || confirms;
        if anew {
            (longest, patience) = (HANDSHAKE * longest, HANDSHAKE * patience);
        }
        let client = self.client.clone();
        let asking = async {
            if anew {
                client.ping_anew(started + longest).await
            } else {
                client.ping(started + longest).await
            }
        };
        tokio::pin!(asking);
        let answer = tokio::select! {
            answer = &mut asking => answer,
            () = elapsed(started + patience, patience) => {
                suspect(true);
                asking.await
            }
        };
        let ping = Ping::of(&answer);
        let observation = counts(&ping).then_some(&ping.observation);
        self.pinging.ended(observation, started.elapsed());
        let well = ping.observation == Observation::Good;
        self.tripwire.pinged(well);
        if anew {
            self.anew = Some((started, well));
        }
        suspect(matches!(observation, Some(Observation::Bad(..))));
        Pinged {
            answer,
            asked_at,
            tripped,
        }
    }

    /// Whether the last ping failed, and so another one is to decide.
    pub const fn fails(&self) -> bool {
        self.pinging.fails()
    }
}

/// Waits until a time, and for as long as `again` more each time that this machine was too busy to notice it.
async fn elapsed(mut until: Instant, again: Duration) {
    loop {
        sleep_until(until).await;
        if until.elapsed() <= LATE {
            return;
        }
        until = Instant::now() + again;
    }
}
