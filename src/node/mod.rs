//! The node: what the `tidelog` binary is made of, beside the command line itself.

pub mod trace;
