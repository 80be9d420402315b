//! Calls to the operating system that fail: at every place of a workload, once and for ever. Nothing panics or hangs,
//! writing is refused by name, reading goes on, and after a restart everything acknowledged is there.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use tidelog::{ChangeHash, Database, DocumentId, Error, Limits};

use crate::store::{Random, number, quick_folder};
use crate::trace::{run_under_strace, strace_works};

const DIRECTORY: &str = "TIDELOG_ERRORS_DIRECTORY";
/// The calls that fail in turn. Each thread counts its own.
const CALLS: [&str; 9] = [
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "ftruncate",
    "rename,renameat,renameat2",
    "openat",
    "mkdir",
    "unlink,unlinkat",
];

/// One line, even if the pipe is what fails: what is not told is not judged.
fn tell(line: &str) {
    let _ = std::io::stdout().lock().write_all(format!("{line}\n").as_bytes());
}

/// The process whose calls fail. It does nothing unless it is told where.
#[test]
fn child_workload() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    for part in 0..2 {
        let mut limits = Limits::default();
        limits.checkpoint_records = 8;
        match Database::builder(&directory).limits(limits).open() {
            Ok(database) => edit(&database, part),
            Err(error) => tell(&format!("error {} {error}", error.code())),
        }
    }
    tell("done");
}

fn edit(database: &Database, part: u64) {
    let mut last = None;
    for n in 0..10 {
        let created = database.collection("notes").and_then(|notes| notes.create(json!({ "n": n, "part": part })));
        let committed = created.and_then(|(handle, commit)| {
            let hash = commit.change();
            commit.wait().map(|_| (handle, hash))
        });
        match committed {
            Ok((handle, hash)) => {
                tell(&format!("ack {} {}", handle.id(), hash.unwrap()));
                last = Some(handle);
            }
            Err(error) => {
                tell(&format!("error {} {error}", error.code()));
                // Only reading goes on, and nothing else is taken for written.
                if let Some(handle) = &last {
                    assert!(matches!(handle.to_json(), Ok(value) if value["part"] == json!(part)), "reading goes on");
                }
                match database.collection("notes").and_then(|notes| notes.create(json!({}))) {
                    Ok((_, commit)) => assert!(commit.wait().is_err() || database.status().failure.is_none()),
                    Err(error) => assert!(matches!(error, Error::ReadOnly(_) | Error::StorageFull), "{error}"),
                }
                return;
            }
        }
    }
    database.close();
}

/// What came of one failing call.
struct Outcome {
    injected: bool,
    acknowledged: Vec<(DocumentId, ChangeHash)>,
    errors: Vec<String>,
}

fn run(call: &str, error: &str, when: &str, data: &Path) -> Outcome {
    let trace = data.with_extension("strace");
    let inject = format!("inject={call}:error={error}:when={when}");
    let options =
        ["-f", "-q", "-e", &format!("trace={call}"), "-e", &inject, "-e", "signal=none", "-o", trace.to_str().unwrap()];
    let begun = Instant::now();
    let output = run_under_strace(&options, "errors::child_workload", &[(DIRECTORY, data)]);
    let text = String::from_utf8_lossy(&output.stdout);
    let what = format!("{call} {error} {when}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{what}: it hung");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(!complaints.contains("panicked at") && !text.contains("panicked at"), "{what}: {text}\n{complaints}");
    assert!(output.status.code().is_some(), "{what}: ended by a signal\n{text}\n{complaints}");
    let injected = fs::read_to_string(&trace).unwrap().contains("(INJECTED)");
    let ack = |line: &str| {
        let (id, hash) = line.strip_prefix("ack ")?.split_once(' ')?;
        Some((id.parse().ok()?, hash.parse().ok()?))
    };
    let errors = text.lines().filter_map(|line| line.strip_prefix("error ")).map(str::to_owned).collect();
    Outcome { injected, acknowledged: text.lines().filter_map(ack).collect(), errors }
}

#[test]
fn every_call_may_fail_once_or_for_ever_and_nothing_acknowledged_is_lost() {
    if !strace_works() {
        println!("skipped (strace absent)");
        return;
    }
    let seed = number("TIDELOG_ERRORS_SEED", 0xe10);
    let step = number("TIDELOG_ERRORS_STEP", 41);
    println!("TIDELOG_ERRORS_SEED={seed} TIDELOG_ERRORS_STEP={step}");
    let mut random = Random(seed);
    let (mut runs, mut refused, mut acknowledged) = (0, 0, 0);
    for call in CALLS {
        for error in ["EIO", "ENOSPC"] {
            for ever in ["", "+"] {
                let mut at = 1 + random.below(step.min(3));
                loop {
                    let outcome = judge(call, error, &format!("{at}{ever}"));
                    if !outcome.injected {
                        break;
                    }
                    runs += 1;
                    refused += u64::from(!outcome.errors.is_empty());
                    acknowledged += outcome.acknowledged.len();
                    at += step;
                }
            }
        }
    }
    println!("{runs} failing calls: {refused} refused by name, {acknowledged} edits acknowledged and none lost");
    assert!(runs >= 40 && refused * 3 > runs, "{refused} of {runs}");
}

fn judge(call: &str, error: &str, when: &str) -> Outcome {
    let folder = quick_folder();
    let data = folder.path().join("data");
    let outcome = run(call, error, when, &data);
    let what = format!("{call} {error} {when}");
    for text in &outcome.errors {
        assert!(["E01", "E04"].iter().any(|room| text.starts_with(room)), "{what}: {text}");
    }
    match Database::builder(&data).create(outcome.acknowledged.is_empty()).open() {
        Ok(database) => {
            for (id, hash) in &outcome.acknowledged {
                let graph = database.reader().graph(*id).unwrap();
                assert!(graph.lock().unwrap().lsn_of(hash).is_some(), "{what}: {hash} of {id} is gone");
            }
            let found = database.verify(false, &mut |_, _| {}).unwrap();
            assert!(found.faults.is_empty(), "{what}: {:#?}", found.faults);
        }
        Err(error) => panic!("{what}: after a restart: {error}; {:?}", outcome.errors),
    }
    outcome
}

/// A disk of its own, if this process may make one.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(mebibytes: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self { folder })
    }

    fn grow(&self, mebibytes: u32) {
        let size = format!("remount,size={mebibytes}m");
        let status = Command::new("mount").args(["-o", &size]).arg(self.folder.path()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.folder.path()).status();
    }
}

#[test]
fn a_disk_that_is_really_full_refuses_by_name_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount(12) else {
        println!("skipped (no right to mount)");
        return;
    };
    let data = disk.folder.path().join("data");
    let mut limits = Limits::default();
    // Otherwise writing would be refused long before.
    limits.disk_free_min = 0;
    let open = |limits: &Limits| Database::builder(&data).limits(limits.clone()).open();
    let database = open(&limits).unwrap();
    let notes = database.collection("notes").unwrap();
    let mut random = Random(1);
    let mut acknowledged = Vec::new();
    let error = loop {
        let text: String = (0..20_000).map(|_| char::from(b'!' + random.below(90) as u8)).collect();
        let done = notes
            .create(json!({ "text": { "$string": text } }))
            .and_then(|(handle, commit)| commit.wait().map(|_| handle.id()));
        match done {
            Ok(id) => acknowledged.push(id),
            Err(error) => break error,
        }
    };
    assert!(matches!(error.code(), "E0403" | "E0404"), "{error}");
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    let handle = database.find(acknowledged[0]).unwrap();
    assert_eq!(handle.to_json().unwrap()["text"]["$string"].as_str().unwrap().len(), 20_000, "reading goes on");
    assert!(notes.create(json!({})).and_then(|(_, commit)| commit.wait()).is_err());
    drop((notes, handle));
    drop(database);
    // On the full disk it opens, or says that it is full.
    match open(&limits) {
        Ok(database) => assert_eq!(database.reader().inventory(None, usize::MAX).unwrap().len(), acknowledged.len()),
        Err(error) => assert!(matches!(error.code(), "E0403" | "E0402"), "{error}"),
    }
    disk.grow(64);
    let database = open(&limits).unwrap();
    for id in &acknowledged {
        assert!(database.reader().document(*id).unwrap().is_some(), "{id} was acknowledged and is gone");
    }
    let notes = database.collection("notes").unwrap();
    notes.create(json!({ "text": "room" })).unwrap().1.wait().unwrap();
    let found = database.verify(true, &mut |_, _| {}).unwrap();
    assert!(found.faults.is_empty(), "{:#?}", found.faults);
    println!("{} edits acknowledged before the disk was full, all there", acknowledged.len());
}
