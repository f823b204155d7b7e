//! What SQLite promises beyond the port: durability of the file, query plans,
//! faults of the disk.

use mlmesh_model::Store;
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
        let left = run();
        let id = left.id;
        let mut submit = store.submit(submission(vec![left]));
        // Handed to the writer by the first poll, then forgotten.
        tokio::select! {
            biased;
            _ = &mut submit => {}
            () = std::future::ready(()) => {}
        }
        drop(submit);
        let mut reads = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let store = std::sync::Arc::clone(&store);
            reads.spawn(async move { store.counts(&tenant()).await.unwrap() });
        }
        assert_eq!(reads.join_all().await.len(), 100);
        store.check().await.unwrap();
        stored_run(&*store, id).await;
    });
}
