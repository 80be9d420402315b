//! What a feed tells: one event for each record of the log that changes what can be seen of a document.

use serde_json::{Map, Value, json};

use super::cursor::FeedCursor;
use crate::document::{Change, Patch, ViewError};
use crate::engine::Database;
use crate::error::Error;
use crate::history::Origin;
use crate::id::{ActorId, ChangeHash, CollectionName, DocumentId, Heads, Lsn, NodeId, encode_hex, first};
use crate::log::record::LifecycleId;

/// A running digest of the events of one feed: equal at equal cursors only when every event before was the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FeedDigest(pub [u8; 16]);

impl FeedDigest {
    /// The digest after one more event: the first 16 bytes of the BLAKE3 of the digest before it and of the event's
    /// tag, position, document and subject. Whoever has those can compute it.
    #[must_use]
    pub fn after(&self, tag: u8, position: Lsn, document: DocumentId, subject: &[u8; 32]) -> Self {
        let mut bytes = [0; 73];
        bytes[..16].copy_from_slice(&self.0);
        bytes[16] = tag;
        bytes[17..25].copy_from_slice(&position.0.to_be_bytes());
        bytes[25..41].copy_from_slice(&document.0);
        bytes[41..].copy_from_slice(subject);
        Self(first(blake3::hash(&bytes).as_bytes()))
    }
}

impl std::fmt::Display for FeedDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&encode_hex(&self.0))
    }
}

/// What comes out of a feed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Item {
    /// The first item, always: how the feed goes on from the cursor it was given.
    Opened(Opening),
    /// Something happened.
    Event(Event),
    /// Nothing that passes the filter happened up to this cursor.
    Progress {
        /// How far the feed is.
        cursor: FeedCursor,
        /// Nothing more is in the log now.
        caught_up: bool,
    },
}

/// How a feed goes on from the cursor it was given. It always goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Opening {
    /// Everything after `from` follows, event by event.
    Resumed {
        /// Where it goes on, with the digest that runs on from there.
        from: FeedCursor,
    },
    /// Each document that changed after `from` follows once, as it stands; then, event by event, what comes after `to`.
    Rebased {
        /// Where it goes on.
        from: FeedCursor,
        /// Up to where documents are told as they stand.
        to: FeedCursor,
    },
    /// What was known is void: each document follows once, as it stands; then, event by event, what comes after `to`.
    /// Documents that are not told do not exist (any more).
    Reset {
        /// Why.
        reason: ResetReason,
        /// Up to where documents are told as they stand.
        to: FeedCursor,
    },
}

/// Why a feed begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResetReason {
    /// The cursor is of another log, which shares nothing provable with this one: another node's, say, or this node's
    /// before it was restored from a backup.
    OtherLog,
    /// The cursor stands behind what this log has kept: its tail was lost.
    LostTail,
    /// What may be read is not what it was, and what follows from that cannot be told document by document.
    Rights,
}

impl ResetReason {
    /// A word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OtherLog => "other-log",
            Self::LostTail => "lost-tail",
            Self::Rights => "rights",
        }
    }
}

/// One thing that happened to one document.
#[derive(Debug, Clone)]
pub struct Event {
    /// The record that says so. Of two events the later one has the greater position.
    pub position: Lsn,
    /// Where to go on after it.
    pub cursor: FeedCursor,
    /// Which document.
    pub document: DocumentId,
    /// The collection it is in, after the event.
    pub collection: CollectionName,
    /// This node's clock when it was logged, ms since 1970; never falls within a log.
    pub received_ms: u64,
    /// The peer that brought it here.
    pub via: Option<NodeId>,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a document.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum EventKind {
    /// It came to be.
    Created(Statement),
    /// It was edited.
    Changed(Box<Changed>),
    /// It is hidden. Nothing more is told of it until it is restored.
    Deleted(Statement),
    /// It is visible again, with whatever was edited meanwhile.
    Restored(Statement),
    /// It is gone for good.
    Purged(Statement),
    /// It turned out to belong to another collection. The feeds of both are told.
    Moved {
        /// Where it was.
        from: CollectionName,
        /// Who says so.
        statement: Statement,
    },
    /// Changes gave way to another of the same author and number: the events at `positions` hold no more.
    Withdrawn {
        /// The change that takes the place of the first of them.
        winner: ChangeHash,
        /// Where they were told.
        positions: Vec<Lsn>,
    },
    /// A change, told before, cannot be applied by this node's automerge: reads leave it out.
    Void {
        /// Where it was told.
        position: Lsn,
        /// The version of automerge.
        automerge: String,
        /// What it said.
        why: String,
    },
    /// The document may not be read here any more, as the node says whose client this is.
    Withheld,
    /// It may be read again.
    Released,
    /// Where the document stands, told once in place of the events that led there.
    Standing(Standing),
}

/// A statement about a document's life.
#[derive(Debug, Clone)]
pub struct Statement {
    /// Its identity.
    pub id: LifecycleId,
    /// The node that made it.
    pub author: NodeId,
    /// The author's clock, ms since 1970; not to be trusted.
    pub time_ms: u64,
    /// The document's name, if it was created by one.
    pub name: Option<String>,
}

/// One change of a document.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The change.
    pub hash: ChangeHash,
    /// Who made it.
    pub actor: ActorId,
    /// Its number among the author's changes, from 1.
    pub seq: u64,
    /// How many operations it holds.
    pub op_count: u64,
    /// The document's heads before it.
    pub heads_before: Heads,
    /// The document's heads after it.
    pub heads_after: Heads,
    /// The author's clock, seconds since 1970; not to be trusted.
    pub time: i64,
    /// Where it entered.
    pub origin: Origin,
    pub(super) chunk: Vec<u8>,
}

impl Changed {
    /// How many bytes of the log it keeps.
    #[cfg(feature = "web")]
    pub(crate) fn logged_bytes(&self) -> usize {
        self.chunk.len()
    }

    /// What the author said about it.
    ///
    /// # Errors
    /// [`Error::Change`] when the logged bytes are not a change.
    ///
    /// # Cost
    /// Reads the change: about a microsecond for a keystroke.
    pub fn message(&self) -> Result<Option<String>, Error> {
        Ok(self.change()?.message().map(str::to_owned))
    }

    /// The change itself.
    ///
    /// # Errors
    /// As [`Self::message`].
    pub fn change(&self) -> Result<Change, Error> {
        Ok(Change::parse_logged(self.chunk.clone())?)
    }

    /// Its Automerge chunk.
    #[must_use]
    pub fn chunk(&self) -> &[u8] {
        &self.chunk
    }
}

/// Where a document stands.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Its name, if it was created by one.
    pub name: Option<String>,
    /// Its heads.
    pub heads: Heads,
    /// Whether it came to be after the place the feed goes on from.
    pub is_new: bool,
    /// Whether it can be seen, in the feed's collection if it has one. If not, it is to be forgotten.
    pub is_there: bool,
}

impl EventKind {
    /// The word for it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Created(_) => "created",
            Self::Changed(_) => "changed",
            Self::Deleted(_) => "deleted",
            Self::Restored(_) => "restored",
            Self::Purged(_) => "purged",
            Self::Moved { .. } => "moved",
            Self::Withdrawn { .. } => "withdrawn",
            Self::Void { .. } => "void",
            Self::Withheld => "withheld",
            Self::Released => "released",
            Self::Standing(standing) if !standing.is_there => "gone",
            Self::Standing(_) => "standing",
        }
    }

    /// What the feed's digest takes in: a number for the kind, and what the event is about.
    #[must_use]
    pub fn subject(&self) -> (u8, [u8; 32]) {
        match self {
            Self::Created(statement) => (1, statement.id.0),
            Self::Changed(changed) => (2, changed.hash.0),
            Self::Deleted(statement) => (3, statement.id.0),
            Self::Restored(statement) => (4, statement.id.0),
            Self::Purged(statement) => (5, statement.id.0),
            Self::Moved { statement, .. } => (6, statement.id.0),
            Self::Withdrawn { winner, .. } => (7, winner.0),
            Self::Void { position, .. } => {
                let mut subject = [0; 32];
                subject[..8].copy_from_slice(&position.0.to_be_bytes());
                (8, subject)
            }
            Self::Withheld => (11, [0; 32]),
            Self::Released => (12, [0; 32]),
            Self::Standing(standing) => {
                let mut hasher = blake3::Hasher::new();
                for hash in standing.heads.as_slice() {
                    hasher.update(&hash.0);
                }
                (if standing.is_there { 9 } else { 10 }, *hasher.finalize().as_bytes())
            }
        }
    }
}

impl Event {
    /// Automerge's patches that lead from the document before the event to the document after it; `None` when it is no
    /// change, or when what led there was withdrawn or cannot be applied.
    ///
    /// # Errors
    /// [`Error::View`] when the document cannot be built; [`Error::History`] when the store cannot be read.
    ///
    /// # Cost
    /// Materialises the document, and passes over it once.
    pub fn patches(&self, database: &Database) -> Result<Option<Vec<Patch>>, Error> {
        let EventKind::Changed(changed) = &self.kind else { return Ok(None) };
        let handle = database.find(self.document)?;
        handle.with_view(|view| match view.patches(&changed.heads_before, &changed.heads_after) {
            Err(ViewError::UnknownHead(_)) => Ok(None),
            patches => Ok(Some(patches?)),
        })
    }

    /// The event as JSON, as the command line and the HTTP port tell it.
    ///
    /// # Errors
    /// As [`Changed::message`].
    pub fn to_json(&self) -> Result<Value, Error> {
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| drop(object.insert(key.to_owned(), value));
        put("position", json!(self.position.0));
        put("cursor", json!(self.cursor.to_string()));
        put("digest", json!(self.cursor.digest.to_string()));
        put("kind", json!(self.kind.as_str()));
        put("id", json!(self.document.to_string()));
        put("collection", json!(self.collection.as_str()));
        put("received_ms", json!(self.received_ms));
        if let Some(via) = self.via {
            put("via", json!(via.to_string()));
        }
        let mut state = |statement: &Statement| {
            put("statement", json!(encode_hex(&statement.id.0)));
            put("node", json!(statement.author.to_string()));
            put("time_ms", json!(statement.time_ms));
            if let Some(name) = &statement.name {
                put("name", json!(name));
            }
        };
        match &self.kind {
            EventKind::Created(statement)
            | EventKind::Deleted(statement)
            | EventKind::Restored(statement)
            | EventKind::Purged(statement) => state(statement),
            EventKind::Moved { from, statement } => {
                state(statement);
                put("from", json!(from.as_str()));
            }
            EventKind::Changed(changed) => {
                put("change", json!(changed.hash.to_string()));
                put("actor", json!(changed.actor.to_string()));
                put("seq", json!(changed.seq));
                put("ops", json!(changed.op_count));
                put("heads_before", heads(&changed.heads_before));
                put("heads", heads(&changed.heads_after));
                put("time", json!(changed.time));
                put("node", json!(changed.origin.node.to_string()));
                if let Some(message) = changed.message()? {
                    put("message", json!(message));
                }
            }
            EventKind::Withdrawn { winner, positions } => {
                put("change", json!(winner.to_string()));
                put("positions", positions.iter().map(|lsn| lsn.0).collect());
            }
            EventKind::Void { position, automerge, why } => {
                put("positions", json!([position.0]));
                put("automerge", json!(automerge));
                put("why", json!(why));
            }
            EventKind::Withheld | EventKind::Released => {}
            EventKind::Standing(standing) => {
                put("heads", heads(&standing.heads));
                put("new", json!(standing.is_new));
                if let Some(name) = &standing.name {
                    put("name", json!(name));
                }
            }
        }
        Ok(Value::Object(object))
    }
}

fn heads(heads: &Heads) -> Value {
    heads.as_slice().iter().map(ChangeHash::to_string).collect()
}

impl Opening {
    /// The opening as JSON: one key, `resumed`, `rebased` or `reset`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Resumed { from } => {
                json!({ "resumed": { "from": from.to_string(), "digest": from.digest.to_string() } })
            }
            Self::Rebased { from, to } => {
                json!({ "rebased": { "from": from.to_string(), "to": to.to_string() } })
            }
            Self::Reset { reason, to } => {
                json!({ "reset": { "reason": reason.as_str(), "to": to.to_string() } })
            }
        }
    }
}
