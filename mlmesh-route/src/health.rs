//! Which targets are sent nothing for what our own requests have met there.
//!
//! ```text
//!                five failures in a row (breaker)
//!            or half of a second's attempts, three at least (outlier)
//!   closed ───────────────────────────────────────────────► open, 1 s · 2^opens
//!     ▲                                                        │ its time has passed
//!     │  two probes that went well                             ▼
//!     └──────────────────────────────────────────────────── half open, one probe at a time
//!                                                              │ a probe that failed
//!                                                              └──► open, twice as long
//! ```
//!
//! The breaker counts connections that failed and answers of 5xx; the outlier's rule also
//! resets and stalls. Neither knows of time that a request waited with us. What engines
//! and GPUs say of themselves is in [`crate::fusion`]. No more than a share of the targets
//! is open at once: what comes then is counted and penalised, and goes on being used.
//!
//! An attempt that goes well at a target of which nothing bad was seen lately reads one
//! atomic; everything else takes that target's lock.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mlmesh_strategy::TargetId;

use crate::snapshot::Snapshot;

/// What came of one attempt at a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// It was answered.
    AttemptOk,
    /// No connection was made.
    ConnectFailed,
    /// It was answered by a status from 500 on.
    Status5xx,
    /// The connection ended in the middle.
    Reset,
    /// No token came for too long ([`crate::stalled_after_us`]).
    Stalled,
}

/// The settings of [`Health`].
#[derive(Debug, Clone, Copy)]
pub struct HealthSettings {
    /// Of so many percent of the targets at most nothing is used.
    pub open_percent_max: u32,
    /// So many failures in a row open the breaker.
    pub failures_max: u32,
    /// How long the first time is; each next one is twice as long, up to a minute.
    pub open_us: u64,
    /// What a target costs more when it has just come back; nothing by the end of its
    /// probation.
    pub penalty_us: u64,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self {
            open_percent_max: 50,
            failures_max: 5,
            open_us: 1_000_000,
            penalty_us: 1_000_000,
        }
    }
}

/// Where a target stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Circuit {
    /// It is used.
    #[default]
    Closed,
    /// It is not.
    Open {
        /// What for.
        rule: Rule,
        /// Until then.
        until_us: u64,
    },
    /// It is used for one attempt at a time.
    HalfOpen {
        /// One is under way.
        is_probed: bool,
        /// So many have gone well.
        successes: u32,
    },
}

/// The rules by which a target is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Failures in a row.
    Breaker,
    /// Most of what was tried within a second.
    Outlier,
    /// A probe that failed.
    Probe,
}

/// The health of a fixed number of targets.
#[derive(Debug)]
pub struct Health {
    settings: HealthSettings,
    targets: Box<[Slot]>,
    /// How many are open or half open.
    away: AtomicUsize,
    /// How many there are: those that may be used.
    present: AtomicUsize,
    /// Times that a target would have been opened and was not, since too many are.
    spared: AtomicU64,
}

#[derive(Debug, Default)]
struct Slot {
    /// Something bad was seen lately, so that what goes well counts, too.
    is_watched: AtomicBool,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    circuit: Circuit,
    /// Failures in a row that the breaker counts.
    failures: u32,
    /// When the second began of which the next two are.
    window_us: u64,
    bad: u32,
    good: u32,
    /// How often in a row it was opened.
    opens: u32,
    /// When it was closed, or spared.
    back_us: Option<u64>,
}

/// How long attempts are counted together.
const WINDOW_US: u64 = 1_000_000;
/// So many bad ones at least make an outlier.
const BAD_MIN: u32 = 3;
const OPEN_US_MAX: u64 = 60_000_000;
/// Probes that have to go well.
const PROBES: u32 = 2;
/// How long a target that has come back costs more, and remembers how often it was opened.
const PROBATION_US: u64 = 10_000_000;

impl Health {
    /// Targets of which nothing bad was seen.
    #[must_use]
    pub fn new(targets: u16, settings: HealthSettings) -> Self {
        Self {
            settings,
            targets: (0..targets).map(|_| Slot::default()).collect(),
            away: AtomicUsize::new(0),
            present: AtomicUsize::new(usize::from(targets)),
            spared: AtomicU64::new(0),
        }
    }

    /// Takes note of what came of an attempt. Says whether the snapshot has to be made
    /// anew. `chance` spreads how long targets stay away.
    pub fn told(&self, target: TargetId, evidence: Evidence, now_us: u64, chance: u64) -> bool {
        let Some(slot) = self.targets.get(target.index()) else {
            return false;
        };
        let is_ok = evidence == Evidence::AttemptOk;
        if is_ok && !slot.is_watched.load(Ordering::Relaxed) {
            return false;
        }
        let mut record = slot.lock();
        let before = (record.circuit, record.back_us);
        record.count(evidence, now_us);
        match record.circuit {
            Circuit::HalfOpen { successes, .. } if is_ok && successes + 1 >= PROBES => {
                self.close(&mut record, now_us);
            }
            Circuit::HalfOpen { successes, .. } if is_ok => {
                record.circuit = Circuit::HalfOpen {
                    is_probed: false,
                    successes: successes + 1,
                };
            }
            Circuit::HalfOpen { .. } => self.open(&mut record, Rule::Probe, now_us, chance),
            Circuit::Closed => {
                if let Some(rule) = record.broken(&self.settings) {
                    self.open_if_few(&mut record, rule, now_us, chance);
                }
            }
            // Attempts that were begun before.
            Circuit::Open { .. } => {}
        }
        let is_watched = record.circuit != Circuit::Closed || record.failures + record.bad > 0;
        slot.is_watched.store(is_watched, Ordering::Relaxed);
        (record.circuit, record.back_us) != before
    }

    /// An attempt goes there. Says whether the snapshot has to be made anew: a target
    /// that is half open has its probe now.
    pub fn begun(&self, target: TargetId) -> bool {
        let slot = self.targets.get(target.index());
        let Some(slot) = slot.filter(|slot| slot.is_watched.load(Ordering::Relaxed)) else {
            return false;
        };
        match &mut slot.lock().circuit {
            Circuit::HalfOpen { is_probed, .. } => !std::mem::replace(is_probed, true),
            Circuit::Closed | Circuit::Open { .. } => false,
        }
    }

    /// An attempt that says nothing has ended: its client has left, or we have.
    pub fn abandoned(&self, target: TargetId) -> bool {
        let Some(slot) = self.targets.get(target.index()) else {
            return false;
        };
        match &mut slot.lock().circuit {
            Circuit::HalfOpen { is_probed, .. } => std::mem::replace(is_probed, false),
            Circuit::Closed | Circuit::Open { .. } => false,
        }
    }

    /// Takes what is open out of a snapshot, and says when to come again: then another
    /// one may be probed.
    pub fn apply(&self, now_us: u64, snapshot: &mut Snapshot) -> Option<u64> {
        let usable = snapshot.targets.iter().filter(|target| target.usable);
        self.present.store(usable.count(), Ordering::Relaxed);
        let mut again_us: Option<u64> = None;
        for target in &mut snapshot.targets {
            let Some(slot) = self.targets.get(target.id.index()) else {
                continue;
            };
            let mut record = slot.lock();
            if let Circuit::Open { until_us, .. } = record.circuit {
                if until_us <= now_us {
                    record.circuit = Circuit::HalfOpen {
                        is_probed: false,
                        successes: 0,
                    };
                } else {
                    again_us = Some(again_us.map_or(until_us, |least| least.min(until_us)));
                }
            }
            target.usable &= match record.circuit {
                Circuit::Closed => true,
                Circuit::Open { .. } => false,
                Circuit::HalfOpen { is_probed, .. } => !is_probed,
            };
            let penalty_us = record.penalty_us(now_us, self.settings.penalty_us);
            target.penalty_us = target.penalty_us.saturating_add(penalty_us);
        }
        again_us
    }

    /// Where a target stands.
    #[must_use]
    pub fn circuit(&self, target: TargetId) -> Circuit {
        let slot = self.targets.get(target.index());
        slot.map_or(Circuit::Closed, |slot| slot.lock().circuit)
    }

    /// How many are not used, or for probes alone.
    #[must_use]
    pub fn away(&self) -> usize {
        self.away.load(Ordering::Relaxed)
    }

    /// How often a target goes on being used only because too many are not.
    #[must_use]
    pub fn spared(&self) -> u64 {
        self.spared.load(Ordering::Relaxed)
    }

    fn open_if_few(&self, record: &mut Record, rule: Rule, now_us: u64, chance: u64) {
        let present = self.present.load(Ordering::Relaxed);
        let away_max = present * self.settings.open_percent_max as usize / 100;
        let one_more = |away: usize| (away < away_max).then_some(away + 1);
        let counted = self
            .away
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        if counted.is_ok() {
            return self.open(record, rule, now_us, chance);
        }
        self.spared.fetch_add(1, Ordering::Relaxed);
        record.back_us = Some(now_us);
        record.forget();
    }

    fn open(&self, record: &mut Record, rule: Rule, now_us: u64, chance: u64) {
        // A target that has been back for long begins anew.
        let is_recent = |back_us| now_us.saturating_sub(back_us) < PROBATION_US;
        if rule != Rule::Probe && !record.back_us.is_some_and(is_recent) {
            record.opens = 0;
        }
        let open_us = self.settings.open_us << record.opens.min(6);
        let open_us = open_us.min(OPEN_US_MAX);
        // A fifth more or less, so that targets do not come back together.
        let spread_us = ((u128::from(chance) * u128::from(open_us * 2 / 5)) >> 64) as u64;
        record.opens = record.opens.saturating_add(1);
        record.circuit = Circuit::Open {
            rule,
            until_us: now_us + open_us - open_us / 5 + spread_us,
        };
        record.forget();
    }

    fn close(&self, record: &mut Record, now_us: u64) {
        record.circuit = Circuit::Closed;
        record.back_us = Some(now_us);
        record.forget();
        let less = |away: usize| Some(away.saturating_sub(1));
        // The closure always has a value, so there is no refusal to look at.
        let _ = self
            .away
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn count(&mut self, evidence: Evidence, now_us: u64) {
        if now_us.saturating_sub(self.window_us) >= WINDOW_US {
            (self.window_us, self.bad, self.good) = (now_us, 0, 0);
        }
        match evidence {
            Evidence::AttemptOk => {
                self.good += 1;
                self.failures = 0;
            }
            Evidence::ConnectFailed | Evidence::Status5xx => {
                self.bad += 1;
                self.failures += 1;
            }
            Evidence::Reset | Evidence::Stalled => self.bad += 1,
        }
    }

    fn broken(&self, settings: &HealthSettings) -> Option<Rule> {
        if self.failures >= settings.failures_max {
            Some(Rule::Breaker)
        } else if self.bad >= BAD_MIN && self.bad >= self.good {
            Some(Rule::Outlier)
        } else {
            None
        }
    }

    fn forget(&mut self) {
        (self.failures, self.bad, self.good) = (0, 0, 0);
    }

    fn penalty_us(&self, now_us: u64, penalty_us: u64) -> u64 {
        let since_us = self.back_us.map_or(PROBATION_US, |back_us| {
            now_us.saturating_sub(back_us).min(PROBATION_US)
        });
        let left = u128::from(PROBATION_US - since_us);
        (u128::from(penalty_us) * left / u128::from(PROBATION_US)) as u64
    }
}
