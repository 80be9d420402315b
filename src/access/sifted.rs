//! A change feed as one who may not see everything is told it, so that it stays whole when rights change.
//!
//! Nothing is remembered of what he was told: a cursor says as of which [`Moment`] he was last told what he may see, and
//! what he might see then can be found again, from the log. So whatever changed since then, here or while he was away,
//! is told as the difference between two moments: documents that are *released* to him and such as are *withheld*. What
//! happens next is then told as of the later one.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::moment::{Life, Moment};
use super::place::{Mark, Place};
use super::subject::{REST, Subject};
use crate::engine::Database;
use crate::error::Error;
use crate::feed::{ChangeFeed, Changes, Event, Filter, Item, Opening, ResetReason};
use crate::history::Reader;
use crate::id::{CollectionKey, CollectionName, DocumentId, Heads, Lsn};
use crate::limits::{feeds, sifted as bounds};

/// From where somebody is told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum From {
    Beginning,
    Now,
    Place(Place),
}

/// What he is told.
pub(crate) enum Said {
    /// How it goes on: at the beginning, and wherever it begins anew.
    Opened(Value),
    /// Something happened.
    Event(Box<Event>, Place),
    /// A document may be seen that could not be, or the other way round.
    Right(Right),
    /// Nothing else for him up to there.
    Progress(Place, bool),
}

/// What became of one document by a change of rights.
pub(crate) struct Right {
    place: Place,
    /// The document's last record.
    position: Lsn,
    document: DocumentId,
    /// As whoever is told knows it.
    collection: CollectionName,
    name: Option<String>,
    /// What it is now; `None` where he may not see it any more.
    heads: Option<Heads>,
}

impl Right {
    /// Where to go on after it.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// As an event of the feed is told.
    pub(crate) fn to_json(&self) -> Value {
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| drop(object.insert(key.to_owned(), value));
        put("cursor", json!(self.place.to_string()));
        put("kind", json!(if self.heads.is_some() { "released" } else { "withheld" }));
        put("id", json!(self.document.to_string()));
        put("collection", json!(self.collection.as_str()));
        if let Some(heads) = &self.heads {
            put("position", json!(self.position.0));
            put("heads", heads.as_slice().iter().map(ToString::to_string).collect());
            if let Some(name) = &self.name {
                put("name", json!(name));
            }
        }
        Value::Object(object)
    }
}

/// What to do when that is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Ask for more, which there may be.
    Pull,
    /// Nothing is left but to wait.
    Wait,
    /// Go on at once: there was enough to do for one turn.
    Work,
    /// Go on then, and not before: it is dear.
    Rest(Instant),
}

/// A feed for one who may not see everything.
pub(crate) struct SiftedFeed {
    subject: Subject,
    changes: Changes,
    feed: ChangeFeed,
    /// How it begins, until that is told.
    opened: Option<Value>,
    /// As of when he was told what he may see.
    moment: Moment,
    /// What comes next and was not told yet.
    pulled: VecDeque<Item>,
    /// There was nothing after that.
    is_at_end: bool,
    /// What is being found out, as of which moment.
    turning: Option<Turning>,
    /// The other documents that decide what he may see of all that there is; `None` while that is not known.
    rests_on: Option<HashSet<DocumentId>>,
    /// Whether he may see documents, as of the moment. All can be found again.
    known: HashMap<DocumentId, bool>,
    /// After the last event that he was told, or that was not for him.
    given: crate::feed::FeedCursor,
    /// Not everything is asked about again before that.
    rests_until: Instant,
}

/// A step from one moment to another.
struct Turning {
    to: Moment,
    /// The documents that are to be asked about.
    left: VecDeque<DocumentId>,
    /// They are all that there are.
    is_wide: bool,
    /// The other documents that decide about them.
    rests_on: HashSet<DocumentId>,
    /// Whether he may see them, as of the later moment; `None` for those that are none of this feed.
    known: HashMap<DocumentId, Option<bool>>,
    told: usize,
    took: Duration,
}

/// What was found out about a document.
enum Found {
    Same,
    Other(Right),
    /// Nobody knows what he was told of it.
    Unclear,
}

impl SiftedFeed {
    /// Opens the feed of these documents for somebody.
    ///
    /// # Errors
    /// As [`Changes::open`].
    pub(crate) fn open(changes: Changes, from: From, subject: Subject) -> Result<Self, Error> {
        let now = subject.moment();
        let reader = subject.database().reader().clone();
        let (feed, told) = match from {
            From::Beginning => (changes.clone().open()?, Some(now.at(Lsn::ZERO, now.time_ms))),
            From::Now => (changes.clone().since_now().open()?, None),
            From::Place(Place { feed, rights: None }) if now.rules.is_none() => {
                (changes.clone().since(feed).open()?, None)
            }
            From::Place(Place { feed, rights: None }) if feed.position == Lsn::ZERO => {
                (changes.clone().since(feed).open()?, Some(now.at(Lsn::ZERO, now.time_ms)))
            }
            From::Place(place) => match told_as_of(&subject, &reader, &now, &place) {
                Some(told) => (changes.clone().since(place.feed).open()?, Some(told)),
                None => (changes.clone().anew(ResetReason::Rights).open()?, None),
            },
        };
        let is_from_nothing = told.as_ref().is_some_and(|told| told.position == Lsn::ZERO);
        let mut opened = Self {
            // What was logged since the feed was opened comes with the feed.
            moment: now,
            given: feed.cursor(),
            subject,
            changes,
            feed,
            opened: None,
            pulled: VecDeque::new(),
            is_at_end: false,
            turning: None,
            // Each document will come by, and is asked about then.
            rests_on: is_from_nothing.then(HashSet::new),
            known: HashMap::new(),
            rests_until: Instant::now(),
        };
        opened.begin(told)?;
        Ok(opened)
    }

    /// Takes the feed's opening.
    fn begin(&mut self, told: Option<Moment>) -> Result<(), Error> {
        if let Some(Item::Opened(opening)) = self.feed.next_now()? {
            let is_void = matches!(opening, Opening::Reset { .. });
            match told.filter(|_| !is_void) {
                Some(told) => self.moment = told,
                None => self.moment = self.subject.moment(),
            }
            let mut json = opening.to_json();
            let (places, word) = match opening {
                Opening::Resumed { from } => (vec![("from", from)], "resumed"),
                Opening::Rebased { from, to } => (vec![("from", from), ("to", to)], "rebased"),
                Opening::Reset { to, .. } => (vec![("to", to)], "reset"),
            };
            for (key, feed) in places {
                json[word][key] = json!(self.place(feed).to_string());
            }
            self.opened = Some(json);
        }
        Ok(())
    }

    /// Whether he may see everything: then telling costs nothing worth a thread.
    pub(crate) fn is_free(&self) -> bool {
        self.moment.rules.is_none() && !self.subject.has_rules()
    }

    /// Where a new feed goes on after what was told. Not while [`Next::Work`] is to be done.
    pub(crate) fn cursor(&self) -> Place {
        self.place(self.given)
    }

    fn place(&self, feed: crate::feed::FeedCursor) -> Place {
        Place { feed, rights: self.mark(&self.moment) }
    }

    fn mark(&self, moment: &Moment) -> Option<Mark> {
        let name = self.subject.rights_name(moment)?;
        Some(Mark { name, position: moment.position, time_ms: moment.time_ms })
    }

    /// Waits until more was logged than was read; `false` when the database was closed.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(crate) async fn wait(&mut self) -> bool {
        self.feed.wait().await
    }

    /// Reads up to so many events of what comes next.
    ///
    /// # Errors
    /// As [`ChangeFeed::next`].
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(crate) async fn pull(&mut self, count: usize) -> Result<(), Error> {
        self.is_at_end = false;
        while self.turning.is_none() && self.pulled.len() < count.min(feeds::RECORDS_PER_READ) {
            match self.feed.try_next().await? {
                Some(item) => self.pulled.push_back(item),
                None => {
                    self.is_at_end = true;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Tells what was read, after whatever else changed for him; what to do next is the second half.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    ///
    /// # Cost
    /// Decides about each document of which something is told, and about each that changed since. Where others have
    /// changed that rules look at for the sake of those, about every document of the feed, 50 ms at a time.
    pub(crate) fn tell(&mut self) -> Result<(Vec<Said>, Next), Error> {
        let mut said: Vec<Said> = self.opened.take().map(Said::Opened).into_iter().collect();
        let mut turning = match self.turning.take() {
            Some(turning) => turning,
            None => {
                let turning = self.turn()?;
                if turning.is_none() && Instant::now() < self.rests_until {
                    return Ok((said, Next::Rest(self.rests_until)));
                }
                let Some(turning) = turning else { return self.anew(said) };
                if turning.is_wide && Instant::now() < self.rests_until {
                    return Ok((said, Next::Rest(self.rests_until)));
                }
                turning
            }
        };
        let began = Instant::now();
        let unsettled = Place { feed: self.given, rights: self.mark(&turning.to).map(Mark::unsettled) };
        while let Some(document) = turning.left.pop_front() {
            match self.compare(&mut turning, document, unsettled)? {
                Found::Same => {}
                Found::Other(right) if turning.told < bounds::RIGHTS_MAX => {
                    turning.told += 1;
                    said.push(Said::Right(right));
                }
                Found::Other(_) | Found::Unclear => return self.anew(said),
            }
            if began.elapsed() > Duration::from_millis(bounds::TURN_MS) {
                turning.took += began.elapsed();
                self.turning = Some(turning);
                return Ok((said, Next::Work));
            }
        }
        self.settle(turning, began, &mut said)?;
        Ok((said, if self.is_at_end { Next::Wait } else { Next::Pull }))
    }

    /// What is to be asked about to go on as of now; `None` where that is more than can be told one by one.
    fn turn(&self) -> Result<Option<Turning>, Error> {
        let (from, to) = (&self.moment, self.subject.moment());
        let mut turning = Turning {
            to,
            left: VecDeque::new(),
            is_wide: false,
            rests_on: HashSet::new(),
            known: HashMap::new(),
            told: 0,
            took: Duration::ZERO,
        };
        let is_free = from.rules.is_none() && turning.to.rules.is_none();
        if is_free || from.position == Lsn::ZERO {
            return Ok(Some(turning));
        }
        let needs = &turning.to.needs;
        let is_later = turning.to.time_ms >= from.time_ms.saturating_add(bounds::TIME_MS);
        let changed = self.changed(from.position)?;
        turning.is_wide = match &changed {
            None => true,
            Some(_) if !turning.to.has_rules_of(from) || (needs.time && is_later) => true,
            Some(changed) => {
                (needs.documents && self.decides(changed, needs.collections.as_ref())?)
                    || (needs.time && self.is_turned(&turning.to, changed)?)
            }
        };
        if !turning.is_wide {
            // Each step of the time has all asked again that rests on it.
            turning.to = turning.to.at(turning.to.position, from.time_ms);
        }
        let mut left = changed.unwrap_or_default();
        if turning.is_wide {
            let Some(all) = self.all()? else { return Ok(None) };
            left.extend(all);
            // Whatever changes its place in the index while that is read.
            let Some(changed) = self.changed(turning.to.position)? else { return Ok(None) };
            left.extend(changed);
            left.sort_unstable();
            left.dedup();
        }
        turning.left = left.into();
        Ok(Some(turning))
    }

    /// The documents that changed after a record; `None` where there are many.
    fn changed(&self, after: Lsn) -> Result<Option<Vec<DocumentId>>, Error> {
        let mut changed = Vec::new();
        for (_, name) in self.reader().collections()? {
            let count = bounds::CHANGED_MAX + 1 - changed.len();
            let rows = self.reader().collection(name.key(), after, count)?;
            changed.extend(rows.into_iter().map(|(_, document)| document));
            if changed.len() > bounds::CHANGED_MAX {
                return Ok(None);
            }
        }
        Ok(Some(changed))
    }

    /// Whether documents that changed may decide about others; `collections` are those in which rules look for such.
    fn decides(&self, changed: &[DocumentId], collections: Option<&BTreeSet<String>>) -> Result<bool, Error> {
        if let Some(rests_on) = &self.rests_on {
            return Ok(changed.iter().any(|document| rests_on.contains(document)));
        }
        let Some(collections) = collections else { return Ok(!changed.is_empty()) };
        for document in changed {
            let Some(row) = self.reader().row(*document)? else { continue };
            let has_moved = row.creation.as_ref().is_some_and(|creation| creation.lsn > self.moment.position.0);
            if has_moved || collections.contains(self.reader().names().collection(row.collection)?.as_str()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the time that went by decides about one of the documents that something is to be told of.
    fn is_turned(&self, now: &Moment, changed: &[DocumentId]) -> Result<bool, Error> {
        let held = now.at(now.position, self.moment.time_ms);
        let pulled = self.pulled.iter().filter_map(|item| match item {
            Item::Event(event) => Some(event.document),
            _ => None,
        });
        for document in pulled.chain(changed.iter().copied()).collect::<BTreeSet<_>>() {
            let Some(row) = self.reader().row(document)? else { continue };
            let Some(life) = Life::at(self.reader(), document, &row, now.position)? else { continue };
            let then = self.subject.saw(&held, document, &row, &life)?;
            if then.is_timed && then.allowed != self.subject.saw(now, document, &row, &life)?.allowed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Every document that the feed is about; `None` where they are too many.
    fn all(&self) -> Result<Option<Vec<DocumentId>>, Error> {
        let keys: Vec<CollectionKey> = match self.changes.documents() {
            Filter::Document(document) => return Ok(Some(vec![*document])),
            Filter::Collection(name) => vec![name.key()],
            Filter::Everything => self.reader().collections()?.into_iter().map(|(_, name)| name.key()).collect(),
        };
        let mut all = Vec::new();
        for key in keys {
            let mut after = Lsn::ZERO;
            loop {
                let rows = self.reader().collection(key, after, feeds::STANDINGS_PER_READ)?;
                let Some((last, _)) = rows.last() else { break };
                after = *last;
                all.extend(rows.into_iter().map(|(_, document)| document));
                if all.len() > bounds::DOCUMENTS_MAX {
                    return Ok(None);
                }
            }
        }
        Ok(Some(all))
    }

    /// Whether he may see a document otherwise than before.
    fn compare(&self, turning: &mut Turning, document: DocumentId, place: Place) -> Result<Found, Error> {
        let (from, to, filter) = (&self.moment, &turning.to, self.changes.documents());
        let Some(row) = self.reader().row(document)? else { return Ok(Found::Same) };
        // What came to be since then is told by the feed.
        let Some(was) = Life::at(self.reader(), document, &row, from.position)? else { return Ok(Found::Same) };
        let Some(is) = Life::at(self.reader(), document, &row, to.position)? else { return Ok(Found::Same) };
        if !filter.admits(document, &was.collection) {
            turning.known.insert(document, None);
            return Ok(Found::Same);
        }
        let now = self.subject.saw(to, document, &row, &is)?;
        if turning.rests_on.len() <= bounds::RESTS_ON_MAX {
            turning.rests_on.extend(now.others.iter().copied());
        }
        if turning.known.len() < bounds::KNOWN_MAX {
            turning.known.insert(document, Some(now.allowed.unwrap_or(false)));
        }
        let is_asked_alike = from.has_rules_of(to)
            && (was.collection == is.collection && was.name == is.name)
            && (now.newest <= from.position && !(now.is_timed && from.time_ms != to.time_ms));
        if is_asked_alike && now.allowed.is_some() {
            return Ok(Found::Same);
        }
        let before = match self.known.get(&document) {
            Some(known) => Some(*known),
            None => self.subject.saw(from, document, &row, &was)?.allowed,
        };
        let right =
            |collection, name, heads| Right { place, position: Lsn(row.last_lsn), document, collection, name, heads };
        Ok(match (before, now.allowed) {
            (Some(true), Some(false) | None) => Found::Other(right(was.collection, None, None)),
            (None, Some(false) | None) => Found::Unclear,
            (Some(false) | None, Some(true)) if is.is_visible && filter.admits(document, &is.collection) => {
                let heads = self.reader().heads_at(document, to.position)?;
                Found::Other(right(is.collection, is.name, Some(heads)))
            }
            _ => Found::Same,
        })
    }

    /// Goes on as of the later moment, and tells what was read.
    fn settle(&mut self, turning: Turning, began: Instant, said: &mut Vec<Said>) -> Result<(), Error> {
        if turning.is_wide {
            let took = turning.took + began.elapsed();
            self.rests_until = Instant::now() + took.clamp(REST[0], bounds::REST_MAX);
            self.rests_on = Some(turning.rests_on);
            self.known.clear();
        } else if let Some(rests_on) = &mut self.rests_on {
            rests_on.extend(turning.rests_on);
        }
        if self.known.len() + turning.known.len() > 2 * bounds::KNOWN_MAX {
            self.known.clear();
        }
        for (document, known) in turning.known {
            match known {
                Some(known) => drop(self.known.insert(document, known)),
                None => drop(self.known.remove(&document)),
            }
        }
        self.moment = turning.to;
        let told = said.iter().any(|said| matches!(said, Said::Right(_))) || turning.told > 0;
        let mut is_settled = !told;
        for item in std::mem::take(&mut self.pulled) {
            match item {
                Item::Opened(_) => {}
                Item::Event(event) => {
                    self.given = event.cursor;
                    if self.sees(event.document)? {
                        is_settled = true;
                        said.push(Said::Event(Box::new(event), self.cursor()));
                    }
                }
                Item::Progress { cursor, caught_up } => {
                    self.given = cursor;
                    is_settled = true;
                    said.push(Said::Progress(self.cursor(), caught_up));
                }
            }
        }
        if !is_settled {
            said.push(Said::Progress(self.cursor(), self.is_at_end));
        }
        if self.rests_on.as_ref().is_some_and(|rests_on| rests_on.len() > bounds::RESTS_ON_MAX) {
            self.rests_on = None;
        }
        self.subject.note_time(self.moment.needs.time);
        Ok(())
    }

    /// Whether he may see a document as of the moment that counts.
    fn sees(&mut self, document: DocumentId) -> Result<bool, Error> {
        if self.moment.rules.is_none() {
            return Ok(true);
        }
        if let Some(known) = self.known.get(&document) {
            return Ok(*known);
        }
        let reader = self.subject.database().reader().clone();
        let Some(row) = reader.row(document)? else { return Ok(false) };
        let Some(life) = Life::at(&reader, document, &row, self.moment.position)? else { return Ok(false) };
        let verdict = self.subject.saw(&self.moment, document, &row, &life)?;
        if let Some(rests_on) = &mut self.rests_on {
            rests_on.extend(verdict.others);
        }
        let allowed = verdict.allowed.unwrap_or(false);
        self.known.insert(document, allowed);
        Ok(allowed)
    }

    /// Has him forget what he was told, and begins anew.
    fn anew(&mut self, mut said: Vec<Said>) -> Result<(Vec<Said>, Next), Error> {
        self.feed = self.changes.clone().anew(ResetReason::Rights).open()?;
        self.pulled.clear();
        self.known.clear();
        (self.turning, self.rests_on) = (None, None);
        self.begin(None)?;
        self.given = self.feed.cursor();
        self.rests_until = Instant::now() + REST[1];
        said.extend(self.opened.take().map(Said::Opened));
        Ok((said, Next::Pull))
    }

    fn reader(&self) -> &Reader {
        let database: &Database = self.subject.database();
        database.reader()
    }
}

/// As of when somebody was told what he may see, if it can be found again what that was.
fn told_as_of(subject: &Subject, reader: &Reader, now: &Moment, place: &Place) -> Option<Moment> {
    let mark = place.rights?;
    let tail = reader.tail();
    let is_same = subject.rights_name(now).is_some_and(|name| name == mark.name);
    // What is proven of another log is proven up to the cursor.
    let is_here = place.feed.log_id == tail.log_id || mark.position == place.feed.position;
    let is_past = (place.feed.position..=tail.lsn).contains(&mark.position);
    // A clock that was set back: nobody knows what was told in between.
    let is_in_time = mark.time_ms <= now.time_ms || !now.needs.time;
    (is_same && is_here && is_past && is_in_time).then(|| now.at(mark.position, mark.time_ms.min(now.time_ms)))
}

// They set the clock.
#[cfg(test)]
#[cfg(feature = "sim")]
mod tests;
