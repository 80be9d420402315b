//! A feed as a stream, for those who combine streams.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;

use super::changes::ChangeFeed;
use super::event::Item;
use crate::error::Error;

type Waiting = Pin<Box<dyn Future<Output = (ChangeFeed, Option<Result<Item, Error>>)> + Send>>;

/// The items of a feed. It ends when the database is closed, and after an error.
#[must_use = "a stream does nothing unless it is polled"]
pub struct ItemStream {
    /// The feed, while it looks for its next item; `None` after the last.
    waiting: Option<Waiting>,
}

impl ItemStream {
    pub(super) fn new(feed: ChangeFeed) -> Self {
        Self { waiting: Some(wait(feed)) }
    }
}

fn wait(mut feed: ChangeFeed) -> Waiting {
    Box::pin(async move {
        let item = feed.next().await;
        (feed, item)
    })
}

impl Stream for ItemStream {
    type Item = Result<Item, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(waiting) = &mut self.waiting else { return Poll::Ready(None) };
        let Poll::Ready((feed, item)) = waiting.as_mut().poll(context) else { return Poll::Pending };
        self.waiting = item.is_some().then(|| wait(feed));
        Poll::Ready(item)
    }
}
