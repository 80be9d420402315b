//! What a session hands to the writer, one after the other.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::Event;
use crate::engine::{Clash, Database, Judge, Source};
use crate::id::{DocumentId, LogCursor, NodeId};
use crate::net::door::{Payer, TurnedAway};
use crate::sync::IncomingRow;
use crate::sync::wire::DeniedRow;

/// What is on its way to the writer.
pub(super) enum Admission {
    /// Rows.
    Rows {
        /// The session's.
        ticket: u64,
        rows: Vec<IncomingRow>,
        /// What is stored with them.
        cursor: Option<LogCursor>,
        /// Whose change stays when two have one author and number.
        clash: Clash,
        judge: Option<Arc<dyn Judge>>,
        /// Who pays for the documents that come to be.
        payer: Option<Arc<dyn Payer>>,
    },
    /// What the peer will not have of us.
    TakeBack(Vec<DeniedRow>),
    /// Documents that we may not read, or may again.
    Withhold(Vec<DocumentId>, bool),
}

/// Pays for the documents that come to be by these rows, as soon as one more fits.
///
/// # Errors
/// Why not, when that would take too long. Nothing was paid.
async fn pay_for_new(database: &Database, payer: &dyn Payer, rows: &[IncomingRow]) -> Result<(), TurnedAway> {
    let new = database.count_new(rows);
    if new == 0 {
        return Ok(());
    }
    loop {
        let wait = payer.create(new)?;
        if wait.is_zero() {
            return Ok(());
        }
        tokio::time::sleep(wait).await;
    }
}

/// Hands the session's rows to the writer, one admission after the other, and tells what became of them.
pub(super) async fn admit_in_order(
    database: Database,
    peer: NodeId,
    is_trusted: bool,
    mut queue: mpsc::Receiver<Admission>,
    events: mpsc::Sender<Event>,
) {
    while let Some(job) = queue.recv().await {
        let event = match job {
            Admission::Rows { ticket, rows, cursor, clash, judge, payer } => {
                if let Some(payer) = payer
                    && let Err(why) = pay_for_new(&database, &*payer, &rows).await
                {
                    let _ = events.send(Event::TooMuch(why)).await;
                    return;
                }
                let admitted = database.offer(Source { node: peer, is_trusted, clash, judge }, rows, cursor).await;
                Event::Admitted(ticket, admitted)
            }
            Admission::TakeBack(rows) => {
                let count = rows.len();
                match database.take_back(peer, rows).await {
                    Ok(is_all) => Event::TakenBack(if is_all { count } else { 0 }),
                    Err(error) => Event::NotTaken(error),
                }
            }
            Admission::Withhold(documents, withheld) => match database.withhold(peer, documents, withheld).await {
                Ok(()) => Event::Withheld,
                Err(error) => Event::NotTaken(error),
            },
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}
