//! Frames on a stream: a length (u32, little-endian, not counting itself) and that many bytes.
//!
//! What the bytes mean is not decided here. A length is believed only as far as bytes have arrived: memory grows with
//! what was received, never with what was announced.

use quinn::{RecvStream, SendStream};

use super::error::NetError;
use super::refusal::Ends;

/// The length prefix.
const PREFIX: usize = 4;

/// How much is asked of the stream at a time, beyond what is there already.
const READ_BYTES: usize = 16 << 10;

/// An idle reader or writer keeps no more than this.
const KEPT_BYTES: usize = 64 << 10;

/// The receiving half of a stream, read frame by frame.
///
/// Dropping it tells the peer to stop sending.
pub struct FrameReader {
    stream: RecvStream,
    ends: Ends,
    /// `buffer[start..end]` has arrived and was not yet handed out; the rest is room.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl FrameReader {
    pub(super) fn new(stream: RecvStream, ends: Ends) -> Self {
        Self { stream, ends, buffer: Vec::new(), start: 0, end: 0 }
    }

    /// Waits for the next frame and returns its body; `None` when the peer has finished the stream after a whole frame.
    ///
    /// `max` bounds the body, in bytes; the length itself is not counted. It may differ from call to call.
    ///
    /// # Errors
    /// [`NetError::FrameTooLong`] as soon as the length is there, [`NetError::TruncatedFrame`] when the stream ends
    /// within a frame, and whatever ended the stream or the link. After an error the stream is of no more use.
    ///
    /// # Cancel safety
    /// Safe: what has arrived stays in the reader, and the next call goes on from there.
    ///
    /// # Cost
    /// Memory is at most twice what has arrived and not been handed out, and 16 KiB. One copy into the buffer, one out.
    pub async fn read(&mut self, max: usize) -> Result<Option<Vec<u8>>, NetError> {
        loop {
            if let Some(body) = self.take_frame(max)? {
                return Ok(Some(body));
            }
            self.make_room();
            match self.stream.read(&mut self.buffer[self.end..]).await {
                Ok(Some(bytes)) => self.end += bytes,
                Ok(None) => return self.finished().map(|()| None),
                Err(e) => return Err(self.ends.explain_read(&e)),
            }
        }
    }

    /// Tells the peer to stop sending, with the number `code`.
    pub fn stop(&mut self, code: u32) {
        // It fails only when the stream is over anyway.
        let _ = self.stream.stop(code.into());
    }

    /// Takes one frame out of what has arrived, if it is whole.
    fn take_frame(&mut self, max: usize) -> Result<Option<Vec<u8>>, NetError> {
        let arrived = &self.buffer[self.start..self.end];
        let Some((prefix, rest)) = arrived.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
        if length > max {
            return Err(NetError::FrameTooLong { length, max });
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let body = body.to_vec();
        self.start += PREFIX + length;
        Ok(Some(body))
    }

    /// Makes sure that at least a few packets fit behind what has arrived.
    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > KEPT_BYTES {
                self.buffer = Vec::new();
            }
        }
        if self.buffer.len() - self.end >= READ_BYTES / 2 {
            return;
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let wanted = self.end + READ_BYTES;
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
    }

    /// Judges the end of the stream: between frames it is an end, within one it is a fault.
    fn finished(&self) -> Result<(), NetError> {
        let arrived = &self.buffer[self.start..self.end];
        match arrived.split_first_chunk::<PREFIX>() {
            None if arrived.is_empty() => Ok(()),
            None => Err(NetError::TruncatedFrame { got: arrived.len(), expected: PREFIX }),
            Some((prefix, rest)) => {
                let expected = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
                Err(NetError::TruncatedFrame { got: rest.len(), expected })
            }
        }
    }
}

impl std::fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrameReader({}, {} bytes waiting)", self.stream.id(), self.end - self.start)
    }
}

/// The sending half of a stream, written frame by frame.
///
/// Frames are collected with [`Self::push`] and leave together with [`Self::flush`]. Dropping the writer finishes the
/// stream; frames that were not flushed are lost.
pub struct FrameWriter {
    stream: SendStream,
    ends: Ends,
    max: usize,
    /// `buffer[written..]` has still to be handed to the stream.
    buffer: Vec<u8>,
    written: usize,
}

impl FrameWriter {
    /// `max` bounds the body of a frame.
    pub(super) fn new(stream: SendStream, ends: Ends, max: usize) -> Self {
        Self { stream, ends, max, buffer: Vec::new(), written: 0 }
    }

    /// Adds a frame with `body` to what the next [`Self::flush`] sends.
    ///
    /// # Errors
    /// [`NetError::FrameTooLong`] when `body` is longer than the peer would read. Nothing was added then.
    pub fn push(&mut self, body: &[u8]) -> Result<(), NetError> {
        let too_long = NetError::FrameTooLong { length: body.len(), max: self.max };
        let Some(length) = u32::try_from(body.len()).ok().filter(|_| body.len() <= self.max) else {
            return Err(too_long);
        };
        self.buffer.extend_from_slice(&length.to_le_bytes());
        self.buffer.extend_from_slice(body);
        Ok(())
    }

    /// Bytes that were pushed and not yet handed to the stream.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.buffer.len() - self.written
    }

    /// Hands everything that was pushed to the stream, waiting while the peer does not keep up.
    ///
    /// # Errors
    /// Whatever ended the stream or the link. After an error the stream is of no more use.
    ///
    /// # Cancel safety
    /// Safe: what was not handed over stays in the writer, and the next call goes on from there.
    pub async fn flush(&mut self) -> Result<(), NetError> {
        while self.written < self.buffer.len() {
            match self.stream.write(&self.buffer[self.written..]).await {
                Ok(bytes) => self.written += bytes,
                Err(e) => return Err(self.ends.explain_write(&e)),
            }
        }
        self.written = 0;
        self.buffer.clear();
        self.buffer.shrink_to(KEPT_BYTES);
        Ok(())
    }

    /// Pushes one frame and flushes.
    ///
    /// # Errors
    /// As [`Self::push`] and [`Self::flush`].
    ///
    /// # Cancel safety
    /// Not safe to repeat: the frame is pushed at once, so a repeated call sends it twice.
    pub async fn send(&mut self, body: &[u8]) -> Result<(), NetError> {
        self.push(body)?;
        self.flush().await
    }

    /// Flushes and says that nothing follows.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub async fn finish(&mut self) -> Result<(), NetError> {
        self.flush().await?;
        self.stream.finish().map_err(|_| NetError::StreamClosed)
    }

    /// Waits until the peer's transport has everything of a finished stream. Closing the link before loses the rest.
    ///
    /// # Errors
    /// [`NetError::StreamReset`] when the peer did not want the rest, or whatever ended the link.
    pub async fn delivered(&mut self) -> Result<(), NetError> {
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(NetError::StreamReset { code: code.into_inner() }),
            Err(quinn::StoppedError::ConnectionLost(e)) => Err(self.ends.explain(&e)),
            Err(quinn::StoppedError::ZeroRttRejected) => Err(NetError::StreamClosed),
        }
    }

    /// Ranks this stream against the link's others: when the link is full, the higher number goes first. A stream
    /// begins with 0.
    pub fn rank(&mut self, rank: i32) {
        // It fails only when the stream is over anyway.
        let _ = self.stream.set_priority(rank);
    }

    /// Gives the stream up, with the number `code`. What was not sent is lost.
    pub fn reset(&mut self, code: u32) {
        // It fails only when the stream is over anyway.
        let _ = self.stream.reset(code.into());
    }
}

impl std::fmt::Debug for FrameWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrameWriter({}, {} bytes waiting)", self.stream.id(), self.waiting())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::link::Link;
    use crate::net::link::tests::linked;

    /// Writes `bytes` as they are on a stream of `link` and finishes it.
    async fn write_raw(link: &Link, bytes: &[u8]) {
        let mut stream = link.connection().open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.finish().unwrap();
    }

    fn frame(body: &[u8]) -> Vec<u8> {
        [&u32::try_from(body.len()).unwrap().to_le_bytes(), body].concat()
    }

    #[tokio::test]
    async fn frames_arrive_in_order_and_whole_whatever_their_size() {
        let pair = linked().await;
        let bodies: Vec<Vec<u8>> = [0, 1, 3, 4, 5, READ_BYTES - 4, READ_BYTES, 1 << 20, 7, 0]
            .map(|length: usize| vec![length as u8; length])
            .to_vec();
        let send = async {
            let mut writer = pair.dialled.open_uni().await.unwrap();
            for body in &bodies {
                writer.push(body).unwrap();
            }
            assert_eq!(writer.waiting(), bodies.iter().map(|body| body.len() + PREFIX).sum::<usize>());
            writer.finish().await.unwrap();
            assert_eq!(writer.waiting(), 0);
            writer.delivered().await.unwrap();
        };
        let receive = async {
            let mut reader = pair.accepted.accept_uni().await.unwrap();
            for body in &bodies {
                assert!(reader.read(1 << 20).await.unwrap().as_ref() == Some(body), "the frame of {}", body.len());
            }
            assert_eq!(reader.read(1 << 20).await.unwrap(), None);
            assert!(reader.buffer.len() <= KEPT_BYTES, "a large frame's room is given back");
        };
        tokio::join!(send, receive);
    }

    #[tokio::test]
    async fn a_stream_that_ends_within_a_frame_says_how_much_is_missing() {
        let pair = linked().await;
        for (bytes, missing) in [
            (frame(b"whole")[..2].to_vec(), (2, PREFIX)),
            (frame(b"whole")[..PREFIX].to_vec(), (0, 5)),
            (frame(b"whole")[..PREFIX + 4].to_vec(), (4, 5)),
            ([frame(b"whole"), frame(b"whole")[..1].to_vec()].concat(), (1, PREFIX)),
        ] {
            write_raw(&pair.dialled, &bytes).await;
            let mut reader = pair.accepted.accept_uni().await.unwrap();
            let error = loop {
                match reader.read(100).await {
                    Ok(body) => assert_eq!(body.unwrap(), b"whole"),
                    Err(error) => break error,
                }
            };
            assert!(
                matches!(error, NetError::TruncatedFrame { got, expected } if (got, expected) == missing),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_frame_beyond_the_bound_is_refused_by_its_length_alone() {
        let pair = linked().await;
        for (length, max) in [(101, 100), (u32::MAX, 1 << 20)] {
            write_raw(&pair.dialled, &[&length.to_le_bytes()[..], b"the rest never comes"].concat()).await;
            let mut reader = pair.accepted.accept_uni().await.unwrap();
            let error = reader.read(max).await.unwrap_err();
            assert!(
                matches!(error, NetError::FrameTooLong { length: l, max: m } if (l, m) == (length as usize, max)),
                "{error}"
            );
            assert!(reader.buffer.capacity() <= 2 * READ_BYTES, "nothing was allocated for it");
        }
        let mut writer = pair.dialled.open_uni().await.unwrap();
        assert!(matches!(writer.push(&vec![0; (1 << 20) + 1]), Err(NetError::FrameTooLong { .. })));
        assert_eq!(writer.waiting(), 0);
    }

    #[tokio::test]
    async fn the_bound_may_rise_once_the_peer_is_known() {
        let pair = linked().await;
        write_raw(&pair.dialled, &[frame(&[1; 10]), frame(&[2; 1000])].concat()).await;
        let mut reader = pair.accepted.accept_uni().await.unwrap();
        assert_eq!(reader.read(10).await.unwrap().unwrap().len(), 10);
        assert_eq!(reader.read(1000).await.unwrap().unwrap().len(), 1000);
    }

    #[tokio::test]
    async fn a_cancelled_read_loses_nothing() {
        let pair = linked().await;
        let mut stream = pair.dialled.connection().open_uni().await.unwrap();
        let bytes = frame(b"in pieces");
        stream.write_all(&bytes[..6]).await.unwrap();
        let mut reader = pair.accepted.accept_uni().await.unwrap();
        // Polls the read until the first piece is in the buffer, then drops it.
        while reader.end < 6 {
            tokio::select! {
                biased;
                _ = reader.read(100) => panic!("the frame is not whole"),
                () = tokio::task::yield_now() => {}
            }
        }
        stream.write_all(&bytes[6..]).await.unwrap();
        assert_eq!(reader.read(100).await.unwrap().unwrap(), b"in pieces");
    }

    #[tokio::test]
    async fn a_stream_that_was_given_up_is_told_from_one_that_ended() {
        let pair = linked().await;
        let mut writer = pair.dialled.open_uni().await.unwrap();
        writer.send(b"one").await.unwrap();
        let mut reader = pair.accepted.accept_uni().await.unwrap();
        assert_eq!(reader.read(100).await.unwrap().unwrap(), b"one");
        writer.reset(7);
        assert!(matches!(reader.read(100).await, Err(NetError::StreamReset { code: 7 })));
    }
}
