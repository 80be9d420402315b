//! The key that signs this node's tokens, and the file that keeps it.
//!
//! `token.key` is one line, `tidelog-token-key-1 <seed, 64 hexadecimal digits> <check, 8>`, readable by its owner only. It
//! is not the node's key: whoever gets hold of one has not the other, and a token can never be taken for a handshake.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use jsonwebtoken::EncodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};

use super::error::AuthError;
use super::keys::Key;
use crate::file::replace;
use crate::id::{encode_hex, first};

/// Its name in the data directory.
pub(super) const KEY_FILE: &str = "token.key";

const FILE_TAG: &str = "tidelog-token-key-1";
/// More than the line has.
const FILE_BYTES_MAX: u64 = 1024;
/// A PKCS #8 (version 1) Ed25519 private key is these 16 bytes and then the seed (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// An Ed25519 key pair that signs tokens. It prints as its name.
pub(super) struct TokenKey {
    /// Signs.
    pub(super) secret: EncodingKey,
    /// Verifies.
    pub(super) public: Key,
    /// Its name in tokens and in the list: 16 hexadecimal digits, the beginning of a BLAKE3 of the public key.
    pub(super) kid: String,
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenKey({})", self.kid)
    }
}

impl TokenKey {
    /// The pair that belongs to `seed`, the private key of RFC 8032.
    pub(super) fn from_seed(seed: &[u8; 32]) -> Result<Self, AuthError> {
        const REFUSED: AuthError = AuthError::Signing("the cryptography refuses the key");
        let secret = EncodingKey::from_ed_der(&[&PKCS8_PREFIX[..], seed].concat());
        let jwk = Jwk::from_encoding_key(&secret, jsonwebtoken::Algorithm::EdDSA).map_err(|_| REFUSED)?;
        let AlgorithmParameters::OctetKeyPair(pair) = jwk.algorithm else { return Err(REFUSED) };
        let public = data_encoding::BASE64URL_NOPAD.decode(pair.x.as_bytes()).map_err(|_| REFUSED)?;
        let public: [u8; 32] = public.try_into().map_err(|_| REFUSED)?;
        let kid = encode_hex(&first::<8>(&blake3::derive_key("tidelog token key id", &public)));
        Ok(Self { secret, public: Key::ed25519(Some(kid.clone()), &public), kid })
    }

    /// Reads the key file; `None` when there is none.
    ///
    /// # Errors
    /// [`AuthError::KeyFile`] when it is not one, or others may read it. It is left as it is.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, AuthError> {
        let fault = |why: String| AuthError::KeyFile { path: path.to_owned(), why };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fault(error.to_string())),
        };
        let metadata = file.metadata().map_err(|error| fault(error.to_string()))?;
        if !metadata.is_file() {
            return Err(fault("it is not a regular file".into()));
        }
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(fault(format!("others may read it (mode {mode:o}); `chmod 600` makes it yours alone")));
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| fault(error.to_string()))?;
        match parse(&bytes) {
            Some(seed) => Self::from_seed(&seed).map(Some),
            None => Err(fault("it is damaged, or something else".into())),
        }
    }
}

fn parse(bytes: &[u8]) -> Option<[u8; 32]> {
    let line = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    let (digits, check) = line.strip_prefix(FILE_TAG)?.strip_prefix(' ')?.split_once(' ')?;
    let seed = data_encoding::HEXLOWER.decode(digits.as_bytes()).ok()?.try_into().ok()?;
    (check == check_of(&seed)).then_some(seed)
}

/// Tells a flipped digit from another key. It says nothing about the key: it is a hash of one that cannot be guessed.
fn check_of(seed: &[u8; 32]) -> String {
    encode_hex(&blake3::derive_key("tidelog token key file check", seed)[..4])
}

/// Writes the key file for `seed`, whole or not at all. The caller holds the lock of the directory, and has seen that there
/// is none.
pub(super) fn write(path: &Path, seed: &[u8; 32]) -> io::Result<()> {
    replace(path, format!("{FILE_TAG} {} {}\n", encode_hex(seed), check_of(seed)).as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_key_reads_as_it_was_written_and_signs_for_its_public_half() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEY_FILE);
        assert!(TokenKey::load(&path).unwrap().is_none());
        write(&path, &[5; 32]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let key = TokenKey::load(&path).unwrap().unwrap();
        assert_eq!(key.kid, TokenKey::from_seed(&[5; 32]).unwrap().kid);
        let token = super::super::jws::signed(&key.kid, &serde_json::Map::new(), &key.secret).unwrap();
        let parts = super::super::jws::Parts::of(&token).unwrap();
        assert!(key.public.signed(&parts));
        assert!(!TokenKey::from_seed(&[6; 32]).unwrap().public.signed(&parts));
        assert!(!format!("{key:?}").contains("0505"));
    }

    #[test]
    fn a_file_that_is_no_key_is_named_with_its_remedy_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEY_FILE);
        write(&path, &[5; 32]).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        for text in ["", &good[1..], good.trim_end(), &good.replacen("05", "15", 1), &good.replace("key-1", "key-2")] {
            fs::write(&path, text).unwrap();
            let error = TokenKey::load(&path).unwrap_err();
            assert_eq!(error.code(), "E0211", "{text:?}");
            assert!(error.to_string().contains(KEY_FILE) && error.remedy().contains("backup"));
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, &good).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(TokenKey::load(&path).unwrap_err().to_string().contains("chmod 600"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(TokenKey::load(&path).is_err());
    }
}
