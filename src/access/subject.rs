//! One who came in: what he may see.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value as Json;

use super::consulted::RestsOn;
use super::facts::{Extract, Others, Whole};
use super::shared::{Access, Refusal};
use super::vigil::Vigil;
// Where those look who follow a feed.
pub(super) use super::vigil::REST;
use crate::auth::Identity;
use crate::engine::{Claims, Database, Judge, now_ms};
use crate::error::Error;
use crate::id::{CollectionName, DocumentId, Lsn};
use crate::query::{Document, Sieve};
use crate::rules::{Auth, Decision, Operation, Request, Rules};
use crate::sync::{Leave, Permits};

/// One who came in, on one connection. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Subject(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) access: Access,
    identity: Option<Identity>,
    pub(super) auth: Option<Auth>,
    pub(super) principal: String,
    /// What is claimed of him, for the log.
    pub(super) claims: Option<Arc<Claims>>,
    // Decisions that may be given again. Held for look-ups, never while one is made.
    known: Mutex<Known>,
    /// Something that was decided lately rests on the time.
    pub(super) is_timed: AtomicBool,
    // Documents that decisions for him looked at beside those that they are about. Held for look-ups.
    rests_on: Mutex<RestsOn>,
}

#[derive(Default)]
struct Known {
    /// When they were made, in the count of whatever may change them.
    epoch: u64,
    decided: HashMap<(Operation, DocumentId), Decided>,
}

/// A decision, and what it rests on.
struct Decided {
    allowed: bool,
    /// Where the document was.
    collection: u32,
    /// The documents that were looked at, and their last records.
    rests_on: Vec<(DocumentId, Lsn)>,
    /// Rules that ask for the time are asked again.
    until_ms: Option<u64>,
}

/// Decisions that one connection remembers. Beyond, it begins anew.
const KNOWN_MAX: usize = 4096;
/// How long a decision counts that rests on the time, ms.
const TIMED_MS: u64 = 500;
/// How long a token counts beyond its end on a connection that stands, ms: time to bring another.
const GRACE_MS: u64 = 30_000;

impl Subject {
    pub(super) fn new(access: Access, identity: Option<Identity>) -> Self {
        let principal = identity.as_ref().map(Identity::principal).unwrap_or_default();
        // Not the `sub` of the token: two issuers may have one of the same name.
        let auth = identity.as_ref().map(|identity| Auth::from_json(&principal, identity.claims()));
        let claims = identity.as_ref().map(|identity| Arc::new(Claims::of(&principal, identity.claims())));
        let (known, is_timed, rests_on) = (Mutex::default(), AtomicBool::new(false), Mutex::default());
        Self(Arc::new(Inner { access, identity, auth, principal, claims, known, is_timed, rests_on }))
    }

    /// Who that is, as the log records it; empty for nobody in particular.
    pub(crate) fn principal(&self) -> &str {
        &self.0.principal
    }

    /// Whether anything might be refused to him. If not, nothing needs to be asked.
    pub(crate) fn is_restricted(&self) -> bool {
        self.0.access.is_restricted()
    }

    /// Whether he runs the server, as far as he is known here: with the role `admin`, or where nobody is asked anything.
    pub(crate) fn is_admin(&self) -> bool {
        !self.is_restricted() || self.has_role("admin")
    }

    /// Whether he may see the server's numbers: where tokens are asked for, with the role `admin` or `metrics`.
    pub(crate) fn may_watch(&self) -> bool {
        !self.0.access.asks_for_tokens() || self.has_role("admin") || self.has_role("metrics")
    }

    fn has_role(&self, role: &str) -> bool {
        self.0.identity.as_ref().is_some_and(|identity| identity.role() == Some(role))
    }

    /// Whether rules decide what he may see.
    pub(super) fn has_rules(&self) -> bool {
        self.0.access.rules().is_some()
    }

    /// What his token claims; `None` for nobody in particular.
    pub(super) fn claims_json(&self) -> Option<&Json> {
        self.0.identity.as_ref().map(Identity::claims)
    }

    /// Whether he has to go, and why.
    pub(crate) fn must_leave(&self, now_ms: u64) -> Option<Leave> {
        let identity = self.0.identity.as_ref()?;
        let ends = identity.expires_ms().map(|expires| expires.saturating_add(GRACE_MS));
        match () {
            () if self.0.access.0.is_revoked(identity) => Some(Leave::Revoked),
            () if ends.is_some_and(|ends| now_ms >= ends) => Some(Leave::Expired),
            () => None,
        }
    }

    /// The same connection's, with another token.
    ///
    /// # Errors
    /// As [`Access::admit`].
    pub(crate) fn renewed(&self, token: &str) -> Result<Self, Refusal> {
        self.0.access.admit(Some(token))
    }

    /// Waits, on a connection that stands, for whatever changes what he may do.
    pub(crate) fn vigil(&self) -> Vigil {
        Vigil::new(self.clone(), self.0.access.epoch())
    }

    /// How long his token counts from now on, ms; `None` for ever.
    pub(super) fn leaves_in(&self, now_ms: u64) -> Option<u64> {
        let expires = self.0.identity.as_ref()?.expires_ms()?;
        Some(expires.saturating_add(GRACE_MS).saturating_sub(now_ms))
    }

    pub(super) fn database(&self) -> &Database {
        &self.0.access.0.database
    }

    /// Whether he may do that to a document as it is. One that is not here may not even be looked at.
    ///
    /// # Errors
    /// [`Error`] when the document, or one that rules look at, cannot be read.
    ///
    /// # Cost
    /// A look at the document's row while what it rests on is as it was. Else a microsecond or two, and the document is
    /// materialised if rules look at its values.
    pub(crate) fn may(&self, operation: Operation, document: DocumentId) -> Result<bool, Error> {
        // Read before the rules: a decision by rules that have just gone must not count as one of those that came.
        let epoch = self.0.access.0.epoch();
        let Some(rules) = self.0.access.rules() else { return Ok(true) };
        let reader = self.database().reader();
        let Some(row) = reader.row(document)? else { return Ok(false) };
        if let Some(allowed) = self.remembered(epoch, operation, document, row.collection)? {
            return Ok(allowed);
        }
        let decided = self.decide(&rules, operation, document, row.collection)?;
        let allowed = decided.allowed;
        let mut known = self.known();
        if known.epoch == epoch {
            if known.decided.len() >= KNOWN_MAX {
                known.decided.clear();
            }
            known.decided.insert((operation, document), decided);
        }
        Ok(allowed)
    }

    fn remembered(
        &self,
        epoch: u64,
        operation: Operation,
        document: DocumentId,
        collection: u32,
    ) -> Result<Option<bool>, Error> {
        let mut known = self.known();
        if known.epoch != epoch {
            *known = Known { epoch, ..Known::default() };
        }
        let Some(decided) = known.decided.get(&(operation, document)) else { return Ok(None) };
        self.note_time(decided.until_ms.is_some());
        if decided.collection != collection || decided.until_ms.is_some_and(|until| now_ms() >= until) {
            return Ok(None);
        }
        for (document, last) in &decided.rests_on {
            let row = self.database().reader().row(*document)?;
            if row.map_or(0, |row| row.last_lsn) != last.0 {
                return Ok(None);
            }
        }
        Ok(Some(decided.allowed))
    }

    fn decide(
        &self,
        rules: &Rules,
        operation: Operation,
        document: DocumentId,
        row_collection: u32,
    ) -> Result<Decided, Error> {
        let mut decided = Decided { allowed: false, collection: row_collection, rests_on: Vec::new(), until_ms: None };
        let Some(state) = self.database().reader().document(document)? else { return Ok(decided) };
        let collection = state.collection.as_str();
        let needs = rules.needs(operation, collection);
        if let Some(allowed) = needs.constant {
            decided.allowed = allowed;
            return Ok(decided);
        }
        let mut before = Extract::default();
        if needs.before {
            before = self.database().consult(document, |view| Ok(Extract::of(view, &needs.before_fields)?))?;
            decided.rests_on.push((document, state.last_lsn));
        }
        let id = state.name.unwrap_or_else(|| document.to_string());
        let request = Request { before: Some(&before), ..Request::new(operation, collection, &id) };
        let (decision, seen) = self.ask(rules, request);
        decided.allowed = decision.allowed;
        decided.until_ms = needs.time.then(|| now_ms() + TIMED_MS);
        self.note_time(needs.time);
        decided.rests_on.extend(seen);
        Ok(decided)
    }

    /// Has the rules decide for him, now. Whatever other documents they look at are watched from here on; those are the
    /// second half of the answer.
    pub(super) fn ask(&self, rules: &Rules, request: Request<'_>) -> (Decision, Vec<(DocumentId, Lsn)>) {
        let shared = &self.0.access.0;
        let others = Others::of(self);
        let (auth, time_ms) = (self.0.auth.as_ref(), now_ms() as i64);
        let decision = rules.decide(&Request { auth, time_ms, documents: &others, ..request });
        shared.counts.note(request.operation, decision.allowed);
        (decision, others.seen.into_inner())
    }

    /// Takes note that a decision for him looks at a document for the sake of another, before that is read.
    pub(super) fn note_consulted(&self, document: DocumentId) {
        // In this order: when a change of it is looked for among what is watched, it is among what he rests on.
        self.rests_on().note(document);
        self.0.access.0.consulted.note(document);
    }

    /// Whether decisions for him may be others than at an earlier count of what may change them.
    pub(super) fn is_concerned(&self, since: u64) -> bool {
        self.0.access.0.consulted.has_changed(&self.rests_on(), since)
    }

    fn rests_on(&self) -> std::sync::MutexGuard<'_, RestsOn> {
        self.0.rests_on.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there can be anything in a collection that he may do that to.
    pub(crate) fn may_ever(&self, operation: Operation, collection: &CollectionName) -> bool {
        let rules = self.0.access.rules();
        rules.is_none_or(|rules| rules.needs(operation, collection.as_str()).constant != Some(false))
    }

    /// Who says what he may write; nobody, where nothing is refused.
    pub(crate) fn judge(&self) -> Option<&dyn Judge> {
        self.is_restricted().then_some(self as &dyn Judge)
    }

    /// What he may see of results in a collection; `None` for everything.
    pub(crate) fn sieve(&self, collection: &CollectionName) -> Option<Arc<dyn Sieve>> {
        let seer = || Seer { subject: self.clone(), collection: collection.clone() };
        self.0.access.rules().is_some().then(|| Arc::new(seer()) as Arc<dyn Sieve>)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note that a decision rests on the time, if it does.
    pub(super) fn note_time(&self, is_timed: bool) {
        if is_timed {
            self.0.is_timed.store(true, Ordering::Relaxed);
        }
    }

    /// [`Self::may`], where what cannot be read is not allowed.
    fn may_surely(&self, operation: Operation, document: DocumentId) -> bool {
        self.may(operation, document).unwrap_or_else(|error| {
            tracing::warn!(%document, %error, "whether a document may be read cannot be told, so it may not");
            false
        })
    }
}

impl Permits for Subject {
    fn may_read(&self, document: DocumentId) -> bool {
        self.may_surely(Operation::Get, document)
    }

    fn may_announce(&self, document: DocumentId) -> bool {
        self.may_surely(Operation::Presence, document)
    }
}

/// One who looks at results in a collection.
#[derive(Debug)]
struct Seer {
    subject: Subject,
    collection: CollectionName,
}

impl Sieve for Seer {
    fn passes(&self, document: &Document) -> bool {
        let Self { subject, collection } = self;
        let collection = collection.as_str();
        let Some(rules) = subject.0.access.rules() else { return true };
        let needs = rules.needs(Operation::List, collection);
        if let Some(allowed) = needs.constant {
            return allowed;
        }
        subject.note_time(needs.time);
        // What was not kept of a large value may be what counts.
        if document.is_in_part() {
            return subject.may_surely(Operation::List, document.id);
        }
        let id = document.name.clone().unwrap_or_else(|| document.id.to_string());
        let value = Whole(&document.value);
        let request = Request { before: Some(&value), ..Request::new(Operation::List, collection, &id) };
        subject.ask(&rules, request).0.allowed
    }
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").field("principal", &self.0.principal).finish_non_exhaustive()
    }
}
