//! Measures a store: durable submits, a large sweep, reads in a full store.
//! Orientation for people; never a test. Run with `--release`; the argument
//! `postgres` measures a private server instead of SQLite.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mlmesh_model::*;
use mlmesh_store::{PostgresStore, SqliteStore};
use mlmesh_testkit::postgres::PostgresServer;

fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let sync = flush_time(directory.path())?;
    say(format_args!("fdatasync of 4 KiB: p50 {sync:?}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    if std::env::args().nth(1).as_deref() == Some("postgres") {
        let Some(mut server) = PostgresServer::start() else {
            return Ok(());
        };
        let config = server.new_schema()?;
        return runtime.block_on(async { measure(PostgresStore::connect(&config).await?).await });
    }
    let store = SqliteStore::open(&directory.path().join("meshd.db"))?;
    runtime.block_on(measure(store))
}

async fn measure(store: Arc<dyn Store>) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for _ in 0..1000 {
        let submit = submission(vec![run(new_id(), RunKind::Single, 0)]);
        let start = Instant::now();
        store.submit(submit).await?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    say(format_args!(
        "submit, 1 client: p50 {:?}, p99 {:?}",
        times[500], times[990]
    ));

    const EACH: u32 = 400;
    let start = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let store = Arc::clone(&store);
        clients.spawn(async move {
            for _ in 0..EACH {
                let submit = submission(vec![run(new_id(), RunKind::Single, 0)]);
                store.submit(submit).await?;
            }
            Ok::<(), StoreError>(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    let rate = f64::from(64 * EACH) / start.elapsed().as_secs_f64();
    say(format_args!("submit, 64 clients: {rate:.0}/s"));

    for _ in 0..5 {
        let submit = submission(sweep(10_000));
        let parent = submit.runs[0].id;
        let start = Instant::now();
        store.submit(submit).await?;
        let submitted = start.elapsed();
        let start = Instant::now();
        let of_parent = RunQuery {
            parent: Some(parent),
            limit: 1000,
            ..query()
        };
        let points = store.runs(of_parent).await?.len();
        let read = start.elapsed();
        say(format_args!(
            "sweep of 10,000: {submitted:?}; first {points} points read: {read:?}"
        ));
    }
    let start = Instant::now();
    let open = store.open_runs().await?.len();
    say(format_args!("{open} open runs: {:?}", start.elapsed()));

    for round in 0..3 {
        let start = Instant::now();
        store.counts(&Tenant::default()).await?;
        let counts = start.elapsed();
        let start = Instant::now();
        store.runs(query()).await?;
        let newest = start.elapsed();
        let start = Instant::now();
        let failed = RunQuery {
            phases: vec![Phase::Failed, Phase::Completed],
            ..query()
        };
        store.runs(failed).await?;
        let filtered = start.elapsed();
        say(format_args!(
            "round {round}: counts {counts:?}, newest 100 {newest:?}, by phase {filtered:?}"
        ));
    }

    let runs = store.runs(query()).await?;
    let start = Instant::now();
    let mut moves = 0;
    for run in runs.iter().filter(|run| run.kind == RunKind::Single) {
        let claim = Claim {
            run: run.id,
            node: "node-1".parse()?,
            token_sha256: None,
            boot_id: "boot".into(),
            time: Micros(1),
        };
        let attempt = store.claim(claim).await?;
        for to in [
            vec![Phase::Running],
            vec![Phase::Finishing],
            vec![Phase::Completed],
        ] {
            let advance = Advance {
                run: run.id,
                token: attempt.token,
                to,
                time: Micros(2),
                record: RunUpdate::default(),
                not_before: None,
            };
            store.advance(advance).await?;
        }
        moves += 4;
    }
    say(format_args!(
        "{moves} moves, 1 client: {:?} each",
        start.elapsed() / moves.max(1)
    ));
    Ok(())
}

fn flush_time(directory: &Path) -> anyhow::Result<Duration> {
    use std::io::Write;
    let mut file = std::fs::File::create(directory.join("flush"))?;
    let mut times = Vec::new();
    for _ in 0..300 {
        file.write_all(&[7; 4096])?;
        let start = Instant::now();
        file.sync_data()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[150])
}

fn new_id() -> RunId {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    RunId::from_random(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn sweep(points: u32) -> Vec<Run> {
    let parent = new_id();
    let mut head = run(parent, RunKind::Parent { children: points }, 0);
    head.plan = None;
    let mut runs = vec![head];
    runs.extend((0..points).map(|index| {
        let kind = RunKind::Child { parent, index };
        run(new_id(), kind, index)
    }));
    runs
}

fn run(id: RunId, kind: RunKind, index: u32) -> Run {
    let plan = Plan {
        plan_version: PLAN_VERSION,
        commit: CommitId(Digest::of(b"tree")),
        argv: ["python", "train.py", "--lr"]
            .into_iter()
            .map(str::to_owned)
            .chain([format!("0.{index}")])
            .collect(),
        params: [("lr".to_owned(), ParamValue::Text(format!("0.{index}")))].into(),
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
    };
    Run {
        id,
        seq: Sequence(0),
        tenant: Tenant::default(),
        owner: "ada".parse().expect("a valid name"),
        name: "digits".parse().expect("a valid name"),
        kind,
        commit: plan.commit,
        plan_sha256: PlanDigest(Digest::of(&index.to_le_bytes())),
        plan: Some(Arc::new(plan)),
        placement: Placement::default(),
        git: None,
        phase: Phase::Queued,
        cause: None,
        message: String::new(),
        exit: None,
        attempts: 0,
        token: FencingToken(0),
        queued_at: Micros(1),
        not_before: None,
        started_at: None,
        ended_at: None,
        trust: Some(Trust {
            level: TrustLevel::L3,
            reasons: vec![],
            reproduced: None,
        }),
        metrics: Default::default(),
        outputs: None,
        manifest_sha256: None,
        isolation: None,
        pinned: false,
        labels: Labels::default(),
        logged: None,
    }
}

fn submission(runs: Vec<Run>) -> Submit {
    let key = runs.first().map(|run| run.id.to_string());
    Submit {
        runs,
        idempotency_key: key,
        request_sha256: Digest::of(b"request"),
        audit: AuditNote {
            time: Micros(1),
            tenant: Tenant::default(),
            owner: "ada".parse().expect("a valid name"),
            key: "owner.key".into(),
            remote: "127.0.0.1:50000".into(),
            action: "run.submit".into(),
            subject: "digits".into(),
            details_sha256: None,
        },
    }
}

fn query() -> RunQuery {
    RunQuery {
        tenant: Tenant::default(),
        phases: vec![],
        parent: None,
        owner: None,
        cursor: None,
        limit: 100,
    }
}

#[expect(clippy::print_stdout, reason = "a measurement prints its figures")]
fn say(line: std::fmt::Arguments<'_>) {
    println!("{line}");
}
