//! One flipped bit, anywhere in a data directory: an error that names file and place, or the right value. Never less
//! than was acknowledged without a word, never another value, never a panic.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tidelog::Database;
use tidelog::net::{Identity, UnknownKeys};
use tidelog::node::peers::PeerBook;
use tidelog::node::place::{OpenPlace, Place};

use crate::store::{Random, Store, Verdict, files_below, flip, number, written};

/// How many bits are flipped of all files of one kind, unless `TIDELOG_FLIPS` says another number; `all` flips one in
/// every byte.
const SAMPLES: u64 = 40;

/// What became of the flips in one kind of file.
#[derive(Default)]
struct Tally {
    flips: u64,
    /// Opening was refused.
    refused: u64,
    /// It opened, and `verify` or reading named the damage.
    named: u64,
    /// Everything was right.
    right: u64,
    /// Errors that name neither the file nor a record.
    placeless: Vec<String>,
}

/// The kind of a file, by its path in the data directory; `None` for those that hold nothing.
fn kind(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_str()?;
    Some(match name {
        "FORMAT" | "node.key" | "peers.json" | "tail.hwm" => {
            ["FORMAT", "node.key", "peers.json", "tail.hwm"].into_iter().find(|known| *known == name)?
        }
        "current" => "current",
        "version" => "version",
        _ if name.ends_with(".jnl") => "journal",
        _ if path.parent()?.ends_with("tables") => "table",
        _ if name.starts_with('v') => "manifest",
        _ => return None,
    })
}

#[test]
fn a_flipped_bit_anywhere_is_named_or_harmless() {
    let seed = number("TIDELOG_FLIPS_SEED", 0xb17);
    let all = std::env::var("TIDELOG_FLIPS").is_ok_and(|text| text == "all");
    println!("TIDELOG_FLIPS_SEED={seed}");
    let mut random = Random(seed);
    let store = Store::make(240);
    let mut places: BTreeMap<&'static str, Vec<(PathBuf, u64)>> = BTreeMap::new();
    for file in files_below(&store.path) {
        let Some(kind) = kind(&file) else { continue };
        let length = written(&store.path.join(&file));
        places.entry(kind).or_default().extend((0..length).map(|at| (file.clone(), at)));
    }
    for expected in
        ["FORMAT", "node.key", "peers.json", "tail.hwm", "current", "version", "journal", "table", "manifest"]
    {
        assert!(places.contains_key(expected), "no {expected} in the store");
    }
    let mut tallies = BTreeMap::new();
    for (kind, bytes) in &places {
        let tally: &mut Tally = tallies.entry(*kind).or_default();
        let count = if all { bytes.len() as u64 } else { number("TIDELOG_FLIPS", SAMPLES).min(bytes.len() as u64) };
        for n in 0..count {
            let (file, at) = &bytes[if all { n } else { random.below(bytes.len() as u64) } as usize];
            let bit = random.below(8) as u32;
            judge_flip(&store, kind, file, *at, bit, tally);
        }
    }
    println!("file           bytes  flips refused named right");
    let (mut live, mut found) = (0, 0);
    for (kind, tally) in &tallies {
        println!(
            "{kind:12} {:7} {:6} {:7} {:5} {:5}",
            places[kind].len(),
            tally.flips,
            tally.refused,
            tally.named,
            tally.right
        );
        // Of the mark one copy is older than the other: its bytes are not live, and the newer one's are made again.
        if *kind != "tail.hwm" {
            live += tally.flips;
            found += tally.refused + tally.named;
        }
        for text in tally.placeless.iter().take(3) {
            println!("  names no place: {text}");
        }
    }
    println!("{found} of {live} flips in live bytes found");
    assert!(found * 100 >= live * 99, "{found} of {live}");
    let placeless: usize = tallies.values().map(|tally| tally.placeless.len()).sum();
    assert_eq!(placeless, 0, "errors that name no place");
}

fn judge_flip(store: &Store, kind: &str, file: &Path, at: u64, bit: u32, tally: &mut Tally) {
    let what = format!("bit {bit} of byte {at} of {}", file.display());
    let data = store.copy("flipped");
    flip(&data.join(file), at, bit);
    tally.flips += 1;
    let name = file.file_name().unwrap().to_str().unwrap();
    let mut named = |text: String| {
        if !text.contains(name) && !text.contains("record") && !text.contains("has format") {
            tally.placeless.push(format!("{what}: {text}"));
        }
    };
    match kind {
        "node.key" => match Identity::load_or_create(&data.join(file)) {
            Ok(identity) => {
                assert_eq!(identity.node(), store.node, "{what}: another key");
                tally.right += 1;
            }
            Err(error) => {
                named(error.to_string());
                tally.refused += 1;
            }
        },
        "peers.json" => match PeerBook::load(&data, UnknownKeys::Refuse) {
            Ok(book) => {
                let original = PeerBook::load(&store.path, UnknownKeys::Refuse).unwrap();
                assert_eq!(format!("{:?}", book.entries()), format!("{:?}", original.entries()), "{what}");
                tally.right += 1;
            }
            Err(error) => {
                named(error.message);
                tally.refused += 1;
            }
        },
        "FORMAT" => {
            // In its own place: anywhere else it is a copy, and refused as one.
            let original = fs::read(store.path.join(file)).unwrap();
            flip(&store.path.join(file), at, bit);
            let opened = Place::open(&store.path, &OpenPlace::default());
            fs::write(store.path.join(file), original).unwrap();
            match opened {
                Ok(_) => panic!("{what}: opened"),
                Err(error) => {
                    named(error.message);
                    tally.refused += 1;
                }
            }
        }
        _ => match Database::builder(&data).create(false).node(store.node).restored(true).open() {
            Err(error) => {
                assert!(error.is_corruption(), "{what}: {} {error}", error.code());
                named(error.to_string());
                tally.refused += 1;
            }
            Ok(database) => {
                let faults = database.verify(false, &mut |_, _| {}).unwrap().faults;
                let held = store.judge.holds(&database);
                match (&held, faults.first()) {
                    (Err(Verdict::Silent(why)), _) => panic!("{what}: {why}; {faults:?}"),
                    (Err(Verdict::Named(why)), None) => panic!("{what}: verify found nothing, reading: {why}"),
                    (_, Some(_)) => {
                        named(format!("{faults:?}"));
                        tally.named += 1;
                    }
                    (Ok(()), None) => tally.right += 1,
                }
                // Writing goes on or is refused; it does not hang.
                if let Ok((_, commit)) = database.collection("notes").unwrap().create(serde_json::json!({})) {
                    let _ = commit.wait();
                }
            }
        },
    }
    fs::remove_dir_all(&data).unwrap();
}

#[test]
fn a_file_that_is_gone_is_named_and_nothing_is_deleted_in_its_place() {
    let store = Store::make(90);
    for file in files_below(&store.path) {
        if kind(&file).is_none() || file.ends_with("peers.json") {
            continue;
        }
        let data = store.copy("gone");
        fs::remove_file(data.join(&file)).unwrap();
        let before = files_below(&data);
        match Database::builder(&data).create(false).node(store.node).restored(true).open() {
            Ok(database) => {
                assert!(file.ends_with("node.key"), "{} is gone and nobody noticed", file.display());
                store.judge.holds(&database).unwrap();
            }
            Err(error) => {
                assert!(matches!(error.code(), "E0101" | "E0401" | "E0405"), "{}: {error}", file.display());
                let kept = files_below(&data);
                for left in &before {
                    assert!(kept.contains(left), "{} is gone, and then {}", file.display(), left.display());
                }
            }
        }
        fs::remove_dir_all(&data).unwrap();
    }
}
