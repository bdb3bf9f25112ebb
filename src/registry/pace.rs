//! Spacing requests out, and waiting as long as a registry asks for.

use std::{sync::Mutex, time::Duration};

use tokio::time::{Instant, sleep_until};

/// Spaces requests out: at most `rate` a second, none bunched together.
#[derive(Debug)]
pub struct Pace {
    interval: Duration,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// Returns a pace of that many requests a second; none is unbounded.
    pub fn new(rate: Option<u32>) -> Self {
        Self {
            interval: rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.max(1)),
            next: Mutex::default(),
        }
    }

    /// Waits for this request's turn.
    pub async fn turn(&self) {
        self.turn_within(Duration::MAX).await;
    }

    /// Waits for this request's turn if it comes within `longest`. Returns whether it came; if not,
    /// nobody waited.
    pub async fn turn_within(&self, longest: Duration) -> bool {
        let now = Instant::now();
        let mine = {
            let mut next = self
                .next
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let mine = next.unwrap_or(now).max(now);
            if mine - now > longest {
                return false;
            }
            *next = Some(mine + self.interval);
            mine
        };
        if mine > now {
            sleep_until(mine).await;
        }
        true
    }

    /// Lets nobody go on before `until`: the mirror asked to wait.
    pub fn pause(&self, until: Instant) {
        let mut next = self
            .next
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *next = Some(next.map_or(until, |next| next.max(until)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pace_spaces_requests_out_and_refuses_turns_that_are_too_far() {
        let pace = Pace::new(Some(2));
        let started = Instant::now();
        assert!(pace.turn_within(Duration::ZERO).await);
        assert!(!pace.turn_within(Duration::from_millis(499)).await);
        assert!(pace.turn_within(Duration::from_millis(500)).await);
        assert_eq!(started.elapsed(), Duration::from_millis(500));
        pace.turn().await;
        assert_eq!(started.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_holds_everybody() {
        let pace = Pace::new(None);
        let started = Instant::now();
        pace.pause(started + Duration::from_secs(7));
        pace.turn().await;
        assert_eq!(started.elapsed(), Duration::from_secs(7));
    }
}
