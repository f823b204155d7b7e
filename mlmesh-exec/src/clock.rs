//! The machine's clocks behind the [`Clock`] port.
//!
//! Records carry the calendar time, read through the C library so that tools
//! which shift it (libfaketime) are seen. Durations use the time since boot,
//! which no administrator sets and which goes on while the machine sleeps.

use std::time::{SystemTime, UNIX_EPOCH};

use mlmesh_model::{Clock, Micros};
use rustix::time::{ClockId, clock_gettime};

/// The clocks of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the clock that others read time through"
    )]
    fn now(&self) -> Micros {
        let now = SystemTime::now();
        let micros = match now.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
        };
        Micros(micros)
    }

    fn monotonic_us(&self) -> u64 {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let micros = u64::try_from(now.tv_nsec).unwrap_or(0) / 1000;
        seconds.saturating_mul(1_000_000).saturating_add(micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_and_is_of_this_century() {
        let first = SystemClock.monotonic_us();
        assert!(SystemClock.monotonic_us() >= first);
        assert!(SystemClock.now() > Micros(1_500_000_000_000_000));
    }
}
