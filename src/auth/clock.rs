//! Time that does not go back, so that nothing which has expired is accepted again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::limits::tokens::{CLOCK_BACK_MS, SECONDS_MAX};

/// The greatest time that was seen, in milliseconds since 1970.
#[derive(Default)]
pub(super) struct Clock {
    greatest: AtomicU64,
    told: AtomicBool,
}

impl Clock {
    /// The time now: `now_ms`, or what it was before when the clock was set back meanwhile.
    pub(super) fn at(&self, now_ms: u64) -> u64 {
        // So that what is reckoned with it has room.
        let now_ms = now_ms.min(SECONDS_MAX * 1000);
        let before = self.greatest.fetch_max(now_ms, Ordering::Relaxed);
        if now_ms.saturating_add(CLOCK_BACK_MS) >= before {
            self.told.store(false, Ordering::Relaxed);
        } else if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                back_ms = before - now_ms,
                "the clock was set back: tokens go by the later time until it comes again, or the node is restarted"
            );
        }
        before.max(now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_go_back() {
        let clock = Clock::default();
        assert_eq!(clock.at(1_000_000), 1_000_000);
        assert_eq!(clock.at(999_999), 1_000_000);
        assert_eq!(clock.at(1), 1_000_000);
        assert_eq!(clock.at(1_000_001), 1_000_001);
    }
}
