//! `tidelog salvage`.

use std::path::Path;

use serde_json::json;
use tidelog::node::command::{CommandError, Output as _};
use tidelog::node::salvage::{Salvaged, salvage};

use super::screen::Screen;

pub(super) fn run(from: &Path, to: &Path, screen: &Screen) -> Result<(), CommandError> {
    let mut output = screen.output(|_| Ok(()));
    let salvaged = salvage(from, to, &mut |progress| output.progress(progress))?;
    drop(output);
    if screen.json {
        return screen.print(&json!(salvaged).to_string());
    }
    if screen.quiet {
        return screen.print(&salvaged.to.display().to_string());
    }
    for line in lines(&salvaged) {
        screen.print(&line)?;
    }
    screen.next(&format!("tidelog serve --data {}    (its peers refill it)", salvaged.to.display()));
    Ok(())
}

fn lines(salvaged: &Salvaged) -> Vec<String> {
    let mut lines = vec![format!(
        "{}: {} documents, {} changes and {} statements of {} intact records",
        salvaged.to.display(),
        salvaged.documents,
        salvaged.changes,
        salvaged.statements,
        salvaged.records
    )];
    lines.push(format!("node {}, log {}", salvaged.node, salvaged.log));
    lines.extend(salvaged.damage.iter().map(|(file, why)| format!("damaged   {file}: {why}")));
    lines.extend(salvaged.lost.iter().map(|(first, last)| match first == last {
        true => format!("lost      record {first}"),
        false => format!("lost      records {first} to {last}"),
    }));
    lines.extend(salvaged.incomplete.iter().map(|id| format!("incomplete {id}")));
    lines.extend(salvaged.recreated.iter().map(|id| format!("recreated {id}: its creation is lost")));
    lines.extend(salvaged.not_copied.iter().map(|file| format!("not copied {file}")));
    if salvaged.waiting > 0 {
        lines.push(format!("left out  {} changes that depend on lost ones", salvaged.waiting));
    }
    if salvaged.audit > 0 {
        lines.push(format!("audit     {} records stay in the damaged directory: keep it for them", salvaged.audit));
    }
    if salvaged.is_whole() {
        lines.push("nothing is lost".to_owned());
    }
    lines
}
