//! Users' rights are taken and given back, changes are carried by others than who made them, and rejected edits are handed
//! in again; and what must be true of users once there is peace.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use tidelog::automerge::{ROOT, ReadDoc};
use tidelog::document::{Change, Path};
use tidelog::engine::sim::Engine;
use tidelog::engine::{Clash, Incoming, IncomingBody};
use tidelog::history::{EntryKind, Origin, Reader};
use tidelog::id::{ChangeHash, DocumentId, Lsn};
use tidelog::log::record::{Admission, LifecycleKind};
use tidelog::log::rows::IndexRow;
use tidelog::{Database, Error, Rejected};

use super::replica::Waiter;
use super::users::{Note, USERS, labels_in, person_of, text};
use super::world::{CLIENTS, Event, MS, NODES, SECOND, World};

/// The kind of a statement by which a document is shown again, as rows have it.
const RESTORED: u8 = LifecycleKind::Restored as u8;
/// Rejected edits that are handed in again at a time.
const AGAIN_AT_ONCE: usize = 6;

impl World {
    /// Schedules what becomes of users in the episode that begins now.
    pub fn plan_rights(&mut self) {
        if self.users.is_none() {
            return;
        }
        for (event, from, to) in [(Event::Rights, 7, 12), (Event::Relay, 6, 10), (Event::HandInAgain, 3, 6)] {
            for _ in 0..self.random.between(from, to) {
                let at = self.random.between(2 * SECOND, 250 * SECOND);
                self.after(at, event);
            }
        }
    }

    /// A right is taken from a user or given back to him.
    pub fn turn_rights(&mut self) -> Result<(), String> {
        if !self.chaos || self.users.is_none() {
            return Ok(());
        }
        let user = self.random.index(USERS);
        match self.random.below(12) {
            0..=3 => self.turn_person(user, "banned"),
            4..=6 => self.turn_person(user, "hidden"),
            7 => self.turn_person(user, "barred"),
            8 | 9 => {
                if let Some(users) = &mut self.users {
                    users.wanted_rules[user] ^= true;
                }
                self.mark("other rules came in force");
                for n in 0..NODES {
                    let delay = self.random.between(0, 5000) * MS;
                    self.after(delay, Event::Rules(n));
                }
                Ok(())
            }
            _ => {
                let is_struck = (0..NODES).any(|n| self.users.as_ref().is_some_and(|users| users.is_struck(n, user)));
                for n in 0..NODES {
                    self.turn_token(n, user, !is_struck)?;
                }
                Ok(())
            }
        }
    }

    /// Another set of rules is in force at a node, as its operator wants.
    pub fn take_rules(&mut self, n: usize) -> Result<(), String> {
        if let Some(users) = &mut self.users {
            users.take_rules(n)?;
        }
        self.rights_may_have_changed(n)
    }

    /// Revokes a user's tokens at a node, or gives him another.
    fn turn_token(&mut self, n: usize, user: usize, strikes: bool) -> Result<(), String> {
        let now_ms = self.replicas[n].clock_ms(self.now);
        self.take_clock_of(n);
        let Some(users) = &mut self.users else { return Ok(()) };
        if users.is_struck(n, user) == strikes {
            return Ok(());
        }
        if strikes {
            users.strike(n, user, now_ms)?;
        } else {
            users.issue(n, user, now_ms)?;
        }
        self.mark(if strikes { "a user's tokens were revoked" } else { "a user got another token" });
        self.rights_may_have_changed(n)
    }

    /// Changes a field of a person's document, somewhere.
    fn turn_person(&mut self, user: usize, field: &str) -> Result<(), String> {
        let document = person_of(user);
        let place = self.random.index(NODES + CLIENTS - USERS);
        let n = if place < NODES { place } else { place + USERS };
        let Some(engine) = &self.replicas[n].engine else { return Ok(()) };
        if engine.reader().row(document).map_err(text)?.is_none_or(|row| row.change_count == 0) {
            return Ok(());
        }
        let view = engine.with_view(document, |view| Ok(view.to_json()?));
        let Ok(now) = view else { return Ok(()) };
        if field == "banned" {
            let bans = now["banned"] != json!(true);
            self.edit_person(n, user, &[(Path::from("banned"), Some(json!(bans)))])?;
            self.note_ban(user, bans);
            return Ok(());
        }
        let recent = self.documents.len().saturating_sub(6);
        if self.documents.len() <= recent {
            return Ok(());
        }
        let id = self.documents[recent + self.random.index(self.documents.len() - recent)];
        let name = self.users.as_ref().and_then(|users| users.names.get(&id).cloned()).unwrap_or(id.to_string());
        // Half the time one that is taken is given back.
        let taken = now[field].as_object().and_then(|taken| taken.keys().next().cloned());
        let (name, value) = match taken.filter(|_| self.random.chance(50)) {
            Some(taken) => (taken, None),
            None => (name, Some(json!(true))),
        };
        let path: Path = [field.to_owned(), name].into_iter().collect();
        self.mark(match (field, &value) {
            ("hidden", Some(_)) => "a right to read was taken",
            ("hidden", None) => "a right to read was given back",
            _ => "a right to write turned",
        });
        self.edit_person(n, user, &[(path, value)])
    }

    fn note_ban(&mut self, user: usize, bans: bool) {
        let client = NODES + user;
        let is_linked = self
            .links
            .values()
            .any(|link| link.sides[0] == client && !link.cut && link.ends.iter().all(Option::is_some));
        let has_unsent = self
            .users
            .as_ref()
            .is_some_and(|users| users.notes.iter().any(|note| note.user == user && note.is_offline));
        self.mark(match (bans, self.replicas[client].online && is_linked) {
            (false, _) => "a ban was lifted",
            (true, true) => "a user was banned online",
            (true, false) if has_unsent && !self.replicas[client].online => {
                "a user was banned offline with edits to send"
            }
            (true, false) => "a user was banned while he had no link",
        });
    }

    fn edit_person(
        &mut self,
        n: usize,
        user: usize,
        changes: &[(Path, Option<serde_json::Value>)],
    ) -> Result<(), String> {
        let time = self.replicas[n].clock_ms(self.now);
        let Some(engine) = self.replicas[n].engine.as_mut() else { return Ok(()) };
        let made = engine.change(person_of(user), time, |edit| {
            for (path, value) in changes {
                match value {
                    Some(value) => edit.put(path.clone(), value.clone())?,
                    None => _ = edit.delete(path.clone())?,
                }
            }
            Ok(())
        });
        match made {
            Ok(Some((ticket, hash))) => {
                self.replicas[n].waiters.insert(ticket, Waiter::Nobody);
                if let Some(users) = &mut self.users {
                    users.note_made(n, hash, None);
                }
                self.wake_writer(n);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => self.tolerate(n, &error),
        }
    }

    /// Before there is peace: the same rules and revocations everywhere, and often everything is granted.
    pub fn settle_rights(&mut self) -> Result<(), String> {
        if self.users.is_none() {
            return Ok(());
        }
        let grants = self.random.chance(60);
        for user in 0..USERS {
            let Some(users) = &mut self.users else { continue };
            if grants {
                users.wanted_rules = [false; USERS];
            }
            let is_struck = (0..NODES).any(|n| users.is_struck(n, user)) && !grants;
            for n in 0..NODES {
                self.turn_token(n, user, is_struck)?;
            }
            if grants {
                self.grant_all(user)?;
            }
        }
        for n in 0..NODES {
            self.take_rules(n)?;
        }
        self.mark_if("there was peace with everything granted", grants);
        self.mark_if("there was peace with rights taken", !grants);
        Ok(())
    }

    fn grant_all(&mut self, user: usize) -> Result<(), String> {
        let known = |n: &usize| {
            let reader = self.replicas[*n].engine.as_ref().map(Engine::reader);
            reader.and_then(|reader| reader.row(person_of(user)).ok().flatten()).is_some_and(|row| row.change_count > 0)
        };
        let Some(n) = (0..NODES).find(known) else { return Ok(()) };
        let Some(engine) = &self.replicas[n].engine else { return Ok(()) };
        let Ok(now) = engine.with_view(person_of(user), |view| Ok(view.to_json()?)) else { return Ok(()) };
        let mut changes = vec![(Path::from("banned"), Some(json!(false)))];
        for field in ["hidden", "barred"] {
            let names = now[field].as_object().into_iter().flat_map(|names| names.keys().cloned());
            changes.extend(names.map(|name| ([field.to_owned(), name].into_iter().collect(), None)));
        }
        self.edit_person(n, user, &changes)
    }

    /// A user is given changes by another, past every node, as if his own program had imported them.
    pub fn relay(&mut self) -> Result<(), String> {
        if !self.chaos || self.users.is_none() {
            return Ok(());
        }
        let (maker, carrier) = (self.random.index(USERS), self.random.index(USERS));
        let (from, to) = (NODES + maker, NODES + carrier);
        if maker == carrier || self.replicas[from].engine.is_none() {
            return Ok(());
        }
        let mut recent: Vec<DocumentId> = self.documents.iter().rev().take(8).copied().collect();
        self.random.shuffle(&mut recent);
        for id in recent {
            let (Some(theirs), Some(ours)) = (&self.replicas[from].engine, &self.replicas[to].engine) else { break };
            if ours.reader().document(id).map_err(text)?.is_none_or(|state| !state.visible) {
                continue;
            }
            let changes = missing_changes(theirs.reader(), ours.reader(), id)?;
            if changes.is_empty() {
                continue;
            }
            let origin = Origin {
                node: self.replicas[to].node,
                principal: String::new(),
                admission: Admission::Structural,
                rules_version: 0,
            };
            let row = |change| Incoming {
                document: id,
                body: IncomingBody::Change(Box::new(change)),
                origin: origin.clone(),
                signature: None,
            };
            let rows = changes.into_iter().map(row).collect();
            let Some(engine) = self.replicas[to].engine.as_mut() else { break };
            if let Ok(ticket) = engine.admit(Clash::KeepFirst, rows, None, None) {
                self.replicas[to].waiters.insert(ticket, Waiter::Nobody);
                self.say(|| format!("replica {to} is given changes of {id} by replica {from}"));
                self.mark("changes were carried by another user");
            }
            self.wake_writer(to);
            break;
        }
        Ok(())
    }

    /// A user hands rejected edits in again, and gives others up.
    pub fn hand_in_again(&mut self) -> Result<(), String> {
        if !self.chaos || self.users.is_none() {
            return Ok(());
        }
        let user = self.random.index(USERS);
        let n = NODES + user;
        let (turn, gives_up) = (self.turn_of(n), self.random.chance(20));
        let Some(engine) = self.replicas[n].engine.as_mut() else { return Ok(()) };
        if engine.failure().is_some() {
            return Ok(());
        }
        let (done, reports) =
            engine.serve(turn, |database| again(database, gives_up)).map_err(|error| error.to_string())?;
        let mut discarded = BTreeSet::new();
        for (rejected, outcome) in done {
            match outcome {
                Ok(Outcome::Discarded(labels)) => discarded.extend(labels),
                Ok(Outcome::Made(hash)) => {
                    self.mark("a rejected edit was handed in again");
                    if let (Some(users), Some(hash)) = (&mut self.users, hash) {
                        users.note_resubmitted(user, hash);
                    }
                }
                Err(
                    Error::Busy
                    | Error::NotFound(_)
                    | Error::Deleted(_)
                    | Error::Withheld(_)
                    | Error::ReadOnly(_)
                    | Error::StorageFull
                    | Error::History(_)
                    | Error::Closed,
                ) => {}
                // It names what was made on something else that was taken back since. It stays on the list.
                Err(Error::Refused { .. }) => self.mark("a rejected edit could not be made anew"),
                Err(error) => return Err(format!("replica {n} cannot hand {rejected:?} in again: {error:?}")),
            }
        }
        if let Some(users) = &mut self.users {
            users.notes.retain(|note| note.user != user || !discarded.contains(&note.label));
        }
        reports.into_iter().try_for_each(|report| self.written(n, report))
    }

    /// Whether some node takes the user in.
    fn is_admitted(&self, user: usize) -> bool {
        let Some(users) = &self.users else { return false };
        self.edges.iter().any(|edge| edge.sides[0] == NODES + user && !users.is_struck(edge.sides[1], user))
    }

    /// How a user's replica differs from what he may have of the first node's.
    pub fn difference_of_users(&mut self) -> Result<Option<String>, String> {
        for user in (0..USERS).filter(|user| self.is_admitted(*user)).collect::<Vec<_>>() {
            let n = NODES + user;
            let (Some(node), Some(client)) = (&self.replicas[0].engine, &self.replicas[n].engine) else {
                return Ok(Some("somebody does not run".to_owned()));
            };
            let (node, client) = (node.reader().clone(), client.reader().clone());
            for (id, digest) in node.inventory(None, usize::MAX).map_err(text)? {
                let Some(users) = &mut self.users else { continue };
                let may_read = users.may_read(0, user, id, &node)?;
                let here = client.document(id).map_err(text)?;
                let why = match here {
                    None if may_read => "is missing",
                    Some(here) if may_read && here.withheld => "may be read and is withheld",
                    Some(here) if may_read && here.digest != digest => {
                        // A deletion that was denied is undone by a restoration, which may be denied itself and stays his.
                        let there = node.document(id).map_err(text)?;
                        let is_equal = there.is_some_and(|there| {
                            (there.heads, there.change_count, there.visible)
                                == (here.heads, here.change_count, here.visible)
                        });
                        let row = client.row(id).map_err(text)?;
                        let winner = row.and_then(|row| row.winner).filter(|winner| winner.kind == RESTORED);
                        let via = winner.map(|winner| client.via(Lsn(winner.lsn)));
                        if is_equal && matches!(via, Some(Ok(None))) {
                            continue;
                        }
                        "differs"
                    }
                    Some(here) if !may_read && here.visible && !is_own(&client, id)? => "may not be read and is shown",
                    _ => continue,
                };
                let states = [&node, &client].map(|reader| {
                    let winner = reader.row(id).ok().flatten().and_then(|row| row.winner);
                    let winner = winner.map(|winner| (winner.kind, winner.lamport, winner.lsn, winner.id[0]));
                    reader
                        .document(id)
                        .ok()
                        .flatten()
                        .map(|state| (state.change_count, state.heads, state.visible, winner))
                });
                return Ok(Some(format!("{id} {why} at replica {n}: {states:?}")));
            }
        }
        Ok(None)
    }

    /// An edit that a user's replica acknowledged and that is neither at the nodes nor on his list of rejected edits.
    pub fn lost_edit(&mut self) -> Result<Option<String>, String> {
        let Some(users) = &mut self.users else { return Ok(None) };
        let (mut notes, mut lost, mut shown) = (std::mem::take(&mut users.notes), None, BTreeMap::new());
        let mut rejected: Vec<Option<BTreeSet<String>>> = vec![None; USERS];
        let mut has_come = Vec::new();
        for note in &mut notes {
            if !self.is_admitted(note.user) {
                continue;
            }
            let labels = match shown.entry(note.document) {
                Entry::Occupied(labels) => labels.into_mut(),
                Entry::Vacant(place) => place.insert(self.labels_shown(note.document)?),
            };
            if labels.contains(&note.label) {
                has_come.push((note.label.clone(), note.was_rejected));
                continue;
            }
            if rejected[note.user].is_none() {
                rejected[note.user] = Some(self.labels_rejected(note.user)?);
            }
            if !rejected[note.user].as_ref().is_some_and(|labels| labels.contains(&note.label)) {
                self.describe_edit(note.user, note.document, note.hash)?;
                let Note { user, document, hash, label, .. } = note;
                lost = Some(format!(
                    "edit {label}, made as {hash}, of {document}, acknowledged by user {user}, is neither made nor rejected"
                ));
                break;
            }
            (note.was_rejected, note.is_offline) = (true, false);
        }
        if lost.is_none() {
            let come: BTreeSet<&String> = has_come.iter().map(|(label, _)| label).collect();
            notes.retain(|note| !come.contains(&note.label));
            self.mark_if("denied edits are on a list", notes.iter().any(|note| note.was_rejected));
            let was_rejected = has_come.iter().any(|(_, was_rejected)| *was_rejected);
            self.mark_if("a denied edit was handed in again and is everywhere", was_rejected);
        }
        if let Some(users) = &mut self.users {
            users.notes = notes;
        }
        Ok(lost)
    }

    /// Tells where an edit is, when somebody watches.
    fn describe_edit(&mut self, user: usize, document: DocumentId, hash: ChangeHash) -> Result<(), String> {
        let (node, client) = (&self.replicas[0].engine, &self.replicas[NODES + user].engine);
        let (Some(node), Some(client)) = (node, client) else { return Ok(()) };
        let (node, client) = (node.reader().clone(), client.reader().clone());
        let graph = client.graph(document).map_err(text)?;
        let is_there = graph.lock().unwrap().contains(&hash);
        let (here, there) = (client.document(document).map_err(text)?, node.document(document).map_err(text)?);
        let may_read = match &mut self.users {
            Some(users) => users.may_read(0, user, document, &node)?,
            None => true,
        };
        self.say(|| format!("user {user} has it: {is_there}; may read: {may_read}; {here:?}; the node: {there:?}"));
        Ok(())
    }

    /// The labels of edits in a document as the first node shows it.
    fn labels_shown(&self, id: DocumentId) -> Result<BTreeSet<String>, String> {
        let Some(engine) = &self.replicas[0].engine else { return Ok(BTreeSet::new()) };
        if engine.reader().row(id).map_err(text)?.is_none() {
            return Ok(BTreeSet::new());
        }
        let keys = engine.with_view(id, |view| Ok(view.document().keys(ROOT).collect()));
        keys.map_err(|error| format!("the first node does not show {id}: {error}"))
    }

    /// The labels of the edits that a user's replica has on its list.
    fn labels_rejected(&mut self, user: usize) -> Result<BTreeSet<String>, String> {
        let n = NODES + user;
        let turn = self.turn_of(n);
        let Some(engine) = self.replicas[n].engine.as_mut() else { return Ok(BTreeSet::new()) };
        let (labels, reports) = engine
            .serve(turn, |database| {
                let rejected = database.rejected()?;
                let hashes: BTreeSet<ChangeHash> = rejected.iter().filter_map(|rejected| rejected.change).collect();
                labels_of(database, &hashes)
            })
            .map_err(text)?;
        reports.into_iter().try_for_each(|report| self.written(n, report))?;
        labels.map_err(text)
    }
}

enum Outcome {
    Made(Option<ChangeHash>),
    Discarded(Vec<String>),
}

/// Hands in again, or gives up, the oldest edits on the list.
fn again(database: &Database, gives_up: bool) -> Vec<(Option<Rejected>, Result<Outcome, Error>)> {
    let rejected = match database.rejected() {
        Ok(rejected) => rejected,
        Err(error) => return vec![(None, Err(error))],
    };
    let each = rejected.into_iter().take(AGAIN_AT_ONCE).map(|rejected| {
        let outcome = if gives_up {
            let labels = labels_of(database, &rejected.change.into_iter().collect());
            labels.and_then(|labels| {
                database.discard_rejected(&rejected)?;
                Ok(Outcome::Discarded(labels.into_iter().collect()))
            })
        } else {
            database.resubmit(&rejected).and_then(|made| match made.commit {
                Some(commit) => Ok(Outcome::Made(commit.wait()?.change)),
                None => Ok(Outcome::Made(None)),
            })
        };
        (Some(rejected), outcome)
    });
    each.collect()
}

/// The labels in changes that a log has, or had.
fn labels_of(database: &Database, hashes: &BTreeSet<ChangeHash>) -> Result<BTreeSet<String>, Error> {
    let (mut after, mut labels) = (Lsn::ZERO, BTreeSet::new());
    if hashes.is_empty() {
        return Ok(labels);
    }
    loop {
        let entries = database.reader().read_log(after, 1 << 20, 4096)?;
        let Some(last) = entries.last() else { return Ok(labels) };
        after = last.lsn;
        for entry in entries {
            if let EntryKind::Change { hash, bytes, .. } = entry.kind
                && hashes.contains(&hash)
            {
                labels.extend(labels_in(&Change::parse(bytes)?));
            }
        }
    }
}

/// The changes of a document that one log has and another lacks, in the order of the first.
fn missing_changes(from: &Reader, to: &Reader, id: DocumentId) -> Result<Vec<Change>, String> {
    let graph = to.graph(id).map_err(text)?;
    let mut changes = Vec::new();
    for (lsn, row) in from.index(id, Lsn::ZERO).map_err(text)? {
        if let IndexRow::Change { hash, .. } = row
            && !graph.lock().unwrap().contains(&ChangeHash(hash))
        {
            changes.push(Change::parse(from.change_bytes(lsn).map_err(text)?).map_err(text)?);
        }
    }
    Ok(changes)
}

/// Whether nothing of a document came from anybody else.
fn is_own(reader: &Reader, id: DocumentId) -> Result<bool, String> {
    for (lsn, row) in reader.index(id, Lsn::ZERO).map_err(text)? {
        let is_content = matches!(row, IndexRow::Change { .. } | IndexRow::Lifecycle(_));
        if is_content && reader.via(lsn).map_err(text)?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}
