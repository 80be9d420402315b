//! Queries over HTTP: asked once, or listened to with server-sent events; and the indexes that answer them.

use std::convert::Infallible;
use std::time::{Duration, Instant};

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
    let told = Told { listener, subject, vigil, owed: Owed::Nothing, rests_until: Instant::now() };
    Ok(flow(first, told, held, app.shared.stop.clone()))
}

/// A listener, and who listens.
struct Told {
    listener: Listener,
    subject: Subject,
    vigil: Vigil,
    // Kept here, since whoever waits for what is told may stop at any time, and the vigil tells of each change once.
    owed: Owed,
    // Until then only what may not be seen any more is looked for: rights change faster than they can be asked about.
    rests_until: Instant,
}

/// What is still to be done since rights changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    Nothing,
    /// Everything is to be asked about anew.
    Everything,
    /// The same; what was told and may not be seen any more was taken away.
    AllButRemovals,
}

/// How the view is.
enum Stands {
    /// It has reached the log's end.
    Ready,
    HeldUp,
    /// Rights changed once more while it was waited for.
    AskedAgain,
}

/// How long a view is waited for when rights changed; after that what may not be seen any more is taken away without it.
const HELD_UP: Duration = Duration::from_millis(250);
/// How often rights may change while everything is asked about, until that waits, and for how long.
const ROUNDS: usize = 4;
const ROUNDS_REST: Duration = Duration::from_millis(500);

impl Told {
    /// The next lines; `None` at the end.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    async fn next(&mut self) -> Option<Result<String, Problem>> {
        loop {
            if self.owed == Owed::Nothing {
                tokio::select! {
                    goes_on = self.listener.wait() => if !goes_on { return None },
                    leave = self.vigil.next() => match leave {
                        None => self.owed = Owed::Everything,
                        Some(_) => return Some(Err(Problem::left())),
                    },
                }
            }
            match self.told().await {
                Ok(Some(snapshot)) if !snapshot.doc_changes().is_empty() => return Some(Ok(line(&snapshot))),
                // He may see what he saw before.
                Ok(_) => {}
                Err(problem) => return Some(Err(problem)),
            }
        }
    }

    /// What changed, if anything did. When this is dropped, the listener has taken it in all the same.
    async fn told(&mut self) -> Result<Option<QuerySnapshot>, Problem> {
        let (mut is_sifted, mut rounds) = (false, 0);
        loop {
            // What is known of the result was looked at when it became known.
            if self.vigil.is_behind() {
                if self.vigil.catch_up().is_some() {
                    return Err(Problem::left());
                }
                (self.owed, is_sifted) = (Owed::Everything, false);
            }
            if self.owed == Owed::Nothing {
                return Ok(self.listener.try_next()?);
            }
            // Rights are those of now. A document of before might never have been seen, and would be by these: nothing
            // is asked before the view has what came until then, nor told before it has what came while that was asked.
            match self.stands().await? {
                Stands::Ready if is_sifted => self.owed = Owed::Nothing,
                Stands::Ready if rounds < ROUNDS && Instant::now() >= self.rests_until => {
                    let sieve = self.subject.sieve(self.listener.collection());
                    self.listener.sift(sieve)?;
                    (is_sifted, rounds) = (true, rounds + 1);
                }
                Stands::AskedAgain => is_sifted = false,
                Stands::Ready | Stands::HeldUp => {
                    let sieve = self.subject.sieve(self.listener.collection());
                    self.owed = Owed::AllButRemovals;
                    if rounds == ROUNDS {
                        (self.rests_until, rounds) = (Instant::now() + ROUNDS_REST, 0);
                    }
                    if let Some(snapshot) = self.listener.take_away(sieve.as_deref())? {
                        return Ok(Some(snapshot));
                    }
                    tokio::time::sleep_until(self.rests_until.into()).await;
                }
            }
        }
    }

    /// Waits until the view is at the log's end, or something is to be done before.
    async fn stands(&mut self) -> Result<Stands, Problem> {
        let has_removed = self.owed == Owed::AllButRemovals;
        tokio::select! {
            biased;
            ready = self.listener.ready() => Ok(ready.map(|()| Stands::Ready)?),
            () = tokio::time::sleep(HELD_UP), if !has_removed => Ok(Stands::HeldUp),
            leave = self.vigil.next(), if has_removed => match leave {
                None => {
                    self.owed = Owed::Everything;
                    Ok(Stands::AskedAgain)
                }
                Some(_) => Err(Problem::left()),
            },
        }
    }
}

/// One snapshot after the other, for as long as somebody reads.
fn flow(first: String, told: Told, held: Held, stop: watch::Receiver<bool>) -> Response {
    let begin = Some((first, told, held, stop));
    let lines = stream::unfold(begin, move |state| async move {
        let (ready, mut told, held, mut stop) = state?;
        if !ready.is_empty() {
            return Some((Ok::<_, Infallible>(Bytes::from(ready)), Some((String::new(), told, held, stop))));
        }
        let silence = Duration::from_secs(api::SILENCE_SECONDS);
        let next = tokio::select! {
            next = tokio::time::timeout(silence, told.next()) => next,
            () = stopped(&mut stop) => return None,
        };
        match next {
            Err(_) => Some((Ok(Bytes::from_static(b":\n\n")), Some((String::new(), told, held, stop)))),
            Ok(None) => None,
            Ok(Some(Ok(lines))) => Some((Ok(Bytes::from(lines)), Some((String::new(), told, held, stop)))),
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tempfile::TempDir;

    use super::*;
    use crate::access::{Access, AccessOptions, Admittance};
    use crate::auth::{Authority, AuthorityOptions, Revocation, TokenOrder};
    use crate::engine::{Database, now_ms};
    use crate::id::{DocumentId, NodeId};
    use crate::log::MemoryStorage;
    use crate::rules::Rules;

    /// Notes may be read where their room is open.
    const OPEN: &str = "get(/rooms/$(resource.data.room)).data.open";

    /// A node, and ben, who listens to its notes.
    struct World {
        database: Database,
        access: Access,
        authority: Arc<Authority>,
        token_id: String,
        told: Told,
        query: Query,
        rooms: [DocumentId; 2],
        _place: TempDir,
    }

    impl World {
        /// `hall` is open, and `attic` is not. There are notes as `notes` says.
        fn new<const N: usize>(condition: &str, notes: [&Value; N]) -> (Self, [DocumentId; N]) {
            let place = tempfile::tempdir().unwrap();
            let node = NodeId([7; 32]);
            let database = Database::on(MemoryStorage::new()).node(node).open().unwrap();
            let options = AuthorityOptions { directory: place.path().to_owned(), node, issuers: Vec::new() };
            let authority = Arc::new(Authority::open(options).unwrap());
            let text = format!("service tidelog {{ match /notes/{{id}} {{ allow read: if {condition}; }} }}");
            let rules = Some(Rules::parse("rules", &text).unwrap());
            let admittance = Admittance::Anybody;
            let options = AccessOptions { admittance, authority: Some(authority.clone()), rules };
            let access = Access::new(database.clone(), options);
            let made = |collection: &str, value: &Value| {
                let (handle, commit) = database.collection(collection).unwrap().create(value.clone()).unwrap();
                commit.wait().unwrap();
                handle.id()
            };
            let rooms = [("hall", true), ("attic", false)].map(|(name, open)| {
                database.collection("rooms").unwrap().doc_with(name, json!({ "open": open })).unwrap().id()
            });
            let notes = notes.map(|note| made("notes", note));
            let (token, issued) = authority.issue(TokenOrder::new("ben"), now_ms()).unwrap();
            let subject = access.admit(Some(&token)).unwrap();
            let vigil = subject.vigil().of_his_decisions();
            let collection = database.collection("notes").unwrap();
            let query = collection.query().seen_through(subject.sieve(collection.name()));
            let listener = query.on_snapshot(ListenOptions::default()).unwrap();
            let told = Told { listener, subject, vigil, owed: Owed::Nothing, rests_until: Instant::now() };
            let (token_id, _place) = (issued.id, place);
            (Self { database, access, authority, token_id, told, query, rooms, _place }, notes)
        }

        async fn first(&mut self) -> String {
            self.told.listener.ready().await.unwrap();
            line(&self.told.listener.try_next().unwrap().unwrap())
        }

        fn put(&self, collection: &str, id: DocumentId, field: &str, value: &str) {
            let handle = self.database.collection(collection).unwrap().find(id).unwrap();
            handle.change(|edit| Ok(edit.put(field, value)?)).unwrap().wait().unwrap();
        }

        /// Opens a room or closes it, and says so.
        fn open(&self, room: usize, is_open: bool) {
            let handle = self.database.collection("rooms").unwrap().find(self.rooms[room]).unwrap();
            handle.change(|edit| Ok(edit.put("open", is_open)?)).unwrap().wait().unwrap();
            self.access.renew();
        }

        /// What is told within so many milliseconds.
        async fn hears(&mut self, ms: u64) -> Option<String> {
            let next = tokio::time::timeout(Duration::from_millis(ms), self.told.next()).await;
            next.ok().map(|told| told.unwrap().unwrap_or_else(|_| panic!("he may stay")))
        }
    }

    #[tokio::test]
    async fn a_grant_shows_no_version_of_before_and_a_view_that_is_held_up_keeps_no_right_up() {
        let secret = json!({ "room": "attic", "text": "a secret" });
        let moved = json!({ "room": "hall", "text": "moved" });
        let seen = json!({ "room": "hall", "text": "seen" });
        let large = json!({ "room": "attic", "text": "a secret", "more": "x".repeat(66_000) });
        let (mut world, [note, other, third, fourth]) = World::new(OPEN, [&secret, &moved, &seen, &large]);
        world.open(0, true);
        let first = world.first().await;
        assert!(first.contains("seen") && first.contains("moved") && !first.contains("secret"), "{first}");
        world.open(0, false);
        let gone = world.hears(10_000).await.unwrap();
        assert!(gone.contains(&other.to_string()) && gone.contains(&third.to_string()), "{gone}");
        let held = world.query.held_up();
        world.put("notes", note, "text", "redacted");
        world.put("notes", fourth, "text", "redacted as well");
        world.put("notes", other, "room", "cellar");
        world.open(1, true);
        world.open(0, true);
        // However often he who asks stops waiting.
        for ms in [700, 10, HELD_UP.as_millis() as u64 + 200, 10] {
            assert_eq!(world.hears(ms).await, None);
        }
        drop(held);
        let told = world.hears(10_000).await.unwrap();
        assert!(told.contains("redacted") && told.contains("redacted as well") && told.contains("seen"), "{told}");
        assert!(!told.contains("secret") && !told.contains(&other.to_string()), "{told}");
        // What is taken away is gone all the same, and with nothing else.
        let held = world.query.held_up();
        world.put("notes", third, "text", "unseen");
        world.open(1, false);
        let began = Instant::now();
        let mut gone = None;
        while gone.is_none() && began.elapsed() < Duration::from_secs(10) {
            gone = world.hears(600).await;
        }
        let (gone, time) = (gone.unwrap(), began.elapsed());
        assert!(gone.contains(&note.to_string()) && gone.contains(&fourth.to_string()), "{gone}");
        assert!(!gone.contains(&third.to_string()), "{gone}");
        eprintln!("taken away within {time:?}");
        world.open(1, true);
        assert_eq!(world.hears(1500).await, None);
        drop(held);
        let told = world.hears(10_000).await.unwrap();
        assert!(told.contains("redacted") && told.contains("redacted as well") && told.contains("unseen"), "{told}");
    }

    #[tokio::test]
    async fn whoever_stops_waiting_for_what_is_told_loses_no_right_that_was_taken_away() {
        let seen = json!({ "room": "hall", "text": "seen" });
        let (mut world, [_]) = World::new(OPEN, [&seen]);
        assert!(world.first().await.contains("seen"));
        let held = world.query.held_up();
        // Of the note nothing changes, so that nobody but the vigil has it asked about.
        world.open(0, false);
        // The vigil has told of it by then.
        assert_eq!(world.hears(50).await, None);
        assert!(!world.told.vigil.is_behind());
        drop(held);
        let gone = world.hears(10_000).await.unwrap();
        assert!(gone.contains("removed"), "{gone}");
    }

    #[tokio::test]
    async fn who_has_to_go_is_told_nothing_more() {
        let (mut world, [note]) = World::new("resource.data.open", [&json!({ "open": true, "text": "first" })]);
        assert!(world.first().await.contains("first"));
        world.put("notes", note, "text", "second");
        world.told.listener.ready().await.unwrap();
        world.authority.revoke(Revocation::Token(world.token_id.clone()), now_ms()).unwrap();
        world.access.renew();
        // As it is when the change is noticed first.
        assert!(world.told.told().await.is_err());
    }
}
