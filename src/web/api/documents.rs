//! Documents as JSON.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::header::{CONTENT_TYPE, ETAG, HeaderMap, IF_MATCH, LOCATION};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::Problem;
use super::{blocking, spend};
use crate::access::Subject;
use crate::document::{Edit, JsonPatch, Path, merge};
use crate::engine::{Collection, Database, DocHandle};
use crate::error::Error;
use crate::id::{ChangeHash, CollectionName, DocumentId, Heads, Lsn};
use crate::limits::api;
use crate::quota::Kind;
use crate::rules::Operation;
use crate::web::guest::Payer;
use crate::web::server::App;

/// The body of a request, or why there is none.
pub(super) type Body = Result<Bytes, BytesRejection>;

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";

/// `GET /v1/collections`
pub(super) async fn collections(
    State(app): State<App>,
    Extension(subject): Extension<Subject>,
) -> Result<Response, Problem> {
    let database = app.shared.database.clone();
    let names = blocking(&app, move || database.collections()).await?;
    let may_see =
        |name: &&CollectionName| subject.may_ever(Operation::List, name) || subject.may_ever(Operation::Get, name);
    let names: Vec<&str> = names.iter().filter(may_see).map(|name| name.as_str()).collect();
    Ok(answer(StatusCode::OK, &json!({ "collections": names })))
}

/// What a listing can be asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    after: Option<u64>,
    limit: Option<usize>,
    #[serde(default)]
    values: bool,
}

/// `GET /v1/collections/{collection}/documents`
pub(super) async fn list(
    State(app): State<App>,
    Extension(subject): Extension<Subject>,
    UrlPath(collection): UrlPath<String>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(page) = page.map_err(|error| query_problem(&error))?;
    let count = bounded(page.limit)?;
    let collection = app.shared.database.collection(&collection)?;
    let rows = blocking(&app, move || {
        let found = collection.list(Lsn(page.after.unwrap_or(0)), count)?;
        let (mut rows, mut bytes, mut next) = (Vec::with_capacity(found.len()), 0, None);
        let asked_for = found.len() == count;
        let mut rest = found.into_iter().peekable();
        while let Some((id, state)) = rest.next() {
            if !subject.may(Operation::List, id)? {
                if asked_for && rest.peek().is_none() {
                    next = Some(state.last_lsn.0);
                }
                continue;
            }
            let mut row = json!({
                "id": id.to_string(),
                "name": state.name,
                "heads": texts(&state.heads),
                "changes": state.change_count,
                "position": state.last_lsn.0,
            });
            if page.values {
                let value = collection.find(id)?.to_json()?;
                bytes += value.to_string().len();
                row["value"] = value;
            }
            rows.push(row);
            if bytes > api::BODY_BYTES_MAX || (asked_for && rest.peek().is_none()) {
                next = Some(state.last_lsn.0);
                break;
            }
        }
        Ok(json!({ "documents": rows, "next": next }))
    })
    .await?;
    Ok(answer(StatusCode::OK, &rows))
}

/// `POST /v1/collections/{collection}/documents`
pub(super) async fn create(
    State(app): State<App>,
    Extension(subject): Extension<Subject>,
    Extension(payer): Extension<Payer>,
    UrlPath(collection): UrlPath<String>,
    body: Body,
) -> Result<Response, Problem> {
    let value = parsed(body)?;
    let collection = app.shared.database.collection(&collection)?;
    spend(&payer, Kind::Documents, 1)?;
    let name = collection.name().clone();
    let (handle, commit) = blocking(&app, move || collection.create_as(subject.judge(), value)).await?;
    commit.await?;
    let heads = handle.heads()?;
    let location = format!("/v1/collections/{name}/documents/{}", handle.id());
    let body = json!({ "id": handle.id().to_string(), "heads": texts(&heads) });
    Ok(tagged(StatusCode::CREATED, &heads, &body, &[(LOCATION, location)]))
}

/// What a document can be read as.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Then {
    at: Option<String>,
}

/// `GET /v1/collections/{collection}/documents/{id}`
pub(super) async fn read(
    State(app): State<App>,
    Extension(subject): Extension<Subject>,
    UrlPath(place): UrlPath<(String, String)>,
    then: Result<Query<Then>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(then) = then.map_err(|error| query_problem(&error))?;
    let at = then.at.map(|text| heads_of("at", &text)).transpose()?;
    let (collection, id) = placed(&app.shared.database, &place)?;
    let (heads, value) = blocking(&app, move || {
        let handle = seen(&collection, id, &subject)?;
        handle.with_view(|view| {
            let heads = at.clone().unwrap_or_else(|| view.heads());
            let value = if let Some(at) = &at { view.to_json_at(at)? } else { view.to_json()? };
            Ok((heads, value))
        })
    })
    .await?;
    Ok(tagged(StatusCode::OK, &heads, &value, &[]))
}

/// `PUT /v1/collections/{collection}/documents/{id}`
pub(super) async fn replace(
    State(app): State<App>,
    Extension(subject): Extension<Subject>,
    UrlPath(place): UrlPath<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let value = parsed(body)?;
    change(&app, subject, &place, &headers, move |edit| Ok(edit.put(Path::root(), &value)?)).await
}

/// `PATCH /v1/collections/{collection}/documents/{id}`
pub(super) async fn patch(
    State(app): State<App>,
    Extension(subject): Extension<Subject>,
    UrlPath(place): UrlPath<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match kind.split(';').next().unwrap_or_default().trim() {
        JSON_PATCH => {
            let patch = JsonPatch::parse(parsed(body)?).map_err(Error::from)?;
            change(&app, subject, &place, &headers, move |edit| Ok(patch.apply(edit)?)).await
        }
        MERGE_PATCH => {
            let value = parsed(body)?;
            change(&app, subject, &place, &headers, move |edit| Ok(merge(edit, &value)?)).await
        }
        other => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "E0318",
            format!("{:?} is no kind of patch", crate::id::shortened(other)),
        )
        .fix(format!("send {MERGE_PATCH} or {JSON_PATCH}"))),
    }
}

/// `DELETE /v1/collections/{collection}/documents/{id}`
pub(super) async fn delete(
    State(app): State<App>,
    Extension(subject): Extension<Subject>,
    UrlPath(place): UrlPath<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if headers.contains_key(IF_MATCH) {
        return Err(Problem::parameter("If-Match", "a DELETE", "no heads: a deleted document keeps what is written"));
    }
    let (collection, id) = placed(&app.shared.database, &place)?;
    let commit = blocking(&app, move || {
        let deleted = collection.find(id).and_then(|handle| handle.delete_as(subject.judge()));
        deleted.map_err(|error| hidden(error, id, &subject))
    })
    .await?;
    commit.await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn change(
    app: &App,
    subject: Subject,
    place: &(String, String),
    headers: &HeaderMap,
    edits: impl FnOnce(&mut Edit<'_>) -> Result<(), Error> + Send + 'static,
) -> Result<Response, Problem> {
    let expected = match headers.get(IF_MATCH).map(|value| value.to_str().unwrap_or("?")) {
        None | Some("*") => None,
        Some(text) => Some(heads_of("If-Match", text)?),
    };
    let (collection, id) = placed(&app.shared.database, place)?;
    let (handle, commit) = blocking(app, move || {
        // Whether the heads are other ones is for those to know who may read.
        let handle = match expected.is_some() {
            true => seen(&collection, id, &subject)?,
            false => visible(&collection, id).map_err(|error| hidden(error, id, &subject))?,
        };
        let commit = handle.change_as(subject.judge(), None, |edit| {
            // Under the document's lock: nothing comes between this look and the edit.
            let found = edit.base();
            if expected.is_some_and(|expected| expected != found) {
                return Err(Error::Changed { found: tag(&found) });
            }
            edits(edit)
        });
        let commit = commit.map_err(|error| hidden(error, id, &subject))?;
        Ok((handle, commit))
    })
    .await?;
    let change = commit.await?.change;
    let heads = handle.heads()?;
    let body = json!({
        "id": handle.id().to_string(),
        "change": change.map(|change| change.to_string()),
        "heads": texts(&heads),
    });
    Ok(tagged(StatusCode::OK, &heads, &body, &[]))
}

fn placed(database: &Database, (collection, id): &(String, String)) -> Result<(Collection, DocumentId), Problem> {
    Ok((database.collection(collection)?, id.parse::<DocumentId>()?))
}

fn visible(collection: &Collection, id: DocumentId) -> Result<DocHandle, Error> {
    let handle = collection.find(id)?;
    if handle.state()?.visible { Ok(handle) } else { Err(Error::Deleted(id)) }
}

/// A document that somebody may read. For who may not, it is not here.
fn seen(collection: &Collection, id: DocumentId, subject: &Subject) -> Result<DocHandle, Error> {
    if subject.may(Operation::Get, id)? { visible(collection, id) } else { Err(Error::NotFound(id)) }
}

/// What somebody is told of an edit that failed: nothing, if he may not even read the document.
fn hidden(error: Error, id: DocumentId, subject: &Subject) -> Error {
    match error {
        Error::Denied(_) | Error::Deleted(_) | Error::OtherCollection { .. }
            if !subject.may(Operation::Get, id).unwrap_or(false) =>
        {
            Error::NotFound(id)
        }
        error => error,
    }
}

pub(super) fn parsed(body: Body) -> Result<Value, Problem> {
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let detail = format!("the body has more than {} bytes", api::BODY_BYTES_MAX);
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "E0319", detail).fix("send it in parts")
        }
        _ => Problem::body(&error.body_text()),
    })?;
    serde_json::from_slice(&body).map_err(|error| Problem::body(&error.to_string()))
}

pub(super) fn query_problem(error: &QueryRejection) -> Problem {
    let text = error.body_text();
    let why = text.split_once(": ").map_or(text.as_str(), |(_, why)| why);
    Problem::new(StatusCode::BAD_REQUEST, "E0311", format!("the query is not understood: {why}"))
        .fix("docs/http.md lists what each path can be asked for")
}

pub(super) fn bounded(limit: Option<usize>) -> Result<usize, Problem> {
    match limit {
        None => Ok(api::PAGE),
        Some(limit) if (1..=api::PAGE_MAX).contains(&limit) => Ok(limit),
        Some(limit) => {
            Err(Problem::parameter("limit", &limit.to_string(), &format!("a number from 1 to {}", api::PAGE_MAX)))
        }
    }
}

fn texts(heads: &Heads) -> Vec<String> {
    heads.as_slice().iter().map(ChangeHash::to_string).collect()
}

/// Heads in one word, as an entity tag holds them.
fn tag(heads: &Heads) -> String {
    texts(heads).join(".")
}

fn heads_of(name: &str, text: &str) -> Result<Heads, Problem> {
    let bare = text.trim().trim_start_matches("W/").trim_matches('"');
    let hashes: Result<Vec<ChangeHash>, _> =
        bare.split('.').filter(|hash| !hash.is_empty()).map(str::parse::<ChangeHash>).collect();
    let expected = "the heads of an ETag: hashes joined by dots";
    hashes.map(Heads::new).map_err(|_| Problem::parameter(name, text, expected))
}

pub(super) fn answer(status: StatusCode, body: &Value) -> Response {
    (status, [(CONTENT_TYPE, JSON)], format!("{body}\n")).into_response()
}

fn tagged(status: StatusCode, heads: &Heads, body: &Value, more: &[(HeaderName, String)]) -> Response {
    let mut response = answer(status, body);
    let tag = [(ETAG, format!("\"{}\"", tag(heads)))];
    for (name, text) in more.iter().chain(&tag) {
        // A document with more heads than a header has room for goes without: its heads are in the body.
        if text.len() <= 4096
            && let Ok(value) = text.parse()
        {
            response.headers_mut().insert(name.clone(), value);
        }
    }
    response
}
