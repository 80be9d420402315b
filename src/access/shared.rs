//! What all doors of a server share: who may come in, and the rules in force.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{broadcast, watch};

use super::consulted::Consulted;
use super::kept::Budget;
use super::subject::Subject;
use crate::auth::{Authority, Identity, TokenError};
use crate::engine::{Database, Ruleset, now_ms};
use crate::id::DocumentId;
use crate::rules::{Operation, Rules};

/// What a server asks of those who come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admittance {
    /// Nothing. Whoever brings a token is taken for whom it names.
    Anybody,
    /// A token.
    Proven,
}

/// How access is set up.
pub struct AccessOptions {
    /// What is asked of those who come.
    pub admittance: Admittance,
    /// Who proves tokens; `None` where nobody can, and none is taken.
    pub authority: Option<Arc<Authority>>,
    /// The rules to begin with; `None` where whoever comes in may do everything.
    pub rules: Option<Rules>,
}

/// Why somebody may not come in. What he is told says no more than [`std::fmt::Display`] does.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A token is needed, and there is none.
    #[error("a token is needed")]
    Missing,
    /// The token is not accepted.
    #[error("{}", .0.told())]
    Token(TokenError),
    /// This server knows nobody.
    #[error("this server takes no tokens")]
    NoAuthority,
}

impl Refusal {
    /// Whether a token was brought that is not accepted.
    pub(crate) fn is_of_token(&self) -> bool {
        matches!(self, Self::Token(_))
    }
}

/// Who may do what on one server. Cheap to clone.
#[derive(Clone)]
pub struct Access(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) database: Database,
    admittance: Admittance,
    authority: Option<Arc<Authority>>,
    // Held to take the rules or to put others there, never while they are used.
    rules: RwLock<Option<InForce>>,
    /// Rises when an answer may be another than before, for whatever reason but a change of the very document.
    epoch: watch::Sender<u64>,
    /// Rises with it, unless nothing but documents changed: no token is revoked by these.
    renewals: watch::Sender<u64>,
    pub(super) consulted: Consulted,
    pub(super) counts: Counts,
    /// What feeds keep of documents that rules look at.
    pub(super) kept: Arc<Budget>,
    is_followed: AtomicBool,
}

/// Rules, and what the log has of them.
#[derive(Clone)]
pub(super) struct InForce {
    pub(super) rules: Arc<Rules>,
    pub(super) ruleset: Arc<Ruleset>,
}

impl InForce {
    fn new(rules: Rules) -> Self {
        Self { ruleset: Arc::new(Ruleset::of(rules.source())), rules: Arc::new(rules) }
    }
}

/// What was decided since the server was started.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Who came in: with a token, without, turned away.
    arrivals: [AtomicU64; 3],
    /// Decisions of the rules by operation, in the order of [`Operation::ALL`]: allowed, denied.
    decisions: [[AtomicU64; 2]; Operation::ALL.len()],
}

impl Counts {
    pub(super) fn note(&self, operation: Operation, allowed: bool) {
        if let Some(at) = Operation::ALL.iter().position(|other| *other == operation) {
            self.decisions[at][usize::from(!allowed)].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Each operation with how often it was allowed and denied.
    pub(crate) fn decisions(&self) -> impl Iterator<Item = (Operation, [u64; 2])> {
        let read = |counts: &[AtomicU64; 2]| counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        Operation::ALL.into_iter().zip(&self.decisions).map(move |(operation, counts)| (operation, read(counts)))
    }

    /// Who came in with a token and without, and who was turned away.
    pub(crate) fn arrivals(&self) -> [u64; 3] {
        self.arrivals.each_ref().map(|count| count.load(Ordering::Relaxed))
    }
}

impl Access {
    /// Sets access up.
    #[must_use]
    pub fn new(database: Database, options: AccessOptions) -> Self {
        let AccessOptions { admittance, authority, rules } = options;
        Self(Arc::new(Shared {
            database,
            admittance,
            authority,
            rules: RwLock::new(rules.map(InForce::new)),
            epoch: watch::channel(0).0,
            renewals: watch::channel(0).0,
            consulted: Consulted::default(),
            counts: Counts::default(),
            kept: Arc::default(),
            is_followed: AtomicBool::new(false),
        }))
    }

    /// A server where anybody may do everything.
    #[must_use]
    pub fn open(database: Database) -> Self {
        Self::new(database, AccessOptions { admittance: Admittance::Anybody, authority: None, rules: None })
    }

    /// Lets somebody in who brings this token, or none.
    ///
    /// # Errors
    /// [`Refusal`]. The operator's log says why in full.
    pub(crate) fn admit(&self, token: Option<&str>) -> Result<Subject, Refusal> {
        let admitted = self.prove(token);
        let kind = match &admitted {
            Ok(Some(_)) => 0,
            Ok(None) => 1,
            Err(_) => 2,
        };
        self.0.counts.arrivals[kind].fetch_add(1, Ordering::Relaxed);
        Ok(Subject::new(self.clone(), admitted?))
    }

    fn prove(&self, token: Option<&str>) -> Result<Option<Identity>, Refusal> {
        // Where everybody may do everything, nobody is asked, and a token proves nothing.
        let token = token.filter(|_| self.is_restricted());
        match (token, &self.0.authority) {
            (None, _) if self.0.admittance == Admittance::Proven => Err(Refusal::Missing),
            (None, _) => Ok(None),
            (Some(_), None) => Err(Refusal::NoAuthority),
            (Some(token), Some(authority)) => {
                let proven = authority.verify(token, now_ms()).inspect_err(|error| {
                    tracing::info!(reason = error.reason(), %error, "a token is not accepted");
                });
                proven.map(Some).map_err(Refusal::Token)
            }
        }
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// Whether whoever comes must bring a token.
    pub(crate) fn asks_for_tokens(&self) -> bool {
        self.0.admittance == Admittance::Proven
    }

    /// Whether there is anything that somebody might not do.
    pub(crate) fn is_restricted(&self) -> bool {
        self.0.admittance == Admittance::Proven || self.0.authority.is_some() || self.rules().is_some()
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> Option<Arc<Rules>> {
        self.in_force().map(|in_force| in_force.rules)
    }

    /// The same, with what the log is to have of them.
    pub(super) fn in_force(&self) -> Option<InForce> {
        self.0.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other rules in force. Every answer that follows is theirs, on connections that stand as well.
    pub fn set_rules(&self, rules: Rules) {
        *self.0.rules.write().unwrap_or_else(PoisonError::into_inner) = Some(InForce::new(rules));
        self.renew();
    }

    /// Has every answer found anew.
    pub(crate) fn renew(&self) {
        self.0.epoch.send_modify(|epoch| {
            *epoch += 1;
            self.0.consulted.note_change_of_all(*epoch);
        });
        self.0.renewals.send_modify(|renewals| *renewals += 1);
    }

    /// Has every answer found anew that rests on these documents, if any does.
    pub(super) fn renew_for(&self, documents: &[DocumentId]) {
        if self.0.consulted.has_any_of(documents) {
            self.0.epoch.send_modify(|epoch| {
                *epoch += 1;
                self.0.consulted.note_changes(documents, *epoch);
            });
        }
    }

    /// A number that rises when answers may be others than before.
    pub(crate) fn epoch(&self) -> watch::Receiver<u64> {
        self.0.epoch.subscribe()
    }

    /// A number that rises when tokens may have been revoked.
    pub(super) fn renewals(&self) -> watch::Receiver<u64> {
        self.0.renewals.subscribe()
    }

    /// Looks at what is written and revoked, and says when answers may be others, for as long as anybody has this. Only the
    /// first to ask does so.
    pub(crate) fn follow(
        &self,
        mut groups: broadcast::Receiver<Arc<[DocumentId]>>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let mut revocations = self.0.authority.as_ref().map(|authority| authority.changes());
        let is_first = !self.0.is_followed.swap(true, Ordering::Relaxed);
        // The looking must not keep the database open.
        let shared = Arc::downgrade(&self.0);
        async move {
            if !is_first {
                return;
            }
            loop {
                let group = tokio::select! {
                    group = groups.recv() => match group {
                        Ok(documents) => Some(documents),
                        Err(broadcast::error::RecvError::Lagged(_)) => None,
                        Err(broadcast::error::RecvError::Closed) => return,
                    },
                    () = revoked(&mut revocations) => None,
                };
                let Some(access) = shared.upgrade().map(Self) else { return };
                match group {
                    Some(documents) => access.renew_for(&documents),
                    None => access.renew(),
                }
            }
        }
    }
}

/// Waits until something was revoked; for ever where nothing can be.
async fn revoked(revocations: &mut Option<watch::Receiver<u64>>) {
    if let Some(changes) = revocations
        && changes.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

impl Shared {
    pub(super) fn epoch(&self) -> u64 {
        *self.epoch.borrow()
    }

    pub(super) fn is_revoked(&self, identity: &Identity) -> bool {
        self.authority.as_ref().is_none_or(|authority| authority.is_revoked(identity))
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("admittance", &self.0.admittance).finish_non_exhaustive()
    }
}
