//! Connections that are turned away before anything of them was read.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::api;
use crate::limits::quotas::{TOLD_AT_ONCE, TOLD_MS};
use crate::quota::Busy;

/// Bytes of a request that are read before it is answered.
const HEAD_BYTES: usize = 16 << 10;

/// Tells those who are turned away why, as far as that costs little: so many at a time, and the others are dropped.
#[derive(Clone)]
pub(super) struct Doorman(Arc<Semaphore>);

impl Doorman {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(TOLD_AT_ONCE)))
    }

    pub(super) fn turn_away(&self, mut stream: TcpStream, busy: Busy) {
        let Ok(permit) = self.0.clone().try_acquire_owned() else { return };
        tokio::spawn(async move {
            let _permit = permit;
            // Whoever takes longer is dropped.
            let _ = timeout(Duration::from_millis(TOLD_MS), tell(&mut stream, busy)).await;
        });
    }
}

async fn tell(stream: &mut TcpStream, busy: Busy) -> std::io::Result<()> {
    let (mut buffer, mut read) = (vec![0; 1 << 10], 0);
    let mut last = [0; 4];
    // A connection that is closed with something unread is reset, and the answer lost.
    while last != *b"\r\n\r\n" && read < HEAD_BYTES {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        read += count;
        for byte in &buffer[..count] {
            last = [last[1], last[2], last[3], *byte];
            if last == *b"\r\n\r\n" {
                break;
            }
        }
    }
    stream.write_all(api::busy_text(&busy).as_bytes()).await?;
    stream.shutdown().await?;
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}
