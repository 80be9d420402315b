//! What can be said of rules, tokens, who was allowed what, and what was rejected.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Rules {
    /// Read a file of rules and print what is wrong with it
    Check {
        /// The rules
        file: PathBuf,
    },
    /// Decide cases and hold the decisions against what is expected
    Test {
        /// The rules
        file: PathBuf,
        /// The cases: an array of {name, as, do, path, before, after, change, documents, time, expect}
        cases: PathBuf,
    },
    /// Print how one case is decided, with the value of every part of every expression
    Explain {
        /// The rules
        file: PathBuf,
        /// The case, as CASES.json#NAME
        #[arg(value_name = "CASES.json#NAME", required_unless_present = "case")]
        place: Option<String>,
        /// The case itself, as JSON
        #[arg(long, value_name = "JSON", conflicts_with = "place")]
        case: Option<String>,
    },
    /// Print how often each allow and each function was true, false, failed, or was not looked at
    Coverage {
        /// The rules
        file: PathBuf,
        /// The cases
        cases: PathBuf,
        /// Fail if fewer of them, in percent, were looked at
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
        fail_under: Option<u8>,
    },
    /// Decide recorded writes again by a draft, and list those that would be decided otherwise; exit status 1 if any
    Replay {
        /// The draft
        draft: PathBuf,
        /// Compare with what these rules say instead of what is on record
        #[arg(long, value_name = "CURRENT")]
        rules: Option<PathBuf>,
        /// Only writes after this position
        #[arg(long, value_name = "LSN", default_value_t = 0)]
        from: u64,
        /// Only those of this collection
        #[arg(long, value_name = "NAME")]
        collection: Option<String>,
        /// List so many at most; all are counted
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(0..=10_000))]
        limit: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// List writes that were accepted and refused; newest last
    Ls {
        /// Whose; '' for those of nobody in particular
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        /// Of which collection
        #[arg(long, value_name = "NAME")]
        collection: Option<String>,
        /// Of which document
        #[arg(long, value_name = "ID")]
        document: Option<String>,
        /// Only those that were refused
        #[arg(long, conflicts_with = "accepted")]
        refused: bool,
        /// Only those that were accepted
        #[arg(long)]
        accepted: bool,
        /// Begin after this position instead of near the end
        #[arg(long, value_name = "LSN")]
        from: Option<u64>,
        /// How many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        limit: u64,
    },
    /// Print everything that is known of one write
    Show {
        /// Its record, as `ls` prints it
        lsn: u64,
    },
    /// List the rules that the log has, or print those of one version
    Rules {
        /// Print the text of the newest whose version, or digest, begins with these digits
        version: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Rejected {
    /// List them, oldest first
    Ls,
    /// Make them anew on the document as it is, and hand them in again
    Resubmit {
        /// The document's id
        id: String,
        /// Only this change
        #[arg(long, value_name = "HASH")]
        change: Option<String>,
    },
    /// Take them off the list
    Discard {
        /// The document's id
        id: String,
        /// Only this change
        #[arg(long, value_name = "HASH")]
        change: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Issue a token and print it, this once
    New {
        /// Whose it is
        #[arg(long, value_name = "NAME")]
        user: String,
        /// In which role
        #[arg(long)]
        role: Option<String>,
        /// How long it is of use, as 45s, 90m, 12h or 30d
        #[arg(long, default_value = "30d", value_parser = crate::cli::tokens::lifetime)]
        ttl: u64,
        /// A further claim; the value as JSON, or a bare word (may be given several times)
        #[arg(long, value_name = "NAME=VALUE")]
        claim: Vec<String>,
    },
    /// List those that were issued
    Ls,
    /// Revoke a token, or all from before now of a user or in a role
    #[command(group = clap::ArgGroup::new("what").required(true))]
    Revoke {
        /// The token's id
        #[arg(group = "what")]
        id: Option<String>,
        /// Whose; of a foreign issuer's users ISSUER#NAME
        #[arg(long, value_name = "NAME", group = "what")]
        user: Option<String>,
        /// In which role
        #[arg(long, group = "what")]
        role: Option<String>,
    },
}
