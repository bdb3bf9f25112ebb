//! What a container's status told of kubelet's attempts to pull its image, and how long kubelet surely waits before the
//! next one.
//!
//! Between two attempts kubelet waits for ten seconds at first, and each time for twice as long, up to five minutes
//! (`imageBackOffPeriod`, `MaxImageBackOff`). It looks at a Pod that fails each ten to fifteen seconds, writes what came
//! of the last time, and only then tries again what may be tried (`SyncPod`, `completeWork`): so a status that says
//! `ErrImagePull` was written some seconds after the attempt, and no attempt follows until the next look. Later than that
//! nothing is sure, however long it waits to pull: once another Pod has brought the image to the node, it pulls nothing.
//!
//! The first failure of an image may be told late, where the round in which it failed began nothing that kubelet is told
//! the start of, as after an init container: then the next round comes after ten to fifteen seconds, when the first
//! back-off is over, says that the last attempt failed, and pulls again at once.
//!
//! Of several containers of a Pod those that follow are pulled and started in the same round, and only then the failure is
//! told: by then its back-off may be over, and the round that tells it pulls again. So where something follows, kubelet
//! surely waits until the back-off is over that began when this failure can first have happened: when it was told that the
//! container waits, or the back-off before was over, or with the Pod's binding.
//!
//! A kubelet that is started anew forgets how long it waited, and says so first: its containers are `ContainerCreating`.

use std::time::Duration;

use super::Seen;
use crate::domain::{
    rescue::{Failure, StuckContainer},
    time::Timestamp,
};

/// How long after a failure was told a turn may begin: kubelet surely waits for longer.
pub(super) const FRESH: Duration = Duration::from_secs(6);

/// Kubelet's first back-off, and the longest.
const BACK_OFF: Duration = Duration::from_secs(10);
const LONGEST_BACK_OFF: Duration = Duration::from_mins(5);

/// How long a status takes to be told.
const STATUS: Duration = Duration::from_secs(2);

/// How long kubelet surely waits after a failure was told.
const SURE: Duration = BACK_OFF.saturating_sub(STATUS);

/// What is known of one container's attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attempts {
    /// How many were seen to fail, and none of another image since.
    failures: u32,
    /// Until when kubelet surely waits after the last one, where what follows may have held up the news of it.
    backs_off_until: Option<Timestamp>,
    /// After when the last one was told; none where nobody knows how long ago that was.
    after: Option<Timestamp>,
    /// When the last one was told, the next may have begun.
    may_pull_again: bool,
    /// After when it was last told that the container waits for its image, by whatever reason.
    waited_after: Option<Timestamp>,
}

impl Attempts {
    /// Returns what is known with another version of the Pod, which was bound to its node then.
    pub(super) fn next(
        self,
        before: Option<&StuckContainer>,
        container: &StuckContainer,
        bound: Option<Timestamp>,
        seen: Seen,
    ) -> Self {
        let Seen::Told { after } = seen else {
            // Nobody knows what there was in between.
            return Self::default();
        };
        let is_same = before.is_none_or(|before| before.image == container.image);
        let known = if is_same { self } else { Self::default() };
        // Just after a patch the status still tells of the image that stood there, in the same words.
        let is_of_another =
            |before: &StuckContainer| before.failure != Failure::Image && container.failure == Failure::Image;
        let has_failed_anew = container.has_just_failed
            && before.is_none_or(|before| !before.has_just_failed || is_of_another(before));
        if !has_failed_anew {
            // Whatever else changed says nothing of it: a status may be old though somebody else wrote the Pod.
            let is_news = before.is_none_or(|before| before.has_just_failed != container.has_just_failed);
            return Self {
                waited_after: if is_news { after } else { known.waited_after },
                ..known
            };
        }
        let failures = known.failures.saturating_add(1);
        let begun_after = if failures > 1 {
            let backed_off = known.backs_off_until.map(|until| until.after(STATUS));
            known.waited_after.max(backed_off)
        } else {
            bound
        };
        let is_followed = before.map_or(container.has_followers || container.is_followed, |before| {
            before.is_followed
        });
        let back_off = BACK_OFF * 2_u32.saturating_pow((failures - 1).min(16));
        let until = |begun: Timestamp| begun.after(back_off.min(LONGEST_BACK_OFF).saturating_sub(STATUS));
        Self {
            failures,
            backs_off_until: begun_after.filter(|_| is_followed).map(until),
            after,
            waited_after: after,
            // Only what is new to the node begins with its network, whose start is told. And where something follows nobody
            // knows without a time.
            may_pull_again: (failures == 1 && (container.is_alone_in_its_round || !is_same))
                || (is_followed && begun_after.is_none()),
        }
    }

    /// Forgets when the last one was told: the clock was set back.
    pub(super) const fn forget_times(&mut self) {
        (self.after, self.waited_after, self.backs_off_until) = (None, None, None);
    }

    /// Returns after when its last failure was told; none where nobody knows.
    pub(super) const fn failed_after(self) -> Option<Timestamp> {
        self.after
    }

    /// Returns until when a turn of the container may begin; none where nobody knows what kubelet does.
    pub(super) fn waits_until(self) -> Option<Timestamp> {
        Some(self.sure_until()?.before(SURE.saturating_sub(FRESH)))
    }

    /// Returns until when kubelet surely does nothing for the container; none where nobody knows.
    pub(super) fn sure_until(self) -> Option<Timestamp> {
        let until = self.after.filter(|_| !self.may_pull_again)?.after(SURE);
        Some(self.backs_off_until.map_or(until, |end| end.min(until)))
    }

    /// Whether it was told after that time that the container waits. It may be that it did not try: it waits as well
    /// for what another container of the Pod has just tried in vain.
    pub(super) fn waited_after(self, time: Timestamp) -> bool {
        self.waited_after.is_some_and(|after| after >= time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{examples::NOW, pod::PlaceKind, rescue::message::Cause};

    fn container(has_just_failed: bool) -> StuckContainer {
        StuckContainer {
            kind: PlaceKind::Container,
            index: 0,
            name: "app".into(),
            image: "a".into(),
            failure: Failure::Image,
            has_just_failed,
            is_alone_in_its_round: false,
            has_followers: false,
            is_followed: false,
            recorded: None,
            has_record: false,
            is_refused_by_node: false,
            cause: Cause::Other,
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

    #[test]
    fn of_what_was_not_told_nothing_is_known() {
        let rests = container(false);
        let failed = Attempts::default().next(None, &container(true), None, told(0));
        let next = |seen| {
            failed
                .next(Some(&rests), &container(true), None, seen)
                .waits_until()
        };
        assert_eq!(next(told(300)), Some(at(306)));
        assert_eq!(next(Seen::Listed), None);
        assert_eq!(next(Seen::Told { after: None }), None);
        assert_eq!(
            failed.next(Some(&rests), &rests, None, Seen::Listed),
            Attempts::default()
        );
    }

    /// It is written once; what else changes in the Pod says nothing of it.
    #[test]
    fn a_failure_counts_once() {
        let first = Attempts::default().next(None, &container(true), None, told(0));
        let again = first.next(Some(&container(true)), &container(true), None, told(5));
        let rests = again.next(Some(&container(true)), &container(false), None, told(9));
        for attempts in [first, again, rests] {
            assert_eq!(attempts.waits_until(), Some(at(6)));
        }
        assert!(!again.waited_after(at(1)) && rests.waited_after(at(9)));
        let waits = Attempts::default().next(None, &container(false), None, told(0));
        assert_eq!(
            waits.waits_until(),
            None,
            "between two attempts nobody knows when the next one is"
        );
        assert!(waits.waited_after(at(0)));
    }

    /// Just after a turn the status still says that the image before could not be pulled: once it speaks of the new one, that
    /// has failed for the first time.
    #[test]
    fn what_is_said_of_another_image_is_no_failure_of_this_one() {
        let turned = StuckContainer {
            failure: Failure::Other,
            is_alone_in_its_round: true,
            ..container(true)
        };
        let fails = StuckContainer {
            failure: Failure::Image,
            ..turned.clone()
        };
        let rests = StuckContainer {
            has_just_failed: false,
            ..fails.clone()
        };
        let before = StuckContainer {
            image: "mirrored".into(),
            ..container(true)
        };
        let old = Attempts::default().next(None, &before, None, told(0));
        let new = old.next(Some(&before), &turned, None, told(1));
        assert_eq!((new.waits_until(), new.failures), (None, 0));
        let first = new.next(Some(&turned), &fails, None, told(13));
        assert_eq!(
            (first.waits_until(), first.failures),
            (None, 1),
            "it may be told late"
        );
        let again = first.next(Some(&fails), &fails, None, told(20));
        assert_eq!(again.waits_until(), None, "it is written once");
        let waits = again.next(Some(&fails), &rests, None, told(36));
        let second = waits.next(Some(&rests), &fails, None, told(48));
        assert_eq!(second.waits_until(), Some(at(54)));
        assert_eq!(second.sure_until(), Some(at(56)));
    }

    /// As after an init container, or for an image that was put there since: the first failure may be told by the very
    /// round that pulls again.
    #[test]
    fn a_first_failure_may_be_told_late_where_something_has_begun() {
        for (before, is_alone_in_its_round) in [(None, true), (Some("another"), false)] {
            let before = before.map(|image: &str| StuckContainer {
                image: image.into(),
                ..container(false)
            });
            let fails = StuckContainer {
                is_alone_in_its_round,
                ..container(true)
            };
            let first = Attempts::default().next(before.as_ref(), &fails, None, told(0));
            assert_eq!(first.waits_until(), None);
            assert!(first.waited_after(at(0)) && !first.waited_after(at(1)));
            let rests = first.next(Some(&fails), &container(false), None, told(12));
            let second = rests.next(Some(&container(false)), &fails, None, told(24));
            assert_eq!(second.waits_until(), Some(at(30)));
            assert!(rests.waited_after(at(12)) && !rests.waited_after(at(13)));
        }
    }

    /// What is pulled and started after it may take so long that the round which tells of the failure pulls again.
    #[test]
    fn where_something_follows_it_is_counted_from_when_the_attempt_can_have_begun() {
        let followed = |has_just_failed| StuckContainer {
            has_followers: true,
            is_followed: true,
            ..container(has_just_failed)
        };
        // The Pod was bound then; the failure is told with the next round.
        for (told_at, until) in [(1, 6), (4, 6), (12, 6)] {
            let first = Attempts::default().next(None, &followed(true), Some(at(0)), told(told_at));
            assert_eq!(first.waits_until(), Some(at(until)), "{told_at}");
            assert_eq!(first.sure_until(), Some(at(8)));
        }
        let unknown = Attempts::default().next(None, &followed(true), None, told(1));
        assert_eq!(unknown.waits_until(), None);
        // Between attempts it was told that it waits, and the next one began after that.
        let first = Attempts::default().next(None, &followed(true), Some(at(0)), told(3));
        let waits = first.next(Some(&followed(true)), &followed(false), Some(at(0)), told(14));
        for (told_at, until) in [(15, 21), (24, 30), (26, 30), (40, 30)] {
            let second = waits.next(
                Some(&followed(false)),
                &followed(true),
                Some(at(0)),
                told(told_at),
            );
            assert_eq!(second.waits_until(), Some(at(until)), "{told_at}");
        }
        // Of what was told in a list nobody knows when it was.
        let listed = first.next(Some(&followed(true)), &followed(false), Some(at(0)), Seen::Listed);
        let second = listed.next(Some(&followed(false)), &followed(true), Some(at(0)), told(60));
        assert_eq!(second.waits_until(), Some(at(6)), "which is over");
        // Where nothing was left to start, nothing held up the news.
        let alone = |has_just_failed| StuckContainer {
            has_followers: true,
            ..container(has_just_failed)
        };
        let late = listed.next(Some(&alone(false)), &alone(true), Some(at(0)), told(60));
        assert_eq!(late.waits_until(), Some(at(66)));
        // However often it failed: each back-off begins after the one before.
        let (mut attempts, mut now) = (first, 3);
        for back_off in [10, 20, 40, 80, 160, 300, 300, 300] {
            let rests = attempts.next(Some(&followed(true)), &followed(false), None, told(now + 12));
            now += back_off + 8;
            attempts = rests.next(Some(&followed(false)), &followed(true), None, told(now));
            let window = attempts.waits_until().map(|until| until.since(at(now)));
            assert_eq!(window, Some(FRESH), "after {back_off}");
        }
    }
}
