//! Finding documents by their values, indexes, and those who follow feeds.

use serde_json::{Value, json};
use tidelog::node::Session;
use tidelog::node::command::{CommandError, Request};

use super::arguments::{Command, Feed, Index};
use super::commands::{one, rows, show, text_of};
use super::screen::Screen;
use super::table::{Column, cell};

pub(super) fn query(session: &mut Session, command: Command, screen: &Screen) -> Result<(), CommandError> {
    let Command::Query { collection, predicate, order_by, limit, last, count } = command else {
        return Err(CommandError::usage("this is not a query"));
    };
    let mut query = json!({ "orderBy": order_by.iter().map(|text| ordering(text)).collect::<Vec<_>>() });
    if let Some(limit) = limit {
        query[if last { "limitToLast" } else { "limit" }] = limit.into();
    }
    if count {
        query["count"] = true.into();
        let row = one(session, Request::Query { collection, query, predicate })?;
        return screen.print(&if screen.json { row.to_string() } else { cell(&row["count"]) });
    }
    let columns: [Column; 2] = [("ID", |row| cell(&row["id"])), ("VALUE", |row| cell(&row["value"]))];
    rows(session, Request::Query { collection, query, predicate }, screen, "id", &columns)?;
    screen.next("tidelog get <id>");
    Ok(())
}

/// A field to order by, as it is typed: `at` or `at desc`.
fn ordering(text: &str) -> Value {
    match text.trim().rsplit_once(' ') {
        Some((field, direction @ ("asc" | "desc"))) => json!({ "field": field.trim(), "direction": direction }),
        _ => json!({ "field": text.trim() }),
    }
}

pub(super) fn index(session: &mut Session, command: Index, screen: &Screen) -> Result<(), CommandError> {
    let columns: [Column; 4] = [
        ("ID", |row| cell(&row["id"])),
        ("FIELDS", |row| row["fields"].as_array().into_iter().flatten().map(cell).collect::<Vec<_>>().join(", ")),
        ("DECLARED", |row| if row["declared"] == json!(true) { "yes".into() } else { "no".into() }),
        ("BUILT", |row| format!("{:.0} %", row["built"].as_f64().unwrap_or_default() * 100.0)),
    ];
    match command {
        Index::Ls { collection } => {
            rows(session, Request::IndexList { collection }, screen, "id", &columns)?;
            Ok(())
        }
        Index::Add { collection, fields } => {
            let again = format!("tidelog index ls {collection}");
            rows(session, Request::IndexAdd { collection, fields }, screen, "id", &columns)?;
            screen.next(&again);
            Ok(())
        }
        Index::Rm { collection, id } => {
            let row = one(session, Request::IndexRemove { collection, id })?;
            show(screen, &row, "id", &format!("{} is dropped", text_of(&row, "id")))
        }
    }
}

pub(super) fn feed(session: &mut Session, command: Feed, screen: &Screen) -> Result<(), CommandError> {
    match command {
        Feed::Ls => {
            let columns: [Column; 4] = [
                ("CONSUMER", |row| cell(&row["consumer"])),
                ("EVENTS", |row| cell(&row["events"])),
                ("LAG", |row| cell(&row["lag"])),
                ("POSITION", |row| cell(&row["position"])),
            ];
            rows(session, Request::FeedList, screen, "consumer", &columns)?;
            screen.next("tidelog feed lag");
            Ok(())
        }
        Feed::Lag => {
            let columns: [Column; 2] = [("CONSUMER", |row| cell(&row["consumer"])), ("LAG", |row| cell(&row["lag"]))];
            rows(session, Request::FeedList, screen, "consumer", &columns)?;
            Ok(())
        }
        Feed::Reset { consumer } => {
            let row = one(session, Request::FeedReset { consumer })?;
            show(screen, &row, "consumer", &format!("{} begins anew", text_of(&row, "consumer")))
        }
    }
}
