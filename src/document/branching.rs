//! A document that is written from somebody else's history: text edits by given authors at given times.
//!
//! A [`Scratch`] is one replica. It is brought to a state with [`Scratch::apply`] and edited there, so that each new
//! change depends on exactly the replica's heads. Histories with forks keep one replica for each line of descent.
//!
//! The document's shape is fixed: a text at the root key [`TEXT_KEY`], made by the change [`Scratch::root`], which
//! depends on nothing but its author. Positions and lengths count Unicode code points.

use automerge::transaction::{CommitOptions, Transactable, Transaction};
use automerge::{Automerge, ObjId, ObjType, PatchLog, ROOT, ReadDoc, TextEncoding, Value};

use super::{Change, ChangeError};
use crate::id::{ActorId, ChangeHash, Heads};

/// The root key of the text.
pub const TEXT_KEY: &str = "text";

/// Why a replica could not be edited or brought to a state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BranchingError {
    /// An edit reaches beyond the text's end.
    #[error("the edit at {position} deleting {deleted} reaches beyond the text's {length} characters")]
    OutOfRange {
        /// Where it begins.
        position: usize,
        /// How many characters it deletes.
        deleted: usize,
        /// How long the text is before it.
        length: usize,
    },
    /// The replica holds no text at [`TEXT_KEY`].
    #[error("the document has no text at the root key {TEXT_KEY:?}")]
    NoText,
    /// Changes were applied while local ones were not collected yet, or the collected ones are not those made.
    #[error("the replica's own changes were not collected in order")]
    Uncollected,
    /// Automerge refused an edit or a change.
    #[error("automerge refused: {0}")]
    Automerge(String),
    /// Automerge made a change we cannot keep.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// One edit of the text: delete, then insert, at one position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextEdit<'a> {
    /// Where, in code points from the text's beginning.
    pub position: usize,
    /// How many code points go.
    pub deleted: usize,
    /// What comes in their place.
    pub inserted: &'a str,
}

impl TextEdit<'_> {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.deleted == 0 && self.inserted.is_empty()
    }
}

/// One replica of a text document, edited by one author.
///
/// Changes made by [`Self::edit`] are named at once and handed out later, many together, by [`Self::collect`]:
/// rebuilding a change from the document costs far more alone than in a row.
pub struct Scratch {
    document: Automerge,
    text: ObjId,
    /// The text's length in code points, kept so that an edit beyond the end is refused rather than cut short.
    length: usize,
    /// The heads before the first change not collected.
    collected: Vec<automerge::ChangeHash>,
    /// The changes not collected, in the order they were made.
    made: Vec<ChangeHash>,
    /// The author's last change, whether or not anything was applied since.
    own_last: Option<automerge::ChangeHash>,
}

impl Scratch {
    /// Makes the change that every replica begins with: an empty text at [`TEXT_KEY`], by `actor`, at time 0.
    ///
    /// # Errors
    /// [`BranchingError`] when automerge makes no such change, which no actor id provokes.
    pub fn root(actor: &ActorId) -> Result<Change, BranchingError> {
        let mut document = empty(actor);
        let mut transaction = document.transaction();
        transaction.put_object(ROOT, TEXT_KEY, ObjType::Text).map_err(refused)?;
        transaction.commit_with(CommitOptions::default().with_time(0));
        let change = document.get_last_local_change().ok_or(BranchingError::NoText)?;
        Ok(Change::from_automerge(change)?)
    }

    /// Makes a replica of `changes`, in topological order and causally complete, whose edits are by `actor`.
    ///
    /// # Errors
    /// [`BranchingError`] when automerge refuses the changes or they make no text at [`TEXT_KEY`].
    ///
    /// # Cost
    /// One walk over all operations.
    pub fn new<'a>(actor: &ActorId, changes: impl IntoIterator<Item = &'a Change>) -> Result<Self, BranchingError> {
        let mut document = empty(actor);
        apply(&mut document, changes)?;
        let text = match document.get(ROOT, TEXT_KEY).map_err(refused)? {
            Some((Value::Object(ObjType::Text), text)) => text,
            _ => return Err(BranchingError::NoText),
        };
        let length = document.length(&text);
        let collected = document.get_heads();
        let own_last = document.get_last_local_change().map(|change| change.hash());
        Ok(Self { document, text, length, collected, made: Vec::new(), own_last })
    }

    /// Adds `changes`, in topological order; all they depend on must be there or among them.
    ///
    /// # Errors
    /// [`BranchingError::Uncollected`] when own changes are not collected yet, [`BranchingError::Automerge`] when the
    /// changes are refused.
    ///
    /// # Cost
    /// A walk over the text for each call, however many the changes (some 4 ms at 20,000 characters): join them.
    pub fn apply<'a>(&mut self, changes: impl IntoIterator<Item = &'a Change>) -> Result<(), BranchingError> {
        if !self.made.is_empty() {
            return Err(BranchingError::Uncollected);
        }
        apply(&mut self.document, changes)?;
        self.length = self.document.length(&self.text);
        self.collected = self.document.get_heads();
        Ok(())
    }

    /// Makes one change of `edits`, each relative to the one before it, on top of everything here.
    ///
    /// Its dependencies are exactly [`Self::heads`]. `None` when the edits change nothing: then there is no change.
    ///
    /// # Errors
    /// [`BranchingError::OutOfRange`] when an edit reaches beyond the text; the replica is then as it was.
    ///
    /// # Cost
    /// 26 us or more for a keystroke; a walk over the text when the author's last change is not among the heads.
    pub fn edit<'a>(
        &mut self,
        time: i64,
        edits: impl IntoIterator<Item = TextEdit<'a>>,
    ) -> Result<Option<ChangeHash>, BranchingError> {
        let heads = self.document.get_heads();
        // A plain transaction would name the author's last change as a dependency even where the heads imply it.
        let implied = self.own_last.is_some_and(|hash| !heads.contains(&hash));
        let mut transaction = if implied {
            self.document.transaction_at(PatchLog::inactive(), &heads).map_err(refused)?
        } else {
            self.document.transaction()
        };
        // An error drops the transaction, which rolls it back.
        let length = splice_all(&mut transaction, &self.text, self.length, edits)?;
        let (hash, _) = transaction.commit_with(CommitOptions::default().with_time(time));
        let Some(hash) = hash else { return Ok(None) };
        self.length = length;
        self.own_last = Some(hash);
        let name = ChangeHash(hash.0);
        self.made.push(name);
        Ok(Some(name))
    }

    /// Hands out the changes that [`Self::edit`] made since the last call, oldest first.
    ///
    /// # Errors
    /// [`BranchingError::Uncollected`] when they are not the ones that were named, which would be a fault of ours.
    ///
    /// # Cost
    /// Some 18 us for each change of a long row, and a fixed part that grows with the document.
    pub fn collect(&mut self) -> Result<Vec<Change>, BranchingError> {
        if self.made.is_empty() {
            return Ok(Vec::new());
        }
        let inner = if self.made.len() == 1 {
            self.document.get_last_local_change().into_iter().collect()
        } else {
            self.document.get_changes(&self.collected)
        };
        let changes = inner.into_iter().map(Change::from_automerge).collect::<Result<Vec<_>, _>>()?;
        if !changes.iter().map(Change::hash).eq(self.made.iter().copied()) {
            return Err(BranchingError::Uncollected);
        }
        self.made.clear();
        self.collected = self.document.get_heads();
        Ok(changes)
    }

    /// The state the replica is in.
    #[must_use]
    pub fn heads(&self) -> Heads {
        Heads::new(self.document.get_heads().into_iter().map(|hash| ChangeHash(hash.0)).collect())
    }

    /// The text.
    ///
    /// # Errors
    /// [`BranchingError::Automerge`] when automerge cannot read it.
    pub fn text(&self) -> Result<String, BranchingError> {
        self.document.text(&self.text).map_err(refused)
    }
}

/// An empty document whose text counts code points whatever automerge was built for.
fn empty(actor: &ActorId) -> Automerge {
    Automerge::new_with_encoding(TextEncoding::UnicodeCodePoint).with_actor(automerge::ActorId::from(actor.as_bytes()))
}

fn apply<'a>(document: &mut Automerge, changes: impl IntoIterator<Item = &'a Change>) -> Result<(), BranchingError> {
    let changes: Vec<_> = changes.into_iter().map(|change| change.as_automerge().clone()).collect();
    document.apply_changes(changes).map_err(refused)
}

/// Splices each edit and returns the text's new length.
fn splice_all<'a>(
    transaction: &mut Transaction<'_>,
    text: &ObjId,
    mut length: usize,
    edits: impl IntoIterator<Item = TextEdit<'a>>,
) -> Result<usize, BranchingError> {
    for TextEdit { position, deleted, inserted } in edits {
        let refused_for_range = || BranchingError::OutOfRange { position, deleted, length };
        let end = position.checked_add(deleted).filter(|&end| end <= length).ok_or_else(refused_for_range)?;
        let deletions = isize::try_from(end - position).map_err(|_| refused_for_range())?;
        transaction.splice_text(text, position, deletions, inserted).map_err(refused)?;
        length = length - deleted + inserted.chars().count();
    }
    Ok(length)
}

fn refused(error: impl std::fmt::Display) -> BranchingError {
    BranchingError::Automerge(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(byte: u8) -> ActorId {
        ActorId::new(&[byte; 16]).unwrap()
    }

    fn insert(position: usize, inserted: &str) -> [TextEdit<'_>; 1] {
        [TextEdit { position, deleted: 0, inserted }]
    }

    #[test]
    fn changes_are_the_same_wherever_they_are_made_and_depend_on_the_heads_only() {
        let root = Scratch::root(&actor(0)).unwrap();
        assert_eq!(root.hash(), Scratch::root(&actor(0)).unwrap().hash());
        let mut one = Scratch::new(&actor(1), [&root]).unwrap();
        let mut two = Scratch::new(&actor(2), [&root]).unwrap();
        one.edit(5, insert(0, "añ")).unwrap().unwrap();
        let first = one.collect().unwrap();
        two.apply(&first).unwrap();
        two.edit(6, insert(2, "b")).unwrap().unwrap();
        let second = two.collect().unwrap();
        one.apply(&second).unwrap();
        // The author's own last change is not a head here, and not named.
        one.edit(7, [TextEdit { position: 0, deleted: 2, inserted: "x" }]).unwrap().unwrap();
        let third = one.collect().unwrap();
        assert_eq!(third[0].deps(), [second[0].hash()]);
        assert_eq!((third[0].seq(), third[0].time(), third[0].message()), (2, 7, None));
        assert_eq!(one.text().unwrap(), "xb");
        one.edit(8, insert(0, "y")).unwrap().unwrap();
        one.edit(8, insert(0, "z")).unwrap().unwrap();
        assert_eq!(one.collect().unwrap().len(), 2);
        assert_eq!(one.text().unwrap(), "zyxb");
    }

    #[test]
    fn edits_beyond_the_text_are_refused_and_leave_it_as_it_was() {
        let root = Scratch::root(&actor(0)).unwrap();
        let mut replica = Scratch::new(&actor(1), [&root]).unwrap();
        replica.edit(0, insert(0, "abc")).unwrap();
        let heads = replica.heads();
        for (position, deleted) in [(7, 0), (6, 1), (0, 7), (usize::MAX, 1), (1, usize::MAX)] {
            // The first makes the text six characters long; the second then fails.
            let first = TextEdit { position: 0, deleted: 1, inserted: "long" };
            let result = replica.edit(0, [first, TextEdit { position, deleted, inserted: "x" }]);
            assert!(matches!(result, Err(BranchingError::OutOfRange { length: 6, .. })), "{position} {deleted}");
            assert_eq!((replica.heads(), replica.text().unwrap()), (heads.clone(), "abc".to_owned()));
        }
        replica.edit(0, [TextEdit { position: 0, deleted: 3, inserted: "" }]).unwrap().unwrap();
        assert_eq!(replica.text().unwrap(), "");
        assert_eq!(replica.collect().unwrap().len(), 2);
    }

    #[test]
    fn edits_that_change_nothing_make_no_change() {
        let root = Scratch::root(&actor(0)).unwrap();
        let mut replica = Scratch::new(&actor(1), [&root]).unwrap();
        assert_eq!(replica.edit(0, []).unwrap(), None);
        assert_eq!(replica.edit(0, insert(0, "")).unwrap(), None);
        assert_eq!(replica.heads().as_slice(), [root.hash()]);
        replica.edit(0, insert(0, "a")).unwrap().unwrap();
        assert_eq!(replica.edit(0, []).unwrap(), None);
        assert!(matches!(replica.apply([&root]), Err(BranchingError::Uncollected)));
        assert_eq!(replica.collect().unwrap()[0].seq(), 1);
    }
}
