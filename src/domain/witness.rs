//! What one replica believes of a mirror: the shared health, and what it sees itself.
//!
//! Every replica pings every mirror. While the shared state is fresh it is believed, and own pings only ever worsen
//! it: a ping that is out for longer than usual, or that failed, is a suspicion; several over some time are a doubt,
//! and the mirror counts as unhealthy here. Both end with the next good ping, a doubt once known images were found
//! where they were. A doubt also ends when who keeps the shared state has seen the mirror well *since*: then the way
//! from here is broken and not the mirror, and this replica has no say until it has seen the mirror well again.
//!
//! While the shared state is stale, the replica believes nothing but its own pings, and no proof from before the
//! first of them that was good. A look for one image that failed may be that image's fault: it is a reason to ping
//! the mirror, and counts for nothing else.

use std::time::Duration;

use super::{
    health::{Health, Machine, Observation, Ping, State},
    mirror::HealthSettings,
    time::Timestamp,
};

/// What to decide by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub health: Health,
    /// The shared state is too old: `health` is the replica's own.
    pub stale: bool,
    /// Whether the mirror still answers is being asked.
    pub suspected: bool,
}

/// Whether a shared state is too old, given how long ago this replica saw a sign of life of who keeps
/// it. None seen yet is too old; so is whatever another machine's clock says.
pub fn is_stale(seen_ago: Option<Duration>, stale_after: Duration) -> bool {
    seen_ago.is_none_or(|ago| ago > stale_after)
}

/// What an own observation leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What is believed stays as it was.
    Same,
    /// What is believed changed.
    Changed,
    /// The mirror answers again: known images are to be looked at, and [`Witness::returned`] told.
    Returned,
}

/// One replica's knowledge of one mirror.
#[derive(Clone, Debug)]
pub struct Witness {
    shared: Health,
    stale: bool,
    /// Goes on from the shared health while that is believed, from nothing while it is stale.
    own: Machine,
    /// The mirror answers again, and known images are being looked at.
    returning: bool,
    /// A ping of this replica's own was good, so it has a way to the mirror, and a say.
    has_voice: bool,
    /// The last own ping was out for longer than usual, or failed.
    suspected: bool,
    /// When who keeps the shared state gave its first sign of life since this replica sees otherwise, by their clock.
    first_sign: Option<Timestamp>,
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
            returning: false,
            has_voice: false,
            suspected: false,
            first_sign: None,
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

    /// Takes in a sign of life of who keeps the shared state, and when they asked the mirror last that was well; both by
    /// their clock, which is never compared with this one. What they asked after the first sign of life since this
    /// replica sees otherwise, they asked after that. Returns whether that ends this replica's say.
    pub fn well_seen(&mut self, asked_at: Timestamp, sign: Timestamp, now: Timestamp) -> bool {
        if self.stale || !self.sees_otherwise() {
            self.first_sign = None;
            return false;
        }
        match self.first_sign {
            // Of another leader, or of a clock that was set back, when it is later than this one.
            Some(first) if sign >= first => {
                let since = asked_at > first;
                if since {
                    self.has_voice = false;
                    self.forget(now);
                }
                since
            }
            _ => {
                self.first_sign = Some(sign);
                false
            }
        }
    }

    /// Takes in that the mirror is reached by another way now: what was proven is void.
    pub fn moved(&mut self, now: Timestamp) {
        self.moved_at = now;
        self.has_voice = false;
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

    /// Takes in that a ping is out for longer than usual.
    pub const fn suspect(&mut self) {
        self.suspected = true;
    }

    /// Takes in what a ping of this replica brought, which was sent at `asked_at`.
    pub fn pinged(&mut self, ping: Ping, asked_at: Timestamp, now: Timestamp) -> Outcome {
        let Ping { observation, speaks } = ping;
        let good = observation == Observation::Good;
        self.has_voice |= speaks && good;
        let heard = speaks && (self.stale || self.has_voice);
        if good && self.comes_back() {
            // Until it is known whether its images are there nothing changes.
            self.own.answered();
            self.returning = true;
            return Outcome::Returned;
        }
        self.returning = false;
        self.suspected = heard && !good;
        if good || !heard {
            self.first_sign = None;
        }
        if good || heard {
            return self.observed(observation, asked_at, now);
        }
        self.own.answered();
        Outcome::Same
    }

    /// Whether a good ping brings a mirror back that failed. A verdict of this replica while nobody else counts takes
    /// more, and voids its proofs.
    fn comes_back(&self) -> bool {
        let (failed, healthy) = (self.returning || self.own.fails(), State::Healthy);
        if self.stale {
            failed && self.own.health().state == healthy
        } else {
            self.shared.state == healthy && (failed || self.own.health().state == State::Unhealthy)
        }
    }

    fn observed(&mut self, observation: Observation, asked_at: Timestamp, now: Timestamp) -> Outcome {
        if self.own.observe(observation, asked_at, now) {
            Outcome::Changed
        } else {
            Outcome::Same
        }
    }

    /// Takes in whether known images are where they were, after the mirror may have been away. Where one is not, no proof
    /// from before counts. Returns whether the mirror is back by that.
    pub fn returned(&mut self, all_there: bool, now: Timestamp) -> bool {
        if !all_there {
            self.moved_at = now;
        }
        if !self.returning {
            return false;
        }
        self.returning = false;
        self.suspected = false;
        if !self.stale {
            self.forget(now);
        }
        true
    }

    /// Whether own pings are all that is known, or speak against what is shared.
    pub fn is_alone(&self) -> bool {
        self.stale || self.sees_otherwise()
    }

    /// Whether this replica has seen the mirror well, since it started and since it lost its say.
    pub const fn has_voice(&self) -> bool {
        self.has_voice
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
            suspected: self.suspected && (self.stale || self.has_voice) && health.state == State::Healthy,
            health,
            stale: self.stale,
        }
    }

    /// Whether this replica, who has a say, sees a mirror fail that is shared as healthy.
    fn sees_otherwise(&self) -> bool {
        self.shared.state == State::Healthy
            && self.has_voice
            && (self.suspected || self.own.health().state != State::Healthy)
    }

    /// Forgets what was seen here, but for whether there is a way to the mirror.
    fn forget(&mut self, now: Timestamp) {
        self.returning = false;
        self.first_sign = None;
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
            refused_since: None,
            proven_since: at(proven_since),
        }
    }

    /// A witness who believes the shared state, with thresholds of two, and who has seen the mirror.
    fn fresh(shared: Health) -> Witness {
        let mut witness = Witness::new(HealthSettings::default(), at(10));
        witness.told(shared, at(10));
        witness.set_stale(false, at(10));
        pinged(&mut witness, GOOD, 10);
        witness
    }

    fn pinged(witness: &mut Witness, observation: Observation, seconds: u64) -> Outcome {
        let speaks = true;
        witness.pinged(Ping { observation, speaks }, at(seconds), at(seconds))
    }

    #[track_caller]
    fn check(witness: &Witness, state: State, proven_since: u64, stale: bool) {
        let view = witness.view();
        assert_eq!(
            (view.health.state, view.health.proven_since, view.stale),
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
        assert!(witness.is_alone());
    }

    #[test]
    fn what_is_shared_is_believed_while_fresh() {
        let witness = fresh(health(State::Healthy, 1));
        check(&witness, State::Healthy, 1, false);
        assert!(!witness.is_alone());
        check(&fresh(health(State::Unhealthy, 1)), State::Unhealthy, 1, false);
    }

    #[test]
    fn one_bad_ping_is_a_suspicion_and_several_over_some_time_a_doubt() {
        let mut witness = fresh(health(State::Healthy, 1));
        assert_eq!(pinged(&mut witness, BAD, 20), Outcome::Same);
        check(&witness, State::Healthy, 1, false);
        assert!(witness.view().suspected);
        assert_eq!(pinged(&mut witness, BAD, 21), Outcome::Same, "too soon");
        assert_eq!(pinged(&mut witness, BAD, 22), Outcome::Changed);
        let view = witness.view();
        assert_eq!(
            (view.health.state, view.health.fault, view.suspected),
            (State::Unhealthy, Some(Fault::Timeout), false)
        );
        assert!(witness.is_alone());
    }

    #[test]
    fn a_suspicion_ends_with_any_answer_and_voids_nothing() {
        let mut witness = fresh(health(State::Healthy, 1));
        let limited = || Ping {
            observation: BAD,
            speaks: false,
        };
        for answer in [Ping::good(), limited()] {
            witness.suspect();
            assert!(witness.view().suspected);
            assert_eq!(witness.pinged(answer, at(20), at(20)), Outcome::Same);
            assert!(!witness.view().suspected);
            check(&witness, State::Healthy, 1, false);
        }
        // Nobody is suspected who is known to be away.
        let mut witness = fresh(health(State::Unhealthy, 1));
        witness.suspect();
        assert!(!witness.view().suspected);
    }

    #[test]
    fn who_never_saw_the_mirror_or_is_refused_has_no_say() {
        let mut witness = Witness::new(HealthSettings::default(), at(10));
        witness.told(health(State::Healthy, 1), at(10));
        witness.set_stale(false, at(10));
        witness.suspect();
        for second in 20..30 {
            assert_eq!(pinged(&mut witness, BAD, second), Outcome::Same);
        }
        check(&witness, State::Healthy, 1, false);
        assert!(!witness.view().suspected && !witness.has_voice());
        let refused = || Ping {
            observation: BAD,
            speaks: false,
        };
        let mut witness = fresh(health(State::Healthy, 1));
        for second in 20..30 {
            assert_eq!(witness.pinged(refused(), at(second), at(second)), Outcome::Same);
            assert!(!witness.view().suspected);
        }
        check(&witness, State::Healthy, 1, false);
        // Alive, but closed: that gives no say either.
        let mut witness = Witness::new(HealthSettings::default(), at(10));
        witness.told(health(State::Healthy, 1), at(10));
        witness.set_stale(false, at(10));
        let alive = Ping {
            observation: GOOD,
            speaks: false,
        };
        witness.pinged(alive, at(11), at(11));
        assert!(!witness.has_voice());
    }

    #[test]
    fn own_good_pings_never_better_what_is_shared() {
        let mut witness = fresh(health(State::Unhealthy, 1));
        pinged(&mut witness, GOOD, 20);
        pinged(&mut witness, GOOD, 21);
        check(&witness, State::Unhealthy, 1, false);
        assert!(!witness.is_alone());
    }

    #[test]
    fn who_comes_back_keeps_its_proofs_if_its_images_are_there() {
        for (all_there, proven_since) in [(true, 1), (false, 25)] {
            let mut witness = fresh(health(State::Healthy, 1));
            pinged(&mut witness, BAD, 20);
            pinged(&mut witness, BAD, 22);
            check(&witness, State::Unhealthy, 1, false);
            assert_eq!(pinged(&mut witness, GOOD, 24), Outcome::Returned);
            check(&witness, State::Unhealthy, 1, false);
            witness.returned(all_there, at(25));
            check(&witness, State::Healthy, proven_since, false);
            assert!(!witness.is_alone());
        }
        // So does one that was suspected alone, while nobody else counts, too.
        for stale in [false, true] {
            let mut witness = fresh(health(State::Healthy, 1));
            witness.set_stale(stale, at(10));
            pinged(&mut witness, GOOD, 11);
            pinged(&mut witness, BAD, 20);
            assert_eq!(pinged(&mut witness, GOOD, 21), Outcome::Returned);
            assert!(witness.view().suspected);
            witness.returned(false, at(22));
            check(&witness, State::Healthy, 22, stale);
            assert!(!witness.view().suspected);
        }
        // One that goes again meanwhile is away.
        let mut witness = fresh(health(State::Healthy, 1));
        for (observation, time) in [(BAD, 20), (BAD, 22), (GOOD, 24), (BAD, 25)] {
            pinged(&mut witness, observation, time);
        }
        witness.returned(true, at(26));
        check(&witness, State::Unhealthy, 1, false);
    }

    #[test]
    fn who_keeps_the_state_and_sees_the_mirror_well_since_ends_a_doubt_and_the_say() {
        let mut witness = fresh(health(State::Healthy, 1));
        pinged(&mut witness, BAD, 20);
        pinged(&mut witness, BAD, 22);
        // Its clock is behind. The first may tell of a look before the mirror went, and so may what was asked before
        // it was given.
        assert!(!witness.well_seen(at(3), at(5), at(23)));
        assert!(!witness.well_seen(at(4), at(10), at(28)), "not asked since");
        check(&witness, State::Unhealthy, 1, false);
        assert!(witness.well_seen(at(9), at(15), at(33)));
        check(&witness, State::Healthy, 1, false);
        assert!(!witness.has_voice());
        pinged(&mut witness, BAD, 34);
        pinged(&mut witness, BAD, 36);
        check(&witness, State::Healthy, 1, false);
        // It is heard again once it has seen the mirror itself.
        pinged(&mut witness, GOOD, 40);
        assert!(witness.has_voice());
        pinged(&mut witness, BAD, 41);
        assert!(witness.view().suspected);
        // Seeing it well again begins the count anew.
        witness.well_seen(at(10), at(12), at(42));
        pinged(&mut witness, GOOD, 43);
        witness.returned(true, at(43));
        pinged(&mut witness, BAD, 44);
        assert!(!witness.well_seen(at(20), at(21), at(45)));
        // Another leader, whose clock is an hour behind that of the one before.
        assert!(!witness.well_seen(at(2), at(3), at(46)));
        assert!(witness.well_seen(at(4), at(5), at(47)));
    }

    #[test]
    fn who_keeps_answering_without_its_images_being_seen_is_away_and_overruled_all_the_same() {
        let mut witness = fresh(health(State::Healthy, 1));
        pinged(&mut witness, BAD, 20);
        pinged(&mut witness, BAD, 22);
        for second in [24, 26] {
            assert_eq!(pinged(&mut witness, GOOD, second), Outcome::Returned);
            check(&witness, State::Unhealthy, 1, false);
            witness.well_seen(at(second - 1), at(second), at(second));
        }
        check(&witness, State::Healthy, 1, false);
    }

    #[test]
    fn an_answer_that_does_not_speak_ends_what_failed_before_it() {
        let mut witness = fresh(health(State::Healthy, 1));
        let limited = Ping {
            observation: BAD,
            speaks: false,
        };
        pinged(&mut witness, BAD, 20);
        witness.pinged(limited, at(21), at(21));
        pinged(&mut witness, BAD, 100);
        check(&witness, State::Healthy, 1, false);
        // So does a good one whose images could not be seen.
        pinged(&mut witness, GOOD, 101);
        pinged(&mut witness, BAD, 200);
        check(&witness, State::Healthy, 1, false);
    }

    #[test]
    fn images_that_are_gone_void_proofs_whatever_was_told_meanwhile() {
        let mut witness = fresh(health(State::Healthy, 1));
        pinged(&mut witness, BAD, 20);
        assert_eq!(pinged(&mut witness, GOOD, 21), Outcome::Returned);
        witness.told(health(State::Healthy, 2), at(22));
        assert!(!witness.returned(false, at(23)));
        check(&witness, State::Healthy, 23, false);
    }

    #[test]
    fn a_newer_shared_state_ends_the_say_of_own_observations_and_the_same_does_not() {
        let mut witness = fresh(health(State::Healthy, 1));
        pinged(&mut witness, BAD, 20);
        pinged(&mut witness, BAD, 22);
        witness.told(health(State::Healthy, 1), at(22));
        check(&witness, State::Unhealthy, 1, false);
        witness.told(health(State::Healthy, 22), at(23));
        check(&witness, State::Healthy, 22, false);
    }

    #[test]
    fn while_stale_only_own_probes_count_and_start_proofs_anew() {
        let mut witness = fresh(health(State::Healthy, 1));
        witness.set_stale(true, at(50));
        check(&witness, State::Unknown, 50, true);
        pinged(&mut witness, GOOD, 52);
        check(&witness, State::Healthy, 52, true);
        // What is shared is not even looked at, whatever it says.
        witness.told(health(State::Unhealthy, 3), at(53));
        check(&witness, State::Healthy, 52, true);
        pinged(&mut witness, BAD, 54);
        assert!(witness.view().suspected);
        pinged(&mut witness, BAD, 56);
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
        assert!(!witness.has_voice(), "of the other one it has seen nothing");
        witness.told(health(State::Healthy, 31), at(32));
        check(&witness, State::Healthy, 31, false);
    }
}
