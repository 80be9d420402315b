//! Users: clients whose keys do not say who they are, at nodes that have rules, tokens and documents that rules look at.
//!
//! The decisions are the product's own (`tidelog::access::sim`). What is held against them is kept here, by plain means:
//! who belongs to which author, as the logs say it; who was banned at which node when he brought something; which
//! changes somebody was allowed to make at all. It shares no code with what it judges.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tempfile::TempDir;
use tidelog::Limits;
use tidelog::access::sim::Door;
use tidelog::access::{AccessOptions, Admittance};
use tidelog::auth::{Authority, AuthorityOptions, Revocation, TokenOrder};
use tidelog::automerge::{self, Automerge, ROOT, ReadDoc};
use tidelog::document::{Change, split};
use tidelog::engine::sim::{Engine, Turn, set_wall_clock};
use tidelog::history::{EntryKind, Reader};
use tidelog::id::{ActorId, ChangeHash, CollectionName, DocumentId, Lsn, NodeId};
use tidelog::log::record::{Admission, NameKind, NameRef};
use tidelog::log::rows::IndexRow;
use tidelog::rules::Rules;
use tidelog::sync::wire::{Frame, Outcome};
use tidelog::sync::{Denied, IncomingBody, IncomingRow};

use super::replica::{Replica, Waiter};
use super::world::{NODES, World};

/// The first clients are users; the others are trusted by their keys.
pub const USERS: usize = 3;
const NAMES: [&str; USERS] = ["ada", "ben", "cyd"];

/// What a person's document says of him.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Person {
    is_there: bool,
    pub banned: bool,
    /// Documents that he may not read, and those that he may not write.
    pub hidden: BTreeSet<String>,
    pub barred: BTreeSet<String>,
}

/// Whose an author is at a node.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    Anybody,
    Node,
    User(usize),
}

/// An edit that a user's own replica has acknowledged.
#[derive(Debug, Clone)]
pub struct Note {
    pub user: usize,
    pub document: DocumentId,
    pub hash: ChangeHash,
    /// What it leaves in the document, and nothing else does.
    pub label: String,
    /// He had no network.
    pub is_offline: bool,
    /// It was on his list of rejected edits once.
    pub was_rejected: bool,
}

/// A change that a user brings, as far as that is needed to judge it.
pub struct Brought {
    document: DocumentId,
    hash: ChangeHash,
    actor: ActorId,
    deps: Vec<ChangeHash>,
}

/// What could be said of a change while it was looked at: rights may turn meanwhile.
#[derive(Debug, Clone, Copy, Default)]
struct Verdict {
    allowed: bool,
    denied: bool,
}

pub struct Users {
    _folder: TempDir,
    authorities: Vec<Arc<Authority>>,
    /// While the node runs.
    pub doors: Vec<Option<Door>>,
    /// By user and node.
    tokens: Vec<Vec<String>>,
    struck: Vec<Vec<bool>>,
    /// Who is banned by the rules themselves, as the operator wants it, and at each node.
    pub wanted_rules: [bool; USERS],
    rules: Vec<[bool; USERS]>,
    /// Rules look at values, so changes are judged one by one on the document.
    looks_at_values: bool,
    persons: Vec<[(u64, Person); USERS]>,
    /// What each node's log says, read up to here.
    owners: Vec<HashMap<(DocumentId, NameRef), Owner>>,
    read_upto: Vec<Lsn>,
    /// Who made a change, if a user did.
    makers: HashMap<ChangeHash, usize>,
    /// Changes that somebody who is trusted has made, or that a user was allowed to make somewhere.
    clean: HashSet<ChangeHash>,
    /// Whose an author is, as some node found.
    bound: HashMap<(DocumentId, Vec<u8>), BTreeSet<usize>>,
    /// Heads that a user named to a node.
    named: HashSet<(usize, ChangeHash)>,
    /// For whom a change was taken.
    taken_for: HashMap<ChangeHash, BTreeSet<usize>>,
    verdicts: HashMap<(usize, usize, ChangeHash), Verdict>,
    denied: HashSet<(usize, usize, ChangeHash)>,
    labels: HashMap<ChangeHash, String>,
    pub notes: Vec<Note>,
    pub names: BTreeMap<DocumentId, String>,
    label_numbers: u64,
    marks: Vec<&'static str>,
}

/// Which user a replica is.
pub fn user_at(n: usize) -> Option<usize> {
    (NODES..NODES + USERS).contains(&n).then(|| n - NODES)
}

pub fn person_of(user: usize) -> DocumentId {
    DocumentId::named(&CollectionName::new("people").unwrap(), NAMES[user])
}

fn replica_of(node: NodeId) -> usize {
    usize::from(node.0[0]) - 1
}

impl Users {
    pub fn new(looks_at_values: bool, replicas: &[Replica]) -> Result<Self, String> {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).map_err(text)?;
        let mut authorities = Vec::new();
        for (n, replica) in replicas.iter().enumerate().take(NODES) {
            let directory = folder.path().join(n.to_string());
            std::fs::create_dir(&directory).map_err(text)?;
            let options = AuthorityOptions { directory, node: replica.node, issuers: Vec::new() };
            authorities.push(Arc::new(Authority::open(options).map_err(text)?));
        }
        let mut users = Self {
            _folder: folder,
            authorities,
            doors: (0..NODES).map(|_| None).collect(),
            tokens: vec![vec![String::new(); NODES]; USERS],
            struck: vec![vec![false; NODES]; USERS],
            wanted_rules: [false; USERS],
            rules: vec![[false; USERS]; NODES],
            looks_at_values,
            persons: vec![Default::default(); NODES],
            owners: vec![HashMap::new(); NODES],
            read_upto: vec![Lsn::ZERO; NODES],
            makers: HashMap::new(),
            clean: HashSet::new(),
            taken_for: HashMap::new(),
            bound: HashMap::new(),
            named: HashSet::new(),
            verdicts: HashMap::new(),
            denied: HashSet::new(),
            labels: HashMap::new(),
            notes: Vec::new(),
            names: BTreeMap::new(),
            label_numbers: 0,
            marks: Vec::new(),
        };
        for user in 0..USERS {
            for (n, replica) in replicas.iter().enumerate().take(NODES) {
                users.issue(n, user, replica.clock_ms(0))?;
            }
        }
        Ok(users)
    }

    pub fn take_marks(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.marks)
    }

    /// The node's door, now that it runs.
    pub fn open_door(&mut self, n: usize, engine: &mut Engine) -> Result<(), String> {
        (self.read_upto[n], self.persons[n]) = (Lsn::ZERO, Default::default());
        self.owners[n].clear();
        let options = AccessOptions {
            admittance: Admittance::Proven,
            authority: Some(self.authorities[n].clone()),
            rules: Some(self.rules_of(n)?),
        };
        self.doors[n] = Some(Door::open(engine, options).map_err(text)?);
        Ok(())
    }

    fn rules_of(&self, n: usize) -> Result<Rules, String> {
        let names = NAMES.iter().zip(self.rules[n]).filter(|(_, banned)| *banned);
        let banned: Vec<String> = names.map(|(name, _)| format!("'{name}'")).collect();
        let values = if self.looks_at_values { "&& request.resource.data.get('n', 0) != 'never'" } else { "" };
        let source = format!(
            "rules_version = '2';
            service tidelog {{
              function person() {{ return get(/people/$(request.auth.uid)); }}
              function isIn() {{
                return request.auth != null && !(request.auth.uid in [{}]) && person().data.banned == false;
              }}
              match /notes/{{id}} {{
                allow read: if isIn() && !(id in person().data.hidden);
                allow create, update: if isIn() && !(id in person().data.barred) {values};
                allow delete: if isIn() && !(id in person().data.barred);
              }}
            }}",
            banned.join(", ")
        );
        Rules::parse("simulated", &source).map_err(text)
    }

    /// Puts the rules in force at a node that the operator wants.
    pub fn take_rules(&mut self, n: usize) -> Result<(), String> {
        if self.rules[n] == self.wanted_rules {
            return Ok(());
        }
        self.rules[n] = self.wanted_rules;
        let rules = self.rules_of(n)?;
        if let Some(door) = &self.doors[n] {
            door.access().set_rules(rules);
        }
        Ok(())
    }

    pub fn issue(&mut self, n: usize, user: usize, now_ms: u64) -> Result<(), String> {
        let (token, _) = self.authorities[n].issue(TokenOrder::new(NAMES[user]), now_ms).map_err(text)?;
        self.tokens[user][n] = token;
        self.struck[user][n] = false;
        Ok(())
    }

    pub fn strike(&mut self, n: usize, user: usize, now_ms: u64) -> Result<(), String> {
        self.authorities[n].revoke(Revocation::User(NAMES[user].to_owned()), now_ms).map_err(text)?;
        self.struck[user][n] = true;
        Ok(())
    }

    pub fn is_struck(&self, n: usize, user: usize) -> bool {
        self.struck[user][n]
    }

    pub fn token(&self, n: usize, user: usize) -> String {
        self.tokens[user][n].clone()
    }

    /// What an edit leaves in its document, so that it is found again however it was made anew.
    pub fn new_label(&mut self, user: usize) -> String {
        self.label_numbers += 1;
        format!("edit{user}x{}", self.label_numbers)
    }

    /// Takes note of a change that was made here.
    pub fn note_made(&mut self, n: usize, hash: ChangeHash, label: Option<String>) {
        match user_at(n) {
            // What everybody makes alike is nobody's.
            Some(user) => {
                if let Some(label) = label {
                    self.makers.insert(hash, user);
                    self.labels.insert(hash, label);
                }
            }
            None => _ = self.clean.insert(hash),
        }
    }

    /// Takes note that a user's replica has acknowledged an edit of his.
    pub fn note_acknowledged(&mut self, user: usize, document: DocumentId, hash: ChangeHash, is_offline: bool) {
        if let Some(label) = self.labels.get(&hash).cloned() {
            self.notes.push(Note { user, document, hash, label, is_offline, was_rejected: false });
        }
    }

    /// Takes note of a change that a user has made anew out of rejected ones.
    pub fn note_resubmitted(&mut self, user: usize, hash: ChangeHash) {
        self.makers.insert(hash, user);
    }

    fn name_of(&self, document: DocumentId) -> String {
        self.names.get(&document).cloned().unwrap_or_else(|| document.to_string())
    }

    /// What is said of a user at a node now.
    pub fn person(&mut self, n: usize, user: usize, reader: &Reader) -> Result<&Person, String> {
        let document = person_of(user);
        let last = reader.row(document).map_err(text)?.map_or(0, |row| row.last_lsn);
        let known = &mut self.persons[n][user];
        if known.0 != last {
            *known = (last, read_person(reader, document)?);
        }
        Ok(&known.1)
    }

    pub fn is_banned(&mut self, n: usize, user: usize, reader: &Reader) -> Result<bool, String> {
        let by_rules = self.rules[n][user];
        let person = self.person(n, user, reader)?;
        Ok(by_rules || !person.is_there || person.banned)
    }

    pub fn may_read(&mut self, n: usize, user: usize, document: DocumentId, reader: &Reader) -> Result<bool, String> {
        let Some(state) = reader.document(document).map_err(text)? else { return Ok(false) };
        if self.is_banned(n, user, reader)? || state.collection.as_str() != "notes" {
            return Ok(false);
        }
        let name = self.name_of(document);
        Ok(!self.person(n, user, reader)?.hidden.contains(&name))
    }

    fn may_write(&mut self, n: usize, user: usize, document: DocumentId, reader: &Reader) -> Result<bool, String> {
        let name = self.name_of(document);
        Ok(!self.is_banned(n, user, reader)? && !self.person(n, user, reader)?.barred.contains(&name))
    }

    /// The changes in what a user brings.
    pub fn brought(rows: &[IncomingRow], limits: &Limits) -> Result<Vec<Brought>, String> {
        let mut brought = Vec::new();
        let mut take = |document, change: &Change| {
            let (actor, deps) = (change.actor().clone(), change.deps().to_vec());
            brought.push(Brought { document, hash: change.hash(), actor, deps });
        };
        for row in rows {
            match &row.body {
                IncomingBody::Change(change) => take(row.document, change),
                IncomingBody::Document { bytes, .. } => {
                    split(bytes, limits).map_err(text)?.iter().for_each(|change| take(row.document, change));
                }
                IncomingBody::Lifecycle(_) => {}
            }
        }
        Ok(brought)
    }

    /// Judges what a user brings, as it would be judged now.
    pub fn judge(&mut self, n: usize, user: usize, brought: &[Brought], reader: &Reader) -> Result<(), String> {
        let mut writable: BTreeMap<DocumentId, bool> = BTreeMap::new();
        for Brought { document, hash, actor, .. } in brought {
            let may_write = match writable.get(document) {
                Some(may) => *may,
                None => {
                    let may = self.may_write(n, user, *document, reader)?;
                    writable.insert(*document, may);
                    may
                }
            };
            let reference = reader.names().find(NameKind::Actor, actor.as_bytes()).map_err(text)?;
            let owner = reference.and_then(|actor| self.owners[n].get(&(*document, actor)));
            let is_foreign = owner.is_some_and(|owner| *owner != Owner::Anybody && *owner != Owner::User(user));
            let verdict = self.verdicts.entry((n, user, *hash)).or_default();
            if may_write && !is_foreign {
                verdict.allowed = true;
            } else {
                verdict.denied = true;
            }
        }
        Ok(())
    }

    /// What a node denied must have been for it to deny.
    pub fn check_denied(
        &mut self,
        n: usize,
        user: usize,
        brought: &[Brought],
        denied: &[Denied],
        reader: &Reader,
    ) -> Result<(), String> {
        let deps: HashMap<ChangeHash, &[ChangeHash]> =
            brought.iter().map(|brought| (brought.hash, brought.deps.as_slice())).collect();
        for Denied { document, change, why } in denied {
            let Some((hash, _)) = change else { continue };
            let behind =
                deps.get(hash).is_some_and(|deps| deps.iter().any(|dep| self.denied.contains(&(n, user, *dep))));
            let verdict = self.verdicts.get(&(n, user, *hash)).copied().unwrap_or_default();
            if !verdict.denied && !behind {
                return Err(format!("replica {n} denied {} change {hash} of {document}: {why}", NAMES[user]));
            }
            self.denied.insert((n, user, *hash));
            let Some(maker) = self.makers.get(hash).copied() else { continue };
            let is_offline = self.labels.get(hash).is_some_and(|label| {
                self.notes.iter().any(|note| note.is_offline && note.user == user && note.label == *label)
            });
            let mark = match maker == user {
                true if behind => "an edit was denied for what it stood on",
                true if is_offline && self.is_banned(n, user, reader)? => {
                    "a banned user's edits made offline were denied"
                }
                true => "a user's edit was denied",
                false if self.is_banned(n, maker, reader)? => "a relayed change of a banned user was refused",
                false => "a relayed change of another user was refused",
            };
            self.marks.push(mark);
        }
        Ok(())
    }

    /// Reads on in a node's log: nothing is in it that nobody was allowed to make, and each change has its principal.
    pub fn read_log(&mut self, n: usize, reader: &Reader) -> Result<(), String> {
        loop {
            let entries = reader.read_log(self.read_upto[n], 1 << 20, 4096).map_err(text)?;
            let Some(last) = entries.last() else { return Ok(()) };
            self.read_upto[n] = last.lsn;
            for entry in entries {
                let EntryKind::Change { document, hash, via, origin, header, .. } = entry.kind else { continue };
                let from = via.map(replica_of);
                let principal = origin.principal.as_str();
                let is_right = match from.map(|from| (from, user_at(from))) {
                    Some((_, Some(user))) => {
                        let verdict = self.verdicts.get(&(n, user, hash)).copied().unwrap_or_default();
                        if !verdict.allowed {
                            let maker = self.makers.get(&hash).map(|maker| NAMES[*maker]);
                            return Err(format!(
                                "replica {n} took change {hash} of {document} from {}, who may not make it; it is {maker:?}'s",
                                NAMES[user]
                            ));
                        }
                        self.clean.insert(hash);
                        self.taken_for.entry(hash).or_default().insert(user);
                        if self.makers.get(&hash).is_some_and(|maker| *maker != user) {
                            self.marks.push("a relayed change became its carrier's");
                        }
                        principal == NAMES[user] && origin.admission == Admission::Full
                    }
                    Some((from, None)) if from < NODES => {
                        let for_whom = self.taken_for.get(&hash);
                        // What nobody in particular carried is his whose author it is.
                        let author = reader.names().name(header.actor).map_err(text)?;
                        let theirs = self.bound.get(&(document, author.bytes.clone()));
                        principal.is_empty()
                            || for_whom.into_iter().chain(theirs).flatten().any(|user| principal == NAMES[*user])
                    }
                    Some(_) | None => principal.is_empty(),
                };
                if !is_right {
                    return Err(format!(
                        "replica {n} has change {hash} of {document} from {from:?} as {principal:?}'s"
                    ));
                }
                if !self.clean.contains(&hash) {
                    let maker = self.makers.get(&hash).map(|maker| NAMES[*maker]);
                    return Err(format!(
                        "replica {n} has change {hash} of {document} from {from:?}, which nobody was allowed to make; it is {maker:?}'s"
                    ));
                }
                if header.seq == 1 {
                    let owner = match NAMES.iter().position(|name| *name == principal) {
                        _ if origin.admission == Admission::Local => Owner::Node,
                        Some(user) => Owner::User(user),
                        None => Owner::Anybody,
                    };
                    if let Owner::User(user) = owner {
                        let author = reader.names().name(header.actor).map_err(text)?;
                        self.bound.entry((document, author.bytes.clone())).or_default().insert(user);
                    }
                    self.owners[n].entry((document, header.actor)).or_insert(owner);
                }
            }
        }
    }

    /// Takes note of the heads that a user names to a node.
    pub fn note_named(&mut self, user: usize, frame: &[u8]) {
        if let Ok(Frame::DocumentBatch(batch)) = Frame::decode(frame) {
            self.named.extend(batch.heads.as_slice().iter().map(|head| (user, *head)));
        }
    }

    /// Nothing of what a user may not read is in a frame that a node gives out to him.
    pub fn check_frame(
        &mut self,
        n: usize,
        user: usize,
        frame: &[u8],
        reader: &Reader,
        client: Option<&Reader>,
    ) -> Result<(), String> {
        let Ok(frame) = Frame::decode(frame) else { return Err("a frame that is none".to_owned()) };
        let mut named: BTreeSet<DocumentId> = BTreeSet::new();
        match &frame {
            Frame::ChangeBatch(batch) => named.extend(&batch.documents),
            Frame::Inventory(page) => named.extend(page.rows.iter().map(|row| row.document)),
            // It is said of what is not there and of what may not be read alike.
            Frame::DocumentBatch(batch)
                if batch.outcome == Outcome::UnknownDocument
                    && batch.rows.is_empty()
                    && batch.heads.as_slice().is_empty() => {}
            Frame::DocumentBatch(batch) => _ = named.insert(batch.document),
            Frame::StreamBegin(begin) => _ = named.insert(begin.document),
            // Of a document that is not there yet there is nothing to be read.
            Frame::DocSync(part) => {
                let is_there = reader.row(part.document).map_err(text)?.is_some();
                named.extend(is_there.then_some(part.document));
            }
            // He may be named what he has, or has named himself before he took it back.
            Frame::Want(want) => {
                for wanted in &want.documents {
                    let Some(client) = client else { continue };
                    let graph = client.graph(wanted.document).map_err(text)?;
                    let is_his = graph.lock().unwrap().contains_all(wanted.heads.as_slice());
                    let is_named = wanted.heads.as_slice().iter().all(|head| self.named.contains(&(user, *head)));
                    if !is_his && !is_named {
                        named.insert(wanted.document);
                    }
                }
            }
            _ => {}
        }
        for document in named {
            if !self.may_read(n, user, document, reader)? {
                return Err(format!("replica {n} names {document}, which {} may not read, in {frame:?}", NAMES[user]));
            }
        }
        Ok(())
    }
}

/// Reads a person's document off the log, without the engine's views.
fn read_person(reader: &Reader, id: DocumentId) -> Result<Person, String> {
    let mut document = Automerge::new();
    let mut changes = Vec::new();
    for (lsn, row) in reader.index(id, Lsn::ZERO).map_err(text)? {
        if let IndexRow::Change { .. } = row {
            let bytes = reader.change_bytes(lsn).map_err(text)?;
            changes.push(automerge::Change::from_bytes(bytes).map_err(text)?);
        }
    }
    if changes.is_empty() {
        return Ok(Person::default());
    }
    document.apply_changes(changes).map_err(text)?;
    let keys = |name: &str| -> Result<BTreeSet<String>, String> {
        let map = document.get(ROOT, name).map_err(text)?;
        Ok(map.map_or_else(BTreeSet::new, |(_, id)| document.keys(id).collect()))
    };
    let banned = document.get(ROOT, "banned").map_err(text)?;
    let banned = banned.is_none_or(|(value, _)| value.as_bool() != Some(false));
    Ok(Person { is_there: true, banned, hidden: keys("hidden")?, barred: keys("barred")? })
}

/// The labels of edits in a change.
pub fn labels_in(change: &Change) -> Vec<String> {
    let decoded = change.as_automerge().decode();
    let keys = decoded.operations.iter().filter_map(|op| match &op.key {
        automerge::legacy::Key::Map(key) if key.starts_with("edit") => Some(key.to_string()),
        _ => None,
    });
    keys.collect()
}

pub fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl World {
    /// Whether nobody judges what this replica brings.
    pub fn is_trusted(&self, n: usize) -> bool {
        self.users.is_none() || user_at(n).is_none()
    }

    /// Sets the wall clock of this thread to a replica's, for what asks for the time itself.
    pub fn take_clock_of(&self, n: usize) {
        set_wall_clock(Some(self.replicas[n].clock_ms(self.now)));
    }

    pub fn turn_of(&mut self, n: usize) -> Turn {
        Turn {
            now_ms: self.replicas[n].clock_ms(self.now),
            now: self.instant(),
            seed: self.random.next(),
            mutant: self.plan.mutant,
        }
    }

    /// Makes the documents that rules look at.
    pub fn begin_people(&mut self) -> Result<(), String> {
        if self.users.is_none() {
            return Ok(());
        }
        let collection = CollectionName::new("people").map_err(text)?;
        let value = serde_json::json!({ "banned": false, "hidden": {}, "barred": {} });
        for (user, name) in NAMES.into_iter().enumerate() {
            let time = self.replicas[0].clock_ms(self.now);
            let Some(engine) = self.replicas[0].engine.as_mut() else { continue };
            let made = engine.create(&collection, person_of(user), Some(name), &value, time);
            let (ticket, hash) = made.map_err(|error| format!("{name} is not made: {error}"))?;
            self.replicas[0].waiters.insert(ticket, Waiter::Nobody);
            if let (Some(users), Some(hash)) = (&mut self.users, hash) {
                users.note_made(0, hash, None);
            }
            // One at a time: the queue may be short.
            self.write(0)?;
        }
        Ok(())
    }

    /// Lets the door of a node look at what its log says now, and tells its links.
    pub fn rights_may_have_changed(&mut self, n: usize) -> Result<(), String> {
        if n >= NODES || self.users.is_none() {
            return Ok(());
        }
        self.take_clock_of(n);
        let (Some(users), Some(engine)) = (&mut self.users, &self.replicas[n].engine) else { return Ok(()) };
        users.read_log(n, engine.reader())?;
        if let Some(door) = &mut users.doors[n] {
            door.look();
        }
        let marks = users.take_marks();
        marks.into_iter().for_each(|mark| self.mark(mark));
        self.tell_rights(n)
    }
}
