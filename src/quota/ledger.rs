//! What a server keeps of quotas.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::account::{Account, Counts, Place};
use super::address::net_of;
use super::kind::{Busy, Kind, Whose};
use super::settings::Quotas;
use super::table::Table;
use crate::limits::quotas::{ACCOUNTS_MAX, KNOWN_TOKENS};

/// The accounts of a server, of addresses and of users.
pub(crate) struct Ledger {
    // Held for look-ups.
    addresses: Mutex<Table>,
    users: Mutex<Table>,
    known: KnownTokens,
    counts: Arc<Counts>,
}

/// A connection that was let in.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Whose address it is.
    pub(crate) account: Arc<Account>,
    /// Kept as long as the connection.
    pub(crate) connection: Place,
    /// Kept until its first request has come.
    pub(crate) opening: Place,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [addresses, users] = self.accounts();
        f.debug_struct("Ledger").field("addresses", &addresses).field("users", &users).finish_non_exhaustive()
    }
}

impl Ledger {
    pub(crate) fn new(quotas: Quotas) -> Self {
        let counts = Arc::<Counts>::default();
        let table = |whose, quota| Mutex::new(Table::new(whose, quota, counts.clone(), ACCOUNTS_MAX));
        Self {
            addresses: table(Whose::Address, quotas.address),
            users: table(Whose::User, quotas.user),
            known: KnownTokens::new(),
            counts,
        }
    }

    /// The account of those who come from there.
    pub(crate) fn address(&self, address: IpAddr, now: Instant) -> Arc<Account> {
        account(&self.addresses, &net_of(address), now)
    }

    /// The account of somebody who was proven to be that.
    fn user(&self, principal: &str, now: Instant) -> Arc<Account> {
        account(&self.users, principal.as_bytes(), now)
    }

    /// Whose account pays for somebody who comes from there: his own, or that of his address where he is nobody in
    /// particular.
    pub(crate) fn account(&self, principal: &str, address: &Arc<Account>, now: Instant) -> Arc<Account> {
        if principal.is_empty() { address.clone() } else { self.user(principal, now) }
    }

    /// Lets a connection in, if its address may have another.
    ///
    /// # Errors
    /// [`Busy`] when it may not.
    pub(crate) fn arrive(&self, address: IpAddr, now: Instant) -> Result<Arrival, Busy> {
        let account = self.address(address, now);
        let connection = account.enter(Kind::Connections)?;
        let opening = account.enter(Kind::Openings)?;
        account.spend(Kind::Handshakes, 1, now)?;
        Ok(Arrival { account, connection, opening })
    }

    /// Whether a connection from there would be let in now. Nothing is paid: who says that he is there may be elsewhere.
    pub(crate) fn has_room(&self, address: IpAddr, now: Instant) -> bool {
        let account = self.address(address, now);
        let may_be_held = [Kind::Connections, Kind::Openings].into_iter().all(|kind| account.has_room(kind));
        may_be_held && account.wait(Kind::Handshakes, now).is_zero()
    }

    /// Has a token looked at, if it may be: when it was accepted lately, or its address has not brought too many that were
    /// not. `prove` looks at it; where that fails, `is_bad` says whether it is the token's fault.
    ///
    /// # Errors
    /// [`Busy`] when it may not; inside, what `prove` says.
    pub(crate) fn look<T, E>(
        &self,
        token: &str,
        address: &Account,
        now: Instant,
        prove: impl FnOnce() -> Result<T, E>,
        is_bad: impl FnOnce(&E) -> bool,
    ) -> Result<Result<T, E>, Busy> {
        let wait = address.wait(Kind::BadTokens, now);
        if !wait.is_zero() && !self.known.contains(token) {
            return Err(address.refuse(Kind::BadTokens, wait));
        }
        let proven = prove();
        match &proven {
            Ok(_) => self.known.note(token),
            Err(error) if is_bad(error) => {
                address.owe(Kind::BadTokens, 1, now);
            }
            Err(_) => {}
        }
        Ok(proven)
    }

    /// How many accounts there are: of addresses, of users.
    pub(crate) fn accounts(&self) -> [usize; 2] {
        [&self.addresses, &self.users].map(|table| table.lock().unwrap_or_else(PoisonError::into_inner).len())
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }
}

fn account(table: &Mutex<Table>, name: &[u8], now: Instant) -> Arc<Account> {
    table.lock().unwrap_or_else(PoisonError::into_inner).account(name, now)
}

/// Tokens that were accepted lately, by keyed hashes, which nobody can aim at. It says only which are worth a look: each
/// is proven anew.
struct KnownTokens {
    key: RandomState,
    hashes: Box<[AtomicU64]>,
}

impl KnownTokens {
    fn new() -> Self {
        Self { key: RandomState::new(), hashes: (0..KNOWN_TOKENS).map(|_| AtomicU64::new(0)).collect() }
    }

    fn place(&self, token: &str) -> (&AtomicU64, u64) {
        // Never 0, which is nobody's.
        let hash = self.key.hash_one(token) | 1 << 63;
        (&self.hashes[(hash % KNOWN_TOKENS as u64) as usize], hash)
    }

    fn note(&self, token: &str) {
        let (place, hash) = self.place(token);
        place.store(hash, Ordering::Relaxed);
    }

    fn contains(&self, token: &str) -> bool {
        let (place, hash) = self.place(token);
        place.load(Ordering::Relaxed) == hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::{Quota, Rate};

    #[test]
    fn bad_tokens_shut_out_their_address_but_not_who_was_accepted_there() {
        let address = Quota { bad_tokens: Some(Rate::per_second(1, 5)), ..Quota::NONE };
        let ledger = Ledger::new(Quotas { address, user: Quota::NONE });
        let (now, home) = (Instant::now(), IpAddr::from([10, 0, 0, 1]));
        let looked_at = std::cell::Cell::new(0);
        let look = |token: &str, account: &Account| {
            let prove = || {
                looked_at.set(looked_at.get() + 1);
                if token == "good" { Ok(()) } else { Err(token.starts_with("bad")) }
            };
            ledger.look(token, account, now, prove, |is_bad| *is_bad)
        };
        let account = ledger.address(home, now);
        assert_eq!(look("good", &account), Ok(Ok(())));
        // What is not the token's fault costs nothing.
        assert!((0..10).all(|_| look("a store that fails", &account) == Ok(Err(false))));
        assert!((0..5).all(|n| look(&format!("bad{n}"), &account) == Ok(Err(true))));
        looked_at.set(0);
        let busy = look("bad", &account).unwrap_err();
        assert_eq!((busy.code(), busy.retry_after_ms(), looked_at.get()), ("E0712", 1000, 0));
        assert_eq!(look("good", &account), Ok(Ok(())));
        let other = ledger.address(IpAddr::from([10, 0, 0, 2]), now);
        assert_eq!(look("bad", &other), Ok(Err(true)));
    }

    #[test]
    fn an_address_without_room_is_known_before_it_is_believed() {
        let quota =
            Quota { connections: Some(2), openings: Some(1), handshakes: Some(Rate::per_minute(1, 3)), ..Quota::NONE };
        let ledger = Ledger::new(Quotas { address: quota, user: Quota::NONE });
        let (now, home) = (Instant::now(), IpAddr::from([10, 0, 0, 1]));
        assert!((0..10).all(|_| ledger.has_room(home, now)), "to ask costs nothing");
        let first = ledger.arrive(home, now).unwrap();
        assert!(!ledger.has_room(home, now), "one that has said nothing");
        drop(first.opening);
        assert!(ledger.has_room(home, now));
        let second = ledger.arrive(home, now).unwrap();
        drop(second.opening);
        assert!(!ledger.has_room(home, now), "two at once");
        drop(second.connection);
        drop(ledger.arrive(home, now).unwrap());
        assert!(!ledger.has_room(home, now), "three in a minute");
        assert!(ledger.has_room(home, now + std::time::Duration::from_secs(60)));
    }

    #[test]
    fn what_arrives_holds_its_places_until_it_goes() {
        let quota = Quota { connections: Some(3), openings: Some(2), ..Quota::NONE };
        let ledger = Ledger::new(Quotas { address: quota, user: Quota::NONE });
        let (now, home) = (Instant::now(), IpAddr::from([10, 0, 0, 1]));
        let mut first = ledger.arrive(home, now).unwrap();
        let _second = ledger.arrive(home, now).unwrap();
        assert_eq!(ledger.arrive(home, now).unwrap_err().kind, Kind::Openings);
        // What was refused holds nothing.
        first.opening = ledger.address(IpAddr::from([10, 0, 0, 2]), now).enter(Kind::Openings).unwrap();
        let _third = ledger.arrive(home, now).unwrap();
        assert_eq!(ledger.arrive(home, now).unwrap_err().kind, Kind::Connections);
        drop(first);
        assert_eq!(ledger.arrive(home, now).unwrap_err().kind, Kind::Openings);
    }
}
