//! Taking in changes: which may come next in their document, which wait, which are refused.

use std::sync::PoisonError;
use std::time::Instant;

use super::{Admitted, Arrival, Core, Work};
use crate::document::{Change, Node};
use crate::history::HistoryError;
use crate::history::fold::{fold_change, index_row};
use crate::id::{ActorId, ChangeHash, DocumentId, Lsn};
use crate::log::Keyspace;
use crate::log::record::{ChangeHeader, NameKind, NameRef, Record, WriteKind, payload_digest};
use crate::log::rows::DocumentRow;

/// What a graph needs to know of a change that this step accepted.
pub(super) struct Accepted {
    hash: ChangeHash,
    actor: ActorId,
    seq: u64,
    start_op: u64,
    op_count: u64,
    deps: Vec<ChangeHash>,
    pub(super) lsn: Lsn,
}

impl Accepted {
    pub(super) fn of(change: &Change, lsn: Lsn) -> Self {
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

    pub(super) fn node(&self) -> Node<'_> {
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
pub(super) enum Verdict {
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
    /// Takes in one change that was made here. It may come next, or its commit fails: an edit never waits for another.
    pub(super) fn take_own(
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
    pub(super) fn holds(
        &mut self,
        work: &mut Work,
        document: DocumentId,
        hash: ChangeHash,
    ) -> Result<bool, HistoryError> {
        let graph = self.graph(work, document)?;
        let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(graph.contains(&hash))
    }

    /// Takes in one change, and whatever waited for it.
    pub(super) fn take_change(
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
    pub(super) fn append(
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
        let rules_version = self.note_allowed(work, arrival.ruling.as_ref(), &arrival.origin, row.collection, deed)?;
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
}

/// Operation counters stay below this, or a later edit would overflow automerge's 32 bits.
const OP_END_MAX: u64 = 1 << 31;

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

pub(super) fn node_of(change: &Change, lsn: Lsn) -> Node<'_> {
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
