//! The highest rate of edits that is held: each document with its own author and its own reader, edits due at even
//! distances whatever the server does.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Setting, percentile};
use crate::Failure;
use crate::client::Board;
use crate::documents;
use crate::report::{Better, Sheet};
use crate::room::Room;
use crate::server::{Cost, Kind, Server, Stretch};

/// Latencies (p99) that count as holding a rate. The JavaScript servers put off every change by 50 to 100 ms.
const BARS_MS: [f64; 2] = [50.0, 250.0];
const RATES: [usize; 10] = [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200];
/// After the last edit, what is not there is lost.
const TAIL: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
struct Step {
    rate: usize,
    p99: f64,
    edits: usize,
    cost: Cost,
}

pub async fn run(kind: Kind, count: usize, setting: &Setting, sheet: &mut Sheet<'_>) -> Result<(), Failure> {
    let mut held: [Option<Step>; 2] = [None, None];
    let mut last = String::new();
    for rate in RATES {
        let mut step = step(kind, count, rate, setting).await?;
        if step.p99 >= BARS_MS[0] {
            // Once more: the machine may have been busy with something else.
            let again = self::step(kind, count, rate, setting).await?;
            if again.p99 < step.p99 {
                step = again;
            }
        }
        last = format!("{rate}/s: p99 {:.0} ms, driver {:.0} %", step.p99, step.cost.driver * 100.0);
        println!("  {count} documents: {}: {last}", kind.name());
        let (p99, driver) = (step.p99, step.cost.driver);
        let mut any = false;
        for (bar, held) in BARS_MS.iter().zip(&mut held) {
            let follows = held.as_ref().is_none_or(|before| before.rate * 2 == rate);
            if p99 < *bar && follows && (held.is_some() || rate == RATES[0]) {
                *held = Some(step);
                any = true;
            }
        }
        if !any || driver > 0.8 {
            break;
        }
    }
    for (bar, held) in BARS_MS.iter().zip(held) {
        let rate = format!("held at a p99 below {bar} ms");
        let cpu = format!("server CPU there ({bar} ms)");
        match held {
            Some(step) => {
                let note = format!("p99 {:.1} ms", step.p99);
                sheet.noted(&rate, "edits/s", Better::Higher, Some(step.rate as f64), &note, step.cost.driver);
                let each = step.cost.cpu.as_secs_f64() * 1e6 / step.edits as f64;
                sheet.figure(&cpu, "us an edit", Better::Lower, each, &step.cost);
            }
            None => {
                sheet.noted(&rate, "edits/s", Better::Higher, None, &format!("none; {last}"), 0.0);
                sheet.noted(&cpu, "us an edit", Better::Lower, None, "-", 0.0);
            }
        }
    }
    Ok(())
}

async fn step(kind: Kind, count: usize, rate: usize, setting: &Setting) -> Result<Step, Failure> {
    let seconds = if setting.is_quick { 1.5 } else { 3.0 };
    let edits = (rate as f64 * seconds) as usize;
    // A fresh server and fresh documents: a step is not to pay for the one before.
    let server = Server::start(kind, &setting.places).await?;
    let board = Rc::new(Board::default());
    let mut rooms = Vec::with_capacity(count);
    for _ in 0..count {
        let document = documents::typed(edits.div_ceil(count))?;
        rooms.push(Room::open(&server.url, document, 1, &board).await?);
    }
    server.settle().await?;
    let stretch = Stretch::begin(&server)?;
    let began = Instant::now();
    let due = |n: usize| began + Duration::from_secs_f64(n as f64 / rate as f64);
    let mut sent = 0;
    while sent < edits {
        while sent < edits && due(sent) <= Instant::now() {
            rooms[sent % count].edit(due(sent))?;
            sent += 1;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let all = || rooms.iter().map(|room| room.progress.borrow().delivered).sum::<usize>() == edits;
    let came = board.until(TAIL, all).await?;
    let cost = stretch.end().await?;
    let mut latencies = Vec::with_capacity(edits);
    for room in &rooms {
        latencies.extend_from_slice(&room.progress.borrow().latencies);
    }
    // What never came is as late as can be.
    let p99 = if came { percentile(&latencies, 0.99) } else { f64::INFINITY };
    server.stop().await?;
    Ok(Step { rate, p99, edits, cost })
}
