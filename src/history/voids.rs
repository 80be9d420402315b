//! Changes that automerge cannot apply.
//!
//! A change from a trusted node is logged without being applied. When a view is made and it does not apply, a `void`
//! record says so. The change stays in the log, the index, the graph and the heads, and is sent to others, who may be
//! able to read it; only views are made without it, and without what stands on it. Which changes those are follows from
//! the index alone: [`Readable`]. Finding the changes in the first place is [`sift`]'s.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::fold::heads_of;
use super::{HistoryError, Reader};
use crate::document::{Change, View, ViewError, automerge_version};
use crate::id::{ChangeHash, DocumentId, Heads, Lsn};
use crate::limits::voids;
use crate::log::record::{NameRef, VoidHeader};
use crate::log::rows::{DocumentRow, IndexRow, VoidsRow};

/// Which of a document's changes a view is made of.
#[derive(Debug, Clone, Default)]
pub struct Readable {
    voids: BTreeSet<Lsn>,
    /// The newest `void` record that counts; zero when none does.
    newest: Lsn,
    /// The record by which changes were withdrawn last; zero when none ever were.
    generation: Lsn,
    hidden: BTreeSet<Lsn>,
    hashes: HashSet<ChangeHash>,
    authors: BTreeSet<NameRef>,
    heads: Heads,
}

/// What is said of a document that can be read in part only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Degraded {
    /// Changes that automerge cannot apply.
    pub voids: u64,
    /// Changes that are not shown: those, and what stands on them.
    pub hidden: u64,
    /// The heads of what is shown.
    pub heads: Heads,
}

/// A change that automerge cannot apply, and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// Where it is in the log.
    pub lsn: Lsn,
    /// Which change.
    pub hash: ChangeHash,
    /// What automerge said.
    pub why: String,
}

impl Readable {
    /// Reads it off a document's index, all of it up to some position.
    #[must_use]
    pub fn of(rows: &[(Lsn, IndexRow)]) -> Self {
        Self::of_changes(rows, Lsn(u64::MAX))
    }

    /// The same of the changes up to `upto`, whenever it was found out which of them cannot be applied.
    fn of_changes(rows: &[(Lsn, IndexRow)], upto: Lsn) -> Self {
        let mut readable = Self::default();
        let mut version: Option<&str> = None;
        for (lsn, row) in rows {
            let IndexRow::Void { change, automerge } = row else { continue };
            if version.replace(automerge.as_str()).is_none_or(|before| before != automerge) {
                readable.voids.clear();
            }
            readable.voids.insert(Lsn(lsn.0.saturating_sub(*change)));
            readable.newest = *lsn;
        }
        if version.is_none_or(|version| version != automerge_version()) {
            (readable.voids, readable.newest) = (BTreeSet::new(), Lsn::ZERO);
        }
        let mut heads: BTreeMap<Lsn, ChangeHash> = BTreeMap::new();
        for (lsn, row) in rows {
            if let IndexRow::Change { hash, deps, .. } = row
                && *lsn <= upto
                && readable.shows(*lsn, row)
            {
                for back in deps {
                    heads.remove(&Lsn(lsn.0.saturating_sub(*back)));
                }
                heads.insert(*lsn, ChangeHash(*hash));
            }
        }
        readable.heads = Heads::new(heads.into_values().collect());
        readable
    }

    /// Whether the change that this row is about is shown. Asked in the order of the log: what stands on a hidden change
    /// is hidden, and so are its author's later changes.
    pub fn shows(&mut self, lsn: Lsn, row: &IndexRow) -> bool {
        let IndexRow::Change { hash, actor, deps, .. } = row else { return false };
        if self.voids.is_empty() {
            return true;
        }
        let hides = self.voids.contains(&lsn)
            || self.authors.contains(actor)
            || deps.iter().any(|back| self.hidden.contains(&Lsn(lsn.0.saturating_sub(*back))));
        if hides {
            self.hidden.insert(lsn);
            self.hashes.insert(ChangeHash(*hash));
            self.authors.insert(*actor);
        }
        !hides
    }

    /// Whether nothing is hidden.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.hidden.is_empty()
    }

    /// Whether the change in the record at `lsn` is hidden.
    #[must_use]
    pub fn hides(&self, lsn: Lsn) -> bool {
        self.hidden.contains(&lsn)
    }

    /// Whether this change is hidden.
    #[must_use]
    pub fn hides_change(&self, hash: &ChangeHash) -> bool {
        self.hashes.contains(hash)
    }

    /// Whether changes of this author are hidden, and so would be its next.
    #[must_use]
    pub fn hides_author(&self, actor: NameRef) -> bool {
        self.authors.contains(&actor)
    }

    /// Whether a `void` record that counts is about the change in the record at `lsn`.
    #[must_use]
    pub fn is_void(&self, lsn: Lsn) -> bool {
        self.voids.contains(&lsn)
    }

    /// The newest record that takes changes out of view, one that withdraws some or a `void` record that counts; zero when
    /// there is none.
    ///
    /// Who edited before it edits under another author after it: some of the changes may have been that author's, others
    /// may have them still, and their numbers stay taken.
    #[must_use]
    pub fn newest(&self) -> Lsn {
        self.newest.max(self.generation)
    }

    /// The heads of what is shown, of the index that was read at first.
    #[must_use]
    pub fn heads(&self) -> &Heads {
        &self.heads
    }

    /// What to say of the document; nothing when all of it is shown.
    #[must_use]
    pub fn degraded(&self) -> Option<Degraded> {
        (!self.is_whole()).then(|| Degraded {
            voids: self.voids.intersection(&self.hidden).count() as u64,
            hidden: self.hidden.len() as u64,
            heads: self.heads.clone(),
        })
    }

    /// The heads that a view of the document `row` is about has.
    #[must_use]
    pub fn shown_heads(&self, row: &DocumentRow) -> Heads {
        if self.is_whole() { heads_of(row) } else { self.heads.clone() }
    }

    fn void(&mut self, lsn: Lsn, row: &IndexRow) {
        self.voids.insert(lsn);
        self.shows(lsn, row);
    }
}

impl Reader {
    /// What of a document is not shown; `None` when all of it is.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or a row fails.
    ///
    /// # Cost
    /// As [`Self::readable`].
    pub fn degraded(&self, id: DocumentId) -> Result<Option<Degraded>, HistoryError> {
        let Some(row) = self.row(id)? else { return Ok(None) };
        Ok(self.readable(id, &row, Lsn(row.last_lsn))?.degraded())
    }

    /// Which of a document's changes, of those up to `upto`, a view is made of.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or a row fails.
    ///
    /// # Cost
    /// Nothing, unless the row says that something cannot be applied: then its index is read.
    pub fn readable(&self, id: DocumentId, row: &DocumentRow, upto: Lsn) -> Result<Readable, HistoryError> {
        let generation = Lsn(row.generation);
        if !is_degraded(row) {
            return Ok(Readable { generation, ..Readable::default() });
        }
        let mut rows = self.index(id, Lsn::ZERO)?;
        rows.retain(|(lsn, _)| *lsn <= upto);
        Ok(Readable { generation, ..Readable::of(&rows) })
    }

    /// The heads of what was shown of a document after the record at `upto`: [`Self::heads_at`], without what cannot be
    /// applied. Nobody was ever shown that, also before it was on record.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or a record fails.
    ///
    /// # Cost
    /// As [`Self::heads_at`]; where something cannot be applied, its index is read.
    #[cfg(feature = "web")]
    pub(crate) fn shown_heads_at(&self, id: DocumentId, upto: Lsn) -> Result<Heads, HistoryError> {
        match self.row(id)? {
            Some(row) if is_degraded(&row) => Ok(Readable::of_changes(&self.index(id, Lsn::ZERO)?, upto).heads),
            _ => self.heads_at(id, upto),
        }
    }
}

/// Whether the row says that the running automerge cannot apply some of the document's changes.
#[must_use]
pub fn is_degraded(row: &DocumentRow) -> bool {
    row.voids.as_ref().is_some_and(|voids| voids.automerge == automerge_version())
}

/// Whether a snapshot at `lsn` holds what the running automerge cannot apply.
#[must_use]
pub fn is_past_void(row: &DocumentRow, lsn: Lsn) -> bool {
    is_degraded(row) && row.voids.as_ref().is_some_and(|voids| lsn.0 >= voids.first)
}

/// Takes in the `void` record at `lsn`.
pub fn fold_void(row: &mut DocumentRow, lsn: Lsn, header: &VoidHeader) {
    let change = lsn.0.saturating_sub(header.change);
    row.last_lsn = lsn.0;
    match &mut row.voids {
        Some(voids) if voids.automerge == header.automerge => {
            voids.changes = voids.changes.saturating_add(1);
            voids.first = voids.first.min(change);
        }
        voids => *voids = Some(VoidsRow { automerge: header.automerge.clone(), changes: 1, first: change }),
    }
    if row.snapshot.is_some_and(|snapshot| snapshot.lsn >= change) {
        row.snapshot = None;
    }
}

/// The row of `doc_ix` of a `void` record.
#[must_use]
pub fn void_index_row(header: &VoidHeader) -> IndexRow {
    IndexRow::Void { change: header.change, automerge: header.automerge.clone() }
}

/// What sifting a document's changes gave.
pub struct Sifted {
    /// Changes that cannot be applied, in the order of the log; not those on record, nor what stands on any of them.
    pub misfits: Vec<Misfit>,
    /// All that was looked at, without those.
    pub view: View,
    /// Everything was looked at; else there were too many misfits, and more may be behind them.
    pub is_whole: bool,
}

/// Finds the changes of a document, up to the position `upto`, that automerge cannot apply.
///
/// # Errors
/// [`HistoryError`] when the log cannot be read.
///
/// # Cost
/// Some two building of the document when there is none, and some 15 copies of it and group applies for each: see
/// [`View::apply_until_misfit`]. It stops after a bounded number.
pub fn sift(reader: &Reader, id: DocumentId, upto: Lsn) -> Result<Sifted, HistoryError> {
    let mut rows = reader.index(id, Lsn::ZERO)?;
    rows.retain(|(lsn, _)| *lsn <= upto);
    let mut readable = Readable::of(&rows);
    rows.retain(|(lsn, row)| matches!(row, IndexRow::Change { .. }) && !readable.hides(*lsn));
    let (view, after) = base(reader, id, upto)?;
    let mut sifted = Sifted { misfits: Vec::new(), view, is_whole: false };
    let broken = |error: ViewError| HistoryError::Document { document: id, lsn: upto, why: error.to_string() };
    let mut rest = rows.iter().filter(|(lsn, _)| *lsn > after).peekable();
    let mut window: Vec<(Lsn, &IndexRow, Change)> = Vec::new();
    loop {
        let mut bytes: usize = window.iter().map(|(_, _, change)| change.bytes().len()).sum();
        while window.len() < voids::WINDOW_CHANGES
            && bytes < voids::WINDOW_BYTES
            && let Some((lsn, row)) = rest.next()
        {
            if !readable.shows(*lsn, row) {
                continue;
            }
            let chunk = reader.change_bytes(*lsn)?;
            bytes += chunk.len();
            match Change::parse_logged(chunk) {
                Ok(change) => window.push((*lsn, row, change)),
                // It passed another gate than today's.
                Err(error) => note(&mut sifted, &mut readable, *lsn, row, error.to_string()),
            }
        }
        if window.is_empty() {
            sifted.is_whole = true;
            return Ok(sifted);
        }
        window.retain(|(lsn, row, _)| readable.shows(*lsn, row));
        let changes: Vec<Change> = window.iter().map(|(_, _, change)| change.clone()).collect();
        match sifted.view.apply_until_misfit(&changes).map_err(broken)? {
            None => window.clear(),
            Some((at, why)) => {
                let (lsn, row, _) = window[at];
                note(&mut sifted, &mut readable, lsn, row, why);
                window.drain(..=at);
                window.retain(|(lsn, row, _)| readable.shows(*lsn, row));
            }
        }
        if sifted.misfits.len() >= voids::PER_PASS {
            return Ok(sifted);
        }
    }
}

fn note(sifted: &mut Sifted, readable: &mut Readable, lsn: Lsn, row: &IndexRow, why: String) {
    if let IndexRow::Change { hash, .. } = row {
        sifted.misfits.push(Misfit { lsn, hash: ChangeHash(*hash), why });
    }
    readable.void(lsn, row);
}

/// The document's snapshot, if it has one that can be loaded, and the position it is at.
fn base(reader: &Reader, id: DocumentId, upto: Lsn) -> Result<(View, Lsn), HistoryError> {
    let Some(snapshot) = reader.snapshot(id)?.filter(|snapshot| snapshot.lsn <= upto) else {
        return Ok((View::new(), Lsn::ZERO));
    };
    Ok(match View::load(&snapshot.bytes) {
        Ok(view) if view.heads() == snapshot.heads => (view, snapshot.lsn),
        _ => (View::new(), Lsn::ZERO),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(hash: u8, actor: NameRef, seq: u64, deps: &[u64]) -> IndexRow {
        IndexRow::Change { hash: [hash; 32], actor, seq, start_op: 1, op_count: 1, deps: deps.to_vec() }
    }

    fn void(change: u64, automerge: &str) -> IndexRow {
        IndexRow::Void { change, automerge: automerge.into() }
    }

    #[test]
    fn a_void_of_another_version_says_nothing() {
        let ours = automerge_version();
        let changes = [
            (Lsn(1), change(1, 1, 1, &[])),
            (Lsn(2), change(2, 2, 1, &[1])),
            (Lsn(3), change(3, 3, 1, &[2])),
            (Lsn(4), change(4, 2, 2, &[1])),
            (Lsn(5), change(5, 4, 1, &[1, 3])),
        ];
        let readable = |voids: &[(u64, &str)]| {
            let voids = voids.iter().zip(6..).map(|((back, version), lsn)| (Lsn(lsn), void(lsn - back, version)));
            let rows: Vec<(Lsn, IndexRow)> = changes.iter().cloned().chain(voids).collect();
            let mut row = super::super::fold::new_row(Lsn(1));
            for (lsn, index) in &rows {
                if let IndexRow::Void { change, automerge } = index {
                    let (change, automerge) = (*change, automerge.clone());
                    let header =
                        VoidHeader { document: [0; 16], change, automerge, why: String::new(), received_ms: 0 };
                    fold_void(&mut row, *lsn, &header);
                }
            }
            let readable = Readable::of(&rows);
            assert_eq!(is_degraded(&row), readable.newest() != Lsn::ZERO, "the row and the index agree");
            assert_eq!(is_past_void(&row, Lsn(2)), readable.is_void(Lsn(2)));
            let hidden: Vec<u64> = (1..=5).filter(|lsn| readable.hides(Lsn(*lsn))).collect();
            let voids: Vec<u64> = (1..=5).filter(|lsn| readable.is_void(Lsn(*lsn))).collect();
            (voids, hidden, readable.heads().as_slice().len())
        };
        assert_eq!(readable(&[]), (vec![], vec![], 1));
        // What stands on it goes, and what its author made later, and what stands on that.
        assert_eq!(readable(&[(2, ours)]), (vec![2], vec![2, 4, 5], 1));
        assert_eq!(readable(&[(3, ours)]), (vec![3], vec![3, 4, 5], 1));
        assert_eq!(readable(&[(5, ours), (2, ours)]), (vec![2, 5], vec![2, 4, 5], 1));
        assert_eq!(readable(&[(2, "0.0.1")]), (vec![], vec![], 1));
        // Another version tried it all again, and failed over less, or nothing was tried since.
        assert_eq!(readable(&[(2, "0.0.1"), (5, ours)]), (vec![5], vec![5], 2));
        assert_eq!(readable(&[(2, ours), (5, "0.0.1")]), (vec![], vec![], 1));
        assert_eq!(readable(&[(2, ours), (5, "0.0.1"), (5, ours)]), (vec![5], vec![5], 2));
    }
}
