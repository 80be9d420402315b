//! One node or client: its disk, its engine while it runs, and what was promised about it.

use std::collections::HashMap;
use std::sync::Arc;

use tidelog::engine::sim::{Engine, Setup, Ticket};
use tidelog::id::{ChangeHash, DocumentId, LogCursor, NodeId};
use tidelog::log::{Durability, RecoverOptions};
use tidelog::sync::Attester;
use tidelog::{Error, Limits};

use super::disk::{Image, SimDisk};
use super::random::Random;

/// Who waits for an answer of the writer.
#[derive(Debug, Clone, Copy)]
pub enum Waiter {
    /// A client's edit.
    Edit { document: DocumentId, hash: ChangeHash, edits: u64 },
    /// Rows that a link brought.
    Link { link: u64, side: usize },
    /// A change that must be refused.
    Rogue(DocumentId, ChangeHash),
    /// A statement, a snapshot: nobody in particular.
    Nobody,
}

pub struct Replica {
    pub node: NodeId,
    pub is_client: bool,
    pub durability: Durability,
    pub limits: Limits,
    pub disk: SimDisk,
    pub engine: Option<Engine>,
    /// What this replica's wall clock is ahead of the simulation's, in ms; the clock starts far above zero.
    pub skew_ms: i64,
    /// Who waits for what.
    pub waiters: HashMap<Ticket, Waiter>,
    /// A step of the writer is scheduled.
    pub writer_due: bool,
    /// The greatest footer that covers an answer: what the disk must hold.
    pub acknowledged: Option<LogCursor>,
    /// Generation and changes of each document, as last seen.
    pub counts: HashMap<DocumentId, (u64, u64)>,
    pub backup: Option<Image>,
    /// Its disk failed, and somebody will start it again.
    pub mending: bool,
    /// The next open is that of a restored copy.
    pub restored: bool,
    /// For clients: whether it has a network now.
    pub online: bool,
}

/// What stands in for a node's key: a seal that anybody can make, and nobody here makes for another.
#[derive(Debug)]
pub struct Seals(pub NodeId);

impl Attester for Seals {
    fn sign(&self, statement: &[u8]) -> Option<[u8; 64]> {
        let mut seal = [0; 64];
        blake3::Hasher::new_keyed(&self.0.0).update(statement).finalize_xof().fill(&mut seal);
        Some(seal)
    }

    fn verify(&self, node: NodeId, statement: &[u8], signature: &[u8; 64]) -> bool {
        Self(node).sign(statement).as_ref() == Some(signature)
    }
}

impl Replica {
    pub fn new(n: usize, is_client: bool, durability: Durability, limits: Limits) -> Self {
        let mut node = [0x11; 32];
        node[0] = n as u8 + 1;
        Self {
            node: NodeId(node),
            is_client,
            durability,
            limits,
            disk: SimDisk::new(),
            engine: None,
            skew_ms: 0,
            waiters: HashMap::new(),
            writer_due: false,
            acknowledged: None,
            counts: HashMap::new(),
            backup: None,
            mending: false,
            restored: false,
            online: !is_client,
        }
    }

    /// Starts the engine on whatever the disk holds; whether its log got a new id.
    pub fn start(&mut self, random: &mut Random) -> Result<bool, Error> {
        let recover = RecoverOptions { accept_tail_loss: false, restored: std::mem::take(&mut self.restored) };
        let setup = Setup {
            node: self.node,
            durability: self.durability,
            limits: self.limits.clone(),
            recover,
            nonce: random.bytes(),
        };
        let (engine, opened) = Engine::open(Arc::new(self.disk.clone()), setup)?;
        self.engine = Some(engine);
        Ok(opened.recovered.renewed)
    }

    /// The process is gone.
    pub fn stop(&mut self) {
        self.engine = None;
        self.waiters.clear();
        self.writer_due = false;
    }

    /// The wall clock here.
    pub fn clock_ms(&self, now_us: u64) -> u64 {
        const BEGIN_MS: u64 = 1_790_000_000_000;
        (BEGIN_MS + now_us / 1000).saturating_add_signed(self.skew_ms)
    }
}
