//! Rows as a session hands them over, on their way to the log: unpacked, tried when their sender is not trusted, and
//! offered in groups that the writer can take.

use std::collections::HashSet;
use std::sync::Arc;

use super::core::{Admitted, Clash, Incoming, IncomingBody};
use super::database::Database;
use super::judge::Judge;
use super::refusal::Audit;
use super::turns::{Turn, cost_of_split};
use crate::document::{View, split_and_keep};
use crate::error::Error;
use crate::id::{LogCursor, NodeId};
use crate::sync::{self, Denied, IncomingRow};

/// Whose rows they are.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Through which node they enter; our own for clients that are no nodes.
    pub(crate) node: NodeId,
    /// What it sends need not be tried.
    pub(crate) is_trusted: bool,
    /// Whose change stays when two have one author and number.
    pub(crate) clash: Clash,
    /// Who says what it may write; `None` where anything may be. With one, what it sends is tried, trusted or not.
    pub(crate) judge: Option<Arc<dyn Judge>>,
}

/// What a signature costs to check, in microseconds.
const SIGNATURE_US: u64 = 50;

impl Database {
    /// Counts a claim of a node about another one that is taken for its own word.
    #[cfg(feature = "quic")]
    pub(crate) fn note_unproven(&self, unproven: sync::Unproven) {
        self.trials().count_unproven(unproven == sync::Unproven::Forged);
    }

    /// How many documents would come to be by these rows.
    pub(crate) fn count_new(&self, rows: &[IncomingRow]) -> u64 {
        let reader = self.reader();
        let mut new = HashSet::new();
        let mut last = None;
        for row in rows {
            // Most of them are about one document.
            if last.replace(row.document) != Some(row.document)
                && reader.row(row.document).is_ok_and(|row| row.is_none())
            {
                new.insert(row.document);
            }
        }
        new.len() as u64
    }

    /// Offers what a session gave out to the log, and stores `cursor` with it if nothing of it had to wait. Resolves
    /// once what was taken is durable.
    ///
    /// # Errors
    /// As [`Database::admit`]; [`Error::Change`], [`Error::Unappliable`] and [`Error::Refused`] when an untrusted peer
    /// sent what cannot be taken. What stood before it may be in the log.
    ///
    /// # Cancel safety
    /// Dropped, some of the rows may be taken unheard.
    pub(crate) async fn offer(
        &self,
        from: Source,
        rows: Vec<IncomingRow>,
        cursor: Option<LogCursor>,
    ) -> Result<sync::Admitted, Error> {
        if rows.is_empty() {
            if let Some(cursor) = cursor {
                self.store_cursor(from.node, cursor).await?;
            }
            return Ok(sync::Admitted { cursor_stored: cursor.is_some(), ..sync::Admitted::default() });
        }
        let limits = self.limits();
        let (mut group, mut bytes) = (Vec::new(), 0);
        let mut all = sync::Admitted::default();
        for row in rows {
            let (mut unpacked, built) = self.unpack(&from, row).await?;
            // What is to be judged is tried change by change.
            let is_ahead = !from.is_trusted && from.judge.is_none() && unpacked.len() > limits.group_records_max;
            if let Some(view) = built.filter(|_| is_ahead) {
                unpacked = self.try_ahead_aside(&from, unpacked, view).await?;
            }
            for row in unpacked {
                if group.len() >= limits.group_records_max || bytes >= limits.group_bytes_max {
                    gather(&mut all, self.offer_group(&from, std::mem::take(&mut group), None).await?);
                    bytes = 0;
                    // A writer that answers at once would let this task run on for as long as it has rows.
                    tokio::task::yield_now().await;
                }
                bytes += match &row.body {
                    IncomingBody::Change(change) => change.bytes().len(),
                    IncomingBody::Lifecycle(bytes) => bytes.len(),
                };
                group.push(row);
            }
        }
        // What an earlier group had to leave waiting, or denied, keeps the cursor where it is.
        let cursor = cursor.filter(|_| all.missing.is_empty() && all.denied.is_empty());
        let last = self.offer_group(&from, group, cursor).await?;
        all.cursor_stored = last.0.cursor_stored;
        gather(&mut all, last);
        Ok(all)
    }

    /// Tries the changes of one document chunk in one go; `view` is the document that was built of it.
    async fn try_ahead_aside(&self, from: &Source, rows: Vec<Incoming>, view: View) -> Result<Vec<Incoming>, Error> {
        let turn = self.turns().turn(self.account_of(from), self.cost_of_trying(&rows)?).await?;
        let trier = self.clone();
        aside(turn, move || {
            trier.try_ahead(&rows, view)?;
            Ok(rows)
        })
        .await?
    }

    async fn offer_group(
        &self,
        from: &Source,
        rows: Vec<Incoming>,
        cursor: Option<LogCursor>,
    ) -> Result<(Admitted, Vec<Denied>), Error> {
        let via = (from.node != self.node()).then_some(from.node);
        if from.is_trusted && from.judge.is_none() {
            return Ok((self.admit_with(from.clash, rows, via, cursor).await?, Vec::new()));
        }
        let node = from.node;
        let examined = if self.is_quick_to_examine(&rows) {
            // Two threads less to wake, which takes longer than the trying; so short that nobody has to wait for a turn.
            self.examine_for(node, rows, from.judge.as_deref())?
        } else {
            let turn = self.turns().turn(self.account_of(from), self.cost_of_trying(&rows)?).await?;
            let (trier, judge) = (self.clone(), from.judge.clone());
            aside(turn, move || trier.examine_for(node, rows, judge.as_deref())).await??
        };
        let cursor =
            cursor.filter(|_| examined.missing.is_empty() && examined.fault.is_none() && examined.denied.is_empty());
        let claims = from.judge.as_deref().and_then(Judge::claims);
        let audit = Audit { claims, refused: examined.refused, allowed: examined.allowed };
        let mut admitted = self.admit_judged(from.clash, examined.rows, via, cursor, audit).await?;
        admitted.missing.extend(examined.missing);
        if let Some(fault) = examined.fault {
            return Err(fault);
        }
        match admitted.refused.pop() {
            // It costs the trial view: nobody may do that again and again.
            Some((document, why)) => Err(Error::Refused { document, why }),
            None => Ok((admitted, examined.denied)),
        }
    }

    /// Whose the work is: clients that are no nodes have no name.
    fn account_of(&self, from: &Source) -> Option<NodeId> {
        (from.node != self.node()).then_some(from.node)
    }

    /// The rows in one incoming row: a document chunk holds many, and the document that was built to take it apart.
    async fn unpack(&self, from: &Source, row: IncomingRow) -> Result<(Vec<Incoming>, Option<View>), Error> {
        let IncomingRow { document, body, origin, signature } = row;
        let one = |body| (vec![Incoming { document, body, origin: origin.clone(), signature }], None);
        match body {
            sync::IncomingBody::Change(change) => Ok(one(IncomingBody::Change(change))),
            sync::IncomingBody::Lifecycle(bytes) => Ok(one(IncomingBody::Lifecycle(bytes))),
            sync::IncomingBody::Document { bytes: chunk, mut authors } => {
                let cost = cost_of_split(chunk.len()) + SIGNATURE_US * authors.signatures() as u64;
                let turn = self.turns().turn(self.account_of(from), cost).await?;
                let (limits, reader) = (self.limits().clone(), self.reader().clone());
                let unpacked = aside(turn, move || {
                    let (changes, view) = split_and_keep(&chunk, &limits)?;
                    let row = |change| {
                        let (origin, signature) = authors.origin(document, &change, &origin, &reader);
                        Incoming { document, body: IncomingBody::Change(Box::new(change)), origin, signature }
                    };
                    Ok::<_, Error>((changes.into_iter().map(row).collect(), Some(view)))
                });
                unpacked.await?
            }
        }
    }
}

/// Runs what takes long where it holds up nobody else, and gives the turn back when it is done. In a simulation it runs
/// at once: when another thread is done does not follow from a seed.
async fn aside<T: Send + 'static>(turn: Turn, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let work = move || {
        let _until_done = turn;
        work()
    };
    if cfg!(feature = "sim") {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)
}

fn gather(all: &mut sync::Admitted, (part, denied): (Admitted, Vec<Denied>)) {
    all.denied.extend(denied);
    for (document, why) in &part.refused {
        tracing::warn!(%document, %why, "a row from a peer was refused");
    }
    all.missing.extend(part.missing);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::document::{Change, EditOptions, View, ViewError};
    use crate::history::{EntryKind, Origin};
    use crate::id::{ActorId, DocumentId};
    use crate::limits::Limits;
    use crate::log::MemoryStorage;
    use crate::log::record::Admission;
    use crate::sync::IncomingBody as Body;

    /// Keystrokes of one author in a document of its own, as a peer's session gives them out.
    fn keystrokes(database: &Database, count: usize) -> (DocumentId, Vec<IncomingRow>) {
        let (handle, commit) = database.collection("notes").unwrap().create(json!({ "text": "" })).unwrap();
        commit.wait().unwrap();
        let mut view = handle.with_view(|view| Ok(View::load(&view.save()?)?)).unwrap();
        let actor = ActorId::random();
        let mut edit = |at: usize| -> Change {
            let options = EditOptions { actor: actor.clone(), time: 0, message: None };
            let edited = view.edit(options, |edit| -> Result<(), ViewError> { edit.splice("text", at, 0, "x") });
            edited.unwrap().1.unwrap()
        };
        let origin =
            Origin { node: NodeId([9; 32]), principal: String::new(), admission: Admission::Full, rules_version: 0 };
        let row = |change| IncomingRow {
            document: handle.id(),
            body: sync::IncomingBody::Change(Box::new(change)),
            origin: origin.clone(),
            signature: None,
        };
        (handle.id(), (0..count).map(|at| row(edit(at))).collect())
    }

    #[test]
    fn a_client_that_sends_much_delays_another_by_one_of_its_turns() {
        let limits = Limits { work_at_once: 1, group_records_max: 16, ..Limits::default() };
        let database = Database::on(MemoryStorage::new()).node(NodeId([1; 32])).limits(limits).open().unwrap();
        let ((greedy, much), (other, little)) = (keystrokes(&database, 320), keystrokes(&database, 1));
        let before = database.reader().tail().lsn;
        let from =
            |number: u8| Source { node: NodeId([number; 32]), is_trusted: false, clash: Clash::KeepFirst, judge: None };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (first, second) =
                tokio::join!(database.offer(from(2), much, None), database.offer(from(3), little, None));
            assert!(first.unwrap().missing.is_empty() && second.unwrap().missing.is_empty());
        });
        let entries = database.reader().read_log(before, usize::MAX, usize::MAX).unwrap();
        let documents: Vec<DocumentId> = entries
            .into_iter()
            .filter_map(|entry| match entry.kind {
                EntryKind::Change { document, .. } => Some(document),
                _ => None,
            })
            .collect();
        assert_eq!(documents.iter().filter(|id| **id == greedy).count(), 320);
        let place = documents.iter().position(|id| *id == other).unwrap();
        assert!(place <= 2 * 16, "after {place} changes of the other's, two turns at most");
    }

    /// Edits somebody else's document, and gives the last change.
    fn grow(view: &mut View, changes: u64) -> Change {
        let mut last = None;
        for n in 0..changes {
            let options = EditOptions { actor: ActorId::new(&[9; 16]).unwrap(), time: 0, message: None };
            let value = 1000 * changes + n;
            let edit = view.edit(options, |edit| Ok::<_, Error>(edit.put(format!("k{}", n % 5), value)?));
            last = edit.unwrap().1;
        }
        last.unwrap()
    }

    async fn offer(database: &Database, document: DocumentId, bodies: Vec<Body>) -> Result<sync::Admitted, Error> {
        let origin = Origin {
            node: database.node(),
            principal: String::new(),
            admission: Admission::Structural,
            rules_version: 0,
        };
        let row = |body| IncomingRow { document, body, origin: origin.clone(), signature: None };
        let rows = bodies.into_iter().map(row).collect();
        let from = Source { node: database.node(), is_trusted: false, clash: Clash::KeepFirst, judge: None };
        database.offer(from, rows, None).await
    }

    fn creation(database: &Database, document: DocumentId) -> Body {
        use crate::log::record::{CreationRank, Lifecycle, LifecycleKind};
        let statement = Lifecycle {
            document,
            collection: crate::id::CollectionName::new("notes").unwrap(),
            kind: LifecycleKind::Created,
            rank: CreationRank::Path,
            lamport: 1,
            author: database.node(),
            actor: None,
            time_ms: 0,
            heads: crate::id::Heads::default(),
            name: None,
        };
        Body::Lifecycle(statement.encode())
    }

    #[tokio::test]
    async fn a_long_document_chunk_is_tried_in_one_go_and_its_view_is_the_one_it_was_taken_apart_from() {
        let limits = Limits { group_records_max: 8, write_queue_items: 8, ..Limits::default() };
        let database = Database::on(MemoryStorage::new()).limits(limits).open().unwrap();
        let id = DocumentId([7; 16]);
        let mut theirs = View::new();
        grow(&mut theirs, 100);
        let chunk = |view: &View| Body::Document { bytes: view.save().unwrap(), authors: sync::Authors::default() };
        let begun = [creation(&database, id), chunk(&theirs)];
        assert!(offer(&database, id, begun.into()).await.unwrap().missing.is_empty());
        let row = database.reader().row(id).unwrap().unwrap();
        assert_eq!((row.change_count, database.status().trial_materializations), (100, 1));

        // What comes behind it is tried on the same view.
        let change = grow(&mut theirs, 1);
        offer(&database, id, vec![Body::Change(Box::new(change))]).await.unwrap();
        // And the document once more, with more in it: some of it is here.
        grow(&mut theirs, 50);
        offer(&database, id, vec![chunk(&theirs)]).await.unwrap();
        let row = database.reader().row(id).unwrap().unwrap();
        assert_eq!((row.change_count, database.status().trial_materializations), (151, 1));
        assert_eq!(database.find(id).unwrap().read::<u64>("k4").unwrap(), Some(50_049));
        let found = database.verify(true, &mut |_, _| {}).unwrap();
        assert!(found.faults.is_empty(), "{found:?}");
    }
}
