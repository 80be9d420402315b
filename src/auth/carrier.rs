//! Where a token comes from in a request, and how it is kept out of logs.
//!
//! Three ways: `Authorization: Bearer <token>`; for WebSockets of browsers, which cannot set that header,
//! `Sec-WebSocket-Protocol: tidelog.v1, tidelog.token.<token>`; and, for clients that can set neither,
//! `?access_token=<token>`. Whoever uses two at a time must say the same in both.

use std::borrow::Cow;
use std::fmt;

use crate::limits::tokens::TOKEN_BYTES_MAX;

/// The WebSocket protocol that a server selects when it is offered.
pub const PROTOCOL: &str = "tidelog.v1";
/// What an offered protocol begins with that is a token.
pub const PROTOCOL_TOKEN: &str = "tidelog.token.";
/// The parameter of a query that is a token.
pub const PARAMETER: &str = "access_token";

/// How a token was carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// In the header `Authorization`.
    Authorization,
    /// Among the protocols of a WebSocket.
    Protocol,
    /// In the query of the URL.
    Query,
}

/// A token from a request. It does not show itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Carried {
    token: String,
    /// How it came; when it came in several ways, the first of them as listed.
    pub by: Carrier,
}

impl Carried {
    /// The token, proven in nothing.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }
}

impl fmt::Debug for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carried").field("by", &self.by).finish_non_exhaustive()
    }
}

/// Why no token can be taken from a request that carries one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CarrierError {
    /// It carries two that differ.
    #[error("the request carries two different tokens; give one")]
    Two,
    /// What it carries has not the letters of a token, or too many or none of them.
    #[error("the request carries a token that is empty, too long or has other letters than a token has")]
    Malformed,
    /// It offers a token as a WebSocket protocol, and not the protocol that the server answers with.
    #[error("the request offers a token as a protocol without tidelog.v1 beside it; offer both")]
    NoProtocol,
}

impl CarrierError {
    /// Its fixed code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "E0202"
    }

    /// A short name for metrics and logs, which stays.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Two => "two_tokens",
            Self::Malformed => "malformed",
            Self::NoProtocol => "no_protocol",
        }
    }
}

/// Takes the token out of a request: of its headers `Authorization` and `Sec-WebSocket-Protocol` and of the query of its
/// URL, as they are. An `Authorization` of another scheme is somebody else's.
///
/// # Errors
/// [`CarrierError`] when it carries something that cannot be one token.
pub fn of_request(
    authorization: Option<&str>,
    protocols: Option<&str>,
    query: Option<&str>,
) -> Result<Option<Carried>, CarrierError> {
    let mut found: Option<Carried> = None;
    let mut take = |token: &str, by: Carrier| {
        if !is_token(token) {
            return Err(CarrierError::Malformed);
        }
        match &found {
            Some(other) if other.token != token => Err(CarrierError::Two),
            Some(_) => Ok(()),
            None => {
                found = Some(Carried { token: token.to_owned(), by });
                Ok(())
            }
        }
    };
    if let Some(token) = authorization.and_then(bearer) {
        take(token, Carrier::Authorization)?;
    }
    for protocol in offered(protocols) {
        if let Some(token) = protocol.strip_prefix(PROTOCOL_TOKEN) {
            take(token, Carrier::Protocol)?;
            if selected_protocol(protocols).is_none() {
                return Err(CarrierError::NoProtocol);
            }
        }
    }
    for pair in query.unwrap_or_default().split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // A name that is spelled otherwise is the same name.
        if percent_decoded(name).is_some_and(|name| name == PARAMETER) {
            take(&percent_decoded(value).ok_or(CarrierError::Malformed)?, Carrier::Query)?;
        }
    }
    Ok(found)
}

/// The protocol that the answer to a WebSocket request must select, of those that it offers.
#[must_use]
pub fn selected_protocol(protocols: Option<&str>) -> Option<&'static str> {
    offered(protocols).any(|protocol| protocol == PROTOCOL).then_some(PROTOCOL)
}

fn offered(protocols: Option<&str>) -> impl Iterator<Item = &str> {
    protocols.unwrap_or_default().split(',').map(str::trim)
}

fn bearer(authorization: &str) -> Option<&str> {
    let text = authorization.trim();
    let (scheme, token) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.len() <= TOKEN_BYTES_MAX && text.bytes().all(is_letter)
}

pub(crate) fn percent_decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        if *byte != b'%' {
            bytes.push(*byte);
            rest = after;
            continue;
        }
        let digits = after.get(..2)?;
        bytes.push(*data_encoding::HEXLOWER_PERMISSIVE.decode(digits).ok()?.first()?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// What takes a token's place in a log.
const REDACTED: &str = "[redacted]";

/// A URL, a header or any text for a log, without the tokens in it: those of the three ways, and whatever looks like one.
#[must_use]
pub fn redacted(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut copied = 0;
    let mut at = 0;
    while at < text.len() {
        match secret_at(text, at) {
            Some((start, end)) if end > start => {
                out.push_str(&text[copied..start]);
                out.push_str(REDACTED);
                copied = end;
                at = end;
            }
            _ => at += text[at..].chars().next().map_or(1, char::len_utf8),
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// Where the secret is that is announced at `at`.
fn secret_at(text: &str, at: usize) -> Option<(usize, usize)> {
    let rest = &text[at..];
    let bytes = rest.as_bytes();
    let run = |from: usize, ends: fn(u8) -> bool| {
        let length = bytes[from..].iter().position(|byte| ends(*byte)).unwrap_or(bytes.len() - from);
        Some((at + from, at + from + length))
    };
    let begins = |word: &str| bytes.len() >= word.len() && bytes[..word.len()].eq_ignore_ascii_case(word.as_bytes());
    if begins("access") {
        // Also percent-encoded, in full or in part.
        let name_end = rest.find('=').filter(|end| *end <= 3 * PARAMETER.len())?;
        if percent_decoded(&rest[..name_end]).is_some_and(|name| name.eq_ignore_ascii_case(PARAMETER)) {
            return run(name_end + 1, |byte| matches!(byte, b'&' | b'#' | b' ' | b'"' | b'\'' | b'\t' | b'\r' | b'\n'));
        }
    }
    if begins(PROTOCOL_TOKEN) {
        return run(PROTOCOL_TOKEN.len(), |byte| !is_letter(byte));
    }
    if begins("bearer ") {
        let skipped = bytes[7..].iter().take_while(|byte| **byte == b' ').count();
        return run(7 + skipped, |byte| matches!(byte, b' ' | b',' | b'"' | b'\'' | b'\t' | b'\r' | b'\n'));
    }
    // The beginning of every header in base64url, `{"`.
    if rest.starts_with("eyJ") && !text[..at].bytes().next_back().is_some_and(is_letter) {
        return run(0, |byte| !is_letter(byte)).filter(|(start, end)| text[*start..*end].contains('.'));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(authorization: Option<&str>, protocols: Option<&str>, query: Option<&str>) -> Option<(String, Carrier)> {
        let carried = of_request(authorization, protocols, query).unwrap()?;
        Some((carried.token().to_owned(), carried.by))
    }

    #[test]
    fn a_token_is_found_in_each_way() {
        assert_eq!(token(None, None, None), None);
        assert_eq!(token(Some("Bearer a.b-c_d"), None, None), Some(("a.b-c_d".into(), Carrier::Authorization)));
        assert_eq!(token(Some("bEARER  a.b "), None, None), Some(("a.b".into(), Carrier::Authorization)));
        assert_eq!(token(Some("Basic a2V5"), None, None), None);
        let offered = "tidelog.v1, tidelog.token.a.b.c";
        assert_eq!(token(None, Some(offered), None), Some(("a.b.c".into(), Carrier::Protocol)));
        assert_eq!(token(None, Some("tidelog.v1"), None), None);
        assert_eq!(token(None, None, Some("x=1&access_token=a%2Eb.c")), Some(("a.b.c".into(), Carrier::Query)));
        assert_eq!(token(None, None, Some("access%5Ftoken=a")), Some(("a".into(), Carrier::Query)));
        assert_eq!(token(None, None, Some("my_access_token=a&token=b")), None);
        let all = token(Some("Bearer a"), Some("tidelog.token.a,tidelog.v1"), Some("access_token=a"));
        assert_eq!(all, Some(("a".into(), Carrier::Authorization)));
    }

    #[test]
    fn what_cannot_be_one_token_is_refused() {
        for (authorization, protocols, query, error) in [
            (Some("Bearer a"), None, Some("access_token=b"), CarrierError::Two),
            (Some("Bearer a"), Some("tidelog.v1,tidelog.token.b"), None, CarrierError::Two),
            (None, Some("tidelog.v1,tidelog.token.a,tidelog.token.b"), None, CarrierError::Two),
            (None, None, Some("access_token=a&access_token=b"), CarrierError::Two),
            (Some("Bearer"), None, None, CarrierError::Malformed),
            (Some("Bearer a b"), None, None, CarrierError::Malformed),
            (Some("Bearer a=b"), None, None, CarrierError::Malformed),
            (None, Some("tidelog.v1,tidelog.token."), None, CarrierError::Malformed),
            (None, None, Some("access_token="), CarrierError::Malformed),
            (None, None, Some("access_token"), CarrierError::Malformed),
            (None, None, Some("access_token=a+b"), CarrierError::Malformed),
            (None, None, Some("access_token=%"), CarrierError::Malformed),
            (None, None, Some("access_token=%zz"), CarrierError::Malformed),
            (None, None, Some("access_token=%ff"), CarrierError::Malformed),
            (None, Some("tidelog.token.a"), None, CarrierError::NoProtocol),
        ] {
            assert_eq!(
                of_request(authorization, protocols, query).err(),
                Some(error),
                "{authorization:?} {protocols:?} {query:?}"
            );
        }
        let long = format!("Bearer {}", "a".repeat(8193));
        assert_eq!(of_request(Some(&long), None, None).err(), Some(CarrierError::Malformed));
        assert_eq!(selected_protocol(Some("x, tidelog.v1")), Some("tidelog.v1"));
        assert_eq!(selected_protocol(Some("tidelog.token.a")), None);
        assert_eq!(selected_protocol(None), None);
    }

    #[test]
    fn no_token_stays_in_a_text_for_the_log() {
        let secret = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl";
        for (text, expected) in [
            (format!("GET /sync?access_token={secret}&x=1 HTTP/1.1"), "GET /sync?access_token=[redacted]&x=1 HTTP/1.1"),
            (format!("/sync?x=1&ACCESS_TOKEN={secret}#f"), "/sync?x=1&ACCESS_TOKEN=[redacted]#f"),
            (format!("/sync?access%5Ftoken={secret}"), "/sync?access%5Ftoken=[redacted]"),
            (format!("authorization: Bearer {secret}"), "authorization: Bearer [redacted]"),
            ("Authorization: bearer   opaque=".to_owned(), "Authorization: bearer   [redacted]"),
            (format!("tidelog.v1, tidelog.token.{secret}, x"), "tidelog.v1, tidelog.token.[redacted], x"),
            (format!("it said {secret}, and ü"), "it said [redacted], and ü"),
            (format!("twice {secret} {secret}"), "twice [redacted] [redacted]"),
        ] {
            assert_eq!(redacted(&text), expected);
            assert!(!redacted(&text).contains("c2ln"));
        }
        for plain in ["", "GET /v1/collections?limit=3", "access_tokens=1", "bearer", "tidelog.v1", "keyJumps.x", "ü=%"]
        {
            assert!(matches!(redacted(plain), Cow::Borrowed(text) if text == plain), "{plain}");
        }
    }

    #[test]
    fn a_carried_token_does_not_show_itself() {
        let carried = of_request(Some("Bearer secret"), None, None).unwrap().unwrap();
        assert!(!format!("{carried:?}").contains("secret"));
    }
}
