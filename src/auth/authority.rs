//! The one who verifies tokens, issues them and takes them back.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::clock::Clock;
use super::error::{AuthError, TokenError};
use super::files;
use super::foreign::{Foreign, KeyRequest};
use super::identity::{Identity, Inner, Vouched};
use super::issuers::Issuer;
use super::jws::{self, Algorithm, Parts};
use super::list::{IssuedToken, LIST_FILE, List};
use super::own::TokenKey;
use crate::id::{NodeId, encode_hex, random_bytes};
use crate::limits::tokens as limits;

/// Whom this node's tokens are for: their `aud`.
const AUDIENCE: &str = "tidelog";
/// Claims with a meaning here. Further claims may not have these names.
const RESERVED: [&str; 8] = ["iss", "aud", "sub", "iat", "exp", "nbf", "jti", "role"];

/// What an [`Authority`] is made of.
#[derive(Debug, Clone)]
pub struct AuthorityOptions {
    /// The data directory, where `token.key` and `tokens.json` are, or are made.
    pub directory: PathBuf,
    /// The node, by whose name its tokens say who issued them.
    pub node: NodeId,
    /// Who else may say who somebody is.
    pub issuers: Vec<Issuer>,
}

/// A token that is to be issued.
#[derive(Debug, Clone, Default)]
pub struct TokenOrder {
    /// Whose: 1 to 200 bytes without control characters and `#`.
    pub uid: String,
    /// In which role: 1 to 200 bytes without control characters.
    pub role: Option<String>,
    /// How long it is of use, in milliseconds: a second to 400 days.
    pub ttl_ms: u64,
    /// Further claims.
    pub claims: Map<String, Value>,
}

impl TokenOrder {
    /// A token for `uid` that is of use for 30 days.
    #[must_use]
    pub fn new(uid: impl Into<String>) -> Self {
        Self { uid: uid.into(), ttl_ms: limits::TTL_MS, ..Self::default() }
    }

    fn check(&self) -> Result<(), AuthError> {
        let fault = |why: String| Err(AuthError::Order(why));
        if !is_uid(&self.uid) || self.uid.contains('#') {
            return fault("a user's name is 1 to 200 bytes without control characters and without `#`".into());
        }
        let role_is_well = |role: &String| is_name(role, limits::ROLE_BYTES_MAX);
        if !self.role.as_ref().is_none_or(role_is_well) {
            return fault("a role is 1 to 200 bytes without control characters".into());
        }
        if !(limits::TTL_MS_MIN..=limits::TTL_MS_MAX).contains(&self.ttl_ms) {
            return fault("a token is of use for a second at least, and for 400 days at most".into());
        }
        if let Some(name) = self.claims.keys().find(|name| RESERVED.contains(&name.as_str())) {
            return fault(format!("the claim `{name}` has a meaning of its own and cannot be given"));
        }
        Ok(())
    }
}

/// What is revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revocation {
    /// The token of this node with this id.
    Token(String),
    /// Every token from before now whose [principal](Identity::principal) this is, whoever issued it.
    User(String),
    /// Every token from before now in this role, whoever issued it.
    Role(String),
}

/// Verifies tokens: this node's, and those of the issuers it was told of.
pub struct Authority {
    directory: PathBuf,
    /// The `iss` of this node's tokens.
    name: String,
    key: TokenKey,
    /// Read for an instant by each verification; replaced whole.
    list: RwLock<List>,
    /// Held while the file of the list is read, changed and written.
    writing: Mutex<()>,
    foreign: Vec<Foreign>,
    changes: watch::Sender<u64>,
    wanted: watch::Sender<u64>,
    clock: Clock,
}

impl Authority {
    /// Reads the key and the list in the data directory, or makes both when there is no key.
    ///
    /// # Errors
    /// [`AuthError::KeyFile`] and [`AuthError::List`] when a file cannot be used: where there is a key, its list must be
    /// there, whole. [`AuthError::Order`] when an issuer is not what it must be. Nothing was changed then.
    ///
    /// # Cost
    /// Blocking file IO: two reads, or two writes with two syncs each.
    pub fn open(options: AuthorityOptions) -> Result<Self, AuthError> {
        let AuthorityOptions { directory, node, issuers } = options;
        if issuers.len() > limits::ISSUERS_MAX {
            return Err(AuthError::Order(format!("there are more than {} issuers", limits::ISSUERS_MAX)));
        }
        for (index, issuer) in issuers.iter().enumerate() {
            issuer.check().map_err(|why| AuthError::Order(format!("issuer {}: {why}", index + 1)))?;
            if issuers[..index].iter().any(|other| other.issuer == issuer.issuer) {
                return Err(AuthError::Order(format!("the issuer {:?} is there twice", issuer.issuer)));
            }
        }
        let (key, list) = files::open(&directory)?;
        Ok(Self {
            directory,
            name: format!("tidelog:{node}"),
            key,
            list: RwLock::new(list),
            writing: Mutex::new(()),
            foreign: issuers.into_iter().map(Foreign::new).collect(),
            changes: watch::Sender::new(0),
            wanted: watch::Sender::new(0),
            clock: Clock::default(),
        })
    }

    /// Says whose token this is. `now_ms` is the time in milliseconds since 1970; a time before one that was given already
    /// counts as that. It never waits for a network or a disk: when the key is not here that the token names, a fetch is
    /// [wanted](Self::refreshes), and the token is refused meanwhile.
    ///
    /// # Errors
    /// [`TokenError`], which says for the operator why, and has a plain text for whoever sent it.
    ///
    /// # Cost
    /// One verification of a signature, at most four for a token that names no key.
    pub fn verify(&self, token: &str, now_ms: u64) -> Result<Identity, TokenError> {
        let time_ms = self.clock.at(now_ms);
        let parts = Parts::of(token)?;
        let Some(Value::String(issuer)) = parts.claims.get("iss") else {
            return Err(TokenError::Claim { claim: "iss", fault: "missing, or not a text" });
        };
        let inner = if *issuer == self.name {
            self.verify_own(parts, time_ms)?
        } else {
            let foreign = self.foreign.iter().find(|foreign| foreign.issuer.issuer == *issuer);
            self.verify_foreign(foreign.ok_or(TokenError::Issuer)?, parts, time_ms)?
        };
        let identity = Identity::new(inner);
        match self.revoked_by(&identity) {
            Some(what) => Err(TokenError::Revoked { issuer: self.name_of(&identity).to_owned(), what }),
            None => Ok(identity),
        }
    }

    fn verify_own(&self, parts: Parts<'_>, time_ms: u64) -> Result<Inner, TokenError> {
        let issuer = || self.name.clone();
        if parts.algorithm != Algorithm::EdDsa {
            return Err(TokenError::Algorithm("this node signs with EdDSA"));
        }
        if parts.kid.as_ref().is_some_and(|kid| *kid != self.key.kid) {
            return Err(TokenError::Key);
        }
        if !self.key.public.signed(&parts) {
            return Err(TokenError::Signature { issuer: issuer() });
        }
        // Our own clock said when: there is nothing to make allowance for, and an `iat` in the future is one of ours.
        let claims = Claims { claims: &parts.claims, issuer: &self.name, leeway_s: 0, time_ms };
        claims.check_audience(AUDIENCE)?;
        let expires_ms = claims.check_times(false)?;
        let issued_s = claims.seconds("iat")?;
        if issued_s.is_none() {
            return Err(TokenError::Claim { claim: "iat", fault: "missing" });
        }
        if !parts.claims.get("jti").is_some_and(Value::is_string) {
            return Err(TokenError::Claim { claim: "jti", fault: "missing, or not a text" });
        }
        let uid = claims.uid()?;
        if uid.contains('#') {
            return Err(TokenError::Claim { claim: "sub", fault: "a name with `#`" });
        }
        claims.check_names()?;
        Ok(Inner { uid, claims: Value::Object(parts.claims), expires_ms, issued_s, foreign: None })
    }

    fn verify_foreign(&self, foreign: &Foreign, parts: Parts<'_>, time_ms: u64) -> Result<Inner, TokenError> {
        let Issuer { issuer, audience, algorithms, leeway_s, .. } = &foreign.issuer;
        if !algorithms.contains(&parts.algorithm) {
            return Err(TokenError::Algorithm("its issuer does not sign that way"));
        }
        let (keys, newly_wanted) = foreign.candidates(&parts, time_ms);
        if newly_wanted {
            self.wanted.send_modify(|number| *number += 1);
        }
        let key = keys?.into_iter().find(|key| key.signed(&parts));
        let key = key.ok_or_else(|| TokenError::Signature { issuer: issuer.clone() })?;
        let claims = Claims { claims: &parts.claims, issuer, leeway_s: *leeway_s, time_ms };
        claims.check_audience(audience)?;
        let expires_ms = claims.check_times(true)?;
        let issued_s = claims.seconds("iat")?;
        let uid = claims.uid()?;
        claims.check_names()?;
        let vouched = Vouched { issuer: issuer.clone(), fingerprint: key.fingerprint };
        Ok(Inner { uid, claims: Value::Object(parts.claims), expires_ms, issued_s, foreign: Some(vouched) })
    }

    /// Whether somebody who was verified before would not be now, for another reason than time: his token, he or his role
    /// was revoked, or the key that vouched for him is not in its issuer's key set any more.
    #[must_use]
    pub fn is_revoked(&self, identity: &Identity) -> bool {
        if let Some(vouched) = &identity.inner().foreign {
            let foreign = self.foreign.iter().find(|foreign| foreign.issuer.issuer == vouched.issuer);
            if !foreign.is_some_and(|foreign| foreign.has(&vouched.fingerprint)) {
                return true;
            }
        }
        self.revoked_by(identity).is_some()
    }

    fn revoked_by(&self, identity: &Identity) -> Option<&'static str> {
        let inner = identity.inner();
        let leeway_s = |vouched: &Vouched| {
            let foreign = self.foreign.iter().find(|foreign| foreign.issuer.issuer == vouched.issuer);
            foreign.map_or(limits::LEEWAY_S_MAX, |foreign| foreign.issuer.leeway_s)
        };
        // A foreign clock may be ahead: what it dates after a revocation may be from before it.
        let ahead_s = inner.foreign.as_ref().map_or(0, leeway_s);
        let issued_s = inner.issued_s.map(|second| second.saturating_sub(ahead_s));
        let id = if inner.foreign.is_none() { identity.token_id() } else { None };
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        list.revoked(id, &identity.principal(), identity.role(), issued_s)
    }

    fn name_of<'a>(&'a self, identity: &'a Identity) -> &'a str {
        identity.issuer().unwrap_or(&self.name)
    }

    /// A number that rises whenever something was revoked, or a key set lost a key: whoever keeps a connection asks
    /// [`Self::is_revoked`] again then.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A number that rises whenever a fetch of a key set is wanted that was not before: whoever drives asks
    /// [`Self::refresh_due`] again then.
    #[must_use]
    pub fn refreshes(&self) -> watch::Receiver<u64> {
        self.wanted.subscribe()
    }

    /// Issues a token, and lists it before it is given out.
    ///
    /// # Errors
    /// [`AuthError`]; nothing was issued then.
    ///
    /// # Cost
    /// Blocking file IO: the list is read and written whole, with two syncs.
    pub fn issue(&self, order: TokenOrder, now_ms: u64) -> Result<(String, IssuedToken), AuthError> {
        order.check()?;
        let time_ms = self.clock.at(now_ms);
        self.edit(false, |list| {
            let first_second = list.first_second(&order.uid, order.role.as_deref());
            let issued_ms = time_ms.max(first_second * 1000);
            let issued_s = issued_ms / 1000;
            let expires_s = (issued_ms + order.ttl_ms).div_ceil(1000);
            let id = encode_hex(&random_bytes::<16>());
            let mut claims = order.claims.clone();
            for (name, value) in [
                ("iss", json!(self.name)),
                ("aud", json!(AUDIENCE)),
                ("sub", json!(order.uid)),
                ("iat", json!(issued_s)),
                ("exp", json!(expires_s)),
                ("jti", json!(id)),
            ] {
                claims.insert(name.to_owned(), value);
            }
            if let Some(role) = &order.role {
                claims.insert("role".to_owned(), json!(role));
            }
            let token = jws::signed(&self.key.kid, &claims, &self.key.secret)?;
            // What could not be read back is not given out.
            Parts::of(&token).map_err(|error| AuthError::Order(format!("there is too much in the claims: {error}")))?;
            let (uid, role) = (order.uid.clone(), order.role.clone());
            let issued = IssuedToken { id, uid, role, issued_ms, expires_ms: expires_s * 1000, revoked_ms: None };
            list.add(issued.clone(), time_ms)?;
            Ok((token, issued))
        })
    }

    /// The tokens that this node has issued and has not forgotten, oldest first; `revoked_ms` says since when one is of no
    /// use, by whatever it was revoked.
    #[must_use]
    pub fn issued(&self) -> Vec<IssuedToken> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        let shown = |token: &IssuedToken| IssuedToken { revoked_ms: list.void_since(token), ..token.clone() };
        list.tokens().iter().map(shown).collect()
    }

    /// Revokes. Returns how many tokens on the list it reaches which were of use; those of foreign issuers are on no list.
    /// Whoever is told of [`Self::changes`] is told when it is on the disk.
    ///
    /// # Errors
    /// [`AuthError::NoSuchToken`] for an id that is not listed; [`AuthError`] when the list cannot be written: it counts in
    /// this process then, but not after it.
    ///
    /// # Cost
    /// As [`Self::issue`].
    pub fn revoke(&self, what: Revocation, now_ms: u64) -> Result<usize, AuthError> {
        let time_ms = self.clock.at(now_ms);
        let name = match &what {
            Revocation::Token(name) | Revocation::User(name) | Revocation::Role(name) => name,
        };
        if !is_name(name, limits::PRINCIPAL_BYTES_MAX) {
            return Err(AuthError::Order("what is revoked is 1 to 256 bytes without control characters".into()));
        }
        let done = self.edit(true, |list| match &what {
            Revocation::Token(id) => list.revoke(id, time_ms).map(usize::from),
            Revocation::User(principal) => list.strike_user(principal, time_ms),
            Revocation::Role(role) => list.strike_role(role, time_ms),
        });
        if !matches!(done, Err(AuthError::NoSuchToken | AuthError::Full(..))) {
            self.changes.send_modify(|number| *number += 1);
        }
        done
    }

    /// Changes the list, in the file and then here. Another process may have changed the file: what it wrote stays. With
    /// `anyway` the change counts here even when the file cannot be read or written.
    fn edit<T>(&self, anyway: bool, change: impl FnOnce(&mut List) -> Result<T, AuthError>) -> Result<T, AuthError> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.directory.join(LIST_FILE);
        let here = || self.list.read().unwrap_or_else(PoisonError::into_inner);
        let prepared = files::lock(&self.directory).and_then(|held| Ok((self.load(&path)?, held)));
        let (mut list, held, fault) = match prepared {
            Ok((list, held)) => (list, Some(held), None),
            Err(error) if anyway => (here().clone(), None, Some(error)),
            Err(error) => return Err(error),
        };
        let by_others = list.revision() != here().revision();
        let done = change(&mut list)?;
        let saved = match fault {
            None => list.save(&path),
            Some(error) => Err(error),
        };
        drop(held);
        if saved.is_ok() || anyway {
            *self.list.write().unwrap_or_else(PoisonError::into_inner) = list;
        }
        if by_others {
            self.changes.send_modify(|number| *number += 1);
        }
        saved.map(|()| done)
    }

    fn load(&self, path: &Path) -> Result<List, AuthError> {
        let list = List::load(path)?.ok_or_else(|| files::missing(path))?;
        if list.key == self.key.kid { Ok(list) } else { Err(files::of_another_key(path)) }
    }

    /// What is to be fetched now, if anything; ask until there is nothing. What was fetched goes to [`Self::take_keys`],
    /// and what could not be to [`Self::keys_failed`]. `now_ms` is the time in milliseconds since 1970.
    #[must_use]
    pub fn refresh_due(&self, now_ms: u64) -> Option<KeyRequest> {
        self.foreign.iter().find_map(|foreign| foreign.due(now_ms))
    }

    /// Takes the key set of an issuer as it was fetched.
    ///
    /// # Errors
    /// [`AuthError::KeySet`] when it is none; the keys from before are used for a while.
    pub fn take_keys(&self, issuer: &str, bytes: &[u8], now_ms: u64) -> Result<(), AuthError> {
        let time_ms = self.clock.at(now_ms);
        let Some(foreign) = self.foreign.iter().find(|foreign| foreign.issuer.issuer == issuer) else { return Ok(()) };
        let taken = foreign.take(bytes, time_ms)?;
        if taken.lost > 0 {
            self.changes.send_modify(|number| *number += 1);
        }
        Ok(())
    }

    /// Whether the last fetch of an issuer's key set failed, or brought none: whoever reports failures need not do so twice.
    #[must_use]
    pub fn is_failing(&self, issuer: &str) -> bool {
        let foreign = self.foreign.iter().find(|foreign| foreign.issuer.issuer == issuer);
        foreign.is_some_and(Foreign::is_failing)
    }

    /// Takes note that a key set could not be fetched.
    pub fn keys_failed(&self, issuer: &str) {
        if let Some(foreign) = self.foreign.iter().find(|foreign| foreign.issuer.issuer == issuer) {
            foreign.failed();
        }
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("name", &self.name).field("key", &self.key).finish_non_exhaustive()
    }
}

fn is_name(text: &str, bytes_max: usize) -> bool {
    !text.is_empty() && text.len() <= bytes_max && !text.chars().any(char::is_control)
}

fn is_uid(text: &str) -> bool {
    is_name(text, limits::UID_BYTES_MAX)
}

/// Claims whose signature holds, and what they are held against.
struct Claims<'a> {
    claims: &'a Map<String, Value>,
    issuer: &'a str,
    leeway_s: u64,
    time_ms: u64,
}

impl Claims<'_> {
    fn check_audience(&self, expected: &str) -> Result<(), TokenError> {
        let is_for_us = match self.claims.get("aud") {
            Some(Value::String(audience)) => audience == expected,
            Some(Value::Array(all)) => all.iter().any(|audience| audience == expected),
            _ => false,
        };
        if is_for_us { Ok(()) } else { Err(TokenError::Audience { issuer: self.issuer.to_owned() }) }
    }

    /// Checks `exp` and `nbf`, and `iat` when asked to. Returns from when on the token is not accepted.
    fn check_times(&self, with_issued: bool) -> Result<u64, TokenError> {
        let exp = self.seconds("exp")?.ok_or(TokenError::Claim { claim: "exp", fault: "missing" })?;
        let expires_ms = (exp + self.leeway_s) * 1000;
        if self.time_ms >= expires_ms {
            return Err(TokenError::Expired { issuer: self.issuer.to_owned() });
        }
        for claim in ["nbf", "iat"] {
            let second = self.seconds(claim)?;
            if claim == "iat" && !with_issued {
                continue;
            }
            if second.is_some_and(|second| second.saturating_sub(self.leeway_s) * 1000 > self.time_ms) {
                return Err(TokenError::NotYet { issuer: self.issuer.to_owned(), claim });
            }
        }
        Ok(expires_ms)
    }

    /// A time in seconds since 1970; parts of one are left out.
    fn seconds(&self, claim: &'static str) -> Result<Option<u64>, TokenError> {
        let fault = TokenError::Claim { claim, fault: "not a time in seconds since 1970" };
        let Some(value) = self.claims.get(claim) else { return Ok(None) };
        let seconds = match value.as_u64() {
            Some(seconds) => seconds,
            None => match value.as_f64() {
                Some(seconds) if (0.0..=limits::SECONDS_MAX as f64).contains(&seconds) => seconds as u64,
                _ => return Err(fault),
            },
        };
        if seconds <= limits::SECONDS_MAX { Ok(Some(seconds)) } else { Err(fault) }
    }

    fn uid(&self) -> Result<String, TokenError> {
        match self.claims.get("sub") {
            Some(Value::String(uid)) if is_uid(uid) => Ok(uid.clone()),
            _ => Err(TokenError::Claim {
                claim: "sub",
                fault: "missing, or not a text of 1 to 200 bytes without control characters",
            }),
        }
    }

    /// Checks the optional claims that are used as names: what is no text is no name and stays a claim.
    fn check_names(&self) -> Result<(), TokenError> {
        for (claim, bytes_max) in [("role", limits::ROLE_BYTES_MAX), ("jti", limits::ID_BYTES_MAX)] {
            if let Some(Value::String(name)) = self.claims.get(claim)
                && !is_name(name, bytes_max)
            {
                return Err(TokenError::Claim { claim, fault: "empty, too long, or has control characters" });
            }
        }
        Ok(())
    }
}
