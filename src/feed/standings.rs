//! Every document that changed after a place in the log, once, oldest change first: the rows of `by_seq` of all
//! collections, merged.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::error::Error;
use crate::history::Reader;
use crate::id::{CollectionKey, DocumentId, Lsn};
use crate::limits::feeds;

/// A walk over the documents that changed after a place, up to another.
pub(crate) struct Standings {
    reader: Reader,
    upto: Lsn,
    lanes: Vec<Lane>,
    /// The oldest of each lane that has one.
    next: BinaryHeap<Reverse<(Lsn, DocumentId, usize)>>,
    page: usize,
}

/// The documents of one collection that were read and not given yet.
struct Lane {
    collection: CollectionKey,
    read: VecDeque<(Lsn, DocumentId)>,
    /// Up to where they were read; `None` when there are no more.
    after: Option<Lsn>,
}

impl Standings {
    pub(super) fn new(reader: Reader, after: Lsn, upto: Lsn) -> Result<Self, Error> {
        let lanes = reader.collections()?.into_iter().map(|(_, name)| (name.key(), after)).collect();
        Self::over(reader, lanes, upto)
    }

    /// Those of some collections, each after a place of its own.
    pub(crate) fn over(reader: Reader, lanes: Vec<(CollectionKey, Lsn)>, upto: Lsn) -> Result<Self, Error> {
        let page = (feeds::STANDINGS_PER_READ / lanes.len().max(1)).max(1);
        let lane = |(collection, after)| Lane { collection, read: VecDeque::new(), after: Some(after) };
        let lanes: Vec<Lane> = lanes.into_iter().map(lane).collect();
        let mut walk = Self { reader, upto, next: BinaryHeap::with_capacity(lanes.len()), lanes, page };
        for at in 0..walk.lanes.len() {
            walk.offer(at)?;
        }
        Ok(walk)
    }

    /// The next document and its last record. One that changed meanwhile, past the walk's end, is not given.
    pub(crate) fn next(&mut self) -> Result<Option<(Lsn, DocumentId)>, Error> {
        let Some(Reverse((lsn, document, lane))) = self.next.pop() else { return Ok(None) };
        self.offer(lane)?;
        Ok(Some((lsn, document)))
    }

    fn offer(&mut self, at: usize) -> Result<(), Error> {
        let lane = &mut self.lanes[at];
        if let (true, Some(after)) = (lane.read.is_empty(), lane.after) {
            let rows = self.reader.collection(lane.collection, after, self.page)?;
            lane.after = rows.last().map(|(lsn, _)| *lsn).filter(|_| rows.len() == self.page);
            lane.read = rows.into();
        }
        if let Some((lsn, document)) = lane.read.pop_front()
            && lsn <= self.upto
        {
            self.next.push(Reverse((lsn, document, at)));
        }
        Ok(())
    }
}
