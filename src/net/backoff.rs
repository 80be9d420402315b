//! How long a dialler waits before it tries again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::id::random_bytes;

/// The delays between tries of one dialler: 100 to 200 ms at first, twice that each time, 15 to 30 s in the end.
///
/// Each delay is drawn from a range, so that the clients of a restarted node do not come back all at once. A link that
/// lived for more than [`Self::STEADY`] was a success and starts the delays anew; one that died sooner was not, which
/// keeps a peer that accepts and at once closes from being dialled in a tight loop.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    delays: ExponentialBackoff,
}

impl Backoff {
    /// No delay is shorter.
    pub const DELAY_MIN: Duration = Duration::from_millis(100);
    /// No delay is longer.
    pub const DELAY_MAX: Duration = Duration::from_secs(30);
    /// A peer that says it is of no use for longer is asked again after this.
    pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
    /// A link that lived longer than this starts the delays anew.
    pub const STEADY: Duration = Duration::from_secs(10);

    /// Delays with a random draw.
    #[must_use]
    pub fn new() -> Self {
        Self::with_seed(u64::from_le_bytes(random_bytes()))
    }

    /// Delays whose draw follows from `seed`.
    #[must_use]
    pub fn with_seed(seed: u64) -> Self {
        Self::from_builder(builder().with_jitter_seed(seed))
    }

    fn from_builder(builder: ExponentialBuilder) -> Self {
        Self { builder, delays: builder.build() }
    }

    /// How long to wait before the next try.
    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().unwrap_or(Self::DELAY_MAX).min(Self::DELAY_MAX)
    }

    /// How long to wait before the next try, where the peer said that none is of use for so long: that, and a delay more, so
    /// that not all who heard it come at once.
    pub fn next_delay_after(&mut self, retry_after: Duration) -> Duration {
        retry_after.min(Self::RETRY_AFTER_MAX) + self.next_delay()
    }

    /// Learns that a link has ended after `lived`.
    pub fn link_ended(&mut self, lived: Duration) {
        if lived > Self::STEADY {
            self.delays = self.builder.build();
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

/// The jitter *adds* up to the whole delay, so the unjittered ceiling is half of [`Backoff::DELAY_MAX`].
fn builder() -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_min_delay(Backoff::DELAY_MIN)
        .with_max_delay(Backoff::DELAY_MAX / 2)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_ceiling_and_never_leave_their_range() {
        let mut backoff = Backoff::with_seed(1);
        let mut base = Backoff::DELAY_MIN;
        for _ in 0..100 {
            let delay = backoff.next_delay();
            let slack = Duration::from_millis(1); // the factor is a floating-point number
            assert!(delay + slack >= base && delay <= base * 2 + slack, "{delay:?} with base {base:?}");
            base = (base * 2).min(Backoff::DELAY_MAX / 2);
        }
    }

    #[test]
    fn only_a_link_that_lived_starts_the_delays_anew() {
        let mut backoff = Backoff::with_seed(2);
        let later = (0..8).map(|_| backoff.next_delay()).last().unwrap();
        backoff.link_ended(Duration::from_secs(10));
        assert!(backoff.next_delay() >= later / 2, "ten seconds are not enough");
        backoff.link_ended(Duration::from_millis(10_001));
        assert!(backoff.next_delay() <= Backoff::DELAY_MIN * 2);
    }

    #[test]
    fn a_peer_is_not_asked_again_before_it_said_nor_never() {
        let mut backoff = Backoff::with_seed(3);
        let said = Duration::from_secs(40);
        let delay = backoff.next_delay_after(said);
        assert!(delay > said && delay <= said + Backoff::DELAY_MIN * 2, "{delay:?}");
        let delay = backoff.next_delay_after(Duration::MAX);
        assert!(delay <= Backoff::RETRY_AFTER_MAX + Backoff::DELAY_MAX, "{delay:?}");
    }

    #[test]
    fn two_diallers_do_not_wait_in_step() {
        let draw = |mut backoff: Backoff| (0..8).map(|_| backoff.next_delay()).collect::<Vec<_>>();
        assert_ne!(draw(Backoff::with_seed(1)), draw(Backoff::with_seed(2)));
        assert_eq!(draw(Backoff::with_seed(1)), draw(Backoff::with_seed(1)));
    }
}
