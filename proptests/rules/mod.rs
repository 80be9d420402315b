//! Security rules held against a reference that shares nothing with them: it walks the blocks as they were made, writes
//! functions out as text, and has another implementation of CEL (the `cel` crate) parse and execute every expression over
//! values that are there as a whole.
//!
//! # What is left out
//! * Timestamps and durations: that crate reads them with a clock library which is not compiled in.
//! * Integers and doubles that only differ beyond 2^53, which it compares as doubles, and NaN. The unit tests have those.
//! * Fields and functions that CEL does not have are naive functions of the reference (`hasOnly`, `within`, `diff`, `get`).

mod hostile;
mod matrix;
mod page;
mod reference;
mod world;
