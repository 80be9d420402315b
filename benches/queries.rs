//! Queries and listeners: what an index saves, how fast one is made, and how long a change takes to whoever listens.
//!
//! `cargo bench --bench queries [-- name]`: `query`, `listeners`, `fanout`, `rights`.
#![allow(clippy::unwrap_used, reason = "a measurement that fails shall stop")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{cached_folder, fresh_folder, median, process_time};
use serde_json::json;
use tidelog::access::{Access, AccessOptions, Admittance};
use tidelog::query::{ListenOptions, Listener, Predicate, field};
use tidelog::quota::{Quota, Quotas};
use tidelog::rules::Rules;
use tidelog::web::{AllowedOrigins, WebOptions, WebServer};
use tidelog::{Database, DocHandle, Limits};

const DOCUMENTS: usize = 100_000;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|word| word == name);
    if is_wanted("query") {
        query();
    }
    if is_wanted("listeners") {
        for count in [1, 10, 100, 10_000] {
            listeners(count);
        }
    }
    if is_wanted("fanout") {
        fanout();
    }
    if is_wanted("rights") {
        rights();
    }
}

/// A collection of 100,000 messages in 100 rooms; made once and kept for later runs.
fn messages() -> Database {
    let database = Database::builder(cached_folder("messages")).open().unwrap();
    let messages = database.collection("messages").unwrap();
    let there = messages.list(tidelog::Lsn(0), usize::MAX).unwrap().len();
    for n in there..DOCUMENTS {
        let value = json!({
            "room": format!("room {}", n % 100),
            "at": n * 7919 % DOCUMENTS,
            "text": "what somebody says, in some forty letters or so",
            "tags": [n % 10, "all"],
        });
        loop {
            match messages.create(&value) {
                Ok(_) => break,
                Err(error) if error.is_retryable() => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }
    database
}

fn timed<T>(times: usize, mut work: impl FnMut() -> T) -> f64 {
    let mut taken = Vec::with_capacity(times);
    for _ in 0..times {
        let began = Instant::now();
        std::hint::black_box(work());
        taken.push(began.elapsed().as_secs_f64());
    }
    median(taken)
}

fn query() {
    let database = messages();
    let messages = database.collection("messages").unwrap();
    let began = Instant::now();
    assert_eq!(messages.query().count_now().unwrap(), DOCUMENTS);
    println!(
        "first query of {DOCUMENTS} documents (reads all, unless an earlier run did): {:.2} s",
        began.elapsed().as_secs_f64()
    );
    for index in messages.indexes().unwrap() {
        messages.drop_index(&index.id).unwrap();
    }
    while !messages.indexes().unwrap().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let fifty = messages.query().filter(field("room").eq("room 7")).order_by_desc("at").limit(50);
    // Without an index a query is refused after 20,000 documents; that much of a look at all is timed.
    let unknown = messages.query().filter(field("text").ne("nothing").and(field("absent").exists(false))).limit(1);
    let nothing =
        unknown.filter(field("tags").ne(0).and(field("text").ne("what somebody says, in some forty letters or so")));
    let scan = timed(5, || assert_eq!(nothing.get_now().unwrap_err().code(), "E0626")) * (DOCUMENTS as f64 / 20_000.0);
    println!("a look at {DOCUMENTS} values: {:.0} ms (from the first 20,000)", scan * 1e3);
    let began = Instant::now();
    let state = messages.declare_index(["room", "at desc"]).unwrap();
    while !messages.indexes().unwrap().iter().any(|index| index.id == state.id && index.ready) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let taken = began.elapsed().as_secs_f64();
    println!("index made: {taken:.2} s, {:.0} documents/s", DOCUMENTS as f64 / taken);
    assert_eq!(fifty.get_now().unwrap().docs().len(), 50);
    let indexed = timed(200, || fifty.get_now().unwrap());
    println!("50 of {DOCUMENTS} by the index: {:.3} ms ({:.0} times faster)", indexed * 1e3, scan / indexed);
    let counted = messages.query().filter(field("room").eq("room 7"));
    // The first one is refused, and has an index made.
    while let Err(error) = counted.count_now() {
        assert_eq!(error.code(), "E0626");
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("count of 1,000 by the index: {:.3} ms", timed(50, || counted.count_now().unwrap()) * 1e3);
}

/// What listeners ask of the field that changes: half a value, a quarter a range, an eighth each one of two values and an
/// element. Of all of them ten (or all, if there are fewer) match what is written.
fn asked(n: usize, is_matching: bool) -> Predicate {
    let (value, least) = if is_matching { (7, 0) } else { (1_000 + n, 1_000_000 + n) };
    match n % 8 {
        0..4 => field("x").eq(value),
        4 | 5 if is_matching => field("x").ge(0).and(field("x").lt(100)),
        4 | 5 => field("x").gt(least).and(field("x").lt(least + 5)),
        6 => field("x").eq(value).or(field("x").eq(value + 500_000)),
        _ => field("list").array_contains(value),
    }
}

fn listeners(count: usize) {
    const CHANGES: usize = 400;
    let database = Database::builder(fresh_folder("listeners")).open().unwrap();
    let collection = database.collection("things").unwrap();
    let (handle, commit) = collection.create(json!({"x": 7, "list": [7], "n": 0})).unwrap();
    commit.wait().unwrap();
    let matching = count.min(10);
    let mut heard: Vec<Listener> = Vec::new();
    let mut others: Vec<Listener> = Vec::new();
    for n in 0..count {
        let query = collection.query().filter(asked(n, n < matching));
        let mut listener = query.on_snapshot(ListenOptions::default()).unwrap();
        listener.next_now().unwrap().unwrap();
        if n < matching { heard.push(listener) } else { others.push(listener) }
    }
    // They begin where the view stands once the thread has taken them in.
    warm(&handle, &mut heard);
    let (mut first, mut last, mut commits) = (Vec::new(), Vec::new(), Vec::new());
    let cpu = process_time();
    for n in 0..CHANGES {
        let began = Instant::now();
        handle.change(|edit| Ok(edit.put("n", n + 1)?)).unwrap().wait().unwrap();
        let committed = Instant::now();
        commits.push((committed - began).as_secs_f64());
        for (at, listener) in heard.iter_mut().enumerate() {
            listener.next_now().unwrap().unwrap();
            if at == 0 {
                first.push(committed.elapsed().as_secs_f64());
            }
        }
        last.push(committed.elapsed().as_secs_f64());
    }
    let cpu = (process_time() - cpu).as_secs_f64() / CHANGES as f64;
    let at = |times: &mut Vec<f64>, part: f64| {
        times.sort_by(f64::total_cmp);
        times[((times.len() - 1) as f64 * part) as usize] * 1e3
    };
    println!(
        "{count:>6} listeners, {matching} match: commit {:.3} ms; then to the first p50 {:.3} p99 {:.3} ms, to all {matching} p50 {:.3} p99 {:.3} ms; {:.0} us of processor a change",
        at(&mut commits, 0.5),
        at(&mut first, 0.5),
        at(&mut first, 0.99),
        at(&mut last, 0.5),
        at(&mut last, 0.99),
        cpu * 1e6,
    );
}

fn warm(handle: &DocHandle, heard: &mut [Listener]) {
    for n in 0..20 {
        handle.change(|edit| Ok(edit.put("warm", n)?)).unwrap().wait().unwrap();
        heard.iter_mut().for_each(|listener| drop(listener.next_now().unwrap().unwrap()));
    }
}

/// Server-sent events to 1,000 listeners of one query, each with its own socket.
fn fanout() {
    const SOCKETS: usize = 1_000;
    const CHANGES: usize = 50;
    let database = Database::builder(fresh_folder("fanout")).open().unwrap();
    let collection = database.collection("things").unwrap();
    let (handle, commit) = collection.create(json!({"x": 7, "n": 0})).unwrap();
    commit.wait().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let options = WebOptions {
        listen: ([127, 0, 0, 1], 0).into(),
        origins: AllowedOrigins::default(),
        structural: false,
        access: None,
        quotas: Quotas::DEFAULT,
        proxies: Vec::new(),
    };
    let server = runtime.block_on(WebServer::start(database.clone(), options)).unwrap();
    let address = server.address();
    let mut sockets: Vec<BufReader<TcpStream>> = Vec::new();
    for _ in 0..SOCKETS {
        let mut stream = TcpStream::connect(address).unwrap();
        let head = format!("GET /v1/collections/things/listen HTTP/1.1\r\nhost: {address}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut reader = BufReader::with_capacity(4096, stream);
        event(&mut reader);
        sockets.push(reader);
    }
    let mut taken = Vec::new();
    let cpu = process_time();
    for n in 0..CHANGES {
        let began = Instant::now();
        handle.change(|edit| Ok(edit.put("n", n + 1)?)).unwrap().wait().unwrap();
        sockets.iter_mut().for_each(event);
        taken.push(began.elapsed().as_secs_f64());
    }
    let cpu = (process_time() - cpu).as_secs_f64();
    println!(
        "server-sent events to {SOCKETS}: {:.1} ms from the edit until the last was read (median), {:.0} events/s, {:.1} us of processor an event (readers included)",
        median(taken.clone()) * 1e3,
        SOCKETS as f64 * CHANGES as f64 / taken.iter().sum::<f64>(),
        cpu / (SOCKETS * CHANGES) as f64 * 1e6,
    );
    drop(sockets);
    runtime.block_on(server.close());
}

/// Other rules, and 9,500 listeners of ten queries that lose or gain a document by them, each with its own socket (client
/// and server are one process, which may have 20,000 files open).
fn rights() {
    const SOCKETS: usize = 9_500;
    const ROOMS: usize = 10;
    const TURNS: usize = 6;
    let mut limits = Limits::DEFAULT;
    limits.connections_max = 10_000;
    let database = Database::builder(fresh_folder("rights")).limits(limits).open().unwrap();
    let collection = database.collection("things").unwrap();
    for n in 0..10 * ROOMS {
        let value =
            json!({ "room": format!("room-{}", n % ROOMS), "secret": n < ROOMS, "text": "some forty letters or so" });
        collection.create(value).unwrap().1.wait().unwrap();
    }
    // Every listener loses one of its ten documents, and has it again.
    let rules = ["true", "resource.data.secret == false"]
        .map(|condition| format!("service tidelog {{ match /things/{{id}} {{ allow read: if {condition}; }} }}"));
    let parse = |n: usize| Rules::parse("rules", &rules[n % 2]).unwrap();
    let options = AccessOptions { admittance: Admittance::Anybody, authority: None, rules: Some(parse(0)) };
    let access = Access::new(database.clone(), options);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let options = WebOptions {
        listen: ([127, 0, 0, 1], 0).into(),
        origins: AllowedOrigins::default(),
        structural: false,
        access: Some(access.clone()),
        quotas: Quotas { address: Quota::NONE, user: Quota::NONE },
        proxies: Vec::new(),
    };
    let server = runtime.block_on(WebServer::start(database.clone(), options)).unwrap();
    let address = server.address();
    let listen = |own_queries: bool| -> Vec<BufReader<TcpStream>> {
        let open = |n: usize| {
            let mut stream = TcpStream::connect(address).unwrap();
            let room = json!({ "field": "room", "op": "==", "value": format!("room-{}", n % ROOMS) });
            // Ten queries in all, or one for each, that finds the same.
            let own = json!({ "field": "text", "op": "!=", "value": n });
            let all = if own_queries { vec![room, own] } else { vec![room] };
            let query: String =
                json!({ "where": { "and": all } }).to_string().bytes().map(|byte| format!("%{byte:02X}")).collect();
            let head = format!("GET /v1/collections/things/listen?query={query} HTTP/1.1\r\nhost: {address}\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            let mut reader = BufReader::with_capacity(4096, stream);
            event(&mut reader);
            reader
        };
        (0..SOCKETS).map(open).collect()
    };
    let mut number = 0;
    for own_queries in [false, true] {
        let mut sockets = listen(own_queries);
        let (mut first, mut last, mut cpu) = (Vec::new(), Vec::new(), Duration::ZERO);
        for _ in 0..TURNS {
            // Listeners rest after they were asked again.
            std::thread::sleep(Duration::from_secs(1));
            let (began, cpu_before) = (Instant::now(), process_time());
            number += 1;
            access.set_rules(parse(number));
            for (at, socket) in sockets.iter_mut().enumerate() {
                event(socket);
                if at == 0 {
                    first.push(began.elapsed().as_secs_f64());
                }
            }
            last.push(began.elapsed().as_secs_f64());
            cpu += process_time() - cpu_before;
        }
        println!(
            "other rules for {SOCKETS} listeners of ten documents each, {}: told after {:.1} ms (one) to {:.0} ms (all), medians; {:.1} us of processor a listener (readers included)",
            if own_queries { "each with a query of its own" } else { "ten queries" },
            median(first) * 1e3,
            median(last) * 1e3,
            cpu.as_secs_f64() / (SOCKETS * TURNS) as f64 * 1e6,
        );
    }
    // A document that decides over ten others, which a tenth of the listeners have and lose.
    let gates = database.collection("gates").unwrap();
    for n in 0..ROOMS {
        gates.doc_with(&format!("room-{n}"), json!({ "open": true })).unwrap();
    }
    let rules =
        "service tidelog { match /things/{id} { allow read: if get(/gates/$(resource.data.room)).data.open; } }";
    access.set_rules(Rules::parse("rules", rules).unwrap());
    let mut sockets = listen(false);
    let (mut last, mut cpu) = (Vec::new(), Duration::ZERO);
    for turn in 0..TURNS {
        std::thread::sleep(Duration::from_secs(1));
        let cpu_before = process_time();
        gates.doc("room-0").unwrap().change(|edit| Ok(edit.put("open", turn % 2 == 1)?)).unwrap().wait().unwrap();
        let began = Instant::now();
        sockets.iter_mut().step_by(ROOMS).for_each(event);
        last.push(began.elapsed().as_secs_f64());
        // What is done for those who lose nothing.
        std::thread::sleep(Duration::from_secs(1));
        cpu += process_time() - cpu_before;
    }
    println!(
        "a document that rules look at for a tenth of {SOCKETS} listeners: all of these told after {:.0} ms (median); {:.1} us of processor for each of all (readers included)",
        median(last) * 1e3,
        cpu.as_secs_f64() / (SOCKETS * TURNS) as f64 * 1e6,
    );
    runtime.block_on(server.close());
}

/// Reads one event.
fn event(reader: &mut BufReader<TcpStream>) {
    let mut has_data = false;
    loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the stream ended");
        has_data |= line.starts_with("data: ");
        if has_data && line.trim().is_empty() {
            return;
        }
    }
}
