//! The node: what the `tidelog` binary is made of, beside the command line itself.
//!
//! A *command* is a [`Request`](command::Request); [`command::execute`] is the one thing that carries it out. A running
//! [`Node`] does it for whoever asks over the [`admin`] socket in its data directory; where no node runs, a
//! [`Session`] opens the store and does it itself. [`place`] opens a data directory with the key in it, [`peers`] keeps
//! who is allowed and dialled, [`keys`] fetches the keys of token issuers, [`salvage`] makes a new directory of what is intact in a damaged one.

mod access;
pub mod admin;
pub mod command;
mod door;
pub mod keys;
mod nodefs;
pub mod peers;
pub mod place;
pub mod salvage;
mod serve;
mod session;
pub mod trace;

pub use access::AccessConfig;
pub use serve::{Node, NodeConfig};
pub use session::{Interrupt, Session, SessionOptions};
