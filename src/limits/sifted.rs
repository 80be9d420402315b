//! Bounds of one change feed whose reader may not see everything.

/// Documents that changed since its reader was told what he may see. With more, all that there are are asked about.
pub(crate) const CHANGED_MAX: usize = 4096;
/// Documents that changed while all are asked about, and are met again. With more, it begins anew.
pub(crate) const LATE_MAX: usize = 1_000_000;
/// Looks for documents that went from one collection to another while all are asked about. With more, it begins anew.
pub(crate) const ROUNDS_MAX: usize = 16;
/// Documents of which is remembered whether they may be seen, or that they were told of. Beyond it that is found, or told,
/// again.
pub(crate) const KNOWN_MAX: usize = 10_000;
/// Other documents that decide what may be seen. With more, any change in their collections has everything asked again.
pub(crate) const RESTS_ON_MAX: usize = 10_000;
/// Other documents that are kept as they were at one moment. Beyond it they are read again.
pub(crate) const OTHERS_MAX: usize = 1024;
/// Bytes of them, of one feed and moment; as above.
pub(crate) const OTHERS_BYTES: usize = 8 << 20;
/// Bytes of them, of all feeds of a server; as above.
pub(crate) const OTHERS_BYTES_ALL: usize = 64 << 20;
/// Bytes of changes that were read and not told yet, after which no more are read.
pub(crate) const PULLED_BYTES: usize = 1 << 20;
/// Where rules look at the time, it moves on in steps of so many milliseconds.
pub(crate) const TIME_MS: u64 = 4_000;
/// How long documents are asked about at a stretch, in milliseconds.
pub(crate) const TURN_MS: u64 = 50;
/// How long nobody asks about all documents after it was done, at most; as long as that took, otherwise.
pub(crate) const REST_MAX: std::time::Duration = std::time::Duration::from_secs(30);
