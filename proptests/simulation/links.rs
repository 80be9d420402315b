//! Links between replicas: real sessions at both ends, and streams that keep their order each and not among each other.
//!
//! A stream neither loses nor repeats; what is lost is the link, with everything under way on it. A direction that is
//! blocked holds its frames back until it heals or the link is given up. How much is under way on a stream is bounded,
//! as by a transport's window.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use tidelog::access::sim::{Offered, Visitor};
use tidelog::document::{Change, split};
use tidelog::engine::sim::Engine;
use tidelog::engine::{Clash, Incoming, IncomingBody as Body};
use tidelog::history::Reader;
use tidelog::id::{ChangeHash, DocumentId, LogCursor};
use tidelog::sync::wire::{DeniedRow, Frame, Judgement, Role, RowKind, Token};
use tidelog::sync::{
    Admitted, Channel, IncomingBody, IncomingRow, Opened, Output, Session, SessionConfig, SessionError, SessionEvent,
    Side,
};
use tidelog::{Database, Error};

use super::random::Random;
use super::replica::{Seals, Waiter};
use super::users::{Brought, Users, user_at};
use super::world::{CLIENTS, Event, MS, NODES, SECOND, World};

/// Two replicas that keep a link, and which of them dials.
#[derive(Debug, Clone)]
pub struct Edge {
    pub sides: [usize; 2],
    /// A dial is scheduled.
    pub due: bool,
    pub failures: u32,
}

impl Edge {
    /// Nodes in a ring, a line, a star or a ring with a chord; each client at one node or two.
    pub fn topology(random: &mut Random) -> Vec<Self> {
        let mut pairs: Vec<[usize; 2]> = match random.below(4) {
            0 => (1..NODES).map(|n| [n - 1, n]).collect(),
            1 => (1..NODES).map(|n| [n, 0]).collect(),
            2 => (0..NODES).map(|n| [n, (n + 1) % NODES]).collect(),
            _ => (0..NODES).map(|n| [n, (n + 1) % NODES]).chain([[0, 2]]).collect(),
        };
        for client in NODES..NODES + CLIENTS {
            let home = random.index(NODES);
            pairs.push([client, home]);
            if random.chance(30) {
                pairs.push([client, (home + 1 + random.index(NODES - 1)) % NODES]);
            }
        }
        pairs.into_iter().map(|sides| Self { sides, due: true, failures: 0 }).collect()
    }
}

pub struct Link {
    pub edge: usize,
    pub sides: [usize; 2],
    /// The second end asks who the user of the first is.
    pub is_guarded: bool,
    pub ends: [Option<End>; 2],
    /// Nothing arrives any more.
    pub cut: bool,
    latency: u64,
}

/// One end of a link.
pub struct End {
    pub session: Session,
    lanes: BTreeMap<Channel, Lane>,
    /// What the session gave to the writer, in order, and the part of it that the writer has.
    admissions: VecDeque<Admission>,
    admitting: Option<Admitting>,
    /// Who the peer's user is, where it has one.
    pub visitor: Option<Visitor>,
    /// What is done through a database: what users bring, and what is said of our own rights.
    asking: Option<Asking>,
    /// What is to be taken back next. Nothing else is given to the writer meanwhile.
    taking: Option<Vec<DeniedRow>>,
    pub caught_up: bool,
    wake_at: u64,
    /// The last change in each batch that came, until it is acknowledged.
    batches: VecDeque<(u64, DocumentId, ChangeHash)>,
}

/// A stream on its way to an end.
#[derive(Default)]
struct Lane {
    frames: VecDeque<(u64, Wire)>,
    bytes: usize,
    sender_waits: bool,
    last: u64,
}

enum Wire {
    Frame(Vec<u8>),
    End,
}

/// An admission, group by group.
struct Admitting {
    ticket: u64,
    groups: VecDeque<Vec<Incoming>>,
    cursor: Option<LogCursor>,
    all: Admitted,
    /// The writer has a group of it.
    asked: bool,
}

/// What a session wants to be logged.
enum Admission {
    Rows(u64, Vec<IncomingRow>, Option<LogCursor>),
    TakeBack(Vec<DeniedRow>),
    Withhold(Vec<DocumentId>, bool),
}

/// Something that is under way in a database.
struct Asking {
    /// Rows that a user brought: the session's name for them, and what they are.
    brought: Option<(u64, Vec<Brought>)>,
    outcome: Offered,
}

/// What may be under way on a stream before its sender waits.
const WINDOW: usize = 12 << 10;

impl World {
    /// One edge tries to connect.
    pub fn dial(&mut self, edge: usize) -> Result<(), String> {
        self.edges[edge].due = false;
        let [a, b] = self.edges[edge].sides;
        let linked =
            self.links.values().any(|link| link.edge == edge && !link.cut && link.ends.iter().all(Option::is_some));
        if linked || !self.replicas[a].online {
            return Ok(());
        }
        let open = self.replicas[a].engine.is_some()
            && self.replicas[b].engine.is_some()
            && !self.blocked.contains(&(a, b))
            && !self.blocked.contains(&(b, a));
        if !open {
            let failures = self.edges[edge].failures;
            self.edges[edge].failures = (failures + 1).min(4);
            let pause = self.random.between(200, 500 << failures.min(4)) * MS;
            self.dial_after(edge, pause);
            return Ok(());
        }
        self.edges[edge].failures = 0;
        // What is left of an older link is closed by the newer one.
        let old: Vec<u64> = self.links.iter().filter(|(_, link)| link.edge == edge).map(|(id, _)| *id).collect();
        for id in old {
            self.mark("a newer link replaced a half-open one");
            self.links.remove(&id);
        }
        let (first, second) = (self.end(a, b)?, self.end(b, a)?);
        let latency = self.random.between(1, 40) * MS;
        self.link_numbers += 1;
        let id = self.link_numbers;
        let link = Link {
            edge,
            sides: [a, b],
            is_guarded: !self.is_trusted(a),
            ends: [Some(first), Some(second)],
            cut: false,
            latency,
        };
        self.links.insert(id, link);
        self.pump(id, 0)?;
        self.pump(id, 1)
    }

    pub fn dial_after(&mut self, edge: usize, pause: u64) {
        if !self.edges[edge].due {
            self.edges[edge].due = true;
            self.after(pause, Event::Dial(edge));
        }
    }

    fn end(&mut self, here: usize, there: usize) -> Result<End, String> {
        let (us, peer) = (&self.replicas[here], &self.replicas[there]);
        let Some(engine) = &us.engine else { return Err("no engine".into()) };
        let cursor = engine.reader().peer_cursor(peer.node).map_err(|error| error.to_string())?;
        let session = Session::new(SessionConfig {
            node: us.node,
            peer: peer.node,
            role: if peer.is_client { Role::Client } else { Role::Node },
            strict: self.strict && here < there,
            invite: None,
            token: match (&self.users, user_at(here)) {
                (Some(users), Some(user)) => Some(Token(users.token(there, user))),
                _ => None,
            },
            guarded: !self.is_trusted(there),
            cursor,
            attester: Some(Arc::new(Seals(us.node))),
            agent: "sim".into(),
            limits: us.limits.clone(),
        });
        Ok(End {
            session,
            lanes: BTreeMap::new(),
            admissions: VecDeque::new(),
            admitting: None,
            visitor: None,
            asking: None,
            taking: None,
            caught_up: false,
            wake_at: u64::MAX,
            batches: VecDeque::new(),
        })
    }

    pub fn arrive(&mut self, id: u64, side: usize) -> Result<(), String> {
        if let Some(end) = self.links.get_mut(&id).and_then(|link| link.ends[side].as_mut()) {
            end.wake_at = u64::MAX;
        }
        self.pump(id, side)
    }

    /// Lets one end of a link do all it can do now.
    pub fn pump(&mut self, id: u64, side: usize) -> Result<(), String> {
        let Some(mut link) = self.links.remove(&id) else { return Ok(()) };
        let ended = self.pump_end(id, &mut link, side);
        let here = link.sides[side];
        self.links.insert(id, link);
        match ended {
            Ok(()) => Ok(()),
            Err(Closed::Session(SessionError::AccessChanged)) => {
                self.mark("a link began anew since rights had changed");
                self.end_link_here(id, side);
                Ok(())
            }
            Err(Closed::Session(error)) => {
                let engine = self.replicas[here].engine.as_ref();
                let unwell = engine.is_none_or(|engine| engine.failure().is_some())
                    || self.replicas[here].disk.is_failing()
                    || matches!(error, SessionError::Refused(_));
                if !unwell {
                    return Err(format!("the session of replica {here} on link {id}: {error}"));
                }
                self.mark("a session ended for want of a writer");
                self.cut_link(id, [0, 50 * MS]);
                Ok(())
            }
            Err(Closed::Broken(why)) => Err(why),
            Err(Closed::TurnedAway) => {
                self.mark("a user with a revoked token was turned away");
                self.end_link_here(id, side);
                Ok(())
            }
        }
    }

    /// One end closes the link, and the other hears of it.
    fn end_link_here(&mut self, id: u64, side: usize) {
        if let Some(link) = self.links.get_mut(&id) {
            link.ends[side] = None;
        }
        self.cut_link(id, [50 * MS; 2]);
    }

    fn pump_end(&mut self, id: u64, link: &mut Link, side: usize) -> Result<(), Closed> {
        let (here, there) = (link.sides[side], link.sides[1 - side]);
        loop {
            let mut worked = self.deliver(id, link, side)?;
            let now = self.instant();
            loop {
                let Some(end) = link.ends[side].as_mut() else { return Ok(()) };
                let Some(engine) = self.replicas[here].engine.as_ref() else { return Ok(()) };
                let Some(output) = end.session.poll(now, engine.reader())? else { break };
                worked = true;
                self.carry_out(id, link, side, output)?;
            }
            worked |= self.submit(id, link, side)?;
            // What the session did may have made room for a frame.
            if !worked && !self.deliver(id, link, side)? {
                break;
            }
        }
        // What is on its way and did not arrive yet.
        let blocked = self.blocked.contains(&(there, here));
        if let (Some(end), false) = (link.ends[side].as_mut(), blocked || link.cut) {
            let fronts = end.lanes.values().filter_map(|lane| lane.frames.front()).map(|(at, _)| *at);
            if let Some(next) = fronts.filter(|at| *at > self.now).min().filter(|next| *next < end.wake_at) {
                end.wake_at = next;
                self.after(next - self.now, Event::Arrive(id, side));
            }
        }
        Ok(())
    }

    /// Gives the session every frame that has arrived and that it takes.
    fn deliver(&mut self, id: u64, link: &mut Link, side: usize) -> Result<bool, Closed> {
        let (here, there) = (link.sides[side], link.sides[1 - side]);
        if link.cut || self.blocked.contains(&(there, here)) {
            return Ok(false);
        }
        let (now_us, now) = (self.now, self.instant());
        let mut delivered = false;
        loop {
            let Some(engine) = self.replicas[here].engine.as_ref() else { return Ok(delivered) };
            let [first, second] = &mut link.ends;
            let (end, other) = if side == 0 { (first, second) } else { (second, first) };
            let Some(end) = end.as_mut() else { return Ok(delivered) };
            let ready = |(channel, lane): (&Channel, &Lane)| {
                let arrived = lane.frames.front().is_some_and(|(at, _)| *at <= now_us);
                (arrived && end.session.accepts(*channel)).then_some(*channel)
            };
            let Some(channel) = end.lanes.iter().find_map(ready) else { return Ok(delivered) };
            let Some(lane) = end.lanes.get_mut(&channel) else { return Ok(delivered) };
            let Some((_, wire)) = lane.frames.pop_front() else { return Ok(delivered) };
            delivered = true;
            let mut wake_other = false;
            if let Wire::Frame(frame) = &wire {
                lane.bytes -= frame.len();
            }
            if lane.bytes < WINDOW && std::mem::take(&mut lane.sender_waits) {
                if let Some(other) = other {
                    other.session.handle_sent(mirrored(channel));
                }
                wake_other = true;
            }
            match wire {
                Wire::Frame(frame) => {
                    if channel == Channel::Control && frame[0] == 3 {
                        note_batch(&mut end.batches, &frame);
                    }
                    end.session.handle_frame(now, channel, &frame, engine.reader())?;
                }
                Wire::End => {
                    end.lanes.remove(&channel);
                    end.session.handle_channel_closed(channel)?;
                }
            }
            if wake_other {
                self.after(MS, Event::Arrive(id, 1 - side));
            }
        }
    }

    fn carry_out(&mut self, id: u64, link: &mut Link, side: usize, output: Output) -> Result<(), Closed> {
        let here = link.sides[side];
        match output {
            Output::Send { channel, frame, finish } => {
                self.hash(xxhash_rust::xxh3::xxh3_64(&frame));
                if channel == Channel::Control && frame.first() == Some(&4) {
                    self.check_acknowledged(here, link, side, &frame)?;
                }
                if link.is_guarded && !frame.is_empty() {
                    if let (Some(users), Some(user), 0) = (&mut self.users, user_at(here), side) {
                        users.note_named(user, &frame);
                    }
                    self.say(|| format!("link {id}: replica {here} says {}", spelled(&frame)));
                }
                if link.is_guarded && side == 1 && !frame.is_empty() {
                    self.check_guarded(link, &frame).map_err(Closed::Broken)?;
                }
                self.send(id, link, side, channel, frame, finish);
            }
            Output::Reset(channel) => {
                self.mark("an exchange gave way to the peer's");
                let [first, second] = &mut link.ends;
                let (end, other) = if side == 0 { (first, second) } else { (second, first) };
                let removed = end.as_mut().and_then(|end| end.lanes.remove(&channel));
                if let Some(other) = other {
                    if removed.is_some_and(|lane| lane.sender_waits) {
                        other.session.handle_sent(mirrored(channel));
                    }
                    let lane = other.lanes.entry(mirrored(channel)).or_default();
                    let waited = lane.sender_waits;
                    *lane = Lane { last: lane.last, ..Lane::default() };
                    lane.frames.push_back((self.now + link.latency, Wire::End));
                    if let (true, Some(end)) = (waited, end.as_mut()) {
                        end.session.handle_sent(channel);
                    }
                    self.after(link.latency, Event::Arrive(id, 1 - side));
                }
            }
            Output::Admit { ticket, rows, cursor } => {
                for row in &rows {
                    if let IncomingBody::Change(change) = &row.body
                        && self.is_watched(change.hash())
                    {
                        self.say(|| format!("link {id}: replica {here} gets it, cursor {cursor:?}"));
                    }
                }
                if let Some(end) = &mut link.ends[side] {
                    end.admissions.push_back(Admission::Rows(ticket, rows, cursor));
                }
            }
            Output::StoreCursor { ticket, cursor } => {
                if let Some(end) = &mut link.ends[side] {
                    end.admissions.push_back(Admission::Rows(ticket, Vec::new(), Some(cursor)));
                }
            }
            Output::Prove { token } => self.prove(link, token)?,
            Output::TakeBack(rows) => {
                if let Some(end) = &mut link.ends[side] {
                    end.admissions.push_back(Admission::TakeBack(rows));
                }
            }
            Output::Withhold { documents, withheld } => {
                if let Some(end) = &mut link.ends[side] {
                    end.admissions.push_back(Admission::Withhold(documents, withheld));
                }
            }
            Output::Event(event) => self.note_event(id, link, side, &event),
            other => return Err(Closed::Broken(format!("unknown output {other:?}"))),
        }
        Ok(())
    }

    fn note_event(&mut self, id: u64, link: &mut Link, side: usize, event: &SessionEvent) {
        if matches!(event, SessionEvent::PeerPosition(Judgement::Diverged { .. } | Judgement::Unknown)) {
            self.break_soon(id, link.sides[1 - side]);
        }
        match event {
            SessionEvent::CaughtUp => {
                if let Some(end) = &mut link.ends[side] {
                    end.caught_up = true;
                }
            }
            SessionEvent::OurPosition(judgement, _) => {
                self.say(|| format!("link {id}: replica {} stands {judgement:?}", link.sides[side]));
            }
            SessionEvent::PeerPosition(Judgement::Diverged { .. }) => self.mark("a cursor diverged"),
            SessionEvent::PeerPosition(Judgement::Unknown) => self.mark("a cursor was unknown"),
            SessionEvent::PeerPosition(Judgement::Known) => self.mark("a cursor was known"),
            SessionEvent::Exchanged { converged: true, .. } => self.mark("an exchange converged"),
            SessionEvent::Exchanged { converged: false, .. } => self.mark("an exchange ended before its end"),
            _ => {}
        }
    }

    fn send(&mut self, id: u64, link: &mut Link, side: usize, channel: Channel, frame: Vec<u8>, finish: bool) {
        let stall = if self.random.chance(1) { self.random.between(100, 2500) * MS } else { 0 };
        let delay = link.latency + self.random.below(8 * MS) + stall;
        self.mark_if("a chunk went on a stream of its own", matches!(channel, Channel::Stream(_)) && finish);
        let blocked = self.blocked.contains(&(link.sides[side], link.sides[1 - side]));
        let [first, second] = &mut link.ends;
        let (end, other) = if side == 0 { (first, second) } else { (second, first) };
        let Some(end) = end.as_mut() else { return };
        let (Some(other), false) = (other.as_mut(), link.cut) else {
            // Nobody is there any more, and we have not noticed.
            end.session.handle_sent(channel);
            return;
        };
        let lane = other.lanes.entry(mirrored(channel)).or_default();
        let at = lane.last.max(self.now + delay);
        lane.last = at;
        if !frame.is_empty() {
            lane.bytes += frame.len();
            lane.frames.push_back((at, Wire::Frame(frame)));
        }
        if finish {
            lane.frames.push_back((at, Wire::End));
        }
        if lane.bytes < WINDOW {
            end.session.handle_sent(channel);
        } else {
            lane.sender_waits = true;
        }
        if at < other.wake_at && !blocked {
            other.wake_at = at;
            self.after(at - self.now, Event::Arrive(id, 1 - side));
        }
    }

    /// Gives the writer the next group of what the session wants to be logged; whether anything was settled at once.
    fn submit(&mut self, id: u64, link: &mut Link, side: usize) -> Result<bool, Closed> {
        let (here, there) = (link.sides[side], link.sides[1 - side]);
        let peer = self.replicas[there].node;
        let clash = match (self.replicas[there].is_client, self.replicas[here].is_client) {
            (true, false) => Clash::KeepFirst,
            (false, true) => Clash::TakeTheirs,
            _ => Clash::SmallerHash,
        };
        if self.ask_on(link, side)? {
            return Ok(true);
        }
        let Some(end) = link.ends[side].as_mut() else { return Ok(false) };
        if end.asking.is_some() || end.taking.is_some() {
            return Ok(false);
        }
        if end.admitting.is_none() {
            let (ticket, rows, cursor) = match end.admissions.pop_front() {
                None => return Ok(false),
                Some(Admission::Rows(ticket, rows, cursor)) if link.is_guarded && side == 1 => {
                    let Some(visitor) = &end.visitor else { return Ok(false) };
                    let limits = &self.replicas[here].limits;
                    let brought = Users::brought(&rows, limits).map_err(Closed::Broken)?;
                    let outcome = visitor.offer(peer, rows, cursor);
                    end.asking = Some(Asking { brought: Some((ticket, brought)), outcome });
                    return self.ask_on(link, side);
                }
                Some(Admission::Rows(ticket, rows, cursor)) => (ticket, rows, cursor),
                Some(Admission::TakeBack(rows)) => {
                    end.taking = Some(rows);
                    self.after(MS, Event::TakeBack(id));
                    return Ok(false);
                }
                Some(Admission::Withhold(documents, withheld)) => {
                    self.say(|| format!("replica {here} withholds {documents:?}, as {there} says: {withheld}"));
                    let Some(engine) = self.replicas[here].engine.as_mut() else { return Ok(false) };
                    let database = engine.database().map_err(|error| Closed::Broken(error.to_string()))?;
                    let outcome = Box::pin(async move {
                        database.withhold(peer, documents, withheld).await.map(|()| Admitted::default())
                    });
                    end.asking = Some(Asking { brought: None, outcome });
                    return self.ask_on(link, side);
                }
            };
            let Some(engine) = &self.replicas[here].engine else { return Ok(false) };
            let groups = groups(rows, &self.replicas[here].limits, engine.reader()).map_err(Closed::Broken)?;
            end.admitting = Some(Admitting { ticket, groups, cursor, all: Admitted::default(), asked: false });
        }
        let Some(admitting) = end.admitting.as_mut().filter(|admitting| !admitting.asked) else { return Ok(false) };
        let ticket = admitting.ticket;
        let Some(engine) = self.replicas[here].engine.as_mut() else { return Ok(false) };
        let asked = engine.check_room().and_then(|()| match admitting.groups.pop_front() {
            None => admitting.cursor.map_or(Err(Error::Closed), |cursor| engine.store_cursor(peer, cursor)),
            Some(group) => {
                let last = admitting.groups.is_empty() && admitting.all.missing.is_empty();
                engine.admit(clash, group, Some(peer), admitting.cursor.filter(|_| last))
            }
        });
        match asked {
            Ok(engine_ticket) => {
                admitting.asked = true;
                self.replicas[here].waiters.insert(engine_ticket, Waiter::Link { link: id, side });
                self.wake_writer(here);
                Ok(false)
            }
            Err(Error::Busy) => {
                self.mark("a peer's rows waited for room");
                Ok(false)
            }
            Err(error) => {
                end.session.handle_refused(ticket, &error.to_string())?;
                Ok(false)
            }
        }
    }

    /// Goes on with what is under way in a database; whether it is over.
    fn ask_on(&mut self, link: &mut Link, side: usize) -> Result<bool, Closed> {
        let (here, there) = (link.sides[side], link.sides[1 - side]);
        let Some(end) = link.ends[side].as_mut() else { return Ok(false) };
        let Some(mut asking) = end.asking.take() else { return Ok(false) };
        self.take_clock_of(here);
        let Some(engine) = self.replicas[here].engine.as_mut() else { return Ok(false) };
        if let (Some(users), Some(user), Some((_, brought))) = (&mut self.users, user_at(there), &asking.brought) {
            users.judge(here, user, brought, engine.reader()).map_err(Closed::Broken)?;
        }
        let outcome = loop {
            let woken = Arc::new(Woken::default());
            match asking.outcome.as_mut().poll(&mut Context::from_waker(&Waker::from(woken.clone()))) {
                Poll::Ready(outcome) => break Some(outcome),
                Poll::Pending if woken.0.load(Ordering::Relaxed) => {}
                Poll::Pending => break None,
            }
        };
        engine.take_asked();
        let reader = engine.reader().clone();
        self.wake_writer(here);
        let Some(outcome) = outcome else {
            end.asking = Some(asking);
            return Ok(false);
        };
        let ticket = asking.brought.as_ref().map(|(ticket, _)| *ticket);
        match outcome {
            Ok(admitted) => {
                if let (Some(users), Some(user), Some((_, brought))) =
                    (&mut self.users, user_at(there), &asking.brought)
                {
                    users.check_denied(here, user, brought, &admitted.denied, &reader).map_err(Closed::Broken)?;
                    let marks = users.take_marks();
                    marks.into_iter().for_each(|mark| self.mark(mark));
                }
                ticket.into_iter().for_each(|ticket| end.session.handle_admitted(ticket, admitted.clone()));
            }
            Err(error @ (Error::Unappliable { .. } | Error::Change(_) | Error::Refused { .. })) => {
                return Err(Closed::Broken(format!("replica {here} does not take what {there} brought: {error}")));
            }
            Err(error) => end.session.handle_refused(ticket.unwrap_or(0), &error.to_string())?,
        }
        Ok(true)
    }

    /// Finds out who the user of the first end is.
    fn prove(&mut self, link: &mut Link, token: Option<Token>) -> Result<(), Closed> {
        let here = link.sides[1];
        self.take_clock_of(here);
        let door = self.users.as_ref().and_then(|users| users.doors[here].as_ref());
        let (Some(door), Some(end)) = (door, link.ends[1].as_mut()) else { return Ok(()) };
        let Ok(visitor) = door.admit(token.as_ref().map(|token| token.0.as_str())) else {
            return Err(Closed::TurnedAway);
        };
        let Some(engine) = &self.replicas[here].engine else { return Ok(()) };
        end.session.handle_proven(visitor.proven(), engine.reader())?;
        end.visitor = Some(visitor);
        Ok(())
    }

    fn check_guarded(&mut self, link: &Link, frame: &[u8]) -> Result<(), String> {
        let [client, node] = link.sides;
        let (Some(users), Some(user), Some(engine)) = (&mut self.users, user_at(client), &self.replicas[node].engine)
        else {
            return Ok(());
        };
        let theirs = self.replicas[client].engine.as_ref().map(Engine::reader);
        users.check_frame(node, user, frame, engine.reader(), theirs)
    }

    /// The links of a node hear what changed for their users.
    pub fn tell_rights(&mut self, n: usize) -> Result<(), String> {
        let ids: Vec<u64> = self.links.iter().filter(|(_, link)| link.sides[1] == n).map(|(id, _)| *id).collect();
        let mut to_pump = Vec::new();
        for id in ids {
            let Some(end) = self.links.get_mut(&id).and_then(|link| link.ends[1].as_mut()) else { continue };
            let Some(changed) = end.visitor.as_mut().and_then(Visitor::changed) else { continue };
            let Some(engine) = &self.replicas[n].engine else { continue };
            match changed {
                Some(_) => {
                    self.mark("a user was sent away");
                    self.end_link_here(id, 1);
                }
                None => match end.session.handle_access_changed(engine.reader()) {
                    Ok(()) => to_pump.push(id),
                    Err(SessionError::AccessChanged) => {
                        self.mark("a link began anew since rights had changed");
                        self.end_link_here(id, 1);
                    }
                    Err(error) => return Err(format!("the rights of a user at replica {n}: {error}")),
                },
            }
        }
        to_pump.into_iter().try_for_each(|id| self.pump(id, 1))
    }

    /// A client takes back what a node will not have.
    pub fn take_back(&mut self, id: u64) -> Result<(), String> {
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        let [client, node] = link.sides;
        let Some(rows) = link.ends[0].as_mut().and_then(|end| end.taking.take()) else { return Ok(()) };
        let (turn, via, count) = (self.turn_of(client), self.replicas[node].node, rows.len());
        self.say(|| {
            let rows = rows.iter().map(|row| (row.document, row.change.map(|hash| hash.short()), row.is_behind));
            format!("link {id}: replica {client} takes back {:?}", rows.collect::<Vec<_>>())
        });
        let Some(engine) = self.replicas[client].engine.as_mut() else { return Ok(()) };
        // It does all of its work when it is polled first. In a runtime it would wait there for others' turns in vain.
        let work = |database: &Database| {
            let mut taking = Box::pin(database.take_back(via, rows));
            match taking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(taken) => taken,
                Poll::Pending => Err(Error::Closed),
            }
        };
        let (taken, reports) = engine.serve(turn, work).map_err(|error| error.to_string())?;
        reports.into_iter().try_for_each(|report| self.written(client, report))?;
        match taken {
            Ok(is_all) => {
                let count = if is_all { count } else { 0 };
                if let Some(end) = self.links.get_mut(&id).and_then(|link| link.ends[0].as_mut()) {
                    end.session.handle_taken_back(count).map_err(|error| error.to_string())?;
                }
                self.pump(id, 0)
            }
            Err(error) => {
                let replica = &self.replicas[client];
                let is_well = replica.engine.as_ref().is_some_and(|engine| engine.failure().is_none());
                if is_well && !replica.disk.is_failing() && !matches!(error, Error::StorageFull | Error::Busy) {
                    return Err(format!("replica {client} cannot take edits back: {error:?}"));
                }
                self.mark("a link ended because edits could not be taken back");
                self.cut_link(id, [0, 30 * MS]);
                Ok(())
            }
        }
    }

    /// The writer answered about rows that a link brought.
    pub fn admitted(
        &mut self,
        id: u64,
        side: usize,
        outcome: Result<(tidelog::engine::Admitted, tidelog::Lsn), Error>,
    ) -> Result<(), String> {
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        let Some(end) = link.ends[side].as_mut() else { return Ok(()) };
        let Some(mut admitting) = end.admitting.take() else { return Ok(()) };
        admitting.asked = false;
        match outcome {
            Ok((admitted, _)) => {
                if let Some((document, why)) = admitted.refused.first() {
                    let here = link.sides[side];
                    return Err(format!("replica {here} refused what a peer brought of {document}: {why}"));
                }
                let waits = !admitted.missing.is_empty();
                let missing = waits.then(|| admitted.missing.clone());
                admitting.all.missing.extend(admitted.missing);
                admitting.all.cursor_stored = admitted.cursor_stored;
                if admitting.groups.is_empty() {
                    end.session.handle_admitted(admitting.ticket, admitting.all);
                } else {
                    end.admitting = Some(admitting);
                }
                if let Some(missing) = missing {
                    let here = self.links.get(&id).map(|link| link.sides[side]);
                    self.say(|| format!("link {id}: at replica {here:?} rows wait: {missing:?}"));
                    self.mark("rows waited for what they depend on");
                    here.into_iter().for_each(|here| self.break_soon(id, here));
                }
                self.pump(id, side)
            }
            Err(error) => {
                let _ = end.session.handle_refused(admitting.ticket, &error.to_string());
                self.mark("a link ended because its rows were not taken");
                self.cut_link(id, [0, 30 * MS]);
                Ok(())
            }
        }
    }

    /// The writer of a replica has room again for what its links wanted to be logged.
    pub fn offer_again(&mut self, n: usize) -> Result<(), String> {
        let waits = |end: &Option<End>| {
            end.as_ref().is_some_and(|end| {
                end.asking.is_some() || end.admitting.as_ref().is_some_and(|admitting| !admitting.asked)
            })
        };
        let mut ends = Vec::new();
        for (id, link) in &self.links {
            ends.extend(
                (0..2).filter(|side| link.sides[*side] == n && waits(&link.ends[*side])).map(|side| (*id, side)),
            );
        }
        ends.into_iter().try_for_each(|(id, side)| self.pump(id, side))
    }

    /// The log of a replica grew: every session there may have something to send.
    pub fn tell_tail(&mut self, n: usize) -> Result<(), String> {
        let ids: Vec<u64> = self.links.iter().filter(|(_, link)| link.sides.contains(&n)).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(link) = self.links.get_mut(&id) else { continue };
            let side = usize::from(link.sides[1] == n);
            if let Some(end) = &mut link.ends[side] {
                end.session.handle_tail();
            }
            self.pump(id, side)?;
        }
        Ok(())
    }

    /// Cuts a link; each end notices after its delay.
    pub fn cut_link(&mut self, id: u64, notice_after: [u64; 2]) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let under_way = link.ends.iter().flatten().any(|end| end.lanes.values().any(|lane| !lane.frames.is_empty()));
        link.cut = true;
        let sides = link.sides;
        self.say(|| format!("link {id} between {sides:?} is cut"));
        self.mark_if("a link was cut with frames under way", under_way);
        for (side, delay) in notice_after.into_iter().enumerate() {
            self.after(delay, Event::Notice(id, side));
        }
    }

    /// Something delicate began on a link, such as a comparison in full: often it is cut then, or the follower's power.
    fn break_soon(&mut self, id: u64, follower: usize) {
        if !self.chaos {
            return;
        }
        let soon = self.random.between(1, 300) * MS;
        match self.random.below(10) {
            0..=2 => self.after(soon, Event::Cut(id)),
            3 => self.after(soon, Event::PowerOff(follower)),
            _ => {}
        }
    }

    /// One end notices that its link is gone.
    pub fn notice(&mut self, id: u64, side: usize) -> Result<(), String> {
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        link.ends[side] = None;
        let edge = link.edge;
        if link.ends.iter().all(Option::is_none) {
            self.links.remove(&id);
        }
        if side == 0 {
            let pause = self.random.between(50, 1500) * MS;
            self.dial_after(edge, pause);
        }
        Ok(())
    }

    /// A link across a partition is given up unless it healed meanwhile.
    pub fn time_out(&mut self, id: u64) -> Result<(), String> {
        let Some(link) = self.links.get(&id) else { return Ok(()) };
        let [a, b] = link.sides;
        if self.blocked.contains(&(a, b)) || self.blocked.contains(&(b, a)) {
            self.mark("a link timed out in a partition");
            let other = self.random.between(0, 3) * SECOND;
            self.cut_link(id, [0, other]);
        }
        Ok(())
    }

    /// The ends of all links at a replica that stopped; the peers notice later.
    pub fn lose_links(&mut self, n: usize) {
        let ids: Vec<u64> = self.links.iter().filter(|(_, link)| link.sides.contains(&n)).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(side) = self.links.get(&id).map(|link| usize::from(link.sides[1] == n)) else { continue };
            let late = if self.random.chance(50) { 0 } else { self.random.between(0, 5) * SECOND };
            let mut delays = [late; 2];
            delays[side] = 0;
            if let Some(link) = self.links.get_mut(&id) {
                link.ends[side] = None;
            }
            self.cut_link(id, delays);
        }
    }

    /// Whether every edge has a link whose ends have caught up, with nothing under way to the writer.
    pub fn links_at_rest(&self) -> Option<String> {
        for (number, edge) in self.edges.iter().enumerate() {
            let [client, node] = edge.sides;
            if let (Some(users), Some(user)) = (&self.users, user_at(client))
                && users.is_struck(node, user)
            {
                continue;
            }
            let link = self.links.values().find(|link| link.edge == number && !link.cut);
            let Some(link) = link else { return Some(format!("{:?} are not linked", edge.sides)) };
            for (side, end) in link.ends.iter().enumerate() {
                let Some(end) = end else { return Some(format!("{:?} are half linked", edge.sides)) };
                let is_asking = end.asking.is_some() || end.taking.is_some();
                if !end.caught_up || end.admitting.is_some() || is_asking || !end.admissions.is_empty() {
                    let session = end.session.describe();
                    let other = link.ends[1 - side].as_ref().map(|end| end.session.describe());
                    let lanes: Vec<_> = end
                        .lanes
                        .iter()
                        .map(|(channel, lane)| {
                            (channel, lane.frames.len(), lane.bytes, lane.sender_waits, end.session.accepts(*channel))
                        })
                        .collect();
                    return Some(format!(
                        "side {side} of {:?} has not caught up: {session}\n lanes {lanes:?} admissions {}\n peer: {other:?}",
                        edge.sides,
                        end.admissions.len()
                    ));
                }
            }
        }
        None
    }

    /// What is acknowledged to a peer must be in the log here.
    fn check_acknowledged(&mut self, here: usize, link: &mut Link, side: usize, frame: &[u8]) -> Result<(), Closed> {
        // What a user brings may be denied, and what he is sent may stand on what he takes back.
        if link.is_guarded {
            return Ok(());
        }
        let Ok(Frame::Ack(ack)) = Frame::decode(frame) else { return Ok(()) };
        let Some(end) = link.ends[side].as_mut() else { return Ok(()) };
        let Some(engine) = self.replicas[here].engine.as_ref() else { return Ok(()) };
        while let Some((number, document, hash)) = end.batches.front().copied()
            && number <= ack.number
        {
            end.batches.pop_front();
            let graph = engine.reader().graph(document).map_err(|error| Closed::Broken(error.to_string()))?;
            let there = graph.lock().unwrap().contains(&hash);
            // It may have been withdrawn since.
            if !there && !self.twins.contains_key(&document) {
                let why = format!("replica {here} acknowledged batch {number} and does not have {hash} of {document}");
                return Err(Closed::Broken(why));
            }
        }
        Ok(())
    }
}

/// Why an end of a link is over.
enum Closed {
    Session(SessionError),
    /// The user is not let in.
    TurnedAway,
    Broken(String),
}

/// Whether something that waits can go on.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl From<SessionError> for Closed {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

fn note_batch(batches: &mut VecDeque<(u64, DocumentId, ChangeHash)>, frame: &[u8]) {
    let Ok(Frame::ChangeBatch(batch)) = Frame::decode(frame) else { return };
    // Samples: parsing is most of what a batch costs.
    if !batch.number.is_multiple_of(3) {
        return;
    }
    let last = batch.rows.iter().rev().find(|row| row.kind == RowKind::Change && row.flags == 0);
    if let Some(row) = last
        && let Ok(change) = Change::parse(row.bytes.clone())
    {
        batches.push_back((batch.number, batch.documents[row.document as usize], change.hash()));
    }
}

/// What the session wants to be logged, as groups for the writer.
fn groups(
    rows: Vec<IncomingRow>,
    limits: &tidelog::Limits,
    reader: &Reader,
) -> Result<VecDeque<Vec<Incoming>>, String> {
    let mut groups: VecDeque<Vec<Incoming>> = VecDeque::new();
    let mut push = |row: Incoming| match groups.back_mut() {
        Some(group) if group.len() < limits.group_records_max => group.push(row),
        _ => groups.push_back(vec![row]),
    };
    for IncomingRow { document, body, origin, signature } in rows {
        match body {
            IncomingBody::Change(change) => push(Incoming { document, body: Body::Change(change), origin, signature }),
            IncomingBody::Lifecycle(bytes) => {
                push(Incoming { document, body: Body::Lifecycle(bytes), origin, signature });
            }
            IncomingBody::Document { bytes, mut authors } => {
                for change in split(&bytes, limits).map_err(|error| error.to_string())? {
                    let (origin, signature) = authors.origin(document, &change, &origin, reader);
                    push(Incoming { document, body: Body::Change(Box::new(change)), origin, signature });
                }
            }
        }
    }
    Ok(groups)
}

/// What a frame between a user and a node is about, for who watches.
fn spelled(frame: &[u8]) -> String {
    match Frame::decode(frame) {
        Ok(Frame::DocumentBatch(batch)) => format!("{:?} {} {} rows", batch.outcome, batch.document, batch.rows.len()),
        Ok(Frame::ChangeBatch(batch)) => format!("batch {} of {} rows", batch.number, batch.rows.len()),
        Ok(Frame::StreamPart(part)) => format!("{} bytes of a chunk", part.bytes.len()),
        Ok(Frame::DocSync(part)) => format!("DocSync {}", part.document),
        frame => format!("{frame:?}"),
    }
}

fn mirrored(channel: Channel) -> Channel {
    let turn = |opened: Opened| Opened {
        by: if opened.by == Side::Us { Side::Peer } else { Side::Us },
        number: opened.number,
    };
    match channel {
        Channel::Control => Channel::Control,
        Channel::Document(opened) => Channel::Document(turn(opened)),
        Channel::Stream(opened) => Channel::Stream(turn(opened)),
    }
}
