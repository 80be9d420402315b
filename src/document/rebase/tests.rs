use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::document::{Edit, EditOptions};
use crate::id::ChangeHash;

/// A document and its changes, each with whether it is refused.
struct Story {
    view: View,
    changes: Vec<(Change, bool)>,
}

impl Story {
    fn new(beginning: Value) -> Self {
        let mut story = Self { view: View::new(), changes: Vec::new() };
        story.edit(false, |edit| edit.put("", beginning));
        story
    }

    /// Makes an edit; `true` when it changes anything and is not refused.
    fn edit(&mut self, is_refused: bool, edit: impl FnOnce(&mut Edit<'_>) -> Result<(), ViewError>) -> bool {
        let options = EditOptions { actor: ActorId::new(&[7; 16]).unwrap(), time: 5, message: Some("why".into()) };
        let change = self.view.edit(options, |tx| -> Result<(), ViewError> { edit(tx) }).unwrap().1;
        let counts = change.is_some() && !is_refused;
        self.changes.extend(change.map(|change| (change, is_refused)));
        counts
    }

    /// The document without what is refused, and how many operations were left out.
    fn told_without(&self) -> (Value, u64) {
        let first = self.changes.iter().position(|(_, is_refused)| *is_refused).unwrap_or(self.changes.len());
        let (before, after) = self.changes.split_at(first);
        let mut view = View::new();
        let before: Vec<Change> = before.iter().map(|(change, _)| change.clone()).collect();
        view.apply(&before).unwrap();
        let of = |refused: bool| -> Vec<Change> {
            after.iter().filter(|(_, is_refused)| *is_refused == refused).map(|(change, _)| change.clone()).collect()
        };
        let max_op = before.iter().map(|change| change.start_op() + change.op_count() - 1).max().unwrap_or(0);
        let base = Base { heads: view.heads(), max_op, actor: ActorId::new(&[8; 16]).unwrap() };
        let made = rebase(&of(true), &of(false), &base).unwrap();
        self.view.takes_at(&base.heads, &made.changes).unwrap();
        view.apply(&made.changes).unwrap();
        assert!(made.changes.iter().all(|change| change.message() == Some("why") && change.time() == 5));
        assert!(made.changes.iter().all(|change| change.actor().as_bytes() == [8; 16]));
        // It is what others take as well.
        let saved = View::load(&view.save().unwrap()).unwrap();
        assert_eq!(saved.heads(), view.heads());
        (view.to_json().unwrap(), made.left_out)
    }
}

#[test]
fn what_stands_on_something_else_is_made_anew_as_it_was() {
    let mut story = Story::new(json!({ "text": "ab", "n": 1 }));
    story.edit(true, |edit| edit.put("locked", true));
    story.edit(false, |edit| edit.splice("text", 1, 0, "-x-"));
    story.edit(false, |edit| edit.put("list", json!([1, { "deep": [true] }])));
    story.edit(false, |edit| edit.insert("list", 1, "in between"));
    story.edit(false, |edit| edit.put("/list/2/deep/0", false));
    let expected = json!({ "text": "a-x-b", "n": 1, "list": [1, "in between", { "deep": [false] }] });
    assert_eq!(story.told_without(), (expected, 0));
}

#[test]
fn what_was_overwritten_is_there_again_and_what_overwrote_it_stays() {
    let mut story = Story::new(json!({ "a": 1, "b": 1, "c": 1, "d": 1 }));
    story.edit(true, |edit| edit.put("a", 2));
    story.edit(true, |edit| edit.put("b", 2));
    story.edit(false, |edit| edit.put("b", 3));
    story.edit(true, |edit| edit.put("c", 2));
    story.edit(false, |edit| edit.delete("c").map(|_| ()));
    story.edit(true, |edit| edit.delete("d").map(|_| ()));
    assert_eq!(story.told_without(), (json!({ "a": 1, "b": 3, "d": 1 }), 0));
}

#[test]
fn what_has_no_meaning_without_it_is_left_out() {
    let mut story = Story::new(json!({ "text": "ab" }));
    story.edit(true, |edit| edit.splice("text", 1, 0, "xyz"));
    // One character behind a refused one, one refused one less, and one of our own less.
    story.edit(false, |edit| edit.splice("text", 3, 0, "!"));
    story.edit(false, |edit| edit.splice("text", 1, 1, ""));
    story.edit(false, |edit| edit.splice("text", 0, 1, ""));
    story.edit(true, |edit| edit.put("object", json!({ "list": [1, 2] })));
    story.edit(false, |edit| edit.put("/object/field", json!({ "deeper": 1 })));
    story.edit(false, |edit| edit.insert("/object/list", 1, 3));
    let (told, left_out) = story.told_without();
    assert_eq!(told, json!({ "text": "!b" }));
    assert_eq!(left_out, 1 + 2 + 1, "the deletion, the object with its field, the element");
}

#[test]
fn counters_count_on_where_they_are_still_counters() {
    let mut story = Story::new(json!({ "count": { "$counter": 10 } }));
    story.edit(true, |edit| edit.increment("count", 100));
    story.edit(false, |edit| edit.increment("count", 1));
    assert_eq!(story.told_without(), (json!({ "count": { "$counter": 11 } }), 0));
}

#[test]
fn marks_stay_on_what_is_left_of_the_text() {
    use automerge::marks::ExpandMark;
    let mut story = Story::new(json!({ "text": "abcdef" }));
    story.edit(true, |edit| edit.splice("text", 2, 0, "XX"));
    story.edit(false, |edit| edit.mark("text", 1..6, "bold", true, ExpandMark::Both));
    assert_eq!(story.told_without(), (json!({ "text": "abcdef" }), 0));
}

#[test]
fn a_mark_on_what_is_gone_alone_ends_where_it_begins() {
    use automerge::marks::ExpandMark;
    let mut story = Story::new(json!({ "text": "ab" }));
    story.edit(true, |edit| edit.splice("text", 1, 0, "XX"));
    story.edit(false, |edit| edit.mark("text", 1..3, "bold", true, ExpandMark::None));
    story.edit(false, |edit| edit.splice("text", 4, 0, "!"));
    assert_eq!(story.told_without(), (json!({ "text": "ab!" }), 0));
}

#[test]
fn nothing_is_made_of_nothing() {
    let mut story = Story::new(json!({}));
    story.edit(true, |edit| edit.put("a", json!({ "b": 1 })));
    story.edit(false, |edit| edit.put("/a/b", 2));
    assert_eq!(story.told_without(), (json!({}), 1));
}

#[derive(Debug, Clone)]
enum Act {
    Put { key: u8, value: u8 },
    Delete { key: u8 },
    Type { place: usize, count: usize },
    Erase { place: usize },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0_u8..4, any::<u8>()).prop_map(|(key, value)| Act::Put { key, value }),
        1 => (0_u8..4).prop_map(|key| Act::Delete { key }),
        3 => (any::<usize>(), 1_usize..4).prop_map(|(place, count)| Act::Type { place, count }),
        1 => any::<usize>().prop_map(|place| Act::Erase { place }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Fields are as if the refused edits had never been made; of the text exactly what others typed and nobody else
    /// erased is there.
    #[test]
    fn the_rest_is_as_if_the_refused_had_never_been(acts in prop::collection::vec((act(), prop::bool::weighted(0.3)), 1..40)) {
        let mut story = Story::new(json!({ "text": "" }));
        // What is shown with everything, each character by whether it was refused; and what is to be left.
        let mut shown: Vec<(char, bool)> = Vec::new();
        let (mut fields, mut text): (BTreeMap<String, u8>, Vec<char>) = Default::default();
        let mut next = 'A' as u32;
        for (act, refused) in acts {
            match act {
                Act::Put { key, value } => {
                    if story.edit(refused, |edit| edit.put(format!("k{key}"), value)) {
                        fields.insert(format!("k{key}"), value);
                    }
                }
                Act::Delete { key } => {
                    if story.edit(refused, |edit| edit.delete(format!("k{key}")).map(|_| ())) {
                        fields.remove(&format!("k{key}"));
                    }
                }
                Act::Type { place, count } => {
                    let place = place % (shown.len() + 1);
                    let typed: Vec<char> = (0..count as u32).map(|n| char::from_u32(next + n).unwrap()).collect();
                    next += count as u32;
                    let string: String = typed.iter().collect();
                    story.edit(refused, |edit| edit.splice("text", place, 0, &string));
                    if !refused {
                        text.extend(&typed);
                    }
                    shown.splice(place..place, typed.into_iter().map(|character| (character, refused)));
                }
                Act::Erase { place } if !shown.is_empty() => {
                    let place = place % shown.len();
                    story.edit(refused, |edit| edit.splice("text", place, 1, ""));
                    let (gone, _) = shown.remove(place);
                    if !refused {
                        text.retain(|character| *character != gone);
                    }
                }
                Act::Erase { .. } => {}
            }
        }
        let (told, _) = story.told_without();
        let mut found: Vec<char> = told["text"].as_str().unwrap().chars().collect();
        found.sort_unstable();
        text.sort_unstable();
        prop_assert_eq!(found, text);
        for key in 0..4 {
            let key = format!("k{key}");
            // What changed nothing at the time (the deletion of what a refused edit had deleted) is no edit.
            prop_assert_eq!(told.get(&key).cloned(), fields.get(&key).map(|value| json!(value)), "{}", key);
        }
        let hashes: Vec<ChangeHash> = story.changes.iter().map(|(change, _)| change.hash()).collect();
        prop_assert!(hashes.iter().all(|hash| story.view.contains(*hash)), "the view stays as it is");
    }
}
