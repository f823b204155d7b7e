//! What SQLite promises beyond the port: durability of the file, query plans,
//! faults of the disk.

use mlmesh_model::Store;
use mlmesh_store::SqliteStore;

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
