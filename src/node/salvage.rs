//! Making a new data directory of what is intact in a damaged one.
//!
//! The damaged directory is only read. Its intact records are collected, wherever they are, and their changes and
//! statements appended to a new log, in their old order: the projections are made from it, positions and log id are
//! new, so that no peer is misled. A change whose dependencies are lost is not taken: a log is causally closed. Peers
//! give it again, with what is lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::command::{CommandError, Exit, Progress};
use super::peers::{PEERS_FILE, PeerBook};
use super::place::{KEY_FILE, OpenPlace, Place};
use crate::document::Change;
use crate::engine::{Database, Incoming, IncomingBody};
use crate::history::Origin;
use crate::history::withdrawal::withdrawn_records;
use crate::id::{CollectionName, DocumentId, Heads, Lsn, NodeId, random_bytes};
use crate::log::record::{Admission, ChangeHeader, CreationRank, Lifecycle, LifecycleKind, NameKind, NameRef, Record};
use crate::log::{Keyspace, SalvagedLog, Storage as _, StorageError, lock_directory, log_key, lsn_of_key, salvage_log};
use crate::net::{Identity, UnknownKeys};

/// Rows offered to the new log at a time, and their bytes.
const ROWS: usize = 512;
const BYTES: usize = 4 << 20;
/// Stretches of lost positions that are listed; the rest is counted.
const RANGES_MAX: usize = 100;
/// The collection of a document whose own is not known any more.
const UNKNOWN_COLLECTION: &str = "salvaged";

/// What became of a damaged directory.
#[derive(Debug, Default, Serialize)]
pub struct Salvaged {
    /// The new data directory.
    pub to: PathBuf,
    /// Whose it is.
    pub node: String,
    /// The new log's id.
    pub log: String,
    /// Intact records that were found.
    pub records: u64,
    /// Changes in the new log.
    pub changes: u64,
    /// Lifecycle statements in the new log.
    pub statements: u64,
    /// Documents in the new log.
    pub documents: u64,
    /// Intact changes that were left out since something they depend on is lost.
    pub waiting: u64,
    /// Documents of which changes are known to be lost.
    pub incomplete: Vec<String>,
    /// Documents whose creation is lost: they were created anew, without a name.
    pub recreated: Vec<String>,
    /// Records of the audit trail: what was refused, claims, on whose behalf statements were made, which rules allowed what.
    /// They stay in the damaged directory: they tell of positions of that log.
    pub audit: u64,
    /// Positions of the old log without an intact record. Some may never have been used.
    pub lost_positions: u64,
    /// The same as stretches, both ends included; at most 100.
    pub lost: Vec<(u64, u64)>,
    /// Files with damage, and what it is.
    pub damage: Vec<(String, String)>,
    /// The node's key and its list of peers, as far as they are not in the new directory.
    pub not_copied: Vec<String>,
}

impl Salvaged {
    /// Whether everything is there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.lost_positions == 0 && self.waiting == 0 && self.not_copied.is_empty()
    }
}

/// Copies what is intact in the data directory `from` into a new one at the vacant path `to`.
///
/// # Errors
/// [`CommandError`] when `from` is in use or is no directory, when there is something at `to`, or the disk fails.
/// `from` is as it was, and there is nothing at `to`.
///
/// # Cost
/// Blocks; reads everything, and takes twice the room of the log beside `to`.
pub fn salvage(from: &Path, to: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Salvaged, CommandError> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(|error| CommandError::file("resolve", path, &error));
    let (from, to) = (absolute(from)?, absolute(to)?);
    if !from.is_dir() {
        return Err(CommandError::new("E0102", Exit::NotFound, format!("there is no directory at {}", from.display()))
            .fix("give the path of the damaged data directory"));
    }
    let is_vacant = fs::read_dir(&to).map_or(true, |mut entries| entries.next().is_none());
    if !is_vacant || to.is_file() {
        return Err(CommandError::new("E0113", Exit::Conflict, format!("there is something at {}", to.display()))
            .fix("give a path where there is nothing yet"));
    }
    if to.starts_with(&from) {
        return Err(CommandError::usage("the new directory cannot be inside the damaged one, which is only read")
            .fix("give a path beside it, or on another disk"));
    }
    // The damaged directory may lack a lock; who has it open holds one all the same.
    let _lock = lock_directory(&from)?;
    let parent = to.parent().unwrap_or(Path::new("/")).to_owned();
    fs::create_dir_all(&parent).map_err(|error| CommandError::file("make", &parent, &error))?;
    let scratch = parent.join(format!(".tidelog-salvage.{}", data_encoding::HEXLOWER.encode(&random_bytes::<8>())));
    let made = into_scratch(&from, &scratch, progress).and_then(|mut salvaged| {
        fs::rename(scratch.join("new"), &to).map_err(|error| CommandError::file("make", &to, &error))?;
        let synced = fs::File::open(&parent).and_then(|folder| folder.sync_all());
        synced.map_err(|error| CommandError::file("sync", &parent, &error))?;
        salvaged.to.clone_from(&to);
        Ok(salvaged)
    });
    // Best effort: what is left has a name nobody opens.
    let _ = fs::remove_dir_all(&scratch);
    made
}

fn into_scratch(from: &Path, scratch: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Salvaged, CommandError> {
    fs::create_dir(scratch).map_err(|error| CommandError::file("make", scratch, &error))?;
    let found = salvage_log(from, &scratch.join("old"), &mut |records| {
        progress(Progress::new("collect records", records, None));
    })
    .map_err(crate::error::Error::from)?;
    let new = scratch.join("new");
    drop(crate::log::Directory::open(&new, crate::log::OpenDirectory { create: true, restored: false })?);
    let mut salvaged = Salvaged { damage: found.damage.clone(), ..Salvaged::default() };
    copy_own_files(from, &new, &mut salvaged);
    let place = Place::open(&new, &OpenPlace::default())?;
    let survey = Survey::of(&found)?;
    survey.lost(&found, &mut salvaged);
    refill(&place.database, &found, &survey, &mut salvaged, progress)?;
    salvaged.node = place.database.node().to_string();
    salvaged.log = place.database.reader().log_id().to_string();
    salvaged.documents =
        place.database.reader().inventory(None, usize::MAX).map_err(crate::error::Error::from)?.len() as u64;
    place.database.close();
    Ok(salvaged)
}

/// The key, the list of peers, and what tokens need, as far as they are intact.
fn copy_own_files(from: &Path, to: &Path, salvaged: &mut Salvaged) {
    let key = fs::copy(from.join(KEY_FILE), to.join(KEY_FILE)).map_err(|error| error.to_string());
    let key = key.and_then(|_| Identity::load_or_create(&to.join(KEY_FILE)).map_err(|error| error.to_string()));
    if let Err(why) = key {
        // The half-copied file may be there or not; another key is drawn in its place.
        let _ = fs::remove_file(to.join(KEY_FILE));
        salvaged.not_copied.push(format!("{KEY_FILE}: {why}"));
    }
    if let Err(error) = crate::auth::copy_files(from, to) {
        salvaged.not_copied.push(format!("what tokens need: {error}"));
    }
    if !from.join(PEERS_FILE).exists() {
        return;
    }
    let peers = PeerBook::load(from, UnknownKeys::Refuse).map_err(|error| error.message);
    let peers =
        peers.and_then(|_| fs::copy(from.join(PEERS_FILE), to.join(PEERS_FILE)).map_err(|error| error.to_string()));
    if let Err(why) = peers {
        salvaged.not_copied.push(format!("{PEERS_FILE}: {why}"));
    }
}

/// What the intact records say together, before any of them is appended.
struct Survey {
    names: HashMap<NameRef, (NameKind, Vec<u8>)>,
    created: BTreeSet<[u8; 16]>,
    /// Changes that gave way to others: they are no part of their document any more.
    withdrawn: BTreeSet<Lsn>,
    records: u64,
    audit: u64,
    missing: u64,
    ranges: Vec<(u64, u64)>,
    last: u64,
}

impl Survey {
    fn of(found: &SalvagedLog) -> Result<Self, CommandError> {
        let mut survey = Self {
            names: HashMap::new(),
            created: BTreeSet::new(),
            withdrawn: BTreeSet::new(),
            records: 0,
            audit: 0,
            missing: 0,
            ranges: Vec::new(),
            last: 0,
        };
        each_record(found, &mut |lsn, record| {
            // A gap is one that the log itself knows of.
            let before = if let Record::Gap(gap) = &record { gap.last } else { lsn.0.saturating_sub(1) };
            survey.note_missing(before);
            survey.last = lsn.0;
            survey.records += 1;
            match record {
                Record::Name(header) => {
                    survey.names.insert(header.reference, (header.kind, header.bytes));
                }
                Record::Lifecycle(header, bytes)
                    if Lifecycle::decode(&bytes).is_ok_and(|said| said.kind == LifecycleKind::Created) =>
                {
                    survey.created.insert(header.document);
                }
                Record::Withdrawn(header) => survey.withdrawn.extend(withdrawn_records(lsn, &header)),
                record if record.is_of_audit() => survey.audit += 1,
                _ => {}
            }
            Ok(())
        })?;
        Ok(survey)
    }

    /// Notes that nothing was found between the last record and `before`, which would have been the next one's.
    fn note_missing(&mut self, before: u64) {
        if before > self.last {
            self.missing += before - self.last;
            if self.ranges.len() < RANGES_MAX {
                self.ranges.push((self.last + 1, before));
            }
        }
    }

    fn lost(&self, found: &SalvagedLog, salvaged: &mut Salvaged) {
        salvaged.records = self.records;
        salvaged.audit = self.audit;
        salvaged.lost_positions = self.missing;
        salvaged.lost.clone_from(&self.ranges);
        if let Some(end) = found.mark.map(|mark| mark.lsn.0).filter(|end| *end > self.last) {
            salvaged.lost_positions += end - self.last;
            salvaged.lost.push((self.last + 1, end));
        }
    }

    fn name(&self, reference: NameRef, kind: NameKind) -> Option<&[u8]> {
        self.names.get(&reference).filter(|(its, _)| *its == kind).map(|(_, bytes)| bytes.as_slice())
    }

    /// Where a record entered; this node when it is not known any more.
    fn node(&self, reference: NameRef, here: NodeId) -> NodeId {
        self.name(reference, NameKind::Node).and_then(|bytes| bytes.try_into().ok()).map_or(here, NodeId)
    }

    fn origin(&self, header: &ChangeHeader, here: NodeId) -> Origin {
        let principal = self.name(header.principal, NameKind::Principal);
        // Whose name is lost is not nobody: nobody may write in his name then, rather than anybody.
        let is_lost = header.principal != 0 && principal.is_none();
        Origin {
            node: self.node(header.origin, here),
            principal: String::from_utf8_lossy(principal.unwrap_or_default()).into_owned(),
            admission: if is_lost { Admission::Local } else { header.admission },
            rules_version: header.rules_version,
        }
    }

    /// A creation for a document whose own is lost; of two creations any other decides.
    fn creation(&self, header: &ChangeHeader, here: NodeId) -> Option<Incoming> {
        let known = self.name(header.collection, NameKind::Collection).and_then(|name| std::str::from_utf8(name).ok());
        let collection = known.and_then(|name| CollectionName::new(name).ok());
        let document = DocumentId(header.document);
        let said = Lifecycle {
            document,
            collection: collection.or_else(|| CollectionName::new(UNKNOWN_COLLECTION).ok())?,
            kind: LifecycleKind::Created,
            rank: CreationRank::Imported,
            lamport: 1,
            author: here,
            actor: None,
            time_ms: header.received_ms,
            heads: Heads::default(),
            name: None,
        };
        let origin = Origin { node: here, principal: String::new(), admission: Admission::Local, rules_version: 0 };
        Some(Incoming { document, body: IncomingBody::Lifecycle(said.encode()), origin, signature: None })
    }
}

/// Visits the intact records in their order.
fn each_record(
    found: &SalvagedLog,
    visit: &mut dyn FnMut(Lsn, Record) -> Result<(), CommandError>,
) -> Result<(), CommandError> {
    let mut stopped = Ok(());
    found
        .records
        .scan(Keyspace::Log, &log_key(Lsn::ZERO), &[0xff; 9], false, &mut |key, value| {
            let Ok(lsn) = lsn_of_key(key) else { return ControlFlow::Continue(()) };
            let Ok(record) = Record::read(lsn, value) else { return ControlFlow::Continue(()) };
            stopped = visit(lsn, record);
            if stopped.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .map_err(crate::error::Error::from)?;
    stopped
}

/// Appends what is intact to the new log.
fn refill(
    database: &Database,
    found: &SalvagedLog,
    survey: &Survey,
    salvaged: &mut Salvaged,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), CommandError> {
    let here = database.node();
    let mut offer = Offer { database, rows: Vec::new(), bytes: 0, incomplete: BTreeSet::new(), refused: Vec::new() };
    let mut recreated: BTreeSet<[u8; 16]> = BTreeSet::new();
    let mut done = 0;
    let mut offered: BTreeMap<&'static str, u64> = BTreeMap::new();
    each_record(found, &mut |lsn, record| {
        done += 1;
        match record {
            Record::Change(..) if survey.withdrawn.contains(&lsn) => {}
            Record::Change(header, chunk) => {
                let Ok(change) = Change::parse(chunk) else {
                    salvaged.damage.push((format!("record {lsn}"), "it holds no change".into()));
                    return Ok(());
                };
                if !survey.created.contains(&header.document) && recreated.insert(header.document) {
                    offer.rows.extend(survey.creation(&header, here));
                }
                offer.bytes += change.bytes().len();
                *offered.entry("changes").or_default() += 1;
                let (document, origin) = (DocumentId(header.document), survey.origin(&header, here));
                offer.rows.push(Incoming {
                    document,
                    body: IncomingBody::Change(Box::new(change)),
                    origin,
                    signature: None,
                });
            }
            Record::Lifecycle(header, bytes) => {
                let node = survey.node(header.origin, here);
                let origin = Origin { node, principal: String::new(), admission: Admission::Local, rules_version: 0 };
                let document = DocumentId(header.document);
                offer.rows.push(Incoming { document, body: IncomingBody::Lifecycle(bytes), origin, signature: None });
            }
            _ => {}
        }
        if offer.rows.len() >= ROWS || offer.bytes >= BYTES {
            offer.send()?;
            progress(Progress::new("append", done, Some(survey.records)));
        }
        Ok(())
    })?;
    offer.send()?;
    salvaged.incomplete = offer.incomplete.iter().map(ToString::to_string).collect();
    salvaged.recreated = recreated.iter().map(|id| DocumentId(*id).to_string()).collect();
    salvaged.damage.extend(offer.refused.drain(..).map(|(id, why)| (format!("document {id}"), why)));
    count(database, salvaged)?;
    salvaged.waiting = offered.get("changes").copied().unwrap_or(0).saturating_sub(salvaged.changes);
    Ok(())
}

/// Rows on their way into the new log.
struct Offer<'a> {
    database: &'a Database,
    rows: Vec<Incoming>,
    bytes: usize,
    incomplete: BTreeSet<DocumentId>,
    refused: Vec<(DocumentId, String)>,
}

impl Offer<'_> {
    fn send(&mut self) -> Result<(), CommandError> {
        self.bytes = 0;
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(());
        }
        let admitted = self.database.admit_blocking(rows)?;
        self.incomplete.extend(admitted.missing.into_iter().map(|(id, _)| id));
        self.refused.extend(admitted.refused);
        Ok(())
    }
}

/// What the new log holds.
fn count(database: &Database, salvaged: &mut Salvaged) -> Result<(), CommandError> {
    let storage = database.reader().storage().clone();
    let counted = storage.scan(Keyspace::Log, &log_key(Lsn::ZERO), &[0xff; 9], false, &mut |key, value| {
        match lsn_of_key(key).ok().and_then(|lsn| Record::read(lsn, value).ok()) {
            Some(Record::Change(..)) => salvaged.changes += 1,
            Some(Record::Lifecycle(..)) => salvaged.statements += 1,
            _ => {}
        }
        ControlFlow::Continue(())
    });
    counted.map_err(|error: StorageError| crate::error::Error::from(error).into())
}
