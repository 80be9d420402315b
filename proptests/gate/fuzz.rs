//! Random damage with true checksums: whatever passes the gate does not make automerge panic while it is parsed, and
//! where it panics later it is caught and named.
//!
//! `TIDELOG_FUZZ_SECONDS` says for how long, `TIDELOG_FUZZ_SEED` from which seed; a failure prints the seed of its one
//! input. So `TIDELOG_FUZZ_SEED=<it> TIDELOG_FUZZ_SECONDS=0` repeats it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::forge::{self, ChangeParts, Columns, DocumentParts, chunk, deflate, deflated};
use super::honest::{chunks_of, interwoven};
use super::targets::{self, Ground, Passage};

/// A small generator, so that one number is a whole input.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// A document to apply to, and a chunk that honestly comes after it.
struct Seed {
    ground: Ground,
    chunk: Vec<u8>,
}

/// Documents of different sizes, each with its last changes as what may come next, and each as a whole.
fn corpus() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for n in 0..12_u64 {
        let mut random = Random::new(n);
        let steps: Vec<_> =
            (0..n * 4).map(|_| (random.next() as u8, random.next() as u8, random.next() as u16)).collect();
        let mut doc = interwoven(&steps);
        let changes = doc.get_changes(&[]);
        for last in changes.iter().rev().take(6) {
            let ground = Ground::new(doc.fork_at(last.deps()).unwrap().save());
            seeds.push(Seed { ground, chunk: last.raw_bytes().to_vec() });
        }
        let whole = chunks_of(&mut doc);
        let empty = Ground::new(automerge::AutoCommit::new().save());
        seeds.extend(whole.into_iter().rev().take(2).map(|chunk| Seed { ground: empty.clone(), chunk }));
    }
    seeds
}

fn mutate_bytes(random: &mut Random, bytes: &mut Vec<u8>) {
    const INTERESTING: [u8; 12] = [0, 1, 2, 0x3f, 0x40, 0x7e, 0x7f, 0x80, 0xff, 0x16, 0x10, 3];
    match random.below(7) {
        0 if !bytes.is_empty() => {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
        1 if !bytes.is_empty() => {
            let at = random.below(bytes.len());
            bytes[at] = *random.pick(&INTERESTING);
        }
        2 => bytes.insert(random.below(bytes.len() + 1), *random.pick(&INTERESTING)),
        3 if !bytes.is_empty() => {
            bytes.remove(random.below(bytes.len()));
        }
        4 => bytes.truncate(random.below(bytes.len() + 1)),
        5 if !bytes.is_empty() => {
            let at = random.below(bytes.len());
            bytes[at] = bytes[at].wrapping_add([1, 255, 2, 254][random.below(4)]);
        }
        _ => {
            let many = forge::uleb(random.next() >> random.below(64));
            let at = random.below(bytes.len() + 1);
            bytes.splice(at..at, many);
        }
    }
}

/// A whole column that is well formed, whatever it says.
fn column(random: &mut Random, spec: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..=random.below(3) {
        let count = 1 + random.below(6) as i64;
        let small = random.below(12) as u64;
        bytes.extend(match spec & 7 {
            3 => forge::slope(count, small as i64 - 5),
            4 => forge::uleb(small % 5),
            5 => forge::text(count, ["k0", "text", "", "é", "list"][random.below(5)]),
            6 => forge::run(count, *random.pick(&[0, 1, 2, 0x13, 0x14, 0x85, 0x16, 0x26, 0x17, 0x18, 0x19, 0x1a])),
            7 => (0..small).map(|_| random.next() as u8 & 0x7f).collect(),
            _ if random.below(4) == 0 => forge::nothing(count as u64),
            _ => forge::run(count, small),
        });
    }
    bytes
}

fn mutate_columns(random: &mut Random, columns: &mut Columns) {
    if columns.0.is_empty() {
        return;
    }
    let at = random.below(columns.0.len());
    match random.below(12) {
        0 => {
            columns.0.remove(at);
        }
        1 => {
            let again = columns.0[at].clone();
            columns.0.insert(at, again);
        }
        2 => {
            let other = random.below(columns.0.len());
            columns.0.swap(at, other);
        }
        3 => columns.0[at].0 ^= 1 << random.below(9),
        4 => columns.0[at].1 = column(random, columns.0[at].0),
        5 => {
            let spec = *random.pick(&[
                forge::OBJECT_ACTOR,
                forge::OBJECT_COUNTER,
                forge::KEY_ACTOR,
                forge::KEY_COUNTER,
                forge::KEY_NAME,
                forge::ID_ACTOR,
                forge::ID_COUNTER,
                forge::INSERT,
                forge::ACTION,
                forge::META,
                forge::VALUE,
                forge::PREDECESSORS,
                forge::PREDECESSOR_ACTOR,
                forge::PREDECESSOR_COUNTER,
                forge::SUCCESSORS,
                forge::EXPAND,
                forge::MARK_NAME,
            ]);
            let bytes = column(random, spec);
            columns.set(spec, bytes);
        }
        6 => {
            columns.0[at].1 = deflate(&columns.0[at].1);
            columns.0[at].0 |= 8;
        }
        _ => mutate_bytes(random, &mut columns.0[at].1),
    }
}

fn mutate_change(random: &mut Random, parts: &mut ChangeParts) {
    match random.below(14) {
        0 => parts.seq = parts.seq.wrapping_add([1, u64::MAX, 7, 1 << 32][random.below(4)]),
        1 => {
            parts.start =
                [parts.start + 1, parts.start.wrapping_sub(1), 1, 1 << 20, 1 << 31, u32::MAX.into()][random.below(6)]
        }
        2 => parts.time = [i64::MIN, i64::MAX, -1, 1 << 53][random.below(4)],
        3 => mutate_bytes(random, &mut parts.message),
        4 => mutate_bytes(random, &mut parts.extra),
        5 => match random.below(4) {
            0 => parts.others.clear(),
            1 => parts.others.push(vec![0xff; 1 + random.below(70)]),
            2 => parts.others.reverse(),
            _ => parts.others.push(parts.actor.clone()),
        },
        6 => match random.below(3) {
            0 => parts.deps.clear(),
            1 => parts.deps.reverse(),
            _ => parts.deps.extend(parts.deps.first().copied()),
        },
        7 => mutate_bytes(random, &mut parts.actor),
        8 => parts.extra = vec![1, 3, b'm', b'a', b'x'],
        _ => mutate_columns(random, &mut parts.columns),
    }
}

fn mutate_document(random: &mut Random, parts: &mut DocumentParts) {
    match random.below(10) {
        0 if !parts.actors.is_empty() => {
            let at = random.below(parts.actors.len());
            mutate_bytes(random, &mut parts.actors[at]);
        }
        1 => parts.actors.push(vec![0xff; 2]),
        2 => {
            parts.heads.pop();
        }
        3 => mutate_bytes(random, &mut parts.suffix),
        4..=6 => mutate_columns(random, &mut parts.changes),
        _ => mutate_columns(random, &mut parts.operations),
    }
}

/// The input that belongs to one number: what it is applied to, and the bytes.
fn input(corpus: &[Seed], number: u64) -> (&Ground, Vec<u8>) {
    let mut random = Random::new(number);
    let seed = random.pick(corpus);
    let rounds = 1 + random.below(3);
    let mut bytes = if let Some(mut parts) = (seed.chunk[8] == 1).then(|| ChangeParts::of(&seed.chunk)).flatten() {
        (0..rounds).for_each(|_| mutate_change(&mut random, &mut parts));
        if random.below(8) == 0 { deflated(&parts.contents()) } else { parts.chunk() }
    } else if let Some(mut parts) = DocumentParts::of(&seed.chunk) {
        (0..rounds).for_each(|_| mutate_document(&mut random, &mut parts));
        parts.chunk()
    } else {
        seed.chunk.clone()
    };
    if random.below(6) == 0 {
        let mut contents = bytes[11..].to_vec();
        mutate_bytes(&mut random, &mut contents);
        bytes = chunk(bytes[8], &contents);
    }
    (&seed.ground, bytes)
}

#[test]
fn what_passes_the_gate_is_harmless() {
    let seconds = environment("TIDELOG_FUZZ_SECONDS", 12);
    let first = environment("TIDELOG_FUZZ_SEED", 1);
    let corpus = corpus();
    let began = Instant::now();
    let mut counts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut number = first;
    loop {
        let (ground, bytes) = input(&corpus, number);
        let passage = catch_unwind(AssertUnwindSafe(|| targets::gate_on(ground, &bytes)));
        let passage =
            passage.unwrap_or_else(|_| panic!("repeat with TIDELOG_FUZZ_SEED={number} TIDELOG_FUZZ_SECONDS=0"));
        if seconds == 0 {
            println!("{passage:?}\n{:#?}\n{:#?}", ChangeParts::of(&bytes), DocumentParts::of(&bytes));
        }
        assert!(
            !matches!(passage, Passage::Poisoned(_)),
            "{passage:?}: repeat with TIDELOG_FUZZ_SEED={number} TIDELOG_FUZZ_SECONDS=0"
        );
        let kind = match passage {
            Passage::Refused(_) => "refused".to_owned(),
            Passage::Unopened(why) => format!("unopened: {why}"),
            Passage::Unapplied(why) => format!("unapplied: {why}"),
            Passage::Caught(why) => format!("caught ({}): {why}", bytes[8]),
            Passage::Applied => "applied".to_owned(),
            Passage::Poisoned(why) => format!("poisoned ({}): {why}", bytes[8]),
        };
        counts.entry(kind.chars().take(110).collect()).or_insert((0, number)).0 += 1;
        number += 1;
        if began.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
    }
    let executions = number - first;
    println!("{executions} executions, {:.0} a second", executions as f64 / began.elapsed().as_secs_f64());
    for (kind, (count, example)) in &counts {
        println!("{count:>8}  {kind}   (as seed {example})");
    }
}

/// Something to begin with for every parser that is not the gate.
fn other_seeds() -> Vec<Vec<u8>> {
    use tidelog::log::rows::{PeerRow, encode_row};
    use tidelog::log::{Keyspace, MemoryStorage};
    use tidelog::sync::wire::{Ack, Frame, Want, Wanted};
    use tidelog::{Database, DocumentId, Heads, Lsn};

    let database = Database::on(MemoryStorage::new()).open().unwrap();
    let notes = database.collection("notes").unwrap();
    notes.doc_with("a", serde_json::json!({ "text": "tide" })).unwrap();
    let mut seeds = Vec::new();
    for lsn in 1..=database.reader().tail().lsn.0 {
        seeds.extend(database.reader().storage().get(Keyspace::Log, &Lsn(lsn).0.to_be_bytes()).unwrap());
    }
    assert!(seeds.len() >= 3, "records are found in the log");
    let wanted = Wanted { document: DocumentId([7; 16]), heads: Heads::default() };
    let frames = [Frame::Ack(Ack { number: 300 }), Frame::Want(Want { page: 1, documents: vec![wanted] })];
    seeds.extend(frames.iter().map(|frame| frame.encode().unwrap()));
    seeds.push(encode_row(Keyspace::State, b"p", &PeerRow { log_id: [1; 16], lsn: 2, chain: [3; 16] }));
    seeds.push(vec![0x42, 1, 0, 0, 1, 0, 5, 1, 10, 7, 0, 0, 0]);
    seeds.extend(["notes/a[3].b", "aaaqeayeaudaocajbifqydiob4", "@127.0.0.1:7000#x"].map(|text| text.into()));
    seeds.push(
        br#"{"startContent":"","endContent":"ab","txns":[{"time":"2021-04-19T06:06:46.000Z","patches":[[0,0,"ab"]]}]}"#
            .to_vec(),
    );
    seeds
}

/// No parser of ours panics, whatever the bytes, and what they read they would write the same way.
#[test]
fn no_parser_panics() {
    let seconds = environment("TIDELOG_FUZZ_SECONDS", 6);
    let first = environment("TIDELOG_FUZZ_SEED", 1);
    let seeds = other_seeds();
    let began = Instant::now();
    let mut number = first;
    loop {
        let mut random = Random::new(number);
        let mut bytes = random.pick(&seeds).clone();
        (0..random.below(4)).for_each(|_| mutate_bytes(&mut random, &mut bytes));
        let all = AssertUnwindSafe(|| {
            targets::gate(&bytes);
            targets::frame(&bytes);
            targets::sync_message(&bytes);
            targets::record(&bytes);
            targets::text(&bytes);
            targets::cursor(&bytes);
            #[cfg(feature = "node")]
            targets::trace(&bytes);
        });
        if catch_unwind(all).is_err() {
            panic!("repeat with TIDELOG_FUZZ_SEED={number} TIDELOG_FUZZ_SECONDS=0: {bytes:?}");
        }
        number += 1;
        if began.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
    }
    let executions = number - first;
    println!("{executions} inputs to every parser, {:.0} a second", executions as f64 / began.elapsed().as_secs_f64());
}
