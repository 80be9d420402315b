//! The data folder of an automerge-repo server, as its stock adapter writes it, taken over; and documents written out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use automerge::transaction::Transactable as _;
use automerge::{ActorId, AutoCommit, ObjType, ROOT, ReadDoc as _, ScalarValue};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tidelog::document::View;
use tidelog::log::MemoryStorage;
use tidelog::net::UnknownKeys;
use tidelog::node::command::{Cancel, Canceller, Context, Output as Rows, Progress, Request, execute};
use tidelog::node::peers::PeerBook;
use tidelog::{Database, DocumentId, StorageId};

const BINARY: &str = env!("CARGO_BIN_EXE_tidelog");

/// A folder as `NodeFSStorageAdapter` lays it out, and what its documents hold.
struct NodeFs {
    folder: TempDir,
    documents: BTreeMap<DocumentId, AutoCommit>,
}

impl NodeFs {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), documents: BTreeMap::new() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn file_of(&self, key: &[&str]) -> PathBuf {
        let (shard, rest) = key[0].split_at(2);
        key[1..].iter().fold(self.path().join(shard).join(rest), |path, word| path.join(word))
    }

    /// Writes a value as the adapter does: in place.
    fn put(&self, key: &[&str], bytes: impl AsRef<[u8]>) -> PathBuf {
        let file = self.file_of(key);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, bytes).unwrap();
        file
    }

    /// Writes part of a document, under the hash of its bytes.
    fn put_chunk(&self, id: DocumentId, kind: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let hash: String = Sha256::digest(bytes.as_ref()).iter().map(|byte| format!("{byte:02x}")).collect();
        self.put(&[&id.to_base58(), kind, &hash], bytes)
    }

    /// The kinds of document that a server is found to have after a busy and troubled life.
    fn with_every_kind_of_document() -> Self {
        let mut here = Self::new();
        here.put(&["storage-adapter-id"], STORAGE_ID);
        here.compacted_twice();
        here.written_by_samod();
        here.written_by_two_processes();
        here.large_and_deflated();
        here.put(&["subduction", "x", "y"], "of another engine");
        here.put(&["my-app-settings"], "of an application");
        std::fs::write(here.path().join("README"), "a stray file").unwrap();
        here
    }

    /// A snapshot that was not deleted after the next one was written, and changes since, each saved with those before.
    fn compacted_twice(&mut self) {
        let id = id(1);
        let mut document = author(1);
        fill(&mut document, 0..3);
        self.put_chunk(id, "snapshot", document.save());
        fill(&mut document, 3..6);
        self.put_chunk(id, "snapshot", document.save());
        for n in 6..9 {
            let before = document.get_heads();
            fill(&mut document, n..n + 1);
            self.put_chunk(id, "incremental", document.save_after(&before));
        }
        self.put(&[&id.to_base58(), "sync-state", STORAGE_ID], b"C\0");
        self.put(&[&id.to_base58(), "something", "newer"], "unheard of");
        self.documents.insert(id, document);
    }

    /// One change in each file, named by it, and no snapshot yet: in no order at all.
    fn written_by_samod(&mut self) {
        let mut document = author(2);
        fill(&mut document, 0..40);
        for change in document.get_changes(&[]) {
            self.put(&[&id(2).to_base58(), "incremental", &change.hash().to_string()], change.raw_bytes());
        }
        self.documents.insert(id(2), document);
    }

    /// Two processes on one folder: neither snapshot holds the other's changes.
    fn written_by_two_processes(&mut self) {
        let mut one = author(3);
        fill(&mut one, 0..4);
        let mut other = one.fork().with_actor(ActorId::from([4; 16]));
        fill(&mut one, 4..6);
        fill(&mut other, 6..9);
        self.put_chunk(id(3), "snapshot", one.save());
        self.put_chunk(id(3), "snapshot", other.save());
        one.merge(&mut other).unwrap();
        self.documents.insert(id(3), one);
    }

    /// A long text: its change is a deflated chunk. Behind the snapshot, in the same file, stand changes.
    fn large_and_deflated(&mut self) {
        let mut document = author(5);
        fill(&mut document, 0..2);
        let mut bytes = document.save();
        let text = document.put_object(ROOT, "text", ObjType::Text).unwrap();
        document.splice_text(&text, 0, 0, &"High tide at noon. ".repeat(200)).unwrap();
        document.put(ROOT, "visits", ScalarValue::counter(3)).unwrap();
        document.commit();
        bytes.extend(document.save_incremental());
        self.put_chunk(id(5), "snapshot", bytes);
        self.documents.insert(id(5), document);
    }

    /// The same documents many times over.
    fn many(count: u8) -> Self {
        let mut here = Self::new();
        here.put(&["storage-adapter-id"], STORAGE_ID);
        for n in 0..count {
            let mut document = author(n);
            fill(&mut document, 0..5);
            here.put_chunk(id(n), "snapshot", document.save());
            let before = document.get_heads();
            fill(&mut document, 5..9);
            here.put_chunk(id(n), "incremental", document.save_after(&before));
            here.documents.insert(id(n), document);
        }
        here
    }

    /// Holds what the database has against what automerge has.
    fn assert_taken_over(&mut self, database: &Database) {
        for (id, document) in &mut self.documents {
            let handle = database.find(*id).unwrap();
            let heads: Vec<String> = document.get_heads().iter().map(ToString::to_string).collect();
            let mut found: Vec<String> = handle.heads().unwrap().as_slice().iter().map(ToString::to_string).collect();
            found.sort();
            assert_eq!(found, sorted(heads), "{id}");
            let expected = View::load(&document.save()).unwrap().to_json().unwrap();
            assert_eq!(handle.to_json().unwrap(), expected, "{id}");
        }
    }
}

const STORAGE_ID: &str = "9f86d081-884c-4d65-a2fe-aa0c55ad015a";

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

fn id(n: u8) -> DocumentId {
    let mut bytes = [n; 16];
    (bytes[6], bytes[8]) = (0x40 | (n & 0xf), 0x80 | (n & 0x3f));
    DocumentId(bytes)
}

fn author(n: u8) -> AutoCommit {
    AutoCommit::new().with_actor(ActorId::from([n; 16]))
}

/// One change for each number.
fn fill(document: &mut AutoCommit, numbers: std::ops::Range<u32>) {
    for n in numbers {
        document.put(ROOT, format!("key {}", n % 5), n).unwrap();
        document.commit();
    }
}

/// Keeps rows, and interrupts after so many reports of progress.
#[derive(Default)]
struct Kept {
    rows: Vec<Value>,
    interrupt: Option<(u64, Canceller)>,
}

impl Rows for Kept {
    fn row(&mut self, row: Value) -> Result<(), tidelog::node::command::CommandError> {
        self.rows.push(row);
        Ok(())
    }

    fn progress(&mut self, progress: Progress) {
        if let Some((_, canceller)) = self.interrupt.as_ref().filter(|(after, _)| progress.done >= *after) {
            canceller.cancel();
        }
    }
}

impl Kept {
    /// The rows as text, for looking something up.
    fn said(&self, words: &[&str]) -> bool {
        self.rows.iter().map(ToString::to_string).any(|row| words.iter().all(|word| row.contains(word)))
    }
}

fn open(storage: &MemoryStorage) -> Database {
    Database::on(storage.clone()).open().unwrap()
}

/// Imports the folder as a command does that finds no node.
fn import(
    database: &Database,
    folder: &Path,
    kept: &mut Kept,
    cancel: &Cancel,
) -> Result<Value, tidelog::node::command::CommandError> {
    let nowhere = tempfile::tempdir().unwrap();
    let context = Context::direct(database.clone(), PeerBook::load(nowhere.path(), UnknownKeys::Refuse).unwrap());
    let request = Request::ImportAutomergeRepo { folder: folder.to_owned(), collection: Some("notes".into()) };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _within = runtime.enter();
    execute(&context, request, cancel, kept)
}

/// Imports the folder without an interruption.
fn import_whole(database: &Database, folder: &Path) -> (Value, Kept) {
    let (_canceller, cancel) = Cancel::new();
    let mut kept = Kept::default();
    let answer = import(database, folder, &mut kept, &cancel).unwrap();
    (answer, kept)
}

#[test]
fn a_servers_folder_is_taken_over_and_a_second_time_adds_nothing() {
    let mut folder = NodeFs::with_every_kind_of_document();
    let database = open(&MemoryStorage::new());
    let (answer, kept) = import_whole(&database, folder.path());
    assert_eq!(kept.rows, [Value::Null; 0], "nothing is left out");
    let changes: usize = folder.documents.values_mut().map(|document| document.get_changes(&[]).len()).sum();
    assert_eq!((answer["documents"].as_u64(), answer["created"].as_u64()), (Some(4), Some(4)), "{answer}");
    assert_eq!((answer["changes"].as_u64(), answer["known"].as_u64()), (Some(changes as u64), Some(0)), "{answer}");
    assert_eq!((answer["verified"].as_u64(), answer["failed"].as_u64()), (Some(4), Some(0)), "{answer}");
    assert_eq!((answer["other_keys"].as_u64(), answer["sync_states"].as_u64()), (Some(4), Some(1)), "{answer}");
    assert_eq!((&answer["storage_id"], &answer["storage_id_adopted"]), (&json!(STORAGE_ID), &json!(true)));
    assert_eq!(database.storage_id().to_string(), STORAGE_ID);
    folder.assert_taken_over(&database);
    assert!(folder.documents.keys().all(|id| database.find(*id).unwrap().collection().as_str() == "notes"));

    let tail = database.reader().tail();
    let (again, kept) = import_whole(&database, folder.path());
    assert_eq!(database.reader().tail(), tail, "the log is as it was");
    assert!(kept.rows.is_empty());
    assert_eq!((again["unchanged"].as_u64(), again["known"].as_u64()), (Some(4), Some(changes as u64)), "{again}");
    assert_eq!((again["changes"].as_u64(), again["created"].as_u64()), (Some(0), Some(0)), "{again}");
    assert_eq!((again["verified"].as_u64(), &again["storage_id_adopted"]), (Some(4), &json!(true)), "{again}");

    // What the server wrote since is fetched, and a document that is elsewhere stays there.
    let document = folder.documents.get_mut(&id(1)).unwrap();
    let before = document.get_heads();
    fill(document, 20..22);
    let bytes = document.save_after(&before);
    folder.put_chunk(id(1), "incremental", bytes);
    let (more, _) = import_whole(&database, folder.path());
    assert_eq!((more["updated"].as_u64(), more["changes"].as_u64()), (Some(1), Some(2)), "{more}");
    folder.assert_taken_over(&database);
    let faults = database.verify(true, &mut |_, _| {}).unwrap().faults;
    assert!(faults.is_empty(), "{faults:?}");
}

#[test]
fn a_store_that_is_not_empty_keeps_its_own_storage_id_and_its_documents_places() {
    let mut folder = NodeFs::many(3);
    let database = open(&MemoryStorage::new());
    database.collection("own").unwrap().create_with_id(id(1)).unwrap();
    let deleted = database.collection("notes").unwrap().create_with_id(id(2)).unwrap();
    deleted.delete().unwrap().wait().unwrap();
    let own = database.storage_id();
    let (answer, _) = import_whole(&database, folder.path());
    assert_eq!((&answer["storage_id"], &answer["storage_id_adopted"]), (&json!(own), &json!(false)));
    assert_eq!(answer["folder_storage_id"], STORAGE_ID);
    assert_eq!((answer["elsewhere"].as_u64(), answer["deleted"].as_u64()), (Some(1), Some(1)), "{answer}");
    assert_eq!(database.find(id(1)).unwrap().collection().as_str(), "own");
    assert!(!database.find(id(2)).unwrap().state().unwrap().visible);
    folder.assert_taken_over(&database);
}

#[test]
fn bad_files_are_named_and_spoil_neither_their_document_nor_others() {
    let mut folder = NodeFs::many(4);
    let text = |n: u8| id(n).to_base58();
    // Beside good files: an empty one, one that is cut off, one that is no chunk, and a link to somewhere else.
    let mut document = author(0);
    fill(&mut document, 0..9);
    let snapshot = document.save();
    let empty = folder.put(&[&text(0), "snapshot", "empty"], "");
    let cut = folder.put(&[&text(0), "snapshot", "cut"], &snapshot[..snapshot.len() - 7]);
    let noise = folder.put(&[&text(0), "incremental", "noise"], "<html>502 Bad Gateway</html>");
    std::os::unix::fs::symlink("/dev/zero", noise.with_file_name("link")).unwrap();
    // One whole chunk, and the next cut off in the middle.
    let mut longer = author(1);
    fill(&mut longer, 0..12);
    let chunks: Vec<Vec<u8>> = longer.get_changes(&[])[9..].iter().map(|c| c.raw_bytes().to_vec()).collect();
    let torn = folder.put(&[&text(1), "incremental", "torn"], [&chunks[0], &chunks[1][..20]].concat());
    fill(folder.documents.get_mut(&id(1)).unwrap(), 9..10);
    // Changes whose past is in no file: beside good ones, and alone.
    let orphan = folder.put(&[&text(1), "incremental", "orphan"], &chunks[2]);
    let mut lost = author(8);
    fill(&mut lost, 0..3);
    let missing = lost.get_changes(&[])[0].hash();
    folder.put(
        &[&text(8), "incremental", "late"],
        lost.get_changes(&[])[1..].iter().flat_map(|c| c.raw_bytes().to_vec()).collect::<Vec<_>>(),
    );
    folder.put(&[&text(9), "snapshot", "nothing"], "");
    // Another change under a number that its author used: the first one stays.
    let mut twin = author(2);
    fill(&mut twin, 100..102);
    folder.put(&[&text(2), "incremental", "twin"], twin.save_incremental());
    folder.put(&["storage-adapter-id"], "not a uuid");

    let database = open(&MemoryStorage::new());
    let own = database.storage_id();
    let (answer, kept) = import_whole(&database, folder.path());
    folder.assert_taken_over(&database);
    let name = |path: &Path| path.strip_prefix(folder.path()).unwrap().to_str().unwrap().to_owned();
    for (file, why) in [
        (name(&empty), "it is empty"),
        (name(&cut), "it ends too early"),
        (name(&noise), "it does not begin as one"),
        (name(&noise.with_file_name("link")), "no regular file"),
        (name(&torn), "at byte"),
        (name(&orphan), "1 changes in it depend on changes that are in no file"),
        (format!("{}/incremental/late", &text(8)[2..]), &*missing.to_string()),
        (format!("{}/snapshot/nothing", &text(9)[2..]), "it is empty"),
        (format!("{}/incremental/twin", &text(2)[2..]), "another change has its author and number"),
        ("st/orage-adapter-id".to_owned(), "not a storage id"),
    ] {
        assert!(kept.said(&[&file, why]), "{file}: {why}\n{:#?}", kept.rows);
    }
    assert!(kept.said(&["2 changes in it depend", &missing.to_string()]), "{:#?}", kept.rows);
    assert_eq!((answer["created"].as_u64(), answer["empty"].as_u64()), (Some(4), Some(2)), "{answer}");
    assert_eq!((answer["verified"].as_u64(), answer["failed"].as_u64()), (Some(4), Some(0)), "{answer}");
    assert_eq!(answer["left_out"].as_u64(), Some(kept.rows.len() as u64), "{answer}");
    assert_eq!((database.storage_id(), &answer["folder_storage_id"]), (own, &Value::Null));
    assert!(database.find(id(8)).is_err() && database.find(id(9)).is_err(), "nothing of them could be used");

    // It is the same the next time, and the missing past makes it whole.
    let (again, _) = import_whole(&database, folder.path());
    assert_eq!((again["changes"].as_u64(), again["left_out"].as_u64()), (Some(0), answer["left_out"].as_u64()));
    folder.put(&[&text(8), "incremental", "past"], lost.get_changes(&[])[0].raw_bytes());
    assert_eq!(import_whole(&database, folder.path()).0["changes"], 3);
    folder.documents.insert(id(8), lost);
    folder.assert_taken_over(&database);
}

#[test]
fn an_interrupted_import_goes_on_where_it_was() {
    let mut folder = NodeFs::many(200);
    let storage = MemoryStorage::new();
    let database = open(&storage);
    let (mut done, mut runs) = (0, 0);
    // Each run is interrupted further on; what it took stays taken.
    for after in [0, 130, 170] {
        let (canceller, cancel) = Cancel::new();
        let mut kept = Kept { interrupt: Some((after, canceller)), ..Kept::default() };
        let error = import(&database, folder.path(), &mut kept, &cancel).unwrap_err();
        assert_eq!(error.code, "E0001");
        let found = database.reader().inventory(None, usize::MAX).unwrap().len();
        assert!((done..200).contains(&found), "{found} after {done}");
        runs += usize::from(found > done);
        done = found;
    }
    assert!(runs > 0 && done > 0, "one of them stopped in the middle: {done}");
    assert_eq!(database.storage_id().to_string(), STORAGE_ID, "adopted before the first document");
    let (answer, _) = import_whole(&database, folder.path());
    assert_eq!(answer["created"].as_u64(), Some(200 - done as u64), "{answer}");
    assert_eq!((answer["verified"].as_u64(), &answer["storage_id_adopted"]), (Some(200), &json!(true)), "{answer}");
    folder.assert_taken_over(&database);
}

#[test]
fn an_import_into_a_store_that_dies_is_whole_after_the_next() {
    let mut folder = NodeFs::many(120);
    let mut in_the_middle = 0;
    for commits in 0..6 {
        let storage = MemoryStorage::new();
        let database = open(&storage);
        storage.fail_after(commits);
        let (_canceller, cancel) = Cancel::new();
        let failed = import(&database, folder.path(), &mut Kept::default(), &cancel);
        let left = [storage.killed(), storage.crashed(storage.unsynced_batches() / 2)];
        assert!(failed.is_err() || commits > 2, "the disk failed");
        for disk in left {
            let database = open(&disk);
            let before = database.reader().inventory(None, usize::MAX).unwrap().len();
            in_the_middle += usize::from((1..120).contains(&before));
            let (answer, kept) = import_whole(&database, folder.path());
            assert_eq!(answer["created"].as_u64(), Some(120 - before as u64), "{answer}");
            assert_eq!(answer["verified"].as_u64(), Some(120), "{answer} {:?}", kept.rows);
            assert_eq!(database.storage_id().to_string(), STORAGE_ID, "adopted, or adopted again while it was empty");
            folder.assert_taken_over(&database);
        }
    }
    assert!(in_the_middle > 0, "some were left in the middle");
}

fn run(data: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.arg("--data").arg(data).args(words).env_remove("TIDELOG_LOG").env_remove("RUST_LOG");
    command.output().unwrap()
}

fn ok(data: &Path, words: &[&str]) -> Vec<u8> {
    let output = run(data, words);
    assert!(output.status.success(), "{words:?}\n{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn fails(data: &Path, words: &[&str], status: i32, code: &str) {
    let output = run(data, words);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{words:?}\n{error}");
    assert!(error.contains(&format!("error[{code}]: ")) && error.contains("\n  fix  "), "{words:?}\n{error}");
}

#[test]
fn the_command_takes_a_folder_over_and_exports_what_automerge_opens() {
    let mut folder = NodeFs::with_every_kind_of_document();
    folder.put_chunk(id(5), "incremental", "");
    let place = tempfile::tempdir().unwrap();
    let (data, source) = (place.path().join("data"), folder.path().to_str().unwrap().to_owned());
    fails(&data, &["import", "automerge-repo", "/nowhere/at/all"], 3, "E0111");
    assert!(!data.exists(), "nothing is made for a folder that is not there");
    fails(&data, &["import", "automerge-repo", place.path().to_str().unwrap()], 3, "E0617");
    let output = run(&data, &["import", "automerge-repo", &source]);
    let (said, warned) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{said}{warned}");
    for line in ["documents   4: 4 created, 0 updated", "verified    4 of 4", STORAGE_ID, "left out    1 files"] {
        assert!(said.contains(line), "{line}\n{said}");
    }
    assert!(warned.contains("it is empty"), "{warned}");

    // Every document as a file that automerge alone opens.
    let exports = place.path().join("exports");
    ok(&data, &["export", "--all", "--output", exports.to_str().unwrap()]);
    let mut names: Vec<String> =
        std::fs::read_dir(&exports).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected = folder.documents.keys().map(|id| format!("{}.automerge", id.to_base58())).collect();
    assert_eq!(names, sorted(expected), "and no half-written file");
    for (id, document) in &mut folder.documents {
        let bytes = std::fs::read(exports.join(format!("{}.automerge", id.to_base58()))).unwrap();
        let mut loaded = AutoCommit::load(&bytes).unwrap();
        assert_eq!(sorted_heads(&mut loaded), sorted_heads(document));
        assert_eq!(loaded.get_changes(&[]).len(), document.get_changes(&[]).len());
        assert_eq!(loaded.hydrate(&ROOT, None).unwrap(), document.hydrate(&ROOT, None).unwrap());
    }
    // Nothing is replaced unasked.
    fails(&data, &["export", "--all", "--output", exports.to_str().unwrap()], 6, "E0116");
    ok(&data, &["export", "--all", "--force", "--output", exports.to_str().unwrap()]);
    fails(&data, &["export", "--all"], 2, "E0110");

    let text = id(1).to_base58();
    let one = place.path().join("one.automerge");
    ok(&data, &["export", &format!("default/{text}"), "--output", one.to_str().unwrap()]);
    let bytes = std::fs::read(&one).unwrap();
    assert_eq!(AutoCommit::load(&bytes).unwrap().save(), folder.documents.get_mut(&id(1)).unwrap().save());
    assert_eq!(ok(&data, &["export", &text, "--format", "automerge", "--output", "-"]), bytes);
    fails(&data, &["export", &text, "--output", one.to_str().unwrap()], 6, "E0116");
    assert_eq!(std::fs::read(&one).unwrap(), bytes);
    fails(&data, &["export", &format!("notes/{text}"), "--output", "x.automerge"], 6, "E0603");
    let shelf = place.path().join("shelf");
    std::fs::create_dir(&shelf).unwrap();
    ok(&data, &["export", &text, "--output", shelf.to_str().unwrap()]);
    assert_eq!(std::fs::read(shelf.join(format!("{text}.automerge"))).unwrap(), bytes);
    // And back in, elsewhere.
    let other = place.path().join("other");
    let name = shelf.join(format!("{text}.automerge"));
    ok(&other, &["import", name.to_str().unwrap()]);
    assert_eq!(ok(&other, &["export", &text, "--format", "automerge"]), bytes);
    fails(&other, &["import", &source], 2, "E0110");
}

fn sorted_heads(document: &mut AutoCommit) -> Vec<String> {
    sorted(document.get_heads().iter().map(ToString::to_string).collect())
}

#[test]
fn a_running_node_reads_the_folder_itself() {
    use std::io::BufRead as _;
    let folder = NodeFs::many(30);
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data");
    let mut serve = Command::new(BINARY);
    serve.arg("--data").arg(&data).args(["serve", "--listen", "127.0.0.1:0", "--json"]);
    let mut node = serve.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(node.stdout.take().unwrap()).read_line(&mut line).unwrap();
    // A path that only means something where the command runs.
    let mut command = Command::new(BINARY);
    command.arg("--data").arg(&data).args(["import", "automerge-repo", ".", "--json", "--collection", "pages"]);
    let output = command.current_dir(folder.path()).output().unwrap();
    let status: Value = serde_json::from_slice(&ok(&data, &["status", "--json"])).unwrap();
    node.kill().unwrap();
    node.wait().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((answer["created"].as_u64(), &answer["collection"]), (Some(30), &json!("pages")), "{answer}");
    assert_eq!((&status["storage"], &status["state"]), (&json!(STORAGE_ID), &json!("ready")), "{status}");
    let again: Value =
        serde_json::from_slice(&ok(&data, &["import", "automerge-repo", folder.path().to_str().unwrap(), "--json"]))
            .unwrap();
    assert_eq!((again["unchanged"].as_u64(), again["elsewhere"].as_u64()), (Some(30), Some(30)), "{again}");
    assert_eq!(again["storage_id"].as_str().map(str::parse), Some(Ok::<StorageId, _>(STORAGE_ID.parse().unwrap())));
}
