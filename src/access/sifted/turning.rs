//! A step of a feed from one moment to another: which documents are asked about, and what became of each.
//!
//! They are asked about in the order of their last records. So it can be said in a cursor how far that was done, and it can
//! be gone on with: a document that changes meanwhile is further on then, and nothing is kept of those that were.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::{Right, SiftedFeed};
use crate::access::moment::{Life, Moment};
use crate::error::Error;
use crate::feed::{Filter, Item, Standings};
use crate::history::Reader;
use crate::id::{CollectionKey, DocumentId, Lsn};
use crate::limits::sifted as bounds;
use crate::log::rows::DocumentRow;

/// A step from one moment to another.
pub(super) struct Turning {
    pub(super) to: Moment,
    /// Documents that are to be asked about, and where they are.
    left: VecDeque<(Lsn, DocumentId)>,
    /// Where those after them are found.
    walk: Option<Walk>,
    /// Whether all that there are are asked about.
    pub(super) is_wide: bool,
    /// Somebody else asked about the first of them.
    is_resumed: bool,
    /// All whose last records are up to here were asked about.
    pub(super) at: Lsn,
    /// The other documents that decide about them.
    pub(super) rests_on: HashSet<DocumentId>,
    /// Whether he may see them, as of the later moment; `None` for those that are none of this feed.
    pub(super) known: HashMap<DocumentId, Option<bool>>,
    /// Of which he was told. They may be met again, further on.
    pub(super) told: HashSet<DocumentId>,
    pub(super) took: Duration,
}

/// What comes next.
pub(super) enum Met {
    /// A document that is to be asked about, and up to where all were given with it.
    Document(Lsn, DocumentId),
    /// Nothing among what was read in one go.
    Nothing,
    /// There are no more.
    End,
}

/// Rows that are read in one go where few of them are to be asked about.
const ROWS: usize = 64;

/// What was found out about a document.
pub(super) enum Found {
    Same,
    Other(Box<Right>),
    /// Nobody knows what he was told of it.
    Unclear,
}

impl Turning {
    fn new(to: Moment, at: Lsn) -> Self {
        Self {
            to,
            left: VecDeque::new(),
            walk: None,
            is_wide: false,
            is_resumed: false,
            at,
            rests_on: HashSet::new(),
            known: HashMap::new(),
            told: HashSet::new(),
            took: Duration::ZERO,
        }
    }

    /// The next document that is to be asked about.
    pub(super) fn next(&mut self) -> Result<Met, Error> {
        let met = match (self.left.pop_front(), &mut self.walk) {
            (Some((at, document)), _) => Met::Document(at, document),
            (None, Some(walk)) => walk.next()?,
            (None, None) => Met::End,
        };
        if let Met::Document(at, _) = met {
            self.at = at;
        }
        Ok(met)
    }

    /// Whether each document that there is was asked about here, once there is no next one.
    pub(super) fn is_of_all(&self) -> bool {
        self.is_wide && !self.is_resumed
    }

    /// Whether it was given up, as documents change faster than they can be asked about.
    pub(super) fn is_hopeless(&self) -> bool {
        self.walk.as_ref().is_some_and(|walk| walk.is_hopeless)
    }

    /// Whether its moment has passed: something else may be so by now.
    pub(super) fn is_late(&self) -> bool {
        self.is_resumed || self.took > Duration::ZERO
    }
}

/// The documents of a feed, and all others that changed, in the order of their last records.
pub(super) struct Walk {
    reader: Reader,
    round: Standings,
    /// The last record when it began.
    began: Lsn,
    /// The last record when this round began.
    round_began: Lsn,
    /// After the first round: what went to another collection after that may have been in none that was being read.
    moved_after: Option<Lsn>,
    has_moved: bool,
    rounds: usize,
    late: usize,
    pub(super) is_hopeless: bool,
}

impl Walk {
    pub(super) fn new(reader: &Reader, lanes: Vec<(CollectionKey, Lsn)>) -> Result<Self, Error> {
        let began = reader.tail().lsn;
        Ok(Self {
            reader: reader.clone(),
            round: Standings::over(reader.clone(), lanes, Lsn(u64::MAX))?,
            began,
            round_began: began,
            moved_after: None,
            has_moved: false,
            rounds: 0,
            late: 0,
            is_hopeless: false,
        })
    }

    /// The next document, after not many rows. What changed since it began may be in a collection that came to be since,
    /// so no more is said to be given than what was there then.
    pub(super) fn next(&mut self) -> Result<Met, Error> {
        let mut rows = 0;
        while !self.is_hopeless {
            while let Some((lsn, document)) = self.round.next()? {
                self.late += usize::from(lsn > self.began);
                self.is_hopeless = self.late > bounds::LATE_MAX;
                let Some(moved_after) = self.moved_after else {
                    return Ok(Met::Document(lsn.min(self.began), document));
                };
                if self.reader.row(document)?.is_some_and(|row| has_moved(&row, moved_after)) {
                    self.has_moved = true;
                    return Ok(Met::Document(self.began, document));
                }
                rows += 1;
                if rows >= ROWS || self.is_hopeless {
                    return Ok(Met::Nothing);
                }
            }
            if self.moved_after.is_some() && !std::mem::take(&mut self.has_moved) {
                return Ok(Met::End);
            }
            self.rounds += 1;
            self.is_hopeless = self.rounds > bounds::ROUNDS_MAX;
            let after = std::mem::replace(&mut self.round_began, self.reader.tail().lsn);
            let lanes = self.reader.collections()?.into_iter().map(|(_, name)| (name.key(), after)).collect();
            self.round = Standings::over(self.reader.clone(), lanes, Lsn(u64::MAX))?;
            self.moved_after = Some(after);
        }
        Ok(Met::End)
    }
}

/// Whether a document came to its collection after that record.
fn has_moved(row: &DocumentRow, after: Lsn) -> bool {
    row.creation.as_ref().is_some_and(|creation| creation.lsn > after.0)
}

impl SiftedFeed {
    /// What is to be asked about to go on as of now.
    pub(super) fn turn(&self) -> Result<Turning, Error> {
        let (from, to) = (&self.moment, self.subject.moment());
        let is_free = from.rules.is_none() && to.rules.is_none();
        if is_free || from.position == Lsn::ZERO {
            return Ok(Turning::new(to, from.position));
        }
        let needs = &to.needs;
        let is_later = to.time_ms >= from.time_ms.saturating_add(bounds::TIME_MS);
        let changed = self.changed(from.position)?;
        let is_wide = match &changed {
            None => true,
            Some(_) if !to.has_rules_of(from) || (needs.time && is_later) => true,
            Some(changed) => {
                (needs.documents && self.decides(changed, needs.collections.as_ref())?)
                    || (needs.time && self.is_turned(&to, changed)?)
            }
        };
        if is_wide {
            return self.turn_widely(to, Lsn::ZERO);
        }
        // Each step of the time has all asked again that rests on it.
        let mut turning = Turning::new(to.at(to.position, from.time_ms), from.position);
        turning.left = changed.unwrap_or_default().into();
        Ok(turning)
    }

    /// Has every document asked about whose last record is after `at`; for one who was told of the others.
    pub(super) fn resume(&mut self, to: Moment, at: Lsn) -> Result<(), Error> {
        self.turning = Some(Turning { is_resumed: true, ..self.turn_widely(to, at)? });
        Ok(())
    }

    fn turn_widely(&self, to: Moment, at: Lsn) -> Result<Turning, Error> {
        let mut turning = Turning { is_wide: true, ..Turning::new(to, at) };
        let own = match self.changes.documents() {
            Filter::Document(document) => {
                let row = self.reader().row(*document)?;
                turning.left.extend(row.map(|row| (Lsn(row.last_lsn), *document)).filter(|(lsn, _)| *lsn > at));
                return Ok(turning);
            }
            Filter::Collection(name) => Some(name),
            Filter::Everything => None,
        };
        // Elsewhere is what left since.
        let lanes = self.reader().collections()?.into_iter().map(|(_, name)| {
            let is_own = own.is_none_or(|own| *own == name);
            (name.key(), if is_own { at } else { at.max(self.moment.position) })
        });
        turning.walk = Some(Walk::new(self.reader(), lanes.collect())?);
        Ok(turning)
    }

    /// The documents that changed after a record, oldest change first; `None` where there are many.
    fn changed(&self, after: Lsn) -> Result<Option<Vec<(Lsn, DocumentId)>>, Error> {
        let mut changed = Vec::new();
        for (_, name) in self.reader().collections()? {
            let count = bounds::CHANGED_MAX + 1 - changed.len();
            changed.extend(self.reader().collection(name.key(), after, count)?);
            if changed.len() > bounds::CHANGED_MAX {
                return Ok(None);
            }
        }
        changed.sort_unstable();
        Ok(Some(changed))
    }

    /// Whether documents that changed may decide about others; `collections` are those in which rules look for such.
    fn decides(&self, changed: &[(Lsn, DocumentId)], collections: Option<&BTreeSet<String>>) -> Result<bool, Error> {
        if let Some(rests_on) = &self.rests_on {
            return Ok(changed.iter().any(|(_, document)| rests_on.contains(document)));
        }
        let Some(collections) = collections else { return Ok(!changed.is_empty()) };
        for (_, document) in changed {
            let Some(row) = self.reader().row(*document)? else { continue };
            let name = self.reader().names().collection(row.collection)?;
            if has_moved(&row, self.moment.position) || collections.contains(name.as_str()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the time that went by decides about one of the documents that something is to be told of; or that cannot be
    /// found out in one turn.
    fn is_turned(&self, now: &Moment, changed: &[(Lsn, DocumentId)]) -> Result<bool, Error> {
        let began = Instant::now();
        let held = now.at(now.position, self.moment.time_ms);
        let pulled = self.pulled.iter().filter_map(|item| match item {
            Item::Event(event) => Some(event.document),
            _ => None,
        });
        for document in pulled.chain(changed.iter().map(|(_, document)| *document)).collect::<BTreeSet<_>>() {
            let Some(row) = self.reader().row(document)? else { continue };
            let Some(life) = Life::at(self.reader(), document, &row, now.position)? else { continue };
            let then = self.subject.saw(&held, document, &row, &life)?;
            let is_other = then.is_timed && then.allowed != self.subject.saw(now, document, &row, &life)?.allowed;
            if is_other || began.elapsed() > Duration::from_millis(bounds::TURN_MS) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether he may see a document otherwise than before. What is released must be so `now` as well, where that is given:
    /// if it is not, he is told no more than which it is. That much he must be told, as later cursors say that he was.
    pub(super) fn compare(
        &self,
        turning: &mut Turning,
        document: DocumentId,
        now: Option<&Moment>,
    ) -> Result<Found, Error> {
        let (from, to, filter) = (&self.moment, &turning.to, self.changes.documents());
        let Some(row) = self.reader().row(document)? else { return Ok(Found::Same) };
        if turning.told.contains(&document) {
            return Ok(Found::Same);
        }
        if let Filter::Collection(own) = filter
            && !has_moved(&row, from.position)
            && self.reader().names().collection(row.collection)? != *own
        {
            return Ok(Found::Same);
        }
        // What came to be since then is told by the feed.
        let Some(was) = Life::at(self.reader(), document, &row, from.position)? else { return Ok(Found::Same) };
        let Some(is) = Life::at(self.reader(), document, &row, to.position)? else { return Ok(Found::Same) };
        if !filter.admits(document, &was.collection) {
            // Of a step that asks about all, nothing that was known before is kept.
            if !turning.is_wide {
                turning.known.insert(document, None);
            }
            return Ok(Found::Same);
        }
        let verdict = self.subject.saw(to, document, &row, &is)?;
        if turning.rests_on.len() <= bounds::RESTS_ON_MAX {
            turning.rests_on.extend(verdict.others.iter().copied());
        }
        if turning.known.len() < bounds::KNOWN_MAX {
            turning.known.insert(document, Some(verdict.allowed.unwrap_or(false)));
        }
        let is_asked_alike = from.has_rules_of(to)
            && (was.collection == is.collection && was.name == is.name)
            && (verdict.newest <= from.position && !(verdict.is_timed && from.time_ms != to.time_ms));
        if is_asked_alike && verdict.allowed.is_some() {
            return Ok(Found::Same);
        }
        let before = match self.known.get(&document) {
            Some(known) => Some(*known),
            None => self.subject.saw(from, document, &row, &was)?.allowed,
        };
        let (collection, name, heads) = match (before, verdict.allowed) {
            (Some(true), Some(false) | None) => (was.collection, None, None),
            (None, Some(false) | None) => return Ok(Found::Unclear),
            (Some(false) | None, Some(true)) if is.is_visible && filter.admits(document, &is.collection) => {
                let is_so = match now {
                    Some(now) => self.sees_as_of(now, document)?,
                    None => true,
                };
                match is_so {
                    true => (is.collection, is.name, Some(self.reader().heads_at(document, to.position)?)),
                    false => (is.collection, None, None),
                }
            }
            _ => return Ok(Found::Same),
        };
        if turning.told.len() < bounds::KNOWN_MAX {
            turning.told.insert(document);
        }
        let (place, position) = (self.place_in(turning), Lsn(row.last_lsn));
        let is_released = before != Some(true);
        Ok(Found::Other(Box::new(Right { place, position, document, collection, is_released, name, heads })))
    }
}
