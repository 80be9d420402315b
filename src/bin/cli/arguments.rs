//! What can be said on the command line.

mod security;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(super) use self::security::{Audit, Rejected, Rules, Token};

/// A real-time database whose documents merge.
#[derive(Debug, Parser)]
#[command(name = "tidelog", version, max_term_width = 110, propagate_version = true)]
#[command(after_help = "Exit status: 0 ok, 1 error, 2 usage, 3 not found, 4 denied, 5 unreachable or too late, \
    6 conflict or in use, 7 corruption found, 130 interrupted.")]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Global {
    /// The data directory
    #[arg(long, global = true, env = "TIDELOG_DATA", default_value = "./tidelog-data", value_name = "DIR")]
    pub(super) data: PathBuf,
    /// Print one JSON object a line
    #[arg(long, global = true, conflicts_with = "quiet")]
    pub(super) json: bool,
    /// Print ids only, and no narration
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
    /// Log more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub(super) verbose: u8,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value = "auto")]
    pub(super) color: Color,
    /// Answer every question with yes
    #[arg(short, long, global = true)]
    pub(super) yes: bool,
    /// How long to wait for a running node's answer, in seconds
    #[arg(long, global = true, default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    pub(super) timeout: Duration,
    /// How log lines on stderr are written
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub(super) log_format: LogFormat,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    let seconds: f64 = number.parse().map_err(|_| "give a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("give a number of seconds above 0".to_owned()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a node
    Serve(Serve),
    /// List the collections, or the documents of one
    Ls {
        /// Which collection
        collection: Option<String>,
    },
    /// Print a document as JSON
    Get {
        /// Which document
        id: String,
        /// As it was at these changes (hashes, joined by commas; see `tidelog log ID`)
        #[arg(long, value_delimiter = ',', value_name = "HEADS")]
        at: Option<Vec<String>>,
    },
    /// Create a document and print its id
    Add {
        /// In which collection; it need not exist
        collection: String,
        /// What it holds: a JSON object, or - to read it from stdin
        #[arg(value_name = "JSON")]
        value: Option<String>,
        /// Give it a name, from which its id follows on every node
        #[arg(long)]
        name: Option<String>,
    },
    /// Write one value in a document
    Set {
        /// Which document
        id: String,
        /// Where, as title, items.0.title or /items/0/title; - at the end appends to a list
        path: String,
        /// What, as JSON; a bare word is a string; - reads stdin
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Edit a document as JSON in $EDITOR
    Edit {
        /// Which document
        id: String,
    },
    /// Delete documents; `restore` brings them back
    Rm {
        /// Which documents
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Bring a deleted document back
    Restore {
        /// Which document
        id: String,
    },
    /// Print a document's changes, or the end of the node's log; newest last
    Log {
        /// Which document
        id: Option<String>,
        /// Begin after this position instead of near the end
        #[arg(long, value_name = "LSN")]
        from: Option<From>,
        /// How many
        #[arg(long, default_value_t = 50)]
        limit: u64,
    },
    /// Print changes as they come, until ^C
    Watch {
        /// Of a collection or a document; of everything when left out
        target: Option<String>,
        /// From a cursor or a position, as printed before, from the beginning, or from now
        #[arg(long, default_value = "now", value_name = "CURSOR|LSN|beginning|now")]
        from: String,
        /// End after so many
        #[arg(long)]
        limit: Option<u64>,
        /// End when everything that is in the log now was printed
        #[arg(long)]
        once: bool,
        /// Of a collection, only documents of which this holds, as room == "lobby" && at > 5: added, modified, removed
        #[arg(long = "where", value_name = "CONDITIONS", requires = "target")]
        predicate: Option<String>,
    },
    /// Find documents by their values
    Query {
        /// In which collection
        collection: String,
        /// Of which this holds: room == "lobby" && (at > 5 || tags array-contains "urgent")
        #[arg(long = "where", value_name = "CONDITIONS")]
        predicate: Option<String>,
        /// In the order of a field, as at or "at desc" (may be given several times)
        #[arg(long, value_name = "FIELD")]
        order_by: Vec<String>,
        /// So many at most
        #[arg(long)]
        limit: Option<u64>,
        /// The last ones instead of the first
        #[arg(long, requires = "limit")]
        last: bool,
        /// Print their number only
        #[arg(long)]
        count: bool,
    },
    /// Which indexes a collection has
    Index {
        #[command(subcommand)]
        command: Index,
    },
    /// Who follows the feed of changes under a name
    Feed {
        #[command(subcommand)]
        command: Feed,
    },
    /// Bring documents in: NDJSON or an .automerge file; `import trace FILE` replays an editing history,
    /// `import automerge-repo FOLDER` takes over a sync server's documents
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Import(Import),
    /// Print documents, or write them as .automerge files that every Automerge tool opens
    Export(Export),
    /// Who may link to this node
    Peer {
        #[command(subcommand)]
        command: Peer,
    },
    /// Print how to reach the running node
    Ticket {
        /// Admit whoever first shows it, within ten minutes, as this
        #[arg(long, value_enum, value_name = "ROLE")]
        invite: Option<Role>,
    },
    /// Who may say who he is to the running node
    Token {
        #[command(subcommand)]
        command: Token,
    },
    /// Edits made here that another node would not have
    Rejected {
        #[command(subcommand)]
        command: Rejected,
    },
    /// Who was allowed to write what, and who was not
    Audit {
        #[command(subcommand)]
        command: Audit,
    },
    /// Print how the node is
    Status,
    /// Copy what is intact in a damaged data directory into a new one, and say what is lost
    Salvage {
        /// The damaged data directory; it is only read
        #[arg(value_name = "DAMAGED")]
        from: PathBuf,
        /// Where the new one is made
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// Security rules: check a file, try it on cases, see why it decides as it does, and what it would change
    Rules {
        #[command(subcommand)]
        command: Rules,
    },
    /// Check the store against itself
    Verify {
        /// Rebuild every document too
        #[arg(long)]
        deep: bool,
    },
}

#[derive(Debug, Clone, Args)]
pub(super) struct Serve {
    /// The UDP address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:4780", env = "TIDELOG_LISTEN", value_name = "ADDRESS:PORT")]
    pub(super) listen: SocketAddr,
    /// The TCP address for HTTP and WebSockets (automerge-repo's clients); by default 127.0.0.1 with the port of --listen
    #[arg(long, env = "TIDELOG_HTTP", value_name = "ADDRESS:PORT", conflicts_with = "no_http")]
    pub(super) http: Option<SocketAddr>,
    /// Have no HTTP port
    #[arg(long)]
    pub(super) no_http: bool,
    /// Let pages of this origin connect, beside those of this machine; * for all (may be given several times)
    #[arg(long, value_name = "ORIGIN")]
    pub(super) origin: Vec<String>,
    /// What is done with the changes of browsers before they are logged
    #[arg(long, value_enum, default_value = "full")]
    pub(super) admission: AdmissionLevel,
    /// Ask whoever uses the HTTP port for a token (`tidelog token new` makes one)
    #[arg(long)]
    pub(super) auth: bool,
    /// A file with the issuers whose tokens are taken beside this node's own
    #[arg(long, value_name = "FILE", requires = "auth")]
    pub(super) issuers: Option<PathBuf>,
    /// A file that says who may do what; it is read again when it changes
    #[arg(long, value_name = "FILE")]
    pub(super) rules: Option<PathBuf>,
    /// A file that says how much one address, and one user, may have (JSON; docs/access.md)
    #[arg(long, value_name = "FILE")]
    pub(super) quotas: Option<PathBuf>,
    /// A reverse proxy that is believed where a request comes from: Forwarded or X-Forwarded-For (may be given several
    /// times)
    #[arg(long, value_name = "ADDRESS")]
    pub(super) proxy: Vec<IpAddr>,
    /// Let --http be open to other machines without --auth and --rules, so that it takes whoever comes
    #[arg(long)]
    pub(super) insecure_open: bool,
    /// A node to replicate with: its ticket (may be given several times)
    #[arg(long, value_name = "TICKET")]
    pub(super) peer: Vec<String>,
    /// A file with a token: it says to those nodes who this one's user is, and is read again when it changes
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// What an acknowledgement waits for
    #[arg(long, value_enum, default_value = "synced")]
    pub(super) durability: DurabilityLevel,
    /// Take unknown keys from this machine for nodes (for trying things out)
    #[arg(long)]
    pub(super) trust_loopback_nodes: bool,
    /// Go on when acknowledged records are missing, under a new log id
    #[arg(long)]
    pub(super) accept_tail_loss: bool,
    /// The data directory is a copy: give its log a new id
    #[arg(long)]
    pub(super) restored: bool,
    /// Put the node's key aside and become a new node
    #[arg(long)]
    pub(super) new_node: bool,
    /// Exchange every document in Automerge's own messages
    #[arg(long)]
    pub(super) strict: bool,
    /// Write {node, ticket, address, ..} to this file once the node listens
    #[arg(long, value_name = "FILE")]
    pub(super) ready_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum AdmissionLevel {
    /// Each is tried on its document
    Full,
    /// Its form is checked; for clients that are trusted
    Structural,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum DurabilityLevel {
    /// The disk has it
    Synced,
    /// The operating system has it
    Buffered,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// A document (its id, or collection/id) or a collection; everything when left out
    #[arg(conflicts_with_all = ["all", "collection"])]
    pub(super) target: Option<String>,
    /// Every document, each as an .automerge file in the folder that --output names
    #[arg(long)]
    pub(super) all: bool,
    /// Every document of this collection only
    #[arg(long, value_name = "NAME")]
    pub(super) collection: Option<String>,
    /// How; automerge with --all, and where --output is a folder or ends in .automerge, else as text
    #[arg(long, value_enum)]
    pub(super) format: Option<Format>,
    /// Write here instead of stdout (-): a file, or for .automerge files a folder
    #[arg(short, long, value_name = "PATH")]
    pub(super) output: Option<PathBuf>,
    /// Replace files that are there
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    #[command(subcommand)]
    pub(super) special: Option<SpecialImport>,
    /// NDJSON (one object a line; - is stdin) or an .automerge file
    #[arg(required = true)]
    pub(super) file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) to: To,
}

#[derive(Debug, Subcommand)]
pub(super) enum SpecialImport {
    /// Replay an editing history, one change for each transaction
    Trace {
        /// The history: JSON or gzipped JSON
        file: PathBuf,
        /// Only these agents' edits, as 0 or 0,2: as far as they are causally complete here
        #[arg(long, value_delimiter = ',', value_name = "N")]
        agents: Vec<u32>,
        #[command(flatten)]
        to: To,
    },
    /// Take over the documents of an automerge-repo sync server; run it again to go on, or to fetch what is new
    AutomergeRepo {
        /// Its data folder, as NodeFSStorageAdapter keeps it
        folder: PathBuf,
        /// Where documents go that are not here yet
        #[arg(long, value_name = "NAME", default_value = "default")]
        collection: String,
    },
}

#[derive(Debug, Clone, Args)]
pub(super) struct To {
    /// The collection (of a history: traces)
    #[arg(long)]
    pub(super) collection: Option<String>,
    /// The document's id
    #[arg(long, value_name = "ID", conflicts_with = "name")]
    pub(super) document: Option<String>,
    /// The document's name (of a history: its file's)
    #[arg(long)]
    pub(super) name: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Index {
    /// List them
    Ls {
        /// Of which collection
        collection: String,
    },
    /// Declare one; it is made in the background
    Add {
        /// Of which collection
        collection: String,
        /// On which fields, as room, "at desc" or "tags elements"
        #[arg(required = true)]
        fields: Vec<String>,
    },
    /// Drop one
    Rm {
        /// Of which collection
        collection: String,
        /// Its id
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Feed {
    /// List them, and where they are
    Ls,
    /// Print how many records each has not looked at yet
    Lag,
    /// Have one begin anew
    Reset {
        /// Its name
        consumer: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Peer {
    /// Allow a node or client; with a ticket, dial it too
    Add {
        /// Its ticket or node id
        peer: String,
        /// What it may be to us
        #[arg(long, value_enum, default_value = "node")]
        role: Role,
    },
    /// List who is allowed, and the links
    Ls,
    /// Allow it no longer
    Rm {
        /// Its node id
        peer: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    /// Relays what others have made
    Node,
    /// Speaks for itself only
    Client,
}

impl Role {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Client => "client",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// The document, indented
    Json,
    /// Automerge's file, with the history
    Automerge,
    /// One line {id, collection, name, value} a document
    Ndjson,
}

/// A position in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Now,
    Position(u64),
}

impl From {
    pub(super) fn position(self) -> Option<u64> {
        match self {
            Self::Now => None,
            Self::Position(lsn) => Some(lsn),
        }
    }
}

impl std::str::FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "now" => Ok(Self::Now),
            "beginning" => Ok(Self::Position(0)),
            _ => text
                .parse()
                .map(Self::Position)
                .map_err(|_| "give a position (a number, as `tidelog log` prints them), beginning or now".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_position_is_a_number_or_a_word() {
        assert_eq!("beginning".parse(), Ok(From::Position(0)));
        assert_eq!("17".parse(), Ok(From::Position(17)));
        assert!("soon".parse::<From>().is_err());
    }

    #[test]
    fn export_takes_one_way_to_say_what() {
        let parse = |words: &[&str]| Arguments::try_parse_from([&["tidelog", "export"][..], words].concat());
        assert!(parse(&[]).is_ok());
        assert!(parse(&["--all", "--output", "x", "--collection", "notes", "--force"]).is_ok());
        assert!(parse(&["notes", "--all"]).is_err());
        assert!(parse(&["notes", "--collection", "notes"]).is_err());
    }

    #[test]
    fn import_takes_a_file_or_a_trace() {
        let parse = |words: &[&str]| Arguments::try_parse_from([&["tidelog", "import"][..], words].concat());
        assert!(parse(&["notes.ndjson", "--collection", "notes"]).is_ok());
        assert!(parse(&["trace", "x.json.gz", "--agents", "0,1", "--json"]).is_ok());
        assert!(parse(&[]).is_err());
        assert!(parse(&["trace"]).is_err());
        assert!(parse(&["automerge-repo", ".amrg", "--collection", "notes"]).is_ok());
        assert!(parse(&["automerge-repo"]).is_err());
    }
}
