//! Reading from the front of a slice.

use super::error::Fault;

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub(in crate::document) struct Input<'a> {
    pub(in crate::document) left: &'a [u8],
}

impl<'a> Input<'a> {
    pub(in crate::document) fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    pub(in crate::document) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let (taken, left) = self.left.split_at_checked(length).ok_or("it ends too early")?;
        self.left = left;
        Ok(taken)
    }

    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, Fault> {
        let (first, left) = self.left.split_first().ok_or("it ends too early")?;
        self.left = left;
        Ok(*first)
    }

    /// An unsigned LEB128 number in its shortest form.
    #[inline]
    pub(super) fn unsigned(&mut self) -> Result<u64, Fault> {
        let first = self.byte()?;
        if first & 0x80 == 0 {
            return Ok(first.into());
        }
        let mut number = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return if bits == 0 { Err("a number is overlong") } else { Ok(number) };
            }
        }
        Err("a number does not fit 64 bits")
    }

    /// A signed LEB128 number in its shortest form.
    #[inline]
    pub(super) fn signed(&mut self) -> Result<i64, Fault> {
        let mut number = 0_i64;
        let mut before = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= i64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                if shift == 63 && byte != 0 && byte != 0x7f {
                    break;
                }
                let needless = (byte == 0 && before & 0x40 == 0) || (byte == 0x7f && before & 0x40 != 0);
                if shift > 0 && needless {
                    return Err("a number is overlong");
                }
                if shift < 57 && byte & 0x40 != 0 {
                    number |= -1 << (shift + 7);
                }
                return Ok(number);
            }
            before = byte;
        }
        Err("a number does not fit 64 bits")
    }

    /// A length, and that many bytes.
    pub(super) fn prefixed(&mut self) -> Result<&'a [u8], Fault> {
        let length = self.unsigned()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// A count, and that many hashes of 32 bytes.
    pub(super) fn hashes(&mut self) -> Result<&'a [[u8; 32]], Fault> {
        let count = usize::try_from(self.unsigned()?).unwrap_or(usize::MAX);
        let (hashes, _) = self.take(count.saturating_mul(32))?.as_chunks::<32>();
        Ok(hashes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_has_one_form() {
        let unsigned = |bytes: &[u8]| Input::new(bytes).unsigned();
        assert_eq!(unsigned(&[0x7f]), Ok(127));
        assert_eq!(unsigned(&[0x80, 0x01]), Ok(128));
        assert_eq!(unsigned(&[0x80, 0x00]), Err("a number is overlong"));
        assert_eq!(unsigned(&[0x80]), Err("it ends too early"));
        let max = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(unsigned(&max), Ok(u64::MAX));
        assert!(unsigned(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]).is_err());
        assert!(unsigned(&[0x80; 11]).is_err());
        let signed = |bytes: &[u8]| Input::new(bytes).signed();
        assert_eq!(signed(&[0x40]), Ok(-64));
        assert_eq!(signed(&[0xc0, 0x00]), Ok(64));
        assert_eq!(signed(&[0xff, 0x7f]), Err("a number is overlong"));
        assert_eq!(signed(&[0xbf, 0x7f]), Ok(-65));
        assert!(signed(&[0x80; 11]).is_err());
        assert_eq!(Input::new(&[3, 1, 2]).prefixed(), Err("it ends too early"));
        assert_eq!(Input::new(&max).hashes().err(), Some("it ends too early"));
    }

    /// Writes as the `leb128` crate does.
    fn signed_bytes(mut number: i64) -> Vec<u8> {
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

    proptest! {
        #[test]
        fn signed_numbers_come_back(number in any::<i64>(), shift in 0_u32..64) {
            let number = number >> shift;
            prop_assert_eq!(Input::new(&signed_bytes(number)).signed(), Ok(number));
        }
    }
}
