//! Where the socket is.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

/// The socket's name in the data directory.
pub const SOCKET_FILE: &str = "admin.sock";

/// The longest path that fits a Unix socket's address on every Unix, its closing zero left out.
const PATH_BYTES_MAX: usize = 103;

/// A path to the socket that is short enough to be an address.
pub(super) struct SocketPath {
    path: PathBuf,
    /// Keeps the short way through `/proc` open.
    _directory: Option<File>,
}

impl SocketPath {
    /// The socket of the data directory `directory`. Where the path is too long, it goes through an open descriptor of
    /// the directory.
    pub(super) fn of(directory: &Path) -> io::Result<Self> {
        let path = directory.join(SOCKET_FILE);
        if path.as_os_str().len() <= PATH_BYTES_MAX {
            return Ok(Self { path, _directory: None });
        }
        let directory = File::open(directory)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        if !short.exists() {
            let why = format!("{} is too long for a socket; use a shorter path", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        Ok(Self { path: short.join(SOCKET_FILE), _directory: Some(directory) })
    }

    pub(super) fn as_path(&self) -> &Path {
        &self.path
    }
}
