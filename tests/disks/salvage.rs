//! What is intact of a damaged store goes on in a new one, and what is lost is said.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tidelog::Database;
use tidelog::node::place::{OpenPlace, Place};
use tidelog::node::salvage::{Salvaged, salvage};
use tidelog::node::{Node, NodeConfig};

use crate::store::{Random, Store, files_below, flip, written};

/// Salvages `damaged` and opens what was made of it.
fn salvaged(damaged: &Path, store: &Store) -> (Salvaged, Place) {
    let to = store.folder.path().join("salvaged");
    let before = files_below(damaged);
    let report = salvage(damaged, &to, &mut |_| {}).unwrap_or_else(|error| panic!("{}: {error}", damaged.display()));
    assert_eq!(files_below(damaged), before, "the damaged directory is only read");
    let place = Place::open(&to, &OpenPlace::default()).unwrap();
    let found = place.database.verify(true, &mut |_, _| {}).unwrap();
    assert!(found.faults.is_empty(), "{:#?}", found.faults);
    store.judge.is_subset(&place.database);
    (report, place)
}

fn end(place: Place) {
    let path = place.path.clone();
    place.database.close();
    drop(place);
    fs::remove_dir_all(path).unwrap();
}

fn journals(data: &Path) -> Vec<PathBuf> {
    files_below(data).into_iter().filter(|file| file.extension().is_some_and(|ending| ending == "jnl")).collect()
}

fn tables_of_the_log(data: &Path) -> Vec<PathBuf> {
    files_below(data).into_iter().filter(|file| file.starts_with("store/keyspaces/1/tables")).collect()
}

#[test]
fn a_whole_store_is_salvaged_whole_under_a_new_log_id_and_the_same_key() {
    let store = Store::make(120);
    let log_id = {
        let place = Place::open(&store.path, &OpenPlace::default()).unwrap();
        place.database.reader().log_id()
    };
    let (report, place) = salvaged(&store.path, &store);
    assert!(report.is_whole() && report.damage.is_empty(), "{report:#?}");
    store.judge.holds(&place.database).unwrap();
    assert_eq!(place.database.node(), store.node);
    assert_ne!(place.database.reader().log_id(), log_id);
    assert_eq!(report.changes, store.judge.changes.len() as u64);
    end(place);
}

#[test]
fn a_journal_damaged_in_the_middle_costs_a_record_and_what_depends_on_it() {
    let store = Store::make(120);
    let mut random = Random(3);
    for _ in 0..6 {
        let data = store.copy("damaged");
        let journal = journals(&data).pop().unwrap();
        let length = written(&data.join(&journal));
        let at = random.below(length * 3 / 4);
        flip(&data.join(&journal), at, 5);
        let refused = Database::builder(&data).node(store.node).restored(true).open().err().unwrap();
        assert_eq!(refused.code(), "E0401", "{refused}");
        assert!(refused.remedy().unwrap().contains("salvage"), "{refused}");
        let (report, place) = salvaged(&data, &store);
        // A batch's own bytes may be hit, and no record in it. Its number says nothing to who takes every record there is.
        // A length that is hit hides the rest of its batch: names, a change, a footer.
        assert!(report.lost_positions <= 4, "{report:#?}");
        let is_number = refused.to_string().contains("the batch's number does not follow");
        let is_untouched = is_number && report.is_whole();
        assert!(is_untouched || !report.damage.is_empty(), "{at} of {length}: {refused} {report:#?}");
        assert!(report.changes + 60 > store.judge.changes.len() as u64, "{report:#?}");
        end(place);
        fs::remove_dir_all(&data).unwrap();
    }
}

#[test]
fn whatever_is_gone_but_the_records_nothing_is_lost() {
    let store = Store::make(120);
    let gone = [
        "store/version",
        "store/keyspaces/0",
        "store/keyspaces/1/current",
        "store/keyspaces/3",
        "store/keyspaces/6",
        "FORMAT",
        "LOCK",
    ];
    for gone in gone {
        let data = store.copy("damaged");
        let path = data.join(gone);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap()
        } else {
            fs::remove_file(&path).unwrap()
        }
        let (report, place) = salvaged(&data, &store);
        assert!(report.lost_positions == 0 && report.waiting == 0, "{gone}: {report:#?}");
        store.judge.holds(&place.database).unwrap();
        end(place);
        fs::remove_dir_all(&data).unwrap();
    }
}

#[test]
fn a_damaged_table_file_costs_the_records_of_its_damaged_blocks() {
    let store = Store::make(240);
    let tables = tables_of_the_log(&store.path);
    assert!(!tables.is_empty());
    let mut random = Random(5);
    let (mut whole, mut parts) = (0, 0);
    for n in 0..9 {
        let data = store.copy("damaged");
        // Otherwise the journals give again what the tables lost.
        journals(&data).iter().for_each(|journal| fs::write(data.join(journal), b"").unwrap());
        if n == 8 {
            let (report, place) = salvaged(&data, &store);
            whole = report.records;
            end(place);
            break;
        }
        let table = data.join(&tables[n % tables.len()]);
        let length = written(&table);
        match n {
            7 => fs::write(&table, b"no table at all").unwrap(),
            6 => fs::OpenOptions::new().write(true).open(&table).unwrap().set_len(length / 2).unwrap(),
            _ => flip(&table, random.below(length), 2),
        }
        let (report, place) = salvaged(&data, &store);
        assert!(!report.damage.is_empty(), "{report:#?}");
        parts += u64::from(report.records > 0);
        whole = whole.max(report.records);
        end(place);
        fs::remove_dir_all(&data).unwrap();
    }
    println!("{whole} records in undamaged tables, something read of {parts} of 8 damaged ones");
    assert!(parts >= 4 && whole > 300, "{parts} {whole}");
}

#[test]
fn without_key_and_mark_it_is_another_node_with_every_document() {
    let store = Store::make(60);
    let data = store.copy("damaged");
    fs::remove_file(data.join("tail.hwm")).unwrap();
    flip(&data.join("node.key"), 30, 0);
    flip(&data.join("peers.json"), 40, 0);
    let (report, place) = salvaged(&data, &store);
    assert_ne!(place.database.node(), store.node);
    assert_eq!(report.not_copied.len(), 2, "{report:#?}");
    store.judge.holds(&place.database).unwrap();
    end(place);
}

#[test]
fn the_command_says_what_is_lost() {
    let store = Store::make(60);
    let data = store.copy("damaged");
    let journal = data.join(journals(&data).pop().unwrap());
    flip(&journal, written(&journal) / 3, 1);
    let run = |words: &[&str]| Command::new(env!("CARGO_BIN_EXE_tidelog")).args(words).output().unwrap();
    let (data, to) = (data.to_str().unwrap(), store.folder.path().join("new"));
    let to = to.to_str().unwrap();
    let output = run(&["salvage", data, "--to", to, "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["changes"].as_u64().unwrap() > 0 && !report["damage"].as_array().unwrap().is_empty(), "{report}");
    let output = run(&["salvage", data, "--to", to]);
    assert_eq!(output.status.code(), Some(6), "there is something at the target");
    let output = run(&["verify", "--deep", "--data", to]);
    assert!(output.status.success(), "{output:?}");
}

/// Damage, salvage, and a healthy peer: in the end both have everything, also what was lost here.
#[test]
fn a_salvaged_node_is_refilled_by_its_peer() {
    let store = Store::make(120);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = |data: &Path| NodeConfig {
        trust_loopback_nodes: true,
        open: OpenPlace { create: true, restored: data.ends_with("damaged"), ..OpenPlace::default() },
        ..NodeConfig::new(data, "127.0.0.1:0".parse().unwrap())
    };
    let peer_data = store.folder.path().join("peer");
    let data = store.copy("damaged");
    // The peer is not to be dialled by anybody but us.
    fs::remove_file(data.join("peers.json")).unwrap();
    runtime.block_on(async {
        let node = Node::start(config(&data)).await.unwrap();
        let peer = Node::start(NodeConfig { peers: vec![node.ticket().clone()], ..config(&peer_data) }).await.unwrap();
        converged(node.database(), peer.database()).await;
        node.shut_down().await;
        peer.shut_down().await;
    });
    let journal = data.join(journals(&data).pop().unwrap());
    let length = written(&journal);
    // A whole page, so that documents are torn apart.
    let file = fs::OpenOptions::new().write(true).open(&journal).unwrap();
    file.write_all_at(&[0xa5; 4096], length * 5 / 6).unwrap();
    let (report, place) = salvaged(&data, &store);
    assert!(report.lost_positions > 0, "{report:#?}");
    let salvaged_data = place.path.clone();
    place.database.close();
    drop(place);
    runtime.block_on(async {
        let node = Node::start(config(&salvaged_data)).await.unwrap();
        let peer = Node::start(NodeConfig { peers: vec![node.ticket().clone()], ..config(&peer_data) }).await.unwrap();
        converged(node.database(), peer.database()).await;
        store.judge.holds(node.database()).unwrap();
        node.shut_down().await;
        peer.shut_down().await;
    });
}

async fn converged(a: &Database, b: &Database) {
    let (mut tail_a, mut tail_b) = (a.tail(), b.tail());
    let equal = async {
        loop {
            let all = |database: &Database| database.reader().inventory(None, usize::MAX).unwrap();
            if !all(a).is_empty() && all(a) == all(b) {
                return;
            }
            tokio::select! {
                changed = tail_a.changed() => changed.unwrap(),
                changed = tail_b.changed() => changed.unwrap(),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), equal).await.expect("not converged");
}
