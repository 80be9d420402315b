//! Where a key does not say enough: whose user is at the other end, what he may do, and how much. Decided by rooms above,
//! asked here.

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::close::CloseCode;
use crate::engine::Judge;
use crate::sync::{Leave, Proven};

/// Who is asked of those who come; nobody, where nothing is asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guards {
    /// Who says what clients may do; `None` where their keys say enough.
    pub(crate) door: Option<Arc<dyn Doorkeeper>>,
    /// Who says how much they may have; `None` where that is not counted.
    pub(crate) toll: Option<Arc<dyn Toll>>,
}

/// Says who may come in as a client, and as whom.
pub(crate) trait Doorkeeper: fmt::Debug + Send + Sync {
    /// Lets somebody in from `address` who shows this token, or none.
    ///
    /// # Errors
    /// Why not, as the peer may be told.
    fn admit(&self, token: Option<&str>, address: IpAddr) -> Result<Visitor, TurnedAway>;
}

/// Why somebody is turned away, as he is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TurnedAway {
    /// What his link is closed with.
    pub(crate) code: CloseCode,
    /// In words. They end with when to come again, where the code [says so](CloseCode::says_when).
    pub(crate) why: String,
}

/// One who was let in.
pub(crate) struct Visitor {
    /// Who he is and what he may read.
    pub(crate) proven: Proven,
    /// Who says what he may write; `None` where he may write anything.
    pub(crate) judge: Option<Arc<dyn Judge>>,
    /// Says when that becomes otherwise.
    pub(crate) watch: Box<dyn Watch>,
    /// Who pays for what he does.
    pub(crate) payer: Arc<dyn Payer>,
}

/// What changes what somebody may do.
#[cfg_attr(not(feature = "node"), allow(dead_code, reason = "whoever keeps a door says it, and those are above"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// He has to go.
    Leave(Leave),
    /// Rules, tokens or a document that rules look at.
    Rights,
    /// Nothing but the time.
    Time,
}

/// Waits for whatever changes what somebody may do.
pub(crate) trait Watch: Send {
    /// Waits until he may do other things than before, or has to go.
    ///
    /// # Cancel safety
    /// Nothing is missed when it is dropped.
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Change> + Send + '_>>;
}

/// Waits for whatever changes what a visitor may do; for ever where there is none.
pub(super) async fn next_change(visitor: &mut Option<Visitor>) -> Change {
    match visitor {
        Some(visitor) => visitor.watch.next().await,
        None => std::future::pending().await,
    }
}

/// Says how many may come from an address.
pub(crate) trait Toll: fmt::Debug + Send + Sync {
    /// Whether one more might come from there now. Costs nobody anything: who says that he is there may be elsewhere.
    fn has_room(&self, address: IpAddr) -> bool;

    /// Lets somebody in who has proven that he is there.
    ///
    /// # Errors
    /// Why not, as he may be told.
    fn arrive(&self, address: IpAddr) -> Result<Entry, TurnedAway>;
}

/// What is given back when it is dropped.
pub(crate) type Held = Box<dyn fmt::Debug + Send + Sync>;

/// What a connection has that was let in.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Who pays until it is known whose it is.
    pub(crate) payer: Arc<dyn Payer>,
    /// Kept as long as the connection.
    pub(crate) connection: Held,
    /// Kept until it is known whose it is.
    pub(crate) opening: Held,
}

/// Pays for what somebody does.
pub(crate) trait Payer: fmt::Debug + Send + Sync {
    /// Takes what one more link of his costs; what comes is kept as long as the link.
    ///
    /// # Errors
    /// Why he may not have it, as he may be told.
    fn open(&self) -> Result<Held, TurnedAway>;

    /// Pays for frames that were read, and says how long nothing more is read.
    ///
    /// # Errors
    /// As he may be told, when that is too long. What was read is paid for all the same.
    fn read(&self, frames: u64, bytes: u64) -> Result<Duration, TurnedAway>;

    /// Pays for so many documents that are to come to be, if one more fits; says how long until then, and nothing once
    /// they are paid.
    ///
    /// # Errors
    /// As he may be told, when that takes too long. Nothing was paid.
    fn create(&self, documents: u64) -> Result<Duration, TurnedAway>;
}
