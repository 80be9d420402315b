//! Checking the store, and what is said of documents that can be read in part only.

use serde_json::Value;
use tidelog::node::Session;
use tidelog::node::command::{CommandError, Exit, Request};

use super::commands::show;
use super::screen::Screen;
use super::table::cell;

pub(super) fn verify(session: &mut Session, deep: bool, screen: &Screen) -> Result<(), CommandError> {
    let mut output = screen.output(|row| {
        let text = match row["void"].as_str() {
            Some(_) => format!("{}: cannot be applied, and is left out: {}", cell(&row["place"]), cell(&row["void"])),
            None => format!("{}: {}", cell(&row["place"]), cell(&row["fault"])),
        };
        show(screen, &row, "place", &text)
    });
    let answer = session.call(Request::Verify { deep }, &mut output)?;
    drop(output);
    if screen.json {
        screen.print(&answer.to_string())?;
    }
    let faults = answer["faults"].as_u64().unwrap_or(0);
    if faults > 0 {
        let why = format!("the store has {faults} faults");
        return Err(CommandError::new("E0401", Exit::Corruption, why)
            .fix("stop the node, then `tidelog salvage` copies what is intact into a new store, which peers refill"));
    }
    if !screen.json && !screen.quiet {
        screen.print(&format!(
            "no faults: {} records in {} groups, {} documents, {} rebuilt, {} snapshots",
            answer["records"], answer["groups"], answer["documents"], answer["rebuilt"], answer["snapshots"]
        ))?;
        if answer["voids"].as_u64().is_some_and(|voids| voids > 0) {
            screen.print(&format!(
                "{} changes are kept and not shown, since this version of automerge cannot apply them",
                answer["voids"]
            ))?;
        }
        screen.next(if deep { "tidelog status" } else { "tidelog verify --deep" });
    }
    Ok(())
}

/// How many changes a document has, and how many of them are not shown.
pub(super) fn changes(row: &Value) -> String {
    match row["degraded"]["hidden"].as_u64() {
        Some(hidden) => format!("{} ({hidden} not shown)", cell(&row["changes"])),
        None => cell(&row["changes"]),
    }
}

/// Says so if documents that were exported are not all of what is kept.
pub(super) fn warn_of_degraded(screen: &Screen, answer: &Value) {
    if let Some(degraded) = answer["degraded"].as_u64().filter(|degraded| *degraded > 0 && !screen.quiet) {
        screen.warn(&format!(
            "{degraded} of the exported documents lack changes that this version of automerge cannot apply; `tidelog verify` lists those"
        ));
    }
}

/// Says so if what was shown is not all of a document.
pub(super) fn warn_if_degraded(screen: &Screen, answer: &Value) {
    let Some(hidden) = answer["degraded"]["hidden"].as_u64().filter(|_| !screen.quiet) else { return };
    if screen.json {
        return screen.warn(&answer.to_string());
    }
    let voids = answer["degraded"]["voids"].as_u64().unwrap_or(0);
    screen.warn(&format!(
        "this is not all of the document: {voids} of its changes cannot be applied by this version of automerge, and {hidden} are not shown; `tidelog verify` lists those that cannot be applied"
    ));
}
