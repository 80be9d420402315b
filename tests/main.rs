//! Real sockets on loopback and real processes.

mod kill;
mod links;
