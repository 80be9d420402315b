//! `tidelog export`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tidelog::node::Session;
use tidelog::node::command::{CommandError, Exit, ExportFormat, Request, Target};
use tidelog::{CollectionName, DocumentId};

use super::arguments::{Export, Format};
use super::commands::{pretty, text_of};
use super::screen::Screen;
use super::verify::warn_of_degraded;

pub(super) fn run(session: &mut Session, arguments: Export, screen: &Screen) -> Result<(), CommandError> {
    let (target, collection) = target_of(&arguments)?;
    let to = arguments.output.filter(|path| path != Path::new("-"));
    let one_document = matches!(target, Some(Target::Document(_)));
    let as_files = arguments.all || to.as_deref().is_some_and(names_automerge);
    let format = arguments.format.unwrap_or(match one_document && !screen.json {
        _ if as_files => Format::Automerge,
        true => Format::Json,
        false => Format::Ndjson,
    });
    let place = Placement::of(to, format, one_document, arguments.force)?;
    let mut file = match &place {
        Placement::File(path, force) => Some(NewFile::new(path, *force)?),
        _ => None,
    };
    let mut output = screen.output(|row| {
        if let Some(expected) = &collection {
            in_collection(&row, expected)?;
        }
        let bytes = match format {
            Format::Json => format!("{}\n", pretty(&row["value"])).into_bytes(),
            Format::Ndjson => format!("{row}\n").into_bytes(),
            Format::Automerge => decode(&row)?,
        };
        match (&mut file, &place) {
            (Some(file), _) => file.write(&bytes),
            (None, Placement::Folder(folder, force)) => {
                let id = text_of(&row, "id");
                let name = format!("{}.automerge", id.trim_start_matches("automerge:"));
                let mut file = NewFile::new(&folder.join(name), *force)?;
                file.write(&bytes)?;
                file.finish()
            }
            (None, _) => screen.print_bytes(&bytes),
        }
    });
    let wire = if format == Format::Automerge { ExportFormat::Automerge } else { ExportFormat::Json };
    let answer = session.call(Request::Export { target, format: wire }, &mut output)?;
    drop(output);
    warn_of_degraded(screen, &answer);
    if let Some(file) = file {
        file.finish()?;
    }
    match place {
        Placement::Stdout => return Ok(()),
        Placement::File(path, _) => {
            screen.say(&format!("{} documents in {}", answer["documents"], path.display()));
            screen.next(&format!("tidelog import {}", path.display()));
        }
        Placement::Folder(path, _) => {
            screen.say(&format!("{} documents in {}", answer["documents"], path.display()));
            screen.next(&format!("for file in {}/*.automerge; do tidelog import \"$file\"; done", path.display()));
        }
    }
    Ok(())
}

/// What is meant, and for `collection/id` the collection that the document is said to be in.
fn target_of(arguments: &Export) -> Result<(Option<Target>, Option<CollectionName>), CommandError> {
    if let Some(name) = &arguments.collection {
        let name = CollectionName::new(name.as_str())?;
        return Ok((Some(Target::Collection(name.as_str().to_owned())), None));
    }
    let Some(text) = &arguments.target else { return Ok((None, None)) };
    match text.split_once('/') {
        None => Ok((Some(text.parse()?), None)),
        Some((collection, id)) => {
            let id: DocumentId = id.parse()?;
            Ok((Some(Target::Document(id.to_string())), Some(CollectionName::new(collection)?)))
        }
    }
}

fn in_collection(row: &Value, expected: &CollectionName) -> Result<(), CommandError> {
    let found = CollectionName::new(text_of(row, "collection"))?;
    if found == *expected {
        return Ok(());
    }
    let document = text_of(row, "id").parse()?;
    let error = tidelog::Error::OtherCollection { document, found, expected: expected.clone() };
    Err(CommandError::from(error).fix("look for it there, or leave the collection out"))
}

/// Whether a path is for `.automerge` files: a folder, or named like one of them.
fn names_automerge(path: &Path) -> bool {
    is_folder(path) || path.extension().is_some_and(|extension| extension == "automerge")
}

fn is_folder(path: &Path) -> bool {
    path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// Where documents are written; with whether files that are there may be replaced.
enum Placement {
    Stdout,
    File(PathBuf, bool),
    Folder(PathBuf, bool),
}

impl Placement {
    fn of(to: Option<PathBuf>, format: Format, one_document: bool, force: bool) -> Result<Self, CommandError> {
        let automerge = format == Format::Automerge;
        match to {
            None if automerge && !one_document => {
                Err(CommandError::usage("several .automerge files need a folder").fix("give one with --output FOLDER"))
            }
            None => Ok(Self::Stdout),
            Some(path) if automerge && (!one_document || is_folder(&path)) => {
                std::fs::create_dir_all(&path).map_err(|error| CommandError::file("make", &path, &error))?;
                Ok(Self::Folder(path, force))
            }
            Some(path) => Ok(Self::File(path, force)),
        }
    }
}

fn decode(row: &Value) -> Result<Vec<u8>, CommandError> {
    let text = row["automerge"].clone();
    let bytes: Result<tidelog::node::command::Base64, _> = serde_json::from_value(text);
    bytes.map(|bytes| bytes.0).map_err(|error| CommandError::json("the exported document", &error))
}

/// A file that appears under its name once it is whole.
struct NewFile {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<File>,
    force: bool,
}

impl NewFile {
    fn new(path: &Path, force: bool) -> Result<Self, CommandError> {
        if !force && path.symlink_metadata().is_ok() {
            return Err(taken(path));
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}.new", &DocumentId::random().to_base58()[..8]));
        let temporary = path.with_file_name(name);
        let file = File::create_new(&temporary).map_err(|error| CommandError::file("write", path, &error))?;
        Ok(Self { path: path.to_owned(), temporary, file: Some(file), force })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CommandError> {
        use std::io::Write as _;
        match &mut self.file {
            Some(file) => file.write_all(bytes).map_err(|error| CommandError::file("write", &self.path, &error)),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> Result<(), CommandError> {
        let Some(file) = &self.file else { return Ok(()) };
        let failed = |error: io::Error| CommandError::file("write", &self.path, &error);
        file.sync_all().map_err(failed)?;
        if !self.force {
            // Unlike a rename, a link never takes the place of what came meanwhile.
            match std::fs::hard_link(&self.temporary, &self.path) {
                // The drop removes the other name.
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(taken(&self.path)),
                // A disk without links.
                Err(_) if self.path.symlink_metadata().is_ok() => return Err(taken(&self.path)),
                Err(_) => {}
            }
        }
        std::fs::rename(&self.temporary, &self.path).map_err(failed)?;
        self.file = None;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            // It was not finished, and half a file is of no use; or it has its own name now.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

fn taken(path: &Path) -> CommandError {
    CommandError::new("E0116", Exit::Conflict, format!("{} is there already", path.display()))
        .fix("give another name, or --force to replace it")
}
