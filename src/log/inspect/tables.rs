//! Manifests and table files, held against the checksums that fjall writes down and does not read.
//!
//! ```text
//! current   manifest's number (8), XXH3-128 of the manifest (16), 0 for XXH3
//! v<n>      sections, then their list: "TOC!", count (4), each: place (8), length (8), name length (2), name;
//!           then "SFA!", 1, 0, XXH3-128 of the list (16), its place (8), its length (8)
//! section `tables`   levels (1), each: runs (1), each: tables (4), each: id (8), 0, XXH3-128 of the file (16), number (8)
//! ```
//! Integers are little-endian.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::bytes::Bytes;
use super::layout::tables_of;
use super::{LOOKS_MAX, damaged, failed};
use crate::log::storage::StorageError;

const CURRENT_BYTES: usize = 25;
const LIST_MAGIC: &[u8] = b"TOC!";
const END_MAGIC: &[u8] = b"SFA!";
const END_BYTES: usize = 38;

/// The table files of one table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    number: u64,
    /// File and XXH3-128.
    files: Vec<(u64, u128)>,
}

impl Manifest {
    /// Whether every file is there.
    pub(super) fn check_files(&self, table: &Path) -> Result<(), StorageError> {
        let folder = table.join("tables");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound && self.files.is_empty() => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(damaged(&folder, "it is missing")),
            Err(error) => return Err(failed("read", &folder, &error)),
        };
        let mut found = std::collections::BTreeSet::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed("read", &folder, &error))?;
            // fjall panics at any other name.
            match entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) {
                Some(id) => found.insert(id),
                None => return Err(damaged(&entry.path(), "no such file belongs here")),
            };
        }
        match self.files.iter().find(|(id, _)| !found.contains(id)) {
            Some((id, _)) => Err(damaged(&folder.join(id.to_string()), "the table file is missing")),
            None => Ok(()),
        }
    }
}

/// The manifest of the table in the folder `table`, held against `current`.
pub(super) fn manifest(table: &Path) -> Result<Manifest, StorageError> {
    let current = table.join("current");
    let bytes = read(&current)?;
    let Ok(bytes) = <[u8; CURRENT_BYTES]>::try_from(bytes) else {
        return Err(damaged(&current, "it has not the length of a reference to a manifest"));
    };
    let (number, stated) = (u64_at(&bytes, 0), u128_at(&bytes, 8));
    if bytes[CURRENT_BYTES - 1] != 0 {
        return Err(damaged(&current, "byte 24: the kind of checksum is unknown"));
    }
    let path = table.join(format!("v{number}"));
    let bytes = match read(&path) {
        Err(StorageError::Damaged(why)) => {
            return Err(StorageError::Damaged(format!("{why} (named by {})", current.display())));
        }
        other => other?,
    };
    if xxhash_rust::xxh3::xxh3_128(&bytes) != stated {
        return Err(damaged(&path, format!("it does not match the checksum in {}", current.display())));
    }
    let files = files_in(&bytes).ok_or_else(|| damaged(&path, "it is not a manifest"))?;
    Ok(Manifest { number, files })
}

fn read(path: &Path) -> Result<Vec<u8>, StorageError> {
    fs::read(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => damaged(path, "it is missing"),
        _ => failed("read", path, &error),
    })
}

/// The files that a manifest names.
fn files_in(bytes: &[u8]) -> Option<Vec<(u64, u128)>> {
    let (_, section) = sections_of(bytes)?.into_iter().find(|(name, _)| name == b"tables")?;
    files_in_section(section)
}

/// A manifest's sections, name and content.
fn sections_of(bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let end = bytes.len().checked_sub(END_BYTES)?;
    let tail = bytes.get(end..)?;
    if tail.get(..4)? != END_MAGIC {
        return None;
    }
    let list = bytes.get(usize::try_from(u64_at(tail, 22)).ok()?..end)?;
    let mut rest = list.strip_prefix(LIST_MAGIC)?.get(4..)?;
    let mut sections = Vec::new();
    while !rest.is_empty() {
        let (place, length) = (u64_at(rest, 0), u64_at(rest, 8));
        let name_length = usize::from(u16::from_le_bytes(rest.get(16..18)?.try_into().ok()?));
        let from = usize::try_from(place).ok()?;
        let content = bytes.get(from..from.checked_add(usize::try_from(length).ok()?)?)?;
        sections.push((rest.get(18..18 + name_length)?, content));
        rest = rest.get(18 + name_length..)?;
    }
    Some(sections)
}

fn files_in_section(mut section: &[u8]) -> Option<Vec<(u64, u128)>> {
    let mut take = |count: usize| -> Option<&[u8]> {
        let (taken, rest) = section.split_at_checked(count)?;
        section = rest;
        Some(taken)
    };
    let mut files = Vec::new();
    for _ in 0..take(1)?[0] {
        for _ in 0..take(1)?[0] {
            for _ in 0..u32::from_le_bytes(take(4)?.try_into().ok()?) {
                let file = take(33)?;
                files.push((u64_at(file, 0), u128_at(file, 9)));
            }
        }
    }
    Some(files)
}

/// A manifest like that of the empty table in the folder `table`, which names the one file `id`.
pub(super) fn lone_table(table: &Path, id: u64) -> Result<Vec<u8>, StorageError> {
    let path = table.join(format!("v{}", manifest(table)?.number));
    let bytes = read(&path)?;
    rewritten(&bytes, id).ok_or_else(|| damaged(&path, "it is not a manifest"))
}

/// What `current` says of a manifest.
pub(super) fn reference_to(number: u64, manifest: &[u8]) -> Vec<u8> {
    let mut current = number.to_le_bytes().to_vec();
    current.extend(xxhash_rust::xxh3::xxh3_128(manifest).to_le_bytes());
    current.push(0);
    current
}

fn rewritten(bytes: &[u8], id: u64) -> Option<Vec<u8>> {
    let sections = sections_of(bytes)?;
    let (mut out, mut list) = (Vec::new(), LIST_MAGIC.to_vec());
    list.extend(u32::try_from(sections.len()).ok()?.to_le_bytes());
    for (name, content) in sections {
        let mut tables = Vec::new();
        if name == b"tables" {
            // As many levels as before; one run of one file in the first.
            let levels = *content.first()?;
            tables.extend([levels, 1, 1, 0, 0, 0]);
            tables.extend(id.to_le_bytes());
            // What fjall holds against the file is checked by nobody when it opens it.
            tables.extend([0; 1 + 16 + 8]);
            tables.extend(std::iter::repeat_n(0, usize::from(levels.checked_sub(1)?)));
        }
        let content = if name == b"tables" { &tables } else { content };
        list.extend((out.len() as u64).to_le_bytes());
        list.extend((content.len() as u64).to_le_bytes());
        list.extend(u16::try_from(name.len()).ok()?.to_le_bytes());
        list.extend(name);
        out.extend(content);
    }
    let place = out.len() as u64;
    out.extend(&list);
    out.extend(END_MAGIC);
    out.extend([1, 0]);
    out.extend(xxhash_rust::xxh3::xxh3_128(&list).to_le_bytes());
    out.extend(place.to_le_bytes());
    out.extend((list.len() as u64).to_le_bytes());
    Some(out)
}

/// Holds every manifest and every table file against its checksum, and tells `fault` the file and what is wrong. The
/// store may be open and written to.
///
/// # Errors
/// [`StorageError`] when the disk fails.
///
/// # Cost
/// Reads every table file.
pub(super) fn check_tables(store: &Path, fault: &mut dyn FnMut(String, String)) -> Result<(), StorageError> {
    let tables = match tables_of(store) {
        Ok(tables) => tables,
        Err(StorageError::Damaged(why)) => {
            fault(store.display().to_string(), why);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for table in tables {
        let mut faults = Vec::new();
        for _ in 0..LOOKS_MAX {
            faults = table_faults(&table)?;
            // Gone or replaced meanwhile: what was read is of yesterday.
            if faults.is_empty() {
                break;
            }
        }
        faults.into_iter().for_each(|(path, why)| fault(path, why));
    }
    Ok(())
}

fn table_faults(table: &Path) -> Result<Vec<(String, String)>, StorageError> {
    let manifest = match manifest(table) {
        Ok(manifest) => manifest,
        Err(StorageError::Damaged(why)) => return Ok(vec![(table.display().to_string(), why)]),
        Err(error) => return Err(error),
    };
    let mut faults = Vec::new();
    for (id, stated) in &manifest.files {
        let path = table.join("tables").join(id.to_string());
        match checksum(&path) {
            Ok(found) if found == *stated => {}
            Ok(_) => faults.push((path.display().to_string(), "it does not match its checksum".to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                faults.push((path.display().to_string(), "the table file is missing".to_owned()));
            }
            Err(error) => return Err(failed("read", &path, &error)),
        }
    }
    Ok(faults)
}

fn checksum(path: &Path) -> std::io::Result<u128> {
    let mut bytes = Bytes::open(path)?;
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    let mut at = 0;
    while let Some(some) = bytes.some_at(at)? {
        hasher.update(some);
        at += some.len() as u64;
    }
    Ok(hasher.digest128())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn u128_at(bytes: &[u8], at: usize) -> u128 {
    bytes.get(at..at + 16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u128::from_le_bytes)
}
