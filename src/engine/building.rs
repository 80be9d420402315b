//! Making views from the log.
//!
//! A view is made of all of a document's changes, or of those that automerge can apply: when it fails, or panics, over
//! some that a trusted node brought, those are found and written down as void, and the view is made without them and
//! without what stands on them. Nobody is shown such a view before the `void` records are on the disk.

use crate::document::{Change, View, automerge_version};
use crate::error::Error;
use crate::history::voids::{Sifted, sift};
use crate::history::{HistoryError, Misfit, Readable, Reader};
use crate::id::{ChangeHash, DocumentId, Lsn};
use crate::limits::voids::PASSES;
use crate::log::rows::IndexRow;

use super::core::Input;

/// Gives the writer a [`Input::Void`] and returns once it is on the disk.
pub(crate) type Tell<'a> = &'a dyn Fn(Input) -> Result<(), Error>;

/// A document, made from the log.
#[derive(Default)]
pub(crate) struct Built {
    pub(crate) view: View,
    /// What of the document it is made of.
    pub(crate) readable: Readable,
    /// Every change up to here is in it, or hidden.
    pub(crate) applied: Lsn,
}

/// Builds a document, without the changes that cannot be applied; those that are found now are told first.
///
/// # Errors
/// As [`materialize`]; whatever `tell` returns.
pub(crate) fn build(reader: &Reader, id: DocumentId, tell: Tell<'_>) -> Result<Built, Error> {
    let mut failed = Error::Busy;
    for _ in 0..PASSES {
        let applied = reader.tail().lsn;
        let error = match materialize(reader, id) {
            Ok((view, readable)) => return Ok(Built { view, readable, applied }),
            Err(error) if is_of_changes(&error) => error,
            Err(error) => return Err(error),
        };
        let Some(upto) = reader.row(id)?.map(|row| applied.min(Lsn(row.last_lsn))) else { return Err(error) };
        let Sifted { misfits, view, is_whole } = sift(reader, id, upto)?;
        if misfits.is_empty() {
            // All of them can be applied, but not in the way they were at first.
            return match reader.row(id)? {
                Some(row) if is_whole && row.last_lsn == upto.0 => {
                    let readable = reader.readable(id, &row, upto)?;
                    if view.heads() == readable.shown_heads(&row) {
                        Ok(Built { view, readable, applied: upto })
                    } else {
                        Err(error)
                    }
                }
                _ => Err(error),
            };
        }
        for Misfit { lsn, hash, why } in &misfits {
            tracing::error!(document = %id, %hash, %lsn, %why, "a change that was logged cannot be applied; the document is shown without it");
        }
        tell(void(id, misfits))?;
        failed = error;
    }
    Err(failed)
}

/// What the writer is told.
pub(crate) fn void(document: DocumentId, misfits: Vec<Misfit>) -> Input {
    Input::Void { document, misfits, automerge: automerge_version().to_owned() }
}

/// Whether the document's changes may be the cause, not the disk.
pub(crate) fn is_of_changes(error: &Error) -> bool {
    matches!(error, Error::View(_) | Error::History(HistoryError::Document { .. }))
}

/// Builds a document from its snapshot and the changes after it, without those known not to apply, and holds it against
/// its row.
///
/// # Errors
/// [`Error`] when the log cannot be read, automerge cannot build it, or it has other heads than its row.
pub(crate) fn materialize(reader: &Reader, id: DocumentId) -> Result<(View, Readable), Error> {
    let tail = reader.tail().lsn;
    let Some(row) = reader.row(id)? else { return Ok((View::new(), Readable::default())) };
    let upto = tail.min(Lsn(row.last_lsn));
    let readable = reader.readable(id, &row, upto)?;
    // A row ahead of the tail is of a group that nobody was told of yet.
    let expected = (upto.0 == row.last_lsn).then(|| readable.shown_heads(&row));
    let whole = |view: &View| mutant!(SnapshotTrusted) || expected.as_ref().is_none_or(|heads| view.heads() == *heads);
    if let Some(snapshot) = reader.snapshot(id)?.filter(|snapshot| snapshot.lsn <= upto) {
        match load(reader, id, (snapshot.lsn, snapshot.bytes), upto, &readable) {
            Ok(view) if whole(&view) => return Ok((view, readable)),
            _ => {
                tracing::warn!(document = %id, lsn = %snapshot.lsn, "a snapshot leads elsewhere; the log is read instead")
            }
        }
    }
    let view = load(reader, id, (Lsn::ZERO, Vec::new()), upto, &readable)?;
    if !whole(&view) {
        let why = "its changes lead to other heads than its row says; run `tidelog verify`".to_owned();
        return Err(HistoryError::Document { document: id, lsn: upto, why }.into());
    }
    Ok((view, readable))
}

fn load(
    reader: &Reader,
    id: DocumentId,
    (after, mut chunks): (Lsn, Vec<u8>),
    upto: Lsn,
    readable: &Readable,
) -> Result<View, Error> {
    for (lsn, row) in reader.index(id, after)? {
        if mutant!(SnapshotTrusted) && after != Lsn::ZERO {
            break;
        }
        if lsn <= upto && matches!(row, IndexRow::Change { .. }) && !readable.hides(lsn) {
            chunks.extend(reader.change_bytes(lsn)?);
        }
    }
    if chunks.is_empty() {
        return Ok(View::new());
    }
    Ok(View::load(&chunks)?)
}

/// The changes after a position that are shown, but for those that somebody `has`; `None` when some before it were
/// withdrawn, or found not to apply, since.
pub(crate) fn read_changes(
    reader: &Reader,
    id: DocumentId,
    after: Lsn,
    readable: &mut Readable,
    has: &dyn Fn(ChangeHash) -> bool,
) -> Result<Option<Vec<Change>>, Error> {
    let mut changes = Vec::new();
    for (lsn, row) in reader.index(id, after)? {
        match row {
            IndexRow::Change { hash, .. } if readable.shows(lsn, &row) => {
                if !has(ChangeHash(hash)) {
                    changes.push(Change::parse_logged(reader.change_bytes(lsn)?)?);
                }
            }
            IndexRow::Change { .. } | IndexRow::Lifecycle(_) | IndexRow::Withheld(_) => {}
            IndexRow::Withdrawn { .. } | IndexRow::Void { .. } => return Ok(None),
        }
    }
    Ok(Some(changes))
}

/// Has the document's newest change voided, as if that version of automerge had failed over it.
#[cfg(test)]
pub(crate) fn void_newest(database: &super::Database, handle: &super::DocHandle, automerge: &str) -> Lsn {
    let index = database.reader().index(handle.id(), Lsn::ZERO).unwrap();
    let newest = index.into_iter().rev().find_map(|(lsn, row)| match row {
        IndexRow::Change { hash, .. } => Some(Misfit { lsn, hash: ChangeHash(hash), why: "é".repeat(300) }),
        _ => None,
    });
    let misfit = newest.unwrap();
    let lsn = misfit.lsn;
    let input = Input::Void { document: handle.id(), misfits: vec![misfit], automerge: automerge.to_owned() };
    database.tell_void(input).unwrap();
    lsn
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::engine::{Database, DocHandle};
    use crate::limits::Limits;
    use crate::log::MemoryStorage;

    fn put(handle: &DocHandle, key: &str, value: u64) {
        handle.change(|edit| Ok(edit.put(key, value)?)).unwrap().wait().unwrap();
    }

    fn shown(handle: &DocHandle) -> Vec<String> {
        match handle.to_json().unwrap() {
            Value::Object(map) => map.into_iter().map(|(key, _)| key).collect(),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn another_version_tries_again_and_edits_go_on_under_a_number_that_is_free() {
        let limits = Limits { snapshot_tail_min: 2, ..Limits::default() };
        let database = Database::on(MemoryStorage::new()).limits(limits).open().unwrap();
        let (handle, commit) = database.collection("notes").unwrap().create(json!({ "a": 1 })).unwrap();
        commit.wait().unwrap();
        put(&handle, "b", 1);
        void_newest(&database, &handle, automerge_version());
        assert_eq!(shown(&handle), ["a"], "a warm view is made again");
        assert!(handle.state().unwrap().degraded);
        let degraded = database.reader().degraded(handle.id()).unwrap().unwrap();
        assert_eq!((degraded.voids, degraded.hidden, database.status().degraded), (1, 1, 1));
        // This process's own change is hidden, and its number taken.
        put(&handle, "c", 1);
        put(&handle, "d", 1);
        assert_eq!(shown(&handle), ["a", "c", "d"]);
        for n in 0..20 {
            put(&handle, "e", n);
        }
        let hidden = database.reader().row(handle.id()).unwrap().unwrap();
        assert!(hidden.snapshot.is_none_or(|saved| saved.changes == 1), "{:?}", hidden.snapshot);

        // Another version fails over something else: what this one did not apply is tried again, and applies.
        let newest = void_newest(&database, &handle, "0.0.1");
        assert_eq!(shown(&handle), ["a", "b", "c", "d", "e"]);
        assert!(!handle.state().unwrap().degraded);
        let saved = crate::engine::snapshots::save(database.reader(), database.working_set(), handle.id()).unwrap();
        let Some(snapshot @ Input::Snapshot { .. }) = saved else { panic!("{saved:?}") };
        database.tell_void(snapshot).unwrap();
        assert!(database.reader().snapshot(handle.id()).unwrap().is_some_and(|saved| saved.lsn >= newest));
        // And back: the snapshot that holds it goes.
        void_newest(&database, &handle, automerge_version());
        assert!(database.reader().snapshot(handle.id()).unwrap().is_none_or(|saved| saved.lsn < newest));
        assert_eq!(handle.read::<u64>("e").unwrap(), Some(18));
        let found = database.verify(true, &mut |_, _| {}).unwrap();
        assert!(found.faults.is_empty() && found.voids.len() == 1, "{found:?}");
    }
}
