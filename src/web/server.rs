//! One TCP port: accepts, bounds and routes connections.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{any, get};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::guest::{self, Room, Turned};
use super::meter::ReceiveBudget;
use super::origin::AllowedOrigins;
use super::socket::Shared;
use super::switchboard::Switchboard;
use super::turned::Doorman;
use super::{api, demo, metrics, upgrade};
use crate::access::Access;
use crate::engine::Database;
use crate::quota::{Kind, Ledger, Place, Quotas};
use crate::sync::repo::RepoCommon;

/// How long the head of a request may take, and a connection be idle before its next one.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The longest head of a request.
const HEAD_BYTES: usize = 16 << 10;
/// How long accepting pauses when the system has no room for one more connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a server is started.
#[derive(Debug, Clone)]
pub struct WebOptions {
    /// The TCP address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whose pages may connect.
    pub origins: AllowedOrigins,
    /// Whether what clients send is logged without being tried on its document first.
    pub structural: bool,
    /// Who may do what; `None` where anybody may do everything.
    pub access: Option<Access>,
    /// How much one address, and one user, may have.
    pub quotas: Quotas,
    /// Proxies that are believed where what they bring comes from (`Forwarded`, `X-Forwarded-For`).
    pub proxies: Vec<IpAddr>,
}

/// Why a server cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebError {
    /// Somebody listens there already.
    #[error("TCP address {address} is in use")]
    AddressInUse {
        /// Where.
        address: SocketAddr,
    },
    /// The address cannot be had.
    #[error("cannot listen on TCP address {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// A running HTTP port. Dropped, it accepts nothing more; [`WebServer::close`] ends it in order.
pub struct WebServer {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    rooms: Arc<Semaphore>,
    connections_max: usize,
    tasks: Vec<JoinHandle<()>>,
}

/// What every request can reach.
#[derive(Clone)]
pub(super) struct App {
    pub(super) shared: Shared,
    pub(super) origins: Arc<AllowedOrigins>,
    pub(super) address: SocketAddr,
    /// Who we are among automerge-repo's peers.
    pub(super) peer: String,
    /// What the sessions share.
    pub(super) common: Arc<RepoCommon>,
    /// Room for requests that bring something.
    pub(super) bodies: Arc<Semaphore>,
    /// Room for requests that read or write documents.
    pub(super) workers: Arc<Semaphore>,
    /// As much of it as feeds may have that find out what their readers may see.
    pub(super) tellers: Arc<Semaphore>,
    /// Who may do what.
    pub(super) access: Access,
    /// What everybody has of the server.
    pub(super) ledger: Arc<Ledger>,
    /// Who is believed where requests come from.
    pub(super) proxies: Arc<[IpAddr]>,
}

impl WebServer {
    /// Binds the port and serves it. Once this returns, clients are answered.
    ///
    /// # Errors
    /// [`WebError`] when the port cannot be had.
    pub async fn start(database: Database, options: WebOptions) -> Result<Self, WebError> {
        let ledger = Arc::new(Ledger::new(options.quotas.clone()));
        Self::start_beside(database, options, ledger).await
    }

    /// [`Self::start`], where there are other doors whose guests have the same accounts: `ledger` is in force, not the
    /// quotas of the options.
    pub(crate) async fn start_beside(
        database: Database,
        options: WebOptions,
        ledger: Arc<Ledger>,
    ) -> Result<Self, WebError> {
        let listener = bind(options.listen).await?;
        let failed = |source| WebError::Bind { address: options.listen, source };
        let address = listener.local_addr().map_err(failed)?;
        let (stop, stopped) = watch::channel(false);
        let limits = database.limits().clone();
        let switchboard = Arc::new(Switchboard::new(limits.repo_remembered_heads));
        let following = switchboard.clone();
        let followed = database.clone();
        let access = options.access.unwrap_or_else(|| Access::open(database.clone()));
        // Heard from before the first request on: nothing that a decision rests on changes unseen.
        let access_follows = access.follow(database.changed_documents());
        let app = App {
            access,
            ledger: ledger.clone(),
            proxies: options.proxies.iter().map(IpAddr::to_canonical).collect(),
            peer: format!("tidelog-{}", database.node().short()),
            shared: Shared {
                database,
                switchboard,
                is_trusting: options.structural,
                ledger,
                budget: ReceiveBudget::new(limits.repo_receive_bytes),
                stop: stopped.clone(),
            },
            common: Arc::default(),
            bodies: Arc::new(Semaphore::new(crate::limits::api::BODIES)),
            workers: Arc::new(Semaphore::new(crate::limits::api::WORKERS)),
            tellers: Arc::new(Semaphore::new(crate::limits::api::TELLERS)),
            origins: Arc::new(options.origins),
            address,
        };
        let connections_max = limits.connections_max;
        let rooms = Arc::new(Semaphore::new(connections_max));
        let tasks = vec![
            tokio::spawn(async move { following.follow(followed).await }),
            tokio::spawn(access_follows),
            tokio::spawn(accept(listener, app, rooms.clone(), stopped)),
        ];
        Ok(Self { address, stop, rooms, connections_max, tasks })
    }

    /// Says whether a port can be had, without keeping it.
    ///
    /// # Errors
    /// [`WebError`] when it cannot.
    pub async fn try_port(address: SocketAddr) -> Result<(), WebError> {
        bind(address).await.map(drop)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nothing more, tells every client that the server ends, and waits for the connections to end.
    ///
    /// # Cancel safety
    /// Dropped, connections that have not ended are cut when the process ends.
    pub async fn close(self) {
        self.stop.send_replace(true);
        let all = u32::try_from(self.connections_max).unwrap_or(u32::MAX);
        // Every connection gives its room back when it ends.
        let _ = self.rooms.acquire_many(all).await;
        self.tasks.into_iter().for_each(|task| task.abort());
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, WebError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => WebError::AddressInUse { address },
        _ => WebError::Bind { address, source },
    })
}

fn routes(app: App) -> Router {
    Router::new()
        .route("/sync", any(upgrade::sync))
        .route("/sync/{*collection}", any(upgrade::sync))
        .merge(demo::routes())
        .merge(api::routes(&app))
        .route("/", get(|| async { Redirect::to("/demo/") }))
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .fallback(|| async {
            (
                StatusCode::NOT_FOUND,
                "Nothing is here. The WebSocket is at /sync, the API at /v1, a demonstration at /demo.\n",
            )
        })
        .with_state(app)
}

async fn metrics(State(app): State<App>, request: axum::extract::Request) -> Response {
    let admitted = guest::admit(&app, &request).and_then(|(subject, payer)| {
        payer.account.spend(Kind::Requests, 1, Instant::now())?;
        Ok(subject)
    });
    match admitted {
        Ok(subject) if subject.may_watch() => {
            let numbers = metrics::render(&app.shared, &app.access, &app.ledger);
            ([(CONTENT_TYPE, "text/plain; version=0.0.4")], numbers).into_response()
        }
        Ok(_) => (StatusCode::FORBIDDEN, "These are for the roles `admin` and `metrics`.\n").into_response(),
        Err(Turned::Busy(busy)) => api::busy(&busy),
        Err(why) => (StatusCode::UNAUTHORIZED, format!("{why}\n")).into_response(),
    }
}

/// Whether what is written here is taken.
async fn ready(State(app): State<App>) -> (StatusCode, String) {
    match app.shared.database.status() {
        status if status.failure.is_some() || status.disk_full => {
            let why = status.failure.unwrap_or_else(|| "the disk is full".into());
            (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
        }
        _ => (StatusCode::OK, "ok\n".into()),
    }
}

async fn accept(listener: TcpListener, app: App, rooms: Arc<Semaphore>, mut stop: watch::Receiver<bool>) {
    let (ledger, proxies, doorman) = (app.ledger.clone(), app.proxies.clone(), Doorman::new());
    let routes = routes(app);
    loop {
        // Without room nobody is accepted: who waits to be is better off than who is cut off.
        let Ok(room) = rooms.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = stopped(&mut stop) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                // A keystroke is not held back to be sent with the next.
                let _ = stream.set_nodelay(true);
                let peer = peer.ip().to_canonical();
                let arrival = match proxies.contains(&peer) {
                    // Where it comes from each request says.
                    true => None,
                    false => match ledger.arrive(peer, Instant::now()) {
                        Ok(arrival) => Some(arrival),
                        Err(busy) => {
                            doorman.turn_away(stream, busy);
                            continue;
                        }
                    },
                };
                let (room, opening) = Room::new(room, peer, arrival);
                tokio::spawn(serve(stream, routes.clone(), room, opening, stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The routes, each of whose requests knows the room of its connection.
struct Roomed {
    routes: TowerToHyperService<Router>,
    room: Room,
    /// Held until the head of its first request has come.
    opening: Mutex<Option<Place>>,
}

impl hyper::service::Service<Request<Incoming>> for Roomed {
    type Response = Response;
    type Error = Infallible;
    type Future = <TowerToHyperService<Router> as hyper::service::Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        drop(self.opening.lock().unwrap_or_else(PoisonError::into_inner).take());
        request.extensions_mut().insert(self.room.clone());
        self.routes.call(request)
    }
}

/// Waits until the server ends.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A server that is gone has ended as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn serve(stream: TcpStream, routes: Router, room: Room, opening: Option<Place>, mut stop: watch::Receiver<bool>) {
    let service = Roomed { routes: TowerToHyperService::new(routes), room, opening: Mutex::new(opening) };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}
