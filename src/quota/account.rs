//! One account: what somebody holds and what he owes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::kind::{Busy, Kind, Whose};
use super::rate::Bucket;
use super::settings::Quota;
use crate::limits::api::BODIES_EACH;
use crate::limits::quotas::AGAIN_MS;

const KINDS: usize = Kind::ALL.len();

/// What happened to all accounts of a server since it was started, by kind.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    refused: [AtomicU64; KINDS],
    delayed: [AtomicU64; KINDS],
}

impl Counts {
    /// Each kind with how often something was refused, and how often held back, for its sake.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Kind, u64, u64)> {
        let read = |counts: &[AtomicU64; KINDS], kind| counts[kind as usize].load(Ordering::Relaxed);
        Kind::ALL.into_iter().map(move |kind| (kind, read(&self.refused, kind), read(&self.delayed, kind)))
    }
}

/// What somebody has of the server, and may have.
#[derive(Debug)]
pub(crate) struct Account {
    whose: Whose,
    quota: Arc<Quota>,
    counts: Arc<Counts>,
    /// Room for requests that bring something. Nobody is turned away for want of it: who asks waits for himself.
    bodies: Semaphore,
    // Held for a few comparisons.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: [u32; KINDS],
    buckets: [Bucket; KINDS],
}

/// One of those that there may be so many of at once. Dropped, it is given back.
#[derive(Debug)]
pub(crate) struct Place {
    account: Arc<Account>,
    kind: Kind,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.account.state();
        let held = &mut state.held[self.kind as usize];
        *held = held.saturating_sub(1);
    }
}

impl Account {
    pub(super) fn new(whose: Whose, quota: Arc<Quota>, counts: Arc<Counts>) -> Self {
        Self { whose, quota, counts, bodies: Semaphore::new(BODIES_EACH), state: Mutex::default() }
    }

    /// Takes one of what there may be so many of at once.
    ///
    /// # Errors
    /// [`Busy`] when as many are held as may be.
    pub(crate) fn enter(self: &Arc<Self>, kind: Kind) -> Result<Place, Busy> {
        let mut state = self.state();
        let held = &mut state.held[kind as usize];
        if self.quota.held(kind).is_some_and(|max| *held >= max) {
            drop(state);
            return Err(self.refuse(kind, Duration::from_millis(AGAIN_MS)));
        }
        *held = held.saturating_add(1);
        drop(state);
        Ok(Place { account: self.clone(), kind })
    }

    /// Pays for so many, if one more fits: more at once than fit are owed.
    ///
    /// # Errors
    /// [`Busy`] when none fits. Nothing was paid.
    pub(crate) fn spend(&self, kind: Kind, count: u64, now: Instant) -> Result<(), Busy> {
        let Some(rate) = self.quota.rate(kind) else { return Ok(()) };
        let mut state = self.state();
        let bucket = &mut state.buckets[kind as usize];
        let wait = bucket.wait(rate, now);
        if wait.is_zero() {
            bucket.take(rate, count, now);
            return Ok(());
        }
        drop(state);
        Err(self.refuse(kind, wait))
    }

    /// Pays for so many that came already, and says how long the next must wait.
    pub(crate) fn owe(&self, kind: Kind, count: u64, now: Instant) -> Duration {
        let Some(rate) = self.quota.rate(kind) else { return Duration::ZERO };
        let mut state = self.state();
        let bucket = &mut state.buckets[kind as usize];
        bucket.take(rate, count, now);
        bucket.wait(rate, now)
    }

    /// How long until one more fits.
    pub(crate) fn wait(&self, kind: Kind, now: Instant) -> Duration {
        let Some(rate) = self.quota.rate(kind) else { return Duration::ZERO };
        self.state().buckets[kind as usize].wait(rate, now)
    }

    /// Room for requests that bring something.
    pub(crate) fn bodies(&self) -> &Semaphore {
        &self.bodies
    }

    /// Whether it is a user's.
    pub(crate) fn is_user(&self) -> bool {
        self.whose == Whose::User
    }

    /// Says that somebody is turned away, and counts it.
    pub(crate) fn refuse(&self, kind: Kind, retry_after: Duration) -> Busy {
        self.counts.refused[kind as usize].fetch_add(1, Ordering::Relaxed);
        Busy { kind, whose: self.whose, retry_after }
    }

    /// Counts that something is held back.
    pub(crate) fn note_delayed(&self, kind: Kind) {
        self.counts.delayed[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Whether it is as good as a new one.
    pub(super) fn is_blank(&self, now: Instant) -> bool {
        let state = self.state();
        state.held.iter().all(|held| *held == 0) && state.buckets.iter().all(|bucket| bucket.is_full(now))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Rate;

    fn account(quota: Quota) -> Arc<Account> {
        Arc::new(Account::new(Whose::User, Arc::new(quota), Arc::default()))
    }

    #[test]
    fn a_place_is_given_back() {
        let account = account(Quota { connections: Some(2), streams: None, ..Quota::NONE });
        let places = [account.enter(Kind::Connections).unwrap(), account.enter(Kind::Connections).unwrap()];
        let busy = account.enter(Kind::Connections).unwrap_err();
        assert_eq!((busy.code(), busy.close_code()), ("E0710", 4530));
        assert!(!account.is_blank(Instant::now()));
        drop(places);
        assert!(account.is_blank(Instant::now()));
        let _streams: Vec<Place> = (0..1000).map(|_| account.enter(Kind::Streams).unwrap()).collect();
    }

    #[test]
    fn what_does_not_fit_is_refused_and_costs_nothing() {
        let account = account(Quota { documents: Some(Rate::per_minute(60, 10)), ..Quota::NONE });
        let now = Instant::now();
        account.spend(Kind::Documents, 40, now).unwrap();
        for _ in 0..5 {
            let busy = account.spend(Kind::Documents, 40, now).unwrap_err();
            assert_eq!((busy.retry_after_ms(), busy.code(), busy.close_code()), (31_000, "E0714", 4529));
        }
        assert_eq!(account.wait(Kind::Documents, now), Duration::from_secs(31));
        assert!(account.spend(Kind::Documents, 1, now + Duration::from_secs(31)).is_ok());
        assert_eq!(account.owe(Kind::Bytes, u64::MAX, now), Duration::ZERO, "no bound, no wait");
        let refused: Vec<_> = account.counts.all().filter(|(_, refused, _)| *refused > 0).collect();
        assert_eq!(refused, [(Kind::Documents, 5, 0)]);
    }
}
