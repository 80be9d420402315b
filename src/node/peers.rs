//! Who is allowed and dialled, kept in the data directory's `peers.json`.
//!
//! The file holds the roles, the tickets to dial and the invites that are out; it is readable by its owner only,
//! because an invite is a secret, and it is replaced whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::command::{CommandError, Exit};
use crate::file::replace;
use crate::id::NodeId;
use crate::net::{AllowList, Invite, OutstandingInvite, Role, Ticket, UnknownKeys};

/// Its name in the data directory.
pub const PEERS_FILE: &str = "peers.json";
const FORMAT: u32 = 1;
/// More than thousands of peers take.
const BYTES_MAX: u64 = 4 << 20;

/// The allow-list, the tickets to dial, and their file.
pub struct PeerBook {
    path: PathBuf,
    allow: AllowList,
    /// Held while the file is written too, so that the newest state is what stays.
    tickets: Mutex<BTreeMap<NodeId, Ticket>>,
}

/// One peer that is allowed.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its key.
    pub node: NodeId,
    /// What it is to us.
    pub role: Role,
    /// How to dial it, if we do.
    pub ticket: Option<Ticket>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PeersFile {
    tidelog_peers: u32,
    peers: Vec<PeerEntry>,
    #[serde(default)]
    invites: Vec<InviteEntry>,
    /// Over all of the above, since a flipped letter of a key is another key. Who edits the file by hand leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    check: Option<String>,
}

impl PeersFile {
    fn checksum(&self) -> Result<String, serde_json::Error> {
        let bytes = serde_json::to_vec(&(self.tidelog_peers, &self.peers, &self.invites))?;
        Ok(data_encoding::HEXLOWER.encode(&blake3::hash(&bytes).as_bytes()[..8]))
    }
}

#[derive(Serialize, Deserialize)]
struct PeerEntry {
    node: String,
    role: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ticket: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct InviteEntry {
    invite: String,
    role: String,
    expires_ms: u64,
}

impl PeerBook {
    /// Reads the file in `directory`; an empty book when there is none.
    ///
    /// # Errors
    /// [`CommandError`] when the file cannot be read or is no such file. It is left as it is.
    pub fn load(directory: &Path, unknown: UnknownKeys) -> Result<Self, CommandError> {
        let path = directory.join(PEERS_FILE);
        let book = Self { allow: AllowList::new(unknown), tickets: Mutex::default(), path };
        match fs::metadata(&book.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(book),
            Err(error) => return Err(CommandError::file("read", &book.path, &error)),
            Ok(metadata) if metadata.len() > BYTES_MAX => return Err(book.damaged("it is too large")),
            Ok(_) => {}
        }
        let bytes = fs::read(&book.path).map_err(|error| CommandError::file("read", &book.path, &error))?;
        let file: PeersFile = serde_json::from_slice(&bytes).map_err(|error| book.damaged(error))?;
        if file.tidelog_peers != FORMAT {
            return Err(book.damaged(format!("it has format {}, this tidelog knows {FORMAT}", file.tidelog_peers)));
        }
        if let Some(check) = &file.check
            && *check != file.checksum().map_err(|error| book.damaged(error))?
        {
            return Err(book.damaged("it does not match its `check`; if it was edited by hand, remove that line"));
        }
        for peer in &file.peers {
            book.take_peer(peer).map_err(|why| book.damaged(why))?;
        }
        for invite in &file.invites {
            book.take_invite(invite).map_err(|why| book.damaged(why))?;
        }
        Ok(book)
    }

    fn take_peer(&self, entry: &PeerEntry) -> Result<(), String> {
        let node: NodeId = entry.node.parse().map_err(|error| format!("{error}"))?;
        self.allow.allow(node, entry.role.parse()?);
        if let Some(ticket) = &entry.ticket {
            let ticket: Ticket = ticket.parse().map_err(|error| format!("{error}"))?;
            self.tickets().insert(node, ticket);
        }
        Ok(())
    }

    fn take_invite(&self, entry: &InviteEntry) -> Result<(), String> {
        let invite: Invite = entry.invite.parse().map_err(|error| format!("{error}"))?;
        let expires = UNIX_EPOCH + Duration::from_millis(entry.expires_ms);
        let outstanding = OutstandingInvite { invite, role: entry.role.parse()?, expires };
        self.allow.put_out(outstanding, SystemTime::now()).map_err(|error| error.to_string())
    }

    fn damaged(&self, why: impl std::fmt::Display) -> CommandError {
        let what = format!("{} is not a list of peers: {why}", self.path.display());
        CommandError::new("E0505", Exit::Failed, what).fix("repair it, or remove it and add the peers again")
    }

    /// The data directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// The list that judges who may link; it shares its state with the book.
    #[must_use]
    pub fn allow_list(&self) -> &AllowList {
        &self.allow
    }

    /// Everybody who is allowed, by key.
    #[must_use]
    pub fn entries(&self) -> Vec<Peer> {
        let tickets = self.tickets();
        let peers = self.allow.entries().into_iter();
        peers.map(|(node, role)| Peer { node, role, ticket: tickets.get(&node).cloned() }).collect()
    }

    /// Allows `node`, remembers how to dial it, and saves. Returns what it was. Without a ticket the one that is known
    /// stays.
    ///
    /// # Errors
    /// [`CommandError`] when the file cannot be written; the list has changed in memory then.
    pub fn add(&self, node: NodeId, role: Role, ticket: Option<Ticket>) -> Result<Option<Role>, CommandError> {
        let mut tickets = self.tickets();
        let before = self.allow.allow(node, role);
        if let Some(ticket) = ticket {
            tickets.insert(node, ticket);
        }
        self.write(&tickets)?;
        Ok(before)
    }

    /// Strikes `node` off and saves. Returns what it was.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn remove(&self, node: NodeId) -> Result<Option<Role>, CommandError> {
        let mut tickets = self.tickets();
        let before = self.allow.remove(node);
        let dialled = tickets.remove(&node);
        if before.is_some() || dialled.is_some() {
            self.write(&tickets)?;
        }
        Ok(before)
    }

    /// Makes an invite and saves it, so that it is of use after a restart.
    ///
    /// # Errors
    /// [`CommandError`] when too many are out, or the file cannot be written.
    pub fn invite(&self, role: Role, now: SystemTime) -> Result<Invite, CommandError> {
        let tickets = self.tickets();
        let invite = self.allow.invite(role, now)?;
        self.write(&tickets)?;
        Ok(invite)
    }

    /// Saves what the list has become, after an invite was used up.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn save(&self) -> Result<(), CommandError> {
        self.write(&self.tickets())
    }

    fn write(&self, tickets: &BTreeMap<NodeId, Ticket>) -> Result<(), CommandError> {
        let peers = self.allow.entries().into_iter().map(|(node, role)| PeerEntry {
            node: node.to_string(),
            role: role.to_string(),
            ticket: tickets.get(&node).map(ToString::to_string),
        });
        let invites = self.allow.invites(SystemTime::now()).into_iter().map(|out| InviteEntry {
            invite: out.invite.to_string(),
            role: out.role.to_string(),
            expires_ms: out.expires.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
        });
        let mut file =
            PeersFile { tidelog_peers: FORMAT, peers: peers.collect(), invites: invites.collect(), check: None };
        file.check = Some(file.checksum().map_err(|error| self.damaged(error))?);
        let bytes = serde_json::to_vec_pretty(&file).map_err(|error| self.damaged(error))?;
        replace(&self.path, &bytes).map_err(|error| CommandError::file("write", &self.path, &error))
    }

    fn tickets(&self) -> MutexGuard<'_, BTreeMap<NodeId, Ticket>> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_reads_as_it_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let book = PeerBook::load(folder.path(), UnknownKeys::Refuse).unwrap();
        let ticket = Ticket::new(NodeId([1; 32]), "example.org", 4780).unwrap();
        assert_eq!(book.add(NodeId([1; 32]), Role::Node, Some(ticket.clone())).unwrap(), None);
        assert_eq!(book.add(NodeId([2; 32]), Role::Client, None).unwrap(), None);
        let invite = book.invite(Role::Node, SystemTime::now()).unwrap();

        let again = PeerBook::load(folder.path(), UnknownKeys::Refuse).unwrap();
        let peers = again.entries();
        assert_eq!(peers.len(), 2);
        assert_eq!((peers[0].role, peers[0].ticket.as_ref()), (Role::Node, Some(&ticket)));
        assert_eq!((peers[1].role, peers[1].ticket.as_ref()), (Role::Client, None));
        assert!(again.allow_list().invites(SystemTime::now()).iter().any(|out| out.invite == invite));

        assert_eq!(again.remove(NodeId([1; 32])).unwrap(), Some(Role::Node));
        assert_eq!(PeerBook::load(folder.path(), UnknownKeys::Refuse).unwrap().entries().len(), 1);
    }

    #[test]
    fn a_damaged_file_is_named_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PEERS_FILE);
        for text in ["", "{}", "[1]", r#"{"tidelog_peers":9,"peers":[]}"#] {
            fs::write(&path, text).unwrap();
            let error = PeerBook::load(folder.path(), UnknownKeys::Refuse).err().unwrap();
            assert_eq!(error.code, "E0505");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
