//! Where things are in the log: footers around a record, records of one document.

use std::ops::ControlFlow;

use super::fold::{fold_lifecycle, heads_of, index_key, lsn_in, new_row};
use super::{HistoryError, Reader};
use crate::id::{Chain, ChangeHash, DocumentId, Heads, Lsn, NodeId};
use crate::log::record::{Lifecycle, Record};
use crate::log::rows::{DocumentRow, IndexRow, StatementRow, WithheldRow, decode_row};
use crate::log::{Keyspace, LogError, log_key, lsn_of_key};

/// Records of a document that are looked at together.
const POSITIONS_PER_READ: usize = 16;

impl Reader {
    /// The last footer at or before `lsn`, and the chain digest in it; the beginning of the log when there is none.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or a record fails.
    ///
    /// # Cost
    /// Reads at most one commit group.
    pub fn footer_before(&self, lsn: Lsn) -> Result<(Lsn, Chain), HistoryError> {
        let found = self.first_footer(&log_key(Lsn::ZERO), &log_key(lsn.next()), true)?;
        Ok(found.unwrap_or((Lsn::ZERO, Chain::default())))
    }

    /// The first footer at or after `lsn`; `None` above the tail.
    ///
    /// # Errors
    /// As [`Self::footer_before`].
    ///
    /// # Cost
    /// As [`Self::footer_before`].
    pub fn footer_after(&self, lsn: Lsn) -> Result<Option<(Lsn, Chain)>, HistoryError> {
        self.first_footer(&log_key(lsn), &log_key(self.tail().lsn.next()), false)
    }

    fn first_footer(&self, from: &[u8], to: &[u8], descending: bool) -> Result<Option<(Lsn, Chain)>, HistoryError> {
        let mut found = Ok(None);
        self.storage().scan(Keyspace::Log, from, to, descending, &mut |key, value| {
            let footer = lsn_of_key(key).and_then(|lsn| match Record::read(lsn, value) {
                Ok(Record::Footer(footer)) => Ok(Some((lsn, Chain(footer.chain)))),
                Ok(_) => Ok(None),
                Err(error) => Err(LogError::Record { lsn, error }),
            });
            if matches!(footer, Ok(None)) {
                return ControlFlow::Continue(());
            }
            found = footer;
            ControlFlow::Break(())
        })?;
        Ok(found?)
    }

    /// Reads the log back from the record before `before`: at most `records_max` records, the newest first, and no further
    /// one once `bytes_max` bytes were read.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or a record fails.
    pub fn read_records_before(
        &self,
        before: Lsn,
        bytes_max: usize,
        records_max: usize,
    ) -> Result<Vec<(Lsn, Record)>, HistoryError> {
        let to = log_key(before.min(self.tail().lsn.next()));
        self.scan_records(&log_key(Lsn::ZERO), &to, true, bytes_max, records_max)
    }

    /// The records between two keys, forwards or backwards, at most `records_max`, and no further one once `bytes_max`
    /// bytes were read.
    pub(super) fn scan_records(
        &self,
        from: &[u8],
        to: &[u8],
        backwards: bool,
        bytes_max: usize,
        records_max: usize,
    ) -> Result<Vec<(Lsn, Record)>, HistoryError> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        self.storage().scan(Keyspace::Log, from, to, backwards, &mut |key, value| {
            if records.len() >= records_max || (bytes > 0 && bytes + value.len() > bytes_max) {
                return ControlFlow::Break(());
            }
            bytes += value.len();
            records.push(lsn_of_key(key).and_then(|lsn| {
                let record = Record::read(lsn, value).map_err(|error| LogError::Record { lsn, error })?;
                Ok((lsn, record))
            }));
            ControlFlow::Continue(())
        })?;
        Ok(records.into_iter().collect::<Result<_, _>>()?)
    }

    /// Where the first `count` records about a document above `after` are, up to the tail. Those of withdrawn changes
    /// are not among them.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk fails.
    pub fn positions(&self, id: DocumentId, after: Lsn, count: usize) -> Result<Vec<Lsn>, HistoryError> {
        let mut positions = Vec::new();
        let (from, to) = (index_key(id, after.next()), index_key(id, self.tail().lsn.next()));
        self.storage().scan(Keyspace::DocIx, &from, &to, false, &mut |key, _| {
            positions.extend(lsn_in(key));
            if positions.len() >= count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(positions)
    }

    /// A document's collection, name and lifecycle as they were just before `lsn`: a row without its changes.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk, a record or a row fails.
    ///
    /// # Cost
    /// Two look-ups; when its lifecycle changed at or after `lsn`, a walk over the document's index up to there.
    pub fn life_before(&self, id: DocumentId, lsn: Lsn) -> Result<DocumentRow, HistoryError> {
        let Some(row) = self.row(id)?.filter(|row| row.created_lsn < lsn.0) else { return Ok(new_row(lsn)) };
        let mut life = new_row(Lsn(row.created_lsn));
        life.withheld = match row.withheld {
            Some(said) if said.lsn >= lsn.0 => self.withheld_before(id, lsn)?,
            said => said,
        };
        let is_before = |at: &Option<StatementRow>| at.as_ref().is_none_or(|at| at.lsn < lsn.0);
        if is_before(&row.creation) && is_before(&row.winner) {
            (life.collection, life.collection_key, life.name) = (row.collection, row.collection_key, row.name);
            (life.creation, life.winner) = (row.creation, row.winner);
            return Ok(life);
        }
        for at in self.statements(id, lsn)? {
            let Some(Record::Lifecycle(header, bytes)) = self.record(at)? else {
                return Err(HistoryError::Missing(format!("lifecycle record {at}")));
            };
            let said = Lifecycle::decode(&bytes)
                .map_err(|error| HistoryError::Row { place: format!("record {at}"), error })?;
            fold_lifecycle(&mut life, at, Lifecycle::id_of(&bytes), &said, header.collection);
        }
        Ok(life)
    }

    /// The peer that brought the change or the statement at `lsn`, if one did.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk, the record or its names fail.
    pub fn via(&self, lsn: Lsn) -> Result<Option<NodeId>, HistoryError> {
        let via = match self.record(lsn)? {
            Some(Record::Change(header, _)) => header.via,
            Some(Record::Lifecycle(header, _)) => header.via,
            _ => 0,
        };
        self.names().node(via)
    }

    /// What the last `withheld` record of a document before `lsn` says.
    fn withheld_before(&self, id: DocumentId, lsn: Lsn) -> Result<Option<WithheldRow>, HistoryError> {
        let rows = self.index(id, Lsn::ZERO)?;
        let said = rows.into_iter().rev().find_map(|(at, row)| match row {
            IndexRow::Withheld(withheld) if at < lsn => Some(WithheldRow { lsn: at.0, withheld }),
            _ => None,
        });
        Ok(said)
    }

    /// A document's heads as they were just after the record at `lsn`, or whatever came before it. What was withdrawn
    /// since is not told apart: where the document's generation is above `lsn`, they are not its heads of then.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk, a record or a row fails.
    ///
    /// # Cost
    /// One look-up, when nothing came after; otherwise a few records more.
    pub fn heads_at(&self, id: DocumentId, lsn: Lsn) -> Result<Heads, HistoryError> {
        let Some(row) = self.row(id)? else { return Ok(Heads::default()) };
        if row.last_lsn <= lsn.0 {
            return Ok(heads_of(&row));
        }
        // The next change says which heads it found.
        let mut after = lsn;
        loop {
            let positions = self.positions(id, after, POSITIONS_PER_READ)?;
            let Some(last) = positions.last() else { return Ok(heads_of(&row)) };
            after = *last;
            for at in positions {
                let Some(Record::Change(header, _)) = self.record(at)? else { continue };
                let places = header.heads_before.as_ref().unwrap_or(&header.deps);
                let hashes: Result<Vec<ChangeHash>, HistoryError> =
                    places.iter().map(|back| self.change_hash(Lsn(at.0.saturating_sub(*back)))).collect();
                return Ok(Heads::new(hashes?));
            }
        }
    }

    /// The hash of the change whose record is at `lsn`.
    ///
    /// # Errors
    /// [`HistoryError::Missing`] when there is none; [`HistoryError`] when the disk or the record fails.
    pub(crate) fn change_hash(&self, lsn: Lsn) -> Result<ChangeHash, HistoryError> {
        match self.record(lsn)? {
            Some(Record::Change(header, _)) => Ok(ChangeHash(header.hash)),
            _ => Err(HistoryError::Missing(format!("change record {lsn}"))),
        }
    }

    fn statements(&self, id: DocumentId, before: Lsn) -> Result<Vec<Lsn>, HistoryError> {
        let mut statements = Vec::new();
        let (from, to) = (index_key(id, Lsn::ZERO), index_key(id, before));
        self.storage().scan(Keyspace::DocIx, &from, &to, false, &mut |key, bytes| {
            let lsn = lsn_in(key).unwrap_or_default();
            match decode_row(Keyspace::DocIx, key, bytes) {
                Ok(IndexRow::Lifecycle(_)) => statements.push(Ok(lsn)),
                Ok(_) => {}
                Err(error) => {
                    let place = format!("index of {id} at record {lsn}");
                    statements.push(Err(HistoryError::Row { place, error }));
                }
            }
            ControlFlow::Continue(())
        })?;
        statements.into_iter().collect()
    }
}
