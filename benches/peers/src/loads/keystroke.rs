//! A keystroke into the paper, from one client to another.

use std::rc::Rc;
use std::time::Duration;

use super::{Setting, one_by_one, percentile};
use crate::Failure;
use crate::client::Board;
use crate::report::{Better, Sheet};
use crate::room::Room;
use crate::server::{Kind, Server, Stretch};

pub async fn run(kind: Kind, setting: &Setting, sheet: &mut Sheet<'_>) -> Result<(), Failure> {
    let (edits, most) = if setting.is_quick { (300, Duration::from_secs(4)) } else { (2000, Duration::from_secs(20)) };
    let paper = setting.paper(edits)?;
    let server = Server::start(kind, &setting.places).await?;
    let board = Rc::new(Board::default());
    let room = Room::open(&server.url, paper, 1, &board).await?;
    server.settle().await?;
    let stretch = Stretch::begin(&server)?;
    let done = one_by_one(&room, &board, edits, Duration::from_millis(5), most).await?;
    let cost = stretch.end().await?;
    let cpu = cost.cpu.as_secs_f64() * 1e6 / done as f64;
    sheet.figure("server CPU", "us a keystroke", Better::Lower, cpu, &cost);
    let latencies = room.progress.borrow().latencies.clone();
    for (name, share) in [("client to client, p50", 0.5), ("client to client, p99", 0.99)] {
        sheet.figure(name, "ms", Better::Lower, percentile(&latencies, share), &cost);
    }
    server.stop().await
}
