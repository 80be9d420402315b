//! Buckets that fill with time.

use std::time::{Duration, Instant};

use crate::limits::quotas::DEBT_MS_MAX;

/// So many in a time, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many; at least 1.
    pub count: u32,
    /// In which time; more than nothing.
    pub per: Duration,
    /// How many at once after a pause; at least 1.
    pub burst: u32,
}

impl Rate {
    /// So many a second.
    #[must_use]
    pub const fn per_second(count: u32, burst: u32) -> Self {
        Self { count, per: Duration::from_secs(1), burst }
    }

    /// So many a minute.
    #[must_use]
    pub const fn per_minute(count: u32, burst: u32) -> Self {
        Self { count, per: Duration::from_secs(60), burst }
    }

    /// In which time so many come back.
    fn time_of(self, count: u64) -> Duration {
        let nanos = self.per.as_nanos().saturating_mul(u128::from(count)) / u128::from(self.count.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What is left of a rate, as the time at which nothing is missing any more.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bucket {
    full_at: Option<Instant>,
}

impl Bucket {
    /// How long until one more fits; nothing, when it does.
    pub(super) fn wait(self, rate: Rate, now: Instant) -> Duration {
        let missing = self.full_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        missing.saturating_add(rate.time_of(1)).saturating_sub(rate.time_of(u64::from(rate.burst.max(1))))
    }

    /// Takes so many, whether they fit or not: what is missing is owed, up to a bound.
    pub(super) fn take(&mut self, rate: Rate, count: u64, now: Instant) {
        let from = self.full_at.map_or(now, |at| at.max(now));
        let most = rate.time_of(u64::from(rate.burst)).saturating_add(Duration::from_millis(DEBT_MS_MAX));
        let at = from.checked_add(rate.time_of(count)).unwrap_or(from);
        // A clock that cannot go so far stands where it is.
        let most = now.checked_add(most).unwrap_or(at);
        self.full_at = Some(at.min(most));
    }

    pub(super) fn is_full(self, now: Instant) -> bool {
        self.full_at.is_none_or(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let (rate, now, mut bucket) = (Rate::per_second(10, 30), Instant::now(), Bucket::default());
        for _ in 0..30 {
            assert_eq!(bucket.wait(rate, now), Duration::ZERO);
            bucket.take(rate, 1, now);
        }
        assert_eq!(bucket.wait(rate, now), Duration::from_millis(100));
        let later = now + Duration::from_millis(100);
        assert_eq!(bucket.wait(rate, later), Duration::ZERO);
        bucket.take(rate, 1, later);
        assert!(bucket.wait(rate, later) > Duration::ZERO);
        assert!(!bucket.is_full(now + Duration::from_secs(3)) && bucket.is_full(now + Duration::from_millis(3100)));
    }

    #[test]
    fn what_is_taken_at_once_beyond_it_is_owed_up_to_a_bound() {
        let (rate, now, mut bucket) = (Rate::per_minute(60, 10), Instant::now(), Bucket::default());
        bucket.take(rate, 40, now);
        assert_eq!(bucket.wait(rate, now), Duration::from_secs(31));
        bucket.take(rate, u64::MAX, now);
        assert_eq!(bucket.wait(rate, now), Duration::from_millis(DEBT_MS_MAX) + Duration::from_secs(1));
    }

    #[test]
    fn small_shares_of_a_great_rate_are_not_lost() {
        let (rate, now, mut bucket) = (Rate::per_second(1 << 30, 1 << 30), Instant::now(), Bucket::default());
        bucket.take(rate, 1 << 31, now);
        assert!(bucket.wait(rate, now) >= Duration::from_secs(1));
        assert!(bucket.wait(rate, now) < Duration::from_millis(1001));
    }
}
