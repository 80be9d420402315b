//! `tidelog import`.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tidelog::node::Session;
use tidelog::node::command::{CommandError, Exit, Request, import};

use super::arguments::{Import, SpecialImport, To};
use super::edit;
use super::screen::Screen;
use super::table::{cell, printable};

pub(super) fn run(session: &mut Session, arguments: Import, screen: &Screen) -> Result<(), CommandError> {
    if let Some(SpecialImport::AutomergeRepo { folder, collection }) = arguments.special {
        return automerge_repo(session, &folder, collection, screen);
    }
    let destination = |to: To| import::Destination { collection: to.collection, document: to.document, name: to.name };
    let mut output = screen.output(|_| Ok(()));
    let (answer, command) = match (arguments.special, arguments.file) {
        (Some(SpecialImport::Trace { file, agents, to }), _) => {
            let answer = import::import_trace(session, &file, &destination(to), &agents, &mut output)?;
            (answer, format!("tidelog import trace {}", file.display()))
        }
        (None, Some(file)) if file.is_dir() => {
            return Err(CommandError::usage(format!("{} is a folder", file.display())).fix(format!(
                "`tidelog import automerge-repo {}` takes over the data folder of an automerge-repo server",
                file.display()
            )));
        }
        (None, Some(file)) if file != Path::new("/dev/stdin") && import::is_automerge(&file)? => {
            let answer = import::import_automerge(session, &file, &destination(arguments.to), &mut output)?;
            (answer, String::new())
        }
        (None, Some(file)) => {
            if arguments.to.document.is_some() || arguments.to.name.is_some() {
                return Err(CommandError::usage("--document and --name are for a file that holds one document"));
            }
            let spooled = Spooled::new(&file)?;
            let collection = arguments.to.collection.as_deref();
            (import::import_lines(session, spooled.path(), collection, &mut output)?, String::new())
        }
        (Some(SpecialImport::AutomergeRepo { .. }), _) | (None, None) => {
            return Err(CommandError::usage("there is no file to import"));
        }
    };
    drop(output);
    if screen.json {
        return screen.print(&answer.to_string());
    }
    let number = |key: &str| answer[key].as_u64().unwrap_or(0);
    if let Some(id) = answer["id"].as_str() {
        screen.print(id)?;
        screen.say(&format!("{} changes imported, {} were here", number("imported"), number("known")));
        if number("remaining") > 0 && !screen.quiet {
            screen.warn(&format!(
                "{} changes are left: each needs one of another agent that is not here yet; when it is, run this again",
                number("remaining")
            ));
            screen.next(&format!("{command} --agents ..."));
        } else {
            screen.next(&format!("tidelog log {id}"));
        }
    } else {
        screen.say(&format!(
            "{} documents created, {} changed, {} unchanged",
            number("created"),
            number("changed"),
            number("unchanged")
        ));
        screen.next("tidelog ls");
    }
    Ok(())
}

fn automerge_repo(
    session: &mut Session,
    folder: &Path,
    collection: String,
    screen: &Screen,
) -> Result<(), CommandError> {
    let absolute = std::path::absolute(folder).map_err(|error| CommandError::file("resolve", folder, &error))?;
    let mut output = screen.output(|row| {
        if screen.json {
            return screen.print(&row.to_string());
        }
        let place = row["file"].as_str().or(row["document"].as_str()).unwrap_or_default();
        screen.warn(&format!("left out  {}: {}", printable(place), printable(row["why"].as_str().unwrap_or_default())));
        Ok(())
    });
    let request = Request::ImportAutomergeRepo { folder: absolute, collection: Some(collection) };
    let answer = session.call(request, &mut output);
    drop(output);
    let answer = answer.inspect_err(|error| {
        if error.exit == Exit::Interrupted {
            screen.say(&format!("to go on: tidelog import automerge-repo {}", folder.display()));
        }
    })?;
    let number = |key: &str| answer[key].as_u64().unwrap_or(0);
    if screen.json {
        screen.print(&answer.to_string())?;
    } else if !screen.quiet {
        for line in lines(&answer) {
            screen.print(&line)?;
        }
        screen.next("tidelog ls");
    }
    match number("failed") {
        0 => Ok(()),
        failed => {
            let why = format!("{failed} documents are not here as the folder's files have them");
            Err(CommandError::new("E0618", Exit::Failed, why)
                .fix("they are named above; keep the folder, and `tidelog verify --deep`"))
        }
    }
}

/// What an import of a folder came to, for a person.
fn lines(answer: &Value) -> Vec<String> {
    let number = |key: &str| answer[key].as_u64().unwrap_or(0);
    let mut lines = vec![
        format!(
            "documents   {}: {} created, {} updated, {} unchanged",
            number("documents"),
            number("created"),
            number("updated"),
            number("unchanged")
        ),
        format!("changes     {} imported, {} already here", number("changes"), number("known")),
        format!("verified    {} of {}", number("verified"), number("verified") + number("failed")),
    ];
    let mut unless_none = |count: u64, line: String| {
        if count > 0 {
            lines.push(line);
        }
    };
    let (left_out, empty, deleted, elsewhere) =
        (number("left_out"), number("empty"), number("deleted"), number("elsewhere"));
    unless_none(left_out, format!("left out    {left_out} files or parts of them, named above"));
    unless_none(empty, format!("empty       {empty} documents of which nothing could be used"));
    unless_none(deleted, format!("deleted     {deleted} documents are deleted here and stay so"));
    unless_none(
        elsewhere,
        format!("elsewhere   {elsewhere} documents stay in another collection than {}", cell(&answer["collection"])),
    );
    let degraded = number("degraded");
    unless_none(
        degraded,
        format!("degraded    {degraded} documents were here and are shown in part: `tidelog verify`"),
    );
    unless_none(number("sync_states"), format!("ignored     {} sync states of clients", number("sync_states")));
    unless_none(number("other_keys"), format!("ignored     {} keys of other applications", number("other_keys")));
    let (ours, folder) = (cell(&answer["storage_id"]), answer["folder_storage_id"].as_str());
    lines.push(match folder {
        Some(_) if answer["storage_id_adopted"] == Value::Bool(true) => format!("storage id  {ours}, the folder's"),
        Some(folder) => {
            format!("storage id  {ours}; not the folder's, {}: this store was not empty", printable(folder))
        }
        None => format!("storage id  {ours}; the folder has none"),
    });
    lines
}

/// A file that can be read twice: stdin is put into one, which goes away with this.
struct Spooled {
    path: PathBuf,
    temporary: bool,
}

impl Spooled {
    fn new(file: &Path) -> Result<Self, CommandError> {
        if file != Path::new("/dev/stdin") {
            return Ok(Self { path: file.to_owned(), temporary: false });
        }
        let path = edit::temporary_path("ndjson");
        let spooled = Self { path: path.clone(), temporary: true };
        let mut target = edit::create_private(&path)?;
        let copied = std::io::copy(&mut std::io::stdin().lock(), &mut target);
        copied.map_err(|error| CommandError::file("write", &path, &error))?;
        Ok(spooled)
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        if self.temporary {
            // What is left of it is in a temporary folder.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
