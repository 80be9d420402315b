//! The bytes of one log record. The promise is `docs/log-format.md`; this file and it change together.
//!
//! ```text
//! offset  size  field
//! 0       1     version, now 1
//! 1       1     kind
//! 2       2     flags, none defined: 0
//! 4       4     header length h
//! 8       4     payload length p
//! 12      h     header: bincode 2, `standard` (little-endian, variable-length integers)
//! 12+h    p     payload: an Automerge change chunk, a lifecycle record, or nothing
//! 12+h+p  16    XXH3-128 of the record's LSN (8 bytes, big-endian) and everything above
//! ```
//! Fixed-width integers are little-endian. The LSN is the row's key; it is in the checksum so that a row found under
//! another key is refused. A decoder refuses what it does not know: no byte of a record is ever skipped.

mod audit;
mod removal;

use bincode::{Decode, Encode};

pub use self::audit::{
    AllowedHeader, AttributedHeader, Claims, RefusedHeader, RefusedReason, RefusedWhat, RulePlace, RulesHeader,
    SubjectHeader, WriteKind,
};
pub use self::removal::{VoidHeader, WithdrawnHeader, WithheldHeader};
use crate::id::{ActorId, Chain, ChangeHash, CollectionName, DocumentId, Heads, Lsn, NodeId, first};

/// The version of every record and row written today.
pub const RECORD_VERSION: u8 = 1;

const FRAME_BYTES: usize = 12;
const CHECKSUM_BYTES: usize = 16;
/// No header comes near it: the longest is a change with its dependencies, a few bytes each.
const HEADER_BYTES_MAX: usize = 1 << 20;

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Fewer or more bytes than the lengths say.
    #[error("truncated or overlong record")]
    Length,
    /// A newer tidelog wrote it.
    #[error("record version {0} is newer than this tidelog understands")]
    Version(u8),
    /// The checksum does not match the bytes.
    #[error("checksum mismatch")]
    Checksum,
    /// The kind is unknown.
    #[error("unknown record kind {0}")]
    Kind(u8),
    /// The header does not decode.
    #[error("malformed header: {0}")]
    Header(String),
}

/// A reference into the log's dictionary of names; 0 is "this node itself" or "nobody".
pub type NameRef = u32;

/// What a `name` record names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[repr(u8)]
pub enum NameKind {
    /// An Automerge actor id.
    Actor,
    /// A node id.
    Node,
    /// Who was authenticated.
    Principal,
    /// A collection.
    Collection,
}

/// How thoroughly a change was checked before it was logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, Default)]
#[repr(u8)]
pub enum Admission {
    /// Made here, by an edit of the materialised document.
    #[default]
    Local,
    /// Bytes, hash, sequence, dependencies and operation range.
    Structural,
    /// Also applied to the materialised document.
    Full,
}

/// The header of a `change` record: everything a feed or a peer asks about a change, without its payload.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ChangeHeader {
    /// Which document.
    pub document: [u8; 16],
    /// Its collection's name.
    pub collection: NameRef,
    /// The change's SHA-256.
    pub hash: [u8; 32],
    /// Its author's name.
    pub actor: NameRef,
    /// Its number among the author's changes, from 1.
    pub seq: u64,
    /// The counter of its first operation.
    pub start_op: u64,
    /// How many operations it holds.
    pub op_count: u64,
    /// How far back in this log its dependencies lie: this record's LSN minus each of theirs.
    pub deps: Vec<u64>,
    /// The document's heads before it, likewise, when they were not its dependencies.
    pub heads_before: Option<Vec<u64>>,
    /// The author's clock, seconds since 1970; not to be trusted.
    pub time: i64,
    /// Our clock when it was logged, ms since 1970; never falls within a log.
    pub received_ms: u64,
    /// The node where it entered; 0 here.
    pub origin: NameRef,
    /// The peer that brought it; 0 when nobody did.
    pub via: NameRef,
    /// Who was allowed to write it, as `origin` knew them; 0 for nobody in particular.
    pub principal: NameRef,
    /// How it was checked where it entered.
    pub admission: Admission,
    /// The version of the rules that admitted it; 0 for none.
    pub rules_version: u32,
    /// BLAKE3 of the payload, 16 bytes: what the chain holds, so that a purged payload leaves a verifiable log.
    pub payload_digest: [u8; 16],
}

/// The header of a `lifecycle` record; its payload is the [`Lifecycle`]'s bytes.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct LifecycleHeader {
    /// Which document.
    pub document: [u8; 16],
    /// The collection it names.
    pub collection: NameRef,
    /// Our clock when it was logged, ms since 1970.
    pub received_ms: u64,
    /// The node where it entered; 0 here.
    pub origin: NameRef,
    /// The peer that brought it; 0 when nobody did.
    pub via: NameRef,
    /// BLAKE3 of the payload, 16 bytes.
    pub payload_digest: [u8; 16],
}

/// The header of a `name` record: one entry of the dictionary.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct NameHeader {
    /// What it names.
    pub kind: NameKind,
    /// The number it is known by from here on.
    pub reference: NameRef,
    /// The name itself.
    pub bytes: Vec<u8>,
}

/// The header of a `footer` record, the last of each commit group: the only place where a cursor may stand.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct FooterHeader {
    /// The first record of the group.
    pub first: u64,
    /// The chain digest over every record before this one.
    pub chain: [u8; 16],
    /// Our clock, ms since 1970.
    pub written_ms: u64,
}

/// The header of a `gap` record: positions skipped after an unclean stop.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct GapHeader {
    /// The last record before the gap; 0 when there is none.
    pub last: u64,
}

/// One record, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record {
    /// A change of a document, and its chunk.
    Change(ChangeHeader, Vec<u8>),
    /// A document was created, deleted, restored or purged, and the replicated record that says so.
    Lifecycle(LifecycleHeader, Vec<u8>),
    /// An entry of the dictionary.
    Name(NameHeader),
    /// The end of a commit group.
    Footer(FooterHeader),
    /// Positions that will never be used.
    Gap(GapHeader),
    /// Everything before was checked against its projections.
    Checkpoint,
    /// A change of a document that automerge cannot apply.
    Void(VoidHeader),
    /// Changes of a document that gave way to another of the same author and number.
    Withdrawn(WithdrawnHeader),
    /// A document may not be read here any more, or may be again.
    Withheld(WithheldHeader),
    /// Somebody sent what he may not write.
    Refused(RefusedHeader),
    /// What is claimed of somebody who writes.
    Subject(SubjectHeader),
    /// On whose behalf a statement was logged.
    Attributed(AttributedHeader),
    /// Rules that allow and refuse what follows.
    Rules(RulesHeader),
    /// Which `allow` lets somebody write what follows.
    Allowed(AllowedHeader),
}

/// Kind bytes. 13 to 15 are kept for `base` and `acl-touch`.
mod kind {
    pub(super) const CHANGE: u8 = 1;
    pub(super) const LIFECYCLE: u8 = 2;
    pub(super) const NAME: u8 = 3;
    pub(super) const FOOTER: u8 = 4;
    pub(super) const GAP: u8 = 5;
    pub(super) const CHECKPOINT: u8 = 6;
    pub(super) const VOID: u8 = 7;
    pub(super) const WITHDRAWN: u8 = 8;
    pub(super) const REFUSED: u8 = 9;
    pub(super) const SUBJECT: u8 = 10;
    pub(super) const ATTRIBUTED: u8 = 11;
    pub(super) const WITHHELD: u8 = 12;
    pub(super) const RULES: u8 = 16;
    pub(super) const ALLOWED: u8 = 17;
}

impl Record {
    /// The document it is about, if it is about one: those whose rows follow from it. What was refused is in none.
    #[must_use]
    pub fn document(&self) -> Option<DocumentId> {
        match self {
            Self::Change(header, _) => Some(DocumentId(header.document)),
            Self::Lifecycle(header, _) => Some(DocumentId(header.document)),
            Self::Void(header) => Some(DocumentId(header.document)),
            Self::Withdrawn(header) => Some(DocumentId(header.document)),
            Self::Withheld(header) => Some(DocumentId(header.document)),
            Self::Name(_) | Self::Footer(_) | Self::Gap(_) | Self::Checkpoint => None,
            Self::Refused(_) | Self::Subject(_) | Self::Attributed(_) => None,
            Self::Rules(_) | Self::Allowed(_) => None,
        }
    }

    /// Whether it only tells who was allowed what: no document, no feed and no peer has anything of it.
    #[must_use]
    pub fn is_of_audit(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Subject(_) | Self::Attributed(_) | Self::Rules(_) | Self::Allowed(_))
    }

    /// Encodes it as the value of the row at `lsn`, and gives the chain digest that follows `chain`.
    ///
    /// A footer leaves the chain as it is: it states the digest of what came before.
    #[must_use]
    pub fn encode(&self, lsn: Lsn, chain: Chain) -> (Vec<u8>, Chain) {
        let (kind, header, payload): (u8, Vec<u8>, &[u8]) = match self {
            Self::Change(header, payload) => (kind::CHANGE, encode(header), payload),
            Self::Lifecycle(header, payload) => (kind::LIFECYCLE, encode(header), payload),
            Self::Name(header) => (kind::NAME, encode(header), &[]),
            Self::Footer(header) => (kind::FOOTER, encode(header), &[]),
            Self::Gap(header) => (kind::GAP, encode(header), &[]),
            Self::Checkpoint => (kind::CHECKPOINT, Vec::new(), &[]),
            Self::Void(header) => (kind::VOID, encode(header), &[]),
            Self::Withdrawn(header) => (kind::WITHDRAWN, encode(header), &[]),
            Self::Withheld(header) => (kind::WITHHELD, encode(header), &[]),
            Self::Refused(header) => (kind::REFUSED, encode(header), &[]),
            Self::Subject(header) => (kind::SUBJECT, encode(header), &[]),
            Self::Attributed(header) => (kind::ATTRIBUTED, encode(header), &[]),
            Self::Rules(header) => (kind::RULES, encode(header), &[]),
            Self::Allowed(header) => (kind::ALLOWED, encode(header), &[]),
        };
        let mut out = Vec::with_capacity(FRAME_BYTES + header.len() + payload.len() + CHECKSUM_BYTES);
        out.extend_from_slice(&[RECORD_VERSION, kind, 0, 0]);
        out.extend_from_slice(&(header.len() as u32).to_le_bytes());
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(payload);
        let checksum = checksum(lsn, &out);
        out.extend_from_slice(&checksum);
        let chain = match self {
            Self::Footer(_) => chain,
            Self::Change(h, _) => next_chain(chain, lsn, kind, &header, &h.payload_digest),
            Self::Lifecycle(h, _) => next_chain(chain, lsn, kind, &header, &h.payload_digest),
            _ => next_chain(chain, lsn, kind, &header, &[0; 16]),
        };
        (out, chain)
    }

    /// Decodes the row at `lsn`, and gives the chain digest that follows `chain`.
    ///
    /// # Errors
    /// [`RecordError`] when any byte is not as it was written.
    pub fn decode(lsn: Lsn, bytes: &[u8], chain: Chain) -> Result<(Self, Chain), RecordError> {
        let raw = RawRecord::check(lsn, bytes)?;
        let record = raw.decode()?;
        Ok((record, raw.follow(lsn, chain)?))
    }

    /// Decodes the row at `lsn` without following the chain.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn read(lsn: Lsn, bytes: &[u8]) -> Result<Self, RecordError> {
        RawRecord::check(lsn, bytes)?.decode()
    }
}

/// A record whose frame and checksum hold, its header not yet decoded.
struct RawRecord<'a> {
    kind: u8,
    header: &'a [u8],
    payload: &'a [u8],
}

impl<'a> RawRecord<'a> {
    fn check(lsn: Lsn, bytes: &'a [u8]) -> Result<Self, RecordError> {
        let Some((frame, _)) = bytes.split_first_chunk::<FRAME_BYTES>() else {
            return Err(RecordError::Length);
        };
        if frame[0] != RECORD_VERSION {
            return Err(if frame[0] > RECORD_VERSION { RecordError::Version(frame[0]) } else { RecordError::Checksum });
        }
        let header_len = u32::from_le_bytes([frame[4], frame[5], frame[6], frame[7]]) as usize;
        let payload_len = u32::from_le_bytes([frame[8], frame[9], frame[10], frame[11]]) as usize;
        let body_len = FRAME_BYTES.saturating_add(header_len).saturating_add(payload_len);
        if body_len.saturating_add(CHECKSUM_BYTES) != bytes.len() || header_len > HEADER_BYTES_MAX {
            return Err(RecordError::Length);
        }
        let (body, stated) = bytes.split_at(body_len);
        if checksum(lsn, body) != stated {
            return Err(RecordError::Checksum);
        }
        if frame[2] != 0 || frame[3] != 0 {
            return Err(RecordError::Version(frame[2]));
        }
        let (header, payload) = body[FRAME_BYTES..].split_at(header_len);
        Ok(Self { kind: frame[1], header, payload })
    }

    fn decode(&self) -> Result<Record, RecordError> {
        let payload = || self.payload.to_vec();
        Ok(match self.kind {
            kind::CHANGE => Record::Change(decode(self.header)?, payload()),
            kind::LIFECYCLE => Record::Lifecycle(decode(self.header)?, payload()),
            kind::NAME => Record::Name(decode(self.header)?),
            kind::FOOTER => Record::Footer(decode(self.header)?),
            kind::GAP => Record::Gap(decode(self.header)?),
            kind::CHECKPOINT if self.header.is_empty() => Record::Checkpoint,
            kind::CHECKPOINT => return Err(RecordError::Length),
            kind::VOID => Record::Void(decode(self.header)?),
            kind::WITHDRAWN => Record::Withdrawn(decode(self.header)?),
            kind::WITHHELD => Record::Withheld(decode(self.header)?),
            kind::REFUSED => Record::Refused(decode(self.header)?),
            kind::SUBJECT => Record::Subject(decode(self.header)?),
            kind::ATTRIBUTED => Record::Attributed(decode(self.header)?),
            kind::RULES => Record::Rules(decode(self.header)?),
            kind::ALLOWED => Record::Allowed(decode(self.header)?),
            other => return Err(RecordError::Kind(other)),
        })
    }

    fn follow(&self, lsn: Lsn, chain: Chain) -> Result<Chain, RecordError> {
        let digest = match self.kind {
            kind::FOOTER => return Ok(chain),
            kind::CHANGE => decode::<ChangeHeader>(self.header)?.payload_digest,
            kind::LIFECYCLE => decode::<LifecycleHeader>(self.header)?.payload_digest,
            _ => [0; 16],
        };
        Ok(next_chain(chain, lsn, self.kind, self.header, &digest))
    }
}

/// The digest of a payload, as headers and the chain hold it.
#[must_use]
pub fn payload_digest(payload: &[u8]) -> [u8; 16] {
    first(blake3::hash(payload).as_bytes())
}

fn next_chain(chain: Chain, lsn: Lsn, kind: u8, header: &[u8], payload_digest: &[u8; 16]) -> Chain {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&chain.0);
    hasher.update(&lsn.0.to_be_bytes());
    hasher.update(&[kind]);
    hasher.update(header);
    hasher.update(payload_digest);
    Chain(first(hasher.finalize().as_bytes()))
}

fn checksum(lsn: Lsn, body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(&lsn.0.to_be_bytes());
    hasher.update(body);
    hasher.digest128().to_le_bytes()
}

/// What happened to a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[repr(u8)]
pub enum LifecycleKind {
    /// It came to be.
    Created,
    /// It is hidden until restored; its history is kept.
    Deleted,
    /// It is visible again.
    Restored,
    /// Its bytes are erased for good.
    Purged,
}

/// How a document came to be; of two creations the lower rank decides the collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[repr(u8)]
pub enum CreationRank {
    /// Through the library, the command line or the TypeScript client.
    Asked,
    /// By the path a WebSocket client connected to.
    Path,
    /// By an import, or found without a creation.
    Imported,
}

/// A replicated statement about a document's life. Its id is the BLAKE3 of its bytes.
///
/// Of all creations the one with the smallest (rank, lamport, id) decides the collection and the name; of all
/// statements the one with the greatest (purged, lamport, id) decides whether the document is visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lifecycle {
    /// Which document.
    pub document: DocumentId,
    /// The collection it is said to be in.
    pub collection: CollectionName,
    /// What happened.
    pub kind: LifecycleKind,
    /// How it was created; of meaning for creations only.
    pub rank: CreationRank,
    /// Greater than that of every statement about the document its author knew.
    pub lamport: u64,
    /// The node that made the statement.
    pub author: NodeId,
    /// The actor that asked for it, if one did.
    pub actor: Option<ActorId>,
    /// The author's clock, ms since 1970; not to be trusted.
    pub time_ms: u64,
    /// What the author saw of the document.
    pub heads: Heads,
    /// The name, for a named document.
    pub name: Option<String>,
}

/// The wire and disk form of [`Lifecycle`].
#[derive(Encode, Decode)]
struct LifecycleBytes {
    document: [u8; 16],
    collection: String,
    kind: LifecycleKind,
    rank: CreationRank,
    lamport: u64,
    author: [u8; 32],
    actor: Option<Vec<u8>>,
    time_ms: u64,
    heads: Vec<[u8; 32]>,
    name: Option<String>,
}

/// The identity of one lifecycle statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LifecycleId(pub [u8; 32]);

impl Lifecycle {
    /// The longest encoding, in bytes: room for about a hundred heads.
    pub const BYTES_MAX: usize = 4096;
    /// The longest name of a document, in bytes.
    pub const NAME_BYTES_MAX: usize = 256;

    /// Its bytes, version first.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![RECORD_VERSION];
        out.extend(encode(&LifecycleBytes {
            document: self.document.0,
            collection: self.collection.as_str().to_owned(),
            kind: self.kind,
            rank: self.rank,
            lamport: self.lamport,
            author: self.author.0,
            actor: self.actor.as_ref().map(|actor| actor.as_bytes().to_vec()),
            time_ms: self.time_ms,
            heads: self.heads.as_slice().iter().map(|hash| hash.0).collect(),
            name: self.name.clone(),
        }));
        out
    }

    /// Reads what [`Self::encode`] wrote, from a peer or the log.
    ///
    /// # Errors
    /// [`RecordError`] for anything that is not the one encoding of a lifecycle statement within its bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let malformed = |why: &str| RecordError::Header(why.to_owned());
        if bytes.len() > Self::BYTES_MAX {
            return Err(RecordError::Length);
        }
        let (&version, body) = bytes.split_first().ok_or(RecordError::Length)?;
        if version != RECORD_VERSION {
            return Err(RecordError::Version(version));
        }
        let raw: LifecycleBytes = decode(body)?;
        let name_fits = raw.name.as_ref().is_none_or(|name| name.len() <= Self::NAME_BYTES_MAX);
        let actor = match raw.actor {
            Some(bytes) => Some(ActorId::new(&bytes).ok_or_else(|| malformed("actor id"))?),
            None => None,
        };
        let lifecycle = Self {
            document: DocumentId(raw.document),
            collection: CollectionName::new(raw.collection).map_err(|e| malformed(&e.to_string()))?,
            kind: raw.kind,
            rank: raw.rank,
            lamport: raw.lamport,
            author: NodeId(raw.author),
            actor,
            time_ms: raw.time_ms,
            heads: Heads::new(raw.heads.into_iter().map(ChangeHash).collect()),
            name: raw.name,
        };
        // Its identity is the hash of its bytes, so there must be one encoding only.
        if !name_fits || lifecycle.encode() != bytes {
            return Err(malformed("not the canonical encoding"));
        }
        Ok(lifecycle)
    }

    /// The identity of the statement that has these bytes.
    #[must_use]
    pub fn id_of(bytes: &[u8]) -> LifecycleId {
        LifecycleId(*blake3::hash(bytes).as_bytes())
    }
}

/// What is equal on two replicas that agree about a document: its heads, its creation and its lifecycle.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct StateDigest(pub [u8; 16]);

impl StateDigest {
    /// Digests a document's state.
    #[must_use]
    pub fn of(document: DocumentId, heads: &Heads, creation: Option<LifecycleId>, winner: Option<LifecycleId>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("tidelog 2026-11 document state");
        hasher.update(&document.0);
        for id in [creation, winner] {
            hasher.update(&id.map_or([0; 32], |id| id.0));
        }
        for hash in heads.as_slice() {
            hasher.update(&hash.0);
        }
        Self(first(hasher.finalize().as_bytes()))
    }
}

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<{ HEADER_BYTES_MAX }>,
> = bincode::config::standard().with_limit::<{ HEADER_BYTES_MAX }>();

/// Encodes one of our own structs, which are far below the limit.
pub(super) fn encode<T: Encode>(value: &T) -> Vec<u8> {
    // The limit binds decoding only, and our structs hold nothing that bincode cannot write.
    bincode::encode_to_vec(value, CONFIG).unwrap_or_default()
}

/// Decodes one of our own structs from exactly `bytes`.
pub(super) fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, RecordError> {
    let (value, used) =
        bincode::decode_from_slice(bytes, CONFIG).map_err(|error| RecordError::Header(error.to_string()))?;
    if used == bytes.len() { Ok(value) } else { Err(RecordError::Length) }
}

#[cfg(test)]
mod tests;
