//! The writes of one run: submit, claim, advance, metrics. Moves of many at once
//! stand in `moves`. Each function is the work of one job and runs inside the group's transaction.

use std::collections::{BTreeMap, HashMap};

use mlmesh_model::{
    Advance, ApiKey, Attempt, AuditNote, Cause, Claim, Digest, Event, EventKind, FencingToken,
    KeyClass, MetricSummary, Micros, Phase, Run, RunId, RunKind, StoreError, Submit, Submitted,
    Tenant,
};

use crate::catalog;
use crate::crash::{self, Stage, WriteKind};
use crate::derived::{self, Derived};
use crate::group::Tx;
use crate::laws::{self, PhaseCounts, phase_code, sweep_phase};
use crate::rows::{self, INSERT_RUN, Loaded, Template, insert_params};
use crate::sql::{Param, Row, Sql, to_json};
use crate::{reproductions, tellings};

/// Remembers an idempotency key: of a submission with its run, of another request
/// with its answer.
pub(crate) const INSERT_KEY: &str = "INSERT INTO idempotency (tenant, key, request_sha256, run, answer, time) \
     VALUES ($1, $2, $3, $4, $5, $6)";

/// Rows that are encoded at once.
pub(crate) const CHUNK_ROWS: usize = 256;

pub(crate) async fn submit<S: Sql>(
    tx: &mut Tx<S>,
    mut submit: Submit,
) -> Result<Submitted, StoreError> {
    let Some(first) = submit.runs.first() else {
        return Err(StoreError::Damaged("a submission carries no run".into()));
    };
    let (id, tenant) = (first.id, first.tenant.clone());
    if let Some(key) = &submit.idempotency_key
        && let Some(earlier) = earlier_submission(tx, &tenant, key, &submit).await?
    {
        return Ok(earlier);
    }
    for run in &mut submit.runs {
        if run.phase != Phase::Queued {
            return Err(StoreError::MoveNotAllowed {
                run: run.id,
                from: run.phase,
                to: Phase::Queued,
            });
        }
        run.seq = tx.next_seq();
    }
    insert_runs(tx, &submit.runs).await?;
    insert_counts(tx, &submit.runs).await?;
    reproductions::note(tx, &submit.runs).await?;
    tellings::note(tx, &submit.runs).await?;
    if let Some(key) = &submit.idempotency_key {
        let params = [
            Param::text(tenant.as_str()),
            Param::text(key),
            Param::digest(&submit.request_sha256),
            Param::owned(id.to_string()),
            Param::Null,
            Param::Int(submit.audit.time.0),
        ];
        tx.sql.run(INSERT_KEY, &params).await?;
    }
    tx.audit(submit.audit).await?;
    crash::hit(WriteKind::Submit, Stage::RowsWritten);
    Ok(Submitted { id, fresh: true })
}

async fn earlier_submission<S: Sql>(
    tx: &mut Tx<S>,
    tenant: &Tenant,
    key: &str,
    submit: &Submit,
) -> Result<Option<Submitted>, StoreError> {
    const SELECT: &str =
        "SELECT request_sha256, run, answer FROM idempotency WHERE tenant = $1 AND key = $2";
    let params = [Param::text(tenant.as_str()), Param::text(key)];
    let Some(mut row) = tx.sql.row(SELECT, &params).await? else {
        return Ok(None);
    };
    let same = row.digest()? == submit.request_sha256;
    let subject = row.text()?;
    // Other requests are kept with an answer.
    if !same || row.opt_text()?.is_some() {
        return Err(StoreError::IdempotencyMismatch(key.to_owned()));
    }
    let id = subject
        .parse()
        .map_err(|_| StoreError::Damaged(format!("an idempotency key names run `{subject}`")))?;
    Ok(Some(Submitted { id, fresh: false }))
}

pub(crate) async fn insert_runs<S: Sql>(tx: &mut Tx<S>, runs: &[Run]) -> Result<(), StoreError> {
    let sweeps = sweeps_of(runs);
    for chunk in runs.chunks(CHUNK_ROWS) {
        let mut inserts = Vec::with_capacity(chunk.len());
        for run in chunk {
            let (parent, carries) = match run.kind {
                RunKind::Single => (None, None),
                RunKind::Parent { .. } => {
                    let template = sweeps.get(&run.id).map(|(_, template)| template.to_text());
                    (None, template.transpose()?)
                }
                RunKind::Child { parent, .. } => {
                    // A point comes in one submission with its parent.
                    let sweep = sweeps.get(&parent).filter(|(seq, _)| *seq > 0);
                    let (seq, template) = sweep.ok_or(StoreError::NoRun(parent))?;
                    (Some((*seq, template)), None)
                }
            };
            inserts.push(insert_params(run, parent, carries)?);
        }
        if let Some(place) = tx.sql.run_each(INSERT_RUN, &inserts).await? {
            return Err(StoreError::RunExists(chunk[place].id));
        }
        for run in chunk {
            derived::insert(&mut tx.sql, run.seq, Derived::of(run)).await?;
        }
        let queued: Vec<_> = chunk
            .iter()
            .filter(|run| !matches!(run.kind, RunKind::Parent { .. }))
            .filter(|run| run.phase == Phase::Queued)
            .map(|run| vec![Param::count(run.seq.0)])
            .collect();
        tx.sql
            .run_each("INSERT INTO queue (seq) VALUES ($1)", &queued)
            .await?;
    }
    Ok(())
}

/// Sequence and template of each sweep; sequence 0 where the parent is absent.
fn sweeps_of(runs: &[Run]) -> HashMap<RunId, (i64, Template)> {
    let mut sweeps = HashMap::new();
    for run in runs {
        if let RunKind::Child { parent, .. } = run.kind {
            sweeps
                .entry(parent)
                .or_insert_with(|| (0, Template::of(parent, run)));
        }
    }
    for run in runs {
        if let (RunKind::Parent { .. }, Some(sweep)) = (run.kind, sweeps.get_mut(&run.id)) {
            sweep.0 = i64::try_from(run.seq.0).unwrap_or(0);
        }
    }
    sweeps
}

pub(crate) async fn insert_counts<S: Sql>(tx: &mut Tx<S>, runs: &[Run]) -> Result<(), StoreError> {
    let mut tenants: BTreeMap<&Tenant, PhaseCounts> = BTreeMap::new();
    for run in runs {
        if !matches!(run.kind, RunKind::Parent { .. }) {
            tenants.entry(&run.tenant).or_default()[phase_code(run.phase)] += 1;
        }
    }
    for (tenant, counts) in tenants {
        count_tenant(&mut tx.sql, tenant, &counts).await?;
    }
    let points = points_by_phase(runs);
    for run in runs {
        if let RunKind::Parent { .. } = run.kind {
            const INSERT: &str = "INSERT INTO sweeps (parent, n0, n1, n2, n3, n4, n5, n6, n7, n8, n9) \
                                  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
            let points = points.get(&run.id).copied().unwrap_or_default();
            let mut params = vec![Param::count(run.seq.0)];
            params.extend(points.iter().map(|count| Param::Int(*count)));
            tx.sql.run(INSERT, &params).await?;
        }
    }
    Ok(())
}

/// The points of each sweep.
pub(crate) fn points_by_phase(runs: &[Run]) -> HashMap<RunId, PhaseCounts> {
    let mut points: HashMap<RunId, PhaseCounts> = HashMap::new();
    for run in runs {
        if let RunKind::Child { parent, .. } = run.kind {
            points.entry(parent).or_default()[phase_code(run.phase)] += 1;
        }
    }
    points
}

pub(crate) async fn claim<S: Sql>(tx: &mut Tx<S>, claim: Claim) -> Result<Attempt, StoreError> {
    let locked = tx
        .sql
        .row(S::LOCK_QUEUED, &[Param::owned(claim.run.to_string())])
        .await?;
    let mut loaded = loaded(tx, claim.run).await?;
    if locked.is_none() {
        return Err(StoreError::NotQueued(claim.run));
    }
    let attempt = laws::claim(&mut loaded.run, &claim)?;
    const INSERT: &str = "INSERT INTO attempts (run, number, token, node, boot_id, leased_at) \
                          VALUES ($1, $2, $3, $4, $5, $6)";
    let params = [
        Param::count(loaded.run.seq.0),
        Param::int(attempt.number.0),
        Param::count(attempt.token.0),
        Param::text(attempt.node.as_str()),
        Param::text(&attempt.boot_id),
        Param::Int(attempt.leased_at.0),
    ];
    tx.sql.run(INSERT, &params).await?;
    if let Some(sha256) = claim.token_sha256 {
        let key = attempt_key(&loaded.run, &attempt, sha256);
        catalog::remove_attempt_keys(&mut tx.sql, claim.run).await?;
        catalog::insert_key(&mut tx.sql, &key).await?;
    }
    moved(tx, &loaded, Phase::Queued, &[Phase::Starting], claim.time).await?;
    crash::hit(WriteKind::Claim, Stage::RowsWritten);
    Ok(attempt)
}

fn attempt_key(run: &Run, attempt: &Attempt, sha256: Digest) -> ApiKey {
    ApiKey {
        name: attempt.key_name(),
        tenant: run.tenant.clone(),
        owner: run.owner.clone(),
        sha256,
        class: KeyClass::Attempt,
        run: Some(run.id),
        created_at: attempt.leased_at,
        revoked_at: None,
    }
}

pub(crate) async fn advance<S: Sql>(tx: &mut Tx<S>, advance: Advance) -> Result<Run, StoreError> {
    let mut loaded = loaded(tx, advance.run).await?;
    let from = loaded.run.phase;
    laws::advance(&mut loaded.run, &advance)?;
    moved(tx, &loaded, from, &advance.to, advance.time).await?;
    record_attempt(tx, &loaded.run, &advance).await?;
    if loaded.run.placement.api && !loaded.run.phase.is_live() {
        catalog::remove_attempt_keys(&mut tx.sql, advance.run).await?;
    }
    if let (Phase::Queued, Some(not_before)) = (loaded.run.phase, advance.not_before) {
        const UPDATE: &str = "UPDATE queue SET not_before = $1 WHERE seq = $2";
        let params = [Param::Int(not_before.0), Param::count(loaded.run.seq.0)];
        tx.sql.run(UPDATE, &params).await?;
    }
    crash::hit(WriteKind::Advance, Stage::RowsWritten);
    Ok(loaded.run)
}

/// Writes into the newest attempt what the move says of it.
async fn record_attempt<S: Sql>(
    tx: &mut Tx<S>,
    run: &Run,
    advance: &Advance,
) -> Result<(), StoreError> {
    let record = &advance.record;
    let lease_over = !run.phase.is_live();
    let ended_at = record.ended_at.or(lease_over.then_some(advance.time));
    const UPDATE: &str = "UPDATE attempts SET started_at = COALESCE($1, started_at), \
         ended_at = COALESCE(ended_at, $2), exit = COALESCE($3, exit), \
         cause = COALESCE($4, cause) WHERE run = $5 AND number = $6";
    let exit = record.exit.as_ref().map(to_json).transpose()?;
    let params = [
        time_or_null(record.started_at),
        time_or_null(ended_at),
        Param::or_null(exit.map(Param::owned)),
        Param::or_null(record.cause.map(|cause| Param::text(cause.as_str()))),
        Param::count(run.seq.0),
        Param::int(run.attempts),
    ];
    tx.sql.run(UPDATE, &params).await?;
    Ok(())
}

pub(crate) async fn set_metrics<S: Sql>(
    tx: &mut Tx<S>,
    run: RunId,
    token: FencingToken,
    metrics: BTreeMap<String, MetricSummary>,
) -> Result<(), StoreError> {
    let mut loaded = loaded(tx, run).await?;
    laws::check_token(&loaded.run, token)?;
    loaded.run.metrics = metrics;
    rows::save(&mut tx.sql, &loaded).await
}

/// Writes an event and an audit row.
pub(crate) async fn record<S: Sql>(
    tx: &mut Tx<S>,
    event: Option<Event>,
    audit: Option<AuditNote>,
) -> Result<(), StoreError> {
    if let Some(event) = event {
        tx.emit(&event).await?;
    }
    if let Some(note) = audit {
        tx.audit(note).await?;
    }
    Ok(())
}

/// Adds to the counts of a tenant.
pub(crate) async fn count_tenant(
    sql: &mut impl Sql,
    tenant: &Tenant,
    delta: &PhaseCounts,
) -> Result<(), StoreError> {
    const UPSERT: &str = "INSERT INTO counts (tenant, n0, n1, n2, n3, n4, n5, n6, n7, n8, n9) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (tenant) DO UPDATE SET \
         n0 = counts.n0 + excluded.n0, n1 = counts.n1 + excluded.n1, \
         n2 = counts.n2 + excluded.n2, n3 = counts.n3 + excluded.n3, \
         n4 = counts.n4 + excluded.n4, n5 = counts.n5 + excluded.n5, \
         n6 = counts.n6 + excluded.n6, n7 = counts.n7 + excluded.n7, \
         n8 = counts.n8 + excluded.n8, n9 = counts.n9 + excluded.n9";
    let mut params = vec![Param::text(tenant.as_str())];
    params.extend(delta.iter().map(|count| Param::Int(*count)));
    sql.run(UPSERT, &params).await?;
    Ok(())
}

/// The counts of a row, one for each phase.
pub(crate) fn counts_of(row: &mut Row) -> Result<PhaseCounts, StoreError> {
    let mut counts = PhaseCounts::default();
    for count in &mut counts {
        *count = row.int()?;
    }
    Ok(counts)
}

async fn loaded<S: Sql>(tx: &mut Tx<S>, id: RunId) -> Result<Loaded, StoreError> {
    rows::load(&mut tx.sql, id)
        .await?
        .ok_or(StoreError::NoRun(id))
}

/// Writes a run that has moved: its row, its place in the queue, the counts, an
/// event for each phase, and its sweep.
async fn moved<S: Sql>(
    tx: &mut Tx<S>,
    loaded: &Loaded,
    from: Phase,
    phases: &[Phase],
    time: Micros,
) -> Result<(), StoreError> {
    let run = &loaded.run;
    rows::save(&mut tx.sql, loaded).await?;
    let seq = [Param::count(run.seq.0)];
    if from == Phase::Queued {
        tx.sql.run("DELETE FROM queue WHERE seq = $1", &seq).await?;
    }
    if run.phase == Phase::Queued {
        tx.sql
            .run("INSERT INTO queue (seq) VALUES ($1)", &seq)
            .await?;
    }
    for (place, phase) in phases.iter().enumerate() {
        // The cause belongs to the move that it explains: the last one.
        let cause = (place + 1 == phases.len()).then_some(run.cause).flatten();
        emit_phase(tx, run, run.id, (*phase, cause, run.attempts), time).await?;
    }
    if from == run.phase {
        return Ok(());
    }
    let mut delta = PhaseCounts::default();
    delta[phase_code(from)] -= 1;
    delta[phase_code(run.phase)] += 1;
    count_tenant(&mut tx.sql, &run.tenant, &delta).await?;
    match loaded.parent {
        Some(parent) => sweep_moved(tx, run, parent, &delta, time).await,
        None => Ok(()),
    }
}

/// Counts a point's move in its sweep. The parent's phase follows from the
/// counts; it is written beside them so that lists can be filtered by it.
pub(crate) async fn sweep_moved<S: Sql>(
    tx: &mut Tx<S>,
    point: &Run,
    parent: i64,
    delta: &PhaseCounts,
    time: Micros,
) -> Result<(), StoreError> {
    const COUNT: &str = "UPDATE sweeps SET n0 = n0 + $1, n1 = n1 + $2, n2 = n2 + $3, \
         n3 = n3 + $4, n4 = n4 + $5, n5 = n5 + $6, n6 = n6 + $7, n7 = n7 + $8, \
         n8 = n8 + $9, n9 = n9 + $10 \
         WHERE parent = $11 RETURNING n0, n1, n2, n3, n4, n5, n6, n7, n8, n9";
    let mut params: Vec<_> = delta.iter().map(|count| Param::Int(*count)).collect();
    params.push(Param::Int(parent));
    let row = tx.sql.row(COUNT, &params).await?;
    let gone = || StoreError::Damaged(format!("sweep {parent} has no counts"));
    let after = counts_of(&mut row.ok_or_else(gone)?)?;
    let mut before = after;
    for (count, change) in before.iter_mut().zip(delta) {
        *count -= change;
    }
    let phase = sweep_phase(&after);
    let RunKind::Child { parent: id, .. } = point.kind else {
        return Err(gone());
    };
    if phase == sweep_phase(&before) {
        return Ok(());
    }
    const UPDATE: &str = "UPDATE runs SET phase = $1, started_at = COALESCE(started_at, $2), \
                          ended_at = $3 WHERE seq = $4";
    let params = [
        Param::Int(phase_code(phase) as i64),
        time_or_null((phase == Phase::Running).then_some(time)),
        time_or_null(phase.is_ended().then_some(time)),
        Param::Int(parent),
    ];
    tx.sql.run(UPDATE, &params).await?;
    emit_phase(tx, point, id, (phase, None, 0), time).await
}

pub(crate) async fn emit_phase<S: Sql>(
    tx: &mut Tx<S>,
    owner: &Run,
    id: RunId,
    (phase, cause, attempt): (Phase, Option<Cause>, u32),
    time: Micros,
) -> Result<(), StoreError> {
    tx.emit(&phase_event(owner, id, (phase, cause, attempt), time))
        .await
}

/// The event of a run's move, or of its sweep's.
pub(crate) fn phase_event(
    owner: &Run,
    id: RunId,
    (phase, cause, attempt): (Phase, Option<Cause>, u32),
    time: Micros,
) -> Event {
    Event {
        seq: mlmesh_model::Sequence(0),
        time,
        tenant: owner.tenant.clone(),
        owner: owner.owner.clone(),
        run: Some(id),
        kind: EventKind::RunPhase {
            phase,
            cause,
            attempt,
        },
    }
}

pub(crate) fn time_or_null(time: Option<Micros>) -> Param<'static> {
    Param::or_null(time.map(|time| Param::Int(time.0)))
}
