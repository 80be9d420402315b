//! What clients do: they write, count, list, delete and restore, with a network or without.

use serde_json::json;
use tidelog::Error;
use tidelog::document::{Edit, ViewError};
use tidelog::id::{CollectionName, DocumentId};
use tidelog::log::record::LifecycleKind;

use super::random::Random;
use super::replica::Waiter;
use super::users::user_at;
use super::world::World;

/// Changes of a document after which clients turn to newer ones.
const DOCUMENT_CHANGES: u64 = 70;
/// Documents that clients work on at a time.
const WORKED_ON: usize = 8;

impl World {
    /// One edit of a client.
    pub fn edit(&mut self, client: usize, edits: u64) -> Result<(), String> {
        if self.replicas[client].engine.is_none() {
            return Ok(());
        }
        let recent = self.documents.len().saturating_sub(WORKED_ON);
        let mut open = Vec::new();
        for id in &self.documents[recent..] {
            if self.replicas[client].counts.get(id).is_some_and(|(_, count)| (1..DOCUMENT_CHANGES).contains(count)) {
                open.push(*id);
            }
        }
        if open.is_empty() || self.documents.len() < 3 || (open.len() < 5 && self.random.chance(8)) {
            return self.create(client);
        }
        // Most work is on documents of one's own, as it were.
        let at = if self.random.chance(80) { client % open.len() } else { self.random.index(open.len()) };
        let id = open[at];
        match self.random.below(100) {
            0 => self.state_that(client, id, LifecycleKind::Deleted),
            _ => self.change(client, id, edits),
        }
    }

    fn create(&mut self, client: usize) -> Result<(), String> {
        let name = self.random.chance(25).then(|| format!("page {}", self.documents.len()));
        let collection = CollectionName::new("notes").map_err(|error| error.to_string())?;
        let id = match &name {
            Some(name) => DocumentId::named(&collection, name),
            None => DocumentId(self.random.bytes()),
        };
        let mut value = json!({ "text": "", "list": [], "map": {}, "n": { "$counter": 0 } });
        // A document with a name begins the same whoever creates it.
        let label = if name.is_none() { self.new_label(client) } else { None };
        if let (Some(label), Some(fields)) = (&label, value.as_object_mut()) {
            fields.insert(label.clone(), json!(1));
        }
        let time = self.replicas[client].clock_ms(self.now);
        let Some(engine) = self.replicas[client].engine.as_mut() else { return Ok(()) };
        match engine.create(&collection, id, name.as_deref(), &value, time) {
            Ok((ticket, hash)) => {
                let waiter = hash.map_or(Waiter::Nobody, |hash| Waiter::Edit { document: id, hash, edits: 1 });
                self.replicas[client].waiters.insert(ticket, waiter);
                if let Some(users) = &mut self.users {
                    hash.into_iter().for_each(|hash| users.note_made(client, hash, label.clone()));
                    name.clone().into_iter().for_each(|name| _ = users.names.insert(id, name));
                }
                self.mark_if("a named document was created", name.is_some());
                if !self.documents.contains(&id) {
                    self.documents.push(id);
                }
                self.wake_writer(client);
                Ok(())
            }
            Err(error) => self.tolerate(client, &error),
        }
    }

    fn change(&mut self, client: usize, id: DocumentId, edits: u64) -> Result<(), String> {
        let time = self.replicas[client].clock_ms(self.now);
        let label = self.new_label(client);
        let random = &mut self.random;
        let Some(engine) = self.replicas[client].engine.as_mut() else { return Ok(()) };
        let made = engine.change(id, time, |edit| {
            for _ in 0..edits {
                one_edit(random, edit)?;
            }
            if let Some(label) = &label {
                edit.put(label.as_str(), 1)?;
            }
            Ok(())
        });
        match made {
            Ok(Some((ticket, hash))) => {
                self.replicas[client].waiters.insert(ticket, Waiter::Edit { document: id, hash, edits });
                if let Some(users) = &mut self.users {
                    users.note_made(client, hash, label);
                }
                self.wake_writer(client);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(Error::Deleted(_)) if self.is_withheld(client, id)? => {
                self.mark("an edit met a document that may not be read");
                Ok(())
            }
            Err(Error::Deleted(_)) => {
                self.mark("an edit met a deleted document");
                self.state_that(client, id, LifecycleKind::Restored)
            }
            Err(error) => self.tolerate(client, &error),
        }
    }

    fn state_that(&mut self, client: usize, id: DocumentId, kind: LifecycleKind) -> Result<(), String> {
        let time = self.replicas[client].clock_ms(self.now);
        let Some(engine) = self.replicas[client].engine.as_mut() else { return Ok(()) };
        match engine.state_that(id, kind, time) {
            Ok(ticket) => {
                self.replicas[client].waiters.insert(ticket, Waiter::Nobody);
                self.mark(if kind == LifecycleKind::Deleted {
                    "a document was deleted"
                } else {
                    "a document was restored"
                });
                self.wake_writer(client);
                Ok(())
            }
            Err(error) => self.tolerate(client, &error),
        }
    }

    /// A label for an edit of a user.
    fn new_label(&mut self, client: usize) -> Option<String> {
        let user = user_at(client)?;
        self.users.as_mut().map(|users| users.new_label(user))
    }

    fn is_withheld(&self, client: usize, id: DocumentId) -> Result<bool, String> {
        let Some(engine) = &self.replicas[client].engine else { return Ok(false) };
        let state = engine.reader().document(id).map_err(|error| error.to_string())?;
        Ok(state.is_some_and(|state| state.withheld))
    }

    /// What an edit may meet.
    pub fn tolerate(&mut self, client: usize, error: &Error) -> Result<(), String> {
        match error {
            Error::Deleted(_) => {}
            Error::Busy => self.mark("an edit was turned away for want of room"),
            Error::StorageFull => self.mark("an edit was turned away for want of disk"),
            // What began it was taken back.
            Error::View(ViewError::NotFound(_)) if self.users.is_some() => {
                self.mark("an edit met a document without its beginning");
            }
            Error::ReadOnly(_) => self.mark("an edit was turned away by a failed store"),
            error => return Err(format!("an edit at replica {client}: {error:?}")),
        }
        Ok(())
    }
}

fn one_edit(random: &mut Random, edit: &mut Edit<'_>) -> Result<(), Error> {
    let key = random.below(12);
    match random.below(12) {
        0..=5 => {
            let length = edit.length("text")?.unwrap_or(0);
            let at = random.index(length + 1);
            let cut = if random.chance(20) { random.index(4).min(length - at) } else { 0 };
            let word = random.pick(&["ebb", "flow ", "x", "the tide ", "\u{1f30a}", " and\n"]);
            edit.splice("text", at, cut, word)?;
        }
        6 | 7 => edit.put(format!("map.k{key}"), json!(random.below(1000)))?,
        8 => edit.put(format!("map.deep{}", key % 3), json!({ "a": [1, 2], "b": key }))?,
        9 => edit.increment("n", random.below(9).cast_signed() - 4)?,
        10 => {
            let length = edit.length("list")?.unwrap_or(0);
            edit.insert("list", random.index(length + 1), json!(key))?;
        }
        _ => {
            if edit.length("list")?.unwrap_or(0) > 0 {
                edit.delete("list.0")?;
            } else {
                edit.delete(format!("map.k{key}"))?;
            }
        }
    }
    Ok(())
}
