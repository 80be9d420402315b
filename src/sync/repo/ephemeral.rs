//! Messages that are handed on to whoever has the document open, and never stored: presence, cursors, typing.
//!
//! They are lossy by design, so every bound here drops: what comes too fast, too large or twice, and what a slow socket
//! cannot take. Of what waits for a slow socket, a message that says the same as a later one of its author gives way to
//! that one, so that idle rooms, which only say that they are there, never fill a queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::wire::{Ephemeral, Message, Route};
use crate::id::DocumentId;
use crate::limits::Limits;

/// An ephemeral message on its way through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passing {
    /// The peer id of its author.
    pub author: String,
    /// The author's session.
    pub session: String,
    /// Its number there.
    pub count: u64,
    /// Which document it is about.
    pub document: DocumentId,
    /// A CBOR value of the application's, as it came.
    pub data: Vec<u8>,
}

impl Passing {
    /// The message as the peer called `target` is sent it.
    #[must_use]
    pub fn encode(&self, target: &str) -> Vec<u8> {
        Message::Ephemeral(Ephemeral {
            route: Route { sender: (&*self.author).into(), target: target.into() },
            document: self.document,
            count: self.count,
            session: (&*self.session).into(),
            data: (&*self.data).into(),
        })
        .encode()
    }
}

/// What one socket's client sends.
#[derive(Debug)]
pub(super) struct Intake {
    /// The last number of each of the client's sessions, the oldest session first.
    seen: VecDeque<(String, u64)>,
    /// How many may come now, in thousandths, and when that was so.
    allowance: (u64, Option<Instant>),
}

impl Intake {
    pub(super) fn new() -> Self {
        Self { seen: VecDeque::new(), allowance: (0, None) }
    }

    /// Takes a message of the client's own; `None` when it is not handed on.
    ///
    /// Its data must be a CBOR value: stock clients may end on bytes that are none.
    pub(super) fn take(&mut self, message: &Ephemeral<'_>, now: Instant, limits: &Limits) -> Option<Passing> {
        if message.data.len() > limits.repo_ephemeral_bytes || !self.spend(now, limits) {
            return None;
        }
        match self.seen.iter_mut().find(|(session, _)| *session == message.session) {
            Some((_, last)) if message.count <= *last => return None,
            Some((_, last)) => *last = message.count,
            None => {
                if self.seen.len() >= limits.repo_ephemeral_sessions {
                    self.seen.pop_front();
                }
                self.seen.push_back((message.session.to_string(), message.count));
            }
        }
        if !super::cbor::is_whole(&message.data, limits) {
            return None;
        }
        Some(Passing {
            author: message.route.sender.to_string(),
            session: message.session.to_string(),
            count: message.count,
            document: message.document,
            data: message.data.to_vec(),
        })
    }

    /// A bucket that fills with time.
    fn spend(&mut self, now: Instant, limits: &Limits) -> bool {
        let rate = u64::from(limits.repo_ephemeral_rate);
        let full = rate * 1000;
        let (left, since) = self.allowance;
        let left = since.map_or(full, |since| {
            let ms = u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX);
            left.saturating_add(ms.saturating_mul(rate)).min(full)
        });
        self.allowance = (left.saturating_sub(1000), Some(now));
        left >= 1000
    }
}

/// What waits for one socket.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Arc<Passing>>,
    bytes: usize,
}

impl Queue {
    pub(super) fn push(&mut self, passing: Arc<Passing>, limits: &Limits) {
        let is_same = |other: &Arc<Passing>| {
            (&other.author, other.document, &other.data) == (&passing.author, passing.document, &passing.data)
        };
        if let Some(at) = self.waiting.iter().position(is_same) {
            self.remove(at);
        }
        self.bytes += weight(&passing);
        self.waiting.push_back(passing);
        while self.waiting.len() > limits.repo_ephemeral_queue || self.bytes > limits.repo_ephemeral_queue_bytes {
            let Some(at) = self.oldest_of_loudest() else { break };
            self.remove(at);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Arc<Passing>> {
        self.remove(0)
    }

    fn remove(&mut self, at: usize) -> Option<Arc<Passing>> {
        let passing = self.waiting.remove(at)?;
        self.bytes -= weight(&passing);
        Some(passing)
    }

    /// The oldest message of the author with the most.
    fn oldest_of_loudest(&self) -> Option<usize> {
        let mut counts: std::collections::HashMap<&str, (usize, usize)> = std::collections::HashMap::new();
        for (at, passing) in self.waiting.iter().enumerate() {
            counts.entry(&passing.author).or_insert((0, at)).0 += weight(passing);
        }
        counts.into_values().max_by_key(|(bytes, at)| (*bytes, usize::MAX - at)).map(|(_, at)| at)
    }
}

/// What a message weighs in a queue.
fn weight(passing: &Passing) -> usize {
    passing.data.len() + passing.author.len() + passing.session.len() + 128
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn message(session: &str, count: u64, data: &[u8]) -> Ephemeral<'static> {
        Ephemeral {
            route: Route { sender: "a".into(), target: "s".into() },
            document: DocumentId([1; 16]),
            count,
            session: session.to_owned().into(),
            data: data.to_vec().into(),
        }
    }

    fn passing(author: &str, data: &[u8]) -> Arc<Passing> {
        let document = DocumentId([1; 16]);
        Arc::new(Passing { author: author.into(), session: "s".into(), count: 1, document, data: data.into() })
    }

    #[test]
    fn a_number_is_handed_on_once_and_never_after_a_greater_one() {
        let (mut intake, now, limits) = (Intake::new(), Instant::now(), Limits::DEFAULT);
        assert!(intake.take(&message("x", 1, b"\x01"), now, &limits).is_some());
        assert!(intake.take(&message("x", 1, b"\x01"), now, &limits).is_none());
        assert!(intake.take(&message("x", 5, b"\x01"), now, &limits).is_some());
        assert!(intake.take(&message("x", 4, b"\x01"), now, &limits).is_none());
        assert!(intake.take(&message("y", 4, b"\x01"), now, &limits).is_some());
        for none in [&b""[..], b"\x81", b"\x01\x01", b"\xff"] {
            assert!(intake.take(&message("z", 1, none), now, &limits).is_none(), "no value: {none:?}");
        }
        assert!(intake.take(&message("y", 5, &vec![0; limits.repo_ephemeral_bytes + 1]), now, &limits).is_none());
        for n in 0..100 {
            intake.take(&message(&n.to_string(), 1, b"\x01"), now, &limits);
        }
        assert_eq!(intake.seen.len(), limits.repo_ephemeral_sessions);
    }

    #[test]
    fn what_comes_too_fast_is_dropped_until_time_has_passed() {
        let (mut intake, now, limits) = (Intake::new(), Instant::now(), Limits::DEFAULT);
        let rate = u64::from(limits.repo_ephemeral_rate);
        let passed = (1..=3 * rate).filter(|n| intake.take(&message("x", *n, b"\x01"), now, &limits).is_some()).count();
        assert_eq!(passed as u64, rate);
        let later = now + Duration::from_millis(100);
        let passed = (1001..=1000 + rate).filter(|n| intake.take(&message("x", *n, b"\x01"), later, &limits).is_some());
        assert_eq!(passed.count() as u64, rate / 10);
    }

    #[test]
    fn a_slow_socket_keeps_the_newest_and_of_everybody_something() {
        let limits = Limits { repo_ephemeral_queue: 8, ..Limits::DEFAULT };
        let mut queue = Queue::default();
        queue.push(passing("quiet", b"here"), &limits);
        for n in 0..100_u8 {
            queue.push(passing("loud", &[n]), &limits);
        }
        assert_eq!(queue.waiting.len(), 8);
        let authors: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|passing| passing.author.clone()).collect();
        assert_eq!(authors.iter().filter(|author| *author == "quiet").count(), 1);
        assert_eq!(queue.bytes, 0);
        for _ in 0..100 {
            queue.push(passing("idle", b"heartbeat"), &limits);
        }
        assert_eq!(queue.waiting.len(), 1, "what says the same gives way");
    }
}
