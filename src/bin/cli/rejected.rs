//! Rejected edits on the screen.

use serde_json::{Value, json};
use tidelog::node::Session;
use tidelog::node::command::{CommandError, Request};

use super::arguments::Rejected;
use super::commands::rows;
use super::screen::Screen;
use super::table::{Column, cell, time};

const LISTED: [Column; 5] = [
    ("ID", |row| cell(&row["id"])),
    ("CHANGE", change),
    ("COLLECTION", |row| cell(&row["collection"])),
    ("WHEN", |row| time(&row["at_ms"].as_u64().map_or(Value::Null, |ms| json!(ms / 1000)))),
    ("WHY", |row| cell(&row["why"])),
];
const DONE: [Column; 3] =
    [("ID", |row| cell(&row["id"])), ("CHANGE", change), ("LEFT OUT", |row| cell(&row["left_out"]))];

/// The change, or that the document was deleted.
fn change(row: &Value) -> String {
    row["change"].as_str().map_or_else(|| "deletion".to_owned(), str::to_owned)
}

pub(super) fn rejected(session: &mut Session, command: Rejected, screen: &Screen) -> Result<(), CommandError> {
    match command {
        Rejected::Ls => {
            let count = rows(session, Request::RejectedList, screen, "id", &LISTED)?;
            if count > 0 {
                screen.next("tidelog rejected resubmit <id>");
            }
        }
        Rejected::Resubmit { id, change } => {
            rows(session, Request::RejectedResubmit { id, change }, screen, "id", &DONE)?;
        }
        Rejected::Discard { id, change } => {
            rows(session, Request::RejectedDiscard { id, change }, screen, "id", &DONE[..2])?;
        }
    }
    Ok(())
}
