//! Headers of the records that tell who was allowed what: writes that were refused, as whom somebody writes, on whose
//! behalf a statement was made, the rules that decide, and which of their `allow`s lets somebody write.

use bincode::{Decode, Encode};

use super::NameRef;
use crate::id::encode_hex;

/// The header of a `refused` record: somebody sent what he may not write. Nothing of it is in any document. A sender fills
/// it, so it takes nothing into the dictionary but the name of somebody who proved it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RefusedHeader {
    /// Which document; zeros when the record counts what is not listed.
    pub document: [u8; 16],
    /// In which collection it is, or was said to be; empty when nobody knows.
    pub collection: String,
    /// The document's name, if it has one.
    pub name: Option<String>,
    /// What was refused.
    pub what: RefusedWhat,
    /// What it would have done to the document.
    pub operation: WriteKind,
    /// Who sent it; 0 for nobody in particular.
    pub principal: NameRef,
    /// Why, as a number: see [`RefusedReason`]. One that is not known is kept as it is.
    pub reason: u8,
    /// The `allow`s that were asked, at most [`RefusedHeader::RULES_MAX`]; when one of them failed, that one.
    pub rules: Vec<RulePlace>,
    /// More about the reason. At most [`RefusedHeader::DETAIL_BYTES_MAX`] bytes are written.
    pub detail: String,
    /// The version of the rules that refused it; 0 for none.
    pub rules_version: u32,
    /// The peer that brought it; 0 when nobody did.
    pub via: NameRef,
    /// Our clock, ms since 1970.
    pub received_ms: u64,
}

impl RefusedHeader {
    /// `allow`s that are listed.
    pub const RULES_MAX: usize = 4;
    /// The longest path of one that is written, in bytes.
    pub const PATH_BYTES_MAX: usize = 256;
    /// The longest detail that is written, in bytes.
    pub const DETAIL_BYTES_MAX: usize = 256;
}

/// What was refused.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum RefusedWhat {
    /// A change.
    Change {
        /// Its SHA-256.
        hash: [u8; 32],
        /// Its author.
        actor: Vec<u8>,
        /// Its number among the author's changes.
        seq: u64,
        /// How many bytes its chunk has.
        bytes: u64,
        /// The chunk was put in quarantine with this record.
        kept: bool,
    },
    /// A statement about the document's life: a [`super::LifecycleKind`] as a number.
    Statement(u8),
    /// An edit, of which no change was made.
    Edit,
    /// More than is listed in a minute: how many writes that were refused this record stands for.
    More(u64),
}

/// What a write does to a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[repr(u8)]
pub enum WriteKind {
    /// It is its first change, or its creation.
    Create,
    /// It is a further change.
    Update,
    /// It hides it, or shows it again.
    Delete,
}

impl WriteKind {
    /// Its name, as rules have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// Where an `allow` is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RulePlace {
    /// Its line, from 1.
    pub line: u32,
    /// The path it is about. At most [`RefusedHeader::PATH_BYTES_MAX`] bytes are written.
    pub path: String,
}

/// Why a write was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RefusedReason {
    /// No `allow` is about the path and the operation.
    NoMatch = 1,
    /// None of those that are is true.
    NoneTrue = 2,
    /// None is true, and one could not be evaluated.
    Failed = 3,
    /// It took more steps, or other documents, than a decision may.
    Budget = 4,
    /// Its author's name belongs to somebody else.
    Foreign = 5,
    /// It stands on a change that was refused.
    Behind = 6,
    /// The sender's token had expired or was revoked.
    TokenOver = 7,
}

impl RefusedReason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] =
        [Self::NoMatch, Self::NoneTrue, Self::Failed, Self::Budget, Self::Foreign, Self::Behind, Self::TokenOver];

    /// The reason with this number; `None` for one of a later tidelog.
    #[must_use]
    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == number)
    }

    /// Whether rules were asked.
    #[must_use]
    pub fn is_of_rules(self) -> bool {
        matches!(self, Self::NoMatch | Self::NoneTrue | Self::Failed | Self::Budget)
    }

    /// In a few words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoMatch => "no rule is about this path and operation",
            Self::NoneTrue => "no rule allows it",
            Self::Failed => "no rule allows it, and one failed",
            Self::Budget => "the rules take too many steps or documents",
            Self::Foreign => "its author belongs to somebody else",
            Self::Behind => "it stands on a refused change",
            Self::TokenOver => "the token is over",
        }
    }
}

/// The header of a `subject` record: what is claimed of somebody in whose name records follow, until another of his.
/// Never the token itself.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SubjectHeader {
    /// Who it is.
    pub principal: NameRef,
    /// What is claimed of him.
    pub claims: Claims,
    /// Our clock, ms since 1970.
    pub received_ms: u64,
}

/// What is claimed of somebody.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Claims {
    /// JSON without spaces, the names of each object in order; at most [`Claims::BYTES_MAX`] bytes.
    Known(String),
    /// What an earlier record of his says that has them: how far back it lies.
    As(u64),
    /// More than that: the first 16 bytes of their BLAKE3.
    TooLong([u8; 16]),
}

impl Claims {
    /// The longest text that is written, in bytes.
    pub const BYTES_MAX: usize = 4096;
}

/// The header of an `attributed` record: on whose behalf a statement about a document's life was logged.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AttributedHeader {
    /// How far back the statement's record lies.
    pub statement: u64,
    /// Who was allowed to make it; 0 for nobody in particular.
    pub principal: NameRef,
    /// The version of the rules that allowed it; 0 for none.
    pub rules_version: u32,
}

/// The header of a `rules` record: the text of rules under whose version records follow.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RulesHeader {
    /// Their version, as other records name it: see [`RulesHeader::version_of`].
    pub version: u32,
    /// The BLAKE3 of the text.
    pub digest: [u8; 32],
    /// Our clock, ms since 1970.
    pub received_ms: u64,
    /// What the file holds. Rules have at most [`RulesHeader::TEXT_BYTES_MAX`] bytes.
    pub text: String,
}

impl RulesHeader {
    /// The longest text, in bytes.
    pub const TEXT_BYTES_MAX: usize = 256 << 10;

    /// The number by which records name the rules whose text has this digest: the same on every node, and never 0.
    #[must_use]
    pub fn version_of(digest: [u8; 32]) -> u32 {
        let [a, b, c, d, ..] = digest;
        u32::from_le_bytes([a, b, c, d]).max(1)
    }

    /// A version as people see it: the first digits of the digest.
    #[must_use]
    pub fn version_text(version: u32) -> String {
        encode_hex(&version.to_le_bytes())
    }
}

/// The header of an `allowed` record: which `allow` lets in what somebody writes in a collection. It speaks of his writes
/// of that kind that follow, until another such record of the same principal, collection and operation, and for no more
/// than [`AllowedHeader::REACH`] positions.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AllowedHeader {
    /// Who writes; 0 for nobody in particular.
    pub principal: NameRef,
    /// In which collection.
    pub collection: NameRef,
    /// What the write does to the document.
    pub operation: WriteKind,
    /// The version of the rules. It says nothing of a write under another one.
    pub rules_version: u32,
    /// The `allow`. Absent when it is not known here: another node asked its rules.
    pub rule: Option<RulePlace>,
}

impl AllowedHeader {
    /// How far behind it a write may be of which it speaks, in positions: whoever looks for the rule of a write has to look
    /// no further back.
    pub const REACH: u64 = 4096;
}
