//! Many small documents: one client pushes them all, another pulls them all.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use super::{LOAD_MAX, Setting};
use crate::Failure;
use crate::client::{Board, Client, Handler, Link};
use crate::documents::{self, Authored};
use crate::report::{Better, Sheet};
use crate::server::{Kind, Server, Stretch};
use crate::sync::{self, Replica};
use crate::wire::Incoming;

/// Documents that are under way at once.
const WINDOW: usize = 256;

pub async fn run(kind: Kind, count: usize, setting: &Setting, sheet: &mut Sheet<'_>) -> Result<(), Failure> {
    let documents = Rc::new(documents::small(count)?);
    let server = Server::start(kind, &setting.places).await?;
    let stretch = Stretch::begin(&server)?;
    let (_author, pushed) = push(&server.url, &documents).await?;
    note(sheet, "push", stretch, pushed, count).await?;
    if pushed == count {
        let stretch = Stretch::begin(&server)?;
        let (_reader, pulled) = pull(&server.url, &documents).await?;
        note(sheet, "pull", stretch, pulled, count).await?;
    } else {
        for (figure, unit) in [("pull", "documents/s"), ("pull, server CPU", "us a document")] {
            sheet.noted(figure, unit, Better::Higher, None, "the push did not end", 0.0);
        }
    }
    server.stop().await
}

async fn note(
    sheet: &mut Sheet<'_>,
    what: &str,
    stretch: Stretch<'_>,
    done: usize,
    count: usize,
) -> Result<(), Failure> {
    let cost = stretch.end().await?;
    let note = if done == count { String::new() } else { format!("{done} of {count} in {LOAD_MAX:?}") };
    let rate = done as f64 / cost.wall.as_secs_f64();
    sheet.noted(what, "documents/s", Better::Higher, Some(rate), &note, cost.driver);
    let cpu = cost.cpu.as_secs_f64() * 1e6 / done as f64;
    sheet.noted(&format!("{what}, server CPU"), "us a document", Better::Lower, Some(cpu), &note, cost.driver);
    Ok(())
}

/// Pushes every document from one client; gives the client and how many the server has acknowledged.
pub async fn push(url: &str, documents: &Rc<Vec<Authored>>) -> Result<(Client, usize), Failure> {
    all(url, documents, |documents, at| {
        Box::new(Pushed { documents: documents.clone(), at, is_sent: false, their: None, is_done: false })
    })
    .await
}

/// Pulls every document to one client; gives the client and how many have come.
pub async fn pull(url: &str, documents: &Rc<Vec<Authored>>) -> Result<(Client, usize), Failure> {
    all(url, documents, |documents, at| {
        Box::new(Pulled { documents: documents.clone(), at, replica: Replica::default(), is_asked: false })
    })
    .await
}

/// One document of a client.
trait Copy {
    fn receive(&mut self, data: &[u8]) -> Option<()>;
    /// What is to be said, and whether as a request.
    fn say(&mut self) -> Option<(bool, Vec<u8>)>;
    fn is_done(&self) -> bool;
}

async fn all(
    url: &str,
    documents: &Rc<Vec<Authored>>,
    make: fn(&Rc<Vec<Authored>>, usize) -> Box<dyn Copy>,
) -> Result<(Client, usize), Failure> {
    let (board, done) = (Rc::new(Board::default()), Rc::new(RefCell::new(0)));
    let by_id = documents.iter().zip(0..).map(|(document, at)| (document.id.clone(), at)).collect();
    let many = Many {
        documents: documents.clone(),
        by_id,
        copies: (0..documents.len()).map(|at| make(documents, at)).collect(),
        changed: Vec::new(),
        started: 0,
        finished: 0,
        done: done.clone(),
        board: board.clone(),
    };
    let client = Client::connect(url, &format!("many-{}", documents::fresh_id()), &board, many).await?;
    client.start();
    let count = documents.len();
    board.until(LOAD_MAX, || *done.borrow() == count).await?;
    let done = *done.borrow();
    Ok((client, done))
}

struct Many {
    documents: Rc<Vec<Authored>>,
    by_id: HashMap<String, usize>,
    copies: Vec<Box<dyn Copy>>,
    /// Documents of which something came since the last answer.
    changed: Vec<usize>,
    started: usize,
    finished: usize,
    done: Rc<RefCell<usize>>,
    board: Rc<Board>,
}

impl Handler for Many {
    fn handle(&mut self, _at: Instant, message: &Incoming<'_>) -> Result<(), Failure> {
        if message.kind != "sync" {
            return Ok(());
        }
        let at = *self.by_id.get(message.document).ok_or("the server speaks of a document that nobody has")?;
        let copy = &mut self.copies[at];
        let before = copy.is_done();
        copy.receive(message.data).ok_or("the server sent a malformed message")?;
        if !before && copy.is_done() {
            self.finished += 1;
        }
        self.changed.push(at);
        Ok(())
    }

    fn answer(&mut self, link: &Link, out: &mut Vec<Vec<u8>>) -> Result<(), Failure> {
        while self.started < self.documents.len() && self.started - self.finished < WINDOW {
            self.changed.push(self.started);
            self.started += 1;
        }
        for at in self.changed.drain(..) {
            if let Some((is_request, data)) = self.copies[at].say() {
                let id = &self.documents[at].id;
                out.push(if is_request { link.request(id, &data) } else { link.sync(id, &data) });
            }
        }
        *self.done.borrow_mut() = self.finished;
        self.board.note();
        Ok(())
    }
}

/// A document that the server is to have. The first message says what there is, the second brings it, as stock clients
/// do it.
struct Pushed {
    documents: Rc<Vec<Authored>>,
    at: usize,
    is_sent: bool,
    /// The server's heads are ours, when it said something since we did.
    their: Option<bool>,
    is_done: bool,
}

impl Copy for Pushed {
    fn receive(&mut self, data: &[u8]) -> Option<()> {
        let said = sync::read(data)?;
        let is_same = said.heads == [self.documents[self.at].base.hash];
        self.is_done |= is_same;
        self.their = Some(is_same);
        Some(())
    }

    fn say(&mut self) -> Option<(bool, Vec<u8>)> {
        let base = &self.documents[self.at].base;
        let heads = [base.hash];
        match self.their.take() {
            Some(true) => None,
            Some(false) if !self.is_sent => {
                self.is_sent = true;
                Some((false, sync::write(&heads, &[], &[], &heads, &[&base.bytes])))
            }
            _ => Some((false, sync::write(&heads, &[], &[], &heads, &[]))),
        }
    }

    fn is_done(&self) -> bool {
        self.is_done
    }
}

/// A document that the client is to have.
struct Pulled {
    documents: Rc<Vec<Authored>>,
    at: usize,
    replica: Replica,
    is_asked: bool,
}

impl Copy for Pulled {
    fn receive(&mut self, data: &[u8]) -> Option<()> {
        self.replica.receive(sync::read(data)?)
    }

    fn say(&mut self) -> Option<(bool, Vec<u8>)> {
        if !std::mem::replace(&mut self.is_asked, true) {
            return Some((true, self.replica.request()));
        }
        Some((false, self.replica.answer()?))
    }

    fn is_done(&self) -> bool {
        self.replica.heads() == [self.documents[self.at].base.hash]
    }
}
