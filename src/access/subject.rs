//! One who came in: what he may see.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value as Json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::facts::{Extract, Others, Whole};
use super::shared::{Access, Refusal};
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
    is_timed: AtomicBool,
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
        let (known, is_timed) = (Mutex::default(), AtomicBool::new(false));
        Self(Arc::new(Inner { access, identity, auth, principal, claims, known, is_timed }))
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
        let (now, epoch) = (Instant::now(), self.0.access.epoch());
        Vigil {
            subject: self.clone(),
            revocations: epoch.clone(),
            epoch,
            told_at: None,
            rests_until: now,
            asks_at: None,
            is_by_time: false,
        }
    }

    /// How long his token counts from now on, ms; `None` for ever.
    fn leaves_in(&self, now_ms: u64) -> Option<u64> {
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
        let others = Others::of(shared);
        let (auth, time_ms) = (self.0.auth.as_ref(), now_ms() as i64);
        let decision = rules.decide(&Request { auth, time_ms, documents: &others, ..request });
        shared.counts.note(request.operation, decision.allowed);
        (decision, others.seen.into_inner())
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

/// Waits for whatever changes what somebody may do.
pub(crate) struct Vigil {
    subject: Subject,
    epoch: watch::Receiver<u64>,
    /// The same, for whether he has to go: that is looked at without a rest.
    revocations: watch::Receiver<u64>,
    /// When somebody was told, until it is known how long that kept him busy.
    told_at: Option<Instant>,
    /// Nothing else is told before: finding every answer anew is dear, and documents that rules look at may change all the
    /// time.
    rests_until: Instant,
    /// When he is to be asked about again if anything rests on the time; never, where nobody wants that.
    asks_at: Option<Instant>,
    /// Nothing but the time was what told last.
    is_by_time: bool,
}

/// Timers are set no further ahead than this, ms: a day.
const FAR_MS: u64 = 86_400_000;
/// How long nothing is told after what followed from a change was done, at least; as long as that took, and so long at
/// most.
pub(super) const REST: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];
/// How often every answer is found anew where some rest on the time.
const ASK_AGAIN: Duration = Duration::from_secs(5);

impl Vigil {
    /// Tells as well, now and then, where what was decided rests on the time.
    pub(crate) fn with_the_time(self) -> Self {
        Self { asks_at: Some(Instant::now() + ASK_AGAIN), ..self }
    }

    /// [`Self::next`] as far as it is due now, for those who do not wait. Time alone brings nothing.
    #[cfg(feature = "sim")]
    pub(super) fn has_changed(&mut self) -> Option<Option<Leave>> {
        if let Some(leave) = self.subject.must_leave(now_ms()) {
            return Some(Some(leave));
        }
        let is_due = self.is_behind();
        self.epoch.mark_unchanged();
        is_due.then_some(None)
    }

    /// Waits until every answer has to be found anew, or until he has to go.
    ///
    /// # Cancel safety
    /// Nothing is missed when it is dropped.
    pub(crate) async fn next(&mut self) -> Option<Leave> {
        // He may have been revoked before this began to listen.
        if let Some(leave) = self.subject.must_leave(now_ms()) {
            return Some(leave);
        }
        if let Some(told_at) = self.told_at.take() {
            let now = Instant::now();
            self.rests_until = now + (now - told_at).clamp(REST[0], REST[1]);
            self.asks_at = self.asks_at.map(|_| now + ASK_AGAIN);
        }
        // Of rules that never look at it, no timer is kept.
        let is_timed = self.asks_at.is_some() && self.subject.0.access.rules().is_some_and(|r| r.look_at_the_time());
        loop {
            let ends = self.subject.leaves_in(now_ms()).unwrap_or(FAR_MS).min(FAR_MS);
            let far = || Instant::now() + Duration::from_millis(FAR_MS);
            tokio::select! {
                changed = changed_after(self.rests_until, &mut self.epoch) => {
                    if changed.is_err() {
                        // Nothing changes any more but the time.
                        std::future::pending::<()>().await;
                    }
                    return self.told(false);
                }
                Ok(()) = self.revocations.changed() => {
                    if let Some(leave) = self.subject.must_leave(now_ms()) {
                        return Some(leave);
                    }
                }
                () = tokio::time::sleep_until(self.asks_at.filter(|_| is_timed).unwrap_or_else(far)) => {
                    if self.subject.0.is_timed.load(Ordering::Relaxed) {
                        return self.told(true);
                    }
                    self.asks_at = self.asks_at.map(|_| Instant::now() + ASK_AGAIN);
                }
                () = tokio::time::sleep(Duration::from_millis(ends)) => {
                    if let Some(leave) = self.subject.must_leave(now_ms()) {
                        return Some(leave);
                    }
                }
            }
        }
    }

    /// Whether answers may be others than when something was told last: nothing that rests on them may be told before
    /// they are found anew.
    pub(crate) fn is_behind(&self) -> bool {
        self.epoch.has_changed().unwrap_or(false)
    }

    /// As if it had been told, since what follows from it is done in any case.
    pub(crate) fn catch_up(&mut self) {
        self.epoch.mark_unchanged();
        self.told(false);
    }

    /// Whether only time went by, when [`Self::next`] told of no reason to go.
    pub(crate) fn is_by_time(&self) -> bool {
        self.is_by_time
    }

    fn told(&mut self, is_by_time: bool) -> Option<Leave> {
        self.is_by_time = is_by_time;
        self.told_at = Some(Instant::now());
        self.subject.0.is_timed.store(false, Ordering::Relaxed);
        self.subject.must_leave(now_ms())
    }
}

/// Waits for another epoch, but not before a moment. What came until then is not lost when this is dropped.
async fn changed_after(moment: Instant, epoch: &mut watch::Receiver<u64>) -> Result<(), watch::error::RecvError> {
    tokio::time::sleep_until(moment).await;
    epoch.changed().await
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{AccessOptions, Admittance};
    use crate::log::MemoryStorage;

    fn access(condition: &str) -> (Access, DocumentId) {
        let database = Database::on(MemoryStorage::new()).open().unwrap();
        let (handle, commit) =
            database.collection("things").unwrap().create(serde_json::json!({ "open": true })).unwrap();
        commit.wait().unwrap();
        let text = format!("service tidelog {{ match /things/{{id}} {{ allow read: if {condition}; }} }}");
        let rules = Some(Rules::parse("rules", &text).unwrap());
        let options = AccessOptions { admittance: Admittance::Anybody, authority: None, rules };
        (Access::new(database, options), handle.id())
    }

    /// How long a vigil goes on before it tells of something, up to an hour.
    async fn told_after(vigil: &mut Vigil) -> Option<Duration> {
        let began = Instant::now();
        let told = tokio::time::timeout(Duration::from_secs(3600), vigil.next()).await;
        told.ok().map(|leave| assert_eq!(leave, None)).map(|()| began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_told_at_once_and_those_that_follow_after_a_rest() {
        let (access, _) = access("resource.data.open");
        let mut vigil = access.admit(None).unwrap().vigil();
        assert_eq!(told_after(&mut vigil).await, None);
        access.renew();
        assert_eq!(told_after(&mut vigil).await, Some(Duration::ZERO));
        access.renew();
        access.renew();
        // One who is asked for something else meanwhile misses nothing.
        assert!(tokio::time::timeout(REST[0] / 2, vigil.next()).await.is_err());
        assert_eq!(told_after(&mut vigil).await, Some(REST[0] / 2));
        assert_eq!(told_after(&mut vigil).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_rests_on_the_time_is_asked_for_again_now_and_then_while_it_does() {
        let (access, document) = access("request.time < timestamp('2200-01-01T00:00:00Z')");
        let subject = access.admit(None).unwrap();
        let mut vigil = subject.vigil().with_the_time();
        for _ in 0..2 {
            // The second answer is the first one, which is remembered.
            assert!(subject.may(Operation::Get, document).unwrap());
            assert_eq!(told_after(&mut vigil).await, Some(ASK_AGAIN));
            assert!(vigil.is_by_time());
        }
        assert_eq!(told_after(&mut vigil).await, None);
        access.renew();
        assert_eq!(told_after(&mut vigil).await, Some(Duration::ZERO));
        assert!(!vigil.is_by_time());
    }
}
