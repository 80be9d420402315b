//! Properties, models and the tidy test.

mod codec;
mod replay;
mod sync_sessions;
