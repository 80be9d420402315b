//! Imports: files that become many requests.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Value, json};

use super::{Base64, Collected, CommandError, Exit, ImportRow, Output, Progress, Request};
use crate::document::gate::check_chunks;
use crate::document::{Change, View};
use crate::id::{ChangeHash, CollectionName, DocumentId};
use crate::limits::Limits;
use crate::node::Session;
use crate::node::trace::{AgentFeed, Trace, TraceChanges, TraceOptions};

/// Changes, and bytes of them, in one request: about one commit group.
const BATCH_CHANGES: usize = 1000;
const BATCH_BYTES: usize = 512 << 10;
/// Documents, and bytes of lines, in one request.
const BATCH_ROWS: usize = 200;
const BATCH_LINE_BYTES: usize = 1 << 20;
/// The longest line of a file of documents.
const LINE_BYTES_MAX: usize = 32 << 20;
/// The largest `.automerge` file.
const AUTOMERGE_BYTES_MAX: u64 = 256 << 20;
/// What every Automerge chunk begins with.
const AUTOMERGE_MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];

/// Which document an import goes to.
#[derive(Debug, Clone, Default)]
pub struct Destination {
    /// The collection.
    pub collection: Option<String>,
    /// A document's id.
    pub document: Option<String>,
    /// A document's name.
    pub name: Option<String>,
}

/// Replays an editing history into a document.
///
/// Each transaction becomes one change, with its author, time and parents; the same file in the same document gives
/// the same changes everywhere. Of some `agents` only, it admits what is causally complete at this node: run it again,
/// after the others' changes have arrived, and it goes on. The answer is `{id, imported, known, remaining}`.
///
/// # Errors
/// [`CommandError`]. When the history is no good, nothing was written; when the store or the node fails in the middle,
/// what was admitted stays, and running it again goes on.
pub fn import_trace(
    session: &mut Session,
    file: &Path,
    to: &Destination,
    agents: &[u32],
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let trace = Trace::read(file)?;
    if let Some(unknown) = agents.iter().find(|agent| **agent as usize >= trace.agents) {
        let why = format!("the history has no agent {unknown}: they are 0 to {}", trace.agents.saturating_sub(1));
        return Err(CommandError::usage(why).fix("leave out --agents to import everybody's edits"));
    }
    let (id, add) = place_of(to, || stem(file), "traces")?;
    let options = TraceOptions::with_salt(id.0);
    let changes = TraceChanges::build(&trace, &options, &mut |done, total| {
        output.progress(Progress::new("replay", done as u64, Some(total as u64)));
    })?;
    session.check()?;
    let everybody: Vec<u32> = (0..u32::try_from(trace.agents).unwrap_or(u32::MAX)).collect();
    let mut feed = AgentFeed::new(&changes, if agents.is_empty() { &everybody } else { agents });
    drop(changes);

    let known = known_hashes(session, id)?;
    session.call(add, &mut Collected::default())?;
    let mut admission = Admission::new(id, known, feed.total(), false);
    loop {
        let ready = feed.next_ready(|hash| admission.known.contains(hash));
        if ready.is_empty() {
            break;
        }
        admission.admit(session, ready.iter().map(|ready| &ready.change), output)?;
    }
    Ok(json!({
        "id": id.to_string(),
        "imported": admission.accepted,
        "known": feed.total() - feed.remaining() - admission.accepted,
        "remaining": feed.remaining(),
    }))
}

fn stem(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// The document that is meant, and the request that makes sure it is there.
fn place_of(
    to: &Destination,
    default_name: impl FnOnce() -> String,
    default_collection: &str,
) -> Result<(DocumentId, Request), CommandError> {
    let collection = to.collection.clone().unwrap_or_else(|| default_collection.to_owned());
    let checked = CollectionName::new(collection.as_str())?;
    let (id, name, given) = match (&to.document, &to.name) {
        (Some(_), Some(_)) => return Err(CommandError::usage("give --document or --name, not both")),
        (Some(id), None) => {
            let id: DocumentId = id.parse()?;
            (id, None, Some(id.to_string()))
        }
        (None, name) => {
            let name = name.clone().unwrap_or_else(default_name);
            (DocumentId::named(&checked, &name), Some(name), None)
        }
    };
    Ok((id, Request::Add { collection, name, id: given, value: None, must_be_new: false }))
}

fn known_hashes(session: &mut Session, id: DocumentId) -> Result<HashSet<ChangeHash>, CommandError> {
    let mut pages = Collected::default();
    session.call(Request::Hashes { id: id.to_string() }, &mut pages)?;
    let hashes = pages.rows.iter().filter_map(Value::as_array).flatten().filter_map(Value::as_str);
    hashes.map(|hash| hash.parse().map_err(CommandError::from)).collect()
}

/// Changes on their way into a document, batch by batch.
struct Admission {
    id: DocumentId,
    known: HashSet<ChangeHash>,
    accepted: usize,
    sent: usize,
    total: usize,
    /// Nobody vouches for them.
    tried: bool,
}

impl Admission {
    fn new(id: DocumentId, known: HashSet<ChangeHash>, total: usize, tried: bool) -> Self {
        Self { id, accepted: 0, sent: known.len(), known, total, tried }
    }

    fn admit<'a>(
        &mut self,
        session: &mut Session,
        changes: impl Iterator<Item = &'a Change>,
        output: &mut dyn Output,
    ) -> Result<(), CommandError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        for change in changes {
            if !self.known.insert(change.hash()) {
                continue;
            }
            bytes += change.bytes().len();
            batch.push(Base64(change.bytes().to_vec()));
            if batch.len() >= BATCH_CHANGES || bytes >= BATCH_BYTES {
                self.send(session, std::mem::take(&mut batch), output)?;
                bytes = 0;
            }
        }
        if batch.is_empty() { Ok(()) } else { self.send(session, batch, output) }
    }

    fn send(
        &mut self,
        session: &mut Session,
        changes: Vec<Base64>,
        output: &mut dyn Output,
    ) -> Result<(), CommandError> {
        session.check()?;
        self.sent += changes.len();
        let request = Request::Admit { id: self.id.to_string(), changes, tried: self.tried };
        let answer = session.call(request, &mut Collected::default())?;
        if answer["waiting"].as_u64().unwrap_or(0) > 0 {
            let why = format!("changes of document {} wait for others that are not in the file", self.id);
            return Err(CommandError::new("E0615", Exit::Conflict, why).fix("import the whole document"));
        }
        self.accepted += answer["accepted"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        output.progress(Progress::new("import", self.sent as u64, Some(self.total as u64)));
        Ok(())
    }
}

/// Imports the file of an Automerge document, history and all. The answer is `{id, imported, known, remaining}`.
///
/// Without a destination, a file that is called like a document (as an export is) goes to that document, any other to a
/// new one.
///
/// # Errors
/// As [`import_trace`].
pub fn import_automerge(
    session: &mut Session,
    file: &Path,
    to: &Destination,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let unreadable = |error: std::io::Error| CommandError::file("read", file, &error);
    let length = std::fs::metadata(file).map_err(unreadable)?.len();
    if length > AUTOMERGE_BYTES_MAX {
        let why = format!("{} has {length} bytes, {AUTOMERGE_BYTES_MAX} are allowed", file.display());
        return Err(CommandError::new("E0703", Exit::Failed, why));
    }
    let bytes = std::fs::read(file).map_err(unreadable)?;
    let whole = check_chunks(&bytes, &Limits::DEFAULT).map_err(|error| error.to_string());
    let view = whole.and_then(|()| View::load(&bytes).map_err(|error| error.to_string())).map_err(|error| {
        CommandError::new("E0606", Exit::Failed, format!("{} is not an Automerge document: {error}", file.display()))
            .fix("give what `save()` of Automerge, or `tidelog export --format automerge`, wrote")
    })?;
    let mut to = to.clone();
    if to.document.is_none() && to.name.is_none() {
        let called = stem(file).parse::<DocumentId>();
        to.document = Some(called.unwrap_or_else(|_| DocumentId::random()).to_string());
    }
    let (id, add) = place_of(&to, String::new, CollectionName::unnamed().as_str())?;
    let changes: Result<Vec<Change>, _> =
        view.document().get_changes(&[]).into_iter().map(Change::from_automerge).collect();
    let changes = changes?;
    let known = known_hashes(session, id)?;
    session.call(add, &mut Collected::default())?;
    let mut admission = Admission::new(id, known, changes.len(), true);
    admission.admit(session, changes.iter(), output)?;
    let known = changes.len() - admission.accepted;
    Ok(json!({ "id": id.to_string(), "imported": admission.accepted, "known": known, "remaining": 0 }))
}

/// Whether a file begins like an Automerge document.
///
/// # Errors
/// [`CommandError`] when it cannot be read.
pub fn is_automerge(file: &Path) -> Result<bool, CommandError> {
    use std::io::Read as _;
    let mut start = Vec::new();
    let read = File::open(file).and_then(|file| file.take(4).read_to_end(&mut start));
    read.map_err(|error| CommandError::file("read", file, &error))?;
    Ok(start == AUTOMERGE_MAGIC)
}

/// Imports documents, one line of JSON each: what an export wrote, or just the document. Every line is checked before
/// anything is written. The answer is `{created, changed, unchanged}`.
///
/// # Errors
/// As [`import_trace`].
pub fn import_lines(
    session: &mut Session,
    file: &Path,
    collection: Option<&str>,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let mut total = 0_u64;
    each_row(file, &mut |row, _| {
        if row.collection.is_none() && collection.is_none() {
            return Err(CommandError::usage("the documents name no collection")
                .fix("say where they belong, with --collection NAME"));
        }
        total += 1;
        Ok(())
    })?;
    let (mut created, mut changed, mut unchanged, mut done) = (0, 0, 0, 0_u64);
    let mut flush = |rows: Vec<ImportRow>, session: &mut Session, output: &mut dyn Output| {
        session.check()?;
        done += rows.len() as u64;
        let request = Request::Import { collection: collection.map(str::to_owned), rows };
        let answer = session.call(request, &mut Collected::default())?;
        created += answer["created"].as_u64().unwrap_or(0);
        changed += answer["changed"].as_u64().unwrap_or(0);
        unchanged += answer["unchanged"].as_u64().unwrap_or(0);
        output.progress(Progress::new("import", done, Some(total)));
        Ok::<(), CommandError>(())
    };
    let (mut batch, mut bytes) = (Vec::new(), 0);
    each_row(file, &mut |row, length| {
        batch.push(row);
        bytes += length;
        if batch.len() >= BATCH_ROWS || bytes >= BATCH_LINE_BYTES {
            bytes = 0;
            flush(std::mem::take(&mut batch), session, output)?;
        }
        Ok(())
    })?;
    if !batch.is_empty() {
        flush(batch, session, output)?;
    }
    Ok(json!({ "created": created, "changed": changed, "unchanged": unchanged }))
}

fn each_row(
    file: &Path,
    take: &mut dyn FnMut(ImportRow, usize) -> Result<(), CommandError>,
) -> Result<(), CommandError> {
    use std::io::Read as _;
    let unreadable = |error: std::io::Error| CommandError::file("read", file, &error);
    let mut reader = BufReader::new(File::open(file).map_err(unreadable)?);
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        (&mut reader).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line).map_err(unreadable)?;
        if line.is_empty() {
            break;
        }
        if line.len() == LINE_BYTES_MAX && line.last() != Some(&b'\n') {
            let why = format!("{}, line {number}, is longer than {LINE_BYTES_MAX} bytes", file.display());
            return Err(CommandError::new("E0703", Exit::Failed, why));
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let place = format!("{}, line {number},", file.display());
        let value: Value = serde_json::from_slice(&line).map_err(|error| {
            let error = CommandError::json(&place, &error);
            CommandError { exit: Exit::Failed, ..error }
                .fix("give one JSON object on each line, as `tidelog export` does")
        })?;
        take(row_of(value, &place)?, line.len())?;
    }
    Ok(())
}

/// A line of an export is `{id, collection, name, value}`; any other object is a document itself.
fn row_of(value: Value, place: &str) -> Result<ImportRow, CommandError> {
    let Value::Object(mut object) = value else {
        return Err(CommandError::new("E0604", Exit::Failed, format!("{place} is not a JSON object"))
            .fix("give one JSON object on each line"));
    };
    let text = |key: &str| object.get(key).and_then(Value::as_str).map(str::to_owned);
    let (id, collection, name) = (text("id"), text("collection"), text("name"));
    let known = object.keys().all(|key| matches!(key.as_str(), "id" | "collection" | "name" | "value"));
    let exported = known && id.as_ref().is_some_and(|id| id.starts_with("automerge:"));
    match object.get("value") {
        Some(Value::Object(_)) if exported => {
            if let Some(id) = &id {
                id.parse::<DocumentId>()?;
            }
            let value = object.remove("value").unwrap_or_default();
            Ok(ImportRow { id, collection, name, value })
        }
        _ => Ok(ImportRow { id: None, collection: None, name: None, value: Value::Object(object) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_an_export_is_told_from_a_document() {
        let id = DocumentId([9; 16]).to_string();
        let exported = json!({ "id": id, "collection": "notes", "name": null, "value": { "a": 1 } });
        let row = row_of(exported, "here").unwrap();
        assert_eq!((row.id, row.collection.as_deref(), row.value), (Some(id), Some("notes"), json!({ "a": 1 })));

        let document = json!({ "id": "x", "value": { "a": 1 } });
        assert_eq!(row_of(document.clone(), "here").unwrap().value, document);
        assert!(row_of(json!([1]), "here").is_err());
    }

    #[test]
    fn a_trace_goes_to_a_document_named_like_its_file() {
        assert_eq!(stem(Path::new("/a/sveltecomponent.json.gz")), "sveltecomponent");
        let (id, _) = place_of(&Destination::default(), || "x".into(), "traces").unwrap();
        assert_eq!(id, DocumentId::named(&CollectionName::new("traces").unwrap(), "x"));
    }
}
