//! Pages of a feed under rules that take long to make, over real sockets.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::access::{Node, ROOMS};

#[test]
fn a_page_ends_in_time_while_all_is_asked_about_and_its_cursor_goes_on() {
    const NOTES: usize = 3000;
    let node = Node::start(ROOMS);
    let (ann, ben) = (node.token("ann", "admin", "[]"), node.token("ben", "user", "[]"));
    node.run(&["add", "rooms", &json!({ "members": ["ben"] }).to_string(), "--name", "hall"]);
    let rooms = node.ask(Some(&ann), "GET", "/v1/collections/rooms/documents", &Value::Null).1;
    let room = format!("/v1/collections/rooms/documents/{}", rooms["documents"][0]["id"].as_str().unwrap());
    let mut notes: Vec<String> = std::thread::scope(|scope| {
        let add = || (0..NOTES / 10).map(|n| node.add(&ann, "notes", &json!({ "room": "hall", "text": n }))).collect();
        let threads: Vec<_> = (0..10).map(|_| scope.spawn(add)).collect();
        threads.into_iter().flat_map(|thread| -> Vec<String> { thread.join().unwrap() }).collect()
    });
    notes.sort();
    // Until he has heard all: of whom he was told, and in how many pages.
    let hear = |cursor: &mut String, more: &str| {
        let (mut told, mut pages, mut longest) = (Vec::new(), 0, Duration::ZERO);
        loop {
            let begun = Instant::now();
            let path = format!("/v1/changes?collection=notes&limit=10000&since={cursor}{more}");
            let (status, page) = node.ask(Some(&ben), "GET", &path, &Value::Null);
            assert_eq!(status, 200, "{page}\n{}", node.log());
            assert!(page["opened"]["resumed"].is_object(), "{}", page["opened"]);
            longest = longest.max(begun.elapsed());
            pages += 1;
            page["cursor"].as_str().unwrap().clone_into(cursor);
            let events = page["events"].as_array().unwrap().iter();
            told.extend(events.map(|event| (event["kind"].clone(), event["id"].as_str().unwrap().to_owned())));
            if page["caught_up"] == true {
                println!("{more} {} of {:?} in {pages} pages, each in {longest:?}", told.len(), told.last());
                return (told, pages);
            }
        }
    };
    let mut cursor = "beginning".to_owned();
    hear(&mut cursor, "");
    for (members, kind) in [(json!([]), "withheld"), (json!(["ben"]), "released")] {
        assert_eq!(node.ask(Some(&ann), "PATCH", &room, &json!({ "members": members })).0, 200);
        let (told, pages) = hear(&mut cursor, "&timeout=0");
        assert!(pages > 2, "{kind}: all was asked about in {pages} pages");
        assert!(told.iter().all(|(other, _)| other == kind));
        let mut ids: Vec<String> = told.into_iter().map(|(_, id)| id).collect();
        ids.sort();
        assert!(ids == notes, "each once: {} of {NOTES}", ids.len());
    }
    // Who has the time is told it in fewer: nothing is kept back for much more than a second.
    assert_eq!(node.ask(Some(&ann), "PATCH", &room, &json!({ "members": [] })).0, 200);
    let begun = Instant::now();
    let (told, pages) = hear(&mut cursor, "&timeout=300");
    assert!(told.len() == NOTES && pages <= 2 + begun.elapsed().as_secs(), "{} in {pages}", told.len());
}
