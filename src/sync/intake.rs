//! What came from the peer and is not logged yet.
//!
//! One group is with the writer at a time; what comes meanwhile gathers for the next. So a thousand small documents
//! cost a few commits, not a thousand, and a cursor is never stored ahead of rows whose fate is not known.

use std::collections::VecDeque;

use super::exchange::Arrival;
use super::session::{Admitted, IncomingRow, Opened, Output};
use super::wire::Outcome;
use crate::id::{DocumentId, Heads, LogCursor};

/// What to do once the rows before it are logged.
#[derive(Debug)]
pub(super) enum Mark {
    /// A batch of the peer's log is whole; `end` is the footer it ends at.
    Batch { number: u64, end: Option<LogCursor> },
    /// The answer to a want is whole; the document should now have these heads.
    Document { document: DocumentId, heads: Heads, outcome: Outcome },
    /// A streamed chunk is logged.
    Stream { document: DocumentId },
    /// A message of an exchange is taken; the changes it brought.
    Exchange { channel: Opened, arrived: Vec<Arrival> },
    /// A sync message of an automerge-repo client is taken; the changes it brought.
    Message { document: DocumentId, arrived: Vec<Arrival> },
    /// Documents are shown no more, or again.
    Withhold { documents: Vec<DocumentId>, withheld: bool },
    /// A cursor was stored alone.
    Cursor(LogCursor),
}

#[derive(Debug, Default)]
pub(super) struct Intake {
    rows: Vec<IncomingRow>,
    marks: Vec<Mark>,
    bytes: usize,
    /// What is with the writer: its ticket, and what follows.
    admitting: Option<(u64, Vec<Mark>)>,
    settled: VecDeque<(Vec<Mark>, Admitted)>,
    tickets: u64,
}

/// What a row weighs beside its bytes.
const ROW_BYTES: usize = 200;

impl Intake {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// How much gathers for the next group.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, row: IncomingRow) {
        self.bytes += row.body.bytes() + ROW_BYTES;
        self.rows.push(row);
    }

    pub(super) fn mark(&mut self, mark: Mark) {
        self.bytes += ROW_BYTES;
        if let Mark::Withhold { documents, .. } = &mark {
            self.bytes += documents.len() * size_of::<DocumentId>();
        }
        self.marks.push(mark);
    }

    /// Stores `cursor` alone, unless something is with the writer.
    pub(super) fn store(&mut self, cursor: LogCursor) -> Option<Output> {
        if self.admitting.is_some() {
            return None;
        }
        self.tickets += 1;
        self.admitting = Some((self.tickets, vec![Mark::Cursor(cursor)]));
        Some(Output::StoreCursor { ticket: self.tickets, cursor })
    }

    /// Gives what gathered to the writer, if it has nothing of ours. The cursor moves with it if it may.
    pub(super) fn next_admission(&mut self, may_move_cursor: bool) -> Option<Output> {
        if self.admitting.is_some() || self.marks.is_empty() && self.rows.is_empty() {
            return None;
        }
        let (rows, marks) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.marks));
        self.bytes = 0;
        let ends = marks.iter().rev().find_map(|mark| match mark {
            Mark::Batch { end, .. } => *end,
            _ => None,
        });
        let cursor = ends.filter(|_| may_move_cursor);
        self.tickets += 1;
        let ticket = self.tickets;
        self.admitting = Some((ticket, marks));
        if !rows.is_empty() {
            return Some(Output::Admit { ticket, rows, cursor });
        }
        if let Some(cursor) = cursor {
            return Some(Output::StoreCursor { ticket, cursor });
        }
        self.handle_admitted(ticket, Admitted::default());
        None
    }

    pub(super) fn handle_admitted(&mut self, ticket: u64, outcome: Admitted) {
        if let Some((_, marks)) = self.admitting.take_if(|(awaited, _)| *awaited == ticket) {
            self.settled.push_back((marks, outcome));
        }
    }

    pub(super) fn take_settled(&mut self) -> Option<(Vec<Mark>, Admitted)> {
        self.settled.pop_front()
    }

    /// Whether something is logged whose marks were not taken yet.
    pub(super) fn has_settled(&self) -> bool {
        !self.settled.is_empty()
    }

    /// Whether nothing came that is not logged.
    pub(super) fn is_empty(&self) -> bool {
        self.admitting.is_none() && self.marks.is_empty() && self.rows.is_empty() && self.settled.is_empty()
    }
}
