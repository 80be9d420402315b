//! Why a command fails, as its user meets it: a code, what happened, what to do, and an exit status.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::document::{ChangeError, ViewError};
use crate::error::{Error, QueryError};
use crate::id::IdError;
use crate::net::NetError;
use crate::node::trace::TraceError;
use crate::quota::QuotaError;
use crate::web::WebError;

/// The exit status of the process. Scripts rely on the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", from = "u8")]
#[repr(u8)]
pub enum Exit {
    /// It failed in a way that has no number of its own.
    Failed = 1,
    /// The command line, or a value on it, is malformed.
    Usage = 2,
    /// What was asked for is not there.
    NotFound = 3,
    /// Somebody does not allow it.
    Denied = 4,
    /// Nobody answers, or not in time.
    Unreachable = 5,
    /// Something stands in its way: in use, changed meanwhile, there already.
    Conflict = 6,
    /// Something on the disk is not what was written there.
    Corruption = 7,
    /// The user interrupted it.
    Interrupted = 130,
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> Self {
        exit as Self
    }
}

impl From<u8> for Exit {
    /// A number that has no meaning here, of another version say, is a plain failure.
    fn from(number: u8) -> Self {
        match number {
            2 => Self::Usage,
            3 => Self::NotFound,
            4 => Self::Denied,
            5 => Self::Unreachable,
            6 => Self::Conflict,
            7 => Self::Corruption,
            130 => Self::Interrupted,
            _ => Self::Failed,
        }
    }
}

/// Why a command failed. It crosses the admin socket as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct CommandError {
    /// Its fixed code, `E0xxx`.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
    /// The exit status it means.
    pub exit: Exit,
}

impl CommandError {
    /// An error with a code of this room's.
    #[must_use]
    pub fn new(code: &str, exit: Exit, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), remedy: None, exit }
    }

    /// The same with something to do about it.
    #[must_use]
    pub fn fix(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// A value of the command line that cannot be read.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new("E0110", Exit::Usage, message)
    }

    /// A text that should be JSON.
    #[must_use]
    pub fn json(place: &str, error: &serde_json::Error) -> Self {
        Self::new("E0604", Exit::Usage, format!("{place} is not valid JSON: {error}"))
            .fix("write it as JSON, in single quotes on a command line: '{\"title\": \"Tides\"}'")
    }

    /// A file that cannot be read or written.
    #[must_use]
    pub fn file(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        let (code, exit) = match error.kind() {
            _ if full => ("E0403", Exit::Failed),
            std::io::ErrorKind::NotFound => ("E0111", Exit::NotFound),
            std::io::ErrorKind::PermissionDenied => ("E0111", Exit::Denied),
            _ => ("E0111", Exit::Failed),
        };
        let remedy = if full { "free some space on that disk" } else { "check the path and its permissions" };
        Self::new(code, exit, format!("cannot {doing} {}: {error}", path.display())).fix(remedy)
    }

    /// Nobody is running on a data directory, and it takes a running node.
    #[must_use]
    pub fn no_node(what: &str) -> Self {
        Self::new(
            "E0112",
            Exit::Unreachable,
            format!("{what} needs a running node, and none runs on this data directory"),
        )
        .fix("run `tidelog serve` first, with the same --data")
    }

    /// The user interrupted the command.
    #[must_use]
    pub fn interrupted() -> Self {
        Self::new("E0001", Exit::Interrupted, "interrupted")
    }

    /// The reader of what we write went away; nothing is to be said about it.
    #[must_use]
    pub fn output_closed() -> Self {
        Self::new("E0002", Exit::Failed, "nobody reads the output any more")
    }

    /// Whether this is [`Self::output_closed`].
    #[must_use]
    pub fn is_output_closed(&self) -> bool {
        self.code == "E0002"
    }
}

impl From<Error> for CommandError {
    fn from(error: Error) -> Self {
        let exit = match &error {
            Error::NotFound(_) | Error::Deleted(_) | Error::Withheld(_) => Exit::NotFound,
            Error::View(ViewError::NotFound(_) | ViewError::UnknownHead(_)) => Exit::NotFound,
            Error::Query(error) if matches!(**error, QueryError::Malformed { .. } | QueryError::Index { .. }) => {
                Exit::Usage
            }
            Error::View(ViewError::Json(_) | ViewError::RootNotMap | ViewError::Serde(_)) | Error::Id(_) => Exit::Usage,
            Error::OtherCollection { .. } | Error::Busy | Error::Closed => Exit::Conflict,
            _ if error.is_corruption() => Exit::Corruption,
            _ if matches!(error.code(), "E0104" | "E0105") => Exit::Conflict,
            _ => Exit::Failed,
        };
        let own = match &error {
            Error::View(ViewError::NotFound(_)) => Some("`tidelog get <id>` shows what is there"),
            Error::View(ViewError::UnknownHead(_)) => Some("`tidelog log <id>` lists its changes"),
            Error::View(ViewError::RootNotMap) => Some("give an object, as '{\"title\": \"Tides\"}'"),
            Error::Id(IdError::Document(_)) => Some("`tidelog ls <collection>` lists the ids"),
            Error::Id(IdError::Collection(_)) => Some("choose a name such as notes"),
            Error::Id(IdError::Hash(_)) => Some("`tidelog log <id>` lists the hashes of its changes"),
            Error::Id(IdError::Node(_)) => Some("`tidelog peer ls` and `tidelog status` show node ids"),
            _ => None,
        };
        let remedy = error.remedy().or(own.map(Cow::Borrowed)).map(Cow::into_owned);
        Self { code: error.code().to_owned(), message: error.to_string(), remedy, exit }
    }
}

impl From<ViewError> for CommandError {
    fn from(error: ViewError) -> Self {
        Error::from(error).into()
    }
}

impl From<ChangeError> for CommandError {
    fn from(error: ChangeError) -> Self {
        Error::from(error).into()
    }
}

impl From<IdError> for CommandError {
    fn from(error: IdError) -> Self {
        Error::from(error).into()
    }
}

impl From<crate::history::HistoryError> for CommandError {
    fn from(error: crate::history::HistoryError) -> Self {
        Error::from(error).into()
    }
}

#[cfg(feature = "fjall")]
impl From<crate::log::DirectoryError> for CommandError {
    fn from(error: crate::log::DirectoryError) -> Self {
        Error::from(error).into()
    }
}

impl From<NetError> for CommandError {
    /// The text of a [`NetError`] says what to do already, after a colon; so most have no remedy of their own.
    fn from(error: NetError) -> Self {
        let (code, exit, remedy) = match &error {
            NetError::KeyFile { .. } => {
                ("E0107", Exit::Denied, Some("put the key file in order; it is left as it was found"))
            }
            NetError::Ticket { .. } | NetError::Invite => {
                ("E0109", Exit::Usage, Some("copy the whole line that `tidelog ticket` prints at the other node"))
            }
            NetError::AddressInUse { .. } => (
                "E0108",
                Exit::Conflict,
                Some("choose another port, as --listen 127.0.0.1:4781; port 0 takes a free one"),
            ),
            NetError::Bind { .. } => ("E0108", Exit::Failed, Some("choose an address of this machine with --listen")),
            NetError::NotAllowed { .. } | NetError::InviteRefused { .. } => ("E0502", Exit::Denied, None),
            NetError::OwnKey { .. } | NetError::WrongKey { .. } | NetError::OtherKeyExpected { .. } => {
                ("E0503", Exit::Denied, None)
            }
            NetError::TooManyInvites { .. } | NetError::TooManyConnections { .. } => ("E0702", Exit::Conflict, None),
            NetError::Unreachable { .. }
            | NetError::Refused { .. }
            | NetError::TimedOut { .. }
            | NetError::Reset { .. } => {
                ("E0501", Exit::Unreachable, Some("check that the other node runs and that UDP reaches it"))
            }
            _ => ("E0301", Exit::Failed, None),
        };
        Self { code: code.to_owned(), message: error.to_string(), remedy: remedy.map(str::to_owned), exit }
    }
}

impl From<QuotaError> for CommandError {
    fn from(error: QuotaError) -> Self {
        Self::new(error.code(), Exit::Usage, error.to_string()).fix(error.remedy())
    }
}

impl From<WebError> for CommandError {
    fn from(error: WebError) -> Self {
        let (exit, remedy) = match &error {
            WebError::AddressInUse { .. } => (
                Exit::Conflict,
                "choose another port, as --http 127.0.0.1:4782; port 0 takes a free one, --no-http none",
            ),
            WebError::Bind { .. } => (Exit::Failed, "choose an address of this machine with --http"),
        };
        Self::new("E0108", exit, error.to_string()).fix(remedy)
    }
}

impl From<TraceError> for CommandError {
    fn from(error: TraceError) -> Self {
        let exit = match &error {
            TraceError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
            _ => Exit::Failed,
        };
        Self::new("E0113", exit, error.to_string())
            .fix("give an editing history as the editing-traces collection has them: JSON, or gzipped JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::DocumentId;

    #[test]
    fn an_unknown_document_exits_with_3_and_says_how_to_list() {
        let error = CommandError::from(Error::NotFound(DocumentId([1; 16])));
        assert_eq!((error.code.as_str(), error.exit), ("E0601", Exit::NotFound));
        assert!(error.remedy.is_some());
    }

    #[test]
    fn an_error_crosses_the_socket_unchanged() {
        let error = CommandError::from("nonsense".parse::<crate::net::Ticket>().unwrap_err());
        assert_eq!(error.exit, Exit::Usage);
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(serde_json::from_str::<CommandError>(&text).unwrap(), error);
    }
}
