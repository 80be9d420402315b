//! A change feed as one who may not see everything is told it, so that it stays whole when rights change.
//!
//! Nothing is remembered of what he was told: a cursor says as of which [`Moment`] he was last told what he may see, and
//! what he might see then can be found again, from the log. So whatever changed since then, here or while he was away,
//! is told as the difference between two moments: documents that are *released* to him and such as are *withheld*. What
//! happens next is then told as of the later one. A step from one to the other may take long: its cursors say how much of
//! it was told.

mod turning;

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::moment::{Life, Moment};
use super::place::{Mark, Place, Step};
use super::subject::{REST, Subject};
use crate::engine::Database;
use crate::error::Error;
use crate::feed::{ChangeFeed, Changes, Event, EventKind, Item, Opening, ResetReason};
use crate::history::Reader;
use crate::id::{CollectionName, DocumentId, Heads, Lsn};
use crate::limits::{feeds, sifted as bounds};
use turning::{Found, Met, Turning};

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
    /// Whether he may see it that could not.
    is_released: bool,
    name: Option<String>,
    /// What it is now; `None` where he may not see it any more, or not by now: he asks for it until he may, or hears that
    /// it is withheld.
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
        put("kind", json!(if self.is_released { "released" } else { "withheld" }));
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
    /// It goes on from where he was told all as of the moment, and nothing was told since.
    is_fresh: bool,
    /// How long documents are asked about at a stretch.
    stretch: Duration,
}

impl SiftedFeed {
    /// Opens the feed of these documents for somebody.
    ///
    /// # Errors
    /// As [`Changes::open`].
    pub(crate) fn open(changes: Changes, from: From, subject: Subject) -> Result<Self, Error> {
        let now = subject.moment();
        let reader = subject.database().reader().clone();
        let mut step = None;
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
                Some((told, halfway)) => {
                    step = halfway;
                    (changes.clone().since(place.feed).open()?, Some(told))
                }
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
            is_fresh: false,
            stretch: Duration::from_millis(bounds::TURN_MS),
        };
        if opened.begin(told)? {
            match step {
                Some((to, at)) => opened.resume(to, at)?,
                None => opened.is_fresh = true,
            }
        }
        Ok(opened)
    }

    /// Takes the feed's opening; whether it goes on from where he was told.
    fn begin(&mut self, told: Option<Moment>) -> Result<bool, Error> {
        let mut goes_on = false;
        if let Some(Item::Opened(opening)) = self.feed.next_now()? {
            let is_void = matches!(opening, Opening::Reset { .. });
            let told = told.filter(|_| !is_void);
            goes_on = told.is_some();
            self.moment = told.unwrap_or_else(|| self.subject.moment());
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
        Ok(goes_on)
    }

    /// Whether he may see everything: then telling costs nothing worth a thread.
    pub(crate) fn is_free(&self) -> bool {
        self.moment.rules.is_none() && !self.subject.has_rules()
    }

    /// Where a new feed goes on after what was told.
    pub(crate) fn cursor(&self) -> Place {
        self.turning.as_ref().map_or_else(|| self.place(self.given), |turning| self.place_in(turning))
    }

    fn place(&self, feed: crate::feed::FeedCursor) -> Place {
        Place { feed, rights: self.mark(&self.moment) }
    }

    /// In the middle of a step.
    fn place_in(&self, turning: &Turning) -> Place {
        let (from, to) = (&self.moment, &turning.to);
        let step = Step { position: to.position, time_ms: to.time_ms, at: turning.at };
        // What the rules of before allowed is known here alone.
        let halfway = |mark: Mark| match from.has_rules_of(to) {
            true => Mark { position: from.position, time_ms: from.time_ms, step: Some(step), ..mark },
            false => mark.unsettled(),
        };
        Place { feed: self.given, rights: self.mark(to).map(halfway) }
    }

    fn mark(&self, moment: &Moment) -> Option<Mark> {
        let name = self.subject.rights_name(moment)?;
        Some(Mark { name, position: moment.position, time_ms: moment.time_ms, step: None })
    }

    /// Forgets what can be found again, where he is told nothing for a while.
    pub(crate) fn rest(&self) {
        self.moment.forget();
        self.turning.iter().for_each(|turning| turning.to.forget());
    }

    /// Waits until more was logged than was read; `false` when the database was closed.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(crate) async fn wait(&mut self) -> bool {
        self.feed.wait().await
    }

    /// Reads up to so many events of what comes next, and not many bytes of them.
    ///
    /// # Errors
    /// As [`ChangeFeed::next`].
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(crate) async fn pull(&mut self, count: usize) -> Result<(), Error> {
        self.is_at_end = false;
        let mut bytes: usize = self.pulled.iter().map(logged_bytes).sum();
        while self.turning.is_none()
            && self.pulled.len() < count.min(feeds::RECORDS_PER_READ)
            && bytes < bounds::PULLED_BYTES
        {
            match self.feed.try_next().await? {
                Some(item) => {
                    bytes += logged_bytes(&item);
                    self.pulled.push_back(item);
                }
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
                let is_fresh = std::mem::take(&mut self.is_fresh);
                let rests = Instant::now() < self.rests_until;
                // What comes in pages has no pauses: each is another feed.
                if turning.is_wide && (rests || is_fresh) {
                    let has_told = self.tell_meanwhile(&mut said)?;
                    if is_fresh {
                        // What could not be told there is not known to be hidden: the place that the cursor names says.
                        self.known.clear();
                    }
                    if has_told {
                        return Ok((said, Next::Pull));
                    }
                    if rests {
                        return Ok((said, Next::Rest(self.rests_until)));
                    }
                }
                turning
            }
        };
        let began = Instant::now();
        let now = turning.is_late().then(|| self.subject.moment());
        loop {
            let found = match turning.next()? {
                Met::Document(_, document) => self.compare(&mut turning, document, now.as_ref())?,
                Met::Nothing => Found::Same,
                Met::End => break,
            };
            match found {
                Found::Same => {}
                Found::Other(right) => said.push(Said::Right(*right)),
                Found::Unclear => return self.anew(said),
            }
            if began.elapsed() >= self.stretch {
                turning.took += began.elapsed();
                self.turning = Some(turning);
                return Ok((said, Next::Work));
            }
        }
        if turning.is_hopeless() {
            return self.anew(said);
        }
        self.settle(turning, began, now.as_ref(), &mut said)?;
        let is_done = self.is_at_end && self.pulled.is_empty();
        Ok((said, if is_done { Next::Wait } else { Next::Pull }))
    }

    /// Goes on as of the later moment, and tells what was read.
    fn settle(
        &mut self,
        turning: Turning,
        began: Instant,
        now: Option<&Moment>,
        said: &mut Vec<Said>,
    ) -> Result<(), Error> {
        if turning.is_wide {
            let took = turning.took + began.elapsed();
            self.rests_until = Instant::now() + took.clamp(REST[0], bounds::REST_MAX);
            self.rests_on = turning.is_of_all().then_some(turning.rests_on);
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
        let is_settled = self.tell_pulled(Lsn(u64::MAX), now, said)?;
        if !turning.told.is_empty() && !is_settled {
            said.push(Said::Progress(self.cursor(), self.is_at_end && self.pulled.is_empty()));
        }
        self.bound();
        self.subject.note_time(self.moment.needs.time);
        self.rest();
        Ok(())
    }

    /// Forgets what is too much to remember. All can be found again.
    fn bound(&mut self) {
        if self.rests_on.as_ref().is_some_and(|rests_on| rests_on.len() > bounds::RESTS_ON_MAX) {
            self.rests_on = None;
        }
        if self.known.len() > 2 * bounds::KNOWN_MAX {
            self.known.clear();
        }
    }

    /// Tells what happened up to the moment, while it is too early to ask about everything again, and first of all where a
    /// feed goes on; whether there was anything. So a feed gets on, however often that must be done.
    fn tell_meanwhile(&mut self, said: &mut Vec<Said>) -> Result<bool, Error> {
        let (count, now) = (self.pulled.len(), self.subject.moment());
        self.tell_pulled(self.moment.position, Some(&now), said)?;
        self.rest();
        Ok(self.pulled.len() < count)
    }

    /// Tells what was read, up to a record; whether he was told anything. Not what he may not see `now`, where that is
    /// given, nor what is behind it: he is told that first.
    fn tell_pulled(&mut self, upto: Lsn, now: Option<&Moment>, said: &mut Vec<Said>) -> Result<bool, Error> {
        let before = said.len();
        while let Some(item) = self.pulled.front() {
            let is_to_come = match item {
                Item::Opened(_) => false,
                Item::Event(event) => event.position > upto,
                // That all was told is not so yet.
                Item::Progress { cursor, caught_up } => cursor.position > upto || (*caught_up && upto.0 < u64::MAX),
            };
            if is_to_come {
                break;
            }
            let mut is_seen = false;
            if let Item::Event(event) = item {
                let document = event.document;
                is_seen = self.sees(document)?;
                if let (true, Some(now)) = (is_seen, now)
                    && !self.sees_as_of(now, document)?
                {
                    break;
                }
            }
            match self.pulled.pop_front() {
                Some(Item::Event(event)) => {
                    self.given = event.cursor;
                    if is_seen {
                        said.push(Said::Event(Box::new(event), self.cursor()));
                    }
                }
                Some(Item::Progress { cursor, caught_up }) => {
                    self.given = cursor;
                    said.push(Said::Progress(self.cursor(), caught_up));
                }
                Some(Item::Opened(_)) | None => {}
            }
        }
        Ok(said.len() > before)
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
        // Much may be told before everything is asked about again.
        self.bound();
        Ok(allowed)
    }

    /// The same as of another moment; nothing is remembered of it.
    fn sees_as_of(&self, moment: &Moment, document: DocumentId) -> Result<bool, Error> {
        let Some(row) = self.reader().row(document)? else { return Ok(false) };
        let Some(life) = Life::at(self.reader(), document, &row, moment.position)? else { return Ok(false) };
        Ok(moment.rules.is_none() || self.subject.saw(moment, document, &row, &life)?.allowed.unwrap_or(false))
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

/// How many bytes of the log are kept with an item.
fn logged_bytes(item: &Item) -> usize {
    match item {
        Item::Event(Event { kind: EventKind::Changed(changed), .. }) => changed.logged_bytes(),
        _ => 0,
    }
}

/// As of when somebody was told what he may see, if it can be found again what that was; and in the middle of a step, to
/// which moment it led, and how far he was told of it.
fn told_as_of(
    subject: &Subject,
    reader: &Reader,
    now: &Moment,
    place: &Place,
) -> Option<(Moment, Option<(Moment, Lsn)>)> {
    let mark = place.rights?;
    let tail = reader.tail();
    let (position, time_ms) =
        mark.step.map_or((mark.position, mark.time_ms), |step| (step.position, mark.time_ms.max(step.time_ms)));
    let is_same = subject.rights_name(now).is_some_and(|name| name == mark.name);
    // What is proven of another log is proven up to the cursor.
    let is_here = place.feed.log_id == tail.log_id || position == place.feed.position;
    let is_past = place.feed.position <= mark.position && mark.position <= position && position <= tail.lsn;
    // A clock that was set back: nobody knows what was told in between.
    let is_in_time = time_ms <= now.time_ms || !now.needs.time;
    let step = mark.step.map(|step| (now.at(step.position, step.time_ms.min(now.time_ms)), step.at));
    (is_same && is_here && is_past && is_in_time).then(|| (now.at(mark.position, mark.time_ms.min(now.time_ms)), step))
}

// They set the clock.
#[cfg(test)]
#[cfg(feature = "sim")]
mod tests;
