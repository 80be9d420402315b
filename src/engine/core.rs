//! What is appended, and in which order: the engine without IO.
//!
//! [`Core::step`] takes what waits for the writer and makes one commit group of it: which changes are new, which wait
//! for a dependency, which are refused, and what the projections look like afterwards. It reads committed state through
//! a [`Reader`] and never writes, waits or looks at a clock; the [driver](super::driver) does. The answers it returns
//! may be given only once its group is durable.

mod allowed;
mod audit;
mod clash;
mod consume;
mod owner;
mod rejection;
mod void;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use self::allowed::Allowances;
use self::audit::Auditor;
#[cfg(feature = "web")]
pub(crate) use self::audit::refused_key;
pub use self::clash::Clash;
use self::clash::Outranked;
pub(crate) use self::rejection::TakenBack;
use super::judge::Ruling;
use super::pending::{Arrival, Pending};
use super::refusal::{Audit, Claims};
use crate::document::{Change, ChangeGraph, Node};
use crate::history::fold::{fold_change, fold_lifecycle, index_key, index_row, new_row, project_row};
use crate::history::voids::is_degraded;
use crate::history::{Graphs, HistoryError, Misfit, Names, Origin, Reader, Signature};
use crate::id::{ActorId, ChangeHash, DocumentId, Heads, LogCursor, Lsn, NodeId, StorageId};
use crate::limits::Limits;
use crate::log::record::{
    ChangeHeader, Lifecycle, LifecycleHeader, LifecycleKind, NameHeader, NameKind, NameRef, Record, WriteKind,
    payload_digest,
};
use crate::log::rows::{DocumentRow, IndexRow, PeerRow, SnapshotRef, SnapshotRow, encode_row};
use crate::log::{Appender, FinishedGroup, Group, Keyspace, Recovered, WriteBatch};

/// A row that came from a peer or an import.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// About which document.
    pub document: DocumentId,
    /// What it says.
    pub body: IncomingBody,
    /// Where it entered.
    pub origin: Origin,
    /// Of an author's first change, the node's signature of that, which is kept with it.
    pub signature: Option<Box<Signature>>,
}

/// What an [`Incoming`] row says.
#[derive(Debug, Clone)]
pub enum IncomingBody {
    /// A verified change.
    Change(Box<Change>),
    /// The bytes of a lifecycle statement.
    Lifecycle(Vec<u8>),
}

/// Something for the writer to do.
#[derive(Debug)]
pub(crate) enum Input {
    /// An edit made here: statements first, then changes. All of it is accepted, or it is a bug.
    Local { document: DocumentId, statements: Vec<Vec<u8>>, changes: Vec<Change>, by: By },
    /// Rows from elsewhere; the cursor moves if nothing of them has to wait. What their sender may not write is written
    /// down after them.
    Admit { rows: Vec<Incoming>, via: Option<NodeId>, cursor: Option<LogCursor>, clash: Clash, audit: Audit },
    /// A cursor alone.
    StoreCursor { peer: NodeId, cursor: LogCursor },
    /// What a consumer made of events, and how far it is now: if it still is where `expected` says.
    Consume { key: Vec<u8>, expected: Option<Vec<u8>>, rows: WriteBatch },
    /// A row of the keyspace `held`; without one, what is there goes.
    Hold { key: Vec<u8>, row: Option<Vec<u8>> },
    /// Changes that this version of automerge cannot apply.
    Void { document: DocumentId, misfits: Vec<Misfit>, automerge: String },
    /// Changes that `via` will not have, `falls` with all that stands on them, and what takes their place.
    #[cfg_attr(not(feature = "quic"), allow(dead_code, reason = "only links say what a client may do"))]
    TakeBack(Box<TakenBack>),
    /// Whether documents may be read here, as `via` says.
    #[cfg_attr(not(feature = "quic"), allow(dead_code, reason = "only links say what a client may do"))]
    Withhold { documents: Vec<DocumentId>, withheld: bool, via: NodeId },
    /// Another name for the store, if nothing was ever logged in it.
    AdoptStorageId(StorageId),
    /// A verified snapshot, to be kept as a cache.
    Snapshot { document: DocumentId, lsn: Lsn, heads: Heads, changes: u64, bytes: Vec<u8> },
}

/// On whose behalf something is written here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct By {
    /// Who that is, as the log records it; empty for nobody in particular.
    pub(crate) principal: String,
    /// What allowed it.
    pub(crate) ruling: Ruling,
    /// What is claimed of him.
    pub(crate) claims: Option<Arc<Claims>>,
}

impl Input {
    /// How many bytes it brings, for the queue's bound.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Local { changes, .. } => changes.iter().map(|change| change.bytes().len()).sum(),
            Self::Admit { rows, audit, .. } => {
                let of = |row: &Incoming| match &row.body {
                    IncomingBody::Change(change) => change.bytes().len(),
                    IncomingBody::Lifecycle(bytes) => bytes.len(),
                };
                rows.iter().map(of).sum::<usize>() + audit.bytes()
            }
            Self::StoreCursor { .. } | Self::AdoptStorageId(_) | Self::Withhold { .. } => 0,
            Self::Consume { rows, .. } => {
                rows.rows.iter().map(|(_, key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
            }
            Self::TakeBack(taken) => {
                taken.anew.iter().map(|change| change.bytes().len()).sum::<usize>() + taken.bytes()
            }
            Self::Hold { row, .. } => row.as_ref().map_or(0, Vec::len),
            Self::Void { misfits, .. } => misfits.iter().map(|misfit| misfit.why.len() + 64).sum(),
            Self::Snapshot { bytes, .. } => bytes.len(),
        }
    }
}

/// What became of something that was given to the writer.
#[derive(Debug, Clone, Default)]
pub struct Admitted {
    /// Changes and statements that were new.
    pub accepted: usize,
    /// Those we had.
    pub known: usize,
    /// Documents of which something has to wait, and what is missing (nothing: the creation).
    pub missing: Vec<(DocumentId, Vec<ChangeHash>)>,
    /// What was refused, and why.
    pub refused: Vec<(DocumentId, String)>,
    /// Changes that gave way to another of the same author and number. They are not asked for again.
    pub outranked: Vec<(DocumentId, ChangeHash)>,
    /// The cursor was stored: a peer's, or a consumer's.
    pub cursor_stored: bool,
}

/// What one step made.
#[derive(Debug, Default)]
pub(crate) struct Step {
    /// To be committed, and waited for.
    pub(crate) group: Option<FinishedGroup>,
    /// To be written when there is no group.
    pub(crate) rows: WriteBatch,
    /// One answer for each input, in order.
    pub(crate) answers: Vec<Result<Admitted, HistoryError>>,
    /// Documents that got changes from elsewhere, and the last record about each.
    pub(crate) changed: Vec<(DocumentId, Lsn)>,
    /// Documents that any record of the group is about, in the order of the records, some more than once.
    pub(crate) documents: Vec<DocumentId>,
    /// Documents about which a lifecycle statement was accepted.
    pub(crate) restated: Vec<DocumentId>,
    /// Documents whose snapshot is due.
    pub(crate) snapshots_due: Vec<DocumentId>,
    /// The store's new name. It is to be on the disk before any answer is given.
    pub(crate) storage_id: Option<StorageId>,
}

/// The one place that decides what is appended.
pub(crate) struct Core {
    reader: Reader,
    limits: Limits,
    appender: Appender,
    graphs: Graphs,
    rows: HashMap<DocumentId, DocumentRow>,
    pending: Pending,
    outranked: Outranked,
    auditor: Auditor,
    allowances: Allowances,
    last_name: NameRef,
    since_checkpoint: u64,
}

/// Rows kept between steps; all are dropped when there are more, and read again.
const ROWS_MAX: usize = 1 << 15;

/// The step under way.
#[derive(Default)]
struct Work {
    group: Group,
    step: Step,
    /// Rows as they were before this step.
    before: HashMap<DocumentId, Option<DocumentRow>>,
    /// Names given in this step.
    names: HashMap<(NameKind, Vec<u8>), NameRef>,
    /// Graphs used in this step, with what it accepted.
    graphs: HashMap<DocumentId, Arc<Mutex<ChangeGraph>>>,
    /// Consumers that it moved.
    consumed: HashSet<Vec<u8>>,
    /// Changes that it found to be void.
    voided: HashSet<Lsn>,
    /// What it accepted, for graphs that are read later in it.
    accepted: HashMap<DocumentId, Vec<Accepted>>,
    /// What is claimed of the sender of the input that is taken now.
    claims: Option<Arc<Claims>>,
    /// What allowed what he brings: by a change's hash or a statement's id.
    rulings: HashMap<[u8; 32], Ruling>,
    /// Authors of documents that are not that sender's, as turned out since what he brings was judged.
    anothers: HashSet<(DocumentId, ActorId)>,
    now_ms: u64,
}

/// What a graph needs to know of a change that this step accepted.
struct Accepted {
    hash: ChangeHash,
    actor: ActorId,
    seq: u64,
    start_op: u64,
    op_count: u64,
    deps: Vec<ChangeHash>,
    lsn: Lsn,
}

impl Accepted {
    fn of(change: &Change, lsn: Lsn) -> Self {
        Self {
            hash: change.hash(),
            actor: change.actor().clone(),
            seq: change.seq(),
            start_op: change.start_op(),
            op_count: change.op_count(),
            deps: change.deps().to_vec(),
            lsn,
        }
    }

    fn node(&self) -> Node<'_> {
        Node {
            hash: self.hash,
            actor: &self.actor,
            seq: self.seq,
            start_op: self.start_op,
            op_count: self.op_count,
            deps: &self.deps,
            lsn: self.lsn,
        }
    }
}

/// What is to become of one change.
enum Verdict {
    Accepted,
    /// Accepted, and others were withdrawn for it.
    Displaces,
    Known,
    Waits(Vec<ChangeHash>),
    /// Another change of the same author and number stays, or what it depends on gave way: that change.
    Outranked(ChangeHash),
    /// Not in this step: whoever brought it is asked again.
    Again,
    Refused(String),
}

impl Core {
    /// Takes over a recovered log.
    pub(crate) fn new(reader: Reader, limits: Limits, recovered: &Recovered) -> Result<Self, HistoryError> {
        Ok(Self {
            last_name: reader.names().last()?,
            graphs: Graphs::new(limits.graph_budget / 2),
            appender: Appender::new(recovered.tail, recovered.next),
            rows: HashMap::new(),
            pending: Pending::default(),
            outranked: Outranked::default(),
            auditor: Auditor::open(&reader)?,
            allowances: Allowances::after(recovered.tail.lsn),
            since_checkpoint: 0,
            reader,
            limits,
        })
    }

    /// Bytes of changes that wait for a dependency.
    #[cfg(feature = "sim")]
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending.bytes()
    }

    /// Makes one commit group of `inputs`. `now_ms` is the wall clock since 1970, `now` the steady one.
    pub(crate) fn step(&mut self, now_ms: u64, now: Instant, inputs: Vec<Input>) -> Step {
        if self.rows.len() > ROWS_MAX {
            self.rows.clear();
        }
        self.pending.begin_step();
        self.pending.expire(now);
        let now_ms = self.appender.clock(now_ms);
        let mut work = Work { group: self.appender.begin(), now_ms, ..Work::default() };
        if let Err(error) = self.end_minutes(&mut work) {
            tracing::error!(%error, "how many writes were refused beside those on record cannot be written down");
        }
        for input in inputs {
            let answer = self.take(&mut work, input, now);
            work.claims = None;
            work.rulings.clear();
            work.step.answers.push(answer);
        }
        self.finish(work)
    }

    fn finish(&mut self, mut work: Work) -> Step {
        let mut due: Vec<DocumentId> = work.before.keys().copied().filter(|id| self.snapshot_due(*id)).collect();
        due.sort_unstable();
        work.step.snapshots_due = due;
        for (id, before) in work.before {
            if let Some(row) = self.rows.get(&id) {
                project_row(&mut work.group.batch, id, before.as_ref(), row);
            }
        }
        if work.group.records() == 0 {
            work.step.rows = work.group.batch;
            return work.step;
        }
        self.since_checkpoint += work.group.records() as u64;
        if self.since_checkpoint >= self.limits.checkpoint_records {
            self.since_checkpoint = 0;
            self.appender.push(&mut work.group, &Record::Checkpoint);
            let key = crate::history::CHECKPOINT_KEY;
            let footer = self.appender.next().0;
            work.group.batch.put(Keyspace::State, key, encode_row(Keyspace::State, key, &footer));
        }
        work.step.group = self.appender.finish(work.group, work.now_ms);
        work.step
    }

    fn snapshot_due(&self, id: DocumentId) -> bool {
        let Some(row) = self.rows.get(&id).filter(|row| !is_degraded(row)) else { return false };
        let (saved_changes, saved_bytes) = row.snapshot.map_or((0, 0), |saved| (saved.changes, saved.bytes));
        let tail = row.change_count.saturating_sub(saved_changes);
        // Chunks are far larger than their share of a snapshot, so bytes are compared with chunks' bytes.
        let tail_bytes = (row.change_bytes / row.change_count.max(1)).saturating_mul(tail);
        tail > self.limits.snapshot_tail_min.max(row.change_count / 4)
            || (tail_bytes > self.limits.snapshot_tail_bytes.max(row.change_bytes / 4) && tail_bytes > saved_bytes)
    }

    fn take(&mut self, work: &mut Work, input: Input, now: Instant) -> Result<Admitted, HistoryError> {
        let mut answer = Admitted::default();
        match input {
            Input::Local { document, statements, changes, by } => {
                let By { principal, ruling, claims } = by;
                work.claims = claims;
                let origin = Origin { principal, rules_version: ruling.version(), ..self.own_origin() };
                if ruling.ruleset.is_some() {
                    let stated = statements.iter().map(|bytes| Lifecycle::id_of(bytes).0);
                    let written = stated.chain(changes.iter().map(|change| change.hash().0));
                    work.rulings.extend(written.map(|id| (id, ruling.clone())));
                }
                for bytes in statements {
                    // A creation lets in what waited for it, whose fate is not this statement's.
                    let mut heard = Admitted::default();
                    self.take_statement(work, document, &bytes, &origin, None, now, &mut heard)?;
                    if heard.accepted + heard.known == 0 {
                        heard.refused.push((document, "it was never created here".into()));
                        answer.refused.append(&mut heard.refused);
                    }
                    answer.accepted += heard.accepted;
                    answer.known += heard.known;
                }
                for change in changes {
                    let origin = origin.clone();
                    let arrival = Arrival {
                        change,
                        origin,
                        signature: None,
                        via: None,
                        made_here: true,
                        clash: Clash::KeepFirst,
                    };
                    self.take_own(work, document, arrival, now, &mut answer)?;
                }
            }
            Input::Admit { rows, via, cursor, clash, audit } => {
                work.claims = audit.claims;
                work.rulings.extend(audit.allowed);
                work.anothers.clear();
                for row in rows {
                    match row.body {
                        IncomingBody::Change(change) => {
                            let (change, origin, signature) = (*change, row.origin, row.signature);
                            let arrival = Arrival { change, origin, signature, via, made_here: false, clash };
                            self.take_change(work, row.document, arrival, now, &mut answer)?;
                        }
                        IncomingBody::Lifecycle(bytes) => {
                            self.take_statement(work, row.document, &bytes, &row.origin, via, now, &mut answer)?;
                        }
                    }
                }
                self.take_refusals(work, audit.refused)?;
                self.settle_missing(&mut answer);
                if let (Some(peer), Some(cursor), true) = (via, cursor, answer.missing.is_empty()) {
                    put_cursor(work, peer, &cursor);
                    answer.cursor_stored = true;
                }
            }
            Input::StoreCursor { peer, cursor } => {
                put_cursor(work, peer, &cursor);
                answer.cursor_stored = true;
            }
            Input::AdoptStorageId(id) => {
                // A name speaks for what its store has: it can be taken over only where nothing is.
                if self.appender.tail().lsn == Lsn::ZERO && self.rows.is_empty() {
                    crate::history::put_storage_id(&mut work.group.batch, id, self.appender.tail().log_id);
                    work.step.storage_id = Some(id);
                }
            }
            Input::Consume { key, expected, rows } => answer.cursor_stored = self.consume(work, key, expected, rows)?,
            Input::Hold { key, row } => work.hold(key, row),
            Input::TakeBack(taken) => self.take_back(work, *taken, now, &mut answer)?,
            Input::Withhold { documents, withheld, via } => self.take_withheld(work, &documents, withheld, via)?,
            Input::Void { document, misfits, automerge } => self.take_void(work, document, misfits, &automerge)?,
            Input::Snapshot { document, lsn, heads, changes, bytes } => {
                self.keep_snapshot(work, document, lsn, &heads, changes, &bytes)?;
            }
        }
        Ok(answer)
    }

    fn own_origin(&self) -> Origin {
        Origin {
            node: self.reader.node(),
            principal: String::new(),
            admission: crate::log::record::Admission::Local,
            rules_version: 0,
        }
    }

    /// Takes in one change that was made here. It may come next, or its commit fails: an edit never waits for another.
    fn take_own(
        &mut self,
        work: &mut Work,
        document: DocumentId,
        arrival: Arrival,
        now: Instant,
        answer: &mut Admitted,
    ) -> Result<(), HistoryError> {
        let hash = arrival.change.hash();
        let why = match self.admit(work, document, &arrival)? {
            Verdict::Accepted | Verdict::Displaces => {
                answer.accepted += 1;
                // Their fate is not this edit's.
                let mut others = Admitted::default();
                for waiting in self.pending.take_waiting(document, Some(hash)) {
                    self.take_change(work, document, waiting, now, &mut others)?;
                }
                return Ok(());
            }
            Verdict::Known if self.holds(work, document, hash)? => {
                answer.known += 1;
                return Ok(());
            }
            Verdict::Known | Verdict::Outranked(_) => "its author used its number before".to_owned(),
            Verdict::Waits(_) | Verdict::Again => "what it was made on top of is not here".to_owned(),
            Verdict::Refused(why) => why,
        };
        tracing::error!(%document, %hash, %why, "an edit made here was refused");
        answer.refused.push((document, format!("change {hash}: {why}")));
        Ok(())
    }

    /// Whether the document has this very change.
    fn holds(&mut self, work: &mut Work, document: DocumentId, hash: ChangeHash) -> Result<bool, HistoryError> {
        let graph = self.graph(work, document)?;
        let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(graph.contains(&hash))
    }

    /// Takes in one change, and whatever waited for it.
    fn take_change(
        &mut self,
        work: &mut Work,
        document: DocumentId,
        arrival: Arrival,
        now: Instant,
        answer: &mut Admitted,
    ) -> Result<(), HistoryError> {
        let mut ready = vec![arrival];
        while let Some(arrival) = ready.pop() {
            let hash = arrival.change.hash();
            let verdict = match self.is_anothers(work, document, &arrival)? {
                true => Verdict::Again,
                false => self.admit(work, document, &arrival)?,
            };
            match verdict {
                Verdict::Accepted | Verdict::Displaces => {
                    answer.accepted += 1;
                    ready.extend(self.pending.take_waiting(document, Some(hash)));
                    if matches!(verdict, Verdict::Displaces) {
                        // Some of what stands on it may have been here once and be withdrawn, and its sender holds it for
                        // known: the document is asked for as a whole.
                        self.pending.note_dropped(document);
                        if !answer.missing.iter().any(|(id, _)| *id == document) {
                            answer.missing.push((document, Vec::new()));
                        }
                        // If the answer does not come, a new link compares everything.
                        if let Some(peer) = arrival.via {
                            work.group.batch.remove(Keyspace::State, crate::history::peer_key(peer));
                        }
                    }
                }
                Verdict::Known => {
                    answer.known += 1;
                    self.note_known(work, document, &arrival)?;
                }
                Verdict::Outranked(by) => {
                    tracing::warn!(%document, %hash, %by, actor = %arrival.change.actor(), seq = arrival.change.seq(), "a change gives way to another of its author and number");
                    answer.outranked.push((document, hash));
                    self.drop_waiting(document, hash);
                }
                Verdict::Again => {
                    self.pending.note_dropped(document);
                    answer.missing.push((document, Vec::new()));
                }
                Verdict::Waits(missing) => {
                    self.keep_ruling(work, hash);
                    if !answer.missing.iter().any(|(id, _)| *id == document) {
                        answer.missing.push((document, Vec::new()));
                    }
                    self.pending.park(document, arrival, &missing, now, &self.limits);
                }
                Verdict::Refused(why) => {
                    tracing::warn!(%document, %hash, %why, "a change was refused");
                    answer.refused.push((document, format!("change {hash}: {why}")));
                }
            }
        }
        Ok(())
    }

    /// Documents of which nothing waits any more, and of which nothing was dropped, are not missing anything.
    fn settle_missing(&self, answer: &mut Admitted) {
        answer.missing.retain_mut(|(id, hashes)| match self.pending.missing(*id) {
            Some(missing) => {
                *hashes = missing;
                true
            }
            None => self.pending.dropped(*id),
        });
    }

    /// Checks one change against the document, and appends it if it may come next.
    fn admit(&mut self, work: &mut Work, document: DocumentId, arrival: &Arrival) -> Result<Verdict, HistoryError> {
        let change = &arrival.change;
        if change.bytes().len() > self.limits.change_bytes_max {
            return Ok(Verdict::Refused(format!("it has more than {} bytes", self.limits.change_bytes_max)));
        }
        if change.op_count() > self.limits.change_ops_max {
            return Ok(Verdict::Refused(format!("it has more than {} operations", self.limits.change_ops_max)));
        }
        let Some(row) = self.row(work, document)? else { return Ok(Verdict::Waits(Vec::new())) };
        if row.heads.iter().any(|head| head.hash == change.hash().0) {
            return Ok(Verdict::Known);
        }
        if change.unbacked_deletions() > row.max_op {
            return Ok(Verdict::Refused("it deletes more than there is".into()));
        }
        let at_heads = dependencies_among(&row, change.deps());
        let actor = self.reference_if_known(work, NameKind::Actor, change.actor().as_bytes())?;
        let Some(seq) = known_seq(&row, actor) else {
            // Too many authors for the row to list: the graph knows.
            return self.admit_by_graph(work, document, arrival, &row);
        };
        if change.seq() <= seq {
            // Known, or another change under a number that is taken: the graph tells.
            return self.admit_by_graph(work, document, arrival, &row);
        }
        let Some((deps, op_min)) = at_heads else {
            return self.admit_by_graph(work, document, arrival, &row);
        };
        if deps.len() < row.heads.len() && (seq > 0 || change.refers_to_others()) {
            // Whether what it follows and refers to is in its past, the heads alone do not tell.
            return self.admit_by_graph(work, document, arrival, &row);
        }
        if change.seq() != seq + 1 {
            return Ok(Verdict::Refused(format!("its number is {}, its author's next is {}", change.seq(), seq + 1)));
        }
        if let Some(why) = self.op_range_fault(&row, change, op_min) {
            return Ok(Verdict::Refused(why));
        }
        self.append(work, document, arrival, row, &deps)
    }

    /// Why a change's operations may not begin where they do, if they may not.
    fn op_range_fault(&self, row: &DocumentRow, change: &Change, op_min: u64) -> Option<String> {
        let op_max = row.max_op.saturating_add(1).saturating_add(self.limits.start_op_window).min(OP_END_MAX - 1);
        let fits =
            (op_min..=op_max).contains(&change.start_op()) && change.op_count() <= OP_END_MAX - change.start_op();
        (!fits)
            .then(|| format!("its operations begin at {}, between {op_min} and {op_max} is allowed", change.start_op()))
    }

    /// The same check for a change that was not made on top of the heads.
    fn admit_by_graph(
        &mut self,
        work: &mut Work,
        document: DocumentId,
        arrival: &Arrival,
        row: &DocumentRow,
    ) -> Result<Verdict, HistoryError> {
        let change = &arrival.change;
        let graph = self.graph(work, document)?;
        let deps = {
            let mut graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
            if graph.contains(&change.hash()) {
                return Ok(Verdict::Known);
            }
            let missing = graph.missing(change.deps());
            if let Some(gone) = missing.iter().find(|hash| self.outranked.contains(hash)) {
                return Ok(Verdict::Outranked(*gone));
            }
            if !missing.is_empty() && !mutant!(DependencyUnchecked) {
                return Ok(Verdict::Waits(missing));
            }
            if let Some(first) = graph.change_of(change.actor(), change.seq()) {
                drop(graph);
                return self.settle_clash(work, document, arrival, row, first);
            }
            let deps: Vec<Lsn> = change.deps().iter().filter_map(|hash| graph.lsn_of(hash)).collect();
            // The graph's own rules, on a copy of nothing: it is changed only when the change is taken.
            let node = node_of(change, self.appender.next());
            if let Err(error) = graph.check_next(&node).and_then(|()| graph.check_past(&node, &change.references())) {
                return Ok(Verdict::Refused(error.to_string()));
            }
            deps
        };
        if let Some(why) = self.op_range_fault(row, change, 1) {
            return Ok(Verdict::Refused(why));
        }
        self.append(work, document, arrival, row.clone(), &deps)
    }

    /// Puts the change's record and rows into the group.
    fn append(
        &mut self,
        work: &mut Work,
        document: DocumentId,
        arrival: &Arrival,
        mut row: DocumentRow,
        deps: &[Lsn],
    ) -> Result<Verdict, HistoryError> {
        let change = &arrival.change;
        let actor = self.reference(work, NameKind::Actor, change.actor().as_bytes())?;
        let (origin, via) = self.origin_references(work, &arrival.origin, arrival.via)?;
        let principal = match arrival.origin.principal.as_str() {
            "" => 0,
            name => self.reference(work, NameKind::Principal, name.as_bytes())?,
        };
        self.note_writer(work, &arrival.origin, principal)?;
        let is_first = deps.is_empty() && row.heads.is_empty();
        let deed = if is_first { WriteKind::Create } else { WriteKind::Update };
        let rules_version = self.note_allowed(work, change.hash().0, &arrival.origin, row.collection, deed)?;
        self.release(work, change.hash());
        let lsn = self.appender.next();
        let back = |other: Lsn| lsn.0 - other.0;
        let on_heads = row.heads.len() == deps.len() && row.heads.iter().all(|head| deps.contains(&Lsn(head.lsn)));
        let header = ChangeHeader {
            document: document.0,
            collection: row.collection,
            hash: change.hash().0,
            actor,
            seq: change.seq(),
            start_op: change.start_op(),
            op_count: change.op_count(),
            deps: deps.iter().copied().map(back).collect(),
            heads_before: (!on_heads).then(|| row.heads.iter().map(|head| back(Lsn(head.lsn))).collect()),
            time: change.time(),
            received_ms: work.now_ms,
            origin,
            via,
            principal,
            admission: arrival.origin.admission,
            rules_version,
            payload_digest: payload_digest(change.bytes()),
        };
        let index = index_row(&header);
        fold_change(&mut row, lsn, &header, change.bytes().len(), self.limits.clock_entries_in_row);
        self.appender.push(&mut work.group, &Record::Change(header, change.bytes().to_vec()));
        self.index(work, document, lsn, &index);
        if let Some(signature) = &arrival.signature {
            let (key, row) = signature.row(document);
            work.group.batch.put(Keyspace::Held, key, row);
        }
        if let Some(graph) = work.graphs.get(&document) {
            let mut graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
            graph.add(node_of(change, lsn)).map_err(|error| HistoryError::Document {
                document,
                lsn,
                why: format!("the change graph refused what its row allowed: {error}"),
            })?;
        }
        work.accepted.entry(document).or_default().push(Accepted::of(change, lsn));
        // Views have what was made through them, and nothing else: not even an own change that comes back.
        if !arrival.made_here {
            work.step.changed.push((document, lsn));
        }
        self.rows.insert(document, row);
        Ok(Verdict::Accepted)
    }

    #[expect(clippy::too_many_arguments, reason = "one statement and the step's context")]
    fn take_statement(
        &mut self,
        work: &mut Work,
        document: DocumentId,
        bytes: &[u8],
        origin: &Origin,
        via: Option<NodeId>,
        now: Instant,
        answer: &mut Admitted,
    ) -> Result<(), HistoryError> {
        let said = match Lifecycle::decode(bytes) {
            Ok(said) if said.document == document => said,
            Ok(_) => {
                answer.refused.push((document, "a lifecycle statement about another document".into()));
                return Ok(());
            }
            Err(error) => {
                answer.refused.push((document, format!("a lifecycle statement: {error}")));
                return Ok(());
            }
        };
        let known = self.row(work, document)?;
        if known.is_none() && said.kind != LifecycleKind::Created {
            self.pending.note_dropped(document);
            answer.missing.push((document, Vec::new()));
            return Ok(());
        }
        let id = Lifecycle::id_of(bytes);
        let mut row = known.unwrap_or_else(|| new_row(self.appender.next()));
        if !fold_lifecycle(&mut row.clone(), Lsn::ZERO, id, &said, 0) {
            answer.known += 1;
            return Ok(());
        }
        let collection = self.reference(work, NameKind::Collection, said.collection.as_str().as_bytes())?;
        let made_by = origin;
        let deed = if said.kind == LifecycleKind::Created { WriteKind::Create } else { WriteKind::Delete };
        self.note_allowed(work, id.0, made_by, collection, deed)?;
        let (origin, via) = self.origin_references(work, origin, via)?;
        let lsn = self.appender.next();
        if row.last_lsn == 0 {
            row.created_lsn = lsn.0;
        }
        fold_lifecycle(&mut row, lsn, id, &said, collection);
        let header = LifecycleHeader {
            document: document.0,
            collection,
            received_ms: work.now_ms,
            origin,
            via,
            payload_digest: payload_digest(bytes),
        };
        self.appender.push(&mut work.group, &Record::Lifecycle(header, bytes.to_vec()));
        self.index(work, document, lsn, &IndexRow::Lifecycle(id.0));
        self.attribute(work, made_by, lsn)?;
        self.rows.insert(document, row);
        work.step.restated.push(document);
        answer.accepted += 1;
        for arrival in self.pending.take_waiting(document, None) {
            self.take_change(work, document, arrival, now, answer)?;
        }
        Ok(())
    }

    fn keep_snapshot(
        &mut self,
        work: &mut Work,
        document: DocumentId,
        lsn: Lsn,
        heads: &Heads,
        changes: u64,
        bytes: &[u8],
    ) -> Result<(), HistoryError> {
        let Some(mut row) = self.row(work, document)? else { return Ok(()) };
        let older = row.snapshot.map(|saved| Lsn(saved.lsn));
        // What cannot be applied must not be loaded again some day.
        if is_degraded(&row) {
            return Ok(());
        }
        // One from before a withdrawal shows what was withdrawn.
        if older.is_some_and(|older| older >= lsn) || lsn.0 > row.last_lsn || lsn.0 < row.generation {
            return Ok(());
        }
        let parts: Vec<&[u8]> = bytes.chunks(self.limits.part_bytes).collect();
        let described = SnapshotRow {
            heads: heads.as_slice().iter().map(|hash| hash.0).collect(),
            changes,
            bytes: bytes.len() as u64,
            digest: *blake3::hash(bytes).as_bytes(),
            parts: parts.len() as u32,
        };
        let batch = &mut work.group.batch;
        for (part, bytes) in (1u32..).zip(&parts) {
            batch.put(Keyspace::Snap, crate::history::snapshot_key(document, lsn, part), bytes.to_vec());
        }
        let key = crate::history::snapshot_key(document, lsn, 0);
        batch.put(Keyspace::Snap, key, encode_row(Keyspace::Snap, &key, &described));
        if let Some(saved) = row.snapshot {
            remove_snapshot(batch, document, &saved, self.limits.part_bytes);
        }
        row.snapshot = Some(SnapshotRef { lsn: lsn.0, bytes: bytes.len() as u64, changes });
        self.rows.insert(document, row);
        Ok(())
    }

    /// The document's row with everything this step did; notes how it was before.
    fn row(&mut self, work: &mut Work, document: DocumentId) -> Result<Option<DocumentRow>, HistoryError> {
        if !self.rows.contains_key(&document)
            && let Some(row) = self.reader.row(document)?
        {
            self.rows.insert(document, row);
        }
        let row = self.rows.get(&document).cloned();
        work.before.entry(document).or_insert_with(|| row.clone());
        Ok(row)
    }

    /// The document's graph with everything this step accepted.
    fn graph(&mut self, work: &mut Work, document: DocumentId) -> Result<Arc<Mutex<ChangeGraph>>, HistoryError> {
        if let Some(graph) = work.graphs.get(&document) {
            return Ok(graph.clone());
        }
        let upto = self.reader.tail().lsn;
        let graph = self.graphs.graph(&**self.reader.storage(), self.reader.names(), document, upto)?;
        for accepted in work.accepted.get(&document).into_iter().flatten() {
            let mut graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
            graph.add(accepted.node()).map_err(|error| HistoryError::Document {
                document,
                lsn: accepted.lsn,
                why: error.to_string(),
            })?;
        }
        work.graphs.insert(document, graph.clone());
        Ok(graph)
    }

    fn index(&self, work: &mut Work, document: DocumentId, lsn: Lsn, row: &IndexRow) {
        work.step.documents.push(document);
        let key = index_key(document, lsn);
        work.group.batch.put(Keyspace::DocIx, key, encode_row(Keyspace::DocIx, &key, row));
    }

    fn origin_references(
        &mut self,
        work: &mut Work,
        origin: &Origin,
        via: Option<NodeId>,
    ) -> Result<(NameRef, NameRef), HistoryError> {
        let own = self.reader.node();
        let mut of = |node: NodeId| {
            if node == own { Ok(0) } else { self.reference(work, NameKind::Node, &node.0) }
        };
        Ok((of(origin.node)?, via.map_or(Ok(0), of)?))
    }

    fn reference_if_known(&self, work: &Work, kind: NameKind, name: &[u8]) -> Result<Option<NameRef>, HistoryError> {
        match work.names.get(&(kind, name.to_vec())) {
            Some(reference) => Ok(Some(*reference)),
            None => self.reader.names().find(kind, name),
        }
    }

    /// The number of a name, given now if it has none.
    fn reference(&mut self, work: &mut Work, kind: NameKind, name: &[u8]) -> Result<NameRef, HistoryError> {
        if let Some(reference) = self.reference_if_known(work, kind, name)? {
            return Ok(reference);
        }
        self.last_name += 1;
        let header = NameHeader { kind, reference: self.last_name, bytes: name.to_vec() };
        Names::project(&mut work.group.batch, &header);
        self.appender.push(&mut work.group, &Record::Name(header));
        work.names.insert((kind, name.to_vec()), self.last_name);
        Ok(self.last_name)
    }
}

/// Operation counters stay below this, or a later edit would overflow automerge's 32 bits.
const OP_END_MAX: u64 = 1 << 31;

fn remove_snapshot(batch: &mut WriteBatch, document: DocumentId, saved: &SnapshotRef, part_bytes: usize) {
    let parts = saved.bytes.div_ceil(part_bytes as u64);
    for part in 0..=u32::try_from(parts).unwrap_or(u32::MAX) {
        batch.remove(Keyspace::Snap, crate::history::snapshot_key(document, Lsn(saved.lsn), part));
    }
}

fn put_cursor(work: &mut Work, peer: NodeId, cursor: &LogCursor) {
    let key = crate::history::peer_key(peer);
    let row = PeerRow { log_id: cursor.log_id.0, lsn: cursor.lsn.0, chain: cursor.chain.0 };
    work.group.batch.put(Keyspace::State, key.as_slice(), encode_row(Keyspace::State, &key, &row));
}

/// Where `deps` are and the lowest counter operations may begin at, if all of them are heads.
fn dependencies_among(row: &DocumentRow, deps: &[ChangeHash]) -> Option<(Vec<Lsn>, u64)> {
    let mut op_min = 1;
    let mut found = Vec::with_capacity(deps.len());
    for dep in deps {
        let at = row.heads.binary_search_by(|head| head.hash.cmp(&dep.0)).ok()?;
        found.push(Lsn(row.heads[at].lsn));
        op_min = op_min.max(row.heads[at].max_op + 1);
    }
    Some((found, op_min))
}

/// The last number an author used in the document; `None` when the row does not tell.
fn known_seq(row: &DocumentRow, actor: Option<NameRef>) -> Option<u64> {
    let clock = row.clock.as_ref()?;
    let Some(actor) = actor else { return Some(0) };
    Some(clock.binary_search_by_key(&actor, |(other, _)| *other).map_or(0, |at| clock[at].1))
}

fn node_of(change: &Change, lsn: Lsn) -> Node<'_> {
    let actor: &ActorId = change.actor();
    Node {
        hash: change.hash(),
        actor,
        seq: change.seq(),
        start_op: change.start_op(),
        op_count: change.op_count(),
        deps: change.deps(),
        lsn,
    }
}
