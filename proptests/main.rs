//! Properties, models and the tidy test.

mod json;
mod replay;
