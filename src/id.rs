//! The names of things: documents, collections, nodes, logs, positions and heads.
//!
//! Every identifier is a newtype over bytes, so that two of them cannot be mixed up, and prints in the form a
//! person would paste: documents as `automerge:` URLs (as automerge-repo prints them), nodes as 52 characters of
//! base32, hashes and log ids as hexadecimal, stores as UUIDs.

mod storage;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use storage::StorageId;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The text is not an `automerge:` URL of a document.
    #[error("{0:?} is not a document id: expected automerge:<base58check of 16 bytes>")]
    Document(String),
    /// The text is not a collection's name.
    #[error("{0:?} is not a collection name: use 1 to 128 of A-Z a-z 0-9 _ - . and begin with a letter, digit, _ or -")]
    Collection(String),
    /// The text is not a node id.
    #[error("{0:?} is not a node id: expected 52 characters of lower-case base32")]
    Node(String),
    /// The text is not a change hash.
    #[error("{0:?} is not a change hash: expected 64 hexadecimal digits")]
    Hash(String),
    /// The text is not a log id.
    #[error("{0:?} is not a log id: expected 32 hexadecimal digits")]
    Log(String),
    /// The text is not a store's name.
    #[error("{0:?} is not a storage id: expected a version-4 UUID in lower case, with hyphens")]
    Storage(String),
}

/// Fills an array with the operating system's randomness.
///
/// # Panics
/// When the operating system has no randomness to give, which leaves nothing safe to do.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[cfg(feature = "sim")]
    if crate::mutant::random(&mut bytes) {
        return bytes;
    }
    #[expect(clippy::expect_used, reason = "without randomness no id, key or actor may be made")]
    getrandom::fill(&mut bytes).expect("the operating system gives randomness");
    bytes
}

/// A document's name: 16 bytes, printed as `automerge:<base58check>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentId(pub [u8; 16]);

impl DocumentId {
    /// Makes a new random id, a version-4 UUID as automerge-repo's are.
    #[must_use]
    pub fn random() -> Self {
        Self(uuid_v4(random_bytes()))
    }

    /// Derives the id of the document called `name` in `collection`.
    ///
    /// Two replicas that never met derive the same id. The version and variant bits of a version-4 UUID are set,
    /// because older automerge-repo clients validate them.
    #[must_use]
    pub fn named(collection: &CollectionName, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("tidelog 2026-11 named document");
        hasher.update(&(collection.as_str().len() as u64).to_le_bytes());
        hasher.update(collection.as_str().as_bytes());
        hasher.update(name.as_bytes());
        Self(uuid_v4(first(hasher.finalize().as_bytes())))
    }

    /// The id without its prefix, as it travels between automerge-repo peers.
    #[must_use]
    pub fn to_base58(&self) -> String {
        bs58::encode(self.0).with_check().into_string()
    }

    /// The 16 bytes, as keys and frames hold them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

fn uuid_v4(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    bytes
}

/// The first `N` bytes of a 32-byte digest.
pub(crate) fn first<const N: usize>(digest: &[u8; 32]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&digest[..N]);
    out
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "automerge:{}", self.to_base58())
    }
}

impl fmt::Debug for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for DocumentId {
    type Err = IdError;

    /// Reads an `automerge:` URL; the prefix may be absent.
    fn from_str(text: &str) -> Result<Self, IdError> {
        let refused = || IdError::Document(shortened(text));
        let encoded = text.strip_prefix("automerge:").unwrap_or(text);
        if encoded.len() > 64 {
            return Err(refused());
        }
        let bytes = bs58::decode(encoded).with_check(None).into_vec().map_err(|_| refused())?;
        bytes.try_into().map(Self).map_err(|_| refused())
    }
}

/// A collection's name, `[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CollectionName(Box<str>);

impl CollectionName {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 128;

    /// Checks `name` and takes it.
    ///
    /// # Errors
    /// [`IdError::Collection`] when it is empty, too long or holds another character.
    pub fn new(name: impl Into<String>) -> Result<Self, IdError> {
        let name = name.into();
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let fits = name.len() <= Self::BYTES_MAX
            && name.bytes().next().is_some_and(plain)
            && name.bytes().all(|b| plain(b) || b == b'.');
        if fits { Ok(Self(name.into())) } else { Err(IdError::Collection(shortened(&name))) }
    }

    /// `default`, the collection of documents that nobody put anywhere else.
    #[must_use]
    pub fn unnamed() -> Self {
        Self("default".into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key under which the collection's rows are ordered.
    #[must_use]
    pub fn key(&self) -> CollectionKey {
        let mut hasher = blake3::Hasher::new_derive_key("tidelog collection");
        hasher.update(self.0.as_bytes());
        CollectionKey(first(hasher.finalize().as_bytes()))
    }
}

impl fmt::Display for CollectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CollectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for CollectionName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::new(text)
    }
}

/// The first 8 bytes of a keyed BLAKE3 of a collection's name: its place in ordered keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CollectionKey(pub [u8; 8]);

/// A node's or client's name: its Ed25519 public key, proven by the transport's handshake.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 32]);

/// RFC 4648 base32 in lower case and without padding.
pub(crate) fn encode_base32(bytes: &[u8]) -> String {
    data_encoding::BASE32_NOPAD_NOCASE.encode(bytes).to_ascii_lowercase()
}

/// Reads what [`encode_base32`] wrote, in either case; `None` for anything else.
pub(crate) fn decode_base32(text: &str) -> Option<Vec<u8>> {
    data_encoding::BASE32_NOPAD_NOCASE.decode(text.as_bytes()).ok()
}

/// Hexadecimal digits, in lower case.
pub(crate) fn encode_hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

impl NodeId {
    /// The first eight characters, for logs and tables.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode_base32(&self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let refused = || IdError::Node(shortened(text));
        if text.len() != 52 {
            return Err(refused());
        }
        let bytes = decode_base32(text).ok_or_else(refused)?;
        bytes.try_into().map(Self).map_err(|_| refused())
    }
}

/// The name of one node's log, drawn anew when its tail is proven lost or it is restored from a backup.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(pub [u8; 16]);

impl LogId {
    /// Draws a new id.
    #[must_use]
    pub fn random() -> Self {
        Self(random_bytes())
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl FromStr for LogId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        parse_hex(text).map(Self).ok_or_else(|| IdError::Log(shortened(text)))
    }
}

/// A log sequence number: the position of one record in one node's log.
///
/// Strictly increasing from 1 and never reused; the only gaps are block jumps after an unclean start, each named by
/// a `gap` record. Two numbers compare only within one [`LogId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before the first record.
    pub const ZERO: Self = Self(0);

    /// The next position.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A running digest of a log: equal at equal positions only when everything before is equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Chain(pub [u8; 16]);

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

/// How far a reader has followed one log: a position and the chain digest that proves which history led to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LogCursor {
    /// Whose log.
    pub log_id: LogId,
    /// The last record that was followed, the footer of a commit group.
    pub lsn: Lsn,
    /// The chain digest stored in that footer.
    pub chain: Chain,
}

/// The SHA-256 of one Automerge change: its name everywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChangeHash(pub [u8; 32]);

impl ChangeHash {
    /// The first eight digits, for logs and tables.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }
}

impl fmt::Display for ChangeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for ChangeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl FromStr for ChangeHash {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        parse_hex(text).map(Self).ok_or_else(|| IdError::Hash(shortened(text)))
    }
}

/// An author: Automerge's actor id, 1 to 64 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActorId(Box<[u8]>);

impl ActorId {
    /// The longest actor id, in bytes.
    pub const BYTES_MAX: usize = 64;

    /// Draws a new author, 16 random bytes.
    #[must_use]
    pub fn random() -> Self {
        Self(Box::new(random_bytes::<16>()))
    }

    /// Takes `bytes` as an actor id; `None` when there are none or more than [`Self::BYTES_MAX`].
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (1..=Self::BYTES_MAX).contains(&bytes.len()).then(|| Self(bytes.into()))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

/// The hashes that nothing follows, ascending and without repeats: which state a document is in.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Heads(Vec<ChangeHash>);

impl Heads {
    /// Sorts `hashes` and takes them.
    #[must_use]
    pub fn new(mut hashes: Vec<ChangeHash>) -> Self {
        hashes.sort_unstable();
        hashes.dedup();
        Self(hashes)
    }

    /// The hashes, ascending.
    #[must_use]
    pub fn as_slice(&self) -> &[ChangeHash] {
        &self.0
    }

    /// Whether there is no change at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Heads {
    /// Writes the hashes joined by commas, the form that [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, hash) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            fmt::Display::fmt(hash, f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Heads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

impl FromStr for Heads {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let hashes = text.split(',').filter(|part| !part.is_empty()).map(str::parse);
        Ok(Self::new(hashes.collect::<Result<_, _>>()?))
    }
}

/// Serialises an identifier as its text.
macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(DocumentId, CollectionName, NodeId, LogId, StorageId, ChangeHash, Heads);

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// As much of a text as has room in so many bytes.
pub(crate) fn truncated(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// At most 80 characters of what a user gave us, for an error message.
pub(crate) fn shortened(text: &str) -> String {
    let mut out: String = text.chars().take(80).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_id_prints_as_automerge_repo_prints_it_and_reads_back() {
        let id = DocumentId([0x2c; 16]);
        let text = id.to_string();
        assert!(text.starts_with("automerge:"));
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(text.trim_start_matches("automerge:").parse(), Ok(id));
        for wrong in ["", "automerge:", "automerge:xyz", "nothing at all", &format!("{text}1")] {
            assert!(wrong.parse::<DocumentId>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn named_documents_depend_on_collection_and_name_only() {
        let c = |name| CollectionName::new(name).unwrap();
        let id = DocumentId::named(&c("notes"), "config");
        assert_eq!(id, DocumentId::named(&c("notes"), "config"));
        assert_ne!(id, DocumentId::named(&c("note"), "sconfig"));
        assert_ne!(id, DocumentId::named(&c("notes"), "Config"));
        assert_eq!((id.0[6] >> 4, id.0[8] >> 6), (4, 2), "a version-4 UUID");
    }

    #[test]
    fn collection_names_are_checked() {
        for good in ["a", "messages", "A.b-c_d", "-x", "9"] {
            assert!(CollectionName::new(good).is_ok(), "{good}");
        }
        for wrong in ["", ".a", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(CollectionName::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn node_ids_are_52_characters_of_base32() {
        let id = NodeId([7; 32]);
        assert_eq!(id.to_string().len(), 52);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("a1f3".parse::<NodeId>().is_err());
    }

    #[test]
    fn heads_are_sorted_without_repeats_and_read_back() {
        let heads = Heads::new(vec![ChangeHash([2; 32]), ChangeHash([1; 32]), ChangeHash([2; 32])]);
        assert_eq!(heads.as_slice(), [ChangeHash([1; 32]), ChangeHash([2; 32])]);
        assert_eq!(heads.to_string().parse(), Ok(heads));
    }
}
