//! Stores, as clients of automerge-repo name them.

use std::fmt;
use std::str::FromStr;

use super::{IdError, random_bytes, shortened, uuid_v4};

/// The name under which automerge-repo's clients know a store: a version-4 UUID, drawn anew with the [`LogId`](super::LogId).
///
/// Clients keep beside it what they last knew the store to have, so it must not outlive a loss of that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorageId([u8; 16]);

impl StorageId {
    /// Draws a new id.
    #[must_use]
    pub fn random() -> Self {
        Self(uuid_v4(random_bytes()))
    }

    /// Takes `bytes` as an id; `None` when they are no version-4 UUID.
    #[must_use]
    pub fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes == uuid_v4(bytes)).then_some(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for StorageId {
    type Err = IdError;

    /// Reads the text that [`fmt::Display`] writes, and no other: peers compare it as text.
    fn from_str(text: &str) -> Result<Self, IdError> {
        let hyphenated = text.len() == 36 && text.match_indices('-').map(|(at, _)| at).eq([8, 13, 18, 23]);
        let digits = hyphenated.then(|| text.replace('-', ""));
        let bytes = digits.and_then(|digits| data_encoding::HEXLOWER.decode(digits.as_bytes()).ok());
        let id = bytes.and_then(|bytes| bytes.try_into().ok()).and_then(Self::new);
        id.ok_or_else(|| IdError::Storage(shortened(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_id_is_a_version_4_uuid_in_one_spelling() {
        let id: StorageId = "9f86d081-884c-4d65-a2fe-aa0c55ad015a".parse().unwrap();
        assert_eq!(id.to_string(), "9f86d081-884c-4d65-a2fe-aa0c55ad015a");
        assert_eq!(StorageId::new(*id.as_bytes()), Some(id));
        let good = id.to_string();
        let spellings =
            [good.replace('f', "F"), good.replace('-', ""), good.replace("-4d", "-1d"), good.replace("-a2", "-c2")];
        for wrong in spellings.iter().map(String::as_str).chain(["", "9f86d0818-84c-4d65-a2fe-aa0c55ad015a", "é"]) {
            assert!(wrong.parse::<StorageId>().is_err(), "{wrong:?}");
        }
        assert_ne!(StorageId::random(), StorageId::random());
    }
}
