//! What is asked of rules, and what they answer.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::value::Value;

/// What somebody wants to do with a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Read it, knowing its id.
    Get,
    /// Find it with others of its collection.
    List,
    /// Create it.
    Create,
    /// Change it.
    Update,
    /// Delete it.
    Delete,
    /// Tell others who have it open of oneself, and hear of them.
    Presence,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 6] = [Self::Get, Self::List, Self::Create, Self::Update, Self::Delete, Self::Presence];

    /// Its name in a file of rules.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Presence => "presence",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Operation {
    type Err = String;

    /// # Errors
    /// If it is the name of none; the text says which there are.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|operation| operation.as_str() == text)
            .ok_or_else(|| format!("{text:?} is no operation: get, list, create, update, delete and presence are"))
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq)]
pub struct Auth {
    /// Who it is.
    pub uid: String,
    /// What is claimed of it: a map.
    pub token: Value,
}

impl Auth {
    /// Somebody with claims as JSON.
    #[must_use]
    pub fn from_json(uid: &str, claims: &serde_json::Value) -> Self {
        Self { uid: uid.to_owned(), token: Value::from_json(claims) }
    }
}

/// What is known of a change that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChangeFacts {
    /// Who wrote it, as far as is known.
    pub author: Option<String>,
    /// Its Automerge actor, in hexadecimal.
    pub actor: String,
    /// The places it touches, as `items/0/title`.
    pub paths: Vec<String>,
    /// The first names of those.
    pub keys: Vec<String>,
}

/// The fields of one document, looked up when they are needed.
pub trait Data {
    /// What lies at a path of names; the whole document at the empty one. `None` when it is not there.
    fn get(&self, path: &[&str]) -> Option<Value>;
}

impl Data for Value {
    fn get(&self, path: &[&str]) -> Option<Value> {
        self.at(path).cloned()
    }
}

/// Other documents, for `get()` and `exists()`.
pub trait Documents {
    /// The whole of a document, `None` when it is not there.
    fn get(&self, collection: &str, id: &str) -> Option<Value>;
}

/// No documents.
impl Documents for () {
    fn get(&self, _: &str, _: &str) -> Option<Value> {
        None
    }
}

/// What somebody wants to do.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// What.
    pub operation: Operation,
    /// In which collection.
    pub collection: &'a str,
    /// With which document.
    pub id: &'a str,
    /// Who asks; `None` when nobody said who it is.
    pub auth: Option<&'a Auth>,
    /// When, in milliseconds since 1970: the one clock that rules have.
    pub time_ms: i64,
    /// The document as it is, `None` when it is not there.
    pub before: Option<&'a dyn Data>,
    /// The document as it would be, `None` for reads and deletes.
    pub after: Option<&'a dyn Data>,
    /// The change, `None` for reads.
    pub change: Option<&'a ChangeFacts>,
    /// Other documents.
    pub documents: &'a dyn Documents,
}

impl<'a> Request<'a> {
    /// A request of nobody's, of which nothing else is known.
    #[must_use]
    pub fn new(operation: Operation, collection: &'a str, id: &'a str) -> Self {
        Self {
            operation,
            collection,
            id,
            auth: None,
            time_ms: 0,
            before: None,
            after: None,
            change: None,
            documents: &(),
        }
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} /{}/{}", self.operation, self.collection, self.id)
    }
}

/// What a decision about an operation in a collection may look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// Nobody needs to look at anything: always allowed, or (`Some(false)`) never, whoever asks.
    pub constant: Option<bool>,
    /// The document as it is, or whether it is there.
    pub before: bool,
    /// The document as it would be, or whether it would be there.
    pub after: bool,
    /// The places that the change touches.
    pub paths: bool,
    /// Who wrote the change, or with which actor.
    pub author: bool,
    /// Other documents.
    pub documents: bool,
    /// The time.
    pub time: bool,
    /// What is claimed of whoever asks.
    pub claims: bool,
    /// Which fields of the document as it is.
    pub before_fields: Fields,
    /// Which fields of the document as it would be.
    pub after_fields: Fields,
    /// Which claims.
    pub claim_fields: Fields,
    /// Which collections other documents are in; `None`: any.
    pub collections: Option<BTreeSet<String>>,
}

impl Needs {
    pub(crate) const NOTHING: Self = Self {
        constant: None,
        before: false,
        after: false,
        paths: false,
        author: false,
        documents: false,
        time: false,
        claims: false,
        before_fields: Fields::None,
        after_fields: Fields::None,
        claim_fields: Fields::None,
        collections: Some(BTreeSet::new()),
    };
}

/// Fields of a document that may be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fields {
    /// None.
    None,
    /// What lies at these paths of names; none begins with another.
    Some(Vec<Vec<String>>),
    /// Any.
    All,
}

/// What rules say to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may be done.
    pub allowed: bool,
    /// The line of the `allow` that allowed it, from 1.
    pub rule: Option<u32>,
    /// Which of all `allow`s that is, in the order of the file, from 0.
    pub allow: Option<u32>,
    /// Why.
    pub why: Why,
}

/// Why a decision went as it did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// An `allow` is true.
    Allowed,
    /// No `allow` is about this path and operation.
    NoMatch,
    /// None of those that are is true.
    NoneTrue,
    /// None is true, and one, the first of them here, could not be evaluated.
    Error {
        /// The line of that `allow`.
        line: u32,
        /// What went wrong.
        message: String,
    },
    /// It took more steps, or other documents, than a decision may.
    Budget,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed => f.write_str("an allow is true"),
            Self::NoMatch => f.write_str("no allow is about this path and operation"),
            Self::NoneTrue => f.write_str("no allow is true"),
            Self::Error { line, message } => write!(f, "no allow is true; the one on line {line} failed: {message}"),
            Self::Budget => f.write_str("it takes more steps or documents than a decision may"),
        }
    }
}
