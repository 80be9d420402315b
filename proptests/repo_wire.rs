//! The messages of automerge-repo: written as promised, read back as written, in whatever form CBOR allows, and deaf to
//! garbage.

use ciborium::Value;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tidelog::Limits;
use tidelog::id::{CollectionName, DocumentId};
use tidelog::sync::repo::wire::{
    Create, Denied, Ephemeral, Join, Message, Metadata, Peer, Route, StoreHeads, Sync, Text, WireError,
};

use crate::support::Golden;

fn word() -> impl Strategy<Value = Text<'static>> {
    "[a-zA-Z0-9é🌊-]{0,40}".prop_map(Into::into)
}

fn words() -> impl Strategy<Value = Vec<Text<'static>>> {
    vec(word(), 0..4)
}

fn route() -> impl Strategy<Value = Route<'static>> {
    (word(), word()).prop_map(|(sender, target)| Route { sender, target })
}

fn metadata() -> impl Strategy<Value = Metadata<'static>> {
    (option::of(word()), option::of(any::<bool>())).prop_map(|(storage, ephemeral)| Metadata { storage, ephemeral })
}

fn document() -> impl Strategy<Value = DocumentId> {
    any::<[u8; 16]>().prop_map(DocumentId)
}

fn sync() -> impl Strategy<Value = Sync<'static>> {
    (route(), document(), vec(any::<u8>(), 0..300)).prop_map(|(route, document, data)| Sync {
        route,
        document,
        data: data.into(),
    })
}

fn store_heads() -> impl Strategy<Value = StoreHeads<'static>> {
    (word(), words(), 0..1_u64 << 53).prop_map(|(storage, heads, ms)| StoreHeads {
        storage,
        heads,
        timestamp: ms as f64,
    })
}

fn message() -> impl Strategy<Value = Message<'static>> {
    prop_oneof![
        (word(), metadata(), option::of(words())).prop_map(|(sender, metadata, versions)| Message::Join(Join {
            sender,
            metadata,
            versions
        })),
        (route(), metadata(), word()).prop_map(|(route, metadata, version)| Message::Peer(Peer {
            route,
            metadata,
            version
        })),
        word().prop_map(|sender| Message::Leave { sender }),
        (option::of(word()), option::of(word()), word()).prop_map(|(sender, target, message)| Message::Error {
            sender,
            target,
            message
        }),
        sync().prop_map(Message::Request),
        sync().prop_map(Message::Sync),
        (route(), document()).prop_map(|(route, document)| Message::DocUnavailable { route, document }),
        (sync(), 0..=1_u64 << 53, word()).prop_map(|(sync, count, session)| {
            let Sync { route, document, data } = sync;
            Message::Ephemeral(Ephemeral { route, document, count, session, data })
        }),
        (route(), words(), words()).prop_map(|(route, add, remove)| Message::RemoteSubscriptionChange {
            route,
            add,
            remove
        }),
        (route(), document(), vec(store_heads(), 0..3))
            .prop_map(|(route, document, heads)| Message::RemoteHeadsChanged { route, document, heads }),
        (option::of(word()), document(), option::of(word())).prop_map(|(sender, document, name)| {
            let collection = CollectionName::new("notes").unwrap();
            Message::Create(Create { sender, document, collection, name })
        }),
        option::of(word()).prop_map(|sender| Message::Denials { sender }),
        (option::of(word()), word()).prop_map(|(sender, token)| Message::Auth { sender, token }),
        (route(), document(), words(), word()).prop_map(|(route, document, changes, message)| Message::Denied(
            Denied { route, document, changes, message }
        )),
    ]
}

fn read_by_ciborium(bytes: &[u8]) -> Value {
    let mut left = bytes;
    let value = ciborium::from_reader(&mut left).unwrap();
    assert!(left.is_empty(), "ciborium leaves {} bytes", left.len());
    value
}

fn written_by_ciborium(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

/// The same map with its keys in another order, `null` beside them, and things in it that nobody knows.
fn dressed(value: Value, turn: usize) -> Value {
    let Value::Map(mut entries) = value else { return value };
    let turn = turn % entries.len().max(1);
    entries.rotate_left(turn);
    for (key, value) in &mut entries {
        if key.as_text() == Some("peerMetadata") {
            let Value::Map(entries) = value else { continue };
            entries.push((Value::Text("more".into()), Value::Null));
        }
    }
    let nested = Value::Array(vec![Value::Map(vec![(Value::Integer(1.into()), Value::Float(1.5))]), Value::Null]);
    entries.insert(turn, (Value::Text("future".into()), nested));
    entries.push((Value::Integer(7.into()), Value::Bytes(vec![1])));
    Value::Map(entries)
}

/// Integers as floats, as JavaScript writes what is large, and floats that are whole as integers.
fn renumbered(value: Value) -> Value {
    match value {
        Value::Integer(integer) => Value::Float(i128::from(integer) as f64),
        Value::Float(float) if float >= 0.0 && float.fract() == 0.0 => Value::Integer((float as u64).into()),
        Value::Map(entries) => Value::Map(entries.into_iter().map(|(key, value)| (key, renumbered(value))).collect()),
        other => other,
    }
}

/// Everything in indefinite lengths, texts and bytes in pieces.
fn indefinite(value: &Value, out: &mut Vec<u8>) {
    let pieces = |length: usize| (0..length).step_by(5).map(move |from| from..length.min(from + 5));
    match value {
        Value::Map(entries) => {
            out.push(0xbf);
            for (key, value) in entries {
                indefinite(key, out);
                indefinite(value, out);
            }
            out.push(0xff);
        }
        Value::Array(items) => {
            out.push(0x9f);
            items.iter().for_each(|item| indefinite(item, out));
            out.push(0xff);
        }
        Value::Bytes(bytes) => {
            out.push(0x5f);
            pieces(bytes.len()).for_each(|piece| {
                out.extend(written_by_ciborium(&Value::Bytes(bytes[piece].to_vec())));
            });
            out.push(0xff);
        }
        Value::Text(text) if text.is_ascii() => {
            out.push(0x7f);
            pieces(text.len()).for_each(|piece| out.extend(written_by_ciborium(&Value::Text(text[piece].to_owned()))));
            out.push(0xff);
        }
        other => out.extend(written_by_ciborium(other)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// What is written is read back, by us and by ciborium; what ciborium writes of it in any order and form is read as
    /// the same message.
    #[test]
    fn ciborium_reads_what_we_write_and_we_read_what_it_writes(message in message(), turn in any::<usize>()) {
        let limits = Limits::DEFAULT;
        let bytes = message.encode();
        prop_assert_eq!(&Message::read(&bytes, &limits).unwrap(), &message);
        let value = read_by_ciborium(&bytes);
        let text = |key: &str| {
            let entries = value.as_map().unwrap();
            entries.iter().find(|(name, _)| name.as_text() == Some(key)).map(|(_, value)| value.clone())
        };
        prop_assert!(text("type").is_some_and(|kind| kind.is_text()));
        let other = written_by_ciborium(&dressed(value.clone(), turn));
        prop_assert_eq!(&Message::read(&other, &limits).unwrap(), &message);
        let other = written_by_ciborium(&renumbered(value.clone()));
        prop_assert_eq!(&Message::read(&other, &limits).unwrap(), &message);
        let mut other = Vec::new();
        indefinite(&value, &mut other);
        prop_assert_eq!(&Message::read(&other, &limits).unwrap(), &message);
        // As captured from JavaScript: no integer that it would read as anything but a number.
        prop_assert!(!has_wide_integer(&value));
    }

    /// Whatever the bytes, reading ends without a panic; what is read is no larger than what came.
    #[test]
    fn damage_never_panics(
        message in message(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        noise in vec(any::<u8>(), 0..200),
    ) {
        let limits = Limits::DEFAULT;
        let mut bytes = message.encode();
        let cut = cut.index(bytes.len());
        prop_assert!(Message::read(&bytes[..cut], &limits).is_err(), "a piece of a message is none");
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = Message::read(&bytes, &limits);
        let _ = Message::read(&noise, &limits);
        let _ = Message::read(&[&[0xbf][..], &noise].concat(), &limits);
    }
}

fn has_wide_integer(value: &Value) -> bool {
    match value {
        Value::Integer(integer) => i128::from(*integer) > i128::from(u32::MAX),
        Value::Map(entries) => entries.iter().any(|(_, value)| has_wide_integer(value)),
        _ => false,
    }
}

#[test]
fn what_is_nested_too_deeply_or_longer_than_it_is_costs_nothing() {
    let limits = Limits::DEFAULT;
    let under = |value: &[u8]| [&b"\xa2\x64type\x64join\x61x"[..], value].concat();
    let deep = [vec![0x81; 1 << 20], vec![0x01]].concat();
    assert_eq!(Message::read(&under(&deep), &limits), Err(WireError::Malformed("nested too deeply")));
    let tags = [vec![0xc1; 1 << 20], vec![0x01]].concat();
    assert_eq!(Message::read(&under(&tags), &limits), Err(WireError::Malformed("nested too deeply")));
    let endless = vec![0x9f; 1 << 20];
    assert_eq!(Message::read(&under(&endless), &limits), Err(WireError::Malformed("nested too deeply")));
    for major in [0x5b, 0x7b, 0x9b, 0xbb] {
        let claimed = [&[major][..], &[0xff; 8]].concat();
        assert!(Message::read(&under(&claimed), &limits).is_err());
        assert!(Message::read(&claimed, &limits).is_err());
    }
    let long = written_by_ciborium(&Value::Text("x".repeat(limits.repo_text_bytes + 1)));
    let join = |sender: &[u8]| [&b"\xa2\x64type\x64join\x68senderId"[..], sender].concat();
    assert!(matches!(Message::read(&join(&long), &limits), Err(WireError::TooMany { what: "bytes in a text", .. })));
    let many = written_by_ciborium(&Value::Array(vec![Value::Null; limits.repo_list_items + 1]));
    let join = [&b"\xa3\x64type\x64join\x68senderId\x61a\x78\x19supportedProtocolVersions"[..], &many].concat();
    assert!(matches!(Message::read(&join, &limits), Err(WireError::TooMany { what: "items in a list", .. })));
    // A document id of a megabyte is refused before it is decoded, which would cost its square.
    let id = written_by_ciborium(&Value::Text("2".repeat(4000)));
    let request = b"\xa4\x64type\x67request\x68senderId\x61a\x64data\x41\x00\x6adocumentId";
    let refused = Message::read(&[&request[..], &id].concat(), &limits).unwrap_err();
    assert_eq!(refused, WireError::Malformed("a document id is not base58check of 16 bytes"));
}

/// As captured from a stock client and from a server.
#[test]
fn messages_of_stock_peers_are_read() {
    let limits = Limits::DEFAULT;
    let join = b"\xb9\x00\x04\x64type\x64join\x68senderId\x6bclient-z2a0\x6cpeerMetadata\xb9\x00\x02\x69storageId\xf7\
        \x6bisEphemeral\xf5\x78\x19supportedProtocolVersions\x81\x611";
    let metadata = Metadata { storage: None, ephemeral: Some(true) };
    let versions = Some(vec!["1".into()]);
    let expected = Message::Join(Join { sender: "client-z2a0".into(), metadata, versions });
    assert_eq!(Message::read(join, &limits).unwrap(), expected);
    // Old clients say neither what they are nor which versions they speak.
    let join = b"\xa2\x64type\x64join\x68senderId\x61a";
    let expected = Join { sender: "a".into(), metadata: Metadata::default(), versions: None };
    assert_eq!(Message::read(join, &limits).unwrap(), Message::Join(expected));
    let change = b"\xb9\x00\x05\x64type\x78\x1aremote-subscription-change\x68senderId\x61a\x68targetId\x61b\
        \x63add\x81\x61s\x66remove\xf7";
    let route = Route { sender: "a".into(), target: "b".into() };
    let expected = Message::RemoteSubscriptionChange { route, add: vec!["s".into()], remove: Vec::new() };
    assert_eq!(Message::read(change, &limits).unwrap(), expected);
    assert_eq!(Message::read(b"\xa1\x64type\x63new", &limits).unwrap(), Message::Unknown("new".into()));
    // Of two with one name the last counts.
    let twice = b"\xa3\x64type\x63new\x68senderId\x61a\x64type\x65leave";
    assert_eq!(Message::read(twice, &limits).unwrap(), Message::Leave { sender: "a".into() });
}

/// The bytes that are promised. `UPDATE=1` writes the files of messages that have none yet.
#[test]
fn every_message_has_the_bytes_that_are_promised() {
    let route = || Route { sender: "server".into(), target: "client".into() };
    let document = DocumentId(*b"\x01\x23\x45\x67\x89\xab\x4d\xef\x81\x23\x45\x67\x89\xab\xcd\xef");
    let storage = || Some("a130d50d-62c4-4b1e-9a1f-0d6f5f5f3a11".into());
    let sync = || Sync { route: route(), document, data: b"\x42\x00\x00\x01\x00\x00\x00\x02\x02\x84".into() };
    let heads = |timestamp| StoreHeads { storage: "store".into(), heads: vec!["head".into()], timestamp };
    let ephemeral = |count| Ephemeral {
        route: route(),
        document,
        count,
        session: "4f2a6h32odo".into(),
        data: b"\xb9\x00\x01\x66cursor\x03".into(),
    };
    let golden = [
        (
            "join",
            Message::Join(Join {
                sender: "client".into(),
                metadata: Metadata { storage: None, ephemeral: Some(true) },
                versions: Some(vec!["1".into()]),
            }),
        ),
        (
            "peer",
            Message::Peer(Peer {
                route: route(),
                metadata: Metadata { storage: storage(), ephemeral: Some(false) },
                version: "1".into(),
            }),
        ),
        ("leave", Message::Leave { sender: "client".into() }),
        (
            "error",
            Message::Error {
                sender: Some("server".into()),
                target: Some("client".into()),
                message: "unsupported protocol version".into(),
            },
        ),
        ("request", Message::Request(sync())),
        ("sync", Message::Sync(sync())),
        ("doc_unavailable", Message::DocUnavailable { route: route(), document }),
        ("ephemeral", Message::Ephemeral(ephemeral(1))),
        ("ephemeral_large_count", Message::Ephemeral(ephemeral(1 << 40))),
        (
            "remote_subscription_change",
            Message::RemoteSubscriptionChange { route: route(), add: vec!["store".into()], remove: Vec::new() },
        ),
        (
            "remote_heads_changed",
            Message::RemoteHeadsChanged { route: route(), document, heads: vec![heads(1_700_000_000_000.0)] },
        ),
        (
            "tidelog_create",
            Message::Create(Create {
                sender: Some("client".into()),
                document,
                collection: CollectionName::new("messages").unwrap(),
                name: Some("config".into()),
            }),
        ),
        ("tidelog_denials", Message::Denials { sender: Some("client".into()) }),
        ("tidelog_auth", Message::Auth { sender: Some("client".into()), token: "a.b.c".into() }),
        (
            "tidelog_denied",
            Message::Denied(Denied {
                route: route(),
                document,
                changes: vec!["5c".repeat(32).into()],
                message: "the rules do not allow it".into(),
            }),
        ),
    ];
    let mut promised = Golden::new("repo");
    for (name, message) in golden {
        let bytes = message.encode();
        promised.check(name, &bytes);
        assert_eq!(Message::read(&bytes, &Limits::DEFAULT).unwrap(), message, "{name}");
    }
    promised.end();
}
