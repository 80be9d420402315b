//! What one record of the log says to who follows a feed: a function of the log up to that record, whether it is read
//! as it comes or years later.

use std::collections::HashMap;

use super::event::{Changed, EventKind, Standing, Statement};
use super::filter::Filter;
use crate::error::Error;
use crate::history::fold::{fold_lifecycle, fold_withheld, heads_of, is_visible};
use crate::history::withdrawal::withdrawn_records;
use crate::history::{HistoryError, Reader};
use crate::id::{ActorId, ChangeHash, CollectionName, DocumentId, Heads, Lsn, NodeId};
use crate::limits::feeds;
use crate::log::record::{
    ChangeHeader, Lifecycle, LifecycleHeader, LifecycleKind, NameRef, Record, VoidHeader, WithdrawnHeader,
    WithheldHeader,
};
use crate::log::rows::{DocumentRow, StatementRow};

/// What a record tells.
pub(super) struct Told {
    pub(super) document: DocumentId,
    pub(super) collection: CollectionName,
    pub(super) received_ms: u64,
    pub(super) via: Option<NodeId>,
    pub(super) kind: EventKind,
}

/// What somebody knows to whom documents are told as they stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    /// Everything up to here. More of it, perhaps: they may have stopped while documents were told before.
    pub(super) upto: Lsn,
    /// Nothing at all.
    pub(super) is_nothing: bool,
}

/// Turns the records of one feed into events, and remembers what the next ones need.
pub(super) struct Teller {
    reader: Reader,
    filter: Filter,
    documents: HashMap<DocumentId, Remembered>,
    collections: HashMap<NameRef, CollectionName>,
}

/// What is remembered of a document. All of it can be looked up again.
struct Remembered {
    /// Its lifecycle up to the last record that was read.
    life: DocumentRow,
    /// Its latest heads: where their records are, and their names.
    heads: Vec<(Lsn, ChangeHash)>,
}

impl Teller {
    pub(super) fn new(reader: Reader, filter: Filter) -> Self {
        Self { reader, filter, documents: HashMap::new(), collections: HashMap::new() }
    }

    pub(super) fn filter(&self) -> &Filter {
        &self.filter
    }

    /// What the record at `lsn` tells; nothing when it is of no interest, or changes nothing that can be seen.
    pub(super) fn tell(&mut self, lsn: Lsn, record: Record) -> Result<Option<Told>, Error> {
        match record {
            Record::Change(header, chunk) => self.change(lsn, header, chunk),
            Record::Lifecycle(header, bytes) => self.statement(lsn, &header, &bytes),
            Record::Withdrawn(header) => self.withdrawn(lsn, &header),
            Record::Void(header) => self.void(lsn, header),
            Record::Withheld(header) => self.withheld(lsn, &header),
            Record::Name(_) | Record::Footer(_) | Record::Gap(_) | Record::Checkpoint => Ok(None),
            // What was refused happened to no document.
            Record::Refused(_) | Record::Subject(_) | Record::Attributed(_) => Ok(None),
            Record::Rules(_) | Record::Allowed(_) => Ok(None),
        }
    }

    fn change(&mut self, lsn: Lsn, header: ChangeHeader, chunk: Vec<u8>) -> Result<Option<Told>, Error> {
        let document = DocumentId(header.document);
        let collection = self.collection(header.collection)?;
        if !self.filter.admits(document, &collection) {
            return Ok(None);
        }
        let (heads_before, heads_after) = self.heads(document, lsn, &header)?;
        if !is_visible(&self.remembered(document, lsn)?.life) {
            return Ok(None);
        }
        let names = self.reader.names();
        let name = names.name(header.actor)?;
        let actor = ActorId::new(&name.bytes)
            .ok_or_else(|| HistoryError::Missing(format!("actor {} of record {lsn}", header.actor)))?;
        let kind = EventKind::Changed(Box::new(Changed {
            hash: ChangeHash(header.hash),
            actor,
            seq: header.seq,
            op_count: header.op_count,
            heads_before,
            heads_after,
            time: header.time,
            origin: self.reader.origin_of(&header)?,
            chunk,
        }));
        let via = names.node(header.via)?;
        Ok(Some(Told { document, collection, received_ms: header.received_ms, via, kind }))
    }

    /// The document's heads before and after a change. The log says where they are; what they are called is
    /// remembered, or read.
    fn heads(&mut self, document: DocumentId, lsn: Lsn, header: &ChangeHeader) -> Result<(Heads, Heads), Error> {
        let at = |back: &u64| Lsn(lsn.0.saturating_sub(*back));
        let reader = self.reader.clone();
        let remembered = self.remembered(document, lsn)?;
        let named = |position: Lsn| match remembered.heads.iter().find(|(other, _)| *other == position) {
            Some((_, hash)) => Ok((position, *hash)),
            None => reader.change_hash(position).map(|hash| (position, hash)),
        };
        let places = header.heads_before.as_ref().unwrap_or(&header.deps);
        let before = places.iter().map(|back| named(at(back))).collect::<Result<Vec<_>, _>>()?;
        let hash = ChangeHash(header.hash);
        let mut after: Vec<_> =
            before.iter().copied().filter(|(place, _)| !header.deps.iter().any(|back| at(back) == *place)).collect();
        after.push((lsn, hash));
        let names = |heads: &[(Lsn, ChangeHash)]| Heads::new(heads.iter().map(|(_, hash)| *hash).collect());
        let told = (names(&before), names(&after));
        after.truncate(feeds::HEADS_REMEMBERED);
        remembered.heads = after;
        Ok(told)
    }

    fn statement(&mut self, lsn: Lsn, header: &LifecycleHeader, bytes: &[u8]) -> Result<Option<Told>, Error> {
        let document = DocumentId(header.document);
        if matches!(self.filter, Filter::Document(id) if id != document) {
            return Ok(None);
        }
        let said =
            Lifecycle::decode(bytes).map_err(|error| HistoryError::Row { place: format!("record {lsn}"), error })?;
        let life = &mut self.remembered(document, lsn)?.life;
        let before = life.clone();
        fold_lifecycle(life, lsn, Lifecycle::id_of(bytes), &said, header.collection);
        let after = life.clone();
        let statement = Statement {
            id: Lifecycle::id_of(bytes),
            author: said.author,
            time_ms: said.time_ms,
            name: after.name.clone(),
        };
        let Some(kind) = self.turn(&before, &after, statement)? else { return Ok(None) };
        let collection = self.collection(after.collection)?;
        let admits = match &kind {
            EventKind::Moved { from, .. } => {
                self.filter.admits(document, from) || self.filter.admits(document, &collection)
            }
            _ => self.filter.admits(document, &collection),
        };
        let via = self.reader.names().node(header.via)?;
        Ok(admits.then_some(Told { document, collection, received_ms: header.received_ms, via, kind }))
    }

    /// What can be seen of a statement that led from one lifecycle to another.
    fn turn(
        &mut self,
        before: &DocumentRow,
        after: &DocumentRow,
        statement: Statement,
    ) -> Result<Option<EventKind>, Error> {
        let is_purged =
            |row: &DocumentRow| row.winner.as_ref().is_some_and(|winner| winner.kind == LifecycleKind::Purged as u8);
        let is_new = before.creation.is_none() && before.winner.is_none();
        Ok(match (is_visible(before), is_visible(after)) {
            _ if is_purged(after) && !is_purged(before) => Some(EventKind::Purged(statement)),
            (_, true) if is_new => Some(EventKind::Created(statement)),
            (true, false) => Some(EventKind::Deleted(statement)),
            (false, true) => Some(EventKind::Restored(statement)),
            (true, true) if before.collection != after.collection => {
                Some(EventKind::Moved { from: self.collection(before.collection)?, statement })
            }
            _ => None,
        })
    }

    fn withdrawn(&mut self, lsn: Lsn, header: &WithdrawnHeader) -> Result<Option<Told>, Error> {
        let positions = withdrawn_records(lsn, header).into_iter().collect();
        let kind = EventKind::Withdrawn { winner: ChangeHash(header.winner), positions };
        self.about(lsn, DocumentId(header.document), header.received_ms, header.via, kind)
    }

    fn void(&mut self, lsn: Lsn, header: VoidHeader) -> Result<Option<Told>, Error> {
        let position = Lsn(lsn.0.saturating_sub(header.change));
        let kind = EventKind::Void { position, automerge: header.automerge, why: header.why };
        self.about(lsn, DocumentId(header.document), header.received_ms, 0, kind)
    }

    fn withheld(&mut self, lsn: Lsn, header: &WithheldHeader) -> Result<Option<Told>, Error> {
        let document = DocumentId(header.document);
        let life = &mut self.remembered(document, lsn)?.life;
        let was_visible = is_visible(life);
        fold_withheld(life, lsn, header);
        let kind = match (was_visible, is_visible(life)) {
            (true, false) => EventKind::Withheld,
            (false, true) => EventKind::Released,
            _ => return Ok(None),
        };
        let collection = life.collection;
        let collection = self.collection(collection)?;
        if !self.filter.admits(document, &collection) {
            return Ok(None);
        }
        let via = self.reader.names().node(header.via)?;
        Ok(Some(Told { document, collection, received_ms: header.received_ms, via, kind }))
    }

    fn about(
        &mut self,
        lsn: Lsn,
        document: DocumentId,
        received_ms: u64,
        via: NameRef,
        kind: EventKind,
    ) -> Result<Option<Told>, Error> {
        let life = &self.remembered(document, lsn)?.life;
        let (is_shown, collection) = (is_visible(life), life.collection);
        let collection = self.collection(collection)?;
        if !is_shown || !self.filter.admits(document, &collection) {
            return Ok(None);
        }
        let via = self.reader.names().node(via)?;
        Ok(Some(Told { document, collection, received_ms, via, kind }))
    }

    /// Where a document stands, for one who knows what `known` says; nothing when it is none of theirs.
    pub(super) fn standing(&mut self, id: DocumentId, row: &DocumentRow, known: Known) -> Result<Option<Told>, Error> {
        let collection = self.collection(row.collection)?;
        let is_ours = self.filter.admits(id, &collection);
        let is_there = is_ours && is_visible(row);
        let is_new = row.created_lsn > known.upto.0;
        // One that is elsewhere was ours only if it moved since.
        let moved = |creation: &StatementRow| creation.lsn > known.upto.0 && creation.lsn != row.created_lsn;
        let was_ours = is_ours || row.creation.as_ref().is_some_and(moved);
        if !is_there && (known.is_nothing || !was_ours) {
            return Ok(None);
        }
        let kind = EventKind::Standing(Standing { name: row.name.clone(), heads: heads_of(row), is_new, is_there });
        Ok(Some(Told { document: id, collection, received_ms: 0, via: None, kind }))
    }

    fn remembered(&mut self, document: DocumentId, lsn: Lsn) -> Result<&mut Remembered, Error> {
        if self.documents.len() >= feeds::DOCUMENTS_REMEMBERED && !self.documents.contains_key(&document) {
            self.documents.clear();
        }
        match self.documents.entry(document) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let life = self.reader.life_before(document, lsn)?;
                Ok(entry.insert(Remembered { life, heads: Vec::new() }))
            }
        }
    }

    fn collection(&mut self, reference: NameRef) -> Result<CollectionName, Error> {
        if let Some(name) = self.collections.get(&reference) {
            return Ok(name.clone());
        }
        let name = self.reader.names().collection(reference)?;
        // As many as there are collections; each has a name in memory already.
        self.collections.insert(reference, name.clone());
        Ok(name)
    }
}
