//! Compares sync servers of automerge-repo's protocol: one client driver, one machine, one run. See README.md.

mod client;
mod documents;
mod loads;
mod report;
mod room;
mod samod_server;
mod server;
mod sync;
mod wire;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Parser, Subcommand, ValueEnum};

use crate::loads::{Setting, cold, fanout, keystroke, memory, rate, small};
use crate::report::{Report, Sheet};
use crate::server::{Kind, Places};

/// What went wrong.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
#[command(about = "Compares sync servers of automerge-repo's protocol under one client")]
struct Options {
    #[command(subcommand)]
    server: Option<Serve>,
    /// Loads to run; all by default
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Load>,
    /// Servers to compare
    #[arg(long, value_delimiter = ',', value_enum, default_value = "tidelog,samod,node")]
    servers: Vec<Kind>,
    /// Shorter and smaller loads, to see that everything works
    #[arg(long)]
    quick: bool,
    /// Our binary
    #[arg(long, default_value_os_t = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/release/tidelog"))]
    tidelog: PathBuf,
}

#[derive(Subcommand)]
enum Serve {
    /// Runs the samod server; for the comparison itself
    #[command(hide = true)]
    SamodServer { folder: PathBuf },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Load {
    /// A keystroke into the paper
    Keystroke,
    /// An edit to 10 readers
    Fanout10,
    /// An edit to 100 readers
    Fanout100,
    /// Edit rate held with 10 documents
    Rate10,
    /// Edit rate held with 100 documents
    Rate100,
    /// Push and pull of 1,000 small documents
    Small1k,
    /// Push and pull of 10,000 small documents
    Small10k,
    /// The paper to ten clients at once
    Cold,
    /// Memory of connections and documents
    Memory,
}

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    if let Some(Serve::SamodServer { folder }) = &options.server {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        return runtime.block_on(samod_server::serve(folder));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, compare(options))
}

async fn compare(options: Options) -> Result<(), Failure> {
    let work = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers");
    std::fs::create_dir_all(&work)?;
    disk(&work)?;
    let setting = Setting { places: Places { tidelog: options.tidelog, work }, is_quick: options.quick };
    let mut report = Report::default();
    for load in Load::value_variants() {
        if !options.only.is_empty() && !options.only.contains(load) {
            continue;
        }
        for kind in &options.servers {
            let mut sheet = report.sheet(load.name(), *kind);
            if let Err(failure) = run(*load, *kind, &setting, &mut sheet).await {
                sheet.failed(&format!("failed: {failure}"));
            }
        }
    }
    report.print(&options.servers);
    Ok(())
}

async fn run(load: Load, kind: Kind, setting: &Setting, sheet: &mut Sheet<'_>) -> Result<(), Failure> {
    match load {
        Load::Keystroke => keystroke::run(kind, setting, sheet).await,
        Load::Fanout10 => fanout::run(kind, 10, setting, sheet).await,
        Load::Fanout100 => fanout::run(kind, 100, setting, sheet).await,
        Load::Rate10 => rate::run(kind, 10, setting, sheet).await,
        Load::Rate100 => rate::run(kind, 100, setting, sheet).await,
        Load::Small1k => small::run(kind, 1000, setting, sheet).await,
        Load::Small10k => small::run(kind, 10_000, setting, sheet).await,
        Load::Cold => cold::run(kind, setting, sheet).await,
        Load::Memory => memory::run(kind, setting, sheet).await,
    }
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Self::Keystroke => "keystroke into the paper",
            Self::Fanout10 => "an edit to 10 readers",
            Self::Fanout100 => "an edit to 100 readers",
            Self::Rate10 => "10 documents",
            Self::Rate100 => "100 documents",
            Self::Small1k => "1,000 small documents",
            Self::Small10k => "10,000 small documents",
            Self::Cold => "the paper to ten clients at once",
            Self::Memory => "memory",
        }
    }
}

/// Prints what one small durable append costs here: the part of our latencies that is the disk's.
fn disk(work: &Path) -> Result<(), Failure> {
    let path = work.join("sync");
    let mut file = std::fs::File::create(&path)?;
    let mut taken = Vec::new();
    for _ in 0..300 {
        let began = Instant::now();
        file.write_all(&[7; 100])?;
        file.sync_data()?;
        taken.push(began.elapsed());
    }
    std::fs::remove_file(path)?;
    let [p50, p99] = [0.5, 0.99].map(|share| loads::percentile(&taken, share));
    println!("the disk: an append of 100 bytes and fdatasync: p50 {p50:.2} ms, p99 {p99:.2} ms");
    Ok(())
}
