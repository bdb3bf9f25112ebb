//! A rate that follows how well it goes: faster while answers come quickly, slower when they do not.

use std::time::Duration;

/// An answer within this time is a reason to go faster.
const QUICK: Duration = Duration::from_millis(250);

/// An answer after this time is a reason to go slower.
const SLOW: Duration = Duration::from_secs(1);

/// Answers within this time of a slowing down were asked for before it, and are no reason for another.
const SETTLING: Duration = Duration::from_secs(1);

/// What was not used is made up for, up to this.
const CATCH_UP: Duration = Duration::from_millis(100);

/// Bounds how often something may be done. Times are those of a monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct AdaptiveRate {
    /// The shortest and the longest interval.
    bounds: (Duration, Duration),
    interval: Duration,
    next: Duration,
    settled: Duration,
}

impl AdaptiveRate {
    /// Returns a rate that begins with `first` a second and stays within the others.
    pub fn new(slowest: u32, first: u32, fastest: u32) -> Self {
        let interval = |rate: u32| Duration::from_secs(1) / rate.max(1);
        Self {
            bounds: (interval(fastest), interval(slowest)),
            interval: interval(first),
            next: Duration::ZERO,
            settled: Duration::ZERO,
        }
    }

    /// Returns how long to wait for the next turn.
    pub const fn wait(&self, now: Duration) -> Duration {
        self.next.saturating_sub(now)
    }

    /// Takes a turn.
    pub fn take(&mut self, now: Duration) {
        self.next = self.next.max(now.saturating_sub(CATCH_UP)) + self.interval;
    }

    /// Takes in how long an answer took, and whether it was one of a server that is well.
    pub fn answered(&mut self, took: Duration, well: bool, now: Duration) {
        let (shortest, longest) = self.bounds;
        if !well || took >= SLOW {
            if now >= self.settled {
                self.interval = (self.interval * 2).min(longest);
                self.settled = now + SETTLING;
            }
        } else if took < QUICK {
            self.interval = (self.interval * 63 / 64).max(shortest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICKLY: Duration = Duration::from_millis(5);

    /// How often something may be done from `from` on for ten seconds, each answered like that.
    fn done(rate: &mut AdaptiveRate, from: u64, took: Duration, well: bool) -> u32 {
        let mut now = Duration::from_secs(from);
        let end = now + Duration::from_secs(10);
        let mut done = 0;
        while now < end {
            let wait = rate.wait(now);
            if wait.is_zero() {
                rate.take(now);
                rate.answered(took, well, now);
                done += 1;
            }
            now += wait;
        }
        done
    }

    #[test]
    fn it_rises_while_all_is_well_and_falls_when_it_is_not() {
        let mut rate = AdaptiveRate::new(2, 20, 100);
        let rising = done(&mut rate, 100, QUICKLY, true);
        assert!((600..1000).contains(&rising), "{rising}");
        let fastest = done(&mut rate, 200, QUICKLY, true);
        assert!((990..=1030).contains(&fastest), "{fastest}");
        let falling = done(&mut rate, 300, QUICKLY, false);
        assert!((100..300).contains(&falling), "{falling}");
        let slowest = done(&mut rate, 400, Duration::from_secs(2), true);
        assert!((20..=21).contains(&slowest), "{slowest}");
        let again = done(&mut rate, 500, QUICKLY, true);
        assert!(again > slowest, "{again}");
    }

    #[test]
    fn many_answers_of_one_hiccup_slow_it_down_once() {
        let mut rate = AdaptiveRate::new(2, 20, 100);
        let now = Duration::from_secs(100);
        for _ in 0..8 {
            rate.answered(QUICKLY, false, now);
        }
        rate.take(now);
        assert_eq!(rate.wait(now), Duration::ZERO);
        let before = Duration::from_millis(99_900);
        assert_eq!(rate.wait(before), Duration::from_millis(100));
    }
}
