//! `tidelog serve`.

use std::io::Write as _;

use tidelog::Durability;
use tidelog::net::{NetError, Ticket};
use tidelog::node::command::{CommandError, Exit};
use tidelog::node::place::OpenPlace;
use tidelog::node::{AccessConfig, Node, NodeConfig};
use tidelog::web::AllowedOrigins;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::arguments::{AdmissionLevel, DurabilityLevel, Global, Serve};
use super::screen::Screen;

pub(super) async fn serve(global: Global, serve: Serve, screen: Screen) -> Result<(), CommandError> {
    let mut signals = Signals::new()?;
    if serve.new_node && !global.yes && screen.may_ask() && !confirmed().await? {
        return Err(CommandError::new("E0115", Exit::Conflict, "the node's key was kept"));
    }
    let tickets: Result<Vec<Ticket>, NetError> = serve.peer.iter().map(|text| text.parse()).collect();
    let durability = match serve.durability {
        DurabilityLevel::Synced => Durability::Synced,
        DurabilityLevel::Buffered => Durability::Buffered,
    };
    let mut config = NodeConfig {
        origins: AllowedOrigins::parse(&serve.origin).map_err(|error| CommandError::usage(error.to_string()))?,
        insecure_open: serve.insecure_open,
        access: AccessConfig { authenticates: serve.auth, issuers: serve.issuers.clone(), rules: serve.rules.clone() },
        quotas: serve.quotas.clone(),
        proxies: serve.proxy.clone(),
        structural: serve.admission == AdmissionLevel::Structural,
        peers: tickets?,
        token_file: serve.token_file.clone(),
        trust_loopback_nodes: serve.trust_loopback_nodes,
        strict: serve.strict,
        open: OpenPlace {
            create: true,
            restored: serve.restored,
            new_node: serve.new_node,
            accept_tail_loss: serve.accept_tail_loss,
            durability,
            ..OpenPlace::default()
        },
        ..NodeConfig::new(&global.data, serve.listen)
    };
    if serve.http.is_some() || serve.no_http {
        config.http = serve.http;
    }
    let node = tokio::select! {
        started = Node::start(config) => started?,
        () = signals.next() => return Err(CommandError::interrupted()),
    };
    if let Err(error) = announce(&node, &global, &serve, &screen) {
        // A node whose banner nobody reads serves all the same.
        if !error.is_output_closed() {
            node.shut_down().await;
            return Err(error);
        }
    }
    signals.next().await;
    screen.say("closing; once more ends it at once");
    tokio::select! {
        () = node.shut_down() => {}
        () = signals.next() => {}
    }
    Ok(())
}

fn announce(node: &Node, global: &Global, serve: &Serve, screen: &Screen) -> Result<(), CommandError> {
    if let Some(path) = &serve.ready_file {
        node.write_ready_file(path)?;
    }
    if global.json {
        return screen.print(&node.facts().to_string());
    }
    if global.quiet {
        return screen.print(&node.ticket().to_string());
    }
    let tail = node.tail();
    let renewed = if node.log_renewed() { ", new" } else { "" };
    let mut data = String::new();
    if global.data != std::path::Path::new("./tidelog-data") {
        data = format!(" --data {}", global.data.display());
    }
    let ticket = node.ticket();
    let http = node.http().map_or_else(String::new, |http| {
        format!("  Browsers   ws://{http}/sync (automerge-repo)\n  Demo       http://{http}/demo\n")
    });
    screen.print(&format!(
        "tidelog {version}\n\n  \
         Node       {node_id}\n  \
         Ticket     {ticket}\n  \
         Listening  {address} (QUIC over UDP)\n\
         {http}  \
         Data       {path}\n  \
         Log        {log}{renewed}, {records} records\n\n  \
         Try   tidelog add notes '{{\"title\": \"Tides\"}}'{data}     (in another terminal)\n  \
         Join  tidelog serve --data ./second --listen 127.0.0.1:0 --peer {ticket}",
        version = env!("CARGO_PKG_VERSION"),
        node_id = node.node(),
        address = node.address(),
        path = node.path().display(),
        log = tail.log_id,
        records = tail.lsn.0,
    ))
}

async fn confirmed() -> Result<bool, CommandError> {
    eprint!("Put this node's key aside? Its peers will not know it any more. [y/N] ");
    std::io::stderr().flush().map_err(|error| CommandError::file("write to", "stderr".as_ref(), &error))?;
    let line = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    let line = line.await.map_err(|error| CommandError::usage(error.to_string()))?;
    let line = line.map_err(|error| CommandError::file("read", "stdin".as_ref(), &error))?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, CommandError> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                CommandError::new("E0004", Exit::Failed, format!("the system gives no signals: {error}"))
            })
        };
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
