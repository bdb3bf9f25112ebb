//! The health of one mirror: a small state machine fed by observations.
//!
//! `proven_since` is the heart of it: whatever was proven before that moment is void, because the
//! mirror was away (and may have come back empty) since. It moves when the mirror recovers, when
//! its endpoint changes, and when three different images that were known to be there are missing
//! in a row.

use std::{sync::Arc, time::Duration};

use super::{
    answer::{Ambiguity, Answer, Failure, Limit, Unreachable},
    image::{ImageKey, KeyRef},
    mirror::HealthSettings,
    time::Timestamp,
};

/// How long after the first question that was answered badly a mirror counts as unhealthy at the earliest: a process
/// that starts anew, or a moment without answers, is none.
pub const CONFIRMATION: Duration = Duration::from_millis(1500);

/// How many different known images must be missing in a row before every proof is void.
const MISSING_CANARIES: usize = 3;

/// How far ahead of the clock `proven_since` may be before the clock must have jumped back.
const CLOCK_JUMP: Duration = Duration::from_secs(5);

/// Whether a mirror may be written into Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    Unknown,
    Healthy,
    Unhealthy,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Unknown, Self::Healthy, Self::Unhealthy];

    /// Returns the state's name as users see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Healthy => "Healthy",
            Self::Unhealthy => "Unhealthy",
        }
    }
}

/// What went wrong with a mirror, or with a look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    Refused,
    Timeout,
    Dns,
    Tls,
    Reset,
    ServerError,
    RateLimited,
    /// An answer that no registry gives: HTML, another status, a redirect loop.
    NotARegistry,
    /// A blob did not arrive: the mirror hangs or breaks off while sending data.
    DataPath,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 9] = [
        Self::Refused,
        Self::Timeout,
        Self::Dns,
        Self::Tls,
        Self::Reset,
        Self::ServerError,
        Self::RateLimited,
        Self::NotARegistry,
        Self::DataPath,
    ];

    /// Returns the fault of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.as_str() == name)
    }

    /// Returns the fault's name as users see it: the reason of the `Healthy` condition.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "ConnectionRefused",
            Self::Timeout => "Timeout",
            Self::Dns => "NameNotFound",
            Self::Tls => "TLSHandshakeFailed",
            Self::Reset => "ConnectionBroken",
            Self::ServerError => "ServerError",
            Self::RateLimited => "RateLimited",
            Self::NotARegistry => "NotARegistry",
            Self::DataPath => "BlobNotReadable",
        }
    }
}

impl Observation {
    /// Returns what a ping tells. One that is refused for want of credentials, or of a token that nobody
    /// gives now or that is not asked for, means alive: images will be answered the same, and tell.
    pub fn of_ping(answer: &Result<(), Failure>) -> Self {
        let Err(failure) = answer else { return Self::Good };
        let fault = match failure {
            Failure::Unauthorized
            | Failure::Ambiguous(Ambiguity::Challenge(_))
            | Failure::RateLimited { of: Limit::Token, .. } => return Self::Good,
            Failure::Unreachable(why, _) => (*why).into(),
            Failure::ServerError(..) => Fault::ServerError,
            // How long it asks to wait is another time with each answer.
            Failure::RateLimited { .. } => return Self::Bad(Fault::RateLimited, None),
            Failure::Missing | Failure::Ambiguous(_) => Fault::NotARegistry,
        };
        Self::Bad(fault, Some(failure.to_string().into()))
    }
}

impl From<Unreachable> for Fault {
    fn from(why: Unreachable) -> Self {
        match why {
            Unreachable::Refused => Self::Refused,
            Unreachable::Timeout => Self::Timeout,
            Unreachable::Dns => Self::Dns,
            Unreachable::Tls => Self::Tls,
            Unreachable::Reset => Self::Reset,
        }
    }
}

/// One thing seen of a mirror that speaks of its health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    Good,
    /// With what else is known of the cause, in words.
    Bad(Fault, Option<Arc<str>>),
}

impl Observation {
    /// Returns what the answer to looking for any one manifest may tell of the mirror's health, if other
    /// images are answered alike.
    ///
    /// A missing image, a refused credential or a rate limit for one image tells nothing: only
    /// what every image would meet does.
    pub fn of(answer: &Answer) -> Option<Self> {
        match answer {
            Answer::Exists(_) => Some(Self::Good),
            Answer::ServerError(..) => Some(Self::images(Fault::ServerError, answer)),
            Answer::Unreachable(why, _) => Some(Self::images((*why).into(), answer)),
            Answer::Ambiguous(Ambiguity::Redirect(_)) => Some(Self::images(Fault::NotARegistry, answer)),
            Answer::Missing | Answer::Unauthorized | Answer::RateLimited { .. } | Answer::Ambiguous(_) => {
                None
            }
        }
    }

    /// Returns a fault that known images show.
    pub fn images(fault: Fault, answer: &Answer) -> Self {
        let what = match fault {
            Fault::DataPath => "data of known images",
            _ => "known images",
        };
        Self::Bad(fault, Some(format!("{what}: {answer}").into()))
    }
}

/// What a ping brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ping {
    pub observation: Observation,
    /// Whether one who is not asked for the mirror's health may go by it. Who is refused or limited learns what the
    /// mirror thinks of whoever asks, and others may be let in.
    pub speaks: bool,
}

impl Ping {
    /// Returns what an answer means.
    pub fn of(answer: &Result<(), Failure>) -> Self {
        let refused = matches!(
            answer,
            Err(Failure::Unauthorized
                | Failure::RateLimited { .. }
                | Failure::Ambiguous(Ambiguity::Status(401 | 403, _) | Ambiguity::Challenge(_)))
        );
        Self {
            observation: Observation::of_ping(answer),
            speaks: !refused,
        }
    }

    /// Returns one that was answered well.
    pub const fn good() -> Self {
        Self {
            observation: Observation::Good,
            speaks: true,
        }
    }
}

/// What is known of a mirror's health, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub state: State,
    /// The last fault; none while healthy or never observed.
    pub fault: Option<Fault>,
    /// What else is known of its cause, in words.
    pub cause: Option<Arc<str>>,
    /// Since when the state is what it is.
    pub since: Timestamp,
    /// When the first of the questions was asked since which every connection was refused; none where one was not, and
    /// where the state is not `Unhealthy`.
    pub refused_since: Option<Timestamp>,
    /// Proofs older than this are void.
    pub proven_since: Timestamp,
}

impl Health {
    /// Returns since when the mirror gives nobody anything, if that is what is wrong with it, as far as Kagami sees: it
    /// refuses connections. What is only slow, or loses what is sent to it, may give nodes their images all the while.
    /// Where it is a name or a certificate others may fare better, and what fails to answer some requests may answer
    /// others.
    pub fn dead_since(&self) -> Option<Timestamp> {
        self.refused_since.filter(|_| self.state == State::Unhealthy)
    }

    /// Returns the health of a mirror that nobody has looked at.
    pub const fn unknown(now: Timestamp) -> Self {
        Self {
            state: State::Unknown,
            fault: None,
            cause: None,
            since: now,
            refused_since: None,
            proven_since: now,
        }
    }
}

/// The state machine of one mirror.
#[derive(Clone, Debug)]
pub struct Machine {
    settings: HealthSettings,
    health: Health,
    successes: u32,
    failures: u32,
    /// When the first of these failures was asked for.
    failing_since: Timestamp,
    /// When the first of the last questions was asked for which every connection was refused.
    refused_since: Option<Timestamp>,
    missing_canaries: Vec<ImageKey>,
}

impl Machine {
    /// Returns a machine that knows nothing yet.
    pub fn new(settings: HealthSettings, now: Timestamp) -> Self {
        Self {
            settings,
            health: Health::unknown(now),
            successes: 0,
            failures: 0,
            failing_since: now,
            refused_since: None,
            missing_canaries: Vec::new(),
        }
    }

    /// Returns what is known now.
    pub const fn health(&self) -> &Health {
        &self.health
    }

    /// Whether the last observation was a bad one.
    pub const fn fails(&self) -> bool {
        self.failures > 0
    }

    /// Forgets what failed last, for the mirror answers; the state stays.
    pub const fn answered(&mut self) {
        self.failures = 0;
        self.refused_since = None;
    }

    /// Takes in new thresholds; the state stays.
    pub fn configure(&mut self, settings: HealthSettings) {
        self.settings = settings;
    }

    /// Returns a machine that goes on from what is known already.
    pub fn resume(settings: HealthSettings, health: Health) -> Self {
        let (since, refused_since) = (health.since, health.refused_since);
        Self {
            health,
            refused_since,
            ..Self::new(settings, since)
        }
    }

    /// Takes in what a question brought that was asked then. Returns whether the state changed.
    pub fn observe(&mut self, observation: Observation, asked_at: Timestamp, now: Timestamp) -> bool {
        let jumped = self.health.proven_since > now.after(CLOCK_JUMP);
        if jumped {
            // The clock was set back: without this no proof would count until it has caught up.
            self.health.proven_since = now;
            self.health.since = now;
        }
        self.count(observation, asked_at, now) || jumped
    }

    fn count(&mut self, observation: Observation, asked_at: Timestamp, now: Timestamp) -> bool {
        match observation {
            Observation::Good => {
                self.failures = 0;
                (self.refused_since, self.health.refused_since) = (None, None);
                self.successes = self.successes.saturating_add(1);
                let needed = if self.health.state == State::Unknown {
                    1
                } else {
                    self.settings.success_threshold
                };
                if self.health.state == State::Healthy || self.successes < needed {
                    return false;
                }
                self.health = Health {
                    state: State::Healthy,
                    fault: None,
                    cause: None,
                    since: now,
                    refused_since: None,
                    // Who was told an earliest time, because clocks differ, keeps to it.
                    proven_since: now.max(self.health.proven_since),
                };
                self.missing_canaries.clear();
                true
            }
            Observation::Bad(fault, cause) => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                if self.failures == 1 || self.failing_since > now {
                    self.failing_since = asked_at.min(now);
                }
                let since = self.refused_since.unwrap_or(asked_at).min(now);
                self.refused_since = (fault == Fault::Refused).then_some(since);
                let lasts = now >= self.failing_since.after(CONFIRMATION);
                let changed = self.health.state != State::Unhealthy;
                if changed && (self.failures < self.settings.failure_threshold || !lasts) {
                    return false;
                }
                self.health.fault = Some(fault);
                self.health.cause = cause;
                if changed {
                    self.health.state = State::Unhealthy;
                    self.health.since = now;
                }
                self.health.refused_since = self.refused_since;
                changed
            }
        }
    }

    /// Takes in whether an image that was known to be there still is. Returns whether every proof
    /// just became void. A missing one never speaks of health.
    pub fn canary(&mut self, image: KeyRef<'_>, found: bool, now: Timestamp) -> bool {
        if found {
            self.missing_canaries.clear();
            return false;
        }
        if !self
            .missing_canaries
            .iter()
            .any(|missing| missing.by_ref() == image)
        {
            self.missing_canaries.push(image.into());
        }
        if self.missing_canaries.len() < MISSING_CANARIES {
            return false;
        }
        self.void(now);
        true
    }

    /// Lets proofs begin anew.
    pub fn void(&mut self, now: Timestamp) {
        self.missing_canaries.clear();
        self.health.proven_since = now.max(self.health.proven_since);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        answer::Particulars,
        examples::{key, manifest},
    };

    const BAD: Observation = Observation::Bad(Fault::Timeout, None);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    /// Takes in what is answered at once. Returns whether the state changed.
    fn seen(machine: &mut Machine, observation: Observation, seconds: u64) -> bool {
        machine.observe(observation, at(seconds), at(seconds))
    }

    fn healthy() -> Machine {
        let mut machine = Machine::new(HealthSettings::default(), at(0));
        seen(&mut machine, Observation::Good, 1);
        machine
    }

    /// A name, a certificate, a limit or a part that fails may be better for others, and what is slow for Kagami as well.
    #[test]
    fn a_mirror_is_dead_that_refuses_everybody() {
        for fault in Fault::ALL {
            let mut machine = healthy();
            let bad = || Observation::Bad(fault, None);
            seen(&mut machine, bad(), 10);
            assert_eq!(machine.health().dead_since(), None, "not yet: {fault:?}");
            seen(&mut machine, bad(), 12);
            let expected = (fault == Fault::Refused).then_some(at(10));
            assert_eq!(machine.health().dead_since(), expected, "{fault:?}");
            // One answer ends it, though the mirror is not in use again yet.
            seen(&mut machine, Observation::Good, 41);
            assert_eq!(machine.health().state, State::Unhealthy);
            assert_eq!(machine.health().dead_since(), None, "{fault:?}");
        }
    }

    #[test]
    fn a_mirror_is_dead_from_when_it_refuses_every_connection() {
        let refused = || Observation::Bad(Fault::Refused, None);
        let mut machine = healthy();
        for second in [10, 12, 14] {
            seen(&mut machine, Observation::Bad(Fault::ServerError, None), second);
        }
        assert_eq!(machine.health().dead_since(), None);
        seen(&mut machine, refused(), 16);
        seen(&mut machine, refused(), 18);
        assert_eq!(machine.health().dead_since(), Some(at(16)));
        seen(&mut machine, BAD, 20);
        assert_eq!(machine.health().dead_since(), None);
        // Whoever goes on from what is known does so from there.
        seen(&mut machine, refused(), 22);
        let mut next = Machine::resume(HealthSettings::default(), machine.health().clone());
        seen(&mut next, refused(), 24);
        assert_eq!(next.health().dead_since(), Some(at(22)));
    }

    #[test]
    fn proofs_do_not_count_from_before_the_time_that_was_given() {
        let mut machine = Machine::new(HealthSettings::default(), at(100));
        seen(&mut machine, Observation::Good, 97);
        assert_eq!(machine.health().state, State::Healthy);
        assert_eq!(machine.health().proven_since, at(100));
    }

    #[test]
    fn names_are_those_that_users_see_and_are_read_back() {
        assert_eq!(State::ALL.map(State::as_str), ["Unknown", "Healthy", "Unhealthy"]);
        for fault in Fault::ALL {
            assert_eq!(Fault::from_name(fault.as_str()), Some(fault));
        }
        assert_eq!(Fault::from_name("Refused"), None);
    }

    #[test]
    fn one_images_answer_speaks_of_health_only_where_every_image_would_meet_it() {
        let (of, retry_after) = (Limit::Registry, None);
        for (answer, expected) in [
            (Answer::Exists(manifest('a')), None),
            (
                Answer::ServerError(503, Particulars::default()),
                Some(Fault::ServerError),
            ),
            (
                Answer::Unreachable(Unreachable::Dns, Particulars::default()),
                Some(Fault::Dns),
            ),
            (
                Answer::Ambiguous(Ambiguity::Redirect(Particulars::default())),
                Some(Fault::NotARegistry),
            ),
            (Answer::Ambiguous(Ambiguity::Html(Particulars::default())), None),
            (Answer::Missing, None),
            (Answer::Unauthorized, None),
            (Answer::RateLimited { of, retry_after }, None),
        ] {
            let observation = Observation::of(&answer);
            let fault = observation.and_then(|observation| match observation {
                Observation::Good => None,
                Observation::Bad(fault, cause) => {
                    assert_eq!(cause.as_deref(), Some(&*format!("known images: {answer}")));
                    Some(fault)
                }
            });
            assert_eq!(fault, expected, "{answer:?}");
        }
    }

    #[test]
    fn a_token_service_that_limits_says_nothing_of_the_mirror() {
        let limited = |of| {
            Observation::of_ping(&Err(Failure::RateLimited {
                of,
                retry_after: None,
            }))
        };
        assert_eq!(limited(Limit::Token), Observation::Good);
        assert_eq!(
            limited(Limit::Registry),
            Observation::Bad(Fault::RateLimited, None)
        );
    }

    #[test]
    fn new_thresholds_count_from_the_next_look_on() {
        let mut machine = healthy();
        machine.configure(HealthSettings {
            failure_threshold: 3,
            ..HealthSettings::default()
        });
        assert_eq!(machine.health(), healthy().health());
        assert!(!seen(&mut machine, BAD, 2));
        assert!(!seen(&mut machine, BAD, 4));
        assert!(seen(&mut machine, BAD, 5));
    }

    #[test]
    fn whoever_resumes_goes_on_from_what_is_known() {
        let known = healthy().health().clone();
        let mut machine = Machine::resume(HealthSettings::default(), known.clone());
        assert_eq!(*machine.health(), known);
        assert!(!seen(&mut machine, Observation::Good, 9));
        assert_eq!(machine.health().proven_since, at(1), "its proofs still hold");
    }

    #[test]
    fn the_first_good_look_makes_an_unknown_mirror_healthy() {
        let machine = healthy();
        let health = machine.health();
        assert_eq!(
            (health.state, health.since, health.proven_since),
            (State::Healthy, at(1), at(1))
        );
    }

    #[test]
    fn thresholds_hold_both_ways_and_recovery_voids_proofs() {
        let mut machine = healthy();
        assert!(!seen(&mut machine, BAD, 2));
        assert_eq!(machine.health().state, State::Healthy);
        assert!(!seen(&mut machine, BAD, 3), "too soon");
        assert!(seen(&mut machine, BAD, 4));
        assert_eq!(
            (machine.health().state, machine.health().since),
            (State::Unhealthy, at(4))
        );
        assert_eq!(machine.health().proven_since, at(1));
        assert!(!seen(&mut machine, Observation::Good, 5));
        assert!(seen(&mut machine, Observation::Good, 6));
        assert_eq!(machine.health().proven_since, at(6));
    }

    #[test]
    fn one_good_look_between_resets_the_count_of_failures() {
        let mut machine = healthy();
        for second in 2..20 {
            let observation = if second % 2 == 0 { BAD } else { Observation::Good };
            assert!(!seen(&mut machine, observation, second));
        }
    }

    #[test]
    fn a_mirror_that_fails_for_a_moment_is_healthy_however_often_it_is_asked() {
        let mut machine = healthy();
        let (asked_at, refused) = (at(2), Observation::Bad(Fault::Refused, None));
        for later in [0, 300, 600, 1499] {
            let now = asked_at.after(Duration::from_millis(later));
            assert!(!machine.observe(refused.clone(), now, now));
        }
        let now = asked_at.after(CONFIRMATION);
        assert!(machine.observe(refused, now, now));
        assert_eq!(machine.health().fault, Some(Fault::Refused));
        // What counts is when it was asked: these were answered after their time was up.
        let mut machine = healthy();
        assert!(!machine.observe(BAD, at(2), at(3)));
        assert!(machine.observe(BAD, at(3), asked_at.after(CONFIRMATION)));
    }

    #[test]
    fn proofs_begin_anew_when_told_and_never_earlier_than_before() {
        let mut machine = healthy();
        machine.void(at(9));
        assert_eq!(
            (machine.health().state, machine.health().proven_since),
            (State::Healthy, at(9))
        );
        machine.void(at(7));
        assert_eq!(machine.health().proven_since, at(9));
    }

    #[test]
    fn a_clock_that_was_set_back_voids_proofs_instead_of_blocking_new_ones() {
        let mut machine = Machine::new(HealthSettings::default(), at(0));
        seen(&mut machine, Observation::Good, 5000);
        assert!(
            !seen(&mut machine, Observation::Good, 4995),
            "clocks differ by as much"
        );
        assert!(seen(&mut machine, Observation::Good, 1000));
        assert_eq!(
            (machine.health().state, machine.health().proven_since),
            (State::Healthy, at(1000))
        );
        assert!(!seen(&mut machine, Observation::Good, 1002));
    }

    #[test]
    fn an_unknown_mirror_that_fails_becomes_unhealthy() {
        let mut machine = Machine::new(HealthSettings::default(), at(0));
        seen(&mut machine, BAD, 1);
        assert_eq!(machine.health().state, State::Unknown);
        assert!(seen(&mut machine, BAD, 3));
        assert_eq!(machine.health().state, State::Unhealthy);
    }

    #[test]
    fn three_different_missing_canaries_in_a_row_void_every_proof() {
        let mut machine = healthy();
        let [a, b, c] = ["x.io/a:1", "x.io/b:1", "x.io/c:1"].map(key);
        assert!(!machine.canary(a, false, at(2)));
        assert!(!machine.canary(a, false, at(3)));
        assert!(!machine.canary(b, false, at(4)));
        assert!(
            !machine.canary(c, true, at(5)),
            "one that is there breaks the row"
        );
        assert!(!machine.canary(a, false, at(6)));
        assert!(!machine.canary(b, false, at(7)));
        assert!(machine.canary(c, false, at(8)));
        assert_eq!(
            (machine.health().state, machine.health().proven_since),
            (State::Healthy, at(8))
        );
    }
}
