//! The rows of the projections: what the log says, arranged for looking things up.
//!
//! Every row is `version 1`, a bincode body, and the XXH3-64 of keyspace, key, version and body (8 bytes,
//! little-endian), so that a row that was damaged, or found under another key, is refused and rebuilt from the log.
//! A mutable row names the last record it took in: that is what it is trusted by.

use bincode::{Decode, Encode};

use super::record::{NameKind, NameRef, RECORD_VERSION, RecordError, decode, encode};
use super::storage::Keyspace;

/// A row of `doc_ix`, keyed by document and LSN: one record about a document. Written once.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum IndexRow {
    /// A change: what the change graph is made of.
    Change {
        /// Its SHA-256.
        hash: [u8; 32],
        /// Its author's name.
        actor: NameRef,
        /// Its number among the author's changes.
        seq: u64,
        /// The counter of its first operation.
        start_op: u64,
        /// How many operations it holds.
        op_count: u64,
        /// How far back its dependencies lie.
        deps: Vec<u64>,
    },
    /// A lifecycle statement, by its id.
    Lifecycle([u8; 32]),
    /// Changes were withdrawn, and their rows are gone: whatever was made of the document's changes before is void.
    Withdrawn {
        /// The change that took the place of the first of them.
        winner: [u8; 32],
        /// How many.
        changes: u64,
    },
    /// Automerge cannot apply a change: views made before may show it.
    Void {
        /// How far back the change's record lies.
        change: u64,
        /// The version of automerge.
        automerge: String,
    },
    /// The document may not be read here any more, or may be again.
    Withheld(bool),
}

/// One of a document's heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct HeadRow {
    /// The change.
    pub hash: [u8; 32],
    /// Its record.
    pub lsn: u64,
    /// The counter of its last operation.
    pub max_op: u64,
}

/// The rank, Lamport time and id by which lifecycle statements are ordered, and where the statement is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct StatementRow {
    /// The statement's id.
    pub id: [u8; 32],
    /// Its record.
    pub lsn: u64,
    /// Its rank, for creations; whether it purges, for others.
    pub rank: u8,
    /// Its Lamport time.
    pub lamport: u64,
    /// What it says: a [`super::record::LifecycleKind`] as a number.
    pub kind: u8,
}

/// The newest verified snapshot of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct SnapshotRef {
    /// The last record it holds.
    pub lsn: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// How many changes it holds.
    pub changes: u64,
}

/// What a document's `void` records say that count: those after the last one of another automerge version.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct VoidsRow {
    /// The version of automerge that could not apply the changes. Under another one they count for nothing.
    pub automerge: String,
    /// How many changes.
    pub changes: u32,
    /// The record of the earliest of them.
    pub first: u64,
}

/// The last `withheld` record of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct WithheldRow {
    /// Its place.
    pub lsn: u64,
    /// What it says.
    pub withheld: bool,
}

/// A row of `docs`, keyed by document: where the document stands.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DocumentRow {
    /// The newest record about it.
    pub last_lsn: u64,
    /// The record that first named it.
    pub created_lsn: u64,
    /// The collection's name.
    pub collection: NameRef,
    /// The collection's key, its place in `by_seq`.
    pub collection_key: [u8; 8],
    /// The document's own name, if it was created by name.
    pub name: Option<String>,
    /// Its heads, ascending by hash.
    pub heads: Vec<HeadRow>,
    /// How many changes it has.
    pub change_count: u64,
    /// How many bytes of chunks.
    pub change_bytes: u64,
    /// The highest operation counter.
    pub max_op: u64,
    /// The authors and their last sequence numbers, ascending; `None` when there are too many to list.
    pub clock: Option<Vec<(NameRef, u64)>>,
    /// The creation that decides collection and name.
    pub creation: Option<StatementRow>,
    /// The statement that decides whether it is visible.
    pub winner: Option<StatementRow>,
    /// The newest snapshot.
    pub snapshot: Option<SnapshotRef>,
    /// The record by which changes were withdrawn last; 0 when none ever were. Heads only advance within a generation.
    pub generation: u64,
    /// How often changes were withdrawn.
    pub withdrawals: u32,
    /// Changes that cannot be applied, if there are any.
    pub voids: Option<VoidsRow>,
    /// Whether it may be read here, if that was ever said.
    pub withheld: Option<WithheldRow>,
}

/// A row of `state` under a peer's node id: how far we have followed its log.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PeerRow {
    /// Its log.
    pub log_id: [u8; 16],
    /// The last footer followed.
    pub lsn: u64,
    /// The chain digest there.
    pub chain: [u8; 16],
}

/// A row of `state` under `c` and a consumer's name: how far it has followed a feed. It is written together with what the
/// consumer made of the events, so that both are there or neither.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ConsumerRow {
    /// The feed's cursor, as its bytes; empty before the first.
    pub cursor: Vec<u8>,
    /// Which of its makers' versions made its rows.
    pub version: u32,
    /// How many events it has taken in since it began anew.
    pub events: u64,
    /// Our clock when it was written, ms since 1970.
    pub updated_ms: u64,
    /// It is to begin anew, and its rows are being removed.
    pub clearing: bool,
}

/// An entry of the dictionary, a row of `state` under its reference.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct NameRow {
    /// What it names.
    pub kind: NameKind,
    /// The name.
    pub bytes: Vec<u8>,
}

/// The first part of a snapshot, a row of `snap`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SnapshotRow {
    /// The heads it was saved at.
    pub heads: Vec<[u8; 32]>,
    /// How many changes it holds.
    pub changes: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// BLAKE3 of the whole.
    pub digest: [u8; 32],
    /// How many parts follow.
    pub parts: u32,
}

/// A row of `held` under `q` and a slot of the ring: a change that is not let in again.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct QuarantineRow {
    /// How many were held before it.
    pub number: u64,
    /// Of which document it said to be.
    pub document: [u8; 16],
    /// Its SHA-256.
    pub hash: [u8; 32],
    /// Who brought it.
    pub peer: [u8; 32],
    /// What is wrong with it.
    pub why: String,
}

/// A row of `held` under `t`, a document and a change: what was made here and a node would not have.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RejectedRow {
    /// Of which document.
    pub document: [u8; 16],
    /// The change; that the document is deleted, when absent.
    pub change: Option<[u8; 32]>,
    /// The change's record; 0 without one.
    pub lsn: u64,
    /// The records of what it stood on and that was taken back with it.
    pub beneath: Vec<u64>,
    /// Which node.
    pub by: [u8; 32],
    /// Why, as that node said.
    pub why: String,
    /// When, our clock, ms since 1970.
    pub at_ms: u64,
}

/// A row of `held` under `r` and a change's hash: the bytes of a change that was refused. It is shown to nobody but the
/// operator, and let in when it comes again and is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RefusedRow {
    /// How many were kept before it.
    pub number: u64,
    /// The record that says so.
    pub lsn: u64,
    /// Who sent it.
    pub principal: NameRef,
    /// The version of the rules that refused it.
    pub rules_version: u32,
    /// The Automerge change chunk.
    pub chunk: Vec<u8>,
}

/// A row of `held` under `R` and a number: the order in which refused changes were kept.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RefusedOrderRow {
    /// The change.
    pub hash: [u8; 32],
    /// How many bytes its chunk has.
    pub bytes: u64,
}

/// A row of `held` under `s`, a document and what was signed: a node's signature of whose an author is, as it came with
/// the author's first change. It is passed on, and no projection: without it this node answers for the author itself.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignatureRow {
    /// Ed25519, by the node in the change's origin.
    pub signature: [u8; 64],
}

/// The row of `state` about the view of a collection: the present values of its documents, for queries.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ViewRow {
    /// The layout of its rows; another one means that it is made again.
    pub layout: u32,
    /// The collection's name.
    pub collection: String,
    /// What is being done with it.
    pub phase: ViewPhase,
    /// Where it goes on in the collection's feed.
    pub cursor: Vec<u8>,
}

/// What is being done with a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum ViewPhase {
    /// Its rows are being removed.
    Clearing,
    /// Documents are being read for the first time.
    Filling {
        /// Those whose last record is at or before this one were.
        after: u64,
    },
    /// It follows the log.
    Following,
}

/// A row of `views`: a document's present value.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ValueRow {
    /// Its last record that the view has taken in.
    pub lsn: u64,
    /// Its heads.
    pub heads: Vec<[u8; 32]>,
    /// Its name, if it was created by one.
    pub name: Option<String>,
    /// The value is all of it.
    pub whole: bool,
    /// JSON.
    pub value: Vec<u8>,
}

/// The row of `state` about an index.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct IndexDefinitionRow {
    /// The collection's name.
    pub collection: String,
    /// What it is of.
    pub parts: Vec<IndexPartRow>,
    /// Somebody asked for it; else a query did.
    pub declared: bool,
    /// What is being done with it.
    pub phase: IndexPhase,
    /// When a query used it last, ms since 1970; now and then.
    pub used_ms: u64,
}

/// One field of an index.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct IndexPartRow {
    /// A JSON Pointer.
    pub path: String,
    /// Not the value but the elements of the list there.
    pub elements: bool,
    /// From the greatest to the least.
    pub descending: bool,
}

/// What is being done with an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum IndexPhase {
    /// Documents up to this one are in it, and whatever changed since it was begun.
    Building {
        /// The last document; `None` at the beginning.
        after: Option<[u8; 16]>,
    },
    /// Every document is in it.
    Ready,
    /// Its rows are being removed.
    Dropping,
}

/// The row of `state` that says which projections are there.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ProjectionRow {
    /// The layout's version; another one means a rebuild.
    pub layout: u32,
    /// A rebuild is under way, up to this record.
    pub rebuilding: Option<u64>,
}

/// The row of `state` that says where the text of rules is, keyed by their version.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RulesRow {
    /// The last `rules` record of that version.
    pub lsn: u64,
    /// The BLAKE3 of its text.
    pub digest: [u8; 32],
}

/// Encodes a row for `keyspace` and `key`.
#[must_use]
pub fn encode_row<T: Encode>(keyspace: Keyspace, key: &[u8], row: &T) -> Vec<u8> {
    let mut out = vec![RECORD_VERSION];
    out.extend(encode(row));
    let checksum = row_checksum(keyspace, key, &out);
    out.extend_from_slice(&checksum);
    out
}

/// Decodes the row found in `keyspace` under `key`.
///
/// # Errors
/// [`RecordError`] when any byte is not as it was written for that place.
pub fn decode_row<T: Decode<()>>(keyspace: Keyspace, key: &[u8], bytes: &[u8]) -> Result<T, RecordError> {
    let Some((body, stated)) = bytes.split_last_chunk::<8>() else {
        return Err(RecordError::Length);
    };
    if row_checksum(keyspace, key, body) != *stated {
        return Err(RecordError::Checksum);
    }
    match body.split_first() {
        Some((&RECORD_VERSION, body)) => decode(body),
        Some((&version, _)) => Err(RecordError::Version(version)),
        None => Err(RecordError::Length),
    }
}

fn row_checksum(keyspace: Keyspace, key: &[u8], body: &[u8]) -> [u8; 8] {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(keyspace.name().as_bytes());
    hasher.update(&[0]);
    hasher.update(key);
    hasher.update(body);
    hasher.digest().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_refused_elsewhere_and_when_any_bit_flips() {
        let row = PeerRow { log_id: [1; 16], lsn: 2, chain: [3; 16] };
        let bytes = encode_row(Keyspace::State, b"peer", &row);
        assert_eq!(decode_row(Keyspace::State, b"peer", &bytes), Ok(row));
        assert!(decode_row::<PeerRow>(Keyspace::State, b"pear", &bytes).is_err());
        assert!(decode_row::<PeerRow>(Keyspace::Docs, b"peer", &bytes).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_row::<PeerRow>(Keyspace::State, b"peer", &bad).is_err(), "bit {bit}");
        }
    }
}
