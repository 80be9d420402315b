//! Links between replicas: real sessions at both ends, and streams that keep their order each and not among each other.
//!
//! A stream neither loses nor repeats; what is lost is the link, with everything under way on it. A direction that is
//! blocked holds its frames back until it heals or the link is given up. How much is under way on a stream is bounded,
//! as by a transport's window.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tidelog::access::sim::Visitor;
use tidelog::document::Change;
use tidelog::id::{ChangeHash, DocumentId};
use tidelog::sync::wire::{DeniedRow, Frame, Judgement, Role, RowKind, Token};
use tidelog::sync::{Channel, IncomingBody, Opened, Output, Session, SessionConfig, SessionError, SessionEvent, Side};

use super::admission::{Admission, Admitting, Asking};
use super::random::Random;
use super::replica::Seals;
use super::users::user_at;
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
    pub(super) admissions: VecDeque<Admission>,
    pub(super) admitting: Option<Admitting>,
    /// Who the peer's user is, where it has one.
    pub visitor: Option<Visitor>,
    /// What is done through a database: what users bring, and what is said of our own rights.
    pub(super) asking: Option<Asking>,
    /// What is to be taken back next. Nothing else is given to the writer meanwhile.
    pub(super) taking: Option<Vec<DeniedRow>>,
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
    pub(super) fn end_link_here(&mut self, id: u64, side: usize) {
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
    pub(super) fn break_soon(&mut self, id: u64, follower: usize) {
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
pub(super) enum Closed {
    Session(SessionError),
    /// The user is not let in.
    TurnedAway,
    Broken(String),
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
