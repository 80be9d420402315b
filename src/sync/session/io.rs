//! What a session is given and what it gives out: channels, outputs, rows, events.

use std::collections::{BTreeSet, VecDeque};

use super::SessionError;
use crate::document::Change;
use crate::history::{Origin, Signature};
use crate::id::{ChangeHash, DocumentId, LogCursor, LogId, Lsn};
use crate::sync::Arrival;
use crate::sync::authors::Authors;
use crate::sync::wire::{self, Frame, Judgement, Role};

/// Where a frame goes or comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// The control stream, which the dialler opens.
    Control,
    /// A bidirectional stream for the exchange of one document.
    Document(Opened),
    /// A unidirectional stream for one document chunk.
    Stream(Opened),
}

/// Which stream: who opened it, and its number among theirs of its kind.
///
/// The session numbers its own; the driver numbers the peer's, in any way that gives each its own number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Opened {
    /// Who opened it.
    pub by: Side,
    /// Its number.
    pub number: u64,
}

/// One end of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// This one.
    Us,
    /// The other.
    Peer,
}

/// What the driver has to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output {
    /// Send a frame (type, version and body; the driver writes its length) and answer with
    /// [`Session::handle_sent`](super::Session::handle_sent). The first frame on a channel of ours opens it.
    Send {
        /// Where.
        channel: Channel,
        /// The frame; empty when only the end of the stream is to be sent.
        frame: Vec<u8>,
        /// Nothing follows on this channel: finish our side of it.
        finish: bool,
    },
    /// Drop a channel: neither side needs what is on it.
    Reset(Channel),
    /// Give the rows to the writer, and answer with [`Session::handle_admitted`](super::Session::handle_admitted) or [`Session::handle_refused`](super::Session::handle_refused).
    ///
    /// Rows whose dependencies are missing wait with the writer. `cursor` is stored in the same batch, and only if no
    /// row waits.
    Admit {
        /// Names the answer.
        ticket: u64,
        /// What to log, in order.
        rows: Vec<IncomingRow>,
        /// How far the peer's log is followed with these rows.
        cursor: Option<LogCursor>,
    },
    /// Store the cursor alone, and answer with [`Session::handle_admitted`](super::Session::handle_admitted).
    StoreCursor {
        /// Names the answer.
        ticket: u64,
        /// How far the peer's log is followed.
        cursor: LogCursor,
    },
    /// Find out who the peer's user is, and answer with [`Session::handle_proven`](super::Session::handle_proven), or close the link. It comes again
    /// whenever the peer shows another token.
    Prove {
        /// What the peer shows, if it shows anything.
        token: Option<wire::Token>,
    },
    /// Take back what the peer will not have of us, and everything that stands on it.
    TakeBack(Vec<wire::DeniedRow>),
    /// Show documents no more, or again: the peer says what of its documents we may read.
    Withhold {
        /// Which.
        documents: Vec<DocumentId>,
        /// Whether they may not be read any more.
        withheld: bool,
    },
    /// Something the node may want to know.
    Event(SessionEvent),
}

/// One thing to log.
#[derive(Debug, Clone)]
pub struct IncomingRow {
    /// Of which document.
    pub document: DocumentId,
    /// What.
    pub body: IncomingBody,
    /// Where it entered the network.
    pub origin: Origin,
    /// Of an author's first change, the signature of that, which is kept with it.
    pub signature: Option<Box<Signature>>,
}

/// What an incoming row is.
#[derive(Debug, Clone)]
pub enum IncomingBody {
    /// A verified change.
    Change(Box<Change>),
    /// A lifecycle record, not opened.
    Lifecycle(Vec<u8>),
    /// A whole document chunk, not verified: the driver splits it into changes.
    Document {
        /// The chunk.
        bytes: Vec<u8>,
        /// Whose its changes are, where the peer may say that: [`Authors::origin`] of each, and the row's otherwise.
        authors: Authors,
    },
}

impl IncomingBody {
    /// How many bytes it was on the wire.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Change(change) => change.bytes().len(),
            Self::Lifecycle(bytes) | Self::Document { bytes, .. } => bytes.len(),
        }
    }
}

/// What became of an [`Output::Admit`] or [`Output::StoreCursor`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admitted {
    /// The documents with rows that wait, and what they wait for.
    pub missing: Vec<(DocumentId, Vec<ChangeHash>)>,
    /// What its sender may not write.
    pub denied: Vec<Denied>,
    /// Whether the cursor was stored.
    pub cursor_stored: bool,
}

/// What its sender may not write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// Of which document.
    pub document: DocumentId,
    /// The change and what it was made on top of; `None` for a statement about the document's life.
    pub change: Option<Arrival>,
    /// Why, as its sender may be told.
    pub why: String,
}

impl Denied {
    /// Why a change is denied that may not even be looked at.
    pub(crate) const BEHIND: &'static str = "it stands on a change that was denied";
}

/// Something the node may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEvent {
    /// The peer said who it is.
    PeerHello {
        /// The name of its log.
        log_id: LogId,
        /// Where its log ended.
        tail: Lsn,
        /// Its software.
        agent: String,
        /// The secret it shows.
        invite: Option<[u8; 16]>,
        /// Whether documents travel in Automerge sync messages only, for either side's sake.
        strict: bool,
    },
    /// Where the peer's cursor stands in our log.
    PeerPosition(Judgement),
    /// The peer said where our cursor stands in its log, and what we may be there.
    OurPosition(Judgement, Role),
    /// We have everything the peer had when the link was made.
    CaughtUp,
    /// The exchange of a document ended; whether both had the same heads then.
    Exchanged {
        /// Which document.
        document: DocumentId,
        /// Whether both had the same heads.
        converged: bool,
    },
}

/// What waits to be done by the driver. Only the answer to one input or one step is ever in it.
#[derive(Debug, Default)]
pub(in crate::sync) struct Outbox {
    /// Frames for the control channel.
    pub(super) control: VecDeque<Vec<u8>>,
    pub(super) outputs: VecDeque<Output>,
    /// Channels with a frame under way.
    pub(super) sending: BTreeSet<Channel>,
}

impl Outbox {
    /// Puts a frame on the control channel.
    pub(in crate::sync) fn control(&mut self, frame: &Frame) -> Result<(), SessionError> {
        self.control.push_back(frame.encode()?);
        Ok(())
    }

    /// Sends on another channel, which must be free.
    pub(in crate::sync) fn send(&mut self, channel: Channel, frame: Vec<u8>, finish: bool) {
        self.sending.insert(channel);
        self.outputs.push_back(Output::Send { channel, frame, finish });
    }

    /// Puts out what is no frame.
    pub(in crate::sync) fn put(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    /// Whether anything on the control channel was not given to the transport yet.
    pub(in crate::sync) fn has_control(&self) -> bool {
        !self.control.is_empty() || self.sending.contains(&Channel::Control)
    }

    /// Whether nothing is under way on the channel.
    pub(in crate::sync) fn is_free(&self, channel: Channel) -> bool {
        !self.sending.contains(&channel)
    }
}
