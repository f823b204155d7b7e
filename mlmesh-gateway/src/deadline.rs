//! One timer for a connection. Moving the deadline costs a clock reading; the timer
//! itself is only touched when a deadline comes before the moment it is set to.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// The moment at which what is waited for is given up.
#[derive(Debug)]
pub(crate) struct Deadline {
    sleep: Pin<Box<Sleep>>,
    at: Instant,
}

impl Deadline {
    pub(crate) fn after(wait: Duration) -> Deadline {
        let at = Instant::now() + wait;
        Deadline {
            sleep: Box::pin(sleep_until(at)),
            at,
        }
    }

    /// Moves the deadline.
    pub(crate) fn restart(&mut self, wait: Duration) {
        self.at = Instant::now() + wait;
        if self.at < self.sleep.deadline() {
            self.sleep.as_mut().reset(self.at);
        }
    }

    /// Ready when the deadline has passed.
    pub(crate) fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            if self.sleep.deadline() >= self.at {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.at);
        }
    }
}
