//! How much goes on at once with one registry, and who waits when it asks to be left alone.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// How long nothing must be asked to wait before one more may go on at once.
const RISE: Duration = Duration::from_secs(30);

/// A bound on what goes on at once, which is halved when the registry is asked too much, and rises slowly.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    most: usize,
    limit: usize,
    under_way: usize,
    /// Nobody goes on before.
    paused_until: Option<Instant>,
    changed: Instant,
}

/// The right to go on. It ends when dropped.
#[derive(Debug)]
pub struct Permit<'g>(&'g Gate);

impl Gate {
    /// Returns a gate for so many at once.
    pub fn new(most: usize) -> Self {
        Self {
            state: Mutex::new(State {
                most: most.max(1),
                limit: most.max(1),
                under_way: 0,
                paused_until: None,
                changed: Instant::now(),
            }),
            freed: Notify::new(),
        }
    }

    /// Waits until one more may go on.
    pub async fn enter(&self) -> Permit<'_> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on nothing that is freed is missed.
            freed.as_mut().enable();
            let paused_until = {
                let mut state = self.state();
                let now = Instant::now();
                if state.limit < state.most && now >= state.changed + RISE {
                    state.limit += 1;
                    state.changed = now;
                }
                match state.paused_until.filter(|until| now < *until) {
                    None if state.under_way < state.limit => {
                        state.under_way += 1;
                        return Permit(self);
                    }
                    paused_until => paused_until,
                }
            };
            match paused_until {
                Some(until) => sleep_until(until).await,
                None => freed.await,
            }
        }
    }

    /// Takes in that the registry asked to be asked less: nobody goes on for a while, and fewer at once then.
    pub fn limited(&self, wait: Duration) {
        let mut state = self.state();
        let now = Instant::now();
        // What was under way together tells but once.
        if state.paused_until.is_none_or(|until| until <= now) {
            state.limit = (state.limit / 2).max(1);
            state.changed = now;
        }
        state.paused_until = state.paused_until.max(Some(now + wait));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.state().under_way -= 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_more_go_on_than_may_and_fewer_after_a_limit() {
        let gate = Gate::new(4);
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(gate.enter().now_or_never().unwrap());
        }
        assert!(gate.enter().now_or_never().is_none());
        held.pop();
        held.push(gate.enter().now_or_never().unwrap());
        // Two that were under way together are told the same.
        gate.limited(Duration::from_secs(1));
        gate.limited(Duration::from_secs(2));
        held.clear();
        let started = Instant::now();
        held.push(gate.enter().await);
        assert_eq!(started.elapsed(), Duration::from_secs(2));
        held.push(gate.enter().now_or_never().unwrap());
        assert!(gate.enter().now_or_never().is_none(), "half as many");
        tokio::time::advance(RISE).await;
        held.push(gate.enter().now_or_never().unwrap());
        assert!(gate.enter().now_or_never().is_none(), "and one more");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_goes_on_when_one_ends() {
        let gate = Gate::new(1);
        let first = gate.enter().await;
        let (second, ()) = tokio::join!(gate.enter(), async { drop(first) });
        drop(second);
    }
}
