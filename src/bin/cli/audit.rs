//! `tidelog audit`, and `tidelog rules replay`, which goes over the same records.

use std::path::Path;

use serde_json::{Value, json};
use tidelog::node::Session;
use tidelog::node::command::rules::read_rules;
use tidelog::node::command::{AuditFilter, CommandError, Exit, Request, RulesText};

use super::arguments::Audit;
use super::commands::{one, pretty, rows, show, text_of as text_of_row};
use super::screen::Screen;
use super::table::{Column, cell, printable, size, table, time};

const COLUMNS: [Column; 8] = [
    ("LSN", |row| cell(&row["lsn"])),
    ("TIME", |row| time(&row["time"])),
    ("VERDICT", |row| cell(&row["verdict"])),
    ("WHAT", |row| cell(&row["operation"])),
    ("USER", |row| cell(&row["user"])),
    ("COLLECTION", |row| cell(&row["collection"])),
    ("DOCUMENT", |row| cell(&row["id"])),
    ("WHY", why),
];

const DIFFERENCES: [Column; 8] = [
    ("LSN", |row| cell(&row["lsn"])),
    ("WAS", |row| cell(&row["was"])),
    ("WOULD BE", |row| cell(&row["would_be"])),
    ("WHAT", |row| cell(&row["operation"])),
    ("USER", |row| cell(&row["user"])),
    ("COLLECTION", |row| cell(&row["collection"])),
    ("DOCUMENT", |row| cell(&row["id"])),
    ("WHY", why),
];

const RULES: [Column; 5] = [
    ("VERSION", |row| cell(&row["rules_version"])),
    ("LSN", |row| cell(&row["lsn"])),
    ("SINCE", |row| time(&row["time"])),
    ("SIZE", |row| size(&row["bytes"])),
    ("DIGEST", |row| cell(&row["digest"])),
];

/// The reason, and the lines of the rules; of what was accepted, the line that allowed it.
fn why(row: &Value) -> String {
    if let Some(line) = row["rule"]["line"].as_u64() {
        return format!("allowed by line {line}");
    }
    let lines: Vec<String> =
        row["rules"].as_array().into_iter().flatten().map(|rule| rule["line"].to_string()).collect();
    match (cell(&row["why"]), lines.is_empty()) {
        (why, true) => why,
        (why, false) if lines.len() == 1 => format!("{why} (line {})", lines[0]),
        (why, false) => format!("{why} (lines {})", lines.join(", ")),
    }
}

pub(super) fn audit(session: &mut Session, command: Audit, screen: &Screen) -> Result<(), CommandError> {
    match command {
        Audit::Ls { user, collection, document, refused, accepted, from, limit } => {
            let refused = if refused || accepted { Some(refused) } else { None };
            let filter = AuditFilter { user, collection, document, refused, from, limit };
            let count = rows(session, Request::AuditList { filter }, screen, "lsn", &COLUMNS)?;
            if count > 0 {
                screen.next("tidelog audit show <lsn>");
            }
            Ok(())
        }
        Audit::Show { lsn } => {
            let row = one(session, Request::AuditShow { lsn })?;
            show(screen, &row, "change", &printed(&row))
        }
        Audit::Rules { version: None } => {
            let count = rows(session, Request::AuditRules { version: None }, screen, "rules_version", &RULES)?;
            if count > 0 {
                screen.next("tidelog audit rules <version> > old.tidelog");
            }
            Ok(())
        }
        Audit::Rules { version } => {
            let row = one(session, Request::AuditRules { version })?;
            // As it is, so that it is the same file again.
            if screen.json {
                screen.print(&row.to_string())
            } else {
                screen.print_bytes(text_of_row(&row, "text").as_bytes())
            }
        }
    }
}

/// An `allow` on one line.
fn rule(rule: &Value) -> String {
    let at = format!("line {}, {}", rule["line"], cell(&rule["path"]));
    match rule["text"].as_str() {
        Some(text) => format!("{at}: {}", printable(text)),
        None => at,
    }
}

/// One line for each member; what holds more is JSON.
fn printed(row: &Value) -> String {
    let members = row.as_object().into_iter().flatten();
    let lines = members.filter(|(_, value)| !value.is_null()).map(|(name, value)| match (name.as_str(), value) {
        ("time" | "made", value) => format!("{name:<14} {}", time(value)),
        ("rule", value) => format!("{name:<14} {}", rule(value)),
        ("rules", Value::Array(rules)) => {
            format!("{name:<14} {}", rules.iter().map(rule).collect::<Vec<_>>().join("; "))
        }
        ("claims", value) => format!("{name:<14} {}", printable(&pretty(value).replace('\n', " "))),
        (_, value) => format!("{name:<14} {}", cell(value)),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What of the records `rules replay` goes over.
pub(super) struct Over {
    pub(super) from: u64,
    pub(super) collection: Option<String>,
    pub(super) limit: u64,
}

pub(super) fn replay(
    session: &mut Session,
    draft: &Path,
    current: Option<&Path>,
    over: Over,
    screen: &Screen,
) -> Result<(), CommandError> {
    let (draft, current) = (text_of(draft)?, current.map(text_of).transpose()?);
    let Over { from, collection, limit } = over;
    let request = Request::RulesReplay { draft, current, from, collection, limit };
    let mut kept = Vec::new();
    let mut output = screen.output(|row| {
        if screen.json {
            return screen.print(&row.to_string());
        }
        if screen.quiet {
            return screen.print(&row["lsn"].to_string());
        }
        kept.push(row);
        Ok(())
    });
    let done = session.call(request, &mut output)?;
    drop(output);
    if !kept.is_empty() {
        screen.print(&table(&DIFFERENCES, &kept))?;
    }
    if screen.json {
        screen.print(&json!({ "summary": done }).to_string())?;
    } else if !screen.quiet {
        screen.print(&summary(&done))?;
    }
    let count = |name: &str| done[name].as_u64().unwrap_or(0);
    let (differing, listed) = (count("would_be_refused") + count("would_be_allowed"), count("listed"));
    if differing == 0 {
        return Ok(());
    }
    let why = match differing - listed.min(differing) {
        0 => format!("{differing} decisions would be others"),
        more => format!("{differing} decisions would be others, {more} of them not listed"),
    };
    Err(CommandError::new("E0221", Exit::Failed, why).fix("`tidelog audit show LSN` tells more of each"))
}

/// The text of a file of rules that can be read.
fn text_of(path: &Path) -> Result<RulesText, CommandError> {
    let rules = read_rules(path)?;
    Ok(RulesText { name: path.display().to_string(), text: rules.source().to_owned() })
}

fn summary(done: &Value) -> String {
    let count = |name: &str| done[name].as_u64().unwrap_or(0);
    let not_asked: Vec<(&String, u64)> =
        done["not_asked"].as_object().into_iter().flatten().map(|(why, n)| (why, n.as_u64().unwrap_or(0))).collect();
    let mut text = format!(
        "{} as before, {} would be refused, {} would be allowed, {} could not be asked",
        count("same"),
        count("would_be_refused"),
        count("would_be_allowed"),
        not_asked.iter().map(|(_, n)| n).sum::<u64>(),
    );
    for (why, n) in not_asked {
        text.push_str(&format!("\n  {n} not asked: {why}"));
    }
    if count("beside") > 0 {
        text.push_str(&format!("\n  {} writes beside, for which nobody was asked", count("beside")));
    }
    text
}
