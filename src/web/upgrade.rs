//! From an HTTP request to a WebSocket.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::http::header::{
    AUTHORIZATION, CONNECTION, HOST, HeaderMap, HeaderName, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::api;
use super::guest::{self, Payer, Paying, Room, Turned};
use super::server::App;
use super::socket::Socket;
use crate::access::Subject;
use crate::auth::carrier::{Carried, CarrierError, of_request, selected_protocol};
use crate::quota::Busy;
use crate::sync::repo::{RepoConfig, RepoFault, RepoScope};

/// `GET /sync` and `GET /sync/{collection}`.
///
/// Whoever asks for a WebSocket is given one, and only there is told what is wrong: stock clients outside browsers die
/// of an HTTP error here. Addresses that are beyond their quota are not worth that much.
pub(super) async fn sync(State(app): State<App>, mut request: Request) -> Response {
    let key = match key_of(&request) {
        Ok(key) => key,
        Err(response) => return *response,
    };
    let room = request.extensions().get::<Room>().cloned();
    let (guest, mut refused) = match guest::admit(&app, &request) {
        Ok(guest) => (Some(guest), None),
        Err(Turned::Busy(busy)) => return api::busy(&busy),
        Err(why) => (None, Some(RepoFault::Unauthenticated(why.to_string()))),
    };
    let mut held = None;
    if let Some((_, payer)) = &guest {
        match payer.account.open(payer.is_proxied(), Instant::now()) {
            Ok(place) => held = place,
            Err(busy) if payer.account.is_user() => refused = Some(fault_of(&busy)),
            Err(busy) => return api::busy(&busy),
        }
    }
    let protocols = request.headers().get(SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok());
    let protocol = selected_protocol(protocols);
    let (config, denied) = config_of(&app, &request, guest.as_ref());
    let fault = refused.or_else(|| denied.map(RepoFault::Denied));
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _room = (room, held);
        let Ok(upgraded) = upgrade.await else { return };
        // It is what the server's connection was made from.
        let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else { return };
        let (stream, read) = (parts.io.into_inner(), parts.read_buf.to_vec());
        let mut socket = Box::pin(Socket::new(stream, read, app.shared.clone(), config, guest)).await;
        if let Some(fault) = fault {
            socket.end(fault);
        }
        socket.run().await;
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, "websocket"), (SEC_WEBSOCKET_ACCEPT, &*derive_accept_key(&key))];
    let mut response =
        (StatusCode::SWITCHING_PROTOCOLS, headers.map(|(name, value)| (name, value.to_owned())), Body::empty())
            .into_response();
    if let Some(protocol) = protocol {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    response
}

/// What a socket is closed with that is too much.
pub(super) fn fault_of(busy: &Busy) -> RepoFault {
    RepoFault::Busy { code: busy.close_code(), why: busy.to_string() }
}

/// The token that a request carries, if it carries one.
pub(super) fn carried(request: &Request) -> Result<Option<Carried>, CarrierError> {
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    of_request(text(AUTHORIZATION), text(SEC_WEBSOCKET_PROTOCOL), request.uri().query())
}

/// The handshake's key, or what is wrong with the request.
fn key_of(request: &Request) -> Result<Vec<u8>, Box<Response>> {
    let headers = request.headers();
    let asks = request.method() == Method::GET
        && has_word(headers, &CONNECTION, "upgrade")
        && has_word(headers, &UPGRADE, "websocket");
    if !asks {
        let text = "This is a WebSocket for automerge-repo: new WebSocketClientAdapter(\"ws://.../sync\").\n";
        return Err(Box::new((StatusCode::UPGRADE_REQUIRED, [(UPGRADE, "websocket")], text).into_response()));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let versions = [(SEC_WEBSOCKET_VERSION, "13")];
        let text = "WebSocket version 13 is spoken here.\n";
        return Err(Box::new((StatusCode::UPGRADE_REQUIRED, versions, text).into_response()));
    }
    match headers.get(SEC_WEBSOCKET_KEY) {
        Some(key) => Ok(key.as_bytes().to_vec()),
        None => Err(Box::new((StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing.\n").into_response())),
    }
}

/// What the session needs to know, and why the client is turned away, if it is.
fn config_of(app: &App, request: &Request, guest: Option<&(Subject, Payer)>) -> (RepoConfig, Option<String>) {
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let (scope, mut denied) = match RepoScope::of_path(request.uri().path()) {
        Ok(Some(scope)) => (scope, None),
        Ok(None) => (RepoScope::everything(), Some("nothing is served at this path".to_owned())),
        Err(error) => (RepoScope::everything(), Some(error.to_string())),
    };
    if let Some(origin) = request.headers().get(ORIGIN) {
        let origin = String::from_utf8_lossy(origin.as_bytes());
        if !app.origins.allow(&origin, text(HOST), app.address) {
            denied = Some(format!("pages of {origin} may not connect: start the server with --origin {origin}"));
        }
    }
    let config = RepoConfig {
        node: app.shared.database.node(),
        peer: app.peer.clone(),
        storage: app.shared.database.storage_id().to_string(),
        scope,
        principal: guest.map(|(subject, _)| subject.principal().to_owned()).unwrap_or_default(),
        permits: guest
            .map(|(subject, payer)| Arc::new(Paying { subject: subject.clone(), account: payer.account.clone() }) as _),
        common: app.common.clone(),
        limits: app.shared.database.limits().clone(),
    };
    (config, denied)
}

/// Whether a header that is a list of words has this one.
fn has_word(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let texts = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
}
