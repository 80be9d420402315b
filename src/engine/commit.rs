//! Waiting for an append.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::oneshot;

use super::core::Admitted;
use crate::error::Error;
use crate::id::{ChangeHash, Lsn};

/// What the writer answers: what became of the input, and the footer that covers it.
pub(crate) type Answer = Result<(Admitted, Lsn), Error>;

/// An edit on its way to the disk. It resolves once the edit is logged at the database's durability.
///
/// The edit is made already: this process sees it. Dropping the commit does not undo it; it only means not to know
/// when, or whether, it became durable.
#[must_use = "the edit is durable only once this resolves"]
#[derive(Debug)]
pub struct Commit {
    answer: Option<oneshot::Receiver<Answer>>,
    change: Option<ChangeHash>,
}

/// An edit that is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The change that was made; `None` when the edit changed nothing, or only a lifecycle.
    pub change: Option<ChangeHash>,
    /// The footer of its commit group; zero when nothing was written.
    pub lsn: Lsn,
}

impl Commit {
    pub(super) fn nothing() -> Self {
        Self { answer: None, change: None }
    }

    pub(super) fn waiting(answer: oneshot::Receiver<Answer>, change: Option<ChangeHash>) -> Self {
        Self { answer: Some(answer), change }
    }

    /// The change that was made, if one was.
    #[must_use]
    pub fn change(&self) -> Option<ChangeHash> {
        self.change
    }

    /// Blocks this thread until the edit is durable.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] when the append failed, [`Error::Closed`] when the database went away first: the edit is
    /// then lost, unless a later opening finds it.
    pub fn wait(self) -> Result<Committed, Error> {
        block_on(self)
    }
}

impl Future for Commit {
    type Output = Result<Committed, Error>;

    /// # Cancel safety
    /// Dropping it loses nothing but the answer.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let change = self.change;
        let Some(answer) = &mut self.answer else {
            return Poll::Ready(Ok(Committed { change, lsn: Lsn::ZERO }));
        };
        match Pin::new(answer).poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(_)) => Poll::Ready(Err(Error::Closed)),
            Poll::Ready(Ok(Err(error))) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(Ok((admitted, lsn)))) => {
                if let Some((document, why)) = admitted.refused.into_iter().next() {
                    return Poll::Ready(Err(Error::Refused { document, why }));
                }
                Poll::Ready(Ok(Committed { change, lsn }))
            }
        }
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread, which sleeps in between. It needs no runtime.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
