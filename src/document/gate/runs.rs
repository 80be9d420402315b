//! A column as a row of runs.
//!
//! ```text
//! run      = n > 0, value          the value, n times
//!          | n < 0, -n values      each once
//!          | 0, n                  nothing, n times
//! booleans = n, n, ...             false, true, false ... so often each
//! ```
//! A delta column holds differences: each value is the sum of those up to it.

use super::error::Fault;
use super::input::Input;

/// What a column may hold.
pub(super) trait Item<'a>: Copy + PartialEq {
    fn read(input: &mut Input<'a>) -> Result<Self, Fault>;
}

impl Item<'_> for u64 {
    #[inline]
    fn read(input: &mut Input<'_>) -> Result<Self, Fault> {
        input.unsigned()
    }
}

impl Item<'_> for i64 {
    #[inline]
    fn read(input: &mut Input<'_>) -> Result<Self, Fault> {
        input.signed()
    }
}

impl<'a> Item<'a> for &'a str {
    fn read(input: &mut Input<'a>) -> Result<Self, Fault> {
        std::str::from_utf8(input.prefixed()?).map_err(|_| "a string is not UTF-8")
    }
}

/// Where in a column a walk is: in a run of `left` more of `value`.
///
/// Invariant: `left` is 0 only at the column's end. A column that is not there is nothing, for ever.
#[derive(Debug, Clone)]
pub(super) struct Runs<'a, T> {
    input: Input<'a>,
    value: Option<T>,
    left: u64,
    /// Values of the literal run under way that come after this one.
    literals: u64,
    before: Before,
    absent: bool,
    any_value: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Start,
    Repeated,
    Literal,
    Nothing,
}

impl<'a, T: Item<'a>> Runs<'a, T> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut runs = Self {
            input: Input::new(bytes),
            value: None,
            left: u64::MAX,
            literals: 0,
            before: Before::Start,
            absent: bytes.is_empty(),
            any_value: false,
        };
        if !runs.absent {
            runs.load()?;
        }
        Ok(runs)
    }

    /// How many times the present value stands from here on; 0 at the end.
    #[inline]
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    #[inline]
    pub(super) fn value(&self) -> Option<T> {
        self.value
    }

    /// Steps over `count` values, at most what is left of the run.
    #[inline]
    pub(super) fn step(&mut self, count: u64) -> Result<(), Fault> {
        if self.absent {
            return Ok(());
        }
        self.left = self.left.checked_sub(count).ok_or("it ends too early")?;
        if self.left == 0 { self.load() } else { Ok(()) }
    }

    /// Makes sure that the walk used the column up.
    pub(super) fn finish(&self) -> Result<(), Fault> {
        match (self.absent, self.left, self.any_value) {
            (true, ..) | (false, 0, true) => Ok(()),
            (false, 0, false) => Err("it holds nothing and should not be there"),
            (false, ..) => Err("it is longer than the others"),
        }
    }

    fn load(&mut self) -> Result<(), Fault> {
        if self.literals > 0 {
            self.literals -= 1;
            return self.load_value(1);
        }
        if self.input.is_empty() {
            self.left = 0;
            return Ok(());
        }
        let count = self.input.signed()?;
        if count > 0 {
            if count == 1 {
                return Err("a run of one is written as a literal");
            }
            self.load_value(count as u64)?;
            self.before = Before::Repeated;
        } else if count < 0 {
            if self.before == Before::Literal {
                return Err("a literal run is written in two");
            }
            let count = count.unsigned_abs();
            // Each takes a byte at least, so that no count outlives its bytes.
            if count > self.input.left.len() as u64 {
                return Err("it ends too early");
            }
            self.literals = count - 1;
            self.load_value(1)?;
            self.before = Before::Literal;
        } else {
            if self.before == Before::Nothing {
                return Err("a run of nothing is written in two");
            }
            self.left = self.input.unsigned()?;
            if self.left == 0 {
                return Err("a run of nothing is empty");
            }
            self.value = None;
            self.before = Before::Nothing;
        }
        Ok(())
    }

    fn load_value(&mut self, count: u64) -> Result<(), Fault> {
        let value = Some(T::read(&mut self.input)?);
        if value == self.value {
            return Err("a run is written in two");
        }
        self.value = value;
        self.any_value = true;
        self.left = count;
        Ok(())
    }
}

/// A column of differences.
#[derive(Debug, Clone)]
pub(super) struct Deltas<'a> {
    runs: Runs<'a, i64>,
    sum: i64,
}

/// Values of a delta column: `first`, and each of the following `step` more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slope {
    pub(super) first: i64,
    pub(super) step: i64,
}

impl Slope {
    /// The least and the greatest of `count` values.
    pub(super) fn range(self, count: u64) -> Result<(i64, i64), Fault> {
        let last = i64::try_from(count - 1).ok().and_then(|n| n.checked_mul(self.step)?.checked_add(self.first));
        let last = last.ok_or("a sum of differences overflows")?;
        Ok((self.first.min(last), self.first.max(last)))
    }
}

impl<'a> Deltas<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, Fault> {
        Ok(Self { runs: Runs::new(bytes)?, sum: 0 })
    }

    #[inline]
    pub(super) fn left(&self) -> u64 {
        self.runs.left()
    }

    /// The present values, if there are any.
    #[inline]
    pub(super) fn value(&self) -> Result<Option<Slope>, Fault> {
        match self.runs.value() {
            None => Ok(None),
            Some(step) => {
                let first = self.sum.checked_add(step).ok_or("a sum of differences overflows")?;
                Ok(Some(Slope { first, step }))
            }
        }
    }

    #[inline]
    pub(super) fn step(&mut self, count: u64) -> Result<(), Fault> {
        if let Some(step) = self.runs.value() {
            let more = i64::try_from(count).ok().and_then(|count| step.checked_mul(count));
            self.sum = more.and_then(|more| self.sum.checked_add(more)).ok_or("a sum of differences overflows")?;
        }
        self.runs.step(count)
    }

    pub(super) fn finish(&self) -> Result<(), Fault> {
        self.runs.finish()
    }
}

/// A column of booleans. One that is not there is false, for ever.
#[derive(Debug, Clone)]
pub(super) struct Booleans<'a> {
    input: Input<'a>,
    value: bool,
    left: u64,
    absent: bool,
    any_true: bool,
}

impl<'a> Booleans<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, Fault> {
        let absent = bytes.is_empty();
        let mut booleans = Self { input: Input::new(bytes), value: false, left: u64::MAX, absent, any_true: false };
        if !absent {
            booleans.left = booleans.input.unsigned()?;
            if booleans.left == 0 {
                booleans.load()?;
            }
        }
        Ok(booleans)
    }

    #[inline]
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    #[inline]
    pub(super) fn value(&self) -> bool {
        self.value
    }

    #[inline]
    pub(super) fn step(&mut self, count: u64) -> Result<(), Fault> {
        if self.absent {
            return Ok(());
        }
        self.left = self.left.checked_sub(count).ok_or("it ends too early")?;
        if self.left == 0 { self.load() } else { Ok(()) }
    }

    pub(super) fn is_absent(&self) -> bool {
        self.absent
    }

    /// Makes sure that the walk used the column up. One with nothing but `false` may be there or not, as the column's
    /// kind demands.
    pub(super) fn finish(&self, all_false_is_absent: bool) -> Result<(), Fault> {
        match (self.absent, self.left) {
            (true, _) => Ok(()),
            (false, 0) if self.any_true || !all_false_is_absent => Ok(()),
            (false, 0) => Err("it is false throughout and should not be there"),
            (false, _) => Err("it is longer than the others"),
        }
    }

    fn load(&mut self) -> Result<(), Fault> {
        if self.input.is_empty() {
            self.left = 0;
            return Ok(());
        }
        self.value = !self.value;
        self.any_true |= self.value;
        self.left = self.input.unsigned()?;
        if self.left == 0 { Err("a run of booleans is empty") } else { Ok(()) }
    }
}

/// How many values a column of numbers holds, without expanding its runs. Above `max` it stops at the first sum found.
pub(super) fn count<'a, T: Item<'a>>(bytes: &'a [u8], max: u64) -> Result<u64, Fault> {
    let mut input = Input::new(bytes);
    let mut sum = 0_u64;
    while !input.is_empty() && sum <= max {
        let count = input.signed()?;
        let more = match count {
            0 => input.unsigned()?,
            1.. => {
                T::read(&mut input)?;
                count as u64
            }
            _ => {
                let count = count.unsigned_abs();
                if count > input.left.len() as u64 {
                    return Err("it ends too early");
                }
                for _ in 0..count {
                    T::read(&mut input)?;
                }
                count
            }
        };
        sum = sum.checked_add(more).ok_or("its runs overflow")?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<Option<u64>>, Fault> {
        let mut runs = Runs::<u64>::new(bytes)?;
        let mut values = Vec::new();
        while runs.left() > 0 {
            values.push(runs.value());
            runs.step(1)?;
        }
        runs.finish()?;
        assert_eq!(count::<u64>(bytes, 100), Ok(values.len() as u64));
        Ok(values)
    }

    #[test]
    fn a_column_has_one_form() {
        assert_eq!(all(&[3, 7, 0, 2, 0x7e, 1, 2]), Ok(vec![Some(7), Some(7), Some(7), None, None, Some(1), Some(2)]));
        assert_eq!(all(&[1, 7]), Err("a run of one is written as a literal"));
        assert_eq!(all(&[2, 7, 2, 7]), Err("a run is written in two"));
        assert_eq!(all(&[2, 7, 0x7f, 7]), Err("a run is written in two"));
        assert_eq!(all(&[0x7e, 7, 7]), Err("a run is written in two"));
        assert_eq!(all(&[0x7f, 7, 0x7f, 8]), Err("a literal run is written in two"));
        assert_eq!(all(&[2, 7, 0, 1, 0, 1]), Err("a run of nothing is written in two"));
        assert_eq!(all(&[2, 7, 0, 0]), Err("a run of nothing is empty"));
        assert_eq!(all(&[0, 5]), Err("it holds nothing and should not be there"));
        assert_eq!(all(&[0x7c, 7, 8]), Err("it ends too early"));
    }

    #[test]
    fn differences_do_not_overflow() {
        let max = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00];
        let bytes = [&[0x7e][..], &max, &[1]].concat();
        let mut deltas = Deltas::new(&bytes).unwrap();
        assert_eq!(deltas.value(), Ok(Some(Slope { first: i64::MAX, step: i64::MAX })));
        deltas.step(1).unwrap();
        assert_eq!(deltas.value(), Err("a sum of differences overflows"));
        assert_eq!(Slope { first: 5, step: -2 }.range(3), Ok((1, 5)));
        assert!(Slope { first: 5, step: 2 }.range(u64::MAX).is_err());
    }

    #[test]
    fn booleans_alternate() {
        let mut booleans = Booleans::new(&[0, 2, 1]).unwrap();
        assert_eq!((booleans.value(), booleans.left()), (true, 2));
        booleans.step(2).unwrap();
        assert_eq!((booleans.value(), booleans.left()), (false, 1));
        booleans.step(1).unwrap();
        assert_eq!(booleans.finish(true), Ok(()));
        assert!(Booleans::new(&[0, 0]).is_err());
    }
}
