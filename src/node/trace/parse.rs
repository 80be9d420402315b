//! Reading a history's file.
//!
//! Two shapes are known. A sequential history is `{"startContent", "endContent", "txns": [{"time", "patches"}]}`, each
//! transaction following the one before. A concurrent one says `"kind": "concurrent"` and `"numAgents"`, and its
//! transactions have `"parents"` (indexes of earlier ones; none: the empty text) and an `"agent"`. A patch is
//! `[position, deleted, "inserted"]`, counted in Unicode code points. Both become a [`Trace`], a graph of transactions.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::error::Category;

use super::TraceError;
use super::time::seconds_since_1970;

/// The most JSON a history may inflate to, in bytes.
const JSON_BYTES_MAX: usize = 256 << 20;
/// The most transactions a history may have.
const TRANSACTIONS_MAX: usize = 10_000_000;

/// Whether a history forks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceKind {
    /// One author, each transaction on top of the one before.
    Sequential,
    /// A graph of transactions by several authors.
    Concurrent,
}

/// One editing history.
///
/// Invariant, kept by the parser and relied on by the builder (which checks it again): a transaction's parents are
/// earlier transactions and its agent is below [`Self::agents`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Whether it forks.
    pub kind: TraceKind,
    /// The text a sequential history begins with. When it is not empty, the first transaction inserts it.
    pub start_content: String,
    /// The text in the end, all branches merged.
    pub end_content: String,
    /// How many authors there are.
    pub agents: usize,
    /// The transactions, each after its parents.
    pub transactions: Vec<Transaction>,
}

/// One author's edits that were made together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// The transactions whose merge it starts from, ascending and without repeats; none: the empty text.
    pub parents: Vec<u32>,
    /// Who made it, from 0.
    pub agent: u32,
    /// When, in seconds since 1970; `None` when the history does not say, or not in RFC 3339.
    pub time: Option<i64>,
    /// What it does, each patch relative to the one before.
    pub patches: Vec<Patch>,
}

/// One edit. Positions and counts are Unicode code points.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Patch {
    /// Where.
    pub position: usize,
    /// How many characters are deleted there.
    pub deleted: usize,
    /// What is inserted in their place.
    pub inserted: String,
}

impl Trace {
    /// Reads the history at `path`, JSON or gzipped JSON, as its first bytes tell.
    ///
    /// # Errors
    /// [`TraceError`] when the file cannot be read, is too large (256 MiB of JSON, 10 million transactions), or holds
    /// something else than a history.
    ///
    /// # Cost
    /// The JSON is held in memory while it is parsed.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        let unreadable = |source| TraceError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(unreadable)?;
        if file.metadata().map_err(unreadable)?.is_dir() {
            return Err(TraceError::Directory(path.to_owned()));
        }
        let mut magic = Vec::new();
        file.by_ref().take(2).read_to_end(&mut magic).map_err(unreadable)?;
        let json = if magic == [0x1f, 0x8b] {
            let inflated = flate2::read::MultiGzDecoder::new(magic.as_slice().chain(file));
            read_at_most(inflated, JSON_BYTES_MAX).map_err(TraceError::Gzip)?
        } else {
            read_at_most(magic.as_slice().chain(file), JSON_BYTES_MAX).map_err(unreadable)?
        };
        let json = json.ok_or(TraceError::TooLarge { max: JSON_BYTES_MAX, unit: "bytes" })?;
        Self::parse(&json)
    }

    /// Parses the JSON of a history.
    ///
    /// # Errors
    /// [`TraceError`] when it is no JSON, no history, or one that contradicts itself.
    pub fn parse(json: &[u8]) -> Result<Self, TraceError> {
        let begins_with = json.iter().find(|byte| !byte.is_ascii_whitespace());
        let Some(begins_with) = begins_with else { return Err(TraceError::Empty) };
        if *begins_with != b'{' {
            serde_json::from_slice::<IgnoredAny>(json).map_err(json_error)?;
            return Err(TraceError::NotATrace("expected a JSON object".into()));
        }
        let raw: RawTrace = serde_json::from_slice(json).map_err(json_error)?;
        let Bounded(transactions) = raw.txns;
        let transactions = transactions.ok_or(TraceError::TooLarge { max: TRANSACTIONS_MAX, unit: "transactions" })?;
        match (raw.kind.as_deref(), raw.num_agents) {
            (Some("sequential"), _) | (None, None) => Ok(sequential(raw.start_content, raw.end_content, transactions)),
            (Some("concurrent") | None, Some(agents)) => {
                if !raw.start_content.is_empty() {
                    return Err(TraceError::NotATrace("a concurrent history cannot have a startContent".into()));
                }
                concurrent(agents, raw.end_content, transactions)
            }
            (Some("concurrent"), None) => Err(TraceError::NotATrace("missing field `numAgents`".into())),
            (Some(other), _) => Err(TraceError::NotATrace(format!("unknown kind {:?}", crate::id::shortened(other)))),
        }
    }

    /// A digest of what decides the text and its authors; equal for equal histories, however they are stored.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("tidelog 2026-11 trace digest");
        let mut bytes = Vec::new();
        let text = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        bytes.extend((self.agents as u64).to_le_bytes());
        text(&mut bytes, &self.end_content);
        for transaction in &self.transactions {
            bytes.extend((transaction.parents.len() as u64).to_le_bytes());
            transaction.parents.iter().for_each(|parent| bytes.extend(parent.to_le_bytes()));
            bytes.extend(transaction.agent.to_le_bytes());
            bytes.extend(transaction.time.unwrap_or(0).to_le_bytes());
            bytes.extend((transaction.patches.len() as u64).to_le_bytes());
            for patch in &transaction.patches {
                bytes.extend((patch.position as u64).to_le_bytes());
                bytes.extend((patch.deleted as u64).to_le_bytes());
                text(&mut bytes, &patch.inserted);
            }
            if bytes.len() >= 1 << 16 {
                hasher.update(&bytes);
                bytes.clear();
            }
        }
        *hasher.update(&bytes).finalize().as_bytes()
    }
}

/// All of `source`, or `None` when it has more than `max` bytes.
fn read_at_most(source: impl Read, max: usize) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    source.take(max as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= max).then_some(bytes))
}

fn json_error(error: serde_json::Error) -> TraceError {
    match error.classify() {
        Category::Data => TraceError::NotATrace(error.to_string()),
        Category::Syntax | Category::Eof | Category::Io => TraceError::NotJson(error.to_string()),
    }
}

/// Chains the transactions, the start content inserted before them.
fn sequential(start_content: String, end_content: String, raw: Vec<RawTransaction>) -> Trace {
    let mut transactions = Vec::with_capacity(raw.len() + 1);
    let mut push = |time, patches| {
        let parents = (transactions.len() as u32).checked_sub(1).into_iter().collect();
        transactions.push(Transaction { parents, agent: 0, time, patches });
    };
    if !start_content.is_empty() {
        let time = raw.first().and_then(|first| first.time.0);
        push(time, vec![Patch { position: 0, deleted: 0, inserted: start_content.clone() }]);
    }
    raw.into_iter().for_each(|transaction| push(transaction.time.0, transaction.patches));
    Trace { kind: TraceKind::Sequential, start_content, end_content, agents: 1, transactions }
}

fn concurrent(agents: u32, end_content: String, raw: Vec<RawTransaction>) -> Result<Trace, TraceError> {
    let mut transactions = Vec::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate() {
        let wrong = |reason: String| TraceError::Transaction { index, reason };
        let mut parents = raw.parents.ok_or_else(|| wrong("missing field `parents`".into()))?;
        parents.sort_unstable();
        parents.dedup();
        if let Some(parent) = parents.last().filter(|&&parent| parent as usize >= index) {
            return Err(wrong(format!("its parent {parent} is not an earlier transaction")));
        }
        let agent = raw.agent.ok_or_else(|| wrong("missing field `agent`".into()))?;
        if agent >= agents {
            return Err(wrong(format!("its agent {agent} is not below the {agents} there are")));
        }
        transactions.push(Transaction { parents, agent, time: raw.time.0, patches: raw.patches });
    }
    let kind = TraceKind::Concurrent;
    Ok(Trace { kind, start_content: String::new(), end_content, agents: agents as usize, transactions })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawTrace {
    kind: Option<String>,
    #[serde(default)]
    start_content: String,
    end_content: String,
    num_agents: Option<u32>,
    txns: Bounded<RawTransaction, TRANSACTIONS_MAX>,
}

#[derive(Deserialize)]
struct RawTransaction {
    parents: Option<Vec<u32>>,
    agent: Option<u32>,
    #[serde(default)]
    time: Seconds,
    patches: Vec<Patch>,
}

/// A list of at most `MAX`; `None` when it has more, which are skipped and not kept.
struct Bounded<T, const MAX: usize>(Option<Vec<T>>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
            type Value = Bounded<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of transactions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while items.len() < MAX {
                    match list.next_element()? {
                        Some(item) => items.push(item),
                        None => return Ok(Bounded(Some(items))),
                    }
                }
                let mut more = false;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    more = true;
                }
                Ok(Bounded((!more).then_some(items)))
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// A time as a history has it: RFC 3339, or anything else, which is no time.
#[derive(Default)]
struct Seconds(Option<i64>);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time as text, or null")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Seconds, E> {
                Ok(Seconds(seconds_since_1970(text)))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Seconds, E> {
                Ok(Seconds(None))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const SMALL: &str = r#"{"startContent":"ab","endContent":"aXb","txns":[
        {"time":"1970-01-01T00:00:07.5Z","patches":[[1,0,"X"]]},{"time":null,"patches":[]},{"patches":[[0,0,""]]}]}"#;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Trace, TraceError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Trace::read(file.path())
    }

    fn concurrent_with(transactions: &str) -> Result<Trace, TraceError> {
        let json = format!(r#"{{"kind":"concurrent","endContent":"","numAgents":2,"txns":[{transactions}]}}"#);
        Trace::parse(json.as_bytes())
    }

    #[test]
    fn a_sequential_history_is_a_chain_that_begins_with_its_start_content() {
        let plain = read(SMALL.as_bytes()).unwrap();
        assert_eq!(plain, read(&gzip(SMALL.as_bytes())).unwrap());
        assert_eq!((plain.kind, plain.agents, plain.end_content.as_str()), (TraceKind::Sequential, 1, "aXb"));
        let parents: Vec<_> = plain.transactions.iter().map(|transaction| &transaction.parents[..]).collect();
        assert_eq!(parents, [&[][..], &[0], &[1], &[2]]);
        let times: Vec<_> = plain.transactions.iter().map(|transaction| transaction.time).collect();
        assert_eq!(times, [Some(7), Some(7), None, None]);
        assert_eq!(plain.transactions[0].patches[0].inserted, "ab");
        assert_eq!(plain.transactions[1].patches[0], Patch { position: 1, deleted: 0, inserted: "X".into() });
    }

    #[test]
    fn a_concurrent_history_keeps_its_graph() {
        let trace = concurrent_with(
            r#"{"parents":[],"agent":1,"time":"","patches":[],"numChildren":1},{"parents":[0,0],"agent":0,"patches":[]}"#,
        )
        .unwrap();
        assert_eq!((trace.kind, trace.agents), (TraceKind::Concurrent, 2));
        assert_eq!((trace.transactions[0].agent, trace.transactions[0].time), (1, None));
        assert_eq!(trace.transactions[1].parents, [0]);
    }

    #[test]
    fn what_is_no_history_is_refused_with_its_reason() {
        let not_json: [&[u8]; 6] = [b"hello", b"{", b"{\"endContent\":\"", b"\xff\xfe", b"\x1f", b"[1,2"];
        for bytes in not_json {
            assert!(matches!(read(bytes), Err(TraceError::NotJson(_))), "{bytes:?}");
        }
        for bytes in [&b""[..], b" \n\t", &gzip(b"")] {
            assert!(matches!(read(bytes), Err(TraceError::Empty)), "{bytes:?}");
        }
        for (json, reason) in [
            ("[]", "expected a JSON object"),
            ("null", "expected a JSON object"),
            ("\"text\"", "expected a JSON object"),
            ("{}", "missing field `endContent`"),
            (r#"{"name":"tidelog","version":1}"#, "missing field `endContent`"),
            (r#"{"endContent":""}"#, "missing field `txns`"),
            (r#"{"endContent":"","txns":{}}"#, "a list of transactions"),
            (r#"{"endContent":"","txns":[7]}"#, "invalid type"),
            (r#"{"endContent":"","txns":[{}]}"#, "missing field `patches`"),
            (r#"{"endContent":"","txns":[{"patches":[[0,0]]}]}"#, "invalid length 2"),
            (r#"{"endContent":"","txns":[{"patches":[[-1,0,""]]}]}"#, "integer `-1`"),
            (r#"{"endContent":"","txns":[{"patches":[[0,1.5,""]]}]}"#, "floating point `1.5`"),
            (r#"{"endContent":"","txns":[{"patches":[[0,1,7]]}]}"#, "expected a string"),
            (r#"{"endContent":"","txns":[{"time":5,"patches":[]}]}"#, "a time as text"),
            (r#"{"endContent":"","kind":"circular","txns":[]}"#, "unknown kind \"circular\""),
            (r#"{"endContent":"","kind":"concurrent","txns":[]}"#, "missing field `numAgents`"),
            (r#"{"endContent":"","startContent":"a","numAgents":1,"txns":[]}"#, "startContent"),
        ] {
            match read(json.as_bytes()) {
                Err(TraceError::NotATrace(text)) => assert!(text.contains(reason), "{json}: {text}"),
                other => panic!("{json}: {other:?}"),
            }
        }
        let trailing = r#"{"endContent":"","txns":[{"patches":[[0,0,"",1]]}]}"#;
        assert!(read(trailing.as_bytes()).is_err(), "a patch of four");
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.json.gz");
        let error = Trace::read(&missing).unwrap_err();
        assert!(matches!(error, TraceError::Read { .. }) && error.to_string().contains("missing.json.gz"), "{error}");
        assert!(matches!(Trace::read(folder.path()), Err(TraceError::Directory(_))));
        let whole = gzip(SMALL.as_bytes());
        assert!(matches!(read(&whole[..whole.len() - 9]), Err(TraceError::Gzip(_))), "cut short");
        let mut damaged = whole;
        let middle = damaged.len() - 6;
        damaged[middle] ^= 1;
        assert!(matches!(read(&damaged), Err(TraceError::Gzip(_))), "a checksum that does not hold");
        assert!(matches!(read(b"\x1f\x8bnot gzip"), Err(TraceError::Gzip(_))));
    }

    #[test]
    fn transactions_that_contradict_the_earlier_ones_are_refused() {
        for (transactions, reason) in [
            (r#"{"parents":[0],"agent":0,"patches":[]}"#, "transaction 0: its parent 0 is not an earlier"),
            (r#"{"parents":[],"agent":0,"patches":[]},{"parents":[0,9],"agent":0,"patches":[]}"#, "transaction 1: its"),
            (r#"{"parents":[],"agent":2,"patches":[]}"#, "its agent 2 is not below the 2"),
            (r#"{"agent":1,"patches":[]}"#, "missing field `parents`"),
            (r#"{"parents":[],"patches":[]}"#, "missing field `agent`"),
        ] {
            let error = concurrent_with(transactions).unwrap_err();
            assert!(matches!(error, TraceError::Transaction { .. }), "{error:?}");
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn sizes_are_bounded_while_reading() {
        let bomb = gzip(&vec![b' '; 1 << 20]);
        let inflated = flate2::read::MultiGzDecoder::new(&bomb[..]);
        assert_eq!(read_at_most(inflated, (1 << 20) - 1).unwrap(), None);
        assert_eq!(read_at_most(&b"abc"[..], 3).unwrap().as_deref(), Some(&b"abc"[..]));
        let two: Bounded<u8, 2> = serde_json::from_str("[1,2]").unwrap();
        assert_eq!(two.0, Some(vec![1, 2]));
        let three: Bounded<u8, 2> = serde_json::from_str("[1,2,3]").unwrap();
        assert_eq!(three.0, None);
    }

    #[test]
    fn the_digest_is_of_the_content_not_of_the_file() {
        let one = read(SMALL.as_bytes()).unwrap();
        let mut other = Trace::parse(SMALL.replace("\n", "").as_bytes()).unwrap();
        assert_eq!(one.digest(), other.digest());
        other.transactions[1].patches[0].position = 2;
        assert_ne!(one.digest(), other.digest());
    }
}
