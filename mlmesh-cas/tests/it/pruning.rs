//! Prunes: what goes, what stays, and what runs beside them.

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mlmesh_cas::{ObjectStore, PruneOptions, StoreError};
use mlmesh_model::ObjectId;
use tempfile::tempdir;

use crate::support::{disk_bytes, files, id, noise, small, tree_of};

const NOW: PruneOptions = PruneOptions {
    grace: Duration::ZERO,
    garbage_percent_max: 20,
};

#[test]
fn what_nothing_refers_to_goes_and_the_rest_is_whole() {
    let folder = tempdir().unwrap();
    let store = ObjectStore::open(folder.path()).unwrap();
    let (kept, garbage) = (small(0..100), small(100..200));
    let (large, large_garbage) = (noise(1, 300_000), noise(2, 300_000));
    for index in 0..100 {
        store
            .put_batch([kept[index].clone(), garbage[index].clone()])
            .unwrap();
    }
    store
        .put_batch([(id(&large), &large), (id(&large_garbage), &large_garbage)])
        .unwrap();
    let mut in_tree = kept[..50].to_vec();
    in_tree.push((id(&large), large.clone()));
    let commit = store.put_tree(&tree_of(&in_tree)).unwrap();
    let dead = store.put_tree(&tree_of(&garbage[..10])).unwrap();
    let before = disk_bytes(folder.path());

    let mut roots: HashSet<ObjectId> = kept[50..].iter().map(|(id, _)| *id).collect();
    roots.insert(ObjectId(commit.0));
    let graceful = store.prune(&roots, &PruneOptions::default()).unwrap();
    assert_eq!(
        (graceful.objects, graceful.commits),
        (0, 0),
        "the grace time protects what is new"
    );
    let pruned = store.prune(&roots, &NOW).unwrap();
    assert_eq!((pruned.objects, pruned.commits), (101, 1));
    assert!(
        before - disk_bytes(folder.path()) >= pruned.bytes,
        "{pruned:?}"
    );

    let check = |store: &ObjectStore| {
        let garbage_ids: Vec<_> = garbage
            .iter()
            .map(|(id, _)| *id)
            .chain([id(&large_garbage)])
            .collect();
        assert!(store.has(&garbage_ids).unwrap().iter().all(|there| !there));
        for (id, content) in kept.iter().chain(&in_tree) {
            assert_eq!(&store.read(*id, 1 << 20).unwrap(), content);
        }
        assert!(store.has_commit(commit).unwrap() && !store.has_commit(dead).unwrap());
    };
    check(&store);
    drop(store);
    let store = ObjectStore::open(folder.path()).unwrap();
    assert_eq!(store.recovered(), []);
    check(&store);
    store.put_batch(garbage.clone()).unwrap();
    assert_eq!(store.read(garbage[7].0, 1000).unwrap(), garbage[7].1);
    let everything = store.prune(&HashSet::new(), &NOW).unwrap();
    assert_eq!((everything.commits, everything.objects), (1, 201));
    assert_eq!(files(&folder.path().join("packs")).len(), 0);
}

#[test]
fn a_sync_under_way_keeps_what_it_put_and_what_it_was_told_is_there() {
    let folder = tempdir().unwrap();
    let store = Arc::new(ObjectStore::open(folder.path()).unwrap());
    let objects = small(0..30);
    store.put_batch(objects[..20].to_vec()).unwrap();
    store
        .prune(&objects.iter().map(|(id, _)| *id).collect(), &NOW)
        .unwrap();

    let sync = store.begin_sync();
    let asked: Vec<_> = objects[..10].iter().map(|(id, _)| *id).collect();
    assert!(store.has(&asked).unwrap().iter().all(|there| *there));
    store.put_batch(objects[20..].to_vec()).unwrap();
    let commit = store.put_tree(&tree_of(&objects[15..18])).unwrap();
    let pruned = store.prune(&HashSet::new(), &NOW).unwrap();
    assert_eq!(
        pruned.objects, 7,
        "10 to 14, 18 and 19 were neither put, asked for nor in a tree"
    );
    assert!(store.has_commit(commit).unwrap());
    drop(sync);
    let pruned = store.prune(&HashSet::new(), &NOW).unwrap();
    assert_eq!((pruned.objects, pruned.commits), (23, 1));
}

#[test]
fn a_lease_of_another_process_keeps_its_commit_and_a_dead_one_does_not() {
    let folder = tempdir().unwrap();
    let store = ObjectStore::open(folder.path()).unwrap();
    let objects = small(0..10);
    store.put_batch(objects.clone()).unwrap();
    let commit = store.put_tree(&tree_of(&objects)).unwrap();
    let reader = ObjectStore::open_read_only(folder.path()).unwrap();
    let lease = reader.lease(commit).unwrap();
    // A holder that died leaves its file behind, unlocked.
    fs::write(folder.path().join("leases/999999-0"), id(b"").to_string()).unwrap();
    assert_eq!(store.prune(&HashSet::new(), &NOW).unwrap().commits, 0);
    assert_eq!(reader.read(objects[0].0, 1000).unwrap(), objects[0].1);
    drop(lease);
    assert_eq!(store.prune(&HashSet::new(), &NOW).unwrap().objects, 10);
    assert!(matches!(reader.lease(commit), Err(StoreError::Missing(_))));
    let left = files(&folder.path().join("leases"));
    assert_eq!(left.len(), 1, "only the gate: {left:?}");
}

#[test]
fn a_root_that_cannot_be_read_stops_the_prune() {
    let folder = tempdir().unwrap();
    let store = ObjectStore::open(folder.path()).unwrap();
    let objects = small(0..10);
    store.put_batch(objects.clone()).unwrap();
    let commit = store.put_tree(&tree_of(&objects)).unwrap();
    let listing = &files(&folder.path().join("commits"))[0];
    let mut bytes = fs::read(listing).unwrap();
    bytes[30] ^= 1;
    fs::write(listing, bytes).unwrap();
    let error = store
        .prune(&HashSet::from([ObjectId(commit.0)]), &NOW)
        .unwrap_err();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
    assert_eq!(store.counts().0, 10);
}

#[test]
fn prunes_beside_syncs_lose_nothing() {
    let folder = tempdir().unwrap();
    let store = Arc::new(ObjectStore::open(folder.path()).unwrap());
    /// Stops the pruner also when a sync panics.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stopper = Stop(&stop);
        let pruner = scope.spawn(|| {
            let mut prunes = 0;
            while !stop.load(Ordering::Relaxed) {
                store.prune(&HashSet::new(), &NOW).unwrap();
                prunes += 1;
            }
            prunes
        });
        let syncs: Vec<_> = (0..2_u64)
            .map(|client| {
                let store = &store;
                scope.spawn(move || {
                    for round in 0..25 {
                        let guard = store.begin_sync();
                        // Half of it is there from the last round, unless pruned.
                        let start = client * 10_000 + round * 10;
                        let mut objects = small(start..start + 20);
                        let large = noise(start, 140_000);
                        objects.push((id(&large), large));
                        let ids: Vec<_> = objects.iter().map(|(id, _)| *id).collect();
                        let there = store.has(&ids).unwrap();
                        let missing = objects.iter().zip(there).filter(|(_, there)| !there);
                        store
                            .put_batch(missing.map(|(object, _)| object.clone()))
                            .unwrap();
                        let commit = store.put_tree(&tree_of(&objects)).unwrap();
                        assert!(store.has_commit(commit).unwrap());
                        for (id, content) in &objects {
                            assert_eq!(&store.read(*id, 1 << 20).unwrap(), content);
                        }
                        drop(guard);
                    }
                })
            })
            .collect();
        syncs.into_iter().for_each(|sync| sync.join().unwrap());
        drop(stopper);
        assert!(pruner.join().unwrap() > 0);
    });
    store.prune(&HashSet::new(), &NOW).unwrap();
    assert_eq!(store.counts(), (0, 0));
}

#[test]
fn many_small_packs_become_one() {
    let folder = tempdir().unwrap();
    let mut roots = HashSet::new();
    for round in 0..10 {
        let store = ObjectStore::open(folder.path()).unwrap();
        let objects = small(round * 10..round * 10 + 10);
        store.put_batch(objects.clone()).unwrap();
        roots.extend(objects[1..].iter().map(|(id, _)| *id));
        store.prune(&roots, &NOW).unwrap();
    }
    let store = ObjectStore::open(folder.path()).unwrap();
    store.prune(&roots, &NOW).unwrap();
    assert!(files(&folder.path().join("packs")).len() <= 18);
    assert!(
        store
            .has(&roots.iter().copied().collect::<Vec<_>>())
            .unwrap()
            .iter()
            .all(|there| *there)
    );
}
