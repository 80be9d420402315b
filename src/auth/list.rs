//! What this node has issued and what was revoked, and the file that keeps it.
//!
//! `tokens.json` goes with the `token.key` it names. Where there is a key, the list must be there too, whole: without it
//! nobody would know what was revoked. The tokens themselves are in no file.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::AuthError;
use crate::file::replace;
use crate::id::encode_hex;
use crate::limits::tokens as limits;

/// Its name in the data directory.
pub(super) const LIST_FILE: &str = "tokens.json";
const FORMAT: u32 = 1;

/// A token that this node has issued, as the list has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuedToken {
    /// Its `jti`: 32 hexadecimal digits.
    pub id: String,
    /// Whose it is.
    #[serde(rename = "user")]
    pub uid: String,
    /// In which role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// When it was issued, in milliseconds since 1970.
    pub issued_ms: u64,
    /// When it expires, in milliseconds since 1970.
    pub expires_ms: u64,
    /// When it was revoked by its id, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_ms: Option<u64>,
}

/// All tokens of somebody from before a moment.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Struck {
    name: String,
    before_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListFile {
    tidelog_tokens: u32,
    key: String,
    revision: u64,
    tokens: Vec<IssuedToken>,
    users: Vec<Struck>,
    roles: Vec<Struck>,
    check: String,
}

impl ListFile {
    fn checksum(&self) -> Result<String, serde_json::Error> {
        let content = (self.tidelog_tokens, &self.key, self.revision, &self.tokens, &self.users, &self.roles);
        Ok(encode_hex(&blake3::hash(&serde_json::to_vec(&content)?).as_bytes()[..8]))
    }
}

/// The list in memory.
#[derive(Debug, Clone, Default)]
pub(super) struct List {
    /// The name of the key it goes with.
    pub(super) key: String,
    /// How often it was written.
    revision: u64,
    tokens: Vec<IssuedToken>,
    /// By principal: the moment before which all tokens are void.
    users: BTreeMap<String, u64>,
    roles: BTreeMap<String, u64>,
    /// Ids of tokens that were revoked one by one.
    revoked: HashSet<String>,
}

impl List {
    /// An empty list for the key with this name.
    pub(super) fn new(key: &str) -> Self {
        Self { key: key.to_owned(), ..Self::default() }
    }

    /// What is left of a list whose key is gone: its tokens are void, but users and roles stay revoked, since foreign
    /// issuers vouch for some of them.
    pub(super) fn of_another_key(self, key: &str) -> Self {
        Self { key: key.to_owned(), tokens: Vec::new(), revoked: HashSet::new(), ..self }
    }

    /// Reads the file; `None` when there is none.
    ///
    /// # Errors
    /// [`AuthError::List`] when it is damaged, [`AuthError::File`] when it cannot be read. It is left as it is.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, AuthError> {
        let damaged = |why: String| AuthError::List { path: path.to_owned(), why };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(AuthError::File { doing: "open", path: path.to_owned(), source }),
        };
        let mut bytes = Vec::new();
        file.take(limits::LIST_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(AuthError::file("read", path))?;
        if bytes.len() as u64 > limits::LIST_BYTES_MAX {
            return Err(damaged("it is too long".into()));
        }
        let file: ListFile = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if file.tidelog_tokens != FORMAT {
            return Err(damaged(format!("it has format {}, this tidelog knows {FORMAT}", file.tidelog_tokens)));
        }
        if file.check != file.checksum().map_err(|error| damaged(error.to_string()))? {
            return Err(damaged("it does not match its `check`: it is damaged, or was edited by hand".into()));
        }
        let revoked = file.tokens.iter().filter(|token| token.revoked_ms.is_some()).map(|token| token.id.clone());
        let struck = |list: Vec<Struck>| list.into_iter().map(|struck| (struck.name, struck.before_ms)).collect();
        Ok(Some(Self {
            key: file.key,
            revision: file.revision,
            revoked: revoked.collect(),
            tokens: file.tokens,
            users: struck(file.users),
            roles: struck(file.roles),
        }))
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`AuthError::File`]; the file is what it was before then, or already what it is to be.
    pub(super) fn save(&mut self, path: &Path) -> Result<(), AuthError> {
        self.revision += 1;
        let struck = |map: &BTreeMap<String, u64>| {
            map.iter().map(|(name, before_ms)| Struck { name: name.clone(), before_ms: *before_ms }).collect()
        };
        let mut file = ListFile {
            tidelog_tokens: FORMAT,
            key: self.key.clone(),
            revision: self.revision,
            tokens: self.tokens.clone(),
            users: struck(&self.users),
            roles: struck(&self.roles),
            check: String::new(),
        };
        let unwritable = |error: serde_json::Error| AuthError::List { path: path.to_owned(), why: error.to_string() };
        file.check = file.checksum().map_err(unwritable)?;
        let mut bytes = serde_json::to_vec_pretty(&file).map_err(unwritable)?;
        bytes.push(b'\n');
        replace(path, &bytes).map_err(AuthError::file("write", path))
    }

    /// How often it was written.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn tokens(&self) -> &[IssuedToken] {
        &self.tokens
    }

    /// Adds a token, and forgets those that have expired long ago.
    pub(super) fn add(&mut self, token: IssuedToken, now_ms: u64) -> Result<(), AuthError> {
        self.forget_expired(now_ms);
        if self.tokens.len() >= limits::ISSUED_MAX {
            return Err(AuthError::Full("no more tokens are issued", limits::ISSUED_MAX));
        }
        self.tokens.push(token);
        Ok(())
    }

    fn forget_expired(&mut self, now_ms: u64) {
        let listed = |token: &IssuedToken| token.expires_ms.saturating_add(limits::LISTED_AFTER_MS) > now_ms;
        if self.tokens.iter().all(listed) {
            return;
        }
        self.tokens.retain(listed);
        let revoked = self.tokens.iter().filter(|token| token.revoked_ms.is_some()).map(|token| token.id.clone());
        self.revoked = revoked.collect();
    }

    /// Revokes one token. Returns whether it was not before.
    pub(super) fn revoke(&mut self, id: &str, now_ms: u64) -> Result<bool, AuthError> {
        let token = self.tokens.iter_mut().find(|token| token.id == id).ok_or(AuthError::NoSuchToken)?;
        if token.revoked_ms.is_some() {
            return Ok(false);
        }
        token.revoked_ms = Some(now_ms);
        self.revoked.insert(id.to_owned());
        Ok(true)
    }

    /// Revokes whatever a user has from before now. Returns how many listed tokens that reaches which were of use.
    pub(super) fn strike_user(&mut self, principal: &str, now_ms: u64) -> Result<usize, AuthError> {
        let reached = self.count(now_ms, |token| token.uid == principal);
        let until_ms = self.newest(|token| token.uid == principal).max(now_ms);
        strike(&mut self.users, principal, until_ms)?;
        Ok(reached)
    }

    /// Revokes whatever anybody has in a role from before now; as above.
    pub(super) fn strike_role(&mut self, role: &str, now_ms: u64) -> Result<usize, AuthError> {
        let reached = self.count(now_ms, |token| token.role.as_deref() == Some(role));
        let until_ms = self.newest(|token| token.role.as_deref() == Some(role)).max(now_ms);
        strike(&mut self.roles, role, until_ms)?;
        Ok(reached)
    }

    /// When the newest of some listed tokens says it was issued: of one that followed a revocation within the same second
    /// that is the next.
    fn newest(&self, which: impl Fn(&IssuedToken) -> bool) -> u64 {
        self.tokens.iter().filter(|token| which(token)).map(|token| token.issued_ms).max().unwrap_or(0)
    }

    fn count(&self, now_ms: u64, which: impl Fn(&IssuedToken) -> bool) -> usize {
        let of_use = |token: &&IssuedToken| token.expires_ms > now_ms && self.void_since(token).is_none();
        self.tokens.iter().filter(|token| which(token)).filter(of_use).count()
    }

    /// Since when a listed token is void, by whatever.
    pub(super) fn void_since(&self, token: &IssuedToken) -> Option<u64> {
        let struck = [self.users.get(&token.uid), token.role.as_ref().and_then(|role| self.roles.get(role))];
        let struck = struck.into_iter().flatten().copied().filter(|before| token.issued_ms / 1000 <= before / 1000);
        struck.chain(token.revoked_ms).min()
    }

    /// The first second in which a token for this user in this role may say it was issued: after what was revoked.
    pub(super) fn first_second(&self, uid: &str, role: Option<&str>) -> u64 {
        let struck = [self.users.get(uid), role.and_then(|role| self.roles.get(role))];
        struck.into_iter().flatten().map(|before_ms| before_ms / 1000 + 1).max().unwrap_or(0)
    }

    /// By what a token is revoked. `issued_s` is the first second in which it may have been issued; `None`: nobody knows.
    pub(super) fn revoked(
        &self,
        id: Option<&str>,
        principal: &str,
        role: Option<&str>,
        issued_s: Option<u64>,
    ) -> Option<&'static str> {
        // A token says the second only, so all of that second are meant.
        let before = |struck: Option<&u64>| struck.is_some_and(|ms| issued_s.is_none_or(|second| second <= ms / 1000));
        if id.is_some_and(|id| self.revoked.contains(id)) {
            Some("the token")
        } else if before(self.users.get(principal)) {
            Some("every token of its user from before")
        } else if role.is_some_and(|role| before(self.roles.get(role))) {
            Some("every token of its role from before")
        } else {
            None
        }
    }
}

fn strike(map: &mut BTreeMap<String, u64>, name: &str, now_ms: u64) -> Result<(), AuthError> {
    if !map.contains_key(name) && map.len() >= limits::STRUCK_MAX {
        return Err(AuthError::Full("no more users or roles are revoked", limits::STRUCK_MAX));
    }
    let before = map.entry(name.to_owned()).or_insert(0);
    *before = now_ms.max(*before);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: &str, expires_ms: u64) -> IssuedToken {
        let (uid, role) = ("ada".to_owned(), Some("editor".to_owned()));
        IssuedToken { id: id.to_owned(), uid, role, issued_ms: 1_000, expires_ms, revoked_ms: None }
    }

    #[test]
    fn a_list_reads_as_it_was_written_and_no_other_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LIST_FILE);
        assert!(List::load(&path).unwrap().is_none());
        let mut list = List::new("00aa");
        list.add(token("t1", 9_000), 1_000).unwrap();
        list.add(token("t2", 9_000), 1_000).unwrap();
        assert!(list.revoke("t1", 2_000).unwrap());
        assert!(!list.revoke("t1", 3_000).unwrap());
        assert!(matches!(list.revoke("t9", 3_000), Err(AuthError::NoSuchToken)));
        assert_eq!(list.strike_user("bob", 4_000).unwrap(), 0);
        assert_eq!(list.strike_role("editor", 4_000).unwrap(), 1);
        list.save(&path).unwrap();

        let again = List::load(&path).unwrap().unwrap();
        assert_eq!((again.tokens(), again.key.as_str()), (list.tokens(), "00aa"));
        assert_eq!(again.revoked(Some("t1"), "ada", None, Some(1)), Some("the token"));
        assert_eq!(again.revoked(Some("t2"), "ada", None, Some(1)), None);
        assert_eq!(again.revoked(None, "bob", None, Some(4)), Some("every token of its user from before"));
        assert_eq!(again.revoked(None, "bob", None, None), Some("every token of its user from before"));
        assert_eq!(again.revoked(None, "bob", None, Some(5)), None);
        assert!(again.revoked(None, "eve", Some("editor"), Some(4)).is_some());
        assert_eq!(again.first_second("ada", Some("editor")), 5);

        let good = std::fs::read_to_string(&path).unwrap();
        for (from, to) in
            [("t1", "t3"), ("2000", "null"), ("bob", "bab"), ("00aa", "00ab"), ("\"check\"", "\"cheque\"")]
        {
            std::fs::write(&path, good.replacen(from, to, 1)).unwrap();
            let error = List::load(&path).unwrap_err();
            assert_eq!(error.code(), "E0212", "{from}");
            assert!(error.remedy().contains("token.key"));
        }
        for end in 0..good.len() - 1 {
            std::fs::write(&path, &good[..end]).unwrap();
            assert!(List::load(&path).is_err(), "{end}");
        }
    }

    #[test]
    fn a_token_that_followed_a_revocation_at_once_is_reached_by_the_next() {
        let mut list = List::new("key");
        list.strike_user("ada", 5_100).unwrap();
        list.strike_role("editor", 5_100).unwrap();
        let issued_ms = list.first_second("ada", Some("editor")) * 1000;
        assert_eq!(issued_ms, 6_000);
        let next = IssuedToken { issued_ms, uid: "ada".into(), role: Some("editor".into()), ..token("b", 90_000) };
        list.add(next, 5_200).unwrap();
        assert_eq!(list.revoked(Some("b"), "ada", Some("editor"), Some(6)), None);
        assert_eq!(list.strike_user("ada", 5_300).unwrap(), 1);
        assert!(list.revoked(Some("b"), "ada", None, Some(6)).is_some());
        list.strike_role("editor", 5_300).unwrap();
        assert!(list.revoked(None, "bob", Some("editor"), Some(6)).is_some());
    }

    #[test]
    fn the_list_is_bounded_and_the_expired_make_room() {
        let mut list = List::new("00aa");
        for number in 0..limits::ISSUED_MAX {
            let expires_ms = if number == 0 { 5_000 } else { u64::MAX };
            list.add(token(&number.to_string(), expires_ms), 1_000).unwrap();
        }
        list.revoke("0", 2_000).unwrap();
        assert!(matches!(list.add(token("x", 9_000), 5_000), Err(AuthError::Full(..))));
        assert_eq!(list.revoked(Some("0"), "ada", None, None), Some("the token"), "listed for a week after its end");
        list.add(token("x", 9_000), 5_000 + limits::LISTED_AFTER_MS).unwrap();
        assert_eq!(list.tokens().len(), limits::ISSUED_MAX);
        assert_eq!(list.revoked(Some("0"), "ada", None, None), None);

        for number in 0..limits::STRUCK_MAX {
            list.strike_user(&number.to_string(), 1).unwrap();
        }
        assert!(matches!(list.strike_user("one more", 1), Err(AuthError::Full(..))));
        list.strike_user("0", 7_000).unwrap();
        list.strike_user("0", 6_000).unwrap();
        assert_eq!(list.first_second("0", None), 8, "a revocation never shrinks");
    }
}
