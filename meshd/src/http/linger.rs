//! Closing a connection without losing the last answer.
//!
//! A socket that is closed with unread bytes in it is reset, and the reset throws
//! away what the other side has not read yet (RFC 9112 §9.6). So the writing side is
//! closed first, and what still comes in is read and dropped, within bounds.

use std::os::fd::AsFd;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// How long a closed connection is read on.
const LINGER_TIME: Duration = Duration::from_secs(1);
/// How many bytes are dropped before it is reset after all.
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// A second handle on a connection's socket, which keeps it open.
#[derive(Debug)]
pub(crate) struct Lingering(std::net::TcpStream);

impl Lingering {
    /// `None` when the process has no descriptor left; then nothing lingers.
    pub(crate) fn of(stream: &TcpStream) -> Option<Self> {
        let spare = stream.as_fd().try_clone_to_owned().ok()?;
        Some(Self(std::net::TcpStream::from(spare)))
    }

    /// Closes for writing and reads until the other side has closed too.
    pub(crate) async fn close(self) {
        let _ = self.0.shutdown(std::net::Shutdown::Write);
        let Ok(mut stream) = TcpStream::from_std(self.0) else {
            return;
        };
        let mut dropped = 0;
        let mut bytes = vec![0_u8; 16 * 1024];
        let drain = async {
            while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                dropped += count;
                if dropped > LINGER_BYTES_MAX {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(LINGER_TIME, drain).await;
    }
}
