//! Whose requests go first, so that nobody is served by much less than others who wait.
//!
//! Each tenant has a counter of the tokens that were spent on it, divided by its weight;
//! of those who wait, the one with the least goes first (the virtual token counter of
//! Sheng et al., "Fairness in serving large language models", OSDI 2024). Prompts count
//! when they are bound, without what is cached, and answers twice when they end. Who
//! comes back from having nothing to ask for is lifted to the least of those who wait:
//! what was not used is not saved up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mlmesh_strategy::{Class, TargetId, TenantId};

/// Tenants that are told apart; those whose numbers are the same below it share.
pub const TENANTS_MAX: usize = 1_024;
/// What a token of an answer counts, in tokens of a prompt.
const ANSWER_WEIGHT: u64 = 2;
/// The weight of a tenant of which nothing was said.
pub(crate) const WEIGHT: u32 = 1_000;

/// What was spent on tenants and is not in the queue's accounts yet: no lock is needed to
/// write it down.
#[derive(Debug)]
pub(crate) struct Meters {
    slots: Box<[Meter]>,
}

#[derive(Debug)]
struct Meter {
    owed: AtomicU64,
    weight: AtomicU32,
}

impl Default for Meters {
    fn default() -> Self {
        let meter = |_| Meter {
            owed: AtomicU64::new(0),
            weight: AtomicU32::new(WEIGHT),
        };
        Self {
            slots: (0..TENANTS_MAX).map(meter).collect(),
        }
    }
}

impl Meters {
    pub(crate) fn weigh(&self, tenant: TenantId, weight: u32) {
        let meter = self.slot(tenant);
        meter.weight.store(weight.max(1), Ordering::Relaxed);
    }

    pub(crate) fn prompt(&self, tenant: TenantId, tokens: u64) {
        let meter = self.slot(tenant);
        // A prompt that is cached as a whole is work, too.
        let tokens = tokens.max(1).saturating_mul(u64::from(WEIGHT));
        let weight = u64::from(meter.weight.load(Ordering::Relaxed));
        // In thousandths, so that a heavy weight does not make a short prompt free.
        let owed = tokens.saturating_mul(1_000) / weight;
        meter.owed.fetch_add(owed, Ordering::Relaxed);
    }

    pub(crate) fn answer(&self, tenant: TenantId, tokens: u64) {
        if tokens > 0 {
            self.prompt(tenant, tokens.saturating_mul(ANSWER_WEIGHT));
        }
    }

    fn take(&self, tenant: TenantId) -> u64 {
        let owed = &self.slot(tenant).owed;
        match owed.load(Ordering::Relaxed) {
            0 => 0,
            _ => owed.swap(0, Ordering::Relaxed),
        }
    }

    fn slot(&self, tenant: TenantId) -> &Meter {
        &self.slots[shared(tenant).index()]
    }
}

/// The tenant whose account it is.
pub(crate) const fn shared(tenant: TenantId) -> TenantId {
    TenantId(tenant.0 % TENANTS_MAX as u16)
}

/// Where somebody stands: the line of a target, or the common one, and the class.
pub(crate) type Standing = (Option<TargetId>, Class);

/// The accounts of a queue.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    accounts: HashMap<TenantId, Account>,
    /// Counters of those who wait.
    waiting: BTreeSet<(u64, TenantId)>,
    /// Of who was the last to have nothing that waits.
    last: u64,
}

#[derive(Debug, Default)]
struct Account {
    counter: u64,
    requests: usize,
    /// How many requests stand where.
    standing: BTreeMap<Standing, usize>,
}

impl Accounts {
    pub(crate) fn counter(&self, tenant: TenantId) -> u64 {
        let account = self.accounts.get(&tenant);
        account.map_or(0, |account| account.counter)
    }

    /// A request of the tenant's begins to wait.
    pub(crate) fn enter(&mut self, tenant: TenantId, meters: &Meters) {
        let account = self.accounts.entry(tenant).or_default();
        account.requests += 1;
        if account.requests > 1 {
            return;
        }
        let least = self.waiting.first().map_or(self.last, |(least, _)| *least);
        account.counter = account.counter.saturating_add(meters.take(tenant));
        account.counter = account.counter.max(least);
        self.waiting.insert((account.counter, tenant));
    }

    /// A request of the tenant's waits no more.
    pub(crate) fn exit(&mut self, tenant: TenantId) {
        let Some(account) = self.accounts.get_mut(&tenant) else {
            return;
        };
        account.requests = account.requests.saturating_sub(1);
        if account.requests == 0 {
            self.waiting.remove(&(account.counter, tenant));
            self.last = account.counter;
        }
    }

    pub(crate) fn stand(&mut self, tenant: TenantId, standing: Standing) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            *account.standing.entry(standing).or_default() += 1;
        }
    }

    pub(crate) fn leave(&mut self, tenant: TenantId, standing: Standing) {
        let Some(account) = self.accounts.get_mut(&tenant) else {
            return;
        };
        if let Some(count) = account.standing.get_mut(&standing) {
            *count -= 1;
            if *count == 0 {
                account.standing.remove(&standing);
            }
        }
    }

    /// Takes over what was spent on a tenant: where it stands, with the counter before
    /// and after; nothing if nothing was.
    pub(crate) fn settle(
        &mut self,
        tenant: TenantId,
        meters: &Meters,
    ) -> Option<(u64, u64, Vec<Standing>)> {
        let owed = meters.take(tenant);
        if owed == 0 {
            return None;
        }
        let account = self.accounts.entry(tenant).or_default();
        let before = account.counter;
        account.counter = before.saturating_add(owed);
        if self.waiting.remove(&(before, tenant)) {
            self.waiting.insert((account.counter, tenant));
        }
        let standing = account.standing.keys().copied().collect();
        Some((before, account.counter, standing))
    }
}
