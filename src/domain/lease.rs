//! Who leads: the rules of a lease that several candidates share.
//!
//! Nobody trusts the clock of another machine: a candidate counts the time since it saw the lease
//! change itself, by its own monotonic clock. The times here are such times, since the process began.

use std::time::Duration;

/// How long others wait for a leader that gives no sign of life.
pub const DURATION: Duration = Duration::from_secs(15);

/// How long after its last renewal a leader goes on: well before others may take over.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// How often a leader renews and others look.
pub const RETRY: Duration = Duration::from_secs(2);

/// The lease as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Changes with every write.
    pub version: String,
    /// Who leads; nobody if it was given back.
    pub holder: Option<String>,
    /// How long the holder asked others to wait.
    pub duration: Duration,
}

/// What one candidate has seen of the lease.
#[derive(Debug, Default)]
pub struct Candidate {
    seen: Option<(String, Duration)>,
}

impl Candidate {
    /// Returns whether the lease may be taken now that it is seen like this.
    pub fn may_take(&mut self, record: &Record, now: Duration) -> bool {
        let since = match &self.seen {
            Some((version, since)) if *version == record.version => *since,
            _ => {
                self.seen = Some((record.version.clone(), now));
                now
            }
        };
        record.holder.is_none() || now.saturating_sub(since) >= record.duration
    }
}

/// Whether a leader that last renewed at `renewed` may still act at `now`.
pub fn may_act(renewed: Duration, now: Duration) -> bool {
    now.saturating_sub(renewed) < RENEW_DEADLINE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(version: &str, holder: Option<&str>) -> Record {
        Record {
            version: version.to_owned(),
            holder: holder.map(str::to_owned),
            duration: DURATION,
        }
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_is_taken_only_when_it_was_seen_unchanged_for_its_whole_time() {
        let mut candidate = Candidate::default();
        assert!(!candidate.may_take(&record("1", Some("a")), at(100)));
        assert!(!candidate.may_take(&record("1", Some("a")), at(114)));
        assert!(
            !candidate.may_take(&record("2", Some("a")), at(115)),
            "it was renewed"
        );
        assert!(!candidate.may_take(&record("2", Some("a")), at(129)));
        assert!(candidate.may_take(&record("2", Some("a")), at(130)));
    }

    #[test]
    fn a_lease_given_back_is_taken_at_once() {
        assert!(Candidate::default().may_take(&record("1", None), at(0)));
    }

    #[test]
    fn a_leader_stops_before_others_may_take_over() {
        assert!(may_act(at(5), at(14)));
        assert!(!may_act(at(5), at(15)));
        assert!(RENEW_DEADLINE + RETRY < DURATION);
    }
}
