//! The wire codec: written as promised, read back as written, and deaf to garbage.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tidelog::id::{Chain, ChangeHash, DocumentId, Heads, LogCursor, LogId, Lsn, NodeId};
use tidelog::sync::wire::{
    Access, Ack, Attestations, Attested, Auth, Author, Authors, Busy, ChangeBatch, Denied, DeniedRow, DocSync,
    DocumentBatch, Frame, Hello, HelloAck, Inventory, InventoryRow, Judgement, Listing, Origin, Outcome, Part,
    Position, Role, Row, RowKind, StreamBegin, StreamPart, TakenBack, Token, Want, Wanted,
};

use crate::support::Golden;

/// The same bodies in another codec, with nothing but arrays, integers, lists and options.
mod mirror {
    use wincode::{SchemaRead, SchemaWrite};

    macro_rules! bodies {
        ($($(#[$meta:meta])* struct $name:ident($($field:ty),* $(,)?);)*) => {$(
            #[derive(Debug, PartialEq, SchemaWrite, SchemaRead)]
            pub(super) struct $name($(pub(super) $field),*);
        )*};
    }

    bodies! {
        struct Cursor([u8; 16], u64, [u8; 16]);
        struct Position(u64, [u8; 16]);
        struct Hello([u8; 32], [u8; 16], Position, u64, String, Option<[u8; 16]>, Option<Cursor>);
        struct HelloAck(Judgement, Role);
        struct Origin([u8; 32], String, u8, u32);
        struct Row(u8, u8, u32, u32, Vec<u8>);
        struct ChangeBatch(u64, Vec<[u8; 16]>, Vec<Origin>, Vec<u8>, Vec<Row>, Option<Position>);
        struct Ack(u64);
        struct InventoryRow([u8; 16], [u8; 16]);
        struct Inventory(u64, Option<u64>, Vec<InventoryRow>, bool, Position);
        struct Wanted([u8; 16], Vec<[u8; 32]>);
        struct Want(u64, Vec<Wanted>);
        struct DocumentBatch([u8; 16], Vec<Origin>, Vec<Row>, Option<u64>, Vec<[u8; 32]>, u8);
        struct DocSync([u8; 16], Vec<Vec<u8>>, Vec<u8>, bool);
        struct Bytes(Vec<u8>);
        struct Busy(u32);
        struct StreamBegin(u64, [u8; 16], u64, u64, Vec<[u8; 32]>);
        struct Auth(String);
        struct Access(u8, Vec<[u8; 16]>);
        struct DeniedRow([u8; 16], Option<[u8; 32]>, bool, String);
        struct Denied(Vec<DeniedRow>);
        struct Author(Vec<u8>, u32);
        struct Authors([u8; 16], Vec<Origin>, Vec<Author>);
        struct Attested(u32, u32, Vec<u8>, [u8; 32], [u8; 64]);
        struct Attestations(Vec<[u8; 16]>, Vec<Origin>, Vec<Attested>);
        struct TakenBack(u64);
    }

    #[derive(Debug, PartialEq, SchemaWrite, SchemaRead)]
    pub(super) enum Judgement {
        Known,
        Unknown,
        Diverged(u64),
    }

    #[derive(Debug, PartialEq, SchemaWrite, SchemaRead)]
    pub(super) enum Role {
        Node,
        Client,
    }
}

/// The frame's body as wincode writes it.
fn written_by_wincode(frame: &Frame) -> Vec<u8> {
    macro_rules! write {
        ($body:expr) => {
            wincode::config::serialize(&$body, wincode::config::Configuration::default().with_varint_encoding())
                .expect("wincode writes every body")
        };
    }
    let position = |at: &Position| mirror::Position(at.lsn.0, at.chain.0);
    let heads = |heads: &Heads| heads.as_slice().iter().map(|hash| hash.0).collect::<Vec<_>>();
    let origins = |origins: &[Origin]| -> Vec<mirror::Origin> {
        origins.iter().map(|o| mirror::Origin(o.node.0, o.principal.clone(), o.admission, o.rules_version)).collect()
    };
    let rows = |rows: &[Row]| -> Vec<mirror::Row> {
        let row = |r: &Row| mirror::Row(r.kind as u8, r.flags, r.document, r.origin, r.bytes.clone());
        rows.iter().map(row).collect()
    };
    match frame {
        Frame::Hello(b) => write!(mirror::Hello(
            b.node.0,
            b.log_id.0,
            position(&b.tail),
            b.capabilities,
            b.agent.clone(),
            b.invite,
            b.cursor.map(|c| mirror::Cursor(c.log_id.0, c.lsn.0, c.chain.0)),
        )),
        Frame::HelloAck(b) => write!(mirror::HelloAck(
            match b.judgement {
                Judgement::Known => mirror::Judgement::Known,
                Judgement::Unknown => mirror::Judgement::Unknown,
                Judgement::Diverged { lsn } => mirror::Judgement::Diverged(lsn.0),
            },
            if b.role == Role::Node { mirror::Role::Node } else { mirror::Role::Client },
        )),
        Frame::ChangeBatch(b) => write!(mirror::ChangeBatch(
            b.number,
            b.documents.iter().map(|d| d.0).collect(),
            origins(&b.origins),
            b.attestation.clone(),
            rows(&b.rows),
            b.end.as_ref().map(position),
        )),
        Frame::Ack(b) => write!(mirror::Ack(b.number)),
        Frame::Inventory(b) => write!(mirror::Inventory(
            b.page,
            b.since.map(|lsn| lsn.0),
            b.rows.iter().map(|r| mirror::InventoryRow(r.document.0, r.digest)).collect(),
            b.done,
            position(&b.at),
        )),
        Frame::Want(b) => write!(mirror::Want(
            b.page,
            b.documents.iter().map(|w| mirror::Wanted(w.document.0, heads(&w.heads))).collect(),
        )),
        Frame::DocumentBatch(b) => write!(mirror::DocumentBatch(
            b.document.0,
            origins(&b.origins),
            rows(&b.rows),
            b.streamed,
            heads(&b.heads),
            b.outcome as u8,
        )),
        Frame::DocSync(b) => {
            write!(mirror::DocSync(b.document.0, b.lifecycle.clone(), b.message.clone(), b.more))
        }
        Frame::Part(b) => write!(mirror::Bytes(b.bytes.clone())),
        Frame::Busy(b) => write!(mirror::Busy(b.retry_after_ms)),
        Frame::StreamBegin(b) => {
            write!(mirror::StreamBegin(b.id, b.document.0, b.bytes, b.covers.0, heads(&b.heads)))
        }
        Frame::StreamPart(b) => write!(mirror::Bytes(b.bytes.clone())),
        Frame::Auth(b) => write!(mirror::Auth(b.token.0.clone())),
        Frame::Access(b) => write!(mirror::Access(b.listing as u8, b.withheld.iter().map(|d| d.0).collect())),
        Frame::Denied(b) => write!(mirror::Denied(
            b.rows
                .iter()
                .map(|r| mirror::DeniedRow(r.document.0, r.change.map(|hash| hash.0), r.is_behind, r.why.clone()))
                .collect(),
        )),
        Frame::Authors(b) => write!(mirror::Authors(
            b.document.0,
            origins(&b.origins),
            b.authors.iter().map(|author| mirror::Author(author.actor.clone(), author.origin)).collect(),
        )),
        Frame::Attestations(b) => write!(mirror::Attestations(
            b.documents.iter().map(|d| d.0).collect(),
            origins(&b.origins),
            b.authors
                .iter()
                .map(|a| mirror::Attested(a.document, a.origin, a.actor.clone(), a.first.0, a.signature))
                .collect(),
        )),
        Frame::TakenBack(b) => write!(mirror::TakenBack(b.rows)),
        other => panic!("{other:?} has no body"),
    }
}

fn bytes(length: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..length)
}

fn position() -> impl Strategy<Value = Position> {
    (any::<u64>(), any::<[u8; 16]>()).prop_map(|(lsn, chain)| Position { lsn: Lsn(lsn), chain: Chain(chain) })
}

fn heads() -> impl Strategy<Value = Heads> {
    vec(any::<[u8; 32]>().prop_map(ChangeHash), 0..4).prop_map(Heads::new)
}

fn document() -> impl Strategy<Value = DocumentId> {
    any::<[u8; 16]>().prop_map(DocumentId)
}

fn origin() -> impl Strategy<Value = Origin> {
    (any::<[u8; 32]>(), ".{0,20}", 0_u8..3, any::<u32>()).prop_map(|(node, principal, admission, rules_version)| {
        Origin { node: NodeId(node), principal, admission, rules_version }
    })
}

/// Rows that name one of so many documents and origins.
fn rows(documents: usize, origins: usize) -> impl Strategy<Value = Vec<Row>> {
    let kind = prop_oneof![Just(RowKind::Change), Just(RowKind::Lifecycle)];
    let row = (kind, 0..documents.max(1) as u32, 0..origins.max(1) as u32, bytes(300))
        .prop_map(|(kind, document, origin, bytes)| Row { kind, flags: 0, document, origin, bytes });
    vec(row, 0..if documents == 0 || origins == 0 { 1 } else { 6 })
}

fn hello() -> impl Strategy<Value = Frame> {
    let cursor = (any::<[u8; 16]>(), position()).prop_map(|(log, at)| LogCursor {
        log_id: LogId(log),
        lsn: at.lsn,
        chain: at.chain,
    });
    let names = (any::<[u8; 32]>(), any::<[u8; 16]>(), "[a-z0-9/.]{0,64}");
    (names, position(), any::<u64>(), option::of(any::<[u8; 16]>()), option::of(cursor)).prop_map(
        |((node, log, agent), tail, capabilities, invite, cursor)| {
            Frame::Hello(Hello { node: NodeId(node), log_id: LogId(log), tail, capabilities, agent, invite, cursor })
        },
    )
}

fn change_batch() -> impl Strategy<Value = Frame> {
    (vec(document(), 0..4), vec(origin(), 0..3)).prop_flat_map(|(documents, origins)| {
        let rows = rows(documents.len(), origins.len());
        (Just(documents), Just(origins), rows, any::<u64>(), bytes(70), option::of(position())).prop_map(
            |(documents, origins, rows, number, attestation, end)| {
                Frame::ChangeBatch(ChangeBatch { number, documents, origins, attestation, rows, end })
            },
        )
    })
}

fn document_batch() -> impl Strategy<Value = Frame> {
    let outcome = prop_oneof![
        Just(Outcome::More),
        Just(Outcome::Complete),
        Just(Outcome::Exchange),
        Just(Outcome::UnknownDocument)
    ];
    (vec(origin(), 0..3), outcome).prop_flat_map(|(origins, outcome)| {
        let rows = rows(1, origins.len());
        (document(), Just(origins), rows, option::of(any::<u64>()), heads(), Just(outcome)).prop_map(
            |(document, origins, rows, streamed, heads, outcome)| {
                Frame::DocumentBatch(DocumentBatch { document, origins, rows, streamed, heads, outcome })
            },
        )
    })
}

fn authors() -> impl Strategy<Value = Frame> {
    vec(origin(), 1..3).prop_flat_map(|origins| {
        let author = (vec(any::<u8>(), 1..65), 0..origins.len() as u32);
        let author = author.prop_map(|(actor, origin)| Author { actor, origin });
        (document(), Just(origins), vec(author, 0..5))
            .prop_map(|(document, origins, authors)| Frame::Authors(Authors { document, origins, authors }))
    })
}

fn attestations() -> impl Strategy<Value = Frame> {
    (vec(document(), 1..3), vec(origin(), 1..3)).prop_flat_map(|(documents, origins)| {
        let places = (0..documents.len() as u32, 0..origins.len() as u32);
        let signature = vec(any::<u8>(), 64).prop_map(|bytes| <[u8; 64]>::try_from(bytes).unwrap());
        let author = (places, vec(any::<u8>(), 1..65), any::<[u8; 32]>(), signature);
        let author = author.prop_map(|((document, origin), actor, first, signature)| Attested {
            document,
            origin,
            actor,
            first: ChangeHash(first),
            signature,
        });
        (Just(documents), Just(origins), vec(author, 0..5))
            .prop_map(|(documents, origins, authors)| Frame::Attestations(Attestations { documents, origins, authors }))
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    let judgement = prop_oneof![
        Just(Judgement::Known),
        Just(Judgement::Unknown),
        any::<u64>().prop_map(|lsn| Judgement::Diverged { lsn: Lsn(lsn) }),
    ];
    let role = prop_oneof![Just(Role::Node), Just(Role::Client)];
    let inventory_row =
        (document(), any::<[u8; 16]>()).prop_map(|(document, digest)| InventoryRow { document, digest });
    let inventory = (any::<u64>(), option::of(any::<u64>()), vec(inventory_row, 0..6), any::<bool>(), position())
        .prop_map(|(page, since, rows, done, at)| {
            Frame::Inventory(Inventory { page, since: since.map(Lsn), rows, done, at })
        });
    let wanted = (document(), heads()).prop_map(|(document, heads)| Wanted { document, heads });
    let listing = prop_oneof![Just(Listing::Nothing), Just(Listing::Whole), Just(Listing::More)];
    let denied = (document(), option::of(any::<[u8; 32]>()), any::<bool>(), ".{0,50}").prop_map(
        |(document, change, is_behind, why)| DeniedRow { document, change: change.map(ChangeHash), is_behind, why },
    );
    prop_oneof![
        hello(),
        (judgement, role).prop_map(|(judgement, role)| Frame::HelloAck(HelloAck { judgement, role })),
        change_batch(),
        any::<u64>().prop_map(|number| Frame::Ack(Ack { number })),
        inventory,
        (any::<u64>(), vec(wanted, 0..5)).prop_map(|(page, documents)| Frame::Want(Want { page, documents })),
        document_batch(),
        (document(), vec(bytes(40), 0..3), bytes(400), any::<bool>()).prop_map(
            |(document, lifecycle, message, more)| Frame::DocSync(DocSync { document, lifecycle, message, more })
        ),
        bytes(600).prop_map(|bytes| Frame::Part(Part { bytes })),
        any::<u32>().prop_map(|retry_after_ms| Frame::Busy(Busy { retry_after_ms })),
        (any::<[u64; 3]>(), document(), heads()).prop_map(|([id, bytes, covers], document, heads)| {
            Frame::StreamBegin(StreamBegin { id, document, bytes, covers: Lsn(covers), heads })
        }),
        bytes(600).prop_map(|bytes| Frame::StreamPart(StreamPart { bytes })),
        "[!-~]{0,200}".prop_map(|token| Frame::Auth(Auth { token: Token(token) })),
        (listing, vec(document(), 0..5)).prop_map(|(listing, withheld)| Frame::Access(Access { listing, withheld })),
        vec(denied, 0..5).prop_map(|rows| Frame::Denied(Denied { rows })),
        authors(),
        attestations(),
        any::<u64>().prop_map(|rows| Frame::TakenBack(TakenBack { rows })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Every frame is read back as it was written, and another codec writes the same body.
    #[test]
    fn a_frame_reads_back_and_two_codecs_agree_on_it(frame in frame()) {
        let bytes = frame.encode().unwrap();
        prop_assert_eq!(&bytes[..2], &[frame.kind(), 1][..]);
        prop_assert_eq!(&bytes[2..], &written_by_wincode(&frame)[..]);
        prop_assert_eq!(Frame::decode(&bytes), Ok(frame));
    }

    /// A frame that lost its end or got bytes behind it is refused.
    #[test]
    fn a_frame_is_refused_unless_it_ends_where_it_should(frame in frame(), cut in any::<prop::sample::Index>()) {
        let mut bytes = frame.encode().unwrap();
        let kept = cut.index(bytes.len());
        prop_assert!(Frame::decode(&bytes[..kept]).is_err(), "cut to {}", kept);
        bytes.push(0);
        prop_assert!(Frame::decode(&bytes).is_err());
    }

    /// Neither noise nor a frame with a flipped byte makes the decoder panic; what it accepts, it writes again.
    #[test]
    fn garbage_never_panics(
        noise in bytes(2000),
        kind in 0_u8..16,
        frame in frame(),
        at in any::<prop::sample::Index>(),
        flip in 1_u8..=255,
    ) {
        let mut flipped = frame.encode().unwrap();
        let at = at.index(flipped.len());
        flipped[at] ^= flip;
        let typed = [&[kind, 1][..], &noise].concat();
        for bytes in [noise, typed, flipped] {
            if let Ok(frame) = Frame::decode(&bytes) {
                prop_assert!(matches!(frame, Frame::Skipped(_)) || frame.encode().is_ok());
            }
        }
    }
}

#[test]
fn unknown_types_are_skipped_only_with_the_high_bit() {
    assert_eq!(Frame::decode(&[0x80, 9, 1, 2, 3]), Ok(Frame::Skipped(0x80)));
    assert_eq!(Frame::decode(&[0xff, 0]), Ok(Frame::Skipped(0xff)));
    for kind in [0, 11, 14, 0x7f] {
        assert!(Frame::decode(&[kind, 1]).is_err(), "{kind}");
    }
    let ack = Frame::Ack(Ack { number: 3 }).encode().unwrap();
    assert!(Frame::decode(&[ack[0], 2, ack[2]]).is_err(), "a body of another version");
}

#[test]
fn a_list_that_claims_more_than_a_frame_holds_is_refused_before_it_is_allocated() {
    // A `Want` of 2^62 documents, and one of as many as would need 40 MiB.
    for count in [1_u64 << 62, 1 << 20] {
        let mut bytes = vec![6, 1, 0, 253];
        bytes.extend(count.to_le_bytes());
        assert!(Frame::decode(&bytes).is_err());
    }
    assert!(Frame::decode(&vec![9; (1 << 20) + 1]).is_err());
}

/// One frame of each type, as the protocol's document would show them.
fn golden() -> Vec<(&'static str, Frame)> {
    let at = Position { lsn: Lsn(300), chain: Chain([0xc4; 16]) };
    let document = DocumentId([0xd0; 16]);
    let heads = Heads::new(vec![ChangeHash([2; 32]), ChangeHash([1; 32])]);
    let origin = Origin { node: NodeId([7; 32]), principal: "ada".into(), admission: 1, rules_version: 0 };
    let row = Row { kind: RowKind::Change, flags: 0, document: 0, origin: 0, bytes: vec![0x85, 0x6f, 0x4a, 0x83] };
    let in_parts = Row { flags: 1, bytes: Vec::new(), ..row.clone() };
    let lifecycle = Row { kind: RowKind::Lifecycle, bytes: vec![9, 8], ..row.clone() };
    vec![
        (
            "hello",
            Frame::Hello(Hello {
                node: NodeId([7; 32]),
                log_id: LogId([1; 16]),
                tail: at,
                capabilities: 3,
                agent: "tidelog/0.1.0".into(),
                invite: Some([5; 16]),
                cursor: Some(LogCursor { log_id: LogId([2; 16]), lsn: Lsn(70_000), chain: Chain([3; 16]) }),
            }),
        ),
        (
            "hello_bare",
            Frame::Hello(Hello {
                node: NodeId([7; 32]),
                log_id: LogId([1; 16]),
                tail: Position { lsn: Lsn::ZERO, chain: Chain([0; 16]) },
                capabilities: 0,
                agent: String::new(),
                invite: None,
                cursor: None,
            }),
        ),
        ("hello_ack_known", Frame::HelloAck(HelloAck { judgement: Judgement::Known, role: Role::Node })),
        (
            "hello_ack_diverged",
            Frame::HelloAck(HelloAck { judgement: Judgement::Diverged { lsn: Lsn(251) }, role: Role::Client }),
        ),
        (
            "change_batch",
            Frame::ChangeBatch(ChangeBatch {
                number: 1,
                documents: vec![document],
                origins: vec![origin.clone()],
                attestation: Vec::new(),
                rows: vec![lifecycle.clone(), row.clone(), in_parts],
                end: Some(at),
            }),
        ),
        ("ack", Frame::Ack(Ack { number: 250 })),
        (
            "inventory",
            Frame::Inventory(Inventory {
                page: 1,
                since: None,
                rows: vec![InventoryRow { document, digest: [0xee; 16] }],
                done: true,
                at,
            }),
        ),
        ("want", Frame::Want(Want { page: 1, documents: vec![Wanted { document, heads: heads.clone() }] })),
        (
            "document_batch",
            Frame::DocumentBatch(DocumentBatch {
                document,
                origins: vec![origin.clone()],
                rows: vec![lifecycle, row],
                streamed: Some(4),
                heads: heads.clone(),
                outcome: Outcome::Complete,
            }),
        ),
        (
            "doc_sync",
            Frame::DocSync(DocSync { document, lifecycle: vec![vec![9, 8]], message: vec![0x42, 0, 0], more: false }),
        ),
        ("part", Frame::Part(Part { bytes: vec![1, 2, 3] })),
        ("busy", Frame::Busy(Busy { retry_after_ms: 1000 })),
        ("stream_begin", Frame::StreamBegin(StreamBegin { id: 4, document, bytes: 1 << 20, covers: Lsn(299), heads })),
        ("stream_part", Frame::StreamPart(StreamPart { bytes: vec![1, 2, 3] })),
        ("auth", Frame::Auth(Auth { token: Token("a.b.c".into()) })),
        ("access", Frame::Access(Access { listing: Listing::Whole, withheld: vec![document] })),
        (
            "denied",
            Frame::Denied(Denied {
                rows: vec![
                    DeniedRow { document, change: Some(ChangeHash([3; 32])), is_behind: true, why: "why".into() },
                    DeniedRow { document, change: None, is_behind: false, why: String::new() },
                ],
            }),
        ),
        (
            "authors",
            Frame::Authors(Authors {
                document,
                origins: vec![origin.clone()],
                authors: vec![Author { actor: vec![1; 16], origin: 0 }, Author { actor: vec![2], origin: 0 }],
            }),
        ),
        ("attestations", attestations_of(document, origin)),
        ("taken-back", Frame::TakenBack(TakenBack { rows: 1 << 40 })),
    ]
}

/// Two authors of a document, as somebody signed them.
fn attestations_of(document: DocumentId, origin: Origin) -> Frame {
    let author = |actor: &[u8], byte: u8| Attested {
        document: 0,
        origin: 0,
        actor: actor.to_vec(),
        first: ChangeHash([byte; 32]),
        signature: [byte; 64],
    };
    let authors = vec![author(&[1; 16], 3), author(&[2], 4)];
    Frame::Attestations(Attestations { documents: vec![document], origins: vec![origin], authors })
}

/// What is read names nothing that is not listed, no author without a name, and no more than so many.
#[test]
fn attestations_of_what_is_not_there_are_refused() {
    let origin = Origin { node: NodeId([7; 32]), principal: "ada".into(), admission: 1, rules_version: 0 };
    let good = attestations_of(DocumentId([1; 16]), origin);
    assert!(Frame::decode(&good.encode().unwrap()).is_ok());
    let faults: [&dyn Fn(&mut Attestations); 6] = [
        &|said| said.authors[1].document = 1,
        &|said| said.authors[1].origin = 1,
        &|said| said.authors[0].actor.clear(),
        &|said| said.authors[0].actor = vec![1; 65],
        &|said| said.origins[0].admission = 3,
        &|said| said.authors = vec![said.authors[0].clone(); 1025],
    ];
    for (n, fault) in faults.iter().enumerate() {
        let Frame::Attestations(mut said) = good.clone() else { unreachable!() };
        fault(&mut said);
        assert!(Frame::decode(&Frame::Attestations(said).encode().unwrap()).is_err(), "{n}");
    }
}

/// The bytes on the wire are those that were released.
#[test]
fn frames_are_written_as_the_golden_files_say() {
    let mut promised = Golden::new("wire");
    for (name, frame) in golden() {
        let bytes = frame.encode().unwrap();
        promised.check(name, &bytes);
        assert_eq!(Frame::decode(&bytes), Ok(frame), "{name}");
    }
    promised.end();
}
