//! Chunks made by hand, with true checksums.

use flate2::Compression;
use flate2::write::DeflateEncoder;
use sha2::{Digest, Sha256};
use std::io::Write;
use tidelog::{Change, ChangeHash};

/// What every chunk begins with.
pub(super) const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];

/// A chunk of this type around `contents`.
pub(super) fn chunk(kind: u8, contents: &[u8]) -> Vec<u8> {
    let mut hasher = Sha256::new();
    hasher.update([kind]);
    hasher.update(uleb(contents.len() as u64));
    hasher.update(contents);
    let hash: [u8; 32] = hasher.finalize().into();
    [&MAGIC[..], &hash[..4], &[kind], &uleb(contents.len() as u64), contents].concat()
}

/// A deflated change: its checksum is that of what it inflates to.
pub(super) fn deflated(contents: &[u8]) -> Vec<u8> {
    let plain = chunk(1, contents);
    let packed = deflate(contents);
    [&plain[..8], &[2], &uleb(packed.len() as u64), &packed].concat()
}

pub(super) fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn uleb(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

pub(super) fn sleb(mut number: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = (number & 0x7f) as u8;
        number >>= 7;
        if (number == 0 && byte & 0x40 == 0) || (number == -1 && byte & 0x40 != 0) {
            bytes.push(byte);
            return bytes;
        }
        bytes.push(byte | 0x80);
    }
}

/// `count` times an unsigned number.
pub(super) fn run(count: i64, value: u64) -> Vec<u8> {
    if count == 1 { [sleb(-1), uleb(value)].concat() } else { [sleb(count), uleb(value)].concat() }
}

/// `count` times a signed number.
pub(super) fn slope(count: i64, step: i64) -> Vec<u8> {
    if count == 1 { [sleb(-1), sleb(step)].concat() } else { [sleb(count), sleb(step)].concat() }
}

/// `count` times nothing.
pub(super) fn nothing(count: u64) -> Vec<u8> {
    [sleb(0), uleb(count)].concat()
}

/// Text, `count` times.
pub(super) fn text(count: i64, value: &str) -> Vec<u8> {
    let value = [uleb(value.len() as u64), value.as_bytes().to_vec()].concat();
    if count == 1 { [sleb(-1), value].concat() } else { [sleb(count), value].concat() }
}

pub(super) const OBJECT_ACTOR: u32 = 0x01;
pub(super) const OBJECT_COUNTER: u32 = 0x02;
pub(super) const KEY_ACTOR: u32 = 0x11;
pub(super) const KEY_COUNTER: u32 = 0x13;
pub(super) const KEY_NAME: u32 = 0x15;
pub(super) const ID_ACTOR: u32 = 0x21;
pub(super) const ID_COUNTER: u32 = 0x23;
pub(super) const INSERT: u32 = 0x34;
pub(super) const ACTION: u32 = 0x42;
pub(super) const META: u32 = 0x56;
pub(super) const VALUE: u32 = 0x57;
pub(super) const PREDECESSORS: u32 = 0x70;
pub(super) const PREDECESSOR_ACTOR: u32 = 0x71;
pub(super) const PREDECESSOR_COUNTER: u32 = 0x73;
pub(super) const SUCCESSORS: u32 = 0x80;
pub(super) const EXPAND: u32 = 0x94;
pub(super) const MARK_NAME: u32 = 0xa5;

/// A list of columns, each with its specification as it stands there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Columns(pub(super) Vec<(u32, Vec<u8>)>);

impl Columns {
    pub(super) fn set(&mut self, spec: u32, bytes: Vec<u8>) -> &mut Self {
        self.0.retain(|(known, _)| *known != spec);
        if !bytes.is_empty() {
            self.0.push((spec, bytes));
            self.0.sort_by_key(|(spec, _)| *spec & !8);
        }
        self
    }

    pub(super) fn list(&self) -> Vec<u8> {
        let mut bytes = uleb(self.0.len() as u64);
        for (spec, column) in &self.0 {
            bytes.extend(uleb(u64::from(*spec)));
            bytes.extend(uleb(column.len() as u64));
        }
        bytes
    }

    pub(super) fn data(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(_, column)| column.iter().copied()).collect()
    }

    fn read(input: &mut &[u8]) -> Option<Vec<(u32, usize)>> {
        (0..read_uleb(input)?).map(|_| Some((read_uleb(input)? as u32, read_uleb(input)? as usize))).collect()
    }

    fn take(input: &mut &[u8], list: Vec<(u32, usize)>) -> Option<Self> {
        list.into_iter()
            .map(|(spec, length)| Some((spec, take(input, length)?.to_vec())))
            .collect::<Option<_>>()
            .map(Self)
    }
}

/// A change taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChangeParts {
    pub(super) deps: Vec<[u8; 32]>,
    pub(super) actor: Vec<u8>,
    pub(super) seq: u64,
    pub(super) start: u64,
    pub(super) time: i64,
    pub(super) message: Vec<u8>,
    pub(super) others: Vec<Vec<u8>>,
    pub(super) columns: Columns,
    pub(super) extra: Vec<u8>,
}

impl ChangeParts {
    /// A first change that sets `k` to `null` at the root.
    pub(super) fn one() -> Self {
        let mut columns = Columns::default();
        columns
            .set(KEY_NAME, text(1, "k"))
            .set(INSERT, uleb(1))
            .set(ACTION, run(1, 1))
            .set(META, run(1, 0))
            .set(PREDECESSORS, run(1, 0));
        Self {
            deps: Vec::new(),
            actor: vec![0xaa; 16],
            seq: 1,
            start: 1,
            time: 0,
            message: Vec::new(),
            others: Vec::new(),
            columns,
            extra: Vec::new(),
        }
    }

    /// A first change that makes a text and inserts `count` characters at its beginning.
    pub(super) fn paste(count: i64, value: Vec<u8>) -> Self {
        let mut parts = Self::one();
        parts
            .columns
            .set(OBJECT_ACTOR, [nothing(1), run(count, 0)].concat())
            .set(OBJECT_COUNTER, [nothing(1), run(count, 1)].concat())
            .set(KEY_ACTOR, [nothing(2), run(count - 1, 0)].concat())
            .set(
                KEY_COUNTER,
                match count {
                    3 => [nothing(1), sleb(-3), sleb(0), sleb(2), sleb(1)].concat(),
                    _ => [nothing(1), sleb(-2), sleb(0), sleb(2), slope(count - 2, 1)].concat(),
                },
            )
            .set(KEY_NAME, [text(1, "t"), nothing(count as u64)].concat())
            .set(INSERT, [uleb(1), uleb(count as u64)].concat())
            .set(ACTION, [sleb(-1), uleb(4), run(count, 1)].concat())
            .set(META, [sleb(-1), uleb(0), run(count, 0x16)].concat())
            .set(VALUE, value)
            .set(PREDECESSORS, run(count + 1, 0));
        parts
    }

    pub(super) fn contents(&self) -> Vec<u8> {
        let mut bytes = uleb(self.deps.len() as u64);
        bytes.extend(self.deps.concat());
        bytes.extend(uleb(self.actor.len() as u64));
        bytes.extend(&self.actor);
        bytes.extend(uleb(self.seq));
        bytes.extend(uleb(self.start));
        bytes.extend(sleb(self.time));
        bytes.extend(uleb(self.message.len() as u64));
        bytes.extend(&self.message);
        bytes.extend(uleb(self.others.len() as u64));
        for other in &self.others {
            bytes.extend(uleb(other.len() as u64));
            bytes.extend(other);
        }
        bytes.extend(self.columns.list());
        bytes.extend(self.columns.data());
        bytes.extend(&self.extra);
        bytes
    }

    pub(super) fn chunk(&self) -> Vec<u8> {
        chunk(1, &self.contents())
    }

    /// Takes a plain change chunk apart.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let mut input = bytes.get(9..)?;
        read_uleb(&mut input)?;
        let count = read_uleb(&mut input)?;
        let deps = (0..count).map(|_| take(&mut input, 32)?.try_into().ok()).collect::<Option<_>>()?;
        let actor = prefixed(&mut input)?;
        let (seq, start, time) = (read_uleb(&mut input)?, read_uleb(&mut input)?, read_sleb(&mut input)?);
        let message = prefixed(&mut input)?;
        let others = (0..read_uleb(&mut input)?).map(|_| prefixed(&mut input)).collect::<Option<_>>()?;
        let list = Columns::read(&mut input)?;
        let columns = Columns::take(&mut input, list)?;
        Some(Self { deps, actor, seq, start, time, message, others, columns, extra: input.to_vec() })
    }
}

/// A document taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DocumentParts {
    pub(super) actors: Vec<Vec<u8>>,
    pub(super) heads: Vec<[u8; 32]>,
    pub(super) changes: Columns,
    pub(super) operations: Columns,
    pub(super) suffix: Vec<u8>,
}

impl DocumentParts {
    pub(super) fn chunk(&self) -> Vec<u8> {
        let mut bytes = uleb(self.actors.len() as u64);
        for actor in &self.actors {
            bytes.extend(uleb(actor.len() as u64));
            bytes.extend(actor);
        }
        bytes.extend(uleb(self.heads.len() as u64));
        bytes.extend(self.heads.concat());
        for part in [self.changes.list(), self.operations.list(), self.changes.data(), self.operations.data()] {
            bytes.extend(part);
        }
        bytes.extend(&self.suffix);
        chunk(0, &bytes)
    }

    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let mut input = bytes.get(9..)?;
        read_uleb(&mut input)?;
        let actors = (0..read_uleb(&mut input)?).map(|_| prefixed(&mut input)).collect::<Option<_>>()?;
        let count = read_uleb(&mut input)?;
        let heads = (0..count).map(|_| take(&mut input, 32)?.try_into().ok()).collect::<Option<_>>()?;
        let (changes, operations) = (Columns::read(&mut input)?, Columns::read(&mut input)?);
        let changes = Columns::take(&mut input, changes)?;
        let operations = Columns::take(&mut input, operations)?;
        Some(Self { actors, heads, changes, operations, suffix: input.to_vec() })
    }
}

pub(super) fn read_uleb(input: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(input, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

pub(super) fn read_sleb(input: &mut &[u8]) -> Option<i64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(input, 1)?[0];
        number |= i64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(if shift < 57 && byte & 0x40 != 0 { number | (-1 << (shift + 7)) } else { number });
        }
    }
    None
}

fn take<'a>(input: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = input.split_at_checked(length)?;
    *input = left;
    Some(taken)
}

fn prefixed(input: &mut &[u8]) -> Option<Vec<u8>> {
    let length = usize::try_from(read_uleb(input)?).ok()?;
    Some(take(input, length)?.to_vec())
}

/// A change by that author under that number, as `edit` has it.
pub(super) fn forged(
    deps: &[ChangeHash],
    start: u64,
    author: (u8, u64),
    edit: impl FnOnce(&mut ChangeParts),
) -> Change {
    let mut parts = ChangeParts::one();
    (parts.actor, parts.seq, parts.start) = (vec![author.0; 16], author.1, start);
    parts.deps = deps.iter().map(|hash| hash.0).collect();
    parts.deps.sort_unstable();
    edit(&mut parts);
    Change::parse(parts.chunk()).unwrap()
}
