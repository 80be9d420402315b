//! What one peer may cost us, in QUIC's terms.
//!
//! QUIC counts what a sender may have under way, and so bounds what a receiver must buffer. Both ends use the same
//! limits, except that a peer that was not yet admitted gets a small window ([`ARRIVAL_WINDOW`]).

use std::sync::Arc;
use std::time::Duration;

use quinn::{IdleTimeout, ServerConfig, TransportConfig, VarInt};

/// Bytes one peer may have under way to us over all its streams. QUIC's own default is no bound.
pub(super) const RECEIVE_WINDOW: VarInt = VarInt::from_u32(8 << 20);
/// The same before the peer was admitted: its first frame fits, and a thousand strangers cost 64 MiB at most.
pub(super) const ARRIVAL_WINDOW: VarInt = VarInt::from_u32(64 << 10);
/// Bytes under way on one stream, so that one stalled stream cannot eat the whole window.
const STREAM_WINDOW: VarInt = VarInt::from_u32(1 << 20);
/// Streams of each kind that the peer may have open.
const STREAMS: VarInt = VarInt::from_u32(64);
/// Bytes we keep for one peer until it acknowledges them: what a peer that stops reading costs us.
const SEND_WINDOW: u64 = 256 << 10;
/// A link on which nothing is heard for so long is dead.
const IDLE: VarInt = VarInt::from_u32(30_000);
/// Two of these may be lost before [`IDLE`] strikes.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Connections that nobody has accepted yet.
const INCOMING: usize = 1024;
/// Bytes kept for one of those. Only the rest of a first flight may come: there is no early data.
const INCOMING_BYTES: u64 = 64 << 10;
/// Bytes kept for all of those.
const INCOMING_BYTES_TOTAL: u64 = 8 << 20;

/// The limits of connections that we dial.
pub(super) fn dialling() -> Arc<TransportConfig> {
    Arc::new(with_window(RECEIVE_WINDOW))
}

/// Sets the limits of connections that we accept.
pub(super) fn accepting(config: &mut ServerConfig) {
    config
        .transport_config(Arc::new(with_window(ARRIVAL_WINDOW)))
        .max_incoming(INCOMING)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL)
        // A client that changes networks keeps its link.
        .migration(true);
}

fn with_window(window: VarInt) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .receive_window(window)
        .stream_receive_window(STREAM_WINDOW)
        .max_concurrent_bidi_streams(STREAMS)
        .max_concurrent_uni_streams(STREAMS)
        .send_window(SEND_WINDOW)
        .max_idle_timeout(Some(IdleTimeout::from(IDLE)))
        .keep_alive_interval(Some(KEEP_ALIVE))
        // Unused, so not offered.
        .datagram_receive_buffer_size(None);
    config
}
