//! A place in a feed of one who may not see everything.

use std::fmt;
use std::str::FromStr;

use crate::feed::{CursorError, FeedCursor};
use crate::id::{Lsn, decode_base32, encode_base32};

/// How far a feed was followed, and as of when it was told what may be seen.
///
/// It prints as the feed's cursor; where not everything may be seen, a dot and 47 characters more, or 85 in the middle of a
/// step. `docs/feed.md` says what is in them.
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
    /// The rules and whoever asks; all zeros where nobody can go on: half of a difference was told that cannot be named.
    pub(super) name: [u8; 8],
    pub(super) position: Lsn,
    pub(super) time_ms: u64,
    /// How much he was told of a step to a later moment.
    pub(super) step: Option<Step>,
}

/// A part of a step to a later moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// The later moment.
    pub(super) position: Lsn,
    pub(super) time_ms: u64,
    /// Documents whose last record is not after that one were asked about as of the later moment.
    pub(super) at: Lsn,
}

/// Of a mark, and of one with a step.
const VERSIONS: [u8; 2] = [1, 2];
const LENGTHS: [usize; 2] = [1 + 8 + 8 + 8 + 4, 1 + 6 * 8 + 4];

impl Mark {
    /// What a cursor carries after which nobody can go on.
    pub(super) fn unsettled(self) -> Self {
        Self { name: [0; 8], step: None, ..self }
    }

    fn encode(&self, feed: &FeedCursor) -> Vec<u8> {
        let mut out = vec![VERSIONS[usize::from(self.step.is_some())]];
        out.extend(self.name);
        let mut put = |number: u64| out.extend(number.to_be_bytes());
        put(self.position.0);
        put(self.time_ms);
        if let Some(step) = self.step {
            [step.position.0, step.time_ms, step.at.0].into_iter().for_each(put);
        }
        let sum = checksum(feed, &out);
        out.extend(sum);
        out
    }

    fn decode(feed: &FeedCursor, bytes: &[u8]) -> Result<Self, CursorError> {
        let Some(kind) = LENGTHS.iter().position(|length| *length == bytes.len()) else {
            return Err(CursorError::Malformed);
        };
        let (told, sum) = bytes.split_at(bytes.len() - 4);
        if checksum(feed, told) != sum {
            return Err(CursorError::Malformed);
        }
        let mut rest = told;
        let [version] = take(&mut rest)?;
        if version != VERSIONS[kind] {
            return Err(CursorError::Version(version));
        }
        let name = take(&mut rest)?;
        let mut next = || take(&mut rest).map(u64::from_be_bytes);
        let (position, time_ms) = (Lsn(next()?), next()?);
        let step = match kind {
            0 => None,
            _ => Some(Step { position: Lsn(next()?), time_ms: next()?, at: Lsn(next()?) }),
        };
        Ok(Self { name, position, time_ms, step })
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
        if !LENGTHS.iter().any(|length| mark.len() == (length * 8).div_ceil(5)) {
            return Err(CursorError::Malformed);
        }
        let bytes = decode_base32(mark).ok_or(CursorError::Malformed)?;
        Ok(Self { feed, rights: Some(Mark::decode(&feed, &bytes)?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::FeedDigest;
    use crate::id::{Chain, LogId};

    const FEED: FeedCursor = FeedCursor {
        log_id: LogId([1; 16]),
        position: Lsn(7),
        chain: Chain([0; 16]),
        digest: FeedDigest([0; 16]),
        filter: [4; 8],
    };
    const MARK: Mark = Mark { name: [9; 8], position: Lsn(77), time_ms: 12, step: None };

    #[test]
    fn a_place_survives_its_text_and_nothing_else_is_one() {
        let feed = FEED;
        let bare = Place { feed, rights: None };
        assert_eq!((bare.to_string(), bare.to_string().parse()), (feed.to_string(), Ok(bare)));
        let step = Some(Step { position: Lsn(80), time_ms: 20, at: Lsn(33) });
        for (mark, length) in [(MARK, 47), (Mark { step, ..MARK }, 85)] {
            let place = Place { feed, rights: Some(mark) };
            let text = place.to_string();
            assert_eq!(text.len(), FeedCursor::TEXT_LENGTH + 1 + length);
            assert_eq!(text.parse(), Ok(place));
            for cut in 0..text.len() {
                let is_whole = cut == FeedCursor::TEXT_LENGTH;
                assert_eq!(text[..cut].parse::<Place>().is_ok(), is_whole, "{cut}");
            }
            let bytes = mark.encode(&feed);
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Mark::decode(&feed, &bad), Err(CursorError::Malformed), "bit {bit}");
            }
            let elsewhere = FeedCursor { position: Lsn(8), ..feed };
            assert_eq!(Mark::decode(&elsewhere, &bytes), Err(CursorError::Malformed));
            let mut newer = bytes;
            newer[0] = 3;
            let end = newer.len() - 4;
            let sum = checksum(&feed, &newer[..end]);
            newer[end..].copy_from_slice(&sum);
            assert_eq!(Mark::decode(&feed, &newer), Err(CursorError::Version(3)));
            assert_eq!(format!("{text}a").parse::<Place>(), Err(CursorError::Malformed));
        }
    }

    /// Cursors outlive the version that gave them.
    #[test]
    fn a_place_as_it_was_written_before_there_were_steps_is_read() {
        let text = "aeaqcaibaeaqcaibaeaqcaibaeaqaaaaaaaaaaahaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaibaeaqcaibaeq3j5j6y.aeeqscijbeeqsciaaaaaaaaaabgqaaaaaaaaaaamxmmc6wy";
        assert_eq!(text.parse(), Ok(Place { feed: FEED, rights: Some(MARK) }));
    }
}
