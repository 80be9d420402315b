//! The wall clock: read here only, so that simulations can set it.

use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    #[cfg(feature = "sim")]
    if let Some(now) = crate::mutant::wall_clock() {
        return now;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The wall clock in seconds since 1970.
pub(super) fn now_seconds() -> i64 {
    i64::try_from(now_ms() / 1000).unwrap_or(0)
}
