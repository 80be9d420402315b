use super::*;

fn change() -> Record {
    Record::Change(
        ChangeHeader {
            document: [1; 16],
            collection: 2,
            hash: [3; 32],
            actor: 4,
            seq: 5,
            start_op: 6,
            op_count: 7,
            deps: vec![1],
            heads_before: Some(vec![1, 300]),
            time: -1,
            received_ms: 1_700_000_000_000,
            origin: 0,
            via: 9,
            principal: 0,
            admission: Admission::Structural,
            rules_version: 0,
            payload_digest: payload_digest(b"chunk"),
        },
        b"chunk".to_vec(),
    )
}

#[test]
fn a_record_reads_back_at_its_own_position_only() {
    let (bytes, chain) = change().encode(Lsn(7), Chain::default());
    assert_eq!(Record::decode(Lsn(7), &bytes, Chain::default()), Ok((change(), chain)));
    assert_eq!(Record::read(Lsn(8), &bytes), Err(RecordError::Checksum));
    assert_ne!(chain, change().encode(Lsn(8), Chain::default()).1);
}

#[test]
fn every_flipped_bit_and_every_truncation_is_found() {
    let (bytes, _) = change().encode(Lsn(7), Chain::default());
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Record::read(Lsn(7), &bad).is_err(), "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert!(Record::read(Lsn(7), &bytes[..len]).is_err(), "length {len}");
    }
}

#[test]
fn a_newer_version_is_named() {
    let (mut bytes, _) = change().encode(Lsn(7), Chain::default());
    bytes[0] = 2;
    assert_eq!(Record::read(Lsn(7), &bytes), Err(RecordError::Version(2)));
}

#[test]
fn lifecycle_statements_have_one_encoding() {
    let lifecycle = Lifecycle {
        document: DocumentId([1; 16]),
        collection: CollectionName::new("notes").unwrap(),
        kind: LifecycleKind::Created,
        rank: CreationRank::Asked,
        lamport: 1,
        author: NodeId([2; 32]),
        actor: None,
        time_ms: 3,
        heads: Heads::default(),
        name: Some("config".into()),
    };
    let bytes = lifecycle.encode();
    assert_eq!(Lifecycle::decode(&bytes), Ok(lifecycle));
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(Lifecycle::decode(&longer).is_err());
    // 251 announces a two-byte integer: 5 written longer than need be must not be a second spelling of 5.
    let at = bytes.len() - 1 - "config".len() - 1 - 1 - 1;
    let mut spelt = bytes.clone();
    spelt.splice(at..=at, [251, 3, 0]);
    assert!(Lifecycle::decode(&spelt).is_err());
}
