//! What connections and documents take of the server's memory.

use std::rc::Rc;
use std::time::Duration;

use super::{Setting, small};
use crate::Failure;
use crate::client::{Board, Client, Idle};
use crate::documents;
use crate::report::Sheet;
use crate::room::Room;
use crate::server::{Kind, Server};

const CONNECTIONS: usize = 200;
const DOCUMENTS: usize = 1000;

pub async fn run(kind: Kind, setting: &Setting, sheet: &mut Sheet<'_>) -> Result<(), Failure> {
    let documents = Rc::new(documents::small(DOCUMENTS)?);
    let paper = setting.paper(0)?;
    let server = Server::start(kind, &setting.places).await?;
    let kib = |more: f64, each: usize| more / 1024.0 / each as f64;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let board = Rc::new(Board::default());
    // The first of everything is not what one more costs.
    let first = Client::connect(&server.url, "first", &board, Idle).await?;
    let empty = rest(&server).await?;
    let mut clients = vec![first];
    for n in 0..CONNECTIONS {
        clients.push(Client::connect(&server.url, &format!("idle-{n}"), &board, Idle).await?);
    }
    let connected = rest(&server).await?;
    sheet.size("started, one client", "MiB", mib(empty));
    sheet.size("an idle connection", "KiB", kib(connected - empty, CONNECTIONS));
    drop(clients);
    server.stop().await?;
    // Documents on a server of their own: samod attaches every document to every connection.
    let server = Server::start(kind, &setting.places).await?;
    let clients = Client::connect(&server.url, "first", &board, Idle).await?;
    let connected = rest(&server).await?;
    let (author, pushed) = small::push(&server.url, &documents).await?;
    if pushed < DOCUMENTS {
        sheet.failed(&format!("{pushed} of {DOCUMENTS} documents pushed"));
        return server.stop().await;
    }
    let opened = rest(&server).await?;
    sheet.size("a small document that one client has open", "KiB", kib(opened - connected, DOCUMENTS));
    drop(author);
    let closed = rest(&server).await?;
    sheet.size("a small document that nobody has open", "KiB", kib(closed - connected, DOCUMENTS));
    let room = Room::open(&server.url, paper, 1, &board).await?;
    let paper = rest(&server).await?;
    sheet.size("the paper, pushed and read by one", "MiB", mib(paper - closed));
    drop((room, clients));
    sheet.size("after everything, all gone", "MiB", mib(rest(&server).await?));
    sheet.size("the most ever", "MiB", mib(server.peak()?));
    server.stop().await
}

/// Resident memory, bytes, once the server does nothing.
async fn rest(server: &Server) -> Result<f64, Failure> {
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.settle().await?;
    server.resident()
}
