//! Many who want to do harm, and one who works beside them: what they cost is bounded, and he comes to his end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::load::resident;
use crate::quotas::{ELSEWHERE, HERE, Server, Socket};

/// Lets a process have so many files open, or as many as it may; how many that are.
fn allow_files(pid: Option<u32>, wanted: u64) -> u64 {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let most = getrlimit(Resource::Nofile).maximum.map_or(wanted, |most| most.min(wanted));
    let limit = Rlimit { current: Some(most), maximum: getrlimit(Resource::Nofile).maximum };
    prlimit(pid.and_then(|pid| Pid::from_raw(pid as i32)), Resource::Nofile, limit).unwrap();
    most
}

/// Somebody who makes and reads documents, over one connection and from another address; the slowest of his requests.
fn works(server: &Server, token: Option<&str>, requests: usize) -> Duration {
    let mut stream = BufReader::new(server.connect(ELSEWHERE));
    let mut slowest = Duration::ZERO;
    for n in 0..requests {
        let began = Instant::now();
        let body = json!({ "n": n }).to_string();
        let more = format!("content-length: {}\r\n\r\n{body}", body.len());
        let head = server.head("POST", "/v1/collections/notes/documents", token, &more);
        stream.get_mut().write_all(head.as_bytes()).unwrap();
        assert_eq!(status_of(&mut stream), 201);
        slowest = slowest.max(began.elapsed());
    }
    slowest
}

/// The status of the next answer, read to its end.
fn status_of(stream: &mut BufReader<TcpStream>) -> u16 {
    let (mut status, mut length) = (0, 0);
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).unwrap() > 0, "the connection ended");
        let line = line.trim_end().to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(rest) = line.strip_prefix("http/1.1 ") {
            status = rest.split(' ').next().unwrap().parse().unwrap();
        }
        if let Some(rest) = line.strip_prefix("content-length: ") {
            length = rest.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    status
}

#[test]
fn connections_that_send_a_byte_now_and_then_are_ended_and_hold_up_nobody() {
    let server = Server::start(&json!({}), &[]);
    let alone = works(&server, None, 200);
    let slow: Vec<TcpStream> = (0..400)
        .map(|_| {
            let mut stream = server.connect(HERE);
            stream.write_all(b"GET /v1/collections HTTP/1.1\r\nx-slow: ").unwrap();
            stream
        })
        .collect();
    let is_over = AtomicBool::new(false);
    let ended = std::thread::scope(|scope| {
        let dripping = scope.spawn(|| {
            // Half of the time that a head may take.
            let mut left: Vec<&TcpStream> = slow.iter().collect();
            let began = Instant::now();
            while !left.is_empty() {
                assert!(began.elapsed() < Duration::from_secs(60), "{} are not ended", left.len());
                left.retain(|stream| {
                    stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
                    let mut stream: &TcpStream = stream;
                    let is_open = stream.write_all(b"a").is_ok();
                    let mut buffer = [0; 512];
                    is_open && !matches!(stream.read(&mut buffer), Ok(0))
                });
            }
            is_over.store(true, Ordering::Relaxed);
            began.elapsed()
        });
        // He works all the while.
        let mut beside = Duration::ZERO;
        while !is_over.load(Ordering::Relaxed) {
            beside = beside.max(works(&server, None, 50));
        }
        println!("slowest of 200 requests alone {alone:?}, slowest beside 400 slow connections {beside:?}");
        dripping.join().unwrap()
    });
    println!("all 400 were ended after {ended:?}");
}

#[test]
fn bodies_that_do_not_come_hold_up_only_who_sends_them() {
    let server = Server::start(&json!({}), &[]);
    // More than there is room for on the whole server.
    let slow: Vec<TcpStream> = (0..60)
        .map(|_| {
            let mut stream = server.connect(HERE);
            let more = "content-length: 100000\r\n\r\n{";
            let head = server.head("POST", "/v1/collections/notes/documents", None, more);
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    println!("slowest of 50 requests beside 60 slow bodies: {:?}", works(&server, None, 50));
    drop(slow);
}

#[test]
fn ten_thousand_unauthenticated_sockets_cost_little() {
    let files = allow_files(None, 16_000);
    let server = Server::start(&json!({}), &["--auth"]);
    allow_files(Some(server.pid()), 16_000);
    let ann = server.token("ann", "user");
    works(&server, Some(&ann), 200);
    let mut worker = Socket::joined(&server, ELSEWHERE, Some(&ann), "worker");
    let before = resident(server.pid());
    let wanted = 10_000.min(files as usize - 1000);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // Nobody closes one: the server has to get rid of them by itself.
    let (held, highest) = runtime.block_on(async {
        let mut held = Vec::with_capacity(wanted);
        let mut highest = 0;
        for n in 0..wanted {
            let Ok(stream) = tokio::net::TcpStream::connect(server.http).await else { continue };
            let head = format!(
                "GET /sync HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
                server.http
            );
            let _ = stream.try_write(head.as_bytes());
            held.push(stream);
            if n % 500 == 0 {
                highest = highest.max(resident(server.pid()));
            }
        }
        (held, highest.max(resident(server.pid())))
    });
    println!("{} of {wanted} sockets: {} KiB more at the most", held.len(), highest.saturating_sub(before));
    assert!(highest.saturating_sub(before) < 96 << 10, "from {before} to {highest} KiB");
    // Who was there is there, and who comes from elsewhere comes in.
    worker.join();
    assert!(worker.next().is_ok());
    Socket::joined(&server, ELSEWHERE, Some(&ann), "newcomer");
    works(&server, Some(&ann), 50);
    drop(held);
    println!(
        "turned away: {} connections, {} of them silent",
        server.refused("connections"),
        server.refused("openings")
    );
}

#[test]
fn messages_that_are_too_long_end_their_own_socket_and_take_no_memory() {
    let server = Server::start(&json!({}), &[]);
    works(&server, None, 200);
    let before = resident(server.pid());
    // Before it has joined: 64 KiB at most, however much is announced.
    for announced in [80_u64 << 10, 1 << 30, 1 << 62] {
        for _ in 0..20 {
            let mut stream = raw_socket(&server);
            let mut head = vec![0x82, 0xff];
            head.extend(announced.to_be_bytes());
            head.extend([0; 4]);
            stream.write_all(&head).unwrap();
            // What it says after that nobody may read.
            let _ = stream.write_all(&vec![0; 100 << 10]);
            // A close frame with two bytes of code.
            let is_told =
                |all: &[u8]| all.windows(4).any(|four| four[0] == 0x88 && four[2..] == 1009_u16.to_be_bytes());
            let (mut all, mut buffer) = (Vec::new(), [0; 512]);
            while !is_told(&all) {
                let read = stream.read(&mut buffer).unwrap();
                assert!(read > 0, "{all:?}");
                all.extend(&buffer[..read]);
            }
        }
    }
    works(&server, None, 50);
    let grown = resident(server.pid()).saturating_sub(before);
    println!("60 messages that are too long: {grown} KiB");
    assert!(grown < 48 << 10, "{grown} KiB");
}

/// A WebSocket whose frames are written by hand.
fn raw_socket(server: &Server) -> TcpStream {
    let mut stream = server.connect(HERE);
    let more = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    stream.write_all(server.head("GET", "/sync", None, more).as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    stream
}

#[test]
fn a_flood_of_bad_tokens_is_not_looked_at_and_those_who_were_accepted_go_on() {
    let bad_tokens = json!({ "per_minute": 1, "burst": 50 });
    let server = Server::start(&json!({ "address": { "bad_tokens": bad_tokens } }), &["--auth"]);
    let (ann, ben) = (server.token("ann", "user"), server.token("ben", "user"));
    let list = |from, token: &str| server.ask(from, Some(token), "GET", "/v1/collections", "");
    assert_eq!(list(HERE, &ann).status, 200);
    let checked = || server.metric("auth_total{result=\"refused\"}");
    let before = checked();
    let mut stream = BufReader::new(server.connect(HERE));
    let began = Instant::now();
    let (mut looked_at, mut turned_away) = (0, 0);
    for n in 0..5000 {
        // A token of this node whose signature is another's.
        let mut bad = ann.clone();
        let at = bad.len() - 20;
        bad.replace_range(at.., &format!("{n:020}"));
        stream.get_mut().write_all(server.head("GET", "/v1/collections", Some(&bad), "\r\n").as_bytes()).unwrap();
        match status_of(&mut stream) {
            401 => looked_at += 1,
            429 => turned_away += 1,
            status => panic!("{status}"),
        }
    }
    let checks = checked() - before;
    println!("5000 bad tokens in {:?}: {checks} looked at, {turned_away} turned away", began.elapsed());
    assert_eq!((looked_at, turned_away), (checks, 5000 - checks));
    let minutes = began.elapsed().as_secs() / 60 + 1;
    assert!((50..=50 + minutes).contains(&checks), "{checks}");
    assert_eq!(server.refused("bad_tokens"), turned_away);
    // Who was accepted from there before is accepted still; who was not, comes from elsewhere or later.
    assert_eq!(list(HERE, &ann).status, 200);
    assert_eq!(list(HERE, &ben).code(), (429, "E0712"));
    assert_eq!(Socket::open(&server, HERE, Some(&ben)).err(), Some(429));
    assert_eq!(list(ELSEWHERE, &ben).status, 200);
    assert_eq!(list(HERE, &ben).status, 200);
}
