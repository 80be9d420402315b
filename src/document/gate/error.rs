//! Why bytes are refused.

/// What is wrong with a chunk. Nothing of it reached automerge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// The bytes are not laid out as a chunk is.
    #[error("malformed {part}: {why}")]
    Malformed {
        /// Which part of the chunk.
        part: &'static str,
        /// What is wrong there.
        why: &'static str,
    },
    /// A number is above its bound.
    #[error("{what}: {found}; at most {max} is allowed")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// What the chunk says, or the least it would come to.
        found: u64,
        /// The bound.
        max: u64,
    },
    /// Something names an operation or an author that cannot be meant.
    #[error("{part} names what is not there: {why}")]
    Reference {
        /// Which part of the chunk.
        part: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The chunk may be sound, but is of a kind that is not taken.
    #[error("{0} are not supported")]
    Unsupported(&'static str),
    /// automerge does not take the bytes either.
    #[error("automerge refuses: {0}")]
    Automerge(String),
    /// automerge panicked on bytes that passed. What it panicked over is dropped.
    #[error("automerge panicked: {0}")]
    Panicked(String),
}

/// What is wrong, where the caller knows of which part.
pub(super) type Fault = &'static str;

/// Says of which part a fault is.
pub(super) trait In<T> {
    fn within(self, part: &'static str) -> Result<T, GateError>;
}

impl<T> In<T> for Result<T, Fault> {
    fn within(self, part: &'static str) -> Result<T, GateError> {
        self.map_err(|why| GateError::Malformed { part, why })
    }
}

/// Holds a number against its bound.
pub(super) fn at_most(what: &'static str, found: u64, max: u64) -> Result<u64, GateError> {
    if found <= max { Ok(found) } else { Err(GateError::TooMany { what, found, max }) }
}
