//! The change feed: the log, replayed from a cursor and then followed.

use std::collections::VecDeque;
use std::task::Poll;

use tokio::sync::watch;

use super::cursor::FeedCursor;
use super::event::{Event, FeedDigest, Item, Opening, ResetReason};
use super::filter::Filter;
use super::standings::Standings;
use super::stream::ItemStream;
use super::teller::{Known, Teller, Told};
use crate::engine::{Collection, Database, DocHandle};
use crate::error::Error;
use crate::history::Reader;
use crate::id::{Chain, CollectionName, DocumentId, LogCursor, Lsn};
use crate::limits::feeds;
use crate::log::record::Record;

impl Database {
    /// Everything that happens to documents here, from the beginning of the log unless it is told otherwise.
    pub fn changes(&self) -> Changes {
        Changes { database: self.clone(), filter: Filter::Everything, since: Since::Beginning, coalesced: false }
    }
}

impl Collection {
    /// Everything that happens to documents of this collection; see [`Database::changes`].
    pub fn changes(&self) -> Changes {
        self.database().changes().filter(Filter::Collection(self.name().clone()))
    }
}

impl DocHandle {
    /// Everything that happens to this document; see [`Database::changes`].
    pub fn changes(&self) -> Changes {
        self.database().changes().document(self.id())
    }
}

/// How a feed is to be: of which documents, from where.
#[derive(Clone)]
#[must_use = "a feed tells nothing until it is opened"]
pub struct Changes {
    database: Database,
    filter: Filter,
    since: Since,
    coalesced: bool,
}

#[derive(Clone, Copy)]
enum Since {
    Beginning,
    Now,
    Cursor(FeedCursor),
    /// The beginning, for one who is to forget what he has.
    #[cfg(feature = "web")]
    Anew(ResetReason),
}

impl Changes {
    /// Of which documents. Default: all.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Of the documents of one collection, which need not exist yet.
    ///
    /// # Errors
    /// [`Error::Id`] when that is no name for a collection.
    pub fn collection(self, name: &str) -> Result<Self, Error> {
        let name = CollectionName::new(name)?;
        Ok(self.filter(Filter::Collection(name)))
    }

    /// Of one document, which need not exist yet.
    pub fn document(self, id: DocumentId) -> Self {
        self.filter(Filter::Document(id))
    }

    /// Goes on after `cursor`, wherever it is from: the first item says how.
    pub fn since(mut self, cursor: FeedCursor) -> Self {
        self.since = Since::Cursor(cursor);
        self
    }

    /// Tells only what happens from now on.
    pub fn since_now(mut self) -> Self {
        self.since = Since::Now;
        self
    }

    /// Does not tell how things came about between the cursor and now, only where each document that changed stands.
    pub fn coalesced(mut self) -> Self {
        self.coalesced = true;
        self
    }

    /// Tells everything anew, as to a cursor that is void.
    #[cfg(feature = "web")]
    pub(crate) fn anew(mut self, reason: ResetReason) -> Self {
        self.since = Since::Anew(reason);
        self
    }

    /// Of which documents it is.
    #[cfg(feature = "web")]
    pub(crate) fn documents(&self) -> &Filter {
        &self.filter
    }

    /// Opens the feed. It reads when it is asked for an item, at the pace of whoever asks; nothing is queued for it.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    pub fn open(self) -> Result<ChangeFeed, Error> {
        ChangeFeed::open(self)
    }
}

/// A feed under way. [`Self::next`] waits for what comes; [`Self::try_next`] does not; [`Self::into_stream`] is for
/// those who want a [`Stream`](futures_core::Stream).
///
/// After an error it tells nothing more; a new one goes on from [`Self::cursor`].
pub struct ChangeFeed {
    reader: Reader,
    tail: watch::Receiver<LogCursor>,
    teller: Teller,
    /// Documents are told as they stand, before records are read.
    standing: Option<Standing>,
    /// Of documents that left between what was known before that and its end, it may be that nobody has told yet.
    leaving: Option<(Known, Lsn)>,
    /// After the last item that was made.
    at: FeedCursor,
    /// Items that were made and not given yet: those of one reading.
    made: VecDeque<Item>,
    /// After the last item that was given.
    given: FeedCursor,
    /// Around the record of one document that was looked at last.
    groups: Groups,
    unreported: u64,
    has_told_caught_up: bool,
    has_ended: bool,
}

/// Documents as they stand, up to a place of the log.
struct Standing {
    walk: Standings,
    known: Known,
    to: LogCursor,
}

/// The commit group around the record that was looked at last.
#[derive(Default)]
struct Groups {
    before: (Lsn, Chain),
    end: Lsn,
}

impl ChangeFeed {
    fn open(changes: Changes) -> Result<Self, Error> {
        let Changes { database, filter, since, coalesced } = changes;
        let reader = database.reader().clone();
        let tail = database.tail();
        let end = reader.tail();
        let key = filter.key();
        let beginning = FeedCursor::beginning(end.log_id, key);
        let resumed = |from| match coalesced {
            true => Opening::Rebased { from, to: reached(&from, end) },
            false => Opening::Resumed { from },
        };
        let (opening, at) = match since {
            Since::Beginning => (resumed(beginning), beginning),
            Since::Now => {
                let now = reached(&beginning, end);
                (Opening::Resumed { from: now }, now)
            }
            #[cfg(feature = "web")]
            Since::Anew(reason) => (Opening::Reset { reason, to: reached(&beginning, end) }, beginning),
            Since::Cursor(cursor) => match place(&reader, &cursor)? {
                Ok(()) => {
                    let digest = if cursor.filter == key { cursor.digest } else { FeedDigest::default() };
                    let from = FeedCursor { log_id: end.log_id, digest, filter: key, ..cursor };
                    (resumed(from), from)
                }
                Err(reason) => (Opening::Reset { reason, to: reached(&beginning, end) }, beginning),
            },
        };
        let standing = if let Opening::Resumed { .. } = opening {
            None
        } else {
            let walk = Standings::new(reader.clone(), at.position, end.lsn)?;
            let known = Known { upto: at.position, is_nothing: at == beginning };
            Some(Standing { walk, known, to: end })
        };
        Ok(Self {
            teller: Teller::new(reader.clone(), filter),
            reader,
            tail,
            standing,
            leaving: None,
            at,
            made: VecDeque::from([Item::Opened(opening)]),
            given: at,
            groups: Groups::default(),
            unreported: 0,
            has_told_caught_up: false,
            has_ended: false,
        })
    }

    /// Where a new feed goes on after the last item that was given.
    #[must_use]
    pub fn cursor(&self) -> FeedCursor {
        self.given
    }

    /// The next item, once there is one; `None` when the database was closed, or after an error.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    ///
    /// # Cost
    /// Reads at most 512 records or 256 KiB at a time, on the thread that polls it: about a millisecond. Other tasks have
    /// their turn before it reads on.
    pub async fn next(&mut self) -> Option<Result<Item, Error>> {
        loop {
            match self.try_next().await {
                Ok(Some(item)) => return Some(Ok(item)),
                Ok(None) if self.has_ended => return None,
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
            self.has_ended = !self.wait().await;
        }
    }

    /// The next item, if there is one now; see [`Self::next`].
    ///
    /// # Errors
    /// As [`Self::next`].
    ///
    /// # Cancel safety
    /// As [`Self::next`].
    pub async fn try_next(&mut self) -> Result<Option<Item>, Error> {
        while self.made.is_empty() && self.make_more()? {
            give_way().await;
        }
        Ok(self.give())
    }

    /// Waits until more was logged than was read; `false` when the database was closed.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn wait(&mut self) -> bool {
        loop {
            let tail = *self.tail.borrow_and_update();
            if !self.made.is_empty() || self.at.position < tail.lsn {
                return true;
            }
            if self.tail.changed().await.is_err() {
                return false;
            }
        }
    }

    /// [`Self::try_next`], for a thread that may block.
    ///
    /// # Errors
    /// As [`Self::next`].
    ///
    /// # Cost
    /// A look through 65,536 records that have nothing to tell takes about a tenth of a second; then it says so.
    pub fn next_now(&mut self) -> Result<Option<Item>, Error> {
        while self.made.is_empty() && self.make_more()? {}
        Ok(self.give())
    }

    /// Reads once more; `false` when nothing comes of it for now.
    fn make_more(&mut self) -> Result<bool, Error> {
        if self.has_ended {
            return Ok(false);
        }
        self.read_on().inspect_err(|_| {
            // The cursor is before what was made of this reading.
            self.made.clear();
            self.has_ended = true;
        })
    }

    fn give(&mut self) -> Option<Item> {
        let item = self.made.pop_front();
        match &item {
            Some(Item::Event(event)) => self.given = event.cursor,
            Some(Item::Progress { cursor, .. }) => self.given = *cursor,
            Some(Item::Opened(_)) | None => {}
        }
        item
    }

    /// The feed as a stream.
    pub fn into_stream(self) -> ItemStream {
        ItemStream::new(self)
    }

    /// Makes items from what comes next; `false` when nothing does for now.
    fn read_on(&mut self) -> Result<bool, Error> {
        if let Some(standing) = self.standing.take() {
            return self.read_standings(standing).map(|()| true);
        }
        if let Filter::Document(id) = *self.teller.filter() {
            return self.read_document(id);
        }
        self.read_log()
    }

    fn read_standings(&mut self, mut standing: Standing) -> Result<(), Error> {
        for _ in 0..feeds::RECORDS_PER_READ {
            let Some((lsn, document)) = standing.walk.next()? else {
                self.leaving = Some((standing.known, self.reader.tail().lsn));
                self.at = reached(&self.at, standing.to);
                self.made.push_back(Item::Progress { cursor: self.at, caught_up: false });
                return Ok(());
            };
            let Some(row) = self.reader.row(document)?.filter(|row| row.last_lsn == lsn.0) else { continue };
            if let Some(told) = self.teller.standing(document, &row, standing.known)? {
                // Whoever stops in the middle has not heard of all, so the cursor stays where it was.
                let event = self.event(lsn, told);
                self.made.push_back(Item::Event(event));
            }
        }
        self.standing = Some(standing);
        Ok(())
    }

    fn read_log(&mut self) -> Result<bool, Error> {
        let after = self.at.position;
        let records = self.reader.read_records(after, feeds::BYTES_PER_READ, feeds::RECORDS_PER_READ)?;
        for (lsn, record) in records {
            if let Record::Footer(footer) = &record {
                (self.at.position, self.at.chain) = (lsn, Chain(footer.chain));
            } else {
                self.take(lsn, record)?;
            }
        }
        Ok(self.report(after))
    }

    fn read_document(&mut self, id: DocumentId) -> Result<bool, Error> {
        let after = self.at.position;
        let end = self.reader.tail();
        let positions = self.reader.positions(id, after, feeds::RECORDS_PER_READ)?;
        // Withdrawn changes have left the index. They were told, so up to where they gave way the log itself is read. Looked
        // at second: what was withdrawn in between was still among the positions.
        if self.reader.row(id)?.is_some_and(|row| row.generation > after.0) {
            return self.read_log();
        }
        let is_all = positions.len() < feeds::RECORDS_PER_READ;
        let mut bytes = 0;
        for lsn in positions {
            let Some(record) = self.reader.record(lsn)? else { continue };
            bytes += match &record {
                Record::Change(_, chunk) => chunk.len(),
                _ => 0,
            };
            self.at.chain = self.chain_before(lsn)?;
            self.take(lsn, record)?;
            if bytes > feeds::BYTES_PER_READ {
                return Ok(true);
            }
        }
        // What was appended since the end was looked at is still to come, and found from its cursor on.
        if is_all && self.at.position <= end.lsn {
            (self.at.position, self.at.chain) = (end.lsn, end.chain);
        }
        Ok(self.report(after))
    }

    /// The chain digest in the last footer before the record at `lsn`.
    fn chain_before(&mut self, lsn: Lsn) -> Result<Chain, Error> {
        if lsn <= self.groups.before.0 || lsn > self.groups.end {
            let before = self.reader.footer_before(lsn)?;
            let end = self.reader.footer_after(lsn)?.map_or(lsn, |(end, _)| end);
            self.groups = Groups { before, end };
        }
        Ok(self.groups.before.1)
    }

    fn take(&mut self, lsn: Lsn, record: Record) -> Result<(), Error> {
        self.at.position = lsn;
        let document = record.document();
        let mut told = self.teller.tell(lsn, record)?;
        if let (None, Some(id), Some((known, end))) = (&told, document, self.leaving)
            && lsn <= end
            && let Some(row) = self.reader.row(id)?
        {
            told = self.teller.standing(id, &row, known)?.filter(|told| is_gone(&told.kind));
        }
        if let Some(told) = told {
            let event = self.event(lsn, told);
            self.made.push_back(Item::Event(event));
        }
        Ok(())
    }

    /// Makes an event, and lets the feed's digest take it in.
    fn event(&mut self, lsn: Lsn, told: Told) -> Event {
        let Told { document, collection, received_ms, via, kind } = told;
        let (tag, subject) = kind.subject();
        self.at.digest = self.at.digest.after(tag, lsn, document, &subject);
        Event { position: lsn, cursor: self.at, document, collection, received_ms, via, kind }
    }

    /// Says how far the feed is when there is nothing else to say.
    fn report(&mut self, after: Lsn) -> bool {
        let end = self.reader.tail().lsn;
        let caught_up = self.at.position >= end;
        self.unreported = match self.made.back() {
            Some(_) => 0,
            None => self.unreported.saturating_add(self.at.position.0.saturating_sub(after.0)),
        };
        self.has_told_caught_up &= self.at.position == after;
        let says_caught_up = caught_up && !self.has_told_caught_up;
        if says_caught_up || self.unreported >= feeds::RECORDS_PER_PROGRESS {
            self.unreported = 0;
            self.has_told_caught_up = caught_up;
            self.made.push_back(Item::Progress { cursor: self.at, caught_up });
        }
        !self.made.is_empty() || !caught_up
    }
}

/// Lets other tasks of the thread have their turn.
async fn give_way() {
    let mut has_waited = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn is_gone(kind: &super::EventKind) -> bool {
    matches!(kind, super::EventKind::Standing(standing) if !standing.is_there)
}

/// `cursor`, moved to a place of the log.
fn reached(cursor: &FeedCursor, at: LogCursor) -> FeedCursor {
    FeedCursor { log_id: at.log_id, position: at.lsn, chain: at.chain, ..*cursor }
}

/// Whether everything that led to `cursor` is in this log too, and nothing that it does not know of came between.
fn place(reader: &Reader, cursor: &FeedCursor) -> Result<Result<(), ResetReason>, Error> {
    let end = reader.tail();
    let is_same_log = cursor.log_id == end.log_id;
    if cursor.position == Lsn::ZERO {
        return Ok(Ok(()));
    }
    let lost = if is_same_log { ResetReason::LostTail } else { ResetReason::OtherLog };
    if cursor.position > end.lsn {
        return Ok(Err(lost));
    }
    let (footer, chain) = reader.footer_before(cursor.position)?;
    // A log that has the same chain at the same place has the same records up to there, under whatever name. What came
    // after the last footer is proven by the log's name alone.
    let is_whole = is_same_log && reader.record(cursor.position)?.is_some();
    let is_proven = chain == cursor.chain && (is_whole || footer == cursor.position);
    Ok(if is_proven { Ok(()) } else { Err(lost) })
}
