//! What is appended, and in which order: the engine without IO.
//!
//! [`Core::step`] takes what waits for the writer and makes one commit group of it: which changes are new, which wait
//! for a dependency, which are refused, and what the projections look like afterwards. It reads committed state through
//! a [`Reader`] and never writes, waits or looks at a clock; the [driver](super::driver) does. The answers it returns
//! may be given only once its group is durable.
//!
//! What it is given and answers is in `input.rs`. Changes are taken in `change.rs`, and where two have one number in
//! `clash.rs`; statements about documents' lives in `statement.rs`; what a node denies its client in `rejection.rs`.
//! `state.rs` is what all of them read and leave.

mod allowed;
mod audit;
mod change;
mod clash;
mod consume;
mod input;
mod owner;
mod rejection;
mod snapshot;
mod state;
mod statement;
mod void;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use self::allowed::Allowances;
use self::audit::Auditor;
#[cfg(feature = "web")]
pub(crate) use self::audit::refused_key;
use self::change::{Accepted, Verdict, node_of};
pub use self::clash::Clash;
use self::clash::Outranked;
pub use self::input::{Admitted, Incoming, IncomingBody};
pub(crate) use self::input::{By, Input};
pub(crate) use self::rejection::TakenBack;
use self::snapshot::remove_snapshot;
use self::statement::Stated;
use super::judge::Ruling;
use super::pending::{Arrival, Pending};
use super::refusal::Claims;
use crate::document::ChangeGraph;
use crate::history::fold::project_row;
use crate::history::{Graphs, HistoryError, Origin, Reader};
use crate::id::{ActorId, DocumentId, LogCursor, Lsn, NodeId, StorageId};
use crate::limits::Limits;
use crate::log::record::{Lifecycle, NameKind, NameRef, Record};
use crate::log::rows::{DocumentRow, PeerRow, encode_row};
use crate::log::{Appender, FinishedGroup, Group, Keyspace, Recovered, WriteBatch};

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
    /// Authors of documents that are not that sender's, as turned out since what he brings was judged.
    anothers: HashSet<(DocumentId, ActorId)>,
    now_ms: u64,
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

    fn take(&mut self, work: &mut Work, input: Input, now: Instant) -> Result<Admitted, HistoryError> {
        let mut answer = Admitted::default();
        match input {
            Input::Local { document, statements, changes, by } => {
                let By { principal, ruling, claims } = by;
                work.claims = claims;
                let origin = Origin { principal, rules_version: ruling.version(), ..self.own_origin() };
                let ruling = ruling.ruleset.is_some().then_some(ruling);
                for bytes in statements {
                    // A creation lets in what waited for it, whose fate is not this statement's.
                    let mut heard = Admitted::default();
                    let stated = Stated { bytes: &bytes, origin: &origin, via: None, ruling: ruling.clone() };
                    self.take_statement(work, document, stated, now, &mut heard)?;
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
                        ruling: ruling.clone(),
                    };
                    self.take_own(work, document, arrival, now, &mut answer)?;
                }
            }
            Input::Admit { rows, via, cursor, clash, audit } => {
                work.claims = audit.claims;
                let mut rulings: HashMap<[u8; 32], Ruling> = audit.allowed.into_iter().collect();
                work.anothers.clear();
                for row in rows {
                    match row.body {
                        IncomingBody::Change(change) => {
                            let (change, origin, signature) = (*change, row.origin, row.signature);
                            let ruling = rulings.remove(&change.hash().0);
                            let arrival = Arrival { change, origin, signature, via, made_here: false, clash, ruling };
                            self.take_change(work, row.document, arrival, now, &mut answer)?;
                        }
                        IncomingBody::Lifecycle(bytes) => {
                            let ruling = rulings.remove(&Lifecycle::id_of(&bytes).0);
                            let stated = Stated { bytes: &bytes, origin: &row.origin, via, ruling };
                            self.take_statement(work, row.document, stated, now, &mut answer)?;
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
}

fn put_cursor(work: &mut Work, peer: NodeId, cursor: &LogCursor) {
    let key = crate::history::peer_key(peer);
    let row = PeerRow { log_id: cursor.log_id.0, lsn: cursor.lsn.0, chain: cursor.chain.0 };
    work.group.batch.put(Keyspace::State, key.as_slice(), encode_row(Keyspace::State, &key, &row));
}
