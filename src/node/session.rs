//! Running commands: by the node that runs on a data directory, or, when none does, right here.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::admin::{Client, Hangup};
use super::command::{Cancel, Canceller, CommandError, Context, Output, Request, execute};
use super::peers::PeerBook;
use super::place::{OpenPlace, Place};
use crate::net::UnknownKeys;

/// How long a command waits for another process to let go of the store, or to become a node that answers.
const IN_USE_TIME: Duration = Duration::from_secs(2);
const IN_USE_PAUSE: Duration = Duration::from_millis(25);

/// What a session needs to know.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// The data directory.
    pub data: PathBuf,
    /// Bounds the wait for each line of a running node's answer; `None`: no bound.
    pub timeout: Option<Duration>,
    /// Makes the data directory when it is absent.
    pub create: bool,
}

/// Somebody who carries out commands. It blocks, and needs a tokio runtime around it.
pub struct Session {
    carrier: Carrier,
    interrupt: Interrupt,
    cancel: Cancel,
}

enum Carrier {
    Node(Box<Client>),
    Here(Box<Context>),
}

/// Ends a [`Session`]'s command from another thread. A cheap clone.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<Mutex<Ends>>);

#[derive(Default)]
struct Ends {
    interrupted: bool,
    hangup: Option<Hangup>,
    canceller: Option<Canceller>,
}

impl Interrupt {
    /// Ends the command under way, and those that follow.
    pub fn interrupt(&self) {
        let mut ends = self.ends();
        ends.interrupted = true;
        if let Some(hangup) = &ends.hangup {
            hangup.hang_up();
        }
        if let Some(canceller) = &ends.canceller {
            canceller.cancel();
        }
    }

    /// Whether it was used.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.ends().interrupted
    }

    fn ends(&self) -> std::sync::MutexGuard<'_, Ends> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Finds the node that runs on the data directory, or opens the store. `interrupt` will end its commands.
    ///
    /// # Errors
    /// [`CommandError`] when the directory cannot be used, or another process has it and does not answer.
    pub fn open(options: &SessionOptions, interrupt: Interrupt) -> Result<Self, CommandError> {
        let (canceller, cancel) = Cancel::new();
        let started = Instant::now();
        let carrier = loop {
            match carrier(options) {
                // The other may be a node that is starting, or a command that ends.
                Err(error) if error.code == "E0104" && started.elapsed() < IN_USE_TIME => {
                    std::thread::sleep(IN_USE_PAUSE);
                }
                other => break other?,
            }
            if interrupt.is_interrupted() {
                return Err(CommandError::interrupted());
            }
        };
        let mut ends = interrupt.ends();
        if let Carrier::Node(client) = &carrier {
            ends.hangup = Some(client.hangup()?);
        }
        if ends.interrupted {
            canceller.cancel();
        }
        ends.canceller = Some(canceller);
        drop(ends);
        Ok(Self { carrier, interrupt, cancel })
    }

    /// Whether a running node carries out the commands.
    #[must_use]
    pub fn is_node(&self) -> bool {
        matches!(self.carrier, Carrier::Node(_))
    }

    /// Carries out `request` and returns its summary.
    ///
    /// # Errors
    /// As [`execute`]; `E0501` when the node goes away.
    pub fn call(&mut self, request: Request, output: &mut dyn Output) -> Result<Value, CommandError> {
        // These say nothing for as long as there is nothing to say.
        let patient = matches!(
            request,
            Request::Watch { .. }
                | Request::Listen { .. }
                | Request::Query { .. }
                | Request::Verify { .. }
                | Request::ImportAutomergeRepo { .. }
        );
        let answer = match &mut self.carrier {
            Carrier::Node(client) => client.call(&request, patient, output),
            Carrier::Here(context) => execute(context, request, &self.cancel, output),
        };
        match answer {
            Err(error) if self.interrupt.is_interrupted() && !error.is_output_closed() => {
                Err(CommandError::interrupted())
            }
            other => other,
        }
    }

    /// Whether the user wants it to end.
    ///
    /// # Errors
    /// [`CommandError::interrupted`] if so.
    pub fn check(&self) -> Result<(), CommandError> {
        self.cancel.check()
    }

    /// Closes the store, if it was opened here.
    pub fn close(self) {
        if let Carrier::Here(context) = self.carrier {
            context.database.close();
        }
    }
}

fn carrier(options: &SessionOptions) -> Result<Carrier, CommandError> {
    if let Some(client) = Client::connect(&options.data, options.timeout)? {
        return Ok(Carrier::Node(Box::new(client)));
    }
    Ok(Carrier::Here(Box::new(open_here(&options.data, options.create)?)))
}

fn open_here(data: &Path, create: bool) -> Result<Context, CommandError> {
    let place = Place::open(data, &OpenPlace { create, ..OpenPlace::default() })?;
    let peers = PeerBook::load(&place.path, UnknownKeys::Refuse)?;
    Ok(Context::direct(place.database, peers))
}
