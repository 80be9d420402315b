//! One session over one link: bytes between the streams of a connection and the state machine.
//!
//! Everything that waits is here. A small task reads each incoming stream and another writes each outgoing one; they
//! meet in one bounded queue of events, and the loop in [`Conversation::run`] feeds the session from it. A reader hands
//! over one frame at a time and goes on only when the session took it, so a peer that sends too much is stopped by
//! the transport's own flow control.

mod admissions;
mod purse;
mod streams;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use self::admissions::{Admission, admit_in_order};
use self::purse::Purse;
use self::streams::Begun;
use super::close::CloseCode;
use super::door::{Change, Doorkeeper, Entry, TurnedAway, Visitor, next_change};
use super::error::NetError;
use super::frames::{FrameReader, FrameWriter};
use super::link::Link;
use crate::engine::{Clash, Database};
use crate::error::Error;
use crate::id::LogCursor;
use crate::limits::queues;
use crate::sync::wire::{Role, Token};
use crate::sync::{
    Admitted, Channel, IncomingRow, Leave, Output, Proven, Session, SessionConfig, SessionError, SessionEvent,
};

/// What may wait for the writer's task before no frame is taken.
const JOBS_MAX: usize = 16;
/// What a frame's length takes on the wire.
const LENGTH_BYTES: usize = 4;
/// What the session is asked to do at a stretch before other events get their turn.
const OUTPUTS_PER_TURN: usize = 64;
/// How long a peer may take to say who it is.
const HELLO_TIME: Duration = Duration::from_secs(10);

/// What happens on a link.
enum Event {
    /// A frame came, and its reader waits to be told to go on.
    Frame(Channel, Vec<u8>, oneshot::Sender<()>),
    /// The peer finished or dropped its side.
    ReadEnd(Channel),
    /// The transport has the frame.
    Sent(Channel),
    /// A stream cannot be written any more.
    WriteEnd(Channel),
    /// The peer opened a stream.
    Begun(Begun),
    /// A stream of ours is open in both directions.
    OpenedOurs(Channel, FrameReader),
    /// The writer answered.
    Admitted(u64, Result<Admitted, Error>),
    /// So many rows that the peer denied are taken back.
    TakenBack(usize),
    /// What the peer said of what we may read there is logged.
    Withheld,
    /// The writer could not do what the peer said of what we may do there.
    NotTaken(Error),
    /// What came will not be taken for so long that the peer has to go.
    TooMuch(TurnedAway),
    /// The link is over.
    Failed(NetError),
}

/// What an outgoing stream's task is told.
enum ToWrite {
    Frame { frame: Vec<u8>, finish: bool },
    Reset,
}

/// What a conversation is given beside the session.
pub(super) struct Manners {
    /// Who says what a peer may do whose key does not say it.
    pub(super) door: Option<Arc<dyn Doorkeeper>>,
    /// What we show the peer, if we dialled it.
    pub(super) token: watch::Receiver<Option<Token>>,
    /// Hears what the session has to say.
    pub(super) on_event: Arc<dyn Fn(&SessionEvent) + Send + Sync>,
    /// What the connection has of us, where that is counted.
    pub(super) entry: Option<Entry>,
}

/// A link and everything its session needs.
pub(super) struct Conversation {
    database: Database,
    link: Link,
    session: Session,
    events: mpsc::Sender<Event>,
    incoming: mpsc::Receiver<Event>,
    /// Outgoing streams by channel.
    writers: HashMap<Channel, mpsc::Sender<ToWrite>>,
    /// Frames that the session does not take yet.
    parked: Vec<(Channel, Vec<u8>, oneshot::Sender<()>)>,
    /// Streams that are not taken yet.
    begun: VecDeque<Begun>,
    /// Who pays for what is taken.
    purse: Purse,
    admissions: mpsc::Sender<Admission>,
    /// What it has no room for yet. No frame is taken while there are many.
    jobs: VecDeque<Admission>,
    /// How many the writer has not answered.
    unanswered: usize,
    /// What the peer may be here, and what we may be there.
    roles: (Role, Role),
    /// Every task of this link; dropped, they end.
    tasks: JoinSet<()>,
    peer_said_hello: bool,
    /// Its user has to prove himself.
    is_guarded: bool,
    manners: Manners,
    visitor: Option<Visitor>,
    /// What the session is to be told of him.
    proven: Option<Proven>,
    /// Why the peer was not let in.
    turned_away: Option<TurnedAway>,
}

/// The first frame and the stream it came on, when they were read before the peer was admitted.
pub(super) struct Opening {
    pub(super) writer: FrameWriter,
    pub(super) reader: FrameReader,
    pub(super) hello: Option<Vec<u8>>,
}

impl Conversation {
    /// Prepares the conversation.
    pub(super) fn new(database: Database, link: Link, config: SessionConfig, mut manners: Manners) -> Self {
        let (events, incoming) = mpsc::channel(queues::LINK_EVENTS);
        let (admissions, queue) = mpsc::channel(queues::LINK_ADMISSIONS);
        let mut tasks = JoinSet::new();
        let is_trusted = config.role == Role::Node;
        let is_guarded = config.guarded;
        tasks.spawn(admit_in_order(database.clone(), config.peer, is_trusted, queue, events.clone()));
        let (writers, parked) = (HashMap::new(), Vec::new());
        // Nothing is admitted before the peer has said what we are there.
        let roles = (config.role, Role::Node);
        let session = Session::new(config);
        let purse = Purse::new(manners.entry.take());
        Self {
            database,
            link,
            session,
            events,
            incoming,
            writers,
            parked,
            begun: VecDeque::new(),
            purse,
            admissions,
            jobs: VecDeque::new(),
            unanswered: 0,
            roles,
            tasks,
            peer_said_hello: false,
            is_guarded,
            manners,
            visitor: None,
            proven: None,
            turned_away: None,
        }
    }

    /// Runs until the link ends or `stop` turns true, and says why it ended. The link is closed then, with a code that
    /// tells the peer the same.
    pub(super) async fn run(mut self, opening: Option<Opening>, stop: &mut watch::Receiver<bool>) -> NetError {
        let ended = self.converse(opening, stop).await;
        let why = match ended {
            Ended::Stopped => {
                self.link.close(CloseCode::Shutdown, "");
                NetError::ClosedHere
            }
            Ended::Link(error) => {
                // Asked before we close it ourselves: a peer that refused us said why.
                let reason = self.link.close_reason();
                self.link.close(error.close_code(), &error.to_string());
                reason.filter(|_| !self.peer_said_hello).unwrap_or(error)
            }
            Ended::TurnedAway(TurnedAway { code, why }) => {
                self.link.close(code, &why);
                NetError::Session { node: self.link.node(), code, why }
            }
            Ended::Session(error) => {
                let code = close_code(&error);
                self.link.close(code, &error.to_string());
                NetError::Session { node: self.link.node(), code, why: error.to_string() }
            }
        };
        self.tasks.shutdown().await;
        why
    }

    async fn converse(&mut self, opening: Option<Opening>, stop: &mut watch::Receiver<bool>) -> Ended {
        if let Err(error) = self.open_control(opening).await {
            return Ended::Link(error);
        }
        self.accept_streams();
        let mut tail = self.database.tail();
        let hello_by = tokio::time::Instant::now() + HELLO_TIME;
        loop {
            let more = match self.turn() {
                Ok(more) => more,
                Err(error) => return Ended::Session(error),
            };
            if let Some(why) = self.turned_away.take() {
                return Ended::TurnedAway(why);
            }
            if let Some(why) = self.purse.leaving().filter(|_| !more && self.unanswered == 0) {
                return Ended::TurnedAway(why.clone());
            }
            if more {
                // Let the readers, writers and the runtime's other tasks have their turn.
                tokio::task::yield_now().await;
            }
            let timeout = self.session.next_timeout().into_iter().chain(self.purse.held_until()).min();
            let timeout = timeout.map(tokio::time::Instant::from_std);
            let event = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ended::Stopped,
                // Before what the peer sends, however much that is.
                change = next_change(&mut self.visitor) => {
                    let (session, reader) = (&mut self.session, self.database.reader());
                    let ended = match change {
                        Change::Leave(leave) => Err(not_let_in(leave)),
                        Change::Rights => session.handle_access_changed(reader).map_err(Ended::Session),
                        Change::Time => session.handle_time_passed(reader).map_err(Ended::Session),
                    };
                    match ended {
                        Ok(()) => continue,
                        Err(ended) => return ended,
                    }
                }
                () = tokio::time::sleep_until(hello_by), if self.waits_for_peer() => {
                    return Ended::Link(NetError::TimedOut { addr: self.link.address() });
                }
                event = self.incoming.recv() => event,
                changed = tail.changed() => {
                    if changed.is_err() {
                        return Ended::Stopped;
                    }
                    self.session.handle_tail();
                    continue;
                }
                Ok(()) = self.manners.token.changed(), if self.link.is_dialled() => {
                    let token = self.manners.token.borrow_and_update().clone();
                    if let Some(Err(error)) = token.map(|token| self.session.show_token(token)) {
                        return Ended::Session(error);
                    }
                    continue;
                }
                () = tokio::time::sleep_until(timeout.unwrap_or(hello_by)), if timeout.is_some() => continue,
                () = std::future::ready(()), if more => continue,
            };
            let Some(event) = event else { return Ended::Stopped };
            if let Err(ended) = self.take(event) {
                return ended;
            }
            // Whatever else is there already is cheaper to take now than in a turn of its own.
            for _ in 0..queues::LINK_EVENTS {
                let Ok(event) = self.incoming.try_recv() else { break };
                if let Err(ended) = self.take(event) {
                    return ended;
                }
            }
        }
    }

    /// Whether the peer has yet to say who it is, or who its user is.
    fn waits_for_peer(&self) -> bool {
        !self.peer_said_hello || self.is_guarded && self.visitor.is_none()
    }

    /// The dialler opens the control stream, the other side waits for it.
    async fn open_control(&mut self, opening: Option<Opening>) -> Result<(), NetError> {
        let Opening { writer, reader, hello } = match opening {
            Some(opening) => opening,
            None if self.link.is_dialled() => {
                let (writer, reader) = self.link.open_bi().await?;
                Opening { writer, reader, hello: None }
            }
            None => {
                let accepted = tokio::time::timeout(HELLO_TIME, self.link.accept_bi()).await;
                let timed_out = |_| NetError::TimedOut { addr: self.link.address() };
                let (writer, reader) = accepted.map_err(timed_out)??;
                Opening { writer, reader, hello: None }
            }
        };
        self.write_channel(Channel::Control, Some(writer));
        if let Some(hello) = hello {
            let (go_on, _) = oneshot::channel();
            self.parked.push((Channel::Control, hello, go_on));
        }
        self.read_channel(Channel::Control, reader);
        Ok(())
    }

    /// Gives the session what it takes and does what it asks for; `true` when it has more to ask.
    fn turn(&mut self) -> Result<bool, SessionError> {
        self.offer_parked()?;
        for _ in 0..OUTPUTS_PER_TURN {
            let Some(output) = self.session.poll(now(), self.database.reader())? else {
                // What it did may have made room for a frame.
                let before = self.parked.len();
                self.offer_parked()?;
                return Ok(self.parked.len() < before);
            };
            self.carry_out(output);
            if let Some(proven) = self.proven.take() {
                self.session.handle_proven(proven, self.database.reader())?;
            }
        }
        Ok(true)
    }

    fn offer_parked(&mut self) -> Result<(), SessionError> {
        self.submit();
        self.begin_streams();
        let mut at = 0;
        while at < self.parked.len() && self.jobs.len() < JOBS_MAX && self.purse.is_open(now()) {
            if !self.session.accepts(self.parked[at].0) {
                at += 1;
                continue;
            }
            let (channel, frame, go_on) = self.parked.remove(at);
            self.purse.pay(1, frame.len() + LENGTH_BYTES, now());
            self.session.handle_frame(now(), channel, &frame, self.database.reader())?;
            // Its reader may have ended with the stream.
            let _ = go_on.send(());
        }
        Ok(())
    }

    /// Takes the streams that the peer opened, as far as it may: each costs it a frame.
    fn begin_streams(&mut self) {
        while self.purse.may_open_stream(now())
            && let Some(Begun { channel, writer, reader, go_on }) = self.begun.pop_front()
        {
            self.purse.pay(1, 0, now());
            if let Some(writer) = writer {
                self.write_channel(channel, Some(writer));
            }
            self.read_channel(channel, reader);
            // Nobody waits where streams are not counted.
            let _ = go_on.send(());
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Send { channel, frame, finish } => {
                if !self.writers.contains_key(&channel) {
                    self.write_channel(channel, None);
                }
                if let Some(writer) = self.writers.get(&channel) {
                    // One frame is under way on a channel, and the queue holds two: there is room.
                    let _ = writer.try_send(ToWrite::Frame { frame, finish });
                }
                if finish {
                    self.writers.remove(&channel);
                }
            }
            Output::Reset(channel) => {
                if let Some(writer) = self.writers.remove(&channel) {
                    let _ = writer.try_send(ToWrite::Reset);
                }
            }
            Output::Admit { ticket, rows, cursor } => self.admit(ticket, rows, cursor),
            Output::StoreCursor { ticket, cursor } => self.admit(ticket, Vec::new(), Some(cursor)),
            Output::Prove { token } => self.prove(token),
            Output::TakeBack(rows) => self.queue(Admission::TakeBack(rows)),
            Output::Withhold { documents, withheld } => self.queue(Admission::Withhold(documents, withheld)),
            Output::Event(event) => {
                if let SessionEvent::PeerHello { .. } = event {
                    self.peer_said_hello = true;
                    if !self.is_guarded
                        && let Err(why) = self.purse.belong_to_address()
                    {
                        self.turned_away = Some(why);
                    }
                }
                // Only a node says what we are to it.
                if let SessionEvent::OurPosition(_, role) = event
                    && self.roles.0 == Role::Node
                {
                    self.roles.1 = role;
                }
                (self.manners.on_event)(&event);
            }
        }
    }

    fn admit(&mut self, ticket: u64, rows: Vec<IncomingRow>, cursor: Option<LogCursor>) {
        let judge = self.visitor.as_ref().and_then(|visitor| visitor.judge.clone());
        let (clash, payer) = (clash_between(self.roles), self.purse.payer());
        self.queue(Admission::Rows { ticket, rows, cursor, clash, judge, payer });
    }

    /// Finds out who the peer's user is.
    fn prove(&mut self, token: Option<Token>) {
        let Some(door) = &self.manners.door else { return };
        let admitted = door.admit(token.as_ref().map(|token| token.0.as_str()), self.link.made_from().ip());
        let is_same = |visitor: &Visitor| {
            self.visitor.as_ref().is_none_or(|before| before.proven.principal == visitor.proven.principal)
        };
        match admitted {
            Ok(visitor) if is_same(&visitor) => match self.purse.belong_to(visitor.payer.clone()) {
                Ok(()) => {
                    self.link.open_window();
                    self.proven = Some(visitor.proven.clone());
                    self.visitor = Some(visitor);
                }
                Err(why) => self.turned_away = Some(why),
            },
            Ok(_) => {
                let why = "the token is somebody else's; open another link with it".to_owned();
                self.turned_away = Some(TurnedAway { code: CloseCode::TokenRefused, why });
            }
            Err(why) => self.turned_away = Some(why),
        }
    }

    fn queue(&mut self, job: Admission) {
        // Only what concerns our own rights comes from a node, and only a client heeds it.
        if let Admission::TakeBack(_) | Admission::Withhold(..) = job
            && self.roles.1 != Role::Client
        {
            return;
        }
        self.jobs.push_back(job);
        self.unanswered += 1;
        self.submit();
    }

    /// Gives the writer's task what it has room for, in order.
    fn submit(&mut self) {
        while let Some(job) = self.jobs.pop_front() {
            if let Err(error) = self.admissions.try_send(job) {
                let (mpsc::error::TrySendError::Full(job) | mpsc::error::TrySendError::Closed(job)) = error;
                self.jobs.push_front(job);
                return;
            }
        }
    }

    fn take(&mut self, event: Event) -> Result<(), Ended> {
        if let Event::Admitted(..) | Event::TakenBack(_) | Event::Withheld = event {
            self.unanswered = self.unanswered.saturating_sub(1);
        }
        match event {
            Event::Frame(channel, frame, go_on) => self.parked.push((channel, frame, go_on)),
            Event::ReadEnd(Channel::Control) => {
                return Err(Ended::Link(self.link.close_reason().unwrap_or(NetError::StreamClosed)));
            }
            Event::ReadEnd(channel) => self.session.handle_channel_closed(channel).map_err(Ended::Session)?,
            Event::Sent(channel) => self.session.handle_sent(channel),
            Event::WriteEnd(channel) => {
                self.writers.remove(&channel);
                self.session.handle_sent(channel);
            }
            Event::Begun(begun) => {
                self.begun.push_back(begun);
                self.begin_streams();
            }
            Event::OpenedOurs(channel, reader) => self.read_channel(channel, reader),
            Event::Admitted(ticket, Ok(admitted)) => self.session.handle_admitted(ticket, admitted),
            Event::Admitted(_, Err(error @ (Error::Unappliable { .. } | Error::Change(_) | Error::Refused { .. }))) => {
                return Err(Ended::Session(SessionError::Unappliable(error.to_string())));
            }
            Event::Admitted(ticket, Err(error)) => {
                self.session.handle_refused(ticket, &error.to_string()).map_err(Ended::Session)?;
            }
            Event::TakenBack(rows) => self.session.handle_taken_back(rows).map_err(Ended::Session)?,
            Event::Withheld => {}
            Event::TooMuch(why) => return Err(Ended::TurnedAway(why)),
            Event::NotTaken(error) => return Err(Ended::Session(SessionError::Refused(error.to_string()))),
            Event::Failed(error) => return Err(Ended::Link(error)),
        }
        Ok(())
    }
}

/// Why a conversation ended.
enum Ended {
    Stopped,
    Link(NetError),
    Session(SessionError),
    TurnedAway(TurnedAway),
}

fn not_let_in(leave: Leave) -> Ended {
    let code = match leave {
        Leave::Expired => CloseCode::TokenRefused,
        Leave::Revoked => CloseCode::TokenRevoked,
    };
    Ended::TurnedAway(TurnedAway { code, why: code.text().to_owned() })
}

/// Whose change stays when two have one author and number, between a peer and us.
fn clash_between((theirs, ours): (Role, Role)) -> Clash {
    match (theirs, ours) {
        (Role::Client, Role::Node) => Clash::KeepFirst,
        (Role::Node, Role::Client) => Clash::TakeTheirs,
        (Role::Node, Role::Node) | (Role::Client, Role::Client) => Clash::SmallerHash,
    }
}

/// The runtime's clock, which is also that of its timers.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The code by which a peer learns why a session ended.
fn close_code(error: &SessionError) -> CloseCode {
    match error {
        SessionError::WrongNode { .. } => CloseCode::WrongIdentity,
        SessionError::AccessChanged => CloseCode::AccessChanged,
        SessionError::History(_) | SessionError::Refused(_) => CloseCode::Internal,
        SessionError::MalformedChange { .. } | SessionError::Unappliable(_) => CloseCode::ChangeRefused,
        _ => CloseCode::BadFrame,
    }
}
