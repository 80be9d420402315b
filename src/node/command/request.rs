//! What can be asked, as plain data.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::CommandError;
use crate::id::{CollectionName, DocumentId};

/// One command. Ids and names travel as text and are checked where they are used.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Request {
    /// Lists the collections, or the documents of one.
    List {
        /// Which collection.
        collection: Option<String>,
    },
    /// Reads a document: one row, its value.
    Read {
        /// Which document.
        id: String,
        /// As it was at these change hashes.
        at: Option<Vec<String>>,
    },
    /// Creates a document: one row, `{id, created, ..}`.
    Add {
        /// In which collection.
        collection: String,
        /// Under which name.
        name: Option<String>,
        /// Under which id, when it has one already. Not together with a name.
        id: Option<String>,
        /// What it holds at first.
        value: Option<Value>,
        /// Whether a document that exists already is an error.
        must_be_new: bool,
    },
    /// Writes one value.
    Set {
        /// In which document.
        id: String,
        /// Where.
        path: String,
        /// What.
        value: Value,
    },
    /// Makes a document hold `value`, by the smallest change, if it still holds `base`.
    Replace {
        /// Which document.
        id: String,
        /// What it held when it was read.
        base: Value,
        /// What it is to hold.
        value: Value,
    },
    /// Deletes a document.
    Remove {
        /// Which document.
        id: String,
    },
    /// Makes a deleted document visible again.
    Restore {
        /// Which document.
        id: String,
    },
    /// A document's changes, or the records of the log: the last `limit` ones, or the first ones after `from`.
    Log {
        /// Which document.
        id: Option<String>,
        /// After which position.
        from: Option<u64>,
        /// How many.
        limit: u64,
    },
    /// The hashes of a document's changes, one row of text for each; nothing when there is no such document.
    Hashes {
        /// Which document.
        id: String,
    },
    /// Admits changes that were made elsewhere, in causal order.
    Admit {
        /// Of which document.
        id: String,
        /// The change chunks.
        changes: Vec<Base64>,
        /// Nobody vouches for them: each is tried on the document before it is logged.
        #[serde(default)]
        tried: bool,
    },
    /// Creates documents with values, or brings those that exist to them.
    Import {
        /// Where rows go that name no collection.
        collection: Option<String>,
        /// The documents.
        rows: Vec<ImportRow>,
    },
    /// Takes over the data folder of an automerge-repo sync server: one row, `{file, document, why}`, for each thing in
    /// it that is left out, and a summary.
    ImportAutomergeRepo {
        /// The folder, as the node finds it.
        folder: PathBuf,
        /// Where its documents go; `None`: to `default`.
        collection: Option<String>,
    },
    /// Changes as they come.
    Watch {
        /// Of what.
        target: Option<Target>,
        /// From where: a cursor, a position, `beginning` or `now`.
        from: String,
        /// End after so many rows.
        limit: Option<u64>,
        /// End where the log ends now.
        #[serde(default)]
        once: bool,
    },
    /// Changes in the result of a query, as they come.
    Listen {
        /// Of which collection.
        collection: String,
        /// Conditions, as they are typed.
        predicate: String,
        /// From where: a cursor, `beginning` or `now`.
        from: String,
        /// End after so many rows.
        limit: Option<u64>,
        /// End after the first result.
        #[serde(default)]
        once: bool,
    },
    /// The documents of a query, or their number.
    Query {
        /// Of which collection.
        collection: String,
        /// The query.
        query: Value,
        /// Conditions beside those in it, as they are typed.
        predicate: Option<String>,
    },
    /// A collection's indexes.
    IndexList {
        /// Which collection.
        collection: String,
    },
    /// Declares an index.
    IndexAdd {
        /// Of which collection.
        collection: String,
        /// On which fields.
        fields: Vec<String>,
    },
    /// Drops an index.
    IndexRemove {
        /// Of which collection.
        collection: String,
        /// Its id.
        id: String,
    },
    /// Those who follow feeds under a name.
    FeedList,
    /// Has one of them begin anew.
    FeedReset {
        /// Which one.
        consumer: String,
    },
    /// Documents as rows.
    Export {
        /// Which; `None`: all.
        target: Option<Target>,
        /// How.
        format: ExportFormat,
    },
    /// Allows a peer, and dials it when a ticket says where.
    PeerAdd {
        /// A ticket or a node id.
        peer: String,
        /// `node` or `client`.
        role: String,
    },
    /// Who is allowed, and how the links are.
    PeerList,
    /// Allows a peer no longer, and closes its links.
    PeerRemove {
        /// Its node id, or its ticket.
        peer: String,
    },
    /// How to reach the running node: one row, `{ticket, ..}`.
    Ticket {
        /// With an invite that makes the one who shows it this.
        invite: Option<String>,
    },
    /// Issues a token: one row, `{token, id, ..}`.
    TokenNew {
        /// Whose.
        user: String,
        /// In which role.
        role: Option<String>,
        /// How long it is of use, in milliseconds; `None`: 30 days.
        ttl_ms: Option<u64>,
        /// Further claims.
        #[serde(default)]
        claims: Map<String, Value>,
    },
    /// The tokens that were issued.
    TokenList,
    /// Revokes tokens: one row, `{revoked, name, tokens}`.
    TokenRevoke {
        /// Which ones.
        what: TokenRevocation,
    },
    /// The edits made here that another node would not have: a row for each, `{id, collection, change, by, why, at_ms}`.
    RejectedList,
    /// Makes rejected edits of a document anew: a row for each, `{id, change, left_out}`.
    RejectedResubmit {
        /// The document.
        id: String,
        /// Which one; all of the document's when absent.
        change: Option<String>,
    },
    /// Takes rejected edits of a document off the list: a row for each, `{id, change}`.
    RejectedDiscard {
        /// The document.
        id: String,
        /// Which one; all of the document's when absent.
        change: Option<String>,
    },
    /// Writes that were accepted or refused.
    AuditList {
        /// Which.
        filter: AuditFilter,
    },
    /// Everything that is known of one of them: one row.
    AuditShow {
        /// Its record.
        lsn: u64,
    },
    /// The rules that the log has: one row each, `{rules_version, lsn, time, bytes, digest}`.
    AuditRules {
        /// Those alone whose digest begins with these digits, with their `text`.
        version: Option<String>,
    },
    /// Makes recorded decisions again by other rules: one row for each that would be another, and a summary.
    RulesReplay {
        /// The rules to try.
        draft: RulesText,
        /// The rules to compare with; `None`: what is on record.
        current: Option<RulesText>,
        /// After which position.
        from: u64,
        /// Of which collection; `None`: all.
        collection: Option<String>,
        /// How many rows at most. All are counted.
        limit: u64,
    },
    /// How the node and its store are.
    Status,
    /// Checks the store: one row for each fault, and a summary.
    Verify {
        /// Whether every document is rebuilt.
        deep: bool,
    },
}

/// Which writes are listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditFilter {
    /// Whose, as the log names him; the empty name is nobody in particular. `None`: everybody's.
    pub user: Option<String>,
    /// Of which collection.
    pub collection: Option<String>,
    /// Of which document.
    pub document: Option<String>,
    /// Only those that were refused, or only those that were not.
    pub refused: Option<bool>,
    /// After which position; `None`: the last ones.
    pub from: Option<u64>,
    /// How many at most.
    pub limit: u64,
}

/// A file of rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesText {
    /// Its name, for messages.
    pub name: String,
    /// What it holds.
    pub text: String,
}

/// Which tokens are revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenRevocation {
    /// The one with this id.
    Token(String),
    /// Every one of a user (as the log names him) from before now.
    User(String),
    /// Every one in a role from before now.
    Role(String),
}

/// A collection or a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// A collection.
    Collection(String),
    /// A document.
    Document(String),
}

impl FromStr for Target {
    type Err = CommandError;

    /// A document's id, with or without `automerge:`, is a document; anything else has to be a collection's name.
    fn from_str(text: &str) -> Result<Self, CommandError> {
        match text.parse::<DocumentId>() {
            Ok(id) => Ok(Self::Document(id.to_string())),
            Err(error) if text.starts_with("automerge:") => Err(error.into()),
            Err(_) => Ok(Self::Collection(CollectionName::new(text)?.as_str().to_owned())),
        }
    }
}

/// How documents are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportFormat {
    /// Rows of `{id, collection, name, value}`.
    Json,
    /// Rows of `{id, collection, name, automerge}`, the last in base64: the whole history.
    Automerge,
}

/// One document of an import.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImportRow {
    /// Its id, if it has one.
    pub id: Option<String>,
    /// Its collection, if it says.
    pub collection: Option<String>,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What it holds.
    pub value: Value,
}

/// Bytes that travel as base64 text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&data_encoding::BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let bytes = data_encoding::BASE64.decode(text.as_bytes()).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_as_it_was_written() {
        let request = Request::Admit { id: "automerge:x".into(), changes: vec![Base64(vec![0, 1, 255])], tried: true };
        let text = serde_json::to_string(&request).unwrap();
        assert!(text.starts_with(r#"{"command":"admit""#), "{text}");
        let Request::Admit { changes, .. } = serde_json::from_str(&text).unwrap() else { panic!("{text}") };
        assert_eq!(changes, [Base64(vec![0, 1, 255])]);
    }

    #[test]
    fn a_target_is_a_document_when_it_is_an_id() {
        let id = DocumentId([7; 16]);
        let bare = id.to_string().trim_start_matches("automerge:").to_owned();
        assert_eq!(bare.parse::<Target>().unwrap(), Target::Document(id.to_string()));
        assert_eq!("notes".parse::<Target>().unwrap(), Target::Collection("notes".into()));
        assert!("automerge:nonsense".parse::<Target>().is_err());
        assert!("no/slash".parse::<Target>().is_err());
    }
}
