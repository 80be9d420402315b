//! Whose turn it is to have its bytes worked on.
//!
//! What a peer sends is taken apart and tried before it is logged, and a peer decides how much work that is. So the work
//! is done in *turns*, a few at a time, and of those who wait whoever had least so far has the next one. A link asks for
//! one turn after the other, so it has one core at most, and alternates with others that do the same: what it sends is read
//! later then, as its session takes no more. Nobody is measured: a turn costs what its bytes claim, and a peer that was
//! silent has nothing saved up.
//!
//! Each turn is marked with the cost of all turns that its peer had, its own included, and the smallest mark goes first. A
//! peer that had less than its share of late begins at that share: the cost of what was done, divided each time among those
//! who were there. A short turn of somebody who rarely asks therefore waits for what is under way, not for what is
//! waiting. And one place is kept for short turns.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::error::Error;
use crate::id::NodeId;
use crate::limits::Limits;

/// The turns of a database.
#[derive(Debug)]
pub(super) struct Turns {
    at_once: usize,
    short_us: u64,
    // Protects who waits. Held for look-ups, never while there is work.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The share of each who was there all the time.
    share: u64,
    running: usize,
    running_long: usize,
    /// The mark of each peer's last turn, where it is above `share`.
    peers: HashMap<NodeId, u64>,
    /// By mark, then by order of arrival.
    waiting: BTreeMap<(u64, u64), Waiting>,
    arrivals: u64,
}

#[derive(Debug)]
struct Waiting {
    cost: u64,
    is_long: bool,
    turn: oneshot::Sender<Turn>,
}

/// The right to work. Dropped, it is somebody else's.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    is_long: bool,
}

/// What an operation costs at most, as claimed: automerge takes 0.1 to 10 us.
const OPERATION_US: u64 = 10;
/// What a change costs beside its operations.
const CHANGE_US: u64 = 50;
/// What it costs to make a document for each change that it has.
const MATERIALIZE_US: u64 = 2;
/// Bytes of a document chunk that cost a microsecond at least: one claims at most 16 operations a byte, of which honest
/// ones have two.
const CHUNK_BYTES_OF_A_US: u64 = 4;

/// What changes cost to try, in microseconds, on a document that has so many and is not materialised.
pub(super) fn cost_of_trial(changes: u64, operations: u64, to_materialize: u64) -> u64 {
    CHANGE_US
        .saturating_mul(changes)
        .saturating_add(OPERATION_US.saturating_mul(operations))
        .saturating_add(MATERIALIZE_US.saturating_mul(to_materialize))
}

/// What a document chunk costs to take apart, in microseconds.
pub(super) fn cost_of_split(bytes: usize) -> u64 {
    CHANGE_US + bytes as u64 / CHUNK_BYTES_OF_A_US
}

impl Turns {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        let at_once = limits.work_at_once.max(1);
        Arc::new(Self { at_once, short_us: limits.work_short_us, state: Mutex::default() })
    }

    /// Waits for the peer's turn to have work done that costs `cost` microseconds. Of one without a name nothing is
    /// remembered: each turn counts for itself, and it has one at a time all the same.
    ///
    /// # Errors
    /// [`Error::Closed`], when all of it ends.
    ///
    /// # Cancel safety
    /// Dropped, the turn is not taken; its cost stays counted.
    pub(super) async fn turn(self: &Arc<Self>, peer: Option<NodeId>, cost: u64) -> Result<Turn, Error> {
        let (turn, taken) = oneshot::channel();
        {
            let mut state = self.lock();
            let last = peer.and_then(|peer| state.peers.get(&peer)).copied().unwrap_or(0);
            let after = state.share.max(last);
            let mark = after.saturating_add(cost);
            if state.peers.len() >= 64 && state.peers.len().is_power_of_two() {
                let share = state.share;
                state.peers.retain(|_, mark| *mark > share);
            }
            if let Some(peer) = peer {
                state.peers.insert(peer, mark);
            }
            state.arrivals += 1;
            let key = (mark, state.arrivals);
            state.waiting.insert(key, Waiting { cost, is_long: cost > self.short_us, turn });
        }
        self.grant();
        taken.await.map_err(|_| Error::Closed)
    }

    /// Gives out what turns there are.
    fn grant(self: &Arc<Self>) {
        while let Some(Waiting { is_long, turn, .. }) = self.next() {
            // Of somebody who goes away just now it comes back at once.
            let _ = turn.send(Turn { turns: self.clone(), is_long });
        }
    }

    /// Takes out who is next, if there is a place for it.
    fn next(&self) -> Option<Waiting> {
        let mut state = self.lock();
        if state.running >= self.at_once {
            return None;
        }
        state.waiting.retain(|_, waiting| !waiting.turn.is_closed());
        let long_fits = state.running_long < (self.at_once - 1).max(1);
        let fits = |waiting: &Waiting| long_fits || !waiting.is_long;
        let key = state.waiting.iter().find_map(|(key, waiting)| fits(waiting).then_some(*key))?;
        let there = (state.waiting.len() + state.running) as u64;
        let waiting = state.waiting.remove(&key)?;
        state.share = state.share.saturating_add(waiting.cost / there.max(1));
        state.running += 1;
        state.running_long += usize::from(waiting.is_long);
        Some(waiting)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.running -= 1;
        state.running_long -= usize::from(self.is_long);
        drop(state);
        self.turns.grant();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> Option<NodeId> {
        Some(NodeId([number; 32]))
    }

    fn turns(at_once: usize) -> Arc<Turns> {
        Turns::new(&Limits { work_at_once: at_once, work_short_us: 100, ..Limits::default() })
    }

    /// Lets each peer ask for its turns one after the other, while somebody else has the place; the order they came in.
    fn order_of(asked: &[(u8, u64, usize)]) -> Vec<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (turns, order) = (turns(1), Arc::new(Mutex::new(Vec::new())));
            let first = turns.turn(peer(0), 1).await.unwrap();
            let mut tasks = Vec::new();
            for (number, cost, count) in asked.iter().copied() {
                let (turns, order) = (turns.clone(), order.clone());
                tasks.push(tokio::spawn(async move {
                    for _ in 0..count {
                        let turn = turns.turn(peer(number), cost).await.unwrap();
                        order.lock().unwrap().push(number);
                        tokio::task::yield_now().await;
                        drop(turn);
                    }
                }));
            }
            tokio::task::yield_now().await;
            drop(first);
            for task in tasks {
                task.await.unwrap();
            }
            std::mem::take(&mut *order.lock().unwrap())
        })
    }

    #[test]
    fn a_short_turn_waits_for_what_is_under_way_and_not_for_what_is_waiting() {
        // Ten greedy peers with long turns, and one that asks for short ones now and then.
        let greedy: Vec<(u8, u64, usize)> = (1..=10).map(|number| (number, 50_000, 20)).collect();
        let order = order_of(&[greedy, vec![(99, 100, 5)]].concat());
        let short: Vec<usize> = (0..order.len()).filter(|at| order[*at] == 99).collect();
        assert_eq!(order.len(), 205);
        assert_eq!(short[0], 0, "it goes first");
        assert!(short.windows(2).all(|pair| pair[1] - pair[0] <= 2), "one turn at most between: {short:?}");
    }

    #[test]
    fn peers_have_equal_shares_of_the_work_whatever_their_turns_are() {
        // One has turns four times as long as the other's, and both ask for all of them at once.
        let order = order_of(&[vec![(1, 400, 1); 40], vec![(2, 100, 1); 160]].concat());
        let of = |number: u8, among: &[u8]| among.iter().filter(|other| **other == number).count();
        for end in (20..=180).step_by(20) {
            let (long, short) = (400 * of(1, &order[..end]), 100 * of(2, &order[..end]));
            assert!(long.abs_diff(short) <= 500, "after {end} turns: {long} and {short}");
        }
    }

    #[test]
    fn silence_saves_nothing_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let turns = turns(1);
            for _ in 0..1000 {
                drop(turns.turn(peer(1), 1000).await.unwrap());
            }
            let share = turns.lock().share;
            drop(turns.turn(peer(2), 10).await.unwrap());
            assert_eq!(turns.lock().peers[&peer(2).unwrap()], share + 10);
            // And what is over is forgotten.
            for number in 0..200 {
                drop(turns.turn(peer(number), 1).await.unwrap());
            }
            assert!(turns.lock().peers.len() <= 130);
        });
    }

    #[test]
    fn long_turns_leave_a_place_and_who_goes_away_gives_its_own_back() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let turns = turns(3);
            let long = [turns.turn(peer(1), 1_000_000).await.unwrap(), turns.turn(peer(2), 1_000_000).await.unwrap()];
            let waits = tokio::spawn({
                let turns = turns.clone();
                async move { turns.turn(peer(3), 1_000_000).await.map(drop) }
            });
            tokio::task::yield_now().await;
            for number in 4..40 {
                drop(turns.turn(peer(number), 100).await.unwrap());
            }
            assert!(!waits.is_finished(), "the third long one waits for a place");
            waits.abort();
            assert!(waits.await.unwrap_err().is_cancelled());
            drop(long);
            let _all = [turns.turn(peer(5), 1_000_000).await.unwrap(), turns.turn(peer(6), 1_000_000).await.unwrap()];
            let state = turns.lock();
            assert_eq!((state.running, state.waiting.len()), (2, 0));
        });
    }
}
