//! The second tier: real databases behind real QUIC endpoints, over a network in memory, under a paused clock.
//!
//! Nothing of the product is replaced but the socket, the disk and the clock. Packets are lost, late and out of order;
//! pairs of replicas are cut off; replicas lose their power and are restored from backups. The runtime has one thread
//! and stands still while a writer works, so that the clock never runs away from it.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use serde_json::json;
use tidelog::engine::sim::{seed_randomness, set_wall_clock, wait_for_writer};
use tidelog::net::{AllowList, Endpoint, Identity, LinkOptions, Links, Role, Ticket, UnknownKeys};
use tidelog::{Database, DocumentId, Limits, NodeId};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::cluster::{asked, replay, threads};
use super::disk::{Image, SimDisk};
use super::random::Random;
use super::world::{CLIENTS, NODES};

const PORT: u16 = 1000;

/// Cluster-hours that run when nothing else is asked for.
const HOURS: u64 = 8;
/// Episodes of five minutes in one run.
const EPISODES: u64 = 4;

/// A packet on its way.
struct Packet {
    at: Instant,
    /// From whom to whom, and how many went that way before.
    place: (usize, usize, u64),
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

impl PartialEq for Packet {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Packet {}
impl PartialOrd for Packet {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Packet {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // The heap gives the greatest first.
        (other.at, other.place).cmp(&(self.at, self.place))
    }
}

#[derive(Default)]
struct Inbox {
    packets: VecDeque<(SocketAddr, Vec<u8>)>,
    waker: Option<Waker>,
}

/// The network: packets under way, and who cannot reach whom.
struct Air {
    seed: u64,
    /// Each way has its own luck and its own trace: which of two tasks the runtime lets run first, at one and the same
    /// time, is not ours to decide, and must not matter.
    ways: BTreeMap<(usize, usize), Way>,
    loss: u64,
    blocked: BTreeSet<(usize, usize)>,
    packets: BinaryHeap<Packet>,
    inboxes: BTreeMap<SocketAddr, Arc<Mutex<Inbox>>>,
}

struct Way {
    random: Random,
    packets: u64,
    dropped: u64,
    trace: u64,
}

#[derive(Clone)]
struct Network {
    air: Arc<Mutex<Air>>,
    news: Arc<Notify>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("network")
    }
}

struct Socket {
    network: Network,
    address: SocketAddr,
    inbox: Arc<Mutex<Inbox>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "socket {}", self.address)
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut air = self.network.lock();
        let (from, to) = (place_of(self.address), place_of(transmit.destination));
        let (seed, loss, blocked) = (air.seed, air.loss, air.blocked.contains(&(from, to)));
        let way = air.ways.entry((from, to)).or_insert_with(|| Way {
            random: Random::new(seed ^ (from as u64) << 32 ^ (to as u64) << 40),
            packets: 0,
            dropped: 0,
            trace: 0,
        });
        way.packets += 1;
        way.trace = (way.trace ^ transmit.contents.len() as u64).wrapping_mul(0x0100_0000_01b3);
        let (lost, delay, number) = (way.random.chance(loss), 4_000 + way.random.below(30_000), way.packets);
        if lost || blocked {
            way.dropped += 1;
            return Ok(());
        }
        air.packets.push(Packet {
            at: Instant::now() + Duration::from_micros(delay),
            place: (from, to, number),
            from: self.address,
            to: transmit.destination,
            bytes: transmit.contents.to_vec(),
        });
        drop(air);
        self.network.news.notify_one();
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.lock().unwrap();
        let Some((from, bytes)) = inbox.packets.pop_front() else {
            inbox.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        buffers[0][..bytes.len()].copy_from_slice(&bytes);
        metas[0] = RecvMeta { addr: from, len: bytes.len(), stride: bytes.len(), ecn: None, dst_ip: None };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl Air {
    /// Packets sent, packets lost, and the trace of all ways.
    fn sums(&self) -> (u64, u64, u64) {
        let sum = |count: fn(&Way) -> u64| self.ways.values().map(count).sum();
        let mix = |trace: u64, way: &Way| (trace ^ way.trace).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
        (sum(|way| way.packets), sum(|way| way.dropped), self.ways.values().fold(0, mix))
    }
}

impl Network {
    fn new(seed: u64, loss: u64) -> Self {
        let air = Air {
            seed,
            ways: BTreeMap::new(),
            loss,
            blocked: BTreeSet::new(),
            packets: BinaryHeap::new(),
            inboxes: BTreeMap::new(),
        };
        Self { air: Arc::new(Mutex::new(air)), news: Arc::new(Notify::new()) }
    }

    fn lock(&self) -> MutexGuard<'_, Air> {
        self.air.lock().unwrap()
    }

    fn socket(&self, n: usize) -> Arc<Socket> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT + n as u16));
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        self.lock().inboxes.insert(address, inbox.clone());
        Arc::new(Socket { network: self.clone(), address, inbox })
    }

    /// Whoever was behind the socket is gone.
    fn unplug(&self, n: usize) {
        self.lock().inboxes.remove(&SocketAddr::from((Ipv4Addr::LOCALHOST, PORT + n as u16)));
    }

    /// Carries packets for ever.
    async fn carry(self) {
        loop {
            let next = self.lock().packets.peek().map(|packet| packet.at);
            let Some(next) = next else {
                self.news.notified().await;
                continue;
            };
            tokio::select! {
                biased;
                () = self.news.notified() => continue,
                () = sleep_until(next) => {}
            }
            loop {
                let delivered = {
                    let mut air = self.lock();
                    let due = air.packets.peek().is_some_and(|packet| packet.at <= Instant::now());
                    let packet = if due { air.packets.pop() } else { None };
                    packet.map(|packet| (air.inboxes.get(&packet.to).cloned(), packet))
                };
                let Some((inbox, packet)) = delivered else { break };
                let Some(inbox) = inbox else { continue };
                let mut inbox = inbox.lock().unwrap();
                inbox.packets.push_back((packet.from, packet.bytes));
                if let Some(waker) = inbox.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

fn place_of(address: SocketAddr) -> usize {
    usize::from(address.port() - PORT)
}

/// A node or a client.
struct Replica {
    disk: SimDisk,
    running: Option<(Database, Links)>,
    backup: Option<Image>,
    restored: bool,
}

#[derive(Debug, Default, Clone)]
struct Outcome {
    hours: f64,
    edits: u64,
    commits: u64,
    crashes: u64,
    partitions: u64,
    restores: u64,
    packets: u64,
    dropped: u64,
    trace: u64,
    failure: Option<String>,
}

struct Cluster {
    seed: u64,
    nodes: usize,
    clients: usize,
    random: Random,
    network: Network,
    replicas: Vec<Replica>,
    homes: Vec<usize>,
    documents: Vec<DocumentId>,
    outcome: Outcome,
}

fn identity(n: usize) -> Identity {
    Identity::from_seed(&[n as u8 + 1; 32]).unwrap()
}

fn limits() -> Limits {
    let mut limits = Limits::DEFAULT;
    // A thread of its own saves snapshots, at times that no seed decides.
    limits.snapshot_tail_min = u64::MAX;
    limits.snapshot_tail_bytes = u64::MAX;
    limits
}

impl Cluster {
    fn new(seed: u64, nodes: usize, clients: usize) -> Self {
        let mut random = Random::new(seed);
        let network = Network::new(seed, random.between(0, 6));
        tokio::spawn(network.clone().carry());
        let replica = |_| Replica { disk: SimDisk::new(), running: None, backup: None, restored: false };
        let homes = (0..clients).map(|_| random.index(nodes)).collect();
        let replicas = (0..nodes + clients).map(replica).collect();
        Self {
            seed,
            nodes,
            clients,
            random,
            network,
            replicas,
            homes,
            documents: Vec::new(),
            outcome: Outcome::default(),
        }
    }

    fn node(n: usize) -> NodeId {
        identity(n).node()
    }

    fn start(&mut self, n: usize) -> Result<(), String> {
        if self.replicas[n].running.is_some() {
            return Ok(());
        }
        let replica = &mut self.replicas[n];
        let restored = std::mem::take(&mut replica.restored);
        let database =
            Database::on(replica.disk.clone()).node(Self::node(n)).limits(limits()).restored(restored).open();
        let database = database.map_err(|error| format!("replica {n} does not open: {error:?}"))?;
        let seed = self.random.bytes();
        let endpoint = Endpoint::over(&identity(n), self.network.socket(n), seed, &limits())
            .map_err(|error| format!("replica {n} has no endpoint: {error}"))?;
        let allow = Arc::new(AllowList::new(UnknownKeys::Refuse));
        for other in (0..self.replicas.len()).filter(|other| *other != n) {
            allow.allow(Self::node(other), if other < self.nodes { Role::Node } else { Role::Client });
        }
        let links = Links::start(database.clone(), endpoint, allow, LinkOptions::default());
        // Nodes in a ring, clients at their homes.
        let to = if n < self.nodes { (n + 1) % self.nodes } else { self.homes[n - self.nodes] };
        let ticket = Ticket::new(Self::node(to), "127.0.0.1", PORT + to as u16).map_err(|error| error.to_string())?;
        if to != n {
            links.dial(ticket);
        }
        self.replicas[n].running = Some((database, links));
        Ok(())
    }

    async fn stop(&mut self, n: usize) {
        let Some((database, links)) = self.replicas[n].running.take() else { return };
        // The power goes: nobody is told, nothing is closed in order.
        self.network.unplug(n);
        self.replicas[n].disk.die();
        links.close().await;
        database.close();
        let unsynced = self.replicas[n].disk.unsynced();
        let kept = self.random.index(unsynced + 1);
        let mark_kept = self.random.chance(50);
        self.replicas[n].disk.cut_power(kept, mark_kept);
    }

    async fn break_something(&mut self) -> Result<(), String> {
        let n = self.random.index(self.replicas.len());
        match self.random.below(8) {
            0..=2 => {
                self.outcome.crashes += 1;
                self.stop(n).await;
            }
            3..=5 => {
                self.outcome.partitions += 1;
                let one_way = self.random.chance(30);
                for a in 0..self.replicas.len() {
                    for b in 0..self.replicas.len() {
                        if a != b && self.random.chance(25) {
                            self.network.lock().blocked.insert((a, b));
                            if !one_way {
                                self.network.lock().blocked.insert((b, a));
                            }
                        }
                    }
                }
            }
            _ => match self.replicas[n].backup.take() {
                Some(image) => {
                    self.stop(n).await;
                    self.replicas[n].disk = SimDisk::of(image);
                    self.replicas[n].restored = true;
                    self.outcome.restores += 1;
                }
                None => self.replicas[n].backup = Some(self.replicas[n].disk.image()),
            },
        }
        Ok(())
    }

    /// A client saves a few edits.
    fn edit(&mut self, client: usize) -> Result<(), String> {
        let Some((database, _)) = &self.replicas[client].running else { return Ok(()) };
        let recent = self.documents.len().saturating_sub(8);
        let mut open = Vec::new();
        for id in &self.documents[recent..] {
            let state = database.reader().document(*id).map_err(|error| error.to_string())?;
            if state.is_some_and(|state| (1..80).contains(&state.change_count)) {
                open.push(*id);
            }
        }
        let failed = |error: tidelog::Error| format!("an edit at replica {client}: {error:?}");
        if open.len() < 3 {
            let notes = database.collection("notes").map_err(failed)?;
            let (note, commit) = notes.create(json!({ "text": "", "n": 0 })).map_err(failed)?;
            commit.wait().map_err(failed)?;
            self.documents.push(note.id());
            self.outcome.edits += 1;
            return Ok(());
        }
        let id = if self.random.chance(70) { open[client % open.len()] } else { open[self.random.index(open.len())] };
        let handle = database.find(id).map_err(failed)?;
        let edits = self.random.between(3, 9);
        let random = &mut self.random;
        let commit = handle.change(|edit| {
            for _ in 0..edits {
                if random.chance(70) {
                    let length = edit.length("text")?.unwrap_or(0);
                    edit.splice("text", random.index(length + 1), 0, random.pick(&["ebb ", "flow", "."]))?;
                } else {
                    edit.put("n", random.below(1000))?;
                }
            }
            Ok(())
        });
        commit.map_err(failed)?.wait().map_err(failed)?;
        self.outcome.edits += edits;
        self.outcome.commits += 1;
        Ok(())
    }

    async fn play(&mut self) -> Result<(), String> {
        for n in 0..self.replicas.len() {
            self.start(n)?;
        }
        let begin = Instant::now();
        set_wall_clock(Some(1_790_000_000_000));
        for _ in 0..EPISODES {
            let chaos = Instant::now() + Duration::from_secs(255);
            let mut next_break = Instant::now() + Duration::from_secs(self.random.between(5, 40));
            let mut turn = 0_u64;
            while Instant::now() < chaos {
                sleep(Duration::from_millis(850)).await;
                set_wall_clock(Some(1_790_000_000_000 + begin.elapsed().as_millis() as u64));
                turn += 1;
                if turn.is_multiple_of(10) && std::env::var("TIDELOG_SIM_WATCH").is_ok() {
                    let (packets, _, trace) = self.network.lock().sums();
                    println!("{:>9.3} {packets} packets {trace:016x}", begin.elapsed().as_secs_f64());
                }
                // Six edits every five seconds or so.
                self.edit(self.nodes + (turn % self.clients as u64) as usize)?;
                for n in 0..self.replicas.len() {
                    if self.replicas[n].running.is_none() && self.random.chance(15) {
                        self.start(n)?;
                    }
                }
                if self.random.chance(4) {
                    self.network.lock().blocked.clear();
                }
                if Instant::now() >= next_break {
                    self.break_something().await?;
                    next_break = Instant::now() + Duration::from_secs(self.random.between(10, 60));
                }
            }
            self.network.lock().blocked.clear();
            for n in 0..self.replicas.len() {
                self.start(n)?;
            }
            self.become_equal().await?;
        }
        self.outcome.hours = begin.elapsed().as_secs_f64() / 3600.0;
        for n in 0..self.replicas.len() {
            if let Some((database, links)) = self.replicas[n].running.take() {
                links.close().await;
                database.close();
            }
            if let Some(why) = self.replicas[n].disk.wrong() {
                return Err(format!("replica {n}: {why}"));
            }
        }
        Ok(())
    }

    /// Peace: within two minutes all replicas must have the same documents in the same states.
    async fn become_equal(&mut self) -> Result<(), String> {
        for _ in 0..120 {
            sleep(Duration::from_secs(1)).await;
            let mut all = Vec::new();
            for replica in &self.replicas {
                let Some((database, _)) = &replica.running else { continue };
                all.push(database.reader().inventory(None, usize::MAX).map_err(|error| error.to_string())?);
            }
            if all.len() == self.replicas.len() && all.windows(2).all(|pair| pair[0] == pair[1]) {
                return Ok(());
            }
        }
        let status = self.replicas.iter().flat_map(|replica| replica.running.as_ref()).map(|(_, links)| links.status());
        Err(format!("no convergence in peace: {:?}", status.collect::<Vec<_>>()))
    }
}

fn run(seed: u64, nodes: usize, clients: usize) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    seed_randomness(Some(seed));
    wait_for_writer(true);
    let outcome = runtime.block_on(async {
        let mut cluster = Cluster::new(seed, nodes, clients);
        let ended = cluster.play().await;
        let air = cluster.network.lock();
        let mut outcome = cluster.outcome.clone();
        (outcome.packets, outcome.dropped, outcome.trace) = air.sums();
        outcome.failure = ended.err().map(|why| format!("seed {}: {why}", cluster.seed));
        outcome
    });
    seed_randomness(None);
    wait_for_writer(false);
    set_wall_clock(None);
    outcome
}

/// Five nodes and five clients over real QUIC. `TIDELOG_SIM_QUIC_HOURS` says for how long, `TIDELOG_SIM_SEED` which one.
#[test]
fn clusters_over_quic_become_equal() {
    let one = asked("TIDELOG_SIM_SEED");
    let hours = asked("TIDELOG_SIM_QUIC_HOURS").unwrap_or(HOURS) as f64;
    let next = std::sync::atomic::AtomicU64::new(one.unwrap_or(1));
    let all: Mutex<Vec<Outcome>> = Mutex::default();
    let begin = std::time::Instant::now();
    let enough = |all: &[Outcome]| {
        all.iter().any(|outcome| outcome.failure.is_some())
            || all.iter().map(|outcome| outcome.hours).sum::<f64>() >= hours
            || one.is_some() && !all.is_empty()
    };
    std::thread::scope(|scope| {
        for _ in 0..if one.is_some() { 1 } else { threads() } {
            scope.spawn(|| {
                while !enough(&all.lock().unwrap()) {
                    let outcome = run(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed), NODES, CLIENTS);
                    all.lock().unwrap().push(outcome);
                }
            });
        }
    });
    let all = all.into_inner().unwrap();
    let sum = |count: fn(&Outcome) -> u64| all.iter().map(count).sum::<u64>();
    let (hours, took) = (all.iter().map(|outcome| outcome.hours).sum::<f64>(), begin.elapsed().as_secs_f64());
    println!(
        "{hours:.1} cluster-hours over QUIC in {took:.0} s: {} edits in {} commits, {} crashes, {} partitions, {} restores, \
         {} packets, {} lost",
        sum(|o| o.edits),
        sum(|o| o.commits),
        sum(|o| o.crashes),
        sum(|o| o.partitions),
        sum(|o| o.restores),
        sum(|o| o.packets),
        sum(|o| o.dropped)
    );
    if let Some(why) = all.iter().find_map(|outcome| outcome.failure.as_ref()) {
        let seed = why.trim_start_matches("seed ").split(':').next().and_then(|seed| seed.parse().ok()).unwrap_or(0);
        panic!("{why}\nreplay it with\n  {}", replay("clusters_over_quic_become_equal", seed));
    }
}

/// One seed gives one trace of packets between a node and a client: how many each sent, how long each was, which were
/// lost. With more links at one node the runtime draws which of them hears first that the log grew, and its draws cannot
/// be seeded; there the seed decides the faults and the luck of each way, and the first tier has the whole trace.
#[test]
fn one_seed_gives_one_trace_of_packets() {
    let (first, second) = (run(77, 1, 1), run(77, 1, 1));
    assert_eq!(first.failure, None);
    assert_eq!((first.trace, first.packets, first.edits), (second.trace, second.packets, second.edits));
}
