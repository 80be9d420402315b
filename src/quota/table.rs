//! All accounts of a kind, at most so many.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::account::{Account, Counts};
use super::kind::Whose;
use super::settings::Quota;
use crate::limits::quotas::{ACCOUNTS_LOOKED_AT, ACCOUNTS_SWEPT};

/// Accounts by their names. Those that owe nothing and hold nothing are forgotten, and no others.
pub(super) struct Table {
    whose: Whose,
    quota: Arc<Quota>,
    counts: Arc<Counts>,
    max: usize,
    places: HashMap<Box<[u8]>, usize>,
    accounts: Vec<(Box<[u8]>, Arc<Account>)>,
    /// Where it is looked next for accounts to forget.
    hand: usize,
    /// That of all who come when it is full.
    common: Arc<Account>,
}

impl Table {
    pub(super) fn new(whose: Whose, quota: Quota, counts: Arc<Counts>, max: usize) -> Self {
        let quota = Arc::new(quota);
        let common = Arc::new(Account::new(whose, quota.clone(), counts.clone()));
        Self { whose, quota, counts, max, places: HashMap::new(), accounts: Vec::new(), hand: 0, common }
    }

    pub(super) fn len(&self) -> usize {
        self.accounts.len()
    }

    /// The account of that name.
    pub(super) fn account(&mut self, name: &[u8], now: Instant) -> Arc<Account> {
        if let Some(at) = self.places.get(name) {
            return self.accounts[*at].1.clone();
        }
        // Each that comes pays for the look at a few others, so that the table stays as small as what is in use.
        let looks = if self.accounts.len() < self.max { ACCOUNTS_SWEPT } else { ACCOUNTS_LOOKED_AT };
        self.sweep(looks, now);
        if self.accounts.len() >= self.max {
            return self.common.clone();
        }
        let account = Arc::new(Account::new(self.whose, self.quota.clone(), self.counts.clone()));
        self.places.insert(name.into(), self.accounts.len());
        self.accounts.push((name.into(), account.clone()));
        account
    }

    /// Looks at so many accounts and forgets those that are as good as new.
    fn sweep(&mut self, looks: usize, now: Instant) {
        for _ in 0..looks.min(self.accounts.len()) {
            if self.hand >= self.accounts.len() {
                self.hand = 0;
            }
            let account = &self.accounts[self.hand].1;
            // Whoever has it in hand may be about to pay with it.
            if Arc::strong_count(account) > 1 || !account.is_blank(now) {
                self.hand += 1;
                continue;
            }
            let (name, _) = self.accounts.swap_remove(self.hand);
            self.places.remove(&name);
            if let Some((moved, _)) = self.accounts.get(self.hand)
                && let Some(place) = self.places.get_mut(moved)
            {
                *place = self.hand;
            }
            if self.accounts.is_empty() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::quota::{Kind, Rate};

    fn table(max: usize) -> Table {
        let quota = Quota { bad_tokens: Some(Rate::per_second(1, 10)), connections: Some(1), ..Quota::NONE };
        Table::new(Whose::Address, quota, Arc::default(), max)
    }

    #[test]
    fn accounts_that_owe_nothing_make_room_and_others_do_not() {
        let (mut table, now) = (table(100), Instant::now());
        let debtor = b"debtor";
        for _ in 0..10 {
            table.account(debtor, now).spend(Kind::BadTokens, 1, now).unwrap();
        }
        // A flood of names, each of which asks for nothing more.
        for n in 0..100_000_u32 {
            table.account(&n.to_be_bytes(), now);
        }
        assert!(table.len() <= 100);
        assert!(table.account(debtor, now).spend(Kind::BadTokens, 1, now).is_err(), "it owes what it owed");
        let later = now + Duration::from_secs(11);
        for n in 0..100_u32 {
            table.account(&n.to_be_bytes(), later);
        }
        assert!(table.account(debtor, later).spend(Kind::BadTokens, 10, later).is_ok());
    }

    #[test]
    fn when_all_are_in_use_those_who_come_share_one() {
        let (mut table, now) = (table(50), Instant::now());
        for n in 0..50_u32 {
            table.account(&n.to_be_bytes(), now).owe(Kind::BadTokens, 5, now);
        }
        let first = table.account(b"first", now).enter(Kind::Connections).unwrap();
        assert!(table.account(b"second", now).enter(Kind::Connections).is_err());
        assert_eq!(table.len(), 50);
        drop(first);
        assert!(table.account(b"second", now).enter(Kind::Connections).is_ok());
        assert!(table.account(&7_u32.to_be_bytes(), now).enter(Kind::Connections).is_ok(), "it has one of its own");
        let later = now + Duration::from_secs(60);
        let _held = table.account(b"second", later).enter(Kind::Connections).unwrap();
        assert!(table.account(b"third", later).enter(Kind::Connections).is_ok());
    }

    /// Every name leads to its own account, whatever is forgotten in between.
    #[test]
    fn names_keep_their_accounts() {
        let (mut table, now) = (table(1000), Instant::now());
        let mut held = HashMap::new();
        for n in 0..3000_u32 {
            let account = table.account(&n.to_be_bytes(), now);
            if n % 7 == 0 {
                held.insert(n, (account.enter(Kind::Connections).unwrap(), account));
            }
        }
        for (n, (_, account)) in &held {
            assert!(Arc::ptr_eq(&table.account(&n.to_be_bytes(), now), account));
        }
        assert_eq!(table.places.len(), table.accounts.len());
        assert!(table.places.iter().all(|(name, at)| table.accounts[*at].0 == *name));
    }
}
