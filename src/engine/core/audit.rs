//! Writing down who was allowed what: writes that were refused, what is claimed of those who write, and on whose behalf
//! statements are made.
//!
//! Whoever sends what he may not write must not fill the disk: what is listed and kept of each in a minute is bounded, and
//! the same change is listed once.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::ControlFlow;

use super::{Core, Work};
use crate::engine::refusal::{Claims, Refusal, Refused};
use crate::history::{HistoryError, Origin, Reader};
use crate::id::{ChangeHash, Lsn, truncated};
use crate::limits::{Limits, audit as bounds};
use crate::log::record::{
    self, AttributedHeader, NameKind, NameRef, Record, RefusedHeader, RefusedWhat, RulePlace, SubjectHeader, WriteKind,
};
use crate::log::rows::{RefusedOrderRow, RefusedRow, decode_row, encode_row};
use crate::log::{Keyspace, WriteBatch};

const MINUTE_MS: u64 = 60_000;

/// What is remembered of what was written down.
#[derive(Default)]
pub(super) struct Auditor {
    minutes: HashMap<String, Minute>,
    /// When the first of those minutes is over that have something to tell then.
    next_end_ms: Option<u64>,
    listed: Listed,
    kept: Kept,
    subjects: HashMap<NameRef, Subject>,
}

/// What one principal was refused lately.
struct Minute {
    until_ms: u64,
    listed: u32,
    kept_bytes: usize,
    /// Those that were not listed and are not counted in the log yet.
    more: u64,
    is_told: bool,
}

impl Minute {
    fn beginning(now_ms: u64) -> Self {
        let until_ms = now_ms.saturating_add(MINUTE_MS);
        Self { until_ms, listed: 0, kept_bytes: 0, more: 0, is_told: false }
    }
}

/// What was listed: a change, or a statement about a document, with who sent it and under which rules.
type Known = ([u8; 32], NameRef, u32);

#[derive(Default)]
struct Listed {
    known: HashSet<Known>,
    order: VecDeque<Known>,
}

impl Listed {
    fn insert(&mut self, known: Known) {
        if self.known.insert(known) {
            self.order.push_back(known);
            if self.order.len() > bounds::REMEMBERED_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }
}

/// The refused changes whose bytes are in the table `held`, oldest first.
#[derive(Default)]
struct Kept {
    order: VecDeque<(u64, ChangeHash, u64)>,
    hashes: HashSet<ChangeHash>,
    bytes: u64,
    next: u64,
}

/// What is claimed of a principal.
#[derive(Default)]
struct Subject {
    last: Option<[u8; 16]>,
    /// The records that have the texts, oldest first.
    texts: VecDeque<([u8; 16], Lsn)>,
}

/// The key of a refused change's bytes in `held`.
#[must_use]
pub(crate) fn refused_key(hash: ChangeHash) -> Vec<u8> {
    [b"r", &hash.0[..]].concat()
}

fn order_key(number: u64) -> Vec<u8> {
    [b"R", &number.to_be_bytes()[..]].concat()
}

impl Auditor {
    /// Reads which refused changes are kept.
    pub(super) fn open(reader: &Reader) -> Result<Self, HistoryError> {
        let mut kept = Kept::default();
        reader.storage().scan(Keyspace::Held, b"R", b"S", false, &mut |key, bytes| {
            let number = key.get(1..).and_then(|key| key.try_into().ok()).map(u64::from_be_bytes);
            // One that cannot be read is as good as not there; `verify` tells of it.
            if let (Some(number), Ok(row)) = (number, decode_row::<RefusedOrderRow>(Keyspace::Held, key, bytes)) {
                kept.next = number + 1;
                kept.note(number, ChangeHash(row.hash), row.bytes);
            }
            ControlFlow::Continue(())
        })?;
        Ok(Self { kept, ..Self::default() })
    }
}

impl Kept {
    fn note(&mut self, number: u64, hash: ChangeHash, bytes: u64) {
        self.order.push_back((number, hash, bytes));
        self.hashes.insert(hash);
        self.bytes += bytes;
    }

    /// Takes in a change's bytes; the oldest make room.
    fn put(&mut self, batch: &mut WriteBatch, hash: ChangeHash, row: RefusedRow, limits: &Limits) {
        self.remove(batch, hash);
        let bytes = row.chunk.len() as u64;
        while let Some((_, oldest, _)) = self.order.front().copied()
            && (self.order.len() >= limits.refused_rows.max(1)
                || self.bytes.saturating_add(bytes) > limits.refused_bytes as u64)
        {
            self.remove(batch, oldest);
        }
        let (number, row) = (self.next, RefusedRow { number: self.next, ..row });
        self.next += 1;
        let (key, order) = (refused_key(hash), order_key(number));
        batch.put(Keyspace::Held, key.as_slice(), encode_row(Keyspace::Held, &key, &row));
        let order_row = RefusedOrderRow { hash: hash.0, bytes };
        batch.put(Keyspace::Held, order.as_slice(), encode_row(Keyspace::Held, &order, &order_row));
        self.note(number, hash, bytes);
    }

    /// Forgets a change, if it is kept.
    fn remove(&mut self, batch: &mut WriteBatch, hash: ChangeHash) {
        if !self.hashes.remove(&hash) {
            return;
        }
        if let Some(at) = self.order.iter().position(|(_, other, _)| *other == hash)
            && let Some((number, _, bytes)) = self.order.remove(at)
        {
            self.bytes = self.bytes.saturating_sub(bytes);
            batch.remove(Keyspace::Held, order_key(number));
        }
        batch.remove(Keyspace::Held, refused_key(hash));
    }
}

impl Core {
    /// Writes down how much was not listed in minutes that are over.
    pub(super) fn end_minutes(&mut self, work: &mut Work) -> Result<(), HistoryError> {
        if self.auditor.next_end_ms.is_none_or(|end| work.now_ms < end) {
            return Ok(());
        }
        self.tell_minutes(work, |minute, now_ms| now_ms >= minute.until_ms)
    }

    fn tell_minutes(&mut self, work: &mut Work, is_over: fn(&Minute, u64) -> bool) -> Result<(), HistoryError> {
        let minutes = std::mem::take(&mut self.auditor.minutes);
        let (over, going_on): (Vec<_>, Vec<_>) =
            minutes.into_iter().partition(|(_, minute)| is_over(minute, work.now_ms));
        self.auditor.minutes = going_on.into_iter().collect();
        let ends = self.auditor.minutes.values().filter(|minute| minute.more > 0).map(|minute| minute.until_ms);
        self.auditor.next_end_ms = ends.min();
        let mut over: Vec<_> = over.into_iter().filter(|(_, minute)| minute.more > 0).collect();
        over.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (principal, minute) in over {
            self.count_more(work, &principal, minute.more)?;
        }
        Ok(())
    }

    fn count_more(&mut self, work: &mut Work, principal: &str, count: u64) -> Result<(), HistoryError> {
        let header = RefusedHeader {
            document: [0; 16],
            collection: String::new(),
            name: None,
            what: RefusedWhat::More(count),
            operation: WriteKind::Update,
            principal: self.principal(work, principal)?,
            reason: 0,
            rules: Vec::new(),
            detail: String::new(),
            rules_version: 0,
            via: 0,
            received_ms: work.now_ms,
        };
        self.appender.push(&mut work.group, &Record::Refused(header));
        Ok(())
    }

    pub(super) fn principal(&mut self, work: &mut Work, principal: &str) -> Result<NameRef, HistoryError> {
        if principal.is_empty() { Ok(0) } else { self.reference(work, NameKind::Principal, principal.as_bytes()) }
    }

    /// Writes down what somebody may not write, as far as it is not on record and he has some left of his minute.
    pub(super) fn take_refusals(&mut self, work: &mut Work, refused: Vec<Refusal>) -> Result<(), HistoryError> {
        for refusal in refused {
            let principal = self.principal(work, &refusal.principal)?;
            let version = refusal.denial.rules_version();
            let known = identity_of(&refusal).map(|identity| (identity, principal, version));
            if known.is_some_and(|known| self.auditor.listed.known.contains(&known)) {
                continue;
            }
            if let Refused::Change(change) = &refusal.what
                && self.is_kept_for(change.hash(), principal, version)?
            {
                known.into_iter().for_each(|known| self.auditor.listed.insert(known));
                continue;
            }
            if self.auditor.minutes.len() >= bounds::PRINCIPALS_MAX
                && !self.auditor.minutes.contains_key(&refusal.principal)
            {
                self.tell_minutes(work, |_, _| true)?;
            }
            let begin = || Minute::beginning(work.now_ms);
            let minute = self.auditor.minutes.entry(refusal.principal.clone()).or_insert_with(begin);
            if work.now_ms >= minute.until_ms {
                // What it had to tell was told at the beginning of this step.
                *minute = begin();
            }
            if minute.listed >= self.limits.refusals_per_minute {
                // That there were more is on the disk before the first of them is told; how many, when it is over.
                if std::mem::replace(&mut minute.is_told, true) {
                    minute.more += 1;
                    let until_ms = minute.until_ms;
                    let next = self.auditor.next_end_ms.map_or(until_ms, |end| end.min(until_ms));
                    self.auditor.next_end_ms = Some(next);
                } else {
                    self.count_more(work, &refusal.principal, 1)?;
                }
                continue;
            }
            minute.listed += 1;
            let kept = match &refusal.what {
                Refused::Change(change) => {
                    let bytes = change.bytes().len();
                    let fits = bytes <= bounds::KEPT_CHANGE_BYTES_MAX
                        && minute.kept_bytes.saturating_add(bytes) <= bounds::KEPT_BYTES_PER_MINUTE;
                    minute.kept_bytes += if fits { bytes } else { 0 };
                    fits
                }
                Refused::Statement(..) | Refused::Edit => false,
            };
            known.into_iter().for_each(|known| self.auditor.listed.insert(known));
            self.list_refusal(work, refusal, principal, kept)?;
        }
        Ok(())
    }

    /// Whether a change is in quarantine since the same rules refused it to the same principal.
    fn is_kept_for(&self, hash: ChangeHash, principal: NameRef, version: u32) -> Result<bool, HistoryError> {
        if !self.auditor.kept.hashes.contains(&hash) {
            return Ok(false);
        }
        let key = refused_key(hash);
        let row = self.reader.storage().get(Keyspace::Held, &key)?;
        let row = row.and_then(|bytes| decode_row::<RefusedRow>(Keyspace::Held, &key, &bytes).ok());
        Ok(row.is_some_and(|row| (row.principal, row.rules_version) == (principal, version)))
    }

    fn list_refusal(
        &mut self,
        work: &mut Work,
        refusal: Refusal,
        principal: NameRef,
        kept: bool,
    ) -> Result<(), HistoryError> {
        let Refusal { document, collection, name, what, deed, denial, via, .. } = refusal;
        if let Some(claims) = work.claims.clone().filter(|claims| claims.principal == refusal.principal) {
            self.note_claims(work, principal, &claims)?;
        }
        let (_, via) = self.origin_references(work, &self.own_origin(), via)?;
        if let Some(ruleset) = &denial.ruleset {
            self.note_ruleset(work, ruleset)?;
        }
        let lsn = self.appender.next();
        let rules = denial.rules.iter().take(RefusedHeader::RULES_MAX);
        let header = RefusedHeader {
            document: document.0,
            collection: collection.map(|collection| collection.as_str().to_owned()).unwrap_or_default(),
            name,
            what: match &what {
                Refused::Change(change) => RefusedWhat::Change {
                    hash: change.hash().0,
                    actor: change.actor().as_bytes().to_vec(),
                    seq: change.seq(),
                    bytes: change.bytes().len() as u64,
                    kept,
                },
                Refused::Statement(kind, _) => RefusedWhat::Statement(*kind as u8),
                Refused::Edit => RefusedWhat::Edit,
            },
            operation: deed.into(),
            principal,
            reason: denial.reason as u8,
            rules: rules
                .map(|(line, path)| RulePlace {
                    line: *line,
                    path: truncated(path, RefusedHeader::PATH_BYTES_MAX).to_owned(),
                })
                .collect(),
            detail: truncated(&denial.detail, RefusedHeader::DETAIL_BYTES_MAX).to_owned(),
            rules_version: denial.rules_version(),
            via,
            received_ms: work.now_ms,
        };
        if let (Refused::Change(change), true) = (&what, kept) {
            let row = RefusedRow {
                number: 0,
                lsn: lsn.0,
                principal,
                rules_version: denial.rules_version(),
                chunk: change.bytes().to_vec(),
            };
            self.auditor.kept.put(&mut work.group.batch, change.hash(), row, &self.limits);
        }
        self.appender.push(&mut work.group, &Record::Refused(header));
        Ok(())
    }

    /// Forgets the bytes of a change that was refused once and is logged now.
    pub(super) fn release(&mut self, work: &mut Work, hash: ChangeHash) {
        self.auditor.kept.remove(&mut work.group.batch, hash);
    }

    /// Writes down what is claimed of somebody, when the last record about him says something else or is not known.
    fn note_claims(&mut self, work: &mut Work, principal: NameRef, claims: &Claims) -> Result<(), HistoryError> {
        if self.auditor.subjects.len() >= bounds::PRINCIPALS_MAX && !self.auditor.subjects.contains_key(&principal) {
            self.auditor.subjects.clear();
        }
        let lsn = self.appender.next();
        let known = self.auditor.subjects.entry(principal).or_default();
        if known.last == Some(claims.digest) {
            return Ok(());
        }
        known.last = Some(claims.digest);
        let earlier = known.texts.iter().find(|(digest, _)| *digest == claims.digest).map(|(_, at)| *at);
        let said = match (&claims.text, earlier) {
            (None, _) => record::Claims::TooLong(claims.digest),
            (Some(_), Some(at)) => record::Claims::As(lsn.0 - at.0),
            (Some(text), None) => {
                known.texts.push_back((claims.digest, lsn));
                if known.texts.len() > bounds::CLAIMS_REMEMBERED {
                    known.texts.pop_front();
                }
                record::Claims::Known(text.clone())
            }
        };
        let header = SubjectHeader { principal, claims: said, received_ms: work.now_ms };
        self.appender.push(&mut work.group, &Record::Subject(header));
        Ok(())
    }

    /// Writes down what is claimed of whoever a record is about to be written for.
    pub(super) fn note_writer(
        &mut self,
        work: &mut Work,
        origin: &Origin,
        principal: NameRef,
    ) -> Result<(), HistoryError> {
        match work.claims.clone() {
            Some(claims) if principal != 0 && claims.principal == origin.principal => {
                self.note_claims(work, principal, &claims)
            }
            _ => Ok(()),
        }
    }

    /// Writes down on whose behalf the statement in the record at `statement` was made, if on anybody's.
    pub(super) fn attribute(&mut self, work: &mut Work, origin: &Origin, statement: Lsn) -> Result<(), HistoryError> {
        if origin.principal.is_empty() && origin.rules_version == 0 {
            return Ok(());
        }
        let principal = self.principal(work, &origin.principal)?;
        self.note_writer(work, origin, principal)?;
        let header = AttributedHeader {
            statement: self.appender.next().0 - statement.0,
            principal,
            rules_version: origin.rules_version,
        };
        self.appender.push(&mut work.group, &Record::Attributed(header));
        Ok(())
    }
}

/// By what the same refusal is known again; what was asked for here never is.
fn identity_of(refusal: &Refusal) -> Option<[u8; 32]> {
    match &refusal.what {
        Refused::Change(change) => Some(change.hash().0),
        Refused::Statement(_, id) => id.map(|id| id.0),
        Refused::Edit => None,
    }
}
