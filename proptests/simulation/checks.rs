//! What must be true after each step, after each start, and once there is peace.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidelog::history::{Location, Reader, rebuild, verify};
use tidelog::id::{ChangeHash, DocumentId, LogCursor};
use tidelog::log::{Durability, Keyspace, Storage};

use super::replica::Replica;
use super::world::{CLIENTS, NODES, Promise, World};

impl World {
    /// Nothing was written that may not be, and no queue is above its bound.
    pub fn check_disk(&mut self, n: usize) -> Result<(), String> {
        let replica = &self.replicas[n];
        if let Some(why) = replica.disk.wrong() {
            return Err(format!("replica {n}: {why}"));
        }
        let Some(engine) = &replica.engine else { return Ok(()) };
        let (items, bytes) = engine.queued();
        let limits = &replica.limits;
        // An input that was let in is taken whole, so the last one may stand above the bound.
        if items > limits.write_queue_items || bytes > limits.write_queue_bytes + limits.change_bytes_max {
            return Err(format!("replica {n} has {items} inputs of {bytes} bytes waiting"));
        }
        if engine.pending_bytes() > limits.pending_bytes {
            return Err(format!("replica {n} has {} bytes that wait", engine.pending_bytes()));
        }
        if replica.disk.is_failing() && engine.failure().is_some() && !replica.mending {
            self.replicas[n].mending = true;
            self.mend_later(n);
        }
        Ok(())
    }

    /// No document has fewer changes than before, unless some were withdrawn, which has to have a reason.
    pub fn check_counts(&mut self, n: usize, documents: &[DocumentId]) -> Result<(), String> {
        for id in documents {
            let Some(engine) = &self.replicas[n].engine else { return Ok(()) };
            let Some(row) = engine.reader().row(*id).map_err(|error| error.to_string())? else { continue };
            let after = (row.generation, row.change_count);
            let before = self.replicas[n].counts.insert(*id, after).unwrap_or_default();
            self.check_count(n, *id, before, after)?;
            self.mark_if("a change was withdrawn", after.0 > before.0);
        }
        Ok(())
    }

    /// Holds generation and count of a document's changes against what they were before.
    fn check_count(&self, n: usize, id: DocumentId, before: (u64, u64), after: (u64, u64)) -> Result<(), String> {
        // What a node denies is withdrawn.
        let has_reason = after.0 == 0 || self.twins.contains_key(&id) || !self.is_trusted(n);
        if has_reason && after.0 >= before.0 && (after.0 > before.0 || after.1 >= before.1) {
            return Ok(());
        }
        let ((generation, count), (later, left)) = (before, after);
        Err(format!(
            "replica {n} had {count} changes of {id} in generation {generation}, and has {left} in generation {later}"
        ))
    }

    /// What was acknowledged before the stop is on the disk.
    pub fn check_started(&mut self, n: usize, renewed: bool, was_restored: bool) -> Result<(), String> {
        self.replicas[n].mending = false;
        let replica = &self.replicas[n];
        let Some(engine) = &replica.engine else { return Ok(()) };
        let reader = engine.reader();
        if renewed && !was_restored && replica.durability == Durability::Synced {
            return Err(format!("the log of replica {n} got a new id and nothing was lost"));
        }
        if let Some(cursor) = replica.acknowledged {
            expect_known(reader, &cursor).map_err(|why| format!("replica {n} acknowledged {why}"))?;
        }
        for (id, count) in &replica.counts {
            let row = reader.row(*id).map_err(|error| error.to_string())?;
            let found = row.map_or((0, 0), |row| (row.generation, row.change_count));
            self.check_count(n, *id, *count, found).map_err(|why| format!("after its start {why}"))?;
        }
        if self.random.chance(4) {
            self.check_store(n, false)?;
        }
        Ok(())
    }

    /// The whole store of a replica holds against itself.
    pub fn check_store(&mut self, n: usize, deep: bool) -> Result<(), String> {
        let Some(engine) = &self.replicas[n].engine else { return Ok(()) };
        let report = verify(engine.reader(), deep, &mut |_, _| {}).map_err(|error| error.to_string())?;
        self.mark("a store was verified");
        match report.faults.first() {
            Some(fault) => Err(format!("replica {n}: {}: {}", fault.place, fault.why)),
            None => Ok(()),
        }
    }

    /// Whether all replicas run, are linked, have nothing to do, and are equal.
    pub fn is_at_rest(&mut self) -> Result<bool, String> {
        let idle = |replica: &Replica| replica.engine.as_ref().is_some_and(|engine| engine.queued().0 == 0);
        if !self.replicas.iter().all(idle) || self.links_at_rest().is_some() {
            return Ok(false);
        }
        Ok(self.difference()?.is_none() && self.lost_edit()?.is_none())
    }

    fn difference(&mut self) -> Result<Option<String>, String> {
        let mut first: Option<BTreeMap<DocumentId, [u8; 16]>> = None;
        for (n, replica) in self.replicas.iter().enumerate().filter(|(n, _)| self.is_trusted(*n)) {
            let Some(engine) = &replica.engine else { return Ok(Some(format!("replica {n} does not run"))) };
            let inventory = engine.reader().inventory(None, usize::MAX).map_err(|error| error.to_string())?;
            let inventory = inventory.into_iter().map(|(id, digest)| (id, digest.0)).collect();
            match &first {
                None => first = Some(inventory),
                Some(first) if *first == inventory => {}
                Some(first) => {
                    let other = |id: &&DocumentId| first.get(id) != inventory.get(id);
                    let ids: Vec<&DocumentId> = first.keys().chain(inventory.keys()).filter(other).take(1).collect();
                    let id = *ids[0];
                    let mut states = String::new();
                    for (n, replica) in self.replicas.iter().enumerate() {
                        let Some(engine) = &replica.engine else { continue };
                        let row = engine.reader().row(id).map_err(|error| error.to_string())?;
                        let Some(row) = row else { continue };
                        let heads: Vec<String> = row.heads.iter().map(|head| ChangeHash(head.hash).short()).collect();
                        let winner = row.winner.as_ref().map(|winner| (winner.kind, winner.lamport, winner.id[0]));
                        states += &format!(
                            "\n  {n}: {} changes, heads {heads:?}, winner {winner:?}, withdrawn {} times",
                            row.change_count, row.withdrawals
                        );
                    }
                    return Ok(Some(format!("replica 0 and replica {n} differ about {id}:{states}")));
                }
            }
        }
        self.difference_of_users()
    }

    pub fn describe_difference(&mut self) -> Result<String, String> {
        let rest = self.links_at_rest();
        let queued: Vec<(usize, usize)> = self
            .replicas
            .iter()
            .map(|replica| replica.engine.as_ref().map_or((0, 0), |engine| engine.queued()))
            .collect();
        let (difference, lost) = (self.difference()?.unwrap_or_default(), self.lost_edit()?.unwrap_or_default());
        Ok(format!("no convergence in peace: {difference}; {lost}; {rest:?}; queues {queued:?}"))
    }

    /// All replicas are equal: what was promised must be there, and what was refused must not.
    pub fn check_peace(&mut self, episode: u64) -> Result<(), String> {
        for n in 0..self.replicas.len() {
            self.check_disk(n)?;
        }
        let mut judge = self.random.index(self.replicas.len());
        if !self.is_trusted(judge) {
            judge = 0;
        }
        for Promise { author, document, hash, stands_on } in std::mem::take(&mut self.promised) {
            if self.has(judge, document, hash)? {
                continue;
            }
            match stands_on {
                Some(twin) if !self.has(judge, document, twin)? => {
                    self.mark("an acknowledged edit went with what it stood on");
                }
                // Its author followed a node to the other twin, and another one back.
                Some(_) if self.is_listed(author, document, hash)? => {
                    self.mark("an acknowledged edit that went with what it stood on is on a list");
                }
                _ => return Err(format!("change {hash} of {document}, acknowledged by replica {author}, is nowhere")),
            }
        }
        let refused = self.refused.clone();
        for (id, hash) in refused.into_iter().rev().take(20) {
            for n in 0..self.replicas.len() {
                if self.has(n, id, hash)? {
                    return Err(format!("change {hash} of {id} was refused and is at replica {n}"));
                }
            }
        }
        self.check_views()?;
        if episode % 4 == 3 {
            self.check_rebuilt()?;
        }
        if episode + 1 == self.plan.episodes {
            let n = self.random.index(self.replicas.len());
            self.check_store(n, true)?;
        }
        Ok(())
    }

    /// Whether an edit is on its author's list of rejected ones.
    fn is_listed(&mut self, author: usize, document: DocumentId, hash: ChangeHash) -> Result<bool, String> {
        let Some(engine) = &mut self.replicas[author].engine else { return Ok(false) };
        let rejected = engine.database().and_then(|database| database.rejected());
        let rejected = rejected.map_err(|error| error.to_string())?;
        Ok(rejected.iter().any(|rejected| rejected.document == document && rejected.change == Some(hash)))
    }

    fn has(&self, n: usize, id: DocumentId, hash: ChangeHash) -> Result<bool, String> {
        let Some(engine) = &self.replicas[n].engine else { return Ok(false) };
        let graph = engine.reader().graph(id).map_err(|error| error.to_string())?;
        let graph = graph.lock().unwrap();
        Ok(graph.contains(&hash))
    }

    /// Materialised documents have the heads of their rows, and say the same on two clients.
    fn check_views(&mut self) -> Result<(), String> {
        if self.documents.is_empty() {
            return Ok(());
        }
        let recent = self.documents.len().saturating_sub(6);
        for _ in 0..3 {
            let id = self.documents[recent + self.random.index(self.documents.len() - recent)];
            let mut seen = Vec::new();
            for n in [NODES + self.random.index(CLIENTS), NODES + self.random.index(CLIENTS)] {
                let Some(engine) = &self.replicas[n].engine else { continue };
                let Some(state) = engine.reader().document(id).map_err(|error| error.to_string())? else { continue };
                let view = engine.with_view(id, |view| Ok((view.heads(), view.to_json()?)));
                let (heads, json) = view.map_err(|error| format!("replica {n}: {error:?}"))?;
                if heads != state.heads {
                    return Err(format!("replica {n} shows {id} at {heads} and has logged {}", state.heads));
                }
                // A user may not see all that others do.
                if self.is_trusted(n) {
                    seen.push(json);
                }
            }
            if seen.windows(2).any(|pair| pair[0] != pair[1]) {
                return Err(format!("two clients have {id} with equal heads and different values"));
            }
        }
        Ok(())
    }

    /// The projections made again from the log are those that are there.
    fn check_rebuilt(&mut self) -> Result<(), String> {
        let n = self.random.index(self.replicas.len());
        let replica = &self.replicas[n];
        let Some(engine) = &replica.engine else { return Ok(()) };
        let again = replica.disk.copy();
        let storage: Arc<dyn Storage> = Arc::new(again.clone());
        rebuild(&*storage, engine.reader().tail().lsn, &mut |_, _| {}).map_err(|error| error.to_string())?;
        let tables = [
            (Keyspace::DocIx, &b""[..]),
            (Keyspace::Docs, b""),
            (Keyspace::BySeq, b""),
            (Keyspace::State, b"n"),
            (Keyspace::State, b"N"),
        ];
        for (keyspace, prefix) in tables {
            if replica.disk.rows(keyspace, prefix) != again.rows(keyspace, prefix) {
                return Err(format!("replica {n}: {} made again from the log differs", keyspace.name()));
            }
        }
        self.mark("projections were made again");
        Ok(())
    }
}

impl Replica {
    /// How many records its log has.
    pub fn records(&self) -> u64 {
        self.disk.rows(Keyspace::Log, b"").len() as u64
    }
}

fn expect_known(reader: &Reader, cursor: &LogCursor) -> Result<(), String> {
    match reader.locate(cursor) {
        Ok(Location::Known) => Ok(()),
        Ok(other) => Err(format!("record {} and its log is {other:?} there", cursor.lsn)),
        Err(error) => Err(format!("record {}: {error}", cursor.lsn)),
    }
}
