//! What breaks, and how it is mended.

use tidelog::Error;
use tidelog::automerge::transaction::Transactable;
use tidelog::automerge::{ActorId, Automerge, ROOT};
use tidelog::document::Change;
use tidelog::engine::{Clash, Incoming, IncomingBody};
use tidelog::history::Origin;
use tidelog::id::{ChangeHash, NodeId};
use tidelog::log::Durability;
use tidelog::log::record::Admission;

use super::disk::{Fault, SimDisk};
use super::replica::Waiter;
use super::users::user_at;
use super::world::{CLIENTS, Event, MS, NODES, SECOND, World};

impl World {
    /// Schedules what breaks in the episode that begins now.
    pub fn plan_faults(&mut self) {
        for _ in 0..self.random.between(4, 7) {
            let at = self.random.between(2, 250) * SECOND;
            self.after(at, Event::Break);
        }
        let at = self.random.between(20, 250) * SECOND;
        self.after(at, Event::Twins);
    }

    pub fn break_something(&mut self) -> Result<(), String> {
        if !self.chaos {
            return Ok(());
        }
        let n = self.random.index(self.replicas.len());
        match self.random.below(20) {
            0..=4 => self.cut_power_somewhere(n),
            5 | 6 => self.kill(n),
            7 => self.close_in_order(n),
            8..=10 => self.partition(),
            11 => self.partition_one_way(n),
            12 => self.swizzle(),
            13 => self.cut_some_links(),
            14 => self.fail_disk(n),
            15 => {
                self.outcome.other_faults += 1;
                self.replicas[n].disk.set_free(Some(10));
                let until = self.random.between(3, 20) * SECOND;
                self.after(until, Event::Heal(n, n));
                self.mark("a disk was almost full");
                Ok(())
            }
            16 => {
                self.replicas[n].skew_ms = self.random.between(0, 7_200_000).cast_signed() - 3_600_000;
                self.mark("a clock jumped");
                Ok(())
            }
            17 => self.offer_rogue(n),
            _ => self.restore_or_back_up(n),
        }
    }

    fn cut_power_somewhere(&mut self, n: usize) -> Result<(), String> {
        if self.replicas[n].engine.is_none() {
            return Ok(());
        }
        if self.random.chance(30) {
            return self.power_failed(n);
        }
        // At one of the next writes, wherever in it.
        let fault = self.random.pick(&[Fault::PowerBefore, Fault::PowerBeforeSync, Fault::PowerAfterSync]);
        let writes = self.random.below(7);
        self.replicas[n].disk.arm(writes, fault);
        Ok(())
    }

    /// The power of a replica is gone: what was not synced may be lost.
    pub fn power_failed(&mut self, n: usize) -> Result<(), String> {
        let unsynced = self.replicas[n].disk.unsynced();
        let kept = self.random.index(unsynced + 1);
        let mark_kept = self.random.chance(50);
        self.mark_if("a power cut lost writes", kept < unsynced);
        self.replicas[n].disk.cut_power(kept, mark_kept);
        if self.replicas[n].durability == Durability::Buffered && kept < unsynced {
            self.forget_promises_of(n);
        }
        self.outcome.crashes += 1;
        self.stop_and_start_later(n)
    }

    fn kill(&mut self, n: usize) -> Result<(), String> {
        if self.replicas[n].engine.is_none() {
            return Ok(());
        }
        self.replicas[n].disk.reopen();
        self.outcome.crashes += 1;
        self.mark("a process was killed");
        self.stop_and_start_later(n)
    }

    fn close_in_order(&mut self, n: usize) -> Result<(), String> {
        let Some(engine) = self.replicas[n].engine.take() else { return Ok(()) };
        // A failure that was not noticed yet is noticed here.
        if engine.close().is_ok() {
            self.mark("a log was closed in order");
        }
        self.replicas[n].disk.reopen();
        self.stop_and_start_later(n)
    }

    fn stop_and_start_later(&mut self, n: usize) -> Result<(), String> {
        self.say(|| format!("replica {n} stops"));
        self.replicas[n].stop();
        self.lose_links(n);
        let pause = if self.chaos { self.random.between(500, 15_000) } else { 300 };
        self.after(pause * MS, Event::Start(n));
        Ok(())
    }

    /// The disk of a running replica failed: somebody starts it again after a while.
    pub fn mend_later(&mut self, n: usize) {
        self.mark("an append failed and the store only read from then on");
        let pause = self.random.between(1, 10) * SECOND;
        self.after(pause, Event::Start(n));
    }

    /// Starts a replica that is not running, or whose disk has failed.
    pub fn start(&mut self, n: usize) -> Result<(), String> {
        if self.replicas[n].engine.is_some() {
            if !self.replicas[n].disk.is_failing() {
                return Ok(());
            }
            // After a failed sync only the disk knows what it has: the machine starts anew.
            let unsynced = self.replicas[n].disk.unsynced();
            let kept = self.random.index(unsynced + 1);
            self.replicas[n].disk.cut_power(kept, self.random.chance(50));
            if self.replicas[n].durability == Durability::Buffered {
                self.forget_promises_of(n);
            }
            self.replicas[n].stop();
            self.lose_links(n);
        }
        let was_restored = self.replicas[n].restored;
        let renewed = match self.replicas[n].start(&mut self.random) {
            Ok(renewed) => renewed,
            Err(error) if self.replicas[n].disk.is_dead() || self.replicas[n].disk.is_failing() => {
                let _: Error = error;
                self.replicas[n].disk.cut_power(0, false);
                self.mark("an opening was interrupted");
                return self.stop_and_start_later(n);
            }
            Err(error) => return Err(format!("replica {n} does not open: {error:?}")),
        };
        self.say(|| format!("replica {n} starts; new log {renewed}"));
        self.mark_if("a log got a new id", renewed);
        self.check_started(n, renewed, was_restored)?;
        if let (Some(users), Some(engine), true) = (&mut self.users, &mut self.replicas[n].engine, n < NODES) {
            users.open_door(n, engine)?;
            users.read_log(n, engine.reader())?;
        }
        for edge in 0..self.edges.len() {
            if self.edges[edge].sides.contains(&n) {
                let pause = self.random.between(20, 400) * MS;
                self.dial_after(edge, pause);
            }
        }
        Ok(())
    }

    fn fail_disk(&mut self, n: usize) -> Result<(), String> {
        let faults = [Fault::WriteError, Fault::WriteErrorApplied, Fault::SyncError, Fault::Full];
        let (writes, fault) = (self.random.below(5), self.random.pick(&faults));
        self.replicas[n].disk.arm(writes, fault);
        self.outcome.other_faults += 1;
        Ok(())
    }

    fn partition(&mut self) -> Result<(), String> {
        let apart: Vec<usize> = (0..self.replicas.len()).filter(|_| self.random.chance(40)).collect();
        for a in 0..self.replicas.len() {
            for b in 0..self.replicas.len() {
                if apart.contains(&a) != apart.contains(&b) && a < b {
                    self.block(a, b, true);
                }
            }
        }
        self.outcome.partitions += 1;
        self.mark("a partition");
        Ok(())
    }

    fn partition_one_way(&mut self, n: usize) -> Result<(), String> {
        for other in 0..self.replicas.len() {
            if other != n {
                self.block(n, other, false);
            }
        }
        self.outcome.partitions += 1;
        self.mark("a partition in one direction");
        Ok(())
    }

    /// Isolates the nodes one after the other; they come back in another order.
    fn swizzle(&mut self) -> Result<(), String> {
        let mut nodes: Vec<usize> = (0..NODES).collect();
        self.random.shuffle(&mut nodes);
        for n in nodes {
            for other in 0..NODES {
                if other != n {
                    self.block(n.min(other), n.max(other), true);
                }
            }
        }
        self.outcome.partitions += 1;
        self.mark("a swizzled partition");
        Ok(())
    }

    /// Blocks one direction or both between two replicas; they heal some time, and links across may time out first.
    fn block(&mut self, a: usize, b: usize, both: bool) {
        self.blocked.insert((a, b));
        if both {
            self.blocked.insert((b, a));
        }
        let lasts = self.random.between(3, 60) * SECOND;
        self.after(lasts, Event::Heal(a, b));
        let ids: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, link)| link.sides.contains(&a) && link.sides.contains(&b))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let idle = self.random.between(8, 30) * SECOND;
            self.after(idle, Event::TimeOut(id));
        }
    }

    pub fn heal(&mut self, a: usize, b: usize) -> Result<(), String> {
        if a == b {
            self.replicas[a].disk.set_free(Some(u64::MAX));
            return Ok(());
        }
        self.blocked.remove(&(a, b));
        self.blocked.remove(&(b, a));
        self.wake_links();
        Ok(())
    }

    fn wake_links(&mut self) {
        let ids: Vec<u64> = self.links.keys().copied().collect();
        for id in ids {
            self.after(0, Event::Arrive(id, 0));
            self.after(0, Event::Arrive(id, 1));
        }
    }

    fn cut_some_links(&mut self) -> Result<(), String> {
        let ids: Vec<u64> = self.links.keys().copied().collect();
        for id in ids {
            if self.random.chance(50) {
                let late = [0, self.random.between(0, 4000) * MS];
                let swapped = self.random.chance(50);
                self.cut_link(id, if swapped { [late[1], late[0]] } else { late });
            }
        }
        self.outcome.other_faults += 1;
        Ok(())
    }

    /// Puts a replica back to its last backup, if it has one; else makes one.
    fn restore_or_back_up(&mut self, n: usize) -> Result<(), String> {
        match self.replicas[n].backup.take() {
            Some(image) => self.restore(n, image),
            None => {
                self.back_up(n);
                Ok(())
            }
        }
    }

    pub fn back_up(&mut self, n: usize) {
        if !self.replicas[n].disk.is_dead() {
            self.replicas[n].backup = Some(self.replicas[n].disk.image());
        }
    }

    fn restore(&mut self, n: usize, image: super::disk::Image) -> Result<(), String> {
        self.replicas[n].stop();
        self.lose_links(n);
        self.replicas[n].disk = SimDisk::of(image);
        self.replicas[n].restored = true;
        self.say(|| format!("replica {n} is restored"));
        self.forget_promises_of(n);
        self.outcome.restores += 1;
        self.mark("a replica was restored from an old backup");
        let pause = self.random.between(1, 10) * SECOND;
        self.after(pause, Event::Start(n));
        Ok(())
    }

    /// What a replica promised may be lost, and that is allowed: it was restored, or did not wait for its disk.
    fn forget_promises_of(&mut self, n: usize) {
        self.replicas[n].acknowledged = None;
        self.replicas[n].counts.clear();
        self.promised.retain(|promise| promise.author != n);
        if let Some(users) = &mut self.users {
            users.notes.retain(|note| user_at(n) != Some(note.user));
        }
    }

    /// Offers a change that is too large, and one made on top of it: neither may ever be seen anywhere.
    fn offer_rogue(&mut self, n: usize) -> Result<(), String> {
        if self.documents.is_empty() || self.replicas[n].engine.is_none() {
            return Ok(());
        }
        let id = self.documents[self.random.index(self.documents.len())];
        let mut document = Automerge::new();
        let actor: [u8; 16] = self.random.bytes();
        document.set_actor(ActorId::from(&actor[..]));
        for ops in [600, 1] {
            let mut edit = document.transaction();
            for key in 0..ops {
                edit.put(ROOT, format!("rogue {key}"), 1).map_err(|error| error.to_string())?;
            }
            edit.commit();
        }
        for change in document.get_changes(&[]) {
            let change = Change::from_automerge(change).map_err(|error| error.to_string())?;
            let hash: ChangeHash = change.hash();
            let origin = Origin {
                node: NodeId([9; 32]),
                principal: String::new(),
                admission: Admission::Structural,
                rules_version: 0,
            };
            let row = Incoming { document: id, body: IncomingBody::Change(Box::new(change)), origin, signature: None };
            let Some(engine) = self.replicas[n].engine.as_mut() else { return Ok(()) };
            if let Ok(ticket) = engine.admit(Clash::KeepFirst, vec![row], None, None) {
                self.replicas[n].waiters.insert(ticket, Waiter::Rogue(id, hash));
            }
        }
        self.outcome.other_faults += 1;
        self.wake_writer(n);
        Ok(())
    }

    /// A client gains or loses its network.
    pub fn switch_network(&mut self, client: usize) -> Result<(), String> {
        let online = !self.chaos || !self.replicas[client].online;
        let was = std::mem::replace(&mut self.replicas[client].online, online);
        let pause = if online { self.random.between(8, 30) } else { self.random.between(10, 70) };
        self.after(pause * SECOND, Event::Network(client));
        if was && !online {
            let ids: Vec<u64> =
                self.links.iter().filter(|(_, link)| link.sides.contains(&client)).map(|(id, _)| *id).collect();
            for id in ids {
                let late = self.random.between(0, 10) * SECOND;
                self.cut_link(id, [0, late]);
            }
        }
        if !was && online {
            self.dial_all_of(client);
        }
        Ok(())
    }

    fn dial_all_of(&mut self, n: usize) {
        for edge in 0..self.edges.len() {
            if self.edges[edge].sides[0] == n {
                self.edges[edge].failures = 0;
                let pause = self.random.between(5, 60) * MS;
                self.dial_after(edge, pause);
            }
        }
    }

    /// Ends every fault: from now on the cluster must become equal.
    pub fn heal_all(&mut self) -> Result<(), String> {
        self.blocked.clear();
        self.wake_links();
        for n in 0..self.replicas.len() {
            self.replicas[n].disk.disarm();
            self.replicas[n].disk.set_free(Some(u64::MAX));
            self.replicas[n].online = true;
            self.edges.iter_mut().for_each(|edge| edge.failures = 0);
            self.start(n)?;
            self.dial_all_of(n);
        }
        self.settle_rights()?;
        for n in [self.random.index(NODES), NODES + self.random.index(CLIENTS)] {
            if self.random.chance(30) {
                self.back_up(n);
            }
        }
        Ok(())
    }
}
