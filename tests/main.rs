//! Real sockets and processes.
