//! A [`Database`] beside a stepped writer: what it asks for is done when the writer is stepped.

use std::time::Instant;

use super::{Engine, Mutant, Report, Waiting, plant, seed_randomness, set_wall_clock};
use crate::engine::core::Input;
use crate::engine::database::{Database, Stepped};
use crate::engine::driver::{Job, Queue};
use crate::error::Error;

/// What a thread is told that uses the database while this one steps the writer.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// The wall clock, ms since 1970.
    pub now_ms: u64,
    /// The steady clock.
    pub now: Instant,
    /// What its randomness follows from.
    pub seed: u64,
    /// The fault that is planted.
    pub mutant: Option<Mutant>,
}

impl Engine {
    /// A database over the same store. Whoever waits for it waits until the writer is stepped.
    ///
    /// # Errors
    /// [`Error`] when the store cannot be read.
    pub fn database(&mut self) -> Result<Database, Error> {
        if self.beside.is_none() {
            let Self { committer, setup, .. } = self;
            let (reader, working_set) = (&committer.reader, &committer.working_set);
            self.beside = Some(Stepped::new(reader, working_set, &setup.limits, setup.durability, setup.nonce)?);
        }
        self.beside.as_ref().map(|beside| beside.database.clone()).ok_or(Error::Closed)
    }

    /// Takes what the database was asked for, as far as there is room.
    pub fn take_asked(&mut self) {
        while self.queue.len() < self.setup.limits.write_queue_items
            && let Some(job) = self.beside.as_ref().and_then(|beside| beside.jobs.try_recv().ok())
        {
            self.take_job(job);
        }
    }

    fn take_job(&mut self, job: Job) {
        if matches!(&job.input, Input::Hold { key, .. } if key.is_empty()) {
            self.work_is_over = true;
            return;
        }
        let (room, in_flight) = job.held;
        self.tickets += 1;
        self.queued_bytes += job.input.bytes();
        let asked = Some((job.answer, room));
        self.queue.push_back(Waiting { ticket: self.tickets, input: job.input, in_flight, asked });
    }

    /// Has work done with the database that waits for the writer, and steps that until the work is over. What the work
    /// asks for is committed one by one: how much of it came before the writer looked is chance, and the same work must
    /// come to the same groups.
    ///
    /// # Errors
    /// [`Error`] when the store cannot be read.
    pub fn serve<R: Send>(
        &mut self,
        turn: Turn,
        work: impl FnOnce(&Database) -> R + Send,
    ) -> Result<(R, Vec<Report>), Error> {
        let database = self.database()?;
        let mut reports = Vec::new();
        // What was asked for before goes first.
        self.take_asked();
        self.work_is_over = false;
        let worker = || {
            let _over = Over(&database);
            seed_randomness(Some(turn.seed));
            plant(turn.mutant);
            set_wall_clock(Some(turn.now_ms));
            work(&database)
        };
        let result = std::thread::scope(|scope| {
            let worker = scope.spawn(worker);
            loop {
                while !self.queue.is_empty() {
                    reports.push(self.commit_queued(turn.now_ms, turn.now));
                }
                let next = || self.beside.as_ref().and_then(|beside| beside.jobs.recv().ok());
                match if self.work_is_over { None } else { next() } {
                    Some(job) => self.take_job(job),
                    None => break,
                }
            }
            worker.join()
        });
        match result {
            Ok(result) => Ok((result, reports)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Says that the work is over, however it ended: an input that nobody else makes.
struct Over<'a>(&'a Database);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let say = |queue: Queue| queue.send(queue.reserve()?, Input::Hold { key: Vec::new(), row: None }, None);
        let _ = self.0.queue().and_then(say);
    }
}
