//! Change graphs kept in memory, read from the index when they are asked for.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fold::{index_key, lsn_in};
use super::{HistoryError, Names};
use crate::document::{ChangeGraph, Node};
use crate::id::{ActorId, ChangeHash, DocumentId, Lsn};
use crate::log::rows::{IndexRow, decode_row};
use crate::log::{Keyspace, Storage};

/// The change graphs of the documents that were asked for lately, within a budget of bytes.
pub struct Graphs {
    budget: usize,
    // Protects which graphs are here; a graph itself has a lock of its own, so that reading one in holds up nobody.
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    graphs: HashMap<DocumentId, Slot>,
    uses: u64,
    bytes: usize,
}

struct Slot {
    graph: Arc<Mutex<ChangeGraph>>,
    used: u64,
    bytes: usize,
}

/// A start-operation window for changes that were admitted already: none.
const ADMITTED: u64 = u64::MAX >> 1;

impl Graphs {
    /// Keeps up to `budget` bytes of graphs, and always the one in use.
    #[must_use]
    pub fn new(budget: usize) -> Self {
        Self { budget, kept: Mutex::default() }
    }

    /// The graph of `document` with every change up to `upto`.
    ///
    /// # Errors
    /// [`HistoryError`] when the index is damaged or the disk fails.
    ///
    /// # Cost
    /// What was appended since it was last asked for; the whole index of the document the first time.
    pub fn graph(
        &self,
        storage: &dyn Storage,
        names: &Names,
        document: DocumentId,
        upto: Lsn,
    ) -> Result<Arc<Mutex<ChangeGraph>>, HistoryError> {
        let graph = self.slot(document);
        let bytes = {
            let mut locked = lock(&graph);
            if locked.last_lsn() < upto && !extend(&mut locked, storage, names, document, upto)? {
                // It holds changes that were withdrawn since: made again, as the document is.
                *locked = ChangeGraph::with_window(ADMITTED);
                extend(&mut locked, storage, names, document, upto)?;
            }
            (!locked.is_empty()).then(|| locked.bytes())
        };
        match bytes {
            Some(bytes) => self.account(document, bytes),
            // Nothing is lost with it, and whoever asks for documents that are not there fills no table.
            None => self.forget(document),
        }
        Ok(graph)
    }

    /// Forgets the graph of `document`.
    pub fn forget(&self, document: DocumentId) {
        let mut kept = self.lock();
        if let Some(slot) = kept.graphs.remove(&document) {
            kept.bytes -= slot.bytes;
        }
    }

    fn slot(&self, document: DocumentId) -> Arc<Mutex<ChangeGraph>> {
        let mut kept = self.lock();
        kept.uses += 1;
        let used = kept.uses;
        let slot = kept.graphs.entry(document).or_insert_with(|| Slot {
            graph: Arc::new(Mutex::new(ChangeGraph::with_window(ADMITTED))),
            used,
            bytes: 0,
        });
        slot.used = used;
        slot.graph.clone()
    }

    fn account(&self, document: DocumentId, bytes: usize) {
        let mut kept = self.lock();
        if let Some(slot) = kept.graphs.get_mut(&document) {
            let before = std::mem::replace(&mut slot.bytes, bytes);
            kept.bytes = kept.bytes - before + bytes;
        }
        while kept.bytes > self.budget && kept.graphs.len() > 1 {
            let oldest = kept.graphs.iter().filter(|(id, _)| **id != document).min_by_key(|(_, slot)| slot.used);
            let Some(id) = oldest.map(|(id, _)| *id) else { break };
            if let Some(slot) = kept.graphs.remove(&id) {
                kept.bytes -= slot.bytes;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(graph: &Mutex<ChangeGraph>) -> MutexGuard<'_, ChangeGraph> {
    graph.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads what the index has above the graph's last change, up to `upto`. `false` when the graph is of an older generation
/// and holds what is no longer indexed.
fn extend(
    graph: &mut ChangeGraph,
    storage: &dyn Storage,
    names: &Names,
    document: DocumentId,
    upto: Lsn,
) -> Result<bool, HistoryError> {
    let (from, to) = (index_key(document, graph.last_lsn().next()), index_key(document, upto.next()));
    // An empty graph holds nothing that could have been withdrawn.
    let fresh = graph.is_empty();
    let mut end = Ok(true);
    storage.scan(Keyspace::DocIx, &from, &to, false, &mut |key, bytes| {
        end = add_row(graph, names, document, key, bytes, fresh);
        if matches!(end, Ok(true)) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    end
}

fn add_row(
    graph: &mut ChangeGraph,
    names: &Names,
    document: DocumentId,
    key: &[u8],
    bytes: &[u8],
    fresh: bool,
) -> Result<bool, HistoryError> {
    let lsn = lsn_in(key).unwrap_or_default();
    let row: IndexRow = decode_row(Keyspace::DocIx, key, bytes)
        .map_err(|error| HistoryError::Row { place: format!("index of {document} at record {lsn}"), error })?;
    let (hash, actor, seq, start_op, op_count, deps) = match row {
        IndexRow::Change { hash, actor, seq, start_op, op_count, deps } => (hash, actor, seq, start_op, op_count, deps),
        IndexRow::Lifecycle(_) | IndexRow::Void { .. } | IndexRow::Withheld(_) => return Ok(true),
        IndexRow::Withdrawn { .. } if fresh || lsn <= graph.generation() => {
            graph.set_generation(graph.generation().max(lsn));
            return Ok(true);
        }
        IndexRow::Withdrawn { .. } => return Ok(false),
    };
    let wrong = |why: String| HistoryError::Document { document, lsn, why };
    let deps: Option<Vec<ChangeHash>> = deps.iter().map(|back| graph.hash_of(Lsn(lsn.0.checked_sub(*back)?))).collect();
    let deps = deps.ok_or_else(|| wrong("a dependency is not among the records before it".into()))?;
    let name = names.name(actor)?;
    let actor = ActorId::new(&name.bytes).ok_or_else(|| wrong("its author is no actor id".into()))?;
    let node = Node { hash: ChangeHash(hash), actor: &actor, seq, start_op, op_count, deps: &deps, lsn };
    graph.add(node).map_err(|error| wrong(error.to_string()))?;
    Ok(true)
}
