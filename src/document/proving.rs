//! Applying changes of which nobody vouches that they fit the document.

use std::collections::HashSet;

use automerge::ReadDoc;

use super::replay::Clock;
use super::{Change, ChangeError, View, ViewError, gate};
use crate::id::ActorId;

impl View {
    /// Applies changes made elsewhere as [`View::apply`] does, and makes sure that the document can give each of them
    /// back. One that it cannot (since it replaces what was never there, say) would be another change, or none, in a
    /// saved document, which would not load again.
    ///
    /// `as_edits` says whether changes may be made as local edits.
    ///
    /// # Errors
    /// As [`View::apply`]; [`ViewError::Unreproducible`].
    ///
    /// # Cost
    /// As [`View::apply`], and 5 us a change that could not be made as a local edit (those prove themselves); a saving and
    /// loading of the document when one of them sets marks.
    pub fn apply_proven(&mut self, changes: &[Change], as_edits: bool) -> Result<(), ViewError> {
        self.guarded(|view| {
            let fresh: Vec<&Change> = changes.iter().filter(|change| !view.contains(change.hash())).collect();
            let before = view.document.get_heads();
            let mut grouped = fresh.len();
            if as_edits {
                grouped = view.apply_unguarded(changes)?.grouped;
            } else {
                view.apply_together(&fresh)?;
            }
            let unproven = &fresh[fresh.len().saturating_sub(grouped)..];
            let given: HashSet<[u8; 32]> = match unproven {
                [] => return Ok(()),
                [one] => {
                    let hash = automerge::ChangeHash(one.hash().0);
                    view.document.get_change_by_hash(&hash).iter().map(|change| change.hash().0).collect()
                }
                _ => view.document.get_changes(&before).iter().map(|change| change.hash().0).collect(),
            };
            if let Some(lost) = unproven.iter().find(|change| !given.contains(&change.hash().0)) {
                return Err(ViewError::Unreproducible(lost.hash()));
            }
            // A mark whose end lies before its beginning is only noticed when a document is loaded.
            if let Some(marks) = unproven.iter().find(|change| change.has_marks()) {
                let again = gate::load_checked(&view.document.save()).map_err(ChangeError::from)?;
                if again.get_heads() != view.document.get_heads() {
                    return Err(ViewError::Unreproducible(marks.hash()));
                }
            }
            Ok(())
        })
    }

    /// Whether the document, saved and loaded again, is the same. One with a change that was applied unproven may not be:
    /// then marks on top of it prove nothing either.
    ///
    /// # Cost
    /// A saving and a loading of the document.
    pub(crate) fn gives_itself_back(&self) -> bool {
        let again = self.reading(|document| Ok(gate::load_checked(&document.save()).map_err(ChangeError::from)?));
        again.is_ok_and(|again| again.get_heads() == self.document.get_heads())
    }

    /// The number of an author's last change; 0 when there is none.
    ///
    /// # Errors
    /// [`ViewError::Broken`], [`ViewError::Panicked`].
    ///
    /// # Cost
    /// A walk over all changes the first time, a look-up then.
    pub fn last_seq(&mut self, actor: &ActorId) -> Result<u64, ViewError> {
        self.guarded(|view| Ok(view.clock.get_or_insert_with(|| Clock::of(&view.document)).last_seq(actor)))
    }
}
