//! Who asks, from where, and whose account pays.
//!
//! An address pays for its connections and for tokens that are not accepted; everything else is paid by the user who
//! asks, or by his address where he is nobody in particular.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::http::HeaderName;
use axum::http::header::FORWARDED;
use tokio::sync::OwnedSemaphorePermit;

use super::server::App;
use super::upgrade::carried;
use crate::access::{Refusal, Subject};
use crate::auth::carrier::{Carried, CarrierError};
use crate::id::DocumentId;
use crate::quota::{Account, Arrival, Busy, Kind, Place, client_of};
use crate::sync::Permits;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Keeps the room of one connection taken for as long as somebody has it, and knows where it comes from.
#[derive(Clone)]
pub(super) struct Room(Arc<Inside>);

struct Inside {
    _permit: OwnedSemaphorePermit,
    peer: IpAddr,
    /// The account of its address; `None` for a proxy, each of whose requests comes from elsewhere.
    account: Option<Arc<Account>>,
    _connection: Option<Place>,
}

impl Room {
    /// The room of a connection, and what is to be kept until its first request has come.
    pub(super) fn new(permit: OwnedSemaphorePermit, peer: IpAddr, arrival: Option<Arrival>) -> (Self, Option<Place>) {
        let (mut account, mut connection, mut opening) = (None, None, None);
        if let Some(arrival) = arrival {
            (account, connection, opening) = (Some(arrival.account), Some(arrival.connection), Some(arrival.opening));
        }
        (Self(Arc::new(Inside { _permit: permit, peer, account, _connection: connection })), opening)
    }
}

/// Whose account pays for a request.
#[derive(Clone)]
pub(super) struct Payer {
    pub(super) account: Arc<Account>,
    /// That of his address, which pays for tokens that are not accepted.
    pub(super) address: Arc<Account>,
    /// The connection, as far as it is one of a proxy's.
    connection: Option<Arc<Place>>,
}

impl Payer {
    /// Whether the request came through a proxy.
    pub(super) fn is_proxied(&self) -> bool {
        self.connection.is_some()
    }
}

/// Why somebody is turned away before he is asked what he wants.
#[derive(Debug, thiserror::Error)]
pub(super) enum Turned {
    #[error("{0}")]
    Busy(Busy),
    #[error(transparent)]
    Carrier(#[from] CarrierError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<Busy> for Turned {
    fn from(busy: Busy) -> Self {
        Self::Busy(busy)
    }
}

/// Says who it is that asks, and who pays. A token is looked at only while its address may bring others.
pub(super) fn admit(app: &App, request: &Request) -> Result<(Subject, Payer), Turned> {
    let now = Instant::now();
    let (address, connection) = coming_from(app, request, now)?;
    let carried = carried(request)?;
    // Where nobody is asked anything, a token is not looked at.
    let token = carried.as_ref().map(Carried::token).filter(|_| app.access.is_restricted());
    let subject = match token {
        Some(token) => {
            let prove = || app.access.admit(Some(token));
            app.ledger.look(token, &address, now, prove, Refusal::is_of_token)??
        }
        None => app.access.admit(None)?,
    };
    let account = app.ledger.account(subject.principal(), &address, now);
    Ok((subject, Payer { account, address, connection }))
}

/// The account of the address that a request comes from. What a proxy brings counts as a connection of its own.
fn coming_from(app: &App, request: &Request, now: Instant) -> Result<(Arc<Account>, Option<Arc<Place>>), Busy> {
    let room = request.extensions().get::<Room>();
    if let Some(account) = room.and_then(|room| room.0.account.clone()) {
        return Ok((account, None));
    }
    let peer = room.map_or(app.address.ip(), |room| room.0.peer);
    let texts = |name: &HeaderName| -> Vec<&str> {
        // What cannot be read stands for a hop that nobody knows.
        request.headers().get_all(name).iter().map(|value| value.to_str().unwrap_or("?")).collect()
    };
    let from = client_of(peer, &app.proxies, &texts(&FORWARDED), &texts(&FORWARDED_FOR));
    let account = app.ledger.address(from, now);
    let place = account.enter(Kind::Connections)?;
    Ok((account, Some(Arc::new(place))))
}

/// What somebody may see and say, and pays for.
#[derive(Debug)]
pub(super) struct Paying {
    pub(super) subject: Subject,
    pub(super) account: Arc<Account>,
}

impl Permits for Paying {
    fn may_read(&self, document: DocumentId) -> bool {
        self.subject.may_read(document)
    }

    fn may_announce(&self, document: DocumentId) -> bool {
        self.subject.may_announce(document) && self.account.spend(Kind::Presence, 1, Instant::now()).is_ok()
    }
}
