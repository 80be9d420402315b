//! An edit of a small document, handed to many readers.

use std::rc::Rc;
use std::time::Duration;

use super::{Setting, one_by_one, percentile};
use crate::Failure;
use crate::client::Board;
use crate::documents;
use crate::report::{Better, Sheet};
use crate::room::Room;
use crate::server::{Kind, Server, Stretch};

pub async fn run(kind: Kind, readers: usize, setting: &Setting, sheet: &mut Sheet<'_>) -> Result<(), Failure> {
    let (edits, most) = if setting.is_quick { (100, Duration::from_secs(4)) } else { (400, Duration::from_secs(15)) };
    let server = Server::start(kind, &setting.places).await?;
    let board = Rc::new(Board::default());
    let room = Room::open(&server.url, documents::typed(edits)?, readers, &board).await?;
    server.settle().await?;
    let stretch = Stretch::begin(&server)?;
    let done = one_by_one(&room, &board, edits, Duration::from_millis(10), most).await?;
    let cost = stretch.end().await?;
    let cpu = cost.cpu.as_secs_f64() * 1e6 / (done * readers) as f64;
    sheet.figure("server CPU", "us a delivery", Better::Lower, cpu, &cost);
    let latencies = room.progress.borrow().latencies.clone();
    for (name, share) in [("last reader, p50", 0.5), ("last reader, p99", 0.99)] {
        sheet.figure(name, "ms", Better::Lower, percentile(&latencies, share), &cost);
    }
    server.stop().await
}
