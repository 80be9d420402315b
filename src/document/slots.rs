//! A hash table from change hash to entry number that stores nothing but the numbers, 5 to 11 bytes a change.

use std::hash::{BuildHasher, RandomState};

use crate::id::ChangeHash;

/// An open-addressing table of entry numbers. The hashes stay with the entries: each call is told how to find one.
///
/// Slots are chosen by a keyed hash, so nobody can grind changes that all land in one place.
#[derive(Debug, Clone, Default)]
pub(super) struct Slots {
    /// Entry numbers, [`EMPTY`] where there is none. The length is zero or a power of two.
    numbers: Vec<u32>,
    used: usize,
    key: RandomState,
}

const EMPTY: u32 = u32::MAX;

impl Slots {
    /// The entry number of `hash`.
    pub(super) fn find<'a>(&self, hash: &ChangeHash, hash_of: impl Fn(u32) -> &'a ChangeHash) -> Option<u32> {
        if self.numbers.is_empty() {
            return None;
        }
        let mask = self.numbers.len() - 1;
        let mut slot = self.first_slot(hash);
        // At least a quarter of the slots is empty, so this ends.
        while self.numbers[slot] != EMPTY {
            if hash_of(self.numbers[slot]) == hash {
                return Some(self.numbers[slot]);
            }
            slot = (slot + 1) & mask;
        }
        None
    }

    /// Adds an entry whose hash is not in the table.
    pub(super) fn insert<'a>(&mut self, number: u32, hash_of: impl Fn(u32) -> &'a ChangeHash) {
        if (self.used + 1) * 4 > self.numbers.len() * 3 {
            let grown = vec![EMPTY; (self.numbers.len() * 2).max(8)];
            let before = std::mem::replace(&mut self.numbers, grown);
            before.into_iter().filter(|&number| number != EMPTY).for_each(|number| self.place(number, hash_of(number)));
        }
        self.place(number, hash_of(number));
        self.used += 1;
    }

    /// How many slots memory is held for, 4 bytes each.
    pub(super) fn capacity(&self) -> usize {
        self.numbers.capacity()
    }

    fn place(&mut self, number: u32, hash: &ChangeHash) {
        let mask = self.numbers.len() - 1;
        let mut slot = self.first_slot(hash);
        while self.numbers[slot] != EMPTY {
            slot = (slot + 1) & mask;
        }
        self.numbers[slot] = number;
    }

    fn first_slot(&self, hash: &ChangeHash) -> usize {
        let [a, b, c, d, e, f, g, h, ..] = hash.0;
        let keyed = self.key.hash_one(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
        keyed as usize & (self.numbers.len() - 1)
    }
}
