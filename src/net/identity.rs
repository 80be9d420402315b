//! Who we are: an Ed25519 key pair, and the file that keeps it.
//!
//! The key file is one line, `tidelog-key-1 <seed, 64 hexadecimal digits> <check, 8>`, readable by its owner only. It is written
//! once, whole or not at all, and never replaced: a file that cannot be used is an error with its remedy, because a
//! node that quietly took a new key would be a stranger to all its peers.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::id::{NodeId, random_bytes};

use super::error::{KeyFault, NetError};
use super::tls;

/// What the line begins with. The number changes with the format.
const FILE_TAG: &str = "tidelog-key-1";

/// More than any key file holds, so that pointing at a huge file reads little of it.
const FILE_BYTES_MAX: u64 = 1024;

/// A PKCS#8 (version 1) Ed25519 private key is always these 16 bytes and then the 32-byte seed (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// An Ed25519 key pair. A cheap clone; it prints as its [`NodeId`], never as its secret.
#[derive(Clone)]
pub struct Identity {
    node: NodeId,
    key: Arc<CertifiedKey>,
}

impl Identity {
    /// Draws a new key pair and keeps it in memory only.
    ///
    /// # Errors
    /// [`NetError::Tls`] when the cryptography provider refuses the key.
    pub fn generate() -> Result<Self, NetError> {
        Self::from_seed(&random_bytes())
    }

    /// Derives the key pair that belongs to `seed`, the private key of RFC 8032.
    ///
    /// # Errors
    /// [`NetError::Tls`] when the cryptography provider refuses the key.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, NetError> {
        let fault = |e: rustls::Error| NetError::Tls(e.to_string());
        let pkcs8 = PrivatePkcs8KeyDer::from([&PKCS8_PREFIX[..], seed].concat());
        let key = tls::provider().key_provider.load_private_key(pkcs8.into()).map_err(fault)?;
        let public = key.public_key().ok_or_else(|| NetError::Tls("the provider hides the public key".into()))?;
        let node = tls::node_of_public_key(&public)
            .ok_or_else(|| NetError::Tls("the provider gives no Ed25519 public key".into()))?;
        // `CertifiedKey::new`, not `from_der`: the latter parses X.509 to compare the keys and so refuses a raw key.
        let certified = CertifiedKey::new(vec![CertificateDer::from(public.to_vec())], key);
        Ok(Self { node, key: Arc::new(certified) })
    }

    /// Reads the key file at `path`, or draws a key and writes it there when there is no such file.
    ///
    /// # Errors
    /// [`NetError::KeyFile`] when the file or its directory cannot be read or written, when the file is empty or holds
    /// something else, and when others than its owner may read it. The file is then left as it is.
    ///
    /// # Cost
    /// Blocking file IO: one read, or one write with two syncs.
    pub fn load_or_create(path: &Path) -> Result<Self, NetError> {
        match File::open(path) {
            Ok(file) => Self::from_seed(&read_seed(&file).map_err(|fault| at(path, fault))?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let seed = random_bytes();
                let identity = Self::from_seed(&seed)?;
                if write_seed(path, &seed).map_err(|e| at(path, KeyFault::NotWritten(e)))? {
                    Ok(identity)
                } else {
                    // Another process was faster; its key is the one.
                    let file = File::open(path).map_err(|e| at(path, KeyFault::NotRead(e)))?;
                    Self::from_seed(&read_seed(&file).map_err(|fault| at(path, fault))?)
                }
            }
            Err(e) => Err(at(path, KeyFault::NotRead(e))),
        }
    }

    /// The public half: the node's name.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The pair in the shape the TLS stack wants.
    pub(super) fn key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }

    /// An identity that shows the key of `self` and signs with that of `other`, as a thief of a public key would.
    #[cfg(test)]
    pub(super) fn signing_with(&self, other: &Self) -> Self {
        let key = CertifiedKey::new(self.key.cert.clone(), other.key.key.clone());
        Self { node: self.node, key: Arc::new(key) }
    }

    /// An identity that shows `certified` where a raw key is expected.
    #[cfg(test)]
    pub(super) fn showing(certified: CertifiedKey) -> Self {
        Self { node: NodeId([0; 32]), key: Arc::new(certified) }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.node)
    }
}

fn at(path: &Path, fault: KeyFault) -> NetError {
    NetError::KeyFile { path: path.to_owned(), fault }
}

/// Reads a key file that is open; its permissions are those of the open file, whatever happens to the name.
fn read_seed(file: &File) -> Result<[u8; 32], KeyFault> {
    let metadata = file.metadata().map_err(KeyFault::NotRead)?;
    if !metadata.is_file() {
        return Err(KeyFault::NotRead(io::Error::other("it is not a regular file")));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyFault::OpenToOthers { mode });
        }
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(KeyFault::NotRead)?;
    if bytes.is_empty() {
        return Err(KeyFault::Empty);
    }
    parse(&bytes).ok_or(KeyFault::Malformed)
}

fn parse(bytes: &[u8]) -> Option<[u8; 32]> {
    let line = std::str::from_utf8(bytes).ok()?;
    let digits = line.strip_prefix(FILE_TAG)?.strip_prefix(' ')?.strip_suffix('\n')?;
    // Files of older versions have no check.
    let (digits, check) = digits.split_once(' ').map_or((digits, None), |(digits, check)| (digits, Some(check)));
    let seed = data_encoding::HEXLOWER.decode(digits.as_bytes()).ok()?.try_into().ok()?;
    check.is_none_or(|check| check == check_of(&seed)).then_some(seed)
}

/// Tells a flipped digit from another key. It says nothing about the key: it is a hash of one that cannot be guessed.
fn check_of(seed: &[u8; 32]) -> String {
    data_encoding::HEXLOWER.encode(&blake3::derive_key("tidelog key file check", seed)[..4])
}

/// Writes a key file under a temporary name, syncs it, and only then gives it its name, so that no crash leaves half a
/// key. Returns false when a file of that name has appeared meanwhile; it is then kept.
fn write_seed(path: &Path, seed: &[u8; 32]) -> io::Result<bool> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = temporary_name(path);
    let written = write_and_name(&temporary, path, seed);
    // Either the name below was moved away, or it is the second name of the key, or the key of nobody.
    let removed = fs::remove_file(&temporary);
    let named = written?;
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // Without this the *name* may be lost in a power failure, and the next start would draw another key.
    File::open(directory)?.sync_all()?;
    Ok(named)
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}.new", u64::from_le_bytes(random_bytes())));
    path.with_file_name(name)
}

fn write_and_name(temporary: &Path, path: &Path, seed: &[u8; 32]) -> io::Result<bool> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    let mut file = options.open(temporary)?;
    let line = format!("{FILE_TAG} {} {}\n", data_encoding::HEXLOWER.encode(seed), check_of(seed));
    file.write_all(line.as_bytes())?;
    file.sync_all()?;
    // A link, because a rename would silently replace the key of a process that was faster.
    match fs::hard_link(temporary, path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        // Some file systems have no links. There the caller's lock on the data directory has to do.
        Err(_) => fs::rename(temporary, path).map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(path: &Path) -> (KeyFault, String) {
        let error = Identity::load_or_create(path).unwrap_err();
        let text = error.to_string();
        match error {
            NetError::KeyFile { path: named, fault } => {
                assert_eq!(named, path);
                (fault, text)
            }
            other => panic!("{other:?}"),
        }
    }

    #[cfg(unix)]
    fn write(path: &Path, content: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        fs::write(path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_node_id_is_the_public_key_of_rfc_8032() {
        let seed = data_encoding::HEXLOWER
            .decode(b"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
            .unwrap();
        let public = data_encoding::HEXLOWER
            .decode(b"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
            .unwrap();
        let identity = Identity::from_seed(&seed.try_into().unwrap()).unwrap();
        assert_eq!(identity.node().0, &public[..]);
    }

    #[test]
    fn a_created_key_is_the_one_that_is_loaded_and_no_other_file_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.key");
        let created = Identity::load_or_create(&path).unwrap();
        assert_eq!(Identity::load_or_create(&path).unwrap().node(), created.node());
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["node.key"]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_key_that_appeared_meanwhile_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.key");
        assert!(write_seed(&path, &[1; 32]).unwrap());
        assert!(!write_seed(&path, &[2; 32]).unwrap());
        assert_eq!(Identity::load_or_create(&path).unwrap().node(), Identity::from_seed(&[1; 32]).unwrap().node());
    }

    #[test]
    #[cfg(unix)]
    fn a_file_that_is_not_a_key_is_named_with_its_remedy_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.key");
        let good = format!("{FILE_TAG} {}\n", "ab".repeat(32));
        let wrong = [
            "tidelog-key-1\n".to_owned(),
            good.trim_end().to_owned(),
            good.replace("key-1", "key-2"),
            good.replacen("ab", "", 1),
            good.replacen('a', "x", 1),
            format!("{good}{good}"),
            "\u{1f511}".to_owned(),
        ];
        for content in &wrong {
            write(&path, content, 0o600);
            let (fault, text) = fault(&path);
            assert!(matches!(fault, KeyFault::Malformed), "{content:?}: {fault:?}");
            assert!(text.contains("node.key") && text.contains("backup"), "{text}");
            assert_eq!(&fs::read_to_string(&path).unwrap(), content);
        }
        write(&path, "", 0o600);
        assert!(matches!(fault(&path).0, KeyFault::Empty));
        write(&path, &good, 0o600);
        assert!(Identity::load_or_create(&path).is_ok());
    }

    #[test]
    #[cfg(unix)]
    fn a_key_that_others_may_read_is_refused_with_the_command_that_mends_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.key");
        for mode in [0o640, 0o604, 0o644, 0o610] {
            write(&path, &format!("{FILE_TAG} {}\n", "ab".repeat(32)), mode);
            let (fault, text) = fault(&path);
            assert!(matches!(fault, KeyFault::OpenToOthers { mode: seen } if seen == mode), "{fault:?}");
            assert!(text.contains(&format!("{mode:o}")) && text.contains("chmod 600"), "{text}");
        }
    }

    #[test]
    fn a_directory_in_its_place_and_a_missing_directory_are_named() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(fault(directory.path()).0, KeyFault::NotRead(_)));
        assert!(matches!(fault(&directory.path().join("absent/node.key")).0, KeyFault::NotWritten(_)));
    }

    #[test]
    fn debug_shows_the_name_and_not_the_secret() {
        let text = format!("{:?}", Identity::from_seed(&[0xab; 32]).unwrap());
        assert!(!text.contains("abab") && !text.contains("171"), "{text}");
    }
}
