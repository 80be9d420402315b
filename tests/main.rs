//! Real sockets on loopback and real processes.

mod links;
