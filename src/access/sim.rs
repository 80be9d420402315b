//! Users of a simulated node: the decisions of a server, without the tasks that wait for what changes them.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use super::shared::{Access, AccessOptions};
use super::subject::Subject;
use super::vigil::Vigil;
use crate::engine::sim::Engine;
use crate::engine::{Clash, Judge, Source};
use crate::error::Error;
use crate::id::{LogCursor, NodeId};
use crate::sync::{Admitted, IncomingRow, Leave, Permits, Proven};

/// What becomes of rows that are offered to a log.
pub type Offered = Pin<Box<dyn Future<Output = Result<Admitted, Error>>>>;

/// Who may do what on one simulated node.
pub struct Door {
    access: Access,
    following: Pin<Box<dyn Future<Output = ()>>>,
}

impl Door {
    /// Opens the door of the node that has this engine.
    ///
    /// # Errors
    /// [`Error`] when its store cannot be read.
    pub fn open(engine: &mut Engine, options: AccessOptions) -> Result<Self, Error> {
        let database = engine.database()?;
        let groups = database.changed_documents();
        let access = Access::new(database, options);
        let following = Box::pin(access.follow(groups));
        Ok(Self { access, following })
    }

    /// What the doors of a server share.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Looks at what was committed and revoked since it was asked last: [`Visitor::changed`] says what follows from it.
    pub fn look(&mut self) {
        // It ends with the database, and is not asked after that.
        let _ = self.following.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }

    /// Lets somebody in who shows this token, or none.
    ///
    /// # Errors
    /// Why not, as the peer may be told.
    pub fn admit(&self, token: Option<&str>) -> Result<Visitor, String> {
        let subject = self.access.admit(token).map_err(|refusal| refusal.to_string())?;
        Ok(Visitor { vigil: subject.vigil(), subject })
    }
}

/// One who was let in, on one link.
pub struct Visitor {
    subject: Subject,
    vigil: Vigil,
}

impl Visitor {
    /// Who he is and what he may read.
    #[must_use]
    pub fn proven(&self) -> Proven {
        let permits = Some(Arc::new(self.subject.clone()) as Arc<dyn Permits>);
        Proven { principal: self.subject.principal().to_owned(), permits }
    }

    /// Whether he may do other things than when it was asked last, and if so, whether he has to go.
    pub fn changed(&mut self) -> Option<Option<Leave>> {
        self.vigil.has_changed()
    }

    /// Offers what he sent through the node `peer` to the log, as a link does.
    #[must_use]
    pub fn offer(&self, peer: NodeId, rows: Vec<IncomingRow>, cursor: Option<LogCursor>) -> Offered {
        let database = self.subject.database().clone();
        let judge = Some(Arc::new(self.subject.clone()) as Arc<dyn Judge>);
        let from = Source { node: peer, is_trusted: false, clash: Clash::KeepFirst, judge };
        Box::pin(async move { database.offer(from, rows, cursor).await })
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("access", &self.access).finish_non_exhaustive()
    }
}

impl fmt::Debug for Visitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Visitor").field("subject", &self.subject).finish_non_exhaustive()
    }
}
