//! What a power cut could leave: every file operation of a real workload is recorded, and the states that a disk could
//! be in at any moment are put together again and opened.
//!
//! Two models say what may be lost of what was not synced:
//!
//! * `ext4` (`data=ordered`): names change in order, and any `fsync` keeps all changes of names before it; of the
//!   contents each page of 4 KiB is kept or lost by itself.
//! * `strict`: every change of a name is kept or lost by itself until its folder is synced, and of the contents every
//!   sector of 512 bytes.
//!
//! In both, of what was not synced all, nothing, or any part is kept; a page or sector that is kept is so as it was in
//! memory, with all that was written to it before. What was synced is kept. A process that was told
//! of an edit wrote it to a pipe, in the same recording: that is the judge.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use tidelog::log::FjallStorage;
use tidelog::{ChangeHash, Database, DocumentId, Durability, Limits};

use crate::store::{Random, number, quick_folder};
use crate::trace::{Call, parse, run_under_strace, strace_works};

const DIRECTORY: &str = "TIDELOG_IMAGES_DIRECTORY";
const DURABILITY: &str = "TIDELOG_IMAGES_DURABILITY";
const CALLS: &str = "trace=openat,open,creat,close,dup,fcntl,write,pwrite64,writev,pwritev,lseek,ftruncate,fsync,fdatasync,\
    rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,syncfs,sync";

/// The process that is recorded: edits, table files, a restart, an unclean restart, edits. It does nothing unless it is
/// told where.
#[test]
fn child_workload() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let mut random = Random(11);
    for part in 0..4 {
        let mut limits = Limits::default();
        limits.checkpoint_records = 24;
        let buffered = std::env::var(DURABILITY).is_ok_and(|text| text == "buffered");
        let durability = if buffered { Durability::Buffered } else { Durability::Synced };
        let database = Database::builder(&directory).limits(limits).durability(durability).open().unwrap();
        let notes = database.collection("notes").unwrap();
        let shared = notes.doc_with("shared", json!({ "text": "" })).unwrap();
        let mut in_flight = Vec::new();
        for n in 0..30 {
            let (own, created) = notes.create(json!({ "n": n, "part": part })).unwrap();
            in_flight.push((own.id(), created));
            let word = format!("{:x}", random.below(u64::MAX)).repeat(1 + 20 * (n % 7));
            in_flight.push((shared.id(), shared.change(|edit| Ok(edit.splice("text", 0, 0, &word)?)).unwrap()));
            // Some alone, some as a group.
            if n % 3 == 0 {
                for (id, commit) in in_flight.drain(..) {
                    let hash = commit.change().unwrap();
                    commit.wait().unwrap();
                    std::io::stdout().lock().write_all(format!("ack {id} {hash}\n").as_bytes()).unwrap();
                }
            }
        }
        in_flight.into_iter().for_each(|(_, commit)| drop(commit.wait()));
        database.close();
        drop(shared);
        drop(notes);
        drop(database);
        if part % 2 == 1 {
            FjallStorage::open(Path::new(&directory)).unwrap().flush().unwrap();
        }
    }
}

/// A change to the disk.
#[derive(Debug, Clone)]
enum Change {
    Name(NameChange),
    Write { file: usize, at: u64, bytes: Vec<u8> },
    Length { file: usize, length: u64 },
}

#[derive(Debug, Clone)]
enum NameChange {
    File { path: PathBuf, file: usize },
    Folder { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
}

/// A change, and after how many calls it is sure to be kept.
#[derive(Debug)]
struct Recorded {
    change: Change,
    /// The call that made it.
    call: usize,
    /// The call by which it is synced, under the rules of each model.
    kept_ext4: usize,
    kept_strict: usize,
    /// The folder whose sync keeps a name, as it is called now.
    folder: Option<PathBuf>,
}

#[derive(Default)]
struct Recording {
    changes: Vec<Recorded>,
    /// The call that told of it.
    told: Vec<(usize, DocumentId, ChangeHash)>,
    calls: usize,
}

/// Follows the calls of one process.
#[derive(Default)]
struct Follower {
    root: PathBuf,
    recording: Recording,
    /// Open files: what they are, and where the next write goes.
    open: HashMap<i64, Open>,
    /// What the process sees: path -> file.
    names: BTreeMap<PathBuf, usize>,
    lengths: Vec<u64>,
}

#[derive(Clone)]
struct Open {
    path: PathBuf,
    /// `None` for a folder.
    file: Option<usize>,
    at: u64,
    append: bool,
}

impl Follower {
    fn follow(mut self, calls: &[Call]) -> Recording {
        for (n, call) in calls.iter().enumerate() {
            self.step(n, call);
        }
        self.recording.calls = calls.len();
        self.recording
    }

    fn step(&mut self, n: usize, call: &Call) {
        match call.name.as_str() {
            "openat" => self.opened(n, call, self.resolve(call, 0, 1), call.word(2)),
            "open" => self.opened(n, call, call.path(0), call.word(1)),
            "close" => drop(self.open.remove(&call.number(0).unwrap())),
            "dup" => self.copied(call),
            "fcntl" if call.word(1).starts_with("F_DUPFD") => self.copied(call),
            "write" if call.number(0) == Some(1) => self.told(n, call),
            "write" => self.written(n, call, None),
            "pwrite64" => self.written(n, call, call.number(3)),
            "lseek" => {
                if let Some(open) = self.open.get_mut(&call.number(0).unwrap()) {
                    open.at = call.result as u64;
                }
            }
            "ftruncate" => {
                if let Some(file) = self.open.get(&call.number(0).unwrap()).and_then(|open| open.file) {
                    let length = call.number(1).unwrap() as u64;
                    self.lengths[file] = length;
                    self.note(n, Change::Length { file, length });
                }
            }
            "fsync" | "fdatasync" => self.synced(n, call),
            "rename" => self.renamed(n, call.path(0), call.path(1)),
            "renameat" | "renameat2" => self.renamed(n, self.resolve(call, 0, 1), self.resolve(call, 2, 3)),
            "link" => self.linked(n, &call.path(0), call.path(1)),
            "linkat" => self.linked(n, &self.resolve(call, 0, 1), self.resolve(call, 2, 3)),
            "unlink" | "rmdir" => self.removed(n, call.path(0)),
            "unlinkat" => self.removed(n, self.resolve(call, 0, 1)),
            "mkdir" => self.made(n, call.path(0)),
            "mkdirat" => self.made(n, self.resolve(call, 0, 1)),
            "fcntl" => {}
            other => panic!("the workload used {other}, which the recording does not know"),
        }
    }

    fn resolve(&self, call: &Call, folder: usize, path: usize) -> PathBuf {
        let path = call.path(path);
        match call.number(folder).and_then(|number| self.open.get(&number)) {
            Some(open) if path.is_relative() => open.path.join(path),
            _ => path,
        }
    }

    fn note(&mut self, call: usize, change: Change) {
        let folder = match &change {
            Change::Name(change) => change.folder().map(Path::to_owned),
            _ => None,
        };
        self.recording.changes.push(Recorded { change, call, kept_ext4: usize::MAX, kept_strict: usize::MAX, folder });
    }

    fn opened(&mut self, n: usize, call: &Call, path: PathBuf, flags: &str) {
        self.open.remove(&call.result);
        if !path.starts_with(&self.root) {
            return;
        }
        let has = |flag: &str| flags.split('|').any(|word| word == flag);
        let mut file = self.names.get(&path).copied();
        if file.is_none() && has("O_CREAT") {
            file = Some(self.lengths.len());
            self.lengths.push(0);
            self.names.insert(path.clone(), self.lengths.len() - 1);
            self.note(n, Change::Name(NameChange::File { path: path.clone(), file: self.lengths.len() - 1 }));
        } else if let Some(file) = file.filter(|_| has("O_TRUNC")) {
            self.lengths[file] = 0;
            self.note(n, Change::Length { file, length: 0 });
        }
        self.open.insert(call.result, Open { path, file, at: 0, append: has("O_APPEND") });
    }

    fn copied(&mut self, call: &Call) {
        if let Some(open) = self.open.get(&call.number(0).unwrap()).cloned() {
            self.open.insert(call.result, open);
        }
    }

    fn written(&mut self, n: usize, call: &Call, at: Option<i64>) {
        let Some(open) = self.open.get_mut(&call.number(0).unwrap()) else { return };
        let Some(file) = open.file else { return };
        let place = match at {
            Some(at) => at as u64,
            None if open.append => self.lengths[file],
            None => open.at,
        };
        let bytes = call.bytes(1)[..call.result as usize].to_vec();
        let end = place + bytes.len() as u64;
        if at.is_none() {
            open.at = end;
        }
        self.lengths[file] = self.lengths[file].max(end);
        self.note(n, Change::Write { file, at: place, bytes });
    }

    fn told(&mut self, n: usize, call: &Call) {
        let text = String::from_utf8_lossy(call.bytes(1)).into_owned();
        for line in text.lines() {
            if let Some((id, hash)) = line.strip_prefix("ack ").and_then(|rest| rest.split_once(' ')) {
                self.recording.told.push((n, id.parse().unwrap(), hash.parse().unwrap()));
            }
        }
    }

    fn synced(&mut self, n: usize, call: &Call) {
        let Some(open) = self.open.get(&call.number(0).unwrap()).cloned() else { return };
        let whole = call.name == "fsync";
        for recorded in &mut self.recording.changes {
            // What ended only after the sync began may have been missed by it.
            if recorded.call >= call.begun_after {
                continue;
            }
            let (ext4, strict) = match &recorded.change {
                Change::Name(_) => (whole, open.file.is_none() && recorded.folder.as_ref() == Some(&open.path)),
                Change::Write { file, .. } | Change::Length { file, .. } => {
                    (Some(*file) == open.file, Some(*file) == open.file)
                }
            };
            if ext4 {
                recorded.kept_ext4 = recorded.kept_ext4.min(n);
            }
            if strict {
                recorded.kept_strict = recorded.kept_strict.min(n);
            }
        }
    }

    fn renamed(&mut self, n: usize, from: PathBuf, to: PathBuf) {
        if !from.starts_with(&self.root) {
            return;
        }
        rename_in(&mut self.names, &from, &to);
        for open in self.open.values_mut() {
            if let Ok(rest) = open.path.strip_prefix(&from) {
                open.path = join(&to, rest);
            }
        }
        // A folder that is synced under its new name keeps what was done in it under the old one.
        for recorded in &mut self.recording.changes {
            if let Some(rest) = recorded.folder.as_ref().and_then(|folder| folder.strip_prefix(&from).ok()) {
                recorded.folder = Some(join(&to, rest));
            }
        }
        self.note(n, Change::Name(NameChange::Rename { from, to }));
    }

    fn linked(&mut self, n: usize, from: &Path, to: PathBuf) {
        if let Some(file) = self.names.get(from).copied() {
            self.names.insert(to.clone(), file);
            self.note(n, Change::Name(NameChange::File { path: to, file }));
        }
    }

    fn removed(&mut self, n: usize, path: PathBuf) {
        if path.starts_with(&self.root) {
            self.names.remove(&path);
            self.note(n, Change::Name(NameChange::Remove { path }));
        }
    }

    fn made(&mut self, n: usize, path: PathBuf) {
        if path.starts_with(&self.root) {
            self.note(n, Change::Name(NameChange::Folder { path }));
        }
    }
}

impl NameChange {
    /// The folder whose sync keeps it.
    fn folder(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } | Self::Folder { path } | Self::Remove { path } => path.parent(),
            Self::Rename { to, .. } => to.parent(),
        }
    }
}

fn join(folder: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { folder.to_owned() } else { folder.join(rest) }
}

fn rename_in<T: Clone>(names: &mut BTreeMap<PathBuf, T>, from: &Path, to: &Path) {
    let moved: Vec<_> =
        names.iter().filter(|(path, _)| path.starts_with(from)).map(|(p, t)| (p.clone(), t.clone())).collect();
    for (path, _) in &moved {
        names.remove(path);
    }
    for (path, what) in moved {
        let rest = path.strip_prefix(from).unwrap();
        names.insert(join(to, rest), what);
    }
}

/// How much is kept of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Keep {
    Nothing,
    All,
    Any,
}

#[derive(Debug, Clone, Copy)]
struct Cut {
    after: usize,
    strict: bool,
    keep: Keep,
    seed: u64,
}

/// Puts together in `target` what a disk could hold after a power cut.
fn image(recording: &Recording, cut: Cut, root: &Path, target: &Path) {
    let mut random = Random(cut.seed);
    let mut keeps = |sure: bool| {
        sure || match cut.keep {
            Keep::Nothing => false,
            Keep::All => true,
            Keep::Any => random.below(2) == 0,
        }
    };
    let mut names: BTreeMap<PathBuf, Option<usize>> = BTreeMap::from([(root.to_owned(), None)]);
    // In order, with whether it is kept.
    let mut contents: HashMap<usize, Vec<(Change, bool)>> = HashMap::new();
    let mut blocks: HashMap<(usize, u64), Vec<usize>> = HashMap::new();
    let mut lost_a_name = false;
    let grain = if cut.strict { 512 } else { 4096 };
    for recorded in recording.changes.iter().take_while(|recorded| recorded.call <= cut.after) {
        let sure = if cut.strict { recorded.kept_strict } else { recorded.kept_ext4 } <= cut.after;
        match &recorded.change {
            Change::Name(change) => {
                // In order: behind one that is lost, all are, up to the next that is sure.
                lost_a_name &= !sure;
                let kept = keeps(sure) && (cut.strict || !lost_a_name);
                lost_a_name |= !kept;
                if kept {
                    apply(&mut names, change);
                }
            }
            Change::Length { file, .. } => {
                contents.entry(*file).or_default().push((recorded.change.clone(), keeps(sure)));
            }
            Change::Write { file, at, bytes } => {
                let mut from = *at;
                let end = at + bytes.len() as u64;
                while from < end {
                    let to = end.min((from / grain + 1) * grain);
                    let bytes = bytes[(from - at) as usize..(to - at) as usize].to_vec();
                    let (parts, kept) = (contents.entry(*file).or_default(), keeps(sure));
                    let block = blocks.entry((*file, from / grain)).or_default();
                    block.push(parts.len());
                    parts.push((Change::Write { file: *file, at: from, bytes }, kept));
                    if kept {
                        block.drain(..).for_each(|part| parts[part].1 = true);
                    }
                    from = to;
                }
            }
        }
    }
    for (path, file) in &names {
        let path = join(target, path.strip_prefix(root).unwrap());
        let Some(file) = file else {
            fs::create_dir_all(&path).unwrap();
            continue;
        };
        let made = fs::File::create(&path).unwrap();
        for (change, _) in contents.get(file).into_iter().flatten().filter(|(_, kept)| *kept) {
            match change {
                Change::Length { length, .. } => made.set_len(*length).unwrap(),
                Change::Write { at, bytes, .. } => made.write_all_at(bytes, *at).unwrap(),
                Change::Name(_) => {}
            }
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Option<usize>>, change: &NameChange) {
    let has_folder = |names: &BTreeMap<PathBuf, Option<usize>>, path: &Path| {
        path.parent().is_some_and(|folder| names.get(folder) == Some(&None))
    };
    match change {
        NameChange::File { path, file } if has_folder(names, path) => drop(names.insert(path.clone(), Some(*file))),
        NameChange::Folder { path } if has_folder(names, path) => drop(names.insert(path.clone(), None)),
        NameChange::Rename { from, to } if names.contains_key(from) && has_folder(names, to) => {
            rename_in(names, from, to)
        }
        // A folder that is not empty stays: the removal of what is in it was lost.
        NameChange::Remove { path } if names.keys().filter(|other| other.starts_with(path)).count() <= 1 => {
            names.remove(path);
        }
        _ => {}
    }
}

/// Records the workload.
fn record(durability: &str) -> (Recording, PathBuf) {
    let folder = quick_folder();
    let root = folder.path().canonicalize().unwrap();
    let (directory, output) = (root.join("data"), root.join("strace"));
    let options =
        ["-f", "-q", "-xx", "-s", "100000000", "-e", CALLS, "-e", "signal=none", "-o", output.to_str().unwrap()];
    let environment = [(DIRECTORY, directory.as_path()), (DURABILITY, Path::new(durability))];
    let ran = run_under_strace(&options, "images::child_workload", &environment);
    assert!(ran.status.success(), "{ran:?}");
    let calls = parse(&fs::read_to_string(output).unwrap());
    let recording = Follower { root: root.clone(), ..Follower::default() }.follow(&calls);
    println!(
        "{} calls, {} changes to the disk, {} edits told",
        recording.calls,
        recording.changes.len(),
        recording.told.len()
    );
    assert!(recording.told.len() > 200);
    (recording, root)
}

/// What was found in images.
#[derive(Debug, Default)]
struct Tally {
    images: u64,
    /// Cuts before the directory had its name.
    absent: u64,
    opened: u64,
    /// Told edits that were not there.
    lost: u64,
}

/// Opens so many images, cut where something changed or was told, now and then before there was a store.
fn open_images(durability: &str, count: u64, seed: u64) -> Tally {
    let (recording, root) = record(durability);
    let named = |recorded: &&Recorded| matches!(&recorded.change, Change::Name(NameChange::Rename { to, .. }) if *to == root.join("data"));
    let there = recording.changes.iter().find(named).expect("the directory is renamed").call;
    let mut moments: Vec<usize> = recording.changes.iter().map(|recorded| recorded.call).collect();
    moments.extend(recording.told.iter().map(|(call, ..)| *call));
    let (before, after): (Vec<usize>, Vec<usize>) = moments.into_iter().partition(|call| *call <= there);
    let mut random = Random(seed);
    let folder = quick_folder();
    let mut tally = Tally::default();
    for n in 0..count {
        let keep = [Keep::Nothing, Keep::Any, Keep::Any, Keep::All][(n / 2 % 4) as usize];
        let moments = if n % 16 == 0 { &before } else { &after };
        let after = moments[random.below(moments.len() as u64) as usize];
        let cut = Cut { after, strict: n % 2 == 1, keep, seed: random.below(u64::MAX) };
        let target = folder.path().join("image");
        image(&recording, cut, &root, &target);
        open(&recording, cut, &target.join("data"), &mut tally);
        fs::remove_dir_all(&target).unwrap();
    }
    tally
}

/// Opens an image and looks for everything told before the cut.
fn open(recording: &Recording, cut: Cut, data: &Path, tally: &mut Tally) {
    let told: Vec<_> = recording.told.iter().take_while(|(call, ..)| *call <= cut.after).collect();
    tally.images += 1;
    if !data.join("FORMAT").exists() {
        assert!(told.is_empty(), "{cut:?}: there is no store, and {} edits were told of", told.len());
        tally.absent += 1;
        return;
    }
    // An image is a copy to the store: its folder has another number.
    let database = Database::builder(data).create(false).restored(true).open();
    let database = database.unwrap_or_else(|error| panic!("{cut:?}: {error}"));
    for (_, id, hash) in told {
        let graph = database.reader().graph(*id).unwrap();
        tally.lost += u64::from(graph.lock().unwrap().lsn_of(hash).is_none());
    }
    // The log is a whole prefix of what was written, and everything in it hangs together.
    let found = database.verify(cut.seed.is_multiple_of(8), &mut |_, _| {}).unwrap();
    assert!(found.faults.is_empty(), "{cut:?}: {:#?}", found.faults);
    tally.opened += 1;
}

#[test]
fn whatever_a_power_cut_leaves_opens_with_everything_acknowledged() {
    if !strace_works() {
        println!("skipped (strace absent)");
        return;
    }
    let seed = number("TIDELOG_IMAGES_SEED", 0x1ce);
    let count = number("TIDELOG_IMAGES", 216);
    println!("TIDELOG_IMAGES_SEED={seed}");
    let tally = open_images("synced", count, seed);
    println!("{tally:?}");
    assert_eq!(tally.lost, 0);
    assert!(tally.opened * 10 >= count * 8, "{tally:?}");
}

/// Told edits are lost here, and found to be: so the images above would show it. What is left is whole.
#[test]
fn a_power_cut_takes_the_end_of_a_buffered_log_and_leaves_a_whole_one() {
    if !strace_works() {
        println!("skipped (strace absent)");
        return;
    }
    let seed = number("TIDELOG_IMAGES_SEED", 0x1ce);
    let tally = open_images("buffered", number("TIDELOG_IMAGES", 216) / 6, seed);
    println!("{tally:?}");
    assert!(tally.lost > 0, "{tally:?}");
}
