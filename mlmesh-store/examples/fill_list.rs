//! Fills a database for `cargo xtask bench list`: 75,000 ended runs, half of them points
//! of sweeps, with 20 metrics and six parameters each, a fifth of them with tags, half of
//! them with what a training script logs beside its metrics. What they hold follows from
//! their number, so that two databases have the same answers.
//!
//! `fill_list FILE`; no daemon may use the file meanwhile. It checks nothing of what it
//! writes: the store's tests do.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use mlmesh_model::*;
use mlmesh_store::SqliteStore;
use tokio::task::JoinSet;

const IMPORTS: u64 = 75;
const RUNS_EACH: u64 = 1000;
const LABELLERS: u64 = 32;

/// 1 January 2025, and the time between two runs: together they are a year.
const FIRST: i64 = 1_735_689_600_000_000;
const BETWEEN: i64 = 420_000_000;

fn main() -> anyhow::Result<()> {
    let file = std::env::args_os().nth(1).context("which file?")?;
    let store = SqliteStore::open(Path::new(&file))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()?;
    runtime.block_on(fill(store))
}

async fn fill(store: Arc<SqliteStore>) -> anyhow::Result<()> {
    for import in 0..IMPORTS {
        let numbers = import * RUNS_EACH..(import + 1) * RUNS_EACH;
        let runs: Vec<Run> = match import % 2 {
            0 => numbers.map(|n| run(n, RunKind::Single)).collect(),
            _ => sweep(numbers.start),
        };
        let (attempts, audit) = (Vec::new(), note("run.import"));
        let imported = Import {
            runs,
            attempts,
            audit,
        };
        store.import(imported).await?;
    }
    let mut labelling = JoinSet::new();
    for part in 0..LABELLERS {
        let store = Arc::clone(&store);
        labelling.spawn(async move {
            let tagged = (0..IMPORTS * RUNS_EACH).filter(|n| n % 5 == 0);
            for n in tagged.filter(|n| n / 5 % LABELLERS == part) {
                store.label(labels(n)).await?;
            }
            Ok::<(), StoreError>(())
        });
    }
    while let Some(done) = labelling.join_next().await {
        done??;
    }
    Ok(())
}

/// A number between 0 and 1 that follows from two.
fn fraction(n: u64, which: u64) -> f64 {
    let mixed = (n * 64 + which + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ mixed >> 32) as u32 as f64 / f64::from(u32::MAX)
}

fn id(n: u64) -> RunId {
    RunId::from_random((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn sweep(first: u64) -> Vec<Run> {
    let children = RUNS_EACH as u32 - 1;
    let mut head = run(first, RunKind::Parent { children });
    (head.plan, head.metrics) = (None, BTreeMap::new());
    let points = (0..children).map(|index| {
        let parent = id(first);
        run(
            first + 1 + u64::from(index),
            RunKind::Child { parent, index },
        )
    });
    std::iter::once(head).chain(points).collect()
}

fn run(n: u64, kind: RunKind) -> Run {
    let queued_at = FIRST + n as i64 * BETWEEN;
    let started_at = queued_at + 1_000_000;
    let failed = n % 10 == 3;
    let phase = match n {
        _ if n % 1000 == 7 => Phase::Interrupted,
        _ if failed => Phase::Failed,
        _ => Phase::Completed,
    };
    let plan = plan(n);
    Run {
        id: id(n),
        seq: Sequence(0),
        tenant: Tenant::default(),
        owner: "ada".parse().expect("a valid name"),
        name: "digits".parse().expect("a valid name"),
        kind,
        commit: plan.commit,
        plan_sha256: PlanDigest(Digest::of(&n.to_le_bytes())),
        plan: Some(Arc::new(plan)),
        placement: Placement::default(),
        git: Some(GitFacts {
            head: "0123456789abcdef0123456789abcdef01234567".into(),
            branch: Some("main".into()),
            dirty: Some(false),
        }),
        phase,
        cause: None,
        message: String::new(),
        exit: Some(Exit::Code(i32::from(failed))),
        attempts: 1,
        token: FencingToken(1),
        queued_at: Micros(queued_at),
        not_before: None,
        started_at: Some(Micros(started_at)),
        ended_at: Some(Micros(
            started_at + (fraction(n, 30) * 3_600_000_000.0) as i64,
        )),
        trust: Some(Trust {
            level: [TrustLevel::L1, TrustLevel::L3][usize::from(!n.is_multiple_of(3))],
            reasons: vec![],
            reproduced: None,
        }),
        metrics: metrics(n),
        outputs: Some(ObjectId(Digest::of(b"outputs"))),
        manifest_sha256: Some(Digest::of(b"manifest")),
        isolation: Some(Isolation {
            namespaces: ["user", "mount", "pid", "net", "ipc", "uts"]
                .map(String::from)
                .into(),
            sandboxed: true,
            network_enforced: true,
            hosts: vec![],
            limits: vec![],
        }),
        pinned: false,
        labels: Labels::default(),
        logged: n.is_multiple_of(2).then(|| logged(n)),
    }
}

/// Twelve parameters and the client's own tags, as a fluent script leaves them.
fn logged(n: u64) -> Logged {
    let mut params: BTreeMap<String, String> = (1..12)
        .map(|which| (format!("param_{which}"), format!("{n}-{which}")))
        .collect();
    params.insert("lr".to_owned(), format!("{:.6}", fraction(n, 40)));
    let tag = |name: &str, value: &str| (format!("mlflow.{name}"), value.to_owned());
    let tags = [
        tag("user", "ada"),
        tag("source.name", "train.py"),
        tag("source.type", "LOCAL"),
        tag("runName", "placid-swan-512"),
    ];
    Logged {
        params,
        tags: tags.into(),
        left_out: 0,
        shortened: 0,
    }
}

fn plan(n: u64) -> Plan {
    let text = |text: &str| ParamValue::Text(text.to_owned());
    let rates = [
        "0.1", "0.03", "0.01", "0.003", "0.001", "1e-4", "3e-5", "1e-5",
    ];
    let params: BTreeMap<String, ParamValue> = [
        (
            "lr".to_owned(),
            text(rates[(fraction(n, 31) * 7.99) as usize]),
        ),
        ("depth".to_owned(), ParamValue::Int(n as i64 % 12)),
        ("seed".to_owned(), ParamValue::Int(n as i64)),
        (
            "optimizer".to_owned(),
            text(["adam", "sgd"][n as usize % 2]),
        ),
        ("augment".to_owned(), ParamValue::Bool(n.is_multiple_of(3))),
        ("dataset".to_owned(), text("digits-2025")),
    ]
    .into();
    let mut argv = vec!["python".to_owned(), "train.py".to_owned()];
    argv.extend(params.keys().map(|name| format!("--{name}={n}")));
    Plan {
        plan_version: PLAN_VERSION,
        commit: CommitId(Digest::of(&(n / RUNS_EACH).to_le_bytes())),
        argv,
        params,
        env: [("OMP_NUM_THREADS".to_owned(), "1".to_owned())].into(),
        secrets: vec![],
        deps: None,
        datasets: vec![],
        seed: PlanSeed::Value(7),
        outputs: vec!["model.npz".into()],
        resources: Resources::default(),
        image: None,
        network: PlanNetwork::None,
        service: None,
    }
}

/// `accuracy` and `loss` lie evenly between 0 and 1.
fn metrics(n: u64) -> BTreeMap<String, MetricSummary> {
    let name = |which: u64| match which {
        0 => "accuracy".to_owned(),
        1 => "loss".to_owned(),
        _ => format!("val/metric_{which}"),
    };
    let summary = |which| {
        let last = fraction(n, which);
        MetricSummary {
            last: MetricValue(last),
            min: MetricValue(last / 2.0),
            max: MetricValue(last * 2.0),
            steps: 100,
        }
    };
    (0..20).map(|which| (name(which), summary(which))).collect()
}

fn labels(n: u64) -> LabelChange {
    let mut set = BTreeMap::new();
    let team = ["red", "blue", "green", "white"][(n / 5 % 4) as usize];
    set.insert("team".to_owned(), team.to_owned());
    if n.is_multiple_of(7500) {
        set.insert("paper".to_owned(), String::new());
    }
    LabelChange {
        run: id(n),
        set,
        remove: vec![],
        note: None,
        key: None,
        audit: note("run.label"),
    }
}

fn note(action: &str) -> AuditNote {
    AuditNote {
        time: Micros(FIRST),
        tenant: Tenant::default(),
        owner: "ada".parse().expect("a valid name"),
        key: "owner.key".into(),
        remote: "127.0.0.1:50000".into(),
        action: action.to_owned(),
        subject: "digits".into(),
        details_sha256: None,
    }
}
