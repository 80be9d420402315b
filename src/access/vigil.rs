//! Waiting, on a connection that stands, for whatever changes what somebody may do.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::subject::Subject;
use crate::engine::now_ms;
use crate::sync::Leave;

/// Waits for whatever changes what somebody may do.
pub(crate) struct Vigil {
    subject: Subject,
    epoch: watch::Receiver<u64>,
    /// For whether he has to go: that is looked at without a rest. No document that changed wakes anybody for it.
    revocations: watch::Receiver<u64>,
    /// The epoch that was looked at last.
    seen: u64,
    /// Changes of documents concern him only where decisions made for him looked at them.
    is_narrow: bool,
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
/// How long nobody is woken after a change that did not concern him: documents that decide for others may change all the
/// time.
const UNCONCERNED: Duration = Duration::from_millis(50);
/// How often every answer is found anew where some rest on the time.
const ASK_AGAIN: Duration = Duration::from_secs(5);

impl Vigil {
    /// Tells of whatever changes any decision from here on.
    pub(super) fn new(subject: Subject, mut epoch: watch::Receiver<u64>) -> Self {
        let seen = *epoch.borrow_and_update();
        Self {
            revocations: subject.0.access.renewals(),
            subject,
            epoch,
            seen,
            is_narrow: false,
            told_at: None,
            rests_until: Instant::now(),
            asks_at: None,
            is_by_time: false,
        }
    }

    /// Tells of a document that changed only if a decision that the [`Subject`] asked for himself looked at it, since he
    /// was let in.
    pub(crate) fn of_his_decisions(self) -> Self {
        Self { is_narrow: true, ..self }
    }

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
                    if self.is_concerned() {
                        return self.told(false);
                    }
                    // Whatever is told meanwhile asks first whether this is behind.
                    self.rests_until = self.rests_until.max(Instant::now() + UNCONCERNED);
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
        self.epoch.has_changed().unwrap_or(false) && (!self.is_narrow || self.subject.is_concerned(self.seen))
    }

    /// Whether what was since it was looked at last concerns him.
    fn is_concerned(&mut self) -> bool {
        let since = std::mem::replace(&mut self.seen, *self.epoch.borrow_and_update());
        !self.is_narrow || self.subject.is_concerned(since)
    }

    /// As if [`Self::next`] had told it, since what follows from it is done in any case: so he may have to go.
    #[must_use]
    pub(crate) fn catch_up(&mut self) -> Option<Leave> {
        self.seen = *self.epoch.borrow_and_update();
        self.told(false)
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

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::access::{Access, AccessOptions, Admittance};
    use crate::engine::Database;
    use crate::id::DocumentId;
    use crate::log::MemoryStorage;
    use crate::rules::{Operation, Rules};

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

    #[tokio::test(start_paused = true)]
    async fn of_documents_he_hears_whose_decisions_looked_at_them_and_of_all_else_everybody() {
        let (access, document) = access("get(/rooms/a).data.open");
        let rooms = access.0.database.collection("rooms").unwrap();
        let [a, b] = ["a", "b"].map(|name| rooms.doc_with(name, serde_json::json!({ "open": true })).unwrap().id());
        let (one, other) = (access.admit(None).unwrap(), access.admit(None).unwrap());
        let (mut narrow, mut others) = (one.vigil().of_his_decisions(), other.vigil().of_his_decisions());
        let mut wide = other.vigil();
        assert!(one.may(Operation::Get, document).unwrap());
        access.renew_for(&[b]);
        assert!(!narrow.is_behind() && !others.is_behind() && !wide.is_behind());
        access.renew_for(&[b, a]);
        assert!(narrow.is_behind() && !others.is_behind() && wide.is_behind());
        assert_eq!(told_after(&mut narrow).await, Some(Duration::ZERO));
        assert_eq!(told_after(&mut others).await, None);
        assert_eq!(told_after(&mut wide).await, Some(Duration::ZERO));
        // What he looks at later counts from then on, and goes on to count.
        assert!(other.may(Operation::Get, document).unwrap());
        for _ in 0..2 {
            assert!(!others.is_behind());
            access.renew_for(&[a]);
            assert!(others.is_behind());
            assert_eq!(others.catch_up(), None);
        }
        access.renew();
        assert!(narrow.is_behind() && others.is_behind());
        assert!(told_after(&mut narrow).await.is_some() && told_after(&mut others).await.is_some());
    }
    #[tokio::test(start_paused = true)]
    async fn documents_that_decide_for_others_wake_nobody_all_the_time() {
        let (access, document) = access("get(/rooms/a).data.open");
        let rooms = access.0.database.collection("rooms").unwrap();
        let room = rooms.doc_with("a", serde_json::json!({ "open": true })).unwrap().id();
        let (one, other) = (access.admit(None).unwrap(), access.admit(None).unwrap());
        assert!(one.may(Operation::Get, document).unwrap());
        let mut vigil = other.vigil().of_his_decisions();
        let wakes = Arc::new(AtomicUsize::new(0));
        let count = wakes.clone();
        let waits = tokio::spawn(async move {
            let mut next = std::pin::pin!(vigil.next());
            std::future::poll_fn(|context| {
                count.fetch_add(1, Ordering::Relaxed);
                next.as_mut().poll(context)
            })
            .await
        });
        for _ in 0..1000 {
            access.renew_for(&[room]);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Once for each rest that ends, and perhaps once more for the change after it.
        let most = 2 * 1000 / UNCONCERNED.as_millis() as usize + 2;
        assert!(wakes.load(Ordering::Relaxed) <= most, "{wakes:?}, and {most} at most");
        // He is told, no later than that, once it concerns him.
        assert!(!waits.is_finished() && other.may(Operation::Get, document).unwrap());
        access.renew_for(&[room]);
        assert_eq!(tokio::time::timeout(UNCONCERNED, waits).await.unwrap().unwrap(), None);
    }
}
