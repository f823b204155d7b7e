//! Idle connections to targets, of one thread.

use std::cell::RefCell;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::limits::IDLE_UPSTREAM_MAX;

/// Connections by target; the one that was used last is taken first.
#[derive(Debug)]
pub(crate) struct Pool {
    idle: Vec<RefCell<Vec<Idle>>>,
    age_max: Duration,
}

#[derive(Debug)]
struct Idle {
    stream: TcpStream,
    since: Instant,
}

impl Pool {
    pub(crate) fn new(targets: usize, age_max: Duration) -> Pool {
        Pool {
            idle: (0..targets).map(|_| RefCell::default()).collect(),
            age_max,
        }
    }

    /// A connection that was open a moment ago.
    pub(crate) fn take(&self, target: usize) -> Option<TcpStream> {
        let mut idle = self.idle[target].borrow_mut();
        let last = idle.pop()?;
        if last.since.elapsed() > self.age_max {
            // Those below it are older.
            idle.clear();
            return None;
        }
        is_silent(&last.stream).then_some(last.stream)
    }

    /// Keeps a connection on which nothing is under way.
    pub(crate) fn give(&self, target: usize, stream: TcpStream) {
        let mut idle = self.idle[target].borrow_mut();
        if idle.len() < IDLE_UPSTREAM_MAX {
            let since = Instant::now();
            idle.push(Idle { stream, since });
        }
    }

    /// Closes what has grown too old.
    pub(crate) fn sweep(&self) {
        for idle in &self.idle {
            let mut idle = idle.borrow_mut();
            idle.retain(|idle| idle.since.elapsed() <= self.age_max);
        }
    }
}

/// Whether the runtime has seen neither bytes nor an end on this connection. It costs no
/// system call: after a read that did not fill its buffer nothing is known to be there.
fn is_silent(stream: &TcpStream) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    matches!(stream.poll_read_ready(&mut cx), Poll::Pending)
}
