//! What somebody may see as of one moment, which may have passed: the rules and the time are kept, and documents are read
//! as they were then. So the answer is the same whenever it is asked for.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::facts::Extract;
use super::kept::{Kept, Other};
use super::subject::Subject;
use crate::document::{Path, Values, ViewError};
use crate::engine::{Database, now_ms};
use crate::error::Error;
use crate::history::Reader;
use crate::history::fold::is_visible;
use crate::id::{CollectionName, DocumentId, Lsn, first};
use crate::log::rows::DocumentRow;
use crate::rules::{Data, Documents, Fields, Needs, Operation, Request, Rules, Value};

/// A moment as of which it is asked what somebody may see.
pub(super) struct Moment {
    /// The rules that count; `None` where everything may be seen.
    pub(super) rules: Option<Arc<Rules>>,
    /// What these may look at when something is listed, wherever it is.
    pub(super) needs: Arc<Needs>,
    /// The last record that counts.
    pub(super) position: Lsn,
    /// What rules are told of the time, ms since 1970.
    pub(super) time_ms: u64,
    /// Other documents that rules looked at. All can be found again.
    others: RefCell<Kept>,
}

/// Where a document was, and whether it was there.
pub(super) struct Life {
    pub(super) collection: CollectionName,
    pub(super) name: Option<String>,
    pub(super) is_visible: bool,
}

/// Whether somebody may see a document.
pub(super) struct Verdict {
    /// `None` where that cannot be told: what the document or another was then is not known any more.
    pub(super) allowed: Option<bool>,
    /// The last record of whatever was looked at, or a later one.
    pub(super) newest: Lsn,
    /// Whether the time counts.
    pub(super) is_timed: bool,
    /// The other documents that were looked at.
    pub(super) others: Vec<DocumentId>,
}

impl Moment {
    /// The same in another place of time.
    pub(super) fn at(&self, position: Lsn, time_ms: u64) -> Self {
        let (rules, needs) = (self.rules.clone(), self.needs.clone());
        let others = RefCell::new(self.others.borrow().another());
        Self { rules, needs, position, time_ms, others }
    }

    /// Forgets the other documents that rules looked at.
    pub(super) fn forget(&self) {
        self.others.borrow_mut().clear();
    }

    /// Whether the same rules count at both.
    pub(super) fn has_rules_of(&self, other: &Self) -> bool {
        match (&self.rules, &other.rules) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one.digest() == other.digest(),
            _ => false,
        }
    }
}

impl Life {
    /// Where a document was after the record at `upto`; `None` where nobody had named it.
    pub(super) fn at(
        reader: &Reader,
        document: DocumentId,
        row: &DocumentRow,
        upto: Lsn,
    ) -> Result<Option<Self>, Error> {
        if row.created_lsn > upto.0 {
            return Ok(None);
        }
        let past;
        let then = if row.last_lsn <= upto.0 {
            row
        } else {
            past = reader.life_before(document, upto.next())?;
            &past
        };
        // Changes may have come before whatever says where they belong.
        let reference = if then.collection == 0 { row.collection } else { then.collection };
        let collection = reader.names().collection(reference)?;
        Ok(Some(Self { collection, name: then.name.clone(), is_visible: is_visible(then) }))
    }
}

impl Subject {
    /// Now, by the rules in force.
    pub(super) fn moment(&self) -> Moment {
        // Rules first: what they decide of later records is decided again when others are in force.
        let rules = self.0.access.rules();
        let needs = rules.as_ref().map(|rules| rules.needs_anywhere(Operation::List));
        Moment {
            needs: Arc::new(needs.unwrap_or(Needs::NOTHING)),
            rules,
            position: self.database().reader().tail().lsn,
            time_ms: now_ms(),
            others: RefCell::new(Kept::new(self.0.access.0.kept.clone())),
        }
    }

    /// Names the rules and what they may look at of whoever asks: with another name, anything might be decided otherwise.
    /// `None` where everything may be seen.
    pub(super) fn rights_name(&self, moment: &Moment) -> Option<[u8; 8]> {
        let mut hasher = blake3::Hasher::new_derive_key("tidelog 2026-11 rights in feed cursors");
        hasher.update(&moment.rules.as_ref()?.digest());
        if let Some(claims) = self.claims_json() {
            let mut take = |part: &[u8]| {
                hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
            };
            take(self.0.principal.as_bytes());
            match &moment.needs.claim_fields {
                Fields::None => {}
                Fields::All => take(claims.to_string().as_bytes()),
                // Tokens are renewed all the time: what says when and how often does not count unless it is looked at.
                Fields::Some(paths) => paths.iter().filter_map(|path| path.first()).for_each(|claim| {
                    take(claim.as_bytes());
                    take(claims[claim.as_str()].to_string().as_bytes());
                }),
            }
        }
        Some(first(hasher.finalize().as_bytes()))
    }

    /// Whether he might see a document then.
    ///
    /// # Errors
    /// [`Error::History`] when the disk or a row fails. A document that cannot be made is none that may be seen.
    ///
    /// # Cost
    /// As [`Subject::may`], and what changed since is read as it was: in proportion to the history of the fields that
    /// rules look at.
    pub(super) fn saw(
        &self,
        then: &Moment,
        document: DocumentId,
        row: &DocumentRow,
        life: &Life,
    ) -> Result<Verdict, Error> {
        let settled =
            |allowed| Verdict { allowed: Some(allowed), newest: Lsn::ZERO, is_timed: false, others: Vec::new() };
        let Some(rules) = &then.rules else { return Ok(settled(true)) };
        let collection = life.collection.as_str();
        let needs = rules.needs(Operation::List, collection);
        if let Some(allowed) = needs.constant {
            return Ok(settled(allowed));
        }
        let mut verdict = Verdict { is_timed: needs.time, ..settled(false) };
        let mut before = Extract::default();
        if needs.before {
            verdict.newest = newest(row, then.position);
            let read = |values: &dyn Values| Extract::of(values, &needs.before_fields);
            match read_then(self.database(), document, then.position, &read)? {
                Some(found) => before = found,
                None => return Ok(Verdict { allowed: None, ..verdict }),
            }
        }
        let others = Others {
            database: self.database(),
            then,
            seen: RefCell::default(),
            newest: Cell::new(verdict.newest),
            is_unclear: Cell::new(false),
        };
        let id = life.name.clone().unwrap_or_else(|| document.to_string());
        let decision = rules.decide(&Request {
            auth: self.0.auth.as_ref(),
            time_ms: then.time_ms as i64,
            before: Some(&before as &dyn Data),
            documents: &others,
            ..Request::new(Operation::List, collection, &id)
        });
        self.0.access.0.counts.note(Operation::List, decision.allowed);
        verdict.allowed = (!others.is_unclear.get()).then_some(decision.allowed);
        verdict.newest = others.newest.get();
        verdict.others = others.seen.into_inner();
        Ok(verdict)
    }
}

/// A document's last record at or before `upto`, or a later one of that time.
fn newest(row: &DocumentRow, upto: Lsn) -> Lsn {
    if row.created_lsn > upto.0 { Lsn::ZERO } else { Lsn(row.last_lsn).min(upto) }
}

/// Reads a document as it was after the record at `upto`; `None` where that cannot be told.
fn read_then<T>(
    database: &Database,
    document: DocumentId,
    upto: Lsn,
    read: &dyn Fn(&dyn Values) -> Result<T, ViewError>,
) -> Result<Option<T>, Error> {
    let reader = database.reader();
    let told = |made: Result<Result<T, ViewError>, Error>| match made {
        Ok(Ok(found)) => Ok(Some(found)),
        Err(error @ (Error::History(_) | Error::Closed)) => Err(error),
        Ok(Err(error)) => {
            tracing::debug!(%document, %upto, %error, "a document cannot be told as it was");
            Ok(None)
        }
        Err(error) => {
            tracing::warn!(%document, %error, "a document cannot be made, so it is not known who may read it");
            Ok(None)
        }
    };
    let Some(row) = reader.row(document)? else { return Ok(None) };
    if row.last_lsn <= upto.0 {
        let made = database.consult(document, |view| Ok(read(view)));
        // It may have gone on meanwhile, and what was read with it.
        if reader.row(document)?.is_some_and(|later| later.last_lsn == row.last_lsn) {
            return told(made);
        }
    }
    // Once there is a view, it is on record which changes it was made without.
    let made = database.consult(document, |view| {
        let then = reader.shown_heads_at(document, upto)?;
        Ok(view.at(&then).and_then(|then| read(&then)))
    });
    // What was withdrawn since is in no view any more.
    if reader.row(document)?.is_none_or(|row| row.generation > upto.0) {
        return Ok(None);
    }
    told(made)
}

/// Other documents as they were.
struct Others<'a> {
    database: &'a Database,
    then: &'a Moment,
    seen: RefCell<Vec<DocumentId>>,
    newest: Cell<Lsn>,
    is_unclear: Cell<bool>,
}

impl Others<'_> {
    fn find(&self, collection: &str, id: &str) -> Result<Option<Other>, Error> {
        let Ok(name) = CollectionName::new(collection) else { return Ok(None) };
        let document = id.parse().unwrap_or_else(|_| DocumentId::named(&name, id));
        let absent = Other { document, newest: Lsn::ZERO, value: None, is_unclear: false };
        let (reader, upto) = (self.database.reader(), self.then.position);
        let Some(row) = reader.row(document)? else { return Ok(Some(absent)) };
        let found = Other { newest: newest(&row, upto), ..absent };
        if row.generation > upto.0 {
            return Ok(Some(Other { is_unclear: true, ..found }));
        }
        let Some(life) = Life::at(reader, document, &row, upto)? else { return Ok(Some(found)) };
        let is_empty = if row.last_lsn <= upto.0 {
            row.change_count == 0
        } else {
            reader.heads_at(document, upto)?.as_slice().is_empty()
        };
        if !life.is_visible || life.collection != name || is_empty {
            return Ok(Some(found));
        }
        let read = |values: &dyn Values| values.json(&Path::root());
        Ok(Some(match read_then(self.database, document, upto, &read)? {
            Some(json) => Other { value: json.as_ref().map(Value::from_json), ..found },
            None => Other { is_unclear: true, ..found },
        }))
    }
}

impl Documents for Others<'_> {
    fn get(&self, collection: &str, id: &str) -> Option<Value> {
        let key = (collection.to_owned(), id.to_owned());
        let known = self.then.others.borrow().get(&key).cloned();
        let other = known.map_or_else(|| self.find(collection, id), |known| Ok(Some(known)));
        let other = other.unwrap_or_else(|error| {
            tracing::warn!(collection, %error, "a document that rules look at cannot be read as it was");
            self.is_unclear.set(true);
            None
        })?;
        self.seen.borrow_mut().push(other.document);
        self.newest.set(self.newest.get().max(other.newest));
        self.is_unclear.set(self.is_unclear.get() || other.is_unclear);
        let value = other.value.clone();
        self.then.others.borrow_mut().put(key, other);
        value
    }
}
