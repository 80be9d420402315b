//! The first tier: engines and sessions in one thread, on simulated disks, links and clocks.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tidelog::engine::sim::Mutant;

use super::world::{CLIENTS, Outcome, Plan, World};

/// Rare branches, each of which must have been reached.
const MARKS: [&str; 36] = [
    "a change was refused",
    "a change was withdrawn",
    "a chunk went on a stream of its own",
    "a clock jumped",
    "a cursor was known",
    "a cursor was unknown",
    "a disk was almost full",
    "a document was deleted",
    "a document was restored",
    "a link ended because its rows were not taken",
    "a link timed out in a partition",
    "a link was cut with frames under way",
    "a log got a new id",
    "a log was closed in order",
    "a named document was created",
    "a newer link replaced a half-open one",
    "a partition in one direction",
    "a partition",
    "a peer's rows waited for room",
    "a power cut lost writes",
    "a process was killed",
    "a replica was restored from an old backup",
    "a snapshot was saved",
    "a store was verified",
    "a swizzled partition",
    "an acknowledged edit went with what it stood on",
    "an append failed and the store only read from then on",
    "an author signed two changes with one number",
    "an edit met a deleted document",
    "an edit was turned away by a failed store",
    "an edit was turned away for want of disk",
    "an exchange converged",
    "an exchange gave way to the peer's",
    "projections were made again",
    "rows waited for what they depend on",
    "strict sync",
];

/// Those that only clusters with users reach.
const MARKS_OF_USERS: [&str; 20] = [
    "a ban was lifted",
    "a banned user's edits made offline were denied",
    "a denied edit was handed in again and is everywhere",
    "a link began anew since rights had changed",
    "a relayed change became its carrier's",
    "a relayed change of a banned user was refused",
    "a relayed change of another user was refused",
    "a right to read was given back",
    "a right to read was taken",
    "a user was banned offline with edits to send",
    "a user was banned online",
    "a user was sent away",
    "a user with a revoked token was turned away",
    "an edit met a document that may not be read",
    "an edit was denied for what it stood on",
    "changes were carried by another user",
    "denied edits are on a list",
    "some clients are users",
    "there was peace with everything granted",
    "there was peace with rights taken",
];

/// Cluster-hours that run when nothing else is asked for.
const HOURS: u64 = 30;
/// Episodes of five minutes in one run.
const EPISODES: u64 = 13;

pub fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// Whether all clusters have users, and not one of six.
pub fn only_users() -> bool {
    asked("TIDELOG_SIM_USERS").is_some_and(|asked| asked > 0)
}

/// The command that runs a seed again.
pub fn replay(test: &str, seed: u64) -> String {
    let users = if only_users() { "TIDELOG_SIM_USERS=1 " } else { "" };
    format!("{users}TIDELOG_SIM_SEED={seed} cargo test --features sim --test simulation {test} -- --nocapture")
}

/// Clusters of five nodes and five clients under faults: nothing acknowledged is lost, nothing refused is seen,
/// everything becomes equal. `TIDELOG_SIM_HOURS` says for how long, `TIDELOG_SIM_SEED` which one.
#[test]
fn busy_clusters_keep_their_promises() {
    let one = asked("TIDELOG_SIM_SEED");
    let hours = asked("TIDELOG_SIM_HOURS").unwrap_or(HOURS) as f64;
    let first = one.unwrap_or_else(|| asked("TIDELOG_SIM_FIRST").unwrap_or(1));
    let (next, total, failed) = (AtomicU64::new(first), Mutex::new(Total::default()), AtomicBool::new(false));
    let begin = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..if one.is_some() { 1 } else { threads() } {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) && total.lock().unwrap().hours < hours {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let outcome = World::run(Plan { seed, episodes: EPISODES, mutant: None });
                    if outcome.failure.is_some() || one.is_some() {
                        failed.store(true, Ordering::Relaxed);
                    }
                    total.lock().unwrap().add(seed, outcome);
                }
            });
        }
    });
    let total = total.into_inner().unwrap();
    let took = begin.elapsed().as_secs_f64();
    println!(
        "{} busy cluster-hours in {took:.0} s ({:.2} a second): {total:?}",
        total.hours as u64,
        total.hours / took
    );
    if let Some((seed, why)) = &total.failure {
        panic!("seed {seed}: {why}\nreplay it with\n  {}", replay("busy_clusters_keep_their_promises", *seed));
    }
    if one.is_none() {
        total.expect_busy();
        let all = MARKS.iter().filter(|_| !only_users()).chain(&MARKS_OF_USERS);
        let missed: Vec<_> = all.filter(|mark| !total.marks.contains_key(*mark)).collect();
        assert!(missed.is_empty(), "never reached: {missed:?}");
    }
}

/// One seed gives one trace: every frame, every footer, every event at its time.
#[test]
fn one_seed_gives_one_trace() {
    for seed in 1000..1005 {
        // Those with users go on for long enough that rejected edits are handed in again.
        let episodes = if seed % 6 == 2 { 5 } else { 1 };
        let plan = Plan { seed, episodes, mutant: None };
        let (first, second) = (World::run(plan.clone()), World::run(plan));
        assert_eq!(first.failure, None, "{}", replay("busy_clusters_keep_their_promises", seed));
        assert_eq!(
            (first.trace, first.steps, first.records),
            (second.trace, second.steps, second.records),
            "seed {seed} went two ways"
        );
    }
}

/// Each planted fault breaks a promise that is checked.
#[test]
fn every_planted_fault_is_found() {
    let left = Mutex::new(Mutant::ALL.to_vec());
    let missed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                while let Some(mutant) = { left.lock().unwrap().pop() } {
                    if !finds(mutant) {
                        missed.lock().unwrap().push(mutant);
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

fn finds(mutant: Mutant) -> bool {
    let (mut steps, mut hours) = (0, 0.0);
    for seed in 1..=10 {
        let outcome = World::run(Plan { seed, episodes: 4, mutant: Some(mutant) });
        steps += outcome.steps;
        hours += outcome.hours;
        if let Some(why) = outcome.failure {
            println!("{mutant:?}: found after {steps} steps, {hours:.2} cluster-hours, seed {seed}: {why}");
            return true;
        }
    }
    println!("{mutant:?}: not found in {steps} steps, {hours:.2} cluster-hours");
    false
}

pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).min(8)
}

#[derive(Debug, Default)]
struct Total {
    hours: f64,
    runs: u64,
    steps: u64,
    records: u64,
    edits: u64,
    commits: u64,
    crashes: u64,
    partitions: u64,
    other_faults: u64,
    restores: u64,
    marks: BTreeMap<&'static str, u64>,
    failure: Option<(u64, String)>,
}

impl Total {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.runs += 1;
        self.hours += outcome.hours;
        self.steps += outcome.steps;
        self.records += outcome.records;
        self.edits += outcome.edits;
        self.commits += outcome.commits;
        self.crashes += outcome.crashes;
        self.partitions += outcome.partitions;
        self.other_faults += outcome.other_faults;
        self.restores += outcome.restores;
        for (mark, count) in outcome.marks {
            *self.marks.entry(mark).or_default() += count;
        }
        if let (None, Some(why)) = (&self.failure, outcome.failure) {
            self.failure = Some((seed, why));
        }
    }

    /// Idle hours do not count.
    fn expect_busy(&self) {
        let hour = |count: u64| count as f64 / self.hours;
        // Who may not read or write edits less, and their peace takes longer.
        let edits = 3600.0 * CLIENTS as f64 * if only_users() { 0.8 } else { 1.0 };
        assert!(hour(self.edits) >= edits, "{} edits an hour", hour(self.edits));
        assert!(
            hour(self.crashes + self.partitions) >= 20.0,
            "{} faults an hour",
            hour(self.crashes + self.partitions)
        );
        assert!(hour(self.restores) >= 1.0, "{} restores an hour", hour(self.restores));
    }
}
