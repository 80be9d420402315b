//! Why a token is not accepted, and why the node's own part cannot be used.

use std::io;
use std::path::{Path, PathBuf};

/// The code for a request that has no token where one is needed.
pub const NO_TOKEN: &str = "E0201";

/// Why a token is not accepted. The text is for the operator's log and holds nothing of the token; who sent it is told
/// [`Self::told`] and no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It is longer than a token may be.
    #[error("the token has {0} bytes, more than a token may have")]
    TooLong(usize),
    /// It is not three parts of base64url with JSON objects in the first two, or has too much in them.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// Its algorithm is none that this node, the issuer or the key takes.
    #[error("the token's algorithm is not taken: {0}")]
    Algorithm(&'static str),
    /// It has extensions that must be understood, and none is.
    #[error("the token has a `crit` header: no extension is understood here")]
    Critical,
    /// Nobody is known under the name of its issuer.
    #[error("the token's issuer is not this node and not in the file of issuers")]
    Issuer,
    /// It is for somebody else.
    #[error("the token of {issuer} is not for this audience")]
    Audience {
        /// Who issued it.
        issuer: String,
    },
    /// It names a key that this node does not sign with.
    #[error("the token names a key that is not this node's token key")]
    Key,
    /// No key that could have signed it did.
    #[error("the token says it is from {issuer}, whose keys did not sign it")]
    Signature {
        /// Who is said to have issued it.
        issuer: String,
    },
    /// A claim is missing, or is not what it has to be.
    #[error("the token's claim `{claim}` is {fault}")]
    Claim {
        /// Which one.
        claim: &'static str,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// Its time has not come.
    #[error("the token of {issuer} is not valid yet (its `{claim}` is in the future)")]
    NotYet {
        /// Who issued it.
        issuer: String,
        /// Which claim says so.
        claim: &'static str,
    },
    /// Its time is over.
    #[error("the token of {issuer} has expired")]
    Expired {
        /// Who issued it.
        issuer: String,
    },
    /// It, its user or its role was revoked.
    #[error("the token of {issuer} is revoked: {what}")]
    Revoked {
        /// Who issued it.
        issuer: String,
        /// By what.
        what: &'static str,
    },
    /// The issuer's keys are not here, or not the one that the token names. They are fetched; try again in a while.
    #[error("no key of {issuer} fits the token; its keys are fetched again")]
    KeysUnknown {
        /// Who is said to have issued it.
        issuer: String,
    },
    /// The issuer's keys could not be fetched for too long.
    #[error("the keys of {issuer} were not fetched for more than a day, and are not used any more")]
    KeySetExpired {
        /// Who is said to have issued it.
        issuer: String,
    },
}

impl TokenError {
    /// A short name for metrics and logs, which stays.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong(_) => "too_long",
            Self::Malformed(_) => "malformed",
            Self::Algorithm(_) => "algorithm",
            Self::Critical => "critical",
            Self::Issuer => "issuer",
            Self::Audience { .. } => "audience",
            Self::Key => "key",
            Self::Signature { .. } => "signature",
            Self::Claim { .. } => "claim",
            Self::NotYet { .. } => "not_yet",
            Self::Expired { .. } => "expired",
            Self::Revoked { .. } => "revoked",
            Self::KeysUnknown { .. } => "keys_unknown",
            Self::KeySetExpired { .. } => "key_set_expired",
        }
    }

    /// What whoever sent the token is told: never which check failed, so that nobody learns to forge by asking. That a
    /// token has expired is said only of one whose signature holds.
    #[must_use]
    pub fn told(&self) -> &'static str {
        match self {
            Self::Expired { .. } => "the token has expired",
            _ => "the token is not accepted",
        }
    }

    /// Its fixed code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Expired { .. } => "E0204",
            Self::Revoked { .. } => "E0205",
            _ => "E0202",
        }
    }

    /// Whether the same token may be accepted in a while.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::KeysUnknown { .. } | Self::KeySetExpired { .. } | Self::NotYet { .. })
    }
}

/// Why the node's own part of authentication cannot be used, or does not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The file with the key that signs tokens cannot be used.
    #[error("the token key {} cannot be used: {why}", path.display())]
    KeyFile {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The list of tokens is missing, damaged or another key's. Without it revoked tokens would be accepted again.
    #[error("the list of tokens {} cannot be used: {why}", path.display())]
    List {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file of issuers is not understood.
    #[error("the file of issuers {} is not understood: {why}", path.display())]
    Issuers {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and where.
        why: String,
    },
    /// What was fetched is not a key set. The keys from before are used for a while.
    #[error("the key set of {issuer} is not taken: {why}")]
    KeySet {
        /// Whose.
        issuer: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A token that was ordered cannot be made, or a revocation not understood.
    #[error("{0}")]
    Order(String),
    /// There is no such token on the list.
    #[error("no token with this id is listed")]
    NoSuchToken,
    /// The list is full.
    #[error("{0}: {1} are listed, as many as may be")]
    Full(&'static str, usize),
    /// The cryptography refuses.
    #[error("the token cannot be signed: {0}")]
    Signing(&'static str),
}

impl AuthError {
    /// Its fixed code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::KeyFile { .. } | Self::Signing(_) => "E0211",
            Self::List { .. } => "E0212",
            Self::Issuers { .. } => "E0213",
            Self::KeySet { .. } => "E0214",
            Self::Order(_) => "E0215",
            Self::NoSuchToken => "E0216",
            Self::Full(..) => "E0217",
            Self::File { .. } => "E0111",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::KeyFile { .. } => {
                "restore the file from a backup and `chmod 600` it; or remove it: another key is drawn, and every token \
                 that this node has issued is void"
            }
            Self::List { .. } => {
                "restore the file from a backup; or remove it and token.key with it: another key is drawn, every token \
                 that this node has issued is void, and users and roles that were revoked must be revoked again"
            }
            Self::File { .. } => "check the path, its permissions and the free space",
            Self::Issuers { .. } => "mend the file; docs/authentication.md shows one",
            Self::KeySet { .. } => "look at what the issuer serves: it must be a JSON Web Key Set with public keys",
            Self::Order(_) => "`tidelog token new --help` says what may be given",
            Self::NoSuchToken => "`tidelog token ls` lists them; tokens of others are revoked with --user",
            Self::Full(..) => "wait until some expire; or remove token.key and tokens.json, which voids all of them",
            Self::Signing(_) => {
                "remove token.key: another key is drawn, and every token that this node has issued is void"
            }
        }
    }

    pub(super) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { doing, path: path.to_owned(), source }
    }
}
