//! Who asks for what: a pool of requests, each as the rules see it and as JSON for the reference.

use serde_json::{Value as Json, json};
use tidelog::rules::{Auth, ChangeFacts, Data, Documents, Operation, Request, Value};

/// Numbers that follow from a seed (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub(super) fn word<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }

    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// Other documents, for `get` and `exists`.
pub(super) fn others() -> Json {
    json!({
        "/users/ann": { "level": 3, "admin": true },
        "/users/bob": { "level": 1, "admin": false },
        "/users/lobby": { "level": 0 },
    })
}

pub(super) struct Others(pub(super) Json);

impl Documents for Others {
    fn get(&self, collection: &str, id: &str) -> Option<Value> {
        self.0.get(format!("/{collection}/{id}")).map(Value::from_json)
    }
}

/// One request, whole.
pub(super) struct Case {
    pub(super) operation: Operation,
    pub(super) collection: String,
    pub(super) id: String,
    pub(super) auth: Option<(String, Json)>,
    pub(super) before: Option<Json>,
    pub(super) after: Option<Json>,
    pub(super) change: Option<ChangeFacts>,
}

/// The same as rules take it.
pub(super) struct Ready {
    auth: Option<Auth>,
    before: Option<Value>,
    after: Option<Value>,
}

impl Case {
    pub(super) fn draw(random: &mut Random) -> Self {
        let operation = *random.pick(&Operation::ALL);
        let is_write = matches!(operation, Operation::Create | Operation::Update | Operation::Delete);
        let before = (operation != Operation::Create && random.below(12) > 0).then(|| document(random));
        let after = match operation {
            Operation::Create => Some(document(random)),
            Operation::Update => Some(edited(random, before.clone().unwrap_or_else(|| json!({})))),
            _ => None,
        };
        Self {
            operation,
            collection: (*random.pick(&["notes", "rooms", "users"])).to_owned(),
            id: (*random.pick(&["ann", "bob", "n1", "n2"])).to_owned(),
            auth: (random.below(8) > 0).then(|| ((*random.pick(&["ann", "bob", "eve"])).to_owned(), claims(random))),
            before,
            after,
            change: is_write.then(|| ChangeFacts {
                author: (random.below(4) > 0).then(|| (*random.pick(&["ann", "bob", "eve"])).to_owned()),
                actor: "a1".to_owned(),
                paths: strings(random, &["title", "meta/a", "meta", "editors/0", "n"]),
                keys: strings(random, &["title", "meta", "editors", "n"]),
            }),
        }
    }

    pub(super) fn ready(&self) -> Ready {
        Ready {
            auth: self.auth.as_ref().map(|(uid, claims)| Auth::from_json(uid, claims)),
            before: self.before.as_ref().map(Value::from_json),
            after: self.after.as_ref().map(Value::from_json),
        }
    }

    pub(super) fn request<'a>(&'a self, ready: &'a Ready, documents: &'a dyn Documents) -> Request<'a> {
        let data = |value: &'a Option<Value>| value.as_ref().map(|value| value as &dyn Data);
        Request {
            auth: ready.auth.as_ref(),
            before: data(&ready.before),
            after: data(&ready.after),
            change: self.change.as_ref(),
            documents,
            ..Request::new(self.operation, &self.collection, &self.id)
        }
    }

    /// `request` and `resource` as JSON.
    pub(super) fn facts(&self) -> (Json, Json) {
        let resource =
            |data: &Option<Json>| data.as_ref().map_or(Json::Null, |data| json!({ "data": data, "id": self.id }));
        let request = json!({
            "auth": self.auth.as_ref().map(|(uid, claims)| json!({ "uid": uid, "token": claims })),
            "method": self.operation.as_str(),
            "path": format!("/{}/{}", self.collection, self.id),
            "resource": resource(&self.after),
            "change": self.change.as_ref().map(|change| json!({
                "author": change.author, "actor": change.actor, "paths": change.paths, "keys": change.keys,
            })),
        });
        (request, resource(&self.before))
    }
}

fn strings(random: &mut Random, words: &[&str]) -> Vec<String> {
    let mut chosen: Vec<String> =
        words.iter().filter(|_| random.below(3) == 0).map(|word| (*word).to_owned()).collect();
    if random.below(6) == 0 {
        chosen.clear();
    }
    chosen
}

/// Something of any type.
fn anything(random: &mut Random) -> Json {
    random
        .pick(&[json!(null), json!(true), json!(2), json!(2.5), json!("ann"), json!(["ann"]), json!({ "a": 1 })])
        .clone()
}

fn document(random: &mut Random) -> Json {
    let mut fields = json!({
        "owner": random.pick(&["ann", "bob", "eve"]),
        "title": random.pick(&["Tides", "Spring tide", "", "é€ tide"]),
        "n": i64::try_from(random.below(7)).unwrap() - 2,
        "x": random.pick(&[0.5, -1.5, 3.0]),
        "open": random.below(2) == 0,
        "editors": strings(random, &["ann", "bob", "eve", "lobby"]),
        "numbers": random.pick(&[json!([]), json!([1, 2, 3]), json!([2.0, 5])]),
        "meta": { "a": random.below(3), "room": random.pick(&["lobby", "hall"]) },
        "mixed": anything(random),
    });
    let members = fields.as_object_mut().unwrap();
    for name in ["owner", "title", "n", "open", "editors", "meta", "mixed"] {
        if random.below(12) == 0 {
            members.remove(name);
        } else if random.below(25) == 0 {
            members.insert(name.to_owned(), anything(random));
        }
    }
    fields
}

fn edited(random: &mut Random, mut fields: Json) -> Json {
    let other = document(random);
    let members = fields.as_object_mut().unwrap();
    for (name, value) in other.as_object().unwrap() {
        if random.below(5) == 0 {
            members.insert(name.clone(), value.clone());
        }
    }
    if random.below(6) == 0 {
        members.remove("title");
    }
    fields
}

fn claims(random: &mut Random) -> Json {
    let mut claims = json!({
        "role": random.pick(&["admin", "member", "guest"]),
        "level": random.below(5),
        "verified": random.below(2) == 0,
        "rooms": strings(random, &["lobby", "hall"]),
    });
    for name in ["role", "level", "rooms"] {
        if random.below(12) == 0 {
            claims.as_object_mut().unwrap().remove(name);
        }
    }
    claims
}
