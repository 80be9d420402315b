//! Bringing the folder's documents into the log.
//!
//! Documents are read one after the other; their changes are offered to the log in batches of about one commit group, so
//! that many small documents cost one sync together. Nothing is remembered beside the log: run again after an
//! interruption, it finds what is there and goes on.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::causal::{Order, Place};
use super::folder::{DocumentFolder, FILE_BYTES_MAX, Folder};
use crate::document::{Change, split_each};
use crate::engine::{Clash, Collection, Database, Incoming, IncomingBody};
use crate::error::Error;
use crate::history::Origin;
use crate::id::{ChangeHash, CollectionName, DocumentId, StorageId};
use crate::log::record::Admission;
use crate::node::command::{Cancel, CommandError, Exit, Output, Progress};

/// Rows, and bytes of changes, that are offered to the log at once: about one commit group.
const BATCH_ROWS: usize = 1000;
const BATCH_BYTES: usize = 512 << 10;
/// Documents, and names of changes, that wait for their batch.
const BATCH_DOCUMENTS: usize = 256;
const BATCH_HASHES: usize = 1 << 18;
/// Changes of one document that cannot be taken. After so many the rest of it is left alone.
const BAD_CHANGES_MAX: usize = 16;

/// Takes over the documents in `folder`, the data folder of an automerge-repo sync server.
///
/// # Errors
/// [`CommandError`] when the folder is none of automerge-repo's, or the store or the disk fails. What was taken until then
/// stays. What is left out, or not as the files say, is in the rows and counted in the answer.
pub(in crate::node) fn import(
    database: &Database,
    folder: &Path,
    collection: Option<&str>,
    cancel: &Cancel,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let collection = database.collection(collection.unwrap_or(CollectionName::unnamed().as_str()))?;
    let mut takeover = Takeover::new(database, collection, cancel, output);
    let found = takeover.look_through(folder)?;
    takeover.adopt_storage_id(found.storage_id)?;
    let total = found.documents.len() as u64;
    for (done, document) in (1..).zip(&found.documents) {
        takeover.read_document(&found, document)?;
        takeover.output.progress(Progress::new("import", done, Some(total)));
    }
    takeover.flush()?;
    takeover.answer()
}

struct Takeover<'a> {
    database: &'a Database,
    collection: Collection,
    cancel: &'a Cancel,
    output: &'a mut dyn Output,
    rows: Vec<Incoming>,
    bytes: usize,
    /// Documents of which something is in the batch, or was.
    open: HashMap<DocumentId, OpenDocument>,
    summary: Summary,
}

/// A document that was read, or is being read.
struct OpenDocument {
    /// Its files, as paths within the folder.
    files: Vec<PathBuf>,
    /// In which of them each change was found first, and what became of it if it was left out.
    found: HashMap<ChangeHash, (u32, Fate)>,
    /// The log knew the document before.
    existed: bool,
    /// Its creation is in the batch, or in the log.
    created: bool,
    /// Changes that cannot be taken.
    bad: usize,
    /// All its files were read.
    read: bool,
}

/// A row's document and change; no change for its creation.
fn name_of(row: &Incoming) -> (DocumentId, Option<ChangeHash>) {
    match &row.body {
        IncomingBody::Change(change) => (row.document, Some(change.hash())),
        IncomingBody::Lifecycle(_) => (row.document, None),
    }
}

/// What is to become of a change that was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The log had it.
    Known,
    /// It is offered to the log.
    Offered,
    /// It waits for what is in no file.
    Orphaned,
    /// It was refused, and that was said.
    Refused,
}

/// What an import comes to.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Where new documents went.
    collection: String,
    /// Documents in the folder.
    documents: u64,
    /// Those that are new here.
    created: u64,
    /// Those that were here and got changes.
    updated: u64,
    /// Those of which everything was here.
    unchanged: u64,
    /// Those of which no file could be used.
    empty: u64,
    /// Those that are deleted here, and stay so.
    deleted: u64,
    /// Those that were here in another collection, and stay there.
    elsewhere: u64,
    /// Changes that are new here.
    changes: u64,
    /// Changes that were here.
    known: u64,
    /// Files that were read.
    files: u64,
    /// Things that were left out, each of which was a row.
    left_out: u64,
    /// Keys of others than automerge-repo's.
    other_keys: u64,
    /// Clients' sync states: they are not taken over.
    sync_states: u64,
    /// Documents that were built again and have every change that their files had.
    verified: u64,
    /// Documents that were here and are shown in part, since a trusted node brought what cannot be applied.
    degraded: u64,
    /// Documents that have not every change although nothing is known to be wrong with them.
    failed: u64,
    /// The storage id here.
    storage_id: String,
    /// The storage id in the folder.
    folder_storage_id: Option<StorageId>,
    /// Whether they are the same now.
    storage_id_adopted: bool,
}

impl<'a> Takeover<'a> {
    fn new(database: &'a Database, collection: Collection, cancel: &'a Cancel, output: &'a mut dyn Output) -> Self {
        let (rows, open) = (Vec::new(), HashMap::new());
        let summary = Summary { collection: collection.name().to_string(), ..Summary::default() };
        Self { database, collection, cancel, output, rows, bytes: 0, open, summary }
    }

    fn look_through(&mut self, path: &Path) -> Result<Folder, CommandError> {
        let mut reported = Vec::new();
        let mut report = |place: &Path, why| reported.push((place.to_owned(), why));
        let found = Folder::look_through(path, &mut report)
            .map_err(|error| CommandError::file("read the folder", path, &error))?;
        if found.documents.is_empty() && found.storage_id.is_none() && reported.is_empty() {
            let why = format!("there is no data of automerge-repo in {}", path.display());
            return Err(CommandError::new("E0617", Exit::NotFound, why).fix(
                "give the folder that its NodeFSStorageAdapter was given (.amrg for automerge-repo-sync-server, \
                 else automerge-repo-data)",
            ));
        }
        self.summary.other_keys += found.other_keys;
        self.summary.folder_storage_id = found.storage_id;
        self.report_all(None, reported)?;
        Ok(found)
    }

    fn adopt_storage_id(&mut self, folder: Option<StorageId>) -> Result<(), CommandError> {
        if let Some(id) = folder {
            tokio::runtime::Handle::current().block_on(self.database.adopt_storage_id(id))?;
        }
        Ok(())
    }

    /// Reads a document's files and puts what is new into batches.
    fn read_document(&mut self, folder: &Folder, document: &DocumentFolder) -> Result<(), CommandError> {
        let id = document.id;
        if self.open.contains_key(&id) {
            // Its folder is there twice, written differently.
            self.flush()?;
        }
        let mut reported = Vec::new();
        let files = folder.files_of(document, &mut |place, why| reported.push((place.to_owned(), why)));
        self.report_all(Some(id), reported)?;
        self.summary.documents += 1;
        self.summary.sync_states += files.sync_states;
        self.summary.other_keys += files.other;
        let existed = self.database.reader().row(id)?.is_some();
        let graph = if existed { Some(self.database.reader().graph(id)?) } else { None };
        let mut order = Order::new(graph, self.database.limits().document_bytes_max);
        let open =
            OpenDocument { files: files.chunks, found: HashMap::new(), existed, created: existed, bad: 0, read: false };
        let count = open.files.len();
        self.open.insert(id, open);
        let mut whole = false;
        for number in 0..count {
            self.cancel.check()?;
            whole |= self.read_file(folder, id, number, &mut order)?;
        }
        let waiting: Vec<(ChangeHash, ChangeHash)> = order.into_waiting().collect();
        let is_empty = self.open.get(&id).is_none_or(|open| open.found.is_empty());
        if whole && is_empty {
            // A document without a change is a document.
            self.create(id);
        }
        self.report_orphans(id, waiting)?;
        if let Some(open) = self.open.get_mut(&id) {
            open.read = true;
        }
        let hashes: usize = self.open.values().map(|open| open.found.len()).sum();
        if self.open.len() >= BATCH_DOCUMENTS || hashes >= BATCH_HASHES {
            self.flush()?;
        }
        Ok(())
    }

    /// Reads one file and offers what may come next. Whether it was whole.
    fn read_file(
        &mut self,
        folder: &Folder,
        id: DocumentId,
        number: usize,
        order: &mut Order,
    ) -> Result<bool, CommandError> {
        let Some(open) = self.open.get(&id) else { return Ok(false) };
        let file = open.files.get(number).cloned().unwrap_or_default();
        if open.bad >= BAD_CHANGES_MAX {
            self.leave_out(
                Some(id),
                &file,
                "it was not read: too many changes of the document cannot be taken".into(),
            )?;
            return Ok(false);
        }
        let bytes = match folder.read(&file, FILE_BYTES_MAX) {
            Ok(bytes) if bytes.is_empty() => {
                self.leave_out(Some(id), &file, "it is empty".into())?;
                return Ok(false);
            }
            Ok(bytes) => bytes,
            Err(error) => {
                self.leave_out(Some(id), &file, error.to_string())?;
                return Ok(false);
            }
        };
        self.summary.files += 1;
        let pieces = split_each(&bytes, self.database.limits());
        if let Some((at, error)) = &pieces.fault {
            let rest = if pieces.faults > 1 { format!(", and {} more", pieces.faults - 1) } else { String::new() };
            let what = if pieces.chunks == 0 { String::new() } else { " in part".to_owned() };
            let why = format!("left out{what}: at byte {at} of {}: {error}{rest}", bytes.len());
            self.leave_out(Some(id), &file, why)?;
        }
        let is_whole = pieces.fault.is_none();
        drop(bytes);
        let mut no_room = 0_u64;
        for change in pieces.changes {
            let hash = change.hash();
            let (fate, ready) = match order.add(change) {
                Place::Repeated => continue,
                Place::Known(ready) => (Fate::Known, ready),
                Place::Ready(ready) => (Fate::Offered, ready),
                Place::Waits => (Fate::Offered, Vec::new()),
                Place::NoRoom => {
                    no_room += 1;
                    continue;
                }
            };
            if let (Some(open), Ok(number)) = (self.open.get_mut(&id), u32::try_from(number)) {
                open.found.insert(hash, (number, fate));
            }
            for change in ready {
                self.offer(id, change)?;
            }
        }
        if no_room > 0 {
            let why = format!("{no_room} changes in it wait for others, and too many do already: import again");
            self.leave_out(Some(id), &file, why)?;
        }
        Ok(is_whole)
    }

    fn create(&mut self, id: DocumentId) {
        if let Some(open) = self.open.get_mut(&id)
            && !open.created
        {
            open.created = true;
            self.rows.push(self.collection.imported(id));
        }
    }

    fn offer(&mut self, id: DocumentId, change: Change) -> Result<(), CommandError> {
        if self.open.get(&id).is_none_or(|open| open.bad >= BAD_CHANGES_MAX) {
            return Ok(());
        }
        self.create(id);
        self.bytes += change.bytes().len();
        let origin = Origin {
            node: self.database.node(),
            principal: String::new(),
            admission: Admission::Full,
            rules_version: 0,
        };
        self.rows.push(Incoming {
            document: id,
            body: IncomingBody::Change(Box::new(change)),
            origin,
            signature: None,
        });
        if self.rows.len() >= BATCH_ROWS || self.bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    /// Tries what is in the batch, has the log take it, and closes the documents that were read.
    fn flush(&mut self) -> Result<(), CommandError> {
        self.cancel.check()?;
        self.bytes = 0;
        let mut rows = std::mem::take(&mut self.rows);
        while !rows.is_empty() {
            let examined = self.database.examine(self.database.node(), rows.clone())?;
            let offered: HashSet<_> = examined.rows.iter().map(name_of).collect();
            let admitting = self.database.admit_examined(Clash::KeepFirst, examined.rows, None, None);
            let admitted = tokio::runtime::Handle::current().block_on(admitting)?;
            for (id, why) in admitted.refused {
                self.refused(id, None, why)?;
            }
            for (id, hash) in admitted.outranked {
                self.refused(id, Some(hash), "another change has its author and number".to_owned())?;
            }
            let before = rows.len();
            match examined.fault {
                None if examined.missing.is_empty() => break,
                None => {}
                Some(Error::Unappliable { document, hash, why }) => self.refused(document, Some(hash), why)?,
                Some(Error::Refused { document, why }) => self.give_up(document, why)?,
                Some(error) => return Err(error.into()),
            }
            // What was offered is settled, whatever became of it. Of a document with too many bad changes all is.
            let settled: HashSet<_> =
                self.open.iter().filter(|(_, open)| open.bad >= BAD_CHANGES_MAX).map(|(id, _)| *id).collect();
            let refused = |row: &Incoming| self.fate_of(row) == Some(Fate::Refused) || settled.contains(&row.document);
            rows.retain(|row| !offered.contains(&name_of(row)) && !refused(row));
            if rows.len() == before {
                // They are on top of what was refused.
                break;
            }
        }
        let read: Vec<DocumentId> = self.open.iter().filter(|(_, open)| open.read).map(|(id, _)| *id).collect();
        for id in read {
            if let Some(open) = self.open.remove(&id) {
                self.close(id, &open)?;
            }
        }
        Ok(())
    }

    fn fate_of(&self, row: &Incoming) -> Option<Fate> {
        let (_, hash) = name_of(row);
        self.open.get(&row.document)?.found.get(&hash?).map(|(_, fate)| *fate)
    }

    /// Notes that a change is not taken.
    fn refused(&mut self, id: DocumentId, hash: Option<ChangeHash>, why: String) -> Result<(), CommandError> {
        let mut file = None;
        if let Some(open) = self.open.get_mut(&id) {
            if let Some((number, fate)) = hash.and_then(|hash| open.found.get_mut(&hash)) {
                if *fate == Fate::Refused {
                    return Ok(());
                }
                *fate = Fate::Refused;
                file = open.files.get(*number as usize).cloned();
            }
            open.bad += 1;
            if open.bad > BAD_CHANGES_MAX {
                return Ok(());
            }
        }
        let why = match hash {
            Some(hash) => format!("change {hash} in it cannot be taken: {why}"),
            None => why,
        };
        self.leave_out(Some(id), &file.unwrap_or_default(), why)
    }

    /// Leaves the rest of a document alone.
    fn give_up(&mut self, id: DocumentId, why: String) -> Result<(), CommandError> {
        if let Some(open) = self.open.get_mut(&id) {
            open.bad = BAD_CHANGES_MAX;
        }
        self.leave_out(Some(id), Path::new(""), why)
    }

    fn report_orphans(&mut self, id: DocumentId, waiting: Vec<(ChangeHash, ChangeHash)>) -> Result<(), CommandError> {
        let waits_for: BTreeMap<ChangeHash, ChangeHash> = waiting.into_iter().collect();
        // What one waits for may wait itself: named is what is nowhere.
        let nowhere = |missing: &ChangeHash| !waits_for.contains_key(missing);
        let Some(any) = waits_for.values().filter(|missing| nowhere(missing)).min() else { return Ok(()) };
        let Some(open) = self.open.get_mut(&id) else { return Ok(()) };
        let mut files: BTreeMap<u32, (u64, ChangeHash)> = BTreeMap::new();
        for (hash, missing) in &waits_for {
            let Some((number, fate)) = open.found.get_mut(hash) else { continue };
            *fate = Fate::Orphaned;
            let (count, named) = files.entry(*number).or_insert((0, *any));
            *count += 1;
            if nowhere(missing) {
                *named = *missing;
            }
        }
        let names = open.files.clone();
        for (number, (count, missing)) in files {
            let file = names.get(number as usize).cloned().unwrap_or_default();
            let why = format!("{count} changes in it depend on changes that are in no file, such as {missing}");
            self.leave_out(Some(id), &file, why)?;
        }
        Ok(())
    }

    /// Counts a document that was read, and holds what the store has of it against what its files had.
    fn close(&mut self, id: DocumentId, open: &OpenDocument) -> Result<(), CommandError> {
        let reader = self.database.reader();
        let Some(state) = reader.document(id)? else {
            self.summary.empty += 1;
            return Ok(());
        };
        let graph = reader.graph(id)?;
        let (mut new, mut lost) = (0_u64, BTreeMap::<u32, u64>::new());
        let mut here: Vec<ChangeHash> = Vec::new();
        {
            let graph = graph.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (hash, (file, fate)) in &open.found {
                match (graph.contains(hash), fate) {
                    (true, Fate::Known) => self.summary.known += 1,
                    (true, _) => new += 1,
                    (false, Fate::Orphaned | Fate::Refused) => continue,
                    (false, _) => {
                        *lost.entry(*file).or_default() += 1;
                        continue;
                    }
                }
                here.push(*hash);
            }
        }
        drop(graph);
        self.summary.changes += new;
        match (open.existed, new) {
            (false, _) => self.summary.created += 1,
            (true, 0) => self.summary.unchanged += 1,
            (true, _) => self.summary.updated += 1,
        }
        self.summary.deleted += u64::from(!state.visible);
        self.summary.elsewhere += u64::from(state.collection != *self.collection.name());
        for (number, count) in lost {
            let file = open.files.get(number as usize).cloned().unwrap_or_default();
            let why = format!("{count} changes in it are not taken: they, or some they depend on, cannot be");
            self.leave_out(Some(id), &file, why)?;
        }
        self.verify(id, &here)
    }

    /// Builds a document as a reader would, and looks for every change in it.
    fn verify(&mut self, id: DocumentId, here: &[ChangeHash]) -> Result<(), CommandError> {
        let built = self.database.find(id)?.with_view(|view| {
            let missing = here.iter().find(|hash| !view.contains(**hash));
            Ok(missing.map(|hash| format!("it was built from the log without change {hash}")))
        });
        // Building it may have found that out.
        let degraded = self.database.reader().document(id)?.is_some_and(|state| state.degraded);
        let why = match built {
            Ok(Some(_)) if degraded => {
                self.summary.degraded += 1;
                return Ok(());
            }
            Ok(None) => {
                self.summary.verified += 1;
                return Ok(());
            }
            Ok(Some(why)) => why,
            Err(error @ Error::View(_)) => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        self.summary.failed += 1;
        self.leave_out(Some(id), Path::new(""), format!("the document is not as its files are: {why}"))
    }

    fn report_all(&mut self, id: Option<DocumentId>, reported: Vec<(PathBuf, String)>) -> Result<(), CommandError> {
        reported.into_iter().try_for_each(|(place, why)| self.leave_out(id, &place, why))
    }

    /// Says what is left out, and why.
    fn leave_out(&mut self, id: Option<DocumentId>, file: &Path, why: String) -> Result<(), CommandError> {
        self.summary.left_out += 1;
        let file = (!file.as_os_str().is_empty()).then(|| file.to_string_lossy());
        self.output.row(json!({ "file": file, "document": id.map(|id| id.to_string()), "why": why }))
    }

    fn answer(mut self) -> Result<Value, CommandError> {
        let ours = self.database.storage_id();
        self.summary.storage_id = ours.to_string();
        self.summary.storage_id_adopted = self.summary.folder_storage_id == Some(ours);
        Ok(json!(self.summary))
    }
}
