//! The authors a change names: its own, and those of operations it refers to.

use std::cmp::Ordering;

use super::error::{Fault, GateError, at_most};
use super::input::Input;

/// Longest name of an author.
const ACTOR_BYTES_MAX: usize = 64;

/// The authors of one change. Number 0 is its own, the others follow in the order of their bytes.
#[derive(Debug)]
pub(super) struct Actors<'a> {
    own: &'a [u8],
    others: Vec<&'a [u8]>,
    /// The greatest counter that is referred to, of each of the others; 0 when none is.
    greatest: Vec<u64>,
}

impl<'a> Actors<'a> {
    pub(super) fn new(own: &'a [u8]) -> Self {
        Self { own, others: Vec::new(), greatest: Vec::new() }
    }

    /// Reads the others.
    pub(super) fn read_others(&mut self, input: &mut Input<'a>, max: u64) -> Result<(), GateError> {
        let part = "list of actors";
        let malformed = |why| GateError::Malformed { part, why };
        let count = at_most("actors of a change", input.unsigned().map_err(malformed)?, max)?;
        for _ in 0..count {
            let name = read_actor(input).map_err(malformed)?;
            if self.others.last().is_some_and(|last| *last >= name) {
                return Err(malformed("the actors are not in order"));
            }
            if name == self.own {
                return Err(malformed("the change's own actor is among the others"));
            }
            self.others.push(name);
        }
        self.greatest.resize(self.others.len(), 0);
        Ok(())
    }

    /// Notes that operations of `actor` are referred to, the greatest of which has that counter.
    #[inline]
    pub(super) fn note(&mut self, actor: u64, counter: u64) -> Result<(), Fault> {
        let Some(other) = actor.checked_sub(1) else { return Ok(()) };
        let greatest = usize::try_from(other).ok().and_then(|other| self.greatest.get_mut(other));
        let greatest = greatest.ok_or("an actor's number is beyond the list")?;
        *greatest = counter.max(*greatest);
        Ok(())
    }

    /// How two of them compare by name.
    pub(super) fn compare(&self, one: u64, other: u64) -> Ordering {
        self.name(one).cmp(self.name(other))
    }

    /// Makes sure that each of the others is there for a reason; the greatest counter that is referred to of each.
    pub(super) fn finish(self) -> Result<Vec<u64>, GateError> {
        if self.greatest.contains(&0) {
            return Err(GateError::Malformed { part: "list of actors", why: "one of them is not used" });
        }
        Ok(self.greatest)
    }

    fn name(&self, actor: u64) -> &'a [u8] {
        let other = actor.checked_sub(1).and_then(|other| usize::try_from(other).ok());
        other.and_then(|other| self.others.get(other)).copied().unwrap_or(self.own)
    }
}

/// Reads an author's name.
pub(super) fn read_actor<'a>(input: &mut Input<'a>) -> Result<&'a [u8], Fault> {
    let name = input.prefixed()?;
    if (1..=ACTOR_BYTES_MAX).contains(&name.len()) { Ok(name) } else { Err("an actor has not 1 to 64 bytes") }
}
