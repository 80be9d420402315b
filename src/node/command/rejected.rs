//! Commands on edits that another node would not have.

use serde_json::{Value, json};

use super::{CommandError, Exit, Output};
use crate::engine::{Database, Rejected};
use crate::id::DocumentId;

pub(super) fn list(database: &Database, output: &mut dyn Output) -> Result<Value, CommandError> {
    for rejected in database.rejected()? {
        let state = database.reader().document(rejected.document)?;
        let mut row = row_of(&rejected);
        row["collection"] = json!(state.map(|state| state.collection.as_str().to_owned()));
        row["by"] = json!(rejected.by.to_string());
        row["why"] = json!(rejected.why);
        row["at_ms"] = json!(rejected.at_ms);
        output.row(row)?;
    }
    Ok(Value::Null)
}

pub(super) fn resubmit(
    database: &Database,
    id: &str,
    change: Option<&str>,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    for rejected in chosen(database, id, change)? {
        let made = database.resubmit(&rejected)?;
        if let Some(commit) = made.commit {
            commit.wait()?;
        }
        let mut row = row_of(&rejected);
        row["left_out"] = json!(made.left_out);
        output.row(row)?;
    }
    Ok(Value::Null)
}

pub(super) fn discard(
    database: &Database,
    id: &str,
    change: Option<&str>,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    for rejected in chosen(database, id, change)? {
        database.discard_rejected(&rejected)?;
        output.row(row_of(&rejected))?;
    }
    Ok(Value::Null)
}

fn row_of(rejected: &Rejected) -> Value {
    json!({ "id": rejected.document.to_string(), "change": rejected.change.map(|hash| hash.to_string()) })
}

fn chosen(database: &Database, id: &str, change: Option<&str>) -> Result<Vec<Rejected>, CommandError> {
    let document: DocumentId = id.parse().map_err(crate::error::Error::from)?;
    let mut of_it = database.rejected()?;
    of_it.retain(|rejected| {
        let is_this = change.is_none_or(|change| rejected.change.is_some_and(|hash| hash.to_string() == change));
        rejected.document == document && is_this
    });
    if of_it.is_empty() {
        let what = change.map_or_else(String::new, |change| format!("change {change} of "));
        return Err(CommandError::new(
            "E0601",
            Exit::NotFound,
            format!("{what}document {document} is not on the list of rejected edits"),
        )
        .fix("`tidelog rejected ls` shows the list"));
    }
    Ok(of_it)
}
