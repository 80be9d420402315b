//! Reading the log: what is in it, and what comes.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::documents::find;
use super::{Cancel, CommandError, Exit, Output, Target};
use crate::engine::Database;
use crate::history::{Entry, EntryKind};
use crate::id::{CollectionName, DocumentId, Lsn, NodeId};
use crate::log::record::{Lifecycle, LifecycleKind};

/// Records and bytes read at a time.
const RECORDS: usize = 512;
const BYTES: usize = 1 << 20;
/// Most rows that one command lists.
const ROWS_MAX: usize = 1_000_000;

/// Changes as they come, from after `from` on. The summary is `{lsn}`: where to go on.
pub(super) fn watch(
    db: &Database,
    target: Option<Target>,
    from: Option<u64>,
    limit: Option<u64>,
    cancel: &Cancel,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let wanted = Wanted::new(db, target)?;
    let mut tail = db.tail();
    let mut at = start(db, from)?;
    let mut left = limit.unwrap_or(u64::MAX);
    while left > 0 {
        tail.borrow_and_update();
        at = read_to_tail(db, &wanted, at, &mut left, cancel, output)?;
        if left > 0 {
            wait_for_more(&mut tail, cancel)?;
        }
    }
    Ok(json!({ "lsn": at.0 }))
}

fn start(db: &Database, from: Option<u64>) -> Result<Lsn, CommandError> {
    let tail = db.reader().tail().lsn;
    match from {
        None => Ok(tail),
        Some(from) if from <= tail.0 => Ok(Lsn(from)),
        Some(from) => {
            let why = format!("position {from} is beyond the end of this log, {tail}");
            Err(CommandError::new("E0614", Exit::Conflict, why)
                .fix("positions are of one log: take one that this node printed, or `--from beginning`"))
        }
    }
}

fn read_to_tail(
    db: &Database,
    wanted: &Wanted,
    mut at: Lsn,
    left: &mut u64,
    cancel: &Cancel,
    output: &mut dyn Output,
) -> Result<Lsn, CommandError> {
    loop {
        cancel.check()?;
        let entries = db.reader().read_log(at, BYTES, RECORDS)?;
        if entries.is_empty() {
            return Ok(at);
        }
        for entry in entries {
            at = entry.lsn;
            if let Some(row) = wanted.row(db, entry)? {
                output.row(row)?;
                *left -= 1;
                if *left == 0 {
                    return Ok(at);
                }
            }
        }
    }
}

fn wait_for_more(
    tail: &mut tokio::sync::watch::Receiver<crate::id::LogCursor>,
    cancel: &Cancel,
) -> Result<(), CommandError> {
    let mut cancelled = cancel.clone();
    tokio::runtime::Handle::current().block_on(async {
        tokio::select! {
            moved = tail.changed() => moved.map_err(|_| crate::error::Error::Closed.into()),
            () = cancelled.cancelled() => Err(CommandError::interrupted()),
        }
    })
}

/// The records of the log that are about documents: the last `limit`, or the first `limit` after `from`.
pub(super) fn log(
    db: &Database,
    from: Option<u64>,
    limit: u64,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(ROWS_MAX);
    let wanted = Wanted::Everything;
    if let Some(from) = from {
        let mut at = start(db, Some(from))?;
        let mut written = 0;
        while written < limit {
            let entries = db.reader().read_log(at, BYTES, RECORDS)?;
            let Some(last) = entries.last() else { break };
            at = last.lsn;
            for entry in entries {
                if let Some(row) = wanted.row(db, entry)?
                    && written < limit
                {
                    output.row(row)?;
                    written += 1;
                }
            }
        }
        return Ok(Value::Null);
    }
    for row in last_rows(db, limit)? {
        output.row(row)?;
    }
    Ok(Value::Null)
}

/// The last rows. Positions may jump and some records are no rows, so it looks further and further back.
fn last_rows(db: &Database, limit: usize) -> Result<VecDeque<Value>, CommandError> {
    let tail = db.reader().tail().lsn.0;
    let mut back = (limit as u64).saturating_mul(2).saturating_add(16);
    loop {
        let mut at = Lsn(tail.saturating_sub(back));
        let from_the_beginning = at == Lsn::ZERO;
        let mut rows = VecDeque::new();
        loop {
            let entries = db.reader().read_log(at, BYTES, RECORDS)?;
            let Some(last) = entries.last() else { break };
            at = last.lsn;
            for entry in entries {
                if let Some(row) = Wanted::Everything.row(db, entry)? {
                    rows.push_back(row);
                    if rows.len() > limit {
                        rows.pop_front();
                    }
                }
            }
        }
        if rows.len() >= limit || from_the_beginning {
            return Ok(rows);
        }
        back = back.saturating_mul(8);
    }
}

/// Which documents somebody wants to hear of.
enum Wanted {
    Everything,
    Document(DocumentId),
    Collection(CollectionName),
}

impl Wanted {
    fn new(db: &Database, target: Option<Target>) -> Result<Self, CommandError> {
        Ok(match target {
            None => Self::Everything,
            Some(Target::Document(id)) => Self::Document(find(db, &id)?.id()),
            // A collection that does not exist yet may be waited for.
            Some(Target::Collection(name)) => Self::Collection(CollectionName::new(name)?),
        })
    }

    /// What to say about a record; nothing when it is of no interest.
    fn row(&self, db: &Database, entry: Entry) -> Result<Option<Value>, CommandError> {
        let lsn = entry.lsn.0;
        Ok(match entry.kind {
            EntryKind::Change { document, hash, via, origin, header, .. } => {
                let collection = db.reader().names().collection(header.collection)?;
                self.wants(document, &collection).then(|| {
                    json!({
                        "lsn": lsn,
                        "kind": "changed",
                        "id": document.to_string(),
                        "collection": collection.as_str(),
                        "change": hash.to_string(),
                        "seq": header.seq,
                        "ops": header.op_count,
                        "time": header.time,
                        "received_ms": header.received_ms,
                        "node": origin.node.to_string(),
                        "via": via.map(|node| node.to_string()),
                    })
                })
            }
            EntryKind::Lifecycle { document, via, bytes, .. } => {
                let statement = Lifecycle::decode(&bytes).map_err(|error| {
                    let place = format!("record {lsn}");
                    CommandError::from(crate::history::HistoryError::Row { place, error })
                })?;
                let wanted = self.wants(document, &statement.collection);
                wanted.then(|| lifecycle_row(lsn, document, via, &statement))
            }
            EntryKind::Withdrawn { document, winner, via, records } => {
                let Some(state) = db.reader().document(document)? else { return Ok(None) };
                self.wants(document, &state.collection).then(|| {
                    json!({
                        "lsn": lsn,
                        "kind": "withdrawn",
                        "id": document.to_string(),
                        "collection": state.collection.as_str(),
                        "change": winner.to_string(),
                        "records": records.iter().map(|lsn| lsn.0).collect::<Vec<_>>(),
                        "via": via.map(|node| node.to_string()),
                    })
                })
            }
            EntryKind::Void { document, record, automerge, why } => {
                let Some(state) = db.reader().document(document)? else { return Ok(None) };
                self.wants(document, &state.collection).then(|| {
                    json!({
                        "lsn": lsn,
                        "kind": "void",
                        "id": document.to_string(),
                        "collection": state.collection.as_str(),
                        "record": record.0,
                        "automerge": automerge,
                        "why": why,
                    })
                })
            }
            EntryKind::Footer { .. } | EntryKind::Other => None,
        })
    }

    fn wants(&self, document: DocumentId, collection: &CollectionName) -> bool {
        match self {
            Self::Everything => true,
            Self::Document(id) => *id == document,
            Self::Collection(name) => name == collection,
        }
    }
}

fn lifecycle_row(lsn: u64, document: DocumentId, via: Option<NodeId>, statement: &Lifecycle) -> Value {
    let kind = match statement.kind {
        LifecycleKind::Created => "created",
        LifecycleKind::Deleted => "deleted",
        LifecycleKind::Restored => "restored",
        LifecycleKind::Purged => "purged",
    };
    json!({
        "lsn": lsn,
        "kind": kind,
        "id": document.to_string(),
        "collection": statement.collection.as_str(),
        "name": statement.name,
        "time": statement.time_ms / 1000,
        "node": statement.author.to_string(),
        "via": via.map(|node| node.to_string()),
    })
}
