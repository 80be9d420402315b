//! Hostile bytes, built by hand with true checksums: what costs automerge gigabytes or minutes, and what makes it panic.

use super::forge::*;

/// Which door the bytes come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Change,
    Document,
    Message,
}

/// Bytes, and words that the refusal must contain.
pub(super) struct Vector {
    pub(super) name: &'static str,
    pub(super) door: Door,
    pub(super) bytes: Vec<u8>,
    pub(super) words: &'static str,
}

fn change(name: &'static str, words: &'static str, edit: impl FnOnce(&mut ChangeParts)) -> Vector {
    let mut parts = ChangeParts::one();
    edit(&mut parts);
    Vector { name, door: Door::Change, bytes: parts.chunk(), words }
}

fn raw(name: &'static str, words: &'static str, bytes: Vec<u8>) -> Vector {
    Vector { name, door: Door::Change, bytes, words }
}

fn document(name: &'static str, words: &'static str, edit: impl FnOnce(&mut DocumentParts)) -> Vector {
    let mut doc = automerge::AutoCommit::new().with_actor(automerge::ActorId::from([0xaa; 16]));
    automerge::transaction::Transactable::put(&mut doc, automerge::ROOT, "k", 1).unwrap();
    let mut parts = DocumentParts::of(&doc.save_nocompress()).unwrap();
    edit(&mut parts);
    Vector { name, door: Door::Document, bytes: parts.chunk(), words }
}

fn message(name: &'static str, words: &'static str, bytes: &[u8]) -> Vector {
    Vector { name, door: Door::Message, bytes: bytes.to_vec(), words }
}

/// A change that makes a text and then, in it, what the columns say.
fn in_text(name: &'static str, words: &'static str, edit: impl FnOnce(&mut ChangeParts)) -> Vector {
    let mut parts = ChangeParts::paste(3, b"abc".to_vec());
    edit(&mut parts);
    Vector { name, door: Door::Change, bytes: parts.chunk(), words }
}

/// All of them.
pub(super) fn all() -> Vec<Vector> {
    let mut all = costly();
    all.extend(headers());
    all.extend(columns());
    all.extend(references());
    all.extend(shapes());
    all.extend(frames());
    all.extend(documents());
    all.extend(messages());
    all
}

const HUGE: i64 = 1_000_000_000_000;

/// What claims more than it is.
fn costly() -> Vec<Vector> {
    let zeros = vec![0; 20 << 20];
    let mut long = ChangeParts::one();
    long.columns.set(META, run(1, (20 << 20) << 4 | 7)).set(VALUE, vec![b'a'; 20 << 20]);
    let mut vectors = vec![
        raw("a deflated change of twenty megabytes of zeros", "inflated bytes of a change", deflated(&zeros)),
        raw(
            "a deflated change with a value of twenty megabytes",
            "inflated bytes of a change",
            deflated(&long.contents()),
        ),
    ];
    for (name, count) in [
        ("ten million operations", 10_000_000),
        ("a hundred million operations", 100_000_000),
        ("a thousand million operations", 1_000_000_000),
        ("a million million operations", HUGE),
        ("as many operations as there are numbers", i64::MAX),
    ] {
        vectors.push(change(name, "operations of a change", |parts| {
            parts.columns.set(ACTION, run(count, 1));
        }));
    }
    vectors.push(change("operations of no action", "operations of a change", |parts| {
        parts.columns.set(ACTION, nothing(HUGE as u64));
    }));
    vectors.push(change("runs whose sum overflows", "operations of a change", |parts| {
        parts.columns.set(ACTION, [run(i64::MAX, 1), nothing(u64::MAX), run(i64::MAX, 2)].concat());
    }));
    vectors.push(change("a million operations in a hundred bytes", "operations for so few bytes", |parts| {
        let count = 1_000_000;
        parts
            .columns
            .set(KEY_NAME, text(count, "k"))
            .set(INSERT, uleb(count as u64))
            .set(ACTION, run(count, 1))
            .set(META, run(count, 0))
            .set(PREDECESSORS, run(count, 0));
    }));
    for (name, spec) in [
        ("objects' actors without end", OBJECT_ACTOR),
        ("objects without end", OBJECT_COUNTER),
        ("elements' actors without end", KEY_ACTOR),
        ("kinds of values without end", META),
        ("counts of predecessors without end", PREDECESSORS),
        ("predecessors' actors without end", PREDECESSOR_ACTOR),
    ] {
        vectors.push(change(name, "", |parts| {
            parts.columns.set(spec, run(HUGE, 0));
        }));
    }
    vectors.extend([
        change("elements without end", "", |parts| {
            parts.columns.set(KEY_COUNTER, slope(HUGE, 1));
        }),
        change("keys without end", "longer than the others", |parts| {
            parts.columns.set(KEY_NAME, text(HUGE, "k"));
        }),
        change("inserts without end", "longer than the others", |parts| {
            parts.columns.set(INSERT, uleb(1 << 60));
        }),
        change("edges of marks without end", "", |parts| {
            parts.columns.set(EXPAND, [uleb(0), uleb(1 << 60)].concat());
        }),
        change("names of marks without end", "", |parts| {
            parts.columns.set(MARK_NAME, text(HUGE, "m"));
        }),
        change("one operation with a million million predecessors", "predecessors that share an operation", |parts| {
            parts.columns.set(PREDECESSORS, run(1, HUGE as u64));
            parts.columns.set(PREDECESSOR_ACTOR, run(HUGE, 0)).set(PREDECESSOR_COUNTER, slope(HUGE, 1));
        }),
        change("a literal run without end", "ends too early", |parts| {
            parts.columns.set(ACTION, [sleb(-HUGE), uleb(1)].concat());
        }),
        change("a value without end", "ends too early", |parts| {
            parts.columns.set(META, run(1, u64::MAX - 9));
        }),
        change("differences that overflow", "overflows", |parts| {
            parts.columns.set(KEY_NAME, text(3, "k")).set(INSERT, uleb(3)).set(ACTION, run(3, 1)).set(META, run(3, 0));
            parts.columns.set(PREDECESSORS, run(3, 1)).set(PREDECESSOR_ACTOR, run(3, 0));
            parts.columns.set(PREDECESSOR_COUNTER, slope(3, i64::MAX));
        }),
    ]);
    vectors
}

fn headers() -> Vec<Vector> {
    let mut vectors = Vec::new();
    for (name, start) in [
        ("operations from 2^31", 1 << 31),
        ("operations from 2^32 - 2", (1 << 32) - 2),
        ("operations from 2^32 - 1", (1 << 32) - 1),
        ("operations from 2^64 - 1", u64::MAX),
    ] {
        vectors.push(change(name, "operation counters", |parts| parts.start = start));
    }
    vectors.extend([
        change("operations from 0", "counter 0", |parts| parts.start = 0),
        change("number 0", "its number is 0", |parts| parts.seq = 0),
        change("number 2^32", "does not fit 32 bits", |parts| parts.seq = 1 << 32),
        change("number 2^64 - 1", "does not fit 32 bits", |parts| parts.seq = u64::MAX),
        change("the least time", "time is out of range", |parts| parts.time = i64::MIN),
        change("the greatest time", "time is out of range", |parts| parts.time = i64::MAX),
        change("dependencies out of order", "do not ascend", |parts| parts.deps = vec![[2; 32], [1; 32]]),
        change("a dependency twice", "do not ascend", |parts| parts.deps = vec![[1; 32]; 2]),
        change("an actor without a name", "1 to 64 bytes", |parts| parts.actor.clear()),
        change("an actor with a long name", "1 to 64 bytes", |parts| parts.actor = vec![1; 65]),
        change("an actor nobody uses", "not used", |parts| parts.others = vec![vec![1]]),
        change("actors out of order", "not in order", |parts| parts.others = vec![vec![2], vec![1]]),
        change("its own actor among the others", "own actor", |parts| parts.others = vec![parts.actor.clone()]),
        change("a message that is no text", "not UTF-8", |parts| parts.message = vec![0xff]),
        change("an author named late", "first change names an author", |parts| {
            parts.seq = 2;
            parts.extra = vec![1, 1, b'x'];
        }),
        change("an author named late, in a longer form", "first change names an author", |parts| {
            parts.seq = 2;
            parts.extra = vec![0x81, 0x80, 0x00, 0x80, 0x00];
        }),
    ]);
    let endless = |at: usize| {
        let mut contents = ChangeParts::one().contents();
        contents.splice(at..=at, uleb(1 << 60));
        chunk(1, &contents)
    };
    vectors.push(raw("dependencies without end", "ends too early", endless(0)));
    vectors.push(raw("an actor's name without end", "ends too early", endless(1)));
    vectors.push(raw("actors without end", "actors of a change", endless(22)));
    vectors.push(raw("columns without end", "more columns", endless(23)));
    vectors
}

fn columns() -> Vec<Vector> {
    let listed = |name, words, list: &[(u32, u64)], data: &[u8]| {
        let mut parts = ChangeParts::one();
        parts.columns.0.clear();
        let mut contents = parts.contents();
        contents.pop();
        contents.extend(uleb(list.len() as u64));
        list.iter().for_each(|(spec, length)| contents.extend([uleb(u64::from(*spec)), uleb(*length)].concat()));
        contents.extend(data);
        raw(name, words, chunk(1, &contents))
    };
    vec![
        listed("columns out of order", "out of order", &[(ACTION, 1), (INSERT, 1)], &[1, 1]),
        listed("a column twice", "there twice", &[(ACTION, 1), (ACTION, 1)], &[1, 1]),
        listed("an unknown column", "unknown", &[(0xb2, 1)], &[1]),
        listed("a column of a known number and another type", "unknown", &[(0x43, 1)], &[1]),
        listed("a deflated column in a change", "deflated", &[(ACTION | 8, 1)], &[1]),
        listed("an empty column", "empty column", &[(ACTION, 0)], &[]),
        listed("columns whose lengths overflow", "too early", &[(INSERT, u64::MAX), (ACTION, u64::MAX)], &[1]),
        listed("a column beyond the end", "too early", &[(ACTION, 9)], &[1]),
        change("a cut column", "ends too early", |parts| {
            parts.columns.set(META, vec![0x7f]);
        }),
        change("a column that ends before the others", "ends before the others", |parts| {
            parts.columns.set(ACTION, run(2, 1)).set(INSERT, uleb(2));
        }),
        change("a key that is no text", "not UTF-8", |parts| {
            parts.columns.set(KEY_NAME, vec![0x7f, 1, 0xff]);
        }),
        change("a value that is no text", "not UTF-8", |parts| {
            parts.columns.set(META, run(1, 0x16)).set(VALUE, vec![0xff]);
        }),
        change("values left over", "longer than the values", |parts| {
            parts.columns.set(VALUE, vec![1]);
        }),
        change("an integer that is too long", "overlong", |parts| {
            parts.columns.set(META, run(1, 0x23)).set(VALUE, vec![0x81, 0x00]);
        }),
        change("a float of four bytes", "not its kind's", |parts| {
            parts.columns.set(META, run(1, 0x45)).set(VALUE, vec![0; 4]);
        }),
        change("a null with bytes", "not its kind's", |parts| {
            parts.columns.set(META, run(1, 0x10)).set(VALUE, vec![0]);
        }),
        change("a run that is written in two", "written in two", |parts| {
            parts
                .columns
                .set(KEY_NAME, text(4, "k"))
                .set(INSERT, uleb(4))
                .set(META, run(4, 0))
                .set(PREDECESSORS, run(4, 0));
            parts.columns.set(ACTION, [run(2, 1), run(2, 1)].concat());
        }),
        change("a run of one", "run of one", |parts| {
            parts.columns.set(ACTION, vec![1, 1]);
        }),
        change("a number in a longer form", "overlong", |parts| {
            parts.columns.set(ACTION, vec![0x7f, 0x81, 0x00]);
        }),
        change("a column of nothing", "should not be there", |parts| {
            parts.columns.set(OBJECT_ACTOR, nothing(1));
        }),
        change("a column of falsehoods", "should not be there", |parts| {
            parts.columns.set(EXPAND, uleb(1));
        }),
        change("no column of inserts", "not there", |parts| {
            parts.columns.set(INSERT, Vec::new());
        }),
    ]
}

fn references() -> Vec<Vector> {
    let predecessor = |counter: i64, actor: u64| {
        move |parts: &mut ChangeParts| {
            parts.columns.set(PREDECESSORS, run(1, 1)).set(PREDECESSOR_ACTOR, run(1, actor));
            parts.columns.set(PREDECESSOR_COUNTER, slope(1, counter));
        }
    };
    vec![
        change("a predecessor that comes later", "after what names it", predecessor(2, 0)),
        change("an operation that replaces itself", "after what names it", predecessor(1, 0)),
        change("a predecessor 0", "below 1", predecessor(0, 0)),
        change("a negative predecessor", "below 1", predecessor(-3, 0)),
        change("a predecessor of an actor beyond the list", "beyond the list", |parts| {
            parts.start = 9;
            predecessor(1, 1)(parts);
        }),
        change("a predecessor of another actor within the change", "later than the change", |parts| {
            parts.others = vec![vec![1]];
            parts.start = 3;
            predecessor(3, 1)(parts);
            parts.columns.set(KEY_NAME, text(2, "k")).set(INSERT, uleb(2)).set(ACTION, run(2, 1));
            parts.columns.set(META, run(2, 0)).set(PREDECESSORS, [sleb(-2), uleb(0), uleb(1)].concat());
        }),
        change("fewer predecessors than are counted", "fewer than are counted", |parts| {
            parts.columns.set(PREDECESSORS, run(1, 1));
        }),
        change("predecessors that do not ascend", "do not ascend", |parts| {
            parts.start = 9;
            parts.columns.set(PREDECESSORS, run(1, 2)).set(PREDECESSOR_ACTOR, run(2, 0));
            parts.columns.set(PREDECESSOR_COUNTER, [sleb(-2), sleb(4), sleb(-1)].concat());
        }),
        change("predecessors nobody counted", "longer than the others", |parts| {
            parts.start = 9;
            parts.columns.set(PREDECESSOR_ACTOR, run(1, 0)).set(PREDECESSOR_COUNTER, slope(1, 1));
        }),
        change("one element deleted again and again", "again and again", |parts| {
            parts.start = 9;
            parts.columns.set(KEY_NAME, text(50, "k")).set(INSERT, uleb(50)).set(ACTION, run(50, 3));
            parts.columns.set(META, run(50, 0)).set(PREDECESSORS, run(50, 1)).set(PREDECESSOR_ACTOR, run(50, 0));
            parts.columns.set(PREDECESSOR_COUNTER, [sleb(-1), sleb(1), slope(49, 0)].concat());
        }),
        change("an object that comes later", "after what names it", |parts| {
            parts.columns.set(OBJECT_ACTOR, run(1, 0)).set(OBJECT_COUNTER, run(1, 7));
        }),
        change("an object beyond all counters", "beyond all", |parts| {
            parts.columns.set(OBJECT_ACTOR, run(1, 0)).set(OBJECT_COUNTER, run(1, u64::MAX));
        }),
        change("an object 0", "below 1", |parts| {
            parts.columns.set(OBJECT_ACTOR, run(1, 0)).set(OBJECT_COUNTER, run(1, 0));
        }),
        change("an object with no actor", "without a counter", |parts| {
            parts.columns.set(OBJECT_COUNTER, run(1, 1));
        }),
        in_text("an element that comes later", "after what names it", |parts| {
            parts.columns.set(KEY_COUNTER, [nothing(1), sleb(-3), sleb(0), sleb(2), sleb(70)].concat());
        }),
        in_text("elements whose counters leave all bounds", "", |parts| {
            parts.columns.set(KEY_COUNTER, [nothing(1), sleb(-3), sleb(0), sleb(2), sleb(i64::MAX - 2)].concat());
        }),
    ]
}

fn shapes() -> Vec<Vector> {
    vec![
        change("an unknown action", "action is unknown", |parts| {
            parts.columns.set(ACTION, run(1, 8));
        }),
        change("an operation without an action", "", |parts| {
            parts.columns.set(ACTION, [nothing(1), run(1, 1)].concat());
        }),
        change("an object with a value", "has a value", |parts| {
            parts.columns.set(ACTION, run(1, 0)).set(META, run(1, 2));
        }),
        change("a deletion of nothing", "deletes or increments nothing", |parts| {
            parts.columns.set(ACTION, run(1, 3));
        }),
        change("an increment of nothing", "deletes or increments nothing", |parts| {
            parts.columns.set(ACTION, run(1, 5)).set(META, run(1, 0x14)).set(VALUE, vec![1]);
        }),
        change("an increment by a truth", "no integer", |parts| {
            parts.start = 9;
            parts.columns.set(ACTION, run(1, 5)).set(META, run(1, 2)).set(PREDECESSORS, run(1, 1));
            parts.columns.set(PREDECESSOR_ACTOR, run(1, 0)).set(PREDECESSOR_COUNTER, slope(1, 1));
        }),
        change("an insertion under a name", "under a name", |parts| {
            parts.columns.set(INSERT, vec![0, 1]);
        }),
        change("an edge that is no mark's", "is none", |parts| {
            parts.columns.set(EXPAND, vec![0, 1]);
        }),
        change("a mark's name on a value", "is none", |parts| {
            parts.columns.set(MARK_NAME, text(1, "bold"));
        }),
        change("a mark under a name", "not inserted", |parts| {
            parts.columns.set(ACTION, run(1, 7)).set(MARK_NAME, text(1, "bold"));
        }),
        change("a key that is nothing", "neither a name nor an element", |parts| {
            parts.columns.set(KEY_NAME, Vec::new());
        }),
        in_text("a key that is both", "neither a name nor an element", |parts| {
            parts.columns.set(KEY_NAME, [text(1, "t"), nothing(2), text(1, "u")].concat());
        }),
        in_text("an insertion that replaces", "inserts and replaces", |parts| {
            parts.columns.set(PREDECESSORS, [run(3, 0), run(1, 1)].concat());
            parts.columns.set(PREDECESSOR_ACTOR, run(1, 0)).set(PREDECESSOR_COUNTER, slope(1, 2));
        }),
        in_text("a change of what is before the first element", "before the first element", |parts| {
            parts.columns.set(INSERT, vec![2, 2]);
        }),
        in_text("a mark without an end", "has no end", |parts| {
            parts.columns.set(ACTION, [sleb(-1), uleb(4), run(2, 1), run(1, 7)].concat());
            parts.columns.set(MARK_NAME, [nothing(3), text(1, "bold")].concat());
        }),
        in_text("a mark's end without a beginning", "no beginning", |parts| {
            parts.columns.set(ACTION, [sleb(-1), uleb(4), run(2, 1), run(1, 7)].concat());
            parts.columns.set(META, [sleb(-1), uleb(0), run(2, 0x16), run(1, 0)].concat());
            parts.columns.set(VALUE, b"ab".to_vec());
        }),
        in_text("two marks begun at a time", "does not follow", |parts| {
            parts.columns.set(ACTION, [sleb(-2), uleb(4), uleb(1), run(2, 7)].concat());
            parts.columns.set(MARK_NAME, [nothing(2), text(2, "bold")].concat());
        }),
    ]
}

fn frames() -> Vec<Vector> {
    let good = ChangeParts::one().chunk();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let mut packed = deflated(&ChangeParts::one().contents());
    packed.extend([0; 3]);
    packed[9] += 3;
    vec![
        raw("nothing", "too early", Vec::new()),
        raw("another beginning", "does not begin", with(0, 0)),
        raw("an untrue checksum", "checksum", with(4, good[4] ^ 1)),
        raw("an unknown type", "type is unknown", with(8, 9)),
        raw("a bundle", "not supported", chunk(3, &[0, 0, 0, 0])),
        raw("bytes behind", "bytes follow", [&good[..], &[0]].concat()),
        raw("a length beyond the end", "too early", [&good[..9], &uleb(1 << 63), &good[10..]].concat()),
        raw("a length in a longer form", "overlong", [&good[..9], &[good[9] | 0x80, 0], &good[10..]].concat()),
        raw("a document for a change", "document where a change", chunk(0, &[0, 0, 0, 0])),
        raw("what does not inflate", "deflate stream", [&good[..8], &[2, 3, 7, 7, 7]].concat()),
        raw("bytes behind what inflates", "follow the deflate stream", packed),
    ]
}

fn documents() -> Vec<Vector> {
    let zeros = deflate(&vec![0; 40 << 20]);
    let letters = deflate(&vec![b'a'; 40 << 20]);
    let numbers = deflate(&vec![1; 40 << 20]);
    let packed = |spec: u32, bytes: &[u8]| {
        let bytes = bytes.to_vec();
        move |parts: &mut DocumentParts| {
            parts.operations.set(spec, Vec::new());
            parts.operations.set(spec | 8, bytes);
        }
    };
    let first = |spec: u32, bytes: Vec<u8>| {
        move |parts: &mut DocumentParts| {
            parts.changes.set(spec, bytes);
        }
    };
    let in_operations = |spec: u32, bytes: Vec<u8>| {
        move |parts: &mut DocumentParts| {
            parts.operations.set(spec, bytes);
        }
    };
    vec![
        document("keys of forty megabytes", "inflated bytes of a document", packed(KEY_NAME, &letters)),
        document("counters of forty megabytes", "inflated bytes of a document", packed(ID_COUNTER, &numbers)),
        document("actions of forty megabytes", "inflated bytes of a document", packed(ACTION, &zeros)),
        document("values of forty megabytes", "longer than the values", |parts| {
            parts.operations.set(META, run(1, 5 << 24 | 7)).set(VALUE, Vec::new()).set(VALUE | 8, letters.clone());
        }),
        document("a value above all bounds", "bytes of a value", in_operations(META, run(1, u64::MAX - 8))),
        document("messages of forty megabytes", "inflated bytes of a document", {
            let letters = letters.clone();
            move |parts: &mut DocumentParts| {
                parts.changes.set(0x35 | 8, letters);
            }
        }),
        document("a million million operations", "operations of a document", in_operations(ID_ACTOR, run(HUGE, 0))),
        document(
            "a hundred million operations",
            "operations of a document",
            in_operations(ID_ACTOR, run(100_000_000, 0)),
        ),
        document("a million million changes", "changes of a document", first(0x01, run(HUGE, 0))),
        document("a million million dependencies", "column of dependencies", first(0x40, run(1, HUGE as u64))),
        document(
            "a million million successors",
            "column of successors",
            in_operations(SUCCESSORS, run(1, HUGE as u64)),
        ),
        document("a dependency that comes later", "not an earlier change", |parts| {
            parts.changes.set(0x40, run(1, 1)).set(0x43, slope(1, 7));
        }),
        document("a change by nobody", "not listed", first(0x01, run(1, 7))),
        document("an operation by nobody", "not listed", in_operations(ID_ACTOR, run(1, 7))),
        document("a successor by nobody", "not listed", |parts| {
            parts.operations.set(SUCCESSORS, run(1, 1)).set(0x81, run(1, 7)).set(0x83, slope(1, 5));
        }),
        document("an element by nobody", "not listed", |parts| {
            parts.operations.set(KEY_NAME, Vec::new()).set(KEY_ACTOR, run(1, 7)).set(KEY_COUNTER, slope(1, 1));
        }),
        document("an object by nobody", "not listed", |parts| {
            parts.operations.set(OBJECT_ACTOR, run(1, 7)).set(OBJECT_COUNTER, run(1, 1));
        }),
        document("numbers with a gap", "not in a row", first(0x03, slope(1, 2))),
        document("a last operation beyond all counters", "out of range", first(0x13, slope(1, 1 << 32))),
        document("an operation beyond all counters", "out of range", in_operations(ID_COUNTER, slope(1, 1 << 32))),
        document("an operation 0", "out of range", in_operations(ID_COUNTER, slope(1, 0))),
        document("the greatest time", "out of range", first(0x23, slope(1, i64::MAX))),
        document("extra bytes that are not there", "too early", first(0x56, run(1, 0x57))),
        document("a deletion", "no deletions", in_operations(ACTION, run(1, 3))),
        document("a value that is no text", "not UTF-8", |parts| {
            parts.operations.set(META, run(1, 0x16)).set(VALUE, vec![0xff]);
        }),
        document("a key that is no text", "not UTF-8", in_operations(KEY_NAME, vec![0x7f, 1, 0xff])),
        document("actors out of order", "not in order", |parts| parts.actors.push(vec![1])),
        document("heads out of order", "do not ascend", |parts| parts.heads.push([0; 32])),
        document("bytes behind the indices", "bytes follow", |parts| parts.suffix.push(0)),
        document("a column twice", "there twice", |parts| {
            let again = parts.operations.0[0].clone();
            parts.operations.0.insert(0, again);
        }),
        document("a change for a document", "change where a document", |_| {}),
    ]
    .into_iter()
    .map(|mut vector| {
        if vector.name == "a change for a document" {
            vector.bytes = ChangeParts::one().chunk();
        }
        vector
    })
    .collect()
}

fn messages() -> Vec<Vector> {
    let filter = |bytes: &[u8]| [&[0x42, 0, 0, 1, 0, bytes.len() as u8], bytes, &[0]].concat();
    vec![
        message("a filter of no bits", "no bits", &filter(&[1, 0, 7])),
        message("four thousand million probes", "probes", &filter(&[1, 10, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0])),
        message("four thousand million entries", "entries", &filter(&[0xff, 0xff, 0xff, 0xff, 0x0f, 10, 7])),
        message("five filters", "filters", &[0x42, 0, 0, 5]),
        message("heads without end", "too early", &[&[0x42][..], &uleb(1 << 63)].concat()),
        message("chunks without end", "too early", &[&[0x42, 0, 0, 0][..], &uleb(1 << 63)].concat()),
    ]
}
