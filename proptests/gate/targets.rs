//! One function for each parser that reads what somebody else wrote. Each takes any bytes, returns, and panics only when
//! a promise is broken. The tests here and the targets of `fuzz/` call the same functions.

use std::str::FromStr;
use std::sync::OnceLock;

use automerge::transaction::Transactable;
use automerge::{AutoCommit, ObjType, ROOT, ScalarValue};
use tidelog::document::gate::{GateError, check_chunks, open_document};
use tidelog::document::{ChangeGraph, Node, View, ViewError, split, split_each};
use tidelog::id::LogCursor;
use tidelog::log::record::{Lifecycle, Record};
use tidelog::sync::gate::{read_message, split_chunks};
use tidelog::sync::wire::Frame;
use tidelog::{Change, ChangeHash, CollectionName, DocumentId, Heads, Limits, Lsn, NodeId};

/// How far bytes came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Passage {
    /// They did not pass the gate.
    Refused(GateError),
    /// They passed; automerge says that they are no change or document.
    Unopened(String),
    /// They were opened, and do not apply to the document.
    Unapplied(String),
    /// They were opened; automerge panicked when they were applied. The document is dropped.
    Caught(String),
    /// They applied, and the document can be read, saved and loaded.
    Applied,
    /// They applied, and then reading, saving or loading the document did not work.
    Poisoned(String),
}

/// A document to which changes are applied.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    saved: Vec<u8>,
    graph: ChangeGraph,
}

impl Ground {
    /// The document that was saved as `saved`.
    pub(crate) fn new(saved: Vec<u8>) -> Self {
        let mut graph = ChangeGraph::new();
        for change in split(&saved, &Limits::DEFAULT).expect("the ground is a document") {
            let next = Lsn(graph.last_lsn().0 + 1);
            graph.add(node(&change, next)).expect("its changes are in order");
        }
        Self { saved, graph }
    }
}

fn node(change: &Change, lsn: Lsn) -> Node<'_> {
    Node {
        hash: change.hash(),
        actor: change.actor(),
        seq: change.seq(),
        start_op: change.start_op(),
        op_count: change.op_count(),
        deps: change.deps(),
        lsn,
    }
}

/// A change or a document, on top of a small document of every kind.
pub(crate) fn gate(bytes: &[u8]) -> Passage {
    static GROUND: OnceLock<Ground> = OnceLock::new();
    gate_on(GROUND.get_or_init(|| Ground::new(base())), bytes)
}

/// A change or a document, on top of `ground`.
pub(crate) fn gate_on(ground: &Ground, bytes: &[u8]) -> Passage {
    let limits = Limits::DEFAULT;
    if let Err(error) = check_chunks(bytes, &limits) {
        // The same bytes are refused wherever they come in.
        assert!(Change::parse(bytes.to_vec()).is_err(), "{error} and yet a change");
        assert!(open_document(bytes, &limits).is_err(), "{error} and yet a document");
        assert!(split_each(bytes, &limits).faults > 0, "{error} and yet a whole file");
        return Passage::Refused(error);
    }
    if bytes.get(8) == Some(&0) {
        return match View::load(bytes) {
            Ok(mut view) => read_through(&mut view),
            Err(ViewError::Panicked(why)) => Passage::Caught(why),
            Err(error) => Passage::Unopened(error.to_string()),
        };
    }
    let change = match Change::parse(bytes.to_vec()) {
        Ok(change) => change,
        Err(error) => {
            let error = error.to_string();
            assert!(!error.contains("panicked"), "automerge panicked while parsing what passed the gate: {error}");
            return Passage::Unopened(error);
        }
    };
    if let Err(error) = ground.graph.check_next(&node(&change, Lsn(u64::MAX))) {
        return Passage::Unapplied(format!(
            "the change graph refuses it: {}",
            error.to_string().split(' ').next().unwrap_or("")
        ));
    }
    let mut view = View::load(&ground.saved).expect("the ground loads");
    match view.apply_proven(&[change], true) {
        Ok(_) => read_through(&mut view),
        Err(ViewError::Panicked(why)) => Passage::Caught(why),
        Err(ViewError::Unreproducible(_)) => Passage::Unapplied("it refers to what is not there".into()),
        Err(ViewError::ReplayMismatch { .. }) => Passage::Unapplied("it was replayed as another one".into()),
        Err(error) => Passage::Unapplied(error.to_string()),
    }
}

/// Reads, saves and loads a document.
fn read_through(view: &mut View) -> Passage {
    let read = view.to_json().map(|_| ()).and_then(|()| view.save()).and_then(|saved| View::load(&saved));
    match read {
        Ok(again) if again.heads() == view.heads() => Passage::Applied,
        Ok(_) => Passage::Poisoned("it has other heads when it is loaded again".into()),
        Err(error) => Passage::Poisoned(error.to_string()),
    }
}

/// A document with one of everything.
pub(crate) fn base() -> Vec<u8> {
    let mut doc = AutoCommit::new().with_actor(automerge::ActorId::from([0xaa; 16]));
    let text = doc.put_object(ROOT, "text", ObjType::Text).unwrap();
    let list = doc.put_object(ROOT, "list", ObjType::List).unwrap();
    doc.put_object(ROOT, "map", ObjType::Map).unwrap();
    doc.put(ROOT, "hits", ScalarValue::counter(3)).unwrap();
    doc.splice_text(&text, 0, 0, "tide").unwrap();
    doc.insert(&list, 0, 1).unwrap();
    doc.commit();
    doc.save()
}

/// A frame of our protocol.
pub(crate) fn frame(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(bytes)
        && !matches!(frame, Frame::Skipped(_))
    {
        // A number may have come in a longer form; what is written of it is read as the same.
        let again = frame.encode().expect("what was read can be written");
        let back = Frame::decode(&again).expect("what was written can be read");
        assert_eq!(back.encode().expect("and written"), again);
    }
}

/// A sync message of automerge, and chunks that stand one behind the other.
pub(crate) fn sync_message(bytes: &[u8]) {
    let _ = read_message(bytes);
    let _ = split_chunks(bytes);
}

/// A record of the log, and a lifecycle statement.
pub(crate) fn record(bytes: &[u8]) {
    let _ = Record::decode(Lsn(1), bytes, tidelog::id::Chain::default());
    if let Ok(said) = Lifecycle::decode(bytes) {
        assert_eq!(said.encode(), bytes);
    }
}

/// Everything that is an identifier, cursor, heads, path or name as text.
pub(crate) fn text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = DocumentId::from_str(text);
    let _ = NodeId::from_str(text);
    let _ = ChangeHash::from_str(text);
    let _ = Heads::from_str(text);
    let _ = CollectionName::from_str(text);
    let _ = tidelog::Path::from_str(text);
    if let Ok(id) = tidelog::StorageId::from_str(text) {
        assert_eq!(id.to_string(), text);
    }
    #[cfg(feature = "quic")]
    {
        let _ = tidelog::net::Ticket::from_str(text);
        let _ = tidelog::net::Invite::from_str(text);
    }
}

/// A cursor, as the store and peers keep it.
pub(crate) fn cursor(bytes: &[u8]) {
    use tidelog::log::Keyspace;
    use tidelog::log::rows::{PeerRow, decode_row, encode_row};
    if let Ok(row) = decode_row::<PeerRow>(Keyspace::State, b"p", bytes) {
        let again = encode_row(Keyspace::State, b"p", &row);
        assert_eq!(decode_row::<PeerRow>(Keyspace::State, b"p", &again).as_ref(), Ok(&row));
        let _ = LogCursor {
            log_id: tidelog::id::LogId(row.log_id),
            lsn: Lsn(row.lsn),
            chain: tidelog::id::Chain(row.chain),
        };
    }
}

/// A recorded editing history.
#[cfg(feature = "node")]
pub(crate) fn trace(bytes: &[u8]) {
    let _ = tidelog::node::trace::Trace::parse(bytes);
}
