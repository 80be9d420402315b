//! Where a key does not say enough: whose user is at the other end, and what he may do. Decided by rooms above, asked
//! here.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use crate::engine::Judge;
use crate::sync::{Leave, Proven};

/// Says who may come in as a client, and as whom.
pub(crate) trait Doorkeeper: fmt::Debug + Send + Sync {
    /// Lets somebody in who shows this token, or none.
    ///
    /// # Errors
    /// Why not, as the peer may be told.
    fn admit(&self, token: Option<&str>) -> Result<Visitor, String>;
}

/// One who was let in.
pub(crate) struct Visitor {
    /// Who he is and what he may read.
    pub(crate) proven: Proven,
    /// Who says what he may write; `None` where he may write anything.
    pub(crate) judge: Option<Arc<dyn Judge>>,
    /// Says when that becomes otherwise.
    pub(crate) watch: Box<dyn Watch>,
}

/// Waits for whatever changes what somebody may do.
pub(crate) trait Watch: Send {
    /// Waits until he may do other things than before, or has to go.
    ///
    /// # Cancel safety
    /// Nothing is missed when it is dropped.
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Option<Leave>> + Send + '_>>;
}

/// Waits for whatever changes what a visitor may do; for ever where there is none.
pub(super) async fn next_change(visitor: &mut Option<Visitor>) -> Option<Leave> {
    match visitor {
        Some(visitor) => visitor.watch.next().await,
        None => std::future::pending().await,
    }
}
