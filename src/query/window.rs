//! What a listener knows of its result: every match up to a bound in the order of the query.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::document::Document;
use super::run::Found;
use super::snapshot::Placed;
use super::spec::Shape;
use crate::error::QueryError;
use crate::limits::queries;

/// Documents of a result, by place.
#[derive(Debug, Default)]
pub(super) struct Window {
    known: BTreeMap<Vec<u8>, Arc<Document>>,
    /// Matches behind this place are not known; `None` when all are.
    bound: Option<Vec<u8>>,
    bytes: usize,
}

/// What a change did to a window.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Turn {
    /// Nothing.
    Same,
    /// Something.
    Changed,
    /// Something; and there may be matches behind the bound that belong in the result now.
    RunsLow,
}

/// How many documents a listener of that query finds at first: its result, and some more for when others leave.
pub(super) fn wanted(shape: &Shape) -> usize {
    match shape.limit {
        Some(limit) => limit + limit / 2 + queries::SLACK,
        // One more than there may be, to see that there are too many.
        None => queries::LIMIT_MAX + 1,
    }
}

impl Window {
    /// Begins with what was found.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(super) fn new(found: Found, shape: &Shape) -> Result<Self, QueryError> {
        let mut window = Self::default();
        window.extend(found);
        window.check(shape)?;
        Ok(window)
    }

    /// Takes in what was found behind the bound.
    pub(super) fn extend(&mut self, found: Found) {
        self.bound = if found.is_all { None } else { found.documents.keys().next_back().cloned() };
        for (place, document) in found.documents {
            self.put(place, document);
        }
    }

    pub(super) fn bound(&self) -> Option<&[u8]> {
        self.bound.as_deref()
    }

    /// Takes in what became of one document.
    pub(super) fn change(&mut self, shape: &Shape, before: Option<&Document>, after: Option<&Arc<Document>>) -> Turn {
        let place = |document: &Document| shape.place(document.id, document.compared());
        let old = before.and_then(place).and_then(|place| self.known.remove(&place));
        self.bytes -= old.as_ref().map_or(0, |old| old.bytes);
        let new = after.and_then(|after| Some((shape.seen_place(after)?, after.clone())));
        let new = new.filter(|(place, _)| self.bound.as_ref().is_none_or(|bound| place <= bound));
        if old.is_none() && new.is_none() {
            return Turn::Same;
        }
        if let Some((place, document)) = new {
            self.put(place, document);
            self.trim(shape);
        }
        match shape.limit {
            Some(limit) if self.bound.is_some() && self.known.len() < limit => Turn::RunsLow,
            _ => Turn::Changed,
        }
    }

    fn put(&mut self, place: Vec<u8>, document: Arc<Document>) {
        self.bytes += document.bytes;
        if let Some(twice) = self.known.insert(place, document) {
            self.bytes -= twice.bytes;
        }
    }

    /// Forgets what is far behind the result.
    fn trim(&mut self, shape: &Shape) {
        if shape.limit.is_none() || self.known.len() <= 2 * wanted(shape) {
            return;
        }
        while self.known.len() > wanted(shape) {
            let last = self.known.pop_last();
            self.bytes -= last.map_or(0, |(_, document)| document.bytes);
        }
        self.bound = self.known.keys().next_back().cloned();
    }

    /// Whether it is within the bounds of a result.
    ///
    /// # Errors
    /// [`QueryError::TooLarge`].
    pub(super) fn check(&self, shape: &Shape) -> Result<(), QueryError> {
        if shape.limit.is_none() && self.known.len() > queries::LIMIT_MAX {
            return Err(QueryError::TooLarge { what: format!("{} documents", queries::LIMIT_MAX) });
        }
        if self.bytes > queries::RESULT_BYTES_MAX {
            return Err(QueryError::TooLarge { what: format!("{} bytes", queries::RESULT_BYTES_MAX) });
        }
        Ok(())
    }

    /// The result, in order.
    pub(super) fn result(&self, shape: &Shape) -> Placed {
        let first = self.known.iter().take(shape.limit.unwrap_or(usize::MAX));
        let placed = first.map(|(place, document)| (place.clone(), document.clone()));
        in_order(placed.collect(), shape)
    }
}

/// Documents by their places as a limit counts them, as the result has them.
pub(super) fn in_order(mut placed: Placed, shape: &Shape) -> Placed {
    if shape.from_end {
        placed.reverse();
        placed.iter_mut().for_each(|(place, _)| place.iter_mut().for_each(|byte| *byte = !*byte));
    }
    placed
}
