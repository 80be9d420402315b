//! The demonstration at `/demo/`: one page with two clients of one document, built from stock automerge-repo.
//!
//! Its sources are in `examples/demo`; what is served is built from them, compressed, and part of the program.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

/// The page may load and connect to nothing but this server.
const POLICY: &str = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self' ws: wss:; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

macro_rules! built {
    ($name:literal) => {
        include_bytes!(concat!("../../examples/demo/dist/", $name, ".gz"))
    };
}

/// Path below `/demo/`, type, and the file as gzip.
const FILES: [(&str, &str, &[u8]); 6] = [
    ("", "text/html; charset=utf-8", built!("index.html")),
    ("main.js", "text/javascript; charset=utf-8", built!("main.js")),
    ("main.css", "text/css; charset=utf-8", built!("main.css")),
    ("icon.svg", "image/svg+xml", built!("icon.svg")),
    ("licenses.txt", "text/plain; charset=utf-8", built!("licenses.txt")),
    ("automerge.wasm", "application/wasm", built!("automerge.wasm")),
];

/// The routes of the demonstration.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    // Its addresses are relative, so it needs the slash.
    let routes = Router::new().route("/demo", get(|| async { Redirect::permanent("/demo/") }));
    FILES.into_iter().fold(routes, |routes, (name, kind, bytes)| {
        routes.route(&format!("/demo/{name}"), get(move || async move { file(kind, bytes) }))
    })
}

/// Every browser reads gzip; it is sent as it is stored.
fn file(kind: &'static str, bytes: &'static [u8]) -> Response {
    let headers: [(HeaderName, &str); 5] = [
        (CONTENT_TYPE, kind),
        (CONTENT_ENCODING, "gzip"),
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, bytes).into_response()
}
