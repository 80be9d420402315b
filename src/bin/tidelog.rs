//! The `tidelog` binary: a node and its command line.
//!
//! Data goes to stdout, everything else to stderr. What a command does is in `tidelog::node`; here is only how it is
//! asked for and shown.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
