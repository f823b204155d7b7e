//! Runs that ended elsewhere.

use std::sync::Arc;

use mlmesh_model::*;

use crate::fixtures::*;

fn ended(run: &Run, phase: Phase, time: i64) -> (Run, Attempt) {
    let attempt = Attempt {
        run: run.id,
        number: AttemptNumber(1),
        token: FencingToken(4),
        node: "elsewhere".parse().unwrap(),
        boot_id: "boot".into(),
        leased_at: Micros(time),
        started_at: Some(Micros(time + 1)),
        ended_at: Some(Micros(time + 2)),
        exit: Some(Exit::Code(0)),
        cause: None,
    };
    let run = Run {
        phase,
        attempts: 1,
        token: FencingToken(4),
        started_at: attempt.started_at,
        ended_at: attempt.ended_at,
        exit: attempt.exit,
        trust: Some(Trust::imported(run.trust.as_ref(), "ed25519:00", None)),
        outputs: Some(ObjectId(Digest::of(b"outputs"))),
        manifest_sha256: Some(Digest::of(b"manifest")),
        labels: Labels {
            tags: [("stage".into(), "final".into())].into(),
            note: "theirs".into(),
        },
        logged: Some(logged(&[("lr", "0.1")], &[])),
        ..run.clone()
    };
    (run, attempt)
}

pub(super) async fn what_ended_elsewhere_is_taken_over_whole_or_not_at_all(store: Arc<dyn Store>) {
    let mut runs = sweep(2);
    let mut attempts = Vec::new();
    for (place, phase) in [(1, Phase::Completed), (2, Phase::Failed)] {
        let (run, attempt) = ended(&runs[place], phase, 100 * place as i64);
        runs[place] = run;
        attempts.push(attempt);
    }
    let (single, attempt) = ended(&run(), Phase::Completed, 10);
    runs.push(single.clone());
    attempts.push(attempt);
    let import = Import {
        runs: runs.clone(),
        attempts: attempts.clone(),
        audit: note("run.import"),
    };
    store.import(import.clone()).await.unwrap();
    for run in runs.iter().skip(1) {
        let stored = stored_run(&*store, run.id).await;
        assert!(stored.seq.0 > 0 && stored.is_imported());
        let seq = stored.seq;
        assert_eq!(stored, Run { seq, ..run.clone() });
    }
    let mut stored = Vec::new();
    for run in runs.iter().skip(1) {
        stored.extend(store.attempts(run.id).await.unwrap());
    }
    assert_eq!(stored, attempts);
    let parent = stored_run(&*store, runs[0].id).await;
    assert_eq!(parent.phase, Phase::Failed);
    assert_eq!(parent.started_at, Some(Micros(101)));
    assert_eq!(parent.ended_at, Some(Micros(202)));
    let counts = store.sweep_counts(&tenant(), runs[0].id).await.unwrap();
    let counts = counts.unwrap();
    assert_eq!((counts[&Phase::Completed], counts[&Phase::Failed]), (1, 1));
    let counts = store.counts(&tenant()).await.unwrap();
    assert_eq!((counts[&Phase::Completed], counts[&Phase::Failed]), (2, 1));
    assert_eq!(store.open_runs().await.unwrap(), []);
    assert_eq!(store.audit_rows(0, 10).await.unwrap().len(), 1);
    let kept = store.references().await.unwrap();
    assert!(kept.outputs.contains(&ObjectId(Digest::of(b"outputs"))));

    // One of its ids is taken, one has not ended: nothing of it is there.
    let (other, attempt) = ended(&run(), Phase::Completed, 10);
    let partly = Import {
        runs: vec![other.clone(), single.clone()],
        attempts: vec![attempt],
        audit: note("run.import"),
    };
    let error = store.import(partly).await.unwrap_err();
    assert!(matches!(error, StoreError::RunExists(id) if id == single.id));
    let open = Import {
        runs: vec![other.clone(), run()],
        attempts: vec![],
        audit: note("run.import"),
    };
    let error = store.import(open).await.unwrap_err();
    assert!(
        matches!(error, StoreError::MoveNotAllowed { .. }),
        "{error}"
    );
    assert_eq!(store.run(&tenant(), other.id).await.unwrap(), None);
    assert_eq!(store.audit_rows(0, 10).await.unwrap().len(), 1);
    let claimed = store.claim(claim_of(single.id)).await.unwrap_err();
    assert!(matches!(claimed, StoreError::NotQueued(_)), "{claimed}");
}
