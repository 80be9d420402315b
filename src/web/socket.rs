//! One WebSocket: bytes between a client and its session.
//!
//! Everything that waits is here, in one task. The session is asked for what it wants done until it wants nothing;
//! then the task waits for whatever happens first. One message at a time is on its way out, and none is read while the
//! session has enough to do, so a client that sends too much, or reads too little, is held up by TCP itself.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error as SocketError, Message};

use super::guest::{Payer, Paying};
use super::meter::{Meter, Metered, ReceiveBudget};
use super::server::stopped;
use super::switchboard::{Mailbox, Switchboard};
use super::upgrade::fault_of;
use crate::access::{Refusal, Subject, Vigil};
use crate::engine::{Clash, Database, Judge, Source, now_ms};
use crate::error::Error;
use crate::id::{DocumentId, truncated};
use crate::quota::{Account, Busy, Kind, Ledger};
use crate::sync::repo::{Moment, RepoConfig, RepoFault, RepoOutput, RepoSession, SocketId};
use crate::sync::{Admitted, Leave};

/// How often a client is asked whether it is there. Its browser answers without the application's doing; and it is the
/// only way by which either side learns that the other is gone without a word.
const PING_EVERY: Duration = Duration::from_secs(10);
/// How long nothing at all may come.
const SILENCE_MAX: Duration = Duration::from_secs(25);
/// How long a message may take, either way, beside its bytes at [`SLOWEST`].
const MESSAGE_TIME: Duration = Duration::from_secs(60);
/// Bytes a second below which a client is not waited for.
const SLOWEST: u64 = 16 << 10;
/// What the session is asked to do at a stretch before other tasks get their turn.
const OUTPUTS_PER_TURN: usize = 32;
/// How long a client is listened to after its socket was closed.
const CLOSING_TIME: Duration = Duration::from_secs(1);
/// How long a client that has nothing of a long document waits for its snapshot; then it is sent changes.
const SAVING_TIME: Duration = Duration::from_secs(30);
/// Bytes that are read, or written, at a time. Allocated for each socket, so a small number.
const BUFFER_BYTES: usize = 2 << 10;
/// The most of a message that is in a socket's buffer at a time.
const PART_BYTES: usize = 64 << 10;
/// The longest reason that a close frame can carry.
const REASON_BYTES: usize = 120;

/// What all sockets of a server share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) database: Database,
    pub(super) switchboard: Arc<Switchboard>,
    /// What clients send is not tried before it is logged.
    pub(super) is_trusting: bool,
    /// What everybody has of the server.
    pub(super) ledger: Arc<Ledger>,
    pub(super) budget: ReceiveBudget,
    pub(super) stop: watch::Receiver<bool>,
}

type Admitting = Pin<Box<dyn Future<Output = (u64, Result<Admitted, NotTaken>)> + Send>>;

/// Why what a client sent is not logged.
enum NotTaken {
    Error(Error),
    Busy(Busy),
}

/// A socket and everything its session needs.
pub(super) struct Socket<S> {
    stream: WebSocketStream<Metered<S>>,
    meter: Arc<Meter>,
    shared: Shared,
    name: SocketId,
    mailbox: Arc<Mailbox>,
    session: RepoSession,
    admitting: Option<Admitting>,
    /// Snapshots that documents of the session wait for. Empty, it takes no memory worth naming.
    saving: JoinSet<DocumentId>,
    /// A message of the session is on its way.
    sending: Option<Sending>,
    /// Something is in the socket's buffer.
    is_unflushed: bool,
    /// When the message that is coming began to.
    receiving: Option<Instant>,
    /// How many bytes have come, and when that was last more.
    heard: (u64, Instant),
    /// Whose it is, where that makes a difference.
    subject: Option<Subject>,
    /// Hears when that becomes otherwise.
    vigil: Option<Vigil>,
    /// Who pays for what is read.
    payer: Option<Arc<Account>>,
    /// The account of his address, which pays for tokens that are not accepted.
    address: Option<Arc<Account>>,
    /// Bytes read that are paid for.
    paid: u64,
    /// It was too fast, and is not read before that.
    held_until: Option<Instant>,
    /// It was so fast that it has to go, once what it sent is taken: it comes again with the rest.
    leaving: Option<Busy>,
}

/// A message on its way.
struct Sending {
    /// What is not in the socket's buffer yet.
    left: Bytes,
    /// Some of it is, or was.
    is_begun: bool,
    /// When it must be gone.
    until: Instant,
}

/// Why a socket ends.
enum Ended {
    /// The session says so.
    Fault(RepoFault),
    /// The server ends.
    Stopped,
    /// The client closes it.
    Closed,
    /// The client is gone.
    Gone,
    /// The client does not keep pace.
    TooSlow(&'static str),
}

enum Happened {
    Read(Option<Result<Message, SocketError>>),
    Flushed(Result<(), SocketError>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Takes a connection over once its handshake is done; `read` is what was read beyond that.
    ///
    /// A socket is a few KiB, and futures keep room for all that they ever hold: hence the box.
    pub(super) async fn new(
        stream: S,
        read: Vec<u8>,
        shared: Shared,
        config: RepoConfig,
        guest: Option<(Subject, Payer)>,
    ) -> Box<Self> {
        let (subject, payer) = guest.unzip();
        let (payer, address) = payer.map(|Payer { account, address, .. }| (account, address)).unzip();
        let max = config.limits.repo_message_bytes;
        let meter = Arc::new(Meter::default());
        let metered = Metered::new(stream, meter.clone(), shared.budget.clone());
        let settings = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES)
            .max_message_size(Some(max))
            .max_frame_size(Some(max));
        let stream = WebSocketStream::from_partially_read(metered, read, Role::Server, Some(settings)).await;
        let (name, mailbox) = shared.switchboard.open();
        Box::new(Self {
            stream,
            meter,
            shared,
            name,
            mailbox,
            session: RepoSession::new(config),
            admitting: None,
            saving: JoinSet::new(),
            sending: None,
            is_unflushed: false,
            receiving: None,
            heard: (0, Instant::now()),
            subject,
            vigil: None,
            payer,
            address,
            paid: 0,
            held_until: None,
            leaving: None,
        })
    }

    /// Turns the client away: it is told why, and the socket closed.
    pub(super) fn end(&mut self, fault: RepoFault) {
        self.session.end(fault);
    }

    /// Whose the socket is, where something might be refused to him.
    fn judged(&self) -> Option<Arc<dyn Judge>> {
        let subject = self.subject.as_ref().filter(|subject| subject.is_restricted())?;
        Some(Arc::new(subject.clone()))
    }

    /// Takes another token of the same user. Where none counts, it is not looked at; nor is one from an address that has
    /// brought too many that were not accepted.
    fn prove(&mut self, token: &str) {
        let Some(before) = self.subject.as_ref().filter(|subject| subject.is_restricted()) else { return };
        let Some(address) = &self.address else { return };
        let now = Instant::now().into_std();
        let looked = self.shared.ledger.look(token, address, now, || before.renewed(token), Refusal::is_of_token);
        let proven = match looked {
            Ok(proven) => proven,
            Err(busy) => return self.end(fault_of(&busy)),
        };
        match proven {
            Ok(subject) if subject.principal() == before.principal() => {
                let permits = self.payer.clone().map(|account| Paying { subject: subject.clone(), account });
                self.session.handle_permits(permits.map(|permits| Arc::new(permits) as _));
                self.vigil = Some(subject.vigil().with_the_time());
                self.subject = Some(subject);
            }
            Ok(_) => self.end(RepoFault::Unauthenticated("the token is somebody else's".to_owned())),
            Err(refusal) => self.end(RepoFault::Unauthenticated(refusal.to_string())),
        }
    }

    /// Takes note that the client may be allowed other things than before, or may not be here any more.
    fn look_again(&mut self, leave: Option<Leave>) {
        match leave {
            Some(Leave::Expired) => self.end(RepoFault::Expired),
            Some(Leave::Revoked) => self.end(RepoFault::Revoked),
            // What was denied is not asked for every few seconds.
            None if self.vigil.as_ref().is_some_and(Vigil::is_by_time) => self.session.handle_lagged(),
            None => self.session.handle_permits_changed(),
        }
    }

    /// Runs until the client goes, breaks the protocol or is given up, or until the server ends.
    pub(super) async fn run(mut self: Box<Self>) {
        let ended = self.converse().await;
        self.shared.switchboard.closed(self.name);
        let client = self.session.client().unwrap_or("");
        match ended {
            Ended::Gone => tracing::debug!(client, "a client is gone"),
            Ended::Closed => {
                tracing::debug!(client, "a client closes its socket");
                self.close(None).await;
            }
            Ended::Stopped => self.close(Some((1001, "the server ends"))).await,
            Ended::TooSlow(why) => {
                tracing::info!(client, why, "a client is given up");
                self.close(Some((1008, why))).await;
            }
            Ended::Fault(fault) => {
                tracing::info!(client, %fault, "a client's socket is closed");
                self.close(Some((fault.code(), &fault.to_string()))).await;
            }
        }
    }

    async fn converse(&mut self) -> Ended {
        let mut ticks = tokio::time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stop = self.shared.stop.clone();
        self.vigil = self.subject.as_ref().map(|subject| subject.vigil().with_the_time());
        loop {
            // Each time, not only when nothing else happens: a client that never pauses must hear it too.
            self.take_mail();
            let more = match self.turn() {
                Ok(more) => more,
                Err(fault) => return Ended::Fault(fault),
            };
            if more {
                tokio::task::yield_now().await;
            } else if self.admitting.is_none()
                && let Some(busy) = self.leaving.take()
            {
                self.end(fault_of(&busy));
                continue;
            }
            self.meter.set_message_max(self.session.message_bytes_max());
            let is_heard = self.session.is_heard();
            if self.held_until.is_some_and(|until| until <= Instant::now()) {
                self.held_until = None;
            }
            let held_until = self.held_until;
            let Self { stream, mailbox, session, admitting, saving, is_unflushed, vigil, .. } = self;
            let ended = tokio::select! {
                biased;
                () = stopped(&mut stop) => Err(Ended::Stopped),
                (ticket, outcome) = poll_fn(|context| match admitting {
                    Some(admitting) => admitting.as_mut().poll(context),
                    None => Poll::Pending,
                }) => {
                    self.admitting = None;
                    match outcome {
                        Ok(admitted) => self.session.handle_admitted(ticket, admitted),
                        Err(NotTaken::Error(error)) => self.session.handle_refused(&error.to_string()),
                        Err(NotTaken::Busy(busy)) => self.end(fault_of(&busy)),
                    }
                    Ok(())
                }
                happened = next(stream, *is_unflushed, session.accepts() && held_until.is_none()) => {
                    self.take(happened)
                }
                () = until(held_until), if held_until.is_some() => Ok(()),
                () = mailbox.arrived() => Ok(()),
                Some(saved) = saving.join_next(), if !saving.is_empty() => {
                    // None of them panics; one that did would leave its document to the client's next message.
                    saved.into_iter().for_each(|document| self.session.handle_saved(document));
                    Ok(())
                }
                _ = ticks.tick() => self.tick(),
                leave = watched(vigil), if is_heard => {
                    self.look_again(leave);
                    Ok(())
                }
                () = std::future::ready(()), if more => Ok(()),
            };
            if let Err(ended) = ended {
                return ended;
            }
        }
    }

    /// Does what the session asks for; `true` when it has more to ask.
    fn turn(&mut self) -> Result<bool, RepoFault> {
        for _ in 0..OUTPUTS_PER_TURN {
            match self.session.poll(moment(), self.shared.database.reader()) {
                None => return Ok(false),
                Some(RepoOutput::Send(bytes)) => {
                    let time = MESSAGE_TIME + Duration::from_secs(bytes.len() as u64 / SLOWEST);
                    let until = Instant::now() + time;
                    self.sending = Some(Sending { left: bytes.into(), is_begun: false, until });
                    self.put_part();
                }
                Some(RepoOutput::Admit { ticket, rows }) => {
                    let (database, is_trusted) = (self.shared.database.clone(), self.shared.is_trusting);
                    let judge = self.judged();
                    let new = self.payer.clone().map(|payer| (payer, database.count_new(&rows)));
                    self.admitting = Some(Box::pin(async move {
                        if let Some((payer, count)) = new
                            && count > 0
                            && let Err(busy) = pay(&payer, Kind::Documents, count).await
                        {
                            return (ticket, Err(NotTaken::Busy(busy)));
                        }
                        let from = Source { node: database.node(), is_trusted, clash: Clash::KeepFirst, judge };
                        (ticket, database.offer(from, rows, None).await.map_err(NotTaken::Error))
                    }));
                }
                Some(RepoOutput::Save(document)) => {
                    let database = self.shared.database.clone();
                    self.saving.spawn(async move {
                        // Late or not, the document is answered.
                        let _ = timeout(SAVING_TIME, database.await_snapshot(document)).await;
                        document
                    });
                }
                Some(RepoOutput::Prove(token)) => self.prove(&token),
                Some(RepoOutput::Event(event)) => {
                    // What the hub answers is in the mailbox.
                    self.shared.switchboard.handle(self.name, event);
                }
                Some(RepoOutput::Close(fault)) => return Err(fault),
            }
        }
        Ok(true)
    }

    /// Puts the next part of the message that is on its way into the socket's buffer; `false` when nothing is left of it.
    /// In parts, since the buffer keeps the size of the largest that was ever in it.
    fn put_part(&mut self) -> bool {
        let Some(sending) = self.sending.as_mut().filter(|sending| !sending.left.is_empty()) else { return false };
        let part = sending.left.split_to(sending.left.len().min(PART_BYTES));
        let kind = if std::mem::replace(&mut sending.is_begun, true) { Data::Continue } else { Data::Binary };
        let frame = Frame::message(part, OpCode::Data(kind), sending.left.is_empty());
        self.put(Message::Frame(frame));
        true
    }

    /// Puts a message into the socket's buffer. What is wrong with the socket shows when that is flushed.
    fn put(&mut self, message: Message) {
        let _ = Pin::new(&mut self.stream).start_send(message);
        self.is_unflushed = true;
    }

    fn take(&mut self, happened: Happened) -> Result<(), Ended> {
        match happened {
            Happened::Flushed(Ok(())) => {
                self.is_unflushed = false;
                if !self.put_part() && self.sending.take().is_some() {
                    self.session.handle_sent();
                }
            }
            Happened::Read(Some(Ok(message))) => {
                self.receiving = None;
                self.pay_for_frame();
                match message {
                    Message::Binary(bytes) => {
                        self.session.handle_message(moment(), &bytes, self.shared.database.reader());
                    }
                    Message::Text(_) => self.session.handle_text(),
                    Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {
                        // A pong may be owed.
                        self.is_unflushed = true;
                        return Ok(());
                    }
                    Message::Close(_) => return Err(Ended::Closed),
                }
                self.meter.message_taken();
            }
            Happened::Read(Some(Err(SocketError::Capacity(_)))) => self.session.handle_too_long(),
            Happened::Read(Some(Err(SocketError::Io(error)))) if error.kind() == std::io::ErrorKind::InvalidData => {
                self.session.handle_too_long();
            }
            // Whoever ends its process says no farewell.
            Happened::Read(Some(Err(SocketError::Protocol(ProtocolError::ResetWithoutClosingHandshake)))) => {
                return Err(Ended::Gone);
            }
            Happened::Read(Some(Err(SocketError::Protocol(_) | SocketError::Utf8(_)))) => self.session.handle_text(),
            Happened::Read(None | Some(Err(_))) | Happened::Flushed(Err(_)) => return Err(Ended::Gone),
        }
        Ok(())
    }

    /// Pays for what was read. Beyond what may come in a time, nothing more is read for a while.
    fn pay_for_frame(&mut self) {
        let Some(payer) = &self.payer else { return };
        let (read, now) = (self.meter.read(), Instant::now());
        let bytes = read - std::mem::replace(&mut self.paid, read);
        let wait = match payer.read(1, bytes, now.into_std()) {
            Ok(wait) if wait.is_zero() => return,
            Ok(wait) => wait,
            Err(busy) => self.leaving.insert(busy).retry_after,
        };
        self.held_until = Some(now + wait);
    }

    fn take_mail(&mut self) {
        let mail = self.mailbox.take();
        if mail.lagged {
            self.session.handle_lagged();
        }
        mail.changed.into_iter().for_each(|document| self.session.handle_changed(document));
        mail.notices.into_iter().for_each(|notice| self.session.handle_notice(notice));
    }

    /// Every now and then: asks whether the client is there, and looks at what takes too long.
    fn tick(&mut self) -> Result<(), Ended> {
        let (now, read) = (Instant::now(), self.meter.read());
        // While we do not read, we cannot hear.
        if read != self.heard.0 || !self.session.accepts() || self.held_until.is_some() {
            self.heard = (read, now);
        }
        if self.session.client().is_none() {
            return Err(Ended::TooSlow("it did not say who it is"));
        }
        match &self.sending {
            Some(sending) if now > sending.until => return Err(Ended::TooSlow("it does not read what it is sent")),
            // Its answer to a ping may stand behind much that is under way.
            Some(_) => {}
            None if now.duration_since(self.heard.1) > SILENCE_MAX => return Err(Ended::Gone),
            None => self.put(Message::Ping(Vec::new().into())),
        }
        let unfinished = self.meter.unfinished();
        if unfinished <= BUFFER_BYTES || self.held_until.is_some() {
            self.receiving = None;
            return Ok(());
        }
        let began = *self.receiving.get_or_insert(now);
        if now.duration_since(began) > MESSAGE_TIME + Duration::from_secs(unfinished as u64 / SLOWEST) {
            return Err(Ended::TooSlow("a message of it does not come to its end"));
        }
        Ok(())
    }

    /// Says why, unless the client closes the socket itself, and lets the client end the connection: one that is reset
    /// kills stock clients outside browsers.
    async fn close(&mut self, why: Option<(u16, &str)>) {
        let closing = async {
            if let Some((code, reason)) = why {
                let frame = CloseFrame { code: CloseCode::from(code), reason: truncated(reason, REASON_BYTES).into() };
                self.put(Message::Close(Some(frame)));
            }
            poll_fn(|context| Pin::new(&mut self.stream).poll_flush(context)).await.ok();
            // What is in the receive buffer when a connection is dropped resets it.
            let bare = self.stream.get_mut().unmetered();
            let mut buffer = vec![0; BUFFER_BYTES];
            while bare.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
        };
        // The client need not answer.
        let _ = timeout(CLOSING_TIME, closing).await;
    }
}

/// Whatever the socket does first.
async fn next<S>(stream: &mut WebSocketStream<S>, is_unflushed: bool, may_read: bool) -> Happened
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    poll_fn(|context| {
        let mut stream = Pin::new(&mut *stream);
        if is_unflushed && let Poll::Ready(flushed) = stream.as_mut().poll_flush(context) {
            return Poll::Ready(Happened::Flushed(flushed));
        }
        if may_read && let Poll::Ready(read) = stream.as_mut().poll_next(context) {
            return Poll::Ready(Happened::Read(read));
        }
        Poll::Pending
    })
    .await
}

/// Waits until then; for ever, where there is nothing to wait for.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Pays for so many, as soon as one more fits.
///
/// # Errors
/// [`Busy`] when that takes too long. Nothing was paid.
async fn pay(payer: &Account, kind: Kind, count: u64) -> Result<(), Busy> {
    loop {
        let wait = payer.pay_in_time(kind, count, Instant::now().into_std())?;
        if wait.is_zero() {
            return Ok(());
        }
        tokio::time::sleep(wait).await;
    }
}

/// Waits for whatever changes what a client may do; for ever where nothing does.
async fn watched(vigil: &mut Option<Vigil>) -> Option<Leave> {
    match vigil {
        Some(vigil) => vigil.next().await,
        None => std::future::pending().await,
    }
}

fn moment() -> Moment {
    Moment { at: Instant::now().into_std(), unix_ms: now_ms() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of_future<A, F>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    /// Most sockets do nothing most of the time, and there are thousands.
    #[test]
    fn an_idle_socket_is_small() {
        let socket = size_of::<Socket<tokio::net::TcpStream>>();
        let task = bytes_of_future(Socket::<tokio::net::TcpStream>::run);
        println!("{socket} bytes, and {task} while it runs, of which its session {}", size_of::<RepoSession>());
        assert!(socket <= 4 << 10 && task <= 2 << 10, "{socket} and {task} bytes");
    }
}
