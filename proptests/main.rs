//! Properties, models and the tidy test.

mod codec;
mod json;
mod replay;
mod sync_sessions;
mod tidy;
