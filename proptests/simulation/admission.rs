//! What sessions want to be done by their replica: rows logged, users proven and judged, edits taken back. What a session
//! asked for is done in its order, group by group.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use tidelog::access::sim::{Offered, Visitor};
use tidelog::document::split;
use tidelog::engine::sim::Engine;
use tidelog::engine::{Clash, Incoming, IncomingBody as Body};
use tidelog::history::Reader;
use tidelog::id::{DocumentId, LogCursor};
use tidelog::sync::wire::{DeniedRow, Token};
use tidelog::sync::{Admitted, IncomingBody, IncomingRow, SessionError};
use tidelog::{Database, Error};

use super::links::{Closed, End, Link};
use super::replica::Waiter;
use super::users::{Brought, Users, user_at};
use super::world::{Event, MS, World};

/// An admission, group by group.
pub(super) struct Admitting {
    pub(super) ticket: u64,
    pub(super) groups: VecDeque<Vec<Incoming>>,
    pub(super) cursor: Option<LogCursor>,
    pub(super) all: Admitted,
    /// The writer has a group of it.
    pub(super) asked: bool,
}

/// What a session wants to be logged.
pub(super) enum Admission {
    Rows(u64, Vec<IncomingRow>, Option<LogCursor>),
    TakeBack(Vec<DeniedRow>),
    Withhold(Vec<DocumentId>, bool),
}

/// Something that is under way in a database.
pub(super) struct Asking {
    /// Rows that a user brought: the session's name for them, and what they are.
    pub(super) brought: Option<(u64, Vec<Brought>)>,
    pub(super) outcome: Offered,
}

impl World {
    /// Gives the writer the next group of what the session wants to be logged; whether anything was settled at once.
    pub(super) fn submit(&mut self, id: u64, link: &mut Link, side: usize) -> Result<bool, Closed> {
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
    pub(super) fn ask_on(&mut self, link: &mut Link, side: usize) -> Result<bool, Closed> {
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
    pub(super) fn prove(&mut self, link: &mut Link, token: Option<Token>) -> Result<(), Closed> {
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

    pub(super) fn check_guarded(&mut self, link: &Link, frame: &[u8]) -> Result<(), String> {
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
}

/// Whether something that waits can go on.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
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
