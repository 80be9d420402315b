//! The codec of the log: its bytes are a promise, and no byte of a stranger's makes it panic.

use proptest::collection::vec;
use proptest::prelude::*;
use tidelog::id::{ActorId, Chain, ChangeHash};
use tidelog::log::Keyspace;
use tidelog::log::record::{
    Admission, AllowedHeader, AttributedHeader, ChangeHeader, Claims, CreationRank, FooterHeader, GapHeader, Lifecycle,
    LifecycleHeader, LifecycleKind, NameHeader, NameKind, Record, RefusedHeader, RefusedReason, RefusedWhat, RulePlace,
    RulesHeader, SubjectHeader, VoidHeader, WithdrawnHeader, WithheldHeader, WriteKind, payload_digest,
};
use tidelog::log::rows::{
    DocumentRow, HeadRow, IndexRow, NameRow, PeerRow, ProjectionRow, RefusedOrderRow, RefusedRow, RulesRow,
    SignatureRow, SnapshotRef, SnapshotRow, StatementRow, VoidsRow, WithheldRow, decode_row, encode_row,
};
use tidelog::{CollectionName, DocumentId, Heads, Lsn, NodeId};

use crate::support::{Golden, cases};

const AT: Lsn = Lsn(0x0102_0304);

fn change_header() -> ChangeHeader {
    ChangeHeader {
        document: [1; 16],
        collection: 2,
        hash: [3; 32],
        actor: 4,
        seq: 5,
        start_op: 300,
        op_count: 70_000,
        deps: vec![1, 251, 65_536, 1 << 33],
        heads_before: Some(vec![1, 2]),
        time: -1,
        received_ms: 1_700_000_000_000,
        origin: 6,
        via: 7,
        principal: 8,
        admission: Admission::Structural,
        rules_version: 9,
        payload_digest: payload_digest(b"chunk"),
    }
}

fn lifecycle() -> Lifecycle {
    Lifecycle {
        document: DocumentId([1; 16]),
        collection: CollectionName::new("notes").unwrap(),
        kind: LifecycleKind::Restored,
        rank: CreationRank::Path,
        lamport: 300,
        author: NodeId([2; 32]),
        actor: ActorId::new(&[3; 16]),
        time_ms: 1_700_000_000_000,
        heads: Heads::new(vec![ChangeHash([4; 32]), ChangeHash([5; 32])]),
        name: Some("config".into()),
    }
}

fn records() -> Vec<(&'static str, Record)> {
    let bytes = lifecycle().encode();
    let header = LifecycleHeader {
        document: [1; 16],
        collection: 2,
        received_ms: 3,
        origin: 4,
        via: 5,
        payload_digest: payload_digest(&bytes),
    };
    vec![
        ("record_change", Record::Change(change_header(), b"chunk".to_vec())),
        ("record_lifecycle", Record::Lifecycle(header, bytes)),
        (
            "record_name",
            Record::Name(NameHeader { kind: NameKind::Collection, reference: 300, bytes: b"notes".to_vec() }),
        ),
        (
            "record_footer",
            Record::Footer(FooterHeader { first: 1 << 20, chain: [7; 16], written_ms: 1_700_000_000_000 }),
        ),
        ("record_gap", Record::Gap(GapHeader { last: 251 })),
        ("record_checkpoint", Record::Checkpoint),
        (
            "record_void",
            Record::Void(VoidHeader {
                document: [1; 16],
                change: 300,
                automerge: "0.12.0".into(),
                why: "panic: é".into(),
                received_ms: 1_700_000_000_000,
            }),
        ),
        (
            "record_withdrawn",
            Record::Withdrawn(WithdrawnHeader {
                document: [1; 16],
                winner: [2; 32],
                actor: 3,
                seq: 4,
                via: 5,
                received_ms: 6,
                changes: vec![300, 7],
            }),
        ),
        (
            "record_withheld",
            Record::Withheld(WithheldHeader { document: [1; 16], withheld: true, via: 2, received_ms: 3 }),
        ),
        (
            "record_refused_change",
            refused(RefusedWhat::Change { hash: [2; 32], actor: vec![3; 16], seq: 4, bytes: 70_000, kept: true }),
        ),
        ("record_refused_statement", refused(RefusedWhat::Statement(1))),
        ("record_refused_edit", refused(RefusedWhat::Edit)),
        ("record_refused_more", refused(RefusedWhat::More(300))),
        ("record_subject", subject(Claims::Known(r#"{"team":"red"}"#.into()))),
        ("record_subject_as", subject(Claims::As(300))),
        ("record_subject_too_long", subject(Claims::TooLong([4; 16]))),
        ("record_attributed", Record::Attributed(AttributedHeader { statement: 1, principal: 300, rules_version: 5 })),
        (
            "record_rules",
            Record::Rules(RulesHeader {
                version: 70_000,
                digest: [4; 32],
                received_ms: 1_700_000_000_000,
                text: "match /é/{id} { allow write; }\n".into(),
            }),
        ),
        ("record_allowed", allowed(Some(RulePlace { line: 300, path: "/notes/{id}".into() }))),
        ("record_allowed_unknown", allowed(None)),
    ]
}

fn allowed(rule: Option<RulePlace>) -> Record {
    Record::Allowed(AllowedHeader {
        principal: 300,
        collection: 2,
        operation: WriteKind::Delete,
        rules_version: 70_000,
        rule,
    })
}

fn refused(what: RefusedWhat) -> Record {
    Record::Refused(RefusedHeader {
        document: [1; 16],
        collection: "notes".into(),
        name: Some("config".into()),
        what,
        operation: WriteKind::Update,
        principal: 300,
        reason: RefusedReason::Failed as u8,
        rules: vec![RulePlace { line: 3, path: "/notes/{id}".into() }],
        detail: "no é".into(),
        rules_version: 70_000,
        via: 5,
        received_ms: 1_700_000_000_000,
    })
}

fn subject(claims: Claims) -> Record {
    Record::Subject(SubjectHeader { principal: 2, claims, received_ms: 1_700_000_000_000 })
}

fn document_row() -> DocumentRow {
    let statement = |kind| StatementRow { id: [9; 32], lsn: 300, rank: 1, lamport: 2, kind };
    DocumentRow {
        last_lsn: 1 << 20,
        created_lsn: 3,
        collection: 2,
        collection_key: [4; 8],
        name: Some("config".into()),
        heads: vec![HeadRow { hash: [5; 32], lsn: 6, max_op: 7 }],
        change_count: 8,
        change_bytes: 70_000,
        max_op: 9,
        clock: Some(vec![(1, 2), (3, 400)]),
        creation: Some(statement(0)),
        winner: Some(statement(1)),
        snapshot: Some(SnapshotRef { lsn: 1, bytes: 2, changes: 3 }),
        generation: 10,
        withdrawals: 11,
        voids: Some(VoidsRow { automerge: "0.12.0".into(), changes: 12, first: 300 }),
        withheld: Some(WithheldRow { lsn: 301, withheld: true }),
    }
}

/// Calls `$check` with each golden row: name, keyspace, row.
macro_rules! each_row {
    ($check:ident) => {
        $check!("row_document", Keyspace::Docs, document_row());
        $check!("row_index_lifecycle", Keyspace::DocIx, IndexRow::Lifecycle([1; 32]));
        $check!(
            "row_index_change",
            Keyspace::DocIx,
            IndexRow::Change { hash: [1; 32], actor: 2, seq: 3, start_op: 4, op_count: 500, deps: vec![1, 300] }
        );
        $check!("row_index_withdrawn", Keyspace::DocIx, IndexRow::Withdrawn { winner: [1; 32], changes: 300 });
        $check!("row_index_void", Keyspace::DocIx, IndexRow::Void { change: 300, automerge: "0.12.0".into() });
        $check!("row_index_withheld", Keyspace::DocIx, IndexRow::Withheld(true));
        $check!("row_peer", Keyspace::State, PeerRow { log_id: [1; 16], lsn: 300, chain: [2; 16] });
        $check!("row_name", Keyspace::State, NameRow { kind: NameKind::Actor, bytes: vec![1; 16] });
        $check!("row_projection", Keyspace::State, ProjectionRow { layout: 1, rebuilding: Some(300) });
        $check!(
            "row_snapshot",
            Keyspace::Snap,
            SnapshotRow { heads: vec![[1; 32]], changes: 2, bytes: 70_000, digest: [3; 32], parts: 4 }
        );
        $check!(
            "row_refused",
            Keyspace::Held,
            RefusedRow { number: 1, lsn: 300, principal: 2, rules_version: 70_000, chunk: b"chunk".to_vec() }
        );
        $check!("row_signature", Keyspace::Held, SignatureRow { signature: [5; 64] });
        $check!("row_refused_order", Keyspace::Held, RefusedOrderRow { hash: [1; 32], bytes: 300 });
        $check!("row_rules", Keyspace::State, RulesRow { lsn: 300, digest: [1; 32] });
    };
}

const KEY: &[u8] = b"key";

#[test]
fn records_rows_and_statements_have_the_bytes_that_were_promised() {
    let mut promised = Golden::new("log");
    for (name, record) in records() {
        let (bytes, chain) = record.encode(AT, Chain([6; 16]));
        promised.check(name, &[&bytes[..], &chain.0].concat());
        assert_eq!(Record::decode(AT, &bytes, Chain([6; 16])), Ok((record, chain)));
    }
    promised.check("lifecycle", &lifecycle().encode());
    assert_eq!(Lifecycle::decode(&lifecycle().encode()), Ok(lifecycle()));
    macro_rules! check {
        ($name:literal, $keyspace:expr, $row:expr) => {
            let row = $row;
            let bytes = encode_row($keyspace, KEY, &row);
            promised.check($name, &bytes);
            assert_eq!(decode_row($keyspace, KEY, &bytes), Ok(row));
        };
    }
    each_row!(check);
    promised.end();
}

/// The headers in another codec.
mod mirror {
    use wincode::{SchemaRead, SchemaWrite};

    #[derive(SchemaWrite, SchemaRead, Debug, PartialEq)]
    pub(super) struct Change(
        pub(super) [u8; 16],
        pub(super) u32,
        pub(super) [u8; 32],
        pub(super) u32,
        pub(super) u64,
        pub(super) u64,
        pub(super) u64,
        pub(super) Vec<u64>,
        pub(super) Option<Vec<u64>>,
        pub(super) i64,
        pub(super) u64,
        pub(super) u32,
        pub(super) u32,
        pub(super) u32,
        pub(super) Admission,
        pub(super) u32,
        pub(super) [u8; 16],
    );

    #[derive(SchemaWrite, SchemaRead, Debug, PartialEq)]
    pub(super) enum Admission {
        Local,
        Structural,
        Full,
    }

    #[derive(SchemaWrite, SchemaRead, Debug, PartialEq)]
    pub(super) struct Footer(pub(super) u64, pub(super) [u8; 16], pub(super) u64);
}

fn change_record() -> impl Strategy<Value = ChangeHeader> {
    let numbers = || vec(any::<u64>(), 0..5);
    let parts =
        (any::<[u8; 16]>(), any::<u32>(), any::<[u8; 32]>(), any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>());
    let more = (
        numbers(),
        prop::option::of(numbers()),
        any::<i64>(),
        any::<u64>(),
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        0..3u8,
    );
    (parts, more, any::<u32>(), any::<[u8; 16]>()).prop_map(|(a, b, rules_version, payload_digest)| ChangeHeader {
        document: a.0,
        collection: a.1,
        hash: a.2,
        actor: a.3,
        seq: a.4,
        start_op: a.5,
        op_count: a.6,
        deps: b.0,
        heads_before: b.1,
        time: b.2,
        received_ms: b.3,
        origin: b.4,
        via: b.5,
        principal: b.6,
        admission: [Admission::Local, Admission::Structural, Admission::Full][usize::from(b.7)],
        rules_version,
        payload_digest,
    })
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn change_headers_are_what_another_codec_writes(header in change_record(), payload in vec(any::<u8>(), 0..40)) {
        let h = header.clone();
        let admission = match h.admission {
            Admission::Local => mirror::Admission::Local,
            Admission::Structural => mirror::Admission::Structural,
            Admission::Full => mirror::Admission::Full,
        };
        let other = mirror::Change(
            h.document, h.collection, h.hash, h.actor, h.seq, h.start_op, h.op_count, h.deps, h.heads_before, h.time,
            h.received_ms, h.origin, h.via, h.principal, admission, h.rules_version, h.payload_digest,
        );
        let config = wincode::config::Configuration::default().with_varint_encoding();
        let written = wincode::config::serialize(&other, config).unwrap();
        let record = Record::Change(header, payload.clone());
        let (bytes, chain) = record.encode(AT, Chain::default());
        prop_assert_eq!(&bytes[12..12 + written.len()], &written[..]);
        prop_assert_eq!(&bytes[12 + written.len()..bytes.len() - 16], &payload[..]);
        prop_assert_eq!(Record::decode(AT, &bytes, Chain::default()), Ok((record, chain)));
    }

    #[test]
    fn footers_are_what_another_codec_writes(first in any::<u64>(), chain in any::<[u8; 16]>(), written_ms in any::<u64>()) {
        let config = wincode::config::Configuration::default().with_varint_encoding();
        let written = wincode::config::serialize(&mirror::Footer(first, chain, written_ms), config).unwrap();
        let (bytes, _) = Record::Footer(FooterHeader { first, chain, written_ms }).encode(AT, Chain::default());
        prop_assert_eq!(&bytes[12..bytes.len() - 16], &written[..]);
    }

    #[test]
    fn no_bytes_make_the_codec_panic(bytes in vec(any::<u8>(), 0..300), kind in 0..20u8) {
        let _ = Record::read(AT, &bytes);
        let _ = Lifecycle::decode(&bytes);
        let _ = Lifecycle::decode(&[&[1], &bytes[..]].concat());
        let _ = decode_row::<DocumentRow>(Keyspace::Docs, KEY, &bytes);
        // With a true frame and checksum, so that the header's own decoder is reached.
        let mut framed = vec![1, kind, 0, 0];
        framed.extend((bytes.len() as u32).to_le_bytes());
        framed.extend(0u32.to_le_bytes());
        framed.extend(&bytes);
        let mut hashed = AT.0.to_be_bytes().to_vec();
        hashed.extend(&framed);
        framed.extend(xxhash_rust::xxh3::xxh3_128(&hashed).to_le_bytes());
        if let Ok(record) = Record::read(AT, &framed) {
            let (again, _) = record.encode(AT, Chain::default());
            prop_assert_eq!(Record::read(AT, &again), Ok(record));
        }
    }

    #[test]
    fn no_change_of_a_good_row_is_taken(at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<prop::sample::Index>()) {
        macro_rules! check {
            ($name:literal, $keyspace:expr, $row:expr) => {
                let row = $row;
                let bytes = encode_row($keyspace, KEY, &row);
                let mut changed = bytes.clone();
                changed[at.index(bytes.len())] = with;
                prop_assert_eq!(decode_row($keyspace, KEY, &changed).ok(), (changed == bytes).then_some(row));
                prop_assert!(decode_row::<DocumentRow>($keyspace, KEY, &bytes[..cut.index(bytes.len())]).is_err());
            };
        }
        each_row!(check);
    }

    #[test]
    fn a_changed_statement_is_another_statement_or_none(at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let bytes = lifecycle().encode();
        let mut changed = bytes.clone();
        changed[at.index(bytes.len())] = with;
        if let Ok(said) = Lifecycle::decode(&changed) {
            prop_assert_eq!(said.encode(), changed.clone());
            prop_assert_eq!(said == lifecycle(), changed == bytes);
        }
    }
}
