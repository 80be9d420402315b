//! What a node says to its client of rights: documents that may not be read any more, edits that may not be made.
//!
//! An edit shows here at once, and a node may yet refuse it. Then it is taken back: withdrawn from the document, and with
//! it what stands on it, for no node would take that either. What its author made on top is made anew without it
//! ([`rebase`]), in the same commit. What was refused stays in a list of its own, with the reason, and can be handed in
//! again when it is allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use super::commit::block_on;
use super::core::{Input, TakenBack};
use super::database::Database;
use super::rejected::{beneath, key_of, rejected_rows, with_room_for};
use super::{Commit, DocHandle, now_ms};
use crate::document::{Base, Change, Rebased, View, rebase};
use crate::error::Error;
use crate::id::{ActorId, ChangeHash, DocumentId, Lsn, NodeId};
use crate::log::Keyspace;
use crate::log::record::{LifecycleKind, Record};
use crate::log::rows::{RejectedRow, decode_row};
use crate::sync::wire::DeniedRow;

/// An edit that was made here and that a node would not have.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rejected {
    /// Of which document.
    pub document: DocumentId,
    /// The change; that the document is deleted, when absent.
    pub change: Option<ChangeHash>,
    /// Which node would not have it.
    pub by: NodeId,
    /// Why, as that node said.
    pub why: String,
    /// When it was taken back, ms since 1970.
    pub at_ms: u64,
}

/// What became of an edit that was handed in again.
#[derive(Debug)]
#[non_exhaustive]
pub struct Resubmitted {
    /// It was made anew; nothing was left of it to make, when absent.
    pub commit: Option<Commit>,
    /// Operations that have no meaning any more without what they were made on.
    pub left_out: u64,
}

/// What is to be done about refused changes.
enum Plan {
    /// They are not here.
    Nothing,
    /// The document is being written: look again.
    Later,
    Do(Box<TakenBack>),
}

/// How often a document that is written meanwhile is looked at again.
const ATTEMPTS_MAX: usize = 16;

impl Database {
    /// Takes note that documents may not be read here, or may be again, as the node `via` says. Resolves once that is
    /// durable. Those that may not be read are as good as deleted: queries and listeners lose them.
    ///
    /// # Errors
    /// As [`Self::admit`].
    ///
    /// # Cancel safety
    /// As [`Self::admit`].
    pub async fn withhold(&self, via: NodeId, documents: Vec<DocumentId>, withheld: bool) -> Result<(), Error> {
        self.ask(Input::Withhold { documents, withheld, via }).await.map(|_| ())
    }

    /// Takes back what the node `via` will not have. Resolves once that is durable, with whether none of it is left:
    /// what others made is theirs to take back, and so is what was made here on top of it.
    ///
    /// # Errors
    /// [`Error`] when a document cannot be read or the log not be written.
    ///
    /// # Cancel safety
    /// Dropped, it goes on unheard.
    ///
    /// # Cost
    /// Each document is made twice.
    pub async fn take_back(&self, via: NodeId, rows: Vec<DeniedRow>) -> Result<bool, Error> {
        let database = self.clone();
        let work = move || {
            let all: Vec<_> = rows.iter().map(|row| (row.document, row.change)).collect();
            let mut documents: BTreeMap<DocumentId, Vec<DeniedRow>> = BTreeMap::new();
            // What was not looked at for the sake of others falls with those.
            for row in rows.into_iter().filter(|row| !row.is_behind) {
                documents.entry(row.document).or_default().push(row);
            }
            documents.into_iter().try_for_each(|(document, rows)| database.take_back_of(via, document, &rows))?;
            database.has_none(&all)
        };
        // When another thread is done does not follow from a seed.
        if cfg!(feature = "sim") {
            return work();
        }
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)?
    }

    fn has_none(&self, rows: &[(DocumentId, Option<ChangeHash>)]) -> Result<bool, Error> {
        for (document, change) in rows {
            let Some(hash) = change else {
                // What was said here is said again on the next link; what others said, it has to be brought again.
                let winner = self.reader().row(*document)?.and_then(|row| row.winner);
                let said = winner.filter(|winner| winner.kind != LifecycleKind::Created as u8);
                if said.map_or(Ok(None), |winner| self.reader().via(Lsn(winner.lsn)))?.is_some() {
                    return Ok(false);
                }
                continue;
            };
            let graph = self.reader().graph(*document)?;
            if graph.lock().unwrap_or_else(PoisonError::into_inner).contains(hash) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn take_back_of(&self, via: NodeId, document: DocumentId, rows: &[DeniedRow]) -> Result<(), Error> {
        let handle = match self.find(document) {
            Err(Error::NotFound(_)) => return Ok(()),
            handle => handle?,
        };
        for row in rows.iter().filter(|row| row.change.is_none()) {
            self.take_back_deletion(via, &handle, row)?;
        }
        // What others made is theirs to take back.
        let mut refused: BTreeMap<ChangeHash, &str> = BTreeMap::new();
        for row in rows {
            if let Some(hash) = row.change
                && self.is_own(document, &hash)?
            {
                refused.insert(hash, row.why.as_str());
            }
        }
        if refused.is_empty() {
            return Ok(());
        }
        for _ in 0..ATTEMPTS_MAX {
            // Nobody edits it meanwhile.
            let is_done = handle.with_view(|view| {
                self.flush()?;
                match self.plan(via, document, &refused, view)? {
                    Plan::Nothing => Ok(true),
                    Plan::Later => Ok(false),
                    Plan::Do(taken) => Ok(block_on(self.ask(Input::TakeBack(taken)))?.accepted > 0),
                }
            })?;
            if is_done {
                return Ok(());
            }
        }
        Err(Error::Refused {
            document,
            why: "it is written all the time, so its edits cannot be taken back".to_owned(),
        })
    }

    /// Whether a change is in the log and was made here.
    fn is_own(&self, document: DocumentId, hash: &ChangeHash) -> Result<bool, Error> {
        let graph = self.reader().graph(document)?;
        let lsn = graph.lock().unwrap_or_else(PoisonError::into_inner).lsn_of(hash);
        lsn.map_or(Ok(false), |lsn| Ok(self.reader().via(lsn)?.is_none()))
    }

    /// Waits until everything that was sent to the writer is durable.
    fn flush(&self) -> Result<(), Error> {
        block_on(self.admit(Vec::new(), None, None)).map(|_| ())
    }

    /// What to take back of a document, and what to put in its place; nothing when nothing of it is here.
    fn plan(
        &self,
        via: NodeId,
        document: DocumentId,
        refused: &BTreeMap<ChangeHash, &str>,
        view: &View,
    ) -> Result<Plan, Error> {
        let (mut falls, base) = {
            let graph = self.reader().graph(document)?;
            let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
            let all: BTreeSet<_> = refused.keys().flat_map(|hash| graph.standing_on(hash)).collect();
            let all: Vec<_> = all.into_iter().collect();
            let left = graph.without(&all).map_err(|error| Error::Refused { document, why: error.to_string() })?;
            let base = Base { heads: left.heads(), max_op: left.max_op(), actor: ActorId::random() };
            (all.iter().map(|index| (graph.lsn_at(*index), graph.hash_at(*index))).collect::<Vec<_>>(), base)
        };
        falls.sort_unstable();
        // What another link brought meanwhile, the view has not taken in.
        let is_seen = base.heads.as_slice().iter().all(|head| view.contains(*head));
        let (mut gone, mut again) = (Vec::new(), Vec::new());
        for (lsn, hash) in &falls {
            let (change, is_own) = self.logged_change(*lsn)?;
            if refused.contains_key(hash) || !is_own {
                gone.push((*lsn, change));
            } else {
                again.push((*lsn, change));
            }
        }
        if mutant!(NothingMadeAnew) {
            again.clear();
        }
        let Some((_, first)) = gone.iter().find(|(_, change)| refused.contains_key(&change.hash())).cloned() else {
            return Ok(Plan::Nothing);
        };
        if !is_seen && !self.is_degraded(document)? {
            return Ok(Plan::Later);
        }
        let only_changes = |list: &[(Lsn, Change)]| list.iter().map(|(_, change)| change.clone()).collect::<Vec<_>>();
        let made = rebase(&only_changes(&gone), &only_changes(&again), &base);
        let made = made.map_err(|error| error.to_string()).and_then(|made| {
            view.takes_at(&base.heads, &made.changes).map_err(|error| error.to_string())?;
            Ok(made)
        });
        let row = |(lsn, change): &(Lsn, Change), why: &str| RejectedRow {
            document: document.0,
            change: Some(change.hash().0),
            lsn: lsn.0,
            // The nearest: of more, what is made of the oldest counts as left out when it is handed in again.
            beneath: beneath(&falls, *lsn),
            by: via.0,
            why: why.to_owned(),
            at_ms: now_ms(),
        };
        let mut rejected: Vec<RejectedRow> =
            gone.iter().filter_map(|entry| Some(row(entry, refused.get(&entry.1.hash())?))).collect();
        if mutant!(RefusedForgotten) {
            rejected.clear();
        }
        let anew = made.unwrap_or_else(|error| {
            tracing::warn!(%document, %error, "what stood on refused edits cannot be made anew; it is kept with them");
            let why = format!("what it stood on was refused, and without that it cannot be made: {error}");
            let newest = again.len().saturating_sub(self.limits().rejected_rows);
            rejected.extend(again[newest..].iter().map(|entry| row(entry, &why)));
            Rebased::default()
        });
        tracing::warn!(
            %document, node = %via.short(), refused = gone.len(), anew = anew.changes.len(), left_out = anew.left_out,
            "edits that a node will not have are taken back"
        );
        let falls = falls.into_iter().map(|(_, hash)| hash).collect();
        let rows = with_room_for(rejected, self.reader(), self.limits())?;
        Ok(Plan::Do(Box::new(TakenBack { document, via, first, falls, anew: anew.changes, rows })))
    }

    fn is_degraded(&self, document: DocumentId) -> Result<bool, Error> {
        Ok(self.reader().document(document)?.is_some_and(|state| state.degraded))
    }

    /// A logged change, and whether it was made here.
    fn logged_change(&self, lsn: Lsn) -> Result<(Change, bool), Error> {
        let Some(Record::Change(header, bytes)) = self.reader().record(lsn)? else {
            return Err(crate::history::HistoryError::Missing(format!("change record {lsn}")).into());
        };
        Ok((Change::parse_logged(bytes)?, header.via == 0))
    }

    /// A deletion that a node will not have: the document is there again.
    fn take_back_deletion(&self, via: NodeId, handle: &DocHandle, row: &DeniedRow) -> Result<(), Error> {
        let document = handle.id();
        let Some(stored) = self.reader().row(document)? else { return Ok(()) };
        let is_own = match &stored.winner {
            Some(winner) if !crate::history::fold::is_alive(&stored) => self.reader().via(Lsn(winner.lsn))?.is_none(),
            _ => false,
        };
        if !is_own {
            return Ok(());
        }
        let rejected = RejectedRow {
            document: document.0,
            change: None,
            lsn: 0,
            beneath: Vec::new(),
            by: via.0,
            why: row.why.clone(),
            at_ms: now_ms(),
        };
        for (key, row) in with_room_for(vec![rejected], self.reader(), self.limits())? {
            block_on(self.ask(Input::Hold { key, row }))?;
        }
        tracing::warn!(%document, node = %via.short(), "a deletion that a node will not have is taken back");
        for _ in 0..ATTEMPTS_MAX {
            match handle.restore() {
                // It may not be read either, and stays as it is.
                Err(Error::Withheld(_)) => return Ok(()),
                Err(Error::Busy) => self.flush()?,
                commit => return commit?.wait().map(|_| ()),
            }
        }
        Err(Error::Busy)
    }

    /// The edits made here that nodes would not have, oldest first.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    pub fn rejected(&self) -> Result<Vec<Rejected>, Error> {
        let mut rows = rejected_rows(self.reader())?;
        rows.sort_by_key(|row| (row.at_ms, row.lsn));
        Ok(rows.into_iter().map(Rejected::from).collect())
    }

    /// Makes a rejected edit anew on the document as it is, and takes it off the list.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is not on the list; as [`DocHandle::change`].
    ///
    /// # Cost
    /// The document is made once more.
    pub fn resubmit(&self, rejected: &Rejected) -> Result<Resubmitted, Error> {
        let document = rejected.document;
        let key = key_of(document, rejected.change);
        let row = self.rejected_row(&key)?.ok_or(Error::NotFound(document))?;
        let handle = self.find(document)?;
        let Some(_) = rejected.change else {
            let commit = handle.delete()?;
            block_on(self.ask(Input::Hold { key, row: None }))?;
            return Ok(Resubmitted { commit: Some(commit), left_out: 0 });
        };
        let beneath = row.beneath.iter().map(|lsn| self.logged_change(Lsn(*lsn)).map(|(change, _)| change));
        let beneath = beneath.collect::<Result<Vec<_>, _>>()?;
        let (change, _) = self.logged_change(Lsn(row.lsn))?;
        let made = handle.change_raw(|view| {
            self.flush()?;
            let base = {
                let graph = self.reader().graph(document)?;
                let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
                Base { heads: graph.heads(), max_op: graph.max_op(), actor: ActorId::random() }
            };
            let refused = |why: String| Error::Refused { document, why };
            let made =
                rebase(&beneath, std::slice::from_ref(&change), &base).map_err(|error| refused(error.to_string()))?;
            view.takes_at(&base.heads, &made.changes)?;
            Ok((made.changes, made.left_out))
        });
        let (commit, left_out) = made?;
        block_on(self.ask(Input::Hold { key, row: None }))?;
        Ok(Resubmitted { commit, left_out })
    }

    /// Takes a rejected edit off the list for good. Its record stays in the log. `false` when it was not there.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub fn discard_rejected(&self, rejected: &Rejected) -> Result<bool, Error> {
        let key = key_of(rejected.document, rejected.change);
        let is_there = self.rejected_row(&key)?.is_some();
        if is_there {
            block_on(self.ask(Input::Hold { key, row: None }))?;
        }
        Ok(is_there)
    }

    fn rejected_row(&self, key: &[u8]) -> Result<Option<RejectedRow>, Error> {
        let bytes = self.reader().storage().get(Keyspace::Held, key).map_err(crate::history::HistoryError::from)?;
        Ok(bytes.and_then(|bytes| decode_row(Keyspace::Held, key, &bytes).ok()))
    }
}

impl From<RejectedRow> for Rejected {
    fn from(row: RejectedRow) -> Self {
        Self {
            document: DocumentId(row.document),
            change: row.change.map(ChangeHash),
            by: NodeId(row.by),
            why: row.why,
            at_ms: row.at_ms,
        }
    }
}

#[cfg(test)]
mod tests;
