//! Which pages' scripts may speak with us.
//!
//! A browser lets any page open a WebSocket to any host, also one to this machine, and says in `Origin` which page it
//! was. Who is no browser says nothing and could say anything; this protects people from pages, not servers from people.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use axum::http::Uri;

/// The origins whose pages may connect, beside those of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedOrigins {
    listed: Vec<String>,
    any: bool,
}

/// A text that is no origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an origin: write it as a browser does, https://app.example.org, or * for every page there is")]
pub struct OriginError(String);

impl AllowedOrigins {
    /// Reads a list of origins as browsers write them; `*` allows every page.
    ///
    /// # Errors
    /// [`OriginError`] names the one that is none.
    pub fn parse(texts: &[String]) -> Result<Self, OriginError> {
        let mut allowed = Self::default();
        for text in texts {
            match &**text {
                "*" => allowed.any = true,
                text => {
                    let origin = text.trim_end_matches('/').to_ascii_lowercase();
                    let (_, authority) = origin.split_once("://").ok_or_else(|| OriginError(text.to_owned()))?;
                    if authority.contains('/') || host_of(&origin).is_none() {
                        return Err(OriginError(text.to_owned()));
                    }
                    allowed.listed.push(origin);
                }
            }
        }
        Ok(allowed)
    }

    /// Whether a page of `origin` may connect to the server that listens on `address` and was asked for as `host`.
    ///
    /// Pages of this machine may; so may the server's own, unless it is this machine's alone: there the name of the host
    /// proves nothing, since anybody may let a name of his point here.
    #[must_use]
    pub fn allow(&self, origin: &str, host: Option<&str>, address: SocketAddr) -> bool {
        let origin = origin.to_ascii_lowercase();
        if self.any || self.listed.contains(&origin) {
            return true;
        }
        let Some(page) = host_of(&origin) else { return false };
        let is_own = || {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            host.is_some_and(|host| authority == Some(&*host.to_ascii_lowercase()))
        };
        is_loopback(&page) || !address.ip().is_loopback() && is_own()
    }
}

fn host_of(origin: &str) -> Option<String> {
    let uri = Uri::from_str(origin).ok()?;
    uri.scheme()?;
    uri.host().map(str::to_owned)
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.ends_with(".localhost") || bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_this_machine_and_listed_ones_may_connect_and_no_others() {
        let here: SocketAddr = "127.0.0.1:4780".parse().unwrap();
        let listed = AllowedOrigins::parse(&["https://App.example.org/".into()]).unwrap();
        for origin in ["http://localhost:5173", "http://127.0.0.1:4780", "http://[::1]:80", "https://app.example.org"] {
            assert!(listed.allow(origin, Some("127.0.0.1:4780"), here), "{origin}");
        }
        for origin in
            ["https://evil.example", "null", "", "https://app.example.org.evil.example", "http://localhost.evil"]
        {
            assert!(!listed.allow(origin, Some("127.0.0.1:4780"), here), "{origin}");
        }
        // A name that points to this machine is not thereby of this machine.
        assert!(!listed.allow("http://evil.example:4780", Some("evil.example:4780"), here));
        let there: SocketAddr = "0.0.0.0:80".parse().unwrap();
        assert!(listed.allow("http://tides.example", Some("tides.example"), there));
        assert!(!listed.allow("http://evil.example", Some("tides.example"), there));
        assert!(AllowedOrigins::parse(&["*".into()]).unwrap().allow("null", None, here));
        for text in ["app.example.org", "https://", "https://a/b", "", "ftp//x"] {
            assert!(AllowedOrigins::parse(&[text.into()]).is_err(), "{text}");
        }
    }
}
