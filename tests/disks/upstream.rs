//! What fjall 3.1.13 by itself does with damage, each the smallest case of a page in `docs/upstream/`. These tests fail
//! when a newer fjall does better: then the page, and what stands against it here, can go.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::store::{copy, files_below, flip, quick_folder, written};

fn open(path: &Path) -> fjall::Result<(Database, Keyspace)> {
    let database = Database::builder(path).worker_threads(1).open()?;
    let rows = database.keyspace("rows", KeyspaceCreateOptions::default)?;
    Ok((database, rows))
}

/// Twenty batches of one row, each synced; where each batch begins in the journal.
fn twenty_batches(path: &Path, key: impl Fn(u8) -> Vec<u8>) -> Vec<u64> {
    let (database, rows) = open(path).unwrap();
    let journal = path.join("0.jnl");
    (0..20)
        .map(|n| {
            let start = written(&journal);
            let mut batch = database.batch().durability(Some(PersistMode::SyncAll));
            batch.insert(&rows, key(n), vec![b'A' + n; 1000]);
            batch.commit().unwrap();
            start
        })
        .collect()
}

fn rows_in(path: &Path) -> usize {
    let (_database, rows) = open(path).unwrap();
    rows.iter().count()
}

#[test]
fn a_flipped_tag_in_the_journal_deletes_every_later_batch_without_a_word() {
    let folder = quick_folder();
    let path = folder.path().join("db");
    let starts = twenty_batches(&path, |n| vec![n]);
    let before = written(&path.join("0.jnl"));
    flip(&path.join("0.jnl"), starts[10], 3);
    assert_eq!(rows_in(&path), 10, "opened, and ten synced batches are gone");
    assert!(written(&path.join("0.jnl")) < before, "from the file as well");
}

#[test]
fn a_flipped_sequence_number_brings_an_old_value_back() {
    let folder = quick_folder();
    let path = folder.path().join("db");
    let starts = twenty_batches(&path, |_| b"one key".to_vec());
    // Tag, count (4), then the number, little-endian: its sixth byte.
    flip(&path.join("0.jnl"), starts[3] + 5 + 5, 0);
    let (_database, rows) = open(&path).unwrap();
    assert_eq!(rows.get("one key").unwrap().unwrap()[0], b'A' + 3, "not the last value, and no error");
}

#[test]
fn a_torn_last_batch_whose_end_was_written_does_not_open() {
    let folder = quick_folder();
    let path = folder.path().join("db");
    let starts = twenty_batches(&path, |n| vec![n]);
    // A sector within the last value, as a power cut leaves it that kept the sectors around it.
    let file = fs::OpenOptions::new().write(true).open(path.join("0.jnl")).unwrap();
    file.write_all_at(&[0; 512], starts[19] + 200).unwrap();
    assert!(matches!(open(&path), Err(fjall::Error::JournalRecovery(_))));
}

const OPENED: &str = "TIDELOG_UPSTREAM_OPENED";

/// The process that opens a damaged database. It does nothing unless it is told which.
#[test]
fn child_opens() {
    let Some(path) = std::env::var_os(OPENED) else { return };
    if let Err(error) = open(Path::new(&path)) {
        println!("refused: {error}");
    }
}

/// How the opening of a database ended, in a process of its own.
fn opened(path: &Path) -> &'static str {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "upstream::child_opens", "--nocapture"]).env(OPENED, path);
    let output = command.output().unwrap();
    match output.status.code() {
        None => "abort",
        Some(0) if String::from_utf8_lossy(&output.stdout).contains("refused: ") => "error",
        Some(0) => "nothing seen",
        Some(_) => "panic",
    }
}

#[test]
fn damage_in_a_manifest_and_a_stray_name_are_panics_or_aborts() {
    let folder = quick_folder();
    let path = folder.path().join("db");
    drop(twenty_batches(&path, |n| vec![n]));
    let manifest = manifest_of(&path);
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    // The first sections: versions, kinds, the number of levels.
    for at in 0..32 {
        let damaged = folder.path().join("damaged");
        copy(&path, &damaged);
        flip(&damaged.join(&manifest), at, 1);
        *ends.entry(opened(&damaged)).or_default() += 1;
        fs::remove_dir_all(&damaged).unwrap();
    }
    println!("one bit in each of the first 32 bytes of a manifest: {ends:?}");
    // A panic while the keyspaces are locked meets a destructor that locks them again: no `catch_unwind` helps.
    assert!(ends.contains_key("abort") || ends.contains_key("panic"), "{ends:?}");
    assert!(ends.contains_key("nothing seen"), "{ends:?}");
    fs::create_dir(path.join("keyspaces/lost+found")).unwrap();
    assert!(matches!(opened(&path), "panic" | "abort"));
}

fn manifest_of(path: &Path) -> PathBuf {
    let is_manifest = |file: &PathBuf| {
        file.starts_with("keyspaces/1") && file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('v'))
    };
    files_below(path).into_iter().find(is_manifest).unwrap()
}

#[test]
fn without_its_current_file_a_keyspace_is_deleted() {
    let folder = quick_folder();
    let path = folder.path().join("db");
    drop(twenty_batches(&path, |n| vec![n]));
    flush(&path);
    fs::remove_file(path.join("keyspaces/1/current")).unwrap();
    let database = Database::builder(&path).open().unwrap();
    assert!(!path.join("keyspaces/1").exists(), "opened, and the folder is gone");
    drop(database);
}

#[test]
fn without_its_journal_flushed_rows_are_invisible() {
    let folder = quick_folder();
    let path = folder.path().join("db");
    drop(twenty_batches(&path, |n| vec![n]));
    flush(&path);
    for file in files_below(&path).into_iter().filter(|file| file.extension().is_some_and(|ending| ending == "jnl")) {
        fs::remove_file(path.join(file)).unwrap();
    }
    assert_eq!(rows_in(&path), 0, "opened, and the rows of the table file are not seen");
}

fn flush(path: &Path) {
    let (_database, rows) = open(path).unwrap();
    rows.rotate_memtable_and_wait().unwrap();
}

#[test]
fn an_interrupted_first_open_leaves_what_never_opens() {
    let folder = quick_folder();
    let path = folder.path().join("db");
    drop(open(&path).unwrap());
    // The version is written last; a power cut or a full disk just before leaves the rest.
    fs::remove_file(path.join("version")).unwrap();
    assert!(open(&path).is_err());
    assert!(open(&path).is_err(), "nor the next time");
}
