//! Random operations on SQLite: whatever is asked in whatever order, the phase
//! table is never left, a queue row stands for each queued run and for nothing
//! else, tokens only grow, the counts equal a recount, and the audit chain holds.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use mlmesh_model::*;
use mlmesh_store::{SqliteStore, verify_chain};
use proptest::prelude::*;

use crate::fixtures::*;

#[derive(Debug, Clone)]
enum Operation {
    Submit,
    SubmitSweep(u32),
    Claim(usize),
    /// Which run, where to, and how many leases its token is behind.
    Advance(usize, Vec<Phase>, u64),
    Move(usize, Phase, Phase),
    Prune,
    Reopen,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let phase = || prop::sample::select(PHASES.to_vec());
    let operation = prop_oneof![
        3 => Just(Operation::Submit),
        1 => (0_u32..4).prop_map(Operation::SubmitSweep),
        6 => any::<prop::sample::Index>().prop_map(|run| Operation::Claim(run.index(64))),
        8 => (0_usize..64, prop::collection::vec(phase(), 0..3), prop_oneof![4 => Just(0), 1 => 1_u64..3])
            .prop_map(|(run, to, behind)| Operation::Advance(run, to, behind)),
        4 => (0_usize..64, phase(), phase()).prop_map(|(run, from, to)| Operation::Move(run, from, to)),
        1 => Just(Operation::Prune),
        1 => Just(Operation::Reopen),
    ];
    prop::collection::vec(operation, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 32,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_operations_keep_the_invariants(operations in operations()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meshd.db");
        block_on(async {
            let mut store = SqliteStore::open(&path).unwrap();
            let mut ids: Vec<RunId> = Vec::new();
            let mut tokens: HashMap<RunId, FencingToken> = HashMap::new();
            for operation in operations {
                if matches!(operation, Operation::Reopen) {
                    drop(store);
                    store = SqliteStore::open(&path).unwrap();
                }
                apply(&store, &mut ids, operation).await;
                for id in &ids {
                    let token = stored_run(&*store, *id).await.token;
                    let before = tokens.insert(*id, token).unwrap_or(token);
                    assert!(token >= before, "tokens only grow");
                }
            }
            check(&store, &path, &ids).await;
        });
    }
}

async fn apply(store: &SqliteStore, ids: &mut Vec<RunId>, operation: Operation) {
    let chosen = |ids: &[RunId], run: usize| (!ids.is_empty()).then(|| ids[run % ids.len()]);
    match operation {
        Operation::Submit => {
            ids.extend(submitted(store, vec![run()]).await.iter().map(|run| run.id));
        }
        Operation::SubmitSweep(points) => {
            let runs = submitted(store, sweep(points)).await;
            ids.extend(runs.iter().map(|run| run.id));
        }
        Operation::Claim(run) => {
            if let Some(id) = chosen(ids, run) {
                expected(store.claim(claim_of(id)).await);
            }
        }
        Operation::Advance(run, to, behind) => {
            if let Some(id) = chosen(ids, run) {
                let newest = stored_run(store, id).await.token;
                expected(
                    store
                        .advance(Advance {
                            run: id,
                            token: FencingToken(newest.0.saturating_sub(behind)),
                            to,
                            time: Micros(4_000_000),
                            record: RunUpdate {
                                metrics: (behind == 0).then(|| metrics_at(newest.0)),
                                logged: (behind == 0).then(|| logged_at(newest.0)),
                                ..RunUpdate::default()
                            },
                            not_before: None,
                        })
                        .await,
                );
            }
        }
        Operation::Move(run, from, to) => {
            if let Some(id) = chosen(ids, run) {
                expected(move_one(store, unleased(id, from, to)).await);
            }
        }
        Operation::Prune => {
            let removed = store
                .prune_runs(&tenant(), Micros(i64::MAX), note("run.prune"))
                .await
                .unwrap();
            ids.retain(|id| !removed.contains(id));
        }
        Operation::Reopen => {}
    }
}

fn metrics_at(token: u64) -> BTreeMap<String, MetricSummary> {
    let value = MetricValue(token as f64);
    let summary = MetricSummary {
        last: value,
        min: value,
        max: value,
        steps: 1,
    };
    let names = ["loss".to_owned(), format!("m{}", token % 3)];
    names.map(|name| (name, summary.clone())).into()
}

fn logged_at(token: u64) -> Logged {
    let (name, value) = (format!("p{}", token % 3), token.to_string());
    logged(&[("lr", "0.1"), (&name, &value)], &[(&name, "a\0b")])
}

/// Refusals are fine; failures are not.
fn expected<T>(outcome: Result<T, StoreError>) {
    match outcome {
        Ok(_)
        | Err(
            StoreError::NotQueued(_)
            | StoreError::StaleToken { .. }
            | StoreError::MoveNotAllowed { .. },
        ) => {}
        Err(error) => panic!("{error}"),
    }
}

/// All invariants of a store that holds exactly the runs `ids` of one tenant.
pub(crate) async fn check(store: &SqliteStore, path: &Path, ids: &[RunId]) {
    let mut phases: BTreeMap<RunId, Phase> = BTreeMap::new();
    let mut parents = Vec::new();
    let mut recount: BTreeMap<Phase, u64> = PHASES.into_iter().map(|phase| (phase, 0)).collect();
    for id in ids {
        let run = stored_run(store, *id).await;
        let attempts = store.attempts(*id).await.unwrap();
        assert_eq!(attempts.len(), run.attempts as usize);
        assert_eq!(run.token, FencingToken(u64::from(run.attempts)));
        if let RunKind::Parent { .. } = run.kind {
            parents.push(run);
        } else {
            *recount.entry(run.phase).or_default() += 1;
            phases.insert(run.id, run.phase);
        }
    }
    assert_eq!(store.counts(&tenant()).await.unwrap(), recount);
    for parent in parents {
        let points = RunQuery {
            parent: Some(parent.id),
            limit: 1000,
            ..query()
        };
        let points = store.runs(points).await.unwrap();
        let all = |phase| points.iter().all(|point| point.phase == phase);
        let ended = points.iter().all(|point| point.phase.is_ended());
        assert_eq!(parent.phase == Phase::Queued, all(Phase::Queued));
        if !points.is_empty() {
            assert_eq!(parent.phase.is_ended(), ended);
            assert_eq!(parent.phase == Phase::Completed, all(Phase::Completed));
        }
    }
    let open = store.open_runs().await.unwrap();
    assert!(open.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    let open: Vec<RunId> = open.into_iter().map(|run| run.id).collect();
    let not_ended = |phase: &Phase| !phase.is_ended();
    let expected = phases.values().filter(|phase| not_ended(phase)).count();
    assert_eq!(open.len(), expected);
    assert!(open.iter().all(|id| not_ended(&phases[id])));
    assert_eq!(queued_rows(path), {
        let mut queued: Vec<String> = phases
            .iter()
            .filter(|(_, phase)| **phase == Phase::Queued)
            .map(|(id, _)| id.to_string())
            .collect();
        queued.sort();
        queued
    });
    derived_rows_are_those_of_the_runs(store, path, ids).await;
    phase_table_is_kept(store, &phases).await;
    let rows = store.audit_rows(0, 100_000).await.unwrap();
    let head = store.audit_head().await.unwrap();
    let noted = Some((head.n, head.hash));
    assert_eq!(verify_chain(rows.into_iter(), noted), Ok(head));
}

/// The rows by which runs are found say what the runs say.
async fn derived_rows_are_those_of_the_runs(store: &SqliteStore, path: &Path, ids: &[RunId]) {
    let mut expected = Vec::new();
    let mut logged = Vec::new();
    for id in ids {
        let run = stored_run(store, *id).await;
        let seq = run.seq.0.cast_signed();
        let said = run.logged.unwrap_or_default();
        for (family, texts) in [(0, said.params), (1, said.tags)] {
            let rows = texts.into_iter();
            logged.extend(
                rows.map(|(name, value)| (family, name.into_bytes(), seq, value.into_bytes())),
            );
        }
        expected.extend(run.metrics.into_iter().map(|(name, metric)| {
            let numbers = [metric.last, metric.min, metric.max].map(|number| number.0);
            (name, seq, numbers.map(in_order), metric.steps.cast_signed())
        }));
    }
    expected.sort();
    logged.sort();
    let connection = rusqlite::Connection::open(path).unwrap();
    let mut statement = connection
        .prepare("SELECT family, name, run, value FROM logged_values ORDER BY 1, 2, 3")
        .unwrap();
    let rows = statement.query_map([], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
    });
    let rows: Vec<(i64, Vec<u8>, i64, Vec<u8>)> = rows.unwrap().map(Result::unwrap).collect();
    assert_eq!(rows, logged);
    let mut statement = connection
        .prepare("SELECT name, run, value, lowest, highest, steps FROM last_values ORDER BY 1, 2")
        .unwrap();
    let rows = statement.query_map([], |row| {
        let numbers = [row.get(2)?, row.get(3)?, row.get(4)?];
        Ok((row.get(0)?, row.get(1)?, numbers, row.get(5)?))
    });
    let rows: Vec<(String, i64, [i64; 3], i64)> = rows.unwrap().map(Result::unwrap).collect();
    assert_eq!(rows, expected);
}

/// A number as the database has it.
fn in_order(number: f64) -> i64 {
    match number {
        number if number.is_nan() => i64::MAX,
        number if number > 0.0 => number.to_bits().cast_signed(),
        number if number < 0.0 => -1 - (-number).to_bits().cast_signed(),
        _ => 0,
    }
}

/// The ids in the queue table, read from the file itself.
fn queued_rows(path: &Path) -> Vec<String> {
    let connection = rusqlite::Connection::open(path).unwrap();
    let mut statement = connection
        .prepare("SELECT r.id FROM queue q LEFT JOIN runs r ON r.seq = q.seq ORDER BY r.id")
        .unwrap();
    let ids = statement.query_map([], |row| row.get(0)).unwrap();
    ids.map(Result::unwrap).collect()
}

/// Each run's events follow the table and end where the run stands.
async fn phase_table_is_kept(store: &SqliteStore, phases: &BTreeMap<RunId, Phase>) {
    let events = store.events(&tenant(), Sequence(0), 1_000_000).await;
    let mut at: HashMap<RunId, Phase> = HashMap::new();
    for event in events.unwrap() {
        let (Some(run), EventKind::RunPhase { phase, .. }) = (event.run, event.kind) else {
            continue;
        };
        if !phases.contains_key(&run) {
            continue;
        }
        match at.insert(run, phase) {
            None => assert_eq!(phase, Phase::Queued, "{run}"),
            Some(before) => assert!(before.may_become(phase), "{run}: {before} to {phase}"),
        }
    }
    assert_eq!(at.len(), phases.len());
    assert!(at.iter().all(|(run, phase)| phases[run] == *phase));
}
