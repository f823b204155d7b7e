//! Files of released formats are read for ever, and what is written has not
//! changed without a new format byte.
//!
//! `tests/golden/v1/` holds a store as format 1 writes it. To make a new folder
//! for a new format: `MLMESH_WRITE_GOLDEN=DIR cargo test -p mlmesh-cas golden`.

use std::collections::HashSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mlmesh_cas::{
    FrameLimits, FrameReader, FrameWriter, ObjectStore, PruneOptions, Tree, chunk_manifest,
};
use mlmesh_model::ObjectId;
use tempfile::tempdir;

use crate::support::{files, id, small, tree_of};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

/// Writes one of everything that has a format.
fn write(folder: &Path) {
    let store = ObjectStore::open(&folder.join("objects")).unwrap();
    let objects = small(0..6);
    store.put_batch(objects.clone()).unwrap();
    let roots: HashSet<ObjectId> = objects[..4].iter().map(|(id, _)| *id).collect();
    // Seals the first pack, so that there is an index and then a journal.
    store
        .prune(
            &roots,
            &PruneOptions {
                grace: Duration::ZERO,
                garbage_percent_max: 0,
            },
        )
        .unwrap();
    store.put_batch(objects[4..5].to_vec()).unwrap();
    let large = vec![7; 140_000];
    store.put_stream(&large[..], None).unwrap();
    store.chunks_of(id(&large)).unwrap();
    store.put_tree(&tree_of(&objects[..5])).unwrap();
    let mut frame = FrameWriter::new(Vec::new()).unwrap();
    objects
        .iter()
        .for_each(|(id, content)| frame.record(*id, content).unwrap());
    fs::write(folder.join("frame"), frame.finish().unwrap()).unwrap();
    for name in ["lock", "leases/gate"] {
        fs::remove_file(folder.join("objects").join(name)).unwrap();
    }
}

#[test]
fn what_is_written_now_is_what_format_1_was() {
    if let Some(folder) = std::env::var_os("MLMESH_WRITE_GOLDEN") {
        write(Path::new(&folder));
        return;
    }
    let now = tempdir().unwrap();
    write(now.path());
    let relative = |root: &Path| -> Vec<PathBuf> {
        files(root)
            .iter()
            .map(|path| path.strip_prefix(root).unwrap().to_owned())
            .collect()
    };
    assert_eq!(relative(now.path()), relative(&golden()));
    for path in relative(now.path()) {
        let (new, old) = (
            fs::read(now.path().join(&path)).unwrap(),
            fs::read(golden().join(&path)).unwrap(),
        );
        assert!(
            new == old,
            "{} is written in another form: give it a new format byte",
            path.display()
        );
    }
}

#[test]
fn a_store_of_format_1_is_read() {
    let folder = tempdir().unwrap();
    for path in files(&golden()) {
        let target = folder.path().join(path.strip_prefix(golden()).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, target).unwrap();
    }
    let store = ObjectStore::open(&folder.path().join("objects")).unwrap();
    assert_eq!(store.recovered(), []);
    let objects = small(0..6);
    for (id, content) in &objects[..5] {
        assert_eq!(&store.read(*id, 1000).unwrap(), content);
    }
    let tree = tree_of(&objects[..5]);
    assert_eq!(store.tree(tree.commit_id()).unwrap(), tree);
    assert_eq!(store.scrub(&mut |_| ControlFlow::Continue(())).unwrap(), []);
    let large = folder.path().join("large");
    fs::write(&large, vec![7; 140_000]).unwrap();
    assert_eq!(
        chunk_manifest(&large).unwrap(),
        store.chunks_of(id(&vec![7; 140_000])).unwrap()
    );

    let frame = fs::read(folder.path().join("frame")).unwrap();
    let mut reader = FrameReader::new(&frame[..], FrameLimits::default());
    let mut records = 0;
    while let Some(record) = reader.next_record().unwrap() {
        assert_eq!(record.id, objects[records].0);
        records += 1;
    }
    assert_eq!(records, 6);
    assert_eq!(
        Tree::parse(&store.listing(tree.commit_id()).unwrap()).unwrap(),
        tree
    );
}
