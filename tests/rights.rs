//! Listeners of queries whose rights come and go while they listen.

use serde_json::{Value, json};

use super::access::{Events, Node, ROOMS};

#[test]
fn a_listener_hears_of_the_documents_that_decide_for_him_and_others_of_theirs() {
    let node = Node::start(ROOMS);
    let ann = node.token("ann", "admin", "[]");
    let users = ["ben", "eve"].map(|user| node.token(user, "user", "[]"));
    let rooms = [("hall", "ben"), ("attic", "eve")].map(|(room, user)| {
        let made = node.add(&ann, "rooms", &json!({ "members": [user] }));
        (made.clone(), node.add(&ann, "notes", &json!({ "room": made, "text": room })))
    });
    let let_in = |room: &str, members: Value| {
        let path = format!("/v1/collections/rooms/documents/{room}");
        assert_eq!(node.ask(Some(&ann), "PATCH", &path, &json!({ "members": members })).0, 200);
    };
    let one = |kind: &str, note: &str| vec![(kind.to_owned(), note.to_owned())];
    let mut heard = users.each_ref().map(|token| node.stream(token, "/v1/collections/notes/listen"));
    let [(hall, in_hall), (attic, in_attic)] = &rooms;
    assert_eq!(heard.each_mut().map(Events::changes), [one("added", in_hall), one("added", in_attic)]);
    for _ in 0..2 {
        let_in(hall, json!([]));
        assert_eq!(heard[0].changes(), one("removed", in_hall));
        let_in(attic, json!(["eve", "ben"]));
        assert_eq!(heard[0].changes(), one("added", in_attic));
        let_in(attic, json!([]));
        assert_eq!(heard.each_mut().map(Events::changes), [one("removed", in_attic), one("removed", in_attic)]);
        let_in(attic, json!(["eve"]));
        assert_eq!(heard[1].changes(), one("added", in_attic));
        let_in(hall, json!(["ben"]));
        assert_eq!(heard[0].changes(), one("added", in_hall));
    }
    // He asked for nothing that was in it before, and hears of it all the same.
    let made = node.add(&ann, "rooms", &json!({ "members": ["ben"] }));
    let new = node.add(&ann, "notes", &json!({ "room": made, "text": "cellar" }));
    assert_eq!(heard[0].changes(), one("added", &new));
    let_in(&made, json!([]));
    assert_eq!(heard[0].changes(), one("removed", &new));
}
