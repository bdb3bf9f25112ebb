//! Whether a mirror takes what it is sent: a health of its own, apart from the one that decides about serving. A full
//! disk answers every look.
//!
//! Times are those of a monotonic clock.

use std::time::Duration;

use super::Reason;
use crate::domain::image::ImageKey;

/// How long nothing is written to a mirror that takes nothing: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_mins(1), Duration::from_mins(15));

/// How many different images in a row it does not take before that speaks of the mirror: for one, a blob of its own may be
/// to blame, or the quota of its project.
const DIFFERENT: usize = 3;

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
    /// The last different images that it did not take, without one in between that it took.
    refused: Vec<ImageKey>,
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

    /// Takes in that a copy was brought to its end. Returns whether that ends a fault.
    pub fn took(&mut self) -> bool {
        let before = std::mem::take(self);
        self.took = true;
        before.fault.is_some()
    }

    /// Takes in that an image was not copied. Returns whether the mirror asked to be left alone, which says nothing of the
    /// image.
    pub fn failed(
        &mut self,
        key: &ImageKey,
        reason: Reason,
        words: &str,
        wait: Option<Wait>,
        now: Duration,
    ) -> bool {
        if let Some(wait) = wait.filter(|wait| wait.of_mirror) {
            self.until = self.until.max(now + wait.time);
            return true;
        }
        if !may_speak_of_mirror(reason) {
            return false;
        }
        if !self.refused.contains(key) && self.refused.len() < DIFFERENT {
            self.refused.push(key.clone());
        }
        // A registry that writes nothing at all says so at once.
        let speaks = reason == Reason::MirrorReadOnly || self.refused.len() >= DIFFERENT;
        if self.fault.is_none() && !speaks {
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
        false
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

/// Whether what was meant for one image may be so for every other.
const fn may_speak_of_mirror(reason: Reason) -> bool {
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

    fn key(number: usize) -> ImageKey {
        format!("docker.io/library/x:{number}").parse().unwrap()
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
            for number in 0..4 {
                writing.failed(&key(number), reason, "", None, at(0));
            }
            assert_eq!(writing.at_once(4, at(0)), 4);
        }
        // Four were under way.
        for number in 0..4 {
            writing.failed(&key(number), Reason::MirrorNotWritable, "no space", None, at(0));
        }
        assert_eq!(
            writing.state(),
            Some(Err((Reason::MirrorNotWritable, "no space".into())))
        );
        assert_eq!((writing.at_once(4, at(59)), writing.at_once(4, at(60))), (0, 1));
        assert_eq!(writing.paused_until(at(59)), Some(at(60)));
        for (now, pause) in [(60, 120), (180, 240), (420, 480), (900, 900), (1800, 900)] {
            writing.failed(&key(0), Reason::QuotaExceeded, "", None, at(now));
            assert_eq!(
                (
                    writing.at_once(4, at(now + pause - 1)),
                    writing.at_once(4, at(now + pause))
                ),
                (0, 1),
                "{now}"
            );
        }
        assert!(writing.took());
        assert_eq!((writing.at_once(4, at(1800)), writing.state()), (4, Some(Ok(()))));
        assert!(!writing.took());
    }

    #[test]
    fn one_image_that_a_mirror_does_not_take_says_nothing_of_the_mirror() {
        for reason in [Reason::QuotaExceeded, Reason::MirrorNotWritable] {
            let mut writing = Writing::default();
            for second in 0..10 {
                writing.failed(&key(0), reason, "", None, at(second));
                writing.failed(&key(1), reason, "", None, at(second));
            }
            assert_eq!((writing.at_once(4, at(10)), writing.state()), (4, None));
            // Others in between went well.
            writing.took();
            writing.failed(&key(2), reason, "", None, at(20));
            assert_eq!((writing.at_once(4, at(20)), writing.state()), (4, Some(Ok(()))));
            writing.failed(&key(0), reason, "", None, at(21));
            writing.failed(&key(1), reason, "full", None, at(22));
            assert_eq!(writing.state(), Some(Err((reason, "full".into()))));
        }
        // One that writes nothing at all says so.
        let mut writing = Writing::default();
        writing.failed(&key(0), Reason::MirrorReadOnly, "", None, at(0));
        assert_eq!(writing.at_once(4, at(0)), 0);
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
        assert!(!writing.failed(&key(0), Reason::RateLimited, "", wait(false), at(0)));
        assert_eq!(writing.at_once(4, at(0)), 4);
        assert!(writing.failed(&key(0), Reason::RateLimited, "", wait(true), at(0)));
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
