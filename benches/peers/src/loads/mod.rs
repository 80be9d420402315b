//! The loads. Each starts its servers, is bounded, and ends by itself.

pub mod cold;
pub mod fanout;
pub mod keystroke;
pub mod memory;
pub mod rate;
pub mod small;

use std::time::{Duration, Instant};

use crate::Failure;
use crate::client::Board;
use crate::documents::Authored;
use crate::room::Room;
use crate::server::Places;

/// A load that takes longer is given up, and said to be.
pub const LOAD_MAX: Duration = Duration::from_secs(60);

/// What all loads need.
pub struct Setting {
    pub places: Places,
    /// Shorter and smaller.
    pub is_quick: bool,
}

impl Setting {
    /// The paper with as many keystrokes to come.
    pub fn paper(&self, keystrokes: usize) -> Result<Authored, Failure> {
        crate::documents::paper(&self.places.work, keystrokes)
    }
}

/// Edits one after the other: each once the last reader has the one before, and after a pause. Gives how many edits
/// there were before `most` or `edits` was reached.
pub async fn one_by_one(
    room: &Room,
    board: &Board,
    edits: usize,
    pause: Duration,
    most: Duration,
) -> Result<usize, Failure> {
    let began = Instant::now();
    for n in 0..edits {
        if began.elapsed() > most {
            return Ok(n);
        }
        room.edit(Instant::now())?;
        if !board.until(LOAD_MAX, || room.progress.borrow().delivered == n + 1).await? {
            return Err(format!("edit {n} did not reach every reader in {LOAD_MAX:?}").into());
        }
        tokio::time::sleep(pause).await;
    }
    Ok(edits)
}

/// The latency below which that share of them is, ms.
pub fn percentile(latencies: &[Duration], share: f64) -> f64 {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
}
