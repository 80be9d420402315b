//! Those who come over QUIC to a node with quotas: by hand, frame by frame, and as clients are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tidelog::net::{
    AllowList, CloseCode, Endpoint, FrameReader, FrameWriter, Identity, Link, LinkOptions, Links, NetError, UnknownKeys,
};
use tidelog::sync::wire::{self, CAPABILITY_TOKEN, Frame, Hello, HelloAck, Judgement, Position, Role, Token};
use tidelog::{Database, Limits};
use tokio::runtime::Runtime;

use crate::quotas::Server;

/// How long anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// A type of frame that this version does not know and may skip.
const SKIPPED: u8 = 0xf0;

/// A node with quotas of its own, which asks for tokens, and the runtime of those who come.
pub(super) struct World {
    pub(super) server: Server,
    pub(super) runtime: Runtime,
}

impl World {
    pub(super) fn start(quotas: &Value) -> Self {
        Self::start_with(quotas, &["--auth"])
    }

    pub(super) fn start_with(quotas: &Value, more: &[&str]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { server: Server::start(quotas, more), runtime }
    }

    pub(super) fn user(&self, name: &str) -> String {
        self.server.token(name, "user")
    }

    /// Dials from an address of loopback, with a key that nobody knows.
    pub(super) fn dial(&self, from: [u8; 4]) -> Result<Peer, NetError> {
        self.runtime.block_on(async {
            let key = Identity::generate().unwrap();
            let endpoint = Endpoint::bind(key, (from, 0).into(), &Limits::DEFAULT).unwrap();
            let link = endpoint.connect(&self.server.ticket).await?;
            let (writer, reader) = link.open_bi().await?;
            Ok(Peer { endpoint, link, writer, reader })
        })
    }

    /// Dials, and says who its user is; or hears why he may not be here.
    pub(super) fn enter(&self, from: [u8; 4], token: &str) -> Result<Peer, NetError> {
        let mut peer = self.dial(from)?;
        self.runtime.block_on(async {
            peer.hello(true).await;
            peer.prove(token).await;
            peer.entered().await
        })?;
        Ok(peer)
    }

    /// How one that says it is of that user is closed out.
    pub(super) fn end_of(&self, from: [u8; 4], token: &str) -> (CloseCode, String) {
        match self.enter(from, token) {
            Err(NetError::Closed { code, reason, .. }) => (code, reason),
            other => panic!("{other:?}"),
        }
    }

    /// Enters as soon as there is room again.
    pub(super) fn enter_again(&self, from: [u8; 4], token: &str) -> Peer {
        let until = Instant::now() + PATIENCE;
        std::iter::repeat_with(|| self.enter(from, token))
            .find_map(|entered| {
                assert!(Instant::now() < until, "{entered:?}");
                entered.ok()
            })
            .unwrap()
    }

    pub(super) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("in time") })
    }

    /// How often a token was looked at and not accepted.
    pub(super) fn checked(&self) -> u64 {
        self.server.metric("auth_total{result=\"refused\"}")
    }

    /// Somebody who is told everything, from an address where nobody else is.
    pub(super) fn watcher(&self, token: &str) -> Client {
        let watcher = Client::start(self, [127, 0, 0, 98], token);
        watcher.dial(self);
        watcher
    }
}

/// One that speaks the link's protocol by hand.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) endpoint: Endpoint,
    pub(super) link: Link,
    pub(super) writer: FrameWriter,
    pub(super) reader: FrameReader,
}

impl Peer {
    /// Says who it is, and whether it will say who its user is.
    pub(super) async fn hello(&mut self, brings_token: bool) {
        let node = self.endpoint.node();
        let database = Database::on(tidelog::log::MemoryStorage::new()).node(node).open().unwrap();
        let tail = database.reader().tail();
        let hello = Hello {
            node,
            log_id: tail.log_id,
            tail: Position { lsn: tail.lsn, chain: tail.chain },
            capabilities: if brings_token { CAPABILITY_TOKEN } else { 0 },
            agent: "by hand".to_owned(),
            invite: None,
            cursor: None,
        };
        self.send(&Frame::Hello(hello)).await;
    }

    pub(super) async fn prove(&mut self, token: &str) {
        self.send(&Frame::Auth(wire::Auth { token: Token(token.to_owned()) })).await;
    }

    /// Sends a frame. What is wrong shows when something is read.
    pub(super) async fn send(&mut self, frame: &Frame) {
        let _ = self.writer.send(&frame.encode().unwrap()).await;
    }

    /// Sends frames that mean nothing, so many of so many bytes.
    pub(super) async fn babble(&mut self, count: usize, bytes: usize) {
        let mut frame = vec![0; bytes];
        frame[..2].copy_from_slice(&[SKIPPED, 1]);
        for _ in 0..count {
            if self.writer.send(&frame).await.is_err() {
                return;
            }
        }
    }

    /// Waits for the server's `Hello`: it knows of the link.
    pub(super) async fn heard(&mut self) -> Result<(), NetError> {
        loop {
            if let Frame::Hello(_) = self.next().await? {
                return Ok(());
            }
        }
    }

    /// Waits until its user is let in, and does its part.
    pub(super) async fn entered(&mut self) -> Result<(), NetError> {
        loop {
            if let Frame::HelloAck(_) = self.next().await? {
                let ack = HelloAck { judgement: Judgement::Unknown, role: Role::Node };
                self.send(&Frame::HelloAck(ack)).await;
                return Ok(());
            }
        }
    }

    pub(super) async fn next(&mut self) -> Result<Frame, NetError> {
        let frame = tokio::time::timeout(PATIENCE, self.reader.read(wire::FRAME_BYTES_MAX)).await.expect("a frame")?;
        Ok(Frame::decode(&frame.ok_or(NetError::StreamClosed)?).unwrap())
    }

    /// How the server closes it.
    pub(super) async fn end(&self) -> (CloseCode, String) {
        match self.link.closed().await {
            NetError::Closed { code, reason, .. } => (code, reason),
            other => panic!("{other:?}"),
        }
    }
}

/// A native client of somebody.
pub(super) struct Client {
    pub(super) database: Database,
    pub(super) links: Links,
}

impl Client {
    pub(super) fn start(world: &World, from: [u8; 4], token: &str) -> Self {
        let _inside = world.runtime.enter();
        let key = Identity::generate().unwrap();
        let database = Database::on(tidelog::log::MemoryStorage::new()).node(key.node()).open().unwrap();
        let endpoint = Endpoint::bind(key, (from, 0).into(), &Limits::DEFAULT).unwrap();
        let allow = Arc::new(AllowList::new(UnknownKeys::Refuse));
        let options = LinkOptions { token: Some(Token(token.to_owned())), ..LinkOptions::default() };
        Self { links: Links::start(database.clone(), endpoint, allow, options), database }
    }

    pub(super) fn dial(&self, world: &World) {
        let _inside = world.runtime.enter();
        self.links.dial(world.server.ticket.clone());
    }

    pub(super) fn create(&self, value: &Value) {
        self.database.collection("notes").unwrap().create(value.clone()).unwrap().1.wait().unwrap();
    }

    /// How many documents it has.
    pub(super) fn count(&self) -> usize {
        self.database.reader().inventory(None, usize::MAX).unwrap().len()
    }

    /// Waits until it has so many documents.
    pub(super) fn until(&self, world: &World, count: usize) {
        let mut tail = self.database.tail();
        world.run(async {
            loop {
                tail.borrow_and_update();
                if self.count() >= count {
                    return;
                }
                tail.changed().await.unwrap();
            }
        });
    }

    /// Waits until a link was closed with this code, and says in which words.
    pub(super) fn told(&self, world: &World, code: CloseCode) -> String {
        let mut changes = self.links.changes();
        let mut last = None;
        world.run(async {
            let told = changes.wait_for(|_| {
                last = self.links.status().into_iter().find_map(|peer| peer.last_error);
                last.as_ref().is_some_and(|why| why.contains(code.name()))
            });
            told.await.map(drop).unwrap();
        });
        last.unwrap()
    }

    pub(super) fn close(self, world: &World) {
        world.run(self.links.close());
        self.database.close();
    }
}
