//! The bytes of a link's frames. The promise is `docs/protocol.md`, section 3; this file and it change together.
//!
//! ```text
//! offset  size  field
//! 0       4     length of what follows, little-endian; at most 1 MiB (written and read by the transport)
//! 4       1     type
//! 5       1     version of the body, now 1
//! 6       ...   body: bincode 2, `standard` (little-endian, variable-length integers)
//! ```
//! A frame here is what follows the length. Decoding never panics and allocates no more than a small multiple of the
//! frame; a type with the high bit set that is not known decodes to [`Frame::Skipped`].

mod access;
mod ids;

use bincode::error::EncodeError;
use bincode::{Decode, Encode};

pub use self::access::{
    ATTESTATIONS_MAX, AUTHORS_MAX, Access, Attestations, Attested, Auth, Author, Authors, DENIED_MAX, Denied,
    DeniedRow, Listing, TOKEN_BYTES_MAX, TakenBack, Token, WHY_BYTES_MAX,
};
use crate::id::{Chain, DocumentId, Heads, LogCursor, LogId, Lsn, NodeId};

/// The longest frame, its length prefix not counted.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// The longest piece that [`Part`] and [`StreamPart`] carry.
pub const PART_BYTES_MAX: usize = 256 << 10;
/// What a row takes in a batch beside its bytes, at most.
pub const ROW_BYTES_BESIDE: usize = 1 + 1 + 5 + 5 + 5;
/// The longest text by which a peer says what it is.
pub const AGENT_BYTES_MAX: usize = 64;
/// The longest name of who was allowed to write something.
pub const PRINCIPAL_BYTES_MAX: usize = 256;
/// The version of every body written today.
pub const BODY_VERSION: u8 = 1;

/// Why bytes are not a frame, or a frame cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// There is no room for a type and a version.
    #[error("a frame of {0} bytes is too short")]
    TooShort(usize),
    /// The frame is longer than a frame may be.
    #[error("a frame of {bytes} bytes is longer than the {max} allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The type is unknown and may not be skipped.
    #[error("unknown frame type {0}")]
    Type(u8),
    /// The body's version is unknown.
    #[error("frame type {kind} has a body of version {version}; 1 is known")]
    Version {
        /// The frame's type.
        kind: u8,
        /// The version found.
        version: u8,
    },
    /// The body does not decode.
    #[error("the body of frame type {kind} is malformed: {reason}")]
    Body {
        /// The frame's type.
        kind: u8,
        /// What is wrong.
        reason: String,
    },
}

/// One frame of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frame {
    /// Who the sender is and where it stands.
    Hello(Hello),
    /// What the sender makes of the receiver's `Hello`.
    HelloAck(HelloAck),
    /// A slice of the sender's log.
    ChangeBatch(ChangeBatch),
    /// What the sender has durably.
    Ack(Ack),
    /// A page of the sender's documents.
    Inventory(Inventory),
    /// The documents the sender needs.
    Want(Want),
    /// What answers a [`Want`], for one document.
    DocumentBatch(DocumentBatch),
    /// A part of an Automerge sync message.
    DocSync(DocSync),
    /// A piece of a row that is too long for its batch.
    Part(Part),
    /// The sender cannot take more for a while.
    Busy(Busy),
    /// The begin of a streamed document chunk.
    StreamBegin(StreamBegin),
    /// A piece of a streamed document chunk.
    StreamPart(StreamPart),
    /// Who the sender's user is.
    Auth(Auth),
    /// What the receiver may read.
    Access(Access),
    /// What the receiver may not write.
    Denied(Denied),
    /// Whose a document's authors are.
    Authors(Authors),
    /// Who answers for that.
    Attestations(Attestations),
    /// What the sender has taken back of what it may not write.
    TakenBack(TakenBack),
    /// A frame of a later protocol that this version may ignore; its type.
    Skipped(u8),
}

/// The first frame of both sides.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Who the sender is; the transport proves it.
    pub node: NodeId,
    /// The name of the sender's log.
    pub log_id: LogId,
    /// Where the sender's log ends, its last durable footer.
    pub tail: Position,
    /// What the sender can and wants to do: [`CAPABILITY_SNAPSHOTS`], [`CAPABILITY_STRICT`], [`CAPABILITY_TOKEN`].
    pub capabilities: u64,
    /// The sender's software and version, at most 64 bytes.
    pub agent: String,
    /// A one-time secret that admits an unknown key.
    pub invite: Option<[u8; 16]>,
    /// How far the sender has followed the receiver's log.
    pub cursor: Option<LogCursor>,
}

/// The sender takes document chunks on streams of their own.
pub const CAPABILITY_SNAPSHOTS: u64 = 1;
/// The sender wants every document's content to travel in Automerge sync messages.
pub const CAPABILITY_STRICT: u64 = 2;
/// An [`Auth`] frame follows, and the sender is to be taken for whom it names.
pub const CAPABILITY_TOKEN: u64 = 4;

/// A footer of the sender's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Position {
    /// The footer's position.
    pub lsn: Lsn,
    /// The chain digest it states.
    pub chain: Chain,
}

/// The answer to a [`Hello`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct HelloAck {
    /// Where the receiver's cursor stands in the sender's log.
    pub judgement: Judgement,
    /// What the receiver may be here.
    pub role: Role,
}

/// Where a cursor stands in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Judgement {
    /// At a footer with this very chain: everything before it is shared.
    Known,
    /// There was no cursor, or it is of another log.
    Unknown,
    /// The log is the same but its history is another; the log ends at `lsn`.
    Diverged {
        /// Where the log ends.
        lsn: Lsn,
    },
}

/// What a peer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Role {
    /// It relays others' changes.
    Node,
    /// It brings its own changes only.
    Client,
}

/// A slice of the sender's log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct ChangeBatch {
    /// Counts the batches of this half, from 1.
    pub number: u64,
    /// The documents that rows name by their place here.
    pub documents: Vec<DocumentId>,
    /// The origins that rows name by their place here.
    pub origins: Vec<Origin>,
    /// Empty: signatures go in [`Attestations`].
    pub attestation: Vec<u8>,
    /// The records, in the log's order.
    pub rows: Vec<Row>,
    /// The footer the batch ends at, if it ends at one.
    pub end: Option<Position>,
}

/// Where a row entered the network and how it was admitted there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Origin {
    /// The node where it entered.
    pub node: NodeId,
    /// Who was allowed to write it, at most 256 bytes; empty for nobody in particular.
    pub principal: String,
    /// How it was checked there: 0 local edit, 1 structural, 2 full.
    pub admission: u8,
    /// The version of the rules that admitted it; 0 for none.
    pub rules_version: u32,
}

/// One record of a log as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Row {
    /// What `bytes` is.
    pub kind: RowKind,
    /// [`ROW_IN_PARTS`] or nothing.
    pub flags: u8,
    /// The document's place in the batch's list; 0 in a [`DocumentBatch`].
    pub document: u32,
    /// The origin's place in the batch's list.
    pub origin: u32,
    /// One change chunk or one lifecycle record; empty with [`ROW_IN_PARTS`].
    pub bytes: Vec<u8>,
}

/// The row's bytes are those of all [`Part`] frames since the batch before. At most one row of a batch is so.
pub const ROW_IN_PARTS: u8 = 1;

/// What a row's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub enum RowKind {
    /// One Automerge change chunk.
    Change,
    /// A lifecycle record.
    Lifecycle,
}

/// Every batch up to `number` is durable at the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Ack {
    /// The batch's number.
    pub number: u64,
}

/// A page of the sender's documents, in order of id.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Inventory {
    /// Counts the pages of this half, from 1.
    pub page: u64,
    /// Only documents that changed after it are listed; all when absent.
    pub since: Option<Lsn>,
    /// The documents and what state they are in.
    pub rows: Vec<InventoryRow>,
    /// No page of this listing follows.
    pub done: bool,
    /// The cursor to adopt once everything wanted of this listing arrived.
    pub at: Position,
}

/// A document and its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct InventoryRow {
    /// Which document.
    pub document: DocumentId,
    /// A digest of its id, heads, winning creation and winning lifecycle record.
    pub digest: [u8; 16],
}

/// The documents the sender needs.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Want {
    /// The page it answers; 0 when it answers none.
    pub page: u64,
    /// What is needed.
    pub documents: Vec<Wanted>,
}

/// A document the sender needs.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Wanted {
    /// Which document.
    pub document: DocumentId,
    /// What the sender has of it.
    pub heads: Heads,
}

/// What answers a want, for one document.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DocumentBatch {
    /// Which document.
    pub document: DocumentId,
    /// The origins that rows name by their place here.
    pub origins: Vec<Origin>,
    /// The records, dependencies first; lifecycle records before changes.
    pub rows: Vec<Row>,
    /// The stream that carries the document's chunk.
    pub streamed: Option<u64>,
    /// The sender's heads.
    pub heads: Heads,
    /// What comes next.
    pub outcome: Outcome,
}

/// What follows a [`DocumentBatch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Outcome {
    /// More batches of this document; with a stream, the receiver asks again once the stream's chunk is durable.
    More,
    /// Nothing: with these rows the receiver has everything the sender has.
    Complete,
    /// An exchange, which the sender starts.
    Exchange,
    /// Nothing: the sender has no such document, or none the receiver may see.
    UnknownDocument,
}

/// A part of an Automerge sync message.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DocSync {
    /// Which document.
    pub document: DocumentId,
    /// The sender's lifecycle records of it, in the first frame of each side.
    pub lifecycle: Vec<Vec<u8>>,
    /// The next bytes of the message.
    pub message: Vec<u8>,
    /// The message goes on in the next frame of the stream.
    pub more: bool,
}

/// A piece of a row that is too long for its batch.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Part {
    /// At most 256 KiB, in order.
    pub bytes: Vec<u8>,
}

/// The sender cannot take more for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Busy {
    /// When to go on, ms from now.
    pub retry_after_ms: u32,
}

/// The begin of a streamed document chunk.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct StreamBegin {
    /// The name [`DocumentBatch::streamed`] uses, unique on this half.
    pub id: u64,
    /// Which document.
    pub document: DocumentId,
    /// The chunk's length.
    pub bytes: u64,
    /// The position in the sender's log up to which the chunk has everything.
    pub covers: Lsn,
    /// The chunk's heads.
    pub heads: Heads,
}

/// A piece of a streamed document chunk.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct StreamPart {
    /// At most 256 KiB, in order.
    pub bytes: Vec<u8>,
}

/// Type bytes.
mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const HELLO_ACK: u8 = 2;
    pub(super) const CHANGE_BATCH: u8 = 3;
    pub(super) const ACK: u8 = 4;
    pub(super) const INVENTORY: u8 = 5;
    pub(super) const WANT: u8 = 6;
    pub(super) const DOCUMENT_BATCH: u8 = 7;
    pub(super) const DOC_SYNC: u8 = 8;
    pub(super) const PART: u8 = 9;
    pub(super) const BUSY: u8 = 10;
    pub(super) const STREAM_BEGIN: u8 = 12;
    pub(super) const STREAM_PART: u8 = 13;
    pub(super) const MAY_SKIP: u8 = 0x80;
    pub(super) const AUTH: u8 = 0x81;
    pub(super) const ACCESS: u8 = 0x82;
    pub(super) const DENIED: u8 = 0x83;
    pub(super) const AUTHORS: u8 = 0x84;
    pub(super) const ATTESTATIONS: u8 = 0x85;
    pub(super) const TAKEN_BACK: u8 = 0x86;
}

impl Frame {
    /// The type byte.
    #[must_use]
    pub fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => kind::HELLO,
            Self::HelloAck(_) => kind::HELLO_ACK,
            Self::ChangeBatch(_) => kind::CHANGE_BATCH,
            Self::Ack(_) => kind::ACK,
            Self::Inventory(_) => kind::INVENTORY,
            Self::Want(_) => kind::WANT,
            Self::DocumentBatch(_) => kind::DOCUMENT_BATCH,
            Self::DocSync(_) => kind::DOC_SYNC,
            Self::Part(_) => kind::PART,
            Self::Busy(_) => kind::BUSY,
            Self::StreamBegin(_) => kind::STREAM_BEGIN,
            Self::StreamPart(_) => kind::STREAM_PART,
            Self::Auth(_) => kind::AUTH,
            Self::Access(_) => kind::ACCESS,
            Self::Denied(_) => kind::DENIED,
            Self::Authors(_) => kind::AUTHORS,
            Self::Attestations(_) => kind::ATTESTATIONS,
            Self::TakenBack(_) => kind::TAKEN_BACK,
            Self::Skipped(kind) => *kind,
        }
    }

    /// Writes type, version and body.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when it would be longer than a frame may be: the caller put too much into it.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let mut out = vec![self.kind(), BODY_VERSION];
        let written = match self {
            Self::Hello(body) => write(body, &mut out),
            Self::HelloAck(body) => write(body, &mut out),
            Self::ChangeBatch(body) => write(body, &mut out),
            Self::Ack(body) => write(body, &mut out),
            Self::Inventory(body) => write(body, &mut out),
            Self::Want(body) => write(body, &mut out),
            Self::DocumentBatch(body) => write(body, &mut out),
            Self::DocSync(body) => write(body, &mut out),
            Self::Part(body) => write(body, &mut out),
            Self::Busy(body) => write(body, &mut out),
            Self::StreamBegin(body) => write(body, &mut out),
            Self::StreamPart(body) => write(body, &mut out),
            Self::Auth(body) => write(body, &mut out),
            Self::Access(body) => write(body, &mut out),
            Self::Denied(body) => write(body, &mut out),
            Self::Authors(body) => write(body, &mut out),
            Self::Attestations(body) => write(body, &mut out),
            Self::TakenBack(body) => write(body, &mut out),
            Self::Skipped(_) => Ok(()),
        };
        written.map_err(|error| WireError::Body { kind: self.kind(), reason: error.to_string() })?;
        if out.len() > FRAME_BYTES_MAX {
            return Err(WireError::TooLong { bytes: out.len(), max: FRAME_BYTES_MAX });
        }
        Ok(out)
    }

    /// Reads type, version and body, which must be all of `bytes`.
    ///
    /// # Errors
    /// [`WireError`] when they are not exactly one frame.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(WireError::TooLong { bytes: bytes.len(), max: FRAME_BYTES_MAX });
        }
        let [kind, version, body @ ..] = bytes else {
            return Err(WireError::TooShort(bytes.len()));
        };
        let (kind, body) = (*kind, Body { kind: *kind, version: *version, bytes: body });
        match kind {
            kind::HELLO => body.read().map(Self::Hello),
            kind::HELLO_ACK => body.read().map(Self::HelloAck),
            kind::CHANGE_BATCH => body.read().map(Self::ChangeBatch),
            kind::ACK => body.read().map(Self::Ack),
            kind::INVENTORY => body.read().map(Self::Inventory),
            kind::WANT => body.read().map(Self::Want),
            kind::DOCUMENT_BATCH => body.read().map(Self::DocumentBatch),
            kind::DOC_SYNC => body.read().map(Self::DocSync),
            kind::PART => body.read().map(Self::Part),
            kind::BUSY => body.read().map(Self::Busy),
            kind::STREAM_BEGIN => body.read().map(Self::StreamBegin),
            kind::STREAM_PART => body.read().map(Self::StreamPart),
            kind::AUTH => body.read().map(Self::Auth),
            kind::ACCESS => body.read().map(Self::Access),
            kind::DENIED => body.read().map(Self::Denied),
            kind::AUTHORS => body.read().map(Self::Authors),
            kind::ATTESTATIONS => body.read().map(Self::Attestations),
            kind::TAKEN_BACK => body.read().map(Self::TakenBack),
            other if other & kind::MAY_SKIP != 0 => Ok(Self::Skipped(other)),
            other => Err(WireError::Type(other)),
        }
    }
}

/// Standard bincode with the frame's limit.
type Config = bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<FRAME_BYTES_MAX>,
>;
const CONFIG: Config = bincode::config::standard().with_limit::<FRAME_BYTES_MAX>();

fn write<T: Encode>(body: &T, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    bincode::encode_into_std_write(body, out, CONFIG).map(|_| ())
}

struct Body<'a> {
    kind: u8,
    version: u8,
    bytes: &'a [u8],
}

impl Body<'_> {
    fn read<T: Decode<()> + Checked>(&self) -> Result<T, WireError> {
        if self.version != BODY_VERSION {
            return Err(WireError::Version { kind: self.kind, version: self.version });
        }
        let refused = |reason: String| WireError::Body { kind: self.kind, reason };
        let (body, read) =
            bincode::decode_from_slice::<T, Config>(self.bytes, CONFIG).map_err(|error| refused(error.to_string()))?;
        if read != self.bytes.len() {
            return Err(refused(format!("{} bytes are left over", self.bytes.len() - read)));
        }
        body.check().map_err(|reason| refused(reason.to_owned()))?;
        Ok(body)
    }
}

/// What a body must fulfil beside having the right form.
trait Checked {
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

impl Checked for HelloAck {}
impl Checked for Ack {}
impl Checked for Inventory {}
impl Checked for Want {}
impl Checked for DocSync {}
impl Checked for Busy {}
impl Checked for StreamBegin {}

impl Checked for Hello {
    fn check(&self) -> Result<(), &'static str> {
        require(self.agent.len() <= AGENT_BYTES_MAX, "the agent's text is too long")
    }
}

impl Checked for ChangeBatch {
    fn check(&self) -> Result<(), &'static str> {
        check_rows(&self.rows, self.documents.len(), &self.origins)
    }
}

impl Checked for DocumentBatch {
    fn check(&self) -> Result<(), &'static str> {
        check_rows(&self.rows, 1, &self.origins)
    }
}

impl Checked for Part {
    fn check(&self) -> Result<(), &'static str> {
        require(self.bytes.len() <= PART_BYTES_MAX, "the part is too long")
    }
}

impl Checked for StreamPart {
    fn check(&self) -> Result<(), &'static str> {
        require(self.bytes.len() <= PART_BYTES_MAX, "the part is too long")
    }
}

fn check_rows(rows: &[Row], documents: usize, origins: &[Origin]) -> Result<(), &'static str> {
    for row in rows {
        require((row.document as usize) < documents, "a row names a document that is not listed")?;
        require((row.origin as usize) < origins.len(), "a row names an origin that is not listed")?;
        require(row.flags & !ROW_IN_PARTS == 0, "a row has an unknown flag")?;
        require(row.flags != ROW_IN_PARTS || row.bytes.is_empty(), "a row has bytes both here and in parts")?;
    }
    let in_parts = rows.iter().filter(|row| row.flags == ROW_IN_PARTS).count();
    require(in_parts <= 1, "more than one row is in parts")?;
    check_origins(origins)
}

fn check_origins(origins: &[Origin]) -> Result<(), &'static str> {
    require(origins.iter().all(|origin| origin.admission <= 2), "an origin has an unknown admission")?;
    let principals = origins.iter().map(|origin| origin.principal.len());
    require(principals.max().unwrap_or(0) <= PRINCIPAL_BYTES_MAX, "a principal's name is too long")
}

fn require(holds: bool, reason: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(reason) }
}
