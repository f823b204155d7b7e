//! Torn files, full and read-only disks, a server that goes away.

use std::path::{Path, PathBuf};
use std::process::Command;

use mlmesh_model::*;
use mlmesh_store::{PostgresStore, SqliteStore};
use mlmesh_testkit::postgres::PostgresServer;

use crate::fixtures::*;

/// Whatever happens to the end of the write-ahead log, what was flushed before
/// the damage is there, and what comes after it is whole or absent.
#[test]
fn a_torn_log_tail_takes_only_what_lies_behind_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meshd.db");
    let log = directory.path().join("meshd.db-wal");
    let (written, bytes, log_bytes) = block_on(async {
        let store = SqliteStore::open(&path).unwrap();
        let mut written = Vec::new();
        for _ in 0..30 {
            let id = submitted(&*store, vec![run()]).await.remove(0).id;
            written.push((id, frames_of(&log).len()));
        }
        // The files as a power cut would leave them: the store is still open.
        let bytes = std::fs::read(&path).unwrap();
        (written, bytes, frames_of(&log))
    });
    let full = log_bytes.len();
    type Damage = fn(&mut Vec<u8>, usize);
    let damages: [(&str, Damage); 3] = [
        ("cut", |log, at| log.truncate(at)),
        ("zeroed", |log, at| log[at..].fill(0)),
        ("garbled", |log, at| {
            for (place, byte) in log[at..].iter_mut().enumerate() {
                *byte ^= 0x5a ^ place as u8;
            }
        }),
    ];
    for (name, damage) in damages {
        for at in [full - 1, full - 5000, full * 2 / 3, full / 2 + 13, full / 5] {
            let copy = tempfile::tempdir().unwrap();
            let copied = copy.path().join("meshd.db");
            std::fs::write(&copied, &bytes).unwrap();
            let mut log = log_bytes.clone();
            damage(&mut log, at);
            std::fs::write(copy.path().join("meshd.db-wal"), log).unwrap();
            block_on(async {
                let store = SqliteStore::open(&copied).unwrap();
                let mut present = Vec::new();
                for (id, end) in &written {
                    let found = store.run(&tenant(), *id).await.unwrap().is_some();
                    assert!(found || *end > at, "{name} at {at} of {full}");
                    if found {
                        present.push(*id);
                    }
                }
                assert!(present.len() < written.len(), "{name} at {at} took nothing");
                crate::property::check(&store, &copied, &present).await;
                submitted(&*store, vec![run()]).await;
            });
        }
    }
}

/// The log up to its last frame: a header of 32 bytes, then frames of a head of 24 and
/// a page. Zeros follow.
fn frames_of(log: &Path) -> Vec<u8> {
    const FRAME: usize = 24 + 4096;
    let mut bytes = std::fs::read(log).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes.truncate(32 + (last - 32).div_ceil(FRAME) * FRAME);
    bytes
}

#[test]
fn a_full_disk_is_told_and_survived() {
    let directory = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=3m tmpfs \"$0\"";
    in_own_mounts(directory.path(), mount, "faults::full_disk_child");
}

/// Nothing by itself; on a small file system of its own, the writer.
#[test]
fn full_disk_child() {
    let Some(directory) = child_directory() else {
        return;
    };
    let path = directory.join("meshd.db");
    let filler = directory.join("filler");
    block_on(async {
        let store = SqliteStore::open(&path).unwrap();
        let mut kept = Vec::new();
        for _ in 0..3 {
            kept.push(submitted(&*store, vec![run()]).await.remove(0).id);
            fill(&filler);
            // Room that the log has already is used up first.
            let mut tried = 0;
            let refused = loop {
                tried += 1;
                assert!(tried < 1000, "a full disk takes no end of runs");
                let next = run();
                match store.submit(submission(vec![next.clone()])).await {
                    Ok(submitted) => kept.push(submitted.id),
                    Err(StoreError::Unavailable(_)) => break next.id,
                    Err(error) => panic!("{error}"),
                }
            };
            let error = store.check().await.unwrap_err();
            assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
            assert_eq!(store.run(&tenant(), refused).await.unwrap(), None);
            std::fs::remove_file(&filler).unwrap();
            store.check().await.unwrap();
        }
        kept.push(submitted(&*store, vec![run()]).await.remove(0).id);
        crate::property::check(&store, &path, &kept).await;
        drop(store);
        let store = SqliteStore::open(&path).unwrap();
        crate::property::check(&store, &path, &kept).await;
    });
    println!("the child is done");
}

/// Takes all the room that is left.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    for bytes in [&[7_u8; 4096][..], &[7]] {
        while file.write_all(bytes).is_ok() {}
    }
}

#[test]
fn a_read_only_directory_is_told() {
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let store = SqliteStore::open(&directory.path().join("meshd.db")).unwrap();
        submitted(&*store, vec![run()]).await;
    });
    let mount = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\"";
    in_own_mounts(directory.path(), mount, "faults::read_only_child");
}

/// Nothing by itself; on a read-only directory, who opens the store.
#[test]
fn read_only_child() {
    let Some(directory) = child_directory() else {
        return;
    };
    for name in ["meshd.db", "new.db"] {
        let error = SqliteStore::open(&directory.join(name)).unwrap_err();
        assert!(
            matches!(error, StoreError::Unavailable(_)),
            "{name}: {error}"
        );
    }
    println!("the child is done");
}

fn child_directory() -> Option<PathBuf> {
    std::env::var_os("MLMESH_STORE_CHILD_DIRECTORY").map(PathBuf::from)
}

/// Runs one test of this binary in mount and user namespaces of its own, after
/// `mount` has prepared `directory`.
fn in_own_mounts(directory: &Path, mount: &str, test: &str) {
    let allowed = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "true"])
        .output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        let reason = "user and mount namespaces cannot be made here";
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{reason}");
        println!("skipped: {reason}");
        return;
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
        .arg(format!("{mount} && exec \"$@\""))
        .arg(directory)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("MLMESH_STORE_CHILD_DIRECTORY", directory)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    let done = output.status.success() && told.contains("the child is done");
    assert!(done, "{told}{complained}");
}

#[test]
fn a_postgres_restart_is_told_and_survived() {
    let Some(mut server) = PostgresServer::start() else {
        return;
    };
    let config = server.new_schema().unwrap();
    block_on(async {
        let store = PostgresStore::connect(&config).await.unwrap();
        let mut kept = Vec::new();
        for stop in [PostgresServer::kill, PostgresServer::stop] {
            kept.push(submitted(&*store, vec![run()]).await.remove(0));
            stop(&mut server).unwrap();
            let lost = run();
            for _ in 0..3 {
                let error = store.submit(submission(vec![lost.clone()])).await;
                assert!(matches!(error, Err(StoreError::Unavailable(_))));
                let error = store.counts(&tenant()).await;
                assert!(matches!(error, Err(StoreError::Unavailable(_))));
            }
            server.run().unwrap();
            until_available(&store).await;
            assert_eq!(store.run(&tenant(), lost.id).await.unwrap(), None);
        }
        for run in &kept {
            assert_eq!(stored_run(&*store, run.id).await, *run);
        }
        assert_eq!(counted(&*store).await, [(Phase::Queued, 2)]);
        let error = PostgresStore::connect("host=/nonexistent user=nobody").await;
        assert!(matches!(error, Err(StoreError::Unavailable(_))));
    });
}

/// Tries until the store has found the server again; its pauses are bounded.
async fn until_available(store: &PostgresStore) {
    let limit = std::time::Duration::from_secs(30);
    let both = async {
        while store.check().await.is_err() || store.counts(&tenant()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(limit, both).await.unwrap();
}

#[test]
fn two_stores_on_one_server_share_order_and_see_each_others_events() {
    let Some(mut server) = PostgresServer::start() else {
        return;
    };
    let config = server.new_schema().unwrap();
    block_on(async {
        // Both start on an empty schema at once: one migrates, the other waits.
        let (first, second) = tokio::join!(
            PostgresStore::connect(&config),
            PostgresStore::connect(&config)
        );
        let (first, second) = (first.unwrap(), second.unwrap());
        let mut racing = tokio::task::JoinSet::new();
        let runs = submitted(&*first, sweep(40)).await;
        for run in &runs[1..] {
            for store in [&first, &second] {
                let (store, id) = (std::sync::Arc::clone(store), run.id);
                racing.spawn(async move { store.claim(claim_of(id)).await });
            }
        }
        let mut taken = 0;
        for outcome in racing.join_all().await {
            match outcome {
                Ok(_) => taken += 1,
                Err(error) => assert!(matches!(error, StoreError::NotQueued(_)), "{error}"),
            }
        }
        assert_eq!(taken, 40);
        let newest = first.last_event().await.unwrap();
        let mut watch = second.watch();
        watch.wait_for(|seq| *seq >= newest).await.unwrap();
        let events = second.events(&tenant(), Sequence(0), 1000).await.unwrap();
        let sequences: Vec<u64> = events.iter().map(|event| event.seq.0).collect();
        assert_eq!(sequences, (1..=newest.0).collect::<Vec<u64>>());
    });
}
