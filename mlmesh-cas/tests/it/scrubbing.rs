//! Scrub: every flipped bit is found.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use mlmesh_cas::{Defect, ObjectStore, PruneOptions};
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
    assert_eq!(store.scrub(&mut |_| {}).unwrap(), []);

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
                let found = store.scrub(&mut |_| {}).unwrap();
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
        store.scrub(&mut |_| {}).unwrap(),
        [Defect::Index { file: list.clone() }]
    );
    assert_eq!(store.scrub(&mut |_| {}).unwrap(), []);
}

/// The test has mended the file; a mended object is no longer damaged.
fn heal(store: &ObjectStore, found: &[Defect]) {
    let mut objects = 0;
    let again = store
        .scrub(&mut |progress| objects = progress.objects)
        .unwrap();
    assert!(objects > 0);
    let still = again
        .iter()
        .filter(|defect| !matches!(defect, Defect::Missing { .. }))
        .count();
    assert_eq!(still, 0, "{found:?} then {again:?}");
}
