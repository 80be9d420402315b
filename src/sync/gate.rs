//! What an Automerge sync message must fulfil before any of it is used.
//!
//! automerge trusts the parameters of a Bloom filter: twelve bytes from a peer can cost it gigabytes or a division by
//! zero. So the message is walked here, with every count bounded by the bytes that are left, and automerge is only
//! handed a filter whose parameters are sound. Chunks are cut apart by their headers and not opened; whoever takes
//! them verifies them.
//!
//! ```text
//! message  = 0x42 | 0x43, hashes (heads), hashes (need), list of have, list of bytes (chunks), optional flags
//! have     = hashes (the last sync), bytes (Bloom filter)
//! filter   = nothing, or entries, bits an entry, probes, bits
//! chunk    = 85 6f 4a 83, checksum 4, type 1, length, contents
//! ```
//! Numbers are unsigned LEB128; a list is its count and its items, bytes their length and themselves.

use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::sync::{BloomFilter, Have, MessageFlags};

use crate::id::ChangeHash;

/// Filters one message may bring.
pub const HAVE_MAX: usize = 4;
/// Changes one filter may summarise.
pub const BLOOM_ENTRIES_MAX: u64 = 1 << 20;
/// Bits a filter may spend on a change.
pub const BLOOM_BITS_PER_ENTRY_MAX: u64 = 32;
/// Bits a filter may test for a change.
pub const BLOOM_PROBES_MAX: u64 = 32;

/// Why a sync message is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// The message or a chunk in it ends too early or is not what its first bytes say.
    #[error("malformed sync message: {0}")]
    Malformed(&'static str),
    /// A number is out of bounds.
    #[error("sync message: {what} is {found}; at most {max} is allowed")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// What the message says.
        found: u64,
        /// The bound.
        max: u64,
    },
    /// automerge panicked on it.
    #[error("sync message: automerge panicked")]
    Panicked,
}

/// A sync message that may be used.
#[derive(Debug, Clone, PartialEq)]
pub struct SyncMessage {
    /// The sender's heads.
    pub heads: Vec<ChangeHash>,
    /// Changes the sender asks for by name.
    pub need: Vec<ChangeHash>,
    /// What the sender has.
    pub have: Vec<Have>,
    /// The chunks it brings, cut apart.
    pub chunks: Vec<Chunk>,
    /// Its flags; absent from peers that know only the first version of the protocol.
    pub flags: Option<MessageFlags>,
}

/// One chunk as it lies in a message or a file; not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// What its header says it is.
    pub kind: ChunkKind,
    /// All of it, with its header.
    pub bytes: Vec<u8>,
}

/// What a chunk's header says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChunkKind {
    /// A whole document.
    Document,
    /// One change, deflated or not.
    Change,
    /// Several changes in one, an experiment of automerge 0.12.
    Bundle,
}

/// Reads a sync message.
///
/// # Errors
/// [`GateError`] when it is malformed or asks for more than the bounds above.
///
/// # Cost
/// Linear in the message; memory at most twice its length.
pub fn read_message(bytes: &[u8]) -> Result<SyncMessage, GateError> {
    let mut input = Input { left: bytes };
    if !matches!(input.byte()?, 0x42 | 0x43) {
        return Err(GateError::Malformed("it does not begin as one"));
    }
    let heads = input.hashes()?;
    let need = input.hashes()?;
    let count = within("filters", input.number()?, HAVE_MAX as u64)?;
    let have = (0..count).map(|_| read_have(&mut input)).collect::<Result<_, _>>()?;
    let count = input.number()?;
    let mut joined = Vec::new();
    for _ in 0..count {
        joined.extend_from_slice(input.prefixed()?);
    }
    // Older peers send nothing here; what follows the flags is for later versions.
    let flags = if input.left.is_empty() { None } else { Some(read_flags(input.prefixed()?)) };
    Ok(SyncMessage { heads, need, have, chunks: split_chunks(&joined)?, flags })
}

/// Cuts concatenated chunks apart by their headers.
///
/// # Errors
/// [`GateError::Malformed`] when the bytes are not a whole number of chunks of known types.
pub fn split_chunks(bytes: &[u8]) -> Result<Vec<Chunk>, GateError> {
    let mut input = Input { left: bytes };
    let mut chunks = Vec::new();
    while !input.left.is_empty() {
        let whole = input.left;
        if input.take(4)? != [0x85, 0x6f, 0x4a, 0x83] {
            return Err(GateError::Malformed("a chunk does not begin as one"));
        }
        input.take(4)?;
        let kind = match input.byte()? {
            0 => ChunkKind::Document,
            1 | 2 => ChunkKind::Change,
            3 => ChunkKind::Bundle,
            _ => return Err(GateError::Malformed("a chunk has an unknown type")),
        };
        input.prefixed()?;
        chunks.push(Chunk { kind, bytes: whole[..whole.len() - input.left.len()].to_vec() });
    }
    Ok(chunks)
}

/// Calls into automerge with what a peer sent, and survives its panics.
///
/// # Errors
/// [`GateError::Panicked`] when it did.
pub fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, GateError> {
    // Nothing the call could leave half changed is used afterwards: the message is dropped and the link closed.
    catch_unwind(AssertUnwindSafe(call)).map_err(|_| GateError::Panicked)
}

fn read_have(input: &mut Input<'_>) -> Result<Have, GateError> {
    let last_sync = input.hashes()?.into_iter().map(|hash| automerge::ChangeHash(hash.0)).collect();
    let filter = input.prefixed()?;
    check_filter(filter)?;
    let bloom =
        guarded(|| BloomFilter::try_from(filter))?.map_err(|_| GateError::Malformed("a filter does not decode"))?;
    Ok(Have { last_sync, bloom })
}

/// Checks a filter's parameters and that its bits are all there, and nothing else.
fn check_filter(bytes: &[u8]) -> Result<(), GateError> {
    if bytes.is_empty() {
        return Ok(());
    }
    let mut input = Input { left: bytes };
    let entries = within("a filter's number of entries", input.number()?, BLOOM_ENTRIES_MAX)?;
    let bits = within("a filter's bits an entry", input.number()?, BLOOM_BITS_PER_ENTRY_MAX)?;
    within("a filter's number of probes", input.number()?, BLOOM_PROBES_MAX)?;
    if entries == 0 || bits == 0 {
        return Err(GateError::Malformed("a filter has no bits"));
    }
    if (entries * bits).div_ceil(8) != input.left.len() as u64 {
        return Err(GateError::Malformed("a filter's length is not what its parameters say"));
    }
    Ok(())
}

fn read_flags(bytes: &[u8]) -> MessageFlags {
    let mut flags = MessageFlags::new();
    bytes.iter().filter(|&&byte| byte & 0x80 != 0).for_each(|byte| flags.set(byte & 0x7f));
    flags
}

fn within(what: &'static str, found: u64, max: u64) -> Result<u64, GateError> {
    if found <= max { Ok(found) } else { Err(GateError::TooMany { what, found, max }) }
}

/// What is left to read.
struct Input<'a> {
    left: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], GateError> {
        let (taken, left) = self.left.split_at_checked(length).ok_or(GateError::Malformed("it ends too early"))?;
        self.left = left;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, GateError> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u64, GateError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                // As automerge: a number has one form.
                let shortest = shift == 0 || bits != 0;
                return if shortest { Ok(number) } else { Err(GateError::Malformed("a number is overlong")) };
            }
        }
        Err(GateError::Malformed("a number does not fit 64 bits"))
    }

    fn prefixed(&mut self) -> Result<&'a [u8], GateError> {
        let length = self.number()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn hashes(&mut self) -> Result<Vec<ChangeHash>, GateError> {
        let count = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        let bytes = self.take(count.saturating_mul(32))?;
        let (hashes, _) = bytes.as_chunks::<32>();
        Ok(hashes.iter().map(|hash| ChangeHash(*hash)).collect())
    }
}

#[cfg(test)]
mod tests {
    use automerge::sync::{Message, MessageVersion, SyncDoc};
    use automerge::transaction::Transactable;
    use proptest::prelude::*;

    use super::*;

    fn message(changes: u64, entries: usize) -> Vec<u8> {
        let mut doc = automerge::AutoCommit::new();
        for n in 0..changes {
            doc.put(automerge::ROOT, "n", n as i64).unwrap();
            doc.commit();
        }
        let hashes: Vec<_> = (0..entries).map(|n| automerge::ChangeHash([n as u8; 32])).collect();
        let chunks: Vec<Vec<u8>> = doc.get_changes(&[]).into_iter().map(|c| c.raw_bytes().to_vec()).collect();
        Message {
            heads: doc.get_heads(),
            need: vec![automerge::ChangeHash([3; 32])],
            have: vec![Have { last_sync: hashes.clone(), bloom: BloomFilter::from_hashes(hashes.iter()) }],
            changes: chunks.concat().into(),
            flags: Some({
                let mut flags = MessageFlags::new();
                flags.set(MessageFlags::READ_ONLY);
                flags
            }),
            version: MessageVersion::V2,
        }
        .encode()
    }

    #[test]
    fn a_message_is_read_as_automerge_reads_it() {
        let bytes = message(3, 5);
        let (ours, theirs) = (read_message(&bytes).unwrap(), Message::decode(&bytes).unwrap());
        assert_eq!(
            ours.heads.iter().map(|h| h.0).collect::<Vec<_>>(),
            theirs.heads.iter().map(|h| h.0).collect::<Vec<_>>()
        );
        assert_eq!((ours.have, ours.flags), (theirs.have, theirs.flags));
        assert_eq!(ours.need, [ChangeHash([3; 32])]);
        assert_eq!(ours.chunks.len(), 3);
        assert!(ours.chunks.iter().all(|chunk| automerge::Change::try_from(&chunk.bytes[..]).is_ok()));
    }

    #[test]
    fn a_saved_document_is_one_chunk_and_bytes_behind_it_are_refused() {
        let mut doc = automerge::AutoCommit::new();
        doc.put(automerge::ROOT, "n", 1).unwrap();
        let mut saved = doc.save();
        assert_eq!(split_chunks(&saved).unwrap(), [Chunk { kind: ChunkKind::Document, bytes: saved.clone() }]);
        let generated = doc.sync().generate_sync_message(&mut automerge::sync::State::new()).unwrap();
        assert!(read_message(&generated.encode()).unwrap().chunks.is_empty());
        saved.push(0x85);
        assert!(split_chunks(&saved).is_err());
    }

    /// The vectors that cost automerge 0.12 gigabytes, seconds or a panic.
    #[test]
    fn hostile_filters_are_refused() {
        let with_filter = |filter: &[u8]| {
            let mut bytes = vec![0x42, 0, 0, 1, 0, filter.len() as u8];
            bytes.extend_from_slice(filter);
            bytes.push(0);
            read_message(&bytes)
        };
        assert!(with_filter(&[]).is_ok());
        assert!(with_filter(&[1, 10, 7, 0, 0]).is_ok());
        // No bits, so a division by zero.
        assert_eq!(with_filter(&[1, 0, 7]), Err(GateError::Malformed("a filter has no bits")));
        assert_eq!(with_filter(&[0, 10, 7]), Err(GateError::Malformed("a filter has no bits")));
        // Four thousand million probes a change.
        let probes = with_filter(&[1, 10, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0]);
        assert!(matches!(probes, Err(GateError::TooMany { what: "a filter's number of probes", .. })));
        let entries = with_filter(&[0xff, 0xff, 0xff, 0xff, 0x0f, 10, 7]);
        assert!(matches!(entries, Err(GateError::TooMany { what: "a filter's number of entries", .. })));
        assert!(matches!(with_filter(&[1, 33, 7, 0, 0, 0, 0, 0]), Err(GateError::TooMany { .. })));
        assert!(matches!(with_filter(&[1, 10, 7, 0]), Err(GateError::Malformed(_))), "too short");
        assert!(matches!(with_filter(&[1, 10, 7, 0, 0, 0]), Err(GateError::Malformed(_))), "too long");
        // Five filters; 2^63 hashes; 2^63 chunks.
        assert!(matches!(read_message(&[0x42, 0, 0, 5]), Err(GateError::TooMany { what: "filters", .. })));
        let huge = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01];
        assert!(read_message(&[&[0x42][..], &huge].concat()).is_err());
        assert!(read_message(&[&[0x42, 0, 0, 0][..], &huge].concat()).is_err());
        assert!(read_message(&[]).is_err());
        assert!(read_message(&[0x44, 0, 0, 0, 0]).is_err());
    }

    proptest! {
        /// Whatever the bytes, reading ends without a panic, and what is accepted automerge accepts too.
        #[test]
        fn damage_never_panics(
            at in any::<prop::sample::Index>(),
            flip in 1_u8..=255,
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = message(2, 3);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(read) = read_message(&bytes) {
                let theirs = Message::decode(&bytes);
                prop_assert!(theirs.is_ok_and(|theirs| theirs.have == read.have));
            }
            let _ = read_message(&noise);
            let _ = read_message(&[&[0x42, 0, 0][..], &noise].concat());
            let _ = split_chunks(&[&[0x85, 0x6f, 0x4a, 0x83][..], &noise].concat());
        }
    }
}
