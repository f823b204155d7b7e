//! Objects in and out: packs and loose files, recovery, readers, checkouts.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use mlmesh_cas::{LOOSE_BYTES_MIN, Mode, ObjectStore, StoreError, Tree, TreeEntry};
use mlmesh_model::{CommitId, ObjectId};
use tempfile::tempdir;

use crate::support::{disk_bytes, files, id, noise, small, store_folder, tree_of, write_files};

#[test]
fn what_was_put_is_read_and_a_duplicate_adds_no_byte() {
    let folder = tempdir().unwrap();
    let store = ObjectStore::open(folder.path()).unwrap();
    let mut objects = small(0..100);
    let large = noise(7, 300_000);
    objects.push((id(&large), large.clone()));
    objects.push((id(b""), Vec::new()));
    objects.push(objects[3].clone());
    let added = store.put_batch(objects.clone()).unwrap();
    assert_eq!(added.objects, 102);
    let bytes = disk_bytes(folder.path());
    assert_eq!(store.put_batch(objects.clone()).unwrap().objects, 0);
    assert_eq!(store.put_stream(&large[..], None).unwrap(), id(&large));
    assert_eq!(disk_bytes(folder.path()), bytes, "a duplicate adds 0 bytes");

    let check = |store: &ObjectStore| {
        for (id, content) in &objects {
            assert_eq!(&store.read(*id, 1 << 20).unwrap(), content);
            assert_eq!(store.size(*id).unwrap(), Some(content.len() as u64));
        }
        assert_eq!(
            store
                .has(&[objects[0].0, id(b"absent"), id(&large)])
                .unwrap(),
            [true, false, true]
        );
    };
    check(&store);
    assert!(matches!(
        store.read(objects[0].0, 10),
        Err(StoreError::TooLarge { bytes_max: 10, .. })
    ));
    assert!(matches!(
        store.read(id(b"absent"), 10),
        Err(StoreError::Missing(_))
    ));
    drop(store);
    let store = ObjectStore::open(folder.path()).unwrap();
    check(&store);
    assert_eq!(store.recovered(), []);
    // The open pack goes on after a restart.
    store.put_batch(small(200..210)).unwrap();
    assert_eq!(files(&folder.path().join("packs")).len(), 2);
}

#[test]
fn content_that_is_not_its_id_is_refused_and_leaves_nothing() {
    let folder = tempdir().unwrap();
    let store = ObjectStore::open(folder.path()).unwrap();
    let mut objects = small(0..10);
    objects[5].1[0] ^= 1;
    let error = store.put_batch(objects.clone()).unwrap_err();
    assert!(
        matches!(error, StoreError::Digest { expected, .. } if expected == objects[5].0),
        "{error}"
    );
    assert_eq!(store.counts(), (0, 0));
    let large = noise(1, 500_000);
    assert!(store.put_stream(&large[..], Some(id(b"other"))).is_err());
    assert!(store.put_stream(&b"small"[..], Some(id(b"other"))).is_err());
    assert_eq!(
        files(&folder.path().join("tmp")),
        Vec::<std::path::PathBuf>::new()
    );
    store.put_batch(small(0..10)).unwrap();
    drop(store);
    let store = ObjectStore::open(folder.path()).unwrap();
    assert_eq!((store.counts(), store.recovered()), ((10, 0), &[][..]));
}

#[test]
fn one_process_writes_and_others_read_along() {
    let folder = tempdir().unwrap();
    let writer = ObjectStore::open(folder.path()).unwrap();
    assert!(matches!(
        ObjectStore::open(folder.path()),
        Err(StoreError::InUse { .. })
    ));
    let reader = ObjectStore::open_read_only(folder.path()).unwrap();
    let objects = small(0..20);
    writer.put_batch(objects.clone()).unwrap();
    let large = noise(3, 200_000);
    writer.put_stream(&large[..], None).unwrap();
    assert_eq!(reader.read(objects[4].0, 1000).unwrap(), objects[4].1);
    assert_eq!(
        reader.has(&[objects[0].0, id(&large), id(b"x")]).unwrap(),
        [true, true, false]
    );
    assert!(matches!(
        reader.put_batch(objects),
        Err(StoreError::ReadOnly)
    ));
}

#[test]
fn a_store_of_another_version_is_left_alone() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("format"), "mlmesh-objects 2\n").unwrap();
    let error = ObjectStore::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("`mlmesh-objects 2`"), "{error}");
}

#[test]
fn a_torn_tail_of_pack_or_journal_costs_nothing_that_was_acknowledged() {
    let origin = tempdir().unwrap();
    let store = ObjectStore::open(origin.path()).unwrap();
    let (first, second) = (small(0..3), small(3..6));
    store.put_batch(first.clone()).unwrap();
    let packs = origin.path().join("packs");
    let (pack, journal) = (packs.join("00000001.pack"), packs.join("00000001.log"));
    let acknowledged = (
        fs::metadata(&pack).unwrap().len(),
        fs::metadata(&journal).unwrap().len(),
    );
    store.put_batch(second.clone()).unwrap();
    drop(store);
    let (pack, journal) = (fs::read(pack).unwrap(), fs::read(journal).unwrap());

    // The second batch was being written: any part of its pack bytes, and any
    // part of its journal bytes once those of the pack were synced.
    let cuts_of_pack = (acknowledged.0..=pack.len() as u64)
        .step_by(7)
        .map(|cut| (cut, acknowledged.1));
    let cuts_of_journal =
        (acknowledged.1..=journal.len() as u64).map(|cut| (pack.len() as u64, cut));
    for (pack_cut, journal_cut) in cuts_of_pack.chain(cuts_of_journal) {
        let folder = tempdir().unwrap();
        drop(ObjectStore::open(folder.path()).unwrap());
        let packs = folder.path().join("packs");
        fs::write(packs.join("00000001.pack"), &pack[..pack_cut as usize]).unwrap();
        fs::write(packs.join("00000001.log"), &journal[..journal_cut as usize]).unwrap();
        let store = ObjectStore::open(folder.path()).unwrap();
        let what = format!(
            "pack cut at {pack_cut}, journal at {journal_cut}: {:?}",
            store.recovered()
        );
        for (id, content) in &first {
            assert_eq!(&store.read(*id, 1000).unwrap(), content, "{what}");
        }
        store.put_batch(second.clone()).unwrap();
        drop(store);
        let store = ObjectStore::open(folder.path()).unwrap();
        for (id, content) in first.iter().chain(&second) {
            assert_eq!(&store.read(*id, 1000).unwrap(), content, "{what}");
        }
    }
}

#[test]
fn a_lost_or_damaged_index_is_made_anew_from_the_pack() {
    let folder = tempdir().unwrap();
    let objects = small(0..50);
    let store = ObjectStore::open(folder.path()).unwrap();
    store.put_batch(objects.clone()).unwrap();
    drop(store);
    let packs = folder.path().join("packs");
    fs::remove_file(packs.join("00000001.log")).unwrap();
    for damage in [None, Some(40_usize), Some(5)] {
        let index = packs.join("00000001.idx");
        if let Some(at) = damage {
            let mut bytes = fs::read(&index).unwrap();
            bytes[at] ^= 4;
            fs::write(&index, bytes).unwrap();
        }
        let store = ObjectStore::open(folder.path()).unwrap();
        assert_eq!(store.recovered().len(), 1, "{:?}", store.recovered());
        for (id, content) in &objects {
            assert_eq!(&store.read(*id, 1000).unwrap(), content);
        }
    }
}

#[test]
fn damage_is_seen_when_read_and_healed_by_sending_again() {
    let folder = tempdir().unwrap();
    let store = ObjectStore::open(folder.path()).unwrap();
    let objects = small(0..3);
    store.put_batch(objects.clone()).unwrap();
    let large = noise(5, 400_000);
    store.put_stream(&large[..], None).unwrap();
    let tree = tree_of(&[
        objects[0].clone(),
        objects[1].clone(),
        (id(&large), large.clone()),
    ]);
    let commit = store.put_tree(&tree).unwrap();

    let large_only = store
        .put_tree(&tree_of(&[(id(&large), large.clone())]))
        .unwrap();
    let small_only = store.put_tree(&tree_of(&objects[..1])).unwrap();

    let pack = folder.path().join("packs/00000001.pack");
    let mut bytes = fs::read(&pack).unwrap();
    bytes[60] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let loose = &files(&folder.path().join("loose"))[0];
    let mut bytes = fs::read(loose).unwrap();
    bytes[399_999] ^= 1;
    fs::write(loose, bytes).unwrap();

    let other = ObjectStore::open_read_only(folder.path()).unwrap();
    let mut reader = other.reader(id(&large)).unwrap();
    let end = reader.read_to_end(&mut Vec::new());
    assert!(end.is_err(), "the last read tells");
    for id in [objects[0].0, id(&large)] {
        assert!(matches!(
            other.read(id, 1 << 20),
            Err(StoreError::Corrupt(_))
        ));
    }
    let into = tempdir().unwrap();
    for (commit, id) in [(large_only, id(&large)), (small_only, objects[0].0)] {
        let result = store.checkout(commit, &into.path().join(commit.to_string()));
        assert!(matches!(result, Err(StoreError::Corrupt(damaged)) if damaged == id));
    }
    let again = store.read(id(&large), 1 << 20);
    assert!(
        matches!(again, Err(StoreError::Missing(_))),
        "damage counts as absence"
    );
    let result = store.checkout(commit, &into.path().join("x"));
    assert!(matches!(result, Err(StoreError::Missing(_))));
    assert!(!store.has_commit(commit).unwrap());
    assert_eq!(store.missing_objects(&tree).unwrap().len(), 2);

    store
        .put_batch([objects[0].clone(), (id(&large), large.clone())])
        .unwrap();
    assert!(store.has_commit(commit).unwrap());
    drop(store);
    let store = ObjectStore::open(folder.path()).unwrap();
    assert_eq!(store.read(objects[0].0, 1000).unwrap(), objects[0].1);
    store.checkout(commit, &into.path().join("y")).unwrap();
}

#[test]
fn a_checkout_is_the_tree_and_shares_no_inode_with_the_store() {
    let (folder, source, into) = (tempdir().unwrap(), tempdir().unwrap(), tempdir().unwrap());
    let store = ObjectStore::open(folder.path()).unwrap();
    let large = "large".repeat(100_000);
    write_files(
        source.path(),
        &[
            ("a.py", "x"),
            ("a-b/c", "y"),
            ("a/b/c/d.txt", "z"),
            ("a/b/e", "z"),
            ("f/g/run.sh", "+x #!/bin/sh"),
            ("large.bin", &large),
            ("a/link", "-> ../f/g"),
            ("odd \\\n name", ""),
        ],
    );
    let tree = store_folder(&store, source.path());
    let into = into.path().join("new");
    let done = store.checkout(tree.commit_id(), &into).unwrap();
    assert_eq!(done.entries, 8);
    assert_eq!(
        store_folder(&store, &into),
        tree,
        "a checkout's own snapshot is the same commit"
    );
    let mode = |path: &str| fs::metadata(into.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (mode("a.py"), mode("f/g/run.sh"), mode("large.bin")),
        (0o644, 0o755, 0o644)
    );
    let loose = fs::metadata(&files(&folder.path().join("loose"))[0]).unwrap();
    let copy = fs::metadata(into.join("large.bin")).unwrap();
    assert!(copy.ino() != loose.ino() && copy.nlink() == 1);

    let again = store.checkout(tree.commit_id(), &into).unwrap_err();
    assert!(again.to_string().contains("new or empty"), "{again}");
    assert!(matches!(
        store.checkout(CommitId(id(b"").0), &into),
        Err(StoreError::Missing(_))
    ));
}

#[test]
fn a_checkout_writes_nowhere_else() {
    let (folder, into) = (tempdir().unwrap(), tempdir().unwrap());
    let store = ObjectStore::open(folder.path()).unwrap();
    let put = |content: &[u8]| store.put_stream(content, None).unwrap();
    let entry = |path: &str, mode, object: ObjectId, size| TreeEntry {
        path: path.into(),
        mode,
        size,
        object,
    };

    // A listing that came over the wire, with links that lead out.
    for target in ["/etc", "..", "x/../../.."] {
        let tree = Tree {
            entries: vec![entry(
                "link",
                Mode::Symlink,
                put(target.as_bytes()),
                target.len() as u64,
            )],
        };
        let error = store.put_tree(&tree).unwrap_err();
        assert!(
            error.to_string().contains("stay inside the tree"),
            "{error}"
        );
    }
    let file = put(b"x");
    for path in ["../x", "/x", "a/../../x", ".git/hooks/x"] {
        let tree = Tree {
            entries: vec![entry(path, Mode::File, file, 1)],
        };
        assert!(
            matches!(store.put_tree(&tree), Err(StoreError::Tree(_))),
            "{path}"
        );
    }
    let lie = Tree {
        entries: vec![entry("x", Mode::File, file, 2)],
    };
    assert!(matches!(
        store.put_tree(&lie),
        Err(StoreError::Entry { .. })
    ));
    let missing = Tree {
        entries: vec![entry("x", Mode::File, id(b"absent"), 6)],
    };
    assert!(
        matches!(store.put_tree(&missing), Err(StoreError::Incomplete { missing }) if missing == [id(b"absent")])
    );

    // A destination that is a link is not followed.
    let good = store
        .put_tree(&Tree {
            entries: vec![entry("x", Mode::File, file, 1)],
        })
        .unwrap();
    let target = into.path().join("target");
    fs::create_dir(&target).unwrap();
    symlink(&target, into.path().join("link")).unwrap();
    assert!(store.checkout(good, &into.path().join("link")).is_err());
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
}

#[test]
fn a_listing_comes_back_as_it_went_and_under_its_own_name_only() {
    let folder = tempdir().unwrap();
    let store = ObjectStore::open(folder.path()).unwrap();
    let objects = small(0..5);
    store.put_batch(objects.clone()).unwrap();
    let tree = tree_of(&objects);
    let listing = tree.canonical_bytes();
    assert!(store.put_listing(CommitId(id(b"").0), &listing).is_err());
    assert_eq!(store.put_listing(tree.commit_id(), &listing).unwrap(), tree);
    assert_eq!(store.listing(tree.commit_id()).unwrap(), listing);
    assert_eq!(store.tree(tree.commit_id()).unwrap(), tree);
    assert_eq!(
        store.has(&[ObjectId(tree.commit_id().0)]).unwrap(),
        [false],
        "commits are no objects"
    );
    drop(store);
    assert!(
        ObjectStore::open(folder.path())
            .unwrap()
            .has_commit(tree.commit_id())
            .unwrap()
    );
}

#[test]
fn objects_at_the_border_between_packs_and_files() {
    let folder = tempdir().unwrap();
    let store = ObjectStore::open(folder.path()).unwrap();
    for bytes in [LOOSE_BYTES_MIN - 1, LOOSE_BYTES_MIN, LOOSE_BYTES_MIN + 1] {
        let content = noise(bytes, bytes as usize);
        assert_eq!(store.put_stream(&content[..], None).unwrap(), id(&content));
        assert_eq!(store.read(id(&content), 1 << 20).unwrap(), content);
    }
    assert_eq!(store.counts(), (1, 2));
}
