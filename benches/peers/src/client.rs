//! Clients: a socket, and a handler that answers what the server says. All run on one thread.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::Failure;
use crate::wire::{self, Incoming};

/// Frames that wait for a socket.
const FRAMES_MAX: usize = 4096;
/// Messages read before what they gave rise to is sent.
const MESSAGES_AT_ONCE: usize = 64;
const CONNECT_MAX: Duration = Duration::from_secs(20);

/// Both ends' names: what every message begins with.
#[derive(Debug, Clone)]
pub struct Link {
    me: Rc<str>,
    server: Rc<str>,
}

impl Link {
    pub fn sync(&self, document: &str, data: &[u8]) -> Vec<u8> {
        wire::sync("sync", &self.me, &self.server, document, data)
    }

    pub fn request(&self, document: &str, data: &[u8]) -> Vec<u8> {
        wire::sync("request", &self.me, &self.server, document, data)
    }
}

/// What a client does with what it is told.
pub trait Handler: 'static {
    /// Takes a message that came at `at`.
    fn handle(&mut self, at: Instant, message: &Incoming<'_>) -> Result<(), Failure>;
    /// Answers what came; called when nothing more is there to be read.
    fn answer(&mut self, link: &Link, out: &mut Vec<Vec<u8>>) -> Result<(), Failure>;
}

/// A handler that has nothing to say.
pub struct Idle;

impl Handler for Idle {
    fn handle(&mut self, _at: Instant, _message: &Incoming<'_>) -> Result<(), Failure> {
        Ok(())
    }

    fn answer(&mut self, _link: &Link, _out: &mut Vec<Vec<u8>>) -> Result<(), Failure> {
        Ok(())
    }
}

/// Where the clients of a load say that something happened, and what went wrong.
#[derive(Debug, Default)]
pub struct Board {
    changed: Notify,
    failure: RefCell<Option<String>>,
}

impl Board {
    pub fn note(&self) {
        self.changed.notify_one();
    }

    pub fn fail(&self, failure: impl ToString) {
        self.failure.borrow_mut().get_or_insert_with(|| failure.to_string());
        self.changed.notify_one();
    }

    /// Forgets what went wrong, for another try.
    pub fn forgive(&self) -> Option<String> {
        self.failure.borrow_mut().take()
    }

    /// Waits until `done`; `false` when that takes longer than `most`.
    pub async fn until(&self, most: Duration, mut done: impl FnMut() -> bool) -> Result<bool, Failure> {
        let deadline = tokio::time::Instant::now() + most;
        loop {
            if let Some(failure) = &*self.failure.borrow() {
                return Err(failure.clone().into());
            }
            if done() {
                return Ok(true);
            }
            if tokio::time::timeout_at(deadline, self.changed.notified()).await.is_err() {
                return Ok(done());
            }
        }
    }
}

/// A connected client. Dropping it closes its socket.
pub struct Client {
    pub link: Link,
    frames: mpsc::Sender<Vec<u8>>,
    task: JoinHandle<()>,
}

impl Client {
    /// Connects, joins, and begins to handle what comes.
    pub async fn connect(url: &str, name: &str, board: &Rc<Board>, mut handler: impl Handler) -> Result<Self, Failure> {
        let began = Instant::now();
        let (mut socket, server) = loop {
            match timeout(CONNECT_MAX, join(url, name)).await {
                Ok(Ok(joined)) => break joined,
                // A server that is busy closes sockets, as it seems to hear nothing from them.
                Ok(Err(_)) if began.elapsed() < CONNECT_MAX => tokio::time::sleep(Duration::from_millis(100)).await,
                Ok(Err(failure)) => return Err(failure),
                Err(_) => return Err(format!("no answer to a join after {CONNECT_MAX:?}").into()),
            }
        };
        let link = Link { me: name.into(), server: server.into() };
        let (frames, mut queue) = mpsc::channel(FRAMES_MAX);
        let (board, own_link) = (board.clone(), link.clone());
        let task = tokio::task::spawn_local(async move {
            if let Err(failure) = run(&mut socket, &mut queue, &own_link, &mut handler).await {
                board.fail(failure);
            }
        });
        Ok(Self { link, frames, task })
    }

    /// Hands a frame to the socket. It is an error when too many wait: the server does not read.
    pub fn send(&self, frame: Vec<u8>) -> Result<(), Failure> {
        self.frames.try_send(frame).map_err(|_| "the server does not take what is sent".into())
    }

    /// Lets the handler say the first word.
    pub fn start(&self) {
        // A queue that is full wakes it as well.
        let _ = self.frames.try_send(Vec::new());
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn join(url: &str, name: &str) -> Result<(WebSocketStream<TcpStream>, String), Failure> {
    let address = url.trim_start_matches("ws://").split('/').next().unwrap_or_default();
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let config = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(64 << 10)
        .max_message_size(Some(256 << 20))
        .max_frame_size(Some(256 << 20));
    let (mut socket, _) = client_async_with_config(url, stream, Some(config)).await?;
    socket.send(Message::binary(wire::join(name))).await?;
    while let Some(message) = socket.next().await {
        if let Message::Binary(bytes) = message?
            && let Some(incoming) = wire::read(&bytes)
        {
            match incoming.kind {
                "peer" => return Ok((socket, incoming.sender.to_owned())),
                "error" => return Err(format!("the server says: {}", incoming.message).into()),
                _ => {}
            }
        }
    }
    Err("the server closed the socket before it said who it is".into())
}

async fn run(
    socket: &mut WebSocketStream<TcpStream>,
    queue: &mut mpsc::Receiver<Vec<u8>>,
    link: &Link,
    handler: &mut impl Handler,
) -> Result<(), Failure> {
    let mut out = Vec::new();
    loop {
        let mut next = tokio::select! {
            biased;
            message = socket.next() => Some(message),
            frame = queue.recv() => {
                let Some(frame) = frame else { return Ok(()) };
                if !frame.is_empty() {
                    out.push(frame);
                }
                None
            }
        };
        let mut taken = 0;
        while let Some(message) = next {
            match message.ok_or("the server closed a socket")?? {
                Message::Binary(bytes) => take(&bytes, handler)?,
                Message::Close(frame) => return Err(format!("the server closed a socket: {frame:?}").into()),
                _ => {}
            }
            taken += 1;
            next = if taken < MESSAGES_AT_ONCE { socket.next().now_or_never() } else { None };
        }
        handler.answer(link, &mut out)?;
        while let Ok(frame) = queue.try_recv() {
            out.push(frame);
        }
        for frame in out.drain(..) {
            socket.feed(Message::binary(frame)).await?;
        }
        socket.flush().await?;
    }
}

fn take(bytes: &[u8], handler: &mut impl Handler) -> Result<(), Failure> {
    let at = Instant::now();
    let incoming = wire::read(bytes).ok_or("the server sent what is no message")?;
    if incoming.kind == "error" {
        return Err(format!("the server says: {}", incoming.message).into());
    }
    handler.handle(at, &incoming)
}
