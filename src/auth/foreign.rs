//! A foreign issuer: its keys, how old they are, and when to fetch them again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::{AuthError, TokenError};
use super::issuers::{Issuer, KeySource};
use super::jws::Parts;
use super::keys::{self, Key};
use crate::limits::tokens as limits;

/// A key set that is to be fetched: from where, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRequest {
    /// Whose keys.
    pub issuer: String,
    /// Where they are.
    pub source: KeySource,
}

/// An issuer and what is known of its keys.
pub(super) struct Foreign {
    pub(super) issuer: Issuer,
    /// Held for lines. Every edit is one step, so a panic elsewhere leaves nothing half done.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: Arc<[Arc<Key>]>,
    /// When the keys were last fetched, in the time that does not go back.
    fetched_ms: Option<u64>,
    /// When they were last asked for, by the clock on the wall.
    asked_ms: Option<u64>,
    /// A fetch is under way.
    under_way: bool,
    /// The last one failed.
    failed: bool,
    /// A token names a key that is not here.
    wanted: bool,
}

/// What a new key set means.
pub(super) struct Taken {
    /// Keys that were there before and are not any more.
    pub(super) lost: usize,
}

impl Foreign {
    pub(super) fn new(issuer: Issuer) -> Self {
        Self { issuer, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys that may have signed a token, a few at most; whether a fetch is wanted now that was not before.
    pub(super) fn candidates(&self, parts: &Parts<'_>, time_ms: u64) -> (Result<Vec<Arc<Key>>, TokenError>, bool) {
        let mut state = self.state();
        let unknown = || TokenError::KeysUnknown { issuer: self.issuer.issuer.clone() };
        let found = match state.fetched_ms {
            None => Err(unknown()),
            Some(fetched) if time_ms.saturating_sub(fetched) > limits::KEYS_USED_MS => {
                Err(TokenError::KeySetExpired { issuer: self.issuer.issuer.clone() })
            }
            Some(_) => candidates(&state.keys, parts).ok_or_else(unknown),
        };
        match found {
            // A key of that name that is for another algorithm is no reason to fetch.
            Ok(found) if found.is_empty() => (Err(TokenError::Algorithm("the key it names is for another one")), false),
            Ok(found) => (Ok(found), false),
            Err(error) => {
                let newly = !state.wanted;
                state.wanted = true;
                (Err(error), newly)
            }
        }
    }

    /// Whether the key with this fingerprint is among its keys.
    pub(super) fn has(&self, fingerprint: &[u8; 16]) -> bool {
        self.state().keys.iter().any(|key| key.fingerprint == *fingerprint)
    }

    /// Says what to fetch, when it is time, and takes note that it is asked.
    pub(super) fn due(&self, now_ms: u64) -> Option<KeyRequest> {
        let mut state = self.state();
        let pause = match (&self.issuer.keys, state.wanted || state.failed) {
            (KeySource::File(_), _) => limits::FILE_EVERY_MS,
            (KeySource::Url(_), true) => limits::URL_AGAIN_MS,
            (KeySource::Url(_), false) => limits::URL_EVERY_MS,
        };
        // Whoever asked and never came back is not waited for.
        let pause = if state.under_way { pause.max(limits::FETCH_LOST_MS) } else { pause };
        // A clock that was set back says nothing about how long ago it was.
        let since = state.asked_ms.and_then(|asked| now_ms.checked_sub(asked));
        if since.is_some_and(|since| since < pause) {
            return None;
        }
        state.asked_ms = Some(now_ms);
        state.under_way = true;
        Some(KeyRequest { issuer: self.issuer.issuer.clone(), source: self.issuer.keys.clone() })
    }

    /// Takes what was fetched. What is no key set changes nothing but when the next one is due.
    pub(super) fn take(&self, bytes: &[u8], time_ms: u64) -> Result<Taken, AuthError> {
        let read = keys::read(bytes);
        let mut state = self.state();
        state.under_way = false;
        let set = match read {
            Ok(set) => set,
            Err(why) => {
                state.failed = true;
                return Err(AuthError::KeySet { issuer: self.issuer.issuer.clone(), why });
            }
        };
        let keys: Arc<[Arc<Key>]> = set.keys.into_iter().map(Arc::new).collect();
        let is_kept = |old: &Arc<Key>| keys.iter().any(|key| key.fingerprint == old.fingerprint);
        let lost = state.keys.iter().filter(|old| !is_kept(old)).count();
        let is_new = lost > 0 || keys.len() != state.keys.len();
        if is_new {
            tracing::info!(issuer = self.issuer.issuer, keys = keys.len(), lost, left_out = ?set.left_out, "a key set");
        }
        if keys.is_empty() && is_new {
            tracing::warn!(issuer = self.issuer.issuer, "the key set has no key of use: no token of it is accepted");
        }
        *state = State { keys, fetched_ms: Some(time_ms), asked_ms: state.asked_ms, ..State::default() };
        Ok(Taken { lost })
    }

    /// Whether the last fetch failed.
    pub(super) fn is_failing(&self) -> bool {
        self.state().failed
    }

    /// Takes note that a fetch failed.
    pub(super) fn failed(&self) {
        let mut state = self.state();
        state.under_way = false;
        state.failed = true;
    }
}

/// The keys that may have signed a token: those of the name it gives, or, when it gives none, the first few that fit.
/// `None`: there is none to try, and a newer set may have one. Empty: there is, for another algorithm.
fn candidates(keys: &[Arc<Key>], parts: &Parts<'_>) -> Option<Vec<Arc<Key>>> {
    let fits = |key: &&Arc<Key>| key.algorithm == parts.algorithm;
    let first = |keys: &mut dyn Iterator<Item = &Arc<Key>>| keys.take(limits::KEYS_TRIED_MAX).cloned().collect();
    let found: Vec<Arc<Key>> = match &parts.kid {
        None => first(&mut keys.iter().filter(fits)),
        Some(kid) => {
            let mut named = keys.iter().filter(|key| key.kid.as_ref() == Some(kid)).peekable();
            named.peek()?;
            return Some(first(&mut named.filter(fits)));
        }
    };
    if found.is_empty() { None } else { Some(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Algorithm;
    use data_encoding::BASE64URL_NOPAD;
    use serde_json::json;

    fn foreign(keys: KeySource) -> Foreign {
        let (issuer, audience) = ("https://id.example".to_owned(), "tide".to_owned());
        Foreign::new(Issuer { issuer, audience, keys, algorithms: vec![Algorithm::EdDsa], leeway_s: 60 })
    }

    fn set(kids: &[&str]) -> Vec<u8> {
        let key =
            |kid: &&str| json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": BASE64URL_NOPAD.encode(&[7; 32]) });
        json!({ "keys": kids.iter().map(key).collect::<Vec<_>>() }).to_string().into_bytes()
    }

    fn reason(foreign: &Foreign, kid: Option<&str>, time_ms: u64) -> (&'static str, bool) {
        let parts = Parts {
            signed: "",
            signature: "",
            algorithm: Algorithm::EdDsa,
            kid: kid.map(str::to_owned),
            claims: serde_json::Map::new(),
        };
        let (found, wanted) = foreign.candidates(&parts, time_ms);
        (found.map_or_else(|error| error.reason(), |_| "found"), wanted)
    }

    #[test]
    fn keys_are_fetched_every_ten_minutes_and_once_in_thirty_seconds_for_one_that_is_missing() {
        let foreign = foreign(KeySource::Url("https://id.example/keys".into()));
        let start = 1_000_000;
        assert_eq!(reason(&foreign, Some("a"), start), ("keys_unknown", true));
        assert!(foreign.due(start).is_some());
        assert!(foreign.due(start + 29_999).is_none(), "one is under way");
        foreign.take(&set(&["a"]), start).unwrap();
        assert_eq!(reason(&foreign, Some("a"), start), ("found", false));
        assert_eq!(reason(&foreign, None, start), ("found", false));
        assert!(foreign.due(start + 599_999).is_none());
        assert!(foreign.due(start + 600_000).is_some());
        foreign.take(&set(&["a"]), start + 600_000).unwrap();

        let start = start + 600_000;
        assert_eq!(reason(&foreign, Some("b"), start + 1), ("keys_unknown", true));
        for _ in 0..1000 {
            assert_eq!(reason(&foreign, Some("c"), start + 2), ("keys_unknown", false), "asked for already");
        }
        assert!(foreign.due(start + 29_999).is_none());
        assert!(foreign.due(start + 30_000).is_some());
        assert_eq!(foreign.take(&set(&["b"]), start + 30_000).unwrap().lost, 1);
        assert_eq!(reason(&foreign, Some("a"), start + 30_000).0, "keys_unknown");
        assert_eq!(reason(&foreign, Some("b"), start + 30_000).0, "found");
    }

    #[test]
    fn a_failure_keeps_the_keys_for_a_day_and_is_tried_again_soon() {
        let foreign = foreign(KeySource::Url("https://id.example/keys".into()));
        foreign.due(0).unwrap();
        foreign.take(&set(&["a"]), 0).unwrap();
        foreign.due(600_000).unwrap();
        assert_eq!(foreign.take(b"<html>", 600_000).err().unwrap().code(), "E0214");
        assert!(foreign.due(629_999).is_none());
        foreign.due(630_000).unwrap();
        foreign.failed();
        assert!(foreign.is_failing());
        assert_eq!(reason(&foreign, Some("a"), limits::KEYS_USED_MS).0, "found");
        assert_eq!(reason(&foreign, Some("a"), limits::KEYS_USED_MS + 1).0, "key_set_expired");
        foreign.take(&set(&["a"]), limits::KEYS_USED_MS + 2).unwrap();
        assert!(!foreign.is_failing());
        assert_eq!(reason(&foreign, Some("a"), limits::KEYS_USED_MS + 2).0, "found");
    }

    #[test]
    fn a_fetch_that_never_ends_and_a_clock_that_goes_back_hold_nothing_up() {
        let foreign = foreign(KeySource::File("keys.json".into()));
        foreign.due(1_000_000).unwrap();
        assert!(foreign.due(1_029_999).is_none());
        assert!(foreign.due(1_030_000).is_some());
        foreign.take(&set(&["a"]), 1_030_000).unwrap();
        assert!(foreign.due(1_039_999).is_none());
        assert!(foreign.due(5).is_some());
        assert!(foreign.due(6).is_none());
    }
}
