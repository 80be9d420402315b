//! The change feed over HTTP: a page, a page once there is one, lines that go on, or server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use super::documents::{answer, bounded, query_problem};
use super::problem::Problem;
use super::{Held, blocking, hold};
use crate::access::{Subject, Vigil};
use crate::document::Patch;
use crate::feed::{ChangeFeed, Event, EventKind, FeedCursor, Item};
use crate::id::DocumentId;
use crate::limits::api;
use crate::rules::Operation;
use crate::web::guest::Payer;
use crate::web::server::{App, stopped};

/// What a feed can be asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    since: Option<String>,
    collection: Option<String>,
    document: Option<String>,
    feed: Option<Form>,
    limit: Option<usize>,
    timeout: Option<u64>,
    #[serde(default)]
    coalesced: bool,
    #[serde(default)]
    patches: bool,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Form {
    Normal,
    Longpoll,
    Sse,
    Ndjson,
}

/// `GET /v1/changes`
pub(super) async fn changes(
    State(app): State<App>,
    Extension(subject): Extension<Subject>,
    Extension(payer): Extension<Payer>,
    headers: HeaderMap,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(wanted) = wanted.map_err(|error| query_problem(&error))?;
    let accepts = |kind: &str| headers.get(ACCEPT).is_some_and(|value| value.to_str().is_ok_and(|v| v.contains(kind)));
    let form = wanted.feed.unwrap_or(match () {
        () if accepts("text/event-stream") => Form::Sse,
        () if accepts("application/x-ndjson") => Form::Ndjson,
        () => Form::Normal,
    });
    // A browser that connects again says where it was, whatever the address says.
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let feed = open(&app, &wanted, last)?;
    let held = if form == Form::Normal { None } else { Some(hold(payer)?) };
    let told = Told { app: app.clone(), patches: wanted.patches, subject, _held: held };
    match form {
        Form::Normal | Form::Longpoll => page(feed, &wanted, form == Form::Longpoll, &told).await,
        Form::Sse | Form::Ndjson => Ok(flow(feed, form, told)),
    }
}

/// What is told of events.
struct Told {
    app: App,
    /// With what they did to the document.
    patches: bool,
    /// Who is told.
    subject: Subject,
    _held: Option<Held>,
}

impl Told {
    /// An event as it is told; `None` when it is about a document that he may not see.
    async fn seen(&self, event: Event) -> Result<Option<Value>, Problem> {
        let (subject, document) = (self.subject.clone(), event.document);
        let may_see =
            !subject.is_restricted() || blocking(&self.app, move || subject.may(Operation::List, document)).await?;
        if may_see { self.json(event).await.map(Some) } else { Ok(None) }
    }

    async fn json(&self, event: Event) -> Result<Value, Problem> {
        if !self.patches || !matches!(event.kind, EventKind::Changed(_)) {
            return Ok(event.to_json()?);
        }
        let database = self.app.shared.database.clone();
        blocking(&self.app, move || {
            let mut json = event.to_json()?;
            json["patches"] = match event.patches(&database)? {
                Some(patches) => patches.iter().map(Patch::to_json).collect(),
                None => Value::Null,
            };
            Ok(json)
        })
        .await
    }
}

fn open(app: &App, wanted: &Wanted, last: Option<&str>) -> Result<ChangeFeed, Problem> {
    let mut changes = app.shared.database.changes();
    changes = match (&wanted.collection, &wanted.document) {
        (None, None) => changes,
        (Some(name), None) => changes.collection(name)?,
        (None, Some(id)) => changes.document(id.parse::<DocumentId>()?),
        (Some(_), Some(id)) => return Err(Problem::parameter("document", id, "a collection or a document, not both")),
    };
    if wanted.coalesced {
        changes = changes.coalesced();
    }
    changes = match last.or(wanted.since.as_deref()) {
        None | Some("beginning") => changes,
        Some("now") => changes.since_now(),
        Some(text) => match text.parse::<FeedCursor>() {
            Ok(cursor) => changes.since(cursor),
            Err(error) => {
                let expected = format!("a cursor as this server gave it, `beginning` or `now` ({error})");
                return Err(Problem::parameter("since", text, &expected));
            }
        },
    };
    Ok(changes.open()?)
}

/// So many items as there are now; or, when there are none, those that come first within the time.
async fn page(mut feed: ChangeFeed, wanted: &Wanted, waits: bool, told: &Told) -> Result<Response, Problem> {
    let mut stop = told.app.shared.stop.clone();
    let limit = bounded(wanted.limit)?;
    let seconds = wanted.timeout.unwrap_or(api::POLL_SECONDS);
    if seconds > api::POLL_SECONDS_MAX {
        let expected = format!("at most {} seconds", api::POLL_SECONDS_MAX);
        return Err(Problem::parameter("timeout", &seconds.to_string(), &expected));
    }
    let end = tokio::time::sleep(Duration::from_secs(seconds));
    tokio::pin!(end);
    let (mut events, mut opening, mut caught_up) = (Vec::new(), Value::Null, false);
    loop {
        while events.len() < limit
            && let Some(item) = feed.try_next().await?
        {
            match item {
                Item::Opened(opened) => opening = opened.to_json(),
                Item::Event(event) => {
                    caught_up = false;
                    events.extend(told.seen(event).await?);
                }
                Item::Progress { caught_up: reached, .. } => {
                    caught_up = reached;
                    // Through much that has nothing to tell: whoever asked may go on from here.
                    if !reached {
                        break;
                    }
                }
            }
        }
        if !waits || !events.is_empty() {
            break;
        }
        let more = tokio::select! {
            more = feed.wait() => more,
            () = &mut end => false,
            () = stopped(&mut stop) => false,
        };
        if !more {
            break;
        }
    }
    let body =
        json!({ "opened": opening, "events": events, "cursor": feed.cursor().to_string(), "caught_up": caught_up });
    Ok(answer(StatusCode::OK, &body))
}

/// One item after the other, for as long as somebody reads.
fn flow(feed: ChangeFeed, form: Form, told: Told) -> Response {
    let stop = told.app.shared.stop.clone();
    let kind = if form == Form::Sse { "text/event-stream" } else { "application/x-ndjson" };
    let vigil = told.subject.vigil();
    let lines = stream::unfold(Some((feed, stop, vigil, told)), move |state| async move {
        let (mut feed, mut stop, mut vigil, told) = state?;
        let (text, goes_on) = tokio::select! {
            next = next_lines(&mut feed, form, &told) => next,
            () = stopped(&mut stop) => return None,
            () = left(&mut vigil) => (last_line(&Problem::left(), form), false),
        };
        Some((Ok::<_, Infallible>(Bytes::from(text)), goes_on.then_some((feed, stop, vigil, told))))
    });
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-store")], Body::from_stream(lines)).into_response()
}

/// Waits until he has to go. What else changes, each event is asked about.
async fn left(vigil: &mut Vigil) {
    while vigil.next().await.is_none() {}
}

/// The next lines, and whether there may be more. Without anything to say for a while, a line without meaning.
async fn next_lines(feed: &mut ChangeFeed, form: Form, told: &Told) -> (String, bool) {
    let mut text = String::new();
    let silence = Duration::from_secs(api::SILENCE_SECONDS);
    let first = match tokio::time::timeout(silence, feed.next()).await {
        Err(_) => return (SILENCE[usize::from(form == Form::Sse)].to_owned(), true),
        Ok(None) => return (text, false),
        Ok(Some(item)) => item,
    };
    let mut next = first.map(Some);
    loop {
        let made = match next {
            Ok(Some(item)) => line(item, form, told).await,
            // Nothing of it was for him: a line without meaning, so that he knows that somebody is there.
            Ok(None) if text.is_empty() => return (SILENCE[usize::from(form == Form::Sse)].to_owned(), true),
            Ok(None) => return (text, true),
            Err(error) => Err(error.into()),
        };
        match made {
            Ok(line) => text.push_str(&line),
            Err(problem) => {
                text.push_str(&last_line(&problem, form));
                return (text, false);
            }
        }
        if text.len() >= api::STREAM_BYTES {
            return (text, true);
        }
        next = feed.try_next().await;
    }
}

async fn line(item: Item, form: Form, told: &Told) -> Result<String, Problem> {
    let (name, id, value) = match item {
        Item::Opened(opening) => ("opened", None, opening.to_json()),
        Item::Event(event) => {
            let cursor = event.cursor;
            match told.seen(event).await? {
                Some(json) => ("change", Some(cursor), json),
                None => return Ok(String::new()),
            }
        }
        Item::Progress { cursor, caught_up } => {
            let progress = json!({ "progress": { "cursor": cursor.to_string(), "caught_up": caught_up } });
            ("progress", Some(cursor), progress)
        }
    };
    Ok(written(name, id, &value, form))
}

/// A line without meaning, in lines and in server-sent events.
const SILENCE: [&str; 2] = ["\n", ":\n\n"];

/// What ends a stream that cannot go on; a new one may go on after the last cursor.
pub(super) fn last_line(problem: &Problem, form: Form) -> String {
    tracing::error!(?problem, "a stream ended");
    written("error", None, &json!({ "error": problem.to_json() }), form)
}

pub(super) fn written(name: &str, id: Option<FeedCursor>, value: &Value, form: Form) -> String {
    match (form, id) {
        (Form::Sse, Some(cursor)) => format!("event: {name}\nid: {cursor}\ndata: {value}\n\n"),
        (Form::Sse, None) => format!("event: {name}\ndata: {value}\n\n"),
        _ => format!("{value}\n"),
    }
}
