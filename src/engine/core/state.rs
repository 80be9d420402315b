//! Documents as the step under way has left them: rows, graphs, the index, names.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Core, Work};
use crate::document::ChangeGraph;
use crate::history::fold::index_key;
use crate::history::{HistoryError, Names, Origin};
use crate::id::{DocumentId, Lsn, NodeId};
use crate::log::Keyspace;
use crate::log::record::{NameHeader, NameKind, NameRef, Record};
use crate::log::rows::{DocumentRow, IndexRow, encode_row};

impl Core {
    /// The document's row with everything this step did; notes how it was before.
    pub(super) fn row(&mut self, work: &mut Work, document: DocumentId) -> Result<Option<DocumentRow>, HistoryError> {
        if !self.rows.contains_key(&document)
            && let Some(row) = self.reader.row(document)?
        {
            self.rows.insert(document, row);
        }
        let row = self.rows.get(&document).cloned();
        work.before.entry(document).or_insert_with(|| row.clone());
        Ok(row)
    }

    /// The document's graph with everything this step accepted.
    pub(super) fn graph(
        &mut self,
        work: &mut Work,
        document: DocumentId,
    ) -> Result<Arc<Mutex<ChangeGraph>>, HistoryError> {
        if let Some(graph) = work.graphs.get(&document) {
            return Ok(graph.clone());
        }
        let upto = self.reader.tail().lsn;
        let graph = self.graphs.graph(&**self.reader.storage(), self.reader.names(), document, upto)?;
        for accepted in work.accepted.get(&document).into_iter().flatten() {
            let mut graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
            graph.add(accepted.node()).map_err(|error| HistoryError::Document {
                document,
                lsn: accepted.lsn,
                why: error.to_string(),
            })?;
        }
        work.graphs.insert(document, graph.clone());
        Ok(graph)
    }

    pub(super) fn index(&self, work: &mut Work, document: DocumentId, lsn: Lsn, row: &IndexRow) {
        work.step.documents.push(document);
        let key = index_key(document, lsn);
        work.group.batch.put(Keyspace::DocIx, key, encode_row(Keyspace::DocIx, &key, row));
    }

    pub(super) fn origin_references(
        &mut self,
        work: &mut Work,
        origin: &Origin,
        via: Option<NodeId>,
    ) -> Result<(NameRef, NameRef), HistoryError> {
        let own = self.reader.node();
        let mut of = |node: NodeId| {
            if node == own { Ok(0) } else { self.reference(work, NameKind::Node, &node.0) }
        };
        Ok((of(origin.node)?, via.map_or(Ok(0), of)?))
    }

    pub(super) fn reference_if_known(
        &self,
        work: &Work,
        kind: NameKind,
        name: &[u8],
    ) -> Result<Option<NameRef>, HistoryError> {
        match work.names.get(&(kind, name.to_vec())) {
            Some(reference) => Ok(Some(*reference)),
            None => self.reader.names().find(kind, name),
        }
    }

    /// The number of a name, given now if it has none.
    pub(super) fn reference(&mut self, work: &mut Work, kind: NameKind, name: &[u8]) -> Result<NameRef, HistoryError> {
        if let Some(reference) = self.reference_if_known(work, kind, name)? {
            return Ok(reference);
        }
        self.last_name += 1;
        let header = NameHeader { kind, reference: self.last_name, bytes: name.to_vec() };
        Names::project(&mut work.group.batch, &header);
        self.appender.push(&mut work.group, &Record::Name(header));
        work.names.insert((kind, name.to_vec()), self.last_name);
        Ok(self.last_name)
    }
}
