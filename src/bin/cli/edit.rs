//! Editing a document as JSON in the user's editor.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tidelog::node::Session;
use tidelog::node::command::{CommandError, Exit, Request};

use super::commands::{one, pretty, show};
use super::screen::Screen;

pub(super) fn edit(session: &mut Session, id: &str, screen: &Screen) -> Result<(), CommandError> {
    let base = one(session, Request::Read { id: id.to_owned(), at: None })?;
    let path = temporary_path("json");
    let text = format!("{}\n", pretty(&base));
    let mut file = create_private(&path)?;
    std::io::Write::write_all(&mut file, text.as_bytes())
        .map_err(|error| CommandError::file("write", &path, &error))?;
    drop(file);
    let made = edited(&path).and_then(|edited| match edited {
        value if value == base => Ok(None),
        value => one(session, Request::Replace { id: id.to_owned(), base, value }).map(Some),
    });
    let row = match made {
        Ok(row) => row,
        // The user's work is kept where it can be found.
        Err(error) => {
            let remedy = error.remedy.clone().unwrap_or_default();
            let kept = format!("{remedy}; what you wrote is in {}", path.display());
            return Err(error.fix(kept.trim_start_matches("; ").to_owned()));
        }
    };
    // A file that cannot be removed is in a temporary folder.
    let _ = std::fs::remove_file(&path);
    match row {
        None => screen.say("nothing was changed"),
        Some(row) => {
            show(screen, &row, "id", row["change"].as_str().unwrap_or("unchanged"))?;
            screen.next(&format!("tidelog log {id}"));
        }
    }
    Ok(())
}

/// What the file holds after the editor has ended.
fn edited(path: &Path) -> Result<Value, CommandError> {
    let editor = ["VISUAL", "EDITOR"].iter().find_map(|name| std::env::var(name).ok().filter(|text| !text.is_empty()));
    let editor = editor.unwrap_or_else(|| "vi".to_owned());
    // Through the shell, since the variable may hold a whole command, as `code --wait`.
    let status = Command::new("sh").arg("-c").arg(format!("{editor} \"$1\"")).arg("sh").arg(path).status();
    let ended = status.map_err(|error| CommandError::file("run the editor on", path, &error))?;
    if !ended.success() {
        return Err(CommandError::new("E0114", Exit::Failed, format!("the editor `{editor}` ended with {ended}"))
            .fix("set EDITOR to an editor that waits until you are done"));
    }
    let text = std::fs::read(path).map_err(|error| CommandError::file("read", path, &error))?;
    serde_json::from_slice(&text).map_err(|error| CommandError::json("what you wrote", &error))
}

/// A path in the temporary folder that nobody else uses.
pub(super) fn temporary_path(extension: &str) -> PathBuf {
    let name = tidelog::DocumentId::random().to_string().replace("automerge:", "tidelog-");
    std::env::temp_dir().join(format!("{name}.{extension}"))
}

/// A new file that its owner only may read.
pub(super) fn create_private(path: &Path) -> Result<File, CommandError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let created = File::options().write(true).create_new(true).mode(0o600).open(path);
    created.map_err(|error| CommandError::file("write", path, &error))
}
