//! Whether somebody may write what he sends: decided by rooms above, asked here.
//!
//! The engine knows when a document can be looked at before and after a change, and no rule; a [`Judge`] knows the
//! rules, and no log. Each change is judged by itself, on the document as the log has it.

use std::sync::Arc;

use super::refusal::Claims;
use crate::document::{Touched, Values, ViewError};
use crate::error::Error;
use crate::id::{ActorId, CollectionName, DocumentId};
use crate::log::record::{RefusedReason, RulesHeader};

/// What somebody wants to do to a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Deed {
    /// Its first change.
    Create,
    /// A further change.
    Update,
    /// Hiding it, or showing it again.
    Delete,
}

/// Which document is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) document: DocumentId,
    pub(crate) collection: &'a CollectionName,
    /// Its name, if it has one.
    pub(crate) name: Option<&'a str>,
}

/// Rules, as the log keeps them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ruleset {
    /// By what records name them; never 0.
    pub(crate) version: u32,
    /// The BLAKE3 of the text.
    pub(crate) digest: [u8; 32],
    /// What the file holds.
    pub(crate) text: String,
}

impl Ruleset {
    /// The rules that have this text.
    #[cfg_attr(not(feature = "web"), allow(dead_code, reason = "rules are asked where there is an HTTP port"))]
    pub(crate) fn of(text: &str) -> Self {
        let digest = *blake3::hash(text.as_bytes()).as_bytes();
        Self { version: RulesHeader::version_of(digest), digest, text: text.to_owned() }
    }
}

/// What allowed something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ruling {
    /// The rules that were asked; `None` where there are none, and whoever came in may do it.
    pub(crate) ruleset: Option<Arc<Ruleset>>,
    /// The `allow` that is true: line and path.
    pub(crate) allow: Option<(u32, String)>,
}

impl Ruling {
    /// The version of the rules; 0 for none.
    pub(crate) fn version(&self) -> u32 {
        self.ruleset.as_ref().map_or(0, |ruleset| ruleset.version)
    }
}

/// Why something may not be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Denial {
    /// What whoever asked is told, so it says no more than he may know.
    pub(crate) told: String,
    /// What the log is told.
    pub(crate) reason: RefusedReason,
    /// The `allow`s that were asked, or the one that failed: line and path.
    pub(crate) rules: Vec<(u32, String)>,
    /// More about the reason.
    pub(crate) detail: String,
    /// The rules that were asked; `None` where none were.
    pub(crate) ruleset: Option<Arc<Ruleset>>,
}

impl Denial {
    /// The version of the rules; 0 for none.
    pub(super) fn rules_version(&self) -> u32 {
        self.ruleset.as_ref().map_or(0, |ruleset| ruleset.version)
    }

    /// Something else than rules is against it.
    pub(crate) fn beside_rules(reason: RefusedReason, told: &str) -> Self {
        Self { told: told.to_owned(), reason, ..Self::default() }
    }
}

impl Default for Denial {
    fn default() -> Self {
        Self {
            told: "the rules do not allow it".to_owned(),
            reason: RefusedReason::NoneTrue,
            rules: Vec::new(),
            detail: String::new(),
            ruleset: None,
        }
    }
}

/// Speaks for one who writes.
pub(crate) trait Judge: Send + Sync + std::fmt::Debug {
    /// Who that is, as the log records it; empty for nobody in particular.
    fn principal(&self) -> &str;

    /// What is claimed of him, for the log.
    fn claims(&self) -> Option<Arc<Claims>> {
        None
    }

    /// Whether there is anything that could be created in this collection.
    fn may_begin(&self, collection: &CollectionName) -> bool;

    /// Whether changes of this collection have to be shown one by one, with the document before and after each. If not,
    /// what [`Self::look`] is given is not looked at.
    fn must_see(&self, collection: &CollectionName) -> bool;

    /// Looks at a document before something is done to it; `None` when it has no change yet.
    ///
    /// # Errors
    /// [`Error`] when it cannot be read. Nothing is decided then.
    fn look(&self, deed: Deed, place: Place<'_>, before: Option<&dyn Values>) -> Result<Box<dyn Look + '_>, Error>;
}

/// A document that was looked at.
pub(crate) trait Look {
    /// Decides, with the document as it would be; `None` when it is to be deleted.
    ///
    /// # Errors
    /// [`Error`] when it cannot be read.
    fn judge(self: Box<Self>, after: Option<&dyn Values>, made: &dyn Made) -> Result<Result<Ruling, Denial>, Error>;
}

/// What is known of a change beside the values it leads to.
pub(crate) trait Made {
    /// Its author's actor id; `None` for what is no change.
    fn actor(&self) -> Option<&ActorId>;

    /// Where it writes.
    ///
    /// # Errors
    /// [`ViewError`] when the document cannot tell.
    ///
    /// # Cost
    /// A microsecond an operation.
    fn touched(&self) -> Result<Touched, ViewError>;
}

/// What touches nothing: a statement about a document's life.
pub(crate) struct NoChange;

impl Made for NoChange {
    fn actor(&self) -> Option<&ActorId> {
        None
    }

    fn touched(&self) -> Result<Touched, ViewError> {
        Ok(Touched::default())
    }
}
