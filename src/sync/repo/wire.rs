//! The messages of automerge-repo, byte for byte; see `docs/repo-protocol.md`.
//!
//! Each message is one CBOR map in one binary WebSocket message. What is read may have any form that CBOR allows: keys
//! in any order, any width of lengths, indefinite lengths, `null` and `undefined` for what is absent, floats for
//! integers. What is written has the forms that the stock client's cbor-x writes, which every known peer reads.

use std::borrow::Cow;

use super::cbor::{self, Value, Writer};
use crate::id::{CollectionName, DocumentId};
use crate::limits::Limits;

/// The one version of the protocol.
pub const VERSION: &str = "1";

/// The longest text that may be a document's id: 16 bytes and a checksum need 28 characters, and decoding base58 costs
/// the square of its length.
const DOCUMENT_TEXT_MAX: usize = 32;

/// Why bytes are not a message we may use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The message is longer than allowed.
    #[error("a message has {bytes} bytes; at most {max} are allowed")]
    TooLong {
        /// How long.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The bytes are no CBOR, or end too early.
    #[error("not cbor: {0}")]
    Cbor(String),
    /// The bytes are CBOR and no message.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// A field that the message needs is absent.
    #[error("malformed message: {0} is absent")]
    Absent(&'static str),
    /// A text or a list is longer than allowed.
    #[error("malformed message: {found} {what}; at most {max} are allowed")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// The limit.
        max: usize,
    },
}

impl From<minicbor::decode::Error> for WireError {
    fn from(error: minicbor::decode::Error) -> Self {
        Self::Cbor(error.to_string())
    }
}

/// A text that lies in the message it was read from, if it lies there in one piece.
pub type Text<'a> = Cow<'a, str>;

/// One message.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Message<'a> {
    /// A client's first message.
    Join(Join<'a>),
    /// The server's answer to it.
    Peer(Peer<'a>),
    /// The client goes.
    Leave {
        /// Who.
        sender: Text<'a>,
    },
    /// Something went wrong; the sender closes.
    Error {
        /// Who says so; some peers do not tell.
        sender: Option<Text<'a>>,
        /// To whom; as above.
        target: Option<Text<'a>>,
        /// In words.
        message: Text<'a>,
    },
    /// A sync message, from a peer that has no such document.
    Request(Sync<'a>),
    /// A sync message.
    Sync(Sync<'a>),
    /// The sender has no such document.
    DocUnavailable {
        /// From whom, to whom.
        route: Route<'a>,
        /// Which document.
        document: DocumentId,
    },
    /// Something for those who have the document open now, never stored.
    Ephemeral(Ephemeral<'a>),
    /// Whose heads the sender wants to hear of.
    RemoteSubscriptionChange {
        /// From whom, to whom.
        route: Route<'a>,
        /// Storage ids to hear of from now on.
        add: Vec<Text<'a>>,
        /// Storage ids to hear of no more.
        remove: Vec<Text<'a>>,
    },
    /// Which heads stores elsewhere have.
    RemoteHeadsChanged {
        /// From whom, to whom.
        route: Route<'a>,
        /// Which document.
        document: DocumentId,
        /// What each store has.
        heads: Vec<StoreHeads<'a>>,
    },
    /// tidelog's own: the sender is about to create a document in a collection. Never sent by a server.
    Create(Create<'a>),
    /// tidelog's own: the sender wants to hear what of its changes is denied. Never sent by a server.
    Denials {
        /// From whom, if that is said.
        sender: Option<Text<'a>>,
    },
    /// tidelog's own: the sender's user has another token, which counts from here on. Never sent by a server.
    Auth {
        /// From whom, if that is said.
        sender: Option<Text<'a>>,
        /// What proves who he is.
        token: Text<'a>,
    },
    /// tidelog's own: changes of the receiver are not taken, since it may not make them. Sent to those who want to hear.
    Denied(Denied<'a>),
    /// A type that we do not know; it is ignored.
    Unknown(Text<'a>),
}

/// From whom a message is, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route<'a> {
    /// The peer id of the sender.
    pub sender: Text<'a>,
    /// The peer id of the receiver; empty when it was not said.
    pub target: Text<'a>,
}

/// What a peer says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata<'a> {
    /// Names its store, which outlives its process.
    pub storage: Option<Text<'a>>,
    /// Whether its store does not outlive it; absent when it was not said.
    pub ephemeral: Option<bool>,
}

/// See [`Message::Join`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join<'a> {
    /// The client's peer id.
    pub sender: Text<'a>,
    /// What it says about itself.
    pub metadata: Metadata<'a>,
    /// The versions it speaks; absent from old clients, which speak [`VERSION`].
    pub versions: Option<Vec<Text<'a>>>,
}

/// See [`Message::Peer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer<'a> {
    /// From the server, to the client.
    pub route: Route<'a>,
    /// What the server says about itself.
    pub metadata: Metadata<'a>,
    /// The version that is spoken.
    pub version: Text<'a>,
}

/// See [`Message::Sync`] and [`Message::Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sync<'a> {
    /// From whom, to whom.
    pub route: Route<'a>,
    /// Which document.
    pub document: DocumentId,
    /// An Automerge sync message.
    pub data: Cow<'a, [u8]>,
}

/// See [`Message::Ephemeral`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ephemeral<'a> {
    /// From its author, whoever hands it on, to the next receiver.
    pub route: Route<'a>,
    /// Which document it is about.
    pub document: DocumentId,
    /// Its number in its author's session, growing.
    pub count: u64,
    /// The author's session: a run of its process.
    pub session: Text<'a>,
    /// A CBOR value of the application's.
    pub data: Cow<'a, [u8]>,
}

/// What one store has of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreHeads<'a> {
    /// Names the store.
    pub storage: Text<'a>,
    /// The heads, in base58check (old clients: hexadecimal).
    pub heads: Vec<Text<'a>>,
    /// When that was so, ms since 1970.
    pub timestamp: f64,
}

/// See [`Message::Create`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create<'a> {
    /// From whom, if that is said.
    pub sender: Option<Text<'a>>,
    /// Which document.
    pub document: DocumentId,
    /// In which collection.
    pub collection: CollectionName,
    /// Its name, for a named document.
    pub name: Option<Text<'a>>,
}

/// See [`Message::Denied`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied<'a> {
    /// From whom, to whom.
    pub route: Route<'a>,
    /// Which document.
    pub document: DocumentId,
    /// The changes, in hexadecimal; none when the document may not be created.
    pub changes: Vec<Text<'a>>,
    /// Why, in words.
    pub message: Text<'a>,
}

/// The fields that any message has, each not decoded until its message asks for it.
#[derive(Default)]
struct Fields<'a>(Vec<(&'static str, Value<'a>)>);

const FIELDS: [&str; 18] = [
    "changes",
    "type",
    "senderId",
    "targetId",
    "documentId",
    "data",
    "count",
    "sessionId",
    "message",
    "peerMetadata",
    "supportedProtocolVersions",
    "selectedProtocolVersion",
    "add",
    "remove",
    "newHeads",
    "collection",
    "name",
    "token",
];

impl<'a> Fields<'a> {
    fn optional(&self, name: &str) -> Result<Option<Value<'a>>, WireError> {
        let Some((_, value)) = self.0.iter().find(|(field, _)| *field == name) else { return Ok(None) };
        Ok(if value.is_absent()? { None } else { Some(*value) })
    }

    fn required(&self, name: &'static str) -> Result<Value<'a>, WireError> {
        self.optional(name)?.ok_or(WireError::Absent(name))
    }

    fn text(&self, name: &'static str) -> Result<Text<'a>, WireError> {
        self.required(name)?.text()
    }

    fn optional_text(&self, name: &'static str) -> Result<Option<Text<'a>>, WireError> {
        self.optional(name)?.map(Value::text).transpose()
    }

    fn texts(&self, name: &'static str) -> Result<Vec<Text<'a>>, WireError> {
        Ok(self.optional(name)?.map(Value::texts).transpose()?.unwrap_or_default())
    }

    fn route(&self) -> Result<Route<'a>, WireError> {
        let target = self.optional_text("targetId")?.unwrap_or_default();
        Ok(Route { sender: self.text("senderId")?, target })
    }

    fn document(&self) -> Result<DocumentId, WireError> {
        let text = self.text("documentId")?;
        let refused = WireError::Malformed("a document id is not base58check of 16 bytes");
        if text.len() > DOCUMENT_TEXT_MAX || text.contains(':') {
            return Err(refused);
        }
        text.parse().map_err(|_| refused)
    }

    fn metadata(&self) -> Result<Metadata<'a>, WireError> {
        let mut metadata = Metadata::default();
        let Some(map) = self.optional("peerMetadata")? else { return Ok(metadata) };
        for (key, value) in map.map()? {
            let present = !value.is_absent()?;
            match &*key {
                "storageId" => metadata.storage = if present { Some(value.text()?) } else { None },
                "isEphemeral" => metadata.ephemeral = if present { Some(value.bool()?) } else { None },
                _ => {}
            }
        }
        Ok(metadata)
    }

    fn sync(&self) -> Result<Sync<'a>, WireError> {
        let data = self.required("data")?.bytes()?;
        Ok(Sync { route: self.route()?, document: self.document()?, data })
    }

    fn store_heads(&self) -> Result<Vec<StoreHeads<'a>>, WireError> {
        let mut all = Vec::new();
        for (storage, value) in self.required("newHeads")?.map()? {
            let (mut heads, mut timestamp) = (Vec::new(), None);
            for (key, value) in value.map()? {
                match &*key {
                    "heads" => heads = value.texts()?,
                    "timestamp" => timestamp = Some(value.number()?),
                    _ => {}
                }
            }
            let timestamp = timestamp.ok_or(WireError::Absent("timestamp"))?;
            all.push(StoreHeads { storage, heads, timestamp });
        }
        Ok(all)
    }

    fn create(&self) -> Result<Create<'a>, WireError> {
        let collection = CollectionName::new(self.text("collection")?)
            .map_err(|_| WireError::Malformed("a collection has a name that none may have"))?;
        let name = self.optional_text("name")?;
        Ok(Create { sender: self.optional_text("senderId")?, document: self.document()?, collection, name })
    }
}

impl<'a> Message<'a> {
    /// Reads a message. Its length must have been held against the limit for where it came.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are no message, or one whose texts, lists or nesting exceed `limits`.
    ///
    /// # Cost
    /// Linear in the message. Nothing is copied but texts and bytes that lie there in pieces.
    pub fn read(bytes: &'a [u8], limits: &Limits) -> Result<Self, WireError> {
        let mut fields = Fields::default();
        cbor::fields(bytes, limits, &mut |key, value| {
            if let Some(name) = FIELDS.iter().find(|name| **name == key) {
                // Of two with one name the last counts, as in JavaScript.
                fields.0.retain(|(other, _)| other != name);
                fields.0.push((name, value));
            }
            Ok(())
        })?;
        let kind = fields.text("type")?;
        Ok(match &*kind {
            "join" => Self::Join(Join {
                sender: fields.text("senderId")?,
                metadata: fields.metadata()?,
                versions: fields.optional("supportedProtocolVersions")?.map(Value::texts).transpose()?,
            }),
            "peer" => Self::Peer(Peer {
                route: fields.route()?,
                metadata: fields.metadata()?,
                version: fields.text("selectedProtocolVersion")?,
            }),
            "leave" => Self::Leave { sender: fields.text("senderId")? },
            "error" => Self::Error {
                sender: fields.optional_text("senderId")?,
                target: fields.optional_text("targetId")?,
                message: fields.text("message")?,
            },
            "request" => Self::Request(fields.sync()?),
            "sync" => Self::Sync(fields.sync()?),
            "doc-unavailable" => Self::DocUnavailable { route: fields.route()?, document: fields.document()? },
            "ephemeral" => Self::Ephemeral(Ephemeral {
                route: fields.route()?,
                document: fields.document()?,
                count: fields.required("count")?.count()?,
                session: fields.text("sessionId")?,
                data: fields.required("data")?.bytes()?,
            }),
            "remote-subscription-change" => Self::RemoteSubscriptionChange {
                route: fields.route()?,
                add: fields.texts("add")?,
                remove: fields.texts("remove")?,
            },
            "remote-heads-changed" => Self::RemoteHeadsChanged {
                route: fields.route()?,
                document: fields.document()?,
                heads: fields.store_heads()?,
            },
            "tidelog-create" => Self::Create(fields.create()?),
            "tidelog-denials" => Self::Denials { sender: fields.optional_text("senderId")? },
            "tidelog-auth" => Self::Auth { sender: fields.optional_text("senderId")?, token: fields.text("token")? },
            "tidelog-denied" => Self::Denied(Denied {
                route: fields.route()?,
                document: fields.document()?,
                changes: fields.texts("changes")?,
                message: fields.text("message")?,
            }),
            _ => Self::Unknown(kind),
        })
    }

    /// Writes the message, as the stock client's cbor-x would.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        match self {
            Self::Join(join) => {
                let versions = join.versions.as_deref();
                begin(&mut out, "join", 2 + u16::from(versions.is_some()));
                text(&mut out, "senderId", &join.sender);
                metadata(&mut out, &join.metadata);
                if let Some(versions) = versions {
                    texts(&mut out, "supportedProtocolVersions", versions);
                }
            }
            Self::Peer(peer) => {
                begin(&mut out, "peer", 4);
                text(&mut out, "senderId", &peer.route.sender);
                metadata(&mut out, &peer.metadata);
                text(&mut out, "selectedProtocolVersion", &peer.version);
                text(&mut out, "targetId", &peer.route.target);
            }
            Self::Leave { sender } => {
                begin(&mut out, "leave", 1);
                text(&mut out, "senderId", sender);
            }
            Self::Error { sender, target, message } => {
                begin(&mut out, "error", 1 + u16::from(sender.is_some()) + u16::from(target.is_some()));
                sender.iter().for_each(|sender| text(&mut out, "senderId", sender));
                text(&mut out, "message", message);
                target.iter().for_each(|target| text(&mut out, "targetId", target));
            }
            Self::Request(sync) => write_sync(&mut out, "request", sync),
            Self::Sync(sync) => write_sync(&mut out, "sync", sync),
            Self::DocUnavailable { route, document } => {
                begin(&mut out, "doc-unavailable", 3);
                write_route(&mut out, route);
                write_document(&mut out, *document);
            }
            Self::Ephemeral(ephemeral) => {
                begin(&mut out, "ephemeral", 6);
                text(&mut out, "targetId", &ephemeral.route.target);
                write_document(&mut out, ephemeral.document);
                out.text("data");
                out.bytes(&ephemeral.data);
                out.text("count");
                out.count(ephemeral.count);
                text(&mut out, "sessionId", &ephemeral.session);
                text(&mut out, "senderId", &ephemeral.route.sender);
            }
            Self::RemoteSubscriptionChange { route, add, remove } => {
                begin(&mut out, "remote-subscription-change", 4);
                write_route(&mut out, route);
                texts(&mut out, "add", add);
                texts(&mut out, "remove", remove);
            }
            Self::RemoteHeadsChanged { route, document, heads } => {
                begin(&mut out, "remote-heads-changed", 4);
                write_route(&mut out, route);
                write_document(&mut out, *document);
                out.text("newHeads");
                out.map(u16::try_from(heads.len()).unwrap_or(u16::MAX));
                heads.iter().take(u16::MAX.into()).for_each(|heads| write_heads(&mut out, heads));
            }
            Self::Create(create) => {
                let fields = 2 + u16::from(create.sender.is_some()) + u16::from(create.name.is_some());
                begin(&mut out, "tidelog-create", fields);
                create.sender.iter().for_each(|sender| text(&mut out, "senderId", sender));
                write_document(&mut out, create.document);
                text(&mut out, "collection", create.collection.as_str());
                create.name.iter().for_each(|name| text(&mut out, "name", name));
            }
            Self::Denials { sender } => {
                begin(&mut out, "tidelog-denials", u16::from(sender.is_some()));
                sender.iter().for_each(|sender| text(&mut out, "senderId", sender));
            }
            Self::Auth { sender, token } => {
                begin(&mut out, "tidelog-auth", 1 + u16::from(sender.is_some()));
                sender.iter().for_each(|sender| text(&mut out, "senderId", sender));
                text(&mut out, "token", token);
            }
            Self::Denied(denied) => {
                begin(&mut out, "tidelog-denied", 5);
                write_route(&mut out, &denied.route);
                write_document(&mut out, denied.document);
                texts(&mut out, "changes", &denied.changes);
                text(&mut out, "message", &denied.message);
            }
            Self::Unknown(kind) => begin(&mut out, kind, 0),
        }
        out.finish()
    }
}

/// Begins a message with so many fields beside its type.
fn begin(out: &mut Writer, kind: &str, fields: u16) {
    out.map(1 + fields);
    text(out, "type", kind);
}

fn text(out: &mut Writer, key: &str, value: &str) {
    out.text(key);
    out.text(value);
}

fn texts(out: &mut Writer, key: &str, values: &[Text<'_>]) {
    out.text(key);
    out.list(values.len());
    values.iter().for_each(|value| out.text(value));
}

/// What is not known is left out: some peers close when a storage id is `null`.
fn metadata(out: &mut Writer, metadata: &Metadata<'_>) {
    out.text("peerMetadata");
    out.map(u16::from(metadata.storage.is_some()) + u16::from(metadata.ephemeral.is_some()));
    metadata.storage.iter().for_each(|storage| text(out, "storageId", storage));
    if let Some(ephemeral) = metadata.ephemeral {
        out.text("isEphemeral");
        out.bool(ephemeral);
    }
}

fn write_route(out: &mut Writer, route: &Route<'_>) {
    text(out, "senderId", &route.sender);
    text(out, "targetId", &route.target);
}

fn write_document(out: &mut Writer, document: DocumentId) {
    text(out, "documentId", &document.to_base58());
}

fn write_sync(out: &mut Writer, kind: &str, sync: &Sync<'_>) {
    begin(out, kind, 4);
    write_route(out, &sync.route);
    write_document(out, sync.document);
    out.text("data");
    out.bytes(&sync.data);
}

fn write_heads(out: &mut Writer, heads: &StoreHeads<'_>) {
    out.text(&heads.storage);
    out.map(2);
    texts(out, "heads", &heads.heads);
    out.text("timestamp");
    // Never an integer: JavaScript would read one of 64 bits as another type than its numbers.
    out.float(heads.timestamp);
}
