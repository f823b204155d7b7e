//! What a claim and a move do to a run: pure functions, the same for every
//! backend. They read the phase table of the model and touch no database.

use mlmesh_model::{
    Advance, Attempt, AttemptNumber, Cause, Claim, FencingToken, PHASES, Phase, Run, RunKind,
    RunUpdate, StoreError, UnleasedMove,
};

/// Grants a lease on a queued run.
pub(crate) fn claim(run: &mut Run, claim: &Claim) -> Result<Attempt, StoreError> {
    if run.phase != Phase::Queued || is_parent(run) {
        return Err(StoreError::NotQueued(run.id));
    }
    run.phase = Phase::Starting;
    run.attempts += 1;
    run.token = FencingToken(run.token.0 + 1);
    run.placement.node = Some(claim.node.clone());
    // What the attempt before left behind is in its own row; the run now tells
    // of this one.
    run.not_before = None;
    run.cause = None;
    run.message.clear();
    run.exit = None;
    run.started_at = None;
    run.ended_at = None;
    run.isolation = None;
    run.metrics.clear();
    run.logged = None;
    Ok(Attempt {
        run: run.id,
        number: AttemptNumber(run.attempts),
        token: run.token,
        node: claim.node.clone(),
        boot_id: claim.boot_id.clone(),
        leased_at: claim.time,
        started_at: None,
        ended_at: None,
        exit: None,
        cause: None,
    })
}

/// Moves a leased run and records what came with the move.
pub(crate) fn advance(run: &mut Run, advance: &Advance) -> Result<(), StoreError> {
    check_token(run, advance.token)?;
    let mut at = run.phase;
    if !at.is_live() || is_parent(run) {
        let to = advance.to.first().copied().unwrap_or(at);
        return Err(not_allowed(run, at, to));
    }
    for next in &advance.to {
        // The lease ends with the first phase that is not live.
        if !at.is_live() || !at.may_become(*next) {
            return Err(not_allowed(run, at, *next));
        }
        at = *next;
    }
    run.phase = at;
    record(run, &advance.record);
    if at.is_ended() && advance.record.ended_at.is_none() {
        run.ended_at = Some(advance.time);
    }
    if at == Phase::Queued {
        put_back(run);
        run.not_before = advance.not_before;
    }
    Ok(())
}

/// Moves a run that nobody holds and that is believed to be in phase `from`.
pub(crate) fn move_unleased(
    run: &mut Run,
    from: Phase,
    change: &UnleasedMove,
) -> Result<(), StoreError> {
    if run.phase != from && from == Phase::Queued && !is_parent(run) {
        return Err(StoreError::NotQueued(run.id));
    }
    let unleased = !run.phase.is_live() && change.to != Phase::Starting;
    let allowed = unleased && run.phase == from && run.phase.may_become(change.to);
    if !allowed || is_parent(run) {
        return Err(not_allowed(run, run.phase, change.to));
    }
    run.phase = change.to;
    run.cause = change.cause;
    run.message.clone_from(&change.message);
    run.not_before = None;
    if change.to == Phase::Queued {
        put_back(run);
    } else {
        run.ended_at = Some(change.time);
    }
    Ok(())
}

/// Refuses a token that is not the newest.
pub(crate) fn check_token(run: &Run, given: FencingToken) -> Result<(), StoreError> {
    if given == run.token {
        return Ok(());
    }
    Err(StoreError::StaleToken {
        run: run.id,
        given,
        newest: run.token,
    })
}

/// Runs by phase, in the order of [`PHASES`](mlmesh_model::PHASES).
pub(crate) type PhaseCounts = [i64; 10];

/// The place of a phase in [`PhaseCounts`], and its number in the store.
pub(crate) const fn phase_code(phase: Phase) -> usize {
    match phase {
        Phase::Queued => 0,
        Phase::Starting => 1,
        Phase::Running => 2,
        Phase::Finishing => 3,
        Phase::Completed => 4,
        Phase::Failed => 5,
        Phase::Cancelled => 6,
        Phase::Interrupted => 7,
        Phase::Ready => 8,
        Phase::Draining => 9,
    }
}

/// Where a sweep stands. A sweep of which some points have ended and others wait
/// is running, also at an instant at which none is live. When all have ended the
/// worst end counts: failed, then interrupted, then cancelled, then completed.
pub(crate) fn sweep_phase(points: &PhaseCounts) -> Phase {
    let at = |phase| points[phase_code(phase)];
    let queued = at(Phase::Queued);
    let live: i64 = PHASES
        .into_iter()
        .filter(|phase| phase.is_live())
        .map(at)
        .sum();
    let ended: i64 = points.iter().sum::<i64>() - queued - live;
    if live > 0 || (queued > 0 && ended > 0) {
        return Phase::Running;
    }
    if ended == 0 {
        return Phase::Queued;
    }
    [Phase::Failed, Phase::Interrupted, Phase::Cancelled]
        .into_iter()
        .find(|phase| at(*phase) > 0)
        .unwrap_or(Phase::Completed)
}

fn is_parent(run: &Run) -> bool {
    matches!(run.kind, RunKind::Parent { .. })
}

fn not_allowed(run: &Run, from: Phase, to: Phase) -> StoreError {
    StoreError::MoveNotAllowed {
        run: run.id,
        from,
        to,
    }
}

/// A run that waits again has no end, no place and no result.
fn put_back(run: &mut Run) {
    run.placement.node = None;
    run.ended_at = None;
    run.outputs = None;
    run.manifest_sha256 = None;
}

fn record(run: &mut Run, update: &RunUpdate) {
    fn set<T: Clone>(field: &mut Option<T>, value: &Option<T>) {
        if value.is_some() {
            field.clone_from(value);
        }
    }
    set::<Cause>(&mut run.cause, &update.cause);
    set(&mut run.exit, &update.exit);
    set(&mut run.started_at, &update.started_at);
    set(&mut run.ended_at, &update.ended_at);
    set(&mut run.trust, &update.trust);
    set(&mut run.outputs, &update.outputs);
    set(&mut run.manifest_sha256, &update.manifest_sha256);
    set(&mut run.isolation, &update.isolation);
    set(&mut run.logged, &update.logged);
    if let Some(message) = &update.message {
        run.message.clone_from(message);
    }
    if let Some(metrics) = &update.metrics {
        run.metrics.clone_from(metrics);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_stands_where_its_points_stand() {
        use Phase::*;
        let cases: &[(&[Phase], Phase)] = &[
            (&[Queued, Queued], Queued),
            (&[Queued, Starting], Running),
            (&[Completed, Queued], Running),
            (&[Failed, Running], Running),
            (&[Finishing], Running),
            (&[Completed, Completed], Completed),
            (&[Completed, Cancelled], Cancelled),
            (&[Cancelled, Interrupted], Interrupted),
            (&[Completed, Failed, Interrupted, Cancelled], Failed),
        ];
        for (points, expected) in cases {
            let mut counts = PhaseCounts::default();
            for point in *points {
                counts[phase_code(*point)] += 1;
            }
            assert_eq!(sweep_phase(&counts), *expected, "{points:?}");
        }
    }

    #[test]
    fn phase_codes_are_the_places_in_the_list() {
        for (place, phase) in PHASES.into_iter().enumerate() {
            assert_eq!(phase_code(phase), place);
        }
    }
}
