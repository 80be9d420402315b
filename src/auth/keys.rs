//! A JSON Web Key Set (RFC 7517): the public keys of one issuer.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::DecodingKey;
use serde_json::{Map, Value};

use super::json::{self, Bounds};
use super::jws::{Algorithm, Parts};
use crate::id::first;
use crate::limits::tokens as limits;

const BOUNDS: Bounds = Bounds { depth: 8, values: limits::KEY_SET_VALUES_MAX };

/// One public key, for one algorithm: what signs with another is not verified with it, whatever a token says.
pub(super) struct Key {
    pub(super) kid: Option<String>,
    pub(super) algorithm: Algorithm,
    /// The same for the same key under the same name.
    pub(super) fingerprint: [u8; 16],
    key: DecodingKey,
}

impl Key {
    /// Whether it signed the token.
    pub(super) fn signed(&self, parts: &Parts<'_>) -> bool {
        parts.algorithm == self.algorithm
            && jsonwebtoken::crypto::verify(
                parts.signature,
                parts.signed.as_bytes(),
                &self.key,
                self.algorithm.of_library(),
            )
            .unwrap_or(false)
    }

    /// The Ed25519 key with these bytes.
    pub(super) fn ed25519(kid: Option<String>, public: &[u8; 32]) -> Self {
        let fingerprint = fingerprint(kid.as_deref(), Algorithm::EdDsa, &[public]);
        Self { kid, algorithm: Algorithm::EdDsa, fingerprint, key: DecodingKey::from_ed_der(public) }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?}, {})", self.kid, self.algorithm)
    }
}

fn fingerprint(kid: Option<&str>, algorithm: Algorithm, parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    let name = algorithm.to_string();
    for part in [kid.unwrap_or_default().as_bytes(), &[u8::from(kid.is_some())], name.as_bytes()].iter().chain(parts) {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    first(hasher.finalize().as_bytes())
}

/// A key set, and what was left out of it.
pub(super) struct KeySet {
    pub(super) keys: Vec<Key>,
    /// Why keys were left out: of other kinds or for other uses, which is usual, or too weak, which is not.
    pub(super) left_out: Vec<&'static str>,
}

/// Reads a key set.
///
/// # Errors
/// What is wrong, in words that hold nothing of the input. A key that is not for us is no error, it is left out.
pub(super) fn read(bytes: &[u8]) -> Result<KeySet, &'static str> {
    if bytes.len() > limits::KEY_SET_BYTES_MAX {
        return Err("it is longer than 256 KiB");
    }
    let set = json::object(bytes, BOUNDS)?;
    let Some(Value::Array(list)) = set.get("keys") else { return Err("it has no list of `keys`") };
    if list.len() > limits::KEYS_MAX {
        return Err("it has more than 64 keys");
    }
    let mut read = KeySet { keys: Vec::new(), left_out: Vec::new() };
    for key in list {
        let Value::Object(key) = key else { return Err("one of its keys is not an object") };
        if key.get("kty").and_then(Value::as_str) != Some("oct")
            && ["d", "p", "q"].iter().any(|it| key.contains_key(*it))
        {
            return Err("it holds a private key, which must be replaced now: only public keys belong in a key set");
        }
        match read_key(key) {
            Ok(key) => read.keys.push(key),
            Err(why) => read.left_out.push(why),
        }
    }
    Ok(read)
}

fn read_key(key: &Map<String, Value>) -> Result<Key, &'static str> {
    let text = |name: &str| match key.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err("a member of it is not a text"),
    };
    if text("use")?.is_some_and(|purpose| purpose != "sig") {
        return Err("it is not for signatures");
    }
    match key.get("key_ops") {
        None => {}
        Some(Value::Array(purposes)) if purposes.iter().any(|purpose| purpose == "verify") => {}
        Some(_) => return Err("it is not for signatures"),
    }
    let kid = text("kid")?;
    if kid.is_some_and(|kid| kid.len() > limits::ID_BYTES_MAX) {
        return Err("its `kid` is too long");
    }
    let bytes = |name: &str| -> Result<Vec<u8>, &'static str> {
        let text = text(name)?.ok_or("a member of it is missing")?;
        BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| "a member of it is not base64url")
    };
    let (algorithm, parts, decoding) = match (text("kty")?, text("crv")?) {
        (Some("RSA"), _) => {
            let (n, e) = (bytes("n")?, bytes("e")?);
            check_rsa(&n, &e)?;
            let key = DecodingKey::from_rsa_raw_components(&n, &e);
            (Algorithm::Rs256, [n, e], key)
        }
        (Some("EC"), Some("P-256")) => {
            let (x, y) = (bytes("x")?, bytes("y")?);
            if x.len() != 32 || y.len() != 32 {
                return Err("its coordinates have not 32 bytes");
            }
            let key = DecodingKey::from_ec_der(&[&[4], &x[..], &y[..]].concat());
            (Algorithm::Es256, [x, y], key)
        }
        (Some("OKP"), Some("Ed25519")) => {
            let x = bytes("x")?;
            let key: [u8; 32] = x.as_slice().try_into().map_err(|_| "it has not 32 bytes")?;
            (Algorithm::EdDsa, [x, Vec::new()], DecodingKey::from_ed_der(&key))
        }
        (Some("oct"), _) => return Err("it is a shared secret"),
        _ => return Err("it is of a kind that is not known here"),
    };
    // RFC 9864 gives EdDSA with this curve a name of its own.
    let same = |said: &str| said == algorithm.to_string() || (algorithm == Algorithm::EdDsa && said == "Ed25519");
    if text("alg")?.is_some_and(|said| !same(said)) {
        return Err("it is for another algorithm");
    }
    let fingerprint = fingerprint(kid, algorithm, &[&parts[0], &parts[1]]);
    Ok(Key { kid: kid.map(str::to_owned), algorithm, fingerprint, key: decoding })
}

fn check_rsa(n: &[u8], e: &[u8]) -> Result<(), &'static str> {
    let Some(first) = n.first() else { return Err("its modulus is empty") };
    if *first == 0 {
        return Err("its modulus has leading zeros");
    }
    let bits = n.len() * 8 - first.leading_zeros() as usize;
    if bits < limits::RSA_BITS_MIN {
        return Err("it is an RSA key of less than 2048 bits");
    }
    if bits > limits::RSA_BITS_MAX {
        return Err("it is an RSA key of more than 8192 bits");
    }
    // 3 and up to 2^32, odd: larger ones only make work.
    let small = e.len() <= 4 && e.first().is_some_and(|first| *first != 0);
    let odd = e.last().is_some_and(|last| last % 2 == 1);
    if !small || !odd || e == [1] {
        return Err("its public exponent is unusual");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn left_out(key: Value) -> &'static str {
        let set = read(json!({ "keys": [key] }).to_string().as_bytes()).unwrap();
        set.left_out.first().copied().unwrap_or("none")
    }

    fn b64(bytes: &[u8]) -> String {
        BASE64URL_NOPAD.encode(bytes)
    }

    fn rsa(bits: usize) -> Value {
        let mut n = vec![0xff; bits / 8];
        n[0] = 0x80;
        json!({ "kty": "RSA", "n": b64(&n), "e": "AQAB", "kid": "r" })
    }

    #[test]
    fn keys_that_are_not_for_tokens_are_left_out() {
        let ed = || json!({ "kty": "OKP", "crv": "Ed25519", "x": b64(&[7; 32]) });
        let with = |mut key: Value, name: &str, value: Value| {
            key[name] = value;
            key
        };
        assert_eq!(left_out(ed()), "none");
        assert_eq!(left_out(with(ed(), "use", json!("sig"))), "none");
        assert_eq!(left_out(with(ed(), "alg", json!("EdDSA"))), "none");
        assert_eq!(left_out(rsa(2048)), "none");
        assert_eq!(left_out(with(ed(), "use", json!("enc"))), "it is not for signatures");
        assert_eq!(left_out(with(ed(), "key_ops", json!(["sign"]))), "it is not for signatures");
        assert_eq!(left_out(with(ed(), "key_ops", json!("verify"))), "it is not for signatures");
        assert_eq!(left_out(with(ed(), "alg", json!("RS256"))), "it is for another algorithm");
        assert_eq!(left_out(with(ed(), "x", json!(b64(&[7; 31])))), "it has not 32 bytes");
        assert_eq!(left_out(with(ed(), "crv", json!("X25519"))), "it is of a kind that is not known here");
        assert_eq!(left_out(with(ed(), "kid", json!("k".repeat(257)))), "its `kid` is too long");
        assert_eq!(left_out(json!({ "kty": "oct", "k": "AAAA" })), "it is a shared secret");
        assert_eq!(left_out(rsa(1024)), "it is an RSA key of less than 2048 bits");
        assert_eq!(left_out(rsa(2040)), "it is an RSA key of less than 2048 bits");
        assert_eq!(left_out(rsa(8200)), "it is an RSA key of more than 8192 bits");
        assert_eq!(left_out(with(rsa(2048), "e", json!("AQ"))), "its public exponent is unusual");
        assert_eq!(left_out(with(rsa(2048), "e", json!("AAEAAQ"))), "its public exponent is unusual");
        assert_eq!(left_out(with(rsa(2048), "alg", json!("RS512"))), "it is for another algorithm");
        let ec = json!({ "kty": "EC", "crv": "P-256", "x": b64(&[1; 32]), "y": b64(&[1; 33]) });
        assert_eq!(left_out(ec), "its coordinates have not 32 bytes");
    }

    #[test]
    fn what_is_no_key_set_is_refused_whole() {
        for text in ["", "null", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[1]}"#, "<html>", r#"{"keys":[],"keys":[]}"#]
        {
            assert!(read(text.as_bytes()).is_err(), "{text}");
        }
        let private = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": b64(&[7; 32]), "d": b64(&[7; 32]) }] });
        assert!(read(private.to_string().as_bytes()).err().unwrap().contains("private"));
        let many = json!({ "keys": vec![json!({}); 65] });
        assert!(read(many.to_string().as_bytes()).is_err());
        assert!(read(&vec![b' '; limits::KEY_SET_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn a_key_is_the_same_only_under_its_name() {
        let key = |kid: Option<&str>| Key::ed25519(kid.map(str::to_owned), &[1; 32]).fingerprint;
        assert_eq!(key(Some("a")), key(Some("a")));
        assert_ne!(key(Some("a")), key(Some("b")));
        assert_ne!(key(None), key(Some("")));
    }
}
