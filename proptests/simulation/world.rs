//! A cluster in one thread: replicas, links between them, and one queue of what happens next.
//!
//! Everything follows from the seed. Each thing that happens is put into a running hash; two runs of one seed must end
//! with the same one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use tidelog::engine::sim::{Mutant, Report, plant, seed_randomness, set_wall_clock};
use tidelog::id::{ChangeHash, DocumentId};
use tidelog::log::Durability;
use tidelog::{Error, Limits};

use super::cluster::only_users;
use super::links::{Edge, Link};
use super::random::Random;
use super::replica::{Replica, Waiter};
use super::users::{Users, user_at};

pub const MS: u64 = 1000;
pub const SECOND: u64 = 1000 * MS;
pub const NODES: usize = 5;
pub const CLIENTS: usize = 5;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A client edits.
    Edit(usize),
    /// A client gains or loses its network.
    Network(usize),
    /// The writer of a replica has its turn.
    Write(usize),
    /// Once a second on each replica.
    Tick(usize),
    /// Something arrives at one end of a link.
    Arrive(u64, usize),
    /// One end notices that its link is gone.
    Notice(u64, usize),
    /// The link gave no sign for so long that both ends give it up.
    TimeOut(u64),
    /// The link is cut.
    Cut(u64),
    /// The power of a replica goes.
    PowerOff(usize),
    /// One edge tries to connect.
    Dial(usize),
    /// Something breaks.
    Break,
    /// An author signs two changes with one number.
    Twins,
    /// A stopped replica starts again.
    Start(usize),
    /// Two replicas can reach each other again.
    Heal(usize, usize),
    /// A right is taken from a user or given back to him.
    Rights,
    /// Other rules are in force at a node.
    Rules(usize),
    /// A user is given changes by another.
    Relay,
    /// A user hands rejected edits in again.
    HandInAgain,
    /// A client takes back what the node at the other end of a link denied.
    TakeBack(u64),
}

/// What a run has to be told.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    /// Episodes: a time of faults and edits, then a time of peace in which all replicas become equal.
    pub episodes: u64,
    pub mutant: Option<Mutant>,
}

impl Plan {
    /// Whether some clients are users: in one cluster of six, in all where that is asked for, and where a fault is planted
    /// that only those can show.
    fn has_users(&self) -> bool {
        self.mutant.map_or_else(|| self.seed % 6 == 2 || only_users(), Mutant::is_about_users)
    }
}

/// How long faults and edits last in an episode; what is left of five minutes is for becoming equal.
const CHAOS: u64 = 262 * SECOND;
const EPISODE: u64 = 300 * SECOND;
/// What clusters with users get beside.
const PEACE_OF_USERS: u64 = 120 * SECOND;
/// Time between two edits of a client, so that each makes one a second and more even in an hour with peace and crashes
/// in it.
const EDIT_EVERY: u64 = 720 * MS;

/// What a run was.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub steps: u64,
    pub hours: f64,
    pub trace: u64,
    /// Edits that were acknowledged, and the changes that hold them.
    pub edits: u64,
    pub commits: u64,
    pub crashes: u64,
    pub partitions: u64,
    pub other_faults: u64,
    pub restores: u64,
    pub records: u64,
    pub marks: BTreeMap<&'static str, u64>,
    /// What broke a promise, if something did.
    pub failure: Option<String>,
}

/// An acknowledged edit.
#[derive(Debug, Clone, Copy)]
pub struct Promise {
    pub author: usize,
    pub document: DocumentId,
    pub hash: ChangeHash,
    /// One of two changes of one author and number, on which it stands: it goes when that goes.
    pub stands_on: Option<ChangeHash>,
}

pub struct World {
    pub plan: Plan,
    pub random: Random,
    pub now: u64,
    begin: Instant,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    scheduled: u64,
    pub replicas: Vec<Replica>,
    pub edges: Vec<Edge>,
    pub links: BTreeMap<u64, Link>,
    pub link_numbers: u64,
    /// Who cannot send to whom.
    pub blocked: BTreeSet<(usize, usize)>,
    /// Faults and edits happen.
    pub chaos: bool,
    pub documents: Vec<DocumentId>,
    /// Acknowledged edits since all were equal last, and who made them.
    pub promised: Vec<Promise>,
    /// The two changes of one author and number, where there are some.
    pub twins: BTreeMap<DocumentId, [ChangeHash; 2]>,
    /// Changes that were refused.
    pub refused: Vec<(DocumentId, ChangeHash)>,
    pub strict: bool,
    /// What is known of users, where some clients are such.
    pub users: Option<Users>,
    /// The beginning of a change's hash: everything about it is told.
    watched: Option<String>,
    pub outcome: Outcome,
}

impl World {
    pub fn new(plan: Plan) -> Self {
        let mut random = Random::new(plan.seed);
        // Planted faults show soonest where pages and batches are small.
        let tight = random.chance(50) || plan.mutant.is_some();
        let limits = limits(tight, &mut random);
        let replica = |n: usize, random: &mut Random| {
            let durability = if random.chance(8) { Durability::Buffered } else { Durability::Synced };
            let mut replica = Replica::new(n, n >= NODES, durability, limits.clone());
            replica.skew_ms = random.between(0, 7_200_000).cast_signed() - 3_600_000;
            replica
        };
        let replicas: Vec<Replica> = (0..NODES + CLIENTS).map(|n| replica(n, &mut random)).collect();
        let edges = Edge::topology(&mut random);
        let strict = random.chance(10) && plan.mutant.is_none();
        let mut world = Self {
            plan,
            random,
            now: 0,
            begin: Instant::now(),
            events: BinaryHeap::new(),
            scheduled: 0,
            replicas,
            edges,
            links: BTreeMap::new(),
            link_numbers: 0,
            blocked: BTreeSet::new(),
            chaos: false,
            documents: Vec::new(),
            promised: Vec::new(),
            twins: BTreeMap::new(),
            refused: Vec::new(),
            strict,
            users: None,
            watched: std::env::var("TIDELOG_SIM_WATCH").ok(),
            outcome: Outcome::default(),
        };
        world.mark_if("strict sync", strict);
        world
    }

    /// Runs the plan to its end or to the first broken promise.
    pub fn run(plan: Plan) -> Outcome {
        seed_randomness(Some(plan.seed));
        plant(plan.mutant);
        let mut world = Self::new(plan);
        let ended = world.play();
        world.outcome.failure = ended.err();
        world.outcome.hours = world.now as f64 / (3600.0 * SECOND as f64);
        seed_randomness(None);
        plant(None);
        set_wall_clock(None);
        world.outcome
    }

    fn play(&mut self) -> Result<(), String> {
        if self.plan.has_users() {
            self.users = Some(Users::new(self.random.chance(50), &self.replicas)?);
            // What a user may not read is not exchanged with him, so nothing that he makes of it comes in strict mode.
            self.strict = false;
            self.mark("some clients are users");
        }
        for n in 0..self.replicas.len() {
            self.start(n)?;
            let offset = self.random.below(SECOND);
            self.after(offset, Event::Tick(n));
        }
        self.begin_people()?;
        for edge in 0..self.edges.len() {
            self.after(0, Event::Dial(edge));
        }
        for client in NODES..NODES + CLIENTS {
            self.after(client as u64 * 17 * MS, Event::Edit(client));
            self.after(client as u64 * SECOND, Event::Network(client));
        }
        for episode in 0..self.plan.episodes {
            let begin = self.now;
            self.chaos = true;
            self.plan_faults();
            self.plan_rights();
            self.run_until(begin + CHAOS)?;
            self.chaos = false;
            self.heal_all()?;
            // Users' links list everything when rights change, and bring what is denied once more.
            let bound = begin + EPISODE + if self.users.is_some() { PEACE_OF_USERS } else { 0 };
            // At least a moment, so that what was under way arrives.
            let mut at = self.now + 2 * SECOND;
            loop {
                self.run_until(at)?;
                if self.is_at_rest()? {
                    break;
                }
                if at >= bound {
                    return Err(self.describe_difference()?);
                }
                at += SECOND;
            }
            self.check_peace(episode)?;
        }
        self.outcome.records = self.replicas.iter().map(Replica::records).sum();
        Ok(())
    }

    fn run_until(&mut self, until: u64) -> Result<(), String> {
        while let Some(Reverse((at, _, _))) = self.events.peek().copied()
            && at <= until
        {
            let Some(Reverse((at, _, event))) = self.events.pop() else { break };
            self.now = self.now.max(at);
            self.outcome.steps += 1;
            self.hash(at ^ kind_of(event) << 56);
            self.happen(event).map_err(|why| format!("at {:.3} s, {event:?}: {why}", at as f64 / SECOND as f64))?;
        }
        self.now = self.now.max(until);
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Edit(client) => {
                // In some clusters one client saves each keystroke; the others save a few at a time, as programs do.
                let edits =
                    if client == NODES && self.plan.seed.is_multiple_of(3) { 1 } else { self.random.between(3, 9) };
                if self.chaos {
                    self.edit(client, edits)?;
                }
                let pause = self.random.between(EDIT_EVERY * 9 / 10, EDIT_EVERY * 11 / 10);
                self.after(pause * edits, Event::Edit(client));
                Ok(())
            }
            Event::Network(client) => self.switch_network(client),
            Event::Write(n) => self.write(n),
            Event::Tick(n) => {
                if let Some(engine) = &mut self.replicas[n].engine {
                    engine.tick();
                }
                self.after(SECOND, Event::Tick(n));
                if self.replicas[n].disk.is_dead() {
                    return self.power_failed(n);
                }
                self.check_disk(n)
            }
            Event::Arrive(link, side) => self.arrive(link, side),
            Event::Notice(link, side) => self.notice(link, side),
            Event::TimeOut(link) => self.time_out(link),
            Event::Cut(link) => {
                let late = self.random.between(0, 2000) * MS;
                self.cut_link(link, [0, late]);
                Ok(())
            }
            Event::PowerOff(n) if self.chaos && self.replicas[n].engine.is_some() => self.power_failed(n),
            Event::PowerOff(_) => Ok(()),
            Event::Dial(edge) => self.dial(edge),
            Event::Break => self.break_something(),
            Event::Twins => self.make_twins(),
            Event::Start(n) => self.start(n),
            Event::Heal(a, b) => self.heal(a, b),
            Event::Rights => self.turn_rights(),
            Event::Rules(n) => self.take_rules(n),
            Event::Relay => self.relay(),
            Event::HandInAgain => self.hand_in_again(),
            Event::TakeBack(link) => self.take_back(link),
        }
    }

    pub fn after(&mut self, delay: u64, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse((self.now + delay, self.scheduled, event)));
    }

    /// The steady clock.
    pub fn instant(&self) -> Instant {
        self.begin + Duration::from_micros(self.now)
    }

    pub fn hash(&mut self, value: u64) {
        let mixed = (self.outcome.trace ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.outcome.trace = mixed ^ (mixed >> 29);
    }

    /// Tells what happens, when somebody watches.
    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.watched.is_some() {
            println!("{:>12.3} {}", self.now as f64 / SECOND as f64, what());
        }
    }

    /// Whether the change is the one that is watched.
    pub fn is_watched(&self, hash: ChangeHash) -> bool {
        self.watched.as_ref().is_some_and(|watched| hash.to_string().starts_with(watched))
    }

    /// Notes that a rare branch was reached.
    pub fn mark(&mut self, name: &'static str) {
        *self.outcome.marks.entry(name).or_default() += 1;
    }

    pub fn mark_if(&mut self, name: &'static str, reached: bool) {
        if reached {
            self.mark(name);
        }
    }

    /// Lets the writer of a replica have its turn soon.
    pub fn wake_writer(&mut self, n: usize) {
        let replica = &mut self.replicas[n];
        let waits = replica.engine.as_ref().is_some_and(|engine| engine.queued().0 > 0);
        if waits && !replica.writer_due {
            replica.writer_due = true;
            let delay = if self.random.chance(3) { self.random.between(50, 400) } else { self.random.between(2, 12) };
            self.after(delay * MS, Event::Write(n));
        }
    }

    /// One turn of a replica's writer: a group, its answers, and everybody who hears of them.
    pub fn write(&mut self, n: usize) -> Result<(), String> {
        let (now_ms, now) = (self.replicas[n].clock_ms(self.now), self.instant());
        let replica = &mut self.replicas[n];
        replica.writer_due = false;
        let Some(engine) = &mut replica.engine else { return Ok(()) };
        let report = engine.step(now_ms, now);
        self.written(n, report)
    }

    /// Everybody hears of what a replica's writer has done.
    pub fn written(&mut self, n: usize, report: Report) -> Result<(), String> {
        let Some(engine) = &self.replicas[n].engine else { return Ok(()) };
        let tail = engine.reader().tail();
        self.hash(tail.lsn.0 ^ u64::from_le_bytes(tail.chain.0[..8].try_into().unwrap_or_default()));
        let mut answered = Vec::new();
        for answer in report.answers {
            let waiter = self.replicas[n].waiters.remove(&answer.ticket).unwrap_or(Waiter::Nobody);
            answered.push((waiter, answer.outcome));
        }
        let mut told = false;
        let mut links = Vec::new();
        for (waiter, outcome) in answered {
            told |= outcome.is_ok();
            match (waiter, outcome) {
                (Waiter::Edit { document, hash, edits }, Ok((admitted, _))) => {
                    if let Some((_, why)) = admitted.refused.first() {
                        if !self.twins.contains_key(&document) && self.is_trusted(n) {
                            return Err(format!("an edit of replica {n} was refused: {why}"));
                        }
                        self.mark("an edit met the withdrawal of what it stood on");
                        self.refused.push((document, hash));
                        continue;
                    }
                    if self.is_watched(hash) {
                        self.say(|| format!("replica {n} made {hash} of {document}"));
                    }
                    self.outcome.edits += edits;
                    self.outcome.commits += 1;
                    if let (Some(users), Some(user)) = (&mut self.users, user_at(n)) {
                        users.note_acknowledged(user, document, hash, !self.replicas[n].online);
                        continue;
                    }
                    let stands_on = self.twin_below(n, document, hash)?;
                    self.promised.push(Promise { author: n, document, hash, stands_on });
                }
                (Waiter::Rogue(document, hash), Ok((admitted, _))) => {
                    if admitted.refused.is_empty() && admitted.accepted > 0 {
                        return Err(format!("replica {n} took change {hash} of {document}, which is too large"));
                    }
                    self.mark("a change was refused");
                    self.refused.push((document, hash));
                }
                (Waiter::Link { link, side }, outcome) => links.push((link, side, outcome)),
                (_, Err(Error::History(error)))
                    if !self.replicas[n].disk.is_failing() && !self.replicas[n].disk.is_dead() =>
                {
                    return Err(format!("the writer of replica {n}: {error}"));
                }
                _ => {}
            }
        }
        if told && self.replicas[n].durability == Durability::Synced {
            self.replicas[n].acknowledged = Some(tail);
        }
        if self.replicas[n].disk.is_dead() {
            return self.power_failed(n);
        }
        self.check_disk(n)?;
        if self.replicas[n].engine.as_ref().is_some_and(|engine| engine.failure().is_none()) {
            self.check_counts(n, &report.documents)?;
        }
        if report.appended {
            self.rights_may_have_changed(n)?;
        }
        for document in report.snapshots_due {
            // The thread that saves has much to do: it comes to few of those that are due.
            if !self.random.chance(2) {
                continue;
            }
            let engine = self.replicas[n].engine.as_mut();
            let saved = engine.is_some_and(|engine| engine.save_snapshot(document).unwrap_or(false));
            self.mark_if("a snapshot was saved", saved);
        }
        if report.appended {
            self.tell_tail(n)?;
        }
        for (link, side, outcome) in links {
            self.admitted(link, side, outcome)?;
        }
        self.offer_again(n)?;
        self.wake_writer(n);
        Ok(())
    }
}

fn kind_of(event: Event) -> u64 {
    match event {
        Event::Edit(n) => n as u64,
        Event::Network(n) => 16 + n as u64,
        Event::Write(n) => 32 + n as u64,
        Event::Tick(n) => 48 + n as u64,
        Event::Arrive(_, side) => 64 + side as u64,
        Event::Notice(_, side) => 66 + side as u64,
        Event::TimeOut(_) => 68,
        Event::Dial(_) => 69,
        Event::Break => 70,
        Event::Start(n) => 80 + n as u64,
        Event::Heal(..) => 96,
        Event::Cut(_) => 97,
        Event::PowerOff(n) => 98 + n as u64,
        Event::Twins => 112,
        Event::Rights => 113,
        Event::Relay => 114,
        Event::HandInAgain => 115,
        Event::TakeBack(_) => 116,
        Event::Rules(n) => 120 + n as u64,
    }
}

/// Bounds small enough that pages, parts, batches and checkpoints are many, or as they are.
fn limits(tight: bool, random: &mut Random) -> Limits {
    let mut limits = Limits::DEFAULT;
    limits.change_ops_max = 500;
    limits.snapshot_tail_min = 300;
    limits.checkpoint_records = 3000;
    limits.disk_free_min = 1000;
    limits.memory_budget = if random.chance(8) { 200 << 10 } else { 4 << 20 };
    if tight {
        limits.batch_bytes = 2000 + random.index(4000);
        limits.inventory_rows = 4 + random.index(12);
        limits.part_bytes = 700;
        limits.exchanges_per_peer = 2;
        limits.bulk_streams_per_peer = 1;
        limits.snapshot_instead_of_changes = 20;
        limits.snapshot_tail_min = 20;
        limits.write_queue_items = 3;
        limits.pending_changes_per_document = 40;
        limits.graph_budget = if random.chance(20) { 64 << 10 } else { 8 << 20 };
    }
    limits
}
