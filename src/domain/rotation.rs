//! Renewing the webhook's certificates: what to do next, given what there is.
//!
//! A new authority comes in three steps, so that at every moment whoever calls trusts whatever any
//! replica serves: callers are told to trust old and new; then the new authority signs what is
//! served; then the old one is not trusted any more. Between two steps there is time for Secrets to
//! reach every replica.

use std::time::Duration;

use super::time::Timestamp;

/// The part of a certificate's time that is left when it is renewed: a third.
const RENEW_AT: u32 = 3;

/// The part that is left when a renewal that still has not come is told: a quarter.
const LATE_AT: u32 = 4;

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Period {
    /// Whether it is time for a new one.
    fn is_due(self, now: Timestamp) -> bool {
        let left = self.not_after.since(now);
        left <= self.not_after.since(self.not_before) / RENEW_AT || self.is_ahead(now)
    }

    /// Whether it begins later.
    fn is_ahead(self, now: Timestamp) -> bool {
        now < self.not_before
    }

    fn is_valid(self, now: Timestamp) -> bool {
        !self.is_ahead(now) && now < self.not_after
    }

    /// Whether it should have been renewed for some time.
    pub fn is_late(self, now: Timestamp) -> bool {
        self.not_after.since(now) <= self.not_after.since(self.not_before) / LATE_AT
    }
}

/// The serving certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub period: Period,
    /// Whether the present authority signed it.
    pub by_current: bool,
    /// Whether it is good for the names wanted.
    pub names: bool,
}

/// What there is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// The authority that signs.
    pub current: Option<Period>,
    /// The authority that an earlier version of Kagami keeps elsewhere, where there is none here.
    pub former: Option<Period>,
    /// The authority that will sign.
    pub next: Option<Period>,
    /// Whether an authority that signed before is still trusted.
    pub previous: bool,
    pub leaf: Option<Leaf>,
    /// Whether what is served is signed by an authority that is none of these, and still valid.
    pub stranger: bool,
    /// Whether callers trust exactly the authorities above.
    pub bundle: bool,
    /// When something was last changed of what is trusted or served.
    pub changed_at: Timestamp,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the first authority; whatever there was is of no use.
    Found,
    /// Go on with the authority of an earlier version.
    TakeOver,
    /// Take the authority of what is served for the one before.
    Trust,
    /// Make the authority that comes next.
    Announce,
    /// Tell callers to trust the authorities there are.
    Publish,
    /// Make the next authority the present one. By itself this changes nothing of what is trusted or served.
    Switch,
    /// Issue a serving certificate by the present authority.
    Issue,
    /// Stop trusting the one before.
    Retire,
    /// Nothing before that time.
    Wait(Timestamp),
}

/// Returns what to do next; `step` lies between two steps of a renewal.
///
/// What was made later than `now`, before a clock was set back, nobody believes whose clock agrees; but it may be
/// this clock alone that is wrong, so it is replaced in steps like what ends.
pub fn next(facts: &Facts, step: Duration, now: Timestamp) -> Action {
    let Some(current) = facts.current.filter(|current| current.not_after > now) else {
        let usable = facts.former.is_some_and(|former| former.not_after > now);
        return if usable { Action::TakeOver } else { Action::Found };
    };
    if facts.stranger {
        return Action::Trust;
    }
    if !facts.bundle {
        return Action::Publish;
    }
    // A clock that was set back must not hold everything up.
    let since = if facts.changed_at > now {
        Timestamp::default()
    } else {
        facts.changed_at
    };
    let settled_at = since.after(step);
    let usable = facts
        .leaf
        .filter(|leaf| leaf.names && leaf.period.not_after > now);
    let Some(leaf) = usable else {
        return Action::Issue;
    };
    // While what is served is trusted, it is served until all callers trust what comes next.
    if !leaf.by_current && facts.previous && now < settled_at {
        return Action::Wait(settled_at);
    }
    // What an authority of the future signs is of no use before the next one does.
    let is_due = leaf.period.is_due(now) && !current.is_ahead(now);
    if !leaf.by_current || is_due {
        return Action::Issue;
    }
    if facts.next.is_some_and(|next| !next.is_valid(now)) {
        return Action::Announce;
    }
    if facts.next.is_some() || facts.previous {
        if now < settled_at {
            return Action::Wait(settled_at);
        }
        return if facts.previous {
            Action::Retire
        } else {
            Action::Switch
        };
    }
    if current.is_due(now) {
        return Action::Announce;
    }
    let due = |period: Period| {
        period
            .not_after
            .before(period.not_after.since(period.not_before) / RENEW_AT)
    };
    Action::Wait(due(current).min(due(leaf.period)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_mins(5);
    const DAY: u64 = 24 * 3600;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn period(from: u64, to: u64) -> Period {
        Period {
            not_before: at(from),
            not_after: at(to),
        }
    }

    /// Does what the plan says, as the companion does, and returns the actions in order.
    fn play(facts: &mut Facts, from: u64, until: u64) -> Vec<(u64, Action)> {
        let mut now = from;
        let mut played = Vec::new();
        while now < until {
            let action = next(facts, STEP, at(now));
            played.push((now, action));
            let authority = period(now, now + 360 * DAY);
            match action {
                Action::Found => {
                    // What is served then is by an authority that nobody has any more.
                    let leaf = facts.leaf.map(|leaf| Leaf {
                        by_current: false,
                        ..leaf
                    });
                    *facts = Facts {
                        current: Some(authority),
                        leaf,
                        stranger: leaf.is_some_and(|leaf| leaf.period.not_after > at(now)),
                        ..Facts::default()
                    };
                }
                Action::TakeOver => facts.current = facts.former.take(),
                Action::Trust => {
                    facts.stranger = false;
                    facts.previous = true;
                    facts.bundle = false;
                }
                Action::Announce => {
                    facts.next = Some(authority);
                    facts.bundle = false;
                }
                Action::Publish => facts.bundle = true,
                Action::Switch => {
                    facts.current = facts.next.take();
                    facts.previous = true;
                    facts.leaf.as_mut().unwrap().by_current = false;
                    continue;
                }
                Action::Issue => {
                    facts.leaf = Some(Leaf {
                        period: period(now, now + 90 * DAY),
                        by_current: true,
                        names: true,
                    });
                }
                Action::Retire => {
                    facts.previous = false;
                    facts.bundle = false;
                }
                Action::Wait(until) => {
                    assert!(until > at(now), "{facts:?}");
                    now = until.as_millis() / 1000;
                    played.pop();
                    continue;
                }
            }
            facts.changed_at = at(now);
        }
        played
    }

    #[test]
    fn at_first_callers_trust_before_anything_is_served() {
        let played = play(&mut Facts::default(), 0, 1);
        assert_eq!(
            played[..3],
            [(0, Action::Found), (0, Action::Publish), (0, Action::Issue)]
        );
    }

    #[test]
    fn an_authority_is_renewed_in_steps_with_time_between() {
        let mut facts = Facts::default();
        let played = play(&mut facts, 0, 300 * DAY);
        let announced = played
            .iter()
            .position(|(_, action)| *action == Action::Announce)
            .unwrap();
        let (start, _) = played[announced];
        assert_eq!(start, 240 * DAY);
        let step = STEP.as_secs();
        let renewal: Vec<_> = played[announced..].iter().take(6).copied().collect();
        assert_eq!(
            renewal,
            [
                (start, Action::Announce),
                (start, Action::Publish),
                (start + step, Action::Switch),
                (start + step, Action::Issue),
                (start + 2 * step, Action::Retire),
                (start + 2 * step, Action::Publish),
            ]
        );
    }

    /// All in the middle of a renewal, or not: what was made later than now is of no use, and replaced in steps.
    #[test]
    fn a_clock_that_is_set_back_and_forth_costs_one_renewal_of_each() {
        let step = STEP.as_secs();
        let renewal = |start: u64| {
            [
                (start, Action::Announce),
                (start, Action::Publish),
                (start + step, Action::Switch),
                (start + step, Action::Issue),
                (start + 2 * step, Action::Retire),
                (start + 2 * step, Action::Publish),
            ]
        };
        let (made, back) = (100 * DAY, 50 * DAY);
        let mut facts = Facts::default();
        play(&mut facts, made, made + 1);
        let mut announced = facts;
        assert_eq!(play(&mut facts, back, back + 3 * step), renewal(back));
        assert_eq!(
            play(&mut facts, made, made + 3 * step),
            [],
            "all is valid then too"
        );

        announced.next = Some(period(made, made + 360 * DAY));
        announced.changed_at = at(made);
        assert_eq!(play(&mut announced, back, back + 3 * step), renewal(back));

        // Forth again before what was made meanwhile signs anything: it has expired by then.
        let mut facts = Facts::default();
        play(&mut facts, made, made + 1);
        facts.next = Some(period(0, DAY));
        facts.changed_at = at(0);
        assert_eq!(play(&mut facts, made, made + 3 * step), renewal(made));
    }

    /// Each of them ends while nobody looks.
    #[test]
    fn what_ended_in_a_sleep_is_renewed_once_and_at_once() {
        let (step, late) = (STEP.as_secs(), 100 * DAY);
        let mut facts = Facts::default();
        play(&mut facts, 0, 1);
        let mut longer = facts;
        assert_eq!(play(&mut facts, late, late + 3 * step), [(late, Action::Issue)]);
        let late = 400 * DAY;
        assert_eq!(
            play(&mut longer, late, late + 3 * step),
            [
                (late, Action::Found),
                (late, Action::Publish),
                (late, Action::Issue)
            ]
        );
    }

    #[test]
    fn what_a_lost_authority_signed_is_served_until_callers_trust_the_new_one() {
        let mut facts = Facts::default();
        play(&mut facts, 0, 1);
        let founded = DAY;
        facts.current = None;
        let mut gone = facts;
        let step = STEP.as_secs();
        assert_eq!(
            play(&mut facts, founded, founded + 3 * step),
            [
                (founded, Action::Found),
                (founded, Action::Trust),
                (founded, Action::Publish),
                (founded + step, Action::Issue),
                (founded + 2 * step, Action::Retire),
                (founded + 2 * step, Action::Publish),
            ]
        );
        // Nobody is helped by waiting where nothing usable is served, or nobody trusts it.
        gone.current = Some(period(founded, 361 * DAY));
        gone.leaf.as_mut().unwrap().by_current = false;
        gone.changed_at = at(founded);
        assert_eq!(next(&gone, STEP, at(founded)), Action::Issue);
        gone.previous = true;
        gone.leaf = None;
        assert_eq!(next(&gone, STEP, at(founded)), Action::Issue);
    }

    #[test]
    fn the_authority_of_an_earlier_version_stays_in_use() {
        let mut facts = Facts::default();
        play(&mut facts, 0, 1);
        facts.former = facts.current.take();
        assert_eq!(play(&mut facts, DAY, DAY + 1), [(DAY, Action::TakeOver)]);
        // One that is of no use is none.
        facts.current = None;
        facts.former = Some(period(0, DAY));
        assert_eq!(next(&facts, STEP, at(2 * DAY)), Action::Found);
    }

    #[test]
    fn what_others_issued_is_served_until_callers_trust_ours() {
        let mut facts = Facts::default();
        play(&mut facts, 0, 1);
        facts.leaf.as_mut().unwrap().by_current = false;
        facts.stranger = true;
        let step = STEP.as_secs();
        assert_eq!(
            play(&mut facts, DAY, DAY + 3 * step),
            [
                (DAY, Action::Trust),
                (DAY, Action::Publish),
                (DAY + step, Action::Issue),
                (DAY + 2 * step, Action::Retire),
                (DAY + 2 * step, Action::Publish),
            ]
        );
    }

    #[test]
    fn a_renewal_is_late_after_it_was_due() {
        let period = period(0, 100);
        assert!(period.is_due(at(67)) && !period.is_late(at(74)));
        assert!(period.is_late(at(75)) && period.is_late(at(200)));
    }

    #[test]
    fn a_certificate_is_renewed_in_time_and_alone() {
        let mut facts = Facts::default();
        let played = play(&mut facts, 0, 100 * DAY);
        assert_eq!(played[3..], [(60 * DAY, Action::Issue)]);
    }

    #[test]
    fn a_bundle_that_somebody_changed_is_put_right_before_anything_else() {
        let mut facts = Facts::default();
        play(&mut facts, 0, 1);
        facts.bundle = false;
        assert_eq!(next(&facts, STEP, at(10)), Action::Publish);
        facts.current = Some(period(0, 5));
        assert_eq!(next(&facts, STEP, at(10)), Action::Found);
    }

    #[test]
    fn other_names_need_another_certificate() {
        let mut facts = Facts::default();
        play(&mut facts, 0, 1);
        facts.leaf.as_mut().unwrap().names = false;
        assert_eq!(next(&facts, STEP, at(10)), Action::Issue);
    }
}
