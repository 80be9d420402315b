//! Who somebody is: every way in which a token is no proof, made by hand; and what stays revoked, whatever happens.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::OnceLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
    RsaPublicKeyComponents,
};
use data_encoding::BASE64URL_NOPAD;
use proptest::prelude::*;
use serde_json::{Value, json};
use tidelog::auth::{
    Algorithm, AuthError, Authority, AuthorityOptions, Identity, Issuer, KeySource, Revocation, TokenError, TokenOrder,
};
use tidelog::node::keys;

use super::support::{cases, node};

const ISSUER: &str = "https://id.example";
const AUDIENCE: &str = "tide";
/// A moment, in seconds; and in milliseconds.
const NOW_S: u64 = 1_800_000_000;
const NOW: u64 = NOW_S * 1000;
const DAY: u64 = 24 * 3_600_000;

/// A key of an issuer.
enum Signer {
    Ed(Ed25519KeyPair),
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl Signer {
    fn ed(number: u8) -> Self {
        Self::Ed(Ed25519KeyPair::from_seed_unchecked(&[number; 32]).unwrap())
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Ed(_) => "EdDSA",
            Self::Ec(_) => "ES256",
            Self::Rsa(_) => "RS256",
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
            Self::Ec(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
        }
    }

    /// Its public half, named `kid`.
    fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Ed(key) => json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": b64(key.public_key().as_ref()) }),
            Self::Ec(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({ "kty": "EC", "crv": "P-256", "kid": kid, "x": b64(x), "y": b64(y) })
            }
            Self::Rsa(key) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(key.public_key());
                json!({ "kty": "RSA", "kid": kid, "n": b64(&public.n), "e": b64(&public.e) })
            }
        }
    }

    /// A token with these claims, whose header has the right algorithm and names `kid`.
    fn token(&self, kid: &str, claims: &Value) -> String {
        self.token_with(&json!({ "alg": self.algorithm(), "kid": kid, "typ": "JWT" }), claims)
    }

    fn token_with(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", b64(header.to_string().as_bytes()), b64(claims.to_string().as_bytes()));
        format!("{signed}.{}", b64(&self.sign(signed.as_bytes())))
    }
}

fn b64(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}

/// One key of each kind. Making the RSA key takes a while, so it is made once.
fn signers() -> &'static [Signer; 3] {
    static SIGNERS: OnceLock<[Signer; 3]> = OnceLock::new();
    SIGNERS.get_or_init(|| {
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        [Signer::ed(1), Signer::Ec(ec), Signer::Rsa(rsa)]
    })
}

fn key_set(keys: &[Value]) -> Vec<u8> {
    json!({ "keys": keys }).to_string().into_bytes()
}

fn issuer(name: &str) -> Issuer {
    Issuer {
        issuer: name.to_owned(),
        audience: AUDIENCE.to_owned(),
        keys: KeySource::Url("https://id.example/keys".into()),
        algorithms: Algorithm::ALL.to_vec(),
        leeway_s: 60,
    }
}

fn open(folder: &Path, issuers: Vec<Issuer>) -> Authority {
    try_open(folder, issuers).unwrap()
}

fn try_open(folder: &Path, issuers: Vec<Issuer>) -> Result<Authority, AuthError> {
    Authority::open(AuthorityOptions { directory: folder.to_owned(), node: node(7), issuers })
}

/// An authority that knows [`ISSUER`] with the three keys as `ed`, `ec` and `rsa`.
fn with_issuer(folder: &Path) -> Authority {
    let authority = open(folder, vec![issuer(ISSUER)]);
    assert!(authority.refresh_due(NOW).is_some());
    let [ed, ec, rsa] = signers();
    authority.take_keys(ISSUER, &key_set(&[ed.jwk("ed"), ec.jwk("ec"), rsa.jwk("rsa")]), NOW).unwrap();
    authority
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": NOW_S, "nbf": NOW_S, "exp": NOW_S + 3600,
        "role": "editor", "jti": "j1", "team": { "name": "red" },
    })
}

/// Those claims with one of them another; none for null.
fn claiming(name: &str, value: Value) -> Value {
    let mut claims = claims();
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims
}

/// Why a token is refused, or `ok`.
fn reason(authority: &Authority, token: &str, now_ms: u64) -> &'static str {
    match authority.verify(token, now_ms) {
        Ok(_) => "ok",
        Err(error) => {
            let text = format!("{error} {error:?} {}", error.told());
            let secret = token.rsplit('.').next().unwrap_or_default();
            assert!(secret.len() < 8 || !text.contains(secret), "an error shows a token: {text}");
            assert!(matches!(error.told(), "the token is not accepted" | "the token has expired"));
            assert_eq!(error.told() == "the token has expired", error.reason() == "expired");
            error.reason()
        }
    }
}

fn ada() -> TokenOrder {
    TokenOrder { role: Some("editor".into()), ..TokenOrder::new("ada") }
}

fn issued(authority: &Authority, now_ms: u64) -> (String, String) {
    let (token, issued) = authority.issue(ada(), now_ms).unwrap();
    (token, issued.id)
}

#[test]
fn a_token_of_this_node_says_who_somebody_is() {
    fn shared<T: Send + Sync>(_: &T) {}
    let folder = tempfile::tempdir().unwrap();
    let authority = open(folder.path(), Vec::new());
    shared(&authority);
    let mut order = TokenOrder { ttl_ms: 1_500, ..ada() };
    order.claims.insert("rooms".into(), json!(["lobby"]));
    let (token, listed) = authority.issue(order, NOW + 1).unwrap();
    let identity = authority.verify(&token, NOW + 1).unwrap();
    assert_eq!((identity.uid(), identity.principal().as_str(), identity.role()), ("ada", "ada", Some("editor")));
    assert_eq!((identity.issuer(), identity.token_id()), (None, Some(listed.id.as_str())));
    assert_eq!(identity.expires_ms(), Some(NOW + 2_000), "at least as long as it was ordered");
    assert_eq!(identity.claims()["rooms"], json!(["lobby"]));
    assert_eq!(identity.claims()["iss"], json!(format!("tidelog:{}", node(7))));
    assert_eq!(identity.claims()["aud"], "tidelog");
    assert_eq!(authority.issued(), [listed]);
    assert!(!authority.is_revoked(&identity));
    let shown = format!("{identity:?} {authority:?}");
    assert!(!shown.contains(&token) && !shown.contains("lobby"), "{shown}");
    assert_eq!(reason(&authority, &token, NOW + 1_999), "ok");
    assert_eq!(reason(&authority, &token, NOW + 2_000), "expired");
    // No file holds it.
    for file in ["token.key", "tokens.json"] {
        let text = std::fs::read_to_string(folder.path().join(file)).unwrap();
        assert!(token.split('.').all(|part| !text.contains(part)));
    }
}

#[test]
fn what_may_not_be_in_a_token_is_not_issued() {
    let folder = tempfile::tempdir().unwrap();
    let authority = open(folder.path(), Vec::new());
    let claim = |name: &str, value: Value| {
        let mut order = ada();
        order.claims.insert(name.into(), value);
        order
    };
    let mut deep = json!(1);
    for _ in 0..8 {
        deep = json!([deep]);
    }
    let mut wrong =
        vec![claim("deep", deep), claim("many", json!(vec![1; 600])), claim("long", json!("x".repeat(8192)))];
    wrong.extend(["iss", "aud", "sub", "iat", "exp", "nbf", "jti", "role"].map(|name| claim(name, json!("x"))));
    wrong.extend(["", "a#b", "a\nb", "a\u{7f}", &"u".repeat(201)].map(|uid| TokenOrder { uid: uid.into(), ..ada() }));
    wrong.extend(["", "a\tb"].map(|role| TokenOrder { role: Some(role.into()), ..ada() }));
    wrong.extend([0, 999, 400 * DAY + 1].map(|ttl_ms| TokenOrder { ttl_ms, ..ada() }));
    for order in wrong {
        let mut shown = format!("{order:?}");
        shown.truncate(200);
        let error = authority.issue(order, NOW).err().unwrap_or_else(|| panic!("{shown}"));
        assert_eq!(error.code(), "E0215", "{shown}");
    }
    assert_eq!(authority.issued(), []);
    for ttl_ms in [1_000, 400 * DAY] {
        let uid = "ü".repeat(100);
        let (token, _) = authority.issue(TokenOrder { uid, ttl_ms, ..ada() }, NOW).unwrap();
        assert_eq!(reason(&authority, &token, NOW), "ok");
    }
}

#[test]
fn a_foreign_token_says_who_somebody_is_in_each_algorithm() {
    let folder = tempfile::tempdir().unwrap();
    let authority = with_issuer(folder.path());
    for (signer, kid) in signers().iter().zip(["ed", "ec", "rsa"]) {
        let identity = authority.verify(&signer.token(kid, &claims()), NOW).unwrap();
        assert_eq!((identity.uid(), identity.role(), identity.token_id()), ("ada", Some("editor"), Some("j1")));
        assert_eq!(identity.principal(), "https://id.example#ada");
        assert_eq!(identity.issuer(), Some(ISSUER));
        assert_eq!(identity.expires_ms(), Some((NOW_S + 3600 + 60) * 1000));
        // Without the key's name.
        let token = signer.token_with(&json!({ "alg": signer.algorithm() }), &claims());
        assert_eq!(reason(&authority, &token, NOW), "ok");
        for algorithm in Algorithm::ALL {
            let mut narrow = issuer(ISSUER);
            narrow.algorithms = vec![algorithm];
            let other = tempfile::tempdir().unwrap();
            let narrow = open(other.path(), vec![narrow]);
            narrow.take_keys(ISSUER, &key_set(&[signer.jwk(kid)]), NOW).unwrap();
            let expected = if algorithm.to_string() == signer.algorithm() { "ok" } else { "algorithm" };
            assert_eq!(reason(&narrow, &signer.token(kid, &claims()), NOW), expected);
        }
    }
}

#[test]
fn each_refusal_has_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let authority = with_issuer(folder.path());
    let signer = &signers()[0];
    let with = |name: &str, value: Value| reason(&authority, &signer.token("ed", &claiming(name, value)), NOW);
    for (name, value, expected) in [
        ("iss", Value::Null, "claim"),
        ("iss", json!([ISSUER]), "claim"),
        ("iss", json!("https://id.example/"), "issuer"),
        ("iss", json!("https://ID.example"), "issuer"),
        ("aud", Value::Null, "audience"),
        ("aud", json!("tidelog"), "audience"),
        ("aud", json!(""), "audience"),
        ("aud", json!([]), "audience"),
        ("aud", json!(["x", ["tide"]]), "audience"),
        ("aud", json!({ "tide": 1 }), "audience"),
        ("aud", json!(["x", "tide"]), "ok"),
        ("exp", Value::Null, "claim"),
        ("exp", json!("1900000000"), "claim"),
        ("exp", json!(-1), "claim"),
        ("exp", json!(1e300), "claim"),
        ("exp", json!(u64::MAX), "claim"),
        ("exp", json!(NOW_S + 5), "ok"),
        ("exp", json!(NOW_S as f64 + 5.5), "ok"),
        ("exp", json!(NOW_S - 59), "ok"),
        ("exp", json!(NOW_S - 60), "expired"),
        ("exp", json!(0), "expired"),
        ("nbf", json!(NOW_S + 60), "ok"),
        ("nbf", json!(NOW_S + 61), "not_yet"),
        ("nbf", json!("soon"), "claim"),
        ("nbf", Value::Null, "ok"),
        ("iat", json!(NOW_S + 60), "ok"),
        ("iat", json!(NOW_S + 61), "not_yet"),
        ("iat", json!(true), "claim"),
        ("iat", Value::Null, "ok"),
        ("sub", Value::Null, "claim"),
        ("sub", json!(""), "claim"),
        ("sub", json!(7), "claim"),
        ("sub", json!("a\u{0}b"), "claim"),
        ("sub", json!("u".repeat(201)), "claim"),
        ("sub", json!("u".repeat(200)), "ok"),
        ("sub", json!("a#b"), "ok"),
        ("role", json!(["editor"]), "ok"),
        ("role", json!("r".repeat(201)), "claim"),
        ("role", json!(""), "claim"),
        ("jti", json!("x\ny"), "claim"),
        ("x", json!([[[[[[[[1]]]]]]]]), "malformed"),
        ("x", json!(vec![0; 600]), "malformed"),
        ("x", json!("x".repeat(8192)), "too_long"),
    ] {
        assert_eq!(with(name, value.clone()), expected, "{name}: {value:.80}");
    }
    for (header, expected) in [
        (json!({ "alg": "EdDSA", "kid": "ed" }), "ok"),
        (json!({ "alg": "EdDSA", "kid": "ed", "typ": "at+jwt" }), "ok"),
        (json!({ "alg": "EdDSA", "kid": "ed", "crit": ["exp"] }), "critical"),
        (json!({ "alg": "EdDSA", "kid": "ed", "b64": false }), "malformed"),
        (json!({ "alg": "EdDSA", "kid": "ed", "zip": "DEF" }), "malformed"),
        (json!({ "alg": "EdDSA", "kid": "ed", "typ": "logout+jwt" }), "malformed"),
        (json!({ "alg": "EdDSA", "kid": ["ed"] }), "malformed"),
        (json!({ "alg": "EdDSA", "kid": "k".repeat(257) }), "malformed"),
        (json!({ "alg": "EdDSA", "kid": "x", "y": vec![0; 64] }), "malformed"),
        (json!({ "kid": "ed" }), "algorithm"),
        (json!({ "alg": "ES512", "kid": "ed" }), "algorithm"),
        // What a token says proves it is not looked at.
        (json!({ "alg": "EdDSA", "kid": "ed", "jku": "https://evil.example", "x5c": ["AAAA"] }), "ok"),
    ] {
        assert_eq!(reason(&authority, &signer.token_with(&header, &claims()), NOW), expected, "{header:.80}");
    }
    let twice = format!(r#"{{"iss":"{ISSUER}","aud":"tide","sub":"ada","sub":"root","exp":{}}}"#, NOW_S + 9);
    let signed = format!("{}.{}", b64(br#"{"alg":"EdDSA","kid":"ed"}"#), b64(twice.as_bytes()));
    let token = format!("{signed}.{}", b64(&signer.sign(signed.as_bytes())));
    assert_eq!(reason(&authority, &token, NOW), "malformed", "two subjects");
    let codes: BTreeSet<_> = [
        TokenError::Issuer,
        TokenError::Expired { issuer: String::new() },
        TokenError::Revoked { issuer: String::new(), what: "" },
    ]
    .iter()
    .map(TokenError::code)
    .collect();
    assert_eq!(codes.into_iter().collect::<Vec<_>>(), ["E0202", "E0204", "E0205"]);
}

#[test]
fn neither_algorithms_nor_keys_nor_issuers_can_be_taken_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let authority = with_issuer(folder.path());
    let [ed, ec, rsa] = signers();
    // No signature at all.
    for alg in ["none", "None", "NONE", ""] {
        let signed = format!("{}.{}", b64(json!({ "alg": alg, "kid": "ed" }).to_string().as_bytes()), b64(b"{}"));
        assert_eq!(reason(&authority, &format!("{signed}."), NOW), "algorithm");
        assert_eq!(reason(&authority, &format!("{signed}.AAAA"), NOW), "algorithm");
    }
    let good = ed.token("ed", &claims());
    let (unsigned, _) = good.rsplit_once('.').unwrap();
    assert_eq!(reason(&authority, &format!("{unsigned}."), NOW), "algorithm");
    // The public key as a shared secret: what is public would prove anything.
    let secret = rsa.jwk("rsa").to_string();
    for alg in ["HS256", "HS384", "HS512"] {
        let header =
            jsonwebtoken::Header { kid: Some("rsa".into()), ..jsonwebtoken::Header::new(alg.parse().unwrap()) };
        let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
        let token = jsonwebtoken::encode(&header, &claims(), &key).unwrap();
        assert_eq!(reason(&authority, &token, NOW), "algorithm");
    }
    // A key under the name, or in the algorithm, of another.
    for (signer, kid, alg, expected) in [
        (ed, "rsa", "EdDSA", "algorithm"),
        (rsa, "ed", "RS256", "algorithm"),
        (ed, "ec", "ES256", "signature"),
        (ec, "rsa", "RS256", "signature"),
        (rsa, "rsa", "PS256", "algorithm"),
        (ed, "ED", "EdDSA", "keys_unknown"),
        (ed, "", "EdDSA", "keys_unknown"),
        (ed, "../token.key", "EdDSA", "keys_unknown"),
        (&Signer::ed(2), "ed", "EdDSA", "signature"),
    ] {
        let token = signer.token_with(&json!({ "alg": alg, "kid": kid }), &claims());
        assert_eq!(reason(&authority, &token, NOW), expected, "{kid} {alg}");
    }
    // A key that the token brings itself.
    let own = Signer::ed(9);
    let token = own.token_with(&json!({ "alg": "EdDSA", "jwk": own.jwk("ed") }), &claims());
    assert_eq!(reason(&authority, &token, NOW), "signature");
    // A foreign key for this node, and this node's key for a foreign issuer.
    let here = json!(format!("tidelog:{}", node(7)));
    let mut forged = claiming("iss", here);
    forged["aud"] = json!("tidelog");
    assert_eq!(reason(&authority, &ed.token("ed", &forged), NOW), "key");
    assert_eq!(reason(&authority, &ed.token_with(&json!({ "alg": "EdDSA" }), &forged), NOW), "signature");
    assert_eq!(reason(&authority, &rsa.token("rsa", &forged), NOW), "algorithm");
    let (token, _) = issued(&authority, NOW);
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    parts[1] = b64(claims().to_string().as_bytes());
    assert_eq!(reason(&authority, &parts.join("."), NOW), "keys_unknown");
    // A token of another node, though its key is the same (a copy of a data directory).
    let options = AuthorityOptions { directory: folder.path().to_owned(), node: node(8), issuers: Vec::new() };
    let copy = Authority::open(options).unwrap();
    assert_eq!(reason(&copy, &token, NOW), "issuer");
    assert_eq!(reason(&authority, &token, NOW), "ok");
}

#[test]
fn at_most_four_keys_are_tried_on_a_token_that_names_none() {
    let folder = tempfile::tempdir().unwrap();
    let authority = open(folder.path(), vec![issuer(ISSUER)]);
    let keys: Vec<Value> = (1..=6).map(|number| Signer::ed(number).jwk(&number.to_string())).collect();
    authority.take_keys(ISSUER, &key_set(&keys), NOW).unwrap();
    for number in 1..=6 {
        let token = Signer::ed(number).token_with(&json!({ "alg": "EdDSA" }), &claims());
        assert_eq!(reason(&authority, &token, NOW), if number <= 4 { "ok" } else { "signature" }, "{number}");
        assert_eq!(reason(&authority, &Signer::ed(number).token(&number.to_string(), &claims()), NOW), "ok");
    }
}

#[test]
fn nothing_but_the_token_itself_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let authority = with_issuer(folder.path());
    let (own, _) = issued(&authority, NOW);
    let ec = &signers()[1];
    for good in [own, signers()[0].token("ed", &claims()), ec.token("ec", &claims())] {
        assert_eq!(reason(&authority, &good, NOW), "ok");
        for end in 0..good.len() {
            assert_ne!(reason(&authority, &good[..end], NOW), "ok", "cut at {end}");
            assert_ne!(reason(&authority, &good[end + 1..], NOW), "ok", "begun at {end}");
        }
        for at in 0..good.len() {
            for bit in 0..7 {
                let mut bytes = good.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let flipped = String::from_utf8(bytes).unwrap();
                assert_ne!(reason(&authority, &flipped, NOW), "ok", "bit {bit} of {at}");
            }
        }
        for more in ["=", ".", " ", "\n", "A", ".AAAA"] {
            assert_ne!(reason(&authority, &format!("{good}{more}"), NOW), "ok");
            assert_ne!(reason(&authority, &format!("{more}{good}"), NOW), "ok");
        }
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn no_text_is_a_token_by_chance(
        texts in prop::collection::vec(any::<String>(), 0..4),
        json in prop::collection::vec("[\\[\\]{}\",:a-z0-9.eE-]{0,64}", 3),
    ) {
        static AUTHORITY: OnceLock<(tempfile::TempDir, Authority)> = OnceLock::new();
        let (_, authority) = AUTHORITY.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let authority = with_issuer(folder.path());
            (folder, authority)
        });
        prop_assert!(authority.verify(&texts.join("."), NOW).is_err());
        let parts: Vec<String> = json.iter().map(|part| b64(part.as_bytes())).collect();
        prop_assert!(authority.verify(&parts.join("."), NOW).is_err());
        prop_assert!(authority.take_keys(ISSUER, json[0].as_bytes(), NOW).is_err());
    }
}

#[test]
fn a_clock_that_goes_back_revives_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let authority = with_issuer(folder.path());
    let (own, _) = issued(&authority, NOW);
    let foreign = signers()[0].token("ed", &claims());
    assert_eq!(reason(&authority, &foreign, NOW), "ok");
    // An hour ahead and back: what expired meanwhile stays so, what did not is accepted.
    let later = NOW + 2 * 3_600_000;
    assert_eq!(reason(&authority, &foreign, later), "expired");
    for now in [NOW, later - 1, 0, 1, later] {
        assert_eq!(reason(&authority, &foreign, now), "expired", "{now}");
        assert_eq!(reason(&authority, &own, now), "ok");
    }
    // The wall clock is behind: keys are fetched all the same, and tokens issued now are of use now.
    assert!(authority.refresh_due(NOW - 1).is_some());
    let (fresh, listed) = authority.issue(TokenOrder { ttl_ms: 60_000, ..ada() }, NOW).unwrap();
    assert_eq!(reason(&authority, &fresh, NOW), "ok");
    assert!(listed.issued_ms >= later);
    assert_eq!(reason(&authority, &own, u64::MAX), "expired");
    assert_eq!(reason(&authority, &own, NOW), "expired");
}

#[test]
fn what_was_revoked_stays_revoked_and_nothing_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let authority = with_issuer(folder.path());
    let mut changes = authority.changes();
    let (first, first_id) = issued(&authority, NOW);
    let (second, _) = issued(&authority, NOW + 1);
    let (bob, _) = authority.issue(TokenOrder { role: Some("viewer".into()), ..TokenOrder::new("bob") }, NOW).unwrap();
    let foreign = signers()[0].token("ed", &claiming("role", json!("guest")));
    let live: Vec<Identity> =
        [&first, &second, &bob, &foreign].map(|token| authority.verify(token, NOW + 1).unwrap()).into();
    assert!(!changes.has_changed().unwrap());
    let stands = |authority: &Authority| {
        let seen: Vec<bool> = [&first, &second, &bob, &foreign]
            .iter()
            .map(|token| match authority.verify(token, NOW + 900) {
                Ok(_) => true,
                Err(error) => {
                    assert_eq!((error.reason(), error.code()), ("revoked", "E0205"));
                    false
                }
            })
            .collect();
        seen
    };
    let mut revoke = |what: Revocation, reached: usize, left: [bool; 4]| {
        assert_eq!(authority.revoke(what.clone(), NOW + 500).unwrap(), reached, "{what:?}");
        assert!(changes.has_changed().unwrap(), "live connections hear of it");
        changes.mark_unchanged();
        assert_eq!(stands(&authority), left, "{what:?}");
        let still: Vec<bool> = live.iter().map(|identity| !authority.is_revoked(identity)).collect();
        assert_eq!(still, left, "{what:?}, on connections that are open");
        let again = open(folder.path(), vec![issuer(ISSUER)]);
        again.take_keys(ISSUER, &key_set(&[signers()[0].jwk("ed")]), NOW).unwrap();
        assert_eq!(stands(&again), left, "{what:?}, after a restart");
    };
    revoke(Revocation::Token(first_id.clone()), 1, [false, true, true, true]);
    revoke(Revocation::Token(first_id), 0, [false, true, true, true]);
    // A name of this node is not that of a foreign issuer's user.
    revoke(Revocation::User("ada".into()), 1, [false, false, true, true]);
    revoke(Revocation::Role("viewer".into()), 1, [false, false, false, true]);
    revoke(Revocation::User(format!("{ISSUER}#ada")), 0, [false, false, false, false]);

    assert!(matches!(authority.revoke(Revocation::Token("0".repeat(32)), NOW), Err(AuthError::NoSuchToken)));
    assert_eq!(authority.revoke(Revocation::User(String::new()), NOW).unwrap_err().code(), "E0215");
    assert!(authority.issued().iter().all(|token| token.revoked_ms.is_some()));
    // Within the same second even, a new token is of use.
    let (new, _) = issued(&authority, NOW + 501);
    assert_eq!(reason(&authority, &new, NOW + 502), "ok");
    assert_eq!(authority.issued().last().unwrap().revoked_ms, None);
    let late = |iat: u64| signers()[0].token("ed", &claiming("iat", json!(iat)));
    assert_eq!(reason(&authority, &late(NOW_S + 60), NOW + 900), "revoked", "its clock may be a minute ahead");
    assert_eq!(reason(&authority, &late(NOW_S + 61), NOW + 2_000), "ok");
    assert_eq!(reason(&authority, &signers()[0].token("ed", &claiming("iat", Value::Null)), NOW + 2_000), "revoked");
}

#[test]
fn without_its_list_a_key_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let (key, list) = (folder.path().join("token.key"), folder.path().join("tokens.json"));
    let authority = open(folder.path(), Vec::new());
    let (token, id) = issued(&authority, NOW);
    authority.revoke(Revocation::Token(id), NOW).unwrap();
    authority.revoke(Revocation::User("eve".into()), NOW).unwrap();
    let good = std::fs::read(&list).unwrap();

    std::fs::remove_file(&list).unwrap();
    let refused = |why: &str| {
        let error = try_open(folder.path(), Vec::new()).unwrap_err();
        assert_eq!(error.code(), "E0212", "{error}");
        assert!(error.to_string().contains(why) && error.remedy().contains("token.key"), "{error}");
    };
    refused("missing");
    assert!(authority.issue(ada(), NOW).is_err(), "nor is one issued by a node that runs");
    assert!(!list.exists());
    std::fs::write(&list, &good[..good.len() / 2]).unwrap();
    refused("");
    // A revocation counts in this process even when the disk does not take it.
    let (other, _) = {
        std::fs::write(&list, &good).unwrap();
        issued(&authority, NOW)
    };
    std::fs::remove_file(&list).unwrap();
    assert!(authority.revoke(Revocation::User("ada".into()), NOW).is_err());
    assert_eq!(reason(&authority, &other, NOW), "revoked");

    // An empty list of another key is none either.
    let elsewhere = tempfile::tempdir().unwrap();
    drop(open(elsewhere.path(), Vec::new()));
    std::fs::copy(elsewhere.path().join("tokens.json"), &list).unwrap();
    refused("another token.key");
    // Without the key, all its tokens are void; users who were revoked stay so.
    std::fs::write(&list, &good).unwrap();
    std::fs::remove_file(&key).unwrap();
    let anew = open(folder.path(), Vec::new());
    assert_eq!(reason(&anew, &token, NOW), "key");
    assert_eq!(anew.issued(), []);
    let (_, listed) = anew.issue(TokenOrder::new("eve"), NOW).unwrap();
    assert!(listed.issued_ms > NOW, "after what was revoked");
}

#[test]
fn many_who_issue_and_revoke_at_once_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let all: Vec<(String, String)> = std::thread::scope(|scope| {
        // Each its own view of the directory, as two processes have.
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let folder = folder.path();
                scope.spawn(move || {
                    let authority = open(folder, Vec::new());
                    let mine: Vec<_> = (0..25).map(|_| issued(&authority, NOW)).collect();
                    for (_, id) in mine.iter().step_by(5) {
                        authority.revoke(Revocation::Token(id.clone()), NOW).unwrap();
                    }
                    authority.revoke(Revocation::User(format!("user {thread}")), NOW).unwrap();
                    mine
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let authority = open(folder.path(), Vec::new());
    let listed: BTreeSet<String> = authority.issued().into_iter().map(|token| token.id).collect();
    assert_eq!(listed, all.iter().map(|(_, id)| id.clone()).collect());
    let revoked = all.iter().filter(|(token, _)| reason(&authority, token, NOW) == "revoked").count();
    assert_eq!((listed.len(), revoked), (100, 20));
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    for thread in 0..4 {
        let (_, listed) = authority.issue(TokenOrder::new(format!("user {thread}")), NOW).unwrap();
        assert!(listed.issued_ms > NOW, "revoked before");
    }
}

#[test]
fn people_of_different_issuers_are_different_people() {
    let folder = tempfile::tempdir().unwrap();
    let issuers = ["https://a", "https://b"];
    let authority = open(folder.path(), issuers.map(issuer).into());
    let mut seen = BTreeSet::new();
    let uids = ["ada", "#ada", "https://a#ada", &"u".repeat(200)];
    for name in issuers {
        authority.take_keys(name, &key_set(&[Signer::ed(1).jwk("k")]), NOW).unwrap();
        for uid in uids {
            let mut claims = claiming("sub", json!(uid));
            claims["iss"] = json!(name);
            let identity = authority.verify(&Signer::ed(1).token("k", &claims), NOW).unwrap();
            assert_eq!(identity.uid(), uid);
            assert!(identity.principal().len() <= 256);
            assert!(seen.insert(identity.principal()));
        }
    }
    for uid in ["ada", &"u".repeat(200)] {
        let (token, _) = authority.issue(TokenOrder::new(uid), NOW).unwrap();
        assert!(seen.insert(authority.verify(&token, NOW).unwrap().principal()));
    }
}

#[test]
fn a_key_that_is_withdrawn_ends_what_it_vouched_for() {
    let folder = tempfile::tempdir().unwrap();
    let authority = open(folder.path(), vec![issuer(ISSUER)]);
    let mut changes = authority.changes();
    let mut refreshes = authority.refreshes();
    let (old, new) = (Signer::ed(1), Signer::ed(2));
    let token = old.token("old", &claims());
    assert_eq!(reason(&authority, &token, NOW), "keys_unknown");
    assert!(refreshes.has_changed().unwrap(), "whoever fetches hears of it at once");
    refreshes.mark_unchanged();
    assert_eq!(authority.refresh_due(NOW).unwrap().issuer, ISSUER);
    assert_eq!(authority.refresh_due(NOW), None);
    authority.take_keys(ISSUER, &key_set(&[old.jwk("old")]), NOW).unwrap();
    let identity = authority.verify(&token, NOW).unwrap();
    assert!(!changes.has_changed().unwrap());

    authority.take_keys(ISSUER, &key_set(&[old.jwk("old"), new.jwk("new")]), NOW).unwrap();
    assert!(!changes.has_changed().unwrap() && !authority.is_revoked(&identity));
    assert!(authority.take_keys(ISSUER, b"{}", NOW).is_err());
    assert!(!authority.is_revoked(&identity), "nonsense withdraws nothing");
    authority.take_keys(ISSUER, &key_set(&[new.jwk("new")]), NOW).unwrap();
    assert!(changes.has_changed().unwrap() && authority.is_revoked(&identity));
    assert_eq!(reason(&authority, &token, NOW), "keys_unknown");
    assert_eq!(reason(&authority, &new.token("new", &claims()), NOW), "ok");
    // Another key under the same name is another key.
    changes.mark_unchanged();
    let identity = authority.verify(&new.token("new", &claims()), NOW).unwrap();
    authority.take_keys(ISSUER, &key_set(&[old.jwk("new")]), NOW).unwrap();
    assert!(changes.has_changed().unwrap() && authority.is_revoked(&identity));
    assert_eq!(reason(&authority, &new.token("new", &claims()), NOW), "signature");

    let late = new.token("new", &claiming("exp", json!(NOW_S + 200_000)));
    assert_eq!(reason(&authority, &late, NOW + DAY + 1), "key_set_expired");
}

#[test]
fn keys_in_a_file_are_those_that_are_there_now() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let config = folder.path().join("issuers.json");
    let text = json!([{ "issuer": ISSUER, "audience": AUDIENCE, "keys": "keys.json", "algorithms": ["EdDSA"] }]);
    std::fs::write(&config, text.to_string()).unwrap();
    let authority = open(folder.path(), Issuer::read_file(&config).unwrap());
    let (old, new) = (Signer::ed(1), Signer::ed(2));
    let mut now = NOW;
    let mut look = |content: Option<&[u8]>| {
        match content {
            Some(content) => std::fs::write(&file, content).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        now += 10_000;
        let request = authority.refresh_due(now).unwrap();
        assert_eq!(authority.refresh_due(now + 9_999), None, "once in ten seconds");
        let taken = match keys::fetch(&request.source) {
            Ok(bytes) => authority.take_keys(&request.issuer, &bytes, now).map_err(|error| error.to_string()),
            Err(why) => {
                authority.keys_failed(&request.issuer);
                Err(why)
            }
        };
        let reasons = [&old, &new].map(|key| {
            let kid = if std::ptr::eq(key, &old) { "old" } else { "new" };
            reason(&authority, &key.token(kid, &claims()), now)
        });
        (taken.is_ok(), reasons)
    };
    assert_eq!(look(Some(&key_set(&[old.jwk("old")]))), (true, ["ok", "keys_unknown"]));
    assert_eq!(look(Some(&key_set(&[old.jwk("old"), new.jwk("new")]))), (true, ["ok", "ok"]));
    assert_eq!(look(Some(b"{\"keys\": [")), (false, ["ok", "ok"]), "half written");
    assert_eq!(look(Some(&vec![b' '; 1 << 20])), (false, ["ok", "ok"]));
    assert_eq!(look(None), (false, ["ok", "ok"]));
    assert_eq!(look(Some(&key_set(&[new.jwk("new")]))), (true, ["keys_unknown", "ok"]));
    assert_eq!(look(Some(b"{\"keys\":[]}")), (true, ["keys_unknown", "keys_unknown"]));
}

#[test]
fn a_file_of_issuers_that_is_not_understood_says_where_and_what() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("issuers.json");
    std::fs::write(&config, r#"[{"issuer": "https://a", "audiance": "x"}]"#).unwrap();
    let error = Issuer::read_file(&config).unwrap_err();
    assert_eq!(error.code(), "E0213");
    let text = error.to_string();
    assert!(
        text.contains("issuers.json") && text.contains("issuer 1") && text.contains("did you mean audience?"),
        "{text}"
    );
    assert_eq!(Issuer::read_file(&folder.path().join("absent")).unwrap_err().code(), "E0111");
    let mut weak = issuer(ISSUER);
    weak.leeway_s = 301;
    assert_eq!(try_open(folder.path(), vec![weak]).unwrap_err().code(), "E0215");
    assert_eq!(try_open(folder.path(), vec![issuer(ISSUER), issuer(ISSUER)]).unwrap_err().code(), "E0215");
}

/// A server on this machine that does `answer` with each connection once it has read the request's head.
fn server(answer: fn(&mut TcpStream) -> std::io::Result<()>) -> KeySource {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                head.push(byte[0]);
            }
            // A client that has enough closes.
            let _ = answer(&mut stream);
        }
    });
    KeySource::Url(format!("http://{address}/keys"))
}

fn set_over_http(stream: &mut TcpStream) -> std::io::Result<()> {
    let body = key_set(&[Signer::ed(1).jwk("k")]);
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len())?;
    stream.write_all(&body)
}

#[test]
fn a_server_of_keys_can_fail_and_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let authority = open(folder.path(), vec![issuer(ISSUER)]);
    let good = keys::fetch(&server(set_over_http)).unwrap();
    authority.take_keys(ISSUER, &good, NOW).unwrap();
    let token = Signer::ed(1).token("k", &claims());
    assert_eq!(reason(&authority, &token, NOW), "ok");

    let answers: [(&str, fn(&mut TcpStream) -> std::io::Result<()>); 9] = [
        ("500", |stream| stream.write_all(b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\n{}")),
        ("404", |stream| stream.write_all(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n")),
        ("leads to", |stream| stream.write_all(b"HTTP/1.1 302 Go\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n")),
        ("cannot fetch", |stream| stream.write_all(b"\x16\x03\x01 what is this?\r\n\r\n")),
        ("cannot fetch", |_| Ok(())),
        ("cannot fetch", |stream| stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"keys\"")),
        ("cannot fetch", |stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
            loop {
                stream.write_all(b"x-more: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n")?;
            }
        }),
        // Neither says a word more; the first before its head, the second within its body.
        ("cannot fetch", |stream| stream.read(&mut [0]).map(|_| ())),
        ("cannot fetch", |stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")?;
            stream.read(&mut [0]).map(|_| ())
        }),
    ];
    std::thread::scope(|scope| {
        for (expected, answer) in answers {
            scope.spawn(move || {
                let why = keys::fetch(&server(answer)).unwrap_err();
                assert!(why.contains(expected), "{expected}: {why}");
            });
        }
    });
    // A gigabyte is not read: as soon as it is too much for a key set, it is none.
    let endless = server(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n")?;
        (0..1 << 14).try_for_each(|_| stream.write_all(&[b' '; 1 << 16]))
    });
    let bytes = keys::fetch(&endless).unwrap();
    assert_eq!(bytes.len(), (256 << 10) + 1);
    assert!(authority.take_keys(ISSUER, &bytes, NOW).is_err());
    let garbage = keys::fetch(&server(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n<html>no</html>")
    }));
    assert!(authority.take_keys(ISSUER, &garbage.unwrap(), NOW).is_err());
    let nobody = KeySource::Url("http://127.0.0.1:1/keys".into());
    assert!(keys::fetch(&nobody).is_err());
    assert_eq!(reason(&authority, &token, NOW), "ok", "the keys from before are used");
}

#[test]
fn a_server_whose_certificate_nobody_vouches_for_is_not_believed() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let connection = rustls::ServerConnection::new(std::sync::Arc::new(config)).unwrap();
        rustls::StreamOwned::new(connection, stream).read(&mut [0; 1024])
    });
    let why = keys::fetch(&KeySource::Url(format!("https://localhost:{port}/keys"))).unwrap_err();
    assert!(why.contains("UnknownIssuer"), "{why}");
    assert!(server.join().unwrap().is_err(), "it was asked for nothing");
}

#[tokio::test]
async fn keys_are_fetched_as_they_are_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let mut from_url = issuer(ISSUER);
    from_url.keys = server(set_over_http);
    let authority = std::sync::Arc::new(open(folder.path(), vec![from_url]));
    let fetching = tokio::spawn(keys::keep_fetching(authority.clone()));
    // The fetching goes by the clock on the wall, whatever that says.
    let token = Signer::ed(1).token("k", &claiming("exp", json!(NOW_S * 2)));
    // It is wanted by whoever comes first; nobody is held up by it.
    while let Err(error) = authority.verify(&token, NOW) {
        assert!(error.is_retryable(), "{error}");
        tokio::task::yield_now().await;
    }
    fetching.abort();
}
