//! Queries over HTTP: asked once, or listened to with server-sent events; and the indexes that answer them.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path as UrlPath, Query as UrlQuery, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::changes::{Form, last_line, written};
use super::documents::{Body as Received, answer, parsed, query_problem};
use super::problem::Problem;
use super::{Held, blocking, hold};
use crate::access::{Place, Subject, Vigil};
use crate::engine::Collection;
use crate::error::{Error, QueryError};
use crate::limits::{api, queries};
use crate::query::{IndexState, ListenOptions, Listener, Query, QuerySnapshot};
use crate::rules::Operation;
use crate::web::guest::Payer;
use crate::web::server::{App, stopped};

/// `POST /v1/collections/{collection}/query`
pub(super) async fn query(
    State(app): State<App>,
    Extension(subject): Extension<Subject>,
    UrlPath(collection): UrlPath<String>,
    body: Received,
) -> Result<Response, Problem> {
    let asked = parsed(body)?;
    let collection = app.shared.database.collection(&collection)?;
    let (query, counts) = collection.query_of_json(&asked)?;
    may_list(&subject, &collection)?;
    let query = query.seen_through(subject.sieve(collection.name()));
    ready(&query).await?;
    let found = blocking(&app, move || {
        if counts {
            let (count, position) = query.run_count()?;
            return Ok(json!({ "count": count, "position": position.to_string() }));
        }
        let snapshot = query.run()?;
        let documents: Vec<Value> = snapshot.docs().iter().map(|document| document.to_json()).collect();
        let metadata = snapshot.metadata();
        Ok(json!({
            "documents": documents,
            "position": metadata.position.to_string(),
            "from_cache": metadata.from_cache,
            "has_pending_writes": metadata.has_pending_writes,
        }))
    });
    Ok(answer(StatusCode::OK, &found.await?))
}

/// Waits until a query can be answered, as long as a request may.
async fn ready(query: &Query) -> Result<(), Problem> {
    let time = Duration::from_millis(queries::WAIT_MS);
    match tokio::time::timeout(time, query.ready()).await {
        Ok(ready) => Ok(ready?),
        Err(_) => Err(query.not_ready().into()),
    }
}

/// What a listener can be asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    query: Option<String>,
    since: Option<String>,
    #[serde(default)]
    patches: bool,
    #[serde(default)]
    conflicts: bool,
}

/// `GET /v1/collections/{collection}/listen`
pub(super) async fn listen(
    State(app): State<App>,
    Extension(subject): Extension<Subject>,
    Extension(payer): Extension<Payer>,
    UrlPath(collection): UrlPath<String>,
    headers: HeaderMap,
    wanted: Result<UrlQuery<Wanted>, QueryRejection>,
) -> Result<Response, Problem> {
    let UrlQuery(wanted) = wanted.map_err(|error| query_problem(&error))?;
    let asked: Value = match &wanted.query {
        None => json!({}),
        Some(text) => serde_json::from_str(text).map_err(|error| {
            Error::from(QueryError::malformed(format!("query: is no JSON: {error}"), "docs/queries.md shows its form"))
        })?,
    };
    let collection = app.shared.database.collection(&collection)?;
    let (query, counts) = collection.query_of_json(&asked)?;
    // From before anything is decided: what changes until the first snapshot is made must not go by unseen.
    let vigil = subject.vigil().with_the_time().of_his_decisions();
    may_list(&subject, &collection)?;
    let query = query.seen_through(subject.sieve(collection.name()));
    if counts {
        let why = "a listener tells documents, and not only their number";
        return Err(Error::from(QueryError::malformed(why, "leave `count` out, or ask once")).into());
    }
    let mut options = ListenOptions::default();
    // A browser that connects again says where it was, whatever the address says.
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    if let Some(text) = last.or(wanted.since.as_deref()) {
        let since = text.parse::<Place>().map(|place| place.feed).map_err(|error| {
            Problem::parameter("since", text, &format!("a position as this server gave it ({error})"))
        })?;
        options = options.since(since);
    }
    if wanted.patches {
        options = options.patches();
    }
    if wanted.conflicts {
        options = options.conflicts();
    }
    let held = hold(payer)?;
    let mut listener = query.on_snapshot(options)?;
    ready(&query).await?;
    let (listener, first) = blocking(&app, move || {
        let first = listener.try_next()?;
        Ok((listener, first))
    })
    .await?;
    let first = first.map(|snapshot| line(&snapshot)).unwrap_or_default();
    let told = Told { listener, subject, vigil, _held: held };
    Ok(flow(first, told, app.shared.stop.clone()))
}

/// A listener, and who listens.
struct Told {
    listener: Listener,
    subject: Subject,
    vigil: Vigil,
    _held: Held,
}

impl Told {
    /// The next lines; `None` at the end.
    async fn next(&mut self) -> Option<Result<String, Problem>> {
        loop {
            let mut may_see_others = tokio::select! {
                goes_on = self.listener.wait() => if goes_on { false } else { return None },
                leave = self.vigil.next() => if leave.is_none() { true } else { return Some(Err(Problem::left())) },
            };
            // What is known of the result was looked at when it became known.
            if self.vigil.is_behind() {
                self.vigil.catch_up();
                may_see_others = true;
            }
            match self.told(may_see_others).await {
                Ok(Some(snapshot)) if !snapshot.doc_changes().is_empty() => return Some(Ok(line(&snapshot))),
                // He may see what he saw before.
                Ok(_) => {}
                Err(error) => return Some(Err(error.into())),
            }
        }
    }

    /// What changed, if anything did. When this is dropped, the listener has taken it in all the same.
    async fn told(&mut self, may_see_others: bool) -> Result<Option<QuerySnapshot>, Error> {
        if may_see_others {
            let sieve = self.subject.sieve(self.listener.collection());
            self.listener.sift(sieve)?;
        }
        if self.listener.is_new() {
            self.listener.ready().await?;
        }
        self.listener.try_next()
    }
}

/// One snapshot after the other, for as long as somebody reads.
fn flow(first: String, told: Told, stop: watch::Receiver<bool>) -> Response {
    let begin = Some((first, told, stop));
    let lines = stream::unfold(begin, move |state| async move {
        let (ready, mut told, mut stop) = state?;
        if !ready.is_empty() {
            return Some((Ok::<_, Infallible>(Bytes::from(ready)), Some((String::new(), told, stop))));
        }
        let silence = Duration::from_secs(api::SILENCE_SECONDS);
        let next = tokio::select! {
            next = tokio::time::timeout(silence, told.next()) => next,
            () = stopped(&mut stop) => return None,
        };
        match next {
            Err(_) => Some((Ok(Bytes::from_static(b":\n\n")), Some((String::new(), told, stop)))),
            Ok(None) => None,
            Ok(Some(Ok(lines))) => Some((Ok(Bytes::from(lines)), Some((String::new(), told, stop)))),
            Ok(Some(Err(problem))) => Some((Ok(Bytes::from(last_line(&problem, Form::Sse))), None)),
        }
    });
    ([(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")], Body::from_stream(lines)).into_response()
}

fn line(snapshot: &QuerySnapshot) -> String {
    written("snapshot", Some(&snapshot.metadata().position.to_string()), &snapshot.changes_to_json(), Form::Sse)
}

/// `GET /v1/collections/{collection}/indexes`
pub(super) async fn indexes(
    State(app): State<App>,
    Extension(subject): Extension<Subject>,
    UrlPath(collection): UrlPath<String>,
) -> Result<Response, Problem> {
    only_admin(&subject)?;
    let collection = app.shared.database.collection(&collection)?;
    let indexes = blocking(&app, move || collection.indexes()).await?;
    let indexes: Vec<Value> = indexes.iter().map(IndexState::to_json).collect();
    Ok(answer(StatusCode::OK, &json!({ "indexes": indexes })))
}

/// What an index is declared as.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    fields: Vec<String>,
}

/// `POST /v1/collections/{collection}/indexes`
pub(super) async fn declare_index(
    State(app): State<App>,
    Extension(subject): Extension<Subject>,
    UrlPath(collection): UrlPath<String>,
    body: Received,
) -> Result<Response, Problem> {
    only_admin(&subject)?;
    let declared = Declared::deserialize(parsed(body)?).map_err(|error| Problem::body(&error.to_string()))?;
    let collection = app.shared.database.collection(&collection)?;
    let state = blocking(&app, move || collection.declare_index(declared.fields)).await?;
    Ok(answer(StatusCode::ACCEPTED, &state.to_json()))
}

/// `DELETE /v1/collections/{collection}/indexes/{index}`
pub(super) async fn drop_index(
    State(app): State<App>,
    Extension(subject): Extension<Subject>,
    UrlPath((collection, index)): UrlPath<(String, String)>,
) -> Result<Response, Problem> {
    only_admin(&subject)?;
    let collection = app.shared.database.collection(&collection)?;
    blocking(&app, move || collection.drop_index(&index)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Where the rules let nobody list anything, nothing is read to find that out.
fn may_list(subject: &Subject, collection: &Collection) -> Result<(), Error> {
    match subject.may_ever(Operation::List, collection.name()) {
        true => Ok(()),
        false => Err(Error::Denied(format!("the rules let nobody list what is in {}", collection.name()))),
    }
}

/// Indexes take room and time of everybody, and tell which fields there are.
fn only_admin(subject: &Subject) -> Result<(), Problem> {
    if subject.is_admin() { Ok(()) } else { Err(Problem::not_admin()) }
}
