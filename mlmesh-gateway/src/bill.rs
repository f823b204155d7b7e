//! What a tenant's request costs: taken from its limits by an estimate before the request
//! goes anywhere, put right at its end, and told to whoever keeps the usage.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

use memchr::memmem;
use tokio::time::Instant;

use crate::brain::Wish;
use crate::keys::{Limited, Tenant};
use crate::refusal::Refusal;
use crate::signals::SnapshotCell;
use crate::usage::Usage;

/// Tokens of an answer whose request names no bound, until it has ended.
const ANSWER_TOKENS: u64 = 256;

/// One ended request, for the usage log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// Whose key it was.
    pub tenant: String,
    /// The model that was asked for.
    pub model: Option<String>,
    /// As the engine counts them; `None` if it did not say.
    pub prompt_tokens: Option<u64>,
    /// Of the prompt's: held before by the engine.
    pub cached_tokens: Option<u64>,
    /// As the engine counts them, or else events of the stream.
    pub answer_tokens: u64,
    /// Whether the engine has counted those.
    pub is_counted: bool,
    /// Of the response; 0 if there was none.
    pub status: u16,
    /// From the whole request to the end of the response.
    pub took_ms: u64,
}

/// Where ended requests are told. Nobody waits for room: what finds none is counted.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) log: Option<SyncSender<Used>>,
    pub(crate) untold: AtomicU64,
}

/// A request that was taken from its tenant's limits; settled when this is dropped.
#[derive(Debug)]
pub(crate) struct Bill {
    tenant: Arc<Tenant>,
    ledger: Arc<Ledger>,
    clock: SnapshotCell,
    model: Option<String>,
    began: Instant,
    estimated: u64,
    events: u64,
    usage: Usage,
    status: u16,
}

impl Bill {
    /// Takes a request from the tenant's limits.
    pub(crate) fn open(
        tenant: &Arc<Tenant>,
        ledger: &Arc<Ledger>,
        clock: &SnapshotCell,
        wish: &Wish,
    ) -> Result<Bill, Refusal> {
        let answer_tokens = wish.answer_tokens_max.unwrap_or(ANSWER_TOKENS);
        let estimated = wish.ask.prompt_tokens.saturating_add(answer_tokens);
        tenant.admit(clock.now_us(), estimated).map_err(|over| {
            let seconds = over.retry_after_us.div_ceil(1_000_000);
            Refusal::OverLimit {
                is_tokens: over.what == Limited::Tokens,
                retry_after_s: u32::try_from(seconds).unwrap_or(u32::MAX),
            }
        })?;
        Ok(Bill {
            tenant: Arc::clone(tenant),
            ledger: Arc::clone(ledger),
            clock: clock.clone(),
            model: wish.model.clone(),
            began: Instant::now(),
            estimated,
            events: 0,
            usage: Usage::default(),
            status: 0,
        })
    }

    /// A piece of a response's body has come.
    pub(crate) fn follow(&mut self, status: u16, piece: &[u8]) {
        self.status = status;
        if (200..300).contains(&status) {
            self.usage.follow(piece);
            self.events += memmem::find_iter(piece, b"data:").count() as u64;
        }
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        // A stream ends with an event that has no token.
        let events = self.events.saturating_sub(1);
        let answer_tokens = self.usage.answer_tokens.unwrap_or(events);
        let has_answer = (200..300).contains(&self.status);
        let used = match (has_answer, self.usage.prompt_tokens) {
            (false, _) => 0,
            (true, Some(prompt_tokens)) => prompt_tokens.saturating_add(answer_tokens),
            // Nobody has counted better.
            (true, None) => self.estimated,
        };
        self.tenant
            .settle(self.clock.now_us(), self.estimated, used);
        let Some(log) = &self.ledger.log else { return };
        let told = log.try_send(Used {
            tenant: self.tenant.name.clone(),
            model: self.model.take(),
            prompt_tokens: self.usage.prompt_tokens,
            cached_tokens: self.usage.cached_tokens,
            answer_tokens,
            is_counted: self.usage.answer_tokens.is_some(),
            status: self.status,
            took_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
        if told.is_err() {
            self.ledger.untold.fetch_add(1, Ordering::Relaxed);
        }
    }
}
