//! What the `Store` port promises, asked of every backend.

mod catalog;
mod imports;
mod moves;
mod reads;
pub(crate) mod reproductions;
mod searches;
mod tellings;
mod users;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mlmesh_model::*;
use mlmesh_store::{PostgresStore, verify_chain};
use mlmesh_testkit::postgres::PostgresServer;

use crate::fixtures::*;
use catalog::*;
use imports::*;
use moves::*;
use reads::*;
use reproductions::*;
use searches::*;
use tellings::*;
use users::*;

/// Names the cases once; each backend runs all of them on a fresh store.
macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        mod sqlite {
            use super::*;
            $(#[test]
            fn $case() {
                let directory = tempfile::tempdir().unwrap();
                let path = directory.path().join("meshd.db");
                block_on(async {
                    let store = mlmesh_store::SqliteStore::open(&path).unwrap();
                    super::$case(store).await;
                });
            })*
        }

        /// One server for all cases, a schema for each.
        #[test]
        fn postgres_conforms() {
            let Some(mut server) = PostgresServer::start() else { return };
            $({
                println!("case {}", stringify!($case));
                let config = server.new_schema().unwrap();
                block_on(async {
                    let store = PostgresStore::connect(&config).await.unwrap();
                    $case(store).await;
                });
            })*
        }
    };
}

cases! {
    a_run_comes_back_as_it_went_in,
    a_sweep_comes_back_as_it_went_in,
    points_that_differ_everywhere_come_back_too,
    a_submission_is_all_or_nothing,
    a_repeated_key_gives_the_first_outcome,
    what_ended_elsewhere_is_taken_over_whole_or_not_at_all,
    a_claim_takes_the_run_from_the_queue,
    an_old_token_is_refused_and_changes_nothing,
    the_phase_table_is_kept,
    a_run_goes_all_the_way,
    a_requeued_run_is_claimed_again_under_a_new_token,
    unleased_moves_cancel_and_retry,
    many_runs_move_in_one_transaction,
    a_request_s_answer_is_kept_with_its_key,
    what_waits_for_another_try_says_until_when,
    labels_are_changed_once_and_stand_beside_moves,
    users_change_together_with_their_keys,
    the_last_admin_stays,
    what_somebody_has_sent_is_known_of_them_alone,
    pins_keep_runs_sweeps_and_trees,
    metrics_keep_every_bit,
    a_sweep_stands_where_its_points_stand,
    lists_are_newest_first_and_paged,
    lists_are_filtered,
    points_are_listed_in_sweep_order,
    ids_are_found_by_prefix,
    searches_find_what_the_plain_reference_finds,
    searches_over_many_runs_find_the_same,
    searches_forget_what_is_pruned,
    an_end_is_to_be_told_until_it_was,
    a_sweep_is_told_as_a_whole,
    open_runs_are_queued_and_live_ones,
    events_tell_what_was_committed_in_order,
    tenants_do_not_see_each_other,
    the_audit_chain_verifies,
    datasets_are_registered_once,
    keys_are_replaced_and_revoked,
    a_token_of_an_attempt_lives_from_claim_to_end,
    a_repetition_is_judged_once,
    judgements_stay_while_the_original_does,
    references_name_trees_and_outputs,
    references_name_environments_with_who_has_them,
    prune_removes_what_ended_long_ago,
    check_writes_and_reads,
    racing_claims_take_each_run_once,
    racing_submissions_get_one_sequence_each,
}

async fn a_run_comes_back_as_it_went_in(store: Arc<dyn Store>) {
    let mut run = run();
    run.message = "a message with 'quotes' and ünïcödé".into();
    run.trust = None;
    run.git = None;
    run.placement.current_environment = Some("/home/ada/venv".into());
    run.isolation = Some(Isolation {
        namespaces: vec!["user".into()],
        ..Isolation::default()
    });
    let outcome = store.submit(submission(vec![run.clone()])).await.unwrap();
    let expected = Submitted {
        id: run.id,
        fresh: true,
    };
    assert_eq!(outcome, expected);
    let stored = stored_run(&*store, run.id).await;
    assert!(stored.seq > Sequence(0));
    run.seq = stored.seq;
    assert_eq!(stored, run);
    let plan = stored.plan.unwrap();
    assert_eq!(plan.digest().unwrap(), run.plan_sha256);
    assert_eq!(store.run(&tenant(), new_id()).await.unwrap(), None);
}

async fn a_sweep_comes_back_as_it_went_in(store: Arc<dyn Store>) {
    let runs = sweep(600);
    let outcome = store.submit(submission(runs.clone())).await.unwrap();
    assert_eq!(outcome.id, runs[0].id);
    let mut last = Sequence(0);
    for mut run in runs {
        let stored = stored_run(&*store, run.id).await;
        assert!(stored.seq > last);
        last = stored.seq;
        run.seq = stored.seq;
        assert_eq!(stored, run);
    }
    assert_eq!(counted(&*store).await, [(Phase::Queued, 600)]);
}

async fn points_that_differ_everywhere_come_back_too(store: Arc<dyn Store>) {
    let mut other = plan("0.9");
    other.commit = CommitId(Digest::of(b"another tree"));
    other.argv = vec!["true".into()];
    other.env.clear();
    other.secrets = vec!["TOKEN".into()];
    other.deps = None;
    other.datasets.clear();
    other.seed = PlanSeed::Absent;
    other.outputs.clear();
    other.resources.gpus = 1;
    other.image = Some(Digest::of(b"image"));
    other.network = PlanNetwork::Hosts(vec!["example.org".into()]);
    let mut point = run_of(other);
    point.name = "other".parse().unwrap();
    point.owner = "bob".parse().unwrap();
    point.git = None;
    point.trust = None;
    point.placement = Placement {
        node: Some("node-7".parse().unwrap()),
        priority: 9,
        ..Placement::default()
    };
    let mut unplanned = run();
    unplanned.plan = None;
    let runs = sweep_of(vec![run(), point, unplanned, run()]);
    for (mut sent, stored) in runs.clone().into_iter().zip(submitted(&*store, runs).await) {
        sent.seq = stored.seq;
        assert_eq!(stored, sent);
    }
}

async fn a_submission_is_all_or_nothing(store: Arc<dyn Store>) {
    let first = submitted(&*store, vec![run()]).await.remove(0);
    let before = store.last_event().await.unwrap();
    let mut runs = sweep(5);
    runs[4].id = first.id;
    let parent = runs[0].id;
    let error = store.submit(submission(runs)).await.unwrap_err();
    assert!(
        matches!(error, StoreError::RunExists(id) if id == first.id),
        "{error}"
    );
    let mut orphan = run();
    orphan.kind = RunKind::Child {
        parent: new_id(),
        index: 0,
    };
    let error = store.submit(submission(vec![orphan])).await.unwrap_err();
    assert!(matches!(error, StoreError::NoRun(_)), "{error}");
    assert_eq!(store.run(&tenant(), parent).await.unwrap(), None);
    assert_eq!(store.last_event().await.unwrap(), before);
    assert_eq!(counted(&*store).await, [(Phase::Queued, 1)]);
    assert_eq!(store.open_runs().await.unwrap(), [first]);
    assert_eq!(store.audit_rows(0, 10).await.unwrap().len(), 1);
}

async fn a_repeated_key_gives_the_first_outcome(store: Arc<dyn Store>) {
    let submit = |runs: Vec<Run>, body: &[u8]| Submit {
        idempotency_key: Some("key-1".into()),
        request_sha256: Digest::of(body),
        ..submission(runs)
    };
    let (first, second) = (run(), run());
    let outcome = store.submit(submit(vec![first.clone()], b"a")).await;
    assert!(outcome.unwrap().fresh);
    let again = store.submit(submit(vec![second], b"a")).await.unwrap();
    let expected = Submitted {
        id: first.id,
        fresh: false,
    };
    assert_eq!(again, expected);
    let error = store.submit(submit(vec![run()], b"b")).await.unwrap_err();
    assert!(matches!(error, StoreError::IdempotencyMismatch(key) if key == "key-1"));
    let mut foreign = run();
    foreign.tenant = "other".parse().unwrap();
    let outcome = store.submit(submit(vec![foreign], b"b")).await.unwrap();
    assert!(outcome.fresh, "keys are per tenant");
    assert_eq!(counted(&*store).await, [(Phase::Queued, 1)]);
}

async fn a_claim_takes_the_run_from_the_queue(store: Arc<dyn Store>) {
    let run = submitted(&*store, vec![run()]).await.remove(0);
    let attempt = store.claim(claim_of(run.id)).await.unwrap();
    assert_eq!(attempt.number, AttemptNumber(1));
    assert_eq!(attempt.token, FencingToken(1));
    let attempts = store.attempts(run.id).await.unwrap();
    assert_eq!(attempts, std::slice::from_ref(&attempt));
    let stored = stored_run(&*store, run.id).await;
    assert_eq!(stored.phase, Phase::Starting);
    assert_eq!(stored.attempts, 1);
    assert_eq!(stored.token, attempt.token);
    assert_eq!(stored.placement.node, Some(attempt.node));
    assert_eq!(stored.plan, run.plan);
    let error = store.claim(claim_of(run.id)).await.unwrap_err();
    assert!(matches!(error, StoreError::NotQueued(id) if id == run.id));
    let error = store.claim(claim_of(new_id())).await.unwrap_err();
    assert!(matches!(error, StoreError::NoRun(_)));
    assert_eq!(counted(&*store).await, [(Phase::Starting, 1)]);
}

async fn an_old_token_is_refused_and_changes_nothing(store: Arc<dyn Store>) {
    let run = submitted(&*store, vec![run()]).await.remove(0);
    let old = store.claim(claim_of(run.id)).await.unwrap();
    store
        .advance(advance_of(&old, &[Phase::Queued]))
        .await
        .unwrap();
    let new = store.claim(claim_of(run.id)).await.unwrap();
    let before = (
        stored_run(&*store, run.id).await,
        store.last_event().await.unwrap(),
    );
    let late = advance_of(&old, &[Phase::Running]);
    let error = store.advance(late).await.unwrap_err();
    let StoreError::StaleToken { given, newest, .. } = error else {
        panic!("{error}");
    };
    assert_eq!((given, newest), (old.token, new.token));
    let error = store.set_metrics(run.id, old.token, BTreeMap::new()).await;
    assert!(matches!(error, Err(StoreError::StaleToken { .. })));
    let after = (
        stored_run(&*store, run.id).await,
        store.last_event().await.unwrap(),
    );
    assert_eq!(after, before);
}

async fn the_phase_table_is_kept(store: Arc<dyn Store>) {
    let run = submitted(&*store, vec![run()]).await.remove(0);
    let unleased_start = unleased(run.id, Phase::Queued, Phase::Starting);
    let error = move_one(&*store, unleased_start).await.unwrap_err();
    assert!(matches!(error, StoreError::MoveNotAllowed { .. }));
    let attempt = store.claim(claim_of(run.id)).await.unwrap();
    for to in [
        vec![Phase::Completed],
        vec![Phase::Running, Phase::Completed],
        vec![Phase::Queued, Phase::Failed],
        vec![Phase::Failed, Phase::Queued],
        vec![Phase::Starting],
    ] {
        let error = store.advance(advance_of(&attempt, &to)).await.unwrap_err();
        assert!(matches!(error, StoreError::MoveNotAllowed { .. }), "{to:?}");
    }
    let stop = unleased(run.id, Phase::Starting, Phase::Cancelled);
    let error = move_one(&*store, stop).await.unwrap_err();
    assert!(matches!(error, StoreError::MoveNotAllowed { .. }));
    let cancel = unleased(run.id, Phase::Queued, Phase::Cancelled);
    let error = move_one(&*store, cancel).await.unwrap_err();
    assert!(matches!(error, StoreError::NotQueued(_)));
    store
        .advance(advance_of(&attempt, &[Phase::Failed]))
        .await
        .unwrap();
    let error = store.advance(advance_of(&attempt, &[Phase::Queued])).await;
    assert!(
        matches!(error, Err(StoreError::MoveNotAllowed { .. })),
        "the lease is over"
    );
    assert_eq!(counted(&*store).await, [(Phase::Failed, 1)]);
}

async fn a_run_goes_all_the_way(store: Arc<dyn Store>) {
    let run = submitted(&*store, vec![run()]).await.remove(0);
    let attempt = store.claim(claim_of(run.id)).await.unwrap();
    let mut running = advance_of(&attempt, &[Phase::Running]);
    running.record.started_at = Some(Micros(3_500_000));
    running.record.isolation = Some(Isolation {
        sandboxed: true,
        ..Isolation::default()
    });
    let run = store.advance(running).await.unwrap();
    assert_eq!(run.phase, Phase::Running);
    let mut end = advance_of(&attempt, &[Phase::Finishing, Phase::Completed]);
    end.record = RunUpdate {
        message: Some("done".into()),
        exit: Some(Exit::Code(0)),
        ended_at: Some(Micros(3_900_000)),
        trust: Some(Trust {
            level: TrustLevel::L2,
            reasons: vec![],
            reproduced: None,
        }),
        outputs: Some(ObjectId(Digest::of(b"outputs"))),
        manifest_sha256: Some(Digest::of(b"manifest")),
        ..RunUpdate::default()
    };
    let run = store.advance(end).await.unwrap();
    assert_eq!(run, stored_run(&*store, run.id).await);
    assert_eq!(run.phase, Phase::Completed);
    assert_eq!(run.message, "done");
    assert_eq!(run.exit, Some(Exit::Code(0)));
    assert_eq!(run.started_at, Some(Micros(3_500_000)));
    assert_eq!(run.ended_at, Some(Micros(3_900_000)));
    assert_eq!(run.trust.unwrap().level, TrustLevel::L2);
    assert_eq!(run.outputs, Some(ObjectId(Digest::of(b"outputs"))));
    assert_eq!(run.manifest_sha256, Some(Digest::of(b"manifest")));
    assert!(run.isolation.unwrap().sandboxed);
    let attempts = store.attempts(run.id).await.unwrap();
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0].started_at, Some(Micros(3_500_000)));
    assert_eq!(attempts[0].ended_at, Some(Micros(3_900_000)));
    assert_eq!(attempts[0].exit, Some(Exit::Code(0)));
    assert_eq!(counted(&*store).await, [(Phase::Completed, 1)]);
    let events = store.events(&tenant(), Sequence(0), 100).await.unwrap();
    let phases: Vec<_> = events
        .into_iter()
        .map(|event| match event.kind {
            EventKind::RunPhase { phase, attempt, .. } => (phase, attempt),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        (Phase::Queued, 0),
        (Phase::Starting, 1),
        (Phase::Running, 1),
        (Phase::Finishing, 1),
        (Phase::Completed, 1),
    ];
    assert_eq!(phases, expected);
}

async fn a_requeued_run_is_claimed_again_under_a_new_token(store: Arc<dyn Store>) {
    let run = submitted(&*store, vec![run()]).await.remove(0);
    let first = store.claim(claim_of(run.id)).await.unwrap();
    let mut back = advance_of(&first, &[Phase::Queued]);
    back.record.cause = Some(Cause::Lost);
    back.record.message = Some("supervisor gone".into());
    back.not_before = Some(Micros(9_000_000));
    let waiting = store.advance(back).await.unwrap();
    assert_eq!(waiting.phase, Phase::Queued);
    assert_eq!(waiting.cause, Some(Cause::Lost));
    assert_eq!(waiting.message, "supervisor gone");
    assert_eq!(waiting.placement.node, None);
    assert_eq!(waiting.ended_at, None);
    assert_eq!(waiting, stored_run(&*store, run.id).await);
    let second = store.claim(claim_of(run.id)).await.unwrap();
    assert_eq!(second.number, AttemptNumber(2));
    assert!(second.token > first.token);
    let attempts = store.attempts(run.id).await.unwrap();
    assert_eq!(attempts.len(), 2);
    assert_eq!(attempts[0].cause, Some(Cause::Lost));
    assert_eq!(attempts[0].ended_at, Some(Micros(4_000_000)));
    assert_eq!(attempts[1], second);
    let run = stored_run(&*store, run.id).await;
    assert_eq!((run.cause, run.message.as_str()), (None, ""));
}

async fn unleased_moves_cancel_and_retry(store: Arc<dyn Store>) {
    let run = submitted(&*store, vec![run()]).await.remove(0);
    let cancel = unleased(run.id, Phase::Queued, Phase::Cancelled);
    let cancelled = move_one(&*store, cancel).await.unwrap();
    assert_eq!(cancelled.phase, Phase::Cancelled);
    assert_eq!(cancelled.cause, Some(Cause::Cancelled));
    assert_eq!(cancelled.ended_at, Some(Micros(5_000_000)));
    assert_eq!(cancelled, stored_run(&*store, run.id).await);
    assert!(store.open_runs().await.unwrap().is_empty());
    let error = store.claim(claim_of(run.id)).await.unwrap_err();
    assert!(matches!(error, StoreError::NotQueued(_)));
    let wrong = unleased(run.id, Phase::Failed, Phase::Queued);
    let error = move_one(&*store, wrong).await.unwrap_err();
    assert!(matches!(
        error,
        StoreError::MoveNotAllowed {
            from: Phase::Cancelled,
            ..
        }
    ));
    let retry = unleased(run.id, Phase::Cancelled, Phase::Queued);
    let queued = move_one(&*store, retry).await.unwrap();
    assert_eq!((queued.phase, queued.ended_at), (Phase::Queued, None));
    assert_eq!(store.claim(claim_of(run.id)).await.unwrap().number.0, 1);
    let actions: Vec<_> = store.audit_rows(0, 10).await.unwrap();
    assert_eq!(actions.len(), 3, "the refused move left no row");
}

async fn metrics_keep_every_bit(store: Arc<dyn Store>) {
    let run = submitted(&*store, vec![run()]).await.remove(0);
    let attempt = store.claim(claim_of(run.id)).await.unwrap();
    let values = [
        0.1 + 0.2,
        f64::MIN_POSITIVE / 3.0,
        -0.0,
        1.797_693_134_862_315_7e308,
        2.225_073_858_507_201e-308,
        f64::INFINITY,
        f64::NEG_INFINITY,
        123_456_789.123_456_79,
    ];
    let metrics: BTreeMap<String, MetricSummary> = values
        .into_iter()
        .enumerate()
        .map(|(place, value)| {
            let summary = MetricSummary {
                last: MetricValue(value),
                min: MetricValue(-value),
                max: MetricValue(value / 7.0),
                steps: u64::MAX - place as u64,
            };
            (format!("metric \"{place}\""), summary)
        })
        .collect();
    store
        .set_metrics(run.id, attempt.token, metrics.clone())
        .await
        .unwrap();
    let stored = stored_run(&*store, run.id).await.metrics;
    let bits = |metrics: &BTreeMap<String, MetricSummary>| -> Vec<_> {
        let bits = |value: MetricValue| value.0.to_bits();
        metrics
            .iter()
            .map(|(name, m)| {
                (
                    name.clone(),
                    bits(m.last),
                    bits(m.min),
                    bits(m.max),
                    m.steps,
                )
            })
            .collect()
    };
    assert_eq!(bits(&stored), bits(&metrics));
    let nan = MetricSummary {
        last: MetricValue(f64::NAN),
        min: MetricValue(1.0),
        max: MetricValue(2.0),
        steps: 3,
    };
    let metrics = BTreeMap::from([("loss".to_owned(), nan)]);
    store
        .set_metrics(run.id, attempt.token, metrics)
        .await
        .unwrap();
    let stored = stored_run(&*store, run.id).await.metrics;
    assert!(stored["loss"].last.0.is_nan());
}

async fn a_sweep_stands_where_its_points_stand(store: Arc<dyn Store>) {
    let runs = submitted(&*store, sweep(3)).await;
    let parent = runs[0].id;
    let phase = async || stored_run(&*store, parent).await.phase;
    assert_eq!(phase().await, Phase::Queued);
    let error = store.claim(claim_of(parent)).await.unwrap_err();
    assert!(matches!(error, StoreError::NotQueued(_)));
    let first = store.claim(claim_of(runs[1].id)).await.unwrap();
    assert_eq!(phase().await, Phase::Running);
    let end = [Phase::Running, Phase::Finishing, Phase::Completed];
    store.advance(advance_of(&first, &end)).await.unwrap();
    assert_eq!(phase().await, Phase::Running, "two points wait");
    let second = store.claim(claim_of(runs[2].id)).await.unwrap();
    let failed = advance_of(&second, &[Phase::Failed]);
    store.advance(failed).await.unwrap();
    let cancel = unleased(runs[3].id, Phase::Queued, Phase::Cancelled);
    move_one(&*store, cancel).await.unwrap();
    let ended = stored_run(&*store, parent).await;
    assert_eq!(ended.phase, Phase::Failed);
    assert_eq!(ended.ended_at, Some(Micros(5_000_000)));
    let expected = [
        (Phase::Completed, 1),
        (Phase::Failed, 1),
        (Phase::Cancelled, 1),
    ];
    assert_eq!(counted(&*store).await, expected, "parents are not counted");
    for (place, from) in [(2, Phase::Failed), (3, Phase::Cancelled)] {
        let retry = unleased(runs[place].id, from, Phase::Queued);
        move_one(&*store, retry).await.unwrap();
    }
    let running = stored_run(&*store, parent).await;
    assert_eq!((running.phase, running.ended_at), (Phase::Running, None));
    let events = store.events(&tenant(), Sequence(0), 100).await.unwrap();
    assert_eq!(events[0].kind, EventKind::SweepAccepted { children: 3 });
    assert_eq!(events[0].run, Some(parent));
    let of_parent: Vec<Phase> = events
        .into_iter()
        .filter(|event| event.run == Some(parent))
        .filter_map(|event| match event.kind {
            EventKind::RunPhase { phase, .. } => Some(phase),
            _ => None,
        })
        .collect();
    assert_eq!(of_parent, [Phase::Running, Phase::Failed, Phase::Running]);
}

async fn racing_claims_take_each_run_once(store: Arc<dyn Store>) {
    const RUNS: u32 = 100;
    const CLAIMS_EACH: usize = 10;
    let runs = submitted(&*store, sweep(RUNS)).await;
    let mut racing = tokio::task::JoinSet::new();
    for round in 0..CLAIMS_EACH {
        for run in &runs[1..] {
            let mut claim = claim_of(run.id);
            claim.node = format!("node-{round}").parse().unwrap();
            let store = Arc::clone(&store);
            racing.spawn(async move { store.claim(claim).await });
        }
    }
    let mut taken = BTreeSet::new();
    while let Some(outcome) = racing.join_next().await {
        match outcome.unwrap() {
            Ok(attempt) => assert!(taken.insert(attempt.run), "claimed twice"),
            Err(error) => assert!(matches!(error, StoreError::NotQueued(_)), "{error}"),
        }
    }
    assert_eq!(taken.len(), RUNS as usize);
    assert_eq!(counted(&*store).await, [(Phase::Starting, u64::from(RUNS))]);
}

async fn racing_submissions_get_one_sequence_each(store: Arc<dyn Store>) {
    let mut racing = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let store = Arc::clone(&store);
        racing.spawn(async move { store.submit(submission(vec![run()])).await.unwrap() });
    }
    while let Some(outcome) = racing.join_next().await {
        assert!(outcome.unwrap().fresh);
    }
    let events = store.events(&tenant(), Sequence(0), 1000).await.unwrap();
    let sequences: Vec<u64> = events.iter().map(|event| event.seq.0).collect();
    assert_eq!(sequences, (1..=100).collect::<Vec<u64>>());
    let rows = store.audit_rows(0, 1000).await.unwrap();
    assert_eq!(verify_chain(rows.into_iter(), None).unwrap().n, 100);
}
