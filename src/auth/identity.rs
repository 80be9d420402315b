//! Somebody proven.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::id::encode_hex;
use crate::limits::tokens::PRINCIPAL_BYTES_MAX;

/// Somebody whose token was verified. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

/// What an identity is made of.
pub(super) struct Inner {
    pub(super) uid: String,
    /// The claims, an object.
    pub(super) claims: Value,
    /// From when on the token is not accepted.
    pub(super) expires_ms: u64,
    /// `iat`, in seconds.
    pub(super) issued_s: Option<u64>,
    /// Who vouches for it; `None`: this node.
    pub(super) foreign: Option<Vouched>,
}

/// Which foreign key vouches for somebody.
#[derive(Clone)]
pub(super) struct Vouched {
    pub(super) issuer: String,
    pub(super) fingerprint: [u8; 16],
}

impl Identity {
    pub(super) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// The claim `sub`: 1 to 200 bytes without control characters. Users of different issuers may have the same one;
    /// [`Self::principal`] tells them apart.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.inner.uid
    }

    /// What the log records, at most 256 bytes: the uid of a user of this node (which has no `#`), else
    /// `<issuer>#<uid>`, or, where that is longer, `#` and 64 hexadecimal digits of a BLAKE3 over both. So no two of
    /// different issuers are the same.
    #[must_use]
    pub fn principal(&self) -> String {
        match &self.inner.foreign {
            None => self.inner.uid.clone(),
            Some(vouched) => foreign_principal(&vouched.issuer, &self.inner.uid),
        }
    }

    /// All claims of the token, an object.
    #[must_use]
    pub fn claims(&self) -> &Value {
        &self.inner.claims
    }

    /// The claim `role`, when it is a text.
    #[must_use]
    pub fn role(&self) -> Option<&str> {
        self.inner.claims["role"].as_str()
    }

    /// From when on the token is not accepted, in milliseconds since 1970: `exp`, and the leeway of its issuer after it.
    #[must_use]
    pub fn expires_ms(&self) -> Option<u64> {
        Some(self.inner.expires_ms)
    }

    /// The claim `jti`, when it is a text.
    #[must_use]
    pub fn token_id(&self) -> Option<&str> {
        self.inner.claims["jti"].as_str()
    }

    /// The foreign issuer that vouches for it; `None`: this node.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.inner.foreign.as_ref().map(|vouched| vouched.issuer.as_str())
    }
}

/// Shows who it is, and no claims: they may be private.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("principal", &self.principal())
            .field("role", &self.role())
            .field("expires_ms", &self.inner.expires_ms)
            .finish_non_exhaustive()
    }
}

/// Neither `issuer` (which has no `#`) nor a user of this node (who has none either) makes this ambiguous.
fn foreign_principal(issuer: &str, uid: &str) -> String {
    let plain = format!("{issuer}#{uid}");
    if plain.len() <= PRINCIPAL_BYTES_MAX {
        return plain;
    }
    let mut hasher = blake3::Hasher::new_derive_key("tidelog 2026-11 principal of a foreign issuer");
    hasher.update(&(issuer.len() as u64).to_le_bytes()).update(issuer.as_bytes()).update(uid.as_bytes());
    format!("#{}", encode_hex(hasher.finalize().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_of_different_people_differ() {
        let long = "u".repeat(200);
        let issuer = format!("https://{}", "i".repeat(100));
        let pairs = [
            ("https://a", "bob"),
            ("https://a", "#bob"),
            ("https://a", "b#ob"),
            ("https://b", "bob"),
            (&issuer, &long[..]),
            (&issuer, &long[1..]),
            (&issuer[1..], &long[..]),
        ];
        let mut seen = std::collections::BTreeSet::new();
        for (issuer, uid) in pairs {
            let principal = foreign_principal(issuer, uid);
            assert!(principal.len() <= PRINCIPAL_BYTES_MAX && principal.contains('#'));
            assert!(seen.insert(principal), "{issuer} {uid}");
        }
    }
}
