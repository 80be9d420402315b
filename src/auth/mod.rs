//! Who somebody is: from a token to a proven [`Identity`].
//!
//! ```text
//!   request -> carrier.rs -> token -> jws.rs -> who says it issued it?
//!                                                |            |
//!                                   this node: own.rs    foreign.rs: keys.rs (a JSON Web Key Set)
//!                                                |            |
//!                                        claims, clock, list.rs (what was revoked) -> Identity
//! ```
//!
//! An [`Authority`] verifies tokens. Those of this node are signed with a key of their own (`token.key`) and listed
//! (`tokens.json`); foreign issuers are named in a file ([`Issuer::read_file`]), with the place of their public keys. The
//! room has neither clock, thread nor network: time is an argument, and whoever drives it asks
//! [`Authority::refresh_due`] what to fetch and hands over the bytes.
//!
//! Signatures are checked by `jsonwebtoken`; what a token may say, and in which form, is judged here, so that each refusal
//! has one place and one reason. Formats and what is refused: `docs/authentication.md`.
//!
//! # Source
//! RFC 7515 (JWS), RFC 7517 (JWK), RFC 7518 (algorithms), RFC 7519 (JWT), RFC 8037 (EdDSA), RFC 8725 (best practice),
//! RFC 6750 (bearer tokens).

mod authority;
pub mod carrier;
mod clock;
mod error;
mod files;
mod foreign;
mod identity;
mod issuers;
mod json;
mod jws;
mod keys;
mod list;
mod own;

pub use authority::{Authority, AuthorityOptions, Revocation, TokenOrder};
pub use error::{AuthError, NO_TOKEN, TokenError};
pub use files::copy_files;
pub use foreign::KeyRequest;
pub use identity::Identity;
pub use issuers::{Issuer, KeySource};
pub use jws::Algorithm;
pub use list::IssuedToken;
