//! Which addresses are one, and where a client is that comes through a proxy.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// What an address is known as: IPv4 by all of it, IPv6 by the 64 bits of its network, within which a host has as many
/// addresses as it likes.
pub(crate) fn net_of(address: IpAddr) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets()[..8].to_vec(),
    }
}

/// Where a request comes from that `peer` brought. What a proxy says, it is believed; what was said to it, is not: of
/// the addresses it passes on, the last counts that is no proxy's. When it contradicts itself it is taken for the client.
pub(crate) fn client_of(peer: IpAddr, proxies: &[IpAddr], forwarded: &[&str], forwarded_for: &[&str]) -> IpAddr {
    let is_proxy = |address: &IpAddr| proxies.iter().any(|proxy| proxy.to_canonical() == address.to_canonical());
    if !is_proxy(&peer) {
        return peer;
    }
    let last = |hops: Vec<Option<IpAddr>>| {
        let mut last = None;
        for hop in hops.into_iter().rev() {
            // Beyond what cannot be read nothing is known.
            let Some(hop) = hop else { break };
            last = Some(hop);
            if !is_proxy(&hop) {
                break;
            }
        }
        last
    };
    let split = |texts: &[&str]| -> Vec<String> {
        texts.iter().flat_map(|text| text.split(',')).map(|hop| hop.trim().to_owned()).collect()
    };
    let by_forwarded = last(split(forwarded).iter().map(|hop| of_forwarded(hop)).collect());
    let by_for = last(split(forwarded_for).iter().map(|hop| address_of(hop)).collect());
    match (by_forwarded, by_for) {
        (Some(one), Some(other)) if one == other => one,
        (Some(one), None) if forwarded_for.is_empty() => one,
        (None, Some(other)) if forwarded.is_empty() => other,
        // Who sends one of the two headers himself, beside the one that the proxy writes, gains nothing.
        _ => peer,
    }
}

/// The address in one element of `Forwarded` (RFC 7239).
fn of_forwarded(hop: &str) -> Option<IpAddr> {
    let value = hop.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then_some(value)
    })?;
    address_of(value.trim().trim_matches('"'))
}

/// An address, with a port or without, IPv6 in brackets or without.
fn address_of(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if let Some(address) = bare.and_then(|text| text.parse::<Ipv6Addr>().ok()) {
        return Some(address.into());
    }
    text.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_of_one_host_is_one() {
        assert_eq!(net_of(ip("::ffff:10.0.0.1")), net_of(ip("10.0.0.1")));
        assert_ne!(net_of(ip("10.0.0.1")), net_of(ip("10.0.0.2")));
        assert_eq!(net_of(ip("2001:db8:1:2:3::4")), net_of(ip("2001:db8:1:2::1")));
        assert_ne!(net_of(ip("2001:db8:1:3::4")), net_of(ip("2001:db8:1:2::1")));
    }

    #[test]
    fn only_what_a_proxy_adds_is_believed() {
        let proxies = [ip("10.0.0.1"), ip("10.0.0.2")];
        for (peer, forwarded, forwarded_for, expected) in [
            ("192.0.2.9", &[][..], &["198.51.100.7"][..], "192.0.2.9"),
            ("10.0.0.1", &[], &["198.51.100.7"], "198.51.100.7"),
            ("::ffff:10.0.0.1", &[], &["198.51.100.7:4711"], "198.51.100.7"),
            ("10.0.0.1", &[], &["203.0.113.1, 198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &[], &["203.0.113.1", "198.51.100.7, 10.0.0.2"], "198.51.100.7"),
            ("10.0.0.1", &[], &["203.0.113.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &[], &[], "10.0.0.1"),
            ("10.0.0.1", &[], &["nonsense"], "10.0.0.1"),
            ("10.0.0.1", &["for=198.51.100.7;proto=https"], &[], "198.51.100.7"),
            ("10.0.0.1", &["For=\"[2001:db8::7]:4711\""], &[], "2001:db8::7"),
            ("10.0.0.1", &["for=203.0.113.1, by=x;for=198.51.100.7"], &[], "198.51.100.7"),
            ("10.0.0.1", &["for=203.0.113.1"], &["198.51.100.7"], "10.0.0.1"),
            ("10.0.0.1", &["for=198.51.100.7"], &["198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["for=_hidden"], &[], "10.0.0.1"),
            ("10.0.0.1", &["for=_hidden"], &["198.51.100.7"], "10.0.0.1"),
        ] {
            let found = client_of(ip(peer), &proxies, forwarded, forwarded_for);
            assert_eq!(found, ip(expected), "{peer} {forwarded:?} {forwarded_for:?}");
        }
    }
}
