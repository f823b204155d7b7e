//! The way of a run from its submission to its record.

use mlmesh_control::ControlError;
use mlmesh_model::*;

use crate::fake::{House, caller, submission, sweep, with};

#[tokio::test]
async fn a_run_completes_with_everything_on_record() {
    let house = House::new();
    let control = house.control().await;
    let accepted = control
        .submit(&caller(), submission(&["true"]), None)
        .await
        .unwrap();
    control.wait_idle().await;
    let run = house.run(accepted.id).await;
    assert_eq!(run.phase, Phase::Completed);
    assert_eq!(run.cause, None);
    assert_eq!(run.exit, Some(Exit::Code(0)));
    assert_eq!(run.plan_sha256, accepted.plan_sha256);
    assert_eq!(run.metrics["loss"].steps, 3);
    assert_eq!(run.outputs, Some(ObjectId(Digest::of(b"listing"))));
    assert_eq!(run.placement.node, Some("node".parse().unwrap()));
    use Phase::*;
    let phases = house.phases(run.id).await;
    assert_eq!(phases, [Queued, Starting, Running, Finishing, Completed]);
    let manifest = house.manifest(run.id);
    assert_eq!(mlmesh_proof::completeness(&manifest), vec![]);
    assert_eq!(manifest["plan_sha256"], accepted.plan_sha256.to_string());
    assert_eq!(manifest["attempts"][0]["ended_at"], 2_000);
    let bytes = house
        .dir
        .path()
        .join(format!("data/experiments/{}/run_manifest.json", run.id));
    let digest = Digest::of(&std::fs::read(bytes).unwrap());
    assert_eq!(run.manifest_sha256, Some(digest));
    control.shutdown().await;
    assert_eq!(house.fake.discarded(), [(run.id, 1)]);
}

#[tokio::test]
async fn each_end_has_its_phase_and_cause() {
    let house = House::new();
    let control = house.control().await;
    let cases: [(&[&str], Phase, Option<Cause>); 4] = [
        (&["exit", "3"], Phase::Failed, Some(Cause::Exit)),
        (&["miss"], Phase::Failed, Some(Cause::OutputMissing)),
        (&["refuse"], Phase::Failed, Some(Cause::EnvironmentFailed)),
        (&["lose", "1"], Phase::Interrupted, Some(Cause::Lost)),
    ];
    for (command, phase, cause) in cases {
        let accepted = control
            .submit(&caller(), submission(command), None)
            .await
            .unwrap();
        let run = house.reaches(accepted.id, phase).await;
        assert_eq!(run.cause, cause, "{command:?}");
        assert!(!run.message.is_empty(), "{command:?}");
        let manifest = house.manifest(run.id);
        assert_eq!(manifest["phase"], phase.as_str());
        assert_eq!(mlmesh_proof::completeness(&manifest), vec![], "{command:?}");
    }
}

#[tokio::test]
async fn a_sweep_is_accepted_as_one_and_every_point_runs() {
    let house = House::new();
    let control = house.control().await;
    let explained = control
        .explain(&caller(), sweep(&["true", "${x}"], 25))
        .await
        .unwrap();
    let accepted = control
        .submit(&caller(), sweep(&["true", "${x}"], 25), None)
        .await
        .unwrap();
    assert_eq!(Some(accepted.plan_sha256), explained.plan_sha256);
    assert_eq!(accepted.children.len(), 25);
    control.wait_idle().await;
    for (index, child) in accepted.children.iter().enumerate() {
        let run = house.run(*child).await;
        assert_eq!(run.phase, Phase::Completed);
        assert_eq!(run.plan.unwrap().argv[1], index.to_string());
        assert_eq!(house.fake.executions(*child), 1);
    }
    assert_eq!(house.run(accepted.id).await.phase, Phase::Completed);
}

#[tokio::test]
async fn a_lost_attempt_is_tried_again_with_the_next_token() {
    let house = House::new();
    let control = house.control().await;
    let lost_once = with(submission(&["lose", "1"]), |experiment| {
        experiment.retries = 1
    });
    let accepted = control.submit(&caller(), lost_once, None).await.unwrap();
    control.wait_idle().await;
    let run = house.run(accepted.id).await;
    assert_eq!(run.phase, Phase::Completed);
    assert_eq!((run.attempts, run.token), (2, FencingToken(2)));
    let attempts = house.store.attempts(run.id).await.unwrap();
    assert_eq!(attempts[0].cause, Some(Cause::Lost));
    assert_eq!(attempts[1].cause, None);
    let manifest = house.manifest(run.id);
    assert_eq!(manifest["attempts"].as_array().unwrap().len(), 2);
    assert_eq!(manifest["cause"], serde_json::Value::Null);
}

#[tokio::test]
async fn a_refused_submission_leaves_nothing() {
    let house = House::new();
    let control = house.control().await;
    let mut strict = submission(&["true"]);
    strict.policy = ReproPolicy::Strict;
    let refused = control.submit(&caller(), strict, None).await;
    let Err(ControlError::Refused(refusals)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(refusals[0].code, "environment_absent");
    let counts = house.store.counts(&Tenant::default()).await.unwrap();
    assert_eq!(counts.values().sum::<u64>(), 0);
    assert_eq!(control.load().queued, 0);
}

#[tokio::test]
async fn a_repeated_request_is_answered_again_and_runs_once() {
    let house = House::new();
    let control = house.control().await;
    let key = Some("key".to_owned());
    let request = || sweep(&["true", "${x}"], 3);
    let first = control
        .submit(&caller(), request(), key.clone())
        .await
        .unwrap();
    let second = control
        .submit(&caller(), request(), key.clone())
        .await
        .unwrap();
    assert!(first.fresh && !second.fresh);
    assert_eq!((first.id, &first.children), (second.id, &second.children));
    let other = control.submit(&caller(), submission(&["true"]), key).await;
    assert_eq!(other.unwrap_err().code(), "idempotency_mismatch");
    control.wait_idle().await;
    assert_eq!(house.fake.all_executions(), 3);
}

#[tokio::test]
async fn a_dependent_waits_and_is_cancelled_when_its_parent_fails() {
    let house = House::new();
    let control = house.control().await;
    let after = |id: RunId| {
        with(submission(&["true"]), |experiment| {
            experiment.after = vec![id.to_string()];
        })
    };
    let parent = control
        .submit(&caller(), submission(&["hold"]), None)
        .await
        .unwrap();
    let child = control
        .submit(&caller(), after(parent.id), None)
        .await
        .unwrap();
    house.fake.executed(parent.id).await;
    assert_eq!(house.run(child.id).await.phase, Phase::Queued);
    house.fake.release(parent.id);
    house.reaches(child.id, Phase::Completed).await;
    let order = (
        house.fake.executions(parent.id),
        house.fake.executions(child.id),
    );
    assert_eq!(order, (1, 1));
    let failing = control
        .submit(&caller(), submission(&["hold"]), None)
        .await
        .unwrap();
    let orphan = control
        .submit(&caller(), after(failing.id), None)
        .await
        .unwrap();
    house.fake.executed(failing.id).await;
    house
        .fake
        .end_now(failing.id, Exit::Code(1), Some(Cause::Exit));
    let orphan = house.reaches(orphan.id, Phase::Cancelled).await;
    assert_eq!(orphan.cause, Some(Cause::DependencyFailed));
    assert_eq!(house.fake.executions(orphan.id), 0);
}

#[tokio::test]
async fn live_attempts_never_exceed_the_node_and_gpus_are_given_once() {
    let house = House::new();
    let control = house.control().await;
    let wants_gpu = || {
        with(submission(&["hold"]), |experiment| {
            experiment.resources.gpus = 1
        })
    };
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(
            control
                .submit(&caller(), wants_gpu(), None)
                .await
                .unwrap()
                .id,
        );
    }
    house.fake.executed(ids[0]).await;
    house.fake.executed(ids[1]).await;
    let mut given = [ids[0], ids[1]].map(|id| house.fake.gpus_seen(id));
    given.sort();
    assert_eq!(given, [["GPU-a"], ["GPU-b"]]);
    assert_eq!((control.live(), control.load().free_gpus), (2, 0));
    assert_eq!(control.upcoming(10), [ids[2]]);
    house.fake.release(ids[0]);
    house.fake.executed(ids[2]).await;
    assert_eq!(house.fake.gpus_seen(ids[2]), house.fake.gpus_seen(ids[0]));
}

#[tokio::test]
async fn values_of_secrets_reach_the_attempt_and_are_gone_with_it() {
    let house = House::new();
    let control = house.control().await;
    let mut secret = with(sweep(&["hold"], 2), |experiment| {
        experiment.secrets = vec!["KEY".into()];
    });
    secret
        .secret_values
        .insert("KEY".into(), SecretText("s3cret".into()));
    let accepted = control.submit(&caller(), secret, None).await.unwrap();
    let file = house
        .dir
        .path()
        .join(format!("data/experiments/{}/secrets.json", accepted.id));
    for child in &accepted.children {
        house.fake.executed(*child).await;
        assert_eq!(house.fake.secrets_seen(*child), ["KEY=s3cret"]);
    }
    house.fake.release(accepted.children[0]);
    house.reaches(accepted.children[0], Phase::Completed).await;
    assert!(file.exists());
    house.fake.release(accepted.children[1]);
    control.wait_idle().await;
    assert!(!file.exists());
}

#[tokio::test]
async fn a_fault_of_the_node_waits_says_why_and_uses_no_retry_up() {
    let house = House::new();
    let control = house.control().await;
    let ada = caller();
    let accepted = control.submit(&ada, submission(&["fault", "1"]), None);
    let id = accepted.await.unwrap().id;
    let waiting = loop {
        let run = house.run(id).await;
        if run.not_before.is_some() {
            break run;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(
        (waiting.phase, waiting.cause, waiting.message.as_str()),
        (Phase::Queued, Some(Cause::NodeFault), "no space left")
    );
    control.wait_idle().await;
    let run = house.run(id).await;
    assert_eq!((run.phase, run.attempts), (Phase::Completed, 2));
    assert_eq!((run.cause, run.not_before), (None, None));
    let attempts = house.store.attempts(id).await.unwrap();
    assert_eq!(attempts[0].cause, Some(Cause::NodeFault));
    assert!(attempts[1].leased_at >= waiting.not_before.unwrap());
}
