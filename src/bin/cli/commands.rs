//! Every command but `serve`: asked of a session, shown on the screen.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tidelog::node::command::{Collected, CommandError, Exit, Request, Target};
use tidelog::node::{Interrupt, Session, SessionOptions};

use super::arguments::{Command, From, Global, Import, Peer, Rules, SpecialImport};
use super::screen::Screen;
use super::table::{Column, cell, printable, short, size, table, time};
use super::verify::{changes, verify, warn_if_degraded};
use super::{audit, edit, export, import, queries, rejected, rules, salvage, tokens};

/// The most that is read of stdin, in bytes.
const STDIN_BYTES_MAX: u64 = 64 << 20;

pub(super) fn run(
    global: &Global,
    command: Command,
    screen: &Screen,
    interrupt: Interrupt,
) -> Result<(), CommandError> {
    // What can be checked without the store is, so that nothing is made for a command that cannot work.
    let command = match prepared(command)? {
        Command::Salvage { from, to } => return salvage::run(&from, &to, screen),
        Command::Rules { command } if !matches!(command, Rules::Replay { .. }) => return rules::run(command, screen),
        other => other,
    };
    let create = matches!(command, Command::Add { .. } | Command::Import(_));
    let timeout = Some(global.timeout);
    let options = SessionOptions { data: global.data.clone(), timeout, create };
    let mut session = Session::open(&options, interrupt)?;
    let result = dispatch(&mut session, command, screen);
    session.close();
    result
}

fn prepared(command: Command) -> Result<Command, CommandError> {
    Ok(match command {
        Command::Add { collection, value: Some(text), name } => {
            tidelog::CollectionName::new(collection.as_str())?;
            let value = parse_json("the document", &text_or_stdin(text)?)?;
            if !value.is_object() {
                let why = "a document is a JSON object at its root";
                return Err(CommandError::new("E0604", Exit::Usage, why).fix("write it as '{\"title\": \"Tides\"}'"));
            }
            Command::Add { collection, value: Some(value.to_string()), name }
        }
        Command::Set { id, path, value } => {
            id.parse::<tidelog::DocumentId>()?;
            let text = text_or_stdin(value)?;
            Command::Set { id, path, value: json_or_word(&text)?.to_string() }
        }
        Command::Import(mut import) if import.file.as_deref() == Some(Path::new("-")) => {
            import.file = Some(PathBuf::from("/dev/stdin"));
            Command::Import(import)
        }
        Command::Import(Import { special: Some(SpecialImport::AutomergeRepo { folder, collection }), file, to }) => {
            std::fs::read_dir(&folder).map_err(|error| CommandError::file("read the folder", &folder, &error))?;
            tidelog::CollectionName::new(collection.as_str())?;
            Command::Import(Import { special: Some(SpecialImport::AutomergeRepo { folder, collection }), file, to })
        }
        other => other,
    })
}

fn text_or_stdin(text: String) -> Result<String, CommandError> {
    if text != "-" {
        return Ok(text);
    }
    let mut bytes = Vec::new();
    let stdin = Path::new("stdin");
    let read = std::io::stdin().lock().take(STDIN_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| CommandError::file("read", stdin, &error))?;
    if bytes.len() as u64 > STDIN_BYTES_MAX {
        return Err(CommandError::new("E0703", Exit::Failed, format!("stdin has more than {STDIN_BYTES_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| CommandError::usage("stdin is not UTF-8"))
}

fn parse_json(place: &str, text: &str) -> Result<Value, CommandError> {
    serde_json::from_str(text).map_err(|error| CommandError::json(place, &error))
}

/// JSON, or a bare word as a string. What begins like JSON must be JSON, so that a slip is not stored as text.
pub(super) fn json_or_word(text: &str) -> Result<Value, CommandError> {
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(error) if text.trim_start().starts_with(['{', '[', '"']) => Err(CommandError::json("the value", &error)),
        Err(_) => Ok(Value::String(text.to_owned())),
    }
}

fn dispatch(session: &mut Session, command: Command, screen: &Screen) -> Result<(), CommandError> {
    match command {
        Command::Rules { command: Rules::Replay { draft, rules, from, collection, limit } } => {
            let over = audit::Over { from, collection, limit };
            audit::replay(session, &draft, rules.as_deref(), over, screen)
        }
        Command::Audit { command } => audit::audit(session, command, screen),
        Command::Serve(_) | Command::Salvage { .. } | Command::Rules { .. } => {
            Err(CommandError::usage("this is not a command of a session"))
        }
        Command::Ls { collection } => ls(session, collection, screen),
        Command::Get { id, at } => get(session, id, at, screen),
        Command::Add { collection, value, name } => {
            let value = value.map(|text| parse_json("the document", &text)).transpose()?;
            let row = one(session, Request::Add { collection, name, id: None, value, must_be_new: true })?;
            let id = text_of(&row, "id");
            show(screen, &row, "id", &id)?;
            screen.next(&format!("tidelog get {id}"));
            Ok(())
        }
        Command::Set { id, path, value } => {
            let value = parse_json("the value", &value)?;
            let row = one(session, Request::Set { id: id.clone(), path, value })?;
            let text = if row["change"].is_null() { "unchanged".to_owned() } else { text_of(&row, "change") };
            show(screen, &row, "id", &text)?;
            screen.next(&format!("tidelog get {id}"));
            Ok(())
        }
        Command::Edit { id } => edit::edit(session, &id, screen),
        Command::Rm { ids } => {
            for id in ids {
                let row = one(session, Request::Remove { id })?;
                let id = text_of(&row, "id");
                show(screen, &row, "id", &id)?;
                screen.next(&format!("tidelog restore {id}    (to undo)"));
            }
            Ok(())
        }
        Command::Restore { id } => {
            let row = one(session, Request::Restore { id })?;
            let id = text_of(&row, "id");
            show(screen, &row, "id", &id)?;
            screen.next(&format!("tidelog get {id}"));
            Ok(())
        }
        Command::Log { id, from, limit } => log(session, id, from, limit, screen),
        Command::Watch { target, from, limit, once, predicate } => {
            watch(session, target, Since { from, limit, once, predicate }, screen)
        }
        query @ Command::Query { .. } => queries::query(session, query, screen),
        Command::Index { command } => queries::index(session, command, screen),
        Command::Feed { command } => queries::feed(session, command, screen),
        Command::Import(arguments) => import::run(session, arguments, screen),
        Command::Export(arguments) => export::run(session, arguments, screen),
        Command::Peer { command } => peer(session, command, screen),
        Command::Ticket { invite } => {
            let row = one(session, Request::Ticket { invite: invite.map(|role| role.text().to_owned()) })?;
            let ticket = text_of(&row, "ticket");
            show(screen, &row, "ticket", &ticket)?;
            screen.next(&format!("tidelog serve --data ./second --listen 127.0.0.1:0 --peer '{ticket}'"));
            Ok(())
        }
        Command::Token { command } => tokens::token(session, command, screen),
        Command::Rejected { command } => rejected::rejected(session, command, screen),
        Command::Status => status(session, screen),
        Command::Verify { deep } => verify(session, deep, screen),
    }
}

/// The one row that a request has for an answer.
pub(super) fn one(session: &mut Session, request: Request) -> Result<Value, CommandError> {
    let mut collected = Collected::default();
    session.call(request, &mut collected)?;
    Ok(collected.rows.pop().unwrap_or_default())
}

pub(super) fn text_of(row: &Value, key: &str) -> String {
    row[key].as_str().unwrap_or_default().to_owned()
}

/// Prints a row: whole as JSON, its id when quiet, else `text`.
pub(super) fn show(screen: &Screen, row: &Value, id: &str, text: &str) -> Result<(), CommandError> {
    if screen.json {
        screen.print(&row.to_string())
    } else if screen.quiet {
        screen.print(&text_of(row, id))
    } else {
        screen.print(text)
    }
}

/// Prints rows: JSON as they come, ids when quiet, else one table of all.
pub(super) fn rows(
    session: &mut Session,
    request: Request,
    screen: &Screen,
    id: &str,
    columns: &[Column],
) -> Result<usize, CommandError> {
    let mut kept = Vec::new();
    let mut count = 0;
    let mut output = screen.output(|row| {
        count += 1;
        if screen.json || screen.quiet {
            return show(screen, &row, id, "");
        }
        kept.push(row);
        Ok(())
    });
    session.call(request, &mut output)?;
    drop(output);
    if !kept.is_empty() {
        screen.print(&table(columns, &kept))?;
    }
    Ok(count)
}

fn ls(session: &mut Session, collection: Option<String>, screen: &Screen) -> Result<(), CommandError> {
    let request = Request::List { collection: collection.clone() };
    if collection.is_none() {
        let columns: [Column; 2] =
            [("COLLECTION", |row| cell(&row["collection"])), ("DOCUMENTS", |row| cell(&row["documents"]))];
        let count = rows(session, request, screen, "collection", &columns)?;
        screen.next(if count == 0 { "tidelog add notes '{\"title\": \"Tides\"}'" } else { "tidelog ls <collection>" });
        return Ok(());
    }
    let columns: [Column; 5] = [
        ("ID", |row| cell(&row["id"])),
        ("NAME", |row| cell(&row["name"])),
        ("CHANGES", changes),
        ("SIZE", |row| size(&row["bytes"])),
        ("LSN", |row| cell(&row["lsn"])),
    ];
    rows(session, request, screen, "id", &columns)?;
    screen.next("tidelog get <id>");
    Ok(())
}

fn get(session: &mut Session, id: String, at: Option<Vec<String>>, screen: &Screen) -> Result<(), CommandError> {
    let mut collected = Collected::default();
    let answer = session.call(Request::Read { id: id.clone(), at }, &mut collected)?;
    let value = collected.rows.pop().unwrap_or_default();
    warn_if_degraded(screen, &answer);
    if screen.quiet {
        return screen.print(&id);
    }
    if screen.json {
        return screen.print(&value.to_string());
    }
    screen.print(&pretty(&value))?;
    screen.next(&format!("tidelog set {id} <path> <value>"));
    Ok(())
}

pub(super) fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string())
}

fn log(
    session: &mut Session,
    id: Option<String>,
    from: Option<From>,
    limit: u64,
    screen: &Screen,
) -> Result<(), CommandError> {
    let request = Request::Log { id: id.clone(), from: from.and_then(From::position), limit };
    if id.is_none() {
        rows(session, request, screen, "id", &WATCH_COLUMNS)?;
        screen.next("tidelog watch");
        return Ok(());
    }
    let columns: [Column; 7] = [
        ("LSN", |row| cell(&row["lsn"])),
        ("TIME", |row| time(&row["time"])),
        ("CHANGE", |row| cell(&row["hash"])),
        ("ACTOR", |row| short(&row["actor"])),
        ("SEQ", |row| cell(&row["seq"])),
        ("OPS", |row| cell(&row["ops"])),
        ("MESSAGE", |row| cell(&row["message"])),
    ];
    rows(session, request, screen, "hash", &columns)?;
    screen.next("tidelog get <id> --at <change>");
    Ok(())
}

const WATCH_COLUMNS: [Column; 7] = [
    ("LSN", |row| cell(&row["lsn"])),
    ("TIME", |row| time(&row["time"])),
    ("KIND", |row| cell(&row["kind"])),
    ("COLLECTION", |row| cell(&row["collection"])),
    ("DOCUMENT", |row| cell(&row["id"])),
    ("BY", |row| short(&row["node"])),
    ("OPS", |row| cell(&row["ops"])),
];

/// Which part of the log a watch prints.
struct Since {
    from: String,
    limit: Option<u64>,
    once: bool,
    predicate: Option<String>,
}

const LISTEN_COLUMNS: [Column; 3] =
    [("KIND", |row| cell(&row["kind"])), ("DOCUMENT", |row| cell(&row["id"])), ("VALUE", |row| cell(&row["value"]))];

fn watch(session: &mut Session, target: Option<String>, since: Since, screen: &Screen) -> Result<(), CommandError> {
    let mut words = target.clone().map(|target| format!(" {target}")).unwrap_or_default();
    let target = target.map(|text| text.parse::<Target>()).transpose()?;
    let listened = match (&target, &since.predicate) {
        (Some(Target::Collection(name)), Some(predicate)) => {
            words.push_str(&format!(" --where '{}'", predicate.replace('\'', "'\\''")));
            Some((name.clone(), predicate.clone()))
        }
        (_, Some(_)) => {
            let error = CommandError::usage("--where needs a collection");
            return Err(error.fix("name one, as in `tidelog watch notes --where …`"));
        }
        _ => None,
    };
    let columns = if listened.is_some() { &LISTEN_COLUMNS[..] } else { &WATCH_COLUMNS[..] };
    // Where to go on, from the last row that was shown.
    let here = std::cell::RefCell::new((since.from != "now").then(|| since.from.clone()));
    if !session.is_node() && !since.once {
        screen.say(
            "no node runs on this data directory: only what is in the log already is shown, and nothing will come",
        );
    }
    let mut output = screen.output(|row| {
        let cursor = row["cursor"].as_str().map(str::to_owned);
        if screen.json || (screen.quiet && row.get("id").is_some()) {
            show(screen, &row, "id", "")?;
        } else if row.get("id").is_some() {
            let cells: Vec<String> = columns.iter().map(|(_, show)| show(&row)).collect();
            screen.print(&cells.join("  "))?;
        } else {
            // The place to go on from is not in this log: what follows is where each document stands.
            screen.warn(&row.to_string());
        }
        if let Some(cursor) = cursor {
            here.replace(Some(cursor));
        }
        Ok(())
    });
    if !since.once {
        screen.say("watching; ^C ends it");
    }
    let Since { from, limit, once, .. } = since;
    let request = match listened {
        Some((collection, predicate)) => Request::Listen { collection, predicate, from, limit, once },
        None => Request::Watch { target, from, limit, once },
    };
    let ended = session.call(request, &mut output);
    drop(output);
    if let Some(cursor) = here.into_inner()
        && !screen.quiet
        && ended.as_ref().err().is_none_or(|error| error.exit == Exit::Interrupted)
    {
        // Worth knowing without a terminal too: whoever ends a watch wants to go on where it was.
        let resume = format!("tidelog watch{words} --from {cursor}");
        if screen.json {
            screen.warn(&json!({ "cursor": cursor, "resume": resume }).to_string());
        } else {
            screen.warn(&format!("stopped; go on with: {resume}"));
        }
    }
    ended.map(|_| ())
}

fn peer(session: &mut Session, command: Peer, screen: &Screen) -> Result<(), CommandError> {
    match command {
        Peer::Add { peer, role } => {
            let row = one(session, Request::PeerAdd { peer, role: role.text().to_owned() })?;
            show(screen, &row, "node", &format!("{} is allowed as {}", text_of(&row, "node"), text_of(&row, "role")))?;
            screen.next(if session.is_node() { "tidelog peer ls" } else { "tidelog serve" });
            Ok(())
        }
        Peer::Rm { peer } => {
            let row = one(session, Request::PeerRemove { peer })?;
            show(screen, &row, "node", &format!("{} is not allowed any more", text_of(&row, "node")))?;
            screen.next("tidelog peer ls");
            Ok(())
        }
        Peer::Ls => {
            let count = rows(session, Request::PeerList, screen, "node", &PEER_COLUMNS)?;
            screen.next(if count == 0 { "tidelog peer add <ticket>" } else { "tidelog status" });
            Ok(())
        }
    }
}

const PEER_COLUMNS: [Column; 6] = [
    ("NODE", |row| cell(&row["node"])),
    ("ROLE", |row| cell(&row["role"])),
    ("ADDRESS", |row| cell(&row["address"])),
    ("CONNECTED", |row| if row["connected"] == json!(true) { "yes".into() } else { "no".into() }),
    ("FOLLOWED", |row| cell(&row["followed"])),
    ("LAST ERROR", |row| cell(&row["last_error"])),
];

fn status(session: &mut Session, screen: &Screen) -> Result<(), CommandError> {
    let row = one(session, Request::Status)?;
    if screen.json || screen.quiet {
        return show(screen, &row, "node", "");
    }
    let line = |title: &str, text: String| screen.print(&format!("{title:<12}{text}"));
    line("node", cell(&row["node"]))?;
    line("state", cell(&row["state"]))?;
    if let Some(address) = row["listening"].as_str() {
        line("listening", format!("{address} for {} s", row["uptime_s"]))?;
    }
    line("log", format!("{}, {} records", text_of(&row, "log"), row["tail"]))?;
    line("storage id", cell(&row["storage"]))?;
    line("collections", cell(&row["collections"]))?;
    line("durability", cell(&row["durability"]))?;
    line("in memory", format!("{} documents, {}", row["materialized"], size(&row["materialized_bytes"])))?;
    if row["degraded"].as_u64().is_some_and(|degraded| degraded > 0) {
        line("degraded", format!("{} of these are not shown whole; `tidelog verify` says why", row["degraded"]))?;
    }
    if let Some(failure) = row["failure"].as_str() {
        line("failure", printable(failure))?;
    }
    let peers = row["peers"].as_array().cloned().unwrap_or_default();
    line("peers", format!("{} of {} connected", row["peers_connected"], peers.len()))?;
    if !peers.is_empty() {
        screen.print("")?;
        screen.print(&table(&PEER_COLUMNS, &peers))?;
    }
    screen.next(if session.is_node() { "tidelog watch" } else { "tidelog serve" });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_word_is_a_string_and_a_slip_is_an_error() {
        assert_eq!(json_or_word("17").unwrap(), json!(17));
        assert_eq!(json_or_word("true").unwrap(), json!(true));
        assert_eq!(json_or_word("high tide").unwrap(), json!("high tide"));
        assert_eq!(json_or_word("\"17\"").unwrap(), json!("17"));
        assert_eq!(json_or_word("{\"a\": 1").unwrap_err().exit, Exit::Usage);
    }
}
