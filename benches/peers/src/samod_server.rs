//! A sync server made of samod as its documentation shows: its own file storage, axum, documents on tokio's threads.
//! It announces nothing that a client did not ask for, as the JavaScript server does.

use std::path::Path;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::routing::get;
use axum::serve::ListenerExt;
use samod::storage::TokioFilesystemStorage;
use samod::{Repo, ShareConfig, Url};

use crate::Failure;

const MESSAGE_BYTES_MAX: usize = 100 << 20;

pub async fn serve(folder: &Path) -> Result<(), Failure> {
    let repo = Repo::build_tokio()
        .with_storage(TokioFilesystemStorage::new(folder))
        .with_share_policy(ShareConfig::read_write().with_announce(false))
        .load()
        .await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let acceptor = repo.make_acceptor(Url::parse(&format!("ws://{address}/"))?)?;
    let upgrade = move |upgrade: WebSocketUpgrade| {
        let acceptor = acceptor.clone();
        async move {
            let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
            upgrade.on_upgrade(move |socket| async move {
                if let Err(error) = acceptor.accept_axum(socket, None) {
                    eprintln!("a socket was not accepted: {error}");
                }
            })
        }
    };
    println!("Listening on port {}", address.port());
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            eprintln!("nodelay: {error}");
        }
    });
    Ok(axum::serve(listener, Router::new().route("/", get(upgrade))).await?)
}
