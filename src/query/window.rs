//! What a listener knows of its result: every match up to a bound in the order of the query.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::document::Document;
use super::hidden::{Hidden, Room, Taken};
use super::run::Found;
use super::snapshot::Placed;
use super::spec::Shape;
use crate::error::QueryError;
use crate::limits::queries;

/// Documents of a result, by place.
#[derive(Debug)]
pub(super) struct Window {
    known: BTreeMap<Vec<u8>, Arc<Document>>,
    /// Matches behind this place are not known; `None` when all are.
    bound: Option<Vec<u8>>,
    bytes: usize,
    /// All matches up to the bound that whoever listens may not see; `None` when they are too many, or not asked for.
    hidden: Option<Hidden>,
    taken: Taken,
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
    pub(super) fn new(found: Found, shape: &Shape, room: Arc<Room>) -> Result<Self, QueryError> {
        let mut window = Self {
            known: BTreeMap::new(),
            bound: None,
            bytes: 0,
            hidden: Some(Hidden::default()),
            taken: Taken::nothing_of(room),
        };
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
        self.hidden = self.hidden.take().zip(found.hidden).map(|(mut hidden, more)| {
            hidden.extend(more);
            hidden
        });
        self.settle();
    }

    /// Whether it knows of what may not be seen.
    pub(super) fn keeps_hidden(&self) -> bool {
        self.hidden.is_some()
    }

    pub(super) fn bound(&self) -> Option<&[u8]> {
        self.bound.as_deref()
    }

    /// Takes in what became of one document.
    pub(super) fn change(&mut self, shape: &Shape, before: Option<&Document>, after: Option<&Arc<Document>>) -> Turn {
        let place = |document: &Document| shape.place(document.id, document.compared());
        let mut is_same = true;
        if let Some(was) = before.and_then(place) {
            is_same = self.take(&was).is_none();
            self.hidden.as_mut().and_then(|hidden| hidden.remove(&was));
        }
        let new = after.and_then(|after| Some((place(after)?, after)));
        if let Some((place, document)) = new.filter(|(place, _)| self.reaches(place)) {
            if shape.may_see(document) {
                is_same = false;
                self.put(place, document.clone());
                self.trim(shape);
            } else if let Some(hidden) = &mut self.hidden {
                hidden.put(place, document.clone());
            }
        }
        self.settle();
        if is_same { Turn::Same } else { self.turn(shape) }
    }

    /// Asks the sieve about everything that is known, since it may pass other documents now. `None` when there may be
    /// more in the result than is known: what is found anew counts then.
    #[cfg(feature = "web")]
    pub(super) fn sift(&mut self, shape: &Shape) -> Option<Turn> {
        let hidden = self.hidden.as_ref()?;
        let come = hidden.places(|document| shape.may_see(document));
        let gone = self.known.iter().filter(|(_, document)| !shape.may_see(document));
        let gone: Vec<Vec<u8>> = gone.map(|(place, _)| place.clone()).collect();
        if come.is_empty() && gone.is_empty() {
            return Some(Turn::Same);
        }
        for place in come {
            if let Some(document) = self.hidden.as_mut().and_then(|hidden| hidden.remove(&place)) {
                self.put(place, document);
            }
        }
        for place in gone {
            if let (Some(document), Some(hidden)) = (self.take(&place), &mut self.hidden) {
                hidden.put(place, document);
            }
        }
        self.trim(shape);
        self.settle();
        Some(self.turn(shape)).filter(|turn| *turn != Turn::RunsLow)
    }

    /// What it means that the result is another.
    fn turn(&self, shape: &Shape) -> Turn {
        match shape.limit {
            Some(limit) if self.bound.is_some() && self.known.len() < limit => Turn::RunsLow,
            _ => Turn::Changed,
        }
    }

    /// Whether every match at that place is known.
    fn reaches(&self, place: &[u8]) -> bool {
        self.bound.as_ref().is_none_or(|bound| place <= bound.as_slice())
    }

    fn take(&mut self, place: &[u8]) -> Option<Arc<Document>> {
        let document = self.known.remove(place)?;
        self.bytes -= document.bytes;
        Some(document)
    }

    /// Forgets what is not to be seen where it is too much, or behind the bound.
    fn settle(&mut self) {
        if let (Some(hidden), Some(bound)) = (&mut self.hidden, &self.bound) {
            hidden.cut(bound);
        }
        let hidden = self.hidden.take().filter(|hidden| !hidden.is_too_much());
        let has_room = self.taken.resize(hidden.as_ref().map_or(0, Hidden::bytes));
        self.hidden = hidden.filter(|_| has_room);
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
