//! The change feed over HTTP: a page, a page once there is one, lines that go on, or server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
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
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::documents::{answer, bounded, query_problem};
use super::problem::Problem;
use super::{Held, blocking, hold};
use crate::access::{From, Next, Place, Said, SiftedFeed, Subject, Vigil};
use crate::document::Patch;
use crate::engine::now_ms;
use crate::feed::{Event, EventKind};
use crate::id::DocumentId;
use crate::limits::api;
use crate::quota::Account;
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
    let feed = open(&app, &wanted, last, subject.clone())?;
    // A page may have to find out for each document what was granted or taken meanwhile.
    let held = if form == Form::Normal && feed.is_free() { None } else { Some(hold(payer)?) };
    let told = Told { app, patches: wanted.patches, subject, held };
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
    held: Option<Held>,
}

/// A turn at finding out what a feed may tell, which takes a while. Dropped, it is given back.
struct Turn {
    own: Option<Arc<Account>>,
    _teller: Option<OwnedSemaphorePermit>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.own.iter().for_each(|account| account.turns().add_permits(1));
    }
}

/// Waits for a turn. Those of one account take turns among themselves first: however many those are, others come in
/// between.
async fn turn(account: Option<Arc<Account>>, tellers: Arc<Semaphore>) -> Turn {
    let mut turn = Turn { own: None, _teller: None };
    if let Some(account) = account {
        let is_taken = match account.turns().acquire().await {
            Ok(permit) => {
                permit.forget();
                true
            }
            Err(_) => false,
        };
        turn.own = is_taken.then_some(account);
    }
    turn._teller = tellers.acquire_owned().await.ok();
    turn
}

impl Told {
    /// What there is to tell of what was read.
    async fn tell(&self, mut feed: SiftedFeed) -> Result<(SiftedFeed, Vec<Said>, Next), Problem> {
        // Decisions may have documents made.
        if feed.is_free() {
            let (said, next) = feed.tell()?;
            return Ok((feed, said, next));
        }
        let turn = self.turn().await;
        blocking(&self.app, move || {
            // Also where nobody waits for it any more.
            let _turn = turn;
            let (said, next) = feed.tell()?;
            Ok((feed, said, next))
        })
        .await
    }

    async fn turn(&self) -> Turn {
        turn(self.held.as_ref().map(|(payer, _)| payer.account.clone()), self.app.tellers.clone()).await
    }

    async fn json(&self, event: Event, place: Place) -> Result<Value, Problem> {
        if !self.patches || !matches!(event.kind, EventKind::Changed(_)) {
            return Ok(placed(event.to_json()?, place));
        }
        let database = self.app.shared.database.clone();
        let turn = self.turn().await;
        blocking(&self.app, move || {
            let _turn = turn;
            let mut json = placed(event.to_json()?, place);
            json["patches"] = match event.patches(&database)? {
                Some(patches) => patches.iter().map(Patch::to_json).collect(),
                None => Value::Null,
            };
            Ok(json)
        })
        .await
    }
}

/// An event with the cursor behind it.
fn placed(mut event: Value, place: Place) -> Value {
    event["cursor"] = place.to_string().into();
    event
}

fn open(app: &App, wanted: &Wanted, last: Option<&str>, subject: Subject) -> Result<SiftedFeed, Problem> {
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
    let from = match last.or(wanted.since.as_deref()) {
        None | Some("beginning") => From::Beginning,
        Some("now") => From::Now,
        Some(text) => match text.parse::<Place>() {
            Ok(place) => From::Place(place),
            Err(error) => {
                let expected = format!("a cursor as this server gave it, `beginning` or `now` ({error})");
                return Err(Problem::parameter("since", text, &expected));
            }
        },
    };
    Ok(SiftedFeed::open(changes, from, subject)?)
}

/// So many items as there are now; or, when there are none, those that come first within the time. Where it takes longer to
/// find out what may be told, it is told what was found until then: its cursor goes on from there. Nor is it kept back for
/// long once there is something, as rights may change.
async fn page(mut feed: SiftedFeed, wanted: &Wanted, waits: bool, told: &Told) -> Result<Response, Problem> {
    let mut stop = told.app.shared.stop.clone();
    let limit = bounded(wanted.limit)?;
    let seconds = wanted.timeout.unwrap_or(api::POLL_SECONDS);
    if seconds > api::POLL_SECONDS_MAX {
        let expected = format!("at most {} seconds", api::POLL_SECONDS_MAX);
        return Err(Problem::parameter("timeout", &seconds.to_string(), &expected));
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut vigil = told.subject.vigil().with_the_time();
    let (mut events, mut opening, mut caught_up) = (Vec::new(), Value::Null, false);
    // Since when the oldest of them is kept back.
    let mut kept: Option<Instant> = None;
    loop {
        feed.pull(limit.saturating_sub(events.len()).max(1)).await?;
        let (said, next);
        (feed, said, next) = told.tell(feed).await?;
        let mut may_go_on = false;
        for said in said {
            match said {
                Said::Opened(opened) => {
                    // Whatever was told before is to be forgotten.
                    events.clear();
                    opening = opened;
                }
                Said::Event(event, place) => {
                    caught_up = false;
                    events.push(told.json(*event, place).await?);
                }
                Said::Right(right) => events.push(right.to_json()),
                // Through much that has nothing to tell: whoever asked may go on from here.
                Said::Progress(_, reached) => (caught_up, may_go_on) = (reached, !reached),
            }
        }
        if told.subject.must_leave(now_ms()).is_some() {
            return Err(Problem::left());
        }
        kept = if events.is_empty() { None } else { kept.or_else(|| Some(Instant::now())) };
        let is_stale = kept.is_some_and(|since| since.elapsed() >= api::STREAM_PAUSE);
        let is_over = !feed.is_free() && (is_stale || Instant::now() >= end || *stop.borrow());
        match next {
            Next::Work | Next::Pull if is_over => {
                caught_up = false;
                break;
            }
            Next::Work if events.len() < limit => continue,
            Next::Rest(_) if events.is_empty() && !is_over => {}
            Next::Work | Next::Rest(_) => {
                caught_up = false;
                break;
            }
            Next::Pull if events.len() < limit && !may_go_on => continue,
            Next::Wait | Next::Pull if !waits || !events.is_empty() || may_go_on => break,
            Next::Pull => break,
            Next::Wait => {}
        }
        let rest = if let Next::Rest(until) = next { Some(until) } else { None };
        // It was, but what is to be asked about then was not yet.
        caught_up &= rest.is_none();
        let more = tokio::select! {
            () = until(rest), if rest.is_some() => true,
            more = feed.wait(), if rest.is_none() => more,
            leave = vigil.next(), if rest.is_none() => match leave {
                Some(_) => return Err(Problem::left()),
                None => true,
            },
            () = tokio::time::sleep_until(end) => false,
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

/// Waits until then; for ever, where there is nothing to wait for.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// One item after the other, for as long as somebody reads.
fn flow(feed: SiftedFeed, form: Form, told: Told) -> Response {
    let stop = told.app.shared.stop.clone();
    let kind = if form == Form::Sse { "text/event-stream" } else { "application/x-ndjson" };
    let (vigil, wakes) = (told.subject.vigil(), told.subject.vigil().with_the_time());
    let teller = Teller { feed: Some(feed), next: Next::Pull, wakes, form, told, silent_since: Instant::now() };
    let lines = stream::unfold(Some((teller, stop, vigil)), move |state| async move {
        let (mut teller, mut stop, mut vigil) = state?;
        let (text, goes_on) = tokio::select! {
            next = teller.next_lines() => next,
            () = stopped(&mut stop) => return None,
            () = left(&mut vigil) => (last_line(&Problem::left(), form), false),
        };
        Some((Ok::<_, Infallible>(Bytes::from(text)), goes_on.then_some((teller, stop, vigil))))
    });
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-store")], Body::from_stream(lines)).into_response()
}

/// Waits until he has to go.
async fn left(vigil: &mut Vigil) {
    while vigil.next().await.is_none() {}
}

/// Tells a feed line by line.
struct Teller {
    /// `None` only while it is used, and after it failed.
    feed: Option<SiftedFeed>,
    next: Next,
    /// Hears when he may see other documents than before.
    wakes: Vigil,
    form: Form,
    told: Told,
    silent_since: Instant,
}

impl Teller {
    /// The next lines, and whether there may be more. Without anything to say for a while, a line without meaning. Where it
    /// is dropped, the stream ends.
    async fn next_lines(&mut self) -> (String, bool) {
        let mut text = String::new();
        let goes_on = match self.fill(&mut text).await {
            Ok(goes_on) => goes_on,
            Err(problem) => {
                text.push_str(&last_line(&problem, self.form));
                false
            }
        };
        // Whoever reads may take his time.
        self.feed.iter().for_each(SiftedFeed::rest);
        self.silent_since = Instant::now();
        (text, goes_on)
    }

    async fn fill(&mut self, text: &mut String) -> Result<bool, Problem> {
        let silence = Duration::from_secs(api::SILENCE_SECONDS);
        while text.len() < api::STREAM_BYTES {
            let Some(mut feed) = self.feed.take() else { return Ok(false) };
            let rest = match self.next {
                // It may be long, and what was found may be true no more then.
                Next::Wait | Next::Rest(_) if !text.is_empty() => {
                    self.feed = Some(feed);
                    return Ok(true);
                }
                Next::Rest(until) => Some(until),
                _ => None,
            };
            let waits = self.next == Next::Wait;
            let goes_on = tokio::select! {
                biased;
                () = std::future::ready(()), if !waits && rest.is_none() => true,
                () = until(rest), if rest.is_some() => true,
                goes_on = feed.wait(), if waits => goes_on,
                // Whether he has to go is heard elsewhere.
                _ = self.wakes.next(), if waits => true,
                () = tokio::time::sleep_until(self.silent_since + silence) => {
                    text.push_str(SILENCE[usize::from(self.form == Form::Sse)]);
                    self.feed = Some(feed);
                    return Ok(true);
                }
            };
            if !goes_on {
                return Ok(false);
            }
            feed.pull(PULLED).await?;
            let was_at_work = self.next == Next::Work;
            let (feed, said, next) = self.told.tell(feed).await?;
            let cursor = feed.cursor();
            (self.feed, self.next) = (Some(feed), next);
            for said in said {
                text.push_str(&line(said, self.form, &self.told).await?);
            }
            if text.is_empty() && was_at_work && next != Next::Work {
                // It took long: nobody who is cut off after it shall have it done again.
                text.push_str(&progress(cursor, false, self.form));
            }
            if !text.is_empty() && self.silent_since.elapsed() > api::STREAM_PAUSE {
                return Ok(true);
            }
            if text.is_empty() && self.silent_since.elapsed() > silence {
                match next {
                    // Nor whoever is cut off in the middle of it.
                    Next::Work => text.push_str(&progress(cursor, false, self.form)),
                    _ => text.push_str(SILENCE[usize::from(self.form == Form::Sse)]),
                }
                return Ok(true);
            }
        }
        Ok(true)
    }
}

async fn line(said: Said, form: Form, told: &Told) -> Result<String, Problem> {
    let (name, place, value) = match said {
        Said::Opened(opening) => ("opened", None, opening),
        Said::Event(event, place) => ("change", Some(place), told.json(*event, place).await?),
        Said::Right(right) => ("change", Some(right.place()), right.to_json()),
        Said::Progress(place, caught_up) => return Ok(progress(place, caught_up, form)),
    };
    Ok(written(name, place.map(|place| place.to_string()).as_deref(), &value, form))
}

fn progress(place: Place, caught_up: bool, form: Form) -> String {
    let cursor = place.to_string();
    let value = json!({ "progress": { "cursor": cursor, "caught_up": caught_up } });
    written("progress", Some(&cursor), &value, form)
}

/// Events that a stream reads at a time.
const PULLED: usize = 64;

/// A line without meaning, in lines and in server-sent events.
const SILENCE: [&str; 2] = ["\n", ":\n\n"];

/// What ends a stream that cannot go on; a new one may go on after the last cursor.
pub(super) fn last_line(problem: &Problem, form: Form) -> String {
    tracing::error!(?problem, "a stream ended");
    written("error", None, &json!({ "error": problem.to_json() }), form)
}

pub(super) fn written(name: &str, id: Option<&str>, value: &Value, form: Form) -> String {
    match (form, id) {
        (Form::Sse, Some(cursor)) => format!("event: {name}\nid: {cursor}\ndata: {value}\n\n"),
        (Form::Sse, None) => format!("event: {name}\ndata: {value}\n\n"),
        _ => format!("{value}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::{Ledger, Quotas};

    #[tokio::test(start_paused = true)]
    async fn whoever_has_one_feed_waits_for_no_more_than_a_turn_or_two_of_one_who_has_many() {
        const TURN: Duration = Duration::from_millis(50);
        let ledger = Ledger::new(Quotas::default());
        let now = std::time::Instant::now();
        let [many, one] = [1, 2].map(|n| ledger.address(std::net::Ipv4Addr::new(127, 0, 0, n).into(), now));
        let tellers = Arc::new(Semaphore::new(api::TELLERS));
        let busy = || async {
            for _ in 0..10 {
                let _turn = turn(Some(many.clone()), tellers.clone()).await;
                tokio::time::sleep(TURN).await;
            }
        };
        let working = async {
            tokio::time::sleep(TURN * 3 / 2).await;
            for _ in 0..10 {
                let asked = Instant::now();
                let _turn = turn(Some(one.clone()), tellers.clone()).await;
                assert!(asked.elapsed() <= 2 * TURN, "{:?}", asked.elapsed());
                tokio::time::sleep(TURN).await;
            }
        };
        let all = futures_util::future::join_all((0..200).map(|_| busy()));
        tokio::select! {
            biased;
            () = working => {}
            _ = all => panic!("it took them no time"),
        }
    }

    #[tokio::test]
    async fn a_turn_is_held_until_its_work_has_ended_be_it_waited_for_or_not() {
        let account = Ledger::new(Quotas::default()).address([127, 0, 0, 1].into(), std::time::Instant::now());
        let (tellers, workers) = (Arc::new(Semaphore::new(api::TELLERS)), Arc::new(Semaphore::new(1)));
        let free = || (account.turns().available_permits(), tellers.available_permits(), workers.available_permits());
        let before = free();
        let turn = turn(Some(account.clone()), tellers.clone()).await;
        let (end, ended) = std::sync::mpsc::sync_channel::<()>(1);
        let work = crate::web::api::in_room(workers.clone(), move || {
            let _turn = turn;
            let _ = ended.recv();
            Ok(())
        });
        // The request is dropped.
        assert!(tokio::time::timeout(Duration::from_millis(20), work).await.is_err());
        assert_eq!(free(), (before.0 - 1, before.1 - 1, before.2 - 1));
        end.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(30), async {
            while free() != before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .unwrap();
    }
}
