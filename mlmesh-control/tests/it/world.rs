//! What explain and queue see of the world, and the way of a run as its trace shows it.

use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use mlmesh_control::{ControlError, PATH};
use mlmesh_model::*;
use tracing::field::{Field, Visit};

use crate::fake::{House, LOCK, absent, caller, submission, with};

fn codes(refused: Result<mlmesh_control::Accepted, ControlError>) -> Vec<String> {
    let Err(ControlError::Refused(refusals)) = refused else {
        panic!("{refused:?}");
    };
    refusals.into_iter().map(|refusal| refusal.code).collect()
}

fn locked(lock: &str) -> Submission {
    let mut locked = with(submission(&["true"]), |experiment| {
        experiment.environment = Some(Environment::Locked {
            python: "3.11".into(),
            lock: lock.into(),
        });
    });
    locked.policy = ReproPolicy::Strict;
    locked
}

#[tokio::test]
async fn explain_writes_nothing_and_queue_accepts_the_same_plan() {
    let house = House::new();
    let control = house.control().await;
    let explained = control
        .explain(&caller(), locked("requirements.lock"))
        .await
        .unwrap();
    assert_eq!(explained.refusals, vec![]);
    assert_eq!(explained.trust.level, TrustLevel::L3);
    assert_eq!(house.store.audit_rows(0, 10).await.unwrap().len(), 0);
    assert!(!house.dir.path().join("data").exists());
    let mut same = locked("requirements.lock");
    same.expected_plan = explained.plan_sha256;
    let accepted = control.submit(&caller(), same, None).await.unwrap();
    assert_eq!(Some(accepted.plan_sha256), explained.plan_sha256);
    control.wait_idle().await;
    let run = house.run(accepted.id).await;
    assert_eq!(run.trust.unwrap().level, TrustLevel::L3);
    assert_eq!(house.manifest(run.id)["trust"]["level"], "L3");
    let mut moved = with(locked("requirements.lock"), |experiment| {
        experiment.seed = Seed::Value(8);
    });
    moved.expected_plan = explained.plan_sha256;
    assert_eq!(
        codes(control.submit(&caller(), moved, None).await),
        ["plan_moved"]
    );
}

#[tokio::test]
async fn the_lock_is_read_from_the_tree_and_not_from_the_client() {
    let house = House::new();
    let control = house.control().await;
    let mut lying = locked("requirements.lock");
    lying.lock = Some(LockFacts {
        path: "requirements.lock".into(),
        sha256: Digest::of(b"another lock"),
        requirements: 1,
        unhashed: vec![],
    });
    assert_eq!(
        codes(control.submit(&caller(), lying, None).await),
        ["lock_differs"]
    );
    let missing = control.submit(&caller(), locked("other.lock"), None).await;
    assert_eq!(codes(missing), ["lock_missing"]);
    let explained = control
        .explain(&caller(), locked("requirements.lock"))
        .await
        .unwrap();
    let expected = deps_digest("3.11", Digest::of(LOCK.as_bytes())).unwrap();
    assert_eq!(explained.groups.deps.unwrap().sha256, expected);
}

#[tokio::test]
async fn a_tree_that_is_not_here_can_be_explained_and_not_queued() {
    let house = House::new();
    let control = house.control().await;
    let mut early = submission(&["true"]);
    early.commit = absent();
    let explained = control.explain(&caller(), early.clone()).await.unwrap();
    assert_eq!(explained.refusals, vec![]);
    assert_eq!(explained.waits[0].code, "commit_not_synced");
    let refused = control.submit(&caller(), early, None).await;
    assert_eq!(codes(refused), ["commit_not_synced"]);
}

#[tokio::test]
async fn a_parent_is_named_by_id_prefix_or_as_the_last() {
    let house = House::new();
    let control = house.control().await;
    let parent = control
        .submit(&caller(), submission(&["true"]), None)
        .await
        .unwrap();
    control.wait_idle().await;
    for name in [
        parent.id.to_string(),
        parent.id.to_string()[..8].into(),
        "@last".into(),
    ] {
        let after = with(submission(&["true"]), |experiment| {
            experiment.after = vec![name]
        });
        let explained = control.explain(&caller(), after).await.unwrap();
        assert_eq!(explained.placement.after, [parent.id]);
    }
    let after = with(submission(&["true"]), |experiment| {
        experiment.after = vec!["zzzzzzzz".into()];
    });
    assert_eq!(
        codes(control.submit(&caller(), after, None).await),
        ["after_unknown"]
    );
}

#[tokio::test]
async fn datasets_are_those_of_the_tenant() {
    let house = House::new();
    let control = house.control().await;
    let dataset = Dataset {
        tenant: "other".parse().unwrap(),
        owner: "eve".parse().unwrap(),
        name: "digits".parse().unwrap(),
        version: "1".into(),
        checksum: Digest::of(b"data"),
        directory: false,
        path: "/data".into(),
        copied: false,
        about: DatasetAbout::default(),
        bytes: 4,
        files: 1,
        registered_at: Micros(0),
    };
    let audit = AuditNote {
        time: Micros(0),
        tenant: Tenant::default(),
        owner: "eve".parse().unwrap(),
        key: "k".into(),
        remote: "local".into(),
        action: "data.add".into(),
        subject: "digits".into(),
        details_sha256: None,
    };
    house
        .store
        .put_dataset(dataset.clone(), audit.clone())
        .await
        .unwrap();
    let uses = || {
        with(submission(&["true"]), |experiment| {
            experiment.datasets = vec![DatasetRef {
                name: "digits".parse().unwrap(),
                version: None,
                checksum: Some(Digest::of(b"data")),
                mount: "data/digits".into(),
            }];
        })
    };
    assert_eq!(
        codes(control.submit(&caller(), uses(), None).await),
        ["dataset_unknown"]
    );
    let ours = Dataset {
        tenant: Tenant::default(),
        ..dataset
    };
    house.store.put_dataset(ours, audit).await.unwrap();
    let accepted = control.submit(&caller(), uses(), None).await.unwrap();
    control.wait_idle().await;
    // The executor did not report the dataset as verified.
    let reasons = house.run(accepted.id).await.trust.unwrap().reasons;
    assert!(
        reasons
            .iter()
            .any(|reason| reason.code == "data_unverified")
    );
}

/// Gathers the `step` of each event on the job path.
struct Trace(Arc<Mutex<Steps>>);

type Steps = Vec<(ThreadId, String)>;

impl tracing::Subscriber for Trace {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == PATH
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut Step(
            std::thread::current().id(),
            &mut self.0.lock().unwrap(),
        ));
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

struct Step<'a>(ThreadId, &'a mut Steps);

impl Visit for Step<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "step" {
            self.1.push((self.0, value.to_owned()));
        }
    }
    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

#[test]
fn a_run_goes_through_the_steps_of_the_job_path_in_order() {
    // One subscriber for the whole process: those of single threads race for the
    // cache of what is enabled. All tasks of a current-thread runtime are on this one.
    let steps = Arc::new(Mutex::new(Steps::new()));
    tracing::subscriber::set_global_default(Trace(Arc::clone(&steps))).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let house = House::new();
        let control = house.control().await;
        control
            .submit(&caller(), submission(&["true"]), None)
            .await
            .unwrap();
        control.wait_idle().await;
    });
    let here = std::thread::current().id();
    let steps = steps.lock().unwrap();
    let steps = steps.iter().filter(|(thread, _)| *thread == here);
    let steps: Vec<&str> = steps.map(|(_, step)| step.as_str()).collect();
    let expected = [
        "admit", "plan", "queue", "lease", "start", "watch", "record",
    ];
    assert_eq!(steps, expected);
}
