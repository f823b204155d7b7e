//! The next instant as a descriptor of its own.
//!
//! `epoll_wait` counts in milliseconds, and its finer sibling is not on every kernel;
//! a `timerfd` is as fine as the clock, on all of them, and no slack of the thread is
//! added to it. It is set only when the next instant is another one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::error::BenchError;

pub(super) struct Timer {
    descriptor: OwnedFd,
    set_for_us: Option<u64>,
}

impl Timer {
    pub(super) fn new() -> Result<Self, BenchError> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(BenchError::system("make a timer"))?;
        Ok(Self {
            descriptor,
            set_for_us: None,
        })
    }

    /// Has the descriptor become readable at `at_us`, or never. An instant that has
    /// come already makes it readable at once.
    pub(super) fn set(&mut self, at_us: Option<u64>, now_us: u64) -> Result<(), BenchError> {
        if at_us == self.set_for_us {
            return Ok(());
        }
        self.set_for_us = at_us;
        let delay = at_us.map_or(Duration::ZERO, |at_us| {
            // Zero would mean never.
            Duration::from_micros(at_us.saturating_sub(now_us)).max(Duration::from_nanos(1))
        });
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = Itimerspec {
            it_interval: zero,
            it_value: Timespec {
                tv_sec: delay.as_secs() as i64,
                tv_nsec: i64::from(delay.subsec_nanos()),
            },
        };
        timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &value)
            .map_err(BenchError::system("set a timer"))?;
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
