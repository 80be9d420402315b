//! A store with something in every kind of file, and what was acknowledged of it, written down beside it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tidelog::log::FjallStorage;
use tidelog::net::{Role, Ticket, UnknownKeys};
use tidelog::node::peers::PeerBook;
use tidelog::node::place::{OpenPlace, Place};
use tidelog::{ChangeHash, Database, DocumentId, NodeId};

/// What was acknowledged: the judge of everything that is read later.
#[derive(Default, Clone)]
pub(crate) struct Judge {
    pub(crate) changes: Vec<(DocumentId, ChangeHash)>,
    pub(crate) values: BTreeMap<DocumentId, Value>,
}

impl Judge {
    /// Edits and waits for each edit.
    pub(crate) fn edit(&mut self, database: &Database, random: &mut Random, edits: usize) {
        let notes = database.collection("notes").unwrap();
        for n in 0..edits {
            let known = self.values.len();
            if known < 3 || random.below(8) == 0 {
                let (handle, commit) = notes.create(json!({ "text": "", "number": n, "map": {} })).unwrap();
                let receipt = commit.change();
                commit.wait().unwrap();
                self.note(&handle, receipt);
                continue;
            }
            let id = *self.values.keys().nth(random.below(known as u64) as usize).unwrap();
            let handle = database.find(id).unwrap();
            let word = format!("{:x} ", random.below(u64::MAX));
            let commit = handle
                .change(|edit| match n % 3 {
                    0 => Ok(edit.put(["map", &word[..3]], word.len())?),
                    // Long enough to be compressed by nobody, and by fjall now and then.
                    1 if n % 12 == 1 => Ok(edit.splice("text", 0, 0, &word.repeat(400))?),
                    _ => Ok(edit.splice("text", 0, 0, &word)?),
                })
                .unwrap();
            let receipt = commit.change();
            commit.wait().unwrap();
            self.note(&handle, receipt);
        }
    }

    fn note(&mut self, handle: &tidelog::engine::DocHandle, change: Option<ChangeHash>) {
        self.changes.extend(change.map(|change| (handle.id(), change)));
        self.values.insert(handle.id(), handle.to_json().unwrap());
    }

    /// Whether everything acknowledged is there, and every value right. What is not is an error by name, or a text
    /// that says what is wrong.
    pub(crate) fn holds(&self, database: &Database) -> Result<(), Verdict> {
        let reader = database.reader();
        for (id, hash) in &self.changes {
            let graph = reader.graph(*id).map_err(|error| Verdict::Named(error.to_string()))?;
            if graph.lock().unwrap().lsn_of(hash).is_none() {
                return Err(Verdict::Silent(format!("change {hash} of {id} is gone")));
            }
        }
        for (id, value) in &self.values {
            let handle = database.find(*id).map_err(|error| Verdict::Named(error.to_string()))?;
            let read = handle.to_json().map_err(|error| Verdict::Named(error.to_string()))?;
            if read != *value {
                return Err(Verdict::Silent(format!("{id} reads {read}, and {value} was acknowledged")));
            }
        }
        Ok(())
    }

    /// Whether no value is one that never was: of each document as much as is there.
    pub(crate) fn is_subset(&self, database: &Database) {
        for (id, _) in database.reader().inventory(None, usize::MAX).unwrap() {
            assert!(self.values.contains_key(&id), "a document that never was: {id}");
        }
    }
}

/// What is wrong with a store that opened.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Reading ended in an error, which says where.
    Named(String),
    /// Less or something else was read without a word. Never to happen.
    Silent(String),
}

/// A small generator: the seed is printed, and a run with it again does the same.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 16) % bound.max(1)
    }
}

/// A number from the environment, or a default one.
pub(crate) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A data directory that is closed, and its judge.
pub(crate) struct Store {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) node: NodeId,
    pub(crate) judge: Judge,
}

impl Store {
    /// `edits` edits, two thirds of them in table files of several generations, one third in the journal alone.
    pub(crate) fn make(edits: usize) -> Self {
        let folder = quick_folder();
        let path = folder.path().join("data");
        let mut judge = Judge::default();
        let mut random = Random(7);
        let mut node = NodeId([0; 32]);
        for part in 0..3 {
            let place = Place::open(&path, &OpenPlace { create: part == 0, ..OpenPlace::default() }).unwrap();
            node = place.database.node();
            judge.edit(&place.database, &mut random, edits / 3);
            place.database.close();
            drop(place);
            if part < 2 {
                FjallStorage::open(&path).unwrap().flush().unwrap();
            }
        }
        let ticket = Ticket::new(NodeId([9; 32]), "example.org", 4780).unwrap();
        let peers = PeerBook::load(&path, UnknownKeys::Refuse).unwrap();
        peers.add(NodeId([9; 32]), Role::Node, Some(ticket)).unwrap();
        Self { folder, path, node, judge }
    }

    /// A copy under this name beside it.
    pub(crate) fn copy(&self, name: &str) -> PathBuf {
        let target = self.folder.path().join(name);
        copy(&self.path, &target);
        target
    }
}

/// Where nothing has to be kept: in memory if there is such a place, since thousands of stores are opened.
pub(crate) fn quick_folder() -> tempfile::TempDir {
    const MEMORY: &str = "/dev/shm";
    // In a container it may be tiny.
    let has_room = rustix::fs::statvfs(MEMORY).is_ok_and(|stat| stat.f_bavail * stat.f_frsize >= 512 << 20);
    if has_room { tempfile::tempdir_in(MEMORY).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Copies a folder while nothing is written to it.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            copy_sparse(&entry.path(), &target);
        }
    }
}

/// A journal is preallocated: only what is not zero is copied.
fn copy_sparse(from: &Path, to: &Path) {
    use std::os::unix::fs::FileExt as _;
    let source = fs::File::open(from).unwrap();
    let target = fs::File::create(to).unwrap();
    target.set_permissions(source.metadata().unwrap().permissions()).unwrap();
    let length = source.metadata().unwrap().len();
    target.set_len(length).unwrap();
    let mut block = vec![0; 1 << 16];
    let mut at = 0;
    while at < length {
        at = match rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(_) => return,
        };
        let read = source.read_at(&mut block, at).unwrap();
        target.write_all_at(&block[..read], at).unwrap();
        at += read as u64;
    }
}

/// Every file below a folder, relative to it.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                found.push(path.strip_prefix(folder).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Where the last byte that is not zero ends.
pub(crate) fn written(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1)
}

/// Flips one bit.
pub(crate) fn flip(path: &Path, at: u64, bit: u32) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
}
