//! Real sockets on loopback and real processes.

mod cli;
mod histories;
mod links;
