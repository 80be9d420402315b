//! Finding the documents of a query, at the position where its view is.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::document::Document;
use super::hidden::Hidden;
use super::index::{Index, Part};
use super::plan::{Access, accesses, best_index, single_indexes};
use super::predicate::Condition;
use super::rows::{Rows, document_of, end_of, values_of};
use super::spec::Shape;
use crate::engine::Database;
use crate::error::{Error, QueryError};
use crate::id::{CollectionName, DocumentId};
use crate::limits::queries;

/// Rows read from the store at a time.
const PAGE: usize = 256;

/// One search.
pub(super) struct Search<'a> {
    pub(super) rows: &'a Rows,
    pub(super) collection: &'a CollectionName,
    pub(super) indexes: &'a [Index],
    pub(super) shape: &'a Shape,
    /// Only what is behind this place.
    pub(super) after: Option<&'a [u8]>,
    /// So many at most: those that come first.
    pub(super) want: usize,
    /// Documents that are passed over.
    pub(super) without: Option<&'a HashSet<DocumentId>>,
    /// Matches that may not be seen are wanted as well, beside the others.
    pub(super) keeps_hidden: bool,
    /// Is told of indexes on one field that would have helped, whether the search succeeds or not.
    pub(super) missed: &'a dyn Fn(Vec<Part>),
}

/// What a search found.
#[derive(Debug, Default, Clone)]
pub(super) struct Found {
    /// By their place in the result.
    pub(super) documents: BTreeMap<Vec<u8>, Arc<Document>>,
    /// There are no others.
    pub(super) is_all: bool,
    /// Documents looked at.
    pub(super) examined: usize,
    /// Indexes that were used.
    pub(super) used: Vec<[u8; 8]>,
    /// Bytes of the documents' values as text.
    pub(super) bytes: usize,
    /// The matches up to the last of these that may not be seen, and perhaps some behind it; `None` when they are too
    /// many, or were not asked for.
    pub(super) hidden: Option<Hidden>,
}

impl Found {
    /// Reads what was not kept of values that are too large.
    ///
    /// # Errors
    /// As [`Document::complete`].
    pub(super) fn complete(mut self, database: &Database) -> Result<Self, Error> {
        if self.documents.values().any(|document| document.is_partial) {
            let documents = std::mem::take(&mut self.documents).into_iter();
            let complete = documents
                .map(|(place, document)| Ok((place, Arc::new(Arc::unwrap_or_clone(document).complete(database)?))));
            self.documents = complete.collect::<Result<_, Error>>()?;
        }
        Ok(self)
    }

    /// Takes in a document.
    pub(super) fn put(&mut self, place: Vec<u8>, document: Arc<Document>) {
        self.bytes += document.bytes;
        if let Some(twice) = self.documents.insert(place, document) {
            self.bytes -= twice.bytes;
        }
    }

    /// Takes note of a document that may not be seen.
    pub(super) fn hide(&mut self, place: Vec<u8>, document: Arc<Document>) {
        let Some(hidden) = &mut self.hidden else { return };
        hidden.put(place, document);
        if let (true, Some((last, _))) = (hidden.is_too_much() && !self.is_all, self.documents.last_key_value()) {
            // Once something was left out, the last one only comes nearer.
            hidden.cut(last);
        }
        if hidden.is_too_much() {
            self.hidden = None;
        }
    }
}

/// The documents that were to be looked at are too many.
struct TooMany;

impl Search<'_> {
    /// Finds the documents.
    ///
    /// # Errors
    /// [`QueryError::NeedsIndex`], [`QueryError::TooLarge`]; [`Error::History`] when the store cannot be read.
    ///
    /// # Cost
    /// By an index that gives their order: in proportion to what is wanted. Otherwise to what the index narrows to.
    pub(super) fn run(&self) -> Result<Found, Error> {
        let hidden = self.keeps_hidden.then(Hidden::default);
        let mut found = Found { is_all: true, hidden, ..Found::default() };
        for conditions in &self.shape.alternatives {
            self.find(conditions, &mut found)?;
            if found.bytes > queries::RESULT_BYTES_MAX {
                let what = format!("{} bytes", queries::RESULT_BYTES_MAX);
                return Err(QueryError::TooLarge { what }.into());
            }
        }
        Ok(found)
    }

    fn find(&self, conditions: &[Condition], found: &mut Found) -> Result<(), Error> {
        let mut ways = self.ways(conditions)?;
        if ways.is_empty() {
            let before = found.examined;
            let done = self.walk(found)?;
            if found.examined - before > queries::LEARN_ABOVE {
                (self.missed)(single_indexes(self.shape, conditions));
            }
            return done.map_err(|TooMany| self.needs_index(conditions));
        }
        ways.truncate(2);
        let mut rest = ways.iter().peekable();
        while let Some(way) = rest.next() {
            let before = found.examined;
            found.used.push(way.index.id);
            let done = self.follow(way, found)?;
            if !way.narrows && found.examined - before > queries::LEARN_ABOVE {
                (self.missed)(single_indexes(self.shape, conditions));
            }
            match (done, rest.peek()) {
                (Ok(()), _) => return Ok(()),
                (Err(TooMany), Some(_)) => found.examined = before,
                (Err(TooMany), None) => return Err(self.needs_index(conditions)),
            }
        }
        Ok(())
    }

    fn needs_index(&self, conditions: &[Condition]) -> Error {
        QueryError::NeedsIndex {
            collection: self.collection.to_string(),
            examined: queries::EXAMINED_MAX,
            index: best_index(self.shape, conditions).iter().map(Part::written).collect(),
        }
        .into()
    }

    /// Ways to the documents of one alternative, the most promising first; none when all are to be looked at.
    fn ways(&self, conditions: &[Condition]) -> Result<Vec<Access>, Error> {
        let limited = self.shape.limit.is_some();
        let mut all = accesses(self.shape, conditions, self.indexes, self.after);
        all.retain(|access| access.narrows || limited);
        // What leads to the result and nothing else, in its order, needs not be weighed; nor does what is alone.
        if let Some(best) = all.iter().position(|access| limited && access.ordered && access.covers) {
            return Ok(vec![all.swap_remove(best)]);
        }
        if all.len() == 1 {
            return Ok(all);
        }
        let mut weighed = Vec::new();
        for access in all {
            let entries = if access.narrows { self.probe(&access)? } else { queries::PROBE };
            // Few entries before all. Else the order, of which a limited query needs the beginning only.
            let rank = match () {
                () if entries < queries::PROBE => (0, entries, !access.ordered),
                () if access.ordered && limited => (1, usize::MAX - access.exact, !access.narrows),
                () if access.narrows => (2, usize::MAX - access.exact, false),
                () => continue,
            };
            weighed.push((rank, access));
        }
        weighed.sort_by_key(|(rank, _)| *rank);
        Ok(weighed.into_iter().map(|(_, access)| access).collect())
    }

    /// How many entries it leads to, up to a bound.
    fn probe(&self, access: &Access) -> Result<usize, Error> {
        let mut count = 0;
        for (from, to) in &access.ranges {
            self.rows.scan(from, to, false, &mut |_, _| {
                count += 1;
                if count < queries::PROBE { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
        }
        Ok(count)
    }

    /// Looks at the documents that an index leads to.
    fn follow(&self, way: &Access, found: &mut Found) -> Result<Result<(), TooMany>, Error> {
        for (from, to) in &way.ranges {
            let (mut from, mut to) = (from.clone(), to.clone());
            let mut accepted = 0;
            loop {
                let wanted = if way.ordered { (self.want - accepted).clamp(8, PAGE) } else { PAGE };
                let mut keys = Vec::with_capacity(wanted);
                self.rows.scan(&from, &to, way.descending, &mut |key, _| {
                    keys.push(key.to_vec());
                    if keys.len() < wanted { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })?;
                let is_last = keys.len() < wanted;
                for id in keys.iter().filter_map(|key| way.index.document_in(key)) {
                    if found.examined >= queries::EXAMINED_MAX {
                        return Ok(Err(TooMany));
                    }
                    found.examined += 1;
                    if let Some(document) = self.rows.document(self.collection.key(), id)? {
                        accepted += usize::from(self.take(document, found));
                    }
                    if way.ordered && accepted >= self.want {
                        found.is_all = false;
                        break;
                    }
                }
                let Some(last) = keys.pop().filter(|_| !(is_last || way.ordered && accepted >= self.want)) else {
                    break;
                };
                if way.descending {
                    to = last;
                } else {
                    from = [&last[..], &[0]].concat();
                }
            }
        }
        Ok(Ok(()))
    }

    /// Looks at every document.
    fn walk(&self, found: &mut Found) -> Result<Result<(), TooMany>, Error> {
        let mut after = None;
        loop {
            let page = documents_after(self.rows, self.collection, after, PAGE)?;
            after = page.last().map(|document| document.id.0).filter(|_| page.len() == PAGE);
            for document in page {
                if found.examined >= queries::EXAMINED_MAX {
                    return Ok(Err(TooMany));
                }
                found.examined += 1;
                self.take(document, found);
            }
            if after.is_none() {
                return Ok(Ok(()));
            }
        }
    }

    /// Takes a document if it is in the result; whether it is.
    fn take(&self, document: Document, found: &mut Found) -> bool {
        if self.without.is_some_and(|without| without.contains(&document.id)) {
            return false;
        }
        let Some(place) = self.shape.place(document.id, document.compared()) else { return false };
        if self.after.is_some_and(|after| place.as_slice() <= after) {
            return false;
        }
        if !self.shape.may_see(&document) {
            found.hide(place, Arc::new(document));
            return false;
        }
        found.put(place, Arc::new(document));
        if found.documents.len() > self.want
            && let Some((_, last)) = found.documents.pop_last()
        {
            found.bytes -= last.bytes;
            found.is_all = false;
        }
        true
    }

    /// How many documents are in the result.
    ///
    /// # Errors
    /// As [`Self::run`].
    ///
    /// # Cost
    /// An index that answers it alone: a microsecond an entry. Otherwise as [`Self::run`].
    pub(super) fn count(&self) -> Result<(usize, Found), Error> {
        let limited = |count: usize| self.shape.limit.map_or(count, |limit| count.min(limit));
        // What an index counts says nothing of who may see it.
        if let ([conditions], None) = (&self.shape.alternatives[..], &self.shape.sieve) {
            if conditions.is_empty() && self.shape.order.is_empty() && self.shape.lower.is_none() {
                let prefix = values_of(self.collection.key());
                let count = self.count_rows(&prefix, &end_of(&prefix))?;
                return Ok((limited(count), Found::default()));
            }
            let ways = accesses(self.shape, conditions, self.indexes, None);
            if let Some(way) = ways.into_iter().find(|way| way.covers) {
                let mut count = 0;
                for (from, to) in &way.ranges {
                    count += self.count_rows(from, to)?;
                }
                return Ok((limited(count), Found { used: vec![way.index.id], ..Found::default() }));
            }
        }
        let found = self.run()?;
        Ok((limited(found.documents.len()), found))
    }

    fn count_rows(&self, from: &[u8], to: &[u8]) -> Result<usize, Error> {
        let mut count = 0;
        self.rows.scan(from, to, false, &mut |_, _| {
            count += 1;
            if count <= queries::COUNTED_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if count > queries::COUNTED_MAX {
            let what = format!("{} documents", queries::COUNTED_MAX);
            return Err(QueryError::TooLarge { what }.into());
        }
        Ok(count)
    }
}

/// Every document of a collection with a greater id than `after`, up to `count`.
///
/// # Errors
/// [`Error::History`] when the store cannot be read.
pub(super) fn documents_after(
    rows: &Rows,
    collection: &CollectionName,
    after: Option<[u8; 16]>,
    count: usize,
) -> Result<Vec<Document>, Error> {
    let prefix = values_of(collection.key());
    let from = after.map_or_else(|| prefix.clone(), |after| [&prefix[..], &after, &[0]].concat());
    let mut page = Vec::with_capacity(count);
    rows.scan(&from, &end_of(&prefix), false, &mut |key, bytes| {
        page.push((key.to_vec(), bytes.to_vec()));
        if page.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    page.iter().map(|(key, bytes)| document_of(key, bytes)).collect()
}
