//! How a conversation begins: who each side is, how far each has followed the other.

use super::{Output, Session, SessionError, SessionEvent};
use crate::history::{Location, Reader};
use crate::id::{LogCursor, truncated};
use crate::sync::wire::{
    self, CAPABILITY_SNAPSHOTS, CAPABILITY_STRICT, CAPABILITY_TOKEN, Frame, Hello, HelloAck, Judgement, Listing,
    Position, Role,
};

/// What was said of the first frames.
#[derive(Debug, Default)]
pub(super) struct Opening {
    pub(super) hello_sent: bool,
    pub(super) peer: Option<Hello>,
    pub(super) judged: bool,
    pub(super) acknowledged: bool,
    /// What the peer says about our cursor, until its half begins.
    pub(super) ours: Option<Judgement>,
}

impl Session {
    fn hello(&self, reader: &Reader) -> Hello {
        let tail = reader.tail();
        let strict = if self.config.strict { CAPABILITY_STRICT } else { 0 };
        let token = if self.config.token.is_some() { CAPABILITY_TOKEN } else { 0 };
        let agent = truncated(&self.config.agent, wire::AGENT_BYTES_MAX).to_owned();
        Hello {
            node: self.config.node,
            log_id: tail.log_id,
            tail: Position { lsn: tail.lsn, chain: tail.chain },
            capabilities: CAPABILITY_SNAPSHOTS | strict | token,
            agent,
            invite: self.config.invite,
            cursor: self.config.cursor,
        }
    }

    pub(super) fn handle_hello(&mut self, hello: Hello, reader: &Reader) -> Result<(), SessionError> {
        if hello.node != self.config.peer {
            return Err(SessionError::WrongNode { said: hello.node, proven: self.config.peer });
        }
        self.strict |= hello.capabilities & CAPABILITY_STRICT != 0;
        self.out.put(Output::Event(SessionEvent::PeerHello {
            log_id: hello.log_id,
            tail: hello.tail.lsn,
            agent: hello.agent.clone(),
            invite: hello.invite,
            strict: self.strict,
        }));
        if !self.opening.hello_sent {
            self.say_hello(reader)?;
        }
        // Before it is known who the peer's user is: what it makes of us may come first.
        self.follower.meet(hello.log_id, hello.tail.lsn, self.strict);
        let brings_token = hello.capabilities & CAPABILITY_TOKEN != 0;
        self.opening.peer = Some(hello);
        match (self.config.guarded, brings_token) {
            (false, _) => self.acknowledge(reader),
            (true, false) => {
                self.out.put(Output::Prove { token: None });
                Ok(())
            }
            (true, true) => Ok(()),
        }
    }

    /// Says what we make of the peer's `Hello`. From here on each side has its half.
    pub(super) fn acknowledge(&mut self, reader: &Reader) -> Result<(), SessionError> {
        let Some(hello) = &self.opening.peer else { return Ok(()) };
        // How far it has followed says nothing where it was not told everything.
        let judgement = if self.guard.filters() { Judgement::Unknown } else { judge(hello.cursor.as_ref(), reader)? };
        self.out.put(Output::Event(SessionEvent::PeerPosition(judgement)));
        if self.guard.filters() {
            self.out.control(&Frame::Access(wire::Access { listing: Listing::Whole, withheld: Vec::new() }))?;
        }
        self.out.control(&Frame::HelloAck(HelloAck { judgement, role: self.config.role }))?;
        self.opening.judged = true;
        let snapshots = hello.capabilities & CAPABILITY_SNAPSHOTS != 0;
        let from = hello.cursor.filter(|_| judgement == Judgement::Known).map(|cursor| cursor.lsn);
        self.source.position(from, self.strict, snapshots, reader);
        self.begin_source(reader);
        Ok(())
    }

    /// Nodes tell each other whose the authors are of what they exchange; nobody believes a client.
    pub(super) fn tell_authors(&mut self, our_role: Role) {
        let tells = self.config.role == Role::Node && our_role == Role::Node;
        self.exchanges.tells_authors = tells;
        self.source.tells_authors = tells;
    }

    /// Begins to serve, once each side has said what it makes of the other.
    pub(super) fn begin_source(&mut self, reader: &Reader) {
        if self.opening.judged
            && let Some(ours) = self.opening.ours.take()
        {
            self.source.begin(ours, reader);
        }
    }

    pub(super) fn say_hello(&mut self, reader: &Reader) -> Result<(), SessionError> {
        self.opening.hello_sent = true;
        self.out.control(&Frame::Hello(self.hello(reader)))?;
        match self.config.token.clone() {
            Some(token) => self.out.control(&Frame::Auth(wire::Auth { token })),
            None => Ok(()),
        }
    }
}

/// Says where the peer's cursor stands in our log.
fn judge(cursor: Option<&LogCursor>, reader: &Reader) -> Result<Judgement, SessionError> {
    let Some(cursor) = cursor else { return Ok(Judgement::Unknown) };
    Ok(match reader.locate(cursor)? {
        Location::Known => Judgement::Known,
        Location::Unknown => Judgement::Unknown,
        Location::Diverged => Judgement::Diverged { lsn: reader.tail().lsn },
    })
}
