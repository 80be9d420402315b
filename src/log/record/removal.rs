//! What is taken away: changes that cannot be applied, changes that gave way, documents that may not be read.

use bincode::{Decode, Encode};

use super::NameRef;

/// The header of a `void` record: automerge cannot apply a change that is logged. Views are made without it and without
/// what stands on it; everything else keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct VoidHeader {
    /// Which document.
    pub document: [u8; 16],
    /// How far back the change's record lies.
    pub change: u64,
    /// The version of automerge that could not apply it.
    pub automerge: String,
    /// What it said. At most [`VoidHeader::WHY_BYTES_MAX`] bytes are written.
    pub why: String,
    /// Our clock, ms since 1970.
    pub received_ms: u64,
}

impl VoidHeader {
    /// The longest version that is written, in bytes.
    pub const AUTOMERGE_BYTES_MAX: usize = 64;
    /// The longest reason that is written, in bytes.
    pub const WHY_BYTES_MAX: usize = 256;
}

/// The header of a `withdrawn` record: two nodes had each logged another change under one author's number, and these
/// are the ones that go, with all that stood on them. Their records stay in the log; nothing else of them does.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct WithdrawnHeader {
    /// Which document.
    pub document: [u8; 16],
    /// The change that takes the place of the first of them.
    pub winner: [u8; 32],
    /// The author of both.
    pub actor: NameRef,
    /// The number both have.
    pub seq: u64,
    /// The peer that brought the winner; 0 when nobody did.
    pub via: NameRef,
    /// Our clock, ms since 1970.
    pub received_ms: u64,
    /// How far back the withdrawn changes' records lie, in the order of the log. At most
    /// [`WithdrawnHeader::CHANGES_MAX`]; more go into further records of the same group.
    pub changes: Vec<u64>,
}

impl WithdrawnHeader {
    /// Changes that one record may withdraw.
    pub const CHANGES_MAX: usize = 1 << 16;
}

/// The header of a `withheld` record: whether a document may be read here, as the node says whose client this is. It
/// speaks for this log's owner alone and is not replicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct WithheldHeader {
    /// Which document.
    pub document: [u8; 16],
    /// It may not be read, from here on; else it may be again.
    pub withheld: bool,
    /// The node that said so.
    pub via: NameRef,
    /// Our clock, ms since 1970.
    pub received_ms: u64,
}
