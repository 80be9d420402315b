//! What is edited: made beforehand, so that the driver only sends it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use automerge::transaction::Transactable;
use automerge::{ActorId, AutoCommit, ObjId, ObjType, ROOT, ReadDoc};

use crate::Failure;
use crate::sync::Hash;

/// One change: its name and its bytes.
#[derive(Debug)]
pub struct Edit {
    pub hash: Hash,
    pub bytes: Vec<u8>,
}

/// A document with one author, who is about to edit it.
#[derive(Debug)]
pub struct Authored {
    pub id: String,
    /// What is there before the measurement: one chunk.
    pub base: Edit,
    /// What is edited, each on top of the one before.
    pub edits: Vec<Edit>,
}

/// A fresh id: a UUID of version 4 in base58check.
pub fn fresh_id() -> String {
    let mut bytes: [u8; 16] = ActorId::random().to_bytes()[..16].try_into().unwrap_or([7; 16]);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bs58::encode(bytes).with_check().into_string()
}

/// Documents of one small change each.
pub fn small(count: usize) -> Result<Vec<Authored>, Failure> {
    let one = |n: usize| {
        let mut document = AutoCommit::new();
        document.put(ROOT, "title", format!("note {n}"))?;
        document.put(ROOT, "done", n.is_multiple_of(3))?;
        document.put(ROOT, "priority", (n % 5) as i64)?;
        Ok(Authored { id: fresh_id(), base: last(&mut document)?, edits: Vec::new() })
    };
    (0..count).map(one).collect()
}

/// A small text, and single letters typed into it.
pub fn typed(edits: usize) -> Result<Authored, Failure> {
    let mut document = AutoCommit::new();
    let text = document.put_object(ROOT, "text", ObjType::Text)?;
    document.splice_text(&text, 0, 0, "A text that somebody edits. ")?;
    let base = last(&mut document)?;
    let edits = letters(&mut document, &text, edits)?;
    Ok(Authored { id: fresh_id(), base, edits })
}

/// The paper of 259,778 keystrokes, one change each, and further keystrokes in its middle: from `cache`, or made from its
/// history and kept there.
pub fn paper(cache: &Path, keystrokes: usize) -> Result<Authored, Failure> {
    let file = cache.join("paper-1.automerge");
    let mut document = match std::fs::read(&file) {
        Ok(bytes) => AutoCommit::load(&bytes)?,
        Err(_) => {
            let mut made = write_paper()?;
            std::fs::create_dir_all(cache)?;
            std::fs::write(&file, made.save())?;
            made
        }
    };
    let heads = document.get_heads();
    let [head] = *heads else { return Err("the paper has more than one head".into()) };
    let base = Edit { hash: head.0, bytes: document.save() };
    let Some((_, text)) = document.get(ROOT, "text")? else { return Err("the paper has no text".into()) };
    let edits = letters(&mut document, &text, keystrokes)?;
    Ok(Authored { id: fresh_id(), base, edits })
}

fn letters(document: &mut AutoCommit, text: &ObjId, edits: usize) -> Result<Vec<Edit>, Failure> {
    let middle = document.length(text) / 2;
    let mut made = Vec::with_capacity(edits);
    for n in 0..edits {
        let letter = char::from(b'a' + (n % 26) as u8);
        document.splice_text(text, middle + n, 0, letter.encode_utf8(&mut [0; 4]))?;
        made.push(last(document)?);
    }
    Ok(made)
}

fn last(document: &mut AutoCommit) -> Result<Edit, Failure> {
    document.commit();
    let change = document.get_last_local_change().ok_or("nothing was edited")?;
    Ok(Edit { hash: change.hash().0, bytes: change.raw_bytes().to_vec() })
}

fn write_paper() -> Result<AutoCommit, Failure> {
    let began = Instant::now();
    let file = traces().join("sequential/automerge-paper.json.gz");
    let compressed = std::fs::File::open(&file)
        .map_err(|error| format!("{}: {error}; TIDELOG_TRACES names the folder of the histories", file.display()))?;
    let mut json = String::new();
    flate2::read::GzDecoder::new(compressed).read_to_string(&mut json)?;
    let trace: serde_json::Value = serde_json::from_str(&json)?;
    let mut document = AutoCommit::new().with_actor(ActorId::from(&[7_u8; 16][..]));
    let text = document.put_object(ROOT, "text", ObjType::Text)?;
    document.commit();
    for transaction in trace["txns"].as_array().ok_or("a history has txns")? {
        for patch in transaction["patches"].as_array().ok_or("a transaction has patches")? {
            let at = patch[0].as_u64().ok_or("a patch has a position")? as usize;
            let deleted = patch[1].as_i64().ok_or("a patch has a length")? as isize;
            document.splice_text(&text, at, deleted, patch[2].as_str().ok_or("a patch has a text")?)?;
        }
        document.commit();
    }
    if document.text(&text)? != trace["endContent"].as_str().unwrap_or_default() {
        return Err("the paper came out wrong".into());
    }
    println!("made the paper from its history in {:.1} s", began.elapsed().as_secs_f64());
    Ok(document)
}

fn traces() -> PathBuf {
    match std::env::var_os("TIDELOG_TRACES") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traces"),
    }
}
