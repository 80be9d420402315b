//! Making changes anew that stood on others which are taken back.
//!
//! A change is bound by its hash to everything below it. When something below may not stay, what was made on top of it
//! is made once more by another author, as the same operations: what they name is named anew where it was made anew,
//! and what stood between is stepped over. An operation on something that is gone (a field of an object that was never
//! there, the deletion of a character that was never typed) has no meaning any more and is left out.
//!
//! ```text
//! an operation names      gone                            made anew
//! its object              left out                        the new object
//! a list element to follow  what that followed            the new element
//! a list element to change  left out                      the new element
//! what it overwrites      what that overwrote             the new operation
//! ```

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::legacy::{Change as Written, ElementId, Key, ObjectId, Op, OpId, OpType, SortedVec};

use super::{Change, ChangeError, View, ViewError};
use crate::id::{ActorId, Heads};

/// Where changes are made anew.
#[derive(Debug, Clone)]
pub struct Base {
    /// What they are made on top of.
    pub heads: Heads,
    /// The highest operation counter there.
    pub max_op: u64,
    /// Who makes them: an author of whom the document has nothing.
    pub actor: ActorId,
}

/// What came of making changes anew.
#[derive(Debug, Default)]
pub struct Rebased {
    /// The new changes, each on top of the one before. What has nothing left to do is not among them.
    pub changes: Vec<Change>,
    /// Operations that were left out.
    pub left_out: u64,
}

/// Why changes cannot be made anew.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RebaseError {
    /// The result is one that other nodes would refuse.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Automerge panicked.
    #[error("automerge panicked while it made a change anew")]
    Panicked,
}

/// Makes `again` anew on `base`, without `gone`. Both are in topological order, and whatever `again` stands on that is in
/// neither is in the base.
///
/// # Errors
/// [`RebaseError`]. Nothing is made then.
///
/// # Cost
/// Linear in the operations of both.
pub fn rebase(gone: &[Change], again: &[Change], base: &Base) -> Result<Rebased, RebaseError> {
    // Automerge's encoder asserts what its own operations fulfil.
    catch_unwind(AssertUnwindSafe(|| Rebase::of(gone).run(again, base))).map_err(|_| RebaseError::Panicked)?
}

/// What became of an operation that is not in the base.
enum Fate {
    /// It was made anew under this name.
    Anew(OpId),
    /// It is not there. What it overwrote, and what list element it followed, if it made one.
    Gone { overwrote: Vec<OpId>, followed: Option<ElementId> },
}

struct Rebase {
    fates: HashMap<OpId, Fate>,
    /// What deletions that are gone had deleted, by object and key, with the deletion's counter. Whoever wrote there later
    /// did not see it and would not overwrite it.
    deleted: HashMap<(ObjectId, Key), Vec<(u64, Vec<OpId>)>>,
    left_out: u64,
}

impl Rebase {
    fn of(gone: &[Change]) -> Self {
        let mut rebase = Self { fates: HashMap::new(), deleted: HashMap::new(), left_out: 0 };
        for change in gone {
            let change = change.as_automerge().decode();
            for (op, id) in change.operations.iter().zip(ids(&change)) {
                rebase.lose(id, op);
            }
        }
        rebase
    }

    fn run(mut self, again: &[Change], base: &Base) -> Result<Rebased, RebaseError> {
        let actor = automerge::ActorId::from(base.actor.as_bytes());
        let mut deps: Vec<automerge::ChangeHash> =
            base.heads.as_slice().iter().map(|head| automerge::ChangeHash(head.0)).collect();
        let (mut next, mut changes) = (base.max_op + 1, Vec::new());
        for old in again {
            let old = old.as_automerge().decode();
            let start = next;
            let mut operations = Vec::with_capacity(old.operations.len());
            // The key of the mark that began last, and its new name.
            let mut begun: Option<(Key, OpId)> = None;
            for (op, id) in old.operations.iter().zip(ids(&old)) {
                match self.anew(op, id.counter()) {
                    Some(mut new) => {
                        match (&op.action, &begun) {
                            (OpType::MarkBegin(_), _) => begun = Some((new.key.clone(), OpId::new(next, &actor))),
                            // All between is gone. Of two that follow one element the later comes first, and a mark must
                            // not end before it begins.
                            (OpType::MarkEnd(_), Some((key, begin))) if *key == new.key => {
                                new.key = Key::Seq(ElementId::Id(begin.clone()));
                            }
                            _ => {}
                        }
                        self.fates.insert(id, Fate::Anew(OpId::new(next, &actor)));
                        operations.push(new);
                        next += 1;
                    }
                    None => {
                        self.left_out += 1;
                        self.lose(id, op);
                    }
                }
            }
            let Some(start_op) = NonZeroU64::new(start).filter(|_| !operations.is_empty()) else { continue };
            let new = Written {
                operations,
                actor_id: actor.clone(),
                hash: None,
                seq: changes.len() as u64 + 1,
                start_op,
                time: old.time,
                message: old.message,
                deps: std::mem::take(&mut deps),
                extra_bytes: Vec::new(),
                author: None,
            };
            let new = Change::from_automerge(new.into())?;
            deps.push(automerge::ChangeHash(new.hash().0));
            changes.push(new);
        }
        Ok(Rebased { changes, left_out: self.left_out })
    }

    fn lose(&mut self, id: OpId, op: &Op) {
        let followed = match &op.key {
            Key::Seq(element) if op.insert => Some(element.clone()),
            _ => None,
        };
        let overwrote: Vec<OpId> = op.pred.iter().cloned().collect();
        if matches!((&op.action, &op.key), (OpType::Delete, Key::Map(_))) {
            let place = self.deleted.entry((op.obj.clone(), op.key.clone())).or_default();
            place.push((id.counter(), overwrote.clone()));
        }
        self.fates.insert(id, Fate::Gone { overwrote, followed });
    }

    /// The operation as it is made anew; `None` when it has no meaning any more.
    fn anew(&self, op: &Op, counter: u64) -> Option<Op> {
        let obj = match &op.obj {
            ObjectId::Root => ObjectId::Root,
            ObjectId::Id(id) => ObjectId::Id(self.still_there(id)?),
        };
        let key = match &op.key {
            Key::Map(key) => Key::Map(key.clone()),
            Key::Seq(ElementId::Head) => Key::Seq(ElementId::Head),
            Key::Seq(ElementId::Id(id)) if op.insert => Key::Seq(self.neighbour(id)),
            Key::Seq(ElementId::Id(id)) => Key::Seq(ElementId::Id(self.still_there(id)?)),
        };
        let deleted = self.deleted.get(&(op.obj.clone(), op.key.clone())).into_iter().flatten();
        let deleted = deleted.filter(|(deletion, _)| *deletion < counter).flat_map(|(_, preds)| preds);
        let pred: SortedVec<OpId> = self.overwritten(op.pred.iter().chain(deleted)).into();
        let has_meaning = match op.action {
            // What is counted on must be the same counter.
            OpType::Increment(_) => op.pred.iter().all(|id| self.still_there(id).is_some()),
            OpType::Delete => !pred.is_empty(),
            _ => true,
        };
        has_meaning.then(|| Op { action: op.action.clone(), obj, key, pred, insert: op.insert })
    }

    fn still_there(&self, id: &OpId) -> Option<OpId> {
        match self.fates.get(id) {
            None => Some(id.clone()),
            Some(Fate::Anew(new)) => Some(new.clone()),
            Some(Fate::Gone { .. }) => None,
        }
    }

    /// The list element that one which follows `id` follows now.
    fn neighbour(&self, id: &OpId) -> ElementId {
        let mut id = id;
        loop {
            match self.fates.get(id) {
                None => return ElementId::Id(id.clone()),
                Some(Fate::Anew(new)) => return ElementId::Id(new.clone()),
                Some(Fate::Gone { followed: Some(ElementId::Id(before)), .. }) => id = before,
                Some(Fate::Gone { .. }) => return ElementId::Head,
            }
        }
    }

    /// What one who overwrote `preds` overwrites now.
    fn overwritten<'a>(&'a self, preds: impl Iterator<Item = &'a OpId>) -> Vec<OpId> {
        let mut left: Vec<&OpId> = preds.collect();
        let mut found = Vec::with_capacity(left.len());
        while let Some(id) = left.pop() {
            match self.fates.get(id) {
                None => found.push(id.clone()),
                Some(Fate::Anew(new)) => found.push(new.clone()),
                Some(Fate::Gone { overwrote, .. }) => left.extend(overwrote),
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

impl View {
    /// Whether `changes` fit the document as it was at `heads`, so that another node takes them. The view stays as it is.
    ///
    /// # Errors
    /// [`ViewError::UnknownHead`]; as [`View::apply_proven`].
    ///
    /// # Cost
    /// The document is made once more.
    pub fn takes_at(&self, heads: &Heads, changes: &[Change]) -> Result<(), ViewError> {
        let known = heads.as_slice().iter().find(|head| !self.contains(**head));
        if let Some(unknown) = known {
            return Err(ViewError::UnknownHead(*unknown));
        }
        let heads: Vec<_> = heads.as_slice().iter().map(|head| automerge::ChangeHash(head.0)).collect();
        let mut then = Self::new();
        if !heads.is_empty() {
            let forked = catch_unwind(AssertUnwindSafe(|| self.document().fork_at(&heads).map(|then| then.save())));
            let saved = forked.map_err(|_| ViewError::Panicked("panicked while it was forked".to_owned()))?;
            then = Self::load(&saved.map_err(|error| ViewError::Automerge(error.to_string()))?)?;
        }
        then.apply_proven(changes, false)
    }
}

/// The names of a change's operations, in order.
fn ids(change: &Written) -> impl Iterator<Item = OpId> {
    let actor = change.actor_id.clone();
    (change.start_op.get()..).map(move |counter| OpId::new(counter, &actor))
}

#[cfg(test)]
mod tests;
