//! Inflating what is deflated, within bounds.

use std::io::{BufReader, Read};

use flate2::bufread::DeflateDecoder;

use super::error::{GateError, at_most};

/// Inflates all of `bytes`, which must be one stream that comes to at most `max` bytes.
///
/// # Cost
/// 3 to 10 ns a byte that comes out. The memory grows with what comes out, never by what is claimed.
pub(super) fn inflate(bytes: &[u8], max: usize, what: &'static str) -> Result<Vec<u8>, GateError> {
    let mut inflated = Vec::with_capacity(bytes.len().saturating_mul(3).min(max));
    let mut decoder = DeflateDecoder::new(bytes);
    let read = Read::by_ref(&mut decoder).take((max as u64).saturating_add(1)).read_to_end(&mut inflated);
    read.map_err(|_| damaged("it is no deflate stream"))?;
    at_most(what, inflated.len() as u64, max as u64)?;
    if decoder.total_in() != bytes.len() as u64 {
        return Err(damaged("bytes follow the deflate stream"));
    }
    Ok(inflated)
}

/// A column that is read once, from front to back, without being held.
pub(super) struct Stream<'a> {
    source: BufReader<Source<'a>>,
    left: u64,
}

enum Source<'a> {
    Plain(&'a [u8]),
    Deflated(DeflateDecoder<&'a [u8]>),
}

impl<'a> Stream<'a> {
    /// Begins to read a column that may come to at most `max` bytes.
    pub(super) fn new(bytes: &'a [u8], deflated: bool, max: u64) -> Self {
        let source = if deflated { Source::Deflated(DeflateDecoder::new(bytes)) } else { Source::Plain(bytes) };
        Self { source: BufReader::with_capacity(1 << 15, source), left: max }
    }

    /// Reads on until `into` is full.
    pub(super) fn fill(&mut self, into: &mut [u8]) -> Result<(), GateError> {
        self.left = self.left.checked_sub(into.len() as u64).ok_or_else(|| damaged("it inflates too far"))?;
        self.source.read_exact(into).map_err(|_| damaged("it ends too early"))
    }

    /// Makes sure that everything was read.
    pub(super) fn finish(&mut self) -> Result<(), GateError> {
        let mut more = [0];
        let read = self.source.read(&mut more).map_err(|_| damaged("it is no deflate stream"))?;
        let whole = match self.source.get_ref() {
            Source::Plain(left) => left.is_empty(),
            Source::Deflated(decoder) => decoder.get_ref().is_empty(),
        };
        match (read, whole) {
            (0, true) => Ok(()),
            (0, false) => Err(damaged("bytes follow the deflate stream")),
            _ => Err(damaged("it is longer than the values")),
        }
    }
}

impl Read for Source<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(bytes) => bytes.read(into),
            Self::Deflated(decoder) => decoder.read(into),
        }
    }
}

fn damaged(why: &'static str) -> GateError {
    GateError::Malformed { part: "deflated bytes", why }
}
