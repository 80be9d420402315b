//! The admin socket: how commands reach a running node.
//!
//! It is the Unix socket `admin.sock` in the data directory, open to the directory's owner only. A client sends one
//! [`Request`](super::command::Request) as a line of JSON and reads [`Response`] lines until `done` or `error`; then it
//! may send the next. Closing the connection ends the command that runs. Lines, connections and waiting rows are
//! bounded.

mod address;
mod client;
mod server;

pub use address::SOCKET_FILE;
pub use client::{Client, Hangup};
pub use server::AdminServer;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::command::{CommandError, Progress};

/// The longest line of a request, in bytes.
pub const REQUEST_BYTES_MAX: usize = 64 << 20;
/// The longest line of a response, in bytes: room for a large document in base64.
pub const RESPONSE_BYTES_MAX: usize = 512 << 20;

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// A row of the result.
    Row(Value),
    /// How far it is.
    Progress(Progress),
    /// It is done; its summary.
    Done(Value),
    /// It failed.
    Error(CommandError),
}
