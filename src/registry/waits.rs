//! Waits that were asked for, each kept for what it was asked for.
//!
//! Who limits one repository need not limit others, who limits manifests need not limit `/v2/`, and a token
//! service that limits is not the registry. Several repositories that are limited at once stand for all.
//! Who limits without a word of how long, or again and again after moments, is left alone ever longer.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::domain::answer::Limit;

/// The first wait where none was asked for; each further one is twice as long.
const FIRST_OWN: Duration = Duration::from_secs(1);

/// The longest wait where none was asked for.
const LONGEST_OWN: Duration = Duration::from_mins(5);

/// How many repositories must be limited at once for all of them to be.
const SEVERAL: usize = 3;

/// How many things are remembered to be limited.
const LIMITED: usize = 1024;

/// What is asked for, as far as a wait may be asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Matter {
    /// `/v2/`, which stands for everything but tokens.
    Registry,
    /// Manifests and blobs of one repository.
    Repository(Box<str>),
    /// A token of one realm, service and scope: the address by which it is asked for.
    Token(Box<str>),
}

/// Until when whom not to ask for what.
#[derive(Debug, Default)]
pub(super) struct Waits {
    registry: Option<Instant>,
    repositories: Option<Instant>,
    /// What was limited, until something else is answered about it.
    each: HashMap<Matter, Wait>,
}

#[derive(Debug)]
struct Wait {
    until: Instant,
    /// How often no wait was asked for.
    own: u32,
}

impl Waits {
    /// Returns the wait that is not over, and what it holds for.
    pub(super) fn left(&self, matter: &Matter, now: Instant) -> Option<(Limit, Duration)> {
        let all = match matter {
            Matter::Registry => self.registry,
            Matter::Repository(_) => self.registry.max(self.repositories),
            Matter::Token(_) => None,
        };
        let own = self.each.get(matter).map(|wait| wait.until);
        [(Limit::Registry, all), (matter.limit(), own)]
            .into_iter()
            .filter_map(|(limit, until)| Some((limit, until?.saturating_duration_since(now))))
            .find(|(_, wait)| !wait.is_zero())
    }

    /// Takes in a limit, with the wait that was asked for if one was. Returns what it holds for and how long
    /// to wait. Pings are spaced by their interval, and are not held up where nobody asked for that.
    pub(super) fn limited(
        &mut self,
        matter: &Matter,
        asked: Option<Duration>,
        now: Instant,
    ) -> (Limit, Option<Duration>) {
        if *matter == Matter::Registry {
            let until = asked.map(|wait| now + wait);
            self.registry = self.registry.max(until);
            return (Limit::Registry, asked);
        }
        self.make_room(now);
        let kept = self
            .each
            .entry(matter.clone())
            .or_insert(Wait { until: now, own: 0 });
        let running = kept.until.saturating_duration_since(now);
        let wait = asked.filter(|wait| *wait >= FIRST_OWN).unwrap_or_else(|| {
            // Answers to what was asked at the same time as the one before tell nothing more.
            if !running.is_zero() {
                return running;
            }
            let own = FIRST_OWN.saturating_mul(1 << kept.own.min(10)).min(LONGEST_OWN);
            kept.own += 1;
            own
        });
        kept.until = now + wait;
        if matches!(matter, Matter::Repository(_)) && self.limited_repositories(now) >= SEVERAL {
            self.repositories = self.repositories.max(Some(now + wait));
            return (Limit::Registry, Some(wait));
        }
        (matter.limit(), Some(wait))
    }

    /// Takes in that something was answered that is no limit.
    pub(super) fn answered(&mut self, matter: &Matter) {
        if !self.each.is_empty() {
            self.each.remove(matter);
        }
    }

    /// Forgets every limit of tokens.
    pub(super) fn forget_tokens(&mut self) {
        self.each.retain(|matter, _| !matches!(matter, Matter::Token(_)));
    }

    fn limited_repositories(&self, now: Instant) -> usize {
        let limited = self
            .each
            .iter()
            .filter(|(matter, wait)| matches!(matter, Matter::Repository(_)) && now < wait.until);
        limited.count()
    }

    /// Forgets what is over, and if need be what is over next.
    fn make_room(&mut self, now: Instant) {
        if self.each.len() < LIMITED {
            return;
        }
        self.each.retain(|_, wait| now < wait.until);
        if self.each.len() >= LIMITED {
            let next = self.each.iter().min_by_key(|(_, wait)| wait.until);
            if let Some(next) = next.map(|(matter, _)| matter.clone()) {
                self.each.remove(&next);
            }
        }
    }
}

impl Matter {
    const fn limit(&self) -> Limit {
        match self {
            Self::Registry => Limit::Registry,
            Self::Repository(_) => Limit::Repository,
            Self::Token(_) => Limit::Token,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn repository(name: &str) -> Matter {
        Matter::Repository(name.into())
    }

    fn token(scope: &str) -> Matter {
        Matter::Token(scope.into())
    }

    #[test]
    fn a_wait_holds_for_what_it_was_asked_for() {
        let now = Instant::now();
        let matters = [
            Matter::Registry,
            repository("a"),
            repository("b"),
            token("a"),
            token("b"),
        ];
        let (some, of) = (Some(HOUR), |limit| Some((limit, HOUR)));
        for (limited, expected) in [
            (
                &matters[0],
                [
                    of(Limit::Registry),
                    of(Limit::Registry),
                    of(Limit::Registry),
                    None,
                    None,
                ],
            ),
            (&matters[1], [None, of(Limit::Repository), None, None, None]),
            (&matters[3], [None, None, None, of(Limit::Token), None]),
        ] {
            let mut waits = Waits::default();
            assert_eq!(waits.limited(limited, some, now).1, some);
            assert_eq!(
                matters.each_ref().map(|matter| waits.left(matter, now)),
                expected,
                "{limited:?}"
            );
            assert!(
                matters
                    .iter()
                    .all(|matter| waits.left(matter, now + HOUR).is_none())
            );
        }
    }

    #[test]
    fn several_repositories_at_once_stand_for_all_and_tokens_never_do() {
        let now = Instant::now();
        let mut waits = Waits::default();
        for name in ["a", "b", "c", "d"] {
            assert_eq!(waits.limited(&token(name), Some(HOUR), now).0, Limit::Token);
        }
        for name in ["a", "b", "a"] {
            assert_eq!(
                waits.limited(&repository(name), Some(HOUR), now).0,
                Limit::Repository
            );
        }
        // The first two are over by then.
        let later = now + HOUR;
        assert_eq!(
            waits.limited(&repository("c"), Some(HOUR), later).0,
            Limit::Repository
        );
        assert_eq!(
            waits.limited(&repository("a"), Some(HOUR), later).0,
            Limit::Repository
        );
        assert_eq!(waits.left(&repository("e"), later), None);
        assert_eq!(
            waits.limited(&repository("d"), Some(HOUR), later),
            (Limit::Registry, Some(HOUR))
        );
        assert_eq!(waits.left(&repository("e"), later), Some((Limit::Registry, HOUR)));
        assert_eq!(waits.left(&Matter::Registry, later), None, "pings go on");
        assert_eq!(waits.left(&token("e"), later), None);
    }

    #[test]
    fn without_a_wait_that_was_asked_for_there_is_an_own_one_that_grows_and_has_a_bound() {
        let now = Instant::now();
        let mut waits = Waits::default();
        for asked in [None, Some(Duration::ZERO), Some(Duration::from_micros(1160))] {
            let matter = token("a");
            let mut now = now;
            let own = (0..12).map(|_| {
                let wait = waits.limited(&matter, asked, now).1.unwrap();
                // What was asked at the same time is answered alike.
                assert_eq!(waits.limited(&matter, asked, now).1, Some(wait));
                now += wait;
                wait.as_secs()
            });
            assert_eq!(
                own.collect::<Vec<_>>(),
                [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300],
                "{asked:?}"
            );
            // One that was asked for is obeyed, and does not count.
            assert_eq!(
                waits.limited(&matter, Some(2 * FIRST_OWN), now).1,
                Some(2 * FIRST_OWN)
            );
            waits.answered(&matter);
            assert_eq!(waits.left(&matter, now), None);
        }
        assert_eq!(
            waits.limited(&Matter::Registry, None, now),
            (Limit::Registry, None)
        );
        assert_eq!(waits.left(&Matter::Registry, now), None);
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let now = Instant::now();
        let mut waits = Waits::default();
        for number in 0..3 * LIMITED {
            let wait = FIRST_OWN * (1 + u32::try_from(number % 1000).unwrap());
            waits.limited(&token(&number.to_string()), Some(wait), now);
        }
        assert_eq!(waits.each.len(), LIMITED);
        waits.limited(&token("later"), None, now + FIRST_OWN * 2000);
        assert_eq!(waits.each.len(), 1, "the others are over");
    }
}
