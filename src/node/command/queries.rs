//! Queries, indexes, and those who follow feeds.

use serde_json::{Value, json};

use super::watch::typed;
use super::{Cancel, CommandError, Exit, Output};
use crate::engine::{Collection, Database};
use crate::query::{ChangeKind, IndexState, ListenOptions, Predicate, Query, QuerySnapshot};

/// A query in its JSON form, with conditions that were typed beside those in it.
fn asked(collection: &Collection, query: &Value, predicate: Option<&str>) -> Result<(Query, bool), CommandError> {
    let (query, counts) = collection.query_of_json(query)?;
    let predicate = predicate.map(Predicate::parse).transpose().map_err(crate::error::Error::from)?;
    Ok((predicate.into_iter().fold(query, Query::filter), counts))
}

/// The documents of a query: one row each, `{id, name, heads, position, value}`; or one row, `{count}`. The summary is
/// `{position}`.
pub(super) fn query(
    db: &Database,
    collection: &str,
    query: &Value,
    predicate: Option<&str>,
    cancel: &Cancel,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let (query, counts) = asked(&db.collection(collection)?, query, predicate)?;
    cancel.unless(query.ready())??;
    if counts {
        let (count, position) = query.run_count()?;
        output.row(json!({ "count": count }))?;
        return Ok(json!({ "position": position.to_string() }));
    }
    let found = query.run()?;
    for document in found.docs() {
        output.row(document.to_json())?;
    }
    Ok(json!({ "position": found.metadata().position.to_string() }))
}

/// What changes in the result of a query: one row for each change, `{kind, id, cursor, …}`. From `now` on, from the
/// `beginning` with everything that is in it, or after a cursor that was printed before.
#[expect(clippy::too_many_arguments, reason = "one command's words")]
pub(super) fn listen(
    db: &Database,
    collection: &str,
    predicate: &str,
    from: &str,
    limit: Option<u64>,
    once: bool,
    cancel: &Cancel,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let (query, _) = asked(&db.collection(collection)?, &json!({}), Some(predicate))?;
    let mut options = ListenOptions::default();
    if !matches!(from, "now" | "beginning") {
        let since = typed(from, "give a cursor as this node printed it, `beginning` or `now`")?;
        options = options.since(since);
    }
    let mut listener = query.on_snapshot(options)?;
    let mut left = limit.unwrap_or(u64::MAX);
    let mut is_first = true;
    loop {
        let next = cancel.unless(listener.next())?;
        let snapshot = next.ok_or(crate::error::Error::Closed)??;
        let is_told = !(is_first && from == "now");
        if snapshot.is_reset() && is_first && is_told && from != "beginning" {
            // Where it was to go on is not in this log, or too far back.
            output.row(json!({ "reset": { "to": snapshot.metadata().position.to_string() } }))?;
        }
        if is_told {
            for row in rows(&snapshot) {
                if left == 0 {
                    break;
                }
                output.row(row)?;
                left -= 1;
            }
        }
        is_first = false;
        if once || left == 0 {
            return Ok(json!({ "cursor": snapshot.metadata().position.to_string() }));
        }
    }
}

fn rows(snapshot: &QuerySnapshot) -> Vec<Value> {
    let cursor = snapshot.metadata().position.to_string();
    let row = |change: &crate::query::DocChange| {
        let mut row = match change.kind {
            ChangeKind::Removed => json!({ "id": change.document.id.to_string() }),
            _ => change.document.to_json(),
        };
        row["kind"] = change.kind.as_str().into();
        row["cursor"] = cursor.as_str().into();
        row
    };
    snapshot.doc_changes().iter().map(row).collect()
}

/// A collection's indexes, one row each.
pub(super) fn indexes(db: &Database, collection: &str, output: &mut dyn Output) -> Result<Value, CommandError> {
    for index in db.collection(collection)?.indexes()? {
        output.row(index.to_json())?;
    }
    Ok(Value::Null)
}

/// Declares an index: one row, how it stands.
pub(super) fn declare(
    db: &Database,
    collection: &str,
    fields: &[String],
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let index: IndexState = db.collection(collection)?.declare_index(fields)?;
    output.row(index.to_json())?;
    Ok(Value::Null)
}

/// Drops an index.
pub(super) fn drop_index(
    db: &Database,
    collection: &str,
    id: &str,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    db.collection(collection)?.drop_index(id)?;
    output.row(json!({ "id": id }))?;
    Ok(Value::Null)
}

/// Those who follow feeds under a name, one row each.
pub(super) fn feeds(db: &Database, output: &mut dyn Output) -> Result<Value, CommandError> {
    for (name, state) in db.consumers()? {
        output.row(json!({
            "consumer": name,
            "events": state.events,
            "lag": state.lag(db),
            "position": state.cursor.map(|cursor| cursor.position.0),
            "cursor": state.cursor.map(|cursor| cursor.to_string()),
            "updated_ms": state.updated_ms,
        }))?;
    }
    Ok(Value::Null)
}

/// Has one of them begin anew.
pub(super) fn reset_feed(
    db: &Database,
    consumer: &str,
    cancel: &Cancel,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let found = db.consumer(consumer)?;
    if found.state()?.is_none() {
        return Err(CommandError::new("E0629", Exit::NotFound, format!("there is no consumer {consumer:?}"))
            .fix("`tidelog feed ls` lists them"));
    }
    cancel.unless(found.reset())??;
    output.row(json!({ "consumer": consumer }))?;
    Ok(Value::Null)
}
