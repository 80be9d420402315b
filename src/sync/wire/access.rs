//! Frames about who somebody is and what he may do. A side that does not know them skips them.

use std::fmt;

use bincode::{Decode, Encode};

use super::{Checked, Origin, check_origins, require};
use crate::id::{ActorId, ChangeHash, DocumentId};

/// The longest token.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Rows that one [`Denied`] frame names, and documents in one [`Access`] frame.
pub const DENIED_MAX: usize = 4096;
/// The longest text that says why something is denied.
pub const WHY_BYTES_MAX: usize = 200;

/// Who the sender's user is: right after its `Hello`, and again whenever it has another token.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Auth {
    /// What proves it.
    pub token: Token,
}

/// A token as its bearer has it. It never shows itself.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Token(pub String);

/// What the receiver may read, where that is not everything.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Access {
    /// Which pages of the sender's documents follow.
    pub listing: Listing,
    /// Documents that the receiver may not read any more.
    pub withheld: Vec<DocumentId>,
}

/// What the pages list that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Listing {
    /// There are none.
    Nothing,
    /// Everything the receiver may read. What it has from the sender and is not listed, it may not read any more.
    Whole,
    /// What it may read beside what it has heard of.
    More,
}

/// Rows of the receiver that the sender did not take because its rules do not allow them, nor anything that stands on
/// them.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Denied {
    /// Which.
    pub rows: Vec<DeniedRow>,
}

/// One row that was denied.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DeniedRow {
    /// Of which document.
    pub document: DocumentId,
    /// Which change; a statement about the document's life when absent.
    pub change: Option<ChangeHash>,
    /// It is denied for what it stands on alone; it has not been looked at.
    pub is_behind: bool,
    /// Why, at most 200 bytes.
    pub why: String,
}

/// What the sender of edits that were denied says once it has durably taken them back: nothing of them comes again.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TakenBack {
    /// How many rows that is, of all [`Denied`] frames on this link, in their order.
    pub rows: u64,
}

/// Authors that one [`Authors`] frame names.
pub const AUTHORS_MAX: usize = 1024;

/// Where the first changes of a document's authors entered: between nodes, before any change of theirs travels without
/// its origin. An author who is named nowhere is nobody's in particular.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Authors {
    /// Of which document.
    pub document: DocumentId,
    /// The origins that authors name by their place here.
    pub origins: Vec<Origin>,
    /// The authors.
    pub authors: Vec<Author>,
}

/// Authors that one [`Attestations`] frame is about.
pub const ATTESTATIONS_MAX: usize = 1024;

/// Signatures of whose authors are, each made by the node that answers for it: between nodes, on the same channel and
/// before the changes they are about. The statement that is signed is `author_statement`'s.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Attestations {
    /// The documents that authors name by their place here.
    pub documents: Vec<DocumentId>,
    /// The origins that authors name by their place here; the version of the rules is not signed, and is 0.
    pub origins: Vec<Origin>,
    /// The authors.
    pub authors: Vec<Attested>,
}

/// An author of a document, and where his first change entered as the node there signed it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Attested {
    /// The place in the frame's list of the document.
    pub document: u32,
    /// The place in the frame's list of what is signed: the node that signed it, the principal, the admission.
    pub origin: u32,
    /// Automerge's actor id, 1 to 64 bytes.
    pub actor: Vec<u8>,
    /// The author's first change in the document.
    pub first: ChangeHash,
    /// The node's Ed25519 signature.
    pub signature: [u8; 64],
}

/// An author of a document.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Author {
    /// Automerge's actor id, 1 to 64 bytes.
    pub actor: Vec<u8>,
    /// The place in the frame's list of where the author's first change entered.
    pub origin: u32,
}

impl Checked for Auth {
    fn check(&self) -> Result<(), &'static str> {
        require(self.token.0.len() <= TOKEN_BYTES_MAX, "the token is too long")
    }
}

impl Checked for Access {
    fn check(&self) -> Result<(), &'static str> {
        require(self.withheld.len() <= DENIED_MAX, "too many documents are withheld at once")
    }
}

impl Checked for Denied {
    fn check(&self) -> Result<(), &'static str> {
        require(self.rows.len() <= DENIED_MAX, "too many rows are denied at once")?;
        require(self.rows.iter().all(|row| row.why.len() <= WHY_BYTES_MAX), "a reason is too long")
    }
}

impl Checked for TakenBack {
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

impl Checked for Authors {
    fn check(&self) -> Result<(), &'static str> {
        require(self.authors.len() <= AUTHORS_MAX, "too many authors are named at once")?;
        check_origins(&self.origins)?;
        for author in &self.authors {
            require((1..=ActorId::BYTES_MAX).contains(&author.actor.len()), "an author's name is empty or too long")?;
            require((author.origin as usize) < self.origins.len(), "an author names an origin that is not listed")?;
        }
        Ok(())
    }
}

impl Checked for Attestations {
    fn check(&self) -> Result<(), &'static str> {
        require(self.authors.len() <= ATTESTATIONS_MAX, "too many authors are attested at once")?;
        check_origins(&self.origins)?;
        for author in &self.authors {
            require((1..=ActorId::BYTES_MAX).contains(&author.actor.len()), "an author's name is empty or too long")?;
            require(
                (author.document as usize) < self.documents.len(),
                "an author names a document that is not listed",
            )?;
            require((author.origin as usize) < self.origins.len(), "an author names an origin that is not listed")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} bytes)", self.0.len())
    }
}
