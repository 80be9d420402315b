//! Properties, models and the tidy test.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test panics; it does not return errors")]

mod attestation;
#[cfg(feature = "node")]
mod auth;
mod codec;
mod convergence;
mod disk_full;
mod equivocation;
mod feed;
mod feed_images;
mod gate;
mod json;
mod live;
mod log_model;
mod queries;
mod record_codec;
mod recovery;
mod replay;
mod repo_session;
mod repo_wire;
mod rules;
mod support;
mod sync_sessions;
mod tidy;
mod users;
mod voids;
