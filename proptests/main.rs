//! Properties, models and the tidy test.

mod replay;
