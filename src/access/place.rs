//! A place in a feed of one who may not see everything.

use std::fmt;
use std::str::FromStr;

use crate::feed::{CursorError, FeedCursor};
use crate::id::{Lsn, decode_base32, encode_base32};

/// How far a feed was followed, and as of when it was told what may be seen.
///
/// It prints as the feed's cursor; where not everything may be seen, a dot and 47 characters more. `docs/feed.md` says
/// what is in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// How far.
    pub(crate) feed: FeedCursor,
    /// Under which rights; `None` where everything may be seen.
    pub(super) rights: Option<Mark>,
}

/// As of when somebody was told what he may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// The rules and whoever asks; all zeros while what changed is told: whoever ends there knows half of it.
    pub(super) name: [u8; 8],
    pub(super) position: Lsn,
    pub(super) time_ms: u64,
}

const VERSION: u8 = 1;
const LENGTH: usize = 1 + 8 + 8 + 8 + 4;
const TEXT_LENGTH: usize = (LENGTH * 8).div_ceil(5);

impl Mark {
    /// What a cursor carries while it is told what changed.
    pub(super) fn unsettled(self) -> Self {
        Self { name: [0; 8], ..self }
    }

    fn encode(&self, feed: &FeedCursor) -> [u8; LENGTH] {
        let mut out = [0; LENGTH];
        out[0] = VERSION;
        out[1..9].copy_from_slice(&self.name);
        out[9..17].copy_from_slice(&self.position.0.to_be_bytes());
        out[17..25].copy_from_slice(&self.time_ms.to_be_bytes());
        let sum = checksum(feed, &out[..25]);
        out[25..].copy_from_slice(&sum);
        out
    }

    fn decode(feed: &FeedCursor, bytes: &[u8]) -> Result<Self, CursorError> {
        let mut rest = bytes;
        let [version] = take(&mut rest)?;
        let mark = Self {
            name: take(&mut rest)?,
            position: Lsn(u64::from_be_bytes(take(&mut rest)?)),
            time_ms: u64::from_be_bytes(take(&mut rest)?),
        };
        let sum: [u8; 4] = take(&mut rest)?;
        if !rest.is_empty() || checksum(feed, &bytes[..LENGTH - 4]) != sum {
            return Err(CursorError::Malformed);
        }
        if version == VERSION { Ok(mark) } else { Err(CursorError::Version(version)) }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], CursorError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(CursorError::Malformed)?;
    *rest = tail;
    Ok(*head)
}

/// Over both halves: a second one belongs to its first.
fn checksum(feed: &FeedCursor, bytes: &[u8]) -> [u8; 4] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&feed.encode()).update(bytes);
    let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
    [a, b, c, d]
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rights {
            None => self.feed.fmt(f),
            Some(mark) => write!(f, "{}.{}", self.feed, encode_base32(&mark.encode(&self.feed))),
        }
    }
}

impl FromStr for Place {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let Some((feed, mark)) = text.split_once('.') else { return Ok(Self { feed: text.parse()?, rights: None }) };
        let feed = feed.parse()?;
        if mark.len() != TEXT_LENGTH {
            return Err(CursorError::Malformed);
        }
        let bytes = decode_base32(mark).ok_or(CursorError::Malformed)?;
        Ok(Self { feed, rights: Some(Mark::decode(&feed, &bytes)?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::LogId;

    #[test]
    fn a_place_survives_its_text_and_nothing_else_is_one() {
        let feed = FeedCursor { position: Lsn(7), ..FeedCursor::beginning(LogId([1; 16]), [4; 8]) };
        let bare = Place { feed, rights: None };
        assert_eq!((bare.to_string(), bare.to_string().parse()), (feed.to_string(), Ok(bare)));
        let mark = Mark { name: [9; 8], position: Lsn(77), time_ms: 12 };
        let place = Place { feed, rights: Some(mark) };
        let text = place.to_string();
        assert_eq!(text.len(), FeedCursor::TEXT_LENGTH + 1 + TEXT_LENGTH);
        assert_eq!(text.parse(), Ok(place));
        for cut in 0..text.len() {
            let is_whole = cut == FeedCursor::TEXT_LENGTH;
            assert_eq!(text[..cut].parse::<Place>().is_ok(), is_whole, "{cut}");
        }
        let bytes = mark.encode(&feed);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Mark::decode(&feed, &bad), Err(CursorError::Malformed), "bit {bit}");
        }
        let elsewhere = FeedCursor { position: Lsn(8), ..feed };
        assert_eq!(Mark::decode(&elsewhere, &bytes), Err(CursorError::Malformed));
        let mut newer = bytes;
        newer[0] = 2;
        let sum = checksum(&feed, &newer[..25]);
        newer[25..].copy_from_slice(&sum);
        assert_eq!(Mark::decode(&feed, &newer), Err(CursorError::Version(2)));
        assert_eq!(format!("{text}a").parse::<Place>(), Err(CursorError::Malformed));
    }
}
