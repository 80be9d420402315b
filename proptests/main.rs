//! Properties, models and the tidy test.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test panics; it does not return errors")]

mod codec;
mod json;
mod replay;
mod sync_sessions;
mod tidy;
