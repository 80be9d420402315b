//! Consumers that are killed, as processes, wherever they are: what they made of each event counts once.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use tidelog::feed::{Item, Opening};
use tidelog::{Database, Error};

/// Set for the process that is killed: where the database is.
const PLACE: &str = "TIDELOG_TEST_CONSUMER";
const KILLS: usize = 200;
/// Edits in each life, beside what was left.
const EDITS: usize = 40;

fn count(rows: &tidelog::feed::Rows<'_>) -> u64 {
    rows.row(b"count").unwrap().map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
}

/// One life: edits, and a projection that counts events and writes each of their positions.
#[test]
#[ignore = "the process that the test below starts and kills"]
fn a_life_of_a_consumer() {
    let place = std::env::var_os(PLACE).expect("the test below says where");
    let database = Database::open(Path::new(&place)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let notes = database.collection("notes").unwrap();
    println!("lives");
    std::io::stdout().flush().unwrap();
    let consumer = database.consumer("counting").unwrap();
    runtime.block_on(async {
        let mut projection = consumer.projection().await.unwrap();
        for n in 0.. {
            if n < EDITS {
                // Not waited for, so that a kill finds some under way.
                let (_, created) = notes.create(json!({ "n": n })).unwrap();
                drop(created);
            }
            let take = |rows: &mut tidelog::feed::RowsMut<'_>, item: &Item| -> Result<(), Error> {
                match item {
                    Item::Event(event) => {
                        let key = [&b"at"[..], &event.position.0.to_be_bytes(), &event.document.0].concat();
                        assert!(rows.row(&key)?.is_none(), "an event comes once");
                        rows.put(&key, Vec::new())?;
                        let count =
                            rows.row(b"count")?.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
                        rows.put(b"count", (count + 1).to_le_bytes().to_vec())
                    }
                    Item::Opened(opening) => {
                        assert!(matches!(opening, Opening::Resumed { .. }), "{opening:?}");
                        Ok(())
                    }
                    _ => Ok(()),
                }
            };
            projection.catch_up(take).await.unwrap();
        }
    });
}

#[test]
fn killed_anywhere_a_projection_counts_each_event_once() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("data");
    let seed: u64 = std::env::var("TIDELOG_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5eed);
    println!("TIDELOG_SEED={seed}");
    let mut random = seed;
    for _ in 0..KILLS {
        let mut life = Command::new(std::env::current_exe().unwrap());
        life.args(["--exact", "consumers::a_life_of_a_consumer", "--ignored", "--nocapture"]).env(PLACE, &place);
        let mut child = life.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("lives")), "a life began");
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Where it is then is as random as the instant.
        std::thread::sleep(std::time::Duration::from_micros(random >> 33 & 0x3fff));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let database = Database::open(&place).unwrap();
    let consumer = database.consumer("counting").unwrap();
    let before = count(&consumer.rows());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut counted = before;
    runtime.block_on(async {
        let mut projection = consumer.projection().await.unwrap();
        let take = |_: &mut tidelog::feed::RowsMut<'_>, item: &Item| {
            counted += u64::from(matches!(item, Item::Event(_)));
            Ok(())
        };
        projection.catch_up(take).await.unwrap();
    });
    let mut feed = database.changes().open().unwrap();
    let mut events = 0;
    while let Some(item) = feed.next_now().unwrap() {
        events += u64::from(matches!(item, Item::Event(_)));
    }
    assert_eq!(counted, events, "of {events} events each counts once, {before} of them before the last life");
    assert!(before > KILLS as u64, "the lives were long enough to count: {before}");
}
