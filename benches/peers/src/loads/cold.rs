//! Ten clients who know nothing of the paper ask for it at once.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use super::{LOAD_MAX, Setting};
use crate::Failure;
use crate::client::{Board, Client, Handler, Link};
use crate::report::{Better, Sheet};
use crate::room::Room;
use crate::server::{Kind, Server, Stretch};
use crate::sync::{self, Hash, Replica};
use crate::wire::Incoming;

const CLIENTS: usize = 10;

pub async fn run(kind: Kind, setting: &Setting, sheet: &mut Sheet<'_>) -> Result<(), Failure> {
    let paper = setting.paper(0)?;
    let server = Server::start(kind, &setting.places).await?;
    let board = Rc::new(Board::default());
    let document = Rc::new(paper);
    let began = Instant::now();
    let room = Room::bring(&server.url, &document, &board).await?;
    sheet.size("push of the paper, until acknowledged", "s", began.elapsed().as_secs_f64());
    server.settle().await?;
    let cpu = server.cpu()?.as_secs_f64();
    sheet.size("server CPU from its start until the paper is pushed", "s", cpu);
    ask(&server, &document.id, document.base.hash, "", sheet).await?;
    drop(room);
    let server = server.restart(&setting.places).await?;
    server.settle().await?;
    ask(&server, &document.id, document.base.hash, " after a restart", sheet).await?;
    server.stop().await
}

async fn ask(server: &Server, id: &str, head: Hash, when: &str, sheet: &mut Sheet<'_>) -> Result<(), Failure> {
    let board = Rc::new(Board::default());
    let state = Rc::new(RefCell::new(State::default()));
    let (mut clients, mut first) = (Vec::new(), Vec::new());
    for n in 0..CLIENTS {
        let (state, board) = (state.clone(), board.clone());
        let mut replica = Replica::default();
        first = replica.request();
        let cold = Cold { id: id.to_owned(), head, replica, is_done: false, state, board };
        let board = cold.board.clone();
        clients.push(Client::connect(&server.url, &format!("cold-{n}-{id}{}", when.len()), &board, cold).await?);
    }
    server.settle().await?;
    server.reset_peak()?;
    let before = server.resident()?;
    let stretch = Stretch::begin(server)?;
    let began = Instant::now();
    for client in &clients {
        client.send(client.link.request(id, &first))?;
    }
    let came = board.until(LOAD_MAX, || state.borrow().done == CLIENTS).await?;
    let last = began.elapsed();
    let cost = stretch.end().await?;
    let state = state.borrow();
    if !came {
        sheet.failed(&format!("{} of {CLIENTS} have it in {LOAD_MAX:?}", state.done));
        return Ok(());
    }
    let name = |figure: &str| format!("{figure}{when}");
    sheet.figure(&name("server CPU for ten"), "ms", Better::Lower, cost.cpu.as_secs_f64() * 1e3, &cost);
    sheet.figure(&name("last of ten has it"), "ms", Better::Lower, last.as_secs_f64() * 1e3, &cost);
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    sheet.size(&name("peak memory"), "MiB", mib(server.peak()?));
    sheet.size(&name("memory before"), "MiB", mib(before));
    sheet.size(&name("bytes to each"), "KiB", state.bytes as f64 / CLIENTS as f64 / 1024.0);
    Ok(())
}

#[derive(Debug, Default)]
struct State {
    done: usize,
    /// Of sync messages.
    bytes: usize,
}

struct Cold {
    id: String,
    head: Hash,
    replica: Replica,
    is_done: bool,
    state: Rc<RefCell<State>>,
    board: Rc<Board>,
}

impl Handler for Cold {
    fn handle(&mut self, _at: Instant, message: &Incoming<'_>) -> Result<(), Failure> {
        if message.kind != "sync" {
            return Ok(());
        }
        let said = sync::read(message.data).ok_or("the server sent a malformed sync message")?;
        self.replica.receive(said).ok_or("the server sent a malformed change")?;
        let mut state = self.state.borrow_mut();
        state.bytes += message.data.len();
        if !self.is_done && self.replica.heads() == [self.head] {
            self.is_done = true;
            state.done += 1;
            self.board.note();
        }
        Ok(())
    }

    fn answer(&mut self, link: &Link, out: &mut Vec<Vec<u8>>) -> Result<(), Failure> {
        if let Some(data) = self.replica.answer() {
            out.push(link.sync(&self.id, &data));
        }
        Ok(())
    }
}
