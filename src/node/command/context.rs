//! What a command works on.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use serde_json::Value;
use tokio::sync::watch;

use super::CommandError;
use crate::auth::{Authority, AuthorityOptions};
use crate::engine::Database;
use crate::id::NodeId;
use crate::net::Ticket;
use crate::node::peers::PeerBook;

/// A store, who is allowed near it, and, in a running node, its links. A cheap clone.
#[derive(Clone)]
pub struct Context {
    /// The store.
    pub database: Database,
    /// Who is allowed and dialled.
    pub peers: Arc<PeerBook>,
    /// Where a running node listens; `None` when no node runs.
    pub listening: Option<SocketAddr>,
    /// The links of a running node, once there are some.
    pub links: Arc<OnceLock<Arc<dyn LinkControl>>>,
    /// Who verifies and issues tokens, once somebody asked for it or set it.
    pub(in crate::node) authority: Arc<RwLock<Option<Arc<Authority>>>>,
    /// Since when.
    pub started: Instant,
}

impl Context {
    /// A store on which no node runs.
    #[must_use]
    pub fn direct(database: Database, peers: PeerBook) -> Self {
        Self {
            database,
            peers: Arc::new(peers),
            listening: None,
            links: Arc::default(),
            authority: Arc::default(),
            started: Instant::now(),
        }
    }

    /// Who verifies and issues tokens; made when it is asked for first, without foreign issuers, unless it was set before.
    ///
    /// # Errors
    /// [`CommandError`] when `token.key` or `tokens.json` cannot be used.
    pub fn authority(&self) -> Result<Arc<Authority>, CommandError> {
        let mut place = self.authority.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(authority) = &*place {
            return Ok(authority.clone());
        }
        let directory = self.peers.directory().to_owned();
        let options = AuthorityOptions { directory, node: self.database.node(), issuers: Vec::new() };
        let authority = Arc::new(Authority::open(options)?);
        *place = Some(authority.clone());
        Ok(authority)
    }

    /// Lets commands use this one, with its foreign issuers.
    pub fn set_authority(&self, authority: Arc<Authority>) {
        *self.authority.write().unwrap_or_else(PoisonError::into_inner) = Some(authority);
    }

    /// The links, if a node runs.
    #[must_use]
    pub fn links(&self) -> Option<&Arc<dyn LinkControl>> {
        self.links.get()
    }
}

/// What commands ask of a running node's links.
pub trait LinkControl: Send + Sync {
    /// Dials a peer from now on.
    fn dial(&self, ticket: Ticket);
    /// Closes the links with a peer, and dials it no longer.
    fn drop_peer(&self, node: NodeId);
    /// One object for each link: `{node, connected, ..}`.
    fn status(&self) -> Vec<Value>;
}

/// Tells a command that it should end. A cheap clone.
#[derive(Debug, Clone)]
pub struct Cancel(watch::Receiver<bool>);

/// The other end of a [`Cancel`]. Dropping it cancels.
#[derive(Debug)]
pub struct Canceller(watch::Sender<bool>);

impl Cancel {
    /// A pair of both ends.
    #[must_use]
    pub fn new() -> (Canceller, Self) {
        let (sender, receiver) = watch::channel(false);
        (Canceller(sender), Self(receiver))
    }

    /// Whether to end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Says that it is time to end, as an error.
    ///
    /// # Errors
    /// [`CommandError::interrupted`] when it is.
    pub fn check(&self) -> Result<(), CommandError> {
        if self.is_cancelled() { Err(CommandError::interrupted()) } else { Ok(()) }
    }

    /// Waits for `work`, on a thread that may block, unless it is time to end.
    ///
    /// # Errors
    /// [`CommandError::interrupted`] when it is.
    pub(super) fn unless<T>(&self, work: impl Future<Output = T>) -> Result<T, CommandError> {
        let mut cancelled = self.clone();
        tokio::runtime::Handle::current().block_on(async {
            tokio::select! {
                done = work => Ok(done),
                () = cancelled.cancelled() => Err(CommandError::interrupted()),
            }
        })
    }

    /// Waits until it is time to end.
    pub async fn cancelled(&mut self) {
        // An error means that the other end is gone, which cancels too.
        let _ = self.0.wait_for(|cancelled| *cancelled).await;
    }
}

impl Canceller {
    /// Ends what holds the other end.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }
}
