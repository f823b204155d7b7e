//! Databases of earlier releases: each opens, is brought forward, and holds what
//! it held. A newer one is refused.
//!
//! `golden/vN.db` and `golden/vN.json` were written once by `write_golden` of the
//! release that introduced version N; they are never written again.

use std::path::{Path, PathBuf};

use mlmesh_model::*;
use mlmesh_store::{PostgresStore, SCHEMA_VERSION, SqliteStore, verify_chain};
use mlmesh_testkit::postgres::PostgresServer;

use crate::conformance::reproductions::judgement;
use crate::fixtures::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

#[test]
fn a_database_of_version_1_is_read() {
    is_read(1);
}

#[test]
fn a_database_of_version_2_is_read() {
    is_read(2);
}

#[test]
fn a_database_of_version_3_is_read() {
    is_read(3);
}

#[test]
fn a_database_of_version_4_is_read() {
    is_read(4);
}

#[test]
fn a_database_of_version_5_is_read() {
    is_read(5);
}

#[test]
fn a_database_of_version_6_is_read() {
    is_read(6);
}

#[test]
fn a_database_of_version_7_is_read() {
    is_read(7);
}

fn is_read(version: u64) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meshd.db");
    std::fs::copy(golden(&format!("v{version}.db")), &path).unwrap();
    let text = std::fs::read_to_string(golden(&format!("v{version}.json"))).unwrap();
    let expected: Vec<Run> = serde_json::from_str(&text).unwrap();
    block_on(async {
        let store = SqliteStore::open(&path).unwrap();
        for run in &expected {
            assert_eq!(stored_run(&*store, run.id).await, *run);
        }
        let ids: Vec<RunId> = expected.iter().map(|run| run.id).collect();
        crate::property::check(&store, &path, &ids).await;
        for run in &expected {
            let Some(original) = run.placement.reproduces else {
                continue;
            };
            let found = store.repetitions(&tenant(), original).await.unwrap();
            assert!(found[0].judgement.is_some(), "{found:?}");
            let trust = stored_run(&*store, original).await.trust.unwrap();
            assert_eq!(trust.level, TrustLevel::L4);
        }
        assert_eq!(store.datasets(&tenant()).await.unwrap().len(), 1);
        assert_eq!(store.keys().await.unwrap().len(), 1);
        let head = store.audit_head().await.unwrap();
        let rows = store.audit_rows(0, 100).await.unwrap();
        verify_chain(rows.into_iter(), Some((head.n, head.hash))).unwrap();
        if version >= 7 {
            let live = store.open_runs().await.unwrap();
            let is_ready = |run: &&Run| run.phase == Phase::Ready && run.is_service();
            assert_eq!(live.iter().filter(is_ready).count(), 1, "{live:?}");
        }
        if version >= 5 {
            has_what_came_with_version_5(&*store, &expected).await;
        }
        submitted(&*store, vec![run()]).await;
    });
}

async fn has_what_came_with_version_5(store: &dyn Store, runs: &[Run]) {
    let users = store.users().await.unwrap();
    assert_eq!(users[0].name.as_str(), "bob");
    let objects = vec![ObjectId(Digest::of(b"sent"))];
    let has = store.possesses(&tenant(), &users[0].name, objects).await;
    assert_eq!(has.unwrap(), [true]);
    let untold = store.untold().await.unwrap();
    assert_eq!(untold[0].run.phase, Phase::Cancelled);
    let search = RunSearch {
        tenant: tenant(),
        filter: Some("metrics.loss = 0.5".parse().unwrap()),
        sort: None,
        cursor: None,
        limit: 9,
        now: Micros(0),
    };
    let found = store.find(search).await.unwrap();
    assert!(found.len() == 1 && runs.contains(&found[0]), "{found:?}");
    let repeated = runs.iter().find_map(|run| run.placement.reproduces);
    let repetitions = store.repetitions(&tenant(), repeated.unwrap()).await;
    let statement = repetitions.unwrap().remove(0).statement;
    assert_eq!(statement.unwrap().signer, "ed25519:00");
}

/// Databases from before runs were found by their metrics, and by what their jobs have
/// logged, have what finds them.
#[test]
fn what_finds_runs_is_filled_from_the_runs() {
    let metrics = "metrics = '{\"loss\":[\"' || seq || '.5\",\"0\",\"0\",1]}'";
    let labels = "labels = '{\"logged\":{\"params\":{\"loss\":\"' || seq || '.5\"}}}'";
    filled_from_the_runs_of(
        4,
        &[metrics, labels],
        &["metrics.loss", "logged.params.loss"],
    );
    filled_from_the_runs_of(5, &[labels], &["logged.params.loss"]);
}

/// What is `given` to the runs of a version is what they are found by.
fn filled_from_the_runs_of(version: u64, given: &[&str], fields: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meshd.db");
    std::fs::copy(golden(&format!("v{version}.db")), &path).unwrap();
    let connection = rusqlite::Connection::open(&path).unwrap();
    let given = format!("UPDATE runs SET {} WHERE kind <> 1", given.join(", "));
    assert!(connection.execute(&given, []).unwrap() > 2);
    drop(connection);
    let text = std::fs::read_to_string(golden(&format!("v{version}.json"))).unwrap();
    let runs: Vec<Run> = serde_json::from_str(&text).unwrap();
    let ids: Vec<RunId> = runs.iter().map(|run| run.id).collect();
    block_on(async {
        let store = SqliteStore::open(&path).unwrap();
        crate::property::check(&store, &path, &ids).await;
        for field in fields {
            let search = RunSearch {
                tenant: tenant(),
                filter: None,
                sort: Some(format!("{field}:desc").parse().unwrap()),
                cursor: None,
                limit: 1,
                now: Micros(0),
            };
            let found = store.find(search).await.unwrap();
            let newest = runs.iter().max_by_key(|run| run.seq).unwrap();
            assert_eq!(found[0].id, newest.id, "{field}");
        }
    });
}

#[test]
fn a_newer_schema_is_refused_with_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meshd.db");
    drop(SqliteStore::open(&path).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute("UPDATE schema_version SET version = 99", [])
        .unwrap();
    let error = SqliteStore::open(&path).unwrap_err().to_string();
    assert!(error.contains("schema version 99"), "{error}");
    let known = format!("versions up to {SCHEMA_VERSION}");
    assert!(error.contains(&known) && error.contains("hint:"), "{error}");
    let Some(mut server) = PostgresServer::start() else {
        return;
    };
    let config = server.new_schema().unwrap();
    block_on(async {
        drop(PostgresStore::connect(&config).await.unwrap());
        server
            .psql("UPDATE test_1.schema_version SET version = 99")
            .unwrap();
        let error = PostgresStore::connect(&config).await.unwrap_err();
        assert!(error.to_string().contains("schema version 99"), "{error}");
    });
}

/// Writes the golden files of the current version. Run by hand, once a version.
#[test]
#[ignore = "writes files of the repository"]
fn write_golden() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meshd.db");
    let runs = block_on(async {
        let store = SqliteStore::open(&path).unwrap();
        let points = submitted(&*store, sweep(3)).await;
        let mut single = run();
        single.placement.on_finish = Some(OnFinish {
            webhook: Some("https://example.org/".into()),
            ..OnFinish::default()
        });
        let single = submitted(&*store, vec![single]).await.remove(0);
        let attempt = store.claim(claim_of(points[1].id)).await.unwrap();
        let mut end = advance_of(
            &attempt,
            &[Phase::Running, Phase::Finishing, Phase::Completed],
        );
        end.record.outputs = Some(ObjectId(Digest::of(b"outputs")));
        end.record.exit = Some(Exit::Code(0));
        let half = MetricSummary {
            last: MetricValue(0.5),
            min: MetricValue(0.25),
            max: MetricValue(1.0),
            steps: 3,
        };
        end.record.metrics = Some([("loss".to_owned(), half)].into());
        end.record.logged = Some(logged(&[("lr", "0.1")], &[("stage", "final")]));
        store.advance(end).await.unwrap();
        store.claim(claim_of(points[2].id)).await.unwrap();
        let cancel = unleased(single.id, Phase::Queued, Phase::Cancelled);
        move_one(&*store, cancel).await.unwrap();
        let pin = Pin {
            tenant: tenant(),
            owner: "ada".parse().unwrap(),
            target: PinTarget::Run(single.id),
            time: Micros(6_000_000),
        };
        store.pin(pin, note("pin.add")).await.unwrap();
        let mut repeated = run();
        repeated.placement.reproduces = Some(points[1].id);
        let repeated = submitted(&*store, vec![repeated]).await.remove(0);
        let judgement = judgement(&repeated, points[1].id, None);
        store.judge(judgement, note("run.judge")).await.unwrap();
        let statement = SignedStatement {
            envelope: "{}".into(),
            signer: "ed25519:00".into(),
        };
        let note_of_it = note("run.attest");
        let kept = store.attest(&tenant(), repeated.id, statement, note_of_it);
        assert!(kept.await.unwrap());
        let dataset = Dataset {
            tenant: tenant(),
            owner: "ada".parse().unwrap(),
            name: "digits".parse().unwrap(),
            version: "1".into(),
            checksum: Digest::of(b"digits"),
            directory: false,
            path: "/data/digits".into(),
            copied: false,
            about: DatasetAbout::default(),
            bytes: 1,
            files: 1,
            registered_at: Micros(1),
        };
        store.put_dataset(dataset, note("data.add")).await.unwrap();
        let key = ApiKey {
            name: "owner.key".into(),
            tenant: tenant(),
            owner: "ada".parse().unwrap(),
            sha256: Digest::of(b"secret"),
            class: KeyClass::Bulk,
            run: None,
            created_at: Micros(1),
            revoked_at: None,
        };
        store.put_key(key, note("key.add")).await.unwrap();
        let user = User {
            tenant: tenant(),
            name: "bob".parse().unwrap(),
            role: "member".parse().unwrap(),
            created_at: Micros(1),
            removed_at: None,
        };
        let bob = user.name.clone();
        let change = UserChange::Add { user, again: false };
        store.change_user(change, note("user.add")).await.unwrap();
        let sent = vec![ObjectId(Digest::of(b"sent"))];
        store.possess(&tenant(), &bob, sent).await.unwrap();
        let labels = label_of(single.id, &[("team", "blue")], Some("looks good"), None);
        store.label(labels).await.unwrap();
        let served = submitted(&*store, vec![replica()]).await.remove(0);
        let attempt = store.claim(claim_of(served.id)).await.unwrap();
        let ready = advance_of(&attempt, &[Phase::Running, Phase::Ready]);
        store.advance(ready).await.unwrap();
        let mut runs = Vec::new();
        let singles = [single.id, repeated.id, served.id];
        for id in points.iter().map(|run| run.id).chain(singles) {
            runs.push(stored_run(&*store, id).await);
        }
        runs
    });
    // The store is closed, so the log has been moved into the file.
    std::fs::copy(&path, golden(&format!("v{SCHEMA_VERSION}.db"))).unwrap();
    let text = serde_json::to_string_pretty(&runs).unwrap();
    std::fs::write(golden(&format!("v{SCHEMA_VERSION}.json")), text + "\n").unwrap();
}
