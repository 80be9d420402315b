//! What a session knows of a peer whose key does not say who its user is.

use std::sync::Arc;

use super::permits::Permits;
use super::session::SessionError;

/// Who the peer's user is.
#[derive(Debug, Clone)]
pub struct Proven {
    /// As the log records him; empty for nobody in particular.
    pub principal: String,
    /// What he may read; `None` for everything.
    pub permits: Option<Arc<dyn Permits>>,
}

/// What was said of him so far.
#[derive(Debug, Default)]
pub(super) struct Guard {
    filters: bool,
    tokens: usize,
}

/// Tokens that one session may show: one for each minute of a day, about.
pub(super) const TOKENS_MAX: usize = 1024;

impl Guard {
    pub(super) fn prove(&mut self, proven: Proven) {
        self.filters = proven.permits.is_some();
    }

    /// Whether there is anything that he may not read.
    pub(super) fn filters(&self) -> bool {
        self.filters
    }

    /// Counts a token that was shown.
    pub(super) fn count_token(&mut self) -> Result<(), SessionError> {
        self.tokens += 1;
        if self.tokens > TOKENS_MAX {
            return Err(SessionError::TooMany { what: "tokens", max: TOKENS_MAX });
        }
        Ok(())
    }
}
