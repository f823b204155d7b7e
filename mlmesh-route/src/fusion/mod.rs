//! What engines, their GPUs and the gateway's own look-outs say of the targets, made into
//! one snapshot.
//!
//! ```text
//!   Report (kind, value, when, by whom) ─► Field: newest value, or why there is none
//!                                            │ weight by age; nothing beyond its limit
//!                                            ▼
//!                        Terms: load of others, steps, penalties ─► Snapshot + Facts
//!                        Quarantine: a cause, its time, probation ─┘
//! ```
//!
//! Nothing is believed silently: a value that cannot be is refused and counted, one that
//! is old loses weight, and all of them are shown with age and source ([`Facts`]). What
//! an engine reports and what this process has counted are not two opinions of one
//! thing: the engine knows of everybody's requests, so that what it reports beyond ours
//! is the load of others.

mod field;
mod kind;
mod quarantine;
mod terms;

use std::sync::Arc;

use mlmesh_strategy::TargetId;

use crate::snapshot::{Snapshot, Target};
use field::{Field, Taken};
pub use field::{Lie, Missing, Reading};
pub use kind::{KINDS, Kind};
use quarantine::Quarantine;
pub use quarantine::{Cause, Standing};
use terms::View;
pub use terms::{Own, Term, is_serious};

/// What one source said of one target at one time.
#[derive(Debug, Clone)]
pub struct Report {
    /// Who says so: the runtime's name, `nvml`, `gateway`.
    pub source: Arc<str>,
    /// When it was asked for.
    pub at_us: u64,
    /// By how much its values may be older than that.
    pub delay_us: u64,
    /// What this process knew of the target then.
    pub own: Own,
    /// What it measured.
    pub readings: Vec<(Kind, Reading)>,
    /// What it did not, and why.
    pub missing: Vec<(Kind, Missing)>,
}

/// What came of a report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Noted {
    /// Readings that were refused.
    pub refused: u32,
    /// The target is another process than before: it holds no prompts.
    pub restarted: bool,
}

/// Everything that was told of all targets.
#[derive(Debug)]
pub struct Fusion {
    targets: Vec<OneTarget>,
}

/// What is behind the figures of one target.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// By the number of the kind.
    pub facts: Vec<Fact>,
    /// Of what the penalty consists, in microseconds.
    pub penalties: Vec<(Term, u64)>,
    /// How long a prompt of others takes; none where nobody knows.
    pub pace_us: Option<u64>,
    /// Where it stands.
    pub standing: Standing,
    /// It would be in quarantine, but too many are.
    pub is_spared: bool,
}

/// One kind of signal of one target.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// Which.
    pub kind: Kind,
    /// What is now, how much a second, or how many seconds each; none if that was never
    /// told. Its age may be beyond what is used.
    pub value: Option<f64>,
    /// How old it is, its source's own delay included.
    pub age_us: u64,
    /// How much it counts, from 1 to 0.
    pub weight: f64,
    /// Who said so.
    pub source: Option<Arc<str>>,
    /// By how much the source may be late.
    pub delay_us: u64,
    /// Why there is no newer one.
    pub missing: Option<Missing>,
    /// Readings that were refused, by the number of the lie.
    pub lies: [u64; Lie::ALL.len()],
}

/// Of all targets no more than this share is in quarantine.
const QUARANTINED_PERCENT_MAX: usize = 50;
/// What it costs to be one too many for that.
const SPARED_PENALTY_US: f64 = 5e6;
/// No term is larger, whatever was told.
const TERM_US_MAX: f64 = 60e6;
/// Nor has a target more requests of others.
const FOREIGN_MAX: f64 = 1e6;

#[derive(Debug)]
struct OneTarget {
    fields: [Field; KINDS],
    /// What this process knew when load was told the last time.
    own: Own,
    quarantine: Quarantine,
    standing: Standing,
    /// Something that happened, and is not any more when it is looked at.
    event: Option<Cause>,
}

impl Fusion {
    /// Of so many targets, of which nothing is known.
    #[must_use]
    pub fn new(targets: u16) -> Self {
        let none = |_| OneTarget {
            fields: std::array::from_fn(|_| Field::default()),
            own: Own::default(),
            quarantine: Quarantine::default(),
            standing: Standing::Good,
            event: None,
        };
        Self {
            targets: (0..targets).map(none).collect(),
        }
    }

    /// Takes a report; one of an unknown target says nothing.
    pub fn take(&mut self, target: TargetId, report: &Report) -> Noted {
        match self.targets.get_mut(target.index()) {
            Some(one) => one.take(report),
            None => Noted::default(),
        }
    }

    /// What is known now, and what is behind it, target by target.
    pub fn snapshot(&mut self, now_us: u64) -> (Snapshot, Vec<Facts>) {
        let standings = self.targets.iter_mut().map(|one| one.step(now_us));
        let mut away: Vec<(Cause, u64, usize)> = standings
            .enumerate()
            .filter_map(|(place, standing)| match standing {
                Standing::Quarantined {
                    cause, since_us, ..
                } => Some((cause, since_us, place)),
                Standing::Good | Standing::Probation { .. } => None,
            })
            .collect();
        // The worst ones are left alone, of equals who is it for the longest time.
        away.sort_unstable();
        let away_max = self.targets.len() * QUARANTINED_PERCENT_MAX / 100;
        let spared: Vec<usize> = away.iter().skip(away_max).map(|(.., at)| *at).collect();
        let mut snapshot = Snapshot {
            at_us: now_us,
            targets: Vec::with_capacity(self.targets.len()),
        };
        let mut all = Vec::with_capacity(self.targets.len());
        for (place, one) in self.targets.iter().enumerate() {
            let id = TargetId(u16::try_from(place).unwrap_or(u16::MAX));
            let (target, facts) = one.known(id, now_us, spared.contains(&place));
            snapshot.targets.push(target);
            all.push(facts);
        }
        (snapshot, all)
    }
}

impl OneTarget {
    fn take(&mut self, report: &Report) -> Noted {
        let mut noted = Noted::default();
        let loads = [Kind::Waiting, Kind::Running, Kind::Queued];
        for (kind, reading) in &report.readings {
            let before = self.fields[*kind as usize].clone();
            let field = &mut self.fields[*kind as usize];
            match field.take(*kind, *reading, report.at_us) {
                Taken::No(_) => {
                    noted.refused += 1;
                    continue;
                }
                Taken::Late => continue,
                Taken::Restart => noted.restarted |= !is_of_gpu(*kind),
                Taken::Yes => self.event = self.event.or(happened(*kind, &before, field)),
            }
            let field = &mut self.fields[*kind as usize];
            field.source = Some(Arc::clone(&report.source));
            field.delay_us = report.delay_us;
            if loads.contains(kind) {
                self.own = report.own;
            }
        }
        for (kind, reason) in &report.missing {
            let field = &mut self.fields[*kind as usize];
            // Another source may have what this one has not.
            if field.source.as_ref().is_none_or(|of| *of == report.source) {
                field.missing = Some(reason.clone());
            }
        }
        if noted.restarted {
            for kind in Kind::ALL.into_iter().filter(|kind| !is_of_gpu(*kind)) {
                self.fields[kind as usize].forget_totals();
            }
        }
        noted
    }

    fn view(&self, now_us: u64) -> View<'_> {
        View {
            fields: &self.fields,
            now_us,
            own: self.own,
        }
    }

    fn step(&mut self, now_us: u64) -> Standing {
        let was_hot = matches!(
            self.standing,
            Standing::Quarantined {
                cause: Cause::Thermal,
                ..
            }
        );
        let lasting = self.view(now_us).cause(was_hot);
        let cause = match (lasting, self.event.take()) {
            (Some(lasting), Some(event)) => Some(lasting.min(event)),
            (lasting, event) => lasting.or(event),
        };
        self.standing = self.quarantine.step(now_us, cause);
        self.standing
    }

    fn known(&self, id: TargetId, now_us: u64, is_spared: bool) -> (Target, Facts) {
        let mut terms = self.view(now_us).terms();
        let probation_us = self.standing.penalty_us(now_us);
        for (term, us) in [
            (Term::Probation, probation_us),
            (
                Term::Spared,
                if is_spared { SPARED_PENALTY_US } else { 0.0 },
            ),
        ] {
            if us > 0.0 {
                terms.penalties_us.push((term, us));
            }
        }
        let penalties = terms.penalties_us.iter();
        let penalties: Vec<(Term, u64)> = penalties.map(|(term, us)| (*term, whole(*us))).collect();
        let penalty_us: u64 = penalties.iter().map(|(_, us)| us).sum();
        let is_away = matches!(self.standing, Standing::Quarantined { .. }) && !is_spared;
        let target = Target {
            id,
            usable: !is_away,
            rtt_us: whole(terms.rtt_us),
            penalty_us,
            foreign: terms.foreign.clamp(0.0, FOREIGN_MAX).round() as u32,
            foreign_us: whole(terms.foreign_us),
            decode_us: whole(terms.decode_us),
        };
        let facts = Kind::ALL.into_iter().map(|kind| self.fact(kind, now_us));
        let facts = Facts {
            facts: facts.collect(),
            penalties,
            pace_us: terms.pace_us.map(whole),
            standing: self.standing,
            is_spared,
        };
        (target, facts)
    }

    fn fact(&self, kind: Kind, now_us: u64) -> Fact {
        let field = &self.fields[kind as usize];
        let last = field.last();
        let (_, weight) = field.current(kind, now_us).unzip();
        Fact {
            kind,
            value: last.map(|current| current.value),
            age_us: field.age_us(now_us).unwrap_or_default(),
            weight: weight.unwrap_or_default(),
            source: field.source.clone(),
            delay_us: field.delay_us,
            missing: field.missing.clone(),
            lies: field.lies,
        }
    }
}

/// What a new reading says happened since the one before.
fn happened(kind: Kind, before: &Field, field: &Field) -> Option<Cause> {
    match kind {
        Kind::GpuXid => {
            let xid = field.last()?.value;
            let is_new = before.last().is_none_or(|before| before.value != xid);
            (is_new && is_serious(xid)).then_some(Cause::Xid)
        }
        Kind::GpuUncorrectable => {
            // What was there at the beginning may be years old.
            let more = field.total()? > before.total()?;
            more.then_some(Cause::Ecc)
        }
        _ => None,
    }
}

/// Totals of GPUs outlive the engine's process.
const fn is_of_gpu(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::GpuEnergy | Kind::GpuUncorrectable | Kind::GpuReplays
    )
}

/// Whole microseconds within what a term may be; no number is none.
fn whole(us: f64) -> u64 {
    // The cast makes zero of what is no number.
    us.clamp(0.0, TERM_US_MAX).round() as u64
}
