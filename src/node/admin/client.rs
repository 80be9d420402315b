//! The command's side of the socket. It blocks.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::address::{SOCKET_FILE, SocketPath};
use super::{REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, Response};
use crate::node::command::{CommandError, Exit, Output, Request};

/// A connection to the node that runs on a data directory.
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    timeout: Option<Duration>,
}

/// Ends a [`Client`]'s command from another thread.
pub struct Hangup(UnixStream);

impl Hangup {
    /// Closes the connection.
    pub fn hang_up(&self) {
        // Closed already is closed.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Client {
    /// Connects to the node that runs on the data directory `directory`; `None` when none does. `timeout` bounds the
    /// wait for each line of an answer.
    ///
    /// # Errors
    /// [`CommandError`] when somebody else's node runs there.
    pub fn connect(directory: &Path, timeout: Option<Duration>) -> Result<Option<Self>, CommandError> {
        let path = directory.join(SOCKET_FILE);
        let connected = SocketPath::of(directory).and_then(|path| UnixStream::connect(path.as_path()));
        match connected {
            Ok(stream) => {
                stream.set_write_timeout(timeout).map_err(|error| lost(&path, &error))?;
                Ok(Some(Self { stream: BufReader::new(stream), path, timeout }))
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(CommandError::file("connect to", &path, &error).fix("run the command as the user the node runs as"))
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                Err(CommandError::file("connect to", &path, &error))
            }
            // No socket, or nobody behind it: no node runs.
            Err(_) => Ok(None),
        }
    }

    /// A handle that ends the command under way.
    ///
    /// # Errors
    /// [`CommandError`] when the system has no descriptor left.
    pub fn hangup(&self) -> Result<Hangup, CommandError> {
        let stream = self.stream.get_ref().try_clone().map_err(|error| lost(&self.path, &error))?;
        Ok(Hangup(stream))
    }

    /// Has the node carry out `request`. With `patient`, the wait for a line has no bound.
    ///
    /// # Errors
    /// What the node says; `E0501` when it goes away or does not answer in time.
    pub fn call(&mut self, request: &Request, patient: bool, output: &mut dyn Output) -> Result<Value, CommandError> {
        let timeout = if patient { None } else { self.timeout };
        self.stream.get_ref().set_read_timeout(timeout).map_err(|error| lost(&self.path, &error))?;
        let mut line = serde_json::to_vec(request).map_err(|error| CommandError::json("the request", &error))?;
        if line.len() > REQUEST_BYTES_MAX {
            return Err(CommandError::new("E0703", Exit::Failed, "this is more than one request may hold")
                .fix(format!("one document or value has at most {REQUEST_BYTES_MAX} bytes of JSON")));
        }
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(|error| lost(&self.path, &error))?;
        loop {
            match self.read()? {
                Response::Row(row) => output.row(row)?,
                Response::Progress(progress) => output.progress(progress),
                Response::Done(done) => return Ok(done),
                Response::Error(error) => return Err(error),
            }
        }
    }

    fn read(&mut self) -> Result<Response, CommandError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.stream).take(RESPONSE_BYTES_MAX as u64);
        bounded.read_until(b'\n', &mut line).map_err(|error| lost(&self.path, &error))?;
        if line.last() != Some(&b'\n') {
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, "it stopped");
            return Err(lost(&self.path, &error));
        }
        serde_json::from_slice(&line).map_err(|error| {
            CommandError::new("E0302", Exit::Failed, format!("the node's answer is not understood: {error}"))
                .fix("use the same version of tidelog for the node and for commands")
        })
    }
}

fn lost(path: &Path, error: &io::Error) -> CommandError {
    let late = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
    let why = if late { "did not answer in time".to_owned() } else { format!("went away ({error})") };
    CommandError::new("E0501", Exit::Unreachable, format!("the node at {} {why}", path.display()))
        .fix("look at the node's log; `tidelog status` shows whether it runs")
}
