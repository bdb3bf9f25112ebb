//! Whether a mirror takes what it is sent: a health of its own, apart from the one that decides about serving. A full
//! disk answers every look.
//!
//! Times are those of a monotonic clock.

use std::time::Duration;

use super::Reason;

/// How long nothing is written to a mirror that takes nothing: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_mins(1), Duration::from_mins(15));

/// For how long somebody asked to be left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The mirror, or else the image's own registry.
    pub of_mirror: bool,
    pub time: Duration,
}

/// Whether one mirror takes copies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writing {
    /// Why it takes none, and what it said.
    fault: Option<(Reason, Box<str>)>,
    /// Whether it took one, or some failed that it was not to blame for.
    took: bool,
    pauses: u32,
    until: Duration,
}

impl Writing {
    /// Returns how many copies may be under way now, of so many at most: one, where it is tried again whether the
    /// mirror takes any.
    pub fn at_once(&self, most: usize, now: Duration) -> usize {
        match &self.fault {
            None if now >= self.until => most,
            Some(_) if now >= self.until => 1,
            _ => 0,
        }
    }

    /// Returns until when nothing is written, if that is to come.
    pub fn paused_until(&self, now: Duration) -> Option<Duration> {
        (self.until > now).then_some(self.until)
    }

    /// Takes in that a copy was brought to its end.
    pub fn took(&mut self) {
        *self = Self {
            took: true,
            ..Self::default()
        };
    }

    /// Takes in that a copy failed. Returns whether that speaks of the mirror, and not of the image.
    pub fn failed(&mut self, reason: Reason, words: &str, wait: Option<Wait>, now: Duration) -> bool {
        if let Some(wait) = wait.filter(|wait| wait.of_mirror) {
            self.until = self.until.max(now + wait.time);
            return true;
        }
        if !speaks_of_mirror(reason) {
            return false;
        }
        // What was under way with the first that failed says nothing new.
        if self.until <= now {
            let pause = PAUSE.0.saturating_mul(1 << self.pauses.min(8)).min(PAUSE.1);
            self.pauses = self.pauses.saturating_add(1);
            self.until = now + pause;
        }
        let is_same = self.fault.as_ref().is_some_and(|(before, _)| *before == reason);
        if !is_same {
            self.fault = Some((reason, words.into()));
        }
        true
    }

    /// Forgets everything: the mirror is asked in another way.
    pub fn forgive(&mut self) {
        *self = Self::default();
    }

    /// Returns whether the mirror takes copies, or why it does not and what it said; none while nobody knows.
    pub fn state(&self) -> Option<Result<(), (Reason, Box<str>)>> {
        match &self.fault {
            Some(fault) => Some(Err(fault.clone())),
            None => self.took.then_some(Ok(())),
        }
    }
}

/// Whether what was meant for one image would be so for every other.
const fn speaks_of_mirror(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::MirrorNotWritable | Reason::MirrorReadOnly | Reason::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_mirror_that_takes_nothing_is_tried_again_by_one_copy() {
        let mut writing = Writing::default();
        assert_eq!((writing.at_once(4, at(0)), writing.state()), (4, None));
        for reason in [
            Reason::ImageMissing,
            Reason::MediaTypeRefused,
            Reason::Unreachable,
        ] {
            assert!(!writing.failed(reason, "", None, at(0)));
            assert_eq!(writing.at_once(4, at(0)), 4);
        }
        // Four were under way.
        for _ in 0..4 {
            assert!(writing.failed(Reason::MirrorNotWritable, "no space", None, at(0)));
        }
        assert_eq!(
            writing.state(),
            Some(Err((Reason::MirrorNotWritable, "no space".into())))
        );
        assert_eq!((writing.at_once(4, at(59)), writing.at_once(4, at(60))), (0, 1));
        assert_eq!(writing.paused_until(at(59)), Some(at(60)));
        for (now, pause) in [(60, 120), (180, 240), (420, 480), (900, 900), (1800, 900)] {
            writing.failed(Reason::QuotaExceeded, "", None, at(now));
            assert_eq!(
                (
                    writing.at_once(4, at(now + pause - 1)),
                    writing.at_once(4, at(now + pause))
                ),
                (0, 1),
                "{now}"
            );
        }
        writing.took();
        assert_eq!((writing.at_once(4, at(1800)), writing.state()), (4, Some(Ok(()))));
    }

    #[test]
    fn a_mirror_that_asks_to_be_asked_less_is_left_alone_without_being_at_fault() {
        let mut writing = Writing::default();
        let wait = |of_mirror| {
            Some(Wait {
                of_mirror,
                time: at(30),
            })
        };
        assert!(!writing.failed(Reason::RateLimited, "", wait(false), at(0)));
        assert_eq!(writing.at_once(4, at(0)), 4);
        assert!(writing.failed(Reason::RateLimited, "", wait(true), at(0)));
        assert_eq!(
            (
                writing.at_once(4, at(29)),
                writing.at_once(4, at(30)),
                writing.state()
            ),
            (0, 4, None)
        );
    }
}
