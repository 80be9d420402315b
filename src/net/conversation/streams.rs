//! The tasks of a conversation's streams: one reads each that comes, one writes each that goes.

use tokio::sync::{mpsc, oneshot};

use super::{Conversation, Event, ToWrite};
use crate::limits::queues;
use crate::net::error::NetError;
use crate::net::frames::{FrameReader, FrameWriter};
use crate::net::link::Link;
use crate::sync::{Channel, Opened, Side};

/// A stream that the peer opened. Where streams are counted, the next is accepted when this one was taken.
pub(super) struct Begun {
    pub(super) channel: Channel,
    pub(super) writer: Option<FrameWriter>,
    pub(super) reader: FrameReader,
    pub(super) go_on: oneshot::Sender<()>,
}

impl Conversation {
    /// Accepts the peer's streams and gives each its number.
    pub(super) fn accept_streams(&mut self) {
        let (link, events) = (self.link.clone(), self.events.clone());
        let is_counted = self.purse.is_counted();
        self.tasks.spawn(async move {
            let mut numbers = 0u64..;
            loop {
                let Some(number) = numbers.next() else { return };
                let opened = Opened { by: Side::Peer, number };
                let (go_on, taken) = oneshot::channel();
                let accepted = tokio::select! {
                    both = link.accept_bi() => {
                        both.map(|(writer, reader)| (Channel::Document(opened), Some(writer), reader))
                    }
                    one = link.accept_uni() => one.map(|reader| (Channel::Stream(opened), None, reader)),
                };
                let failed = accepted.is_err();
                let event = match accepted {
                    Ok((channel, writer, reader)) => Event::Begun(Begun { channel, writer, reader, go_on }),
                    Err(error) => Event::Failed(error),
                };
                if events.send(event).await.is_err() || failed {
                    return;
                }
                if is_counted {
                    let _ = taken.await;
                }
            }
        });
    }

    pub(super) fn read_channel(&mut self, channel: Channel, mut reader: FrameReader) {
        let events = self.events.clone();
        let limits = self.database.limits();
        let (mut max, rest) = (limits.hello_bytes_max, limits.frame_bytes_max);
        if channel != Channel::Control {
            max = rest;
        }
        self.tasks.spawn(async move {
            loop {
                let event = match reader.read(max).await {
                    Ok(Some(frame)) => {
                        let (go_on, taken) = oneshot::channel();
                        if events.send(Event::Frame(channel, frame, go_on)).await.is_err() {
                            return;
                        }
                        // Dropped unanswered when the first frame was handed in by other means: read on.
                        let _ = taken.await;
                        max = rest;
                        continue;
                    }
                    Ok(None) | Err(NetError::StreamReset { .. }) => Event::ReadEnd(channel),
                    Err(error) => Event::Failed(error),
                };
                let _ = events.send(event).await;
                return;
            }
        });
    }

    /// Starts the task that writes a channel; without a writer it opens the stream first.
    pub(super) fn write_channel(&mut self, channel: Channel, writer: Option<FrameWriter>) {
        let (sender, mut frames) = mpsc::channel(queues::STREAM_FRAMES);
        self.writers.insert(channel, sender);
        let (link, events) = (self.link.clone(), self.events.clone());
        self.tasks.spawn(async move {
            let mut writer = match writer {
                Some(writer) => writer,
                None => match open(&link, channel, &events).await {
                    Ok(writer) => writer,
                    Err(error) => {
                        let _ = events.send(Event::Failed(error)).await;
                        return;
                    }
                },
            };
            if channel == Channel::Control {
                // A keystroke does not wait behind a document.
                writer.rank(1);
            }
            while let Some(ToWrite::Frame { frame, finish }) = frames.recv().await {
                let sent = async {
                    if !frame.is_empty() {
                        writer.send(&frame).await?;
                    }
                    if finish { writer.finish().await } else { Ok(()) }
                };
                let event = match sent.await {
                    Ok(()) => Event::Sent(channel),
                    Err(NetError::StreamReset { .. } | NetError::StreamClosed) => Event::WriteEnd(channel),
                    Err(error) => Event::Failed(error),
                };
                let over = finish || !matches!(event, Event::Sent(_));
                if events.send(event).await.is_err() || over {
                    return;
                }
            }
            writer.reset(0);
        });
    }
}

async fn open(link: &Link, channel: Channel, events: &mpsc::Sender<Event>) -> Result<FrameWriter, NetError> {
    if let Channel::Stream(_) = channel {
        return link.open_uni().await;
    }
    let (writer, reader) = link.open_bi().await?;
    let _ = events.send(Event::OpenedOurs(channel, reader)).await;
    Ok(writer)
}
