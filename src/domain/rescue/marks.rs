//! How old a version is at the most, by the API server's own count of writes: what has a higher number than the newest
//! one of all had when that was asked for was written after that. So neither a watch that broke or stood still, nor a
//! list, nor this process's own delay makes anything seem newer than it is, and nobody's clock is compared with another's.

use std::collections::VecDeque;

use crate::domain::{presence::Version, time::Timestamp};

/// How many marks are kept: more than are set in the time for which what failed counts as fresh.
const MARKS: usize = 16;

/// Which version was the newest, and when that was asked for, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Marks(VecDeque<(Timestamp, Version)>);

impl Marks {
    /// Takes in which version was the newest when that was asked for. Returns whether times and versions go on from
    /// those before: after a restored backup versions go back, and the clock may, and then nothing is known of what was.
    #[must_use]
    pub fn set(&mut self, newest: Version, asked_at: Timestamp) -> bool {
        let goes_on = |last: &(Timestamp, Version)| last.0 <= asked_at && last.1 <= newest;
        let goes_on = self.0.back().is_none_or(goes_on);
        if !goes_on {
            self.0.clear();
        }
        if self.0.len() == MARKS {
            self.0.pop_front();
        }
        self.0.push_back((asked_at, newest));
        goes_on
    }

    /// Returns the latest time that is known after which a version was written.
    pub fn written_after(&self, version: Version) -> Option<Timestamp> {
        let older = self.0.iter().rev().find(|(_, newest)| *newest < version);
        older.map(|(asked_at, _)| *asked_at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::examples::NOW;

    fn at(seconds: u64) -> Timestamp {
        NOW.after(Duration::from_secs(seconds))
    }

    #[test]
    fn a_version_was_written_after_each_older_one_was_the_newest() {
        let mut marks = Marks::default();
        let after = |marks: &Marks, version| marks.written_after(Version(version));
        assert_eq!(after(&marks, 7), None, "nothing is known");
        assert!(marks.set(Version(10), at(1)));
        assert!(marks.set(Version(10), at(2)));
        assert!(marks.set(Version(20), at(3)));
        assert_eq!(after(&marks, 9), None);
        assert_eq!(after(&marks, 10), None, "that very one was there before");
        assert_eq!(after(&marks, 11), Some(at(2)));
        assert_eq!(after(&marks, 20), Some(at(2)));
        assert_eq!(after(&marks, 21), Some(at(3)));
        for seconds in 4..4 + 2 * MARKS as u64 {
            assert!(marks.set(Version(20), at(seconds)));
        }
        assert_eq!(marks.0.len(), MARKS);
        assert_eq!(after(&marks, 20), None, "that is too long ago");
    }

    #[test]
    fn of_numbers_that_go_back_nothing_is_known() {
        for (version, seconds) in [(5, 2), (20, 0)] {
            let mut marks = Marks::default();
            assert!(marks.set(Version(10), at(1)));
            assert!(!marks.set(Version(version), at(seconds)));
            let expected = (version < 15).then_some(at(seconds));
            assert_eq!(marks.written_after(Version(15)), expected);
        }
    }
}
