//! Ends a connection whose client may still be sending.
//!
//! A socket that is closed with bytes unread resets the connection, and the reset may
//! overtake the last response. So the gateway says that it is done and reads on for a
//! while (RFC 9112, section 9.6).

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::buffer::{Buffer, Spare};
use crate::deadline::Deadline;
use crate::limits::LINGER_BYTES_MAX;

/// Closes for writing and reads on until the client closes, too, or it takes too long.
pub(crate) async fn linger(
    client: &mut TcpStream,
    input: &mut Buffer,
    deadline: &mut Deadline,
    wait: Duration,
    spare: &Spare,
) {
    if client.shutdown().await.is_err() {
        return;
    }
    deadline.restart(wait);
    let mut left = LINGER_BYTES_MAX;
    poll_fn(|cx| {
        while left > 0 {
            input.clear(spare);
            match receive(client, input, spare, cx) {
                Poll::Ready(Ok(bytes)) if bytes > 0 => left = left.saturating_sub(bytes),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return deadline.poll_passed(cx),
            }
        }
        Poll::Ready(())
    })
    .await;
}

/// Reads once into a buffer that has room. Nothing at all means that the peer is done.
pub(crate) fn receive(
    stream: &mut TcpStream,
    buffer: &mut Buffer,
    spare: &Spare,
    cx: &mut Context<'_>,
) -> Poll<std::io::Result<usize>> {
    let mut room = ReadBuf::new(buffer.room(spare));
    let read = Pin::new(stream).poll_read(cx, &mut room);
    let bytes = room.filled().len();
    buffer.received(bytes);
    read.map_ok(|()| bytes)
}
