//! What honest people write passes.

use std::time::Instant;

use automerge::marks::{ExpandMark, Mark};
use automerge::transaction::Transactable;
use automerge::{AutoCommit, ObjType, ROOT, ReadDoc, ScalarValue};
use proptest::prelude::*;
use tidelog::document::gate::{check_change, check_document};
use tidelog::document::{View, split};
use tidelog::{Change, Limits};

use super::forge::{ACTION, ChangeParts, DocumentParts, deflated, run, sleb, uleb};
use crate::support::cases;

/// A few documents of every kind of operation, edited apart and merged.
pub(super) fn interwoven(steps: &[(u8, u8, u16)]) -> AutoCommit {
    let actors = ["aa", "bb01", "0c"].map(|hex| automerge::ActorId::try_from(hex).unwrap());
    let mut first = AutoCommit::new().with_actor(actors[0].clone());
    let text = first.put_object(ROOT, "text", ObjType::Text).unwrap();
    let list = first.put_object(ROOT, "list", ObjType::List).unwrap();
    let map = first.put_object(ROOT, "map", ObjType::Map).unwrap();
    first.put(ROOT, "hits", ScalarValue::counter(3)).unwrap();
    first.splice_text(&text, 0, 0, "tide and time").unwrap();
    first.commit();
    let mut replicas = [first.fork(), first.fork(), first];
    for (replica, actor) in replicas.iter_mut().zip(actors) {
        replica.set_actor(actor);
    }
    for &(who, what, value) in steps {
        let other = usize::from(value % 3);
        if what % 16 == 15 {
            let mut other = replicas[other].fork();
            replicas[usize::from(who % 3)].merge(&mut other).unwrap();
            continue;
        }
        let doc = &mut replicas[usize::from(who % 3)];
        let at = |length: usize| usize::from(value) % (length + 1);
        let (text_length, list_length) = (doc.length(&text), doc.length(&list));
        let within = |length: usize| (usize::from(value) % length.max(1)).min(length.saturating_sub(1));
        let done = match what % 16 {
            0 | 1 => doc.splice_text(&text, at(text_length), 0, ["a", "é", "🌊 and more", "xyz"][other]),
            2 => doc.splice_text(&text, within(text_length), 3.min(text_length as isize), ""),
            3 => doc.insert(&list, at(list_length), i64::from(value) - 500),
            4 if list_length > 0 => doc.delete(&list, within(list_length)),
            5 if list_length > 0 => doc.put(&list, within(list_length), f64::from(value) / 7.0),
            6 => doc.put(&map, format!("k{other}"), u64::from(value)),
            7 => doc.delete(&map, format!("k{other}")),
            8 => doc.increment(ROOT, "hits", i64::from(value) - 40),
            9 => doc.put(ROOT, "time", ScalarValue::Timestamp(i64::from(value))),
            10 => doc.put(&map, "bytes", vec![value as u8; other * 90]),
            11 if text_length > 2 => {
                let mark = Mark::new("bold".into(), value % 2 == 0, 0, 1 + within(text_length - 1));
                doc.mark(&text, mark, [ExpandMark::Both, ExpandMark::None, ExpandMark::After][other])
            }
            12 => doc.put_object(&map, format!("o{other}"), ObjType::Map).map(|_| ()),
            13 => doc.insert(&list, at(list_length), ScalarValue::counter(value.into())),
            14 if text_length > 2 => doc.unmark(&text, "bold", 0, 2, ExpandMark::Both),
            _ => doc.put(ROOT, "flag", value % 2 == 0),
        };
        done.unwrap();
        if value % 4 != 0 {
            doc.commit();
        }
    }
    let [mut one, mut two, mut three] = replicas;
    one.merge(&mut two).unwrap();
    one.merge(&mut three).unwrap();
    one
}

/// Everything that a document writes of itself: each change, and the whole.
pub(super) fn chunks_of(doc: &mut AutoCommit) -> Vec<Vec<u8>> {
    let mut chunks: Vec<Vec<u8>> =
        doc.get_changes(&[]).into_iter().map(|mut change| change.bytes().into_owned()).collect();
    chunks.push(doc.save());
    chunks.push(doc.save_nocompress());
    chunks
}

proptest! {
    #![proptest_config(cases(48))]

    /// All that automerge writes passes, comes apart as the test's own parser takes it apart, and is what it was.
    #[test]
    fn what_automerge_writes_passes(steps in prop::collection::vec((any::<u8>(), any::<u8>(), any::<u16>()), 0..120)) {
        let mut doc = interwoven(&steps);
        for chunk in chunks_of(&mut doc) {
            if chunk[8] == 0 {
                check_document(&chunk, &Limits::DEFAULT).unwrap();
                prop_assert_eq!(DocumentParts::of(&chunk).unwrap().chunk(), chunk.clone());
                prop_assert_eq!(split(&chunk, &Limits::DEFAULT).unwrap().len(), doc.get_changes(&[]).len());
                View::load(&chunk).unwrap();
            } else {
                check_change(&chunk, &Limits::DEFAULT).unwrap();
                let change = Change::parse(chunk).unwrap();
                let plain = change.as_automerge().raw_bytes().to_vec();
                prop_assert_eq!(ChangeParts::of(&plain).unwrap().chunk(), plain);
            }
        }
    }
}

#[test]
fn a_paste_of_megabytes_and_its_deletion_pass() {
    for (word, count) in [("a", 200_000), ("é🌊ß", 90_000)] {
        let text: String = word.repeat(count / word.chars().count());
        let mut doc = AutoCommit::new();
        let object = doc.put_object(ROOT, "text", ObjType::Text).unwrap();
        doc.commit();
        doc.splice_text(&object, 0, 0, &text).unwrap();
        doc.commit();
        let inserted = Change::parse(doc.get_last_local_change().unwrap().bytes().into_owned()).unwrap();
        assert_eq!((inserted.op_count(), inserted.unbacked_deletions()), (count as u64, 0));
        check_document(&doc.save(), &Limits::DEFAULT).unwrap();
        doc.splice_text(&object, 0, count as isize, "").unwrap();
        doc.commit();
        let deleted = Change::parse(doc.get_last_local_change().unwrap().bytes().into_owned()).unwrap();
        assert_eq!(deleted.op_count(), count as u64);
        assert!(deleted.unbacked_deletions() > 0);
        check_document(&doc.save(), &Limits::DEFAULT).unwrap();
    }
}

/// The same at the bound, where building it with automerge would take a minute.
#[test]
fn a_paste_of_four_million_characters_passes() {
    let count = 3_999_999;
    let mut parts = ChangeParts::paste(count, b"tide ".repeat(800_000)[..count as usize].to_vec());
    let claims = check_change(&deflated(&parts.contents()), &Limits::DEFAULT).unwrap();
    assert_eq!((claims.operations, claims.unbacked_deletions), (count as u64 + 1, 0));
    // One more operation is one too many.
    parts.columns.set(ACTION, [sleb(-1), uleb(4), run(count + 1, 1)].concat());
    let refused = check_change(&deflated(&parts.contents()), &Limits::DEFAULT).unwrap_err();
    assert!(refused.to_string().contains("operations of a change"), "{refused}");
}

/// A hundred megabytes of plain values, as an import brings them: many changes of some hundred kilobytes.
#[test]
fn an_import_of_a_hundred_megabytes_passes() {
    let mut seed = 7_u64;
    let mut doc = AutoCommit::new();
    let list = doc.put_object(ROOT, "rows", ObjType::List).unwrap();
    for n in 0..200 {
        let text: String = (0..500_000)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                char::from(b'!' + (seed >> 58) as u8)
            })
            .collect();
        doc.insert(&list, n, text).unwrap();
        doc.commit();
        if n % 20 == 0 {
            check_change(&doc.get_last_local_change().unwrap().bytes(), &Limits::DEFAULT).unwrap();
        }
    }
    let saved = doc.save();
    let began = Instant::now();
    check_document(&saved, &Limits::DEFAULT).unwrap();
    println!("{} bytes of document: {:?}", saved.len(), began.elapsed());
}

/// The text of two authors, where it is; with `TIDELOG_GATE_PAPER` the paper of 260,000 keystrokes too, half a minute more.
#[cfg(feature = "node")]
#[test]
fn the_recorded_histories_pass() {
    use tidelog::node::trace::{Trace, TraceChanges, TraceOptions, traces_folder};
    let Some(folder) = traces_folder().expect("the traces' folder") else {
        println!("skipped: traces absent");
        return;
    };
    let with_paper = std::env::var_os("TIDELOG_GATE_PAPER").map(|_| "sequential/automerge-paper.json.gz");
    for name in ["concurrent/friendsforever.json.gz"].into_iter().chain(with_paper) {
        let trace = Trace::read(&folder.join(name)).unwrap();
        let changes = TraceChanges::build(&trace, &TraceOptions::with_salt(*b"gate"), &mut |_, _| {}).unwrap();
        let chunks: Vec<&[u8]> = changes.iter().map(|change| change.change.bytes()).collect();
        let began = Instant::now();
        for chunk in &chunks {
            check_change(chunk, &Limits::DEFAULT).unwrap();
        }
        let took = began.elapsed();
        let joined = chunks.concat();
        let began = Instant::now();
        let view = View::load(&joined).unwrap();
        let loaded = began.elapsed();
        let saved = view.save().unwrap();
        let began = Instant::now();
        check_document(&saved, &Limits::DEFAULT).unwrap();
        let document = began.elapsed();
        let began = Instant::now();
        let back = split(&saved, &Limits::DEFAULT).unwrap();
        println!(
            "{name}: {} changes, {:.0} ns each; loaded in {loaded:?}; document of {} bytes in {document:?}, split in {:?}",
            chunks.len(),
            took.as_nanos() as f64 / chunks.len() as f64,
            saved.len(),
            began.elapsed(),
        );
        assert_eq!(back.len(), chunks.len());
    }
}
