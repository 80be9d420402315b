//! Real sockets on loopback and real processes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test panics; it does not return errors")]

mod access;
mod access_pages;
mod api;
mod audit;
mod cli;
mod consumers;
mod floods;
mod kill;
mod links;
mod load;
mod nodefs;
mod nodes;
mod queries;
mod quic_peers;
mod quic_quotas;
mod quotas;
mod repo_clients;
mod rights;
mod rules;
mod samod;
mod tokens;
mod twins;
mod typescript;
mod users;
