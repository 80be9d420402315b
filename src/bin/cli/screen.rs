//! What is printed, and how: rows to stdout, narration and progress to stderr.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tidelog::node::command::{CommandError, Output, Progress};

use super::arguments::{Arguments, Color};

/// Where progress goes without a terminal, and how often.
const PROGRESS_PAUSE: Duration = Duration::from_secs(10);

/// How results are shown. A cheap clone.
#[derive(Debug, Clone)]
pub(super) struct Screen {
    pub(super) json: bool,
    pub(super) quiet: bool,
    stderr_is_terminal: bool,
    colour: bool,
}

/// Whether stderr is to have colours.
pub(super) fn colour_on_stderr(color: Color) -> bool {
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            io::stderr().is_terminal() && !refused
        }
    }
}

impl Screen {
    pub(super) fn new(arguments: &Arguments) -> Self {
        Self {
            json: arguments.global.json,
            quiet: arguments.global.quiet,
            stderr_is_terminal: io::stderr().is_terminal(),
            colour: colour_on_stderr(arguments.global.color),
        }
    }

    /// Whether a question may be asked.
    pub(super) fn may_ask(&self) -> bool {
        self.stderr_is_terminal && io::stdin().is_terminal()
    }

    /// Prints data.
    pub(super) fn print(&self, text: &str) -> Result<(), CommandError> {
        self.print_bytes(format!("{text}\n").as_bytes())
    }

    /// Prints data as it is.
    pub(super) fn print_bytes(&self, bytes: &[u8]) -> Result<(), CommandError> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => CommandError::output_closed(),
            _ => CommandError::file("write to", std::path::Path::new("stdout"), &error),
        })
    }

    /// Says something to the person at the terminal, if there is one.
    pub(super) fn say(&self, text: &str) {
        if self.stderr_is_terminal && !self.quiet && !self.json {
            // Narration that cannot be written is not missed.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Says what could be done next.
    pub(super) fn next(&self, command: &str) {
        self.say(&format!("  next: {command}"));
    }

    /// Says something that is not to be missed.
    pub(super) fn warn(&self, text: &str) {
        // As above.
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Shows how a command ended, and returns its exit status.
    pub(super) fn end(&self, result: Result<(), CommandError>) -> ExitCode {
        let error = match result {
            Ok(()) => return ExitCode::SUCCESS,
            // Whoever read the output has enough of it.
            Err(error) if error.is_output_closed() => return ExitCode::SUCCESS,
            Err(error) => error,
        };
        let code = ExitCode::from(error.exit as u8);
        if self.json {
            self.warn(&json!({ "error": error }).to_string());
            return code;
        }
        if error.code == "E0001" {
            return code;
        }
        let (red, plain) = if self.colour { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        self.warn(&format!("{red}error[{}]{plain}: {}", error.code, error.message));
        if let Some(remedy) = &error.remedy {
            self.warn(&format!("  fix  {remedy}"));
        }
        code
    }

    /// An output that shows progress and gives each row to `take`.
    pub(super) fn output<'a>(&self, take: impl FnMut(Value) -> Result<(), CommandError> + 'a) -> ScreenOutput<'a> {
        let hidden = self.quiet || self.json;
        ScreenOutput { take: Box::new(take), meter: Meter::new(self.stderr_is_terminal && !hidden, hidden) }
    }
}

/// Takes a command's rows and shows its progress.
pub(super) struct ScreenOutput<'a> {
    take: Box<dyn FnMut(Value) -> Result<(), CommandError> + 'a>,
    meter: Meter,
}

impl Output for ScreenOutput<'_> {
    fn row(&mut self, row: Value) -> Result<(), CommandError> {
        (self.take)(row)
    }

    fn progress(&mut self, progress: Progress) {
        self.meter.show(&progress);
    }
}

/// A progress bar on a terminal, a line every ten seconds elsewhere, nothing when hidden.
struct Meter {
    bar: Option<ProgressBar>,
    on_terminal: bool,
    hidden: bool,
    what: String,
    last: Instant,
}

impl Meter {
    fn new(on_terminal: bool, hidden: bool) -> Self {
        Self { bar: None, on_terminal, hidden, what: String::new(), last: Instant::now() }
    }

    fn show(&mut self, progress: &Progress) {
        if self.hidden {
            return;
        }
        if !self.on_terminal {
            if self.last.elapsed() >= PROGRESS_PAUSE {
                self.last = Instant::now();
                let total = progress.total.map(|total| format!(" of {total}")).unwrap_or_default();
                // As with all narration.
                let _ = writeln!(io::stderr(), "{}: {}{total}", progress.what, progress.done);
            }
            return;
        }
        if self.what != progress.what {
            self.finish();
            self.what.clone_from(&progress.what);
            self.bar = Some(bar(progress));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(progress.done);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.finish();
    }
}

fn bar(progress: &Progress) -> ProgressBar {
    let (bar, template) = match progress.total {
        Some(total) => (ProgressBar::new(total), "{msg:>9} {bar:32} {human_pos}/{human_len}  {per_sec}  {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg} {human_pos}"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style).with_message(progress.what.clone())
}
