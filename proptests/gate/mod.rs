//! The gate: honest bytes pass it, hostile ones are refused by name and cheaply, and nothing that passes makes automerge
//! panic.

mod admission;
mod bombs;
mod forge;
mod fuzz;
mod honest;
mod past;
mod targets;
mod vectors;

pub(crate) use admission::{plain_change, unappliable, ungivable};
