//! The scheduler: a state machine over the runs that have not ended.
//!
//! ```text
//!             Submitted                        Claimed… Started Exited Finished
//!   waiting ◄────┴────► ready ──Start──► starting ─► running ─► finishing
//!      │ dependencies     ▲ ▲                                      │ Record
//!      └──────────────────┘ └── delayed ◄── Requeue ── recording ◄─┘
//!                                                          └─ End ─► forgotten
//! ```
//!
//! It writes nothing and starts nothing: it says what is to be done and believes
//! that it happened when an event says so. Resources are held from `Start` until
//! the shell says that the attempt's last record is on its way (`Recording`);
//! what waits for a run moves when that record is on disk (`Recorded`). Events
//! that do not fit a run's state are late or repeated; they change nothing.
//!
//! `now` never goes back: the shell gives monotonic time.

mod starts;

use std::collections::{BTreeMap, BTreeSet};

use mlmesh_model::{Cause, Micros, Phase, RunId};

use crate::capacity::{Account, Capacity};
use crate::event::{Effect, Effects, Event, Job};
use crate::order::{Charge, OwnerIndex, Usage};
use crate::ready::{Class, Ready, ReadyRun};
use crate::retry::{Outcome, Verdict, verdict};
use crate::world::Load;

pub use starts::{AGED_AFTER_US, AGED_EVERY, PASSED_BY_MAX_US};

/// See the head of the file.
#[derive(Debug, Clone, Default)]
pub struct Scheduler {
    jobs: BTreeMap<RunId, Entry>,
    ready: Ready,
    /// Ready runs that this node could not hold even when empty.
    too_large: BTreeSet<RunId>,
    delayed: BTreeSet<(Micros, RunId)>,
    live: BTreeSet<RunId>,
    /// Runs of which something is being done or written.
    busy: BTreeSet<RunId>,
    /// Who waits for the run or sweep.
    dependents: BTreeMap<RunId, BTreeSet<RunId>>,
    /// Points of sweeps that have not ended.
    sweeps: BTreeMap<RunId, u32>,
    account: Account,
    usage: Usage,
    /// The first run in order, since it did not fit.
    passed_by: Option<(RunId, Micros)>,
    /// Nothing but this one may start.
    reserved: Option<RunId>,
    starts_since_aged: u32,
    arrivals: u64,
    draining: bool,
}

#[derive(Debug, Clone)]
struct Entry {
    job: Job,
    owner: OwnerIndex,
    arrival: u64,
    since: Micros,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// Dependencies have not completed.
    Waiting(BTreeSet<RunId>),
    /// A retry before its time.
    Delayed(Micros),
    /// Waits for resources.
    Ready,
    /// An attempt holds it.
    Live(Live),
    /// An end or a requeue is being written.
    Recording {
        verdict: Verdict,
        /// Resources that are still held.
        held: Option<Live>,
        /// Came while a requeue was being written.
        cancel: Option<Cause>,
    },
}

#[derive(Debug, Clone)]
struct Live {
    phase: Phase,
    gpus: Vec<String>,
    charge: Charge,
    stop: Option<Cause>,
}

impl Scheduler {
    /// A scheduler for a node with this capacity.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            account: Account::new(capacity),
            ..Self::default()
        }
    }

    /// Takes one event in and says what is to be done.
    pub fn step(&mut self, now: Micros, event: Event, effects: &mut Effects) {
        if self.usage.rebase(now) {
            self.ready.rerank(&self.usage);
        }
        match event {
            Event::Submitted(jobs) => {
                for job in jobs {
                    self.submitted(now, job, effects);
                }
            }
            Event::Reattached { job, phase, gpus } => self.reattached(now, *job, phase, gpus),
            Event::Seen { run, phase } => self.seen(now, run, phase, effects),
            Event::LeaseLost(run) => self.lease_lost(now, run, effects),
            Event::Started(run) => self.moved(run, Phase::Running),
            Event::Ready(run) => self.moved(run, Phase::Ready),
            Event::Draining(run) => self.moved(run, Phase::Draining),
            Event::Exited(run) => self.moved(run, Phase::Finishing),
            Event::Finished { run, outcome } => self.finished(run, outcome, effects),
            Event::NeverStarted(run) => self.never_started(run, effects),
            Event::Recording(run) => self.recording(now, run),
            Event::Recorded(run) => self.recorded(now, run, effects),
            Event::Cancel(run) => self.cancel(run, Cause::Cancelled, effects),
            Event::Drain => self.draining = true,
            Event::StopLive => {
                self.draining = true;
                for run in self.live.clone() {
                    self.cancel(run, Cause::Shutdown, effects);
                }
            }
            Event::CapacityChanged(capacity) => self.capacity_changed(capacity),
            Event::Tick => {}
        }
        self.release_delayed(now);
        self.start_what_fits(now, effects);
    }

    /// When the next [`Event::Tick`] is due.
    pub fn wake_at(&self) -> Option<Micros> {
        self.delayed.first().map(|(until, _)| *until)
    }

    /// Where a run stands that has not ended, as the scheduler believes.
    pub fn phase(&self, run: RunId) -> Option<Phase> {
        Some(match &self.jobs.get(&run)?.state {
            State::Waiting(_) | State::Delayed(_) | State::Ready => Phase::Queued,
            State::Live(live) => live.phase,
            State::Recording { verdict, held, .. } => match (held, verdict) {
                (Some(live), _) => live.phase,
                (None, Verdict::End { phase, .. }) => *phase,
                (None, Verdict::Requeue { .. }) => Phase::Queued,
            },
        })
    }

    /// What is going on, for preflight.
    pub fn load(&self) -> Load {
        let (cpu, memory, gpus) = self.account.held();
        let capacity = self.account.capacity();
        Load {
            queued: (self.ready.len() + self.too_large.len() + self.delayed.len()) as u64,
            free_cpu_milli: capacity.cpu_milli.saturating_sub(cpu),
            free_memory_bytes: capacity.memory_bytes.saturating_sub(memory),
            free_gpus: u32::try_from(capacity.gpus.len().saturating_sub(gpus)).unwrap_or(u32::MAX),
        }
    }

    /// What live attempts hold, and of what.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Number of runs that have not ended.
    pub fn open(&self) -> usize {
        self.jobs.len()
    }

    /// Number of attempts that hold resources.
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Number of runs of which something is being done or written: live attempts,
    /// and ends that are not yet on disk.
    pub fn busy(&self) -> usize {
        self.busy.len()
    }

    /// Number of points of the sweep that have not ended.
    pub fn open_points(&self, sweep: RunId) -> u32 {
        self.sweeps.get(&sweep).copied().unwrap_or(0)
    }

    /// The runs that go next, in order, at most `limit`: as if all had one size
    /// and each start were charged as usual.
    pub fn upcoming(&self, now: Micros, limit: usize) -> Vec<RunId> {
        let mut copy = self.clone();
        let capacity = self.account.capacity().clone();
        std::iter::from_fn(|| {
            let (run, class) = copy.ready.first()?;
            copy.leave_ready(run);
            let usage = &mut copy.usage;
            copy.ready.charge(class.owner, usage, |usage| {
                usage.start(class.owner, &class.resources(), &capacity, now);
            });
            Some(run)
        })
        .take(limit)
        .collect()
    }

    // ---- events ----

    fn submitted(&mut self, now: Micros, job: Job, effects: &mut Effects) {
        if self.jobs.contains_key(&job.run) {
            return;
        }
        if job.delay_us > 0 {
            let (run, until) = (job.run, now.plus_us(job.delay_us));
            self.delayed.insert((until, run));
            return self.enter(now, job, State::Delayed(until));
        }
        let on: BTreeSet<RunId> = job.after.iter().copied().collect();
        for parent in &on {
            self.dependents.entry(*parent).or_default().insert(job.run);
            if !self.jobs.contains_key(parent) && !self.sweeps.contains_key(parent) {
                effects.push(Effect::LookUp(*parent));
            }
        }
        let run = job.run;
        let waits = !on.is_empty();
        self.enter(now, job, State::Waiting(on));
        if !waits {
            self.make_ready(run);
        }
    }

    fn reattached(&mut self, now: Micros, job: Job, phase: Phase, gpus: Vec<String>) {
        if self.jobs.contains_key(&job.run) || !phase.is_live() {
            return;
        }
        self.account.hold(&job.resources, &gpus);
        let run = job.run;
        let resources = job.resources;
        self.enter(now, job, State::Ready);
        let charge = self.charge_start(now, run, &resources);
        self.live.insert(run);
        self.busy.insert(run);
        self.set(
            run,
            State::Live(Live {
                phase,
                gpus,
                charge,
                stop: None,
            }),
        );
    }

    fn seen(&mut self, now: Micros, run: RunId, phase: Option<Phase>, effects: &mut Effects) {
        match phase {
            Some(phase) if !phase.is_ended() => {}
            Some(Phase::Completed) => self.resolve_dependents(now, run, true, effects),
            Some(_) | None => self.resolve_dependents(now, run, false, effects),
        }
    }

    fn lease_lost(&mut self, now: Micros, run: RunId, effects: &mut Effects) {
        let held = match self.jobs.get(&run).map(|entry| &entry.state) {
            Some(State::Live(live)) => Some(live.clone()),
            Some(State::Recording { held, .. }) => held.clone(),
            Some(State::Waiting(_) | State::Delayed(_) | State::Ready) | None => return,
        };
        if let Some(live) = held {
            self.release(now, run, &live);
        }
        self.forget(run, effects);
        if self.dependents.contains_key(&run) {
            effects.push(Effect::LookUp(run));
        }
    }

    fn moved(&mut self, run: RunId, to: Phase) {
        if let Some(live) = self.live_mut(run)
            && live.phase.may_become(to)
        {
            live.phase = to;
        }
    }

    fn finished(&mut self, run: RunId, outcome: Outcome, effects: &mut Effects) {
        let Some(entry) = self.jobs.get(&run) else {
            return;
        };
        let State::Live(live) = &entry.state else {
            return;
        };
        if outcome.cause.is_none() && live.phase != Phase::Finishing {
            return;
        }
        let verdict = verdict(outcome, live.stop, entry.job.again);
        self.record(run, verdict, effects);
    }

    fn never_started(&mut self, run: RunId, effects: &mut Effects) {
        let Some(live) = self.live_mut(run) else {
            return;
        };
        if live.phase != Phase::Starting {
            return;
        }
        let verdict = match live.stop {
            Some(cause) => Verdict::End {
                phase: cause.end_phase(),
                cause: Some(cause),
            },
            None => Verdict::Requeue {
                cause: None,
                delay_ms: 0,
            },
        };
        self.record(run, verdict, effects);
    }

    fn record(&mut self, run: RunId, verdict: Verdict, effects: &mut Effects) {
        let Some(entry) = self.jobs.get_mut(&run) else {
            return;
        };
        let held = match &entry.state {
            State::Live(live) => Some(live.clone()),
            State::Waiting(_) | State::Delayed(_) | State::Ready | State::Recording { .. } => None,
        };
        entry.state = State::Recording {
            verdict,
            held,
            cancel: None,
        };
        effects.push(Effect::Record { run, verdict });
    }

    fn recording(&mut self, now: Micros, run: RunId) {
        let Some(entry) = self.jobs.get_mut(&run) else {
            return;
        };
        if let State::Recording { held, .. } = &mut entry.state
            && let Some(live) = held.take()
        {
            self.release(now, run, &live);
        }
    }

    fn recorded(&mut self, now: Micros, run: RunId, effects: &mut Effects) {
        self.recording(now, run);
        let Some(State::Recording {
            verdict, cancel, ..
        }) = self.jobs.get(&run).map(|entry| entry.state.clone())
        else {
            return;
        };
        self.busy.remove(&run);
        match (verdict, cancel) {
            (Verdict::End { phase, .. }, _) => {
                self.forget(run, effects);
                self.resolve_dependents(now, run, phase == Phase::Completed, effects);
            }
            (Verdict::Requeue { .. }, Some(cause)) => {
                self.set(run, State::Ready);
                self.end_queued(run, cause, effects);
            }
            (Verdict::Requeue { delay_ms: 0, .. }, None) => {
                self.set(run, State::Waiting(BTreeSet::new()));
                self.make_ready(run);
            }
            (Verdict::Requeue { delay_ms, .. }, None) => {
                let delay_us = i64::try_from(delay_ms.saturating_mul(1_000)).unwrap_or(i64::MAX);
                let until = now.plus_us(delay_us);
                self.delayed.insert((until, run));
                self.set(run, State::Delayed(until));
            }
        }
    }

    fn cancel(&mut self, run: RunId, cause: Cause, effects: &mut Effects) {
        let Some(entry) = self.jobs.get_mut(&run) else {
            return;
        };
        match &mut entry.state {
            State::Waiting(_) | State::Delayed(_) | State::Ready => {
                self.end_queued(run, cause, effects);
            }
            State::Live(live) => {
                if live.stop.is_none() {
                    live.stop = Some(cause);
                    effects.push(Effect::Stop { run, cause });
                }
            }
            State::Recording {
                verdict, cancel, ..
            } => {
                if matches!(verdict, Verdict::Requeue { .. }) && cancel.is_none() {
                    *cancel = Some(cause);
                }
            }
        }
    }

    fn capacity_changed(&mut self, capacity: Capacity) {
        self.account.set_capacity(capacity);
        let waiting: Vec<RunId> = self
            .jobs
            .iter()
            .filter(|(_, entry)| matches!(entry.state, State::Ready))
            .map(|(run, _)| *run)
            .collect();
        for run in waiting {
            self.leave_ready(run);
            self.make_ready(run);
        }
    }

    // ---- moves ----

    fn enter(&mut self, now: Micros, job: Job, state: State) {
        if let Some(sweep) = job.sweep {
            *self.sweeps.entry(sweep).or_default() += 1;
        }
        self.arrivals += 1;
        let entry = Entry {
            owner: self.usage.index(&job.tenant, &job.owner),
            arrival: self.arrivals,
            since: now.plus_us(-job.waited_us.max(0)),
            state,
            job,
        };
        self.jobs.insert(entry.job.run, entry);
    }

    fn forget(&mut self, run: RunId, effects: &mut Effects) {
        let Some(entry) = self.jobs.remove(&run) else {
            return;
        };
        self.busy.remove(&run);
        for parent in &entry.job.after {
            if let Some(dependents) = self.dependents.get_mut(parent) {
                dependents.remove(&run);
                if dependents.is_empty() {
                    self.dependents.remove(parent);
                }
            }
        }
        let Some(sweep) = entry.job.sweep else {
            return;
        };
        if let Some(open) = self.sweeps.get_mut(&sweep) {
            *open -= 1;
            if *open == 0 {
                self.sweeps.remove(&sweep);
                // Points that ended before this daemon came count too: the store knows.
                if self.dependents.contains_key(&sweep) {
                    effects.push(Effect::LookUp(sweep));
                }
            }
        }
    }

    fn resolve_dependents(
        &mut self,
        _now: Micros,
        parent: RunId,
        completed: bool,
        effects: &mut Effects,
    ) {
        for run in self.dependents.remove(&parent).unwrap_or_default() {
            let Some(entry) = self.jobs.get_mut(&run) else {
                continue;
            };
            let State::Waiting(on) = &mut entry.state else {
                continue;
            };
            on.remove(&parent);
            let free = on.is_empty();
            if !completed {
                self.end_queued(run, Cause::DependencyFailed, effects);
            } else if free {
                self.make_ready(run);
            }
        }
    }

    fn end_queued(&mut self, run: RunId, cause: Cause, effects: &mut Effects) {
        self.leave_ready(run);
        if let Some(State::Delayed(until)) = self.jobs.get(&run).map(|entry| &entry.state) {
            self.delayed.remove(&(*until, run));
        }
        let verdict = Verdict::End {
            phase: cause.end_phase(),
            cause: Some(cause),
        };
        self.set(
            run,
            State::Recording {
                verdict,
                held: None,
                cancel: None,
            },
        );
        self.busy.insert(run);
        effects.push(Effect::EndQueued { run, cause });
    }

    fn make_ready(&mut self, run: RunId) {
        let Some(entry) = self.jobs.get_mut(&run) else {
            return;
        };
        entry.state = State::Ready;
        if self
            .account
            .capacity()
            .never_fits(&entry.job.resources)
            .is_empty()
        {
            let ready = entry.ready();
            self.ready.insert(ready, &self.usage);
        } else {
            self.too_large.insert(run);
        }
    }

    fn leave_ready(&mut self, run: RunId) {
        if let Some(entry) = self.jobs.get(&run)
            && matches!(entry.state, State::Ready)
            && !self.too_large.remove(&run)
        {
            self.ready.remove(entry.ready(), &self.usage);
        }
        if self.reserved == Some(run) {
            self.reserved = None;
        }
    }

    fn release_delayed(&mut self, now: Micros) {
        while let Some((until, run)) = self.delayed.first().copied() {
            if until > now {
                return;
            }
            self.delayed.remove(&(until, run));
            self.make_ready(run);
        }
    }

    fn live_mut(&mut self, run: RunId) -> Option<&mut Live> {
        match &mut self.jobs.get_mut(&run)?.state {
            State::Live(live) => Some(live),
            State::Waiting(_) | State::Delayed(_) | State::Ready | State::Recording { .. } => None,
        }
    }

    fn set(&mut self, run: RunId, state: State) {
        if let Some(entry) = self.jobs.get_mut(&run) {
            entry.state = state;
        }
    }
}

impl Entry {
    fn ready(&self) -> ReadyRun {
        ReadyRun {
            run: self.job.run,
            class: Class::new(self.job.priority, self.owner, &self.job.resources),
            arrival: self.arrival,
            since: self.since,
        }
    }
}
