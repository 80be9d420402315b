//! Commands on peers and tickets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::{CommandError, Context, Exit, Output};
use crate::id::NodeId;
use crate::net::{AllowList, Role, Ticket};

pub(super) fn add(context: &Context, peer: &str, role: &str, output: &mut dyn Output) -> Result<Value, CommandError> {
    let role: Role = role.parse().map_err(CommandError::usage)?;
    let (node, ticket) = node_or_ticket(peer)?;
    if node == context.database.node() {
        return Err(crate::net::NetError::OwnKey { node }.into());
    }
    let before = context.peers.add(node, role, ticket.clone())?;
    if let (Some(ticket), Some(links)) = (ticket.clone(), context.links()) {
        links.dial(ticket);
    }
    output.row(json!({
        "node": node.to_string(),
        "role": role.to_string(),
        "was": before.map(|role| role.to_string()),
        "address": ticket.map(|ticket| ticket.address()),
    }))?;
    Ok(Value::Null)
}

fn node_or_ticket(text: &str) -> Result<(NodeId, Option<Ticket>), CommandError> {
    if text.contains('@') || text.starts_with("tidelog:") {
        let ticket: Ticket = text.parse()?;
        return Ok((ticket.node(), Some(ticket)));
    }
    let node = text.parse().map_err(|error: crate::id::IdError| {
        CommandError::new("E0109", Exit::Usage, format!("{error}; nor is it a ticket"))
            .fix("give what `tidelog ticket` prints at the other node, or its node id")
    })?;
    Ok((node, None))
}

pub(super) fn list(context: &Context, output: &mut dyn Output) -> Result<Value, CommandError> {
    for row in peer_rows(context) {
        output.row(row)?;
    }
    Ok(Value::Null)
}

/// One object for each peer: those allowed, and those linked without being on the list.
pub(super) fn peer_rows(context: &Context) -> Vec<Value> {
    let mut links = context.links().map(|links| links.status()).unwrap_or_default();
    let mut rows: Vec<Value> = Vec::new();
    for peer in context.peers.entries() {
        let node = json!(peer.node.to_string());
        let mut row = json!({
            "node": node,
            "role": peer.role.to_string(),
            "address": peer.ticket.map(|ticket| ticket.address()),
            "connected": false,
        });
        if let Some(index) = links.iter().position(|link| link["node"] == node) {
            merge(&mut row, links.swap_remove(index));
        }
        rows.push(row);
    }
    rows.append(&mut links);
    rows
}

fn merge(row: &mut Value, more: Value) {
    if let (Value::Object(row), Value::Object(more)) = (row, more) {
        for (key, value) in more {
            if !value.is_null() {
                row.insert(key, value);
            }
        }
    }
}

pub(super) fn remove(context: &Context, peer: &str, output: &mut dyn Output) -> Result<Value, CommandError> {
    let (node, _) = node_or_ticket(peer)?;
    let Some(role) = context.peers.remove(node)? else {
        return Err(CommandError::new("E0504", Exit::NotFound, format!("{node} is not among the peers"))
            .fix("`tidelog peer ls` lists them"));
    };
    if let Some(links) = context.links() {
        links.drop_peer(node);
    }
    output.row(json!({ "node": node.to_string(), "was": role.to_string() }))?;
    Ok(Value::Null)
}

pub(super) fn ticket(context: &Context, invite: Option<&str>, output: &mut dyn Output) -> Result<Value, CommandError> {
    let Some(address) = context.listening else { return Err(CommandError::no_node("a ticket")) };
    let mut ticket = ticket_of(context.database.node(), address)?;
    let mut row = json!({ "node": context.database.node().to_string(), "address": address.to_string() });
    if let Some(role) = invite {
        let role: Role = role.parse().map_err(CommandError::usage)?;
        ticket = ticket.with_invite(context.peers.invite(role, SystemTime::now())?);
        row["invite"] = json!(role.to_string());
        row["seconds"] = json!(AllowList::INVITE_LIFETIME.as_secs());
    }
    row["ticket"] = json!(ticket.to_string());
    output.row(row)?;
    Ok(Value::Null)
}

/// The ticket of a node that listens on `address`. Of a node that listens on every address of its machine, it has the
/// one that packets to elsewhere leave from.
pub(crate) fn ticket_of(node: NodeId, address: SocketAddr) -> Result<Ticket, CommandError> {
    let host = if address.ip().is_unspecified() { outward(address.is_ipv6()) } else { address.ip() };
    Ok(Ticket::new(node, &host.to_string(), address.port())?)
}

/// Which of our addresses the routing table picks. Connecting a UDP socket sends nothing.
fn outward(six: bool) -> IpAddr {
    let ask = |from: SocketAddr, to: SocketAddr| {
        let socket = UdpSocket::bind(from)?;
        socket.connect(to)?;
        socket.local_addr()
    };
    // Addresses that are reserved for documentation: nobody has them, and the default route leads there.
    let four = ask((Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv4Addr::new(192, 0, 2, 1), 9).into());
    let documentation = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    let found = match four {
        Err(_) if six => ask((Ipv6Addr::UNSPECIFIED, 0).into(), (documentation, 9).into()),
        four => four,
    };
    found.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_never_names_the_address_that_means_all() {
        for listening in ["0.0.0.0:4780", "[::]:4780"] {
            let ticket = ticket_of(NodeId([3; 32]), listening.parse().unwrap()).unwrap();
            assert!(!ticket.host().parse::<IpAddr>().unwrap().is_unspecified(), "{ticket}");
            assert_eq!(ticket.port(), 4780);
        }
    }
}
