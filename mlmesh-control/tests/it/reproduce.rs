//! Runs that repeat another one, and how they are judged.

use std::sync::Arc;

use mlmesh_control::{Caller, Control, ControlError};
use mlmesh_model::*;

use crate::fake::{House, LOCK, absent, caller, submission, sweep, with};

fn strict(command: &[&str]) -> Submission {
    let mut strict = with(submission(command), |experiment| {
        experiment.environment = Some(Environment::Locked {
            python: "3.11".into(),
            lock: "requirements.lock".into(),
        });
    });
    strict.policy = ReproPolicy::Strict;
    strict
}

async fn completed(house: &House, control: &Control, submission: Submission) -> Run {
    let accepted = control.submit(&caller(), submission, None).await.unwrap();
    control.wait_idle().await;
    house.run(accepted.id).await
}

/// The judgement of a repetition, when it is there.
async fn judged(house: &House, run: RunId) -> Reproduction {
    loop {
        let found = house.store.repetitions(&Tenant::default(), run).await;
        let mut own = found.unwrap().into_iter().filter(|it| it.run == run);
        if let Some(judgement) = own.next().and_then(|it| it.judgement) {
            return judgement;
        }
        tokio::task::yield_now().await;
    }
}

fn codes(refused: Result<mlmesh_control::Accepted, ControlError>) -> Vec<String> {
    let Err(ControlError::Refused(refusals)) = refused else {
        panic!("{refused:?}");
    };
    refusals.into_iter().map(|refusal| refusal.code).collect()
}

#[tokio::test]
async fn a_result_that_is_had_again_makes_l4() {
    let house = House::new();
    let control = house.control().await;
    let original = completed(&house, &control, strict(&["true"])).await;
    assert_eq!(original.trust.as_ref().unwrap().level, TrustLevel::L3);
    let key = Some("once".to_owned());
    let accepted = control
        .reproduce(&caller(), original.id, key.clone())
        .await
        .unwrap();
    let again = control
        .reproduce(&caller(), original.id, key)
        .await
        .unwrap();
    assert_eq!((again.id, again.fresh), (accepted.id, false));
    assert_eq!(accepted.plan_sha256, original.plan_sha256);
    let judgement = judged(&house, accepted.id).await;
    assert_eq!(judgement.verdict, ReproductionVerdict::BitIdentical);
    assert_eq!(
        (judgement.outputs_compared, judgement.metrics_compared),
        (1, 1)
    );
    assert_eq!(judgement.denied, None);
    let repeated = house.run(accepted.id).await;
    assert_eq!(judgement.manifest_sha256, repeated.manifest_sha256);
    assert_eq!(judgement.original_manifest_sha256, original.manifest_sha256);
    assert_eq!(house.fake.executions(accepted.id), 1, "executed anew");
    assert_eq!(repeated.placement.reproduces, Some(original.id));
    assert_eq!(
        house.manifest(accepted.id)["placement"]["reproduces"],
        original.id.to_string()
    );
    let trust = house.run(original.id).await.trust.unwrap();
    assert_eq!(trust.level, TrustLevel::L4);
    assert_eq!(trust.reproduced.unwrap().by, accepted.id);
    assert_eq!(
        repeated.trust.unwrap().level,
        TrustLevel::L3,
        "it was not reproduced itself"
    );
    let rows = house.store.audit_rows(0, 100).await.unwrap();
    let actions: Vec<&str> = rows.iter().map(|row| row.note.action.as_str()).collect();
    assert_eq!(actions, ["run.submit", "run.reproduce", "run.judge"]);
    control.shutdown().await;
}

#[tokio::test]
async fn the_same_result_below_l3_is_said_and_is_not_l4() {
    let house = House::new();
    let control = house.control().await;
    // A point of a sweep can be repeated, the sweep cannot.
    let parent = completed(&house, &control, sweep(&["true", "${x}"], 2)).await;
    let query = RunQuery {
        tenant: Tenant::default(),
        phases: vec![],
        parent: Some(parent.id),
        owner: None,
        cursor: None,
        limit: 10,
    };
    let point = house.store.runs(query).await.unwrap().remove(1);
    let refused = control.reproduce(&caller(), parent.id, None).await;
    assert_eq!(codes(refused), ["reproduce_sweep"]);
    let accepted = control.reproduce(&caller(), point.id, None).await.unwrap();
    let judgement = judged(&house, accepted.id).await;
    assert_eq!(judgement.verdict, ReproductionVerdict::BitIdentical);
    assert_eq!(judgement.denied.unwrap().code, "reproduction_below_l3");
    let trust = house.run(point.id).await.trust.unwrap();
    assert_eq!(trust.level, TrustLevel::L1);
    let last = trust.reasons.last().unwrap();
    assert_eq!(last.code, "reproduction_below_l3");
    control.shutdown().await;
}

#[tokio::test]
async fn what_cannot_give_a_result_is_refused() {
    let house = House::new();
    let control = house.control().await;
    let failed = completed(&house, &control, submission(&["exit", "3"])).await;
    let refused = control.reproduce(&caller(), failed.id, None).await;
    assert_eq!(codes(refused), ["reproduce_not_completed"]);
    let original = completed(&house, &control, strict(&["true"])).await;
    let stranger = Caller {
        tenant: "other".parse().unwrap(),
        ..caller()
    };
    let unseen = control.reproduce(&stranger, original.id, None).await;
    assert!(matches!(unseen, Err(ControlError::NoRun(_))), "{unseen:?}");

    // The same record with a tree that is gone, and with a lock that is another one.
    let plan = original.plan.clone().unwrap();
    let kept = async |change: fn(&mut Plan), id: u64| {
        let mut changed = (*plan).clone();
        change(&mut changed);
        let run = Run {
            id: RunId::from_random(id),
            commit: changed.commit,
            plan_sha256: changed.digest().unwrap(),
            plan: Some(Arc::new(changed)),
            phase: Phase::Queued,
            ..original.clone()
        };
        end_by_hand(&house, run).await
    };
    let gone = kept(|plan| plan.commit = absent(), 901).await;
    let refused = control.reproduce(&caller(), gone, None).await;
    assert_eq!(codes(refused), ["reproduce_code_gone"]);
    let other = kept(
        |plan| plan.deps.as_mut().unwrap().sha256 = DepsDigest(Digest::of(b"other")),
        902,
    )
    .await;
    assert_ne!(Digest::of(LOCK.as_bytes()), Digest::of(b"other"));
    let refused = control.reproduce(&caller(), other, None).await;
    assert_eq!(codes(refused), ["reproduce_environment_changed"]);
    let data = kept(
        |plan| {
            plan.datasets = vec![PlanDataset {
                name: "digits".parse().unwrap(),
                version: None,
                checksum: Digest::of(b"data"),
                mount: "data/digits".into(),
            }];
        },
        903,
    )
    .await;
    let refused = control.reproduce(&caller(), data, None).await;
    assert_eq!(codes(refused), ["dataset_unknown"]);
    control.shutdown().await;
}

/// Writes a run and its end into the store, without control.
async fn end_by_hand(house: &House, run: Run) -> RunId {
    let id = run.id;
    let audit = AuditNote {
        time: Micros(1),
        tenant: run.tenant.clone(),
        owner: run.owner.clone(),
        key: "local".into(),
        remote: "local".into(),
        action: "run.submit".into(),
        subject: id.to_string(),
        details_sha256: None,
    };
    let submit = Submit {
        idempotency_key: None,
        request_sha256: Digest::of(id.to_string().as_bytes()),
        audit,
        runs: vec![Run {
            attempts: 0,
            token: FencingToken(0),
            ..run.clone()
        }],
    };
    house.store.submit(submit).await.unwrap();
    let claim = Claim {
        run: id,
        node: "node".parse().unwrap(),
        boot_id: "boot".into(),
        token_sha256: None,
        time: Micros(2),
    };
    let attempt = house.store.claim(claim).await.unwrap();
    let advance = Advance {
        run: id,
        token: attempt.token,
        to: vec![Phase::Running, Phase::Finishing, Phase::Completed],
        time: Micros(3),
        record: RunUpdate {
            started_at: run.started_at,
            ended_at: run.ended_at,
            trust: run.trust,
            metrics: Some(run.metrics),
            outputs: run.outputs,
            manifest_sha256: run.manifest_sha256,
            isolation: run.isolation,
            logged: run.logged,
            exit: run.exit,
            cause: None,
            message: None,
        },
        not_before: None,
    };
    house.store.advance(advance).await.unwrap();
    id
}

#[tokio::test]
async fn what_a_dead_daemon_left_is_judged_once_by_the_next() {
    let house = House::new();
    let control = house.control().await;
    let original = completed(&house, &control, strict(&["true"])).await;
    control.shutdown().await;
    // The end of the repetition was written, and then the daemon died.
    let repeated = Run {
        id: RunId::from_random(77),
        phase: Phase::Queued,
        placement: Placement {
            reproduces: Some(original.id),
            ..original.placement.clone()
        },
        ..original.clone()
    };
    let id = end_by_hand(&house, repeated).await;
    for _ in 0..2 {
        let control = house.control().await;
        let judgement = judged(&house, id).await;
        assert_eq!(judgement.denied, None);
        control.shutdown().await;
    }
    assert_eq!(
        house.run(original.id).await.trust.unwrap().level,
        TrustLevel::L4
    );
    let rows = house.store.audit_rows(0, 100).await.unwrap();
    let judged = rows.iter().filter(|row| row.note.action == "run.judge");
    assert_eq!(judged.count(), 1);
}

#[tokio::test]
async fn a_repetition_without_a_result_changes_nothing_and_is_not_retried() {
    let house = House::new();
    let control = house.control().await;
    let original = completed(&house, &control, strict(&["lose", "0"])).await;
    // It waits behind a run that holds the whole node, and is cancelled there.
    let holder = with(submission(&["hold"]), |experiment| {
        experiment.resources.cpu_milli = 4_000;
    });
    let holder = control.submit(&caller(), holder, None).await.unwrap().id;
    house.reaches(holder, Phase::Running).await;
    let accepted = control
        .reproduce(&caller(), original.id, None)
        .await
        .unwrap();
    crate::fake::cancel(&control, &caller(), accepted.id)
        .await
        .unwrap();
    let judgement = judged(&house, accepted.id).await;
    assert_eq!(judgement.verdict, ReproductionVerdict::NotCompared);
    assert_eq!(judgement.denied.unwrap().code, "reproduction_incomplete");
    let trust = house.run(original.id).await.trust.unwrap();
    assert_eq!(trust.level, TrustLevel::L3);
    assert_eq!(trust.reasons[0].code, "reproduction_incomplete");
    let retried = control.retry(&caller(), accepted.id, false, None).await;
    let Err(ControlError::Refused(refusals)) = retried else {
        panic!("{retried:?}");
    };
    assert_eq!(refusals[0].code, "reproduction_not_retried");
    house.fake.release(holder);
    control.wait_idle().await;
    control.shutdown().await;
}
