//! The bounds, and the file that says other ones.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

use super::kind::Kind;
use super::rate::Rate;
use crate::limits::quotas::FILE_BYTES_MAX;
use crate::rules::nearest;

/// What one address, or one user, may have. `None` is no bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// At once: of an address connections, of a user WebSockets and links.
    pub connections: Option<u32>,
    /// Connections of an address whose first request has not come, or of which it is not known whose they are, at once.
    pub openings: Option<u32>,
    /// Listeners, feeds and long polls at once.
    pub streams: Option<u32>,
    /// New connections; of a user, new WebSockets and links.
    pub handshakes: Option<Rate>,
    /// Tokens from an address that are not accepted. Beyond, only such are looked at as were accepted lately.
    pub bad_tokens: Option<Rate>,
    /// Requests to the API.
    pub requests: Option<Rate>,
    /// Frames on WebSockets and links. Beyond, they are read later.
    pub frames: Option<Rate>,
    /// Bytes on WebSockets and links, which are read later beyond it, and of the bodies of requests.
    pub bytes: Option<Rate>,
    /// Documents that come to be.
    pub documents: Option<Rate>,
    /// Ephemeral messages. What is more is not handed on.
    pub presence: Option<Rate>,
}

/// The bounds of a server: whoever was proven to be a user has those of users, and everybody else those of his address.
/// An address is an IPv4 address, or a network of 64 bits of IPv6. Connections and tokens that are not accepted are
/// counted by address in any case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quotas {
    /// Of all who come from one address and did not say who they are, or are not believed.
    pub address: Quota,
    /// Of one user, wherever he comes from.
    pub user: Quota,
}

impl Quota {
    /// No bound at all.
    pub const NONE: Self = Self {
        connections: None,
        openings: None,
        streams: None,
        handshakes: None,
        bad_tokens: None,
        requests: None,
        frames: None,
        bytes: None,
        documents: None,
        presence: None,
    };

    /// How many there may be at once.
    pub(super) fn held(&self, kind: Kind) -> Option<u32> {
        match kind {
            Kind::Connections => self.connections,
            Kind::Openings => self.openings,
            Kind::Streams => self.streams,
            _ => None,
        }
    }

    /// How many there may be in a time.
    pub(super) fn rate(&self, kind: Kind) -> Option<Rate> {
        match kind {
            Kind::Handshakes => self.handshakes,
            Kind::BadTokens => self.bad_tokens,
            Kind::Requests => self.requests,
            Kind::Frames => self.frames,
            Kind::Bytes => self.bytes,
            Kind::Documents => self.documents,
            Kind::Presence => self.presence,
            Kind::Connections | Kind::Openings | Kind::Streams => None,
        }
    }

    fn place(&mut self, kind: Kind) -> Field<'_> {
        match kind {
            Kind::Connections => Field::Held(&mut self.connections),
            Kind::Openings => Field::Held(&mut self.openings),
            Kind::Streams => Field::Held(&mut self.streams),
            Kind::Handshakes => Field::Rate(&mut self.handshakes),
            Kind::BadTokens => Field::Rate(&mut self.bad_tokens),
            Kind::Requests => Field::Rate(&mut self.requests),
            Kind::Frames => Field::Rate(&mut self.frames),
            Kind::Bytes => Field::Rate(&mut self.bytes),
            Kind::Documents => Field::Rate(&mut self.documents),
            Kind::Presence => Field::Rate(&mut self.presence),
        }
    }
}

impl Quotas {
    /// What a server has unless it is told otherwise. An address has much, since many may be behind it, and so may a
    /// whole application on the server's own machine.
    pub const DEFAULT: Self = Self {
        address: Quota {
            connections: Some(1536),
            openings: Some(512),
            streams: Some(1536),
            handshakes: Some(Rate::per_second(500, 5000)),
            bad_tokens: Some(Rate::per_second(10, 100)),
            requests: Some(Rate::per_second(20_000, 50_000)),
            frames: Some(Rate::per_second(50_000, 200_000)),
            bytes: Some(Rate::per_second(256 << 20, 1 << 30)),
            documents: Some(Rate::per_minute(60_000, 100_000)),
            presence: Some(Rate::per_second(2000, 6000)),
        },
        user: Quota {
            connections: Some(256),
            openings: None,
            streams: Some(512),
            handshakes: Some(Rate::per_second(20, 500)),
            bad_tokens: None,
            requests: Some(Rate::per_second(1000, 5000)),
            frames: Some(Rate::per_second(2000, 20_000)),
            bytes: Some(Rate::per_second(32 << 20, 256 << 20)),
            documents: Some(Rate::per_minute(6000, 20_000)),
            presence: Some(Rate::per_second(10, 30)),
        },
    };

    /// Reads a file of quotas, JSON: what it does not name is as in [`Self::DEFAULT`].
    ///
    /// ```json
    /// { "address": { "connections": 100, "bad_tokens": { "per_minute": 60, "burst": 20 } },
    ///   "user": { "documents": { "per_hour": 1000, "burst": 200 }, "streams": null } }
    /// ```
    ///
    /// # Errors
    /// [`QuotaError`] when it cannot be read or is not understood: it names the line.
    ///
    /// # Cost
    /// Blocking file IO: one read.
    pub fn read_file(path: &Path) -> Result<Self, QuotaError> {
        let failed = |error: std::io::Error| QuotaError { path: path.to_owned(), why: error.to_string() };
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        Self::parse(&text).map_err(|why| QuotaError { path: path.to_owned(), why })
    }

    /// Reads quotas from JSON.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(format!("it has more than {FILE_BYTES_MAX} bytes"));
        }
        let mut quotas = Self::DEFAULT;
        let mut reader = serde_json::Deserializer::from_str(text);
        let read = Whole(&mut quotas).deserialize(&mut reader).and_then(|()| reader.end());
        read.map_err(|error| error.to_string())?;
        Ok(quotas)
    }
}

impl Default for Quotas {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A file of quotas that is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct QuotaError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, and where.
    pub why: String,
}

impl QuotaError {
    /// Its fixed code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "E0118"
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        "mend the file: docs/access.md shows every key; `null` is no bound"
    }
}

enum Field<'a> {
    Held(&'a mut Option<u32>),
    Rate(&'a mut Option<Rate>),
}

/// What is not known, with what was probably meant.
fn unknown<E: Error>(word: &str, of: &str, known: &[&str]) -> E {
    let word: String = word.chars().take(40).collect();
    let meant = match nearest(&word, known.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("there is {}", known.join(", ")),
    };
    E::custom(format!("`{word}` is not known in {of}: {meant}"))
}

fn twice<E: Error>(word: &str) -> E {
    E::custom(format!("`{word}` is there twice"))
}

/// Implements reading one object into what is there already, key by key.
macro_rules! reads_object {
    ($seed:ident) => {
        impl<'de> DeserializeSeed<'de> for $seed<'_> {
            type Value = ();

            fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
                deserializer.deserialize_map(self)
            }
        }
    };
}

struct Whole<'a>(&'a mut Quotas);

reads_object!(Whole);

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `address` and `user`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = [false; 2];
        while let Some(key) = map.next_key::<String>()? {
            let (at, name, quota) = match key.as_str() {
                "address" => (0, "`address`", &mut self.0.address),
                "user" => (1, "`user`", &mut self.0.user),
                _ => return Err(unknown(&key, "a file of quotas", &["address", "user"])),
            };
            if std::mem::replace(&mut seen[at], true) {
                return Err(twice(&key));
            }
            map.next_value_seed(One { quota, name, is_user: at == 1 })?;
        }
        Ok(())
    }
}

/// One of the two.
struct One<'a> {
    quota: &'a mut Quota,
    name: &'static str,
    is_user: bool,
}

reads_object!(One);

impl<'de> Visitor<'de> for One<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with the quotas of {}", self.name)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        // What a user is not known for yet cannot be his.
        let has = |kind: &Kind| !(self.is_user && matches!(kind, Kind::Openings | Kind::BadTokens));
        let known: Vec<Kind> = Kind::ALL.into_iter().filter(has).collect();
        let names: Vec<&str> = known.iter().map(|kind| kind.name()).collect();
        let mut seen = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let Some(kind) = known.iter().copied().find(|kind| kind.name() == key) else {
                return Err(unknown(&key, self.name, &names));
            };
            if seen.contains(&kind) {
                return Err(twice(&key));
            }
            seen.push(kind);
            let named = |error: A::Error| A::Error::custom(format!("`{key}`: {error}"));
            match self.quota.place(kind) {
                Field::Held(place) => {
                    *place = map.next_value::<Option<u32>>().map_err(named)?;
                    if *place == Some(0) {
                        return Err(A::Error::custom(format!("`{key}` is at least 1")));
                    }
                }
                Field::Rate(place) => *place = map.next_value_seed(RateOrNone).map_err(named)?,
            }
        }
        Ok(())
    }
}

struct RateOrNone;

impl<'de> DeserializeSeed<'de> for RateOrNone {
    type Value = Option<Rate>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Rate>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RateOrNone {
    type Value = Option<Rate>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object like {\"per_second\": 10, \"burst\": 30}, or null")
    }

    fn visit_unit<E: Error>(self) -> Result<Option<Rate>, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Rate>, A::Error> {
        const TIMES: [(&str, u64); 3] = [("per_second", 1), ("per_minute", 60), ("per_hour", 3600)];
        let (mut count, mut burst) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            let seconds = TIMES.iter().find(|(name, _)| *name == key).map(|(_, seconds)| *seconds);
            if seconds.is_none() && key != "burst" {
                return Err(unknown(&key, "a rate", &["per_second", "per_minute", "per_hour", "burst"]));
            }
            let value = map.next_value::<u32>()?;
            if value == 0 {
                return Err(A::Error::custom(format!("`{key}` is at least 1")));
            }
            let is_again = match seconds {
                Some(seconds) => count.replace((value, seconds)).is_some(),
                None => burst.replace(value).is_some(),
            };
            if is_again {
                return Err(A::Error::custom(format!("`{key}` is one too many: a rate is for one time")));
            }
        }
        match (count, burst) {
            (Some((count, seconds)), burst) => {
                Ok(Some(Rate { count, per: Duration::from_secs(seconds), burst: burst.unwrap_or(count) }))
            }
            _ => Err(A::Error::custom("a rate has `per_second`, `per_minute` or `per_hour`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_is_as_it_was() {
        assert_eq!(Quotas::parse("{}").unwrap(), Quotas::DEFAULT);
        let text =
            "{\"address\": {\"connections\": 5, \"frames\": null}, \"user\": {\"documents\": {\"per_hour\": 7}}}";
        let quotas = Quotas::parse(text).unwrap();
        assert_eq!((quotas.address.connections, quotas.address.frames), (Some(5), None));
        assert_eq!(quotas.address.bytes, Quotas::DEFAULT.address.bytes);
        let rate = Rate { count: 7, per: Duration::from_secs(3600), burst: 7 };
        assert_eq!(quotas.user.documents, Some(rate));
        assert_eq!(quotas.user.connections, Quotas::DEFAULT.user.connections);
    }

    #[test]
    fn a_slip_is_named_with_its_line_and_what_was_meant() {
        for (text, words) in [
            ("{\n \"adress\": {}\n}", &["line 2", "`adress`", "did you mean `address`?"][..]),
            ("{\"user\": {\n\n \"conections\": 1}}", &["line 3", "`user`", "did you mean `connections`?"]),
            ("{\"user\": {\"bad_tokens\": null}}", &["line 1", "`bad_tokens` is not known in `user`"]),
            ("{\"user\": {\n\"frames\": {\n\"per_secnd\": 1}}}", &["line 3", "`frames`", "did you mean `per_second`?"]),
            ("{\"user\": {\n\"frames\": 5}}", &["line 2", "`frames`", "per_second"]),
            ("{\"user\": {\"frames\": {\"burst\": 5}}}", &["`frames`", "`per_minute`"]),
            ("{\"user\": {\"frames\": {\"per_second\": 5, \"per_hour\": 5}}}", &["one too many"]),
            ("{\"user\": {\"frames\": {\"per_second\": 0}}}", &["`per_second` is at least 1"]),
            ("{\"user\": {\"streams\": 0}}", &["`streams` is at least 1"]),
            ("{\"user\": {\n\"streams\": -1}}", &["line 2", "`streams`"]),
            ("{\"user\": {\"streams\": 1, \"streams\": 2}}", &["`streams` is there twice"]),
            ("{\"user\": {}, \"user\": {}}", &["`user` is there twice"]),
            ("{} {}", &["line 1"]),
            ("[]", &["`address` and `user`"]),
            ("", &["line 1"]),
        ] {
            let error = Quotas::parse(text).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
        }
    }
}
