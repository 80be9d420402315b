//! The command line.

mod arguments;
mod audit;
mod commands;
mod edit;
mod export;
mod import;
mod queries;
mod rejected;
mod rules;
mod salvage;
mod screen;
mod serve;
mod table;
mod tokens;
mod verify;

use std::process::ExitCode;

use clap::Parser as _;
use tidelog::node::Interrupt;
use tidelog::node::command::CommandError;

use arguments::{Arguments, Command, LogFormat};
use screen::Screen;

/// Runs the command that the process was started with.
pub(crate) fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // A closed pipe is all that can go wrong with printing help.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    start_logging(&arguments);
    let screen = Screen::new(&arguments);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error[E0004]: the system gives no threads: {error}");
            return ExitCode::from(1);
        }
    };
    let result = runtime.block_on(async {
        match arguments.command {
            Command::Serve(serve) => serve::serve(arguments.global, serve, screen.clone()).await,
            command => in_the_background(arguments.global, command, screen.clone()).await,
        }
    });
    let code = screen.end(result);
    // A thread that still waits for an interrupted command is not waited for: the store is safe at any time.
    runtime.shutdown_background();
    code
}

/// Runs a command on a thread that may block, until it ends or the user interrupts it.
async fn in_the_background(global: arguments::Global, command: Command, screen: Screen) -> Result<(), CommandError> {
    let interrupt = Interrupt::default();
    let ending = interrupt.clone();
    let mut work = tokio::task::spawn_blocking(move || {
        let handle = interrupt.clone();
        commands::run(&global, command, &screen, handle)
    });
    let joined = tokio::select! {
        joined = &mut work => joined,
        _ = tokio::signal::ctrl_c() => {
            ending.interrupt();
            match tokio::time::timeout(std::time::Duration::from_secs(2), work).await {
                Ok(joined) => joined,
                Err(_) => return Err(CommandError::interrupted()),
            }
        }
    };
    joined.unwrap_or_else(|error| {
        Err(CommandError::new("E0003", tidelog::node::command::Exit::Failed, format!("the command failed: {error}"))
            .fix("this is a mistake in tidelog; please report it"))
    })
}

fn start_logging(arguments: &Arguments) {
    let global = &arguments.global;
    let serving = matches!(arguments.command, Command::Serve(_));
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) if serving => "warn,tidelog=info",
        (false, 0) => "error",
        (false, 1) => "warn,tidelog=debug",
        (false, _) => "debug,tidelog=trace",
    };
    let filter = ["TIDELOG_LOG", "RUST_LOG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|text| !text.is_empty()))
        .unwrap_or_else(|| level.to_owned());
    let filter = tracing_subscriber::EnvFilter::builder().parse_lossy(filter);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(screen::colour_on_stderr(global.color));
    // Nobody else sets a subscriber in this process.
    let _ = match global.log_format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder.with_target(false).try_init(),
    };
}
