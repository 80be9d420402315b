//! Checking a store: everything against everything, each fault with its place.

mod audit;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;

use super::fold::{by_seq_key, fold_record, index_key, index_row, lsn_in, new_row};
use super::open::Walk;
use super::reader::document_row;
use super::snapshot::read_snapshot;
use super::voids::{Misfit, is_degraded, sift, void_index_row};
use super::withdrawal::withdrawn_records;
use super::{HistoryError, Names, Reader};
use crate::document::{Change, View, automerge_version};
use crate::id::{CollectionKey, DocumentId, Lsn};
use crate::limits::Limits;
use crate::log::record::{Lifecycle, NameHeader, Record, WithdrawnHeader, payload_digest};
use crate::log::rows::{DocumentRow, IndexRow, decode_row};
use crate::log::{Keyspace, LogError, StorageError, log_key, lsn_of_key};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where: a record, a row, a document.
    pub place: String,
    /// What is wrong there.
    pub why: String,
}

/// A change that this node's automerge cannot apply. It is no fault of the store, and stays in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unapplied {
    /// Of which document.
    pub document: DocumentId,
    /// Where it is in the log.
    pub record: Lsn,
    /// What automerge said, and which version.
    pub why: String,
    /// A `void` record says so. Else it was found by this check, and will be left out when the document is used.
    pub is_on_record: bool,
}

/// What a check found.
#[derive(Debug, Clone, Default)]
pub struct Verification {
    /// Records read.
    pub records: u64,
    /// Commit groups whose chain was recomputed.
    pub groups: u64,
    /// Documents whose rows were compared.
    pub documents: u64,
    /// Documents rebuilt from the log, with `deep`.
    pub rebuilt: u64,
    /// Snapshots loaded and compared, with `deep`.
    pub snapshots: u64,
    /// What is wrong, at most [`Verification::FAULTS_MAX`].
    pub faults: Vec<Fault>,
    /// Faults beyond those.
    pub more_faults: u64,
    /// Changes that cannot be applied and are left out of views, at most [`Verification::FAULTS_MAX`].
    pub voids: Vec<Unapplied>,
    /// Such changes beyond those.
    pub more_voids: u64,
}

impl Verification {
    /// Faults that are listed; the rest is counted.
    pub const FAULTS_MAX: usize = 1000;

    fn fault(&mut self, place: impl Into<String>, why: impl std::fmt::Display) {
        if self.faults.len() < Self::FAULTS_MAX {
            self.faults.push(Fault { place: place.into(), why: why.to_string() });
        } else {
            self.more_faults += 1;
        }
    }

    fn void(&mut self, unapplied: Unapplied) {
        if self.voids.len() < Self::FAULTS_MAX {
            self.voids.push(unapplied);
        } else {
            self.more_voids += 1;
        }
    }
}

/// Checks the whole store: holds its files against their checksums, replays the groups and recomputes the chain,
/// compares index, documents and log, and, if `deep`, rebuilds every document and compares its heads. What cannot be
/// applied is listed beside the faults. `progress` is told
/// the phase and how much of it is done.
///
/// # Errors
/// [`HistoryError`] when the disk fails. What is merely wrong becomes a [`Fault`].
///
/// # Cost
/// Reads every file; two passes over the log; `deep` also materialises every document, one at a time.
pub fn verify(
    reader: &Reader,
    deep: bool,
    progress: &mut dyn FnMut(&'static str, u64),
) -> Result<Verification, HistoryError> {
    let mut report = Verification::default();
    reader.storage().check_files(&mut |file, why| report.fault(file, why))?;
    let log = check_log(reader, &mut report, progress);
    go_on(&mut report, "log", log)?;
    let documents = check_documents(reader, &mut report, progress);
    let documents = go_on(&mut report, "docs", documents)?;
    let orphans = check_orphans(reader, &mut report);
    go_on(&mut report, "doc_ix and by_seq", orphans)?;
    let refused = audit::check_refused(reader, &mut report);
    go_on(&mut report, "held", refused)?;
    let signatures = audit::check_signatures(reader, &mut report);
    go_on(&mut report, "held", signatures)?;
    let rules = audit::check_rules_rows(reader, &mut report);
    go_on(&mut report, "state", rules)?;
    if deep {
        for (n, id) in documents.into_iter().enumerate() {
            if let Err(error) = rebuild_document(reader, id, &mut report) {
                report.fault(format!("document {id}"), error);
            }
            progress("rebuild documents", n as u64 + 1);
        }
    }
    Ok(report)
}

/// Makes a fault of damage that ends a pass, so that the next one is done all the same.
fn go_on<T: Default>(
    report: &mut Verification,
    place: &str,
    result: Result<T, HistoryError>,
) -> Result<T, HistoryError> {
    match result {
        Err(HistoryError::Storage(StorageError::Damaged(why)))
        | Err(HistoryError::Log(LogError::Storage(StorageError::Damaged(why)))) => {
            report.fault(place, why);
            Ok(T::default())
        }
        other => other,
    }
}

/// Pass 1: every record, the chain, and the index row of each record about a document.
fn check_log(
    reader: &Reader,
    report: &mut Verification,
    progress: &mut dyn FnMut(&'static str, u64),
) -> Result<(), HistoryError> {
    let storage = reader.storage();
    let mut walk = Walk::from_footer(&**storage, Lsn::ZERO)?;
    let mut gone = Gone::default();
    let mut failed = None;
    let mut last = Lsn::ZERO;
    let to = log_key(reader.tail().lsn.next());
    storage.scan(Keyspace::Log, &[], &to, false, &mut |key, value| {
        let lsn = match lsn_of_key(key) {
            Ok(lsn) => lsn,
            Err(error) => {
                report.fault("log", error);
                return ControlFlow::Continue(());
            }
        };
        last = lsn;
        let record = match walk.step(lsn, value) {
            Ok(record) => record,
            Err(error) => {
                report.fault(format!("record {lsn}"), error);
                walk.resume_after(lsn, Record::read(lsn, value).ok().as_ref());
                return ControlFlow::Continue(());
            }
        };
        if let Err(error) = check_record(reader, report, &mut gone, lsn, &record) {
            failed = Some(error);
            return ControlFlow::Break(());
        }
        if walk.records.is_multiple_of(4096) {
            progress("replay the log", walk.records);
        }
        ControlFlow::Continue(())
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    if !walk.at_footer() {
        report.fault(format!("record {last}"), "the last commit group has no footer");
    }
    report.records = walk.records;
    report.groups = walk.groups;
    progress("replay the log", walk.records);
    Ok(())
}

fn check_record(
    reader: &Reader,
    report: &mut Verification,
    gone: &mut Gone,
    lsn: Lsn,
    record: &Record,
) -> Result<(), HistoryError> {
    let place = || format!("record {lsn}");
    // A record about a change goes with it.
    let mut about_change = None;
    let (document, expected) = match record {
        Record::Change(header, chunk) => {
            if payload_digest(chunk) != header.payload_digest {
                report.fault(place(), "the payload's digest does not match");
            }
            match Change::parse(chunk.clone()) {
                Ok(change) if change.hash().0 == header.hash => {}
                Ok(change) => report.fault(place(), format!("it holds change {}", change.hash())),
                Err(error) => report.fault(place(), error),
            }
            (header.document, index_row(header))
        }
        Record::Lifecycle(header, bytes) => {
            if let Err(error) = Lifecycle::decode(bytes) {
                report.fault(place(), error);
            }
            // Every document has such a record, and none may be without a row.
            if reader.storage().get(Keyspace::Docs, &header.document)?.is_none() {
                report.fault(format!("document {}", DocumentId(header.document)), "its row is missing");
            }
            (header.document, IndexRow::Lifecycle(Lifecycle::id_of(bytes).0))
        }
        Record::Name(header) => {
            check_name(reader, report, lsn, header);
            return Ok(());
        }
        Record::Void(header) => {
            let (id, change) = (DocumentId(header.document), Lsn(lsn.0.saturating_sub(header.change)));
            let about = reader.record(change)?;
            if !matches!(about, Some(Record::Change(ref about, _)) if about.document == id.0) {
                report.fault(place(), format!("it is about record {change}, which is no change of {id}"));
            }
            about_change = Some(change);
            (header.document, void_index_row(header))
        }
        Record::Withdrawn(header) => {
            check_withdrawal(reader, report, lsn, header)?;
            let changes = header.changes.len() as u64;
            (header.document, IndexRow::Withdrawn { winner: header.winner, changes })
        }
        Record::Withheld(header) => (header.document, IndexRow::Withheld(header.withheld)),
        Record::Refused(_) | Record::Subject(_) | Record::Attributed(_) | Record::Rules(_) | Record::Allowed(_) => {
            return audit::check_record(reader, report, lsn, record);
        }
        Record::Footer(_) | Record::Gap(_) | Record::Checkpoint => return Ok(()),
    };
    let id = DocumentId(document);
    let key = index_key(id, lsn);
    match reader.storage().get(Keyspace::DocIx, &key)? {
        None if gone.has(reader, id, about_change.unwrap_or(lsn))? => {}
        None => report.fault(format!("index of {id}"), format!("record {lsn} is missing")),
        Some(bytes) => match decode_row::<IndexRow>(Keyspace::DocIx, &key, &bytes) {
            Ok(row) if row == expected => {}
            Ok(_) => report.fault(format!("index of {id}"), format!("differs from record {lsn}")),
            Err(error) => report.fault(format!("index of {id} at record {lsn}"), error),
        },
    }
    Ok(())
}

/// What a `withdrawn` record takes away is a change of its document, and is not indexed any more.
fn check_withdrawal(
    reader: &Reader,
    report: &mut Verification,
    lsn: Lsn,
    header: &WithdrawnHeader,
) -> Result<(), HistoryError> {
    let id = DocumentId(header.document);
    for withdrawn in withdrawn_records(lsn, header) {
        let record = reader.record(withdrawn)?;
        if !matches!(record, Some(Record::Change(ref header, _)) if header.document == id.0) {
            report
                .fault(format!("record {lsn}"), format!("it withdraws record {withdrawn}, which is no change of {id}"));
        }
        if reader.storage().get(Keyspace::DocIx, &index_key(id, withdrawn))?.is_some() {
            report.fault(format!("index of {id}"), format!("record {withdrawn} was withdrawn and is there"));
        }
    }
    Ok(())
}

/// What was withdrawn of the documents that were asked about, up to the log's tail: a document's `withdrawn` records are
/// read once, unless the log goes on meanwhile.
#[derive(Default)]
struct Gone(HashMap<DocumentId, (Lsn, BTreeSet<Lsn>)>);

impl Gone {
    /// Whether the change in the record at `lsn` was withdrawn.
    fn has(&mut self, reader: &Reader, id: DocumentId, lsn: Lsn) -> Result<bool, HistoryError> {
        let tail = reader.tail().lsn;
        if let Some((upto, gone)) = self.0.get(&id)
            && (*upto == tail || gone.contains(&lsn))
        {
            return Ok(gone.contains(&lsn));
        }
        let mut gone = BTreeSet::new();
        for (lsn, row) in reader.index(id, Lsn::ZERO)? {
            if matches!(row, IndexRow::Withdrawn { .. })
                && let Some(Record::Withdrawn(header)) = reader.record(lsn)?
            {
                gone.append(&mut withdrawn_records(lsn, &header));
            }
        }
        let has = gone.contains(&lsn);
        self.0.insert(id, (tail, gone));
        Ok(has)
    }
}

/// Both rows of an entry of the dictionary, as they are on the disk.
fn check_name(reader: &Reader, report: &mut Verification, lsn: Lsn, header: &NameHeader) {
    // What is remembered proves nothing about the disk.
    let (by_number, by_name) = (Names::new(reader.storage().clone()), Names::new(reader.storage().clone()));
    let place = format!("name {}", header.reference);
    match by_number.name(header.reference) {
        Ok(row) if row.bytes == header.bytes && row.kind == header.kind => {}
        Ok(_) => report.fault(place.clone(), format!("differs from record {lsn}")),
        Err(error) => report.fault(place.clone(), error),
    }
    match by_name.find(header.kind, &header.bytes) {
        Ok(Some(reference)) if reference == header.reference => {}
        Ok(_) => report.fault(place, format!("its number is not found by the name in record {lsn}")),
        Err(error) => report.fault(place, error),
    }
}

/// Pass 2: every document's row, made again from its records, and its place in its collection.
fn check_documents(
    reader: &Reader,
    report: &mut Verification,
    progress: &mut dyn FnMut(&'static str, u64),
) -> Result<Vec<DocumentId>, HistoryError> {
    let mut ids = Vec::new();
    let mut damaged = Vec::new();
    reader.storage().scan(Keyspace::Docs, &[], &[0xff; 17], false, &mut |key, bytes| {
        match document_row(key, bytes) {
            Ok((id, _)) => ids.push(id),
            Err(error) => damaged.push(error),
        }
        ControlFlow::Continue(())
    })?;
    for error in damaged {
        report.fault("docs", error);
    }
    for (n, id) in ids.iter().enumerate() {
        if let Err(error) = check_document(reader, *id, report) {
            report.fault(format!("document {id}"), error);
        }
        if (n + 1).is_multiple_of(256) || n + 1 == ids.len() {
            progress("compare documents", n as u64 + 1);
        }
    }
    report.documents = ids.len() as u64;
    Ok(ids)
}

fn check_document(reader: &Reader, id: DocumentId, report: &mut Verification) -> Result<(), HistoryError> {
    let Some(row) = told_row(reader, id)? else { return Ok(()) };
    let mut again: Option<DocumentRow> = None;
    for (lsn, _) in reader.index(id, Lsn::ZERO)?.into_iter().filter(|(lsn, _)| lsn.0 <= row.last_lsn) {
        let folded = again.get_or_insert_with(|| new_row(lsn));
        match reader.record(lsn)?.filter(|record| record.document() == Some(id)) {
            // A statement that does not decode was reported with the log.
            Some(record) => drop(fold_record(folded, lsn, &record, Limits::DEFAULT.clock_entries_in_row)),
            None => report.fault(format!("index of {id}"), format!("record {lsn} is not about this document")),
        }
    }
    let again = again.map(|again| DocumentRow { snapshot: row.snapshot, ..again });
    if again.as_ref() != Some(&row) {
        report.fault(format!("document {id}"), "its row does not follow from the log");
    }
    list_voids(reader, id, &row, report)?;
    let key = by_seq_key(CollectionKey(row.collection_key), Lsn(row.last_lsn));
    // Unless it changed meanwhile: its place in the collection moves with it.
    if reader.storage().get(Keyspace::BySeq, &key)?.is_none() && reader.row(id)?.as_ref() == Some(&row) {
        report.fault(format!("document {id}"), "it is not listed in its collection");
    }
    Ok(())
}

/// Lists the changes of a document that the running automerge is known not to apply.
fn list_voids(
    reader: &Reader,
    id: DocumentId,
    row: &DocumentRow,
    report: &mut Verification,
) -> Result<(), HistoryError> {
    if !is_degraded(row) {
        return Ok(());
    }
    let readable = reader.readable(id, row, Lsn(row.last_lsn))?;
    let mut voids = BTreeMap::new();
    for (lsn, entry) in reader.index(id, Lsn::ZERO)? {
        let IndexRow::Void { change, .. } = entry else { continue };
        if let Some(Record::Void(header)) = reader.record(lsn)? {
            // Of several, under several versions, the newest tells.
            voids.insert(Lsn(lsn.0.saturating_sub(change)), format!("{} (automerge {})", header.why, header.automerge));
        }
    }
    for (record, why) in voids.into_iter().filter(|(record, _)| readable.is_void(*record)) {
        report.void(Unapplied { document: id, record, why, is_on_record: true });
    }
    Ok(())
}

/// A document's row, once the tail has reached it: a row is there a moment before its group is told.
fn told_row(reader: &Reader, id: DocumentId) -> Result<Option<DocumentRow>, HistoryError> {
    const LOOKS_MAX: usize = 1000;
    let mut row = reader.row(id)?;
    for _ in 0..LOOKS_MAX {
        if row.as_ref().is_none_or(|row| row.last_lsn <= reader.tail().lsn.0) {
            break;
        }
        std::thread::yield_now();
        row = reader.row(id)?;
    }
    Ok(row)
}

/// Rows of the projections that no record or document stands behind.
fn check_orphans(reader: &Reader, report: &mut Verification) -> Result<(), HistoryError> {
    let storage = reader.storage();
    let mut orphans = Vec::new();
    storage.scan(Keyspace::DocIx, &[], &[0xff; 25], false, &mut |key, _| {
        let lsn = lsn_in(key).unwrap_or_default();
        if key.len() != 24 || !matches!(storage.get(Keyspace::Log, &log_key(lsn)), Ok(Some(_))) {
            orphans.push(("doc_ix", format!("a row names record {lsn}, which is not there")));
        }
        ControlFlow::Continue(())
    })?;
    storage.scan(Keyspace::BySeq, &[], &[0xff; 17], false, &mut |key, bytes| {
        let place = || format!("record {}", lsn_in(key).unwrap_or_default());
        match decode_row::<[u8; 16]>(Keyspace::BySeq, key, bytes) {
            Ok(id) => {
                let row = storage.get(Keyspace::Docs, &id).ok().flatten();
                let row = row.and_then(|bytes| document_row(&id, &bytes).ok()).map(|(_, row)| row);
                let stands =
                    row.is_some_and(|row| key == by_seq_key(CollectionKey(row.collection_key), Lsn(row.last_lsn)));
                // Nor does it still stand there: a document that changed meanwhile has moved.
                if !stands && matches!(storage.get(Keyspace::BySeq, key), Ok(Some(_))) {
                    orphans.push(("by_seq", format!("{} is not where {} stands", place(), DocumentId(id))));
                }
            }
            Err(error) => orphans.push(("by_seq", format!("{}: {error}", place()))),
        }
        ControlFlow::Continue(())
    })?;
    for (place, why) in orphans {
        report.fault(place, why);
    }
    Ok(())
}

/// Builds a document from its changes alone, and compares it with its row and its snapshot.
fn rebuild_document(reader: &Reader, id: DocumentId, report: &mut Verification) -> Result<(), HistoryError> {
    let Some(row) = told_row(reader, id)? else { return Ok(()) };
    let readable = reader.readable(id, &row, Lsn(row.last_lsn))?;
    let mut chunks = Vec::new();
    for (lsn, entry) in reader.index(id, Lsn::ZERO)? {
        if lsn.0 <= row.last_lsn && matches!(entry, IndexRow::Change { .. }) && !readable.hides(lsn) {
            chunks.extend(reader.change_bytes(lsn)?);
        }
    }
    let place = format!("document {id}");
    let heads = readable.shown_heads(&row);
    match View::load(&chunks) {
        Ok(view) if view.heads() == heads => {}
        Ok(view) => report.fault(place.clone(), format!("rebuilt from the log it has the heads {}", view.heads())),
        Err(error) => match sift(reader, id, Lsn(row.last_lsn))?.misfits {
            misfits if misfits.is_empty() => report.fault(place.clone(), error),
            misfits => {
                for Misfit { lsn, why, .. } in misfits {
                    let why = format!("{why} (automerge {})", automerge_version());
                    report.void(Unapplied { document: id, record: lsn, why, is_on_record: false });
                }
            }
        },
    }
    report.rebuilt += 1;
    let Some(snapshot) = row.snapshot else { return Ok(()) };
    report.snapshots += 1;
    let place = format!("snapshot of {id} at record {}", snapshot.lsn);
    match read_snapshot(&**reader.storage(), id, Lsn(snapshot.lsn))? {
        // A newer one may have taken its place meanwhile.
        None if reader.row(id)?.is_none_or(|now| now.snapshot != row.snapshot) => {}
        None => report.fault(place, "it is damaged or incomplete"),
        Some(snapshot) => match View::load(&snapshot.bytes) {
            Ok(view) if view.heads() == snapshot.heads => {}
            Ok(_) => report.fault(place, "it has other heads than it says"),
            Err(error) => report.fault(place, error),
        },
    }
    Ok(())
}
