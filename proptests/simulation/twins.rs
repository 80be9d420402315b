//! Authors who sign two different changes with one number, and what that may cost: the changes that stand on the one that
//! goes, and nothing else.

use std::collections::BTreeSet;

use tidelog::automerge::transaction::Transactable;
use tidelog::automerge::{ActorId, Automerge, ROOT};
use tidelog::document::Change;
use tidelog::engine::{Clash, Incoming, IncomingBody};
use tidelog::history::Origin;
use tidelog::id::{ChangeHash, DocumentId, NodeId};
use tidelog::log::record::Admission;

use super::replica::Waiter;
use super::world::{NODES, World};

impl World {
    /// Signs two changes with one author and number, and gives them to two nodes, one each. One pair for a document:
    /// authors of several could conspire.
    pub fn make_twins(&mut self) -> Result<(), String> {
        // What a user edits on top of a twin may be denied and withdrawn both; which of them it was, nobody could say.
        if self.users.is_some() {
            return Ok(());
        }
        let mut nodes: Vec<usize> = (0..NODES).filter(|n| self.replicas[*n].engine.is_some()).collect();
        self.random.shuffle(&mut nodes);
        let ([one, other, ..], true) = (nodes.as_slice(), self.chaos) else { return Ok(()) };
        let (one, other) = (*one, *other);
        let known = |n: &usize, id: &DocumentId| self.replicas[*n].counts.get(id).is_some_and(|(_, count)| *count > 0);
        let recent = self.documents.iter().rev().take(8);
        let mut free: Vec<DocumentId> = recent.filter(|id| !self.twins.contains_key(*id)).copied().collect();
        free.retain(|id| known(&one, id) && known(&other, id));
        if free.is_empty() {
            return Ok(());
        }
        let id = self.random.pick(&free);
        let Some(base) = self.common_base(one, other, id)? else { return Ok(()) };
        let author: [u8; 16] = self.random.bytes();
        let mut signed = |value: i64| -> Result<Vec<Change>, String> {
            let mut document = base.clone().with_actor(ActorId::from(&author[..]));
            let mut changes = Vec::new();
            // Some go on, on top of what they signed.
            for _ in 0..1 + self.random.below(2) {
                let mut edit = document.transaction();
                edit.put(ROOT, "twin", value).map_err(|error| error.to_string())?;
                edit.commit();
                let made = document.get_last_local_change().ok_or("no change was made")?;
                changes.push(Change::from_automerge(made).map_err(|error| error.to_string())?);
            }
            Ok(changes)
        };
        let twins = [signed(1)?, signed(2)?];
        self.twins.insert(id, [twins[0][0].hash(), twins[1][0].hash()]);
        for (n, changes) in [one, other].into_iter().zip(twins) {
            self.say(|| format!("replica {n} is given a twin of {id}, {}", changes[0].hash()));
            let origin = Origin {
                node: NodeId([9; 32]),
                principal: String::new(),
                admission: Admission::Structural,
                rules_version: 0,
            };
            let row = |change| Incoming {
                document: id,
                body: IncomingBody::Change(Box::new(change)),
                origin: origin.clone(),
                signature: None,
            };
            let Some(engine) = self.replicas[n].engine.as_mut() else { continue };
            if let Ok(ticket) = engine.admit(Clash::KeepFirst, changes.into_iter().map(row).collect(), None, None) {
                self.replicas[n].waiters.insert(ticket, Waiter::Nobody);
            }
            self.wake_writer(n);
        }
        self.outcome.other_faults += 1;
        self.mark("an author signed two changes with one number");
        Ok(())
    }

    /// What one node shows, if the other has all of it; else the empty document, on which anybody may begin.
    fn common_base(&self, one: usize, other: usize, id: DocumentId) -> Result<Option<Automerge>, String> {
        let (Some(here), Some(there)) = (&self.replicas[one].engine, &self.replicas[other].engine) else {
            return Ok(None);
        };
        let Ok((heads, shown)) = here.with_view(id, |view| Ok((view.heads(), view.document().clone()))) else {
            return Ok(None);
        };
        let graph = there.reader().graph(id).map_err(|error| error.to_string())?;
        let is_shared = graph.lock().unwrap().contains_all(heads.as_slice());
        Ok(Some(if is_shared { shown } else { Automerge::new() }))
    }

    /// The twin that a change at a replica stands on, if on one.
    pub fn twin_below(&self, n: usize, id: DocumentId, hash: ChangeHash) -> Result<Option<ChangeHash>, String> {
        let (Some(twins), Some(engine)) = (self.twins.get(&id), &self.replicas[n].engine) else { return Ok(None) };
        let graph = engine.reader().graph(id).map_err(|error| error.to_string())?;
        let graph = graph.lock().unwrap();
        for twin in twins {
            let mut left: BTreeSet<_> = graph.index_of(twin).into_iter().collect();
            let is_here = !left.is_empty();
            graph.remove_ancestors(&[hash], &mut left);
            if is_here && left.is_empty() {
                return Ok(Some(*twin));
            }
        }
        Ok(None)
    }
}
