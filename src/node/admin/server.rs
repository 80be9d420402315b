//! The node's side of the socket.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use super::address::{SOCKET_FILE, SocketPath};
use super::{REQUEST_BYTES_MAX, Response};
use crate::limits::queues;
use crate::node::command::{Cancel, CommandError, Context, Exit, Output, Progress, Request, execute};

/// How long a client may leave its end unread.
const WRITE_TIME: Duration = Duration::from_secs(60);

/// The listening socket and the connections on it.
pub struct AdminServer {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl AdminServer {
    /// Listens in the data directory `directory`, whose lock the caller holds: a socket that is there already is a dead
    /// node's, and is replaced.
    ///
    /// # Errors
    /// [`CommandError`] when the socket cannot be made.
    pub fn start(directory: &Path, context: Context) -> Result<Self, CommandError> {
        let path = directory.join(SOCKET_FILE);
        let listener = listen(directory).map_err(|error| CommandError::file("listen on", &path, &error))?;
        let task = tokio::spawn(serve(listener, context));
        Ok(Self { path, task })
    }

    /// Ends every command that runs, and takes the socket away.
    pub async fn close(self) {
        self.task.abort();
        // Aborted, as it was asked to be.
        let _ = self.task.await;
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "the admin socket was gone");
        }
    }
}

fn listen(directory: &Path) -> io::Result<UnixListener> {
    let path = SocketPath::of(directory)?;
    // Under another name until nobody but the owner can connect to it; the rename replaces a dead node's socket.
    let unready = path.as_path().with_extension("new");
    match std::fs::remove_file(&unready) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&unready)?;
    std::fs::set_permissions(&unready, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unready, path.as_path())?;
    Ok(listener)
}

async fn serve(listener: UnixListener, context: Context) {
    let places = Arc::new(Semaphore::new(queues::ADMIN_CONNECTIONS));
    // Dropped with this future: that is how its owner ends the connections.
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, say: waiting lets others end.
                    tracing::warn!(%error, "the admin socket does not accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        match places.clone().try_acquire_owned() {
            Ok(place) => {
                let context = context.clone();
                connections.spawn(async move {
                    if let Err(error) = Connection::new(stream).run(&context).await {
                        tracing::debug!(%error, "admin connection");
                    }
                    drop(place);
                });
            }
            Err(_) => {
                connections.spawn(async move {
                    let error = CommandError::new("E0702", Exit::Conflict, "too many commands run on this node")
                        .fix("wait until one of them ends");
                    // A client that cannot hear it is none the worse.
                    let _ = Connection::new(stream).write(&Response::Error(error)).await;
                });
            }
        }
    }
}

struct Connection {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Connection {
    fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader: BufReader::new(reader), writer }
    }

    async fn run(&mut self, context: &Context) -> io::Result<()> {
        while let Some(line) = self.read_line().await? {
            match serde_json::from_slice(&line) {
                Ok(request) => self.answer(context, request).await?,
                Err(error) => {
                    let why = format!("the node does not understand the request: {error}");
                    let error = CommandError::new("E0302", Exit::Failed, why)
                        .fix("use the same version of tidelog for the node and for commands");
                    return self.write(&Response::Error(error)).await;
                }
            }
        }
        Ok(())
    }

    /// One line, without its end; `None` when the client is gone.
    async fn read_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.reader).take(REQUEST_BYTES_MAX as u64 + 1);
        bounded.read_until(b'\n', &mut line).await?;
        if line.pop_if(|last| *last == b'\n').is_some() {
            return Ok(Some(line));
        }
        if line.len() > REQUEST_BYTES_MAX {
            let error = CommandError::new("E0703", Exit::Failed, "the request is too long")
                .fix(format!("one request has at most {REQUEST_BYTES_MAX} bytes"));
            self.write(&Response::Error(error)).await?;
        }
        Ok(None)
    }

    /// Runs one command; when the client goes away meanwhile, the command is told to end.
    async fn answer(&mut self, context: &Context, request: Request) -> io::Result<()> {
        let (canceller, cancel) = Cancel::new();
        let (lines, mut waiting) = mpsc::channel(queues::ADMIN_LINES);
        let context = context.clone();
        let work = tokio::task::spawn_blocking(move || {
            let mut output = SocketOutput { lines, cancel: cancel.clone() };
            execute(&context, request, &cancel, &mut output)
        });
        let mut listening = true;
        loop {
            tokio::select! {
                line = waiting.recv() => match line {
                    Some(line) => self.write(&line).await?,
                    None => break,
                },
                more = self.reader.fill_buf(), if listening => match more {
                    // The next request, early: it waits in the buffer.
                    Ok(bytes) if !bytes.is_empty() => listening = false,
                    _ => {
                        canceller.cancel();
                        return Ok(());
                    }
                },
            }
        }
        let last = match work.await {
            Ok(Ok(done)) => Response::Done(done),
            Ok(Err(error)) => Response::Error(error),
            Err(_) => Response::Error(
                CommandError::new("E0003", Exit::Failed, "the command failed inside the node")
                    .fix("the node's log says more; please report it"),
            ),
        };
        self.write(&last).await
    }

    async fn write(&mut self, response: &Response) -> io::Result<()> {
        let mut line = serde_json::to_vec(response)?;
        line.push(b'\n');
        let written = tokio::time::timeout(WRITE_TIME, self.writer.write_all(&line)).await;
        written.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the client does not read"))?
    }
}

/// Hands rows from the command's thread to the connection's task.
struct SocketOutput {
    lines: mpsc::Sender<Response>,
    cancel: Cancel,
}

impl Output for SocketOutput {
    fn row(&mut self, row: Value) -> Result<(), CommandError> {
        self.cancel.check()?;
        self.lines.blocking_send(Response::Row(row)).map_err(|_| CommandError::output_closed())
    }

    fn progress(&mut self, progress: Progress) {
        // Progress that nobody has room for is of no interest any more.
        let _ = self.lines.try_send(Response::Progress(progress));
    }
}
