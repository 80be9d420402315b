//! Real sockets on loopback and real processes.

mod histories;
mod links;
