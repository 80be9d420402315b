//! A database in a directory, without a server: create, change, read, reopen.

use serde_json::json;
use tidelog::{Database, Error};

fn main() -> Result<(), Error> {
    let path = std::env::temp_dir().join(format!("tidelog-embed-{}", std::process::id()));
    let database = Database::open(&path)?;
    let (note, created) = database.collection("notes")?.create(json!({ "title": "Tides", "text": "High at noon." }))?;
    created.wait()?;
    note.change(|edit| Ok(edit.splice("text", 0, 0, "Spring tide. ")?))?.wait()?;
    println!("{} {}", note.id(), note.to_json()?);
    let id = note.id();
    drop((note, database));

    let database = Database::open(&path)?;
    println!("reopened: {}", database.find(id)?.to_json()?);
    Ok(())
}
