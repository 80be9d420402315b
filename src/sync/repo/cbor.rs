//! Reading CBOR that a stranger sent, and writing it as stock JavaScript clients do.
//!
//! Reading has two steps. [`fields`] walks one map and gives each value as the bytes it takes up, with nesting bounded
//! and nothing decoded; the value's reader then takes those bytes. So a field that nobody asks for costs a walk, and no
//! length that the bytes claim is ever allocated: all that is taken lies in the message.

use std::borrow::Cow;

use minicbor::data::Type;
use minicbor::decode::Decoder;
use minicbor::encode::Encoder;

use super::wire::WireError;
use crate::limits::Limits;

/// The largest integer that a JavaScript number holds exactly.
const SAFE_INTEGER_MAX: f64 = 9_007_199_254_740_992.0;

/// One value, not decoded yet, and the bounds it has to keep.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    bytes: &'a [u8],
    bounds: Bounds,
}

#[derive(Clone, Copy)]
struct Bounds {
    depth: usize,
    text_bytes: usize,
    list_items: usize,
}

/// Whether the bytes are one whole value and nothing else.
pub(super) fn is_whole(bytes: &[u8], limits: &Limits) -> bool {
    let mut decoder = Decoder::new(bytes);
    skip(&mut decoder, limits.repo_depth).is_ok() && decoder.position() == bytes.len()
}

/// Gives every entry of the map that `bytes` are, all of them, to `take`; entries whose key is no text are passed over.
pub(super) fn fields<'a>(
    bytes: &'a [u8],
    limits: &Limits,
    take: &mut dyn FnMut(Cow<'a, str>, Value<'a>) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let bounds =
        Bounds { depth: limits.repo_depth, text_bytes: limits.repo_text_bytes, list_items: limits.repo_list_items };
    let end = entries(bytes, bounds, take)?;
    if end == bytes.len() { Ok(()) } else { Err(WireError::Malformed("bytes follow the message")) }
}

fn entries<'a>(
    bytes: &'a [u8],
    bounds: Bounds,
    take: &mut dyn FnMut(Cow<'a, str>, Value<'a>) -> Result<(), WireError>,
) -> Result<usize, WireError> {
    let mut decoder = Decoder::new(bytes);
    skip_tags(&mut decoder)?;
    if !matches!(decoder.datatype()?, Type::Map | Type::MapIndef) {
        return Err(WireError::Malformed("not a map"));
    }
    let mut left = decoder.map()?;
    loop {
        match &mut left {
            Some(0) => break,
            Some(count) => *count -= 1,
            None if decoder.datatype()? == Type::Break => {
                decoder.set_position(decoder.position() + 1);
                break;
            }
            None => {}
        }
        let key = part(&mut decoder, bounds)?;
        let value = part(&mut decoder, bounds)?;
        if key.is_text()? {
            take(key.any_text()?, value)?;
        }
    }
    Ok(decoder.position())
}

/// Steps over one value and gives it.
fn part<'a>(decoder: &mut Decoder<'a>, bounds: Bounds) -> Result<Value<'a>, WireError> {
    let from = decoder.position();
    skip(decoder, bounds.depth)?;
    Ok(Value { bytes: &decoder.input()[from..decoder.position()], bounds })
}

/// Steps over one value that is nested at most `depth` levels deep.
fn skip(decoder: &mut Decoder<'_>, depth: usize) -> Result<(), WireError> {
    let Some(below) = depth.checked_sub(1) else { return Err(WireError::Malformed("nested too deeply")) };
    let items = match decoder.datatype()? {
        Type::Array | Type::ArrayIndef => decoder.array()?,
        Type::Map | Type::MapIndef => decoder.map()?.map(|count| count.saturating_mul(2)),
        Type::Tag => {
            decoder.tag()?;
            return skip(decoder, below);
        }
        Type::Break => return Err(WireError::Malformed("an end where a value should be")),
        // What is left has no values in it.
        _ => return Ok(decoder.skip()?),
    };
    match items {
        Some(count) => (0..count).try_for_each(|_| skip(decoder, below)),
        None => {
            while decoder.datatype()? != Type::Break {
                skip(decoder, below)?;
            }
            decoder.set_position(decoder.position() + 1);
            Ok(())
        }
    }
}

/// Steps over tags: what they say about the value is nothing to us. They were counted when the value was stepped over.
fn skip_tags(decoder: &mut Decoder<'_>) -> Result<(), WireError> {
    while decoder.datatype()? == Type::Tag {
        decoder.tag()?;
    }
    Ok(())
}

impl<'a> Value<'a> {
    fn decoder(self) -> Result<(Decoder<'a>, Type), WireError> {
        let mut decoder = Decoder::new(self.bytes);
        skip_tags(&mut decoder)?;
        let kind = decoder.datatype()?;
        Ok((decoder, kind))
    }

    /// Whether it is `null` or `undefined`, which both stand for nothing.
    pub(super) fn is_absent(self) -> Result<bool, WireError> {
        Ok(matches!(self.decoder()?.1, Type::Null | Type::Undefined))
    }

    fn is_text(self) -> Result<bool, WireError> {
        Ok(matches!(self.decoder()?.1, Type::String | Type::StringIndef))
    }

    /// A text of the bounded length.
    pub(super) fn text(self) -> Result<Cow<'a, str>, WireError> {
        if !self.is_text()? {
            return Err(WireError::Malformed("a text is something else"));
        }
        let text = self.any_text()?;
        let max = self.bounds.text_bytes;
        if text.len() > max {
            return Err(WireError::TooMany { what: "bytes in a text", found: text.len(), max });
        }
        Ok(text)
    }

    fn any_text(self) -> Result<Cow<'a, str>, WireError> {
        let (mut decoder, kind) = self.decoder()?;
        if kind == Type::String {
            return Ok(Cow::Borrowed(decoder.str()?));
        }
        let mut text = String::new();
        for piece in decoder.str_iter()? {
            text.push_str(piece?);
        }
        Ok(Cow::Owned(text))
    }

    pub(super) fn bytes(self) -> Result<Cow<'a, [u8]>, WireError> {
        let (mut decoder, kind) = self.decoder()?;
        match kind {
            Type::Bytes => Ok(Cow::Borrowed(decoder.bytes()?)),
            Type::BytesIndef => {
                let mut bytes = Vec::new();
                for piece in decoder.bytes_iter()? {
                    bytes.extend_from_slice(piece?);
                }
                Ok(Cow::Owned(bytes))
            }
            _ => Err(WireError::Malformed("bytes are something else")),
        }
    }

    pub(super) fn bool(self) -> Result<bool, WireError> {
        let (mut decoder, kind) = self.decoder()?;
        if kind == Type::Bool { Ok(decoder.bool()?) } else { Err(WireError::Malformed("a bool is something else")) }
    }

    /// A finite number, whatever its form.
    pub(super) fn number(self) -> Result<f64, WireError> {
        let (mut decoder, kind) = self.decoder()?;
        let number = match kind {
            Type::U8 | Type::U16 | Type::U32 | Type::U64 => decoder.u64()? as f64,
            Type::I8 | Type::I16 | Type::I32 | Type::I64 => decoder.i64()? as f64,
            Type::F16 => decoder.f16()?.into(),
            Type::F32 => decoder.f32()?.into(),
            Type::F64 => decoder.f64()?,
            _ => return Err(WireError::Malformed("a number is something else")),
        };
        if number.is_finite() { Ok(number) } else { Err(WireError::Malformed("a number is not finite")) }
    }

    /// A whole number that JavaScript can count to.
    pub(super) fn count(self) -> Result<u64, WireError> {
        let number = self.number()?;
        if (0.0..=SAFE_INTEGER_MAX).contains(&number) && number.fract() == 0.0 {
            Ok(number as u64)
        } else {
            Err(WireError::Malformed("a count is no whole number"))
        }
    }

    /// The texts of a list of a bounded length; what is no text in it is passed over.
    pub(super) fn texts(self) -> Result<Vec<Cow<'a, str>>, WireError> {
        let (mut decoder, kind) = self.decoder()?;
        if !matches!(kind, Type::Array | Type::ArrayIndef) {
            return Err(WireError::Malformed("a list is something else"));
        }
        let mut left = decoder.array()?;
        let mut texts = Vec::new();
        for read in 0_usize.. {
            match &mut left {
                Some(0) => break,
                Some(count) => *count -= 1,
                None if decoder.datatype()? == Type::Break => break,
                None => {}
            }
            self.check_items(read + 1)?;
            let item = part(&mut decoder, self.bounds)?;
            if item.is_text()? {
                texts.push(item.text()?);
            }
        }
        Ok(texts)
    }

    /// The entries of a map of a bounded length.
    pub(super) fn map(self) -> Result<Vec<(Cow<'a, str>, Value<'a>)>, WireError> {
        let mut map: Vec<(Cow<'a, str>, Value<'a>)> = Vec::new();
        entries(self.bytes, self.bounds, &mut |key, value| {
            self.check_items(map.len() + 1)?;
            map.push((key, value));
            Ok(())
        })?;
        Ok(map)
    }

    fn check_items(self, found: usize) -> Result<(), WireError> {
        let max = self.bounds.list_items;
        if found <= max { Ok(()) } else { Err(WireError::TooMany { what: "items in a list", found, max }) }
    }
}

/// Writes values in the forms that cbor-x writes.
pub(super) struct Writer(Encoder<Vec<u8>>);

impl Writer {
    pub(super) fn new() -> Self {
        Self(Encoder::new(Vec::new()))
    }

    /// Begins a map of so many entries. cbor-x gives each map a length of 16 bits.
    pub(super) fn map(&mut self, entries: u16) {
        self.0.writer_mut().push(0xb9);
        self.0.writer_mut().extend_from_slice(&entries.to_be_bytes());
    }

    pub(super) fn text(&mut self, text: &str) {
        self.put(|encoder| encoder.str(text).is_ok());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.put(|encoder| encoder.bytes(bytes).is_ok());
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.put(|encoder| encoder.bool(value).is_ok());
    }

    pub(super) fn list(&mut self, items: usize) {
        self.put(|encoder| encoder.array(items as u64).is_ok());
    }

    /// JavaScript reads integers of 64 bits as another type than its numbers, so what needs them is written as a float.
    pub(super) fn count(&mut self, count: u64) {
        match u32::try_from(count) {
            Ok(count) => self.put(|encoder| encoder.u32(count).is_ok()),
            Err(_) => self.float(count as f64),
        }
    }

    pub(super) fn float(&mut self, value: f64) {
        self.put(|encoder| encoder.f64(value).is_ok());
    }

    fn put(&mut self, put: impl FnOnce(&mut Encoder<Vec<u8>>) -> bool) {
        // Writing into memory does not fail.
        let written = put(&mut self.0);
        debug_assert!(written);
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0.into_writer()
    }
}
