//! A token taken apart: three parts, a header with an algorithm and perhaps a key's name, claims. And put together.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value, json};

use super::error::{AuthError, TokenError};
use super::json::{self, Bounds};
use crate::limits::tokens as limits;

/// How a token is signed. There are no others here: neither `none`, nor those with a shared secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSA with PKCS #1 v1.5 and SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rs256, Self::Es256, Self::EdDsa];

    pub(super) fn of_library(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        })
    }
}

impl FromStr for Algorithm {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|algorithm| algorithm.to_string() == text).ok_or(match text {
            "none" | "None" | "NONE" => "it has none",
            _ if text.starts_with("HS") => "it is signed with a shared secret",
            _ => "it is neither RS256, ES256 nor EdDSA",
        })
    }
}

/// A token, taken apart and proven in nothing.
pub(super) struct Parts<'a> {
    /// What is signed.
    pub(super) signed: &'a str,
    /// By what, in base64url.
    pub(super) signature: &'a str,
    pub(super) algorithm: Algorithm,
    /// The name of the key, if it says.
    pub(super) kid: Option<String>,
    pub(super) claims: Map<String, Value>,
}

const HEADER: Bounds = Bounds { depth: 3, values: limits::HEADER_VALUES_MAX };
const CLAIMS: Bounds = Bounds { depth: limits::CLAIMS_DEPTH, values: limits::CLAIMS_MAX };

impl<'a> Parts<'a> {
    /// Takes `token` apart.
    pub(super) fn of(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > limits::TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong(token.len()));
        }
        let mut parts = token.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed("it has not three parts"));
        };
        // Here already, and strictly: a second spelling of one signature would be a second token.
        let bytes = BASE64URL_NOPAD.decode(signature.as_bytes());
        if bytes.is_ok_and(|bytes| bytes.is_empty()) {
            return Err(TokenError::Algorithm("it has no signature"));
        }
        if BASE64URL_NOPAD.decode(signature.as_bytes()).is_err() {
            return Err(TokenError::Malformed("its signature is not base64url"));
        }
        let (algorithm, kid) = read_header(&decoded(header, HEADER)?)?;
        let claims = decoded(claims, CLAIMS)?;
        let signed = &token[..token.len() - signature.len() - 1];
        Ok(Self { signed, signature, algorithm, kid, claims })
    }
}

fn decoded(part: &str, bounds: Bounds) -> Result<Map<String, Value>, TokenError> {
    let bytes =
        BASE64URL_NOPAD.decode(part.as_bytes()).map_err(|_| TokenError::Malformed("a part of it is not base64url"))?;
    json::object(&bytes, bounds).map_err(TokenError::Malformed)
}

/// Keys, certificates and addresses in the header are not looked at: who signed it does not say what proves it.
fn read_header(header: &Map<String, Value>) -> Result<(Algorithm, Option<String>), TokenError> {
    // An extension may change what everything else means.
    if header.contains_key("crit") {
        return Err(TokenError::Critical);
    }
    if ["enc", "zip", "b64"].iter().any(|name| header.contains_key(*name)) {
        return Err(TokenError::Malformed("it is not a plain signed token"));
    }
    let algorithm = match header.get("alg") {
        Some(Value::String(text)) => text.parse().map_err(TokenError::Algorithm)?,
        _ => return Err(TokenError::Algorithm("it does not say")),
    };
    match header.get("typ") {
        None => {}
        Some(Value::String(kind)) if ["JWT", "at+jwt"].iter().any(|known| kind.eq_ignore_ascii_case(known)) => {}
        Some(_) => return Err(TokenError::Malformed("it is another kind of token")),
    }
    let kid = match header.get("kid") {
        None => None,
        Some(Value::String(kid)) if kid.len() <= limits::ID_BYTES_MAX => Some(kid.clone()),
        Some(_) => return Err(TokenError::Malformed("its `kid` is not a short text")),
    };
    Ok((algorithm, kid))
}

/// Puts a token together.
pub(super) fn signed(
    kid: &str,
    claims: &Map<String, Value>,
    key: &jsonwebtoken::EncodingKey,
) -> Result<String, AuthError> {
    let header = json!({ "alg": "EdDSA", "kid": kid, "typ": "JWT" }).to_string();
    let claims = serde_json::to_vec(claims).map_err(|_| AuthError::Signing("the claims cannot be written"))?;
    let mut token = BASE64URL_NOPAD.encode(header.as_bytes());
    token.push('.');
    token.push_str(&BASE64URL_NOPAD.encode(&claims));
    let signature = jsonwebtoken::crypto::sign(token.as_bytes(), key, jsonwebtoken::Algorithm::EdDSA)
        .map_err(|_| AuthError::Signing("the cryptography refuses the key"))?;
    token.push('.');
    token.push_str(&signature);
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, claims: &str, signature: &str) -> String {
        [header, claims].map(|part| BASE64URL_NOPAD.encode(part.as_bytes())).join(".") + "." + signature
    }

    fn reason(token: &str) -> &'static str {
        Parts::of(token).err().map_or("none", |error| error.reason())
    }

    #[test]
    fn what_is_taken_apart_is_what_was_put_together() {
        let token = token(r#"{"alg":"ES256","kid":"k","typ":"at+JWT"}"#, r#"{"iss":"i","n":[1]}"#, "AAAA");
        let parts = Parts::of(&token).unwrap();
        assert_eq!((parts.algorithm, parts.kid.as_deref()), (Algorithm::Es256, Some("k")));
        assert_eq!(format!("{}.{}", parts.signed, parts.signature), token);
        assert_eq!(parts.claims["n"], json!([1]));
    }

    #[test]
    fn a_header_that_wants_more_than_a_signature_is_refused() {
        let ok = r#"{"alg":"EdDSA"}"#;
        assert_eq!(reason(&token(ok, "{}", "AAAA")), "none");
        for (header, expected) in [
            (r#"{"alg":"none"}"#, "algorithm"),
            (r#"{"alg":"NonE"}"#, "algorithm"),
            (r#"{"alg":"HS256"}"#, "algorithm"),
            (r#"{"alg":"HS512"}"#, "algorithm"),
            (r#"{"alg":"PS256"}"#, "algorithm"),
            (r#"{"alg":"eddsa"}"#, "algorithm"),
            (r#"{"alg":["EdDSA"]}"#, "algorithm"),
            (r#"{}"#, "algorithm"),
            (r#"{"alg":"EdDSA","alg":"none"}"#, "malformed"),
            (r#"{"alg":"EdDSA","crit":["x"]}"#, "critical"),
            (r#"{"alg":"EdDSA","crit":[]}"#, "critical"),
            (r#"{"alg":"EdDSA","b64":false}"#, "malformed"),
            (r#"{"alg":"EdDSA","zip":"DEF"}"#, "malformed"),
            (r#"{"alg":"EdDSA","enc":"A128GCM"}"#, "malformed"),
            (r#"{"alg":"EdDSA","typ":"dpop+jwt"}"#, "malformed"),
            (r#"{"alg":"EdDSA","typ":1}"#, "malformed"),
            (r#"{"alg":"EdDSA","kid":7}"#, "malformed"),
            (r#"["EdDSA"]"#, "malformed"),
        ] {
            assert_eq!(reason(&token(header, "{}", "AAAA")), expected, "{header}");
        }
        assert_eq!(reason(&token(ok, "{}", "")), "algorithm");
        assert_eq!(reason(&token(ok, "{}", "AAA=")), "malformed");
        assert_eq!(reason(&token(ok, "{}", "AAAB\u{e9}")), "malformed");
        assert_eq!(reason(&token(ok, "{}", "AB")), "malformed", "bits that are left over");
        for text in ["", ".", "..", "a.b", "a.b.c.d", "a.b.c", "\u{1f511}.\u{1f511}.\u{1f511}"] {
            assert_ne!(reason(text), "none", "{text}");
        }
        assert_eq!(reason(&"a".repeat(8193)), "too_long");
    }
}
