//! The `tidelog` binary: a node and its command line.
//!
//! Data goes to stdout, everything else to stderr. What a command does is in `tidelog::node`; here is only how it is
//! asked for and shown.

mod cli;

/// It gives back to the system what is freed, whichever thread had it: the changes of a long document pass through
/// several.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::run()
}
