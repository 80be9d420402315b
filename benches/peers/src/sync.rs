//! Automerge's sync messages without documents: what a client says and keeps when all it needs is heads.

use automerge::sync::BloomFilter;
use rustc_hash::FxHashSet;
use sha2::{Digest, Sha256};

/// Names a change.
pub type Hash = [u8; 32];

/// Both versions of the message are read; whole documents come in the second.
const FLAGS: [u8; 3] = [0x02, 0x02, 0x84];
const CHUNK_MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];

/// A message of the other side.
#[derive(Debug, Default)]
pub struct SyncMessage<'a> {
    pub heads: Vec<Hash>,
    pub chunks: Vec<&'a [u8]>,
}

/// Reads a sync message; `None` when it is none.
pub fn read(bytes: &[u8]) -> Option<SyncMessage<'_>> {
    let mut input = Input(bytes);
    input.byte().filter(|version| matches!(version, 0x42 | 0x43))?;
    let heads = input.hashes()?;
    input.hashes()?;
    for _ in 0..input.number()? {
        input.hashes()?;
        input.prefixed()?;
    }
    let mut chunks = Vec::new();
    for _ in 0..input.number()? {
        // The first version has one chunk in each, the second all in one.
        let mut blob = Input(input.prefixed()?);
        while !blob.0.is_empty() {
            chunks.push(blob.chunk()?);
        }
    }
    Some(SyncMessage { heads, chunks })
}

/// Writes a sync message: what we have, what we need, since `shared` the changes `since`, and what we send.
pub fn write(heads: &[Hash], need: &[Hash], shared: &[Hash], since: &[Hash], chunks: &[&[u8]]) -> Vec<u8> {
    // A document chunk only travels in the second version.
    let whole = chunks.iter().any(|chunk| chunk.get(8) == Some(&0));
    let mut out = Vec::with_capacity(192 + chunks.iter().map(|chunk| chunk.len() + 4).sum::<usize>());
    out.push(if whole { 0x43 } else { 0x42 });
    hashes(&mut out, heads);
    hashes(&mut out, need);
    number(&mut out, 1);
    hashes(&mut out, shared);
    let filter = BloomFilter::from_hashes(since.iter().map(|hash| automerge::ChangeHash(*hash))).to_bytes();
    number(&mut out, filter.len());
    out.extend_from_slice(&filter);
    if whole {
        number(&mut out, 1);
        number(&mut out, chunks.iter().map(|chunk| chunk.len()).sum());
        chunks.iter().for_each(|chunk| out.extend_from_slice(chunk));
    } else {
        number(&mut out, chunks.len());
        for chunk in chunks {
            number(&mut out, chunk.len());
            out.extend_from_slice(chunk);
        }
    }
    out.extend_from_slice(&FLAGS);
    out
}

/// A client's copy of a document of which it keeps no more than the heads. They are true: computed from the changes that
/// came, not taken from what the other side says.
#[derive(Debug, Default)]
pub struct Replica {
    heads: Vec<Hash>,
    seen: FxHashSet<Hash>,
    /// Changes that came before what they depend on, with that.
    waiting: Vec<(Hash, Vec<Hash>)>,
    said: Option<Vec<Hash>>,
    /// Heads of the other side, when it said something since we did.
    their: Option<Vec<Hash>>,
}

impl Replica {
    pub fn heads(&self) -> &[Hash] {
        &self.heads
    }

    /// What to say first: nothing is here.
    pub fn request(&mut self) -> Vec<u8> {
        self.said = Some(Vec::new());
        write(&[], &[], &[], &[], &[])
    }

    /// Takes what came; `None` when it is malformed.
    pub fn receive(&mut self, message: SyncMessage<'_>) -> Option<()> {
        for chunk in &message.chunks {
            match Chunk::read(chunk)? {
                Chunk::Document { heads } => {
                    self.seen.extend(&heads);
                    self.heads = heads;
                }
                Chunk::Change { hash, deps } => self.take(hash, deps),
            }
        }
        while let Some(at) = self.waiting.iter().position(|(_, deps)| self.has_all(deps)) {
            let (hash, deps) = self.waiting.swap_remove(at);
            self.take(hash, deps);
        }
        self.their = Some(message.heads);
        Some(())
    }

    fn take(&mut self, hash: Hash, deps: Vec<Hash>) {
        if self.seen.contains(&hash) {
            return;
        }
        // What lies deeper in a document chunk is not known by name: no load has changes on top of that.
        if !self.has_all(&deps) {
            self.waiting.push((hash, deps));
            return;
        }
        self.seen.insert(hash);
        self.heads.retain(|head| !deps.contains(head));
        self.heads.push(hash);
        self.heads.sort_unstable();
    }

    fn has_all(&self, deps: &[Hash]) -> bool {
        deps.iter().all(|dep| self.seen.contains(dep))
    }

    /// What to say to the other side, by the rules that automerge follows: what is new, or that something is missing.
    pub fn answer(&mut self) -> Option<Vec<u8>> {
        let their = self.their.take();
        self.said.as_ref()?;
        if self.said.as_ref() == Some(&self.heads) && their.as_ref().is_none_or(|their| *their == self.heads) {
            return None;
        }
        let waits = |head: &Hash| self.waiting.iter().any(|(hash, _)| hash == head);
        let missing = |head: &Hash| !self.seen.contains(head) && !waits(head);
        let need: Vec<Hash> = their.into_iter().flatten().filter(missing).collect();
        self.said = Some(self.heads.clone());
        Some(write(&self.heads, &need, &self.heads, &[], &[]))
    }
}

/// What the driver has to know of a chunk.
pub enum Chunk {
    Document { heads: Vec<Hash> },
    Change { hash: Hash, deps: Vec<Hash> },
}

impl Chunk {
    /// Reads a chunk; `None` when it is malformed.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let kind = *bytes.get(8)?;
        let mut header = Input(&bytes[9..]);
        let body = header.prefixed()?;
        match kind {
            0 => {
                let mut body = Input(body);
                for _ in 0..body.number()? {
                    body.prefixed()?;
                }
                Some(Self::Document { heads: body.hashes()? })
            }
            1 => Some(Self::Change { hash: Sha256::digest(&bytes[8..]).into(), deps: Input(body).hashes()? }),
            2 => {
                let mut inflated = Vec::new();
                let mut reader = flate2::read::DeflateDecoder::new(body);
                std::io::Read::read_to_end(&mut reader, &mut inflated).ok()?;
                let mut plain = vec![1];
                number(&mut plain, inflated.len());
                plain.extend_from_slice(&inflated);
                Some(Self::Change { hash: Sha256::digest(&plain).into(), deps: Input(&inflated).hashes()? })
            }
            _ => None,
        }
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<usize> {
        let mut value = 0_usize;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn prefixed(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length)
    }

    fn hashes(&mut self) -> Option<Vec<Hash>> {
        let count = self.number()?;
        let bytes = self.take(count.checked_mul(32)?)?;
        Some(bytes.as_chunks::<32>().0.to_vec())
    }

    fn chunk(&mut self) -> Option<&'a [u8]> {
        let whole = self.0;
        if self.take(4)? != CHUNK_MAGIC {
            return None;
        }
        self.take(5)?;
        self.prefixed()?;
        Some(&whole[..whole.len() - self.0.len()])
    }
}

fn hashes(out: &mut Vec<u8>, hashes: &[Hash]) {
    number(out, hashes.len());
    hashes.iter().for_each(|hash| out.extend_from_slice(hash));
}

fn number(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
