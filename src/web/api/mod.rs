//! The HTTP API: documents as JSON, and the change feed, for whoever has no client of ours. `docs/http.md` shows it with
//! `curl`.
//!
//! `documents.rs` reads and writes them, `queries.rs` finds them, `changes.rs` tells what happens to them, `problem.rs`
//! says what went wrong in the form of RFC 9457.

mod changes;
mod documents;
mod problem;
mod queries;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HOST, HeaderMap, ORIGIN,
    VARY,
};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use futures_util::TryStreamExt as _;
use hyper::body::Body as _;
use tokio::sync::Semaphore;

use self::problem::Problem;
use super::guest::{self, Payer, Turned};
use super::server::App;
use crate::access::{Refusal, Subject};
use crate::auth::carrier::{PARAMETER, percent_decoded};
use crate::error::Error;
use crate::limits::api;
use crate::quota::{Busy, Kind, Place};

/// The routes below `/v1`.
pub(super) fn routes(app: &App) -> Router<App> {
    Router::new()
        .route("/v1/collections", get(documents::collections))
        .route("/v1/collections/{collection}/documents", get(documents::list).post(documents::create))
        .route(
            "/v1/collections/{collection}/documents/{id}",
            get(documents::read).put(documents::replace).patch(documents::patch).delete(documents::delete),
        )
        .route("/v1/collections/{collection}/query", post(queries::query))
        .route("/v1/collections/{collection}/listen", get(queries::listen))
        .route("/v1/collections/{collection}/indexes", get(queries::indexes).post(queries::declare_index))
        .route("/v1/collections/{collection}/indexes/{index}", delete(queries::drop_index))
        .route("/v1/changes", get(changes::changes))
        .route("/v1/{*rest}", axum::routing::any(|| async { Problem::no_route() }))
        .method_not_allowed_fallback(|| async { Problem::no_method() })
        .layer(DefaultBodyLimit::max(api::BODY_BYTES_MAX))
        .layer(from_fn_with_state(app.clone(), guard))
}

/// The answer to somebody who has had as much as he may have for now.
pub(super) fn busy(busy: &Busy) -> Response {
    Problem::busy(busy).into_response()
}

/// The same as bytes, for a connection that nothing is read of.
pub(super) fn busy_text(busy: &Busy) -> String {
    Problem::busy(busy).into_text()
}

/// Pages of others may not use the API through their visitors' browsers, neither by asking from elsewhere nor by giving
/// a name of theirs this machine's address.
async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Response {
    if let Some(problem) = refusal(&app, request.headers()) {
        return problem.into_response();
    }
    let origin = request.headers().get(ORIGIN).cloned();
    let asks_whether = request.method() == Method::OPTIONS
        && origin.is_some()
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match asks_whether {
        true => may_ask(),
        false => match guest_of(&app, &request) {
            Ok((subject, payer)) => {
                request.extensions_mut().insert(subject);
                request.extensions_mut().insert(payer.clone());
                without_token(&mut request);
                answered(&app, &payer, request, next).await
            }
            Err(problem) => problem.into_response(),
        },
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(
            ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("etag, location, retry-after, x-request-id"),
        );
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
    response
}

/// Takes the token out of the address: it is no parameter of what is asked for, and belongs in no error and no log.
fn without_token(request: &mut Request) {
    let uri = request.uri();
    let Some(query) = uri.query().filter(|query| query.contains('=')) else { return };
    let is_token =
        |pair: &&str| percent_decoded(pair.split('=').next().unwrap_or_default()).is_some_and(|name| name == PARAMETER);
    let rest: Vec<&str> = query.split('&').filter(|pair| !is_token(pair)).collect();
    let separator = if rest.is_empty() { "" } else { "?" };
    if let Ok(bare) = format!("{}{separator}{}", uri.path(), rest.join("&")).parse() {
        *request.uri_mut() = bare;
    }
}

/// Who it is that asks, and who pays for the request.
fn guest_of(app: &App, request: &Request) -> Result<(Subject, Payer), Problem> {
    let guest = guest::admit(app, request).map_err(|turned| {
        let code = match &turned {
            Turned::Busy(busy) => return Problem::busy(busy),
            Turned::Refused(Refusal::Missing) => "E0201",
            Turned::Refused(Refusal::Token(error)) => error.code(),
            Turned::Refused(Refusal::NoAuthority) | Turned::Carrier(_) => "E0202",
        };
        Problem::unauthenticated(code, &turned.to_string())
    })?;
    spend(&guest.1, Kind::Requests, 1)?;
    Ok(guest)
}

/// Pays for so many, if one more fits.
fn spend(payer: &Payer, kind: Kind, count: u64) -> Result<(), Problem> {
    payer.account.spend(kind, count, Instant::now()).map_err(|busy| Problem::busy(&busy))
}

/// What somebody holds while he is told something for long.
type Held = (Payer, Place);

/// Takes one of the streams that somebody may have at once.
fn hold(payer: Payer) -> Result<Held, Problem> {
    let place = payer.account.enter(Kind::Streams).map_err(|busy| Problem::busy(&busy))?;
    Ok((payer, place))
}

/// Pays for the body of a request: beforehand, where its length is said, else as it comes.
fn paid(payer: &Payer, request: Request) -> Result<Request, Problem> {
    let length = request.body().size_hint().exact();
    if length == Some(0) {
        return Ok(request);
    }
    // No more of it is read.
    spend(payer, Kind::Bytes, length.unwrap_or(1).min(api::BODY_BYTES_MAX as u64))?;
    if length.is_some() {
        return Ok(request);
    }
    let account = payer.account.clone();
    Ok(request.map(|body| {
        let pay = move |part: &Bytes| {
            account.owe(Kind::Bytes, part.len() as u64, Instant::now());
        };
        Body::from_stream(body.into_data_stream().inspect_ok(pay))
    }))
}

/// What a browser is told that asks whether a page of an allowed origin may send a request.
fn may_ask() -> Response {
    let told = [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, PATCH, DELETE"),
        (ACCESS_CONTROL_ALLOW_HEADERS, "accept, authorization, cache-control, content-type, if-match, last-event-id"),
        (ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, told).into_response()
}

async fn answered(app: &App, payer: &Payer, request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let request = match paid(payer, request) {
        Ok(request) => request,
        Err(problem) => return problem.into_response(),
    };
    // Bodies take memory while they are read, so only so many are; whoever is slow gives up the room.
    let time = Duration::from_secs(api::BODY_SECONDS);
    let done = tokio::time::timeout(time, async {
        let _own = payer.account.bodies().acquire().await;
        let _room = app.bodies.acquire().await;
        next.run(request).await
    });
    done.await.unwrap_or_else(|_| Problem::slow().into_response())
}

fn refusal(app: &App, headers: &HeaderMap) -> Option<Problem> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(HOST);
    if let Some(origin) = text(ORIGIN)
        && !app.origins.allow(origin, host, app.address)
    {
        return Some(Problem::origin(origin));
    }
    // A browser names the page's own host here, and says no origin when the page asks where it came from.
    let host = host?;
    let as_origin = format!("http://{host}");
    (app.address.ip().is_loopback() && !app.origins.allow(&as_origin, None, app.address)).then(|| Problem::host(host))
}

/// Runs what may block, on a thread that may, when there is room for it.
async fn blocking<T: Send + 'static>(
    app: &App,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Problem> {
    in_room(app.workers.clone(), work).await
}

/// The room is held until that has ended, also where nobody waits for it any more.
async fn in_room<T: Send + 'static>(
    workers: Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Problem> {
    let room = workers.acquire_owned().await.map_err(|_| Error::Closed)?;
    let done = tokio::task::spawn_blocking(move || {
        let _room = room;
        work()
    });
    Ok(done.await.map_err(|error| Problem::internal(&error.to_string()))??)
}
