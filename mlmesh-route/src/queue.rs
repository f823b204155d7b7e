//! Requests that wait for a target, and which of them goes next.
//!
//! Whoever would rather wait for one target than go to any other that is free stands in
//! that target's line; everybody else in the common line, and goes to whichever target
//! comes free first. A line is kept in the order in which its requests go, so that a
//! step looks at the heads of lines of free targets and not at all that waits:
//!
//! ```text
//!   a target is free ──► head of its line, head of the common line
//!                           │ looked at: what suits it best now?
//!                           ├─► the free target: bound, if nobody goes before it
//!                           ├─► one that is busy: it stands in that one's line
//!                           └─► none in time: refused
//! ```
//!
//! With its place a request gets a limit: when what it waits for can begin only after
//! that, it is looked at again, since another target may suit it better by then, or none.
//! What was predicted when a request was last looked at is believed until then; a target
//! that is free and suits nobody best is left free.

use std::collections::{BTreeSet, HashMap};

use mlmesh_strategy::{Ask, Candidate, Forecast, RequestId, TargetId, TenantId};

use crate::line::{Entry, Line, Rank};
use crate::policy::{Late, Order};
use crate::router::Router;
use crate::snapshot::{Snapshot, Target};
use crate::tenants::{Accounts, Meters, shared};
use crate::word::{Effect, Scratch, Verdict};

/// Who has waited so many times the prefill by which it is longer goes before a shorter
/// one. Low values turn the order into that of coming.
const AGING: u64 = 8;
/// Requests that one step looks at; what is left is looked at a little later.
const LOOKS_MAX: u32 = 64;
/// So many that would rather wait, and those behind them are not looked at in this step.
const BRIEF_LOOKS_MAX: usize = 4;
/// That little.
const LOOK_AGAIN_US: u64 = 1_000;

#[derive(Debug, Default)]
pub(crate) struct Queue {
    slots: Vec<Option<Waiting>>,
    free_slots: Vec<usize>,
    slot_of: HashMap<RequestId, usize>,
    /// How many have ever waited.
    came: u64,
    /// For whom any target will do.
    common: Line,
    /// By target, for whom that target is worth to wait for.
    own: Vec<Line>,
    accounts: Accounts,
    /// Who waits [`Place::briefly`], in the order of a line.
    brief: BTreeSet<Entry>,
    /// Prefill that all who wait were predicted to need.
    prefill_us: u64,
    /// By target, in the step that runs.
    states: Vec<State>,
    scratch: Scratch,
}

#[derive(Debug)]
struct Waiting {
    ask: Ask,
    /// Its number among all that have waited.
    came: u64,
    since_us: u64,
    place: Place,
}

/// Where a request stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Whose line it is; none is the common one.
    target: Option<TargetId>,
    /// The line in which it stands beside the common one, and its key there: that target
    /// works least on it, and is not worth to wait for.
    also: Option<(TargetId, u64)>,
    /// Who has the least goes first. Being aged changes it for all alike, so it is the
    /// same at any time.
    key: u64,
    /// It waits for a busy target beside one that is free and soon as good.
    briefly: bool,
    /// When what it waits for can begin only after that, it is looked at again.
    limit_us: u64,
    /// When that can begin only after this, it cannot be served in time there.
    late_us: u64,
    prefill_us: u64,
}

/// A target in one step.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    usable: bool,
    /// Its backlog is within the bound.
    is_free: bool,
    /// When it can begin with something new.
    begins_us: u64,
    /// When its backlog will be within the bound, if time brings it there.
    free_us: Option<u64>,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.slot_of.len()
    }

    pub(crate) const fn prefill_us(&self) -> u64 {
        self.prefill_us
    }

    /// Takes a request in. What was known when it was looked at is still in `scratch`.
    pub(crate) fn push<F: Forecast>(
        &mut self,
        router: &Router<F>,
        now_us: u64,
        ask: &Ask,
        look: (&Candidate, &Scratch),
    ) {
        let Some(late) = router.policy().late else {
            return;
        };
        self.came += 1;
        let mut waiting = Waiting {
            ask: ask.clone(),
            came: self.came,
            since_us: now_us,
            place: Place {
                target: None,
                also: None,
                briefly: false,
                key: 0,
                limit_us: u64::MAX,
                late_us: u64::MAX,
                prefill_us: 0,
            },
        };
        waiting.place = waiting.place(late, now_us, look, router.policy().refuse_hopeless);
        let slot = self.free_slots.pop().unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        self.slot_of.insert(ask.request, slot);
        self.accounts.enter(shared(ask.tenant), router.meters());
        self.stand(slot, waiting);
    }

    /// Takes a request out, and says whether it was there.
    pub(crate) fn remove(&mut self, request: RequestId) -> bool {
        let Some(slot) = self.slot_of.get(&request) else {
            return false;
        };
        self.leave(*slot).is_some_and(|waiting| {
            self.forget(&waiting);
            true
        })
    }

    /// A target has nothing to do: the first of those who wait beside one that is free are
    /// looked at again.
    pub(crate) fn reconsider(&mut self) {
        for _ in 0..BRIEF_LOOKS_MAX {
            let Some((_, _, slot)) = self.brief.first().copied() else {
                return;
            };
            self.settle_in_common(slot);
        }
    }

    /// Binds whatever can be bound and refuses what has become hopeless.
    pub(crate) fn drain<F: Forecast>(
        &mut self,
        router: &Router<F>,
        now_us: u64,
        snapshot: &Snapshot,
        effects: &mut Vec<Effect<F::Memo>>,
    ) {
        let Some(late) = router.policy().late else {
            return;
        };
        let mut looks = LOOKS_MAX;
        let brief_max = self.brief.len() + BRIEF_LOOKS_MAX;
        self.look_around(router, now_us, snapshot, late);
        while let Some((slot, next)) = self.next(router.meters()) {
            if looks == 0 {
                effects.push(Effect::WakeAt(now_us + LOOK_AGAIN_US));
                return;
            }
            looks -= 1;
            let best = self.look(router, now_us, snapshot, (slot, next), effects);
            // It may have been booked, here or meanwhile by another thread.
            let best = snapshot.targets.iter().find(|one| Some(one.id) == best);
            if let Some(target) = best {
                self.states[target.id.index()] = State::of(router, now_us, late, target);
            }
            if self.brief.len() >= brief_max {
                break;
            }
        }
        let lines = self.own.iter().zip(&self.states);
        let awaited = lines.filter(|(line, state)| {
            state.usable && !(state.is_free || self.common.is_empty() && line.is_empty())
        });
        if let Some(free_us) = awaited.filter_map(|(_, state)| state.free_us).min() {
            effects.push(Effect::WakeAt(free_us));
        }
    }

    /// Takes note of how the targets stand.
    fn look_around<F: Forecast>(
        &mut self,
        router: &Router<F>,
        now_us: u64,
        snapshot: &Snapshot,
        late: Late,
    ) {
        self.states.clear();
        self.states.resize(self.own.len(), State::default());
        for target in &snapshot.targets {
            let place = target.id.index();
            if self.states.len() <= place {
                self.states.resize(place + 1, State::default());
                self.own.resize_with(place + 1, Line::default);
            }
            self.states[place] = State::of(router, now_us, late, target);
        }
    }

    /// Who is to be looked at next, and the rank of who would be after it.
    fn next(&mut self, meters: &Meters) -> Option<(usize, Rank)> {
        while let Some(slot) = self.overdue() {
            let waiting = self.slots[slot].as_ref()?;
            let place = waiting.place;
            let state = place.target.map(|target| self.states[target.index()]);
            let may_wait = |state: State| state.usable && state.begins_us <= place.late_us;
            if !state.is_some_and(may_wait) {
                return Some((slot, Rank::FIRST));
            }
            // Any target will do for it now.
            self.settle_in_common(slot);
        }
        loop {
            let [first, second] = self.heads();
            let (_, (.., slot)) = first?;
            let tenant = self.slots[slot].as_ref().map(|one| shared(one.ask.tenant));
            if !tenant.is_some_and(|tenant| self.settle(tenant, meters)) {
                return Some((slot, second.map_or(Rank::LAST, |(rank, _)| rank)));
            }
        }
    }

    /// Somebody whose limit has passed.
    fn overdue(&self) -> Option<usize> {
        let usable = self.states.iter().filter(|state| state.usable);
        let begins_us = usable.map(|state| state.begins_us).min();
        let common = self.common.overdue(begins_us);
        let mut lines = self.own.iter().zip(&self.states);
        common.or_else(|| {
            lines.find_map(|(line, state)| {
                let begins_us = state.usable.then_some(state.begins_us);
                line.overdue(begins_us)
            })
        })
    }

    /// Moves a request from one target's line to the common one.
    fn settle_in_common(&mut self, slot: usize) {
        if let Some(mut waiting) = self.leave(slot) {
            let place = &mut waiting.place;
            place.target = None;
            place.briefly = false;
            place.limit_us = place.late_us;
            self.stand(slot, waiting);
        }
    }

    /// The first two of all lines of targets that are free.
    fn heads(&self) -> [Option<(Rank, Entry)>; 2] {
        let lines = self.own.iter().zip(&self.states);
        let free = lines.filter(|(_, state)| state.is_free);
        let common = self.states.iter().any(|state| state.is_free);
        let common = common.then_some(&self.common);
        let mut heads = [None, None];
        for head in free
            .map(|(line, _)| line)
            .chain(common)
            .flat_map(Line::heads)
        {
            if heads[0].is_none_or(|first| head < first) {
                heads = [Some(head), heads[0]];
            } else if heads[1].is_none_or(|second| head < second) {
                heads[1] = Some(head);
            }
        }
        heads
    }

    /// Takes over what was spent on a tenant meanwhile, and says whether anything was.
    fn settle(&mut self, tenant: TenantId, meters: &Meters) -> bool {
        let Some((before, after, standing)) = self.accounts.settle(tenant, meters) else {
            return false;
        };
        for (target, class) in standing {
            let line = self.line(target);
            line.recount((class, tenant), before, after);
        }
        true
    }

    /// Sees what suits a request best now: it goes there, unless somebody goes before
    /// it, or stands in another line, or is refused. Says which target suits it.
    fn look<F: Forecast>(
        &mut self,
        router: &Router<F>,
        now_us: u64,
        snapshot: &Snapshot,
        (slot, next): (usize, Rank),
        effects: &mut Vec<Effect<F::Memo>>,
    ) -> Option<TargetId> {
        let (mut waiting, late) = (self.leave(slot)?, router.policy().late?);
        let asked = (&waiting.ask, waiting.came);
        let verdict = router.consider(now_us, snapshot, asked, &mut self.scratch);
        let best = match verdict {
            Verdict::Reject(refusal) => {
                effects.push(Effect::Refuse(waiting.ask.request, refusal));
                self.forget(&waiting);
                return None;
            }
            Verdict::Bind(best) if self.rank(&waiting, late, &best) <= next => {
                effects.push(Effect::Bind(router.bind(now_us, &waiting.ask, best)));
                self.forget(&waiting);
                return Some(best.target);
            }
            Verdict::Bind(best) | Verdict::Wait(best) => best,
        };
        let refuses = router.policy().refuse_hopeless;
        waiting.place = waiting.place(late, now_us, (&best, &self.scratch), refuses);
        self.stand(slot, waiting);
        Some(best.target)
    }

    fn stand(&mut self, slot: usize, waiting: Waiting) {
        let Place {
            target,
            also,
            briefly,
            key,
            limit_us,
            prefill_us,
            ..
        } = waiting.place;
        if briefly {
            self.brief.insert((key, waiting.came, slot));
        }
        self.prefill_us = self.prefill_us.saturating_add(prefill_us);
        let tenant = shared(waiting.ask.tenant);
        let class = waiting.ask.class;
        let counter = self.accounts.counter(tenant);
        self.accounts.stand(tenant, (target, class));
        let line = self.line(target);
        line.insert((class, tenant), counter, (key, waiting.came, slot));
        line.limit(limit_us, slot);
        if let Some((target, key)) = also {
            self.accounts.stand(tenant, (Some(target), class));
            let line = self.line(Some(target));
            line.insert((class, tenant), counter, (key, waiting.came, slot));
        }
        self.slots[slot] = Some(waiting);
    }

    fn leave(&mut self, slot: usize) -> Option<Waiting> {
        let waiting = self.slots[slot].take()?;
        let place = waiting.place;
        self.prefill_us = self.prefill_us.saturating_sub(place.prefill_us);
        if place.briefly {
            self.brief.remove(&(place.key, waiting.came, slot));
        }
        let tenant = shared(waiting.ask.tenant);
        let class = waiting.ask.class;
        let counter = self.accounts.counter(tenant);
        self.accounts.leave(tenant, (place.target, class));
        let line = self.line(place.target);
        line.remove((class, tenant), counter, (place.key, waiting.came, slot));
        line.unlimit(place.limit_us, slot);
        if let Some((target, key)) = place.also {
            self.accounts.leave(tenant, (Some(target), class));
            let line = self.line(Some(target));
            line.remove((class, tenant), counter, (key, waiting.came, slot));
        }
        Some(waiting)
    }

    /// A request that has left does not come back.
    fn forget(&mut self, waiting: &Waiting) {
        self.free_slots
            .extend(self.slot_of.remove(&waiting.ask.request));
        self.accounts.exit(shared(waiting.ask.tenant));
    }

    fn rank(&self, waiting: &Waiting, late: Late, best: &Candidate) -> Rank {
        Rank {
            class: waiting.ask.class,
            counter: self.accounts.counter(shared(waiting.ask.tenant)),
            key: waiting.key(late, best),
        }
    }

    fn line(&mut self, target: Option<TargetId>) -> &mut Line {
        let Some(target) = target else {
            return &mut self.common;
        };
        let place = target.index();
        if self.own.len() <= place {
            self.own.resize_with(place + 1, Line::default);
        }
        &mut self.own[place]
    }
}

impl State {
    fn of<F: Forecast>(router: &Router<F>, now_us: u64, late: Late, target: &Target) -> Self {
        let stands = router.stands(now_us, target);
        let is_free = target.usable && late.admits(&stands);
        let free_us = match is_free {
            true => None,
            false => router.free_us(now_us, late, &stands),
        };
        Self {
            usable: target.usable,
            is_free,
            begins_us: now_us.saturating_add(stands.queued_us),
            free_us,
        }
    }
}

impl Waiting {
    /// Where it stands after it was looked at.
    fn place(
        &self,
        late: Late,
        now_us: u64,
        (best, scratch): (&Candidate, &Scratch),
        refuses: bool,
    ) -> Place {
        let own_us = |one: &Candidate| one.ttft_us() - one.queued_us;
        // It is late when what it waits for begins after that.
        let late_after_us = |own_us: u64| match refuses {
            true => {
                let hoped_us = own_us.saturating_sub(best.prefill_doubt_us);
                self.ask.deadline_us.saturating_sub(hoped_us)
            }
            false => u64::MAX,
        };
        let (mut best_rest, mut other_rest) = (0, u64::MAX);
        let (mut least_own_us, mut is_any_free) = (u64::MAX, false);
        let mut warmest = best;
        for (one, cost) in scratch.candidates.iter().zip(&scratch.costs) {
            let rest = cost.saturating_sub(one.queued_us);
            if one.target == best.target {
                best_rest = rest;
            } else {
                other_rest = other_rest.min(rest);
            }
            least_own_us = least_own_us.min(own_us(one));
            is_any_free |= late.admits(one);
            if one.prefill_us < warmest.prefill_us && one.prefill_us > 0 {
                warmest = one;
            }
        }
        let key = self.key(late, best);
        let prefill_us = best.prefill_us;
        // Another target, even if it were free now, is no better than to wait so long.
        let worth_until_us = now_us.saturating_add(other_rest.saturating_sub(best_rest));
        let begins_us = now_us.saturating_add(best.queued_us);
        if late.admits(best) || !is_any_free && worth_until_us < begins_us {
            let elsewhere = !late.admits(warmest) && warmest.target != best.target;
            return Place {
                target: None,
                also: elsewhere.then(|| (warmest.target, self.key(late, warmest))),
                briefly: false,
                key,
                limit_us: late_after_us(least_own_us),
                late_us: late_after_us(least_own_us),
                prefill_us,
            };
        }
        let late_us = late_after_us(own_us(best));
        let limit_us = worth_until_us.min(late_us);
        Place {
            target: Some(best.target),
            also: None,
            briefly: worth_until_us < begins_us,
            key,
            limit_us: limit_us.max(begins_us),
            late_us,
            prefill_us,
        }
    }

    fn key(&self, late: Late, best: &Candidate) -> u64 {
        match late.order {
            Order::ShortestPrefill => best
                .prefill_us
                .saturating_mul(AGING)
                .saturating_add(self.since_us),
            // Its number alone decides.
            Order::Fifo => 0,
        }
    }
}
