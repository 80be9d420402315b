//! Where a command's rows go.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::CommandError;

/// How far a long command is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub what: String,
    /// How much of it is done.
    pub done: u64,
    /// Of how much; `None` when nobody knows.
    pub total: Option<u64>,
}

impl Progress {
    /// Progress of `what`.
    #[must_use]
    pub fn new(what: &str, done: u64, total: Option<u64>) -> Self {
        Self { what: what.to_owned(), done, total }
    }
}

/// Takes what a command has to say while it runs.
pub trait Output {
    /// Takes one row.
    ///
    /// # Errors
    /// [`CommandError::output_closed`] when nobody reads any more: the command ends.
    fn row(&mut self, row: Value) -> Result<(), CommandError>;

    /// Hears how far it is. Losing some does no harm.
    fn progress(&mut self, progress: Progress);
}

/// Keeps the rows, for a caller that wants to look at them.
#[derive(Debug, Default)]
pub struct Collected {
    /// The rows.
    pub rows: Vec<Value>,
}

impl Output for Collected {
    fn row(&mut self, row: Value) -> Result<(), CommandError> {
        self.rows.push(row);
        Ok(())
    }

    fn progress(&mut self, _: Progress) {}
}
