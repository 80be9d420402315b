//! Projections: what a consumer makes of a feed inside the database, exactly once.

use super::changes::ChangeFeed;
use super::consumer::{Consumer, Place};
use super::event::{Item, Opening};
use super::rows::{Changed, RowsMut};
use crate::error::Error;
use crate::limits::feeds;

/// A consumer at work. What it makes of events is written in one batch with its place in the feed, so that each event
/// counts once, whenever the process ends.
///
/// When its place in the log is gone, its rows are removed before it hears of that, and it is told where each document
/// stands.
pub struct Projection {
    consumer: Consumer,
    place: Place,
    feed: ChangeFeed,
}

impl Consumer {
    /// Goes to work, from where it is.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read; otherwise as [`Consumer::acknowledge`].
    ///
    /// # Cancel safety
    /// A consumer that was to begin anew may have begun.
    pub async fn projection(&self) -> Result<Projection, Error> {
        let place = self.begin().await?;
        let feed = self.open(&place)?;
        Ok(Projection { consumer: self.clone(), place, feed })
    }
}

impl Projection {
    /// Takes in events as they come, until the database is closed. `take` is given each item in the order of the log, and
    /// the consumer's rows to change.
    ///
    /// # Errors
    /// Whatever `take` returns: what it made since the last write is dropped, and the items come again in a new
    /// projection. Otherwise as [`Self::catch_up`].
    ///
    /// # Cancel safety
    /// What is not written yet comes again in a new projection.
    pub async fn run(
        mut self,
        mut take: impl FnMut(&mut RowsMut<'_>, &Item) -> Result<(), Error>,
    ) -> Result<(), Error> {
        loop {
            self.catch_up(&mut take).await?;
            if !self.feed.wait().await {
                return Ok(());
            }
        }
    }

    /// Takes in what is in the log now, and returns when what was made of it is written.
    ///
    /// # Errors
    /// As [`Self::run`]; [`Error::History`] when the store cannot be read, [`Error::ConsumerMoved`] when another one runs
    /// under this name, [`Error::ReadOnly`], [`Error::StorageFull`], [`Error::Closed`] when nothing is written now. It
    /// is of no use after an error.
    ///
    /// # Cancel safety
    /// As [`Self::run`].
    pub async fn catch_up(
        &mut self,
        mut take: impl FnMut(&mut RowsMut<'_>, &Item) -> Result<(), Error>,
    ) -> Result<(), Error> {
        loop {
            let Some(first) = self.feed.try_next().await? else { return Ok(()) };
            if matches!(first, Item::Opened(Opening::Reset { .. })) {
                self.consumer.clear(&mut self.place).await?;
            }
            let mut changed = Changed::default();
            let mut events = self.place.row.events;
            let (mut next, mut taken) = (Some(first), 0);
            while let Some(item) = next.take() {
                take(&mut RowsMut::new(&self.consumer.database, self.consumer.name(), &mut changed), &item)?;
                events += u64::from(matches!(item, Item::Event(_)));
                taken += 1;
                if taken < feeds::EVENTS_PER_COMMIT && changed.bytes < feeds::BYTES_PER_COMMIT {
                    next = self.feed.try_next().await?;
                }
            }
            let batch = changed.into_batch(self.consumer.name());
            self.consumer.store(&mut self.place, self.feed.cursor(), events, batch).await?;
        }
    }
}
