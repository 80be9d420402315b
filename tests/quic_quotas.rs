//! How much one address, and one user, may have of a node over QUIC: each quota is brought to its end, and what is said
//! then is looked at. The accounts are those of the HTTP port.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tidelog::net::{AllowList, CloseCode, Endpoint, Identity, LinkOptions, Links, NetError, Ticket, UnknownKeys};
use tidelog::sync::repo::wire::Message;
use tidelog::sync::wire::Token;
use tidelog::{Database, Limits};

use crate::quic_peers::{Client, PATIENCE, World};
use crate::quotas::{ELSEWHERE, HERE, Socket, hourly, is_transient};

/// A close code whose reason says when to come again.
fn says_when(end: &(CloseCode, String), code: CloseCode) {
    assert_eq!(end.0, code, "{end:?}");
    let words: Vec<&str> = end.1.split(' ').collect();
    let [.., "retry", "after", ms, "ms"] = words[..] else { panic!("{end:?}") };
    assert!(ms.parse::<u64>().unwrap() > 0);
}

#[test]
fn an_address_has_so_many_links_before_and_after_it_is_known_whose_they_are() {
    let world = World::start(&json!({ "address": { "connections": 3, "openings": 2 } }));
    let (ann, ben) = (world.user("ann"), world.user("ben"));
    // Two that do not say whose they are.
    let mut silent = [world.dial(HERE).unwrap(), world.dial(HERE).unwrap()];
    for peer in &mut silent {
        world.run(async {
            peer.hello(true).await;
            peer.heard().await.unwrap();
        });
    }
    let refused = world.dial(HERE).unwrap_err();
    assert!(matches!(refused, NetError::Refused { .. }) && refused.is_retryable(), "{refused:?}");
    let _other = world.enter(ELSEWHERE, &ben).unwrap();
    assert!(world.server.refused("openings") >= 1);
    // Once it is known, they are no strangers any more; links they are.
    for peer in &mut silent {
        world.run(async {
            peer.prove(&ann).await;
            peer.entered().await.unwrap();
        });
    }
    let third = world.enter(HERE, &ann).unwrap();
    assert!(matches!(world.dial(HERE), Err(NetError::Refused { .. })));
    assert!(world.server.refused("connections") >= 1);
    // The HTTP port's connections are of the same account.
    assert_eq!(world.server.ask(HERE, Some(&ann), "GET", "/v1/collections", "").code(), (429, "E0710"));
    let _more = world.enter(ELSEWHERE, &ben).unwrap();
    drop(third);
    world.enter_again(HERE, &ann);
}

#[test]
fn new_links_of_an_address_come_at_a_rate() {
    let world = World::start(&json!({ "address": { "handshakes": hourly(3) } }));
    let (ann, ben) = (world.user("ann"), world.user("ben"));
    for _ in 0..3 {
        world.enter(HERE, &ann).unwrap();
    }
    for _ in 0..3 {
        assert!(matches!(world.dial(HERE), Err(NetError::Refused { .. })));
    }
    // Who is slow to hear of it may ask twice.
    assert!(world.server.refused("handshakes") >= 3);
    assert_eq!(world.server.ask(HERE, Some(&ann), "GET", "/v1/collections", "").code(), (429, "E0711"));
    world.enter(ELSEWHERE, &ben).unwrap();
}

#[test]
fn a_user_has_so_many_links_wherever_he_is_and_opens_them_at_a_rate() {
    let world = World::start(&json!({ "user": { "connections": 2 } }));
    let (ann, ben) = (world.user("ann"), world.user("ben"));
    let first = world.enter(HERE, &ann).unwrap();
    let _second = world.enter(ELSEWHERE, &ann).unwrap();
    says_when(&world.end_of(HERE, &ann), CloseCode::TooManyLinks);
    is_transient(&Socket::open(&world.server, HERE, Some(&ann)).unwrap().end(), 4530);
    world.enter(HERE, &ben).unwrap();
    assert_eq!(world.server.refused("connections"), 2);
    drop(first);
    world.enter_again(HERE, &ann);

    let world = World::start(&json!({ "user": { "handshakes": hourly(3) } }));
    let (ann, ben) = (world.user("ann"), world.user("ben"));
    for from in [HERE, ELSEWHERE, HERE] {
        world.enter(from, &ann).unwrap();
    }
    says_when(&world.end_of(HERE, &ann), CloseCode::TooManyNewLinks);
    is_transient(&Socket::open(&world.server, HERE, Some(&ann)).unwrap().end(), 4531);
    world.enter(HERE, &ben).unwrap();
}

#[test]
fn bad_tokens_are_not_looked_at_for_long_and_those_who_were_accepted_go_on() {
    let world = World::start(&json!({ "address": { "bad_tokens": hourly(3) } }));
    let (ann, ben) = (world.user("ann"), world.user("ben"));
    world.enter(HERE, &ann).unwrap();
    let before = world.checked();
    for n in 0..3 {
        assert_eq!(world.end_of(HERE, &format!("bad{n}")).0, CloseCode::TokenRefused);
    }
    for n in 3..6 {
        says_when(&world.end_of(HERE, &format!("bad{n}")), CloseCode::TooManyNewLinks);
    }
    assert_eq!((world.checked() - before, world.server.refused("bad_tokens")), (3, 3));
    world.enter(HERE, &ann).unwrap();
    says_when(&world.end_of(HERE, &ben), CloseCode::TooManyNewLinks);
    assert_eq!(world.server.ask(HERE, Some(&ben), "GET", "/v1/collections", "").code(), (429, "E0712"));
    world.enter(ELSEWHERE, &ben).unwrap();
}

#[test]
fn bad_tokens_on_what_stands_count_and_are_not_looked_at_for_long_either() {
    // Over QUIC.
    let world = World::start(&json!({ "address": { "bad_tokens": hourly(3) } }));
    let ann = world.user("ann");
    let shown = |token: &str| {
        let mut peer = world.enter(HERE, &ann).unwrap();
        world.run(async {
            peer.prove(token).await;
            peer.end().await
        })
    };
    let before = world.checked();
    for n in 0..3 {
        assert_eq!(shown(&format!("bad{n}")).0, CloseCode::TokenRefused);
    }
    for n in 3..6 {
        says_when(&shown(&format!("bad{n}")), CloseCode::TooManyNewLinks);
    }
    assert_eq!((world.checked() - before, world.server.refused("bad_tokens")), (3, 3));
    assert_eq!(world.server.ask(HERE, Some("bad"), "GET", "/v1/collections", "").code(), (429, "E0712"));
    // A token that was accepted before is taken, and does not end what stands.
    let mut peer = world.enter(HERE, &ann).unwrap();
    world.run(async {
        peer.prove(&ann).await;
        peer.babble(1, 10).await;
        peer.prove("bad").await;
        says_when(&peer.end().await, CloseCode::TooManyNewLinks);
    });

    // Over a WebSocket.
    let world = World::start(&json!({ "address": { "bad_tokens": hourly(3) } }));
    let ann = world.user("ann");
    let show =
        |socket: &mut Socket, token: &str| socket.send(Message::Auth { sender: None, token: token.into() }.encode());
    let shown = |token: &str| {
        let mut socket = Socket::joined(&world.server, HERE, Some(&ann), "shows");
        show(&mut socket, token);
        socket.end()
    };
    let before = world.checked();
    for n in 0..3 {
        assert_eq!(shown(&format!("bad{n}")).0, 4401);
    }
    for n in 3..6 {
        is_transient(&shown(&format!("bad{n}")), 4531);
    }
    assert_eq!((world.checked() - before, world.server.refused("bad_tokens")), (3, 3));
    let mut socket = Socket::joined(&world.server, HERE, Some(&ann), "stays");
    show(&mut socket, &ann);
    socket.settled().unwrap();
    says_when(&world.end_of(HERE, "bad"), CloseCode::TooManyNewLinks);
}

#[test]
fn a_link_that_is_too_fast_is_read_later_and_closed_only_if_that_would_be_long() {
    let world = World::start(&json!({ "user": { "frames": { "per_second": 50, "burst": 10 } } }));
    let ann = world.user("ann");
    let began = Instant::now();
    let mut peer = world.enter(HERE, &ann).unwrap();
    let end = world.run(async {
        peer.babble(60, 10).await;
        // Taken after all that came before.
        peer.prove("bad").await;
        peer.end().await
    });
    assert_eq!(end.0, CloseCode::TokenRefused, "{end:?}");
    // The last of 64 waits for 54 that come back at 50 a second.
    assert!(began.elapsed() >= Duration::from_millis(1080), "{:?}", began.elapsed());
    assert!(world.server.metric("quota_delayed_total{kind=\"frames\"}") > 0);
    assert_eq!(world.server.refused("frames"), 0);

    for (quotas, kind, bytes) in [
        (json!({ "user": { "frames": hourly(5) } }), "frames", 10),
        (json!({ "user": { "bytes": hourly(3000) } }), "bytes", 2000),
    ] {
        let world = World::start(&quotas);
        let (ann, ben) = (world.user("ann"), world.user("ben"));
        let mut peer = world.enter(HERE, &ann).unwrap();
        let end = world.run(async {
            peer.babble(20, bytes).await;
            peer.end().await
        });
        says_when(&end, CloseCode::Busy);
        // Who owes that much is told at once when he comes again, and has the same account at the other port.
        says_when(&world.end_of(HERE, &ann), CloseCode::Busy);
        is_transient(&Socket::open(&world.server, HERE, Some(&ann)).unwrap().end(), 4529);
        assert_eq!(world.server.refused(kind), 3);
        world.enter(HERE, &ben).unwrap();
    }
}

/// Streams cost as well: else who opens and resets them would pay nothing.
#[test]
fn streams_are_paid_for_like_frames() {
    let world = World::start(&json!({ "user": { "frames": hourly(10) } }));
    let ann = world.user("ann");
    let peer = world.enter(HERE, &ann).unwrap();
    let end = world.run(async {
        // Each is given up before its first frame is there.
        let flood = async {
            loop {
                let Ok(mut writer) = peer.link.open_uni().await else { return };
                writer.push(&vec![0; 512 << 10]).unwrap();
                tokio::select! {
                    biased;
                    _ = writer.flush() => {}
                    () = std::future::ready(()) => {}
                }
                writer.reset(0);
            }
        };
        let (end, ()) = tokio::join!(peer.end(), flood);
        end
    });
    says_when(&end, CloseCode::Busy);
}

/// Else a client with one long change would come again with it for ever.
#[test]
fn what_was_too_much_is_taken_before_its_link_is_closed() {
    let world = World::start(&json!({ "user": { "bytes": hourly(4000) } }));
    let watcher = world.watcher(&world.user("eve"));
    let client = Client::start(&world, HERE, &world.user("ann"));
    let mut text = String::new();
    for n in 0..400_u64 {
        text.push_str(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_string());
    }
    client.create(&json!({ "text": text }));
    client.dial(&world);
    watcher.until(&world, 1);
    let why = client.told(&world, CloseCode::Busy);
    assert!(why.contains("too many bytes in a short time from this user"), "{why}");
    assert_eq!(world.server.refused("bytes"), 1);
    client.close(&world);
    watcher.close(&world);
}

#[test]
fn whoever_makes_many_documents_makes_the_next_ones_later() {
    let world = World::start(&json!({ "user": { "documents": hourly(3) } }));
    let (ann, ben) = (world.user("ann"), world.user("ben"));
    let watcher = world.watcher(&world.user("eve"));
    let (client, other) = (Client::start(&world, HERE, &ann), Client::start(&world, HERE, &ben));
    client.dial(&world);
    for n in 1..=3 {
        client.create(&json!({ "of": "ann" }));
        watcher.until(&world, n);
    }
    client.create(&json!({ "of": "ann", "late": true }));
    let why = client.told(&world, CloseCode::Busy);
    assert!(why.contains("too many new documents in a short time from this user"), "{why}");
    let create = |token| world.server.ask(HERE, Some(token), "POST", "/v1/collections/notes/documents", "{}").code().0;
    assert_eq!((create(&ann), create(&ben)), (429, 201));
    // Others are not touched, from the same address either.
    other.dial(&world);
    other.create(&json!({ "of": "ben" }));
    watcher.until(&world, 5);
    assert_eq!((watcher.count(), world.server.refused("documents")), (5, 2));
    [client, other, watcher].into_iter().for_each(|client| client.close(&world));
}

#[test]
fn those_who_are_nobody_in_particular_pay_as_their_address() {
    let world = World::start_with(&json!({ "address": { "documents": hourly(3) } }), &[]);
    let watcher = world.watcher("not looked at");
    let client = Client::start(&world, HERE, "not looked at");
    client.dial(&world);
    for n in 1..=3 {
        client.create(&json!({}));
        watcher.until(&world, n);
    }
    client.create(&json!({}));
    let why = client.told(&world, CloseCode::Busy);
    assert!(why.contains("too many new documents in a short time from this address"), "{why}");
    let other = Client::start(&world, ELSEWHERE, "not looked at");
    other.create(&json!({}));
    other.dial(&world);
    watcher.until(&world, 4);
    assert_eq!(watcher.count(), 4);
    [client, other, watcher].into_iter().for_each(|client| client.close(&world));
}

#[test]
fn nodes_do_not_pay_as_users() {
    let address = json!({ "connections": 1, "frames": hourly(5), "bytes": hourly(100), "documents": hourly(1) });
    let world = World::start(&json!({ "address": address }));
    let ann = world.user("ann");
    let watcher = world.watcher(&ann);
    let node = Client::start(&world, HERE, "not looked at");
    world.server.run(&["peer", "add", &node.database.node().to_string()]);
    node.dial(&world);
    for n in 1..=30 {
        node.create(&json!({ "n": n }));
        watcher.until(&world, n);
    }
    // Nor does its link take the place of another from there.
    let _one = world.enter(HERE, &ann).unwrap();
    assert!(matches!(world.dial(HERE), Err(NetError::Refused { .. })));
    node.create(&json!({ "n": 31 }));
    watcher.until(&world, 31);
    let closed = node.links.status().into_iter().find_map(|peer| peer.last_error);
    assert_eq!(closed, None, "it was never closed");
    [node, watcher].into_iter().for_each(|client| client.close(&world));
}

/// One who dials waits as long as he was told, and then comes by himself.
#[test]
fn a_dialler_that_was_told_when_to_come_again_does_not_come_before() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let waited = runtime.block_on(async {
        let bind = || {
            let key = Identity::generate().unwrap();
            Endpoint::bind(key, (HERE, 0).into(), &Limits::DEFAULT).unwrap()
        };
        let (acceptor, dialler) = (bind(), bind());
        let database = Database::on(tidelog::log::MemoryStorage::new()).node(dialler.node()).open().unwrap();
        let allow = Arc::new(AllowList::new(UnknownKeys::Refuse));
        let links = Links::start(database, dialler, allow, LinkOptions::default());
        let ticket = Ticket::new(acceptor.node(), "127.0.0.1", acceptor.local_addr().port()).unwrap();
        links.dial(ticket);
        let arrival = acceptor.accept().await.unwrap().finish().await.unwrap();
        let why = "too many messages in a short time from this user; retry after 1200 ms".to_owned();
        let busy = NetError::TurnedAway { addr: arrival.address(), code: CloseCode::Busy, why };
        let told = Instant::now();
        arrival.refuse(&busy);
        // Another token does not change how much its user had.
        links.set_token(Token("another".into())).unwrap();
        let again = tokio::time::timeout(PATIENCE, acceptor.accept()).await.expect("it comes again");
        let waited = told.elapsed();
        drop(again);
        links.close().await;
        waited
    });
    assert!(waited >= Duration::from_millis(1200), "{waited:?}");
}

/// Two users edit one document in turn, over two links from elsewhere; the slowest of the turns.
fn in_turn(ben: &Client, eve: &Client, world: &World, turns: i64) -> Duration {
    let notes = ben.database.collection("notes").unwrap();
    let (note, created) = notes.create(json!({ "turn": 0 })).unwrap();
    created.wait().unwrap();
    let mut slowest = Duration::ZERO;
    for turn in 1..=turns {
        let (from, to) = if turn % 2 == 1 { (ben, eve) } else { (eve, ben) };
        let began = Instant::now();
        let edited = from.database.find(note.id()).and_then(|note| note.change(|edit| Ok(edit.put("turn", turn)?)));
        edited.unwrap().wait().unwrap();
        let mut tail = to.database.tail();
        world.run(async {
            loop {
                tail.borrow_and_update();
                let there = to.database.find(note.id()).and_then(|note| note.read::<i64>("turn"));
                if there.is_ok_and(|there| there == Some(turn)) {
                    break;
                }
                tail.changed().await.unwrap();
            }
        });
        slowest = slowest.max(began.elapsed());
    }
    slowest
}

#[test]
fn a_flood_of_links_bad_tokens_and_frames_holds_up_only_who_sends_it() {
    let world = World::start(&json!({
        "address": { "handshakes": { "per_second": 20, "burst": 100 }, "bad_tokens": { "per_minute": 1, "burst": 20 } },
        "user": { "frames": { "per_second": 500, "burst": 500 } },
    }));
    let (ann, ben, eve) = (world.user("ann"), world.user("ben"), world.user("eve"));
    let (ben, eve) = (Client::start(&world, ELSEWHERE, &ben), Client::start(&world, ELSEWHERE, &eve));
    ben.dial(&world);
    eve.dial(&world);
    let alone = in_turn(&ben, &eve, &world, 40);
    let (before, began) = (world.checked(), Instant::now());
    let is_over = AtomicBool::new(false);
    let mut fast = world.enter(HERE, &ann).unwrap();
    let (beside, tried) = std::thread::scope(|scope| {
        let tokens = scope.spawn(|| {
            let mut ends = [0; 3];
            let mut n = 0;
            while !is_over.load(Ordering::Relaxed) {
                n += 1;
                let at = match world.enter(HERE, &format!("bad{n}")) {
                    Err(NetError::Closed { code: CloseCode::TokenRefused, .. }) => 0,
                    Err(NetError::Closed { code: CloseCode::TooManyNewLinks, .. }) => 1,
                    Err(NetError::Refused { .. }) => 2,
                    other => panic!("{other:?}"),
                };
                ends[at] += 1;
            }
            ends
        });
        let frames = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                world.run(fast.babble(100, 100));
            }
        });
        let beside = in_turn(&ben, &eve, &world, 200);
        is_over.store(true, Ordering::Relaxed);
        frames.join().unwrap();
        (beside, tokens.join().unwrap())
    });
    println!("slowest of 40 turns alone {alone:?}, of 200 beside a flood {beside:?}");
    println!("bad tokens looked at, not looked at, not even let in: {tried:?}");
    let checks = world.checked() - before;
    assert_eq!(checks, tried[0]);
    assert!((1..=20 + began.elapsed().as_secs() / 60 + 1).contains(&checks), "{checks}");
    assert_eq!(world.server.refused("bad_tokens"), tried[1]);
    assert!(world.server.refused("handshakes") >= tried[2]);
    assert!(fast.link.close_reason().is_none(), "held up, not closed");
    assert!(world.server.metric("quota_delayed_total{kind=\"frames\"}") > 0);
    ben.close(&world);
    eve.close(&world);
}
