//! Whether an attempt that failed may be made again elsewhere, and when one has failed.
//!
//! A request has not started as long as no byte of a response was relayed. Until then it
//! goes elsewhere if that cannot do anything twice, within a budget: retries of all
//! clients together stay a share of their requests, so that targets that fail are not
//! buried under what they failed at.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::allowance::Allowance;

/// What is known of a request's repetition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repeatable {
    /// Its method may be repeated (RFC 9110, section 9.2.2), or it changes nothing.
    pub idempotent: bool,
    /// It bears a key by which the target knows it again.
    pub keyed: bool,
    /// Its route's setting says that its generation leaves no state behind.
    pub hedgeable: bool,
}

/// How far an attempt has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// No byte of it was sent to the target.
    NotSent,
    /// Some were, and none of a response was relayed.
    Sent,
    /// Bytes of a response were relayed.
    Relayed,
}

/// Why an attempt is not made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRetry {
    /// The client has a part of a response already.
    Started,
    /// The target may have done it, and it must not be done twice.
    NotRepeatable,
    /// Too many were made again lately.
    OverBudget,
}

impl Repeatable {
    /// Whether another attempt may be made, or made beside this one.
    pub const fn allows(self, progress: Progress) -> Result<(), NoRetry> {
        match progress {
            Progress::Relayed => Err(NoRetry::Started),
            Progress::NotSent => Ok(()),
            Progress::Sent if self.idempotent || self.keyed || self.hedgeable => Ok(()),
            Progress::Sent => Err(NoRetry::NotRepeatable),
        }
    }
}

/// Retries of all requests together: one for each ten requests, and a few a second
/// beside that, so that a gateway with little to do can retry as well.
#[derive(Debug)]
pub struct RetryBudget {
    share: Share,
    floor: Allowance,
}

/// One retry for so many requests.
const REQUESTS_A_RETRY: u64 = 10;
/// Retries that may be saved up.
const SAVED_MAX: u64 = 100;
/// Beside the share.
const FLOOR_PER_MINUTE: u64 = 60;
const FLOOR_BURST: u64 = 10;

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            share: Share::new(REQUESTS_A_RETRY, SAVED_MAX),
            floor: Allowance::per_minute(FLOOR_PER_MINUTE, FLOOR_BURST),
        }
    }
}

impl RetryBudget {
    /// A request came.
    pub fn request(&self) {
        self.share.deposit();
    }

    /// Takes one retry out, if a request may be made again at all.
    pub fn take(
        &self,
        now_us: u64,
        repeatable: Repeatable,
        progress: Progress,
    ) -> Result<(), NoRetry> {
        repeatable.allows(progress)?;
        if self.share.withdraw() || self.floor.take(now_us, 1).is_ok() {
            return Ok(());
        }
        Err(NoRetry::OverBudget)
    }
}

/// One of so many, saved up to a limit.
#[derive(Debug)]
pub(crate) struct Share {
    /// In requests.
    balance: AtomicU64,
    price: u64,
    balance_max: u64,
}

impl Share {
    pub(crate) const fn new(price: u64, saved_max: u64) -> Self {
        Self {
            balance: AtomicU64::new(0),
            price,
            balance_max: price * saved_max,
        }
    }

    pub(crate) fn deposit(&self) {
        // Full is the usual state, and then nothing is written.
        if self.balance.load(Ordering::Relaxed) < self.balance_max {
            self.balance.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn withdraw(&self) -> bool {
        let less = |balance: u64| balance.checked_sub(self.price);
        self.balance
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
}

/// A target that sends no token for so long has stalled: three times what was predicted,
/// and at least three seconds.
#[must_use]
pub const fn stalled_after_us(predicted_us: u64) -> u64 {
    let thrice = predicted_us.saturating_mul(3);
    if thrice > STALL_US_MIN {
        thrice
    } else {
        STALL_US_MIN
    }
}

const STALL_US_MIN: u64 = 3_000_000;
