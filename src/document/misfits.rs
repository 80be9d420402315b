//! Finding the changes that a document cannot take.
//!
//! Automerge applies a group of changes, or fails or panics over all of it. Which of them did it is found by halving:
//! each try is made on a copy, and what a failed try leaves behind is dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use automerge::{Automerge, ReadDoc};

use super::{Change, View, ViewError, gate};

/// The version of automerge that runs here.
#[must_use]
pub fn automerge_version() -> &'static str {
    static VERSION: LazyLock<&str> = LazyLock::new(|| Automerge::new().stats().cargo_package_version);
    *VERSION
}

impl View {
    /// Applies changes, each after what it depends on, up to the first that cannot be applied: which that is, and why.
    /// `None` when all of them are.
    ///
    /// Of changes that nobody vouches for, [`View::apply_proven`] asks more. These were logged, and others may have built
    /// on each that a document takes. The view is never broken by a change.
    ///
    /// # Errors
    /// [`ViewError::Broken`]; [`ViewError::Panicked`] when the view cannot even be copied.
    ///
    /// # Cost
    /// One group apply when all fit. Else one for each halving, and as many copies of the document.
    pub fn apply_until_misfit(&mut self, changes: &[Change]) -> Result<Option<(usize, String)>, ViewError> {
        let mut fits = 0;
        while fits < changes.len() {
            // Up to here, together with all above `fits`, they could not be applied; at first that is yet to be seen.
            let (mut fails, mut group) = (changes.len(), changes.len());
            while fits < fails {
                let mut tried = self.copied()?;
                let tries: Vec<&Change> = changes[fits..group].iter().collect();
                match tried.guarded(|view| view.apply_together(&tries)) {
                    Ok(()) => (*self, fits) = (tried, group),
                    Err(error) if group - fits == 1 => return Ok(Some((fits, error.to_string()))),
                    Err(_) => fails = group,
                }
                group = fits + (fails - fits).div_ceil(2);
            }
            // All of them, or each half of a group that failed as a whole: then the rest is tried anew.
        }
        Ok(None)
    }

    /// A copy, without what is only kept for speed.
    ///
    /// # Errors
    /// [`ViewError::Broken`]; [`ViewError::Panicked`] when automerge panics over it.
    pub fn copied(&self) -> Result<Self, ViewError> {
        if self.is_broken() {
            return Err(ViewError::Broken);
        }
        catch_unwind(AssertUnwindSafe(|| Self::from_automerge(self.document.clone())))
            .map_err(|panic| ViewError::Panicked(gate::message_of(&*panic)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_was_built_in() {
        let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
        let entry = format!("name = \"automerge\"\nversion = \"{}\"\n", automerge_version());
        assert!(lock.contains(&entry), "{entry}");
    }
}
