//! A client with a database of its own edits while its node is down, finds the node again by itself, and both agree.
//!
//! `cargo run --release --example offline_client`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use tidelog::net::{AllowList, Endpoint, Identity, LinkOptions, Links, Ticket, UnknownKeys};
use tidelog::{Database, DocHandle, Limits};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let folder = std::env::temp_dir().join(format!("tidelog-offline-client-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;

    // The node, and a document on it.
    let (server, links, ticket) = serve(&folder, 0)?;
    let (plan, created) = server.collection("plans")?.create(json!({ "title": "Picnic", "items": [] }))?;
    created.await?;
    let id = plan.id();

    // The client dials the node; from here on it keeps the link by itself.
    let key = Identity::generate()?;
    let client = Database::builder(folder.join("client")).node(key.node()).open()?;
    let dialler = Links::start(
        client.clone(),
        Endpoint::bind(key, "127.0.0.1:0".parse()?, &Limits::DEFAULT)?,
        Arc::new(AllowList::new(UnknownKeys::Refuse)),
        LinkOptions::default(),
    );
    dialler.dial(ticket.clone());
    wait_for(&client, |client| client.find(id).is_ok()).await?;
    let copy = client.find(id)?;
    println!("the client has   {}", copy.to_json()?);

    // The node goes away. Everything works on.
    links.close().await;
    drop((plan, links));
    server.close();
    drop(server);
    for item in ["bread", "cheese", "olives"] {
        add(&copy, item).await?;
    }
    println!("edited offline   {}", copy.to_json()?);

    // The node comes back, somebody edits there, and the client finds it: 100 ms to 30 s between two attempts, growing,
    // with a random part so that many clients do not come at once.
    let (server, links, _) = serve(&folder, ticket.port())?;
    let plan = server.find(id)?;
    add(&plan, "lemonade").await?;
    // What each lacks comes by itself, the one before the other or after it.
    wait_for(&server, |_| plan.to_json().is_ok_and(|value| value.to_string().contains("olives"))).await?;
    wait_for(&client, |_| copy.to_json().is_ok_and(|value| value.to_string().contains("lemonade"))).await?;
    assert_eq!(plan.to_json()?, copy.to_json()?);
    println!("together again   {}", plan.to_json()?);

    // And live, both ways.
    add(&copy, "cups").await?;
    wait_for(&server, |_| plan.to_json().is_ok_and(|value| value.to_string().contains("cups"))).await?;
    add(&plan, "napkins").await?;
    wait_for(&client, |_| copy.to_json().is_ok_and(|value| value.to_string().contains("napkins"))).await?;
    println!("live             {}", copy.to_json()?);
    dialler.close().await;
    links.close().await;
    Ok(())
}

/// Starts the node on `port`, the same node each time: its key and its data are in the folder.
fn serve(folder: &Path, port: u16) -> Outcome<(Database, Links, Ticket)> {
    let key = Identity::load_or_create(&folder.join("node.key"))?;
    let path: PathBuf = folder.join("node");
    let database = Database::builder(path).node(key.node()).open()?;
    let endpoint = Endpoint::bind(key, ([127, 0, 0, 1], port).into(), &Limits::DEFAULT)?;
    let ticket = Ticket::new(endpoint.node(), "127.0.0.1", endpoint.local_addr().port())?;
    let allow = Arc::new(AllowList::new(UnknownKeys::LoopbackClients));
    Ok((database.clone(), Links::start(database, endpoint, allow, LinkOptions::default()), ticket))
}

async fn add(document: &DocHandle, item: &str) -> Outcome<()> {
    document
        .change(|edit| {
            let end = edit.length("items")?.unwrap_or(0);
            Ok(edit.insert("items", end, item)?)
        })?
        .await?;
    Ok(())
}

/// Waits, commit by commit, until `reached` says so.
async fn wait_for(database: &Database, reached: impl Fn(&Database) -> bool) -> Outcome<()> {
    let mut tail = database.tail();
    while !reached(database) {
        tail.changed().await?;
    }
    Ok(())
}
