//! Small builders for runs, submissions and notes.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mlmesh_model::*;

/// Runs a future on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// An id that no other test of this process uses, and no other process used: golden
/// databases were written by one like it.
pub(crate) fn new_id() -> RunId {
    static USED: AtomicU64 = AtomicU64::new(0);
    let n = u64::from(std::process::id()) << 32 | USED.fetch_add(1, Ordering::Relaxed);
    // Spread over the alphabet, as random ids are.
    RunId::from_random(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

pub(crate) fn tenant() -> Tenant {
    Tenant::default()
}

pub(crate) fn plan(argument: &str) -> Plan {
    Plan {
        plan_version: PLAN_VERSION,
        commit: CommitId(Digest::of(b"tree")),
        argv: vec!["python".into(), "train.py".into(), argument.into()],
        params: BTreeMap::from([("lr".into(), ParamValue::Text(argument.into()))]),
        env: BTreeMap::from([("OMP_NUM_THREADS".into(), "1".into())]),
        secrets: vec![],
        deps: Some(PlanDeps {
            kind: DepsKind::Lock,
            name: "requirements.lock".into(),
            python: "3.11".into(),
            sha256: DepsDigest(Digest::of(b"lock")),
        }),
        datasets: vec![PlanDataset {
            name: "digits".parse().unwrap(),
            version: Some("1".into()),
            checksum: Digest::of(b"digits"),
            mount: "data/digits".into(),
        }],
        seed: PlanSeed::Value(7),
        outputs: vec!["model.npz".into(), "plots/*.svg".into()],
        resources: Resources::default(),
        image: None,
        network: PlanNetwork::None,
        service: None,
    }
}

/// A run as control makes it: queued, without sequence.
pub(crate) fn run() -> Run {
    run_of(plan("0.1"))
}

/// A replica of a service that serves weights.
pub(crate) fn replica() -> Run {
    let mut plan = plan("serve");
    plan.service = Some(PlanService {
        ports: BTreeMap::from([("http".into(), 0)]),
        ready: Readiness {
            request: ReadyRequest::Completion,
            port: None,
            health: Some("/health".into()),
            timeout_s: 60,
        },
        kind: None,
        model: Some(PlanModel {
            name: "tiny".parse().unwrap(),
            sha256: Digest::of(b"weights"),
            run: RunId::from_random(7),
            path: "weights/tiny.gguf".into(),
            size: 7,
        }),
    });
    let mut run = run_of(plan);
    run.placement.keep = Some(Keep::default());
    run
}

pub(crate) fn run_of(plan: Plan) -> Run {
    Run {
        id: new_id(),
        seq: Sequence(0),
        tenant: tenant(),
        owner: "ada".parse().unwrap(),
        name: "digits".parse().unwrap(),
        kind: RunKind::Single,
        commit: plan.commit,
        plan_sha256: plan.digest().unwrap(),
        plan: Some(Arc::new(plan)),
        placement: Placement {
            retries: 2,
            tolerance: BTreeMap::from([(
                "accuracy".into(),
                Tolerance {
                    abs: Some("0".into()),
                    rel: None,
                },
            )]),
            ..Placement::default()
        },
        git: Some(GitFacts {
            head: "0123abcd".into(),
            branch: Some("main".into()),
            dirty: Some(true),
        }),
        phase: Phase::Queued,
        cause: None,
        message: String::new(),
        exit: None,
        attempts: 0,
        token: FencingToken(0),
        queued_at: Micros(1_000_000),
        not_before: None,
        started_at: None,
        ended_at: None,
        trust: Some(Trust {
            level: TrustLevel::L3,
            reasons: vec![],
            reproduced: None,
        }),
        metrics: BTreeMap::new(),
        outputs: None,
        manifest_sha256: None,
        isolation: None,
        pinned: false,
        labels: Labels::default(),
        logged: None,
    }
}

/// A parent and its points.
pub(crate) fn sweep(points: u32) -> Vec<Run> {
    let children: Vec<Run> = (0..points)
        .map(|index| run_of(plan(&format!("0.{index}"))))
        .collect();
    sweep_of(children)
}

pub(crate) fn sweep_of(mut children: Vec<Run>) -> Vec<Run> {
    let mut parent = run();
    parent.plan = None;
    parent.plan_sha256 = sweep_digest(children.iter().map(|child| child.plan_sha256));
    parent.kind = RunKind::Parent {
        children: children.len() as u32,
    };
    for (index, child) in (0..).zip(&mut children) {
        child.kind = RunKind::Child {
            parent: parent.id,
            index,
        };
    }
    let mut runs = vec![parent];
    runs.append(&mut children);
    runs
}

pub(crate) fn note(action: &str) -> AuditNote {
    AuditNote {
        time: Micros(2_000_000),
        tenant: tenant(),
        owner: "ada".parse().unwrap(),
        key: "owner.key".into(),
        remote: "local".into(),
        action: action.into(),
        subject: "subject".into(),
        details_sha256: None,
    }
}

pub(crate) fn submission(runs: Vec<Run>) -> Submit {
    Submit {
        runs,
        idempotency_key: None,
        request_sha256: Digest::of(b"request"),
        audit: note("run.submit"),
    }
}

pub(crate) fn claim_of(run: RunId) -> Claim {
    Claim {
        run,
        node: "node-1".parse().unwrap(),
        token_sha256: None,
        boot_id: "boot-1".into(),
        time: Micros(3_000_000),
    }
}

pub(crate) fn advance_of(attempt: &Attempt, to: &[Phase]) -> Advance {
    Advance {
        run: attempt.run,
        token: attempt.token,
        to: to.to_vec(),
        time: Micros(4_000_000),
        record: RunUpdate::default(),
        not_before: None,
    }
}

pub(crate) fn unleased(run: RunId, from: Phase, to: Phase) -> UnleasedMove {
    UnleasedMove {
        runs: vec![(run, from)],
        to,
        time: Micros(5_000_000),
        cause: (to == Phase::Cancelled).then_some(Cause::Cancelled),
        message: "asked for".into(),
        asked: Some(Asked {
            audit: vec![note("run.move")],
            key: None,
            tells_live: false,
        }),
    }
}

/// Moves one run, and says why when it cannot be moved.
pub(crate) async fn move_one(store: &dyn Store, change: UnleasedMove) -> Result<Run, StoreError> {
    let mut moved = store.move_unleased(change).await?;
    match moved.refused.pop() {
        Some((_, error)) => Err(error),
        None => Ok(moved.runs.remove(0)),
    }
}

pub(crate) fn query() -> RunQuery {
    RunQuery {
        tenant: tenant(),
        phases: vec![],
        parent: None,
        owner: None,
        cursor: None,
        limit: 100,
    }
}

/// Submits runs and returns them as stored, in order.
pub(crate) async fn submitted(store: &dyn Store, runs: Vec<Run>) -> Vec<Run> {
    let ids: Vec<RunId> = runs.iter().map(|run| run.id).collect();
    store.submit(submission(runs)).await.unwrap();
    let mut stored = Vec::new();
    for id in ids {
        stored.push(stored_run(store, id).await);
    }
    stored
}

pub(crate) async fn stored_run(store: &dyn Store, id: RunId) -> Run {
    store.run(&tenant(), id).await.unwrap().unwrap()
}

/// Counts that are not zero.
pub(crate) async fn counted(store: &dyn Store) -> Vec<(Phase, u64)> {
    let counts = store.counts(&tenant()).await.unwrap();
    assert_eq!(counts.len(), PHASES.len());
    counts.into_iter().filter(|(_, count)| *count > 0).collect()
}

/// A change of what stands on a run.
pub(crate) fn label_of(
    run: RunId,
    tags: &[(&str, &str)],
    text: Option<&str>,
    key: Option<&str>,
) -> LabelChange {
    let sha256 = Digest::of(format!("{tags:?} {text:?}").as_bytes());
    let tag = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    LabelChange {
        run,
        set: tags.iter().map(tag).collect(),
        remove: Vec::new(),
        note: text.map(str::to_owned),
        key: key.map(|key| (key.to_owned(), sha256)),
        audit: note("run.label"),
    }
}

/// What a job has said.
pub(crate) fn logged(params: &[(&str, &str)], tags: &[(&str, &str)]) -> Logged {
    let texts = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    Logged {
        params: texts(params),
        tags: texts(tags),
        left_out: 0,
        shortened: 0,
    }
}
