//! What one replica believes of a mirror: the shared health, and what it saw itself.
//!
//! While the shared state is fresh it is believed, and the replica's own pings only ever worsen it,
//! until a newer shared state arrives. While it is stale, the replica believes nothing but its own
//! pings, and no proof from before the first of them that was good. A look for one image that failed
//! may be that image's fault: it is a reason to ping the mirror, and counts for nothing else.

use std::time::Duration;

use super::{
    health::{Health, Machine, Observation, State, Transition},
    mirror::HealthSettings,
    time::Timestamp,
};

/// What to decide by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub health: Health,
    /// The shared state is too old: `health` is the replica's own.
    pub stale: bool,
}

/// Whether a shared state is too old, given how long ago this replica saw a sign of life of who keeps
/// it. None seen yet is too old; so is whatever another machine's clock says.
pub fn is_stale(seen_ago: Option<Duration>, stale_after: Duration) -> bool {
    seen_ago.is_none_or(|ago| ago > stale_after)
}

/// One replica's knowledge of one mirror.
#[derive(Clone, Debug)]
pub struct Witness {
    shared: Health,
    stale: bool,
    /// Goes on from the shared health while that is believed, from nothing while it is stale.
    own: Machine,
    /// A look for an image failed, and no good ping has come since.
    doubted: bool,
    /// Proofs older than this are void whatever is shared: the mirror is another one since.
    moved_at: Timestamp,
    settings: HealthSettings,
}

impl Witness {
    /// Returns a witness who has seen nothing, and whom nobody told anything.
    pub fn new(settings: HealthSettings, now: Timestamp) -> Self {
        Self {
            shared: Health::unknown(now),
            stale: true,
            own: Machine::new(settings, now),
            doubted: false,
            moved_at: Timestamp::default(),
            settings,
        }
    }

    /// Takes in new thresholds.
    pub fn configure(&mut self, settings: HealthSettings) {
        self.settings = settings;
        self.own.configure(settings);
    }

    /// Takes in what is shared. Something new ends the say of older own observations.
    pub fn told(&mut self, shared: Health, now: Timestamp) {
        if shared != self.shared {
            self.shared = shared;
            if !self.stale {
                self.forget(now);
            }
        }
    }

    /// Takes in that the mirror is reached by another way now: what was proven is void.
    pub fn moved(&mut self, now: Timestamp) {
        self.moved_at = now;
        self.forget(now);
    }

    /// Takes in whether the shared state is too old to be believed. Either way own observations
    /// begin anew: they belong to what was believed before.
    pub fn set_stale(&mut self, stale: bool, now: Timestamp) {
        if stale != self.stale {
            self.stale = stale;
            self.forget(now);
        }
    }

    /// Takes in that a look for an image failed in a way that every image may meet.
    pub fn doubt(&mut self) {
        self.doubted = true;
    }

    /// Takes in what a ping of this replica brought.
    pub fn pinged(&mut self, observation: Observation, now: Timestamp) -> Transition {
        self.doubted &= observation != Observation::Good;
        self.own.observe(observation, now)
    }

    /// Whether the replica should ping the mirror itself: nobody else does, or it has reason to see
    /// otherwise than who does.
    pub fn wants_pings(&self) -> bool {
        let otherwise = self.doubted || self.own.health().state != State::Healthy;
        self.stale || (self.shared.state == State::Healthy && otherwise)
    }

    /// Returns what to decide by.
    pub fn view(&self) -> View {
        let mut health = if self.stale || self.shared.state == State::Healthy {
            self.own.health().clone()
        } else {
            self.shared.clone()
        };
        if !self.stale {
            health.proven_since = health.proven_since.max(self.shared.proven_since);
        }
        health.proven_since = health.proven_since.max(self.moved_at);
        View {
            health,
            stale: self.stale,
        }
    }

    /// Forgets what was seen here.
    fn forget(&mut self, now: Timestamp) {
        self.doubted = false;
        self.own = if self.stale {
            Machine::new(self.settings, now)
        } else {
            Machine::resume(self.settings, self.shared.clone())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::health::Fault;

    const GOOD: Observation = Observation::Good;
    const BAD: Observation = Observation::Bad(Fault::Timeout, None);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn health(state: State, proven_since: u64) -> Health {
        Health {
            state,
            fault: (state == State::Unhealthy).then_some(Fault::Refused),
            cause: None,
            since: at(proven_since),
            proven_since: at(proven_since),
        }
    }

    /// A witness who believes the shared state, with thresholds of two.
    fn fresh(shared: Health) -> Witness {
        let mut witness = Witness::new(HealthSettings::default(), at(10));
        witness.told(shared, at(10));
        witness.set_stale(false, at(10));
        witness
    }

    #[track_caller]
    fn check(witness: &Witness, state: State, proven_since: u64, stale: bool) {
        let View { health, stale: is } = witness.view();
        assert_eq!(
            (health.state, health.proven_since, is),
            (state, at(proven_since), stale)
        );
    }

    #[test]
    fn a_state_is_stale_until_a_sign_of_life_was_seen_and_after_its_bound() {
        let bound = Duration::from_secs(30);
        assert!(is_stale(None, bound));
        assert!(!is_stale(Some(Duration::ZERO), bound));
        assert!(!is_stale(Some(bound), bound));
        assert!(is_stale(Some(bound + Duration::from_millis(1)), bound));
    }

    #[test]
    fn nothing_is_believed_at_first() {
        let mut witness = Witness::new(HealthSettings::default(), at(10));
        witness.told(health(State::Healthy, 1), at(10));
        check(&witness, State::Unknown, 10, true);
        assert!(witness.wants_pings());
    }

    #[test]
    fn what_is_shared_is_believed_while_fresh() {
        let witness = fresh(health(State::Healthy, 1));
        check(&witness, State::Healthy, 1, false);
        assert!(!witness.wants_pings());
        check(&fresh(health(State::Unhealthy, 1)), State::Unhealthy, 1, false);
    }

    #[test]
    fn own_bad_pings_worsen_what_is_shared_once_confirmed() {
        let mut witness = fresh(health(State::Healthy, 1));
        witness.pinged(BAD, at(20));
        check(&witness, State::Healthy, 1, false);
        witness.pinged(BAD, at(21));
        let view = witness.view();
        assert_eq!(
            (view.health.state, view.health.fault),
            (State::Unhealthy, Some(Fault::Timeout))
        );
        assert!(witness.wants_pings());
    }

    #[test]
    fn looks_that_fail_only_ask_for_a_ping_however_many_they_are() {
        let mut witness = fresh(health(State::Healthy, 1));
        for _ in 0..100 {
            witness.doubt();
        }
        check(&witness, State::Healthy, 1, false);
        assert!(witness.wants_pings());
        // The mirror is well; so it was the image.
        witness.pinged(GOOD, at(21));
        check(&witness, State::Healthy, 1, false);
        assert!(!witness.wants_pings());
        // One hiccup, and hours later another.
        for hiccup in [30, 20_000] {
            witness.doubt();
            witness.pinged(BAD, at(hiccup));
            check(&witness, State::Healthy, 1, false);
            assert!(witness.wants_pings(), "until it is known");
            witness.pinged(GOOD, at(hiccup + 2));
        }
        check(&witness, State::Healthy, 1, false);
        // What is shared as bad is pinged by who shares it.
        let mut witness = fresh(health(State::Unhealthy, 1));
        witness.doubt();
        assert!(!witness.wants_pings());
    }

    #[test]
    fn own_good_pings_never_better_what_is_shared() {
        let mut witness = fresh(health(State::Unhealthy, 1));
        witness.pinged(GOOD, at(20));
        witness.pinged(GOOD, at(21));
        check(&witness, State::Unhealthy, 1, false);
        assert!(!witness.wants_pings());
        let mut witness = fresh(health(State::Healthy, 1));
        witness.pinged(GOOD, at(20));
        check(&witness, State::Healthy, 1, false);
    }

    #[test]
    fn what_was_seen_away_is_back_without_its_proofs() {
        let mut witness = fresh(health(State::Healthy, 1));
        for (observation, time) in [(BAD, 20), (BAD, 21), (GOOD, 22), (GOOD, 23)] {
            witness.pinged(observation, at(time));
        }
        check(&witness, State::Healthy, 23, false);
        assert!(!witness.wants_pings());
    }

    #[test]
    fn a_newer_shared_state_ends_the_say_of_own_observations_and_the_same_does_not() {
        let mut witness = fresh(health(State::Healthy, 1));
        witness.pinged(BAD, at(20));
        witness.pinged(BAD, at(21));
        witness.told(health(State::Healthy, 1), at(22));
        check(&witness, State::Unhealthy, 1, false);
        witness.told(health(State::Healthy, 22), at(23));
        check(&witness, State::Healthy, 22, false);
        assert!(!witness.wants_pings());
    }

    #[test]
    fn while_stale_only_own_probes_count_and_start_proofs_anew() {
        let mut witness = fresh(health(State::Healthy, 1));
        witness.set_stale(true, at(50));
        check(&witness, State::Unknown, 50, true);
        witness.pinged(GOOD, at(52));
        check(&witness, State::Healthy, 52, true);
        // What is shared is not even looked at, whatever it says.
        witness.told(health(State::Unhealthy, 3), at(53));
        check(&witness, State::Healthy, 52, true);
        witness.pinged(BAD, at(54));
        witness.pinged(BAD, at(55));
        check(&witness, State::Unhealthy, 52, true);
        // The sign of life is back: the companion knows better, for good or ill.
        witness.set_stale(false, at(60));
        check(&witness, State::Unhealthy, 3, false);
        witness.told(health(State::Healthy, 61), at(62));
        check(&witness, State::Healthy, 61, false);
    }

    #[test]
    fn a_mirror_that_moved_keeps_its_health_and_loses_its_proofs() {
        let mut witness = fresh(health(State::Healthy, 1));
        witness.moved(at(30));
        check(&witness, State::Healthy, 30, false);
        witness.told(health(State::Healthy, 31), at(32));
        check(&witness, State::Healthy, 31, false);
    }
}
