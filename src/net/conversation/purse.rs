//! Who pays for what a peer sends, and how long it is held up that it is too much.

use std::sync::Arc;
use std::time::Instant;

use crate::net::door::{Entry, Held, Payer, TurnedAway};

/// What a link has and pays. That of a node is empty: nothing of it is counted.
#[derive(Debug, Default)]
pub(super) struct Purse {
    /// What its connection holds until it is known whose it is.
    opening: Option<Held>,
    _connection: Option<Held>,
    /// What its user's link holds.
    link: Option<Held>,
    payer: Option<Arc<dyn Payer>>,
    /// Whether it is known who pays in the end. Until then nothing is held up: all that may come says who that is.
    is_known: bool,
    /// Frames, and their bytes, that came before it was known.
    unpaid: (u64, u64),
    held_until: Option<Instant>,
    leaving: Option<TurnedAway>,
}

impl Purse {
    pub(super) fn new(entry: Option<Entry>) -> Self {
        let Some(Entry { payer, connection, opening }) = entry else { return Self::default() };
        Self { opening: Some(opening), _connection: Some(connection), payer: Some(payer), ..Self::default() }
    }

    /// Whether anybody pays.
    pub(super) fn is_counted(&self) -> bool {
        self.payer.is_some()
    }

    /// Takes whose the link is, for the first time or again.
    ///
    /// # Errors
    /// Why he may not have another.
    pub(super) fn belong_to(&mut self, payer: Arc<dyn Payer>) -> Result<(), TurnedAway> {
        if self.link.is_none() {
            self.link = Some(payer.open()?);
        }
        self.payer = Some(payer);
        self.settle();
        Ok(())
    }

    /// Takes note that the peer said who it is, where nothing else is asked.
    ///
    /// # Errors
    /// Why those who come from its address may not have another link.
    pub(super) fn belong_to_address(&mut self) -> Result<(), TurnedAway> {
        match self.payer.clone().filter(|_| !self.is_known) {
            Some(payer) => self.belong_to(payer),
            None => Ok(()),
        }
    }

    fn settle(&mut self) {
        self.is_known = true;
        self.opening = None;
    }

    /// Pays for frames that are taken. What is too much is owed, and nothing more taken for a while.
    pub(super) fn pay(&mut self, frames: u64, bytes: usize, now: Instant) {
        let Some(payer) = &self.payer else { return };
        self.unpaid.0 += frames;
        self.unpaid.1 += bytes as u64;
        if !self.is_known {
            return;
        }
        let (frames, bytes) = std::mem::take(&mut self.unpaid);
        match payer.read(frames, bytes) {
            Ok(wait) if wait.is_zero() => {}
            Ok(wait) => self.held_until = Some(now + wait),
            Err(why) => self.leaving = Some(why),
        }
    }

    /// Whether a frame may be taken now.
    pub(super) fn is_open(&mut self, now: Instant) -> bool {
        self.held_until = self.held_until.filter(|until| *until > now);
        self.held_until.is_none() && self.leaving.is_none()
    }

    /// Whether a stream may be opened now: not before it is known who pays for it.
    pub(super) fn may_open_stream(&mut self, now: Instant) -> bool {
        (self.is_known || !self.is_counted()) && self.is_open(now)
    }

    /// Until when nothing is taken.
    pub(super) fn held_until(&self) -> Option<Instant> {
        self.held_until
    }

    /// Why the peer has to go, once all that it sent is taken: it comes again with the rest.
    pub(super) fn leaving(&self) -> Option<&TurnedAway> {
        self.leaving.as_ref()
    }

    /// Who pays.
    pub(super) fn payer(&self) -> Option<Arc<dyn Payer>> {
        self.payer.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::net::close::CloseCode;

    /// Notes what was paid, and says what it is told to.
    #[derive(Debug)]
    struct Noted {
        paid: Mutex<Vec<(u64, u64)>>,
        answer: Result<Duration, TurnedAway>,
        opens: bool,
    }

    impl Noted {
        fn new(answer: Result<Duration, TurnedAway>) -> Arc<Self> {
            Arc::new(Self { paid: Mutex::default(), answer, opens: true })
        }

        fn paid(&self) -> Vec<(u64, u64)> {
            self.paid.lock().unwrap().clone()
        }
    }

    impl Payer for Noted {
        fn open(&self) -> Result<Held, TurnedAway> {
            if self.opens { Ok(Box::new(())) } else { Err(busy()) }
        }

        fn read(&self, frames: u64, bytes: u64) -> Result<Duration, TurnedAway> {
            self.paid.lock().unwrap().push((frames, bytes));
            self.answer.clone()
        }

        fn create(&self, _: u64) -> Result<Duration, TurnedAway> {
            Ok(Duration::ZERO)
        }
    }

    fn busy() -> TurnedAway {
        TurnedAway { code: CloseCode::Busy, why: "too much; retry after 5 ms".to_owned() }
    }

    fn entry(payer: Arc<Noted>, opening: Held) -> Option<Entry> {
        Some(Entry { payer, connection: Box::new(()), opening })
    }

    #[test]
    fn what_comes_before_it_is_known_who_pays_is_paid_by_him_and_not_held_up() {
        let (address, user) = (Noted::new(Ok(Duration::from_secs(9))), Noted::new(Ok(Duration::from_secs(2))));
        let opening = Arc::new(());
        let mut purse = Purse::new(entry(address.clone(), Box::new(opening.clone())));
        let now = Instant::now();
        purse.pay(1, 100, now);
        assert!(purse.is_open(now) && !purse.may_open_stream(now));
        purse.pay(1, 200, now);
        assert!(purse.is_open(now));
        purse.belong_to(user.clone()).unwrap();
        assert_eq!(Arc::strong_count(&opening), 1, "it is given back");
        assert!(purse.may_open_stream(now));
        purse.pay(1, 50, now);
        assert_eq!((user.paid(), address.paid()), (vec![(3, 350)], vec![]));
        assert!(!purse.is_open(now) && !purse.may_open_stream(now));
        assert_eq!(purse.held_until(), Some(now + Duration::from_secs(2)));
        let later = now + Duration::from_secs(2);
        assert!(purse.may_open_stream(later) && purse.held_until().is_none());
        // Said once, it is said.
        purse.belong_to_address().unwrap();
        purse.pay(1, 1, later);
        assert_eq!((user.paid().len(), address.paid().len()), (2, 0));
    }

    #[test]
    fn who_is_too_fast_by_far_has_to_go_and_who_may_have_no_link_does_not_come_in() {
        let now = Instant::now();
        let mut purse = Purse::new(entry(Noted::new(Err(busy())), Box::new(())));
        purse.belong_to_address().unwrap();
        purse.pay(1, 1, now);
        assert!(!purse.is_open(now + Duration::from_secs(3600)));
        assert_eq!(purse.leaving(), Some(&busy()));

        let full = Noted { paid: Mutex::default(), answer: Ok(Duration::ZERO), opens: false };
        let mut purse = Purse::new(entry(Arc::new(full), Box::new(())));
        assert_eq!(purse.belong_to_address(), Err(busy()));
    }

    #[test]
    fn a_node_pays_nothing() {
        let (mut purse, now) = (Purse::new(None), Instant::now());
        purse.belong_to_address().unwrap();
        purse.pay(u64::MAX, usize::MAX, now);
        assert!(purse.may_open_stream(now) && purse.leaving().is_none() && purse.payer().is_none());
    }
}
