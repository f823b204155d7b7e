//! What SQLite promises beyond the port: durability of the file, query plans,
//! faults of the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use futures_util::future::join_all;
use mlmesh_model::{Phase, Store};
use mlmesh_store::{SqliteStore, verify_chain};

use crate::fixtures::*;

#[test]
fn everything_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meshd.db");
    block_on(async {
        let (runs, events, audit) = {
            let store = SqliteStore::open(&path).unwrap();
            let runs = submitted(&*store, sweep(3)).await;
            store.claim(claim_of(runs[1].id)).await.unwrap();
            (
                store.runs(query()).await.unwrap(),
                store
                    .events(&tenant(), Default::default(), 100)
                    .await
                    .unwrap(),
                store.audit_head().await.unwrap(),
            )
        };
        let store = SqliteStore::open(&path).unwrap();
        assert_eq!(store.runs(query()).await.unwrap(), runs);
        let again = store.events(&tenant(), Default::default(), 100).await;
        assert_eq!(again.unwrap(), events);
        assert_eq!(store.audit_head().await.unwrap(), audit);
        assert_eq!(*store.watch().borrow(), events.last().unwrap().seq);
    });
}

#[test]
fn watchers_are_told_of_commits() {
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let store = SqliteStore::open(&directory.path().join("meshd.db")).unwrap();
        let mut watch = store.watch();
        assert!(!watch.has_changed().unwrap());
        submitted(&*store, sweep(3)).await;
        watch.changed().await.unwrap();
        assert_eq!(
            *watch.borrow_and_update(),
            store.last_event().await.unwrap()
        );
        store.check().await.unwrap();
        assert!(!watch.has_changed().unwrap(), "nothing happened");
    });
}

/// Somebody edits the file itself.
#[test]
fn tampering_with_audit_rows_is_found() {
    let tampered = [
        (
            "UPDATE audit SET note = replace(note, 'ada', 'eve') WHERE n = 2",
            "edited",
        ),
        ("DELETE FROM audit WHERE n = 2", "missing"),
        ("DELETE FROM audit WHERE n = 4", "cut off"),
        (
            "UPDATE audit SET n = -n; UPDATE audit SET n = 5 + n",
            "does not follow",
        ),
    ];
    for (sql, defect) in tampered {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meshd.db");
        block_on(async {
            let store = SqliteStore::open(&path).unwrap();
            for _ in 0..4 {
                submitted(&*store, vec![run()]).await;
            }
            let connection = rusqlite::Connection::open(&path).unwrap();
            connection.execute_batch(sql).unwrap();
            let rows = store.audit_rows(0, 100).await.unwrap();
            let head = store.audit_head().await.unwrap();
            let found = verify_chain(rows.into_iter(), Some((head.n, head.hash)));
            let found = found.unwrap_err().to_string();
            assert!(found.contains(defect), "{sql}: {found}");
        });
    }
}

/// A write that its caller no longer waits for is done all the same, and readers
/// are not in each other's way.
#[test]
fn callers_may_leave_and_readers_may_crowd() {
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let store = SqliteStore::open(&directory.path().join("meshd.db")).unwrap();
        let id = submitted(&*store, vec![run()]).await.remove(0).id;
        // Handed to the writer by the first poll, then forgotten.
        drop(store.claim(claim_of(id)).now_or_never());
        let mut reads = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let store = std::sync::Arc::clone(&store);
            reads.spawn(async move { store.counts(&tenant()).await.unwrap() });
        }
        assert_eq!(reads.join_all().await.len(), 100);
        store.check().await.unwrap();
        assert_eq!(stored_run(&*store, id).await.phase, Phase::Starting);
    });
}

/// A submission that finds nobody at the store is over when it has been polled once:
/// no other thread had to be woken for it.
#[test]
fn who_finds_the_store_idle_writes_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meshd.db");
    block_on(async {
        let store = SqliteStore::open(&path).unwrap();
        let submitted = store.submit(submission(vec![run()])).now_or_never();
        submitted.expect("not written by this thread").unwrap();
        // The job path's writes go to the writer, whom the lock keeps waiting.
        let disk = rusqlite::Connection::open(&path).unwrap();
        disk.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut check = store.check();
        assert!((&mut check).now_or_never().is_none());
        disk.execute_batch("COMMIT").unwrap();
        check.await.unwrap();
    });
    // A thread that is a whole runtime blocks for nobody.
    let one = tokio::runtime::Builder::new_current_thread().build();
    one.unwrap().block_on(async {
        let store = SqliteStore::open(&path).unwrap();
        let disk = rusqlite::Connection::open(&path).unwrap();
        disk.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut submit = store.submit(submission(vec![run()]));
        assert!((&mut submit).now_or_never().is_none());
        disk.execute_batch("COMMIT").unwrap();
        submit.await.unwrap();
    });
}

/// One thread runs everything, and writes to a disk that keeps it waiting until
/// another task has done something.
#[test]
fn a_write_that_hangs_holds_up_no_task_and_gathers_others_behind_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meshd.db");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(&path).unwrap();
        let disk = rusqlite::Connection::open(&path).unwrap();
        disk.execute_batch("BEGIN IMMEDIATE").unwrap();
        let (hangs, writer) = (Arc::new(AtomicBool::new(false)), Arc::clone(&store));
        let begun = Arc::clone(&hangs);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            begun.store(true, Ordering::SeqCst);
            let submitted = writer.submit(submission(vec![run()])).now_or_never();
            submitted.expect("not written by its own thread").unwrap();
        });
        tasks.spawn(async move {
            while !hangs.load(Ordering::SeqCst) {
                tokio::task::yield_now().await;
            }
            let mut behind: Vec<_> = (0..8)
                .map(|_| store.submit(submission(vec![run()])))
                .collect();
            for submit in &mut behind {
                assert!(submit.now_or_never().is_none());
            }
            disk.execute_batch("COMMIT").unwrap();
            for submitted in join_all(behind).await {
                submitted.unwrap();
            }
            // They shared a flush, so the next one waits for company, and then no more.
            disk.execute_batch("BEGIN IMMEDIATE").unwrap();
            let mut next = store.submit(submission(vec![run()]));
            assert!((&mut next).now_or_never().is_none());
            disk.execute_batch("COMMIT").unwrap();
            next.await.unwrap();
            let mut alone = store.submit(submission(vec![run()]));
            while (&mut alone).now_or_never().is_none() {
                alone.await.unwrap();
                alone = store.submit(submission(vec![run()]));
            }
        });
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
}
