//! What a container's status told of kubelet's attempts to pull its image, and how long kubelet surely waits before the
//! next one.
//!
//! Between two attempts kubelet waits for ten seconds, and each time for twice as long, up to five minutes
//! (`imageBackOffPeriod`, `MaxImageBackOff`). It looks at a Pod that fails each ten to fifteen seconds, writes what came
//! of the last time, and only then tries again what may be tried (`SyncPod`, `completeWork`): so a status that says
//! `ErrImagePull` was written some seconds after the attempt, and no attempt follows until the next look.
//!
//! A kubelet that is started anew forgets how long it waited, and says so first: its containers are `ContainerCreating`.

use std::time::Duration;

use super::Seen;
use crate::domain::{rescue::StuckContainer, time::Timestamp};

/// How long kubelet surely waits after a failure, whatever was before: ten seconds, of which the status takes some.
pub(super) const FRESH: Duration = Duration::from_secs(6);

/// Kubelet's first back-off and its longest.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(5));

/// How long after an attempt its status is written, at most: with kubelet's next look, and a little.
const LAG: Duration = Duration::from_secs(18);

/// What is known of one container's attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attempts {
    /// How many were seen to fail, one after the other.
    failures: u32,
    /// After when the last one was told; none where nobody knows how long ago that was.
    after: Option<Timestamp>,
    /// With the last one no other container's image can have been pulled.
    was_alone: bool,
}

impl Attempts {
    /// Returns what is known with another version of the Pod. `is_alone` says whether all others run or have ended, now
    /// and before.
    pub(super) fn next(
        self,
        before: Option<&StuckContainer>,
        container: &StuckContainer,
        is_alone: bool,
        seen: Seen,
    ) -> Self {
        let Seen::Told { after } = seen else {
            // Nobody knows what there was in between.
            return Self::default();
        };
        let is_same = before.is_none_or(|before| before.image == container.image);
        let known = if is_same { self } else { Self::default() };
        let has_failed_anew =
            container.has_just_failed && before.is_none_or(|before| !before.has_just_failed);
        if !has_failed_anew {
            // Whatever changed says nothing of it.
            return Self {
                was_alone: known.was_alone && is_alone,
                ..known
            };
        }
        Self {
            failures: known.failures + 1,
            after,
            was_alone: is_alone,
        }
    }

    /// Returns until when kubelet does nothing for the container; none where nobody knows. The image of another one, which
    /// is pulled after this one's, lets the status come late by nobody knows how much.
    pub(super) fn waits_until(self) -> Option<Timestamp> {
        let back_off = BACK_OFF.0 * 2_u32.saturating_pow(self.failures.saturating_sub(1).min(16));
        let back_off = back_off.min(BACK_OFF.1).saturating_sub(LAG);
        let waits = if self.was_alone {
            back_off.max(FRESH)
        } else {
            FRESH
        };
        Some(self.after?.after(waits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{examples::NOW, pod::PlaceKind, rescue::Failure};

    fn container(has_just_failed: bool) -> StuckContainer {
        StuckContainer {
            kind: PlaceKind::Container,
            index: 0,
            name: "app".into(),
            image: "a".into(),
            failure: Failure::Image,
            has_just_failed,
            recorded: None,
            has_record: false,
            is_refused_by_node: false,
            decided: None,
        }
    }

    fn at(seconds: u64) -> Timestamp {
        NOW.after(Duration::from_secs(seconds))
    }

    fn told(seconds: u64) -> Seen {
        Seen::Told {
            after: Some(at(seconds)),
        }
    }

    /// Returns how long kubelet surely waits after each of some failures, of which one comes a minute.
    fn waits(mut attempts: Attempts, number: u32, is_alone: bool) -> (Attempts, Vec<u64>) {
        let (fails, rests) = (container(true), container(false));
        let mut waits = Vec::new();
        for minute in 0..u64::from(number) {
            attempts = attempts.next(Some(&rests), &fails, is_alone, told(60 * minute));
            waits.push(attempts.waits_until().unwrap().since(at(60 * minute)).as_secs());
            attempts = attempts.next(Some(&fails), &rests, is_alone, told(60 * minute + 12));
        }
        (attempts, waits)
    }

    #[test]
    fn kubelet_surely_waits_the_longer_the_more_often_it_failed() {
        let (attempts, alone) = waits(Attempts::default(), 8, true);
        assert_eq!(alone, [6, 6, 22, 62, 142, 282, 282, 282]);
        // Not where another container's image may have been pulled after it.
        assert_eq!(waits(attempts, 2, false).1, [6, 6]);
        let later = attempts.next(Some(&container(false)), &container(false), false, told(450));
        assert_eq!(later.waits_until(), Some(at(420 + 6)));
    }

    #[test]
    fn of_what_was_not_told_nothing_is_known() {
        let (attempts, _) = waits(Attempts::default(), 4, true);
        let next = |seen, image: &str| {
            let before = StuckContainer {
                image: image.into(),
                ..container(false)
            };
            let next = attempts.next(Some(&before), &container(true), true, seen);
            next.waits_until().map(|until| until.since(at(300)).as_secs())
        };
        assert_eq!(next(told(300), "a"), Some(142));
        assert_eq!(
            next(told(300), "another"),
            Some(6),
            "each image has its own back-off"
        );
        assert_eq!(next(Seen::Listed, "a"), None);
        assert_eq!(next(Seen::Told { after: None }, "a"), None);
        let listed = attempts.next(Some(&container(false)), &container(false), true, Seen::Listed);
        assert_eq!(listed, Attempts::default());
    }

    /// It is written once; what else changes in the Pod says nothing of it.
    #[test]
    fn a_failure_counts_once() {
        let first = Attempts::default().next(None, &container(true), true, told(0));
        let again = first.next(Some(&container(true)), &container(true), true, told(5));
        let rests = again.next(Some(&container(true)), &container(false), true, told(9));
        for attempts in [first, again, rests] {
            assert_eq!(attempts.waits_until(), Some(at(6)));
        }
        let waits = Attempts::default().next(None, &container(false), true, told(0));
        assert_eq!(
            waits.waits_until(),
            None,
            "between two attempts nobody knows when the next one is"
        );
    }
}
