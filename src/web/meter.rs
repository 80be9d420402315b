//! What a socket reads, counted: how much of an unfinished message it holds, and whether anything comes at all.
//!
//! A WebSocket message is gathered in memory until it is whole, and a client may send 64 MiB of it and stop. Each socket
//! may hold [`FREE`] bytes of an unfinished message; what goes beyond is taken from a budget of all sockets, and waits
//! until there is room. It is given back when the session has taken the message and wants the next.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Bytes of an unfinished message that a socket may hold without asking.
pub(super) const FREE: usize = 64 << 10;
/// What is taken from the budget at a time.
const GRANT: usize = 256 << 10;
/// Frame headers, pings and what follows a message in the same read, beside the message itself.
const SLACK: usize = 16 << 10;

/// The budget of all sockets of a server.
#[derive(Clone)]
pub(super) struct ReceiveBudget(Arc<Semaphore>);

impl ReceiveBudget {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new((bytes / GRANT).max(1))))
    }
}

/// What a socket's task and its stream tell each other.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// The longest message that may come now.
    message_max: AtomicUsize,
    /// Bytes read since the last whole message.
    unfinished: AtomicUsize,
    /// Bytes read ever.
    read: AtomicU64,
    /// The last message was taken, and what it held may be given back.
    taken: AtomicBool,
}

impl Meter {
    /// Says how long a message may be from now on.
    pub(super) fn set_message_max(&self, bytes: usize) {
        self.message_max.store(bytes, Ordering::Relaxed);
    }

    /// Takes note that a message is whole.
    pub(super) fn message_taken(&self) {
        self.unfinished.store(0, Ordering::Relaxed);
        self.taken.store(true, Ordering::Relaxed);
    }

    /// Bytes read since the last whole message.
    pub(super) fn unfinished(&self) -> usize {
        self.unfinished.load(Ordering::Relaxed)
    }

    /// Bytes read ever.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

type Acquiring = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// A stream that is metered as it is read.
pub(super) struct Metered<S> {
    stream: S,
    meter: Arc<Meter>,
    budget: ReceiveBudget,
    granted: Option<OwnedSemaphorePermit>,
    acquiring: Option<Acquiring>,
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S, meter: Arc<Meter>, budget: ReceiveBudget) -> Self {
        Self { stream, meter, budget, granted: None, acquiring: None }
    }

    /// The stream itself, for whoever keeps nothing of what it reads.
    pub(super) fn unmetered(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Waits until bytes may be held, and says how many.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.meter.taken.swap(false, Ordering::Relaxed) {
            // The session wants to read again: it has the last message behind it.
            self.granted = None;
        }
        let unfinished = self.meter.unfinished();
        if unfinished > self.meter.message_max.load(Ordering::Relaxed).saturating_add(SLACK) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long")));
        }
        let held = FREE + self.granted.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) * GRANT;
        if unfinished < held {
            return Poll::Ready(Ok(held - unfinished));
        }
        let acquiring = self.acquiring.get_or_insert_with(|| Box::pin(self.budget.0.clone().acquire_owned()));
        let permit = ready!(acquiring.as_mut().poll(context)).map_err(io::Error::other)?;
        self.acquiring = None;
        match &mut self.granted {
            Some(granted) => granted.merge(permit),
            None => self.granted = Some(permit),
        }
        Poll::Ready(Ok(held + GRANT - unfinished))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let room = ready!(this.poll_room(context))?;
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(room.min(buffer.remaining())));
        ready!(Pin::new(&mut this.stream).poll_read(context, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        this.meter.unfinished.fetch_add(read, Ordering::Relaxed);
        this.meter.read.fetch_add(read as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_unfinished_is_taken_from_the_budget_and_given_back() {
        let budget = ReceiveBudget::new(GRANT);
        let (mut sender, receiver) = tokio::io::duplex(2 * GRANT);
        let meter = Arc::new(Meter::default());
        meter.set_message_max(10 * GRANT);
        let mut first = Metered::new(receiver, meter.clone(), budget.clone());
        sender.write_all(&vec![0; GRANT]).await.unwrap();
        first.read_exact(&mut vec![0; GRANT]).await.unwrap();
        assert_eq!(budget.0.available_permits(), 0);

        let (mut sender, receiver) = tokio::io::duplex(2 * GRANT);
        let other = Arc::new(Meter::default());
        other.set_message_max(10 * GRANT);
        let mut second = Metered::new(receiver, other, budget.clone());
        sender.write_all(&vec![0; GRANT]).await.unwrap();
        second.read_exact(&mut vec![0; FREE]).await.unwrap();
        let second = tokio::spawn(async move { second.read_exact(&mut [0; 1]).await.map(|_| ()) });
        tokio::task::yield_now().await;
        assert!(!second.is_finished(), "there is no room");

        meter.message_taken();
        // The first reads on, and what it held is the second's.
        let first = tokio::spawn(async move { first.read_exact(&mut [0; 1]).await.map(|_| ()) });
        second.await.unwrap().unwrap();
        first.abort();
    }

    #[tokio::test]
    async fn a_message_longer_than_it_may_be_ends_the_reading() {
        let (mut sender, receiver) = tokio::io::duplex(1 << 20);
        let meter = Arc::new(Meter::default());
        meter.set_message_max(100);
        let mut metered = Metered::new(receiver, meter.clone(), ReceiveBudget::new(1 << 30));
        sender.write_all(&vec![0; SLACK + 200]).await.unwrap();
        metered.read_exact(&mut vec![0; SLACK + 101]).await.unwrap();
        assert!(metered.read_exact(&mut [0; 1]).await.is_err());
        meter.message_taken();
        assert!(metered.read_exact(&mut [0; 1]).await.is_ok());
        assert_eq!(meter.read(), (SLACK + 102) as u64);
    }
}
