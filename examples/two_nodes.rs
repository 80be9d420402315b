//! Two nodes edit one text while they are apart, meet over QUIC, and agree; again and again.
//!
//! `cargo run --release --example two_nodes`. `tests/nodes.rs` does the same with real editing histories and real
//! processes.

use std::sync::Arc;

use serde_json::json;
use tidelog::net::{AllowList, Endpoint, Identity, LinkOptions, Links, Ticket, UnknownKeys};
use tidelog::{Database, DocHandle, Limits};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// A database and its place in the network.
struct Node {
    database: Database,
    links: Links,
    ticket: Ticket,
}

impl Node {
    fn start(path: std::path::PathBuf) -> Outcome<Self> {
        let identity = Identity::generate()?;
        let database = Database::builder(path).node(identity.node()).open()?;
        let endpoint = Endpoint::bind(identity, "127.0.0.1:0".parse()?, &Limits::DEFAULT)?;
        let ticket = Ticket::new(endpoint.node(), "127.0.0.1", endpoint.local_addr().port())?;
        let allow = Arc::new(AllowList::new(UnknownKeys::LoopbackNodes));
        let links = Links::start(database.clone(), endpoint, allow, LinkOptions::default());
        Ok(Self { database, links, ticket })
    }
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let folder = std::env::temp_dir().join(format!("tidelog-two-nodes-{}", std::process::id()));
    let (ann, ben) = (Node::start(folder.join("ann"))?, Node::start(folder.join("ben"))?);

    let (essay, created) = ann.database.collection("essays")?.create(json!({ "text": "" }))?;
    created.await?;
    meet(&ann, &ben).await?;
    let copy = ben.database.find(essay.id())?;

    for round in 1..=5 {
        part(&ann, &ben);
        write(&essay, &format!("Ann's sentence {round}. ")).await?;
        write(&copy, &format!("Ben's sentence {round}. ")).await?;
        println!("apart    Ann: {:?}", essay.read::<String>("text")?.unwrap_or_default());
        println!("         Ben: {:?}", copy.read::<String>("text")?.unwrap_or_default());
        meet(&ann, &ben).await?;
        assert_eq!(essay.to_json()?, copy.to_json()?);
        println!("together      {:?}\n", essay.read::<String>("text")?.unwrap_or_default());
    }
    println!("{} changes, the same heads on both: {}", essay.state()?.change_count, essay.heads()?);
    ann.links.close().await;
    ben.links.close().await;
    Ok(())
}

/// Types `text` at the end, one keystroke a change.
async fn write(document: &DocHandle, text: &str) -> Outcome<()> {
    for letter in text.chars() {
        let end = document.read::<String>("text")?.unwrap_or_default().chars().count();
        document.change(|edit| Ok(edit.splice("text", end, 0, &letter.to_string())?))?.await?;
    }
    Ok(())
}

/// Links the two and waits until they have the same documents in the same state.
async fn meet(one: &Node, other: &Node) -> Outcome<()> {
    other.links.dial(one.ticket.clone());
    let (mut here, mut there) = (one.database.tail(), other.database.tail());
    while one.database.reader().inventory(None, 1000)? != other.database.reader().inventory(None, 1000)? {
        tokio::select! {
            moved = here.changed() => moved?,
            moved = there.changed() => moved?,
        }
    }
    Ok(())
}

fn part(one: &Node, other: &Node) {
    other.links.drop_peer(one.database.node());
}
