//! Cancel, retry and stop.

use mlmesh_model::*;

use crate::fake::{House, caller, cancel, submission, sweep, with};

#[tokio::test]
async fn a_queued_run_is_cancelled_before_the_answer() {
    let mut house = House::new();
    house.capacity.cpu_milli = 1_000;
    let control = house.control().await;
    let first = control
        .submit(&caller(), submission(&["hold"]), None)
        .await
        .unwrap();
    let second = control
        .submit(&caller(), submission(&["true"]), None)
        .await
        .unwrap();
    let done = cancel(&control, &caller(), second.id).await.unwrap();
    assert_eq!((done.runs.len(), done.live.len()), (1, 0));
    let run = house.run(second.id).await;
    assert_eq!(
        (run.phase, run.cause),
        (Phase::Cancelled, Some(Cause::Cancelled))
    );
    assert_eq!(
        mlmesh_proof::completeness(&house.manifest(second.id)),
        vec![]
    );
    assert_eq!(house.fake.executions(second.id), 0);
    let again = cancel(&control, &caller(), second.id).await;
    assert_eq!(again.unwrap_err().code(), "phase_not_allowed");
    let audit = house.store.audit_rows(0, 100).await.unwrap();
    let actions: Vec<_> = audit.iter().map(|row| row.note.action.as_str()).collect();
    assert_eq!(actions, ["run.submit", "run.submit", "run.cancel"]);
    house.fake.release(first.id);
    control.wait_idle().await;
}

#[tokio::test]
async fn a_live_run_is_stopped_and_is_cancelled_not_failed() {
    let house = House::new();
    let control = house.control().await;
    let accepted = control
        .submit(&caller(), submission(&["hold"]), None)
        .await
        .unwrap();
    house.fake.executed(accepted.id).await;
    let done = cancel(&control, &caller(), accepted.id).await.unwrap();
    assert_eq!((done.runs.len(), done.live.len()), (1, 1));
    control.wait_idle().await;
    let run = house.run(accepted.id).await;
    assert_eq!(
        (run.phase, run.cause),
        (Phase::Cancelled, Some(Cause::Cancelled))
    );
    assert_eq!(run.exit, Some(Exit::Signal(15)));
}

#[tokio::test]
async fn a_run_that_is_being_prepared_can_be_cancelled() {
    let house = House::new();
    let control = house.control().await;
    let accepted = control
        .submit(&caller(), submission(&["slow"]), None)
        .await
        .unwrap();
    house.reaches(accepted.id, Phase::Starting).await;
    cancel(&control, &caller(), accepted.id).await.unwrap();
    control.wait_idle().await;
    let run = house.run(accepted.id).await;
    assert_eq!(
        (run.phase, run.cause),
        (Phase::Cancelled, Some(Cause::Cancelled))
    );
    assert_eq!(house.fake.executions(accepted.id), 0);
    assert_eq!(
        mlmesh_proof::completeness(&house.manifest(accepted.id)),
        vec![]
    );
}

#[tokio::test]
async fn a_sweep_is_cancelled_and_its_points_can_be_retried() {
    let mut house = House::new();
    house.capacity.cpu_milli = 2_000;
    let control = house.control().await;
    let accepted = control
        .submit(&caller(), sweep(&["hold"], 5), None)
        .await
        .unwrap();
    for child in &accepted.children[..2] {
        house.fake.executed(*child).await;
    }
    house.fake.release(accepted.children[0]);
    house.reaches(accepted.children[0], Phase::Completed).await;
    house.fake.executed(accepted.children[2]).await;
    let done = cancel(&control, &caller(), accepted.id).await.unwrap();
    assert_eq!((&*done.runs, done.live.len()), (&accepted.children[1..], 2));
    control.wait_idle().await;
    assert_eq!(house.run(accepted.id).await.phase, Phase::Cancelled);
    let refused = control.retry(&caller(), accepted.id, true, None).await;
    assert_eq!(
        refused.unwrap_err().code(),
        "phase_not_allowed",
        "none has failed"
    );
    for child in &accepted.children {
        house.fake.release(*child);
    }
    let retried = control
        .retry(&caller(), accepted.children[3], false, None)
        .await
        .unwrap();
    assert_eq!(retried.runs, [accepted.children[3]]);
    house.reaches(accepted.children[3], Phase::Completed).await;
}

#[tokio::test]
async fn failed_points_are_retried_and_completed_ones_are_not() {
    let house = House::new();
    let control = house.control().await;
    let accepted = control
        .submit(&caller(), sweep(&["exit", "${x}"], 3), None)
        .await
        .unwrap();
    control.wait_idle().await;
    let retried = control
        .retry(&caller(), accepted.id, true, None)
        .await
        .unwrap();
    assert_eq!(retried.runs, accepted.children[1..]);
    control.wait_idle().await;
    let runs = house.run(accepted.children[1]).await;
    assert_eq!((runs.phase, runs.attempts), (Phase::Failed, 2));
    assert_eq!(house.run(accepted.children[0]).await.attempts, 1);
}

#[tokio::test]
async fn what_others_queued_is_cancelled_by_an_operator_only() {
    let house = House::new();
    let control = house.control().await;
    let mut bob = caller();
    bob.owner = "bob".parse().unwrap();
    bob.daemon_owner = false;
    bob.permissions = BuiltIn::Member.permissions();
    let accepted = control
        .submit(&caller(), submission(&["hold"]), None)
        .await
        .unwrap();
    let refused = cancel(&control, &bob, accepted.id).await;
    assert_eq!(refused.unwrap_err().code(), "forbidden");
    bob.permissions = BuiltIn::Operator.permissions();
    cancel(&control, &bob, accepted.id).await.unwrap();
    let unknown = cancel(&control, &bob, RunId::from_random(1 << 40)).await;
    assert_eq!(unknown.unwrap_err().code(), "run_not_found");
}

#[tokio::test]
async fn stopping_jobs_ends_what_is_live_and_keeps_what_is_queued() {
    let mut house = House::new();
    house.capacity.cpu_milli = 1_000;
    let control = house.control().await;
    let live = control
        .submit(&caller(), submission(&["hold"]), None)
        .await
        .unwrap();
    let queued = control
        .submit(&caller(), submission(&["true"]), None)
        .await
        .unwrap();
    house.fake.executed(live.id).await;
    control.stop_jobs().await;
    let run = house.run(live.id).await;
    assert_eq!(
        (run.phase, run.cause),
        (Phase::Cancelled, Some(Cause::Shutdown))
    );
    assert_eq!(house.run(queued.id).await.phase, Phase::Queued);
    control.shutdown().await;
}

#[tokio::test]
async fn a_retry_of_a_run_whose_secrets_are_gone_is_refused() {
    let house = House::new();
    let control = house.control().await;
    let mut secret = with(submission(&["exit", "1"]), |experiment| {
        experiment.secrets = vec!["KEY".into()];
    });
    secret
        .secret_values
        .insert("KEY".into(), SecretText("s3cret".into()));
    let accepted = control.submit(&caller(), secret, None).await.unwrap();
    control.wait_idle().await;
    let refused = control.retry(&caller(), accepted.id, false, None).await;
    assert_eq!(refused.unwrap_err().code(), "secret_without_value");
}

#[tokio::test]
async fn stored_secrets_serve_their_owner_and_yield_to_what_the_caller_sends() {
    let house = House::new();
    let control = house.control().await;
    let eve = mlmesh_control::Caller {
        owner: "eve".parse().unwrap(),
        ..caller()
    };
    let needs = |names: &[&str]| {
        with(submission(&["exit", "1"]), |experiment| {
            experiment.secrets = names.iter().map(|name| (*name).to_owned()).collect();
        })
    };
    for (who, name, value) in [
        (&caller(), "A", "ada's"),
        (&caller(), "B", "b"),
        (&eve, "A", "eve's"),
    ] {
        let value = SecretText(value.into());
        control.set_secret(who, name.into(), value).await.unwrap();
    }
    let refused = control.submit(&eve, needs(&["A", "B"]), None).await;
    assert_eq!(refused.unwrap_err().code(), "secret_without_value");

    let mut sent = needs(&["A", "B"]);
    let mine = SecretText("mine".into());
    sent.secret_values.insert("B".into(), mine);
    let explained = control.explain(&caller(), sent.clone()).await.unwrap();
    let from = explained.groups.secrets.iter();
    let from: Vec<_> = from.map(|it| (it.name.as_str(), it.from)).collect();
    use mlmesh_control::SecretSource::{Caller, Store};
    assert_eq!(from, [("A", Some(Store)), ("B", Some(Caller))]);

    let run = control.submit(&caller(), sent, None).await.unwrap().id;
    control.wait_idle().await;
    assert_eq!(house.fake.secrets_seen(run), ["A=ada's", "B=mine"]);
    // What the caller sent went with the end; the store has both names.
    control.retry(&caller(), run, false, None).await.unwrap();
    control.wait_idle().await;
    assert_eq!(house.fake.secrets_seen(run), ["A=ada's", "B=b"]);
    assert!(control.remove_secret(&caller(), "B".into()).await.unwrap());
    let refused = control
        .retry(&caller(), run, false, None)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("`B`"), "{refused}");

    let rows = house.store.audit_rows(0, 100).await.unwrap();
    let ours = rows
        .iter()
        .filter(|row| row.note.action.starts_with("secret."));
    let ours: Vec<_> = ours
        .map(|row| format!("{} {}", row.note.action, row.note.subject))
        .collect();
    assert_eq!(
        ours,
        [
            "secret.set A",
            "secret.set B",
            "secret.set A",
            "secret.remove B"
        ]
    );
}
