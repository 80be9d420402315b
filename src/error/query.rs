//! Why a query, a listener or an index is refused.

/// What is wrong with a query, or stands in its way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// It cannot be understood, or asks for more than a query may.
    #[error("{why}")]
    Malformed {
        /// What is wrong.
        why: String,
        /// What to do.
        fix: String,
    },
    /// The collection is being read for the first time. Asked again later, it answers.
    #[error("collection {collection} is being read for its first query: {read} of at most {of} log positions so far")]
    NotReady {
        /// Which collection.
        collection: String,
        /// How far that is.
        read: u64,
        /// Where it ends.
        of: u64,
    },
    /// The result holds more than one answer may.
    #[error("the result has more than {what}")]
    TooLarge {
        /// The bound.
        what: String,
    },
    /// Without an index that narrows it, too many documents would have to be looked at.
    #[error("collection {collection}: {examined} documents were looked at, and the query needs more")]
    NeedsIndex {
        /// Which collection.
        collection: String,
        /// How many were looked at.
        examined: usize,
        /// The index that would help, as it is declared.
        index: Vec<String>,
    },
    /// So many listeners there are already.
    #[error("there are {0} listeners already")]
    TooManyListeners(usize),
    /// An index cannot be declared or dropped.
    #[error("{why}")]
    Index {
        /// What is wrong.
        why: String,
        /// What to do.
        fix: String,
    },
}

impl QueryError {
    pub(crate) fn malformed(why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Malformed { why: why.into(), fix: fix.into() }
    }

    pub(crate) fn index(why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Index { why: why.into(), fix: fix.into() }
    }

    /// Its fixed code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "E0623",
            Self::NotReady { .. } => "E0624",
            Self::TooLarge { .. } => "E0625",
            Self::NeedsIndex { .. } => "E0626",
            Self::TooManyListeners(_) => "E0627",
            Self::Index { .. } => "E0628",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::Malformed { fix, .. } | Self::Index { fix, .. } => fix.clone(),
            Self::NotReady { .. } => "ask again in a while".to_owned(),
            Self::TooLarge { .. } => "give a limit, or narrow it".to_owned(),
            Self::NeedsIndex { collection, index, .. } => {
                let index = index.join(", ");
                format!(
                    "declare the index [{index}] on {collection}, or ask for less; indexes on one field come by themselves: ask again in a while"
                )
            }
            Self::TooManyListeners(_) => "let go of some".to_owned(),
        }
    }
}
