//! Replicas that hear of each other's rows in any order, twice, or late: in the end they are equal.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use tidelog::engine::{Admitted, Incoming, IncomingBody};
use tidelog::id::{Chain, LogCursor, LogId};
use tidelog::log::MemoryStorage;
use tidelog::log::record::{CreationRank, Lifecycle, LifecycleKind};
use tidelog::{CollectionName, Database, DocumentId, Error, Heads, Lsn, NodeId};

use crate::support::{
    SmallEdit, assert_whole, cases, first_value, logged_changes, narrow, node, origin, plain, plain_heads, plain_json,
    rows_after, small_edit, without_counters,
};

#[derive(Debug, Clone)]
enum Command {
    Create(Index),
    Named(Index, u8, bool),
    Edit(Index, Index, Vec<SmallEdit>),
    Delete(Index, Index),
    Restore(Index, Index),
    /// From one replica to another: these rows of its log, in this order.
    Exchange(Index, Index, Vec<Index>),
    /// From one replica to another: the end of its log, backwards.
    Backwards(Index, Index),
    Kill(Index),
}

fn command() -> impl Strategy<Value = Command> {
    let at = any::<Index>;
    prop_oneof![
        1 => at().prop_map(Command::Create),
        1 => (at(), 0..2u8, any::<bool>()).prop_map(|(at, name, with)| Command::Named(at, name, with)),
        8 => (at(), at(), vec(small_edit(), 1..4)).prop_map(|(at, id, edits)| Command::Edit(at, id, edits)),
        1 => (at(), at()).prop_map(|(at, id)| Command::Delete(at, id)),
        1 => (at(), at()).prop_map(|(at, id)| Command::Restore(at, id)),
        5 => (at(), at(), vec(at(), 1..20)).prop_map(|(from, to, rows)| Command::Exchange(from, to, rows)),
        2 => (at(), at()).prop_map(|(from, to)| Command::Backwards(from, to)),
        1 => at().prop_map(Command::Kill),
    ]
}

struct Replica {
    node: NodeId,
    storage: MemoryStorage,
    database: Database,
}

impl Replica {
    fn new(number: u8) -> Self {
        let storage = MemoryStorage::new();
        Self { node: node(number), database: open(&storage, node(number)), storage }
    }

    fn kill(&mut self) {
        self.storage = self.storage.killed();
        self.database = open(&self.storage, self.node);
    }

    fn pick(&self, at: &Index) -> Option<tidelog::DocHandle> {
        let all = self.database.reader().inventory(None, usize::MAX).unwrap();
        (!all.is_empty()).then(|| self.database.find(at.get(&all).0).unwrap())
    }

    fn offer(&self, rows: Vec<Incoming>) -> Admitted {
        let answer = self.database.admit_blocking(rows).unwrap();
        assert!(answer.refused.is_empty(), "{:?}", answer.refused);
        answer
    }
}

fn open(storage: &MemoryStorage, node: NodeId) -> Database {
    Database::on(storage.clone()).node(node).limits(narrow()).open().unwrap()
}

fn run(replicas: &mut [Replica], command: &Command) {
    match command {
        Command::Create(at) => {
            let (_, commit) = at.get(replicas).database.collection("notes").unwrap().create(first_value()).unwrap();
            commit.wait().unwrap();
        }
        Command::Named(at, name, with) => {
            let named = at.get(replicas).database.collection("named").unwrap();
            let name = format!("name {name}");
            if *with { named.doc_with(&name, first_value()) } else { named.doc(&name) }.unwrap();
        }
        Command::Edit(at, id, edits) => {
            let Some(handle) = at.get(replicas).pick(id) else { return };
            for small in edits {
                match handle.change(|edit| {
                    small.run(edit);
                    Ok(())
                }) {
                    Ok(commit) => drop(commit.wait().unwrap()),
                    Err(Error::Deleted(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
        Command::Delete(at, id) => {
            let stated = at.get(replicas).pick(id).and_then(|handle| handle.delete().ok());
            stated.map(|commit| commit.wait().unwrap());
        }
        Command::Restore(at, id) => {
            let stated = at.get(replicas).pick(id).and_then(|handle| handle.restore().ok());
            stated.map(|commit| commit.wait().unwrap());
        }
        Command::Exchange(from, to, picked) => {
            let rows = rows_after(at_reader(replicas, from), Lsn::ZERO);
            if !rows.is_empty() {
                to.get(replicas).offer(picked.iter().map(|row| row.get(&rows).clone()).collect());
            }
        }
        Command::Backwards(from, to) => {
            let mut rows = rows_after(at_reader(replicas, from), Lsn::ZERO);
            rows.reverse();
            rows.truncate(30);
            to.get(replicas).offer(rows);
        }
        Command::Kill(at) => {
            let at = at.index(replicas.len());
            replicas[at].kill();
        }
    }
}

fn at_reader<'a>(replicas: &'a [Replica], at: &Index) -> &'a tidelog::history::Reader {
    at.get(replicas).database.reader()
}

/// Everybody offers everything to everybody until nothing is new: at most as often as news can take to travel.
fn meet(replicas: &[Replica]) {
    for _ in 0..replicas.len() + 1 {
        let (mut news, mut waiting) = (0, 0);
        for from in replicas {
            let rows = rows_after(from.database.reader(), Lsn::ZERO);
            for to in replicas.iter().filter(|to| to.node != from.node) {
                let answer = to.offer(rows.clone());
                // What waits from an earlier exchange may wait for a third replica still.
                news += answer.accepted;
                waiting += answer.missing.len();
            }
        }
        if news == 0 {
            assert_eq!(waiting, 0, "everything was offered, and something waits");
            return;
        }
    }
    panic!("news without end");
}

fn assert_equal(replicas: &[Replica]) {
    let first = replicas[0].database.reader().inventory(None, usize::MAX).unwrap();
    for replica in replicas {
        let reader = replica.database.reader();
        assert_eq!(reader.inventory(None, usize::MAX).unwrap(), first);
        for (id, _) in &first {
            let (ours, theirs) = (logged_changes(replicas[0].database.reader(), *id), logged_changes(reader, *id));
            assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
            let expected = plain(ours.values());
            let state = reader.document(*id).unwrap().unwrap();
            assert_eq!(state.heads, plain_heads(&expected));
            let place = replicas[0].database.reader().document(*id).unwrap().unwrap();
            assert_eq!((state.collection, state.visible), (place.collection, place.visible));
            let json = replica.database.find(*id).unwrap().to_json().unwrap();
            assert_eq!(without_counters(json), plain_json(&expected));
        }
        assert_whole(&replica.database);
    }
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn replicas_that_heard_everything_are_equal(count in 3..6u8, commands in vec(command(), 1..70)) {
        let mut replicas: Vec<Replica> = (1..=count).map(Replica::new).collect();
        commands.iter().for_each(|command| run(&mut replicas, command));
        meet(&replicas);
        assert_equal(&replicas);
    }
}

fn statement(kind: LifecycleKind, lamport: u64) -> Incoming {
    let document = DocumentId([0x41; 16]);
    let statement = Lifecycle {
        document,
        collection: CollectionName::new("notes").unwrap(),
        kind,
        rank: CreationRank::Asked,
        lamport,
        author: node(9),
        actor: None,
        time_ms: 5,
        heads: Heads::default(),
        name: None,
    };
    Incoming { document, body: IncomingBody::Lifecycle(statement.encode()), origin: origin(9), signature: None }
}

fn admit(database: &Database, rows: Vec<Incoming>) -> Admitted {
    let cursor = LogCursor { log_id: LogId([9; 16]), lsn: Lsn(7), chain: Chain([7; 16]) };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(database.admit(rows, Some(node(9)), Some(cursor))).unwrap()
}

#[test]
fn a_cursor_does_not_pass_a_statement_that_came_before_its_document() {
    let replica = Replica::new(1);
    let answer = admit(&replica.database, vec![statement(LifecycleKind::Deleted, 2)]);
    assert!(!answer.cursor_stored && answer.missing.len() == 1, "{answer:?}");
    assert_eq!(replica.database.reader().peer_cursor(node(9)).unwrap(), None);
    let both = vec![statement(LifecycleKind::Created, 1), statement(LifecycleKind::Deleted, 2)];
    assert!(admit(&replica.database, both).cursor_stored);
    assert!(!replica.database.reader().document(DocumentId([0x41; 16])).unwrap().unwrap().visible);
}

#[test]
fn a_cursor_does_not_pass_a_change_that_waits_or_found_no_room_to_wait() {
    let other = Replica::new(9);
    let (handle, created) = other.database.collection("notes").unwrap().create(first_value()).unwrap();
    created.wait().unwrap();
    for n in 0..5 {
        handle.change(|edit| Ok(edit.put("n", n)?)).unwrap().wait().unwrap();
    }
    let rows = rows_after(other.database.reader(), Lsn::ZERO);
    for (room, kept) in [(1000, rows.len()), (1, 2)] {
        let mut limits = narrow();
        limits.pending_changes_per_document = room;
        if room == 1 {
            // Not even one fits.
            limits.pending_bytes_per_document = 1;
        }
        let database = Database::on(MemoryStorage::new()).node(node(1)).limits(limits).open().unwrap();
        let late: Vec<Incoming> = rows[2..].to_vec();
        assert!(admit(&database, rows[..1].to_vec()).cursor_stored);
        let answer = admit(&database, late);
        assert!(!answer.cursor_stored && answer.missing.len() == 1, "{answer:?}");
        assert!(admit(&database, rows[1..2].to_vec()).cursor_stored);
        let logged = rows_after(database.reader(), Lsn::ZERO).len();
        assert_eq!(logged, kept, "with room for {room}");
    }
}
