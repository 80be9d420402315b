//! Properties, models and the tidy test.
