//! Spacing requests out, and waiting as long as a registry asks for.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// Spaces requests out: at most `rate` a second, none bunched together.
#[derive(Debug)]
pub struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    interval: Duration,
    next: Option<Instant>,
}

/// Returns the time between two requests of that many a second; none at all if they are unbounded.
fn interval(rate: Option<u32>) -> Duration {
    rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.max(1))
}

impl Pace {
    /// Returns a pace of that many requests a second; none is unbounded.
    pub fn new(rate: Option<u32>) -> Self {
        Self(Mutex::new(State {
            interval: interval(rate),
            next: None,
        }))
    }

    /// Changes the rate for everybody who has no turn yet.
    pub fn set_rate(&self, rate: Option<u32>) {
        self.state().interval = interval(rate);
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
            let mut state = self.state();
            let mine = state.next.unwrap_or(now).max(now);
            if mine - now > longest {
                return false;
            }
            state.next = Some(mine + state.interval);
            mine
        };
        if mine > now {
            sleep_until(mine).await;
        }
        true
    }

    /// Lets nobody go on before `until`: the mirror asked to wait.
    pub fn pause(&self, until: Instant) {
        let mut state = self.state();
        state.next = Some(state.next.map_or(until, |next| next.max(until)));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    async fn another_rate_counts_from_the_next_turn_on() {
        let pace = Pace::new(Some(1));
        let started = Instant::now();
        pace.turn().await;
        pace.set_rate(Some(10));
        pace.turn().await;
        pace.turn().await;
        assert_eq!(started.elapsed(), Duration::from_millis(1100));
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
