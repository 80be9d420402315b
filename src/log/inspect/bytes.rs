//! A file as one long slice, of which only a window is in memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Read at a time.
const WINDOW: usize = 1 << 20;

/// A file that is read from front to back, with looks ahead.
pub(super) struct Bytes {
    file: File,
    /// How long the file was when it was opened.
    length: u64,
    window: Vec<u8>,
    start: u64,
}

impl Bytes {
    pub(super) fn open(path: &std::path::Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file, length, window: Vec::new(), start: 0 })
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The `count` bytes from `at` on; `None` when the file ends before.
    ///
    /// # Cost
    /// Memory for `count` bytes, of which the file has at least so many.
    pub(super) fn at(&mut self, at: u64, count: usize) -> io::Result<Option<&[u8]>> {
        match at.checked_add(count as u64) {
            Some(end) if end <= self.length => {}
            _ => return Ok(None),
        }
        let inside = at >= self.start && at + count as u64 <= self.start + self.window.len() as u64;
        if !inside {
            let size = usize::try_from(self.length - at).unwrap_or(usize::MAX).min(WINDOW.max(count));
            self.window.resize(size, 0);
            self.start = at;
            if let Err(error) = self.file.read_exact_at(&mut self.window, at) {
                self.window.clear();
                return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
            }
        }
        let from = (at - self.start) as usize;
        Ok(self.window.get(from..from + count))
    }

    /// Some bytes from `at` on, at least one: what is in memory already, or the next window.
    pub(super) fn some_at(&mut self, at: u64) -> io::Result<Option<&[u8]>> {
        if at >= self.length || self.at(at, 1)?.is_none() {
            return Ok(None);
        }
        Ok(self.window.get((at - self.start) as usize..))
    }

    /// The first byte at or behind `at` that is not zero. Holes in the file cost nothing.
    pub(super) fn next_nonzero(&mut self, mut at: u64) -> io::Result<Option<u64>> {
        loop {
            if at >= self.length {
                return Ok(None);
            }
            let in_memory = at >= self.start && at < self.start + self.window.len() as u64;
            if !in_memory {
                at = match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(at)) {
                    Ok(data) => data,
                    Err(rustix::io::Errno::NXIO) => return Ok(None),
                    // A file system that knows no holes has data everywhere.
                    Err(_) => at,
                };
            }
            let Some(bytes) = self.some_at(at)? else { return Ok(None) };
            match bytes.iter().position(|byte| *byte != 0) {
                Some(offset) => return Ok(Some(at + offset as u64)),
                None => at += bytes.len() as u64,
            }
        }
    }
}
