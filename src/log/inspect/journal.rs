//! Reading fjall's journal without changing it.
//!
//! ```text
//! batch  1, item count (4), sequence number (8)        the start, outside the checksum
//!        items
//!        3, XXH3-64 of the items' bytes (8), "FJL" 3
//! item   2, value type, compression, table (8), key length (2), value length (4), stored length (4), key, value
//!        or 4, table (8): the table is emptied
//! ```
//! Integers are little-endian. After the last batch a journal is zeros, or ends.

use std::io;
use std::path::Path;

use super::bytes::Bytes;

const TRAILER: [u8; 4] = *b"FJL\x03";
const START_BYTES: u64 = 13;
const END_BYTES: u64 = 13;
const ITEM_BYTES: usize = 20;
/// Sequence numbers are drawn from one counter by batches, flushes and compactions: two batches in a row are never this
/// far apart.
const STEP_MAX: u64 = 1 << 24;
/// A torn write leaves zeros, and this many in a row do not come from a flipped bit.
const TORN_ZEROS: usize = 64;
/// What a disk writes in full or not at all.
const SECTOR_BYTES: u64 = 512;
/// The sector in which a batch begins may be lost with as little of the batch. More than a few flipped bits clear.
const TORN_START: u64 = 5;
/// How many bytes are read again and again in search of an intact batch behind a damaged one, in journals' lengths.
const SEARCH_FACTOR: u64 = 16;

/// One row of a batch.
#[derive(Debug, Clone, Copy)]
pub(in crate::log) struct Item<'a> {
    /// fjall's number of the table.
    pub(in crate::log) table: u64,
    pub(in crate::log) key: &'a [u8],
    /// As it is stored; `None` for a removal.
    pub(in crate::log) value: Option<&'a [u8]>,
    /// The value's length when it is compressed.
    pub(in crate::log) inflated: Option<usize>,
}

/// An intact batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::log) struct Batch {
    pub(in crate::log) seqno: u64,
    /// Where it begins in the file.
    pub(in crate::log) start: u64,
    /// Where the next one begins.
    pub(in crate::log) end: u64,
}

/// Bytes that are no batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::log) struct Broken {
    /// Where the batch would begin.
    pub(in crate::log) start: u64,
    /// Where it was noticed.
    pub(in crate::log) at: u64,
    pub(in crate::log) why: &'static str,
}

/// A journal, read batch by batch.
pub(in crate::log) struct Journal {
    bytes: Bytes,
}

/// What stands at a place of a journal.
#[derive(Debug)]
pub(in crate::log) enum Found {
    Batch(Batch),
    /// Zeros to the end of the file, or its end.
    End,
    Broken(Broken),
}

impl Journal {
    pub(in crate::log) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { bytes: Bytes::open(path)? })
    }

    /// What stands at `at`. `visit` is told each item, also of a batch that then turns out to be broken.
    pub(in crate::log) fn read(&mut self, at: u64, visit: &mut dyn FnMut(Item<'_>)) -> io::Result<Found> {
        Ok(match self.read_batch(at, visit)? {
            Ok(batch) => Found::Batch(batch),
            Err(broken) => match self.bytes.next_nonzero(at)? {
                None => Found::End,
                Some(_) => Found::Broken(broken),
            },
        })
    }

    fn read_batch(&mut self, start: u64, visit: &mut dyn FnMut(Item<'_>)) -> io::Result<Result<Batch, Broken>> {
        let broken = |at, why| Ok(Err(Broken { start, at, why }));
        let Some(head) = self.bytes.at(start, START_BYTES as usize)? else {
            return broken(start, "the file ends within a batch's start");
        };
        if head[0] != 1 {
            return broken(start, "no batch begins here");
        }
        let (count, seqno) = (u32_at(head, 1), u64_at(head, 5));
        if count == 0 || seqno >> 63 != 0 {
            return broken(start, "a batch's start is impossible");
        }
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        let mut at = start + START_BYTES;
        for _ in 0..count {
            match self.read_item(at, &mut hasher, visit)? {
                Ok(end) => at = end,
                Err(why) => return broken(at, why),
            }
        }
        let Some(tail) = self.bytes.at(at, END_BYTES as usize)? else {
            return broken(at, "the file ends before the batch's end");
        };
        if tail[0] != 3 || tail[9..] != TRAILER {
            return broken(at, "the batch's end is not where it should be");
        }
        if u64_at(tail, 1) != hasher.digest() {
            return broken(at, "the batch's checksum does not match");
        }
        Ok(Ok(Batch { seqno, start, end: at + END_BYTES }))
    }

    fn read_item(
        &mut self,
        at: u64,
        hasher: &mut xxhash_rust::xxh3::Xxh3,
        visit: &mut dyn FnMut(Item<'_>),
    ) -> io::Result<Result<u64, &'static str>> {
        let Some(tag) = self.bytes.at(at, 1)?.map(|bytes| bytes[0]) else {
            return Ok(Err("the file ends within a batch"));
        };
        if tag == 4 {
            let Some(item) = self.bytes.at(at, 9)? else { return Ok(Err("the file ends within a batch")) };
            hasher.update(item);
            return Ok(Ok(at + 9));
        }
        if tag != 2 {
            return Ok(Err("no row begins where one should"));
        }
        let Some(head) = self.bytes.at(at + 1, ITEM_BYTES)? else { return Ok(Err("the file ends within a row")) };
        let (kind, compression, table) = (head[0], head[1], u64_at(head, 2));
        let key_length = usize::from(u16::from_le_bytes([head[10], head[11]]));
        let (length, stored) = (u32_at(head, 12) as usize, u32_at(head, 16) as usize);
        if kind > 2 || compression > 1 {
            return Ok(Err("a row's kind is unknown"));
        }
        if compression == 0 && length != stored {
            return Ok(Err("a row's two lengths differ"));
        }
        let size = 1 + ITEM_BYTES + key_length + stored;
        let Some(item) = self.bytes.at(at, size)? else { return Ok(Err("the file ends within a row")) };
        hasher.update(item);
        let (key, value) = item[1 + ITEM_BYTES..].split_at(key_length);
        let inflated = (compression == 1).then_some(length);
        visit(Item { table, key, value: (kind == 0).then_some(value), inflated });
        Ok(Ok(at + size as u64))
    }

    /// The first intact batch behind the broken one at `start`, that was written after the one numbered `last`. `Err`
    /// when it was searched for so long that nobody can say.
    pub(in crate::log) fn intact_after(
        &mut self,
        start: u64,
        last: Option<u64>,
    ) -> io::Result<Result<Option<Batch>, Broken>> {
        let mut budget = self.bytes.length().saturating_mul(SEARCH_FACTOR);
        let mut at = start + 1;
        loop {
            let Some(next) = self.bytes.next_nonzero(at)? else { return Ok(Ok(None)) };
            let Some(bytes) = self.bytes.some_at(next)? else { return Ok(Ok(None)) };
            let (length, found) = (bytes.len() as u64, bytes.iter().position(|byte| *byte == 1));
            let Some(offset) = found else {
                at = next + length;
                continue;
            };
            at = next + offset as u64;
            let first_tag = self.bytes.at(at, START_BYTES as usize + 1)?.map(|bytes| bytes[START_BYTES as usize]);
            if matches!(first_tag, Some(2 | 4)) {
                match self.read_batch(at, &mut |_| {})? {
                    Ok(batch) if last.is_none_or(|last| batch.seqno > last) => return Ok(Ok(Some(batch))),
                    Ok(batch) => budget = budget.saturating_sub(batch.end - at),
                    Err(broken) => budget = budget.saturating_sub(broken.at - at),
                }
                if budget == 0 {
                    return Ok(Err(Broken { start, at, why: "too much here looks like the beginning of a batch" }));
                }
            }
            at += 1;
        }
    }

    /// Visits what looks like a row of `table` with a key of eight bytes between `from` and `to` (`None`: the end), and
    /// goes on behind it if `visit` takes it.
    pub(in crate::log) fn rows_between(
        &mut self,
        from: u64,
        to: Option<u64>,
        table: u64,
        visit: &mut dyn FnMut(Item<'_>) -> bool,
    ) -> io::Result<()> {
        let mut at = from;
        while let Some(next) = self.bytes.next_nonzero(at)?.filter(|next| to.is_none_or(|to| *next < to)) {
            at = next + 1;
            let Some(head) = self.bytes.at(next, 1 + ITEM_BYTES)? else { continue };
            if head[0] != 2 || head[1] != 0 || u64_at(head, 3) != table || head[11..13] != [8, 0] {
                continue;
            }
            let mut taken = false;
            let mut hasher = xxhash_rust::xxh3::Xxh3::new();
            if let Ok(end) = self.read_item(next, &mut hasher, &mut |item| taken = visit(item))?
                && taken
            {
                at = end;
            }
        }
        Ok(())
    }

    /// Whether a stretch has zeros as a write leaves them that was not done in full.
    pub(in crate::log) fn has_torn_zeros(&mut self, from: u64, to: u64) -> io::Result<bool> {
        let sector_end = from.next_multiple_of(SECTOR_BYTES);
        if sector_end >= from + TORN_START && self.bytes.next_nonzero(from)?.is_none_or(|next| next >= sector_end) {
            return Ok(true);
        }
        let (mut at, mut run) = (from, 0);
        while at < to {
            let Some(bytes) = self.bytes.some_at(at)? else { return Ok(false) };
            let take = bytes.len().min((to - at) as usize);
            for byte in &bytes[..take] {
                run = if *byte == 0 { run + 1 } else { 0 };
                if run >= TORN_ZEROS || (run > 0 && run as u64 == to - from) {
                    return Ok(true);
                }
            }
            at += take as u64;
        }
        Ok(false)
    }
}

/// Whether a batch numbered `seqno` may follow one numbered `last` (`None`: it is the first).
///
/// The number lies outside the batch's checksum, and fjall believes any: a row under a wrong one hides newer rows or is
/// hidden by older ones.
pub(in crate::log) fn may_follow(last: Option<u64>, seqno: u64) -> bool {
    last.is_none_or(|last| seqno > last && seqno - last < STEP_MAX)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}
