//! Kills a process that writes, at every named point and at random, and compares
//! what it was told with what is there: nothing acknowledged is lost, nothing is
//! there twice, nothing is half there.
//!
//! The process is this test binary again, running only [`child`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use mlmesh_model::*;
use mlmesh_store::{CRASH_POINTS, PostgresStore, SqliteStore, verify_chain};
use mlmesh_testkit::postgres::PostgresServer;

use crate::conformance::reproductions::judgement;
use crate::fixtures::*;

/// Kills at a moment drawn from the seed, besides one at each crash point.
const RANDOM_KILLS: u64 = 12;

/// Workers of a child.
const WORKERS: u64 = 4;

/// Signal numbers of Linux.
const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;

const SEED: u64 = 20_240_607;

#[test]
fn sqlite_loses_nothing_that_it_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meshd.db");
    let mut ledger = Ledger::default();
    for round in rounds() {
        let place = ("MLMESH_STORE_CHILD_SQLITE", path.to_str().unwrap());
        run_child(&round, place, &mut ledger);
        block_on(async {
            let store = SqliteStore::open(&path).unwrap();
            ledger.compare(&*store, &round).await;
        });
        assert_eq!(integrity(&path), "ok");
    }
    ledger.check_volume();
}

#[test]
fn postgres_loses_nothing_that_it_acknowledged() {
    let Some(mut server) = PostgresServer::start() else {
        return;
    };
    let config = server.new_schema().unwrap();
    let mut ledger = Ledger::default();
    for round in rounds() {
        let place = ("MLMESH_STORE_CHILD_POSTGRES", config.as_str());
        run_child(&round, place, &mut ledger);
        block_on(async {
            let store = PostgresStore::connect(&config).await.unwrap();
            ledger.compare(&*store, &round).await;
        });
    }
    ledger.check_volume();
}

/// One life of a child.
#[derive(Debug)]
struct Round {
    number: u64,
    /// The crash point and its hit, or none for a kill from outside.
    crash_at: Option<String>,
    /// Acknowledgements after which it is killed from outside.
    lines_max: u64,
}

fn rounds() -> Vec<Round> {
    let mut random = SEED;
    let mut draw = |below: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 33) % below
    };
    println!("seed {SEED}");
    let points = CRASH_POINTS.iter().map(|point| Some(*point));
    let kills = (0..RANDOM_KILLS).map(|_| None);
    let rounds = points.chain(kills).enumerate();
    rounds
        .map(|(number, point)| Round {
            number: number as u64,
            crash_at: point.map(|point| format!("{point}:{}", 1 + draw(12))),
            lines_max: if point.is_some() { u64::MAX } else { draw(120) },
        })
        .collect()
}

/// What a child was told, by run: the last phase that was acknowledged.
#[derive(Debug, Default)]
struct Ledger {
    acknowledged: BTreeMap<RunId, Phase>,
    /// Repetitions of which it was said that they were judged.
    judged: BTreeSet<RunId>,
}

fn run_child(round: &Round, (variable, place): (&str, &str), ledger: &mut Ledger) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "kill::child", "--nocapture"])
        .env(variable, place)
        .env("MLMESH_STORE_CHILD_ROUND", round.number.to_string())
        .env_remove("MLMESH_CRASH_AT")
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if let Some(point) = &round.crash_at {
        command.env("MLMESH_CRASH_AT", point);
    }
    let mut child = command.spawn().unwrap();
    let mut lines = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let mut words = line.split(' ');
        let word = words.next();
        if !matches!(word, Some("acknowledged" | "judged")) {
            continue;
        }
        // The last line of a killed process may be cut.
        let (Some(id), Some(phase), Some("end")) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let (id, phase) = (id.parse().unwrap(), Phase::from_name(phase).unwrap());
        match word {
            Some("judged") => drop(ledger.judged.insert(id)),
            _ => drop(ledger.acknowledged.insert(id, phase)),
        }
        lines += 1;
        if lines >= round.lines_max {
            child.kill().unwrap();
        }
    }
    let status = child.wait().unwrap();
    // Neither its own end nor a panic: the signal that was meant.
    let meant = match round.crash_at {
        Some(_) => SIGABRT,
        None => SIGKILL,
    };
    assert_eq!(status.signal(), Some(meant), "{round:?}: {status}");
}

impl Ledger {
    async fn compare(&mut self, store: &dyn Store, round: &Round) {
        let all = RunQuery {
            limit: u32::MAX,
            ..query()
        };
        let runs = store.runs(all).await.unwrap();
        let mut stored: BTreeMap<RunId, Run> = BTreeMap::new();
        for run in runs {
            assert!(stored.insert(run.id, run).is_none(), "{round:?}: twice");
        }
        for (id, phase) in &self.acknowledged {
            let run = stored
                .get(id)
                .unwrap_or_else(|| panic!("{round:?}: lost {id}"));
            // What followed may have been committed without being acknowledged.
            let further = rank(run.phase) >= rank(*phase);
            assert!(further, "{round:?}: {id} is {}, was {phase}", run.phase);
        }
        let mut recount: BTreeMap<Phase, u64> =
            PHASES.into_iter().map(|phase| (phase, 0)).collect();
        for run in stored.values() {
            *recount.entry(run.phase).or_default() += 1;
        }
        assert_eq!(store.counts(&tenant()).await.unwrap(), recount, "{round:?}");
        let open = store.open_runs().await.unwrap();
        let expected = stored.values().filter(|run| !run.phase.is_ended()).count();
        assert_eq!(open.len(), expected, "{round:?}");
        let events = store
            .events(&tenant(), Sequence(0), u32::MAX)
            .await
            .unwrap();
        let sequences: Vec<u64> = events.iter().map(|event| event.seq.0).collect();
        let without_gap: Vec<u64> = (1..=events.len() as u64).collect();
        assert_eq!(sequences, without_gap, "{round:?}");
        for id in &self.judged {
            let found = store.repetitions(&tenant(), *id).await.unwrap();
            let is_judged = found
                .iter()
                .any(|it| it.run == *id && it.judgement.is_some());
            assert!(is_judged, "{round:?}: lost the judgement of {id}");
        }
        let audit = store.audit_rows(0, u32::MAX).await.unwrap();
        verify_chain(audit.into_iter(), None).unwrap();
    }

    /// A test in which nothing was acknowledged would prove nothing.
    fn check_volume(&self) {
        println!("{} runs were acknowledged", self.acknowledged.len());
        assert!(self.acknowledged.len() > 100 && self.judged.len() > 10);
    }
}

fn rank(phase: Phase) -> u32 {
    match phase {
        Phase::Queued => 0,
        Phase::Starting => 1,
        Phase::Running | Phase::Ready | Phase::Draining => 2,
        Phase::Finishing => 3,
        Phase::Completed | Phase::Failed | Phase::Cancelled | Phase::Interrupted => 4,
    }
}

fn integrity(path: &Path) -> String {
    let connection = rusqlite::Connection::open(path).unwrap();
    let check = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0));
    check.unwrap()
}

/// Nothing by itself; in a process that [`run_child`] started, the writer.
#[test]
fn child() {
    let Ok(round) = std::env::var("MLMESH_STORE_CHILD_ROUND") else {
        return;
    };
    let round: u64 = round.parse().unwrap();
    block_on(async {
        let store: Arc<dyn Store> = match std::env::var("MLMESH_STORE_CHILD_SQLITE") {
            Ok(path) => SqliteStore::open(Path::new(&path)).unwrap(),
            Err(_) => {
                let config = std::env::var("MLMESH_STORE_CHILD_POSTGRES").unwrap();
                PostgresStore::connect(&config).await.unwrap()
            }
        };
        let mut workers = tokio::task::JoinSet::new();
        for worker in 0..WORKERS {
            workers.spawn(work(Arc::clone(&store), round * WORKERS + worker));
        }
        workers.join_all().await;
    });
}

/// Submits, claims and ends runs, or cancels them, until the process dies. What completes
/// repeats the first one, and is judged.
async fn work(store: Arc<dyn Store>, worker: u64) {
    fn acknowledged(id: RunId, phase: Phase) {
        println!("acknowledged {id} {phase} end");
    }
    let mut original = None;
    for number in 0.. {
        let mut run = run();
        run.placement.reproduces = original;
        run.id = RunId::from_random((worker << 32 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (id, repeated) = (run.id, run.clone());
        store.submit(submission(vec![run])).await.unwrap();
        acknowledged(id, Phase::Queued);
        if number % 3 == 2 {
            let cancel = unleased(id, Phase::Queued, Phase::Cancelled);
            move_one(&*store, cancel).await.unwrap();
            acknowledged(id, Phase::Cancelled);
            continue;
        }
        let attempt = store.claim(claim_of(id)).await.unwrap();
        acknowledged(id, Phase::Starting);
        for to in [&[Phase::Running][..], &[Phase::Finishing, Phase::Completed]] {
            store.advance(advance_of(&attempt, to)).await.unwrap();
            acknowledged(id, to[to.len() - 1]);
        }
        if let Some(original) = original {
            let judgement = judgement(&repeated, original, None);
            assert!(store.judge(judgement, note("run.judge")).await.unwrap());
            println!("judged {id} completed end");
        }
        original = original.or(Some(id));
    }
}
