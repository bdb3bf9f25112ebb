//! When a mirror is pinged, and how long an answer may take before the mirror is suspected.
//!
//! Staying upstream for a moment costs next to nothing, and going to a dead mirror costs a Pod minutes. So a ping
//! that takes longer than this mirror usually needs, or one that failed, is suspicion enough to keep new Pods
//! upstream; only more than one of them, over some time, is a verdict ([`super::health`]).
//!
//! Times here are those of a clock that only goes forward, since some beginning.

use std::{collections::VecDeque, time::Duration};

use super::health::{CONFIRMATION, Observation};

/// The shortest pause between two pings that anybody asks for: three a second at most, so that what a review
/// relies on is never older than half a second.
pub const WHILE_USED: Duration = Duration::from_millis(340);

/// How many answers are remembered for what a mirror usually needs.
const REMEMBERED: usize = 100;

/// How many of them are taken for exceptions.
const EXCEPTIONS: usize = 1;

/// How many times as long as the slowest usual answer takes may go by without suspicion.
const MULTIPLE: u32 = 2;

/// The shortest patience: a machine may be busy for so long.
const SHORTEST: Duration = Duration::from_millis(250);

/// The patience with a mirror of which too little is known.
const AT_FIRST: Duration = Duration::from_millis(400);

/// How many answers are too little.
const LITTLE: usize = 5;

/// Why a mirror is to be pinged before its turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Pods are being rewritten to it.
    pub used: bool,
    /// Somebody looked for an image in vain.
    pub doubted: bool,
    /// A connection that was held open has ended.
    pub tripped: bool,
}

/// The pings of one mirror.
#[derive(Clone, Debug, Default)]
pub struct Pinging {
    /// When the last one was sent.
    asked_at: Option<Duration>,
    /// When the first of those that failed in a row was sent.
    failing: Option<Duration>,
    /// How long the last good ones took.
    took: VecDeque<Duration>,
}

impl Pinging {
    /// Returns when the next ping is due, which without any wish is every so often.
    pub fn due(&self, every: Duration, wish: Wish, now: Duration) -> Duration {
        let Some(asked_at) = self.asked_at else { return now };
        if wish.tripped {
            return now;
        }
        let mut pause = every;
        // What fails may just be starting anew.
        if wish.used || wish.doubted || self.failing.is_some() {
            pause = pause.min(WHILE_USED);
        }
        let turn = asked_at + pause;
        match self.failing {
            // The one that decides is not late because of those before it.
            Some(first) if asked_at < first + CONFIRMATION => turn.min(first + CONFIRMATION),
            Some(_) => asked_at + every,
            None => turn,
        }
    }

    /// Whether a ping that is sent now and answered within `timeout` may decide, and so is to open a connection of its
    /// own: those that are kept may be all that is broken.
    pub fn may_decide(&self, timeout: Duration, now: Duration) -> bool {
        self.failing
            .is_some_and(|first| now + timeout >= first + CONFIRMATION)
    }

    /// Notes that a ping is sent.
    pub fn sent(&mut self, now: Duration) {
        self.asked_at = Some(now);
    }

    /// Notes what the last ping brought, and how long that took. One that tells nothing of health is none.
    pub fn ended(&mut self, observation: Option<&Observation>, took: Duration) {
        match observation {
            Some(Observation::Good) => {
                // The first answer after an outage took as long as packets took that were sent again, and not what this
                // mirror usually needs.
                if self.failing.take().is_some() {
                    return;
                }
                if self.took.len() == REMEMBERED {
                    self.took.pop_front();
                }
                self.took.push_back(took);
            }
            Some(Observation::Bad(..)) => self.failing = self.failing.or(self.asked_at),
            None => self.failing = None,
        }
    }

    /// Whether the last ping failed.
    pub const fn fails(&self) -> bool {
        self.failing.is_some()
    }

    /// Returns how long a ping may take before the mirror is suspected; never longer than `timeout`.
    pub fn patience(&self, timeout: Duration) -> Duration {
        let patience = if self.took.len() < LITTLE {
            AT_FIRST
        } else {
            // The slowest and the ones before it, without sorting all.
            let mut slowest = [Duration::ZERO; EXCEPTIONS + 1];
            for took in &self.took {
                let mut took = *took;
                for slot in &mut slowest {
                    if took > *slot {
                        std::mem::swap(slot, &mut took);
                    }
                }
            }
            slowest[EXCEPTIONS] * MULTIPLE
        };
        patience.max(SHORTEST).min(timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::health::Fault;

    const EVERY: Duration = Duration::from_secs(5);
    const NONE: Wish = Wish {
        used: false,
        doubted: false,
        tripped: false,
    };
    const USED: Wish = Wish { used: true, ..NONE };
    const BAD: Observation = Observation::Bad(Fault::Timeout, None);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Pings that were answered, each after so many milliseconds.
    fn answered(times: impl IntoIterator<Item = u64>, at: Duration) -> Pinging {
        let mut pinging = Pinging::default();
        for took in times {
            pinging.sent(at);
            pinging.ended(Some(&Observation::Good), millis(took));
        }
        pinging
    }

    #[test]
    fn a_mirror_is_pinged_rarely_and_as_often_as_it_is_used() {
        let at = Duration::from_secs(100);
        assert_eq!(Pinging::default().due(EVERY, NONE, at), at);
        let pinging = answered([1], at);
        for (wish, pause) in [
            (NONE, EVERY),
            (USED, WHILE_USED),
            (
                Wish {
                    doubted: true,
                    ..NONE
                },
                WHILE_USED,
            ),
        ] {
            assert_eq!(pinging.due(EVERY, wish, at), at + pause, "{wish:?}");
        }
        let tripped = Wish {
            tripped: true,
            ..NONE
        };
        assert_eq!(pinging.due(EVERY, tripped, at + millis(7)), at + millis(7));
    }

    #[test]
    fn a_failure_is_looked_into_soon_and_decided_in_time_and_in_another_way() {
        let at = Duration::from_secs(100);
        let mut pinging = answered([1], at);
        pinging.sent(at);
        pinging.ended(Some(&BAD), millis(1));
        assert!(pinging.fails());
        assert_eq!(pinging.due(EVERY, NONE, at), at + WHILE_USED);
        let second = Duration::from_secs(1);
        assert!(!pinging.may_decide(second, at + millis(499)));
        assert!(
            pinging.may_decide(second, at + millis(500)),
            "it may come after its time"
        );
        assert!(pinging.may_decide(second, at + CONFIRMATION));
        let later = at + millis(1400);
        pinging.sent(later);
        pinging.ended(Some(&BAD), millis(1));
        assert_eq!(pinging.due(EVERY, USED, later), at + CONFIRMATION);
        // Once it is known there is no hurry.
        let last = at + CONFIRMATION;
        pinging.sent(last);
        pinging.ended(Some(&BAD), millis(1));
        assert_eq!(pinging.due(EVERY, NONE, last), last + EVERY);
        pinging.ended(Some(&Observation::Good), millis(1));
        assert!(!pinging.fails());
    }

    #[test]
    fn patience_follows_what_the_mirror_usually_needs() {
        let at = Duration::from_secs(100);
        let second = Duration::from_secs(1);
        assert_eq!(Pinging::default().patience(second), AT_FIRST);
        assert_eq!(answered([1; 50], at).patience(second), SHORTEST);
        assert_eq!(answered([150; 50], at).patience(second), millis(300));
        assert_eq!(answered([800; 50], at).patience(second), second);
        // One hiccup is an exception, two are usual.
        let mut hiccups = vec![10; 60];
        hiccups[3] = 400;
        assert_eq!(answered(hiccups.clone(), at).patience(second), SHORTEST);
        hiccups[40] = 300;
        assert_eq!(answered(hiccups.clone(), at).patience(second), millis(600));
        // What ends an outage says nothing of what is usual.
        let mut outages = answered([1; 50], at);
        for _ in 0..3 {
            outages.sent(at);
            outages.ended(Some(&BAD), second);
            outages.sent(at);
            outages.ended(Some(&Observation::Good), second);
        }
        assert_eq!(outages.patience(second), SHORTEST);
        // And what was long ago is not usual any more.
        hiccups.extend([10; 100]);
        assert_eq!(answered(hiccups, at).patience(second), SHORTEST);
    }
}
