//! How a document's row follows from its records, one after the other: used when they are appended and when the row is
//! made again from the log.

use super::voids::fold_void;
use crate::id::{ChangeHash, CollectionKey, DocumentId, Heads, Lsn};
use crate::log::Keyspace;
use crate::log::record::{
    ChangeHeader, Lifecycle, LifecycleId, LifecycleKind, NameRef, Record, RecordError, StateDigest, WithheldHeader,
};
use crate::log::rows::{DocumentRow, HeadRow, IndexRow, StatementRow, WithheldRow, encode_row};
use crate::log::{WriteBatch, lsn_of_key};

/// The row of a document of which nothing is known yet.
#[must_use]
pub fn new_row(lsn: Lsn) -> DocumentRow {
    DocumentRow {
        last_lsn: 0,
        created_lsn: lsn.0,
        collection: 0,
        collection_key: [0; 8],
        name: None,
        heads: Vec::new(),
        change_count: 0,
        change_bytes: 0,
        max_op: 0,
        clock: Some(Vec::new()),
        creation: None,
        winner: None,
        snapshot: None,
        generation: 0,
        withdrawals: 0,
        voids: None,
        withheld: None,
    }
}

/// Takes in the record at `lsn`, whatever it says about the document; one that says nothing about any is passed over.
/// What a `withdrawn` record takes away, and `void` records about that, must not have been folded.
///
/// # Errors
/// [`RecordError`] when a lifecycle statement does not decode.
pub fn fold_record(row: &mut DocumentRow, lsn: Lsn, record: &Record, clock_entries: usize) -> Result<(), RecordError> {
    match record {
        Record::Change(header, chunk) => fold_change(row, lsn, header, chunk.len(), clock_entries),
        Record::Lifecycle(header, bytes) => {
            let said = Lifecycle::decode(bytes)?;
            fold_lifecycle(row, lsn, Lifecycle::id_of(bytes), &said, header.collection);
        }
        Record::Void(header) => fold_void(row, lsn, header),
        Record::Withdrawn(_) => fold_withdrawal(row, lsn),
        Record::Withheld(header) => fold_withheld(row, lsn, header),
        Record::Name(_) | Record::Footer(_) | Record::Gap(_) | Record::Checkpoint => {}
        Record::Refused(_) | Record::Subject(_) | Record::Attributed(_) | Record::Rules(_) | Record::Allowed(_) => {}
    }
    Ok(())
}

/// Notes that changes were withdrawn at `lsn`.
pub fn fold_withdrawal(row: &mut DocumentRow, lsn: Lsn) {
    row.last_lsn = lsn.0;
    row.generation = lsn.0;
    row.withdrawals = row.withdrawals.saturating_add(1);
    row.snapshot = None;
}

/// Notes at `lsn` whether the document may be read here.
pub fn fold_withheld(row: &mut DocumentRow, lsn: Lsn, header: &WithheldHeader) {
    row.last_lsn = lsn.0;
    row.withheld = Some(WithheldRow { lsn: lsn.0, withheld: header.withheld });
}

/// Takes in the change at `lsn`.
pub fn fold_change(row: &mut DocumentRow, lsn: Lsn, header: &ChangeHeader, chunk_bytes: usize, clock_entries: usize) {
    let deps: Vec<u64> = header.deps.iter().map(|back| lsn.0.saturating_sub(*back)).collect();
    row.heads.retain(|head| !deps.contains(&head.lsn));
    let max_op = (header.start_op + header.op_count).saturating_sub(1);
    let head = HeadRow { hash: header.hash, lsn: lsn.0, max_op };
    let at = row.heads.partition_point(|other| other.hash < head.hash);
    row.heads.insert(at, head);
    row.last_lsn = lsn.0;
    row.change_count += 1;
    row.change_bytes += chunk_bytes as u64;
    row.max_op = row.max_op.max(max_op);
    advance_clock(&mut row.clock, header.actor, header.seq, clock_entries);
}

fn advance_clock(clock: &mut Option<Vec<(NameRef, u64)>>, actor: NameRef, seq: u64, entries_max: usize) {
    let Some(entries) = clock else { return };
    match entries.binary_search_by_key(&actor, |(other, _)| *other) {
        Ok(at) => entries[at].1 = entries[at].1.max(seq),
        Err(_) if entries.len() >= entries_max => *clock = None,
        Err(at) => entries.insert(at, (actor, seq)),
    }
}

/// Takes in the lifecycle statement at `lsn`, if it is one that matters; `false` when others outrank it.
pub fn fold_lifecycle(row: &mut DocumentRow, lsn: Lsn, id: LifecycleId, said: &Lifecycle, collection: NameRef) -> bool {
    let statement =
        |rank: u8| StatementRow { id: id.0, lsn: lsn.0, rank, lamport: said.lamport, kind: said.kind as u8 };
    let creation = (said.kind == LifecycleKind::Created).then(|| statement(said.rank as u8));
    let decides_place = creation.as_ref().is_some_and(|new| {
        row.creation.as_ref().is_none_or(|old| (new.rank, new.lamport, new.id) < (old.rank, old.lamport, old.id))
    });
    let winner = statement(u8::from(said.kind == LifecycleKind::Purged));
    let decides_state = row
        .winner
        .as_ref()
        .is_none_or(|old| (winner.rank, winner.lamport, winner.id) > (old.rank, old.lamport, old.id));
    if decides_place {
        row.creation = creation;
        row.collection = collection;
        row.collection_key = said.collection.key().0;
        row.name.clone_from(&said.name);
    }
    if decides_state {
        row.winner = Some(winner);
    }
    if decides_place || decides_state {
        row.last_lsn = lsn.0;
    }
    decides_place || decides_state
}

/// Whether the document may not be read here, as the node says whose client this is.
#[must_use]
pub fn is_withheld(row: &DocumentRow) -> bool {
    row.withheld.is_some_and(|said| said.withheld)
}

/// Whether the document may be seen.
#[must_use]
pub fn is_visible(row: &DocumentRow) -> bool {
    !is_withheld(row) && is_alive(row)
}

/// Whether it is neither deleted nor purged.
#[must_use]
pub fn is_alive(row: &DocumentRow) -> bool {
    let hidden = [LifecycleKind::Deleted as u8, LifecycleKind::Purged as u8];
    row.winner.as_ref().is_none_or(|winner| !hidden.contains(&winner.kind))
}

/// The row's heads.
#[must_use]
pub fn heads_of(row: &DocumentRow) -> Heads {
    Heads::new(row.heads.iter().map(|head| ChangeHash(head.hash)).collect())
}

/// What two replicas compare.
#[must_use]
pub fn digest_of(document: DocumentId, row: &DocumentRow) -> StateDigest {
    let id = |statement: &Option<StatementRow>| statement.as_ref().map(|statement| LifecycleId(statement.id));
    StateDigest::of(document, &heads_of(row), id(&row.creation), id(&row.winner))
}

/// The key of a document's row in `by_seq`.
#[must_use]
pub fn by_seq_key(collection: CollectionKey, lsn: Lsn) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&collection.0);
    key[8..].copy_from_slice(&lsn.0.to_be_bytes());
    key
}

/// The key of a record's row in `doc_ix`.
#[must_use]
pub fn index_key(document: DocumentId, lsn: Lsn) -> [u8; 24] {
    let mut key = [0; 24];
    key[..16].copy_from_slice(&document.0);
    key[16..].copy_from_slice(&lsn.0.to_be_bytes());
    key
}

/// The row of `doc_ix` of a change's record.
#[must_use]
pub fn index_row(header: &ChangeHeader) -> IndexRow {
    IndexRow::Change {
        hash: header.hash,
        actor: header.actor,
        seq: header.seq,
        start_op: header.start_op,
        op_count: header.op_count,
        deps: header.deps.clone(),
    }
}

/// The position in a key of `doc_ix` or `by_seq`, its last eight bytes.
#[must_use]
pub fn lsn_in(key: &[u8]) -> Option<Lsn> {
    let at = key.len().checked_sub(8)?;
    lsn_of_key(&key[at..]).ok()
}

/// Puts the document's rows into `batch`, and takes away the `by_seq` row it had before.
pub fn project_row(batch: &mut WriteBatch, document: DocumentId, before: Option<&DocumentRow>, row: &DocumentRow) {
    if let Some(before) = before
        && (before.collection_key, before.last_lsn) != (row.collection_key, row.last_lsn)
    {
        batch.remove(Keyspace::BySeq, by_seq_key(CollectionKey(before.collection_key), Lsn(before.last_lsn)));
    }
    let key = by_seq_key(CollectionKey(row.collection_key), Lsn(row.last_lsn));
    batch.put(Keyspace::BySeq, key, encode_row(Keyspace::BySeq, &key, &document.0));
    batch.put(Keyspace::Docs, document.0, encode_row(Keyspace::Docs, &document.0, row));
}
