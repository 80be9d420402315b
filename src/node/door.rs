//! Users who come over QUIC: the same rights as on the HTTP port, and the same accounts.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access::{Access, Refusal, Vigil};
use crate::net::{Change, CloseCode, Doorkeeper, Entry, Held, Payer, Toll, TurnedAway, Visitor, Watch};
use crate::quota::{Account, Arrival, Busy, Kind, Ledger};
use crate::sync::{Permits, Proven};

/// Lets users in over QUIC.
#[derive(Debug)]
pub(super) struct Door {
    access: Access,
    ledger: Arc<Ledger>,
}

impl Door {
    pub(super) fn new(access: Access, ledger: Arc<Ledger>) -> Self {
        Self { access, ledger }
    }
}

impl Doorkeeper for Door {
    fn admit(&self, token: Option<&str>, address: IpAddr) -> Result<Visitor, TurnedAway> {
        let now = now();
        let address = self.ledger.address(address, now);
        let proven = match token {
            Some(token) => {
                let prove = || self.access.admit(Some(token));
                self.ledger.look(token, &address, now, prove, Refusal::is_of_token).map_err(busy)?
            }
            None => self.access.admit(None),
        };
        let subject =
            proven.map_err(|refusal| TurnedAway { code: CloseCode::TokenRefused, why: refusal.to_string() })?;
        let account = self.ledger.account(subject.principal(), &address, now);
        let permits = self.access.rules().is_some().then(|| Arc::new(subject.clone()) as Arc<dyn Permits>);
        Ok(Visitor {
            proven: Proven { principal: subject.principal().to_owned(), permits },
            watch: Box::new(Changes(subject.vigil().with_the_time())),
            judge: Some(Arc::new(subject)),
            payer: Arc::new(Tab(account)),
        })
    }
}

struct Changes(Vigil);

impl Watch for Changes {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Change> + Send + '_>> {
        Box::pin(async {
            match self.0.next().await {
                Some(leave) => Change::Leave(leave),
                None if self.0.is_by_time() => Change::Time,
                None => Change::Rights,
            }
        })
    }
}

/// Says how many may come over QUIC from an address.
#[derive(Debug)]
pub(super) struct Gate(pub(super) Arc<Ledger>);

impl Toll for Gate {
    fn has_room(&self, address: IpAddr) -> bool {
        self.0.has_room(address, now())
    }

    fn arrive(&self, address: IpAddr) -> Result<Entry, TurnedAway> {
        let Arrival { account, connection, opening } = self.0.arrive(address, now()).map_err(busy)?;
        Ok(Entry { payer: Arc::new(Tab(account)), connection: Box::new(connection), opening: Box::new(opening) })
    }
}

/// An account that links pay from.
#[derive(Debug)]
struct Tab(Arc<Account>);

impl Payer for Tab {
    fn open(&self) -> Result<Held, TurnedAway> {
        Ok(Box::new(self.0.open(false, now()).map_err(busy)?))
    }

    fn read(&self, frames: u64, bytes: u64) -> Result<Duration, TurnedAway> {
        self.0.read(frames, bytes, now()).map_err(busy)
    }

    fn create(&self, documents: u64) -> Result<Duration, TurnedAway> {
        self.0.pay_in_time(Kind::Documents, documents, now()).map_err(busy)
    }
}

/// What somebody is told who has as much as he may.
fn busy(busy: Busy) -> TurnedAway {
    let code = match busy.kind {
        Kind::Connections | Kind::Openings | Kind::Streams => CloseCode::TooManyLinks,
        Kind::Handshakes | Kind::BadTokens => CloseCode::TooManyNewLinks,
        Kind::Requests | Kind::Frames | Kind::Bytes | Kind::Documents | Kind::Presence => CloseCode::Busy,
    };
    TurnedAway { code, why: busy.to_string() }
}

/// The runtime's clock, which is also that of the links' timers.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
