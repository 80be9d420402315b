//! What is left of a store after its disk did its worst: every prefix, every cut of the journal, rows that are gone or
//! wrong. It opens with everything acknowledged, or says what is missing; it never serves less without a word.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use tidelog::history::{EntryKind, Location};
use tidelog::log::{Keyspace, MemoryStorage, Storage as _, log_key};
use tidelog::{Database, DocumentId, Durability, Error};

use crate::support::{
    SmallEdit, assert_whole, cases, first_value, logged_changes, narrow, node, plain, plain_heads, plain_json,
    small_edit, without_counters,
};

/// What a database says of itself: every document's state and value.
type Told = Vec<(DocumentId, tidelog::log::record::StateDigest, serde_json::Value)>;

fn told(database: &Database) -> Result<Told, Error> {
    let inventory = database.reader().inventory(None, usize::MAX)?;
    inventory.into_iter().map(|(id, digest)| Ok((id, digest, database.find(id)?.to_json()?))).collect()
}

/// Every document in the log, made again by Automerge alone.
fn told_by_the_log(database: &Database) -> Vec<(DocumentId, serde_json::Value)> {
    let reader = database.reader();
    let ids = reader.inventory(None, usize::MAX).unwrap().into_iter().map(|(id, _)| id);
    ids.map(|id| {
        let changes = logged_changes(reader, id);
        let document = plain(changes.values());
        assert_eq!(reader.document(id).unwrap().unwrap().heads, plain_heads(&document), "not causally closed");
        (id, plain_json(&document))
    })
    .collect()
}

/// Three documents with these edits, in turn, every one waited for.
fn fill(database: &Database, edits: &[SmallEdit]) {
    let notes = database.collection("notes").unwrap();
    let handles: Vec<_> = (0..3).map(|n| notes.doc_with(&format!("note {n}"), first_value()).unwrap()).collect();
    for (n, small) in edits.iter().enumerate() {
        let commit = handles[n % 3].change(|edit| {
            small.run(edit);
            Ok(())
        });
        commit.unwrap().wait().unwrap();
    }
    if edits.len() > 5 {
        handles[0].delete().unwrap().wait().unwrap();
    }
}

fn open(storage: &MemoryStorage, durability: Durability) -> Result<Database, Error> {
    Database::on(storage.clone()).node(node(1)).durability(durability).limits(narrow()).open()
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn every_prefix_of_a_buffered_log_is_a_whole_database(edits in vec(small_edit(), 1..14)) {
        let storage = MemoryStorage::new();
        let database = open(&storage, Durability::Buffered).unwrap();
        fill(&database, &edits);
        let log_id = database.reader().log_id();
        let mut counts = Vec::new();
        for kept in 0..=storage.unsynced_batches() {
            let left = open(&storage.crashed(kept), Durability::Buffered).unwrap();
            prop_assert!(left.log_renewed() && left.reader().log_id() != log_id);
            assert_whole(&left);
            let ours: Vec<_> = told(&left).unwrap().into_iter().map(|(id, _, value)| (id, without_counters(value))).collect();
            prop_assert_eq!(ours, told_by_the_log(&left));
            counts.push(left.reader().read_log(tidelog::Lsn::ZERO, usize::MAX, usize::MAX).unwrap().len());
        }
        prop_assert!(counts.is_sorted() && counts.last() > counts.first());
        prop_assert_eq!(told(&open(&storage.crashed(usize::MAX), Durability::Buffered).unwrap()).unwrap(), told(&database).unwrap());
    }

    /// Rows of the projections are taken away or spoilt: opening makes them again, or reading and `verify` say so.
    #[test]
    fn damaged_projections_never_become_values(
        edits in vec(small_edit(), 8..40),
        keyspace in prop::sample::select(vec![Keyspace::Docs, Keyspace::DocIx, Keyspace::BySeq, Keyspace::State, Keyspace::Snap]),
        at in any::<prop::sample::Index>(),
        spoil in any::<Option<prop::sample::Index>>(),
    ) {
        let storage = MemoryStorage::new();
        let database = open(&storage, Durability::Synced).unwrap();
        fill(&database, &edits);
        database.close();
        let expected = told(&database).unwrap();
        let rows = rows_of(&storage, keyspace);
        prop_assume!(!rows.is_empty());
        let (key, value) = at.get(&rows);
        let spoilt = spoil.map(|bit| {
            let (mut value, bit) = (value.clone(), bit.index(value.len() * 8));
            value[bit / 8] ^= 1 << (bit % 8);
            value
        });
        storage.tamper(keyspace, key, spoilt);
        // What a check of the whole says without opening anew, and what an opening makes of it.
        let live = database.verify(true, &mut |_, _| {}).unwrap();
        let own_row = keyspace == Keyspace::State && key.starts_with(b"s:");
        prop_assert!(!live.faults.is_empty() || own_row || keyspace == Keyspace::Snap, "a {keyspace:?} row is gone and verify is content");
        let Ok(again) = open(&storage, Durability::Synced) else { return Ok(()) };
        let found = again.verify(true, &mut |_, _| {}).unwrap();
        match told(&again) {
            Ok(now) if now == expected => {}
            Ok(_) => prop_assert!(!found.faults.is_empty(), "other values, and verify is content"),
            Err(_) => prop_assert!(!found.faults.is_empty(), "verify is content with what cannot be read"),
        }
        for (id, _, value) in told(&again).unwrap_or_default() {
            let before = expected.iter().find(|(other, ..)| *other == id).map(|(_, _, value)| value);
            prop_assert_eq!(Some(&value), before, "a wrong value");
        }
    }

    #[test]
    fn a_changed_record_is_named(edits in vec(small_edit(), 3..20), at in any::<prop::sample::Index>(), bit in any::<prop::sample::Index>()) {
        let storage = MemoryStorage::new();
        let database = open(&storage, Durability::Synced).unwrap();
        fill(&database, &edits);
        let rows = rows_of(&storage, Keyspace::Log);
        let (key, value) = at.get(&rows);
        let (mut value, bit) = (value.clone(), bit.index(value.len() * 8));
        value[bit / 8] ^= 1 << (bit % 8);
        storage.tamper(Keyspace::Log, key, Some(value));
        let place = format!("record {}", u64::from_be_bytes(key.as_slice().try_into().unwrap()));
        let found = database.verify(true, &mut |_, _| {}).unwrap();
        prop_assert!(found.faults.iter().any(|fault| fault.place == place), "{place} is not in {:?}", found.faults);
        storage.tamper(Keyspace::Log, key, None);
        let found = database.verify(true, &mut |_, _| {}).unwrap();
        prop_assert!(!found.faults.is_empty(), "a record is gone and verify is content");
    }
}

fn rows_of(storage: &MemoryStorage, keyspace: Keyspace) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    let scanned = storage.scan(keyspace, &[], &[0xff; 40], false, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    });
    scanned.unwrap();
    rows
}

fn some_edits(count: u16) -> Vec<SmallEdit> {
    (0..count).map(|n| SmallEdit((n % 13) as u8, n.wrapping_mul(7919), n)).collect()
}

#[test]
fn projections_made_again_are_the_ones_before() {
    let storage = MemoryStorage::new();
    let database = open(&storage, Durability::Synced).unwrap();
    fill(&database, &some_edits(60));
    let expected = told(&database).unwrap();
    database.close();
    let tables = [Keyspace::DocIx, Keyspace::Docs, Keyspace::BySeq, Keyspace::State, Keyspace::Snap];
    let before = tables.map(|keyspace| rows_of(&storage, keyspace));
    storage.tamper(Keyspace::State, b"s:projections", None);
    let again = open(&storage, Durability::Synced).unwrap();
    assert_eq!(tables.map(|keyspace| rows_of(&storage, keyspace)), before);
    assert_eq!(told(&again).unwrap(), expected);
    assert_whole(&again);
}

#[test]
fn tables_that_are_ahead_of_a_log_that_lost_its_tail_are_made_again() {
    let storage = MemoryStorage::new();
    let database = open(&storage, Durability::Synced).unwrap();
    fill(&database, &some_edits(40));
    let (kept, tail) = (told(&database).unwrap(), database.reader().tail());
    let notes = database.collection("notes").unwrap();
    let lost = notes.doc_with("lost", first_value()).unwrap().id();
    for small in some_edits(30) {
        let commit = database.find(kept[1].0).unwrap().change(|edit| {
            small.run(edit);
            Ok(())
        });
        commit.unwrap().wait().unwrap();
    }
    database.close();
    for (key, _) in rows_of(&storage, Keyspace::Log) {
        if key.as_slice() > &log_key(tail.lsn)[..] {
            storage.tamper(Keyspace::Log, &key, None);
        }
    }
    let refused = open(&storage, Durability::Synced).err().unwrap();
    assert_eq!(refused.code(), "E0405", "{refused}");
    let again = Database::on(storage.clone()).node(node(1)).limits(narrow()).accept_tail_loss(true).open().unwrap();
    assert!(again.log_renewed());
    assert_eq!(again.reader().locate(&tail).unwrap(), Location::Unknown);
    assert!(again.reader().document(lost).unwrap().is_none(), "a document without a record");
    assert_eq!(told(&again).unwrap(), kept);
    assert_whole(&again);
    // Nothing of the lost tail comes back with a later rebuild either: a snapshot of it, say.
    fill(&again, &[]);
    let handle = again.find(kept[1].0).unwrap();
    handle.change(|edit| Ok(edit.put("flag", 1)?)).unwrap().wait().unwrap();
    let expected = told(&again).unwrap();
    again.close();
    storage.tamper(Keyspace::State, b"s:projections", None);
    let again = open(&storage, Durability::Synced).unwrap();
    assert_eq!(told(&again).unwrap(), expected);
    assert_whole(&again);
}

/// Copies a folder while nothing is written to it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            copy_sparse(&entry.path(), &target)
        }
    }
}

/// A journal is preallocated: only what is not zero is copied.
fn copy_sparse(from: &Path, to: &Path) {
    use std::os::unix::fs::FileExt as _;
    let (source, target) = (fs::File::open(from).unwrap(), fs::File::create(to).unwrap());
    let length = source.metadata().unwrap().len();
    target.set_len(length).unwrap();
    let mut block = vec![0; 1 << 16];
    for at in (0..length).step_by(block.len()) {
        let read = source.read_at(&mut block, at).unwrap();
        if block[..read].iter().any(|byte| *byte != 0) {
            target.write_all_at(&block[..read], at).unwrap();
        }
    }
}

/// The newest journal in a data directory.
fn newest_journal(data: &Path) -> PathBuf {
    let mut journals = Vec::new();
    let mut folders = vec![data.join("store")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "jnl") {
                journals.push(path);
            }
        }
    }
    let number = |path: &PathBuf| path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
    journals.into_iter().max_by_key(number).expect("a store has a journal")
}

/// Where the last byte that is not zero ends.
fn written(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1)
}

struct Filled {
    folder: tempfile::TempDir,
    original: PathBuf,
    told: Told,
    tail: tidelog::id::LogCursor,
}

/// A directory with `count` acknowledged edits, copied while its database was open and idle.
fn filled(count: u16) -> Filled {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::builder(folder.path().join("live")).node(node(1)).open().unwrap();
    fill(&database, &some_edits(count));
    let original = folder.path().join("original");
    copy(&folder.path().join("live"), &original);
    let (told, tail) = (told(&database).unwrap(), database.reader().tail());
    Filled { folder, original, told, tail }
}

#[test]
fn a_copy_of_an_idle_directory_holds_everything_under_a_new_log_id() {
    let filled = filled(60);
    let unnamed = Database::builder(&filled.original).open().err().unwrap();
    assert_eq!(unnamed.code(), "E0105", "{unnamed}");
    let copied = Database::builder(&filled.original).node(node(1)).restored(true).open().unwrap();
    assert!(copied.log_renewed());
    assert_eq!(copied.reader().locate(&filled.tail).unwrap(), Location::Unknown);
    assert_eq!(told(&copied).unwrap(), filled.told);
    assert_whole(&copied);
}

/// Opens a damaged copy, which holds everything acknowledged or is refused by a code. Whether it was refused.
fn is_whole_or_refused(filled: &Filled, damaged: &Path, what: &str) -> bool {
    let opened = Database::builder(damaged).node(node(1)).restored(true).open();
    let error = match opened {
        Ok(database) => {
            assert_eq!(told(&database).unwrap(), filled.told, "{what}: silently less");
            assert_whole(&database);
            return false;
        }
        Err(error) => error,
    };
    assert!(error.code().starts_with("E04"), "{what}: {} {error}", error.code());
    if error.code() == "E0405" {
        // Accepting the loss, it opens as another log; what it still has is whole.
        let again = Database::builder(damaged).node(node(1)).open().err().unwrap();
        assert_eq!(again.code(), "E0105", "{what}: a copy that was refused is still a copy");
        let builder = Database::builder(damaged).node(node(1)).restored(true).accept_tail_loss(true);
        let database = builder.open().unwrap();
        assert!(database.log_renewed(), "{what}");
        assert_eq!(database.reader().locate(&filled.tail).unwrap(), Location::Unknown);
        assert_whole(&database);
        let left = told(&database).unwrap();
        assert!(left.len() <= filled.told.len());
    }
    true
}

#[test]
fn a_cut_journal_is_never_silently_less() {
    let filled = filled(60);
    let journal = newest_journal(&filled.original);
    let relative = journal.strip_prefix(&filled.original).unwrap();
    let length = written(&journal);
    assert!(length > 10_000, "the edits are in the journal");
    let mut refused = 0;
    // Whole bytes from the end first: the last commit's own bytes; then all over.
    let points = (1..12).map(|back| length - back * 3).chain((0..10).map(|n| length * n / 10));
    for (n, cut) in points.enumerate() {
        let damaged = filled.folder.path().join(format!("cut {n}"));
        copy(&filled.original, &damaged);
        fs::OpenOptions::new().write(true).open(damaged.join(relative)).unwrap().set_len(cut).unwrap();
        refused += usize::from(is_whole_or_refused(&filled, &damaged, &format!("cut at {cut} of {length}")));
        fs::remove_dir_all(&damaged).unwrap();
    }
    assert!(refused >= 19, "{refused} of 21 cuts through acknowledged bytes were noticed");
}

#[test]
fn a_flipped_journal_byte_is_never_silently_less() {
    use std::os::unix::fs::FileExt as _;
    let filled = filled(60);
    let journal = newest_journal(&filled.original);
    let relative = journal.strip_prefix(&filled.original).unwrap();
    let length = written(&journal);
    for n in 0..20 {
        let at = length * (2 * n + 1) / 40;
        let damaged = filled.folder.path().join(format!("flip {n}"));
        copy(&filled.original, &damaged);
        let file = fs::OpenOptions::new().read(true).write(true).open(damaged.join(relative)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        is_whole_or_refused(&filled, &damaged, &format!("flipped at {at} of {length}"));
        fs::remove_dir_all(&damaged).unwrap();
    }
}

/// Runs what only waits for the writer.
fn waited<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn the_storage_id_is_born_with_the_log_id_and_renewed_with_it() {
    let storage = MemoryStorage::new();
    let database = open(&storage, Durability::Synced).unwrap();
    let born = database.storage_id();
    fill(&database, &[]);
    let log = database.reader().log_id();
    assert_eq!(database.status().storage_id, born);
    database.close();
    for disk in [storage.clone(), storage.killed(), storage.crashed(storage.unsynced_batches())] {
        let again = open(&disk, Durability::Synced).unwrap();
        assert_eq!(
            (again.reader().log_id(), again.storage_id()),
            (log, born),
            "survives a close, a kill and a power cut"
        );
    }

    let restored = Database::on(storage.killed()).node(node(1)).restored(true).open().unwrap();
    assert_ne!((restored.reader().log_id(), restored.storage_id()), (log, born));
    assert_ne!(restored.reader().log_id(), log);
    assert_ne!(restored.storage_id(), born, "a restored copy");

    // Without its last group.
    let cut = storage.killed();
    let entries = database.reader().read_log(tidelog::Lsn::ZERO, usize::MAX, usize::MAX).unwrap();
    let footers = entries.iter().filter(|entry| matches!(entry.kind, EntryKind::Footer { .. }));
    let kept = footers.map(|entry| entry.lsn).rev().nth(1).unwrap_or_default();
    for entry in entries.iter().filter(|entry| entry.lsn > kept) {
        cut.tamper(Keyspace::Log, &log_key(entry.lsn), None);
    }
    assert!(open(&cut, Durability::Synced).is_err());
    let accepted = Database::on(cut).node(node(1)).limits(narrow()).accept_tail_loss(true).open().unwrap();
    assert_ne!(accepted.storage_id(), born, "a lost tail");
}

#[test]
fn a_store_from_before_storage_ids_gets_one_at_its_next_open() {
    let storage = MemoryStorage::new();
    let database = open(&storage, Durability::Synced).unwrap();
    fill(&database, &[]);
    let born = database.storage_id();
    database.close();
    storage.tamper(Keyspace::State, b"s:storage", None);
    let drawn = open(&storage, Durability::Synced).unwrap().storage_id();
    assert_ne!(drawn, born);
    assert_eq!(open(&storage.crashed(0), Durability::Synced).unwrap().storage_id(), drawn);
}

#[test]
fn a_storage_id_is_adopted_only_while_nothing_was_ever_logged() {
    let folder = tidelog::StorageId::random();
    for durability in [Durability::Synced, Durability::Buffered] {
        let storage = MemoryStorage::new();
        let database = open(&storage, durability).unwrap();
        assert_eq!(waited(database.adopt_storage_id(folder)).unwrap(), folder);
        assert_eq!(database.storage_id(), folder);
        let cut = open(&storage.crashed(0), durability).unwrap();
        assert_eq!(cut.storage_id(), folder, "it was on the disk before anybody was told");

        fill(&database, &[]);
        assert_eq!(waited(database.adopt_storage_id(folder)).unwrap(), folder, "it is ours already");
        let other = tidelog::StorageId::random();
        assert_eq!(waited(database.adopt_storage_id(other)).unwrap(), folder);
        database.close();
        assert_eq!(open(&storage, durability).unwrap().storage_id(), folder);
    }

    let storage = MemoryStorage::new();
    let database = open(&storage, Durability::Synced).unwrap();
    let own = database.storage_id();
    storage.fail_after(0);
    assert!(waited(database.adopt_storage_id(folder)).is_err());
    assert_eq!(database.storage_id(), own, "what did not reach the disk is not told");
}
