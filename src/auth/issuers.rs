//! Who else may say who somebody is: the file of issuers.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::AuthError;
use super::json::{self, Bounds};
use super::jws::Algorithm;
use crate::id::shortened;
use crate::limits::tokens as limits;

const BOUNDS: Bounds = Bounds { depth: 4, values: 1024 };
const NAMES: [&str; 5] = ["issuer", "audience", "keys", "algorithms", "leeway_s"];

/// Where an issuer's public keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// In a file.
    File(PathBuf),
    /// At an `https` URL, or an `http` one on this machine.
    Url(String),
}

/// Somebody whose tokens are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// The `iss` of its tokens: 1 to 200 bytes, without `#` and control characters, not beginning with `tidelog:`.
    pub issuer: String,
    /// What their `aud` must be, or hold.
    pub audience: String,
    /// Where its keys are.
    pub keys: KeySource,
    /// How its tokens may be signed.
    pub algorithms: Vec<Algorithm>,
    /// How far its clock may be off, in seconds; at most 300.
    pub leeway_s: u64,
}

impl Issuer {
    /// Reads a file of issuers. Paths in it are relative to the folder it is in.
    ///
    /// # Errors
    /// [`AuthError::File`] when it cannot be read, [`AuthError::Issuers`] when it is not understood.
    ///
    /// # Cost
    /// Blocking file IO: one read.
    pub fn read_file(path: &Path) -> Result<Vec<Self>, AuthError> {
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(AuthError::file("open", path))?;
        file.take(limits::ISSUERS_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(AuthError::file("read", path))?;
        Self::parse(&bytes, path.parent().unwrap_or(Path::new("")))
            .map_err(|why| AuthError::Issuers { path: path.to_owned(), why })
    }

    /// Reads issuers from JSON; `folder` is where relative paths in it begin.
    ///
    /// # Errors
    /// What is wrong, and with which entry.
    pub fn parse(bytes: &[u8], folder: &Path) -> Result<Vec<Self>, String> {
        if bytes.len() > limits::ISSUERS_BYTES_MAX {
            return Err(format!("it has more than {} bytes", limits::ISSUERS_BYTES_MAX));
        }
        let Value::Array(entries) = json::value(bytes, BOUNDS)? else {
            return Err("it is not a JSON array of issuers".into());
        };
        if entries.len() > limits::ISSUERS_MAX {
            return Err(format!("it has more than {} issuers", limits::ISSUERS_MAX));
        }
        let mut issuers: Vec<Self> = Vec::new();
        for (number, entry) in (1..).zip(&entries) {
            let issuer = Self::of_entry(entry, folder).map_err(|why| format!("issuer {number}: {why}"))?;
            if issuers.iter().any(|other| other.issuer == issuer.issuer) {
                return Err(format!("issuer {number}: {:?} is there twice", issuer.issuer));
            }
            issuers.push(issuer);
        }
        Ok(issuers)
    }

    fn of_entry(entry: &Value, folder: &Path) -> Result<Self, String> {
        let Value::Object(entry) = entry else { return Err("it is not an object".into()) };
        if let Some(unknown) = entry.keys().find(|name| !NAMES.contains(&name.as_str())) {
            let meant = nearest(unknown, &NAMES).map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            return Err(format!("{:?} is not known{meant}", shortened(unknown)));
        }
        let issuer = Self {
            issuer: text(entry, "issuer")?,
            audience: text(entry, "audience")?,
            keys: source(&text(entry, "keys")?, folder)?,
            algorithms: algorithms(entry.get("algorithms"))?,
            leeway_s: leeway(entry.get("leeway_s"))?,
        };
        issuer.check()?;
        Ok(issuer)
    }

    /// Whether it is what the fields' comments say.
    pub(super) fn check(&self) -> Result<(), String> {
        for (name, text) in [("issuer", &self.issuer), ("audience", &self.audience)] {
            if text.is_empty() || text.len() > limits::UID_BYTES_MAX || text.chars().any(char::is_control) {
                return Err(format!("`{name}` is 1 to 200 bytes without control characters"));
            }
        }
        if self.issuer.contains('#') {
            return Err("`issuer` has a `#`: it separates issuers from their users".into());
        }
        if self.issuer.starts_with("tidelog:") {
            return Err("`issuer` begins with `tidelog:`, as nodes do: their tokens are for themselves alone".into());
        }
        if self.algorithms.is_empty() {
            return Err("`algorithms` is empty".into());
        }
        if self.leeway_s > limits::LEEWAY_S_MAX {
            return Err(format!("`leeway_s` is at most {}", limits::LEEWAY_S_MAX));
        }
        Ok(())
    }
}

fn text(entry: &Map<String, Value>, name: &str) -> Result<String, String> {
    match entry.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("`{name}` is not a text")),
        None => Err(format!("`{name}` is missing")),
    }
}

fn algorithms(value: Option<&Value>) -> Result<Vec<Algorithm>, String> {
    let known = "RS256, ES256 and EdDSA are";
    let Some(value) = value else { return Err(format!("`algorithms` is missing: {known} known")) };
    let Value::Array(names) = value else { return Err("`algorithms` is not a list".into()) };
    let mut algorithms = Vec::new();
    for name in names {
        let name = name.as_str().ok_or("`algorithms` holds something that is not a text")?;
        let algorithm = name
            .parse::<Algorithm>()
            .map_err(|_| format!("`algorithms`: {:?} is never accepted; {known}", shortened(name)))?;
        if !algorithms.contains(&algorithm) {
            algorithms.push(algorithm);
        }
    }
    Ok(algorithms)
}

fn leeway(value: Option<&Value>) -> Result<u64, String> {
    match value {
        None => Ok(limits::LEEWAY_S),
        Some(value) => value.as_u64().ok_or_else(|| "`leeway_s` is not a number of seconds".to_owned()),
    }
}

fn source(text: &str, folder: &Path) -> Result<KeySource, String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        if text.is_empty() {
            return Err("`keys` is empty".into());
        }
        return Ok(KeySource::File(folder.join(text)));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() || authority.contains('@') || text.chars().any(|c| c.is_control() || c == ' ') {
        return Err("`keys` is not a URL of a host, without a user".into());
    }
    match scheme {
        "https" => {}
        "http" if is_loopback(authority) => {}
        "http" => return Err("`keys` must be https: anybody on the way could put in keys of their own".into()),
        _ => return Err(format!("`keys` is a path, or an https URL; {:?} is neither", shortened(scheme))),
    }
    Ok(KeySource::Url(text.to_owned()))
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The name that was probably meant, if any is near.
fn nearest<'a>(word: &str, names: &[&'a str]) -> Option<&'a str> {
    if word.len() > 32 {
        return None;
    }
    let near = names.iter().map(|name| (distance(word, name), *name)).min()?;
    (near.0 <= 1 + near.1.len() / 3).then_some(near.1)
}

/// How many letters must be put in, taken out or replaced (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry() -> Value {
        json!({ "issuer": "https://id.example", "audience": "tide", "keys": "keys.json", "algorithms": ["ES256"] })
    }

    fn parsed(entry: Value) -> Result<Issuer, String> {
        let mut all = Issuer::parse(json!([entry]).to_string().as_bytes(), Path::new("/etc/tide"))?;
        Ok(all.remove(0))
    }

    fn with(name: &str, value: Value) -> Value {
        let mut entry = entry();
        entry[name] = value;
        entry
    }

    #[test]
    fn an_issuer_reads_with_its_defaults() {
        let issuer = parsed(entry()).unwrap();
        assert_eq!(issuer.leeway_s, 60);
        assert_eq!(issuer.keys, KeySource::File("/etc/tide/keys.json".into()));
        assert_eq!(issuer.algorithms, [Algorithm::Es256]);
        for url in ["https://a.example/jwks", "http://127.0.0.1:9/x", "http://localhost/x", "http://[::1]:8/x"] {
            assert_eq!(parsed(with("keys", json!(url))).unwrap().keys, KeySource::Url(url.into()));
        }
    }

    #[test]
    fn a_slip_is_named_with_what_was_meant() {
        for (name, meant) in
            [("isuer", "issuer"), ("audiance", "audience"), ("algorithm", "algorithms"), ("leeway", "leeway_s")]
        {
            let error = parsed(with(name, json!("x"))).unwrap_err();
            assert!(error.contains(&format!("did you mean {meant}?")), "{error}");
        }
        assert!(!parsed(with("frobnicate", json!(1))).unwrap_err().contains("did you mean"));
    }

    #[test]
    fn what_would_weaken_it_is_refused() {
        for (name, value) in [
            ("algorithms", json!(["none"])),
            ("algorithms", json!(["HS256"])),
            ("algorithms", json!([])),
            ("algorithms", json!("ES256")),
            ("leeway_s", json!(301)),
            ("leeway_s", json!(-1)),
            ("keys", json!("http://id.example/keys")),
            ("keys", json!("http://127.0.0.1.example.org/keys")),
            ("keys", json!("https://user@id.example/keys")),
            ("keys", json!("https:///keys")),
            ("keys", json!("ftp://id.example/keys")),
            ("keys", json!("")),
            ("issuer", json!("")),
            ("issuer", json!("a#b")),
            ("issuer", json!("tidelog:abc")),
            ("issuer", json!("a\nb")),
            ("issuer", json!("i".repeat(201))),
            ("audience", json!(["a"])),
            ("audience", json!("")),
        ] {
            assert!(parsed(with(name, value.clone())).is_err(), "{name}: {value}");
        }
        for missing in ["issuer", "audience", "keys", "algorithms"] {
            let mut entry = entry();
            entry.as_object_mut().unwrap().remove(missing);
            let error = parsed(entry).unwrap_err();
            assert!(error.contains(&format!("`{missing}` is missing")), "{error}");
        }
        let twice = json!([entry(), entry()]).to_string();
        assert!(Issuer::parse(twice.as_bytes(), Path::new("")).unwrap_err().contains("twice"));
        let many: Vec<Value> = (0..17).map(|n| with("issuer", json!(format!("https://{n}")))).collect();
        assert!(Issuer::parse(json!(many).to_string().as_bytes(), Path::new("")).is_err());
    }
}
