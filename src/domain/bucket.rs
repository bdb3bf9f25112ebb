//! A token bucket: so many at once, then so many a second.

use std::time::Duration;

/// Bounds how often something may be done. Times are those of a monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    interval: Duration,
    burst: Duration,
    /// When the bucket will be full again if nothing more is taken.
    full_at: Duration,
}

impl Bucket {
    /// Returns a full bucket of `burst` tokens, refilled with `rate` a second.
    pub fn new(rate: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / rate.max(1);
        Self {
            interval,
            burst: interval * burst.max(1),
            full_at: Duration::ZERO,
        }
    }

    /// Takes a token if there is one, or returns how long to wait for the next.
    pub fn take(&mut self, now: Duration) -> Result<(), Duration> {
        let next = self.full_at.max(now) + self.interval;
        match next.checked_sub(now + self.burst) {
            Some(wait) if wait > Duration::ZERO => Err(wait),
            _ => {
                self.full_at = next;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let mut bucket = Bucket::new(10, 50);
        let mut now = Duration::from_secs(1000);
        let mut taken = 0;
        let end = now + Duration::from_mins(1);
        while now < end {
            match bucket.take(now) {
                Ok(()) => taken += 1,
                Err(wait) => now += wait,
            }
        }
        assert_eq!(taken, 50 + 599);
    }

    #[test]
    fn an_idle_bucket_fills_to_its_burst_and_no_further() {
        let mut bucket = Bucket::new(10, 2);
        for second in [10, 1000] {
            let now = Duration::from_secs(second);
            assert_eq!(bucket.take(now), Ok(()));
            assert_eq!(bucket.take(now), Ok(()));
            assert_eq!(bucket.take(now), Err(Duration::from_millis(100)));
        }
    }
}
