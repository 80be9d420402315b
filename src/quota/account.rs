//! One account: what somebody holds and what he owes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::kind::{Busy, Kind, Whose};
use super::rate::Bucket;
use super::settings::Quota;
use crate::limits::api::{BODIES_EACH, TELLERS_EACH};
use crate::limits::quotas::{AGAIN_MS, PATIENCE_MS};

/// How long somebody is held back that is too fast.
const PATIENCE: Duration = Duration::from_millis(PATIENCE_MS);

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
    /// Turns at finding out what its feeds may tell; as above.
    turns: Semaphore,
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
        let (bodies, turns) = (Semaphore::new(BODIES_EACH), Semaphore::new(TELLERS_EACH));
        Self { whose, quota, counts, bodies, turns, state: Mutex::default() }
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

    /// Takes what a WebSocket or a link costs before it says anything. A user pays for each of his; those of an address
    /// were paid for when they were accepted, unless this one `is_new`.
    ///
    /// # Errors
    /// [`Busy`] when he may not have it, or owes so much that he would not be read for long: he may as well come later.
    pub(crate) fn open(self: &Arc<Self>, is_new: bool, now: Instant) -> Result<Option<Place>, Busy> {
        for kind in [Kind::Frames, Kind::Bytes] {
            let wait = self.wait(kind, now);
            if wait > PATIENCE {
                return Err(self.refuse(kind, wait));
            }
        }
        if self.is_user() || is_new {
            self.spend(Kind::Handshakes, 1, now)?;
        }
        if self.is_user() { self.enter(Kind::Connections).map(Some) } else { Ok(None) }
    }

    /// Pays for frames that were read, and says how long nothing more is read.
    ///
    /// # Errors
    /// [`Busy`] when that is too long. What was read is paid for all the same.
    pub(crate) fn read(&self, frames: u64, bytes: u64, now: Instant) -> Result<Duration, Busy> {
        let (for_frames, for_bytes) = (self.owe(Kind::Frames, frames, now), self.owe(Kind::Bytes, bytes, now));
        let kind = if for_frames > for_bytes { Kind::Frames } else { Kind::Bytes };
        self.patiently(kind, for_frames.max(for_bytes))
    }

    /// Pays for so many, if one more fits; says how long until then, and nothing once it is paid.
    ///
    /// # Errors
    /// [`Busy`] when that takes too long. Nothing was paid.
    pub(crate) fn pay_in_time(&self, kind: Kind, count: u64, now: Instant) -> Result<Duration, Busy> {
        let wait = self.patiently(kind, self.wait(kind, now))?;
        if wait.is_zero() {
            self.owe(kind, count, now);
        }
        Ok(wait)
    }

    /// Counts that something is held back for so long.
    fn patiently(&self, kind: Kind, wait: Duration) -> Result<Duration, Busy> {
        if wait > PATIENCE {
            return Err(self.refuse(kind, wait));
        }
        if !wait.is_zero() {
            self.counts.delayed[kind as usize].fetch_add(1, Ordering::Relaxed);
        }
        Ok(wait)
    }

    /// Whether one more may be held, as things are.
    pub(super) fn has_room(&self, kind: Kind) -> bool {
        self.quota.held(kind).is_none_or(|max| self.state().held[kind as usize] < max)
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

    /// Turns at finding out what its feeds may tell.
    pub(crate) fn turns(&self) -> &Semaphore {
        &self.turns
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

    #[test]
    fn what_is_read_too_fast_holds_up_what_follows_and_only_in_the_end_who_sent_it() {
        let rates =
            Quota { frames: Some(Rate::per_second(1, 2)), bytes: Some(Rate::per_second(10, 100)), ..Quota::NONE };
        let (account, now) = (account(rates), Instant::now());
        assert_eq!(account.read(1, 99, now), Ok(Duration::ZERO));
        assert_eq!(account.read(1, 11, now), Ok(Duration::from_millis(1100)), "the longer of the two");
        assert_eq!(account.read(20, 0, now), Ok(Duration::from_secs(21)));
        let busy = account.read(20, 0, now).unwrap_err();
        assert_eq!((busy.kind, busy.retry_after), (Kind::Frames, Duration::from_secs(41)));
        // Who owes that much need not come again before.
        let at_once = account.open(true, now).unwrap_err();
        assert_eq!(at_once.retry_after, busy.retry_after);
        assert!(account.open(true, now + Duration::from_secs(11)).is_ok());
        let counted: Vec<_> = account.counts.all().filter(|(_, refused, delayed)| refused + delayed > 0).collect();
        assert_eq!(counted, [(Kind::Frames, 2, 1), (Kind::Bytes, 0, 1)]);
    }

    #[test]
    fn what_fits_in_time_is_paid_then_and_else_not_at_all() {
        let account = account(Quota { documents: Some(Rate::per_second(1, 1)), ..Quota::NONE });
        let now = Instant::now();
        assert_eq!(account.pay_in_time(Kind::Documents, 20, now), Ok(Duration::ZERO));
        assert_eq!(account.pay_in_time(Kind::Documents, 20, now), Ok(Duration::from_secs(20)));
        assert_eq!(account.pay_in_time(Kind::Documents, 20, now + Duration::from_secs(20)), Ok(Duration::ZERO));
        account.owe(Kind::Documents, 20, now + Duration::from_secs(20));
        let busy = account.pay_in_time(Kind::Documents, 1, now + Duration::from_secs(20)).unwrap_err();
        assert_eq!(busy.retry_after, Duration::from_secs(40));
    }

    #[test]
    fn a_user_pays_for_what_he_opens_and_an_address_for_what_is_new() {
        let quota = Quota { handshakes: Some(Rate::per_minute(1, 3)), connections: Some(1), ..Quota::NONE };
        let (user, now) = (account(quota.clone()), Instant::now());
        let first = user.open(false, now).unwrap();
        assert_eq!(user.open(false, now).unwrap_err().kind, Kind::Connections);
        drop(first);
        assert!(user.open(false, now).unwrap().is_some());
        assert_eq!(user.open(false, now).unwrap_err().kind, Kind::Handshakes);
        let address = Arc::new(Account::new(Whose::Address, Arc::new(quota), Arc::default()));
        assert!((0..100).all(|_| address.open(false, now).is_ok_and(|place| place.is_none())));
        assert!((0..3).all(|_| address.open(true, now).is_ok()));
        assert!(address.open(true, now).is_err());
    }
}
