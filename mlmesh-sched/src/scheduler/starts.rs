//! Which run starts now, and what a start and an end do to the accounts.

use mlmesh_model::{Micros, Phase, Resources, RunId};

use super::{Live, Scheduler, State};
use crate::event::{Effect, Effects};
use crate::order::Charge;

/// One start in so many goes to the run that waits longest, if it waited
/// [`AGED_AFTER_US`]: whatever comes in, a run with `k` older ones starts within
/// `AGED_EVERY * (k + 1)` starts of the time when it has aged.
pub const AGED_EVERY: u32 = 8;

/// A run that waited this long has aged.
pub const AGED_AFTER_US: i64 = 60 * 1_000_000;

/// The first run in order that does not fit lets smaller ones pass for so long;
/// then nothing else starts until it fits.
pub const PASSED_BY_MAX_US: i64 = 30 * 1_000_000;

impl Scheduler {
    pub(super) fn start_what_fits(&mut self, now: Micros, effects: &mut Effects) {
        while !self.draining {
            let Some(run) = self.choose(now) else {
                return;
            };
            self.start(now, run, effects);
        }
    }

    /// The run that starts now, if any.
    fn choose(&mut self, now: Micros) -> Option<RunId> {
        if let Some(run) = self.reserved {
            return self.fits(run).then_some(run);
        }
        if let Some((oldest, since)) = self.ready.oldest()
            && self.starts_since_aged + 1 >= AGED_EVERY
            && now.since(since) >= AGED_AFTER_US
        {
            self.reserved = Some(oldest);
            return self.fits(oldest).then_some(oldest);
        }
        let (first, _) = self.ready.first()?;
        if self.fits(first) {
            return Some(first);
        }
        match self.passed_by {
            Some((run, since)) if run == first => {
                if now.since(since) >= PASSED_BY_MAX_US {
                    self.reserved = Some(first);
                    return None;
                }
            }
            Some(_) | None => self.passed_by = Some((first, now)),
        }
        self.ready
            .first_fitting(|resources| self.account.fits(resources))
    }

    fn fits(&self, run: RunId) -> bool {
        self.jobs
            .get(&run)
            .is_some_and(|entry| self.account.fits(&entry.job.resources))
    }

    fn start(&mut self, now: Micros, run: RunId, effects: &mut Effects) {
        let aged = self.reserved == Some(run)
            || self.ready.oldest().is_some_and(|(oldest, _)| oldest == run);
        self.starts_since_aged = if aged { 0 } else { self.starts_since_aged + 1 };
        if self.passed_by.is_some_and(|(passed, _)| passed == run) {
            self.passed_by = None;
        }
        self.leave_ready(run);
        let Some(entry) = self.jobs.get(&run) else {
            return;
        };
        let resources = entry.job.resources;
        let gpus = self
            .account
            .take(&resources)
            .expect("a run is chosen only when it fits");
        let charge = self.charge_start(now, run, &resources);
        self.live.insert(run);
        self.busy.insert(run);
        let live = Live {
            phase: Phase::Starting,
            gpus: gpus.clone(),
            charge,
            stop: None,
        };
        self.set(run, State::Live(live));
        effects.push(Effect::Start { run, gpus });
    }

    pub(super) fn charge_start(
        &mut self,
        now: Micros,
        run: RunId,
        resources: &Resources,
    ) -> Charge {
        let owner = self.jobs[&run].owner;
        let capacity = self.account.capacity();
        let mut charge = None;
        self.ready.charge(owner, &mut self.usage, |usage| {
            charge = Some(usage.start(owner, resources, capacity, now));
        });
        charge.expect("the closure was called")
    }

    pub(super) fn release(&mut self, now: Micros, run: RunId, live: &Live) {
        self.live.remove(&run);
        let Some(entry) = self.jobs.get(&run) else {
            return;
        };
        self.account.release(&entry.job.resources, &live.gpus);
        let owner = entry.owner;
        self.ready.charge(owner, &mut self.usage, |usage| {
            usage.end(owner, live.charge, now);
        });
    }
}
