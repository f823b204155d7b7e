//! Scrub: every flipped bit is found.

use std::collections::HashSet;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use mlmesh_cas::{Defect, ObjectStore, PruneOptions, ScrubProgress, StoreError};
use tempfile::tempdir;

use crate::support::{files, id, noise, small, tree_of};

#[test]
fn a_flipped_bit_anywhere_is_found() {
    let folder = tempdir().unwrap();
    let store = ObjectStore::open(folder.path()).unwrap();
    // A sealed pack with its index, an open one with its journal, a loose object
    // with its chunk list, a listing.
    let (sealed, open) = (small(0..8), small(10..14));
    store.put_batch(sealed.clone()).unwrap();
    let roots: HashSet<_> = sealed[1..].iter().map(|(id, _)| *id).collect();
    store
        .prune(
            &roots,
            &PruneOptions {
                grace: Duration::ZERO,
                garbage_percent_max: 0,
            },
        )
        .unwrap();
    store.put_batch(open.clone()).unwrap();
    let large = noise(9, 200_000);
    store.put_stream(&large[..], None).unwrap();
    store.chunks_of(id(&large)).unwrap();
    store.put_tree(&tree_of(&open)).unwrap();
    assert_eq!(store.scrub(&mut go_on).unwrap(), []);

    let mut seen = 0;
    for name in ["packs", "loose", "commits"] {
        for path in files(&folder.path().join(name)) {
            let length = fs::metadata(&path).unwrap().len();
            let step = (length / 97).max(1) as usize;
            let file = fs::File::options()
                .read(true)
                .write(true)
                .open(&path)
                .unwrap();
            for at in (0..length).step_by(step) {
                let mut byte = [0_u8];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1 << (at % 8)], at).unwrap();
                // Opened anew, since a scrub remembers damage and the file is mended.
                let reader = ObjectStore::open_read_only(folder.path()).unwrap();
                let found = store.scrub(&mut go_on).unwrap();
                assert_ne!(found, [], "{} at {at}", path.display());
                drop(reader);
                file.write_all_at(&byte, at).unwrap();
                seen += 1;
                heal(&store, &found);
            }
        }
    }
    assert!(seen > 300, "{seen}");
    let list = &files(&folder.path().join("chunks"))[0];
    let mut bytes = fs::read(list).unwrap();
    bytes[50] ^= 1;
    fs::write(list, bytes).unwrap();
    assert_eq!(
        store.scrub(&mut go_on).unwrap(),
        [Defect::Index { file: list.clone() }]
    );
    assert_eq!(store.scrub(&mut go_on).unwrap(), []);
}

fn go_on(_: ScrubProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The test has mended the file; a mended object is no longer damaged.
fn heal(store: &ObjectStore, found: &[Defect]) {
    let mut objects = 0;
    let again = store
        .scrub(&mut |progress| {
            objects = progress.objects;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(objects > 0);
    let still = again
        .iter()
        .filter(|defect| !matches!(defect, Defect::Missing { .. }))
        .count();
    assert_eq!(still, 0, "{found:?} then {again:?}");
}

#[test]
fn damage_stays_known_after_a_restart_until_the_object_comes_again() {
    let folder = tempdir().unwrap();
    let store = ObjectStore::open(folder.path()).unwrap();
    let objects = small(0..3);
    store.put_batch(objects.clone()).unwrap();
    let large = noise(9, 200_000);
    let loose = store.put_stream(&large[..], None).unwrap();
    let mut all = objects.clone();
    all.push((loose, large.clone()));
    let commit = store.put_tree(&tree_of(&all)).unwrap();
    let packed = objects[1].0;
    for (name, content) in [("packs", &objects[1].1), ("loose", &large)] {
        let path = files(&folder.path().join(name))
            .into_iter()
            .find(|path| path.extension().is_none_or(|ending| ending == "pack"))
            .unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes
            .windows(content.len())
            .position(|window| window == content.as_slice())
            .unwrap();
        bytes[at + 3] ^= 4;
        fs::write(&path, bytes).unwrap();
    }
    // One is met by a reader, the other is found by a scrub of a later process.
    assert!(matches!(store.read(packed, 1 << 20), Err(StoreError::Corrupt(id)) if id == packed));
    drop(store);
    let store = ObjectStore::open(folder.path()).unwrap();
    assert_eq!(store.has(&[packed, loose]).unwrap(), [false, true]);
    assert_eq!(
        store.scrub(&mut go_on).unwrap().len(),
        4,
        "two objects, and the commit lacks both"
    );
    drop(store);
    let store = ObjectStore::open(folder.path()).unwrap();
    assert_eq!(store.has(&[packed, loose]).unwrap(), [false, false]);
    assert!(!store.has_commit(commit).unwrap());
    let reader = ObjectStore::open_read_only(folder.path()).unwrap();
    assert_eq!(reader.has(&[packed]).unwrap(), [false]);

    store.put_batch(all.clone()).unwrap();
    assert_eq!(store.scrub(&mut go_on).unwrap(), []);
    assert!(!folder.path().join("damaged").exists());
    drop(store);
    let store = ObjectStore::open(folder.path()).unwrap();
    assert!(store.has_commit(commit).unwrap());
    for (id, content) in &all {
        assert_eq!(store.read(*id, 1 << 20).unwrap(), *content);
    }
}

#[test]
fn a_scrub_can_be_stopped_within_an_object() {
    let folder = tempdir().unwrap();
    let store = ObjectStore::open(folder.path()).unwrap();
    store.put_stream(&noise(9, 2 << 20)[..], None).unwrap();
    let mut read = 0;
    let stopped = store.scrub(&mut |progress| {
        read = progress.bytes;
        match progress.bytes {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    });
    assert!(matches!(stopped, Err(StoreError::Stopped)), "{stopped:?}");
    assert!(read < 2 << 20, "{read}");
}
