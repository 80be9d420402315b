//! Whose an author is, as the node signed it where the author's first change entered: through relays, past relays that
//! lie, and past nodes that know nothing of signatures.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use automerge::Automerge;
use automerge::transaction::Transactable as _;
use proptest::prelude::*;
use tidelog::document::Change;
use tidelog::engine::{Clash, Incoming, IncomingBody as Body};
use tidelog::history::{Origin, Reader, Signature, author_statement};
use tidelog::id::{ActorId, ChangeHash, DocumentId, Lsn, NodeId};
use tidelog::log::record::{Admission, Record};
use tidelog::log::{Keyspace, MemoryStorage};
use tidelog::net::Identity;
use tidelog::sync::wire::{self, Attestations, Frame, Role};
use tidelog::sync::{Attester, Channel, IncomingBody, IncomingRow, Unproven};
use tidelog::{Database, Limits};

use super::support::assert_whole;
use super::sync_sessions::{Link, Meddler, Replica, picks};

/// How a document travels, as limits and whether a link is strict: by rows, as a chunk on a stream, in an exchange.
fn ways() -> [(&'static str, Limits, bool); 3] {
    let limits = |instead| {
        let mut limits = Limits::DEFAULT;
        (limits.snapshot_tail_min, limits.snapshot_instead_of_changes) = (4, instead);
        limits
    };
    [("rows", limits(u64::MAX), false), ("chunk", limits(4), false), ("exchange", limits(4), true)]
}

/// A change of each of these users in the document, each under an author of his own, as a client brings it to the node.
fn write_as(replica: &Replica, document: DocumentId, users: &[&str]) {
    let handle = replica.database.find(document).unwrap();
    let mut theirs = handle.with_view(|view| Ok(Automerge::load(&view.save()?).unwrap())).unwrap();
    for (n, user) in users.iter().enumerate() {
        theirs.set_actor(automerge::ActorId::from([replica.node.0[0], n as u8, user.len() as u8, 7]));
        for round in 0..2 {
            let mut transaction = theirs.transaction();
            transaction.put(automerge::ROOT, *user, round).unwrap();
            transaction.commit();
            let change = Change::from_automerge(theirs.get_last_local_change().unwrap()).unwrap();
            let origin =
                Origin { node: replica.node, principal: (*user).into(), admission: Admission::Full, rules_version: 3 };
            let body = IncomingBody::Change(Box::new(change));
            replica.admit(vec![IncomingRow { document, body, origin, signature: None }], NodeId([77; 32]), None);
        }
    }
}

/// A node with two documents, of the node itself and of three users each.
fn written(limits: &Limits) -> Replica {
    let first = Replica::new(0, limits);
    for _ in 0..2 {
        let (handle, commit) =
            first.database.collection("notes").unwrap().create(serde_json::json!({ "made": true })).unwrap();
        commit.wait().unwrap();
        write_as(&first, handle.id(), &["ada", "ben", "eve"]);
    }
    wait_for_snapshots(&first);
    first
}

/// Waits until every document has a snapshot. One that changed while it was saved has none, and is asked for again when it
/// is brought a change: one that is there.
fn wait_for_snapshots(replica: &Replica) {
    let began = Instant::now();
    for document in replica.documents() {
        let handle = replica.database.find(document).unwrap();
        while handle.state().unwrap().snapshot.is_none() {
            assert!(began.elapsed() < Duration::from_secs(60), "no snapshot is made");
            std::thread::sleep(Duration::from_millis(5));
            let known = handle.history(Lsn::ZERO, 1).unwrap().remove(0);
            let bytes = replica.database.reader().change_bytes(known.lsn).unwrap();
            let body = IncomingBody::Change(Box::new(Change::parse(bytes).unwrap()));
            replica.admit(
                vec![IncomingRow { document, body, origin: known.origin, signature: None }],
                NodeId([77; 32]),
                None,
            );
        }
    }
}

/// Whose an author is: where his first change entered, for whom and how, and whether the node there signed that.
type Owner = (NodeId, String, Admission, bool);

fn owners(replica: &Replica) -> BTreeMap<(DocumentId, ActorId), Owner> {
    let reader = replica.database.reader();
    let mut owners = BTreeMap::new();
    for document in replica.documents() {
        for entry in replica.database.find(document).unwrap().history(Lsn::ZERO, usize::MAX).unwrap() {
            if entry.seq == 1 {
                let origin = entry.origin;
                let is_signed = signature_of(reader, document, &entry.actor, entry.hash, &origin).is_some();
                let owner = (origin.node, origin.principal, origin.admission, is_signed);
                owners.insert((document, entry.actor), owner);
            }
        }
    }
    owners
}

/// The signature that is kept of it; it holds.
fn signature_of(
    reader: &Reader,
    document: DocumentId,
    actor: &ActorId,
    first: ChangeHash,
    origin: &Origin,
) -> Option<[u8; 64]> {
    let statement = author_statement(document, actor, first, origin);
    let signature = reader.signature(document, &statement).unwrap()?;
    let anybody = Identity::from_seed(&[200; 32]).unwrap();
    assert!(anybody.verify(origin.node, &statement, &signature), "a signature is kept that does not hold");
    Some(signature)
}

/// What a node should be told, at the first hop and at every other: that of the node where it entered.
fn as_signed(owners: &BTreeMap<(DocumentId, ActorId), Owner>) -> BTreeMap<(DocumentId, ActorId), Owner> {
    let signed = |(node, principal, admission, _): &Owner| (*node, principal.clone(), *admission, true);
    owners.iter().map(|(author, owner)| (author.clone(), signed(owner))).collect()
}

/// Links them until nothing is left to say; how many bytes that took. What had to be sent travelled in that way.
fn link(replicas: &[Replica; 2], way: (&str, Limits, bool), meddler: Option<Meddler>) -> usize {
    let (way, limits, strict) = way;
    let had_nothing = replicas[1].documents().is_empty();
    let seen: Rc<RefCell<BTreeSet<u8>>> = Rc::default();
    let (noted, mut meddler) = (seen.clone(), meddler);
    let mut link = Link::new(replicas, [0, 1], strict, &limits);
    link.meddler = Some(Box::new(move |side, channel, bytes| {
        noted.borrow_mut().insert(bytes[0]);
        match &mut meddler {
            Some(meddler) => meddler(side, channel, bytes),
            None => vec![bytes],
        }
    }));
    link.run(replicas, &mut picks(3));
    assert_eq!(replicas[0].state(), replicas[1].state());
    let (streamed, exchanged) = (seen.borrow().contains(&13), seen.borrow().contains(&8));
    assert!(!had_nothing || (streamed, exchanged) == (way == "chunk", way == "exchange"), "{way}: {seen:?}");
    link.bytes
}

/// A replica after its process ended and was started again; with `rebuilds`, its projections are made again.
fn reopened(storage: &MemoryStorage, number: u8, limits: &Limits, rebuilds: bool) -> Replica {
    let storage = storage.killed();
    if rebuilds {
        storage.tamper(Keyspace::State, b"s:projections", None);
    }
    let again = Arc::new(Mutex::new(false));
    let seen = again.clone();
    let key = Identity::from_seed(&[number + 1; 32]).unwrap();
    let opened = Database::on(storage).node(key.node()).limits(limits.clone());
    let opened = opened.on_rebuild(move |_, _| *seen.lock().unwrap() = true).open().unwrap();
    assert_eq!(*again.lock().unwrap(), rebuilds);
    Replica { node: key.node(), database: opened, attester: Some(Arc::new(key)) }
}

#[test]
fn an_author_is_its_node_s_by_signature_through_a_relay_however_the_document_came() {
    for (way, limits, strict) in ways() {
        let first = written(&limits);
        let expected = as_signed(&owners(&first));
        assert_eq!(expected.len(), 8);
        let storage = MemoryStorage::new();
        let relay = Replica::on(1, storage.clone(), &limits);
        link(&[first.clone(), relay.clone()], (way, limits.clone(), strict), None);
        assert_eq!(owners(&relay), expected, "{way}");
        wait_for_snapshots(&relay);
        assert_whole(&relay.database);
        drop(relay);
        for rebuilds in [false, true] {
            let relay = reopened(&storage, 1, &limits, rebuilds);
            for way in ways() {
                let then = way.0;
                let last = Replica::new(2, &way.1);
                link(&[relay.clone(), last.clone()], way, None);
                assert_eq!(owners(&last), expected, "then {then}; rebuilt: {rebuilds}");
            }
        }
    }
}

/// What a relay does with what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// It keeps the signatures to itself.
    Unsigned,
    /// It gives what others wrote to somebody else.
    Principal,
    /// The same, and says that it was signed so.
    SignedPrincipal,
    /// It says that it was checked otherwise.
    Admission,
    /// It says that its own authors are the first node's.
    OwnAuthors,
    /// It puts the signatures under other authors, changes and documents.
    Replayed,
    /// It makes signatures up.
    Noise,
    /// It signs for the first node itself.
    SignedByItself,
}

const LIES: [Lie; 8] = [
    Lie::Unsigned,
    Lie::Principal,
    Lie::SignedPrincipal,
    Lie::Admission,
    Lie::OwnAuthors,
    Lie::Replayed,
    Lie::Noise,
    Lie::SignedByItself,
];

impl Lie {
    fn meddler(self, first: NodeId, liar: NodeId) -> Meddler {
        Box::new(move |side, _, bytes| {
            if side != 0 {
                return vec![bytes];
            }
            let mut frame = Frame::decode(&bytes).unwrap();
            let kept = match &mut frame {
                Frame::ChangeBatch(batch) => self.tell(&mut batch.origins, first, liar),
                Frame::DocumentBatch(batch) => self.tell(&mut batch.origins, first, liar),
                Frame::Authors(authors) => self.tell(&mut authors.origins, first, liar),
                Frame::Attestations(said) => self.sign(said, first, liar),
                _ => true,
            };
            if kept { vec![frame.encode().unwrap()] } else { Vec::new() }
        })
    }

    fn tell(self, origins: &mut [wire::Origin], first: NodeId, liar: NodeId) -> bool {
        for origin in origins {
            match self {
                Self::Principal | Self::SignedPrincipal if origin.principal == "ada" => origin.principal = "mal".into(),
                Self::Admission if origin.admission == 2 => origin.admission = 1,
                Self::OwnAuthors if origin.node == liar => origin.node = first,
                _ => {}
            }
        }
        true
    }

    fn sign(self, said: &mut Attestations, first: NodeId, liar: NodeId) -> bool {
        match self {
            Self::Unsigned => return false,
            Self::SignedPrincipal | Self::OwnAuthors => return self.tell(&mut said.origins, first, liar),
            Self::Replayed => {
                let signatures: Vec<_> = said.authors.iter().map(|author| author.signature).collect();
                // That of another author, or of none, where there is only one.
                let another = if signatures.len() > 1 { signatures[0] } else { [0x5a; 64] };
                let others = signatures.iter().skip(1).chain([&another]);
                said.authors.iter_mut().zip(others).for_each(|(author, other)| author.signature = *other);
            }
            Self::Noise => said.authors.iter_mut().for_each(|author| author.signature = [0x5a; 64]),
            Self::SignedByItself => {
                let key = Identity::from_seed(&[2; 32]).unwrap();
                assert_eq!(key.node(), liar);
                for author in &mut said.authors {
                    let document = said.documents[author.document as usize];
                    let wire::Origin { node, principal, admission, .. } = said.origins[author.origin as usize].clone();
                    let admission = [Admission::Local, Admission::Structural, Admission::Full][admission as usize];
                    let origin = Origin { node, principal, admission, rules_version: 0 };
                    let actor = ActorId::new(&author.actor).unwrap();
                    let statement = author_statement(document, &actor, author.first, &origin);
                    author.signature = key.sign(&statement).unwrap();
                }
            }
            Self::Principal | Self::Admission => {}
        }
        true
    }

    /// What is made of an author that is `owner`'s at the liar.
    fn believed(self, owner: &Owner, first: NodeId, liar: NodeId) -> Owner {
        let (node, mut principal, mut admission, _) = owner.clone();
        let word = |principal, admission| (liar, principal, admission, false);
        let truth = (node, principal.clone(), admission, true);
        match self {
            Self::Unsigned | Self::Replayed | Self::Noise => word(principal, admission),
            Self::Principal | Self::SignedPrincipal if principal == "ada" => {
                principal = "mal".into();
                word(principal, admission)
            }
            Self::Admission if admission == Admission::Full => {
                admission = Admission::Structural;
                word(principal, admission)
            }
            Self::OwnAuthors if node == liar => word(principal, admission),
            Self::SignedByItself if node == first => word(principal, admission),
            _ => truth,
        }
    }
}

/// A node's key, and what it hears of claims that nobody proves.
#[derive(Debug)]
struct Watcher {
    key: Identity,
    unproven: Arc<Mutex<Vec<Unproven>>>,
}

impl Attester for Watcher {
    fn sign(&self, statement: &[u8]) -> Option<[u8; 64]> {
        self.key.sign(statement)
    }

    fn verify(&self, node: NodeId, statement: &[u8], signature: &[u8; 64]) -> bool {
        self.key.verify(node, statement, signature)
    }

    fn note_unproven(&self, unproven: Unproven) {
        self.unproven.lock().unwrap().push(unproven);
    }
}

#[test]
fn what_a_relay_says_of_another_node_without_its_signature_is_the_relay_s_own_word() {
    for (way, limits, strict) in ways() {
        let first = written(&limits);
        let liar = Replica::new(1, &limits);
        link(&[first.clone(), liar.clone()], (way, limits.clone(), strict), None);
        for document in liar.documents() {
            // Its own authors: one of the node, two of its users.
            let handle = liar.database.find(document).unwrap();
            handle.change(|edit| Ok(edit.put("own", 1)?)).unwrap().wait().unwrap();
            write_as(&liar, document, &["joe", "kim"]);
        }
        wait_for_snapshots(&liar);
        let there = owners(&liar);
        assert_eq!(there.len(), 14);
        for lie in LIES {
            let mut last = Replica::new(2, &limits);
            let unproven = Arc::default();
            let key = Identity::from_seed(&[3; 32]).unwrap();
            last.attester = Some(Arc::new(Watcher { key, unproven: Arc::clone(&unproven) }));
            let meddler = lie.meddler(first.node, liar.node);
            link(&[liar.clone(), last.clone()], (way, limits.clone(), strict), Some(meddler));
            let expected: BTreeMap<_, _> = there
                .iter()
                .map(|(author, owner)| (author.clone(), lie.believed(owner, first.node, liar.node)))
                .collect();
            assert_eq!(owners(&last), expected, "{lie:?} by {way}");
            if way == "exchange" {
                // Of later changes nothing else was said than of the first. Rows, behind a chunk as well, say it of each.
                for ((document, actor), (node, ..)) in &expected {
                    let history = last.database.find(*document).unwrap().history(Lsn::ZERO, usize::MAX).unwrap();
                    let of_author = history.iter().filter(|entry| entry.actor == *actor);
                    assert!(of_author.into_iter().all(|entry| entry.origin.node == *node), "{lie:?} by {way}");
                }
            }
            let unproven = unproven.lock().unwrap();
            let is_seen_through = match lie {
                Lie::Unsigned | Lie::Principal | Lie::Admission => Unproven::Unsigned,
                _ => Unproven::Forged,
            };
            assert!(unproven.contains(&is_seen_through), "{lie:?} by {way}: {unproven:?}");
            assert!(unproven.iter().all(|seen| *seen == is_seen_through), "{lie:?} by {way}: {unproven:?}");
        }
    }
}

/// Who passes on what nobody signed answers for it, and from there on it is signed.
#[test]
fn past_a_node_from_before_signatures_an_author_is_the_next_one_s_word() {
    for (way, limits, strict) in ways() {
        let first = written(&limits);
        let mut old = Replica::new(1, &limits);
        old.attester = None;
        link(&[first.clone(), old.clone()], (way, limits.clone(), strict), None);
        let of = |node: NodeId, is_signed: bool| -> BTreeMap<_, _> {
            let owner = |(_, principal, admission, _): Owner| (node, principal, admission, is_signed);
            owners(&first).into_iter().map(|(author, known)| (author, owner(known))).collect()
        };
        assert_eq!(owners(&old), of(first.node, false), "{way}");
        wait_for_snapshots(&old);
        let next = Replica::new(2, &limits);
        link(&[old.clone(), next.clone()], (way, limits.clone(), strict), None);
        assert_eq!(owners(&next), of(old.node, false), "{way}");
        wait_for_snapshots(&next);
        let last = Replica::new(3, &limits);
        link(&[next.clone(), last.clone()], (way, limits.clone(), strict), None);
        assert_eq!(owners(&last), of(next.node, true), "{way}");
        // Nothing is asked for again, neither while the old one is as it is nor when it has become a new one.
        for is_new in [false, true] {
            if is_new {
                old.attester = Replica::new(1, &limits).attester;
            }
            for pair in [[first.clone(), old.clone()], [old.clone(), next.clone()]] {
                let bytes = link(&pair, (way, limits.clone(), strict), None);
                assert!(bytes < 1024, "{bytes} bytes on a link with nothing new");
            }
        }
        assert_eq!(owners(&old), of(first.node, false), "{way}");
        // What is in its log stays as it is; it answers for that when it tells another.
        let another = Replica::new(4, &limits);
        link(&[old.clone(), another.clone()], (way, limits.clone(), strict), None);
        assert_eq!(owners(&another), of(old.node, true), "{way}");
    }
}

/// How many authors are attested in the frames that pass.
fn counting() -> (Meddler, Rc<RefCell<Vec<(usize, usize)>>>) {
    let seen: Rc<RefCell<Vec<(usize, usize)>>> = Rc::default();
    let noted = seen.clone();
    let meddler: Meddler = Box::new(move |_, channel: Channel, bytes| {
        if let Frame::Attestations(said) = Frame::decode(&bytes).unwrap() {
            assert!(matches!(channel, Channel::Control | Channel::Document(_) | Channel::Stream(_)));
            noted.borrow_mut().push((said.authors.len(), bytes.len() + 4));
        }
        vec![bytes]
    });
    (meddler, seen)
}

#[test]
fn an_author_costs_one_signature_and_his_later_changes_nothing() {
    let limits = Limits::DEFAULT;
    for strict in [false, true] {
        let replicas = [Replica::new(0, &limits), Replica::new(1, &limits)];
        let notes = replicas[0].database.collection("notes").unwrap();
        let (handle, commit) = notes.create(serde_json::json!({ "made": true })).unwrap();
        commit.wait().unwrap();
        let (meddler, seen) = counting();
        let mut link = Link::new(&replicas, [0, 1], strict, &limits);
        link.meddler = Some(meddler);
        link.run(&replicas, &mut picks(4));
        assert_eq!(seen.borrow().len(), 1, "that of the node's own author, who made the document");
        let (authors, bytes) = seen.borrow()[0];
        assert!(authors == 1 && bytes < 210, "{bytes} bytes for {authors} authors");
        let before = link.bytes;
        for n in 0..200 {
            handle.change(|edit| Ok(edit.put("typed", n)?)).unwrap().wait().unwrap();
            link.run(&replicas, &mut picks(n));
        }
        assert_eq!(replicas[0].state(), replicas[1].state());
        println!("one author: {bytes} bytes; 200 edits: {} bytes each", (link.bytes - before) / 200);
        write_as(&replicas[0], handle.id(), &["ada", "ben", "eve"]);
        link.run(&replicas, &mut picks(5));
        let attested: usize = seen.borrow().iter().map(|(authors, _)| authors).sum();
        assert_eq!(attested, 4, "once for each author, however much he writes; strict: {strict}");
        println!("authors and bytes in each frame: {:?}", seen.borrow());
    }
}

#[test]
fn clients_are_told_nothing_and_have_no_say() {
    for (way, limits, strict) in ways() {
        let node = written(&limits);
        let client = Replica::new(1, &limits);
        client.edit(0, 0);
        let theirs: Vec<_> = owners(&client).into_keys().collect();
        let replicas = [client.clone(), node.clone()];
        let mut link = Link::of(Role::Client, &replicas, [0, 1], strict, &limits);
        let (mut counting, seen) = counting();
        // It signs for the node all the same, and says that what it made is the node's.
        let (key, forged_for) = (Identity::from_seed(&[1; 32]).unwrap(), node.node);
        link.meddler = Some(Box::new(move |side, channel, bytes| {
            let mut frames = counting(side, channel, bytes);
            if side == 0 && matches!(channel, Channel::Control) {
                let rows = match Frame::decode(&frames[0]).unwrap() {
                    Frame::ChangeBatch(batch) => {
                        batch.rows.into_iter().map(|row| (batch.documents[row.document as usize], row)).collect()
                    }
                    Frame::DocumentBatch(batch) => batch.rows.into_iter().map(|row| (batch.document, row)).collect(),
                    _ => Vec::new(),
                };
                let changes = rows.into_iter().filter(|(_, row)| row.kind == wire::RowKind::Change);
                for (document, row) in changes {
                    let change = Change::parse(row.bytes).unwrap();
                    let said = attestation(&key, document, &change, forged_for);
                    frames.insert(0, Frame::Attestations(said).encode().unwrap());
                }
            }
            frames
        }));
        link.run(&replicas, &mut picks(5));
        assert_eq!(client.state(), node.state());
        assert!(seen.borrow().is_empty(), "{way}: {:?}", seen.borrow());
        let there = owners(&node);
        assert!(theirs.iter().all(|author| !there[author].3), "{way}: what a client signs is not kept");
    }
}

/// An author's first change as a node signs it.
fn attestation(key: &Identity, document: DocumentId, change: &Change, node: NodeId) -> Attestations {
    let origin = Origin { node, principal: String::new(), admission: Admission::Local, rules_version: 0 };
    let statement = author_statement(document, change.actor(), change.hash(), &origin);
    let author = wire::Attested {
        document: 0,
        origin: 0,
        actor: change.actor().as_bytes().to_vec(),
        first: change.hash(),
        signature: key.sign(&statement).unwrap(),
    };
    let origin = wire::Origin { node, principal: String::new(), admission: 0, rules_version: 0 };
    Attestations { documents: vec![document], origins: vec![origin], authors: vec![author] }
}

/// A change that waits for what it stands on keeps its signature, and it is on the disk with the change.
#[test]
fn the_signature_of_a_change_that_waits_is_kept_with_it() {
    let [(_, limits, _), ..] = ways();
    let first = written(&limits);
    let reader = first.database.reader();
    let storage = MemoryStorage::new();
    let second = Replica::on(1, storage.clone(), &limits);
    let mut rows = Vec::new();
    for document in first.documents() {
        let statement = reader.lifecycle_records(document).unwrap().remove(0);
        for entry in first.database.find(document).unwrap().history(Lsn::ZERO, usize::MAX).unwrap() {
            let Some(Record::Change(_, bytes)) = reader.record(entry.lsn).unwrap() else { panic!("no change") };
            let signed = author_statement(document, &entry.actor, entry.hash, &entry.origin);
            let signature = Signature::of(&signed, Identity::from_seed(&[1; 32]).unwrap().sign(&signed).unwrap());
            let signature = (entry.seq == 1).then(|| Box::new(signature));
            let body = Body::Change(Box::new(Change::parse(bytes).unwrap()));
            rows.push(Incoming { document, body, origin: entry.origin, signature });
        }
        rows.push(Incoming {
            document,
            body: Body::Lifecycle(statement),
            origin: super::support::origin(1),
            signature: None,
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut admitted = None;
    for row in rows.into_iter().rev() {
        // Behind the statement, each change waits for those that come after it here.
        let offered = second.database.admit_with(Clash::SmallerHash, vec![row], Some(first.node), None);
        admitted = Some(runtime.block_on(offered).unwrap());
    }
    assert!(admitted.unwrap().missing.is_empty());
    assert_eq!(owners(&second), as_signed(&owners(&first)));
    drop(second);
    assert_eq!(owners(&reopened(&storage, 1, &limits, false)), as_signed(&owners(&first)));
}

/// One field of what is signed.
#[derive(Debug, Clone, Copy)]
enum Field {
    Document,
    Actor,
    First,
    Node,
    Principal,
    Admission,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A signature holds for exactly what was signed: not when any field is another.
    #[test]
    fn a_signature_is_refused_when_any_field_is_another(
        ids in any::<([u8; 16], [u8; 32])>(),
        actor in prop::collection::vec(any::<u8>(), 1..=64),
        principal in ".{0,40}",
        admission in prop::sample::select(vec![Admission::Local, Admission::Structural, Admission::Full]),
        field in prop::sample::select(vec![
            Field::Document, Field::Actor, Field::First, Field::Node, Field::Principal, Field::Admission,
        ]),
        at in any::<prop::sample::Index>(),
        flip in 1_u8..=255,
        seed in any::<[u8; 32]>(),
    ) {
        let key = Identity::from_seed(&seed).unwrap();
        let (mut document, mut first) = (DocumentId(ids.0), ChangeHash(ids.1));
        let mut origin = Origin { node: key.node(), principal, admission, rules_version: 0 };
        let mut author = ActorId::new(&actor).unwrap();
        let signature = key.sign(&author_statement(document, &author, first, &origin)).unwrap();
        let anybody = Identity::from_seed(&[9; 32]).unwrap();
        let holds = |document, author: &ActorId, first, origin: &Origin| {
            anybody.verify(origin.node, &author_statement(document, author, first, origin), &signature)
        };
        prop_assert!(holds(document, &author, first, &origin));
        match field {
            Field::Document => document.0[at.index(16)] ^= flip,
            Field::Actor => {
                let mut bytes = actor.clone();
                bytes[at.index(actor.len())] ^= flip;
                author = ActorId::new(&bytes).unwrap();
            }
            Field::First => first.0[at.index(32)] ^= flip,
            Field::Node => origin.node = Identity::from_seed(&[flip; 32]).unwrap().node(),
            Field::Principal => origin.principal.push(char::from(flip)),
            Field::Admission => {
                origin.admission = match (origin.admission, flip % 2) {
                    (Admission::Local, 0) | (Admission::Full, 0) => Admission::Structural,
                    (Admission::Local, _) | (Admission::Structural, 0) => Admission::Full,
                    (Admission::Full, _) | (Admission::Structural, _) => Admission::Local,
                };
            }
        }
        prop_assert!(!holds(document, &author, first, &origin), "{:?}", field);
    }
}

/// What it costs, printed; bounded with room for a slow machine.
#[test]
fn signing_and_checking_take_microseconds() {
    let key = Identity::from_seed(&[1; 32]).unwrap();
    let origin = Origin { node: key.node(), principal: "ada".into(), admission: Admission::Full, rules_version: 0 };
    let actor = ActorId::new(&[7; 16]).unwrap();
    let statements: Vec<Vec<u8>> = (0..500_u16)
        .map(|n| author_statement(DocumentId([n as u8; 16]), &actor, ChangeHash([(n >> 8) as u8; 32]), &origin))
        .collect();
    let began = Instant::now();
    let signatures: Vec<[u8; 64]> = statements.iter().map(|statement| key.sign(statement).unwrap()).collect();
    let signed = began.elapsed() / 500;
    let began = Instant::now();
    assert!(statements.iter().zip(&signatures).all(|(statement, it)| key.verify(key.node(), statement, it)));
    let verified = began.elapsed() / 500;
    println!("signing {signed:?}, checking {verified:?}");
    assert!(signed.as_micros() < 5_000 && verified.as_micros() < 5_000, "{signed:?} {verified:?}");
}
