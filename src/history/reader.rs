//! Reading what is committed: positions, records, documents.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::fold::{digest_of, heads_of, index_key, is_visible, is_withheld, lsn_in};
use super::voids::is_degraded;
use super::withdrawal::withdrawn_records;
use super::{Graphs, HistoryError, Names, Opened};
use crate::document::ChangeGraph;
use crate::id::{
    Chain, ChangeHash, CollectionKey, CollectionName, DocumentId, Heads, LogCursor, LogId, Lsn, NodeId, StorageId,
};
use crate::limits::Limits;
use crate::log::record::{Admission, ChangeHeader, LifecycleHeader, NameRef, Record, StateDigest};
use crate::log::rows::{DocumentRow, IndexRow, PeerRow, StatementRow, decode_row};
use crate::log::{Keyspace, LogError, Storage, log_key};

/// The committed state of a store. Cheap to clone; clones share their caches and move with the log's tail.
#[derive(Clone)]
pub struct Reader {
    shared: Arc<Shared>,
}

struct Shared {
    storage: Arc<dyn Storage>,
    node: NodeId,
    names: Names,
    graphs: Graphs,
    // Protects the tail alone: the writer moves it after a commit, everybody reads it.
    tail: RwLock<LogCursor>,
    // Protects the name alone: the writer changes it once it is durable.
    storage_id: RwLock<StorageId>,
}

/// Where a cursor stands in this log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// At a footer of this log: reading can go on from there.
    Known,
    /// In another log.
    Unknown,
    /// It names this log and a place that is not in it: one of the two lost its tail.
    Diverged,
}

/// Where a change entered, as the node there knew it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The node.
    pub node: NodeId,
    /// Who wrote it; empty for nobody in particular.
    pub principal: String,
    /// How it was checked.
    pub admission: Admission,
    /// Under which version of the rules; 0 for none.
    pub rules_version: u32,
}

/// One record of the log.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where it is.
    pub lsn: Lsn,
    /// What it is.
    pub kind: EntryKind,
}

/// What a record says.
#[derive(Debug, Clone)]
pub enum EntryKind {
    /// A change of a document.
    Change {
        /// Which document.
        document: DocumentId,
        /// Which change.
        hash: ChangeHash,
        /// The peer that brought it.
        via: Option<NodeId>,
        /// Where it entered.
        origin: Origin,
        /// Everything the log keeps about it.
        header: Box<ChangeHeader>,
        /// The Automerge change chunk.
        bytes: Vec<u8>,
    },
    /// A lifecycle statement.
    Lifecycle {
        /// About which document.
        document: DocumentId,
        /// The peer that brought it.
        via: Option<NodeId>,
        /// Where it entered.
        origin: Origin,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Changes of a document gave way to another of the same author and number, and are no longer part of it.
    Withdrawn {
        /// Which document.
        document: DocumentId,
        /// The change that takes the place of the first of them.
        winner: ChangeHash,
        /// The peer that brought the winner.
        via: Option<NodeId>,
        /// Where the withdrawn changes are in the log.
        records: Vec<Lsn>,
    },
    /// A change of a document cannot be applied by this node's automerge: views are made without it.
    Void {
        /// Which document.
        document: DocumentId,
        /// Where the change is in the log.
        record: Lsn,
        /// The version of automerge.
        automerge: String,
        /// What it said.
        why: String,
    },
    /// A document may not be read here any more, or may be again, as the node says whose client this is.
    Withheld {
        /// Which document.
        document: DocumentId,
        /// It may not be read.
        withheld: bool,
        /// The node that said so.
        via: Option<NodeId>,
    },
    /// The end of a commit group: a cursor may stand here.
    Footer {
        /// The chain digest.
        chain: Chain,
    },
    /// A record for the log's own use.
    Other,
}

/// Where a document stands.
#[derive(Debug, Clone)]
pub struct DocumentState {
    /// Its collection.
    pub collection: CollectionName,
    /// Its name, if it was created by one.
    pub name: Option<String>,
    /// Its heads.
    pub heads: Heads,
    /// How many changes it has.
    pub change_count: u64,
    /// How many bytes of chunks.
    pub change_bytes: u64,
    /// What two replicas compare.
    pub digest: StateDigest,
    /// Neither deleted nor purged, nor withheld.
    pub visible: bool,
    /// It may not be read here any more, as the node says whose client this is.
    pub withheld: bool,
    /// The newest record about it.
    pub last_lsn: Lsn,
    /// The last record in its newest snapshot.
    pub snapshot: Option<Lsn>,
    /// It can be read in part only: this node's automerge cannot apply some of its changes, as somebody who read it found
    /// out. [`Reader::degraded`] says more.
    pub degraded: bool,
}

/// How often a row is read again when the writer moved between two reads.
const REREADS_MAX: usize = 8;

impl Reader {
    /// Reads `storage`, which was `opened`, for the node `node`.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>, node: NodeId, opened: &Opened, limits: &Limits) -> Self {
        let names = Names::new(storage.clone());
        let graphs = Graphs::new(limits.graph_budget);
        let (tail, storage_id) = (RwLock::new(opened.recovered.tail), RwLock::new(opened.storage_id));
        Self { shared: Arc::new(Shared { storage, node, names, graphs, tail, storage_id }) }
    }

    /// The store itself.
    #[must_use]
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.shared.storage
    }

    /// The dictionary.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.shared.names
    }

    /// Whose store it is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.shared.node
    }

    /// The log's name.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        self.tail().log_id
    }

    /// The name under which automerge-repo's clients know the store.
    #[must_use]
    pub fn storage_id(&self) -> StorageId {
        *self.shared.storage_id.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of an adopted name. Only the writer does, once it is durable.
    pub(crate) fn note_storage_id(&self, id: StorageId) {
        *self.shared.storage_id.write().unwrap_or_else(PoisonError::into_inner) = id;
    }

    /// The last footer that is durable.
    #[must_use]
    pub fn tail(&self) -> LogCursor {
        *self.shared.tail.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the tail. Only the writer does, after a commit.
    pub(crate) fn advance(&self, tail: LogCursor) {
        *self.shared.tail.write().unwrap_or_else(PoisonError::into_inner) = tail;
    }

    /// Says where `cursor` stands in this log.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or the record there fails.
    pub fn locate(&self, cursor: &LogCursor) -> Result<Location, HistoryError> {
        let tail = self.tail();
        if cursor.log_id != tail.log_id {
            return Ok(Location::Unknown);
        }
        if cursor.lsn == Lsn::ZERO && cursor.chain == Chain::default() {
            return Ok(Location::Known);
        }
        if cursor.lsn > tail.lsn {
            return Ok(Location::Diverged);
        }
        let chain = match self.record(cursor.lsn)? {
            Some(Record::Footer(footer)) => Some(Chain(footer.chain)),
            _ => None,
        };
        Ok(if chain == Some(cursor.chain) { Location::Known } else { Location::Diverged })
    }

    /// The record at `lsn`.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or the record fails.
    pub fn record(&self, lsn: Lsn) -> Result<Option<Record>, HistoryError> {
        let Some(bytes) = self.shared.storage.get(Keyspace::Log, &log_key(lsn))? else {
            return Ok(None);
        };
        let record = Record::read(lsn, &bytes).map_err(|error| LogError::Record { lsn, error })?;
        Ok(Some(record))
    }

    /// Reads the log after `after`: whole records, in order, at most `records_max`, and no further one once
    /// `bytes_max` bytes of chunks were read. Nothing above the tail.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or a record fails.
    pub fn read_log(&self, after: Lsn, bytes_max: usize, records_max: usize) -> Result<Vec<Entry>, HistoryError> {
        let records = self.read_records(after, bytes_max, records_max)?;
        records.into_iter().map(|(lsn, record)| Ok(Entry { lsn, kind: self.entry_kind(lsn, record)? })).collect()
    }

    /// [`Self::read_log`], as the records themselves.
    ///
    /// # Errors
    /// As [`Self::read_log`].
    pub fn read_records(
        &self,
        after: Lsn,
        bytes_max: usize,
        records_max: usize,
    ) -> Result<Vec<(Lsn, Record)>, HistoryError> {
        self.scan_records(&log_key(after.next()), &log_key(self.tail().lsn.next()), false, bytes_max, records_max)
    }

    fn entry_kind(&self, lsn: Lsn, record: Record) -> Result<EntryKind, HistoryError> {
        Ok(match record {
            Record::Change(header, bytes) => EntryKind::Change {
                document: DocumentId(header.document),
                hash: ChangeHash(header.hash),
                via: self.names().node(header.via)?,
                origin: self.origin_of(&header)?,
                header: Box::new(header),
                bytes,
            },
            Record::Lifecycle(header, bytes) => EntryKind::Lifecycle {
                document: DocumentId(header.document),
                via: self.names().node(header.via)?,
                origin: self.lifecycle_origin(&header)?,
                bytes,
            },
            Record::Withdrawn(header) => EntryKind::Withdrawn {
                document: DocumentId(header.document),
                winner: ChangeHash(header.winner),
                via: self.names().node(header.via)?,
                records: withdrawn_records(lsn, &header).into_iter().collect(),
            },
            Record::Void(header) => EntryKind::Void {
                document: DocumentId(header.document),
                record: Lsn(lsn.0.saturating_sub(header.change)),
                automerge: header.automerge,
                why: header.why,
            },
            Record::Withheld(header) => EntryKind::Withheld {
                document: DocumentId(header.document),
                withheld: header.withheld,
                via: self.names().node(header.via)?,
            },
            Record::Footer(footer) => EntryKind::Footer { chain: Chain(footer.chain) },
            Record::Name(_) | Record::Gap(_) | Record::Checkpoint => EntryKind::Other,
            // For the audit alone: no peer and no feed hears of them.
            Record::Refused(_) | Record::Subject(_) | Record::Attributed(_) => EntryKind::Other,
            Record::Rules(_) | Record::Allowed(_) => EntryKind::Other,
        })
    }

    /// Where a change entered.
    ///
    /// # Errors
    /// [`HistoryError`] when its names are missing.
    pub fn origin_of(&self, header: &ChangeHeader) -> Result<Origin, HistoryError> {
        Ok(Origin {
            node: self.names().node(header.origin)?.unwrap_or(self.node()),
            principal: self.names().text(header.principal)?,
            admission: header.admission,
            rules_version: header.rules_version,
        })
    }

    fn lifecycle_origin(&self, header: &LifecycleHeader) -> Result<Origin, HistoryError> {
        Ok(Origin {
            node: self.names().node(header.origin)?.unwrap_or(self.node()),
            principal: String::new(),
            admission: if header.origin == 0 { Admission::Local } else { Admission::Structural },
            rules_version: 0,
        })
    }

    /// Up to `rows` documents with ids above `after`, in order of id, with what two replicas compare.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or a row fails.
    pub fn inventory(
        &self,
        after: Option<DocumentId>,
        rows: usize,
    ) -> Result<Vec<(DocumentId, StateDigest)>, HistoryError> {
        let mut found = Vec::new();
        let from = after.map_or_else(Vec::new, |id| [&id.0[..], &[0]].concat());
        self.shared.storage.scan(Keyspace::Docs, &from, &[0xff; 17], false, &mut |key, bytes| {
            found.push(document_row(key, bytes).map(|(id, row)| (id, digest_of(id, &row))));
            if found.len() >= rows { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        found.into_iter().collect()
    }

    /// The documents that the records after `after` are about, each once, and the footer up to which they were read:
    /// at most `records_max` records further. `None` when nothing was appended.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk, a record or a row fails.
    pub fn changed_since(
        &self,
        after: Lsn,
        records_max: usize,
    ) -> Result<Option<(Vec<(DocumentId, StateDigest)>, LogCursor)>, HistoryError> {
        let mut documents = std::collections::BTreeSet::new();
        let (mut end, mut at, mut read) = (None, after, 0);
        while end.is_none() || read < records_max {
            let entries = self.read_log(at, usize::MAX, 512)?;
            let Some(last) = entries.last() else { break };
            at = last.lsn;
            read += entries.len();
            for entry in entries {
                match entry.kind {
                    EntryKind::Change { document, .. }
                    | EntryKind::Lifecycle { document, .. }
                    | EntryKind::Withdrawn { document, .. } => {
                        documents.insert(document);
                    }
                    EntryKind::Footer { chain } => {
                        end = Some(LogCursor { log_id: self.log_id(), lsn: entry.lsn, chain });
                    }
                    // What two replicas compare is as before.
                    EntryKind::Void { .. } | EntryKind::Withheld { .. } | EntryKind::Other => {}
                }
            }
        }
        let Some(end) = end else { return Ok(None) };
        let mut rows = Vec::with_capacity(documents.len());
        for id in documents {
            if let Some(row) = self.row(id)? {
                rows.push((id, digest_of(id, &row)));
            }
        }
        Ok(Some((rows, end)))
    }

    /// Where a document stands; `None` when nobody ever named it here.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or its rows fail.
    pub fn document(&self, id: DocumentId) -> Result<Option<DocumentState>, HistoryError> {
        self.row(id)?.map(|row| self.state_of(id, row)).transpose()
    }

    fn state_of(&self, id: DocumentId, row: DocumentRow) -> Result<DocumentState, HistoryError> {
        Ok(DocumentState {
            collection: self.names().collection(row.collection)?,
            heads: heads_of(&row),
            change_count: row.change_count,
            change_bytes: row.change_bytes,
            digest: digest_of(id, &row),
            visible: is_visible(&row),
            withheld: is_withheld(&row),
            last_lsn: Lsn(row.last_lsn),
            snapshot: row.snapshot.map(|snapshot| Lsn(snapshot.lsn)),
            degraded: is_degraded(&row),
            name: row.name,
        })
    }

    /// A document's row, held against the index: a stale row is never believed.
    ///
    /// # Errors
    /// [`HistoryError::Document`] when the row and the index disagree for good.
    pub fn row(&self, id: DocumentId) -> Result<Option<DocumentRow>, HistoryError> {
        let mut disagreement = (0, Lsn::ZERO);
        for _ in 0..REREADS_MAX {
            let bytes = self.shared.storage.get(Keyspace::Docs, &id.0)?;
            let row = bytes.map(|bytes| document_row(&id.0, &bytes)).transpose()?.map(|(_, row)| row);
            let newest = self.newest_index(id)?.unwrap_or_default();
            let stated = row.as_ref().map_or(0, |row| row.last_lsn);
            if stated == newest.0 {
                return Ok(row);
            }
            // The writer may have committed between the two reads; then a second look agrees.
            disagreement = (stated, newest);
        }
        let (stated, newest) = disagreement;
        let why = format!("its row ends at record {stated}, its index at record {newest}; run `tidelog verify`");
        Err(HistoryError::Document { document: id, lsn: newest, why })
    }

    fn newest_index(&self, id: DocumentId) -> Result<Option<Lsn>, HistoryError> {
        let mut newest = None;
        let (from, to) = (index_key(id, Lsn::ZERO), index_key(id, Lsn(u64::MAX)));
        self.shared.storage.scan(Keyspace::DocIx, &from, &to, true, &mut |key, _| {
            newest = lsn_in(key);
            ControlFlow::Break(())
        })?;
        Ok(newest)
    }

    /// Up to `count` documents of a collection that changed after `after`, oldest change first.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or a row fails.
    pub fn collection(
        &self,
        collection: CollectionKey,
        after: Lsn,
        count: usize,
    ) -> Result<Vec<(Lsn, DocumentId)>, HistoryError> {
        let mut found = Vec::new();
        let (from, to) =
            (super::fold::by_seq_key(collection, after.next()), super::fold::by_seq_key(collection, Lsn(u64::MAX)));
        self.shared.storage.scan(Keyspace::BySeq, &from, &to, false, &mut |key, bytes| {
            let row = decode_row::<[u8; 16]>(Keyspace::BySeq, key, bytes);
            found.push(row.map(|id| (lsn_in(key).unwrap_or_default(), DocumentId(id))));
            if found.len() >= count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let place = || "by_seq".to_owned();
        found.into_iter().map(|row| row.map_err(|error| HistoryError::Row { place: place(), error })).collect()
    }

    /// The statements that decide about a document, creation first: what another replica must hear to agree.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or a record fails.
    pub fn lifecycle_records(&self, id: DocumentId) -> Result<Vec<Vec<u8>>, HistoryError> {
        let Some(row) = self.row(id)? else { return Ok(Vec::new()) };
        let mut statements: Vec<&StatementRow> = row.creation.iter().chain(row.winner.iter()).collect();
        statements.dedup_by_key(|statement| statement.id);
        statements
            .into_iter()
            .map(|statement| match self.record(Lsn(statement.lsn))? {
                Some(Record::Lifecycle(_, bytes)) => Ok(bytes),
                _ => Err(HistoryError::Missing(format!("lifecycle record {}", statement.lsn))),
            })
            .collect()
    }

    /// A document's change graph, up to date with the tail.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or the index fails.
    pub fn graph(&self, id: DocumentId) -> Result<Arc<Mutex<ChangeGraph>>, HistoryError> {
        let upto = self.tail().lsn;
        self.shared.graphs.graph(&*self.shared.storage, &self.shared.names, id, upto)
    }

    /// The change chunk in the record at `lsn`.
    ///
    /// # Errors
    /// [`HistoryError::Missing`] when there is no change there.
    pub fn change_bytes(&self, lsn: Lsn) -> Result<Vec<u8>, HistoryError> {
        match self.record(lsn)? {
            Some(Record::Change(_, bytes)) => Ok(bytes),
            _ => Err(HistoryError::Missing(format!("change record {lsn}"))),
        }
    }

    /// The records about a document above `after`, from its index.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or a row fails.
    pub fn index(&self, id: DocumentId, after: Lsn) -> Result<Vec<(Lsn, IndexRow)>, HistoryError> {
        self.index_between(id, after, self.tail().lsn)
    }

    /// The records about a document above `after`, up to `upto`, from its index.
    ///
    /// # Errors
    /// As [`Self::index`].
    pub fn index_between(&self, id: DocumentId, after: Lsn, upto: Lsn) -> Result<Vec<(Lsn, IndexRow)>, HistoryError> {
        let mut rows = Vec::new();
        let (from, to) = (index_key(id, after.next()), index_key(id, upto.next()));
        self.shared.storage.scan(Keyspace::DocIx, &from, &to, false, &mut |key, bytes| {
            rows.push((lsn_in(key).unwrap_or_default(), decode_row::<IndexRow>(Keyspace::DocIx, key, bytes)));
            ControlFlow::Continue(())
        })?;
        let place = |lsn| format!("index of {id} at record {lsn}");
        rows.into_iter()
            .map(|(lsn, row)| Ok((lsn, row.map_err(|error| HistoryError::Row { place: place(lsn), error })?)))
            .collect()
    }

    /// How far we have followed a peer's log.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk fails. A damaged row counts as none: the peer is then compared with in full.
    pub fn peer_cursor(&self, peer: NodeId) -> Result<Option<LogCursor>, HistoryError> {
        let key = peer_key(peer);
        let Some(bytes) = self.shared.storage.get(Keyspace::State, &key)? else { return Ok(None) };
        let row: Option<PeerRow> = decode_row(Keyspace::State, &key, &bytes).ok();
        Ok(row.map(|row| LogCursor { log_id: LogId(row.log_id), lsn: Lsn(row.lsn), chain: Chain(row.chain) }))
    }

    /// Every collection, by name.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or a row fails.
    pub fn collections(&self) -> Result<Vec<(NameRef, CollectionName)>, HistoryError> {
        let all = self.names().all(crate::log::record::NameKind::Collection)?;
        let mut collections = Vec::with_capacity(all.len());
        for (reference, _) in all {
            collections.push((reference, self.names().collection(reference)?));
        }
        collections.sort_by(|a, b| a.1.cmp(&b.1));
        Ok(collections)
    }
}

/// The key of a peer's row in `state`.
#[must_use]
pub(crate) fn peer_key(peer: NodeId) -> Vec<u8> {
    [b"p", &peer.0[..]].concat()
}

/// Decodes a row of `docs`.
pub(super) fn document_row(key: &[u8], bytes: &[u8]) -> Result<(DocumentId, DocumentRow), HistoryError> {
    let id = key.try_into().map(DocumentId).map_err(|_| HistoryError::Missing("the document of a row".into()))?;
    let row = decode_row(Keyspace::Docs, key, bytes)
        .map_err(|error| HistoryError::Row { place: format!("row of {id}"), error })?;
    Ok((id, row))
}
