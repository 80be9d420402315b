//! How far somebody has followed a feed, as bytes and as a text to keep.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use super::event::FeedDigest;
use crate::id::{Chain, LogId, Lsn, decode_base32, encode_base32};

/// A place in a feed: everything up to it was delivered.
///
/// It prints as 111 characters of lower-case base32, without meaning to whoever keeps it. Its bytes are a promise:
/// `docs/feed.md`. Cursors of one log compare by position; those of two logs do not compare.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FeedCursor {
    /// Whose log.
    pub log_id: LogId,
    /// The last record that was delivered, or passed over.
    pub position: Lsn,
    /// The log's chain digest in the last footer at or before that record.
    pub chain: Chain,
    /// The feed's digest after the last event.
    pub digest: FeedDigest,
    /// Which feed: see [`Filter::key`](super::Filter::key).
    pub filter: [u8; 8],
}

/// Why a text is not a cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CursorError {
    /// It is not one, or not all of one.
    #[error("not a cursor: expected {} characters of base32 with a checksum that holds", FeedCursor::TEXT_LENGTH)]
    Malformed,
    /// A newer tidelog made it.
    #[error("the cursor's version is {0}, newer than this tidelog understands")]
    Version(u8),
}

const VERSION: u8 = 1;

impl FeedCursor {
    /// Its length in bytes, version and checksum included.
    pub const LENGTH: usize = 1 + 16 + 8 + 16 + 16 + 8 + 4;
    /// Its length as text.
    pub const TEXT_LENGTH: usize = (Self::LENGTH * 8).div_ceil(5);

    /// Before the first record of the log `log_id`, for the feed `filter`.
    #[must_use]
    pub fn beginning(log_id: LogId, filter: [u8; 8]) -> Self {
        Self { log_id, position: Lsn::ZERO, chain: Chain::default(), digest: FeedDigest::default(), filter }
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LENGTH] {
        let mut out = [0; Self::LENGTH];
        out[0] = VERSION;
        out[1..17].copy_from_slice(&self.log_id.0);
        out[17..25].copy_from_slice(&self.position.0.to_be_bytes());
        out[25..41].copy_from_slice(&self.chain.0);
        out[41..57].copy_from_slice(&self.digest.0);
        out[57..65].copy_from_slice(&self.filter);
        let checksum = checksum(&out[..65]);
        out[65..].copy_from_slice(&checksum);
        out
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`CursorError`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, CursorError> {
        let bytes: &[u8; Self::LENGTH] = bytes.try_into().map_err(|_| CursorError::Malformed)?;
        let mut rest = &bytes[..];
        let [version] = take(&mut rest)?;
        let cursor = Self {
            log_id: LogId(take(&mut rest)?),
            position: Lsn(u64::from_be_bytes(take(&mut rest)?)),
            chain: Chain(take(&mut rest)?),
            digest: FeedDigest(take(&mut rest)?),
            filter: take(&mut rest)?,
        };
        if checksum(&bytes[..65]) != take::<4>(&mut rest)? {
            return Err(CursorError::Malformed);
        }
        if version != VERSION {
            return Err(CursorError::Version(version));
        }
        Ok(cursor)
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], CursorError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(CursorError::Malformed)?;
    *rest = tail;
    Ok(*head)
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let mut out = [0; 4];
    out.copy_from_slice(&blake3::hash(bytes).as_bytes()[..4]);
    out
}

impl PartialOrd for FeedCursor {
    /// By position within one log; cursors of different logs do not compare.
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self.log_id == other.log_id).then(|| self.position.cmp(&other.position))
    }
}

impl fmt::Display for FeedCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode_base32(&self.encode()))
    }
}

impl FromStr for FeedCursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        if text.len() != Self::TEXT_LENGTH {
            return Err(CursorError::Malformed);
        }
        Self::decode(&decode_base32(text).ok_or(CursorError::Malformed)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor() -> FeedCursor {
        FeedCursor {
            log_id: LogId([1; 16]),
            position: Lsn(77),
            chain: Chain([2; 16]),
            digest: FeedDigest([3; 16]),
            filter: [4; 8],
        }
    }

    #[test]
    fn a_cursor_survives_its_text_and_nothing_else_is_one() {
        let text = cursor().to_string();
        assert_eq!(text.len(), FeedCursor::TEXT_LENGTH);
        assert_eq!(text.parse(), Ok(cursor()));
        assert_eq!(text.to_uppercase().parse(), Ok(cursor()), "case carries nothing");
        assert_eq!("".parse::<FeedCursor>(), Err(CursorError::Malformed));
        assert_eq!("0".repeat(FeedCursor::TEXT_LENGTH).parse::<FeedCursor>(), Err(CursorError::Malformed));
        let bytes = cursor().encode();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FeedCursor::decode(&bad), Err(CursorError::Malformed), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_cursor_is_named_as_such() {
        let mut bytes = cursor().encode();
        bytes[0] = 2;
        let sum = checksum(&bytes[..65]);
        bytes[65..].copy_from_slice(&sum);
        assert_eq!(FeedCursor::decode(&bytes), Err(CursorError::Version(2)));
    }

    #[test]
    fn cursors_compare_within_one_log_only() {
        let later = FeedCursor { position: Lsn(78), ..cursor() };
        assert!(cursor() < later);
        let elsewhere = FeedCursor { log_id: LogId([9; 16]), ..later };
        assert_eq!(cursor().partial_cmp(&elsewhere), None);
    }
}
