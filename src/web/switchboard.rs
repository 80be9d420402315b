//! What connects the sockets of a server: the hub, a mailbox for each socket, and the task that follows the log.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, broadcast};

use crate::engine::Database;
use crate::id::DocumentId;
use crate::limits::queues;
use crate::sync::repo::{Hub, Notice, RepoEvent, SocketId};

/// The hub and the mailboxes of one server.
pub(super) struct Switchboard {
    // Protects who is there. Held for look-ups and marks, never while anything is encoded, read or sent.
    inner: Mutex<Inner>,
}

struct Inner {
    hub: Hub,
    mailboxes: HashMap<SocketId, Arc<Mailbox>>,
    next: u64,
}

/// What waits for one socket's task.
#[derive(Default)]
pub(super) struct Mailbox {
    mail: Mutex<Mail>,
    arrived: Notify,
}

/// What a socket's session is to be told.
#[derive(Default)]
pub(super) struct Mail {
    /// Documents that changed: no more than the socket has open.
    pub(super) changed: BTreeSet<DocumentId>,
    /// Any document may have changed.
    pub(super) lagged: bool,
    /// What the hub says, in order.
    pub(super) notices: VecDeque<Notice>,
}

impl Mailbox {
    /// Waits until something may be there.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Takes all that is there.
    pub(super) fn take(&self) -> Mail {
        std::mem::take(&mut *self.lock())
    }

    fn put(&self, notice: Notice) {
        let mut mail = self.lock();
        // What may be lost is lost rather than piled up; who may be here must be heard.
        let is_lossy = matches!(notice, Notice::Ephemeral(_) | Notice::Heads(_));
        if is_lossy && mail.notices.len() >= queues::SOCKET_NOTICES {
            return;
        }
        mail.notices.push_back(notice);
        drop(mail);
        self.arrived.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Switchboard {
    pub(super) fn new(remembered_max: usize) -> Self {
        let inner = Inner { hub: Hub::new(remembered_max), mailboxes: HashMap::new(), next: 0 };
        Self { inner: Mutex::new(inner) }
    }

    /// Gives a new socket its name and mailbox.
    pub(super) fn open(&self) -> (SocketId, Arc<Mailbox>) {
        let mut inner = self.lock();
        inner.next += 1;
        let (socket, mailbox) = (SocketId(inner.next), Arc::new(Mailbox::default()));
        inner.mailboxes.insert(socket, mailbox.clone());
        (socket, mailbox)
    }

    /// How many sockets are open.
    pub(super) fn sockets(&self) -> usize {
        self.lock().mailboxes.len()
    }

    /// Takes what a socket's session put out.
    pub(super) fn handle(&self, from: SocketId, event: RepoEvent) {
        let mut inner = self.lock();
        for (to, notice) in inner.hub.handle(from, event) {
            if let Some(mailbox) = inner.mailboxes.get(&to) {
                mailbox.put(notice);
            }
        }
    }

    /// Takes note that a socket is closed.
    pub(super) fn closed(&self, socket: SocketId) {
        let mut inner = self.lock();
        inner.hub.handle_closed(socket);
        inner.mailboxes.remove(&socket);
    }

    fn changed(&self, documents: &[DocumentId]) {
        let inner = self.lock();
        for document in documents {
            for socket in inner.hub.changed(*document) {
                if let Some(mailbox) = inner.mailboxes.get(&socket) {
                    mailbox.lock().changed.insert(*document);
                    mailbox.arrived.notify_one();
                }
            }
        }
    }

    fn lagged(&self) {
        for mailbox in self.lock().mailboxes.values() {
            mailbox.lock().lagged = true;
            mailbox.arrived.notify_one();
        }
    }

    /// Marks what changes in the log for the sockets that have it open, for as long as the database is there.
    pub(super) async fn follow(&self, database: Database) {
        let mut groups = database.changed_documents();
        // The listening must not keep the database open.
        drop(database);
        loop {
            match groups.recv().await {
                Ok(documents) => self.changed(&documents),
                Err(broadcast::error::RecvError::Lagged(_)) => self.lagged(),
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::repo::Passing;

    fn joined(board: &Switchboard, peer: &str) -> (SocketId, Arc<Mailbox>) {
        let (socket, mailbox) = board.open();
        board.handle(socket, RepoEvent::Joined { peer: peer.into(), principal: String::new() });
        assert_eq!(mailbox.take().notices, [Notice::Welcome]);
        (socket, mailbox)
    }

    #[test]
    fn a_document_is_marked_once_for_whoever_has_it_open_and_for_nobody_else() {
        let board = Switchboard::new(8);
        let (reader, reads) = joined(&board, "reader");
        let (_, other) = joined(&board, "other");
        let document = DocumentId([1; 16]);
        board.handle(reader, RepoEvent::Opened(document));
        for _ in 0..1000 {
            board.changed(&[document, DocumentId([2; 16])]);
        }
        assert_eq!(reads.take().changed.into_iter().collect::<Vec<_>>(), [document]);
        assert!(reads.take().changed.is_empty() && other.take().changed.is_empty());
        board.lagged();
        assert!(reads.take().lagged && other.take().lagged);
        board.closed(reader);
        board.changed(&[document]);
        assert!(reads.take().changed.is_empty());
        assert_eq!(board.sockets(), 1);
    }

    #[test]
    fn a_mailbox_nobody_empties_stays_bounded_and_still_hears_that_it_is_replaced() {
        let board = Switchboard::new(8);
        let document = DocumentId([1; 16]);
        let (slow, mailbox) = joined(&board, "slow");
        let (loud, _) = joined(&board, "loud");
        for socket in [slow, loud] {
            board.handle(socket, RepoEvent::Opened(document));
        }
        let (author, session, data) = ("loud".to_owned(), "s".to_owned(), vec![1]);
        let passing = Arc::new(Passing { author, session, count: 1, document, data });
        for _ in 0..10 * queues::SOCKET_NOTICES {
            board.handle(loud, RepoEvent::Ephemeral(passing.clone()));
        }
        let (_, newer) = board.open();
        board.handle(SocketId(3), RepoEvent::Joined { peer: "slow".into(), principal: String::new() });
        assert_eq!(newer.take().notices, [Notice::Welcome]);
        let notices = mailbox.take().notices;
        assert_eq!(notices.len(), queues::SOCKET_NOTICES + 1);
        assert_eq!(notices.back(), Some(&Notice::Replaced));
    }
}
