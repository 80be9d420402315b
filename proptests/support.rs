//! What the properties about whole databases share: small edits of every kind, rows read from one log for another, and
//! a plain Automerge document to hold everything against.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use automerge::marks::ExpandMark;
use automerge::{AutoSerde, Automerge};
use proptest::prelude::*;
use serde_json::{Value, json};
use tidelog::engine::{DocHandle, Incoming, IncomingBody};
use tidelog::history::{EntryKind, Origin, Reader};
use tidelog::id::ActorId;
use tidelog::log::record::Admission;
use tidelog::{Change, ChangeHash, Database, DocumentId, Edit, Heads, Limits, Lsn, NodeId};

/// So many cases, or as many as `PROPTEST_CASES` says. A failure prints its minimal input, which is all there is to it.
pub(crate) fn cases(count: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(count);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 400, ..ProptestConfig::default() }
}

/// The node with this number.
pub(crate) fn node(number: u8) -> NodeId {
    NodeId([number; 32])
}

/// Bounds so narrow that checkpoints, snapshots and evictions happen within a few edits.
pub(crate) fn narrow() -> Limits {
    let mut limits = Limits::default();
    limits.checkpoint_records = 24;
    limits.snapshot_tail_min = 6;
    limits.memory_budget = 1;
    limits.graph_budget = 1;
    limits.part_bytes = 64;
    limits
}

/// What every document begins with.
pub(crate) fn first_value() -> Value {
    json!({ "text": "", "list": [], "map": {}, "hits": { "$counter": 0 } })
}

/// One small edit: what, and two numbers that say where and how much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SmallEdit(pub(crate) u8, pub(crate) u16, pub(crate) u16);

/// Any of them.
pub(crate) fn small_edit() -> impl Strategy<Value = SmallEdit> {
    (0..13u8, any::<u16>(), any::<u16>()).prop_map(|(kind, at, value)| SmallEdit(kind, at, value))
}

impl SmallEdit {
    /// Does it. Where the document has no such place (any more), the edit sets a plain key instead, so that it is
    /// never without effect.
    pub(crate) fn run(self, edit: &mut Edit<'_>) {
        let Self(kind, at, value) = self;
        let (at, key) = (usize::from(at), format!("k{}", at % 4));
        let within = |length: Option<usize>| at % (length.unwrap_or(0) + 1);
        let text_len = edit.length("text").unwrap();
        let list_len = edit.length("list").unwrap();
        let done = match kind {
            0 | 1 => edit.splice("text", within(text_len), 0, ["tide", "é", "🌊 ", "x"][usize::from(value % 4)]),
            2 => {
                let from = within(text_len);
                let count = usize::from(value % 4).min(text_len.unwrap_or(0).saturating_sub(from));
                edit.splice("text", from, count, if value & 4 == 0 { "" } else { "yy" })
            }
            3 => edit.put(["map", &key], value),
            4 => edit.delete(["map", &key]).map(|_| ()),
            5 => edit.insert("list", within(list_len), value),
            6 => edit.delete(["list", &within(list_len).to_string()]).map(|_| ()),
            7 => edit.put(["list", &within(list_len).to_string()], json!({ "n": value })),
            8 => edit.increment("hits", i64::from(value) - 1000),
            9 => {
                let end = text_len.unwrap_or(0);
                let start = within(text_len);
                edit.mark("text", start..end.max(start), "bold", value % 2 == 0, ExpandMark::Both)
            }
            10 => edit.put(["map", "nested"], json!({ "deep": { "er": [value, "text", null, 1.5] } })),
            11 => edit.put("text", format!("another text {value}")),
            _ => edit.put("list", json!([value, true, "ß"])),
        };
        if done.is_err() {
            edit.put("flag", value).unwrap();
        }
    }
}

/// A document of Automerge's own, from changes in an order in which each comes after what it depends on.
pub(crate) fn plain<'a>(changes: impl IntoIterator<Item = &'a Change>) -> Automerge {
    let mut document = Automerge::new();
    let changes: Vec<_> = changes.into_iter().map(|change| change.as_automerge().clone()).collect();
    document.apply_changes(changes).unwrap();
    document
}

/// Its heads.
pub(crate) fn plain_heads(document: &Automerge) -> Heads {
    Heads::new(document.get_heads().iter().map(|hash| ChangeHash(hash.0)).collect())
}

/// Its value, as Automerge serialises it.
pub(crate) fn plain_json(document: &Automerge) -> Value {
    serde_json::to_value(AutoSerde::from(document)).unwrap()
}

/// Our JSON, with counters as plain numbers, as Automerge writes them.
pub(crate) fn without_counters(value: Value) -> Value {
    match value {
        Value::Object(mut map) if map.len() == 1 && map.contains_key("$counter") => map.remove("$counter").unwrap(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, without_counters(value))).collect(),
        Value::Array(values) => values.into_iter().map(without_counters).collect(),
        other => other,
    }
}

/// Every change in the document's view.
pub(crate) fn changes_in_view(handle: &DocHandle) -> Vec<Change> {
    let changes = handle.with_view(|view| Ok(view.document().get_changes(&[]))).unwrap();
    changes.into_iter().map(|change| Change::from_automerge(change).unwrap()).collect()
}

/// Every change of a document in the log, as its graph and its records have them.
pub(crate) fn logged_changes(reader: &Reader, document: DocumentId) -> BTreeMap<ChangeHash, Change> {
    let graph = reader.graph(document).unwrap();
    let graph = graph.lock().unwrap();
    let mut changes = BTreeMap::new();
    for index in graph.following(&[]) {
        let change = Change::parse(reader.change_bytes(graph.lsn_at(index)).unwrap()).unwrap();
        assert_eq!(change.hash(), graph.hash_at(index));
        assert!(changes.insert(change.hash(), change).is_none(), "a change is logged twice");
    }
    changes
}

/// Every row of a log after `after`, as it would be offered to another database, and the last footer.
pub(crate) fn rows_after(reader: &Reader, after: Lsn) -> Vec<Incoming> {
    let entries = reader.read_log(after, usize::MAX, usize::MAX).unwrap();
    entries
        .into_iter()
        .filter_map(|entry| match entry.kind {
            EntryKind::Change { document, origin, bytes, .. } => {
                let body = IncomingBody::Change(Box::new(Change::parse(bytes).unwrap()));
                Some(Incoming { document, body, origin, signature: None })
            }
            EntryKind::Lifecycle { document, origin, bytes, .. } => {
                Some(Incoming { document, body: IncomingBody::Lifecycle(bytes), origin, signature: None })
            }
            _ => None,
        })
        .collect()
}

/// Where rows of the node with this number come from.
pub(crate) fn origin(number: u8) -> Origin {
    Origin { node: node(number), principal: String::new(), admission: Admission::Structural, rules_version: 0 }
}

/// The author with this number.
pub(crate) fn actor(number: u64) -> ActorId {
    ActorId::new(&[&[0xaa; 8][..], &number.to_be_bytes()].concat()).unwrap()
}

/// A folder of bytes that are promised: one file for each name, as lines of hexadecimal digits.
pub(crate) struct Golden {
    folder: PathBuf,
    names: BTreeSet<String>,
}

impl Golden {
    /// The folder of this name below `proptests/golden`.
    pub(crate) fn new(folder: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("proptests/golden").join(folder);
        Self { folder, names: BTreeSet::new() }
    }

    /// These are the bytes. `UPDATE=1` writes the files that are not there yet.
    pub(crate) fn check(&mut self, name: &str, bytes: &[u8]) {
        let path = self.folder.join(format!("{name}.hex"));
        let mut hex = String::new();
        for line in bytes.chunks(32) {
            line.iter().for_each(|byte| write!(hex, "{byte:02x}").unwrap());
            hex.push('\n');
        }
        if std::env::var_os("UPDATE").is_some() && !path.exists() {
            std::fs::write(&path, &hex).unwrap();
        }
        let promised = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(hex, promised, "{name}: the format is a promise");
        assert!(self.names.insert(format!("{name}.hex")), "{name} is there twice");
    }

    /// Every file was checked.
    pub(crate) fn end(self) {
        let files =
            std::fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let strays: Vec<String> = files.filter(|name| !self.names.contains(name)).collect();
        assert!(strays.is_empty(), "{strays:?} belong to nothing");
    }
}

/// The database checks itself and finds nothing.
pub(crate) fn assert_whole(database: &Database) {
    let found = database.verify(true, &mut |_, _| {}).unwrap();
    assert!(found.faults.is_empty() && found.more_faults == 0, "{:#?}", found.faults);
}
