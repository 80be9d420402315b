//! A document, one client who edits it, and clients who follow it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::Failure;
use crate::client::{Board, Client, Handler, Link};
use crate::documents::Authored;
use crate::sync::{self, Hash, Replica};
use crate::wire::Incoming;

/// In which the server must have taken the document and handed it to every reader.
const OPEN_MAX: Duration = Duration::from_secs(120);

/// When which edit was sent, and when the last reader had it.
#[derive(Debug)]
pub struct Progress {
    sent: Vec<Instant>,
    /// Readers that lack it, for each edit that was sent.
    missing: Vec<usize>,
    /// Edits that every reader has.
    pub delivered: usize,
    /// From sending to the last reader, edit by edit.
    pub latencies: Vec<Duration>,
}

/// A document with its clients.
pub struct Room {
    pub progress: Rc<RefCell<Progress>>,
    author: Client,
    readers: Vec<Client>,
    authored: Rc<RefCell<AuthorState>>,
}

impl Room {
    /// Brings the document to the server and as many readers to the document.
    pub async fn open(url: &str, document: Authored, readers: usize, board: &Rc<Board>) -> Result<Self, Failure> {
        let document = Rc::new(document);
        let (mut room, base) = Self::bring(url, &document, board).await?;
        let at: FxHashMap<Hash, usize> = document.edits.iter().zip(1..).map(|(edit, at)| (edit.hash, at)).collect();
        let at = Rc::new(at);
        let ready = Rc::new(RefCell::new(0));
        for n in 0..readers {
            let (id, replica) = (document.id.clone(), Replica::default());
            let (ready, progress, board) = (ready.clone(), room.progress.clone(), board.clone());
            let reader = Reader { id, replica, base, has: 0, is_ready: false, ready, at: at.clone(), progress, board };
            room.readers.push(request(url, n, reader).await?);
        }
        if !board.until(OPEN_MAX, || *ready.borrow() == readers).await? {
            let ready = *ready.borrow();
            return Err(format!("{ready} of {readers} readers have the document after {OPEN_MAX:?}").into());
        }
        room.progress.borrow_mut().missing = vec![readers; document.edits.len()];
        Ok(room)
    }

    /// Brings the document to the server.
    pub async fn bring(url: &str, document: &Rc<Authored>, board: &Rc<Board>) -> Result<(Self, Hash), Failure> {
        let (began, base) = (Instant::now(), document.base.hash);
        let at = document.edits.iter().zip(1..).map(|(edit, at)| (edit.hash, at)).collect();
        let state =
            AuthorState { document: document.clone(), at, sent: 0, acknowledged: None, owes: false, has_base: false };
        let authored = Rc::new(RefCell::new(state));
        let author = loop {
            let handler = Author { state: authored.clone(), board: board.clone() };
            let author = Client::connect(url, &format!("author-{}", document.id), board, handler).await?;
            let data = sync::write(&[base], &[], &[], &[base], &[]);
            author.send(author.link.sync(&document.id, &data))?;
            match board.until(OPEN_MAX, || authored.borrow().acknowledged.is_some()).await {
                Ok(true) => break author,
                Ok(false) => return Err(format!("the document is not acknowledged after {OPEN_MAX:?}").into()),
                Err(_) if began.elapsed() < OPEN_MAX => {
                    // The JavaScript servers close every socket that they did not look at for 5 s, as when they read
                    // the paper. A client comes again, so do we.
                    board.forgive();
                    authored.borrow_mut().has_base = false;
                }
                Err(failure) => return Err(failure),
            }
        };
        let progress = Progress { sent: Vec::new(), missing: Vec::new(), delivered: 0, latencies: Vec::new() };
        let progress = Rc::new(RefCell::new(progress));
        Ok((Self { progress, author, readers: Vec::new(), authored }, base))
    }

    /// Sends the next edit, which was due at `due`.
    pub fn edit(&self, due: Instant) -> Result<(), Failure> {
        let data = self.authored.borrow_mut().next().ok_or("no edit is left")?;
        self.progress.borrow_mut().sent.push(due);
        let id = &self.authored.borrow().document.id;
        self.author.send(self.author.link.sync(id, &data))
    }
}

async fn request(url: &str, number: usize, mut reader: Reader) -> Result<Client, Failure> {
    let (id, board) = (reader.id.clone(), reader.board.clone());
    let first = reader.replica.request();
    let client = Client::connect(url, &format!("reader-{number}-{id}"), &board, reader).await?;
    client.send(client.link.request(&id, &first))?;
    Ok(client)
}

#[derive(Debug)]
struct AuthorState {
    document: Rc<Authored>,
    /// Which edit has which name; the base is 0.
    at: FxHashMap<Hash, usize>,
    sent: usize,
    /// The newest edit that the server has said to have.
    acknowledged: Option<usize>,
    /// The server has said something that is not what we have.
    owes: bool,
    /// The base was sent.
    has_base: bool,
}

impl AuthorState {
    fn hash(&self, at: usize) -> Hash {
        at.checked_sub(1).map_or(self.document.base.hash, |at| self.document.edits[at].hash)
    }

    /// The message that carries the next edit.
    fn next(&mut self) -> Option<Vec<u8>> {
        let edit = self.document.edits.get(self.sent)?;
        self.sent += 1;
        self.owes = false;
        Some(self.message(&[&edit.bytes]))
    }

    fn message(&self, chunks: &[&[u8]]) -> Vec<u8> {
        let shared = self.acknowledged.unwrap_or(0);
        let since: Vec<Hash> = (shared + 1..=self.sent).map(|at| self.hash(at)).collect();
        sync::write(&[self.hash(self.sent)], &[], &[self.hash(shared)], &since, chunks)
    }
}

struct Author {
    state: Rc<RefCell<AuthorState>>,
    board: Rc<Board>,
}

impl Handler for Author {
    fn handle(&mut self, _at: Instant, message: &Incoming<'_>) -> Result<(), Failure> {
        if message.kind != "sync" {
            return Ok(());
        }
        let mut state = self.state.borrow_mut();
        let said = sync::read(message.data).ok_or("the server sent a malformed sync message")?;
        let known = match said.heads[..] {
            [head] if head == state.document.base.hash => Some(0),
            [head] => state.at.get(&head).copied(),
            _ => None,
        };
        if let Some(known) = known {
            let before = state.acknowledged.unwrap_or(0);
            state.acknowledged = Some(before.max(known));
            self.board.note();
        }
        state.owes = known != Some(state.sent);
        Ok(())
    }

    fn answer(&mut self, link: &Link, out: &mut Vec<Vec<u8>>) -> Result<(), Failure> {
        let mut state = self.state.borrow_mut();
        if std::mem::take(&mut state.owes) {
            let is_sent = std::mem::replace(&mut state.has_base, true);
            let base: &[u8] = &state.document.base.bytes;
            let chunks: &[&[u8]] = if is_sent || state.acknowledged.is_some() { &[] } else { &[base] };
            out.push(link.sync(&state.document.id, &state.message(chunks)));
        }
        Ok(())
    }
}

struct Reader {
    id: String,
    replica: Replica,
    base: Hash,
    /// Edits that it has.
    has: usize,
    is_ready: bool,
    ready: Rc<RefCell<usize>>,
    at: Rc<FxHashMap<Hash, usize>>,
    progress: Rc<RefCell<Progress>>,
    board: Rc<Board>,
}

impl Handler for Reader {
    fn handle(&mut self, at: Instant, message: &Incoming<'_>) -> Result<(), Failure> {
        if message.kind != "sync" {
            return Ok(());
        }
        let said = sync::read(message.data).ok_or("the server sent a malformed sync message")?;
        self.replica.receive(said).ok_or("the server sent a malformed change")?;
        let [head] = self.replica.heads() else { return Ok(()) };
        if *head == self.base && !self.is_ready {
            self.is_ready = true;
            *self.ready.borrow_mut() += 1;
            self.board.note();
        }
        let Some(has) = self.at.get(head).copied() else { return Ok(()) };
        let mut progress = self.progress.borrow_mut();
        for edit in self.has..has {
            progress.missing[edit] -= 1;
            if progress.missing[edit] == 0 {
                progress.delivered += 1;
                let latency = at.saturating_duration_since(progress.sent[edit]);
                progress.latencies.push(latency);
                self.board.note();
            }
        }
        self.has = self.has.max(has);
        Ok(())
    }

    fn answer(&mut self, link: &Link, out: &mut Vec<Vec<u8>>) -> Result<(), Failure> {
        if let Some(data) = self.replica.answer() {
            out.push(link.sync(&self.id, &data));
        }
        Ok(())
    }
}
